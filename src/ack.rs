//! Acknowledgements of the raw layer, and their deadlines.
//!
//! The backend answers a message with 20 bytes over the same connection: the token, one byte that
//! says accepted or rejected, one byte of reason, two bytes of zero. A backend serves a connection
//! only after its acceptance was sent. A broker that stops waiting first closes the connection for
//! further acknowledgements and then looks once more, so that on Linux both know who owns the
//! client: either the broker finds the acceptance, or the backend's send fails.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::fallback::Reason;
use crate::sys;
use crate::token::{Token, TokenStore};
use crate::transport::{self, Socket, TransportError};

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

/// Why an acknowledgement was not sent, not received or not in order.
#[derive(Debug, thiserror::Error)]
pub enum AckError {
    /// The connection failed, or was closed by the other end.
    #[error(transparent)]
    Transport(#[from] TransportError),
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
    /// The bytes are no acknowledgement.
    #[error("{socket}: malformed acknowledgement: {problem}")]
    Malformed {
        /// The socket that they came from.
        socket: Socket,
        /// What is wrong with them.
        problem: &'static str,
    },
    /// The acknowledgement came after the deadline of its entry, which is left to `expire`.
    #[error("the acknowledgement came after its deadline")]
    Expired,
    /// No entry waits for this token: never registered, or it has left.
    #[error("no acknowledgement is pending for the token")]
    NotPending,
    /// An entry waits for this token already.
    #[error("an acknowledgement is pending for the token already")]
    AlreadyPending,
    /// The registry holds as many entries as it may.
    #[error("the registry is full: {capacity} acknowledgements are pending")]
    Full {
        /// How many it may hold.
        capacity: usize,
    },
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
        Ok(sent) => Err(TransportError::ShortWrite { socket: socket.into(), sent }.into()),
        Err(source) => Err(transport::bare_send_error(socket, source).into()),
    }
}

/// Takes the next acknowledgement that has arrived; without one it is
/// [`TransportError::WouldBlock`]. Never blocks.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Ack, AckError> {
    take(socket, false)
}

fn take(socket: BorrowedFd<'_>, wait: bool) -> Result<Ack, AckError> {
    let mut bytes = [0; Ack::LEN];
    let len = sys::receive(socket, &mut bytes, wait)
        .map_err(|source| transport::receive_error(socket, source))?;
    match len {
        0 => Err(TransportError::EndOfStream { socket: socket.into(), source: None }.into()),
        Ack::LEN => Ack::from_bytes(&bytes)
            .map_err(|problem| AckError::Malformed { socket: socket.into(), problem }),
        _ => Err(AckError::Malformed { socket: socket.into(), problem: "wrong length" }),
    }
}

/// Closes the connection for acknowledgements: those sent before can still be received, and every
/// later one fails at the backend, which then does not serve. Elsewhere than on Linux this does
/// nothing: queued acknowledgements would be lost.
pub fn close(socket: BorrowedFd<'_>) -> Result<(), AckError> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    sys::shutdown_read(socket).map_err(|source| transport::receive_error(socket, source))?;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = socket;
    Ok(())
}

/// Waits for the acknowledgement of `token` for at most `timeout`, or for ever if there is none.
/// When the time is up or something else arrives, [`close`]s the connection and looks through what
/// is queued before it gives up. After any error the connection is spent.
pub fn wait(
    socket: BorrowedFd<'_>,
    token: &Token,
    timeout: Option<Duration>,
) -> Result<Answer, AckError> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let at = || Socket::from(socket);
    // The answer takes the backend a while, so with a deadline poll(2) comes before recv(2).
    let mut look = deadline.is_none();
    // Set once the connection is closed: what to report if our acknowledgement is not there.
    let mut failure = None;
    loop {
        if !look && failure.is_none() {
            let readable = sys::wait_readable(socket, deadline)
                .map_err(|source| transport::receive_error(socket, source))?;
            if !readable {
                failure = Some(AckError::Timeout { socket: at() });
                close(socket)?;
            }
        }
        look = true;
        let problem = match take(socket, deadline.is_none() && failure.is_none()) {
            Ok(ack) if ack.token == *token => return Ok(ack.answer),
            Ok(_) => AckError::OtherToken { socket: at() },
            Err(error @ AckError::Malformed { .. }) => error,
            Err(error) => match (failure, &error) {
                (Some(failure), _) => return Err(failure),
                (None, AckError::Transport(TransportError::WouldBlock { .. })) => {
                    (failure, look) = (None, false);
                    continue;
                }
                (None, _) => return Err(error),
            },
        };
        if failure.is_none() {
            failure = Some(problem);
            close(socket)?;
        }
    }
}

