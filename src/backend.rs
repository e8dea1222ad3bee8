//! The backend's end of its channels.
//!
//! A [`Backend`] listens on a handoff socket, accepts the brokers that may connect, grants them
//! tokens, and holds what they offer until it is adopted or rejected. It never blocks, except in
//! the calls that say so. A connection that it adopts belongs to this process alone: the broker
//! gave it up in the same step, see `claim.rs`.
//!
//! A backend without an event loop; the example of [`broker`](crate::broker) hands it clients:
//!
//! ```
//! use std::io::Write;
//! use std::net::TcpStream;
//! use std::path::Path;
//!
//! use handoff::backend::{Backend, BackendOptions};
//!
//! /// Adopts clients, and answers each on its own connection.
//! fn serve(socket: &Path) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut backend = Backend::listen(socket, BackendOptions::default())?;
//!     loop {
//!         let (connection, arrival) = backend.accept(None)?;
//!         println!("process {} offers a client", arrival.broker.process);
//!         // The first bytes of the client are in `arrival.preread`, if the broker has read some.
//!         let mut client = TcpStream::from(connection);
//!         // It has the flags that the broker's had.
//!         client.set_nonblocking(false)?;
//!         client.write_all(b"hello\n")?;
//!         # return Ok(());
//!     }
//! }
//! #
//! # use std::io::Read;
//! # use std::os::fd::AsFd;
//! # use handoff::broker::{Broker, BrokerOptions, Offer};
//! # let directory = tempfile::tempdir()?;
//! # let socket = directory.path().join("handoff.sock");
//! # let clients = std::net::TcpListener::bind("127.0.0.1:0")?;
//! # let mut client = TcpStream::connect(clients.local_addr()?)?;
//! # let (accepted, _) = clients.accept()?;
//! # std::thread::scope(|scope| {
//! #     let backend = scope.spawn(|| serve(&socket).unwrap());
//! #     let start = std::time::Instant::now();
//! #     let mut broker = Broker::new(&socket, BrokerOptions::default())?;
//! #     let mut adopted = false;
//! #     while !adopted && start.elapsed().as_secs() < 60 {
//! #         let verdict = broker.offer_and_wait(&Offer::new(accepted.as_fd()));
//! #         adopted = verdict.is_ok_and(|verdict| verdict.adopted);
//! #     }
//! #     assert!(adopted);
//! #     backend.join().unwrap();
//! #     drop(accepted);
//! #     let mut answer = String::new();
//! #     client.read_to_string(&mut answer)?;
//! #     assert_eq!(answer, "hello\n");
//! #     Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod accepting;
mod arrivals;
mod batch;
mod blocking;
mod channel;
mod channels;
mod error;
mod inbox;
mod kinds;
mod options;
mod rooms;
mod slots;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::claim::Lost;
use crate::handle::{Handle, HandleError, LEFTOVER_PAUSE, Waker};
use crate::listener::{Listener, ListenerOptions};
use crate::peer::Credentials;
use crate::reason::Reason;
use crate::support;
use crate::sys::arrived::Arrived;
use crate::sys::event::{Event, Happened, Wait};
use crate::sys::socket::{self, SocketKind};
use crate::wire::{Refusal, Rejection};

use accepting::{Accepting, LISTENER, Source};
use arrivals::{Arrivals, Place};
use batch::Batch;
use channel::{Channel, End};
use channels::Unfinished;
use inbox::Inbox;
use slots::Slots;

pub use error::BackendError;
pub use kinds::Kinds;
pub use options::BackendOptions;

/// An offer as the backend sees it, verified but not adopted yet.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Names the arrival for [`Backend::adopt`] and [`Backend::reject`].
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
    /// The kernel does the connection's TLS, in both directions: see [`tls`](crate::tls).
    pub tls: bool,
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
    /// Arrivals that the broker took back first, or whose channel it broke.
    pub taken_back: u64,
    /// Brokers that connected and said hello.
    pub accepted: u64,
    /// Brokers that were turned away, for any of the causes counted below.
    pub refused: u64,
    /// Channels that were ended because of a protocol error of the broker.
    pub broken: u64,
    /// Channels now.
    pub channels: usize,
    /// Arrivals held now.
    pub held: usize,
    /// Their bytes.
    pub held_bytes: usize,
    /// Bytes of memory that are kept for the bytes of arrivals to come.
    pub kept_bytes: usize,
    /// Of those refused, the ones that came when a limit of channels was reached.
    pub over_limit: u64,
    /// Those whose user the policy does not allow.
    pub refused_users: u64,
    /// The user of the last of these.
    pub last_refused_user: u32,
    /// Those that speak another version of the protocol.
    pub refused_versions: u64,
    /// Those that came when the backend began to drain.
    pub refused_draining: u64,
    /// How often the system refused the handle something: descriptors, memory, randomness. What can
    /// be tried again is; otherwise a channel ends.
    pub system_errors: u64,
    /// The error number of the last of these.
    pub last_system_error: i32,
}

