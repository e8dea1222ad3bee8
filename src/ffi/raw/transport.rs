//! One descriptor and its token, sent and received.

use std::ffi::{c_char, c_int};
use std::os::fd::IntoRawFd;

use super::store::handoff_raw_store;
use super::token::{handoff_raw_token, token};
use crate::ffi::argument::{Out, descriptor, path, reference, wait};
use crate::ffi::guard::guard;
use crate::ffi::status::handoff_status;
use crate::raw::{admit, transport};

/// Connects to a handoff socket, stream or sequenced-packet, whichever listens there. The call
/// never blocks. Whoever listens there gets what you send: an abstract name belongs to the process
/// that took it first. handoff_raw_peer_check() tells whether the right peer listens.
///
/// @param path         the socket's path, at most 107 bytes; "@" starts an abstract name
/// @param[out] socket  the connection, non-blocking and close-on-exec; close(2) it
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_BACKEND_UNAVAILABLE, also if there
///         is no such file or it is not a socket; HANDOFF_ERR_PERMISSION_DENIED;
///         HANDOFF_ERR_WOULD_BLOCK if the backlog is full; HANDOFF_ERR_DESCRIPTOR_PRESSURE.
///
/// Safe in any thread and after fork().
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_connect(path: *const c_char, socket: *mut c_int) -> handoff_status {
    guard(|| {
        let path = self::path(path)?;
        let out = Out::new(socket, "socket")?;
        out.set(transport::connect(path)?.into_raw_fd());
        Ok(())
    })
}

/// Sends a descriptor and its token over a connected socket in one message, or not at all. The call
/// never blocks.
///
/// @param socket  a connected Unix socket, stream or sequenced-packet, blocking or not. A datagram
///                socket of socketpair(2) works, but its receiver is not told that you have closed
///                yours. A connected TCP socket is refused (with MPTCP not by Linux 6.2 and 6.3).
///                Over any other socket, the system sends the token without the descriptor, and
///                reports no error.
/// @param fd      the descriptor to send, not `socket` itself. It stays yours, open and unchanged,
///                and you may close it when this returns.
/// @param token   its token
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_WOULD_BLOCK if the socket's
///         buffer is full; HANDOFF_ERR_BACKEND_UNAVAILABLE if the other end is closed;
///         HANDOFF_ERR_DESCRIPTOR_PRESSURE if this user has too many descriptors in flight;
///         HANDOFF_ERR_PERMISSION_DENIED; HANDOFF_ERR_SEND_FAILED. After these errors nothing was
///         sent. HANDOFF_ERR_SHORT_WRITE: the descriptor was sent, but only a part of its token.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_send(
    socket: c_int,
    fd: c_int,
    token: *const handoff_raw_token,
) -> handoff_status {
    guard(|| {
        let (socket, fd) = (descriptor(socket, "socket")?, descriptor(fd, "fd")?);
        Ok(transport::send(socket, fd, &self::token(token, "token")?)?)
    })
}

/// Connects to a handoff socket and sends a descriptor and its token: handoff_raw_connect() and
/// handoff_raw_send() in one call. The call does not check who listens there.
///
/// @param path         see handoff_raw_connect()
/// @param fd           see handoff_raw_send()
/// @param token        see handoff_raw_send()
/// @param[out] socket  the connection, on which the acknowledgement will come; non-blocking and
///                     close-on-exec; close(2) it
/// @return as handoff_raw_connect() and handoff_raw_send(). After an error no connection stays
///         open.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_send_path(
    path: *const c_char,
    fd: c_int,
    token: *const handoff_raw_token,
    socket: *mut c_int,
) -> handoff_status {
    guard(|| {
        let (path, fd) = (self::path(path)?, descriptor(fd, "fd")?);
        let token = self::token(token, "token")?;
        let out = Out::new(socket, "socket")?;
        out.set(transport::send_path(path, fd, &token)?.into_raw_fd());
        Ok(())
    })
}

