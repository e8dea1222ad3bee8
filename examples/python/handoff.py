"""The backend's end of libhandoff, through ctypes.

    with handoff.Backend.listen("/run/app/handoff.sock") as backend:
        while True:
            arrival = backend.accept()
            serve(arrival.connection, arrival.preread)

include/handoff.h says what each call does; the names here are its names. What a call returns is
copied: the library's memory is gone at the next dispatch() or accept(). The library is found as any
other is, by its soname: see ldconfig(8), or set LD_LIBRARY_PATH.
"""

import contextlib
import ctypes
import enum
import math
import os
import socket
import threading
from dataclasses import dataclass
from typing import NamedTuple, Optional

OK, ERR_WOULD_BLOCK, NOTHING, ERR_REVOKED = 0, 5, 31, 36

KIND_STREAM, KIND_SEQPACKET, KIND_DATAGRAM, KIND_UNCONNECTED = 1, 2, 4, 8


class Reason(enum.IntEnum):
    """Why a connection is not handed over: for Backend.reject()."""

    NONE = 0
    CLIENT_UNSUPPORTED = 1
    POLICY_DISABLED = 2
    DESCRIPTOR_PRESSURE = 3
    RATE_LIMITED = 4
    PERMISSION_DENIED = 5
    INTEGRITY_MISMATCH = 6
    ACK_TIMEOUT = 7
    ADOPTED_BACKEND = 8
    BACKEND_UNAVAILABLE = 9
    BACKEND_BUSY = 10
    REJECTED = 11
    UNSUPPORTED_PLATFORM = 12
    BROKER_CLOSED = 13
    BACKEND_DIED = 14


# ---- the structs, as in handoff.h ----------------------------------------------------------------


class CPeer(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_int32), ("uid", ctypes.c_uint32), ("gid", ctypes.c_uint32)]


class CPeerPolicy(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("users", ctypes.POINTER(ctypes.c_uint32)),
        ("users_len", ctypes.c_size_t),
        ("groups", ctypes.POINTER(ctypes.c_uint32)),
        ("groups_len", ctypes.c_size_t),
    ]

    def __init__(self, users=(), groups=()):
        super().__init__(
            ctypes.sizeof(CPeerPolicy),
            (ctypes.c_uint32 * len(users))(*users), len(users),
            (ctypes.c_uint32 * len(groups))(*groups), len(groups),
        )


class CBackendOptions(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("mode", ctypes.c_uint32),
        ("backlog", ctypes.c_int32),
        ("policy", ctypes.POINTER(CPeerPolicy)),
        ("max_channels", ctypes.c_size_t),
        ("credit", ctypes.c_size_t),
        ("max_offer_bytes", ctypes.c_size_t),
        ("max_held_bytes", ctypes.c_size_t),
        ("kinds", ctypes.c_uint32),
    ]

    # The defaults of HANDOFF_BACKEND_OPTIONS_INIT. By name, because a Structure takes any name.
    def __init__(self, *, mode=0o600, backlog=4096, users=(), groups=(), max_channels=64,
                 credit=256, max_offer_bytes=65536, max_held_bytes=67108864, kinds=KIND_STREAM):
        policy = ctypes.pointer(CPeerPolicy(users, groups)) if users or groups else None
        super().__init__(ctypes.sizeof(CBackendOptions), mode, backlog, policy, max_channels,
                         credit, max_offer_bytes, max_held_bytes, kinds)


class CArrival(ctypes.Structure):
    _fields_ = [
        ("id", ctypes.c_uint64),
        ("fd", ctypes.c_int),
        ("broker", CPeer),
        ("preread", ctypes.c_void_p),
        ("preread_len", ctypes.c_size_t),
        ("metadata", ctypes.c_void_p),
        ("metadata_len", ctypes.c_size_t),
        ("service", ctypes.c_char_p),
        ("correlation", ctypes.c_char_p),
    ]


