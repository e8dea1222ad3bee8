"""`pass`, which nginx has from 1.25.5 on: a stream that was not handed over goes to a listener of
http, and that may hand it over. So both modules have to do with one connection."""

import asyncio
import unittest

from client import Connection, drive, gather, new_identity, request
from harness import HANDED_OVER, NO_LIMIT, Case, wait_for_channels, wait_until

# So that each worker has some.
CLIENTS = 10

# The one at {port} is refused, and passed to http; the other one is handed over.
STREAM = """
    server {{
        listen 127.0.0.1:{port};
        {server}
        handoff_pass unix:{directory}/refuses_echo.sock;
        pass 127.0.0.1:{http};
    }}
    server {{
        listen 127.0.0.1:{accepted};
        handoff_pass unix:{directory}/echo.sock;
    }}
"""

# As HANDED_OVER, but refused.
REFUSED = HANDED_OVER.replace("handoff.sock", "refuses.sock")


class Pass(Case):
    def setUp(self):
        super().setUp()
        self.expected.append(self.FALLBACK)
        # It keeps its copies.
        self.start_backend("-r", 1, "-x", "k", name="refuses",
                           sockets=("refuses.sock", "refuses_echo.sock"))

    def begin(self, http):
        self.accepted = self.new_port()
        self.start(http=http, stream=STREAM, server=NO_LIMIT)
        for backend in self.backends[:2]:
            wait_for_channels(self.nginx, backend)
        self.before = self.nginx.descriptors()

    def fill(self):
        return {**super().fill(), "http": self.port, "accepted": self.accepted}

    async def wait_for_close(self):
        """nginx has closed all connections."""
        await asyncio.to_thread(
            wait_until, lambda: self.nginx.descriptors() == self.before, "nginx closes them")

    async def ask(self, connection, way):
        answer = await connection.ask(request(new_identity()))
        self.assertEqual((answer.status, answer.headers["x-served-by"]), (200, way))

    async def begin_stream(self):
        connection = await Connection.open(self.accepted)
        await connection.send(new_identity().encode() + b"\n")
        self.assertTrue((await connection.reader.readline()).startswith(b"handoff "))
        return connection

    def test_what_http_hands_over_is_not_ended_by_stream(self):
        self.begin(HANDED_OVER)

        async def one(_):
            connection = await Connection.open(self.stream_port)
            await self.ask(connection, "handoff")
            return connection

        async def all_of_it():
            connections = await gather(CLIENTS, CLIENTS, one)
            await self.wait_for_close()
            await gather(CLIENTS, CLIENTS, lambda index: self.ask(connections[index], "handoff"))

        drive(all_of_it())

    def test_what_nobody_adopts_ends_with_nginx_and_is_forgotten(self):
        self.begin(REFUSED)

        async def refused(_):
            connection = await Connection.open(self.stream_port)
            await self.ask(connection, "unix")
            await connection.send(b"GET /nginx HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            await connection.read_answer()
            await connection.read_end()  # though the backend has copies
            connection.close()

        async def all_of_it():
            await gather(CLIENTS, CLIENTS, refused)
            # These have their places.
            connections = await gather(CLIENTS, CLIENTS, lambda _: self.begin_stream())
            await self.wait_for_close()
            for connection in connections:
                await connection.send(b"more\n")
                self.assertEqual(await connection.reader.readline(), b"more\n")

        drive(all_of_it())


if __name__ == "__main__":
    unittest.main()
