//! Whether this system has what the library needs.

use std::io;

use crate::claim::ClaimTable;
use crate::kind::ErrorKind;
use crate::sys::{self, SocketKind, event};

/// Whether the library works on the system that it is built for: it is not built for any other.
/// [`supported`] asks the system that runs.
pub const SUPPORTED: bool = true;

/// What the running system does not have.
#[derive(Debug, thiserror::Error)]
#[error("{}{missing}: {source}", match self.kind() {
    ErrorKind::DescriptorPressure => "out of descriptors, so it is not known whether this system has ",
    _ => "this system has no ",
})]
pub struct SupportError {
    /// What is missing.
    pub missing: &'static str,
    /// What the system said.
    pub source: io::Error,
}

impl SupportError {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        // A process at its limit learns nothing about the system.
        match ErrorKind::of_system(&self.source) {
            ErrorKind::DescriptorPressure => ErrorKind::DescriptorPressure,
            _ => ErrorKind::Unsupported,
        }
    }
}

/// Asks the running system for everything that the library cannot do without, and closes it again.
/// Under a seccomp filter or an emulator some of it may be missing.
pub fn supported() -> Result<(), SupportError> {
    let lacks = |missing| move |source| SupportError { missing, source };
    sys::socket(SocketKind::SeqPacket)
        .map_err(lacks("Unix sockets of sequenced packets (SOCK_SEQPACKET)"))?;
    ClaimTable::create(1).map_err(lacks("memory to share (memfd_create(2) with sealing)"))?;
    event::new_epoll().map_err(lacks("epoll(7)"))?;
    event::new_timer().map_err(lacks("timers (timerfd_create(2))"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_that_runs_the_tests_has_everything() {
        supported().unwrap();
    }

    #[test]
    fn limit_of_the_process_is_not_taken_for_a_lack_of_the_system() {
        let error =
            |code| SupportError { missing: "epoll(7)", source: io::Error::from_raw_os_error(code) };
        assert_eq!(error(libc::ENOSYS).kind(), ErrorKind::Unsupported);
        assert_eq!(error(libc::EMFILE).kind(), ErrorKind::DescriptorPressure);
        assert!(error(libc::ENOSYS).to_string().starts_with("this system has no epoll(7): "));
        assert!(error(libc::EMFILE).to_string().starts_with("out of descriptors, "));
    }
}
