#!/usr/bin/env python3
"""events_backend.py SOCKET: server-sent events for clients that nginx hands over, also from https.

    location = /events {
        handoff_pass unix:/run/handoff/events.sock;
        handoff_metadata default;
        error_page 502 504 = @polling;
    }

A page reads them with `new EventSource("/events")`. Here an event is the time, once a second. The
browser connects again by itself after a break, and says which event was its last one.

Each client has a thread. SIGTERM: nothing new is taken, and the streams end. The browsers come
back, to whoever listens then.
"""

import contextlib
import json
import select
import signal
import socket
import sys
import threading
import time

import handoff

SLOW_S = 30  # how long a client may take nothing
MOST_HEAD = 65536
HEAD = (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
        b"Connection: close\r\n\r\nretry: 1000\n\n")
REFUSAL = b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nContent-Length: 0\r\n\r\n"

stopping = threading.Event()


def who(arrival):
    """The client's address and its TLS version, as nginx says them. What the request says of that,
    such as X-Forwarded-For, is the client's own: no proxy has set or removed it."""
    facts = json.loads(arrival.metadata)
    return facts["client"]["address"], facts.get("tls", {}).get("version", "no TLS")


def read_head(arrival):
    """The request line, and the headers by their names. It begins with what nginx has read."""
    head = arrival.preread
    while b"\r\n\r\n" not in head and len(head) < MOST_HEAD:
        more = arrival.connection.recv(4096)
        if not more:
            raise ConnectionError("the client has gone")
        head += more
    request, *lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    headers = (line.partition(":") for line in lines)
    return request, {name.lower(): value.strip() for name, _, value in headers}


def stream(connection, number, client, version):
    """Sends one event a second until the program stops or the client is gone."""
    connection.sendall(HEAD)
    gone = select.poll()  # a write to a client with TLS need not fail
    gone.register(connection, 0)
    while not stopping.is_set() and not gone.poll(0):
        number += 1
        data = json.dumps({"time": time.strftime("%H:%M:%S"), "client": client, "tls": version})
        connection.sendall(f"id: {number}\ndata: {data}\n\n".encode())
        stopping.wait(1)


def goodbye(connection):
    """Ends a connection, so that the client sees that nothing is missing."""
    connection.shutdown(socket.SHUT_WR)  # with TLS it sends close_notify
    connection.settimeout(1)
    end = time.monotonic() + 2
    while time.monotonic() < end and connection.recv(65536):
        pass  # to close it with unread bytes would reset it


def serve(arrival, client, version):
    arrival.connection.settimeout(SLOW_S)
    request, headers = read_head(arrival)
    last = headers.get("last-event-id", "")
    if request.startswith("GET "):
        number = int(last) if last.isascii() and last.isdigit() and len(last) < 10 else 0
        stream(arrival.connection, number, client, version)
    else:
        arrival.connection.sendall(REFUSAL)
    goodbye(arrival.connection)


def take(backend, arrival, serve_client):
    """Looks before it adopts: until then nginx can serve the client another way."""
    try:
        facts = who(arrival)
    except (ValueError, LookupError, TypeError):
        print("no client in the metadata: say `handoff_metadata default`", file=sys.stderr)
        return backend.reject(arrival, handoff.Reason.REJECTED)
    try:
        backend.adopt(arrival)
    except handoff.TakenBack:
        return None

    def run_thread():
        with arrival.connection, contextlib.suppress(OSError):  # the client has gone: no news
            serve_client(arrival, *facts)
    return threading.Thread(target=run_thread, daemon=True).start()


def run(path, serve_client):
    """Serves each client with a call of its own, in a thread, until a signal comes."""
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with woken, waker, handoff.Backend.listen(path) as backend:
        print(f"listening on {path}", flush=True)
        while not stopping.is_set():
            select.select([backend, woken], [], [])
            backend.dispatch()
            for arrival in iter(backend.next, None):
                take(backend, arrival, serve_client)
        backend.drain()  # brokers offer their clients to others
        end = time.monotonic() + 5
        for thread in threading.enumerate()[1:]:
            thread.join(max(end - time.monotonic(), 0))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run(sys.argv[1], serve)
