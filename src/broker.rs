//! The broker's end of a channel.
//!
//! A [`Broker`] connects to a handoff socket by itself, again and again if need be, offers
//! connections, and tells what became of each: adopted, or fallback with a reason. It never
//! blocks, except in the calls that say so. Whatever happens to the backend, every offer gets
//! exactly one verdict, and a verdict of fallback means that the backend can never adopt the
//! connection any more: see [`crate::claim`].

mod channel;
mod offers;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::address::{self, TransportError};
use crate::claim::{self, Lost};
use crate::failures::FailureCounter;
use crate::kind::ErrorKind;
use crate::reason::Reason;
use crate::sys::event::{self, Wait};
use crate::sys::{packet, process};
use crate::wire::{self, MAX_FRAME_LEN, MAX_NAME_LEN, MAX_SLOTS};

use channel::{Channel, Outcomes};
use offers::{NewOffer, queued_len};

/// The limits of a [`Broker`]. Out-of-range values are clamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokerOptions {
    /// Offers in flight at once: 1 to 4096, 256 by default. The backend may allow fewer.
    pub max_in_flight: usize,
    /// How long an offer may wait for its verdict, unless it says otherwise: a millisecond at
    /// least, 5 seconds by default. `Duration::MAX` is no timeout.
    pub timeout: Duration,
    /// Bytes of offers that may wait for room in the socket: 128 KiB at least, 1 MiB by default.
    pub queue_bytes: usize,
    /// Failures within `failure_period` after which offers are refused: 1 to
    /// [`FailureCounter::MAX_FAILURES`], 8 by default. None: failures never refuse an offer.
    pub max_failures: Option<usize>,
    /// How long a failure counts: a millisecond at least, 30 seconds by default.
    pub failure_period: Duration,
    /// The first pause between two attempts to connect: a millisecond at least, 10 milliseconds by
    /// default. The pause doubles with each attempt that fails.
    pub reconnect_min: Duration,
    /// The longest pause between two attempts to connect, a second by default. It is an error if it
    /// is shorter than `reconnect_min`.
    pub reconnect_max: Duration,
}

impl BrokerOptions {
    /// The options as they are used: clamped, unless they are impossible.
    fn checked(self) -> Result<BrokerOptions, BrokerError> {
        let least = Duration::from_millis(1);
        let options = BrokerOptions {
            max_in_flight: self.max_in_flight.clamp(1, MAX_SLOTS),
            timeout: self.timeout.clamp(least, MAX_TIMEOUT),
            queue_bytes: self.queue_bytes.max(MAX_FRAME_LEN),
            reconnect_min: self.reconnect_min.clamp(least, MAX_TIMEOUT),
            reconnect_max: self.reconnect_max.clamp(least, MAX_TIMEOUT),
            ..self
        };
        let BrokerOptions { reconnect_min, reconnect_max, .. } = options;
        if reconnect_min > reconnect_max {
            let problem = format!(
                "reconnect_min ({reconnect_min:?}) is longer than reconnect_max ({reconnect_max:?})"
            );
            return Err(BrokerError::InvalidOptions { problem });
        }
        Ok(options)
    }
}

impl Default for BrokerOptions {
    fn default() -> BrokerOptions {
        BrokerOptions {
            max_in_flight: 256,
            timeout: Duration::from_secs(5),
            queue_bytes: 1024 * 1024,
            max_failures: Some(8),
            failure_period: Duration::from_secs(30),
            reconnect_min: Duration::from_millis(10),
            reconnect_max: Duration::from_secs(1),
        }
    }
}

/// One connection to hand over.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// The client's connection. It stays the caller's, who keeps it open until the verdict.
    pub descriptor: BorrowedFd<'a>,
    /// Bytes that were already read from it, in one part or several; copied.
    pub preread: &'a [IoSlice<'a>],
    /// Anything for the backend; copied.
    pub metadata: &'a [u8],
    /// The service that is meant, 255 bytes at most; copied.
    pub service: &'a [u8],
    /// What the connection is called in logs, 255 bytes at most; copied.
    pub correlation: &'a [u8],
    /// Comes back with the verdict.
    pub user_data: usize,
    /// How long it may wait for its verdict; none for the timeout of the options.
    pub timeout: Option<Duration>,
    /// More offers follow at once: sending is left to the last of them, to [`Broker::flush`] or to
    /// [`Broker::dispatch`].
    pub more: bool,
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The offer.
    pub id: u64,
    /// What came with it.
    pub user_data: usize,
    /// The backend owns the connection: close the copy, and never shut it down. Otherwise it is
    /// still the broker's.
    pub adopted: bool,
    /// Why it is a fallback, or what else happened to an adoption.
    pub reason: Option<Reason>,
    /// Whether the descriptor may have reached the backend.
    pub may_have_reached: bool,
}

