#!/usr/bin/env python3
"""bench_tls.py: what handing https clients over costs beside proxy_pass over TLS. Each way has an nginx
and a backend of its own, of one program each; tls_client asks.

In each repetition every way is taken, in turns first. Figures are medians, and ratios are medians of
the repetitions' ratios. Processor time is what the kernel has counted for nginx's workers and for the
backend (schedstat), without the client's. Memory (Pss) and descriptors are those of nginx's workers, for
each stream that is open.

In the machine of tools/vm with --count (BENCH_TLS_COUNT=1) a nanosecond of processor time is an
instruction, in user space or in the kernel, and nothing is said about time. System calls are counted
there, too, by the kernel.
"""

import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(__file__)
sys.path += [f"{HERE}/..", f"{HERE}/../../integrations/nginx/tests"]
from harness import (  # noqa: E402
    BUILD, NGINX, Backend, Nginx, free_port, wait_for_channels, wait_until)
from machine import processor  # noqa: E402
from measure import descriptors, memory_kib, processor_ns, wait_for_rest  # noqa: E402

COUNTING = bool(os.environ.get("BENCH_TLS_COUNT"))
CLIENT = os.path.join(BUILD, "../bench/tls_client")


def number(name, otherwise, counting):
    return int(os.environ.get(name, counting if COUNTING else otherwise))


REPETITIONS = number("REPETITIONS", 5, 1)
CONNECTIONS = number("CONNECTIONS", 32, 4)
REQUESTS = number("REQUESTS", 300, 25)  # of each connection that is kept
CLOSED = number("CLOSED", 1000, 40)  # connections with one request each
LARGE = number("LARGE", 100 << 20, 4 << 20)
STREAMS = number("STREAMS", 500, 40)
EVENTS = number("EVENTS", 20, 5)  # in each stream
EVENT_LEN = 108
VERSION = os.environ.get("TLS_VERSION", "TLSv1.3")

HANDOFF, KERNEL, KEPT, PROXY = (
    "handoff_pass", "proxy_pass, keepalive, KTLS", "proxy_pass, keepalive", "proxy_pass")
PASS = {
    HANDOFF: "handoff_pass unix:{directory}/handoff.sock;",
    KERNEL: "proxy_pass http://kept;",
    KEPT: "proxy_pass http://kept;",
    PROXY: "proxy_pass http://unix:{directory}/backend.sock;",
}
SERVER = """
    access_log off;
    upstream kept {{ server unix:{directory}/backend.sock; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port} ssl backlog=4096;
        ssl_certificate {directory}/certificate;
        ssl_certificate_key {directory}/key;
        ssl_protocols {version};
        {more}
        location / {{ {how} }}
    }}
"""


def kernel_has_tls():
    with socket.create_server(("127.0.0.1", 0)) as server, \
            socket.create_connection(server.getsockname()) as client:
        try:
            client.setsockopt(socket.IPPROTO_TCP, 31, b"tls")  # TCP_ULP
        except OSError:
            return False
        return True


class Calls:
    """The system calls of each process, counted by the kernel: a histogram of a trace event."""

    EVENT = "/sys/kernel/tracing/events/raw_syscalls/sys_enter"
    WHAT = "hist:keys=common_pid"

    def set(self, text):
        with open(f"{self.EVENT}/trigger", "w", encoding="ascii") as file:
            file.write(text)

    def begin(self):
        self.set(self.WHAT)

    def end(self):
        """{pid: calls}"""
        with open(f"{self.EVENT}/hist", encoding="ascii") as file:
            found = re.findall(r"common_pid:\s*(\d+) \} hitcount:\s*(\d+)", file.read())
        self.set("!" + self.WHAT)
        return {int(pid): int(count) for pid, count in found}


