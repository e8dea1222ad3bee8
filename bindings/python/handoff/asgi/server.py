"""uvicorn's server on connections that brokers hand over, instead of those of a listening socket.

uvicorn's own classes speak HTTP and WebSocket, call the application and end when it is time.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import signal
import sys
import threading
from typing import Any, Awaitable, Callable, MutableMapping

import uvicorn

from .. import aio
from .._library import HandoffError, TakenBack
from ..backend import Arrival
from ..reason import Reason
from .scope import Facts, Unusable, facts_of

Scope = MutableMapping[str, Any]
Application = Callable[..., Awaitable[None]]

STARTUP_FAILURE = 3  # as uvicorn's

logger = logging.getLogger("uvicorn.error")


class Server(uvicorn.Server):
    """The options are those of handoff.Backend.listen(). When it listens it writes a newline into
    `ready_fd`, and closes that."""

    def __init__(self, config: uvicorn.Config, path: str | os.PathLike[str],
                 ready_fd: int | None = None, **options: Any) -> None:
        super().__init__(config)
        self._path, self._ready_fd, self._options = path, ready_fd, options
        self._listener: aio.Listener | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._begun: set[asyncio.Protocol] = set()  # uvicorn does not count them yet

    async def startup(self, sockets: Any = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        try:
            self._listener = aio.listen(self._path, **self._options)
        except HandoffError as error:
            logger.error("%s", error)
            await self.lifespan.shutdown()
            sys.exit(1)
        self._accepting = asyncio.ensure_future(self._accept(self._listener))
        self._accepting.add_done_callback(self._accepting_ended)
        self.servers: Any = []
        self.started = True
        print(f"listening on {os.fspath(self._path)}", flush=True)
        if self._ready_fd is not None:
            os.write(self._ready_fd, b"\n")
            os.close(self._ready_fd)

    async def shutdown(self, sockets: Any = None) -> None:
        """Takes nothing new first. Then uvicorn lets the connections end."""
        if self._listener is not None and self._accepting is not None:
            self._listener.drain()
            await asyncio.wait([self._accepting])
        await super().shutdown(sockets)
        await aio.wait_ended()

    async def _accept(self, listener: aio.Listener) -> None:
        tasks: set[asyncio.Task[None]] = set()
        while (arrival := await listener.next()) is not None:
            if self._is_full():
                listener.reject(arrival, Reason.BACKEND_BUSY)
                continue
            try:
                facts = facts_of(arrival)
                listener.adopt(arrival)
            except Unusable as error:
                logger.warning("Connection rejected: %s. nginx needs `handoff_metadata default`",
                               error)
                listener.reject(arrival)
                continue
            except TakenBack:
                continue
            task = asyncio.ensure_future(self._connect(arrival, self._make_protocol(facts)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)

    def _is_full(self) -> bool:
        """uvicorn answers 503 when the connections are so many. The broker may know better."""
        most = self.config.limit_concurrency
        return most is not None and len({*self.server_state.connections, *self._begun}) + 1 >= most

    def _accepting_ended(self, accepting: asyncio.Task[None]) -> None:
        if not accepting.cancelled() and accepting.exception() is not None:
            logger.error("Taking connections ended", exc_info=accepting.exception())
            self.should_exit = True

    def _make_protocol(self, facts: Facts) -> asyncio.Protocol:
        """Of uvicorn's class for HTTP, which may give the connection to that for WebSocket. Both
        take the application from their configuration."""
        config = copy.copy(self.config)
        config.loaded_app = _told(config.loaded_app, facts)
        # uvicorn before 0.20 knows no state of the lifespan.
        state = {"app_state": self.lifespan.state} if hasattr(self.lifespan, "state") else {}
        make: Callable[..., asyncio.Protocol] = config.http_protocol_class
        protocol = make(config=config, server_state=self.server_state, **state)
        self._begun.add(protocol)
        return protocol

    async def _connect(self, arrival: Arrival, protocol: asyncio.Protocol) -> None:
        try:
            await aio.create_connection(lambda: protocol, arrival)
        except Exception:
            logger.exception("A connection could not be served")
        finally:
            self._begun.discard(protocol)


def _told(application: Application, facts: Facts) -> Application:
    """The application, which is told the facts about its connection."""
    scheme = {"http": "https" if facts.secure else "http",
              "websocket": "wss" if facts.secure else "ws"}

    async def told(scope: Scope, receive: Any, send: Any) -> None:
        # In place: uvicorn's log takes the client from it, too.
        scope["scheme"] = scheme[scope["type"]]
        scope["client"] = facts.client or scope.get("client")
        scope["server"] = facts.server or scope.get("server")
        scope["extensions"] = {**(scope.get("extensions") or {}), **facts.extensions}
        await application(scope, receive, send)

    return told


def run(application: Application | str, path: str | os.PathLike[str], *,
        options: dict[str, Any] | None = None, ready_fd: int | None = None, **more: Any) -> None:
    """Runs an ASGI application, or the one at "module:name", on the connections that brokers hand
    over at `path`, until SIGTERM or SIGINT, whose handlers are the program's again then. In a thread
    that is not the main one no signal ends it. `options` are those of handoff.Backend.listen(),
    `ready_fd` is as with Server, and the others are those of uvicorn.Config. Exits with a status
    other than 0 if it cannot start."""
    config = uvicorn.Config(application, **{**more, "proxy_headers": False, "loop": "asyncio"})
    server = Server(config, path, ready_fd, **(options or {}))

    # uvicorn has handlers of its own while it serves, and later versions raise the signal again when
    # they have ended in order.
    def stop(*_: Any) -> None:
        if not server.should_exit:
            sys.exit()

    handlers = {}
    if threading.current_thread() is threading.main_thread():  # Python lets no other set handlers
        handlers = {number: signal.signal(number, stop)
                    for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