/// What a [`Broker`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BrokerStatistics {
    /// Offers that were taken.
    pub offered: u64,
    /// Offers that were refused at once.
    pub refused: u64,
    /// Offers that the backend adopted.
    pub adopted: u64,
    /// Offers that [`Broker::take_back`] took back.
    pub taken_back: u64,
    /// Fallbacks, by the number of their reason.
    pub fallbacks: [u64; Reason::COUNT],
    /// Offers without a verdict yet.
    pub in_flight: usize,
    /// Bytes that wait for room in the socket.
    pub queued_bytes: usize,
    /// Channels that were set up, the first included.
    pub connects: u64,
}

/// Why a call of a [`Broker`] did nothing.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The path cannot be a socket's address.
    #[error(transparent)]
    Address(TransportError),
    /// Two options contradict each other.
    #[error("impossible options: {problem}")]
    InvalidOptions {
        /// Which, and their values.
        problem: String,
    },
    /// The handle was opened in another process.
    #[error("this handle belongs to another process: make one after fork()")]
    WrongProcess,
    /// The handle is closed.
    #[error("{path}: the broker is closed", path = .path.display())]
    Closed {
        /// The handoff socket.
        path: Arc<Path>,
    },
    /// The descriptor is not a socket.
    #[error("descriptor {descriptor} cannot be offered: {source}")]
    NotASocket {
        /// The descriptor.
        descriptor: RawFd,
        /// What the system said.
        source: io::Error,
    },
    /// The offer has more bytes than the backend takes, or a name is too long.
    #[error("the offer has {len} bytes where {most} are allowed")]
    TooLarge {
        /// What it has.
        len: usize,
        /// What it may have.
        most: usize,
    },
    /// There is no channel to the backend now, or it is draining.
    #[error("{path}: no channel to the backend now: {source}", path = .path.display())]
    Unavailable {
        /// The handoff socket.
        path: Arc<Path>,
        /// Why: what the system said to the last attempt to connect, ECONNRESET after the end of
        /// a channel, ENOTCONN before a backend has said welcome, ESHUTDOWN while it drains.
        source: io::Error,
    },
    /// The backend failed too often recently.
    #[error("{path}: the backend failed too often: not tried for {left:?}", path = .path.display())]
    RateLimited {
        /// The handoff socket.
        path: Arc<Path>,
        /// For how long.
        left: Duration,
    },
    /// The limit of offers in flight, of queued bytes or of verdicts not taken is reached.
    #[error("{path}: the limit of offers in flight is reached", path = .path.display())]
    Full {
        /// The handoff socket.
        path: Arc<Path>,
    },
    /// The offer cannot be taken back: it was adopted, or has its verdict already.
    #[error("offer {id} is not in flight any more")]
    TooLate {
        /// The offer.
        id: u64,
    },
    /// The system refused what every broker needs.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl BrokerError {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            BrokerError::Address(error) => error.kind(),
            BrokerError::InvalidOptions { .. } | BrokerError::NotASocket { .. } => {
                ErrorKind::InvalidArgument
            }
            BrokerError::WrongProcess => ErrorKind::WrongProcess,
            BrokerError::Closed { .. } => ErrorKind::Closed,
            BrokerError::TooLarge { .. } => ErrorKind::TooLarge,
            BrokerError::Unavailable { .. } => ErrorKind::BackendUnavailable,
            BrokerError::RateLimited { .. } => ErrorKind::RateLimited,
            BrokerError::Full { .. } => ErrorKind::Full,
            BrokerError::TooLate { .. } => ErrorKind::TooLate,
            BrokerError::System { source, .. } => ErrorKind::of_system(source),
        }
    }
}

