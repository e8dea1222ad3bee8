//! Sockets: making, setting and ending them, and what the kernel tells about one.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::slice;

use super::arrived::Arrived;
use super::packet::MAX_DESCRIPTORS;
use super::{A_SOCKET, new_descriptor, retry, what_is};

/// The two kinds of Unix socket that keep the order of what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// A byte stream, SOCK_STREAM.
    Stream,
    /// Sequenced packets, SOCK_SEQPACKET.
    SeqPacket,
}

impl SocketKind {
    fn raw(self) -> libc::c_int {
        match self {
            SocketKind::Stream => libc::SOCK_STREAM,
            SocketKind::SeqPacket => libc::SOCK_SEQPACKET,
        }
    }
}

/// Makes a non-blocking, close-on-exec Unix socket.
pub(crate) fn new(kind: SocketKind) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes no pointers, and makes a new descriptor.
    unsafe { new_descriptor(|| libc::socket(libc::AF_UNIX, kind.raw() | flags, 0)) }
}

pub(crate) fn listen(socket: &OwnedFd, backlog: i32) -> io::Result<()> {
    // SAFETY: listen(2) takes no pointers.
    retry(|| unsafe { libc::listen(socket.as_raw_fd(), backlog) as isize })?;
    Ok(())
}

/// Takes a connection that waits at a listening socket: blocking and close-on-exec, as accept(2)
/// has it.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    accept_with(listener, 0)
}

/// Takes a connection that waits at a listening socket: non-blocking and close-on-exec.
pub(crate) fn accept_nonblocking(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    accept_with(listener, libc::SOCK_NONBLOCK)
}

/// After shutdown(2) it is EINVAL: there is nothing to accept, but poll(2) says that there is.
fn accept_with(listener: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<OwnedFd> {
    let flags = flags | libc::SOCK_CLOEXEC;
    let number = listener.as_raw_fd();
    // SAFETY: accept4(2) takes NULL for an address that nobody wants, and makes a new descriptor.
    let accepted = unsafe {
        new_descriptor(|| libc::accept4(number, ptr::null_mut(), ptr::null_mut(), flags))
    };
    match accepted {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && hung_up(listener) => {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        }
        result => result,
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

/// Runs `receive` so that each packet, an empty one too, comes with its sender's credentials, and the end
/// without: SO_PASSCRED, unix(7). None for a stream: it has no packets, and all that is empty is its end.
pub(crate) fn telling_packets<T>(socket: BorrowedFd<'_>, receive: impl FnOnce() -> T) -> Option<T> {
    if !socket_type(socket).is_ok_and(|kind| kind != libc::SOCK_STREAM) {
        return None;
    }
    let mut before = [0 as libc::c_int];
    let is_set = socket_option(socket, libc::SO_PASSCRED, &mut before).is_ok() && before != [0];
    set_flag(socket, libc::SO_PASSCRED, true);
    let received = receive();
    // The socket is the caller's.
    set_flag(socket, libc::SO_PASSCRED, is_set);
    Some(received)
}

/// Whether a socket takes descriptors, where the kernel can refuse them (Linux 6.16): then a sender's
/// sendmsg(2) fails.
const SO_PASSRIGHTS: libc::c_int = 83;

pub(crate) fn refuse_descriptors(socket: &OwnedFd) {
    set_flag(socket.as_fd(), SO_PASSRIGHTS, false);
}

pub(crate) fn take_descriptors(socket: BorrowedFd<'_>) {
    set_flag(socket, SO_PASSRIGHTS, true);
}

/// Sets an option of the socket level, where the kernel knows it.
fn set_flag(socket: BorrowedFd<'_>, option: libc::c_int, value: bool) {
    let value = libc::c_int::from(value);
    // SAFETY: the pointer and the length describe `value`.
    unsafe {
        let len = mem::size_of::<libc::c_int>() as libc::socklen_t;
        let value = (&raw const value).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, len);
    }
}

/// Whether something could not be sent because the other end has gone. If it goes at that moment, kernels
/// such as 5.10 say ECONNREFUSED (unix_dgram_sendmsg in net/unix/af_unix.c).
pub(crate) fn has_gone(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(code, Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN | libc::ECONNREFUSED))
}

/// Ends the receiving direction. What was queued before can still be received, and the peer's sends
/// fail with EPIPE from now on, both decided under one lock (net/unix/af_unix.c).
pub(crate) fn shutdown_read(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: shutdown(2) takes no pointers.
    retry(|| unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RD) as isize })?;
    Ok(())
}

