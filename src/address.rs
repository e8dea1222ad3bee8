//! Unix sockets by path and by descriptor: connecting, waiting, and what can go wrong with either.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::kind::ErrorKind;
use crate::sys::address::{Address, AddressError};
use crate::sys::errno::Said;
use crate::sys::{self, socket::SocketKind};

/// Whether a path names a directory of handoff sockets: it ends in `/`, and is no abstract name.
pub(crate) fn is_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/") && !bytes.starts_with(b"@")
}

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
            Socket::Path(path) => write!(f, "socket {}", Shortened(path)),
            Socket::Descriptor(fd) => write!(f, "socket {fd}"),
        }
    }
}

/// How much a message shows of a path that is too long.
const SHOWN_LEN: usize = 64;

/// A path as a message shows it.
struct Shortened<'a>(&'a Path);

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.as_os_str().as_bytes();
        if bytes.len() <= Address::MAX_PATH {
            return self.0.display().fmt(f);
        }
        for chunk in bytes[..SHOWN_LEN].utf8_chunks() {
            f.write_str(chunk.valid())?;
        }
        f.write_str("...")
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

/// Names the descriptor that was to be sent, behind a word, in the middle of a message.
struct Sent(&'static str, Option<RawFd>);

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sent(word, descriptor) = self;
        descriptor.map_or(Ok(()), |descriptor| write!(f, "{word} descriptor {descriptor}"))
    }
}

/// Begins a message with the socket, unless it has an empty name.
struct Named<'a>(&'a Socket);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Socket::Path(path) if path.as_os_str().is_empty() => Ok(()),
            socket => write!(f, "{socket}: "),
        }
    }
}

/// Why a socket was not connected, or a message not sent or not received.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The path cannot be a socket's address: empty, too long or with a NUL in it.
    #[error("{}{problem}", Named(socket))]
    InvalidPath {
        /// Where the message was to go.
        socket: Socket,
        /// What is wrong with it.
        problem: PathProblem,
    },
    /// The socket is not open, or not of the kind that the call needs.
    #[error("{socket} is {is}: {said}", said = Said(source))]
    InvalidSocket {
        /// The socket that was used.
        socket: Socket,
        /// What it is.
        is: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The descriptor that was to be sent is not open.
    #[error("{socket}: descriptor {descriptor}, which was to be sent, is not open")]
    InvalidDescriptor {
        /// The socket that was used.
        socket: Socket,
        /// The descriptor.
        descriptor: RawFd,
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
    #[error("{socket}: this system has no such sockets: {said}", said = Said(source))]
    Unsupported {
        /// The socket that was used.
        socket: Socket,
        /// What the system said.
        source: io::Error,
    },
    /// The file's permissions or a security module refuse it.
    #[error("{socket}: no permission, see the socket's mode and owner: {said}", said = Said(source))]
    PermissionDenied {
        /// The socket that was used.
        socket: Socket,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody listens there, or the peer has gone.
    #[error("{socket}: the backend is not available: {said}", said = Said(source))]
    BackendUnavailable {
        /// The socket that was used.
        socket: Socket,
        /// What the system said.
        source: io::Error,
    },
    /// The socket's buffer or the listener's backlog is full.
    #[error("{socket}: {problem}")]
    WouldBlock {
        /// The socket that was used.
        socket: Socket,
        /// What would block, and why.
        problem: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing arrived in time.
    #[error("{socket}: nothing arrived in time")]
    TimedOut {
        /// The socket that was waited for.
        socket: Socket,
    },
    /// A limit on descriptors: open in this process, or in flight for this user.
    #[error("{socket}: {limit}: {said}", limit = ErrorKind::which_limit(source), said = Said(source))]
    DescriptorPressure {
        /// The socket that was used.
        socket: Socket,
        /// What the system said.
        source: io::Error,
    },
    /// The message was not sent, for a reason that has no name here.
    #[error("{socket}: cannot send{}: {said}", Sent("", *descriptor), said = Said(source))]
    SendFailed {
        /// The socket that was used.
        socket: Socket,
        /// The descriptor that was to be sent, if any.
        descriptor: Option<RawFd>,
        /// What the system said.
        source: io::Error,
    },
    /// The system took a part of the message. A descriptor rides on the first byte, so it is sent.
    #[error("{socket}: only {sent} of {len} bytes were sent: close the socket")]
    ShortWrite {
        /// The socket that was used.
        socket: Socket,
        /// How many bytes were taken.
        sent: usize,
        /// How many there were.
        len: usize,
    },
    /// Receiving failed, for a reason that has no name here.
    #[error("{socket}: cannot receive: {said}", said = Said(source))]
    ReceiveFailed {
        /// The socket that was used.
        socket: Socket,
        /// What the system said.
        source: io::Error,
    },
    /// The peer closed its end.
    #[error("{socket}: the other end closed the connection")]
    EndOfStream {
        /// The socket that was used.
        socket: Socket,
        /// What the system said, if it was the system that said so.
        source: Option<io::Error>,
    },
    /// A message without a descriptor, or not at the start of one.
    #[error("{socket}: the message has no descriptor")]
    NoDescriptor {
        /// The socket that was used.
        socket: Socket,
    },
    /// More than one descriptor in a message. All are closed.
    #[error("{socket}: the message has {count} descriptors instead of one")]
    SurplusDescriptors {
        /// The socket that was used.
        socket: Socket,
        /// How many arrived.
        count: usize,
    },
    /// The kernel could not install every descriptor that was sent: this process is at its limit,
    /// or a security module refused. Those that were installed are closed.
    #[error(
        "{socket}: descriptors were lost on arrival: this process is at its RLIMIT_NOFILE, or a \
         security module refused"
    )]
    ControlTruncated {
        /// The socket that was used.
        socket: Socket,
    },
    /// A message of another length than a token's. Its descriptor is closed.
    #[error("{socket}: the message is {problem} than the 16 bytes of a token")]
    WrongLength {
        /// The socket that was used.
        socket: Socket,
        /// "shorter" or "longer".
        problem: &'static str,
    },
}

/// What is wrong with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// It has nothing in it, or nothing behind `@`.
    #[error("the path is empty, or has nothing behind @")]
    Empty,
    /// It has too many bytes.
    #[error(
        "the path has {len} bytes, and a Unix socket's has {most} at the most",
        most = Address::MAX_PATH
    )]
    TooLong {
        /// How many it has.
        len: usize,
    },
    /// It has a NUL in it.
    #[error("the path has a NUL in it")]
    HasNul,
}

