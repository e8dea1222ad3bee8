"""What the tests of TLS stand on: certificates, a client whose records can be held back and cut,
and a capture of all that goes over the wire. They run in the machine of tools/vm."""

import atexit
import collections
import ctypes
import itertools
import os
import re
import select
import shutil
import socket
import ssl
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor

from client import Answer
from harness import BUILD, NGINX, PATIENCE, Case, is_asleep, number, wait_until

FULL = number("FULL", 0)  # all of it; otherwise what a quick check has time for

# Where nginx listens for TLS, and for nothing else. The kernel gives out no such ports by itself.
PORTS = range(20000, 30000)
ports = itertools.cycle(PORTS)

# In each request and answer: to be seen on the wire would be the end of all secrets.
SECRET = "SECRET-in-all-that-is-said"
# What the bodies that the backend makes are full of.
PATTERN = bytes(range(251))

NAMES = ("a.test", "b.test", "client.test")
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def make_certificates():
    """A directory with NAME.pem and NAME.key of each, and with all.pem."""
    directory = tempfile.mkdtemp(prefix="handoff-certificates-")
    atexit.register(shutil.rmtree, directory)
    for name in NAMES:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2",
             "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"],
            cwd=directory, check=True, capture_output=True)
    with open(f"{directory}/all.pem", "wb") as everyone:
        for name in NAMES:
            with open(f"{directory}/{name}.pem", "rb") as file:
                everyone.write(file.read())
    return directory


CERTIFICATES = make_certificates()


def context(version=None, ciphers=None, alpn=None, certificate=None):
    """How a client speaks TLS. It believes the certificates, and checks their names."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(f"{CERTIFICATES}/all.pem")
    if version:
        made.minimum_version = made.maximum_version = VERSIONS[version]
    if ciphers:
        made.set_ciphers(ciphers)
    if alpn:
        made.set_alpn_protocols(alpn)
    if certificate:
        made.load_cert_chain(f"{CERTIFICATES}/{certificate}.pem", f"{CERTIFICATES}/{certificate}.key")
    return made


# Making one takes longer than a handshake.
CONTEXTS = {None: context(), **{version: context(version) for version in VERSIONS}}

LIBSSL = ctypes.CDLL("libssl.so.3")
LIBSSL.SSL_get_version.restype = ctypes.c_char_p


class End(Exception):
    """The connection has ended: "close_notify", "alert ...", or without any of it "cut"."""


class Client:
    """A connection with TLS whose records are made here and sent as a test wants."""

    def __init__(self, port, version=None, made=None, name=NAMES[0], session=None, first=b""):
        """`first` goes in one write with the last message of the handshake, if that is a client's:
        in TLS 1.3, and where TLS 1.2 resumes a session."""
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.poll = select.poll()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (made or CONTEXTS[version]).wrap_bio(
            self.incoming, self.outgoing, server_hostname=name, session=session)
        self.plain = bytearray()  # read, and not yet asked for
        try:
            self._when_there_is_more(self.tls.do_handshake, flush=not first)
            if first:
                self.send(first)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # ---- records ----

    def seal(self, data):
        """The records that data becomes: one for each 16384 bytes."""
        self.tls.write(data)
        return self.outgoing.read()

    def close_notify(self):
        """The record that ends what this client sends."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read()

    def _openssl(self):
        """OpenSSL's object, for what Python has no call for. Python's has it behind its head and
        another pointer."""
        inner = self.tls._sslobj  # pylint: disable=protected-access
        place = id(inner) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)
        pointer = ctypes.c_void_p.from_address(place)
        assert LIBSSL.SSL_get_version(pointer).decode() == self.tls.version()
        return pointer

    def key_update(self):
        """The record of TLS 1.3 by which this client takes another key for what it sends."""
        pointer = self._openssl()
        assert LIBSSL.SSL_key_update(pointer, 0) == 1
        assert LIBSSL.SSL_do_handshake(pointer) == 1
        return self.outgoing.read()

    def renegotiation(self):
        """The record of TLS 1.2 that begins another handshake."""
        pointer = self._openssl()
        assert LIBSSL.SSL_renegotiate(pointer) == 1
        assert LIBSSL.SSL_do_handshake(pointer) == -1  # it waits for the answer
        return self.outgoing.read()

    def end_sending(self):
        """Without TLS, as far as TCP is concerned."""
        self.socket.shutdown(socket.SHUT_WR)

    def push(self, records):
        """Sends bytes as they are, and takes what comes meanwhile."""
        left = memoryview(records)
        self.poll.register(self.socket, select.POLLIN | select.POLLOUT)
        while left:
            [(_, events)] = self.poll.poll(PATIENCE * 1000) or [(0, 0)]
            if events & (select.POLLERR | select.POLLHUP):
                raise End("cut")
            if events & select.POLLIN and not self._take():
                self.poll.modify(self.socket, select.POLLOUT)
            if events & select.POLLOUT:
                left = left[self.socket.send(left, socket.MSG_DONTWAIT):]
            elif not events:
                raise TimeoutError("no room to send")

    def send(self, data):
        self.push(self.seal(data))

    def _take(self):
        """Whether more has come, for which it waits."""
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionError:
            data = b""
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()
        return data

    def _flush(self):
        if self.outgoing.pending:
            self.socket.sendall(self.outgoing.read())

    def _when_there_is_more(self, call, *arguments, flush=True):
        while True:
            try:
                found = call(*arguments)
            except ssl.SSLWantReadError:
                self._flush()
                self._take()
                continue
            except ssl.SSLError:
                self._flush()  # the alert
                raise
            if flush:
                self._flush()
            return found

    # ---- data ----

    def more(self, size=1 << 16):
        """What comes next, at least one byte; End if nothing does."""
        if self.plain:
            data = bytes(self.plain[:size])
            del self.plain[:size]
            return data
        try:
            data = self._when_there_is_more(self.tls.read, size)
        except (ssl.SSLEOFError, ConnectionError):
            raise End("cut") from None
        except ssl.SSLZeroReturnError:
            raise End("close_notify") from None
        except ssl.SSLError as error:
            raise End(f"alert {error.reason}") from None
        if not data:
            raise End("close_notify")
        return data

    def read(self, size):
        data = bytearray()
        while len(data) < size:
            data += self.more(size - len(data))
        return bytes(data)

    def read_until(self, mark):
        data = bytearray()
        while (at := data.find(mark)) == -1:
            data += self.more()
        self.plain[:0] = data[at + len(mark):]
        return bytes(data[:at + len(mark)])

    def read_head(self):
        first, *lines = self.read_until(b"\r\n\r\n")[:-4].decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return Answer(int(first.split(" ")[1]), {k.lower(): v for k, v in headers.items()}, b"")

    def read_answer(self):
        head = self.read_head()
        if head.headers.get("transfer-encoding") == "chunked":
            body = self.read_chunks()
        else:
            body = self.read(int(head.headers.get("content-length", 0)))
        return head._replace(body=body)

    def read_chunks(self):
        body = b""
        while size := int(self.read_until(b"\r\n"), 16):
            body += self.read(size + 2)[:-2]
        self.read(2)
        return body

    def ask(self, data):
        self.send(data)
        return self.read_answer()

    def read_end(self):
        """How the connection ends; before that nothing may come, and after it nothing either."""
        try:
            data = self.more()
        except End as end:
            if self.incoming.pending:
                raise AssertionError(f"something after {end}") from None
            try:
                after = self.socket.recv(1)
            except ConnectionError:
                after = b""
            assert after == b"", "something after the end"
            return str(end)
        raise AssertionError(f"more than an answer: {data!r}")

    def close(self):
        self.socket.close()


