#!/usr/bin/env python3
"""demo.py BUILD: real clients through BUILD/broker to BUILD/backend, which is killed on the way.

Each client connects, asks, reads to the end of the stream and must have got exactly one answer; the
answer says who gave it. At the end these answers are compared with what the processes counted.
CLIENTS (4000) and CONCURRENCY (8) come from the environment. A few clients then go through the
blocking pair, through a broker with many threads, and through the raw layer's pair.

Last, the same clients are served in three ways: handed over, answered by the broker, and through
BUILD/proxy, which copies. The ways take turns, each gets its clients at the same pace, and one
backend serves those that are handed over and those of the proxy. Times to the first byte include
what this program itself takes. The processor time is the broker's or the proxy's alone.

A backend that dies with a client which it has adopted but not answered takes it along: nobody else
may answer it. So SIGKILL comes when no such client exists: each has its answer, the backend is
stopped, and what is offered to it from then on it cannot adopt. These offers are in flight when it
is killed, and must fall back at once, long before their deadline. The deadline is a second, or more
on a machine that is slow.
"""

import collections
import concurrent.futures
import contextlib
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

CLIENTS = int(os.environ.get("CLIENTS", 4000))
CONCURRENCY = int(os.environ.get("CONCURRENCY", 8))
DEADLINE_MS, FAILURE_PERIOD_MS = 1000, 1000
MOST_AT_ONCE = 800  # of clients in a crowd, each with a descriptor
A_WHILE = 1  # second, for what may not happen at all
PATIENCE = 60  # seconds, for anything that should happen at once: only a fault takes so long
A_SECOND, TURN = 1000, 50  # clients of one way, and how many until it is the next one's turn
MIB = 1 << 20
LONG_ANSWER, LONG_CLIENTS = 8 * MIB, 4

ANSWER = re.compile(
    rb"HTTP/1\.0 200 OK\r\nContent-Length: \d+\r\n\r\nserved by the (broker|backend \d+)\n")

Result = collections.namedtuple("Result", "server seconds")
Way = collections.namedtuple("Way", "name process by_backend")


