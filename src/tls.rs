//! Connections whose TLS the kernel does (kTLS): what is known of them, and their two ends.
//!
//! Such a socket is read and written like any other, but for two things. A record that is no data
//! makes a plain read fail with EIO, so [`receive`] asks for the type of each record. And the peer
//! is to be told of the end in a record, which [`shutdown`] sends before the FIN. Both do the plain
//! thing on a plain socket. The keys stay in the kernel.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use crate::kind::ErrorKind;
use crate::sys::{self, errno::Said, tls as kernel, tls::Direction};

/// Content types of records, RFC 8446, section 5.1.
mod content {
    pub(super) const ALERT: u8 = 21;
    pub(super) const HANDSHAKE: u8 = 22;
    pub(super) const DATA: u8 = 23;
}

/// The handshake message that changes a key, RFC 8446, section 4.6.3.
const KEY_UPDATE: u8 = 24;
/// The alert of an orderly end: a warning, close_notify. RFC 8446, section 6.1.
const CLOSE_NOTIFY: [u8; 2] = [1, 0];
/// The alert that says that close_notify comes.
const USER_CANCELED: u8 = 90;
/// How many of these are passed over in a row: they must not hold up a call that has a deadline.
const MOST_CANCELED: usize = 8;

/// The longest pause when poll(2) says again and again that there is something, and there is not.
const MOST_PAUSE: Duration = Duration::from_millis(16);

/// Why a call about a connection with TLS has no result.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The descriptor is not a socket that can be used so.
    #[error("descriptor {descriptor} is {is}")]
    InvalidDescriptor {
        /// The descriptor.
        descriptor: RawFd,
        /// What it is.
        is: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel does not do the connection's TLS in both directions.
    #[error("the kernel does not do its TLS{missing}")]
    NotTls {
        /// Where, if it does it in one direction.
        missing: &'static str,
    },
    /// The peer has changed its key, or wants this side's changed, which the kernel leaves to the
    /// program, and the program has no secret to make a new one from.
    #[error("the client has updated its key (TLS 1.3 KeyUpdate), which cannot be followed here")]
    KeyUpdate,
    /// The peer has sent an alert.
    #[error("the client has sent the TLS alert {description}, {level}",
        level = if *.level == 1 { "a warning" } else { "fatal" })]
    Alert {
        /// 1 is a warning, 2 is fatal.
        level: u8,
        /// Its number, RFC 8446, section 6.
        description: u8,
    },
    /// The peer has sent a record that is no data.
    #[error("the client has sent a TLS record of content type {content}, which is no data")]
    NoData {
        /// Its content type: 22 is a handshake.
        content: u8,
    },
    /// What came is no record under the connection's key.
    #[error("what has come in is no TLS record of this connection: {said}", said = Said(source))]
    NoRecord {
        /// What the system said.
        source: io::Error,
    },
    /// The stream has ended without close_notify.
    #[error("the client has closed the connection without close_notify: something may be missing")]
    Truncated,
    /// The time is up.
    #[error("the time is up")]
    TimedOut,
    /// Receiving failed.
    #[error("cannot receive: {said}", said = Said(source))]
    Receive {
        /// What the system said.
        source: io::Error,
    },
    /// Sending failed.
    #[error("cannot end the connection: {said}", said = Said(source))]
    Send {
        /// What the system said.
        source: io::Error,
    },
}

impl TlsError {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            TlsError::InvalidDescriptor { .. } => ErrorKind::InvalidArgument,
            TlsError::NotTls { .. } => ErrorKind::NotTls,
            TlsError::KeyUpdate => ErrorKind::TlsKeyUpdate,
            TlsError::Alert { .. } => ErrorKind::TlsAlert,
            TlsError::NoData { .. } | TlsError::NoRecord { .. } => ErrorKind::TlsRecord,
            TlsError::Truncated => ErrorKind::EndOfStream,
            TlsError::TimedOut => ErrorKind::TimedOut,
            TlsError::Receive { .. } => ErrorKind::ReceiveFailed,
            TlsError::Send { .. } => ErrorKind::SendFailed,
        }
    }
}

/// What the kernel tells of a connection's TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// As in the protocol: 0x0303 is TLS 1.2, 0x0304 is TLS 1.3.
    pub version: u16,
    /// The kernel's number of the cipher, TLS_CIPHER_* of linux/tls.h.
    pub cipher: u16,
    /// The kernel encrypts what is sent.
    pub sends: bool,
    /// The kernel decrypts what is received.
    pub receives: bool,
}

