//! Statuses, what they mean for a client, and the version.

use std::ffi::{CStr, c_char};

use super::fallback::{HANDOFF_FAILURE_NONE, failure_number, handoff_failure};
use super::{guard_or, last_sentence};
use crate::error::ErrorKind;

/// What a call says of itself: HANDOFF_OK, HANDOFF_NOTHING or one of HANDOFF_ERR_*.
///
/// After an error errno holds the operating system's error, or 0 if the system had no part in it,
/// and handoff_last_error() a sentence with the socket and the descriptor in it. Out parameters
/// are untouched unless the status is HANDOFF_OK. Numbers are never given to another meaning.
pub type handoff_status = i32;

/// Done.
pub const HANDOFF_OK: handoff_status = 0;
/// An argument is NULL, misaligned, out of range, a path too long for a Unix socket, or a
/// descriptor that is not open or not of the right kind. Mend the call.
pub const HANDOFF_ERR_INVALID_ARGUMENT: handoff_status = 1;
/// This system cannot do that. Serve the client another way, and do not try again.
pub const HANDOFF_ERR_UNSUPPORTED: handoff_status = 2;
/// The permissions of the socket's file or directory, or a security module, refuse. Look at the
/// socket's mode and owner.
pub const HANDOFF_ERR_PERMISSION_DENIED: handoff_status = 3;
/// Nobody listens on the handoff socket, or the other end has closed. Usual while a backend
/// restarts; serve the client another way.
pub const HANDOFF_ERR_BACKEND_UNAVAILABLE: handoff_status = 4;
/// The call would have to wait: the socket's buffer or the listener's backlog is full, or nothing
/// has arrived within the time given. Nothing was sent or taken; try again later.
pub const HANDOFF_ERR_WOULD_BLOCK: handoff_status = 5;
/// A limit on descriptors: this process's or the system's (EMFILE, ENFILE), or this user's in
/// flight over Unix sockets (ETOOMANYREFS). Raise RLIMIT_NOFILE or offer less at once.
pub const HANDOFF_ERR_DESCRIPTOR_PRESSURE: handoff_status = 6;
/// sendmsg(2) failed in a way that has no status of its own; errno says how. Nothing was sent.
pub const HANDOFF_ERR_SEND_FAILED: handoff_status = 7;
/// The system took a part of the message, and the descriptor with it. Close the socket; the
/// backend refuses what it got.
pub const HANDOFF_ERR_SHORT_WRITE: handoff_status = 8;
/// No acknowledgement came by the deadline. Serve the client another way and close the socket.
pub const HANDOFF_ERR_ACK_TIMEOUT: handoff_status = 9;
/// The acknowledgement that came is for another token. Close the socket.
pub const HANDOFF_ERR_ACK_MISMATCH: handoff_status = 10;
/// What came is not an acknowledgement. Close the socket.
pub const HANDOFF_ERR_ACK_MALFORMED: handoff_status = 11;
/// Receiving failed in a way that has no status of its own; errno says how.
pub const HANDOFF_ERR_RECEIVE_FAILED: handoff_status = 12;
/// The other end closed the connection, or takes no acknowledgements any more. Close the socket.
pub const HANDOFF_ERR_END_OF_STREAM: handoff_status = 13;
/// The message brought no descriptor. Close the socket.
pub const HANDOFF_ERR_NO_DESCRIPTOR: handoff_status = 14;
/// The message brought more than one descriptor; all are closed. Close the socket.
pub const HANDOFF_ERR_SURPLUS_DESCRIPTORS: handoff_status = 15;
/// The kernel could not install the descriptors that were sent, because this process is at its
/// RLIMIT_NOFILE or a security module refused; what was installed is closed. Close the socket.
pub const HANDOFF_ERR_CONTROL_TRUNCATED: handoff_status = 16;
/// The message is shorter or longer than a token; its descriptor is closed. Close the socket.
pub const HANDOFF_ERR_WRONG_LENGTH: handoff_status = 17;
/// The token presented is not the one expected; neither was consumed.
pub const HANDOFF_ERR_TOKEN_MISMATCH: handoff_status = 18;
/// The token's lifetime is over; it has left the store.
pub const HANDOFF_ERR_TOKEN_EXPIRED: handoff_status = 19;
/// The token is not pending: never known here, or consumed, revoked or expired before. A replay
/// looks like this.
pub const HANDOFF_ERR_TOKEN_NOT_PENDING: handoff_status = 20;
/// The token is pending already.
pub const HANDOFF_ERR_TOKEN_ALREADY_PENDING: handoff_status = 21;
/// Every random token generated was pending already. The system's random source is broken.
pub const HANDOFF_ERR_TOKEN_COLLISION: handoff_status = 22;
/// As many are held as may be held. Try again when some have gone, or make room for more.
pub const HANDOFF_ERR_FULL: handoff_status = 23;
/// The system has no randomness to give; errno says why.
pub const HANDOFF_ERR_RANDOM: handoff_status = 24;
/// The system does not tell who the peer is. Do not trust it.
pub const HANDOFF_ERR_PEER_UNKNOWN: handoff_status = 25;
/// The policy does not allow this peer. Close the connection.
pub const HANDOFF_ERR_PEER_NOT_ALLOWED: handoff_status = 26;
/// Somebody listens at that path. It is left alone.
pub const HANDOFF_ERR_ADDRESS_IN_USE: handoff_status = 27;
/// Something that is not a socket is at that path. It is left alone.
pub const HANDOFF_ERR_NOT_A_SOCKET: handoff_status = 28;
/// The handoff socket could not be made, in a way that has no status of its own; errno says how.
pub const HANDOFF_ERR_LISTEN_FAILED: handoff_status = 29;
/// A fault in the library, which stays usable. Please report it with handoff_last_error().
pub const HANDOFF_ERR_INTERNAL: handoff_status = 30;
/// There is nothing to take, now or any more. Not an error: errno and handoff_last_error() are
/// left as they were.
pub const HANDOFF_NOTHING: handoff_status = 31;

