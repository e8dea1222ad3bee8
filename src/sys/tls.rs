//! TLS that the kernel does on a socket: what it tells about it, and records that are no data.
//!
//! The numbers are those of include/uapi/linux/tls.h. Documentation/networking/tls.rst of the
//! kernel describes them; man-pages do not.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::socket::level_option;
use super::{CONTROL_LEN, for_each_control, for_each_descriptor, retry};

const SOL_TLS: libc::c_int = 282;
const TCP_ULP: libc::c_int = 31;
const TLS_SET_RECORD_TYPE: libc::c_int = 1;
const TLS_GET_RECORD_TYPE: libc::c_int = 2;
/// The most bytes in the name of a protocol above TCP: TCP_ULP_NAME_MAX of the kernel.
const ULP_NAME_LEN: usize = 16;

/// A direction of a connection, by its socket option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// TLS_TX.
    Send = 1,
    /// TLS_RX.
    Receive = 2,
}

/// What the kernel tells of a direction: the version of TLS and the cipher, in its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crypto {
    pub version: u16,
    pub cipher: u16,
}

/// What one recvmsg(2) brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Bytes written to the buffer, and the first of them; zeros where there are none.
    pub len: usize,
    pub start: [u8; 2],
    /// The content type of the record that they are from. None if the kernel does no TLS for what
    /// this socket receives, and in most cases at the end of the stream.
    pub content: Option<u8>,
}

/// Whether a socket's protocol above TCP is TLS. Then it may still be that neither direction has a
/// key.
pub(crate) fn is_above_tcp(socket: BorrowedFd<'_>) -> bool {
    let mut name = [0u8; ULP_NAME_LEN];
    // Sockets that are not TCP's do not know the option.
    level_option(socket, libc::IPPROTO_TCP, TCP_ULP, &mut name).is_ok_and(|len| len >= 3)
        && name.starts_with(b"tls\0")
}

/// What the kernel does in a direction; none if it does no TLS there. Its answer to a question of
/// this length has no key in it (do_tls_getsockopt_conf in net/tls/tls_main.c).
pub(crate) fn direction(
    socket: BorrowedFd<'_>,
    direction: Direction,
) -> io::Result<Option<Crypto>> {
    let mut info = [0u16; 2];
    match level_option(socket, SOL_TLS, direction as libc::c_int, &mut info) {
        Ok(2) => Ok(Some(Crypto { version: info[0], cipher: info[1] })),
        Ok(_) => Ok(None),
        Err(error) => match error.raw_os_error() {
            // It has no key; or it is not TLS at all.
            Some(libc::EBUSY | libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::EINVAL) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Receives bytes without waiting, all of them from records of one content type. Descriptors that
/// came with them over a Unix socket are closed.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [MaybeUninit<u8>],
) -> io::Result<Record> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let mut control = [const { MaybeUninit::<u64>::uninit() }; CONTROL_LEN / 8];
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is integers and pointers; all zero is a value of it.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control) as _;
    // SAFETY: `message` points to `iov`, `buffer` and `control`, which outlive the call, with
    // their lengths; a failed call leaves `message` as it was, so it can be made again.
    let len = retry(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) })?;
    for_each_descriptor(&message, drop);
    let mut start = [0; 2];
    for (byte, written) in start.iter_mut().zip(buffer.iter().take(len)) {
        // SAFETY: recvmsg(2) wrote the first `len` bytes.
        *byte = unsafe { written.assume_init() };
    }
    Ok(Record { len, start, content: content_type(&message) })
}

/// The content type among the control messages that recvmsg(2) wrote.
fn content_type(message: &libc::msghdr) -> Option<u8> {
    let mut content = None;
    for_each_control(message, |level, kind, data| {
        if level == SOL_TLS && kind == TLS_GET_RECORD_TYPE {
            content = content.or(data.first().copied());
        }
    });
    content
}

/// Sends a record of a content type, whole or not at all, without waiting and without SIGPIPE. The
/// kernel must do the TLS of what this socket sends: otherwise the bytes would go out as they are.
pub(crate) fn send(socket: BorrowedFd<'_>, content: u8, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: CMSG_SPACE computes a size from a size.
    const SPACE: usize = unsafe { libc::CMSG_SPACE(1) } as usize;
    let mut control = [0u64; SPACE.div_ceil(8)];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is integers and pointers; all zero is a value of it.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = SPACE as _;
    // SAFETY: `control` is aligned and has room for one header and one byte behind it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = SOL_TLS;
        (*header).cmsg_type = TLS_SET_RECORD_TYPE;
        (*header).cmsg_len = libc::CMSG_LEN(1) as _;
        *libc::CMSG_DATA(header) = content;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `message` points to `iov`, `bytes` and `control`, which outlive the call; sendmsg(2)
    // only reads them.
    retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
}

/// Ends the sending direction: the peer sees the end of the stream behind what was sent.
pub(crate) fn shutdown_write(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: shutdown(2) takes no pointers.
    retry(|| unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) as isize })?;
    Ok(())
}
