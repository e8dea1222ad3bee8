#!/usr/bin/env python3
"""Tests of the two ends: they agree with the header, and do what they say."""

import copy
import ctypes
import dataclasses
import errno
import gc
import os
import pickle
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
import warnings

import handoff
from handoff import _library

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "tools"))
import header as c_header  # noqa: E402
from waiting import PATIENCE, wait_until  # noqa: E402

NUMBERS = {
    **{f"HANDOFF_REASON_{reason.name}": int(reason) for reason in handoff.Reason},
    **{f"HANDOFF_{status.name}": int(status) for status in handoff.Status},
    **{f"HANDOFF_{name}": getattr(handoff, name) for name in (
        "KIND_STREAM", "KIND_SEQPACKET", "KIND_DATAGRAM", "KIND_UNCONNECTED", "KIND_ANY")},
    **{f"HANDOFF_{name}": getattr(_library, name) for name in (
        "OK", "NOTHING", "TIMED_OUT", "WOKEN", "ERR_FULL", "ERR_WRONG_PROCESS", "ERR_CLOSED",
        "ERR_TAKEN_BACK", "ADOPTED", "OFFER_MORE", "OFFER_TLS", "BACKEND_BACKUP")},
}


def compiled(*lines):
    """What a C program with these lines in its main() prints, as a list of lists of words."""
    program = "\n".join([
        "#include <handoff.h>", "#include <stdio.h>",
        "#define MEMBER(type, name) printf(#name \" %zu %zu\\n\", offsetof(type, name),"
        " sizeof ((type *)0)->name)",
        "#define NUMBER(value) printf(\"%lld\\n\", (long long)(value))",
        "int main(void) {", *lines, "return 0; }"])
    with tempfile.TemporaryDirectory(prefix="handoff-python-") as directory:
        path = os.path.join(directory, "program")
        subprocess.run([*shlex.split(os.environ.get("CC", "cc")), "-std=c11", "-I",
                        os.path.join(ROOT, "include"), "-x", "c", "-", "-o", path],
                       input=program, text=True, check=True)
        output = subprocess.run([path], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [line.split() for line in output.splitlines()]


class TheHeader(unittest.TestCase):
    """The header is the truth; the C compiler says what it means."""

    @classmethod
    def setUpClass(cls):
        cls.header = c_header.read(os.path.join(ROOT, "include"))

    def test_structs_have_the_same_members_at_the_same_places(self):
        for name, struct in _library.STRUCTS.items():
            members = [member.name for member in self.header.types[name].members()]
            *places, [size] = compiled(*(f"MEMBER({name}, {member});" for member in members),
                                       f"NUMBER(sizeof({name}));")
            self.assertEqual(
                places,
                [[field, str(getattr(struct, field).offset), str(getattr(struct, field).size)]
                 for field, _ in struct._fields_], name)
            self.assertEqual(int(size), ctypes.sizeof(struct), name)

    def test_numbers_are_the_same(self):
        values = compiled(*(f"NUMBER({name});" for name in NUMBERS))
        self.assertEqual(dict(zip(NUMBERS, (int(value) for [value] in values))), NUMBERS)

    def test_no_reason_and_no_error_is_missing(self):
        for part in "_REASON_", "_ERR_":
            self.assertEqual({name for name in self.header.constants if part in name},
                             {name for name in NUMBERS if part in name})

    def test_calls_take_as_many_arguments(self):
        for name, (_, *arguments) in _library.PROTOTYPES.items():
            inside = self.header.functions[name].code.partition("(")[2]
            count = 0 if inside.startswith("void)") else inside.count(",") + 1
            self.assertEqual(len(arguments), count, name)

    def test_without_the_library_the_error_says_what_to_do(self):
        program = ("import ctypes\n"
                   "def missing(*a, **k): raise OSError('libhandoff.so.0: no such file')\n"
                   "ctypes.CDLL = missing\n"
                   "import handoff")
        result = subprocess.run([sys.executable, "-B", "-c", program], stderr=subprocess.PIPE,
                                text=True, check=False)
        self.assertRegex(result.stderr.splitlines()[-1],
                         "^ImportError: libhandoff.so.0: .*ldconfig.*LD_LIBRARY_PATH")

    def test_names_are_the_librarys(self):
        self.assertRegex(handoff.version(), r"^[0-9]+\.[0-9]+\.[0-9]+")
        self.assertEqual(handoff.status_name(_library.NOTHING), "HANDOFF_NOTHING")
        self.assertEqual(handoff.reason_name(handoff.Reason.ACK_TIMEOUT), "acknowledgement timeout")


class Ends(unittest.TestCase):
    """Both ends in this process, each of them called when its descriptor is readable."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="handoff-python-")
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "handoff.sock")

    def listen(self, **options):
        self.backend = handoff.Backend.listen(self.path, **options)
        self.addCleanup(self.backend.close)
        self.connect()

    def start(self, program):
        process = subprocess.Popen([sys.executable, "-B", "-c", program, self.path],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def connect(self):
        self.broker = handoff.Broker(self.path, timeout_ms=PATIENCE * 1000)
        self.addCleanup(self.broker.close)
        self.client, self.accepted = socket.socketpair()
        self.addCleanup(self.client.close)
        self.addCleanup(self.accepted.close)

    def wait(self, take):
        """Runs both ends until `take` gives something."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.broker.dispatch()
            self.backend.dispatch()
            taken = take()
            if taken is not None:
                return taken
            select.select([self.broker, self.backend], [], [], PATIENCE)
        return self.fail("nothing came in time")

    def offer(self, **what):
        """Offers the connection as soon as the backend has granted a token."""
        def try_to():
            try:
                return self.broker.offer(self.accepted, **what)
            except handoff.HandoffError as error:
                if handoff.status_name(error.status) != "HANDOFF_ERR_BACKEND_UNAVAILABLE":
                    raise
                self.assertTrue(error.is_fallback_safe and error.may_pass)
                return None
        return self.wait(try_to)

    def arrive(self, **what):
        number = self.offer(**what)
        return number, self.wait(self.backend.next)


class TheBackend(Ends):
    """What a backend does."""

    def test_what_the_broker_says_arrives_and_outlives_the_next_dispatch(self):
        self.listen()
        said = {"preread": b"GET\0", "metadata": bytes(range(256)), "service": b"app",
                "correlation": b"r-1"}
        _, arrival = self.arrive(**said)
        self.assertRaises(ValueError, lambda: arrival.connection)
        self.assertEqual(arrival.broker, (os.getpid(), os.geteuid(), os.getegid()))
        with self.backend.adopt(arrival) as connection:
            self.assertIs(connection, arrival.connection)
            self.assertIsNone(self.backend.next())
            self.assertTrue(self.wait(self.broker.next).adopted)
            self.assertEqual({name: getattr(arrival, name) for name in said}, said)

    def test_what_the_broker_says_may_be_in_any_buffer_which_is_copied(self):
        self.listen()
        read = bytearray(b"GET\0...")
        self.offer(preread=read, metadata=memoryview(read)[1:4])
        read[:] = b"another"
        arrival = self.wait(self.backend.next)
        self.assertEqual((arrival.preread, arrival.metadata), (b"GET\0...", b"ET\0"))

    def test_what_is_no_bytes_is_refused_with_its_name(self):
        self.listen()
        for name, value in (("preread", "GET"), ("metadata", "{}"), ("preread", None),
                            ("service", "app"), ("correlation", 7)):
            for call in self.broker.offer, self.broker.offer_and_wait:
                self.assertRaisesRegex(
                    TypeError, f"the {name} must be bytes, not {type(value).__name__}",
                    lambda: call(self.accepted, **{name: value}))

    def test_what_the_broker_does_not_say_is_empty(self):
        self.listen()
        _, arrival = self.arrive()
        self.assertEqual((arrival.preread, arrival.metadata, arrival.service, arrival.correlation),
                         (b"", b"", b"", b""))

    def test_arrivals_and_verdicts_can_be_in_a_set_and_are_shown_without_their_bytes(self):
        self.listen()
        _, arrival = self.arrive(preread=b"x" * 20000, metadata=b"m" * 20000)
        self.assertIn(arrival, {arrival})
        self.assertLess(len(repr(arrival)), 300)
        self.assertIn(f"id={arrival.id}", repr(arrival))
        self.backend.reject(arrival)
        verdict = self.wait(self.broker.next)
        self.assertIn(verdict, {verdict})

    def test_adopted_socket_blocks_and_is_closed_on_exec_whatever_the_broker_had_set(self):
        self.listen()
        self.accepted.setblocking(False)
        os.set_inheritable(self.accepted.fileno(), True)
        _, arrival = self.arrive()
        with self.backend.adopt(arrival) as connection:
            self.assertTrue(os.get_blocking(connection.fileno()))
            self.assertFalse(connection.get_inheritable())
            connection.settimeout(PATIENCE)
            self.client.sendall(b"hello")
            self.assertEqual(connection.recv(5), b"hello")

    def test_rejecting_tells_the_broker_why(self):
        self.listen()
        _, arrival = self.arrive()
        self.backend.reject(arrival, handoff.Reason.BACKEND_BUSY)
        self.assertIsNone(self.backend.next())
        verdict = self.wait(self.broker.next)
        self.assertEqual((verdict.adopted, verdict.reason, verdict.may_pass),
                         (False, handoff.Reason.BACKEND_BUSY, True))
        self.assertEqual(self.backend.get_statistics()["rejected"], 1)

    def test_offer_that_the_broker_took_back_cannot_be_adopted(self):
        self.listen()
        number, arrival = self.arrive()
        self.broker.take_back(number)
        with self.assertRaises(handoff.TakenBack) as raised:
            self.backend.adopt(arrival)
        self.assertEqual(raised.exception.status, _library.ERR_TAKEN_BACK)
        self.assertRaises(ValueError, lambda: arrival.connection)

    def test_accept_returns_none_if_nothing_arrives_in_time_and_then_what_arrives(self):
        self.listen()
        self.assertIsNone(self.backend.accept(timeout=0))
        self.offer(preread=b"x")
        arrival = self.backend.accept(timeout=PATIENCE)
        with arrival.connection:
            self.assertEqual(arrival.preread, b"x")
        self.assertEqual(self.backend.get_statistics()["adopted"], 1)

    def test_accept_with_a_time_to_spin_does_the_same(self):
        self.listen(spin_us=100)
        self.offer(preread=b"x")
        with self.backend.accept().connection:
            self.assertIsNone(self.backend.accept(timeout=0.01))

    def test_accept_refuses_a_timeout_that_is_no_time(self):
        self.listen()
        self.assertRaisesRegex(ValueError, "cannot be nan", lambda: self.backend.accept(float("nan")))
        self.assertRaises(TypeError, lambda: self.backend.accept("1"))

    def test_signal_handlers_run_during_accept_and_do_not_put_off_its_end(self):
        self.listen()
        signals = []
        before = signal.signal(signal.SIGALRM, lambda *_: signals.append(time.monotonic()))
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        start = time.monotonic()
        try:
            self.assertIsNone(self.backend.accept(timeout=0.2))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.assertGreaterEqual(time.monotonic() - start, 0.2)
        self.assertTrue(any(when - start < 0.2 for when in signals), signals)

    def test_ctrl_c_ends_an_idle_accept_and_the_next_client_stays_the_brokers(self):
        process = self.start("""if True:
            import handoff, signal, sys
            signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
            with handoff.Backend.listen(sys.argv[1]) as backend:
                arrival = backend.accept()
                arrival.connection.close()
                print(arrival.preread, flush=True)
                backend.accept()
            """)
        self.connect()
        wait_until(lambda: os.path.exists(self.path), "it listens")
        self.assertTrue(self.broker.offer_and_wait(self.accepted, preread=b"first").adopted)
        self.assertEqual(process.stdout.readline(), "b'first'\n")
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(PATIENCE), -signal.SIGINT)
        with self.assertRaises(handoff.HandoffError) as raised:
            self.broker.offer_and_wait(self.accepted)
        self.assertTrue(raised.exception.is_fallback_safe)

    def test_drained_backend_frees_the_path_and_still_adopts_what_has_arrived(self):
        self.listen()
        _, arrival = self.arrive()
        self.backend.drain()
        self.assertFalse(os.path.exists(self.path))
        self.backend.adopt(arrival).close()
        self.backend.dispatch()
        self.assertEqual(self.backend.get_statistics()["held"], 0)

    def test_arrival_that_is_dropped_undecided_is_rejected_by_the_next_dispatch(self):
        self.listen()
        self.arrive()
        gc.collect()
        self.assertEqual(self.backend.get_statistics()["held"], 1)
        self.backend.drain()
        self.backend.dispatch()
        self.assertEqual(self.backend.get_statistics()["held"], 0)
        self.assertEqual(self.wait(self.broker.next).reason, handoff.Reason.BACKEND_BUSY)

    def test_arrival_that_is_dropped_by_another_thread_is_rejected_by_the_owners_dispatch(self):
        self.listen()
        arrivals = [self.arrive()[1]]
        with unittest.mock.patch.object(self.backend, "_calls", {object(): None}):  # it is in a call
            thread = threading.Thread(target=arrivals.clear)
            thread.start()
            thread.join()
        self.assertEqual(self.wait(self.broker.next).reason, handoff.Reason.BACKEND_BUSY)

    def test_arrival_that_is_dropped_after_its_decision_or_a_copy_is_dropped_stays_as_it_is(self):
        self.listen()
        _, arrival = self.arrive()
        dataclasses.replace(arrival)
        copy.copy(arrival)
        self.backend.dispatch()
        self.backend.reject(arrival)
        del arrival
        self.backend.dispatch()
        self.assertEqual(self.wait(self.broker.next).reason, handoff.Reason.REJECTED)
        _, arrival = self.arrive()
        connection = self.backend.adopt(arrival)
        del arrival
        self.assertTrue(self.wait(self.broker.next).adopted)
        with connection:
            connection.send(b"x")

    def test_given_listener_is_used_and_stays_the_callers(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.path)
            listener.listen()
            self.backend = handoff.Backend.listen_on(listener)
            self.addCleanup(self.backend.close)
            self.connect()
            self.arrive()
            self.assertNotEqual(listener.fileno(), -1)

    def test_error_has_status_errno_and_a_sentence_with_the_path(self):
        path = os.path.join(self.path, "no", "such", "directory")
        with self.assertRaises(handoff.HandoffError) as raised:
            handoff.Backend.listen(path)
        self.assertEqual(raised.exception.errno, errno.ENOENT)
        self.assertIn("HANDOFF_ERR_LISTEN_FAILED", str(raised.exception))
        self.assertIn(path, str(raised.exception))

    def test_error_is_the_same_in_another_process(self):
        path = os.path.join(self.path, "no")
        with self.assertRaises(handoff.HandoffError) as raised:
            handoff.Backend.listen(path)
        with socket.socket() as plain:
            tls = handoff.TlsSocket(fileno=plain.detach())
        with tls, self.assertRaises(handoff.TlsError) as of_tls:
            tls.recv(1)
        self.assertRaises(handoff.HandoffError, lambda: handoff.Backend.listen(""))
        for error in raised.exception, of_tls.exception, handoff.TakenBack(_library.ERR_TAKEN_BACK, "x"):
            for same in pickle.loads(pickle.dumps(error)), copy.copy(error):
                self.assertIs(type(same), type(error))
                self.assertEqual((str(same), same.status, same.errno),
                                 (str(error), error.status, error.errno))

    def test_error_without_the_system_has_errno_0(self):
        ctypes.set_errno(errno.EIO)
        with self.assertRaises(handoff.HandoffError) as raised:
            handoff.Backend.listen("/" + 200 * "x")
        self.assertIn("HANDOFF_ERR_INVALID_ARGUMENT", str(raised.exception))
        self.assertFalse(raised.exception.is_fallback_safe or raised.exception.may_pass)
        self.assertEqual(raised.exception.errno, 0)

    def test_error_of_tls_has_the_errno_of_the_system(self):
        with handoff.TlsSocket() as unconnected, self.assertRaises(handoff.TlsError) as raised:
            unconnected.recv(1)
        self.assertEqual(raised.exception.errno, errno.ENOTCONN, raised.exception)
        ctypes.set_errno(errno.EIO)
        self.assertEqual(handoff.TlsError(handoff.Status.ERR_TLS_ALERT, "of this test").errno, 0)

    def test_policy_keeps_a_stranger_out(self):
        self.listen(users=[os.geteuid() + 1])
        self.broker.fileno()
        self.wait(lambda: self.backend.get_statistics()["refused"] or None)
        self.assertEqual(self.backend.get_statistics()["channels"], 0)

    def test_misspelt_option_is_refused(self):
        with self.assertRaises(TypeError):
            handoff.Backend.listen(self.path, max_chanels=1)

    def test_number_that_does_not_fit_is_refused(self):
        self.listen()
        for call in (lambda: handoff.Backend.listen(self.path + "2", max_in_flight=2**64 + 5),
                     lambda: handoff.Backend.listen(self.path + "2", spin_us=-1),
                     lambda: handoff.Backend.listen(self.path + "2", users=[2**32]),  # not root
                     lambda: handoff.Broker(self.path, groups=[-1]),
                     lambda: handoff.Broker(self.path, timeout_ms=-1),
                     lambda: self.broker.add(self.path + "2", weight=2**32 + 1),
                     lambda: self.broker.offer(self.accepted, timeout_ms=2**64)):
            self.assertRaisesRegex(ValueError, "cannot be", call)

    def test_number_that_does_not_fit_does_nothing(self):
        self.listen()
        number, arrival = self.arrive(user_data="client")
        for call in (lambda: self.broker.take_back(2**64 + number),
                     lambda: self.broker.take_back(-1),
                     lambda: self.backend.reject(arrival, 2**32 + handoff.Reason.REJECTED),
                     lambda: self.backend.reject(dataclasses.replace(arrival, id=arrival.id + 2**64)),
                     lambda: self.backend.adopt(dataclasses.replace(arrival, id=arrival.id + 2**64)),
                     lambda: handoff.reason_name(2**32 + 9),
                     lambda: handoff.status_name(2**32)):
            self.assertRaisesRegex(ValueError, "cannot be", call)
        self.assertRaisesRegex(TypeError, "id cannot be", lambda: self.broker.take_back("1"))
        self.assertRaisesRegex(TypeError, "connection cannot be 3: it is the socket",
                               lambda: self.broker.offer(3))
        self.assertEqual(self.broker.in_flight(), {number: "client"})
        self.backend.adopt(arrival).close()

    def test_what_is_no_number_is_refused_with_the_name_of_its_option(self):
        self.listen()
        for name, call in (
                ("mode", lambda: handoff.Backend.listen(self.path + "2", mode="660")),
                ("groups", lambda: handoff.Backend.listen(self.path + "2", groups=["www-data"])),
                ("users", lambda: handoff.Broker(self.path, users=["root"])),
                ("users", lambda: handoff.Broker(self.path, users=33)),
                ("users", lambda: handoff.Broker(self.path, users="root")),
                ("weight", lambda: self.broker.add(self.path + "2", weight=1.5)),
                ("timeout_ms", lambda: self.broker.offer(self.accepted, timeout_ms="5"))):
            self.assertRaisesRegex(TypeError, rf"\b{name} cannot be .* numbers?$", call)

    def test_nul_in_a_name_or_path_is_refused(self):
        self.listen()
        for call in (lambda: handoff.Backend.listen(self.path + "2\0.other"),
                     lambda: handoff.Broker(self.path + "\0.other"),
                     lambda: self.broker.add(self.path + "2\0.other"),
                     lambda: self.broker.remove(self.path + "\0.other"),
                     lambda: self.offer(service=b"public\0admin"),
                     lambda: self.offer(correlation=b"a\0b"),
                     lambda: self.broker.offer_and_wait(self.accepted, service=b"public\0admin")):
            self.assertRaisesRegex(ValueError, "has a NUL", call)
        self.assertEqual(os.listdir(os.path.dirname(self.path)), ["handoff.sock"])

    def test_closed_backend_says_so_instead_of_crashing_or_finding_nothing(self):
        self.listen()
        self.backend.close()
        self.backend.close()
        for call in (self.backend.dispatch, self.backend.next, self.backend.fileno,
                     lambda: self.backend.accept(timeout=0), self.backend.get_statistics,
                     self.backend.wake):
            with self.assertRaises(handoff.HandoffError) as raised:
                call()
            self.assertEqual(str(raised.exception), "HANDOFF_ERR_CLOSED: this backend is closed")
            self.assertEqual(raised.exception.errno, 0)

    def test_pickling_says_what_to_do(self):
        self.listen()
        for end in self.backend, self.broker:
            self.assertRaisesRegex(TypeError, "cannot be pickled: make it in the process that uses",
                                   lambda: pickle.dumps(end))

    def test_second_thread_is_refused_during_a_call(self):
        self.listen()
        accepted = []
        thread = threading.Thread(target=lambda: accepted.append(self.backend.accept(PATIENCE)))
        thread.start()
        end = time.monotonic() + PATIENCE
        while not self.backend._calls and time.monotonic() < end:
            time.sleep(0)  # lets the thread begin
        self.assertRaises(RuntimeError, self.backend.get_statistics)
        verdict = self.broker.offer_and_wait(self.accepted)
        thread.join()
        self.assertTrue(verdict.adopted)
        accepted[0].connection.close()

    def test_another_thread_wakes_accept(self):
        for options in {}, {"spin_us": 100}:
            self.listen(**options)
            ended = []
            thread = threading.Thread(target=lambda: ended.append(self.backend.accept(PATIENCE)))
            thread.start()
            wait_until(lambda: self.backend._waiting, "it waits")
            self.backend.wake()
            thread.join(PATIENCE / 2)
            self.assertEqual(ended, [None])
            self.backend.close()

    def test_wake_is_for_the_next_accept_which_gives_first_what_has_arrived(self):
        self.listen()
        self.offer(preread=b"x")
        self.wait(lambda: self.backend.get_statistics()["held"] or None)
        self.backend.wake()
        self.backend.accept(PATIENCE).connection.close()
        begin = time.monotonic()
        self.assertIsNone(self.backend.accept())
        self.assertIsNone(self.backend.accept(0.05))
        self.assertGreaterEqual(time.monotonic() - begin, 0.05)

    def test_signal_handler_may_wake_accept(self):
        self.listen()
        before = signal.signal(signal.SIGALRM, lambda *_: self.backend.wake())
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        self.assertIsNone(self.backend.accept(PATIENCE))

    def test_child_of_fork_is_refused_and_leaves_the_backend_alone(self):
        self.listen()
        self.backend.dispatch()  # from now on it is this process's
        child = os.fork()
        if child == 0:
            try:
                self.backend.dispatch()
                os._exit(1)
            except handoff.HandoffError as error:
                self.backend.close()
                wrong = handoff.status_name(error.status) == "HANDOFF_ERR_WRONG_PROCESS"
                os._exit(0 if wrong else 2)
            finally:
                os._exit(3)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.assertTrue(os.path.exists(self.path))
        self.arrive()

    def test_child_of_fork_has_no_copy_also_if_a_thread_waits_for_an_arrival(self):
        self.listen()
        accepted = []
        thread = threading.Thread(target=lambda: accepted.append(self.backend.accept(PATIENCE)))
        thread.start()
        wait_until(lambda: self.backend._waiting, "it waits")
        before = len(os.listdir("/proc/self/fd"))
        with warnings.catch_warnings():  # of Python 3.12, about threads
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            try:
                self.backend.accept()
            except handoff.HandoffError as error:
                freed = before - len(os.listdir("/proc/self/fd"))
                os._exit(0 if error.status == _library.ERR_WRONG_PROCESS and freed > 0 else 1)
            finally:
                os._exit(2)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.assertTrue(self.broker.offer_and_wait(self.accepted).adopted)
        thread.join()
        accepted[0].connection.close()

    def test_backend_that_is_not_used_yet_works_in_the_child_that_uses_it_first(self):
        self.listen()
        child = os.fork()
        if child == 0:
            try:
                self.backend.accept().connection.close()
                os._exit(0)
            finally:
                os._exit(1)
        self.assertTrue(self.broker.offer_and_wait(self.accepted).adopted)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.assertRaisesRegex(handoff.HandoffError, "WRONG_PROCESS", self.backend.dispatch)

    def test_killed_backend_is_gone_though_a_child_of_its_process_lives(self):
        process = self.start("""if True:
            import handoff, os, signal, sys
            backend = handoff.Backend.listen(sys.argv[1])
            backend.accept().connection.close()
            if os.fork() == 0:
                print(os.getpid(), flush=True)
                signal.pause()
            backend.accept()
            """)
        self.connect()
        wait_until(lambda: os.path.exists(self.path), "it listens")
        self.assertTrue(self.broker.offer_and_wait(self.accepted).adopted)
        self.addCleanup(os.kill, int(process.stdout.readline()), signal.SIGKILL)
        process.kill()
        process.wait()
        start = time.monotonic()
        try:
            self.assertFalse(self.broker.offer_and_wait(self.accepted).adopted)
        except handoff.HandoffError as error:
            self.assertTrue(error.is_fallback_safe)
        self.assertLess(time.monotonic() - start, PATIENCE / 2)
        handoff.Backend.listen(self.path).close()


