"""What is not eligible, what is told to the backend and to the log, limits, and configurations."""

import asyncio
import json
import re
import socket
import struct
import subprocess
import unittest

from client import Connection, chunked, drive, gather, new_identity, request, run
from harness import HANDED_OVER, STREAM, Case, Nginx, make_certificate, wait_until

FALLBACK = """
        location @fallback { proxy_pass http://unix:{directory}/fallback.sock; }
        location = /nginx { return 200 "nginx $arg_id"; }
"""


def server(locations, listen="127.0.0.1:{port}"):
    """A server with these locations, in which PASS hands over with a fallback."""
    text = "server { listen " + listen + "; {server}" + FALLBACK + locations + "}"
    text = text.replace("PASS", "handoff_pass unix:{directory}/handoff.sock; "
                                "error_page 502 504 = @fallback;")
    # As Case.start_nginx() wants it.
    text = text.replace("{", "{{").replace("}", "}}")
    return re.sub(r"\{\{(port|directory|server)\}\}", r"{\1}", text)


def ask(port, data):
    """The answer to one request on a new connection."""
    async def one(_):
        return await (await Connection.open(port)).ask(data)

    [answer] = run(1, 1, one)
    return answer


class Details(Case):
    def served(self, data):
        answer = ask(self.port, data)
        self.assertEqual(answer.status, 200)
        return answer.headers["x-served-by"]

    def check_access(self, pattern):
        """A line like this is in the access log."""
        wait_until(lambda: any(re.search(pattern, line) for line in self.nginx.access()),
                   f"{pattern!r} in the access log")


