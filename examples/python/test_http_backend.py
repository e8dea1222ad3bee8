#!/usr/bin/env python3
"""Tests of http_backend.py, as a process: this one is the broker, and the clients.

One test has examples/broker.c as its broker: HANDOFF_BROKER names the program.
"""

import concurrent.futures
import http.client
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from typing import NamedTuple

import handoff

HERE = os.path.dirname(os.path.abspath(__file__))
BROKER = os.environ.get("HANDOFF_BROKER", os.path.join(HERE, "../../build/examples/broker"))
PATIENCE = 60  # seconds, for anything that should happen at once: only a fault takes so long
CONNECTIONS = int(os.environ.get("CONNECTIONS", 500))

GET = b"GET /facts?a=b HTTP/1.1\r\nHost: x\r\n\r\n"


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Client:
    """The client's end of a connection that has been handed over."""

    def __init__(self, connection):
        self.socket = connection
        self.file = connection.makefile("rb")

    def send(self, data):
        self.socket.sendall(data)

    def status(self):
        """The status line, and the head after it."""
        version, status, _ = self.file.readline().split(b" ", 2)
        assert version == b"HTTP/1.1", version
        return int(status), http.client.parse_headers(self.file)

    def chunk(self):
        length = int(self.file.readline(), 16)
        data = self.file.read(length)
        assert self.file.readline() == b"\r\n"
        return data

    def answer(self, head=False):
        status, headers = self.status()
        if head:
            body = b""
        elif headers["Transfer-Encoding"] == "chunked":
            body = b"".join(iter(self.chunk, b""))
        elif headers["Content-Length"] is not None:
            body = self.file.read(int(headers["Content-Length"]))
        else:
            body = self.file.read()
        return Answer(status, headers, body)

    def rest(self):
        """What comes until the end of the stream. Raises if none comes."""
        return self.file.read()

    def close(self):
        self.file.close()
        self.socket.close()


class Program:
    """A process that says where it listens."""

    def __init__(self, test, *command):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        test.addCleanup(self.clean_up)
        line = self.process.stdout.readline()
        test.assertTrue(line.startswith("listening on "), self.errors())
        self.address = line.rpartition(" ")[2].strip()

    def clean_up(self):
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def errors(self):
        self.log.seek(0)
        return self.log.read()

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def counted(self, test):
        """What it counted, when it has ended by itself."""
        output, _ = self.process.communicate(timeout=PATIENCE)
        test.assertEqual(self.process.returncode, 0, self.errors())
        return {name: int(count) for name, count in re.findall(r"^(.+): (\d+)$", output, re.M)}

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


class Case(unittest.TestCase):
    interpreter = (sys.executable,)
    program = "http_backend.py"
    arguments = ()

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="handoff-python-")
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "handoff.sock")
        self.backend = Program(self, *self.interpreter, os.path.join(HERE, self.program),
                               self.path, *self.arguments)
        self.broker = handoff.Broker(self.path, timeout_ms=PATIENCE * 1000)
        self.addCleanup(self.broker.close)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)

    def tearDown(self):
        self.assertNotIn("Traceback", self.backend.errors())

    def connect(self):
        """A client's connection and the broker's end of it, non-blocking as an event loop's."""
        client = socket.create_connection(self.listener.getsockname(), PATIENCE)
        self.addCleanup(client.close)
        accepted, _ = self.listener.accept()
        self.addCleanup(accepted.close)
        accepted.setblocking(False)
        return Client(client), accepted

    def hand_over(self, request, preread_len=None, keep_copy=False, **what):
        """Sends the request, of which the broker reads `preread_len` bytes, or all."""
        client, accepted = self.connect()
        client.send(request)
        preread = b""
        while len(preread) < (len(request) if preread_len is None else preread_len):
            select.select([accepted], [], [], PATIENCE)
            preread += accepted.recv((preread_len or len(request)) - len(preread))
        verdict = self.broker.offer_and_wait(accepted, preread=preread, **what)
        self.assertTrue(verdict.adopted, handoff.reason_name(verdict.reason))
        if not keep_copy:
            accepted.close()
        return client

    def wait_until(self, true, what):
        end = time.monotonic() + PATIENCE
        while not true():
            self.assertLess(time.monotonic(), end, what)
            time.sleep(0.005)


