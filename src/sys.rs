//! System calls made safe: every `unsafe` block outside `ffi` is here.
//!
//! Each function is one call with EINTR retried, descriptors owned from the moment they exist and
//! close-on-exec set by the call that makes them. The callers say what an error means.
//! What a channel needs beyond that is in the modules below.

pub(crate) mod arrived;
pub(crate) mod directory;
pub(crate) mod event;
pub(crate) mod file;
pub(crate) mod packet;
pub(crate) mod process;
pub(crate) mod shared;
pub(crate) mod tls;
pub(crate) mod user;

use std::ffi::CStr;
use std::fmt::{self, Write};
use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::slice;
use std::time::{Duration, Instant};

use arrived::Arrived;

/// Runs a call again for as long as a signal interrupts it.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(libc::EINTR) {
                    return Err(error);
                }
            }
        }
    }
}

/// Runs a receiving call again when the peer's close hides what it sent before: if the peer left
/// something unread, a packet socket reports ECONNRESET once, ahead of its queue.
fn retry_receive(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    match retry(&mut call) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => retry(call),
        result => result,
    }
}

/// The most bytes that getentropy(3) gives at once.
pub(crate) const MOST_RANDOM: usize = 256;

unsafe extern "C" {
    /// getentropy(3), which the crate `libc` leaves out for musl.
    fn getentropy(buffer: *mut libc::c_void, length: usize) -> libc::c_int;
}

/// Fills `bytes`, at most [`MOST_RANDOM`], from the operating system's random source.
pub(crate) fn random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `bytes`, which getentropy(3) fills.
    let result = unsafe { getentropy(bytes.as_mut_ptr().cast(), bytes.len()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// 16 bytes that strangers do not know, for the keys of hash tables. If the random source fails, those
/// that the kernel gave to the program when it was started, getauxval(3).
pub(crate) fn secret() -> [u8; 16] {
    let mut secret = [0; 16];
    if random(&mut secret).is_err() {
        // SAFETY: AT_RANDOM is the address of 16 bytes, which stay as they are, or 0.
        unsafe {
            let given = libc::getauxval(libc::AT_RANDOM) as *const [u8; 16];
            secret = given.as_ref().copied().unwrap_or_default();
        }
    }
    secret
}

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
pub(crate) fn socket(kind: SocketKind) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes no pointers.
    let fd = retry(|| unsafe { libc::socket(libc::AF_UNIX, kind.raw() | flags, 0) as isize })?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A Unix socket address, unix(7): a path or, behind a leading `@`, an abstract name.
pub(crate) struct Address {
    raw: libc::sockaddr_un,
    len: libc::socklen_t,
}

/// Why a path cannot be a socket's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressError {
    Empty,
    TooLong,
    HasNul,
}

impl Address {
    /// The most bytes of a path, or of an abstract name with its `@`: 107. Such a name has no NUL at its
    /// end but one at its front, so both kinds lose a byte.
    pub(crate) const MAX_PATH: usize =
        mem::size_of::<libc::sockaddr_un>() - mem::offset_of!(libc::sockaddr_un, sun_path) - 1;

    pub(crate) fn new(path: &Path) -> Result<Address, AddressError> {
        let bytes = path.as_os_str().as_bytes();
        // SAFETY: sockaddr_un is integers and an array of integers; all zero is a value of it.
        let mut raw: libc::sockaddr_un = unsafe { mem::zeroed() };
        raw.sun_family = libc::AF_UNIX as libc::sa_family_t;
        if bytes.contains(&0) {
            return Err(AddressError::HasNul);
        }
        if bytes.len() > Address::MAX_PATH {
            return Err(AddressError::TooLong);
        }
        for (to, from) in raw.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        let used = match bytes {
            [] | [b'@'] => return Err(AddressError::Empty),
            [b'@', ..] => {
                raw.sun_path[0] = 0;
                bytes.len()
            }
            _ => bytes.len() + 1,
        };
        let len = (mem::offset_of!(libc::sockaddr_un, sun_path) + used) as libc::socklen_t;
        Ok(Address { raw, len })
    }

    pub(crate) fn is_abstract(&self) -> bool {
        self.raw.sun_path[0] == 0
    }

    fn as_ptr(&self) -> *const libc::sockaddr {
        ptr::from_ref(&self.raw).cast()
    }
}

pub(crate) fn connect(socket: &OwnedFd, address: &Address) -> io::Result<()> {
    // SAFETY: `address` holds a sockaddr_un of which `len` bytes are initialised.
    retry(|| unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr(), address.len) as isize })?;
    Ok(())
}

