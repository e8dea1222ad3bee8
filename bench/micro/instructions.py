"""Counts the instructions that each hot path takes in user space and compares them with a baseline.

instructions.py COUNT BASELINE [--renew]: runs COUNT, which src/main.rs makes, under callgrind. The
counts are the same in every run: random bytes are fixed, system calls and waiting are not counted.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ALLOWED = 0.05


def count(program: str) -> dict[str, float]:
    """Instructions for each time that a path was taken."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "out")
        printed = subprocess.run(
            ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}",
             "--collect-atstart=no", "--toggle-collect=counted", "--dump-after=counted", program],
            check=True, stdout=subprocess.PIPE, text=True).stdout
        counts = {}
        for number, line in enumerate(printed.splitlines(), 1):
            times, name = line.split("\t")
            dump = Path(f"{out}.{number}").read_text()
            total = int(re.search(r"^totals: (\d+)$", dump, re.M)[1])
            if total == 0:
                sys.exit(f"error: callgrind counted nothing in {name!r}")
            counts[name] = total / int(times)
        return counts


def read(baseline: Path) -> tuple[str, dict[str, float]]:
    compiler, counts = "", {}
    for line in baseline.read_text().splitlines():
        if line.startswith("# rustc"):
            compiler = line[2:]
        elif not line.startswith("#"):
            number, name = line.split(None, 1)
            counts[name] = float(number)
    return compiler, counts


def main() -> None:
    program, baseline = sys.argv[1], Path(sys.argv[2])
    verbose = subprocess.run(["rustc", "-vV"], check=True, stdout=subprocess.PIPE, text=True).stdout
    host = re.search(r"^host: (.+)$", verbose, re.M)[1]
    compiler = f"{verbose.splitlines()[0]}, {host}"
    now = count(program)
    if "--renew" in sys.argv:
        lines = [f"{number:8.1f}  {name}\n" for name, number in now.items()]
        baseline.write_text("# Instructions in user space; made by `make bench-baseline` with\n"
                            f"# {compiler}\n" + "".join(lines))
        print(baseline.read_text(), end="")
        return

    made_with, before = read(baseline)
    failed = before.keys() != now.keys()
    for name, number in now.items():
        change = number / before[name] - 1 if name in before else float("nan")
        failed |= change > ALLOWED
        mark = " <- too much" if change > ALLOWED else ""
        print(f"{name:32} {before.get(name, 0):8.1f} {number:8.1f} {change:+7.1%}{mark}")
    if not failed:
        return
    print("error: a hot path takes over 5 % more instructions than in the baseline, or is not in it.")
    if compiler != made_with:
        print(f"The baseline is of {made_with}; this is {compiler}, which may be why.")
    print("If it is meant to be so, `make bench-baseline` renews bench/micro/instructions.txt.")
    sys.exit(1)


main()
