"""What the kernel has counted for processes, of one thread each."""

import os
import re

from harness import is_asleep, wait_until


def wait_for_rest(pids):
    """Until they have done all that there is."""
    wait_until(lambda: all(map(is_asleep, pids)), "nothing is left to do")


def processor_ns(pids):
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total


def memory_kib(pids):
    """A page that several processes share counts in parts (Pss)."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += int(re.search(r"^Pss:\s+(\d+)", file.read(), re.M)[1])
    return total


def descriptors(pids):
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
