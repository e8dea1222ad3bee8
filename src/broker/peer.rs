//! Who may be the backend.

use std::fmt;
use std::os::fd::AsFd;

use super::BrokerOptions;
use super::down::WhyDown;
use crate::peer::{self, PeerError, Policy};
use crate::sys::{self, address::Address};

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
        let (own, owner) = (sys::effective_user(), sys::address::owner(address));
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
