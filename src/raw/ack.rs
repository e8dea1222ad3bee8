//! Acknowledgements of the raw layer, and their deadlines.
//!
//! The backend answers a message with 20 bytes over the same connection: the token, one byte that
//! says accepted or rejected, one byte of reason, two bytes of zero. A backend serves a connection
//! only after its acceptance was sent. A broker that stops waiting first closes the connection for
//! further acknowledgements and then looks once more, so that both know who owns the
//! client: either the broker finds the acceptance, or the backend's send fails.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::address::{Socket, TransportError, receive_error};
use crate::kind::ErrorKind;
use crate::raw::transport::bare_send_error;
use crate::reason::Reason;
use crate::sys::{self, Received, errno::Said};
use crate::token::Token;

/// What the backend says about one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The token of the message.
    pub token: Token,
    /// What becomes of the connection.
    pub answer: Answer,
}

/// The backend's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The backend owns the connection and serves it.
    Accepted,
    /// The backend has closed its copy and does not serve the connection.
    Rejected(Reason),
}

/// Why an acknowledgement was not sent or not received.
#[derive(Debug, thiserror::Error)]
pub enum AckError {
    /// The connection failed, or was closed by the other end.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// No acknowledgement has arrived.
    #[error("{socket}: no acknowledgement has arrived")]
    Nothing {
        /// The socket that was looked at.
        socket: Socket,
    },
    /// The deadline passed. The connection takes no acknowledgement any more.
    #[error("{socket}: no acknowledgement by the deadline")]
    Timeout {
        /// The socket that was waited for.
        socket: Socket,
    },
    /// The acknowledgement names another token.
    #[error("{socket}: the acknowledgement is for another token")]
    OtherToken {
        /// The socket that it came from.
        socket: Socket,
    },
    /// Receiving failed, so the message was taken back. The connection takes no acknowledgement any
    /// more.
    #[error("{socket}: cannot receive, so the message was taken back: {said}", said = Said(source))]
    TakenBack {
        /// The socket that was waited for.
        socket: Socket,
        /// What the system said.
        source: io::Error,
    },
    /// The message could not be taken back, or what was acknowledged before could not be received:
    /// the backend may own the connection.
    #[error("the message cannot be taken back: {cause}")]
    Unsettled {
        /// What failed.
        #[source]
        cause: TransportError,
    },
    /// The bytes are no acknowledgement.
    #[error("{socket}: malformed acknowledgement: {problem}")]
    Malformed {
        /// The socket that they came from.
        socket: Socket,
        /// What is wrong with them.
        problem: &'static str,
    },
}

impl AckError {
    /// The same error when the message is taken back: an acknowledgement that could not be received
    /// would have been found.
    fn after_taking_back(self) -> AckError {
        match self {
            AckError::Transport(TransportError::ReceiveFailed { socket, source }) => {
                AckError::TakenBack { socket, source }
            }
            error => error,
        }
    }

    /// The same error over a socket that has another name for the caller: by its path, say.
    pub(crate) fn over(self, named: Socket) -> AckError {
        match self {
            AckError::Transport(error) => error.over(named).into(),
            AckError::Nothing { .. } => AckError::Nothing { socket: named },
            AckError::Timeout { .. } => AckError::Timeout { socket: named },
            AckError::TakenBack { source, .. } => AckError::TakenBack { socket: named, source },
            AckError::OtherToken { .. } => AckError::OtherToken { socket: named },
            AckError::Unsettled { cause } => AckError::Unsettled { cause: cause.over(named) },
            AckError::Malformed { problem, .. } => AckError::Malformed { socket: named, problem },
        }
    }

    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            AckError::Transport(error) => error.kind(),
            AckError::Nothing { .. } => ErrorKind::Nothing,
            AckError::Timeout { .. } => ErrorKind::AckTimeout,
            AckError::TakenBack { .. } => ErrorKind::EndOfStream,
            AckError::OtherToken { .. } => ErrorKind::AckMismatch,
            AckError::Malformed { .. } => ErrorKind::AckMalformed,
            AckError::Unsettled { cause } => match cause.kind() {
                ErrorKind::InvalidArgument => ErrorKind::InvalidArgument,
                _ => ErrorKind::TooLate,
            },
        }
    }
}

