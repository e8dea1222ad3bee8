#!/usr/bin/env python3
"""What every binding must do with clients whose TLS the kernel does, behind a real nginx: see
test_binding.py. It runs in the machine of tools/vm."""

import http.client
import os
import shlex
import subprocess

import behind_nginx
import peers
from behind_nginx import VERSIONS
from peers import PATIENCE, read_all

BACKEND = shlex.split(os.environ["BINDING_BACKEND"])
SERVED_BY = b"\r\nx-served-by: handoff-" + os.environ["BINDING_LANGUAGE"].encode()
BODY = bytes(range(256)) * 1200  # many records
HELLO = b"GET /hello HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.66\r\n"
CLOSE = b"Connection: close\r\n\r\n"


class Tls(behind_nginx.Test):
    locations = "location / {{ handoff_pass unix:{directory}/handoff.sock; }}"

    def setUp(self):
        super().setUp()
        self.backend = self.start_listening(*BACKEND, self.path)
        self.start_nginx()

    def receive_until(self, client, end):
        received = b""
        while not received.endswith(end):
            more = client.recv(65536)
            self.assertTrue(more, received[-100:])
            received += more
        return received

    def ask_hello(self, client):
        client.sendall(HELLO + b"\r\n")
        self.assertIn(SERVED_BY, self.receive_until(client, b"hello 127.0.0.1\n").lower())

    def assert_served(self):
        """Others are."""
        client = self.connect_to_nginx(VERSIONS[-1])
        client.sendall(HELLO + CLOSE)
        self.assertTrue(read_all(client).endswith(b"hello 127.0.0.1\n"))
        self.assertIsNone(self.backend.poll())

    def test_requests_and_then_close_notify(self):
        for version in VERSIONS:
            client = self.connect_to_nginx(version)
            self.ask_hello(client)
            self.ask_hello(client)
            client.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(BODY)
                           + CLOSE + BODY)
            answer = http.client.HTTPResponse(client)
            answer.begin()
            self.assertTrue(answer.read() == BODY)
            self.assertEqual(read_all(client), b"")  # without close_notify it raises
        self.assertLogged("/hello TLSv1.2 both adopted", "/hello TLSv1.3 both adopted")

    def test_events_and_then_close_notify(self):
        for version in VERSIONS:
            client = self.connect_to_nginx(version)
            client.sendall(b"GET /events?n=4&ms=30 HTTP/1.1\r\nHost: x\r\n" + CLOSE)
            answer = read_all(client)
            self.assertIn(SERVED_BY, answer.lower())
            self.assertEqual([b"data: %d\n\n" % number in answer for number in range(6)],
                             [False, True, True, True, True, False])

    def test_close_notify_is_the_end_and_is_answered(self):
        for version in VERSIONS:
            client = self.connect_to_nginx(version)
            self.ask_hello(client)
            client.unwrap()  # sends it and waits for the other one

    def test_idle_client_gets_close_notify_when_the_backend_drains(self):
        client = self.connect_to_nginx(VERSIONS[-1])
        self.ask_hello(client)
        self.backend.terminate()
        self.assertEqual(read_all(client), b"")
        self.assertEqual(self.backend.wait(PATIENCE), 0)

    def test_client_that_leaves_without_close_notify_harms_nobody(self):
        for request in (HELLO + b"\r\n", HELLO, b"GET /events?n=9999&ms=1 HTTP/1.1\r\nHost: x\r\n\r\n",
                        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123"):
            client = self.connect_to_nginx(VERSIONS[-1])
            self.ask_hello(client)
            client.sendall(request)
            client.close()
        self.assert_served()

    def test_new_key_of_a_client_ends_its_connection_and_no_other(self):
        # A line that begins with "K" makes it change its key.
        with subprocess.Popen(["openssl", "s_client", "-tls1_3", "-connect", f"127.0.0.1:{self.port}"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as client:
            self.addCleanup(client.kill)
            client.stdin.write(HELLO + b"\r\n")
            client.stdin.flush()
            for line in client.stdout:
                if line == b"hello 127.0.0.1\n":
                    break
            client.stdin.write(b"K\n")
            client.stdin.flush()
            said = client.stdout.read()  # to its end, although its input has none
            self.assertIn(b"KEYUPDATE", said)
            client.wait(PATIENCE)
        self.assert_served()


if __name__ == "__main__":
    peers.main()
