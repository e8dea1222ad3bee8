//! The slots of one channel as the backend keeps them: which have a token, what is held in them, and
//! the verdicts that wait to be sent. State only; no I/O.

use std::os::fd::OwnedFd;

use crate::claim::{self, ClaimTable};
use crate::peer::Credentials;
use crate::reason::Reason;
use crate::token::Token;
use crate::wire::{self, OfferHead};

/// A held arrival's bytes stay in room that is kept for the next one, unless it is more than this.
const KEPT_BYTES: usize = 16384;

const NO_TOKEN: Token = Token::from_bytes([0; Token::LEN]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing may arrive.
    Empty,
    /// One offer may arrive with this slot's token.
    Granted,
    /// An arrival is held.
    Held,
}

#[derive(Debug)]
pub(super) struct Slot {
    state: State,
    token: Token,
    generation: u64,
    /// Tells this arrival from all others of the handle.
    serial: u64,
    descriptor: Option<OwnedFd>,
    /// Service and correlation id, each with a NUL behind it, then metadata, then preread.
    bytes: Vec<u8>,
    lengths: [usize; 4],
}

impl Slot {
    pub(super) fn parts(&self) -> [&[u8]; 4] {
        let [service, correlation, metadata, preread] = self.lengths;
        let (first, rest) = self.bytes.split_at(service);
        let (second, rest) = rest[1..].split_at(correlation);
        let (third, rest) = rest[1..].split_at(metadata);
        [first, second, third, &rest[..preread]]
    }

    /// Bytes as the limits count them: without the NULs.
    fn len(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn store(&mut self, offer: &wire::Offer<'_>) {
        self.bytes.clear();
        for name in [offer.service, offer.correlation] {
            self.bytes.extend_from_slice(name);
            self.bytes.push(0);
        }
        self.bytes.extend_from_slice(offer.metadata);
        self.bytes.extend_from_slice(offer.preread);
        let parts = [offer.service, offer.correlation, offer.metadata, offer.preread];
        self.lengths = parts.map(<[u8]>::len);
    }
}

#[derive(Debug)]
pub(super) struct Slots {
    /// The broker, as it was when it connected.
    pub broker: Credentials,
    claims: ClaimTable,
    slots: Vec<Slot>,
    held: usize,
    /// Entries of verdicts, one behind the other.
    verdicts: Vec<u8>,
}

impl Slots {
    pub(super) fn new(broker: Credentials, claims: ClaimTable, count: usize) -> Slots {
        let empty = || Slot {
            state: State::Empty,
            token: NO_TOKEN,
            generation: 0,
            serial: 0,
            descriptor: None,
            bytes: Vec::new(),
            lengths: [0; 4],
        };
        Slots {
            broker,
            claims,
            slots: (0..count).map(|_| empty()).collect(),
            held: 0,
            verdicts: Vec::with_capacity(count * wire::VERDICT_LEN),
        }
    }

    /// How many arrivals are held.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Gives a token to an empty slot.
    pub(super) fn grant(&mut self, slot: usize, token: Token) {
        self.slots[slot].state = State::Granted;
        self.slots[slot].token = token;
    }

    /// Wipes the token of a slot, if the offer has it; false if not, which no honest broker does.
    pub(super) fn spend(&mut self, offer: &OfferHead) -> bool {
        let Some(slot) = self.slots.get_mut(offer.slot as usize) else { return false };
        let granted = slot.state == State::Granted && slot.token == offer.token;
        if !granted || offer.generation <= slot.generation {
            return false;
        }
        slot.state = State::Empty;
        slot.token = NO_TOKEN;
        slot.generation = offer.generation;
        true
    }

    /// Holds an arrival until it is adopted or rejected.
    pub(super) fn hold(&mut self, offer: &wire::Offer<'_>, descriptor: OwnedFd, serial: u64) {
        let slot = &mut self.slots[offer.head.slot as usize];
        slot.state = State::Held;
        slot.serial = serial;
        slot.descriptor = Some(descriptor);
        slot.store(offer);
        self.held += 1;
    }

    /// The arrival that is held in a slot.
    pub(super) fn find(&self, slot: usize, serial: u64) -> Option<&Slot> {
        self.slots.get(slot).filter(|slot| slot.state == State::Held && slot.serial == serial)
    }

    /// The arrival that was last in a slot, with its bytes until the slot is used again.
    pub(super) fn slot(&self, slot: usize) -> &Slot {
        &self.slots[slot]
    }

    /// Closes the descriptors of all arrivals that are held, so that none can be adopted any more.
    /// Their bytes stay: the caller may be looking at them, and is told when it adopts.
    pub(super) fn close_held(&mut self) {
        for slot in &mut self.slots {
            slot.descriptor = None;
        }
    }

    /// Whether the broker still waits for the arrival in a slot.
    pub(super) fn is_on_offer(&self, slot: usize) -> bool {
        claim::is_offered(self.claims.slot(slot), self.slots[slot].generation)
    }

    /// Claims the arrival in a slot.
    pub(super) fn claim(&self, slot: usize) -> Result<(), claim::Lost> {
        if self.slots[slot].descriptor.is_none() {
            return Err(claim::Lost::TooLate);
        }
        claim::adopt(self.claims.slot(slot), self.slots[slot].generation)
    }

    /// Releases the arrival in a slot: its descriptor, and how many bytes are not held any more.
    /// They stay readable until the slot is used again.
    pub(super) fn release(&mut self, slot: usize) -> (Option<OwnedFd>, usize) {
        let slot = &mut self.slots[slot];
        slot.state = State::Empty;
        self.held -= 1;
        (slot.descriptor.take(), slot.len())
    }

    /// Adds the verdict on a slot's last offer, with the slot's next token if there is one.
    pub(super) fn answer(&mut self, slot: usize, reason: Option<Reason>, next: Option<Token>) {
        let generation = self.slots[slot].generation;
        let reason = reason.map_or(0, |reason| reason as u8);
        wire::Verdict { slot: slot as u32, generation, reason, next }.write(&mut self.verdicts);
        if let Some(token) = next {
            self.grant(slot, token);
        }
    }

    /// Gives memory back that large arrivals took, before their slots are used again.
    pub(super) fn shrink(&mut self, slot: usize) {
        let bytes = &mut self.slots[slot].bytes;
        if bytes.capacity() > KEPT_BYTES {
            *bytes = Vec::new();
        }
    }

    /// The entries of verdicts that fit the next packet.
    pub(super) fn verdicts(&self) -> &[u8] {
        const MOST: usize = 1024 * wire::VERDICT_LEN;
        &self.verdicts[..self.verdicts.len().min(MOST)]
    }

    /// Forgets entries that were sent.
    pub(super) fn sent(&mut self, len: usize) {
        self.verdicts.drain(..len);
    }
}
