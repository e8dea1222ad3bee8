"""Backends that are late, stopped or killed, and nginx that is reloaded or loses a worker, while
offers are pending: whoever has the claim serves each client, once."""

import asyncio
import collections
import contextlib
import glob
import os
import re
import resource
import signal
import time
import unittest

from client import Connection, drive, gather, new_identity, request, run
from harness import (BUILD, HANDED_OVER, NO_LIMIT, STREAM, Case, Nginx, Process, free_port,
                     number, wait_until)

PENDING = number("PENDING", 100)
LATE = number("LATE", 4000)


class HttpClient:
    """How the tests below speak to an HTTP server."""
    parts = {"http": HANDED_OVER}
    proxied = "unix"
    connect = staticmethod(Connection.open)
    request = staticmethod(request)

    @classmethod
    async def ask(cls, test, identity):
        """Begins a connection and asks; gives what reads the answer and tells the way."""
        connection = await cls.connect(test.port)
        await connection.send(cls.request(identity, close=True))

        async def read():
            answer = await connection.read_answer()
            test.assertEqual((answer.status, answer.headers["x-id"]), (200, identity))
            await connection.read_end()
            connection.close()
            return answer.headers["x-served-by"]

        return read


class StreamClient:
    parts = {"stream": STREAM}
    proxied = "tcp"

    @staticmethod
    async def ask(test, identity):
        connection = await Connection.open(test.stream_port)
        await connection.send(identity.encode() + b"\n")

        async def read():
            way, echoed, _ = (await connection.reader.readline()).decode().split(" ")
            test.assertEqual(echoed, identity)
            connection.writer.write_eof()
            await connection.read_end()
            connection.close()
            return way

        return read


class Late:
    """The backend decides around the moment at which nginx stops waiting."""

    def test_none_is_answered_twice_when_the_backend_is_about_too_late(self):
        self.expected.append(self.FALLBACK)
        timeout, often = 30, False
        # Both must happen, and often: otherwise nothing is tested. A slow machine takes longer.
        while not often:
            self.assertLess(timeout, 2000)
            often = self.run_late(timeout)
            timeout *= 2

    def run_late(self, timeout):
        self.start("-d", f"0-{2 * timeout}", **self.parts,
                   server=f"handoff_timeout {timeout}ms;" + NO_LIMIT)
        identities = []

        async def one(_):
            identity = new_identity()
            identities.append(identity)
            return await (await self.ask(self, identity))()

        ways = collections.Counter(drive(gather(LATE, 100, one)))
        self.assertEqual(ways, self.assert_once(identities))
        self.stop_all()
        return min(ways["handoff"], ways[self.proxied]) > LATE // 10


class HttpLate(HttpClient, Late, Case):
    pass


class StreamLate(StreamClient, Late, Case):
    pass


