"""python3 -m handoff.asgi APP PATH: see --help."""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import sys
from inspect import signature
from typing import Any, Callable

from .workers import run_workers


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return number


# Those of uvicorn's command that mean something here, with its names.
UVICORN: dict[str, dict[str, Any]] = {
    "--factory": {"action": "store_true", "help": "APP is a function that makes the application"},
    "--http": {"help": "auto, h11 or httptools"},
    "--ws": {"help": "auto, none, websockets or wsproto"},
    "--lifespan": {"choices": ["auto", "on", "off"]},
    "--root-path": {},
    "--log-level": {"choices": ["critical", "error", "warning", "info", "debug", "trace"],
                    "type": str.lower},
    # One less is what uvicorn serves.
    "--limit-concurrency": {"type": at_least(2), "help": "more connections stay the brokers'"},
    "--limit-max-requests": {"type": at_least(1)},
    "--timeout-keep-alive": {"type": at_least(0)},
    "--timeout-graceful-shutdown": {"type": at_least(0), "help": "from uvicorn 0.22 on"},
}


# What argparse makes a usage error of is a ValueError.
def mode(text: str) -> int:
    value = int(text, 8)
    if not 0 <= value <= 0o777:
        raise ValueError
    return value


def user(name: str) -> int:
    return identifier(name, lambda: pwd.getpwnam(name).pw_uid)


def group(name: str) -> int:
    return identifier(name, lambda: grp.getgrnam(name).gr_gid)


def identifier(name: str, look_up: Callable[[], int]) -> int:
    try:
        value = int(name) if name.isdigit() else look_up()
    except KeyError:
        raise ValueError from None
    if value > 0xffffffff:
        raise ValueError
    return value


def header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
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
    parser.add_argument("--workers", type=at_least(1),
                        help="how many processes, with PATH a directory")
    parser.add_argument("--socket", help=argparse.SUPPRESS)  # of this worker, in the directory
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--app-dir", default="", metavar="DIRECTORY",
                        help="where the module is, if not here")
    parser.add_argument("--mode", type=mode, default=0,
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


def uvicorn_options(parser: argparse.ArgumentParser, given: argparse.Namespace) -> dict[str, Any]:
    """What is given of them, if the uvicorn that is here knows it."""
    from uvicorn import Config, __version__, config
    options = {}
    for option in UVICORN:
        name = option[2:].replace("-", "_")
        value = getattr(given, name)
        if value is None:
            continue
        if name not in signature(Config).parameters:
            parser.error(f"argument {option}: uvicorn {__version__} does not have it")
        known: Any = {"http": config.HTTP_PROTOCOLS, "ws": config.WS_PROTOCOLS}.get(name)
        if known is not None and value not in known and ":" not in value:  # "module:class"
            parser.error(f"argument {option}: invalid choice: {value!r} "
                         f"(choose from {', '.join(map(repr, known))})")
        options[name] = value
    return options


def main() -> None:
    parser, given = parse()
    try:
        from .server import run
    except ModuleNotFoundError as error:
        if error.name != "uvicorn":
            raise
        sys.exit("handoff.asgi needs uvicorn: pip install uvicorn")
    if os.path.isdir(given.path) and not given.path.endswith("/"):
        parser.error(f"{given.path} is a directory: end it with '/', for workers in it")
    options = uvicorn_options(parser, given)
    if given.path.endswith("/") and given.socket is None:
        command = [sys.executable, "-m", "handoff.asgi", *sys.argv[1:]]
        sys.exit(0 if run_workers(command, given.path, given.workers or 1) else 1)
    if given.workers is not None and given.socket is None:
        parser.error("with --workers PATH is a directory, and ends in '/'")
    sys.path.insert(0, os.path.abspath(given.app_dir))
    run(given.app, given.socket or given.path, ready_fd=given.ready_fd,
        access_log=given.access_log, headers=given.headers, **options,
        options={"mode": given.mode, "users": given.user, "groups": given.group})


if __name__ == "__main__":
    main()
