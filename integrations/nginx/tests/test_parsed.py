"""What nginx has parsed of a head is what the backend gets, wherever the ends of nginx's buffers are.

nginx asks a recorder about each request (auth_request), and so tells it every header that it has
parsed. Then it hands the connection over to an echo, which gives back what came along."""

import asyncio
import random
import re
import unittest

from client import Connection, drive, gather
from harness import Case, number

HEADS = number("HEADS", 3000)
SEED = number("SEED", 1)

# Headers that proxy_pass does not pass on as they are. They reach the recorder by other names.
OWN = ["Host", "Connection", "Content-Length", "Transfer-Encoding", "TE", "Keep-Alive", "Upgrade"]

COMMON = """
    upstream recorder {{ server unix:{directory}/recorder.sock; keepalive 32; }}
    proxy_set_header Connection "";
    proxy_set_header Content-Length "";
    proxy_set_header Transfer-Encoding "";
    proxy_set_header Seen-Request $request;
    %s
""" % "\n".join(f"proxy_set_header Seen-{name} $http_{name.lower().replace('-', '_')};"
                for name in OWN)

SERVER = """
    server {{
        listen unix:{directory}/%(number)s.sock;
        client_header_buffer_size %(first)s;
        large_client_header_buffers %(count)s %(large)s;
        ignore_invalid_headers %(ignore)s;
        underscores_in_headers %(underscores)s;
        location / {{
            auth_request /recorder;
            handoff_pass unix:{directory}/echo.sock;
            handoff_service $request_length;
        }}
        location = /nginx {{ return 200 "nginx"; }}
        location = /recorder {{ internal; proxy_pass http://recorder/; }}
    }}
"""

# What may end a line. nginx takes spaces, then CRs, then LF.
USUAL_ENDS = [b"\r\n", b"\n"]
ENDS = [*USUAL_ENDS, b" \r\n", b" \n", b"  \r\n", b"   \n", b"\r\r\n", b" \r\r\n", b"\r\r\r\n"]


class Server:
    """A server of nginx with buffers of its own sizes."""

    def __init__(self, index, first, large, count, ignore="on", underscores="off"):
        self.number, self.first, self.large, self.count = index, first, large, count
        self.ignore, self.underscores = ignore == "on", underscores == "on"
        self.text = SERVER % {"number": index, "first": first, "large": large, "count": count,
                              "ignore": ignore, "underscores": underscores}

    @classmethod
    def random(cls, index, random_):
        first = random_.choice([random_.randrange(40, 200), random_.randrange(200, 1500), 1024])
        large = random_.choice([random_.randrange(512, 1000), random_.randrange(1000, 4000), 8192])
        return cls(index, first, large, random_.randrange(2, 9), random_.choice(["on", "off"]),
                   random_.choice(["on", "off"]))

    def rooms(self, lines, begin=0):
        """The room in the buffer at the beginning of each line and at the end, by which nginx
        reads them; None if they do not fit. A line that is cut is moved to the next buffer."""
        rooms, room, left = [], self.first - begin, self.count
        for line in lines:
            rooms.append(room)
            if len(line) > room:
                left -= 1
                room = self.large
            if len(line) > room or left < 0:
                return None
            room -= len(line)
        return [*rooms, room]

    def takes_anywhere(self, lines):
        """Whether they fit also behind other requests, wherever in a buffer they begin."""
        least = self.large - max(map(len, lines))
        return self.rooms(lines) and sum(map(len, lines)) <= (self.count - 2) * least

    def is_taken(self, name):
        """Whether nginx takes a header of this name, or drops it as invalid."""
        pattern = rb"[A-Za-z0-9_-]+" if self.underscores else rb"[A-Za-z0-9-]+"
        return not self.ignore or re.fullmatch(pattern, name) is not None

    def parse(self, head):
        """The request line and the headers, by nginx's rules."""
        lines = [line.rstrip(b"\r").rstrip(b" ") for line in head.split(b"\n")]
        assert lines[-2:] == [b"", b""], "no empty line at the end"
        headers = []
        for line in lines[1:-2]:
            name, _, value = line.partition(b":")
            if self.is_taken(name):
                headers.append((name, value.lstrip(b" ")))
        return lines[0], headers