/// The backend's end of the channels of one handoff socket. Used by one thread at a time.
#[derive(Debug)]
pub struct Backend {
    handle: Handle,
    accepting: Accepting,
    channels: Vec<Channel>,
    arrivals: Arrivals,
    batch: Batch,
    /// Channels with something to send.
    dirty: Vec<usize>,
    unfinished: Unfinished,
    /// Channels whose broker has gone; their places are cleared when nothing is held there.
    orphans: Vec<usize>,
    inbox: Inbox,
}

impl Backend {
    /// Makes a handoff socket at `path` and listens on it; see [`Listener::new`]. Can be done
    /// before fork(2); the handle belongs to the process that uses it first.
    pub fn listen(path: &Path, options: BackendOptions) -> Result<Backend, BackendError> {
        let options = options.checked()?;
        // Without it nobody may connect: say so before there is a socket.
        support::credentials(support::seq_packet_socket()?.as_fd())?;
        let BackendOptions { mode, backlog, .. } = options;
        let kind = SocketKind::SeqPacket;
        let handle = Handle::one_for_all()?;
        let listener = Listener::new(path, &ListenerOptions { mode, backlog, kind })?;
        Ok(Backend::new(handle, Source::Made(listener), options))
    }

    /// Listens on a duplicate of a socket that somebody else made, as a service manager does.
    pub fn listen_on(
        listener: BorrowedFd<'_>,
        options: BackendOptions,
    ) -> Result<Backend, BackendError> {
        let options = options.checked()?;
        if let Some((is, source)) = socket::is_no_listener(listener) {
            let descriptor = listener.as_raw_fd();
            return Err(BackendError::NotAListener { descriptor, is, source });
        }
        support::credentials(listener)?;
        // Those that it accepts have it from the listener, and a hello comes with a descriptor.
        socket::take_descriptors(listener);
        let duplicate = listener.try_clone_to_owned();
        let listener = duplicate.map_err(HandleError::system("duplicate the descriptor"))?;
        socket::set_nonblocking(listener.as_fd()).map_err(HandleError::system("use the socket"))?;
        Ok(Backend::new(Handle::one_for_all()?, Source::Given(listener), options))
    }

    fn new(handle: Handle, listener: Source, options: BackendOptions) -> Backend {
        Backend {
            handle,
            accepting: Accepting::new(listener),
            channels: Vec::new(),
            arrivals: Arrivals::new(options),
            batch: Batch::new(),
            dirty: Vec::new(),
            unfinished: Unfinished::default(),
            orphans: Vec::new(),
            inbox: Inbox::default(),
        }
    }

