"""Runs the recipes of docs/guide.md, each on a machine of its own, and compares what they print.

usage: check.py [RECIPE...]      as root, in the root of the tree, after `make`
       GUIDE_SHOW=1 check.py [RECIPE...]      prints what the blocks print, and does not compare it

In the guide `<!-- recipe: NAME -->` begins a recipe, and the next heading or recipe ends it. Its
blocks of sh run in one shell, one after the other. No command may fail, unless `||` or `if` says
what then. A block of text behind one of sh is what that prints, with its errors: `...` stands for
any characters, and a line with nothing else for any lines. Behind `text about` numbers are examples:
any other number will do. `<!-- file: PATH -->` stands before a block with the content of that file.
Each row of the table of symptoms shows, in its first column, what recipes print.

The machine has systemd as its first process, in namespaces of its own, with the files of this host.
What a recipe changes there is gone afterwards. What the recipe `install` changes, all others have.

GUIDE_ROOT=DIRECTORY takes the files of another root, and then `packages` stands for `install`.
"""

import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

GUIDE = "docs/guide.md"
MACHINE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "machine")
SHOW = os.environ.get("GUIDE_SHOW")
BLOCK_SECONDS = float(os.environ.get("GUIDE_SECONDS", "120"))
ROOT = os.environ.get("GUIDE_ROOT", "/")
INSTALL, PACKAGES = "install", "packages"
FIRST, OTHER = (INSTALL, PACKAGES) if ROOT == "/" else (PACKAGES, INSTALL)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What the first recipe needs for `make`.
OF_THE_CALLER = ("PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME")
PROLOGUE = r"""
exec 2>&1
trap 'echo "[this failed with $?: $BASH_COMMAND]"; exit' ERR
"""

# What Python 3.11 does not name.
CLONE_NEWNS, MS_REC, MS_PRIVATE, MNT_DETACH = 0x20000, 0x4000, 0x40000, 2


class Block:
    def __init__(self, line, kind, text):
        self.line, self.kind, self.text = line, kind, text


class Recipe:
    def __init__(self, name):
        self.name, self.blocks, self.printed = name, [], ""


class Wrong(Exception):
    """Something that is not as the guide says."""


# ---- the guide -----------------------------------------------------------------------------------

MARK = re.compile(r"<!-- (recipe|file): (\S+) -->$")


def parse(lines):
    """The recipes, the shown files as (line, path, text), and the rows of tables."""
    recipes, files, rows = [], [], []
    recipe = path = None
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        mark = MARK.match(line)
        if mark and mark[1] == "recipe":
            recipe = Recipe(mark[2])
            recipes.append(recipe)
        elif mark:
            path = mark[2]
        elif line.startswith("#"):
            recipe = None
        elif line.startswith("| `"):
            rows.append((at, line))
        elif line.startswith("```"):
            kind, start = line[3:].strip(), at
            while lines[at] != "```":
                at += 1
            text = "".join(line + "\n" for line in lines[start:at])
            at += 1
            if path:
                files.append((start, path, text))
                path = None
            elif recipe and kind in ("sh", "text", "text about"):
                recipe.blocks.append(Block(start, kind, text))
            elif kind == "sh":
                raise Wrong(f"{GUIDE}:{start}: this block belongs to no recipe, so nothing tests it")
    return recipes, files, rows


def pattern(text, about):
    """A regular expression for what a block of text shows."""
    parts = []
    for line in text.splitlines():
        if line.strip() == "...":
            parts.append(r"(?:.*\n)*?")
            continue
        escaped = re.escape(line.rstrip()).replace(re.escape("..."), ".*")
        if about:
            escaped = re.sub(r"\d+", r"\\d+", escaped)
        parts.append(escaped + r" *\n")
    return re.compile("".join(parts))


def check_files(files):
    for line, path, text in files:
        with open(path) as file:
            same = file.read() == text
        if not same:
            raise Wrong(f"{GUIDE}:{line}: {path} has other content")


