"""Makes the results of the last `make bench` and `make bench-nginx` those of this repository.

    record.py RESULTS

bench/results gets what was measured (results.json, nginx.txt, streams.json), and the tables and plots
that are made from it. docs/performance.md and README.md get their sections from a line
"<!-- bench: NAME -->" to the next "<!-- end -->". RESULTS may be bench/results itself: then the texts
are written again, as after a change of report.py or plot.py.
"""
import json
import pathlib
import re
import shutil
import sys

import plot
import report
from bench import PARTS
from figures import FORM
from goals import goals, slower, summary
from ways import HERE, all_ways


def main():
    source, target = pathlib.Path(sys.argv[1]).resolve(), HERE.resolve() / "results"
    results = json.loads((source / "results.json").read_text())
    if results.get("form") != FORM:
        sys.exit("error: these results are of an older bench.py: please run make bench")
    missing = [part for part in PARTS if part not in results["parts"]]
    if missing:
        sys.exit(f"error: no results of {', '.join(missing)}: please run make bench")
    target.mkdir(exist_ok=True)
    for file in [source / name for name in ("results.json", "nginx.txt", "streams.json")]:
        if file.exists() and source != target:
            shutil.copy(file, target)
    ways = {way.key: way for way in all_ways(source.parent)}
    report.write(results, ways, target)
    plot.write(results, ways, target)
    streams = report.read_streams(target)
    (target / "streams.svg").write_text(plot.streams(streams))

    sections = {
        "machine": report.head(results),
        "summary": summary(results),
        "goals": goals(results, ways, report.nginx_text(target)) + "\n",
        "plots": "".join(f"![{title}](../bench/results/{name}.svg)\n\n"
                         for name, title in plot.PLOTS.items()).removesuffix("\n"),
        "slower": slower(results, ways) + "\n",
        "streams": report.streams(streams),
    }
    for document in HERE.parent / "docs/performance.md", HERE.parent / "README.md":
        document.write_text(re.sub(
            r"<!-- bench: (\w+) -->.*?<!-- end -->",
            lambda match: f"<!-- bench: {match[1]} -->\n\n{sections[match[1]]}\n<!-- end -->",
            document.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
