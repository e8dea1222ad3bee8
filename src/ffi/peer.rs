//! Who may be at the other end.

use super::argument::slice;
use super::growing::{Growing, Input, initialize, read_or_default};
use super::guard::{Failure, guard};
use super::status::handoff_status;
use crate::peer::Policy;

/// Who may be at the other end: the brokers of a backend, or the backend of a broker.
///
/// A policy without users and groups is the default, as is NULL: it allows this process's effective
/// user, root and, for a broker, the owner of the socket's file. Any other policy allows only its
/// users and the members of its groups, so it must name root, too, if root is to be allowed. The
/// lists are read during the call only: the calls that take options copy them.
///
/// In a user namespace, the overflow number allows nobody. It stands for everybody who has no
/// number there, and is 65534 as a rule: see user_namespaces(7).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_peer_policy {
    /// Set by HANDOFF_PEER_POLICY_INIT.
    pub size: usize,
    /// The users, by number.
    pub users: *const u32,
    /// The length of the array.
    pub users_len: usize,
    /// The groups, by number. A peer's effective and supplementary groups count.
    pub groups: *const u32,
    /// The length of the array.
    pub groups_len: usize,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_peer_policy {
    const INIT: &'static str = "HANDOFF_PEER_POLICY_INIT";
}
// SAFETY: integers and pointers.
unsafe impl Input for handoff_peer_policy {}

/// Initialises a policy as HANDOFF_PEER_POLICY_INIT does, for languages without macros.
///
/// @param[out] policy  the policy
/// @param size         sizeof(handoff_peer_policy)
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `policy` is NULL or `size` cannot be right.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_peer_policy_init(
    policy: *mut handoff_peer_policy,
    size: usize,
) -> handoff_status {
    guard(|| initialize(policy, size))
}

/// A policy that C passes; NULL is the default.
pub(super) fn policy<'a>(policy: *const handoff_peer_policy) -> Result<Policy<'a>, Failure> {
    let policy = read_or_default(policy, "policy")?;
    Ok(Policy {
        users: slice(policy.users, policy.users_len, "policy.users")?,
        groups: slice(policy.groups, policy.groups_len, "policy.groups")?,
    })
}
