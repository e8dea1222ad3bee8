//! What C has of a broker, used by one thread at a time or shared, with its messages.

use std::ffi::{CStr, c_char};

use crate::broker::{Broker, SharedBroker};
use crate::ffi::argument::check;
use crate::ffi::guard::{self, Failure, Message, guard, guard_or, last_message};
use crate::ffi::in_use::Single;
use crate::ffi::status::{HANDOFF_OK, handoff_status, status_of};
use crate::kind::ErrorKind;

/// The broker's end of the channels to its backends.
///
/// It belongs to the process that uses it first. You can make it before fork(): until its first
/// use, each copy that a child gets becomes a broker of its own.
pub struct handoff_broker {
    inner: Inner,
}

#[allow(clippy::large_enum_variant, reason = "it is behind a pointer, and stays there")]
pub(super) enum Inner {
    /// With the message about a backend: see handoff_broker_get_backend_state().
    Single(Single<Broker>, Message),
    Shared(SharedBroker),
}

impl handoff_broker {
    pub(super) fn new(broker: Broker, is_shared: bool) -> handoff_broker {
        let inner = if is_shared {
            Inner::Shared(SharedBroker::new(broker))
        } else {
            let waker = broker.waker();
            Inner::Single(Single::new(broker, waker), Message::new())
        };
        handoff_broker { inner }
    }
}

/// What a call uses.
pub(super) fn inner<'a>(broker: *const handoff_broker) -> Result<&'a Inner, Failure> {
    check(broker, "broker")?;
    // SAFETY: not NULL and aligned. No call borrows it exclusively, but for the one that frees it.
    Ok(unsafe { &(*broker).inner })
}

/// Runs the body of a call of a broker, and keeps its error with the broker.
pub(in crate::ffi) fn with(
    broker: *mut handoff_broker,
    body: impl FnOnce(&mut Broker) -> Result<(), Failure>,
) -> handoff_status {
    let status = guard(|| match inner(broker)? {
        Inner::Shared(shared) => shared.with(body)?,
        Inner::Single(single, _) => body(&mut *single.begin("broker")?),
    });
    keep_error(broker, status)
}

/// The same, with the message about a backend: the handle's or, if threads share it, the thread's.
/// In that case it comes with room for a name, which another thread's call could change.
pub(in crate::ffi) fn with_message(
    broker: *mut handoff_broker,
    body: impl FnOnce(&mut Broker, &Message, Option<&Message>) -> Result<(), Failure>,
) -> handoff_status {
    let status = guard(|| match inner(broker)? {
        Inner::Shared(shared) => STATE.with(|state| {
            NAME.with(|name| shared.with(|broker| body(broker, state, Some(name))))
        })?,
        Inner::Single(single, state) => body(&mut *single.begin("broker")?, state, None),
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

/// Keeps the error of a call with the broker. That of a shared one is the thread's only, and so is that
/// of a call that another thread's was in the way of.
pub(super) fn keep_error(broker: *mut handoff_broker, status: handoff_status) -> handoff_status {
    if status < HANDOFF_OK {
        if let Ok(Inner::Single(single, _)) = inner(broker) {
            single.keep_error();
        }
    }
    status
}

/// Ends a wait, also while another thread uses the broker.
pub(super) fn wake(broker: *const handoff_broker) -> handoff_status {
    match inner(broker) {
        Ok(Inner::Single(single, _)) => single.wake(),
        Ok(Inner::Shared(shared)) => guard::wake(|| shared.wake()),
        Err(_) => status_of(ErrorKind::InvalidArgument),
    }
}

/// The message that [`keep_error`] kept.
pub(super) fn last_error(broker: *const handoff_broker) -> *const c_char {
    guard_or(c"".as_ptr(), || match inner(broker) {
        Ok(Inner::Single(single, _)) => single.last_error(),
        Ok(Inner::Shared(_)) => last_message(),
        Err(_) => c"".as_ptr(),
    })
}
