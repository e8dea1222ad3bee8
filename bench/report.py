"""Tables of what was found. bench/README.md says how to read them."""
import json
from statistics import median

from figures import OURS, PLAIN, both, found, number, ratio, table
from goals import goals

# ---- a table for each part ----

def move_table(costs, ways, calls):
    rows = []
    for key, of in costs.items():
        rows.append([
            ways[key].title, number(1e9 / median(of["elapsed"])), number(median(of["elapsed"])),
            number(ratio(of["elapsed"], costs[PLAIN]["elapsed"])),
            number(ratio(of["elapsed"], costs[OURS]["elapsed"])),
            number(median(of["broker"])), number(median(of["backend"])),
            number(ratio(both(of), both(costs[PLAIN]))),
            *([number(calls[key])] if calls else []),
        ])
    head = ["", "a second", "ns", "ns/plain C", "ns/libhandoff", "cpu broker", "cpu backend",
            "cpu/plain C", *(["system calls"] if calls else [])]
    return table(head, rows)


MOVE = {
    "full": "Without clients, 256 in flight, each side on a processor of its own",
    "apart": "Without clients, one at a time, each side on a processor of its own",
    "together": "Without clients, one at a time, both sides on one processor",
}


def move(results, ways):
    calls = found(results, "calls") or {}
    return "\n\n".join(
        f"{title}; nanoseconds for each handoff\n\n"
        + move_table(found(results, "move")[case], ways,
                     calls.get("full" if case == "full" else "alone"))
        for case, title in MOVE.items())


def serve(results, ways):
    calls = (found(results, "calls") or {}).get("serve")
    parts = []
    for concurrency, costs in found(results, "serve").items():
        ours = costs[OURS]["quantiles"]
        rows = []
        for key, of in costs.items():
            quantiles = of["quantiles"]
            rows.append([
                ways[key].title, *(number(value / 1000) for value in quantiles),
                number(of["noise"]),
                *(number(mine / its) for mine, its in zip(ours, quantiles)),
                number(1e9 / median(of["elapsed"])),
                *(number(median(of[side]) / 1000) for side in ("broker", "backend")),
                *([number(calls[key])] if calls and concurrency == "16" else []),
            ])
        head = ["", "p50", "p99", "p99.9", "p99 of two runs", "libhandoff/it p50", "p99", "p99.9",
                "clients a second",
                "cpu broker", "cpu backend",
                *(["system calls"] if calls and concurrency == "16" else [])]
        parts.append(f"Clients, {concurrency} at a time; microseconds to the first byte, and of "
                     "processor time for each client\n\n" + table(head, rows))
    return "\n\n".join(parts)


def after(results, ways):
    rows = []
    for key, of in found(results, "after").items():
        rows.append([ways[key].title, number(median(of["bytes_a_second"]) / 1e6),
                     *(number(median(of[answer][side]) / 1000)
                       for side in ("broker", "backend") for answer in ("short", "long"))])
    return ("Answers of 64 MiB, one client at a time; microseconds of processor time for each "
            "client, beside those for an answer of 128 bytes\n\n"
            + table(["", "MB a second", "broker, 128 bytes", "broker, 64 MiB",
                     "backend, 128 bytes", "backend, 64 MiB"], rows))


def memory(results, ways):
    rows = [[ways[key].title, *of["idle"], *of["held"],
             *(number(1024 * (held - idle) / 10000) for held, idle in zip(of["held"], of["idle"]))]
            for key, of in found(results, "memory").items()]
    return ("Peak memory with 10,000 in flight; KiB\n\n"
            + table(["", "broker, 1", "backend, 1", "broker, 10,000", "backend, 10,000",
                     "bytes for each, broker", "backend"], rows))


GROWTH = {
    "in_flight": "in flight", "preread": "bytes of preread, 64 in flight",
    "many": "descriptors a message, 504 in flight", "channels": "channels, 256 in flight in all",
    "backends": "backends of one broker, 256 in flight in all",
}


def growth(results, ways):
    parts = []
    for what, title in GROWTH.items():
        by_way = found(results, "growth")[what]
        head, values = [title], list(next(iter(by_way.values())))
        for key in by_way:
            title_of = ways[key].title if key != "plain-many" else "plain C, many a message"
            head += [f"{title_of}: ns", "cpu"]
        rows = [[value, *(cell for of in by_way.values()
                          for cell in (number(median(of[value]["elapsed"])),
                                       number(median(both(of[value])))))] for value in values]
        parts.append(table(head, rows))
    return ("Without clients, as one parameter grows; nanoseconds for each handoff\n\n"
            + "\n\n".join(parts))


