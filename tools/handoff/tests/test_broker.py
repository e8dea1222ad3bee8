"""What handoff broker and handoff exec say: of addresses, backends, and what is missing."""

import errno
import os
import re
import signal
import socket
import subprocess

from command import PATIENCE, STRANGER, Test, counts, needs_root, wait_until
from test_serving import ask, ask_all


def blocks_sigterm(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        blocked = int(re.search(r"SigBlk:\s*([0-9a-f]+)", status.read())[1], 16)
    return blocked >> (signal.SIGTERM - 1) & 1


class Sayings(Test):
    def test_address_that_cannot_be_used(self):
        for address in "192.0.2.1:80", "unix:/nonexistent/x", "no-such-host.invalid:80":
            result = self.run_command("broker", address, self.path)
            self.assertEqual(result.returncode, 1, address)
            self.assertRegex(result.stderr, "^handoff broker: .*\n$")

    def test_file_that_is_no_socket_is_not_replaced(self):
        target, link = (os.path.join(self.directory, name) for name in ("target", "link"))
        with socket.socket(socket.AF_UNIX) as nobody_listens:
            nobody_listens.bind(target)
        os.symlink(target, link)
        fifo = os.path.join(self.directory, "fifo")
        os.mkfifo(fifo)
        file = os.path.join(self.directory, "file")
        with open(file, "w", encoding="ascii") as content:
            content.write("content")
        for path in link, fifo, file, self.directory:
            before = os.lstat(path).st_ino
            result = self.run_command("broker", f"unix:{path}", self.path)
            self.assertEqual((result.returncode, result.stdout), (1, ""), path)
            self.assertEqual(result.stderr,
                             f"handoff broker: unix:{path}: the file is not a socket\n")
            self.assertEqual(os.lstat(path).st_ino, before)

    def test_address_that_is_none_is_wrong_usage(self):
        for address in ("nonsense", "127.0.0.1:http:x", "127.0.0.1:99999", "unix:", "fd:", "fd:x",
                        "fd:0", "fd:77"):
            result = self.run_command("broker", address, self.path)
            self.assertEqual(result.returncode, 2, address)
            self.assertRegex(result.stderr, "^handoff broker: .*\nusage: ")

    def test_summary_names_a_backend_that_has_gone(self):
        a, b = (os.path.join(self.directory, name) for name in "ab")
        first = self.exec("cat", path=a)
        between = self.broker(self.directory, options=["--wait", "60000"])
        self.assertEqual(ask_all(between.port, 5), [])
        first.stop()
        self.exec("cat", path=b)
        self.assertEqual(ask(between.port, b"x"), b"x")
        output, _ = between.stop()
        summary = counts(output)
        self.assertEqual((summary["adopted"], summary[f"adopted by {a}"],
                          summary[f"adopted by {b}"]), (6, 5, 1))
        self.assertIn(f"adopted by {a}: 5; it has gone\n", output)

    def test_directory_without_a_backend_is_named(self):
        missing = os.path.join(self.directory, "missing") + "/"
        for path, why in ((self.directory, "no socket is in the directory"),
                          (missing, "No such file or directory")):
            between = self.broker(path, options=["--wait", "50"])
            self.assertEqual(ask(between.port), b"")
            output, errors = between.stop()
            self.assertRegex(errors, f"^handoff broker: .*no backend.*{why}.*\n$")
            self.assertIn(path, errors)
            self.assertNotIn("adopted by", output)

    def test_name_of_a_socket_forges_no_line_and_sends_no_escape(self):
        name = os.path.join(self.directory, "x\nadopted by root: 999\x1b[31m")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(name)
            listener.listen()
            between = self.broker(self.directory, options=["--wait", "50"])
            self.assertEqual(ask(between.port), b"")
            outputs = [*between.stop(), self.run_command("check", "--timeout", "100",
                                                         self.directory).stdout]
        self.assertIn("x?adopted by root: 999?[31m", outputs[0])
        self.assertIn("x?adopted by root: 999?[31m", outputs[2])
        for output in outputs:
            self.assertNotRegex(output, r"(?m)^adopted by root|\x1b")

    def test_address_of_a_client_forges_no_line_and_sends_no_escape(self):
        listening = os.path.join(self.directory, "clients.sock")
        between = self.broker(address=f"unix:{listening}", options=["-v", "--wait", "50"])
        with socket.socket(socket.AF_UNIX) as client:
            client.bind(os.path.join(self.directory, "c\n2 127.0.0.1:1: adopted\x1b[31m"))
            client.connect(listening)
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(client.recv(1), b"")
        output, _ = between.stop()
        self.assertIn("c?2 127.0.0.1:1: adopted?[31m: closed after", output)
        self.assertNotRegex(output, r"(?m)^2 |\x1b")

    def test_output_that_is_lost_is_said_with_the_first_error(self):
        with open("/dev/full", "w", encoding="ascii") as full:
            for subcommand, *rest in (("broker", "127.0.0.1:0", self.path),
                                      ("exec", self.path, "--", "cat")):
                process = subprocess.Popen([self.command, subcommand, *rest], text=True,
                                           env=self.environment, stdin=subprocess.DEVNULL,
                                           stdout=full, stderr=subprocess.PIPE)
                self.addCleanup(process.kill)
                wait_until(lambda: blocks_sigterm(process.pid), "it takes signals its own way")
                process.terminate()
                self.assertEqual(process.communicate(timeout=PATIENCE)[1],
                                 f"handoff {subcommand}: standard output: "
                                 f"{os.strerror(errno.ENOSPC)}\n")
                self.assertEqual(process.returncode, 1)

    def test_abstract_name_has_no_group_and_no_mode(self):
        for option, value in ("--group", str(os.getgid())), ("--mode", "0666"):
            result = self.run_command("exec", option, value, f"@{self.path}", "--", "cat")
            self.assertEqual((result.returncode, result.stdout), (2, ""))
            self.assertRegex(result.stderr, "^handoff exec: .*the abstract name @.* has none\nusage: ")

    @needs_root
    def test_client_that_is_closed_is_counted_by_why_there_is_no_channel(self):
        self.exec("cat")
        between = self.broker(options=["--wait", "300"], user=STRANGER, group=STRANGER,
                              extra_groups=[])
        self.assertEqual(ask(between.port), b"")
        output, _ = between.stop()
        self.assertEqual(counts(output)["closed, permission denied"], 1)
        self.assertEqual(output.count(self.path), 1)

    @needs_root
    def test_mode_that_keeps_out_who_is_allowed_is_said(self):
        for options, said in ((["--allow", STRANGER], True), (["--allow", "root"], False),
                              (["--allow", STRANGER, "--mode", "0666"], False),
                              (["--allow", STRANGER, "--mode", "0600"], True)):
            backend = self.exec("cat", options=options)
            _, errors = backend.stop()
            self.assertEqual(f"user {STRANGER}, but the mode 0600" in errors, said, options)
