//! Tokens.

use std::ffi::c_void;

use crate::ffi::argument::{Out, Problem, bytes, reference};
use crate::ffi::guard::{Failure, guard};
use crate::ffi::status::handoff_status;
use crate::token::Token;

/// The length of a token, and of a message, in bytes.
pub const HANDOFF_RAW_TOKEN_LEN: usize = 16;

/// A one-time token. Compare tokens with handoff_raw_token_equal().
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_raw_token {
    /// The token. Whoever knows these bytes may present it.
    pub bytes: [u8; HANDOFF_RAW_TOKEN_LEN],
}

impl From<Token> for handoff_raw_token {
    fn from(token: Token) -> handoff_raw_token {
        handoff_raw_token { bytes: *token.as_bytes() }
    }
}

/// A token that C passes by pointer.
pub(super) fn token(
    pointer: *const handoff_raw_token,
    name: &'static str,
) -> Result<Token, Failure> {
    reference(pointer, name).map(|token| Token::from_bytes(token.bytes))
}

/// Makes a token of 16 bytes from the system's random source, getrandom(2).
///
/// @param[out] token  the token
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `token` is NULL; HANDOFF_ERR_RANDOM if the
///         system has no randomness to give.
///
/// Safe in any thread and after fork().
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_token_generate(token: *mut handoff_raw_token) -> handoff_status {
    guard(|| {
        let out = Out::new(token, "token")?;
        out.set(Token::generate()?.into());
        Ok(())
    })
}

/// Makes a token from bytes that you got elsewhere.
///
/// @param bytes       the bytes; copied
/// @param len         their number, HANDOFF_RAW_TOKEN_LEN
/// @param[out] token  the token
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or `len` is wrong.
///
/// Safe in any thread and after fork().
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_token_from_bytes(
    bytes: *const c_void,
    len: usize,
    token: *mut handoff_raw_token,
) -> handoff_status {
    guard(|| {
        let bytes = self::bytes(bytes, len, "bytes")?;
        let out = Out::new(token, "token")?;
        let wrong = |_| Failure::Argument("len", Problem::Is("is not HANDOFF_RAW_TOKEN_LEN"));
        out.set(handoff_raw_token { bytes: bytes.try_into().map_err(wrong)? });
        Ok(())
    })
}

/// Compares two tokens in constant time.
///
/// @return true if they are equal; false otherwise, and if one is NULL.
///
/// Safe in any thread, after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_token_equal(
    a: *const handoff_raw_token,
    b: *const handoff_raw_token,
) -> bool {
    // Without a guard, which a signal handler may not use: nothing here panics, locks, allocates or
    // sets a message.
    matches!((token(a, "a"), token(b, "b")), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_in_the_header_is_that_of_the_core() {
        assert_eq!(HANDOFF_RAW_TOKEN_LEN, Token::LEN);
    }
}
