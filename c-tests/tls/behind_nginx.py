"""Clients of a real nginx that does their TLS in the kernel, and hands them over.

HANDOFF_NGINX_MODULES is the directory with the modules for this nginx.
"""

import os
import socket
import ssl
import subprocess
import time

import peers
from peers import PATIENCE, wait_until

MODULES = os.environ["HANDOFF_NGINX_MODULES"]
# What OpenSSL does not let the kernel receive, the nginx module does itself.
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]

WORKERS = 2

CONFIGURATION = """
load_module {modules}/ngx_http_handoff_module.so;
daemon off;
user root;
worker_processes {workers};
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
        {locations}
    }}
}}
"""


class Test(peers.Test):
    """`locations` are those of nginx."""

    locations = ""

    def setUp(self):
        super().setUp()
        self.processes = []
        self.addCleanup(self.kill)

    def start_nginx(self):
        """Starts it when the backends listen. Each worker has a channel to each then."""
        channels = WORKERS * len(self.processes)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        with open(os.path.join(self.directory, "nginx.conf"), "w", encoding="ascii") as file:
            file.write(CONFIGURATION.format(
                modules=MODULES, workers=WORKERS, port=self.port, certificate=self.certificate,
                locations=self.locations.format(directory=self.directory)))
        self.start("nginx", "-p", self.directory, "-c", "nginx.conf", "-e", "error.log")
        wait_until(self.is_up, "nginx listens")
        wait_until(lambda: self.errors().count(": it takes connections") >= channels,
                   "the channels are made")

    def start_listening(self, *command):
        """Starts a backend, which says that it listens."""
        process = self.start(*command, stdout=subprocess.PIPE)
        self.assertRegex(process.stdout.readline(), "^listening on ")
        return process

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
            if process.stdout:
                process.stdout.close()

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
        self.assertEqual(lines_there(), sorted(lines), self.errors())

    def errors(self):
        with open(os.path.join(self.directory, "error.log"), encoding="utf-8") as file:
            return file.read()
