"""Several backends: an upstream's servers, or the sockets in a directory. What one of them does not
adopt another one gets, and no client notices."""

import asyncio
import collections
import os
import re
import signal
import time
import unittest

from client import Connection, drive, gather, new_identity, request, run
from harness import Case, number, wait_until
from test_failures import HttpClient, StreamClient

CLIENTS = number("CLIENTS", 400)
NAMES = "abcd"
ANY = r"\[warn\] .* handoff to \"[^\"]+\" failed: "

HTTP_FLEET = """
    %(upstreams)s
    log_format backend '$handoff_outcome $handoff_tries $handoff_backend';
    access_log tries.log backend;
    server {
        listen 127.0.0.1:{port};
        {server}
        location / {
            handoff_pass %(target)s;
            error_page 502 504 = @fallback;
        }
        location = /handoff { handoff_status; access_log off; }
        location @fallback { proxy_pass http://unix:{directory}/fallback.sock; }
    }
"""

STREAM_FLEET = """
    %(upstreams)s
    log_format backend '$handoff_outcome $handoff_tries $handoff_backend';
    access_log tries.log backend;
    server {
        listen 127.0.0.1:{port};
        {server}
        handoff_pass %(target)s;
        proxy_pass 127.0.0.1:{fallback};
    }
"""

# Where the state of a stream's backends can be seen.
STATUS = """
    server {
        listen 127.0.0.1:{port};
        location = /handoff { handoff_status; access_log off; }
    }
"""


def to_fill(text):
    """A configuration as Case.start_nginx() wants it, which fills in what is in single braces."""
    text = text.replace("{", "{{").replace("}", "}}")
    return re.sub(r"\{\{(port|directory|server|fallback)\}\}", r"{\1}", text)


class Http(HttpClient):
    folder_name = "fleet"

    @staticmethod
    def configuration(**parts):
        return {"http": to_fill(HTTP_FLEET % parts)}


class Stream(StreamClient):
    folder_name = "echoes"

    @staticmethod
    def configuration(**parts):
        return {"stream": to_fill(STREAM_FLEET % parts), "http": to_fill(STATUS)}


class Fleet(Case):
    """Backends in a directory of their own, with another one for streams."""
    folder_name = "fleet"

    def setUp(self):
        super().setUp()
        os.makedirs(f"{self.directory}/fleet")
        os.makedirs(f"{self.directory}/echoes")
        self.fleet = {}
        self.connects = collections.Counter()

    def start_one(self, name, *options):
        """A backend of this name, in place of one that has ended."""
        if self.nginx:
            self.connects[name] = self.told(name).get("connects", 0)
        self.fleet[name] = self.start_backend(
            *options, name=name, sockets=(f"fleet/{name}.sock", f"echoes/{name}.sock"))
        return self.fleet[name]

    def folder(self):
        return f"{self.directory}/{self.folder_name}"

    def upstream(self, servers, name="fleet"):
        lines = [f"server unix:{self.folder()}/{socket}.sock {parameters};"
                 for socket, parameters in servers.items()]
        return f"upstream {name} {{ {' '.join(lines)} }}"

    def start_fleet(self, servers, *options, server="", target="fleet", upstreams=None, wait=True,
                    **more):
        """These backends, a fallback, and nginx, whose workers have channels to all of them."""
        for name in servers:
            self.start_one(name, *options)
        self.fallback = self.start_fallback()
        if upstreams is None:
            upstreams = self.upstream(servers)
        self.start_nginx(**self.configuration(target=target, upstreams=upstreams), server=server,
                         **more)
        if wait:
            self.wait_for(*(name for name in servers if "down" not in servers[name]))

    def wait_for(self, *names):
        """Until both workers have a channel to each of these, since it was started."""
        def ready():
            told = [(self.told(name), self.connects[name]) for name in names]
            return all(backend.get("states") == {"ready": 2} and backend["connects"] > before + 1
                       for backend, before in told)

        wait_until(ready, f"both workers have channels to {names}")

    def told(self, name):
        """What handoff_status says of a backend."""
        for target in self.status()["targets"]:
            for backend in target["backends"]:
                if os.path.basename(backend["path"]) == f"{name}.sock":
                    return backend
        return {}

    def states(self):
        """The states of each backend, by name."""
        return {os.path.basename(backend["path"])[:-5]: backend["states"]
                for target in self.status()["targets"] for backend in target["backends"]}

    def ask_all(self, count, at_once=16):
        """So many clients, one connection each; gives the ways of the answers and the times."""
        identities, times = [], []

        async def one(_):
            identity = new_identity()
            identities.append(identity)
            begin = time.monotonic()
            way = await (await self.ask(self, identity))()
            times.append(time.monotonic() - begin)
            return way

        ways = collections.Counter(drive(gather(count, at_once, one)))
        self.asked = getattr(self, "asked", []) + identities
        self.assert_once(self.asked)
        return ways, max(times)

    def adopted(self, *names):
        return {name: self.fleet[name].statistics()["adopted"] for name in names or self.fleet}

    def tries(self):
        """What the variables said: (outcome, tries, name of the backend)."""
        with open(f"{self.directory}/tries.log", encoding="ascii") as file:
            lines = [line.split() for line in file]
        return collections.Counter(
            (line[0], line[1], os.path.basename(line[2])[:-5] if len(line) > 2 else "-")
            for line in lines if len(line) > 1)


