//! Tokens and the token store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::status::handoff_status;
use super::{Failure, Growing, Out, clock, free, guard, guard_or, options, reference, slice};
use crate::raw::store::{TokenStore, TokenStoreOptions};
use crate::token::Token;

/// Bytes in a token, and in a message of the raw layer.
pub const HANDOFF_TOKEN_LEN: usize = 16;

/// A one-time token. To send it elsewhere, send its bytes; compare with handoff_token_equal().
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_token {
    /// The token. Whoever knows these may present it.
    pub bytes: [u8; HANDOFF_TOKEN_LEN],
}

impl From<Token> for handoff_token {
    fn from(token: Token) -> handoff_token {
        handoff_token { bytes: *token.as_bytes() }
    }
}

/// A token that C passes by pointer.
pub(super) fn token(pointer: *const handoff_token, name: &'static str) -> Result<Token, Failure> {
    reference(pointer, name).map(|token| Token::from_bytes(token.bytes))
}

/// Makes a token from the operating system's random source, getentropy(3).
///
/// @param[out] token  where the token goes
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `token` is NULL; HANDOFF_ERR_RANDOM if the
///         system has no randomness to give.
///
/// Any thread may call it, also after fork().
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_generate(token: *mut handoff_token) -> handoff_status {
    guard(|| {
        let out = Out::new(token, "token")?;
        out.set(Token::generate()?.into());
        Ok(())
    })
}

/// Makes a token of bytes that were learned elsewhere.
///
/// @param bytes       the bytes; copied
/// @param len         how many there are; only HANDOFF_TOKEN_LEN will do
/// @param[out] token  where the token goes
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or `len` is another.
///
/// Any thread may call it, also after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_from_bytes(
    bytes: *const u8,
    len: usize,
    token: *mut handoff_token,
) -> handoff_status {
    guard(|| {
        let bytes = slice(bytes, len, "bytes")?;
        let out = Out::new(token, "token")?;
        let bytes = bytes.try_into().map_err(|_| Failure::Argument("len"))?;
        out.set(handoff_token { bytes });
        Ok(())
    })
}

/// Compares two tokens in a time that does not depend on their bytes.
///
/// @return true if both are there and equal; false otherwise, and if either is NULL.
///
/// Any thread may call it, also after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_equal(a: *const handoff_token, b: *const handoff_token) -> bool {
    guard_or(false, || matches!((token(a, "a"), token(b, "b")), (Ok(a), Ok(b)) if a == b))
}

/// Default of handoff_token_store_options.capacity.
pub const HANDOFF_TOKEN_STORE_CAPACITY: usize = 1024;
/// Default of handoff_token_store_options.lifetime_ms.
pub const HANDOFF_TOKEN_STORE_LIFETIME_MS: u64 = 30000;
/// Default of handoff_token_store_options.collision_attempts.
pub const HANDOFF_TOKEN_STORE_COLLISION_ATTEMPTS: u32 = 16;

/// The limits of a token store. Begin with HANDOFF_TOKEN_STORE_OPTIONS_INIT and change what you
/// want. A value outside its range is taken to the nearest end of it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_token_store_options {
    /// sizeof(handoff_token_store_options), set by the INIT macro.
    pub size: usize,
    /// Tokens pending at once: 1 to 1048576.
    pub capacity: usize,
    /// How long a token may be presented, in milliseconds: 1 at least.
    pub lifetime_ms: u64,
    /// Tokens generated before issuing gives up on finding one that is not pending: 1 at least.
    pub collision_attempts: u32,
}

// SAFETY: repr(C), begins with a usize, all integers.
unsafe impl Growing for handoff_token_store_options {}

/// The tokens that may still be presented, each of them once. Bounded; every token in it expires.
///
/// Any number of threads may use one at once. After fork() in a program with several threads, the
/// child makes a store of its own: another thread may have held the lock.
pub struct handoff_token_store {
    pub(super) store: Arc<TokenStore>,
}

