//! What every error has in common: its kind, the operating system's part in it, and what it means
//! for the client. The modules' own errors say the rest.

use std::io;

use crate::ack::AckError;
use crate::backend::BackendError;
use crate::broker::BrokerError;
use crate::listener::ListenerError;
use crate::peer::PeerError;
use crate::token::TokenError;
use crate::transport::TransportError;

/// Any error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A token was not made, taken or accepted.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A message was not sent or not received.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// An acknowledgement was not sent, not received or not in order.
    #[error(transparent)]
    Ack(#[from] AckError),
    /// A peer's credentials are unknown or not allowed.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// A handoff socket was not made.
    #[error(transparent)]
    Listener(#[from] ListenerError),
    /// A broker did nothing.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A backend did nothing.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// The kinds of error, one for each thing that a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the C constants of the same names document them")]
pub enum ErrorKind {
    InvalidArgument = 1,
    Unsupported = 2,
    PermissionDenied = 3,
    BackendUnavailable = 4,
    WouldBlock = 5,
    DescriptorPressure = 6,
    SendFailed = 7,
    ShortWrite = 8,
    AckTimeout = 9,
    AckMismatch = 10,
    AckMalformed = 11,
    ReceiveFailed = 12,
    EndOfStream = 13,
    NoDescriptor = 14,
    SurplusDescriptors = 15,
    ControlTruncated = 16,
    WrongLength = 17,
    TokenMismatch = 18,
    TokenExpired = 19,
    TokenNotPending = 20,
    TokenAlreadyPending = 21,
    TokenCollision = 22,
    Full = 23,
    Random = 24,
    PeerUnknown = 25,
    PeerNotAllowed = 26,
    AddressInUse = 27,
    NotASocket = 28,
    ListenFailed = 29,
    Internal = 30,
    RateLimited = 32,
    TooLarge = 33,
    WrongProcess = 34,
    Closed = 35,
    Revoked = 36,
    TooLate = 37,
    System = 38,
}

impl ErrorKind {
    /// Whether a broker may hide this behind a fallback. A misuse of the library is not hidden.
    pub fn is_fallback_safe(self) -> bool {
        self.attempt_failure().is_some()
    }

    /// Whether the descriptor may have reached the backend when a broker's attempt ends so.
    pub fn may_have_reached_backend(self) -> bool {
        matches!(
            self,
            ErrorKind::ShortWrite
                | ErrorKind::AckTimeout
                | ErrorKind::AckMismatch
                | ErrorKind::AckMalformed
                | ErrorKind::EndOfStream
                | ErrorKind::ReceiveFailed
                | ErrorKind::Internal
        )
    }
}

impl Error {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Token(error) => match error {
                TokenError::Random(_) => ErrorKind::Random,
                TokenError::Mismatch => ErrorKind::TokenMismatch,
                TokenError::Expired => ErrorKind::TokenExpired,
                TokenError::NotPending => ErrorKind::TokenNotPending,
                TokenError::AlreadyPending => ErrorKind::TokenAlreadyPending,
                TokenError::Collision { .. } => ErrorKind::TokenCollision,
                TokenError::Full { .. } => ErrorKind::Full,
            },
            Error::Transport(error) => transport_kind(error),
            Error::Ack(error) => match error {
                AckError::Transport(error) => transport_kind(error),
                AckError::Timeout { .. } | AckError::Expired => ErrorKind::AckTimeout,
                AckError::OtherToken { .. } => ErrorKind::AckMismatch,
                AckError::Malformed { .. } => ErrorKind::AckMalformed,
                AckError::NotPending => ErrorKind::TokenNotPending,
                AckError::AlreadyPending => ErrorKind::TokenAlreadyPending,
                AckError::Full { .. } => ErrorKind::Full,
            },
            Error::Peer(error) => match error {
                PeerError::Unknown { .. } => ErrorKind::PeerUnknown,
                PeerError::InvalidDescriptor { .. } => ErrorKind::InvalidArgument,
                PeerError::NotAllowed { .. } => ErrorKind::PeerNotAllowed,
            },
            Error::Listener(error) => listener_kind(error),
            Error::Broker(error) => match error {
                BrokerError::Address(error) => transport_kind(error),
                BrokerError::WrongProcess => ErrorKind::WrongProcess,
                BrokerError::Closed { .. } => ErrorKind::Closed,
                BrokerError::NotASocket { .. } => ErrorKind::InvalidArgument,
                BrokerError::TooLarge { .. } => ErrorKind::TooLarge,
                BrokerError::Unavailable { .. } => ErrorKind::BackendUnavailable,
                BrokerError::RateLimited { .. } => ErrorKind::RateLimited,
                BrokerError::Full { .. } => ErrorKind::Full,
                BrokerError::TooLate { .. } => ErrorKind::TooLate,
                BrokerError::System { source, .. } => system_kind(source),
            },
            Error::Backend(error) => match error {
                BackendError::Listener(error) => listener_kind(error),
                BackendError::NotAListener { .. } | BackendError::Unknown { .. } => {
                    ErrorKind::InvalidArgument
                }
                BackendError::WrongProcess => ErrorKind::WrongProcess,
                BackendError::Revoked { .. } => ErrorKind::Revoked,
                BackendError::Timeout => ErrorKind::WouldBlock,
                BackendError::System { source, .. } => system_kind(source),
            },
        }
    }

    /// The operating system's error number, if the system had a part in this.
    pub fn os_error(&self) -> Option<i32> {
        let source = match self {
            Error::Token(TokenError::Random(source)) => source,
            Error::Transport(error)
            | Error::Ack(AckError::Transport(error))
            | Error::Broker(BrokerError::Address(error)) => transport_source(error)?,
            Error::Peer(
                PeerError::Unknown { source, .. } | PeerError::InvalidDescriptor { source, .. },
            ) => source,
            Error::Listener(error) | Error::Backend(BackendError::Listener(error)) => {
                listener_source(error)?
            }
            Error::Broker(
                BrokerError::NotASocket { source, .. }
                | BrokerError::Unavailable { source, .. }
                | BrokerError::System { source, .. },
            )
            | Error::Backend(BackendError::System { source, .. }) => source,
            _ => return None,
        };
        source.raw_os_error()
    }
}

