"""Plots of what was found, as SVG."""
from html import escape
from math import log10
from statistics import median

from figures import found
from report import GROWTH

WIDTH, LABELS, RIGHT, ROW = 760, 250, 70, 24
OURS_COLOUR, OTHER_COLOUR, SECOND_COLOUR = "#0b6e99", "#9aa5b1", "#d0d6dc"
# Which are drawn, and how.
LINES = {"channel": "#0b6e99", "channel-spinning": "#7fb8d1", "plain": "#c2571a",
         "plain-many": "#c2571a", "checks": "#e0a458", "checks-parts": "#efd2ab",
         "libuv": "#6b7a89", "glib": "#4c9a5b"}
# Where a title up to its first comma or colon would not do.
NAMES = {"channel-spinning": "spin_us", "plain-many": "plain C, many a message",
         "checks": "C, checks", "checks-parts": "C, in parts"}
PLOTS = {
    "move": "Handoffs a second, 256 in flight",
    "processor": "Processor time for each handoff, 256 in flight",
    "first_byte": "Time to first byte, as the client sees it",
    "clients": "Processor time for each client, 16 at a time",
    "after": "The broker's processor time for a client with an answer of 64 MiB",
    "growth": "Nanoseconds for each handoff as one parameter grows",
}
STYLE = ("text{font:12px sans-serif;fill:#222}.title{font:bold 14px sans-serif}"
         ".note{fill:#666}.end{text-anchor:end}.middle{text-anchor:middle}"
         ".grid{stroke:#e3e7eb}.axis{stroke:#9aa5b1}")


def text(x, y, words, kind=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(words)}</text>'


def line(x1, y1, x2, y2, kind="grid"):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def box(x, y, width, height, colour):
    return (f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" '
            f'fill="{colour}"/>')


def dot(x, y, colour, radius=4):
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>'


def svg(height, parts, width=WIDTH):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}"><style>{STYLE}</style>'
            f'<rect width="100%" height="100%" fill="#fff"/>' + "\n".join(parts) + "</svg>\n")


def short(value):
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def bar_rows(top, rows, longest):
    """A bar for each row (label, [values], is_ours); the values of a row are stacked. One that is
    longer than the longest is cut off."""
    scale = (WIDTH - LABELS - RIGHT) / longest
    parts = []
    for i, (label, values, is_ours) in enumerate(rows):
        y, x = top + i * ROW, LABELS
        parts.append(text(LABELS - 8, y + 14, label, "end"))
        colours = [OURS_COLOUR if is_ours else OTHER_COLOUR,
                   "#7fb8d1" if is_ours else SECOND_COLOUR]
        is_cut = sum(values) > longest
        for value, colour in zip(values, colours):
            part = value * scale * (longest / sum(values) if is_cut else 1)
            parts.append(box(x, y + 2, part, 16, colour))
            x += part
        if is_cut:
            parts += [f'<path d="M{x - 24 + gap} {y + 20}l6 -20" stroke="#fff" stroke-width="3"/>'
                      for gap in (0, 8)]
        parts.append(text(x + 6, y + 14, short(sum(values))))
    return parts


def bars(title, note, rows):
    """Bars, of which one that is much longer than all others is cut off."""
    sums = sorted(sum(values) for _, values, _ in rows)
    longest = sums[-1] if sums[-1] < 3 * sums[-2] else 1.2 * sums[-2]
    return svg(64 + len(rows) * ROW, [text(16, 24, title, "title"), text(16, 42, note, "note"),
                                      *bar_rows(56, rows, longest)])


def streams(results):
    """What bench/nginx/bench_streams.py has found: bars of each kind of figure, for the ways that
    have it."""
    kinds = {
        "nginx's memory for each stream, bytes": ["memory"],
        f"processor time in {results['seconds']} s, ms; dark: nginx, light: the backend":
            ["nginx", "backend"],
        "nginx's descriptors": ["descriptors"],
        "an event from the backend to the client, microseconds: p50": ["p50"],
        "p99": ["p99"],
    }
    parts = [text(16, 24, f"{results['streams']:,} event streams, an event a second in each; "
                  "shorter is better", "title")]
    y = 36
    for title, kind in kinds.items():
        rows = [(way, [median(of.get(what, [0])) for what in kind], way == "handoff_pass")
                for way, of in results["found"].items() if kind[-1] in of]
        parts += [text(LABELS, y + 14, title, "note"),
                  *bar_rows(y + 20, rows, max(sum(values) for _, values, _ in rows))]
        y += 30 + len(rows) * ROW
    return svg(y, parts)


def ticks(low, high):
    """1, 2, 5, 10... between two bounds."""
    return [digit * 10 ** power for power in range(-1, 10) for digit in (1, 2, 5)
            if low <= digit * 10 ** power <= high]