class NotEligible(Details):
    """Served by the fallback, without a warning."""
    UNSUPPORTED = r"outcome=fallback reason=client unsupported"
    # From 1.25.1 on, which has a directive instead that those before have not.
    HTTP_2 = r'the "listen \.\.\. http2" directive is deprecated'

    def curl(self, *arguments):
        return subprocess.run(["curl", "-s", "-S", "-i", *arguments], capture_output=True,
                              text=True, check=True).stdout

    def test_tls_that_nginx_terminates(self):
        make_certificate(self.directory)
        self.expected.append(self.HTTP_2)
        self.start(http=server("""
            ssl_certificate certificate.pem; ssl_certificate_key key.pem;
            location / { PASS }""", "127.0.0.1:{port} ssl http2"))
        # The files are beside the configuration.
        for version in "--http1.1", "--http2":
            answer = self.curl("-k", version, f"https://127.0.0.1:{self.port}/r/{version[-1]}")
            self.assertIn("200", answer.splitlines()[0])
            self.assertRegex(answer, "(?i)x-served-by: unix")
        self.assert_once(["1", "2"])
        self.check_access("/r/1 200 " + self.UNSUPPORTED)
        self.check_access("/r/2 200 " + self.UNSUPPORTED)

    def test_http_2(self):
        self.expected.append(self.HTTP_2)
        self.start(http=server("location / { PASS }", "127.0.0.1:{port} http2"))
        answer = self.curl("--http2-prior-knowledge", "-d", "body",
                           f"http://127.0.0.1:{self.port}/r/a")
        self.assertIn("HTTP/2 200", answer)
        self.assertIn("x-served-by: unix", answer)
        self.assert_once(["a"])
        self.check_access(self.UNSUPPORTED)

    def test_http_0_9(self):
        self.start(http=server("location / { PASS }"))

        async def one(_):
            connection = await Connection.open(self.port)
            await connection.send(b"GET /r/old\r\n")
            return await connection.reader.read()

        self.assertEqual(run(1, 1, one), [b"served\n"])
        self.assertEqual(dict(self.assert_once(["old"])), {"unix": 1})

    def test_subrequest_of_auth_request(self):
        self.start(http=server("""
            location /r/ { auth_request /auth; proxy_pass http://unix:{directory}/fallback.sock; }
            location = /auth { PASS }"""))
        self.assertEqual(self.served(request("a")), "unix")
        answered = self.answered()
        self.assertEqual(set(way for way, _ in answered), {"unix"})

    def test_subrequest_is_not_told_of_as_the_request(self):
        """The request has been on offer, or will be; of both only that is logged and decides."""
        self.expected.append(self.FALLBACK)
        self.start_backend("-n", name="hangs", sockets=("hangs.sock", "hangs_echo.sock"))
        self.start(http=server("""
            recursive_error_pages on;
            location /r/never { auth_request /part; proxy_pass http://unix:{directory}/fallback.sock; }
            location /r/before { handoff_pass unix:{directory}/none.sock; error_page 502 = @proxied; }
            location /r/between { handoff_pass unix:{directory}/hangs.sock; handoff_timeout 100ms;
                error_page 504 @next; }
            location @proxied { mirror /part; proxy_pass http://unix:{directory}/fallback.sock; }
            location @next { auth_request /part; PASS }
            location = /part { internal; handoff_pass unix:{directory}/none.sock;
                error_page 502 @twice; }
            location @twice { handoff_pass unix:{directory}/none.sock; error_page 502 =204 /nginx; }"""))
        for identity, way, pattern in [
                ("never", "unix", "200 outcome=-? reason=-?"),
                ("before", "unix", "200 outcome=fallback reason=backend unavailable"),
                ("between", "handoff", "299 outcome=adopted reason=-?")]:
            with self.subTest(identity):
                self.assertEqual(self.served(request(identity)), way)
                self.check_access(f"^/r/{identity} {pattern} wait=")

    def test_subrequest_that_nginx_refuses_stays_refused(self):
        self.start(http=server("""
            location /r/ { auth_request /auth; proxy_pass http://unix:{directory}/fallback.sock; }
            location = /auth { error_page 403 @pass; return 403; }
            location @pass { PASS }"""))
        self.assertEqual(ask(self.port, request("a")).status, 403)
        self.assertEqual(self.answered(), {})

    def test_subrequest_of_ssi(self):
        with open(f"{self.directory}/page.html", "w", encoding="ascii") as file:
            file.write('(<!--#include virtual="/r/part" -->)')
        self.start(http=server("location = /page.html { ssi on; root {directory}; default_type "
                               "text/html; } location / { PASS }"))
        answer = ask(self.port, b"GET /page.html HTTP/1.1\r\nHost: test\r\n\r\n")
        self.assertEqual(answer.body, b"(served\n)")
        self.assertEqual(dict(self.assert_once(["part"])), {"unix": 1})

    def test_request_that_is_mirrored(self):
        self.start(http=server("""
            location /r/ { mirror /mirror; PASS }
            location = /mirror { internal; proxy_pass http://unix:{directory}/fallback.sock; }"""))
        self.assertEqual(self.served(request("a")), "unix")
        self.assert_once(["a"])

    def test_body_that_was_passed_on_unbuffered(self):
        self.start(http=server("""
            location /r/ { proxy_request_buffering off;
                proxy_pass http://unix:{directory}/fallback.sock; proxy_set_header Accel @stream; }
            location @stream { handoff_pass unix:{directory}/handoff.sock;
                error_page 502 504 =200 /nginx?id=said; }"""))
        answer = ask(self.port, request("a", method="POST", body=b"x" * 20000))
        self.assertEqual((answer.status, answer.body), (200, b"nginx said"))
        self.assertEqual(self.answered(), {})

    def test_body_that_nginx_has_discarded(self):
        """All of it is in the socket when nginx does so, before the error_page: the head fills the
        buffer. A proxy that is tried in between finds an empty body."""
        self.expected.append(r"\[error\] .* client intended to send too large body")
        self.expected.append(r"\[crit\] .* connect\(\) to unix:\S+/none\.sock failed")
        self.start(http=server("""
            client_header_buffer_size 1k; recursive_error_pages on;
            location /large { client_max_body_size 10; error_page 413 = @pass; }
            location /proxied { client_max_body_size 10; error_page 413 = @proxy; }
            location /gone { memcached_pass unix:{directory}/none.sock; set $memcached_key a;
                error_page 502 = @pass; }
            location @proxy { client_max_body_size 0; error_page 502 = @pass;
                proxy_pass http://unix:{directory}/none.sock; }
            location @pass { client_max_body_size 0; handoff_pass unix:{directory}/handoff.sock;
                error_page 502 504 =200 /nginx?id=said; }"""))
        body = b"x" * 100
        for what, method, headers, bytes_ in [
                ("large", "POST", ["Content-Length: 100"], body),
                ("proxied", "POST", ["Content-Length: 100"], body),
                ("gone", "GET", ["Content-Length: 100"], body),
                ("gone", "GET", ["Transfer-Encoding: chunked"], chunked(body, 30))]:
            pad = 1024 - len(request("a", what, method, [*headers, "X: "]))
            data = request("a", what, method, [*headers, "X: " + "x" * pad])
            with self.subTest(what, headers=headers):
                answer = ask(self.port, data + bytes_)
                self.assertEqual((answer.status, answer.body), (200, b"nginx said"))
                self.check_access(f"^/{what}/a 200 " + self.UNSUPPORTED)
        self.assertEqual(self.backend.statistics()["arrived"], 0)

    def test_request_that_is_larger_than_the_backend_takes(self):
        self.expected.append(self.FALLBACK)
        self.start("-m", 4000, http=server("location / { PASS }"))
        headers = ["X-Large: " + "x" * 5000]
        self.assertEqual(self.served(request("a", headers=headers)), "unix")
        self.assertEqual(self.served(request("b")), "handoff")
        self.assert_once(["a", "b"])
        self.check_access("/r/a 200 outcome=fallback reason=too large")


