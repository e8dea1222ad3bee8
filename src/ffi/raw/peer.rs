//! Who is at the other end, and whether they may be.

use std::ffi::c_int;

use crate::ffi::argument::descriptor;
use crate::ffi::growing::{Fill, Growing};
use crate::ffi::guard::guard;
use crate::ffi::peer::{handoff_peer_policy, policy};
use crate::ffi::status::handoff_status;
use crate::peer::{self, Credentials};

/// A peer's credentials when it connected or called listen(2): SO_PEERCRED of unix(7).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_raw_peer {
    /// Set by HANDOFF_RAW_PEER_INIT.
    pub size: usize,
    /// The process, for logs: a pid is not an identity. 0 if it is in a PID namespace that this
    /// process cannot see.
    pub pid: i32,
    /// The effective user.
    pub uid: u32,
    /// The effective group.
    pub gid: u32,
    /// Reserved: always 0.
    pub reserved: u32,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_raw_peer {
    const INIT: &'static str = "HANDOFF_RAW_PEER_INIT";
}

impl From<Credentials> for handoff_raw_peer {
    fn from(credentials: Credentials) -> handoff_raw_peer {
        let Credentials { process, user, group } = credentials;
        let size = size_of::<handoff_raw_peer>();
        handoff_raw_peer { size, pid: process, uid: user, gid: group, reserved: 0 }
    }
}

/// Checks that a policy allows the peer of a connected Unix socket. A broker calls it after
/// handoff_raw_connect(), before it sends anything.
///
/// @param socket     the connection
/// @param policy     who may be there, or NULL for the default; read during the call only
/// @param[out] peer  who it is, if allowed; may be NULL
/// @return HANDOFF_OK; HANDOFF_ERR_PEER_NOT_ALLOWED; HANDOFF_ERR_PEER_UNKNOWN if it is not a
///         connected Unix socket; HANDOFF_ERR_INVALID_ARGUMENT if `socket` is not a socket, a
///         `size` is wrong or a list is NULL but not empty.
///
/// Safe in any thread and after fork(). Allocates only to look at more than 256 supplementary
/// groups.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_peer_check(
    socket: c_int,
    policy: *const handoff_peer_policy,
    peer: *mut handoff_raw_peer,
) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        let policy = self::policy(policy)?;
        let out = if peer.is_null() { None } else { Some(Fill::new(peer, "peer")?) };
        let credentials = peer::check(socket, &policy)?;
        if let Some(out) = out {
            out.set(credentials.into());
        }
        Ok(())
    })
}

/// Gets the credentials of the peer of a connected Unix socket.
///
/// @param socket     the connection
/// @param[out] peer  who it is
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `peer` is NULL, its `size` is wrong or
///         `socket` is not a socket; HANDOFF_ERR_PEER_UNKNOWN if it is not a connected Unix socket.
///
/// Safe in any thread and after fork().
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_peer_credentials(
    socket: c_int,
    peer: *mut handoff_raw_peer,
) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        let out = Fill::new(peer, "peer")?;
        out.set(peer::credentials(socket)?.into());
        Ok(())
    })
}
