"""libhandoff through ctypes: its structs, its calls and its numbers, as the headers have them.

The library is found by its soname, as any other is: see ldconfig(8), or set LD_LIBRARY_PATH.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import (POINTER, c_bool, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64,
                    c_void_p)
from typing import Any, Sequence

OK, NOTHING, TIMED_OUT, WOKEN = 0, 1, 2, 3
ADOPTED, OFFER_MORE, OFFER_TLS = 1, 1, 2
BACKEND_BACKUP, BACKEND_OFF, NO_TIMEOUT = 1, 2, 2**64 - 1
STATE_CONNECTING, STATE_READY, STATE_DRAINING, STATE_RESTING, STATE_DOWN = range(1, 6)
ERR_FULL, ERR_WRONG_PROCESS, ERR_CLOSED, ERR_TAKEN_BACK = -23, -34, -35, -36


# ---- the structs, with the members of the headers ------------------------------------------------


def put(struct: ctypes.Structure, name: str, number: int) -> None:
    """Sets a member. ctypes would keep only the bits that there is room for, and would not say which
    member it is."""
    try:
        setattr(struct, name, number)
    except TypeError:
        raise TypeError(f"{name} cannot be {number!r}: it takes a whole number") from None
    if getattr(struct, name) != number:
        raise ValueError(f"{name} cannot be {number!r}")


def fitting(kind: Any, what: str, number: int) -> int:
    """The same for an argument of a call."""
    if not isinstance(number, int):
        raise TypeError(f"{what} cannot be {number!r}: it takes a whole number")
    if kind(number).value != number:
        raise ValueError(f"{what} cannot be {number!r}")
    return number


def numbers(what: str, ids: Sequence[int]) -> ctypes.Array[c_uint32]:
    if isinstance(ids, (int, str)):
        raise TypeError(f"{what} cannot be {ids!r}: they are a sequence of numbers")
    for number in ids:
        fitting(c_uint32, f"one of {what}", number)
    return (c_uint32 * len(ids))(*ids)


class PeerPolicy(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("users", POINTER(c_uint32)), ("users_len", c_size_t),
        ("groups", POINTER(c_uint32)), ("groups_len", c_size_t),
    ]

    def __init__(self, users: Sequence[int], groups: Sequence[int]) -> None:
        super().__init__(
            ctypes.sizeof(PeerPolicy),
            numbers("users", users), len(users), numbers("groups", groups), len(groups),
        )


class Sized(ctypes.Structure):
    """A struct that begins with its size. In the others zero is the default."""

    def __init__(self) -> None:
        super().__init__(ctypes.sizeof(self))

    def set(self, options: dict[str, Any], users: Sequence[int] = (),
            groups: Sequence[int] = ()) -> None:
        """Sets members by name. A ctypes.Structure would take any name."""
        names = {name for name, *_ in self._fields_} - {"size", "policy", "reserved"}
        for name, value in options.items():
            if name not in names:
                raise TypeError(f"there is no option {name!r}, but {', '.join(sorted(names))}")
            put(self, name, value)
        if users or groups:
            setattr(self, "policy", ctypes.pointer(PeerPolicy(users, groups)))


class BackendOptions(Sized):
    _fields_ = [
        ("size", c_size_t), ("mode", c_uint32), ("backlog", c_int32),
        ("policy", POINTER(PeerPolicy)),
        ("max_channels", c_size_t), ("max_in_flight", c_size_t), ("max_offer_bytes", c_size_t),
        ("max_held_bytes", c_size_t), ("kinds", c_uint64), ("max_channels_per_user", c_size_t),
        ("max_kept_bytes", c_size_t), ("spin_us", c_uint32), ("reserved", c_uint32),
    ]


class CArrival(Sized):
    _fields_ = [
        ("size", c_size_t), ("id", c_uint64), ("fd", c_int),
        ("broker_pid", c_int32), ("broker_uid", c_uint32), ("broker_gid", c_uint32),
        ("preread", c_void_p), ("preread_len", c_size_t),
        ("metadata", c_void_p), ("metadata_len", c_size_t),
        ("service", c_char_p), ("correlation", c_char_p),
        ("tls", c_uint32), ("reserved", c_uint32),
    ]


class CTlsSession(Sized):
    _fields_ = [
        ("size", c_size_t), ("version", c_uint32), ("cipher", c_uint32),
        ("directions", c_uint32), ("reserved", c_uint32),
        ("version_name", c_char_p), ("cipher_name", c_char_p),
    ]


class BackendStatistics(Sized):
    _fields_ = [("size", c_size_t)] + [(name, c_uint64) for name in (
        "arrived", "adopted", "rejected", "taken_back", "accepted", "refused", "broken",
        "channels", "held", "held_bytes", "kept_bytes", "refused_over_limit", "system_errors",
        "system_errno", "refused_users", "last_refused_user", "refused_versions",
        "refused_draining")]


class BrokerOptions(Sized):
    _fields_ = [
        ("size", c_size_t), ("max_in_flight", c_size_t),
        ("timeout_ms", c_uint64), ("attempt_timeout_ms", c_uint64),
        ("failover_bytes", c_size_t), ("queue_bytes", c_size_t), ("max_failures", c_size_t),
        ("failure_period_ms", c_uint64),
        ("reconnect_min_ms", c_uint64), ("reconnect_max_ms", c_uint64),
        ("policy", POINTER(PeerPolicy)), ("flags", c_uint32), ("spin_us", c_uint32),
    ]


class BrokerBackend(Sized):
    _fields_ = [
        ("size", c_size_t), ("path", c_char_p), ("weight", c_uint32), ("flags", c_uint32),
        ("max_in_flight", c_size_t), ("max_failures", c_size_t), ("failure_period_ms", c_uint64),
    ]


class Offer(Sized):
    _fields_ = [
        ("size", c_size_t), ("fd", c_int), ("flags", c_uint32),
        ("preread", c_char_p), ("preread_len", c_size_t),
        ("preread_iov", c_void_p), ("preread_iov_len", c_size_t),
        ("metadata", c_char_p), ("metadata_len", c_size_t),
        ("service", c_char_p), ("correlation", c_char_p),
        ("user_data", c_void_p), ("timeout_ms", c_uint64),
    ]


class CVerdict(Sized):
    _fields_ = [
        ("size", c_size_t), ("id", c_uint64), ("user_data", c_void_p),
        ("outcome", c_uint32), ("reason", c_uint32),
        ("may_have_reached_backend", c_uint32), ("attempts", c_uint32),
        ("backend", c_char_p), ("kind", c_uint32), ("reserved", c_uint32),
    ]


class BrokerStatistics(Sized):
    _fields_ = [
        ("size", c_size_t), *((name, c_uint64) for name in (
            "offered", "refused", "adopted", "taken_back", "connects", "in_flight",
            "queued_bytes")),
        ("fallbacks", c_uint64 * 32), ("refusals", c_uint64 * 64), ("failovers", c_uint64),
    ]


class BackendState(Sized):
    _fields_ = [
        ("size", c_size_t), ("path", c_char_p), ("state", c_uint32), ("flags", c_uint32),
        ("weight", c_uint32), ("status", c_int32), ("system_errno", c_int), ("reserved", c_uint32),
        ("message", c_char_p), *((name, c_uint64) for name in (
            "since_ms", "next_ms", "in_flight", "room", "connects", "failed_connects", "offered",
            "adopted", "taken_back")),
        ("fallbacks", c_uint64 * 32), ("refusals", c_uint64 * 64), ("histogram", c_uint64 * 32),
    ]


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "handoff_peer_policy": PeerPolicy,
    "handoff_backend_options": BackendOptions,
    "handoff_arrival": CArrival,
    "handoff_backend_statistics": BackendStatistics,
    "handoff_tls_session": CTlsSession,
    "handoff_broker_options": BrokerOptions,
    "handoff_broker_backend": BrokerBackend,
    "handoff_offer": Offer,
    "handoff_verdict": CVerdict,
    "handoff_broker_statistics": BrokerStatistics,
    "handoff_broker_backend_state": BackendState,
}


# ---- the calls -----------------------------------------------------------------------------------

_status, _handle = c_int32, c_void_p
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "handoff_constant": (_status, c_char_p, POINTER(c_int64)),
    "handoff_struct_size": (_status, c_char_p, POINTER(c_size_t)),
    "handoff_field": (_status, c_char_p, POINTER(c_size_t), POINTER(c_size_t)),
    "handoff_version": (c_char_p,),
    "handoff_last_error": (c_char_p,),
    "handoff_last_status": (_status,),
    "handoff_status_name": (c_char_p, _status),
    "handoff_status_is_fallback_safe": (c_bool, _status),
    "handoff_status_may_pass": (c_bool, _status),
    "handoff_reason_name": (c_char_p, c_uint32),
    "handoff_reason_may_pass": (c_bool, c_uint32),
    "handoff_backend_listen": (_status, c_char_p, POINTER(BackendOptions), POINTER(_handle)),
    "handoff_backend_listen_on": (_status, c_int, POINTER(BackendOptions), POINTER(_handle)),
    "handoff_backend_free": (None, _handle),
    "handoff_backend_fd": (c_int, _handle),
    "handoff_backend_dispatch": (_status, _handle),
    "handoff_backend_next": (_status, _handle, POINTER(CArrival)),
    "handoff_backend_adopt": (_status, _handle, c_uint64, POINTER(c_int)),
    "handoff_backend_reject": (_status, _handle, c_uint64, c_uint32),
    "handoff_backend_accept": (_status, _handle, c_int, POINTER(CArrival)),
    "handoff_backend_wake": (_status, _handle),
    "handoff_backend_drain": (_status, _handle),
    "handoff_backend_get_statistics": (_status, _handle, POINTER(BackendStatistics)),
    "handoff_tls_get_session": (_status, c_int, POINTER(CTlsSession)),
    "handoff_tls_receive": (_status, c_int, c_void_p, c_size_t, c_int, POINTER(c_size_t)),
    "handoff_tls_shutdown": (_status, c_int, c_int),
    "handoff_broker_new": (_status, c_char_p, POINTER(BrokerOptions), POINTER(_handle)),
    "handoff_broker_free": (None, _handle),
    "handoff_broker_add": (_status, _handle, POINTER(BrokerBackend)),
    "handoff_broker_remove": (_status, _handle, c_char_p),
    "handoff_broker_fd": (c_int, _handle),
    "handoff_broker_room": (c_size_t, _handle),
    "handoff_broker_offer": (_status, _handle, POINTER(Offer), POINTER(c_uint64)),
    "handoff_broker_offer_and_wait": (_status, _handle, POINTER(Offer), POINTER(CVerdict)),
    "handoff_broker_flush": (_status, _handle),
    "handoff_broker_dispatch": (_status, _handle),
    "handoff_broker_next": (_status, _handle, POINTER(CVerdict)),
    "handoff_broker_take_back": (_status, _handle, c_uint64),
    "handoff_broker_close": (_status, _handle),
    "handoff_broker_get_statistics": (_status, _handle, POINTER(BrokerStatistics)),
    "handoff_broker_get_backend_state": (_status, _handle, c_size_t, POINTER(BackendState)),
}

def load() -> ctypes.CDLL:
    """The library. ctypes takes every result for an int unless it is told, and cuts off pointers."""
    try:
        found = ctypes.CDLL("libhandoff.so.0", use_errno=True)
    except OSError as error:
        raise ImportError(f"{error}: install libhandoff and run ldconfig, or set "
                          "LD_LIBRARY_PATH to the directory that it is in") from None
    for name, (result, *arguments) in PROTOTYPES.items():
        try:
            function = getattr(found, name)
        except AttributeError:
            raise ImportError(f"libhandoff.so.0 is older than this package: no {name}()") from None
        function.restype, function.argtypes = result, arguments
    return found


def check_layout(struct: type[ctypes.Structure], name: str) -> None:
    """Raises an ImportError unless the library has the struct's members at the same places. It may
    know of more at the end."""
    size = c_size_t()
    if library.handoff_struct_size(name.encode(), size) != OK or ctypes.sizeof(struct) > size.value:
        raise ImportError(f"libhandoff {version()} does not know all of {name}: it is too old")
    for field, *_ in struct._fields_:
        offset, length = c_size_t(), c_size_t()
        here = getattr(struct, field)
        if (library.handoff_field(f"{name}.{field}".encode(), offset, length) != OK
                or (offset.value, length.value) != (here.offset, here.size)):
            raise ImportError(f"libhandoff {version()} has {name}.{field} at another place")


def check_constant(name: str, value: int) -> None:
    there = c_int64()
    if library.handoff_constant(name.encode(), there) != OK or there.value != value:
        raise ImportError(f"libhandoff {version()} has another {name}")


library = load()
# With the interpreter's lock, so that no other thread frees the handle meanwhile.
backend_wake = ctypes.PYFUNCTYPE(_status, _handle)(("handoff_backend_wake", library))


class HandoffError(Exception):
    """A call failed. `status` is what it returned, see Status. `errno` is the system's error, or 0 if
    the system had no part in it."""

    def __init__(self, status: int, sentence: str | None = None) -> None:
        self.status = status
        number = 0
        if sentence is None:
            number = ctypes.get_errno()  # first, because the next call changes it
            sentence = library.handoff_last_error().decode(errors="backslashreplace")
        super().__init__(sentence)
        self.errno = number  # last: in a TlsError, which is an OSError, the line above clears it

    def __reduce__(self) -> tuple[Any, ...]:
        # errno is no member of __dict__ in a TlsError, which is an OSError.
        return type(self), (self.status, self.args[0]), {**self.__dict__, "errno": self.errno}

    @property
    def is_fallback_safe(self) -> bool:
        """Of offer() and offer_and_wait(): whether the connection is certainly yours, and serving it
        another way is all that is to be done. Any other error is a bug; report it."""
        return bool(library.handoff_status_is_fallback_safe(self.status))

    @property
    def may_pass(self) -> bool:
        """Of offer(): whether the refusal is about the backends and may pass, so that the client can
        wait: the broker's descriptor becomes readable when an offer would be taken."""
        return bool(library.handoff_status_may_pass(self.status))

    def __str__(self) -> str:
        return f"{status_name(self.status)}: {super().__str__()}"


