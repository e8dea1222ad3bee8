#!/usr/bin/env python3
"""Runs one command in a machine with kernel TLS, and ends with the command's exit status.

The machine is qemu's, emulated: it boots Debian's kernel, sees this machine's files below a layer
in memory, runs the command, and powers off. What the command writes is gone afterwards; what it
prints comes out here, standard error included. It has the loopback interface, an empty /tmp and
/run, two processors, and no way out. The command's environment is PATH, HOME, and the variables of
this one that begin with HANDOFF_.

With --processor arm64 the machine has another processor than this one, and needs --root debian-13.
The kernel and Debian 13's root come from Debian, once: build/vm keeps them.
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
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))
from debian import Debian, Failure, mirror, run  # noqa: E402

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

# Debian 13: what is unpacked with what it depends on, and what only for its headers.
DEBIAN_13 = "trixie"
PACKAGES = "nginx libnginx-mod-stream openssl libcmocka0 python3 curl nodejs".split()
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


class Processor(NamedTuple):
    """An emulated machine of one kind."""

    program: str
    package: str
    options: tuple[str, ...]
    console: str


# By Debian's names.
PROCESSORS = {
    "amd64": Processor("qemu-system-x86_64", "qemu-system-x86", (), "ttyS0"),
    "arm64": Processor(
        "qemu-system-aarch64", "qemu-system-arm", ("-machine", "virt", "-cpu", "cortex-a76"), "ttyAMA0"
    ),
}


def is_made(stamp: Path, recipe: str) -> bool:
    """Whether what a stamp is about was made this way."""
    return stamp.exists() and stamp.read_text(encoding="utf-8") == recipe


# ---- the kernel and the first files --------------------------------------------------------------


def fetch_kernel(processor: str, release: str) -> list[Path]:
    """The packages of the newest kernel that there was when this was first called."""
    kept = CACHE if not release else CACHE / f"apt-{release}-{processor}"
    if any(kept.glob(f"linux-image-*_{processor}.deb")):
        return sorted(kept.glob(f"linux-*_{processor}.deb"))
    if release:
        return Debian(CACHE, release, processor).kernel()
    name = f"linux-image-{processor}"
    found = re.search(
        rf"Depends: (linux-image-\S+-{processor})$", run("apt-cache", "depends", name), re.M
    )
    if not found:
        raise Failure(f"apt-get has no {name}, which is Debian's kernel")
    run("apt-get", "download", "-q", found[1], cwd=CACHE)
    return list(CACHE.glob("linux-image-*.deb"))


def fetch_busybox(processor: str) -> bytes:
    """The first program, a static one. This machine's own, if it has the same processor."""
    if processor == "amd64":
        busybox = shutil.which("busybox")
        if not busybox:
            raise Failure("there is no busybox: `make deps` installs busybox-static")
        return Path(busybox).read_bytes()
    package = Debian(CACHE, DEBIAN_13, processor).package("busybox-static")
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="unpacked-") as directory:
        run("dpkg-deb", "-x", str(package), directory)
        return next(Path(directory).glob("**/bin/busybox")).read_bytes()


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
        if names.endswith("?") and first not in files:
            continue
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


def image_of(kernel: Path, processor: str) -> bytes:
    """The kernel itself, unpacked: the machine would take two seconds for it at each start. Where it
    is packed in another way than by xz, the machine does it."""
    patterns = ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
    image = next(file for pattern in patterns for file in kernel.glob(pattern)).read_bytes()
    if processor == "amd64" and (at := image.find(b"\xfd7zXZ\0")) != -1:
        return lzma.LZMADecompressor().decompress(image[at:])
    return image


