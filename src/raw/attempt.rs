//! One attempt over the raw layer, from sending to verdict, for a broker that may block.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use crate::address::TransportError;
use crate::raw::ack::{self, AckError, Answer};
use crate::raw::transport;
use crate::reason::Reason;
use crate::token::Token;

/// What became of an offer.
#[derive(Debug)]
pub enum Verdict {
    /// The backend owns the connection: close the copy, and never shut it down.
    Adopted,
    /// The connection is still the broker's to serve another way.
    Fallback {
        /// Why.
        reason: Reason,
        /// The error behind it; none when the backend rejected the connection.
        cause: Option<AckError>,
        /// Whether the descriptor may have reached the backend. A backend that serves only what
        /// it has acknowledged does not serve it.
        may_have_reached: bool,
    },
    /// The socket became unusable after the message was sent, as when another thread closes it. The
    /// backend may own the connection, so the broker must not serve it.
    Unknown {
        /// The error of the socket.
        cause: AckError,
    },
}

/// Sends a connection and its token over a connected socket and waits for the acknowledgement for
/// at most `timeout`, or forever if there is none. An error is a misuse of the call, and nothing
/// was sent; anything else that goes wrong is in the verdict. The socket can be used for another
/// attempt after `Adopted` and after a rejection; in every other case close it.
pub fn attempt(
    socket: BorrowedFd<'_>,
    descriptor: BorrowedFd<'_>,
    token: &Token,
    timeout: Option<Duration>,
) -> Result<Verdict, AckError> {
    match transport::send(socket, descriptor, token) {
        Ok(()) => Ok(after_sending(ack::wait(socket, token, timeout))),
        Err(error) => not_sent(error),
    }
}

/// The same over a connection of its own to a handoff socket.
pub fn attempt_path(
    path: &Path,
    descriptor: BorrowedFd<'_>,
    token: &Token,
    timeout: Option<Duration>,
) -> Result<Verdict, AckError> {
    let socket: OwnedFd = match transport::send_path(path, descriptor, token) {
        Ok(socket) => socket,
        Err(error) => return not_sent(error),
    };
    let answer = ack::wait(socket.as_fd(), token, timeout);
    Ok(after_sending(answer.map_err(|error| error.over(path.into()))))
}

fn not_sent(error: TransportError) -> Result<Verdict, AckError> {
    let kind = error.kind();
    match kind.attempt_reason() {
        None => Err(error.into()),
        Some(reason) => Ok(Verdict::Fallback {
            reason,
            cause: Some(error.into()),
            may_have_reached: kind.may_have_reached_backend(),
        }),
    }
}

fn after_sending(answer: Result<Answer, AckError>) -> Verdict {
    let may_have_reached = true;
    match answer {
        Ok(Answer::Accepted) => Verdict::Adopted,
        Ok(Answer::Rejected(reason)) => Verdict::Fallback { reason, cause: None, may_have_reached },
        Err(cause @ AckError::Unsettled { .. }) => Verdict::Unknown { cause },
        Err(cause) => {
            let reason = cause.kind().attempt_reason().unwrap_or(Reason::BackendUnavailable);
            Verdict::Fallback { reason, cause: Some(cause), may_have_reached }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::os::unix::net::UnixStream;

    #[test]
    fn socket_that_becomes_unusable_is_a_wrong_argument_only_before_the_message_is_sent() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let unusable = || TransportError::InvalidDescriptor {
            socket: socket.as_fd().into(),
            descriptor: 9,
            source: io::Error::from_raw_os_error(libc::EBADF),
        };
        assert!(not_sent(unusable()).is_err());
        let verdict = after_sending(Err(AckError::Unsettled { cause: unusable() }));
        assert!(matches!(verdict, Verdict::Unknown { .. }), "{verdict:?}");
        // Taken back although a call failed: certainly not adopted.
        let verdict = after_sending(Err(unusable().into()));
        assert!(matches!(verdict, Verdict::Fallback { .. }), "{verdict:?}");
    }
}
