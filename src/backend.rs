//! The backend's end of its channels.
//!
//! A [`Backend`] listens on a handoff socket, accepts the brokers that may connect, grants them
//! tokens, and holds what they offer until it is adopted or rejected. It never blocks, except in
//! the calls that say so. A connection that it adopts belongs to this process alone: the broker
//! gave it up in the same step, see [`crate::claim`].

mod channel;
mod kinds;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::claim::{ClaimTable, Lost};
use crate::kind::ErrorKind;
use crate::listener::{Listener, ListenerError, ListenerOptions};
use crate::peer::{self, Credentials, Policy};
use crate::reason::Reason;
use crate::sys::event::{self, Wait};
use crate::sys::{SocketKind, packet, process};
use crate::token::{RandomTokens, Token};
use crate::wire::{self, Frame, Grant, HEADER_LEN, Kind, MAX_FRAME_LEN, MAX_SLOTS, Welcome};

use channel::{Broken, Channel};
use kinds::Inspector;

pub use kinds::Kinds;

/// The limits of a [`Backend`]. Out-of-range values are clamped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendOptions {
    /// How the handoff socket is made; its kind is always sequenced packets.
    pub mode: u32,
    /// Brokers that may wait to be accepted.
    pub backlog: i32,
    /// Who may connect; empty lists are the default of [`Policy`].
    pub users: Vec<u32>,
    /// See `users`.
    pub groups: Vec<u32>,
    /// Channels at once: 1 to 65535, 64 by default.
    pub max_channels: usize,
    /// Offers in flight at once on each channel: 1 to 4096, 256 by default. The backend grants each
    /// channel so many tokens.
    pub max_in_flight: usize,
    /// Bytes of preread, metadata and names in one offer: 131000 at most, 64 KiB by default. It is
    /// an error if it is more than `max_held_bytes`.
    pub max_offer_bytes: usize,
    /// Bytes of arrivals held at once, 64 MiB by default; an arrival that would be too many is
    /// rejected as [`Reason::BackendBusy`].
    pub max_held_bytes: usize,
    /// Which sockets to take. It is an error if they are `unconnected` ones alone.
    pub kinds: Kinds,
}

impl BackendOptions {
    /// The options as they are used: clamped, unless they are impossible.
    fn checked(self) -> Result<BackendOptions, BackendError> {
        let room = MAX_FRAME_LEN - HEADER_LEN - wire::OFFER_LEN;
        let options = BackendOptions {
            max_channels: self.max_channels.clamp(1, 65535),
            max_in_flight: self.max_in_flight.clamp(1, MAX_SLOTS),
            max_offer_bytes: self.max_offer_bytes.min(room),
            ..self
        };
        let BackendOptions { max_offer_bytes, max_held_bytes, kinds, .. } = options;
        let problem = if max_offer_bytes > max_held_bytes {
            format!(
                "max_offer_bytes ({max_offer_bytes}) is more than max_held_bytes ({max_held_bytes})"
            )
        } else if kinds.are_unconnected_alone() {
            "kinds has unconnected (true) without stream, seqpacket or datagram (all false)".into()
        } else {
            return Ok(options);
        };
        Err(BackendError::InvalidOptions { problem })
    }
}

impl Default for BackendOptions {
    fn default() -> BackendOptions {
        let ListenerOptions { mode, backlog, .. } = ListenerOptions::default();
        BackendOptions {
            mode,
            backlog,
            users: Vec::new(),
            groups: Vec::new(),
            max_channels: 64,
            max_in_flight: 256,
            max_offer_bytes: 64 * 1024,
            max_held_bytes: 64 * 1024 * 1024,
            kinds: Kinds { stream: true, seqpacket: false, datagram: false, unconnected: false },
        }
    }
}

/// An offer as the backend sees it, verified but not adopted yet.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// What [`Backend::adopt`] and [`Backend::reject`] know it by.
    pub id: u64,
    /// The service that is meant.
    pub service: &'a [u8],
    /// What the connection is called in logs.
    pub correlation: &'a [u8],
    /// Anything that the broker wanted to say.
    pub metadata: &'a [u8],
    /// Bytes that the broker has read from the client: they come before all that is read from it.
    pub preread: &'a [u8],
    /// The broker, as it was when it connected.
    pub broker: Credentials,
}

/// What a [`Backend`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendStatistics {
    /// Offers that arrived with their token.
    pub arrived: u64,
    /// Arrivals adopted.
    pub adopted: u64,
    /// Arrivals rejected, by the caller or because they are not allowed.
    pub rejected: u64,
    /// Arrivals that the broker took back first.
    pub taken_back: u64,
    /// Channels that were accepted.
    pub accepted: u64,
    /// Connections that were closed because their peer may not connect or there were too many.
    pub refused: u64,
    /// Channels that were ended because of a protocol error of the broker.
    pub broken: u64,
    /// Channels now.
    pub channels: usize,
    /// Arrivals held now.
    pub held: usize,
    /// Their bytes.
    pub held_bytes: usize,
}