class Dropped(Ends):
    """A handle that nobody closes is freed, as a socket is."""

    def drop(self, handle):
        """The warnings, of which each says that a handle is unclosed."""
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            handle.pop()
            gc.collect()
        return [str(warning.message)[:9] for warning in told]

    def test_it_is_freed_with_a_warning(self):
        before = len(os.listdir("/proc/self/fd"))
        for make in (lambda: handoff.Backend.listen(self.path), lambda: handoff.Broker(self.path)):
            handle = [make()]
            handle[0].fileno()
            self.assertGreater(len(os.listdir("/proc/self/fd")), before)
            self.assertEqual(self.drop(handle), ["unclosed "])
            self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        handoff.Backend.listen(self.path).close()

    def test_one_that_could_not_be_made_and_one_that_is_closed_say_nothing(self):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for wrong in (lambda: handoff.Backend.listen(self.path + "/none"),
                          lambda: handoff.Broker(self.path, nothing=1),
                          lambda: handoff.Broker("x" * 200)):
                self.assertRaises((handoff.HandoffError, TypeError), wrong)
            handoff.Broker(self.path).close()
            gc.collect()
        self.assertEqual(told, [])

    def test_child_of_fork_drops_its_copy_and_leaves_the_backend_alone(self):
        self.listen()
        self.broker.fileno()
        self.backend.dispatch()
        child = os.fork()
        if child == 0:
            try:
                os._exit(len(self.drop([self.__dict__.pop("backend")])))
            finally:
                os._exit(9)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.arrive()

    def test_the_end_of_the_program_frees_it(self):
        process = self.start("import handoff, sys; backend = handoff.Backend.listen(sys.argv[1])")
        self.assertEqual(process.wait(PATIENCE), 0)
        self.assertFalse(os.path.exists(self.path))


