"""Ordinary requests over HTTP/1.1, handed over and proxied instead."""

import asyncio
import itertools
import random
import unittest
import zlib

from client import Connection, chunked, digest, new_identity, request, run
from harness import HANDED_OVER, NO_LIMIT, Case, number, wait_until

REQUESTS = number("REQUESTS", 10000)
MIXED = number("MIXED", 3000)
UPLOADS = number("UPLOADS", 100)

BODY = random.Random(1).randbytes(1 << 20)


class Mixed:
    """Connections of every kind. Each asks some requests and checks its answers."""

    def __init__(self, test):
        self.test = test
        self.identities = []
        self.kinds = [self.kept_alive, self.pipelined, self.split_body, self.dribbled_head,
                      self.large_headers, self.after_nginx, self.pipelined_after_nginx,
                      self.chunked_body, self.expecting_continue, self.body_with_the_next]

    def new(self):
        self.identities.append(new_identity())
        return self.identities[-1]

    def check(self, answer, identity, body=b""):
        self.test.assertEqual((answer.status, answer.headers.get("x-id")), (200, identity))
        self.test.assertEqual(answer.headers["x-body"], digest(body))
        self.test.assertEqual(answer.body, b"served\n")

    async def one(self, index):
        connection = await self.test.open()
        random_ = random.Random(index)
        await self.kinds[index % len(self.kinds)](connection, random_)
        # It is still in order afterwards.
        last = self.new()
        self.check(await connection.ask(request(last, close=True)), last)
        await connection.read_end()
        connection.close()

    async def kept_alive(self, connection, _):
        for _ in range(4):
            identity = self.new()
            self.check(await connection.ask(request(identity)), identity)

    async def pipelined(self, connection, _):
        identities = [self.new() for _ in range(5)]
        await connection.send(b"".join(map(request, identities)))
        for identity in identities:
            self.check(await connection.read_answer(), identity)

    async def split_body(self, connection, random_):
        identity, body = self.new(), BODY[:random_.randrange(2, 60000)]
        data = request(identity, method="POST", body=body)
        head = data.index(b"\r\n\r\n") + 4
        cuts = random_.choice([[head], [head + 1], [head - 1], [head, head + 1, len(data) - 1]])
        for start, stop in itertools.pairwise([0, *cuts, len(data)]):
            await connection.send(data[start:stop])
            await asyncio.sleep(0.001)
        self.check(await connection.read_answer(), identity, body)

    async def dribbled_head(self, connection, random_):
        identity = self.new()
        await connection.send_in_pieces(request(identity), random_.randrange(1, 8), 0.001)
        self.check(await connection.read_answer(), identity)

    async def large_headers(self, connection, random_):
        identity = self.new()
        headers = [f"X-Large-{i}: " + chr(97 + i) * random_.randrange(6000) for i in range(5)]
        data = request(identity, headers=headers)
        await connection.send_in_pieces(data, random_.randrange(1000, 9000))
        self.check(await connection.read_answer(), identity)

    async def after_nginx(self, connection, _):
        for i in range(3):
            answer = await connection.ask(b"GET /nginx?id=%d HTTP/1.1\r\nHost: test\r\n\r\n" % i)
            self.test.assertEqual(answer.body, b"nginx %d" % i)

    async def pipelined_after_nginx(self, connection, random_):
        own = random_.randrange(1, 5)
        identity = self.new()
        await connection.send(b"GET /nginx?id=x HTTP/1.1\r\nHost: test\r\n\r\n" * own +
                              request(identity))
        for _ in range(own):
            self.test.assertEqual((await connection.read_answer()).body, b"nginx x")
        self.check(await connection.read_answer(), identity)

    async def chunked_body(self, connection, random_):
        identity, body = self.new(), BODY[:random_.randrange(1, 30000)]
        data = request(identity, method="POST", headers=["Transfer-Encoding: chunked"])
        data += chunked(body, random_.randrange(100, 5000))
        await connection.send_in_pieces(data, random_.randrange(500, 40000))
        self.check(await connection.read_answer(), identity, body)

    async def expecting_continue(self, connection, _):
        identity, body = self.new(), b"continued"
        data = request(identity, method="POST", headers=["Expect: 100-continue"], body=body)
        answer = await connection.ask(data[:-len(body)])
        self.test.assertEqual(answer.status, 100)
        await connection.send(body)
        self.check(await connection.read_answer(), identity, body)

    async def body_with_the_next(self, connection, random_):
        first, second, body = self.new(), self.new(), BODY[:random_.randrange(1, 9000)]
        await connection.send(request(first, method="POST", body=body) + request(second))
        self.check(await connection.read_answer(), first, body)
        self.check(await connection.read_answer(), second)


