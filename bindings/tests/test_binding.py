"""What every binding must do, asked of a backend program in its language.

BINDING_LANGUAGE names the language, BINDING_BACKEND is the command. `COMMAND SOCKET` listens on
SOCKET and prints `listening on SOCKET`; its log, if it has one, goes to standard error. It serves
HTTP/1.1 with keep-alive, and each answer has the header `X-Served-By: handoff-LANGUAGE`:

    GET /hello             `hello ADDRESS\\n`: the client's address in the metadata, as nginx sends it with
                           `handoff_metadata default`, or the connection's if the broker sends none
    POST /echo             the body
    GET /events?n=N&ms=M   N server-sent events, `data: 1\\n\\n` and so on, each M milliseconds after the
                           one before; without `ms` none waits

What else is in the query means nothing: here it names the request. On SIGTERM the program drains,
finishes what it has begun, closes what is idle, and exits with 0.
"""

import asyncio
import collections
import json
import os
import signal
import socket
import struct
import time
import unittest

import client
import command  # of the tests of handoff(1)
import harness  # of the tests of the nginx modules
import many_clients
from client import Connection
from harness import PATIENCE, wait_until
from many_clients import AT_ONCE, BODY, CLIENTS, SERVED_BY, Client, ask

import handoff

FEW = 40  # descriptors of a process that is short of them
PROMPTLY = 5  # seconds within which a stream ends that needs nobody
# What `handoff broker` sends.
ADDRESS = "2001:db8::7"
METADATA = json.dumps({"module": "stream", "client": {"address": ADDRESS, "port": 4000},
                       "server": {"address": "192.0.2.1", "port": 80}})


async def read_until(connection, text):
    return await connection.reader.readuntil(text)


class Tests:
    """What holds for each of them."""

    def test_only_clients_of_a_killed_process_are_cut(self):
        clients = self.run_clients(CLIENTS, deaths=3)
        self.assertEqual(len(self.deaths), 3)
        ways = self.assert_only_the_dead_cut(clients)
        self.assert_all_told_of(clients)
        cut = sum(one.cut for one in clients)
        self.assertLessEqual(cut, 3 * AT_ONCE)
        self.assertGreater(ways["backend"], CLIENTS)  # most, for each has two answers or more
        print(f"{len(clients)} clients, 3 deaths: {ways['backend']} answers by the backend, "
              f"{ways['fallback']} by nginx, {cut} clients cut")

    def test_no_descriptor_is_left(self):
        self.warm_up()
        before = self.backend.descriptors()
        clients = self.run_clients(CLIENTS)
        self.assertEqual(self.assert_only_the_dead_cut(clients)["fallback"], 0)
        self.assertFalse([one.number for one in clients if one.cut])
        wait_until(lambda: self.backend.descriptors() <= before,
                   f"no more than {before} descriptors; now {self.backend.descriptors()}")

    def test_sigterm_finishes_what_has_begun_and_a_successor_goes_on(self):
        first = self.backend

        async def stream():
            connection = await Connection.open(self.port)
            await connection.send(ask("/events?n=15&ms=100"))
            await read_until(connection, b"data: 1\n\n")
            return connection

        async def between_requests():
            connection = await Connection.open(self.port)
            answer = await connection.ask(ask("/hello"))
            self.assertEqual(answer.headers["x-served-by"], SERVED_BY)
            return connection

        async def scenario():
            streams = [await stream() for _ in range(20)]
            idle = [await between_requests() for _ in range(5)]
            half = await Connection.open(self.port)
            await half.send(ask("/echo", "POST", BODY)[:-1])
            await asyncio.sleep(0.2)  # it is adopted
            first.signal(signal.SIGTERM)
            for connection in idle:
                await asyncio.wait_for(connection.read_end(), PROMPTLY)
            await asyncio.to_thread(wait_until, lambda: not os.path.exists(self.path), "draining")
            await asyncio.to_thread(self.start_program)
            await half.send(BODY[-1:])
            self.assertEqual((await half.read_answer()).body, BODY)
            successors = []
            await self.wait_for_backend(successors)
            self.assertFalse([one.number for one in successors if one.cut])
            for connection in streams:
                await read_until(connection, b"data: 15\n\n")

        self.warm_up()
        client.drive(scenario())
        self.assertEqual(first.wait(), 0)

    def test_client_that_resets_harms_nobody(self):
        self.warm_up()
        before = self.backend.descriptors()
        requests = (b"", ask("/hello")[:20], ask("/hello"), ask("/echo", "POST", BODY)[:-9000],
                    ask("/events?n=9999&ms=1"))
        for number in range(200):
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as reset:
                reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                reset.sendall(requests[number % len(requests)])
                if number % 3 == 0:
                    time.sleep(0.005)
        self.warm_up()
        wait_until(lambda: self.backend.descriptors() <= before,
                   f"no more than {before} descriptors; now {self.backend.descriptors()}")
        self.assertIsNone(self.backend.process.poll())

    def crowd(self, port):
        """Sends more clients than it has descriptors for, and they stay. Gives how many have had an
        answer from whom, each promptly."""
        self.backend.signal(signal.SIGTERM)
        self.assertEqual(self.backend.wait(), 0)
        self.start_program(preexec_fn=lambda: harness.resource.setrlimit(
            harness.resource.RLIMIT_NOFILE, (FEW, FEW)))
        clients = [Client(number, self.address) for number in range(3 * FEW)]

        async def ask_and_stay(number):
            one = clients[number]
            one.connection = await Connection.open(port)
            await one.connection.send(ask(one.path("hello")))
            try:
                await asyncio.wait_for(one.check_hello(), PROMPTLY)
            except (asyncio.IncompleteReadError, ConnectionError):
                return "nobody"
            return one.ways[0]

        async def scenario():
            await self.wait_for_backend([])
            ways = collections.Counter(await client.gather(len(clients), FEW, ask_and_stay))
            for one in clients:
                one.connection.close()
            await self.wait_for_backend([])
            return ways
        return client.drive(scenario())


