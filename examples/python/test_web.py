#!/usr/bin/env python3
"""Tests of events_backend.py and websocket_backend.py, without TLS; c-tests/tls has those with it."""

import http.client
import json
import os
import signal
import socket
import struct
import unittest

import handoff
import test_http_backend
from web_clients import FORGED, WebSocket, events_request, read_event, read_head

HERE = os.path.dirname(os.path.abspath(__file__))
METADATA = json.dumps({
    "module": "http", "client": {"address": "2001:db8::7", "port": 4000},
    "server": {"address": "192.0.2.1", "port": 443}, "scheme": "https",
    "tls": {"version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384"}}).encode()
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Case(test_http_backend.Case):
    def offer(self, request, metadata=METADATA):
        client, accepted = self.connect()
        verdict = self.broker.offer_and_wait(accepted, preread=request, metadata=metadata)
        accepted.close()
        return client.socket, verdict

    def assertEnds(self, file):
        self.assertEqual(file.read(), b"")


class Events(Case):
    program = "events_backend.py"

    def setUp(self):
        super().setUp()
        self.clients = []

    def open(self, last=None):
        connection, verdict = self.offer(events_request(last))
        self.assertTrue(verdict.adopted)
        self.clients.append(connection)
        file = connection.makefile("rb")
        self.addCleanup(file.close)
        self.assertEqual(read_head(file)[:2],
                         ["HTTP/1.1 200 OK", "Content-Type: text/event-stream"])
        return file

    def test_events_come_in_order_and_the_client_is_whom_the_metadata_names(self):
        file = self.open()
        for number in range(1, 4):
            event, data = read_event(file)
            self.assertEqual(event, number)
            self.assertEqual((data["client"], data["tls"]), ("2001:db8::7", "TLSv1.3"))

    def test_stream_goes_on_after_the_last_event_that_the_client_has(self):
        self.assertEqual(read_event(self.open("41"))[0], 42)
        for nonsense in ("", "-1", "x", "9" * 30, "\u0661"):
            self.assertEqual(read_event(self.open(nonsense))[0], 1)

    def test_without_a_client_in_the_metadata_the_connection_stays_the_brokers(self):
        for metadata in (b"", b"{}", b"\xff", b"7", b'{"client":"192.0.2.1"}'):
            _, verdict = self.offer(events_request(), metadata)
            self.assertEqual((verdict.adopted, verdict.reason),
                             (False, handoff.Reason.REJECTED))

    def test_other_methods_are_refused(self):
        connection, _ = self.offer(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        self.assertEqual(answer.status, 405)

    def test_stream_ends_with_its_client(self):
        read_event(self.open())  # from now on there is a channel
        before = self.backend.descriptors()
        for reset in False, True:
            file = self.open()
            read_event(file)
            if reset:
                self.clients[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                            struct.pack("ii", 1, 0))
            file.close()
            self.clients[-1].close()
        self.wait_until(lambda: self.backend.descriptors() == before, "a stream goes on")

    def test_client_that_sends_no_more_gets_its_events_and_costs_no_time(self):
        file = self.open()
        self.clients[-1].shutdown(socket.SHUT_WR)
        read_event(file)
        before = self.processor_time()
        for number in 2, 3, 4:
            self.assertEqual(read_event(file)[0], number)
        self.assertLess(self.processor_time() - before, 0.3)

    def processor_time(self):
        """Seconds, so far."""
        with open(f"/proc/{self.backend.process.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def test_streams_end_when_the_program_stops(self):
        files = [self.open() for _ in range(5)]
        for file in files:
            read_event(file)
        self.backend.terminate()
        for file in files:
            file.read()
        self.assertEqual(self.backend.process.wait(test_http_backend.PATIENCE), 0)


class Sockets(Case):
    program = "websocket_backend.py"

    def open(self, headers="Origin: https://localhost\r\n"):
        ours, theirs = socket.socketpair()
        with ours, theirs:  # what it sends is what nginx has read
            there = WebSocket(ours, headers)
            there.file.close()
            request = theirs.recv(65536)
        connection, verdict = self.offer(request)
        self.assertTrue(verdict.adopted)
        there.connection, there.file = connection, connection.makefile("rb")
        self.addCleanup(there.file.close)
        return there, read_head(there.file)[0]

    def open_and_greet(self):
        there, status = self.open()
        self.assertEqual(status, "HTTP/1.1 101 Switching Protocols")
        self.assertEqual(there.receive(), (TEXT, b"hello 2001:db8::7, TLSv1.3"))
        return there

    def test_messages_come_back(self):
        there = self.open_and_greet()
        for kind, data in ((TEXT, b""), (TEXT, b"x"), (BINARY, bytes(range(256))),
                           (TEXT, b"y" * 65535), (BINARY, bytes(65536))):
            there.send(0x80 | kind, data)
            self.assertEqual(there.receive_but_ticks(), (kind, data))
        there.send(TEXT, b"in ")
        there.send(0x80 | PING, b"between")
        there.send(0, b"three ")
        there.send(0x80, b"parts")
        self.assertEqual(there.receive_but_ticks(), (PONG, b"between"))
        self.assertEqual(there.receive_but_ticks(), (TEXT, b"in three parts"))
        there.send(0x80 | CLOSE, (1000).to_bytes(2, "big"))
        self.assertEqual(there.receive_but_ticks(), (CLOSE, b"\x03\xe8"))
        self.assertEnds(there.file)

    def test_time_comes_by_itself(self):
        there = self.open_and_greet()
        for _ in range(2):
            kind, data = there.receive()
            self.assertEqual(kind, TEXT)
            self.assertRegex(data, b"^..:..:..$")
            self.assertEqual(there.receive(), (PING, b""))
            there.send(0x80 | PONG, b"")

    def test_what_is_not_allowed_ends_it_with_a_code(self):
        for code, first, data, masked in (
                (1002, 0x80 | TEXT, b"x", False), (1002, 0x80, b"x", True),
                (1002, 0x80 | 3, b"x", True), (1002, 0xf0 | TEXT, b"x", True),
                (1002, 0x80 | PING, bytes(126), True), (1009, 0x80 | TEXT, bytes(65537), True)):
            there = self.open_and_greet()
            there.send(first, data, masked)
            self.assertEqual(there.receive_but_ticks(), (CLOSE, code.to_bytes(2, "big")))
            self.assertEnds(there.file)

    def test_pages_of_other_sites_are_refused(self):
        self.assertEqual(self.open("Origin: https://other.example\r\n")[1],
                         "HTTP/1.1 403 Forbidden")
        self.assertEqual(self.open("")[1], "HTTP/1.1 101 Switching Protocols")  # no browser

    def test_what_is_no_websocket_is_refused(self):
        for request in (b"GET / HTTP/1.1\r\n" + FORGED.encode() + b"\r\n", b"GET / HTTP/1.1\r\n",
                        b"POST / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"):
            connection, _ = self.offer(request)
            with connection.makefile("rb") as file:
                self.assertEqual(read_head(file)[0], "HTTP/1.1 426 Upgrade Required")

    def test_clients_are_told_when_the_program_stops(self):
        there = self.open_and_greet()
        self.backend.process.send_signal(signal.SIGINT)
        self.assertEqual(there.receive_but_ticks(), (CLOSE, (1001).to_bytes(2, "big")))
        there.send(0x80 | CLOSE, b"")
        self.assertEnds(there.file)
        self.assertEqual(self.backend.process.wait(test_http_backend.PATIENCE), 0)

    def test_client_that_leaves_harms_nobody(self):
        there = self.open_and_greet()
        there.send(TEXT, b"half a message")
        there.file.close()
        there.connection.close()
        self.open_and_greet()


if __name__ == "__main__":
    unittest.main()