/// Ends a connection at both ends, also if other processes have copies of the socket, as the
/// children of fork(2) do. What was sent before can still be received.
pub(crate) fn end(socket: BorrowedFd<'_>) {
    // It fails only if there is no connection any more.
    // SAFETY: shutdown(2) takes no pointers.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}

/// A type of which any bytes are a value.
///
/// # Safety
///
/// They are: so it has no padding, no reference and nothing like `bool`.
pub(super) unsafe trait Plain {}

// SAFETY: integers.
unsafe impl Plain for u8 {}
// SAFETY: integers.
unsafe impl Plain for u16 {}
// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for u64 {}
// SAFETY: integers.
unsafe impl Plain for i32 {}
// SAFETY: three integers of 32 bits.
unsafe impl Plain for libc::ucred {}
// SAFETY: two integers of 32 bits.
unsafe impl Plain for libc::linger {}

/// Reads a socket option of SOL_SOCKET whose value is plain data.
pub(super) fn socket_option<T: Plain>(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    value: &mut [T],
) -> io::Result<usize> {
    level_option(socket, libc::SOL_SOCKET, option, value)
}

/// Reads a socket option of some level whose value is plain data, and says how many there are.
pub(super) fn level_option<T: Plain>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &mut [T],
) -> io::Result<usize> {
    let mut len = mem::size_of_val(value) as libc::socklen_t;
    // SAFETY: the pointer and `len` describe `value`, and whatever bytes come are values of its
    // type.
    retry(|| unsafe {
        let value = value.as_mut_ptr().cast();
        libc::getsockopt(socket.as_raw_fd(), level, option, value, &raw mut len) as isize
    })?;
    Ok(len as usize / mem::size_of::<T>())
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
    let mut address = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut len = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: the pointer and `len` describe `address`.
    let result =
        unsafe { libc::getpeername(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut len) };
    // SAFETY: all zero is a value of it, and so is whatever the kernel wrote over that.
    let address = unsafe { address.assume_init() };
    (result == 0).then_some(libc::c_int::from(address.ss_family))
}

/// Which of some descriptors, at most [`MAX_DESCRIPTORS`], are TCP sockets with a peer: for
/// certain, because a "no" only says that this does not tell.
///
/// Each is asked whether it is a TCP socket, and then one poll(2) asks all that are. Only sockets
/// are polled: poll(2) of another file can wait for whoever serves that file.
pub(crate) fn connected_over_tcp(descriptors: &[Arrived]) -> [bool; MAX_DESCRIPTORS] {
    // Only the first are written: setting all of them would take longer than asking about a few.
    let mut polls = [const { MaybeUninit::<libc::pollfd>::uninit() }; MAX_DESCRIPTORS];
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

/// Whether a socket that has no peer had one: a connection over TCP that has ended, by a reset or
/// in both directions. It is closed, and segments have come in, tcp(7); none have at a listening
/// socket or a new one. Where a connection was refused, somebody answered too.
pub(crate) fn has_ended(socket: BorrowedFd<'_>) -> bool {
    const TCP_CLOSE: u32 = 7;
    /// Where `tcpi_segs_in` is in tcp_info, include/uapi/linux/tcp.h, in units of 4 bytes. The
    /// state is its first byte.
    const SEGMENTS_IN: usize = 35;
    let mut info = [0u32; SEGMENTS_IN + 1];
    let found = level_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info);
    let state = u32::from(info[0].to_ne_bytes()[0]);
    found.is_ok_and(|count| count == info.len()) && state == TCP_CLOSE && info[SEGMENTS_IN] > 0
}

/// Whether a listening socket was shut down.
fn hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: `poll` is one pollfd, which outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 && poll.revents & libc::POLLHUP != 0 }
}

