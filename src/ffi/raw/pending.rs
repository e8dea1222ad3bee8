//! The registry of pending acknowledgements.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::time::Instant;

use super::store::handoff_raw_store;
use super::token::{handoff_raw_token, token};
use crate::ffi::argument::{Out, free, nonzero, reference, timeout};
use crate::ffi::growing::{Growing, Input, initialize, read_or_default};
use crate::ffi::guard::{Failure, guard, guard_or};
use crate::ffi::status::handoff_status;
use crate::raw::pending::{PendingAcks, PendingAcksOptions};

/// The acknowledgements that a broker waits for. An entry is removed exactly once: acknowledged,
/// abandoned or expired. The call that removes it returns its `user_data` and revokes its token.
///
/// Any number of threads may use one at once. After fork() in a program with several threads, make
/// a new one in the child: another thread may have held the lock.
pub struct handoff_raw_pending {
    pending: PendingAcks,
}

/// The limits of a registry of pending acknowledgements. Zero is the default in every field but
/// `size`. Out-of-range values are clamped.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_raw_pending_options {
    /// Set by HANDOFF_RAW_PENDING_OPTIONS_INIT.
    pub size: usize,
    /// The most entries at once: 1 to 1048576, default 1024.
    pub capacity: usize,
    /// How long an acknowledgement may take, in milliseconds: default 5000; HANDOFF_NO_TIMEOUT.
    pub timeout_ms: u64,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_raw_pending_options {
    const INIT: &'static str = "HANDOFF_RAW_PENDING_OPTIONS_INIT";
}
// SAFETY: integers.
unsafe impl Input for handoff_raw_pending_options {}

/// Initialises options as HANDOFF_RAW_PENDING_OPTIONS_INIT does, for languages without macros.
///
/// @param[out] options  the options
/// @param size          sizeof(handoff_raw_pending_options)
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `options` is NULL or `size` cannot be right.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_pending_options_init(
    options: *mut handoff_raw_pending_options,
    size: usize,
) -> handoff_status {
    guard(|| initialize(options, size))
}

/// Makes an empty registry of pending acknowledgements. It allocates all its memory here.
///
/// @param store         the store that issued the tokens, or any store if a backend issued them.
///                      The token of a removed entry is revoked there. You may free the store
///                      before the registry
/// @param options       the limits, or NULL for the defaults; read during the call only
/// @param[out] pending  the registry; free it with handoff_raw_pending_free()
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `store` or `pending` is NULL or
///         `options->size` is wrong; HANDOFF_ERR_NO_MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_pending_new(
    store: *mut handoff_raw_store,
    options: *const handoff_raw_pending_options,
    pending: *mut *mut handoff_raw_pending,
) -> handoff_status {
    guard(|| {
        let store = Arc::clone(&reference(store, "store")?.store);
        let options = core_options(read_or_default(options, "options")?);
        let out = Out::new(pending, "pending")?;
        out.give(handoff_raw_pending { pending: PendingAcks::new(store, options)? });
        Ok(())
    })
}

fn core_options(options: handoff_raw_pending_options) -> PendingAcksOptions {
    let defaults = PendingAcksOptions::default();
    PendingAcksOptions {
        capacity: nonzero(options.capacity, defaults.capacity),
        timeout: timeout(options.timeout_ms, defaults.timeout),
    }
}

fn pending<'a>(pending: *const handoff_raw_pending) -> Result<&'a PendingAcks, Failure> {
    reference(pending, "pending").map(|pending| &pending.pending)
}

/// Starts to wait for an acknowledgement. Call it before you send the message.
///
/// @param pending    the registry
/// @param token      the message's token
/// @param user_data  returned when the entry is removed; the library does not look at it
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `pending` or `token` is NULL;
///         HANDOFF_ERR_TOKEN_ALREADY_PENDING; HANDOFF_ERR_FULL if the capacity is reached.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_pending_register(
    pending: *mut handoff_raw_pending,
    token: *const handoff_raw_token,
    user_data: *mut c_void,
) -> handoff_status {
    guard(|| {
        let token = self::token(token, "token")?;
        Ok(self::pending(pending)?.register(&token, user_data.expose_provenance())?)
    })
}

