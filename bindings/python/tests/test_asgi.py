#!/usr/bin/env python3
"""Tests of `python3 -m handoff.asgi` with the uvicorn of this Python."""

import base64
import concurrent.futures
import contextlib
import http.client
import inspect
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

import handoff
import handoff.asgi
import uvicorn
from ends import PATIENCE, ROOT, Case, Front, read_all, wait_until
from handoff.asgi.scope import Unusable, facts_of

HERE = os.path.dirname(os.path.abspath(__file__))
HTTP, WS = ("h11", "httptools"), ("websockets", "wsproto")
FORGED = b"X-Forwarded-For: 192.0.2.66\r\nX-Forwarded-Proto: https\r\nForwarded: for=192.0.2.66\r\n"
GET = b"GET /hello HTTP/1.1\r\nHost: x\r\n" + FORGED + b"\r\n"
METADATA = {
    "module": "http", "client": {"address": "2001:db8::7", "port": 4000},
    "server": {"address": "192.0.2.1", "port": 443}, "scheme": "https",
    "tls": {"version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384", "sni": "app.example",
            "client_certificate": {"verify": "FAILED:certificate has expired"}},
    "request_id": "0123456789abcdef0123456789abcdef", "user": "ada"}
TLS = {"server_cert": None, "client_cert_chain": [], "client_cert_name": None,
       "client_cert_error": "FAILED:certificate has expired", "tls_version": 0x0304,
       "cipher_suite": 0x1302}


class Program:
    """python3 -m handoff.asgi, with what it has written."""

    def __init__(self, test, *arguments, app="asgi_app:app", workers=None):
        self.log = tempfile.TemporaryFile("w+")
        test.addCleanup(self.log.close)
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-m", "handoff.asgi", app, *arguments, "--app-dir", HERE],
            stdout=self.log, stderr=self.log, text=True)
        test.addCleanup(self.process.wait, PATIENCE)
        test.addCleanup(self.process.kill)

    def errors(self):
        self.log.seek(0)
        return self.log.read()

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


class Asgi(Case):
    def start(self, *arguments, **more):
        self.program = Program(self, self.path, *arguments, **more)
        wait_until(lambda: "listening on " in self.program.errors()
                   or self.program.process.poll() is not None, "it listens")

    def answer(self, client):
        """The answer to the first request that is still without one, and its body."""
        answer = http.client.HTTPResponse(client)
        answer.begin()
        return answer, answer.read()

    def told(self, client):
        answer, body = self.answer(client)
        self.assertEqual(answer.status, 200)
        return json.loads(body)


