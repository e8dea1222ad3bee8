"""As much of the broker's end as the tests need."""

import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p

import handoff

ADOPTED, FALLBACK = 1, 2
OFFER_TLS = 2


class COffer(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("fd", c_int), ("flags", c_uint32),
        ("preread", c_char_p), ("preread_len", c_size_t),
        ("preread_iov", c_void_p), ("preread_iov_len", c_size_t),
        ("metadata", c_char_p), ("metadata_len", c_size_t),
        ("service", c_char_p), ("correlation", c_char_p),
        ("user_data", c_void_p), ("timeout_ms", c_uint64),
    ]

    def __init__(self, connection, preread=b"", metadata=b"", service=None, correlation=None,
                 tls=False):
        super().__init__()
        handoff.check(handoff.library.handoff_offer_init(self, ctypes.sizeof(self)))
        self.fd = connection.fileno()
        self.flags = OFFER_TLS if tls else 0
        self.preread, self.preread_len = preread, len(preread)
        self.metadata, self.metadata_len = metadata, len(metadata)
        self.service, self.correlation = service, correlation
        self.timeout_ms = 60000  # a slow machine is no reason for a fallback


class CVerdict(handoff.Filled):
    _fields_ = [
        ("size", c_size_t), ("id", c_uint64), ("user_data", c_void_p), ("outcome", c_uint32),
        ("reason", c_uint32), ("may_have_reached_backend", c_uint32), ("tries", c_uint32),
        ("backend", c_char_p), ("kind", c_uint32), ("reserved", c_uint32),
    ]


PROTOTYPES = {
    "handoff_broker_new": (c_int32, c_char_p, c_void_p, POINTER(c_void_p)),
    "handoff_broker_free": (None, c_void_p),
    "handoff_broker_fd": (c_int, c_void_p),
    "handoff_offer_init": (c_int32, POINTER(COffer), c_size_t),
    "handoff_broker_offer": (c_int32, c_void_p, POINTER(COffer), POINTER(c_uint64)),
    "handoff_broker_offer_and_wait": (c_int32, c_void_p, POINTER(COffer), POINTER(CVerdict)),
    "handoff_broker_dispatch": (c_int32, c_void_p),
    "handoff_broker_next": (c_int32, c_void_p, POINTER(CVerdict)),
    "handoff_broker_take_back": (c_int32, c_void_p, c_uint64),
}
handoff.declare(PROTOTYPES)


class Broker:
    """An offer takes the connection and COffer's keywords."""

    def __init__(self, path):
        self._handle = c_void_p()
        handoff.check(handoff.library.handoff_broker_new(os.fsencode(path), None,
                                                         byref(self._handle)))

    def close(self):
        handoff.library.handoff_broker_free(self._handle)

    def fileno(self):
        fd = handoff.library.handoff_broker_fd(self._handle)
        if fd == -1:
            raise handoff.HandoffError(None)
        return fd

    def offer(self, connection, **what):
        number = c_uint64()
        offer = COffer(connection, **what)
        handoff.check(handoff.library.handoff_broker_offer(self._handle, byref(offer),
                                                           byref(number)))
        return number.value

    def offer_and_wait(self, connection, **what):
        verdict = CVerdict()
        offer = COffer(connection, **what)
        handoff.check(handoff.library.handoff_broker_offer_and_wait(self._handle, byref(offer),
                                                                    byref(verdict)))
        return verdict

    def dispatch(self):
        handoff.check(handoff.library.handoff_broker_dispatch(self._handle))

    def next(self):
        verdict = CVerdict()
        status = handoff.library.handoff_broker_next(self._handle, byref(verdict))
        if status == handoff.NOTHING:
            return None
        handoff.check(status)
        return verdict

    def take_back(self, number):
        handoff.check(handoff.library.handoff_broker_take_back(self._handle, number))