/// Makes an empty token store.
///
/// @param options     its limits, or NULL for the defaults; read during the call only
/// @param[out] store  the new store; free it with handoff_token_store_free()
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `store` is NULL or `options->size` is wrong.
///
/// All memory that the store needs is allocated here.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_store_new(
    options: *const handoff_token_store_options,
    store: *mut *mut handoff_token_store,
) -> handoff_status {
    guard(|| {
        let out = Out::new(store, "store")?;
        let defaults = handoff_token_store_options {
            size: size_of::<handoff_token_store_options>(),
            capacity: HANDOFF_TOKEN_STORE_CAPACITY,
            lifetime_ms: HANDOFF_TOKEN_STORE_LIFETIME_MS,
            collision_attempts: HANDOFF_TOKEN_STORE_COLLISION_ATTEMPTS,
        };
        let options = self::options(options, defaults, "options")?;
        let store = Arc::new(TokenStore::new(TokenStoreOptions {
            capacity: options.capacity,
            lifetime: Duration::from_millis(options.lifetime_ms),
            collision_attempts: options.collision_attempts,
        }));
        out.set(Box::into_raw(Box::new(handoff_token_store { store })));
        Ok(())
    })
}

/// Unmakes a token store. What else was made with it keeps what it needs of it.
///
/// @param store  the store, or NULL, which does nothing; no thread may be using it
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_store_free(store: *mut handoff_token_store) {
    free(store);
}

fn store<'a>(store: *const handoff_token_store) -> Result<&'a TokenStore, Failure> {
    reference(store, "store").map(|store| &*store.store)
}

/// Makes a random token and holds it until it is consumed, revoked or expired.
///
/// @param store       the store
/// @param[out] token  the token
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL; HANDOFF_ERR_FULL if as
///         many tokens are pending as the store may hold; HANDOFF_ERR_RANDOM;
///         HANDOFF_ERR_TOKEN_COLLISION.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_store_issue(
    store: *mut handoff_token_store,
    token: *mut handoff_token,
) -> handoff_status {
    guard(|| issue(store, Ok(Instant::now()), token))
}

/// handoff_token_store_issue() at a given time.
///
/// @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_store_issue_at(
    store: *mut handoff_token_store,
    now_ns: u64,
    token: *mut handoff_token,
) -> handoff_status {
    guard(|| issue(store, clock::instant(now_ns), token))
}

fn issue(
    store: *const handoff_token_store,
    now: Result<Instant, Failure>,
    token: *mut handoff_token,
) -> Result<(), Failure> {
    let store = self::store(store)?;
    let out = Out::new(token, "token")?;
    out.set(store.issue_at(now?)?.into());
    Ok(())
}

/// Holds a token that was learned elsewhere until it is consumed, revoked or expired.
///
/// @param store  the store
/// @param token  the token; copied
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
///         HANDOFF_ERR_TOKEN_ALREADY_PENDING; HANDOFF_ERR_FULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_store_insert(
    store: *mut handoff_token_store,
    token: *const handoff_token,
) -> handoff_status {
    guard(|| Ok(self::store(store)?.insert(&self::token(token, "token")?)?))
}

/// handoff_token_store_insert() at a given time.
///
/// @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_store_insert_at(
    store: *mut handoff_token_store,
    now_ns: u64,
    token: *const handoff_token,
) -> handoff_status {
    guard(|| {
        let token = self::token(token, "token")?;
        Ok(self::store(store)?.insert_at(&token, clock::instant(now_ns)?)?)
    })
}

/// Accepts `presented` if it is `expected` and pending; then it has left the store.
///
/// @param store      the store
/// @param expected   the token that belongs to what is being handed over
/// @param presented  the token that came with it
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
///         HANDOFF_ERR_TOKEN_MISMATCH, which consumes neither; HANDOFF_ERR_TOKEN_EXPIRED;
///         HANDOFF_ERR_TOKEN_NOT_PENDING.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_store_consume(
    store: *mut handoff_token_store,
    expected: *const handoff_token,
    presented: *const handoff_token,
) -> handoff_status {
    guard(|| consume(store, Ok(Instant::now()), expected, presented))
}

