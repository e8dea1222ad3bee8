"""What handoff_status says: of all workers, in both formats, and of set-ups that do not work."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import ssl
import tempfile
import unittest
import urllib.error
import urllib.request

from client import drive, gather, new_identity
from harness import PATIENCE, Case, make_certificate, wait_until
from test_backends import ANY, Fleet, Http, Stream, to_fill

SAMPLE = re.compile(r'([a-z_]+)(?:\{(.*)\})? (\S+)$')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')


def parse_prometheus(text):
    """Every sample by name and labels. Checks what the format demands: the order, the types, and
    that a histogram is one."""
    samples, types, current, done = {}, {}, None, set()
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split(" ")[2]
            assert current not in done, f"{current} is not in one place"
            done.add(current)
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current and kind in ("counter", "gauge", "histogram"), line
            assert (kind == "counter") <= name.endswith(("_total", "_lost")), line
            types[name] = kind
            continue
        name, labels, value = SAMPLE.fullmatch(line).groups()
        found = LABEL.findall(labels or "")
        assert "".join(f'{key}="{value}",' for key, value in found) == (labels or "") + "," * bool(
            labels), line
        base = re.sub("_(bucket|sum|count)$", "", name) if types[current] == "histogram" else name
        assert base == current, line
        key = name, frozenset(found)
        assert key not in samples and len(dict(found)) == len(found), line
        samples[key] = float(value)
    for name in (name for name, kind in types.items() if kind == "histogram"):
        check_histogram(name, samples)
    return samples


def check_histogram(name, samples):
    series = {}
    for (sample, labels), value in samples.items():
        if sample == f"{name}_bucket":
            others = frozenset(item for item in labels if item[0] != "le")
            series.setdefault(others, []).append((float(dict(labels)["le"]), value))
    for labels, buckets in series.items():
        buckets.sort()
        assert buckets[-1][0] == float("inf"), name
        assert [count for _, count in buckets] == sorted(count for _, count in buckets), name
        assert samples[f"{name}_count", labels] == buckets[-1][1], name


class Status(Fleet):
    def prometheus(self):
        return parse_prometheus(self.get("/handoff?format=prometheus").decode())

    def target(self):
        [target] = self.status()["targets"]
        return target

    def wait_for_counts(self, **counts):
        """Until the target's counts are these: a worker writes them soon after an event."""
        wait_until(lambda: {name: self.target()[name] for name in counts} == counts, counts)

    def hold(self, count):
        """Asks so many times; all are held."""
        async def ask(_):
            return await self.ask(self, new_identity())

        return gather(count, count, ask)