class Interruption(Exception):
    """What a signal handler raises."""


class Places:
    """The places in a call where a signal handler can run: where a function begins and where a C call
    returns. An exception is raised in one of them."""

    def __init__(self, number):
        self.left = number

    def __call__(self, frame, event, _):
        if event in ("call", "c_return", "c_exception") or (
                event == "return" and frame.f_code.co_name == "ctypes_call"):
            self.left -= 1
            if self.left == 0:
                raise Interruption

    def run(self, call):
        """What the call returns, or None if it is interrupted."""
        try:
            sys.setprofile(self)
            return call()
        except Interruption:
            return None
        finally:
            sys.setprofile(None)


class Library:
    """The C library for ends whose calls are interrupted: the interpreter tells a profile function of C
    calls, but not of those of ctypes."""

    def __getattr__(self, name):
        function = getattr(_library.library, name)

        def ctypes_call(*arguments):
            return function(*arguments)
        # Which Python does not call itself.
        return function if name == "handoff_broker_take_back" else ctypes_call


class SignalHandlers(Ends):
    """A signal handler that raises, wherever that is, loses no client and locks no handle."""

    def setUp(self):
        super().setUp()
        for module in handoff.backend, handoff.broker:
            patch = unittest.mock.patch.object(module, "library", Library())
            patch.start()
            self.addCleanup(patch.stop)
        self.listen()
        self.broker.fileno()
        self.wait(lambda: self.broker.room() or None)

    def places(self):
        """One after the other, until a call has had no more. No descriptor is left by any."""
        for number in range(1, 1000):
            before = len(os.listdir("/proc/self/fd"))
            places = Places(number)
            yield places
            self.assertEqual(len(os.listdir("/proc/self/fd")), before, number)
            if places.left > 0:
                self.assertGreater(number, 5)
                return
        self.fail("it does not end")

    def serve(self, arrival, client):
        """Is the connection the client's, and does the broker know?"""
        with arrival.connection as connection:
            connection.sendall(client.encode())
        self.assertEqual(self.client.recv(100), client.encode())
        verdict = self.wait(self.broker.next)
        self.assertEqual((verdict.user_data, verdict.adopted), (client, True))

    def drop(self, arrival):
        self.assertRaises(handoff.TakenBack, lambda: self.backend.adopt(arrival))

    def test_accept(self):
        for number, places in enumerate(self.places()):
            self.broker.offer(self.accepted, preread=b"%d" % number, user_data=str(number))
            arrival = places.run(lambda: self.backend.accept(PATIENCE)) or self.backend.accept(PATIENCE)
            self.assertEqual(arrival.preread, b"%d" % number)
            self.serve(arrival, str(number))

    def test_next_and_then_accept(self):
        for places in self.places():
            self.broker.offer(self.accepted, preread=b"pre", user_data="client")
            self.wait(lambda: self.backend.get_statistics()["held"] or None)
            arrival = places.run(self.backend.next)
            if arrival is not None:
                self.backend.adopt(arrival)
            else:
                arrival = self.backend.accept(PATIENCE)
            self.assertEqual(arrival.preread, b"pre")
            self.serve(arrival, "client")

    def test_adopt(self):
        for places in self.places():
            self.broker.offer(self.accepted, user_data="client")
            arrival = self.wait(self.backend.next)
            places.run(lambda: self.backend.adopt(arrival))
            try:
                arrival.connection
            except ValueError:
                self.backend.adopt(arrival)
            self.serve(arrival, "client")

    def test_offer(self):
        for places in self.places():
            self.broker.room()
            places.run(lambda: self.broker.offer(self.accepted, user_data="client"))
            if "client" not in self.broker.in_flight().values():
                self.backend.dispatch()
                self.assertIsNone(self.backend.next())
                self.broker.offer(self.accepted, user_data="client")
            self.serve(self.backend.accept(PATIENCE), "client")
            self.assertEqual(self.broker.in_flight(), {})

    def test_verdict(self):
        for places in self.places():
            number = self.broker.offer(self.accepted, user_data="client")
            self.backend.accept(PATIENCE).connection.close()
            self.assertIsNone(self.backend.next())  # which sends the verdict
            self.broker.dispatch()
            verdict = places.run(self.broker.next)
            if verdict is None:
                self.assertEqual(self.broker.in_flight(), {number: "client"})
                verdict = self.broker.next()
            self.assertEqual((verdict.user_data, verdict.adopted), ("client", True))
            self.assertEqual(self.broker.in_flight(), {})

    def test_take_back(self):
        for places in self.places():
            number = self.broker.offer(self.accepted, user_data="client")
            arrival = self.wait(self.backend.next)
            places.run(lambda: self.broker.take_back(number))
            if number in self.broker.in_flight():
                self.broker.take_back(number)
            self.assertRaisesRegex(handoff.HandoffError, "TOO_LATE",
                                   lambda: self.broker.take_back(number))
            self.assertIsNone(self.broker.next())
            self.drop(arrival)

    def test_close_of_the_broker(self):
        for places in self.places():
            broker = handoff.Broker(self.path)

            def connected():
                broker.dispatch()
                self.backend.dispatch()
                return broker.room() > 1
            wait_until(connected, "it is connected")
            for client in "one", "two":
                broker.offer(self.accepted, user_data=client)
            self.assertEqual(list(broker.in_flight().values()), ["one", "two"])
            verdicts = places.run(broker.close) or broker.close()
            self.assertEqual([verdict.user_data for verdict in verdicts], ["one", "two"])

            def closed():
                self.backend.dispatch()
                for arrival in iter(self.backend.next, None):
                    self.drop(arrival)
                return self.backend.get_statistics()["channels"] == 1
            wait_until(closed, "its channel is closed")

    def test_listen_and_close(self):
        path = self.path + "2"
        for places in self.places():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                backend = places.run(lambda: handoff.Backend.listen(path))
            handoff.Backend.listen(path).close() if backend is None else backend.close()
        for places in self.places():
            backend = handoff.Backend.listen(path)
            places.run(backend.close)
            backend.close()
            self.assertFalse(os.path.exists(path))


    def test_child_of_fork_does_not_get_what_a_call_of_its_parent_has_left(self):
        self.broker.offer(self.accepted, user_data="client")
        self.backend.accept(PATIENCE).connection.close()
        self.assertIsNone(self.backend.next())
        self.broker.dispatch()
        status = _library.library.handoff_broker_next(self.broker._handle,
                                                      ctypes.byref(self.broker._verdict))
        self.assertEqual(status, _library.OK)
        child = os.fork()
        if child == 0:
            try:
                os._exit(len(self.broker.close()))
            finally:
                os._exit(9)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.assertEqual([verdict.user_data for verdict in self.broker.close()], ["client"])