class Shares:
    def test_shares_are_as_the_weights(self):
        weights = {"a": 4, "b": 2, "c": 1, "d": 1}
        self.start_fleet({name: f"weight={weight}" for name, weight in weights.items()})
        # One after another: of several at once the least busy backend gets the next one.
        ways, _ = self.ask_all(CLIENTS, 1)
        self.assertEqual(ways, {"handoff": CLIENTS})
        for name, adopted in self.adopted().items():
            share = CLIENTS * weights[name] / 8
            self.assertGreater(adopted, share * 0.9 - 2, self.adopted())
            self.assertLess(adopted, share * 1.1 + 2, self.adopted())

    def test_backend_that_is_down_gets_nothing_and_a_backup_only_what_no_other_takes(self):
        self.start_fleet({"a": "", "b": "down", "c": "backup"})
        self.assertEqual(self.ask_all(50)[0], {"handoff": 50})
        self.assertEqual(self.adopted(), {"a": 50, "b": 0, "c": 0})
        self.fleet["a"].kill()
        self.expected.append(ANY)
        wait_until(lambda: self.states()["a"] != {"ready": 2}, "nginx has seen that")
        self.assertEqual(self.ask_all(50)[0], {"handoff": 50})
        self.assertEqual(self.adopted("b", "c"), {"b": 0, "c": 50})

    def test_directory_is_followed(self):
        self.expected.append(ANY)
        self.start_fleet({}, target=f"unix:{self.folder()}/", upstreams="", wait=False)
        self.assertEqual(self.ask_all(10)[0], {self.proxied: 10})
        self.start_one("a")
        self.wait_for("a")
        self.assertEqual(self.ask_all(20)[0], {"handoff": 20})
        self.start_one("b")
        self.wait_for("a", "b")
        before = self.adopted()
        self.assertEqual(self.ask_all(40, 1)[0], {"handoff": 40})
        self.assertTrue(all(count > before[name] + 10 for name, count in self.adopted().items()))
        self.fleet["a"].signal(signal.SIGTERM)
        self.assertEqual(self.fleet.pop("a").wait(), 0)
        wait_until(lambda: set(self.states()) == {"b"}, "it has gone")
        self.assertEqual(self.ask_all(20)[0], {"handoff": 20})

    def test_directory_may_be_a_server_of_an_upstream(self):
        self.start_one("a")
        self.start_fleet({"b": ""}, wait=False, upstreams=(
            f"upstream fleet {{ server unix:{self.folder()}/ weight=3; }}"))
        self.wait_for("a", "b")
        self.assertEqual(self.ask_all(40, 1)[0], {"handoff": 40})
        self.assertGreater(min(self.adopted().values()), 10, self.adopted())

    def test_variables_tell_which_backend_and_how_many_were_tried(self):
        self.start_fleet({"a": "", "b": "backup"}, "-r", 1, "-R", 10)  # each is busy
        self.expected.append(ANY + "backend busy, tried 2 backends, the last is .*/b.sock")
        self.assertEqual(self.ask_all(10)[0], {self.proxied: 10})
        wait_until(lambda: self.tries()["fallback", "2", "b"] == 10, "ten lines in the log")
        self.fleet["b"].kill()
        self.start_one("b")
        self.wait_for("a", "b")
        self.assertEqual(self.ask_all(10)[0], {"handoff": 10})
        wait_until(lambda: self.tries()["adopted", "2", "b"] == 10, "ten more")

    def test_name_of_a_socket_forges_no_line_in_the_log(self):
        self.start_one("a\n[alert] forged\x1b[2J", "-r", 1, "-R", 10)  # it is busy
        self.expected.append(ANY + "backend busy, tried 1 backends, the last is " +
                             r".*/a\?\[alert\] forged\?\[2J\.sock\"")
        self.start_fleet({}, wait=False,
                         upstreams=f"upstream fleet {{ server unix:{self.folder()}/; }}")
        wait_until(lambda: list(self.states().values()) == [{"ready": 2}], "both have channels")
        self.assertEqual(self.ask_all(10)[0], {self.proxied: 10})
        wait_until(lambda: len(self.nginx.log()) == 10, "ten lines in the log")

    def test_rejection_that_is_about_the_client_is_final(self):
        self.expected.append(ANY + "rejected, tried 1 backend")
        self.start_fleet({"a": "", "b": ""}, "-r", 1)
        self.assertEqual(self.ask_all(10)[0], {self.proxied: 10})
        wait_until(lambda: sum(count for (outcome, tries, _), count in self.tries().items()
                               if (outcome, tries) == ("fallback", "1")) == 10, "ten lines")


