"""The backend's end of its channels: include/handoff/backend.h says what each call does."""

from __future__ import annotations

import ctypes
import math
import os
import select
import socket
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Callable, NamedTuple, Sequence

from ._handle import Handle
from ._library import (NOTHING, TIMED_OUT, BackendOptions, BackendStatistics, CArrival,
                       HandoffError, check, check_constant, library, path_string)
from .reason import Reason
from .tls import TlsSocket

KIND_STREAM, KIND_SEQPACKET, KIND_DATAGRAM, KIND_UNCONNECTED, KIND_ANY = 1, 2, 4, 8, 15
for _name in "KIND_STREAM", "KIND_SEQPACKET", "KIND_DATAGRAM", "KIND_UNCONNECTED", "KIND_ANY":
    check_constant(f"HANDOFF_{_name}", globals()[_name])


class Peer(NamedTuple):
    """A broker, as it was when it connected."""

    pid: int
    uid: int
    gid: int


@dataclass
class Arrival:
    """An offer as the backend sees it. `preread` comes before what you read from `connection`.

    Its bytes are copies: the library's are valid only until the next dispatch() or accept().
    """

    id: int
    preread: bytes
    metadata: bytes
    service: bytes
    correlation: bytes
    broker: Peer
    tls: bool = False  # the kernel does the client's TLS: the connection is a TlsSocket
    _connection: socket.socket | None = None

    @property
    def connection(self) -> socket.socket:
        """The client's connection, once you have adopted it."""
        if self._connection is None:
            raise ValueError("this arrival is not adopted")
        return self._connection