/// Receives one message, and returns its descriptor only if its token is pending in a store. That
/// consumes the token.
///
/// @param socket      a connected Unix socket, blocking or not
/// @param store       the store that must hold the token
/// @param expected    the one token to accept, or NULL for any in the store
/// @param wait_ms     how long to wait, in milliseconds, as in poll(2)
/// @param[out] token  the token, for the acknowledgement; may be NULL
/// @param[out] fd     the descriptor, close-on-exec; close(2) it
/// @return HANDOFF_OK, or another status of handoff_raw_receive(); HANDOFF_ERR_TOKEN_MISMATCH if it
///         is not `expected`; HANDOFF_ERR_TOKEN_EXPIRED; HANDOFF_ERR_TOKEN_NOT_PENDING if the store
///         never held it or it was already used.
///
/// After an error, every descriptor that came is closed, and you must close the socket.
/// HANDOFF_TIMED_OUT is not an error: the socket stays usable.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_receive_verified(
    socket: c_int,
    store: *mut handoff_raw_store,
    expected: *const handoff_raw_token,
    wait_ms: c_int,
    token: *mut handoff_raw_token,
    fd: *mut c_int,
) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        let store = &reference(store, "store")?.store;
        let expected =
            if expected.is_null() { None } else { Some(self::token(expected, "expected")?) };
        let (token_out, fd_out) = (Out::optional(token, "token")?, Out::new(fd, "fd")?);
        let (token, fd) = admit::receive_verified(socket, wait(wait_ms), store, expected.as_ref())?;
        if let Some(out) = token_out {
            out.set(token.into());
        }
        fd_out.set(fd.into_raw_fd());
        Ok(())
    })
}

/// Receives one message: a descriptor and its token. The token is not verified.
///
/// @param socket      a connected Unix socket, blocking or not
/// @param wait_ms     how long to wait, in milliseconds, as in poll(2)
/// @param[out] token  the token
/// @param[out] fd     the descriptor, close-on-exec; close(2) it
/// @return HANDOFF_OK; HANDOFF_TIMED_OUT if nothing came in that time;
///         HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_END_OF_STREAM; HANDOFF_ERR_NO_DESCRIPTOR;
///         HANDOFF_ERR_SURPLUS_DESCRIPTORS; HANDOFF_ERR_CONTROL_TRUNCATED;
///         HANDOFF_ERR_WRONG_LENGTH; HANDOFF_ERR_DESCRIPTOR_PRESSURE; HANDOFF_ERR_RECEIVE_FAILED.
///
/// After an error, every descriptor that came is closed, and you must close the socket.
/// HANDOFF_TIMED_OUT is not an error: the socket stays usable.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_receive(
    socket: c_int,
    wait_ms: c_int,
    token: *mut handoff_raw_token,
    fd: *mut c_int,
) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        let (token_out, fd_out) = (Out::new(token, "token")?, Out::new(fd, "fd")?);
        let (token, fd) = transport::receive(socket, wait(wait_ms))?;
        token_out.set(token.into());
        fd_out.set(fd.into_raw_fd());
        Ok(())
    })
}

/// Backend: sends a token without a descriptor. The token allows the broker one message on this
/// connection.
///
/// A token that comes back with a descriptor proves that this backend allowed the message. The call
/// never blocks.
///
/// @param socket  a connected Unix socket, blocking or not. A connected TCP socket is refused.
/// @param token   a token that the store holds
/// @return HANDOFF_OK; HANDOFF_ERR_END_OF_STREAM if the broker closed the connection;
///         HANDOFF_ERR_WOULD_BLOCK if the broker does not read what it is sent;
///         HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_SHORT_WRITE if only a part was sent;
///         HANDOFF_ERR_SEND_FAILED.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_token_send(
    socket: c_int,
    token: *const handoff_raw_token,
) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        Ok(transport::send_token(socket, &self::token(token, "token")?)?)
    })
}

/// Broker: receives a token that the backend sent with handoff_raw_token_send().
///
/// @param socket      a connected Unix socket, blocking or not
/// @param wait_ms     how long to wait, in milliseconds, as in poll(2)
/// @param[out] token  the token
/// @return HANDOFF_OK; HANDOFF_TIMED_OUT if none came in that time: the backend is busy, so the
///         reason for a fallback is HANDOFF_REASON_BACKEND_BUSY; HANDOFF_ERR_END_OF_STREAM;
///         HANDOFF_ERR_WRONG_LENGTH; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_RECEIVE_FAILED.
///
/// After an error close the socket. HANDOFF_TIMED_OUT is not an error: the socket stays usable.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_token_receive(
    socket: c_int,
    wait_ms: c_int,
    token: *mut handoff_raw_token,
) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        let out = Out::new(token, "token")?;
        out.set(transport::receive_token(socket, wait(wait_ms))?.into());
        Ok(())
    })
}
