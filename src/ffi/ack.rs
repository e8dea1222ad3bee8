//! Acknowledgements and the registry of those that are pending.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attempt::{HANDOFF_ADOPTED, HANDOFF_FALLBACK, handoff_outcome};
use super::fallback::{HANDOFF_REASON_NONE, handoff_reason, reason};
use super::status::handoff_status;
use super::token::{handoff_token, handoff_token_store, token};
use super::{
    Failure, Growing, Out, clock, descriptor, free, guard, guard_or, options, reference, timeout,
};
use crate::raw::ack::{self, Ack, Answer};
use crate::raw::pending::{PendingAcks, PendingAcksOptions};

/// A backend's answer to one message.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_ack {
    /// The token of the message.
    pub token: handoff_token,
    /// HANDOFF_ADOPTED or, if the backend rejected the connection, HANDOFF_FALLBACK.
    pub outcome: handoff_outcome,
    /// Why it was rejected; HANDOFF_REASON_NONE if it was not.
    pub reason: handoff_reason,
}

fn ack_of(token: handoff_token, answer: Answer) -> handoff_ack {
    let (outcome, reason) = match answer {
        Answer::Accepted => (HANDOFF_ADOPTED, HANDOFF_REASON_NONE),
        Answer::Rejected(reason) => (HANDOFF_FALLBACK, reason as handoff_reason),
    };
    handoff_ack { token, outcome, reason }
}

/// Backend: tells the broker that this process now owns and serves the connection. Only after
/// HANDOFF_OK may it write to the client.
///
/// @param socket  the connection that the message came on; kept
/// @param token   the message's token
/// @return HANDOFF_OK: the connection is this process's. After any error it is not: close the
///         descriptor and serve nothing. HANDOFF_ERR_END_OF_STREAM if the broker has given up or
///         gone; HANDOFF_ERR_WOULD_BLOCK if it does not read its acknowledgements;
///         HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_RECEIVE_FAILED.
///
/// Never blocks and never raises SIGPIPE. Different threads may use different sockets at once.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_ack_accept(socket: c_int, token: *const handoff_token) -> handoff_status {
    guard(|| answer(socket, token, Answer::Accepted))
}

/// Backend: tells the broker that this process does not serve the connection. Close the
/// descriptor before, so that the broker's is the only one left.
///
/// @param socket  the connection that the message came on; kept
/// @param token   the message's token
/// @param reason  one of HANDOFF_REASON_*, HANDOFF_REASON_REJECTED if no other fits
/// @return as handoff_ack_accept(); also HANDOFF_ERR_INVALID_ARGUMENT if `reason` is none of them.
///
/// Never blocks and never raises SIGPIPE. Different threads may use different sockets at once.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_ack_reject(
    socket: c_int,
    token: *const handoff_token,
    reason: handoff_reason,
) -> handoff_status {
    guard(|| answer(socket, token, Answer::Rejected(self::reason(reason)?)))
}

fn answer(socket: c_int, token: *const handoff_token, answer: Answer) -> Result<(), Failure> {
    let socket = descriptor(socket, "socket")?;
    Ok(ack::send(socket, &Ack { token: self::token(token, "token")?, answer })?)
}

/// Broker: takes the next acknowledgement that has arrived on a connection.
///
/// @param socket    the connection that messages were sent on; kept
/// @param[out] ack  the acknowledgement
/// @return HANDOFF_OK; HANDOFF_ERR_WOULD_BLOCK if none has arrived; HANDOFF_ERR_END_OF_STREAM if
///         none will; HANDOFF_ERR_ACK_MALFORMED; HANDOFF_ERR_INVALID_ARGUMENT;
///         HANDOFF_ERR_RECEIVE_FAILED.
///
/// Never blocks. Different threads may use different sockets at once.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_ack_receive(socket: c_int, ack: *mut handoff_ack) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        let out = Out::new(ack, "ack")?;
        let Ack { token, answer } = ack::receive(socket)?;
        out.set(ack_of(token.into(), answer));
        Ok(())
    })
}

