//! The handoff socket that a backend listens on.

use std::ffi::{c_char, c_int};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

use super::peer::{handoff_peer_policy, policy};
use super::status::handoff_status;
use super::{Failure, Growing, Out, free, guard, guard_or, options, path, reference, timeout};
use crate::listener::{Listener, ListenerOptions, SocketKind};

/// A kind of Unix socket: HANDOFF_STREAM or HANDOFF_SEQPACKET.
pub type handoff_socket_kind = u32;

/// A byte stream, SOCK_STREAM.
pub const HANDOFF_STREAM: handoff_socket_kind = 1;
/// Sequenced packets, SOCK_SEQPACKET: a message cannot be cut or run into the next.
pub const HANDOFF_SEQPACKET: handoff_socket_kind = 2;

/// Default of handoff_listener_options.mode: 0600.
pub const HANDOFF_LISTENER_MODE: u32 = 384;
/// Default of handoff_listener_options.backlog.
pub const HANDOFF_LISTENER_BACKLOG: i32 = 4096;

/// How a handoff socket is made. Begin with HANDOFF_LISTENER_OPTIONS_INIT and change what you want.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_listener_options {
    /// sizeof(handoff_listener_options), set by the INIT macro.
    pub size: usize,
    /// Permission bits of the socket's file, whatever the umask; connecting takes write
    /// permission, unix(7). Abstract names have none: check who connects.
    pub mode: u32,
    /// Connections that may wait to be accepted, listen(2); less than 1 is 1, and the system may
    /// allow fewer.
    pub backlog: i32,
    /// HANDOFF_STREAM or HANDOFF_SEQPACKET.
    pub kind: handoff_socket_kind,
}

// SAFETY: repr(C), begins with a usize, all integers.
unsafe impl Growing for handoff_listener_options {}

/// A listening handoff socket, and the file that it made.
pub struct handoff_listener {
    listener: Listener,
}

/// Makes a handoff socket.
///
/// The file has its mode before anybody can connect. A socket that nobody listens on any more is
/// replaced; one that somebody listens on, and anything that is not a socket, is left alone. Of
/// several processes that start together one succeeds: they take turns by locking the directory,
/// flock(2).
///
/// @param path           the socket's path, at most 107 bytes, in a directory that this process
///                       can read and write; "@" begins an abstract name on Linux, without a file
/// @param options        how to make it, or NULL for the defaults; read during the call only
/// @param[out] listener  the listener; free it with handoff_listener_free()
/// @return HANDOFF_OK; HANDOFF_ERR_ADDRESS_IN_USE; HANDOFF_ERR_NOT_A_SOCKET;
///         HANDOFF_ERR_PERMISSION_DENIED; HANDOFF_ERR_INVALID_ARGUMENT, also for a mode beyond
///         0777 or an unknown kind; HANDOFF_ERR_WOULD_BLOCK if another process has had the
///         directory locked for a second; HANDOFF_ERR_DESCRIPTOR_PRESSURE;
///         HANDOFF_ERR_LISTEN_FAILED; HANDOFF_ERR_UNSUPPORTED for an abstract name elsewhere than
///         on Linux.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_listener_new(
    path: *const c_char,
    options: *const handoff_listener_options,
    listener: *mut *mut handoff_listener,
) -> handoff_status {
    guard(|| {
        let path = self::path(path)?;
        let out = Out::new(listener, "listener")?;
        let defaults = handoff_listener_options {
            size: size_of::<handoff_listener_options>(),
            mode: HANDOFF_LISTENER_MODE,
            backlog: HANDOFF_LISTENER_BACKLOG,
            kind: HANDOFF_STREAM,
        };
        let options = self::options(options, defaults, "options")?;
        let kind = match options.kind {
            HANDOFF_STREAM => SocketKind::Stream,
            HANDOFF_SEQPACKET => SocketKind::SeqPacket,
            _ => return Err(Failure::Argument("options.kind")),
        };
        let options = ListenerOptions { mode: options.mode, backlog: options.backlog, kind };
        let listener = Listener::new(path, &options)?;
        out.set(Box::into_raw(Box::new(handoff_listener { listener })));
        Ok(())
    })
}

/// Gives the listening descriptor, to wait on in an event loop. It is non-blocking and
/// close-on-exec.
///
/// @param listener  the listener
/// @return the descriptor, which stays the listener's: do not close it; -1 if `listener` is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_listener_fd(listener: *const handoff_listener) -> c_int {
    guard_or(-1, || {
        let listener = reference(listener, "listener");
        listener.map_or(-1, |listener| listener.listener.as_fd().as_raw_fd())
    })
}

/// Accepts a connection of a broker that may be there; one that may not is closed.
///
/// @param listener     the listener
/// @param timeout_ms   how long to wait, in milliseconds; 0 not at all, negative for ever
/// @param policy       who may connect, or NULL for the default; read during the call only
/// @param[out] socket  the connection, blocking and close-on-exec; close(2) it
/// @return HANDOFF_OK; HANDOFF_ERR_WOULD_BLOCK if nobody came in that time;
///         HANDOFF_ERR_PEER_NOT_ALLOWED, HANDOFF_ERR_PEER_UNKNOWN: go on with the next;
///         HANDOFF_ERR_DESCRIPTOR_PRESSURE; HANDOFF_ERR_INVALID_ARGUMENT as for
///         handoff_peer_check(), and after shutdown(2) of the listening socket, which ends a wait;
///         HANDOFF_ERR_RECEIVE_FAILED.
///
/// Different threads may call it for one listener at once.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_listener_accept(
    listener: *const handoff_listener,
    timeout_ms: c_int,
    policy: *const handoff_peer_policy,
    socket: *mut c_int,
) -> handoff_status {
    guard(|| {
        let listener = &reference(listener, "listener")?.listener;
        let policy = self::policy(policy)?;
        let out = Out::new(socket, "socket")?;
        out.set(listener.accept(timeout(timeout_ms), &policy)?.into_raw_fd());
        Ok(())
    })
}

/// Stops listening, and removes the socket's file if it is still the one that was made. In a child
/// of fork() it closes the child's copy only.
///
/// @param listener  the listener, or NULL, which does nothing; no thread may be using it
#[unsafe(no_mangle)]
pub extern "C" fn handoff_listener_free(listener: *mut handoff_listener) {
    free(listener);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_of_the_header_are_the_defaults_of_the_core() {
        let defaults = ListenerOptions::default();
        assert_eq!(HANDOFF_LISTENER_MODE, defaults.mode);
        assert_eq!(HANDOFF_LISTENER_BACKLOG, defaults.backlog);
        assert_eq!(defaults.kind, SocketKind::Stream);
    }
}