class Scopes(Asgi):
    def test_what_the_broker_says_is_in_the_scope_and_what_the_client_says_is_not(self):
        for way in HTTP:
            self.start("--http", way)
            with self.front.hand_over(GET, metadata=json.dumps(METADATA).encode(),
                                      correlation=b"r-1", service=b"app") as client:
                told = self.told(client)
            self.assertEqual(told["client"], ["2001:db8::7", 4000])
            self.assertEqual(told["server"], ["192.0.2.1", 443])
            self.assertEqual(told["scheme"], "https")
            self.assertEqual(told["extensions"]["tls"], TLS)
            self.assertEqual(told["extensions"]["handoff"],
                             {"metadata": METADATA, "correlation": "r-1", "service": "app"})
            self.assertEqual(told["lifespan"], "up")
            self.assertEqual(self.program.stop(), 0)
            self.assertIn("2001:db8::7:4000 - \"GET /hello", self.program.errors())
            self.assertIn("lifespan: down", self.program.errors())

    def test_without_metadata_the_connections_own_addresses_are_told(self):
        self.start()
        with self.front.hand_over(GET) as client:
            told = self.told(client)
            self.assertEqual(told["client"], list(client.getsockname()))
            self.assertEqual(told["server"], list(client.getpeername()))
        self.assertEqual((told["scheme"], told["extensions"]),
                         ("http", {"handoff": {"metadata": {}, "correlation": "", "service": ""}}))

    def test_metadata_without_a_client_is_rejected_and_the_broker_serves_it(self):
        self.start()
        for metadata in (b"{}", b"7", b"\xff", b'{"client":{"port":1}}', 20000 * b"[",
                         b'{"client":"192.0.2.1","server":{"address":"192.0.2.2"}}'):
            client, verdict = self.front.offer(GET, metadata=metadata)
            client.close()
            self.assertEqual((verdict.adopted, verdict.reason), (False, handoff.Reason.REJECTED))
        self.assertIn("handoff_metadata default", self.program.errors())

    def test_websockets_are_told_the_same_and_echo(self):
        for http_way in HTTP:
            for way in WS:
                with self.subTest(http=http_way, ws=way):
                    self.start("--http", http_way, "--ws", way)
                    key = base64.b64encode(os.urandom(16))
                    client = self.front.hand_over(
                        b"GET /s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n"
                        + FORGED + b"\r\n", metadata=json.dumps(METADATA).encode())
                    with client, client.makefile("rb") as file:
                        self.assertRegex(file.readline(), b"^HTTP/1.1 101 ")
                        while file.readline() != b"\r\n":
                            pass
                        told = json.loads(self.message(file))
                        self.assertEqual((told["client"], told["scheme"]),
                                         (["2001:db8::7", 4000], "wss"))
                        self.assertEqual(told["extensions"]["tls"], TLS)
                        client.sendall(b"\x81\x83\0\0\0\0abc")
                        self.assertEqual(self.message(file), b"abc")
                        # uvicorn 0.17 with wsproto waits forever for one that leaves without it.
                        client.sendall(b"\x88\x82\0\0\0\0\x03\xe8")
                        self.assertEqual(self.message(file)[:2], b"\x03\xe8")
                        self.assertEqual(file.read(), b"")
                    self.assertEqual(self.program.stop(), 0)

    @staticmethod
    def message(file):
        _, length = file.read(2)
        if length == 126:
            length = int.from_bytes(file.read(2), "big")
        return file.read(length)


class Http(Asgi):
    def test_head_and_body_cut_anywhere_between_preread_and_socket(self):
        request = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
        for way in HTTP:
            self.start("--http", way)
            for cut in range(len(request) + 1):
                with self.front.hand_over(request[:cut]) as client:
                    client.sendall(request[cut:])
                    self.assertEqual(self.answer(client)[1], b"hello")
            self.assertEqual(self.program.stop(), 0)

    def test_several_requests_on_a_connection_which_ends_though_the_broker_keeps_its_copy(self):
        self.start()
        copies = []
        with self.front.hand_over(2 * GET, keep_copy=copies) as client, copies[0]:
            with client.makefile("rb") as file:
                for _ in range(2):
                    head = b"".join(iter(file.readline, b"\r\n"))
                    file.read(int(re.search(rb"content-length: (\d+)", head)[1])) \
                        if b"content-length" in head else self.chunks(file)
            client.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            self.assertTrue(read_all(client).startswith(b"HTTP/1.1 200"))

    @staticmethod
    def chunks(file):
        while length := int(file.readline(), 16):
            file.read(length + 2)
        file.readline()

    def test_large_answer_to_a_slow_client_is_whole(self):
        self.start()
        request = b"GET /big?20000000 HTTP/1.0\r\n\r\n"
        with self.front.hand_over(request) as client:
            self.assertEqual(len(self.answer(client)[1]), 20000000)

    def test_header_of_every_answer(self):
        self.start("--header", "Connection: close")
        with self.front.hand_over(2 * GET) as client:
            answers = read_all(client)
        self.assertEqual(answers.count(b"HTTP/1.1 200"), 1)

    def test_connections_beyond_the_limit_stay_the_brokers(self):
        self.start("--limit-concurrency", "3")
        clients = [self.front.hand_over(GET) for _ in range(2)]
        for client in clients:
            self.told(client)
        other, verdict = self.front.offer(GET)
        other.close()
        self.assertEqual((verdict.adopted, verdict.reason), (False, handoff.Reason.BACKEND_BUSY))
        for client in clients:
            client.close()
        wait_until(lambda: self.adopted(), "there is room again")

    def test_burst_beyond_the_limit_is_answered_or_the_brokers_and_never_with_503(self):
        self.start("--limit-concurrency", "6")
        self.front.hand_over(GET).close()  # from now on there is a channel
        wait_until(self.adopted, "there is room")
        pairs = [socket.socketpair() for _ in range(30)]
        for ours, theirs in pairs:
            self.addCleanup(ours.close)
            ours.settimeout(PATIENCE)
            self.front.broker.offer(theirs, preread=GET, more=theirs is not pairs[-1][1],
                                    user_data=(ours, theirs))
        adopted = 0
        for _ in pairs:
            verdict = wait_until(self.verdict, "a verdict")
            ours, theirs = verdict.user_data
            theirs.close()
            if verdict.adopted:
                self.told(ours)
                adopted += 1
            else:
                self.assertEqual(verdict.reason, handoff.Reason.BACKEND_BUSY)
        self.assertGreater(adopted, 0)
        self.assertLessEqual(adopted, 5)

    def verdict(self):
        self.front.broker.dispatch()
        return self.front.broker.next()

    def adopted(self):
        client, verdict = self.front.offer(GET)
        client.close()
        return verdict.adopted