class Way:
    """One nginx and one backend."""

    def __init__(self, name, directory):
        self.name, self.directory = name, directory
        os.mkdir(directory)
        self.make_certificate()
        self.backend = Backend(directory, None, "-h", "handoff.sock", "-u", "backend.sock")
        self.port = free_port()
        more = "" if name in (PROXY, KEPT) else "ssl_conf_command Options KTLS;"
        self.nginx = Nginx(directory, http=SERVER.format(
            directory=directory, port=self.port, version=VERSION, more=more,
            how=PASS[name].format(directory=directory)))
        wait_until(self.is_ready, "nginx listens")
        if name == HANDOFF:
            wait_for_channels(self.nginx, self.backend)
        self.workers = wait_until(lambda: len(self.nginx.workers()) == 2 and self.nginx.workers(),
                                  "two workers")

    def make_certificate(self):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-subj", "/CN=localhost", "-keyout", f"{self.directory}/key",
             "-out", f"{self.directory}/certificate"], check=True, stderr=subprocess.DEVNULL)

    def is_ready(self):
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self):
        self.nginx.kill()
        self.backend.kill()

    def sides(self):
        return self.workers, [self.backend.process.pid]

    def processor(self):
        """Microseconds of both sides, when both have done all that there is."""
        wait_for_rest([pid for side in self.sides() for pid in side])
        return [processor_ns(side) / 1000 for side in self.sides()]

    def memory(self):
        """KiB of nginx, and its descriptors."""
        return memory_kib(self.workers), descriptors(self.workers)

    def adopted(self):
        return self.backend.statistics()["adopted"]


class Measured:
    """What so many of something took, for each of them."""

    def __init__(self, way, count, run, calls):
        before = way.processor()
        if calls:
            calls.begin()
        self.times = run()  # of tls_client
        after = way.processor()
        counted = calls.end() if calls else {}
        self.nginx, self.backend = ((b - a) / count for a, b in zip(before, after))
        self.both = self.nginx + self.backend
        self.nginx_calls, self.backend_calls = (
            sum(counted.get(pid, 0) for pid in side) / count for side in way.sides())
        self.rate = count / self.times[0] * 1e9 if self.times else 0
        self.first, self.first_99, self.later, self.later_99 = (
            time / 1000 for time in self.times[2:]) if self.times else (0, 0, 0, 0)


def ask(way, concurrency, connections, requests, target):
    command = [CLIENT, "ask", way.port, concurrency, connections, requests, target]
    before = way.adopted()
    output = subprocess.run(list(map(str, command)), check=True, text=True,
                            stdout=subprocess.PIPE).stdout
    if way.name == HANDOFF and (adopted := way.adopted() - before) != connections:
        raise SystemExit(f"error: bench-tls: {adopted} of {connections} connections were handed "
                         "over:\n" + "\n".join(way.nginx.log()[-3:]))
    return numbers(output)


def numbers(line):
    """What tls_client says; nothing, if it has failed."""
    if not line:
        raise SystemExit("error: bench-tls: a client was not served")
    return list(map(float, line.split()))