class Counts:
    def test_counts_are_those_of_the_clients_over_both_workers(self):
        """Half of what arrives is rejected; a third of all is refused, with no backend left."""
        self.expected.append(ANY)
        self.start_fleet({"a": "max_fails=0", "b": "max_fails=0"}, "-r", 2)
        self.assertEqual(sum(self.ask_all(100)[0].values()), 100)
        told = [self.fleet[name].statistics() for name in "ab"]
        adopted = sum(statistics["adopted"] for statistics in told)
        rejected = sum(statistics["rejected"] for statistics in told)
        self.assertEqual(adopted + rejected, 100)
        for name in "ab":
            self.fleet[name].kill()
        wait_until(lambda: all(self.told(name)["state"] == "down" for name in "ab"), "both down")
        self.ask_all(50)
        self.wait_for_counts(offers=150, adopted=adopted, gone=0, in_flight=0, waiting=0,
                             fallbacks={"rejected": rejected, "backend unavailable": 50},
                             refusals={"HANDOFF_ERR_BACKEND_UNAVAILABLE": 50})
        target = self.target()
        self.assertEqual((target["module"], target["target"]), (self.module, "fleet"))
        self.assertEqual(sum(target["histogram"]), 150)
        for backend, statistics in zip(target["backends"], told):
            self.assertEqual(backend["offers"], statistics["arrived"])
            self.assertEqual(backend["adopted"], statistics["adopted"])
            self.assertEqual(backend["fallbacks"], {"rejected": statistics["rejected"]})
            self.assertEqual(sum(backend["histogram"]), statistics["arrived"])
            self.assertEqual(backend["connects"], 2)
        self.assertEqual(sum(backend["refusals"].get("HANDOFF_ERR_BACKEND_UNAVAILABLE", 0)
                             for backend in target["backends"]), 50)

    def test_both_formats_say_the_same(self):
        self.expected.append(ANY)
        self.start_fleet({"a": "weight=3", "b": "backup", "c": "down"}, "-r", 2)
        self.ask_all(60)
        self.wait_for_counts(offers=60, in_flight=0)
        told, samples = self.status(), self.prometheus()

        def sample(name, **labels):
            labels |= {"module": self.module, "target": "fleet"}
            return samples.get((name, frozenset(labels.items())))

        self.assertEqual(samples["handoff_workers", frozenset()], 2)
        self.assertEqual(len(told["workers"]), 2)
        [target] = told["targets"]
        for name in "offers", "adopted", "gone", "failovers", "queued":
            self.assertEqual(sample(f"handoff_{name}_total"), target[name])
        for name in "in_flight", "waiting", "room":
            self.assertEqual(sample(f"handoff_{name}"), target[name])
        self.assertEqual(sample("handoff_fallbacks_total", reason="rejected"),
                         target["fallbacks"]["rejected"])
        self.assertEqual(sample("handoff_seconds_count"), sum(target["histogram"]))
        self.assertAlmostEqual(sample("handoff_seconds_sum"), target["microseconds"] / 1e6)
        self.assertEqual(len(target["backends"]), 3)
        for backend in target["backends"]:
            path = backend["path"]
            for name in "offers", "adopted", "taken_back", "connects", "failed_connects":
                self.assertEqual(sample(f"handoff_backend_{name}_total", backend=path),
                                 backend[name])
            for state in "connecting", "ready", "draining", "resting", "down":
                self.assertEqual(sample("handoff_backend_state", backend=path, state=state),
                                 backend["states"].get(state, 0))
            under = 0
            for index, count in enumerate(backend["histogram"][:-1]):
                under += count
                bound = f"{2 ** index // 10 ** 6}.{2 ** index % 10 ** 6:06}"
                self.assertEqual(sample("handoff_backend_seconds_bucket", backend=path, le=bound),
                                 under)
        self.assertEqual([(backend["weight"], backend["backup"], backend["down"])
                          for backend in target["backends"]],
                         [(3, False, False), (1, True, False), (1, False, True)])

    def test_in_flight_counts_nothing_of_a_worker_that_was_killed(self):
        self.expected.append(r"\[alert\] .*worker process \d+ exited on signal 9")
        self.start_fleet({"a": ""}, "-n", server="handoff_attempt_timeout 59m;")

        async def all_of_it():
            await self.hold(20)
            await asyncio.to_thread(self.wait_for_counts, in_flight=20)
            [backend] = (await asyncio.to_thread(self.target))["backends"]
            self.assertEqual((backend["in_flight"], backend["offers"]), (20, 20))
            killed = await asyncio.to_thread(self.nginx.kill_workers)
            await asyncio.to_thread(self.nginx.wait_for_end_of, killed)
            return killed

        killed = drive(all_of_it())
        # What they had counted stays; what they had in flight does not.
        wait_until(lambda: self.target()["in_flight"] == 0, "nothing is in flight")
        [backend] = self.target()["backends"]
        self.assertEqual((backend["in_flight"], backend["offers"]), (0, 20))
        wait_until(lambda: len(self.status()["workers"]) == 2, "two workers")
        self.assertFalse(killed & set(self.status()["workers"]))
        self.wait_for("a")
        self.fleet["a"].release()

    def test_one_of_two_workers_is_killed(self):
        self.expected.append(r"\[alert\] .*worker process \d+ exited on signal 9")
        self.start_fleet({"a": ""}, "-n", server="handoff_attempt_timeout 59m;")

        async def all_of_it():
            one, other = self.nginx.workers()
            # Each gets its half while the other one is stopped.
            for stopped, in_flight in ((one, 20), (other, 40)):
                os.kill(stopped, signal.SIGSTOP)
                await self.hold(20)
                await asyncio.to_thread(self.wait_for_counts, in_flight=in_flight)
                os.kill(stopped, signal.SIGCONT)
            killed = {one}
            os.kill(one, signal.SIGKILL)
            await asyncio.to_thread(self.nginx.wait_for_end_of, killed)
            await asyncio.to_thread(self.wait_for, "a")
            # What the other one has is still in flight.
            self.assertEqual((await asyncio.to_thread(self.target))["in_flight"], 20)
            await asyncio.to_thread(self.fleet["a"].release)

        drive(all_of_it())
        self.wait_for_counts(in_flight=0)

    def test_counts_stay_after_a_reload(self):
        self.start_fleet({"a": ""})
        self.ask_all(40)
        self.wait_for_counts(offers=40)
        self.nginx.wait_for_end_of(self.nginx.reload())
        self.wait_for_counts(offers=40, adopted=40)
        self.ask_all(20)
        self.wait_for_counts(offers=60, adopted=60)
        [backend] = self.target()["backends"]
        self.assertEqual((backend["offers"], backend["adopted"], backend["connects"]), (60, 60, 4))
        self.assertEqual(backend["states"], {"ready": 2})

    def test_old_worker_that_has_offers_in_flight_is_still_counted(self):
        self.start_fleet({"a": ""}, "-n", server="handoff_attempt_timeout 59m;")

        async def all_of_it():
            await self.hold(20)
            await asyncio.to_thread(self.wait_for_counts, in_flight=20)
            old = await asyncio.to_thread(self.nginx.reload)
            self.assertEqual((await asyncio.to_thread(self.target))["in_flight"], 20)
            await asyncio.to_thread(self.fleet["a"].release)
            return old

        old = drive(all_of_it())
        self.nginx.wait_for_end_of(old)
        self.wait_for_counts(in_flight=0, offers=20, adopted=20)