/// Whether a socket is bound to the file at a path, connected or not, listening or not. If none is,
/// none ever will be: bind(2) makes a new file. Whoever listens there does not notice.
pub(crate) fn is_bound(address: &Address) -> io::Result<bool> {
    let flags = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes no pointers.
    let fd = retry(|| unsafe { libc::socket(libc::AF_UNIX, flags, 0) as isize })?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    // The kernel looks for the socket, then at its type (unix_find_bsd in net/unix/af_unix.c).
    match connect(&socket, address) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn bind(socket: &OwnedFd, address: &Address) -> io::Result<()> {
    // SAFETY: `address` holds a sockaddr_un of which `len` bytes are initialised.
    retry(|| unsafe { libc::bind(socket.as_raw_fd(), address.as_ptr(), address.len) as isize })?;
    Ok(())
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

fn accept_with(listener: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<OwnedFd> {
    let flags = flags | libc::SOCK_CLOEXEC;
    // SAFETY: accept4(2) takes NULL for an address that nobody wants.
    let fd = retry(|| unsafe {
        libc::accept4(listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags) as isize
    })?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends without blocking and without SIGPIPE. A TCP socket refuses it, EISCONN.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    send_but_over_tcp(|flags| {
        let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let (start, len) = (bytes.as_ptr().cast(), bytes.len());
        // SAFETY: the pointer and the length describe `bytes`, which send(2) only reads.
        retry(|| unsafe { libc::send(socket.as_raw_fd(), start, len, flags) })
    })
}

/// Sends `bytes` with one descriptor attached, without blocking and without SIGPIPE. A TCP socket
/// refuses it, EISCONN.
pub(crate) fn send_with_descriptor(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<usize> {
    let (parts, descriptors) = ([IoSlice::new(bytes)], [descriptor.as_raw_fd()]);
    send_but_over_tcp(|flags| packet::send_message(socket, &parts, &descriptors, flags))
}

/// Makes a call that sends a token, with a flag that makes a TCP socket refuse it, EISCONN: TCP
/// ignores SCM_RIGHTS and would send the token, which is a secret, to somebody's client.
///
/// TCP refuses to connect anew with the first bytes, tcp(7), and a Unix socket does not know the flag
/// and ignores it. A sandbox may refuse flags that it does not know.
fn send_but_over_tcp(send: impl Fn(libc::c_int) -> io::Result<usize>) -> io::Result<usize> {
    send(libc::MSG_FASTOPEN).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => send(0),
        _ => Err(error),
    })
}

/// What one recvmsg(2) brought.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Received {
    /// Bytes written to the buffer; 0 is the end of the stream.
    pub len: usize,
    /// How many descriptors came.
    pub descriptors: usize,
    /// MSG_CTRUNC: descriptors were sent that did not arrive.
    pub control_truncated: bool,
    /// MSG_TRUNC: the packet was longer than the buffer.
    pub payload_truncated: bool,
}

/// Room for as many descriptors as one message can carry (SCM_MAX_FD is 253), and for the
/// credentials, security label and timestamps that options of the socket may add.
const CONTROL_LEN: usize = 2048;

/// Receives bytes and the first descriptor; `wait` lets a blocking socket block.
pub(crate) fn receive_with_descriptor(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    wait: bool,
) -> io::Result<(Received, Option<Arrived>)> {
    let mut first = None;
    let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
    let received = receive_message(socket, buffer, flags, |descriptor| {
        // What is not the first is dropped, which closes it.
        first.get_or_insert(descriptor);
    })?;
    Ok((received, first))
}

/// Receives bytes and gives each descriptor that came with them to `take`, in their order.
fn receive_message(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: libc::c_int,
    take: impl FnMut(Arrived),
) -> io::Result<Received> {
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
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
    let len =
        retry_receive(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) })?;
    Ok(received(&message, len, take))
}

