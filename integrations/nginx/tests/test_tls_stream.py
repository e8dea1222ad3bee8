"""Streams whose TLS nginx terminates: `listen ... ssl` in the stream module."""

import random
import unittest

from harness import NO_LIMIT, wait_until
from tls import (FULL, KERNEL_DECRYPTS, NAMES, SECRET, TLS_STREAM, VERSIONS, TlsCase, context,
                 in_threads, new_identity)

CONNECTIONS = 500 if FULL else 20
BYTES = random.Random(1).randbytes(1 << (22 if FULL else 19))


class Echo(TlsCase):
    """The backend repeats the first line with the way it came, and then everything."""
    way = "handoff"
    options = ()
    server = "handoff_service $ssl_server_name; "
    service = NAMES[0]

    def setUp(self):
        super().setUp()
        self.start(*self.options, http="", stream=TLS_STREAM, server=self.server)
        self.descriptors = self.nginx.descriptors()


    def connect(self, version=None, **more):
        return self.client(version, port=self.stream_port, **more)

    def greet(self, client, first=b""):
        """`first` goes in the same write as the first line."""
        identity = new_identity()
        client.send(identity.encode() + b"\n" + first)
        line = client.read_until(b"\n").decode().rstrip("\n")
        self.assertEqual(line.split(" "), [self.way, identity, self.service])
        self.assertEqual(client.read(len(first)), first)

    def echo(self, client, data):
        client.send(data)
        self.assertEqual(client.read(len(data)), data)

    def end(self, client, way=None):
        """The client ends; what it gets then is the end."""
        client.push(client.close_notify())
        end = client.read_end()
        if end != "cut" or (way or self.way) == "handoff":  # nginx 1.26 with KTLS sends none
            self.assertEqual(end, "close_notify")
        client.close()

    def check_end(self):
        wait_until(lambda: self.nginx.descriptors() == self.descriptors, "as few descriptors")

    def test_lines_come_back(self):
        versions = list(VERSIONS)

        def one(index):
            client = self.connect(versions[index % 2])
            random_ = random.Random(index)
            self.greet(client, BYTES[:random_.choice([0, 1, 1000, 16000, 16384, 40000])])
            for i in range(index % 4):
                self.echo(client, f"{SECRET} {i}".encode() + BYTES[:random_.randrange(20000)])
            self.end(client)

        in_threads(CONNECTIONS, 8, one)
        self.check_end()

    def test_many_bytes_come_back(self):
        for version in VERSIONS:
            with self.subTest(version):
                client = self.connect(version)
                self.greet(client)
                # What has not come back when all is sent waits in the client.
                self.echo(client, BYTES)
                self.end(client)
        self.check_end()

    def test_clients_that_wait_before_they_speak(self):
        clients = [self.connect(version) for version in VERSIONS for _ in range(3)]
        if self.way == "handoff":
            # They are handed over meanwhile.
            wait_until(lambda: self.backend.statistics()["adopted"] == len(clients), "adopted")
        self.settle()
        for client in clients:
            self.greet(client)
            self.end(client)
        self.check_end()

    def test_first_bytes_in_pieces(self):
        for version in VERSIONS:
            for cut in 1, 5, 30, -1:
                with self.subTest(version, cut=cut):
                    client = self.connect(version)
                    identity = new_identity()
                    records = client.seal(identity.encode() + b"\n")
                    client.push(records[:cut])
                    self.settle()
                    client.push(records[cut:])
                    way, echoed, _ = client.read_until(b"\n").decode().split(" ")
                    self.assertEqual(echoed, identity)
                    # If OpenSSL has read a part of a record by then, it stays with nginx.
                    by_nginx = way == "tcp" and version == "1.3" and not KERNEL_DECRYPTS
                    if not by_nginx:
                        self.assertEqual(way, self.way)
                    self.end(client, "tcp" if by_nginx else self.way)


class EchoRefused(Echo):
    way = "tcp"
    options = ("-r", 1)
    server = NO_LIMIT
    service = ""

    def setUp(self):
        super().setUp()
        self.expect_fallbacks()


class NotHandedOver(TlsCase):
    def test_what_the_kernel_does_not_do(self):
        self.start(http="", stream=TLS_STREAM, server="")
        made = context("1.2", "ECDHE-ECDSA-AES128-SHA256")
        with self.client(made=made, port=self.stream_port) as client:
            identity = new_identity()
            client.send(identity.encode() + b"\n")
            self.assertEqual(client.read_until(b"\n").decode().split(" ")[:2], ["tcp", identity])
        self.assertRegex(self.reasons()[0], "the kernel does not encrypt for it: TLSv1.2, "
                                            "ECDHE-ECDSA-AES128-SHA256, OpenSSL")
        self.assertEqual(self.backend.statistics()["arrived"], 0)


if __name__ == "__main__":
    unittest.main()
