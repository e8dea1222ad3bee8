//! Brokers that connect: accepting them, pausing when the system refuses, and their first word.

use std::collections::{TryReserveError, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::channel::{self, Channel, End};
use super::{Backend, BackendError, BackendOptions};
use crate::handle::GREETING_TIMEOUT;
use crate::listener::Listener;
use crate::peer::{self, PeerError, Policy};
use crate::sys::event::{self, Events};
use crate::sys::{self, socket, user};
use crate::watched::WatchedSocket;
use crate::wire::Refusal;

/// The key of the listening socket among the events; those of the channels are their indices.
pub(super) const LISTENER: u64 = event::HIGHEST_KEY;
/// How many connections are accepted in one dispatch: so strangers who connect without end take
/// little of it.
const MAX_ACCEPTS: usize = 16;
/// How many of those who wait are told that the backend drains; more do not wait where a backend is
/// not stuck.
const MAX_LAST_ACCEPTS: usize = 256;
/// How long no broker is accepted after the system refused one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What accepting brokers depends on.
#[derive(Debug)]
pub(super) struct Accepting {
    /// None while the backend drains.
    pub listener: Option<Source>,
    /// No broker is accepted until then.
    resume_at: Option<Instant>,
    /// How many connections this dispatch may still accept.
    accepts_left: usize,
    /// Brokers that are connected.
    pub connected: usize,
    /// Those that have not said hello yet.
    pub awaiting_hello: usize,
    /// When each of those must have said it, in that order, with its channel; and some that have
    /// said it or have gone.
    greetings: VecDeque<(Instant, usize)>,
    /// Places among the channels that are not used.
    unused: Vec<usize>,
    /// How many places each user has, by the user's number.
    places: Vec<(u32, usize)>,
}

#[derive(Debug)]
pub(super) enum Source {
    Made(Listener),
    Given(OwnedFd),
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Source::Made(listener) => listener.as_fd(),
            Source::Given(listener) => listener.as_fd(),
        }
    }
}

impl Accepting {
    pub(super) fn new(listener: Source) -> Accepting {
        Accepting {
            listener: Some(listener),
            resume_at: None,
            accepts_left: 0,
            connected: 0,
            awaiting_hello: 0,
            greetings: VecDeque::new(),
            unused: Vec::new(),
            places: Vec::new(),
        }
    }

    /// Sets whether this process removes the socket's file, of all that have a copy of the handle.
    pub(super) fn set_remover(&mut self, ours: bool) {
        if let Some(Source::Made(listener)) = &mut self.listener {
            listener.set_remover(ours);
        }
    }

    /// A dispatch begins.
    pub(super) fn dispatched(&mut self) {
        self.accepts_left = MAX_ACCEPTS;
    }

    /// Whether this dispatch has accepted as many as it may.
    pub(super) fn is_done(&self) -> bool {
        self.accepts_left == 0
    }

    /// Has the handle's descriptor tell when a broker connects.
    pub(super) fn watch(&self, events: &Events) -> io::Result<()> {
        match &self.listener {
            Some(listener) => events.add(listener.as_fd(), LISTENER),
            None => Ok(()),
        }
    }