class TakenBack(HandoffError):
    """The broker has taken the offer back and serves the client. This is no fault."""


class Full(HandoffError):
    """There is no room for an offer. The broker's descriptor becomes readable when there is."""


_ERRORS = {ERR_FULL: Full, ERR_TAKEN_BACK: TakenBack}


def check(status: int) -> None:
    if status != OK:
        raise _ERRORS.get(status, HandoffError)(status)


def string(what: str, text: bytes) -> bytes:
    """A string for C, which would take no more than what is before a NUL."""
    if not isinstance(text, bytes):
        raise TypeError(f"the {what} must be bytes, not {type(text).__name__}")
    if b"\0" in text:
        raise ValueError(f"the {what} has a NUL: {text!r}")
    return text


def buffer(what: str, data: Any) -> bytes:
    """Bytes for C, copied from any other buffer."""
    if isinstance(data, bytes):
        return data
    try:
        return bytes(memoryview(data))
    except TypeError:
        raise TypeError(f"the {what} must be bytes, not {type(data).__name__}") from None


def path_string(path: str | os.PathLike[str]) -> bytes:
    return string("path", os.fsencode(path))


def version() -> str:
    """The library's version, "0.2.0"."""
    return str(library.handoff_version().decode())


def status_name(status: int) -> str:
    return str(library.handoff_status_name(fitting(c_int32, "a status", status)).decode())


def reason_name(reason: int) -> str:
    return str(library.handoff_reason_name(fitting(c_uint32, "a reason", reason)).decode())


for _name, _struct in STRUCTS.items():
    check_layout(_struct, _name)
for _name in ("OK", "NOTHING", "TIMED_OUT", "ERR_FULL", "ERR_WRONG_PROCESS", "ERR_CLOSED",
              "ERR_TAKEN_BACK", "ADOPTED", "OFFER_MORE", "OFFER_TLS", "BACKEND_BACKUP",
              "BACKEND_OFF", "STATE_CONNECTING", "STATE_READY", "STATE_DRAINING",
              "STATE_RESTING", "STATE_DOWN"):
    check_constant(f"HANDOFF_{_name}", globals()[_name])
