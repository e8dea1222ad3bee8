"""Checks that no module of src imports one that the architecture puts above it.

check_layers.py [SRC]: looks at every path that begins with crate:: or super::, but for comments and
tests, and names file and line of each that leads up or sideways.
"""

import re
import sys
from pathlib import Path

# From the bottom to the top; modules of one line do not import each other. A module that is not
# named belongs to the one around it.
LAYERS = """
sys
reason
kind
memory
failures deadlines watched
address token claim tls
support
handle peer wire
listener raw::transport raw::store raw::failures
raw::ack raw::admit raw::pending
raw::attempt
raw broker backend
error
ffi bench fuzz
"""
LAYER = {module: layer for layer, line in enumerate(LAYERS.splitlines()) for module in line.split()}

START = re.compile(r"\b(crate|super(?:::super)*)::")
NAME = re.compile(r"\w+|\*")
TESTS = re.compile(r"#\[cfg\(test\)\]\n(pub\(crate\) )?mod \w+ \{.*", re.S)
COMMENT = re.compile(r"//.*")


def tree(text: str, at: int, base: list[str]) -> tuple[list[list[str]], int]:
    """The paths that begin here, and where they end: one, or those in braces."""
    while True:
        name = NAME.match(text, at)
        if name:
            base, at = base + [name[0]], name.end()
        elif text[at] == "{":
            paths, at = [], at + 1
            while text[at] != "}":
                if text[at] in " \n,":
                    at += 1
                else:
                    more, at = tree(text, at, base)
                    paths += more
            return paths, at + 1
        if not text.startswith("::", at):
            return [base], at
        at += 2


def imports(text: str, module: list[str]):
    """The paths of a module's text from the root of the crate, with their lines."""
    for start in START.finditer(text):
        above = 0 if start[1] == "crate" else len(module) - start[1].count("super")
        for path in tree(text, start.end(), module[:above])[0]:
            yield text.count("\n", 0, start.start()) + 1, path


def unit(path: list[str]) -> str | None:
    """What the table calls the module that a path leads to."""
    for length in range(len(path), 0, -1):
        if "::".join(path[:length]) in LAYER:
            return "::".join(path[:length])
    return None


def main() -> None:
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "src")
    files = [file for file in sorted(source.rglob("*.rs")) if file.name not in ("lib.rs", "tests.rs")]
    faults, count = [], 0
    for file in files:
        module = [part for part in file.relative_to(source).with_suffix("").parts if part != "mod"]
        own = unit(module)
        if own is None:
            sys.exit(f"{file}: no layer of {__file__} has this module")
        text = re.sub(r" as \w+", "", COMMENT.sub("", TESTS.sub("", file.read_text())))
        for line, path in imports(text, module):
            count += 1
            other = unit(path)
            if other is None:
                faults.append(f"{file}:{line}: no layer has {'::'.join(path)}")
            elif other != own and LAYER[other] >= LAYER[own]:
                faults.append(f"{file}:{line}: {own} imports {'::'.join(path)}, which is not below it")
    if faults:
        sys.exit("\n".join(faults))
    print(f"check-layers: {len(files)} modules, {count} imports, none points up")


if __name__ == "__main__":
    main()
