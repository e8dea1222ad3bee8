"""What the tests of mod_handoff stand on: an Apache of their own, in a directory of their own, and the
backend and the clients of the nginx modules' tests."""

import atexit
import glob
import os
import pwd
import re
import shutil
import signal
import tempfile

import client
import harness
from harness import Case, Process, free_port, wait_until

APACHE = os.environ.get("APACHE_PROGRAM", "/usr/sbin/apache2")
MODULES = os.environ["APACHE_TESTS_MODULES"]  # where Apache's own modules are
MPMS = os.environ.get("APACHE_TESTS_MPMS", "event prefork").split()

# Apache does not run as root, and its children may only use a backend of their own user.
USER = {"user": "www-data", "group": "www-data", "extra_groups": []} if os.getuid() == 0 else {}

# What the children must be able to read, wherever this tree is.
STAGE = tempfile.mkdtemp(prefix="handoff-apache-stage-")
atexit.register(shutil.rmtree, STAGE)
for path in [f"{harness.BUILD}/backend", os.environ["APACHE_TESTS_MODULE"],
             *glob.glob(f"{os.environ['LD_LIBRARY_PATH']}/libhandoff.so.0")]:
    shutil.copy(path, STAGE)
os.chmod(STAGE, 0o755)
harness.BUILD = os.environ["LD_LIBRARY_PATH"] = STAGE

LOAD = """authz_core alias rewrite setenvif headers proxy proxy_http unique_id remoteip reqtimeout
    status""".split()

# As many workers with each, so that the tests are the same; but worker counts also the children that a
# graceful restart waits for.
MPM = {
    "event": """
        StartServers 2
        ServerLimit 6
        ThreadsPerChild 25
        MinSpareThreads 25
        MaxSpareThreads 150
        MaxRequestWorkers 50
        AsyncRequestWorkerFactor 20
    """,
    "worker": """
        StartServers 2
        ServerLimit 6
        ThreadsPerChild 25
        MinSpareThreads 25
        MaxSpareThreads 150
        MaxRequestWorkers 150
    """,
    "prefork": """
        StartServers 40
        MinSpareServers 40
        MaxSpareServers 60
        MaxRequestWorkers 50
    """,
}

CONFIGURATION = """
ServerRoot {directory}
DefaultRuntimeDir {directory}
PidFile {directory}/apache.pid
Mutex pthread
{load}
{mpm}
ServerName localhost
Listen 127.0.0.1:{port}
ListenBacklog 4096
Timeout 60
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 60
GracefulShutdownTimeout 20
LogLevel warn handoff:info
ErrorLog {directory}/error.log
LogFormat "%U %>s %B handoff=%{{handoff}}n reason=%{{handoff-reason}}n" short
CustomLog {directory}/access.log short
ProxyTimeout 60
HandoffTimeout 1h
{server}
"""

# The usual server: everything is handed over, and what is not is proxied.
HANDED_OVER = """
RewriteEngine On
RewriteCond %{{QUERY_STRING}} id=(.*)
RewriteRule ^/nginx$ - [E=id:%1,R=404]
RewriteRule ^/own$ - [R=404]
ErrorDocument 404 "nginx %{{reqenv:id}}"
<LocationMatch "^/(?!nginx$|own$|server-status$)">
    HandoffPass unix:{directory}/handoff.sock
</LocationMatch>
<Location /server-status>
    SetHandler server-status
    ProxyPass !
</Location>
ProxyPass / unix:{directory}/fallback.sock|http://localhost/ disablereuse=On
"""


def number(name, otherwise):
    """A count from the environment, by which a test can be made a soak."""
    return int(os.environ.get(f"APACHE_TESTS_{name}", otherwise))


class Backend(harness.Backend):
    """The test backend, as Apache's user."""

    def __init__(self, *arguments):
        popen = harness.subprocess.Popen
        harness.subprocess.Popen = lambda *a, **more: popen(*a, **more, **USER)
        try:
            super().__init__(*arguments)
        finally:
            harness.subprocess.Popen = popen


