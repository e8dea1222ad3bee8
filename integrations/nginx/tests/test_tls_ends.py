"""Clients that end their TLS, change its keys, send what is none, or send half a record, at each
point of a handoff. Whoever has the connection then notices; nothing is taken for data that is not,
and no request is answered twice."""

import os
import unittest

from harness import NO_LIMIT, wait_until
from tls import KERNEL_DECRYPTS, VERSIONS, End, TlsCase, ask, new_identity

# ---- what a client does --------------------------------------------------------------------------


def close_notify(client):
    return client.close_notify()


def new_keys(client):
    """KeyUpdate, or what TLS 1.2 has for it: a handshake, under the keys of the first."""
    return client.key_update() if client.tls.version() == "TLSv1.3" else client.renegotiation()


def garbage(_):
    return b"\xff" + os.urandom(99)


def forged(_):
    """What looks like a record, from somebody who does not have the keys."""
    return b"\x17\x03\x03" + (200).to_bytes(2, "big") + os.urandom(200)


def fin(_):
    """The end of TCP, without one of TLS."""
    return b""


ACTIONS = (close_notify, new_keys, garbage, forged, fin)

# How a backend's handoff_tls_receive() ends.
BACKEND_SEES = {close_notify: {"closed"}, garbage: {"record", "failed"}, forged: {"record"},
                fin: {"cut"}}
KEY_UPDATE = {"1.2": {"record"}, "1.3": {"key_update"}}


class Base(TlsCase):
    options = ()
    way = "handoff"

    def setUp(self):
        super().setUp()
        # Of what clients send that is no TLS.
        self.expect_fallbacks()
        self.expected += [r"\[crit\] .* SSL_(read|write)\(\) failed"]
        self.start("-n", *self.options, server=NO_LIMIT)

    def tearDown(self):
        if not self.failed:
            twice = {identity: count for identity, count in self.answered().items() if count > 1}
            self.assertEqual(twice, {})
        super().tearDown()

    def hold_one(self, client, identity):
        """It is offered, and the backend has not decided."""
        self.backend.hold()
        arrived = self.backend.statistics()["arrived"]
        client.send(ask(identity))
        wait_until(lambda: self.backend.statistics()["arrived"] > arrived, "it has arrived")

    def check_answer(self, client, identity, *ways):
        answer = client.read_answer()
        self.assertEqual(answer.headers["x-id"], identity)
        self.assertIn(answer.headers["x-served-by"], ways)


