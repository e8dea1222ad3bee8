"""The metadata of "handoff_metadata default": what it says, whom it believes, and that it is JSON
whatever a client sends."""

import codecs
import json
import os
import random
import re
import socket
import ssl
import subprocess
import sys
import unittest

from client import Connection, gather, drive, request, run
from harness import PATIENCE, Case, Nginx, Process, number

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "../../..")
HOSTILE = number("HOSTILE", 500)

SERVER = """
    server {{
        listen {listen};
        {server}
        location / {{ handoff_pass unix:{directory}/handoff.sock; }}
        {locations}
    }}
"""

STREAM = """
    server {{
        listen {listen};
        {server}
        handoff_pass unix:{directory}/handoff.sock;
    }}
"""

# One U+FFFD for each byte that is no part of a character.
codecs.register_error("each", lambda error: ("\ufffd", error.start + 1))


def schema():
    """The one in the documentation of the protocol."""
    with open(f"{ROOT}/docs/protocol.md", encoding="utf-8") as file:
        [found] = re.findall(r"```json\n(\{\n *\"\$schema\".*?)```", file.read(), re.S)
    return json.loads(found)


def violations(value, rule, at="metadata"):
    """Where a value is not as its schema says, for what the schema makes use of."""
    types = {"object": dict, "string": str, "integer": int}
    known = {"$schema", "title", "description", "type", "properties", "required",
             "additionalProperties", "minimum", "maximum", "minLength", "pattern", "enum"}
    assert not set(rule) - known, f"the test does not know {set(rule) - known}"
    if not isinstance(value, types[rule["type"]]):
        return [f"{at} is no {rule['type']}"]
    if isinstance(value, int):
        good = rule.get("minimum", value) <= value <= rule.get("maximum", value)
    elif isinstance(value, str):
        good = (len(value) >= rule.get("minLength", 0) and
                re.search(rule.get("pattern", ""), value) and
                value in rule.get("enum", [value]))
    else:
        good = set(rule.get("required", [])) <= set(value)
    found = [] if good else [f"{at}: {value!r}"]
    if isinstance(value, dict):
        for name, member in value.items():
            if name in rule["properties"]:
                found += violations(member, rule["properties"][name], f"{at}.{name}")
            elif rule.get("additionalProperties") is not True:
                found.append(f"{at}.{name} is not in the schema")
    return found


def client_hello(name):
    """What a client says first that asks for this name."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


class Metadata(Case):
    def begin(self, server="handoff_metadata default;", listen="127.0.0.1:{port}", locations="",
              part="http", more=""):
        template = SERVER if part == "http" else STREAM
        text = (template.replace("{listen}", listen).replace("{server}", server)
                .replace("{locations}", locations))
        self.start(**{part: more + text})

    def get(self, path="/arrival/a", before=b"", headers=(), port=None):
        """The metadata of a request, and the address of its client."""
        async def one(_):
            connection = await Connection.open(port or self.port)
            head = "".join(header + "\r\n" for header in headers)
            answer = await connection.ask(
                before + f"GET {path} HTTP/1.1\r\nHost: test\r\n{head}\r\n".encode("latin-1"))
            self.assertEqual(answer.headers["x-served-by"], "handoff")
            return answer.body.split(b"\n", 2)[2], connection.writer.get_extra_info("sockname")[1]

        [found] = run(1, 1, one)
        return found

    def parsed(self, *arguments, **more):
        metadata, client_port = self.get(*arguments, **more)
        found = json.loads(metadata.decode("utf-8"))
        self.assertEqual(violations(found, schema()), [])
        return found, client_port


class Http(Metadata):
    def test_request_without_tls(self):
        self.begin()
        found, client_port = self.parsed()
        self.assertRegex(found.pop("request_id"), "^[0-9a-f]{32}$")
        self.assertEqual(found, {
            "module": "http", "scheme": "http", "location": "/",
            "client": {"address": "127.0.0.1", "port": client_port},
            "server": {"address": "127.0.0.1", "port": self.port}})

    def test_location_is_the_one_that_hands_over(self):
        self.begin(locations=r"""
            location ~ "^/arrival/\d\"{{1,2}}$" {{ handoff_pass unix:{directory}/handoff.sock; }}
            location /arrival/named {{ error_page 404 = @named; return 404; }}
            location @named {{ handoff_pass unix:{directory}/handoff.sock; }}""")
        self.assertEqual(self.parsed('/arrival/7%22')[0]["location"], r'^/arrival/\d"{1,2}$')
        self.assertEqual(self.parsed("/arrival/named")[0]["location"], "@named")

    def test_request_id_is_that_of_the_log(self):
        self.begin("handoff_metadata default; handoff_correlation $request_id;")

        async def one(_):
            connection = await Connection.open(self.port)
            return (await connection.ask(request("a", what="arrival"))).body.split(b"\n", 2)

        [[_, correlation, metadata]] = run(1, 1, one)
        self.assertEqual(json.loads(metadata)["request_id"], correlation.decode())

    def test_client_of_a_unix_socket_has_no_port(self):
        self.begin(listen="unix:{directory}/nginx.sock")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(f"{self.directory}/nginx.sock")
            client.sendall(request("a", what="arrival", close=True))
            body = b"".join(iter(lambda: client.recv(65536), b"")).partition(b"\r\n\r\n")[2]
        found = json.loads(body.split(b"\n", 2)[2])
        self.assertEqual(violations(found, schema()), [])
        self.assertEqual(found["client"], {"address": "unix:"})
        self.assertEqual(found["server"], {"address": f"unix:{self.directory}/nginx.sock"})

    def test_inherited_and_shared_by_locations(self):
        self.begin("", more="handoff_metadata default;",
                   locations="location /arrival/own {{ handoff_metadata 'its own';"
                             "handoff_pass unix:{directory}/handoff.sock; }}")
        self.assertIn("client", self.parsed()[0])
        self.assertEqual(self.get("/arrival/own")[0], b"its own")


# nginx lets a configuration set what it says of TLS. So this needs no TLS that can be handed over.
TLS = """
    handoff_metadata default;
    set $ssl_protocol TLSv1.3;
    set $ssl_cipher TLS_AES_256_GCM_SHA384;
    set $ssl_server_name $http_name;
    set $ssl_alpn_protocol http/1.1;
    set $ssl_client_verify $http_verify;
    set $ssl_client_fingerprint 0123456789abcdef0123456789abcdef01234567;