/// The backend failed too often of late and is not tried for a while. Serve the client another way.
pub const HANDOFF_ERR_RATE_LIMITED: handoff_status = 32;
/// There are more bytes than the backend, or the format, takes.
pub const HANDOFF_ERR_TOO_LARGE: handoff_status = 33;
/// The handle is used in another process than the one that used it first. Make one after fork().
pub const HANDOFF_ERR_WRONG_PROCESS: handoff_status = 34;
/// The handle is closed. Make a new one.
pub const HANDOFF_ERR_CLOSED: handoff_status = 35;
/// The broker has taken the connection back. Forget the arrival; its descriptor is closed.
pub const HANDOFF_ERR_REVOKED: handoff_status = 36;
/// The offer cannot be taken back any more. Its verdict has come, or will.
pub const HANDOFF_ERR_TOO_LATE: handoff_status = 37;
/// The operating system refused what the handle needs; errno says what.
pub const HANDOFF_ERR_SYSTEM: handoff_status = 38;

/// What there is to say about an error.
struct Entry {
    kind: ErrorKind,
    name: &'static CStr,
    message: &'static CStr,
}

/// Makes the entry of a constant; does not compile if kind and constant have different numbers.
macro_rules! entry {
    ($kind:ident, $constant:ident, $message:literal) => {{
        const { assert!(ErrorKind::$kind as handoff_status == $constant) };
        Entry {
            kind: ErrorKind::$kind,
            name: c_str(concat!(stringify!($constant), "\0")),
            message: $message,
        }
    }};
}

const fn c_str(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("not a C string"),
    }
}