impl TransportError {
    /// The same error over a socket that has another name for the caller: by its path, say.
    pub(crate) fn over(mut self, named: Socket) -> TransportError {
        match &mut self {
            TransportError::InvalidPath { socket, .. }
            | TransportError::InvalidSocket { socket, .. }
            | TransportError::InvalidDescriptor { socket, .. }
            | TransportError::SocketOverItself { socket }
            | TransportError::Unsupported { socket, .. }
            | TransportError::PermissionDenied { socket, .. }
            | TransportError::BackendUnavailable { socket, .. }
            | TransportError::WouldBlock { socket, .. }
            | TransportError::TimedOut { socket }
            | TransportError::DescriptorPressure { socket, .. }
            | TransportError::SendFailed { socket, .. }
            | TransportError::ShortWrite { socket, .. }
            | TransportError::ReceiveFailed { socket, .. }
            | TransportError::EndOfStream { socket, .. }
            | TransportError::NoDescriptor { socket }
            | TransportError::SurplusDescriptors { socket, .. }
            | TransportError::ControlTruncated { socket }
            | TransportError::WrongLength { socket, .. } => *socket = named,
        }
        self
    }

    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            TransportError::InvalidPath { .. }
            | TransportError::InvalidSocket { .. }
            | TransportError::InvalidDescriptor { .. }
            | TransportError::SocketOverItself { .. } => ErrorKind::InvalidArgument,
            TransportError::Unsupported { .. } => ErrorKind::Unsupported,
            TransportError::PermissionDenied { .. } => ErrorKind::PermissionDenied,
            TransportError::BackendUnavailable { .. } => ErrorKind::BackendUnavailable,
            TransportError::WouldBlock { .. } => ErrorKind::WouldBlock,
            TransportError::TimedOut { .. } => ErrorKind::TimedOut,
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
}

