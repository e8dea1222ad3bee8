//! What can go wrong with a broker.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::directory::MOST_ENTRIES;
use super::{Allowed, MAX_BACKENDS};
use crate::address::{self, TransportError, is_directory};
use crate::handle::HandleError;
use crate::kind::ErrorKind;
use crate::memory::NoMemory;
use crate::support::SupportError;
use crate::sys;
use crate::sys::errno::Said;
use crate::tls::TlsError;
use crate::wire::Refusal;

/// Why a call of a [`Broker`](super::Broker) did nothing.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The path cannot be a socket's address.
    #[error(transparent)]
    Address(TransportError),
    /// Two options contradict each other.
    #[error("these options contradict each other: {problem}")]
    InvalidOptions {
        /// Which, and their values.
        problem: String,
    },
    /// The handle was opened in another process.
    #[error("this broker belongs to another process, which used it first: make one after fork()")]
    WrongProcess,
    /// The handle is closed.
    #[error("{path}the broker is closed", path = Prefix(path))]
    Closed {
        /// The handoff socket, or empty.
        path: Arc<Path>,
    },
    /// The descriptor is not a socket.
    #[error("descriptor {descriptor} is {is}{why}", why = OnlySockets(source))]
    NotASocket {
        /// The descriptor.
        descriptor: RawFd,
        /// What it is.
        is: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The offer has more bytes than the backend takes, or a name is too long.
    #[error("the offer has {len} bytes in {what}, and at most {most} are allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The bytes that it has.
        len: usize,
        /// The bytes that it may have.
        most: usize,
    },
    /// The service's name or the correlation id has a NUL in it, which ends it for a C program.
    #[error("the offer's service or correlation id has a NUL in it")]
    NameWithNul,
    /// The kernel does not do the connection's TLS, although the offer says so.
    #[error(
        "descriptor {descriptor} cannot be offered as TLS: {source}; it takes the kernel's module tls, \
        and a TLS library that uses it, see HANDOFF_OFFER_TLS"
    )]
    WithoutTls {
        /// The descriptor.
        descriptor: RawFd,
        /// What is missing.
        #[source]
        source: TlsError,
    },
    /// The backend's library does not know offers of connections with TLS.
    #[error("{path}: the backend does not know offers with TLS: its libhandoff is older",
        path = .path.display())]
    BackendWithoutTls {
        /// The handoff socket.
        path: Arc<Path>,
    },
    /// There is no channel to the backend now, or it is draining.
    #[error("{path}: no channel to the backend now{why}", path = .path.display(),
        why = WhyUnavailable(source))]
    Unavailable {
        /// The handoff socket.
        path: Arc<Path>,
        /// Why: what the system said to the last attempt to connect, ECONNRESET after the end of
        /// a channel, ENOTCONN before a backend has said welcome, ESHUTDOWN while it drains.
        source: io::Error,
    },
    /// The backend is switched off, or is to be removed.
    #[error("{path}: this backend {what}", path = .path.display(),
        what = if *.removed { "was removed" } else { "is switched off" })]
    Off {
        /// The handoff socket.
        path: Arc<Path>,
        /// It was removed, or its socket from the directory.
        removed: bool,
    },
    /// The broker has no backend yet, or none in its directory.
    #[error("{path}no backend to offer to{why}", path = Prefix(path), why = WhyNone(path, source))]
    NoBackend {
        /// What the broker was made with.
        path: Arc<Path>,
        /// What the system said about the directory, if it did.
        source: Option<io::Error>,
    },
    /// None of several backends takes the offer: why the one does not that is most likely to take
    /// one soon.
    #[error("none of {count} backends takes the offer; {first}")]
    AllRefused {
        /// How many there are.
        count: usize,
        /// The error of that one.
        #[source]
        first: Box<BrokerError>,
    },
    /// The broker has as many backends as it can have.
    #[error("the broker has {most} backends already")]
    TooManyBackends {
        /// How many it can have.
        most: usize,
    },
    /// There are more sockets in a directory than the broker can have backends, or more names than
    /// it reads.
    #[error("{path}: {NOT_ALL}", path = .path.display())]
    TooManySockets {
        /// The directory.
        path: Arc<Path>,
    },
    /// A socket in a directory is left out: no address can have its path.
    #[error("{path}: {LONG_PATH}", path = .path.display())]
    LongPath {
        /// The path.
        path: Arc<Path>,
    },
    /// The backend turned this broker away, and said why.
    #[error("{path}: {refusal}", path = .path.display())]
    TurnedAway {
        /// The handoff socket.
        path: Arc<Path>,
        /// Why.
        refusal: Refusal,
    },
    /// Whoever listens at the path accepts connections, but does not behave as a backend that works.
    #[error("{path}: whoever listens there {did}", path = .path.display())]
    NoWelcome {
        /// The handoff socket.
        path: Arc<Path>,
        /// What it did instead of saying welcome.
        did: NoWelcome,
    },
    /// The process that listens at the path may not be the backend. Nothing was sent to it.
    #[error("{path}: the user who listens there, {user}, {note}may not be the backend: {allowed}",
        path = .path.display(),
        note = if *.nameless { "has no number in this user namespace and " } else { "" })]
    NotAllowed {
        /// The handoff socket.
        path: Arc<Path>,
        /// The user that was seen.
        user: u32,
        /// The number stands for all users that have none in this user namespace.
        nameless: bool,
        /// Who may be the backend.
        allowed: Allowed,
    },
    /// The system does not tell who listens at the path. Nothing was sent there.
    #[error("{path}: cannot tell who listens there: {said}",
        path = .path.display(), said = Said(source))]
    Unknown {
        /// The handoff socket.
        path: Arc<Path>,
        /// What the system said.
        source: io::Error,
    },
    /// The backend rests, because it failed.
    #[error("{path}: the backend {rests}", path = .path.display(), rests = Rests(*.left))]
    RateLimited {
        /// The handoff socket.
        path: Arc<Path>,
        /// For how long; none: until it answers, because it has no place for another offer.
        left: Option<Duration>,
    },
    /// A limit is reached.
    #[error("{path}{limit}", path = Prefix(path))]
    Full {
        /// The handoff socket; if the limit is the broker's, what that was made with, or empty.
        path: Arc<Path>,
        /// Which.
        limit: Limit,
    },
    /// The offer cannot be taken back: it was adopted, or has its verdict already.
    #[error("offer {id} is not in flight: it was adopted, has its verdict or is unknown")]
    TooLate {
        /// The offer.
        id: u64,
    },
    /// The system does not have what a channel needs, or refuses it.
    #[error(transparent)]
    Support(#[from] SupportError),
    /// There is no memory for what the options ask for.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// A waker ended the wait, and the offer was taken back.
    #[error("the wait was ended, and the offer taken back")]
    Woken,
    /// The system refused what every broker needs.
    #[error("cannot {action}: {said}", said = Said(source))]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a backend rests, and how long still, as the end of a sentence.
struct Rests(Option<Duration>);

impl fmt::Display for Rests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(left) = self.0 else {
            // It may have failed only once.
            return f.write_str(
                "has no place for an offer until it answers earlier ones, also those that timed out",
            );
        };
        f.write_str("failed too often and ")?;
        if left.is_zero() {
            return f.write_str("the next offer is its trial");
        }
        // Whole seconds, so that who logs what is new logs little.
        write!(f, "is not tried for {} s", left.as_millis().div_ceil(1000).max(1))
    }
}