class HttpCounts(Http, Counts, Status):
    module = "http"


class StreamCounts(Stream, Counts, Status):
    module = "stream"


class Asked(Http, Status):
    """The location itself."""

    def test_head_and_formats(self):
        self.start_fleet({"a": ""})
        for path, kind in [("", "application/json"), ("?format=json", "application/json"),
                           ("?format=prometheus", "text/plain; version=0.0.4; charset=utf-8")]:
            url = f"http://127.0.0.1:{self.port}/handoff{path}"
            for method in "GET", "HEAD":
                with urllib.request.urlopen(urllib.request.Request(url, method=method),
                                            timeout=PATIENCE) as answer:
                    self.assertEqual(answer.headers["Content-Type"], kind)
                    body = answer.read()
                    self.assertEqual(bool(body), method == "GET")

    def test_what_is_not_understood(self):
        self.start_fleet({"a": ""})
        for path, method, status in ("?format=xml", "GET", 400), ("", "POST", 405):
            with self.assertRaises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(urllib.request.Request(
                    f"http://127.0.0.1:{self.port}/handoff{path}", method=method), timeout=PATIENCE)
            caught.exception.close()
            self.assertEqual(caught.exception.code, status)

    def test_nothing_is_handed_over_anywhere(self):
        self.start_nginx(http="server {{ listen 127.0.0.1:{port}; "
                              "location /handoff {{ handoff_status; }} }}")
        wait_until(lambda: len(self.status()["workers"]) == 2, "both workers are there")
        self.assertEqual((self.status()["targets"], self.status()["lost"]), ([], 0))
        self.prometheus()

    def test_zone_that_is_too_small(self):
        names = [f"n{index}" for index in range(20)]
        self.start_fleet(dict.fromkeys(names, "down"), wait=False)
        self.expected.append(r"\[warn\] .*\"handoff_status_zone\" is too small")
        self.start_nginx_again("handoff_status_zone 32k;")
        wait_until(lambda: self.status()["lost"] > 0, "something does not fit")
        [target] = self.status()["targets"]
        self.assertLess(len(target["backends"]), 20)
        self.prometheus()

    def start_nginx_again(self, more):
        """With that in http."""
        parts = dict(self.parts)
        self.stop_nginx()
        parts["http"] += more
        type(self.nginx).configure(self.directory, **parts)
        self.nginx = type(self.nginx)(self.directory, **parts)
        self.addCleanup(self.nginx.kill)
        wait_until(lambda: len(self.nginx.workers()) == 2, "two workers")

    def test_names_of_files_may_be_anything(self):
        self.start_fleet({}, target=f"unix:{self.folder()}/", upstreams="", wait=False)
        longest = 107 - len(self.folder()) - 1
        for name in (b'quo"te', b"back\\slash", b"new\nline", b"new\tline", b"no utf-8 \xff",
                     "ü".encode(), b"surrogate \xed\xa0\x80", b"too long \xc0\xaf", b"\\x01",
                     b"\x01", b"\x02" * longest):
            path = os.fsencode(self.folder()) + b"/" + name
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(path)
        wait_until(lambda: len(self.target()["backends"]) == 11, "all are there")
        paths = {os.path.basename(backend["path"]) for backend in self.target()["backends"]}
        self.assertEqual(paths, {'quo"te', r"back\x5cslash", r"new\x0aline", r"new\x09line",
                                 r"no utf-8 \xff", "ü", r"surrogate \xed\xa0\x80",
                                 r"too long \xc0\xaf", r"\x5cx01", r"\x01",
                                 r"\x02" * longest})
        self.prometheus()

    def test_backends_that_come_and_go_leave_no_rows(self):
        self.start_fleet({}, target=f"unix:{self.folder()}/", upstreams="", wait=False)
        self.start_nginx_again("handoff_status_zone 64k;")
        for index in range(60):  # more than the zone has room for
            path = f"{self.folder()}/s{index}"
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(path)
            wait_until(lambda: [os.path.basename(backend["path"]) for backend in
                                self.target()["backends"]] == [f"s{index}"], "it is there")
            os.remove(path)
        wait_until(lambda: self.target()["backends"] == [], "none is there")
        self.assertEqual(self.status()["lost"], 0)


