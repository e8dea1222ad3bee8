"""The ways to bring a client to a backend that are compared, and how to run each.

bench/peers/peer.h says what a peer does and what its environment means. Here each is given a name,
and run once: run_move() without clients, run_serve() with them.
"""
import array
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

HERE = pathlib.Path(__file__).parent
LIMIT = 120  # seconds after which a run that hangs is ended
SPIN = 200  # microseconds for which a call looks before it sleeps, or returns with nothing


@dataclass
class Way:
    key: str
    title: str
    command: list
    moves: bool = True          # it moves connections; otherwise it does something instead
    proxies: bool = False       # that something is to stand between client and backend
    alone: bool = False         # without clients, and mostly one connection at a time
    one_descriptor: bool = True  # a message, and no checks
    environment: dict = field(default_factory=dict)
    pace: float = 1             # how many handoffs to measure, of those of the others


def all_ways(programs):
    def peer(name, *arguments):
        return [str(programs / "peers" / name), *arguments]

    def instead(key, title, command, proxies=True):
        return Way(key, title, command, moves=False, proxies=proxies, one_descriptor=False)

    def alone(key, title, program, **environment):
        return Way(key, title, peer(program), alone=True, one_descriptor=False,
                   environment=environment)

    return [
        Way("channel", "libhandoff, a channel", peer("channel"), one_descriptor=False),
        Way("plain", "plain C, one descriptor a message", peer("plain"), environment={"MANY": 1}),
        Way("plain-gather", "plain C, acknowledgements gathered", peer("plain"),
            environment={"MANY": 1, "GATHER": 1}),
        Way("plain-many", "plain C, 64 descriptors a message", peer("plain"),
            one_descriptor=False, environment={"MANY": 64}),
        Way("checks", "plain C, the same checks", peer("checks"), one_descriptor=False),
        Way("checks-parts", "plain C, the same checks, in two parts", peer("checks"),
            one_descriptor=False, environment={"PARTS": 2}),
        Way("checks-fourths", "plain C, the same checks, in four parts", peer("checks"),
            one_descriptor=False, environment={"PARTS": 4}),
        Way("checks-set", "plain C, the same checks, an epoll set", peer("checks"),
            one_descriptor=False, environment={"EPOLL_SET": 1}),
        Way("checks-set-parts", "plain C, the same checks, an epoll set, in two parts",
            peer("checks"), one_descriptor=False, environment={"EPOLL_SET": 1, "PARTS": 2}),
        Way("checks-set-fourths", "plain C, the same checks, an epoll set, in four parts",
            peer("checks"), one_descriptor=False, environment={"EPOLL_SET": 1, "PARTS": 4}),
        Way("sendfd", "Rust, sendfd", peer("rust", "sendfd")),
        Way("passfd", "Rust, passfd", peer("rust", "passfd")),
        Way("libuv", "libuv, uv_write2", peer("libuv")),
        Way("glib", "GLib, GUnixFDMessage", peer("glib")),
        Way("python", "Python, socket.send_fds", [sys.executable, str(HERE / "peers/python.py")],
            pace=0.5),
        Way("node", "Node, child_process", ["node", str(HERE / "peers/node.js")], pace=0.125),
        alone("channel-spinning", "libhandoff, a channel, spin_us", "channel", SPIN=SPIN),
        alone("blocking", "libhandoff, blocking calls", "blocking"),
        alone("spinning", "libhandoff, blocking calls, spin_us", "blocking", SPIN=SPIN),
        alone("checks-blocking", "plain C, the same checks, blocking", "checks", BLOCKING=1),
        alone("checks-spinning", "plain C, the same checks, spinning", "checks", BLOCKING=1,
              SPIN=SPIN),
        instead("reconnect", "reconnect, TCP", peer("instead", "reconnect"), proxies=False),
        instead("reconnect-unix", "reconnect, Unix socket", peer("instead", "reconnect-unix"),
                proxies=False),
        instead("copy", "copying proxy", peer("instead", "copy")),
        instead("splice", "splice proxy", peer("instead", "splice")),
        instead("nginx", "nginx proxy_pass, HTTP", None),
        instead("nginx-stream", "nginx proxy_pass, stream", None),
    ]


@dataclass
class Sample:
    """Nanoseconds for each handoff: elapsed, and of the processor on both sides; KiB at most."""
    elapsed: float
    broker: float
    backend: float
    broker_kib: int = 0
    backend_kib: int = 0
    times: list = None           # of the clients, to the first byte
    bytes_a_second: float = 0


def environment(way, values):
    merged = {**way.environment, **values}
    return {**os.environ, **{name: str(value) for name, value in merged.items()}}


def start(command, env=None):
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


def finish(process):
    """The lines of a program that reports and ends: {side: [number...]}."""
    output, _ = process.communicate(timeout=LIMIT)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(process.args)} ended with {process.returncode}")
    lines = [line.split() for line in output.splitlines() if line]
    return {words[0]: [float(word) for word in words[1:]] for words in lines}


class Started:
    """Programs that are ended if something fails on the way."""

    def __init__(self):
        self.processes = []

    def start(self, command, env=None):
        self.processes.append(start(command, env))
        return self.processes[-1]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                process.wait()
            process.stdout.close()


