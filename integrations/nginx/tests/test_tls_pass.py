"""TLS that nginx terminates for a stream, which was not handed over and goes by `pass` to a listener of
http, and that hands it over. nginx has `pass` from 1.25.5 on."""

import unittest

from client import digest
from harness import NO_LIMIT
from tls import TLS_STREAM, VERSIONS, TlsCase, ask, context, handed_over, new_identity

# So that each worker has some.
CLIENTS = 10

STREAM = TLS_STREAM.replace("echo.sock", "refuses_echo.sock").replace(
    "proxy_pass 127.0.0.1:{fallback}", "pass 127.0.0.1:{plain}")

HTTP = """
    server {{
        listen 127.0.0.1:{plain};
        location / {{ handoff_pass unix:{directory}/handoff.sock; }}
    }}
"""


class Pass(TlsCase):
    def test_what_the_stream_has_taken_out_of_openssl_reaches_the_backend(self):
        """It comes with the handshake, so that OpenSSL before 3.2 has it at the first offer, and is more
        than http reads before the second."""
        self.expect_fallbacks()
        self.start_backend("-r", 1, name="refuses", sockets=("refuses.sock", "refuses_echo.sock"))
        self.start(http=HTTP, stream=STREAM, server=NO_LIMIT)
        body = b"x" * 9000

        for version in VERSIONS:
            made, session = context(version), None
            # In TLS 1.2 the client ends the handshake only where it resumes a session.
            for _ in range(CLIENTS):
                data = ask(new_identity(), method="POST", body=body)
                with self.subTest(version, session=session is not None), \
                        self.client(port=self.stream_port, made=made, session=session,
                                    first=data) as client:
                    answer = client.read_answer()
                    self.assertTrue(handed_over(answer))
                    self.assertEqual(answer.headers["x-body"], digest(body))
                    self.assertTrue(handed_over(client.ask(ask(new_identity()))))
                    session = client.tls.session


if __name__ == "__main__":
    unittest.main()
