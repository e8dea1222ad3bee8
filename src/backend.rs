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
mod deciding;
mod error;
mod inbox;
mod kinds;
mod options;
mod rooms;
mod slots;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::handle::{Handle, HandleError, Waker};
use crate::listener::{Listener, ListenerOptions};
use crate::peer::Credentials;
use crate::support;
use crate::sys::event::{Event, Happened, Wait};
use crate::sys::socket::{self, SocketKind};
use crate::wire::Refusal;

use accepting::{Accepting, LISTENER, Source};
use arrivals::Arrivals;
use batch::{BATCH_PAUSE, Batch};
use channel::{Channel, Which};
use channels::Unfinished;
use inbox::Inbox;

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
    pub refused_over_limit: u64,
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
    /// When what has happened was last asked for, and handled.
    looked_at: Instant,
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
            looked_at: Instant::now(),
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
            let pause = if takes { Duration::ZERO } else { BATCH_PAUSE };
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
        self.inbox.begin_turn();
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
        self.tell_of_what_is_behind();
        Ok(())
    }

    /// Makes the descriptor readable.
    fn wake_now(&mut self) -> Result<(), HandleError> {
        let now = Instant::now();
        self.handle.wake_at(now, now)
    }

    /// Receives what is there, from the only channel without asking first. Each channel has a few turns at
    /// most, mostly one, so that the work of one dispatch is bounded. Where there is one channel, and it
    /// mostly has several packets, the others are received when the arrivals of the first are taken.
    fn handle_events(&mut self, mut wait: Wait) -> Result<(), BackendError> {
        if matches!(wait, Wait::No) && self.receive_first() {
            return Ok(());
        }
        for round in 0.. {
            let Some(events) = self.handle.events() else { break };
            let mut happened = Happened::new();
            let taken = events.take(wait, &mut happened);
            let taken = taken.map_err(HandleError::system("wait for events"))?;
            let mut more = taken == Happened::ROOM;
            wait = Wait::No;
            // In a later round others may have come.
            let few = self.few();
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
                    self.receive(index, if ended { Which::All } else { few });
                }
                if writable {
                    self.flush_channel(index);
                }
            }
            self.looked_at = Instant::now();
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
        self.tell_of_the_end();
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
    }
}