class Ends(Asgi):
    def test_answer_that_has_begun_is_finished_and_idle_clients_are_told(self):
        for way in HTTP:
            self.start("--http", way)
            idle = self.front.hand_over(GET)
            self.told(idle)
            slow = self.front.hand_over(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertEqual(slow.recv(8), b"HTTP/1.1")
            self.program.process.terminate()
            with idle, slow:
                self.assertEqual(read_all(idle), b"")
                self.assertFalse(os.path.exists(self.path))  # a successor may listen
                self.assertIn(b"9\n", read_all(slow))
            self.assertEqual(self.program.process.wait(PATIENCE), 0)

    def test_failed_startup_is_the_exit_status(self):
        self.start(app="asgi_app:broken")
        self.assertEqual(self.program.process.wait(PATIENCE), 3)
        self.assertFalse(os.path.exists(self.path))

    def test_path_that_is_in_use_is_the_exit_status(self):
        with handoff.Backend.listen(self.path):
            self.start()
            self.assertEqual(self.program.process.wait(PATIENCE), 1)
        self.assertIn("HANDOFF_ERR_ADDRESS_IN_USE", self.program.errors())
        self.assertIn("lifespan: down", self.program.errors())

    def test_second_sigint_ends_it_at_once(self):
        self.start()
        with self.front.hand_over(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"):
            self.program.process.send_signal(signal.SIGINT)
            wait_until(lambda: not os.path.exists(self.path), "it drains")
            self.program.process.send_signal(signal.SIGINT)
            self.program.process.wait(PATIENCE)


class InAProgram(Asgi):
    """handoff.asgi.run(), which returns after one request here."""

    def run_once(self, run):
        """The path that a client has asked for. run() calls serve(), maybe in one of the threads."""
        def serve():
            with contextlib.redirect_stdout(io.StringIO()):
                handoff.asgi.run("asgi_app:app", self.path, log_level="critical",
                                 limit_max_requests=1)
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            told = threads.submit(self.ask)
            run(serve, threads)
            return told.result(PATIENCE)["path"]

    def ask(self):
        with self.front.hand_over(GET) as client:
            return self.told(client)

    def test_handlers_of_signals_are_the_programs_again_when_it_returns(self):
        def own(*_):
            pass
        for number in signal.SIGINT, signal.SIGTERM:
            self.addCleanup(signal.signal, number, signal.signal(number, own))
        self.assertEqual(self.run_once(lambda serve, _: serve()), "/hello")
        self.assertEqual([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
                         [own, own])

    def test_a_thread_that_is_not_the_main_one_may_run_it(self):
        def run(serve, threads):
            threads.submit(serve).result(PATIENCE)
        self.assertEqual(self.run_once(run), "/hello")


class Workers(Asgi):
    def setUp(self):
        super().setUp()
        self.workers = Program(self, self.directory + "/", "--workers", "2")
        self.paths = [os.path.join(self.directory, f"{number}.sock") for number in (1, 2)]
        wait_until(lambda: all(map(os.path.exists, self.paths)), "both listen")
        self.front.close()
        self.front = Front(self.directory + "/")
        self.addCleanup(self.front.close)

    def pids(self):
        out = subprocess.run(["pgrep", "-P", str(self.workers.process.pid)],
                             stdout=subprocess.PIPE, text=True)
        return [int(pid) for pid in out.stdout.split()]

    def test_a_directory_has_a_socket_for_each_and_one_that_dies_is_started_again(self):
        first = self.pids()
        self.assertEqual(len(first), 2)
        os.kill(first[0], signal.SIGKILL)
        with self.front.hand_over(GET) as client:  # the other one takes it
            self.assertEqual(self.told(client)["path"], "/hello")
        wait_until(lambda: len(self.pids()) == 2 and self.pids() != first, "there are two again")
        self.assertIn("was killed by signal 9: started again in ", self.workers.errors())
        wait_until(lambda: self.workers.errors().count("listening on ") == 3, "it listens")
        self.assertEqual(self.workers.stop(), 0)
        self.assertFalse(any(map(os.path.exists, self.paths)))

    def test_end_while_one_that_died_is_to_be_started_again_is_no_failure(self):
        for number in 1, 2, 3:  # so that the pause is four seconds at the end
            os.kill(self.pids()[0], signal.SIGKILL)
            wait_until(lambda: self.workers.errors().count("was killed by") == number, "it is told")
            if number < 3:
                wait_until(lambda: len(self.pids()) == 2, "there are two again")
        self.assertEqual(self.workers.stop(), 0)

    def test_one_that_cannot_be_started_again_is_tried_later_and_the_others_stay(self):
        supervisor, first = self.workers.process.pid, self.pids()
        limit = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (6, limit[1]))
        os.kill(first[0], signal.SIGKILL)
        wait_until(lambda: "could not be started: [Errno 24]" in self.workers.errors(), "it is told")
        self.assertIsNone(self.workers.process.poll())
        with self.front.hand_over(GET) as client:
            self.assertEqual(self.told(client)["path"], "/hello")
        self.assertEqual(self.pids(), first[1:])
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, limit)
        wait_until(lambda: self.workers.errors().count("listening on ") == 3, "it listens")
        self.assertEqual(self.workers.stop(), 0)

    def test_workers_end_with_their_parent(self):
        pids = self.pids()
        self.workers.process.kill()
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "they end")