fn transport_source(error: &TransportError) -> Option<&io::Error> {
    match error {
        TransportError::InvalidDescriptor { source, .. }
        | TransportError::PermissionDenied { source, .. }
        | TransportError::BackendUnavailable { source, .. }
        | TransportError::DescriptorPressure { source, .. }
        | TransportError::SendFailed { source, .. }
        | TransportError::ReceiveFailed { source, .. } => Some(source),
        TransportError::Unsupported { source, .. }
        | TransportError::WouldBlock { source, .. }
        | TransportError::EndOfStream { source, .. } => source.as_ref(),
        _ => None,
    }
}

fn listener_kind(error: &ListenerError) -> ErrorKind {
    match error {
        ListenerError::Address(error) => transport_kind(error),
        ListenerError::InvalidMode { .. } => ErrorKind::InvalidArgument,
        ListenerError::PermissionDenied { .. } => ErrorKind::PermissionDenied,
        ListenerError::InUse { .. } => ErrorKind::AddressInUse,
        ListenerError::NotASocket { .. } => ErrorKind::NotASocket,
        ListenerError::Busy { .. } => ErrorKind::WouldBlock,
        ListenerError::DescriptorPressure { .. } => ErrorKind::DescriptorPressure,
        ListenerError::Failed { .. } => ErrorKind::ListenFailed,
    }
}

fn listener_source(error: &ListenerError) -> Option<&io::Error> {
    match error {
        ListenerError::Address(error) => transport_source(error),
        ListenerError::PermissionDenied { source, .. }
        | ListenerError::DescriptorPressure { source, .. }
        | ListenerError::Failed { source, .. } => Some(source),
        _ => None,
    }
}

fn system_kind(source: &io::Error) -> ErrorKind {
    match source.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => ErrorKind::DescriptorPressure,
        _ => ErrorKind::System,
    }
}

fn transport_kind(error: &TransportError) -> ErrorKind {
    match error {
        TransportError::InvalidPath { .. }
        | TransportError::InvalidDescriptor { .. }
        | TransportError::SocketOverItself { .. } => ErrorKind::InvalidArgument,
        TransportError::Unsupported { .. } => ErrorKind::Unsupported,
        TransportError::PermissionDenied { .. } => ErrorKind::PermissionDenied,
        TransportError::BackendUnavailable { .. } => ErrorKind::BackendUnavailable,
        TransportError::WouldBlock { .. } => ErrorKind::WouldBlock,
        TransportError::DescriptorPressure { .. } => ErrorKind::DescriptorPressure,
        TransportError::SendFailed { .. } => ErrorKind::SendFailed,
        TransportError::ShortWrite { .. } => ErrorKind::ShortWrite,
        TransportError::ReceiveFailed { .. } => ErrorKind::ReceiveFailed,
        TransportError::EndOfStream { .. } => ErrorKind::EndOfStream,
        TransportError::NoDescriptor { .. } => ErrorKind::NoDescriptor,
        TransportError::SurplusDescriptors { .. } => ErrorKind::SurplusDescriptors,
        TransportError::ControlTruncated { .. } => ErrorKind::ControlTruncated,
        TransportError::WrongLength { .. } => ErrorKind::WrongLength,
    }
}