def make_kernel(packages: list[Path], processor: str) -> tuple[Path, Path]:
    """From the packages of a kernel: its image, and the files that it begins with."""
    here = CACHE / next((file for file in packages if "image" in file.name), packages[0]).stem
    kernel, first, stamp = here / "kernel", here / "first.gz", here / "stamp"
    recipe = " ".join(MODULES) + "\n" + (HERE / "init").read_text(encoding="utf-8")
    if is_made(stamp, recipe):
        return kernel, first
    busybox = fetch_busybox(processor)
    here.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="unpacked-") as directory:
        for package in packages:
            run("dpkg-deb", "-x", str(package), directory)
        kernel.write_bytes(image_of(Path(directory), processor))
        names = ["bin", "dev", "proc", "sys", "modules"]
        files = {name: (stat.S_IFDIR | 0o755, b"") for name in names}
        files["bin/busybox"] = (stat.S_IFREG | 0o755, busybox)
        files["init"] = (stat.S_IFREG | 0o755, (HERE / "init").read_bytes())
        for number, (name, content) in enumerate(modules(Path(directory))):
            files[f"modules/{number:02}-{name}"] = (stat.S_IFREG | 0o644, content)
    first.write_bytes(gzip.compress(archive(files), 1))
    stamp.write_text(recipe, encoding="utf-8")
    return kernel, first


# ---- Debian 13 -----------------------------------------------------------------------------------


def make_debian_13(processor: str) -> Path:
    """A root with Debian 13. Only root can make one, as its files are root's."""
    name = DEBIAN_13 + ("" if processor == "amd64" else f"-{processor}")
    root, part = CACHE / name, CACHE / f"{name}.part"
    recipe = " ".join([DEBIAN_13, *PACKAGES]) + FINISH
    if not is_made(root / "made", recipe):
        if os.geteuid() != 0:
            raise Failure("only root can make a root of Debian 13")
        for directory in (root, part):
            shutil.rmtree(directory, ignore_errors=True)
        print("vm: Debian 13 is fetched", file=sys.stderr)
        # It mounts /proc there. If somebody walks through the tree meanwhile, that is busy and stays
        # mounted, unless nobody else sees it.
        run(
            *("unshare", "--mount"),
            *("mmdebstrap", "--quiet", "--variant=extract", "--include=?essential"),
            f"--architectures={processor}",
            *(f"--include={','.join(PACKAGES)}", f"--extract-hook={FINISH}"),
            *(DEBIAN_13, str(part), mirror()),
        )
        # The machine has its own there, and cargo, which looks for files, would follow /dev/fd.
        shutil.rmtree(part / "dev")
        (part / "dev").mkdir()
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
    processor = PROCESSORS[options.processor]
    pace = ["-accel", "tcg", "-smp", str(options.cpus)]
    if options.count:
        # One nanosecond for each instruction, and none while there is nothing to do.
        pace = ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-smp", "1"]
        pace += ["-cpu", "max"]
    machine = [
        # With this process it ends too, should that be killed.
        *("setpriv", "--pdeathsig", "KILL"),
        *(processor.program, *processor.options, *pace),
        *("-m", str(options.memory), "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none", "-serial", f"file:{console}"),
        *("-kernel", str(kernel), "-initrd", str(whole)),
        *("-append", f"console={processor.console} quiet panic=-1 oops=panic mitigations=off "
          "no_timer_check"),
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
        "--processor", choices=PROCESSORS, default="amd64", help="as Debian names it"
    )
    parser.add_argument(
        "--kernel", metavar="DEB|RELEASE",
        help="a package of Debian with another kernel, or a release of Debian, such as trixie-backports",
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
    if options.processor != "amd64" and options.root == ROOTS[0]:
        parser.error("another processor needs --root debian-13")
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
        if options.kernel and "/" in options.kernel:
            packages = [Path(options.kernel)]
        else:
            other = DEBIAN_13 if options.processor != "amd64" else ""
            packages = fetch_kernel(options.processor, options.kernel or other)
        kernel, first = make_kernel(packages, options.processor)
        root = str(make_debian_13(options.processor)) if options.root == ROOTS[1] else ""
    if not options.command:
        return 0
    needed = PROCESSORS[options.processor]
    if not shutil.which(needed.program):
        raise Failure(f"there is no {needed.program}: please install {needed.package}")
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"run-{os.getpid()}-") as directory:
        return boot(options, kernel, first, root, directory)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        sys.exit(1)
    except Failure as failure:
        sys.exit(f"error: vm: {failure}")
