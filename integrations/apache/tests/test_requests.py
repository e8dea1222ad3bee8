"""Requests over HTTP/1.1: handed over, proxied instead, and handed over by the application's answer."""

import os
import random
import unittest

import test_http as of_nginx
from apache import ApacheCase, for_each_mpm, number, wait_until
from client import Connection, chunked, digest, new_identity, request, run

REQUESTS = number("REQUESTS", 1000)
MIXED = number("MIXED", 400)
UPLOADS = number("UPLOADS", 20)
HEADERS = number("HEADERS", 100)


class Requests(ApacheCase):
    """With a backend that adopts everything."""
    way = "handoff"
    options = ()

    def setUp(self):
        super().setUp()
        self.start(*self.options, more="HandoffMaxFails 0\n")

    def open(self):
        return Connection.open(self.port)

    def check_ways(self, identities):
        self.assertEqual(set(self.assert_once(identities)), {self.way})

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

        self.check_ways(run(REQUESTS, 32, one))
        expected = "299 0 handoff=adopted reason=-" if self.way == "handoff" else "200 7 handoff=fallback"
        lines = [line for line in self.apache.lines("access") if expected in line]
        self.assertEqual(len(lines), REQUESTS)

    def test_requests_of_every_kind_are_answered_once(self):
        """On kept connections, in pipelines, after Apache's own answers, in pieces, with bodies."""
        mixed = of_nginx.Mixed(self)
        run(MIXED * 10 // 27 + 1, 16, mixed.one)
        self.assertGreaterEqual(len(mixed.identities), MIXED)
        self.check_ways(mixed.identities)

    def test_uploads_arrive_whole(self):
        async def one(index):
            identity = new_identity()
            connection = await Connection.open(self.port)
            data = request(identity, method="POST", body=of_nginx.BODY)
            if index % 2:
                await connection.send_in_pieces(data, 10007 + index)
            else:
                await connection.send(data)
            answer = await connection.read_answer()
            self.assertEqual((answer.status, answer.headers["x-body"]), (200, digest(of_nginx.BODY)))
            connection.close()
            return identity

        self.check_ways(run(UPLOADS, 8, one))

    def most_descriptors(self):
        """Of the child that has most. One that has served no client yet has less: it has no channel."""
        return max(len(os.listdir(f"/proc/{child}/fd")) for child in self.apache.workers())

    def test_children_keep_no_descriptors(self):
        async def one(index):
            connection = await Connection.open(self.port)
            if index % 3 == 0:  # it does not wait for the answer
                await connection.send(request(new_identity()))
                connection.abort()
                return
            await connection.ask(request(new_identity()))
            connection.close()

        run(500, 50, one)
        before = self.most_descriptors()
        run(REQUESTS, 50, one)
        wait_until(lambda: self.most_descriptors() <= before + 1, "as few descriptors as before")


class Refused(Requests):
    """The same with a backend that refuses, so that Apache's next handler serves all."""
    way = "unix"
    options = ("-r", 1)

    def setUp(self):
        super().setUp()
        self.expected.append(self.FALLBACK)


# The application gets headers that the client did not send, and answers with them.
APPLICATION = """
SetEnvIfExpr "%{{QUERY_STRING}} =~ /to=([^&]*)/" to=$1
SetEnvIfExpr "%{{QUERY_STRING}} =~ /data=([^&]*)/" data=$1
RequestHeader set Accel %{{to}}e env=to
RequestHeader set Accel-Data %{{data}}e env=data
HandoffBackend events unix:{directory}/handoff.sock
HandoffAllow unix:{directory}/
HandoffHeader X-Accel-Redirect X-Handoff-Data
ProxyPass / unix:{directory}/fallback.sock|http://localhost/ disablereuse=On
"""


class ByHeader(ApacheCase):
    """The application behind Apache answers with the name of a backend, or a socket's path."""
    way = "handoff"
    options = ()

    def setUp(self):
        super().setUp()
        self.start("-m", 131000, *self.options, server=APPLICATION, more="HandoffMaxFails 0\n")
        self.ways = ["events", f"{self.directory}/handoff.sock", f"unix:{self.directory}/handoff.sock"]

    def ask_all(self, make):
        """Sends what make(random, to, id) gives: bytes, and the body in them."""
        async def one(index):
            random_ = random.Random(index)
            identity = new_identity()
            data, body = make(random_, self.ways[index % 3], identity)
            connection = await Connection.open(self.port)
            if index % 2:
                await connection.send_in_pieces(data, random_.randrange(200, 30000), 0.0005)
            else:
                await connection.send(data)
            answer = await connection.read_answer()
            self.assertEqual((answer.status, answer.headers["x-id"]), (200, identity))
            self.assertEqual(answer.headers["x-served-by"], self.way)
            self.assertEqual(answer.headers["x-body"], digest(body))
            self.assertNotIn("x-accel-redirect", answer.headers)
            self.assertNotIn("x-handoff-data", answer.headers)
            if self.way == "handoff":
                self.assertEqual(answer.body, data[:data.index(b"\r\n\r\n") + 4])
            last = new_identity()  # the connection is in order afterwards
            answer = await connection.ask(request(last))
            self.assertEqual(answer.headers["x-id"], last)
            connection.close()
            return identity, last

        pairs = run(HEADERS, 16, one)
        first, last = zip(*pairs)
        self.assertEqual(self.answered_by_application(), dict.fromkeys(first, 1))
        self.assert_once(first + last if self.way == "handoff" else last)

    @staticmethod
    def odd_headers(random_):
        return [f"Odd-{i}:{' ' * random_.randrange(3)}" + "x" * random_.randrange(1500)
                for i in range(random_.randrange(5))]

    def test_get(self):
        self.ask_all(lambda random_, to, identity: (
            request(identity, what="head", argument=f"?to={to}",
                    headers=self.odd_headers(random_)), b""))

    def test_post(self):
        def make(random_, to, identity):
            body = random_.randbytes(random_.randrange(random_.choice([1, 3000, 50000]) + 1))
            return request(identity, what="head", method="POST", argument=f"?to={to}", body=body,
                           headers=self.odd_headers(random_)), body

        self.ask_all(make)

    def test_chunked_post(self):
        def make(random_, to, identity):
            body = random_.randbytes(random_.randrange(1, 40000))
            head = request(identity, what="head", method="POST", argument=f"?to={to}",
                           headers=["Transfer-Encoding: chunked", *self.odd_headers(random_)])
            return head + chunked(body, random_.randrange(50, 9000)), body

        self.ask_all(make)

    def test_post_with_the_next_request_behind_it(self):
        async def one(index):
            connection = await Connection.open(self.port)
            body, first, second = b"x" * (index * 97), new_identity(), new_identity()
            await connection.send(request(first, method="POST", body=body,
                                          argument=f"?to={self.ways[index % 3]}") + request(second))
            for identity, expected in (first, body), (second, b""):
                answer = await connection.read_answer()
                self.assertEqual(answer.headers["x-id"], identity)
                self.assertEqual(answer.headers["x-body"], digest(expected))
            connection.close()
            return first, second

        pairs = run(HEADERS, 16, one)
        asked = sum(pairs, ()) if self.way == "handoff" else [second for _, second in pairs]
        self.assert_once(asked)


class ByHeaderRefused(ByHeader):
    """The same with a backend that refuses: the client gets the application's answer."""
    way = "unix"
    options = ("-r", 1)

    def setUp(self):
        super().setUp()
        self.expected.append(self.FALLBACK)


for_each_mpm(globals(), Requests, Refused, ByHeader, ByHeaderRefused)

if __name__ == "__main__":
    unittest.main()
