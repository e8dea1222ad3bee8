//! Packets with many descriptors, and what the kernel tells about a socket.

use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::slice;

use super::arrived::Arrived;
use super::{CONTROL_LEN, Received, level_option, received, retry, retry_receive, socket_option};

/// The most descriptors in a packet: one less than the kernel's SCM_MAX_FD, which is safe with every
/// libc.
pub(crate) const MAX_DESCRIPTORS: usize = 252;

/// Sends one packet, made of parts, with descriptors attached; without blocking and without SIGPIPE.
/// The descriptors are numbers because their owner is somebody else: what is not open is EBADF.
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

/// How many packets are received at once: more than are mostly there, so that one call tells that they are
/// all there is.
pub(crate) const AT_ONCE: usize = 4;

/// Each packet is received where a page begins, as it does in the kernel. Large memory of malloc(3) lies
/// 16 bytes behind that, and some processors of AMD copy several times as slowly to what lies 1 to 31 bytes
/// behind its source, modulo a page.
const PAGE: usize = 4096;

/// How much room [`receive_packets`] needs for packets of so many bytes, which must be whole pages.
pub(crate) const fn room_len(packet_len: usize) -> usize {
    assert!(packet_len % PAGE == 0);
    PAGE - 1 + AT_ONCE * packet_len
}

/// Packets that were received, in their order.
pub(crate) struct Packets<'a> {
    pub packets: [Option<(Received, &'a [u8])>; AT_ONCE],
    /// There was no other. But if the peer has closed and left packets unread, that may be hidden
    /// behind the first: the system tells it with the next call.
    pub all: bool,
}

/// Receives packets into equal parts of `room`, see [`room_len`]; each of their descriptors is given to
/// `take`, with the number of its packet.
pub(crate) fn receive_packets<'a>(
    socket: BorrowedFd<'_>,
    room: &'a mut [mem::MaybeUninit<u8>],
    mut take: impl FnMut(usize, Arrived),
) -> io::Result<Packets<'a>> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let start = room.as_mut_ptr().cast::<u8>();
    let skip = start.align_offset(PAGE).min(room.len());
    let part_len = (room.len() - skip) / AT_ONCE / PAGE * PAGE;
    let mut controls = [[const { mem::MaybeUninit::<u64>::uninit() }; CONTROL_LEN / 8]; AT_ONCE];
    // SAFETY: each part lies in `room`.
    let part = |index| unsafe { start.add(skip + index * part_len) };
    let mut parts: [_; AT_ONCE] = std::array::from_fn(|index| libc::iovec {
        iov_base: part(index).cast(),
        iov_len: part_len,
    });
    // SAFETY: mmsghdr is integers and pointers; all zero is a value of it.
    let mut messages: [libc::mmsghdr; AT_ONCE] = unsafe { mem::zeroed() };
    for (message, (part, control)) in messages.iter_mut().zip(parts.iter_mut().zip(&mut controls)) {
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_control = control.as_mut_ptr().cast();
        message.msg_hdr.msg_controllen = mem::size_of_val(control) as _;
    }
    let socket = socket.as_raw_fd();
    let mut all = true;
    // SAFETY: `messages` points to `parts`, `room` and `controls`, which outlive the call, with their
    // lengths; a failed call leaves `messages` as it was. No timeout is given.
    let several = retry_receive(|| unsafe {
        let count = AT_ONCE as libc::c_uint;
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
    Ok(Packets { packets, all: all && count < AT_ONCE })
}

/// Refuses descriptors on a socket, where the kernel can (Linux 6.16): a sender's sendmsg(2) fails.
pub(crate) fn refuse_descriptors(socket: &OwnedFd) {
    const SO_PASSRIGHTS: libc::c_int = 83;
    let no: libc::c_int = 0;
    // SAFETY: the pointer and the length describe `no`. Older kernels do not know the option.
    unsafe {
        let len = mem::size_of::<libc::c_int>() as libc::socklen_t;
        let value = (&raw const no).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PASSRIGHTS, value, len);
    }
}

/// SO_COOKIE: a number that this socket has in every process and no other socket has, in older
/// kernels no other of its network namespace; 0 on a system without such numbers, or which does not
/// tell them. An error if the descriptor is not a socket. It is in
/// include/uapi/asm-generic/socket.h of the kernel; man-pages 6.03 do not have it.
pub(crate) fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = [0u64];
    match socket_option(socket, libc::SO_COOKIE, &mut cookie) {
        Ok(_) => Ok(cookie[0]),
        Err(error) => without_cookie(socket, error),
    }
}