    /// Accepts one connection, if there is one.
    fn accept(&mut self) -> io::Result<Option<OwnedFd>> {
        let Some(listener) = self.listener.as_ref().filter(|_| self.resume_at.is_none()) else {
            return Ok(None);
        };
        while self.accepts_left > 0 {
            self.accepts_left -= 1;
            match socket::accept_nonblocking(listener.as_fd()) {
                Ok(descriptor) => return Ok(Some(descriptor)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // This connection failed, accept(2); the next one may not.
                Err(error) if is_of_connection(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Accepts nothing for a while: the listener stays readable, and looking at it again and again
    /// would not help. It is watched until a timer is set, so that it is not forgotten.
    fn pause(&mut self, events: &mut Events, now: Instant) -> io::Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        let until = now + ACCEPT_PAUSE;
        events.timer.wake_at(until, now)?;
        events.pause(listener.as_fd(), LISTENER, true)?;
        self.resume_at = Some(until);
        Ok(())
    }

    /// The place that a broker of a user may take, if there is one left for it.
    fn place(
        &self,
        user: u32,
        options: &BackendOptions,
        channels: usize,
    ) -> Result<usize, Refusal> {
        let (taken, most) =
            (self.user(user).map_or(0, |at| self.places[at].1), options.channels_of_one_user());
        if taken >= most && most < options.max_channels {
            return Err(Refusal::channels_of_user(user, most));
        }
        let more = (channels < options.max_channels).then_some(channels);
        let place = self.unused.last().copied().or(more);
        place.ok_or_else(|| Refusal::channels(options.max_channels))
    }

    /// A broker has taken the place that [`place`](Accepting::place) returned.
    fn join(&mut self, user: u32, place: usize, hello_by: Instant) {
        self.unused.pop();
        match self.user(user) {
            Ok(at) => self.places[at].1 += 1,
            Err(at) => self.places.insert(at, (user, 1)),
        }
        self.connected += 1;
        self.awaiting_hello += 1;
        self.greetings.push_back((hello_by, place));
    }

    /// A place is not used any more.
    pub(super) fn leave(&mut self, place: usize, user: u32) {
        self.unused.push(place);
        if let Ok(at) = self.user(user) {
            self.places[at].1 -= 1;
            if self.places[at].1 == 0 {
                self.places.remove(at);
            }
        }
    }

    /// Where a user is among those who have places, or would be.
    fn user(&self, user: u32) -> Result<usize, usize> {
        self.places.binary_search_by_key(&user, |&(user, _)| user)
    }
}

/// Whether accept(2) failed because of the connection that it was to return.
fn is_of_connection(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EPROTO | libc::ETIMEDOUT))
}

impl Backend {
    pub(super) fn accept_brokers(&mut self) {
        let now = Instant::now();
        loop {
            match self.accepting.accept() {
                Ok(Some(descriptor)) => self.admit(descriptor, now),
                Ok(None) => return,
                Err(error) => {
                    self.arrivals.system_refused(&error);
                    // If it cannot pause, the listener is looked at again.
                    let events = self.handle.events();
                    let _ = events.map(|events| self.accepting.pause(events, now));
                    return;
                }
            }
        }
    }

    /// Has a channel for a connection if its peer may have one; closes it if not.
    fn admit(&mut self, descriptor: OwnedFd, now: Instant) {
        let BackendOptions { users, groups, .. } = &self.arrivals.options;
        let broker = match peer::check(descriptor.as_fd(), &Policy { users, groups }) {
            Ok(broker) => broker,
            // Nothing is known against the peer.
            Err(
                PeerError::Unknown { source, .. } | PeerError::InvalidDescriptor { source, .. },
            ) => return self.come_short(descriptor.as_fd(), &source),
            Err(
                PeerError::NotAllowed { credentials, .. } | PeerError::Nameless { credentials, .. },
            ) => {
                let user = credentials.user;
                let listed = !users.is_empty() || !groups.is_empty();
                let nameless = !user::names_one_user(user);
                let own = sys::effective_user();
                return self.refuse(descriptor, Refusal::not_allowed(user, nameless, listed, own));
            }
        };
        let place = match self.place(broker.user) {
            Ok(place) => place,
            Err(refusal) => return self.refuse(descriptor, refusal),
        };
        let socket = WatchedSocket::new(descriptor, place as u64);
        let hello_by = now + GREETING_TIMEOUT;
        // What can fail comes first, and the last of it is what would have to be undone.
        let ready = self.make_room().and_then(|()| {
            let Some(events) = self.handle.events() else { return Ok(()) };
            events.timer.wake_at(hello_by, now)?;
            socket.watch(events)
        });
        if let Err(error) = ready {
            return self.come_short(socket.as_fd(), &error);
        }
        self.accepting.join(broker.user, place, hello_by);
        let mut channel = Channel::new(socket, broker, hello_by);
        match self.channels.get_mut(place) {
            Some(unused) => {
                channel.dirty = unused.dirty;
                *unused = channel;
            }
            None => self.channels.push(channel),
        }
        self.forget_greetings();
    }

    /// A place for the channel of a broker of this user.
    fn place(&mut self, user: u32) -> Result<usize, Refusal> {
        let find = |backend: &Backend| {
            let count = backend.channels.len();
            backend.accepting.place(user, &backend.arrivals.options, count)
        };
        find(self).or_else(|_| {
            // Of brokers that have gone since this dispatch began.
            self.clear_up();
            find(self)
        })
    }

    /// Tells who connected why it is turned away, and closes the connection.
    fn refuse(&mut self, descriptor: OwnedFd, refusal: Refusal) {
        channel::say(descriptor.as_fd(), &refusal);
        self.arrivals.turned_away(&refusal);
    }

    /// The system refuses what a channel for a connection needs: tells who connected.
    fn come_short(&mut self, connection: BorrowedFd<'_>, error: &io::Error) {
        channel::say(connection, &Refusal::short(error.raw_os_error().unwrap_or(0)));
        self.arrivals.system_refused(error);
    }

    /// Stops listening. Those who wait are told so, unless others accept from the same socket.
    pub(super) fn stop_accepting(&mut self) {
        let Some(listener) = self.accepting.listener.take() else { return };
        if let Some(events) = self.handle.events() {
            events.remove(listener.as_fd());
        }
        if matches!(listener, Source::Given(_)) {
            return;
        }
        for _ in 0..MAX_LAST_ACCEPTS {
            let Ok(descriptor) = socket::accept_nonblocking(listener.as_fd()) else { return };
            self.refuse(descriptor, Refusal::DRAINING);
        }
    }

    /// Has memory for one more channel in every list of channels.
    fn make_room(&mut self) -> io::Result<()> {
        let mut reserve = || -> Result<(), TryReserveError> {
            let Accepting { greetings, unused, places, .. } = &mut self.accepting;
            self.channels.try_reserve(1)?;
            greetings.try_reserve(1)?;
            places.try_reserve(1)?;
            let count = self.channels.len() + 1;
            for list in [unused, &mut self.orphans, &mut self.dirty] {
                list.try_reserve(count.saturating_sub(list.len()))?;
            }
            Ok(())
        };
        reserve().map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))
    }

