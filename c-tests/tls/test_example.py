#!/usr/bin/env python3
"""examples/tls_broker and examples/tls_backend: a web client whose TLS the kernel does from the
handshake on."""

import contextlib
import os
import re
import socket
import ssl
import subprocess

import peers
from peers import PATIENCE, VERSIONS, read_all
from waiting import wait_until

EXAMPLES = os.path.join(os.environ["BUILD"], "examples")
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
BY_BACKEND = re.compile(rb"HTTP/1.1 200 OK\r\n(?s:.*)\r\n\r\nserved by the backend \d+: (TLSv\S+), \S+\n")


class Example(peers.Test):
    def setUp(self):
        super().setUp()
        self.broker = self.start("tls_broker", "0", self.path, self.certificate)
        self.port = int(self.broker.stdout.readline().rpartition(":")[2])

    def start(self, name, *arguments):
        process = subprocess.Popen([os.path.join(EXAMPLES, name), *arguments], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(self.end, process)
        return process

    def end(self, process):
        process.kill()
        process.communicate()

    def start_backend(self):
        backend = self.start("tls_backend", self.path)
        self.assertRegex(backend.stdout.readline(), "^listening on ")
        return backend

    def ask(self, version, *parts):
        """Sends a request in so many records, and gives the answer."""
        plain = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        with self.trust(version).wrap_socket(plain, server_hostname="localhost",
                                             suppress_ragged_eofs=False) as client:
            for part in parts:
                client.sendall(part)
            return read_all(client)

    def test_backend_serves_what_the_kernel_does(self):
        self.start_backend()
        for version in VERSIONS:
            def is_served():
                return BY_BACKEND.fullmatch(self.ask(version, REQUEST))
            # At first the broker may have no channel.
            served = wait_until(is_served, f"the backend serves {version.name}")
            self.assertEqual(served[1].decode(), version.name.replace("_", "."))

    def test_backend_gets_the_rest_of_a_request(self):
        self.start_backend()
        def is_served():
            return BY_BACKEND.fullmatch(self.ask(
                VERSIONS[-1], REQUEST[:20], REQUEST[20:-2], REQUEST[-2:]))
        for _ in range(20):
            wait_until(is_served, "the backend serves")

    def test_broker_serves_the_others(self):
        by_broker = b"HTTP/1.0 200 OK\r\nContent-Length: 21\r\n\r\nserved by the broker\n"
        self.assertEqual(self.ask(VERSIONS[0], REQUEST), by_broker)
        self.assertIn("a client is served here: ", self.broker.stderr.readline())
        self.start_backend()
        wait_until(lambda: BY_BACKEND.fullmatch(self.ask(VERSIONS[0], REQUEST)), "the backend serves")
        if ssl.TLSVersion.TLSv1_3 not in VERSIONS:
            self.assertEqual(self.ask(ssl.TLSVersion.TLSv1_3, REQUEST), by_broker)
            self.assertIn("TLS", self.broker.stderr.readline())

    def test_client_that_fails_its_handshake_leaves_the_broker_as_it_was(self):
        self.start_backend()
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            # An alert, and the rest is unread: the connection is reset, at any time.
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)
                while client.recv(100):
                    pass
        wait_until(lambda: BY_BACKEND.fullmatch(self.ask(VERSIONS[0], REQUEST)), "the backend serves")

    def test_broker_ends_when_it_is_told_to(self):
        self.broker.terminate()
        self.assertEqual(self.broker.wait(PATIENCE), 0)


if __name__ == "__main__":
    peers.main()
