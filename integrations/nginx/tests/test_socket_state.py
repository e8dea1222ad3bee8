"""The socket that a backend gets: as a freshly accepted one, but for TCP_NODELAY, whatever nginx has
done on it before; and no answer waits for a timer of TCP's."""

import ctypes
import fcntl
import os
import socket
import statistics
import sys
import time
import unittest
from unittest import mock

from client import Connection, request, run
from harness import NO_LIMIT, PATIENCE, Case, number

import handoff

TIMES = number("TIMES", 15)  # of each measurement; the median counts

# What the two delays were: of TCP_CORK 200 ms, of a delayed acknowledgement 40 ms.
DELAY = 0.040

# Half of it, and more where the same takes that long on an ordinary connection.
LIMIT = DELAY / 2
SLOWER = 5

FILE = 4000

# As in Debian's nginx.conf.
HTTP = """
    sendfile on;
    tcp_nopush on;
    server {{
        listen 127.0.0.1:{port};
        {server}
        location /file {{ root {directory}; }}
        location = /text {{ return 200 "text"; }}
        location /uncorked {{
            tcp_nopush off;
            handoff_pass unix:{directory}/python.sock;
        }}
        location / {{
            handoff_pass unix:{directory}/python.sock;
            error_page 502 504 = /file;
        }}
    }}
"""

STREAM = """
    server {{
        listen 127.0.0.1:{port};
        {server}
        handoff_pass unix:{directory}/python.sock;
    }}
"""

# These the kernel itself keeps for each connection; they are counts, guesses and names.
KERNELS = {
    (socket.SOL_SOCKET, option) for option in (
        7,   # SO_SNDBUF, which grows with what is sent
        8,   # SO_RCVBUF
        28,  # SO_PEERNAME
        49,  # SO_INCOMING_CPU
        55,  # SO_MEMINFO
        56,  # SO_INCOMING_NAPI_ID
        57,  # SO_COOKIE
    )
} | {
    (socket.IPPROTO_TCP, option) for option in (
        2,   # TCP_MAXSEG, as far as it has tried
        10,  # TCP_WINDOW_CLAMP, which follows SO_RCVBUF
        11,  # TCP_INFO
        12,  # TCP_QUICKACK, which is off while answers follow requests
        24,  # TCP_TIMESTAMP
        26,  # TCP_CC_INFO
        35,  # TCP_ZEROCOPY_RECEIVE, which tells of what has come
    )
}

LIBC = ctypes.CDLL(None, use_errno=True)

NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY)
KEEPALIVE = (socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def option_of(connection, level, option):
    """Its bytes, or the number of an error. Some options read what they are given: it is zero."""
    value = ctypes.create_string_buffer(1024)
    length = ctypes.c_uint32(len(value))
    if LIBC.getsockopt(connection.fileno(), level, option, value, ctypes.byref(length)) == -1:
        return ctypes.get_errno()
    return value.raw[:length.value]


def state(connection):
    """Each option that a socket has, and its file's flags."""
    found = {}
    for level, last in (socket.SOL_SOCKET, 127), (socket.IPPROTO_TCP, 127), (socket.IPPROTO_IP, 51):
        for option in range(1, last + 1):  # of IP what follows is the port, and netfilter's
            if (level, option) not in KERNELS:
                found[level, option] = option_of(connection, level, option)
    for name, command in ("flags", fcntl.F_GETFL), ("owner", fcntl.F_GETOWN), ("signal", 11):
        found[name] = fcntl.fcntl(connection, command)  # 11 is F_GETSIG
    return found


def number_of(value):
    return int.from_bytes(value, sys.byteorder) if isinstance(value, bytes) else value


def difference(one, other):
    """What differs: its value in `one`."""
    return {name: number_of(one[name]) for name in one if one[name] != other[name]}


def read(client, length):
    data = b""
    while len(data) < length:
        part = client.recv(length - len(data))
        if not part:
            raise EOFError(f"the connection has ended after {data!r}")
        data += part
    return data


def read_head(client):
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += read(client, 1)
    return data


def connect_as_given(arrival):
    if arrival._connection is None:
        arrival._connection = socket.socket(fileno=arrival._fd.value)
    arrival._fd.value = -1


class State(Case):
    """The backend is this process."""

    def setUp(self):
        super().setUp()
        with open(f"{self.directory}/file", "wb") as file:
            file.write(bytes(FILE))
        # As the library gives it, and not as Python wants it.
        patch = mock.patch.object(handoff.backend.Arrival, "_connect", connect_as_given)
        patch.start()
        self.addCleanup(patch.stop)
        self.python = handoff.Backend.listen(f"{self.directory}/python.sock")
        self.addCleanup(self.python.close)

    def begin(self, server="", part="http"):
        self.start_nginx(**{part: HTTP if part == "http" else STREAM}, server=server)

    def connect(self, port=None):
        client = socket.create_connection(("127.0.0.1", port or self.port), PATIENCE)
        self.addCleanup(client.close)
        # It acknowledges late, as clients do some time after the beginning.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        return client

    def arrival(self):
        arrival = self.python.accept(PATIENCE)
        self.assertIsNotNone(arrival, "nothing has arrived")
        self.addCleanup(arrival.connection.close)
        return arrival

    def accepted(self, *options):
        """A client and its fresh connection, with nothing but what the listener passes on."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for option in options:
                listener.setsockopt(*option, 1)
            client = self.connect(listener.getsockname()[1])
            connection, _ = listener.accept()
        self.addCleanup(connection.close)
        connection.setblocking(False)
        return client, connection


class Options(State):
    def check(self, arrival, expected=None, *options):
        _, fresh = self.accepted(*options)
        self.assertEqual(difference(state(arrival.connection), state(fresh)),
                         {NODELAY: 1} if expected is None else expected)

    def test_first_request(self):
        self.begin()
        client = self.connect()
        client.sendall(request("a"))
        self.check(self.arrival())

    def test_request_after_others(self):
        self.begin()
        for path, length in (b"/file", FILE), (b"/text", 4):
            with self.subTest(path):
                client = self.connect()
                client.sendall(b"GET %s HTTP/1.1\r\nHost: test\r\n\r\n" % path)
                read_head(client)
                read(client, length)
                client.sendall(request("a"))
                self.check(self.arrival())

    def test_request_in_a_pipeline(self):
        self.begin()
        for path in b"/file", b"/text":
            for what in "r", "uncorked":
                with self.subTest(path, what=what):
                    client = self.connect()
                    client.sendall(b"GET %s HTTP/1.1\r\nHost: test\r\n\r\n" % path +
                                   request("a", what=what))
                    self.check(self.arrival())

    def test_request_with_a_body_that_waits(self):
        self.begin()
        client = self.connect()
        client.sendall(request("a", body=b"body")[:-2])
        self.check(self.arrival())

    def test_request_that_waited_for_room(self):
        self.begin("handoff_max_in_flight 1; handoff_queue 10; handoff_timeout 1h;")
        clients = [self.connect() for _ in range(6)]
        for client in clients:
            client.sendall(b"GET /file HTTP/1.1\r\nHost: test\r\n\r\n" + request("a"))
        for client in clients:
            self.check(self.arrival())

    def test_configuration_without_tcp_nodelay(self):
        self.begin("tcp_nodelay off;")
        client = self.connect()
        client.sendall(request("a"))
        self.check(self.arrival())

    def test_options_of_the_listener_stay(self):
        text = HTTP.replace("listen 127.0.0.1:{port};", "listen 127.0.0.1:{port} so_keepalive=on;")
        self.start_nginx(http=text)
        client = self.connect()
        client.sendall(request("a"))
        arrival = self.arrival()
        self.check(arrival, {NODELAY: 1, KEEPALIVE: 1})
        self.check(arrival, {NODELAY: 1}, KEEPALIVE)

    def test_stream(self):
        self.begin(part="stream")
        client = self.connect(self.stream_port)
        client.sendall(b"hello")
        self.check(self.arrival())

    def test_client_of_a_unix_socket(self):
        self.start_nginx(http=HTTP.replace("127.0.0.1:{port}", "unix:{directory}/nginx.sock"))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{self.directory}/nginx.sock")
            client.sendall(b"GET /file HTTP/1.1\r\nHost: test\r\n\r\n" + request("a"))
            arrival = self.arrival()
            self.assertEqual(arrival.connection.family, socket.AF_UNIX)
            self.assertTrue(fcntl.fcntl(arrival.connection, fcntl.F_GETFL) & os.O_NONBLOCK)


class Delays(State):
    def check(self, measure, connect):
        """Compares the median of what is measured with that on ordinary connections."""
        def ordinary():
            client, connection = self.accepted()
            connection.setsockopt(*NODELAY, 1)
            return client, connection

        usual = statistics.median(measure(*ordinary()) for _ in range(TIMES))
        ours = statistics.median(measure(*connect()) for _ in range(TIMES))
        self.assertLess(ours, LIMIT + SLOWER * usual, f"usually it takes {usual} seconds")

    @staticmethod
    def answer(client, connection):
        """How long an answer takes, and the next one."""
        since = time.monotonic()
        for _ in range(2):
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            read_head(client)
            read(client, 2)
        return time.monotonic() - since

    @staticmethod
    def events(client, connection):
        """How long it takes until the first event of a stream is there. It comes by itself."""
        since = time.monotonic()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        connection.send(b"data: 1\n\n")
        read_head(client)
        read(client, 9)
        return time.monotonic() - since

    def ask_in_a_pipeline(self):
        client = self.connect()
        client.sendall(b"GET /file HTTP/1.1\r\nHost: test\r\n\r\n" + request("a"))
        connection = self.arrival().connection
        since = time.monotonic()
        read_head(client)
        read(client, FILE)
        self.waited.append(time.monotonic() - since)
        return client, connection

    def ask(self):
        client = self.connect()
        client.sendall(request("a"))
        return client, self.arrival().connection

    def test_answer_in_a_pipeline_does_not_wait(self):
        self.waited = []
        self.begin()
        self.check(self.answer, self.ask_in_a_pipeline)
        self.assertLess(statistics.median(self.waited), LIMIT, "nginx's own answer waits")

    def test_first_event_does_not_wait(self):
        self.begin()
        self.check(self.events, self.ask)

    def test_first_event_in_a_pipeline_does_not_wait(self):
        self.waited = []
        self.begin()
        self.check(self.events, self.ask_in_a_pipeline)

    def test_first_event_of_a_stream_does_not_wait(self):
        self.begin(part="stream")

        def connect():
            client = self.connect(self.stream_port)
            client.sendall(b"hello")
            return client, self.arrival().connection

        self.check(self.events, connect)


class Fallback(Case):
    """nginx serves on, with a socket that is as it thinks."""

    def test_options_and_answers_after_a_fallback(self):
        self.expected.append(self.FALLBACK)
        with open(f"{self.directory}/file", "wb") as file:
            file.write(bytes(FILE))
        self.start("-r", 1, "-x", "k", http=HTTP.replace("python.sock", "handoff.sock"),
                   server=NO_LIMIT)
        file_and_handoff = b"GET /file HTTP/1.1\r\nHost: test\r\n\r\n" + request("a")

        async def one(_):
            connection = await Connection.open(self.port)
            for _ in range(3):
                await connection.send(2 * file_and_handoff)
                for _ in range(4):
                    self.assertEqual((await connection.read_answer()).body, bytes(FILE))
            # nginx prepares for the next request when it has sent its answer: it has, once it has
            # answered that one, too.
            for _ in range(2):
                await connection.send(b"GET /text HTTP/1.1\r\nHost: test\r\n\r\n")
                self.assertEqual((await connection.read_answer()).body, b"text")
            return connection

        run(1, 1, self.with_copies(one))

    def with_copies(self, one):
        """The backend has copies of what it rejected, and tells of their options."""
        async def check(index):
            connection = await one(index)
            options = set(self.backend.get("/copies").splitlines())
            connection.close()
            self.assertEqual(
                options, {b"nonblock=1 async=0 linger=0 lowat=1 cork=0 nodelay=1"})

        return check

    def test_fallback_of_a_unix_client_whose_address_is_another_one(self):
        self.expected.append(self.FALLBACK)
        self.start("-r", 1, "-x", "k", http="""
            server {{
                listen unix:{directory}/nginx.sock;
                set_real_ip_from unix:;
                real_ip_header X-Real-IP;
                error_page 502 504 = /nginx;
                location / {{ handoff_pass unix:{directory}/handoff.sock; }}
                location = /nginx {{ return 200 "nginx for $remote_addr"; }}
            }}""")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(f"{self.directory}/nginx.sock")
            client.sendall(request("a", headers=["X-Real-IP: 192.0.2.1"], close=True))
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        self.assertTrue(answer.endswith(b"nginx for 192.0.2.1"), answer)


if __name__ == "__main__":
    unittest.main()
