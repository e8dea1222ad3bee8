#!/usr/bin/env python3
"""The lines about TLS in the README of the nginx modules, as an administrator would type them.

HANDOFF_INSTALLED is what `make install install-nginx` has put into a directory: there is neither a
compiler nor a network here, so `make` copies that, and `apt-get` looks whether all is there.
"""

import os
import subprocess
import sys
import tempfile
import unittest

import peers

sys.path.insert(0, os.path.join(peers.ROOT, "tools", "guide"))

import check  # noqa: E402

README = os.path.join(peers.ROOT, "integrations", "nginx", "README.md")
INSTALLED = os.environ["HANDOFF_INSTALLED"]

# What is not there, cannot be done, or needs a configured PAM.
COMMANDS = {
    "apt-get": '[ -x /usr/sbin/nginx ] && [ -e /usr/lib/nginx/modules/ngx_stream_module.so ]',
    "make": '[ "$1" = install ] || exit 0; cp -a "$HANDOFF_INSTALLED/." /',
    "modprobe": 'for name; do [ -d "/sys/module/$name" ] || exit 1; done',
    "runuser": '[ "$1 $3" = "-u --" ] || exit 1; user=$2; shift 3\n'
               'exec setpriv --reuid "$user" --regid "$user" --clear-groups "$@"',
    # An administrator is not as fast as this shell: by now the backends listen, and after a reload
    # nginx does.
    "systemctl": 'case "$*" in "restart nginx") sockets=events nginx=nginx ;;\n'
                 '"reload nginx") sockets="web-events web-websocket" nginx="nginx -s reload" ;;\n'
                 '*) exit 1 ;; esac\n'
                 'for name in $sockets; do until [ -S /run/handoff/$name.sock ]; do sleep 0.1; done; done\n'
                 '$nginx\n'
                 '[ "$1" = restart ] ||\n'
                 '    until curl -sk -o /dev/null https://127.0.0.1:8444/; do sleep 0.1; done',
}


class Readme(unittest.TestCase):
    def test_lines_lead_to_a_client_that_is_handed_over(self):
        with open(README, encoding="utf-8") as file:
            recipes, _, _ = check.parse(file.read().splitlines())
        self.assertEqual([recipe.name for recipe in recipes], ["tls", "tls-works", "tls-web"])
        os.makedirs("/etc/modules-load.d", exist_ok=True)  # systemd's package has it
        directory = tempfile.TemporaryDirectory(prefix="handoff-tls-")
        self.addCleanup(directory.cleanup)
        for name, text in COMMANDS.items():
            path = os.path.join(directory.name, name)
            with open(path, "w", encoding="ascii") as file:
                file.write(f"#!/bin/sh -e\n{text}\n")
            os.chmod(path, 0o755)
        shell = subprocess.Popen(
            ["bash", "--norc"], cwd=peers.ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={"PATH": f"{directory.name}:{check.PATH}", "HANDOFF_INSTALLED": INSTALLED})
        self.addCleanup(self.end, shell)
        blocks = [block for recipe in recipes for block in recipe.blocks] + [None]
        compared = 0
        for block, following in zip(blocks, blocks[1:]):
            if block.kind != "sh":
                continue
            printed = self.run_block(shell, block)
            if following and following.kind != "sh":
                pattern = check.pattern(following.text, following.kind == "text about")
                self.assertIsNotNone(pattern.fullmatch(printed),
                                     f"{README}:{following.line} shows something else: {printed}")
                compared += 1
        self.assertEqual(compared, 3)

    def end(self, shell):
        shell.kill()
        shell.wait()
        shell.stdin.close()
        shell.stdout.close()

    def run_block(self, shell, block):
        """What its lines print. Each must succeed."""
        mark = "--- done ---"
        shell.stdin.write(f"{check.PROLOGUE}\n{block.text}\necho '{mark}'\n")
        shell.stdin.flush()
        printed = ""
        while not printed.endswith(f"{mark}\n"):
            line = shell.stdout.readline()
            self.assertTrue(line, f"{README}:{block.line}: the shell has ended: {printed}")
            printed += line
        return printed.removesuffix(f"{mark}\n")


if __name__ == "__main__":
    peers.main()
