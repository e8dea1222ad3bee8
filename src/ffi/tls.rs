//! Connections whose TLS the kernel does.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::time::Instant;

use super::argument::{Out, Problem, check, descriptor, wait};
use super::growing::{Fill, Growing};
use super::guard::{Failure, guard};
use super::status::handoff_status;
use crate::tls::{self, Session};

/// In handoff_tls_session.version: TLS 1.2.
pub const HANDOFF_TLS_1_2: u32 = 0x0303;
/// In handoff_tls_session.version: TLS 1.3.
pub const HANDOFF_TLS_1_3: u32 = 0x0304;
/// In handoff_tls_session.directions: the kernel encrypts what you send.
pub const HANDOFF_TLS_SEND: u32 = 1;
/// In handoff_tls_session.directions: the kernel decrypts what you receive.
pub const HANDOFF_TLS_RECEIVE: u32 = 2;

/// What the kernel reports about a connection's TLS. It holds no key: the library never asks for
/// one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_tls_session {
    /// Set by HANDOFF_TLS_SESSION_INIT.
    pub size: usize,
    /// As in the protocol: HANDOFF_TLS_1_2 or HANDOFF_TLS_1_3.
    pub version: u32,
    /// The kernel's number of the cipher: TLS_CIPHER_* of linux/tls.h.
    pub cipher: u32,
    /// HANDOFF_TLS_SEND and HANDOFF_TLS_RECEIVE. An arrival with `tls` has both.
    pub directions: u32,
    /// Reserved: always 0.
    pub reserved: u32,
    /// "TLSv1.2", "TLSv1.3", or "unknown".
    pub version_name: *const c_char,
    /// The cipher's name, such as "AES-128-GCM" or "CHACHA20-POLY1305"; "unknown" if the library is
    /// older than the cipher. The kernel does not know the rest of the cipher suite.
    pub cipher_name: *const c_char,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_tls_session {
    const INIT: &'static str = "HANDOFF_TLS_SESSION_INIT";
}

fn version_name(version: u16) -> &'static CStr {
    match u32::from(version) {
        HANDOFF_TLS_1_2 => c"TLSv1.2",
        HANDOFF_TLS_1_3 => c"TLSv1.3",
        _ => c"unknown",
    }
}

/// The names of TLS_CIPHER_* in linux/tls.h.
fn cipher_name(cipher: u16) -> &'static CStr {
    match cipher {
        51 => c"AES-128-GCM",
        52 => c"AES-256-GCM",
        53 => c"AES-128-CCM",
        54 => c"CHACHA20-POLY1305",
        55 => c"SM4-GCM",
        56 => c"SM4-CCM",
        57 => c"ARIA-128-GCM",
        58 => c"ARIA-256-GCM",
        _ => c"unknown",
    }
}

fn session_of(session: Session) -> handoff_tls_session {
    let Session { version, cipher, sends, receives } = session;
    let direction = |has, flag| if has { flag } else { 0 };
    handoff_tls_session {
        size: size_of::<handoff_tls_session>(),
        version: version.into(),
        cipher: cipher.into(),
        directions: direction(sends, HANDOFF_TLS_SEND) | direction(receives, HANDOFF_TLS_RECEIVE),
        reserved: 0,
        version_name: version_name(version).as_ptr(),
        cipher_name: cipher_name(cipher).as_ptr(),
    }
}

/// Gets what the kernel reports about a connection's TLS.
///
/// @param fd            a socket
/// @param[out] session  its TLS. The strings are constants.
/// @return HANDOFF_OK; HANDOFF_NOTHING if the kernel does no TLS on this socket: what you send is
///         what the client gets; HANDOFF_ERR_INVALID_ARGUMENT, also if `fd` is not a socket or
///         `session->size` is wrong; HANDOFF_ERR_RECEIVE_FAILED if the system refuses to tell.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_tls_get_session(
    fd: c_int,
    session: *mut handoff_tls_session,
) -> handoff_status {
    guard(|| {
        let out = Fill::new(session, "session")?;
        let found = tls::session(descriptor(fd, "fd")?)?.ok_or(Failure::Nothing)?;
        out.set(session_of(found));
        Ok(())
    })
}