def sample_of(reports, count, elapsed=None):
    broker, backend = reports["broker"], reports["backend"]
    return Sample((elapsed or broker[0]) / count, broker[1] / count, backend[1] / count,
                  int(broker[2]), int(backend[2]))


def run_move(way, count, warm=0, in_flight=256, prefix=(), cpus=None, **parameters):
    """On the processors (of the broker, of the backend), or wherever the kernel puts them."""
    if cpus is not None:
        prefix = ["taskset", "-c", str(cpus[0]), *prefix]
        parameters["BACKEND_CPU"] = cpus[1]
    values = {"MODE": "move", "COUNT": count, "WARM": warm, "IN_FLIGHT": in_flight, **parameters}
    with Started() as started:
        process = started.start([*prefix, *way.command], environment(way, values))
        return sample_of(finish(process), count)


def run_client(programs, port, concurrency, warm, count):
    """How long it took, the bytes that were read, and the times to the first byte."""
    with tempfile.NamedTemporaryFile() as file:
        client = start([str(programs / "peers/client"), str(port), str(concurrency), str(warm),
                        str(count), file.name])
        elapsed, read = finish(client)["client"]
        # Many of these are sorted together later, which is faster when each is.
        times = sorted(array.array("I", file.read()))
    if len(times) != count:
        raise RuntimeError(f"{len(times)} of {count} clients were answered")
    return elapsed, read, times


def run_serve(programs, way, concurrency, count, warm=0, answer=128, prefix=()):
    values = {"MODE": "serve", "COUNT": count, "WARM": warm, "IN_FLIGHT": max(concurrency, 16),
              "ANSWER": answer}
    if way.command is None:
        return run_nginx(programs, way, concurrency, values, prefix)
    with Started() as started:
        process = started.start([*prefix, *way.command], environment(way, values))
        port = int(process.stdout.readline().split()[1])
        elapsed, read, times = run_client(programs, port, concurrency, warm, count)
        sample = sample_of(finish(process), count, elapsed)
    sample.times, sample.bytes_a_second = times, read / elapsed * 1e9
    return sample


# ---- nginx ----

NGINX = """
daemon off;
master_process off;
pid {prefix}/pid;
error_log stderr error;
worker_rlimit_nofile 16384;
{load}
events {{ worker_connections 8192; }}
{kind} {{
    {http}
    upstream backend {{ server unix:{prefix}/backend; {keep} }}
    server {{ listen 127.0.0.1:{port} backlog=4096; {location} }}
}}
"""

# As the documentation of the module upstream shows it; what is buffered stays in memory.
HTTP = {
    "kind": "http", "load": "", "keep": "keepalive 256;",
    "http": "access_log off; client_body_temp_path {prefix}/a; proxy_temp_path {prefix}/b; "
            "fastcgi_temp_path {prefix}/c; uwsgi_temp_path {prefix}/d; scgi_temp_path {prefix}/e;",
    "location": "location / { proxy_pass http://backend; proxy_http_version 1.1; "
                'proxy_set_header Connection ""; proxy_max_temp_file_size 0; }',
}
STREAM = {
    "kind": "stream", "load": "load_module /usr/lib/nginx/modules/ngx_stream_module.so;",
    "keep": "", "http": "", "location": "proxy_pass backend;",
}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_until(attempt):
    """The first result of `attempt` that is one."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        result = attempt()
        if result is not None:
            return result
        time.sleep(0.005)
    raise RuntimeError("it did not start within 10 seconds")


def listens(path):
    with socket.socket(socket.AF_UNIX) as connection:
        return True if connection.connect_ex(path) == 0 else None


def written_pid(file):
    """nginx writes it once it listens."""
    text = file.read_text() if file.exists() else ""
    return int(text) if text.endswith("\n") else None


def processor_ns(pid):
    """What one thread has used of the processor, which is all that nginx is here."""
    return int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def run_nginx(programs, way, concurrency, values, prefix):
    count, warm = values["COUNT"], values["WARM"]
    with tempfile.TemporaryDirectory(prefix="bench-nginx") as directory, Started() as started:
        port = free_port()
        words = dict(STREAM if way.key == "nginx-stream" else HTTP)
        words["http"] = words["http"].format(prefix=directory)
        config = pathlib.Path(directory, "nginx.conf")
        config.write_text(NGINX.format(prefix=directory, port=port, **words))
        backend = started.start(
            [*prefix, str(programs / "peers/instead"), "backend", f"{directory}/backend"],
            environment(way, values))
        wait_until(lambda: listens(f"{directory}/backend"))
        nginx = started.start([*prefix, "nginx", "-e", "stderr", "-p", directory, "-c", config])
        pid = wait_until(lambda: written_pid(pathlib.Path(directory, "pid")))
        if warm > 0:
            run_client(programs, port, concurrency, 0, warm)
        before = processor_ns(pid)
        elapsed, read, times = run_client(programs, port, concurrency, 0, count)
        used = processor_ns(pid) - before
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines()
                    if line.startswith("VmHWM"))
        os.kill(pid, 15)
        nginx.wait(LIMIT)
        reports = {"broker": [elapsed, used, peak], **finish(backend)}
    sample = sample_of(reports, count)
    sample.times, sample.bytes_a_second = times, read / elapsed * 1e9
    return sample
