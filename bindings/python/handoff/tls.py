"""Connections whose TLS the kernel does: include/handoff/tls.h."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import select
import socket
import time
from typing import Any, Callable, NamedTuple

from ._library import OK, TIMED_OUT, CTlsSession, HandoffError, check, library


class TlsError(HandoffError, ConnectionError):  # type: ignore[misc]
    """What the client's end of TLS has sent is no data, or its end is missing: `status` says which,
    as of handoff_tls_receive(3). No more can be received. It is an OSError, as of any socket."""


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
    # True after close_notify, or the TlsError after which nothing more comes
    _ended: bool | TlsError = False

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        buffer = bytearray(bufsize)
        count = self.recv_into(buffer, bufsize, flags)
        return bytes(memoryview(buffer)[:count])

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
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
            start: Any = (ctypes.c_char * len(view)).from_buffer(view)
            try:
                self._do(select.POLLIN, lambda wait_ms: int(library.handoff_tls_receive(
                    self.fileno(), start, room, wait_ms, ctypes.byref(count))))
            except TlsError as error:
                self._ended = error
                raise
            finally:
                del start  # or the buffer could not be released
        self._ended = count.value == 0
        return count.value

    def shutdown(self, how: int) -> None:
        if how != socket.SHUT_RD:
            self._do(select.POLLOUT,
                     lambda wait_ms: int(library.handoff_tls_shutdown(self.fileno(), wait_ms)))
        if how != socket.SHUT_WR:
            super().shutdown(how)

    def session(self) -> TlsSession:
        session = CTlsSession()
        check(library.handoff_tls_get_session(self.fileno(), ctypes.byref(session)))
        return TlsSession(session.version_name.decode(), session.cipher_name.decode())

    def _do(self, event: int, call: Callable[[int], int]) -> None:
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