/// Broker: gives up every message of a connection that is not acknowledged yet.
///
/// From now on handoff_ack_accept() fails in the backend. What it had sent before can still be
/// taken with handoff_ack_receive(), until that says HANDOFF_ERR_END_OF_STREAM or
/// HANDOFF_ERR_WOULD_BLOCK; then every other message is a fallback for certain. This is so on
/// Linux; elsewhere the call does nothing, and a fallback may have been adopted.
///
/// @param socket  the connection that messages were sent on; kept, of no further use for sending
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_RECEIVE_FAILED.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_ack_close(socket: c_int) -> handoff_status {
    guard(|| Ok(ack::take_back(descriptor(socket, "socket")?)?))
}

/// Broker: waits for the acknowledgement of one message, and gives it up with
/// handoff_ack_close() when the time is up or something else arrives.
///
/// @param socket      the connection that the message was sent on; kept. After any error close(2)
///                    it.
/// @param token       the message's token
/// @param timeout_ms  how long to wait, in milliseconds; negative for ever
/// @param[out] ack    the acknowledgement: adopted, or rejected with a reason
/// @return HANDOFF_OK; HANDOFF_ERR_ACK_TIMEOUT; HANDOFF_ERR_END_OF_STREAM if the backend closed
///         the connection; HANDOFF_ERR_ACK_MISMATCH; HANDOFF_ERR_ACK_MALFORMED;
///         HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_RECEIVE_FAILED.
///
/// A signal does not end the wait. Different threads may use different sockets at once.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_ack_wait(
    socket: c_int,
    token: *const handoff_token,
    timeout_ms: c_int,
    ack: *mut handoff_ack,
) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        let token = self::token(token, "token")?;
        let out = Out::new(ack, "ack")?;
        let answer = ack::wait(socket, &token, timeout(timeout_ms))?;
        out.set(ack_of(token.into(), answer));
        Ok(())
    })
}

/// Default of handoff_pending_options.capacity.
pub const HANDOFF_PENDING_CAPACITY: usize = 1024;
/// Default of handoff_pending_options.timeout_ms.
pub const HANDOFF_PENDING_TIMEOUT_MS: u64 = 5000;

/// The limits of a registry of pending acknowledgements. Begin with HANDOFF_PENDING_OPTIONS_INIT
/// and change what you want. A value outside its range is taken to the nearest end of it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_pending_options {
    /// sizeof(handoff_pending_options), set by the INIT macro.
    pub size: usize,
    /// Acknowledgements pending at once: 1 to 1048576.
    pub capacity: usize,
    /// How long each may take, in milliseconds: 1 at least.
    pub timeout_ms: u64,
}

// SAFETY: repr(C), begins with a usize, all integers.
unsafe impl Growing for handoff_pending_options {}

/// The acknowledgements that a broker waits for. An entry leaves exactly once: acknowledged in
/// time, abandoned or expired; whoever makes it leave gets its `user_data`, and the token's life
/// in the store ends with it.
///
/// Any number of threads may use one at once. After fork() in a program with several threads, the
/// child makes a registry of its own: another thread may have held the lock.
pub struct handoff_pending {
    pending: PendingAcks,
}

/// Makes an empty registry of pending acknowledgements.
///
/// @param store         the store of the tokens, which may be freed before the registry
/// @param options       its limits, or NULL for the defaults; read during the call only
/// @param[out] pending  the new registry; free it with handoff_pending_free()
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `store` or `pending` is NULL or
///         `options->size` is wrong.
///
/// All memory that the registry needs is allocated here.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_pending_new(
    store: *mut handoff_token_store,
    options: *const handoff_pending_options,
    pending: *mut *mut handoff_pending,
) -> handoff_status {
    guard(|| {
        let store = Arc::clone(&reference(store, "store")?.store);
        let out = Out::new(pending, "pending")?;
        let defaults = handoff_pending_options {
            size: size_of::<handoff_pending_options>(),
            capacity: HANDOFF_PENDING_CAPACITY,
            timeout_ms: HANDOFF_PENDING_TIMEOUT_MS,
        };
        let options = self::options(options, defaults, "options")?;
        let timeout = Duration::from_millis(options.timeout_ms);
        let options = PendingAcksOptions { capacity: options.capacity, timeout };
        let pending = PendingAcks::new(store, options);
        out.set(Box::into_raw(Box::new(handoff_pending { pending })));
        Ok(())
    })
}

