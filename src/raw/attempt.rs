//! One attempt over the raw layer, from sending to verdict, for a broker that may block.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

#[cfg(doc)]
use crate::kind::ErrorKind;
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
}

/// Sends a connection and its token over a connected socket and waits for the acknowledgement for
/// at most `timeout`, or forever if there is none. An error is a misuse of the call, or of kind
/// [`ErrorKind::ReceiveFailed`]: the system does not let this process see who owns the connection, so
/// do not serve it. Anything else that goes wrong is in the verdict. The socket can be used for another attempt after `Adopted` and
/// after a rejection; in every other case close it.
pub fn attempt(
    socket: BorrowedFd<'_>,
    descriptor: BorrowedFd<'_>,
    token: &Token,
    timeout: Option<Duration>,
) -> Result<Verdict, AckError> {
    match transport::send(socket, descriptor, token) {
        Ok(()) => verdict(ack::wait(socket, token, timeout)),
        Err(error) => fallback(error.into(), false),
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
        Err(error) => return fallback(error.into(), false),
    };
    let answer = ack::wait(socket.as_fd(), token, timeout);
    verdict(answer.map_err(|error| error.over(path.into())))
}

fn verdict(answer: Result<Answer, AckError>) -> Result<Verdict, AckError> {
    match answer {
        Ok(Answer::Accepted) => Ok(Verdict::Adopted),
        Ok(Answer::Rejected(reason)) => {
            Ok(Verdict::Fallback { reason, cause: None, may_have_reached: true })
        }
        Err(error) => fallback(error, true),
    }
}

fn fallback(error: AckError, sent: bool) -> Result<Verdict, AckError> {
    let kind = error.kind();
    match kind.attempt_failure().filter(|_| kind.is_fallback_safe()) {
        None => Err(error),
        Some(failure) => Ok(Verdict::Fallback {
            reason: failure.reason(),
            cause: Some(error),
            may_have_reached: sent || kind.may_have_reached_backend(),
        }),
    }
}