impl Session {
    /// What the two directions make together; none if neither has TLS.
    fn of(send: Option<kernel::Crypto>, receive: Option<kernel::Crypto>) -> Option<Session> {
        let kernel::Crypto { version, cipher } = receive.or(send)?;
        Some(Session { version, cipher, sends: send.is_some(), receives: receive.is_some() })
    }

    /// Nothing, if both directions have TLS.
    fn is_whole(self) -> Result<(), TlsError> {
        let missing = match self {
            Session { sends: true, receives: true, .. } => return Ok(()),
            Session { sends: true, .. } => " in the receiving direction",
            _ => " in the sending direction",
        };
        Err(TlsError::NotTls { missing })
    }
}

/// What the kernel tells of a socket's TLS; none if it does none there.
pub fn session(socket: BorrowedFd<'_>) -> Result<Option<Session>, TlsError> {
    if !kernel::is_above_tcp(socket) {
        // A socket of any other kind has a type.
        let is_socket = sys::socket::socket_type(socket).map_err(|e| not_received(socket, e));
        return is_socket.map(|_| None);
    }
    let ask = |direction| {
        kernel::direction(socket, direction).map_err(|source| TlsError::Receive { source })
    };
    Ok(Session::of(ask(Direction::Send)?, ask(Direction::Receive)?))
}

/// That the kernel does a socket's TLS in both directions.
pub fn check(socket: BorrowedFd<'_>) -> Result<(), TlsError> {
    session(socket)?.ok_or(TlsError::NotTls { missing: "" })?.is_whole()
}

/// What has been received.
#[derive(Debug, PartialEq, Eq)]
enum Received {
    Data,
    CloseNotify,
    /// It says that close_notify comes, RFC 8446, section 6.1, as Java does, and is no end itself.
    UserCanceled,
    /// An alert of which only the first byte is known.
    HalfAlert(u8),
}

/// By the type of its record and its first two bytes, as far as there are.
fn look(content: Option<u8>, bytes: &[u8]) -> Result<Received, TlsError> {
    match (content, bytes) {
        (None | Some(content::DATA), _) => Ok(Received::Data),
        (Some(content::ALERT), [_, 0, ..]) => Ok(Received::CloseNotify),
        (Some(content::ALERT), [_, USER_CANCELED, ..]) => Ok(Received::UserCanceled),
        (Some(content::ALERT), [level, description, ..]) => {
            Err(TlsError::Alert { level: *level, description: *description })
        }
        (Some(content::ALERT), [level]) => Ok(Received::HalfAlert(*level)),
        (Some(content::HANDSHAKE), [KEY_UPDATE, ..]) => Err(TlsError::KeyUpdate),
        (Some(content), _) => Err(TlsError::NoData { content }),
    }
}

/// Receives data into `buffer`, which has room for a byte at the least, until a deadline; without
/// one it waits forever, whatever O_NONBLOCK says. Returns how many bytes; 0 is the end of the
/// stream: close_notify or, on a plain socket, the FIN.
///
/// After an error but [`TlsError::TimedOut`] nothing more can be received. What is in `buffer`
/// then, and after 0, is nothing.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [MaybeUninit<u8>],
    deadline: Option<Instant>,
) -> Result<usize, TlsError> {
    for _ in 0..MOST_CANCELED {
        let record = receive_record(socket, buffer, deadline)?;
        let (len, start) = (record.len, record.start);
        let mut received = look(record.content, &start[..len.min(start.len())])?;
        if let Received::HalfAlert(level) = received {
            // The kernel keeps what did not fit of a record.
            match kernel::receive(socket, &mut [MaybeUninit::uninit()]) {
                Ok(kernel::Record { len: 1, start, content: Some(content::ALERT) }) => {
                    received = look(Some(content::ALERT), &[level, start[0]])?;
                }
                _ => break,
            }
        }
        match received {
            // That there was no record at all.
            Received::Data if len == 0 && receives_tls(socket) => {
                return Err(TlsError::Truncated);
            }
            Received::Data => return Ok(len),
            Received::CloseNotify => return Ok(0),
            Received::UserCanceled => {}
            Received::HalfAlert(_) => break,
        }
    }
    Err(TlsError::NoData { content: content::ALERT })
}

