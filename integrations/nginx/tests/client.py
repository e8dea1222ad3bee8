"""Clients for the tests: HTTP/1.1 over asyncio, in as many pieces as a test wants."""

import asyncio
import collections
import contextlib
import itertools
import zlib

Answer = collections.namedtuple("Answer", "status headers body")
numbers = itertools.count()
PATIENCE = 120  # seconds, for one client: only a fault takes so long


def digest(body):
    """What the backend says of a body that it has read."""
    return f"{len(body)} {zlib.crc32(body):08x}"


def new_identity(prefix="r"):
    """A name for a request, used once."""
    return f"{prefix}{next(numbers)}"


class Connection:
    """One connection of a client."""

    all = []

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.all.append(self)

    @classmethod
    async def open(cls, port, **more):
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 20, **more))

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def send_in_pieces(self, data, size, pause=0):
        """In writes of `size` bytes; with a pause each is likely to be read by itself."""
        for start in range(0, len(data), size):
            await self.send(data[start:start + size])
            await asyncio.sleep(pause)

    async def read_answer(self):
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        status = int(first.split(" ")[1])
        if status == 100:
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readuntil(b"\n"), 16):
                body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        else:
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(status, headers, body)

    async def ask(self, data):
        await self.send(data)
        return await self.read_answer()

    async def read_end(self):
        """Waits for the end of the connection, before which nothing may come."""
        assert await self.reader.read(1) == b"", "more than an answer"

    def close(self):
        self.writer.close()

    def abort(self):
        with contextlib.suppress(AttributeError):  # of Python 3.11, where TLS is closed already
            self.writer.transport.abort()


def request(identity, what="r", method="GET", headers=(), body=None, close=False, argument=""):
    """The bytes of an ordinary request."""
    lines = [f"{method} /{what}/{identity}{argument} HTTP/1.1", "Host: test", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chunked(body, size):
    """A body in chunks."""
    parts = [body[i:i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])


async def gather(count, at_once, one):
    """Runs one(index) for every index below `count`, so many at a time, and gives their results."""
    results, indices = [None] * count, iter(range(count))

    async def worker():
        for index in indices:
            results[index] = await asyncio.wait_for(one(index), PATIENCE)

    await asyncio.gather(*(worker() for _ in range(min(at_once, count))))
    return results


def drive(coroutine):
    """Runs it in a loop of its own, and ends what connections it has left open."""
    async def with_end():
        try:
            return await coroutine
        finally:
            for connection in Connection.all:
                connection.abort()
            await asyncio.gather(*(connection.writer.wait_closed() for connection in
                                   Connection.all), return_exceptions=True)
            Connection.all.clear()

    return asyncio.run(with_end())


def run(count, at_once, one):
    return drive(gather(count, at_once, one))