class ThroughNginx(Tests, many_clients.ThroughNginx):
    def test_clients_that_it_has_no_descriptors_for_are_served_at_once(self):
        ways = self.crowd(self.port)
        self.assertEqual(set(ways), {"backend", "fallback"}, ways)


class ThroughBroker(Tests, many_clients.Case):
    address = ADDRESS

    def setUp(self):
        super().setUp()
        self.command, self.environment = command.COMMAND, None
        self.broker = self.start_broker("--metadata", METADATA)
        self.port = self.broker.port

    def start_broker(self, *options):
        return command.Running(self, "broker", "--wait", "60000", *options, "127.0.0.1:0", self.path)

    def assert_all_told_of(self, clients):
        """Each was adopted once: whoever was not is closed by the broker, which counts it."""
        self.assertEqual(sum("fallback" in one.ways for one in clients), 0)
        output, errors = self.broker.stop()
        summary = command.counts(output)
        self.assertEqual((summary["clients"], summary["adopted"]), (len(clients), len(clients)),
                         output + errors)

    def test_clients_that_it_has_no_descriptors_for_are_refused_at_once(self):
        broker = self.start_broker("--metadata", METADATA, "--wait", 1000)
        ways = self.crowd(broker.port)
        self.assertEqual(set(ways), {"backend", "nobody"}, ways)
        self.assertEqual(command.counts(broker.stop()[0])["adopted"], ways["backend"])

    def test_without_metadata_the_client_is_the_connections(self):
        port = self.start_broker().port
        one = Client(0, "127.0.0.1")
        client.drive(one.run(port))
        self.assertEqual((one.ways, one.cut), (["backend"] * 3, False))

    def test_head_that_is_cut_anywhere_is_put_together(self):
        request = ask("/hello", close=True)
        for preread in 1, 10, 40, len(request) - 1, len(request):
            port = self.start_broker("--preread", preread).port

            async def one(number, port=port):
                connection = await Connection.open(port)
                await connection.send_in_pieces(request, 1 + number * 7, pause=0.001)
                answer = await connection.read_answer()
                self.assertEqual(answer.body, b"hello 127.0.0.1\n")
                await connection.read_end()
            client.run(20, 20, one)

    def test_garbage_ends_only_its_own_connection(self):
        for garbage in (b"garbage\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x0a\r\n\r\n",
                        b"GET / HTTP/x.y\r\n\r\n", b"\0" * 100 + b"\r\n\r\n",
                        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as there:
                there.sendall(garbage)
                answer = b"".join(iter(lambda: there.recv(4096), b""))
                self.assertRegex(answer, rb"^(HTTP/1\.[01] [45]\d\d |$)", garbage)
        self.warm_up()
        self.assertIsNone(self.backend.process.poll())

    def test_stream_ends_though_the_broker_keeps_its_copy(self):
        own = handoff.Broker(self.path, timeout_ms=PATIENCE * 1000)
        self.addCleanup(own.close)
        for path in "/hello", "/events?n=3":
            with socket.create_server(("127.0.0.1", 0)) as listener:
                there = socket.create_connection(listener.getsockname(), PROMPTLY)
                accepted, _ = listener.accept()
            with there, accepted:
                verdict = own.offer_and_wait(accepted, preread=ask(path, close=True))
                self.assertTrue(verdict.adopted)
                answer = b"".join(iter(lambda: there.recv(4096), b""))
                self.assertIn(b"\r\nx-served-by: " + SERVED_BY.encode(), answer.lower())


if __name__ == "__main__":
    unittest.main()