class NotOffered(Case):
    """Clients that could be offered to no backend are counted, too: without kernel TLS for https that
    is each of them, and nothing else would tell."""

    STATUS = "server { listen 127.0.0.1:{port}; location = /handoff { handoff_status; } }"
    TLS = "listen 127.0.0.1:%d ssl; ssl_certificate certificate.pem; ssl_certificate_key key.pem;"
    REQUEST = b"GET / HTTP/1.0\r\n\r\n"

    def start_all(self, http="", **parts):
        make_certificate(self.directory)
        self.start(http=to_fill(self.STATUS + http),
                   **{name: to_fill(text) for name, text in parts.items()})

    def ask_over_tls(self, port, request=b""):
        context = ssl.create_default_context(cafile=f"{self.directory}/certificate.pem")
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain, \
                context.wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(request)
            return client.recv(100)

    def assert_unsupported(self, count, target):
        counts = {"offers": count, "adopted": 0, "fallbacks": {"client unsupported": count},
                  "histogram": [0] * 32}

        def told():
            return [{name: target[name] for name in counts} for target in self.status()["targets"]
                    if target["target"] == to_find]

        to_find = target.format(directory=self.directory)
        wait_until(lambda: told() == [counts], counts)
        samples = parse_prometheus(self.get("/handoff?format=prometheus").decode())
        self.assertEqual([value for (name, labels), value in samples.items()
                          if name == "handoff_fallbacks_total" and ("target", to_find) in labels
                          and ("reason", "client unsupported") in labels], [count])

    def test_https(self):
        port = self.new_port()
        self.start_all("server { %s location / { handoff_pass unix:{directory}/handoff.sock; } }"
                       % (self.TLS % port))
        for _ in range(3):
            self.assertIn(b" 502 ", self.ask_over_tls(port, self.REQUEST))
        self.assert_unsupported(3, "unix:{directory}/handoff.sock")

    def test_https_with_a_variable(self):
        """What it names is known all the same."""
        port = self.new_port()
        self.start_all("upstream fleet { server unix:{directory}/handoff.sock; } "
                       "map $uri $fleet { default fleet; } "
                       "server { %s location / { handoff_pass $fleet; } }" % (self.TLS % port))
        self.assertIn(b" 502 ", self.ask_over_tls(port, self.REQUEST))
        self.assert_unsupported(1, "fleet")

    def test_stream(self):
        port = self.new_port()
        self.start_all(stream="server { %s handoff_pass unix:{directory}/echo.sock; }"
                              % (self.TLS % port))
        self.assertEqual(self.ask_over_tls(port), b"")
        self.assert_unsupported(1, "unix:{directory}/echo.sock")


