"""Runs the benchmark, or parts of it, and writes what it finds.

    bench.py PROGRAMS [PART...]

PROGRAMS is the directory of the built programs; results go to its subdirectory `results`, each part
over those of its last run, with tables and plots of all parts that have some. In each part the ways
run in turns, REPETITIONS times; HANDOFFS and REQUESTS scale how many are measured at a time.
"""
import json
import os
import pathlib
import platform
import random
import resource
import subprocess
import sys
import time
from statistics import median

import machine
import plot
import report
from figures import CHECKS, FORM, LOOPS, OURS, PLAIN, SPINNING
from goals import goals
from ways import HERE, all_ways, run_move, run_serve

REPETITIONS = int(os.environ.get("REPETITIONS", 0))
HANDOFFS = int(os.environ.get("HANDOFFS", 20000))
REQUESTS = int(os.environ.get("REQUESTS", 3000))
CPUS = (sorted(os.sched_getaffinity(0)) * 2)[:2]  # of the broker and of the backend
IN_FLIGHT = [1, 2, 4, 8, 16, 64, 256, 1024]
HELD = 10000
BULK = 64 << 20  # bytes in an answer
STEADY = 0.8  # of what the processors have done at most
PATIENCE = 300  # seconds to wait for that in each part


class Bench:
    def __init__(self, programs):
        self.programs = programs
        self.ways = {way.key: way for way in all_ways(programs)}
        self.serving = [key for key, way in self.ways.items() if not way.alone]
        self.moving = [key for key in self.serving if self.ways[key].moves]
        self.alone = [key for key, way in self.ways.items() if way.alone]
        self.most_work = 0
        self.runs = self.disturbed = 0
        self.patience = PATIENCE

    def are_steady(self):
        """Whether the processors do as much as they have done at best."""
        work = int(self.program("processors", *map(str, CPUS))[0])
        self.most_work = max(self.most_work, work)
        return work >= STEADY * self.most_work

    def find_most_work(self):
        """For ten seconds, because a host leaves processors where they are for some."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            self.are_steady()
            time.sleep(0.1)

    def undisturbed(self, run):
        """Runs it while the processors are steady: waits for that, and runs it again if they were not
        until its end. The host decides, so that this ends when it has taken too long."""
        self.runs += 1
        while True:
            begun = time.monotonic()
            steady = self.are_steady()
            if steady or self.patience <= 0:
                sample = run()
                if steady and self.are_steady():
                    return sample
                if self.patience <= 0:
                    self.disturbed += 1
                    return sample
            else:
                time.sleep(0.1)
            self.patience -= time.monotonic() - begun

    def in_turns(self, cases, repetitions, run):
        """Runs each case `repetitions` times, each time in another order: what one leaves behind must
        not fall on the same one always. Returns {case: [sample...]}."""
        cases = list(cases)
        samples = {case: [] for case in cases}
        for repetition in range(REPETITIONS or repetitions):
            for case in random.Random(repetition).sample(cases, len(cases)):
                samples[case].append(self.undisturbed(lambda case=case: run(case)))
        return samples

    def move_once(self, key, in_flight=256, handoffs=HANDOFFS, cpus=CPUS, **parameters):
        way = self.ways[key]
        handoffs = int(handoffs * way.pace)
        return run_move(way, handoffs, max(handoffs // 10, 200), in_flight, cpus=cpus, **parameters)

    def move(self):
        """Without clients: 256 in flight, and one at a time, where the kernel wakes the other side
        on the same processor or on another one."""
        sleeping = [key for key in self.alone if "SPIN" not in self.ways[key].environment]
        cases = {"full": (self.moving, 256, HANDOFFS, CPUS),
                 "apart": (self.moving + self.alone, 1, HANDOFFS // 4, CPUS),
                 "together": (self.moving + sleeping, 1, HANDOFFS // 4, CPUS[:1] * 2)}
        result = {}
        for case, (keys, *arguments) in cases.items():
            samples = self.in_turns(keys, 9, lambda key: self.move_once(key, *arguments))
            result[case] = {key: costs(of) for key, of in samples.items()}
        return result

    def serve_once(self, key, concurrency, requests):
        way = self.ways[key]
        requests = int(requests * way.pace)
        return run_serve(self.programs, way, concurrency, requests, requests // 10)

    def serve(self):
        """Real clients, so many at a time."""
        result = {}
        for concurrency, repetitions, requests in (
                ("1", 8, REQUESTS), ("16", 24, 2 * REQUESTS), ("256", 24, 2 * REQUESTS)):
            samples = self.in_turns(self.serving, repetitions, lambda key: self.serve_once(
                key, int(concurrency), requests))
            result[concurrency] = {
                key: {**costs(of), "noise": noise(of),
                      "quantiles": [quantile(of, part) for part in (0.5, 0.99, 0.999)]}
                for key, of in samples.items()}
        return result

    def after(self):
        """What a long answer costs once a client is with its backend."""
        keys = ["channel", "plain", "reconnect", "copy", "splice", "nginx", "nginx-stream"]
        cases = [(key, answer) for key in keys for answer in (BULK, 128)]
        samples = self.in_turns(cases, 5, lambda case: run_serve(
            self.programs, self.ways[case[0]], 1, 4, warm=4, answer=case[1]))
        result = {}
        for key in keys:
            long, short = samples[key, BULK], samples[key, 128]
            result[key] = {"bytes_a_second": [sample.bytes_a_second for sample in long],
                           "short": costs(short), "long": costs(long)}
        return result

    def memory(self):
        """10,000 in flight: the backend holds them all before it acknowledges any."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if most != resource.RLIM_INFINITY and most < HELD + 100:
            sys.exit(f"error: part memory needs {HELD + 100} descriptors: please raise ulimit -Hn")
        result = {}
        for way in (self.ways[key] for key in self.moving):
            more = {"CHANNELS": 3} if way.key == "channel" else {}  # each takes 4096
            idle = run_move(way, 1)
            held = run_move(way, HELD, in_flight=HELD, HOLD=HELD, **more)
            result[way.key] = {"idle": [idle.broker_kib, idle.backend_kib],
                               "held": [held.broker_kib, held.backend_kib]}
        return result

    def growth(self):
        """What a handoff costs as one parameter grows."""
        handoffs = HANDOFFS // 2

        def grow(keys, values, run, repetitions=5):
            cases = [(key, value) for key in keys for value in values]
            samples = self.in_turns(cases, repetitions, lambda case: run(*case))
            return {key: {str(value): costs(samples[key, value]) for value in values}
                    for key in keys}

        return {
            "in_flight": grow([OURS, SPINNING, PLAIN, *LOOPS, *CHECKS], IN_FLIGHT,
                              lambda key, value: self.move_once(
                                  key, value, HANDOFFS // 4 if value < 4 else HANDOFFS), 9),
            "preread": grow(["channel", "plain", "libuv", *CHECKS], [0, 200, 4096, 65536],
                            lambda key, value: self.move_once(key, 64, handoffs // 2,
                                                              PREREAD=value), 11),
            "many": grow(["channel", "plain-many"], [1, 4, 16, 64, 252],
                         lambda key, value: self.move_once(key, 504, handoffs, MANY=value), 3),
            "channels": grow(["channel", *CHECKS], [1, 4, 16, 64, 256],
                             lambda key, value: self.move_once(key, 256, handoffs,
                                                               CHANNELS=value)),
            "backends": grow(["channel"], [1, 2, 4, 8],
                             lambda key, value: self.move_once(key, 256, HANDOFFS,
                                                               BACKENDS=value), 15),
        }

    def calls(self):
        """System calls on both sides. Two runs that differ in length only: what start and end need
        falls out."""
        def calls_of(run):
            totals = []
            for count in (500, 1500):
                trace = self.programs / "results" / "strace"
                trace.unlink(missing_ok=True)
                run(count, ["strace", "-f", "-c", "-qq", "-o", f"|cat >> {trace}"])
                rows = [line.split() for line in trace.read_text().splitlines()]
                totals.append(sum(int(row[3]) for row in rows
                                  if row and row[0][0].isdigit() and row[-1] != "total"))
            trace.unlink()
            return (totals[1] - totals[0]) / 1000

        result = {"full": {}, "alone": {}, "serve": {}}
        for key, way in self.ways.items():
            for case, in_flight in (("full", 256), ("alone", 1)):
                if key in (self.moving if case == "full" else self.moving + self.alone):
                    result[case][key] = calls_of(lambda count, prefix: run_move(
                        way, count, in_flight=in_flight, prefix=prefix))
            if key in self.serving:
                result["serve"][key] = calls_of(lambda count, prefix: run_serve(
                    self.programs, way, 16, count, prefix=prefix))
        return result

    def checks(self):
        """What the library's checks of each connection cost: throughput, with some or all of
        them answered without the kernel. The figures are nanoseconds, and the channel's time beside
        that of plain C with one descriptor a message and with 64."""
        preload = {"LD_PRELOAD": str(self.programs / "no_checks.so")}
        cases = {"as it is": {}, "without the backend's questions of kind":
                 {**preload, "KEEP_COOKIE": "1"}, "without any question": preload}
        result = {}
        for case, more in cases.items():
            rows = [line.split() for line in self.program("throughput", more=more)[1:]]
            result[case] = [float(rows[0][-5]), float(rows[1][-1]), float(rows[2][-1])]
        return result

    def program(self, name, *arguments, more={}):
        output = subprocess.run([self.programs / name, *arguments], check=True,
                                stdout=subprocess.PIPE, text=True, env={**os.environ, **more}).stdout
        return output.splitlines()

    def smoke(self):
        """Each way brings 200 clients to its backend, and moves as many connections."""
        for key, way in self.ways.items():
            if key in self.serving:
                run_serve(self.programs, way, 16, 200)
            if way.moves:
                run_move(way, 200, in_flight=1 if way.alone else 256)
        # More than the sockets have room for.
        for key in ("channel", "libuv", "glib", *CHECKS):
            run_move(self.ways[key], 2000, in_flight=max(IN_FLIGHT))
        run_move(self.ways["channel"], 200, BACKENDS=4)
        print(f"check-peers: {len(self.serving)} ways, each 200 clients answered, and "
              f"{len(self.alone)} without clients")


def quantile(samples, part):
    """Of the clients of all these repetitions."""
    times = sorted(time for sample in samples for time in sample.times)
    return times[int(len(times) * part)]


def noise(samples):
    """How far p99 of two runs of the same program is apart: the repetitions are divided into two
    halves at random, a hundred times, and the larger p99 of two halves is divided by the smaller. The
    median of these quotients; 1 if there is only one repetition."""
    middle, quotients = len(samples) // 2, []
    for division in range(100 if middle else 0):
        order = random.Random(division).sample(samples, len(samples))
        smaller, larger = sorted(quantile(of, 0.99) for of in (order[:middle], order[middle:]))
        quotients.append(larger / smaller)
    return round(median(quotients or [1]), 3)


def costs(samples):
    return {what: [round(getattr(sample, what), 1) for sample in samples]
            for what in ("elapsed", "broker", "backend")}


PROGRAMS = ["start", "raw_layer", "throughput", "scale"]
PARTS = ["move", "serve", "after", "memory", "growth", "calls", "checks", *PROGRAMS]


def locked_version(name):
    lines = (HERE / "peers/rust/Cargo.lock").read_text().splitlines()
    return lines[lines.index(f'name = "{name}"') + 1].split('"')[1]


def describe_machine(load):
    return machine.describe(
        load, libuv=machine.version("pkg-config", "--modversion", "libuv"),
        GLib=machine.version("pkg-config", "--modversion", "glib-2.0"),
        Node=machine.version("node", "--version"), Python=platform.python_version(),
        sendfd=locked_version("sendfd"), passfd=locked_version("passfd"),
        nginx=machine.version("nginx", "-v"))


def main():
    programs = pathlib.Path(sys.argv[1])
    bench = Bench(programs)
    wanted = sys.argv[2:] or PARTS
    if wanted == ["smoke"]:
        bench.smoke()
        return
    unknown = set(wanted) - set(PARTS)
    if unknown:
        sys.exit(f"error: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    directory = programs / "results"
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    if results.get("form") != FORM:
        results = {"form": FORM, "parts": {}}
    load = os.getloadavg()[0]  # before it is our own
    bench.find_most_work()
    for part in wanted:
        begun = time.monotonic()
        bench.runs, bench.disturbed, bench.patience = 0, 0, PATIENCE
        found = bench.program(part) if part in PROGRAMS else getattr(bench, part)()
        results["parts"][part] = {"seconds": round(time.monotonic() - begun), "found": found,
                                  "runs": bench.runs, "disturbed": bench.disturbed}
        results["machine"] = describe_machine(load)
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(report.text(results, bench.ways, part), flush=True)
    print(goals(results, bench.ways))
    report.write(results, bench.ways, directory)
    plot.write(results, bench.ways, directory)


if __name__ == "__main__":
    main()
