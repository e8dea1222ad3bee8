//! One descriptor and its token, sent and received.

use std::ffi::{c_char, c_int};
use std::os::fd::IntoRawFd;

use super::status::handoff_status;
use super::token::{handoff_token, handoff_token_store, token};
use super::{Out, descriptor, guard, path, reference, timeout};
use crate::raw::{admit, transport};

/// Connects to a handoff socket, stream or sequenced-packet, whichever listens there.
///
/// @param path         the socket's path, at most 107 bytes; "@" begins an abstract name on Linux
/// @param[out] socket  the connection, non-blocking and close-on-exec; close(2) it
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_BACKEND_UNAVAILABLE (also where
///         there is no such file, or one that is no socket); HANDOFF_ERR_PERMISSION_DENIED;
///         HANDOFF_ERR_WOULD_BLOCK if the backlog is full; HANDOFF_ERR_DESCRIPTOR_PRESSURE;
///         HANDOFF_ERR_UNSUPPORTED for an abstract name elsewhere than on Linux.
///
/// Never blocks. Any thread may call it, also after fork().
#[unsafe(no_mangle)]
pub extern "C" fn handoff_connect(path: *const c_char, socket: *mut c_int) -> handoff_status {
    guard(|| {
        let path = self::path(path)?;
        let out = Out::new(socket, "socket")?;
        out.set(transport::connect(path)?.into_raw_fd());
        Ok(())
    })
}

/// Sends a descriptor and its token over a connected socket in one message, or not at all.
///
/// The message is the 16 bytes of the token with one descriptor attached (SCM_RIGHTS, unix(7)).
///
/// @param socket  a connected Unix socket, stream or sequenced-packet, blocking or not; kept. Over
///                any other kind of socket the system sends the token without the descriptor.
/// @param fd      the descriptor to send, another than `socket`; it stays the caller's, open and
///                unchanged, and may be closed as soon as this returns
/// @param token   its token
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_WOULD_BLOCK if the socket's
///         buffer is full; HANDOFF_ERR_BACKEND_UNAVAILABLE if the other end is closed;
///         HANDOFF_ERR_DESCRIPTOR_PRESSURE if this user has too many descriptors in flight;
///         HANDOFF_ERR_PERMISSION_DENIED; HANDOFF_ERR_SEND_FAILED. In all of these nothing was
///         sent. HANDOFF_ERR_SHORT_WRITE: the descriptor was sent, its token only in part.
///
/// Never blocks and never raises SIGPIPE. Different threads may use different sockets at once.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_send(
    socket: c_int,
    fd: c_int,
    token: *const handoff_token,
) -> handoff_status {
    guard(|| {
        let (socket, fd) = (descriptor(socket, "socket")?, descriptor(fd, "fd")?);
        Ok(transport::send(socket, fd, &self::token(token, "token")?)?)
    })
}

/// Backend: sends a token alone, which allows the broker one message on this connection.
///
/// A token that a backend issues from its store and sends so proves, when it comes back with a
/// descriptor, that this backend admitted that message.
///
/// @param socket  a connected Unix socket, blocking or not; kept
/// @param token   a token that the store holds
/// @return HANDOFF_OK; HANDOFF_ERR_END_OF_STREAM if the broker has closed;
///         HANDOFF_ERR_WOULD_BLOCK if it does not read what it is sent;
///         HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_RECEIVE_FAILED.
///
/// Never blocks and never raises SIGPIPE. Different threads may use different sockets at once.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_send(socket: c_int, token: *const handoff_token) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        Ok(transport::send_token(socket, &self::token(token, "token")?)?)
    })
}

/// Broker: receives a token that the backend sent with handoff_token_send().
///
/// @param socket      a connected Unix socket, blocking or not; kept
/// @param timeout_ms  how long to wait, in milliseconds; 0 not at all, negative for ever
/// @param[out] token  the token
/// @return HANDOFF_OK; HANDOFF_ERR_WOULD_BLOCK if none came in that time;
///         HANDOFF_ERR_END_OF_STREAM; HANDOFF_ERR_WRONG_LENGTH; HANDOFF_ERR_INVALID_ARGUMENT;
///         HANDOFF_ERR_RECEIVE_FAILED. After one other than HANDOFF_ERR_WOULD_BLOCK, close the
///         socket.
///
/// Different threads may use different sockets at once.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_token_receive(
    socket: c_int,
    timeout_ms: c_int,
    token: *mut handoff_token,
) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        let out = Out::new(token, "token")?;
        out.set(transport::receive_token(socket, timeout(timeout_ms))?.into());
        Ok(())
    })
}

