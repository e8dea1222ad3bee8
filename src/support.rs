//! Whether this system has what the library needs: the one list of it, for whoever asks and for the
//! calls that fail without it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::claim::ClaimTable;
use crate::kind::ErrorKind;
use crate::sys::errno::Said;
use crate::sys::event::{Alarm, Events, Part};
use crate::sys::shared::Step;
use crate::sys::socket::{self, SocketKind};

/// What a channel cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Unix sockets of sequenced packets.
    SeqPackets,
    /// The credentials of a peer.
    Credentials,
    /// Memory with a descriptor.
    Memory,
    /// Allocating that memory.
    Allocation,
    /// Seals on that memory.
    Seals,
    /// Mapping that memory.
    Mapping,
    /// Watching several descriptors as one.
    Epoll,
    /// A timer that can be watched.
    Timer,
    /// A descriptor that is readable when this process says so.
    Edge,
}

impl Need {
    fn name(self) -> &'static str {
        match self {
            Need::SeqPackets => "Unix sockets of sequenced packets (SOCK_SEQPACKET)",
            Need::Credentials => "credentials of peers (SO_PEERCRED)",
            Need::Memory => "memory to share (memfd_create(2))",
            Need::Allocation => "allocated memory to share (fallocate(2))",
            Need::Seals => "sealed memory to share (F_ADD_SEALS of fcntl(2))",
            Need::Mapping => "mapped memory to share (mmap(2))",
            Need::Epoll => "epoll(7)",
            Need::Timer => "timers (timerfd_create(2))",
            Need::Edge => "events of its own (eventfd(2))",
        }
    }
}

/// What the system refused: for want of it, or because a limit is reached.
#[derive(Debug)]
pub struct SupportError {
    /// What was asked for.
    pub need: Need,
    /// What the system said.
    pub source: io::Error,
}

impl SupportError {
    /// For `map_err`.
    fn of(need: Need) -> impl Fn(io::Error) -> SupportError {
        move |source| SupportError { need, source }
    }

    /// A limit of the process or of the host says nothing about what the system has.
    fn is_shortage(&self) -> bool {
        matches!(
            self.source.raw_os_error(),
            Some(
                libc::EMFILE
                    | libc::ENFILE
                    | libc::ENOMEM
                    | libc::ENOBUFS
                    | libc::ENOSPC
                    | libc::EDQUOT
                    | libc::EFBIG
                    | libc::EAGAIN
            )
        )
    }

    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        if self.is_shortage() { ErrorKind::of_system(&self.source) } else { ErrorKind::Unsupported }
    }
}

impl fmt::Display for SupportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, source) = (self.need.name(), &self.source);
        let said = Said(source);
        if !self.is_shortage() {
            return write!(f, "this system has no {name}, or does not permit it: {said}");
        }
        write!(f, "cannot get {name} now: {said}")?;
        match source.raw_os_error() {
            Some(libc::EFBIG) => {
                f.write_str(": it counts as a file: raise RLIMIT_FSIZE (ulimit -f, LimitFSIZE=)")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for SupportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Asks the running system for everything that the library cannot do without, and closes it again.
/// Under a seccomp filter or an emulator some of it may be missing.
pub fn supported() -> Result<(), SupportError> {
    let socket = seq_packet_socket()?;
    credentials(socket.as_fd())?;
    claim_table(1)?;
    edge(&mut events(&Arc::default())?)
}

/// Makes a Unix socket of sequenced packets.
pub(crate) fn seq_packet_socket() -> Result<OwnedFd, SupportError> {
    socket::new(SocketKind::SeqPacket).map_err(SupportError::of(Need::SeqPackets))
}

/// Asks whether the system tells who the peer of a Unix socket is. Any such socket will do.
pub(crate) fn credentials(socket: BorrowedFd<'_>) -> Result<(), SupportError> {
    socket::tells_credentials(socket).map_err(SupportError::of(Need::Credentials))
}

/// Makes a claim table.
pub(crate) fn claim_table(slots: usize) -> Result<(ClaimTable, OwnedFd), SupportError> {
    ClaimTable::create(slots).map_err(|(step, source)| {
        let need = match step {
            Step::Create => Need::Memory,
            Step::Allocate => Need::Allocation,
            Step::Seal => Need::Seals,
            Step::Map => Need::Mapping,
        };
        SupportError { need, source }
    })
}

/// Makes a set of descriptors to watch, with a timer that others can ring.
pub(crate) fn events(alarm: &Arc<Alarm>) -> Result<Events, SupportError> {
    Events::new(alarm).map_err(|(part, source)| {
        let need = match part {
            Part::Epoll => Need::Epoll,
            Part::Timer => Need::Timer,
        };
        SupportError { need, source }
    })
}

/// Makes that set able to tell of what was left, for those who watch it edge-triggered.
pub(crate) fn edge(events: &mut Events) -> Result<(), SupportError> {
    events.make_edge().map_err(SupportError::of(Need::Edge))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_that_runs_the_tests_has_everything() {
        supported().unwrap();
    }

    fn error(code: i32) -> SupportError {
        SupportError { need: Need::Memory, source: io::Error::from_raw_os_error(code) }
    }

    #[test]
    fn limit_of_the_process_is_not_taken_for_a_lack_of_the_system() {
        assert_eq!(error(libc::EMFILE).kind(), ErrorKind::DescriptorPressure);
        assert_eq!(error(libc::ENOMEM).kind(), ErrorKind::System);
        for code in [libc::ENOSYS, libc::EINVAL, libc::EPERM, libc::EOPNOTSUPP] {
            assert_eq!(error(code).kind(), ErrorKind::Unsupported);
        }
    }

    #[test]
    fn sentence_says_what_is_missing_or_which_limit_is_reached() {
        let sentence = error(libc::ENOSYS).to_string();
        assert!(sentence.starts_with("this system has no memory to share (memfd_create(2)), or "));
        let sentence = error(libc::EFBIG).to_string();
        assert!(sentence.starts_with("cannot get memory to share "), "{sentence}");
        assert!(sentence.contains("RLIMIT_FSIZE"), "{sentence}");
    }
}
