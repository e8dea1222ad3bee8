"""What a backend gets, what is not handed over, and that Apache keeps nothing of what is."""

import asyncio
import contextlib
import os
import re
import subprocess
import unittest

from apache import APACHE, ApacheCase, for_each_mpm, free_port, wait_until
from client import Connection, chunked, digest, drive, gather, new_identity, request, run
from test_requests import APPLICATION

# The largest offer that the backend takes by default.
OFFER = 65536

TLS = """
Listen 127.0.0.1:{tls_port}
<VirtualHost 127.0.0.1:{tls_port}>
    SSLEngine on
    SSLCertificateFile {directory}/cert.pem
    SSLCertificateKeyFile {directory}/key.pem
    ProxyPass / unix:{directory}/fallback.sock|http://localhost/ disablereuse=On
    <Location />
        HandoffPass unix:{directory}/handoff.sock
    </Location>
</VirtualHost>
"""

# A file that is sent with sendfile(2), under TCP_CORK; and handoffs.
FILES = """
EnableSendfile On
Alias /file {directory}/file
<Directory {directory}>
    Require all granted
</Directory>
<Location /r>
    HandoffPass unix:{directory}/handoff.sock
</Location>
"""


class Limits(ApacheCase):
    def test_backend_gets_the_head_as_the_client_sent_it(self):
        self.start(more="HttpProtocolOptions Unsafe\n")
        for data in [b"GET /head/a HTTP/1.1\nhost:test\n\n",
                     b"GET /head/b?x=%41 HTTP/1.1\r\nHOST:\ttest \r\nX-Empty:\r\n\r\n",
                     b"GET /head/c HTTP/1.0\r\nHost: test\r\nA: 1\r\nA: 2\r\n\r\n",
                     b"GET /head/d HTTP/1.1\r\nHost: test\r\nX: \xff\xfe\x80\r\n\r\n"]:
            with self.subTest(data):
                self.assertEqual(self.ask(data).body, data)
        self.assertEqual(self.ask(b"\r\n\n" + data).body, data)

    def test_bodies_around_the_limits_arrive_whole(self):
        """What Apache has not read stays in the socket, so bodies of any size are handed over."""
        self.may_fall_back()
        self.start()
        data = request("a", method="POST", body=b"")
        for size in [1, 7999 - len(data), 8000 - len(data), 8001 - len(data), 8192, 16384, OFFER,
                     131072, 1000000]:
            with self.subTest(size):
                body = os.urandom(size)
                answer = self.ask(request(new_identity(), method="POST", body=body))
                self.assertEqual(answer.headers["x-served-by"], "handoff")
                self.assertEqual(answer.headers["x-body"], digest(body))
        self.assertEqual(self.reasons(), [])

    def test_body_that_was_read_counts(self):
        """The application has read it, so that it goes with the offer; and is too large at some size."""
        self.may_fall_back()
        self.start(server=APPLICATION)
        for size in [OFFER - 2000, OFFER - 200, OFFER - 50, OFFER, OFFER + 1, 131072 - 200, 131072,
                     131073, 200000, 1000000]:
            for piece in 0, 5000:
                with self.subTest(size, piece=piece):
                    body, identity = os.urandom(size), new_identity()
                    data = request(identity, method="POST", argument="?to=events", body=body)
                    if piece:
                        data = request(identity, method="POST", argument="?to=events",
                                       headers=["Transfer-Encoding: chunked"]) + chunked(body, piece)
                    answer = self.ask(data)
                    way = "handoff" if len(data) <= OFFER else "unix"
                    self.assertEqual((answer.status, answer.headers["x-served-by"]), (200, way))
                    self.assertEqual(answer.headers["x-body"], digest(body))
        self.assertTrue(any("what was read of it is too large" in reason
                            for reason in self.reasons()))
        self.assertTrue(any("at most 65536 are allowed" in reason for reason in self.reasons()))

    def test_large_head(self):
        self.may_fall_back()
        self.start()
        for count, way in (7, "handoff"), (9, "unix"):  # of 8 KiB each
            headers = [f"X-{i}: " + "x" * 8000 for i in range(count)]
            answer = self.ask(request(new_identity(), headers=headers))
            self.assertEqual((answer.status, answer.headers["x-served-by"]), (200, way))

    def test_pipeline_longer_than_a_buffer(self):
        """Everything behind the first request goes along, or stays in the socket."""
        self.start()
        identities = [new_identity() for _ in range(500)]

        async def one(_):
            connection = await Connection.open(self.port)
            await connection.send(b"".join(map(request, identities)))
            answers = [await connection.read_answer() for _ in identities]
            connection.close()
            return [answer.headers["x-id"] for answer in answers]

        self.assertEqual(run(1, 1, one), [identities])

    def test_header_that_names_nothing(self):
        """The client gets the application's answer, without the header."""
        self.may_fall_back()
        self.start(server=APPLICATION)
        long = f"{self.directory}/" + "x" * 200
        names = ["nobody", "EVENTS2", "/handoff.sock", "handoff.sock", self.directory,
                 f"{self.directory}/", f"{self.directory}/../handoff.sock", f"{self.directory}/.",
                 f"{self.directory}/..", f"{self.directory}/.hidden", f"{self.directory}//handoff.sock",
                 f"{self.directory}/missing.sock", f"unix:{long}", "@abstract", "unix:@abstract",
                 "unix:", "%s%n", "x" * 500, "%FF%00", "http://127.0.0.1/"]
        for name in names:
            with self.subTest(name):
                answer = self.ask(request("a", argument=f"?to={name}&data=d"))
                self.assertEqual((answer.status, answer.headers["x-served-by"]), (200, "unix"))
                self.assertNotIn("x-accel-redirect", answer.headers)
                self.assertNotIn("x-handoff-data", answer.headers)
        self.assertEqual(len(self.reasons()), len(names))
        self.assertEqual(self.backend.statistics()["arrived"], 0)

    def test_header_of_a_client_means_nothing(self):
        self.start(server=APPLICATION)
        answer = self.ask(request(new_identity(), headers=["X-Accel-Redirect: events"]))
        self.assertEqual(answer.headers["x-served-by"], "unix")
        self.assertEqual(self.backend.statistics()["arrived"], 0)

    def certificate(self):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                        "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost", "-keyout",
                        "key.pem", "-out", "cert.pem"], cwd=self.directory, check=True,
                       stderr=subprocess.DEVNULL)
        os.chmod(f"{self.directory}/key.pem", 0o644)

    def curl(self, *arguments):
        return subprocess.run(["curl", "--silent", "--show-error", "--include", *arguments],
                              capture_output=True, text=True, check=True).stdout

    def test_tls_is_not_handed_over(self):
        self.may_fall_back()
        self.expected.append(r"\[ssl:warn\]")  # the certificate is its own
        self.certificate()
        tls_port = free_port()
        self.start(more=TLS.replace("{tls_port}", str(tls_port)), load=["socache_shmcb", "ssl"])
        answer = self.curl("--insecure", f"https://127.0.0.1:{tls_port}/r/a")
        self.assertIn("X-Served-By: unix", answer)
        self.assertEqual(self.reasons(), ["Apache does its TLS"])

    def test_http_2_is_not_handed_over(self):
        if self.mpm == "prefork":
            return  # mod_http2 does not serve with it
        self.may_fall_back()
        self.start(more="Protocols h2c http/1.1\n", load=["http2"])
        answer = self.curl("--http2-prior-knowledge", f"http://127.0.0.1:{self.port}/r/a")
        self.assertIn("HTTP/2 200", answer)
        self.assertIn("x-served-by: unix", answer)
        self.assertEqual(self.reasons(), ["it came by HTTP/2"])
        answer = self.curl(f"http://127.0.0.1:{self.port}/r/b")
        self.assertIn("X-Served-By: handoff", answer)

    def test_request_without_a_head_is_not_handed_over(self):
        self.may_fall_back()
        self.start(more="HttpProtocolOptions Unsafe Allow0.9\n")

        async def one(_):
            connection = await Connection.open(self.port)
            await connection.send(b"GET /r/a\r\n\r\n")
            data = await connection.reader.read()
            connection.close()
            return data

        self.assertIn(b"served", run(1, 1, one)[0])
        self.assertEqual(self.reasons(), ["it has no head"])

    def test_subrequest_is_not_handed_over(self):
        self.may_fall_back()
        with open(f"{self.directory}/file.shtml", "w", encoding="ascii") as file:
            file.write('before <!--#include virtual="/r/a" -->')
        self.start(server=FILES + "TypesConfig /dev/null\n"
                   "Alias /file.shtml {directory}/file.shtml\nAddOutputFilter INCLUDES .shtml\n"
                   "<Directory {directory}>\n"
                   "Options +Includes\n</Directory>\n"
                   "ProxyPass /r unix:{directory}/fallback.sock|http://localhost/r disablereuse=On\n",
                   load=["include", "mime"])
        answer = self.ask(b"GET /file.shtml HTTP/1.1\r\nHost: test\r\n\r\n")
        self.assertEqual(answer.body, b"before served\n")
        self.assertEqual(self.reasons(), ["it is a subrequest"])

    def test_internal_redirects_hand_over_what_the_client_has_sent(self):
        """By mod_dir, which replaces a request by another, and by mod_rewrite, which adds one."""
        os.makedirs(f"{self.directory}/files/r")
        self.start(server="DocumentRoot {directory}/files\nDirectoryIndex index.html\n"
                          "<Directory {directory}>\nRequire all granted\nRewriteEngine On\n"
                          "RewriteRule ^files/old$ /r/new\n</Directory>\n"
                          "<LocationMatch ^/r/(index|new)>\n"
                          "HandoffPass unix:{directory}/handoff.sock\n</LocationMatch>\n",
                   load=["dir"])
        with open(f"{self.directory}/files/r/index.html", "w", encoding="ascii") as file:
            file.write("Apache's")
        for path in "/r/", "/old":
            data = f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode("ascii")
            self.assertEqual(self.ask(data).headers.get("x-served-by"), "handoff")
        wait_until(lambda: len(self.apache.lines("access")) == 2, "both are logged")
        for line in self.apache.lines("access"):
            self.assertIn(" 299 0 handoff=adopted ", line)

    # ---- what is left in Apache ----

    def test_children_let_go_of_what_was_adopted(self):
        """No child has a descriptor of the connection, nor an entry for it in an epoll."""
        self.start()

        async def one(index):
            connection = await Connection.open(self.port)
            for _ in range(index % 3):  # it waits in event's poll set between these
                await connection.ask(b"GET /own HTTP/1.1\r\nHost: test\r\n\r\n")
                await asyncio.sleep(0.05)
            answer = await connection.ask(request(new_identity()))
            self.assertEqual(answer.headers["x-served-by"], "handoff")

        def sockets(pid, watched=True):
            """The inodes of those that a process has, and that its epolls watch."""
            found = set()
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    found.update(re.findall(r"^socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}")))
                    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as file:
                        inodes = re.findall(r"^tfd:.* ino:([0-9a-f]+)", file.read(), re.M)
                    found.update(str(int(inode, 16)) for inode in inodes if watched)
            return found

        async def all_of_it():
            await gather(60, 20, one)  # they stay open
            adopted = sockets(self.backend.process.pid, watched=False)
            self.assertGreaterEqual(len(adopted), 60)
            await asyncio.to_thread(wait_until, lambda: not any(
                adopted & sockets(child) for child in self.apache.workers()), "nothing is kept")

        drive(all_of_it())

    def test_socket_is_as_apache_has_accepted_it(self):
        """The flags and options of copies that the backend keeps."""
        self.may_fall_back()
        self.start("-x", "k", server=FILES)
        with open(f"{self.directory}/file", "wb") as file:
            file.write(bytes(100000))

        async def one(_):
            connection = await Connection.open(self.port)
            answer = await connection.ask(b"GET /file HTTP/1.1\r\nHost: test\r\n\r\n")
            self.assertEqual(len(answer.body), 100000)
            await connection.send(b"GET /file HTTP/1.1\r\nHost: test\r\n\r\n" + request("a"))
            await connection.read_answer()
            answer = await connection.read_answer()
            self.assertEqual(answer.headers["x-served-by"], "handoff")
            connection.close()

        run(1, 1, one)
        self.assertEqual(self.backend.get("/copies"),
                         b"nonblock=1 async=0 linger=0 lowat=1 cork=0 nodelay=1\n")
        self.backend.get("/forget")

    def test_copies_of_a_backend_that_refuses_are_restored(self):
        self.may_fall_back()
        self.start("-r", 1, "-x", "kbalwcd")
        answer = self.ask(request(new_identity()))
        self.assertEqual((answer.status, answer.headers["x-served-by"]), (200, "unix"))
        self.assertEqual(self.backend.get("/copies"),
                         b"nonblock=1 async=0 linger=0 lowat=1 cork=0 nodelay=1\n")
        self.backend.get("/forget")

    # ---- the configuration ----

    def test_mistakes_in_the_configuration(self):
        self.port = free_port()
        for line, message in [
                ("HandoffPass /run/x.sock", 'does not begin with "unix:"'),
                ("HandoffPass unix:x.sock", "is no absolute path"),
                ("HandoffPass unix:/" + "x" * 200, "107"),
                ("HandoffPass unix:/run/x.sock|http://localhost/", "as ProxyPass has it"),
                ("HandoffTimeout 0", "is no time of at least a millisecond"),
                ("HandoffTimeout soon", "is no time"),
                ("HandoffTimeout -1", "is no time"),
                ("HandoffTimeout 1x", "is no time"),
                ("HandoffTimeout 99999999999999h", "is too long, a time is less than 136 years"),
                ("HandoffTimeout 99999999999999999999", "is too long, a time is less than 136 years"),
                ("HandoffTimeout 9999999999999999", "is too long, a time is less than 136 years"),
                ("HandoffAttemptTimeout 4294967295s", "is too long, a time is less than 136 years"),
                ("HandoffMaxInFlight 0", "is no number from 1 to 4096"),
                ("HandoffMaxFails x", "is no number from 0 to 4096"),
                ("HandoffLogStatus 99", "is no number from 100 to 599"),
                ("<VirtualHost *:1>\nHandoffMaxFails 1\n</VirtualHost>", "cannot occur within"),
                ("HandoffAllow unix:/run", "ends in a slash"),
                ("HandoffBackend a:b unix:/run/x", "has no colon"),
                ("HandoffBackend a unix:/run/x\nHandoffBackend a unix:/run/y",
                 '"a" has a socket already'),
                ("HandoffMetadata default x", 'is not "name=expression"'),
                ("HandoffMetadata default client=x", 'is a member of "default"'),
                ("HandoffMetadata default a=1 b=2 a=3", 'there is another "a" before "a=3"'),
                ("HandoffMetadata a b", "takes one expression"),
                ("HandoffMetadata %{nothing", "HandoffMetadata: "),
                ("HandoffMetadata default x=%{nothing", "HandoffMetadata: ")]:
            with self.subTest(line):
                self.configure(line)
                result = subprocess.run([APACHE, "-t", "-f", f"{self.directory}/apache.conf"],
                                        capture_output=True, text=True, check=False)
                self.assertNotEqual(result.returncode, 0)
                self.assertIn(message, result.stderr)

    def test_word_that_is_no_metadata_is_warned_of(self):
        self.port = free_port()
        for line, warned in [("HandoffMetadata defualt", True), ("HandoffMetadata %{REMOTE_ADDR}", False),
                             ("HandoffMetadata default", False), ('HandoffMetadata "two words"', False),
                             ("HandoffMetadata default user=%{REMOTE_USER}", False),
                             ("HandoffService app", False)]:
            with self.subTest(line):
                self.configure(line)
                result = subprocess.run([APACHE, "-t", "-f", f"{self.directory}/apache.conf"],
                                        capture_output=True, text=True, check=False)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertEqual("HandoffMetadata: backends get the word " in result.stderr, warned,
                                 result.stderr)

    def test_off_in_a_location(self):
        self.start(server="HandoffPass unix:{directory}/handoff.sock\n"
                          "<Location /not>\nHandoffPass off\n</Location>\n"
                          "<Location /logged>\nHandoffLogStatus 204\n</Location>\n"
                          "ProxyPass / unix:{directory}/fallback.sock|http://localhost/ "
                          "disablereuse=On\n")
        for what, way in ("r", "handoff"), ("not", "unix"), ("logged", "handoff"):
            answer = self.ask(request(new_identity(), what=what))
            self.assertEqual(answer.headers["x-served-by"], way)
        wait_until(lambda: len(self.apache.lines("access")) == 3, "all are logged")
        self.assertEqual(sorted(line.split()[1] for line in self.apache.lines("access")),
                         ["200", "204", "299"])


for_each_mpm(globals(), Limits)

if __name__ == "__main__":
    unittest.main()
