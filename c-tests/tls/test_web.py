#!/usr/bin/env python3
"""The examples for the web, behind a real nginx whose clients' TLS the kernel does."""

import json
import os
import socket
import struct
import sys

import behind_nginx
import peers
from behind_nginx import VERSIONS
from peers import PATIENCE, wait_until

from web_clients import WebSocket, events_request, read_event, read_head

TEXT, CLOSE = 1, 8
METADATA = b'{"client":{"address":"192.0.2.1","port":4000}}'

# Answers a request over standard input and output.
SHELL = r"""
while read -r line && [ "${#line}" -gt 1 ]; do :; done
printf 'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%s\n%s\n' "$HANDOFF_TLS" "$HANDOFF_METADATA"
exec cat
"""


class Web(behind_nginx.Test):
    locations = """
        location = /events {{ handoff_pass unix:{directory}/events.sock; }}
        location = /socket {{ handoff_pass unix:{directory}/websocket.sock; }}
        location = /shell {{ handoff_pass unix:{directory}/shell.sock; }}
    """

    def setUp(self):
        super().setUp()
        for name in "events", "websocket":
            program = os.path.join(peers.ROOT, "examples", "python", f"{name}_backend.py")
            self.start_listening(sys.executable, "-B", "-W", "error", program,
                                 os.path.join(self.directory, f"{name}.sock"))
        self.start_listening(os.environ["HANDOFF_COMMAND"], "exec", "shell.sock", "--",
                             "sh", "-c", SHELL)
        self.start_nginx()

    def test_events_over_https(self):
        for version in VERSIONS:
            client = self.connect_to_nginx(version)
            client.sendall(events_request(last=6))
            file = client.makefile("rb")
            self.addCleanup(file.close)
            self.assertEqual(read_head(file)[0], "HTTP/1.1 200 OK")
            for number in 7, 8, 9:
                event, data = read_event(file)
                # Of X-Forwarded-For, which says something else, nothing is believed.
                self.assertEqual((event, data["client"], data["tls"]),
                                 (number, "127.0.0.1", client.version()))
        self.processes[0].terminate()
        file.read()  # until close_notify: otherwise it raises
        self.processes[0].wait(PATIENCE)  # a second SIGTERM, while Python exits, would kill it
        self.assertLogged("/events TLSv1.2 both adopted", "/events TLSv1.3 both adopted")

    def test_websocket_over_tls(self):
        for version in VERSIONS:
            client = self.connect_to_nginx(version)
            there = WebSocket(client)
            self.addCleanup(there.file.close)
            self.assertEqual(read_head(there.file)[0], "HTTP/1.1 101 Switching Protocols")
            greeting = f"hello 127.0.0.1, {client.version()}"
            self.assertEqual(there.receive(), (TEXT, greeting.encode()))
            for data in b"", b"x", b"y" * 65535:
                there.send(0x80 | TEXT, data)
                self.assertEqual(there.receive_but_ticks(), (TEXT, data))
            self.assertRegex(there.receive()[1], b"^..:..:..$")
            there.send(0x80 | CLOSE, (1000).to_bytes(2, "big"))
            self.assertEqual(there.receive_but_ticks(), (CLOSE, b"\x03\xe8"))
            self.assertEqual(there.file.read(), b"")
        self.assertLogged("/socket TLSv1.2 both adopted", "/socket TLSv1.3 both adopted")

    def test_shell_script_over_https(self):
        for version in VERSIONS:
            client = self.connect_to_nginx(version)
            client.sendall(b"POST /shell HTTP/1.1\r\nHost: localhost\r\n"
                           b"Content-Length: 4\r\n\r\nbody")
            with client.makefile("rb") as file:
                self.assertEqual(read_head(file)[0], "HTTP/1.1 200 OK")
                self.assertRegex(file.readline().decode(), f"^{client.version()} [A-Z0-9-]+\n$")
                facts = json.loads(file.readline())
                self.assertEqual((facts["client"]["address"], facts["tls"]["version"]),
                                 ("127.0.0.1", client.version()))
                self.assertEqual(file.read(4), b"body")
                client.unwrap()  # then its input ends, it ends, and close_notify comes
        self.assertLogged("/shell TLSv1.2 both adopted", "/shell TLSv1.3 both adopted")


class Copy(behind_nginx.Test):
    """A broker that keeps its copy of a connection takes the error of a reset from it. Then Linux 6.1
    lets a backend with TLS write on."""

    def setUp(self):
        super().setUp()
        program = os.path.join(peers.ROOT, "examples", "python", "events_backend.py")
        self.events = self.start_listening(sys.executable, "-B", program, self.path)

    def has_ended(self):
        """The stream's thread has, and there is only the program's own."""
        return len(os.listdir(f"/proc/{self.events.pid}/task")) == 1

    def test_stream_of_events_ends_when_its_client_has_gone(self):
        for version in peers.VERSIONS:
            client, accepted = self.connect(version)
            with accepted.dup() as copy, client:
                self.offer(accepted, preread=events_request(), metadata=METADATA)
                with client.makefile("rb") as file:
                    read_head(file)
                    read_event(file)  # the next one comes in a second
                self.assertFalse(self.has_ended())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                wait_until(lambda: copy.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                           or self.has_ended(), "it is reset")
                wait_until(self.has_ended, "its stream ends")


if __name__ == "__main__":
    peers.main()
