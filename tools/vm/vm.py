#!/usr/bin/env python3
"""Runs one command in a machine with kernel TLS, and ends with the command's exit status.

The machine is qemu's, emulated: it boots Debian's kernel, sees this machine's files below a layer
in memory, runs the command, and powers off. What the command writes is gone afterwards; what it
prints comes out here, standard error included. It has the loopback interface, an empty /tmp and
/run, two processors, and no way out. The command's environment is PATH, HOME, and the variables of
this one that begin with HANDOFF_.

The kernel and Debian 13's root come from Debian, once: build/vm keeps them. `--kernel backports` is the
newest kernel of Debian 13's backports.
"""

import argparse
import fcntl
import gzip
import io
import lzma
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
CACHE = TREE / "build" / "vm"

# What is loaded, in this order, after what it depends on; of two names, that which the kernel has.
# Without the ciphers OpenSSL stays in user space and does not say so. Those with a question mark are
# for processors that not every machine has.
MODULES = """
    virtio_pci virtio_console virtio_rng 9pnet_virtio 9p overlay
    tls gcm ctr ccm ghash_generic
    chacha20poly1305 chacha_generic/chacha poly1305_generic/libpoly1305
    tcp_diag unix_diag veth dummy
    aesni_intel?
""".split()

ROOTS = ("this-machine", "debian-13")

# Kernels that need not be named by a package: apt-get's, and that of Debian 13's backports, which is
# months old at most.
APT, BACKPORTS = "apt", "backports"
# What a kernel consists of. Those of backports have long been split.
PARTS = ("image", "base", "binary", "modules")

# Debian 13: what is unpacked with what it depends on, and what only for its headers.
DEBIAN_13 = "trixie"
PACKAGES = "nginx libnginx-mod-stream openssl libcmocka0 python3 curl".split()
HEADERS = "nginx-dev libssl-dev".split()
# Not one package is configured, which would take five times as long; what that would have made and
# the tests need is made here. mmdebstrap runs this with the new root as its argument.
FINISH = f"""
    set -e
    cd "$1"
    APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get download -q {" ".join(HEADERS)}
    for package in *.deb; do dpkg-deb -x "$package" . && rm "$package"; done
    for file in passwd group; do cp usr/share/base-passwd/$file.master etc/$file; done
    ln -sf mawk usr/bin/awk
"""


class Failure(Exception):
    """What is said in one line."""


def run(*command: str, **options) -> str:
    """The output of a program that must succeed."""
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, **options
        ).stdout
    except FileNotFoundError:
        raise Failure(f"there is no {command[0]}: `make deps` installs what this needs") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "").strip().splitlines() or ["it says nothing"]
        raise Failure(f"{' '.join(command[:3])}: {lines[-1]}") from None


def is_made(stamp: Path, recipe: str) -> bool:
    """Whether what a stamp is about was made this way."""
    return stamp.exists() and stamp.read_text(encoding="utf-8") == recipe


# ---- the kernel and the first files --------------------------------------------------------------


def fetch_kernel() -> list[Path]:
    """The package with the newest kernel that apt-get knew when this was first called."""
    packages = sorted(CACHE.glob("linux-image-*.deb"))
    if not packages:
        depends = run("apt-cache", "depends", "linux-image-amd64")
        found = re.search(r"Depends: (linux-image-\S+-amd64)$", depends, re.M)
        if not found:
            raise Failure("apt-get has no linux-image-amd64, which is Debian's kernel")
        run("apt-get", "download", "-q", found[1], cwd=CACHE)
        packages = sorted(CACHE.glob("linux-image-*.deb"))
    return packages[:1]


def fetch_backports() -> list[Path]:
    """The packages of the newest kernel in Debian 13's backports when this was first called. Other
    lists than this machine's are read, which stay as they are."""
    here = CACHE / BACKPORTS
    stamp = here / "fetched"
    if not stamp.exists():
        shutil.rmtree(here, ignore_errors=True)
        (here / "lists" / "partial").mkdir(parents=True)
        (here / "cache" / "archives" / "partial").mkdir(parents=True)
        keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
        source = f"deb [signed-by={keys}] {mirror()} {DEBIAN_13}-backports main\n"
        (here / "sources.list").write_text(source, encoding="utf-8")
        options = {
            "Dir::State::Lists": here / "lists",
            "Dir::Cache": here / "cache",
            "Dir::Etc::SourceList": here / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
            "APT::Sandbox::User": "root",
        }
        own = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        run("apt-get", *own, "update", "-q")
        depends = run("apt-cache", *own, "depends", "linux-image-amd64")
        found = re.search(r"Depends: linux-image-(\S+-amd64)$", depends, re.M)
        if not found:
            raise Failure("Debian 13's backports have no kernel")
        depends = run("apt-cache", *own, "depends", f"linux-image-{found[1]}")
        names = [f"linux-{part}-{found[1]}" for part in PARTS]
        names = [name for name in names if name == names[0] or f"Depends: {name}\n" in depends]
        run("apt-get", *own, "download", "-q", *names, cwd=here)
        stamp.write_text("\n".join(names), encoding="utf-8")
    return sorted(here.glob("linux-*.deb"))


