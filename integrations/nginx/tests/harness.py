"""What the tests of the nginx modules stand on: processes in a directory of their own, and what
must be true of each when a test ends."""

import collections
import glob
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
import urllib.request

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
sys.path.append(os.path.join(ROOT, "tools"))
from waiting import PATIENCE, wait_until  # noqa: E402

BUILD = os.environ["NGINX_TESTS_BUILD"]  # where the test programs are
NGINX = os.environ.get("NGINX_PROGRAM", "nginx")
LOAD = os.environ["NGINX_LOAD"].split()  # the modules; none if they are in nginx itself
EVENTS = os.environ.get("NGINX_EVENTS", "")  # such as "use poll;"
UNDER = os.environ.get("NGINX_TESTS_UNDER", "").split()  # such as valgrind and its options
DESCRIPTORS = 16384  # that each process may have, and nginx's worker for its connections

CONFIGURATION = """
{load}
{user}
daemon off;
worker_processes 2;
{limit}
pid nginx.pid;
error_log error.log warn;
{main}
events {{ worker_connections {connections}; {events} }}
"""

HTTP = """
http {{
    log_format short '$request_uri $status outcome=$handoff_outcome reason=$handoff_reason '
                     'wait=$handoff_wait location=$handoff_location';
    access_log access.log short;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    keepalive_requests 1000000;
    {http}
}}
"""

# The usual server: everything is handed over, and what is not is proxied.
HANDED_OVER = """
    server {{
        listen 127.0.0.1:{port};
        {server}
        location / {{
            handoff_pass unix:{directory}/handoff.sock;
            error_page 502 504 = @fallback;
        }}
        location = /nginx {{ return 200 "nginx $arg_id"; }}
        location = /status {{ stub_status; }}
        location @fallback {{ proxy_pass http://unix:{directory}/fallback.sock; }}
    }}
"""

STREAM = """
    server {{
        listen 127.0.0.1:{port};
        {server}
        handoff_pass unix:{directory}/echo.sock;
        proxy_pass 127.0.0.1:{fallback};
    }}
"""

# Failures are no reason to stop trying.
NO_LIMIT = "handoff_max_fails 0;"


def number(name, otherwise):
    """A count from the environment, by which a test can be made a soak."""
    return int(os.environ.get(f"NGINX_TESTS_{name}", otherwise))


LIMIT = number("LIMIT", 600)  # seconds for a test, which hangs otherwise


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def raise_limits(wanted=DESCRIPTORS):
    """What thousands of clients take; the processes inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (OSError, ValueError):
        raise SystemExit(f"error: this needs {wanted} descriptors in a process: ulimit -Hn says "
                         f"{hard}") from None


def end_test(*_):
    raise AssertionError(f"it hangs: ended after {LIMIT} seconds")


raise_limits()
# These end the tests, or one of them, with an exception: through what cleans up.
signal.signal(signal.SIGTERM, signal.default_int_handler)
signal.signal(signal.SIGALRM, end_test)


def make_certificate(directory):
    """certificate.pem, for localhost, and key.pem."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", "key.pem", "-out", "certificate.pem", "-days", "2", "-subj", "/CN=localhost"],
        cwd=directory, check=True, capture_output=True)