    /// The descriptor that is readable whenever [`dispatch`](Backend::dispatch) has work. It stays
    /// the same and works level- and edge-triggered.
    pub fn descriptor(&mut self) -> Result<BorrowedFd<'_>, BackendError> {
        self.enter()?;
        self.handle.wake_if_missed();
        Ok(self.handle.descriptor()?)
    }

    /// What ends a wait of this backend.
    pub fn waker(&self) -> Waker {
        self.handle.waker().clone()
    }

    /// Does everything that is due: accepts brokers, receives offers, sends verdicts.
    pub fn dispatch(&mut self) -> Result<(), BackendError> {
        let left = self.has_leftovers();
        let takes = self.batch.open;
        let spins = !left && !self.arrivals.options.spin.is_zero() && self.accepting.connected > 0;
        self.dispatch_after(if spins { Wait::Spin } else { Wait::No })?;
        if left {
            // The caller stops before the end of a batch: it goes on at once, but not if it takes
            // nothing.
            let now = Instant::now();
            let pause = if takes { Duration::ZERO } else { LEFTOVER_PAUSE };
            self.handle.wake_at(now + pause, now)?;
        }
        Ok(())
    }

    /// Waits until something is due, and does it.
    fn dispatch_after(&mut self, wait: Wait) -> Result<(), BackendError> {
        self.enter()?;
        self.batch.dispatched();
        self.accepting.dispatched();
        self.unfinished.behind = false;
        self.open_all_kept();
        self.clear_up();
        // Before a wait: verdicts of a batch that the caller has left.
        self.flush();
        self.receive_last();
        let handled = self.handle_events(wait);
        // After the wait: what was due before and is not done is asked for again. If one of these
        // fails, the others are done nevertheless.
        let resumed = self.resume_accepting();
        let expired = self.expire_hellos();
        let watched = self.watch_again();
        self.try_again();
        self.flush();
        if self.unfinished.unheard {
            self.wake_now()?;
        }
        handled.and(resumed).and(expired).and(watched)?;
        self.handle.done();
        if let (true, Some(events)) = (self.unfinished.behind, self.handle.events()) {
            // Of what is left there was an edge before. If there can be no other, a timer must do.
            let _ = events.tell_again() || self.batch.set_timer(events);
        }
        Ok(())
    }

    /// Makes the descriptor readable.
    fn wake_now(&mut self) -> Result<(), HandleError> {
        let now = Instant::now();
        self.handle.wake_at(now, now)
    }

    /// Receives what is there. Each channel has a few turns at most, mostly one, so that the work of
    /// one dispatch is bounded.
    fn handle_events(&mut self, mut wait: Wait) -> Result<(), BackendError> {
        for round in 0.. {
            let Some(events) = self.handle.events() else { break };
            let mut happened = Happened::new();
            let taken = events.take(wait, &mut happened);
            let taken = taken.map_err(HandleError::system("wait for events"))?;
            let mut more = taken == Happened::ROOM;
            wait = Wait::No;
            let mut others_come = false;
            for Event { key, readable, writable, ended } in happened.events() {
                if key == LISTENER {
                    others_come = true;
                    continue;
                }
                let index = key as usize;
                if writable {
                    self.channels[index].has_room();
                }
                if readable {
                    self.receive(index, ended);
                }
                if writable {
                    self.flush_channel(index);
                }
            }
            // Last: a broker that has gone leaves its place to another.
            if others_come {
                // They may have said hello already, and there may be more.
                more |= !self.accepting.is_done();
                self.accept_brokers();
            }
            // Events come in turn, epoll(7), and with these rounds each channel's has.
            let rounds = 2 + self.channels.len() / Happened::ROOM;
            let stop = !more || round >= rounds;
            if stop && (more || self.accepting.is_done()) {
                // No edge would tell that there is more.
                self.wake_now()?;
            }
            if stop {
                break;
            }
        }
        Ok(())
    }

    /// Takes the next arrival, to look at and then to adopt or reject. When there is no more, the
    /// verdicts on those that were adopted and rejected are sent to the brokers. In a child of
    /// fork(2) there is none: they are the parent's, see [`check_process`](Backend::check_process).
    pub fn next_arrival(&mut self) -> Option<Arrival<'_>> {
        let place = self.next_place()?;
        self.tell_of_leftovers();
        Some(self.view(place))
    }

    /// Whether there is something to take, or to look at.
    fn has_leftovers(&self) -> bool {
        self.arrivals.has_waiting() || !self.inbox.kept.is_empty()
    }

    /// Makes sure that the caller is woken for what is left, should it stop here.
    fn tell_of_leftovers(&mut self) {
        if let (true, Some(events)) = (self.has_leftovers(), self.handle.events()) {
            self.batch.set_timer(events);
        }
    }

    fn next_place(&mut self) -> Option<Place> {
        if self.handle.is_elsewhere() {
            return None;
        }
        if std::mem::take(&mut self.batch.complete) {
            self.flush();
        }
        while let Some(place) = self.next_waiting() {
            let Some(slots) = self.held(place) else {
                self.arrivals.stale_taken();
                continue;
            };
            slots.seen(place.slot);
            if slots.is_on_offer(place.slot) {
                self.batch.took();
                return Some(place);
            }
            let lost = slots.why_lost(place.slot);
            self.lose(place, lost);
        }
        self.batch.open = false;
        self.flush();
        if let (false, Some(events)) = (self.unfinished.any(), self.handle.events()) {
            self.batch.cancel_timer(events);
        }
        None
    }

    /// The next place with an arrival, also of the packets that are kept.
    fn next_waiting(&mut self) -> Option<Place> {
        loop {
            let place = self.arrivals.next_waiting();
            if place.is_some() || !self.open_kept() {
                return place;
            }
        }
    }

    fn view(&self, place: Place) -> Arrival<'_> {
        let none = Credentials { process: 0, user: u32::MAX, group: u32::MAX };
        let channel = self.channels.get(place.channel);
        let broker = channel.map_or(none, |channel| channel.broker);
        let slots = channel.and_then(|channel| channel.slots.as_ref());
        let (parts, tls) = slots.map_or(([&[][..]; 4], false), |slots| {
            let slot = slots.slot(place.slot);
            (slot.parts(), slot.has_tls())
        });
        let [service, correlation, metadata, preread] = parts;
        Arrival { id: place.id(), service, correlation, metadata, preread, broker, tls }
    }

    /// The slots among which an arrival is held.
    fn held(&mut self, place: Place) -> Option<&mut Slots> {
        let slots = self.channels.get_mut(place.channel)?.slots.as_mut()?;
        slots.holds(place.slot, place.serial).then_some(slots)
    }

    /// Adopts an arrival. After `Ok` the connection is this process's, and the broker never serves
    /// it. The verdict is sent when the next arrival is taken, or there is none; at once if this is
    /// not done as soon as it was taken. The arrival's bytes can be read until the next
    /// [`dispatch`](Backend::dispatch).
    pub fn adopt(&mut self, id: u64) -> Result<OwnedFd, BackendError> {
        self.check_process()?;
        let place = Place::of(id);
        let Some(slots) = self.held(place) else { return Err(BackendError::Unknown { id }) };
        match slots.claim(place.slot) {
            Ok(()) => {
                self.arrivals.statistics.adopted += 1;
                let descriptor = self.finish(place, None);
                descriptor.map(Arrived::accept).ok_or(BackendError::Unknown { id })
            }
            Err(lost) => {
                self.lose(place, lost);
                Err(BackendError::TakenBack { id })
            }
        }
    }

    /// Closes an arrival that cannot be adopted.
    fn lose(&mut self, place: Place, lost: Lost) {
        if lost == Lost::Impossible {
            self.end(place.channel, End::Broken);
        }
        if self.held(place).is_some() {
            self.arrivals.statistics.taken_back += 1;
            self.finish(place, Some(Reason::AckTimeout));
        }
    }

    /// Rejects an arrival: its descriptor is closed, and the broker serves the client another way.
    pub fn reject(&mut self, id: u64, reason: Reason) -> Result<(), BackendError> {
        self.check_process()?;
        let place = Place::of(id);
        let slots = self.held(place).ok_or(BackendError::Unknown { id })?;
        let taken_back = slots.is_taken_back(place.slot);
        self.arrivals.refused(taken_back);
        self.finish(place, Some(reason));
        Ok(())
    }

    /// Releases an arrival and queues its verdict, with the slot's next token. Returns its descriptor
    /// if it is adopted, and closes it otherwise.
    fn finish(&mut self, place: Place, reason: Option<Reason>) -> Option<Arrived> {
        let channel = self.channels.get_mut(place.channel)?;
        let connected = channel.is_connected();
        let slots = channel.slots.as_mut()?;
        let descriptor = slots.release((place.channel, place.slot), &mut self.arrivals.rooms);
        self.arrivals.held -= 1;
        // Closed before the broker hears of it.
        let adopted = descriptor.filter(|_| reason.is_none());
        if connected {
            slots.answer(place.slot, reason.map(Rejection::from), self.arrivals.next_token());
            let complete = !slots.others_follow(place.slot);
            // Of an adoption the words tell, too, and a broker with other tokens can wait for this
            // one.
            let may_wait = reason.is_none() && slots.broker_has_tokens();
            self.batch.complete |= complete;
            self.mark_dirty(place.channel);
            let (batch, events) = (&mut self.batch, self.handle.events());
            let later = batch.open && (!complete || (reason.is_none() && batch.goes_on()));
            if !later || !(may_wait || events.is_some_and(|events| batch.set_timer(events))) {
                self.flush();
            }
        }
        adopted
    }

    /// Grants nothing from now on and accepts no broker: those that wait are told so. Arrivals that
    /// are held can still be adopted, and so can those that come with tokens granted before.
    ///
    /// It is a use of the handle, so no copy in another process serves brokers from now on. It does
    /// not open the handle, so that a lack of descriptors or memory cannot keep it from freeing its
    /// path.
    pub fn drain(&mut self) -> Result<(), BackendError> {
        self.handle.own()?;
        self.accepting.set_remover(true);
        self.arrivals.draining = true;
        self.stop_accepting();
        for index in 0..self.channels.len() {
            if self.channels[index].hello_by().is_some() {
                self.turn_away(index, Refusal::DRAINING);
            }
            self.mark_dirty(index);
        }
        self.flush();
        Ok(())
    }

    /// What was done so far.
    pub fn statistics(&self) -> BackendStatistics {
        BackendStatistics {
            channels: self.accepting.connected,
            held: self.arrivals.held,
            held_bytes: self.arrivals.rooms.held(),
            kept_bytes: self.arrivals.rooms.kept(),
            ..self.arrivals.statistics
        }
    }

    /// Fails in another process than the one that used the handle first.
    pub fn check_process(&self) -> Result<(), BackendError> {
        Ok(self.handle.check_process()?)
    }

    /// Opens the handle at its first use, and checks that this is the process that did.
    #[inline(always)]
    fn enter(&mut self) -> Result<(), BackendError> {
        if self.handle.is_ready() { Ok(()) } else { self.open() }
    }

    #[cold]
    fn open(&mut self) -> Result<(), BackendError> {
        self.check_process()?;
        if self.handle.is_open() {
            return Ok(());
        }
        let mut events = self.handle.new_events()?;
        support::edge(&mut events)?;
        self.inbox = Inbox::new()?;
        self.arrivals.reserve(self.arrivals.options.max_in_flight)?;
        self.accepting.watch(&events).map_err(HandleError::system("watch the socket"))?;
        self.handle.open(events, self.arrivals.options.spin)?;
        self.accepting.set_remover(true);
        Ok(())
    }
}

