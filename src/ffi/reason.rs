//! What became of an offer, and why.

use std::ffi::{CStr, c_char};

use super::argument::Problem;
use super::errors::entry;
use super::guard::Failure;
use super::status::{HANDOFF_TIMED_OUT, handoff_status};
use crate::reason::Reason;

/// Who owns a connection now: HANDOFF_ADOPTED or HANDOFF_FALLBACK.
pub type handoff_outcome = u32;

/// The backend owns the connection. close(2) your copy. If it is in your event loop, use
/// EPOLL_CTL_DEL first: close(2) does not remove it while the backend has a copy. Do not
/// shutdown(2) it: that would end the backend's connection too.
pub const HANDOFF_ADOPTED: handoff_outcome = 1;
/// The connection is still yours. Serve the client another way.
pub const HANDOFF_FALLBACK: handoff_outcome = 2;

/// Why a connection was not handed over: one of HANDOFF_REASON_*, which are listed below.
pub type handoff_reason = u32;

/// Returns the reason for a fallback after a call that failed.
///
/// @param status  what handoff_broker_offer(), handoff_broker_offer_and_wait() or a call of the raw
///                layer returned
/// @return one of HANDOFF_REASON_*. HANDOFF_REASON_NONE for HANDOFF_OK, the positive statuses and
///         unknown numbers. Also HANDOFF_REASON_NONE for the errors that a fallback must not hide,
///         which are HANDOFF_ERR_INVALID_ARGUMENT, HANDOFF_ERR_WRONG_PROCESS, HANDOFF_ERR_CLOSED
///         and HANDOFF_ERR_INTERNAL, and for HANDOFF_ERR_TAKEN_BACK, HANDOFF_ERR_TOO_LATE and
///         HANDOFF_ERR_TLS_*, which are not about an offer that failed.
///
/// Safe in any thread, after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_status_reason(status: handoff_status) -> handoff_reason {
    let reason = entry(status).and_then(|entry| entry.kind.reason());
    reason.map_or(HANDOFF_REASON_NONE, |reason| reason as handoff_reason)
}

/// Names a reason in lower case, for logs: "acknowledgement timeout".
///
/// @param reason  any number
/// @return a constant string, never NULL; "unknown" for unknown numbers.
///
/// Safe in any thread, after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_reason_name(reason: handoff_reason) -> *const c_char {
    let name: &CStr = match reason {
        HANDOFF_REASON_NONE => c"none",
        HANDOFF_REASON_CLIENT_UNSUPPORTED => c"client unsupported",
        HANDOFF_REASON_POLICY_DISABLED => c"policy disabled",
        HANDOFF_REASON_DESCRIPTOR_PRESSURE => c"descriptor pressure",
        HANDOFF_REASON_RATE_LIMITED => c"rate limited",
        HANDOFF_REASON_PERMISSION_DENIED => c"permission denied",
        HANDOFF_REASON_INTEGRITY_MISMATCH => c"integrity mismatch",
        HANDOFF_REASON_ACK_TIMEOUT => c"acknowledgement timeout",
        HANDOFF_REASON_FOREIGN_BACKEND => c"foreign backend",
        HANDOFF_REASON_BACKEND_UNAVAILABLE => c"backend unavailable",
        HANDOFF_REASON_BACKEND_BUSY => c"backend busy",
        HANDOFF_REASON_REJECTED => c"rejected",
        HANDOFF_REASON_UNSUPPORTED_PLATFORM => c"unsupported platform",
        HANDOFF_REASON_BROKER_CLOSED => c"broker closed",
        HANDOFF_REASON_BACKEND_DIED => c"backend died",
        HANDOFF_REASON_CLIENT_GONE => c"client gone",
        HANDOFF_REASON_TOO_LARGE => c"too large",
        HANDOFF_REASON_KIND => c"kind of socket",
        HANDOFF_REASON_TOO_MANY_CHANNELS => c"too many channels",
        _ => c"unknown",
    };
    name.as_ptr()
}

