//! What every call returns, and the version.

use std::ffi::{CStr, c_char, c_int};

use super::errors::entry;
use super::guard::{guard, guard_or, last_errno, last_message, last_status};
use crate::kind::ErrorKind;
use crate::support;

/// What a call returns: HANDOFF_OK, a positive number if there is neither a result nor an error, or
/// a negative HANDOFF_ERR_*.
///
/// After an error, errno is the system's error, or 0 if the error is not the system's. If a backend
/// cannot be used, errno may also be one of the numbers that `system_errno` in
/// handoff_broker_backend_state lists. handoff_last_error() returns a message. Out parameters are
/// untouched unless the status is HANDOFF_OK. A number never changes its meaning.
pub type handoff_status = i32;

/// Success.
pub const HANDOFF_OK: handoff_status = 0;
/// There is nothing to take. Not an error: errno and handoff_last_error() stay as they were.
pub const HANDOFF_NOTHING: handoff_status = 1;
/// The wait ended because its time was up. Not an error: errno and handoff_last_error() stay as
/// they were.
pub const HANDOFF_TIMED_OUT: handoff_status = 2;

/// handoff_broker_wake() or handoff_backend_wake() ended the wait, or came before the call that
/// would have waited. Not an error: errno and handoff_last_error() stay as they were.
pub const HANDOFF_WOKEN: handoff_status = 3;

/// The number of a kind of error.
pub(super) fn status_of(kind: ErrorKind) -> handoff_status {
    -(kind as handoff_status)
}

/// Returns a message about this thread's last error.
///
/// The message is one line of English, for people. It names the socket and the descriptor, if there
/// were any, and never shows a token. Control characters in a path are shown as '?'.
///
/// @return a string, never NULL; empty if no call has failed yet. It is valid until this thread's
///         next error, or until the thread ends.
///
/// Each thread has its own message; a child of fork() starts with a copy. In a runtime that moves
/// work between threads, use handoff_broker_last_error() and handoff_backend_last_error().
#[unsafe(no_mangle)]
pub extern "C" fn handoff_last_error() -> *const c_char {
    guard_or(c"".as_ptr(), last_message)
}

/// Returns the status of this thread's last error, for a call that returns a descriptor in place of
/// a status: handoff_broker_fd() and handoff_backend_fd().
///
/// @return a negative status; HANDOFF_OK if no call has failed yet.
///
/// Each thread has its own value, as with handoff_last_error().
#[unsafe(no_mangle)]
pub extern "C" fn handoff_last_status() -> handoff_status {
    guard_or(HANDOFF_OK, last_status)
}

/// Returns errno of this thread's last error, for languages that cannot read errno right after a
/// call.
///
/// @return the value of errno(3) at that error; also 0 if no call has failed yet.
///
/// Each thread has its own value, as with handoff_last_error().
#[unsafe(no_mangle)]
pub extern "C" fn handoff_last_errno() -> c_int {
    guard_or(0, last_errno)
}

/// Names a status: "HANDOFF_OK", "HANDOFF_ERR_WOULD_BLOCK" and so on.
///
/// @param status  any number
/// @return a constant string, never NULL; "HANDOFF_ERR_UNKNOWN" for unknown numbers.
///
/// Safe in any thread, after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_status_name(status: handoff_status) -> *const c_char {
    let name = match status {
        HANDOFF_OK => c"HANDOFF_OK",
        HANDOFF_NOTHING => c"HANDOFF_NOTHING",
        HANDOFF_TIMED_OUT => c"HANDOFF_TIMED_OUT",
        HANDOFF_WOKEN => c"HANDOFF_WOKEN",
        _ => entry(status).map_or(c"HANDOFF_ERR_UNKNOWN", |entry| entry.name),
    };
    name.as_ptr()
}

/// Describes a status in English. handoff_last_error() has the details of an error.
///
/// @param status  any number
/// @return a constant string, never NULL; "unknown status" for unknown numbers.
///
/// Safe in any thread, after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_status_message(status: handoff_status) -> *const c_char {
    let message = match status {
        HANDOFF_OK => c"success",
        HANDOFF_NOTHING => c"nothing to take",
        HANDOFF_TIMED_OUT => c"the wait timed out",
        HANDOFF_WOKEN => c"the wait was ended",
        _ => entry(status).map_or(c"unknown status", |entry| entry.message),
    };
    message.as_ptr()
}

/// Returns the version of the library that runs. It can differ from the header's, HANDOFF_VERSION.
///
/// At compile time compare HANDOFF_VERSION_NUMBER.
///
/// @return a constant string such as "0.2.0".
///
/// Safe in any thread, after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("not a C string"),
        };
    VERSION.as_ptr()
}

/// Checks whether the running system has what the library needs. At compile time use
/// HANDOFF_SUPPORTED.
///
/// @return HANDOFF_OK; HANDOFF_ERR_UNSUPPORTED if something is missing: handoff_last_error() names
///         it; HANDOFF_ERR_DESCRIPTOR_PRESSURE if it cannot tell, because this process or the
///         system is out of descriptors; HANDOFF_ERR_SYSTEM if it cannot tell because of another
///         limit: errno is ENOMEM, for example, or EFBIG for RLIMIT_FSIZE.
///
/// Safe in any thread and after fork(). Opens and closes a few descriptors.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_supported() -> handoff_status {
    guard(|| Ok(support::supported()?))
}
