"""What a run was made on."""
import os
import pathlib
import platform
import re
import subprocess
import time


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = re.search(r"^model name\s*: (.*)", file.read(), re.M)
    return model[1] if model else platform.machine()


def version(*command):
    """The first version number, or name of a commit, that a program prints."""
    try:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        return re.search(r"\d+\.\d+[.\d]*|\b[0-9a-f]{7,}\S*", done.stdout)[0]
    except (OSError, subprocess.CalledProcessError, TypeError):
        return "?"


def describe(load, **versions):
    """`load` is the one before the run, `versions` are those of what else took part."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "load": f"{load:.1f}",
        "versions": {
            "libhandoff": version("git", "-C", str(pathlib.Path(__file__).parent), "describe",
                                  "--always", "--dirty"),
            "gcc": version("gcc", "-dumpfullversion"), "rustc": version("rustc", "--version"),
            **versions,
        },
    }
