"""Packages of any release of Debian and for any processor, fetched with apt-get into a directory.

What is fetched is not installed, and the lists of packages of this machine stay as they are.
"""

import re
import subprocess
from pathlib import Path


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


def mirror() -> str:
    """Where apt-get takes Debian from."""
    targets = run(
        "apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(SITE)", "Created-By: Packages"
    )
    found = re.search(r"^Debian Debian (\S+)$", targets, re.M)
    return found[1] if found else "http://deb.debian.org/debian"


class Debian:
    """The packages of a release for a processor, as Debian names both."""

    def __init__(self, directory: Path, release: str, processor: str) -> None:
        self.directory = directory / f"apt-{release}-{processor}"
        self.processor = processor
        (self.directory / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (self.directory / "status").touch()
        sources = self.directory / "sources.list"
        lines = [f"{kind} {mirror()} {release} main\n" for kind in ("deb", "deb-src")]
        sources.write_text("".join(lines), encoding="utf-8")
        settings = {
            "APT::Architecture": processor,
            "APT::Architectures": processor,
            "APT::Sandbox::User": "root",
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": self.directory / "lists",
            "Dir::State::status": self.directory / "status",
            "Dir::Cache": self.directory,
        }
        self.options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        run("apt-get", *self.options, "update", "-qq")

    def package(self, name: str) -> Path:
        """The package, which is fetched anew."""
        for old in self.directory.glob(f"{name}_*.deb"):
            old.unlink()
        run("apt-get", *self.options, "download", "-q", name, cwd=self.directory)
        return next(self.directory.glob(f"{name}_*.deb"))

    def kernel(self) -> list[Path]:
        """The packages of the newest kernel, the image last. Debian 13's backports have it in parts."""
        name = f"linux-image-{self.processor}"
        depends = run("apt-cache", *self.options, "depends", name)
        found = re.search(rf"Depends: (linux-image-\S+-{self.processor})$", depends, re.M)
        if not found:
            raise Failure(f"apt-get has no {name}, which is Debian's kernel")
        depends = run("apt-cache", *self.options, "depends", found[1])
        version = re.escape(found[1].removeprefix("linux-image-"))
        parts = re.findall(rf"Depends: (linux-(?:base|binary|modules)-{version})$", depends, re.M)
        return [self.package(part) for part in [*parts, found[1]]]

    def source(self, name: str) -> Path:
        """The archive of what Debian's source package is made from."""
        run("apt-get", *self.options, "source", "--download-only", "-q", name, cwd=self.directory)
        return next(self.directory.glob(f"{name}_*.orig.tar.*[!c]"))