class WorkersThatFail(Asgi):
    def test_what_cannot_heal_ends_it(self):
        for arguments, error in (
                ((self.directory + "/missing/",), "missing/ is no directory"),
                ((self.directory + "/", "--workers", "2"), "no worker could listen")):
            program = Program(self, *arguments, app="no_such_module:app")
            self.assertEqual(program.process.wait(PATIENCE), 1)
            self.assertEqual(program.errors().count(error), 1)
            self.assertNotIn("started again", program.errors())

    def test_directory_without_its_slash_is_told_how_to_be_named(self):
        for arguments in (), ("--workers", "2"):
            program = Program(self, self.directory, *arguments)
            self.assertEqual(program.process.wait(PATIENCE), 2)
            self.assertIn(f"{self.directory} is a directory: end it with '/'",
                          program.errors().splitlines()[-1])

    def test_wrong_arguments_are_usage_errors(self):
        wrong = [("--user", "nosuch"), ("--group", "nosuch"), ("--user", str(2**32)), ("--mode", "9"),
                 ("--mode", "-1"), ("--mode", "1777"), ("--header", ": close"), ("--header", "close"),
                 ("--http", "nosuch"), ("--ws", "nosuch"), ("--log-level", "nosuch"),
                 ("--workers", "-1"), ("--workers", "0"), ("--limit-concurrency", "0"),
                 ("--limit-concurrency", "1"), ("--limit-max-requests", "0")]
        if "timeout_graceful_shutdown" not in inspect.signature(uvicorn.Config).parameters:
            wrong.append(("--timeout-graceful-shutdown", "1"))
        for arguments in wrong:
            for path in self.path, self.directory + "/":
                with self.subTest(arguments, path=path):
                    program = Program(self, path, *arguments)
                    self.assertEqual(program.process.wait(PATIENCE), 2)
                    self.assertNotIn("Traceback", program.errors())
                    last = program.errors().splitlines()[-1]
                    self.assertIn(f"error: argument {arguments[0]}: ", last)
                    self.assertNotIn("lambda", last)

    def test_without_uvicorn_the_command_says_what_it_needs(self):
        with open(os.path.join(self.directory, "uvicorn.py"), "w", encoding="utf-8") as missing:
            missing.write("raise ModuleNotFoundError('no uvicorn', name='uvicorn')\n")
        environment = {**os.environ, "PYTHONPATH": f"{self.directory}:{os.environ['PYTHONPATH']}"}
        command = [sys.executable, "-B", "-m", "handoff.asgi"]
        needs = "handoff.asgi needs uvicorn: pip install uvicorn\n"
        for arguments, code, error in ((("asgi_app:app", self.path), 1, needs),
                                       (("asgi_app:app", self.directory + "/"), 1, needs),
                                       (("--help",), 0, "")):
            result = subprocess.run([*command, *arguments], env=environment, check=False, text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.assertEqual((result.returncode, result.stderr), (code, error))

    def test_one_that_cannot_listen_is_tried_again_less_and_less_often(self):
        with handoff.Backend.listen(os.path.join(self.directory, "1.sock")):
            program = Program(self, self.directory + "/", "--workers", "2")
            wait_until(lambda: "started again in 2 s" in program.errors(), "it failed twice")
            self.assertEqual(program.errors().count("started again in 1 s"), 1)
        wait_until(lambda: program.errors().count("listening on ") == 2, "both listen")
        self.assertEqual(program.stop(), 0)


class Facts(unittest.TestCase):
    """Of what may stand in metadata."""

    def facts(self, **changes):
        said = json.dumps({**METADATA, **changes}).encode()
        return facts_of(handoff.Arrival(1, b"", said, b"", b"", handoff.Peer(1, 1, 1)))

    def test_parts_may_be_missing(self):
        for changes, client, secure, extensions in (
                ({"client": {"address": "unix:"}}, ("unix:", 0), True, {"tls", "handoff"}),
                ({"scheme": "http", "tls": {"sni": "x"}}, ("2001:db8::7", 4000), False, {"handoff"}),
                ({"tls": {}}, ("2001:db8::7", 4000), True, {"tls", "handoff"})):
            facts = self.facts(**changes)
            self.assertEqual((facts.client, facts.secure, set(facts.extensions)),
                             (client, secure, extensions))

    def test_other_types_are_unusable(self):
        for changes in ({"client": {"address": 7}}, {"client": []}, {"client": None},
                        {"client": {"address": "a", "port": "4"}},
                        {"client": {"address": "a", "port": True}}, {"server": {}},
                        {"client": {"address": "a", "port": 65536}}, {"tls": 7},
                        {"tls": {"client_certificate": 1}}, {"tls": {"version": []}}):
            with self.assertRaises(Unusable, msg=changes):
                self.facts(**changes)

    def test_verified_certificate_is_no_error(self):
        facts = self.facts(tls={"client_certificate": {"verify": "SUCCESS"}, "version": "TLSv1.2",
                                "cipher": "ECDHE-RSA-AES128-GCM-SHA256"})
        tls = facts.extensions["tls"]
        self.assertEqual((tls["client_cert_error"], tls["tls_version"], tls["cipher_suite"]),
                         (None, 0x0303, 0xc02f))


if __name__ == "__main__":
    print(f"uvicorn {uvicorn.__version__}")
    unittest.main()