def calls(results, ways):
    of = found(results, "calls")
    return ("System calls for each handoff, on both sides, under strace\n\n"
            + table(["", "256 in flight", "one at a time", "with a client"],
                    [[ways[key].title,
                      *(number(of[case][key]) if key in of[case] else "" for case in of)]
                     for key in ways if any(key in of[case] for case in of)]))


def checks(results, ways):
    return ("What the checks of each connection cost\n\n"
            + table(["", "channel, ns", "a second/plain C, 1 a message",
                     "ns/plain C, 64 a message"],
                    [[case, number(ns), number(1 / one), number(many)]
                     for case, (ns, one, many) in found(results, "checks").items()]))


TABLES = {"move": move, "serve": serve, "after": after, "memory": memory, "growth": growth,
          "calls": calls, "checks": checks}


def text(results, ways, part):
    if part in TABLES:
        return TABLES[part](results, ways) + "\n"
    return "\n".join([f"{part}:", *found(results, part), ""])


# ---- streams through nginx ----

STREAM_WAYS = {"handoff_pass": "`handoff_pass`", "proxy_pass": "`proxy_pass`, unbuffered",
               "direct": "direct, no nginx"}


def streams(results):
    """What bench/nginx/bench_streams.py has found."""
    seconds = results["seconds"]
    rows = []
    for way, of in results["found"].items():
        both_sides = {"both": list(map(sum, zip(of["nginx"], of["backend"])))} if "nginx" in of else {}
        of = {**of, **both_sides}
        rows.append([STREAM_WAYS[way], *(
            f"{median(of[what]):,.0f} {unit}".strip() if what in of else ""
            for what, unit in (("memory", "B"), ("nginx", "ms"), ("descriptors", ""),
                               ("backend", "ms"), ("both", "ms"), ("p50", "µs"), ("p99", "µs")))])
    repetitions = len(results["found"]["direct"]["p50"])
    machine = results["machine"]
    return (table([f"{results['streams']:,} streams", "nginx: memory each",
                   f"nginx: processor, {seconds} s", "nginx: descriptors",
                   f"backend: processor, {seconds} s", "both", "an event: p50", "p99"], rows)
            + f"\n\nMedians of {repetitions}; {machine['date']}; {machine['processor']}; "
            f"Linux {machine['kernel']}; nginx {machine['versions']['nginx']}; "
            f"libhandoff {machine['versions']['libhandoff']}; load {machine['load']} before it "
            "began.\n")


def read_streams(directory):
    """The results of make bench-nginx PART=streams, if it was run."""
    file = directory / "streams.json"
    return json.loads(file.read_text()) if file.exists() else None


# ---- files ----

def head(results):
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    load = f"; load {machine['load']} before it began" if "load" in machine else ""
    system = f"{machine['processor']}; Linux {machine['kernel']}{load}"
    parts = results["parts"].values()
    runs, disturbed = (sum(part.get(what, 0) for part in parts) for what in ("runs", "disturbed"))
    steady = f"Of {runs:,} runs {disturbed:,} were taken while the processors were not steady."
    return f"{machine['date']}; {system}.\n{versions}.\n{steady}\n"


def nginx_text(directory):
    """What make bench-nginx has printed, if it was run."""
    file = directory / "nginx.txt"
    return file.read_text() if file.exists() else ""


def write(results, ways, directory):
    """One file with all tables, for people; results.json has all repetitions."""
    nginx = nginx_text(directory)
    parts = ["# Results\n", head(results),
             "[bench/README.md](../README.md) says what is measured and how to read the tables.\n",
             "## goals\n", goals(results, ways, nginx) + "\n"]
    for part in results["parts"]:
        body = (text(results, ways, part) if part in TABLES else
                "\n".join(["```", *found(results, part), "```", ""]))
        parts += [f"## {part}\n", body]
    if nginx:
        parts += ["## nginx\n", f"```\n{nginx}```\n"]
    if found_streams := read_streams(directory):
        parts += ["## streams\n", streams(found_streams)]
    (directory / "results.md").write_text("\n".join(parts))
