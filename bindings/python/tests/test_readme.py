#!/usr/bin/env python3
"""Runs the programs of README.md as they stand there, but for their paths and ports."""

import os
import signal
import socket
import struct
import subprocess
import sys
import unittest

import handoff
from ends import PATIENCE, ROOT, Case, read_all, wait_until

README = os.path.join(ROOT, "bindings", "python", "README.md")
BACKEND, BROKER, SERVER, ARRIVALS, APPLICATION = range(1, 6)


def reset(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


class Readme(Case):
    def program(self, number, **changes):
        code = subprocess.run(
            [sys.executable, os.path.join(ROOT, "tools", "readme_code.py"), README, "python",
             str(number)], stdout=subprocess.PIPE, text=True, check=True).stdout
        for old, new in {"/run/app/handoff.sock": self.path, **changes}.items():
            code = code.replace(old, new)
        return code

    def start(self, *command, **more):
        process = subprocess.Popen([sys.executable, "-B", *command], **more)
        self.addCleanup(process.wait, PATIENCE)
        self.addCleanup(process.kill)
        return process

    def start_backend(self, number, **changes):
        return self.start("-c", self.program(number, **changes))

    def test_backend(self):
        process = self.start_backend(BACKEND)
        for _ in range(2):
            with self.front.hand_over(b"hello") as client:
                self.assertEqual(read_all(client), b"you said hello")
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(self.front.listener.getsockname())
            connection, _ = self.front.listener.accept()
            with connection:  # too small for the answer, so that the reset comes while it is sent
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                verdict = self.front.broker.offer_and_wait(connection, preread=bytes(60000))
            self.assertTrue(verdict.adopted)
            reset(client)
        self.assertIsNone(process.poll())

    def test_broker_with_and_without_a_backend(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        process = self.start("-c", self.program(BROKER, **{"8080": str(port)}))

        def ask():
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                client.shutdown(socket.SHUT_WR)
                return read_all(client)

        def is_up():
            try:
                return ask()
            except ConnectionRefusedError:
                return None
        self.assertEqual(wait_until(is_up, "the broker listens"), b"served by the broker\n")
        for _ in range(10):
            reset(socket.create_connection(("127.0.0.1", port), PATIENCE))
            self.assertEqual(ask(), b"served by the broker\n")
        self.assertIsNone(process.poll())
        self.start_backend(BACKEND)
        wait_until(lambda: ask() == b"you said ", "the backend serves")

    def test_asyncio_server_ends_in_order(self):
        process = self.start_backend(SERVER)
        client = self.front.hand_over(b"hel")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not os.path.exists(self.path), "it drains")
        with client:
            client.sendall(b"lo\n")
            self.assertEqual(read_all(client), b"you said hello\n")
        self.assertEqual(process.wait(PATIENCE), 0)

    def test_asyncio_server_ends_though_a_client_says_nothing(self):
        process = self.start_backend(SERVER, **{"call_later(10,": "call_later(0.1,"})
        with self.front.hand_over():
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(5), 0)

    def test_arrivals(self):
        self.start_backend(ARRIVALS)
        with self.front.hand_over(b"hel", metadata=b"m ") as client:
            client.sendall(b"lo\n")
            self.assertEqual(read_all(client), b"m hello\n")

    def test_application(self):
        with open(os.path.join(self.directory, "app.py"), "w", encoding="ascii") as file:
            file.write(self.program(APPLICATION))
        workers = os.path.join(self.directory, "workers")
        os.mkdir(workers)
        process = self.start("-m", "handoff.asgi", "app:app", workers + "/", "--workers", "2",
                             cwd=self.directory, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
        self.front.broker.close()
        self.front.broker = handoff.Broker(workers + "/", timeout_ms=PATIENCE * 1000)
        with self.front.hand_over(b"GET / HTTP/1.0\r\n\r\n") as client:
            self.assertIn(b'"hello 127.0.0.1, http"', read_all(client))
        process.terminate()
        self.assertEqual(process.wait(PATIENCE), 0)


if __name__ == "__main__":
    unittest.main()
