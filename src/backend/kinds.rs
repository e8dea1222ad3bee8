//! Which sockets a backend takes, and what it asks the kernel about each that arrives.
//!
//! A broker is not trusted with what it offers, so the kernel is asked about it: first what only a
//! socket answers, because what is no socket may be slow to answer anything. The questions are most
//! of what an arrival costs, so for clients that come over TCP there are fewer of them.

use std::os::fd::{AsFd, BorrowedFd};

use crate::reason::Reason;
use crate::sys::arrived::Arrived;
use crate::sys::packet::MAX_DESCRIPTORS;
use crate::sys::socket;
use crate::tls;
use crate::wire::{Rejection, kind};

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

    /// Which descriptors of a packet are certainly connections over TCP, if that will be of use.
    pub(super) fn look(&self, descriptors: &[Arrived]) -> [bool; MAX_DESCRIPTORS] {
        if self.expect_tcp && self.kinds.stream && !self.kinds.unconnected {
            socket::connected_over_tcp(descriptors)
        } else {
            [false; MAX_DESCRIPTORS]
        }
    }

    /// Why a descriptor is not taken, if it is not; `over_tcp` is what [`look`](Inspector::look)
    /// said. `tls`: the broker says that the kernel does its TLS.
    pub(super) fn rejection(
        &mut self,
        descriptor: &Arrived,
        over_tcp: bool,
        cookie: u64,
        tls: bool,
    ) -> Option<Rejection> {
        let descriptor = descriptor.as_fd();
        let checked = if over_tcp & !tls { Ok(()) } else { self.check(descriptor, tls) };
        if let Err(rejection) = checked {
            return Some(rejection);
        }
        // What arrived is a socket, and the one that was offered, as far as both sides can tell.
        // The kernel does its TLS if the broker says so.
        let found = socket::cookie(descriptor);
        let same = found.is_ok_and(|found| found == cookie || found == 0 || cookie == 0);
        (!same).then_some(Reason::IntegrityMismatch.into())
    }

    /// Whether a descriptor is of an allowed kind. What is no socket, or of a kind without a name,
    /// is not supported.
    ///
    /// Of a TCP socket [`look`](Inspector::look) tells the same with one call instead of two. Where
    /// it does not tell, SO_TYPE and getpeername(2) have the last word, as they have for all other
    /// sockets; the two ways never differ about a socket that the first one takes.
    // Cold, because `look` has told of most arrivals.
    #[cold]
    fn check(&mut self, descriptor: BorrowedFd<'_>, tls: bool) -> Result<(), Rejection> {
        self.check_kind(descriptor)?;
        if tls && tls::check(descriptor).is_err() {
            return Err(Reason::IntegrityMismatch.into());
        }
        Ok(())
    }

    fn check_kind(&mut self, descriptor: BorrowedFd<'_>) -> Result<(), Rejection> {
        let Kinds { stream, seqpacket, datagram, unconnected } = self.kinds;
        if stream && seqpacket && datagram && unconnected {
            return Ok(());
        }
        let found = socket::socket_type(descriptor);
        let (allowed, number) = match found {
            Ok(libc::SOCK_STREAM) => (stream, kind::STREAM),
            Ok(libc::SOCK_SEQPACKET) => (seqpacket, kind::SEQPACKET),
            Ok(libc::SOCK_DGRAM) => (datagram, kind::DATAGRAM),
            _ => return Err(Reason::ClientUnsupported.into()),
        };
        if !allowed {
            return Err(Rejection::of_kind(number));
        }
        if unconnected {
            return Ok(());
        }
        let Some(family) = socket::peer_family(descriptor) else {
            return Err(if socket::has_ended(descriptor) {
                Reason::ClientGone.into()
            } else {
                Rejection::of_kind(kind::UNCONNECTED)
            });
        };
        let over_ip = matches!(family, libc::AF_INET | libc::AF_INET6);
        self.expect_tcp = over_ip && matches!(found, Ok(libc::SOCK_STREAM));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    const STREAMS: Kinds =
        Kinds { stream: true, seqpacket: false, datagram: false, unconnected: false };

    fn tcp() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    /// Whether streams with a peer, and nothing else, take this: whatever came before it.
    fn taken(socket: impl Into<OwnedFd>) -> bool {
        let socket = [Arrived::new(socket.into())];
        let cookie = socket::cookie(socket[0].as_fd()).unwrap_or(0);
        let [expecting, not] = [true, false].map(|expect_tcp| {
            let mut inspector = Inspector { kinds: STREAMS, expect_tcp };
            let over_tcp = inspector.look(&socket)[0];
            inspector.rejection(&socket[0], over_tcp, cookie, false).is_none()
        });
        assert_eq!(expecting, not);
        expecting
    }

    #[test]
    fn connection_over_tcp_is_known_among_others() {
        let (client, _server) = tcp();
        let (unix, _peer) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let arrived = [file.into(), client.into(), unix.into()].map(Arrived::new);
        assert_eq!(Inspector::new(STREAMS).look(&arrived)[..4], [false, true, false, false]);
    }

    #[test]
    fn plain_socket_that_is_said_to_have_tls_is_another_one_than_was_offered() {
        let (client, _server) = tcp();
        let (unix, _peer) = UnixStream::pair().unwrap();
        for socket in [OwnedFd::from(client), unix.into()] {
            let socket = Arrived::new(socket);
            let mut inspector = Inspector::new(STREAMS);
            assert_eq!(inspector.rejection(&socket, false, 0, false), None);
            let rejection = inspector.rejection(&socket, false, 0, true);
            assert_eq!(rejection, Some(Reason::IntegrityMismatch.into()));
        }
    }

    #[test]
    fn connected_streams_are_taken_in_every_state() {
        let (client, _server) = tcp();
        assert!(socket::is_tcp(client.as_fd()));
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
        // std::io::pipe() needs a later Rust.
        let mut program = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
        assert!(!taken(program.stdout.take().unwrap()));
        program.wait().unwrap();
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
            if let Ok(socket) = socket::tests::new_socket(family, kind) {
                assert!(!taken(socket), "family {family}, kind {kind}");
            }
        }
    }

    #[test]
    fn connection_that_waits_for_its_first_bytes_to_connect_is_not_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = socket::tests::connect_with_first_bytes(listener.local_addr().unwrap());
        assert!(!socket::is_tcp(socket.as_fd()));
        assert!(!taken(socket));
    }
}