/// handoff_token_store_consume() at a given time.
///
/// @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_store_consume_at(
    store: *mut handoff_token_store,
    now_ns: u64,
    expected: *const handoff_token,
    presented: *const handoff_token,
) -> handoff_status {
    guard(|| consume(store, clock::instant(now_ns), expected, presented))
}

fn consume(
    store: *const handoff_token_store,
    now: Result<Instant, Failure>,
    expected: *const handoff_token,
    presented: *const handoff_token,
) -> Result<(), Failure> {
    let (expected, presented) = (token(expected, "expected")?, token(presented, "presented")?);
    Ok(self::store(store)?.consume_at(&expected, &presented, now?)?)
}

/// Accepts `presented` if it is pending, whichever token it is; then it has left the store.
///
/// @param store      the store
/// @param presented  the token that came
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
///         HANDOFF_ERR_TOKEN_EXPIRED; HANDOFF_ERR_TOKEN_NOT_PENDING.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_store_redeem(
    store: *mut handoff_token_store,
    presented: *const handoff_token,
) -> handoff_status {
    guard(|| Ok(self::store(store)?.redeem(&token(presented, "presented")?)?))
}

/// handoff_token_store_redeem() at a given time.
///
/// @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_store_redeem_at(
    store: *mut handoff_token_store,
    now_ns: u64,
    presented: *const handoff_token,
) -> handoff_status {
    guard(|| {
        let presented = token(presented, "presented")?;
        Ok(self::store(store)?.redeem_at(&presented, clock::instant(now_ns)?)?)
    })
}

/// Ends a token's life unused.
///
/// @param store  the store
/// @param token  the token
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
///         HANDOFF_ERR_TOKEN_NOT_PENDING.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_store_revoke(
    store: *mut handoff_token_store,
    token: *const handoff_token,
) -> handoff_status {
    guard(|| Ok(self::store(store)?.revoke(&self::token(token, "token")?)?))
}

/// Removes every expired token. A full store does this by itself.
///
/// @param store         the store
/// @param[out] removed  how many there were; may be NULL
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `store` is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_store_prune(
    store: *mut handoff_token_store,
    removed: *mut usize,
) -> handoff_status {
    guard(|| prune(store, Ok(Instant::now()), removed))
}

/// handoff_token_store_prune() at a given time.
///
/// @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_store_prune_at(
    store: *mut handoff_token_store,
    now_ns: u64,
    removed: *mut usize,
) -> handoff_status {
    guard(|| prune(store, clock::instant(now_ns), removed))
}

fn prune(
    store: *const handoff_token_store,
    now: Result<Instant, Failure>,
    removed: *mut usize,
) -> Result<(), Failure> {
    let store = self::store(store)?;
    let out = Out::optional(removed, "removed")?;
    let removed = store.prune_at(now?);
    if let Some(out) = out {
        out.set(removed);
    }
    Ok(())
}

/// Counts the tokens in a store, expired ones that were not pruned included.
///
/// @param store  the store
/// @return the count; 0 if `store` is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_store_length(store: *const handoff_token_store) -> usize {
    guard_or(0, || self::store(store).map_or(0, TokenStore::len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_of_the_header_are_the_defaults_of_the_core() {
        let defaults = TokenStoreOptions::default();
        assert_eq!(HANDOFF_TOKEN_LEN, Token::LEN);
        assert_eq!(HANDOFF_TOKEN_STORE_CAPACITY, defaults.capacity);
        assert_eq!(u128::from(HANDOFF_TOKEN_STORE_LIFETIME_MS), defaults.lifetime.as_millis());
        assert_eq!(HANDOFF_TOKEN_STORE_COLLISION_ATTEMPTS, defaults.collision_attempts);
    }
}