class Heads:
    """Random heads for a server, and where the ends of its buffers are in them."""
    NAMES = b"abcXYZ019-"
    ODD_NAMES = NAMES + b"._@!\xe4"
    VALUES = b"aZ09 \t:,;=()<>/?\"'\\\xe4\xff-_.\x01\x7f"

    def __init__(self, server, random_):
        self.server, self.random = server, random_
        self.empty = random_.choice([b"", b"", b"", b"\r\n", b"\n\r\n"])  # before the request
        self.ends = random_.choice([[b"\r\n"], [b"\n"], USUAL_ENDS, ENDS])

    def bytes_of(self, letters, most):
        return bytes(self.random.choices(letters, k=self.random.randrange(most)))

    def end(self):
        return self.random.choice(self.ends)

    def header(self):
        random_ = self.random
        name = b"x" + self.bytes_of(random_.choice([self.NAMES, self.ODD_NAMES]), 15)
        if random_.random() < 0.05:
            return name + random_.choice(USUAL_ENDS)
        value = b" " * random_.randrange(3) + self.bytes_of(self.VALUES, 60).strip(b" ")
        return name + b":" + value + self.end()

    def known(self, body):
        """Headers that nginx acts on."""
        found = [b"Host: a", b"Authorization: Basic eDp5", b"Cookie: a=b", b"Cookie: c=d",
                 b"User-Agent: test", b"Connection: keep-alive", b"TE: trailers", b"Upgrade: x",
                 b"Content-Length: %d" % len(body) if self.random.random() < 0.5
                 else b"Transfer-Encoding: chunked"]
        return [line + self.end() for line in
                [found[0], *self.random.sample(found[1:], self.random.randrange(len(found)))]]

    def lines(self, identity, body):
        target = b"/%d%s" % (identity, b"a" * self.random.choice([0, 0, self.random.randrange(150)]))
        lines = self.known(body) + [self.header() for _ in range(self.random.randrange(8))]
        self.random.shuffle(lines)
        # nginx allows spaces at the end of this line, and one CR.
        return [b"GET %s HTTP/1.1" % target + self.random.choice([end for end in self.ends if
                                                                   b"\r\r" not in end] or [b"\n"]),
                *lines, self.random.choice(USUAL_ENDS if len(self.ends) > 1 else self.ends)]

    def aimed(self, lines):
        """The lines, with one more, so that the end of some buffer is near the end of one."""
        random_ = self.random
        at = random_.randrange(1, len(lines))
        last = random_.randrange(at, len(lines))
        rooms = self.server.rooms(lines, len(self.empty))
        if rooms is None:
            return lines
        end = self.end()
        around = sum(map(len, lines[at:last + 1])) + len(b"pad:" + end) + random_.randrange(-4, 5)
        for room in rooms[at], self.server.large:
            length = room - around
            if length >= 0:
                return [*lines[:at], b"pad:" + b"p" * length + end, *lines[at:]]
        return lines

    def make(self, identity, body):
        while True:
            lines = self.lines(identity, body)
            if self.random.random() < 0.9:
                lines = self.aimed(lines)
            if self.server.rooms(lines, len(self.empty)):
                return lines

    def before(self):
        """A request that nginx answers, or nothing."""
        lines = [b"GET /nginx HTTP/1.1\r\n", *self.lines(0, b"")[1:]]
        lines = [line for line in lines if not re.match(
            rb"Content-Length|Transfer-Encoding|Connection|Upgrade", line)]
        return b"".join(lines) if self.server.takes_anywhere(lines) else b""


