"""The backend's end of libhandoff, through ctypes.

    with handoff.Backend.listen("/run/app/handoff.sock") as backend:
        while True:
            arrival = backend.accept()
            serve(arrival.connection, arrival.preread)

include/handoff/backend.h says what each call does; the names here are its names. An arrival's bytes
are copied, because the library's are valid only until the next dispatch() or accept(). The library
is found by its soname, as any other is: see ldconfig(8), or set LD_LIBRARY_PATH.
"""

import contextlib
import ctypes
import enum
import errno
import math
import os
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import NamedTuple, Optional

OK, NOTHING, TIMED_OUT, ERR_TAKEN_BACK = 0, 1, 2, -36

KIND_STREAM, KIND_SEQPACKET, KIND_DATAGRAM, KIND_UNCONNECTED, KIND_ANY = 1, 2, 4, 8, 15


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
    FOREIGN_BACKEND = 8
    BACKEND_UNAVAILABLE = 9
    BACKEND_BUSY = 10
    REJECTED = 11
    UNSUPPORTED_PLATFORM = 12
    BROKER_CLOSED = 13
    BACKEND_DIED = 14
    CLIENT_GONE = 15
    TOO_LARGE = 16
    KIND = 17
    TOO_MANY_CHANNELS = 18


# ---- the structs, as in the header ---------------------------------------------------------------


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
        ("max_in_flight", ctypes.c_size_t),
        ("max_offer_bytes", ctypes.c_size_t),
        ("max_held_bytes", ctypes.c_size_t),
        ("kinds", ctypes.c_uint64),
        ("max_channels_per_user", ctypes.c_size_t),
        ("max_kept_bytes", ctypes.c_size_t),
    ]

    # Zero is the default. By name, because a Structure takes any name.
    def __init__(self, *, mode=0, backlog=0, users=(), groups=(), max_channels=0, max_in_flight=0,
                 max_offer_bytes=0, max_held_bytes=0, kinds=0, max_channels_per_user=0,
                 max_kept_bytes=0):
        super().__init__()
        check(library.handoff_backend_options_init(self, ctypes.sizeof(self)))
        self.mode, self.backlog = mode, backlog
        if users or groups:
            self.policy = ctypes.pointer(CPeerPolicy(users, groups))
        self.max_channels, self.max_in_flight = max_channels, max_in_flight
        self.max_offer_bytes, self.max_held_bytes = max_offer_bytes, max_held_bytes
        self.kinds = kinds
        self.max_channels_per_user = max_channels_per_user
        self.max_kept_bytes = max_kept_bytes


class Filled(ctypes.Structure):
    """A struct that the library fills. It begins with its size."""

    def __init__(self):
        super().__init__(ctypes.sizeof(self))


