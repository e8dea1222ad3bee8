"""What the tests of bindings stand on: clients that check each answer, the program that serves them,
whose contract is in test_binding.py, and nginx in front of it."""

import asyncio
import collections
import os
import shlex
import time

import client
import harness  # of the tests of the nginx modules
from client import Connection
from harness import wait_until

BACKEND = shlex.split(os.environ["BINDING_BACKEND"])
SERVED_BY = "handoff-" + os.environ["BINDING_LANGUAGE"]
CLIENTS = int(os.environ.get("BINDING_CLIENTS", 2000))
AT_ONCE = 32

# Larger than what nginx reads of a head, and than what it hands over.
BODY = bytes(range(256)) * 512
FORGED = "X-Forwarded-For: 192.0.2.66", "X-Real-IP: 192.0.2.66", "Forwarded: for=192.0.2.66"
HTTP = """
    log_format told '$arg_id $handoff_outcome $handoff_backend';
    server {{
        listen 127.0.0.1:{port};
        access_log told.log told;
        handoff_metadata default;
        location / {{
            handoff_pass unix:{path};
            error_page 502 504 = @fallback;
        }}
        location @fallback {{ return 200 "fallback $request_uri"; }}
    }}
"""


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
    name = "handoff.sock"
    without = 40  # the most clients that come between a backend's death and the next one

    def setUp(self):
        super().setUp()
        self.path = os.path.join(self.directory, self.name)
        self.deaths = []  # from when to when a backend died
        self.start_program()

    def fill(self):
        return {"path": self.path}

    def start_program(self, **more):
        self.backend = Backend(self.directory, self.path, **more)
        self.backends.append(self.backend)
        self.addCleanup(self.backend.kill)

    def restart(self):
        """Returns when another backend listens after one was killed."""
        self.start_program()

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
        period = -(-count // (deaths + 1))  # rounded up, or there would be one more

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
            elif since > self.without:
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


class ThroughNginx(Case):
    address = "127.0.0.1"

    def setUp(self):
        super().setUp()
        self.expected = [self.FALLBACK]
        self.start_nginx(HTTP, main="error_log notices notice;")
        self.wait_for_channels(1)

    def wait_for_channels(self, backends):
        """Until each of nginx's workers has had a channel to so many."""
        def each_worker_has_said_so():
            with open(f"{self.directory}/notices", encoding="utf-8") as file:
                return file.read().count(": it takes connections") >= 2 * backends
        wait_until(each_worker_has_said_so, "the channels are made")

    def assert_all_told_of(self, clients):
        """What nginx says of each client is what the client has seen: at most one adoption, from which
        on the backend answers, and before that nginx itself, each request once. Gives the path of the
        backend that has adopted each."""
        self.stop_nginx()
        told, by = collections.defaultdict(list), {}
        with open(f"{self.directory}/told.log", encoding="utf-8") as file:
            for line in file:
                number, outcome, path = line.split()
                told[int(number)].append(outcome)
                by[int(number)] = path
        for one in clients:
            by_nginx = one.ways.count("fallback")
            adopted = len(one.ways) > by_nginx or one.cut
            self.assertEqual(told[one.number], ["fallback"] * by_nginx + ["adopted"] * adopted,
                             vars(one))
            self.assertEqual(one.ways[:by_nginx], ["fallback"] * by_nginx, vars(one))
        return by