/// Why a call of a [`Backend`] did nothing.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Two options contradict each other.
    #[error("impossible options: {problem}")]
    InvalidOptions {
        /// Which, and their values.
        problem: String,
    },
    /// The handoff socket was not made.
    #[error(transparent)]
    Listener(#[from] ListenerError),
    /// The descriptor given is not a listening socket of sequenced packets.
    #[error("descriptor {descriptor} is not a listening Unix socket of sequenced packets")]
    NotAListener {
        /// The descriptor.
        descriptor: i32,
    },
    /// The handle was first used in another process.
    #[error("this handle belongs to another process: use it in one only")]
    WrongProcess,
    /// No arrival is held under this id.
    #[error("no arrival {id} is held")]
    Unknown {
        /// The id.
        id: u64,
    },
    /// The broker has taken the connection back; its descriptor is closed.
    #[error("the broker has taken arrival {id} back")]
    TakenBack {
        /// The id.
        id: u64,
    },
    /// Nothing arrived in time.
    #[error("nothing arrived in time")]
    TimedOut,
    /// The system refused what every backend needs.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl BackendError {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            BackendError::Listener(error) => error.kind(),
            BackendError::InvalidOptions { .. }
            | BackendError::NotAListener { .. }
            | BackendError::Unknown { .. } => ErrorKind::InvalidArgument,
            BackendError::WrongProcess => ErrorKind::WrongProcess,
            BackendError::TakenBack { .. } => ErrorKind::TakenBack,
            BackendError::TimedOut => ErrorKind::TimedOut,
            BackendError::System { source, .. } => ErrorKind::of_system(source),
        }
    }
}

/// The backend's end of the channels of one handoff socket. Used by one thread at a time.
#[derive(Debug)]
pub struct Backend {
    options: BackendOptions,
    /// None while the backend drains.
    listener: Option<Source>,
    /// Opened at the first use.
    open: Option<Open>,
    links: Vec<Link>,
    arrivals: VecDeque<Place>,
    /// Links with something to send.
    dirty: Vec<usize>,
    draining: bool,
    serial: u64,
    /// Bytes of all arrivals that are held.
    held_bytes: usize,
    /// The caller is taking arrivals, and will be told when there is no more.
    in_batch: bool,
    pause: Pause,
    /// When it was last set.
    paused_at: Option<Instant>,
    /// Links whose broker has not said hello yet.
    expected: usize,
    /// No broker is accepted until then.
    paused: Option<Instant>,
    /// A link's broker has gone; what is left of it is cleared away when nothing is held there.
    orphans: bool,
    /// The system was short of memory for what a link has to send.
    short: bool,
    tokens: RandomTokens,
    inspector: Inspector,
    statistics: BackendStatistics,
    buffer: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// The timer that tells of verdicts if the caller does not go on to the end of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// Not since dispatch has last run.
    Unset,
    /// To fire, perhaps for nothing, which costs less than setting it for every batch.
    Set,
    /// To be cancelled at the end of the batch: batches are so rare that it would always fire for
    /// nothing, and nothing else needs the timer.
    UntilTheEnd,
}

#[derive(Debug)]
enum Source {
    Made(Listener),
    Given(OwnedFd),
}

#[derive(Debug)]
struct Open {
    process: u64,
    events: event::Events,
}

/// Where an arrival is held.
#[derive(Clone, Copy, Debug)]
struct Place {
    link: usize,
    slot: usize,
    serial: u64,
}

/// A place for a channel.
#[derive(Debug, Default)]
struct Link {
    /// None when the broker has gone, or there never was one.
    socket: Option<Socket>,
    /// None before the broker's hello.
    channel: Option<Channel>,
}

#[derive(Debug)]
struct Socket {
    descriptor: OwnedFd,
    credentials: Credentials,
    /// When the broker must have said hello.
    hello_by: Instant,
    full: bool,
    watching: bool,
    /// The system was short of memory: poll(2) would say at once that there is room.
    short: bool,
    dirty: bool,
    drain_told: bool,
    /// The broker receives no more; what it sent before may still be there to be received.
    deaf: bool,
}