/// Receives a record, or a part of one, until a deadline.
fn receive_record(
    socket: BorrowedFd<'_>,
    buffer: &mut [MaybeUninit<u8>],
    deadline: Option<Instant>,
) -> Result<kernel::Record, TlsError> {
    let mut waits = 0;
    loop {
        match kernel::receive(socket, buffer) {
            // An empty record, RFC 8446, section 5.1, and behind it one that is no data, or the end:
            // that comes next.
            Ok(kernel::Record { len: 0, content: Some(content::DATA), .. }) => continue,
            Ok(record) => return Ok(record),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(error) => return Err(not_received(socket, error)),
        }
        pause(waits, deadline)?;
        match sys::wait_readable(socket, deadline) {
            Ok(true) => waits += 1,
            Ok(false) => return Err(TlsError::TimedOut),
            Err(error) => return Err(not_received(socket, error)),
        }
    }
}

/// poll(2) has said so many times that something can be done, and it could not: Linux 6.1 calls a
/// socket readable that has a part of a record. So this is where the time is up then, and where a
/// loop pauses.
fn pause(waits: u32, deadline: Option<Instant>) -> Result<(), TlsError> {
    if waits == 0 {
        return Ok(());
    }
    let pause = Duration::from_millis(1 << (waits - 1).min(8)).min(MOST_PAUSE);
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    if left.is_some_and(|left| left.is_zero()) {
        return Err(TlsError::TimedOut);
    }
    thread::sleep(left.map_or(pause, |left| left.min(pause)));
    Ok(())
}

fn receives_tls(socket: BorrowedFd<'_>) -> bool {
    kernel::direction(socket, Direction::Receive).is_ok_and(|found| found.is_some())
}

#[cold]
fn not_received(socket: BorrowedFd<'_>, source: io::Error) -> TlsError {
    match source.raw_os_error() {
        Some(libc::ENOTSOCK | libc::EBADF) => invalid(socket, sys::what_is(socket), source),
        // Linux 6.14 and later: the record before was a KeyUpdate.
        Some(libc::EKEYEXPIRED) => TlsError::KeyUpdate,
        // Not authentic; or of another version, too long, too short. On a plain socket they are
        // something else.
        Some(libc::EBADMSG | libc::EINVAL | libc::EMSGSIZE | libc::EIO) if receives_tls(socket) => {
            TlsError::NoRecord { source }
        }
        _ => TlsError::Receive { source },
    }
}

/// Ends the sending direction: with close_notify, if the kernel does the TLS of what is sent, and
/// then with the FIN. It waits until a deadline for room in the socket's buffer; without one
/// forever. After [`TlsError::TimedOut`] nothing was sent.
///
/// The socket stays open: what the client still sends can be received.
pub fn shutdown(socket: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<(), TlsError> {
    let not_sent = |source: io::Error| match source.raw_os_error() {
        Some(libc::ENOTSOCK | libc::EBADF) => invalid(socket, sys::what_is(socket), source),
        _ => TlsError::Send { source },
    };
    // Asked first: a plain socket would send the alert as it is.
    let has_tls = kernel::direction(socket, Direction::Send).map_err(not_sent)?.is_some();
    if has_tls {
        send_close_notify(socket, deadline, not_sent)?;
    }
    kernel::shutdown_write(socket).map_err(not_sent)
}

fn send_close_notify(
    socket: BorrowedFd<'_>,
    deadline: Option<Instant>,
    not_sent: impl Fn(io::Error) -> TlsError,
) -> Result<(), TlsError> {
    let mut waits = 0;
    // Also before the first attempt: with much room, the kernel passes on at once what it has
    // encrypted and TCP had no room for, which the FIN would cut off.
    while sys::wait_writable(socket, deadline).map_err(&not_sent)? {
        match kernel::send(socket, content::ALERT, &CLOSE_NOTIFY) {
            Ok(_) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                waits += 1;
                pause(waits, deadline)?;
            }
            Err(error) => return Err(not_sent(error)),
        }
    }
    Err(TlsError::TimedOut)
}

