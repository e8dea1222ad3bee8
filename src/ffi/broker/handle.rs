//! What C has of a broker, used by one thread at a time or shared, with its messages.

use std::ffi::{CStr, c_char};

use crate::broker::{Broker, SharedBroker};
use crate::ffi::argument::{Problem, check};
use crate::ffi::guard::{self, Failure, Message, guard, guard_or, last_message};
use crate::ffi::in_use::{InUse, Used};
use crate::ffi::status::{HANDOFF_OK, handoff_status, status_of};
use crate::handle::Waker;
use crate::kind::ErrorKind;

/// The broker's end of the channels to its backends.
///
/// It belongs to the process that uses it first. You can make it before fork(): until its first
/// use, each copy that a child gets becomes a broker of its own.
pub struct handoff_broker {
    inner: Inner,
    /// What ends a wait. None: threads share the broker, and it is that which does.
    waker: Option<Waker>,
    in_use: InUse,
    /// About a backend: see handoff_broker_get_state().
    state: Message,
}

#[allow(clippy::large_enum_variant, reason = "it is behind a pointer, and stays there")]
enum Inner {
    /// Used by one thread at a time.
    Single(Broker),
    Shared(SharedBroker),
}

impl handoff_broker {
    pub(super) fn new(broker: Broker, is_shared: bool) -> handoff_broker {
        let (inner, waker) = if is_shared {
            (Inner::Shared(SharedBroker::new(broker)), None)
        } else {
            let waker = broker.waker();
            (Inner::Single(broker), Some(waker))
        };
        handoff_broker { inner, waker, in_use: InUse::new(), state: Message::new() }
    }
}

/// Runs the body of a call of a broker, and keeps its error with the broker.
pub(in crate::ffi) fn with(
    broker: *mut handoff_broker,
    body: impl FnOnce(&mut Broker) -> Result<(), Failure>,
) -> handoff_status {
    let status = guard(|| match shared(broker)? {
        Some(shared) => shared.with(body)?,
        None => body(&mut *single(broker)?),
    });
    keep_error(broker, status)
}

/// The same, with the message about a backend: the handle's or, if threads share it, the thread's.
/// In that case it comes with room for a name, which another thread's call could change.
pub(in crate::ffi) fn with_message(
    broker: *mut handoff_broker,
    body: impl FnOnce(&mut Broker, &Message, Option<&Message>) -> Result<(), Failure>,
) -> handoff_status {
    let status = guard(|| match shared(broker)? {
        Some(shared) => STATE.with(|state| {
            NAME.with(|name| shared.with(|broker| body(broker, state, Some(name))))
        })?,
        None => {
            let mut core = single(broker)?;
            // SAFETY: `single` has checked the pointer, and only calls by this thread use this.
            body(&mut core, unsafe { &(*broker).state }, None)
        }
    });
    keep_error(broker, status)
}

thread_local! {
    /// What a call with a shared broker told this thread of a backend: a sentence, and a name.
    static STATE: Message = const { Message::new() };
    pub(super) static NAME: Message = const { Message::new() };
}

/// A backend's name as a string that is valid until the next call. `room` is for that of a broker
/// that threads share.
pub(in crate::ffi) fn lasting(name: &CStr, room: Option<&Message>) -> *const c_char {
    match room {
        Some(room) => {
            room.set_bytes(name.to_bytes());
            room.as_ptr()
        }
        None => name.as_ptr(),
    }
}

/// The broker, if threads share it.
pub(super) fn shared<'a>(broker: *mut handoff_broker) -> Result<Option<&'a SharedBroker>, Failure> {
    check(broker, "broker")?;
    // SAFETY: not NULL and aligned. Nobody changes this after handoff_broker_new().
    if unsafe { &(*broker).waker }.is_some() {
        return Ok(None);
    }
    // SAFETY: as above; no thread borrows a shared broker exclusively.
    match unsafe { &(*broker).inner } {
        Inner::Shared(shared) => Ok(Some(shared)),
        Inner::Single(_) => Ok(None),
    }
}

/// The broker, if one thread uses it at a time.
pub(super) fn single<'a>(broker: *mut handoff_broker) -> Result<Used<'a, Broker>, Failure> {
    check(broker, "broker")?;
    // Not the whole handle: another thread may use its waker.
    // SAFETY: not NULL and aligned. No call borrows these two exclusively.
    let (in_use, waker) = unsafe { (&(*broker).in_use, &(*broker).waker) };
    let _use = in_use.begin("broker", || waker.as_ref().is_some_and(Waker::is_ours))?;
    // SAFETY: as above; the caller of the C function vouches for a handle that no other thread uses
    // during the call.
    match unsafe { &mut (*broker).inner } {
        Inner::Single(handle) => Ok(Used { handle, _use }),
        Inner::Shared(_) => Err(Failure::Argument("broker", Problem::Is("is shared"))),
    }
}

/// Keeps the error of a call with the broker. That of a shared one is the thread's only, and so is that
/// of a call that another thread's was in the way of.
pub(super) fn keep_error(broker: *mut handoff_broker, status: handoff_status) -> handoff_status {
    if status < HANDOFF_OK && matches!(shared(broker), Ok(None)) {
        // SAFETY: `shared` has checked the pointer, and no call borrows this exclusively.
        unsafe { &(*broker).in_use }.keep_error();
    }
    status
}

/// Ends a wait, also while another thread uses the broker.
pub(super) fn wake(broker: *const handoff_broker) -> handoff_status {
    if check(broker, "broker").is_err() {
        return status_of(ErrorKind::InvalidArgument);
    }
    // SAFETY: not NULL and aligned. Only the waker is borrowed, which calls in other threads borrow
    // in the same way or not at all.
    match unsafe { &(*broker).waker } {
        Some(waker) => guard::wake(|| waker.wake()),
        // SAFETY: the same of a broker that threads share, which none borrows exclusively.
        None => match unsafe { &(*broker).inner } {
            Inner::Shared(shared) => guard::wake(|| shared.wake()),
            Inner::Single(_) => status_of(ErrorKind::Internal),
        },
    }
}

/// The message that [`keep_error`] kept.
pub(super) fn last_error(broker: *const handoff_broker) -> *const c_char {
    guard_or(c"".as_ptr(), || match shared(broker.cast_mut()) {
        Ok(Some(_)) => last_message(),
        // SAFETY: as in `keep_error`.
        Ok(None) => unsafe { &(*broker).in_use }.last_error(),
        Err(_) => c"".as_ptr(),
    })
}
