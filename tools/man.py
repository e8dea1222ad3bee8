#!/usr/bin/env python3
"""man.py HEADERS VERSION DIRECTORY: writes a manual page for each call and each type of handoff.h."""

import os
import re
import sys

import header as c_header

NAME = re.compile(r"(HANDOFF_[A-Z_]+\b\*?|handoff_\w+(?:\(\))?|\b[a-z]\w*\(\d\)|`[^`]+`)")


def escape(line: str) -> str:
    line = line.replace("\\", r"\e").replace("-", r"\-")
    return r"\&" + line if line.startswith((".", "'")) else line


def running(text: str) -> str:
    """A paragraph with the names in it set bold, and arguments in italics."""

    def font(part: str) -> str:
        if part.startswith("`"):
            return rf"\fI{escape(part[1:-1])}\fP"
        name, bracket, rest = part.partition("(")
        return rf"\fB{escape(name)}\fP{bracket}{rest}"

    parts = NAME.split(" ".join(text.split()))
    joined = "".join(font(p) if i % 2 else escape(p) for i, p in enumerate(parts))
    # One sentence a line, as roff wants it.
    lines = re.split(r"(?<=[.:;]) (?=[A-Z\\])", joined)
    return "\n".join(r"\&" + line if line.startswith((".", "'")) else line for line in lines)


def literal(code: str) -> str:
    return "\n".join([".nf", *(escape(line) for line in code.splitlines()), ".fi"])


def paragraphs(doc: str) -> list[str]:
    return [p for p in re.split(r"\n\s*\n", doc) if p.strip()]


def summary(doc: str) -> str:
    """The first sentence, as NAME wants it: one line, no full stop."""
    doc = re.sub(r"^(Broker|Backend): ", "", " ".join(doc.split()).replace("`", ""))
    sentence = re.split(r"[.](?:\s|$)|: ", doc)[0]
    return sentence[0].lower() + sentence[1:]


def split_call(doc: str) -> tuple[list[str], list[tuple[str, str]], str, list[str]]:
    """What precedes the tags, the arguments, the return value, and what follows."""
    before, tags = (re.split(r"^(?=@)", doc, maxsplit=1, flags=re.M) + [""])[:2]
    tags, *notes = paragraphs(tags) or [""]
    arguments = re.findall(r"^@param(?:\[out\])? +(\w+) +((?:.|\n(?!@))*)", tags, flags=re.M)
    result = re.search(r"^@return +((?:.|\n(?!@))*)", tags, flags=re.M)
    return paragraphs(before), arguments, result.group(1) if result else "", notes


def unstarred(code: str) -> str:
    """The members' comments taken out of a struct: they have a section of their own."""
    return re.sub(r"^ */\*\*.*?\*/\n", "", code, flags=re.S | re.M)


class Manual:
    def __init__(self, header: c_header.Header, version: str, directory: str):
        self.header, self.version, self.directory = header, version, directory

    def write(self, name: str, lines: list[str]) -> None:
        with open(os.path.join(self.directory, f"{name}.3"), "w", encoding="utf-8") as page:
            page.write("\n".join(lines) + "\n")

    def head(self, name: str, doc: str, code: str) -> list[str]:
        return [
            f'.TH {name} 3 "" "libhandoff {self.version}"',
            # Names are long and must not be cut or stretched.
            ".nh",
            ".ad l",
            ".SH NAME",
            rf"{name} \- {escape(summary(doc))}",
            ".SH LIBRARY",
            r"libhandoff (\fI\-lhandoff\fP)",
            ".SH SYNOPSIS",
            literal(f"#include <handoff.h>\n\n{code}"),
        ]

    def see_also(self, own: str, text: str) -> list[str]:
        known = self.header.functions.keys() | self.header.types.keys()
        names = set(re.findall(r"handoff_\w+", text)) & known
        if "HANDOFF_ERR_" in text:
            names.add("handoff_status")
        pages = [f".BR {escape(name)} (3)," for name in sorted(names - {own})]
        return [".SH SEE ALSO", *pages, ".BR handoff (7)"]

    def call(self, name: str) -> None:
        function = self.header.functions[name]
        before, arguments, result, notes = split_call(function.doc)
        page = self.head(name, before[0], function.code)
        page += [".SH DESCRIPTION", "\n.PP\n".join(map(running, before))]
        if arguments:
            page += [".SH ARGUMENTS"]
            for argument, meaning in arguments:
                page += [".TP", rf"\fI{argument}\fP", running(meaning)]
        if result:
            page += [".SH RETURN VALUE", running(result)]
        if notes:
            page += [".SH NOTES", "\n.PP\n".join(map(running, notes))]
        self.write(name, page + self.see_also(name, function.doc + function.code))

    def type(self, name: str) -> None:
        item = self.header.types[name]
        page = self.head(name, item.doc, unstarred(item.code))
        page += [".SH DESCRIPTION", "\n.PP\n".join(map(running, paragraphs(item.doc)))]
        if item.members():
            page += [".SH MEMBERS"]
            for member in item.members():
                page += [".TP", rf"\fI{member.name}\fP", running(member.doc)]
        values = self.values(item)
        if values:
            page += [".SH VALUES"]
            for value in values:
                page += [".TP", rf"\fB{value.name}\fP", running(value.doc)]
        users = [f for f in self.header.functions.values() if re.search(rf"\b{name}\b", f.code)]
        page += self.see_also(name, " ".join([item.doc, item.code, *(f.name for f in users)]))
        self.write(name, page)

    def values(self, item: c_header.Item) -> list[c_header.Item]:
        """The constants that an integer type's documentation names, one by one or with a `*`."""
        if item.code.startswith("typedef struct"):
            return []
        patterns = re.findall(r"HANDOFF_[A-Z_]+\*?", paragraphs(item.doc)[0])
        return [
            constant
            for pattern in patterns
            for name, constant in self.header.constants.items()
            if re.fullmatch(pattern.replace("*", "[A-Z_]+"), name)
        ]


def main() -> None:
    headers, version, directory = sys.argv[1:]
    os.makedirs(directory, exist_ok=True)
    manual = Manual(c_header.read(headers), version, directory)
    for name in manual.header.functions:
        manual.call(name)
    for name in manual.header.types:
        manual.type(name)


if __name__ == "__main__":
    main()