/// Removes the entry of an acknowledgement that has arrived.
///
/// @param pending         the registry
/// @param token           the acknowledgement's token
/// @param[out] user_data  what was registered with it; may be NULL
/// @return HANDOFF_OK: the entry is removed, even if its time is up, because the backend has
///         decided; HANDOFF_ERR_TOKEN_NOT_PENDING if there is no such entry, as for a second
///         acknowledgement or after handoff_raw_pending_expire(); HANDOFF_ERR_INVALID_ARGUMENT if
///         `pending` or `token` is NULL.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_pending_acknowledge(
    pending: *mut handoff_raw_pending,
    token: *const handoff_raw_token,
    user_data: *mut *mut c_void,
) -> handoff_status {
    guard(|| leave(pending, token, user_data))
}

/// Removes the entry of a message that you take back or could not send.
///
/// @param pending         the registry
/// @param token           the message's token
/// @param[out] user_data  what was registered with it; may be NULL
/// @return HANDOFF_OK: the entry is removed; HANDOFF_ERR_TOKEN_NOT_PENDING if there is none;
///         HANDOFF_ERR_INVALID_ARGUMENT if `pending` or `token` is NULL.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_pending_abandon(
    pending: *mut handoff_raw_pending,
    token: *const handoff_raw_token,
    user_data: *mut *mut c_void,
) -> handoff_status {
    guard(|| leave(pending, token, user_data))
}

fn leave(
    pending: *const handoff_raw_pending,
    token: *const handoff_raw_token,
    user_data: *mut *mut c_void,
) -> Result<(), Failure> {
    let (pending, token) = (self::pending(pending)?, self::token(token, "token")?);
    let out = Out::optional(user_data, "user_data")?;
    let user_data = pending.leave(&token)?;
    if let Some(out) = out {
        out.set(std::ptr::with_exposed_provenance_mut(user_data));
    }
    Ok(())
}

/// Removes one entry whose time is up. Call it until it returns HANDOFF_NOTHING.
///
/// The backend can still acknowledge the message. Before you serve the client another way, call
/// handoff_raw_take_back() and look for its acknowledgement once more.
///
/// @param pending         the registry
/// @param[out] token      the message's token; may be NULL
/// @param[out] user_data  what was registered with it; may be NULL
/// @return HANDOFF_OK: the entry is removed; HANDOFF_NOTHING; HANDOFF_ERR_INVALID_ARGUMENT if
///         `pending` is NULL.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_pending_expire(
    pending: *mut handoff_raw_pending,
    token: *mut handoff_raw_token,
    user_data: *mut *mut c_void,
) -> handoff_status {
    guard(|| {
        let pending = self::pending(pending)?;
        let token_out = Out::optional(token, "token")?;
        let user_data_out = Out::optional(user_data, "user_data")?;
        let (token, user_data) = pending.expire().ok_or(Failure::Nothing)?;
        if let Some(out) = token_out {
            out.set(token.into());
        }
        if let Some(out) = user_data_out {
            out.set(std::ptr::with_exposed_provenance_mut(user_data));
        }
        Ok(())
    })
}

/// Gets the time until the next entry expires, for poll(2) or a timer.
///
/// @param pending       the registry
/// @param[out] wait_ms  the time in milliseconds, rounded up; 0 if one has expired; at most INT_MAX
/// @return HANDOFF_OK; HANDOFF_NOTHING if there is no entry; HANDOFF_ERR_INVALID_ARGUMENT if a
///         pointer is NULL.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_pending_next_wait(
    pending: *const handoff_raw_pending,
    wait_ms: *mut c_int,
) -> handoff_status {
    guard(|| {
        let pending = self::pending(pending)?;
        let out = Out::new(wait_ms, "wait_ms")?;
        let deadline = pending.next_deadline().ok_or(Failure::Nothing)?;
        let left = deadline.saturating_duration_since(Instant::now());
        out.set(c_int::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX));
        Ok(())
    })
}

/// Counts the entries of a registry.
///
/// @param pending  the registry
/// @return the count; 0 if `pending` is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_pending_length(pending: *const handoff_raw_pending) -> usize {
    guard_or(0, || self::pending(pending).map_or(0, PendingAcks::len))
}

/// Frees a registry. The `user_data` of entries that are still there stays yours.
///
/// @param pending  the registry, or NULL, which does nothing; no thread may be using it
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_pending_free(pending: *mut handoff_raw_pending) {
    free(pending);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::growing::zeroed;

    #[test]
    fn options_of_zero_are_the_defaults_of_the_core() {
        assert_eq!(core_options(zeroed()), PendingAcksOptions::default());
    }
}