/// The limits of a [`PendingAcks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingAcksOptions {
    /// Entries at once: 1 to [`TokenStore::MAX_CAPACITY`], 1024 by default.
    pub capacity: usize,
    /// How long an acknowledgement may take: a millisecond to [`TokenStore::MAX_LIFETIME`], 5
    /// seconds by default.
    pub timeout: Duration,
}

impl Default for PendingAcksOptions {
    fn default() -> PendingAcksOptions {
        PendingAcksOptions { capacity: 1024, timeout: Duration::from_secs(5) }
    }
}

/// The acknowledgements that a broker waits for.
///
/// An entry is registered when its message is sent and leaves exactly once: acknowledged in time,
/// abandoned or expired. Whoever makes it leave gets its `user_data`, and the token's life in the
/// store ends with it. Any number of threads may share a registry.
#[derive(Debug)]
pub struct PendingAcks {
    options: PendingAcksOptions,
    store: Arc<TokenStore>,
    entries: Mutex<HashMap<Token, Pending>>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    deadline: Instant,
    user_data: usize,
}

impl PendingAcks {
    /// Makes an empty registry for tokens of `store`. Options outside their range are taken to the
    /// nearest end of it. All memory that the registry needs is allocated here.
    pub fn new(store: Arc<TokenStore>, options: PendingAcksOptions) -> PendingAcks {
        let options = PendingAcksOptions {
            capacity: options.capacity.clamp(1, TokenStore::MAX_CAPACITY),
            timeout: options.timeout.clamp(Duration::from_millis(1), TokenStore::MAX_LIFETIME),
        };
        // Twice the room: a half-empty table clears removed entries in place instead of growing.
        let entries = Mutex::new(HashMap::with_capacity((options.capacity + 1) * 2));
        PendingAcks { options, store, entries }
    }

    /// Begins to wait for the acknowledgement of `token`.
    pub fn register(&self, token: &Token, user_data: usize) -> Result<(), AckError> {
        self.register_at(token, user_data, Instant::now())
    }

    /// [`register`](PendingAcks::register) at a given time.
    pub fn register_at(
        &self,
        token: &Token,
        user_data: usize,
        now: Instant,
    ) -> Result<(), AckError> {
        let PendingAcksOptions { capacity, timeout } = self.options;
        let mut entries = self.lock();
        let full = entries.len() >= capacity;
        match entries.entry(*token) {
            Entry::Occupied(_) => Err(AckError::AlreadyPending),
            Entry::Vacant(_) if full => Err(AckError::Full { capacity }),
            Entry::Vacant(entry) => {
                // Only a `now` at the very end of the clock's range gets no time.
                let deadline = now.checked_add(timeout).unwrap_or(now);
                entry.insert(Pending { deadline, user_data });
                Ok(())
            }
        }
    }

    /// Takes the entry of an acknowledgement that came in time and gives its `user_data`. An entry
    /// that is past its deadline stays for [`expire`](PendingAcks::expire).
    pub fn acknowledge(&self, token: &Token) -> Result<usize, AckError> {
        self.acknowledge_at(token, Instant::now())
    }

    /// [`acknowledge`](PendingAcks::acknowledge) at a given time.
    pub fn acknowledge_at(&self, token: &Token, now: Instant) -> Result<usize, AckError> {
        self.leave(
            token,
            |entry| if now < entry.deadline { Ok(()) } else { Err(AckError::Expired) },
        )
    }

    /// Takes the entry of a message that the broker has given up and gives its `user_data`.
    pub fn abandon(&self, token: &Token) -> Result<usize, AckError> {
        self.leave(token, |_| Ok(()))
    }

    fn leave(
        &self,
        token: &Token,
        may_leave: impl FnOnce(&Pending) -> Result<(), AckError>,
    ) -> Result<usize, AckError> {
        let mut entries = self.lock();
        let Entry::Occupied(entry) = entries.entry(*token) else {
            return Err(AckError::NotPending);
        };
        may_leave(entry.get())?;
        let user_data = entry.remove().user_data;
        self.end(token);
        Ok(user_data)
    }

    /// Takes one entry that is past its deadline and gives its token and `user_data`; to be called
    /// until there is none. Each call looks at every entry.
    pub fn expire(&self) -> Option<(Token, usize)> {
        self.expire_at(Instant::now())
    }