class Pending:
    """So many offers wait when something happens."""

    def begin(self, server="", main=""):
        self.expected.append(self.FALLBACK)
        self.start("-n", **self.parts, server=f"{server} {NO_LIMIT}", main=main)

    def pend(self, happen, ways):
        """Asks, waits until all are pending, lets it happen, and reads the answers; each must have
        come one of these ways. Gives what `happen` gave."""
        identities = [new_identity() for _ in range(PENDING)]

        async def all_of_it():
            async def ask(index):
                return await self.ask(self, identities[index])

            readers = await gather(PENDING, PENDING, ask)
            await asyncio.to_thread(wait_until, self.all_have_arrived, "all have arrived")
            happened = await asyncio.to_thread(happen)

            async def read(index):
                return await readers[index]()

            return await gather(PENDING, PENDING, read), happened

        found, happened = drive(all_of_it())
        self.assertLessEqual(set(found), set(ways))
        self.assert_once(identities)
        return happened

    def all_have_arrived(self):
        return self.backend.statistics()["arrived"] == PENDING

    def test_release(self):
        self.begin()
        self.pend(self.backend.release, ["handoff"])

    def test_reload_then_release(self):
        self.begin()

        def happen():
            old = self.nginx.reload()
            self.assertEqual(self.backend.statistics()["held"], PENDING)
            self.backend.release()
            self.nginx.wait_for_end_of(old)

        self.pend(happen, ["handoff"])

    def test_reload_then_timeout(self):
        self.begin("handoff_timeout 1s;")
        old = self.pend(self.nginx.reload, [self.proxied])
        self.nginx.wait_for_end_of(old)

    def test_quit_then_release(self):
        self.begin()

        def happen():
            self.nginx.signal(signal.SIGQUIT)
            self.backend.release()
            self.assertEqual(self.nginx.wait(), 0)

        self.pend(happen, ["handoff"])

    def test_quit_then_timeout(self):
        self.begin("handoff_timeout 1s;")
        self.pend(lambda: self.nginx.signal(signal.SIGQUIT), [self.proxied])
        self.assertEqual(self.nginx.wait(), 0)

    def test_workers_are_killed_then_release(self):
        self.begin()
        self.expected += [r"\[alert\] .*worker process \d+ exited on signal 9"]

        def happen():
            self.nginx.wait_for_end_of(self.nginx.kill_workers())
            self.backend.release()

        self.pend(happen, ["handoff"])

    def test_backend_is_killed(self):
        self.begin()  # nginx does not wait for the timeout, which is an hour
        self.pend(self.backend.kill, [self.proxied])

    def test_backend_is_stopped(self):
        self.begin("handoff_timeout 500ms;")
        self.pend(lambda: self.backend.signal(signal.SIGSTOP), [self.proxied])
        # It goes on, and must not serve what nginx has taken back.
        self.backend.signal(signal.SIGCONT)
        self.backend.release()
        wait_until(lambda: self.backend.statistics()["held"] == 0, "nothing is held")
        self.assertEqual(self.backend.statistics()["adopted"], 0)

    def test_backend_is_asked_to_end(self):
        self.begin()

        def happen():
            self.backend.signal(signal.SIGTERM)
            self.assertEqual(self.backend.wait(), 0)

        self.pend(happen, [self.proxied])

    # Whether a client that ends at once is not offered at all.
    ends_are_seen_first = False

    def test_clients_go_away(self):
        self.begin("handoff_timeout 2s;")
        before = self.nginx.descriptors()

        async def ask(_):
            return await self.ask(self, new_identity())

        async def all_of_it():
            await gather(PENDING, PENDING, ask)
            if self.ends_are_seen_first:
                await asyncio.to_thread(wait_until, self.all_have_arrived, "all have arrived")

        # Its end closes every connection.
        drive(all_of_it())
        wait_until(self.all_have_arrived, "all have arrived")
        self.backend.release()
        wait_until(lambda: self.nginx.descriptors() == before, "as few descriptors as before")
        wait_until(lambda: self.backend.statistics()["clients"] == 1, "the backend forgets them")

    def test_worker_shutdown_timeout(self):
        self.begin(main="worker_shutdown_timeout 500ms;")
        identities = [new_identity() for _ in range(PENDING)]

        async def all_of_it():
            async def ask(index):
                return await self.ask(self, identities[index])

            await gather(PENDING, PENDING, ask)
            await asyncio.to_thread(wait_until, self.all_have_arrived, "all have arrived")
            old = await asyncio.to_thread(self.nginx.reload)
            await asyncio.to_thread(self.nginx.wait_for_end_of, old)

        drive(all_of_it())
        # Some may have been proxied on the way; none may be answered twice.
        self.backend.release()
        wait_until(lambda: self.backend.statistics()["held"] == 0, "nothing is held")
        self.assertEqual({key: n for key, n in self.answered().items() if n > 1}, {})


class HttpPending(HttpClient, Pending, Case):
    pass


class StreamPending(StreamClient, Pending, Case):
    pass


