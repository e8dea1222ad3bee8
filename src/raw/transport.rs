//! One descriptor and its token, through one sendmsg(2) and one recvmsg(2).
//!
//! A message is exactly the 16 bytes of a token with one descriptor attached, so any program that
//! can call sendmsg(2) can take part. Sending never blocks, never raises SIGPIPE and never touches
//! the caller's descriptor; receiving takes a descriptor with close-on-exec set, or none at all.
//! Works on stream and on sequenced-packet sockets. What a token means is for [`crate::token`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use crate::address::{in_time, receive_error};
use crate::sys::{self, arrived::Arrived};
use crate::token::Token;

pub use crate::address::{Socket, TransportError, connect};

const SENDING: &str = "sending would block: the socket's buffer is full";

/// Sends one descriptor and its token over a connected socket, at once or not at all. The
/// caller's descriptor stays open and unchanged, and may be closed as soon as this returns.
pub fn send(
    socket: BorrowedFd<'_>,
    descriptor: BorrowedFd<'_>,
    token: &Token,
) -> Result<(), TransportError> {
    if socket.as_raw_fd() == descriptor.as_raw_fd() {
        return Err(TransportError::SocketOverItself { socket: socket.into() });
    }
    let sent = sys::send_with_descriptor(socket, token.as_bytes(), descriptor)
        .map_err(|source| send_error(socket, descriptor, source))?;
    if sent == Token::LEN {
        Ok(())
    } else {
        Err(TransportError::ShortWrite { socket: socket.into(), sent, len: Token::LEN })
    }
}

#[cold]
fn send_error(
    over: BorrowedFd<'_>,
    descriptor: BorrowedFd<'_>,
    source: io::Error,
) -> TransportError {
    let (socket, descriptor) = (over.into(), descriptor.as_raw_fd());
    match source.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS) => {
            TransportError::WouldBlock { socket, problem: SENDING, source }
        }
        _ if sys::socket::has_gone(&source) => {
            TransportError::BackendUnavailable { socket, source }
        }
        Some(libc::EACCES | libc::EPERM) => TransportError::PermissionDenied { socket, source },
        Some(libc::ETOOMANYREFS | libc::EMFILE | libc::ENFILE) => {
            TransportError::DescriptorPressure { socket, source }
        }
        // Of two descriptors: which is it?
        Some(libc::EBADF) if sys::is_open(over) => {
            TransportError::InvalidDescriptor { socket, descriptor, source }
        }
        Some(libc::EBADF | libc::ENOTSOCK | libc::EINVAL | libc::EOPNOTSUPP | libc::EISCONN) => {
            TransportError::InvalidSocket { socket, is: sys::socket::not_usable(over), source }
        }
        _ => TransportError::SendFailed { socket, descriptor: Some(descriptor), source },
    }
}

/// Sends a token alone: how a backend gives a broker one of its store, for the broker's next
/// message on this connection. At once or not at all.
pub fn send_token(socket: BorrowedFd<'_>, token: &Token) -> Result<(), TransportError> {
    match sys::send(socket, token.as_bytes()) {
        Ok(Token::LEN) => Ok(()),
        Ok(sent) => {
            Err(TransportError::ShortWrite { socket: socket.into(), sent, len: Token::LEN })
        }
        Err(source) => Err(bare_send_error(socket, source)),
    }
}

/// The error of a send without a descriptor.
pub(super) fn bare_send_error(socket: BorrowedFd<'_>, source: io::Error) -> TransportError {
    match source.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS) => {
            TransportError::WouldBlock { socket: socket.into(), problem: SENDING, source }
        }
        _ => match receive_error(socket, source) {
            TransportError::ReceiveFailed { socket, source } => {
                TransportError::SendFailed { socket, descriptor: None, source }
            }
            error => error,
        },
    }
}

