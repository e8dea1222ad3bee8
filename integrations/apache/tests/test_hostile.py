"""Clients and applications that mean harm, or make mistakes."""

import os
import socket
import threading
import unittest

from apache import ApacheCase, for_each_mpm, wait_until
from client import Connection, digest, new_identity, request, run
from test_requests import APPLICATION

# All in one child, which has the brokers.
ONE_CHILD = {
    "event": "StartServers 1\nMaxRequestWorkers 25\n",
    "worker": "StartServers 1\nMaxRequestWorkers 25\n",
    "prefork": "StartServers 1\nMinSpareServers 1\nMaxSpareServers 1\nMaxRequestWorkers 1\n",
}

CGI = {"event": "cgid", "worker": "cgid", "prefork": "cgi"}

NAMES = """
HandoffAllow unix:{directory}/allowed/
<Location /names>
    HandoffTimeout 10ms
</Location>
<Location /pass>
    HandoffPass unix:{directory}/pass.sock
</Location>
"""

INTERIM = """
HandoffBackend events unix:{directory}/handoff.sock
HandoffHeader X-Handoff-To X-Handoff-Data
ProxyPass / http://127.0.0.1:{application}/ disablereuse=On
SetEnv proxy-interim-response RFC
"""

# Everything is handed over, but some of it is refused; and the errors have documents, to some of which
# one more redirect leads. For the script's no error has happened.
REFUSED = """
DocumentRoot {directory}/files
DirectoryIndex page
ErrorDocument 302 /page
ErrorDocument 400 /page
ErrorDocument 402 /script
ErrorDocument 403 /page
ErrorDocument 404 /again
ErrorDocument 410 /directory/
ErrorDocument 503 /application/a?to=events&data=secret
Redirect 302 /r/moved http://localhost/elsewhere
Redirect 402 /r/unpaid
Redirect 404 /r/missing
Redirect 410 /r/gone
Redirect 503 /r/closed
ScriptAlias /script {directory}/script
<Location /r/denied>
    Require all denied
</Location>
<Directory {directory}/files>
    Require all granted
    RewriteEngine On
    RewriteRule ^again$ /page
</Directory>
<LocationMatch "^/(?!application/)">
    HandoffPass unix:{directory}/handoff.sock
    ProxyPass !
</LocationMatch>
"""

# The scripts of /cgi/ may ask for a handoff, those of /plain/ may not, and the documents neither.
SCRIPTS = """
DocumentRoot {directory}/files
ErrorDocument 404 /fails
LuaMapHandler ^/fails$ {directory}/scripts/fails.lua
HandoffBackend events unix:{directory}/handoff.sock
ScriptAlias /cgi/ {directory}/scripts/
ScriptAlias /plain/ {directory}/scripts/
<Directory {directory}>
    Require all granted
</Directory>
<LocationMatch "^/(cgi/|fails$)">
    HandoffHeader X-Handoff-To X-Handoff-Data
</LocationMatch>
<Location /cgi/documented>
    ErrorDocument 412 /page
</Location>
<Location /missing>
    ErrorDocument 404 default
</Location>
"""

SCRIPT = """#!/bin/sh
printf 'Content-Type: text/plain\nX-Handoff-To: events\nX-Handoff-Data: secret\n{more}\nfallback'
"""

FAILS = """
function handle(r)
    r.err_headers_out['X-Handoff-Data'] = 'secret'
    return 500
end
"""