/// Tells whether an error calls for a fallback only: the connection is certainly yours. Other
/// errors are bugs in the caller or in the library, which a fallback would hide: report them. The
/// exceptions are HANDOFF_ERR_CLOSED after your own handoff_broker_close() and, in the raw layer,
/// HANDOFF_ERR_RECEIVE_FAILED and HANDOFF_ERR_TOKEN_NOT_PENDING. HANDOFF_WOKEN is not an error.
///
/// @param status  what handoff_broker_offer(), handoff_broker_offer_and_wait() or a call of the raw
///                layer returned. What handoff_broker_dispatch(), handoff_broker_flush() and
///                handoff_broker_next() return is about the broker, not about a connection.
/// @return true if all that you need to do is serve the client another way. False for HANDOFF_OK,
///         the positive statuses, unknown numbers and the errors for which handoff_status_reason()
///         returns HANDOFF_REASON_NONE. Also false for HANDOFF_ERR_RECEIVE_FAILED and
///         HANDOFF_ERR_TOKEN_NOT_PENDING, after which the backend may own the connection. After
///         false, the connection may still be yours: the description of the call says whose it is.
///
/// Safe in any thread, after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_status_is_fallback_safe(status: handoff_status) -> bool {
    entry(status).is_some_and(|entry| entry.kind.is_fallback_safe())
}

/// Tells whether a refusal is temporary: it is about the backends, not about this offer, which may
/// be taken later. The client can wait in a queue of your own, for a limited time. The descriptor
/// that handoff_broker_fd() returned at the start becomes readable when an offer would be taken.
///
/// @param status  what handoff_broker_offer() returned
/// @return true for HANDOFF_ERR_FULL, HANDOFF_ERR_RATE_LIMITED, HANDOFF_ERR_BACKEND_UNAVAILABLE,
///         HANDOFF_ERR_TOO_MANY_CHANNELS, HANDOFF_ERR_WOULD_BLOCK, HANDOFF_ERR_PERMISSION_DENIED,
///         HANDOFF_ERR_PEER_NOT_ALLOWED, HANDOFF_ERR_PEER_UNKNOWN and
///         HANDOFF_ERR_DESCRIPTOR_PRESSURE; false for every other number.
///
/// Safe in any thread, after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_status_may_pass(status: handoff_status) -> bool {
    entry(status).is_some_and(|entry| entry.kind.may_pass())
}

/// Tells whether the reason for a fallback is temporary: it is about the backends, not about this
/// offer. You can offer the client again: now, or when the descriptor of handoff_broker_fd()
/// becomes readable, as after a refusal for which handoff_status_may_pass() returns true.
///
/// @param reason  the reason in a verdict, or what handoff_status_reason() returned
/// @return true for HANDOFF_REASON_BACKEND_UNAVAILABLE, HANDOFF_REASON_BACKEND_BUSY,
///         HANDOFF_REASON_RATE_LIMITED, HANDOFF_REASON_ACK_TIMEOUT,
///         HANDOFF_REASON_DESCRIPTOR_PRESSURE, HANDOFF_REASON_PERMISSION_DENIED and
///         HANDOFF_REASON_TOO_MANY_CHANNELS; false for every other number.
///
/// Safe in any thread, after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_reason_may_pass(reason: handoff_reason) -> bool {
    Reason::try_from(reason).is_ok_and(Reason::may_pass)
}

/// Tells whether the descriptor may have reached the backend.
///
/// @param status  what handoff_broker_offer(), handoff_broker_offer_and_wait(),
///                handoff_broker_take_back() or a call of the raw layer returned, or the `cause` of
///                a fallback in a handoff_raw_verdict
/// @return false if the descriptor was certainly not sent by that call. True for HANDOFF_OK,
///         HANDOFF_NOTHING, HANDOFF_WOKEN, HANDOFF_ERR_SHORT_WRITE, HANDOFF_ERR_ACK_TIMEOUT,
///         HANDOFF_ERR_ACK_MISMATCH, HANDOFF_ERR_ACK_MALFORMED, HANDOFF_ERR_RECEIVE_FAILED,
///         HANDOFF_ERR_END_OF_STREAM, HANDOFF_ERR_TOKEN_NOT_PENDING, HANDOFF_ERR_INTERNAL,
///         HANDOFF_ERR_TAKEN_BACK, HANDOFF_ERR_TOO_LATE, HANDOFF_ERR_SYSTEM, and for unknown
///         numbers.
///
/// Safe in any thread, after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_status_may_have_reached_backend(status: handoff_status) -> bool {
    match entry(status) {
        Some(entry) => entry.kind.may_have_reached_backend(),
        None => status != HANDOFF_TIMED_OUT,
    }
}

