"""handoff check: what works, and broken set-ups, each of which it must tell from the others."""

import contextlib
import os
import re
import resource
import signal
import socket
import struct
import threading

from command import STRANGER, UNDER, Test, needs_root, wait_until

import handoff

WELCOME, REFUSAL = 2, 7  # kinds of frames
DRAINING = 5  # why, in a refusal


def frame(kind, body=b"", version=1):
    """As docs/protocol.md has it."""
    return struct.pack("<IBBHH6x", 16 + len(body), version, kind, 0, 0) + body


class Serving:
    """A backend in this process, dispatched by a thread. It adopts nothing."""

    def __init__(self, path, **options):
        self.backend = handoff.Backend.listen(path, **options)
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.ended.wait(0.002):
            with self.lock:
                self.backend.dispatch()
                self.backend.next()

    def statistics(self):
        with self.lock:
            return self.backend.get_statistics()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        self.backend.close()


@contextlib.contextmanager
def listening(path, kind=socket.SOCK_SEQPACKET, answer=None, stay=False):
    """Another program: it accepts, receives one packet, sends its answer, and hangs up, or stays
    until the other side does."""
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(path)
    listener.listen()

    def serve():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                if client.recv(4096) and answer is not None:
                    client.sendall(answer)
                    while stay and client.recv(4096):
                        pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


