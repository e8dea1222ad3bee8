#!/usr/bin/env python3
"""handoff exec: commands that know nothing of TLS serve clients whose TLS the kernel does."""

import os
import re
import select
import signal
import socket
import ssl
import subprocess
import time

import peers
from peers import PATIENCE, VERSIONS, read_all

COMMAND = os.environ["HANDOFF_COMMAND"]
BIG = bytes(range(256)) * 8192

# One request, as inetd(8) would give it to a program.
HTTP_SERVER = """
import os, sys
from http.server import BaseHTTPRequestHandler

class Handler(BaseHTTPRequestHandler):
    def setup(self):
        self.rfile, self.wfile = os.fdopen(0, "rb"), os.fdopen(1, "wb", 0)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.upper())

    def log_message(self, *_):
        pass

    def finish(self):
        pass

Handler(None, ("client", 0), None)
"""

# Writes as much as there is room for, and says how much that was.
FILL = """
import os, sys
count = 0
os.set_blocking(1, False)
try:
    while True:
        count += os.write(1, bytes(65536))
except BlockingIOError:
    print(count, file=sys.stderr)
"""


class Exec(peers.Test):
    def exec(self, *command, options=()):
        self.process = subprocess.Popen(
            [COMMAND, "exec", "-v", *options, self.path, "--", *command], text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(self.kill)
        self.assertRegex(self.process.stdout.readline(), "^listening on ")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def stop(self):
        """Ends it as a user would, and gives what it and its commands have said."""
        self.process.terminate()
        output, errors = self.process.communicate(timeout=PATIENCE)
        self.assertEqual(self.process.returncode, 0, errors)
        return output, errors

    def processor_time(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def test_command_sees_a_plain_end_and_so_does_the_client(self):
        self.exec("cat")
        for version in VERSIONS:
            for preread in b"", b"first ":
                with self.subTest(version=version, preread=preread):
                    client = self.hand_over(version, preread)
                    client.sendall(b"second")
                    self.assertEqual(receive(client, len(preread) + 6), preread + b"second")
                    client.unwrap()  # which waits for the other's close_notify
        output, errors = self.stop()
        self.assertEqual(errors, "")
        self.assertEqual(set(re.sub(r"\d+", "N", output).splitlines()),
                         {"N: process N ended with status N"})
        self.assertNotIn("status 1", output)

    def test_command_that_ends_first_ends_with_close_notify(self):
        self.exec("echo", "hello")
        for version in VERSIONS:
            client = self.hand_over(version)
            self.assertEqual(read_all(client), b"hello\n")
            client.unwrap()

    def test_shell_script_reads_lines_and_knows_the_version(self):
        self.exec("sh", "-c", 'while read -r line; do echo "$HANDOFF_TLS $line"; done; echo end')
        for version in VERSIONS:
            client = self.hand_over(version, b"a\nb")
            client.sendall(b"c\n")
            name = client.version().encode() + rb" [A-Z0-9-]+ "
            self.assertRegex(receive(client, 2 * 20), b"^" + name + b"a\n" + name + b"bc\n")

    def test_http_server_for_inetd_answers(self):
        self.exec("python3", "-c", HTTP_SERVER)
        head = b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n"
        for preread in head, head[:10]:
            client = self.hand_over(VERSIONS[-1], preread)
            client.sendall(head[len(preread):] + 100000 * b"x")
            answer = read_all(client)
            self.assertTrue(answer.startswith(b"HTTP/1.0 200 "), answer[:50])
            self.assertTrue(answer.endswith(b"\r\n\r\n" + 100000 * b"X"))

    def test_much_goes_through_both_ways(self):
        self.exec("cat")
        client = self.hand_over(VERSIONS[-1], b"x")
        self.assertTrue(exchange(client, BIG, len(BIG) + 1) == b"x" + BIG)

    def fill(self):
        """A client that reads nothing, whose command has ended and has left no room for more."""
        self.exec("python3", "-c", FILL)
        client = self.hand_over(VERSIONS[-1])
        count = int(self.process.stderr.readline())
        self.assertRegex(self.process.stdout.readline(), "ended with status 0")
        return client, count

    def test_slow_client_gets_all_and_then_close_notify(self):
        client, count = self.fill()
        time.sleep(1)
        self.process.terminate()
        got = read_all(client)
        self.assertEqual((len(got), got.count(b"\0")), (count, count))
        client.unwrap()
        self.process.communicate(timeout=PATIENCE)
        self.assertEqual(self.process.returncode, 0)

    def test_client_that_reads_nothing_is_given_up_at_a_second_signal(self):
        client, _ = self.fill()
        self.process.terminate()
        time.sleep(1)
        self.assertIsNone(self.process.poll())
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE)
        self.assertEqual(self.process.returncode, 0)
        with self.assertRaises(ssl.SSLError):
            read_all(client)

    def test_end_without_close_notify_ends_the_input_and_is_reported(self):
        self.exec("cat")
        client = self.hand_over(VERSIONS[-1])
        client.sendall(b"half")
        self.assertEqual(receive(client, 4), b"half")
        socket.socket.shutdown(client, socket.SHUT_WR)
        self.assertEqual(client.recv(100), b"")
        self.assertRegex(self.stop()[0], "(?m)^1: .* without close_notify")

    def test_garbage_ends_the_input(self):
        self.exec("cat")
        client = self.hand_over(VERSIONS[-1])
        os.write(client.fileno(), b"GET / HTTP/1.1\r\n\r\n" * 10)
        self.assertEqual(client.recv(100), b"")
        self.assertRegex(self.stop()[0], "(?m)^1: .* no TLS record of this connection")

    def test_command_that_is_killed_ends_without_close_notify(self):
        self.exec("sh", "-c", "echo half; kill -KILL $$")
        client = self.hand_over(VERSIONS[-1])
        with self.assertRaises(ssl.SSLError):
            read_all(client)

    def test_half_a_record_costs_no_processor_time(self):
        self.exec("cat")
        client = self.hand_over(VERSIONS[-1])
        os.write(client.fileno(), b"\x17\x03\x03\x01\x00half")
        before = self.processor_time()
        time.sleep(2)
        self.assertLess(self.processor_time() - before, 0.5)

    def test_no_descriptor_is_left(self):
        def descriptors():
            return len(os.listdir(f"/proc/{self.process.pid}/fd"))
        self.exec("sh", "-c", "read line; echo $line")
        before = None
        for number in range(30):
            client = self.hand_over(VERSIONS[number % len(VERSIONS)], b"x\n" * (number % 3))
            client.sendall(b"y\nmore that nobody reads")
            self.assertIn(read_all(client), (b"x\n", b"y\n"))
            if number % 2:
                client.unwrap()
            client.close()
            if before is None:
                before = descriptors() + 1
        peers.wait_until(lambda: descriptors() <= before, "descriptors are closed")


def exchange(client, data, count):
    """Sends and receives at once. OpenSSL does not let two threads do that with one connection."""
    client.setblocking(False)
    data, got = memoryview(data), bytearray()
    while len(got) < count:
        wanted = [client], [client] if data else []
        try:
            if data:
                data = data[client.send(data[:16384]):]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        try:
            while more := client.recv(65536):
                got += more
            break
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            select.select(*wanted, [], PATIENCE)
    return bytes(got)


def receive(client, count):
    got = bytearray()
    while len(got) < count:
        more = client.recv(65536)
        if not more:
            break
        got += more
    return bytes(got)


if __name__ == "__main__":
    peers.main()