class Backend(Handle):
    """The backend's end of the channels of one handoff socket.

        with handoff.Backend.listen("/run/app/handoff.sock") as backend:
            while True:
                arrival = backend.accept()
                serve(arrival.connection, arrival.preread)

    One thread at a time uses it; a second one gets a RuntimeError. And it belongs to one process:
    the one that uses it first.
    """

    _what = "backend"

    def __init__(self, pointer: ctypes.c_void_p, spins: bool = False) -> None:
        super().__init__(pointer)
        self._spins = spins

    @classmethod
    def listen(cls, path: str | os.PathLike[str], *, users: Sequence[int] = (),
               groups: Sequence[int] = (), **options: int) -> Backend:
        """Makes a handoff socket and listens on it. Brokers of root and of this user may connect,
        or instead those of `users` and `groups`. Other options are handoff_backend_options' members:
        `mode`, `max_channels` ... Zero is the default."""
        return cls._new(library.handoff_backend_listen, path_string(path), users, groups, options)

    @classmethod
    def listen_on(cls, listener: socket.socket, *, users: Sequence[int] = (),
                  groups: Sequence[int] = (), **options: int) -> Backend:
        """Listens on a socket that somebody else made. `listener` stays yours."""
        return cls._new(library.handoff_backend_listen_on, listener.fileno(), users, groups,
                        options)

    @classmethod
    def _new(cls, make: Callable[..., int], place: bytes | int, users: Sequence[int],
             groups: Sequence[int], members: dict[str, int]) -> Backend:
        options, handle = BackendOptions(), ctypes.c_void_p()
        options.set(members, users, groups)
        check(make(place, ctypes.byref(options), ctypes.byref(handle)))
        return cls(handle, options.spin_us > 0)

    def close(self) -> None:
        """Frees the backend. What you adopted stays open. The brokers serve the rest."""
        with self._alone():
            self._close()

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def fileno(self) -> int:
        """Returns the descriptor to watch. When it is readable, call dispatch(), then next()."""
        with self._alone():
            return self._fd()

    def dispatch(self) -> None:
        """Does the pending work. It does not wait."""
        with self._alone():
            check(library.handoff_backend_dispatch(self._handle))

    def next(self) -> Arrival | None:
        """Returns the next arrival, to adopt or reject, or None. Call it until it returns None:
        `for arrival in iter(backend.next, None)`."""
        arrival = CArrival()
        with self._alone():
            status = library.handoff_backend_next(self._handle, ctypes.byref(arrival))
            if status == NOTHING:
                return None
            check(status)
            return _copy(arrival)

    def adopt(self, arrival: Arrival) -> socket.socket:
        """Adopts an arrival and returns its socket. Raises TakenBack if the broker was faster."""
        fd = ctypes.c_int()
        with self._alone():
            check(library.handoff_backend_adopt(self._handle, arrival.id, ctypes.byref(fd)))
        arrival._connection = _adopted(fd.value, arrival.tls)
        return arrival._connection

    def reject(self, arrival: Arrival, reason: Reason = Reason.REJECTED) -> None:
        """Rejects an arrival. The broker serves the client another way."""
        with self._alone():
            check(library.handoff_backend_reject(self._handle, arrival.id, reason))

    def accept(self, timeout: float | None = None) -> Arrival | None:
        """Waits for an arrival and adopts it. Returns None if none arrived in so many seconds.

        Signal handlers run while it waits. One that raises, as Python's own does on Ctrl-C, ends the
        wait, and no client is adopted.
        """
        end = math.inf if timeout is None or timeout < 0 else time.monotonic() + timeout
        with self._alone():
            while (arrival := self._accept_now()) is None and time.monotonic() < end:
                if self._spins:  # which accept() does only when it waits
                    check(library.handoff_backend_dispatch(self._handle))
                    if (arrival := self._accept_now()) is not None:
                        break
                self._wait(end)
            return arrival

    def drain(self) -> None:
        """Stops listening and takes no more offers. What has arrived can still be adopted."""
        with self._alone():
            check(library.handoff_backend_drain(self._handle))

    def get_statistics(self) -> dict[str, int]:
        """Returns what it has done so far: handoff_backend_statistics as a dict."""
        statistics = BackendStatistics()
        with self._alone():
            check(library.handoff_backend_get_statistics(self._handle, ctypes.byref(statistics)))
        return {name: getattr(statistics, name) for name, *_ in statistics._fields_[1:]}

    def _accept_now(self) -> Arrival | None:
        arrival = CArrival()
        status = library.handoff_backend_accept(self._handle, 0, ctypes.byref(arrival))
        if status == TIMED_OUT:
            return None
        check(status)
        connection = _adopted(arrival.fd, arrival.tls)
        copy = _copy(arrival)
        copy._connection = connection
        return copy

    def _wait(self, end: float) -> None:
        """Waits until there may be an arrival. Here and not in the library, which Python's signal
        handlers have to wait for: then a client could be adopted first, and lost if one raises."""
        poll = select.poll()
        poll.register(self._fd(), select.POLLIN)
        left = end - time.monotonic()
        self._waiting = True
        try:
            poll.poll(None if left == math.inf else math.ceil(max(0, min(left * 1000, 2**31 - 1))))
        finally:
            self._waiting = False

    def _fd(self) -> int:
        fd = int(library.handoff_backend_fd(self._handle))
        if fd == -1:
            raise HandoffError(None)
        return fd

    def _status_of_next(self) -> int:
        return int(library.handoff_backend_next(self._pointer, ctypes.byref(CArrival())))

    def _free(self, pointer: ctypes.c_void_p) -> None:
        library.handoff_backend_free(pointer)


def _copy(arrival: CArrival) -> Arrival:
    return Arrival(
        arrival.id,
        ctypes.string_at(arrival.preread, arrival.preread_len),
        ctypes.string_at(arrival.metadata, arrival.metadata_len),
        arrival.service,
        arrival.correlation,
        Peer(arrival.broker_pid, arrival.broker_uid, arrival.broker_gid),
        bool(arrival.tls),
    )


def _adopted(fd: int, tls: bool) -> socket.socket:
    try:
        connection = (TlsSocket if tls else socket.socket)(fileno=fd)
    except BaseException:
        os.close(fd)
        raise
    # O_NONBLOCK is as the broker left it, and Python does not look. The connection is ours now:
    # make it as accept() of a listener would.
    connection.settimeout(socket.getdefaulttimeout())
    return connection