def check_rows(rows, recipes):
    """The first column of the table of symptoms is what somebody has seen."""
    printed = "".join(recipe.printed for recipe in recipes)
    for line, row in rows:
        symptom = re.match(r"\| `([^`]*)`", row)[1]
        if not re.search(re.escape(symptom).replace(re.escape("..."), ".*"), printed):
            raise Wrong(f"{GUIDE}:{line}: no recipe prints this: {symptom}")


# ---- the machine ---------------------------------------------------------------------------------

libc = ctypes.CDLL(None, use_errno=True)


def mount(source, where, kind, flags=0):
    if libc.mount(source, where.encode(), kind, flags, None) != 0:
        raise OSError(ctypes.get_errno(), f"mount: {os.strerror(ctypes.get_errno())}", where)


class Place:
    """A directory for the machines, on a tmpfs that nobody else sees and that goes with this
    process. Its cgroup is where this process sees those of the whole host."""

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix="handoff-guide-")
        if libc.unshare(CLONE_NEWNS) != 0:  # os.unshare() is newer than Debian 12's Python
            raise OSError(ctypes.get_errno(), "unshare")
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        mount(b"tmpfs", self.path, b"tmpfs")
        self.cgroups = f"{self.path}/cgroup"
        os.mkdir(self.cgroups)
        mount(b"cgroup2", self.cgroups, b"cgroup2")
        for name in os.listdir(self.cgroups):  # of one that was killed
            pid = re.match(r"handoff-guide-(\d+)-", name)
            if pid and not os.path.exists(f"/proc/{pid[1]}"):
                remove_cgroup(f"{self.cgroups}/{name}")

    def remove(self):
        libc.umount2(self.path.encode(), MNT_DETACH)
        os.rmdir(self.path)


def remove_cgroup(path):
    for directory, _, _ in os.walk(path, topdown=False):
        for _ in range(200):
            try:
                os.rmdir(directory)
                break
            except OSError:
                time.sleep(0.01)


