"""handoff broker and handoff exec, with each other and with other brokers."""

import contextlib
import ctypes
import os
import re
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

from command import PATIENCE, STRANGER, Running, Test, counts, needs_root, number, wait_until

import handoff

CLIENTS = number("CLIENTS", 500)


def connect(at):
    """A client of a port, or of a path."""
    is_path = isinstance(at, str)
    client = socket.socket(socket.AF_UNIX if is_path else socket.AF_INET)
    client.settimeout(PATIENCE)
    try:
        client.connect(at if is_path else ("127.0.0.1", at))
    except OSError:
        client.close()
        raise
    return client


def read_all(client):
    return b"".join(iter(lambda: client.recv(65536), b""))


def ask(at, request=b""):
    """What a client gets that sends this and then nothing more."""
    with connect(at) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return read_all(client)


def ask_all(port, count):
    """That many clients at once. Those who did not get back what they sent."""
    requests = [b"client %d\n" % i for i in range(count)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in requests]
        for client, request in zip(clients, requests):
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
        return [request for client, request in zip(clients, requests)
                if read_all(client) != request]


class Pair(contextlib.AbstractContextManager):
    """A TCP client, and the connection that a broker has accepted from it."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = connect(listener.getsockname()[1])
            self.accepted, _ = listener.accept()

    def __exit__(self, *_):
        self.client.close()
        self.accepted.close()

    def hand_over(self, path, **what):
        """Offers it until it is adopted, as a broker of its own, and closes the broker's copy."""
        with contextlib.closing(handoff.Broker(path, timeout_ms=PATIENCE * 1000)) as there:
            def try_to():
                with contextlib.suppress(handoff.HandoffError):
                    return there.offer_and_wait(self.accepted, **what)
                return None
            verdict = wait_until(try_to, "there is a verdict")
        self.accepted.close()
        return verdict


