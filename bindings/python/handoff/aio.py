"""The backend's end for asyncio.

    server = await handoff.aio.start_server(serve, "/run/app/handoff.sock")

is asyncio.start_server() for clients that brokers hand over. listen() is for programs that want the
arrivals themselves. Both need asyncio's own event loop. uvloop reads with read(2), which can tell
neither close_notify from an error nor an end that the broker's copy of the socket delays.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import weakref
from ssl import SSLContext
from typing import Any, Awaitable, Callable, Optional

from ._library import ERR_CLOSED, ERR_WRONG_PROCESS, HandoffError, TakenBack
from .backend import Arrival, Backend
from .reason import Reason
from .tls import TlsSocket

LIMIT = 2**16  # of a StreamReader, as in asyncio
VERDICT_S = 0.002
PAUSE_S = 0.1  # after an error of the system
END_S = 30  # how long a client may take nothing of what is left for it when its connection ends

Callback = Callable[[asyncio.StreamReader, "StreamWriter"], Optional[Awaitable[None]]]


def listen(path: str | os.PathLike[str] | socket.socket, **options: Any) -> Listener:
    """Listens for brokers: `async for arrival in handoff.aio.listen(path)`. The options are those of
    Backend.listen(), or with a socket in place of the path those of Backend.listen_on()."""
    if isinstance(path, socket.socket):
        return Listener(Backend.listen_on(path, **options))
    return Listener(Backend.listen(path, **options))


class Listener:
    """Gives the arrivals of a backend, one after the other.

    `async for` adopts each: make a task for it at once, because its client waits. A program that
    looks first calls next(), then adopt() or reject(). One task waits for the next arrival: a second
    one that does so meanwhile gets a RuntimeError, as with a StreamReader.
    """

    def __init__(self, backend: Backend) -> None:
        self._loop = asyncio.get_running_loop()
        if not isinstance(self._loop, asyncio.SelectorEventLoop):
            backend.close()
            raise RuntimeError("handoff.aio needs asyncio's own event loop, "
                               f"not {type(self._loop).__module__}")
        try:
            backend.dispatch()  # the first use, so that what the system refuses is refused here
        except HandoffError:
            backend.close()
            raise
        self.backend = backend
        self.draining = self._closed = self._waiting = False
        self._waiter: asyncio.Future[None] | None = None
        self._verdicts: asyncio.TimerHandle | None = None
        self._failing = False

    async def next(self) -> Arrival | None:
        """Waits for the next arrival, which is not adopted yet. None: no more will come."""
        if self._waiting:
            raise RuntimeError("another task waits for the next arrival already")
        self._waiting = True
        try:
            return await self._wait_for_next()
        finally:
            self._waiting = False

    async def _wait_for_next(self) -> Arrival | None:
        while not self._closed:
            arrival = self.backend.next()
            if arrival is not None:
                return arrival
            if self.draining:
                if not self._dispatch():
                    await asyncio.sleep(PAUSE_S)
                elif self.backend.get_statistics()["held"] == 0:
                    self.close()
                else:  # the program has taken some and decides later
                    await asyncio.sleep(VERDICT_S)
            else:
                await self._readable()
                while not self._closed and not self._dispatch():
                    await asyncio.sleep(PAUSE_S)
        return None

    def _dispatch(self) -> bool:
        """False after an error after which it is called again; the first of a row is told."""
        try:
            self.backend.dispatch()
        except HandoffError as error:
            if error.status in (ERR_CLOSED, ERR_WRONG_PROCESS):
                raise
            if not self._failing:
                self._loop.call_exception_handler({
                    "message": "The backend could not do its work, and tries again",
                    "exception": error})
            self._failing = True
            return False
        self._failing = False
        return True

    def adopt(self, arrival: Arrival) -> socket.socket:
        """Adopts an arrival, and returns its socket, which does not block: for the loop's sock_*()
        calls, or for open_connection(). Raises TakenBack if the broker was faster."""
        connection = self.backend.adopt(arrival)
        connection.setblocking(False)
        if self._verdicts is None:
            self._verdicts = self._loop.call_later(VERDICT_S, self._send_verdicts)
        return connection

    def reject(self, arrival: Arrival, reason: Reason = Reason.REJECTED) -> None:
        """Rejects an arrival. The broker serves the client another way."""
        self.backend.reject(arrival, reason)

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Arrival:
        while (arrival := await self.next()) is not None:
            try:
                self.adopt(arrival)
            except TakenBack:
                continue
            return arrival
        raise StopAsyncIteration

    def drain(self) -> None:
        """Stops listening. What has arrived still comes, then the iteration ends."""
        if not self.draining and not self._closed:
            self.draining = True
            self.backend.drain()
            self._wake()

    def close(self) -> None:
        """Ends it at once: the brokers serve what is not adopted."""
        if not self._closed:
            self._closed = True
            if self._verdicts is not None:
                self._verdicts.cancel()
            if self._waiter is not None:
                self._loop.remove_reader(self.backend.fileno())
            self.backend.close()
            self._wake()

    async def _readable(self) -> None:
        fd = self.backend.fileno()
        self._waiter = self._loop.create_future()
        self._loop.add_reader(fd, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if not self._closed:  # the number may be another's then
                self._loop.remove_reader(fd)

    def _send_verdicts(self) -> None:
        """The program may not call next() before it has served this client. dispatch() sends the
        verdicts that have waited for a millisecond."""
        self._verdicts = None
        self._dispatch()
        self._wake()  # it may have received what next() waits for

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


# ---- connections ---------------------------------------------------------------------------------


class _Ending:
    """A socket for asyncio's transport, which closes it and no more. That would end nothing while
    the broker has its copy, and would leave out close_notify: so it is shut down first."""

    unsent = False  # asyncio has bytes that the socket had no room for
    ended = False

    def send(self: Any, data: Any, *flags: int) -> int:
        self.unsent = True
        count = int(super().send(data, *flags))  # type: ignore[misc]
        self.unsent = count < memoryview(data).nbytes
        return count

    def sendmsg(self: Any, buffers: Any, *more: Any) -> int:
        buffers = list(buffers)
        self.unsent = True
        count = int(super().sendmsg(buffers, *more))  # type: ignore[misc]
        self.unsent = count < sum(memoryview(buffer).nbytes for buffer in buffers)
        return count

    def shutdown(self: Any, how: int) -> None:
        if self.ended and how == socket.SHUT_WR:
            return
        self.ended = self.ended or how != socket.SHUT_RD
        super().shutdown(how)  # type: ignore[misc]

    def close(self: Any) -> None:
        if self.fileno() != -1:
            with contextlib.suppress(OSError):  # the client has gone
                if self.unsent:  # aborted: the client must not take this for an orderly end
                    socket.socket.shutdown(self, socket.SHUT_RDWR)
                else:
                    self.shutdown(socket.SHUT_WR)
        super().close()  # type: ignore[misc]


class _Plain(_Ending, socket.socket):
    pass


class _Tls(_Ending, TlsSocket):
    def shutdown(self, how: int) -> None:
        try:
            super().shutdown(how)
        except BlockingIOError:  # there is no room for close_notify yet
            task = asyncio.ensure_future(_end_later(TlsSocket(fileno=os.dup(self.fileno()))))
            _ending_later.add(task)
            task.add_done_callback(_ending_later.discard)


_ending_later: set[asyncio.Task[None]] = set()


async def _end_later(connection: TlsSocket) -> None:
    """Sends close_notify when the client has taken so much that there is room for it."""
    loop, room = asyncio.get_running_loop(), asyncio.Event()
    fd = connection.fileno()
    loop.add_writer(fd, room.set)
    try:
        connection.setblocking(False)
        while True:
            await asyncio.wait_for(room.wait(), END_S)
            room.clear()
            with contextlib.suppress(BlockingIOError):
                return connection.shutdown(socket.SHUT_WR)
    except (OSError, asyncio.TimeoutError):
        pass  # the client has gone, or does not want to know
    finally:
        loop.remove_writer(fd)
        connection.close()


async def wait_ended() -> None:
    """Waits until all connections that are closed have ended: a client with TLS that has not yet
    taken all may delay that."""
    loop = asyncio.get_running_loop()
    while tasks := [task for task in _ending_later if task.get_loop() is loop]:
        await asyncio.wait(tasks)


class _First(asyncio.Protocol):
    """Gives the preread to a connection's protocol before what comes from the socket."""

    def __init__(self, protocol: asyncio.Protocol, preread: bytes) -> None:
        self._protocol, self._preread = protocol, preread

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_protocol(self._protocol)
        self._protocol.connection_made(transport)
        # After the transport has begun to watch the socket, so that the protocol can pause it, and
        # before the loop looks at the socket.
        asyncio.get_running_loop().call_soon(self.give, transport)

    def give(self, transport: asyncio.Transport) -> None:
        if not self._preread or transport.is_closing():
            return
        if transport.is_reading():
            # As the transport does with what the socket gives: its protocol may be another by now,
            # and one that raises loses its connection.
            try:
                _feed(transport.get_protocol(), self._preread)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                # That of TLS has none of its own.
                owner: Any = getattr(transport, "_ssl_protocol", transport)
                owner._fatal_error(error, "Fatal error: protocol.data_received() call failed.")
            else:
                _pass_a_turn(transport)
            return

        transport.resume_reading()  # Python 3.11.2 watches the socket of one that was paused so early
        transport.pause_reading()
        _when_it_resumes(transport, self.give, transport)


