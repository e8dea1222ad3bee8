"""After a fallback the backend may have a copy of the client's descriptor, and may have changed what
copies share. nginx serves this client and all others as if it had not."""

import asyncio
import os
import time
import unittest

import handoff
from client import Connection, drive, gather, new_identity, request, run
from harness import NO_LIMIT, STREAM, Case, wait_until

# Of each kind, so that each worker has some.
CLIENTS = 6
OTHERS = 20

# More than the buffers of a connection take.
LARGE = 24 << 20

HTTP = """
    server {{
        listen 127.0.0.1:{port};
        {server}
        location / {{
            handoff_pass unix:{directory}/handoff.sock;
            error_page 502 504 = @fallback;
        }}
        location @fallback {{ root {directory}; try_files $uri/large =404; }}
        location = /nginx {{ return 200 "nginx $arg_id"; }}
        location = /status {{ stub_status; }}
    }}
"""


class Copies(Case):
    def setUp(self):
        super().setUp()
        self.expected.append(self.FALLBACK)
        for name, size in ("small", 10), ("file", LARGE):
            os.mkdir(f"{self.directory}/{name}")
            with open(f"{self.directory}/{name}/large", "wb") as file:
                file.truncate(size)

    def begin(self, *options, server=""):
        self.start(*options, http=HTTP, server=NO_LIMIT + server)

    async def ask(self, path):
        """Asks for a file on a new connection, and waits until the answer has begun."""
        connection = await Connection.open(self.port)
        await connection.send(b"GET %s HTTP/1.1\r\nHost: test\r\n\r\n" % path)
        self.assertEqual(await connection.reader.readline(), b"HTTP/1.1 200 OK\r\n")
        return connection

    async def ask_without_reading(self):
        return await gather(CLIENTS, CLIENTS, lambda _: self.ask(b"/file"))

    async def check_others(self):
        async def one(index):
            connection = await Connection.open(self.port)
            answer = await connection.ask(b"GET /nginx?id=%d HTTP/1.1\r\nHost: test\r\n\r\n" % index)
            self.assertEqual(answer.body, b"nginx %d" % index)
            connection.close()

        await gather(OTHERS, OTHERS, one)

    async def read_to_the_end(self, connections):
        async def one(index):
            await connections[index].reader.readuntil(b"\r\n\r\n")
            body = await connections[index].reader.readexactly(LARGE)
            self.assertEqual(body.count(0), LARGE)

        await gather(len(connections), len(connections), one)

    def check_blocking(self, sendfile):
        self.begin("-r", 1, "-x", "b", server=f"sendfile {sendfile};")

        async def all_of_it():
            connections = await self.ask_without_reading()
            await self.check_others()
            await self.read_to_the_end(connections)

        drive(all_of_it())

    def test_backend_that_makes_it_blocking_does_not_stop_writev(self):
        self.check_blocking("off")

    def test_backend_that_makes_it_blocking_does_not_stop_sendfile(self):
        self.check_blocking("on")

    def test_backend_that_makes_it_blocking_later_stops_nobody(self):
        # It hangs while nginx takes its offers back, and does not know of that yet.
        self.begin("-n", "-x", "k", server="handoff_timeout 100ms; sendfile on;")

        async def all_of_it():
            connections = await self.ask_without_reading()
            await asyncio.to_thread(self.backend.get, "/change/b")

            async def read_more(index):
                await connections[index].reader.readexactly(LARGE // 2)

            # nginx goes on writing
            await gather(len(connections), len(connections), read_more)
            await self.check_others()

        drive(all_of_it())

    def check_linger(self, options, *later):
        self.begin("-r", 1, "-x", options, server="send_timeout 500ms;")

        async def all_of_it():
            await self.ask_without_reading()
            for path in later:
                await asyncio.to_thread(self.backend.get, path)
            await asyncio.to_thread(
                wait_until, lambda: sum("/file" in line for line in self.nginx.access()) == CLIENTS,
                "nginx closes what nobody reads")
            await self.check_others()

        drive(all_of_it())

    def test_backend_that_lets_close_wait_stops_nobody(self):
        self.check_linger("kl", "/forget")  # so that nginx has the last copy

    def test_backend_that_lets_close_wait_later_stops_nobody(self):
        self.check_linger("k", "/change/l", "/forget")

    def test_flags_and_options_are_those_of_nginx_again(self):
        self.begin("-r", 1, "-x", "bawlcdk")

        async def all_of_it():
            connection = await Connection.open(self.port)
            for _ in range(3):  # nginx must hear of the second with the backend's low-water mark
                answer = await connection.ask(b"GET /small HTTP/1.1\r\nHost: test\r\n\r\n")
                self.assertEqual(answer.body, bytes(10))
                found = await asyncio.to_thread(self.backend.get, "/copies")
                self.assertEqual(  # nginx sets TCP_NODELAY behind its answer
                    found.rpartition(b" ")[0], b"nonblock=1 async=0 linger=0 lowat=1 cork=0")
                await asyncio.to_thread(self.backend.get, "/forget")

        drive(all_of_it())

    def test_what_another_backend_has_adopted_is_not_ended_with_the_worker(self):
        """The worker does not know yet when its time is up: the verdict waits for that on another
        client, and the longer an offer is in flight the later its word is looked at."""
        backend = handoff.Backend.listen(f"{self.directory}/second.sock")
        self.addCleanup(backend.close)
        self.start("-n", main="worker_shutdown_timeout 50ms;", server=NO_LIMIT, http="""
    server {{
        listen 127.0.0.1:{port};
        {server}
        location / {{
            handoff_pass unix:{directory}/handoff.sock;
            handoff_timeout 100ms;
            error_page 504 = @second;
        }}
        location @second {{ handoff_pass unix:{directory}/second.sock; handoff_timeout 60s; }}
        location = /nginx {{ return 200 "nginx $arg_id"; }}
        location = /status {{ stub_status; }}
    }}
""")

        def all_arrived():
            backend.dispatch()
            return backend.get_statistics()["arrived"] == 4

        def serve():
            wait_until(all_arrived, "the clients arrive")
            time.sleep(2)
            client = backend.adopt(backend.next())
            self.nginx.wait_for_end_of(self.nginx.reload())
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nadopted")
            return client

        async def all_of_it():
            async def ask(_):
                connection = await Connection.open(self.port)
                await connection.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
                return connection

            async def read(connection):
                return await connection.reader.read(1 << 16)

            connections = await gather(4, 4, ask)
            with await asyncio.to_thread(serve):
                answers = await asyncio.gather(*map(read, connections))
                self.assertEqual(sum(b"adopted" in answer for answer in answers), 1)

        drive(all_of_it())

    def test_connection_that_the_backend_shuts_down_is_not_served(self):
        self.begin("-r", 1, "-x", "s")
        before = self.nginx.descriptors()

        async def one(_):
            connection = await Connection.open(self.port)
            await connection.send(b"GET /small HTTP/1.1\r\nHost: test\r\n\r\n")
            await connection.read_end()
            connection.close()

        run(10, 5, one)
        wait_until(lambda: self.nginx.descriptors() == before, "as few descriptors as before")
        lines = self.nginx.access()
        self.assertEqual(len(lines), 10)
        for line in lines:  # the shutdown, which looks like a client that left, races the verdict
            self.assertRegex(
                line, "^/small 499 outcome=fallback reason=(rejected|client gone) wait=")


TWO_BACKENDS = """
    large_client_header_buffers 4 16k;
    server {{
        listen 127.0.0.1:{port};
        handoff_timeout 500ms;
        {server}
        error_page 502 504 = /nginx;
        location /first {{ handoff_pass unix:{directory}/handoff.sock; }}
        location /second {{
            handoff_pass unix:{directory}/second.sock;
            handoff_metadata $http_x$http_x$http_x$http_x$http_x$http_x$http_x$http_x$http_x;
        }}
        location = /nginx {{ return 200 "nginx"; }}
    }}
"""


class CopiesOfTwo(Case):
    def test_copy_is_not_forgotten_with_an_offer_that_was_never_sent(self):
        # The first backend hangs with copies. The second one's channel is full, so that it gets no
        # copies. Then nginx closes: without shutdown(2) the clients would not see that.
        self.expected.append(self.FALLBACK)
        second = self.start_backend("-n", "-m", 131000, name="second",
                                    sockets=("second.sock", "second_echo.sock"))
        self.start("-n", "-m", 131000, http=TWO_BACKENDS, server=NO_LIMIT)
        wait_until(lambda: second.statistics()["channels"] == 2, "the second has its channels")
        for backend in self.backend, second:
            backend.signal(19)

        async def one(_):
            connection = await Connection.open(self.port)
            for path in "first", "second":
                answer = await connection.ask(
                    request("a", what=path, headers=["X: " + "x" * 12000]))
                self.assertEqual(answer.body, b"nginx")
            await connection.send(b"GET /nginx HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            await connection.read_answer()
            await connection.read_end()
            connection.close()

        run(16, 16, one)


class StreamCopies(Case):
    def test_backend_that_makes_it_blocking_stops_nobody(self):
        self.expected.append(self.FALLBACK)
        self.start("-r", 1, "-x", "b", stream=STREAM, server=NO_LIMIT)

        async def greet():
            connection = await Connection.open(self.stream_port)
            await connection.send(new_identity().encode() + b"\n")
            self.assertTrue((await connection.reader.readline()).startswith(b"tcp "))
            return connection

        async def write_without_reading(_):
            connection = await greet()
            connection.writer.write(bytes(LARGE))
            size = None
            while size != connection.writer.transport.get_write_buffer_size():
                size = connection.writer.transport.get_write_buffer_size()
                await asyncio.sleep(0.3)
            return connection

        async def other(index):
            connection = await greet()
            await connection.send(b"%d\n" % index)
            self.assertEqual(await connection.reader.readline(), b"%d\n" % index)
            connection.close()

        async def all_of_it():
            connections = await gather(CLIENTS, CLIENTS, write_without_reading)

            async def read(index):
                self.assertEqual((await connections[index].reader.readexactly(LARGE)).count(0),
                                 LARGE)

            await gather(OTHERS, OTHERS, other)
            await gather(len(connections), len(connections), read)

        drive(all_of_it())

    def test_flags_and_options_are_those_of_nginx_again(self):
        self.expected.append(self.FALLBACK)
        self.start("-r", 1, "-x", "bawlcdk", stream=STREAM, server=NO_LIMIT)

        async def one(_):
            connection = await Connection.open(self.stream_port)
            await connection.send(new_identity().encode() + b"\n")
            self.assertTrue((await connection.reader.readline()).startswith(b"tcp "))
            return await asyncio.to_thread(self.backend.get, "/copies")

        self.assertEqual(run(1, 1, one),
                         [b"nonblock=1 async=0 linger=0 lowat=1 cork=0 nodelay=1\n"])


if __name__ == "__main__":
    unittest.main()