class CArrival(Filled):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("id", ctypes.c_uint64),
        ("fd", ctypes.c_int),
        ("broker_pid", ctypes.c_int32),
        ("broker_uid", ctypes.c_uint32),
        ("broker_gid", ctypes.c_uint32),
        ("preread", ctypes.c_void_p),
        ("preread_len", ctypes.c_size_t),
        ("metadata", ctypes.c_void_p),
        ("metadata_len", ctypes.c_size_t),
        ("service", ctypes.c_char_p),
        ("correlation", ctypes.c_char_p),
        ("tls", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class CTlsSession(Filled):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("version", ctypes.c_uint32),
        ("cipher", ctypes.c_uint32),
        ("directions", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("version_name", ctypes.c_char_p),
        ("cipher_name", ctypes.c_char_p),
    ]


class CBackendStatistics(Filled):
    _fields_ = [("size", ctypes.c_size_t)] + [(name, ctypes.c_uint64) for name in (
        "arrived", "adopted", "rejected", "taken_back", "accepted", "refused", "broken",
        "channels", "held", "held_bytes", "kept_bytes", "over_limit", "system_errors",
        "system_errno", "refused_users", "last_refused_user", "refused_versions",
        "refused_draining")]


# ---- the calls -----------------------------------------------------------------------------------

library = ctypes.CDLL("libhandoff.so.0", use_errno=True)

_status, _handle = ctypes.c_int32, ctypes.c_void_p
PROTOTYPES = {
    "handoff_version": (ctypes.c_char_p,),
    "handoff_last_error": (ctypes.c_char_p,),
    "handoff_status_name": (ctypes.c_char_p, _status),
    "handoff_reason_name": (ctypes.c_char_p, ctypes.c_uint32),
    "handoff_backend_options_init": (_status, ctypes.POINTER(CBackendOptions), ctypes.c_size_t),
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
    "handoff_tls_get_session": (_status, ctypes.c_int, ctypes.POINTER(CTlsSession)),
    "handoff_tls_receive": (_status, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
                            ctypes.POINTER(ctypes.c_size_t)),
    "handoff_tls_shutdown": (_status, ctypes.c_int, ctypes.c_int),
}


def declare(prototypes):
    """Tells ctypes the types. It takes every result for an int otherwise, and cuts off pointers."""
    for name, (result, *arguments) in prototypes.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


declare(PROTOTYPES)


class HandoffError(Exception):
    """A call failed. `status` is what it returned, or None if it returns no status. `errno` is the
    system's error, or 0 if the system had no part in it."""

    def __init__(self, status):
        self.status = status
        self.errno = ctypes.get_errno()  # first, because the next call changes it
        super().__init__(library.handoff_last_error().decode(errors="backslashreplace"))

    def __str__(self):
        name = "" if self.status is None else f"{status_name(self.status)}: "
        return name + super().__str__()


class TakenBack(HandoffError):
    """The broker has taken the offer back and serves the client. This is no fault."""


class TlsError(HandoffError, ConnectionError):
    """What the client's end of TLS has sent is no data, or its end is missing: `status` says which,
    as of handoff_tls_receive(3). No more can be received. It is an OSError, as of any socket."""


def check(status):
    if status != OK:
        raise (TakenBack if status == ERR_TAKEN_BACK else HandoffError)(status)


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
    """An offer as the backend sees it. `preread` comes before what you read from `connection`."""

    id: int
    preread: bytes
    metadata: bytes
    service: bytes
    correlation: bytes
    broker: Peer
    tls: bool = False  # the kernel does the client's TLS: the connection is a TlsSocket
    connection: Optional[socket.socket] = None  # None until it is adopted


class TlsSession(NamedTuple):
    """What the kernel tells of a connection's TLS: "TLSv1.3", "AES-128-GCM"."""

    version: str
    cipher: str


class TlsSocket(socket.socket):
    """A connection whose TLS the kernel does: what you send and receive here is plain.

    recv() and recv_into() return nothing but data, and b"" or 0 after the client's close_notify. If
    the client closes without it, or sends something else that is no data, they raise a TlsError.
    shutdown(SHUT_WR) sends close_notify: call it before close(), which does not. makefile() and
    asyncio use these calls. recvfrom() and recvmsg() are the system's: they fail with EIO where
    the next record is no data.
    """

    TURN_MS = 100  # how long Python's signal handlers may have to wait
    _ended = None  # True after close_notify, or the TlsError after which nothing more comes

    def recv(self, bufsize, flags=0):
        buffer = bytearray(bufsize)
        count = self.recv_into(buffer, bufsize, flags)
        return bytes(memoryview(buffer)[:count])

    def recv_into(self, buffer, nbytes=0, flags=0):
        if flags:
            raise ValueError("a connection with TLS is received from without flags")
        if nbytes < 0:
            raise ValueError("negative buffersize in recv_into")
        if isinstance(self._ended, TlsError):
            raise self._ended
        count = ctypes.c_size_t()
        with memoryview(buffer).cast("B") as view:
            room = min(nbytes or len(view), len(view))
            if room == 0 or self._ended:
                return 0
            start = (ctypes.c_char * len(view)).from_buffer(view)
            try:
                self._do(select.POLLIN, lambda wait_ms: library.handoff_tls_receive(
                    self.fileno(), start, room, wait_ms, ctypes.byref(count)))
            except TlsError as error:
                self._ended = error
                raise
            finally:
                del start  # or the buffer could not be released
        self._ended = count.value == 0
        return count.value

    def shutdown(self, how):
        if how != socket.SHUT_RD:
            self._do(select.POLLOUT,
                     lambda wait_ms: library.handoff_tls_shutdown(self.fileno(), wait_ms))
        if how != socket.SHUT_WR:
            super().shutdown(how)

    def session(self):
        session = CTlsSession()
        check(library.handoff_tls_get_session(self.fileno(), ctypes.byref(session)))
        return TlsSession(session.version_name.decode(), session.cipher_name.decode())

    def _do(self, event, call):
        """Calls it until it is done, or this socket's timeout has passed."""
        timeout = self.gettimeout()
        end = None if timeout is None else time.monotonic() + timeout
        wait_ms = 0
        while (status := call(wait_ms)) == TIMED_OUT:
            if timeout == 0:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            left_ms = None if end is None else math.ceil(max(end - time.monotonic(), 0) * 1000)
            ready = select.poll()
            ready.register(self, event)
            if left_ms == 0 or not ready.poll(left_ms):
                raise socket.timeout("timed out")
            # It may be a part of a record. The library does not ask for the rest all the time.
            wait_ms = self.TURN_MS if left_ms is None else min(left_ms, self.TURN_MS)
        if status != OK:
            raise TlsError(status)


class Backend:
    """The backend's end of the channels of one handoff socket.

    One thread at a time uses it; a second one gets a RuntimeError. ctypes lets other threads run
    during a call, so nothing else would keep them apart. And it belongs to one process: the one
    that uses it first.
    """

    def __init__(self, handle):
        self._handle = handle
        self._lock = threading.Lock()

    @classmethod
    def listen(cls, path, **options):
        """Makes a handoff socket and listens on it. The options are CBackendOptions' keywords."""
        return cls._new(library.handoff_backend_listen, os.fsencode(path), options)

    @classmethod
    def listen_on(cls, listener, **options):
        """Listens on a socket that somebody else made. `listener` stays yours."""
        return cls._new(library.handoff_backend_listen_on, listener.fileno(), options)

    @classmethod
    def _new(cls, make, place, options):
        handle = ctypes.c_void_p()
        check(make(place, ctypes.byref(CBackendOptions(**options)), ctypes.byref(handle)))
        return cls(handle)

    def close(self):
        """Frees the backend. What you adopted stays open. The brokers serve the rest."""
        with self._alone():
            library.handoff_backend_free(self._handle)
            self._handle = None  # from now on every call returns HANDOFF_ERR_INVALID_ARGUMENT

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def fileno(self):
        """Returns the descriptor to watch. When it is readable, call dispatch(), then next()."""
        with self._alone():
            fd = library.handoff_backend_fd(self._handle)
            if fd == -1:
                raise HandoffError(None)
            return fd

    def dispatch(self):
        with self._alone():
            check(library.handoff_backend_dispatch(self._handle))

    def next(self):
        """Returns the next arrival, to adopt or reject, or None. Call it until it returns None:
        `for arrival in iter(backend.next, None)`."""
        arrival = CArrival()
        with self._alone():
            status = library.handoff_backend_next(self._handle, ctypes.byref(arrival))
            if status == NOTHING:
                return None
            check(status)
            return _copy(arrival)

    def adopt(self, arrival):
        """Adopts an arrival and returns its socket. Raises TakenBack if the broker was faster."""
        fd = ctypes.c_int()
        with self._alone():
            check(library.handoff_backend_adopt(self._handle, arrival.id, ctypes.byref(fd)))
        arrival.connection = _adopted(fd.value, arrival.tls)
        return arrival.connection

    def reject(self, arrival, reason=Reason.REJECTED):
        """Rejects an arrival. The broker serves the client another way."""
        with self._alone():
            check(library.handoff_backend_reject(self._handle, arrival.id, reason))

    def accept(self, timeout=None):
        """Waits for an arrival and adopts it. Returns None if none arrived in so many seconds.

        Python's signal handlers run only when it returns. A program with handlers waits for
        fileno() and signal.set_wakeup_fd() together.
        """
        milliseconds = -1 if timeout is None else min(math.ceil(timeout * 1000), 2**31 - 1)
        arrival = CArrival()
        with self._alone():
            status = library.handoff_backend_accept(self._handle, milliseconds,
                                                    ctypes.byref(arrival))
            if status == TIMED_OUT:
                return None
            check(status)
            connection = _adopted(arrival.fd, arrival.tls)
            copy = _copy(arrival)
        copy.connection = connection
        return copy

    def drain(self):
        """Stops listening and takes no more offers. What has arrived can still be adopted."""
        with self._alone():
            check(library.handoff_backend_drain(self._handle))

    def get_statistics(self):
        """Returns what it has done so far: handoff_backend_statistics as a dict."""
        statistics = CBackendStatistics()
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
        Peer(arrival.broker_pid, arrival.broker_uid, arrival.broker_gid),
        bool(arrival.tls),
    )


def _adopted(fd, tls):
    try:
        connection = (TlsSocket if tls else socket.socket)(fileno=fd)
    except BaseException:
        os.close(fd)
        raise
    # O_NONBLOCK is as the broker left it, and Python does not look. The connection is ours now:
    # make it as accept() of a listener would.
    connection.settimeout(socket.getdefaulttimeout())
    return connection