def _when_it_resumes(transport: asyncio.Transport, call: Callable[..., None], *what: Any) -> None:
    """Makes a call when somebody has the transport read again, before it reads the socket."""
    def resume_reading() -> None:
        del transport.resume_reading  # that of its class again
        transport.resume_reading()
        # No timer: the loop would read the socket first, and call_soon() is before it looks there.
        asyncio.get_running_loop().call_soon(call, *what)

    transport.resume_reading = resume_reading  # type: ignore[assignment]


def _pass_a_turn(transport: asyncio.Transport) -> None:
    """Has the transport read no more in this turn of the loop: what the protocol has begun, such as a
    task that answers, runs before the client's end is seen, as it does after what the socket gives."""
    if transport.is_closing() or not transport.is_reading():
        return
    wanted: bool | None = True  # None: the turn is over

    def want(reading: bool) -> None:
        nonlocal wanted
        if wanted is not None:
            wanted = reading
        elif reading:  # start_tls() has it called later
            transport.resume_reading()
        else:
            transport.pause_reading()

    def end() -> None:
        nonlocal wanted
        reads, wanted = wanted, None
        del transport.pause_reading, transport.resume_reading  # those of its class again
        if reads:
            transport.resume_reading()

    transport.pause_reading()
    transport.pause_reading = lambda: want(False)  # type: ignore[assignment]
    transport.resume_reading = lambda: want(True)  # type: ignore[assignment]
    asyncio.get_running_loop().call_soon(end)


