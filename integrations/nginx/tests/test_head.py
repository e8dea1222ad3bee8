"""The backend gets the request's head as the client sent it, byte for byte."""

import random
import re
import unittest

from client import Connection, new_identity, run
from harness import HANDED_OVER, Case, number

SWEEP = number("SWEEP", 1500)

# Lines that nginx's parser takes, and a few that it marks as invalid and goes on.
ODD = [
    "Odd-No-Space:value",
    "Odd-Spaces:     value",
    "Odd-Trailing: value   ",
    "Odd-Trailing-One: value ",
    "Odd-Trailing-Tab: value\t",
    "Odd-Tab:\tvalue",
    "Odd-Empty:",
    "Odd-Empty-Space: ",
    "Odd-Inside: a  b\tc : d",
    "Odd_Underscore: value",
    "odd-lower: value",
    "ODD-UPPER: VALUE",
    "Odd.Dot: value",
    "Odd@Sign: value",
    "Odd-High: \xe4\xf6\xff",
    "Odd-Twice: 1",
    "Odd-Twice: 2",
    "Odd-Without-Colon",
    "Accept-Encoding: gzip, , br",
    "Cookie: a=b; c=d",
    "Cookie: e=f",
    "X-Forwarded-For: 1.2.3.4",
    "Referer: http://a/b?c=d#e",
    "Range: bytes=0-",
    "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
    "Upgrade: something",
    "TE: trailers",
]