"""


class Tls(Metadata):
    def test_members(self):
        self.begin(TLS)
        tls = self.parsed(headers=["Name: test.example", "Verify: SUCCESS"])[0]["tls"]
        self.assertEqual(tls, {
            "version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384", "sni": "test.example",
            "alpn": "http/1.1",
            "client_certificate": {"verify": "SUCCESS",
                                   "sha1": "0123456789abcdef0123456789abcdef01234567"}})

    def test_without_a_client_certificate_or_a_name(self):
        self.begin(TLS)
        for headers in [], ["Verify: NONE"]:
            self.assertEqual(set(self.parsed(headers=headers)[0]["tls"]),
                             {"version", "cipher", "alpn"})

    def test_certificate_that_is_not_verified_says_so(self):
        self.begin(TLS)
        why = 'FAILED:self-signed "certificate"'
        certificate = self.parsed(headers=[f"Verify: {why}"])[0]["tls"]["client_certificate"]
        self.assertEqual(certificate["verify"], why)

    def test_name_that_is_no_text(self):
        self.begin(TLS)
        found = self.parsed(headers=['Name: \xff"\\\x01\t\xc3\xa9\xed\xa0\x80.example'])[0]
        self.assertEqual(found["tls"]["sni"], '\ufffd"\\\x01\t\xe9\ufffd\ufffd\ufffd.example')


class Text(Metadata):
    def test_metadata_is_json_whatever_a_client_sends(self):
        """Compared with what Python takes for UTF-8."""
        self.begin("large_client_header_buffers 4 64k; handoff_metadata default 'agent=\"$http_x\" \\d';")
        chance = random.Random(1)
        edges = [b"\x7f", b"\xc0\x80", b"\xc1\xbf", b"\xc2", b"\xc2\x80", b"\xdf\xbf", b"\xe0\x80\x80",
                 b"\xe0\x9f\xbf", b"\xe0\xa0\x80", b"\xed\x9f\xbf", b"\xed\xa0\x80", b"\xef\xbf\xbf",
                 b"\xee\x80", b"\xf0\x80\x80\x80", b"\xf0\x8f\xbf\xbf", b"\xf0\x90\x80\x80",
                 b"\xf4\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\xfe",
                 b"\x80", b'"', b"\\", b"\\u0000", b"\t", b"\x01", b"\x1f", b"</script>",
                 "\u2028\u00e9\u20ac\U0001f600".encode(), b"\xe2\x82", b"\xf0\x9f\x98"]
        values = [edge for edge in edges if edge.strip()]
        values += [bytes(chance.choices(range(1, 256), k=chance.randrange(1, 40)))
                   for _ in range(HOSTILE)]
        values += [b"".join(chance.choices(edges, k=chance.randrange(1, 20)))
                   for _ in range(HOSTILE)]
        values.append(b"\xff\x01" * 5000)
        values = [value.translate(None, b"\r\n\0").strip(b" ") for value in values]

        async def all_of_them():
            connections = [await Connection.open(self.port) for _ in values]

            async def one(index):
                answer = await connections[index].ask(
                    b"GET /arrival/a HTTP/1.1\r\nHost: test\r\nX: " + values[index] + b"\r\n\r\n")
                return answer.body.split(b"\n", 2)[2]

            return await gather(len(values), 16, one)

        for value, metadata in zip(values, drive(all_of_them())):
            found = json.loads(metadata.decode("utf-8"))
            self.assertEqual(violations(found, schema()), [])
            self.assertEqual(found["agent"], '"' + value.decode("utf-8", "each") + '" \\d')

    def test_escape_json_is_json_too(self):
        self.begin("""handoff_metadata escape=json '{{"agent":"$http_user_agent"}}';""")
        metadata, _ = self.get(headers=['User-Agent: \xff "'])
        self.assertEqual(json.loads(metadata.decode("utf-8")), {"agent": '\ufffd "'})

    def test_more_members(self):
        self.begin("handoff_metadata default data=$http_data user=${{http_user}}-x empty=$http_none"
                   " 'quoted=a \"b\" \\c';")
        found, _ = self.parsed(headers=['Data: {"a":1}', "User: u"])
        self.assertEqual({name: found[name] for name in ("data", "user", "empty", "quoted")},
                         {"data": '{"a":1}', "user": "u-x", "empty": "", "quoted": 'a "b" \\c'})

    def test_members_that_are_too_large_are_no_reason_to_fail(self):
        self.expected.append(self.FALLBACK + "it is too large")
        text = ("large_client_header_buffers 4 64k; error_page 502 = /nginx;"
                "handoff_metadata default x=" + 4 * "$http_x" + ";")
        self.begin(text, locations='location = /nginx {{ return 200 "nginx"; }}')

        async def one(index):
            connection = await Connection.open(self.port)
            # A control character takes six bytes.
            return await connection.ask(request("a", headers=["X: " + "\x01" * (1000, 9000)[index]]))

        small, large = run(2, 1, one)
        self.assertEqual(small.headers["x-served-by"], "handoff")
        self.assertEqual(large.body, b"nginx")

    def test_other_forms_are_as_they_were(self):
        for directive, metadata in [
                ("handoff_metadata $arg_x;", b"1"), ("handoff_metadata default$arg_x;", b"default1"),
                ("handoff_metadata escape=none default;", b"default"),
                ("handoff_metadata a default;", b"adefault")]:
            with self.subTest(directive):
                self.begin(directive)
                self.assertEqual(self.get("/arrival/a?x=1")[0], metadata)
                self.stop_all()

    def test_mistakes_in_the_configuration(self):
        for message, directive in [
                ('"nonsense" is not "name=string"', "handoff_metadata default nonsense;"),
                ('"=a" is not "name=string"', "handoff_metadata default =a;"),
                ('"a-b=c" is not "name=string"', "handoff_metadata default a-b=c;"),
                ('"client" is a member of "default"', "handoff_metadata default client=$arg_a;"),
                ('unknown "nonsense" variable', "handoff_metadata default a=$nonsense;"),
                ("is duplicate", "handoff_metadata default; handoff_metadata default;")]:
            for part in "http", "stream":
                if part == "stream" and "$arg_a" in directive:
                    directive = directive.replace("$arg_a", "a")
                with self.subTest(directive, part=part):
                    good, output = Nginx.test(self.directory, **{part: directive + """
                        server { listen 127.0.0.1:1; %s }""" % (
                            "location / { handoff_pass unix:/a; }" if part == "http" else
                            "handoff_pass unix:/a;")})
                    self.assertFalse(good, output)
                    self.assertIn(message, output)


BALANCED = b"PROXY TCP4 192.0.2.1 198.51.100.2 1234 443\r\n"
CLIENT = {"address": "192.0.2.1", "port": 1234}
SERVED = {"address": "198.51.100.2", "port": 443}


class Balancer:
    """Behind a load balancer, for both modules."""

    def check(self, server, client, served, before=BALANCED, listen="proxy_protocol", headers=()):
        self.begin("handoff_metadata default;" + server, f"127.0.0.1:{{port}} {listen}",
                   part=self.part)
        port = self.port if self.part == "http" else self.stream_port
        found, client_port = self.parsed(before=before, headers=headers, port=port)
        self.assertEqual(found["client"], client or {"address": "127.0.0.1", "port": client_port})
        self.assertEqual(found["server"], served or {"address": "127.0.0.1", "port": port})

    def test_proxy_protocol(self):
        self.check("", CLIENT, SERVED)

    def test_proxy_protocol_with_version_6_addresses(self):
        self.check("", {"address": "2001:db8::1", "port": 1234},
                   {"address": "2001:db8::2", "port": 443},
                   before=b"PROXY TCP6 2001:db8::1 2001:db8::2 1234 443\r\n")

    def test_proxy_protocol_that_does_not_know_the_client(self):
        self.check("", None, None, before=b"PROXY UNKNOWN\r\n")

    def test_balancer_that_is_believed(self):
        self.check("set_real_ip_from 127.0.0.1;" + self.header, CLIENT, SERVED)

    def test_who_is_not_believed_is_the_client(self):
        self.check("set_real_ip_from 192.0.2.77;" + self.header, None, None)

    def test_without_the_proxy_protocol_nobody_is_believed(self):
        self.check("", None, None, listen="", before=b"",
                   headers=["X-Forwarded-For: 192.0.2.1", "X-Real-IP: 192.0.2.1"])


class HttpBalancer(Balancer, Metadata):
    part = "http"
    header = "real_ip_header proxy_protocol;"

    def test_header_of_a_balancer_that_is_believed(self):
        self.check("set_real_ip_from 127.0.0.1; real_ip_header X-Forwarded-For;",
                   CLIENT, None, listen="", before=b"",
                   headers=["X-Forwarded-For: 203.0.113.9, 192.0.2.1:1234"])

    def test_header_without_a_port(self):
        self.check("set_real_ip_from 127.0.0.1; real_ip_header X-Real-IP;",
                   {"address": "192.0.2.1"}, None, listen="", before=b"",
                   headers=["X-Real-IP: 192.0.2.1"])


class StreamBalancer(Balancer, Metadata):
    part = "stream"
    header = ""


class Stream(Metadata):
    def test_connection(self):
        self.begin(part="stream")
        found, client_port = self.parsed(port=self.stream_port)
        self.assertEqual(found, {
            "module": "stream", "client": {"address": "127.0.0.1", "port": client_port},
            "server": {"address": "127.0.0.1", "port": self.stream_port}})

    def test_name_that_ssl_preread_has_read(self):
        # The test backend answers no TLS: it shows the metadata to the next client's request.
        backend = self.begin_python()
        self.start_nginx(stream=STREAM.replace("{listen}", "127.0.0.1:{port}").replace(
            "{server}", "ssl_preread on; handoff_metadata default;"))
        with socket.create_connection(("127.0.0.1", self.stream_port), PATIENCE) as client:
            client.sendall(client_hello("test.example"))
            arrival = backend.accept(PATIENCE)
        arrival.connection.close()
        backend.close()
        found = json.loads(arrival.metadata)
        self.assertEqual(violations(found, schema()), [])
        self.assertEqual(found["tls"], {"sni": "test.example"})

    def test_name_with_a_nul_is_no_service_or_correlation(self):
        """It would end there for the backend. In the metadata it is escaped."""
        hello = client_hello("admin.evil.example").replace(b"admin.", b"admin\0")
        for where in "handoff_service", "handoff_correlation", "handoff_metadata default name=":
            good = where.endswith("=")
            with self.subTest(where):
                backend = self.begin_python()
                self.start_nginx(stream=STREAM.replace("{listen}", "127.0.0.1:{port}").replace(
                    "{server}", "ssl_preread on; handoff_attempt_timeout 30m; " + where + ("" if good else " ")
                    + "a$ssl_preread_server_name;"))
                with socket.create_connection(("127.0.0.1", self.stream_port), PATIENCE) as client:
                    client.sendall(hello)
                    if good:
                        arrival = backend.accept(PATIENCE)
                        arrival.connection.close()
                        self.assertEqual(json.loads(arrival.metadata)["name"],
                                         "aadmin\0evil.example")
                    else:
                        self.assertEqual(client.recv(1), b"")
                        self.assertRegex(self.nginx.log()[-1], self.FALLBACK + "there is a NUL in")
                        self.expected.append(self.FALLBACK + "there is a NUL in")
                backend.close()
                self.stop_all()

    def begin_python(self):
        import handoff  # pylint: disable=import-outside-toplevel
        return handoff.Backend.listen(f"{self.directory}/handoff.sock")


class Example(Metadata):
    def test_backend_in_python_does_not_believe_the_clients_headers(self):
        program = Process([sys.executable, "-B", f"{ROOT}/examples/python/http_backend.py",
                           "handoff.sock"], self.directory, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL)
        self.addCleanup(program.kill)
        self.assertIn("listening", program.process.stdout.readline())
        self.start_nginx(http=SERVER.replace("{listen}", "127.0.0.1:{port} proxy_protocol")
                         .replace("{server}", "handoff_metadata default;")
                         .replace("{locations}", ""))

        async def one(_):
            connection = await Connection.open(self.port)
            return (await connection.ask(BALANCED + request(
                "a", headers=["X-Forwarded-For: 203.0.113.9", "X-Real-IP: 203.0.113.9"]))).body

        [body] = run(1, 1, one)
        self.assertIn(b"\nclient: 192.0.2.1 1234\n", body)


if __name__ == "__main__":
    unittest.main()
