"""The recipe of README.md, as an administrator would type it: as root, on a machine of its own, with
systemd, whose files are those of this host. What it changes there is gone afterwards."""

import os
import re
import subprocess
import sys
import unittest

ROOT = os.path.abspath("../../..")
sys.path.insert(0, f"{ROOT}/tools/guide")
import check  # pylint: disable=wrong-import-position


class Readme(unittest.TestCase):
    def test_lines_lead_to_a_client_that_is_handed_over(self):
        self.assertEqual(os.getuid(), 0, "this needs root: it starts systemd in namespaces of its own")
        with open("../README.md", encoding="utf-8") as file:
            recipes, _, _ = check.parse(file.read().splitlines())
        self.assertEqual([recipe.name for recipe in recipes], ["apache", "apache-fallback"])
        # One after the other, on one machine.
        both = check.Recipe(check.FIRST)  # which has this tree
        both.blocks = [block for recipe in recipes for block in recipe.blocks]
        both.blocks.append(check.Block(0, "sh", "make uninstall-apache\n"
                                       "if find /usr/lib/apache2 /etc/apache2/mods-available | "
                                       "grep handoff; then false; fi\n"))
        check.GUIDE = "integrations/apache/README.md"
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(ROOT)
        place = check.Place()
        self.addCleanup(place.remove)
        check.run(both, place, ["/"])
        self.assertIn("served by the backend", both.printed)
        self.assertIn("served by Apache itself", both.printed)

    def test_daemon_of_the_migration_compiles(self):
        with open("../migration.md", encoding="utf-8") as file:
            [program] = re.findall(r"^```c\n(.*?)^```$", file.read(), re.M | re.S)
        subprocess.run(["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
                        f"-I{ROOT}/include", "-xc", "-"], input=program, text=True, check=True)


if __name__ == "__main__":
    unittest.main()