class TheBroker(Ends):
    """What only a broker does."""

    def test_user_data_comes_with_the_verdict(self):
        self.listen()
        client = object()
        self.offer(user_data=client)
        self.backend.adopt(self.wait(self.backend.next)).close()
        self.backend.next()
        verdict = self.wait(self.broker.next)
        self.assertIs(verdict.user_data, client)
        self.assertEqual((verdict.adopted, verdict.backend, verdict.attempts), (True, self.path, 1))
        self.assertIsNone(self.broker.next())

    def test_close_gives_the_verdicts_that_were_not_taken(self):
        self.listen()
        number = self.offer(user_data="client")
        [verdict] = self.broker.close()
        self.assertEqual((verdict.id, verdict.user_data, verdict.adopted, verdict.reason),
                         (number, "client", False, handoff.Reason.BROKER_CLOSED))
        self.assertFalse(verdict.may_pass)
        self.assertEqual(self.broker.close(), [])
        with self.assertRaises(handoff.HandoffError) as raised:
            self.broker.offer(self.accepted)
        self.assertEqual(str(raised.exception), "HANDOFF_ERR_CLOSED: this broker is closed")

    def test_close_in_a_child_of_fork_frees_its_copies_and_leaves_the_offers_alone(self):
        self.listen()
        number = self.offer(user_data="client")
        before = len(os.listdir("/proc/self/fd"))
        child = os.fork()
        if child == 0:
            try:
                self.assertRaises(handoff.HandoffError, self.broker.in_flight)
                verdicts = self.broker.close()
                freed = before - len(os.listdir("/proc/self/fd"))
                os._exit(0 if verdicts == [] and freed > 0 else 1)
            finally:
                os._exit(2)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.backend.adopt(self.wait(self.backend.next)).close()
        self.backend.next()
        verdict = self.wait(self.broker.next)
        self.assertEqual((verdict.id, verdict.user_data, verdict.adopted), (number, "client", True))

    def test_killed_broker_is_gone_though_a_child_of_its_process_lives(self):
        self.listen()

        def brokers():
            """How many have said hello, and how many channels there are."""
            self.backend.dispatch()
            statistics = self.backend.get_statistics()
            return statistics["accepted"], statistics["channels"]
        for number, flags in (1, 0), (2, 1):  # HANDOFF_BROKER_SHARED
            process = self.start(f"""if True:
                import handoff, os, select, signal, sys
                broker = handoff.Broker(sys.argv[1], flags={flags})
                while broker.room() == 0:
                    select.select([broker], [], [])
                    broker.dispatch()
                if os.fork() == 0:
                    print(os.getpid(), flush=True)
                    signal.pause()
                signal.pause()
                """)
            wait_until(lambda: brokers() == (number, 1), "it connects")
            self.addCleanup(os.kill, int(process.stdout.readline()), signal.SIGKILL)
            process.kill()
            process.wait()
            wait_until(lambda: brokers() == (number, 0), "its channel ends")

    def test_no_room_is_an_error_of_its_own(self):
        self.listen(max_in_flight=1)
        self.offer()
        self.assertEqual(self.broker.room(), 0)
        with self.assertRaises(handoff.Full):
            self.broker.offer(self.accepted)

    def test_statistics_name_reasons_and_statuses(self):
        self.listen(max_in_flight=1)
        self.offer()
        with self.assertRaises(handoff.Full):
            self.broker.offer(self.accepted)
        self.backend.reject(self.wait(self.backend.next))
        self.backend.next()
        verdict = self.wait(self.broker.next)
        self.assertIs(verdict.reason, handoff.Reason.REJECTED)
        statistics = self.broker.get_statistics()
        self.assertEqual(statistics["fallbacks"], {handoff.reason_name(handoff.Reason.REJECTED): 1})
        # Those before there was a channel were refused, too.
        self.assertEqual(statistics["refusals"]["HANDOFF_ERR_FULL"], 1)
        self.assertEqual(sum(statistics["refusals"].values()), statistics["refused"])
        self.assertEqual([statistics[name] for name in ("offered", "adopted", "connects")], [1, 0, 1])

    def test_states_tell_of_each_backend(self):
        self.listen()
        self.broker.add(self.path + "2", weight=3, backup=True)
        self.offer()
        self.backend.reject(self.wait(self.backend.next))
        self.backend.next()
        self.wait(self.broker.next)
        first, second = self.broker.get_states()
        self.assertEqual((first["path"], first["state"], first["status"], first["message"]),
                         (self.path, "ready", "HANDOFF_OK", ""))
        self.assertEqual((first["offered"], first["fallbacks"], sum(first["histogram"])),
                         (1, {"rejected": 1}, 1))
        self.assertIsNone(first["next_ms"])
        self.assertEqual((second["path"], second["state"], second["weight"]),
                         (self.path + "2", "down", 3))
        self.assertTrue(second["backup"] and not second["off"])
        self.assertEqual((second["status"], second["system_errno"]),
                         ("HANDOFF_ERR_BACKEND_UNAVAILABLE", errno.ENOENT))
        self.assertIn(self.path + "2", second["message"])
        self.assertGreaterEqual(second["next_ms"], 0)
        self.broker.close()
        self.assertRaises(handoff.HandoffError, self.broker.get_states)

    def test_more_offers_are_sent_together(self):
        self.listen()
        first = self.offer(more=True, user_data=1)
        pairs = [socket.socketpair() for _ in range(2)]
        for ours, theirs in pairs:
            self.addCleanup(ours.close)
            self.addCleanup(theirs.close)
        self.broker.offer(pairs[0][0], more=True, user_data=2)
        self.broker.offer(pairs[1][0], user_data=3)
        self.assertGreater(first, 0)
        for _ in range(3):
            self.backend.adopt(self.wait(self.backend.next)).close()
        self.assertIsNone(self.backend.next())
        self.assertEqual([self.wait(self.broker.next).user_data for _ in range(3)], [1, 2, 3])

    def test_flush_sends_what_waits_for_more(self):
        self.listen()
        self.offer(more=True, timeout_ms=30000, user_data=1)
        time.sleep(0.05)
        self.backend.dispatch()
        self.assertIsNone(self.backend.next())
        self.broker.flush()
        self.backend.adopt(self.wait(self.backend.next)).close()
        self.assertIsNone(self.backend.next())
        self.assertTrue(self.wait(self.broker.next).adopted)

    def test_backends_come_and_go(self):
        self.listen()
        self.broker.add(self.path + "2", weight=2)
        self.broker.add(self.path + "3", backup=True)
        self.assertTrue(self.broker.remove(self.path + "2"))
        self.assertFalse(self.broker.remove(self.path + "2"))
        with self.assertRaises(TypeError):
            self.broker.add(self.path, wait=1)


if __name__ == "__main__":
    unittest.main()