def is_asleep(pid):
    """A process that waits for events has dealt with all that had come."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


class Process:
    """A program that runs in the directory of a test."""

    def __init__(self, command, directory, **more):
        self.directory = directory
        self.process = subprocess.Popen(command, cwd=directory, text=True, **more)

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self):
        return self.process.wait(timeout=PATIENCE)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


class Backend(Process):
    """The test backend, which always listens on a TCP port too. Its name is that of its log."""

    def __init__(self, directory, name, *options):
        log = ["-l", f"{name}.log"] if name else []
        super().__init__([f"{BUILD}/backend", "-t", "0", "-p", "0", *log, *map(str, options)],
                         directory, stdout=subprocess.PIPE)
        self.port, self.echo_port = map(int, self.process.stdout.readline().split())

    def get(self, path):
        url = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return answer.read()

    def statistics(self):
        return json.loads(self.get("/stats"))

    def hold(self):
        """From now on it decides nothing."""
        self.get("/hold")

    def release(self):
        """Decides what it has held back."""
        self.get("/release")


class Nginx(Process):
    """A master process and its two workers."""

    under = UNDER

    def __init__(self, directory, **parts):
        """`parts` fill the configuration: http, stream, main, root's workers' user, descriptors (""
        for as many as this process may have), connections."""
        self.configure(directory, **parts)
        super().__init__(self.command(directory), directory)

    @classmethod
    def command(cls, directory):
        return [*cls.under, NGINX, "-p", directory, "-c", "nginx.conf", "-e", "error.log"]

    @staticmethod
    def configure(directory, http="", stream="", main="", user="root", descriptors=DESCRIPTORS,
                  connections=None):
        """Without a part its block is left out, though its module is loaded."""
        with open(f"{directory}/nginx.conf", "w", encoding="ascii") as file:
            file.write(CONFIGURATION.format(
                load="\n".join(f"load_module {path};" for path in LOAD), main=main,
                user=f"user {user};" if os.getuid() == 0 else "",
                limit=descriptors and f"worker_rlimit_nofile {descriptors};",
                connections=connections or descriptors, events=EVENTS))
            if http:
                file.write(HTTP.format(http=http))
            if stream:
                file.write(f"stream {{ {stream} }}\n")

    @staticmethod
    def test(directory, **parts):
        """What nginx -t says of a configuration, and whether it is in order."""
        Nginx.configure(directory, **parts)
        result = subprocess.run([*Nginx.command(directory), "-t"], text=True, cwd=directory,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return result.returncode == 0, result.stdout

    def workers(self):
        """The workers that take connections, and those that finish what they have."""
        pid = self.process.pid
        assert self.process.poll() is None, "nginx has ended"
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return {int(child) for child in file.read().split()}

    def reload(self):
        """Asks for new workers and gives the old ones."""
        old = self.workers()
        self.signal(signal.SIGHUP)
        wait_until(lambda: len(self.workers() - old) == 2, "new workers")
        return old

    def kill_workers(self):
        """Kills each of them, and gives them."""
        killed = self.workers()
        for worker in killed:
            os.kill(worker, signal.SIGKILL)
        return killed

    def kill(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)  # or it would begin new ones
            self.kill_workers()
        super().kill()

    def wait_for_end_of(self, workers):
        wait_until(lambda: not workers & self.workers(), "the old workers end")

    def descriptors(self):
        return {worker: len(os.listdir(f"/proc/{worker}/fd")) for worker in self.workers()}

    def log(self):
        with open(f"{self.directory}/error.log", encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()

    def access(self):
        with open(f"{self.directory}/access.log", encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()


def wait_for_channels(nginx, backend):
    """Each worker makes its channel from its start on. When it sleeps, it has said hello; when the
    backend sleeps after that, the welcome is on its way; when the worker sleeps again, the channel
    can be used."""
    workers = wait_until(lambda: len(nginx.workers()) == 2 and nginx.workers(), "two workers")
    for pids in workers, [backend.process.pid], workers:
        wait_until(lambda: all(map(is_asleep, pids)), "the channels are made")


class Case(unittest.TestCase):
    """A test with a directory. When it ends, nginx must have ended in order, and each line of its
    error log must match one of `expected`. An offer waits an hour for its backend, so that a slow
    machine is no reason for a fallback; tests of timeouts have their own."""

    IN_A_FILE = r"\[warn\] .* (request body|response) is buffered to a temporary file"
    FALLBACK = r"\[warn\] .* handoff to \"[^\"]*/\w+\.sock\" failed: "

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="handoff-nginx-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.expected = []
        self.nginx = None
        self.backends = []
        self.failed = False

    def _callTestMethod(self, method):
        # What tearDown() finds after a failure comes from that failure.
        self.failed = True
        signal.alarm(LIMIT)
        try:
            super()._callTestMethod(method)
        finally:
            signal.alarm(0)
        self.failed = False

    def start_backend(self, *options, name="backend", sockets=("handoff.sock", "echo.sock")):
        """One that takes handoffs of both kinds."""
        backend = Backend(self.directory, name, "-h", sockets[0], "-e", sockets[1], *options)
        self.backends.append(backend)
        self.addCleanup(backend.kill)
        return backend

    def start_fallback(self):
        """One that nginx proxies to."""
        backend = Backend(self.directory, "fallback", "-u", "fallback.sock")
        self.backends.append(backend)
        self.addCleanup(backend.kill)
        return backend

    new_port = staticmethod(free_port)

    def fill(self):
        """What else is filled in in the parts of a configuration."""
        return {"directory": self.directory,
                "fallback": self.backends[-1].echo_port if self.backends else 1}

    def start_nginx(self, http="", stream="", server="", **more):
        """Begins nginx; {port}, {directory}, {server} and so on in the parts are filled in."""
        self.port, self.stream_port = self.new_port(), self.new_port()
        fill = {"server": server, **self.fill()}
        patient = "handoff_timeout 1h;"
        self.parts = {"http": http and patient + http.format(port=self.port, **fill),
                      "stream": stream and patient + stream.format(port=self.stream_port, **fill),
                      **more}
        self.nginx = Nginx(self.directory, **self.parts)
        self.addCleanup(self.nginx.kill)
        # They inherit the listening sockets.
        wait_until(lambda: len(self.nginx.workers()) == 2, "two workers")

    def start(self, *options, **parts):
        """The usual three: a backend, another for what is not handed over, and nginx."""
        self.backend = self.start_backend(*options)
        self.fallback = self.start_fallback()
        self.start_nginx(**(parts or {"http": HANDED_OVER}))
        wait_for_channels(self.nginx, self.backend)

    def plain_port(self):
        """Where nginx answers without TLS."""
        return self.port

    def active(self):
        """How many clients nginx says it has; whoever asks is one of them."""
        url = f"http://127.0.0.1:{self.plain_port()}/status"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return int(answer.readline().split()[2])

    def get(self, path):
        """What nginx itself answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}",
                                    timeout=PATIENCE) as answer:
            return answer.read()

    def status(self):
        """What handoff_status says, at /handoff."""
        return json.loads(self.get("/handoff"))

    def answered(self):
        """How often each request was answered, by whomever: a counter of (way, id)."""
        found = collections.Counter()
        for path in glob.glob(f"{self.directory}/*.log"):
            if os.path.basename(path) in ("error.log", "access.log", "tries.log"):
                continue
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    way, identity = line.rstrip("\n").split(" ", 1)
                    if way != "accel" and identity:
                        found[way, identity] += 1
        return found

    def assert_once(self, identities):
        """Each of these was answered once, and nothing else was. Gives how many came which way."""
        each, ways = collections.Counter(), collections.Counter()
        for (way, identity), count in self.answered().items():
            each[identity] += count
            ways[way] += count
        twice = {identity: count for identity, count in each.items() if count != 1}
        self.assertEqual(twice, {}, "answered more than once")
        self.assertEqual(set(each) ^ set(identities), set(), "not answered, or not asked")
        return ways

    def stop_nginx(self):
        """Ends nginx, letting it finish."""
        self.nginx.signal(signal.SIGQUIT)
        self.assertEqual(self.nginx.wait(), 0)

    def stop_all(self):
        """Ends what start() has begun, so that it can begin anew."""
        self.stop_nginx()
        self.check_log()
        for backend in self.backends:
            backend.kill()
        self.nginx = None
        self.backends.clear()
        for log in glob.glob(f"{self.directory}/*.log"):
            os.remove(log)

    def check_log(self):
        unexpected = [line for line in self.nginx.log()
                      if not any(re.search(pattern, line) for pattern in self.expected)]
        self.assertEqual(unexpected[:10], [], f"{len(unexpected)} lines in nginx's log")

    def tearDown(self):
        if self.failed:
            if self.nginx:
                print("\n".join(self.nginx.log()[-20:]))
            return
        if self.nginx and self.nginx.process.poll() is None:
            self.stop_nginx()
        if self.nginx:
            self.check_log()
        for backend in self.backends:
            self.assertIn(backend.process.poll(), (None, 0, -signal.SIGKILL), "a backend ended")