/// The key of the listening socket among the events; those of the links are their indices.
const LISTENER: u64 = u64::MAX - 1;
const MAX_ROUNDS: usize = 64;
/// How long verdicts wait for the end of a batch that the caller does not take to its end.
const BATCH_PAUSE: Duration = Duration::from_millis(1);
/// How many tokens are granted in one frame.
const MAX_GRANTS: usize = 512;
/// How many brokers are accepted before others have their turn.
const MAX_ACCEPTS: usize = 64;
/// How long no broker is accepted after the system refused one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of verdicts that are sent without waiting for more.
const FLUSH_LEN: usize = 64 * wire::VERDICT_LEN;
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// An arrival's id: serial number, link, slot.
const LINK_SHIFT: u32 = 12;
const SERIAL_SHIFT: u32 = 28;
const MAX_SERIAL: u64 = u64::MAX >> SERIAL_SHIFT;

impl Place {
    fn id(self) -> u64 {
        self.serial << SERIAL_SHIFT | (self.link as u64) << LINK_SHIFT | self.slot as u64
    }

    fn of(id: u64) -> Place {
        Place {
            link: (id >> LINK_SHIFT & 0xffff) as usize,
            slot: (id & 0xfff) as usize,
            serial: id >> SERIAL_SHIFT,
        }
    }
}

impl Backend {
    /// Makes a handoff socket at `path` and listens on it; see [`Listener::new`]. Can be done
    /// before fork(2); the handle belongs to the process that uses it first.
    pub fn listen(path: &Path, options: BackendOptions) -> Result<Backend, BackendError> {
        let options = options.checked()?;
        let BackendOptions { mode, backlog, .. } = options;
        let kind = SocketKind::SeqPacket;
        let listener = Listener::new(path, &ListenerOptions { mode, backlog, kind })?;
        Ok(Backend::new(Source::Made(listener), options))
    }

    /// Listens on a socket that somebody else made, as a service manager does.
    pub fn listen_on(listener: OwnedFd, options: BackendOptions) -> Result<Backend, BackendError> {
        let options = options.checked()?;
        let descriptor = listener.as_raw_fd();
        if !packet::is_listening_seqpacket(listener.as_fd()) {
            return Err(BackendError::NotAListener { descriptor });
        }
        packet::set_nonblocking(listener.as_fd()).map_err(system("use the socket"))?;
        Ok(Backend::new(Source::Given(listener), options))
    }

    fn new(listener: Source, options: BackendOptions) -> Backend {
        Backend {
            inspector: Inspector::new(options.kinds),
            options,
            listener: Some(listener),
            open: None,
            links: Vec::new(),
            arrivals: VecDeque::new(),
            dirty: Vec::new(),
            draining: false,
            serial: 1,
            held_bytes: 0,
            in_batch: false,
            pause: Pause::Unset,
            paused_at: None,
            expected: 0,
            paused: None,
            orphans: false,
            short: false,
            tokens: RandomTokens::new(),
            statistics: BackendStatistics::default(),
            buffer: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    /// The descriptor that is readable whenever [`dispatch`](Backend::dispatch) has work. It stays
    /// the same and works level- and edge-triggered.
    pub fn descriptor(&mut self) -> Result<BorrowedFd<'_>, BackendError> {
        self.enter()?;
        let open = self.open.as_ref().ok_or(BackendError::WrongProcess)?;
        Ok(open.events.descriptor().as_fd())
    }

    /// Does everything that is due: accepts brokers, receives offers, sends verdicts.
    pub fn dispatch(&mut self) -> Result<(), BackendError> {
        self.dispatch_after(Wait::No)
    }

    /// Waits until something is due, and does it.
    fn dispatch_after(&mut self, mut wait: Wait) -> Result<(), BackendError> {
        self.enter()?;
        self.in_batch = false;
        self.pause = Pause::Unset;
        self.clear_orphans();
        self.send_again();
        for round in 0..=MAX_ROUNDS {
            let Some(open) = &mut self.open else { break };
            let mut ready = [(0, false, false); event::Events::ROOM];
            let mut count = 0;
            let taken = open.events.take(wait, |event| {
                ready[count] = (event.key, event.readable, event.writable);
                count += 1;
            });
            let mut more = taken.map_err(system("wait for events"))? == event::Events::ROOM;
            wait = Wait::No;
            let now = Instant::now();
            for &(key, readable, writable) in &ready[..count] {
                if key == LISTENER {
                    self.accept_brokers(now);
                    // They may have said hello already, and there may be others.
                    more = true;
                    continue;
                }
                let link = key as usize;
                if let Some(socket) = self.links.get_mut(link).and_then(|l| l.socket.as_mut()) {
                    socket.full &= !writable;
                }
                if readable {
                    self.receive(link);
                }
                if writable {
                    self.flush_link(link);
                }
            }
            self.resume_accepting(now)?;
            self.expire_hellos(now)?;
            self.flush();
            if !more {
                break;
            }
            if round == MAX_ROUNDS {
                self.wake_at(now, now)?;
            }
        }
        Ok(())
    }

    /// Takes the next arrival, to look at and then to adopt or reject. When there is no more, what
    /// was adopted and rejected so far is told to the brokers. In a child of fork(2) there is none:
    /// they are the parent's, see [`check_process`](Backend::check_process).
    pub fn next_arrival(&mut self) -> Option<Arrival<'_>> {
        let place = self.next_place()?;
        Some(self.view(place))
    }

