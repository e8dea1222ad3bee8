"""Reads handoff.h and its parts as build.rs writes them: every name, with its documentation.

A name that the patterns below do not understand is an error, so that what is made from the headers
leaves nothing out.
"""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Item:
    name: str
    doc: str
    code: str

    def members(self) -> list["Item"]:
        """Those of a struct; none of any other type."""
        return [Item(name, text(doc), code) for doc, code, name in MEMBER.findall(self.code)]


@dataclass
class Header:
    macros: list[str]  # names of those with a value, in the order of the headers
    types: dict[str, Item]
    constants: dict[str, Item]
    functions: dict[str, Item]
    beside: dict[str, list[str]]  # of a type: the constants between it and the next type or call


DOC = r"/\*\*\n((?: \*.*\n)+?) \*/\n"
CONSTANT = re.compile(DOC + r"(#define (HANDOFF_\w+) .+)\n")
ATTRIBUTES = re.compile(r"^HANDOFF_MUST_USE\n| HANDOFF_NOEXCEPT(?=;$)", re.M)
NO_VALUE = {"HANDOFF_MUST_USE", "HANDOFF_NOEXCEPT"}
TYPE = re.compile(DOC + r"(typedef [^{;]*(?:\{[^}]*\} *)?\b(handoff_\w+);)\n")
MEMBER = re.compile(r"    /\*\*\n((?: +\*.*\n)+?) +\*/\n +([^;/]*?(\w+)(?:\[\w+\])?;)\n")
FUNCTION = re.compile(DOC + r"((?:[\w ]+[ *])(handoff_\w+)\([^;{]*\);)\n")


def text(comment: str) -> str:
    return re.sub(r"^ *\* ?", "", comment, flags=re.M).strip()


def items(pattern: re.Pattern, source: str) -> dict[str, Item]:
    return {name: Item(name, text(doc), code) for doc, code, name in pattern.findall(source)}


def beside(source: str) -> dict[str, list[str]]:
    kinds = {"type": TYPE, "constant": CONSTANT, "call": FUNCTION}
    found = [
        (match.start(3), kind, match[3])
        for kind, pattern in kinds.items()
        for match in pattern.finditer(source)
    ]
    result: dict[str, list[str]] = {}
    latest = None
    for _, kind, name in sorted(found):
        if kind == "constant" and latest is not None:
            result.setdefault(latest, []).append(name)
        elif kind != "constant":
            latest = name if kind == "type" else None
    return result


def parts(directory: Path) -> list[Path]:
    """The parts in the order in which handoff.h includes them."""
    umbrella = (directory / "handoff.h").read_text(encoding="utf-8")
    return [directory / name for name in re.findall(r'#include "(.+)"', umbrella)]


def read(directory: str) -> Header:
    source = "".join(path.read_text(encoding="utf-8") for path in parts(Path(directory)))
    # As if every comment had its text on lines of its own, and no call an attribute.
    source = re.sub(r"^( *)/\*\* (.*) \*/$", r"\1/**\n\1 * \2\n\1 */", source, flags=re.M)
    source = ATTRIBUTES.sub("", source)
    macros = re.findall(r"^#define (HANDOFF_\w+)(?= +\S)", source, flags=re.M)
    header = Header(
        macros=[name for name in dict.fromkeys(macros) if name not in NO_VALUE],
        types=items(TYPE, source),
        constants=items(CONSTANT, source),
        functions=items(FUNCTION, source),
        beside=beside(source),
    )
    bare = re.sub(r"/\*.*?\*/", "", source, flags=re.S)
    for kind, found, known in (
        ("type", re.findall(r"^(?:typedef .*|\}) (handoff_\w+);", bare, flags=re.M), header.types),
        ("call", re.findall(r"\b(handoff_\w+)\(", bare), header.functions),
    ):
        if sorted(found) != sorted(known):
            strange = sorted(set(found) ^ set(known))
            raise SystemExit(f"{directory}: cannot read the {kind} of: {', '.join(strange)}")
    return header