def ask(identity, what="r", method="GET", headers=(), body=None, close=False, argument="",
        host=NAMES[0]):
    """The bytes of an ordinary request. Its answers repeat the identity."""
    lines = [f"{method} /{what}/{identity}{argument} HTTP/1.1", f"Host: {host}", *headers,
             f"X-Secret: {SECRET}"]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


numbers = itertools.count()


def new_identity():
    """A name for a request, used once, with what must not be seen in it."""
    return f"{SECRET}-{next(numbers)}"


def in_threads(count, at_once, one):
    """one(index) for every index below `count`, so many at a time; their results."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, range(count)))


# ---- the wire and the kernel ---------------------------------------------------------------------


class Capture:
    """Sees every packet to and from PORTS, from its beginning on."""

    def __init__(self):
        self.process = subprocess.Popen(
            [f"{BUILD}/capture", str(PORTS.start), str(PORTS.stop - 1), SECRET,
             PATTERN[65:91].decode()], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == "ready\n"
        atexit.register(self.end)

    def end(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def seen(self):
        """Until now: packets, their bytes, those with a secret, those missed."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return Seen(*map(int, self.process.stdout.readline().split()))


Seen = collections.namedtuple("Seen", "packets bytes found missed")
capture = Capture()


def tls_stat():
    """What the kernel counts of its TLS."""
    with open("/proc/net/tls_stat", encoding="ascii") as file:
        return {name: int(count) for name, count in map(str.split, file)}


# ---- nginx ---------------------------------------------------------------------------------------