/// A path and a colon, if there is one.
struct Prefix<'a>(&'a Path);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.as_os_str().is_empty() { Ok(()) } else { write!(f, "{}: ", self.0.display()) }
    }
}

/// Of a directory that is too full.
const NOT_ALL: &str = "not all in this directory is used: a broker can have 1024 backends, and reads \
    65,536 names, whatever they are";
const _: () = assert!(MAX_BACKENDS == 1024 && MOST_ENTRIES == 65_536);
const LONG_PATH: &str = "left out, because its path is longer than 107 bytes";
const _: () = assert!(crate::sys::address::Address::MAX_PATH == 107);

/// Why a broker with this path has no backend, where more is known than that.
struct WhyNone<'a>(&'a Path, &'a Option<io::Error>);

impl fmt::Display for WhyNone<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(source) if source.raw_os_error() == Some(libc::ENOSPC) => {
                write!(f, ": {NOT_ALL}")
            }
            Some(source) if source.raw_os_error() == Some(libc::ENAMETOOLONG) => {
                write!(f, ": a socket in the directory is {LONG_PATH}")
            }
            Some(source) => {
                if source.kind() == io::ErrorKind::PermissionDenied {
                    let user = sys::effective_user();
                    write!(
                        f,
                        ": user {user} may not list the directory, or search one on the way"
                    )?;
                } else if source.kind() == io::ErrorKind::NotFound {
                    f.write_str(": there is no such directory")?;
                }
                write!(f, ": {}", Said(source))
            }
            None if is_directory(self.0) => f.write_str(": there is no socket in the directory"),
            None => Ok(()),
        }
    }
}

