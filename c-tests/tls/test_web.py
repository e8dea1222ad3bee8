#!/usr/bin/env python3
"""The examples for the web, behind a real nginx whose clients' TLS the kernel does.

HANDOFF_NGINX_MODULES is the directory with the modules for this nginx.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import time

import peers
from peers import PATIENCE, wait_until

from web_clients import WebSocket, events_request, read_event, read_head

MODULES = os.environ["HANDOFF_NGINX_MODULES"]
# What OpenSSL does not let the kernel receive, the nginx module does itself.
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
TEXT, CLOSE = 1, 8

# Answers a request over standard input and output.
SHELL = r"""
while read -r line && [ "${#line}" -gt 1 ]; do :; done
printf 'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%s\n%s\n' "$HANDOFF_TLS" "$HANDOFF_METADATA"
exec cat
"""

CONFIGURATION = """
load_module {modules}/ngx_http_handoff_module.so;
daemon off;
user root;
worker_processes 2;
pid nginx.pid;
error_log error.log info;
events {{ }}
http {{
    log_format handoff '$uri $ssl_protocol $handoff_tls $handoff_outcome';
    access_log access.log handoff;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_conf_command Options KTLS;
        handoff_metadata default;
        location = /events {{ handoff_pass unix:{directory}/events.sock; }}
        location = /socket {{ handoff_pass unix:{directory}/websocket.sock; }}
        location = /shell {{ handoff_pass unix:{directory}/shell.sock; }}
    }}
}}
"""


class Web(peers.Test):
    def setUp(self):
        super().setUp()
        self.processes = []
        self.addCleanup(self.kill)
        for name in "events", "websocket":
            program = os.path.join(peers.ROOT, "examples", "python", f"{name}_backend.py")
            process = self.start(sys.executable, "-B", "-W", "error", program,
                                 os.path.join(self.directory, f"{name}.sock"),
                                 stdout=subprocess.PIPE)
            self.assertRegex(process.stdout.readline(), "^listening on ")
            self.addCleanup(process.stdout.close)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        with open(os.path.join(self.directory, "nginx.conf"), "w", encoding="ascii") as file:
            file.write(CONFIGURATION.format(modules=MODULES, port=self.port,
                                            certificate=self.certificate, directory=self.directory))
        self.start("nginx", "-p", self.directory, "-c", "nginx.conf", "-e", "error.log")
        wait_until(self.is_up, "nginx listens")

    def start(self, *command, **more):
        self.processes.append(subprocess.Popen(command, cwd=self.directory, text=True, **more))
        return self.processes[-1]

    def is_up(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), PATIENCE).close()
            return True
        except ConnectionRefusedError:
            return False

    def kill(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            self.assertEqual(process.wait(PATIENCE), 0, process.args)

    def connect_to_nginx(self, version):
        trusting = ssl.create_default_context(cafile=self.certificate)
        trusting.minimum_version = trusting.maximum_version = version
        trusting.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # an end needs close_notify
        plain = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        client = trusting.wrap_socket(plain, server_hostname="localhost",
                                      suppress_ragged_eofs=False)
        self.addCleanup(client.close)
        return client

    def assertLogged(self, *lines):
        """nginx writes a line when it has given a connection away."""
        def lines_there():
            with open(os.path.join(self.directory, "access.log"), encoding="ascii") as file:
                return sorted(file.read().splitlines())
        deadline = time.monotonic() + PATIENCE
        while lines_there() != sorted(lines) and time.monotonic() < deadline:
            time.sleep(0.05)
        with open(os.path.join(self.directory, "error.log"), encoding="utf-8") as file:
            self.assertEqual(lines_there(), sorted(lines), file.read())

    def test_events_over_https(self):
        for version in VERSIONS:
            client = self.connect_to_nginx(version)
            client.sendall(events_request(last=6))
            file = client.makefile("rb")
            self.addCleanup(file.close)
            self.assertEqual(read_head(file)[0], "HTTP/1.1 200 OK")
            for number in 7, 8, 9:
                event, data = read_event(file)
                # Of X-Forwarded-For, which says something else, nothing is believed.
                self.assertEqual((event, data["client"], data["tls"]),
                                 (number, "127.0.0.1", client.version()))
        self.processes[0].terminate()
        file.read()  # until close_notify: otherwise it raises
        self.processes[0].wait(PATIENCE)  # a second SIGTERM, while Python exits, would kill it
        self.assertLogged("/events TLSv1.2 both adopted", "/events TLSv1.3 both adopted")

    def test_websocket_over_tls(self):
        for version in VERSIONS:
            client = self.connect_to_nginx(version)
            there = WebSocket(client)
            self.addCleanup(there.file.close)
            self.assertEqual(read_head(there.file)[0], "HTTP/1.1 101 Switching Protocols")
            greeting = f"hello 127.0.0.1, {client.version()}"
            self.assertEqual(there.receive(), (TEXT, greeting.encode()))
            for data in b"", b"x", b"y" * 65535:
                there.send(0x80 | TEXT, data)
                self.assertEqual(there.receive_but_ticks(), (TEXT, data))
            self.assertRegex(there.receive()[1], b"^..:..:..$")
            there.send(0x80 | CLOSE, (1000).to_bytes(2, "big"))
            self.assertEqual(there.receive_but_ticks(), (CLOSE, b"\x03\xe8"))
            self.assertEqual(there.file.read(), b"")
        self.assertLogged("/socket TLSv1.2 both adopted", "/socket TLSv1.3 both adopted")

    def test_shell_script_over_https(self):
        script = self.start(os.environ["HANDOFF_COMMAND"], "exec", "shell.sock", "--",
                            "sh", "-c", SHELL, stdout=subprocess.PIPE)
        self.addCleanup(script.stdout.close)
        self.assertRegex(script.stdout.readline(), "^listening on ")
        for version in VERSIONS:
            client = self.connect_to_nginx(version)
            client.sendall(b"POST /shell HTTP/1.1\r\nHost: localhost\r\n"
                           b"Content-Length: 4\r\n\r\nbody")
            with client.makefile("rb") as file:
                self.assertEqual(read_head(file)[0], "HTTP/1.1 200 OK")
                self.assertRegex(file.readline().decode(), f"^{client.version()} [A-Z0-9-]+\n$")
                facts = json.loads(file.readline())
                self.assertEqual((facts["client"]["address"], facts["tls"]["version"]),
                                 ("127.0.0.1", client.version()))
                self.assertEqual(file.read(4), b"body")
                client.unwrap()  # then its input ends, it ends, and close_notify comes
        self.assertLogged("/shell TLSv1.2 both adopted", "/shell TLSv1.3 both adopted")


if __name__ == "__main__":
    peers.main()
