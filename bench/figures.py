"""What the tables, the goals and the plots have in common: figures from the results, and tables as
Markdown that can be read as it is."""
from statistics import median

FORM = 3  # of results.json: another number means that older results are of no use here
PLAIN, OURS, SPINNING = "plain", "channel", "channel-spinning"
# What can be reached with the same checks; and when an application has one descriptor to wait for.
REACH = [["checks", "checks-parts", "checks-fourths"],
         ["checks-set", "checks-set-parts", "checks-set-fourths"]]
CHECKS = sum(REACH, [])
LOOPS = ["libuv", "glib"]  # what an event loop uses without libhandoff


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
