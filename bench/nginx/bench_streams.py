#!/usr/bin/env python3
"""bench_streams.py [RESULTS]: many long-lived streams of server-sent events through nginx, handed over
(handoff_pass) beside proxied (proxy_pass), and with clients that reach the backend directly.

In each repetition (REPETITIONS, 3) every way is taken, in turns first, with an nginx and a backend of
its own: memory that was freed would be used again. STREAMS (10000) are opened, and get an event a
second for SECONDS (10). Each must get every event. Prints a table, and writes streams.json and the
plot to the directory RESULTS; without it, only says that each event has come.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = os.path.dirname(__file__)
sys.path += [f"{HERE}/..", f"{HERE}/../../integrations/nginx/tests"]
from harness import (  # noqa: E402
    BUILD, NGINX, Nginx, Process, free_port, raise_limits, wait_for_channels)
import machine  # noqa: E402
from measure import descriptors, memory_kib, processor_ns, wait_for_rest  # noqa: E402
import plot  # noqa: E402
import report  # noqa: E402

REPETITIONS = int(os.environ.get("REPETITIONS", 3))
STREAMS = int(os.environ.get("STREAMS", 10000))
SECONDS = int(os.environ.get("SECONDS", 10))
# Client and backend have one for each stream. Of two workers that proxy, each has two for half of the
# streams or a few more: with reuseport the kernel spreads the clients by a hash.
DESCRIPTORS = STREAMS + STREAMS // 5 + 1000

HANDOFF, PROXY, DIRECT = "handoff_pass", "proxy_pass", "direct"
PROGRAMS = os.path.normpath(f"{BUILD}/../bench")
WAYS = {
    HANDOFF: "handoff_pass unix:{directory}/handoff.sock;",
    PROXY: "proxy_pass http://unix:{directory}/backend.sock; proxy_buffering off; "
           "proxy_read_timeout 1h; chunked_transfer_encoding off;",
    DIRECT: None,
}
SERVER = """
    access_log off;
    server {{ listen 127.0.0.1:{port} reuseport backlog=4096; location / {{ {how} }} }}
"""
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


class Server:
    """A backend, and an nginx before it unless the clients go to the backend directly."""

    def __init__(self, way, directory, ends):
        """`ends` is what ends them."""
        self.backend = Process(
            [f"{PROGRAMS}/stream_backend", "handoff.sock", "backend.sock", str(STREAMS)],
            directory, **PIPES)
        ends.callback(self.backend.kill)
        self.port = int(self.backend.process.stdout.readline())
        self.nginx, self.workers = None, set()
        if WAYS[way]:
            self.port = free_port()
            self.nginx = Nginx(directory, descriptors=DESCRIPTORS, http=SERVER.format(
                port=self.port, how=WAYS[way].format(directory=directory)))
            ends.callback(self.nginx.kill)
            wait_for_channels(self.nginx, self.backend)
            self.workers = self.nginx.workers()

    def log(self):
        return self.nginx.log() if self.nginx else []

    def begin_events(self):
        self.backend.process.stdin.write(f"{SECONDS}\n")
        self.backend.process.stdin.flush()

    def processor_ms(self):
        """Of nginx and of the backend, when both have done all that there is."""
        backend = [self.backend.process.pid]
        wait_for_rest([*self.workers, *backend])
        return processor_ns(self.workers) / 1e6, processor_ns(backend) / 1e6


def fail(way, server, what):
    raise SystemExit("\n".join([f"error: bench-nginx: {way}: {what}", *server.log()[-3:]]))


def said(way, server, client):
    """What the client says next. It ends early if a stream does, or if an event is missing."""
    line = client.stdout.readline()
    if not line:
        fail(way, server, "not each event has come")
    return line


def measure(way):
    with tempfile.TemporaryDirectory(prefix="handoff-bench-") as directory, \
            contextlib.ExitStack() as ends:
        server = Server(way, directory, ends)
        before = memory_kib(server.workers)
        command = [f"{PROGRAMS}/stream_client", server.port, STREAMS, SECONDS]
        with subprocess.Popen(list(map(str, command)), text=True, **PIPES) as client:
            said(way, server, client)  # all are open
            used = server.processor_ms()
            server.begin_events()
            p50, p99 = map(float, said(way, server, client).split())
            nginx, backend = (b - a for a, b in zip(used, server.processor_ms()))
            found = {"backend": backend, "p50": p50 / 1000, "p99": p99 / 1000}
            if server.nginx:
                found |= {"memory": (memory_kib(server.workers) - before) * 1024 / STREAMS,
                          "descriptors": descriptors(server.workers), "nginx": nginx}
        if server.log():
            fail(way, server, "nginx has something in its log")
        return found


def run():
    """{way: {what: [figure of each repetition]}}"""
    found = {way: {} for way in WAYS}
    ways = list(WAYS)
    for repetition in range(REPETITIONS):
        first = repetition % len(ways)
        for way in ways[first:] + ways[:first]:
            for what, figure in measure(way).items():
                found[way].setdefault(what, []).append(round(figure, 1))
    return found


def main():
    load = os.getloadavg()[0]  # before it is our own
    raise_limits(DESCRIPTORS)
    found = run()
    if len(sys.argv) < 2:
        print(f"check-bench-streams: {len(WAYS)} ways, each of {STREAMS} streams got {SECONDS} events")
        return
    results = {"machine": machine.describe(load, nginx=machine.version(NGINX, "-v")),
               "streams": STREAMS, "seconds": SECONDS, "found": found}
    directory = pathlib.Path(sys.argv[1])
    (directory / "streams.json").write_text(json.dumps(results, indent=1) + "\n")
    (directory / "streams.svg").write_text(plot.streams(results))
    print(report.streams(results))


main()