class Requests(Case):
    def assertFacts(self, answer):
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["X-Served-By"], "handoff-python")
        self.assertTrue(answer.body.startswith(b"GET /facts?a=b\n"), answer.body)

    def test_get_that_the_broker_has_read_whole(self):
        client = self.hand_over(GET, metadata=b"from \xff", service=b"app", correlation=b"r-1")
        answer = client.answer()
        self.assertFacts(answer)
        self.assertEqual(answer.headers["X-Backend-Pid"], str(self.backend.process.pid))
        self.assertEqual(answer.body.decode().splitlines()[1:], [
            f"served by the backend {self.backend.process.pid}",
            "service: app", "correlation: r-1", "metadata: from%20%FF", "tls: none",
            "client: {} {}".format(*client.socket.getsockname())])
        self.assertIn("r-1 - - [", self.backend.errors())

    def test_greeting_has_the_address(self):
        client = self.hand_over(b"GET /hello?x=1 HTTP/1.1\r\n\r\n",
                                metadata=b'{"client":{"address":"2001:db8::1"}}')
        self.assertEqual(client.answer().body, b"hello 2001:db8::1\n")

    def test_client_is_whom_the_broker_names_and_not_whom_the_request_names(self):
        forged = b"GET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.9\r\nX-Real-IP: 192.0.2.9\r\n\r\n"
        for metadata, expected in (
                (b'{"client":{"address":"2001:db8::1","port":4000}}', "2001:db8::1 4000"),
                (b'{"client":{"address":"unix:"}}', "unix: 0"),
                (b'{"client":{"address":"192.0.2.1","port":"x"}}', None),
                (b'{"client":"192.0.2.1"}', None), (b'{"client":[]}', None), (b'[]', None),
                (b'7', None), (b'{"server":{}}', None), (b"\xff", None), (b"", None)):
            with self.subTest(metadata=metadata):
                client = self.hand_over(forged, metadata=metadata)
                line = client.answer().body.decode().splitlines()[-1]
                self.assertEqual(line, "client: " + (
                    expected or "{} {}".format(*client.socket.getsockname())))

    def test_head_cut_anywhere_between_preread_and_socket(self):
        for preread_len in range(len(GET)):
            with self.subTest(preread_len=preread_len):
                self.assertFacts(self.hand_over(GET, preread_len).answer())

    def test_head_that_comes_after_the_adoption(self):
        client = self.hand_over(GET[:20])
        client.send(GET[20:])
        self.assertFacts(client.answer())

    def test_several_requests_one_after_the_other(self):
        client = self.hand_over(GET)
        for _ in range(3):
            answer = client.answer()
            self.assertFacts(answer)
            self.assertEqual(answer.headers["Connection"], "keep-alive")
            client.send(GET)
        self.assertFacts(client.answer())

    def test_five_pipelined_in_the_preread(self):
        requests = b"".join(b"POST /%d HTTP/1.1\r\nContent-Length: 1\r\n\r\n%d" % (n, n)
                            for n in range(5))
        client = self.hand_over(requests)
        self.assertEqual([client.answer().body for _ in range(5)], [b"0", b"1", b"2", b"3", b"4"])

    def test_five_pipelined_and_cut_in_the_middle(self):
        client = self.hand_over(5 * GET, 2 * len(GET) + 7)
        for _ in range(5):
            self.assertFacts(client.answer())

    def test_body_cut_between_preread_and_socket(self):
        head = b"POST /p HTTP/1.1\r\nContent-Length: 10\r\n\r\n"
        for length in (0, 1, 9, 10):
            with self.subTest(length=length):
                client = self.hand_over(head + b"0123456789", len(head) + length)
                self.assertEqual(client.answer().body, b"0123456789")
                client.send(GET)
                self.assertFacts(client.answer())

    def test_chunked_body_cut_anywhere(self):
        request = (b"POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
                   b"3;why=not\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n")
        for preread_len in range(0, len(request) + 1, 3):
            with self.subTest(preread_len=preread_len):
                client = self.hand_over(request, preread_len)
                self.assertEqual(client.answer().body, b"abc0123456789")
                client.send(GET)
                self.assertFacts(client.answer())

    def test_upload_of_a_mebibyte(self):
        body = os.urandom(1 << 20)
        head = b"PUT /p HTTP/1.1\r\nContent-Length: 1048576\r\n\r\n"
        client = self.hand_over(head + body[:50000])
        client.send(body[50000:])
        self.assertEqual(client.answer().body, body)

    def test_head_request_has_no_body(self):
        client = self.hand_over(b"HEAD /h HTTP/1.1\r\n\r\n" + GET)
        self.assertGreater(int(client.answer(head=True).headers["Content-Length"]), 0)
        self.assertFacts(client.answer())

    def test_client_that_waits_for_100_continue_gets_it(self):
        client = self.hand_over(b"POST /p HTTP/1.1\r\nContent-Length: 4\r\n"
                                b"Expect: 100-continue\r\n\r\n")
        self.assertEqual(client.status()[0], 100)
        client.send(b"body")
        self.assertEqual(client.answer().body, b"body")

    def test_client_that_waits_for_100_continue_may_be_refused(self):
        client = self.hand_over(b"POST /p HTTP/1.1\r\nContent-Length: 99999999\r\n"
                                b"Expect: 100-continue\r\n\r\n")
        self.assertEqual(client.answer().status, 413)
        self.assertEqual(client.rest(), b"")

    def test_stream_comes_event_by_event(self):
        start = time.monotonic()
        client = self.hand_over(b"GET /events?n=3&ms=50 HTTP/1.1\r\n\r\n" + GET)
        status, headers = client.status()
        self.assertEqual((status, headers["Content-Type"]), (200, "text/event-stream"))
        for number in range(1, 4):
            self.assertEqual(client.chunk(), b"data: %d\n\n" % number)
        self.assertGreaterEqual(time.monotonic() - start, 2 * 0.05)
        self.assertEqual(client.chunk(), b"")
        self.assertFacts(client.answer())

    def test_http_1_0_stream_ends_with_the_connection(self):
        answer = self.hand_over(b"GET /events?n=2&ms=0 HTTP/1.0\r\n\r\n").answer()
        self.assertEqual(answer.body, b"data: 1\n\ndata: 2\n\n")

    def test_connection_ends_though_the_broker_keeps_its_copy(self):
        for request in (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"):
            client = self.hand_over(request, keep_copy=True)
            self.assertEqual(client.answer().headers["Connection"], "close")
            self.assertEqual(client.rest(), b"")

    def test_connection_that_is_not_tcp_is_served_too(self):
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE)
        with ours, theirs:
            verdict = self.broker.offer_and_wait(theirs, preread=GET)
            self.assertTrue(verdict.adopted)
            self.assertFacts(Client(ours).answer())

    def test_what_is_not_http_gets_400_and_the_end(self):
        post = b"POST / HTTP/1.1\r\n"
        chunked = post + b"Transfer-Encoding: chunked\r\n"
        for request in (
                b"garbage\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x0a",
                b"GET / HTTP/x.y\r\n\r\n",
                b"<script>\xff HTTP/1.1\r\n\r\n" + 100000 * b"x",
                post + b"Content-Length : 1\r\n\r\nx",
                post + b"Content-Length: -1\r\n\r\n",
                post + b"Content-Length: +1\r\n\r\nx",
                post + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
                chunked + b"Content-Length: 3\r\n\r\n0\r\n\r\n" + GET,
                chunked + b"\r\n-1\r\n\r\n",
                chunked + b"\r\n1_0\r\n\r\n",
                chunked + b"\r\n1\r\nab\r\n0\r\n\r\n" + GET,
        ):
            with self.subTest(request=request[:60]):
                client = self.hand_over(request, min(len(request), 60000), keep_copy=True)
                answer = client.answer()
                self.assertEqual((answer.status, answer.headers["Connection"]), (400, "close"))
                self.assertEqual(client.rest(), b"")

    def test_refusal_reaches_a_client_that_goes_on_sending(self):
        client = self.hand_over(b"POST /p HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n")
        client.send(bytes(1 << 20))
        self.assertEqual(client.answer().status, 413)
        self.assertEqual(client.rest(), b"")

    def test_client_that_says_it_has_no_more_is_answered_if_that_was_all(self):
        for length in (len(GET), len(GET) - 2, len(GET) - 9, 9):
            with self.subTest(length=length):
                client = self.hand_over(GET[:length])
                client.socket.shutdown(socket.SHUT_WR)
                if length == len(GET):
                    self.assertFacts(client.answer())
                self.assertEqual(client.rest(), b"")

    def test_client_that_leaves_harms_nobody(self):
        self.hand_over(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n123").close()
        self.hand_over(b"GET /events?n=9999&ms=1 HTTP/1.1\r\n\r\n").close()
        self.assertFacts(self.hand_over(GET).answer())

    def test_no_descriptor_is_left(self):
        self.hand_over(b"GET / HTTP/1.0\r\n\r\n").answer()
        before = self.backend.descriptors()
        for number in range(CONNECTIONS):
            client = self.hand_over(GET, len(GET) * (number % 2))
            self.assertFacts(client.answer())
            if number % 3 == 0:
                self.hand_over(b"garbage\r\n\r\n").close()
            client.close()
        self.wait_until(lambda: self.backend.descriptors() <= before,
                        f"{self.backend.descriptors()} descriptors, {before} before")


class Full(Case):
    arguments = ("2",)

    def test_connections_beyond_the_limit_stay_the_brokers(self):
        clients = [self.hand_over(GET) for _ in range(2)]
        _, accepted = self.connect()
        verdict = self.broker.offer_and_wait(accepted, preread=GET)
        self.assertEqual((verdict.adopted, verdict.reason),
                         (False, handoff.Reason.BACKEND_BUSY))
        for client in clients:
            client.answer()
            client.close()

        def adopted():
            client, accepted = self.connect()
            verdict = self.broker.offer_and_wait(accepted, preread=GET)
            return verdict.adopted and client.answer().status == 200
        self.wait_until(adopted, "no place becomes free")


class Stopping(Case):
    def wait_until_draining(self):
        self.wait_until(lambda: not os.path.exists(self.path), "it does not drain")

    def test_requests_that_have_begun_are_answered(self):
        half = self.hand_over(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbo")
        second = self.hand_over(GET + GET[:9])
        second.answer()
        stream = self.hand_over(b"GET /events?n=5&ms=100 HTTP/1.1\r\n\r\n")
        stream.status()
        self.assertEqual(stream.chunk(), b"data: 1\n\n")
        idle = self.hand_over(GET)
        idle.answer()
        self.backend.terminate()
        self.assertEqual(idle.rest(), b"")
        self.wait_until_draining()
        half.send(b"dy" + GET)
        for connection, body in (("keep-alive", b"body"), ("close", b"GET /facts")):
            answer = half.answer()
            self.assertEqual(answer.headers["Connection"], connection)
            self.assertTrue(answer.body.startswith(body))
        self.assertEqual(half.rest(), b"")
        second.send(GET[9:])
        answer = second.answer()
        self.assertEqual(answer.headers["Connection"], "close")
        self.assertTrue(answer.body.startswith(b"GET /facts?a=b\n"), answer.body)
        self.assertEqual([stream.chunk() for _ in range(5)],
                         [b"data: %d\n\n" % n for n in range(2, 6)] + [b""])
        self.assertEqual(stream.rest(), b"")
        for client in (half, second, stream, idle):
            client.close()
        self.assertEqual(self.backend.counted(self), {"adopted": 4})

    def test_client_that_has_gone_delays_nothing_though_nothing_is_written(self):
        client = self.hand_over(b"GET /events?n=2&ms=99999 HTTP/1.1\r\n\r\n")
        client.status()
        self.assertEqual(client.chunk(), b"data: 1\n\n")
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        self.backend.terminate()
        self.assertEqual(self.backend.counted(self), {"adopted": 1})

    def test_second_signal_ends_it_at_once(self):
        self.hand_over(b"GET /events?n=9&ms=60000 HTTP/1.1\r\n\r\n").status()
        self.backend.terminate()
        self.wait_until_draining()
        self.backend.terminate()
        self.assertEqual(self.backend.process.wait(PATIENCE), -signal.SIGTERM)

    def test_with_a_broker_in_c_no_request_is_lost(self):
        front = Program(self, BROKER, "0", self.path)
        host, port = front.address.split(":")

        def client(number):
            if number == CONNECTIONS // 2:
                self.backend.terminate()
            with socket.create_connection((host, int(port)), PATIENCE) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = b"".join(iter(lambda: connection.recv(4096), b""))
            return re.findall(rb"served by the (broker|backend)", answer)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(client, range(CONNECTIONS)))
        counted = self.backend.counted(self)
        self.assertEqual(answers.count([b"backend"]), counted["adopted"])
        self.assertEqual(answers.count([b"broker"]), CONNECTIONS - counted["adopted"])
        self.assertGreater(counted["adopted"], 0)
        self.assertLess(counted["adopted"], CONNECTIONS)


if __name__ == "__main__":
    unittest.main()
