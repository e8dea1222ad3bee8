//! Tokens: 16 bytes each, from the operating system's random source.
//!
//! How a token travels, and who may know it, is for the callers. In the raw layer a
//! [store](crate::raw::store) says which tokens may still be presented; on a channel each belongs
//! to one slot of the claim table.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::hint::black_box;
use std::io;

use crate::kind::ErrorKind;
use crate::sys::process;
use crate::sys::{self, errno::Said};

/// A one-time token of 128 bits. Comparison takes the same time for all values, and `Debug` does
/// not show them.
// Aligned so that it is moved, compared and hashed as a whole, not in parts.
#[derive(Clone, Copy)]
#[repr(align(16))]
pub struct Token([u8; Token::LEN]);

impl Token {
    /// Bytes in a token, and in a message of the raw layer.
    pub const LEN: usize = 16;

    /// What stands where there is no token.
    pub(crate) const NONE: Token = Token([0; Token::LEN]);

    /// Makes a token from the operating system's random source, getentropy(3).
    pub fn generate() -> Result<Token, TokenError> {
        let mut bytes = [0; Token::LEN];
        sys::random(&mut bytes).map_err(TokenError::Random)?;
        Ok(Token(bytes))
    }

    /// A token learned elsewhere.
    pub const fn from_bytes(bytes: [u8; Token::LEN]) -> Token {
        Token(bytes)
    }

    /// The bytes, to be sent to whoever is to present them.
    pub const fn as_bytes(&self) -> &[u8; Token::LEN] {
        &self.0
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Token) -> bool {
        // black_box keeps the compiler from comparing in parts and leaving at the first difference.
        black_box(u128::from_ne_bytes(self.0) ^ u128::from_ne_bytes(other.0)) == 0
    }
}

impl Eq for Token {}

impl Hash for Token {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Not as an array, whose constant length would be hashed too.
        state.write_u128(u128::from_ne_bytes(self.0));
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

/// Random tokens, fetched several at a time to save system calls. A child of fork(2) throws away
/// what its parent fetched, so no two processes ever give the same token.
pub(crate) struct RandomTokens {
    bytes: [u8; sys::MOST_RANDOM],
    used: usize,
    /// The process that fetched them.
    process: u64,
}

impl RandomTokens {
    pub(crate) fn new() -> RandomTokens {
        RandomTokens { bytes: [0; sys::MOST_RANDOM], used: sys::MOST_RANDOM, process: 0 }
    }

    /// A token that nobody has seen; wiped here.
    pub(crate) fn generate(&mut self) -> Result<Token, TokenError> {
        let process = process::current();
        if self.used == sys::MOST_RANDOM || self.process != process {
            sys::random(&mut self.bytes).map_err(TokenError::Random)?;
            (self.used, self.process) = (0, process);
        }
        let next = &mut self.bytes[self.used..self.used + Token::LEN];
        let mut token = [0; Token::LEN];
        token.swap_with_slice(next);
        self.used += Token::LEN;
        Ok(Token(token))
    }
}

impl fmt::Debug for RandomTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RandomTokens(redacted)")
    }
}

/// Why a token was not made, taken or accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The system has no randomness to give.
    #[error("the system has no randomness to give: {said}", said = Said(.0))]
    Random(#[source] io::Error),
    /// The token presented is not the one expected. Neither was consumed.
    #[error("the token presented is not the one expected")]
    Mismatch,
    /// The token's lifetime is over. It has left the store.
    #[error("the token has expired")]
    Expired,
    /// The store does not hold the token: never issued here, consumed, revoked or pruned.
    #[error("the token is not pending: unknown here, or consumed, revoked or expired before")]
    NotPending,
    /// The store holds the token already.
    #[error("the token is already pending")]
    AlreadyPending,
    /// Every token generated was pending already.
    #[error("{attempts} random tokens in a row were already pending")]
    Collision {
        /// How many were generated.
        attempts: u32,
    },
    /// The store is full.
    #[error("the token store is full: {capacity} tokens are pending")]
    Full {
        /// How many it may hold.
        capacity: usize,
    },
}

impl TokenError {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            TokenError::Random(_) => ErrorKind::Random,
            TokenError::Mismatch => ErrorKind::TokenMismatch,
            TokenError::Expired => ErrorKind::TokenExpired,
            TokenError::NotPending => ErrorKind::TokenNotPending,
            TokenError::AlreadyPending => ErrorKind::TokenAlreadyPending,
            TokenError::Collision { .. } => ErrorKind::TokenCollision,
            TokenError::Full { .. } => ErrorKind::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_tokens_differ_and_debug_shows_none_of_them() {
        let (a, b) = (Token::generate().unwrap(), Token::generate().unwrap());
        assert_ne!(a, b);
        assert_eq!(format!("{a:?}"), "Token(redacted)");
    }

    #[test]
    fn tokens_of_a_process_and_its_child_differ() {
        let mut random = RandomTokens::new();
        random.generate().unwrap();
        let mut child = RandomTokens { bytes: random.bytes, ..random };
        // What fork(2) does to the mark of the process.
        child.process += 1;
        assert_ne!(random.generate().unwrap(), child.generate().unwrap());
        let tokens = [(); 100].map(|()| random.generate().unwrap());
        for (index, token) in tokens.iter().enumerate() {
            assert!(!tokens[..index].contains(token));
        }
    }

    #[test]
    fn tokens_that_differ_in_any_one_bit_are_not_equal() {
        for bit in 0..128 {
            let mut bytes = [0; Token::LEN];
            bytes[bit / 8] = 1 << (bit % 8);
            assert_ne!(Token::from_bytes(bytes), Token::from_bytes([0; Token::LEN]));
        }
        let seven = || Token::from_bytes([7; Token::LEN]);
        assert_eq!(seven(), seven());
    }
}
