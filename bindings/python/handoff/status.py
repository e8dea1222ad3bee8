"""What a call of the library returns."""

import enum

from ._library import check_constant


class Status(enum.IntEnum):
    """HANDOFF_*: to compare with `status` of a HandoffError. `handoff/status.h` says what to do about
    each."""

    OK = 0
    NOTHING = 1
    TIMED_OUT = 2
    WOKEN = 3
    ERR_INVALID_ARGUMENT = -1
    ERR_UNSUPPORTED = -2
    ERR_PERMISSION_DENIED = -3
    ERR_BACKEND_UNAVAILABLE = -4
    ERR_WOULD_BLOCK = -5
    ERR_DESCRIPTOR_PRESSURE = -6
    ERR_SEND_FAILED = -7
    ERR_SHORT_WRITE = -8
    ERR_ACK_TIMEOUT = -9
    ERR_ACK_MISMATCH = -10
    ERR_ACK_MALFORMED = -11
    ERR_RECEIVE_FAILED = -12
    ERR_END_OF_STREAM = -13
    ERR_NO_DESCRIPTOR = -14
    ERR_SURPLUS_DESCRIPTORS = -15
    ERR_CONTROL_TRUNCATED = -16
    ERR_WRONG_LENGTH = -17
    ERR_TOKEN_MISMATCH = -18
    ERR_TOKEN_EXPIRED = -19
    ERR_TOKEN_NOT_PENDING = -20
    ERR_TOKEN_ALREADY_PENDING = -21
    ERR_TOKEN_COLLISION = -22
    ERR_FULL = -23
    ERR_RANDOM = -24
    ERR_PEER_UNKNOWN = -25
    ERR_PEER_NOT_ALLOWED = -26
    ERR_ADDRESS_IN_USE = -27
    ERR_NOT_A_SOCKET = -28
    ERR_LISTEN_FAILED = -29
    ERR_INTERNAL = -30
    ERR_RATE_LIMITED = -32
    ERR_TOO_LARGE = -33
    ERR_WRONG_PROCESS = -34
    ERR_CLOSED = -35
    ERR_TAKEN_BACK = -36
    ERR_TOO_LATE = -37
    ERR_SYSTEM = -38
    ERR_NO_MEMORY = -39
    ERR_NOT_TLS = -40
    ERR_TLS_KEY_UPDATE = -41
    ERR_TLS_ALERT = -42
    ERR_TLS_RECORD = -43
    ERR_TOO_MANY_CHANNELS = -44


for _status in Status:
    check_constant(f"HANDOFF_{_status.name}", _status)
