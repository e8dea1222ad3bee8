//! Any error of this crate: the roof over the modules' own errors, which say what happened and of
//! which kind it is.

use std::error::Error as StdError;
use std::io;

use crate::address::TransportError;
use crate::backend::BackendError;
use crate::broker::BrokerError;
use crate::listener::ListenerError;
use crate::memory::NoMemory;
use crate::peer::PeerError;
use crate::raw::ack::AckError;
use crate::raw::admit::AdmitError;
use crate::raw::pending::PendingError;
use crate::support::SupportError;
use crate::tls::TlsError;
use crate::token::TokenError;

pub use crate::kind::ErrorKind;

/// Any error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system lacks something.
    #[error(transparent)]
    Support(#[from] SupportError),
    /// There is no memory.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// A token was not made, taken or accepted.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A message was not sent or not received.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A message was not received, or its token not accepted.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// An acknowledgement was not sent or not received.
    #[error(transparent)]
    Ack(#[from] AckError),
    /// A pending acknowledgement was not registered, or not taken.
    #[error(transparent)]
    Pending(#[from] PendingError),
    /// A peer's credentials are unknown or not allowed.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// A handoff socket was not made, or accepted no connection.
    #[error(transparent)]
    Listener(#[from] ListenerError),
    /// A connection with TLS brought no data, or took none.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A call of a broker failed.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A call of a backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Error {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Support(error) => error.kind(),
            Error::Memory(error) => error.kind(),
            Error::Token(error) => error.kind(),
            Error::Transport(error) => error.kind(),
            Error::Admit(error) => error.kind(),
            Error::Ack(error) => error.kind(),
            Error::Pending(error) => error.kind(),
            Error::Peer(error) => error.kind(),
            Error::Listener(error) => error.kind(),
            Error::Tls(error) => error.kind(),
            Error::Broker(error) => error.kind(),
            Error::Backend(error) => error.kind(),
        }
    }

    /// The operating system's error number, if the system had a part in this: that of the source,
    /// wherever a module's error has one. For a backend that turns a broker away, the number that
    /// says why.
    pub fn os_error(&self) -> Option<i32> {
        let mut cause = self.source();
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return error.raw_os_error();
            }
            cause = error.source();
        }
        match self {
            Error::Broker(error) => error.number(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn system(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[test]
    fn errors_of_the_system_are_found_however_deep_they_lie() {
        let path = Path::new("/nowhere");
        let refused = || TransportError::BackendUnavailable {
            socket: path.into(),
            source: system(libc::ECONNREFUSED),
        };
        let errors: [Error; 6] = [
            refused().into(),
            AckError::from(refused()).into(),
            AdmitError::from(refused()).into(),
            ListenerError::from(refused()).into(),
            BrokerError::Address(refused()).into(),
            BackendError::from(ListenerError::from(refused())).into(),
        ];
        for error in errors {
            assert_eq!(error.os_error(), Some(libc::ECONNREFUSED), "{error:?}");
            assert_eq!(error.kind(), ErrorKind::BackendUnavailable, "{error:?}");
        }
        assert_eq!(Error::from(TokenError::Random(system(libc::ENOSYS))).os_error(), Some(38));
        let cause =
            TransportError::ReceiveFailed { socket: path.into(), source: system(libc::ENOMEM) };
        assert_eq!(Error::from(AckError::Unsettled { cause }).os_error(), Some(libc::ENOMEM));
        let closed = TransportError::EndOfStream { socket: path.into(), source: None };
        assert_eq!(Error::from(closed).os_error(), None);
        assert_eq!(Error::from(TokenError::NotPending).os_error(), None);
    }
}
