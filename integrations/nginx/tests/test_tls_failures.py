"""Backends that are late, stopped or killed, and nginx that is reloaded or loses a worker, while
offers of connections with TLS are pending."""

import collections
import itertools
import unittest

import test_failures
from client import Connection
from harness import NO_LIMIT
from tls import (CONTEXTS, FULL, NAMES, TLS, TLS_STREAM, VERSIONS, Client, TlsCase, ask, in_threads,
                 new_identity)

test_failures.PENDING = 50 if FULL else 12
CLIENTS = 200 if FULL else 24  # of a backend that is late
AT_MOST = 8  # requests of one of them

versions = itertools.cycle(VERSIONS)


async def connect(port):
    return await Connection.open(port, ssl=CONTEXTS[next(versions)], server_hostname=NAMES[0])


class HttpClient(test_failures.HttpClient):
    parts = {"http": TLS}
    connect = staticmethod(connect)
    request = staticmethod(ask)


class StreamClient:
    parts = {"stream": TLS_STREAM, "http": ""}
    proxied = "tcp"

    @staticmethod
    async def ask(test, identity):
        connection = await connect(test.stream_port)
        await connection.send(identity.encode() + b"\n")

        async def read():
            way, echoed, _ = (await connection.reader.readline()).decode().split(" ")
            test.assertEqual(echoed, identity)
            connection.close()
            return way

        return read


class Pending(test_failures.Pending):
    ends_are_seen_first = True  # OpenSSL reads the close_notify behind the request

    def setUp(self):
        super().setUp()
        self.expect_fallbacks()


class HttpPending(HttpClient, Pending, TlsCase):
    pass


class StreamPending(StreamClient, Pending, TlsCase):
    pass


def keep(case, *names):
    """Where time is short, what TLS may make different; the rest is in the full form."""
    for name in unittest.defaultTestLoader.getTestCaseNames(case):
        if not FULL and name not in names:
            setattr(case, name, None)


keep(HttpPending, "test_reload_then_release", "test_workers_are_killed_then_release",
     "test_backend_is_killed", "test_backend_is_stopped", "test_clients_go_away")
keep(StreamPending, "test_backend_is_killed")


class Late(TlsCase):
    """The backend decides around the moment at which nginx stops waiting."""

    def test_none_is_answered_twice_when_the_backend_is_about_too_late(self):
        self.expect_fallbacks()
        timeout, often = 60, False
        # Both must happen, and often: otherwise nothing is tested. A slow machine takes longer.
        while not often:
            self.assertLess(timeout, 4000)
            often = self.run_late(timeout)
            timeout *= 2

    def run_late(self, timeout):
        self.start("-d", f"0-{2 * timeout}", server=f"handoff_timeout {timeout}ms;" + NO_LIMIT)
        identities = []

        def one(_):
            ways = []
            with Client(self.port, next(versions)) as client:
                # What nginx has answered it offers again with the next request.
                while len(ways) < AT_MOST and ways[-1:] != ["handoff"]:
                    identity = new_identity()
                    identities.append(identity)
                    answer = client.ask(ask(identity))
                    self.assertEqual((answer.status, answer.headers["x-id"]), (200, identity))
                    ways.append(answer.headers["x-served-by"])
                # Nobody else says anything more.
                client.push(client.close_notify())
                client.read_end()
            return ways

        ways = collections.Counter(itertools.chain(*in_threads(CLIENTS, 12, one)))
        self.assertEqual(ways, self.assert_once(identities))
        self.stop_all()
        return min(ways["handoff"], ways["unix"]) > CLIENTS // 4


if __name__ == "__main__":
    unittest.main()