class BrokerAndExec(Test):
    def test_every_client_is_answered_by_one_of_the_backends_in_a_directory(self):
        backends = [self.exec("cat", path=os.path.join(self.directory, name)) for name in "abc"]
        before = [self.descriptors(backend.process.pid) for backend in backends]
        between = self.broker(self.directory, options=["--wait", "60000"])
        wait_until(lambda: all(self.descriptors(backend.process.pid) > count
                               for backend, count in zip(backends, before)),
                   "each has accepted the broker")
        self.assertEqual(ask(between.port, b"x"), b"x")  # then it knows of all channels
        self.assertEqual(ask_all(between.port, CLIENTS - 1), [])
        output, errors = between.stop()
        summary = counts(output)
        self.assertEqual((summary["clients"], summary["adopted"], errors), (CLIENTS, CLIENTS, ""))
        shares = [summary[f"adopted by {backend.address}"] for backend in backends]
        self.assertEqual(sum(shares), CLIENTS)
        self.assertTrue(all(shares), shares)
        for backend in backends:
            backend.stop()
        self.assertEqual(os.listdir(self.directory), [])

    def test_clients_wait_for_a_backend_with_few_commands(self):
        self.exec("cat", options=["--max", "2"])
        between = self.broker(options=["--wait", "60000"])
        self.assertEqual(ask_all(between.port, 40), [])
        self.assertEqual(counts(between.stop()[0])["adopted"], 40)

    def test_short_of_descriptors_both_ends_go_on(self):
        def few_descriptors():
            resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
        self.exec("cat", preexec_fn=few_descriptors)
        between = Running(self, "broker", "--preread", "10", "--wait", "60000", "127.0.0.1:0",
                          self.path, preexec_fn=few_descriptors)
        self.assertEqual(ask_all(between.port, 60), [])
        self.assertEqual(counts(between.stop()[0])["adopted"], 60)

    def test_broker_without_a_descriptor_for_its_only_client_goes_on(self):
        self.exec("cat")
        between = self.broker(options=["--wait", "60000"])
        pid = between.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1, before[1]))
        with connect(between.port) as client:
            client.sendall(b"x")
            client.shutdown(socket.SHUT_WR)
            self.assertIn("no room for one client: Too many open files",
                          between.process.stderr.readline())
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            self.assertEqual(read_all(client), b"x")
        self.assertEqual(counts(between.stop()[0])["adopted"], 1)

    def test_client_without_a_backend_is_closed_when_its_time_is_up(self):
        between = self.broker(options=["--wait", "100", "-v"])
        self.assertEqual(ask(between.port), b"")
        self.assertEqual(ask(between.port), b"")
        output, errors = between.stop()
        self.assertEqual(counts(output)["closed, backend unavailable"], 2)
        self.assertRegex(errors, f"^handoff broker: {re.escape(self.path)}: .*No such file.*\n$")
        self.assertRegex(output, r"(?m)^1 127\.0\.0\.1:\d+: closed after \d+ us: ")

    def test_client_waits_for_a_backend_that_comes_later(self):
        between = self.broker(options=["--wait", "60000"])
        with connect(between.port) as client:
            client.sendall(b"early")
            client.shutdown(socket.SHUT_WR)
            self.exec("cat")
            self.assertEqual(read_all(client), b"early")

    def test_killed_backend_is_one_that_others_stand_in_for(self):
        backends = [self.exec("cat", path=os.path.join(self.directory, name)) for name in "ab"]
        between = self.broker(self.directory, options=["--wait", "60000"])
        self.assertEqual(ask_all(between.port, 20), [])
        backends[0].kill()
        self.assertEqual(ask_all(between.port, 20), [])

    def test_clients_of_a_hung_backend_go_to_another_though_their_time_is_short(self):
        hung, other = (os.path.join(self.directory, name) for name in ("hung.sock", "other.sock"))
        hung = self.exec("cat", path=hung)
        self.exec("cat", path=other)
        between = self.broker(self.directory + "/", options=["--wait", "900"])
        # Each has its turn.
        for _ in range(2):
            self.assertEqual(ask(between.port, b"hello"), b"hello")
        hung.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(4):
                self.assertEqual(ask(between.port, b"hello"), b"hello")
        finally:
            hung.process.send_signal(signal.SIGCONT)

    def test_client_whose_time_is_up_is_not_offered(self):
        """Else it would wait for a backend that hangs, and the broker with it."""
        backend = self.exec("cat", options=["--max", "1"])
        between = self.broker(options=["--wait", "500"])
        with contextlib.ExitStack() as clients:
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                clients.enter_context(connect(between.port))
                time.sleep(0.0005)
            backend.process.send_signal(signal.SIGSTOP)
            try:
                between.stop()
            finally:
                backend.process.send_signal(signal.SIGCONT)

    def test_verdicts_are_printed_with_the_backend(self):
        self.exec("cat")
        between = self.broker(options=["--verbose"])
        self.assertEqual(ask(between.port, b"x"), b"x")
        self.assertRegex(between.stop()[0], r"(?m)^1 127\.0\.0\.1:\d+: adopted by "
                         + re.escape(self.path) + r" after \d+ us$")

    def test_unix_and_ipv6_addresses(self):
        self.exec("cat", path=self.path)
        at = os.path.join(self.directory, "clients")
        for _ in range(2):  # the second one replaces what the first, which is killed, leaves
            between = self.broker(address=f"unix:{at}")
            self.assertEqual(between.address, f"unix:{at}")
            self.assertEqual(ask(at, b"unix"), b"unix")
            self.assertEqual(self.run_command("broker", f"unix:{at}", self.path).returncode, 1)
            between.kill()
        self.broker(address=f"unix:{at}").stop()
        self.assertFalse(os.path.exists(at))
        with contextlib.suppress(OSError):
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
            between = self.broker(address="[::1]:0")
            with socket.create_connection(("::1", between.port), timeout=PATIENCE) as client:
                client.sendall(b"six")
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(client), b"six")

    def test_socket_that_listens_already_outlives_the_broker(self):
        self.exec("cat")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            at = {"address": f"fd:{listener.fileno()}", "pass_fds": [listener.fileno()]}
            between = self.broker(**at)
            self.assertEqual(between.address, f"127.0.0.1:{port}")
            self.assertEqual(ask(port, b"one"), b"one")
            between.stop()
            with connect(port) as client:  # nobody accepts, but somebody listens
                client.sendall(b"two")
                client.shutdown(socket.SHUT_WR)
                self.broker(**at)
                self.assertEqual(read_all(client), b"two")

    def test_client_that_is_closed_is_counted_by_what_the_last_backend_said(self):
        self.exec("sleep", "60", options=["--max", "1"])
        between = self.broker(options=["--wait", "500"])
        with connect(between.port), connect(between.port) as second:
            self.assertEqual(read_all(second), b"")
        self.assertEqual(counts(between.stop()[0])["closed, backend busy"], 1)

    def test_first_bytes_go_along(self):
        self.exec("sh", "-c", "readlink /proc/self/fd/0; cat")
        between = self.broker(options=["--preread", "4096"])
        for request in b"GET / HTTP/1.0\r\n\r\n", b"x" * 100000:
            answer = ask(between.port, request)
            self.assertTrue(answer.startswith(b"pipe:"), answer[:20])
            self.assertEqual(answer.partition(b"\n")[2], request)

    def test_client_that_sends_nothing_is_offered_all_the_same(self):
        self.exec("echo", "hello")
        between = self.broker(options=["--preread", "10", "--wait", "200"])
        with connect(between.port) as client:
            self.assertEqual(read_all(client), b"hello\n")

    def test_second_signal_ends_a_broker_at_once(self):
        between = self.broker(options=["--wait", "3600000"])
        with connect(between.port) as client:
            client.sendall(b"x")
            wait_until(lambda: self.descriptors(between.process.pid) > 8, "the client is there")
            between.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not can_connect(between.port), "it stops listening")
            summary = counts(between.stop()[0])
        self.assertGreaterEqual(summary["clients"], 1)
        self.assertEqual(summary["adopted"], 0)

    def test_broker_that_ends_leaves_the_socket_of_its_successor(self):
        self.exec("cat")
        at = os.path.join(self.directory, "clients")
        first = self.broker(os.path.join(self.directory, "none"), address=f"unix:{at}",
                            options=["--wait", "3600000"])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(at)
            first.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not can_connect(at), "it stops listening")
            self.assertFalse(os.path.exists(at))
            second = self.broker(address=f"unix:{at}")
            self.assertIsNone(first.process.poll())
            first.stop()
        self.assertEqual(ask(at, b"x"), b"x")
        # Nor what somebody has put there meanwhile.
        os.unlink(at)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(at)
        second.stop()
        self.assertTrue(os.path.exists(at))

    def test_log_that_nobody_reads_any_more_ends_neither(self):
        backend = self.exec("cat", options=["-v"])
        between = self.broker(options=["-v"])
        for running in backend, between:
            running.process.stdout.close()
        for _ in range(3):
            self.assertEqual(ask(between.port, b"x"), b"x")
            wait_until(lambda: not children(backend), "cat has ended, and that is printed")
        for running in between, backend:
            running.process.terminate()
            self.assertEqual(running.process.wait(timeout=PATIENCE), 1)
            self.assertIn("standard output: Broken pipe", running.process.stderr.read())

    def test_descriptors_are_closed(self):
        backend = self.exec("cat")
        between = self.broker(options=["--preread", "10"])
        self.assertEqual(ask(between.port, b"x"), b"x")
        processes = [backend.process.pid, between.process.pid]
        before = wait_until(lambda: not children(backend) and
                            [self.descriptors(pid) for pid in processes], "cat has ended")
        self.assertEqual(ask_all(between.port, 50), [])
        wait_until(lambda: not children(backend), "all have ended")
        wait_until(lambda: all(self.descriptors(pid) <= count
                               for pid, count in zip(processes, before)),
                   "no more descriptors than before")