class Bench:
    def __init__(self, directory):
        self.calls = Calls() if COUNTING else None
        self.ways = {}
        self.found = {}
        try:
            for number, name in enumerate(PASS):
                self.ways[name] = Way(name, f"{directory}/{number}")
        except BaseException:
            self.end()
            raise

    def end(self):
        for way in self.ways.values():
            way.end()

    def add(self, kind, way, measured):
        self.found.setdefault((kind, way.name), []).append(measured)

    def measure(self, kind, way, count, *arguments):
        self.add(kind, way, Measured(way, count, lambda: ask(way, *arguments), self.calls))

    def stream(self, way):
        """Streams are opened, and get events; then they end."""
        ask(way, CONNECTIONS, 4 * CONNECTIONS, 1, "/r/warm")
        way.processor()
        memory, descriptors = way.memory()
        with subprocess.Popen([*map(str, (CLIENT, "hold", way.port, CONNECTIONS, STREAMS)),
                               "/stream/x"], text=True, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as client:
            opened = Measured(way, STREAMS, lambda: numbers(client.stdout.readline()), self.calls)
            more_memory, more_descriptors = way.memory()
            opened.memory = (more_memory - memory) / STREAMS
            opened.descriptors = (more_descriptors - descriptors) / STREAMS
            self.add("opened", way, opened)

            def received():
                client.stdin.write("\n")
                client.stdin.flush()
                return int(client.stdout.readline())

            def send_events():
                for done in range(1, EVENTS + 1):
                    way.backend.get("/tick")
                    wait_until(lambda: received() >= done * STREAMS * EVENT_LEN, "all have it")

            self.add("events", way, Measured(way, STREAMS * EVENTS, send_events, self.calls))
            client.stdin.close()
        way.processor()

    def run(self):
        ways = list(self.ways.values())
        # Before anything else: memory that was freed is used again.
        for way in ways:
            self.stream(way)
        for repetition in range(REPETITIONS):
            first = repetition % len(ways)
            for way in ways[first:] + ways[:first]:
                self.measure("kept", way, CONNECTIONS * REQUESTS, CONNECTIONS, CONNECTIONS,
                             REQUESTS, "/r/bench")
                self.measure("closed", way, CLOSED, CONNECTIONS, CLOSED, 1, "/r/bench")
                self.measure("large", way, LARGE / (1 << 20), 1, 1, 1, f"/bytes/x/{LARGE}")
                if repetition > 0:
                    self.stream(way)

    # ---- the report ----

    def middle(self, kind, way, what):
        return statistics.median(getattr(one, what) for one in self.found[kind, way])

    def ratio(self, kind, way, what):
        """The median of what handing over takes or gives, as a multiple of this way."""
        pairs = zip(self.found[kind, HANDOFF], self.found[kind, way])
        return statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs)

    def table(self, kind, title, columns, ratios):
        """Columns are (heading, attribute, digits), ratios (heading, attribute)."""
        print(f"{title:29}" + "".join(f"{heading:>16}" for heading, *_ in columns + ratios))
        for way in self.ways:
            print(f"{way:29}" + "".join(
                f"{self.middle(kind, way, what):16.{digits}f}" for _, what, digits in columns)
                + "".join(f"{self.ratio(kind, way, what):16.2f}" for _, what in ratios))
        print()

    def report(self):
        unit = "instr." if COUNTING else "us"
        costs = [(f"nginx {unit}", "nginx", 1), (f"backend {unit}", "backend", 1),
                 (f"both {unit}", "both", 1)]
        if COUNTING:
            # In thousands, as times are in microseconds.
            costs = [(heading.replace("instr.", "k instr."), *rest) for heading, *rest in costs]
            costs += [("nginx calls", "nginx_calls", 2), ("backend calls", "backend_calls", 2)]
        both = [("both, h./it", "both")]
        rate = [] if COUNTING else [("a second", "rate", 0)]
        rates = [] if COUNTING else [("rate, h./it", "rate")]
        first = [] if COUNTING else [("first p50 us", "first", 0), ("p99 us", "first_99", 0)]
        later = [] if COUNTING else [("first p50 us", "later", 0), ("p99 us", "later_99", 0)]
        self.table("kept", "a request, kept-alive", rate + costs + later, rates + both)
        self.table("closed", "a connection, one request", rate + costs + first, rates + both)
        self.table("large", f"a MiB of {LARGE >> 20}", rate + costs, rates + both)
        self.table("opened", f"a stream of {STREAMS}",
                   costs + first + [("nginx KiB", "memory", 1), ("descriptors", "descriptors", 2)],
                   both)
        self.table("events", "an event in each stream", costs, both)


def machine():
    nginx = subprocess.run([NGINX, "-V"], capture_output=True, text=True, check=True).stderr
    version = re.search(r"nginx/[\d.]+", nginx)[0]
    openssl = re.findall(r"OpenSSL ([\d.]+)", nginx)[-1]
    return (f"{os.cpu_count()} x {processor()}, "
            f"Linux {platform.release()}, {version}, built with OpenSSL {openssl}; {VERSION}; two workers, "
            f"one backend, {CONNECTIONS} connections, {REQUESTS} requests on one that is kept")


def main():
    if not kernel_has_tls():
        sys.exit("error: bench-tls: this kernel does no TLS: `modprobe tls` loads what it needs, and "
                 "`make bench-tls-count` does without, in an emulated machine")
    print(machine())
    if COUNTING:
        print("Instructions and system calls for each, in an emulated machine: no times.")
    print(flush=True)
    with tempfile.TemporaryDirectory(prefix="handoff-bench-") as directory:
        bench = Bench(directory)
        try:
            bench.run()
        finally:
            bench.end()
    bench.report()


main()