/// Every error.
const ERRORS: [Entry; 37] = [
    entry!(
        InvalidArgument,
        HANDOFF_ERR_INVALID_ARGUMENT,
        c"an argument is not what the call needs"
    ),
    entry!(Unsupported, HANDOFF_ERR_UNSUPPORTED, c"not supported on this platform"),
    entry!(PermissionDenied, HANDOFF_ERR_PERMISSION_DENIED, c"permission denied"),
    entry!(BackendUnavailable, HANDOFF_ERR_BACKEND_UNAVAILABLE, c"the backend is not available"),
    entry!(WouldBlock, HANDOFF_ERR_WOULD_BLOCK, c"the call would have to wait"),
    entry!(
        DescriptorPressure,
        HANDOFF_ERR_DESCRIPTOR_PRESSURE,
        c"out of descriptors, or too many are in flight"
    ),
    entry!(SendFailed, HANDOFF_ERR_SEND_FAILED, c"the message could not be sent"),
    entry!(ShortWrite, HANDOFF_ERR_SHORT_WRITE, c"only a part of the message was sent"),
    entry!(AckTimeout, HANDOFF_ERR_ACK_TIMEOUT, c"no acknowledgement by the deadline"),
    entry!(AckMismatch, HANDOFF_ERR_ACK_MISMATCH, c"the acknowledgement is for another token"),
    entry!(AckMalformed, HANDOFF_ERR_ACK_MALFORMED, c"the acknowledgement is malformed"),
    entry!(ReceiveFailed, HANDOFF_ERR_RECEIVE_FAILED, c"receiving failed"),
    entry!(EndOfStream, HANDOFF_ERR_END_OF_STREAM, c"the other end has closed"),
    entry!(NoDescriptor, HANDOFF_ERR_NO_DESCRIPTOR, c"the message brought no descriptor"),
    entry!(
        SurplusDescriptors,
        HANDOFF_ERR_SURPLUS_DESCRIPTORS,
        c"the message brought more than one descriptor"
    ),
    entry!(ControlTruncated, HANDOFF_ERR_CONTROL_TRUNCATED, c"descriptors were lost on arrival"),
    entry!(WrongLength, HANDOFF_ERR_WRONG_LENGTH, c"the message has the wrong length"),
    entry!(TokenMismatch, HANDOFF_ERR_TOKEN_MISMATCH, c"not the token expected"),
    entry!(TokenExpired, HANDOFF_ERR_TOKEN_EXPIRED, c"the token has expired"),
    entry!(TokenNotPending, HANDOFF_ERR_TOKEN_NOT_PENDING, c"the token is not pending"),
    entry!(TokenAlreadyPending, HANDOFF_ERR_TOKEN_ALREADY_PENDING, c"the token is pending already"),
    entry!(TokenCollision, HANDOFF_ERR_TOKEN_COLLISION, c"every random token was pending already"),
    entry!(Full, HANDOFF_ERR_FULL, c"as many are held as may be held"),
    entry!(Random, HANDOFF_ERR_RANDOM, c"the system has no randomness to give"),
    entry!(PeerUnknown, HANDOFF_ERR_PEER_UNKNOWN, c"cannot tell who the peer is"),
    entry!(PeerNotAllowed, HANDOFF_ERR_PEER_NOT_ALLOWED, c"the peer is not allowed"),
    entry!(AddressInUse, HANDOFF_ERR_ADDRESS_IN_USE, c"somebody is listening there"),
    entry!(NotASocket, HANDOFF_ERR_NOT_A_SOCKET, c"what is there is not a socket"),
    entry!(ListenFailed, HANDOFF_ERR_LISTEN_FAILED, c"the socket could not be made"),
    entry!(Internal, HANDOFF_ERR_INTERNAL, c"a fault in the library"),
    entry!(RateLimited, HANDOFF_ERR_RATE_LIMITED, c"the backend failed too often of late"),
    entry!(TooLarge, HANDOFF_ERR_TOO_LARGE, c"more bytes than the backend takes"),
    entry!(WrongProcess, HANDOFF_ERR_WRONG_PROCESS, c"the handle belongs to another process"),
    entry!(Closed, HANDOFF_ERR_CLOSED, c"the handle is closed"),
    entry!(TakenBack, HANDOFF_ERR_REVOKED, c"the broker has taken the connection back"),
    entry!(TooLate, HANDOFF_ERR_TOO_LATE, c"the offer cannot be taken back any more"),
    entry!(System, HANDOFF_ERR_SYSTEM, c"the operating system refused"),
];

fn error(status: handoff_status) -> Option<&'static Entry> {
    ERRORS.iter().find(|error| error.kind as handoff_status == status)
}

