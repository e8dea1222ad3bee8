//! Packets with many descriptors.

use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::slice;

use super::arrived::Arrived;
use super::{CONTROL_LEN, Received, received, retry, retry_receive};

/// The most descriptors in a packet: one less than the kernel's SCM_MAX_FD, which is safe with
/// every libc.
pub(crate) const MAX_DESCRIPTORS: usize = 252;

/// Sends one packet, made of parts, with descriptors attached; without blocking and without
/// SIGPIPE. The descriptors are numbers because their owner is somebody else: what is not open is
/// EBADF.
pub(crate) fn send_packet(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    descriptors: &[RawFd],
) -> io::Result<usize> {
    send_message(socket, parts, descriptors, 0)
}

/// [`send_packet`], with flags of sendmsg(2) besides.
pub(super) fn send_message(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    descriptors: &[RawFd],
    flags: libc::c_int,
) -> io::Result<usize> {
    const MOST: usize = MAX_DESCRIPTORS;
    // SAFETY: CMSG_SPACE computes a size from a size.
    const SPACE: usize =
        unsafe { libc::CMSG_SPACE((MOST * mem::size_of::<RawFd>()) as libc::c_uint) } as usize;
    assert!(descriptors.len() <= MOST);
    let mut control = [mem::MaybeUninit::<u64>::uninit(); SPACE.div_ceil(8)];
    // SAFETY: msghdr is integers and pointers; all zero is a value of it.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    // An IoSlice has the layout of an iovec.
    message.msg_iov = parts.as_ptr().cast_mut().cast();
    message.msg_iovlen = parts.len() as _;
    if !descriptors.is_empty() {
        let len = mem::size_of_val(descriptors) as libc::c_uint;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: `control` is aligned and has room for one header and MOST descriptors, of which
        // the part that msg_controllen names is written: the header, then the descriptors. What is
        // padding between or behind them is zeroed first.
        unsafe {
            let space = libc::CMSG_SPACE(len) as usize;
            ptr::write_bytes(control.as_mut_ptr().cast::<u8>(), 0, space);
            message.msg_controllen = space as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(len) as _;
            let data = libc::CMSG_DATA(header);
            ptr::copy_nonoverlapping(descriptors.as_ptr().cast::<u8>(), data, len as usize);
        }
    }
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `message` points to `parts` and `control`, which outlive the call; sendmsg(2) only
    // reads the bytes.
    retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
}

/// The most packets that are received at once: more than are mostly there, so that one call tells
/// that they are all there is.
pub(crate) const PACKETS_AT_ONCE: usize = 4;

/// Each packet is received where a page begins, as it does in the kernel. Large memory of malloc(3)
/// lies 16 bytes behind that, and some processors of AMD copy several times as slowly to what lies
/// 1 to 31 bytes behind its source, modulo a page.
const PAGE: usize = 4096;

/// How much room [`receive_packets`] needs for packets of so many bytes, which must be whole pages.
pub(crate) const fn room_len(packet_len: usize) -> usize {
    assert!(packet_len % PAGE == 0);
    PAGE - 1 + PACKETS_AT_ONCE * packet_len
}

/// Packets that were received, in their order.
pub(crate) struct Packets<'a> {
    pub packets: [Option<(Received, &'a [u8])>; PACKETS_AT_ONCE],
    /// There was no other. But if the peer has closed and left packets unread, that may be hidden
    /// behind the first: the system tells it with the next call.
    pub all: bool,
}

/// Receives so many packets at most into equal parts of `room`, see [`room_len`]; each of their
/// descriptors is given to `take`, with the number of its packet.
pub(crate) fn receive_packets<'a>(
    socket: BorrowedFd<'_>,
    room: &'a mut [mem::MaybeUninit<u8>],
    most: usize,
    mut take: impl FnMut(usize, Arrived),
) -> io::Result<Packets<'a>> {
    let most = most.min(PACKETS_AT_ONCE);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let start = room.as_mut_ptr().cast::<u8>();
    let skip = start.align_offset(PAGE).min(room.len());
    let part_len = (room.len() - skip) / PACKETS_AT_ONCE / PAGE * PAGE;
    let mut controls =
        [[const { mem::MaybeUninit::<u64>::uninit() }; CONTROL_LEN / 8]; PACKETS_AT_ONCE];
    // SAFETY: each part lies in `room`.
    let part = |index| unsafe { start.add(skip + index * part_len) };
    let mut parts: [_; PACKETS_AT_ONCE] = std::array::from_fn(|index| libc::iovec {
        iov_base: part(index).cast(),
        iov_len: part_len,
    });
    // SAFETY: mmsghdr is integers and pointers; all zero is a value of it.
    let mut messages: [libc::mmsghdr; PACKETS_AT_ONCE] = unsafe { mem::zeroed() };
    for (message, (part, control)) in messages.iter_mut().zip(parts.iter_mut().zip(&mut controls)) {
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_control = control.as_mut_ptr().cast();
        message.msg_hdr.msg_controllen = mem::size_of_val(control) as _;
    }
    let socket = socket.as_raw_fd();
    let mut all = true;
    // SAFETY: `messages` points to `parts`, `room` and `controls`, which outlive the call, with
    // their lengths; a failed call leaves `messages` as it was. No timeout is given.
    let several = retry_receive(|| unsafe {
        let count = most as libc::c_uint;
        libc::recvmmsg(socket, messages.as_mut_ptr(), count, flags as _, ptr::null_mut()) as isize
    });
    let count = several.or_else(|error| {
        // A sandbox may know recvmsg(2) alone.
        if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
            return Err(error);
        }
        all = false;
        // SAFETY: as above, for the first message.
        let len = retry_receive(|| unsafe {
            libc::recvmsg(socket, &raw mut messages[0].msg_hdr, flags)
        })?;
        messages[0].msg_len = len as libc::c_uint;
        Ok(1)
    })?;
    let packets = std::array::from_fn(|index| {
        let message = messages.get(index).filter(|_| index < count)?;
        let len = message.msg_len as usize;
        let received = received(&message.msg_hdr, len, |descriptor| take(index, descriptor));
        // SAFETY: the kernel has written that much of this part, and nobody else uses it.
        Some((received, unsafe { slice::from_raw_parts(part(index), len.min(part_len)) }))
    });
    Ok(Packets { packets, all: all && count < most })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn packets_are_received_where_pages_begin_wherever_the_room_does() {
        let (from, to) = UnixDatagram::pair().unwrap();
        let sent = [7; PAGE];
        let mut room = vec![mem::MaybeUninit::uninit(); PAGE + room_len(PAGE)];
        for start in [0, 1, 16, PAGE - 1] {
            (0..PACKETS_AT_ONCE).for_each(|_| assert_eq!(from.send(&sent).unwrap(), PAGE));
            let room = &mut room[start..start + room_len(PAGE)];
            let none = |_, _| panic!("a descriptor");
            let received = receive_packets(to.as_fd(), room, PACKETS_AT_ONCE, none);
            for packet in received.unwrap().packets {
                let (received, bytes) = packet.unwrap();
                assert!(!received.payload_truncated && bytes == sent);
                assert_eq!(bytes.as_ptr().addr() % PAGE, 0);
            }
        }
    }
}