class Eligible(Details):
    def check(self, locations, data, listen="127.0.0.1:{port}"):
        self.start(http=server(locations, listen))
        answer = ask(self.port, data)
        self.assertEqual((answer.status, answer.headers["x-served-by"]), (200, "handoff"))
        return answer

    def test_after_an_auth_request_and_with_a_body(self):
        data = request("a", what="head", method="POST", body=b"x" * 5000)
        answer = self.check("location / { auth_request /auth; PASS }"
                            "location = /auth { return 204; }", data)
        self.assertEqual(answer.body, data[:-5000])
        self.assertEqual(answer.headers["x-body"].split()[0], "5000")

    def test_after_a_rewrite(self):
        data = request("a", what="head", argument="/b/../c?d=%20")
        answer = self.check("location / { rewrite ^ /other/$1?x=y last; } location /other { PASS }",
                            data)
        self.assertEqual(answer.body, data)

    def test_after_try_files(self):
        data = request("a", what="head")
        answer = self.check("location / { try_files $uri @pass; } location @pass { PASS }", data)
        self.assertEqual(answer.body, data)

    def test_if_in_a_location(self):
        block = "handoff_pass unix:{directory}/handoff.sock;"
        self.check("location / { error_page 502 504 = @fallback; if ($arg_hand = over) { " + block +
                   " } proxy_pass http://unix:{directory}/fallback.sock; }",
                   request("a", argument="?hand=over"))
        self.assertEqual(self.served(request("b")), "unix")

    def test_limit_except(self):
        block = "handoff_pass unix:{directory}/handoff.sock;"
        self.check("location / { error_page 502 504 = @fallback; limit_except GET { " + block +
                   " } proxy_pass http://unix:{directory}/fallback.sock; }",
                   request("a", method="POST", body=b"x"))
        self.assertEqual(self.served(request("b")), "unix")

    def test_behind_the_proxy_protocol(self):
        data = request("a", what="head")
        answer = self.check("location / { PASS }",
                            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + data,
                            "127.0.0.1:{port} proxy_protocol")
        self.assertEqual(answer.body, data)

    def test_error_page_is_handed_over(self):
        data = request("a", what="head")
        answer = self.check("location / { error_page 404 = /pass; return 404; }"
                            "location /pass { PASS }", data)
        self.assertEqual(answer.body, data)

    def test_what_nginx_has_refused_is_not_handed_over_by_an_error_page(self):
        self.expected.append("access forbidden by rule|no user/password was provided")
        self.start(http=server("error_page 401 403 404 /error;"
                               "location / { PASS }"
                               "location /r/denied { deny all; }"
                               'location /r/locked { auth_basic "x"; auth_basic_user_file passwords; }'
                               "location /r/internal { internal; }"
                               "location /r/named { deny all; error_page 403 @pass; }"
                               "location /r/again { recursive_error_pages on; deny all;"
                               " error_page 403 @again; }"
                               "location @again { recursive_error_pages on; PASS"
                               " error_page 403 @again; }"
                               "location @pass { PASS }"))
        for identity, status in (("denied", 403), ("locked", 401), ("internal", 404),
                                 ("named", 403), ("again", 403), ("open", 200)):
            with self.subTest(identity):
                self.assertEqual(ask(self.port, request(identity)).status, status)
        self.assertEqual(set(self.answered()), {("handoff", "open")})

    def test_what_nginx_could_not_read_is_not_handed_over_by_an_error_page(self):
        """Such a request has failed before its first phase."""
        self.start(http=server("error_page 400 414 494 495 496 497 /error;"
                               "client_header_buffer_size 1k; large_client_header_buffers 2 1k;"
                               "location / { PASS }"))
        for status, data in [
                (400, b"GET / nonsense\r\n\r\n"),
                (400, b"GET / HTTP/1.1\r\n\r\n"),
                (414, request("x" * 2000)),
                (400, request("a", headers=["X: " + "x" * 2000]))]:
            with self.subTest(data[:30]):
                self.assertEqual(ask(self.port, data).status, status)
        self.check_access(" 414 outcome=- reason=- ")

    def test_what_nginx_refuses_for_its_tls_is_not_handed_over_by_an_error_page(self):
        make_certificate(self.directory)
        self.start(http=server("error_page 495 496 497 /error; ssl_verify_client on;"
                               "ssl_certificate certificate.pem; ssl_certificate_key key.pem;"
                               "ssl_client_certificate certificate.pem;"
                               "location / { PASS }", "127.0.0.1:{port} ssl"))
        self.assertEqual(ask(self.port, request("plain")).status, 400)
        answer = subprocess.run(["curl", "-s", "-k", "-i", f"https://127.0.0.1:{self.port}/"],
                                capture_output=True, text=True, check=True).stdout
        self.assertIn(" 400 Bad Request", answer)
        self.check_access(" 400 outcome=- reason=- ")

    def test_502_of_the_proxy_that_serves_the_fallback_is_not_handed_over(self):
        self.expected += [self.FALLBACK, r"\[crit\] .* connect\(\) to unix:\S+/none\.sock failed"]
        self.start(http=server("recursive_error_pages on;"
                               "location / { handoff_pass unix:{directory}/none.sock;"
                               " error_page 502 @proxy; }"
                               "location /r/forgotten { handoff_pass unix:{directory}/none.sock;"
                               " error_page 502 = @proxy; }"
                               "location @proxy { proxy_pass http://unix:{directory}/none.sock;"
                               " error_page 502 @pass; }"
                               "location @pass { PASS }"))
        for identity in "kept", "forgotten":
            with self.subTest(identity):
                self.assertEqual(ask(self.port, request(identity)).status, 502)
        self.assertEqual(self.answered(), {})

    def test_fallback_of_one_backend_may_be_another(self):
        self.expected.append(self.FALLBACK)
        answer = self.check("location / { handoff_pass unix:{directory}/none.sock;"
                            " error_page 502 @pass; } location @pass { PASS }",
                            request("a", what="head"))
        self.assertEqual(answer.headers["x-served-by"], "handoff")

    def test_fallback_after_two_handoffs_needs_recursive_error_pages_where_it_begins(self):
        """As README.md says. The second is the first one's fallback, or an application leads to it."""
        self.expected.append(self.FALLBACK)
        self.start(http=server(r"""
            location ~ ^/(\w+)/first { recursive_error_pages on; handoff_pass unix:{directory}/none.sock;
                error_page 502 = @$1; }
            location ~ ^/(\w+)/second { handoff_pass unix:{directory}/none.sock; error_page 502 = @$1; }
            location @application { proxy_pass http://unix:{directory}/fallback.sock;
                proxy_set_header Accel @next; }
            location @next { recursive_error_pages on; handoff_pass unix:{directory}/none.sock;
                error_page 502 =200 /nginx?id=said; }"""))
        for what in "next", "application":
            with self.subTest(what):
                answer = ask(self.port, request("first", what))
                self.assertEqual((answer.status, answer.body), (200, b"nginx said"))
                self.assertEqual(ask(self.port, request("second", what)).status, 502)


