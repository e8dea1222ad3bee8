//! One attempt over the raw layer, from sending to verdict.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use super::fallback::{HANDOFF_REASON_NONE, handoff_reason};
use super::status::{HANDOFF_OK, handoff_status};
use super::token::{handoff_token, token};
use super::{Failure, Out, descriptor, guard, path, report_error, timeout};
use crate::raw::ack::AckError;
use crate::raw::attempt::{self, Verdict};

/// Whose a connection is: HANDOFF_ADOPTED or HANDOFF_FALLBACK.
pub type handoff_outcome = u32;

/// The backend owns it. Close your copy; never shutdown(2) it, which would end the backend's too.
pub const HANDOFF_ADOPTED: handoff_outcome = 1;
/// It is still yours. Serve the client another way.
pub const HANDOFF_FALLBACK: handoff_outcome = 2;

/// What became of an offer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_verdict {
    /// The offer, as handoff_broker_offer() named it; 0 for handoff_attempt().
    pub id: u64,
    /// What came with the offer; NULL for handoff_attempt().
    pub user_data: *mut c_void,
    /// Whose the connection is now.
    pub outcome: handoff_outcome,
    /// Why it is a fallback. If it was adopted, HANDOFF_REASON_NONE, or what happened after.
    pub reason: handoff_reason,
    /// The error behind a fallback of handoff_attempt(); HANDOFF_OK if the backend rejected the
    /// connection. A broker's verdict always has HANDOFF_OK.
    pub cause: handoff_status,
    /// The descriptor may have reached the backend, which does not serve it after a fallback; but a
    /// copy may lie there until it looks. close(2) alone says nothing to the client while there is
    /// a copy, so when you are done with a fallback, shutdown(2) it before you close it.
    pub may_have_reached_backend: bool,
}

/// Hands a connection over a connected socket and waits for the backend's answer.
///
/// @param socket        a connected Unix socket, blocking or not; kept. After an adoption and after
///                      a rejection (a fallback whose cause is HANDOFF_OK) it is good for the next
///                      attempt; otherwise close(2) it.
/// @param fd            the client's connection; it stays the caller's, open and unchanged
/// @param token         a token that the backend's store holds
/// @param timeout_ms    how long to wait for the answer, in milliseconds; negative for ever
/// @param[out] verdict  whose the connection is now
/// @return HANDOFF_OK whenever there is a verdict. If its `cause` is an error, errno and
///         handoff_last_error() tell of that. HANDOFF_ERR_INVALID_ARGUMENT if the call cannot be
///         right: a NULL, a descriptor that is not open; nothing was sent then.
///
/// Never raises SIGPIPE. Different threads may use different sockets at once.
///
/// On Linux the verdict is certain even at the deadline: the connection is closed for further
/// acknowledgements before the broker looks for the last time, so handoff_ack_accept() fails in
/// the backend whenever this returns a fallback, and the backend does not serve.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_attempt(
    socket: c_int,
    fd: c_int,
    token: *const handoff_token,
    timeout_ms: c_int,
    verdict: *mut handoff_verdict,
) -> handoff_status {
    guard(|| {
        let (socket, fd) = (descriptor(socket, "socket")?, descriptor(fd, "fd")?);
        let token = self::token(token, "token")?;
        let out = Out::new(verdict, "verdict")?;
        finish(attempt::attempt(socket, fd, &token, timeout(timeout_ms)), out)
    })
}

/// handoff_attempt() over a connection of its own to a handoff socket.
///
/// @param path          see handoff_connect()
/// @param fd            see handoff_attempt()
/// @param token         see handoff_attempt()
/// @param timeout_ms    see handoff_attempt(); connecting never waits
/// @param[out] verdict  see handoff_attempt()
/// @return as handoff_attempt(); also HANDOFF_ERR_INVALID_ARGUMENT for a path that cannot be a
///         socket's.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_attempt_path(
    path: *const c_char,
    fd: c_int,
    token: *const handoff_token,
    timeout_ms: c_int,
    verdict: *mut handoff_verdict,
) -> handoff_status {
    guard(|| {
        let (path, fd) = (self::path(path)?, descriptor(fd, "fd")?);
        let token = self::token(token, "token")?;
        let out = Out::new(verdict, "verdict")?;
        finish(attempt::attempt_path(path, fd, &token, timeout(timeout_ms)), out)
    })
}

fn finish(result: Result<Verdict, AckError>, out: Out<handoff_verdict>) -> Result<(), Failure> {
    out.set(match result? {
        Verdict::Adopted => handoff_verdict {
            id: 0,
            user_data: ptr::null_mut(),
            outcome: HANDOFF_ADOPTED,
            reason: HANDOFF_REASON_NONE,
            cause: HANDOFF_OK,
            may_have_reached_backend: true,
        },
        Verdict::Fallback { reason, cause, may_have_reached } => handoff_verdict {
            id: 0,
            user_data: ptr::null_mut(),
            outcome: HANDOFF_FALLBACK,
            reason: reason as handoff_reason,
            cause: cause.map_or(HANDOFF_OK, |cause| report_error(&cause.into())),
            may_have_reached_backend: may_have_reached,
        },
    });
    Ok(())
}
