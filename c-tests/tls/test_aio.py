#!/usr/bin/env python3
"""handoff.aio serves clients whose TLS the kernel does."""

import asyncio
import socket
import ssl
import time

import peers
from peers import PATIENCE, VERSIONS, read_all

import handoff
import handoff.aio

BIG = bytes(range(256)) * 32768  # 8 MiB: more than the buffers of both ends have room for


class Streams(peers.Test):
    def run_server(self, callback, clients):
        """The result of `clients`, a function, while a server calls `callback`."""
        async def run():
            async with await handoff.aio.start_server(callback, self.path):
                return await asyncio.get_running_loop().run_in_executor(None, clients)
        return asyncio.run(asyncio.wait_for(run(), PATIENCE))

    def test_data_goes_both_ways_and_the_ends_are_close_notify(self):
        async def twice(reader, writer):
            self.assertTrue(writer.get_extra_info("arrival").tls)
            writer.write(await reader.readexactly(12) * 2)
            self.assertEqual(await reader.read(), b"")
            writer.close()
            await writer.wait_closed()

        for version in VERSIONS:
            def ask(version=version):
                client = self.hand_over(version, b"first ")
                client.sendall(b"second")
                data = b""
                while len(data) < 24:
                    data += client.recv(100)
                client.unwrap()  # sends close_notify, and raises unless it gets one
                return data
            self.assertEqual(self.run_server(twice, ask), b"first secondfirst second")

    def test_end_without_close_notify_is_an_error(self):
        async def read(reader, writer):
            try:
                await reader.read()
            except handoff.TlsError as error:
                raised.append(handoff.status_name(error.status))
            writer.close()
        raised = []

        def leave():
            client = self.hand_over(VERSIONS[-1], b"half a request")
            socket.socket.shutdown(client, socket.SHUT_WR)
            with self.assertRaises((ssl.SSLError, OSError)):  # nor is it answered with one
                if read_all(client) == b"":
                    raise OSError("an end without data")
        self.run_server(read, leave)
        self.assertEqual(raised, ["HANDOFF_ERR_END_OF_STREAM"])

    def test_slow_client_gets_everything_and_then_close_notify(self):
        for end in "close", "write_eof":
            async def answer(reader, writer, end=end):
                writer.write(BIG)
                getattr(writer, end)()
                if end == "write_eof":
                    await reader.read()
                    writer.close()

            def ask():
                client = self.hand_over(VERSIONS[-1])
                time.sleep(0.5)  # until there is no room left, not even for close_notify
                data = read_all(client)
                client.unwrap()
                return data
            self.assertEqual(self.run_server(answer, ask), BIG, end)

    def test_aborted_answer_does_not_look_whole(self):
        async def answer(reader, writer):
            writer.write(BIG)
            writer.transport.abort()

        def ask():
            client = self.hand_over(VERSIONS[-1])
            with self.assertRaises(OSError):  # an ssl.SSLError is one
                read_all(client)
        self.run_server(answer, ask)


if __name__ == "__main__":
    peers.main()
