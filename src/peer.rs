//! Who is at the other end of a Unix socket, and whether they may be.
//!
//! The kernel vouches for a peer's user and groups as they were when it connected, or began to
//! listen. A number that may stand for several users allows none of them. The process number is for
//! logs only: by the time it is looked at, it may belong to another process.

use std::io;
use std::os::fd::BorrowedFd;

use crate::address::Socket;
use crate::kind::ErrorKind;
use crate::sys::address::Address;
use crate::sys::errno::Said;
use crate::sys::{self, user};

/// A peer's credentials as they were when it connected; those of a listener's process as they were
/// when it called listen(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The process, for logs; 0 if it is in a PID namespace that this process cannot see.
    pub process: i32,
    /// The effective user.
    pub user: u32,
    /// The effective group.
    pub group: u32,
}

/// Who may be at the other end. Empty, which is the default: the user that this process runs as,
/// and root. Otherwise: these users, and members of these groups, and nobody else.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy<'a> {
    /// Users, by number.
    pub users: &'a [u32],
    /// Groups, by number; a peer's effective and supplementary groups are compared.
    pub groups: &'a [u32],
}

/// Why a peer was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The system does not tell who the peer is.
    #[error("{socket}: the system does not say who the peer is: {said}", said = Said(source))]
    Unknown {
        /// The socket that was asked about.
        socket: Socket,
        /// What the system said.
        source: io::Error,
    },
    /// The descriptor is not open or not a socket.
    #[error("{socket} is {is}: {said}", said = Said(source))]
    InvalidDescriptor {
        /// The socket that was asked about.
        socket: Socket,
        /// What it is.
        is: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The policy does not allow this peer.
    #[error("{socket}: the policy does not allow the peer, \
         user {user}, group {group}, process {process}",
        user = .credentials.user, group = .credentials.group, process = .credentials.process)]
    NotAllowed {
        /// The socket that was asked about.
        socket: Socket,
        /// Who is at its other end.
        credentials: Credentials,
    },
    /// The policy names the peer's user or group, but as the number of all those that have none in
    /// this user namespace.
    #[error("{socket}: the peer is not allowed: its user or group has no number in this user \
        namespace (it appears as user {user}, group {group})",
        user = .credentials.user, group = .credentials.group)]
    Nameless {
        /// The socket that was asked about.
        socket: Socket,
        /// Who is at its other end.
        credentials: Credentials,
    },
}

impl PeerError {
    /// The same error about a socket that the caller knows.
    pub(crate) fn over(mut self, named: Socket) -> PeerError {
        match &mut self {
            PeerError::Unknown { socket, .. }
            | PeerError::InvalidDescriptor { socket, .. }
            | PeerError::NotAllowed { socket, .. }
            | PeerError::Nameless { socket, .. } => *socket = named,
        }
        self
    }

    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            PeerError::Unknown { .. } => ErrorKind::PeerUnknown,
            PeerError::InvalidDescriptor { .. } => ErrorKind::InvalidArgument,
            PeerError::NotAllowed { .. } | PeerError::Nameless { .. } => ErrorKind::PeerNotAllowed,
        }
    }
}

/// Tells who is at the other end of a connected Unix socket.
pub fn credentials(socket: BorrowedFd<'_>) -> Result<Credentials, PeerError> {
    let (process, user, group) =
        sys::socket::peer_credentials(socket).map_err(|e| unknown(socket, e))?;
    // Linux says "nobody" (-1) for a Unix socket without a peer and for other kinds of socket.
    if user == u32::MAX {
        return Err(unknown(socket, io::Error::from_raw_os_error(libc::ENOTCONN)));
    }
    Ok(Credentials { process, user, group })
}

fn unknown(descriptor: BorrowedFd<'_>, source: io::Error) -> PeerError {
    let socket = descriptor.into();
    match source.raw_os_error() {
        Some(libc::EBADF | libc::ENOTSOCK) => {
            PeerError::InvalidDescriptor { socket, is: sys::what_is(descriptor), source }
        }
        _ => PeerError::Unknown { socket, source },
    }
}

/// Tells who is at the other end if `policy` allows them.
pub fn check(socket: BorrowedFd<'_>, policy: &Policy<'_>) -> Result<Credentials, PeerError> {
    check_with(socket, policy, || None)
}

/// The same for a backend that was connected to at `address`. By default the owner of the socket's
/// file is allowed too.
pub(crate) fn check_backend(
    socket: BorrowedFd<'_>,
    policy: &Policy<'_>,
    address: &Address,
) -> Result<Credentials, PeerError> {
    check_with(socket, policy, || sys::address::owner(address))
}

fn check_with(
    socket: BorrowedFd<'_>,
    policy: &Policy<'_>,
    owner: impl FnOnce() -> Option<u32>,
) -> Result<Credentials, PeerError> {
    let credentials = credentials(socket)?;
    let Credentials { user, group, .. } = credentials;
    let Policy { users, groups } = policy;
    let by_user = if users.is_empty() && groups.is_empty() {
        user == 0 || user == sys::effective_user() || owner() == Some(user)
    } else {
        users.contains(&user)
    };
    if by_user && user::names_one_user(user) {
        return Ok(credentials);
    }
    let named = |group| groups.contains(&group);
    let by_group = |group| named(group) && user::names_one_group(group);
    let unknown = |error| unknown(socket, error);
    if by_group(group)
        || !groups.is_empty() && sys::socket::any_peer_group(socket, by_group).map_err(unknown)?
    {
        return Ok(credentials);
    }
    let socket = socket.into();
    if by_user || named(group) {
        return Err(PeerError::Nameless { socket, credentials });
    }
    Err(PeerError::NotAllowed { socket, credentials })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn peer_of_a_pair_is_this_process_and_allowed_by_default() {
        let (a, _b) = UnixStream::pair().unwrap();
        let found = check(a.as_fd(), &Policy::default()).unwrap();
        assert_eq!(found.user, sys::effective_user());
        assert_eq!(found.process, std::process::id() as i32);
    }

    #[test]
    fn policy_with_a_list_allows_nobody_else() {
        let (a, _b) = UnixStream::pair().unwrap();
        let Credentials { user, group, .. } = credentials(a.as_fd()).unwrap();
        let (own_user, own_group) = ([user], [group]);
        let (other_user, other_group) = ([user + 1], [u32::MAX - 1]);
        let allows = |users, groups| check(a.as_fd(), &Policy { users, groups }).is_ok();
        assert!(allows(&own_user, &other_group));
        assert!(allows(&other_user, &own_group));
        assert!(!allows(&other_user, &[]));
        assert!(!allows(&[], &other_group));
        assert!(!allows(&other_user, &other_group));
    }

    #[test]
    fn socket_without_a_peer_user_is_unknown_not_root() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let result = check(client.as_fd(), &Policy::default());
        assert!(matches!(result, Err(PeerError::Unknown { .. })), "{result:?}");
    }

    #[test]
    fn listening_socket_is_not_its_own_peer() {
        let directory = tempfile::TempDir::new().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let result = check(listener.as_fd(), &Policy::default());
        assert!(matches!(result, Err(PeerError::Unknown { .. })), "{result:?}");
    }
}