def _feed(protocol: Any, data: bytes) -> None:
    """Gives a protocol bytes as a transport does."""
    if not isinstance(protocol, asyncio.BufferedProtocol):
        protocol.data_received(data)
        return
    left = memoryview(data)
    while left:
        buffer = memoryview(protocol.get_buffer(len(left))).cast("B")
        count = min(len(buffer), len(left))
        if count == 0:
            raise RuntimeError("get_buffer() returned an empty buffer")
        buffer[:count] = left[:count]
        protocol.buffer_updated(count)
        left = left[count:]


class _Held(asyncio.Protocol):
    """Keeps what comes until the connection has its own protocol."""

    def __init__(self, data: bytes = b"") -> None:
        self.data, self.ended = data, False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> None:
        self.ended = True

    def connection_lost(self, _: Exception | None) -> None:
        self.ended = True


async def _start_tls(transport: asyncio.Transport, protocol: asyncio.Protocol, begun: _Held,
                     context: SSLContext, timeout: float | None) -> asyncio.Transport:
    """Does the client's handshake, whose first bytes are in `begun`."""
    if begun.data:
        _when_it_resumes(transport, lambda: _feed(transport.get_protocol(), begun.data))
    held = _Held()  # asyncio makes no connection_made() of its protocol here
    tls = await asyncio.get_running_loop().start_tls(
        transport, held, context, server_side=True, ssl_handshake_timeout=timeout)
    if tls is None or held.ended or transport.is_closing():
        if tls is not None:
            tls.abort()
        transport.close()
        raise ConnectionResetError("the client has ended its connection in the handshake")
    tls.set_protocol(protocol)
    protocol.connection_made(tls)
    _First(protocol, held.data).give(tls)
    return tls