/// Unmakes a registry. What `user_data` points to in entries that are still there is the caller's.
///
/// @param pending  the registry, or NULL, which does nothing; no thread may be using it
#[unsafe(no_mangle)]
pub extern "C" fn handoff_pending_free(pending: *mut handoff_pending) {
    free(pending);
}

fn pending<'a>(pending: *const handoff_pending) -> Result<&'a PendingAcks, Failure> {
    reference(pending, "pending").map(|pending| &pending.pending)
}

/// Begins to wait for an acknowledgement; to be called before the message is sent.
///
/// @param pending    the registry
/// @param token      the message's token
/// @param user_data  anything; given back when the entry leaves, and not looked at
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `pending` or `token` is NULL;
///         HANDOFF_ERR_TOKEN_ALREADY_PENDING; HANDOFF_ERR_FULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_pending_register(
    pending: *mut handoff_pending,
    token: *const handoff_token,
    user_data: *mut c_void,
) -> handoff_status {
    guard(|| register(pending, Ok(Instant::now()), token, user_data))
}

/// handoff_pending_register() at a given time.
///
/// @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
#[unsafe(no_mangle)]
pub extern "C" fn handoff_pending_register_at(
    pending: *mut handoff_pending,
    now_ns: u64,
    token: *const handoff_token,
    user_data: *mut c_void,
) -> handoff_status {
    guard(|| register(pending, clock::instant(now_ns), token, user_data))
}

fn register(
    pending: *const handoff_pending,
    now: Result<Instant, Failure>,
    token: *const handoff_token,
    user_data: *mut c_void,
) -> Result<(), Failure> {
    let token = self::token(token, "token")?;
    Ok(self::pending(pending)?.register_at(&token, user_data.expose_provenance(), now?)?)
}

/// Takes the entry of an acknowledgement that has come.
///
/// @param pending         the registry
/// @param token           the acknowledgement's token
/// @param[out] user_data  what was registered with it; may be NULL
/// @return HANDOFF_OK: the entry has left; HANDOFF_ERR_ACK_TIMEOUT if its time is over, then it
///         stays for handoff_pending_expire(); HANDOFF_ERR_TOKEN_NOT_PENDING if there is none, as
///         for a second acknowledgement; HANDOFF_ERR_INVALID_ARGUMENT if `pending` or `token` is
///         NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_pending_acknowledge(
    pending: *mut handoff_pending,
    token: *const handoff_token,
    user_data: *mut *mut c_void,
) -> handoff_status {
    guard(|| acknowledge(pending, Ok(Instant::now()), token, user_data))
}

/// handoff_pending_acknowledge() at a given time.
///
/// @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
#[unsafe(no_mangle)]
pub extern "C" fn handoff_pending_acknowledge_at(
    pending: *mut handoff_pending,
    now_ns: u64,
    token: *const handoff_token,
    user_data: *mut *mut c_void,
) -> handoff_status {
    guard(|| acknowledge(pending, clock::instant(now_ns), token, user_data))
}

fn acknowledge(
    pending: *const handoff_pending,
    now: Result<Instant, Failure>,
    token: *const handoff_token,
    user_data: *mut *mut c_void,
) -> Result<(), Failure> {
    leave(pending, token, user_data, |pending, token| Ok(pending.acknowledge_at(token, now?)?))
}