class Process:
    """One of the programs, listening."""

    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(self.process)
        self.address = self.process.stdout.readline().rpartition(" ")[2].strip()
        if not self.address:
            raise SystemExit(f"error: {command[0]} does not start")

    def end(self, number=signal.SIGTERM):
        """Ends it with a signal and gives what it counted."""
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=PATIENCE)
        expect(self.process.returncode == (0 if number == signal.SIGTERM else -number),
               f"{self.process.args[0]} ended with {self.process.returncode}")
        counts = (line.rsplit(": ", 1) for line in output.splitlines())
        return {name: int(count) for name, count in counts}

    def kill(self):
        self.process.kill()
        self.process.wait()

    def tcp(self):
        host, port = self.address.split(":")
        return host, int(port)

    def processor_seconds(self):
        with open(f"/proc/{self.process.pid}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[0]) / 1e9

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def expect(true, otherwise):
    if not true:
        problems.append(otherwise)


def client(address, due=0):
    """One client, at a time: a Result, or what is wrong with the answer."""
    time.sleep(max(0, due - time.perf_counter()))
    start = time.perf_counter()
    try:
        with socket.create_connection(address, timeout=PATIENCE) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            asked.release()
            answer = part = connection.recv(4096)
            seconds = time.perf_counter() - start
            while part:
                part = connection.recv(4096)
                answer += part
    except OSError as error:
        return f"client error: {error}"
    match = ANSWER.fullmatch(answer)
    return Result(match[1].decode(), seconds) if match else f"not one answer: {answer!r}"


def seconds_of_a_client(_):
    """How long one takes, of which nothing is counted."""
    start = time.perf_counter()
    expect(isinstance(client(address), Result), "without a backend: no answer")
    return time.perf_counter() - start


def run_crowd(phase, count):
    """Lets so many clients ask at once, more than can be in flight."""
    crowd = [socket.create_connection(address, timeout=PATIENCE) for _ in range(count)]
    for connection in crowd:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
    found = []
    for connection in crowd:
        with connection:
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        match = ANSWER.fullmatch(answer)
        found.append(Result(match[1].decode(), None) if match else f"not one answer: {answer!r}")
    add(phase, found)


def run(phase, count, halfway=None):
    """Sends clients through, calls `halfway` when half of them have their answer."""
    futures = [pool.submit(client, address) for _ in range(count)]
    if halfway:
        half = iter(concurrent.futures.as_completed(futures))
        for _ in range(count // 2):
            next(half)
        halfway()
    add(phase, [future.result() for future in futures])


def run_killing(phase, count, backend):
    """Kills the stopped backend when as many clients have asked as can at once."""
    while asked.acquire(blocking=False):
        pass
    futures = [pool.submit(client, address) for _ in range(count)]
    for _ in range(min(count, CONCURRENCY)):
        asked.acquire(timeout=PATIENCE)
    backend.end(signal.SIGKILL)
    add(phase, [future.result() for future in futures])


def return_to_backend(phase):
    """Sends single clients until one of them is adopted."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and not problems:
        result = client(address)
        add(phase, [result])
        if isinstance(result, Result) and result.server != "broker":
            return
        time.sleep(0.01)
    raise SystemExit("\n".join([f"FAILED: {phase}: no client is adopted", *problems[:10]]))


def add(phase, new):
    for result in new:
        if isinstance(result, Result):
            results[phase].append(result)
        else:
            problems.append(f"{phase}: {result}")


def by(phase, adopted):
    return [result for result in results[phase] if (result.server != "broker") == adopted]


def report(counted):
    print(f"{'':43}{'clients':>9}{'adopted':>9}{'fallback':>9}")
    for phase, found in results.items():
        print(f"{phase:43}{len(found):9}{len(by(phase, True)):9}{len(by(phase, False)):9}")
    everything = [result for found in results.values() for result in found]
    total = collections.Counter(result.server != "broker" for result in everything)
    print(f"{'total':43}{len(everything):9}{total[True]:9}{total[False]:9}\n")

    reasons = {name: n for name, n in counted.items() if name.startswith("fallback, ")}
    for name, count in reasons.items():
        print(f"{name:43}{count:18}")
    print(f"{'client errors':43}{errors():18}")
    print("(fallback: the broker answered, because no backend did in time, was there or had room;\n"
          " rate limited: a backend had failed too often and was given one client at a time)")

    expect(counted["connections"] == len(everything), "the broker counted other connections")
    expect(counted["adopted"] == total[True], "the broker counted other adoptions")
    expect(sum(reasons.values()) == total[False], "the broker counted other fallbacks")


def errors():
    return sum("client error" in problem or "not one answer" in problem for problem in problems)


def check_backend(backend, counted):
    """A backend must have answered what it adopted, and its clients say so too."""
    name = f"backend {backend.process.pid}"
    answers = sum(result.server == name for found in results.values() for result in found)
    expect(counted == {"adopted": answers, "answered": answers},
           f"{name} counted {counted}, its clients {answers}")


def demo(build, directory):
    handoff_socket = os.path.join(directory, "handoff.sock")

    def start_backend():
        return Process(f"{build}/backend", handoff_socket)

    def start_broker(*options):
        global address
        broker = Process(f"{build}/broker", "0", handoff_socket, *map(str, options))
        address = broker.tcp()
        return broker

    # How slow is this machine?
    broker = start_broker()
    slowest = max(pool.map(seconds_of_a_client, range(8 * CONCURRENCY)))
    broker.end()
    deadline_ms = max(DEADLINE_MS, int(20 * 1000 * slowest))

    backend = start_backend()
    broker = start_broker(deadline_ms, FAILURE_PERIOD_MS)
    run("the backend runs", CLIENTS // 4)
    run_crowd("a crowd comes at once", min(CLIENTS // 8, MOST_AT_ONCE))
    backend.process.send_signal(signal.SIGSTOP)
    run("it is stopped, SIGSTOP", CLIENTS // 16)
    # It finds offers that the broker has taken back, and must not count them as adopted.
    backend.process.send_signal(signal.SIGCONT)
    return_to_backend("it continues, SIGCONT")
    run("it continues, SIGCONT", CLIENTS // 16)
    run("it gets SIGTERM halfway", CLIENTS // 4,
        lambda: ended_backends.append((backend, backend.end())))
    run("it is down", CLIENTS // 8)

    backend = start_backend()
    return_to_backend("it is started again")
    run("it is started again", CLIENTS // 8)
    backend.process.send_signal(signal.SIGSTOP)
    run_killing("it is stopped, and killed with SIGKILL", CLIENTS // 8, backend)

    backend = start_backend()
    return_to_backend("it is started again, over its old socket")
    run("it is started again, over its old socket", CLIENTS // 8)

    ended_backends.append((backend, backend.end()))
    for ended, counted in ended_backends:
        check_backend(ended, counted)
    expect(os.listdir(directory) == [], "the backend left its socket")
    report(broker.end())
    for phase in ("it is stopped, SIGSTOP", "it is down", "it is stopped, and killed with SIGKILL"):
        expect(by(phase, False) and not by(phase, True), f"{phase}: not all were fallbacks")
    expect(max(r.seconds for r in results["it is stopped, and killed with SIGKILL"]) <
           deadline_ms / 1000, "the end of the backend did not end the wait for it")
    expect(by("the backend runs", True), "the backend runs: none was adopted")


def short(build, directory, pair, backend_name):
    """A few clients through another pair of examples, with its backend and without it."""
    global address
    results.clear()
    handoff_socket = os.path.join(directory, f"{pair}.sock")
    backend = Process(f"{build}/{backend_name}_backend", handoff_socket)
    broker = Process(f"{build}/{pair}_broker", "0", handoff_socket)
    address = broker.tcp()
    return_to_backend("runs")
    run("runs", CLIENTS // 100)
    end = Process.kill if pair == "raw" else Process.end
    end(backend)
    expect(pair == "raw" or not os.path.exists(handoff_socket),
           "blocking_backend left its socket")
    run("is down", CONCURRENCY)
    expect(not by("runs", False) and not by("is down", True), f"{pair}: {dict(results)}")
    end(broker)
    print(f"{pair + '_broker, ' + backend_name + '_backend':43}{len(by('runs', True)) + CONCURRENCY:9}"
          f"{len(by('runs', True)):9}{len(by('is down', False)):9}")


def short_answers(ways):
    """Sends clients the ways in turn, each at the same pace."""
    before = [way.process.processor_seconds() for way in ways]
    for _ in range(max(1, CLIENTS // 4 // TURN)):
        for way in ways:
            start = time.perf_counter()
            futures = [pool.submit(client, way.process.tcp(), start + number / A_SECOND)
                       for number in range(TURN)]
            add(way.name, [future.result() for future in futures])

    title = f"three ways in turn, {A_SECOND} clients a second"
    print(f"\n{title:43}{'p50':>9}{'p99':>9}{'processor':>11}")
    for way, used in zip(ways, before):
        used = way.process.processor_seconds() - used
        times = [1000 * result.seconds for result in by(way.name, way.by_backend)]
        expect(len(times) == len(results[way.name]) > 1, f"{way.name}: not all clients")
        if len(times) > 1:
            cuts = statistics.quantiles(times, n=100)
            print(f"{way.name:43}{cuts[49]:9.2f}{cuts[98]:9.2f}{1000 * used / len(times):11.3f}")
    print("(milliseconds: to the first byte; the broker's processor time for each client)\n")


def descriptors_left(process, before, seconds):
    """How many more than before it still holds after this time."""
    end = time.monotonic() + seconds
    while process.descriptors() > before and time.monotonic() < end:
        time.sleep(0.01)
    return process.descriptors() - before


def read_on(connection, answer, seconds):
    """Reads to the end, or until nothing has come for so long."""
    connection.settimeout(seconds)
    try:
        for part in iter(lambda: connection.recv(1 << 20), b""):
            answer += part
    except socket.timeout:
        pass


def long_answers(process, seconds):
    """Sends clients, and stops the process for a while when each has its first bytes. For each
    client: the descriptors held for it, the processor's milliseconds, and the bytes that arrived
    while the process was stopped or before."""
    descriptors, used = process.descriptors(), process.processor_seconds()
    answers = [bytearray() for _ in range(LONG_CLIENTS)]
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(process.tcp(), PATIENCE))
                       for _ in answers]
        for connection, answer in zip(connections, answers):
            connection.sendall(b"GET /%d HTTP/1.0\r\n\r\n" % LONG_ANSWER)
            answer += connection.recv(4096)
        held = descriptors_left(process, descriptors, seconds)
        process.process.send_signal(signal.SIGSTOP)
        list(pool.map(read_on, connections, answers, [seconds] * LONG_CLIENTS))
        arrived = sum(map(body_length, answers))
        process.process.send_signal(signal.SIGCONT)
        list(pool.map(read_on, connections, answers, [PATIENCE] * LONG_CLIENTS))
    for answer in answers:
        expect(body_length(answer) == LONG_ANSWER, f"not one answer: {body_length(answer)} bytes")
    expect(descriptors_left(process, descriptors, PATIENCE) == 0, "the clients' descriptors stay")
    used = process.processor_seconds() - used
    return held / LONG_CLIENTS, 1000 * used / LONG_CLIENTS, arrived / LONG_CLIENTS


def body_length(answer):
    return len(answer.partition(b"\r\n\r\n")[2])


def three_ways(build, directory):
    """The same clients, handed over and not."""
    global address
    results.clear()
    handoff_socket, proxies_socket = f"{directory}/handoff.sock", f"{directory}/proxies.sock"
    threaded_backend = [f"{build}/threaded_backend", handoff_socket, proxies_socket]
    with open(proxies_socket, "w", encoding="ascii"):
        pass  # somebody's file
    refused = subprocess.run(threaded_backend, stderr=subprocess.PIPE, timeout=PATIENCE)
    expect(refused.returncode == 1 and os.path.isfile(proxies_socket),
           "threaded_backend replaces a file that is no socket")
    os.unlink(proxies_socket)
    backend = Process(*threaded_backend)
    broker = Process(f"{build}/broker", "0", handoff_socket, str(1000 * PATIENCE))
    alone = Process(f"{build}/broker", "0", f"{directory}/none.sock")
    proxy = Process(f"{build}/proxy", "0", proxies_socket)
    address = broker.tcp()
    return_to_backend("handed over")
    short_answers([Way("handed over to a backend", broker, True),
                   Way("fallback: the broker answers, no backend", alone, False),
                   Way("copied by a proxy from the same backend", proxy, True)])

    # The broker may have all the time that it wants, because it should need none of it.
    held, used, arrived = zip(long_answers(broker, PATIENCE), long_answers(proxy, A_WHILE))
    title = f"for each client with an answer of {LONG_ANSWER // MIB} MiB"
    print(f"{title:43}{'handed over':>18}{'proxy':>11}")
    print(f"{'descriptors that the broker holds':43}{held[0]:18.0f}{held[1]:11.0f}")
    print(f"{'processor time of the broker':43}{used[0]:18.3f}{used[1]:11.3f}")
    print(f"{'MiB that arrive if the broker is stopped':43}"
          f"{arrived[0] / MIB:18.1f}{arrived[1] / MIB:11.1f}")
    expect(held[0] == 0 and arrived[0] == LONG_ANSWER, "the broker is needed for the long answer")
    for process in broker, alone, proxy, backend:
        process.end()
    expect(not os.path.exists(handoff_socket) and not os.path.exists(proxies_socket),
           "threaded_backend left its sockets")


running, problems, ended_backends = [], [], []
results = collections.defaultdict(list)
asked = threading.Semaphore(0)
address = None
# Both end the demo with an exception: through what cleans up.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.default_int_handler)
with tempfile.TemporaryDirectory(prefix="handoff-demo-") as directory:
    pool = concurrent.futures.ThreadPoolExecutor(CONCURRENCY)
    try:
        demo(sys.argv[1], directory)
        print()
        for pair in ("blocking", "blocking"), ("threaded", "blocking"), ("raw", "raw"):
            short(sys.argv[1], directory, *pair)
        three_ways(sys.argv[1], directory)
    finally:
        for process in running:
            process.kill()
            process.wait()
        pool.shutdown(cancel_futures=True)
if problems:
    raise SystemExit("\n".join(["\nFAILED", *problems[:10]]))
