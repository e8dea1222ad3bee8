"""Which connections with TLS are handed over and which are not, what a backend gets with one, and
what the client sees of it: nothing."""

import hashlib
import itertools
import json
import socket
import ssl
import subprocess
import unittest

import test_socket_state as plain
from harness import NO_LIMIT, PATIENCE, is_asleep, wait_until
from tls import (CERTIFICATES, FULL, INFO, TLS, VERSIONS, Client, TlsCase, ask, capture, context,
                 handed_over, new_identity, openssl_in_nginx)

# Version, the client's ciphers, nginx's port, and what the kernel calls it.
AES_128, AES_256, CHACHA20 = "AES-128-GCM", "AES-256-GCM", "CHACHA20-POLY1305"
CIPHERS = [
    ("1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", 0, AES_128),
    ("1.2", "ECDHE-ECDSA-AES256-GCM-SHA384", 0, AES_256),
    ("1.2", "ECDHE-ECDSA-CHACHA20-POLY1305", 0, CHACHA20),
    ("1.3", None, 1, AES_128),
    ("1.3", None, 2, AES_256),
    ("1.3", None, 3, CHACHA20),
]
SUITES = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]

# A server that has one ssl_conf_command does not inherit another one.
KTLS = "ssl_conf_command Options KTLS;"

SERVER = """
    server {{
        listen 127.0.0.1:{ports[%d]} ssl%s;
        %s
        location / {{
            handoff_pass unix:{directory}/handoff.sock;
            handoff_metadata default;
            error_page 502 504 = @fallback;
        }}
        location @fallback {{ proxy_pass http://unix:{directory}/fallback.sock; }}
    }}
"""

LIBRARY = ".".join(map(str, openssl_in_nginx()))


class Servers(TlsCase):
    """Tests that have several of nginx's servers, each at a port of its own."""

    def begin(self, *servers, options=(), **more):
        """Each server is what the listen directive has behind ssl, and the rest; and, if its port is
        not one of its own, the number of the server whose port it is."""
        self.ports = []
        for _, _, *same in servers:
            self.ports.append(self.ports[same[0]] if same else self.new_port())
        text = "ssl_session_cache shared:tls:1m; " + TLS + "".join(
            SERVER % (i, listen, text) for i, (listen, text, *_) in enumerate(servers))
        self.start(*options, http=text, **more)

    def fill(self):
        return {**super().fill(), "ports": getattr(self, "ports", [])}

    def arrival(self, client, **more):
        """Asks for what the backend got with the connection: the answer, and its metadata."""
        identity = new_identity()
        answer = client.ask(ask(identity, "arrival", **more))
        self.assertEqual((answer.status, answer.headers["x-id"]), (200, identity))
        if not handed_over(answer):
            return answer, None
        return answer, json.loads(answer.body.split(b"\n", 2)[2])

    def ask_again(self, client, way="handoff"):
        """The connection is in order, until the answer that ends it."""
        for close in False, True:
            identity = new_identity()
            answer = client.ask(ask(identity, method="POST", body=b"x" * 5000, close=close))
            self.assertEqual((answer.headers["x-served-by"], answer.headers["x-id"]), (way, identity))
        self.assertEqual(client.read_end(), "close_notify")

    def log_of(self, uri):
        """$handoff_tls, version, cipher and outcome."""
        return wait_until(lambda: self.logged().get(uri), f"{uri} is logged")


