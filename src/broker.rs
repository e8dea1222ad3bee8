//! The broker's end of a channel.
//!
//! A [`Broker`] connects to a handoff socket by itself, again and again if need be, offers
//! connections, and tells what became of each: adopted, or fallback with a reason. It never
//! blocks, except in the calls that say so. Every offer gets exactly one verdict, even if the backend
//! dies, and a verdict of fallback means that the backend can never adopt the connection any more:
//! see `claim.rs`.

mod blocking;
mod channel;
mod error;
mod offers;
mod options;
mod peer;
mod reconnecting;
mod shared;

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::address;
use crate::claim::{self, Lost};
use crate::handle::{Handle, HandleError, MAX_ROUNDS, REST_PAUSE, Waker};
use crate::memory;
use crate::reason::Reason;
use crate::sys::event::{Events, Wait};
use crate::sys::{self, packet};
use crate::wire::{MAX_DESCRIPTORS, MAX_FRAME_LEN, MAX_NAME_LEN, MAX_SLOTS, has_nul};

use channel::Outcomes;
use offers::queued_len;
use options::MAX_TIMEOUT;
use peer::WhyDown;
use reconnecting::{Link, Reconnecting};

pub use error::{BrokerError, Limit};
pub use options::BrokerOptions;
pub use peer::{Allowed, Numbers};
pub use shared::SharedBroker;

/// One connection to hand over.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// The client's connection. It stays the caller's, who keeps it open until the verdict.
    pub descriptor: BorrowedFd<'a>,
    /// Bytes that were already read from it, in one part or several; copied.
    pub preread: &'a [IoSlice<'a>],
    /// Anything for the backend; copied.
    pub metadata: &'a [u8],
    /// The service that is meant, 255 bytes at most, without a NUL; copied.
    pub service: &'a [u8],
    /// What the connection is called in logs, 255 bytes at most, without a NUL; copied.
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

/// The broker's end of a channel to one backend. Used by one thread at a time.
#[derive(Debug)]
pub struct Broker {
    path: Arc<Path>,
    options: BrokerOptions,
    handle: Handle,
    link: Link,
    reconnecting: Reconnecting,
    outcomes: Outcomes,
    next_id: u64,
    closed: bool,
    /// The descriptor will be readable for the verdicts that are left.
    rest_told: bool,
    /// Room for a packet, and for the descriptors of one; kept so that an offer allocates nothing.
    buffer: Vec<u8>,
    descriptors: Vec<RawFd>,
}

impl Broker {
    /// Makes a broker for the backend at `path`. Does no I/O and opens nothing, so it can be done
    /// before fork(2).
    pub fn new(path: &Path, options: BrokerOptions) -> Result<Broker, BrokerError> {
        address::address(path).map_err(BrokerError::Address)?;
        let options = options.checked()?;
        Ok(Broker {
            path: path.into(),
            handle: Handle::default(),
            link: Link::Down { retry_at: Instant::now() },
            reconnecting: Reconnecting::new(&options),
            outcomes: Outcomes::new(&options)?,
            options,
            next_id: 1,
            closed: false,
            rest_told: false,
            buffer: Vec::new(),
            descriptors: Vec::new(),
        })
    }

