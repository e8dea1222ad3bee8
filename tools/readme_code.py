"""Prints the n-th C program of a Markdown file; fails if there is none.

usage: readme_code.py FILE N
"""

import re
import sys

path, number = sys.argv[1], int(sys.argv[2])
programs = re.findall(r"^```c\n(.*?)^```$", open(path).read(), re.M | re.S)
if number > len(programs):
    sys.exit(f"{path} has no C program {number}")
print(programs[number - 1], end="")