class HttpShares(Http, Shares, Fleet):
    pass


class StreamShares(Stream, Shares, Fleet):
    pass


class Failover:
    """Four backends. One of them has a mishap while clients come; all clients are handed over."""
    ATTEMPT = 0.5

    def begin(self, *options):
        self.start_fleet(dict.fromkeys(NAMES, ""), *options,
                         server=f"handoff_attempt_timeout {int(self.ATTEMPT * 1000)}ms;")

    def test_no_client_waits_longer_than_an_attempt_while_a_backend_is_stopped(self):
        self.begin()
        for attempt in range(5):  # others may need the machine just now
            usual = self.ask_all(CLIENTS)[1]
            self.fleet["a"].signal(signal.SIGSTOP)
            ways, longest = self.ask_all(CLIENTS)
            self.fleet["a"].signal(signal.SIGCONT)
            self.assertEqual(ways, {"handoff": CLIENTS})
            wait_until(lambda: self.fleet["a"].statistics()["held"] == 0, "it goes on")
            if longest < self.ATTEMPT + 3 * usual + 0.1:
                break
        self.assertLess(longest, self.ATTEMPT + 3 * usual + 0.1, f"usually {usual}")
        self.assertGreaterEqual(longest, self.ATTEMPT)  # or nothing was tested
        self.assert_once(self.asked)

    def test_backend_is_used_again_after_it_was_stopped(self):
        self.begin()
        self.fleet["a"].signal(signal.SIGSTOP)
        self.assertEqual(self.ask_all(CLIENTS)[0], {"handoff": CLIENTS})
        wait_until(lambda: "resting" in self.states()["a"], "it rests")
        self.fleet["a"].signal(signal.SIGCONT)

        def adopts():
            self.ask_all(8)
            return self.states()["a"] == {"ready": 2}

        wait_until(adopts, "a trial has ended the rest")

    def ask_while(self, happen):
        """Sixteen clients ask, one connection after another, while that happens."""
        ways, identities = collections.Counter(), []

        async def ask_until(done):
            while not done.is_set():
                identity = new_identity()
                identities.append(identity)
                ways[await (await self.ask(self, identity))()] += 1

        async def all_of_it():
            done = asyncio.Event()
            clients = [asyncio.create_task(ask_until(done)) for _ in range(16)]
            await asyncio.sleep(0.2)
            await asyncio.to_thread(happen)
            await asyncio.sleep(0.2)
            done.set()
            await asyncio.gather(*clients)

        drive(all_of_it())
        self.asked = getattr(self, "asked", []) + identities
        self.assert_once(self.asked)
        self.assertEqual(set(ways), {"handoff"}, ways)

    def test_backend_is_killed_and_replaced(self):
        """While it has clients that it has not adopted."""
        self.begin()

        def happen():
            for options in [["-n"], [], ["-n"], []]:
                if self.fleet["a"].statistics()["held"]:
                    self.fleet["a"].kill()
                else:
                    self.fleet["a"].signal(signal.SIGTERM)
                    self.assertEqual(self.fleet["a"].wait(), 0)
                self.start_one("a", *options)
                self.wait_for("a")
                if options:
                    wait_until(lambda: self.fleet["a"].statistics()["held"], "it holds some")

        self.ask_while(happen)

    def test_backend_drains_and_is_replaced(self):
        self.begin("-d", "0-20")

        def happen():
            for _ in range(3):
                self.fleet["a"].signal(signal.SIGTERM)
                self.assertEqual(self.fleet["a"].wait(), 0)
                self.start_one("a", "-d", "0-20")
                self.wait_for("a")

        self.ask_while(happen)

    def test_killed_backends_offers_go_to_another(self):
        """What it had received and not adopted."""
        count = 20
        self.start_one("a", "-n")
        self.start_fleet({"b": ""}, upstreams=self.upstream({"a": "", "b": "backup"}),
                         server="handoff_attempt_timeout 59m;")
        self.wait_for("a")
        identities = [new_identity() for _ in range(count)]

        async def all_of_it():
            async def ask(index):
                return await self.ask(self, identities[index])

            readers = await gather(count, count, ask)
            await asyncio.to_thread(
                wait_until, lambda: self.fleet["a"].statistics()["held"] == count,
                "all have arrived")
            await asyncio.to_thread(self.fleet["a"].kill)

            async def read(index):
                return await readers[index]()

            return await gather(count, count, read)

        self.assertEqual(set(drive(all_of_it())), {"handoff"})
        self.assert_once(identities)