impl Drop for Backend {
    /// Sends the verdicts that wait, so that brokers do not think that this process died, and ends
    /// the channels. In another process than the handle's it closes that process's copies only.
    fn drop(&mut self) {
        if self.handle.is_for_others() {
            self.accepting.set_remover(false);
        }
        if !self.handle.is_elsewhere() {
            self.flush();
            if let Some(events) = self.handle.events() {
                for channel in &mut self.channels {
                    channel.close(events);
                }
            }
            return;
        }
        for slots in self.channels.iter_mut().filter_map(|channel| channel.slots.as_mut()) {
            slots.close_copies();
        }
        self.inbox.kept.close_copies();
    }
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
                tls: false,
                more: false,
            };
            // SAFETY: the client is open as long as the broker.
            unsafe { self.broker.offer(&offer) }.unwrap();
        }
    }

    #[test]
    fn arrivals_can_be_adopted_when_their_numbers_begin_again() {
        let mut both = both();
        both.backend.arrivals.next_serial = arrivals::MAX_SERIAL;
        for _ in 0..2 {
            both.offer(b"");
            both.backend.dispatch().unwrap();
            let id = both.backend.next_arrival().unwrap().id;
            both.backend.adopt(id).unwrap();
        }
    }

    #[test]
    fn packet_that_was_not_looked_at_goes_with_a_channel_that_its_broker_broke() {
        let mut both = both();
        for preread in [&b"taken"[..], b"in the next packet", b"in the one after that"] {
            both.offer(preread);
        }
        both.backend.dispatch().unwrap();
        let taken = both.backend.next_place().unwrap();
        both.backend.end(taken.channel, End::Broken);
        assert!(both.backend.inbox.kept.take().is_none());
        assert!(both.backend.next_arrival().is_none());
        assert_eq!(both.backend.statistics().arrived, 1);
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
        both.backend.end(held.channel, End::Broken);
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
        assert_eq!((held, held_bytes, channels), (0, 0, 0));
    }
}