class BrokenSetUps(Case):
    """What a newcomer is told. Each sentence says something else."""

    def setUp(self):
        super().setUp()
        # Everybody may search this directory.
        self.place = tempfile.mkdtemp(prefix="handoff-nginx-", dir="/tmp")
        self.addCleanup(shutil.rmtree, self.place)
        os.chmod(self.place, 0o755)

    def say(self, target, servers=""):
        """What handoff_status says of it, once something is said."""
        self.start_with(target, servers)

        def told():
            [target] = self.status()["targets"]
            if target["message"]:
                return target["message"]
            [backend] = target["backends"]
            return backend["message"] and f"{backend['state']}: {backend['message']}"

        found = wait_until(told, "handoff_status says why")
        parse_prometheus(self.get("/handoff?format=prometheus").decode())
        return found

    def start_with(self, target, servers=""):
        self.start_nginx(http=to_fill(
            f"{servers} server {{ listen 127.0.0.1:{{port}}; "
            f"location / {{ handoff_pass {target}; }} "
            "location = /handoff { handoff_status; access_log off; } }"))

    def listen(self, name, kind=socket.SOCK_SEQPACKET, backlog=16):
        path = f"{self.place}/{name}"
        listener = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(listener.close)
        listener.bind(path)
        if backlog is not None:
            listener.listen(backlog)
        return path

    def test_no_socket(self):
        self.assertRegex(self.say(f"unix:{self.place}/none.sock"),
                         "^down: .*/none.sock: .*No such file or directory")

    def test_nobody_listens(self):
        path = self.listen("dead.sock", backlog=None)
        self.assertRegex(self.say(f"unix:{path}"), "^down: .*/dead.sock: .*Connection refused")

    @unittest.skipUnless(os.getuid() == 0, "root makes the workers another user")
    def test_permission_denied(self):
        path = self.listen("mine.sock")
        os.chmod(path, 0o600)
        self.as_another_user()
        self.assertRegex(self.say(f"unix:{path}"), "^down: .*/mine.sock: .*[Pp]ermission denied")

    @unittest.skipUnless(os.getuid() == 0, "root makes the workers another user")
    def test_backend_that_does_not_allow_the_workers_user(self):
        self.as_another_user()
        backend = self.start_backend(sockets=(f"{self.place}/picky.sock", f"{self.place}/e.sock"))
        os.chmod(f"{self.place}/picky.sock", 0o666)
        self.assertIsNone(backend.process.poll())
        self.assertRegex(self.say(f"unix:{self.place}/picky.sock"),
                         "^down: .*/picky.sock: .*does not allow user 33")

    def test_another_kind_of_socket(self):
        path = self.listen("http.sock", socket.SOCK_STREAM)
        self.assertRegex(self.say(f"unix:{path}"), "^down: .*/http.sock: .*wrong type for socket")

    def test_directory_that_does_not_exist(self):
        self.assertRegex(self.say(f"unix:{self.place}/none/"),
                         "^down: .*/none/: .*No such file or directory")

    def test_directory_without_a_socket(self):
        self.assert_said(f"unix:{self.place}/", "there is no socket in this directory")

    def test_directory_of_an_upstream_without_a_socket(self):
        self.assert_said("fleet", "there is no socket in the directories of its servers",
                         f"upstream fleet {{ server unix:{self.place}/; }}")

    def assert_said(self, target, text, servers=""):
        """By handoff_status, and by the log when a client comes."""
        self.assertEqual(self.say(target, servers), text)
        self.expected.append(rf'\[warn\] .* handoff to "{target}" failed: {text}, client: ')
        with self.assertRaises(urllib.error.HTTPError) as caught:
            self.get("/")
        caught.exception.close()
        self.assertEqual((caught.exception.code, len(self.nginx.log())), (502, 1))

    def test_server_that_is_down(self):
        self.assertRegex(
            self.say("fleet", f"upstream fleet {{ server unix:{self.place}/a down; }}"),
            "^down: .*switched off")

    def test_backend_that_does_not_speak(self):
        path = self.listen("silent.sock")
        self.start_with(f"unix:{path}")
        wait_until(lambda: self.status()["targets"][0]["backends"][0]["states"]
                   == {"connecting": 2}, "it is not ready")

    def test_client_that_waits_for_the_first_channel_in_vain_is_told_so(self):
        """With and without a queue."""
        path = self.listen("silent.sock")
        self.expected.append(rf'\[warn\] .* handoff to "unix:{path}" failed: .*no channel')
        for queue in "", "handoff_queue 10 timeout=100ms;":
            with self.subTest(queue):
                self.start_with(f"unix:{path}", queue + " handoff_attempt_timeout 100ms;")
                for _ in range(4):
                    with self.assertRaises(urllib.error.HTTPError) as caught:
                        self.get("/")
                    caught.exception.close()
                wait_until(lambda: self.status()["targets"][0]["fallbacks"]
                           == {"backend unavailable": 4}, "each has the same reason")
                self.stop_nginx()
                self.check_log()

    def as_another_user(self):
        """The workers are the user that Debian has for them."""
        self.more = {"user": "www-data"}

    more = {}

    def start_nginx(self, **parts):
        super().start_nginx(**parts, **self.more)


if __name__ == "__main__":
    unittest.main()