/// The broker's end of a channel to one backend. Used by one thread at a time.
#[derive(Debug)]
pub struct Broker {
    path: Arc<Path>,
    options: BrokerOptions,
    /// Opened at the first use.
    open: Option<Open>,
    link: Link,
    /// Between the end of a channel, or the failure to make one, and the next attempt.
    pause: Duration,
    /// Why there is no channel.
    trouble: i32,
    outcomes: Outcomes,
    next_id: u64,
    closed: bool,
    /// Room for a packet, and for the descriptors of one; kept so that an offer allocates nothing.
    buffer: Vec<u8>,
    descriptors: Vec<RawFd>,
}

#[derive(Debug)]
struct Open {
    process: u64,
    events: event::Events,
}

#[derive(Debug)]
enum Link {
    Down { retry_at: Instant },
    Up(Box<Channel>),
}

/// How often dispatch looks for more before it lets the caller's loop go on.
const MAX_ROUNDS: usize = 64;
/// The longest that anything here may take: over a hundred years, which is no limit.
const MAX_TIMEOUT: Duration = Duration::from_secs(u32::MAX as u64);

impl Broker {
    /// Makes a broker for the backend at `path`. Does no I/O and opens nothing, so it can be done
    /// before fork(2).
    pub fn new(path: &Path, options: BrokerOptions) -> Result<Broker, BrokerError> {
        address::address(path).map_err(BrokerError::Address)?;
        let options = options.checked()?;
        Ok(Broker {
            path: path.into(),
            options,
            open: None,
            link: Link::Down { retry_at: Instant::now() },
            pause: options.reconnect_min,
            trouble: libc::ENOTCONN,
            outcomes: Outcomes {
                verdicts: VecDeque::new(),
                statistics: BrokerStatistics::default(),
                failures: options
                    .max_failures
                    .map(|most| FailureCounter::new(most, options.failure_period)),
            },
            next_id: 1,
            closed: false,
            buffer: Vec::new(),
            descriptors: Vec::new(),
        })
    }