    /// [`expire`](PendingAcks::expire) at a given time.
    pub fn expire_at(&self, now: Instant) -> Option<(Token, usize)> {
        let mut entries = self.lock();
        let (token, entry) = entries.iter().find(|(_, entry)| entry.deadline <= now)?;
        let (token, user_data) = (*token, entry.user_data);
        entries.remove(&token);
        self.end(&token);
        Some((token, user_data))
    }

    /// When the next entry expires, if there is one. Looks at every entry.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.lock().values().map(|entry| entry.deadline).min()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends the token's life in the store, unless its consumption has.
    fn end(&self, token: &Token) {
        let _ = self.store.revoke(token);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Token, Pending>> {
        // Each change is one call on the map, so a panic elsewhere leaves nothing half done.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::thread;

    fn token(byte: u8) -> Token {
        Token::from_bytes([byte; Token::LEN])
    }

    fn accepted(byte: u8) -> Ack {
        Ack { token: token(byte), answer: Answer::Accepted }
    }

    const SECOND: Option<Duration> = Some(Duration::from_secs(1));
    const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

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
        assert_eq!(wait(broker.as_fd(), &token(1), AT_ONCE).unwrap(), Answer::Accepted);
    }

    #[test]
    fn acceptance_after_the_deadline_cannot_be_sent() {
        let (broker, backend) = UnixStream::pair().unwrap();
        let result = wait(broker.as_fd(), &token(1), AT_ONCE);
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
        assert_eq!(wait(broker.as_fd(), &token(1), SECOND).unwrap(), Answer::Accepted);
        let (broker, backend) = UnixStream::pair().unwrap();
        send(backend.as_fd(), &accepted(2)).unwrap();
        let result = wait(broker.as_fd(), &token(1), SECOND);
        assert!(matches!(result, Err(AckError::OtherToken { .. })));
    }

    #[test]
    fn unknown_answers_and_wrong_lengths_are_malformed() {
        let mut unknown = accepted(1).to_bytes();
        unknown[Token::LEN] = 3;
        for bytes in [&unknown[..], &unknown[..5]] {
            let (broker, backend) = UnixStream::pair().unwrap();
            sys::send(backend.as_fd(), bytes).unwrap();
            let result = wait(broker.as_fd(), &token(1), SECOND);
            assert!(matches!(result, Err(AckError::Malformed { .. })), "{result:?}");
        }
    }

    fn registry() -> (Arc<TokenStore>, PendingAcks) {
        let store = Arc::new(TokenStore::new(Default::default()));
        let options = PendingAcksOptions { capacity: 2, timeout: Duration::from_secs(5) };
        (store.clone(), PendingAcks::new(store, options))
    }

    #[test]
    fn entry_leaves_once_and_its_token_leaves_the_store_with_it() {
        let (store, pending) = registry();
        let now = Instant::now();
        let later = now + Duration::from_secs(5);
        type Leave<'a> = &'a dyn Fn(&Token) -> Option<usize>;
        let leave: [Leave<'_>; 3] = [
            &|token| pending.acknowledge_at(token, now).ok(),
            &|token| pending.abandon(token).ok(),
            &|_| pending.expire_at(later).map(|(_, user_data)| user_data),
        ];
        for (user_data, first) in leave.iter().enumerate() {
            let token = store.issue_at(now).unwrap();
            pending.register_at(&token, user_data, now).unwrap();
            assert_eq!(first(&token), Some(user_data));
            for again in leave {
                assert_eq!(again(&token), None);
            }
            assert!(store.is_empty() && pending.is_empty());
        }
    }

    #[test]
    fn late_acknowledgement_leaves_its_entry_to_expire() {
        let (store, pending) = registry();
        let now = Instant::now();
        let token = store.issue_at(now).unwrap();
        pending.register_at(&token, 7, now).unwrap();
        let late = pending.next_deadline().unwrap();
        assert!(pending.expire_at(late - Duration::from_nanos(1)).is_none());
        assert!(matches!(pending.acknowledge_at(&token, late), Err(AckError::Expired)));
        assert_eq!(pending.expire_at(late), Some((token, 7)));
    }

    #[test]
    fn registry_refuses_duplicates_and_more_than_its_capacity() {
        let (_, pending) = registry();
        pending.register(&token(1), 1).unwrap();
        assert!(matches!(pending.register(&token(1), 2), Err(AckError::AlreadyPending)));
        pending.register(&token(2), 2).unwrap();
        assert!(matches!(pending.register(&token(3), 3), Err(AckError::Full { capacity: 2 })));
        assert_eq!(pending.len(), 2);
    }
}
