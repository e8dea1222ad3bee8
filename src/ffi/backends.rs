//! Several backends of one broker, and the state of each.

use std::ffi::{c_char, c_int};
use std::time::Duration;

use super::argument::{self, timeout};
use super::broker::{handoff_broker, lasting, with, with_message};
use super::growing::{Fill, Growing, Input, initialize, padded, read};
use super::guard::{Failure, Message, guard};
use super::status::{HANDOFF_OK, handoff_status, status_of};
use crate::broker::{BackendSettings, BackendState, Phase};

/// One of a broker's backends, or a directory of them. Set at least `path`; zero is the default in
/// every other field. Out-of-range values are clamped.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_broker_backend {
    /// Set by HANDOFF_BROKER_BACKEND_INIT.
    pub size: usize,
    /// The path of its handoff socket, at most 107 bytes; "@" starts an abstract name. Copied.
    ///
    /// A path that ends in '/' is a directory, at most 106 bytes. Each socket in it is a backend
    /// while its file exists. Names that begin with '.' and symbolic links are ignored. Whoever can
    /// make a socket in the directory can become a backend, unless the broker's `policy` names the
    /// users.
    pub path: *const c_char,
    /// Its share of the offers, compared with the other weights: 1 to 65535, default 1.
    pub weight: u32,
    /// HANDOFF_BACKEND_BACKUP, HANDOFF_BACKEND_OFF, or 0.
    pub flags: u32,
    /// The most offers in flight at the backend: 1 to 4096, default the broker's.
    pub max_in_flight: usize,
    /// The backend rests after this many failures: 1 to 4096, default the broker's;
    /// HANDOFF_NO_LIMIT: it never rests.
    pub max_failures: usize,
    /// How long a failure counts, in milliseconds: default the broker's.
    pub failure_period_ms: u64,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_broker_backend {
    const INIT: &'static str = "HANDOFF_BROKER_BACKEND_INIT";
}
// SAFETY: integers and a pointer.
unsafe impl Input for handoff_broker_backend {}

/// In `flags`: a backup. It gets offers only while no other backend takes them.
pub const HANDOFF_BACKEND_BACKUP: u32 = 1;
/// In `flags`: it is switched off. It gets no offers, and the broker does not connect to it.
pub const HANDOFF_BACKEND_OFF: u32 = 2;

/// Initialises a backend as HANDOFF_BROKER_BACKEND_INIT does, for languages without macros.
///
/// @param[out] backend  the backend
/// @param size          sizeof(handoff_broker_backend)
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `backend` is NULL or `size` cannot be right.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_backend_init(
    backend: *mut handoff_broker_backend,
    size: usize,
) -> handoff_status {
    guard(|| initialize(backend, size))
}

/// Adds a backend, or a directory of backends, to a broker. If the broker already has it, the new
/// weight and flags apply now, and the new limits from its next channel on. Two paths to one
/// socket, such as `a/b` and `./a/b`, are two backends.
///
/// An offer goes to the backend with the fewest offers in flight for its weight, among those that
/// can take it now. Only offers without a verdict are in flight. Adopted connections do not count,
/// so a backend at capacity rejects with HANDOFF_REASON_BACKEND_BUSY. If the chosen backend is
/// busy, draining or gone, or has not answered after `attempt_timeout_ms`, the broker takes the
/// offer back and passes it to the next one. This goes on until a backend adopts the connection,
/// each has had the offer once, or the offer's timeout passes. If the next backends have no room,
/// the offer waits, unless as many offers wait as all backends could have in flight. A rejection
/// for any other reason is about the client, and final: handoff_backend_reject() lists the reasons
/// that are not. There is one verdict, about the last attempt.
///
/// @param broker   the broker
/// @param backend  the backend; read during the call only
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL, `size` is wrong, the path
///         cannot be a socket's or `flags` has an unknown bit; HANDOFF_ERR_FULL if the broker has
///         1024 backends, counting removed ones with verdicts that you have not taken;
///         HANDOFF_ERR_WRONG_PROCESS; HANDOFF_ERR_CLOSED; HANDOFF_ERR_NO_MEMORY.
///
/// It is not an error if nobody listens at the path, or if the directory does not exist: the broker
/// tries again. Before the broker's first use, this call does no I/O. After that, it starts to
/// connect.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_broker_add(
    broker: *mut handoff_broker,
    backend: *const handoff_broker_backend,
) -> handoff_status {
    with(broker, |broker| {
        let backend = read(backend, "backend")?;
        let path = argument::path(backend.path)?;
        if backend.flags & !(HANDOFF_BACKEND_BACKUP | HANDOFF_BACKEND_OFF) != 0 {
            let problem = argument::Problem::Is("has an unknown bit");
            return Err(Failure::Argument("backend.flags", problem));
        }
        let given = |value: usize| Some(value).filter(|value| *value > 0);
        let period = backend.failure_period_ms;
        let settings = BackendSettings {
            weight: backend.weight,
            backup: backend.flags & HANDOFF_BACKEND_BACKUP != 0,
            off: backend.flags & HANDOFF_BACKEND_OFF != 0,
            max_in_flight: given(backend.max_in_flight),
            max_failures: given(backend.max_failures),
            failure_period: (period > 0).then(|| timeout(period, Duration::MAX)),
        };
        Ok(broker.add(path, settings)?)
    })
}

