"""Heads and bodies in records of every size, cut and joined in every way: whatever nginx and OpenSSL
have read of them when a connection changes hands, each byte comes once and in order."""

import itertools
import random
import unittest

from client import digest
from harness import NO_LIMIT
from tls import FULL, KERNEL_DECRYPTS, SECRET, VERSIONS, TlsCase, ask, new_identity

BODY = random.Random(1).randbytes(1 << 17)

RECORD = 16384  # the most that a record holds
BUFFER = 1024  # of nginx's for a head, until it proves too small


def with_head_of(size, identity, body=None):
    """A request whose head has so many bytes."""
    def make(padding):
        lines = [padding[i:i + 2000] for i in range(0, len(padding), 2000)]
        return ask(identity, method="GET" if body is None else "POST", body=body,
                   headers=[f"X-Padding: {line}" for line in lines])

    rest = size
    # Each line of the padding adds what is around it.
    while (found := len(make("x" * rest)) - len(body or b"")) != size:
        rest -= found - size
    return make("x" * rest)


def with_body_to(size, identity):
    """A request that has so many bytes in all, and its body."""
    for padding in "", "x":  # where a length gets a digit more, a size is left out
        length = size
        for _ in range(8):
            body = BODY[:length]
            data = ask(identity, method="POST", body=body, headers=[f"X-Padding: {padding}"])
            if len(data) == size:
                return data, body
            length -= len(data) - size
    raise AssertionError(f"no request has {size} bytes")


class Case:
    """A request, in pieces that are sent one after another: each is what goes in one write, and is
    read before the next one is sent."""

    def __init__(self, name, make, partial=False):
        self.name, self.make = name, make
        self.partial = partial  # when nginx has the head, it also has a part of the next record


def whole(size):
    def make(client, identity):
        data, body = with_body_to(size, identity)
        return [client.seal(data)], body

    return Case(f"{size} bytes in all", make)


def head_of(size):
    def make(client, identity):
        data = with_head_of(size, identity)
        return [client.seal(data)], b""

    return Case(f"a head of {size} bytes", make)


def head_and_body(head, length):
    def make(client, identity):
        data = with_head_of(head, identity, BODY[:length])
        return [client.seal(data)], BODY[:length]

    return Case(f"a head of {head} bytes with a body of {length} bytes", make)


def cut(size, at):
    """One record in two pieces."""
    def make(client, identity):
        data, body = with_body_to(size, identity)
        records = client.seal(data)
        return [records[:at], records[at:]], body

    return Case(f"{size} bytes, cut at {at}", make)


def body_behind(length, beside, partial=False):
    """The head in a record of its own, with `beside` bytes of what the body becomes."""
    def make(client, identity):
        data = ask(identity, method="POST", body=BODY[:length])
        head = client.seal(data[:-length])
        body = client.seal(data[-length:])
        return [piece for piece in (head + body[:beside], body[beside:]) if piece], BODY[:length]

    return Case(f"{beside} bytes beside the head of a body of {length}", make, partial)


def single_bytes(together):
    """Each byte in a record of its own."""
    def make(client, identity):
        data = ask(identity, method="POST", body=BODY[:20])
        records = [client.seal(data[i:i + 1]) for i in range(len(data))]
        step = len(records) if together else len(records) // 4
        return [b"".join(records[i:i + step]) for i in range(0, len(records), step)], BODY[:20]

    return Case(f"records of one byte, {'' if together else 'not '}together", make)


def empty_records():
    """OpenSSL makes none; so the smallest ones around a head and a body."""
    def make(client, identity):
        data = ask(identity, method="POST", body=BODY[:3000])
        parts = [data[:1], data[1:-3000], data[-3000:-2999], data[-2999:-1], data[-1:]]
        return [b"".join(map(client.seal, parts))], BODY[:3000]

    return Case("one byte, the head, one byte, the body, one byte", make)


CASES = [
    *map(whole, (BUFFER - 1, BUFFER, BUFFER + 1, 2 * BUFFER, 5000, 8192, 10000, 15000, RECORD - 1,
                 RECORD, RECORD + 1, 2 * RECORD, 40000)),
    *map(head_of, (BUFFER - 1, BUFFER, BUFFER + 1, 5000, 20000)),
    *(head_and_body(BUFFER + i, 15000) for i in (-1, 0, 1)),
    head_and_body(5000, RECORD - 5000),
    *(cut(5000, at) for at in (1, 5, 6, 2500, -17, -16, -1)),
    body_behind(1, 0), body_behind(1, 1 << 20), body_behind(RECORD, 1 << 20),
    body_behind(RECORD, 1, True), body_behind(RECORD, 5, True), body_behind(RECORD, 9000, True),
    body_behind(RECORD, -1, True), body_behind(100000, 20000, True), body_behind(3, 10, True),
    single_bytes(True), single_bytes(False), empty_records(),
]
if FULL:
    CASES += [
        *map(whole, [*range(BUFFER - 40, BUFFER + 40, 7), *range(RECORD - 40, RECORD + 40, 7),
                     *range(5000, 15000, 499), *range(2 * RECORD - 20, 2 * RECORD + 20, 7)]),
        *map(head_of, range(BUFFER - 20, BUFFER + 20)),
        *(cut(size, at) for size in (BUFFER, RECORD) for at in range(-18, 14)),
        *(body_behind(RECORD, beside, True) for beside in range(1, RECORD, 1999)),
    ]

