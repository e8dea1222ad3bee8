//! Acknowledgements.

use std::ffi::c_int;
use std::time::Duration;

use super::token::{handoff_raw_token, token};
use crate::ffi::argument::{descriptor, timeout};
use crate::ffi::growing::{Fill, Growing};
use crate::ffi::guard::{Failure, guard};
use crate::ffi::reason::{
    HANDOFF_ADOPTED, HANDOFF_FALLBACK, HANDOFF_REASON_NONE, handoff_outcome, handoff_reason, reason,
};
use crate::ffi::status::handoff_status;
use crate::raw::ack::{self, Ack, Answer};

/// How long a broker waits for an acknowledgement unless it says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// The timeout of a call that waits for an acknowledgement; none is forever.
pub(super) fn ack_timeout(timeout_ms: u64) -> Option<Duration> {
    Some(timeout(timeout_ms, DEFAULT_TIMEOUT)).filter(|timeout| *timeout != Duration::MAX)
}

/// Backend: tells the broker that this process owns and serves the connection. Write to the client
/// only after HANDOFF_OK. The call never blocks.
///
/// @param socket  the connection that the message came on
/// @param token   the message's token
/// @return HANDOFF_OK: the connection is yours. After an error, it is not: close the descriptor and
///         serve nothing. HANDOFF_ERR_END_OF_STREAM if the broker took the message back or is gone;
///         HANDOFF_ERR_WOULD_BLOCK if the broker does not read its acknowledgements;
///         HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_SHORT_WRITE if only a part was sent;
///         HANDOFF_ERR_SEND_FAILED.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_ack_accept(
    socket: c_int,
    token: *const handoff_raw_token,
) -> handoff_status {
    guard(|| answer(socket, token, Answer::Accepted))
}

/// Backend: tells the broker that this process does not serve the connection. Close the descriptor
/// first, so that the broker's is the only one left. The call never blocks.
///
/// @param socket  the connection that the message came on
/// @param token   the message's token
/// @param reason  one of HANDOFF_REASON_*; HANDOFF_REASON_REJECTED if no other fits
/// @return as handoff_raw_ack_accept(); also HANDOFF_ERR_INVALID_ARGUMENT for any other `reason`.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_ack_reject(
    socket: c_int,
    token: *const handoff_raw_token,
    reason: handoff_reason,
) -> handoff_status {
    guard(|| answer(socket, token, Answer::Rejected(self::reason(reason)?)))
}

fn answer(socket: c_int, token: *const handoff_raw_token, answer: Answer) -> Result<(), Failure> {
    let socket = descriptor(socket, "socket")?;
    Ok(ack::send(socket, &Ack { token: self::token(token, "token")?, answer })?)
}

/// A backend's answer to one message.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_raw_ack {
    /// Set by HANDOFF_RAW_ACK_INIT.
    pub size: usize,
    /// The message's token.
    pub token: handoff_raw_token,
    /// HANDOFF_ADOPTED; HANDOFF_FALLBACK if the backend rejected the connection.
    pub outcome: handoff_outcome,
    /// Why it was rejected; HANDOFF_REASON_NONE if it was not.
    pub reason: handoff_reason,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_raw_ack {
    const INIT: &'static str = "HANDOFF_RAW_ACK_INIT";
}

fn ack_of(token: handoff_raw_token, answer: Answer) -> handoff_raw_ack {
    let (outcome, reason) = match answer {
        Answer::Accepted => (HANDOFF_ADOPTED, HANDOFF_REASON_NONE),
        Answer::Rejected(reason) => (HANDOFF_FALLBACK, reason as handoff_reason),
    };
    handoff_raw_ack { size: size_of::<handoff_raw_ack>(), token, outcome, reason }
}

/// Broker: waits for the acknowledgement of one message. If the time is up, something else arrives
/// or the wait fails, the call takes the message back as handoff_raw_take_back() does.
///
/// @param socket      the connection that the message was sent on. After an error close(2) it.
/// @param token       the message's token
/// @param timeout_ms  how long to wait, in milliseconds: 0 for 5000; HANDOFF_NO_TIMEOUT
/// @param[out] ack    the acknowledgement: adopted, or rejected with a reason
/// @return HANDOFF_OK; HANDOFF_ERR_ACK_TIMEOUT; HANDOFF_ERR_END_OF_STREAM if the backend closed the
///         connection, or receiving failed and the message was taken back;
///         HANDOFF_ERR_ACK_MISMATCH; HANDOFF_ERR_ACK_MALFORMED. After these errors the connection
///         is yours. HANDOFF_ERR_TOO_LATE, or HANDOFF_ERR_INVALID_ARGUMENT if `socket` is not
///         usable: the message could not be taken back, so the backend may own the connection, and
///         you must not serve it.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_ack_wait(
    socket: c_int,
    token: *const handoff_raw_token,
    timeout_ms: u64,
    ack: *mut handoff_raw_ack,
) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        let token = self::token(token, "token")?;
        let out = Fill::new(ack, "ack")?;
        let answer = ack::wait(socket, &token, ack_timeout(timeout_ms))?;
        out.set(ack_of(token.into(), answer));
        Ok(())
    })
}

/// Broker: takes the next acknowledgement that has arrived on a connection. The call never blocks.
///
/// @param socket    the connection that messages were sent on
/// @param[out] ack  the acknowledgement
/// @return HANDOFF_OK; HANDOFF_NOTHING if none has arrived; HANDOFF_ERR_END_OF_STREAM if none will;
///         HANDOFF_ERR_ACK_MALFORMED; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_RECEIVE_FAILED.
///         After HANDOFF_NOTHING, and after an error other than the end of the stream, the backend
///         can still acknowledge: call handoff_raw_take_back() before you serve a client.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_ack_receive(
    socket: c_int,
    ack: *mut handoff_raw_ack,
) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        let out = Fill::new(ack, "ack")?;
        let Ack { token, answer } = ack::receive(socket)?;
        out.set(ack_of(token.into(), answer));
        Ok(())
    })
}

/// Broker: takes back every message of a connection that is not acknowledged yet.
///
/// From now on handoff_raw_ack_accept() fails in the backend. Acknowledgements that were sent
/// before can still be taken with handoff_raw_ack_receive(), until it returns
/// HANDOFF_ERR_END_OF_STREAM or HANDOFF_NOTHING. From then on every other message is certainly a
/// fallback.
///
/// @param socket  the connection that messages were sent on. It stays open, but nothing more can be
///                handed over on it.
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_TOO_LATE if the system refuses.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_take_back(socket: c_int) -> handoff_status {
    guard(|| Ok(ack::take_back(descriptor(socket, "socket")?)?))
}
