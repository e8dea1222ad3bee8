#!/usr/bin/env python3
"""Tests of handoff.aio: the clients and the broker are in a thread beside the event loop."""

import asyncio
import contextlib
import os
import resource
import socket
import ssl
import struct
import subprocess
import tempfile
import time
import unittest

import handoff
import handoff.aio
from ends import PATIENCE, Case, read_all, wait_until

BIG = bytes(range(256)) * 8192  # more than a socket's buffers have room for


class Aio(Case):
    def serve_with(self, callback, clients, **options):
        """The result of the clients of a start_server(), which is then closed."""
        async def run():
            server = await handoff.aio.start_server(callback, self.path, **options)
            async with server:
                result = await asyncio.get_running_loop().run_in_executor(None, clients)
                self.assertTrue(server.is_serving())
            self.assertFalse(server.is_serving())
            return result
        return asyncio.run(asyncio.wait_for(run(), PATIENCE))


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


class Streams(Aio):
    def test_preread_comes_first_and_then_what_the_client_sends(self):
        def clients():
            client = self.front.hand_over(b"first ")
            client.sendall(b"second")
            client.shutdown(socket.SHUT_WR)
            with client:
                return read_all(client)
        self.assertEqual(self.serve_with(echo, clients), b"first second")

    def test_client_whose_callback_is_cancelled_sees_its_end(self):
        async def serve(_, writer):
            writer.write(b"begun")
            asyncio.current_task().cancel()
            await asyncio.sleep(PATIENCE)

        def clients():
            copies = []
            with self.front.hand_over(keep_copy=copies) as client, copies[0]:
                return read_all(client)
        self.assertEqual(self.serve_with(serve, clients), b"begun")

    def test_client_whose_task_is_cancelled_before_it_begins_sees_its_end(self):
        def make_task(loop, coroutine, **options):
            task = asyncio.Task(coroutine, loop=loop, **options)
            if coroutine.__qualname__ == "Server._serve":
                task.cancel()
            return task

        async def run():
            loop = asyncio.get_running_loop()
            loop.set_task_factory(make_task)
            async with await handoff.aio.start_server(echo, self.path):
                return await loop.run_in_executor(None, clients)

        def clients():
            copies = []
            with self.front.hand_over(keep_copy=copies) as client, copies[0]:
                return read_all(client)
        self.assertEqual(asyncio.run(asyncio.wait_for(run(), PATIENCE)), b"")

    def test_socket_that_somebody_else_made(self):
        def clients():
            with self.front.hand_over(b"hello") as client:
                client.shutdown(socket.SHUT_WR)
                return read_all(client)

        async def run():
            server = await handoff.aio.start_server(echo, listener, max_in_flight=1)
            async with server:
                return await asyncio.get_running_loop().run_in_executor(None, clients)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.path)
            listener.listen()
            self.assertEqual(asyncio.run(asyncio.wait_for(run(), PATIENCE)), b"hello")
            self.assertTrue(os.path.exists(self.path))

    def test_preread_beyond_the_limit_of_the_reader_waits_for_whoever_reads(self):
        def clients():
            client = self.front.hand_over(BIG[:60000])
            client.sendall(BIG[60000:100000])
            client.shutdown(socket.SHUT_WR)
            with client:
                return read_all(client)
        self.assertEqual(self.serve_with(echo, clients, limit=1000), BIG[:100000])

    def test_closing_ends_the_connection_though_the_broker_keeps_its_copy(self):
        async def answer(reader, writer):
            writer.write(b"answer")
            writer.close()
            await writer.wait_closed()

        def clients():
            copies = []
            with self.front.hand_over(keep_copy=copies) as client, copies[0]:
                return read_all(client)
        self.assertEqual(self.serve_with(answer, clients), b"answer")

    def test_write_eof_ends_one_direction_only(self):
        async def serve(reader, writer):
            writer.write(b"question")
            writer.write_eof()
            answers.append(await reader.read())
            writer.close()
        answers = []

        def clients():
            copies = []
            with self.front.hand_over(keep_copy=copies) as client, copies[0]:
                got = read_all(client)
                client.sendall(b"answer")
                client.shutdown(socket.SHUT_WR)
            return got
        self.assertEqual(self.serve_with(serve, clients), b"question")
        self.assertEqual(answers, [b"answer"])

    def test_slow_client_gets_all_that_was_written_before_close(self):
        async def answer(reader, writer):
            writer.write(BIG)
            writer.close()

        def clients():
            with self.front.hand_over() as client:
                return read_all(client)
        self.assertEqual(self.serve_with(answer, clients), BIG)

    def test_drain_waits_for_a_client_that_does_not_read(self):
        async def answer(reader, writer):
            for start in range(0, len(BIG), 65536):
                writer.write(BIG[start:start + 65536])
                await writer.drain()
                most.append(writer.transport.get_write_buffer_size())
            writer.close()
        most = []

        def clients():
            with self.front.hand_over() as client:
                return read_all(client)
        self.assertEqual(self.serve_with(answer, clients), BIG)
        self.assertLessEqual(max(most), 2 * 65536)

    def test_callback_learns_what_the_broker_says(self):
        async def answer(reader, writer):
            arrival = writer.get_extra_info("arrival")
            writer.write(arrival.metadata + arrival.service + arrival.correlation)
            self.assertEqual(writer.get_extra_info("peername")[0], "127.0.0.1")
            writer.close()

        def clients():
            with self.front.hand_over(metadata=b"m", service=b"s", correlation=b"c") as client:
                return read_all(client)
        self.assertEqual(self.serve_with(answer, clients), b"msc")

    def test_starting_tls_is_refused_and_the_connection_goes_on(self):
        async def serve(_, writer):
            try:
                await writer.start_tls(ssl.create_default_context())
            except RuntimeError as error:
                writer.write(str(error).encode())
            writer.close()

        def clients():
            with self.front.hand_over(b"\x16\x03\x01") as client:
                return read_all(client)
        self.assertIn(b"cannot start TLS", self.serve_with(serve, clients))

    def test_plain_function_may_be_the_callback(self):
        def answer(reader, writer):
            writer.write(b"plain")
            writer.close()

        def clients():
            with self.front.hand_over() as client:
                return read_all(client)
        self.assertEqual(self.serve_with(answer, clients), b"plain")

    def test_connection_ends_when_the_callback_raises(self):
        async def fail(reader, writer):
            raise KeyError("of this test")

        def clients():
            with self.front.hand_over() as client:
                return read_all(client)

        async def run():
            server = await handoff.aio.start_server(fail, self.path)
            asyncio.get_running_loop().set_exception_handler(
                lambda _, context: problems.append(repr(context["exception"])))
            async with server:
                return await asyncio.get_running_loop().run_in_executor(None, clients)
        problems = []
        self.assertEqual(asyncio.run(asyncio.wait_for(run(), PATIENCE)), b"")
        self.assertEqual(problems, ["KeyError('of this test')"])

    def test_clients_beyond_the_limit_stay_the_brokers(self):
        def clients():
            first = self.front.hand_over()
            other, verdict = self.front.offer()
            other.close()
            self.assertEqual((verdict.adopted, verdict.reason),
                             (False, handoff.Reason.BACKEND_BUSY))
            with first:
                first.sendall(b"x")
                first.shutdown(socket.SHUT_WR)
                read_all(first)
            with self.front.hand_over() as client:
                client.shutdown(socket.SHUT_WR)
                return read_all(client)
        self.assertEqual(self.serve_with(echo, clients, max_connections=1), b"")

    def test_many_at_once(self):
        count = 300

        def descriptors():
            return len(os.listdir("/proc/self/fd"))

        def clients():
            self.front.hand_over().close()
            time.sleep(0.1)
            before = descriptors()
            there = [self.front.hand_over(b"%d." % number) for number in range(count)]
            for client in there:
                client.sendall(b"!")
                client.shutdown(socket.SHUT_WR)
            answers = [read_all(client) for client in there]
            for client in there:
                client.close()
            wait_until(lambda: descriptors() <= before, "no descriptor is left")
            return answers
        self.assertEqual(self.serve_with(echo, clients), [b"%d.!" % n for n in range(count)])

    def test_what_has_arrived_is_served_after_close_and_then_the_path_is_free(self):
        async def run():
            loop = asyncio.get_running_loop()
            server = await handoff.aio.start_server(echo, self.path)
            client = await loop.run_in_executor(None, self.front.hand_over)
            server.close()
            self.assertFalse(os.path.exists(self.path))
            closed = asyncio.ensure_future(server.wait_closed())
            await asyncio.sleep(0.05)
            self.assertFalse(closed.done())  # there is a client

            def end():
                with client:
                    client.sendall(b"late")
                    client.shutdown(socket.SHUT_WR)
                    return read_all(client)
            self.assertEqual(await loop.run_in_executor(None, end), b"late")
            await closed
        asyncio.run(asyncio.wait_for(run(), PATIENCE))

    def test_clients_may_be_closed_which_sends_them_what_is_left_for_them_first(self):
        async def serve(reader, writer):
            writer.write(BIG)
            await reader.read()

        async def run():
            loop = asyncio.get_running_loop()
            server = await handoff.aio.start_server(serve, self.path)
            with await loop.run_in_executor(None, self.front.hand_over) as client:
                server.close()
                await loop.run_in_executor(None, client.recv, 1, socket.MSG_PEEK)
                server.close_clients()
                got = await loop.run_in_executor(None, read_all, client)
                await asyncio.wait_for(server.wait_closed(), 2)
            return got
        self.assertEqual(asyncio.run(asyncio.wait_for(run(), PATIENCE)), BIG)

    def test_clients_may_be_aborted_also_one_that_takes_nothing(self):
        async def serve(_, writer):
            writer.write(16 * BIG)
            with contextlib.suppress(ConnectionError):
                await writer.drain()

        async def run():
            loop = asyncio.get_running_loop()
            server = await handoff.aio.start_server(serve, self.path)
            with await loop.run_in_executor(None, self.front.hand_over) as client:
                server.close()
                await loop.run_in_executor(None, client.recv, 1, socket.MSG_PEEK)
                server.close_clients()
                with self.assertRaises(asyncio.TimeoutError):
                    await asyncio.wait_for(server.wait_closed(), 0.1)
                server.abort_clients()
                await asyncio.wait_for(server.wait_closed(), 2)
        asyncio.run(asyncio.wait_for(run(), PATIENCE))

    def test_clients_that_come_while_it_drains_are_closed_as_the_others(self):
        async def serve(reader, writer):
            await reader.read()  # until the end
            writer.close()

        async def run():
            server = await handoff.aio.start_server(serve, self.path)
            offered = asyncio.get_running_loop().run_in_executor(None, self.front.hand_over)
            while server.listener.backend.get_statistics()["held"] == 0:
                server.listener.backend.dispatch()
            server.close()
            server.close_clients()
            await server.wait_closed()
            with await offered as client:
                return await asyncio.get_running_loop().run_in_executor(None, read_all, client)
        self.assertEqual(asyncio.run(asyncio.wait_for(run(), PATIENCE)), b"")

    def test_idle_client_does_not_keep_serve_forever_when_it_is_cancelled(self):
        async def run():
            server = await handoff.aio.start_server(echo, self.path)
            task = asyncio.ensure_future(server.serve_forever())
            client = await asyncio.get_running_loop().run_in_executor(None, self.front.hand_over)
            with client:
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task
        asyncio.run(asyncio.wait_for(run(), PATIENCE))

    def test_serve_forever_ends_in_order_when_it_is_cancelled(self):
        async def run():
            server = await handoff.aio.start_server(echo, self.path)
            serving = asyncio.ensure_future(server.serve_forever())
            await asyncio.sleep(0.01)
            serving.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await serving
            self.assertFalse(server.is_serving())
            self.assertFalse(os.path.exists(self.path))
        asyncio.run(asyncio.wait_for(run(), PATIENCE))