/// Connects to a handoff socket, stream or sequenced-packet, whichever listens there; `@` begins
/// an abstract name. Never blocks: a full backlog is [`TransportError::WouldBlock`]. The socket
/// that comes back is non-blocking and close-on-exec.
pub fn connect(path: &Path) -> Result<OwnedFd, TransportError> {
    let address = address(path)?;
    let failed = |source| connect_error(path, source);
    let socket = sys::socket::new(SocketKind::Stream).map_err(failed)?;
    match sys::address::connect(&socket, &address) {
        // The kernel says EPROTOTYPE for a path that has a socket of the other kind, but looks
        // for abstract names only among the sockets of one kind (net/unix/af_unix.c).
        Err(error)
            if error.raw_os_error() == Some(libc::EPROTOTYPE)
                || error.raw_os_error() == Some(libc::ECONNREFUSED) && address.is_abstract() =>
        {
            let socket = sys::socket::new(SocketKind::SeqPacket).map_err(failed)?;
            sys::address::connect(&socket, &address).map_err(failed)?;
            Ok(socket)
        }
        result => result.map(|()| socket).map_err(failed),
    }
}

/// The address of a path, or what is wrong with it.
pub(crate) fn address(path: &Path) -> Result<Address, TransportError> {
    Address::new(path).map_err(|error| {
        let problem = match error {
            AddressError::Empty => PathProblem::Empty,
            AddressError::TooLong => PathProblem::TooLong { len: path.as_os_str().len() },
            AddressError::HasNul => PathProblem::HasNul,
        };
        TransportError::InvalidPath { socket: path.into(), problem }
    })
}

#[cold]
fn connect_error(path: &Path, source: io::Error) -> TransportError {
    let socket = path.into();
    match connect_kind(&source) {
        ErrorKind::WouldBlock => {
            let problem = "connecting would block: the listener's backlog is full";
            TransportError::WouldBlock { socket, problem, source }
        }
        ErrorKind::PermissionDenied => TransportError::PermissionDenied { socket, source },
        ErrorKind::DescriptorPressure => TransportError::DescriptorPressure { socket, source },
        ErrorKind::Unsupported => TransportError::Unsupported { socket, source },
        _ => TransportError::BackendUnavailable { socket, source },
    }
}

/// The kind of an error of connecting to a handoff socket, or of the first message over it.
pub(crate) fn connect_kind(error: &io::Error) -> ErrorKind {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => ErrorKind::WouldBlock,
        Some(libc::EACCES | libc::EPERM) => ErrorKind::PermissionDenied,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::ETOOMANYREFS) => {
            ErrorKind::DescriptorPressure
        }
        Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => ErrorKind::Unsupported,
        // ENOENT, ENOTDIR, ECONNREFUSED (also for a file that is no socket) and their like.
        _ => ErrorKind::BackendUnavailable,
    }
}

/// Runs `receive`, which may be an accept, until it does not say EAGAIN; between two tries it waits
/// with poll(2). The argument of `receive` says whether a blocking socket may block: then there is
/// no need for poll(2).
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
            // What is too far away to be a time is never.
            deadline = deadline.or_else(|| now.checked_add(timeout));
            if deadline.is_some_and(|end| now >= end) {
                return Err(TransportError::TimedOut { socket: socket.into() });
            }
        }
        sys::wait_readable(socket, deadline).map_err(|source| receive_error(socket, source))?;
    }
}

/// The error of a receive or an accept.
#[cold]
pub(crate) fn receive_error(descriptor: BorrowedFd<'_>, source: io::Error) -> TransportError {
    let socket = descriptor.into();
    match source.raw_os_error() {
        Some(libc::EAGAIN) => {
            TransportError::WouldBlock { socket, problem: "receiving would block", source }
        }
        Some(libc::ECONNRESET | libc::EPIPE) => {
            TransportError::EndOfStream { socket, source: Some(source) }
        }
        // EISCONN is what a TCP socket says to a token, see `sys::send`.
        Some(
            libc::EBADF
            | libc::ENOTSOCK
            | libc::EINVAL
            | libc::ENOTCONN
            | libc::EOPNOTSUPP
            | libc::EISCONN,
        ) => TransportError::InvalidSocket {
            socket,
            is: sys::socket::not_usable(descriptor),
            source,
        },
        Some(libc::EMFILE | libc::ENFILE) => TransportError::DescriptorPressure { socket, source },
        _ => TransportError::ReceiveFailed { socket, source },
    }
}