# Everything is handed over, and what is not is proxied; over plain TCP only nginx's own status.
TLS = """
    map $http_upgrade $upgrade {{ "" ""; default upgrade; }}
    log_format tls '$request_uri $handoff_tls $ssl_protocol $ssl_cipher $handoff_outcome';
    access_log tls.txt tls;
    ssl_certificate {certificates}/a.test.pem;
    ssl_certificate_key {certificates}/a.test.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_conf_command Options KTLS;
    server {{ listen 127.0.0.1:{plain}; location = /status {{ stub_status; }} }}
    server {{
        listen 127.0.0.1:{port} ssl;
        server_name a.test;
        {server}
        location / {{
            handoff_pass unix:{directory}/handoff.sock;
            error_page 502 504 = @fallback;
        }}
        location = /nginx {{ return 200 "nginx $arg_id"; }}
        location @fallback {{
            proxy_pass http://unix:{directory}/fallback.sock;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $upgrade;
            proxy_buffering off;
        }}
    }}
"""

TLS_STREAM = """
    ssl_certificate {certificates}/a.test.pem;
    ssl_certificate_key {certificates}/a.test.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_conf_command Options KTLS;
    server {{
        listen 127.0.0.1:{port} ssl;
        {server}
        handoff_pass unix:{directory}/echo.sock;
        proxy_pass 127.0.0.1:{fallback};
    }}
"""

# In a file that the tests read, because nginx's log must be empty.
INFO = "error_log info.txt info;"


class TlsCase(Case):
    """A test whose clients speak TLS. Nothing that they say may be seen on the wire, and when it ends
    the kernel must have forgotten them."""

    # nginx looks at the socket whether the client is still there while it proxies, and the kernel
    # has no answer when a close_notify waits.
    PEEK = r"\[alert\] .* recv\(\) failed \(5: Input/output error\)"

    def setUp(self):
        super().setUp()
        self.stat = tls_stat()
        self.seen = capture.seen()
        self.plain = None

    def expect_fallbacks(self):
        self.expected += [self.FALLBACK, self.IN_A_FILE, self.PEEK]

    def new_port(self):
        return next(ports)

    def fill(self):
        self.plain = self.plain or super().new_port()
        return {**super().fill(), "certificates": CERTIFICATES, "plain": self.plain}

    def start(self, *options, **parts):
        """The usual three; the parts are as in start_nginx()."""
        super().start(*options, **{"http": TLS, "main": INFO, **parts})

    def client(self, version=None, port=None, **more):
        client = Client(port or self.port, version, **more)
        self.addCleanup(client.close)
        return client

    def plain_port(self):
        return self.plain

    def read_file(self, name):
        with open(f"{self.directory}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()

    def reasons(self):
        """Why clients were not handed over, in this order."""
        return re.findall(r"not handed over: (.*?)(?:, client: .*)?$", self.read_file("info.txt"), re.M)

    def logged(self):
        """What the log says of each request: $handoff_reason and so on, by what was asked for."""
        lines = (line.split(" ") for line in self.read_file("tls.txt").splitlines())
        return {uri: words for uri, *words in lines}

    def settle(self):
        """Until nginx has dealt with all that was sent."""
        # The backend may not sleep: Linux 6.1 calls a socket readable that has a part of a record
        # behind a whole one.
        for _ in range(2):
            for pid in self.nginx.workers():
                wait_until(lambda pid=pid: is_asleep(pid), "it is dealt with")

    def since_start(self, name):
        return tls_stat()[name] - self.stat[name]

    def check_wire(self):
        now = capture.seen()
        self.assertGreater(now.packets, self.seen.packets, "nothing was captured")
        self.assertEqual((now.found - self.seen.found, now.missed - self.seen.missed), (0, 0),
                         "packets with secrets, packets missed")

    def tearDown(self):
        super().tearDown()
        if self.failed:
            if os.path.exists(f"{self.directory}/info.txt"):
                print("not handed over:", *sorted(set(self.reasons())), sep="\n    ")
            return
        self.check_wire()
        # The clients close last.
        self.doCleanups()
        current = [name for name in self.stat if name.startswith("TlsCurr")]
        wait_until(lambda: not any(tls_stat()[name] for name in current), "the kernel forgets them")


def handed_over(answer):
    """Whether the backend says that it got the client with TLS that the kernel does."""
    way, tls = answer.headers["x-served-by"], answer.headers["x-tls"]
    assert (way == "handoff") == (tls != "none"), (way, tls)
    return way == "handoff"


def openssl_in_nginx():
    """The version, such as (3, 0)."""
    output = subprocess.run([NGINX, "-V"], check=True, text=True, stderr=subprocess.PIPE).stderr
    found = re.search(r"running with OpenSSL (\d+)\.(\d+)", output) or \
        re.search(r"built with OpenSSL (\d+)\.(\d+)", output)
    return int(found[1]), int(found[2])


# Before OpenSSL 3.2 it decrypts what comes by TLS 1.3, until an offer.
KERNEL_DECRYPTS = openssl_in_nginx() >= (3, 2)

assert os.path.exists("/proc/net/tls_stat"), "this kernel does no TLS: make check-nginx-tls"
