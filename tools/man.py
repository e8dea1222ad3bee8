#!/usr/bin/env python3
"""man.py HEADERS VERSION DIRECTORY: writes a manual page for each call and each type of handoff.h."""

import os
import re
import sys

import header as c_header

STATUS = r"HANDOFF_(?:OK|NOTHING|TIMED_OUT|WOKEN|ERR_\w+)"
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


# What a header says once about all of its calls that take this.
THREADS = {
    "handoff_broker": "One thread at a time may use a broker, and one process, unless it is made with "
    "HANDOFF_BROKER_SHARED: handoff(7), THREADS, FORK AND SIGNALS.",
    "handoff_backend": "One thread at a time may use a backend, and one process: handoff(7), "
    "THREADS, FORK AND SIGNALS.",
}


def unstarred(code: str) -> str:
    """The members' comments taken out of a struct: they have a section of their own."""
    return re.sub(r"^ */\*\*.*?\*/\n", "", code, flags=re.S | re.M)


def initialiser(item: c_header.Item) -> str:
    """How to initialise a struct, if it has a macro for that."""
    macro = re.search(r"Set by (HANDOFF_\w+_INIT)", item.code)
    if not macro:
        return ""
    return f"\n\n{item.name} {item.name.rpartition('_')[2]} = {macro[1]};"


class Manual:
    def __init__(self, header: c_header.Header, version: str, directory: str):
        self.header, self.version, self.directory = header, version, directory

        # The values of an integer type: those that its documentation names, and those beside it.
        self.values = {
            name: [
                constant
                for constant in header.constants
                if constant in self.constants(item.doc) or constant in header.beside.get(name, ())
            ]
            for name, item in header.types.items()
            if "{" not in item.code and not item.code.startswith("typedef struct")
        }
        self.have_a_type = {constant for values in self.values.values() for constant in values}

    def others(self, text: str) -> list[str]:
        """The constants that a text names and that are no values of a type."""
        return [name for name in self.constants(text) if name not in self.have_a_type]

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

    def constants(self, text: str) -> list[str]:
        """The constants that a text names, one by one or with a `*`, in the headers' order."""
        patterns = re.findall(r"HANDOFF_[A-Z_]+\*?", text)
        wanted = re.compile("|".join(p.replace("*", "[A-Z_]+") for p in patterns) or "-")
        return [name for name in self.header.constants if wanted.fullmatch(name)]

    def section(self, heading: str, names: list[str]) -> list[str]:
        lines = [f".SH {heading}"] if names else []
        for name in names:
            lines += [".TP", rf"\fB{name}\fP", running(self.header.constants[name].doc)]
        return lines

    def see_also(self, own: str, text: str) -> list[str]:
        known = self.header.functions.keys() | self.header.types.keys()
        names = set(re.findall(r"handoff_\w+", text)) & known
        if "HANDOFF_ERR_" in text:
            names.add("handoff_status")
        pages = [f".BR {escape(name)} (3)," for name in sorted(names - {own})]
        return [".SH SEE ALSO", *pages, ".BR handoff (7)"]

    def returned(self, result: str) -> list[str]:
        """The return value: if that is several statuses, each with what it means here."""
        items = re.split(rf"(?<=[;:.]) (?={STATUS})", " ".join(result.split()))
        if len(items) < 3:
            return [running(result)]
        lines = []
        for item in items:
            # A sentence that ends in a colon is about those that follow it.
            heading = re.search(r"(?<=[.] )[^.]+:$", item)
            item = item[: heading.start()].rstrip() if heading else item
            item = item[:-1]
            some = rf"{STATUS}(?:(?:,|,? or) {STATUS})*"
            status, end, meaning = re.fullmatch(rf"({some})?([.:,]?) ?(.*)", item).groups()
            if status:
                lines += [".TP", running(status)]
            if status in self.header.constants and (end == "." or not meaning):
                lines += [running(re.split(r"(?<=[.])\s", self.header.constants[status].doc)[0])]
                status = None
            if meaning:
                lines += [] if status else [".PP"]
                lines += [running(meaning.rstrip(".") + ".")]
            if heading:
                lines += [".PP", running(heading[0])]
        return lines

    def threads(self, function: c_header.Item) -> list[str]:
        handle = re.search(r"\((?:const )?(handoff_\w+) \*", function.code)
        said = re.search(r"\bthread", function.doc)
        rule = THREADS.get(handle[1]) if handle and not said else None
        return [".SH THREADS AND FORK", running(rule)] if rule else []

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
            page += [".SH RETURN VALUE", *self.returned(result)]
        if notes:
            page += [".SH NOTES", "\n.PP\n".join(map(running, notes))]
        page += self.threads(function)
        page += self.section("CONSTANTS", self.others(function.doc))
        self.write(name, page + self.see_also(name, function.doc + function.code))

    def type(self, name: str) -> None:
        item = self.header.types[name]
        page = self.head(name, item.doc, unstarred(item.code) + initialiser(item))
        page += [".SH DESCRIPTION", "\n.PP\n".join(map(running, paragraphs(item.doc)))]
        if item.members():
            page += [".SH MEMBERS"]
            for member in item.members():
                page += [".TP", rf"\fI{member.name}\fP", running(member.doc)]
        page += self.section("VALUES", self.values.get(name, []))
        if name not in self.values:
            page += self.section("CONSTANTS", self.others(item.doc + item.code))
        page += self.see_also(name, " ".join([item.doc, item.code, *self.users(name)]))
        self.write(name, page)

    def users(self, name: str) -> list[str]:
        """The calls that take or return a type. Nearly all return a status, so that is not one."""
        returned = "" if name == "handoff_status" else r"|^"
        taken_or_returned = re.compile(rf"(?:[(,]\s*(?:const )?{returned}(?:const )?){name}\b")
        return [f.name for f in self.header.functions.values() if taken_or_returned.search(f.code)]


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