class Ciphers(Servers):
    def begin_all(self, *options, server=""):
        self.begin(("", "ssl_protocols TLSv1.2;"),
                   *(("", f"ssl_protocols TLSv1.3; {KTLS} ssl_conf_command Ciphersuites {suite};")
                     for suite in SUITES), options=options, server=server)

    def for_each(self, check):
        for version, ciphers, port, name in CIPHERS:
            with self.subTest(version, cipher=name), \
                    Client(self.ports[port], made=context(version, ciphers)) as client:
                check(client, f"TLSv{version} {name}")

    def test_each_version_and_cipher_is_handed_over(self):
        def check(client, kernels):
            answer, metadata = self.arrival(client)
            self.assertEqual(answer.headers["x-tls"], kernels)
            # What the client's side says of the same.
            self.assertEqual(metadata["tls"], {
                "version": client.tls.version(), "cipher": client.tls.cipher()[0],
                "sni": "a.test"})
            self.assertEqual(metadata["scheme"], "https")
            self.assertEqual(metadata["client"]["port"], client.socket.getsockname()[1])
            self.assertEqual(self.log_of(f"/arrival/{answer.headers['x-id']}"),
                             ["both", client.tls.version(), client.tls.cipher()[0], "adopted"])
            self.ask_again(client)

        self.begin_all()
        self.for_each(check)
        for direction in "Tx", "Rx":
            self.assertGreaterEqual(self.since_start(f"Tls{direction}Sw"), len(CIPHERS))
        self.assertEqual(self.since_start("TlsDecryptError"), 0)

    def test_nginx_serves_on_when_the_backend_refuses(self):
        def check(client, _):
            for _ in range(3):
                answer, _ = self.arrival(client)
                self.assertEqual(answer.headers["x-served-by"], "unix")
            self.ask_again(client, "unix")

        self.expect_fallbacks()
        self.begin_all("-r", 1, server=NO_LIMIT)
        self.for_each(check)
        # Each request was offered, so each time the connection could have been handed over.
        self.assertEqual(self.backend.statistics()["rejected"], 5 * len(CIPHERS))
        self.assertEqual(set(self.reasons()), set())

    def test_offered_again_after_a_refusal(self):
        def check(client, _):
            ways = [self.arrival(client)[0].headers["x-served-by"] for _ in range(2)]
            self.assertIn(ways, (["handoff"] * 2, ["unix", "handoff"]))
            self.ask_again(client)

        self.expect_fallbacks()
        self.begin_all("-r", 2, server=NO_LIMIT)  # every second offer is refused
        self.for_each(check)
        self.assertGreater(self.backend.statistics()["rejected"], 1)


class NotHandedOver(Servers):
    def check(self, client, tls, reason, port_open=True):
        answer, _ = self.arrival(client)
        self.assertEqual(answer.headers["x-served-by"], "unix")
        self.assertEqual(self.log_of(f"/arrival/{answer.headers['x-id']}")[0], tls)
        self.assertRegex(self.reasons()[-1], reason)
        if port_open:
            self.ask_again(client, "unix")

    def test_what_the_kernel_does_not_do(self):
        self.begin(("", ""), ("", "ssl_conf_command Options -KTLS;"))
        with self.subTest("CBC"):
            cbc = self.client(port=self.ports[0],
                              made=context("1.2", "ECDHE-ECDSA-AES128-SHA256"))
            self.check(cbc, "none", rf"(?=.*kernel)(?=.*AES128-SHA256)(?=.*TLSv1\.2)(?=.*{LIBRARY})")
        for version in VERSIONS:
            with self.subTest("without KTLS", version=version):
                self.check(self.client(version, port=self.ports[1]), "none",
                           'there is no "ssl_conf_command Options KTLS"')

    def curl(self, *options):
        """Gives status, version of HTTP, and answer."""
        return subprocess.run(
            ["curl", "--silent", "--show-error", "--cacert", f"{CERTIFICATES}/all.pem",
             "--connect-to", "::127.0.0.1:", *options], check=True, stdout=subprocess.PIPE,
            text=True, timeout=PATIENCE).stdout

    def test_http_2(self):
        self.expected.append(r'\[warn\] .*the "listen ... http2" directive is deprecated')
        self.begin((" http2", ""))
        url = f"https://a.test:{self.ports[0]}"
        for count in 1, 3:
            identities = [new_identity() for _ in range(count)]
            output = self.curl("--http2", "--write-out", " %{http_version}\n",
                               *(f"{url}/r/{identity}" for identity in identities))
            self.assertEqual(output, "served\n 2\n" * count)
        self.assertEqual(set(self.reasons()), {"it came by HTTP/2"})
        self.assertEqual(self.backend.statistics()["arrived"], 0)
        # Over the same port, but by HTTP/1.1.
        identity = new_identity()
        self.assertEqual(self.curl("--http1.1", f"{url}/r/{identity}"), "served\n")
        self.assertEqual(self.backend.statistics()["adopted"], 1)


