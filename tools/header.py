"""Reads include/handoff.h as cbindgen writes it: every name, with its documentation.

A name that the patterns below do not understand is an error, so that what is made from the header
leaves nothing out.
"""

import re
from dataclasses import dataclass


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
    macros: list[str]  # names, in the order of the header
    types: dict[str, Item]
    constants: dict[str, Item]
    functions: dict[str, Item]


DOC = r"/\*\*\n((?: \*.*\n)+?) \*/\n"
CONSTANT = re.compile(DOC + r"(#define (HANDOFF_\w+) .+)\n")
TYPE = re.compile(DOC + r"(typedef [^{;]*(?:\{[^}]*\} *)?\b(handoff_\w+);)\n")
MEMBER = re.compile(r"    /\*\*\n((?: +\*.*\n)+?) +\*/\n +([^;/]*?(\w+)(?:\[\w+\])?;)\n")
FUNCTION = re.compile(DOC + r"((?:[\w ]+[ *])(handoff_\w+)\([^;{]*\);)\n")


def text(comment: str) -> str:
    return re.sub(r"^ *\* ?", "", comment, flags=re.M).strip()


def items(pattern: re.Pattern, source: str) -> dict[str, Item]:
    return {name: Item(name, text(doc), code) for doc, code, name in pattern.findall(source)}


def read(path: str) -> Header:
    with open(path, encoding="utf-8") as file:
        source = file.read()
    header = Header(
        macros=re.findall(r"^#define (HANDOFF_\w+)(?= )", source, flags=re.M),
        types=items(TYPE, source),
        constants=items(CONSTANT, source),
        functions=items(FUNCTION, source),
    )
    bare = re.sub(r"/\*.*?\*/", "", source, flags=re.S)
    for kind, found, known in (
        ("type", re.findall(r"^(?:typedef .*|\}) (handoff_\w+);", bare, flags=re.M), header.types),
        ("call", re.findall(r"\b(handoff_\w+)\(", bare), header.functions),
    ):
        if sorted(found) != sorted(known):
            strange = sorted(set(found) ^ set(known))
            raise SystemExit(f"{path}: cannot read the {kind} of: {', '.join(strange)}")
    return header
