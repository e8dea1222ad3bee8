//! Who may be the backend, and why there is none.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use super::{BrokerError, BrokerOptions, NoWelcome};
use crate::memory::NoMemory;
use crate::peer::{self, PeerError, Policy};
use crate::support::{Need, SupportError};
use crate::sys::{self, Address};
use crate::wire::Refusal;

/// Who may be the backend, as part of a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// The default.
    Default {
        /// The user that this process ran as.
        own: u32,
        /// The owner of the socket's file; none for an abstract name.
        owner: Option<u32>,
    },
    /// What the options name.
    Listed {
        /// Users.
        users: Numbers,
        /// Groups.
        groups: Numbers,
    },
}

/// The first of some numbers, as many as fit a sentence, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    first: [u32; 8],
    count: usize,
}

impl From<&[u32]> for Numbers {
    fn from(numbers: &[u32]) -> Numbers {
        let mut first = [0; 8];
        for (to, from) in first.iter_mut().zip(numbers) {
            *to = *from;
        }
        Numbers { first, count: numbers.len() }
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.count.min(self.first.len());
        for (index, number) in self.first[..shown].iter().enumerate() {
            write!(f, "{}{number}", if index == 0 { "" } else { ", " })?;
        }
        match self.count - shown {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Allowed::Default { own, owner } => {
                f.write_str("allowed are root")?;
                if *own != 0 {
                    write!(f, ", user {own}")?;
                }
                match owner {
                    Some(owner) => write!(f, " and the file's owner, {owner}"),
                    None => Ok(()),
                }
            }
            Allowed::Listed { users, groups } => match (users.count, groups.count) {
                (_, 0) => write!(f, "allowed are users {users}"),
                (0, _) => write!(f, "allowed are groups {groups}"),
                _ => write!(f, "allowed are users {users}; groups {groups}"),
            },
        }
    }
}

/// Why there is no channel.
#[derive(Clone, Copy, Debug)]
pub(super) enum WhyDown {
    /// There is no backend: an error number, of the system or what it means here.
    NoBackend(i32),
    /// The backend said why.
    TurnedAway(Refusal),
    /// Who listens there did not say welcome.
    NoWelcome(NoWelcome),
    /// Who listens there may not be the backend.
    NotAllowed { user: u32, nameless: bool, own: u32, owner: Option<u32> },
    /// The system does not tell who listens there: an error number.
    Unknown(i32),
    /// The system refused what a channel needs, for want of it or at a limit: an error number.
    Refused(Need, i32),
    /// The system refused something else: what, and an error number.
    System(&'static str, i32),
    /// There is no memory for something.
    NoMemory(&'static str),
}

impl From<io::Error> for WhyDown {
    fn from(error: io::Error) -> WhyDown {
        WhyDown::NoBackend(error.raw_os_error().unwrap_or(libc::ENOTCONN))
    }
}

impl From<SupportError> for WhyDown {
    fn from(SupportError { need, source }: SupportError) -> WhyDown {
        WhyDown::Refused(need, source.raw_os_error().unwrap_or(libc::ENOSYS))
    }
}

impl From<NoMemory> for WhyDown {
    fn from(NoMemory { what, .. }: NoMemory) -> WhyDown {
        WhyDown::NoMemory(what)
    }
}

impl WhyDown {
    /// Whether somebody listens there who did not say welcome. That may come up again before anything
    /// else is known.
    pub(super) fn is_no_welcome(&self) -> bool {
        matches!(self, WhyDown::TurnedAway(_) | WhyDown::NoWelcome(_))
    }

    /// The error of an offer meanwhile.
    #[cold]
    pub(super) fn error(&self, path: &Arc<Path>, options: &BrokerOptions) -> BrokerError {
        let path = path.clone();
        let source = io::Error::from_raw_os_error;
        match *self {
            WhyDown::NoBackend(code) => BrokerError::Unavailable { path, source: source(code) },
            WhyDown::TurnedAway(refusal) => BrokerError::TurnedAway { path, refusal },
            WhyDown::NoWelcome(did) => BrokerError::NoWelcome { path, did },
            WhyDown::Refused(need, code) => SupportError { need, source: source(code) }.into(),
            WhyDown::System(action, code) => BrokerError::System { action, source: source(code) },
            WhyDown::NoMemory(what) => NoMemory { what, source: source(libc::ENOMEM) }.into(),
            WhyDown::Unknown(code) => BrokerError::Unknown { path, source: source(code) },
            WhyDown::NotAllowed { user, nameless, own, owner } => {
                let BrokerOptions { users, groups, .. } = options;
                let allowed = if users.is_empty() && groups.is_empty() {
                    Allowed::Default { own, owner }
                } else {
                    Allowed::Listed { users: users[..].into(), groups: groups[..].into() }
                };
                BrokerError::NotAllowed { path, user, nameless, allowed }
            }
        }
    }
}

/// Checks who listens at the other end of a connection to `address`. To be called before anything
/// is sent.
pub(super) fn check(
    socket: &impl AsFd,
    address: &Address,
    options: &BrokerOptions,
) -> Result<(), WhyDown> {
    let BrokerOptions { users, groups, .. } = options;
    let checked = peer::check_backend(socket.as_fd(), &Policy { users, groups }, address);
    let refused = |user, nameless| {
        let (own, owner) = (sys::effective_user(), sys::owner(address));
        WhyDown::NotAllowed { user, nameless, own, owner }
    };
    checked.map(drop).map_err(|error| match error {
        PeerError::NotAllowed { credentials, .. } => refused(credentials.user, false),
        PeerError::Nameless { credentials, .. } => refused(credentials.user, true),
        PeerError::Unknown { source, .. } | PeerError::InvalidDescriptor { source, .. } => {
            WhyDown::Unknown(source.raw_os_error().unwrap_or(libc::ENOTCONN))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence_says_who_is_allowed() {
        let default = |own, owner| Allowed::Default { own, owner }.to_string();
        assert_eq!(default(0, None), "allowed are root");
        assert_eq!(default(4001, None), "allowed are root, user 4001");
        let owned = "allowed are root, user 4001 and the file's owner, 4003";
        assert_eq!(default(4001, Some(4003)), owned);
        let listed = |users: &[u32], groups: &[u32]| {
            Allowed::Listed { users: users.into(), groups: groups.into() }.to_string()
        };
        assert_eq!(listed(&[1, 2], &[]), "allowed are users 1, 2");
        assert_eq!(listed(&[], &[3]), "allowed are groups 3");
        assert_eq!(listed(&[1], &[3, 4]), "allowed are users 1; groups 3, 4");
        let many = listed(&[u32::MAX; 100], &[]);
        assert!(many.ends_with("4294967295, 4294967295 and 92 more") && many.len() < 150, "{many}");
    }
}
