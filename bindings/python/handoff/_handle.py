"""What a Backend and a Broker have in common: each is a handle of the library."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from typing import Iterator, NoReturn

from ._library import ERR_CLOSED, ERR_WRONG_PROCESS, HandoffError


class Handle:
    """One thread at a time uses it: ctypes lets other threads run during a call, so nothing else
    would keep them apart. And it belongs to one process."""

    _what: str

    def __init__(self, pointer: ctypes.c_void_p) -> None:
        self._pointer: ctypes.c_void_p | None = pointer
        self._ended = ERR_CLOSED, ""  # why it has none: a status and a sentence
        self._lock = threading.Lock()
        self._waiting = False  # with the lock, but outside of the library
        _handles.add(self)

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
        lock = self._lock  # a child of fork() gets another one
        if not lock.acquire(blocking=False):
            raise RuntimeError(f"this {self._what} is in use: one thread at a time may use it, "
                               "and a signal handler not during a call")
        try:
            yield
        finally:
            lock.release()

    def _status_of_next(self) -> int:
        """What next() returns. Unlike other calls it does not make the handle this process's."""
        raise NotImplementedError

    def _free(self, pointer: ctypes.c_void_p) -> None:
        raise NotImplementedError

    def _end(self, status: int, why: str) -> None:
        pointer, self._pointer = self._pointer, None  # first: a signal handler may raise after _free()
        if pointer is not None:
            self._ended = status, why
            self._free(pointer)

    def _close(self) -> None:
        self._end(ERR_CLOSED, f"this {self._what} is closed")

    def _leave_to_parent(self) -> None:
        in_call = self._lock.locked() and not self._waiting
        self._lock = threading.Lock()  # the thread that has the old one may not be in the child
        if self._pointer is None or in_call:  # what a thread was changing cannot be freed
            return
        status = self._status_of_next()
        if status == ERR_WRONG_PROCESS:
            self._end(status, HandoffError(status).args[0])


_handles: weakref.WeakSet[Handle] = weakref.WeakSet()


def _in_child() -> None:
    """Closes the child's copies of what the parent uses: should the parent be killed, they would
    keep its socket and its channels open."""
    for handle in list(_handles):
        handle._leave_to_parent()


os.register_at_fork(after_in_child=_in_child)