/// Emulators and sandboxes differ in how they refuse an option that they do not know, also for what
/// is no socket: SO_TYPE, which all of them know, tells.
#[cold]
fn without_cookie(socket: BorrowedFd<'_>, error: io::Error) -> io::Result<u64> {
    match error.raw_os_error() {
        Some(libc::EBADF | libc::ENOTSOCK) => Err(error),
        _ => socket_type(socket).map(|_| 0),
    }
}

/// SO_TYPE, socket(7).
pub(crate) fn socket_type(socket: BorrowedFd<'_>) -> io::Result<i32> {
    let mut kind = [0i32];
    socket_option(socket, libc::SO_TYPE, &mut kind)?;
    Ok(kind[0])
}

/// The address family of a socket's peer, getpeername(2): a listening socket and a new one have no
/// peer.
pub(crate) fn peer_family(socket: BorrowedFd<'_>) -> Option<libc::c_int> {
    let mut address = mem::MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut len = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: the pointer and `len` describe `address`.
    let result =
        unsafe { libc::getpeername(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut len) };
    // SAFETY: all zero is a value of it, and so is whatever the kernel wrote over that.
    let address = unsafe { address.assume_init() };
    (result == 0).then_some(libc::c_int::from(address.ss_family))
}

/// Which of some descriptors, at most [`MAX_DESCRIPTORS`], are TCP sockets with a peer: for certain,
/// because a "no" only says that this does not tell.
///
/// Each is asked whether it is a TCP socket, and then one poll(2) asks all that are. Only sockets
/// are polled: poll(2) of another file can wait for whoever serves that file.
pub(crate) fn connected_over_tcp(descriptors: &[Arrived]) -> [bool; MAX_DESCRIPTORS] {
    // Only the first are written: setting all of them would take longer than asking about a few.
    let mut polls = [const { mem::MaybeUninit::<libc::pollfd>::uninit() }; MAX_DESCRIPTORS];
    let mut connected = [false; MAX_DESCRIPTORS];
    let mut found = false;
    for (poll, descriptor) in polls.iter_mut().zip(descriptors) {
        let descriptor = descriptor.as_fd();
        let tcp = is_tcp(descriptor);
        found |= tcp;
        let fd = if tcp { descriptor.as_raw_fd() } else { -1 };
        poll.write(libc::pollfd { fd, events: libc::POLLOUT, revents: 0 });
    }
    if !found {
        return connected;
    }
    let count = descriptors.len().min(MAX_DESCRIPTORS);
    // SAFETY: so many of `polls` were written above.
    let polls = unsafe { slice::from_raw_parts_mut(polls.as_mut_ptr().cast(), count) };
    // SAFETY: the pointer and the count describe `polls`; those of -1 are left out. After an error,
    // what it says of each is as it was: nothing.
    unsafe { libc::poll(polls.as_mut_ptr(), count as libc::nfds_t, 0) };
    for (connected, poll) in connected.iter_mut().zip(polls) {
        *connected = poll.revents == libc::POLLOUT;
    }
    connected
}

/// Whether a descriptor is a socket of TCP and not one that waits for its first bytes to connect,
/// tcp(7). If it can also be written to and is neither hung up nor in error it has a peer: a
/// listening socket never can, nor one that is connecting, and a new one is hung up (tcp_poll in
/// net/ipv4/tcp.c).
pub(crate) fn is_tcp(socket: BorrowedFd<'_>) -> bool {
    let mut later = [0i32];
    let found = level_option(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, &mut later);
    // Other sockets do not know TCP's options; TIPC says that it does, but has no value for them.
    found.is_ok_and(|count| count == 1) && later == [0]
}

/// Whether a socket that has no peer had one: a connection over TCP that has ended, by a reset or in
/// both directions. It is closed, and segments have come in, tcp(7); none have at a listening socket
/// or a new one. Where a connection was refused, somebody answered too.
pub(crate) fn has_ended(socket: BorrowedFd<'_>) -> bool {
    const TCP_CLOSE: u32 = 7;
    /// Where `tcpi_segs_in` is in tcp_info, include/uapi/linux/tcp.h, in units of 4 bytes. The state
    /// is its first byte.
    const SEGMENTS_IN: usize = 35;
    let mut info = [0u32; SEGMENTS_IN + 1];
    let found = level_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info);
    let state = u32::from(info[0].to_ne_bytes()[0]);
    found.is_ok_and(|count| count == info.len()) && state == TCP_CLOSE && info[SEGMENTS_IN] > 0
}

