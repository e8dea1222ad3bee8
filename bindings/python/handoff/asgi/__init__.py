"""Runs an ASGI application (FastAPI, Starlette ...) on connections that brokers hand over.

    python3 -m handoff.asgi module:app /run/app/handoff.sock

`client`, `server`, `scheme` and the extension "tls" of a scope are what the broker says, see
scope.py; the extension "handoff" is the rest of it. It needs uvicorn, 0.17.6 or later.
"""

from .server import Server, run

__all__ = ["Server", "run"]
