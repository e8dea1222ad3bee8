//! The slots of one channel as the backend keeps them: which have a token, what is held in them,
//! and the verdicts that wait to be sent. State only; no I/O.

use super::rooms::{Room, Rooms};
use crate::claim::{self, ClaimTable};
use crate::memory::{self, NoMemory};
use crate::sys::arrived::Arrived;
use crate::token::Token;
use crate::wire::{self, Grant, OfferHead, Rejection};

/// So many verdicts do not wait for others.
const MANY_VERDICTS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing may arrive.
    Empty,
    /// One offer may arrive with this slot's token.
    Granted,
    /// An arrival is held that the caller has not seen.
    Waiting,
    /// An arrival is held that the caller decides on.
    Seen,
}

#[derive(Debug)]
pub(super) struct Slot {
    state: State,
    token: Token,
    generation: u64,
    /// Tells this arrival from all others of the handle.
    serial: u64,
    descriptor: Option<Arrived>,
    /// The kernel does the connection's TLS.
    tls: bool,
    /// It came last in its packet.
    last: bool,
    /// Where its bytes are: service and correlation id, each with a NUL behind it, then metadata, then
    /// preread.
    room: Room,
    lengths: [usize; 4],
}

impl Slot {
    const EMPTY: Slot = Slot {
        state: State::Empty,
        token: Token::NONE,
        generation: 0,
        serial: 0,
        descriptor: None,
        tls: false,
        last: false,
        room: Room::NONE,
        lengths: [0; 4],
    };

    fn is_held(&self) -> bool {
        matches!(self.state, State::Waiting | State::Seen)
    }

    pub(super) fn parts<'a>(&self, rooms: &'a Rooms) -> [&'a [u8]; 4] {
        let [service, correlation, metadata, preread] = self.lengths;
        let bytes = rooms.bytes(self.room);
        if bytes.len() != self.len() + NULS {
            return [&[]; 4];
        }
        let (first, rest) = bytes.split_at(service);
        let (second, rest) = rest[1..].split_at(correlation);
        let (third, rest) = rest[1..].split_at(metadata);
        [first, second, third, &rest[..preread]]
    }

    pub(super) fn has_tls(&self) -> bool {
        self.tls
    }

    /// Bytes as the limits count them: without the NULs.
    fn len(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Keeps the bytes of an offer; false if there is no memory for them.
    fn store(&mut self, offer: &wire::Offer<'_>, rooms: &mut Rooms) -> bool {
        let parts = [offer.service, offer.correlation, offer.metadata, offer.preread];
        let lengths = parts.map(<[u8]>::len);
        let Some((room, bytes)) = rooms.take(lengths.iter().sum(), NULS) else { return false };
        (self.room, self.lengths) = (room, lengths);
        for name in [offer.service, offer.correlation] {
            bytes.extend_from_slice(name);
            bytes.push(0);
        }
        bytes.extend_from_slice(offer.metadata);
        bytes.extend_from_slice(offer.preread);
        true
    }
}

/// One behind each name.
const NULS: usize = 2;

#[derive(Debug)]
pub(super) struct Slots {
    claims: ClaimTable,
    slots: Vec<Slot>,
    held: usize,
    /// How many of them the caller has not seen.
    waiting: usize,
    /// Slots that are to be granted a token, the next one last.
    owed: Vec<u32>,
    /// Entries of verdicts, one behind the other.
    verdicts: Vec<u8>,
}

impl Slots {
    /// Slots that are all owed a token. Fails if there is no memory for them.
    pub(super) fn new(claims: ClaimTable, count: usize) -> Result<Slots, NoMemory> {
        let (mut slots, mut owed) = (memory::vec(count, "slots")?, memory::vec(count, "slots")?);
        let verdicts = memory::vec(count * wire::VERDICT_LEN, "verdicts")?;
        slots.extend((0..count).map(|_| Slot::EMPTY));
        owed.extend((0..count as u32).rev());
        Ok(Slots { claims, slots, held: 0, waiting: 0, owed, verdicts })
    }

    pub(super) fn count(&self) -> usize {
        self.slots.len()
    }

    /// How many arrivals are held.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Whether slots are to be granted tokens.
    pub(super) fn are_owed(&self) -> bool {
        !self.owed.is_empty()
    }

    /// Gives tokens to slots that are owed one, as many as there are tokens and fit into `entries`,
    /// which become the entries of a frame. Returns how many: they are granted when the frame was
    /// sent, see [`granted`](Slots::granted) and [`not_granted`](Slots::not_granted).
    pub(super) fn grant(
        &mut self,
        entries: &mut [[u8; wire::GRANT_LEN]],
        mut token: impl FnMut() -> Option<Token>,
    ) -> usize {
        let mut count = 0;
        for (entry, &slot) in entries.iter_mut().zip(self.owed.iter().rev()) {
            let Some(token) = token() else { break };
            *entry = Grant { slot, token }.bytes();
            give(&mut self.slots[slot as usize], token);
            count += 1;
        }
        count
    }

    /// The grants of so many slots were sent.
    pub(super) fn granted(&mut self, count: usize) {
        self.owed.truncate(self.owed.len() - count);
    }

    /// The grants of so many slots were not sent, and their tokens are forgotten.
    pub(super) fn not_granted(&mut self, count: usize) {
        for &slot in self.owed.iter().rev().take(count) {
            let slot = &mut self.slots[slot as usize];
            slot.state = State::Empty;
            slot.token = Token::NONE;
        }
    }