class Machine:
    def __init__(self, place, name, layers, tree):
        self.upper = f"{place.path}/{name}"
        self.cgroup = f"{place.cgroups}/handoff-guide-{os.getpid()}-{name}"
        os.mkdir(self.cgroup)
        self.log = open(f"{self.upper}.log", "w+")
        self.starter = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--uts", "--ipc",
             "--net", "--cgroup", "--fork", "--kill-child",
             MACHINE, ":".join(layers), self.upper, *tree],
            preexec_fn=self.enter_cgroup, stdin=subprocess.DEVNULL,
            stdout=self.log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while not self.is_up():
            if self.starter.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                text = self.log.read()
                self.stop()
                raise Wrong(f"no machine for the recipe {name}:\n{text}")
            time.sleep(0.02)

    def enter_cgroup(self):
        with open(self.cgroup + "/cgroup.procs", "w") as procs:
            procs.write("0")

    def is_up(self):
        try:
            with open(f"/proc/{self.starter.pid}/task/{self.starter.pid}/children") as children:
                self.init = children.read().split()[0]
            with open(f"/proc/{self.init}/comm") as comm:
                if comm.read() != "systemd\n":
                    return False  # it may still have this host's root directory
        except (OSError, IndexError):
            return False
        state = subprocess.run(self.inside() + ["systemctl", "is-system-running"],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return state.stdout.strip() in ("running", "degraded")

    def inside(self):
        return ["nsenter", "--target", self.init, "--mount", "--pid", "--uts", "--ipc", "--net",
                "--cgroup", "--root", "--wd"]

    def stop(self):
        self.starter.kill()
        self.starter.wait()
        self.log.close()
        remove_cgroup(self.cgroup)
        for suffix in ".work", ".root":
            shutil.rmtree(self.upper + suffix, ignore_errors=True)


class Shell:
    """A shell on a machine that runs a recipe's blocks one after the other."""

    def __init__(self, machine, directory=None):
        variables = {"HOME": "/root", "LANG": "C.UTF-8", "PATH": PATH, "TERM": "dumb",
                     "DEBIAN_FRONTEND": "noninteractive"}
        if directory:
            variables.update((name, os.environ[name]) for name in OF_THE_CALLER
                             if name in os.environ)
        shell = ["env", "-i", *(f"{name}={value}" for name, value in variables.items()),
                 "bash", "--norc"]
        self.process = subprocess.Popen(
            machine.inside() + shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        self.run(PROLOGUE + f"cd '{directory or '/root'}'\n")

    def run(self, text):
        """What the commands print."""
        mark = f"--- {time.monotonic_ns()} ---"
        self.process.stdin.write(f"{text}\necho '{mark}'\n".encode())
        self.process.stdin.flush()
        printed, deadline = b"", time.monotonic() + BLOCK_SECONDS
        while mark.encode() not in printed:
            left = deadline - time.monotonic()
            ready = select.select([self.process.stdout], [], [], max(left, 0))[0]
            more = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not more:
                what = "the shell has ended" if ready else f"not done in {BLOCK_SECONDS:.0f} s"
                raise Wrong(f"{what}. It has printed:\n{printed.decode(errors='replace')}")
            printed += more
        return printed.decode(errors="replace").split(mark)[0]

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


# ---- the recipes ---------------------------------------------------------------------------------

def check_block(block, shown, printed):
    where = f"{GUIDE}:{block.line}"
    if SHOW:
        print(f"--- {where}\n{printed}", end="", flush=True)
        return
    failed = re.search(r"^\[this failed with .*", printed, re.M)
    if failed:
        raise Wrong(f"{where}: {failed[0]}\nAll that was printed:\n{printed}")
    if shown and not pattern(shown.text, shown.kind == "text about").fullmatch(printed):
        raise Wrong(f"{where} does not print what {GUIDE}:{shown.line} shows, but:\n{printed}")


def run(recipe, place, layers):
    tree = [os.getcwd()] if recipe.name == FIRST else []
    machine = Machine(place, recipe.name, layers, tree)
    shell = None
    try:
        shell = Shell(machine, *tree)
        for block, following in zip(recipe.blocks, recipe.blocks[1:] + [None]):
            if block.kind != "sh":
                continue
            shown = following if following and following.kind != "sh" else None
            printed = shell.run(block.text)
            recipe.printed += printed
            check_block(block, shown, printed)
    except Wrong as wrong:
        journal = subprocess.run(machine.inside() + ["journalctl", "--no-pager", "-n", "40"],
                                 stdout=subprocess.PIPE, text=True).stdout
        raise Wrong(f"{wrong}\nThe end of the machine's journal:\n{journal}")
    finally:
        if shell:
            shell.end()
        machine.stop()


def main(names):
    with open(GUIDE) as guide:
        recipes, files, rows = parse(guide.read().splitlines())
    known = [recipe.name for recipe in recipes]
    unknown = set(names) - set(known)
    if unknown or len(set(known)) != len(known) or known[:2] != [INSTALL, PACKAGES]:
        raise Wrong(f"the recipes, which begin with {INSTALL} and {PACKAGES}: {known}; not: {unknown}")
    if FIRST == PACKAGES:  # the last block of `install`, the program, is for both
        recipes[1].blocks.append(recipes[0].blocks[-1])
    recipes = [recipe for recipe in recipes if recipe.name != OTHER]
    check_files(files)
    if os.geteuid() != 0:
        raise Wrong("this needs root: it starts systemd in namespaces of its own")
    place = Place()
    try:
        layers = [ROOT]
        for recipe in recipes:
            if names and recipe.name not in [FIRST] + names:
                continue
            start = time.monotonic()
            run(recipe, place, layers)
            print(f"check-guide: {recipe.name}: ok, {time.monotonic() - start:.1f} s", flush=True)
            if recipe.name == FIRST:
                layers = [f"{place.path}/{FIRST}", ROOT]
    finally:
        place.remove()
    if not names:
        check_rows(rows, recipes)
        print(f"{len(recipes)} passed, 0 failed")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        main(sys.argv[1:])
    except Wrong as wrong:
        sys.exit(f"check-guide: {wrong}")
