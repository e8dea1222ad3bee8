"""python3 -m handoff.asgi APP PATH: see --help."""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import sys
from typing import Any

from .workers import run_workers

# Those of uvicorn's command that mean something here, with its names.
UVICORN: dict[str, dict[str, Any]] = {
    "--factory": {"action": "store_true", "help": "APP is a function that makes the application"},
    "--http": {"help": "auto, h11 or httptools"},
    "--ws": {"help": "auto, none, websockets or wsproto"},
    "--lifespan": {"choices": ["auto", "on", "off"]},
    "--root-path": {},
    "--log-level": {},
    "--limit-concurrency": {"type": int, "help": "more connections stay the brokers'"},
    "--limit-max-requests": {"type": int},
    "--timeout-keep-alive": {"type": int},
    "--timeout-graceful-shutdown": {"type": int, "help": "from uvicorn 0.22 on"},
}


def user(name: str) -> int:
    return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid


def group(name: str) -> int:
    return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid


def header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise ValueError
    return name.strip(), value.strip()


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="python3 -m handoff.asgi",
        description="Runs an ASGI application on connections that brokers, such as nginx, hand over.",
        epilog="A broker that has the directory uses all workers, and a worker that ends is started "
               "again. SIGTERM: no connection is taken any more, and those that are there end.")
    parser.add_argument("app", metavar="APP", help="module:name")
    parser.add_argument("path", metavar="PATH",
                        help="the handoff socket; or a directory, ending in '/', for the workers'")
    parser.add_argument("--workers", type=int, help="how many processes, with PATH a directory")
    parser.add_argument("--socket", help=argparse.SUPPRESS)  # of this worker, in the directory
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--app-dir", default="", metavar="DIRECTORY",
                        help="where the module is, if not here")
    parser.add_argument("--mode", type=lambda text: int(text, 8), default=0,
                        help="of the socket's file, in octal: default 600")
    parser.add_argument("--user", action="append", type=user, default=[],
                        help="may be a broker, instead of this user and root; may be repeated")
    parser.add_argument("--group", action="append", type=group, default=[],
                        help="the same for a group")
    parser.add_argument("--no-access-log", dest="access_log", action="store_false")
    parser.add_argument("--header", dest="headers", action="append", default=[], type=header,
                        help="'NAME: VALUE', of every answer; 'Connection: close' ends each "
                             "connection after its first answer")
    for name, more in UVICORN.items():
        parser.add_argument(name, **more)
    return parser, parser.parse_args()


def main() -> None:
    parser, given = parse()
    try:
        from .server import run
    except ModuleNotFoundError as error:
        if error.name != "uvicorn":
            raise
        sys.exit("handoff.asgi needs uvicorn: pip install 'handoff[asgi]'")
    if os.path.isdir(given.path) and not given.path.endswith("/"):
        parser.error(f"{given.path} is a directory: end it with '/', for workers in it")
    if given.path.endswith("/") and given.socket is None:
        command = [sys.executable, "-m", "handoff.asgi", *sys.argv[1:]]
        sys.exit(0 if run_workers(command, given.path, given.workers or 1) else 1)
    if given.workers is not None and given.socket is None:
        parser.error("with --workers PATH is a directory, and ends in '/'")
    sys.path.insert(0, os.path.abspath(given.app_dir))
    names = [name[2:].replace("-", "_") for name in UVICORN]
    uvicorn_options = {name: getattr(given, name) for name in names
                       if getattr(given, name) is not None}
    run(given.app, given.socket or given.path, ready_fd=given.ready_fd,
        access_log=given.access_log, headers=given.headers, **uvicorn_options,
        options={"mode": given.mode, "users": given.user, "groups": given.group})


if __name__ == "__main__":
    main()