/// Names a status: "HANDOFF_OK", "HANDOFF_ERR_WOULD_BLOCK" and so on.
///
/// @param status  any number
/// @return a constant string, never NULL; "HANDOFF_ERR_UNKNOWN" for other numbers.
///
/// Any thread may call it, also after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_status_name(status: handoff_status) -> *const c_char {
    let name = match status {
        HANDOFF_OK => c"HANDOFF_OK",
        HANDOFF_NOTHING => c"HANDOFF_NOTHING",
        _ => error(status).map_or(c"HANDOFF_ERR_UNKNOWN", |error| error.name),
    };
    name.as_ptr()
}

/// Says what a status means, in English, in general: handoff_last_error() has the particulars.
///
/// @param status  any number
/// @return a constant string, never NULL; "unknown status" for other numbers.
///
/// Any thread may call it, also after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_status_message(status: handoff_status) -> *const c_char {
    let message = match status {
        HANDOFF_OK => c"done",
        HANDOFF_NOTHING => c"there is nothing to take",
        _ => error(status).map_or(c"unknown status", |error| error.message),
    };
    message.as_ptr()
}

/// Says what went wrong in this thread's last call that returned an error, in English, with the
/// socket and the descriptor that were used. Never shows a token.
///
/// @return a string, never NULL, empty if no call has failed yet. It is the library's and changes
///         with this thread's next error; it is gone when the thread ends.
///
/// Each thread has its own; a child of fork() begins with a copy.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_last_error() -> *const c_char {
    guard_or(c"".as_ptr(), last_sentence)
}

/// Says how an attempt that ended with this status failed, for the fallback policy.
///
/// @param status  what a call of an attempt returned, or the cause in a verdict
/// @return one of HANDOFF_FAILURE_*; HANDOFF_FAILURE_NONE for HANDOFF_OK, HANDOFF_NOTHING,
///         HANDOFF_ERR_INVALID_ARGUMENT, HANDOFF_ERR_INTERNAL and unknown numbers.
///
/// Any thread may call it, also after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_status_failure(status: handoff_status) -> handoff_failure {
    let failure = error(status).and_then(|error| error.kind.attempt_failure());
    failure.map_or(HANDOFF_FAILURE_NONE, failure_number)
}

/// Says whether an attempt that ended with this status may be hidden behind a fallback. Misuse of
/// the library and its own faults may not: they would stay for ever.
///
/// @param status  what a call of an attempt returned
/// @return true if the client should be served another way and nobody need be told; false for
///         HANDOFF_OK, HANDOFF_NOTHING, HANDOFF_ERR_INVALID_ARGUMENT, HANDOFF_ERR_INTERNAL and
///         unknown numbers.
///
/// Any thread may call it, also after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_status_is_fallback_safe(status: handoff_status) -> bool {
    error(status).is_some_and(|error| error.kind.is_fallback_safe())
}

/// Says whether the descriptor may have reached the backend when handoff_send() or
/// handoff_send_path() ended with this status, or an attempt with this cause. What was sent before
/// stays sent, whatever a later call returns.
///
/// @param status  what the call returned, or the cause in a verdict
/// @return false if the descriptor was certainly not sent; true otherwise, and for unknown numbers.
///
/// Any thread may call it, also after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_status_may_have_reached_backend(status: handoff_status) -> bool {
    error(status).is_none_or(|error| error.kind.may_have_reached_backend())
}

/// The version of the library that runs, which may be another than that of the header:
/// HANDOFF_VERSION.
///
/// @return a constant string such as "0.1.0".
///
/// Any thread may call it, also after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_version() -> *const c_char {
    const VERSION: &CStr = c_str(concat!(env!("CARGO_PKG_VERSION"), "\0"));
    VERSION.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_errors_have_one_number_and_none_has_that_of_nothing() {
        for status in -1..1000 {
            let count = ERRORS.iter().filter(|e| e.kind as handoff_status == status).count();
            assert!(count <= usize::from(status > HANDOFF_OK && status != HANDOFF_NOTHING));
        }
    }
}
