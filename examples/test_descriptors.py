"""Brokers among the examples have no descriptor for a client: it waits, and they go on when they have one.

BUILD, the directory with the programs, comes from the environment.
"""

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from waiting import PATIENCE

BUILD = Path(os.environ["BUILD"])
SHORTAGE = 0.5  # seconds
BROKERS = ["broker", "broker_cc", "blocking_broker", "threaded_broker", "raw_broker"]


class WithoutDescriptors(unittest.TestCase):
    """Each is told of the client again and again, and must not ask all the time."""

    def start(self, name):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        process = subprocess.Popen([BUILD / name, "0", f"{directory.name}/handoff.sock"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        host, port = process.stdout.readline().rpartition(" ")[2].strip().split(":")
        return process, (host, int(port))

    def shortage(self, process):
        """The limits before."""
        highest = max(int(name) for name in os.listdir(f"/proc/{process.pid}/fd"))
        _, hard = before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (highest + 1, hard))
        return before

    def go_through_a_shortage(self, name):
        process, address = self.start(name)
        before = self.shortage(process)
        with socket.create_connection(address, timeout=PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            used = processor_seconds(process)
            time.sleep(SHORTAGE)
            self.assertIsNone(process.poll(), "it has ended")
            self.assertLess(processor_seconds(process) - used, SHORTAGE / 2)
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
            answer = b"".join(iter(lambda: client.recv(4096), b""))
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE)
        self.assertIn("accept4: Too many open files", said)
        return answer

    def test_client_of_a_broker_is_served_when_there_is_a_descriptor(self):
        for name in BROKERS:
            with self.subTest(name):
                self.assertIn(b"served by the broker", self.go_through_a_shortage(name))

    def test_proxy_goes_on(self):
        # Its backend is not there.
        self.assertEqual(self.go_through_a_shortage("proxy"), b"")


def processor_seconds(process):
    """Of all its threads."""
    files = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


if __name__ == "__main__":
    unittest.main()