/// Removes a backend, or a directory with the backends that were found in it. A removed backend
/// gets no more offers. Its offers in flight end as usual, then its channel is closed.
///
/// @param broker  the broker
/// @param path    the path with which the backend was added, or its path in a directory. In a
///                directory, a backend stays removed until its file appears anew. Backends that
///                were also added by their own paths stay when you remove their directory
/// @return HANDOFF_OK; HANDOFF_NOTHING if the broker has no such backend;
///         HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL; HANDOFF_ERR_WRONG_PROCESS;
///         HANDOFF_ERR_CLOSED.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_broker_remove(
    broker: *mut handoff_broker,
    path: *const c_char,
) -> handoff_status {
    with(broker, |broker| {
        let path = argument::path(path)?;
        if broker.remove(path)? { Ok(()) } else { Err(Failure::Nothing) }
    })
}

/// Returns how many offers without preread and metadata would be taken now. This call is a use of
/// the broker: it starts to connect.
///
/// After HANDOFF_ERR_FULL, or another refusal that may pass, you may keep the client in a queue of
/// your own: see handoff_broker_offer(). The descriptor becomes readable when an offer would be
/// taken again. Then call handoff_broker_dispatch(), take the verdicts, and offer until the next
/// HANDOFF_ERR_FULL. An offer with a long preread can be refused while there is room for one
/// without. If a client has waited too long in the queue, serve it yourself.
///
/// @param broker  the broker
/// @return the number of offers; 0 if none would be taken, or on error, with errno and
///         handoff_last_error() set.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_broker_room(broker: *mut handoff_broker) -> usize {
    let mut room = 0;
    let status = with(broker, |broker| {
        room = broker.room()?;
        Ok(())
    });
    if status == HANDOFF_OK { room } else { 0 }
}

/// In `state`: the broker connects to the backend, or waits for its first answer. This is also the
/// state before the broker's first use, when it has not begun to connect.
pub const HANDOFF_STATE_CONNECTING: u32 = 1;
/// In `state`: the backend takes offers, or will in a moment.
pub const HANDOFF_STATE_READY: u32 = 2;
/// In `state`: the backend takes no more offers, because it drains, or was removed or switched off.
/// The channel stays for the offers in flight.
pub const HANDOFF_STATE_DRAINING: u32 = 3;
/// In `state`: the backend rests, because it failed too often. Offers are refused with
/// HANDOFF_ERR_RATE_LIMITED, unless another backend can take them.
///
/// While the backend rests, one offer at a time is taken as a trial: the first after 1 second, then
/// after pauses of 2, 4, 8, 8 ... seconds, at most `failure_period_ms`. An adoption or a new
/// channel ends the rest and resets the count of failures. An offer that timed out keeps its place
/// until the backend answers. While the backend has no place left, there is no trial. If nothing is
/// in flight there either, the backend rests, however few its failures.
pub const HANDOFF_STATE_RESTING: u32 = 4;
/// In `state`: there is no channel. `status` and `message` say why.
pub const HANDOFF_STATE_DOWN: u32 = 5;

