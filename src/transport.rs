//! One descriptor and its token, through one sendmsg(2) and one recvmsg(2).
//!
//! A message is exactly the 16 bytes of a token with one descriptor attached, so any program that
//! can call sendmsg(2) can take part. Sending never blocks, never raises SIGPIPE and never touches
//! the caller's descriptor; receiving takes a descriptor with close-on-exec set, or none at all.
//! Works on stream and on sequenced-packet sockets. What a token means is for [`crate::token`].

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::sys::{self, Address, AddressError};
use crate::token::{Token, TokenStore};

pub use crate::sys::SocketKind;

/// The socket that an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Socket {
    /// A path or, behind `@`, an abstract name.
    Path(PathBuf),
    /// A descriptor of this process.
    Descriptor(RawFd),
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Socket::Path(path) => write!(f, "socket {}", path.display()),
            Socket::Descriptor(fd) => write!(f, "socket {fd}"),
        }
    }
}

impl From<BorrowedFd<'_>> for Socket {
    fn from(socket: BorrowedFd<'_>) -> Socket {
        Socket::Descriptor(socket.as_raw_fd())
    }
}

impl From<&Path> for Socket {
    fn from(path: &Path) -> Socket {
        Socket::Path(path.to_owned())
    }
}

/// Why a message was not sent or not received.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The path cannot be a socket's address: empty, too long or with a NUL in it.
    #[error("{socket}: the path {problem}")]
    InvalidPath {
        /// Where the message was to go.
        socket: Socket,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A descriptor is not open, or not of the kind that the call needs.
    #[error("{socket}: not a usable descriptor: {source}")]
    InvalidDescriptor {
        /// The socket that was used.
        socket: Socket,
        /// The descriptor that was to be sent, if any.
        descriptor: Option<RawFd>,
        /// What the system said.
        source: io::Error,
    },
    /// A connection cannot be handed over itself.
    #[error("{socket}: the socket cannot be sent over itself")]
    SocketOverItself {
        /// The socket that was used.
        socket: Socket,
    },
    /// This system has no such sockets.
    #[error("{socket}: not supported on this platform")]
    Unsupported {
        /// The socket that was used.
        socket: Socket,
        /// What the system said, if it was the system that said so.
        source: Option<io::Error>,
    },
    /// The file's permissions or a security module refuse it.
    #[error("{socket}: permission denied: {source}")]
    PermissionDenied {
        /// The socket that was used.
        socket: Socket,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody listens there, or the peer has gone.
    #[error("{socket}: the backend is not available: {source}")]
    BackendUnavailable {
        /// The socket that was used.
        socket: Socket,
        /// What the system said.
        source: io::Error,
    },
    /// The socket's buffer or the listener's backlog is full, or nothing has arrived yet.
    #[error("{socket}: {action} would block")]
    WouldBlock {
        /// The socket that was used.
        socket: Socket,
        /// What was tried.
        action: &'static str,
        /// What the system said, if it was the system that said so.
        source: Option<io::Error>,
    },
    /// A limit on descriptors: open in this process, or in flight for this user.
    #[error("{socket}: out of descriptors: {source}")]
    DescriptorPressure {
        /// The socket that was used.
        socket: Socket,
        /// What the system said.
        source: io::Error,
    },
    /// The message was not sent, for a reason that has no name here.
    #[error("{socket}: cannot send descriptor {descriptor}: {source}")]
    SendFailed {
        /// The socket that was used.
        socket: Socket,
        /// The descriptor that was to be sent.
        descriptor: RawFd,
        /// What the system said.
        source: io::Error,
    },
    /// The system took a part of the message. The descriptor rode on its first byte and is sent.
    #[error("{socket}: only {sent} of {len} bytes were sent", len = Token::LEN)]
    ShortWrite {
        /// The socket that was used.
        socket: Socket,
        /// How many bytes were taken.
        sent: usize,
    },
    /// Receiving failed, for a reason that has no name here.
    #[error("{socket}: cannot receive: {source}")]
    ReceiveFailed {
        /// The socket that was used.
        socket: Socket,
        /// What the system said.
        source: io::Error,
    },
    /// The peer closed its end.
    #[error("{socket}: the peer closed the connection")]
    EndOfStream {
        /// The socket that was used.
        socket: Socket,
        /// What the system said, if it was the system that said so.
        source: Option<io::Error>,
    },
    /// A message without a descriptor, or not at the start of one.
    #[error("{socket}: the message brought no descriptor")]
    NoDescriptor {
        /// The socket that was used.
        socket: Socket,
    },
    /// More than one descriptor in a message. All are closed.
    #[error("{socket}: the message brought {count} descriptors instead of one")]
    SurplusDescriptors {
        /// The socket that was used.
        socket: Socket,
        /// How many arrived.
        count: usize,
    },
    /// The kernel could not install every descriptor that was sent: this process is at its limit,
    /// or a security module refused. Those that were installed are closed.
    #[error("{socket}: descriptors were lost on arrival: no room for them, or not permitted")]
    ControlTruncated {
        /// The socket that was used.
        socket: Socket,
    },
    /// A message of another length than a token's. Its descriptor is closed.
    #[error("{socket}: the message is {problem} than the {len} bytes of a token", len = Token::LEN)]
    WrongLength {
        /// The socket that was used.
        socket: Socket,
        /// "shorter" or "longer".
        problem: &'static str,
    },
}

/// Connects to a handoff socket, stream or sequenced-packet, whichever listens there; `@` begins
/// an abstract name. Never blocks: a full backlog is [`TransportError::WouldBlock`]. The socket
/// that comes back is non-blocking and close-on-exec.
pub fn connect(path: &Path) -> Result<OwnedFd, TransportError> {
    let address = address(path)?;
    let failed = |source| connect_error(path, source);
    let socket = sys::socket(SocketKind::Stream).map_err(failed)?;
    match sys::connect(&socket, &address) {
        // The kernel says EPROTOTYPE for a path that has a socket of the other kind, but looks
        // for abstract names only among the sockets of one kind (net/unix/af_unix.c).
        Err(error)
            if error.raw_os_error() == Some(libc::EPROTOTYPE)
                || error.raw_os_error() == Some(libc::ECONNREFUSED) && address.is_abstract() =>
        {
            let socket = sys::socket(SocketKind::SeqPacket).map_err(failed)?;
            sys::connect(&socket, &address).map_err(failed)?;
            Ok(socket)
        }
        result => result.map(|()| socket).map_err(failed),
    }
}

/// The address of a path, or what is wrong with it.
pub(crate) fn address(path: &Path) -> Result<Address, TransportError> {
    Address::new(path).map_err(|error| {
        let socket = path.into();
        let problem = match error {
            AddressError::AbstractUnsupported => {
                return TransportError::Unsupported { socket, source: None };
            }
            AddressError::Empty => "is empty",
            AddressError::TooLong => "is too long for a Unix socket",
            AddressError::HasNul => "has a NUL in it",
        };
        TransportError::InvalidPath { socket, problem }
    })
}

#[cold]
fn connect_error(path: &Path, source: io::Error) -> TransportError {
    let socket = path.into();
    match source.raw_os_error() {
        Some(libc::EAGAIN) => {
            TransportError::WouldBlock { socket, action: "connecting", source: Some(source) }
        }
        Some(libc::EACCES | libc::EPERM) => TransportError::PermissionDenied { socket, source },
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
            TransportError::DescriptorPressure { socket, source }
        }
        Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => {
            TransportError::Unsupported { socket, source: Some(source) }
        }
        // ENOENT, ENOTDIR, ECONNREFUSED (also for a file that is no socket) and their like.
        _ => TransportError::BackendUnavailable { socket, source },
    }
}

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
        Err(TransportError::ShortWrite { socket: socket.into(), sent })
    }
}

