#!/usr/bin/env python3
"""bench.py: what handoff_pass costs beside nginx's proxy_pass, and beside a client that reaches the
backend directly. One backend program answers all; wrk asks.

In each repetition (REPETITIONS, 7) every way is taken, in turns first, for DURATION (2). Figures
are medians, and ratios are medians of the repetitions' ratios. Processor time is what the kernel
has counted for nginx's workers and for the backend (schedstat), divided by the requests answered.
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
from harness import Backend, Nginx, free_port, wait_for_channels  # noqa: E402
from machine import processor  # noqa: E402
from measure import processor_ns, wait_for_rest  # noqa: E402

REPETITIONS = int(os.environ.get("REPETITIONS", 7))
DURATION = int(os.environ.get("DURATION", 2))
CONNECTIONS = int(os.environ.get("CONNECTIONS", 32))
LARGE = 100 << 20

HANDOFF, PROXY, KEEPALIVE, DIRECT = "handoff_pass", "proxy_pass", "proxy_pass, keepalive", "direct"
WAYS = [HANDOFF, PROXY, KEEPALIVE, DIRECT]

SERVERS = """
    access_log off;
    upstream kept {{ server unix:{directory}/backend.sock; keepalive 64; }}
    server {{ listen 127.0.0.1:{ports[0]};
        location / {{ handoff_pass unix:{directory}/handoff.sock; }} }}
    server {{ listen 127.0.0.1:{ports[1]};
        location / {{ proxy_pass http://unix:{directory}/backend.sock; }} }}
    server {{ listen 127.0.0.1:{ports[2]}; location / {{ proxy_pass http://kept; }} }}
"""


class Measured:
    """Requests a second, and microseconds of processor time for each."""

    def __init__(self, requests, seconds, nginx, backend):
        self.rate = requests / seconds
        self.nginx = nginx / requests / 1000
        self.backend = backend / requests / 1000
        self.both = self.nginx + self.backend


class Bench:
    def __init__(self, directory):
        self.backend = Backend(directory, None, "-h", "handoff.sock", "-u", "backend.sock")
        ports = [free_port() for _ in range(3)]
        self.nginx = Nginx(directory, http=SERVERS.format(directory=directory, ports=ports))
        self.ports = dict(zip(WAYS, [*ports, self.backend.port]))
        wait_for_channels(self.nginx, self.backend)
        self.workers = self.nginx.workers()

    def end(self):
        self.nginx.kill()
        self.backend.kill()

    def processor_ns(self):
        """Of nginx and of the backend, when both have done all that there is."""
        pids = [self.backend.process.pid]
        wait_for_rest([*self.workers, *pids])
        return processor_ns(self.workers), processor_ns(pids)

    def measure(self, way, close):
        command = ["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{DURATION}s"]
        if close:
            command += ["-H", "Connection: close"]
        command.append(f"http://127.0.0.1:{self.ports[way]}/r/bench")
        nginx, backend = self.processor_ns()
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        nginx, backend = (after - before for after, before in
                          zip(self.processor_ns(), (nginx, backend)))
        if "Non-2xx" in output or "Socket errors" in output:
            raise SystemExit(f"error: {way}: not all were answered:\n{output}")
        requests, seconds = re.search(r"(\d+) requests in ([\d.]+)s", output).groups()
        return Measured(int(requests), float(seconds), nginx, backend)

    def measure_large(self, way):
        """Milliseconds of nginx's processor time while all but the first 10 MiB are received: by then
        the handoff is over for nginx, too."""
        buffer = bytearray(1 << 20)
        with socket.create_connection(("127.0.0.1", self.ports[way])) as connection:
            connection.sendall(b"GET /bytes/x/%d HTTP/1.1\r\nHost: bench\r\n\r\n" % LARGE)
            left, nginx = LARGE, None
            while left > 0:
                received = connection.recv_into(buffer)
                if received == 0:
                    raise SystemExit(f"error: {way}: a response that ends early")
                left -= received
                if nginx is None and left < LARGE - 10 * len(buffer):
                    nginx = processor_ns(self.workers)
            return (processor_ns(self.workers) - nginx) / 1e6


def run(bench):
    """Every way and kind, again and again: {(way, close): [Measured]}, {way: [milliseconds]}."""
    measured = {(way, close): [] for way in WAYS for close in (False, True)}
    large = {way: [] for way in WAYS}
    for repetition in range(REPETITIONS):
        first = repetition % len(WAYS)
        for way in WAYS[first:] + WAYS[:first]:
            for close in False, True:
                measured[way, close].append(bench.measure(way, close))
            large[way].append(bench.measure_large(way))
    return measured, large


def ratio(measured, close, what, way, other):
    """The median of what this way takes or gives, as a multiple of the other."""
    return statistics.median(getattr(a, what) / getattr(b, what) for a, b in
                             zip(measured[way, close], measured[other, close]))


def report(measured, large):
    verdicts = []

    def verdict(text, value, is_met):
        verdicts.append(f"{text:74}{value:>8}  {'met' if is_met else 'NOT MET'}")

    for close, title in (False, "kept-alive requests"), (True, "Connection: close"):
        print(f"{title:26}{'requests/s':>12}{'nginx us':>10}{'backend us':>12}{'both us':>9}"
              f"{'rate, handoff/it':>18}{'time, handoff/it':>18}")
        for way in WAYS:
            middle = {what: statistics.median(getattr(m, what) for m in measured[way, close])
                      for what in ("rate", "nginx", "backend", "both")}
            print(f"{way:26}{middle['rate']:12.0f}{middle['nginx']:10.2f}"
                  f"{middle['backend']:12.2f}{middle['both']:9.2f}"
                  f"{ratio(measured, close, 'rate', HANDOFF, way):18.2f}"
                  f"{ratio(measured, close, 'both', HANDOFF, way):18.2f}")
        print()
    print(f"{'100 MiB, all but 10':26}{'nginx ms':>12}")
    for way in WAYS:
        print(f"{way:26}{statistics.median(large[way]):12.2f}")
    print()

    for other in PROXY, KEEPALIVE:
        value = ratio(measured, False, "rate", HANDOFF, other)
        verdict(f"kept-alive, requests a second, of {other}: 2 at least", f"{value:.2f}",
                value >= 2)
    value = ratio(measured, False, "rate", HANDOFF, DIRECT)
    verdict("kept-alive, requests a second, of direct: 0.95 at least", f"{value:.2f}",
            value >= 0.95)
    for other in PROXY, KEEPALIVE:
        value = ratio(measured, True, "rate", HANDOFF, other)
        verdict(f"close, requests a second, of {other}: 1 at least", f"{value:.2f}", value >= 1)
        value = ratio(measured, True, "both", HANDOFF, other)
        verdict(f"close, processor time of both, of {other}: 0.85 at most", f"{value:.2f}",
                value <= 0.85)
    value = statistics.median(large[HANDOFF])
    verdict("100 MiB, nginx's milliseconds after the handoff: 0.00 at most", f"{value:.2f}",
            value < 0.01)
    print("\n".join(verdicts))


def machine():
    nginx = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    return (f"{os.cpu_count()} x {processor()}, "
            f"Linux {platform.release()}, {nginx.split(': ')[-1].strip()}, "
            f"{' '.join(wrk.split()[:2])}; two workers, one backend, {CONNECTIONS} connections")


def main():
    print(machine() + "\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="handoff-bench-") as directory:
        bench = Bench(directory)
        try:
            measured, large = run(bench)
        finally:
            bench.end()
    report(measured, large)


main()
