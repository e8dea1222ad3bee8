"""X-Accel-Redirect: an application behind proxy_pass decides to hand the connection over, also
after nginx has read a body."""

import random
import unittest

from client import Connection, chunked, digest, new_identity, request, run
from harness import NO_LIMIT, Case, number

REPEAT = number("ACCEL", 100)

# The application gets headers that the client did not send, and answers with them.
CONFIGURATION = """
    client_body_buffer_size 4k;
    client_header_buffer_size 512;
    large_client_header_buffers 8 2k;
    server {{
        listen 127.0.0.1:{port};
        {server}
        location / {{
            proxy_pass http://unix:{directory}/fallback.sock;
            proxy_set_header Accel $arg_to;
            proxy_set_header Accel-Data $arg_data;
        }}
        location /internal {{
            internal;
            handoff_pass unix:{directory}/handoff.sock;
            handoff_metadata $upstream_http_x_handoff_data;
            error_page 502 504 = @fallback;
        }}
        location @stream {{
            handoff_pass unix:{directory}/handoff.sock;
            handoff_metadata $upstream_http_x_handoff_data;
            handoff_correlation $request_id;
            error_page 502 504 = @fallback;
        }}
        location @fallback {{
            proxy_pass http://unix:{directory}/fallback.sock:$request_uri;
        }}
    }}
"""

WAYS = ["/internal", "/internal/more?x=y", "@stream"]


class Accel(Case):
    way = "handoff"
    options = ()
    server = ""

    def setUp(self):
        super().setUp()
        self.expected.append(self.IN_A_FILE)
        self.start("-m", 131000, *self.options, http=CONFIGURATION, server=self.server)

    def ask_all(self, count, make):
        """Sends what make(random, to, id) gives: bytes, and the body in them."""
        identities = []

        async def one(index):
            random_ = random.Random(index)
            identity = new_identity()
            identities.append(identity)
            to = WAYS[index % len(WAYS)]
            data, body = make(random_, to, identity)
            connection = await Connection.open(self.port)
            if index % 2:
                await connection.send_in_pieces(data, random_.randrange(200, 30000), 0.0005)
            else:
                await connection.send(data)
            answer = await connection.read_answer()
            self.assertEqual((answer.status, answer.headers["x-id"]), (200, identity))
            self.assertEqual(answer.headers["x-served-by"], self.way)
            self.assertEqual(answer.headers["x-body"], digest(body))
            if self.way == "handoff" and data.split(b" ", 1)[1].startswith(b"/head/"):
                self.assertEqual(answer.body, data[:data.index(b"\r\n\r\n") + 4])
            # The connection is in order afterwards.
            last = new_identity()
            identities.append(last)
            answer = await connection.ask(request(last))
            self.assertEqual(answer.headers["x-id"], last)
            connection.close()

        run(count, 16, one)
        return self.assert_once(identities)

    @staticmethod
    def odd_headers(random_):
        return [f"Odd_{i}:{' ' * random_.randrange(3)}" + "x" * random_.randrange(1500)
                for i in range(random_.randrange(5))]

    def test_get(self):
        self.ask_all(REPEAT, lambda random_, to, identity: (
            request(identity, what="head", argument=f"?to={to}",
                    headers=self.odd_headers(random_)), b""))

    def body_test(self, most, method="POST"):
        def make(random_, to, identity):
            body = random_.randbytes(random_.randrange(1, most))
            return request(identity, what="head", method=method, argument=f"?to={to}", body=body,
                           headers=self.odd_headers(random_)), body

        self.ask_all(REPEAT, make)

    def test_post_with_its_body_in_memory(self):
        self.body_test(3000)

    def test_post_with_its_body_in_a_file(self):
        self.body_test(50000)

    def test_put(self):
        self.body_test(20000, "PUT")

    def test_chunked_post(self):
        def make(random_, to, identity):
            body = random_.randbytes(random_.randrange(1, 40000))
            head = request(identity, what="head", method="POST", argument=f"?to={to}",
                           headers=["Transfer-Encoding: chunked", *self.odd_headers(random_)])
            return head + chunked(body, random_.randrange(50, 9000)), body

        self.ask_all(REPEAT, make)

    def test_post_without_a_body(self):
        self.ask_all(REPEAT // 4, lambda random_, to, identity: (
            request(identity, what="head", method="POST", argument=f"?to={to}", body=b""), b""))

    def test_post_with_the_next_request_behind_it(self):
        async def one(index):
            connection = await Connection.open(self.port)
            body, first, second = b"x" * (index * 97), new_identity(), new_identity()
            await connection.send(
                request(first, method="POST", argument=f"?to={WAYS[index % 3]}", body=body) +
                request(second))
            for identity, expected in (first, body), (second, b""):
                answer = await connection.read_answer()
                self.assertEqual(answer.headers["x-id"], identity)
                self.assertEqual(answer.headers["x-body"], digest(expected))
            connection.close()
            return first, second

        pairs = run(REPEAT, 16, one)
        self.assert_once([identity for pair in pairs for identity in pair])

    def test_application_that_was_asked_on_a_kept_connection(self):
        async def one(index):
            connection = await Connection.open(self.port)
            identities = [new_identity() for _ in range(3)]
            for number_, identity in enumerate(identities):
                argument = f"?to={WAYS[index % 3]}" if number_ == 2 else ""
                answer = await connection.ask(request(identity, argument=argument))
                self.assertEqual(answer.headers["x-served-by"],
                                 self.way if number_ == 2 else "unix")
            connection.close()
            return identities

        self.assert_once(sum(run(REPEAT, 16, one), []))


class AccelRefused(Accel):
    """The same with a backend that refuses: nginx proxies it all to the application again."""
    way = "unix"
    options = ("-r", 1)
    server = NO_LIMIT

    def setUp(self):
        super().setUp()
        self.expected.append(self.FALLBACK)


class AccelDetails(Case):
    def setUp(self):
        super().setUp()
        self.start(http=CONFIGURATION)

    def test_metadata_from_the_application_reaches_the_backend(self):
        async def one(index):
            connection = await Connection.open(self.port)
            argument = f"/x?to={WAYS[index]}&data=from-the-application-{index}"
            answer = await connection.ask(
                request(new_identity(), what="arrival", argument=argument))
            connection.close()
            return answer.body

        for index, body in enumerate(run(3, 1, one)):
            service, correlation, metadata = body.split(b"\n", 2)
            self.assertEqual(service, b"")
            self.assertEqual(metadata, b"from-the-application-%d" % index)
            self.assertEqual(len(correlation), 32 if WAYS[index] == "@stream" else 0)

    def test_client_cannot_ask_for_an_internal_location(self):
        async def one(_):
            connection = await Connection.open(self.port)
            answer = await connection.ask(request("x", what="internal"))
            connection.close()
            return answer.status

        self.assertEqual(run(1, 1, one), [404])

    def test_body_that_is_larger_than_an_offer_is_proxied(self):
        self.expected += [self.FALLBACK, self.IN_A_FILE]

        async def one(index):
            body = b"y" * 300000
            identity = new_identity()
            connection = await Connection.open(self.port)
            answer = await connection.ask(
                request(identity, method="POST", body=body, argument=f"?to={WAYS[index]}"))
            self.assertEqual((answer.status, answer.headers["x-body"]), (200, digest(body)))
            self.assertEqual(answer.headers["x-served-by"], "unix")
            connection.close()
            return identity

        self.assert_once(run(3, 1, one))


if __name__ == "__main__":
    unittest.main()