class WhatWorks(Test):
    def test_backend_that_answers_is_in_order_step_by_step(self):
        with Serving(self.path, max_in_flight=7):
            found = self.check()
            printed = self.run_command("check", self.path)
        self.assertEqual((found["ok"], found["status"], found["error"], found["message"]),
                         (True, "HANDOFF_OK", 0, ""))
        self.assertGreater(found["round_trip_us"], 0)
        steps = [step["step"] for step in found["steps"] if step["ok"]]
        self.assertEqual(list(dict.fromkeys(steps)),
                         ["directory", "socket", "listener", "backend", "answer", "credentials",
                          "channels", "version", "room"])
        self.assertIn(f"process {os.getpid()} ", str(found["steps"]))
        self.assertRegex(found["steps"][-1]["text"], " 7$")
        self.assertEqual(printed.returncode, 0)
        self.assertEqual(len(re.findall("^ok ", printed.stdout, re.M)), len(found["steps"]))
        self.assertRegex(printed.stdout, r"\nround trip: \d+ us\n$")

    def test_check_hands_nothing_over_and_leaves_no_channel(self):
        with Serving(self.path) as serving:
            self.assertTrue(self.check()["ok"])
            wait_until(lambda: serving.statistics()["channels"] == 0, "the channel is gone")
            statistics = serving.statistics()
        self.assertEqual((statistics["arrived"], statistics["accepted"], statistics["refused"]),
                         (0, 1, 0))

    def test_abstract_name(self):
        name = f"@handoff-command-{os.getpid()}"
        with Serving(name):
            self.assertTrue(self.check(name)["ok"])
        self.assertEqual(self.check(name)["code"], 6)

    def test_path_with_strange_characters(self):
        strange = os.fsdecode(os.fsencode(self.directory) + b'/a "\\\n\x7f\xff\xc3\xa4')
        with Serving(strange):
            found = self.check(strange)
            printed = self.run_command("check", strange)
        self.assertTrue(found["ok"], found)
        self.assertTrue(found["socket"].endswith('a "\\\n\x7f\ufffd\u00e4'), found["socket"])
        self.assertEqual(printed.returncode, 0)
        self.assertNotIn("\x7f", printed.stdout)

    def test_relative_path(self):
        with Serving(self.path):
            self.assertTrue(self.check(os.path.relpath(self.path))["ok"])

    def test_last_free_channel_is_no_refusal(self):
        with Serving(self.path, max_channels=1):
            for _ in range(20):
                found = self.check()
                self.assertTrue(found["ok"], found)

    def test_every_socket_in_a_directory(self):
        directory = os.path.join(self.directory, "workers")
        os.mkdir(directory)
        self.assertEqual(self.check(directory)["code"], 3)
        a, b, stale, hidden, file = (os.path.join(directory, name)
                                     for name in ("a", "b", "c", ".d", "file"))
        open(file, "w", encoding="ascii").close()
        with Serving(a), Serving(b), Serving(hidden):
            for name in directory, directory + "/":
                found = self.check(name)
                self.assertTrue(found["ok"], found)
                self.assertEqual([inner["socket"] for inner in found["sockets"]], [a, b])
            with listening(stale):
                pass
            found = self.check(directory)
            self.assertEqual((found["code"], [inner["code"] for inner in found["sockets"]]),
                             (6, [0, 0, 6]))
            self.assertEqual(found["message"], found["sockets"][2]["message"])
            printed = self.run_command("check", directory)
            self.assertRegex(printed.stdout, "sockets: 3, in order: 2\n$")
            self.assertEqual(printed.returncode, 6)

    def test_symbolic_links_in_a_directory_are_no_backends(self):
        directory = os.path.join(self.directory, "workers")
        os.mkdir(directory)
        with Serving(self.path):
            os.symlink(self.path, os.path.join(directory, "link"))
            os.symlink("nothing", os.path.join(directory, "stale"))
            found = self.check(directory)
            self.assertEqual((found["code"], found["steps"][-1]["step"]), (3, "sockets"))
            self.assertIn("only symbolic links to sockets", found["message"])
            a = os.path.join(directory, "a")
            with Serving(a):
                found = self.check(directory)
                self.assertEqual([inner["socket"] for inner in found["sockets"]], [a])
                self.assertIn("link is a symbolic link to a socket: brokers leave it out",
                              found["steps"][-1]["text"])
                printed = self.run_command("check", directory)
                self.assertRegex(printed.stdout, "sockets: 1, in order: 1\n$")

    def test_wrong_usage_is_exit_code_2(self):
        for arguments in ([], ["check"], ["check", "a", "b"], ["check", "--timeout", "0", "a"],
                          ["check", "--timeout", "x", "a"], ["check", "--jason", "a"], ["chek"],
                          ["broker", "127.0.0.1:0"], ["broker", "--wait", "-1", "127.0.0.1:0", "a"],
                          ["broker", "127.0.0.1", "a"], ["broker", "127.0.0.1:99999", "a"],
                          ["broker", "fd:77", "a"], ["broker", "127.0.0.1:0", ""],
                          ["broker", "127.0.0.1:0", "/" + 200 * "x"], ["exec", "", "cat"],
                          ["exec", "a"], ["exec", "--mode", "0888", "a", "cat"],
                          ["exec", "--allow", "nobody-of-this-name", "a", "cat"]):
            result = self.run_command(*arguments)
            self.assertEqual(result.returncode, 2, arguments)
            self.assertIn("usage: handoff ", result.stderr)
            self.assertEqual(result.stdout, "")

    def test_wrong_usage_is_named(self):
        for said, arguments in (
                ("there is no subcommand chek", ["chek"]), ("there is no option --chek", ["--chek"]),
                ("a name of at most 255 bytes", ["broker", "--service", 256 * "x", "127.0.0.1:0", "a"]),
                ("at most 0777", ["exec", "--mode", "1777", "a", "cat"]),
                ("write /run/a.sock", ["check", "unix:/run/a.sock"]),
                ("write /run/a.sock", ["broker", "127.0.0.1:0", "/run/b.sock", "unix:/run/a.sock"]),
                ("write /run/a.sock", ["exec", "unix:/run/a.sock", "cat"])):
            result = self.run_command(*arguments)
            self.assertEqual((result.returncode, result.stdout), (2, ""), arguments)
            self.assertIn(said, result.stderr)

    def test_help_is_one_screen_and_the_version_is_the_librarys(self):
        printed = self.run_command("--help").stdout
        self.assertLessEqual(len(printed.splitlines()), 40)
        self.assertLessEqual(max(map(len, printed.splitlines())), 100)
        self.assertEqual(self.run_command("help").stdout, printed)
        self.assertEqual(self.run_command("--version").stdout, f"handoff {handoff.version()}\n")

    def test_each_subcommand_has_its_help(self):
        for name in "check", "broker", "exec":
            for arguments in (name, "--help"), (name, "-h"), ("help", name):
                result = self.run_command(*arguments)
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                self.assertEqual(re.findall("handoff [a-z]+ ", result.stdout), [f"handoff {name} "])


