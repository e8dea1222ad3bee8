"""What the tests of handoff(1) stand on: a copy of it that every user can run, and a directory."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
sys.path.append(os.path.join(ROOT, "tools"))
from waiting import PATIENCE, wait_until  # noqa: E402, F401
COMMAND = os.environ["HANDOFF_COMMAND"]
LIBRARIES = os.environ["LD_LIBRARY_PATH"].split(":")[0]
UNDER = shlex.split(os.environ.get("COMMAND_UNDER", ""))  # such as valgrind and its options
STRANGER = 4001  # a user without a name, and without rights

needs_root = unittest.skipUnless(os.getuid() == 0, "only root can become another user")


def number(name, otherwise):
    """A count from the environment, by which a test can be made a soak."""
    return int(os.environ.get(f"COMMAND_{name}", otherwise))


def raise_descriptor_limit():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Running:
    """handoff(1), running. Its first line of output says where it listens."""

    def __init__(self, test, *arguments, **more):
        self.process = subprocess.Popen(
            [*UNDER, test.command, *map(str, arguments)], text=True, env=test.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
        test.addCleanup(self.kill)
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            raise AssertionError(f"it does not listen: {line}{self.process.stderr.read()}")
        self.address = line[len("listening on "):-1]

    @property
    def port(self):
        return int(self.address.rpartition(":")[2])

    def stop(self):
        """Ends it as a user would, and gives what it has printed and said. Exit code 0."""
        self.process.send_signal(signal.SIGTERM)
        output, errors = self.process.communicate(timeout=PATIENCE)
        if self.process.returncode != 0:
            raise AssertionError(f"it ended with {self.process.returncode}: {errors}")
        return output, errors

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


class Test(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise_descriptor_limit()
        cls.copies = tempfile.mkdtemp(prefix="handoff-command-")
        cls.addClassCleanup(shutil.rmtree, cls.copies)
        os.chmod(cls.copies, 0o755)
        cls.command = shutil.copy(COMMAND, cls.copies)
        shutil.copy(os.path.join(LIBRARIES, "libhandoff.so.0"), cls.copies)
        cls.environment = {**os.environ, "LD_LIBRARY_PATH": cls.copies}

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="handoff-command-")
        self.addCleanup(shutil.rmtree, self.directory)
        os.chmod(self.directory, 0o755)
        self.path = os.path.join(self.directory, "a.sock")

    def run_command(self, *arguments, user=None, limit=None):
        """Runs it to its end. `limit`: a resource, and how much of it there is."""
        more = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        if limit is not None:
            more["preexec_fn"] = lambda: resource.setrlimit(limit[0], (limit[1], limit[1]))
        return subprocess.run([*UNDER, self.command, *map(str, arguments)], text=True, check=False,
                              errors="surrogateescape", env=self.environment, timeout=PATIENCE,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, **more)

    def check(self, path=None, *options, **how):
        """What `handoff check` says of a socket, as JSON; the exit code is in it."""
        path = self.path if path is None else path
        result = self.run_command("check", "--json", *options, path, **how)
        try:
            found = json.loads(result.stdout)
        except ValueError:
            self.fail(f"no JSON: {result.stdout}{result.stderr}")
        self.assertEqual((result.returncode, result.stderr), (found["code"], ""))
        return found

    def exec(self, *command, path=None, options=(), **more):
        return Running(self, "exec", *options, path or self.path, "--", *command, **more)

    def broker(self, *sockets, options=(), address="127.0.0.1:0", **more):
        return Running(self, "broker", *options, address, *(sockets or [self.path]), **more)

    @staticmethod
    def descriptors(pid):
        return len(os.listdir(f"/proc/{pid}/fd"))


def counts(summary):
    """The numbers in the summary of `handoff broker`."""
    return {name: int(count) for name, count in re.findall(r"^(.*?): (\d+)", summary, re.M)}