class Ends(Base):
    # ---- when it does it: gives whose answer may come ----

    def before_the_head_is_whole(self, client, action):
        identity = new_identity()
        client.push(client.seal(ask(identity)[:40]))
        self.settle()
        self.push(client, action)
        return identity

    def behind_the_head(self, client, action):
        identity = new_identity()
        self.push(client, action, client.seal(ask(identity)))
        return identity

    def while_it_is_in_flight(self, client, action):
        identity = new_identity()
        self.hold_one(client, identity)
        self.push(client, action)
        self.settle()
        self.backend.release()
        return identity

    def after_the_answer(self, client, action):
        identity = new_identity()
        client.send(ask(identity))
        self.check_answer(client, identity, self.way)
        self.push(client, action)
        return identity

    POINTS = (before_the_head_is_whole, behind_the_head, while_it_is_in_flight, after_the_answer)

    @staticmethod
    def push(client, action, before=b""):
        """At once: nobody reads the first without the second."""
        client.push(before + action(client))
        if action is fin:
            client.end_sending()

    # ---- what must come of it ----

    def expect(self, version, point, action):
        """The ways by which it may be answered, None if it may not be, and what the backend must
        see: an empty set if it has never had the connection, None if that does not matter."""
        adopts = self.way == "handoff"
        sees = BACKEND_SEES.get(action, KEY_UPDATE[version]) if adopts else set()
        if point is Ends.before_the_head_is_whole:
            return {None}, set()
        if point is Ends.after_the_answer:
            return {None}, sees  # no second one
        if action is garbage:
            # The kernel ends all sending and receiving then.
            return {None}, None if adopts else set()
        if point is Ends.behind_the_head:
            if action is close_notify:
                return {"unix"}, set()  # it is in OpenSSL
            if action is new_keys:
                # The client fails when nginx refuses, whoever has the connection.
                return {None}, None if version == "1.2" else set()
            if action in (forged, fin):
                # nginx reads it with the head, or not; and then it may serve the client, or not.
                return {None, "unix", self.way}, None
        if action is fin and not adopts:
            return {None, "unix"}, set()  # for nginx a client that has gone
        return {self.way}, sees

    def check(self, version, point, action):
        ways, sees = self.expect(version, point, action)
        before = self.backend.statistics()["tls_ends"]
        with self.client(version) as client:
            identity = point(self, client, action)
            answers = 0
            try:
                while True:
                    self.check_answer(client, identity, *ways)
                    answers += 1
            except End:
                pass
            # The answer after which it was done has been read already.
            self.assertLessEqual(answers, 1 if ways != {None} else 0)
            if None not in ways:
                self.assertEqual(answers, 1)
        if sees is not None:
            def seen():
                after = self.backend.statistics()["tls_ends"]
                return {name for name in after if after[name] != before[name]}

            wait_until(lambda: bool(seen()) == bool(sees), "the backend notices")
            self.assertLessEqual(seen(), sees)

    def test_each_end_at_each_point(self):
        for version in VERSIONS:
            for point in self.POINTS:
                for action in ACTIONS:
                    with self.subTest(version, point=point.__name__, action=action.__name__):
                        self.backend.release()
                        if action is new_keys and version == "1.3" and not KERNEL_DECRYPTS and \
                                point in self.POINTS[:2]:
                            self.check_that_openssl_follows(point)
                        else:
                            self.check(version, point, action)

    def check_that_openssl_follows(self, point):
        """It has the old key, makes the new one, and keeps the connection."""
        before = self.backend.statistics()["arrived"]
        with self.client("1.3") as client:
            identity = point(self, client, new_keys)
            if point is Ends.before_the_head_is_whole:
                client.send(ask(identity)[40:])
            self.check_answer(client, identity, "unix")
            for _ in range(2):
                identity = new_identity()
                client.send(ask(identity))
                self.check_answer(client, identity, "unix")
        self.assertEqual(self.backend.statistics()["arrived"], before)
        self.assertRegex(self.reasons()[-1], "its client has changed its key")


class EndsRefused(Ends):
    options = ("-r", 1)
    way = "unix"


class Halves(Base):
    """Half a record: the rest comes later, to whoever has the connection then."""

    def answer(self, client, identity, by_nginx=False):
        self.check_answer(client, identity, "unix" if by_nginx else self.way)

    def test_half_a_record_at_each_point(self):
        for version in VERSIONS:
            by_openssl = version == "1.3" and not KERNEL_DECRYPTS

            with self.subTest(version, point="before the head is whole"), \
                    self.client(version) as client:
                self.backend.release()
                first = new_identity()
                data = ask(first)
                records = client.seal(data[:40]) + client.seal(data[40:])
                client.push(records[:-20])
                self.settle()
                client.push(records[-20:])
                self.answer(client, first)

            with self.subTest(version, point="behind the head"), self.client(version) as client:
                first, second = new_identity(), new_identity()
                records = client.seal(ask(first)) + client.seal(ask(second))
                client.push(records[:-20])
                # If OpenSSL has it, it stays there.
                self.answer(client, first, by_openssl)
                client.push(records[-20:])
                self.answer(client, second)

            with self.subTest(version, point="in flight"), self.client(version) as client:
                first, second = new_identity(), new_identity()
                self.hold_one(client, first)
                records = client.seal(ask(second))
                client.push(records[:20])
                self.settle()
                self.backend.release()
                self.answer(client, first)
                client.push(records[20:])
                self.answer(client, second)

            with self.subTest(version, point="after the answer"), self.client(version) as client:
                first, second = new_identity(), new_identity()
                client.send(ask(first))
                self.answer(client, first)
                records = client.seal(ask(second))
                client.push(records[:20])
                self.settle()
                client.push(records[20:])
                self.answer(client, second)


class HalvesRefused(Halves):
    options = ("-r", 1)
    way = "unix"


if __name__ == "__main__":
    unittest.main()