class Restart(Case):
    """Backends and workers that go and come back while clients ask."""

    def setUp(self):
        super().setUp()
        self.expected.append(self.FALLBACK)
        self.start(http=HANDED_OVER, server=NO_LIMIT)

    def ask_while(self, restart):
        """Sixteen clients ask, one connection after another, while restart() is called so often."""
        identities, ways = [], []

        async def ask_until(done):
            while not done.is_set():
                identity = new_identity()
                identities.append(identity)
                ways.append(await (await HttpClient.ask(self, identity))())

        async def all_of_it():
            done = asyncio.Event()
            clients = [asyncio.create_task(ask_until(done)) for _ in range(16)]
            for _ in range(number("RESTARTS", 8)):
                enough = ways.count("handoff") + 200
                while ways.count("handoff") < enough and not any(c.done() for c in clients):
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(restart)
            done.set()
            await asyncio.gather(*clients)

        drive(all_of_it())
        self.assert_once(identities)

    def test_clients_are_served_while_the_backend_restarts(self):
        def restart():
            self.backend.signal(signal.SIGTERM)
            self.assertEqual(self.backend.wait(), 0)
            self.backend = self.start_backend()

        self.ask_while(restart)

    def test_clients_are_served_while_nginx_reloads(self):
        self.ask_while(lambda: self.nginx.wait_for_end_of(self.nginx.reload()))

    def test_path_and_settings_may_change_with_a_reload(self):
        self.parts["http"] = self.parts["http"].replace("handoff.sock", "other.sock")
        other = self.start_backend(name="other", sockets=("other.sock", "other_echo.sock"))

        def change():
            Nginx.configure(self.directory, **self.parts)
            self.nginx.wait_for_end_of(self.nginx.reload())

        self.ask_while(change)
        self.assertGreater(other.statistics()["adopted"], 0)
        wait_until(lambda: self.backend.statistics()["channels"] == 0, "the old channels end")


class Processes(Case):
    """How nginx's processes come and go."""

    def channels(self):
        """How many the backend has: connected sockets for packets."""
        own = set()
        for link in glob.glob(f"/proc/{self.backend.process.pid}/fd/*"):
            with contextlib.suppress(FileNotFoundError):  # it has just closed it
                own.add(os.readlink(link))
        with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
        return sum(line[4:6] == ["0005", "03"] and f"socket:[{line[6]}]" in own for line in lines)

    def test_worker_that_ends_keeps_no_channel(self):
        """But makes one again for a client that comes late."""
        self.start()
        data = request("a", close=True)

        async def upload():
            connection = await Connection.open(self.port)
            await connection.send(data[:10])
            await asyncio.to_thread(wait_until, lambda: self.active() == 2, "it is accepted")
            old = await asyncio.to_thread(self.nginx.reload)
            await asyncio.to_thread(wait_until, lambda: self.channels() == 2, "two channels")
            self.assertTrue(old & self.nginx.workers())
            await connection.send(data[10:])
            answer = await connection.read_answer()
            await connection.read_end()
            connection.close()
            return answer, old

        answer, old = drive(upload())
        self.assertEqual(answer.headers["x-served-by"], "handoff")
        self.nginx.wait_for_end_of(old)

    def test_nginx_without_a_master_process_may_reload(self):
        self.backend, self.fallback = self.start_backend(), self.start_fallback()
        self.port = free_port()
        Nginx.configure(self.directory, main="master_process off;", http=HANDED_OVER.format(
            port=self.port, server="", directory=self.directory))
        nginx = Process(Nginx.command(self.directory), self.directory)
        self.addCleanup(nginx.kill)
        wait_until(lambda: os.path.exists(f"{self.directory}/nginx.pid"), "nginx runs")

        async def ask():
            return await (await Connection.open(self.port)).ask(request("a", close=True))

        self.assertEqual(drive(ask()).headers["x-served-by"], "handoff")
        # It forgets its connections then, in all versions so far: there is nothing more to ask of it.
        nginx.signal(signal.SIGHUP)
        time.sleep(0.5)
        nginx.signal(signal.SIGQUIT)
        self.assertEqual(nginx.wait(), 0)


class Bug(Case):
    """In the library, which then cannot say whether an offer was made: see bug.c."""

    bug: tuple[str, ...] = ()

    def start(self, *options, **parts):
        before = Nginx.under
        Nginx.under = ["env", f"LD_PRELOAD={BUILD}/bug.so", *self.bug, *before]
        self.addCleanup(setattr, Nginx, "under", before)
        self.expected += [r"\[alert\] .* handoff to ", self.FALLBACK]
        super().start(*options, **parts)

    def found(self):
        return sum("[alert]" in line for line in self.nginx.log())

    async def one(self, identity):
        answer = await (await Connection.open(self.port)).ask(request(identity))
        self.assertEqual((answer.status, answer.headers["x-id"]), (200, identity))
        return answer.headers["x-served-by"]

    def ask(self, count, at_once):
        identities = [new_identity() for _ in range(count)]
        return identities, run(count, at_once, lambda index: self.one(identities[index]))

    def test_client_whose_offer_met_it_is_served_once_and_the_next_ones_by_the_backend(self):
        self.start()
        identities = []
        while self.found() < 2:  # in each worker
            identities += self.ask(4, 1)[0]
        more, ways = self.ask(20, 4)
        self.assertEqual(set(ways), {"handoff"})
        self.assert_once(identities + more)

    def test_clients_in_flight_beside_it_are_served_once(self):
        self.start()
        identities = []
        while self.found() < 2:
            identities += self.ask(100, 20)[0]
        self.assert_once(identities)

    def test_clients_that_the_backend_has_not_adopted_are_served_by_the_fallback(self):
        self.start()
        self.backend.hold()
        identities = [new_identity() for _ in range(20)]

        async def all_of_them():
            asked = asyncio.gather(*map(self.one, identities))
            await asyncio.to_thread(wait_until, self.found, "an offer meets the bug")
            await asyncio.to_thread(self.backend.release)
            return await asked

        # Those of one worker that were offered so far.
        self.assertGreaterEqual(drive(all_of_them()).count("unix"), 3)
        self.assert_once(identities)


