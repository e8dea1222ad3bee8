"""The broker's end of its channels: include/handoff/broker.h and backends.h say what each call
does."""

from __future__ import annotations

import ctypes
import os
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Sequence

from ._handle import Handle
from ._library import (ADOPTED, BACKEND_BACKUP, ERR_CLOSED, ERR_WRONG_PROCESS, NOTHING, OFFER_MORE,
                       OFFER_TLS, BrokerBackend, BrokerOptions, CVerdict, HandoffError, Offer,
                       check, library, path_string, put, string)


@dataclass
class Verdict:
    """What became of an offer.

    Adopted: close your copy of the connection, and do not shut it down. Otherwise it is still
    yours: serve the client another way; `reason` says why, a Reason or a number that is newer.
    """

    id: int
    user_data: Any
    adopted: bool
    reason: int
    may_have_reached_backend: bool
    tries: int
    backend: str
    kind: int


class Broker(Handle):
    """The broker's end of the channels to its backends.

        with handoff.Broker("/run/app/handoff.sock") as broker:
            while True:
                client, _ = listener.accept()
                if broker.offer_and_wait(client).adopted:
                    client.close()
                else:
                    serve(client)

    A path that ends in "/" is a directory: each socket in it is a backend. It connects by itself,
    and again after each end of a channel.

    One thread at a time uses it, and one process: as a Backend.
    """

    _what = "broker"

    def __init__(self, path: str | os.PathLike[str] | None = None, *, users: Sequence[int] = (),
                 groups: Sequence[int] = (), **options: int) -> None:
        """Root, this user and the owner of the socket's file may be the backend, or instead `users`
        and the members of `groups`. Other options are handoff_broker_options' members:
        `timeout_ms`, `max_in_flight` ... Zero is the default."""
        members = BrokerOptions()
        members.set(options, users, groups)
        pointer = ctypes.c_void_p()
        check(library.handoff_broker_new(None if path is None else path_string(path),
                                         ctypes.byref(members), ctypes.byref(pointer)))
        super().__init__(pointer)
        self._user_data: dict[int, Any] = {}  # of the offers in flight

    def close(self) -> list[Verdict]:
        """Takes every offer back, closes the channels, and frees the broker. Returns the verdicts
        that you have not taken: each offer has one. In a child of fork() it closes this process's
        copies only: the offers stay the parent's."""
        with self._alone():
            if self._pointer is None:
                return []
            status = library.handoff_broker_close(self._handle)
            if status not in (ERR_CLOSED, ERR_WRONG_PROCESS):
                check(status)
            verdicts = [] if status == ERR_WRONG_PROCESS else list(iter(self._next, None))
            self._close()
            return verdicts

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def add(self, path: str | os.PathLike[str], *, backup: bool = False, **options: int) -> None:
        """Adds a backend, or a directory of backends. A backup gets offers only while no other
        takes them. Other options are handoff_broker_backend's members, such as `weight`."""
        backend = BrokerBackend()
        backend.set({"flags": BACKEND_BACKUP if backup else 0, **options})
        backend.path = path_string(path)
        with self._alone():
            check(library.handoff_broker_add(self._handle, ctypes.byref(backend)))

    def remove(self, path: str | os.PathLike[str]) -> bool:
        """Removes what add() has added. False if there is no such backend."""
        with self._alone():
            status = library.handoff_broker_remove(self._handle, path_string(path))
            if status == NOTHING:
                return False
            check(status)
            return True

    def fileno(self) -> int:
        """Returns the descriptor to watch, and starts to connect. When it is readable, call
        dispatch(), then next()."""
        with self._alone():
            fd = int(library.handoff_broker_fd(self._handle))
            if fd == -1:
                raise HandoffError(None)
            return fd

    def room(self) -> int:
        """Returns how many offers would be taken now, if they are small."""
        with self._alone():
            return int(library.handoff_broker_room(self._handle))

    def offer(self, connection: socket.socket, *, preread: bytes = b"", metadata: bytes = b"",
              service: bytes | None = None, correlation: bytes | None = None, tls: bool = False,
              more: bool = False, timeout_ms: int = 0, user_data: Any = None) -> int:
        """Offers a connection and returns the offer's id. It does not wait.

        Keep the connection open, and do not use it, until next() returns the verdict with
        `user_data`. After an error there will be none: serve the client yourself, or after Full
        offer it again when the descriptor is readable. With `tls` the kernel does its TLS.
        """
        offer = _offer(connection, preread, metadata, service, correlation, tls, more, timeout_ms)
        number = ctypes.c_uint64()
        with self._alone():
            check(library.handoff_broker_offer(self._handle, ctypes.byref(offer),
                                               ctypes.byref(number)))
            self._user_data[number.value] = user_data
        return number.value

    def offer_and_wait(self, connection: socket.socket, *, preread: bytes = b"",
                       metadata: bytes = b"", service: bytes | None = None,
                       correlation: bytes | None = None, tls: bool = False,
                       timeout_ms: int = 0) -> Verdict:
        """Offers a connection and waits for its verdict, also for a channel and for room. After any
        error but HANDOFF_ERR_INTERNAL, a bug in the library, the connection is still yours.

        Python's signal handlers run only when it is done. If one raises, the verdict is lost: close
        the connection, because it may be the backend's.
        """
        offer = _offer(connection, preread, metadata, service, correlation, tls, False, timeout_ms)
        verdict = CVerdict()
        with self._alone():
            check(library.handoff_broker_offer_and_wait(self._handle, ctypes.byref(offer),
                                                        ctypes.byref(verdict)))
            return self._copy(verdict)

    def dispatch(self) -> None:
        """Does the pending work. It does not wait."""
        with self._alone():
            check(library.handoff_broker_dispatch(self._handle))

    def next(self) -> Verdict | None:
        """Returns the next verdict, or None. Call it until it returns None."""
        with self._alone():
            return self._next()

    def take_back(self, number: int) -> None:
        """Takes an offer back: the connection is yours, and there will be no verdict."""
        with self._alone():
            check(library.handoff_broker_take_back(self._handle, number))
            self._user_data.pop(number, None)

    def _next(self) -> Verdict | None:
        verdict = CVerdict()
        status = library.handoff_broker_next(self._handle, ctypes.byref(verdict))
        if status == NOTHING:
            return None
        check(status)
        return self._copy(verdict)

    def _copy(self, verdict: CVerdict) -> Verdict:
        return Verdict(verdict.id, self._user_data.pop(verdict.id, None),
                       verdict.outcome == ADOPTED, verdict.reason,
                       bool(verdict.may_have_reached_backend), verdict.tries,
                       os.fsdecode(verdict.backend or b""), verdict.kind)

    def _status_of_next(self) -> int:
        return int(library.handoff_broker_next(self._pointer, ctypes.byref(CVerdict())))

    def _free(self, pointer: ctypes.c_void_p) -> None:
        library.handoff_broker_free(pointer)


def _offer(connection: socket.socket, preread: bytes, metadata: bytes, service: bytes | None,
           correlation: bytes | None, tls: bool, more: bool, timeout_ms: int) -> Offer:
    offer = Offer()
    offer.fd = connection.fileno()
    offer.flags = (OFFER_TLS if tls else 0) | (OFFER_MORE if more else 0)
    offer.preread, offer.preread_len = preread, len(preread)
    offer.metadata, offer.metadata_len = metadata, len(metadata)
    offer.service = None if service is None else string("service", service)
    offer.correlation = None if correlation is None else string("correlation", correlation)
    put(offer, "timeout_ms", timeout_ms)
    return offer
