"""Offers that wait for room in a handoff_queue, and what ends the wait."""

import asyncio
import signal
import socket
import struct
import time
import unittest

from client import Connection, drive, gather, new_identity, request
from harness import number, wait_until
from test_backends import ANY, Fleet, Http, Stream

LIMIT = 8  # offers in flight of a worker; there are two
BURST = number("BURST", 3 * 2 * LIMIT)


class Queue:
    def begin(self, *options, queue="handoff_queue 1000 timeout=1h;", **more):
        self.start_fleet({"a": ""}, *options, **more, server=(
            f"handoff_max_in_flight {LIMIT}; handoff_max_fails 0; {queue}"))

    def waiting(self):
        return self.status()["targets"][0]["waiting"]

    def total(self):
        return self.status()["targets"][0]

    def all_wait(self, count):
        """Until so many have come, and each that is not in flight waits."""
        def settled():
            total = self.total()
            return total["in_flight"] + total["waiting"] == count and total

        return wait_until(settled, f"{count} wait or are in flight")

    async def ask_some(self, count):
        """Begins so many; gives what reads their answers."""
        self.asked = getattr(self, "asked", [])
        identities = [new_identity() for _ in range(count)]
        self.asked += identities

        async def ask(index):
            return await self.ask(self, identities[index])

        return await gather(count, count, ask)

    @staticmethod
    async def read_all(readers):
        async def read(index):
            return await readers[index]()

        return await gather(len(readers), len(readers), read)

    def pend(self, count, happen):
        """Asks so many times; when all wait or are in flight, lets it happen; gives the ways."""
        async def all_of_it():
            readers = await self.ask_some(count)
            await asyncio.to_thread(self.all_wait, count)
            await asyncio.to_thread(happen)
            return await self.read_all(readers)

        ways = drive(all_of_it())
        self.assert_once(self.asked)
        return {way: ways.count(way) for way in set(ways)}

    def test_burst_of_three_times_the_limit_falls_back_for_nobody(self):
        self.begin("-n")
        self.assertEqual(self.pend(BURST, self.fleet["a"].release), {"handoff": BURST})
        wait_until(lambda: self.waiting() == 0, "nobody waits")
        self.assertGreaterEqual(self.total()["queued"], BURST - 2 * LIMIT)

    def test_clients_that_keep_coming_fall_back_for_nobody(self):
        self.begin("-d", "1-20")
        ways, _ = self.ask_all(BURST * 4, BURST)
        self.assertEqual(ways, {"handoff": BURST * 4})
        self.assertGreater(self.total()["queued"], 0)

    def test_burst_without_a_queue_falls_back_for_some(self):
        self.expected.append(ANY + ".*the limit of offers in flight is reached")
        self.begin("-n", queue="")
        ways = self.pend_in_flight(lambda total: total["queued"] == 0)
        self.assertGreaterEqual(ways.count(self.proxied), BURST - 2 * LIMIT)
        self.assertEqual(set(ways), {"handoff", self.proxied})

    def pend_in_flight(self, condition):
        """Asks as often as a burst has clients; when only those in flight are not decided, and this
        holds, they are adopted. Gives the ways."""
        def decided():
            total = self.total()
            return total["offers"] + total["in_flight"] == BURST and condition(total)

        async def all_of_it():
            reading = asyncio.create_task(self.read_all(await self.ask_some(BURST)))
            await asyncio.to_thread(wait_until, decided, "all others have their answers")
            await asyncio.to_thread(self.fleet["a"].release)
            return await reading

        ways = drive(all_of_it())
        self.assert_once(self.asked)
        return ways

    def test_more_than_the_queue_takes_fall_back(self):
        self.expected.append(ANY + "the queue is full")
        self.begin("-n", queue="handoff_queue 2 timeout=1h;")

        async def all_of_it():
            readers = await self.ask_some(BURST)
            full = 2 * LIMIT + 4
            reading = asyncio.create_task(self.read_all(readers))
            # Each worker has its own limits, and may have had fewer than that.
            await asyncio.to_thread(wait_until, lambda: self.total()["offers"] >= BURST - full,
                                    "the others have their answer")
            await asyncio.to_thread(wait_until, self.total_is_stable, "nothing happens")
            self.assertLessEqual(self.total()["waiting"], 4)
            self.fleet["a"].release()
            return await reading

        ways = drive(all_of_it())
        self.assert_once(self.asked)
        self.assertGreaterEqual(ways.count(self.proxied), BURST - 2 * LIMIT - 4)
        self.assertEqual(set(ways), {"handoff", self.proxied})

    def total_is_stable(self):
        def counts():
            return [value for value in self.total().values() if isinstance(value, int)]

        first = counts()
        time.sleep(0.3)
        return first == counts()

    def test_wait_ends_with_its_time(self):
        self.expected.append(ANY + "no backend had room in time")
        self.begin("-n", queue="handoff_queue 1000 timeout=1s;")
        begun = time.monotonic()
        ways = self.pend_in_flight(lambda total: total["waiting"] == 0)
        self.assertGreater(time.monotonic() - begun, 1)
        self.assertGreaterEqual(ways.count(self.proxied), BURST - 2 * LIMIT)
        self.assertEqual(set(ways), {"handoff", self.proxied})

    def test_client_that_goes_away_leaves_the_queue(self):
        self.begin("-n")

        async def all_of_it():
            readers = await self.ask_some(2 * LIMIT)
            await asyncio.to_thread(self.all_wait, 2 * LIMIT)
            self.assertGreaterEqual(await self.go_away_in_the_queue(), 1)
            await asyncio.to_thread(self.fleet["a"].release)
            return await self.read_all(readers)

        self.assertEqual(set(drive(all_of_it())), {"handoff"})
        answered = self.answered()
        self.assertEqual([answered["handoff", identity] for identity in self.asked],
                         [1] * len(self.asked))

    async def go_away_in_the_queue(self):
        """Ends so many clients that wait."""
        before = self.waiting()
        connections = [await self.open_and_ask() for _ in range(3 * LIMIT)]
        total = await asyncio.to_thread(self.all_wait, 5 * LIMIT)
        self.assertGreater(total["waiting"], before)
        for connection in connections:
            connection.abort()
        # Those in flight are not watched; those that wait are.
        await asyncio.to_thread(wait_until, lambda: self.waiting() <= before,
                                "those who went away do not wait any more")
        gone = total["waiting"] - before
        await asyncio.to_thread(wait_until, lambda: self.total()["gone"] >= gone, "it is counted")
        return gone

    def test_reload_empties_the_queue_by_fallback(self):
        self.expected.append(ANY + "nginx is shutting down")
        self.begin("-n")

        def happen():
            self.nginx.reload()
            self.wait_for_shutdown()

        ways = self.pend(BURST, happen)
        self.assertGreaterEqual(ways[self.proxied], BURST - 2 * LIMIT)
        self.assertLessEqual(ways["handoff"], 2 * LIMIT)

    def test_quit_empties_the_queue_by_fallback(self):
        self.expected.append(ANY + "nginx is shutting down")
        self.begin("-n")

        def happen():
            self.nginx.signal(signal.SIGQUIT)
            self.wait_for_shutdown()

        self.assertGreaterEqual(self.pend(BURST, happen)[self.proxied], BURST - 2 * LIMIT)
        self.assertEqual(self.nginx.wait(), 0)

    def wait_for_shutdown(self):
        """Until nobody waits any more; then what is in flight is decided."""
        wait_until(lambda: sum("nginx is shutting down" in line for line in self.nginx.log())
                   >= BURST - 2 * LIMIT, "the queues are empty")
        self.fleet["a"].release()

    def test_worker_that_is_killed_leaves_nobody_waiting(self):
        self.begin("-n")
        self.expected.append(r"\[alert\] .*worker process \d+ exited on signal 9")

        async def all_of_it():
            await self.ask_some(BURST)
            await asyncio.to_thread(self.all_wait, BURST)
            await asyncio.to_thread(lambda: self.nginx.wait_for_end_of(self.nginx.kill_workers()))
            await asyncio.to_thread(
                wait_until, lambda: (self.total()["waiting"], self.total()["in_flight"]) == (0, 0),
                "what they had is not counted")

        drive(all_of_it())

    def test_queue_is_of_no_use_when_the_backend_has_gone(self):
        self.expected.append(ANY)
        self.begin("-n")
        self.assertEqual(self.pend(BURST, self.fleet["a"].kill), {self.proxied: BURST})

    def test_queue_waits_for_any_of_several_backends(self):
        self.start_one("b", "-n")
        self.start_fleet({"a": ""}, "-n", upstreams=self.upstream({"a": "", "b": ""}), server=(
            f"handoff_max_in_flight {LIMIT}; handoff_queue 1000 timeout=1h;"
            "handoff_attempt_timeout 59m;"))
        self.wait_for("b")
        count = 2 * BURST

        def happen():
            self.fleet["b"].release()
            wait_until(lambda: self.waiting() == 0, "b takes those that wait")
            self.fleet["a"].release()

        self.assertEqual(self.pend(count, happen), {"handoff": count})


