"""Why a connection is not handed over."""

import enum

from ._library import check_constant


class Reason(enum.IntEnum):
    """HANDOFF_REASON_*: for Backend.reject(), and in a verdict."""

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


for _reason in Reason:
    check_constant(f"HANDOFF_REASON_{_reason.name}", _reason)
