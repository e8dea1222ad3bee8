//! What can go wrong with a backend.

use std::io;

use crate::handle::HandleError;
use crate::kind::ErrorKind;
use crate::listener::ListenerError;
use crate::memory::NoMemory;
use crate::support::SupportError;
use crate::sys::errno::Said;

/// Why a call of a [`Backend`](super::Backend) did nothing.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Two options contradict each other.
    #[error("these options contradict each other: {problem}")]
    InvalidOptions {
        /// Which, and their values.
        problem: String,
    },
    /// The handoff socket was not made.
    #[error(transparent)]
    Listener(#[from] ListenerError),
    /// The descriptor given is not a listening socket of sequenced packets.
    #[error("descriptor {descriptor} is {is}: give a listening Unix socket of SOCK_SEQPACKET")]
    NotAListener {
        /// The descriptor.
        descriptor: i32,
        /// What it is.
        is: &'static str,
        /// What the system said, if it is no socket.
        source: Option<io::Error>,
    },
    /// The handle was first used in another process.
    #[error("this backend belongs to another process, which used it first: use it only there")]
    WrongProcess,
    /// No arrival is held under this id.
    #[error("no arrival {id} is held: it was adopted, rejected or taken back before")]
    Unknown {
        /// The id.
        id: u64,
    },
    /// The broker has taken the connection back; its descriptor is closed.
    #[error("the broker took arrival {id} back or broke the protocol")]
    TakenBack {
        /// The id.
        id: u64,
    },
    /// Nothing arrived in time.
    #[error("nothing arrived in time")]
    TimedOut,
    /// The system does not have what a channel needs, or refuses it.
    #[error(transparent)]
    Support(#[from] SupportError),
    /// There is no memory for what the options or a broker ask for.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// A waker ended the wait.
    #[error("the wait was ended")]
    Woken,
    /// The system refused what every backend needs.
    #[error("cannot {action}: {said}", said = Said(source))]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl BackendError {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            BackendError::Listener(error) => error.kind(),
            BackendError::InvalidOptions { .. }
            | BackendError::NotAListener { .. }
            | BackendError::Unknown { .. } => ErrorKind::InvalidArgument,
            BackendError::WrongProcess => ErrorKind::WrongProcess,
            BackendError::TakenBack { .. } => ErrorKind::TakenBack,
            BackendError::TimedOut => ErrorKind::TimedOut,
            BackendError::Woken => ErrorKind::Woken,
            BackendError::Memory(error) => error.kind(),
            BackendError::Support(error) => error.kind(),
            BackendError::System { source, .. } => ErrorKind::of_system(source),
        }
    }
}

impl From<HandleError> for BackendError {
    fn from(error: HandleError) -> BackendError {
        match error {
            HandleError::WrongProcess => BackendError::WrongProcess,
            HandleError::System { action, source } => BackendError::System { action, source },
        }
    }
}
