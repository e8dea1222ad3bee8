"""The broker's end of its channels: include/handoff/broker.h and backends.h say what each call
does."""

from __future__ import annotations

import ctypes
import os
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Sequence, Union

from ._handle import Handle, alone
from ._library import (ADOPTED, BACKEND_BACKUP, BACKEND_OFF, ERR_CLOSED, ERR_WRONG_PROCESS,
                       NO_TIMEOUT, NOTHING, OFFER_MORE, OFFER_TLS, OK, STATE_CONNECTING,
                       STATE_DOWN, STATE_DRAINING, STATE_READY, STATE_RESTING, BackendState,
                       BrokerBackend, BrokerOptions, BrokerStatistics, CVerdict, HandoffError, Offer,
                       buffer, check, fitting, library, path_string, put, reason_name, status_name,
                       string)
from .reason import Reason

Buffer = Union[bytes, bytearray, memoryview]

_SETTLED = 0  # in a CVerdict's outcome, where the library has written another number


@dataclass(eq=False)
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
    attempts: int
    backend: str
    kind: int

    @property
    def may_pass(self) -> bool:
        """After a fallback: whether the reason is about the backends and may pass, so that the
        client can be offered again."""
        return not self.adopted and bool(library.handoff_reason_may_pass(self.reason))