class Parsed(Case):
    def start_servers(self, servers):
        self.servers = servers
        self.seen = {}
        self.start("-m", 131000, http=COMMON + "".join(server.text for server in servers))

    async def record(self, reader, writer):
        """Answers nginx's questions, and notes the headers in each."""
        try:
            while True:
                _, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
                headers = [tuple(line.split(b": ", 1)) for line in lines]
                own = {name: value for name, value in headers if name.startswith(b"Seen-")}
                rest = [pair for pair in headers if pair[0] not in own][1:]  # but nginx's own Host
                self.seen[own.pop(b"Seen-Request").rstrip(b" ")] = own, rest
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.close()

    async def handed_over(self, server, data, pieces, before):
        """What the backend gets of `data`, after requests that nginx answers itself."""
        connection = Connection(*await asyncio.open_unix_connection(
            f"{self.directory}/{server.number}.sock", limit=1 << 20))
        try:
            if pieces:
                await connection.send_in_pieces(before + data, pieces, 0.001)
            else:
                await connection.send(before + data)
            for _ in range(before.count(b"GET /nginx ")):
                self.assertEqual((await connection.read_answer()).body, b"nginx")
            first = await connection.reader.readuntil(b"\n")
            self.assertTrue(first.startswith(b"handoff "), f"{server.text}{before!r}\n{data!r}")
            line, _, length = first[len(b"handoff "):-1].rpartition(b" ")
            # Only now: nginx would take it for the end of the client.
            connection.writer.write_eof()
            return line + b"\n" + await connection.reader.read(), int(length)
        finally:
            connection.abort()

    async def compare(self, server, head, body=b"", pieces=None, before=b""):
        got, length = await self.handed_over(server, head + body, pieces, before)
        what = f"{server.text}{before!r}\n{head!r}\n{got!r}"
        self.assertEqual(len(got), len(head + body), what)
        self.assertEqual(got[len(head):], body, what)
        self.assertEqual(length, len(head), what)
        got = got[:len(head)]

        line, headers = server.parse(got)
        seen, rest = self.seen.pop(line)
        own = [name.lower().encode() for name in OWN]
        self.assertEqual([pair for pair in headers if pair[0].lower() not in own], rest, what)
        for name in OWN:
            values = [value for key, value in headers if key.lower() == name.lower().encode()]
            self.assertEqual(values[0] if values else b"",
                             seen.get(b"Seen-" + name.encode(), b""), what)

        # One space or CR before another CR or LF may have become the other: nginx drops it.
        if {match for match in re.findall(rb"[ \r]*\n", head)} <= {b"\r\n"}:
            self.assertEqual(got, head, what)
        for index, (one, other) in enumerate(zip(got, head)):
            if one != other:
                self.assertEqual({one, other}, set(b" \r"), what)
                self.assertRegex(head[index + 1:], rb"\A\r*\n", what)
                self.assertNotIn(head[index - 1], b" \r", what)

    def compare_all(self, count, one):
        """Runs one(index) for each, with a recorder."""
        async def all_of_it():
            recorder = await asyncio.start_unix_server(
                self.record, f"{self.directory}/recorder.sock", limit=1 << 20)
            async with recorder:
                await gather(count, 32, one)
            self.assertEqual(self.seen, {})

        drive(all_of_it())

    def test_random_heads(self):
        random_ = random.Random(SEED)
        self.start_servers([Server.random(index, random_)
                            for index in range(min(max(HEADS // 125, 24), 400))])

        async def one(index):
            random_ = random.Random(SEED << 32 | index)
            server = random_.choice(self.servers)
            heads = Heads(server, random_)
            body = random_.randbytes(random_.choice([0, 1, 5, 100, 3000]))
            before = b""
            lines = heads.make(index, body)
            for _ in range(random_.choice([0, 0, 0, 1, 2]) if server.takes_anywhere(lines) else 0):
                before += heads.before()
            before += heads.empty
            head = b"".join(lines)
            pieces = 1 + len(before + head + body) // 20 + random_.randrange(400)  # 20 at most
            await self.compare(server, head, body, random_.choice([None, None, None, pieces]),
                               before)

        self.compare_all(HEADS, one)

    def test_each_end_of_a_line_at_each_end_of_a_buffer(self):
        # The last header's line and the empty line move over the end of the first buffer, and
        # over that of the second.
        first, large = 256, 512
        self.start_servers([Server(0, first, large, 4)])
        [server] = self.servers
        cases = [(end, empty, last, buffer, more)
                 for end in ENDS for empty in USUAL_ENDS
                 for last in (b"Authorization: Basic eDp5", b"Content-Length: 5", b"Empty:", b"None")
                 for buffer in (1, 2) for more in range(-6, 30)
                 if last != b"None" or b" " not in end]

        async def one(index):
            end, empty, last, buffer, more = cases[index]
            lines = [b"GET /%d HTTP/1.1\r\n" % index, b"Host: a\r\n"]
            room = first - len(b"".join(lines))
            if buffer == 2:
                lines.append(b"x" * (room - 1) + b":y\r\n")  # this moves to the second buffer
                room = large - len(lines[-1])
            tail = last + end + empty
            pad = room - len(tail) - len(b"pad:\r\n") + more
            head = b"".join([*lines, b"pad:" + b"p" * pad + b"\r\n", tail])
            await self.compare(server, head, b"hello")

        self.compare_all(len(cases), one)


if __name__ == "__main__":
    unittest.main()
