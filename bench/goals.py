"""Which goals are met, and in what else libhandoff is slower. bench/README.md says how each is
measured."""
import itertools
import re
from statistics import median

from figures import (CHECKS, LOOPS, OURS, PLAIN, REACH, SPINNING, best, both, elapsed, found, ratio,
                     table)


MOVE_CASES = {"full": "256 in flight", "apart": "1 in flight, two processors",
              "together": "1 in flight, one processor"}
OWN_WAYS = {OURS: "event loop", "blocking": "blocking calls"}


def goal(what, other, limit, figure, reach=((), ()), unit="", note=""):
    """A row: what is compared with what, the goal, such as "at most 1.05", what was found, and the
    best of what plain C with the same checks reaches, in the two ways of REACH."""
    kind, bound = limit.rsplit(" ", 1)
    figure = round(figure, 2)  # as it is shown
    met = {"at most": figure <= float(bound), "at least": figure >= float(bound),
           "below": figure < float(bound)}[kind]
    return [what, other, f"{limit} {unit}".strip() + note, f"{figure:.2f} {unit}".strip(),
            "met" if met else "not met",
            *(f"{(max if kind == 'at least' else min)(of):.2f}" if of else "" for of in reach)]


def reached(figure):
    return [[figure(key) for key in keys] for keys in REACH]


def ours_and_reach(figure):
    return figure(OURS), reached(figure)


def loop_goals(costs, ways):
    """In an event loop, with so many in flight: beside the peer that does better."""
    for ours, loop in ((OURS, "event loop"), (SPINNING, "event loop, spin_us")):
        for number_of, (name, what) in itertools.product(
                costs[ours], (("time", elapsed), ("processor time", both))):
            def over(key, peer):
                return ratio(what(costs[key][number_of]), what(costs[peer][number_of]))

            peer = max(LOOPS, key=lambda peer: over(ours, peer))
            yield goal(f"{loop}, {number_of} in flight: {name}", ways[peer].title, "at most 1.00",
                       over(ours, peer), reached(lambda key: over(key, peer))
                       if ours == OURS else ((), ()))


def move_goals(of, ways):
    for case, where, mode, limit in (
            ("apart", "two processors", "blocking", "at most 1.10"),
            ("together", "one processor", "blocking", "at most 1.10"),
            ("apart", "two processors", "spinning", "below 1")):
        def over(key):
            return ratio(of[case][key]["elapsed"], of[case][PLAIN]["elapsed"])

        yield goal(f"{mode} calls, 1 in flight, {where}: time", ways[PLAIN].title, limit,
                   over(mode), ([over(f"checks-{mode}")], ()))
    costs = of["full"]
    peer = best(costs, ways, elapsed)
    yield goal("channel, 256 in flight: handoffs a second", ways[peer].title, "at least 2.5",
               *ours_and_reach(lambda key: ratio(elapsed(costs[peer]), elapsed(costs[key]))))
    peer = best(costs, ways, both)
    yield goal("channel, 256 in flight: processor time", ways[peer].title, "at most 0.4",
               *ours_and_reach(lambda key: ratio(both(costs[key]), both(costs[peer]))))


def growth_goals(grown, ways):
    def over(what, value, other, key=OURS):
        return ratio(grown[what][key][value]["elapsed"], other["elapsed"])

    plain = grown["preread"][PLAIN]["65536"]
    yield goal("channel, 64 KiB of preread: time", ways[PLAIN].title, "at most 1.00",
               *ours_and_reach(lambda key: over("preread", "65536", plain, key)))
    for what, value, limit in (("channels", "64", "at most 1.50"),
                               ("backends", "4", "at most 1.05")):
        # Backends are handles in one process, as the channels of plain C are.
        reach = reached(lambda key: over("channels", value, grown["channels"][key]["1"], key))
        yield goal(f"{value} {what}, 256 in flight in all: time", f"one {what[:-1]}", limit,
                   over(what, value, grown[what][OURS]["1"]), reach)


def serve_goals(served, ways):
    for concurrency, costs in served.items():
        clients = f"clients, {concurrency} at a time"
        if concurrency != "1":
            peer = min((key for key in costs if ways[key].moves and key not in (OURS, *CHECKS)),
                       key=lambda key: median(elapsed(costs[key])))
            yield goal(f"{clients}: clients a second", ways[peer].title, "at least 0.97",
                       *ours_and_reach(lambda key: ratio(elapsed(costs[peer]),
                                                         elapsed(costs[key]))))
            yield goal(f"{clients}: processor time", ways[PLAIN].title, "at most 1.00",
                       *ours_and_reach(lambda key: ratio(both(costs[key]), both(costs[PLAIN]))))
        for i, name in enumerate(("p50", "p99")):
            def quantile(key):
                return costs[key]["quantiles"][i]

            proxy = min((key for key in costs if ways[key].proxies), key=quantile)
            noise = max(costs[key]["noise"] for key in (OURS, proxy))
            limit, note = (("below 1", "") if name == "p50" else
                           (f"at most {noise:.2f}", " (two runs of one program)"))
            yield goal(f"{clients}: time to first byte, {name}", ways[proxy].title, limit,
                       *ours_and_reach(lambda key: quantile(key) / quantile(proxy)), note=note)


