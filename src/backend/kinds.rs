//! Which sockets a backend takes, and what it asks the kernel about each that arrives.
//!
//! A broker is not trusted with what it offers, so the kernel is asked about it. The questions are
//! most of what an arrival costs, so for clients that come over TCP there are fewer of them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::reason::Reason;
use crate::sys::packet::{self, MAX_DESCRIPTORS};

/// Which sockets a backend takes. With all of these it takes any socket, also one of another kind,
/// and the kernel is not asked for the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    /// SOCK_STREAM: TCP and Unix streams. The default, and the only one.
    pub stream: bool,
    /// SOCK_SEQPACKET.
    pub seqpacket: bool,
    /// SOCK_DGRAM: UDP, say.
    pub datagram: bool,
    /// With one of the others: sockets without a peer too, listening ones or not connected yet.
    pub unconnected: bool,
}

impl Kinds {
    /// Whether no socket can be of these kinds, although one is named.
    pub(super) fn are_unconnected_alone(self) -> bool {
        let Kinds { stream, seqpacket, datagram, unconnected } = self;
        unconnected && !stream && !seqpacket && !datagram
    }
}

/// Looks at what arrives.
#[derive(Debug)]
pub(super) struct Inspector {
    kinds: Kinds,
    /// The last connection that was taken came over TCP, so the next one probably does.
    expect_tcp: bool,
}

impl Inspector {
    pub(super) fn new(kinds: Kinds) -> Inspector {
        Inspector { kinds, expect_tcp: true }
    }

    /// What can be asked about all the descriptors of a packet at once: whether each is open for
    /// writing, if that will be of use.
    pub(super) fn look(&self, descriptors: &[OwnedFd]) -> [bool; MAX_DESCRIPTORS] {
        if self.tries_tcp() {
            packet::open_for_writing(descriptors)
        } else {
            [false; MAX_DESCRIPTORS]
        }
    }

    /// Why a descriptor is not taken, if it is not; `open` is what [`look`](Inspector::look) said.
    pub(super) fn refusal(
        &mut self,
        descriptor: &OwnedFd,
        open: bool,
        cookie: u64,
    ) -> Option<Reason> {
        let descriptor = descriptor.as_fd();
        if !self.allows(descriptor, open) {
            return Some(Reason::ClientUnsupported);
        }
        // What arrived is a socket, and the one that was offered, as far as both sides can tell.
        let found = packet::cookie(descriptor);
        let same = found.is_ok_and(|found| found == cookie || found == 0 || cookie == 0);
        (!same).then_some(Reason::IntegrityMismatch)
    }

    fn tries_tcp(&self) -> bool {
        self.expect_tcp && self.kinds.stream && !self.kinds.unconnected
    }

    /// Whether a descriptor is of an allowed kind.
    ///
    /// That it is a TCP socket says that it is a stream socket, and that it is open for writing
    /// then says that it is connected: this is one call for each descriptor, instead of two. Where
    /// one of these does not hold, SO_TYPE and getpeername(2) have the last word, as they have for
    /// all other sockets; the two ways never differ about a socket that the first one takes.
    fn allows(&mut self, descriptor: BorrowedFd<'_>, open: bool) -> bool {
        let Kinds { stream, seqpacket, datagram, unconnected } = self.kinds;
        if stream && seqpacket && datagram && unconnected {
            return true;
        }
        if open && self.tries_tcp() && packet::is_tcp(descriptor) {
            return true;
        }
        let kind = packet::socket_type(descriptor);
        let allowed = match kind {
            Ok(libc::SOCK_STREAM) => stream,
            Ok(libc::SOCK_SEQPACKET) => seqpacket,
            Ok(libc::SOCK_DGRAM) => datagram,
            _ => false,
        };
        if !allowed || unconnected {
            return allowed;
        }
        let Some(family) = packet::peer_family(descriptor) else { return false };
        let over_ip = matches!(family, libc::AF_INET | libc::AF_INET6);
        self.expect_tcp = over_ip && matches!(kind, Ok(libc::SOCK_STREAM));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    const STREAMS: Kinds =
        Kinds { stream: true, seqpacket: false, datagram: false, unconnected: false };

    fn tcp() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    /// Whether streams with a peer, and nothing else, take this: whatever came before it.
    fn taken(socket: impl Into<OwnedFd>) -> bool {
        let socket = [socket.into()];
        let open = packet::open_for_writing(&socket)[0];
        let [expecting, not] = [true, false].map(|expect_tcp| {
            Inspector { kinds: STREAMS, expect_tcp }.allows(socket[0].as_fd(), open)
        });
        assert_eq!(expecting, not);
        expecting
    }

    #[test]
    fn connected_streams_are_taken_in_every_state() {
        let (client, _server) = tcp();
        let found = Inspector::new(STREAMS).allows(client.as_fd(), true);
        assert!(found && packet::is_tcp(client.as_fd()));
        assert!(taken(client));

        let (mut full, _server) = tcp();
        full.set_nonblocking(true).unwrap();
        while full.write(&[0; 65536]).is_ok() {}
        assert!(taken(full));

        let (half_closed, _server) = tcp();
        half_closed.shutdown(Shutdown::Write).unwrap();
        assert!(taken(half_closed));

        let (left, server) = tcp();
        drop(server);
        assert!(taken(left));

        let (unix, _peer) = UnixStream::pair().unwrap();
        assert!(taken(unix));
        let (left, _) = UnixStream::pair().unwrap();
        assert!(taken(left));
    }

    #[test]
    fn nothing_else_is_taken() {
        let (reset, server) = tcp();
        let mut unread = reset.try_clone().unwrap();
        unread.write_all(b"unread").unwrap();
        drop(unread);
        let mut byte = [0];
        while server.peek(&mut byte).unwrap() == 0 {}
        // Closed with unread bytes: a reset.
        drop(server);
        while reset.take_error().unwrap().is_none() {}
        assert!(!taken(reset));

        assert!(!taken(TcpListener::bind("127.0.0.1:0").unwrap()));
        assert!(!taken(UdpSocket::bind("127.0.0.1:0").unwrap()));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.connect("127.0.0.1:9").unwrap();
        assert!(!taken(udp));
        assert!(!taken(UnixDatagram::pair().unwrap().0));
        let directory = tempfile::tempdir().unwrap();
        assert!(!taken(UnixListener::bind(directory.path().join("socket")).unwrap()));
        assert!(!taken(tempfile::tempfile().unwrap()));
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(!taken(reader));
    }

    #[test]
    fn sockets_that_were_never_connected_are_not_taken() {
        for (family, kind) in [
            (libc::AF_INET, libc::SOCK_STREAM),
            (libc::AF_INET6, libc::SOCK_STREAM),
            (libc::AF_UNIX, libc::SOCK_STREAM),
            (libc::AF_UNIX, libc::SOCK_SEQPACKET),
            (libc::AF_UNIX, libc::SOCK_DGRAM),
            (libc::AF_VSOCK, libc::SOCK_STREAM),
        ] {
            // A system without the family has no such sockets.
            if let Ok(socket) = packet::tests::new_socket(family, kind) {
                assert!(!taken(socket), "family {family}, kind {kind}");
            }
        }
    }

    #[test]
    fn connection_that_waits_for_its_first_bytes_to_connect_is_not_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = [packet::tests::connect_with_first_bytes(listener.local_addr().unwrap())];
        // poll(2) alone would not tell.
        assert!(packet::open_for_writing(&socket)[0]);
        let [socket] = socket;
        assert!(!packet::is_tcp(socket.as_fd()));
        assert!(!taken(socket));
    }
}