class Http(Case):
    """With a backend that adopts everything."""
    way = "handoff"
    options = ()
    server = ""

    def setUp(self):
        super().setUp()
        self.start(*self.options, http=HANDED_OVER, server=self.server)

    def open(self):
        return Connection.open(self.port)

    def check_ways(self, identities):
        ways = self.assert_once(identities)
        self.assertEqual(set(ways), {self.way})
        return ways

    def test_connections_for_one_request_are_answered_once(self):
        async def one(_):
            identity = new_identity()
            connection = await Connection.open(self.port)
            answer = await connection.ask(request(identity, close=True))
            self.assertEqual((answer.status, answer.headers["x-id"]), (200, identity))
            self.assertEqual(answer.headers["x-served-by"], self.way)
            await connection.read_end()
            connection.close()
            return identity

        self.check_ways(run(REQUESTS, 64, one))

    def test_requests_of_every_kind_are_answered_once(self):
        mixed = Mixed(self)
        run(MIXED * 10 // 27 + 1, 32, mixed.one)
        self.assertGreaterEqual(len(mixed.identities), MIXED)
        self.check_ways(mixed.identities)

    def test_uploads_arrive_whole(self):
        async def one(index):
            identity = new_identity()
            connection = await Connection.open(self.port)
            data = request(identity, method="POST", body=BODY)
            if index % 2:
                await connection.send_in_pieces(data, 10007 + index)
            else:
                await connection.send(data)
            answer = await connection.read_answer()
            self.assertEqual((answer.status, answer.headers["x-body"]), (200, digest(BODY)))
            connection.close()
            return identity

        self.check_ways(run(UPLOADS, 8, one))

    def test_large_answer_arrives_whole(self):
        size = 100 << 20

        async def one(_):
            identity = new_identity()
            connection = await Connection.open(self.port)
            await connection.send(request(identity, what="bytes", argument=f"/{size}"))
            await connection.reader.readuntil(b"\r\n\r\n")
            crc, left = 0, size
            while left:
                part = await connection.reader.read(1 << 20)
                self.assertTrue(part, "an answer that ends early")
                crc, left = zlib.crc32(part, crc), left - len(part)
            connection.close()
            return identity, crc

        [(identity, crc)] = run(1, 1, one)
        pattern = bytes(range(251))
        expected = zlib.crc32((pattern * (size // 251 + 1))[:size])
        self.assertEqual(crc, expected)
        self.check_ways([identity])

    def test_workers_keep_no_descriptors(self):
        async def one(index):
            connection = await Connection.open(self.port)
            identity = new_identity()
            if index % 3 == 0:  # it does not wait for the answer
                await connection.send(request(identity))
                connection.abort()
                return
            await connection.ask(request(identity))
            connection.close()

        before = self.nginx.descriptors()
        run(1500, 64, one)
        wait_until(lambda: self.active() == 1, "nginx counts no client but this one")
        wait_until(lambda: self.nginx.descriptors() == before, "as few descriptors as before")


class HttpRefused(Http):
    """The same with a backend that refuses, so that nginx serves all by itself."""
    way = "unix"
    options = ("-r", 1)
    server = NO_LIMIT

    def setUp(self):
        super().setUp()
        self.expected += [self.FALLBACK, self.IN_A_FILE]


if __name__ == "__main__":
    unittest.main()
