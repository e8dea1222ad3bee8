"""What a Backend and a Broker have in common: each is a handle of the library."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from typing import Iterator, NoReturn

from ._library import ERR_CLOSED, HandoffError


class Handle:
    """One thread at a time uses it: ctypes lets other threads run during a call, so nothing else
    would keep them apart. And it belongs to one process."""

    _what: str

    def __init__(self, pointer: ctypes.c_void_p) -> None:
        self._pointer: ctypes.c_void_p | None = pointer
        self._ended = ERR_CLOSED, ""  # why it has none: a status and a sentence
        self._lock = threading.Lock()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled: "
                        "make it in the process that uses it")

    @property
    def _handle(self) -> ctypes.c_void_p:
        if self._pointer is None:
            raise HandoffError(*self._ended)
        return self._pointer

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(f"this {self._what} is in use: one thread at a time may use it")
        try:
            yield
        finally:
            self._lock.release()

    def _free(self, pointer: ctypes.c_void_p) -> None:
        raise NotImplementedError

    def _end(self, status: int, why: str) -> None:
        pointer, self._pointer = self._pointer, None  # first: a signal handler may raise after _free()
        if pointer is not None:
            self._ended = status, why
            self._free(pointer)

    def _close(self) -> None:
        self._end(ERR_CLOSED, f"this {self._what} is closed")