class Broker(Handle[Verdict]):
    """The broker's end of the channels to its backends.

        with handoff.Broker("/run/app/handoff.sock") as broker:
            while True:
                client, _ = listener.accept()
                if broker.offer_and_wait(client).adopted:
                    client.close()
                else:
                    serve(client)

    offer_and_wait() raises a HandoffError where there is no verdict, as without a backend: if it
    `is_fallback_safe`, serve the client. A path that ends in "/" is a directory: each socket in it
    is a backend. It connects by itself, and again after each end of a channel.

    One thread at a time uses it, and one process: as a Backend.
    """

    _what = "broker"
    _free = library.handoff_broker_free

    def __init__(self, path: str | os.PathLike[str] | None = None, *, users: Sequence[int] = (),
                 groups: Sequence[int] = (), **options: int) -> None:
        """Root, this user and the owner of the socket's file may be the backend, or instead `users`
        and the members of `groups`. Other options are handoff_broker_options' members:
        `timeout_ms`, `max_in_flight` ... Zero is the default."""
        members = BrokerOptions()
        members.set(options, users, groups)
        super().__init__()
        self._user_data: dict[int, Any] = {}  # of the offers in flight
        self._offering: tuple[ctypes.c_uint64, Any] | None = None
        self._taking_back: tuple[int, list[int]] | None = None
        self._verdict = CVerdict()
        check(library.handoff_broker_new(None if path is None else path_string(path),
                                         ctypes.byref(members), ctypes.byref(self._pointer)))

    def close(self) -> list[Verdict]:
        """Takes every offer back, closes the channels, and frees the broker. Returns the verdicts
        that you have not taken: each offer has one. In a child of fork() it closes this process's
        copies only: the offers stay the parent's."""
        self._close_alone()
        verdicts, self._left = self._left, []
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
        self._add(backend)

    @alone
    def _add(self, backend: BrokerBackend) -> None:
        check(library.handoff_broker_add(self._handle, ctypes.byref(backend)))

    @alone
    def remove(self, path: str | os.PathLike[str]) -> bool:
        """Removes what add() has added. False if there is no such backend."""
        status = library.handoff_broker_remove(self._handle, path_string(path))
        if status == NOTHING:
            return False
        check(status)
        return True

    @alone
    def fileno(self) -> int:
        """Returns the descriptor to watch, and starts to connect. When it is readable, call
        dispatch(), then next()."""
        fd = int(library.handoff_broker_fd(self._handle))
        if fd == -1:
            raise HandoffError(library.handoff_last_status())
        return fd

    @alone
    def room(self) -> int:
        """Returns how many offers would be taken now, if they are small."""
        return int(library.handoff_broker_room(self._handle))

    @alone
    def in_flight(self) -> dict[int, Any]:
        """Returns the ids of the offers whose verdict you have still to take, with their user_data.
        It says what a call has done that a signal handler ended."""
        self._handle  # raises in a child of fork(): the offers are the parent's
        return {**{verdict.id: verdict.user_data for verdict in self._left}, **self._user_data}

    @alone
    def get_statistics(self) -> dict[str, Any]:
        """Returns what it has done so far: handoff_broker_statistics as a dict. `fallbacks` and
        `refusals` are dicts, too, of the names of reasons and statuses, without those that are 0."""
        statistics = BrokerStatistics()
        check(library.handoff_broker_get_statistics(self._handle, ctypes.byref(statistics)))
        return _named(statistics)

    @alone
    def get_states(self) -> list[dict[str, Any]]:
        """Returns what each backend does now, and what it has done since it was found:
        handoff_broker_backend_state as a dict, and at the end the directories that cannot be read,
        or in which a socket is left out.

        `state` is "connecting", "ready", "draining", "resting" or "down", and `message` says why.
        `status` is a name, `next_ms` None where neither an attempt nor a trial is planned, and
        `backup` and `off` are its flags. It tells what the broker has seen: call dispatch() first
        unless you watch fileno().
        """
        states: list[dict[str, Any]] = []
        while True:
            state = BackendState()
            status = library.handoff_broker_get_backend_state(self._handle, len(states),
                                                             ctypes.byref(state))
            if status == NOTHING:
                return states
            check(status)
            states.append(_state(state))

    def offer(self, connection: socket.socket, *, preread: Buffer = b"", metadata: Buffer = b"",
              service: bytes | None = None, correlation: bytes | None = None, tls: bool = False,
              more: bool = False, timeout_ms: int = 0, user_data: Any = None) -> int:
        """Offers a connection and returns the offer's id. It does not wait.

        Keep the connection open, and do not use it, until next() returns the verdict with
        `user_data`. After an error there will be none: serve the client yourself, or after Full
        offer it again when the descriptor is readable. With `tls` the kernel does its TLS.

        With `more` it is not sent before flush() or dispatch(): for several offers in one turn of a
        loop.

        What a signal handler raises is no such error: the client may be offered. in_flight() says
        whether it is, and after close() whether there is a verdict.
        """
        offer = _offer(connection, preread, metadata, service, correlation, tls, more, timeout_ms)
        return self._offer(offer, user_data)

    def offer_and_wait(self, connection: socket.socket, *, preread: Buffer = b"",
                       metadata: Buffer = b"", service: bytes | None = None,
                       correlation: bytes | None = None, tls: bool = False,
                       timeout_ms: int = 0) -> Verdict:
        """Offers a connection and waits for its verdict, also for a channel and for room. After any
        error but HANDOFF_ERR_INTERNAL, a bug in the library, the connection is still yours.

        Python's signal handlers run only when it is done. If one raises, the verdict is lost: close
        the connection, because it may be the backend's.
        """
        offer = _offer(connection, preread, metadata, service, correlation, tls, False, timeout_ms)
        return self._offer_and_wait(offer)

    @alone
    def flush(self) -> None:
        """Sends what was offered with `more`. Nothing else makes fileno() readable for that."""
        check(library.handoff_broker_flush(self._handle))

    @alone
    def dispatch(self) -> None:
        """Does the pending work. It does not wait."""
        check(library.handoff_broker_dispatch(self._handle))

    def next(self) -> Verdict | None:
        """Returns the next verdict, or None. Call it until it returns None."""
        self._take()
        return self._give()

    @alone
    def take_back(self, number: int) -> None:
        """Takes an offer back: the connection is yours, and there will be no verdict. If a signal
        handler raises, in_flight() says whether it is still offered."""
        number = fitting(ctypes.c_uint64, "an offer's id", number)
        statuses: list[int] = []
        self._taking_back = number, statuses
        # In one step, so that the status is not lost: it is the only sign.
        statuses.extend(map(library.handoff_broker_take_back, (self._handle,), (number,)))
        self._settle()
        check(statuses[0])

    @alone
    def _offer(self, offer: Offer, user_data: Any) -> int:
        number = ctypes.c_uint64()  # no offer's number is 0
        self._offering = number, user_data
        status = library.handoff_broker_offer(self._handle, ctypes.byref(offer),
                                              ctypes.byref(number))
        self._settle()
        check(status)
        return number.value

    @alone
    def _offer_and_wait(self, offer: Offer) -> Verdict:
        verdict = CVerdict()
        check(library.handoff_broker_offer_and_wait(self._handle, ctypes.byref(offer),
                                                    ctypes.byref(verdict)))
        return _copy(verdict, None)

    @alone
    def _take(self) -> None:
        if not self._left:
            self._take_one()

    @alone
    def _close_alone(self) -> None:
        if not self._pointer:
            return
        status = library.handoff_broker_close(self._handle)
        if status not in (ERR_CLOSED, ERR_WRONG_PROCESS):
            check(status)
        while status != ERR_WRONG_PROCESS and self._take_one():
            pass
        self._close()

    def _take_one(self) -> bool:
        status = library.handoff_broker_next(self._handle, ctypes.byref(self._verdict))
        if status == NOTHING:
            return False
        check(status)
        self._settle()
        return True

    def _settle(self) -> None:
        if self._offering is not None:
            number, user_data = self._offering
            if number.value != 0:
                self._user_data[number.value] = user_data
            self._offering = None
        if self._taking_back is not None:
            taken, statuses = self._taking_back
            if statuses == [OK]:
                self._user_data.pop(taken, None)
            self._taking_back = None
        given = self._verdict
        if given.outcome != _SETTLED:
            verdict = _copy(given, self._user_data.get(given.id))
            drop = self._user_data.pop
            self._left += [verdict]
            given.outcome = _SETTLED
            drop(verdict.id, None)

    def _forget(self) -> None:
        self._verdict.outcome = _SETTLED
        self._offering = self._taking_back = None
        super()._forget()

    def _status_of_next(self) -> int:
        return int(library.handoff_broker_next(self._pointer, ctypes.byref(CVerdict())))