class Protocols(Aio):
    async def adopt(self, listener):
        """An arrival whose preread is "preread", and its client."""
        client = asyncio.get_running_loop().run_in_executor(None, self.front.hand_over, b"preread")
        arrival = await listener.__anext__()
        return arrival, await client

    def test_preread_waits_for_a_protocol_that_pauses_and_comes_before_what_follows(self):
        class Paused(asyncio.Protocol):
            def __init__(self):
                self.got, self.all = [], asyncio.get_running_loop().create_future()

            def connection_made(self, transport):
                self.transport = transport
                transport.pause_reading()

            def data_received(self, data):
                self.got.append((self.transport.is_reading(), data))
                if data == b"preread":
                    self.transport.pause_reading()

            def connection_lost(self, _):
                self.all.set_result(self.got)

        async def run():
            listener = handoff.aio.listen(self.path)
            arrival, client = await self.adopt(listener)
            with client:
                client.sendall(b" and more")
                client.shutdown(socket.SHUT_WR)
                transport, protocol = await handoff.aio.create_connection(Paused, arrival)
                for count in 0, 1:
                    await asyncio.sleep(0.05)
                    self.assertEqual(len(protocol.got), count)
                    transport.resume_reading()
                    if count == 0:  # and at once again
                        transport.pause_reading()
                        await asyncio.sleep(0.05)
                        self.assertEqual(protocol.got, [])
                        transport.resume_reading()
                self.assertEqual(await protocol.all, [(True, b"preread"), (True, b" and more")])
            listener.close()
        asyncio.run(asyncio.wait_for(run(), PATIENCE))

    def test_task_that_a_preread_begins_runs_before_the_end_that_came_with_it(self):
        class Answering(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport
                self.lost = asyncio.get_running_loop().create_future()

            def data_received(self, data):
                self.task = asyncio.create_task(self.answer(data, pauses=data == b"preread"))

            async def answer(self, data, pauses):
                self.transport.write(data)
                if pauses:
                    self.transport.pause_reading()
                    await asyncio.sleep(0.05)
                    self.transport.write(b", and the client has not ended")
                    self.transport.resume_reading()

            def connection_lost(self, _):
                self.lost.set_result(None)

        async def run(preread, expected):
            loop = asyncio.get_running_loop()
            listener = handoff.aio.listen(self.path)
            client = loop.run_in_executor(None, self.front.hand_over, preread)
            arrival = await listener.__anext__()
            with await client as client:
                client.shutdown(socket.SHUT_WR)
                _, protocol = await handoff.aio.create_connection(Answering, arrival)
                self.assertEqual(await loop.run_in_executor(None, read_all, client), expected)
                await protocol.lost
            listener.close()
        for preread, expected in ((b"all of it", b"all of it"),
                                  (b"preread", b"preread, and the client has not ended")):
            asyncio.run(asyncio.wait_for(run(preread, expected), PATIENCE))

    def test_protocol_that_raises_at_the_preread_loses_its_connection_as_it_does_later(self):
        class Raising(asyncio.Protocol):
            def connection_made(self, _):
                self.lost = asyncio.get_running_loop().create_future()

            def data_received(self, data):
                raise ValueError(data)

            def connection_lost(self, error):
                self.lost.set_result(error)

        async def run(preread, later):
            told = []
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, about: told.append(about))
            listener = handoff.aio.listen(self.path)
            client = loop.run_in_executor(None, self.front.hand_over, preread)
            arrival = await listener.__anext__()
            with await client as client:
                client.sendall(later)
                transport, protocol = await handoff.aio.create_connection(Raising, arrival)
                error = await asyncio.wait_for(protocol.lost, 2)
                self.assertEqual((type(error), error.args), (ValueError, (b"data",)))
                self.assertEqual(await loop.run_in_executor(None, read_all, client), b"")
            listener.close()
            [about] = told
            self.assertIs(about["exception"], error)
            self.assertIs(about["transport"], transport)
            return about["message"]
        self.assertEqual(asyncio.run(asyncio.wait_for(run(b"data", b""), PATIENCE)),
                         asyncio.run(asyncio.wait_for(run(b"", b"data"), PATIENCE)))

    def test_program_that_ends_at_the_preread_ends(self):
        class Ending(asyncio.Protocol):
            def data_received(self, data):
                raise SystemExit(data)

        async def run():
            listener = handoff.aio.listen(self.path)
            arrival, client = await self.adopt(listener)
            with client:
                try:
                    await handoff.aio.create_connection(Ending, arrival)
                    await asyncio.sleep(PATIENCE)
                finally:
                    listener.close()
        with self.assertRaises(SystemExit) as raised:
            asyncio.run(run())
        self.assertEqual(raised.exception.code, b"preread")

    def test_preread_is_given_to_the_protocol_that_the_transport_has(self):
        class Second(asyncio.Protocol):
            def __init__(self):
                self.got = asyncio.get_running_loop().create_future()

            def data_received(self, data):
                self.got.set_result(data)

        class First(asyncio.Protocol):
            def connection_made(self, transport):
                transport.set_protocol(Second())

            def data_received(self, data):
                raise AssertionError(data)

        async def run():
            listener = handoff.aio.listen(self.path)
            arrival, client = await self.adopt(listener)
            with client:
                transport, _ = await handoff.aio.create_connection(First, arrival)
                got = transport.get_protocol().got
                self.assertEqual(await asyncio.wait_for(got, 2), b"preread")
                transport.close()
            listener.close()
        asyncio.run(asyncio.wait_for(run(), PATIENCE))

    def test_protocol_with_buffers_gets_the_preread_in_them(self):
        class Buffered(asyncio.BufferedProtocol):
            def __init__(self):
                self.buffer, self.data = bytearray(3), b""

            def get_buffer(self, _):
                return self.buffer

            def buffer_updated(self, count):
                self.data += self.buffer[:count]

        async def run():
            listener = handoff.aio.listen(self.path)
            arrival, client = await self.adopt(listener)
            transport, protocol = await handoff.aio.create_connection(Buffered, arrival)
            with client:
                client.sendall(b"and more")
                while not protocol.data.endswith(b"more"):
                    await asyncio.sleep(0.001)
                transport.close()
            listener.close()
            return protocol.data
        self.assertEqual(asyncio.run(asyncio.wait_for(run(), PATIENCE)), b"prereadand more")