/// What a descriptor is, if it is not a listening Unix socket of sequenced packets, and what the system
/// says of one that is no socket.
pub(crate) fn is_no_listener(socket: BorrowedFd<'_>) -> Option<(&'static str, Option<io::Error>)> {
    let ask = |option| {
        let mut value = [0i32];
        socket_option(socket, option, &mut value).map(|_| value[0])
    };
    let kind = match socket_type(socket) {
        Ok(kind) => kind,
        Err(error) => return Some((super::what_is(socket), Some(error))),
    };
    if !ask(libc::SO_DOMAIN).is_ok_and(|domain| domain == libc::AF_UNIX) {
        Some(("a socket of another family", None))
    } else if kind != libc::SOCK_SEQPACKET {
        Some(("a Unix socket of another type", None))
    } else if !ask(libc::SO_ACCEPTCONN).is_ok_and(|listening| listening != 0) {
        Some(("a Unix socket that does not listen", None))
    } else {
        None
    }
}

/// Sets O_NONBLOCK, which every copy of the descriptor shares.
pub(crate) fn set_nonblocking(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: fcntl(2) with F_GETFL takes nothing.
    let flags = retry(|| unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) as isize })?;
    let flags = flags as libc::c_int | libc::O_NONBLOCK;
    // SAFETY: fcntl(2) with F_SETFL takes an integer.
    retry(|| unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, flags) as isize })?;
    Ok(())
}

/// Ends a connection at both ends, also if other processes have copies of the socket, as the children of
/// fork(2) do. What was sent before can still be received.
pub(crate) fn end(socket: BorrowedFd<'_>) {
    // It fails only if there is no connection any more.
    // SAFETY: shutdown(2) takes no pointers.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}

/// Takes a connection that waits at a listening socket: non-blocking and close-on-exec.
pub(crate) fn accept_nonblocking(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    super::accept_with(listener, libc::SOCK_NONBLOCK)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::os::fd::FromRawFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn packets_are_received_where_pages_begin_wherever_the_room_does() {
        let (from, to) = UnixDatagram::pair().unwrap();
        let sent = [7; PAGE];
        let mut room = vec![mem::MaybeUninit::uninit(); PAGE + room_len(PAGE)];
        for start in [0, 1, 16, PAGE - 1] {
            (0..AT_ONCE).for_each(|_| assert_eq!(from.send(&sent).unwrap(), PAGE));
            let room = &mut room[start..start + room_len(PAGE)];
            let received = receive_packets(to.as_fd(), room, |_, _| panic!("a descriptor"));
            for packet in received.unwrap().packets {
                let (received, bytes) = packet.unwrap();
                assert!(!received.payload_truncated && bytes == sent);
                assert_eq!(bytes.as_ptr().addr() % PAGE, 0);
            }
        }
    }

    pub(crate) fn new_socket(family: libc::c_int, kind: libc::c_int) -> io::Result<OwnedFd> {
        // SAFETY: socket(2) takes no pointers.
        let fd = retry(|| unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) as isize })?;
        // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    }

    /// A socket whose connect(2) has succeeded although nothing was sent yet, tcp(7).
    pub(crate) fn connect_with_first_bytes(to: SocketAddr) -> OwnedFd {
        let SocketAddr::V4(to) = to else { panic!("an address of IPv4") };
        let socket = new_socket(libc::AF_INET, libc::SOCK_STREAM).unwrap();
        let (yes, len): (libc::c_int, _) = (1, size_of::<libc::c_int>() as libc::socklen_t);
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: to.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from(*to.ip()).to_be() },
            sin_zero: [0; 8],
        };
        // SAFETY: the pointers and lengths describe `yes` and `address`.
        unsafe {
            for option in [libc::TCP_FASTOPEN_CONNECT, libc::TCP_FASTOPEN_NO_COOKIE] {
                let value = (&raw const yes).cast();
                let level = libc::IPPROTO_TCP;
                assert_eq!(libc::setsockopt(socket.as_raw_fd(), level, option, value, len), 0);
            }
            let len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            let address = (&raw const address).cast();
            assert_eq!(libc::connect(socket.as_raw_fd(), address, len), 0);
        }
        socket
    }
}
