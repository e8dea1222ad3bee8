//! System calls made safe: every `unsafe` block outside `ffi` and tests is here.
//!
//! Each function is one call with EINTR retried, descriptors owned from the moment they exist and
//! close-on-exec set by the call that makes them. The callers say what an error means.
//! Here is what sends, receives and waits; the modules below have one subject each.

pub(crate) mod address;
pub(crate) mod arrived;
pub(crate) mod directory;
pub(crate) mod errno;
pub(crate) mod event;
pub(crate) mod file;
pub(crate) mod packet;
pub(crate) mod process;
pub(crate) mod shared;
pub(crate) mod socket;
pub(crate) mod thread;
pub(crate) mod tls;
pub(crate) mod user;

use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
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

/// Owns the descriptor that a call makes, which is run again for as long as a signal interrupts it.
///
/// # Safety
///
/// The descriptor that the call returns must be a new one, which nobody else owns.
unsafe fn new_descriptor(mut call: impl FnMut() -> libc::c_int) -> io::Result<OwnedFd> {
    let number = retry(|| call() as isize)?;
    // SAFETY: the call succeeded, and as the caller says it made this descriptor, so nobody else owns
    // it. It is the c_int that the call returned.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
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

/// 16 bytes that strangers do not know, for the keys of hash tables. If the random source fails,
/// those that the kernel gave to the program when it was started, getauxval(3).
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

/// Sends without blocking and without SIGPIPE. A TCP socket refuses it.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    send_but_over_tcp(socket, |flags| {
        let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let (start, len) = (bytes.as_ptr().cast(), bytes.len());
        // SAFETY: the pointer and the length describe `bytes`, which send(2) only reads.
        retry(|| unsafe { libc::send(socket.as_raw_fd(), start, len, flags) })
    })
}

/// Sends `bytes` with one descriptor attached, without blocking and without SIGPIPE. A TCP socket
/// refuses it.
pub(crate) fn send_with_descriptor(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<usize> {
    let (parts, descriptors) = ([IoSlice::new(bytes)], [descriptor.as_raw_fd()]);
    send_but_over_tcp(socket, |flags| packet::send_message(socket, &parts, &descriptors, flags))
}

/// Makes a call that sends a token, with a flag that makes a TCP socket refuse it: TCP
/// ignores SCM_RIGHTS and would send the token, which is a secret, to somebody's client.
///
/// TCP refuses to connect anew with the first bytes, tcp(7): EISCONN, and with several paths (MPTCP)
/// EINVAL since Linux 6.4, EOPNOTSUPP before 6.2; those between ignore it. A Unix socket does not know the
/// flag and ignores it. A sandbox may refuse flags that it does not know.
fn send_but_over_tcp(
    socket: BorrowedFd<'_>,
    send: impl Fn(libc::c_int) -> io::Result<usize>,
) -> io::Result<usize> {
    send(libc::MSG_FASTOPEN).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) if socket::is_unix(socket) => send(0),
        _ => Err(error),
    })
}

/// What one recvmsg(2) brought.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Received {
    /// Bytes written to the buffer; 0 is the end of the stream, or an empty packet.
    pub len: usize,
    /// Its sender's credentials came with it: see [`socket::telling_packets`].
    pub is_packet: bool,
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
    let is_packet = for_each_descriptor(message, |descriptor| {
        descriptors += 1;
        take(descriptor);
    });
    Received {
        len,
        is_packet,
        descriptors,
        control_truncated: message.msg_flags & libc::MSG_CTRUNC != 0,
        payload_truncated: message.msg_flags & libc::MSG_TRUNC != 0,
    }
}

/// SO_PASSPIDFD, set by whoever owns the socket, makes the kernel add a descriptor of its own.
const SCM_PIDFD: libc::c_int = 4;

/// Gives every descriptor that recvmsg(2) installed to `take`, once. Those that are not of a
/// connection (a pidfd of the sender) are closed here. Says whether credentials came, too.
fn for_each_descriptor(message: &libc::msghdr, mut take: impl FnMut(Arrived)) -> bool {
    let mut any_credentials = false;
    for_each_control(message, |level, kind, data| {
        any_credentials |= level == libc::SOL_SOCKET && kind == libc::SCM_CREDENTIALS;
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
    any_credentials
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
    loop {
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
        // A deadline may be further away than poll(2) can wait.
        if ready > 0 || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Ok(ready > 0);
        }
    }
}

/// The time of the system's last tick, of which there is one every few milliseconds: far cheaper to
/// read than the time itself, CLOCK_MONOTONIC_COARSE of clock_gettime(2).
pub(crate) fn tick() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec. If it fails, which it cannot, the time is 0.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The earlier of two times, if there is a first one.
pub(crate) fn earlier(first: Option<Instant>, other: Instant) -> Instant {
    first.map_or(other, |first| first.min(other))
}

/// Milliseconds for poll(2), rounded up: a wait never ends before its deadline.
fn poll_timeout(deadline: Instant, now: Instant) -> libc::c_int {
    let left = deadline.saturating_duration_since(now);
    let part = u64::from(left.subsec_nanos().div_ceil(1_000_000));
    let milliseconds = left.as_secs().saturating_mul(1000).saturating_add(part);
    libc::c_int::try_from(milliseconds).unwrap_or(libc::c_int::MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poll_timeout_is_rounded_up_and_bounded() {
        let now = Instant::now();
        assert_eq!(poll_timeout(now, now), 0);
        assert_eq!(poll_timeout(now, now + Duration::from_secs(1)), 0);
        assert_eq!(poll_timeout(now + Duration::from_nanos(1), now), 1);
        assert_eq!(poll_timeout(now + Duration::from_micros(1001), now), 2);
        assert_eq!(poll_timeout(now + Duration::from_secs(1 << 40), now), libc::c_int::MAX);
    }
}