class CBackendStatistics(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t)] + [(name, ctypes.c_uint64) for name in (
        "arrived", "adopted", "rejected", "revoked", "accepted", "refused", "broken", "channels",
        "held", "held_bytes")]


# ---- the calls -----------------------------------------------------------------------------------

library = ctypes.CDLL("libhandoff.so.0", use_errno=True)

_status, _handle = ctypes.c_int32, ctypes.c_void_p
PROTOTYPES = {
    "handoff_version": (ctypes.c_char_p,),
    "handoff_last_error": (ctypes.c_char_p,),
    "handoff_status_name": (ctypes.c_char_p, _status),
    "handoff_reason_name": (ctypes.c_char_p, ctypes.c_uint32),
    "handoff_backend_listen": (_status, ctypes.c_char_p, ctypes.POINTER(CBackendOptions),
                               ctypes.POINTER(_handle)),
    "handoff_backend_listen_on": (_status, ctypes.c_int, ctypes.POINTER(CBackendOptions),
                                  ctypes.POINTER(_handle)),
    "handoff_backend_free": (None, _handle),
    "handoff_backend_fd": (ctypes.c_int, _handle),
    "handoff_backend_dispatch": (_status, _handle),
    "handoff_backend_next": (_status, _handle, ctypes.POINTER(CArrival)),
    "handoff_backend_adopt": (_status, _handle, ctypes.c_uint64, ctypes.POINTER(ctypes.c_int)),
    "handoff_backend_reject": (_status, _handle, ctypes.c_uint64, ctypes.c_uint32),
    "handoff_backend_accept": (_status, _handle, ctypes.c_int, ctypes.POINTER(CArrival)),
    "handoff_backend_drain": (_status, _handle),
    "handoff_backend_get_statistics": (_status, _handle, ctypes.POINTER(CBackendStatistics)),
}


def declare(prototypes):
    """Without this ctypes would take every result for an int, and cut pointers short."""
    for name, (result, *arguments) in prototypes.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


declare(PROTOTYPES)


class HandoffError(Exception):
    """A call failed: `status` is its number or, where it has none, None; `errno` is the operating
    system's error, or 0 if the system had no part in it."""

    def __init__(self, status):
        self.status = status
        self.errno = ctypes.get_errno()  # first, because the next call changes it
        super().__init__(library.handoff_last_error().decode(errors="backslashreplace"))

    def __str__(self):
        name = "" if self.status is None else f"{status_name(self.status)}: "
        return name + super().__str__()


class Revoked(HandoffError):
    """The broker has taken the connection back, and serves the client. Not a fault."""


def check(status):
    if status != OK:
        raise (Revoked if status == ERR_REVOKED else HandoffError)(status)


def version():
    return library.handoff_version().decode()


def status_name(status):
    return library.handoff_status_name(status).decode()


def reason_name(reason):
    return library.handoff_reason_name(reason).decode()


# ---- the backend ---------------------------------------------------------------------------------


class Peer(NamedTuple):
    """A broker, as it was when it connected."""

    pid: int
    uid: int
    gid: int


@dataclass
class Arrival:
    """A connection that a broker hands over. `preread` comes before all that is read from it."""

    id: int
    preread: bytes
    metadata: bytes
    service: bytes
    correlation: bytes
    broker: Peer
    connection: Optional[socket.socket] = None  # once it is adopted


