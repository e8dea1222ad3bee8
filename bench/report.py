"""Tables of what was found, as Markdown that can be read as it is, and which goals are met."""
from statistics import median

PLAIN, OURS = "plain", "channel"


def table(head, rows):
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells):
        padded = [cell.ljust(width) if i == 0 else cell.rjust(width)
                  for i, (cell, width) in enumerate(zip(cells, widths))]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
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
    "window": "in flight", "preread": "bytes of preread, 64 in flight",
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


# ---- the goals ----

def goal_lines(results, ways):
    """(what, figure, met) for each goal whose part has been run."""
    raw, of, served = (found(results, part) for part in ("raw_layer", "move", "serve"))
    if raw:
        ratios = [float(line.split()[-1]) for line in raw if line.startswith("round trip")]
        yield "round trip, raw layer, at most 1.05 of plain C", max(ratios), max(ratios) <= 1.05
    if of:
        for case, where in (("apart", "two processors"), ("together", "one processor")):
            alone = ratio(of[case][OURS]["elapsed"], of[case][PLAIN]["elapsed"])
            yield f"round trip, channel, {where}, at most 1.05 of plain C", alone, alone <= 1.05
        costs = of["full"]
        peer = best(costs, ways, elapsed)
        times = ratio(costs[peer]["elapsed"], costs[OURS]["elapsed"])
        yield (f"256 in flight, at least 3 times the best that sends one descriptor a message "
               f"({ways[peer].title})", times, times >= 3)
        peer = best(costs, ways, both)
        part = ratio(both(costs[OURS]), both(costs[peer]))
        yield (f"processor time, at most 0.5 of the best such ({ways[peer].title})", part,
               part <= 0.5)
    for concurrency, costs in (served or {}).items():
        others = [key for key in costs if not ways[key].moves]
        for i, name in enumerate(("p50", "p99", "p99.9")):
            closest = min(others, key=lambda key: costs[key]["quantiles"][i])
            part = costs[OURS]["quantiles"][i] / costs[closest]["quantiles"][i]
            yield (f"first byte, {concurrency} at a time, {name}, below the best of the others "
                   f"({ways[closest].title})", part, part < 1)
    start = found(results, "start")
    if start:
        milliseconds = float(start[-1].split()[0]) / 1000
        yield "start to first handoff, under 1 ms", milliseconds, milliseconds < 1


def goals(results, ways):
    return table(["", "figure", "met"],
                 [[what, f"{figure:.2f}", "met" if met else "not met"]
                  for what, figure, met in goal_lines(results, ways)])


# ---- files ----

def head(results):
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    load = f"; load {machine['load']} before it began" if "load" in machine else ""
    system = f"{machine['processor']}; Linux {machine['kernel']}{load}"
    return f"{machine['date']}; {system}.\n{versions}.\n"


def write(results, ways, directory):
    """One file with everything, for people; results.json has all repetitions."""
    parts = [f"# Results of make bench\n\n{head(results)}"]
    parts += [text(results, ways, part) if part in TABLES else
              f"```\n{text(results, ways, part)}```\n" for part in results["parts"]]
    parts.append(f"{goals(results, ways)}\n")
    (directory / "results.md").write_text("\n".join(parts))