/// What a message has brought, each of its descriptors given to `take`.
fn received(message: &libc::msghdr, len: usize, mut take: impl FnMut(Arrived)) -> Received {
    let mut descriptors = 0;
    // Own every descriptor before anybody looks at the flags: the first ones are installed even
    // when others were lost.
    for_each_descriptor(message, |descriptor| {
        descriptors += 1;
        take(descriptor);
    });
    Received {
        len,
        descriptors,
        control_truncated: message.msg_flags & libc::MSG_CTRUNC != 0,
        payload_truncated: message.msg_flags & libc::MSG_TRUNC != 0,
    }
}

/// SO_PASSPIDFD, set by whoever owns the socket, makes the kernel add a descriptor of its own.
const SCM_PIDFD: libc::c_int = 4;

/// Gives every descriptor that recvmsg(2) installed to `take`, once. Those that are not of a
/// connection (a pidfd of the sender) are closed here.
fn for_each_descriptor(message: &libc::msghdr, mut take: impl FnMut(Arrived)) {
    for_each_control(message, |level, kind, data| {
        let is_rights = kind == libc::SCM_RIGHTS;
        if level != libc::SOL_SOCKET || !(is_rights || kind == SCM_PIDFD) {
            return;
        }
        for number in data.chunks_exact(mem::size_of::<RawFd>()) {
            let fd = number.try_into().map_or(-1, RawFd::from_ne_bytes);
            if fd < 0 {
                continue;
            }
            // SAFETY: the kernel installed this descriptor for us, and each is read once.
            let descriptor = unsafe { OwnedFd::from_raw_fd(fd) };
            if is_rights {
                take(Arrived::new(descriptor));
            }
        }
    });
}

/// Gives the level, the type and the data of every control message that recvmsg(2) wrote to `look`.
#[allow(clippy::unnecessary_cast, reason = "the integers' widths differ between C libraries")]
fn for_each_control(message: &libc::msghdr, mut look: impl FnMut(libc::c_int, libc::c_int, &[u8])) {
    let end = message.msg_control as usize + message.msg_controllen as usize;
    // SAFETY: recvmsg(2) filled `msg_control` and set `msg_controllen` to what it wrote there.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(ptr::from_ref(message)) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR only return headers that lie in the buffer.
        let (level, kind, len) =
            unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len as usize) };
        // SAFETY: CMSG_DATA adds the length of a header to the header's address.
        let data = unsafe { libc::CMSG_DATA(header) };
        // Never read past the buffer, even if cmsg_len says more than arrived.
        let len = (header as usize).saturating_add(len).min(end).saturating_sub(data as usize);
        // SAFETY: recvmsg(2) wrote these `len` bytes at `data`, inside the buffer.
        look(level, kind, unsafe { slice::from_raw_parts(data, len) });
        // SAFETY: `header` lies in the buffer that `message` describes.
        header = unsafe { libc::CMSG_NXTHDR(ptr::from_ref(message), header) };
    }
}

/// Receives bytes alone; `wait` lets a blocking socket block. Descriptors that were attached are
/// counted and closed.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    wait: bool,
) -> io::Result<Received> {
    let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
    // With room for descriptors: without it the kernel would drop them, which can wait as close(2)
    // can.
    receive_message(socket, buffer, flags, drop)
}

/// Waits until `socket` is readable, closed or in error: true; or the deadline is past: false.
/// Without a deadline it waits forever.
pub(crate) fn wait_readable(socket: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    wait_for(socket, libc::POLLIN, deadline)
}

/// As [`wait_readable`]: until there is room in `socket`'s buffer.
pub(crate) fn wait_writable(socket: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    wait_for(socket, libc::POLLOUT, deadline)
}