def serve(listener):
    """An application that sends the headers for a handoff too early, and then answers."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            status = data.split()[1].strip(b"/")
            connection.sendall(b"HTTP/1.1 %s Early\r\nX-Handoff-To: events\r\n"
                               b"X-Handoff-Data: secret\r\n\r\n" % status)
            if status == b"100":
                while not data.endswith(b"\r\n\r\nbody"):
                    data += connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlast")


class Hostile(ApacheCase):
    def make_directory(self, name):
        os.mkdir(f"{self.directory}/{name}")
        os.chmod(f"{self.directory}/{name}", 0o777)

    # ---- applications ----

    def test_interim_answers_show_no_client_the_headers(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        self.addCleanup(listener.shutdown, socket.SHUT_RDWR)
        threading.Thread(target=serve, args=[listener], daemon=True).start()
        self.start_apache(server=INTERIM.replace("{application}", str(listener.getsockname()[1])),
                          load=["env"])

        async def one(index):
            connection = await Connection.open(self.port)
            status = [b"102", b"103", b"100"][index]
            body = [b"", b"", b"Expect: 100-continue\r\nContent-Length: 4\r\n"][index]
            await connection.send(b"POST /%s HTTP/1.1\r\nHost: test\r\nConnection: close\r\n%s\r\n"
                                  % (status, body))
            head = b""
            if body:
                head = await connection.reader.readuntil(b"\r\n\r\n")
                self.assertIn(b" 100 ", head)
                await connection.send(b"body")
            answer = head + await connection.reader.read()
            connection.close()
            self.assertIn(b"HTTP/1.1 200 OK\r\n", answer)
            self.assertTrue(answer.endswith(b"last"))
            self.assertNotIn(b"handoff", answer.lower())
            self.assertNotIn(b"secret", answer)

        run(3, 1, one)

    def make_file(self, name, text, mode=0o644):
        os.makedirs(os.path.dirname(f"{self.directory}/{name}"), exist_ok=True)
        with open(f"{self.directory}/{name}", "w", encoding="ascii") as file:
            file.write(text)
        os.chmod(f"{self.directory}/{name}", mode)

    def start_scripts(self):
        """Each asks for a handoff, and says something more."""
        self.make_file("files/page", "page")
        for name, more in [("app", ""), ("documented", ""), ("to-page", "Location: /page\\n"),
                           ("to-missing", "Location: /missing\\n")]:
            self.make_file(f"scripts/{name}", SCRIPT.format(more=more), 0o755)
        self.make_file("scripts/fails.lua", FAILS)
        self.start(server=SCRIPTS, load=[CGI[self.mpm], "lua"])

    def test_errors_show_no_client_the_headers(self):
        """Apache keeps what a script has sent when it answers with an error, or with another request."""
        self.may_fall_back()
        self.expected.append("AH02811|AH00128")
        self.start_scripts()

        async def one(index):
            path, more, status, body = [
                ("/cgi/app", 'If-Match: "x"\r\n', 412, b"Precondition Failed"),
                ("/cgi/documented", 'If-Match: "x"\r\n', 412, b"page"),
                ("/cgi/to-page", "", 200, b"page"),
                ("/cgi/to-missing", "", 404, b"Not Found"),
                ("/nothing", "", 404, b"Not Found")][index]
            connection = await Connection.open(self.port)
            await connection.send(f"GET {path} HTTP/1.1\r\nHost: test\r\n{more}"
                                  "Connection: close\r\n\r\n".encode("ascii"))
            answer = await connection.reader.read()
            connection.close()
            with self.subTest(path):
                self.assertIn(f"HTTP/1.1 {status} ".encode("ascii"), answer)
                self.assertIn(body, answer)
                self.assertNotIn(b"handoff", answer.lower())
                self.assertNotIn(b"secret", answer)

        run(5, 1, one)
        self.assertEqual(self.backend.statistics()["arrived"], 0)

    def test_script_that_may_not_ask_keeps_its_headers(self):
        self.start_scripts()
        for more, status in ([], 200), (['If-Match: "x"'], 412):
            answer = self.ask(request("app", what="plain", headers=more))
            self.assertEqual((answer.status, answer.headers["x-handoff-to"]), (status, "events"))

    def ask_for(self, name, what="names"):
        return self.ask(request("a", what=what, argument=f"?to={self.directory}/allowed/{name}",
                                close=True)).headers["x-served-by"]

    def test_names_of_many_sockets_cost_no_other_backend(self):
        """Whether they exist or not, and a backend among them is found again."""
        self.may_fall_back()
        self.make_directory("allowed")
        self.start_backend(sockets=("pass.sock", "allowed/real.sock"), name="first")
        self.start(server=APPLICATION, more=ONE_CHILD[self.mpm] + NAMES)
        self.backends.append(self.start_backend(name="real", sockets=("allowed/own.sock", "x.sock")))
        self.assertEqual(self.ask_for("own.sock", what="r"), "handoff")
        for i in range(300):
            self.assertEqual(self.ask_for(f"gone{i}.sock"), "unix")
        self.assertEqual({reason.rpartition(": ")[2] for reason in self.reasons()},
                         {"No such file or directory"})
        for i in range(300):
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(f"{self.directory}/allowed/dead{i}.sock")
            self.assertEqual(self.ask_for(f"dead{i}.sock"), "unix")
        self.assertFalse([reason for reason in self.reasons() if "as many" in reason])
        self.assertEqual(self.ask_for("own.sock", what="r"), "handoff")
        for path, to in ("pass", ""), ("r", "?to=events"):
            answer = self.ask(request("a", what=path, argument=to, close=True))
            self.assertEqual(answer.headers["x-served-by"], "handoff")

    def test_links_lead_out_of_no_directory(self):
        """Neither at once, nor in place of a socket that was there."""
        self.may_fall_back()
        self.make_directory("allowed")
        self.start(server=APPLICATION.replace("unix:{directory}/\n", "unix:{directory}/allowed/\n"))
        self.start_backend(name="real", sockets=("allowed/own.sock", "x.sock"))
        os.symlink(f"{self.directory}/handoff.sock", f"{self.directory}/allowed/link.sock")
        os.mkdir(f"{self.directory}/allowed/directory.sock")
        for name in "link.sock", "directory.sock":
            self.assertEqual(self.ask_for(name, what="r"), "unix")
        self.assertEqual(self.ask_for("own.sock", what="r"), "handoff")
        os.remove(f"{self.directory}/allowed/own.sock")
        os.symlink(f"{self.directory}/handoff.sock", f"{self.directory}/allowed/own.sock")
        self.assertEqual(self.ask_for("own.sock", what="r"), "unix")
        self.assertEqual([reason.rpartition(": ")[2] for reason in self.reasons()],
                         ["it is no socket"] * 3)
        self.assertEqual(self.backend.statistics()["arrived"], 0)

    # ---- clients ----

    def test_request_whose_end_is_in_doubt_stays_with_apache(self):
        self.may_fall_back()
        self.start()
        both = "its head has both Content-Length and Transfer-Encoding"
        folded = "its head has a folded line"
        for headers, body, reason in [
                ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n", both),
                ("transfer-encoding:chunked\r\nX: 1\r\nCONTENT-LENGTH:4\r\n", b"0\r\n\r\n", both),
                ("X: 1\r\n  2\r\n", b"", folded),
                ("X: 1\r\nTransfer-Encoding:\r\n\tchunked\r\n", b"0\r\n\r\n", folded)]:
            with self.subTest(headers):
                count = len(self.reasons())
                answer = self.ask(f"POST /r/a HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode("ascii")
                                  + body)
                self.assertNotEqual(answer.headers.get("x-served-by"), "handoff")
                self.assertEqual(self.reasons()[count:], [reason])
        self.assertEqual(self.backend.statistics()["arrived"], 0)

    def test_document_of_an_error_hands_over_nothing(self):
        """The backend would get the request that was refused."""
        self.may_fall_back()
        self.expected.append("AH01630")
        for name in "page", "again", "directory/page":
            self.make_file(f"files/{name}", "page")
        self.make_file("script", "#!/bin/sh\nprintf 'Status: 200\\nLocation: /page\\n\\n'\n", 0o755)
        self.start(server=REFUSED + APPLICATION, load=["dir", CGI[self.mpm]])
        for head, status in [
                ("GET /r/denied HTTP/1.1\r\nHost: test", 403), ("GET /r/a HTTP/1.1", 400),
                ("GET /r/a HTTP/1.1\r\nHost: a b", 400),
                ("GET /r/moved HTTP/1.1\r\nHost: test", 302),
                ("GET /r/missing HTTP/1.1\r\nHost: test", 404),
                ("POST /r/gone HTTP/1.1\r\nHost: test\r\nContent-Length: 0", 410),
                ("GET /r/closed HTTP/1.1\r\nHost: test", 200),
                ("GET /r/unpaid HTTP/1.1\r\nHost: test", 200)]:
            with self.subTest(head):
                count = len(self.reasons())
                answer = self.ask(f"{head}\r\n\r\n".encode("ascii"))
                self.assertNotEqual(answer.headers.get("x-served-by"), "handoff")
                self.assertEqual(answer.status, status)
                self.assertNotIn("x-accel-redirect", answer.headers)
                self.assertNotIn("x-handoff-data", answer.headers)
                self.assertEqual(set(self.reasons()[count:]),
                                 {"Apache answers it with the document of an error"})
        self.assertEqual(self.backend.statistics()["arrived"], 0)
        self.assertEqual(self.ask(request("open")).headers["x-served-by"], "handoff")

    def test_fallback_that_ends_in_an_error_is_offered_once(self):
        """The log says why it was not handed over in the first place."""
        self.may_fall_back()
        self.make_file("files/page", "page")
        self.start("-r", 1, server="DocumentRoot {directory}/files\nErrorDocument 404 /page\n"
                                   "<Directory {directory}/files>\nRequire all granted\n</Directory>\n"
                                   "HandoffPass unix:{directory}/handoff.sock\n")
        answer = self.ask(b"GET /missing HTTP/1.1\r\nHost: test\r\n\r\n")
        self.assertEqual((answer.status, answer.body), (404, b"page"))
        self.assertEqual(self.backend.statistics()["arrived"], 1)
        wait_until(lambda: self.apache.lines("access"), "it is logged")
        self.assertIn("handoff=fallback reason=offer to ", self.apache.lines("access")[0])

    def test_only_the_head_can_put_it_in_doubt(self):
        """Of what the application has read, the body may have any line; and names may resemble."""
        self.start(server=APPLICATION)
        body = b"Transfer-Encoding: chunked\r\n folded\r\nContent-Length: 1\r\n"
        answer = self.ask(request(new_identity(), method="POST", argument="?to=events", body=body,
                                  headers=["Transfer-Encodings: a", "X-Content-Length: 4"]))
        self.assertEqual(answer.headers["x-served-by"], "handoff")
        self.assertEqual(answer.headers["x-body"], digest(body))


for_each_mpm(globals(), Hostile)

if __name__ == "__main__":
    unittest.main()
