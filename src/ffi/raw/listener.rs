//! The handoff socket that a backend listens on.

use std::ffi::{c_char, c_int};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

use crate::ffi::argument::{Out, Problem, free, path, reference, wait};
use crate::ffi::growing::{Growing, Input, initialize, read_or_default};
use crate::ffi::guard::{Failure, guard, guard_or};
use crate::ffi::peer::{handoff_peer_policy, policy};
use crate::ffi::status::handoff_status;
use crate::listener::{Listener, ListenerOptions, SocketKind};

/// The type of a Unix socket: HANDOFF_RAW_STREAM or HANDOFF_RAW_SEQPACKET.
pub type handoff_raw_socket_type = u32;

/// A byte stream, SOCK_STREAM.
pub const HANDOFF_RAW_STREAM: handoff_raw_socket_type = 1;
/// Sequenced packets, SOCK_SEQPACKET: a message cannot be cut or run into the next.
pub const HANDOFF_RAW_SEQPACKET: handoff_raw_socket_type = 2;

/// How a handoff socket is made. Zero is the default in every field but `size`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_raw_listener_options {
    /// Set by HANDOFF_RAW_LISTENER_OPTIONS_INIT.
    pub size: usize,
    /// The permission bits of the socket's file, independent of the umask: default 0600. A broker
    /// needs write permission, unix(7). Abstract names have no permissions: check who connects.
    pub mode: u32,
    /// Connections that may wait to be accepted, listen(2): default 4096. The system may allow
    /// fewer: somaxconn in listen(2).
    pub backlog: i32,
    /// HANDOFF_RAW_STREAM, the default, or HANDOFF_RAW_SEQPACKET.
    pub socket_type: handoff_raw_socket_type,
    /// Reserved: always 0.
    pub reserved: u32,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_raw_listener_options {
    const INIT: &'static str = "HANDOFF_RAW_LISTENER_OPTIONS_INIT";
}
// SAFETY: integers.
unsafe impl Input for handoff_raw_listener_options {}

/// Initialises options as HANDOFF_RAW_LISTENER_OPTIONS_INIT does, for languages without macros.
///
/// @param[out] options  the options
/// @param size          sizeof(handoff_raw_listener_options)
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `options` is NULL or `size` cannot be right.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_listener_options_init(
    options: *mut handoff_raw_listener_options,
    size: usize,
) -> handoff_status {
    guard(|| initialize(options, size))
}

/// A listening handoff socket, and the file that it made.
///
/// Any number of threads may accept on it, and so may children of fork(). Only the process that
/// made it removes the file.
pub struct handoff_raw_listener {
    listener: Listener,
}

/// Makes a handoff socket and listens on it. The file is made as by handoff_backend_listen().
///
/// @param path           the socket's path, at most 107 bytes, in a directory that this process can
///                       write to; "@" starts an abstract name, without a file
/// @param options        how to make it, or NULL for the defaults; read during the call only
/// @param[out] listener  the listener; free it with handoff_raw_listener_free()
/// @return HANDOFF_OK; HANDOFF_ERR_ADDRESS_IN_USE; HANDOFF_ERR_NOT_A_SOCKET;
///         HANDOFF_ERR_PERMISSION_DENIED; HANDOFF_ERR_INVALID_ARGUMENT, also if the path cannot be
///         a socket's, `mode` is more than 0777 or `socket_type` is unknown;
///         HANDOFF_ERR_DESCRIPTOR_PRESSURE; HANDOFF_ERR_LISTEN_FAILED.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_listener_new(
    path: *const c_char,
    options: *const handoff_raw_listener_options,
    listener: *mut *mut handoff_raw_listener,
) -> handoff_status {
    guard(|| {
        let path = self::path(path)?;
        let options = core_options(read_or_default(options, "options")?)?;
        let out = Out::new(listener, "listener")?;
        out.give(handoff_raw_listener { listener: Listener::new(path, &options)? });
        Ok(())
    })
}

fn core_options(options: handoff_raw_listener_options) -> Result<ListenerOptions, Failure> {
    let defaults = ListenerOptions::default();
    let unknown = Problem::Is("is not one of HANDOFF_RAW_STREAM and HANDOFF_RAW_SEQPACKET");
    if options.reserved != 0 {
        return Err(Failure::Argument("options.reserved", Problem::UnknownField));
    }
    Ok(ListenerOptions {
        mode: if options.mode == 0 { defaults.mode } else { options.mode },
        backlog: if options.backlog == 0 { defaults.backlog } else { options.backlog },
        kind: match options.socket_type {
            0 => defaults.kind,
            HANDOFF_RAW_STREAM => SocketKind::Stream,
            HANDOFF_RAW_SEQPACKET => SocketKind::SeqPacket,
            _ => return Err(Failure::Argument("options.socket_type", unknown)),
        },
    })
}

/// Accepts a connection from a broker that the policy allows. Other connections are closed.
///
/// @param listener     the listener
/// @param policy       who may connect, or NULL for the default; read during the call only
/// @param wait_ms      how long to wait, in milliseconds, as in poll(2)
/// @param[out] socket  the connection, blocking and close-on-exec; close(2) it
/// @return HANDOFF_OK; HANDOFF_TIMED_OUT if nobody connected in that time;
///         HANDOFF_ERR_PEER_NOT_ALLOWED, HANDOFF_ERR_PEER_UNKNOWN: accept the next;
///         HANDOFF_ERR_DESCRIPTOR_PRESSURE; HANDOFF_ERR_INVALID_ARGUMENT as for
///         handoff_raw_peer_check(); HANDOFF_ERR_RECEIVE_FAILED.
///
/// To end a wait from another thread, shutdown(2) the descriptor of handoff_raw_listener_fd(): the
/// call then returns HANDOFF_ERR_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_listener_accept(
    listener: *const handoff_raw_listener,
    policy: *const handoff_peer_policy,
    wait_ms: c_int,
    socket: *mut c_int,
) -> handoff_status {
    guard(|| {
        let listener = &reference(listener, "listener")?.listener;
        let policy = self::policy(policy)?;
        let out = Out::new(socket, "socket")?;
        out.set(listener.accept(wait(wait_ms), &policy)?.into_raw_fd());
        Ok(())
    })
}

/// Returns the listening descriptor, to watch in an event loop. It is non-blocking and
/// close-on-exec.
///
/// @param listener  the listener
/// @return the descriptor, which stays the listener's: do not close it; -1 if `listener` is NULL.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_listener_fd(listener: *const handoff_raw_listener) -> c_int {
    guard_or(-1, || {
        let listener = reference(listener, "listener");
        listener.map_or(-1, |listener| listener.listener.as_fd().as_raw_fd())
    })
}

/// Stops listening, and removes the socket's file if it is still the one that was made.
///
/// In a child of fork() it closes the child's copy only.
///
/// @param listener  the listener, or NULL, which does nothing; no thread may be using it
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_listener_free(listener: *mut handoff_raw_listener) {
    free(listener);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::growing::zeroed;

    #[test]
    fn options_of_zero_are_the_defaults_of_the_core() {
        let options = core_options(zeroed()).ok().unwrap();
        assert_eq!(options, ListenerOptions::default());
    }
}