/// Takes the entry of a message that is given up.
///
/// @param pending         the registry
/// @param token           the message's token
/// @param[out] user_data  what was registered with it; may be NULL
/// @return HANDOFF_OK: the entry has left; HANDOFF_ERR_TOKEN_NOT_PENDING if there is none;
///         HANDOFF_ERR_INVALID_ARGUMENT if `pending` or `token` is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_pending_abandon(
    pending: *mut handoff_pending,
    token: *const handoff_token,
    user_data: *mut *mut c_void,
) -> handoff_status {
    guard(|| leave(pending, token, user_data, |pending, token| Ok(pending.abandon(token)?)))
}

fn leave(
    pending: *const handoff_pending,
    token: *const handoff_token,
    user_data: *mut *mut c_void,
    leave: impl FnOnce(&PendingAcks, &crate::token::Token) -> Result<usize, Failure>,
) -> Result<(), Failure> {
    let (pending, token) = (self::pending(pending)?, self::token(token, "token")?);
    let out = Out::optional(user_data, "user_data")?;
    let user_data = leave(pending, &token)?;
    if let Some(out) = out {
        out.set(std::ptr::with_exposed_provenance_mut(user_data));
    }
    Ok(())
}

/// Takes one entry whose time is over. Call it until it says HANDOFF_NOTHING. Each call looks at
/// every entry.
///
/// @param pending         the registry
/// @param[out] token      the message's token; may be NULL
/// @param[out] user_data  what was registered with it; may be NULL
/// @return HANDOFF_OK: the entry has left; HANDOFF_NOTHING; HANDOFF_ERR_INVALID_ARGUMENT if
///         `pending` is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_pending_expire(
    pending: *mut handoff_pending,
    token: *mut handoff_token,
    user_data: *mut *mut c_void,
) -> handoff_status {
    guard(|| expire(pending, Ok(Instant::now()), token, user_data))
}

/// handoff_pending_expire() at a given time.
///
/// @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
#[unsafe(no_mangle)]
pub extern "C" fn handoff_pending_expire_at(
    pending: *mut handoff_pending,
    now_ns: u64,
    token: *mut handoff_token,
    user_data: *mut *mut c_void,
) -> handoff_status {
    guard(|| expire(pending, clock::instant(now_ns), token, user_data))
}

fn expire(
    pending: *const handoff_pending,
    now: Result<Instant, Failure>,
    token: *mut handoff_token,
    user_data: *mut *mut c_void,
) -> Result<(), Failure> {
    let pending = self::pending(pending)?;
    let token_out = Out::optional(token, "token")?;
    let user_data_out = Out::optional(user_data, "user_data")?;
    let (token, user_data) = pending.expire_at(now?).ok_or(Failure::Nothing)?;
    if let Some(out) = token_out {
        out.set(token.into());
    }
    if let Some(out) = user_data_out {
        out.set(std::ptr::with_exposed_provenance_mut(user_data));
    }
    Ok(())
}

/// Tells when the next entry expires, for a timer. Looks at every entry.
///
/// @param pending           the registry
/// @param[out] deadline_ns  the time, on the clock of handoff_now()
/// @return HANDOFF_OK; HANDOFF_NOTHING if there is no entry; HANDOFF_ERR_INVALID_ARGUMENT if a
///         pointer is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_pending_next_deadline(
    pending: *const handoff_pending,
    deadline_ns: *mut u64,
) -> handoff_status {
    guard(|| {
        let pending = self::pending(pending)?;
        let out = Out::new(deadline_ns, "deadline_ns")?;
        out.set(clock::nanoseconds(pending.next_deadline().ok_or(Failure::Nothing)?));
        Ok(())
    })
}

/// Counts the entries of a registry.
///
/// @param pending  the registry
/// @return the count; 0 if `pending` is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_pending_length(pending: *const handoff_pending) -> usize {
    guard_or(0, || self::pending(pending).map_or(0, PendingAcks::len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_of_the_header_are_the_defaults_of_the_core() {
        let defaults = PendingAcksOptions::default();
        assert_eq!(HANDOFF_PENDING_CAPACITY, defaults.capacity);
        assert_eq!(u128::from(HANDOFF_PENDING_TIMEOUT_MS), defaults.timeout.as_millis());
    }
}
