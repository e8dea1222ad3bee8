#!/usr/bin/env python3
"""use_header.py DIRECTORY: prints a program, C and C++ at once, that uses every name in handoff.h and
sees that the library knows every constant, struct and field as the compiler does.
"""

import sys

import header as c_header

# Those with a value that is no integer, but for the initialisers.
NO_INTEGER = {"HANDOFF_VERSION", "HANDOFF_VERSION_CHECK", "HANDOFF_DEPRECATED"}

COMPARE = """
static int constant_is(const char *name, int64_t expected)
{
    int64_t value;
    return handoff_constant(name, &value) == HANDOFF_OK && value == expected;
}

static int struct_is(const char *name, size_t expected)
{
    size_t size;
    return handoff_struct_size(name, &size) == HANDOFF_OK && size == expected;
}

static int field_is(const char *name, size_t expected_offset, size_t expected_size)
{
    size_t offset, size;
    return handoff_field(name, &offset, &size) == HANDOFF_OK && offset == expected_offset
           && size == expected_size;
}

static int differs(const char *name)
{
    fprintf(stderr, "the library has another %s than the headers\\n", name);
    return 1;
}
"""


def main() -> None:
    header = c_header.read(sys.argv[1])
    print("/* Made by tools/use_header.py. */\n#include <stdio.h>\n\n#include <handoff.h>\n")
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
    print(COMPARE)
    print("int main(void)\n{")
    for name in header.functions:
        print(f"    if (!use_{name}) return 1;")
    for name in header.macros:
        if name in ("HANDOFF_NO_LIMIT", "HANDOFF_NO_TIMEOUT"):
            print(f'    if (!constant_is("{name}", -1)) return differs("{name}");')
        elif name not in NO_INTEGER and not name.endswith("_INIT"):
            print(f'    if (!constant_is("{name}", {name})) return differs("{name}");')
    for name, item in header.types.items():
        if item.members():
            print(f'    if (!struct_is("{name}", sizeof({name}))) return differs("{name}");')
        for member in item.members():
            field = f"{name}.{member.name}"
            place = f"offsetof({name}, {member.name})"
            size = f"sizeof(use_type_{name}->{member.name})"
            print(f'    if (!field_is("{field}", {place}, {size})) return differs("{field}");')
    print("    return 0;\n}")


if __name__ == "__main__":
    main()