    /// The descriptor that is readable whenever [`dispatch`](Broker::dispatch) has work, and, a
    /// millisecond later at the latest, when [`next_verdict`](Broker::next_verdict) has left
    /// something. It stays the same and works level- and edge-triggered.
    pub fn descriptor(&mut self) -> Result<BorrowedFd<'_>, BrokerError> {
        let now = Instant::now();
        self.enter(now)?;
        // If the last timer could not be set, the caller would wait forever.
        self.arm(now)?;
        Ok(self.handle.descriptor()?)
    }

    /// What ends a wait of this broker.
    pub fn waker(&self) -> Waker {
        self.handle.waker().clone()
    }

    /// Offers a connection, at once unless more follow. Returns its id; the verdict comes from
    /// [`next_verdict`](Broker::next_verdict). After an error nothing was sent and no verdict comes.
    pub fn offer(&mut self, offer: &Offer<'_>) -> Result<u64, BrokerError> {
        let now = Instant::now();
        let result = self.queue(offer, self.options.max_in_flight, now);
        match result {
            // The offer is taken: if sending it fails, its verdict says so.
            Ok(_) if !offer.more => drop(self.flush_at(now)),
            Ok(_) => {}
            Err(_) => self.outcomes.statistics.refused += 1,
        }
        result
    }

    /// Queues an offer, unless `most_verdicts` wait to be taken.
    fn queue(
        &mut self,
        offer: &Offer<'_>,
        most_verdicts: usize,
        now: Instant,
    ) -> Result<u64, BrokerError> {
        self.enter(now)?;
        let untaken = self.outcomes.verdicts.len();
        let queue_bytes = self.options.queue_bytes;
        let path = || self.path.clone();
        let Link::Up(channel) = &mut self.link else {
            self.handle.wake_if_missed();
            return Err(self.reconnecting.why_down.error(&self.path, &self.options));
        };
        let Ok(welcome) = channel.welcome else {
            return Err(WhyDown::NoBackend(libc::ENOTCONN).error(&self.path, &self.options));
        };
        if channel.draining {
            return Err(WhyDown::NoBackend(libc::ESHUTDOWN).error(&self.path, &self.options));
        }
        let failures = &self.outcomes.failures;
        if let Some(left) = failures.as_ref().and_then(|failures| failures.time_left(now)) {
            return Err(BrokerError::RateLimited { path: path(), left });
        }
        let len = variable_len(offer, welcome.max_bytes as usize)?;
        let queued = channel.offers.queued_bytes() + queued_len(len);
        let next = channel.offers.next_slot();
        let next = next.filter(|_| untaken < most_verdicts && queued <= queue_bytes);
        let Some((slot, generation)) = next else {
            let limit = if untaken >= most_verdicts {
                Limit::Verdicts { untaken }
            } else if queued > queue_bytes {
                Limit::QueuedBytes { queued, most: queue_bytes }
            } else {
                let (in_flight, most) = (channel.offers.in_flight(), welcome.slots as usize);
                Limit::InFlight { in_flight, most }
            };
            return Err(BrokerError::Full { path: path(), limit });
        };
        let cookie = packet::cookie(offer.descriptor)
            .map_err(|source| not_a_socket(offer.descriptor, source))?;
        let timeout = offer.timeout.unwrap_or(self.options.timeout).min(MAX_TIMEOUT);
        let deadline = now.checked_add(timeout).unwrap_or(now);
        channel.offers.make_room(queued_len(len))?;
        // The last step that can fail.
        self.handle.wake_at(deadline, now)?;
        // The slot is part of the id, so that it is found without a search.
        let id = self.next_id << 12 | u64::from(slot);
        self.next_id += 1;
        // Before the descriptor can be sent, so that the backend finds it on offer.
        claim::offer(channel.claims.slot(slot as usize), generation);
        channel.offers.queue(offer, id, deadline, cookie);
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
        if let (Link::Up(channel), Some(events)) = (&mut self.link, self.handle.events()) {
            let flushed = channel.flush(events, &mut self.outcomes, &mut self.descriptors, now);
            if let Err(reason) = flushed {
                self.hang_up(reason, now);
            }
        }
        if self.outcomes.verdicts.len() > taken {
            // Nothing else would tell the caller's loop.
            self.handle.wake_at(now, now)?;
        }
        self.arm(now)
    }

    /// Does everything that is due: receives, sends, gives up what is late, connects.
    pub fn dispatch(&mut self) -> Result<(), BrokerError> {
        let left = self.outcomes.verdicts.len();
        self.rest_told = false;
        self.dispatch_after(Wait::No)?;
        if left > 0 { self.tell_of_rest(Duration::ZERO) } else { Ok(()) }
    }

    /// Makes the descriptor readable for the verdicts that wait.
    fn tell_of_rest(&mut self, pause: Duration) -> Result<(), BrokerError> {
        let now = Instant::now();
        self.rest_told = true;
        Ok(self.handle.wake_at(now + pause, now)?)
    }

    /// Waits until something is due, and does it.
    fn dispatch_after(&mut self, mut wait: Wait) -> Result<(), BrokerError> {
        let mut now = Instant::now();
        self.enter(now)?;
        for round in 0..=MAX_ROUNDS {
            let Some(events) = self.handle.events() else { break };
            // Where only packets can be due, receiving says as much as the events would.
            let only_packets = matches!(wait, Wait::No)
                && !events.is_due(now)
                && matches!(&self.link, Link::Up(channel) if channel.awaits_packets());
            let (mut readable, mut writable, mut more) = (only_packets, false, false);
            if !only_packets {
                let taken = events.take(wait, |event| {
                    readable |= event.readable;
                    writable |= event.writable;
                });
                more = taken.map_err(HandleError::system("wait for events"))? == Events::ROOM;
                wait = Wait::No;
                now = Instant::now();
            }
            if let Link::Up(channel) = &mut self.link {
                channel.full &= !writable;
                if readable {
                    let received = channel.receive(&mut self.buffer, &mut self.outcomes, now);
                    if channel.welcome.is_ok() {
                        self.reconnecting.next_pause = self.options.reconnect_min;
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
                self.handle.wake_at(now, now)?;
            }
        }
        self.handle.done();
        Ok(())
    }

    /// Takes the next verdict, if there is one. In a child of fork(2) there is none: they are the
    /// parent's, see [`check_process`](Broker::check_process).
    pub fn next_verdict(&mut self) -> Option<Verdict> {
        self.check_process().ok()?;
        let verdict = self.outcomes.verdicts.pop_front()?;
        if !self.outcomes.verdicts.is_empty() && !self.rest_told {
            // If no timer can be set, something else wakes the caller.
            let _ = self.tell_of_rest(REST_PAUSE);
        }
        Some(verdict)
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
                self.handle.wake_at(now, now)?;
                Err(BrokerError::TooLate { id })
            }
        }
    }

    /// Takes back every offer in flight and closes the channel. Take their verdicts with
    /// [`next_verdict`](Broker::next_verdict); nothing can be offered any more.
    pub fn close(&mut self) -> Result<(), BrokerError> {
        let now = Instant::now();
        // Closing does not open a handle.
        if self.handle.is_open() || self.closed {
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
        Ok(self.handle.check_process()?)
    }

    /// Opens the handle at its first use, and checks that this is the process that did.
    fn enter(&mut self, now: Instant) -> Result<(), BrokerError> {
        if self.closed {
            return Err(BrokerError::Closed { path: self.path.clone() });
        }
        self.handle.check_process()?;
        if self.handle.is_open() {
            return Ok(());
        }
        let events = self.handle.new_events()?;
        self.buffer = memory::zeros(MAX_FRAME_LEN, "a packet")?;
        self.descriptors = memory::vec(MAX_DESCRIPTORS, "descriptors")?;
        // Every offer in flight and every verdict that may be waiting when it is taken.
        self.outcomes.verdicts = memory::queue(2 * self.options.max_in_flight, "verdicts")?;
        self.handle.open(events);
        self.link = Link::Down { retry_at: now };
        self.tick(now);
        self.arm(now)
    }
}