/// handoff_connect() and handoff_send() in one call.
///
/// @param path         see handoff_connect()
/// @param fd           see handoff_send()
/// @param token        see handoff_send()
/// @param[out] socket  the connection, on which the acknowledgement will come; non-blocking and
///                     close-on-exec; close(2) it
/// @return as handoff_connect() and handoff_send(); after an error no connection stays open.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_send_path(
    path: *const c_char,
    fd: c_int,
    token: *const handoff_token,
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

/// Receives one message: a token, which is not verified, and a descriptor.
///
/// @param socket      a connected Unix socket, blocking or not; kept
/// @param timeout_ms  how long to wait, in milliseconds; 0 not at all, negative for ever
/// @param[out] token  the token
/// @param[out] fd     the descriptor, close-on-exec; the caller's to close(2)
/// @return HANDOFF_OK; HANDOFF_ERR_WOULD_BLOCK if nothing came in that time;
///         HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_END_OF_STREAM; HANDOFF_ERR_NO_DESCRIPTOR;
///         HANDOFF_ERR_SURPLUS_DESCRIPTORS; HANDOFF_ERR_CONTROL_TRUNCATED;
///         HANDOFF_ERR_WRONG_LENGTH; HANDOFF_ERR_RECEIVE_FAILED.
///
/// After any error no descriptor that came stays open. After one other than
/// HANDOFF_ERR_WOULD_BLOCK, close the socket. Different threads may use different sockets at once.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_receive(
    socket: c_int,
    timeout_ms: c_int,
    token: *mut handoff_token,
    fd: *mut c_int,
) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        let (token_out, fd_out) = (Out::new(token, "token")?, Out::new(fd, "fd")?);
        let (token, fd) = transport::receive(socket, timeout(timeout_ms))?;
        token_out.set(token.into());
        fd_out.set(fd.into_raw_fd());
        Ok(())
    })
}

/// Receives one message and gives its descriptor only if its token is pending in a store. The
/// token is consumed by that. What else comes is closed.
///
/// @param socket      a connected Unix socket, blocking or not; kept
/// @param timeout_ms  how long to wait, in milliseconds; 0 not at all, negative for ever
/// @param store       the store that must hold the token
/// @param expected    the one token that will do, or NULL for any in the store
/// @param[out] token  the token that came, for the acknowledgement; may be NULL
/// @param[out] fd     the descriptor, close-on-exec; the caller's to close(2)
/// @return HANDOFF_OK; what handoff_receive() returns; HANDOFF_ERR_TOKEN_MISMATCH if it is not
///         `expected`; HANDOFF_ERR_TOKEN_EXPIRED; HANDOFF_ERR_TOKEN_NOT_PENDING if the store never
///         held it or it was used before.
///
/// After any error no descriptor that came stays open. After one other than
/// HANDOFF_ERR_WOULD_BLOCK, close the socket. Different threads may use different sockets at once,
/// with the same store.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_receive_verified(
    socket: c_int,
    timeout_ms: c_int,
    store: *mut handoff_token_store,
    expected: *const handoff_token,
    token: *mut handoff_token,
    fd: *mut c_int,
) -> handoff_status {
    guard(|| {
        let socket = descriptor(socket, "socket")?;
        let store = &reference(store, "store")?.store;
        let expected =
            if expected.is_null() { None } else { Some(self::token(expected, "expected")?) };
        let (token_out, fd_out) = (Out::optional(token, "token")?, Out::new(fd, "fd")?);
        let (token, fd) =
            admit::receive_verified(socket, timeout(timeout_ms), store, expected.as_ref())?;
        if let Some(out) = token_out {
            out.set(token.into());
        }
        fd_out.set(fd.into_raw_fd());
        Ok(())
    })
}