fn wait_for(
    socket: BorrowedFd<'_>,
    events: libc::c_short,
    deadline: Option<Instant>,
) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    let ready = retry(|| {
        // Computed anew each time, so that signals cannot put off the deadline.
        let timeout = deadline.map_or(-1, |deadline| poll_timeout(deadline, Instant::now()));
        // SAFETY: `poll` is one pollfd, which outlives the call.
        unsafe { libc::poll(&raw mut poll, 1, timeout) as isize }
    })?;
    // poll(2) reports a descriptor that is not open here, not through errno.
    if poll.revents & libc::POLLNVAL != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    Ok(ready > 0)
}

/// Whether both directions of a connection are closed, or a listening socket was shut down.
pub(crate) fn hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: `poll` is one pollfd, which outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 && poll.revents & libc::POLLHUP != 0 }
}

/// The time of the system's last tick, of which there is one every few milliseconds: far cheaper to read
/// than the time itself, CLOCK_MONOTONIC_COARSE of clock_gettime(2).
pub(crate) fn tick() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec. If it fails, which it cannot, the time is 0.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Milliseconds for poll(2), rounded up: a wait never ends before its deadline.
fn poll_timeout(deadline: Instant, now: Instant) -> libc::c_int {
    let left = deadline.saturating_duration_since(now);
    let part = u64::from(left.subsec_nanos().div_ceil(1_000_000));
    let milliseconds = left.as_secs().saturating_mul(1000).saturating_add(part);
    libc::c_int::try_from(milliseconds).unwrap_or(libc::c_int::MAX)
}

/// Ends the receiving direction. What was queued before can still be received, and the peer's sends
/// fail with EPIPE from now on, both decided under one lock (net/unix/af_unix.c).
pub(crate) fn shutdown_read(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: shutdown(2) takes no pointers.
    retry(|| unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RD) as isize })?;
    Ok(())
}

/// A type of which any bytes are a value.
///
/// # Safety
///
/// They are: so it has no padding, no reference and nothing like `bool`.
unsafe trait Plain {}

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
fn socket_option<T: Plain>(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    value: &mut [T],
) -> io::Result<usize> {
    level_option(socket, libc::SOL_SOCKET, option, value)
}

