//! Descriptors that a peer sent.
//!
//! A peer chooses what it sends, and the last copy may be the one that arrived. So nothing is done
//! with such a descriptor that can wait for the peer before the kernel has said that it is a
//! socket, and closing it does not linger.

use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use super::socket::socket_option;

/// A descriptor that a peer sent and that nobody has accepted yet. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Arrived(OwnedFd);

impl Arrived {
    pub(crate) fn new(descriptor: OwnedFd) -> Arrived {
        Arrived(descriptor)
    }

    /// The descriptor, to be used as it is.
    pub(crate) fn accept(self) -> OwnedFd {
        let accepted = ManuallyDrop::new(self);
        // SAFETY: moved out once, because `accepted` is neither used nor dropped after this.
        unsafe { ptr::read(&raw const accepted.0) }
    }
}

impl AsFd for Arrived {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        stop_lingering(self.0.as_fd());
    }
}

/// Turns SO_LINGER off if it has a time, socket(7): if this is the last copy, close(2) would wait
/// so long for the other end, whatever O_NONBLOCK says (inet_release in net/ipv4/af_inet.c).
/// Without it close(2) sends what is left just as well, but does not wait for that.
fn stop_lingering(socket: BorrowedFd<'_>) {
    let mut linger = [libc::linger { l_onoff: 0, l_linger: 0 }];
    // Fails at once for what is no socket.
    let asked = socket_option(socket, libc::SO_LINGER, &mut linger);
    let [libc::linger { l_onoff, l_linger }] = linger;
    // With a time of 0 it means a reset, and does not wait.
    if asked.is_err() || l_onoff == 0 || l_linger == 0 {
        return;
    }
    let off = libc::linger { l_onoff: 0, l_linger: 0 };
    // SAFETY: the pointer and the length describe `off`.
    unsafe {
        let (value, len) = ((&raw const off).cast(), mem::size_of_val(&off) as libc::socklen_t);
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, value, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    const LINGER: libc::c_int = 30;

    /// A connection that lingers, with more unsent data than its peer takes.
    fn lingering() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        while socket.write(&[0; 65536]).is_ok() {}
        let linger = libc::linger { l_onoff: 1, l_linger: LINGER };
        // SAFETY: the pointer and the length describe `linger`.
        let set = unsafe {
            let len = mem::size_of_val(&linger) as libc::socklen_t;
            let value = (&raw const linger).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, value, len)
        };
        assert_eq!(set, 0);
        (socket, listener.accept().unwrap().0)
    }

    #[test]
    fn closing_the_last_copy_of_what_arrived_does_not_linger() {
        let (socket, _peer) = lingering();
        let start = Instant::now();
        drop(Arrived::new(socket.into()));
        assert!(start.elapsed() < Duration::from_secs(LINGER as u64 / 2));
    }

    #[test]
    fn accepted_descriptor_stays_open_and_as_it_is() {
        let (socket, _peer) = lingering();
        let arrived = Arrived::new(socket.try_clone().unwrap().into());
        let accepted = arrived.accept();
        let mut linger = [libc::linger { l_onoff: 0, l_linger: 0 }];
        socket_option(accepted.as_fd(), libc::SO_LINGER, &mut linger).unwrap();
        assert_eq!((linger[0].l_onoff, linger[0].l_linger), (1, LINGER));
        drop(accepted);
        stop_lingering(socket.as_fd());
    }
}