#[cold]
fn invalid(socket: BorrowedFd<'_>, is: &'static str, source: io::Error) -> TlsError {
    TlsError::InvalidDescriptor { descriptor: socket.as_raw_fd(), is, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn tcp() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn room<const LEN: usize>() -> [MaybeUninit<u8>; LEN] {
        [const { MaybeUninit::uninit() }; LEN]
    }

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(10))
    }

    fn kind<T>(result: Result<T, TlsError>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind())
    }

    #[test]
    fn only_data_is_data() {
        assert!(matches!(look(None, b"GET"), Ok(Received::Data)));
        assert!(matches!(look(Some(23), b"GET"), Ok(Received::Data)));
        assert!(matches!(look(Some(23), &[1, 0]), Ok(Received::Data)));
        for level in [1, 2] {
            assert!(matches!(look(Some(21), &[level, 0]), Ok(Received::CloseNotify)));
        }
        assert!(matches!(look(Some(21), &[1]), Ok(Received::HalfAlert(1))));
        let alert = look(Some(21), &[2, 40]);
        assert!(matches!(alert, Err(TlsError::Alert { level: 2, description: 40 })));
        assert!(matches!(look(Some(22), &[24, 0, 0, 1, 1]), Err(TlsError::KeyUpdate)));
        for (content, bytes) in
            [(22, &[1][..]), (22, &[]), (21, &[]), (20, &[1]), (24, b"GET"), (0, b"")]
        {
            let found = look(Some(content), bytes);
            assert!(matches!(found, Err(TlsError::NoData { content: it }) if it == content));
        }
        for content in (0..=255).filter(|content| *content != 23) {
            assert!(!matches!(look(Some(content), b"GET"), Ok(Received::Data)), "{content}");
        }
    }

    #[test]
    fn both_directions_must_have_tls() {
        let crypto = Some(kernel::Crypto { version: 0x0304, cipher: 51 });
        let of = |send, receive| Session::of(send, receive);
        assert_eq!(of(None, None), None);
        let whole = Session { version: 0x0304, cipher: 51, sends: true, receives: true };
        assert_eq!(of(crypto, crypto), Some(whole));
        assert!(whole.is_whole().is_ok());
        for (send, receive, missing) in [(crypto, None, "receiving"), (None, crypto, "sending")] {
            let error = of(send, receive).unwrap().is_whole().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotTls);
            assert!(error.to_string().contains(missing), "{error}");
        }
    }

    #[test]
    fn plain_socket_has_no_tls() {
        let (client, _server) = tcp();
        let (unix, _peer) = UnixStream::pair().unwrap();
        for socket in [client.as_fd(), unix.as_fd()] {
            assert_eq!(session(socket).unwrap(), None);
            assert_eq!(kind(check(socket)), Some(ErrorKind::NotTls));
        }
        let file = File::open("/dev/null").unwrap();
        assert_eq!(kind(session(file.as_fd())), Some(ErrorKind::InvalidArgument));
    }

    #[test]
    fn plain_socket_is_received_from_as_by_recv() {
        let (mut client, server) = tcp();
        let mut buffer = room::<4>();
        assert_eq!(
            kind(receive(server.as_fd(), &mut buffer, Some(Instant::now()))),
            Some(ErrorKind::TimedOut)
        );
        client.write_all(&[21, 3, 3, 0, 2]).unwrap();
        assert_eq!(receive(server.as_fd(), &mut buffer, soon()).unwrap(), 4);
        // SAFETY: four bytes were received.
        assert_eq!(buffer.map(|byte| unsafe { byte.assume_init() }), [21, 3, 3, 0]);
        // Without a deadline and non-blocking, which is not looked at.
        server.set_nonblocking(true).unwrap();
        assert_eq!(receive(server.as_fd(), &mut buffer, None).unwrap(), 1);
        drop(client);
        assert_eq!(receive(server.as_fd(), &mut buffer, soon()).unwrap(), 0);
    }

    #[test]
    fn reset_of_a_plain_connection_is_an_error_of_the_system() {
        let (client, mut server) = tcp();
        server.write_all(b"unread").unwrap();
        assert_eq!(client.peek(&mut [0]).unwrap(), 1);
        drop(client);
        let error = receive(server.as_fd(), &mut room::<1>(), soon()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReceiveFailed);
        assert!(matches!(error, TlsError::Receive { source }
            if source.raw_os_error() == Some(libc::ECONNRESET)));
    }

    #[test]
    fn plain_socket_is_shut_down_without_a_byte() {
        let (mut client, server) = tcp();
        shutdown(server.as_fd(), Some(Instant::now())).unwrap();
        let mut rest = Vec::new();
        assert_eq!(client.read_to_end(&mut rest).unwrap(), 0);
        // The other direction goes on.
        client.write_all(b"more").unwrap();
        assert_eq!(receive(server.as_fd(), &mut room::<8>(), soon()).unwrap(), 4);
    }

    #[test]
    fn what_is_no_socket_is_told_so() {
        let file = File::open("/dev/null").unwrap();
        let is = |error: TlsError| {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().ends_with("is a device"), "{error}");
        };
        is(receive(file.as_fd(), &mut room::<1>(), soon()).unwrap_err());
        is(shutdown(file.as_fd(), soon()).unwrap_err());
    }
}
