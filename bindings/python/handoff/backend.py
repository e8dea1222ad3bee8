"""The backend's end of its channels: include/handoff/backend.h says what each call does."""

from __future__ import annotations

import ctypes
import math
import os
import select
import socket
import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Callable, NamedTuple, Sequence

from ._handle import Handle, alone
from ._library import (ERR_TAKEN_BACK, NOTHING, OK, TIMED_OUT, WOKEN, BackendOptions,
                       BackendStatistics, CArrival, HandoffError, backend_wake, check,
                       check_constant, fitting, library, path_string)
from .reason import Reason
from .tls import TlsSocket

KIND_STREAM, KIND_SEQPACKET, KIND_DATAGRAM, KIND_UNCONNECTED, KIND_ANY = 1, 2, 4, 8, 15
for _name in "KIND_STREAM", "KIND_SEQPACKET", "KIND_DATAGRAM", "KIND_UNCONNECTED", "KIND_ANY":
    check_constant(f"HANDOFF_{_name}", globals()[_name])

_SETTLED = -2  # in a CArrival's fd, where the library has written -1 or a descriptor


class Peer(NamedTuple):
    """A broker, as it was when it connected."""

    pid: int
    uid: int
    gid: int


@dataclass(eq=False)  # each is one client, whatever else says the same
class Arrival:
    """An offer as the backend sees it. `preread` comes before what you read from `connection`.

    Its bytes are copies: the library's are valid only until the next dispatch() or accept().
    """

    id: int
    preread: bytes = field(repr=False)  # it may be long, as the metadata may
    metadata: bytes = field(repr=False)
    service: bytes
    correlation: bytes
    broker: Peer
    tls: bool = False  # the kernel does the client's TLS: the connection is a TlsSocket
    _connection: socket.socket | None = field(default=None, repr=False)
    # A weakref.finalize until there is a decision. It is about the arrival that next() gave, and not
    # about copies. Types of the standard library differ about it.
    _undecided: Any = field(default=None, init=False, repr=False)
    # What is adopted, until the connection has it: the library writes it here.
    _fd: ctypes.c_int = field(default_factory=lambda: ctypes.c_int(-1), repr=False)

    @property
    def connection(self) -> socket.socket:
        """The client's connection, once you have adopted it."""
        if self._fd.value != -1:
            self._connect()
        if self._connection is None:
            raise ValueError("this arrival is not adopted")
        return self._connection

    def _connect(self) -> None:
        """If a signal handler ends it, the next call does it again: before the socket has the
        descriptor or after that, it is the same one."""
        if self._connection is None:
            kind = TlsSocket if self.tls else socket.socket
            self._connection = kind.__new__(kind)
        socket.socket.__init__(self._connection, fileno=self._fd.value)
        # O_NONBLOCK is as the broker left it, and Python does not look. The connection is ours now:
        # make it as accept() of a listener would.
        self._connection.settimeout(socket.getdefaulttimeout())
        self._fd.value = -1