/// Receives a token alone. Waits for at most `timeout`, or forever if there is none;
/// [`TransportError::TimedOut`] if nothing arrives. After any other error close the connection.
pub fn receive_token(
    socket: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> Result<Token, TransportError> {
    let mut bytes = [0; Token::LEN];
    let received = in_time(socket, timeout, |wait| sys::receive(socket, &mut bytes, wait))?;
    let socket = socket.into();
    match received.len {
        _ if received.payload_truncated => {
            Err(TransportError::WrongLength { socket, problem: "longer" })
        }
        Token::LEN => Ok(Token::from_bytes(bytes)),
        0 => Err(TransportError::EndOfStream { socket, source: None }),
        _ => Err(TransportError::WrongLength { socket, problem: "shorter" }),
    }
}

/// Connects to a handoff socket and sends one descriptor and its token. The connected socket that
/// comes back is where the acknowledgement will arrive.
pub fn send_path(
    path: &Path,
    descriptor: BorrowedFd<'_>,
    token: &Token,
) -> Result<OwnedFd, TransportError> {
    let socket = connect(path)?;
    send(socket.as_fd(), descriptor, token).map_err(|error| error.over(path.into()))?;
    Ok(socket)
}

/// Receives one message: its token, unchecked, and its descriptor, close-on-exec. Waits for at
/// most `timeout`, or forever if there is none; [`TransportError::TimedOut`] if nothing arrives. On
/// any error no descriptor stays open. After any other error close the socket: a stream may be out
/// of step.
pub fn receive(
    socket: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> Result<(Token, OwnedFd), TransportError> {
    let (token, descriptor) = receive_arrived(socket, timeout)?;
    Ok((token, descriptor.accept()))
}

/// [`receive`], of a descriptor that is still to be accepted.
pub(super) fn receive_arrived(
    socket: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> Result<(Token, Arrived), TransportError> {
    let mut bytes = [0; Token::LEN];
    let (received, descriptor) =
        in_time(socket, timeout, |wait| sys::receive_with_descriptor(socket, &mut bytes, wait))?;
    let at = || socket.into();
    let Some(descriptor) = descriptor else {
        return Err(match received {
            _ if received.control_truncated => TransportError::ControlTruncated { socket: at() },
            _ if received.len == 0 => TransportError::EndOfStream { socket: at(), source: None },
            _ => TransportError::NoDescriptor { socket: at() },
        });
    };
    // From here on `descriptor` closes itself on every error.
    if received.control_truncated {
        Err(TransportError::ControlTruncated { socket: at() })
    } else if received.descriptors > 1 {
        Err(TransportError::SurplusDescriptors { socket: at(), count: received.descriptors })
    } else if received.len < Token::LEN {
        Err(TransportError::WrongLength { socket: at(), problem: "shorter" })
    } else if received.payload_truncated {
        Err(TransportError::WrongLength { socket: at(), problem: "longer" })
    } else {
        Ok((Token::from_bytes(bytes), descriptor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::ErrorKind;
    use crate::raw::ack::{self, Ack, Answer};
    use std::net::UdpSocket;
    use std::os::unix::net::UnixStream;

    #[test]
    fn longest_timeout_is_waited_for() {
        let (socket, peer) = UnixStream::pair().unwrap();
        let token = Token::from_bytes([1; Token::LEN]);
        let sender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            send_token(peer.as_fd(), &token)
        });
        let received = receive_token(socket.as_fd(), Some(Duration::MAX));
        sender.join().unwrap().unwrap();
        assert!(received.is_ok_and(|received| received == token));
    }

    #[test]
    fn error_that_only_sending_can_give_is_not_reported_as_one_of_receiving() {
        // Not connected: EDESTADDRREQ.
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let token = Token::from_bytes([1; Token::LEN]);
        let sent = send_token(socket.as_fd(), &token).unwrap_err();
        assert_eq!(sent.kind(), ErrorKind::SendFailed, "{sent}");
        assert!(sent.to_string().contains(": cannot send: "), "{sent}");
        let sent = ack::send(socket.as_fd(), &Ack { token, answer: Answer::Accepted });
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::SendFailed);
        let sent = send(socket.as_fd(), std::io::stderr().as_fd(), &token).unwrap_err();
        assert!(sent.to_string().contains(": cannot send descriptor 2: "), "{sent}");
        let (socket, _peer) = UnixStream::pair().unwrap();
        let closed = io::Error::from_raw_os_error(libc::EBADF);
        let sent = send_error(socket.as_fd(), std::io::stderr().as_fd(), closed).to_string();
        assert!(sent.contains(": descriptor 2, which was to be sent, is not open"), "{sent}");
    }
}