/// Receives data, as recv(2) does. The call never returns anything else as data.
///
/// The call waits as `wait_ms` says, whether the descriptor is non-blocking or not. It receives a
/// record only when all of the record has come.
///
/// @param fd             a connection, with TLS that the kernel does, or plain
/// @param buffer         where the data goes. Unless the call returns HANDOFF_OK, the contents have
///                       no meaning.
/// @param len            the size of the buffer, at least 1; 16384 takes a whole record
/// @param wait_ms        how long to wait, in milliseconds, as in poll(2)
/// @param[out] received  the number of bytes; 0 at the end of the stream: close_notify or, on a
///                       plain socket, the end of the connection. Do not receive again.
/// @return HANDOFF_OK; HANDOFF_TIMED_OUT if nothing came in that time, also with a `wait_ms` of 0;
///         HANDOFF_ERR_END_OF_STREAM if the client closed a connection with TLS without
///         close_notify. Many clients do. Treat what you have as complete only if its own framing
///         says so, as an HTTP request's does;
///         HANDOFF_ERR_TLS_KEY_UPDATE if the client has updated its key: the session cannot
///         continue;
///         HANDOFF_ERR_TLS_ALERT if the client sent any alert except close_notify and
///         user_canceled, which only says that close_notify follows: handoff_last_error() says
///         which;
///         HANDOFF_ERR_TLS_RECORD for any record other than data, such as a handshake (a client
///         that renegotiates), and for bytes that are not a record of this connection;
///         HANDOFF_ERR_RECEIVE_FAILED with errno as of recv(2), such as ECONNRESET;
///         HANDOFF_ERR_INVALID_ARGUMENT, also if `fd` is not a socket, or `len` is 0 or more than
///         SSIZE_MAX.
///
/// After an error nothing more can be received: close(2) `fd`.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_tls_receive(
    fd: c_int,
    buffer: *mut c_void,
    len: usize,
    wait_ms: c_int,
    received: *mut usize,
) -> handoff_status {
    guard(|| {
        let out = Out::new(received, "received")?;
        let socket = descriptor(fd, "fd")?;
        let buffer = room(buffer, len)?;
        out.set(tls::receive(socket, buffer, deadline(wait_ms))?);
        Ok(())
    })
}

/// Ends your direction of a connection, as shutdown(2) with SHUT_WR does. If the kernel does the
/// TLS of what you send, the call first sends the alert close_notify.
///
/// The descriptor stays yours and open: close(2) it next. If the client may still be sending, first
/// receive until the end of the stream: close(2) with unread bytes resets the connection, and the
/// client may lose the last bytes that you sent.
///
/// @param fd       a connection, with TLS that the kernel does, or plain
/// @param wait_ms  how long to wait for room in the socket's buffer, in milliseconds, as in
///                 poll(2), whether the descriptor is non-blocking or not. A plain socket needs no
///                 room.
/// @return HANDOFF_OK; HANDOFF_TIMED_OUT if there was no room in that time: nothing was sent; call
///         it again when the socket is writable, or close(2) it without close_notify;
///         HANDOFF_ERR_SEND_FAILED with errno as of sendmsg(2) or shutdown(2), such as EPIPE or
///         ENOTCONN: close(2) it; HANDOFF_ERR_INVALID_ARGUMENT if `fd` is not a socket.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_tls_shutdown(fd: c_int, wait_ms: c_int) -> handoff_status {
    guard(|| Ok(tls::shutdown(descriptor(fd, "fd")?, deadline(wait_ms))?))
}

/// When a wait is over; none is never.
fn deadline(wait_ms: c_int) -> Option<Instant> {
    Instant::now().checked_add(wait(wait_ms)?)
}

/// The buffer that C passes to be written to.
fn room<'a>(buffer: *mut c_void, len: usize) -> Result<&'a mut [MaybeUninit<u8>], Failure> {
    let buffer = buffer.cast::<MaybeUninit<u8>>();
    check(buffer, "buffer")?;
    if len == 0 {
        return Err(Failure::Argument("len", Problem::Is("is 0")));
    }
    // Such as -1 as a size_t.
    if len > isize::MAX as usize {
        return Err(Failure::Argument("buffer", Problem::Length(len, "bytes")));
    }
    // SAFETY: not NULL, and no longer than an object can be; the caller of the C function vouches
    // for room of `len` bytes that nobody else uses during the call.
    Ok(unsafe { std::slice::from_raw_parts_mut(buffer, len) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_numbers_have_a_name() {
        assert_eq!(version_name(0x0303), c"TLSv1.2");
        assert_eq!(version_name(0x0305), c"unknown");
        assert_eq!(cipher_name(54), c"CHACHA20-POLY1305");
        assert_eq!(cipher_name(0), c"unknown");
        assert_eq!(cipher_name(u16::MAX), c"unknown");
    }
}
