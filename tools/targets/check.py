#!/usr/bin/env python3
"""check.py [--short] [TARGET...]: builds for other processors and another C library, and tests it.

Each target's library and programs are made by the Makefile with CARGO_BUILD_TARGET and the target's
CC, LD, AR and OBJCOPY. Where this machine can run them, natively or with qemu, the Rust tests and the
C tests are run; what is left out is printed with the reason. The logs are in build/targets.

--short: only the Rust tests, unoptimised, of the targets that need no emulator.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(TREE / "tools"))
from debian import Debian, Failure, run  # noqa: E402

LOGS = TREE / "build" / "targets"
# What cmocka's own build finds out, and is so everywhere on Linux.
CMOCKA_HAS = """
    SIGNAL_H TIME_H UNISTD_H STDINT_H INTTYPES_H STRUCT_TIMESPEC CLOCK_GETTIME_REALTIME STRSIGNAL
""".split()


@dataclass
class Target:
    """What is built for, and how it is tested here."""

    rust: str
    # The prefix of Debian's names of its compiler and its tools.
    gnu: str
    # What is said before a program so that it runs. None: it is only built.
    runner: str | None = ""
    # The C tests that are left out, by the reason. None: all of them, because of `note`.
    without: dict[str, str] | None = field(default_factory=dict)
    # Debian's name of the processor of an emulated machine that runs the C tests, instead of a runner.
    machine: str = ""
    # What else is left out, and why.
    note: str = ""


NO_TRAP = "qemu-user has no seccomp(2), ptrace(2), SO_COOKIE and SO_PEERGROUPS"
NEED_TRAP = """
    backend channel deaf_broker descriptors directory failover hostile_backend hostile_broker missing
    pressure process raw_attempt raw_limits raw_peer raw_receive raw_transport raw_wait_fails reasons
    signals succession supported
