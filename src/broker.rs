//! The broker's end of a channel.
//!
//! A [`Broker`] has one backend or several. It connects to their handoff sockets by itself, again
//! and again if need be, offers connections, and tells what became of each: adopted, or fallback
//! with a reason. It never blocks, except in the calls that say so. Every offer gets exactly one
//! verdict, even if a backend dies, and a verdict of fallback means that no backend can adopt the
//! connection any more: see `claim.rs`.
//!
//! A broker without an event loop, and with one backend, which is the example of
//! [`backend`](crate::backend):
//!
//! ```
//! use std::net::TcpListener;
//! use std::os::fd::AsFd;
//! use std::path::Path;
//!
//! use handoff::broker::{Broker, BrokerOptions, Offer};
//!
//! /// Hands every client to the backend, and answers those itself that it does not take.
//! fn serve(socket: &Path, clients: &TcpListener) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut broker = Broker::new(socket, BrokerOptions::default())?;
//!     for client in clients.incoming() {
//!         let client = client?;
//!         let offer = Offer { service: b"web", ..Offer::new(client.as_fd()) };
//!         match broker.offer_and_wait(&offer) {
//!             // Dropped and not shut down, which would end the backend's connection too.
//!             Ok(verdict) if verdict.adopted => drop(client),
//!             Ok(verdict) => println!("no backend has it: {:?}", verdict.reason),
//!             Err(error) => println!("nothing was offered: {error}"),
//!         }
//!         # break;
//!     }
//!     Ok(())
//! }
//! #
//! # use std::io::{Read, Write};
//! # use handoff::backend::{Backend, BackendOptions};
//! # let directory = tempfile::tempdir()?;
//! # let socket = directory.path().join("handoff.sock");
//! # let mut backend = Backend::listen(&socket, BackendOptions::default())?;
//! # let clients = TcpListener::bind("127.0.0.1:0")?;
//! # let mut client = std::net::TcpStream::connect(clients.local_addr()?)?;
//! # std::thread::scope(|scope| {
//! #     let broker = scope.spawn(|| serve(&socket, &clients).unwrap());
//! #     let (connection, arrival) = backend.accept(Some(std::time::Duration::from_secs(60)))?;
//! #     assert_eq!(arrival.service, b"web");
//! #     broker.join().unwrap();
//! #     std::net::TcpStream::from(connection).write_all(b"hello")?;
//! #     let mut answer = String::new();
//! #     client.read_to_string(&mut answer)?;
//! #     assert_eq!(answer, "hello");
//! #     Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod blocking;
mod channel;
mod choosing;
mod connecting;
mod copies;
mod directory;
mod down;
mod error;
mod failover;
mod greeting;
mod member;
mod members;
mod offer;
mod offering;
mod options;
mod outcomes;
mod peer;
mod portions;
mod settings;
mod shared;
mod slots;
mod state;
mod taking_back;

use std::os::fd::{BorrowedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::handle::{self, Handle, HandleError, LEFTOVER_PAUSE, MAX_ROUNDS, Waker};
use crate::kind::ErrorKind;
use crate::memory;
use crate::reason::Reason;
use crate::sys::event::{Event, Happened, Wait};
use crate::sys::packet;
use crate::wire::{MAX_DESCRIPTORS, MAX_FRAME_LEN, MAX_SLOTS};

use choosing::{Chosen, Load};
use directory::Directory;
use failover::Failover;
use member::{Link, Member, Needs};
use outcomes::{Ledger, Outcomes};

pub use crate::wire::Refusal;
pub use error::{BrokerError, Limit, NoWelcome};
pub use member::Phase;
pub use offer::{Offer, Verdict};
pub use options::BrokerOptions;
pub use outcomes::BackendCounts;
pub use peer::{Allowed, Numbers};
pub use settings::BackendSettings;
pub use shared::SharedBroker;
pub use state::BackendState;

/// The most backends that a broker has.
pub const MAX_BACKENDS: usize = 1024;

/// An offer's id is a number that grows, behind which these bits say where it is: the number of its
/// copy, or its backend and its slot there.
const ID_BITS: u32 = 23;
const COPIED: u64 = 1 << (ID_BITS - 1);
const MAX_NUMBER: u64 = u64::MAX >> ID_BITS;
const SLOT_BITS: u32 = 12;
const _: () = assert!(MAX_SLOTS == 1 << SLOT_BITS && MAX_SLOTS * MAX_BACKENDS == COPIED as usize);

/// What a [`Broker`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Offers that went on from a backend to another one.
    pub failovers: u64,
    /// Offers that were refused, by the number of the error's kind.
    pub refusals: [u64; ErrorKind::COUNT],
}