def _take(arrival: Arrival) -> socket.socket:
    """The socket of an adopted arrival, whose own is empty then."""
    return (_Tls if arrival.tls else _Plain)(fileno=arrival.connection.detach())


async def create_connection(
        make_protocol: Callable[[], asyncio.BaseProtocol], arrival: Arrival, *,
        ssl: SSLContext | None = None, ssl_handshake_timeout: float | None = None,
) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
    """Makes a transport and a protocol of an adopted arrival, as loop.connect_accepted_socket() does
    of a socket. The protocol gets the preread first. `ssl` is for clients whose TLS nobody has
    touched: then the preread is what has come of the handshake. An OSError: it has failed."""
    if ssl is not None and arrival.tls:
        raise ValueError("the kernel does this client's TLS: ssl is for clients that begin theirs")
    protocol: Any = make_protocol()
    begun = _Held(arrival.preread)
    first = begun if ssl is not None else _First(protocol, arrival.preread)
    connection = _take(arrival)
    try:
        connection.setblocking(False)
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: first, connection)
    except BaseException:
        connection.close()
        raise
    if ssl is not None:
        transport = await _start_tls(transport, protocol, begun, ssl, ssl_handshake_timeout)
    return transport, protocol


class StreamWriter(asyncio.StreamWriter):
    """get_extra_info("arrival") is the Arrival."""

    def __init__(self, transport: asyncio.Transport, protocol: asyncio.Protocol,
                 reader: asyncio.StreamReader, arrival: Arrival) -> None:
        super().__init__(transport, protocol, reader, asyncio.get_running_loop())
        self._arrival = arrival

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._arrival if name == "arrival" else super().get_extra_info(name, default)

    async def start_tls(self, *arguments: Any, **options: Any) -> None:
        """Raises a RuntimeError. asyncio would take this end for the client's, and what the preread
        has of a ClientHello would be lost."""
        raise RuntimeError("a connection that was handed over cannot start TLS later: "
                           "open it with ssl=, or let the broker do the client's TLS")


async def open_connection(arrival: Arrival, *, limit: int = LIMIT,
                          **tls: Any) -> tuple[asyncio.StreamReader, StreamWriter]:
    """Makes streams of an adopted arrival. The reader gives the preread first. `ssl` and
    `ssl_handshake_timeout` are those of create_connection()."""
    reader = asyncio.StreamReader(limit=limit)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await create_connection(lambda: protocol, arrival, **tls)
    return reader, StreamWriter(transport, protocol, reader, arrival)


# ---- a server ------------------------------------------------------------------------------------


async def start_server(callback: Callback, path: str | os.PathLike[str] | socket.socket, *,
                       limit: int = LIMIT, max_connections: int | None = None,
                       ssl: SSLContext | None = None, ssl_handshake_timeout: float | None = None,
                       **options: Any) -> Server:
    """Calls callback(reader, writer) for each client, as asyncio.start_server() does. More clients
    than `max_connections` stay the brokers'. With `ssl` each client does its handshake first; one
    whose TLS the kernel does already is rejected. Path and other options are those of
    listen()."""
    tls = {"ssl": ssl, "ssl_handshake_timeout": ssl_handshake_timeout} if ssl is not None else {}
    return Server(listen(path, **options), callback, limit, max_connections, tls)


