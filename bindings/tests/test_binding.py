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
import re
import shlex
import signal
import socket
import struct
import time
import unittest

import client
import command  # of the tests of handoff(1)
import harness  # of the tests of the nginx modules
from client import Connection
from harness import PATIENCE, wait_until

import handoff

BACKEND = shlex.split(os.environ["BINDING_BACKEND"])
SERVED_BY = "handoff-" + os.environ["BINDING_LANGUAGE"]
CLIENTS = int(os.environ.get("BINDING_CLIENTS", 2000))
AT_ONCE = 32
WITHOUT = 40  # the most clients that come between a backend's death and the next one
FEW = 40  # descriptors of a process that is short of them
PROMPTLY = 5  # seconds within which a stream ends that needs nobody

# Larger than what nginx reads of a head, and than what it hands over.
BODY = bytes(range(256)) * 512
FORGED = "X-Forwarded-For: 192.0.2.66", "X-Real-IP: 192.0.2.66", "Forwarded: for=192.0.2.66"
ADDRESS = "2001:db8::7"  # of the metadata that `handoff broker` sends

HTTP = """
    server {{
        listen 127.0.0.1:{port};
        handoff_metadata default;
        location / {{
            handoff_pass unix:{directory}/handoff.sock;
            error_page 502 504 = @fallback;
        }}
        location @fallback {{ return 200 "fallback $request_uri"; }}
    }}
"""


class Cut(Exception):
    """The connection ended before the answer did."""


def ask(path, method="GET", body=None, close=False):
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *FORGED]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def events(count):
    return b"".join(b"data: %d\n\n" % number for number in range(1, count + 1))


class Client:
    """One that sends requests over one connection, and checks each answer."""

    def __init__(self, number, address):
        self.number, self.address = number, address
        self.ways = []  # who answered: "backend" or "fallback"
        self.began, self.ended, self.cut = time.monotonic(), None, False

    async def run(self, port):
        try:
            self.connection = await Connection.open(port)
            await (self.one_by_one, self.upload, self.pipeline, self.stream)[self.number % 4]()
            await self.connection.read_end()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.cut = True
        finally:
            self.ended = time.monotonic()
            self.connection.close()

    def path(self, what, query=""):
        return f"/{what}?id={self.number}{query}"

    async def check_answer(self, path, body):
        answer = await self.connection.read_answer()
        way = "backend" if answer.headers.get("x-served-by") == SERVED_BY else "fallback"
        expected = body if way == "backend" else f"fallback {path}".encode()
        assert (answer.status, answer.body) == (200, expected), (path, way, answer)
        self.ways.append(way)

    async def check_hello(self):
        await self.check_answer(self.path("hello"), f"hello {self.address}\n".encode())

    async def one_by_one(self):
        for close in False, False, True:
            await self.connection.send(ask(self.path("hello"), close=close))
            await self.check_hello()

    async def upload(self):
        path, body = self.path("echo"), b"%d" % self.number + BODY
        await self.connection.send(ask(path, "POST", body))
        await self.check_answer(path, body)
        await self.connection.send(ask(self.path("hello"), close=True))
        await self.check_hello()

    async def pipeline(self):
        path, body = self.path("echo"), b"%d" % self.number
        await self.connection.send(ask(self.path("hello")) * 2 + ask(path, "POST", body)
                                   + ask(self.path("hello"), close=True))
        await self.check_hello()
        await self.check_hello()
        await self.check_answer(path, body)
        await self.check_hello()

    async def stream(self):
        path = self.path("events", "&n=5&ms=2")
        await self.connection.send(ask(path, close=True))
        await self.check_answer(path, events(5))


async def read_until(connection, text):
    return await connection.reader.readuntil(text)