class Head(Case):
    """With small buffers, so that heads fill several."""
    first, large, count = 512, 2048, 8

    def setUp(self):
        super().setUp()
        self.start("-m", 131000, http=HANDED_OVER,
                   server=f"client_header_buffer_size {self.first}; "
                          f"large_client_header_buffers {self.count} {self.large};")

    async def ask(self, head, before=b"", pieces=None, alike=bytes):
        """Sends a head for /head, with others before it, and compares what the backend saw."""
        connection = await Connection.open(self.port)
        if pieces:
            await connection.send_in_pieces(before + head, pieces, 0.001)
        else:
            await connection.send(before + head)
        for _ in range(before.count(b"/nginx")):
            self.assertEqual((await connection.read_answer()).body, b"nginx ")
        answer = await connection.read_answer()
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["x-served-by"], "handoff")
        self.assertEqual(alike(answer.body), alike(head))
        connection.close()

    @staticmethod
    def head(lines, target=None, end="\r\n", version="1.1"):
        target = target or f"/head/{new_identity()}"
        first = f"GET {target} HTTP/{version}"
        return end.join([first, "Host: test", *lines, "", ""]).encode("latin-1")

    def test_each_odd_line(self):
        async def one(index):
            await self.ask(self.head([ODD[index]]))

        run(len(ODD), 8, one)

    def test_all_odd_lines_in_every_order(self):
        async def one(index):
            lines = ODD[:]
            random.Random(index).shuffle(lines)
            await self.ask(self.head(lines), pieces=random.Random(index).choice([None, 50, 333]))

        run(200, 16, one)

    def test_lines_that_end_without_carriage_return(self):
        async def one(index):
            await self.ask(self.head(ODD[index:index + 3], end="\n"))

        run(len(ODD), 8, one)

    @staticmethod
    def random_head(random_, ends):
        name, value = "abcXYZ019-._@", "aZ09 \t:,;=()<>/?\"'\\\xe4\xff-_."
        lines = [f"GET /head/{new_identity()} HTTP/1.1", "Host: test"]
        for _ in range(random_.randrange(12)):
            line = "".join(random_.choices(name, k=random_.randrange(1, 20)))
            if random_.random() < 0.95:
                line += ":" + " " * random_.randrange(3)
                line += "".join(random_.choices(value, k=random_.randrange(40))).strip()
                line += " " * random_.choice([0, 0, 0, 1, 2, 3])
            lines.append(line)
        return "".join(line + random_.choice(ends) for line in [*lines, ""]).encode("latin-1")

    def test_random_heads(self):
        async def one(index):
            random_ = random.Random(index)
            head = self.random_head(random_, random_.choice([["\r\n"], ["\n"]]))
            await self.ask(head, pieces=random_.choice([None, None, 5, 100]))

        run(SWEEP, 32, one)

    def test_random_heads_in_which_both_line_ends_occur(self):
        # Then a space and a carriage return before a line's end can't be told from one another.
        def alike(head):
            return re.sub(rb"[ \r]+\n", b"\n", head)

        async def one(index):
            await self.ask(self.random_head(random.Random(index), ["\r\n", "\n"]), alike=alike)

        run(SWEEP, 32, one)

    def test_empty_lines_before_the_request(self):
        async def one(index):
            empty = [b"\r\n", b"\n", b"\r\n\r\n", b"\n\n\r\n"][index % 4]
            await self.ask(self.head(ODD[:2]), before=empty, pieces=[None, 1][index // 4])

        run(8, 4, one)

    def test_odd_request_lines(self):
        targets = ["/head/a//b/../c/%41?x=%20&y=\xe4#f", "/head/%2e%2e/./x", "/head/a?b?c//d",
                   "/head/" + "a%20b" * 50, "/head/a?" + "&" * 300]

        async def one(index):
            await self.ask(self.head(ODD[:1], target=targets[index]))

        run(len(targets), 4, one)

    def test_request_line_with_more_than_one_space(self):
        async def one(index):
            identity = new_identity()
            line = [f"GET  /head/{identity} HTTP/1.1", f"GET /head/{identity}  HTTP/1.1",
                    f"GET /head/{identity} HTTP/1.1 "][index]
            connection = await Connection.open(self.port)
            await connection.send(f"{line}\r\nHost: test\r\n\r\n".encode())
            # The backend's own parser may refuse it, but gets it.
            answer = await connection.read_answer()
            self.assertIn((answer.status, answer.headers.get("x-served-by")),
                          [(200, "handoff"), (400, "handoff")])
            connection.close()

        run(3, 1, one)

    def test_version_1_0(self):
        async def one(_):
            await self.ask(self.head(["Connection: keep-alive"], version="1.0"))
            await self.ask(self.head([], version="1.0"))

        run(1, 1, one)

    def test_lines_at_every_boundary_of_every_buffer(self):
        # Each line moves over each boundary byte by byte.
        most = self.large - 60
        sizes = [None, None, None, 100, self.first - 1, self.first, self.first + 1,
                 self.large - 1, self.large, self.large + 1]

        async def one(index):
            random_ = random.Random(index)
            lines = ["A: " + "a" * (index * 7 % most)]
            for i in range(random_.randrange(self.count - 2)):
                lines.append(f"X-{i}:{' ' * random_.randrange(3)}" + "x" * random_.randrange(most))
            await self.ask(self.head(lines), pieces=random_.choice(sizes))

        run(SWEEP, 32, one)

    def test_first_lines_at_every_boundary_of_the_first_buffer(self):
        async def one(index):
            lines = ["A: " + "a" * (self.first - 90 + index), "B: b", "C: " + "c" * self.first]
            await self.ask(self.head(lines), pieces=[None, 64][index % 2])

        run(120, 16, one)

    def test_request_lines_of_every_length_around_each_buffer(self):
        async def one(index):
            length = self.first - 70 + index if index < 120 else self.large - 80 + index - 120
            target = f"/head/{new_identity()}".ljust(length, "a")
            await self.ask(self.head(["Short: 1", "Long: " + "b" * (self.large // 2)], target),
                           pieces=[None, 256, 31][index % 3])

        run(180, 16, one)

    def test_as_many_bytes_as_fit(self):
        async def one(index):
            line = self.large - len("X-0: \r\n") - index
            await self.ask(self.head([f"X-{i}: " + "x" * line for i in range(self.count - 1)]))

        run(20, 4, one)

    def test_requests_behind_others_in_a_buffer(self):
        # Requests that nginx serves fill the buffer, so that this one begins anywhere in it.
        async def one(index):
            random_ = random.Random(index)
            before = b"".join(
                b"GET /nginx HTTP/1.1\r\nHost: test\r\nA: %s\r\n\r\n" %
                (b"a" * random_.randrange(self.first)) for _ in range(random_.randrange(1, 5)))
            lines = [f"X-{i}: " + "x" * random_.randrange(self.large // 2)
                     for i in range(random_.randrange(5))]
            await self.ask(self.head(lines + ODD[:random_.randrange(5)]), before=before,
                           pieces=random_.choice([None, None, 40, 700]))

        run(SWEEP // 3, 16, one)

    def test_requests_behind_large_ones_in_a_buffer(self):
        async def one(index):
            large = b"GET /nginx HTTP/1.1\r\nHost: test\r\nA: %s\r\n\r\n" % (
                b"a" * (self.large // 4 + index % (self.large // 2)))
            await self.ask(self.head(ODD[:3]), before=large * 3)

        run(SWEEP // 3, 16, one)


class HeadInUsualBuffers(Head):
    """With nginx's own sizes."""
    first, large, count = 1024, 8192, 4


if __name__ == "__main__":
    unittest.main()