impl Default for BrokerStatistics {
    fn default() -> BrokerStatistics {
        BrokerStatistics {
            offered: 0,
            refused: 0,
            adopted: 0,
            taken_back: 0,
            fallbacks: [0; Reason::COUNT],
            in_flight: 0,
            queued_bytes: 0,
            connects: 0,
            failovers: 0,
            refusals: [0; ErrorKind::COUNT],
        }
    }
}

/// The broker's end of the channels to its backends. Used by one thread at a time.
#[derive(Debug)]
pub struct Broker {
    /// What it was made with.
    path: Arc<Path>,
    options: BrokerOptions,
    handle: Handle,
    /// By their numbers.
    members: Vec<Member>,
    /// The numbers of those that are not gone.
    listed: Vec<u32>,
    directories: Vec<Directory>,
    /// Backends whose timers are to be set, and which may have something to send.
    touched: Vec<u32>,
    /// Those that take the offer that is being placed. Kept so that an offer allocates nothing.
    candidates: Vec<(Chosen, Load)>,
    failover: Failover,
    /// Verdicts that may wait when an offer is taken.
    most_verdicts: usize,
    outcomes: Outcomes,
    next_id: u64,
    closed: bool,
    /// An offer with such needs was refused: the descriptor is to be readable when one would be
    /// taken.
    wanted: Option<Needs>,
    /// The descriptor will be readable for the verdicts that are left.
    leftovers_told: bool,
    /// When the caller last took one of several verdicts.
    left_at: Instant,
    /// When it was last looked at what the backends say.
    looked_at: Instant,
    /// Room for packets, and for the descriptors of one; kept so that an offer allocates nothing.
    buffer: Vec<u8>,
    descriptors: Vec<RawFd>,
}

impl Broker {
    /// Makes a broker for the backend at `path` or, if that ends in `/`, for those in a directory.
    /// Does no I/O and opens nothing, so it can be done before fork(2).
    pub fn new(path: &Path, options: BrokerOptions) -> Result<Broker, BrokerError> {
        let mut broker = Broker::without_backends(options)?;
        broker.path = path.into();
        broker.add(path, BackendSettings::default())?;
        Ok(broker)
    }

    /// Makes a broker to which backends are to be [added](Broker::add).
    pub fn without_backends(options: BrokerOptions) -> Result<Broker, BrokerError> {
        let options = options.checked()?;
        Ok(Broker {
            path: Path::new("").into(),
            handle: Handle::default(),
            members: Vec::new(),
            listed: Vec::new(),
            directories: Vec::new(),
            touched: Vec::new(),
            candidates: Vec::new(),
            failover: Failover::default(),
            most_verdicts: 0,
            outcomes: Outcomes::new(&options),
            options,
            next_id: 1,
            closed: false,
            wanted: None,
            leftovers_told: false,
            left_at: Instant::now(),
            looked_at: Instant::now(),
            buffer: Vec::new(),
            descriptors: Vec::new(),
        })
    }

