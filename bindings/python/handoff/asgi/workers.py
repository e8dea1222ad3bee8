"""Several processes for one application, each with a handoff socket of its own in a directory."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import Sequence

PAUSE_S = 1  # a worker that ends sooner after its start waits so long for the next one
PR_SET_PDEATHSIG = 1
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}

libc = ctypes.CDLL(None)


class Worker:
    """A process that is started again when it ends by itself."""

    def __init__(self, command: Sequence[str], path: str) -> None:
        self.command, self.path = [*command, path], path
        self.start()

    def start(self) -> None:
        parent = os.getpid()

        def in_child() -> None:
            """It ends with its parent, however that ends."""
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(0)

        self.started = time.monotonic()
        self.process = subprocess.Popen(self.command, preexec_fn=in_child)

    def start_again_if_ended(self) -> None:
        status = self.process.poll()
        if status is not None and time.monotonic() - self.started >= PAUSE_S:
            print(f"worker {self.path} ended with {status}: started again", file=sys.stderr,
                  flush=True)
            self.start()


def run_workers(command: Sequence[str], directory: str, count: int) -> bool:
    """Runs `count` times `command SOCKET`, with sockets 1.sock, 2.sock ... until SIGTERM or SIGINT.
    Then the workers end what they have; a second signal ends them sooner. True if all could."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    workers = [Worker(command, os.path.join(directory, f"{number}.sock"))
               for number in range(1, count + 1)]
    while not _told_to_end():
        for worker in workers:
            worker.start_again_if_ended()
    # Ctrl-C has reached them, too, and to uvicorn a second SIGINT is the one that ends it sooner.
    for worker in workers:
        worker.process.terminate()
    while any(worker.process.poll() is None for worker in workers):
        if _told_to_end():
            for worker in workers:
                worker.process.send_signal(signal.SIGINT)
    return all(worker.process.returncode == 0 for worker in workers)


def _told_to_end() -> bool:
    got = signal.sigtimedwait(SIGNALS, PAUSE_S)
    return got is not None and got.si_signo != signal.SIGCHLD
