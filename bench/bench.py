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
import resource
import subprocess
import sys
import time

import machine
import plot
import report
from ways import HERE, all_ways, run_move, run_serve

REPETITIONS = int(os.environ.get("REPETITIONS", 0))
HANDOFFS = int(os.environ.get("HANDOFFS", 20000))
REQUESTS = int(os.environ.get("REQUESTS", 3000))
CPUS = (sorted(os.sched_getaffinity(0)) * 2)[:2]  # of the broker and of the backend
HELD = 10000
BULK = 64 << 20  # bytes in an answer


class Bench:
    def __init__(self, programs):
        self.programs = programs
        self.ways = {way.key: way for way in all_ways(programs)}
        self.moving = [way for way in self.ways.values() if way.moves]

    def in_turns(self, cases, repetitions, run):
        """Runs each case `repetitions` times, each time with another one first. Returns
        {case: [sample...]}."""
        cases = list(cases)
        samples = {case: [] for case in cases}
        for repetition in range(REPETITIONS or repetitions):
            first = repetition % len(cases)
            for case in cases[first:] + cases[:first]:
                samples[case].append(run(case))
        return samples

    def move_once(self, key, in_flight=256, handoffs=HANDOFFS, cpus=CPUS, **parameters):
        way = self.ways[key]
        handoffs = int(handoffs * way.pace)
        return run_move(way, handoffs, max(handoffs // 10, 200), in_flight, cpus=cpus, **parameters)

    def move(self):
        """Without clients: 256 in flight, and one at a time, where the kernel wakes the other side
        on the same processor or on another one."""
        cases = {"full": (256, HANDOFFS, CPUS), "apart": (1, HANDOFFS // 4, CPUS),
                 "together": (1, HANDOFFS // 4, CPUS[:1] * 2)}
        keys = [way.key for way in self.moving]
        result = {}
        for case, arguments in cases.items():
            samples = self.in_turns(keys, 9, lambda key: self.move_once(key, *arguments))
            result[case] = {key: costs(of) for key, of in samples.items()}
        return result

    def serve(self):
        """Real clients, so many at a time."""
        result = {}
        for concurrency, repetitions in (("1", 7), ("16", 7), ("256", 5)):
            samples = self.in_turns(self.ways, repetitions, lambda key: run_serve(
                self.programs, self.ways[key], int(concurrency), REQUESTS, REQUESTS // 10))
            result[concurrency] = {}
            for key, of in samples.items():
                times = sorted(time for sample in of for time in sample.times)
                quantiles = [times[int(len(times) * part)] for part in (0.5, 0.99, 0.999)]
                result[concurrency][key] = {**costs(of), "quantiles": quantiles}
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
        for way in self.moving:
            more = {"CHANNELS": 3} if way.key == "channel" else {}  # each takes 4096
            idle = run_move(way, 1)
            held = run_move(way, HELD, in_flight=HELD, HOLD=HELD, **more)
            result[way.key] = {"idle": [idle.broker_kib, idle.backend_kib],
                               "held": [held.broker_kib, held.backend_kib]}
        return result

    def growth(self):
        """What a handoff costs as one parameter grows."""
        handoffs = HANDOFFS // 2

        def grow(keys, values, run):
            cases = [(key, value) for key in keys for value in values]
            samples = self.in_turns(cases, 3, lambda case: run(*case))
            return {key: {str(value): costs(samples[key, value]) for value in values}
                    for key in keys}

        return {
            "in_flight": grow(["channel", "plain", "libuv"], [1, 4, 16, 64, 256, 1024, 4096],
                              lambda key, value: self.move_once(key, value, handoffs)),
            "preread": grow(["channel", "plain", "libuv"], [0, 200, 4096, 65536],
                            lambda key, value: self.move_once(key, 64, handoffs // 2,
                                                              PREREAD=value)),
            "many": grow(["channel", "plain-many"], [1, 4, 16, 64, 252],
                         lambda key, value: self.move_once(key, 504, handoffs, MANY=value)),
            "channels": grow(["channel"], [1, 4, 16, 64, 256],
                             lambda key, value: self.move_once(key, 256, handoffs,
                                                               CHANNELS=value)),
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
        for way in self.ways.values():
            if way.moves:
                for case, in_flight in (("full", 256), ("alone", 1)):
                    result[case][way.key] = calls_of(lambda count, prefix: run_move(
                        way, count, in_flight=in_flight, prefix=prefix))
            result["serve"][way.key] = calls_of(lambda count, prefix: run_serve(
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
            rows = [line.split() for line in self.program("throughput", more)[1:]]
            result[case] = [float(rows[0][-5]), float(rows[1][-1]), float(rows[2][-1])]
        return result

    def program(self, name, more={}):
        output = subprocess.run([self.programs / name], check=True, stdout=subprocess.PIPE,
                                text=True, env={**os.environ, **more}).stdout
        return output.splitlines()

    def smoke(self):
        """Each way brings 200 clients to its backend, and moves as many connections."""
        for way in self.ways.values():
            if way.moves:
                run_move(way, 200)
            run_serve(self.programs, way, 16, 200)
        print(f"check-peers: {len(self.ways)} ways, each 200 clients answered")


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
    results = json.loads(file.read_text()) if file.exists() else {"parts": {}}
    load = os.getloadavg()[0]  # before it is our own
    for part in wanted:
        begun = time.monotonic()
        found = bench.program(part) if part in PROGRAMS else getattr(bench, part)()
        results["parts"][part] = {"seconds": round(time.monotonic() - begun), "found": found}
        results["machine"] = describe_machine(load)
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(report.text(results, bench.ways, part), flush=True)
    print(report.goals(results, bench.ways))
    report.write(results, bench.ways, directory)
    plot.write(results, bench.ways, directory)


if __name__ == "__main__":
    main()
