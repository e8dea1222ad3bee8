//! What the channels of a backend have in common: which offers are taken in, the arrivals that wait
//! for the caller, and what became of them. State only, but for what the kernel is asked about each
//! descriptor.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use super::kinds::Inspector;
use super::{BackendOptions, BackendStatistics};
use crate::reason::Reason;
use crate::token::{RandomTokens, Token};

/// Where an arrival is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub channel: usize,
    pub slot: usize,
    /// Tells this arrival from all others of the handle.
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
    /// Arrivals that the caller has not taken yet, in their order.
    pub waiting: VecDeque<Place>,
    pub next_serial: u64,
    /// Bytes of all arrivals that are held.
    pub held_bytes: usize,
    pub statistics: BackendStatistics,
    tokens: RandomTokens,
}

impl Arrivals {
    pub(super) fn new(options: BackendOptions) -> Arrivals {
        Arrivals {
            draining: false,
            inspector: Inspector::new(options.kinds),
            waiting: VecDeque::new(),
            next_serial: 1,
            held_bytes: 0,
            statistics: BackendStatistics::default(),
            tokens: RandomTokens::new(),
            options,
        }
    }

    /// A token to grant; none while the backend drains, or if the system has no randomness to give.
    pub(super) fn next_token(&mut self) -> Option<Token> {
        if self.draining { None } else { self.tokens.generate().ok() }
    }

    /// Why an arrival of so many bytes is not held, if it is not. Its descriptor comes with whether
    /// it is open for writing; none was lost on arrival.
    pub(super) fn refusal(
        &mut self,
        arrived: Option<&(OwnedFd, bool)>,
        cookie: u64,
        len: usize,
    ) -> Option<Reason> {
        let full = self.held_bytes.saturating_add(len) > self.options.max_held_bytes;
        match arrived {
            None => Some(Reason::DescriptorPressure),
            Some(_) if full => Some(Reason::BackendBusy),
            Some((descriptor, open)) => self.inspector.refusal(descriptor, *open, cookie),
        }
    }

    /// Counts an arrival of so many bytes, and queues it for the caller. Returns its serial number.
    pub(super) fn add(&mut self, channel: usize, slot: usize, len: usize) -> u64 {
        let serial = self.next_serial;
        self.next_serial = (serial + 1) & MAX_SERIAL;
        self.held_bytes += len;
        self.waiting.push_back(Place { channel, slot, serial });
        serial
    }
}
