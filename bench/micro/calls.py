"""Counts the system calls of a handoff, both sides together, and compares them with a baseline.

calls.py COUNT BASELINE [--renew]: runs COUNT, which src/main.rs makes, under strace, twice: what start
and end need falls out. What timers cost depends on how fast it runs, so it is left out: setting them, and
for each that fires an epoll_wait(2) and a read(2). c-tests/test_budget.c counts timers.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ALLOWED = 0.03
IN_FLIGHT = [1, 256]
HANDOFFS = 2048


def total(program: str, in_flight: int, rounds: int) -> int:
    with tempfile.NamedTemporaryFile("r") as out:
        subprocess.run(["strace", "-f", "-c", "-qq", "-o", out.name, program, str(in_flight),
                        str(rounds)], check=True)
        rows = [line.split() for line in out.read().splitlines()]
    calls = {row[-1]: int(row[3]) for row in rows if row and row[0][0].isdigit()}
    return calls["total"] - calls.get("timerfd_settime", 0) - 2 * calls.get("read", 0)


def main() -> None:
    program, baseline = sys.argv[1], Path(sys.argv[2])
    now = {}
    for in_flight in IN_FLIGHT:
        rounds = HANDOFFS // in_flight
        more = total(program, in_flight, 2 * rounds) - total(program, in_flight, rounds)
        now[str(in_flight)] = more / (rounds * in_flight)
    if "--renew" in sys.argv:
        baseline.write_text("# System calls for each handoff; made by `make bench-baseline`\n" + "".join(
            f"{number:8.2f}  {in_flight} in flight\n" for in_flight, number in now.items()))
        print(baseline.read_text(), end="")
        return

    rows = [line.split() for line in baseline.read_text().splitlines() if line[0] != "#"]
    before = {row[1]: float(row[0]) for row in rows}
    failed = before.keys() != now.keys()
    for in_flight, number in now.items():
        change = number / before[in_flight] - 1 if in_flight in before else float("nan")
        failed |= change > ALLOWED
        mark = " <- too many" if change > ALLOWED else ""
        what = f"system calls, {in_flight} in flight"
        print(f"{what:32} {before.get(in_flight, 0):8.2f} {number:8.2f} {change:+7.1%}{mark}")
    if failed:
        sys.exit("error: a handoff makes over 3 % more system calls than in the baseline. If it is "
                 "meant to be so, `make bench-baseline` renews bench/micro/calls.txt.")


main()
