#!/usr/bin/env python3
"""Runs front.py and stream.py behind a real nginx with nginx.conf, as its comments say.

HANDOFF_NGINX_MODULES is the directory with the modules for nginx. HANDOFF_TLS=1: over https and wss,
where the kernel does TLS.
"""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
from web_clients import WebSocket, read_head  # noqa: E402

MODULES = os.environ["HANDOFF_NGINX_MODULES"]
TLS = os.environ.get("HANDOFF_TLS") == "1"
PATIENCE = 240  # seconds, for anything: an emulated machine takes a minute to import FastAPI
CLOSE = 8

AROUND = """
load_module {modules}/ngx_http_handoff_module.so;
daemon off;
{user}
worker_processes 2;
pid nginx.pid;
error_log error.log info;
events {{ }}
http {{
    log_format handoff '$uri $handoff_tls $handoff_outcome';
    access_log access.log handoff;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {server}
}}
"""

HTTPS = """listen 127.0.0.1:8080 ssl;
    ssl_certificate localhost.pem;
    ssl_certificate_key localhost.pem;
    ssl_conf_command Options KTLS;
    ssl_protocols TLSv1.2 TLSv1.3;"""


class Site:
    """front.py, stream.py and nginx, as processes."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="handoff-tokens-")
        self.processes = []
        os.mkdir(os.path.join(self.directory, "stream"))
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        with open(os.path.join(HERE, "nginx.conf"), encoding="ascii") as file:
            server = file.read()
        if TLS:
            server = server.replace("listen 127.0.0.1:8080;", HTTPS)
            self.make_certificate()
        server = server.replace("/run/app", self.directory).replace("8080", str(self.port))
        with open(os.path.join(self.directory, "nginx.conf"), "w", encoding="ascii") as file:
            file.write(AROUND.format(modules=MODULES, server=server,
                                     user="user root;" if os.getuid() == 0 else ""))

    def run(self):
        front = os.path.join(self.directory, "front.sock")
        self.start(sys.executable, "-B", "-m", "uvicorn", "front:app", "--app-dir", HERE,
                   "--uds", front)
        self.workers = self.start(
            sys.executable, "-B", "-m", "handoff.asgi", "stream:app", self.directory + "/stream/",
            "--app-dir", HERE, "--workers", "2", "--header", "Connection: close")
        self.wait(lambda: os.path.exists(front), "front.py listens")
        self.wait(lambda: len(os.listdir(self.directory + "/stream")) == 2, "stream.py listens")
        self.start("nginx", "-p", self.directory, "-c", "nginx.conf", "-e", "error.log")
        self.wait(lambda: self.logs().count(": it takes connections") >= 4, "nginx is connected")

    def start(self, *command):
        name = os.path.join(self.directory, f"log.{len(self.processes)}")
        with open(name, "w", encoding="utf-8") as log:
            self.processes.append(
                subprocess.Popen(command, cwd=self.directory, stdout=log, stderr=log))
        return self.processes[-1]

    def close(self):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(PATIENCE)
        logs = self.logs()
        shutil.rmtree(self.directory)
        if "Traceback" in logs:
            raise AssertionError(logs)

    def logs(self):
        text = ""
        for name in sorted(os.listdir(self.directory)):
            if "log" in name:
                with open(os.path.join(self.directory, name), encoding="utf-8") as file:
                    text += file.read()
        return text

    def wait(self, condition, what):
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"still not: {what}\n{self.logs()}")
            time.sleep(0.02)

    def make_certificate(self):
        file = os.path.join(self.directory, "localhost.pem")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
             "subjectAltName=DNS:localhost", "-keyout", file, "-out", file + ".certificate"],
            check=True, stderr=subprocess.DEVNULL)
        with open(file + ".certificate", encoding="ascii") as source, \
                open(file, "a", encoding="ascii") as target:
            target.write(source.read())
        self.trusting = ssl.create_default_context(cafile=file)
        self.trusting.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)

    def connect(self):
        client = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        if TLS:  # an end without close_notify raises
            client = self.trusting.wrap_socket(client, server_hostname="localhost",
                                               suppress_ragged_eofs=False)
        return client


class Tokens(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.site = Site()
        cls.addClassCleanup(cls.site.close)
        cls.site.run()

    def connect(self):
        client = self.site.connect()
        self.addCleanup(client.close)
        return client

    def ask(self, query, token=None, path="events", more=b""):
        """A client, of which the head of the answer has been read, and that head."""
        client = self.connect()
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        client.sendall(f"GET /chat/{path}?{query} HTTP/1.1\r\nHost: localhost\r\n{authorization}"
                       "X-Handoff-Data: {}\r\nX-Forwarded-For: 192.0.2.66\r\n\r\n".encode() + more)
        file = client.makefile("rb")
        self.addCleanup(file.close)
        return file, read_head(file)

    def status(self, *what):
        return self.ask(*what)[1][0].split(" ")[1]

    def events(self, file):
        """What comes until the connection ends in order, without the framing of HTTP."""
        return [json.loads(data) for data in re.findall(rb"data: (\".*\")\n", file.read())]

    def test_who_may_gets_tokens_one_by_one_and_who_they_are_comes_from_front(self):
        for token, user in ("token-of-ada", "ada"), ("token-of-bob", "bob"):
            file, head = self.ask("prompt=why+%22so%22", token)
            self.assertEqual(head[0], "HTTP/1.1 200 OK")
            self.assertEqual(self.events(file), [user, "at", "127.0.0.1", "asks:", "why", '"so"'])
        self.site.wait(lambda: self.site.logs().count(f"/stream/ {'both' if TLS else '-'} adopted") >= 2,
                       "both were handed over")

    def test_who_may_not_never_reaches_the_backend(self):
        for token in None, "token-of-eve":
            self.assertEqual(self.status("prompt=x", token), "401")
        # From outside there is no way to the location that hands over.
        client = self.connect()
        client.sendall(b"GET /stream/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with client.makefile("rb") as file:
            self.assertIn("404", read_head(file)[0])

    def test_second_request_on_the_connection_is_not_answered(self):
        second = b"GET /chat/events?prompt=stolen HTTP/1.1\r\nHost: localhost\r\n\r\n"
        file, _ = self.ask("prompt=first", "token-of-ada", more=second)
        rest = file.read()
        self.assertIn(b"first", rest)
        self.assertNotIn(b"stolen", rest)
        self.assertNotIn(b"HTTP/1.1", rest)

    def test_tokens_over_a_websocket(self):
        client = self.connect()
        there = WebSocket(client, "Authorization: Bearer token-of-bob\r\n",
                          path="/chat/socket?prompt=hi")
        self.addCleanup(there.file.close)
        self.assertIn("101", read_head(there.file)[0])
        words = []
        while (message := there.receive())[0] != CLOSE:
            words.append(json.loads(message[1]))
        self.assertEqual(words, ["bob", "at", "127.0.0.1", "asks:", "hi"])
        there.send(0x80 | CLOSE, message[1])
        self.assertEqual(there.file.read(), b"")

    def test_worker_that_dies_does_not_matter_to_the_next_client(self):
        pids = subprocess.run(["pgrep", "-P", str(self.site.workers.pid)], stdout=subprocess.PIPE,
                              text=True, check=True).stdout.split()
        for number, pid in enumerate(pids, 3):
            os.kill(int(pid), signal.SIGKILL)
            self.assertEqual(self.status("prompt=x", "token-of-ada"), "200")
            self.site.wait(lambda: self.site.logs().count("listening on ") == number, "there are two again")


if __name__ == "__main__":
    program = unittest.main(exit=False)
    result = program.result
    failed = len(result.failures) + len(result.errors)
    print(f"test_tokens: {result.testsRun - failed} passed, 0 skipped, {failed} FAILED")
    sys.exit(failed > 0)