def first_byte(served, ways):
    """p50, p99 and p99.9 of each way on a logarithmic scale, one panel for each concurrency."""
    parts = [text(16, 24, PLOTS["first_byte"], "title"),
             text(16, 42, "microseconds, logarithmic; from left to right p50, p99, p99.9", "note")]
    y = 60
    for concurrency, costs in served.items():
        values = [value / 1000 for of in costs.values() for value in of["quantiles"]]
        low, high = min(values) * 0.8, max(values) * 1.1
        scale = (WIDTH - LABELS - 20) / log10(high / low)

        def at(value):
            return LABELS + log10(value / low) * scale

        bottom = y + 22 + len(costs) * ROW
        parts.append(text(16, y + 14, f"{concurrency} at a time", "title"))
        for tick in ticks(low, high):
            parts += [line(at(tick), y + 20, at(tick), bottom),
                      text(at(tick), bottom + 14, short(tick), "middle note")]
        for i, (key, of) in enumerate(costs.items()):
            colour = OURS_COLOUR if key == "channel" else OTHER_COLOUR
            row, xs = y + 22 + i * ROW + ROW / 2, [at(value / 1000) for value in of["quantiles"]]
            parts += [text(LABELS - 8, row + 4, ways[key].title, "end"),
                      line(xs[0], row, xs[2], row, "axis"),
                      *(dot(x, row, colour) for x in xs)]
        y = bottom + 30
    return svg(y, parts)


def panel(x, y, title, by_way, ways):
    """Lines of nanoseconds for each handoff, both axes logarithmic."""
    width, height = 290, 180
    points = {key: [(max(float(value), 1), median(of["elapsed"])) for value, of in series.items()]
              for key, series in by_way.items() if key in LINES}
    values = [ns for series in points.values() for _, ns in series]
    first = next(iter(points.values()))
    low, high = min(values) * 0.8, max(values) * 1.25
    across = width / log10(first[-1][0] / first[0][0])
    up = height / log10(high / low)

    def at(value, ns):
        return x + log10(value / first[0][0]) * across, y + height - log10(ns / low) * up

    parts = [text(x, y - 12, title, "title"), line(x, y + height, x + width, y + height, "axis")]
    for tick in ticks(low, high):
        _, level = at(1, tick)
        parts += [line(x, level, x + width, level), text(x - 6, level + 4, short(tick), "end note")]
    for label, (value, _) in zip(next(iter(by_way.values())), first):
        parts.append(text(at(value, low)[0], y + height + 16, label, "middle note"))
    for i, (key, series) in enumerate(points.items()):
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(*point) for point in series))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{LINES[key]}" '
                     'stroke-width="2"/>')
        parts += [dot(*at(*point), LINES[key], 3) for point in series]
        name = NAMES.get(key) or ways[key].title.split(",")[0].split(":")[0]
        left, top = x + i % 3 * 100, y + height + 28 + i // 3 * 16
        parts += [box(left, top, 10, 10, LINES[key]), text(left + 14, top + 10, name)]
    return parts


def growth(of, ways):
    parts = [text(16, 24, PLOTS["growth"], "title"),
             text(16, 42, "without clients; both axes logarithmic", "note")]
    for i, (what, title) in enumerate(GROWTH.items()):
        parts += panel(60 + i % 2 * 370, 90 + i // 2 * 300, title, of[what], ways)
    return svg(960, parts, 780)


def write(results, ways, directory):
    def rows(costs, values):
        return [(ways[key].title, values(of), key == "channel") for key, of in costs.items()]

    plots = {}
    moved, served, after, of_growth = (found(results, part) for part in
                                       ("move", "serve", "after", "growth"))

    def draw(name, note, data):
        plots[name] = bars(PLOTS[name], note, data)

    if moved:
        draw("move", "without clients: TCP connections offered again and again; longer is better",
             rows(moved["full"], lambda of: [1e9 / median(of["elapsed"])]))
        draw("processor", "nanoseconds; dark: the broker, light: the backend; shorter is better",
             rows(moved["full"], lambda of: [median(of["broker"]), median(of["backend"])]))
    if served:
        plots["first_byte"] = first_byte(served, ways)
        draw("clients", "microseconds, from accept to close; dark: the broker, light: the backend",
             rows(served["16"], lambda of: [median(of["broker"]) / 1000,
                                            median(of["backend"]) / 1000]))
    if after:
        draw("after", "milliseconds; shorter is better",
             rows(after, lambda of: [median(of["long"]["broker"]) / 1e6]))
    if of_growth:
        plots["growth"] = growth(of_growth, ways)
    for name, content in plots.items():
        (directory / f"{name}.svg").write_text(content)