#[cold]
fn not_a_socket(descriptor: BorrowedFd<'_>, source: io::Error) -> BrokerError {
    match sys::what_is(descriptor) {
        sys::A_SOCKET => BrokerError::System { action: "ask which socket it is", source },
        is => BrokerError::NotASocket { descriptor: descriptor.as_raw_fd(), is, source },
    }
}

/// Bytes of an offer beside its fixed part, unless there are more than are allowed.
fn variable_len(offer: &Offer<'_>, most: usize) -> Result<usize, BrokerError> {
    let Offer { preread, metadata, service, correlation, .. } = offer;
    for (what, name) in [("service", service), ("correlation", correlation)] {
        if name.len() > MAX_NAME_LEN {
            return Err(BrokerError::TooLarge { what, len: name.len(), most: MAX_NAME_LEN });
        }
        if has_nul(name) {
            return Err(BrokerError::NameWithNul);
        }
    }
    let len = metadata.len().saturating_add(service.len() + correlation.len());
    let len = preread.iter().fold(len, |len, part| len.saturating_add(part.len()));
    let what = "preread, metadata and names together";
    if len > most { Err(BrokerError::TooLarge { what, len, most }) } else { Ok(len) }
}

impl Drop for Broker {
    /// Takes back every offer in flight: nobody would release a connection that a backend adopts
    /// later. In a child of fork(2) it closes the child's copies only.
    fn drop(&mut self) {
        if !self.closed {
            let _ = self.close();
        }
    }
}