    fn next_place(&mut self) -> Option<Place> {
        self.check_process().ok()?;
        while let Some(place) = self.arrivals.pop_front() {
            let Some(channel) = self.held(place) else { continue };
            if channel.is_on_offer(place.slot) {
                self.in_batch = true;
                return Some(place);
            }
            // Taken back, or never on offer: adopting says which.
            let _ = self.adopt(place.id());
        }
        self.in_batch = false;
        self.flush();
        if let (Pause::UntilTheEnd, false, Some(open)) = (self.pause, self.short, &mut self.open) {
            open.events.cancel();
            self.pause = Pause::Unset;
        }
        None
    }

    fn view(&self, place: Place) -> Arrival<'_> {
        let none = Credentials { process: 0, user: u32::MAX, group: u32::MAX };
        let channel = self.links.get(place.link).and_then(|link| link.channel.as_ref());
        let parts = channel.map_or([&[][..]; 4], |channel| channel.slot(place.slot).parts());
        let [service, correlation, metadata, preread] = parts;
        let broker = channel.map_or(none, |channel| channel.credentials);
        Arrival { id: place.id(), service, correlation, metadata, preread, broker }
    }

    fn held(&self, place: Place) -> Option<&Channel> {
        let channel = self.links.get(place.link)?.channel.as_ref()?;
        channel.find(place.slot, place.serial).map(|_| channel)
    }

    /// Adopts an arrival. After `Ok` the connection is this process's, and the broker never serves
    /// it. What came with it can be read until the next [`dispatch`](Backend::dispatch).
    pub fn adopt(&mut self, id: u64) -> Result<OwnedFd, BackendError> {
        self.enter()?;
        let place = Place::of(id);
        let claimed = self.held(place).map(|channel| channel.claim(place.slot));
        match claimed.ok_or(BackendError::Unknown { id })? {
            Ok(()) => {
                self.statistics.adopted += 1;
                self.finish(place, None).ok_or(BackendError::Unknown { id })
            }
            Err(Lost::TooLate) => {
                self.statistics.taken_back += 1;
                drop(self.finish(place, Some(Reason::AckTimeout)));
                Err(BackendError::TakenBack { id })
            }
            Err(Lost::Impossible) => {
                self.statistics.broken += 1;
                self.drop_link(place.link);
                drop(self.finish(place, None));
                Err(BackendError::TakenBack { id })
            }
        }
    }

    /// Rejects an arrival: its descriptor is closed, and the broker serves the client another way.
    pub fn reject(&mut self, id: u64, reason: Reason) -> Result<(), BackendError> {
        self.enter()?;
        let place = Place::of(id);
        self.held(place).ok_or(BackendError::Unknown { id })?;
        self.statistics.rejected += 1;
        drop(self.finish(place, Some(reason)));
        Ok(())
    }

    /// Lets go of a held arrival and queues its verdict, with the slot's next token.
    fn finish(&mut self, place: Place, reason: Option<Reason>) -> Option<OwnedFd> {
        let next = self.next_token();
        let link = self.links.get_mut(place.link)?;
        let channel = link.channel.as_mut()?;
        let before = channel.held_bytes();
        let descriptor = channel.release(place.slot);
        self.held_bytes -= before - channel.held_bytes();
        if link.socket.is_some() {
            channel.answer(place.slot, reason, next);
            self.mark_dirty(place.link);
            // Within a batch the verdicts wait for its end, so that clients are answered first; but
            // not so many that the broker of a large batch could not refill the window.
            let channel = self.links.get(place.link).and_then(|link| link.channel.as_ref());
            let many = channel.is_some_and(|channel| channel.verdicts().len() >= FLUSH_LEN);
            if !self.in_batch || many {
                self.flush();
            } else if self.pause == Pause::Unset {
                self.set_pause();
            }
        }
        descriptor
    }

    /// Sees to it that a caller who does not go on to the end of the batch is woken for it.
    fn set_pause(&mut self) {
        let Some(open) = &mut self.open else { return };
        let now = Instant::now();
        let seldom = self.paused_at.is_none_or(|last| last + BATCH_PAUSE < now);
        let alone = !open.events.is_armed();
        if open.events.wake_at(now + BATCH_PAUSE, now).is_ok() {
            self.pause = if seldom && alone { Pause::UntilTheEnd } else { Pause::Set };
            self.paused_at = Some(now);
        }
    }

    fn next_token(&mut self) -> Option<Token> {
        if self.draining { None } else { self.tokens.generate().ok() }
    }

    /// Waits for an arrival for at most `timeout`, or forever if there is none, and adopts it.
    pub fn accept(
        &mut self,
        timeout: Option<Duration>,
    ) -> Result<(OwnedFd, Arrival<'_>), BackendError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut late = false;
        loop {
            self.enter()?;
            while let Some(place) = self.next_place() {
                // A batch of one: its verdict is sent at once.
                self.in_batch = false;
                if let Ok(descriptor) = self.adopt(place.id()) {
                    return Ok((descriptor, self.view(place)));
                }
            }
            if late {
                return Err(BackendError::TimedOut);
            }
            // Looks for something once, even if there is no time to wait for it.
            late = deadline.is_some_and(|deadline| deadline <= Instant::now());
            self.dispatch_after(deadline.into())?;
        }
    }

    /// Grants nothing from now on and accepts no broker; what has arrived, and what arrives with
    /// tokens that brokers have not heard to be worthless yet, can still be adopted.
    pub fn drain(&mut self) -> Result<(), BackendError> {
        self.enter()?;
        self.draining = true;
        if let (Some(listener), Some(open)) = (self.listener.take(), &self.open) {
            open.events.remove(listener.as_fd());
        }
        for link in 0..self.links.len() {
            self.mark_dirty(link);
        }
        self.flush();
        Ok(())
    }

    /// What was done so far.
    pub fn statistics(&self) -> BackendStatistics {
        let mut statistics = self.statistics;
        for link in &self.links {
            statistics.channels += usize::from(link.socket.is_some());
            if let Some(channel) = &link.channel {
                statistics.held += channel.held();
                statistics.held_bytes += channel.held_bytes();
            }
        }
        statistics
    }

    /// Fails in another process than the one that used the handle first.
    pub fn check_process(&self) -> Result<(), BackendError> {
        match &self.open {
            Some(open) if open.process != process::current() => Err(BackendError::WrongProcess),
            _ => Ok(()),
        }
    }

    /// Opens the handle at its first use, and checks that this is the process that did.
    fn enter(&mut self) -> Result<(), BackendError> {
        self.check_process()?;
        match &self.open {
            Some(_) => Ok(()),
            None => {
                let events = event::Events::new().map_err(system("make an epoll set"))?;
                if let Some(listener) = &self.listener {
                    let added = events.add(listener.as_fd(), LISTENER);
                    added.map_err(system("watch the socket"))?;
                }
                self.open = Some(Open { process: process::current(), events });
                self.buffer = vec![0; MAX_FRAME_LEN];
                self.descriptors = Vec::with_capacity(wire::MAX_DESCRIPTORS + 1);
                self.arrivals = VecDeque::with_capacity(self.options.max_in_flight);
                Ok(())
            }
        }
    }

    fn accept_brokers(&mut self, now: Instant) {
        for _ in 0..MAX_ACCEPTS {
            let (Some(listener), Some(open)) = (&self.listener, &mut self.open) else { return };
            let descriptor = match packet::accept_nonblocking(listener.as_fd()) {
                Ok(descriptor) => descriptor,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Out of descriptors: the listener stays readable, and looking at it again and
                // again would not help.
                Err(_) => {
                    let until = now + ACCEPT_PAUSE;
                    open.events.remove(listener.as_fd());
                    let _ = open.events.wake_at(until, now);
                    self.paused = Some(until);
                    return;
                }
            };
            let BackendOptions { users, groups, max_channels, .. } = &self.options;
            let allowed = peer::check(descriptor.as_fd(), &Policy { users, groups });
            let unused = |link: &Link| link.socket.is_none() && link.channel.is_none();
            let place = self.links.iter().position(unused);
            let place = place.or((self.links.len() < *max_channels).then_some(self.links.len()));
            let (Ok(credentials), Some(place)) = (allowed, place) else {
                self.statistics.refused += 1;
                continue;
            };
            let hello_by = now + HELLO_TIMEOUT;
            if open.events.add(descriptor.as_fd(), place as u64).is_err()
                || open.events.wake_at(hello_by, now).is_err()
            {
                self.statistics.refused += 1;
                continue;
            }
            if place == self.links.len() {
                self.links.push(Link::default());
            }
            self.statistics.accepted += 1;
            self.expected += 1;
            self.links[place].socket = Some(Socket {
                descriptor,
                credentials,
                hello_by,
                full: false,
                watching: false,
                short: false,
                dirty: false,
                drain_told: false,
                deaf: false,
            });
        }
    }

    fn resume_accepting(&mut self, now: Instant) -> Result<(), BackendError> {
        match (self.paused, &self.listener, &self.open) {
            (Some(until), Some(listener), Some(open)) if until <= now => {
                self.paused = None;
                open.events.add(listener.as_fd(), LISTENER).map_err(system("watch the socket"))
            }
            (Some(until), Some(_), _) => self.wake_at(until, now),
            _ => Ok(()),
        }
    }

    /// Closes connections whose broker has not said hello in time.
    fn expire_hellos(&mut self, now: Instant) -> Result<(), BackendError> {
        if self.expected == 0 {
            return Ok(());
        }
        let mut next: Option<Instant> = None;
        for index in 0..self.links.len() {
            let link = &self.links[index];
            let Some(socket) = link.socket.as_ref().filter(|_| link.channel.is_none()) else {
                continue;
            };
            let hello_by = socket.hello_by;
            if hello_by <= now {
                self.statistics.broken += 1;
                self.drop_link(index);
            } else {
                next = Some(next.map_or(hello_by, |next| next.min(hello_by)));
            }
        }
        next.map_or(Ok(()), |next| self.wake_at(next, now))
    }

    fn wake_at(&mut self, when: Instant, now: Instant) -> Result<(), BackendError> {
        match &mut self.open {
            Some(open) => open.events.wake_at(when, now).map_err(system("set a timer")),
            None => Ok(()),
        }
    }

    /// Receives every frame that is there on a link.
    fn receive(&mut self, link: usize) {
        loop {
            // What came with a packet that was not even looked at.
            self.descriptors.clear();
            let Some(socket) = self.links.get(link).and_then(|link| link.socket.as_ref()) else {
                return;
            };
            let descriptor = socket.descriptor.as_fd();
            let received =
                packet::receive_packet(descriptor, &mut self.buffer, &mut self.descriptors);
            let received = match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // No end of the stream brings descriptors; an empty packet can.
                Ok(received) if received.len > 0 || received.descriptors > 0 => received,
                // The broker has gone: what it offered can still be adopted.
                Ok(_) | Err(_) => return self.close_socket(link),
            };
            let handled = if received.payload_truncated {
                Err(Broken)
            } else {
                self.handle(link, received.len, received.control_truncated)
            };
            if handled.is_err() {
                self.statistics.broken += 1;
                self.drop_link(link);
            }
        }
    }

    fn handle(&mut self, link: usize, len: usize, truncated: bool) -> Result<(), Broken> {
        // Out of the handle for the time being, because the frame borrows from it.
        let buffer = std::mem::take(&mut self.buffer);
        let mut descriptors = std::mem::take(&mut self.descriptors);
        let frame = &buffer[..len];
        // At this process's limit the kernel installs the first descriptors and drops the rest.
        let came = match descriptors.len() {
            fewer if truncated && fewer < wire::declared_descriptors(frame) => {
                wire::declared_descriptors(frame)
            }
            count if !truncated => count,
            _ => usize::MAX,
        };
        let has_channel = self.links[link].channel.is_some();
        let handled = match wire::decode(frame, came) {
            Ok(Frame::Hello(hello)) if !has_channel => self.welcome(link, hello, &mut descriptors),
            Ok(Frame::Offers(offers)) if has_channel => {
                let open = self.inspector.look(&descriptors);
                let mut arrived = descriptors.drain(..).zip(open);
                offers.offers().try_for_each(|offer| self.arrive(link, &offer, arrived.next()))
            }
            _ => Err(Broken),
        };
        descriptors.clear();
        (self.buffer, self.descriptors) = (buffer, descriptors);
        handled
    }

    /// Answers a broker's hello with a welcome and the first tokens.
    fn welcome(
        &mut self,
        index: usize,
        hello: wire::Hello,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<(), Broken> {
        let table = descriptors.pop().ok_or(Broken)?;
        let claims = ClaimTable::open(table.as_fd(), hello.slots as usize).map_err(|_| Broken)?;
        let slots = self.options.max_in_flight.min(hello.slots as usize);
        let link = &mut self.links[index];
        let socket = link.socket.as_ref().ok_or(Broken)?;
        let mut channel = Channel::new(socket.credentials, claims, slots);
        let max_bytes = self.options.max_offer_bytes as u32;
        let body = Welcome { slots: slots as u32, max_bytes }.body();
        let mut sent = send(socket, Kind::Welcome, 0, &body);
        if !self.draining && sent.is_ok() {
            let mut body = Vec::with_capacity(slots * wire::GRANT_LEN);
            for slot in 0..slots {
                let token = self.tokens.generate().map_err(|_| Broken)?;
                channel.grant(slot, token);
                Grant { slot: slot as u32, token }.write(&mut body);
            }
            // In parts that any socket buffer takes.
            for part in body.chunks(MAX_GRANTS * wire::GRANT_LEN) {
                sent = sent
                    .and_then(|()| send(socket, Kind::Grants, part.len() / wire::GRANT_LEN, part));
            }
        }
        if sent.is_err() {
            // The broker has gone, which is no fault of what it sent.
            self.close_socket(index);
            return Ok(());
        }
        link.channel = Some(channel);
        self.expected -= 1;
        self.mark_dirty(index);
        Ok(())
    }

    /// Takes one offer in: it must spend its token, and is held if it is allowed. Its descriptor
    /// comes with whether it is open for writing.
    fn arrive(
        &mut self,
        link: usize,
        offer: &wire::Offer<'_>,
        arrived: Option<(OwnedFd, bool)>,
    ) -> Result<(), Broken> {
        let len = offer.variable_len().ok_or(Broken)?;
        let channel = self.links[link].channel.as_mut().ok_or(Broken)?;
        channel.spend(offer)?;
        if len > self.options.max_offer_bytes {
            return Err(Broken);
        }
        self.statistics.arrived += 1;
        let slot = offer.head.slot as usize;
        channel.shrink(slot);
        let full = self.held_bytes.saturating_add(len) > self.options.max_held_bytes;
        let refusal = match &arrived {
            None => Some(Reason::DescriptorPressure),
            Some(_) if full => Some(Reason::BackendBusy),
            Some((descriptor, open)) => {
                self.inspector.refusal(descriptor, *open, offer.head.cookie)
            }
        };
        match (arrived, refusal) {
            (Some((descriptor, _)), None) => {
                let serial = self.serial;
                self.serial = (self.serial + 1) & MAX_SERIAL;
                let channel = self.links[link].channel.as_mut().ok_or(Broken)?;
                let before = channel.held_bytes();
                channel.hold(offer, descriptor, serial);
                self.held_bytes += channel.held_bytes() - before;
                self.arrivals.push_back(Place { link, slot, serial });
            }
            (refused, reason) => {
                // Closed before the broker hears of it.
                drop(refused);
                self.statistics.rejected += 1;
                let next = self.next_token();
                let channel = self.links[link].channel.as_mut().ok_or(Broken)?;
                channel.answer(slot, reason, next);
                self.mark_dirty(link);
            }
        }
        Ok(())
    }

    fn mark_dirty(&mut self, link: usize) {
        if let Some(socket) = &mut self.links[link].socket {
            if !socket.dirty {
                socket.dirty = true;
                self.dirty.push(link);
            }
        }
    }

    /// Tells the brokers what there is to tell.
    fn flush(&mut self) {
        while let Some(link) = self.dirty.pop() {
            if let Some(socket) = &mut self.links[link].socket {
                socket.dirty = false;
            }
            self.flush_link(link);
        }
    }

    fn flush_link(&mut self, index: usize) {
        let Some(open) = &self.open else { return };
        let link = &mut self.links[index];
        let (Some(socket), Some(channel)) = (&mut link.socket, &mut link.channel) else { return };
        if socket.deaf || socket.short {
            return;
        }
        let mut result = Ok(());
        while result.is_ok() && !socket.full && !channel.verdicts().is_empty() {
            let verdicts = channel.verdicts();
            let (len, count) = (verdicts.len(), verdicts.len() / wire::VERDICT_LEN);
            result = send(socket, Kind::Verdicts, count, verdicts);
            if result.is_ok() {
                channel.sent(len);
            }
        }
        if self.draining && result.is_ok() && !socket.full && !socket.drain_told {
            result = send(socket, Kind::Drain, 0, &[]);
            socket.drain_told = result.is_ok();
        }
        match result.map_err(|error| error.raw_os_error()) {
            Ok(()) => {}
            Err(Some(libc::EAGAIN)) => socket.full = true,
            Err(Some(libc::ENOBUFS | libc::ENOMEM)) => {
                socket.short = true;
                self.short = true;
            }
            // Dispatch receives what the broker still sent, and then the end.
            Err(Some(libc::EPIPE | libc::ECONNRESET)) => socket.deaf = true,
            Err(_) => return self.close_socket(index),
        }
        if socket.full != socket.watching {
            let descriptor = socket.descriptor.as_fd();
            if open.events.watch_room(descriptor, index as u64, socket.full).is_err() {
                return self.close_socket(index);
            }
            socket.watching = socket.full;
            if socket.full {
                // Once more when it is watched: of room that came before, no edge would tell.
                socket.full = false;
                return self.flush_link(index);
            }
        }
        if socket.short {
            let now = Instant::now();
            if self.wake_at(now + Duration::from_millis(1), now).is_err() {
                self.close_socket(index);
            }
        }
    }

    /// Tries again what the system was short of memory for.
    fn send_again(&mut self) {
        if !std::mem::take(&mut self.short) {
            return;
        }
        for link in 0..self.links.len() {
            let socket = self.links[link].socket.as_mut();
            if socket.is_some_and(|socket| std::mem::take(&mut socket.short)) {
                self.mark_dirty(link);
            }
        }
    }

    /// Closes the connection to a broker; what it offered stays until it is adopted or rejected.
    fn close_socket(&mut self, link: usize) {
        let link = &mut self.links[link];
        if let (Some(socket), Some(open)) = (link.socket.take(), &self.open) {
            open.events.remove(socket.descriptor.as_fd());
            match link.channel {
                Some(_) => self.orphans = true,
                None => self.expected -= 1,
            }
        }
    }

    /// Closes the connection to a broker and every descriptor that it offered. What the caller has
    /// not seen of that is forgotten.
    fn drop_link(&mut self, link: usize) {
        self.close_socket(link);
        let Some(channel) = &mut self.links[link].channel else { return };
        let before = channel.held_bytes();
        channel.close_held();
        self.arrivals.retain(|place| {
            let others = place.link != link;
            if !others && channel.find(place.slot, place.serial).is_some() {
                channel.release(place.slot);
            }
            others
        });
        self.held_bytes -= before - channel.held_bytes();
    }

    /// Forgets channels whose broker has gone and of which nothing is held. Not at once, because
    /// the caller may still read what came with the last one.
    fn clear_orphans(&mut self) {
        if !self.orphans {
            return;
        }
        self.orphans = false;
        for link in self.links.iter_mut().filter(|link| link.socket.is_none()) {
            match &link.channel {
                Some(channel) if channel.held() > 0 => self.orphans = true,
                _ => link.channel = None,
            }
        }
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Source::Made(listener) => listener.as_fd(),
            Source::Given(listener) => listener.as_fd(),
        }
    }
}

