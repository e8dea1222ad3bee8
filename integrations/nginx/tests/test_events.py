"""Events of one connection never reach another: an epoll registration outlives close() while the
backend has a copy, so one that nginx forgot to remove would hit whoever gets its place."""

import asyncio
import random
import signal
import unittest

from client import PATIENCE, Connection, drive, gather, new_identity, request
from harness import HANDED_OVER, NO_LIMIT, STREAM, Case, number

BYSTANDERS = number("BYSTANDERS", 3000)
CHURN = number("CHURN", 3000)

# Another server, which proxies: its connections have two ends in nginx.
PROXIED = """
    server {{
        listen unix:{directory}/proxied.sock;
        proxy_pass 127.0.0.1:{fallback};
    }}
"""


class Events(Case):
    def churn_among_bystanders(self, bystander, churn):
        """bystander(index) opens a connection and gives what talks on it, once for each call."""
        pause = random.Random(1)

        async def all_of_it():
            talks = await gather(BYSTANDERS, 100, bystander)
            done = asyncio.Event()

            async def talk(talk_once):
                rounds = 0
                while not done.is_set() or rounds == 0:
                    await asyncio.wait_for(talk_once(rounds), PATIENCE)
                    rounds += 1
                    await asyncio.sleep(2 * pause.random())  # so that others have a turn
                return rounds

            talking = [asyncio.create_task(talk(talk_once)) for talk_once in talks]
            await gather(CHURN, 100, churn)
            done.set()
            return await asyncio.gather(*talking)

        drive(all_of_it())

    def http_bystander(self):
        async def bystander(index):
            connection = await Connection.open(self.port)

            async def talk(number_):
                answer = await connection.ask(
                    b"GET /nginx?id=%d-%d HTTP/1.1\r\nHost: test\r\n\r\n" % (index, number_))
                self.assertEqual(answer.body, b"nginx %d-%d" % (index, number_))

            return talk

        return bystander

    def http_churn(self, identities):
        """Some end at once, some stay a while with the backend, some are proxied in between."""
        async def churn(index):
            connection = await Connection.open(self.port)
            for _ in range(index % 3):
                identity = new_identity()
                identities.append(identity)
                answer = await connection.ask(request(identity))
                self.assertEqual((answer.status, answer.headers["x-id"]), (200, identity))
            identity = new_identity()
            identities.append(identity)
            answer = await connection.ask(request(identity, close=True))
            self.assertEqual((answer.status, answer.headers["x-id"]), (200, identity))
            await connection.read_end()
            connection.close()

        return churn

    def test_http(self):
        identities = []
        self.start(http=HANDED_OVER)
        self.churn_among_bystanders(self.http_bystander(), self.http_churn(identities))
        self.assert_once(identities)

    def test_http_with_a_slow_backend_that_refuses_some(self):
        self.expected.append(self.FALLBACK)
        identities = []
        self.start("-d", "0-20", "-r", 3, http=HANDED_OVER)
        self.churn_among_bystanders(self.http_bystander(), self.http_churn(identities))
        self.assert_once(identities)

    def test_http_with_a_backend_that_hangs_with_copies_of_what_is_proxied(self):
        self.expected.append(self.FALLBACK)
        identities = []
        self.start(http=HANDED_OVER, server="handoff_timeout 20ms;" + NO_LIMIT)
        self.backend.signal(signal.SIGSTOP)
        self.churn_among_bystanders(self.http_bystander(), self.http_churn(identities))
        self.backend.signal(signal.SIGCONT)
        self.assertEqual(set(self.assert_once(identities)), {"unix"})

    def test_streams(self):
        self.start(stream=STREAM + PROXIED)
        identities = []

        async def bystander(index):
            connection = Connection(*await asyncio.open_unix_connection(
                f"{self.directory}/proxied.sock"))
            identity = new_identity("b")
            identities.append(identity)
            await connection.send(identity.encode() + b"\n")
            await connection.reader.readline()

            async def talk(number_):
                line = b"%d %d\n" % (index, number_)
                await connection.send(line)
                self.assertEqual(await connection.reader.readline(), line)

            return talk

        async def churn(index):
            connection = await Connection.open(self.stream_port)
            identity = new_identity("s")
            identities.append(identity)
            await connection.send(identity.encode() + b"\n" + b"x" * index)
            line = await connection.reader.readline()
            self.assertEqual(line.decode().split(" ")[:2], ["handoff", identity])
            self.assertEqual(await connection.reader.readexactly(index), b"x" * index)
            connection.close()

        self.churn_among_bystanders(bystander, churn)
        self.assert_once(identities)


if __name__ == "__main__":
    unittest.main()