class Backend(harness.Process):
    """The program, which listens."""

    def __init__(self, directory, path, **more):
        self.log = os.path.join(directory, f"log-{time.monotonic_ns()}")
        with open(self.log, "w", encoding="utf-8") as log:
            super().__init__([*BACKEND, path], directory, stdout=harness.subprocess.PIPE, stderr=log,
                             **more)
        line = self.process.stdout.readline()
        assert line == f"listening on {path}\n", (line, self.errors())

    def errors(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()[-5000:]

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


class Case(harness.Case):
    """A backend and, in front of it, what hands connections over."""

    address = None

    def setUp(self):
        super().setUp()
        self.path = os.path.join(self.directory, "handoff.sock")
        self.deaths = []  # from when to when a backend died
        self.restart()

    def fill(self):
        return {"directory": self.directory}

    def restart(self, **more):
        self.backend = Backend(self.directory, self.path, **more)
        self.backends.append(self.backend)
        self.addCleanup(self.backend.kill)

    def tearDown(self):
        super().tearDown()
        if self.failed:
            print(self.backend.errors())

    def kill_backend(self):
        began = time.monotonic()
        self.backend.kill()
        self.deaths.append((began, time.monotonic()))

    def run_clients(self, count, deaths=0):
        """Runs that many clients; so often the backend is killed meanwhile. Gives them."""
        clients, tasks, back = [], [], asyncio.Event()
        period = count // (deaths + 1) if deaths else count

        async def begin_again():
            await asyncio.sleep(0.2)
            await asyncio.to_thread(self.restart)
            await self.wait_for_backend(clients)
            back.set()

        async def one(number):
            since = number % period if number >= period else -1
            if since == 0:
                self.kill_backend()
                back.clear()
                tasks.append(asyncio.create_task(begin_again()))
            elif since > WITHOUT:
                await back.wait()
            clients.append(Client(number, self.address))
            await clients[-1].run(self.port)

        client.drive(client.gather(count, AT_ONCE, one))
        return clients

    async def wait_for_backend(self, clients):
        """Sends clients until ten in a row are answered by the backend. Adds them to the others."""
        row = 0
        while row < 10:
            clients.append(Client(CLIENTS + len(clients), self.address))
            await asyncio.wait_for(clients[-1].run(self.port), client.PATIENCE)
            row = 0 if "fallback" in clients[-1].ways else row + 1

    def assert_only_the_dead_cut(self, clients):
        """No client was cut but by a process that was killed. Gives who answered how often."""
        for one in clients:
            if one.cut:
                self.assertTrue(any(one.began < end and one.ended > begin
                                    for begin, end in self.deaths), vars(one))
        return collections.Counter(way for one in clients for way in one.ways)

    def warm_up(self):
        """The channels are there, and what a program opens once is open."""
        self.assert_only_the_dead_cut(self.run_clients(40))

    # ---- what holds for each of them ----

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
            await asyncio.to_thread(self.restart)
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


    def test_short_of_descriptors_it_goes_on(self):
        self.backend.signal(signal.SIGTERM)
        self.assertEqual(self.backend.wait(), 0)
        self.restart(preexec_fn=lambda: harness.resource.setrlimit(
            harness.resource.RLIMIT_NOFILE, (FEW, FEW)))

        async def scenario():
            await self.wait_for_backend([])
            await client.gather(3 * FEW, 3 * FEW, one)

        async def one(_):
            connection = await Connection.open(self.port)
            answer = await connection.ask(ask("/events?n=2&ms=200", close=True))
            self.assertIn(answer.body, (events(2), b"fallback /events?n=2&ms=200"))
            await connection.read_end()
        client.drive(scenario())


class ThroughNginx(Case):
    address = "127.0.0.1"

    def setUp(self):
        super().setUp()
        self.expected = [self.FALLBACK]
        self.start_nginx(HTTP, main="error_log notices notice;")
        self.wait_for_channels()

    def wait_for_channels(self):
        def each_worker_has_said_so():
            with open(f"{self.directory}/notices", encoding="utf-8") as file:
                return file.read().count(": it takes connections") >= 2 * len(self.backends)
        wait_until(each_worker_has_said_so, "the channels are made")

    def assert_all_told_of(self, clients):
        """What nginx says of each client is what the client has seen: at most one adoption, from which
        on the backend answers, and before that nginx itself, each request once."""
        self.stop_nginx()
        told = collections.defaultdict(list)
        for line in self.nginx.access():
            number, outcome = re.match(r"/\w+\?id=(\d+)\S* \d+ outcome=(\w+) ", line).groups()
            told[int(number)].append(outcome)
        for one in clients:
            by_nginx = one.ways.count("fallback")
            adopted = len(one.ways) > by_nginx or one.cut
            self.assertEqual(told[one.number], ["fallback"] * by_nginx + ["adopted"] * adopted,
                             vars(one))
            self.assertEqual(one.ways[:by_nginx], ["fallback"] * by_nginx, vars(one))


class ThroughBroker(Case):
    address = ADDRESS

    def setUp(self):
        super().setUp()
        self.command, self.environment = command.COMMAND, None
        self.broker = self.start_broker(
            "--metadata", json.dumps({"client": {"address": ADDRESS, "port": 4000}}))
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


del Case  # or unittest would run it by itself

if __name__ == "__main__":
    unittest.main()
