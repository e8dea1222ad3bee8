"""What was found by attack: each of these lost a client's bytes, or stopped others."""

import time
import unittest

from harness import NO_LIMIT
from tls import TLS, VERSIONS, TlsCase, ask, new_identity

KTLS = "    ssl_conf_command Options KTLS;\n"
# nginx reads on after it has closed.
LINGER = "lingering_close always; lingering_timeout 50s; lingering_time 60s;"


class Found(TlsCase):
    def check_two_requests(self, way):
        for version in VERSIONS:
            with self.subTest(version=version), self.client(version) as client:
                for _ in range(2):
                    answer = client.ask(ask(new_identity()))
                    self.assertEqual(answer.headers["x-served-by"], way)

    def begin_with_another_default_server(self, *options):
        """Only the server that the client names lets the kernel do its TLS."""
        self.expect_fallbacks()
        text = TLS.replace(KTLS, "").replace("server_name a.test;", "server_name a.test;" + KTLS)
        assert text.count(KTLS) == 1
        default = "server {{ listen 127.0.0.1:{port} ssl default_server; ssl_reject_handshake on; }}"
        self.start(*options, http=default + text, server=NO_LIMIT)

    def test_named_server_has_other_settings_than_the_default_one(self):
        self.begin_with_another_default_server()
        self.check_two_requests("handoff")
        self.assertEqual(self.since_start("TlsDecryptError"), 0)

    def test_named_server_has_other_settings_and_the_backend_refuses(self):
        self.begin_with_another_default_server("-r", 1)
        self.check_two_requests("unix")
        self.assertEqual(self.since_start("TlsDecryptError"), 0)

    def test_two_requests_and_the_end_in_one(self):
        """The first fills nginx's buffer, so that OpenSSL has the second one and the end."""
        self.expect_fallbacks()
        self.start("-r", 1, server=NO_LIMIT)
        for version in VERSIONS:
            with self.subTest(version=version), self.client(version) as client:
                identities = new_identity(), new_identity()
                first, second = map(ask, identities)
                first = first[:-2] + b"X-Pad: "
                first += b"p" * (1024 - len(first) - 4) + b"\r\n\r\n"
                client.push(client.seal(first + second) + client.close_notify())
                for identity in identities:
                    answer = client.read_answer()
                    self.assertEqual((answer.headers["x-id"], answer.headers["x-served-by"]),
                                     (identity, "unix"))

    def test_backend_cannot_make_a_lingering_worker_wait(self):
        """It has a copy of a connection that it was too late for, and makes it blocking."""
        self.expect_fallbacks()
        text = TLS.replace("{server}", "{server} " + LINGER, 1)
        self.start("-n", "-x", "k", http=text, server="handoff_timeout 100ms;" + NO_LIMIT)
        for version in VERSIONS:
            with self.subTest(version=version):
                clients = [self.client(version) for _ in range(6)]
                for client in clients:
                    answer = client.ask(ask(new_identity(), close=True))
                    self.assertEqual(answer.headers["x-served-by"], "unix")
                self.backend.get("/change/b")
                for client in clients:
                    client.push(client.seal(b"x" * 4096) + client.seal(b"y" * 9000)[:5000])
                time.sleep(0.5)  # for a worker to be caught, which is when there is nothing to see
                for _ in range(6):
                    with self.client(version) as other:
                        data = b"GET /nginx?id=1 HTTP/1.1\r\nHost: a.test\r\n\r\n"
                        self.assertEqual(other.ask(data).status, 200)
                for client in clients:
                    client.close()
                self.backend.get("/forget")


if __name__ == "__main__":
    unittest.main()