    /// The descriptor that is readable whenever [`dispatch`](Broker::dispatch) has work, and, within
    /// 4 ms, when [`next_verdict`](Broker::next_verdict) has left something. It stays the same and works
    /// level- and edge-triggered.
    pub fn descriptor(&mut self) -> Result<BorrowedFd<'_>, BrokerError> {
        let now = Instant::now();
        self.enter(now)?;
        // If the last timer could not be set, the caller would wait forever.
        self.handle.wake_if_missed();
        Ok(self.handle.descriptor()?)
    }

    /// What ends a wait of this broker.
    pub fn waker(&self) -> Waker {
        self.handle.waker().clone()
    }

    /// Sends what waits to be sent.
    pub fn flush(&mut self) -> Result<(), BrokerError> {
        let now = Instant::now();
        self.enter(now)?;
        self.flush_at(now)
    }

    fn flush_at(&mut self, now: Instant) -> Result<(), BrokerError> {
        self.flush_and_tell(self.outcomes.verdicts.len(), now)
    }

    /// Sends what waits to be sent. Makes the descriptor readable if there are more than `known`
    /// verdicts then: of those that come outside dispatch nothing else would tell the caller's
    /// loop.
    fn flush_and_tell(&mut self, known: usize, now: Instant) -> Result<(), BrokerError> {
        let mut unarmed = None;
        loop {
            while let Some(index) = self.touched.pop() {
                let index = index as usize;
                self.members[index].touched = false;
                if let Err(reason) = self.send(index, now) {
                    self.hang_up(index, reason, now);
                }
                unarmed = self.arm(index, now).err().or(unarmed);
            }
            if self.outcomes.again.is_empty() {
                break;
            }
            self.fail_over(now);
        }
        if self.outcomes.verdicts.len() > known {
            self.handle.wake_at(now, now)?;
        }
        Ok(unarmed.map_or(Ok(()), Err)?)
    }

    /// Sends what waits to be sent to one backend. An error is the end of the channel.
    fn send(&mut self, index: usize, now: Instant) -> Result<(), Reason> {
        let Some(events) = self.handle.events() else { return Ok(()) };
        let member = &mut self.members[index];
        let Link::Up(channel) = &mut member.link else { return Ok(()) };
        let (outcomes, tally) = (&mut self.outcomes, &mut member.tally);
        let mut ledger = Ledger::new(outcomes, tally, index, now);
        channel.flush(events, &mut ledger, &mut self.descriptors)
    }

    /// Does everything that is due: receives, sends, gives up what is late, connects.
    pub fn dispatch(&mut self) -> Result<(), BrokerError> {
        let left = self.outcomes.verdicts.len();
        self.leftovers_told = false;
        let spins = left == 0 && !self.options.spin.is_zero() && self.is_offering();
        if spins {
            // What waits to be sent has no answer.
            self.flush()?;
        }
        self.dispatch_after(if spins { Wait::Spin } else { Wait::No })?;
        if left > 0 {
            // The caller does stop.
            let now = Instant::now();
            self.leftovers_told = true;
            self.handle.wake_at(now, now)?;
        }
        Ok(())
    }

    /// Whether any offer is in flight.
    fn is_offering(&self) -> bool {
        self.members.iter().any(|member| member.in_flight() > 0)
    }

    /// Makes the descriptor readable for the verdicts that wait, should the caller stop here. If no
    /// timer can be set, something else wakes it.
    fn tell_of_leftovers(&mut self) {
        let now = Instant::now();
        let often = now.saturating_duration_since(self.left_at) < handle::OFTEN;
        let pause = if often { handle::OFTEN_PAUSE } else { LEFTOVER_PAUSE };
        (self.leftovers_told, self.left_at) = (true, now);
        let _ = self.handle.wake_after(pause, now);
    }

    /// The same for verdicts that the caller does not take now, of which it may have been told
    /// before: what it does meanwhile puts nothing off.
    fn tell_of_others(&mut self, now: Instant) {
        let pause = if self.leftovers_told { Duration::ZERO } else { LEFTOVER_PAUSE };
        self.leftovers_told = true;
        let _ = self.handle.wake_at(now + pause, now);
    }

    /// Waits until something is due, and does it.
    fn dispatch_after(&mut self, mut wait: Wait) -> Result<(), BrokerError> {
        let mut now = Instant::now();
        self.enter(now)?;
        for round in 0..=MAX_ROUNDS {
            let Some(events) = self.handle.events() else { break };
            // Where only packets can be due, receiving says as much as the events would.
            let only_packets = matches!(wait, Wait::No)
                && !events.timer.is_due(now)
                && self.directories.is_empty()
                && matches!(&self.members[..], [Member { link: Link::Up(channel), .. }]
                    if channel.awaits_packets());
            let mut more = false;
            if only_packets {
                // An end that comes meanwhile is told by the descriptor.
                more = self.receive(0, false, now);
            } else {
                let mut happened = Happened::new();
                let taken = events.take(wait, &mut happened);
                let taken = taken.map_err(HandleError::system("wait for events"))?;
                more |= taken == Happened::ROOM;
                wait = Wait::No;
                now = Instant::now();
                let due = events.timer.is_due(now);
                for event in happened.events() {
                    more |= self.handle_event(event, now);
                }
                if due {
                    self.tick_all(now);
                }
            }
            self.looked_at = now;
            self.fail_over(now);
            self.fail_over_the_waiting(now);
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

    /// Does what an event is about; says whether there may be more to receive.
    fn handle_event(&mut self, event: Event, now: Instant) -> bool {
        let Some(index) = usize::try_from(event.key).ok().filter(|key| *key < MAX_BACKENDS) else {
            // A directory. If there is more to read, a timer makes the next dispatch read it.
            self.watch_told(event.key, now);
            return false;
        };
        if let Some(channel) = self.members[index].channel().filter(|_| event.writable) {
            channel.has_room();
            self.touch(index);
        }
        event.readable && self.receive(index, event.ended, now)
    }

    /// Receives from one backend; says whether there may be more.
    fn receive(&mut self, index: usize, may_have_ended: bool, now: Instant) -> bool {
        let member = &mut self.members[index];
        let Link::Up(channel) = &mut member.link else { return false };
        let (outcomes, tally) = (&mut self.outcomes, &mut member.tally);
        let mut ledger = Ledger::new(outcomes, tally, index, now);
        let received =
            channel.receive(self.buffer.spare_capacity_mut(), may_have_ended, &mut ledger);
        if channel.welcome.is_ok() {
            member.reset_pause(&self.options);
            // The channel before this one may have ended for another reason than the next one will.
            member.why_down = None;
        }
        self.failover.looked_in_vain = 0;
        self.touch(index);
        match received {
            Ok(all) => !all,
            Err(reason) => {
                self.hang_up(index, reason, now);
                false
            }
        }
    }

    /// Does what the time says, at all backends.
    fn tick_all(&mut self, now: Instant) {
        for index in 0..self.members.len() {
            if !self.members[index].gone {
                self.tick(index, now);
            }
        }
        self.tick_directories(now);
        self.end_waits(now);
    }

    /// Takes the next verdict, if there is one. In a child of fork(2) there is none: they are the
    /// parent's, see [`check_process`](Broker::check_process).
    pub fn next_verdict(&mut self) -> Option<Verdict> {
        if self.handle.is_elsewhere() {
            return None;
        }
        let verdict = self.outcomes.verdicts.pop_front()?;
        if !self.outcomes.verdicts.is_empty() && !self.leftovers_told {
            self.tell_of_leftovers();
        }
        if self.wanted.is_some() {
            self.tell_of_room(Instant::now());
        }
        Some(verdict)
    }

    /// What was done so far.
    pub fn statistics(&self) -> BrokerStatistics {
        let mut statistics = self.outcomes.statistics;
        statistics.in_flight = self.failover.waiting.len();
        for member in &self.members {
            if let Link::Up(channel) = &member.link {
                statistics.in_flight += channel.slots.in_flight();
                statistics.queued_bytes += channel.slots.queued_bytes();
            }
        }
        statistics
    }

    /// Fails in another process than the one that used the handle first.
    pub fn check_process(&self) -> Result<(), BrokerError> {
        Ok(self.handle.check_process()?)
    }

    /// Fails if the broker is closed, or another process's.
    fn check(&self) -> Result<(), BrokerError> {
        if self.closed {
            return Err(BrokerError::Closed { path: self.path.clone() });
        }
        self.check_process()
    }

    /// Opens the handle at its first use, and checks that this is the process that did.
    #[inline(always)]
    fn enter(&mut self, now: Instant) -> Result<(), BrokerError> {
        if self.handle.is_ready() && !self.closed { Ok(()) } else { self.open(now) }
    }

    #[cold]
    fn open(&mut self, now: Instant) -> Result<(), BrokerError> {
        self.check()?;
        if self.handle.is_open() {
            return Ok(());
        }
        let events = self.handle.new_events()?;
        self.buffer = memory::vec(packet::room_len(MAX_FRAME_LEN), "packets")?;
        self.descriptors = memory::vec(MAX_DESCRIPTORS, "descriptors")?;
        self.reserve()?;
        self.handle.open(events, self.options.spin)?;
        for member in &mut self.members {
            member.link = Link::Down { retry_at: now, first: false };
        }
        self.tick_all(now);
        self.flush_at(now)
    }
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