def unpacked(file: Path) -> bytes:
    content = file.read_bytes()
    return lzma.decompress(content) if file.suffix == ".xz" else content


def modules(kernel: Path) -> list[tuple[str, bytes]]:
    """MODULES with what they depend on, each after that."""

    def name_of(file: Path) -> str:
        return file.name.partition(".")[0].replace("-", "_")

    files = {name_of(file): file for file in kernel.rglob("*.ko*")}
    lists = [file.read_text(encoding="utf-8") for file in kernel.rglob("modules.builtin")]
    built_in = {name_of(Path(line)) for text in lists for line in text.splitlines()}
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in loaded or name in built_in:
            return
        if name not in files:
            # Another kernel may have it elsewhere. A test finds out what is really missing.
            print(f"vm: this kernel has no module {name}", file=sys.stderr)
            return
        content = unpacked(files[name])
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for other in depends[1].decode().split(",") if depends and depends[1] else []:
            load(other.replace("-", "_"))
        loaded[name] = content

    for names in MODULES:
        first, *others = names.rstrip("?").split("/")
        load(next((name for name in others if first not in files and name in files), first))
    optional = {name.rstrip("?") for name in MODULES if name.endswith("?")}
    return [(name + "?" * (name in optional), content) for name, content in loaded.items()]


def archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive, as Documentation/driver-api/early-userspace/buffer-format.rst has it."""
    out = io.BytesIO()
    for number, (name, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields))
        for part in (name.encode() + b"\0", content):
            out.write(part)
            out.write(b"\0" * (-out.tell() % 4))
    return out.getvalue()


def image_of(kernel: Path) -> bytes:
    """The kernel itself, unpacked: the machine would take two seconds for it at each start. Where it
    is packed in another way than by xz, the machine does it."""
    image = next(
        file
        for pattern in ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
        for file in kernel.glob(pattern)
    ).read_bytes()
    if (at := image.find(b"\xfd7zXZ\0")) != -1:
        return lzma.LZMADecompressor().decompress(image[at:])
    return image


def make_kernel(packages: list[Path]) -> tuple[Path, Path]:
    """From the packages of a kernel: its image, and the files that it begins with."""
    here = CACHE / packages[0].stem
    kernel, first, stamp = here / "kernel", here / "first.gz", here / "stamp"
    recipe = " ".join(MODULES) + "\n" + (HERE / "init").read_text(encoding="utf-8")
    if is_made(stamp, recipe):
        return kernel, first
    busybox = shutil.which("busybox")
    if not busybox:
        raise Failure("there is no busybox: `make deps` installs busybox-static")
    here.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="unpacked-") as directory:
        for package in packages:
            run("dpkg-deb", "-x", str(package), directory)
        kernel.write_bytes(image_of(Path(directory)))
        names = ["bin", "dev", "proc", "sys", "modules"]
        files = {name: (stat.S_IFDIR | 0o755, b"") for name in names}
        files["bin/busybox"] = (stat.S_IFREG | 0o755, Path(busybox).read_bytes())
        files["init"] = (stat.S_IFREG | 0o755, (HERE / "init").read_bytes())
        for number, (name, content) in enumerate(modules(Path(directory))):
            files[f"modules/{number:02}-{name}"] = (stat.S_IFREG | 0o644, content)
    first.write_bytes(gzip.compress(archive(files), 1))
    stamp.write_text(recipe, encoding="utf-8")
    return kernel, first


# ---- Debian 13 -----------------------------------------------------------------------------------


def mirror() -> str:
    """Where apt-get takes Debian from."""
    targets = run(
        "apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(SITE)", "Created-By: Packages"
    )
    found = re.search(r"^Debian Debian (\S+)$", targets, re.M)
    return found[1] if found else "http://deb.debian.org/debian"


def make_debian_13() -> Path:
    """A root with Debian 13. Only root can make one, as its files are root's."""
    root, part = CACHE / DEBIAN_13, CACHE / f"{DEBIAN_13}.part"
    recipe = " ".join([DEBIAN_13, *PACKAGES]) + FINISH
    if not is_made(root / "made", recipe):
        if os.geteuid() != 0:
            raise Failure("only root can make a root of Debian 13")
        for directory in (root, part):
            shutil.rmtree(directory, ignore_errors=True)
        print("vm: Debian 13 is fetched", file=sys.stderr)
        run(
            *("mmdebstrap", "--quiet", "--variant=extract", "--include=?essential"),
            *(f"--include={','.join(PACKAGES)}", f"--extract-hook={FINISH}"),
            *(DEBIAN_13, str(part), mirror()),
        )
        (part / "made").write_text(recipe, encoding="utf-8")
        part.rename(root)
    return root


