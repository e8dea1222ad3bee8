"""What a Backend and a Broker have in common: each is a handle of the library.

A signal handler may raise an exception between any two steps of the interpreter, also right after a
call of the library that has adopted a client. So the library writes what it gives into something that
the handle keeps; each call first settles what the one before has left there, and gives the result away
last of all. From Python 3.10 on, handlers run only when a call returns, when a function begins and where
a loop turns, so a few statements without any of these are one step.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
import weakref
from typing import Any, Callable, Generic, NoReturn, TypeVar, cast

from ._library import ERR_CLOSED, ERR_WRONG_PROCESS, HandoffError

_Method = TypeVar("_Method", bound=Callable[..., Any])
_Result = TypeVar("_Result")


def alone(method: _Method) -> _Method:
    """A method during which no other one may use the handle. What it returns may be lost."""
    @functools.wraps(method)
    def call(self: Handle[Any], *arguments: Any, **named: Any) -> Any:
        calls, me = self._calls, object()  # a child of fork() gets other ones
        try:
            calls[me] = None
            if list(calls)[0] is not me:
                raise RuntimeError(f"this {self._what} is in use: one thread at a time may use it, "
                                   "and a signal handler not during a call")
            self._settle()
            return method(self, *arguments, **named)
        finally:
            calls.pop(me, None)  # one step, whether it is there or not
    return cast(_Method, call)


class Handle(Generic[_Result]):
    """One thread at a time uses it: ctypes lets other threads run during a call, so nothing else
    would keep them apart. And it belongs to one process."""

    _what: str
    _free: Callable[[ctypes.c_void_p], None]
    _pointer = ctypes.c_void_p()

    def __init__(self) -> None:
        self._pointer = ctypes.c_void_p()  # the library writes it here, and __del__() finds it
        self._ended = ERR_CLOSED, f"this {self._what} is closed"  # why it has none
        self._calls: dict[object, None] = {}  # the first one has the handle
        self._waiting = False  # a call has it, but is outside of the library
        self._left: list[_Result] = []  # the library gave it, and the program has not got it yet
        _handles.add(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled: "
                        "make it in the process that uses it")

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        if self._pointer:
            try:
                warn(f"unclosed {self!r}", ResourceWarning, source=self)
            finally:
                self._close()

    @property
    def _handle(self) -> ctypes.c_void_p:
        if not self._pointer:
            raise HandoffError(*self._ended)
        return self._pointer

    def _settle(self) -> None:
        """Moves what the library has given into what this handle keeps. Done twice, it is the same."""
        raise NotImplementedError

    def _forget(self) -> None:
        """What there is to settle is the parent's, and a thread may have been writing it."""
        self._left = []

    def _give(self) -> _Result | None:
        """Outside of `alone`, and returned at once: see above."""
        if not self._left:
            return None
        first, *self._left = self._left
        return first

    def _status_of_next(self) -> int:
        """What next() returns. Unlike other calls it does not make the handle this process's."""
        raise NotImplementedError

    def _close(self) -> None:
        free, none = self._free, ctypes.c_void_p()
        pointer, self._pointer = self._pointer, none
        free(pointer)  # in one step with the above: neither twice nor never

    def _leave_to_parent(self) -> None:
        in_call = bool(self._calls) and not self._waiting
        self._calls = {}  # the thread that has the old ones may not be in the child
        if not self._pointer:
            return
        if in_call or self._status_of_next() == ERR_WRONG_PROCESS:
            self._forget()
            self._ended = ERR_WRONG_PROCESS, f"this {self._what} is used by another process"
            if in_call:  # what a thread was changing cannot be freed
                self._pointer = ctypes.c_void_p()
            self._close()


_handles: weakref.WeakSet[Handle[Any]] = weakref.WeakSet()


def _in_child() -> None:
    """Closes the child's copies of what the parent uses: should the parent be killed, they would
    keep its socket and its channels open."""
    for handle in list(_handles):
        handle._leave_to_parent()


os.register_at_fork(after_in_child=_in_child)