class Told(Details):
    def test_access_log(self):
        self.expected.append(self.FALLBACK)
        self.start("-r", 2, http=HANDED_OVER)
        for identity in "a", "b":
            ask(self.port, request(identity))
        ask(self.port, b"GET /nginx HTTP/1.1\r\nHost: test\r\n\r\n")
        wait = r"wait=\d+\.\d{6}"
        self.check_access(f"^/r/a 299 outcome=adopted reason=-? {wait} location=/$")
        self.check_access(f"^/r/b 200 outcome=fallback reason=rejected {wait} location=@fallback$")
        self.check_access("^/nginx 200 outcome=-? reason=-? wait=-? location=/nginx$")

    def test_log_status_may_be_set(self):
        self.start(http=server("location / { PASS handoff_log_status 202; }"))
        ask(self.port, request("a"))
        self.check_access("^/r/a 202 outcome=adopted ")

    def test_client_that_resets_its_connection_on_offer_is_logged_as_one_that_closed_it(self):
        self.expected.append(self.FALLBACK)
        self.start("-n", http=server("location / { PASS handoff_timeout 300ms; }"))
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            client.sendall(request("a"))
            wait_until(lambda: self.backend.statistics()["arrived"] == 1, "it arrives")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.check_access("^/r/a 499 outcome=fallback reason=acknowledgement timeout ")
        self.assertEqual(self.answered(), {})

    def arrival(self, directives, data):
        self.start(http=server(directives + "location / { PASS }"))
        answer = ask(self.port, data)
        self.assertEqual((answer.status, answer.headers["x-served-by"]), (200, "handoff"))
        return answer.body.split(b"\n", 2)

    def test_service_correlation_and_metadata(self):
        service, correlation, metadata = self.arrival(
            "handoff_service s-$arg_s; handoff_correlation ${request_method}-$remote_addr;"
            "handoff_metadata 'location=$handoff_location;' \"$http_x_list\" ;",
            request("a", what="arrival", argument="?s=name", headers=["X-List: 1, 2"]))
        self.assertEqual(service, b"s-name")
        self.assertEqual(correlation, b"GET-127.0.0.1")
        self.assertEqual(metadata, b"location=/;1, 2")

    def test_captures(self):
        self.start(http=server(r"""location ~ ^/(arr)(?:\w+)/(\w)(never)? {
            PASS handoff_service "$1 $2"; handoff_correlation "<$3$4>";
            handoff_metadata default first=$1; }"""))
        answer = ask(self.port, request("a", what="arrival"))
        service, correlation, metadata = answer.body.split(b"\n")[:3]
        self.assertEqual((service, correlation), (b"arr a", b"<>"))
        self.assertEqual(json.loads(metadata)["first"], "arr")

    def test_nothing_unless_it_is_configured(self):
        self.assertEqual(self.arrival("", request("a", what="arrival")), [b"", b"", b""])

    def test_metadata_as_json(self):
        agent = 'a "quoted" \\ back\tslash \xe4 </script>'
        found = self.arrival(
            """handoff_metadata escape=json '{"agent":"$http_user_agent",' '"host":"$host"}';""",
            request("a", what="arrival", headers=[f"User-Agent: {agent}"]))
        self.assertEqual(json.loads(found[2].decode("utf-8")),
                         {"agent": agent.replace("\xe4", "\ufffd"), "host": "test"})

    def test_names_that_are_too_long_are_no_reason_to_fail(self):
        self.expected.append(self.FALLBACK)
        self.start(http=server("handoff_service $arg_s; location / { PASS }"))
        answer = ask(self.port, request("a", argument="?s=" + "s" * 300))
        self.assertEqual(answer.status, 200)
        self.assert_once(["a"])

    def test_metadata_that_is_too_large_is_no_reason_to_fail(self):
        self.expected.append(self.FALLBACK + "it is too large")
        self.start("-m", 131000,
                   http=server("handoff_metadata " + 20 * "$http_x" + "; location / { PASS }"))
        for identity, length in ("a", 6000), ("b", 7000):
            headers = ["X: " + "x" * length]
            self.assertEqual(ask(self.port, request(identity, headers=headers)).status, 200)
        self.assertEqual(self.assert_once(["a", "b"]), {"handoff": 1, "unix": 1})
        self.check_access("/r/b 200 outcome=fallback reason=client unsupported")

    def test_stream_access_log(self):
        self.expected.append(self.FALLBACK)
        log = ("log_format s '$handoff_outcome/$handoff_reason/$handoff_wait';"
               "access_log access.log s;")
        self.start("-r", 2, stream=log + STREAM)

        async def one(index):
            connection = await Connection.open(self.stream_port)
            await connection.send(b"s%d\n" % index)
            await connection.reader.readline()
            connection.close()

        run(2, 1, one)
        self.check_access(r"^adopted/-?/\d+\.\d{6}$")
        self.check_access(r"^fallback/rejected/\d+\.\d{6}$")


