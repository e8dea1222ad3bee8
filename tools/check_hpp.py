#!/usr/bin/env python3
"""check_hpp.py DIRECTORY: handoff.hpp leaves out no error, reason, call or member of its C headers.

The raw layer, tls.h and layout.h, which it leaves alone, and what initialises a struct do not count.
"""

import re
import sys
from pathlib import Path

import header as c_header

STRUCTS = ("handoff_broker_options", "handoff_broker_backend", "handoff_offer", "handoff_verdict",
           "handoff_backend_options", "handoff_arrival")
# Each tells about the library or about a status as a whole, and is called as it is.
AS_IN_C = {"handoff_status_name", "handoff_version", "handoff_supported",
           "handoff_status_may_have_reached_backend"}
FOR_OTHER_LANGUAGES = {"handoff_constant", "handoff_struct_size", "handoff_field",
                       "handoff_last_errno"}


def main() -> None:
    directory = Path(sys.argv[1])
    header = c_header.read(str(directory))
    text = (directory / "handoff.hpp").read_text(encoding="utf-8")
    code = re.sub(r"(?s:/\*.*?\*/)|//.*", "", text)
    missing = []

    for name in header.constants:
        value = re.fullmatch("HANDOFF_(?:ERR|REASON)_([A-Z_]+)", name)
        if value and f" {value[1].lower()} = {name}," not in code:
            missing.append(name)
    for name in header.functions.keys() - AS_IN_C - FOR_OTHER_LANGUAGES:
        if not re.match("handoff_(?:raw|tls)_|.*_init$", name) and not re.search(rf"\b{name}\b", code):
            missing.append(name)
    for struct in STRUCTS:
        variable = "raw_" if struct == "handoff_arrival" else "(?:raw|got)"
        # Both options have fields of the same name.
        broker, backend = code.split("struct backend_options", maxsplit=1)
        end = backend if re.match("handoff_(?:backend|arrival)", struct) else broker
        for member in header.types[struct].members():
            used = re.search(rf"\b{variable}\.{member.name}\b", end)
            if member.name not in ("size", "reserved") and not used:
                missing.append(f"{struct}.{member.name}")

    if missing:
        sys.exit(f"error: handoff.hpp leaves out {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main()