class HttpFailover(Http, Failover, Fleet):
    def test_reload_falls_back_for_nobody(self):
        self.begin("-d", "0-5")

        def happen():
            for _ in range(3):
                self.nginx.wait_for_end_of(self.nginx.reload())

        self.ask_while(happen)


class StreamFailover(Stream, Failover, Fleet):
    pass


class Variables(Http, Fleet):
    """handoff_pass with variables."""

    def begin(self, target="$arg_to"):
        self.start_fleet({"a": "", "b": ""}, wait=False, target=target, upstreams=(
            self.upstream({"a": ""}, "first") + self.upstream({"b": ""}, "second")
            + "upstream web { server 127.0.0.1:1; }"
            + "server { listen unix:{directory}/other.sock; location / {"
            + f"handoff_pass unix:{self.folder()}/a.sock; }} }}"))

    def way(self, argument):
        identity = new_identity()

        async def one(_):
            connection = await Connection.open(self.port)
            return await connection.ask(request(identity, argument=argument))

        [answer] = run(1, 1, one)
        self.assertEqual(answer.status, 200)
        return answer.headers["x-served-by"]

    def test_values_are_resolved_among_what_is_known(self):
        self.begin()
        # Also the first request that names an upstream is handed over.
        for argument, name in [("?to=first", "a"), ("?to=second", "b"), ("?to=SECOND", "b"),
                               (f"?to=unix:{self.folder()}/a.sock", "a")]:
            before = self.adopted()
            self.assertEqual(self.way(argument), "handoff", argument)
            self.assertEqual(self.adopted()[name], before[name] + 1, argument)

    def test_values_that_name_nothing_fall_back(self):
        self.begin()
        self.expected += [r"\[error\] .* handoff to \"nobody\" failed: \"\$arg_to\" names neither",
                          r"\[error\] .* handoff to \"unix:/nowhere.sock\" failed: ",
                          r"\[error\] .* handoff to \"unix:fleet/a.sock\" failed: .* names neither",
                          r"\[error\] .* handoff to \"web\" failed: its server \"127.0.0.1:1\" is "
                          "not a handoff socket"]
        for argument in "?to=nobody", "?to=unix:/nowhere.sock", "?to=unix:fleet/a.sock", "?to=web":
            self.assertEqual(self.way(argument), "unix", argument)
        self.assertEqual(len(self.nginx.log()), 4)
        self.assertEqual(self.way(""), "unix")
        self.assertEqual(len(self.nginx.log()), 4)

    def test_part_of_a_path_may_be_a_variable(self):
        """And the path that results is looked up as any other value: b.sock is not known."""
        for target, to in ("unix:$arg_to", "{}/{}.sock"), ("unix:{}/$arg_to.sock", "{1}"):
            with self.subTest(target):
                self.begin(target.format(self.folder()))
                before = self.adopted()
                self.assertEqual(self.way("?to=" + to.format(self.folder(), "a")), "handoff")
                self.assertEqual(self.adopted(), {"a": before["a"] + 1, "b": before["b"]})
                self.expected.append(r"\[error\] .* handoff to \"unix:" + self.folder() +
                                     r"/b.sock\" failed: \"unix:.*\$arg_to.*\" names neither")
                self.assertEqual(self.way("?to=" + to.format(self.folder(), "b")), "unix")
                self.assertEqual(len(self.nginx.log()), 1)
                self.stop_all()


class StreamVariables(Stream, Fleet):
    def test_values_are_resolved_among_what_is_known(self):
        self.start_fleet({"a": "", "b": ""}, wait=False, target="$pool", upstreams=(
            "map $remote_addr $pool { default second; }"
            + self.upstream({"a": ""}, "first") + self.upstream({"b": ""}, "second")))
        self.assertEqual(self.ask_all(10)[0], {"handoff": 10})
        self.assertEqual(self.adopted(), {"a": 0, "b": 10})


if __name__ == "__main__":
    unittest.main()
