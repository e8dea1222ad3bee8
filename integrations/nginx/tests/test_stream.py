"""Streams: an echo, and TLS that the backend terminates."""

import asyncio
import random
import ssl
import subprocess
import unittest

from client import Connection, new_identity, run
from harness import BUILD, NO_LIMIT, STREAM, Case, Process, number, wait_for_channels, wait_until

STREAMS = number("STREAMS", 3000)
TLS = number("TLS", 500)

BYTES = random.Random(1).randbytes(1 << 20)


class Echo(Case):
    way = "handoff"
    options = ()
    server = "handoff_service name-of-$remote_addr;"
    service = "name-of-127.0.0.1"

    def setUp(self):
        super().setUp()
        self.start(*self.options, stream=STREAM, server=self.server)

    async def greet(self, connection, first=b""):
        identity = new_identity("s")
        await connection.send(identity.encode() + b"\n" + first)
        line = await connection.reader.readline()
        self.assertEqual(line.decode().split(" "), [self.way, identity, self.service + "\n"])
        return identity

    async def echo(self, connection, data):
        await connection.send(data)
        self.assertEqual(await connection.reader.readexactly(len(data)), data)

    def check(self, identities):
        self.assertEqual(set(self.assert_once(identities)), {self.way})

    def test_lines_come_back(self):
        async def one(index):
            connection = await Connection.open(self.stream_port)
            first = BYTES[:index % 3000]
            identity = await self.greet(connection, first)
            self.assertEqual(await connection.reader.readexactly(len(first)), first)
            for i in range(index % 4):
                await self.echo(connection, b"%d\n" % i)
            connection.writer.write_eof()
            await connection.read_end()
            connection.close()
            return identity

        self.check(run(STREAMS, 64, one))

    def test_many_bytes_come_back(self):
        async def one(_):
            connection = await Connection.open(self.stream_port)
            identity = await self.greet(connection)
            received = asyncio.create_task(connection.reader.readexactly(len(BYTES)))
            await connection.send(BYTES)
            self.assertEqual(await received, BYTES)
            connection.close()
            return identity

        self.check(run(50, 8, one))

    def test_clients_that_wait_before_they_speak(self):
        async def one(_):
            connection = await Connection.open(self.stream_port)
            await asyncio.sleep(0.1)
            identity = await self.greet(connection)
            connection.close()
            return identity

        self.check(run(200, 200, one))

    def test_workers_keep_no_descriptors(self):
        async def one(index):
            connection = await Connection.open(self.stream_port)
            if index % 3 == 0:
                connection.abort()
                return
            await self.greet(connection)
            connection.close()

        before = self.nginx.descriptors()
        run(1500, 64, one)
        wait_until(lambda: self.nginx.descriptors() == before, "as few descriptors as before")


class EchoPreread(Echo):
    """nginx reads first, to look for TLS; what it has read goes along."""
    server = Echo.server + "ssl_preread on;"


class EchoRefused(Echo):
    way = "tcp"
    options = ("-r", 1)
    server = NO_LIMIT
    service = ""

    def setUp(self):
        super().setUp()
        self.expected.append(self.FALLBACK)


class EchoPrereadRefused(EchoRefused):
    server = NO_LIMIT + "ssl_preread on;"


TLS_SERVER = """
    server {{
        listen 127.0.0.1:{port};
        {server}
        handoff_pass unix:{directory}/tls.sock;
        proxy_pass 127.0.0.1:%d;
    }}
"""


class Tls(Case):
    """TLS passes through nginx, also if nginx has looked at the beginning."""

    def setUp(self):
        super().setUp()
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-keyout", "key.pem", "-out", "certificate.pem", "-days", "2",
             "-subj", "/CN=test.example", "-addext", "subjectAltName=DNS:test.example"],
            cwd=self.directory, check=True, capture_output=True)
        self.client = ssl.create_default_context(cafile=f"{self.directory}/certificate.pem")
        self.server = Process(
            [f"{BUILD}/tls_backend", "tls.sock", "certificate.pem", "key.pem"], self.directory,
            stdout=subprocess.PIPE)
        self.addCleanup(self.server.kill)
        self.tls_port = int(self.server.process.stdout.readline().split()[0])

    def start_tls(self, server):
        self.start_nginx(stream=TLS_SERVER % self.tls_port, server=server)
        wait_for_channels(self.nginx, self.server)

    async def greeting(self):
        """The way by which a new client came, which also echoes."""
        connection = await Connection.open(self.stream_port, ssl=self.client,
                                           server_hostname="test.example")
        way = (await connection.reader.readline()).decode().strip()
        data = BYTES[:random.randrange(1, 40000)]
        await connection.send(data)
        self.assertEqual(await connection.reader.readexactly(len(data)), data)
        connection.close()
        return way

    def check_way(self, way):
        async def one(_):
            return await self.greeting()

        self.assertEqual(set(run(TLS, 32, one)), {way})

    def test_backend_terminates_tls(self):
        self.start_tls("ssl_preread on; handoff_service $ssl_preread_server_name;")
        self.check_way("handoff")

    def test_backend_terminates_tls_that_nginx_has_not_looked_at(self):
        self.start_tls("")
        self.check_way("handoff")

    def test_tls_1_2(self):
        self.client.maximum_version = ssl.TLSVersion.TLSv1_2
        self.start_tls("ssl_preread on;")
        self.check_way("handoff")

    def test_proxied_without_a_handoff_socket(self):
        self.expected.append(self.FALLBACK)
        self.start_nginx(stream=TLS_SERVER.replace("tls.sock", "none.sock") % self.tls_port,
                         server="ssl_preread on;")
        self.check_way("tcp")


if __name__ == "__main__":
    unittest.main()