impl Ack {
    /// Bytes in an acknowledgement.
    pub const LEN: usize = 20;

    const ACCEPTED: u8 = 1;
    const REJECTED: u8 = 2;

    fn to_bytes(self) -> [u8; Ack::LEN] {
        let (kind, reason) = match self.answer {
            Answer::Accepted => (Ack::ACCEPTED, 0),
            Answer::Rejected(reason) => (Ack::REJECTED, reason as u8),
        };
        let mut bytes = [0; Ack::LEN];
        bytes[..Token::LEN].copy_from_slice(self.token.as_bytes());
        bytes[Token::LEN..].copy_from_slice(&[kind, reason, 0, 0]);
        bytes
    }

    fn from_bytes(bytes: &[u8; Ack::LEN]) -> Result<Ack, &'static str> {
        let mut token = [0; Token::LEN];
        token.copy_from_slice(&bytes[..Token::LEN]);
        let answer = match bytes[Token::LEN..] {
            [Ack::ACCEPTED, 0, 0, 0] => Answer::Accepted,
            // A reason that a later version added is still a rejection.
            [Ack::REJECTED, reason, 0, 0] => {
                Answer::Rejected(Reason::try_from(u32::from(reason)).unwrap_or(Reason::Rejected))
            }
            _ => return Err("unknown answer"),
        };
        Ok(Ack { token: Token::from_bytes(token), answer })
    }
}

/// Sends an acknowledgement, at once or not at all. After an error the backend does not own the
/// connection: it closes its copy and serves nothing.
pub fn send(socket: BorrowedFd<'_>, ack: &Ack) -> Result<(), AckError> {
    match sys::send(socket, &ack.to_bytes()) {
        Ok(Ack::LEN) => Ok(()),
        Ok(sent) => {
            Err(TransportError::ShortWrite { socket: socket.into(), sent, len: Ack::LEN }.into())
        }
        Err(source) => Err(bare_send_error(socket, source).into()),
    }
}

/// Takes the next acknowledgement that has arrived; without one it is [`AckError::Nothing`]. Never
/// blocks.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Ack, AckError> {
    take(socket, false)
}

fn take(socket: BorrowedFd<'_>, wait: bool) -> Result<Ack, AckError> {
    let mut bytes = [0; Ack::LEN];
    let malformed = |problem| AckError::Malformed { socket: socket.into(), problem };
    let mut received = take_bytes(socket, &mut bytes, wait)?;
    let mut is_end = received.len == 0;
    if is_end {
        // An empty packet would look like the end, and what is behind it would not be found. The end
        // is still there when it is looked for again.
        let again = || take_bytes(socket, &mut bytes, false);
        received = match sys::socket::telling_packets(socket, again) {
            Some(Err(AckError::Nothing { .. })) => return Err(malformed("an empty packet")),
            Some(result) => result?,
            None => received,
        };
        is_end = received.len == 0 && !received.is_packet;
    }
    match received.len {
        _ if is_end => {
            Err(TransportError::EndOfStream { socket: socket.into(), source: None }.into())
        }
        Ack::LEN if !received.payload_truncated => Ack::from_bytes(&bytes).map_err(malformed),
        _ => Err(malformed("wrong length")),
    }
}

fn take_bytes(socket: BorrowedFd<'_>, bytes: &mut [u8], wait: bool) -> Result<Received, AckError> {
    sys::receive(socket, bytes, wait).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => AckError::Nothing { socket: socket.into() },
        _ => receive_error(socket, source).into(),
    })
}

/// Takes back every message of a connection that is not acknowledged yet: acknowledgements sent
/// before can still be received, and every later one fails at the backend, which then does not
/// serve.
pub fn take_back(socket: BorrowedFd<'_>) -> Result<(), AckError> {
    sys::socket::shutdown_read(socket)
        .map_err(|source| AckError::Unsettled { cause: receive_error(socket, source) })
}

