//! Receiving a message whose token a store must hold.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::address::TransportError;
use crate::kind::ErrorKind;
use crate::raw::store::TokenStore;
use crate::raw::transport;
use crate::token::{Token, TokenError};

/// Why a message was not received, or its token not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// The message was not received.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The token was not accepted.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl AdmitError {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            AdmitError::Transport(error) => error.kind(),
            AdmitError::Token(error) => error.kind(),
        }
    }
}

/// Receives one message and returns its descriptor only if the token is pending in `store` and,
/// where one is given, equal to `expected`. This consumes the token. On any error the descriptor is
/// closed.
pub fn receive_verified(
    socket: BorrowedFd<'_>,
    timeout: Option<Duration>,
    store: &TokenStore,
    expected: Option<&Token>,
) -> Result<(Token, OwnedFd), AdmitError> {
    let (token, descriptor) = transport::receive_arrived(socket, timeout)?;
    match expected {
        Some(expected) => store.consume(expected, &token)?,
        None => store.redeem(&token)?,
    }
    Ok((token, descriptor.accept()))
}
