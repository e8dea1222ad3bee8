#!/usr/bin/env python3
"""websocket_backend.py SOCKET: WebSockets (RFC 6455) of clients that nginx hands over, also wss.

    location = /socket {
        handoff_pass unix:/run/handoff/socket.sock;
        handoff_metadata default;
    }

It greets the client by its address, sends back what comes, and sends the time once a second. No
`proxy_set_header Upgrade` is needed: the request is as the browser made it.

Each client has two threads. SIGTERM: nothing new is taken, and each client is told that this end
goes. How clients come, and who says who they are, is in events_backend.py.
"""

import base64
import contextlib
import hashlib
import sys
import threading
import time
from urllib.parse import urlsplit

from events_backend import goodbye, run, stopping

KINDS = MORE, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
GOING_AWAY, PROTOCOL_ERROR, TOO_BIG = 1001, 1002, 1009
MOST = 65536  # bytes of a message
SILENCE_S = 60  # how long a client may not even answer a ping

def answer(head):
    """The answer to the request for a WebSocket, and whether it is one from then on."""
    request, *lines = head.decode("latin-1").split("\r\n")
    parts = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in parts}
    if not request.startswith("GET ") or headers.get("upgrade", "").lower() != "websocket":
        return (b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\n"
                b"Content-Length: 0\r\n\r\n"), False
    # The page of another site could connect as well, with the cookies of this one.
    if "origin" in headers and urlsplit(headers["origin"]).netloc != headers.get("host"):
        return b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", False
    key = headers.get("sec-websocket-key", "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode("latin-1")).digest())
    return (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"), True


class Client:
    def __init__(self, connection, file):
        self.connection, self.file = connection, file
        self.sending, self.closed = threading.Lock(), False

    def send(self, kind, data=b""):
        size = len(data).to_bytes(8, "big")
        length = size[7:] if len(data) < 126 else b"\x7e" + size[6:] if len(data) < MOST else \
            b"\x7f" + size
        with self.sending:
            if not self.closed:
                self.connection.sendall(bytes([0x80 | kind]) + length + data)
            self.closed = self.closed or kind == CLOSE

    def tick(self):
        with contextlib.suppress(OSError):  # the other thread sees it, too
            while not stopping.wait(1) and not self.closed:
                self.send(TEXT, time.strftime("%H:%M:%S").encode())
                self.send(PING)  # which the client answers, so it is never silent for long
            self.close(GOING_AWAY)

    def close(self, why):
        self.send(CLOSE, why.to_bytes(2, "big"))

    def read(self, count):
        data = self.file.read(count)
        if len(data) < count:
            raise ConnectionError("the client has gone")
        return data

    def echo(self):
        """Sends the client's messages back until it closes. The result is why this end does."""
        message = kind_of_message = None
        while True:
            first, length = self.read(2)
            kind, masked, length = first & 15, length & 128, length & 127
            if length > 125:
                length = int.from_bytes(self.read(2 if length == 126 else 8), "big")
            if length + len(message or b"") > MOST:
                return TOO_BIG
            if not masked or first & 0x70 or kind not in KINDS or \
                    kind < 8 and (kind == MORE) == (message is None) or kind > 7 and length > 125:
                return PROTOCOL_ERROR
            mask, data = self.read(4) * (length // 4 + 1), self.read(length)
            data = bytes(a ^ b for a, b in zip(data, mask))
            if kind == CLOSE:
                return int.from_bytes(data[:2], "big") or 1000
            if kind == PING:
                self.send(PONG, data)
            if kind < 8:
                kind_of_message = kind or kind_of_message
                message = (message or b"") + data
                if first & 0x80:  # the last frame of a message
                    self.send(kind_of_message, message)
                    message = None


def serve(arrival, address, version):
    connection = arrival.connection
    connection.settimeout(SILENCE_S)
    # nginx has read the whole head, and a client sends no more before it is answered.
    head = arrival.preread if arrival.preread.endswith(b"\r\n\r\n") else b""
    data, is_socket = answer(head)
    connection.sendall(data)
    if is_socket:
        with connection.makefile("rb") as file:
            client = Client(connection, file)
            client.send(TEXT, f"hello {address}, {version}".encode())
            threading.Thread(target=client.tick, daemon=True).start()
            client.close(client.echo())
    goodbye(connection)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run(sys.argv[1], serve)