/// Reads a socket option of some level whose value is plain data, and says how many there are.
fn level_option<T: Plain>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &mut [T],
) -> io::Result<usize> {
    let mut len = mem::size_of_val(value) as libc::socklen_t;
    // SAFETY: the pointer and `len` describe `value`, and whatever bytes come are values of its type.
    retry(|| unsafe {
        let value = value.as_mut_ptr().cast();
        libc::getsockopt(socket.as_raw_fd(), level, option, value, &raw mut len) as isize
    })?;
    Ok(len as usize / mem::size_of::<T>())
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

/// The owner of the file at a path; none for an abstract name.
pub(crate) fn owner(address: &Address) -> Option<u32> {
    if address.is_abstract() {
        return None;
    }
    // SAFETY: the path ends in NUL, because it is shorter than its array, which was zeroed;
    // `status` is where a stat goes.
    let status =
        file::status(|status| unsafe { libc::stat(address.raw.sun_path.as_ptr(), status) });
    Some(status.ok()?.owner)
}

/// The effective user of this process.
pub(crate) fn effective_user() -> u32 {
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// What [`what_is`] says of a socket.
pub(crate) const A_SOCKET: &str = "a socket";

/// What a descriptor is, for the sentence about one that cannot be used: fstat(2).
#[cold]
pub(crate) fn what_is(descriptor: BorrowedFd<'_>) -> &'static str {
    let Ok(status) = file::status_of(descriptor) else { return "not open" };
    match status.kind {
        libc::S_IFSOCK => A_SOCKET,
        libc::S_IFIFO => "a pipe",
        libc::S_IFREG => "a regular file",
        libc::S_IFDIR => "a directory",
        libc::S_IFCHR | libc::S_IFBLK => "a device",
        _ => "neither a file nor a socket",
    }
}

/// Whether a descriptor is open.
#[cold]
pub(crate) fn is_open(descriptor: BorrowedFd<'_>) -> bool {
    // SAFETY: fcntl(2) with F_GETFD takes nothing.
    unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_GETFD) != -1 }
}

/// What a descriptor is, for the sentence about a socket that cannot be used.
#[cold]
pub(crate) fn not_usable(socket: BorrowedFd<'_>) -> &'static str {
    let mut family = [0 as libc::c_int];
    match what_is(socket) {
        A_SOCKET => match socket_option(socket, libc::SO_DOMAIN, &mut family) {
            Ok(_) if family != [libc::AF_UNIX] => "not a Unix socket",
            _ => "a Unix socket in the wrong state",
        },
        other => other,
    }
}

unsafe extern "C" {
    /// pthread_setcancelstate(3), which the libc crate leaves out.
    safe fn pthread_setcancelstate(
        state: libc::c_int,
        old: Option<&mut libc::c_int>,
    ) -> libc::c_int;
}

/// Keeps the calling thread from being cancelled, pthread_cancel(3): that would unwind through frames
/// of Rust, which aborts the process. A cancellation that was asked for meanwhile comes after.
pub(crate) struct NotCancelled {
    before: libc::c_int,
}

impl NotCancelled {
    pub(crate) fn new() -> NotCancelled {
        // The same number in glibc and musl.
        const PTHREAD_CANCEL_DISABLE: libc::c_int = 1;
        let mut before = 0;
        // It fails for a bad state only.
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, Some(&mut before));
        NotCancelled { before }
    }
}

impl Drop for NotCancelled {
    fn drop(&mut self) {
        pthread_setcancelstate(self.before, None);
    }
}

/// The last error number of this thread.
pub(crate) fn errno() -> i32 {
    // SAFETY: the address of this thread's errno is valid as long as the thread is.
    unsafe { *libc::__errno_location() }
}

/// What the system says of an error, as strerror(3) has it: the number is in errno.
pub(crate) struct Said<'a>(pub &'a io::Error);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(code) = self.0.raw_os_error() else { return self.0.fmt(f) };
        let mut text = [0; 128];
        // SAFETY: the pointer and the length describe `text`. It ends in NUL before the call and after it.
        let text = unsafe {
            libc::strerror_r(code, text.as_mut_ptr(), text.len());
            CStr::from_ptr(text.as_ptr())
        };
        // Without allocating: memory may be what there is none of.
        text.to_bytes().utf8_chunks().try_for_each(|chunk| {
            f.write_str(chunk.valid())?;
            if chunk.invalid().is_empty() {
                Ok(())
            } else {
                f.write_char(char::REPLACEMENT_CHARACTER)
            }
        })
    }
}

/// Sets errno for a caller in C.
pub(crate) fn set_errno(error: i32) {
    // SAFETY: the address of this thread's errno is valid as long as the thread is.
    unsafe { *libc::__errno_location() = error };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn poll_timeout_is_rounded_up_and_bounded() {
        let now = Instant::now();
        assert_eq!(poll_timeout(now, now), 0);
        assert_eq!(poll_timeout(now, now + Duration::from_secs(1)), 0);
        assert_eq!(poll_timeout(now + Duration::from_nanos(1), now), 1);
        assert_eq!(poll_timeout(now + Duration::from_micros(1001), now), 2);
        assert_eq!(poll_timeout(now + Duration::from_secs(1 << 40), now), libc::c_int::MAX);
    }

    #[test]
    fn address_refuses_what_the_kernel_could_not_tell_apart() {
        let long = "x".repeat(Address::MAX_PATH + 1);
        assert_eq!(Address::new(Path::new("")).err(), Some(AddressError::Empty));
        assert_eq!(Address::new(Path::new("@")).err(), Some(AddressError::Empty));
        assert_eq!(Address::new(Path::new(&long)).err(), Some(AddressError::TooLong));
        assert_eq!(Address::new(Path::new("a\0b")).err(), Some(AddressError::HasNul));
        assert!(Address::new(Path::new(&long[..Address::MAX_PATH])).is_ok());
    }
}