fn send(socket: &Socket, kind: Kind, entries: usize, body: &[u8]) -> io::Result<()> {
    let header = wire::header(kind, entries, 0, body.len());
    packet::send_packet(socket.descriptor.as_fd(), &header, body, &[]).map(drop)
}

fn system(action: &'static str) -> impl Fn(io::Error) -> BackendError {
    move |source| BackendError::System { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Broker, BrokerOptions, Offer};
    use std::io::IoSlice;
    use std::os::unix::net::UnixStream;

    struct Both {
        _directory: tempfile::TempDir,
        backend: Backend,
        broker: Broker,
        client: UnixStream,
        _peer: UnixStream,
    }

    fn both() -> Both {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let backend = Backend::listen(&path, BackendOptions::default()).unwrap();
        let broker = Broker::new(&path, BrokerOptions::default()).unwrap();
        let (client, peer) = UnixStream::pair().unwrap();
        let mut both = Both { _directory: directory, backend, broker, client, _peer: peer };
        both.broker.dispatch().unwrap();
        both.backend.dispatch().unwrap();
        both.broker.dispatch().unwrap();
        both
    }

    impl Both {
        fn offer(&mut self, preread: &[u8]) {
            let offer = Offer {
                descriptor: self.client.as_fd(),
                preread: &[IoSlice::new(preread)],
                metadata: b"",
                service: b"",
                correlation: b"",
                user_data: 0,
                timeout: None,
                more: false,
            };
            self.broker.offer(&offer).unwrap();
        }
    }

    #[test]
    fn arrivals_can_be_adopted_when_their_numbers_begin_again() {
        let mut both = both();
        both.backend.serial = MAX_SERIAL;
        for _ in 0..2 {
            both.offer(b"");
            both.backend.dispatch().unwrap();
            let id = both.backend.next_arrival().unwrap().id;
            both.backend.adopt(id).unwrap();
        }
    }

    #[test]
    fn bytes_of_an_arrival_outlive_a_broken_channel_until_adopting_says_so() {
        let mut both = both();
        for preread in [&b"adopted"[..], b"held", b"not looked at"] {
            both.offer(preread);
        }
        both.backend.dispatch().unwrap();
        let adopted = both.backend.next_place().unwrap();
        both.backend.adopt(adopted.id()).unwrap();
        let held = both.backend.next_place().unwrap();
        both.backend.drop_link(held.link);
        assert_eq!(both.backend.statistics().held, 1);
        assert_eq!(both.backend.view(adopted).preread, b"adopted");
        both.backend.dispatch().unwrap();
        both.backend.dispatch().unwrap();
        assert_eq!(both.backend.view(held).preread, b"held");
        let result = both.backend.adopt(held.id());
        assert!(matches!(result, Err(BackendError::TakenBack { .. })));
        assert!(both.backend.next_arrival().is_none());
        both.backend.dispatch().unwrap();
        let BackendStatistics { held, held_bytes, channels, .. } = both.backend.statistics();
        assert_eq!((held, held_bytes, channels, both.backend.held_bytes), (0, 0, 0, 0));
    }
}
