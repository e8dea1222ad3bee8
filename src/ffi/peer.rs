//! Who is at the other end, and whether they may be.

use std::ffi::c_int;

use super::status::handoff_status;
use super::{Failure, Growing, Out, descriptor, guard, options, slice};
use crate::peer::{self, Credentials, Policy};

/// A peer's credentials as they were when it connected, SO_PEERCRED of unix(7).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_peer {
    /// The process, for logs; 0 where the system does not tell. Not an identity: by now the number
    /// may belong to another process.
    pub pid: i32,
    /// The effective user.
    pub uid: u32,
    /// The effective group.
    pub gid: u32,
}

impl From<Credentials> for handoff_peer {
    fn from(credentials: Credentials) -> handoff_peer {
        let Credentials { process, user, group } = credentials;
        handoff_peer { pid: process, uid: user, gid: group }
    }
}

/// Who may connect. Begin with HANDOFF_PEER_POLICY_INIT, which allows the user that this process
/// runs as, and root. With a user or a group in it: those users and the members of those groups,
/// and nobody else.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_peer_policy {
    /// sizeof(handoff_peer_policy), set by the INIT macro.
    pub size: usize,
    /// The users, by number; read during the call only.
    pub users: *const u32,
    /// How many there are.
    pub users_len: usize,
    /// The groups, by number; a peer's effective and supplementary groups are compared.
    pub groups: *const u32,
    /// How many there are.
    pub groups_len: usize,
}

// SAFETY: repr(C), begins with a usize, all integers and pointers.
unsafe impl Growing for handoff_peer_policy {}

/// A policy that C passes; NULL is the default.
pub(super) fn policy<'a>(policy: *const handoff_peer_policy) -> Result<Policy<'a>, Failure> {
    let defaults = handoff_peer_policy {
        size: size_of::<handoff_peer_policy>(),
        users: std::ptr::null(),
        users_len: 0,
        groups: std::ptr::null(),
        groups_len: 0,
    };
    let policy = options(policy, defaults, "policy")?;
    Ok(Policy {
        users: slice(policy.users, policy.users_len, "policy.users")?,
        groups: slice(policy.groups, policy.groups_len, "policy.groups")?,
    })
}

/// Tells who is at the other end of a connected Unix socket.
///
/// @param socket     the connection; kept
/// @param[out] peer  who it is
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `peer` is NULL or `socket` is not a socket;
///         HANDOFF_ERR_PEER_UNKNOWN if it is not a connected Unix socket.
///
/// Any thread may call it, also after fork().
#[unsafe(no_mangle)]
pub extern "C" fn handoff_peer_credentials(
    socket: c_int,
    peer: *mut handoff_peer,
) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        let out = Out::new(peer, "peer")?;
        out.set(peer::credentials(socket)?.into());
        Ok(())
    })
}

/// Checks that whoever is at the other end of a connected Unix socket may be there.
///
/// @param socket     the connection; kept
/// @param policy     who may, or NULL for the default; read during the call only
/// @param[out] peer  who it is, if allowed; may be NULL
/// @return HANDOFF_OK; HANDOFF_ERR_PEER_NOT_ALLOWED; HANDOFF_ERR_PEER_UNKNOWN if it is not a
///         connected Unix socket; HANDOFF_ERR_INVALID_ARGUMENT if `socket` is not a socket,
///         `policy->size` is wrong or a list is NULL but not empty.
///
/// Any thread may call it, also after fork(). Allocates only to look at supplementary groups.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_peer_check(
    socket: c_int,
    policy: *const handoff_peer_policy,
    peer: *mut handoff_peer,
) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        let policy = self::policy(policy)?;
        let out = Out::optional(peer, "peer")?;
        let credentials = peer::check(socket, &policy)?;
        if let Some(out) = out {
            out.set(credentials.into());
        }
        Ok(())
    })
}
