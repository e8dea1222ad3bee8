//! The slots of one channel as the broker keeps them: which have a token, the offers in them with
//! their deadlines, and what waits to be sent. State only; no I/O.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::RawFd;
use std::time::Instant;

use super::copies::NO_COPY;
use crate::deadlines::Deadlines;
use crate::memory::{self, NoMemory};
use crate::token::Token;
use crate::wire::{self, MAX_DESCRIPTORS, MAX_FRAME_LEN, OFFER_LEN, OfferHead};

/// Where a slot is on its way around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Without a token: nothing can be offered in it.
    Empty,
    /// With a token.
    Granted,
    /// With an offer that waits to be sent.
    Queued,
    /// With an offer that was sent.
    Sent,
    /// Its offer was settled through the claim table; the backend's verdict is still to come.
    Settled {
        /// How it was settled.
        adopted: bool,
    },
}

/// What is known of an offer beside its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub id: u64,
    pub user_data: usize,
    /// Its caller waits for the verdict.
    pub awaited: bool,
    /// The caller's, who keeps it open until the verdict.
    pub descriptor: RawFd,
    /// Its copy among those for failover, or [`NO_COPY`].
    pub copy: u32,
    /// When this backend was offered it.
    pub offered_at: Instant,
    /// It is the trial of a backend that rests.
    pub trial: bool,
}

impl Facts {
    /// Those of no offer.
    pub(super) fn none(now: Instant) -> Facts {
        Facts {
            id: 0,
            user_data: 0,
            awaited: false,
            descriptor: -1,
            copy: NO_COPY,
            offered_at: now,
            trial: false,
        }
    }
}

/// The bytes of an offer: its names and metadata, and preread; and what they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    /// Service, correlation, metadata.
    pub names: [&'a [u8]; 3],
    pub preread: &'a [IoSlice<'a>],
    /// The kernel does the connection's TLS.
    pub tls: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub state: State,
    pub generation: u64,
    pub facts: Facts,
    token: Token,
    /// The number of its entry in the queue.
    entry: u32,
}

const NONE: u32 = u32::MAX;
/// So many entries for each slot may be in the queue before those that were taken back are removed.
const ENTRIES_PER_SLOT: usize = 2;

/// An offer that waits to be sent, or waited until it was taken back: then its slot is [`NONE`].
#[derive(Clone, Copy, Debug)]
struct Queued {
    slot: u32,
    len: u32,
}

#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// Slots in the state Granted, the last used first: its memory is warm.
    granted: Vec<u32>,
    in_flight: usize,
    /// How many were in flight when something was last received, if any were.
    usual: usize,
    /// Offers that were sent and settled, and that the backend has not answered.
    unanswered: usize,
    /// Those of the offers in flight, by their slots.
    deadlines: Deadlines,
    /// Neither the first nor the last was taken back.
    queue: VecDeque<Queued>,
    /// The number of the first entry of `queue`: they are numbered on from the first there ever
    /// was.
    front: u32,
    /// The entries of `queue`, one behind the other from `sent` on.
    bytes: Vec<u8>,
    sent: usize,
    /// How many of the bytes behind `sent` are of offers that were taken back.
    taken_back: usize,
}

impl Slots {
    pub(super) fn new(slots: usize) -> Result<Slots, NoMemory> {
        let facts = Facts::none(Instant::now());
        let empty =
            Slot { state: State::Empty, generation: 0, facts, token: Token::NONE, entry: 0 };
        let mut all = memory::vec(slots, "the slots of a channel")?;
        all.resize(slots, empty);
        Ok(Slots {
            slots: all,
            granted: memory::vec(slots, "the tokens of a channel")?,
            in_flight: 0,
            usual: 0,
            unanswered: 0,
            deadlines: Deadlines::new(slots)?,
            queue: memory::queue(ENTRIES_PER_SLOT * slots, "the queue of a channel")?,
            front: 0,
            bytes: Vec::new(),
            sent: 0,
            taken_back: 0,
        })
    }

    /// Something is received now.
    pub(super) fn receiving(&mut self) {
        if self.in_flight > 0 {
            self.usual = self.in_flight;
        }
    }

    /// How many offers wait to be sent.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The largest recent number in flight; none before something was received.
    pub(super) fn usual(&self) -> Option<usize> {
        (self.usual > 0).then(|| self.usual.max(self.in_flight))
    }