/// No reason. In a verdict: the backend adopted the connection. In a decision: try the backend.
pub const HANDOFF_REASON_NONE: handoff_reason = 0;
/// The client's connection cannot change hands.
pub const HANDOFF_REASON_CLIENT_UNSUPPORTED: handoff_reason = 1;
/// The service is configured not to hand over.
pub const HANDOFF_REASON_POLICY_DISABLED: handoff_reason = 2;
/// Short of descriptors. In a verdict, this mostly means the backend: raise its RLIMIT_NOFILE. From
/// handoff_status_reason(), it means this process or the system.
pub const HANDOFF_REASON_DESCRIPTOR_PRESSURE: handoff_reason = 3;
/// The backend rests, because it failed: see HANDOFF_STATE_RESTING.
pub const HANDOFF_REASON_RATE_LIMITED: handoff_reason = 4;
/// The permissions of the handoff socket, or the peer's credentials, do not allow it.
pub const HANDOFF_REASON_PERMISSION_DENIED: handoff_reason = 5;
/// A token or a message was not what it should be. This is also the reason if you closed the
/// descriptor of an offer before the offer was sent, and its number was another socket's by then:
/// that is your bug. If that socket is another client, it is still yours, and has its own offer or
/// none: do not serve it for this one.
pub const HANDOFF_REASON_INTEGRITY_MISMATCH: handoff_reason = 6;
/// No verdict, or in the raw layer no acknowledgement, came by the deadline. This is also the
/// reason if the offer was not sent by then, or only just, because nobody called
/// handoff_broker_flush() or handoff_broker_dispatch(), or there was no room.
pub const HANDOFF_REASON_ACK_TIMEOUT: handoff_reason = 7;
/// The broker uses only backends that it started, and did not start this one.
pub const HANDOFF_REASON_FOREIGN_BACKEND: handoff_reason = 8;
/// Nobody listens on the handoff socket, or the backend closed it before it answered.
pub const HANDOFF_REASON_BACKEND_UNAVAILABLE: handoff_reason = 9;
/// The backend, or the queue to it, is full.
pub const HANDOFF_REASON_BACKEND_BUSY: handoff_reason = 10;
/// The backend rejected the connection.
pub const HANDOFF_REASON_REJECTED: handoff_reason = 11;
/// This system cannot hand connections over.
pub const HANDOFF_REASON_UNSUPPORTED_PLATFORM: handoff_reason = 12;
/// The broker was closed.
pub const HANDOFF_REASON_BROKER_CLOSED: handoff_reason = 13;
/// With HANDOFF_ADOPTED: the backend adopted the connection, but the channel ended before its
/// verdict arrived. Usually the backend died.
pub const HANDOFF_REASON_BACKEND_DIED: handoff_reason = 14;
/// The client is gone: its connection has ended. This is also the reason if you closed the
/// descriptor before it was sent. There is nobody to serve, unless a backend rejected the
/// connection for this reason and was wrong.
pub const HANDOFF_REASON_CLIENT_GONE: handoff_reason = 15;
/// More bytes go with the connection than the backend, the protocol or the socket's buffer takes.
pub const HANDOFF_REASON_TOO_LARGE: handoff_reason = 16;
/// The backend does not take this kind of socket: see `kind` in handoff_verdict and `kinds` in
/// handoff_backend_options.
pub const HANDOFF_REASON_KIND: handoff_reason = 17;
/// The backend has reached its limit of channels: see `max_channels` in handoff_backend_options.
pub const HANDOFF_REASON_TOO_MANY_CHANNELS: handoff_reason = 18;

/// A reason that C passes.
pub(super) fn reason(value: handoff_reason) -> Result<Reason, Failure> {
    let problem = Problem::Is(match value {
        HANDOFF_REASON_NONE => "is HANDOFF_REASON_NONE, which says nothing",
        _ => "is not one of HANDOFF_REASON_*",
    });
    Reason::try_from(value).map_err(|()| Failure::Argument("reason", problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_constant_and_a_name_of_its_own() {
        let name = |reason| {
            // SAFETY: the name is a constant string.
            unsafe { CStr::from_ptr(handoff_reason_name(reason)) }.to_str().unwrap()
        };
        let mut names = std::collections::HashSet::from(["unknown", "none"]);
        for reason in 1..Reason::COUNT as u32 {
            assert!(names.insert(name(reason)), "{reason}");
        }
        assert_eq!(name(Reason::COUNT as u32), "unknown");
        assert_eq!(Reason::IntegrityMismatch as u32, HANDOFF_REASON_INTEGRITY_MISMATCH);
        assert_eq!(Reason::TooManyChannels as u32, HANDOFF_REASON_TOO_MANY_CHANNELS);
    }
}