/// Waits for the acknowledgement of `token` for at most `timeout`, or forever if there is none.
/// When the time is up, something else arrives or the wait fails, it [takes back](take_back) the
/// message and looks through what is queued before it gives up. After any error the connection
/// cannot be used again, and after any but [`AckError::Unsettled`] the backend does not serve.
pub fn wait(
    socket: BorrowedFd<'_>,
    token: &Token,
    timeout: Option<Duration>,
) -> Result<Answer, AckError> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let problem = match wait_until(socket, token, deadline) {
        Ok(answer) => return Ok(answer),
        // Nothing more comes: the acknowledgement is not there.
        Err(end @ AckError::Transport(TransportError::EndOfStream { .. })) => return Err(end),
        Err(problem) => problem,
    };
    take_back(socket)?;
    loop {
        match take(socket, false) {
            Ok(ack) if ack.token == *token => return Ok(ack.answer),
            Err(
                AckError::Nothing { .. } | AckError::Transport(TransportError::EndOfStream { .. }),
            ) => return Err(problem.after_taking_back()),
            Err(AckError::Transport(cause)) => return Err(AckError::Unsettled { cause }),
            // The acknowledgement may be behind it.
            Ok(_) | Err(_) => {}
        }
    }
}

/// Waits until the acknowledgement of `token` is there, or something that ends the wait.
fn wait_until(
    socket: BorrowedFd<'_>,
    token: &Token,
    deadline: Option<Instant>,
) -> Result<Answer, AckError> {
    // The answer takes the backend a while, so with a deadline poll(2) comes before recv(2).
    let mut look = deadline.is_none();
    loop {
        if !look {
            let ready = sys::wait_readable(socket, deadline);
            if !ready.map_err(|source| receive_error(socket, source))? {
                return Err(AckError::Timeout { socket: socket.into() });
            }
        }
        match take(socket, deadline.is_none()) {
            Ok(ack) if ack.token == *token => return Ok(ack.answer),
            Ok(_) => return Err(AckError::OtherToken { socket: socket.into() }),
            Err(AckError::Nothing { .. }) => {}
            Err(error) => return Err(error),
        }
        // Of a datagram socket that was shut down poll(2) says each time that there is something.
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(AckError::Timeout { socket: socket.into() });
        }
        look = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::thread;

    fn token(byte: u8) -> Token {
        Token::from_bytes([byte; Token::LEN])
    }

    fn accepted(byte: u8) -> Ack {
        Ack { token: token(byte), answer: Answer::Accepted }
    }

    const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));
    const NO_WAIT: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn every_answer_survives_its_bytes() {
        let reasons = (1..=255).filter_map(|reason| Reason::try_from(reason).ok());
        let answers = reasons.map(Answer::Rejected).chain([Answer::Accepted]);
        for answer in answers {
            let ack = Ack { token: token(9), answer };
            assert_eq!(Ack::from_bytes(&ack.to_bytes()), Ok(ack));
        }
    }

    #[test]
    fn acceptance_before_the_deadline_is_found_by_the_last_look() {
        let (broker, backend) = UnixStream::pair().unwrap();
        send(backend.as_fd(), &accepted(1)).unwrap();
        assert_eq!(wait(broker.as_fd(), &token(1), NO_WAIT).unwrap(), Answer::Accepted);
    }

    #[test]
    fn acceptance_after_the_deadline_cannot_be_sent() {
        let (broker, backend) = UnixStream::pair().unwrap();
        let result = wait(broker.as_fd(), &token(1), NO_WAIT);
        assert!(matches!(result, Err(AckError::Timeout { .. })));
        let late = send(backend.as_fd(), &accepted(1));
        assert!(matches!(late, Err(AckError::Transport(TransportError::EndOfStream { .. }))));
    }

    #[test]
    fn broker_and_backend_never_disagree_about_an_acceptance_at_the_deadline() {
        for round in 0..2000 {
            let (broker, backend) = UnixStream::pair().unwrap();
            let backend = thread::spawn(move || {
                // Spread over the millisecond in which the broker's deadline lies.
                let start = Instant::now();
                while start.elapsed() < Duration::from_micros(500 + round) {
                    std::hint::spin_loop();
                }
                send(backend.as_fd(), &accepted(1)).is_ok()
            });
            let answer = wait(broker.as_fd(), &token(1), Some(Duration::from_millis(1)));
            let adopted = backend.join().unwrap();
            assert_eq!(answer.is_ok(), adopted, "round {round}: {answer:?}");
        }
    }

    #[test]
    fn acknowledgement_of_another_token_does_not_hide_ours_behind_it() {
        let (broker, backend) = UnixStream::pair().unwrap();
        send(backend.as_fd(), &accepted(2)).unwrap();
        send(backend.as_fd(), &accepted(1)).unwrap();
        assert_eq!(wait(broker.as_fd(), &token(1), PATIENCE).unwrap(), Answer::Accepted);
        let (broker, backend) = UnixStream::pair().unwrap();
        send(backend.as_fd(), &accepted(2)).unwrap();
        let result = wait(broker.as_fd(), &token(1), PATIENCE);
        assert!(matches!(result, Err(AckError::OtherToken { .. })));
    }

    /// Two connected sockets.
    fn pair(kind: libc::c_int) -> [OwnedFd; 2] {
        let mut fds = [-1; 2];
        // SAFETY: there is room for two descriptors, which nobody else owns.
        unsafe {
            assert_eq!(libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()), 0);
            fds.map(|fd| OwnedFd::from_raw_fd(fd))
        }
    }

    #[test]
    fn acknowledgement_behind_empty_packets_is_found() {
        for kind in [libc::SOCK_SEQPACKET, libc::SOCK_DGRAM] {
            for (empty, closes) in [(1, false), (3, false), (1, true), (4, true)] {
                let [broker, backend] = pair(kind);
                for _ in 0..empty {
                    sys::send(backend.as_fd(), &[]).unwrap();
                }
                send(backend.as_fd(), &accepted(1)).unwrap();
                let _open = (!closes).then_some(backend);
                assert_eq!(wait(broker.as_fd(), &token(1), PATIENCE).unwrap(), Answer::Accepted);
            }
        }
    }

    #[test]
    fn empty_packet_is_no_acknowledgement_and_none_can_follow() {
        for kind in [libc::SOCK_SEQPACKET, libc::SOCK_DGRAM] {
            let [broker, backend] = pair(kind);
            sys::send(backend.as_fd(), &[]).unwrap();
            assert!(matches!(receive(broker.as_fd()), Err(AckError::Malformed { .. })));
            sys::send(backend.as_fd(), &[]).unwrap();
            let result = wait(broker.as_fd(), &token(1), PATIENCE);
            assert!(matches!(result, Err(AckError::Malformed { .. })), "{result:?}");
            assert!(send(backend.as_fd(), &accepted(1)).is_err());
        }
    }

    #[test]
    fn end_is_the_end_also_behind_an_empty_packet() {
        for empty in 0..3 {
            let [broker, backend] = pair(libc::SOCK_SEQPACKET);
            for _ in 0..empty {
                sys::send(backend.as_fd(), &[]).unwrap();
            }
            drop(backend);
            let ended = loop {
                match receive(broker.as_fd()) {
                    Err(AckError::Malformed { .. }) => {}
                    result => break result,
                }
            };
            let end = matches!(ended, Err(AckError::Transport(TransportError::EndOfStream { .. })));
            assert!(end, "{ended:?}");
        }
    }

    #[test]
    fn unknown_answers_and_wrong_lengths_are_malformed() {
        let mut unknown = accepted(1).to_bytes();
        unknown[Token::LEN] = 3;
        for bytes in [&unknown[..], &unknown[..5]] {
            let (broker, backend) = UnixStream::pair().unwrap();
            sys::send(backend.as_fd(), bytes).unwrap();
            let result = wait(broker.as_fd(), &token(1), PATIENCE);
            assert!(matches!(result, Err(AckError::Malformed { .. })), "{result:?}");
        }
    }
}