class Apache(Process):
    """A parent and its children, in a process group of their own: prefork ends the whole group."""

    def __init__(self, directory, arguments=()):
        super().__init__([APACHE, "-D", "FOREGROUND", "-f", f"{directory}/apache.conf", *arguments],
                         directory, start_new_session=True, **USER)

    def workers(self):
        assert self.process.poll() is None, f"Apache has ended: {self.process.poll()}"
        pid = self.process.pid
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return {int(child) for child in file.read().split()}

    def kill(self):
        if self.process.poll() is None:
            children = self.workers()
            self.process.kill()
            for child in children:
                try:
                    os.kill(child, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        super().kill()

    def lines(self, name):
        if not os.path.exists(f"{self.directory}/{name}.log"):
            return []  # it listens first
        with open(f"{self.directory}/{name}.log", encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()


class ApacheCase(Case):
    """A test of one MPM. When it ends, Apache must have ended in order, and each line of its error log
    from the level warn on must match one of `expected`. An offer waits an hour for its backend."""
    mpm = "event"
    FALLBACK = r"handoff:info.* not handed over: offer to \"[^\"]*/\w+\.sock\": "

    def setUp(self):
        super().setUp()
        os.chmod(self.directory, 0o755)
        if USER:
            user = pwd.getpwnam(USER["user"])
            os.chown(self.directory, user.pw_uid, user.pw_gid)
        self.apache = None
        self.expected += [r"\[mpm_\w+:", r"\[core:(notice|warn)\]", r"AH00098: pid file"]

    def start_backend(self, *options, name="backend", sockets=("handoff.sock", "echo.sock")):
        return self.add_backend(name, "-h", sockets[0], "-e", sockets[1], *options)

    def start_fallback(self):
        return self.add_backend("fallback", "-u", "fallback.sock")

    def add_backend(self, name, *options):
        backend = Backend(self.directory, name, *options)
        self.backends.append(backend)
        self.addCleanup(backend.kill)
        return backend

    def configure(self, server, load=()):
        modules = [f"LoadModule {name}_module {MODULES}/mod_{name}.so"
                   for name in [f"mpm_{self.mpm}", *LOAD, *load]]
        with open(f"{self.directory}/apache.conf", "w", encoding="ascii") as file:
            file.write(CONFIGURATION.format(
                directory=self.directory, port=self.port, mpm=MPM[self.mpm], server=server,
                load="\n".join([*modules, f"LoadModule handoff_module {STAGE}/mod_handoff.so"])))

    def start_apache(self, server=HANDED_OVER, more="", load=()):
        self.port = free_port()
        fill = {"directory": self.directory, "port": self.port}
        self.configure((more + server).format(**fill), load)
        self.apache = Apache(self.directory)
        self.addCleanup(self.apache.kill)
        wait_until(lambda: self.is_ready() and self.starts(), "Apache has started")

    def is_ready(self):
        assert self.apache.process.poll() is None, "Apache has ended"
        with harness.socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def start(self, *options, **parts):
        """The usual three: a backend, another for what is not handed over, and Apache."""
        self.backend = self.start_backend(*options)
        self.fallback = self.start_fallback()
        self.start_apache(**parts)

    def starts(self):
        return sum("resuming normal operations" in line for line in self.apache.lines("error"))

    def graceful(self):
        """A graceful restart, as `apachectl graceful`. Gives the old children. A second signal before
        Apache has read its configuration again would end it."""
        old, starts = self.apache.workers(), self.starts()
        self.apache.signal(signal.SIGUSR1)
        wait_until(lambda: self.starts() > starts, "Apache has started again")
        wait_until(lambda: len(self.apache.workers() - old) >= 2, "new children")
        return old

    def stop_apache(self):
        self.apache.signal(signal.SIGTERM)
        self.assertEqual(self.apache.wait(), 0)

    def check_log(self):
        unexpected = [line for line in self.apache.lines("error")
                      if not any(re.search(pattern, line) for pattern in self.expected)]
        self.assertEqual(unexpected[:10], [], f"{len(unexpected)} lines in Apache's log")

    def stop_all(self):
        self.stop_apache()
        self.check_log()
        for backend in self.backends:
            backend.kill()
        self.apache = None
        self.backends.clear()
        for log in glob.glob(f"{self.directory}/*.log"):
            os.remove(log)

    def tearDown(self):
        if self.failed:
            if self.apache:
                print("\n".join(self.apache.lines("error")[-20:]))
            return
        super().tearDown()
        if self.apache and self.apache.process.poll() is None:
            self.stop_apache()
        if self.apache:
            self.check_log()

    def ask(self, data):
        """The answer to a client of its own."""
        async def one(_):
            connection = await client.Connection.open(self.port)
            answer = await connection.ask(data)
            connection.close()
            return answer

        [answer] = client.run(1, 1, one)
        return answer

    def reasons(self):
        """What Apache has logged for what it did not hand over."""
        return [line.rpartition("not handed over: ")[2] for line in self.apache.lines("error")
                if "not handed over: " in line]

    def may_fall_back(self):
        self.expected.append(r"handoff:info.* not handed over: ")

    def answered_by_application(self):
        """How often the application was asked for each id."""
        with open(f"{self.directory}/fallback.log", encoding="ascii") as file:
            return harness.collections.Counter(
                line.split()[1] for line in file if line.startswith("accel "))


def for_each_mpm(namespace, *cases):
    """Makes of each case one for each MPM, under names that unittest finds."""
    for case in cases:
        for mpm in MPMS:
            name = f"{case.__name__}_{mpm}"
            namespace[name] = type(name, (case,), {"mpm": mpm, "__module__": namespace["__name__"]})
        del namespace[case.__name__]