class Limits(Details):
    def test_no_more_are_in_flight_than_the_limit(self):
        self.expected.append(self.FALLBACK)
        self.start("-n", http=HANDED_OVER, server="handoff_max_in_flight 4;")
        count = 40

        async def all_of_it():
            async def ask_one(index):
                connection = await Connection.open(self.port)
                await connection.send(request(f"w{index}"))
                return connection

            connections = await gather(count, count, ask_one)
            # Of each worker at most four wait; all others have their answer without a release.
            first = [asyncio.create_task(connection.read_answer()) for connection in connections]
            while sum(task.done() for task in first) < count - 8:
                await asyncio.wait([task for task in first if not task.done()],
                                   return_when=asyncio.FIRST_COMPLETED)
            held = (await asyncio.to_thread(self.backend.statistics))["held"]
            self.assertLessEqual(held, 8)
            self.assertGreaterEqual(held, 4)
            await asyncio.to_thread(self.backend.release)
            await asyncio.gather(*first)

        drive(all_of_it())
        self.assert_once([f"w{index}" for index in range(count)])
        self.check_access("outcome=fallback reason=backend busy")

    def test_backend_that_keeps_failing_is_not_tried_for_a_while(self):
        self.expected.append(self.FALLBACK)
        self.start("-n", http=HANDED_OVER, server="handoff_timeout 100ms; handoff_max_fails 2;"
                                                  "handoff_fail_timeout 1h;")
        identities = [new_identity() for _ in range(20)]
        for identity in identities:
            self.assertEqual(self.served(request(identity)), "unix")
        self.assertLessEqual(self.backend.statistics()["arrived"], 4)
        self.check_access("outcome=fallback reason=acknowledgement timeout wait=[0-9]")
        self.check_access("outcome=fallback reason=.*rate.limited")
        self.assert_once(identities)

    def test_backend_that_keeps_failing_is_tried_without_a_limit_of_failures(self):
        self.expected.append(self.FALLBACK)
        self.start("-n", http=HANDED_OVER, server="handoff_timeout 50ms; handoff_max_fails 0;"
                                                  "handoff_fail_timeout 1h;")
        identities = [new_identity() for _ in range(20)]
        for identity in identities:
            self.assertEqual(self.served(request(identity)), "unix")
        self.assertEqual(self.backend.statistics()["arrived"], 20)
        self.assert_once(identities)

    def test_without_a_fallback_the_client_sees_a_status(self):
        self.expected.append(self.FALLBACK)
        self.start("-n", http=server("location / { handoff_pass unix:{directory}/handoff.sock; "
                                     "handoff_timeout 100ms; } location /none { handoff_pass "
                                     "unix:{directory}/none.sock; }"))
        self.assertEqual(ask(self.port, request("a")).status, 504)
        self.assertEqual(ask(self.port, request("a", what="none")).status, 502)
        self.assertEqual(self.answered(), {})

    def test_client_that_goes_while_it_is_proxied_is_noticed(self):
        self.expected.append(self.FALLBACK)
        self.start("-r", 1, http=server("""
            location / { handoff_pass unix:{directory}/handoff.sock; error_page 502 504 = @slow; }
            location @slow { proxy_pass http://unix:{directory}/slow.sock; }"""))
        slow = socket.socket(socket.AF_UNIX)
        self.addCleanup(slow.close)
        slow.bind(f"{self.directory}/slow.sock")
        slow.listen()

        async def one(_):
            connection = await Connection.open(self.port)
            await connection.send(request("a"))
            proxied, _ = await asyncio.to_thread(slow.accept)
            self.addCleanup(proxied.close)
            connection.close()

        run(1, 1, one)
        self.check_access("^/r/a 499 outcome=fallback")

    def test_one_line_is_logged_for_each_that_fails(self):
        self.expected.append(self.FALLBACK)
        self.start("-r", 1, http=HANDED_OVER)
        for index in range(10):
            ask(self.port, request(f"l{index}"))
        lines = [line for line in self.nginx.log() if re.search(self.FALLBACK + "rejected", line)]
        self.assertEqual(len(lines), 10)

    def test_stream_without_a_fallback_ends(self):
        self.expected.append(self.FALLBACK)
        self.start("-r", 1, stream="server {{ listen 127.0.0.1:{port}; "
                                   "handoff_pass unix:{directory}/echo.sock; }}")

        async def one(_):
            connection = await Connection.open(self.stream_port)
            try:
                self.assertEqual(await connection.reader.read(), b"")
            except ConnectionResetError:
                pass

        run(1, 1, one)