/// What can be offered, for a caller who passed something else that is open.
struct OnlySockets<'a>(&'a io::Error);

impl fmt::Display for OnlySockets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error() {
            Some(libc::EBADF) => Ok(()),
            _ => f.write_str(": only sockets can be offered; the raw layer sends any descriptor"),
        }
    }
}

/// What an error number says here, and then the system's words for it, unless it is not the
/// system's.
struct WhyUnavailable<'a>(&'a io::Error);

impl fmt::Display for WhyUnavailable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error() {
            Some(libc::ENOTCONN) => f.write_str(", the backend has not answered yet"),
            Some(libc::ESHUTDOWN) => f.write_str(", the backend drains"),
            Some(libc::EACCES | libc::EPERM) => {
                let (user, said) = (sys::effective_user(), Said(self.0));
                write!(f, ", user {user} may not use the socket or a directory on the way: {said}")
            }
            code => write!(f, "{}: {}", hint(code), Said(self.0)),
        }
    }
}

fn hint(code: Option<i32>) -> &'static str {
    match code {
        Some(libc::ENOENT) => ", there is no such socket or directory",
        Some(libc::EISDIR) => ", end the path of a directory with '/'",
        Some(libc::ENOTSOCK) => ", what is there is not a socket",
        Some(libc::ECONNREFUSED) => ", nobody listens",
        Some(libc::EPROTOTYPE) => ", the socket there is of another type than SOCK_SEQPACKET",
        Some(libc::EAGAIN) => ", too many brokers wait to be accepted",
        Some(libc::ECONNRESET) => ", it has ended",
        Some(libc::ETOOMANYREFS | libc::EMFILE | libc::ENFILE) => ", too many descriptors",
        _ => "",
    }
}

/// What one who accepts a connection does who is no backend, or has come to a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWelcome {
    /// It says nothing.
    Silent {
        /// For how long, in seconds.
        seconds: u64,
    },
    /// It closed the connection without a word. A backend of 0.1 does that to brokers that it turns
    /// away.
    Closed,
    /// It says something else.
    Foreign,
}

impl fmt::Display for NoWelcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoWelcome::Silent { seconds } => {
                write!(
                    f,
                    "did not answer within {seconds} s: is it a handoff backend, and does it run?"
                )
            }
            NoWelcome::Closed => {
                f.write_str("closed the channel without a word: is it a handoff backend?")
            }
            NoWelcome::Foreign => {
                f.write_str("does not speak the protocol: is it a handoff backend?")
            }
        }
    }
}

