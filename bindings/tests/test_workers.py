"""What a program of several processes must do, each with a socket of its own in a directory: see
test_binding.py for the program. Here BINDING_BACKEND takes a directory instead of SOCKET, has two
workers in it, 1.sock and 2.sock, and starts one again that ends."""

import contextlib
import os
import signal
import time
import unittest

import many_clients
from harness import Process, wait_until
from many_clients import AT_ONCE, BACKEND, CLIENTS

DEATHS = 2


class Program(Process):
    def __init__(self, directory, path):
        self.log = os.path.join(directory, "workers.log")
        with open(self.log, "w", encoding="utf-8") as log:
            super().__init__([*BACKEND, path], directory, stdout=log, stderr=log)

    def errors(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def listened(self, path):
        """How many processes have listened there so far."""
        return self.errors().count(f"listening on {path}\n")

    def workers(self):
        """The process at each path."""
        pid, found = self.process.pid, {}
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            children = file.read().split()
        for child in children:
            with contextlib.suppress(OSError, ValueError):  # it has ended, or has not begun
                with open(f"/proc/{child}/cmdline", encoding="utf-8") as file:
                    arguments = file.read().split("\0")
                found[arguments[arguments.index("--socket") + 1]] = int(child)
        return found


class Workers(many_clients.ThroughNginx):
    name = "workers/"
    without = CLIENTS // 8  # the other worker takes them meanwhile

    def start_program(self):
        os.mkdir(self.path)
        self.paths = [f"{self.path}{number}.sock" for number in (1, 2)]
        self.killed, self.back = [], []  # the path of each that was killed; when it was back
        self.backend = Program(self.directory, self.path)
        self.backends.append(self.backend)
        self.addCleanup(self.backend.kill)  # its workers end with it
        wait_until(lambda: all(map(self.backend.listened, self.paths)), "both listen")

    def kill_backend(self):
        path = self.paths[len(self.killed) % 2]
        pid, began = self.backend.workers()[path], time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.backend.workers().get(path) != pid, "it ends")
        self.deaths.append((began, time.monotonic()))
        self.killed.append(path)

    def restart(self):
        path = self.killed[-1]
        wait_until(lambda: self.backend.listened(path) == 1 + self.killed.count(path),
                   "it is started again")
        self.wait_for_channels(2 + len(self.killed))
        self.back.append(time.monotonic())

    def test_only_clients_of_a_killed_worker_are_cut(self):
        self.wait_for_channels(2)
        clients = self.run_clients(CLIENTS, deaths=DEATHS)
        ways = self.assert_only_the_dead_cut(clients)
        self.assertEqual(ways["fallback"], 0)  # there is always one that takes them
        worker_of = self.assert_all_told_of(clients)
        for one in clients:
            if one.cut:
                self.assertIn(worker_of[one.number],
                              [path for path, (begin, end) in zip(self.killed, self.deaths)
                               if one.began < end and one.ended > begin], vars(one))
        self.assertEqual(self.killed, self.paths)
        for path, (_, end), back in zip(self.killed, self.deaths, self.back):
            meanwhile = [worker_of[one.number] for one in clients if end < one.began < back]
            self.assertGreater(len(meanwhile) - meanwhile.count(path), AT_ONCE)
            self.assertIn(path, [worker_of[one.number] for one in clients if one.began > back])
        cut = sum(one.cut for one in clients)
        self.assertLessEqual(cut, DEATHS * AT_ONCE)
        self.backend.signal(signal.SIGTERM)
        self.assertEqual(self.backend.wait(), 0)
        print(f"{len(clients)} clients, {DEATHS} workers killed: {ways['backend']} answers, "
              f"{cut} clients cut")


if __name__ == "__main__":
    unittest.main()