class Features(Servers):
    """What nginx does of TLS, while connections are handed over."""

    def check_reuse(self, port, version, made=None):
        """Connections of which each but the first resumes the session of the one before."""
        session = None
        for i in range(3 if FULL else 2):
            with Client(port, version, made=made, session=session) as client:
                self.assertEqual(client.tls.session_reused, i > 0)
                _, metadata = self.arrival(client)
                self.assertIsNotNone(metadata, "not handed over")
                session = client.tls.session
                self.ask_again(client)
        return metadata

    def test_sessions(self):
        self.begin(("", "ssl_session_tickets off;"), ("", "ssl_session_tickets on;"),
                   ("", "ssl_session_tickets on; ssl_session_cache off;"))
        for version, (i, port) in itertools.product(VERSIONS, enumerate(self.ports)):
            with self.subTest(version, server=i):
                # A session belongs to its context.
                self.check_reuse(port, version, context(version))

    def test_client_certificates(self):
        trusted = "ssl_client_certificate {certificates}/client.test.pem;"
        self.begin(("", f"ssl_verify_client on; {trusted}"),
                   ("", f"ssl_verify_client optional; {trusted}"),
                   ("", "ssl_verify_client optional_no_ca;"))
        der = ssl.PEM_cert_to_DER_cert(self.certificate("client.test"))
        for version, (i, port) in itertools.product(VERSIONS, enumerate(self.ports)):
            with self.subTest(version, server=i):
                metadata = self.check_reuse(port, version, context(version, certificate="client.test"))
                found = metadata["tls"]["client_certificate"]
                self.assertEqual(found["sha1"], hashlib.sha1(der).hexdigest())
                self.assertRegex(found["verify"], "^SUCCESS$" if i < 2 else "^(SUCCESS$|FAILED:)")
        with Client(self.ports[1]) as client:
            self.assertNotIn("client_certificate", self.arrival(client)[1]["tls"])
        # nginx answers that itself.
        with Client(self.ports[0]) as client:
            self.assertEqual(client.ask(ask(new_identity())).status, 400)

    @staticmethod
    def certificate(name):
        with open(f"{CERTIFICATES}/{name}.pem", encoding="ascii") as file:
            return file.read()

    def test_names_of_servers(self):
        text = """
            server_name b.test;
            ssl_certificate {certificates}/b.test.pem;
            ssl_certificate_key {certificates}/b.test.key;
            handoff_service $ssl_server_name;
        """
        self.begin(("", "server_name a.test; handoff_service of-a;"), ("", text, 0))
        for version, (name, service) in itertools.product(
                VERSIONS, (("a.test", b"of-a"), ("b.test", b"b.test"))):
            with self.subTest(version, name=name), \
                    Client(self.ports[0], version, name=name) as client:
                self.assertIn(("DNS", name), client.tls.getpeercert()["subjectAltName"])
                answer, metadata = self.arrival(client, host=name)
                self.assertEqual(answer.body.split(b"\n")[0], service)
                self.assertEqual(metadata["tls"]["sni"], name)

    def test_request_beside_the_end_of_the_handshake(self):
        """In TLS 1.3, and where TLS 1.2 resumes a session, the client ends the handshake."""
        self.begin(("", ""))
        for version in VERSIONS:
            made = context(version)
            session = None
            for resumed in False, True:
                identity = new_identity()
                with self.subTest(version, resumed=resumed), Client(
                        self.ports[0], made=made, session=session, first=ask(identity)) as client:
                    self.assertEqual(client.tls.session_reused, resumed)
                    self.assertTrue(handed_over(client.read_answer()))
                    self.assertEqual(self.log_of(f"/r/{identity}")[0], "both")
                    session = client.tls.session
                    self.ask_again(client)

    def test_alpn(self):
        self.begin(("", ""))
        for version in VERSIONS:
            with self.subTest(version), \
                    Client(self.ports[0], made=context(version, alpn=["http/1.1"])) as client:
                self.assertEqual(client.tls.selected_alpn_protocol(), "http/1.1")
                self.assertEqual(self.arrival(client)[1]["tls"]["alpn"], "http/1.1")
                self.ask_again(client)


    def test_early_data(self):
        """What a client of TLS 1.3 sends before the handshake ends, under keys of its own, and what
        it sends afterwards."""
        self.begin(("", "ssl_early_data on; ssl_protocols TLSv1.3;"))
        for _ in range(3):
            early, late = new_identity(), new_identity()
            with open(f"{self.directory}/early", "wb") as file:
                file.write(ask(early))
            self.s_client(ask(new_identity(), close=True), "-sess_out", "session")
            answers = self.s_client(ask(late, close=True), "-sess_in", "session", "-early_data",
                                    "early")
            for identity in early, late:
                self.assertIn(f"X-Id: {identity}\r\n", answers.decode("latin-1"))
        self.assertEqual({key: n for key, n in self.answered().items() if n > 1}, {})

    def s_client(self, data, *options):
        """What the server says to OpenSSL's own client, until it ends."""
        return subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{self.ports[0]}", "-servername", "a.test",
             "-CAfile", f"{CERTIFICATES}/all.pem", "-verify_return_error", "-quiet",
             *options],
            input=data, cwd=self.directory, check=False, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=PATIENCE).stdout