/// SO_PEERCRED, unix(7): process, user and group of the peer as they were when it connected.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<(i32, u32, u32)> {
    // A listening socket has no peer, but listen(2) makes SO_PEERCRED the listener's own.
    let mut listens = [0 as libc::c_int];
    socket_option(socket, libc::SO_ACCEPTCONN, &mut listens)?;
    if listens != [0] {
        return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
    }
    let mut credentials = [libc::ucred { pid: 0, uid: 0, gid: 0 }];
    socket_option(socket, libc::SO_PEERCRED, &mut credentials)?;
    let [libc::ucred { pid, uid, gid }] = credentials;
    Ok((pid, uid, gid))
}

/// Whether SO_PEERCRED can be asked of a Unix socket: it has an answer even without a peer.
pub(crate) fn tells_credentials(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut credentials = [libc::ucred { pid: 0, uid: 0, gid: 0 }];
    socket_option(socket, libc::SO_PEERCRED, &mut credentials).map(drop)
}

/// Whether one of the peer's supplementary groups as they were when it connected, SO_PEERGROUPS of
/// include/uapi/asm-generic/socket.h in the kernel (man-pages 6.03 do not have it), is
/// one that is looked for.
pub(crate) fn any_peer_group(
    socket: BorrowedFd<'_>,
    looked_for: impl Fn(u32) -> bool,
) -> io::Result<bool> {
    let mut few = [0u32; 256];
    match socket_option(socket, libc::SO_PEERGROUPS, &mut few) {
        Err(error) if error.raw_os_error() == Some(libc::ERANGE) => {}
        count => return Ok(few[..count?].iter().any(|group| looked_for(*group))),
    }
    // NGROUPS_MAX bounds the list.
    const MOST: usize = 65536;
    let mut many = Vec::new();
    let no_memory = |_| io::Error::from_raw_os_error(libc::ENOMEM);
    many.try_reserve_exact(MOST).map_err(no_memory)?;
    many.resize(MOST, 0u32);
    let count = socket_option(socket, libc::SO_PEERGROUPS, &mut many)?;
    Ok(many[..count].iter().any(|group| looked_for(*group)))
}

/// Whether a descriptor is a Unix socket.
pub(crate) fn is_unix(socket: BorrowedFd<'_>) -> bool {
    let mut family = [0 as libc::c_int];
    socket_option(socket, libc::SO_DOMAIN, &mut family).is_ok() && family == [libc::AF_UNIX]
}

/// What a descriptor is, if it is not a listening Unix socket of sequenced packets, and what the
/// system says of one that is no socket.
pub(crate) fn is_no_listener(socket: BorrowedFd<'_>) -> Option<(&'static str, Option<io::Error>)> {
    let ask = |option| {
        let mut value = [0i32];
        socket_option(socket, option, &mut value).map(|_| value[0])
    };
    let kind = match socket_type(socket) {
        Ok(kind) => kind,
        Err(error) => return Some((what_is(socket), Some(error))),
    };
    if !is_unix(socket) {
        Some(("a socket of another family", None))
    } else if kind != libc::SOCK_SEQPACKET {
        Some(("a Unix socket of another type", None))
    } else if !ask(libc::SO_ACCEPTCONN).is_ok_and(|listening| listening != 0) {
        Some(("a Unix socket that does not listen", None))
    } else {
        None
    }
}

/// What a descriptor is, for the sentence about a socket that cannot be used.
#[cold]
pub(crate) fn not_usable(socket: BorrowedFd<'_>) -> &'static str {
    match what_is(socket) {
        A_SOCKET if is_unix(socket) => "a Unix socket in the wrong state",
        A_SOCKET => "not a Unix socket",
        other => other,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::net::SocketAddr;

    pub(crate) fn new_socket(family: libc::c_int, kind: libc::c_int) -> io::Result<OwnedFd> {
        // SAFETY: socket(2) takes no pointers, and makes a new descriptor.
        unsafe { new_descriptor(|| libc::socket(family, kind | libc::SOCK_CLOEXEC, 0)) }
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