def can_connect(at):
    with contextlib.suppress(OSError):
        connect(at).close()
        return True
    return False


def children(running):
    pid = running.process.pid
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


class Exec(Test):
    def serve(self, script, preread=b"", sent=b"", **what):
        """What a client gets from a shell script."""
        self.exec("sh", "-c", script, options=what.pop("options", ()))
        with Pair() as pair:
            verdict = pair.hand_over(self.path, preread=preread, **what)
            self.assertEqual(verdict.adopted, True)
            pair.client.sendall(sent)
            pair.client.shutdown(socket.SHUT_WR)
            return read_all(pair.client)

    def test_command_gets_the_client_itself_if_nothing_was_read(self):
        answer = self.serve("readlink /proc/self/fd/0 /proc/self/fd/1; cat", sent=b"hello")
        first, second, rest = answer.split(b"\n")
        self.assertEqual((first, rest), (second, b"hello"))
        self.assertTrue(first.startswith(b"socket:"), answer)

    def test_preread_comes_first_then_what_the_client_sends(self):
        self.assertEqual(self.serve("cat", preread=b"already ", sent=b"read"), b"already read")

    def test_preread_of_every_size_arrives_whole(self):
        self.exec("sh", "-c", "sleep 0.05; cat")
        for size in 1, 4096, 65536, 65537, 131000:
            preread = bytes(i * i % 251 for i in range(size))
            with Pair() as pair:
                pair.hand_over(self.path, preread=preread)
                sent = b"more" * 100000
                sender = threading.Thread(target=pair.client.sendall, args=[sent])
                sender.start()
                answer = b""
                while len(answer) < len(preread) + len(sent):
                    answer += pair.client.recv(65536)
                sender.join()
                self.assertEqual(answer, preread + sent)
                pair.client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(pair.client), b"")

    def test_half_close_ends_the_input_not_the_output(self):
        script = "cat > /dev/null; sleep 0.2; echo answer"
        for preread in b"", b"x":
            with self.subTest(preread=preread):
                self.setUp()
                self.assertEqual(self.serve(script, preread=preread), b"answer\n")

    def test_command_that_does_not_read_ends_all_the_same(self):
        for preread in b"", b"x" * 131000:
            with self.subTest(preread=len(preread)):
                self.setUp()
                backend = self.exec("sh", "-c", "exec <&-; echo answer")
                with Pair() as pair:
                    pair.hand_over(self.path, preread=preread)
                    self.assertEqual(read_all(pair.client), b"answer\n")
                    wait_until(lambda: not children(backend), "it has ended")

    def test_connection_ends_with_the_command_though_the_broker_has_a_copy(self):
        self.exec("echo", "bye")
        with Pair() as pair, contextlib.closing(socket.socket(fileno=os.dup(
                pair.accepted.fileno()))):
            pair.hand_over(self.path)
            self.assertEqual(read_all(pair.client), b"bye\n")

    def test_client_is_blocking_whatever_the_broker_had_set(self):
        self.exec("sh", "-c", "sleep 0.1; cat")
        with Pair() as pair:
            pair.accepted.setblocking(False)
            pair.accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
            pair.hand_over(self.path)
            pair.client.sendall(b"late")
            self.assertEqual(pair.client.recv(10), b"late")
            pair.client.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(pair.client), b"")

    def test_environment_tells_what_the_broker_said_and_who_the_client_is(self):
        self.environment = {**self.environment, "HANDOFF_METADATA": "inherited",
                            "LISTEN_FDS": "1", "LISTEN_PID": "1"}
        self.exec("env")
        names = ("HANDOFF_SERVICE", "HANDOFF_CORRELATION", "HANDOFF_METADATA", "REMOTE_ADDR",
                 "REMOTE_PORT", "PROTO", "TCPREMOTEIP", "TCPREMOTEPORT", "TCPLOCALIP",
                 "TCPLOCALPORT", "LISTEN_FDS", "LISTEN_PID")

        def environment(**what):
            with Pair() as pair:
                local, port = pair.client.getsockname(), pair.accepted.getsockname()[1]
                pair.hand_over(self.path, **what)
                found = dict(line.split("=", 1)
                             for line in read_all(pair.client).decode().splitlines()
                             if "=" in line)
            address = {"REMOTE_ADDR": "127.0.0.1", "REMOTE_PORT": str(local[1]), "PROTO": "TCP",
                       "TCPREMOTEIP": "127.0.0.1", "TCPREMOTEPORT": str(local[1]),
                       "TCPLOCALIP": "127.0.0.1", "TCPLOCALPORT": str(port)}
            self.assertEqual({name: found[name] for name in address}, address)
            return {name: found[name] for name in names if name in found and name not in address}

        self.assertEqual(environment(), {})
        self.assertEqual(environment(service=b"app", correlation=b"r-1", metadata="ä\tb".encode()),
                         {"HANDOFF_SERVICE": "app", "HANDOFF_CORRELATION": "r-1",
                          "HANDOFF_METADATA": "ä\tb"})
        for metadata in b"a\0b", b"\x1b[31m", b"x" * 100000:
            self.assertEqual(environment(metadata=metadata), {})

    def test_command_inherits_no_descriptor_no_mask_and_no_limit(self):
        script = "ls /proc/self/fd | wc -l; grep -E 'Sig(Blk|Ign)' /proc/self/status; ulimit -n"
        plain = subprocess.run(["sh", "-c", script], text=True, check=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               preexec_fn=restore_signals).stdout
        with contextlib.ExitStack() as stack:
            self.exec("sh", "-c", script, preexec_fn=restore_signals)
            held = [stack.enter_context(Pair()) for _ in range(3)]
            for pair in held[:2]:  # others are there at the same time
                pair.hand_over(self.path, preread=b"x")
            held[2].hand_over(self.path, preread=b"x")
            answer = read_all(held[2].client).decode()
        self.assertEqual(answer, plain)

    def test_client_is_served_though_the_hard_limit_was_lowered_meanwhile(self):
        def limit(soft, hard):
            return lambda pid: resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        for lower, expected in (limit(150, 150), b"100\n150\n"), (limit(60, 60), b"60\n60\n"):
            backend = self.exec("sh", "-c", "ulimit -Sn; ulimit -Hn",
                                preexec_fn=lambda: limit(100, 200)(0))
            lower(backend.process.pid)
            with Pair() as pair:
                self.assertTrue(pair.hand_over(self.path).adopted)
                self.assertEqual(read_all(pair.client), expected)
            self.assertEqual(backend.stop()[1], "")

    def test_busy_backend_rejects_so_that_another_can_have_the_client(self):
        self.exec("cat", options=["--max", "1"])
        with Pair() as first, Pair() as second:
            first.hand_over(self.path)
            first.client.sendall(b"x")
            self.assertEqual(first.client.recv(1), b"x")
            verdict = second.hand_over(self.path)
            self.assertEqual((verdict.adopted, verdict.reason),
                             (False, handoff.Reason.BACKEND_BUSY))

    @needs_root
    def test_command_that_cannot_be_forked_is_a_rejection(self):
        """RLIMIT_NPROC does not bind root."""
        def as_a_user_without_processes():
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        os.chmod(self.directory, 0o777)
        backend = self.exec("cat", preexec_fn=as_a_user_without_processes)
        with Pair() as pair:
            # Root is the broker.
            verdict = pair.hand_over(self.path)
        self.assertEqual((verdict.adopted, verdict.reason),
                         (False, handoff.Reason.BACKEND_BUSY))
        self.assertIn("cannot be started now", backend.stop()[1])

    def test_sigterm_drains_and_waits_for_the_commands(self):
        backend = self.exec("cat")
        with Pair() as pair:
            pair.hand_over(self.path, preread=b"be")
            self.assertEqual(pair.client.recv(2), b"be")
            backend.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not os.path.exists(self.path), "the socket is removed")
            self.exec("cat").stop()  # a successor can listen
            pair.client.sendall(b"fore")
            self.assertEqual(pair.client.recv(4), b"fore")
            pair.client.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(pair.client), b"")
        self.assertEqual(backend.process.wait(timeout=PATIENCE), 0)

    def test_second_sigterm_goes_to_the_commands(self):
        backend = self.exec("cat", options=["-v"])
        with Pair() as pair:
            pair.hand_over(self.path, preread=b"x")
            self.assertEqual(pair.client.recv(1), b"x")
            backend.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not os.path.exists(self.path), "the socket is removed")
            output, _ = backend.stop()
            self.assertEqual(read_all(pair.client), b"")
        self.assertRegex(output, "^1: process [0-9]+ was killed by signal 15\n$")

    def test_command_that_is_not_there_is_found_out_at_the_start(self):
        file = os.path.join(self.directory, "file")
        open(file, "w", encoding="ascii").close()
        os.mkdir(os.path.join(self.directory, "a-directory-in-path"))
        self.environment = {**self.environment,
                            "PATH": f"{os.environ['PATH']}:{self.directory}"}
        for command, code in (("no-such-command-anywhere", 127), ("/no/such/command", 127),
                              ("", 127), (file, 126), (self.directory, 126), ("./", 126),
                              ("a-directory-in-path", 126)):
            result = self.run_command("exec", self.path, "--", command)
            self.assertEqual((result.returncode, result.stdout), (code, ""), command)
            self.assertIn(command, result.stderr)
        self.assertFalse(os.path.exists(self.path))

    def test_socket_that_somebody_listens_on_is_not_taken(self):
        self.exec("cat")
        result = self.run_command("exec", self.path, "--", "cat")
        self.assertEqual(result.returncode, 1)
        self.assertIn(self.path, result.stderr)

    @needs_root
    def test_mode_group_and_users_let_another_user_be_the_broker(self):
        self.exec("cat", options=["--group", "4343", "--allow", STRANGER, "--allow", "root"])
        file = os.stat(self.path)
        self.assertEqual((stat.S_IMODE(file.st_mode), file.st_gid), (0o660, 4343))
        self.assertEqual(self.check(user=STRANGER)["code"], 8)
        os.chown(self.path, -1, STRANGER)
        self.assertTrue(self.check(user=STRANGER)["ok"])
        self.assertTrue(self.check()["ok"])
        os.chmod(self.path, 0o666)
        self.assertFalse(self.check(user=STRANGER + 1)["ok"])

    def exec_with(self, listener, path):
        """`handoff exec` that has got its socket from a service manager, and another one."""
        program = ("import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(0, 4);"
                   "os.closerange(5, 1000);"
                   "os.environ.update(LISTEN_FDS='2', LISTEN_PID=str(os.getpid()));"
                   "os.execv(sys.argv[2], sys.argv[2:])")
        script = "echo fds=$LISTEN_FDS; ls /proc/self/fd | tr '\\n' ' '"
        return subprocess.Popen(
            [sys.executable, "-c", program, str(listener.fileno()), self.command, "exec", path,
             "--", "sh", "-c", script],
            pass_fds=[listener.fileno()], env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def check_exec_with(self, listener, path, short_path):
        backend = self.exec_with(listener, path)
        with Pair() as pair:
            pair.hand_over(short_path)
            # 3 is the directory that ls reads.
            self.assertEqual(read_all(pair.client), b"fds=\n0 1 2 3 ")
        backend.terminate()
        backend.communicate(timeout=PATIENCE)
        self.assertEqual(backend.returncode, 0)
        self.assertTrue(os.path.exists(path))  # it belongs to who made it

    def test_socket_of_a_service_manager(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.path)
            listener.listen()
            wrong = self.exec_with(listener, "/another/path")
            self.assertIn("none that listens at /another/path", wrong.communicate()[1])
            self.assertEqual(wrong.returncode, 1)
            linked = os.path.join(self.directory, "link")
            os.symlink(self.directory, linked)
            self.check_exec_with(listener, os.path.join(linked, "a.sock"), self.path)

    def test_path_of_a_service_manager_that_fills_its_room(self):
        room = 108  # of sockaddr_un
        name = "/a.sock"
        long = os.path.join(self.directory, "x").ljust(room - len(name), "x")
        short = os.path.join(self.directory, "l")
        os.mkdir(long)
        os.symlink(long, short)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            # Python wants room for a NUL.
            address = struct.pack(f"H{room}s", socket.AF_UNIX, os.fsencode(long + name))
            self.assertEqual(ctypes.CDLL(None).bind(listener.fileno(), address, len(address)), 0)
            listener.listen()
            self.check_exec_with(listener, long + name, short + name)


def restore_signals():
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
