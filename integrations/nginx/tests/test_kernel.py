"""A kernel whose module for TLS is not loaded: nginx says so when it starts, and for each client.
The file by which that is known is another one here, in a namespace of nginx's own."""

import os
import re
import socket
import ssl
import unittest
from unittest import mock

from harness import PATIENCE, UNDER, Case, Nginx, make_certificate, wait_until

ULP = "/proc/sys/net/ipv4/tcp_available_ulp"
WARNING = r"\[warn\] .*the kernel's module \"tls\" is not loaded: .*no client of {} with TLS"

TLS = """
    listen 127.0.0.1:{port} ssl; ssl_certificate certificate.pem; ssl_certificate_key key.pem;
    ssl_protocols TLSv1.2; ssl_ciphers ECDHE-ECDSA-AES128-SHA256;
"""
KTLS = "ssl_conf_command Options KTLS;"
# The kernel does no such cipher suite.
HTTP = ("server {{" + TLS +
        "{server} location / {{ handoff_pass unix:{directory}/handoff.sock; }} }}")
STREAM = "server {{" + TLS + "{server} handoff_pass unix:{directory}/echo.sock; }}"


@unittest.skipUnless(os.getuid() == 0, "root has a namespace of its own")
class Kernel(Case):
    def setUp(self):
        super().setUp()
        make_certificate(self.directory)

    def have(self, names):
        """From now on nginx's kernel has these."""
        with open(f"{self.directory}/ulp", "w", encoding="ascii") as file:
            file.write(f"{names}\n")
        script = f"mount --bind {self.directory}/ulp {ULP} && exec \"$@\""
        patch = mock.patch.object(
            Nginx, "under", ["unshare", "-m", "sh", "-c", script, "-", *UNDER])
        patch.start()
        self.addCleanup(patch.stop)

    def warnings(self, http="", stream="", server=KTLS):
        """What nginx -t says of the kernel."""
        fill = {"server": server, "directory": self.directory}
        good, output = Nginx.test(self.directory, http=http.format(port=1, **fill),
                                  stream=stream.format(port=2, **fill))
        self.assertTrue(good, output)
        return re.findall(r".*tls.* is not loaded.*", output)

    def test_module_is_not_loaded(self):
        for names in "mptcp", "", "espintcp tlsx smc":
            self.have(names)
            [warning] = self.warnings(http=HTTP + HTTP.replace("{port}", "3"))
            self.assertRegex(warning, WARNING.format("http"))
            [warning] = self.warnings(stream=STREAM)
            self.assertRegex(warning, WARNING.format("stream"))

    def test_nothing_is_said_where_nobody_needs_it(self):
        self.have("mptcp")
        self.assertEqual(self.warnings(http=HTTP, stream=STREAM, server=""), [])
        other = "server {{" + TLS + KTLS + "return 204; }}"
        plain = "server {{ listen 127.0.0.1:3; location / {{ handoff_pass unix:/a; }} }}"
        self.assertEqual(self.warnings(http=other + plain), [])
        self.assertEqual(self.warnings(http=plain), [])

    def test_module_is_loaded(self):
        for names in "tls", "espintcp mptcp tls", "tls mptcp":
            self.have(names)
            self.assertEqual(self.warnings(http=HTTP, stream=STREAM), [])

    def reasons(self):
        """Why these two, of http and of stream, were not handed over."""
        self.start_nginx(http=HTTP, stream=STREAM, server=KTLS, main="error_log info info;")
        context = ssl.create_default_context(cafile=f"{self.directory}/certificate.pem")
        for port, request in (self.port, b"GET / HTTP/1.0\r\n\r\n"), (self.stream_port, b""):
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain, \
                    context.wrap_socket(plain, server_hostname="localhost") as client:
                client.sendall(request)
                client.recv(100)

        def found():
            with open(f"{self.directory}/info", encoding="utf-8") as file:
                return re.findall("not handed over: (.*?)(?: while.*)?, client: ", file.read())

        return wait_until(lambda: len(found()) == 2 and found(), "both are told")

    def test_reason_for_a_client_is_the_module(self):
        self.expected += [WARNING.format("http"), WARNING.format("stream")]
        self.have("mptcp")
        self.assertEqual(self.reasons(), ['the kernel\'s module "tls" is not loaded'] * 2)

    def test_reason_for_a_client_is_the_cipher(self):
        self.have("mptcp tls")
        for reason in self.reasons():
            self.assertRegex(reason, "^the kernel does not encrypt for it: TLSv1.2, "
                                     "ECDHE-ECDSA-AES128-SHA256, OpenSSL")


if __name__ == "__main__":
    unittest.main()