class TlsClient:
    """A client that begins TLS, and whose bytes the test sends as it likes."""

    def __init__(self, certificate):
        self.received, self.sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=certificate)
        self.tls = context.wrap_bio(self.received, self.sent, server_hostname="test")
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self.hello = self.sent.read()

    def until_done(self, step):
        """Does a step, for which it receives what there is. What it sends waits until it receives."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.flush()
                data = self.socket.recv(65536)
                if not data:
                    self.received.write_eof()
                self.received.write(data)

    def flush(self):
        self.socket.sendall(self.sent.read())

    def handshake(self, connection, rest=b""):
        self.socket = connection
        connection.sendall(rest)
        self.until_done(self.tls.do_handshake)

    def ask(self, question, size):
        self.tls.write(question)
        self.flush()
        answer = b""
        while len(answer) < size:
            answer += self.until_done(lambda: self.tls.read(65536))
        return answer


class Tls(Aio):
    """Clients that begin TLS with whoever serves them: what the broker has read is a part of that."""

    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory(prefix="handoff-python-")
        cls.addClassCleanup(directory.cleanup)
        cls.certificate = os.path.join(directory.name, "certificate.pem")
        key = os.path.join(directory.name, "key.pem")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=DNS:test",
             "-keyout", key, "-out", cls.certificate], check=True, capture_output=True)
        cls.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        cls.context.load_cert_chain(cls.certificate, key)

    def serve_with(self, callback, clients, **options):
        """Whatever asyncio has to complain about is an error."""
        def complain(_, context):
            complaints.append(context)

        async def serve(*arguments):
            asyncio.get_running_loop().set_exception_handler(complain)
            await callback(*arguments)

        complaints = []
        result = super().serve_with(serve, clients, ssl=self.context, **options)
        self.assertEqual(complaints, [])
        return result

    def test_preread_is_any_part_of_what_the_client_has_said(self):
        def clients():
            answers = []
            for part in (0, 1, 5, 100, None):
                client = TlsClient(self.certificate)
                preread = client.hello[:part]
                with self.front.hand_over(preread) as connection:
                    client.handshake(connection, client.hello[len(preread):])
                    answers.append(client.ask(b"hello", 5))
            return answers
        self.assertEqual(self.serve_with(echo, clients), [b"hello"] * 5)

    def test_preread_may_be_what_asks_for_tls(self):
        """The task that begins it does so in the turn of the loop in which the preread is given."""
        class Asked(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport

            def data_received(self, _):
                self.task = asyncio.create_task(self.begin())

            async def begin(self):
                self.transport.write(b"go")
                within = Within()
                transport = await asyncio.get_running_loop().start_tls(
                    self.transport, within, Tls.context, server_side=True)
                transport.write(await within.got)

        class Within(asyncio.Protocol):
            def __init__(self):
                self.got = asyncio.get_running_loop().create_future()

            def data_received(self, data):
                self.got.set_result(data)

        def ask(connection):
            client = TlsClient(self.certificate)
            self.assertEqual(connection.recv(2), b"go")
            client.handshake(connection, client.hello)
            return client.ask(b"hello", 5)

        async def run():
            loop = asyncio.get_running_loop()
            listener = handoff.aio.listen(self.path)
            connection = loop.run_in_executor(None, self.front.hand_over, b"STARTTLS")
            transport, _ = await handoff.aio.create_connection(Asked, await listener.__anext__())
            with await connection as connection:
                self.assertEqual(await loop.run_in_executor(None, ask, connection), b"hello")
            listener.close()
            transport.abort()
        asyncio.run(asyncio.wait_for(run(), PATIENCE))

    def test_as_much_as_one_likes_both_ways(self):
        def clients():
            client = TlsClient(self.certificate)
            with self.front.hand_over(client.hello) as connection:
                client.handshake(connection)
                return [client.ask(BIG[:100_000], 100_000) for _ in range(20)]
        self.assertEqual(self.serve_with(echo, clients), [BIG[:100_000]] * 20)

    def test_what_comes_with_the_end_of_the_handshake_is_not_lost(self):
        def clients():
            client = TlsClient(self.certificate)
            with self.front.hand_over(client.hello) as connection:
                client.socket = connection
                client.until_done(client.tls.do_handshake)
                return client.ask(b"at once", 7)  # the first that is sent after the ClientHello
        self.assertEqual(self.serve_with(echo, clients), b"at once")

    def test_closing_ends_the_connection_though_the_broker_keeps_its_copy(self):
        async def answer(reader, writer):
            writer.write(await reader.readexactly(1))
            writer.close()

        def clients():
            copies = []
            client = TlsClient(self.certificate)
            with self.front.hand_over(client.hello, keep_copy=copies) as connection:
                client.handshake(connection)
                self.assertEqual(client.ask(b"?", 1), b"?")
                self.assertEqual(client.until_done(lambda: client.tls.read(1)), b"")
                client.tls.unwrap()
                client.flush()
                with copies[0]:
                    return connection.recv(1)
        self.assertEqual(self.serve_with(answer, clients), b"")

    def test_clients_whose_handshake_fails_see_an_end_and_disturb_nobody(self):
        def clients():
            with self.front.hand_over(b"GET / HTTP/1.0\r\n\r\n") as plain:
                read_all(plain)
            with self.front.hand_over() as plain:
                plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
                read_all(plain)
            for preread in b"", TlsClient(self.certificate).hello[:50], TlsClient(self.certificate).hello:
                self.front.hand_over(preread).close()
            reset = self.front.hand_over()
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            reset.close()
            ended = TlsClient(self.certificate)
            with self.front.hand_over(ended.hello) as connection:
                ended.handshake(connection)
                ended.tls.write(b"last words")
                with contextlib.suppress(ssl.SSLError):
                    ended.tls.unwrap()
                ended.flush()
            client = TlsClient(self.certificate)
            with self.front.hand_over(client.hello) as connection:
                client.handshake(connection)
                return client.ask(b"still there", 11)
        self.assertEqual(self.serve_with(echo, clients), b"still there")

    def test_client_that_does_not_go_on_is_not_waited_for(self):
        def clients():
            with self.front.hand_over() as silent:
                return read_all(silent)
        self.assertEqual(self.serve_with(echo, clients, ssl_handshake_timeout=0.2), b"")

    def test_protocol_hears_of_its_connection_before_of_its_bytes(self):
        class Logging(asyncio.Protocol):
            def __init__(self):
                self.calls = []

            def connection_made(self, transport):
                self.calls.append(transport.get_extra_info("cipher") is not None)

            def data_received(self, data):
                self.calls.append(data)

            def connection_lost(self, error):
                self.calls.append(error)

        async def run():
            listener = handoff.aio.listen(self.path)
            client = TlsClient(self.certificate)

            def speak():
                with self.front.hand_over(client.hello) as connection:
                    client.socket = connection
                    client.until_done(client.tls.do_handshake)
                    client.tls.write(b"at once")
                    client.flush()

            speaking = asyncio.get_running_loop().run_in_executor(None, speak)
            arrival = await listener.next()
            listener.adopt(arrival)
            _, protocol = await handoff.aio.create_connection(Logging, arrival, ssl=self.context)
            await speaking
            while len(protocol.calls) < 3:
                await asyncio.sleep(0.001)
            listener.close()
            return protocol.calls
        made, said, lost = asyncio.run(asyncio.wait_for(run(), PATIENCE))
        self.assertEqual((made, said), (True, b"at once"))

    def test_client_whose_tls_the_kernel_does_is_refused(self):
        async def run():
            listener = handoff.aio.listen(self.path)
            offered = asyncio.get_running_loop().run_in_executor(None, self.front.hand_over)
            arrival = await listener.next()
            listener.adopt(arrival)
            arrival.tls = True
            with await offered, arrival.connection:
                with self.assertRaisesRegex(ValueError, "the kernel does this client's TLS"):
                    await handoff.aio.open_connection(arrival, ssl=self.context)
                self.assertNotEqual(arrival.connection.fileno(), -1)
            listener.close()
        asyncio.run(asyncio.wait_for(run(), PATIENCE))


class Listeners(Aio):
    def test_arrivals_come_adopted_and_drain_ends_the_iteration(self):
        async def run():
            loop = asyncio.get_running_loop()
            listener = handoff.aio.listen(self.path)
            clients = [loop.run_in_executor(None, self.front.hand_over, b"x")]
            async for arrival in listener:
                with arrival.connection as connection:
                    self.assertEqual(connection.gettimeout(), 0)
                    await loop.sock_sendall(connection, arrival.preread)
                    connection.shutdown(socket.SHUT_WR)
                listener.drain()
            with await clients[0] as client:
                return await loop.run_in_executor(None, read_all, client)
        self.assertEqual(asyncio.run(asyncio.wait_for(run(), PATIENCE)), b"x")

    def test_program_may_look_first(self):
        async def run():
            loop = asyncio.get_running_loop()
            listener = handoff.aio.listen(self.path)
            offered = loop.run_in_executor(None, self.front.offer)
            arrival = await listener.next()
            self.assertRaises(ValueError, lambda: arrival.connection)
            listener.reject(arrival, handoff.Reason.POLICY_DISABLED)
            waiting = asyncio.ensure_future(listener.next())  # this sends the verdict
            client, verdict = await offered
            client.close()
            self.assertEqual(verdict.reason, handoff.Reason.POLICY_DISABLED)
            listener.close()
            self.assertIsNone(await waiting)
            self.assertIsNone(await listener.next())
        asyncio.run(asyncio.wait_for(run(), PATIENCE))

    def test_second_task_that_waits_is_refused(self):
        async def run():
            listener = handoff.aio.listen(self.path)
            first = asyncio.ensure_future(listener.next())
            await asyncio.sleep(0)
            with self.assertRaises(RuntimeError):
                await asyncio.wait_for(listener.next(), 1)
            listener.close()
            self.assertIsNone(await first)
            self.assertIsNone(await listener.next())
        asyncio.run(asyncio.wait_for(run(), PATIENCE))

    def test_arrival_that_waits_for_its_decision_keeps_a_drained_listener(self):
        async def run():
            loop = asyncio.get_running_loop()
            listener = handoff.aio.listen(self.path)
            offered = loop.run_in_executor(None, self.front.hand_over)
            arrival = await listener.next()
            listener.drain()
            last = asyncio.ensure_future(listener.next())
            await asyncio.sleep(0.05)
            self.assertFalse(last.done())
            with listener.adopt(arrival):
                self.assertIsNone(await last)
                (await offered).close()
        asyncio.run(asyncio.wait_for(run(), PATIENCE))

    def test_arrival_that_the_broker_took_back_is_passed_over(self):
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)

        async def run():
            loop = asyncio.get_running_loop()
            listener = handoff.aio.listen(self.path)

            async def offer():
                while True:
                    try:
                        return self.front.broker.offer(theirs)
                    except handoff.HandoffError:
                        self.front.broker.dispatch()
                        await asyncio.sleep(0.01)
            task = asyncio.ensure_future(listener.__anext__())
            number = await offer()
            self.front.broker.take_back(number)
            client = loop.run_in_executor(None, self.front.hand_over, b"second")
            arrival = await task
            self.assertEqual(arrival.preread, b"second")
            arrival.connection.close()
            (await client).close()
            listener.close()
        asyncio.run(asyncio.wait_for(run(), PATIENCE))

    def test_start_server_raises_what_the_system_refuses(self):
        async def run():
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            refused = 0
            while True:  # with one descriptor more each time
                before = os.listdir("/proc/self/fd")
                free = next(fd for fd in range(soft) if not os.path.exists(f"/proc/self/fd/{fd}"))
                resource.setrlimit(resource.RLIMIT_NOFILE, (free + refused, hard))
                try:
                    server = await handoff.aio.start_server(echo, self.path)
                    break
                except handoff.HandoffError as error:
                    refused += 1
                    self.assertIn("HANDOFF_ERR_DESCRIPTOR_PRESSURE", str(error))
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                self.assertFalse(os.path.exists(self.path))
                self.assertEqual(os.listdir("/proc/self/fd"), before)
            self.assertGreater(refused, 2)
            async with server:
                (await asyncio.to_thread(self.front.hand_over)).close()
                self.assertTrue(server.is_serving())
        asyncio.run(asyncio.wait_for(run(), PATIENCE))

    def test_backend_that_could_not_do_its_work_tries_again(self):
        told = []

        async def run():
            asyncio.get_running_loop().set_exception_handler(lambda _, about: told.append(about))
            server = await handoff.aio.start_server(echo, self.path)
            dispatch, errors = server.listener.backend.dispatch, iter(range(3))

            def fail_a_few_times():
                if next(errors, None) is not None:
                    raise handoff.HandoffError(handoff.Status.ERR_SYSTEM)
                dispatch()
            server.listener.backend.dispatch = fail_a_few_times
            async with server:
                (await asyncio.to_thread(self.front.hand_over)).close()
                self.assertTrue(server.is_serving())
        asyncio.run(asyncio.wait_for(run(), PATIENCE))
        self.assertEqual([about["exception"].status for about in told], [handoff.Status.ERR_SYSTEM])

    def test_server_that_cannot_go_on_says_so(self):
        told = []

        async def run():
            asyncio.get_running_loop().set_exception_handler(lambda _, about: told.append(about))
            server = await handoff.aio.start_server(echo, self.path)
            server.listener.backend.close()
            server.listener._wake()
            with self.assertRaises(handoff.HandoffError):
                await server.serve_forever()
            self.assertFalse(server.is_serving())
        asyncio.run(asyncio.wait_for(run(), PATIENCE))
        self.assertEqual(len(told), 1, told)

    def test_server_that_accepts_no_more_leaves_no_socket_for_clients_to_wait_at(self):
        def cancel(server):
            server._accepting.cancel()

        def fail(server):
            server.listener.backend.next = lambda: 1 / 0
            server.listener._wake()

        async def run(end):
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            server = await handoff.aio.start_server(echo, self.path)
            await asyncio.sleep(0)
            end(server)
            await asyncio.wait([server._accepting])
            self.assertFalse(server.is_serving())
            self.assertFalse(os.path.exists(self.path))
        for end in cancel, fail:
            asyncio.run(asyncio.wait_for(run(end), PATIENCE))

    def test_errors_of_listening_come_at_once(self):
        async def run():
            with self.assertRaises(handoff.HandoffError):
                handoff.aio.listen(os.path.join(self.path, "no", "such"))
            with self.assertRaises(TypeError):
                await handoff.aio.start_server(echo, self.path, backlogs=1)
        asyncio.run(run())


if __name__ == "__main__":
    unittest.main()