# ---- a run ---------------------------------------------------------------------------------------


def script(command: list[str]) -> str:
    variables = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        **{name: value for name, value in os.environ.items() if name.startswith("HANDOFF_")},
    }
    words = ["env", "-i", *(f"{name}={value}" for name, value in variables.items()), *command]
    directory = shlex.quote(os.getcwd())
    return f"cd {directory} 2> /dev/null || cd /\nexec {shlex.join(words)}\n"


def boot(options: argparse.Namespace, kernel: Path, first: Path, root: str, directory: str) -> int:
    """Runs the machine until it is off, or too late. Returns the command's exit status."""
    console, status = Path(directory, "console"), Path(directory, "status")
    settings = f"ROOT={shlex.quote(root)}\nTREE={shlex.quote(str(TREE))}\n"
    own = archive({
        "settings": (stat.S_IFREG | 0o644, settings.encode()),
        "command": (stat.S_IFREG | 0o755, script(options.command).encode()),
    })
    whole = Path(directory, "initramfs")
    # In this order: a plain archive begins at a multiple of four, which it ends at as well.
    whole.write_bytes(own + first.read_bytes())
    processors = ["-accel", "tcg", "-smp", str(options.cpus)]
    if options.count:
        # One nanosecond for each instruction, and none while there is nothing to do.
        processors = ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-smp", "1"]
    machine = [
        # With this process it ends too, should that be killed.
        *("setpriv", "--pdeathsig", "KILL"),
        *("qemu-system-x86_64", *processors, "-cpu", "max" if options.count else "qemu64"),
        *("-m", str(options.memory), "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none", "-serial", f"file:{console}"),
        *("-kernel", str(kernel), "-initrd", str(whole)),
        *("-append", "console=ttyS0 quiet panic=-1 oops=panic mitigations=off"),
        *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-chardev", "stdio,id=output,signal=off"),
        *("-device", "virtserialport,chardev=output,name=output"),
        *("-chardev", f"file,id=status,path={status}"),
        *("-device", "virtserialport,chardev=status,name=status"),
    ]
    with subprocess.Popen(machine, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        timer = threading.Timer(options.limit, process.kill)
        timer.start()
        try:
            while output := os.read(process.stdout.fileno(), 65536):
                sys.stdout.buffer.write(output)
                sys.stdout.buffer.flush()
            process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            late = timer.finished.is_set()
            timer.cancel()
    if status.exists() and (answer := status.read_text().strip()):
        return int(answer)
    if late:
        raise Failure(f"the machine was ended after {options.limit} s")
    sys.stderr.write(console.read_text(errors="replace") if console.exists() else "")
    raise Failure("the machine ended before the command did, see above")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", choices=ROOTS, default=ROOTS[0], help="whose files it has (default: %(default)s)"
    )
    parser.add_argument(
        "--kernel",
        default=APT,
        metavar="DEB",
        help=f"{APT}, {BACKPORTS}, or a package with another one (default: %(default)s)",
    )
    parser.add_argument("--limit", type=int, default=300, help="seconds for all (default: 300)")
    parser.add_argument("--memory", type=int, default=1536, help="MB of memory (default: 1536)")
    parser.add_argument("--cpus", type=int, default=2, help="processors (default: 2)")
    parser.add_argument(
        "--count",
        action="store_true",
        help="its clock counts instructions, a nanosecond for each; on one processor, which has more"
        " instructions, such as those for AES",
    )
    parser.add_argument("command", nargs="*", help="none: only fetches what is needed")
    parser.usage = "%(prog)s [options] -- COMMAND [ARGUMENT...]"
    options = parser.parse_args()
    # So that the machine ends, and what is temporary is removed.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in CACHE.glob("run-*"):
            # Of a process that was killed, and so removed nothing.
            if not Path("/proc", left.name.split("-")[1]).exists():
                shutil.rmtree(left, ignore_errors=True)
        fetch = {APT: fetch_kernel, BACKPORTS: fetch_backports}.get(options.kernel)
        kernel, first = make_kernel(fetch() if fetch else [Path(options.kernel)])
        root = str(make_debian_13()) if options.root == ROOTS[1] else ""
    if not options.command:
        return 0
    if not shutil.which("qemu-system-x86_64"):
        raise Failure("there is no qemu-system-x86_64: `make deps` installs qemu-system-x86")
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"run-{os.getpid()}-") as directory:
        return boot(options, kernel, first, root, directory)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        sys.exit(1)
    except Failure as failure:
        sys.exit(f"error: vm: {failure}")