    /// Forgets those that were said, when they are the greater part.
    fn forget_greetings(&mut self) {
        let Accepting { greetings, awaiting_hello, .. } = &mut self.accepting;
        if greetings.len() > 2 * *awaiting_hello + MAX_ACCEPTS {
            let channels = &self.channels;
            greetings.retain(|&(hello_by, index)| channels[index].hello_by() == Some(hello_by));
        }
    }

    /// Accepts brokers again after a pause; if the system refuses that, after another one.
    pub(super) fn resume_accepting(&mut self) -> Result<(), BackendError> {
        let Accepting { listener, resume_at, .. } = &mut self.accepting;
        let (Some(until), Some(listener)) = (*resume_at, listener) else { return Ok(()) };
        let Some(events) = self.handle.events() else { return Ok(()) };
        let (mut until, now) = (until, Instant::now());
        if until <= now {
            let Err(error) = events.pause(listener.as_fd(), LISTENER, false) else {
                *resume_at = None;
                return Ok(());
            };
            self.arrivals.system_refused(&error);
            until = now + ACCEPT_PAUSE;
            *resume_at = Some(until);
        }
        Ok(self.handle.wake_at(until, now)?)
    }

    /// Ends channels whose broker has not said hello in time.
    pub(super) fn expire_hellos(&mut self) -> Result<(), BackendError> {
        if self.accepting.greetings.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        while let Some(&(hello_by, index)) = self.accepting.greetings.front() {
            let awaited = self.channels[index].hello_by() == Some(hello_by);
            if awaited && hello_by > now {
                return Ok(self.handle.wake_at(hello_by, now)?);
            }
            self.accepting.greetings.pop_front();
            if awaited {
                self.end(index, End::Broken);
            }
        }
        Ok(())
    }
}