/// A limit that an offer would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Offers in flight. An offer that was taken back, or seen to be adopted, after it was sent
    /// counts until the backend has answered it.
    InFlight {
        /// How many are in flight.
        in_flight: usize,
        /// How many others the backend has not answered.
        unanswered: usize,
        /// How many the two ends allow.
        most: usize,
        /// The backend allows fewer than the broker.
        of_backend: bool,
    },
    /// Bytes of offers that wait for room in the socket.
    QueuedBytes {
        /// How many there would be with this offer.
        queued: usize,
        /// How many there may be.
        most: usize,
    },
    /// Verdicts that nobody has taken.
    Verdicts {
        /// How many there are.
        untaken: usize,
    },
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::InFlight { in_flight, unanswered, most, of_backend } => {
                if in_flight + unanswered < *most {
                    return f.write_str("the backend has not granted any more offers yet");
                }
                let end = if *of_backend { "the backend" } else { "the broker" };
                write!(f, "the limit of offers in flight is reached: {in_flight} of {most}")?;
                write!(f, " (max_in_flight of {end})")?;
                match unanswered {
                    0 => Ok(()),
                    more => write!(
                        f,
                        ", and {more} more, taken back or adopted, that the backend has not answered"
                    ),
                }
            }
            Limit::QueuedBytes { queued, most } => {
                write!(
                    f,
                    "with this offer {queued} bytes would be queued, and {most} may be (queue_bytes of \
                     the broker)"
                )
            }
            Limit::Verdicts { untaken } => {
                write!(
                    f,
                    "the limit of verdicts that were not taken is reached: {untaken}; take them"
                )
            }
        }
    }
}

impl BrokerError {
    /// The error number that says as much as this error does, where it is not the system's.
    pub(crate) fn number(&self) -> Option<i32> {
        match self {
            BrokerError::TurnedAway { refusal, .. } => refusal.number(),
            BrokerError::NoWelcome { did, .. } => Some(match did {
                NoWelcome::Silent { .. } => libc::ETIMEDOUT,
                NoWelcome::Closed => libc::ECONNRESET,
                NoWelcome::Foreign => libc::EPROTO,
            }),
            BrokerError::AllRefused { first, .. } => first.number(),
            BrokerError::TooManySockets { .. } => Some(libc::ENOSPC),
            BrokerError::LongPath { .. } => Some(libc::ENAMETOOLONG),
            _ => None,
        }
    }

    /// Whether a limit is reached that a verdict or room in a socket ends.
    pub(super) fn is_full(&self) -> bool {
        match self {
            BrokerError::Full { .. } => true,
            BrokerError::AllRefused { first, .. } => first.is_full(),
            _ => false,
        }
    }

    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            BrokerError::Address(error) => error.kind(),
            BrokerError::InvalidOptions { .. }
            | BrokerError::NotASocket { .. }
            | BrokerError::NameWithNul => ErrorKind::InvalidArgument,
            BrokerError::WrongProcess => ErrorKind::WrongProcess,
            BrokerError::Closed { .. } => ErrorKind::Closed,
            BrokerError::Woken => ErrorKind::Woken,
            BrokerError::Memory(error) => error.kind(),
            BrokerError::TooLarge { .. } => ErrorKind::TooLarge,
            BrokerError::WithoutTls { source, .. } => source.kind(),
            BrokerError::BackendWithoutTls { .. } => ErrorKind::Unsupported,
            BrokerError::Unavailable { source, .. } => address::connect_kind(source),
            BrokerError::Off { .. } => ErrorKind::BackendUnavailable,
            BrokerError::NoBackend { source: Some(source), .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                ErrorKind::PermissionDenied
            }
            BrokerError::NoBackend { .. } | BrokerError::LongPath { .. } => {
                ErrorKind::BackendUnavailable
            }
            BrokerError::AllRefused { first, .. } => first.kind(),
            BrokerError::TooManyBackends { .. } | BrokerError::TooManySockets { .. } => {
                ErrorKind::Full
            }
            BrokerError::TurnedAway { refusal, .. } => refusal.kind(),
            BrokerError::NoWelcome { .. } => ErrorKind::BackendUnavailable,
            BrokerError::Support(error) => error.kind(),
            BrokerError::NotAllowed { .. } => ErrorKind::PeerNotAllowed,
            BrokerError::Unknown { .. } => ErrorKind::PeerUnknown,
            BrokerError::RateLimited { .. } => ErrorKind::RateLimited,
            BrokerError::Full { .. } => ErrorKind::Full,
            BrokerError::TooLate { .. } => ErrorKind::TooLate,
            BrokerError::System { source, .. } => ErrorKind::of_system(source),
        }
    }
}

impl From<HandleError> for BrokerError {
    fn from(error: HandleError) -> BrokerError {
        match error {
            HandleError::WrongProcess => BrokerError::WrongProcess,
            HandleError::System { action, source } => BrokerError::System { action, source },
        }
    }
}