"""
FAULTS = "check-faults and the other tests of processes, which take too long"

TARGETS = {
    "musl": Target(
        "x86_64-unknown-linux-musl", "",
        without={"musl has no __libc_malloc(), which the test's own malloc(3) calls": "memory"},
    ),
    "i686": Target("i686-unknown-linux-gnu", "i686-linux-gnu-"),
    "armv7": Target(
        "armv7-unknown-linux-gnueabihf", "arm-linux-gnueabihf-", "qemu-arm", None,
        note="the C tests, which i686 and aarch64 stand for",
    ),
    "aarch64": Target(
        "aarch64-unknown-linux-gnu", "aarch64-linux-gnu-", "qemu-aarch64", machine="arm64",
        note="what a real processor of this kind reorders and an emulated one on x86-64 does not: "
        "check-model and check-threads look for that",
    ),
    "riscv64": Target(
        "riscv64gc-unknown-linux-gnu", "riscv64-linux-gnu-", "qemu-riscv64", None,
        note="the C tests, which aarch64 and s390x stand for",
    ),
    "s390x": Target(
        "s390x-unknown-linux-gnu", "s390x-linux-gnu-", "qemu-s390x", without={NO_TRAP: NEED_TRAP},
    ),
}
SHORT = ("musl", "i686")


class Check:
    """The check of one target."""

    def __init__(self, name: str) -> None:
        self.name, self.target = name, TARGETS[name]
        self.build = TREE / "build" / self.target.rust
        self.said: list[str] = []
        self.start = time.monotonic()

    def log(self, what: str, command: list[str], **environment: str) -> str:
        """Runs a command with its output in a log. Returns what it printed."""
        path = LOGS / f"{self.name}-{what}.log"
        with open(path, "w", encoding="utf-8") as log:
            result = subprocess.run(
                command, cwd=TREE, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **environment}, check=False,
            )
        output = path.read_text(encoding="utf-8", errors="replace")
        if result.returncode:
            print("\n".join(output.splitlines()[-40:]), file=sys.stderr)
            raise Failure(f"{self.name}: {what} failed, {path} has it all")
        return output

    @property
    def compiler(self) -> str:
        if self.name != "musl":
            return f"{self.target.gnu}gcc"
        # The kernel's headers are not musl's, and those of this machine are for it as well.
        headers = LOGS / "kernel-headers"
        headers.mkdir(parents=True, exist_ok=True)
        machine = run("cc", "-print-multiarch").strip()
        for header in ("linux", "asm-generic", f"{machine}/asm"):
            link = headers / Path(header).name
            if not link.exists():
                link.symlink_to(f"/usr/include/{header}")
        return f"musl-gcc -isystem {headers}"

    @property
    def runner(self) -> str:
        return self.target.runner and f"{self.target.runner} -L /usr/{self.target.gnu[:-1]}"

    def make(self, what: str, *goals: str) -> str:
        variables = {
            "CARGO_BUILD_TARGET": self.target.rust,
            "CC": self.compiler,
            **{tool: self.target.gnu + tool.lower() for tool in ("LD", "AR", "OBJCOPY")},
            "RUNNER": self.runner,
        }
        if self.name == "musl":
            # Debian's gcc has an unwinder for glibc only.
            directory = run("rustc", "--print", "target-libdir", "--target", self.target.rust).strip()
            variables["LDFLAGS"] = f"{directory}/self-contained/libunwind.a"
        words = [f"{name}={value}" for name, value in variables.items()]
        return self.log(what, [*shlex.split(os.environ.get("MAKE", "make")), *words, *goals],
                        MAKEFLAGS="", MAKELEVEL="")

    def rust_tests(self) -> None:
        upper = self.target.rust.upper().replace("-", "_")
        environment = {f"CARGO_TARGET_{upper}_RUNNER": self.runner}
        # For musl Rust brings what a linker needs, and Debian's would not fit it.
        if self.name != "musl":
            environment[f"CARGO_TARGET_{upper}_LINKER"] = self.compiler
        if not self.runner:
            del environment[f"CARGO_TARGET_{upper}_RUNNER"]
        command = [*shlex.split(os.environ.get("CARGO", "cargo")), "test", "--locked", "--quiet",
                   "--lib", "--tests", "--target", self.target.rust]
        output = self.log("rust-tests", command, **environment)
        count = sum(map(int, re.findall(r"^test result: ok\. (\d+) passed", output, re.M)))
        self.said.append(f"{count} Rust tests")

    def cmocka(self) -> None:
        """Makes cmocka for the target, where the Makefile's pkg-config finds it."""
        sources = sorted(LOGS.glob("cmocka-*"))
        if not sources:
            archive = Debian(LOGS, "bookworm", "amd64").source("cmocka")
            run("tar", "-xf", str(archive), "-C", str(LOGS))
            sources = sorted(LOGS.glob("cmocka-*"))
        source, directory = sources[0], self.build / "cmocka"
        directory.mkdir(parents=True, exist_ok=True)
        (self.build / "lib" / "pkgconfig").mkdir(parents=True, exist_ok=True)
        self.log("cmocka", [
            *shlex.split(self.compiler), "-O2", "-c", str(source / "src" / "cmocka.c"),
            f"-I{source}/include", *(f"-DHAVE_{name}" for name in CMOCKA_HAS),
            "-o", str(directory / "cmocka.o"),
        ])
        run(f"{self.target.gnu}ar", "rcs", str(directory / "libcmocka.a"),
            str(directory / "cmocka.o"))
        (self.build / "lib" / "pkgconfig" / "cmocka.pc").write_text(
            f"Name: cmocka\nDescription: as {sys.argv[0]} has made it\nVersion: 1\n"
            f"Cflags: -isystem {source}/include\nLibs: -L{directory} -lcmocka\n",
            encoding="utf-8",
        )

    def openssl(self) -> str:
        """Fetches OpenSSL for the target, which one_owner needs. Returns what tells a compiler of it."""
        debian, directory = Debian(LOGS, "bookworm", self.target.machine), self.build / "openssl"
        for name in ("libssl-dev", "libssl3"):
            run("dpkg-deb", "-x", str(debian.package(name)), str(directory))
        include, gnu = directory / "usr" / "include", self.target.gnu[:-1]
        return f"-isystem {include} -isystem {include}/{gnu} -L{directory}/usr/lib/{gnu}"

    def c_tests(self) -> None:
        left_out = {f"test_{name}" for names in self.target.without.values() for name in names.split()}
        names = [file.stem for file in sorted((TREE / "c-tests").glob("test_*.c"))]
        kept = [name for name in names if name not in left_out]
        self.cmocka()
        if self.target.machine:
            output = self.machine(kept)
        else:
            output = self.make("c-tests", f"C_TESTS={' '.join(kept)}", "check-c")
        found = re.search(r"^check-c: (\d+) tests passed, (\d+) skipped", output, re.M)
        self.said.append(f"{found[1]} C tests, {found[2]} skipped")

    def machine(self, tests: list[str]) -> str:
        """Runs C tests, and processes that are killed, in an emulated machine."""
        programs = [str(self.build / "c-tests" / name) for name in tests]
        killed = str(self.build / "c-tests" / "one_owner")
        self.make("programs", *programs, killed, f"CFLAGS=-O2 -g {self.openssl()}")
        script = f"""
            export LD_LIBRARY_PATH={self.build}/lib PYTHON=python3 HANDOFF_TEST_LIMIT=600
            c-tests/run_all.sh check-c {" ".join(programs)} || exit 1
            ONE_OWNER_CONNECTIONS=300 ONE_OWNER_AT_ONCE=32 ONE_OWNER_PER_SECOND=50 \\
                ONE_OWNER_DEADLINE_MS=100 ONE_OWNER_ACCIDENT_MS=1000 {killed}
        """
        output = self.log("machine", [
            sys.executable, "tools/vm/vm.py", "--processor", self.target.machine, "--root",
            "debian-13", "--limit", "3000", "--", "sh", "-c", script,
        ])
        self.said.append("in a machine with Debian's kernel, with one_owner")
        return output

    def check(self, short: bool) -> None:
        if not short:
            output = self.make("build", "all", "check-symbols")
            self.said.append(re.search(r"^check-symbols: .*; (.* bytes)", output, re.M)[1])
        if self.target.runner is not None:
            self.rust_tests()
        if not short and self.target.runner is not None and self.target.without is not None:
            self.c_tests()

    def report(self, short: bool = False) -> None:
        took = time.monotonic() - self.start
        print(f"check-targets: {self.name}: {'; '.join(self.said)} ({took:.0f} s)", flush=True)
        if short:
            return
        for reason, names in (self.target.without or {}).items():
            listed = ", ".join(f"test_{name}" for name in names.split())
            print(f"  left out: {listed}: {reason}")
        if self.target.note:
            print(f"  left out: {self.target.note}")
        print(f"  left out: {FAULTS}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="only what is quick")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    failures = []
    for name in options.targets or (SHORT if options.short else TARGETS):
        check = Check(name)
        try:
            check.check(options.short)
            check.report(options.short)
        except Failure as failure:
            print(f"error: check-targets: {failure}", file=sys.stderr, flush=True)
            failures.append(name)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
