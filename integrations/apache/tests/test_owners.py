"""Backends that are late, stopped or killed, and Apache that is restarted, while clients wait: whoever
has the claim serves each client, once."""

import asyncio
import collections
import os
import signal
import unittest

from apache import ApacheCase, for_each_mpm, number, wait_until
from client import Connection, drive, gather, new_identity, request

LATE = number("LATE", 1000)
KILLS = number("KILLS", 5)
PENDING = 30  # of 50 workers


async def ask(test, identity):
    """Begins a connection and asks; gives what reads the answer and tells the way."""
    connection = await Connection.open(test.port)
    await connection.send(request(identity, close=True))

    async def read():
        answer = await connection.read_answer()
        test.assertEqual((answer.status, answer.headers["x-id"]), (200, identity))
        await connection.read_end()
        connection.close()
        return answer.headers["x-served-by"]

    return read


class Late(ApacheCase):
    """The backend decides around the moment at which Apache stops waiting."""

    def test_none_is_answered_twice_when_the_backend_is_about_too_late(self):
        self.expected.append(self.FALLBACK)
        timeout, often = 30, False
        # Both must happen, and often: otherwise nothing is tested. A slow machine takes longer.
        while not often:
            self.assertLess(timeout, 2000)
            often = self.run_late(timeout)
            timeout *= 2

    def run_late(self, timeout):
        self.start("-d", f"0-{2 * timeout}",
                   more=f"HandoffTimeout {timeout}ms\nHandoffMaxFails 0\n")
        identities = []

        async def one(_):
            identity = new_identity()
            identities.append(identity)
            return await (await ask(self, identity))()

        ways = collections.Counter(drive(gather(LATE, 45, one)))
        self.assertEqual(ways, self.assert_once(identities))
        self.stop_all()
        return min(ways["handoff"], ways["unix"]) > LATE // 10


class Pending(ApacheCase):
    """So many offers wait when something happens."""

    def begin(self, more=""):
        self.expected.append(self.FALLBACK)
        self.start("-n", more=f"HandoffMaxFails 0\n{more}\n")

    def pend(self, happen, ways):
        """Asks, waits until all are pending, lets it happen, and reads the answers; each must have
        come one of these ways. Gives what `happen` gave."""
        identities = [new_identity() for _ in range(PENDING)]

        async def all_of_it():
            async def begin(index):
                return await ask(self, identities[index])

            readers = await gather(PENDING, PENDING, begin)
            await asyncio.to_thread(
                wait_until, lambda: self.backend.statistics()["arrived"] == PENDING, "all arrived")
            happened = await asyncio.to_thread(happen)

            async def read(index):
                return await readers[index]()

            return await gather(PENDING, PENDING, read), happened

        found, happened = drive(all_of_it())
        self.assertLessEqual(set(found), set(ways))
        self.assert_once(identities)
        return happened

    def wait_for_end_of(self, children):
        wait_until(lambda: not children & self.apache.workers(), "the old children end")

    def test_release(self):
        self.begin()
        self.pend(self.backend.release, ["handoff"])

    def test_timeout(self):
        self.begin("HandoffTimeout 500ms")
        self.pend(lambda: None, ["unix"])

    def test_graceful_restart_then_release(self):
        self.begin()

        def happen():
            old = self.graceful()
            self.assertEqual(self.backend.statistics()["held"], PENDING)
            self.backend.release()
            self.wait_for_end_of(old)

        self.pend(happen, ["handoff"])

    def test_graceful_restart_then_timeout(self):
        self.begin("HandoffTimeout 1s")
        self.wait_for_end_of(self.pend(self.graceful, ["unix"]))

    def test_graceful_stop_then_release(self):
        self.begin()

        def happen():
            self.apache.signal(signal.SIGWINCH)
            self.backend.release()
            self.assertEqual(self.apache.wait(), 0)

        self.pend(happen, ["handoff"])

    def test_backend_is_killed(self):
        self.begin()
        self.pend(self.backend.kill, ["unix"])

    def test_backend_drains(self):
        """What it holds goes back."""
        self.begin()
        self.pend(lambda: self.backend.signal(signal.SIGTERM), ["unix"])

    def test_stopped_backend_gets_nobody_after_it_goes_on(self):
        self.begin("HandoffTimeout 500ms")

        def happen():
            self.backend.signal(signal.SIGSTOP)

        self.pend(happen, ["unix"])
        self.backend.signal(signal.SIGCONT)
        self.backend.release()
        wait_until(lambda: self.backend.statistics()["held"] == 0, "it has seen that they are gone")
        self.assertEqual(self.backend.statistics()["adopted"], 0)

    def test_apache_is_stopped_at_once_then_release(self):
        """What the backend has received it can adopt, and serve."""
        self.begin()

        def happen():
            children = self.apache.workers()
            self.apache.process.kill()
            for child in children:
                os.kill(child, signal.SIGKILL)
            self.apache.wait()
            self.backend.release()

        self.pend(happen, ["handoff"])

    def test_stop_in_the_middle_of_offers(self):
        """Who waits then may be lost, as with any request. None is served twice, and Apache ends."""
        self.begin("HandoffTimeout 3s")
        identities = [new_identity() for _ in range(PENDING)]

        async def all_of_it():
            for identity in identities:
                await ask(self, identity)
            await asyncio.to_thread(
                wait_until, lambda: self.backend.statistics()["arrived"] == PENDING, "all arrived")
            await asyncio.to_thread(self.stop_apache)
            await asyncio.to_thread(self.backend.release)

        drive(all_of_it())
        self.assertLessEqual(set(self.answered().values()), {1})


class Restarts(ApacheCase):
    """Clients go on all the time."""

    def ask_meanwhile(self, happen):
        """Asks over and over until `happen` is done. Each must be answered, once."""
        identities, done = [], False

        async def client(_):
            while not done:
                identity = new_identity()
                identities.append(identity)
                await (await ask(self, identity))()

        async def all_of_it():
            nonlocal done
            clients = asyncio.ensure_future(gather(20, 20, client))
            await asyncio.to_thread(happen)
            done = True
            await clients

        drive(all_of_it())
        return self.assert_once(identities)

    def test_graceful_restarts(self):
        self.expected.append(self.FALLBACK)
        self.start()

        def happen():
            for _ in range(KILLS):
                self.graceful()

        ways = self.ask_meanwhile(happen)
        self.assertGreater(ways["handoff"], 0)
        wait_until(lambda: self.backend.statistics()["clients"] == 1, "no client is left")

    def test_backend_is_killed_and_restarted(self):
        """Killed when it holds what it has: what it has adopted and not answered would be lost."""
        self.expected.append(self.FALLBACK)
        self.start(more="HandoffMaxFails 0\nHandoffTimeout 1h\n")

        def happen():
            for _ in range(KILLS):
                self.backend.hold()
                wait_until(lambda: self.backend.statistics()["held"] >= 15, "it holds some")
                wait_until(lambda: self.backend.statistics()["clients"] == 1, "and serves none")
                self.backend.kill()
                self.backend = self.start_backend()
                wait_until(lambda: self.backend.statistics()["adopted"] > 50, "it gets clients")

        ways = self.ask_meanwhile(happen)
        self.assertGreater(ways["handoff"], 50 * KILLS)
        self.assertGreaterEqual(ways["unix"], 15 * KILLS)


for_each_mpm(globals(), Late, Pending, Restarts)

if __name__ == "__main__":
    unittest.main()