    /// How many slots there are.
    pub(super) fn count(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn unanswered(&self) -> usize {
        self.unanswered
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.bytes.len() - self.sent - self.taken_back
    }

    pub(super) fn slot(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(slot as usize)
    }

    /// The slot of an offer that is in flight.
    pub(super) fn find(&self, slot: u32, id: u64) -> Option<&Slot> {
        let found = self.slot(slot).filter(|slot| slot.facts.id == id)?;
        matches!(found.state, State::Queued | State::Sent).then_some(found)
    }

    /// Takes a token for a slot that has none; false if it has one, or there is no such slot.
    pub(super) fn grant(&mut self, slot: u32, token: Token) -> bool {
        match self.slots.get_mut(slot as usize) {
            Some(found) if found.state == State::Empty => {
                found.state = State::Granted;
                found.token = token;
                self.granted.push(slot);
                true
            }
            _ => false,
        }
    }

    /// Forgets every token that is not in use.
    pub(super) fn forget_tokens(&mut self) {
        for slot in self.granted.drain(..) {
            let slot = &mut self.slots[slot as usize];
            slot.state = State::Empty;
            slot.token = Token::NONE;
        }
    }

    /// The slot and the generation that the next offer will have.
    #[inline(always)]
    pub(super) fn next_slot(&self) -> Option<(u32, u64)> {
        let slot = *self.granted.last()?;
        Some((slot, self.slots[slot as usize].generation + 1))
    }

    /// Puts an offer into `slot`, which [`next_slot`](Slots::next_slot) returned. Its preread is
    /// not copied if it `follows`, of so many bytes.
    pub(super) fn queue(
        &mut self,
        slot: u32,
        facts: &Facts,
        parts: &Parts<'_>,
        follows: Option<usize>,
        cookie: u64,
        deadline: Instant,
    ) {
        let granted = self.granted.pop();
        debug_assert_eq!(granted, Some(slot));
        self.deadlines.set(slot, deadline);
        self.compact();
        let found = &mut self.slots[slot as usize];
        found.state = State::Queued;
        found.generation += 1;
        found.facts = *facts;
        found.entry = self.front.wrapping_add(self.queue.len() as u32);
        self.in_flight += 1;
        let before = self.bytes.len();
        let Slot { generation, token, .. } = *found;
        let head = OfferHead { slot, generation, token, cookie, tls: parts.tls };
        match follows {
            None => wire::write_offer(&mut self.bytes, &head, &parts.names, parts.preread),
            Some(len) => {
                wire::write_offer_without(&mut self.bytes, &head, &parts.names, len as u32);
            }
        }
        self.queue.push_back(Queued { slot, len: (self.bytes.len() - before) as u32 });
    }

    /// The entry of an offer that waits alone, and its descriptor.
    pub(super) fn only_queued(&self) -> Option<(&[u8], RawFd)> {
        let slot = self.slots.get(self.queue.front()?.slot as usize)?;
        (self.queue.len() == 1).then_some((&self.bytes[self.sent..], slot.facts.descriptor))
    }

    /// Adds the preread that was to follow the offer that was queued last.
    pub(super) fn add_preread(&mut self, preread: &[IoSlice<'_>]) {
        let before = self.bytes.len();
        preread.iter().for_each(|part| self.bytes.extend_from_slice(part));
        if let Some(last) = self.queue.back_mut() {
            last.len += (self.bytes.len() - before) as u32;
        }
    }

    /// Gives an offer in flight another deadline.
    pub(super) fn put_off(&mut self, slot: u32, deadline: Instant) {
        self.deadlines.clear(slot);
        self.deadlines.set(slot, deadline);
    }

    /// How many more offers there are tokens for.
    pub(super) fn granted(&self) -> usize {
        self.granted.len()
    }

    /// Makes room for an offer of so many bytes, so that queueing it allocates nothing.
    #[inline]
    pub(super) fn make_room(&mut self, len: usize) -> Result<(), NoMemory> {
        if self.bytes.capacity() - self.bytes.len() >= len {
            return Ok(());
        }
        self.compact();
        self.bytes.try_reserve(len).map_err(NoMemory::to("the queue of a channel"))
    }

    /// Removes what was sent and what was taken back, if that is worth it: more bytes leave than
    /// move, or more entries have left than there are slots. So each byte is moved once on average
    /// at the most.
    fn compact(&mut self) {
        let entries = self.slots.len() * ENTRIES_PER_SLOT;
        if self.queue.is_empty() {
            self.bytes.clear();
            self.sent = 0;
        } else if self.sent + self.taken_back > self.bytes.len() / 2 || self.queue.len() == entries
        {
            self.remove_the_gone();
        }
    }

    #[cold]
    fn remove_the_gone(&mut self) {
        let (mut from, mut to, mut kept) = (self.sent, 0, 0);
        for at in 0..self.queue.len() {
            let queued = self.queue[at];
            let end = from + queued.len as usize;
            if let Some(slot) = self.slots.get_mut(queued.slot as usize) {
                slot.entry = self.front.wrapping_add(kept as u32);
                self.bytes.copy_within(from..end, to);
                to += queued.len as usize;
                self.queue[kept] = queued;
                kept += 1;
            }
            from = end;
        }
        self.queue.truncate(kept);
        self.bytes.truncate(to);
        (self.sent, self.taken_back) = (0, 0);
    }

    /// The offers that fit the next packet, at most `most`: their entries, and their descriptors
    /// in `descriptors`.
    pub(super) fn batch(&self, most: usize, descriptors: &mut Vec<RawFd>) -> &[u8] {
        descriptors.clear();
        let mut end = self.sent;
        for queued in self.queue.iter().take(most.min(MAX_DESCRIPTORS)) {
            let next = end + queued.len as usize;
            // A packet is one piece: it ends before an offer that was taken back.
            let Some(slot) = self.slots.get(queued.slot as usize) else { break };
            if next - self.sent > MAX_FRAME_LEN - wire::HEADER_LEN {
                break;
            }
            end = next;
            descriptors.push(slot.facts.descriptor);
        }
        &self.bytes[self.sent..end]
    }

    /// Marks the first `count` offers of the queue as sent.
    pub(super) fn sent(&mut self, count: usize) {
        for queued in self.queue.drain(..count) {
            let slot = &mut self.slots[queued.slot as usize];
            slot.state = State::Sent;
            // Spent: it will not be needed again, and works only once.
            slot.token = Token::NONE;
            self.sent += queued.len as usize;
        }
        self.front = self.front.wrapping_add(count as u32);
        self.trim();
    }

    /// Removes offers that were taken back from both ends of the queue.
    fn trim(&mut self) {
        while let Some(Queued { slot: NONE, len }) = self.queue.front().copied() {
            self.queue.pop_front();
            self.front = self.front.wrapping_add(1);
            self.sent += len as usize;
            self.taken_back -= len as usize;
        }
        while let Some(Queued { slot: NONE, len }) = self.queue.back().copied() {
            self.queue.pop_back();
            self.bytes.truncate(self.bytes.len() - len as usize);
            self.taken_back -= len as usize;
        }
    }

    /// The slot of the offer that is first to be sent.
    pub(super) fn first_queued(&self) -> Option<u32> {
        self.queue.front().map(|queued| queued.slot)
    }

    /// Takes an offer out of flight. One that was not sent leaves the queue, and its token can be
    /// used again; one that was sent waits for the backend's verdict.
    pub(super) fn settle(&mut self, slot: u32, adopted: bool) {
        self.deadlines.clear(slot);
        self.in_flight -= 1;
        let found = &mut self.slots[slot as usize];
        found.facts.descriptor = -1;
        if found.state == State::Sent {
            found.state = State::Settled { adopted };
            self.unanswered += 1;
            return;
        }
        found.state = State::Granted;
        self.granted.push(slot);
        let at = found.entry.wrapping_sub(self.front) as usize;
        if let Some(queued) = self.queue.get_mut(at) {
            queued.slot = NONE;
            self.taken_back += queued.len as usize;
            self.trim();
        }
    }

    /// The backend is done with a slot: it may grant a new token.
    pub(super) fn empty(&mut self, slot: u32) {
        self.slots[slot as usize].state = State::Empty;
        self.unanswered -= 1;
    }

    /// The slot with the earliest deadline.
    pub(super) fn earliest(&self) -> Option<(u32, Instant)> {
        self.deadlines.earliest()
    }
}

/// Bytes that an offer takes in the queue.
pub(super) fn queued_len(variable_len: usize) -> usize {
    OFFER_LEN + variable_len
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    /// So many descriptors that can be told apart.
    fn descriptors<const N: usize>() -> [File; N] {
        [(); N].map(|()| File::open("/dev/null").unwrap())
    }

    fn queue(slots: &mut Slots, of: &File, deadline: Instant, preread: &[u8]) -> Option<u32> {
        let facts = Facts {
            id: 1,
            user_data: 0,
            awaited: false,
            descriptor: of.as_raw_fd(),
            copy: NO_COPY,
            offered_at: deadline,
            trial: false,
        };
        let parts = Parts { names: [b""; 3], preread: &[IoSlice::new(preread)], tls: false };
        let (slot, _) = slots.next_slot()?;
        slots.queue(slot, &facts, &parts, None, 0, deadline);
        Some(slot)
    }

    fn granted(count: u32) -> Slots {
        let mut slots = Slots::new(count as usize).unwrap();
        for slot in 0..count {
            assert!(slots.grant(slot, Token::NONE));
        }
        slots
    }

    #[test]
    fn slot_without_a_token_takes_no_offer_and_one_with_a_token_no_other() {
        let now = Instant::now();
        let [file] = descriptors();
        let mut slots = Slots::new(2).unwrap();
        assert!(queue(&mut slots, &file, now, b"").is_none());
        assert!(slots.grant(1, Token::NONE));
        assert!(!slots.grant(1, Token::NONE));
        assert!(!slots.grant(2, Token::NONE));
        assert_eq!(queue(&mut slots, &file, now, b""), Some(1));
        assert!(slots.next_slot().is_none());
    }

    #[test]
    fn batch_ends_before_the_frame_is_too_long() {
        let now = Instant::now();
        let files: [File; 4] = descriptors();
        let mut slots = granted(8);
        let large = vec![7; MAX_FRAME_LEN / 3];
        for file in &files {
            queue(&mut slots, file, now, &large);
        }
        let numbers = files.each_ref().map(|file| file.as_raw_fd());
        let mut batch = Vec::new();
        let len = slots.batch(252, &mut batch).len();
        assert_eq!(batch, numbers[..2]);
        assert_eq!(len, 2 * queued_len(large.len()));
        slots.sent(2);
        slots.batch(1, &mut batch);
        assert_eq!(batch, numbers[2..3]);
    }

    #[test]
    fn offer_that_is_settled_before_it_was_sent_is_not_sent() {
        let now = Instant::now();
        let files: [File; 3] = descriptors();
        let mut slots = granted(3);
        let taken = [0, 1, 2].map(|n| queue(&mut slots, &files[n], now, &[n as u8; 5]).unwrap());
        slots.settle(taken[1], false);
        let mut batch = Vec::new();
        for n in [0, 2] {
            let bytes = slots.batch(252, &mut batch);
            assert_eq!(bytes.len(), queued_len(5));
            assert!(bytes.ends_with(&[n; 5]));
            assert_eq!(batch, [files[usize::from(n)].as_raw_fd()]);
            slots.sent(1);
        }
        assert!(slots.first_queued().is_none());
        assert_eq!(slots.next_slot(), Some((taken[1], 2)));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Offer { len: usize, milliseconds: u64 },
        TakeBack(proptest::sample::Index),
        Send { most: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3000usize, 0..50u64)
                .prop_map(|(len, milliseconds)| Step::Offer { len, milliseconds }),
            3 => any::<proptest::sample::Index>().prop_map(Step::TakeBack),
            1 => (1..9usize).prop_map(|most| Step::Send { most }),
        ]
    }

    proptest! {
        #[test]
        fn what_waits_is_sent_in_order_and_what_was_taken_back_is_not(
            steps in proptest::collection::vec(step(), 0..400),
        ) {
            let now = Instant::now();
            let [file] = descriptors();
            let mut slots = granted(16);
            // In their order: slot, deadline, what goes with it, and whether it waits.
            let mut model: Vec<(u32, Instant, Vec<u8>, bool)> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Offer { len, milliseconds } if slots.next_slot().is_some() => {
                        let deadline = now + Duration::from_millis(milliseconds);
                        let preread = vec![number as u8; len];
                        let slot = queue(&mut slots, &file, deadline, &preread).unwrap();
                        model.push((slot, deadline, preread, true));
                        // What has gone takes no more room than what waits.
                        prop_assert!(slots.bytes.len() <= 2 * slots.queued_bytes());
                    }
                    Step::TakeBack(which) if !model.is_empty() => {
                        let (slot, .., waits) = model.remove(which.index(model.len()));
                        slots.settle(slot, false);
                        if !waits {
                            slots.empty(slot);
                            slots.grant(slot, Token::NONE);
                        }
                    }
                    Step::Send { most } => {
                        let mut batch = Vec::new();
                        let bytes = slots.batch(most, &mut batch).to_vec();
                        let waiting = model.iter_mut().filter(|(.., waits)| *waits);
                        let mut rest = &bytes[..];
                        for (.., preread, waits) in waiting.take(batch.len()) {
                            let (entry, behind) = rest.split_at(queued_len(preread.len()));
                            prop_assert_eq!(&entry[OFFER_LEN..], &preread[..]);
                            rest = behind;
                            *waits = false;
                        }
                        prop_assert!(rest.is_empty());
                        slots.sent(batch.len());
                    }
                    _ => {}
                }
                let waiting = || model.iter().filter(|(.., waits)| *waits);
                let waiting_bytes = waiting().map(|(.., preread, _)| queued_len(preread.len()));
                let first = model.iter().map(|(_, deadline, ..)| *deadline).min();
                prop_assert_eq!(slots.in_flight(), model.len());
                prop_assert_eq!(slots.queued_bytes(), waiting_bytes.sum::<usize>());
                prop_assert_eq!(slots.earliest().map(|(_, deadline)| deadline), first);
                prop_assert_eq!(slots.first_queued(), waiting().next().map(|(slot, ..)| *slot));
                prop_assert!(slots.queue.len() <= 32);
            }
        }
    }
}