#[cold]
fn send_error(
    socket: BorrowedFd<'_>,
    descriptor: BorrowedFd<'_>,
    source: io::Error,
) -> TransportError {
    let (socket, descriptor) = (socket.into(), descriptor.as_raw_fd());
    match source.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS) => {
            TransportError::WouldBlock { socket, action: "sending", source: Some(source) }
        }
        Some(libc::EPIPE | libc::ECONNRESET | libc::ECONNREFUSED | libc::ENOTCONN) => {
            TransportError::BackendUnavailable { socket, source }
        }
        Some(libc::EACCES | libc::EPERM) => TransportError::PermissionDenied { socket, source },
        Some(libc::ETOOMANYREFS | libc::EMFILE | libc::ENFILE) => {
            TransportError::DescriptorPressure { socket, source }
        }
        Some(libc::EBADF | libc::ENOTSOCK | libc::EINVAL | libc::EOPNOTSUPP) => {
            TransportError::InvalidDescriptor { socket, descriptor: Some(descriptor), source }
        }
        _ => TransportError::SendFailed { socket, descriptor, source },
    }
}

/// Sends a token alone: how a backend gives a broker one of its store, for the broker's next
/// message on this connection. At once or not at all.
pub fn send_token(socket: BorrowedFd<'_>, token: &Token) -> Result<(), TransportError> {
    match sys::send(socket, token.as_bytes()) {
        Ok(Token::LEN) => Ok(()),
        Ok(sent) => Err(TransportError::ShortWrite { socket: socket.into(), sent }),
        Err(source) => Err(bare_send_error(socket, source)),
    }
}

