"""Clients for the tests of the examples for the web: they speak over any connection."""

import base64
import json
import os

FORGED = "X-Forwarded-For: 192.0.2.66\r\nX-Real-IP: 192.0.2.66\r\nX-Forwarded-Proto: gopher\r\n"


def events_request(last=None):
    return ("GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
            + FORGED + (f"Last-Event-ID: {last}\r\n" if last is not None else "") + "\r\n").encode()


def read_head(file):
    """The status line and the headers of an answer."""
    lines = []
    while (line := file.readline()) not in (b"\r\n", b""):
        lines.append(line.decode().rstrip())
    return lines


def read_event(file):
    """The next event that has data: its id, and its data."""
    event = {}
    for line in file:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if not name and "data" in event:
            return int(event["id"]), json.loads(event["data"])
        event[name] = value
    raise EOFError("the stream has ended")


class WebSocket:
    """A client's end of one."""

    def __init__(self, connection, headers="Origin: https://localhost\r\n", path="/socket"):
        self.connection, self.file = connection, connection.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        connection.sendall((
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n{FORGED}{headers}\r\n").encode())

    def send(self, first, data, masked=True):
        """A frame: its first byte is the type, with 0x80 if it is the last one of a message."""
        length = len(data).to_bytes(8, "big")
        mask = os.urandom(4)
        self.connection.sendall(
            bytes([first]) + (bytes([0x80 * masked | len(data)]) if len(data) < 126 else
                              bytes([0x80 * masked | 127]) + length)
            + (mask if masked else b"") + bytes(a ^ mask[i % 4] for i, a in enumerate(data)))

    def receive(self):
        """The type and the content of the next message."""
        first, length = self.file.read(2)
        if length > 125:
            length = int.from_bytes(self.file.read(2 if length == 126 else 8), "big")
        return first & 15, self.file.read(length)

    def receive_but_ticks(self):
        """The next one that is no time of day and no ping."""
        while True:
            kind, data = self.receive()
            if kind != 9 and not (len(data) == 8 and data[2:3] == b":"):
                return kind, data
