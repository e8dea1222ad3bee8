"""Prints the n-th program of a language in a Markdown file; fails if there is none.

usage: readme_code.py FILE LANGUAGE N
"""

import re
import sys

path, language, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
fence = rf"^```{re.escape(language)}\n(.*?)^```$"
programs = re.findall(fence, open(path).read(), re.M | re.S)
if number > len(programs):
    sys.exit(f"{path} has no program {number} in {language}")
print(programs[number - 1], end="")