/// What one of a broker's backends does now, and what it has done since it was added. A backend in
/// a directory was added when its socket last appeared: one that comes back begins at 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_broker_backend_state {
    /// Set by HANDOFF_BROKER_BACKEND_STATE_INIT.
    pub size: usize,
    /// Its path. A path in a directory can contain any byte except 0: replace control characters
    /// before you print it. Valid until the next call with this broker.
    pub path: *const c_char,
    /// HANDOFF_STATE_CONNECTING, HANDOFF_STATE_READY, HANDOFF_STATE_DRAINING,
    /// HANDOFF_STATE_RESTING or HANDOFF_STATE_DOWN.
    pub state: u32,
    /// HANDOFF_BACKEND_BACKUP and HANDOFF_BACKEND_OFF, as they were set last.
    pub flags: u32,
    /// Its weight.
    pub weight: u32,
    /// Why the backend is down or resting, or had been connecting for over a second at the last
    /// dispatch. It is what handoff_broker_offer() would return. HANDOFF_ERR_CLOSED after
    /// handoff_broker_close(); HANDOFF_OK in every other state.
    pub status: handoff_status,
    /// The system's error behind `status`, as in errno, or 0. If the error is not the system's:
    /// EUSERS if the backend has too many channels, ESHUTDOWN if it drains, ENOSR if it is at a
    /// limit of its descriptors or memory, ENOTCONN if it has not answered yet; ETIMEDOUT,
    /// ECONNRESET or EPROTO if the process that listens is silent, hangs up, or speaks something
    /// else. Of a directory: ENOSPC if it has more than a broker takes, ENAMETOOLONG if a socket's
    /// path is too long.
    pub system_errno: c_int,
    /// Reserved: always 0.
    pub reserved: u32,
    /// A message about `status`, as from handoff_last_error(), or "". Valid until the next call
    /// with this broker.
    pub message: *const c_char,
    /// How long the backend has been in this state, in milliseconds.
    pub since_ms: u64,
    /// How long until the broker connects or makes a trial, in milliseconds. 0: now, or already in
    /// progress. HANDOFF_NO_TIMEOUT: neither is planned, because the broker has not been used yet,
    /// the backend is ready, or the backend rests and has no free place for a trial until it
    /// answers.
    pub next_ms: u64,
    /// Offers in flight at the backend.
    pub in_flight: u64,
    /// How many offers without preread and metadata the backend would take now.
    pub room: u64,
    /// Channels set up, the first included.
    pub connects: u64,
    /// Attempts to connect that failed.
    pub failed_connects: u64,
    /// Offers for which the backend was chosen, first or after another one, even if they were not
    /// sent in time. The backend counts those that it received as `arrived`.
    pub offered: u64,
    /// Those that the backend adopted.
    pub adopted: u64,
    /// Those that you took back. Offers that timed out or went on to another backend are fallbacks.
    pub taken_back: u64,
    /// Those that the backend did not adopt, by reason: fallbacks[HANDOFF_REASON_REJECTED] and so
    /// on. Another backend may have adopted them.
    pub fallbacks: [u64; 32],
    /// Offers that no backend took, by status: refusals[-HANDOFF_ERR_FULL] and so on. With several
    /// backends, each is counted at the backend that was most likely to take an offer soon.
    pub refusals: [u64; 64],
    /// Offers that have ended at the backend, by how long that took: histogram[0] counts those
    /// under 1 microsecond, histogram[1] those under 2, histogram[2] those under 4, and so on;
    /// histogram[31] counts all longer ones.
    pub histogram: [u64; 32],
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_broker_backend_state {
    const INIT: &'static str = "HANDOFF_BROKER_BACKEND_STATE_INIT";
}

/// Gets the state of one of a broker's backends. For all of them, call it with 0, 1, 2 and so on
/// until it returns HANDOFF_NOTHING. The last ones, with HANDOFF_STATE_DOWN, are the directories
/// that cannot be read, or in which a socket is left out: `message` says why.
///
/// The call makes no system call: it reports what the broker has seen. A program without an event
/// loop should call handoff_broker_dispatch() first, because its broker may have looked at nothing
/// since the last offer.
///
/// @param broker      the broker
/// @param index       which backend. Backends are numbered from 0 in the order in which they came.
///                    A number changes when an earlier backend is removed
/// @param[out] state  what the backend does, and has done
/// @return HANDOFF_OK; HANDOFF_NOTHING if there are fewer backends; HANDOFF_ERR_INVALID_ARGUMENT if
///         a pointer is NULL or `state->size` is wrong; HANDOFF_ERR_WRONG_PROCESS for a broker with
///         HANDOFF_BROKER_SHARED.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_broker_get_backend_state(
    broker: *mut handoff_broker,
    index: usize,
    state: *mut handoff_broker_backend_state,
) -> handoff_status {
    with_message(broker, |broker, message, name| {
        let out = Fill::new(state, "state")?;
        out.set(c_state(broker.backend_state(index).ok_or(Failure::Nothing)?, message, name));
        Ok(())
    })
}

fn number_of(phase: Phase) -> u32 {
    match phase {
        Phase::Connecting => HANDOFF_STATE_CONNECTING,
        Phase::Ready => HANDOFF_STATE_READY,
        Phase::Draining => HANDOFF_STATE_DRAINING,
        Phase::Resting => HANDOFF_STATE_RESTING,
        Phase::Down => HANDOFF_STATE_DOWN,
    }
}

fn c_state(
    state: BackendState<'_>,
    message: &Message,
    name: Option<&Message>,
) -> handoff_broker_backend_state {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let (mut status, mut system_errno) = (HANDOFF_OK, 0);
    match state.error.map(crate::error::Error::from) {
        Some(why) => {
            status = status_of(why.kind());
            system_errno = why.os_error().unwrap_or(0);
            message.set(format_args!("{why}"));
        }
        None => message.set(format_args!("")),
    }
    let backup = if state.settings.backup { HANDOFF_BACKEND_BACKUP } else { 0 };
    let off = if state.settings.off { HANDOFF_BACKEND_OFF } else { 0 };
    let counts = &state.counts;
    handoff_broker_backend_state {
        size: size_of::<handoff_broker_backend_state>(),
        path: lasting(state.name, name),
        state: number_of(state.phase),
        flags: backup | off,
        weight: state.settings.weight,
        status,
        system_errno,
        reserved: 0,
        message: message.as_ptr(),
        since_ms: milliseconds(state.since),
        next_ms: state.next.map_or(u64::MAX, milliseconds),
        in_flight: state.in_flight as u64,
        room: state.room as u64,
        connects: counts.connects,
        failed_connects: counts.failed_connects,
        offered: counts.offered,
        adopted: counts.adopted,
        taken_back: counts.taken_back,
        fallbacks: padded(&counts.fallbacks),
        refusals: padded(&counts.refusals),
        histogram: counts.times,
    }
}
