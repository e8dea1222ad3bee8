"""What the tests of TLS in Python stand on: a client of Python's ssl, and the broker's end of its
connection, whose TLS OpenSSL has moved to the kernel.

Such a test is a program. It prints how many of its tests passed, as run_all.sh wants it.
"""

import contextlib
import os
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import unittest

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "examples", "python"))  # web_clients
sys.path.append(os.path.join(ROOT, "tools"))
import handoff  # noqa: E402
from waiting import PATIENCE, wait_until  # noqa: E402

OP_ENABLE_KTLS = 8  # ssl.OP_ENABLE_KTLS, which is newer than Debian 12's Python

# OpenSSL before 3.2 does not let the kernel receive TLS 1.3.
VERSIONS = [ssl.TLSVersion.TLSv1_2]
if ssl.OPENSSL_VERSION_INFO >= (3, 2):
    VERSIONS.append(ssl.TLSVersion.TLSv1_3)


def make_certificate(directory):
    """A key and a certificate that it signs itself, for localhost, in one file."""
    file = os.path.join(directory, "localhost.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", file,
         "-out", file + ".certificate"], check=True, stderr=subprocess.DEVNULL)
    with open(file + ".certificate", encoding="ascii") as source, \
            open(file, "a", encoding="ascii") as target:
        target.write(source.read())
    return file


class Test(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory(prefix="handoff-tls-")
        cls.addClassCleanup(directory.cleanup)
        cls.certificate = make_certificate(directory.name)

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="handoff-tls-")
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.path = os.path.join(self.directory, "handoff.sock")

    def trust(self, version):
        """The context of a client that trusts the certificate and speaks one version."""
        trusting = ssl.create_default_context(cafile=self.certificate)
        trusting.minimum_version = trusting.maximum_version = version
        # An end without close_notify, which Python takes for an orderly one, raises an SSLError.
        trusting.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        return trusting

    def connect(self, version):
        """A client, as an ssl.SSLSocket, and the broker's end of it, as serve() gives it."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            plain = socket.create_connection(listener.getsockname(), PATIENCE)
            accepted, _ = listener.accept()
        clients = []
        thread = threading.Thread(target=lambda: clients.append(self.trust(version).wrap_socket(
            plain, server_hostname="localhost", suppress_ragged_eofs=False)))
        thread.start()
        accepted = self.serve(accepted)
        thread.join()
        self.addCleanup(clients[0].close)
        return clients[0], accepted

    def serve(self, accepted):
        """Does the handshake. The kernel does the TLS of what it gives, and OpenSSL knows nothing of
        that any more."""
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.options |= OP_ENABLE_KTLS
        serving.load_cert_chain(self.certificate)
        wrapped = serving.wrap_socket(accepted, server_side=True)
        accepted = socket.socket(fileno=wrapped.detach())
        self.addCleanup(accepted.close)
        return accepted

    def hand_over(self, version, preread=b"", between=None, **what):
        """A client of the backend at self.path, whose connection has been handed over."""
        client, accepted = self.connect(version)
        self.offer(accepted, preread=preread, between=between, **what)
        return client

    def offer(self, accepted, between=None, **what):
        """Hands it over, and closes the broker's copy."""
        there = between or handoff.Broker(self.path, timeout_ms=PATIENCE * 1000)
        with contextlib.closing(there):
            def try_to():
                with contextlib.suppress(handoff.HandoffError):
                    return there.offer_and_wait(accepted, tls=True, **what)
                return None
            verdict = wait_until(try_to, "there is a verdict")
        self.assertTrue(verdict.adopted, handoff.reason_name(verdict.reason))
        accepted.close()


def read_all(client):
    """What comes until close_notify. Without it this raises an ssl.SSLError."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def main():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    program = unittest.main(exit=False)
    result = program.result
    failed, skipped = len(result.failures) + len(result.errors), len(result.skipped)
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    passed = result.testsRun - failed - skipped
    print(f"{name}: {passed} passed, {skipped} skipped, {failed} FAILED")
    sys.exit(failed > 0)
