//! Brokers that connect: accepting them, pausing when the system refuses, and their first word.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::channel::{Channel, End};
use super::{Backend, BackendError, BackendOptions};
use crate::handle::{GREETING_TIMEOUT, HandleError};
use crate::listener::Listener;
use crate::peer::{self, Policy};
use crate::sys::event::Events;
use crate::sys::packet;

/// The key of the listening socket among the events; those of the channels are their indices.
pub(super) const LISTENER: u64 = u64::MAX - 1;
/// How many brokers are accepted before others have their turn.
const MAX_ACCEPTS: usize = 64;
/// How long no broker is accepted after the system refused one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What accepting brokers depends on.
#[derive(Debug)]
pub(super) struct Accepting {
    /// None while the backend drains.
    pub listener: Option<Source>,
    /// No broker is accepted until then.
    pub resume_at: Option<Instant>,
    /// Channels whose broker has not said hello yet.
    pub awaiting_hello: usize,
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
        Accepting { listener: Some(listener), resume_at: None, awaiting_hello: 0 }
    }

    /// Has the handle's descriptor tell when a broker connects.
    pub(super) fn watch(&self, events: &Events) -> Result<(), HandleError> {
        match &self.listener {
            Some(listener) => events
                .add(listener.as_fd(), LISTENER)
                .map_err(HandleError::system("watch the socket")),
            None => Ok(()),
        }
    }

    /// Accepts one connection, if there is one.
    fn accept(&mut self, events: &mut Events, now: Instant) -> Option<OwnedFd> {
        let listener = self.listener.as_ref()?.as_fd();
        match packet::accept_nonblocking(listener) {
            Ok(descriptor) => Some(descriptor),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            // Out of descriptors: the listener stays readable, and looking at it again and again
            // would not help.
            Err(_) => {
                let until = now + ACCEPT_PAUSE;
                events.remove(listener);
                let _ = events.wake_at(until, now);
                self.resume_at = Some(until);
                None
            }
        }
    }
}

impl Backend {
    pub(super) fn accept_brokers(&mut self, now: Instant) {
        for _ in 0..MAX_ACCEPTS {
            let Some(events) = self.handle.events() else { return };
            let Some(descriptor) = self.accepting.accept(events, now) else { return };
            let BackendOptions { users, groups, max_channels, .. } = &self.arrivals.options;
            let allowed = peer::check(descriptor.as_fd(), &Policy { users, groups });
            let place = self.channels.iter().position(Channel::is_unused);
            let more = self.channels.len() < *max_channels;
            let place = place.or(more.then_some(self.channels.len()));
            let (Ok(broker), Some(place)) = (allowed, place) else {
                self.arrivals.statistics.refused += 1;
                continue;
            };
            let hello_by = now + GREETING_TIMEOUT;
            if events.add(descriptor.as_fd(), place as u64).is_err()
                || events.wake_at(hello_by, now).is_err()
            {
                self.arrivals.statistics.refused += 1;
                continue;
            }
            let channel = Channel::new(descriptor, broker, hello_by);
            match self.channels.get_mut(place) {
                Some(unused) => *unused = channel,
                None => self.channels.push(channel),
            }
            self.arrivals.statistics.accepted += 1;
            self.accepting.awaiting_hello += 1;
        }
    }

    pub(super) fn resume_accepting(&mut self, now: Instant) -> Result<(), BackendError> {
        let Some(resume_at) = self.accepting.resume_at else { return Ok(()) };
        if self.accepting.listener.is_none() {
            return Ok(());
        }
        if resume_at > now {
            return Ok(self.handle.wake_at(resume_at, now)?);
        }
        self.accepting.resume_at = None;
        match self.handle.events() {
            Some(events) => Ok(self.accepting.watch(events)?),
            None => Ok(()),
        }
    }

    /// Ends channels whose broker has not said hello in time.
    pub(super) fn expire_hellos(&mut self, now: Instant) -> Result<(), BackendError> {
        if self.accepting.awaiting_hello == 0 {
            return Ok(());
        }
        let mut next: Option<Instant> = None;
        for index in 0..self.channels.len() {
            match self.channels[index].hello_by() {
                Some(hello_by) if hello_by <= now => self.end(index, End::Broken),
                Some(hello_by) => next = Some(next.map_or(hello_by, |next| next.min(hello_by))),
                None => {}
            }
        }
        match next {
            Some(next) => Ok(self.handle.wake_at(next, now)?),
            None => Ok(()),
        }
    }
}