class HttpQueue(Http, Queue, Fleet):
    async def open_and_ask(self):
        """Its connection is reset when it goes away. Behind the request is what nginx does not read."""
        connection = await Connection.open(self.port)
        connection.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await connection.send(request(new_identity(), method="POST", body=b"body"))
        return connection

    def test_client_that_has_sent_its_last_byte_is_served(self):
        """It may wait for an answer, and nobody can tell it from one that has closed its socket."""
        self.begin("-n")

        async def all_of_it():
            connections = [await self.open_and_ask() for _ in range(BURST)]
            for connection in connections:
                connection.writer.write_eof()
            await asyncio.to_thread(self.all_wait, BURST)
            await asyncio.to_thread(self.fleet["a"].release)
            return {(await connection.read_answer()).headers["x-served-by"]
                    for connection in connections}

        self.assertEqual(drive(all_of_it()), {"handoff"})
        self.assertEqual(self.total()["gone"], 0)

    def test_client_that_goes_away_is_logged(self):
        self.begin("-n")

        async def all_of_it():
            readers = await self.ask_some(2 * LIMIT)
            await asyncio.to_thread(self.all_wait, 2 * LIMIT)
            await self.go_away_in_the_queue()
            # A worker may have more than it holds in flight: all are served before nginx ends.
            await asyncio.to_thread(self.fleet["a"].release)
            return await self.read_all(readers)

        self.assertEqual(set(drive(all_of_it())), {"handoff"})
        wait_until(lambda: any(" 499 outcome=fallback reason=client gone" in line
                               for line in self.nginx.access()), "a line in the access log")

    def ask_for(self, *headers):
        async def ask(_):
            connection = await Connection.open(self.port)
            await connection.send(request(new_identity(), headers=headers, close=True))

            async def way():
                return (await connection.read_answer()).headers["x-served-by"]
            return way

        return ask

    def begin_with_two(self):
        """The backend a takes large ones, too, and decides nothing; b takes small ones only."""
        self.start_one("b", "-m", "1000")
        self.start_fleet({"a": ""}, "-n", upstreams=self.upstream({"a": "backup", "b": ""}), server=(
            f"handoff_max_in_flight {LIMIT}; handoff_queue {2 * BURST} timeout=1h;"
            "handoff_attempt_timeout 59m;"))
        self.wait_for("b")

    async def ask_large(self):
        readers = await gather(BURST, BURST, self.ask_for("X-Large: " + 2000 * "x"))
        return readers, await asyncio.to_thread(self.all_wait, BURST)

    def test_those_that_only_a_full_backend_takes_hold_up_no_other(self):
        self.begin_with_two()
        ask_small = self.ask_for()

        async def ask_and_read(index):
            return await (await ask_small(index))()

        async def all_of_it():
            large, total = await self.ask_large()
            # So few at once that b has room for each.
            small = await gather(BURST, LIMIT // 2, ask_and_read)
            for name in "waiting", "queued":
                self.assertEqual(self.total()[name], total[name])
            await asyncio.to_thread(self.fleet["a"].release)
            return small, await self.read_all(large)

        self.assertEqual(drive(all_of_it()), (BURST * ["handoff"], BURST * ["handoff"]))

    def test_those_that_no_backend_takes_any_more_fall_back_at_once(self):
        self.expected.append(ANY)
        self.begin_with_two()

        async def all_of_it():
            large, _ = await self.ask_large()
            await asyncio.to_thread(self.fleet["a"].kill)
            killed = time.monotonic()
            return await self.read_all(large), time.monotonic() - killed

        ways, took = drive(all_of_it())
        self.assertEqual(ways, BURST * [self.proxied])
        # And not one at each attempt to connect to a.
        self.assertLess(took, 5)


class StreamQueue(Stream, Queue, Fleet):
    async def open_and_ask(self):
        return await Connection.open(self.stream_port)


if __name__ == "__main__":
    unittest.main()
