//! The token store.

use std::sync::Arc;

use super::token::{handoff_raw_token, token};
use crate::ffi::argument::{Out, free, nonzero, reference, timeout};
use crate::ffi::growing::{Growing, Input, initialize, read_or_default};
use crate::ffi::guard::{Failure, guard, guard_or};
use crate::ffi::status::handoff_status;
use crate::raw::store::{TokenStore, TokenStoreOptions};

/// The tokens that may still be presented, each of them once.
///
/// Any number of threads may use one at once. After fork() in a program with several threads, make
/// a new one in the child: another thread may have held the lock.
pub struct handoff_raw_store {
    pub(super) store: Arc<TokenStore>,
}

/// The limits of a token store. Zero is the default in every field but `size`. Out-of-range values
/// are clamped.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_raw_store_options {
    /// Set by HANDOFF_RAW_STORE_OPTIONS_INIT.
    pub size: usize,
    /// The most tokens pending at once: 1 to 1048576, default 1024.
    pub capacity: usize,
    /// How long a token may be presented, in milliseconds: default 30000; HANDOFF_NO_TIMEOUT: it
    /// does not expire.
    pub lifetime_ms: u64,
    /// How many random tokens handoff_raw_store_issue() tries, if each is already pending, before
    /// it fails: default 16.
    pub collision_attempts: usize,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_raw_store_options {
    const INIT: &'static str = "HANDOFF_RAW_STORE_OPTIONS_INIT";
}
// SAFETY: integers.
unsafe impl Input for handoff_raw_store_options {}

/// Initialises options as HANDOFF_RAW_STORE_OPTIONS_INIT does, for languages without macros.
///
/// @param[out] options  the options
/// @param size          sizeof(handoff_raw_store_options)
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `options` is NULL or `size` cannot be right.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_store_options_init(
    options: *mut handoff_raw_store_options,
    size: usize,
) -> handoff_status {
    guard(|| initialize(options, size))
}

/// Makes an empty token store. It allocates all its memory here.
///
/// @param options     the limits, or NULL for the defaults; read during the call only
/// @param[out] store  the store; free it with handoff_raw_store_free()
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `store` is NULL or `options->size` is wrong;
///         HANDOFF_ERR_NO_MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_store_new(
    options: *const handoff_raw_store_options,
    store: *mut *mut handoff_raw_store,
) -> handoff_status {
    guard(|| {
        let options = core_options(read_or_default(options, "options")?);
        let out = Out::new(store, "store")?;
        out.give(handoff_raw_store { store: Arc::new(TokenStore::new(options)?) });
        Ok(())
    })
}

fn core_options(options: handoff_raw_store_options) -> TokenStoreOptions {
    let defaults = TokenStoreOptions::default();
    TokenStoreOptions {
        capacity: nonzero(options.capacity, defaults.capacity),
        lifetime: timeout(options.lifetime_ms, defaults.lifetime),
        collision_attempts: match u32::try_from(options.collision_attempts) {
            Ok(0) => defaults.collision_attempts,
            Ok(attempts) => attempts,
            Err(_) => u32::MAX,
        },
    }
}

fn store<'a>(store: *const handoff_raw_store) -> Result<&'a TokenStore, Failure> {
    reference(store, "store").map(|store| &*store.store)
}

/// Issues a random token and holds it until it is consumed, revoked or expired.
///
/// @param store       the store
/// @param[out] token  the token
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL; HANDOFF_ERR_FULL if the
///         capacity is reached; HANDOFF_ERR_RANDOM; HANDOFF_ERR_TOKEN_COLLISION.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_store_issue(
    store: *mut handoff_raw_store,
    token: *mut handoff_raw_token,
) -> handoff_status {
    guard(|| {
        let store = self::store(store)?;
        let out = Out::new(token, "token")?;
        out.set(store.issue()?.into());
        Ok(())
    })
}

/// Holds a token that you got elsewhere until it is consumed, revoked or expired.
///
/// @param store  the store
/// @param token  the token; copied
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
///         HANDOFF_ERR_TOKEN_ALREADY_PENDING; HANDOFF_ERR_FULL if the capacity is reached.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_store_insert(
    store: *mut handoff_raw_store,
    token: *const handoff_raw_token,
) -> handoff_status {
    guard(|| Ok(self::store(store)?.insert(&self::token(token, "token")?)?))
}

/// Consumes `presented` if it is `expected` and pending.
///
/// @param store      the store
/// @param expected   the token that belongs to what is handed over
/// @param presented  the token that came with it
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
///         HANDOFF_ERR_TOKEN_MISMATCH: neither is consumed; HANDOFF_ERR_TOKEN_EXPIRED;
///         HANDOFF_ERR_TOKEN_NOT_PENDING.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_store_consume(
    store: *mut handoff_raw_store,
    expected: *const handoff_raw_token,
    presented: *const handoff_raw_token,
) -> handoff_status {
    guard(|| {
        let store = self::store(store)?;
        Ok(store.consume(&token(expected, "expected")?, &token(presented, "presented")?)?)
    })
}

/// Consumes `presented` if it is pending, whichever token it is.
///
/// @param store      the store
/// @param presented  the token that came
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
///         HANDOFF_ERR_TOKEN_EXPIRED; HANDOFF_ERR_TOKEN_NOT_PENDING.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_store_redeem(
    store: *mut handoff_raw_store,
    presented: *const handoff_raw_token,
) -> handoff_status {
    guard(|| Ok(self::store(store)?.redeem(&token(presented, "presented")?)?))
}

/// Revokes a token: it can no longer be presented.
///
/// @param store  the store
/// @param token  the token
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
///         HANDOFF_ERR_TOKEN_NOT_PENDING.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_store_revoke(
    store: *mut handoff_raw_store,
    token: *const handoff_raw_token,
) -> handoff_status {
    guard(|| Ok(self::store(store)?.revoke(&self::token(token, "token")?)?))
}

/// Removes every expired token. A full store does this by itself, but not again before a
/// millisecond has passed for each 1024 of its tokens.
///
/// @param store         the store
/// @param[out] removed  their number; may be NULL
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `store` is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_store_prune(
    store: *mut handoff_raw_store,
    removed: *mut usize,
) -> handoff_status {
    guard(|| {
        let store = self::store(store)?;
        let out = Out::optional(removed, "removed")?;
        let removed = store.prune();
        if let Some(out) = out {
            out.set(removed);
        }
        Ok(())
    })
}

/// Counts the tokens in a store, including expired ones that are not pruned yet.
///
/// @param store  the store
/// @return the count; 0 if `store` is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_store_length(store: *const handoff_raw_store) -> usize {
    guard_or(0, || self::store(store).map_or(0, TokenStore::len))
}

/// Frees a token store. A registry of pending acknowledgements that uses it stays usable.
///
/// @param store  the store, or NULL, which does nothing; no thread may be using it
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_store_free(store: *mut handoff_raw_store) {
    free(store);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::growing::zeroed;

    #[test]
    fn options_of_zero_are_the_defaults_of_the_core() {
        assert_eq!(core_options(zeroed()), TokenStoreOptions::default());
    }
}
