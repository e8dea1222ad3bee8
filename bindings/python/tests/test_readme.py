#!/usr/bin/env python3
"""Runs the programs of README.md as they stand there, but for their paths and ports."""

import os
import signal
import socket
import subprocess
import sys
import unittest

import handoff
from ends import PATIENCE, ROOT, Case, read_all, wait_until

README = os.path.join(ROOT, "bindings", "python", "README.md")
BACKEND, BROKER, SERVER, ARRIVALS, APPLICATION = range(1, 6)


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

    def start_backend(self, number):
        return self.start("-c", self.program(number))

    def test_backend(self):
        self.start_backend(BACKEND)
        with self.front.hand_over(b"hello") as client:
            self.assertEqual(read_all(client), b"you said hello")

    def test_broker_with_and_without_a_backend(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.start("-c", self.program(BROKER, **{"8080": str(port)}))

        def ask():
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                return read_all(client)

        def is_up():
            try:
                return ask()
            except ConnectionRefusedError:
                return None
        self.assertEqual(wait_until(is_up, "the broker listens"), b"served by the broker\n")
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
