//! One attempt, from sending to verdict.

use std::ffi::{c_char, c_int};

use super::ack::ack_timeout;
use super::token::{handoff_raw_token, token};
use crate::ffi::argument::{descriptor, path};
use crate::ffi::growing::{Fill, Growing};
use crate::ffi::guard::{Failure, guard, report_error};
use crate::ffi::reason::{
    HANDOFF_ADOPTED, HANDOFF_FALLBACK, HANDOFF_REASON_INTEGRITY_MISMATCH, HANDOFF_REASON_NONE,
    handoff_outcome, handoff_reason,
};
use crate::ffi::status::{HANDOFF_OK, handoff_status};
use crate::raw::ack::AckError;
use crate::raw::attempt::{self, Verdict};

/// What became of an attempt.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_raw_verdict {
    /// Set by HANDOFF_RAW_VERDICT_INIT.
    pub size: usize,
    /// Who owns the connection now: HANDOFF_ADOPTED or HANDOFF_FALLBACK.
    pub outcome: handoff_outcome,
    /// Why it is a fallback. With HANDOFF_ADOPTED: HANDOFF_REASON_NONE; or
    /// HANDOFF_REASON_INTEGRITY_MISMATCH if `socket` became unusable after the message was sent.
    /// For example, another thread closed it, or the system does not let this process receive. The
    /// backend may have adopted the connection, so do not serve it.
    pub reason: handoff_reason,
    /// The error behind the verdict; HANDOFF_OK if the backend adopted or rejected the connection.
    pub cause: handoff_status,
    /// With HANDOFF_FALLBACK: not 0 if the backend may still hold a copy of the descriptor. See
    /// handoff_verdict.
    pub may_have_reached_backend: u32,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_raw_verdict {
    const INIT: &'static str = "HANDOFF_RAW_VERDICT_INIT";
}

/// Hands a connection over a connected socket and waits for the backend's answer.
///
/// The verdict is certain even at the deadline: the call first takes the message back, then looks
/// for the acknowledgement once more. After a fallback handoff_raw_ack_accept() fails in the
/// backend.
///
/// @param socket        a connected Unix socket, blocking or not. You may use it for the next
///                      attempt if the verdict's `cause` is HANDOFF_OK. Otherwise close(2) it.
/// @param fd            the client's connection. It stays yours, open and unchanged.
/// @param token         a token that the backend's store holds
/// @param timeout_ms    how long to wait for the answer, in milliseconds: 0 for 5000;
///                      HANDOFF_NO_TIMEOUT
/// @param[out] verdict  who owns the connection now
/// @return HANDOFF_OK if there is a verdict. If its `cause` is an error, errno and
///         handoff_last_error() describe that. HANDOFF_ERR_INVALID_ARGUMENT if an argument is
///         wrong: nothing was sent.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_attempt(
    socket: c_int,
    fd: c_int,
    token: *const handoff_raw_token,
    timeout_ms: u64,
    verdict: *mut handoff_raw_verdict,
) -> handoff_status {
    guard(|| {
        let (socket, fd) = (descriptor(socket, "socket")?, descriptor(fd, "fd")?);
        let token = self::token(token, "token")?;
        let out = Fill::new(verdict, "verdict")?;
        finish(attempt::attempt(socket, fd, &token, ack_timeout(timeout_ms)), out)
    })
}

/// Connects to a handoff socket, hands a connection over and waits for the answer: as
/// handoff_raw_attempt(), over a connection of its own. The call does not check who listens there.
///
/// @param path          see handoff_raw_connect()
/// @param fd            see handoff_raw_attempt()
/// @param token         see handoff_raw_attempt()
/// @param timeout_ms    see handoff_raw_attempt(); connecting never waits
/// @param[out] verdict  see handoff_raw_attempt()
/// @return as handoff_raw_attempt(); also HANDOFF_ERR_INVALID_ARGUMENT if the path cannot be a
///         socket's.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_attempt_path(
    path: *const c_char,
    fd: c_int,
    token: *const handoff_raw_token,
    timeout_ms: u64,
    verdict: *mut handoff_raw_verdict,
) -> handoff_status {
    guard(|| {
        let (path, fd) = (self::path(path)?, descriptor(fd, "fd")?);
        let token = self::token(token, "token")?;
        let out = Fill::new(verdict, "verdict")?;
        finish(attempt::attempt_path(path, fd, &token, ack_timeout(timeout_ms)), out)
    })
}

fn finish(
    result: Result<Verdict, AckError>,
    out: Fill<handoff_raw_verdict>,
) -> Result<(), Failure> {
    let size = size_of::<handoff_raw_verdict>();
    out.set(match result? {
        Verdict::Adopted => handoff_raw_verdict {
            size,
            outcome: HANDOFF_ADOPTED,
            reason: HANDOFF_REASON_NONE,
            cause: HANDOFF_OK,
            may_have_reached_backend: 1,
        },
        Verdict::Fallback { reason, cause, may_have_reached } => handoff_raw_verdict {
            size,
            outcome: HANDOFF_FALLBACK,
            reason: reason as handoff_reason,
            cause: cause.map_or(HANDOFF_OK, |error| report_error(&error.into())),
            may_have_reached_backend: may_have_reached.into(),
        },
        Verdict::Unknown { cause } => handoff_raw_verdict {
            size,
            outcome: HANDOFF_ADOPTED,
            reason: HANDOFF_REASON_INTEGRITY_MISMATCH,
            cause: report_error(&cause.into()),
            may_have_reached_backend: 1,
        },
    });
    Ok(())
}