/// The error of a send without a descriptor.
pub(crate) fn bare_send_error(socket: BorrowedFd<'_>, source: io::Error) -> TransportError {
    match source.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS) => TransportError::WouldBlock {
            socket: socket.into(),
            action: "sending",
            source: Some(source),
        },
        _ => receive_error(socket, source),
    }
}

/// Receives a token alone. Waits for at most `timeout`, or for ever if there is none. After an
/// error other than [`TransportError::WouldBlock`] the connection is to be closed.
pub fn receive_token(
    socket: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> Result<Token, TransportError> {
    let mut bytes = [0; Token::LEN];
    let len = in_time(socket, timeout, |wait| sys::receive(socket, &mut bytes, wait))?;
    let socket = socket.into();
    match len {
        Token::LEN => Ok(Token::from_bytes(bytes)),
        0 => Err(TransportError::EndOfStream { socket, source: None }),
        1..Token::LEN => Err(TransportError::WrongLength { socket, problem: "shorter" }),
        _ => Err(TransportError::WrongLength { socket, problem: "longer" }),
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
    send(socket.as_fd(), descriptor, token)?;
    Ok(socket)
}

/// Receives one message: its token, unchecked, and its descriptor, close-on-exec. Waits for at
/// most `timeout`, or for ever if there is none. On any error no descriptor stays open; after an
/// error other than [`TransportError::WouldBlock`] a stream may be out of step and is to be closed.
pub fn receive(
    socket: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> Result<(Token, OwnedFd), TransportError> {
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

/// Receives one message and hands its descriptor out only if the token is pending in `store` and,
/// where one is given, equal to `expected`. The token is consumed by that. On any error the
/// descriptor is closed.
pub fn receive_verified(
    socket: BorrowedFd<'_>,
    timeout: Option<Duration>,
    store: &TokenStore,
    expected: Option<&Token>,
) -> Result<(Token, OwnedFd), Error> {
    let (token, descriptor) = receive(socket, timeout)?;
    match expected {
        Some(expected) => store.consume(expected, &token)?,
        None => store.redeem(&token)?,
    }
    Ok((token, descriptor))
}

/// Runs `receive` (or an accept) once there is something to receive: at once if there is, else when poll(2) says
/// so. Its argument says whether a blocking socket may block, which saves the poll(2).
pub(crate) fn in_time<T>(
    socket: BorrowedFd<'_>,
    timeout: Option<Duration>,
    mut receive: impl FnMut(bool) -> io::Result<T>,
) -> Result<T, TransportError> {
    let wait = timeout.is_none();
    let mut deadline = None;
    loop {
        match receive(wait) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result.map_err(|source| receive_error(socket, source)),
        }
        if let Some(timeout) = timeout {
            let now = Instant::now();
            let end = *deadline.get_or_insert_with(|| now.checked_add(timeout).unwrap_or(now));
            if now >= end {
                return Err(TransportError::WouldBlock {
                    socket: socket.into(),
                    action: "receiving",
                    source: None,
                });
            }
        }
        sys::wait_readable(socket, deadline).map_err(|source| receive_error(socket, source))?;
    }
}

#[cold]
pub(crate) fn receive_error(socket: BorrowedFd<'_>, source: io::Error) -> TransportError {
    let socket = socket.into();
    match source.raw_os_error() {
        Some(libc::EAGAIN) => {
            TransportError::WouldBlock { socket, action: "receiving", source: Some(source) }
        }
        Some(libc::ECONNRESET | libc::EPIPE) => {
            TransportError::EndOfStream { socket, source: Some(source) }
        }
        Some(libc::EBADF | libc::ENOTSOCK | libc::EINVAL | libc::ENOTCONN | libc::EOPNOTSUPP) => {
            TransportError::InvalidDescriptor { socket, descriptor: None, source }
        }
        Some(libc::EMFILE | libc::ENFILE) => TransportError::DescriptorPressure { socket, source },
        _ => TransportError::ReceiveFailed { socket, source },
    }
}
