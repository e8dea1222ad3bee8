#!/usr/bin/env python3
"""The backend in Node.js serves clients whose TLS the kernel does."""

import contextlib
import os
import select
import socket
import ssl
import subprocess

import peers
from peers import PATIENCE, VERSIONS, read_all

BIG = bytes(range(256)) * 4096  # 64 records
# Sends back what comes, and says what has become of the connection.
ECHO = """
    const handoff = require(process.argv[1]);
    const backend = handoff.listen(process.argv[2], {}, (arrival) => {
      const connection = arrival.adopt();
      connection.on('end', () => console.log('end'));
      connection.on('error', (error) => console.log(error.code));
      connection.on('close', () => console.log('close'));
      if (arrival.service === 'cut') connection.write(Buffer.alloc(1 << 26));
      if (arrival.service === 'destroy' || arrival.service === 'cut') connection.destroy();
      connection.on('data', (data) => connection.write(data));
      if (!connection.encrypted) throw new Error('encrypted');
    });
    console.log('listening');
"""


def echo(client, data):
    """What comes back while data is sent. In one thread: OpenSSL allows no two in a connection."""
    client.setblocking(False)
    unsent, got = memoryview(data), bytearray()
    while len(got) < len(data):
        want = [client] if unsent else []
        readable, writable, _ = select.select([client], want, [], PATIENCE)
        assert readable or writable, f"after {len(got)} bytes nothing comes back"
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if writable:
                unsent = unsent[client.send(unsent):]
        with contextlib.suppress(ssl.SSLWantReadError):
            while part := client.recv(65536):
                got += part
            raise AssertionError(f"the end comes after {len(got)} bytes")
    return got


class Connections(peers.Test):
    def start_echo(self):
        package = os.path.join(peers.ROOT, "bindings", "node")
        process = subprocess.Popen(["node", "-e", ECHO, package, self.path],
                                   stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        self.assert_told(process, "listening")
        return process

    def assert_told(self, process, *lines):
        self.assertEqual([process.stdout.readline().strip() for _ in lines], list(lines))

    def test_data_goes_both_ways_and_the_ends_are_close_notify(self):
        process = self.start_echo()
        for version in VERSIONS:
            with self.subTest(version=version):
                client = self.hand_over(version, b"first ")
                client.sendall(b"second")
                got = b""
                while len(got) < 12:
                    got += client.recv(100)
                self.assertEqual(got, b"first second")
                # It sends close_notify, and waits for the other end's.
                client.unwrap()
                self.assert_told(process, "end", "close")

    def test_much_data(self):
        self.start_echo()
        for version in VERSIONS:
            with self.subTest(version=version):
                self.assertEqual(echo(self.hand_over(version), BIG), BIG)

    def test_destroy_is_a_close_notify(self):
        process = self.start_echo()
        for version in VERSIONS:
            with self.subTest(version=version):
                client = self.hand_over(version, service=b"destroy")
                self.assertEqual(read_all(client), b"")
                self.assert_told(process, "close")

    def test_destroy_is_no_close_notify_behind_a_part_of_what_was_written(self):
        process = self.start_echo()
        for version in VERSIONS:
            with self.subTest(version=version):
                client = self.hand_over(version, service=b"cut")
                with self.assertRaisesRegex(ssl.SSLError, "(?i)eof"):
                    read_all(client)
                self.assert_told(process, "close")

    def test_end_without_close_notify_has_its_name(self):
        process = self.start_echo()
        for version in VERSIONS:
            with self.subTest(version=version):
                client = self.hand_over(version, b"x")
                self.assertEqual(client.recv(1), b"x")
                client.shutdown(socket.SHUT_RDWR)
                self.assert_told(process, "HANDOFF_ERR_END_OF_STREAM", "close")

    def test_what_is_no_record_has_its_name(self):
        process = self.start_echo()
        for version in VERSIONS:
            for what in bytes(100), b"\x17\x03\x03\xff\xff" + bytes(100):
                with self.subTest(version=version, what=what[:5]):
                    client = self.hand_over(version, b"x")
                    self.assertEqual(client.recv(1), b"x")
                    with socket.socket(fileno=os.dup(client.fileno())) as plain:
                        plain.sendall(what)
                    self.assert_told(process, "HANDOFF_ERR_TLS_RECORD", "close")

    def test_records_that_are_no_data_have_their_names(self):
        """openssl's client updates its key when K is typed, and starts a handshake anew at R."""
        process = self.start_echo()
        for version in VERSIONS:
            with self.subTest(version=version), \
                    socket.create_server(("127.0.0.1", 0)) as listener:
                new = version == ssl.TLSVersion.TLSv1_3
                client = subprocess.Popen(
                    ["openssl", "s_client", "-tls1_3" if new else "-tls1_2", "-connect",
                     "{}:{}".format(*listener.getsockname())],
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                self.addCleanup(client.wait)
                self.addCleanup(client.kill)
                self.addCleanup(client.stdin.close)
                accepted = self.serve(listener.accept()[0])
                self.offer(accepted)
                client.stdin.write(b"K\n" if new else b"R\n")
                client.stdin.flush()
                self.assert_told(process, "HANDOFF_ERR_TLS_KEY_UPDATE" if new
                                 else "HANDOFF_ERR_TLS_RECORD", "close")


if __name__ == "__main__":
    peers.main()