class Wire(TlsCase):
    def test_capture_sees_what_is_not_encrypted(self):
        self.start()
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as client:
            client.sendall(ask(new_identity()))
            self.assertIn(b" 400 ", client.recv(65536))
        before, self.seen = self.seen, capture.seen()
        self.assertEqual(self.seen.found - before.found, 1)
        # And nothing of this, see tearDown().
        with self.client() as client:
            client.ask(ask(new_identity()))


class Options(TlsCase, plain.State):
    """The backend is this process, and compares the socket with a fresh one."""

    ULP = (socket.IPPROTO_TCP, 31)  # TCP_ULP

    def channels_are_made(self):
        self.python.dispatch()
        return self.python.get_statistics()["channels"] == 2 and \
            all(map(is_asleep, self.nginx.workers()))

    def test_options(self):
        text = TLS.replace("handoff.sock", "python.sock").replace(
            "location = /nginx", "location /file {{ root {directory}; }} location = /nginx")
        self.start_nginx(http="sendfile on; tcp_nopush on;" + text, main=INFO)
        wait_until(self.channels_are_made, "the channels are made")
        before = b"", *(b"GET %s HTTP/1.1\r\nHost: a.test\r\n\r\n" % path
                        for path in (b"/file", b"/nginx"))
        for version, first, pipelined in itertools.product(VERSIONS, before, (False, True)):
            if pipelined and not first:
                continue
            with self.subTest(version, first=first, pipelined=pipelined):
                client = self.client(version)
                client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
                request = ask(new_identity())
                if pipelined:
                    client.send(first + request)
                elif first:
                    client.ask(first)
                if not pipelined:
                    client.send(request)
                arrival = self.arrival()
                _, fresh = self.accepted()
                found = plain.difference(plain.state(arrival.connection), plain.state(fresh))
                self.assertEqual(found.pop(self.ULP) & 0xffffff, int.from_bytes(b"tls", "little"))
                self.assertEqual(found, {plain.NODELAY: 1})
                arrival.connection.close()
                fresh.close()


if __name__ == "__main__":
    unittest.main()