class Records(TlsCase):
    def check(self, client, case, way):
        identity = new_identity()
        pieces, body = case.make(client, identity)
        for piece in pieces[:-1]:
            client.push(piece)
            self.settle()
        client.push(pieces[-1])
        answer = client.read_answer()
        self.assertEqual((answer.status, answer.headers["x-id"]), (200, identity))
        self.assertEqual(answer.headers["x-body"], digest(body))
        self.assertEqual(answer.headers["x-served-by"], way)
        return identity

    def for_each(self, check):
        for index, case in enumerate(CASES):
            # Each with each; or, where time is short, every second with every second.
            for version in VERSIONS if FULL or case.partial else [list(VERSIONS)[index % 2]]:
                with self.subTest(version, case=case.name):
                    check(version, case)

    def test_handed_over(self):
        def check(version, case):
            # Only the kernel can have a part of a record when a connection changes hands.
            by_nginx = case.partial and version == "1.3" and not KERNEL_DECRYPTS
            with self.client(version) as client:
                before = len(self.reasons())
                self.check(client, case, "unix" if by_nginx else "handoff")
                self.assertEqual(self.reasons()[before:],
                                 ["a part of a record is in OpenSSL"] * by_nginx)
                # And what comes then.
                self.check(client, CASES[5], "handoff")

        self.expected.append(self.IN_A_FILE)
        self.start()
        self.for_each(check)

    def test_refused(self):
        """One connection for all: nothing of the offers is left behind."""
        def check(version, case):
            self.check(clients[version], case, "unix")

        self.expect_fallbacks()
        self.start("-r", 1, server=NO_LIMIT + " keepalive_requests 100000;")
        clients = {version: self.client(version) for version in VERSIONS}
        self.for_each(check)


# Of a pipeline: n is for nginx, o to be handed over, B the same with a body.
KINDS = ("no", "on", "nnoo", "oBo", "noBBn")
kinds_in_turn = itertools.cycle(KINDS)


class Pipelines(TlsCase):
    """Requests behind each other, of which nginx answers some itself."""

    SPLITS = ("one record", "records together", "one by one", "a record across two", "small records")

    def pieces(self, client, requests, split):
        if split == "one record":
            return [client.seal(b"".join(requests))]
        if split == "records together":
            return [b"".join(map(client.seal, requests))]
        if split == "one by one":
            return [client.seal(request) for request in requests]
        data = b"".join(requests)
        if split == "a record across two":
            at = len(requests[0]) + 30
            return [client.seal(data[:at]) + client.seal(data[at:])]
        return [b"".join(client.seal(data[i:i + 97]) for i in range(0, len(data), 97))]

    def run_all(self, way):
        own = b"GET /nginx?id=%b HTTP/1.1\r\nHost: a.test\r\nX: " + SECRET.encode() + b"\r\n\r\n"
        for version in VERSIONS:
            for split in self.SPLITS:
                for kinds in KINDS if FULL else [next(kinds_in_turn)]:
                    with self.subTest(version, split=split, kinds=kinds), \
                            self.client(version) as client:
                        requests, expected = [], []
                        for kind in kinds:
                            identity = new_identity()
                            body = BODY[:4000] if kind == "B" else None
                            # What comes behind a handoff the backend gets.
                            mine = kind == "n" and (way == "unix" or not expected or
                                                    expected[-1][0] == "nginx")
                            if kind == "n":
                                requests.append(own % identity.encode() if mine else ask(identity))
                            else:
                                requests.append(ask(identity, body=body,
                                                    method="POST" if body else "GET"))
                            expected.append(("nginx" if mine else way, identity, body or b""))
                        for piece in self.pieces(client, requests, split):
                            client.push(piece)
                        for how, identity, body in expected:
                            answer = client.read_answer()
                            if how == "nginx":
                                self.assertEqual(answer.body.decode(), f"nginx {identity}")
                            else:
                                self.assertEqual(
                                    (answer.headers["x-served-by"], answer.headers["x-id"],
                                     answer.headers["x-body"]), (how, identity, digest(body)))

    def test_handed_over(self):
        self.start()
        self.run_all("handoff")

    def test_refused(self):
        self.expect_fallbacks()
        self.start("-r", 1, server=NO_LIMIT)
        self.run_all("unix")


if __name__ == "__main__":
    unittest.main()
