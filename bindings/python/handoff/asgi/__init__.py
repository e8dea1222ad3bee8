"""Runs an ASGI application (FastAPI, Starlette ...) on connections that brokers hand over.

    python3 -m handoff.asgi module:app /run/app/handoff.sock

`client`, `server`, `scheme` and the extension "tls" of a scope are what the broker says, see
scope.py; the extension "handoff" is the rest of it. It needs uvicorn, 0.17.6 or later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .server import Server, run

__all__ = ["Server", "run"]


def __getattr__(name: str) -> Any:
    """When it is used, so that the command can say what it needs where uvicorn is missing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import server
    return getattr(server, name)