class Backend(Handle[Arrival]):
    """The backend's end of the channels of one handoff socket.

        with handoff.Backend.listen("/run/app/handoff.sock") as backend:
            while True:
                arrival = backend.accept()
                serve(arrival.connection, arrival.preread)

    One thread at a time uses it; a second one gets a RuntimeError. And it belongs to one process:
    the one that uses it first.
    """

    _what = "backend"

    _free = library.handoff_backend_free

    def __init__(self, make: Callable[..., int], place: bytes | int,
                 options: BackendOptions) -> None:
        """For listen() and listen_on()."""
        super().__init__()
        self._arrival = CArrival()
        self._arrival.fd = _SETTLED
        self._adopting: list[Arrival] = []
        # The ids of arrivals that were dropped undecided, in any thread and maybe during a call.
        self._dropped: deque[int] = deque()
        self._spins = options.spin_us > 0
        check(make(place, ctypes.byref(options), ctypes.byref(self._pointer)))

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
        options = BackendOptions()
        options.set(members, users, groups)
        return cls(make, place, options)

    @alone
    def close(self) -> None:
        """Frees the backend. What you adopted stays open. The brokers serve the rest."""
        self._close()

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    @alone
    def fileno(self) -> int:
        """Returns the descriptor to watch. When it is readable, call dispatch(), then next()."""
        return self._fd()

    @alone
    def dispatch(self) -> None:
        """Does the pending work. It does not wait. An arrival that you have dropped without a decision
        is rejected with BACKEND_BUSY."""
        while self._dropped:
            library.handoff_backend_reject(self._handle, self._dropped[0], Reason.BACKEND_BUSY)
            self._dropped.popleft()
        check(library.handoff_backend_dispatch(self._handle))

    def next(self) -> Arrival | None:
        """Returns the next arrival, to adopt or reject, or None. Call it until it returns None:
        `for arrival in iter(backend.next, None)`."""
        self._take()
        return self._give()

    def adopt(self, arrival: Arrival) -> socket.socket:
        """Adopts an arrival and returns its socket. Raises TakenBack if the broker was faster. If a
        signal handler raises, it may be adopted: `arrival.connection` says."""
        self._adopt_alone(arrival)
        return arrival.connection

    @alone
    def reject(self, arrival: Arrival, reason: Reason = Reason.REJECTED) -> None:
        """Rejects an arrival. The broker serves the client another way."""
        check(library.handoff_backend_reject(
            self._handle, fitting(ctypes.c_uint64, "an arrival's id", arrival.id),
            fitting(ctypes.c_uint32, "the reason", reason)))
        if arrival._undecided is not None:
            arrival._undecided.detach()

    def accept(self, timeout: float | None = None) -> Arrival | None:
        """Waits for an arrival and adopts it. Returns None if none arrived in so many seconds, or
        after wake().

        Signal handlers run while it waits. One that raises, as Python's own does on Ctrl-C, ends the
        wait, and no client is lost: one that was adopted at this very moment is what the next
        accept() returns. close() ends its connection.
        """
        if timeout is not None and math.isnan(timeout):  # no time is after it: the wait would not end
            raise ValueError(f"the timeout cannot be {timeout!r}")
        end = math.inf if timeout is None or timeout < 0 else time.monotonic() + timeout
        while True:
            woken = self._accept(end)
            arrival = self._give()
            # A signal handler may have been given it just now.
            if arrival is not None or woken or time.monotonic() >= end:
                return arrival

    def wake(self) -> None:
        """Ends the wait in accept(), or in the next one if there is none now. Any thread may call it at
        any time, and a signal handler."""
        if backend_wake(self._pointer) != OK:
            raise HandoffError(*self._ended)

    @alone
    def drain(self) -> None:
        """Stops listening and takes no more offers. What has arrived can still be adopted."""
        check(library.handoff_backend_drain(self._handle))

    @alone
    def get_statistics(self) -> dict[str, int]:
        """Returns what it has done so far: handoff_backend_statistics as a dict."""
        statistics = BackendStatistics()
        check(library.handoff_backend_get_statistics(self._handle, ctypes.byref(statistics)))
        return {name: getattr(statistics, name) for name, *_ in statistics._fields_[1:]}

    @alone
    def _take(self) -> None:
        if not self._left:
            status = library.handoff_backend_next(self._handle, ctypes.byref(self._arrival))
            if status != NOTHING:
                check(status)
                self._settle()

    @alone
    def _adopt_alone(self, arrival: Arrival) -> None:
        check(self._adopt(arrival))

    @alone
    def _accept(self, end: float) -> bool:
        """Whether wake() has ended it."""
        while (status := self._accept_now()) == TIMED_OUT and time.monotonic() < end:
            if self._spins:  # which accept() does only when it waits
                check(library.handoff_backend_dispatch(self._handle))
                if (status := self._accept_now()) != TIMED_OUT:
                    break
            self._wait(end)
        return status == WOKEN

    def _accept_now(self) -> int:
        if not self._left:
            status = int(library.handoff_backend_accept(self._handle, 0,
                                                        ctypes.byref(self._arrival)))
            if status in (TIMED_OUT, WOKEN):
                return status
            check(status)
            self._settle()
        arrival = self._left[0]
        if arrival._connection is None:  # it is from a next() that a signal handler ended
            status = self._adopt(arrival)
            if status != OK:
                self._left = []
                if status == ERR_TAKEN_BACK:
                    return self._accept_now()
                check(status)
        return OK

    def _adopt(self, arrival: Arrival) -> int:
        number = fitting(ctypes.c_uint64, "an arrival's id", arrival.id)
        self._adopting = [arrival]
        status = int(library.handoff_backend_adopt(self._handle, number,
                                                   ctypes.byref(arrival._fd)))
        self._settle()
        if status in (OK, ERR_TAKEN_BACK) and arrival._undecided is not None:
            arrival._undecided.detach()
        return status

    def _settle(self) -> None:
        given = self._arrival
        if given.fd != _SETTLED:
            arrival = _copy(given)
            self._left = [arrival]
            given.fd, arrival._fd.value = _SETTLED, given.fd
            if arrival._fd.value == -1:  # it is not adopted
                arrival._undecided = weakref.finalize(arrival, self._dropped.append, arrival.id)
        for arrival in self._adopting + self._left:
            if arrival._fd.value != -1:
                arrival._connect()
        self._adopting = []

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
            raise HandoffError(library.handoff_last_status())
        return fd

    def _status_of_next(self) -> int:
        return int(library.handoff_backend_next(self._pointer, ctypes.byref(CArrival())))

    def _forget(self) -> None:
        self._arrival.fd = _SETTLED
        self._adopting = []
        super()._forget()

    def _close(self) -> None:
        self._settle()
        super()._close()
        for arrival in self._left:
            if arrival._connection is not None:
                arrival._connection.close()
        self._left = []


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