class Backend:
    """The backend's end of the channels of one handoff socket.

    One thread at a time: a second one gets a RuntimeError. ctypes lets other threads run during a
    call, so nothing else would keep them apart. And one process: the one that uses it first.
    """

    def __init__(self, handle):
        self._handle = handle
        self._lock = threading.Lock()

    @classmethod
    def listen(cls, path, **options):
        """Makes a handoff socket. The options are the keywords of CBackendOptions."""
        return cls._new(library.handoff_backend_listen, os.fsencode(path), options)

    @classmethod
    def listen_on(cls, listener, **options):
        """Listens on a socket that somebody else made; the caller's stays the caller's."""
        return cls._new(library.handoff_backend_listen_on, listener.fileno(), options)

    @classmethod
    def _new(cls, make, place, options):
        handle = ctypes.c_void_p()
        check(make(place, ctypes.byref(CBackendOptions(**options)), ctypes.byref(handle)))
        return cls(handle)

    def close(self):
        """Frees the backend. What was adopted stays open; what was not, the brokers keep."""
        with self._alone():
            library.handoff_backend_free(self._handle)
            self._handle = None  # from now on every call says HANDOFF_ERR_INVALID_ARGUMENT

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def fileno(self):
        """The descriptor to watch: when it is readable, call dispatch(), then next()."""
        with self._alone():
            fd = library.handoff_backend_fd(self._handle)
            if fd == -1:
                raise HandoffError(None)
            return fd

    def dispatch(self):
        with self._alone():
            check(library.handoff_backend_dispatch(self._handle))

    def next(self):
        """The next arrival, to adopt or reject, or None. Call it until it says None:
        `for arrival in iter(backend.next, None)`."""
        arrival = CArrival()
        with self._alone():
            status = library.handoff_backend_next(self._handle, ctypes.byref(arrival))
            if status == NOTHING:
                return None
            check(status)
            return _copy(arrival)

    def adopt(self, arrival):
        """Makes the connection this process's alone, and gives its socket. Raises Revoked."""
        fd = ctypes.c_int()
        with self._alone():
            check(library.handoff_backend_adopt(self._handle, arrival.id, ctypes.byref(fd)))
        arrival.connection = _adopted(fd.value)
        return arrival.connection

    def reject(self, arrival, reason=Reason.REJECTED):
        """Gives the connection back to the broker."""
        with self._alone():
            check(library.handoff_backend_reject(self._handle, arrival.id, reason))

    def accept(self, timeout=None):
        """Waits for an arrival and adopts it; None if none came in so many seconds.

        Python's signal handlers run when it returns. A program that has some waits for fileno()
        and signal.set_wakeup_fd() together.
        """
        milliseconds = -1 if timeout is None else min(math.ceil(timeout * 1000), 2**31 - 1)
        arrival = CArrival()
        with self._alone():
            status = library.handoff_backend_accept(self._handle, milliseconds,
                                                    ctypes.byref(arrival))
            if status == ERR_WOULD_BLOCK:
                return None
            check(status)
            connection = _adopted(arrival.fd)
            copy = _copy(arrival)
        copy.connection = connection
        return copy

    def drain(self):
        """Grants nothing from now on and stops listening; what has arrived can be adopted."""
        with self._alone():
            check(library.handoff_backend_drain(self._handle))

    def get_statistics(self):
        """What it has done: a dict of the numbers in handoff_backend_statistics."""
        statistics = CBackendStatistics(ctypes.sizeof(CBackendStatistics))
        with self._alone():
            check(library.handoff_backend_get_statistics(self._handle, ctypes.byref(statistics)))
        return {name: getattr(statistics, name) for name, _ in statistics._fields_[1:]}

    @contextlib.contextmanager
    def _alone(self):
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this backend is in use: one thread at a time may use it")
        try:
            yield
        finally:
            self._lock.release()


def _copy(arrival):
    return Arrival(
        arrival.id,
        ctypes.string_at(arrival.preread, arrival.preread_len),
        ctypes.string_at(arrival.metadata, arrival.metadata_len),
        arrival.service,
        arrival.correlation,
        Peer(arrival.broker.pid, arrival.broker.uid, arrival.broker.gid),
    )


def _adopted(fd):
    try:
        connection = socket.socket(fileno=fd)
    except BaseException:
        os.close(fd)
        raise
    # O_NONBLOCK is as the broker left it, and Python does not look. The connection is ours now, so
    # make it what accept() would have given.
    connection.settimeout(socket.getdefaulttimeout())
    return connection