    /// Wipes the token of a slot, if the offer has it; false if not, which no honest broker does.
    pub(super) fn spend(&mut self, offer: &OfferHead) -> bool {
        let Some(slot) = self.slots.get_mut(offer.slot as usize) else { return false };
        let granted = slot.state == State::Granted && slot.token == offer.token;
        if !granted || offer.generation <= slot.generation {
            return false;
        }
        slot.state = State::Empty;
        slot.token = Token::NONE;
        slot.generation = offer.generation;
        true
    }

    /// Holds an arrival until it is adopted or rejected; gives the descriptor back if there is no
    /// memory for its bytes.
    pub(super) fn hold(
        &mut self,
        offer: &wire::Offer<'_>,
        descriptor: Arrived,
        serial: u64,
        rooms: &mut Rooms,
    ) -> Result<(), Arrived> {
        let slot = &mut self.slots[offer.head.slot as usize];
        if !slot.store(offer, rooms) {
            return Err(descriptor);
        }
        slot.state = State::Waiting;
        slot.serial = serial;
        slot.descriptor = Some(descriptor);
        slot.tls = offer.head.tls;
        slot.last = false;
        self.held += 1;
        self.waiting += 1;
        Ok(())
    }

    /// What came in a slot was the last of its packet.
    pub(super) fn came_last(&mut self, slot: u32) {
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            slot.last = true;
        }
    }

    /// Whether the verdict on the arrival in a slot is to be sent with others that are still to
    /// come: those behind it in its packet, if the caller has not seen them all, up to a limit.
    pub(super) fn others_follow(&self, slot: usize) -> bool {
        let few = self.verdicts.len() < MANY_VERDICTS * wire::VERDICT_LEN;
        few && self.waiting > 0 && !self.slots[slot].last
    }

    /// Whether an arrival is held.
    pub(super) fn holds(&self, slot: usize, serial: u64) -> bool {
        self.slots.get(slot).is_some_and(|slot| slot.is_held() && slot.serial == serial)
    }

    /// The caller decides on the arrival in a slot.
    pub(super) fn seen(&mut self, slot: usize) {
        self.slots[slot].state = State::Seen;
        self.waiting -= 1;
    }

    /// The arrival that was last in a slot, with its bytes until the next turn if it was released.
    pub(super) fn slot(&self, slot: usize) -> &Slot {
        &self.slots[slot]
    }

    /// Closes the descriptors of all arrivals that are held, so that none can be adopted any more,
    /// and releases those that the caller has not seen: returns how many. The bytes of the others
    /// stay: the caller may be looking at them, and is told when it adopts.
    pub(super) fn close_held(&mut self, rooms: &mut Rooms) -> usize {
        let mut released = 0;
        for slot in &mut self.slots {
            slot.descriptor = None;
            if slot.state == State::Waiting {
                slot.state = State::Empty;
                rooms.release(slot.room, slot.len());
                released += 1;
            }
        }
        self.held -= released;
        self.waiting = 0;
        released
    }

    /// Closes the copies that a child of fork(2) has, and changes nothing about the connections.
    pub(super) fn close_copies(&mut self) {
        for slot in &mut self.slots {
            drop(slot.descriptor.take().map(Arrived::accept));
        }
    }

    /// Whether the broker still waits for the arrival in a slot.
    pub(super) fn is_on_offer(&self, slot: usize) -> bool {
        claim::is_offered(self.claims.slot(slot), self.slots[slot].generation)
    }

    /// Whether the broker has taken back what was last offered in a slot.
    pub(super) fn is_taken_back(&self, slot: usize) -> bool {
        claim::is_revoked(self.claims.slot(slot), self.slots[slot].generation)
    }

    /// Why the arrival in a slot, which is not on offer, cannot be adopted. The word may say
    /// something else by now, but nobody adopts it.
    pub(super) fn why_lost(&self, slot: usize) -> claim::Lost {
        let closed = self.slots[slot].descriptor.is_none();
        if closed || self.is_taken_back(slot) {
            claim::Lost::TooLate
        } else {
            claim::Lost::Impossible
        }
    }

    /// Claims the arrival in a slot.
    pub(super) fn claim(&self, slot: usize) -> Result<(), claim::Lost> {
        if self.slots[slot].descriptor.is_none() {
            return Err(claim::Lost::TooLate);
        }
        claim::adopt(self.claims.slot(slot), self.slots[slot].generation)
    }

    /// Releases the arrival in a slot, and returns its descriptor. Its bytes stay readable until the
    /// next turn.
    pub(super) fn release(&mut self, slot: usize, rooms: &mut Rooms) -> Option<Arrived> {
        let slot = &mut self.slots[slot];
        self.waiting -= usize::from(slot.state == State::Waiting);
        slot.state = State::Empty;
        self.held -= 1;
        rooms.release(slot.room, slot.len());
        slot.descriptor.take()
    }

    /// Adds the verdict on a slot's last offer, with the slot's next token. Without one, the slot
    /// is owed it.
    pub(super) fn answer(&mut self, slot: usize, why: Option<Rejection>, next: Option<Token>) {
        let generation = self.slots[slot].generation;
        let reason = why.map_or(0, Rejection::byte);
        let number = slot as u32;
        match &next {
            Some(token) => give(&mut self.slots[slot], *token),
            None => self.owed.push(number),
        }
        wire::Verdict { slot: number, generation, reason, next }.write(&mut self.verdicts);
    }

    /// The entries of verdicts that fit `most` bytes.
    pub(super) fn verdicts(&self, most: usize) -> &[u8] {
        &self.verdicts[..self.verdicts.len().min(most)]
    }

    /// Forgets entries that were sent.
    pub(super) fn sent(&mut self, len: usize) {
        self.verdicts.drain(..len);
    }
}

fn give(slot: &mut Slot, token: Token) {
    slot.state = State::Granted;
    slot.token = token;
}
