"""Several processes for one application, each with a handoff socket of its own in a directory."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import Sequence

TICK_S = 1
QUICK_S = 5  # a worker that ends sooner after its start is not started again at once, but
PAUSE_S, MOST_PAUSE_S = 1, 32  # after so long, and the next time after twice as long
PR_SET_PDEATHSIG = 1
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}

libc = ctypes.CDLL(None)


class Worker:
    """A process that is started again when it ends by itself."""

    def __init__(self, command: Sequence[str], path: str, ready_fd: int) -> None:
        self.command = [*command, "--socket", path, "--ready-fd", str(ready_fd)]
        self.path, self.ready_fd = path, ready_fd
        self.pause = PAUSE_S
        self.again_at: float | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        parent = os.getpid()

        def in_child() -> None:
            """It ends with its parent, however that ends."""
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(0)

        self.process, self.started, self.again_at = None, time.monotonic(), None
        try:
            self.process = subprocess.Popen(self.command, preexec_fn=in_child,
                                            pass_fds=[self.ready_fd])
        except OSError as error:
            self.wait_after(f"could not be started: {error}")

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def start_again_if_ended(self) -> None:
        if self.again_at is None and self.process is not None and self.process.poll() is not None:
            code = self.process.returncode
            self.wait_after(f"was killed by signal {-code}" if code < 0 else f"ended with {code}")
        if self.again_at is not None and time.monotonic() >= self.again_at:
            self.start()

    def wait_after(self, what: str) -> None:
        now = time.monotonic()
        quick = now - self.started < QUICK_S
        pause = self.pause if quick else 0
        self.pause = min(2 * self.pause, MOST_PAUSE_S) if quick else PAUSE_S
        self.again_at = now + pause
        _say(f"worker {self.path} {what}: started again in {pause} s")

    def signal(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def has_failed(self) -> bool:
        """When all were told to end. One that was to be started again had nothing to end; nor had one
        that SIGTERM killed: it listens only when it has a handler for that."""
        if self.again_at is not None:
            return False
        return self.process is not None and self.process.returncode not in (0, -signal.SIGTERM)


def run_workers(command: Sequence[str], directory: str, count: int) -> bool:
    """Runs `count` times `command`, with sockets 1.sock, 2.sock ... until SIGTERM or SIGINT. Then the
    workers end what they have; a second signal ends them sooner. True if all could. If all end
    before one has listened, none is started again: a wrong name or module does not heal."""
    if not os.path.isdir(directory):
        _say(f"{directory} is no directory: make it first")
        return False
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    ready, ready_fd = os.pipe()
    os.set_blocking(ready, False)
    workers = [Worker(command, os.path.join(directory, f"{number}.sock"), ready_fd)
               for number in range(1, count + 1)]
    listened = False
    while not _told_to_end():
        all_ended = all([worker.has_ended() for worker in workers])
        listened = _is_told(ready) or listened
        if listened:
            for worker in workers:
                worker.start_again_if_ended()
        elif all_ended:
            _say("no worker could listen")
            return False
    # Ctrl-C has reached them, too, and to uvicorn a second SIGINT is the one that ends it sooner.
    for worker in workers:
        worker.signal(signal.SIGTERM)
    while not all(worker.has_ended() for worker in workers):
        if _told_to_end():
            for worker in workers:
                worker.signal(signal.SIGINT)
    return not any(worker.has_failed() for worker in workers)


def _told_to_end() -> bool:
    got = signal.sigtimedwait(SIGNALS, TICK_S)
    return got is not None and got.si_signo != signal.SIGCHLD


def _is_told(ready: int) -> bool:
    try:
        return bool(os.read(ready, 4096))
    except BlockingIOError:
        return False


def _say(text: str) -> None:
    print(f"handoff.asgi: {text}", file=sys.stderr, flush=True)