def _reason(number: int) -> int:
    try:
        return Reason(number)
    except ValueError:  # a newer library's
        return number


def _copy(verdict: CVerdict, user_data: Any) -> Verdict:
    return Verdict(verdict.id, user_data, verdict.outcome == ADOPTED, _reason(verdict.reason),
                   bool(verdict.may_have_reached_backend), verdict.attempts,
                   os.fsdecode(verdict.backend or b""), verdict.kind)


_STATES = {STATE_CONNECTING: "connecting", STATE_READY: "ready", STATE_DRAINING: "draining",
           STATE_RESTING: "resting", STATE_DOWN: "down"}


def _named(struct: BrokerStatistics | BackendState) -> dict[str, Any]:
    """Its members, with names for the numbers of reasons and statuses that are counted."""
    members = {name: getattr(struct, name) for name, *_ in struct._fields_[1:]}
    for name, name_of in ("fallbacks", reason_name), ("refusals", lambda it: status_name(-it)):
        members[name] = {name_of(it): count for it, count in enumerate(members[name]) if count}
    return members


def _state(state: BackendState) -> dict[str, Any]:
    members = _named(state)
    flags, _ = members.pop("flags"), members.pop("reserved")
    members.update(
        path=os.fsdecode(state.path or b""),
        state=_STATES.get(state.state, "unknown"),  # a newer library's
        backup=bool(flags & BACKEND_BACKUP), off=bool(flags & BACKEND_OFF),
        status=status_name(state.status),
        message=(state.message or b"").decode(errors="backslashreplace"),
        next_ms=None if state.next_ms == NO_TIMEOUT else state.next_ms,
        histogram=list(state.histogram))
    return members


def _offer(connection: socket.socket, preread: Buffer, metadata: Buffer, service: bytes | None,
           correlation: bytes | None, tls: bool, more: bool, timeout_ms: int) -> Offer:
    offer = Offer()
    if isinstance(connection, int):
        raise TypeError(f"the connection cannot be {connection!r}: it is the socket, not its number")
    offer.fd = connection.fileno()
    offer.flags = (OFFER_TLS if tls else 0) | (OFFER_MORE if more else 0)
    preread, metadata = buffer("preread", preread), buffer("metadata", metadata)
    offer.preread, offer.preread_len = preread, len(preread)
    offer.metadata, offer.metadata_len = metadata, len(metadata)
    offer.service = None if service is None else string("service", service)
    offer.correlation = None if correlation is None else string("correlation", correlation)
    put(offer, "timeout_ms", timeout_ms)
    return offer