class Server(asyncio.AbstractServer):
    """close() stops listening, and wait_closed() waits until each callback has returned."""

    def __init__(self, listener: Listener, callback: Callback, limit: int,
                 max_connections: int | None, tls: dict[str, Any]) -> None:
        self.listener = listener
        self._callback, self._limit, self._most = callback, limit, max_connections
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._connections: set[asyncio.Task[None]] = set()
        self._transports: weakref.WeakSet[asyncio.WriteTransport] = weakref.WeakSet()
        self._end: Callable[[asyncio.WriteTransport], None] | None = None  # of those yet to come
        self._accepting = self._loop.create_task(self._accept())
        self._accepting.add_done_callback(self._accepting_ended)

    def close(self) -> None:
        self.listener.drain()

    def close_clients(self) -> None:
        """Closes the connection of each client, which gets what is left for it first. Call close()
        before: then clients that have arrived and are not served yet end, too. The callbacks go on:
        they read the end."""
        self._end_all(lambda transport: transport.close())

    def abort_clients(self) -> None:
        """The same at once, for clients that do not take what is left for them."""
        self._end_all(lambda transport: transport.abort())

    def _end_all(self, end: Callable[[asyncio.WriteTransport], None]) -> None:
        self._end = end
        for transport in list(self._transports):
            end(transport)

    async def wait_closed(self) -> None:
        await asyncio.wait([self._accepting])
        while self._connections:
            await asyncio.wait(self._connections)
        await wait_ended()
        await self._accepting  # raises what has ended it

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return not self.listener.draining and not self._accepting.done()

    async def start_serving(self) -> None:
        """It does already."""

    async def serve_forever(self) -> None:
        """Serves until close() or until it is cancelled, which closes the clients, too."""
        try:
            await asyncio.shield(self._accepting)
        except asyncio.CancelledError:
            self.close()
            self.close_clients()
            await self.wait_closed()
            raise

    async def _accept(self) -> None:
        while (arrival := await self.listener.next()) is not None:
            if self._most is not None and len(self._connections) >= self._most:
                self.listener.reject(arrival, Reason.BACKEND_BUSY)
                continue
            if self._tls and arrival.tls:
                self.listener.reject(arrival)
                continue
            with contextlib.suppress(TakenBack):
                self.listener.adopt(arrival)
                task = self._loop.create_task(self._serve(arrival))
                self._connections.add(task)
                task.add_done_callback(functools.partial(self._served, arrival))

    def _served(self, arrival: Arrival, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        if arrival.connection.fileno() != -1:  # it was cancelled before it began
            _take(arrival).close()

    def _accepting_ended(self, accepting: asyncio.Task[None]) -> None:
        self.listener.close()  # or clients would wait for what nobody takes any more
        if not accepting.cancelled() and accepting.exception() is not None:
            self._loop.call_exception_handler({
                "message": "handoff.aio.start_server() accepts no more",
                "exception": accepting.exception()})

    async def _serve(self, arrival: Arrival) -> None:
        writer = None
        try:
            try:
                reader, writer = await open_connection(arrival, limit=self._limit, **self._tls)
            except OSError:
                if self._tls:  # the client's handshake has failed
                    return
                raise
            self._transports.add(writer.transport)
            if self._end is not None:
                self._end(writer.transport)
            result = self._callback(reader, writer)
            if result is not None:
                await result
        except BaseException as error:
            if writer is not None:
                writer.close()  # nobody else will
            if not isinstance(error, Exception):  # the task is cancelled, or the program ends
                raise
            self._loop.call_exception_handler({
                "message": "Unhandled exception in the callback of handoff.aio.start_server()",
                "exception": error})
