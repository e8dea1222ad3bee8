#!/usr/bin/env python3
"""use_header.py DIRECTORY: prints a program, C and C++ at once, that uses every name in handoff.h."""

import sys

import header as c_header


def main() -> None:
    header = c_header.read(sys.argv[1])
    print("/* Made by tools/use_header.py. */\n#include <handoff.h>\n")
    for name in header.macros:
        if name.endswith("_INIT"):
            print(f"{name[:-5].lower()} use_{name} = {name};")
        elif name == "HANDOFF_VERSION":
            print(f"const char *use_{name} = {name};")
        elif name in ("HANDOFF_NO_LIMIT", "HANDOFF_NO_TIMEOUT"):
            print(f"uint64_t use_{name} = {name};")
        else:
            # In #if too, so nothing but an integer will do; and one that is a single operand.
            print(f"#if 1 - {name} + {name} != 1\n#error {name} is an expression\n#endif")
            print(f"long use_{name} = {name};")
    for name, item in header.types.items():
        print(f"{name} *use_type_{name};")
        for member in item.members():
            print(f"size_t use_{name}_{member.name} = offsetof({name}, {member.name});")
    for name, item in header.functions.items():
        print(item.code.replace(f"{name}(", f"(*use_{name})(", 1)[:-1] + f" = {name};")
    print("\nint main(void)\n{")
    for name in header.functions:
        print(f"    if (!use_{name}) return 1;")
    print("    return 0;\n}")


if __name__ == "__main__":
    main()
