#!/usr/bin/env python3
"""check_links.py FILE|DIRECTORY...: every link of these documents leads to a file, and to a heading
of it where it names one. Links to other hosts are not followed."""

import re
import sys
from pathlib import Path


def anchors(document):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ +(.*)$", document.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def main():
    count, dead = 0, []
    documents = [document for name in map(Path, sys.argv[1:])
                 for document in (sorted(name.rglob("*.md")) if name.is_dir() else [name])]
    for document in documents:
        text = document.read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", text):
            count += 1
            name, _, anchor = link.partition("#")
            target = document.parent / name if name else document
            if not target.exists():
                dead.append(f"{document}: {link}: there is no such file")
            elif anchor and anchor not in anchors(target):
                dead.append(f"{document}: {link}: there is no such heading")
    print(*dead, sep="\n", end="\n" if dead else "", file=sys.stderr)
    if not count:
        sys.exit("check_links: there are no links")
    print(f"check_links: {count} links in {len(documents)} documents, {len(dead)} lead nowhere")
    return bool(dead)


if __name__ == "__main__":
    sys.exit(main())