class LaterBug(Bug):
    """The same with a bug that dispatch meets from then on."""
    bug = ("BUG=dispatch",)


class Lack(Case):
    """Of connections or descriptors, for the brokers themselves."""
    NO_BROKER = r"\[alert\] .* no broker for \"([^\"]+)\": "

    def server(self, count, more=""):
        return "server {{ listen 127.0.0.1:{port};" + more + """
            location = /nginx {{ return 200 "nginx"; }}
            location @fallback {{ return 200 "nginx"; }} """ + "".join(f"""
            location /t{n}/ {{{{ handoff_pass unix:{{directory}}/t{n}.sock;
                error_page 502 504 = @fallback; }}}}""" for n in range(count)) + "}}"

    def way(self, data):
        async def one():
            return await (await Connection.open(self.port)).ask(data)

        answer = drive(one())
        self.assertEqual(answer.status, 200)
        return answer.headers.get("x-served-by", "nginx")

    def test_reload_with_too_few_connections_changes_nothing(self):
        self.start_nginx(self.server(3), connections=64)
        before = self.nginx.workers()
        self.parts["http"] = self.server(64).format(port=self.port, directory=self.directory)
        Nginx.configure(self.directory, **self.parts)
        self.nginx.signal(signal.SIGHUP)
        self.expected.append(r"\[emerg\] .* 64 worker_connections are not enough for 1 listening")
        wait_until(self.nginx.log, "nginx has read its configuration")
        self.assertEqual(self.get("/nginx"), b"nginx")
        self.assertEqual(self.nginx.workers(), before)

    def test_broker_that_would_take_the_last_connection_is_not_made(self):
        """Nor one for which there is none at all, but only the second is an alert of nginx, too."""
        self.expected += [self.NO_BROKER + "there are not enough worker_connections",
                          r"\[alert\] .* worker_connections are not enough",
                          r"\[warn\] .* handoff to \"u\" failed: there is no broker"]
        for connections in 4, 5:
            with self.subTest(connections=connections):
                self.start_backend()
                self.start_nginx("upstream u {{ server unix:{directory}/handoff.sock; }}"
                                 + self.server(1, """ location /r/ {{ handoff_pass $arg_to;
                                     error_page 502 504 = @fallback; }} """),
                                 connections=connections)
                self.assertEqual(self.way(request("a", argument="?to=u")), "nginx")
                self.assertEqual(sum(re.search(self.NO_BROKER, line) is not None
                                     for line in self.nginx.log()), 1)
                self.stop_all()

    def test_broker_that_could_not_be_made_is_tried_again(self):
        self.expected += [self.NO_BROKER, self.FALLBACK + "there is no broker"]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
        try:
            self.start_nginx(self.server(30), descriptors="", connections=40)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        def without():
            return [found[1] for found in (re.search(self.NO_BROKER, line)
                                           for line in self.nginx.log()) if found]

        # In this order they were tried, so there are no descriptors for the last in either worker.
        last = "unix:" + self.directory + "/t29.sock"
        wait_until(lambda: without().count(last) == 2, "both workers lack descriptors")
        self.start_backend(sockets=("t29.sock", "echo.sock"))
        for worker in self.nginx.workers():
            resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))
        wait_until(lambda: self.way(request("a", what="t29")) == "handoff", "it is handed over")


if __name__ == "__main__":
    unittest.main()
