"""Tables of what was found, as Markdown that can be read as it is, and which goals are met.

bench/README.md says how to read them.
"""
import json
import re
from statistics import median

PLAIN, OURS = "plain", "channel"


def table(head, rows, left=1):
    """The first columns are aligned to the left, those of figures to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells):
        padded = [cell.ljust(width) if i < left else cell.rjust(width)
                  for i, (cell, width) in enumerate(zip(cells, widths))]
        return "| " + " | ".join(padded) + " |"

    rule = [*("-" * width for width in widths[:left]),
            *("-" * (width - 1) + ":" for width in widths[left:])]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def number(value):
    """With three digits or so."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(over, under):
    """The median of the ratios in each repetition."""
    return median(a / b for a, b in zip(over, under))


def both(costs):
    return [a + b for a, b in zip(costs["broker"], costs["backend"])]


def found(results, part):
    return results["parts"].get(part, {}).get("found")


def best(costs, ways, what):
    """The way with the lowest figure, of those that send one descriptor a message."""
    return min((key for key in costs if ways[key].one_descriptor),
               key=lambda key: median(what(costs[key])))


def elapsed(costs):
    return costs["elapsed"]


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
                *(number(mine / its) for mine, its in zip(ours, quantiles)),
                number(1e9 / median(of["elapsed"])),
                *(number(median(of[side]) / 1000) for side in ("broker", "backend")),
                *([number(calls[key])] if calls and concurrency == "16" else []),
            ])
        head = ["", "p50", "p99", "p99.9", "libhandoff/it p50", "p99", "p99.9", "clients a second",
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
                     for key in of["serve"]]))


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


# ---- the goals, and what else is slower ----

def goal(what, other, limit, figure, unit=""):
    """A row: what is compared with what, the goal, such as "at most 1.05", and what was found."""
    kind, bound = limit.rsplit(" ", 1)
    met = {"at most": figure <= float(bound), "at least": figure >= float(bound),
           "below": figure < float(bound)}[kind]
    return [what, other, f"{limit} {unit}".strip(), f"{figure:.2f} {unit}".strip(),
            "met" if met else "not met"]


def goal_rows(results, ways):
    """One for each goal whose part has been run."""
    raw, of, served, scale, start = (
        found(results, part) for part in ("raw_layer", "move", "serve", "scale", "start"))
    if raw:
        ratios = [float(line.split()[-1]) for line in raw if line.startswith("round trip")]
        yield goal("raw layer, round trip: time", "plain C", "at most 1.05", max(ratios))
    if of:
        for case, where in (("apart", "two processors"), ("together", "one processor")):
            yield goal(f"channel, one at a time, {where}: time", ways[PLAIN].title, "at most 1.05",
                       ratio(of[case][OURS]["elapsed"], of[case][PLAIN]["elapsed"]))
        costs = of["full"]
        peer = best(costs, ways, elapsed)
        yield goal("channel, 256 in flight: handoffs a second", ways[peer].title, "at least 3",
                   ratio(costs[peer]["elapsed"], costs[OURS]["elapsed"]))
        peer = best(costs, ways, both)
        yield goal("channel, 256 in flight: processor time", ways[peer].title, "at most 0.5",
                   ratio(both(costs[OURS]), both(costs[peer])))
    if scale:
        rows = [re.split(r"\s{2,}", line) for line in scale[1:]]
        name, _, worst = max(rows, key=lambda row: float(row[-1]))
        yield goal(f"channel, {name}: time", "one channel", "at most 1.20", float(worst))
    for concurrency, costs in (served or {}).items():
        others = [key for key in costs if not ways[key].moves]
        for i, name in enumerate(("p50", "p99", "p99.9")):
            closest = min(others, key=lambda key: costs[key]["quantiles"][i])
            yield goal(f"clients, {concurrency} at a time: time to first byte, {name}",
                       ways[closest].title, "below 1",
                       costs[OURS]["quantiles"][i] / costs[closest]["quantiles"][i])
    if start:
        yield goal("start to first handoff: p50", "", "below 1",
                   float(start[-1].split()[0]) / 1000, "ms")


NGINX_GOAL = re.compile(r"(.+?)(?:, of (.+))?: (.+?) {2,}([\d.]+)  (met|NOT MET)")


def nginx_goal_rows(text):
    """Those that bench/nginx/bench.py prints, such as "close, requests a second, of proxy_pass: 1
    at least    1.18  met"."""
    for what, other, limit, figure, met in NGINX_GOAL.findall(text):
        limit = re.sub(r"([\d.]+) (at \w+)", r"\2 \1", limit)
        yield [f"nginx module, {what.replace(', ', ': ', 1)}", other, limit, figure, met.lower()]


def goals(results, ways, nginx=""):
    return table(["libhandoff", "compared with", "goal", "figure", "result"],
                 [*goal_rows(results, ways), *nginx_goal_rows(nginx)], left=3)


def slower(results, ways):
    """Other comparisons in which libhandoff takes longer; docs/performance.md says why."""
    of, grown, served = (found(results, part) for part in ("move", "growth", "serve"))

    def row(what, costs, other, part, title=None):
        figure = ratio(costs["elapsed"], other["elapsed"])
        return [what, title, f"{figure:.2f}", f"`make bench PART={part}`"]

    in_flight, preread, channels = (grown[what] for what in ("in_flight", "preread", "channels"))
    moving = [key for key in served["16"] if ways[key].moves]
    peer = min(moving, key=lambda key: median(served["16"][key]["elapsed"]))
    return table(["libhandoff", "compared with", "time", "command"], [
        row("4 in flight", in_flight[OURS]["4"], in_flight[PLAIN]["4"], "growth",
            ways[PLAIN].title),
        row("256 in flight", of["full"][OURS], of["full"]["plain-many"], "move",
            ways["plain-many"].title),
        row("64 KiB of preread", preread[OURS]["65536"], preread[PLAIN]["65536"], "growth",
            ways[PLAIN].title),
        row("64 channels, 256 in flight in all", channels[OURS]["64"], channels[OURS]["1"],
            "growth", "one channel"),
        row("16 clients at a time", served["16"][OURS], served["16"][peer], "serve",
            ways[peer].title),
    ], left=2)


# ---- streams through nginx ----

STREAM_WAYS = {"handoff_pass": "`handoff_pass`", "proxy_pass": "`proxy_pass`, unbuffered",
               "direct": "direct, no nginx"}


def streams(results):
    """What bench/nginx/bench_streams.py has found."""
    seconds = results["seconds"]
    rows = []
    for way, of in results["found"].items():
        rows.append([STREAM_WAYS[way], *(
            f"{median(of[what]):,.0f} {unit}".strip() if what in of else ""
            for what, unit in (("memory", "B"), ("nginx", "ms"), ("descriptors", ""),
                               ("backend", "ms"), ("p50", "µs"), ("p99", "µs")))])
    repetitions = len(results["found"]["direct"]["p50"])
    machine = results["machine"]
    return (table([f"{results['streams']:,} streams", "nginx: memory each",
                   f"nginx: processor, {seconds} s", "nginx: descriptors",
                   f"backend: processor, {seconds} s", "an event: p50", "p99"], rows)
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
    return f"{machine['date']}; {system}.\n{versions}.\n"


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
