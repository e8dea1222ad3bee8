//! What the channels of a backend have in common: which offers are taken in, the arrivals that wait
//! for the caller, and what became of them. State only, but for what the kernel is asked about each
//! descriptor.

use std::collections::VecDeque;
use std::io;

use super::kinds::Inspector;
use super::rooms::Rooms;
use super::slots::Slots;
use super::{BackendOptions, BackendStatistics};
use crate::memory::{self, NoMemory};
use crate::reason::Reason;
use crate::sys::arrived::Arrived;
use crate::token::{RandomTokens, Token, TokenError};
use crate::wire::{self, Refusal, Rejection, cause};

/// Where an arrival is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub channel: usize,
    pub slot: usize,
    /// Tells this arrival from those that had its slot before, back to billions of arrivals.
    pub serial: u64,
}

/// An arrival's id: serial number, channel, slot.
const CHANNEL_SHIFT: u32 = 12;
const SERIAL_SHIFT: u32 = 28;
pub(super) const MAX_SERIAL: u64 = u64::MAX >> SERIAL_SHIFT;

impl Place {
    pub(super) fn id(self) -> u64 {
        self.serial << SERIAL_SHIFT | (self.channel as u64) << CHANNEL_SHIFT | self.slot as u64
    }

    pub(super) fn of(id: u64) -> Place {
        Place {
            channel: (id >> CHANNEL_SHIFT & 0xffff) as usize,
            slot: (id & 0xfff) as usize,
            serial: id >> SERIAL_SHIFT,
        }
    }
}

#[derive(Debug)]
pub(super) struct Arrivals {
    pub options: BackendOptions,
    /// No tokens are granted any more.
    pub draining: bool,
    pub inspector: Inspector,
    /// Arrivals that the caller has not taken yet, in their order, and some that are not held any
    /// more.
    waiting: VecDeque<Place>,
    /// How many of them are not held any more.
    stale: usize,
    pub next_serial: u64,
    /// How many arrivals are held.
    pub held: usize,
    /// Their bytes.
    pub rooms: Rooms,
    pub statistics: BackendStatistics,
    tokens: RandomTokens,
}

impl Arrivals {
    pub(super) fn new(options: BackendOptions) -> Arrivals {
        Arrivals {
            draining: false,
            inspector: Inspector::new(options.kinds),
            waiting: VecDeque::new(),
            stale: 0,
            next_serial: 1,
            held: 0,
            rooms: Rooms::new(options.max_held_bytes, options.max_kept_bytes),
            statistics: BackendStatistics::default(),
            tokens: RandomTokens::new(),
            options,
        }
    }

    /// Whether arrivals wait for the caller.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting.len() > self.stale
    }

    /// A token to grant; none while the backend drains, or if the system has no randomness to give.
    pub(super) fn next_token(&mut self) -> Option<Token> {
        if self.draining {
            return None;
        }
        match self.tokens.generate() {
            Ok(token) => Some(token),
            Err(TokenError::Random(error)) => {
                self.system_refused(&error);
                None
            }
            Err(_) => None,
        }
    }

    /// Counts what the system refused: that is no broker's fault.
    pub(super) fn system_refused(&mut self, error: &io::Error) {
        self.statistics.system_errors += 1;
        self.statistics.last_system_error = error.raw_os_error().unwrap_or(0);
    }

    /// Counts a broker that was turned away, by the cause.
    pub(super) fn turned_away(&mut self, refusal: &Refusal) {
        let statistics = &mut self.statistics;
        statistics.refused += 1;
        match refusal.cause {
            cause::NOT_ALLOWED => {
                statistics.refused_users += 1;
                statistics.last_refused_user = refusal.user;
            }
            cause::VERSION => statistics.refused_versions += 1,
            cause::DRAINING => statistics.refused_draining += 1,
            _ => statistics.refused_over_limit += 1,
        }
    }

    /// Why an arrival of so many bytes is not held, if it is not. Its descriptor comes with whether
    /// it is certainly over TCP; none was lost on arrival.
    pub(super) fn rejection(
        &mut self,
        arrived: Option<&(Arrived, bool)>,
        cookie: u64,
        tls: bool,
        len: usize,
    ) -> Option<Rejection> {
        match arrived {
            None => {
                // The system does not say why it has dropped it. Mostly this limit is reached.
                self.system_refused(&io::Error::from_raw_os_error(libc::EMFILE));
                Some(Reason::DescriptorPressure.into())
            }
            Some(_) if !self.rooms.allows(len) => Some(Reason::BackendBusy.into()),
            Some((descriptor, over_tcp)) => {
                self.inspector.rejection(descriptor, *over_tcp, cookie, tls)
            }
        }
    }

    /// Counts an arrival that is not held, or not any more: it is rejected, unless the broker was
    /// first and took it back.
    pub(super) fn rejected(&mut self, taken_back: bool) {
        if taken_back {
            self.statistics.taken_back += 1;
        } else {
            self.statistics.rejected += 1;
        }
    }

    /// Holds an arrival in its slot and queues it for the caller; gives the descriptor back if
    /// there is no memory for that.
    pub(super) fn hold(
        &mut self,
        channel: usize,
        slots: &mut Slots,
        offer: &wire::Offer<'_>,
        descriptor: Arrived,
    ) -> Result<(), Arrived> {
        if self.waiting.try_reserve(1).is_err() {
            return Err(descriptor);
        }
        let (slot, serial) = (offer.head.slot as usize, self.next_serial);
        slots.hold(offer, descriptor, serial, &mut self.rooms)?;
        // So that no id is 0.
        self.next_serial = ((serial + 1) & MAX_SERIAL).max(1);
        self.held += 1;
        self.waiting.push_back(Place { channel, slot, serial });
        Ok(())
    }

    /// Has room for so many arrivals from the start.
    pub(super) fn reserve(&mut self, count: usize) -> Result<(), NoMemory> {
        self.waiting = memory::queue(count, "arrivals")?;
        Ok(())
    }

    /// The next place in which an arrival was queued. It may not be held any more.
    pub(super) fn next_waiting(&mut self) -> Option<Place> {
        self.waiting.pop_front()
    }

    /// What came from there was not held any more.
    pub(super) fn stale_taken(&mut self) {
        self.stale = self.stale.saturating_sub(1);
    }

    /// So many of the queued arrivals have become stale; `is_held` tells which are not. They are
    /// removed when they are the greater part, so that each costs a few steps in the long run.
    pub(super) fn add_stale(&mut self, count: usize, is_held: impl Fn(&Place) -> bool) {
        self.held -= count;
        self.stale += count;
        if self.stale > self.waiting.len() / 2 {
            self.waiting.retain(is_held);
            self.stale = 0;
        }
    }
}
