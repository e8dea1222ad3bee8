"""The metadata: JSON by the schema of docs/protocol.md, whatever a client sends."""

import json
import unittest

import test_metadata as of_nginx
from apache import ApacheCase, for_each_mpm
from client import Connection, new_identity, request, run
from test_requests import APPLICATION

SERVER = """
{more}
<Location /arrival>
    HandoffPass unix:{{directory}}/handoff.sock
</Location>
ProxyPass / unix:{{directory}}/fallback.sock|http://localhost/ disablereuse=On
"""


class Members(ApacheCase):
    def begin(self, more="HandoffMetadata default"):
        self.start(server=SERVER.format(more=more.replace("{", "{{").replace("}", "}}")))

    def arrival(self, path="/arrival/a", headers=(), before=b""):
        """Service, correlation and metadata as the backend got them, and the client's port."""
        async def one(_):
            connection = await Connection.open(self.port)
            head = "".join(header + "\r\n" for header in headers)
            answer = await connection.ask(
                before + f"GET {path} HTTP/1.1\r\nHost: test\r\n{head}\r\n".encode("latin-1"))
            self.assertEqual(answer.headers["x-served-by"], "handoff")
            connection.close()
            return *answer.body.split(b"\n", 2), connection.writer.get_extra_info("sockname")[1]

        [found] = run(1, 1, one)
        return found

    def parsed(self, *arguments, **more):
        _, _, metadata, port = self.arrival(*arguments, **more)
        value = json.loads(metadata.decode("utf-8"))
        self.assertEqual(of_nginx.violations(value, of_nginx.schema()), [])
        return value, port

    def test_default(self):
        self.begin()
        value, port = self.parsed()
        self.assertRegex(value.pop("request_id"), "^[A-Za-z0-9@_-]{24,}$")
        self.assertEqual(value, {
            "module": "http", "client": {"address": "127.0.0.1", "port": port},
            "server": {"address": "127.0.0.1", "port": self.port}, "scheme": "http",
            "location": "/arrival"})

    def test_location_of_an_if_is_that_of_the_section_around_it(self):
        hand_over = "HandoffPass unix:{directory}/handoff.sock"
        self.start(server=f"""
            HandoffMetadata default
            <Location "/arrival/in">
                <If "true">
                    {hand_over}
                </If>
            </Location>
            <LocationMatch "^/arrival/(match|a)$">
                <If "false">
                </If>
                <Else>
                    {hand_over}
                </Else>
            </LocationMatch>
            <Location ~ "^/arrival/t[i]lde$">
                <If "true">
                    <If "true">
                        {hand_over}
                    </If>
                </If>
            </Location>
            <Location /arrival/after>
                HandoffPass unix:{{directory}}/none.sock
            </Location>
            <If "%{{{{REQUEST_URI}}}} == '/arrival/after'">
                {hand_over}
            </If>
            ProxyPass / unix:{{directory}}/fallback.sock|http://localhost/""")
        for name, location in (("in", "/arrival/in"), ("match", "^/arrival/(match|a)$"),
                               ("tilde", "^/arrival/t[i]lde$"), ("after", None)):
            with self.subTest(name):
                self.assertEqual(self.parsed(path="/arrival/" + name)[0].get("location"), location)

    def test_none(self):
        self.begin("")
        self.assertEqual(self.arrival()[:3], (b"", b"", b""))

    def test_strings(self):
        self.begin("HandoffService events\nHandoffCorrelation %{reqenv:UNIQUE_ID}\n"
                   "HandoffMetadata '%{REQUEST_METHOD} %{REQUEST_URI} %{HTTP:X-A}'")
        service, correlation, metadata, _ = self.arrival(headers=["X-A: b"])
        self.assertEqual((service, metadata), (b"events", b"GET /arrival/a b"))
        self.assertRegex(correlation, b"^[A-Za-z0-9@_-]{24,}$")

    def test_members_are_valid_whatever_a_client_sends(self):
        self.begin("HandoffMetadata default agent=%{HTTP_USER_AGENT} uri=%{REQUEST_URI} 'x=a \"b\"'")
        for sent in [b"plain", b'"quoted" \\back', b"\xff\xfe", b"\xc3\xa9t\xc3\xa9", b"\xed\xa0\x80",
                     b"\xf0\x9f\x98\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"a\xe2\x82",
                     b"a\tb", b'","client":{"address":"10.0.0.1"}', b"%{HTTP_HOST}", b"x" * 8000]:
            with self.subTest(sent[:40]):
                value, _ = self.parsed(headers=["User-Agent: " + sent.decode("latin-1")])
                self.assertEqual(value["agent"], sent.decode("utf-8", "each"))
                self.assertEqual(value["x"], 'a "b"')
                self.assertEqual(value["client"]["address"], "127.0.0.1")
        value, _ = self.parsed(path="/arrival/%22%0a%c3%a9%ff")
        self.assertEqual(value["uri"], '/arrival/"\n\xe9\ufffd')

    def test_remoteip_is_believed_only_of_whom_it_trusts(self):
        self.begin("HandoffMetadata default\nRemoteIPHeader X-Forwarded-For\n"
                   "RemoteIPInternalProxy 127.0.0.1")
        value, _ = self.parsed(headers=["X-Forwarded-For: 192.0.2.7"])
        self.assertEqual(value["client"], {"address": "192.0.2.7"})
        self.stop_all()
        self.begin("HandoffMetadata default\nRemoteIPHeader X-Forwarded-For\n"
                   "RemoteIPInternalProxy 192.0.2.1")
        value, port = self.parsed(headers=["X-Forwarded-For: 192.0.2.7"])
        self.assertEqual(value["client"], {"address": "127.0.0.1", "port": port})

    def test_proxy_protocol(self):
        """Its line is not part of the request, and its port is the client's."""
        self.expected.append(r"\[remoteip:notice\]")
        self.begin("HandoffMetadata default\nRemoteIPProxyProtocol On")
        value, _ = self.parsed(before=b"PROXY TCP4 192.0.2.7 192.0.2.8 4711 80\r\n")
        self.assertEqual(value["client"], {"address": "192.0.2.7", "port": 4711})

    def test_expression_that_fails_is_a_fallback(self):
        self.expected.append(r"handoff:info.* not handed over: |Evaluation of expression")
        self.begin("HandoffMetadata '%{file:/nonexistent}'")
        answer = run(1, 1, lambda _: self.get_answer(request("a", what="arrival")))[0]
        self.assertEqual((answer.status, answer.headers["x-served-by"]), (200, "unix"))

    async def get_answer(self, data):
        connection = await Connection.open(self.port)
        answer = await connection.ask(data)
        connection.close()
        return answer

    def test_data_of_the_application(self):
        """Without HandoffMetadata default it is the metadata; with it, a member."""
        for more, expected in ("", b"d\xc3\xa9%22"), ("HandoffMetadata default\n", "d\xe9%22"):
            self.start(server=more + APPLICATION)
            [answer] = run(1, 1, lambda _: self.get_answer(request(
                new_identity(), what="arrival", argument="?to=events&data=d\xc3\xa9%22")))
            self.assertEqual(answer.headers["x-served-by"], "handoff")
            data = answer.body.split(b"\n", 2)[2]
            self.assertEqual(json.loads(data)["data"] if more else data, expected)
            self.stop_all()


for_each_mpm(globals(), Members)

if __name__ == "__main__":
    unittest.main()
