#!/usr/bin/env python3
"""The backend in Python serves clients whose TLS the kernel does."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import peers
from peers import PATIENCE, VERSIONS, read_all

import handoff

BIG = bytes(range(256)) * 4096  # 64 records
HTTP_BACKEND = os.path.join(peers.ROOT, "examples", "python", "http_backend.py")


class Sending(threading.Thread):
    """Sends BIG, as long as the block runs."""

    def __init__(self, connection):
        super().__init__(target=connection.sendall, args=(BIG,))

    def __enter__(self):
        self.start()

    def __exit__(self, *_):
        self.join()


def receive_all(receive):
    got = bytearray()
    while len(got) < len(BIG):
        got += receive()
    return got


class Sockets(peers.Test):
    """A TlsSocket does what a socket does."""

    def setUp(self):
        super().setUp()
        self.backend = handoff.Backend.listen(self.path)
        self.addCleanup(self.backend.close)

    def arrive(self, version, preread=b""):
        """A client, and the socket that the backend has of it."""
        clients = []
        thread = threading.Thread(target=lambda: clients.append(self.hand_over(version, preread)))
        thread.start()
        arrival = self.backend.accept(PATIENCE)
        thread.join()
        self.assertTrue(arrival.tls)
        self.assertEqual(arrival.preread, preread)
        self.addCleanup(arrival.connection.close)
        arrival.connection.settimeout(PATIENCE)
        return clients[0], arrival.connection

    def test_data_goes_both_ways_and_the_ends_are_close_notify(self):
        for version in VERSIONS:
            with self.subTest(version=version):
                client, connection = self.arrive(version, b"first ")
                self.assertRegex(connection.session().version, r"^TLSv1\.[23]$")
                self.assertEqual(connection.session().version, client.version())
                client.sendall(b"second")
                self.assertEqual(connection.recv(100), b"second")
                connection.sendall(b"answer")
                connection.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(client), b"answer")
                client.unwrap()
                for _ in range(3):
                    self.assertEqual(connection.recv(100), b"")
                connection.close()

    def test_much_data_by_each_of_the_calls(self):
        client, connection = self.arrive(VERSIONS[-1])
        room = bytearray(5000)
        for receive in (
                lambda: connection.recv(100000),
                lambda: bytes(room[:connection.recv_into(room)]),
                lambda: bytes(room[:connection.recv_into(memoryview(room)[:999], 500)])):
            with Sending(client):
                self.assertEqual(receive_all(receive), BIG)
        for wrong in -1, -5:
            with self.assertRaises(ValueError):
                connection.recv_into(room, wrong)
        with Sending(client), connection.makefile("rb") as file:
            self.assertEqual(file.read(len(BIG)), BIG)
        with Sending(connection):
            self.assertEqual(receive_all(lambda: client.recv(65536)), BIG)

    def test_end_without_close_notify_is_an_error_that_stays(self):
        for version in VERSIONS:
            with self.subTest(version=version):
                client, connection = self.arrive(version)
                client.sendall(b"all?")
                socket.socket.shutdown(client, socket.SHUT_WR)
                self.assertEqual(connection.recv(100), b"all?")
                for _ in range(2):
                    with self.assertRaises(handoff.TlsError) as caught:
                        connection.recv(100)
                    self.assertEqual(handoff.status_name(caught.exception.status),
                                     "HANDOFF_ERR_END_OF_STREAM")
                    self.assertIsInstance(caught.exception, ConnectionError)

    def test_what_is_no_record_is_an_error(self):
        client, connection = self.arrive(VERSIONS[-1])
        os.write(client.fileno(), b"GET / HTTP/1.1\r\n\r\n" * 10)
        with self.assertRaises(handoff.TlsError) as caught:
            connection.recv(100)
        self.assertEqual(handoff.status_name(caught.exception.status), "HANDOFF_ERR_TLS_RECORD")

    def test_timeouts_are_those_of_any_socket(self):
        client, connection = self.arrive(VERSIONS[-1])
        connection.settimeout(0.05)
        with self.assertRaises(socket.timeout):
            connection.recv(1)
        # Half a record makes the socket readable on some kernels; nobody may spin on it.
        os.write(client.fileno(), b"\x17\x03\x03\x01\x00half")
        connection.settimeout(0.5)
        before = time.process_time()
        with self.assertRaises(socket.timeout):
            connection.recv(1)
        self.assertLess(time.process_time() - before, 0.25)
        connection.setblocking(False)
        with self.assertRaises(BlockingIOError):
            connection.recv(1)

    def test_signal_handlers_run_while_it_waits(self):
        class Alarm(Exception):
            pass

        def ring(*_):
            raise Alarm
        client, connection = self.arrive(VERSIONS[-1])
        os.write(client.fileno(), b"\x17\x03\x03\x01\x00half")
        connection.settimeout(None)
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with self.assertRaises(Alarm):
            connection.recv(1)

    def test_asyncio_reads_and_writes_it(self):
        async def serve(connection):
            reader, writer = await asyncio.open_connection(sock=connection)
            writer.write(await reader.readexactly(6) * 2)
            writer.write_eof()
            self.assertEqual(await reader.read(), b"")
            writer.close()
        client, connection = self.arrive(VERSIONS[-1])
        thread = threading.Thread(target=lambda: asyncio.run(serve(connection)))
        thread.start()
        client.sendall(b"twice ")
        self.assertEqual(read_all(client), b"twice twice ")
        client.unwrap()
        thread.join()


class Http(peers.Test):
    """http_backend.py, as it is."""

    stopped = False

    def setUp(self):
        super().setUp()
        self.log = open(os.path.join(self.directory, "log"), "w+", encoding="utf-8")
        self.addCleanup(self.log.close)
        self.process = subprocess.Popen([sys.executable, "-B", HTTP_BACKEND, self.path],
                                        stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.addCleanup(self.end)
        self.assertRegex(self.process.stdout.readline(), "^listening on ")

    def stop(self):
        if not self.stopped:  # a second signal would end it at once
            self.process.terminate()
        self.stopped = True

    def end(self):
        self.stop()
        self.process.communicate(timeout=PATIENCE)
        self.assertEqual(self.process.returncode, 0)
        self.log.seek(0)
        self.assertNotIn("Traceback", self.log.read())

    def first_answer(self, client):
        """The answer to a GET, whose last line says who the client is."""
        answer = b""
        while not re.search(rb"\nclient: .*\n", answer):
            more = client.recv(65536)
            self.assertTrue(more, answer)
            answer += more
        self.assertRegex(answer, b"^HTTP/1.1 200 ")
        return answer

    def test_requests_one_after_the_other_then_close_notify(self):
        for version in VERSIONS:
            with self.subTest(version=version):
                request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
                client = self.hand_over(version, request)
                self.assertIn(f"\ntls: {client.version()} ".encode(), self.first_answer(client))
                body = os.urandom(100000)
                client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n"
                               b"Connection: close\r\n\r\n" + body)
                answer = read_all(client)
                self.assertTrue(answer.startswith(b"HTTP/1.1 200 "))
                self.assertTrue(answer.endswith(body))

    def test_client_that_leaves_without_close_notify_harms_nobody(self):
        self.hand_over(VERSIONS[-1], b"GET / HTTP/1.1\r\n\r\n").close()
        self.hand_over(VERSIONS[-1], b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n123").close()
        client = self.hand_over(VERSIONS[-1], b"GET / HTTP/1.0\r\n\r\n")
        self.assertRegex(read_all(client), b"^HTTP/1.1 200 ")

    def test_idle_client_gets_close_notify_when_the_backend_stops(self):
        client = self.hand_over(VERSIONS[-1], b"GET / HTTP/1.1\r\n\r\n")
        self.first_answer(client)
        self.stop()
        self.assertEqual(read_all(client), b"")


if __name__ == "__main__":
    peers.main()