class WhatIsBroken(Test):
    """Each method makes one broken set-up and yields how to look at it: arguments of check()."""

    @contextlib.contextmanager
    def no_path(self):
        yield {}

    @contextlib.contextmanager
    def no_directory(self):
        yield {"path": os.path.join(self.directory, "nothing", "a.sock")}

    @contextlib.contextmanager
    def directory_that_may_not_be_searched(self):
        with Serving(self.path, mode=0o666):
            os.chmod(self.directory, 0o700)
            yield {"user": STRANGER}

    @contextlib.contextmanager
    def directory_that_may_not_be_listed(self):
        """A broker of that directory would find no backend."""
        with Serving(self.path, mode=0o666):
            os.chmod(self.directory, 0o711)
            yield {"path": self.directory, "user": STRANGER}

    @contextlib.contextmanager
    def file_that_is_no_socket(self):
        open(self.path, "w", encoding="ascii").close()
        yield {}

    @contextlib.contextmanager
    def socket_that_nobody_listens_on(self):
        with listening(self.path):
            pass
        yield {}

    @contextlib.contextmanager
    def stream_socket(self):
        with listening(self.path, socket.SOCK_STREAM):
            yield {}

    @contextlib.contextmanager
    def mode_that_forbids_it(self):
        with Serving(self.path):
            yield {"user": STRANGER}

    @contextlib.contextmanager
    def user_who_is_not_allowed(self):
        with Serving(self.path, mode=0o666):
            yield {"user": STRANGER}

    @contextlib.contextmanager
    def too_many_channels(self):
        with Serving(self.path, max_channels=1) as serving, \
                contextlib.closing(handoff.Broker(self.path)) as other:
            other.fileno()  # this connects
            wait_until(lambda: serving.statistics()["channels"] == 1, "another broker is there")
            yield {}

    @contextlib.contextmanager
    def program_that_hangs_up(self):
        with listening(self.path):
            yield {}

    @contextlib.contextmanager
    def program_that_says_something_else(self):
        with listening(self.path, answer=b"HTTP/1.1 400 Bad Request\r\n\r\n"):
            yield {}

    @contextlib.contextmanager
    def other_version(self):
        with listening(self.path, answer=frame(WELCOME, struct.pack("<II8x", 1, 65536), version=2)):
            yield {}

    @contextlib.contextmanager
    def backend_that_drains(self):
        with listening(self.path, answer=frame(REFUSAL, struct.pack("<B15x", DRAINING))):
            yield {}

    @contextlib.contextmanager
    def backend_without_descriptors(self):
        backend = self.exec("cat").process.pid
        fds = f"/proc/{backend}/fd"
        # It opens its handle after it has said that it listens.
        wait_until(lambda: any("timerfd" in os.readlink(f"{fds}/{name}") for name in os.listdir(fds)),
                   "it waits for brokers")
        used = {int(name) for name in os.listdir(fds)}
        unused = [number for number in range(1024) if number not in used]
        # Enough to accept a broker, and not for what comes with its hello.
        resource.prlimit(backend, resource.RLIMIT_NOFILE, (unused[1], 1024))
        yield {}

    @contextlib.contextmanager
    def stopped_backend(self):
        backend = self.exec("cat")
        backend.process.send_signal(signal.SIGSTOP)
        yield {"options": ("--timeout", "300")}
        backend.process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def backend_of_a_later_version_with_another_reason(self):
        with listening(self.path, answer=frame(REFUSAL, struct.pack("<B15x", 99))):
            yield {}

    @contextlib.contextmanager
    def backend_that_hangs(self):
        with contextlib.closing(handoff.Backend.listen(self.path)):
            yield {"options": ("--timeout", "300")}

    @contextlib.contextmanager
    def abstract_name_that_nobody_listens_at(self):
        yield {"path": f"@handoff-command-{os.getpid()}"}

    @contextlib.contextmanager
    def abstract_name_at_which_a_stranger_listens(self):
        with self.stranger_listening(f"\0handoff-command-{os.getpid()}") as how:
            yield {"path": f"@handoff-command-{os.getpid()}", "user": STRANGER + 1, **how}

    @contextlib.contextmanager
    def empty_path(self):
        yield {"path": ""}

    @contextlib.contextmanager
    def empty_name(self):
        yield {"path": "@"}

    @contextlib.contextmanager
    def slash_behind_a_socket(self):
        with listening(self.path):
            yield {"path": self.path + "/"}

    @contextlib.contextmanager
    def symbolic_link_to_itself(self):
        os.symlink("a.sock", self.path)
        yield {}

    @contextlib.contextmanager
    def directory_that_is_a_link_to_itself(self):
        os.symlink("a.sock", self.path)
        yield {"path": self.path + "/b.sock"}

    @contextlib.contextmanager
    def too_few_descriptors(self):
        with Serving(self.path):
            yield {"limit": (resource.RLIMIT_NOFILE, 5)}

    @contextlib.contextmanager
    def files_of_no_size(self):
        with Serving(self.path):
            yield {"limit": (resource.RLIMIT_FSIZE, 0)}

    @contextlib.contextmanager
    def backlog_that_is_full(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, \
                contextlib.ExitStack() as waiting:
            listener.bind(self.path)
            listener.listen(0)
            while True:
                client = waiting.enter_context(
                    socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
                try:
                    client.connect(self.path)
                except BlockingIOError:
                    break
            yield {}

    @contextlib.contextmanager
    def listener_who_is_not_trusted(self):
        """A stranger listens on root's socket."""
        with self.stranger_listening(self.path) as how:
            yield how

    @contextlib.contextmanager
    def stranger_listening(self, address):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(address)
            child = os.fork()
            if child == 0:
                try:
                    os.setuid(STRANGER)
                    listener.listen()
                    os.kill(os.getpid(), signal.SIGSTOP)
                finally:
                    os._exit(0)
            os.waitpid(child, os.WUNTRACED)
            try:
                yield {}
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)

    @contextlib.contextmanager
    def child_that_has_the_socket_of_a_process_that_has_ended(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.path)
            parent = os.fork()
            if parent == 0:
                listener.listen()
                os._exit(0)
            os.waitpid(parent, 0)
            yield {"options": ("--timeout", "300")}

    @contextlib.contextmanager
    def backend_without_room(self):
        welcome = frame(WELCOME, struct.pack("<II8x", 1, 65536))
        with listening(self.path, answer=welcome, stay=True):
            yield {"options": ("--timeout", "300")}

    SETUPS = (  # the set-up, the exit code, words of what is wrong, words of what to do
        ("no_path", 3, "there is no socket", "Start the backend"),
        ("directory_that_may_not_be_searched", 4, "user 4001 may not search the directory",
         "x permission"),
        ("file_that_is_no_socket", 5, "is a regular file, not a socket", "remove the file"),
        ("socket_that_nobody_listens_on", 6, "nobody listens", "Start the backend"),
        ("stream_socket", 7, "stream or datagram", "ListenSequentialPacket"),
        ("mode_that_forbids_it", 8, "user 4001 may not connect", "--mode and --group"),
        ("user_who_is_not_allowed", 9, "does not allow user 4001", "policy"),
        ("too_many_channels", 10, "as many channels as it may: 1", "max_channels"),
        ("program_that_hangs_up", 11, "without a word", "Stop the other program"),
        ("other_version", 12, "speaks version 2", "Upgrade"),
        ("backend_that_drains", 13, "drains", "successor"),
        ("stopped_backend", 14, "is stopped", "kill -CONT"),
        ("listener_who_is_not_trusted", 15, "may not be the backend", "owner of its socket"),
        ("backend_without_room", 16, "takes no offers", "adopts so slowly"),
        ("backend_without_descriptors", 17, "Too many open files", "LimitNOFILE="),
    )
    # The same exit codes for another reason.
    VARIANTS = (
        ("directory_that_may_not_be_listed", 4, "may not list the directory", "r permission"),
        ("no_directory", 3, "there is no directory", "Correct the path"),
        ("program_that_says_something_else", 11, "does not speak the protocol", "Stop the other"),
        ("backend_of_a_later_version_with_another_reason", 1, "for cause 99",
         "HANDOFF_ERR_BACKEND_UNAVAILABLE in handoff_status(3)"),
        ("backend_that_hangs", 14, "did not answer within 300 ms", "strace"),
        ("backend_that_hangs", 14, "did not answer", "Or something else listens there"),
        ("child_that_has_the_socket_of_a_process_that_has_ended", 14, ", which has ended, user",
         "`ss -xlp'"),
        ("abstract_name_that_nobody_listens_at", 6, "nobody listens", "correct the name"),
        ("abstract_name_at_which_a_stranger_listens", 15, "may not be the backend",
         "Run the backend as the broker's user or as root"),
        ("empty_path", 3, "the path of the socket is empty", "@NAME"),
        ("empty_name", 3, "the name of the socket is empty", "@NAME"),
        ("slash_behind_a_socket", 3, "is a socket, not a directory", "Leave out the '/'"),
        ("symbolic_link_to_itself", 3, "have no end", "namei"),
        ("directory_that_is_a_link_to_itself", 3, "have no end", "namei"),
        ("too_few_descriptors", 1, "Too many open files", "RLIMIT_NOFILE"),
        ("files_of_no_size", 1, "it counts as a file", "RLIMIT_FSIZE"),
        ("backlog_that_is_full", 14, "too many brokers wait", "hangs"),
    )

    def look(self, name, code, wrong, to_do):
        """Makes the set-up in a directory of its own."""
        with self.subTest(name):
            self.setUp()
            with getattr(self, name)() as how:
                options = how.pop("options", ())
                path = how.pop("path", self.path)
                found = self.check(path, *options, **how)
                # Under valgrind each run takes a second, and this one shows nothing new there.
                printed = None if UNDER else self.run_command("check", *options, path, **how)
            self.assertEqual(found["code"], code, found)
            self.assertIn(wrong, found["message"])
            self.assertIn(to_do, found["advice"])
            self.assertFalse(found["ok"])
            self.assertNotEqual(found["status"], "HANDOFF_OK")
            self.assertIsNone(found["round_trip_us"])
            self.assertEqual([step["ok"] for step in found["steps"]],
                             [True] * (len(found["steps"]) - 1) + [False])
            if printed is not None:
                self.assertEqual(printed.returncode, code)
                *_, last, advice = printed.stdout.splitlines()
                self.assertRegex(last, "^FAILED ")
                self.assertIn(found["advice"], advice)
            return found["message"].replace(self.directory, ""), found["advice"]
        return None

    @needs_root
    def test_each_broken_setup_has_its_code_its_sentence_and_its_advice(self):
        said = [self.look(*setup) for setup in self.SETUPS]
        self.assertGreaterEqual(len(said), 10)
        self.assertEqual(len({message for message, _ in said}), len(said))
        self.assertEqual(len({advice for _, advice in said}), len(said))
        self.assertEqual(len({code for _, code, *_ in self.SETUPS}), len(said))

    @needs_root
    def test_other_ways_to_the_same_codes(self):
        for setup in self.VARIANTS:
            self.look(*setup)

    def test_path_that_is_too_long(self):
        found = self.check("/" + 200 * "x")
        self.assertEqual(found["code"], 3)
        self.assertIn("1 to 107 bytes", found["message"])

    def test_directory_that_is_a_file(self):
        open(self.path, "w", encoding="ascii").close()
        found = self.check(self.path + "/a.sock")
        self.assertEqual(found["code"], 3)
        self.assertIn("is a regular file, not a directory", found["message"])
