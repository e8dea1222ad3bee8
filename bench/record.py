"""Makes the results of the last `make bench` and `make bench-nginx` those of this repository.

    record.py RESULTS

Copies them to bench/results, and fills the sections of docs/performance.md that begin with a line
"<!-- bench: NAME -->" and end with "<!-- end -->".
"""
import json
import pathlib
import re
import shutil
import sys

import report
from ways import HERE, all_ways


def main():
    source, target = pathlib.Path(sys.argv[1]), HERE / "results"
    results = json.loads((source / "results.json").read_text())
    ways = {way.key: way for way in all_ways(source.parent)}
    target.mkdir(exist_ok=True)
    for file in [*source.glob("results.*"), *source.glob("*.svg"), source / "nginx.txt"]:
        shutil.copy(file, target)

    def section(match):
        name = match[1]
        if name == "machine":
            body = report.head(results)
        elif name == "goals":
            body = f"{report.goals(results, ways)}\n"
        elif name == "nginx":
            body = f"```\n{(source / 'nginx.txt').read_text()}```\n"
        elif name in report.TABLES:
            body = report.text(results, ways, name)
        else:
            body = f"```\n{report.text(results, ways, name)}```\n"
        return f"<!-- bench: {name} -->\n\n{body}\n<!-- end -->"

    document = HERE.parent / "docs/performance.md"
    document.write_text(re.sub(r"<!-- bench: (\w+) -->.*?<!-- end -->", section,
                               document.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
