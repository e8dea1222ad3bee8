"""Many connections at once, of every kind that a server has, each handed over or served by nginx."""

import random
import struct
import unittest
import zlib

import test_http
from client import Connection, digest, run
from harness import NO_LIMIT, wait_until
from tls import (CONTEXTS, FULL, NAMES, PATTERN, SECRET, VERSIONS, TlsCase, ask, in_threads,
                 new_identity)

CONNECTIONS = 2000 if FULL else 56
KINDS = 200 if FULL else 20  # of requests that are sent in unusual ways
LARGE = (100 if FULL else 4) << 20

BODY = random.Random(1).randbytes(1 << 20)


def pattern(size, start=0):
    start %= len(PATTERN)
    return (PATTERN * ((start + size) // len(PATTERN) + 1))[start:start + size]


class Many(TlsCase):
    way = "handoff"
    options = ()
    server = ""

    def setUp(self):
        super().setUp()
        # Until all are there some wait longer than nginx does by default.
        patience = "client_header_timeout 1h; keepalive_timeout 1h; "
        self.start(*self.options, server=patience + self.server)
        self.identities = []

    def new(self):
        self.identities.append(new_identity())
        return self.identities[-1]

    def check(self, answer, identity, body=b""):
        self.assertEqual((answer.status, answer.headers.get("x-id")), (200, identity))
        self.assertEqual(answer.headers["x-served-by"], self.way)
        self.assertEqual(answer.headers["x-body"], digest(body))

    # ---- kinds of connections; each tells whether it ends by itself ----

    def kept_alive(self, client, _):
        for _ in range(4):
            identity = self.new()
            self.check(client.ask(ask(identity)), identity)

    def posted(self, client, random_):
        for size in random_.randrange(1, 16000), random_.randrange(16000, 200000):
            identity, body = self.new(), BODY[:size]
            self.check(client.ask(ask(identity, method="POST", body=body)), identity, body)

    def pipelined(self, client, _):
        identities = [self.new() for _ in range(5)]
        client.send(b"".join(map(ask, identities)))
        for identity in identities:
            self.check(client.read_answer(), identity)

    def after_nginx(self, client, _):
        for i in range(3):
            answer = client.ask(b"GET /nginx?id=%d HTTP/1.1\r\nHost: a.test\r\n\r\n" % i)
            self.assertEqual(answer.body, b"nginx %d" % i)

    def downloaded(self, client, random_):
        identity, size = self.new(), random_.randrange(1, 300000)
        answer = client.ask(ask(identity, "bytes", argument=f"/{size}"))
        self.check(answer, identity)
        self.assertEqual(answer.body, pattern(size))

    def events(self, client, random_):
        """Server-sent events, until the server ends."""
        identity, count = self.new(), random_.randrange(1, 40)
        client.send(ask(identity, "events", argument=f"/{count}"))
        head = client.read_head()
        self.assertEqual(head.headers["content-type"], "text/event-stream")
        self.assertEqual(head.headers["x-served-by"], self.way)
        expected = "".join(f"data: {identity} {i}\n\n" for i in range(count, 0, -1)).encode()
        if head.headers.get("transfer-encoding") == "chunked":  # by nginx, which knows when it ends
            self.assertEqual(client.read_chunks(), expected)
            return False
        self.assertEqual(client.read(len(expected)), expected)
        self.assertEqual(client.read_end(), "close_notify")
        return True

    def websocket(self, client, random_):
        """wss: frames that come back, then the client's end."""
        identity = self.new()
        client.send(ask(identity, "upgrade", headers=[
            "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]))
        head = client.read_head()
        self.assertEqual((head.status, head.headers["x-served-by"]), (101, self.way))
        for _ in range(5):
            text = SECRET.encode() + BODY[:random_.randrange(30000)]
            frame = b"\x82\xfe" + struct.pack("!H", len(text)) + bytes(4) + text
            client.send(frame)
            self.assertEqual(client.read(len(frame)), frame)
        client.push(client.close_notify())
        end = client.read_end()
        if end != "cut" or self.way == "handoff":  # nginx 1.26 with KTLS answers with none
            self.assertEqual(end, "close_notify")
        return True

    KINDS = (kept_alive, posted, pipelined, after_nginx, downloaded, events, websocket)

    def test_connections_of_every_kind(self):
        before = self.nginx.descriptors()
        versions = list(VERSIONS)
        clients = in_threads(CONNECTIONS, 8, lambda i: self.client(versions[i // 7 % 2]))
        self.assertEqual(self.active(), CONNECTIONS + 1)

        def one(index):
            client, kind = clients[index], self.KINDS[index % len(self.KINDS)]
            if not kind(self, client, random.Random(index)):
                # It is still in order.
                last = self.new()
                self.check(client.ask(ask(last, close=True)), last)
                self.assertEqual(client.read_end(), "close_notify")
            client.close()

        in_threads(CONNECTIONS, 16, one)
        self.assertEqual(set(self.assert_once(self.identities)), {self.way})
        wait_until(lambda: self.active() == 1, "nginx counts no client but this one")
        wait_until(lambda: self.nginx.descriptors() == before, "as few descriptors as before")

    def test_large_answer(self):
        for version in VERSIONS:
            with self.subTest(version), self.client(version) as client:
                identity = self.new()
                client.send(ask(identity, "bytes", argument=f"/{LARGE}"))
                self.check(client.read_head(), identity)
                crc, left = 0, LARGE
                while left:
                    part = client.more(min(left, 1 << 18))
                    crc, left = zlib.crc32(part, crc), left - len(part)
                self.assertEqual(crc, zlib.crc32(pattern(LARGE)))

    def open(self):
        version = random.choice(list(VERSIONS))
        return Connection.open(self.port, ssl=CONTEXTS[version], server_hostname=NAMES[0])

    def test_requests_sent_in_unusual_ways(self):
        """In chunks, in dribbles, when nginx has said that it goes on, and so on."""
        mixed = test_http.Mixed(self)
        run(KINDS, 8, mixed.one)
        self.assertEqual(set(self.assert_once(mixed.identities)), {self.way})


class ManyRefused(Many):
    way = "unix"
    options = ("-r", 1)
    server = NO_LIMIT

    def setUp(self):
        super().setUp()
        self.expect_fallbacks()


if __name__ == "__main__":
    unittest.main()
