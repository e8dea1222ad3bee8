#!/usr/bin/env python3
"""check_examples.py BUILD: runs the examples in C++ with each other and with those in C.

Each client must get exactly one answer, which says who gave it. At the end these answers are
compared with what the processes counted. CONNECTIONS (300) comes from the environment.
"""

import collections
import concurrent.futures
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

CONNECTIONS = int(os.environ.get("CONNECTIONS", 300))
TIMEOUT_MS, FAILURE_PERIOD_MS = 300, 300
MOST_TIMEOUT_MS = 20000
PATIENCE = 60  # seconds, for anything that should happen at once: only a fault takes so long

REQUEST = b"GET / HTTP/1.0\r\n\r\n"
ANSWER = re.compile(rb"HTTP/1\.0 200 OK\r\nContent-Length: \d+\r\n\r\n"
                    rb"served by the (broker|backend) ?\d*\n")


class Process:
    """One of the examples, listening."""

    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(self.process)
        self.address = self.process.stdout.readline().rpartition(" ")[2].strip()
        expect(self.address, f"{command[0]} does not start")

    def end(self):
        """Ends it and returns what it counted."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=PATIENCE)
        expect(self.process.returncode == 0, f"{self.process.args[0]} failed")
        counts = (line.rsplit(": ", 1) for line in output.splitlines())
        return {name: int(count) for name, count in counts}


def expect(true, otherwise):
    if not true:
        raise SystemExit(f"error: {otherwise}")


def ask(address, *pieces):
    """One client, which sends its request in pieces: who answered it."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while part := connection.recv(4096):
            answer += part
    match = ANSWER.fullmatch(answer)
    expect(match, f"not one answer: {answer!r}")
    return match[1].decode()


def run(build, directory, broker_name, backend_name, timeout_ms):
    """Returns whether the timeout was long enough for this machine."""
    path = os.path.join(directory, "handoff.sock")
    answers = collections.Counter()

    def ask_many(count, *pieces):
        clients = [pool.submit(ask, broker.address, *pieces) for _ in range(count)]
        found = collections.Counter(client.result() for client in clients)
        answers.update(found)
        return found

    def return_to_backend():
        end = time.monotonic() + PATIENCE
        while not ask_many(1, REQUEST)["backend"]:
            expect(time.monotonic() < end, "no client is adopted")
            time.sleep(0.01)

    backend = Process(f"{build}/{backend_name}", path)
    broker = Process(f"{build}/{broker_name}", "0", path, str(timeout_ms), str(FAILURE_PERIOD_MS))
    return_to_backend()
    # The broker offers what it reads first. The backend reads the rest.
    found = ask_many(CONNECTIONS, REQUEST[:5], REQUEST[5:])
    if found["backend"] != CONNECTIONS:
        counted = broker.end()
        expect(counted.get("fallback, acknowledgement timeout"), f"not all are adopted: {counted}")
        backend.end()
        return False

    # It finds offers that the broker took back, and adopts none of them.
    backend.process.send_signal(signal.SIGSTOP)
    expect(not ask_many(16, REQUEST)["backend"], "a stopped backend serves")
    backend.process.send_signal(signal.SIGCONT)
    return_to_backend()

    counted = backend.end()
    expect(counted == {"adopted": answers["backend"], "answered": answers["backend"]},
           f"the backend counted {counted}, the clients {answers}")
    expect(os.listdir(directory) == [], "the backend left its socket")
    expect(not ask_many(16, REQUEST)["backend"], "an ended backend serves")

    counted = broker.end()
    total = sum(answers.values())
    expect(counted.pop("connections") == total, "the broker counted other connections")
    expect(counted.pop("adopted") == answers["backend"], "the broker counted other adoptions")
    expect(sum(counted.values()) == answers["broker"], "the broker counted other fallbacks")
    print(f"check-cpp: {broker_name} and {backend_name}: {answers['backend']} clients adopted,"
          f" {answers['broker']} fallbacks")
    return True


running = []
with tempfile.TemporaryDirectory(prefix="handoff-cpp-") as scratch, \
        concurrent.futures.ThreadPoolExecutor(8) as pool:
    try:
        for pair in ("broker_cc", "backend_cc"), ("broker", "backend_cc"), ("broker_cc", "backend"):
            timeout = TIMEOUT_MS
            while not run(sys.argv[1], scratch, *pair, timeout):
                timeout *= 2
                expect(timeout <= MOST_TIMEOUT_MS, "the timeout is never long enough")
    finally:
        for process in running:
            process.kill()
            process.wait()