def goal_rows(results, ways):
    """One for each goal whose part has been run."""
    raw, of, grown, served, scale, start = (
        found(results, part)
        for part in ("raw_layer", "move", "growth", "serve", "scale", "start"))
    if grown:
        yield from loop_goals(grown["in_flight"], ways)
    if of:
        yield from move_goals(of, ways)
    if grown:
        yield from growth_goals(grown, ways)
    if scale:
        rows = [re.split(r"\s{2,}", line) for line in scale[1:]]
        name, _, worst = max(rows, key=lambda row: float(row[-1]))
        yield goal(f"channel, {name}: time", "one channel", "at most 1.20", float(worst))
    if served:
        yield from serve_goals(served, ways)
    if raw:
        ratios = [float(line.split()[-1]) for line in raw if line.startswith("round trip")]
        yield goal("raw layer, round trip: time", "plain C", "at most 1.05", max(ratios))
    if start:
        yield goal("start to first handoff: p50", "", "below 1",
                   float(start[-1].split()[0]) / 1000, unit="ms")


NGINX_GOAL = re.compile(r"(.+?)(?:, of (.+))?: (.+?) {2,}([\d.]+)  (met|NOT MET)")


def nginx_goal_rows(text):
    """Those that bench/nginx/bench.py prints, such as "close, requests a second, of proxy_pass: 1
    at least    1.18  met"."""
    for what, other, limit, figure, met in NGINX_GOAL.findall(text):
        limit = re.sub(r"([\d.]+) (at \w+)", r"\2 \1", limit)
        yield [f"nginx module, {what.replace(', ', ': ', 1)}", other, limit, figure, met.lower(),
               "", ""]


def goals(results, ways, nginx=""):
    return table(["libhandoff", "compared with", "goal", "figure", "result",
                  "plain C, same checks", "one descriptor"],
                 [*goal_rows(results, ways), *nginx_goal_rows(nginx)], left=3)


def slower(results, ways):
    """The ways to move connections that are faster, and how much; docs/performance.md says why."""
    moved, grown, served = (found(results, part) for part in ("move", "growth", "serve"))
    cases = [(f"{MOVE_CASES[case]}, {OWN_WAYS[ours]}", "move", costs, ours)
             for case, costs in moved.items() for ours in OWN_WAYS if ours in costs]
    cases += [(f"{number_of} in flight", "growth",
               {key: costs[number_of] for key, costs in grown["in_flight"].items()}, OURS)
              for number_of in grown["in_flight"][OURS]]
    cases += [(f"clients, {concurrency} at a time", "serve", costs, OURS)
              for concurrency, costs in served.items()]
    rows = []
    for what, part, costs, ours in cases:
        # Blocking calls beside blocking ones. Of plain C the other two differ only where many wait.
        left_out = {OURS, *CHECKS, *(LOOPS if ours != OURS else [])}
        if not what.startswith("256"):
            left_out |= {"plain-gather", "plain-many"}
        peers = {key: ratio(elapsed(costs[ours]), elapsed(costs[key])) for key in costs
                 if ways[key].moves and not ways[key].alone and key not in left_out}
        ahead = [f"{ways[key].title}: {figure:.2f}"
                 for key, figure in sorted(peers.items(), key=lambda peer: -peer[1])
                 if round(figure, 2) > 1]
        if ahead:
            rows.append([what, "; ".join(ahead), f"`make bench PART={part}`"])
    return table(["libhandoff", "time, divided by that of", "command"], rows, left=3)


def summary(results):
    """What a reader wants to know first."""
    moved, served = found(results, "move"), found(results, "serve")
    us = {case: median(elapsed(moved[case][OURS])) / 1000 for case in ("apart", "full")}
    clients = 1e9 / median(elapsed(served["256"][OURS]))
    return (f"On two cores of an {results['machine']['processor'].split(',')[0]}: a handoff that is alone "
            f"takes {us['apart']:.0f} µs, mostly to wake up both sides;\nwith 256 in flight one takes "
            f"{us['full']:.1f} µs. {clients:,.0f} TCP clients a second are accepted, handed over and "
            "answered, with the\nprogram that plays them on the same two cores.\n")
