"""What the tests of asyncio and ASGI stand on: a broker, and clients whose connections it offers."""

import contextlib
import os
import socket
import sys
import tempfile
import unittest

import handoff

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
sys.path.append(os.path.join(ROOT, "tools"))
from waiting import PATIENCE, wait_until  # noqa: E402


def read_all(client):
    return b"".join(iter(lambda: client.recv(65536), b""))


class Front:
    """Accepts clients, and offers them to whoever listens at `path`."""

    def __init__(self, path):
        self.broker = handoff.Broker(path, timeout_ms=PATIENCE * 1000)
        self.listener = socket.create_server(("127.0.0.1", 0))

    def close(self):
        self.broker.close()
        self.listener.close()

    def offer(self, preread=b"", keep_copy=None, **what):
        """A client and the verdict about it. A list `keep_copy` gets the broker's copy."""
        client = socket.create_connection(self.listener.getsockname(), PATIENCE)
        accepted, _ = self.listener.accept()

        def try_to():
            with contextlib.suppress(handoff.HandoffError):
                return self.broker.offer_and_wait(accepted, preread=preread, **what)
            return None
        verdict = wait_until(try_to, "there is a verdict")
        if keep_copy is None:
            accepted.close()
        else:
            keep_copy.append(accepted)
        return client, verdict

    def hand_over(self, preread=b"", **what):
        client, verdict = self.offer(preread, **what)
        if not verdict.adopted:
            raise AssertionError(handoff.reason_name(verdict.reason))
        return client


class Case(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="handoff-python-")
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.path = os.path.join(self.directory, "handoff.sock")
        self.front = Front(self.path)
        self.addCleanup(self.front.close)