class Configuration(Case):
    def check(self, message, http="", stream=""):
        """This does not load, and says so."""
        good, output = Nginx.test(self.directory, http=http, stream=stream)
        self.assertFalse(good, output)
        self.assertIn(message, output)

    def location(self, directives):
        return "server { listen 127.0.0.1:1; location / { " + directives + " } }"

    def test_mistakes_are_named(self):
        passing = "handoff_pass unix:/a.sock;"
        long = "unix:/" + "a" * 120
        for message, directives in [
                ('invalid number of arguments in "handoff_pass"', "handoff_pass;"),
                ('invalid number of arguments in "handoff_pass"', "handoff_pass unix:/a unix:/b;"),
                ('"handoff_pass" directive is duplicate', passing * 2),
                ('it begins with "unix:"', "handoff_pass /a.sock;"),
                ('there is no upstream "a.sock" for the "handoff_pass" in', "handoff_pass a.sock;"),
                ('unknown "nonsense" variable', "handoff_pass $nonsense;"),
                ('unknown "nonsense" variable', "handoff_pass unix:/$nonsense.sock;"),
                ('"handoff_attempt_timeout" directive invalid value',
                 passing + "handoff_attempt_timeout never;"),
                ('invalid number "many" of offers in a queue', passing + "handoff_queue many;"),
                ('invalid number "-1" of offers in a queue', passing + "handoff_queue -1;"),
                ('unknown parameter "time=1s"', passing + "handoff_queue 1 time=1s;"),
                ('invalid time "timeout=0"', passing + "handoff_queue 1 timeout=0;"),
                ('less than 136 years', passing + "handoff_queue 1 timeout=4294967295s;"),
                ('"handoff_timeout" directive takes at least 1ms', passing + "handoff_timeout 0;"),
                ('less than 136 years', passing + "handoff_timeout 4294967295s;"),
                ('"handoff_attempt_timeout" directive takes at least 1ms',
                 passing + "handoff_attempt_timeout 0s;"),
                ('"handoff_fail_timeout" directive takes at least 1ms',
                 passing + "handoff_fail_timeout 0;"),
                ('invalid time "timeout=soon"', passing + "handoff_queue 1 timeout=soon;"),
                ('"handoff_queue" directive is duplicate',
                 passing + "handoff_queue 1; handoff_queue 1;"),
                ('invalid number of arguments in "handoff_status"', "handoff_status on;"),
                ('it begins with "unix:"', "handoff_pass http://unix:/a.sock;"),
                (f'invalid handoff socket "{long}"', f"handoff_pass {long};"),
                ('invalid handoff socket "unix:"', "handoff_pass unix:;"),
                ('invalid handoff socket "unix:a.sock": it is not an absolute path',
                 "handoff_pass unix:a.sock;"),
                ('invalid handoff socket "unix:/run/a.sock:/uri": it has no ":/uri"',
                 "handoff_pass unix:/run/a.sock:/uri;"),
                ('it has no ":/uri"', "handoff_pass unix:/run/a.sock:/;"),
                ('it has no ":/uri"', "handoff_pass unix:/run/a.sock:;"),
                ('it has no ":/uri"', "handoff_pass unix:/run/$host.sock:/uri;"),
                ('invalid handoff socket "unix:run/": it is not an absolute path',
                 "handoff_pass unix:run/;"),
                ('invalid handoff socket "unix:run/$host.sock": it is not an absolute path',
                 "handoff_pass unix:run/$host.sock;"),
                ('"handoff_timeout" directive invalid value', passing + "handoff_timeout soon;"),
                ('value must be', passing + "handoff_max_in_flight 0;"),
                ('value must be', passing + "handoff_max_in_flight 5000;"),
                ('value must be', passing + "handoff_max_fails 5000;"),
                ('"handoff_max_in_flight" directive is duplicate',
                 passing + "handoff_max_in_flight 1; handoff_max_in_flight 1;"),
                ('"handoff_metadata" directive is duplicate',
                 passing + "handoff_metadata a; handoff_metadata b;"),
                ('unknown "nonsense" variable', passing + "handoff_service $nonsense;"),
                ('invalid variable name', passing + "handoff_service ${;"),
                ('there is another "a" before "a=2"',
                 passing + "handoff_metadata default a=1 b=$uri a=2;"),
                ('unknown escaping "escape=xml"', passing + "handoff_metadata escape=xml a;"),
                ('invalid number of arguments in "handoff_metadata"', "handoff_metadata;")]:
            with self.subTest(directives):
                self.check(message, http=self.location(directives))

    def test_only_one_directive_answers_in_a_location(self):
        """nginx itself takes the last one, and says nothing."""
        passing = "handoff_pass unix:/a.sock;"
        for other in ("proxy_pass http://127.0.0.1:2;", "fastcgi_pass 127.0.0.1:2;", "stub_status;",
                      "handoff_status;", "empty_gif;"):
            for block in "{}", "if ($arg_a) {{ {} }}", "limit_except GET {{ {} }}":
                for both in passing + other, other + passing:
                    with self.subTest(block=block, both=both):
                        good, output = Nginx.test(self.directory,
                                                  http=self.location(block.format(both)))
                        if "not allowed here" not in output:  # not everything may stand in blocks
                            self.assertFalse(good, output)
                            self.assertIn('"handoff_pass" in ', output)
                            self.assertIn("conflicts with another directive", output)

    def test_blocks_of_a_location_may_answer_in_another_way(self):
        passing, proxying = "handoff_pass unix:/a.sock;", "proxy_pass http://127.0.0.1:2;"
        for outside, inside in (passing, proxying), (proxying, passing), (passing, "set $a b;"), \
                (passing, passing), ("root /tmp; index a;", passing), ("return 204;", passing):
            for block in ("if ($arg_a) {{ {} }}", "limit_except GET {{ {} }}",
                          "location /b {{ {} }}"):
                for text in outside + block.format(inside), block.format(inside) + outside:
                    if "limit_except" in text and "set" in text:
                        continue
                    with self.subTest(text):
                        good, output = Nginx.test(self.directory, http=self.location(text))
                        self.assertTrue(good, output)

    def test_places_are_checked(self):
        self.check('"handoff_pass" directive is not allowed here',
                   http="server { listen 127.0.0.1:1; handoff_pass unix:/a.sock; }")
        self.check('"handoff_pass" directive is not allowed here',
                   stream="handoff_pass unix:/a.sock;")
        self.check('"handoff_pass" directive is duplicate',
                   stream="server { listen 127.0.0.1:1; "
                          "handoff_pass unix:/a; handoff_pass unix:/b; }")

    def test_upstreams_are_checked_where_they_are_named(self):
        for message, servers in [
                ('server "127.0.0.1:1" of upstream "u" is not a handoff socket',
                 "server unix:/a.sock; server 127.0.0.1:1;"),
                ('server "unix:a.sock" of upstream "u" is not an absolute path', "server unix:a.sock;"),
                ('server "unix:/a.sock:/uri" of upstream "u" has a ":/uri"',
                 "server unix:/a.sock:/uri;"),
                ('server "unix:/a.sock" of upstream "u" has "max_conns"',
                 "server unix:/a.sock max_conns=5;"),
                ('server "unix:/a.sock" of upstream "u" has a weight of more than 65535',
                 "server unix:/a.sock weight=65536;"),
                ("1024 backends", " ".join(f"server unix:/{n};" for n in range(1025))),
                ("no servers are inside upstream", "")]:
            block = f"upstream u {{ {servers} }}"
            with self.subTest(servers[:100]):
                self.check(message, http=block + self.location("handoff_pass u;"))
                self.check(message,
                           stream=block + "server { listen 127.0.0.1:1; handoff_pass u; }")
        # A block that nobody hands over to may be as it likes.
        good, output = Nginx.test(self.directory, http="upstream u { server 127.0.0.1:1; }"
                                  + self.location("handoff_pass unix:/a.sock;"))
        self.assertTrue(good, output)
        for line in "ip_hash; server unix:/a;", "server unix:/a; keepalive 3;":
            good, output = Nginx.test(self.directory, http=f"upstream u {{ {line} }}"
                                      + self.location("handoff_pass u;"))
            self.assertTrue(good, output)
            self.assertIn('the balancing method, or "keepalive", of upstream "u" does not apply',
                          output)

    def test_upstream_that_is_named_as_a_socket_is_left_alone(self):
        """Nothing can mean it: for proxy_pass, too, such a name is a socket's."""
        for name in "unix:foo", "unix:/a.sock", "unix:":
            block = f"upstream {name} {{ server 127.0.0.1:1; }}"
            with self.subTest(name):
                good, output = Nginx.test(
                    self.directory, http=block + self.location("handoff_pass unix:/a.sock;"),
                    stream=block + "server { listen 127.0.0.1:2; handoff_pass unix:/a.sock; }")
                self.assertTrue(good, output)

    def test_attempt_that_takes_all_the_time_is_warned_of_where_it_matters(self):
        upstreams = "upstream u { server unix:/a; server unix:/b; } upstream one { server unix:/a; }"
        said = '"handoff_attempt_timeout", 1000ms, is not less than "handoff_timeout", '
        for warned, directives in [
                (True, "handoff_pass u; handoff_timeout 500ms;"),
                (True, "handoff_pass u; handoff_timeout 1s;"),
                (True, "handoff_pass unix:/a/; handoff_timeout 1s;"),
                (False, "handoff_pass u; handoff_timeout 500ms; handoff_attempt_timeout 400ms;"),
                (False, "handoff_pass one; handoff_timeout 500ms;"),
                (False, "handoff_pass unix:/a; handoff_timeout 500ms;"),
                (False, "handoff_timeout 500ms; return 200;"),
                (True, "handoff_pass $arg_a; handoff_timeout 500ms;"),
                (True, "handoff_pass unix:/$arg_a/; handoff_timeout 500ms;"),
                (True, "if ($arg_b) { handoff_pass $arg_a; } handoff_timeout 500ms;"),
                (False, "handoff_pass $arg_a;"),
                (False, "handoff_pass u;")]:
            with self.subTest(directives):
                good, output = Nginx.test(self.directory, http=upstreams + self.location(directives))
                self.assertTrue(good, output)
                self.assertEqual(output.count(said), int(warned), output)

    def test_attempt_that_takes_all_the_time_of_what_a_variable_names(self):
        """It may come later, and not every upstream is for handoffs."""
        hasty = "location /v { handoff_pass $arg_a; handoff_timeout 500ms; }"
        for warned, where in [
                (True, "location /d { handoff_pass unix:/d/; }"),
                (False, "location /d { handoff_pass unix:/d; }"),
                (False, "location /d { return 200; } } "
                        "upstream web { server 127.0.0.1:1; server 127.0.0.1:2;")]:
            with self.subTest(where):
                good, output = Nginx.test(self.directory, http="server { listen 127.0.0.1:1; "
                                          + hasty + where + " }")
                self.assertTrue(good, output)
                self.assertEqual("goes to no other one" in output, warned, output)

    def test_connections_are_enough_for_targets_and_a_client(self):
        """Those of both modules, and what listens, but not what only a variable may name. Of what
        has reuseport each worker has one."""
        http = ("upstream u { server unix:/u; } server { listen 127.0.0.1:1 reuseport; "
                "listen unix:b.sock; location /v { handoff_pass $arg_a; } "
                "location /a { handoff_pass unix:/a; } location /again { handoff_pass unix:/a; } "
                "location /limits { handoff_pass unix:/a; handoff_max_in_flight 1; } }")
        stream = "server { listen 127.0.0.1:3; handoff_pass unix:/a; }"
        for parts, sockets, targets in [
                ({"http": http}, 2, 2), ({"stream": stream}, 1, 1),
                ({"http": http, "stream": stream}, 3, 3)]:
            with self.subTest(parts):
                needed = sockets + targets + 2
                good, output = Nginx.test(self.directory, **parts, connections=needed)
                self.assertTrue(good, output)
                good, output = Nginx.test(self.directory, **parts, connections=needed - 1)
                self.assertFalse(good, output)
                self.assertIn(f"{needed - 1} worker_connections are not enough for {sockets} "
                              f"listening sockets, {targets} targets of \"handoff_pass\"", output)
                self.assertIn(f"at least {needed} are needed", output)
        good, output = Nginx.test(self.directory, connections=4, http="upstream u { server unix:/u; } "
                                  + self.location("handoff_pass $arg_a;"))
        self.assertTrue(good, output)

    def test_word_that_is_no_metadata_is_warned_of(self):
        for warned, metadata in [
                (True, "defualt"), (True, "off"), (False, "escape=none default"),
                (True, "defualt user=$remote_user"),
                (False, "default"), (False, "default user=$remote_user"), (False, "$uri"),
                (False, "request $uri"), (False, "user=$remote_user"), (False, "''"),
                (False, """'{"role":"edge"}'""")]:
            with self.subTest(metadata):
                good, output = Nginx.test(self.directory, http=self.location(
                    f"handoff_pass unix:/a.sock; handoff_metadata {metadata};"))
                self.assertTrue(good, output)
                self.assertEqual("as their metadata" in output, warned, output)
        # These are a word, most of the time.
        good, output = Nginx.test(self.directory, http=self.location(
            "handoff_pass unix:/a.sock; handoff_service app; handoff_correlation app;"))
        self.assertTrue(good and "warn" not in output, output)

    def test_sample_loads(self):
        with open("../handoff.conf.sample", encoding="ascii") as file:
            http, stream = file.read().replace("/var/log/nginx", self.directory).split("# stream {")
        stream = "".join(line.removeprefix("#") for line in stream.splitlines(keepends=True))
        good, output = Nginx.test(self.directory, http=http, stream=stream.rpartition("}")[0])
        self.assertTrue(good, output)

    def test_status_zone_is_checked(self):
        location = self.location("handoff_status;")
        self.check('invalid size "1k", it is at least 32768', http="handoff_status_zone 1k;"
                   + location)
        self.check('"handoff_status_zone" directive is duplicate',
                   http=2 * "handoff_status_zone 1m;" + location)
        self.check('"handoff_status" directive is not allowed here',
                   http="server { listen 127.0.0.1:1; handoff_status; }")
        self.check('"handoff_status_zone" directive is not allowed here',
                   http="server { listen 127.0.0.1:1; handoff_status_zone 1m; }")

    def test_what_is_right_loads(self):
        good, output = Nginx.test(
            self.directory,
            http="handoff_status_zone 64k; handoff_attempt_timeout 1ms; handoff_queue 0;"
                 "upstream later { server unix:/a/ weight=2; server unix:@b backup; server unix:/c "
                 "down; } server { listen 127.0.0.1:4; handoff_queue 10 timeout=1ms; "
                 "location / { handoff_pass LATER; } location /d { handoff_pass unix:/d/; } "
                 "location /c { handoff_pass unix:/a:b/c:d; } location /@ { handoff_pass unix:@a:/; } "
                 "location /v { handoff_pass unix:/$host/; } location = /s { handoff_status; } }"
                 "handoff_timeout 1s; handoff_max_in_flight 4096; handoff_max_fails 0;"
                 "handoff_fail_timeout 1ms; handoff_service $host; handoff_correlation $request_id;"
                 "handoff_metadata escape=none a $uri; " +
                 self.location("handoff_pass unix:@abstract; handoff_metadata escape=json '$uri';"),
            stream="handoff_status_zone 1m; handoff_queue 5; handoff_timeout 1s; "
                   "server { listen 127.0.0.1:1; handoff_pass unix:/a.sock; } "
                   "server { listen 127.0.0.1:2; proxy_pass 127.0.0.1:3; "
                   "handoff_pass unix:/a.sock; }")
        self.assertTrue(good, output)


if __name__ == "__main__":
    unittest.main()
