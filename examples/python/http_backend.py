#!/usr/bin/env python3
"""http_backend.py SOCKET [CONNECTIONS]: serves handed-over HTTP connections with http.server.

/hello greets the client by its address. /events?n=5&ms=200 sends five events, 200 milliseconds apart.
Any other request is answered with what came; a body comes back. At most CONNECTIONS (512) are served at once; the broker keeps the others.

One thread for each connection; the main thread alone uses the backend's handle. SIGTERM: nothing
new is taken, each request that has begun is answered, and the exit status is 0. A second one ends
it at once.
"""

import io
import json
import os
import re
import select
import signal
import socket
import socketserver
import sys
import threading
import time
import urllib.parse
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

import handoff

SILENCE_S = 30  # how long a client may send nothing, or take nothing
GOODBYE_S = 1  # how long it may take to close its end
MAX_BODY = 16 * 1024 * 1024
NUMBER = re.compile(r"\b(n|ms)=([0-9]{1,5})\b")
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r]*)?\r\n")


class Refused(Exception):
    """The answer to a request that is not what it should be."""


def client_of(metadata):
    """The client's address and port, if the broker says them: nginx does, with "handoff_metadata
    default". None otherwise.

    X-Forwarded-For and its like say nothing here. They are the client's own bytes: no proxy has set
    or removed them. And behind a load balancer the peer of the connection is the balancer.
    """
    try:
        client = json.loads(metadata)["client"]
        return str(client["address"]), int(client.get("port", 0))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


class Input(io.RawIOBase):
    """What a client sends: first what the broker has read, then what comes over the connection."""

    def __init__(self, preread, connection, stopping):
        self.preread = memoryview(preread)
        self.connection = connection
        self.between_requests = False
        self.ended = False
        self.either = select.poll()
        self.either.register(connection, select.POLLIN)
        self.either.register(stopping, select.POLLIN)

    def readable(self):
        return True

    def readinto(self, buffer):
        if self.preread:
            count = min(len(buffer), len(self.preread))
            buffer[:count] = self.preread[:count]
            self.preread = self.preread[count:]
            return count
        if self.between_requests:
            ready = dict(self.either.poll(SILENCE_S * 1000))
            if self.connection.fileno() not in ready:
                return 0
        count = self.connection.recv_into(buffer)
        self.ended = count == 0
        return count


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.1"  # even garbage is answered with a status line
    server_version = "handoff-python"
    timeout = SILENCE_S

    def setup(self):
        self.arrival = self.request
        self.request = self.arrival.connection
        address = client_of(self.arrival.metadata) or self.request.getpeername()
        self.client_address = address if isinstance(address, tuple) else ("unix", 0)
        # Answers are written in two pieces. But a client may have a Unix socket, too.
        self.disable_nagle_algorithm = self.request.family in (socket.AF_INET, socket.AF_INET6)
        super().setup()
        self.rfile.close()  # it knows of the connection only
        self.input = Input(self.arrival.preread, self.request, self.server.stopping)
        self.rfile = io.BufferedReader(self.input)

    def handle(self):
        self.handle_one_request()
        while not self.close_connection and self.another_request():
            self.handle_one_request()

    def another_request(self):
        """Waits for one to begin. False if the client has nothing more, or the server stops."""
        self.input.between_requests = True
        try:
            return bool(self.rfile.peek(1))
        finally:
            self.input.between_requests = False

    def answer(self):
        if self.input.ended:  # http.server takes what there is of a head for all of it
            raise ConnectionError("the client has gone within a head")
        try:
            body = self.read_body()
        except Refused as refused:
            return self.send_error(refused.args[0])
        path, _, query = self.path.partition("?")
        if path == "/events" and self.command in ("GET", "HEAD"):
            numbers = dict(NUMBER.findall(query))
            return self.send_events(int(numbers.get("n", 1)), int(numbers.get("ms", 0)) / 1000)
        if path == "/hello":
            return self.send_body(f"hello {self.client_address[0]}\n".encode("latin-1"))
        return self.send_body(body or self.description())

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def description(self):
        quoted = urllib.parse.quote_from_bytes
        return "".join(line + "\n" for line in (
            f"{self.command} {self.path}",
            f"served by the backend {os.getpid()}",
            f"service: {quoted(self.arrival.service)}",
            f"correlation: {quoted(self.arrival.correlation)}",
            f"metadata: {quoted(self.arrival.metadata)}",
            f"tls: {' '.join(self.request.session()) if self.arrival.tls else 'none'}",
            f"client: {self.client_address[0]} {self.client_address[1]}",
        )).encode("latin-1")

    def send_body(self, body):
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/octet-stream" if self.command in
                         ("POST", "PUT", "PATCH") else "text/plain; charset=iso-8859-1")
        self.send_header("Content-Length", str(len(body)))
        self.end_head()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_events(self, count, pause):
        chunked = self.request_version >= "HTTP/1.1"
        self.close_connection = self.close_connection or not chunked
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_head()
        if self.command == "HEAD":
            return
        gone = select.poll()  # a write to a client with TLS need not fail
        gone.register(self.request, 0)
        for number in range(1, count + 1):
            if number > 1 and gone.poll(pause * 1000):
                raise ConnectionError("the client has gone")
            event = b"data: %d\n\n" % number
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event) if chunked else event)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def end_head(self):
        # What the client has sent already is still answered, but it need not send more.
        if self.server.draining and not self.another_request():
            self.close_connection = True
        self.send_header("Connection", "close" if self.close_connection else "keep-alive")
        self.end_headers()

    def send_response(self, code, message=None):
        super().send_response(code, message)
        self.send_header("X-Served-By", self.server_version)
        self.send_header("X-Backend-Pid", str(os.getpid()))

    # ---- the body ----

    def read_body(self):
        lengths = self.headers.get_all("Content-Length", [])
        codings = self.headers.get_all("Transfer-Encoding", [])
        # What can be read in two ways would let a client smuggle a request past a proxy.
        if self.headers.defects or len(lengths) + len(codings) > 1:
            raise Refused(HTTPStatus.BAD_REQUEST)
        if codings and codings[0].strip().lower() != "chunked":
            raise Refused(HTTPStatus.NOT_IMPLEMENTED)
        length = lengths[0].strip() if lengths else "0"
        if not re.fullmatch("[0-9]{1,18}", length):
            raise Refused(HTTPStatus.BAD_REQUEST)
        if int(length) > MAX_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if self.headers.get("Expect", "").lower() == "100-continue" and \
                self.request_version >= "HTTP/1.1":
            self.send_response_only(HTTPStatus.CONTINUE)
            self.end_headers()
        return self.read_chunks() if codings else self.read_exactly(int(length))

    def handle_expect_100(self):
        return True  # read_body() says it, when it knows that it wants the body

    def read_chunks(self):
        body = bytearray()
        while True:
            head = CHUNK.fullmatch(self.read_line())
            if not head:
                raise Refused(HTTPStatus.BAD_REQUEST)
            length = int(head[1], 16)
            if length == 0:
                break
            if len(body) + length > MAX_BODY:
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            body += self.read_exactly(length)
            if self.read_exactly(2) != b"\r\n":
                raise Refused(HTTPStatus.BAD_REQUEST)
        for _ in range(100):  # trailers
            if self.read_line() == b"\r\n":
                return bytes(body)
        raise Refused(HTTPStatus.BAD_REQUEST)

    def read_line(self):
        line = self.rfile.readline(1024)
        if not line.endswith(b"\r\n"):
            raise Refused(HTTPStatus.BAD_REQUEST)
        return line

    def read_exactly(self, length):
        data = self.rfile.read(length)
        if len(data) < length:
            raise ConnectionError("the client has gone within a body")
        return data

    def address_string(self):
        """Who it is in the log, which nobody else can write: the broker sees nothing of this."""
        name = self.arrival.correlation.decode("ascii", "backslashreplace")
        return name or super().address_string()


class Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """Takes connections from the backend where socketserver's own servers accept(2) them. What it
    calls a request is an arrival here."""

    def __init__(self, backend, stopping, connections):
        super().__init__(None, Handler)
        self.backend = backend
        self.stopping = stopping  # a descriptor, readable from then on
        self.draining = False
        self.places = threading.Semaphore(connections)

    def serve_forever(self):
        either = select.poll()
        either.register(self.backend, select.POLLIN)
        either.register(self.stopping, select.POLLIN)
        while not self.draining:
            if self.stopping in dict(either.poll()):
                self.draining = True
                self.backend.drain()
            self.backend.dispatch()
            for arrival in iter(self.backend.next, None):
                self.take(arrival)

    def take(self, arrival):
        if not self.places.acquire(blocking=False):
            self.backend.reject(arrival, handoff.Reason.BACKEND_BUSY)
            return
        try:
            self.backend.adopt(arrival)
        except handoff.TakenBack:
            self.places.release()
            return
        try:
            self.process_request(arrival, None)
        except RuntimeError:  # there is no thread for it
            self.handle_error(arrival, None)
            self.shutdown_request(arrival)

    def shutdown_request(self, arrival):
        connection = arrival.connection
        try:
            # The broker may not have closed its copy yet; while it is open close() ends nothing.
            connection.shutdown(socket.SHUT_WR)
            # To close it with unread bytes in it would take the answer from the client.
            end = time.monotonic() + GOODBYE_S
            connection.settimeout(GOODBYE_S)
            while connection.recv(65536) and time.monotonic() < end:
                pass
        except OSError:
            pass
        finally:
            connection.close()
            self.places.release()

    def handle_error(self, arrival, client_address):
        if not isinstance(sys.exc_info()[1], OSError):  # the client has gone: no news
            super().handle_error(arrival, client_address)


def stop_at_once_next_time(*_):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    connections = int(sys.argv[2]) if len(sys.argv) == 3 else 512

    # A signal writes into this pipe, which nobody reads: so every thread can wait for it.
    stopping, stop = os.pipe()
    os.set_blocking(stop, False)
    signal.set_wakeup_fd(stop, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, stop_at_once_next_time)
    signal.signal(signal.SIGINT, stop_at_once_next_time)

    try:
        with handoff.Backend.listen(sys.argv[1]) as backend:
            print(f"listening on {sys.argv[1]}", flush=True)
            server = Server(backend, stopping, connections)
            server.serve_forever()
            adopted = backend.get_statistics()["adopted"]
    except handoff.HandoffError as error:
        sys.exit(f"http_backend: {error}")
    server.server_close()  # waits for the threads
    print(f"adopted: {adopted}")


if __name__ == "__main__":
    main()