    /// The descriptor that is readable whenever [`dispatch`](Broker::dispatch) has work. It stays
    /// the same and works level- and edge-triggered.
    pub fn descriptor(&mut self) -> Result<BorrowedFd<'_>, BrokerError> {
        let now = Instant::now();
        self.enter(now)?;
        let open = self.open.as_ref().ok_or(BrokerError::WrongProcess)?;
        Ok(open.events.descriptor().as_fd())
    }

    /// Offers a connection, at once unless more follow. Returns its id; the verdict comes from
    /// [`next_verdict`](Broker::next_verdict). After an error nothing was sent and no verdict comes.
    pub fn offer(&mut self, offer: &Offer<'_>) -> Result<u64, BrokerError> {
        let now = Instant::now();
        let result = self.queue(offer, self.options.max_in_flight, now);
        match result {
            // The offer is taken: what sending it comes to is in its verdict.
            Ok(_) if !offer.more => drop(self.flush_at(now)),
            Ok(_) => {}
            Err(_) => self.outcomes.statistics.refused += 1,
        }
        result
    }

    fn queue(
        &mut self,
        offer: &Offer<'_>,
        most_verdicts: usize,
        now: Instant,
    ) -> Result<u64, BrokerError> {
        self.enter(now)?;
        let full = self.outcomes.verdicts.len() >= most_verdicts;
        let queue_bytes = self.options.queue_bytes;
        let path = || self.path.clone();
        let unavailable = |code| {
            let source = io::Error::from_raw_os_error(code);
            BrokerError::Unavailable { path: path(), source }
        };
        let Link::Up(channel) = &mut self.link else {
            return Err(unavailable(self.trouble));
        };
        let Ok(welcome) = channel.welcome else {
            return Err(unavailable(libc::ENOTCONN));
        };
        if channel.draining {
            return Err(unavailable(libc::ESHUTDOWN));
        }
        let failures = &self.outcomes.failures;
        if let Some(left) = failures.as_ref().and_then(|failures| failures.time_left(now)) {
            return Err(BrokerError::RateLimited { path: path(), left });
        }
        let Offer { preread, metadata, service, correlation, .. } = *offer;
        for name in [service, correlation] {
            if name.len() > MAX_NAME_LEN {
                return Err(BrokerError::TooLarge { len: name.len(), most: MAX_NAME_LEN });
            }
        }
        let len = metadata.len();
        let len = preread.iter().fold(len, |len, part| len.saturating_add(part.len()));
        let len = len.saturating_add(service.len() + correlation.len());
        if len > welcome.max_bytes as usize {
            return Err(BrokerError::TooLarge { len, most: welcome.max_bytes as usize });
        }
        let queued = channel.offers.queued_bytes() + queued_len(len);
        let next = channel.offers.next_slot().filter(|_| !full && queued <= queue_bytes);
        let Some((slot, generation)) = next else {
            return Err(BrokerError::Full { path: path() });
        };
        let descriptor = offer.descriptor.as_raw_fd();
        let cookie = packet::cookie(offer.descriptor)
            .map_err(|source| BrokerError::NotASocket { descriptor, source })?;
        let timeout = offer.timeout.unwrap_or(self.options.timeout).min(MAX_TIMEOUT);
        let deadline = now.checked_add(timeout).unwrap_or(now);
        // The last that can fail.
        if let Some(open) = &mut self.open {
            open.events.wake_at(deadline, now).map_err(system("set a timer"))?;
        }
        // The slot is part of the id, so that it is found without a search.
        let id = self.next_id << 12 | u64::from(slot);
        self.next_id += 1;
        // Before the descriptor can be sent, so that the backend finds it on offer.
        claim::offer(channel.claims.slot(slot as usize), generation);
        let user_data = offer.user_data;
        channel.offers.queue(&NewOffer {
            id,
            user_data,
            deadline,
            descriptor,
            cookie,
            service,
            correlation,
            metadata,
            preread,
        });
        self.outcomes.statistics.offered += 1;
        Ok(id)
    }

    /// Sends what waits to be sent.
    pub fn flush(&mut self) -> Result<(), BrokerError> {
        let now = Instant::now();
        self.enter(now)?;
        self.flush_at(now)
    }

    fn flush_at(&mut self, now: Instant) -> Result<(), BrokerError> {
        let taken = self.outcomes.verdicts.len();
        if let (Link::Up(channel), Some(open)) = (&mut self.link, &self.open) {
            let flushed =
                channel.flush(&open.events, &mut self.outcomes, &mut self.descriptors, now);
            if let Err(reason) = flushed {
                self.hang_up(reason, now);
            }
        }
        if self.outcomes.verdicts.len() > taken {
            // Nothing else would tell the caller's loop.
            self.wake_at(now, now)?;
        }
        self.arm(now)
    }

    /// Does everything that is due: receives, sends, gives up what is late, connects.
    pub fn dispatch(&mut self) -> Result<(), BrokerError> {
        self.dispatch_after(Wait::No)
    }

    /// Waits until something is due, and does it.
    fn dispatch_after(&mut self, mut wait: Wait) -> Result<(), BrokerError> {
        let mut now = Instant::now();
        self.enter(now)?;
        for round in 0..=MAX_ROUNDS {
            let Some(open) = &mut self.open else { break };
            // Where only packets can be due, receiving says as much as the events would.
            let only_packets = matches!(wait, Wait::No)
                && !open.events.is_due(now)
                && matches!(&self.link, Link::Up(channel) if channel.awaits_packets());
            let (mut readable, mut writable, mut more) = (only_packets, false, false);
            if !only_packets {
                let taken = open.events.take(wait, |event| {
                    readable |= event.readable;
                    writable |= event.writable;
                });
                more = taken.map_err(system("wait for events"))? == event::Events::ROOM;
                wait = Wait::No;
                now = Instant::now();
            }
            if let Link::Up(channel) = &mut self.link {
                channel.full &= !writable;
                if readable {
                    let received = channel.receive(&mut self.buffer, &mut self.outcomes, now);
                    if channel.welcome.is_ok() {
                        self.pause = self.options.reconnect_min;
                    }
                    match received {
                        Ok(all) => more |= !all,
                        Err(reason) => self.hang_up(reason, now),
                    }
                }
            }
            self.tick(now);
            self.flush_at(now)?;
            if !more {
                break;
            }
            if round == MAX_ROUNDS {
                self.wake_at(now, now)?;
            }
        }
        Ok(())
    }

    /// Takes the next verdict, if there is one. In a child of fork(2) there is none: they are the
    /// parent's, see [`check_process`](Broker::check_process).
    pub fn next_verdict(&mut self) -> Option<Verdict> {
        self.check_process().ok()?;
        self.outcomes.verdicts.pop_front()
    }

    /// Takes an offer back. After `Ok` the connection is the broker's and no verdict comes for it.
    pub fn take_back(&mut self, id: u64) -> Result<(), BrokerError> {
        let now = Instant::now();
        self.enter(now)?;
        let slot = (id & (MAX_SLOTS as u64 - 1)) as u32;
        let Link::Up(channel) = &mut self.link else {
            return Err(BrokerError::TooLate { id });
        };
        let Some(found) = channel.offers.find(slot, id) else {
            return Err(BrokerError::TooLate { id });
        };
        match claim::revoke(channel.claims.slot(slot as usize), found.generation) {
            Ok(()) => {
                channel.offers.settle(slot, false);
                self.outcomes.statistics.taken_back += 1;
                Ok(())
            }
            Err(Lost::TooLate) => Err(BrokerError::TooLate { id }),
            Err(Lost::Impossible) => {
                self.hang_up(Reason::IntegrityMismatch, now);
                self.wake_at(now, now)?;
                Err(BrokerError::TooLate { id })
            }
        }
    }

    /// Offers a connection and waits for its verdict, and before that for the backend's welcome and
    /// for room, for the offer's timeout in all; without a backend it is refused at once. Verdicts
    /// of other offers stay for [`next_verdict`](Broker::next_verdict).
    pub fn offer_and_wait(&mut self, offer: &Offer<'_>) -> Result<Verdict, BrokerError> {
        let queued = self.queue_in_time(offer);
        let id = queued.inspect_err(|_| self.outcomes.statistics.refused += 1)?;
        self.verdict_in_time(id).or_else(|error| {
            // The caller will take the connection for its own, so see to it that it is.
            if self.take_back(id).is_ok() {
                return Err(error);
            }
            self.hang_up(Reason::BackendUnavailable, Instant::now());
            self.take_verdict(id).ok_or(error)
        })
    }

    /// Sends the offer and waits for what becomes of it: its own deadline ends this.
    fn verdict_in_time(&mut self, id: u64) -> Result<Verdict, BrokerError> {
        self.flush()?;
        loop {
            if let Some(verdict) = self.take_verdict(id) {
                return Ok(verdict);
            }
            self.dispatch_after(Wait::Forever)?;
        }
    }

    fn take_verdict(&mut self, id: u64) -> Option<Verdict> {
        let verdicts = &mut self.outcomes.verdicts;
        let at = verdicts.iter().position(|verdict| verdict.id == id)?;
        verdicts.remove(at)
    }

    fn queue_in_time(&mut self, offer: &Offer<'_>) -> Result<u64, BrokerError> {
        let start = Instant::now();
        let timeout = offer.timeout.unwrap_or(self.options.timeout).min(MAX_TIMEOUT);
        let deadline = start.checked_add(timeout).unwrap_or(start);
        // Connects, if it is time for that.
        self.dispatch()?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let offer = Offer { timeout: Some(left), ..*offer };
            // However many verdicts wait: this one will be taken as it comes, and room may come with
            // those that cannot be taken meanwhile.
            let error = match self.queue(&offer, usize::MAX, Instant::now()) {
                Ok(id) => return Ok(id),
                Err(error) => error,
            };
            let worth_waiting = match (&error, &self.link) {
                (BrokerError::Full { .. }, _) => true,
                (BrokerError::Unavailable { .. }, Link::Up(channel)) => channel.welcome.is_err(),
                _ => false,
            };
            if !worth_waiting || left.is_zero() {
                return Err(error);
            }
            self.dispatch_after(Wait::Until(deadline))?;
        }
    }

    /// Gives up everything that is in flight and closes the channel. The verdicts are to be taken
    /// with [`next_verdict`](Broker::next_verdict); nothing can be offered any more.
    pub fn close(&mut self) -> Result<(), BrokerError> {
        let now = Instant::now();
        // Closing is no use: it does not open a handle.
        if self.open.is_some() || self.closed {
            self.enter(now)?;
        }
        self.closed = true;
        self.hang_up(Reason::BrokerClosed, now);
        Ok(())
    }

    /// What was done so far.
    pub fn statistics(&self) -> BrokerStatistics {
        let mut statistics = self.outcomes.statistics;
        if let Link::Up(channel) = &self.link {
            statistics.in_flight = channel.offers.in_flight();
            statistics.queued_bytes = channel.offers.queued_bytes();
        }
        statistics
    }

    /// Fails in another process than the one that used the handle first.
    pub fn check_process(&self) -> Result<(), BrokerError> {
        match &self.open {
            Some(open) if open.process != process::current() => Err(BrokerError::WrongProcess),
            _ => Ok(()),
        }
    }

    /// Opens the handle at its first use, and checks that this is the process that did.
    fn enter(&mut self, now: Instant) -> Result<(), BrokerError> {
        if self.closed {
            return Err(BrokerError::Closed { path: self.path.clone() });
        }
        self.check_process()?;
        match &self.open {
            Some(_) => Ok(()),
            None => {
                let events = event::Events::new().map_err(system("make an epoll set"))?;
                self.open = Some(Open { process: process::current(), events });
                self.buffer = vec![0; MAX_FRAME_LEN];
                self.descriptors = Vec::with_capacity(wire::MAX_DESCRIPTORS);
                // Every offer in flight and every verdict that may be waiting when it is taken.
                self.outcomes.verdicts = VecDeque::with_capacity(2 * self.options.max_in_flight);
                self.link = Link::Down { retry_at: now };
                self.tick(now);
                self.arm(now)
            }
        }
    }

    /// Does what the time says: deadlines, the welcome, the next attempt to connect.
    fn tick(&mut self, now: Instant) {
        match &mut self.link {
            Link::Up(channel) => {
                if let Err(reason) = channel.expire(&mut self.outcomes, now) {
                    self.hang_up(reason, now);
                }
            }
            Link::Down { retry_at } if *retry_at <= now && !self.closed => {
                match self.connect(now) {
                    Ok(channel) => self.link = Link::Up(Box::new(channel)),
                    Err(error) => {
                        self.trouble = error.raw_os_error().unwrap_or(libc::ENOTCONN);
                        self.link = self.down(now);
                    }
                }
            }
            Link::Down { .. } => {}
        }
    }

    /// A link that is down for a pause, which doubles until a backend says welcome.
    fn down(&mut self, now: Instant) -> Link {
        let retry_at = now.checked_add(self.pause).unwrap_or(now);
        self.pause = (self.pause * 2).min(self.options.reconnect_max);
        Link::Down { retry_at }
    }

    fn connect(&self, now: Instant) -> io::Result<Channel> {
        let channel = Channel::connect(&self.path, self.options.max_in_flight, now)?;
        if let Some(open) = &self.open {
            channel.watch(&open.events)?;
        }
        Ok(channel)
    }

    /// Ends the channel: what is in flight is taken back, or was adopted.
    fn hang_up(&mut self, reason: Reason, now: Instant) {
        let down = self.down(now);
        if let Link::Up(mut channel) = std::mem::replace(&mut self.link, down) {
            self.trouble = libc::ECONNRESET;
            if reason != Reason::IntegrityMismatch {
                // What the backend said last may be here already.
                let _ = channel.receive(&mut self.buffer, &mut self.outcomes, now);
            }
            if channel.offers.in_flight() > 0 && !self.closed && !channel.draining {
                self.outcomes.record_failure(now);
            }
            channel.settle_all(reason, &mut self.outcomes, now);
            if let Some(open) = &self.open {
                channel.unwatch(&open.events);
            }
        }
    }

    /// Sees to it that the descriptor is readable when something is due.
    fn arm(&mut self, now: Instant) -> Result<(), BrokerError> {
        let due = match &self.link {
            Link::Down { .. } if self.closed => None,
            Link::Down { retry_at, .. } => Some(*retry_at),
            Link::Up(channel) => {
                let deadline = channel.offers.earliest().map(|(_, deadline)| deadline);
                let times = [deadline, channel.welcome.err(), channel.send_again];
                times.into_iter().flatten().min()
            }
        };
        due.map_or(Ok(()), |due| self.wake_at(due, now))
    }

    fn wake_at(&mut self, when: Instant, now: Instant) -> Result<(), BrokerError> {
        match &mut self.open {
            Some(open) => open.events.wake_at(when, now).map_err(system("set a timer")),
            None => Ok(()),
        }
    }
}

fn system(action: &'static str) -> impl Fn(io::Error) -> BrokerError {
    move |source| BrokerError::System { action, source }
}

impl Drop for Broker {
    /// Takes back what is in flight, so that a backend does not adopt what nobody lets go of. In a
    /// child of fork(2) it closes the child's copies only.
    fn drop(&mut self) {
        if !self.closed {
            let _ = self.close();
        }
    }
}
