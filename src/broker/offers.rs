//! The offers of one channel as the broker keeps them: slots, deadlines, and what waits to be
//! sent. State only; no I/O.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use super::Offer;
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

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub state: State,
    pub generation: u64,
    pub id: u64,
    pub user_data: usize,
    pub deadline: Instant,
    token: Token,
    /// The caller's, who keeps it open until the verdict.
    descriptor: RawFd,
    /// Neighbours in the order of deadlines.
    earlier: u32,
    later: u32,
}

const NONE: u32 = u32::MAX;
const NO_TOKEN: Token = Token::from_bytes([0; Token::LEN]);

/// An offer that waits to be sent.
#[derive(Clone, Copy, Debug)]
struct Queued {
    slot: u32,
    len: u32,
}

#[derive(Debug)]
pub(super) struct Offers {
    slots: Vec<Slot>,
    /// Slots in the state Granted, the last used first: its memory is warm.
    granted: Vec<u32>,
    in_flight: usize,
    /// The slots with the earliest and the latest deadline.
    first: u32,
    last: u32,
    queue: VecDeque<Queued>,
    /// The entries of `queue`, one behind the other from `sent` on.
    bytes: Vec<u8>,
    sent: usize,
}

impl Offers {
    pub(super) fn new(slots: usize, now: Instant) -> Offers {
        let empty = Slot {
            state: State::Empty,
            generation: 0,
            id: 0,
            user_data: 0,
            deadline: now,
            token: NO_TOKEN,
            descriptor: -1,
            earlier: NONE,
            later: NONE,
        };
        Offers {
            slots: vec![empty; slots],
            granted: Vec::with_capacity(slots),
            in_flight: 0,
            first: NONE,
            last: NONE,
            queue: VecDeque::with_capacity(slots),
            bytes: Vec::new(),
            sent: 0,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub(super) fn slot(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(slot as usize)
    }

    /// The slot of an offer that is in flight.
    pub(super) fn find(&self, slot: u32, id: u64) -> Option<&Slot> {
        let found = self.slot(slot).filter(|slot| slot.id == id)?;
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
            slot.token = NO_TOKEN;
        }
    }

    /// The slot and the generation that the next offer will have.
    pub(super) fn next_slot(&self) -> Option<(u32, u64)> {
        let slot = *self.granted.last()?;
        Some((slot, self.slots[slot as usize].generation + 1))
    }

    /// Puts an offer into the slot that [`next_slot`](Offers::next_slot) returned.
    pub(super) fn queue(
        &mut self,
        offer: &Offer<'_>,
        id: u64,
        deadline: Instant,
        cookie: u64,
    ) -> Option<u32> {
        let slot = self.granted.pop()?;
        self.insert_by_deadline(slot, deadline);
        let found = &mut self.slots[slot as usize];
        found.state = State::Queued;
        found.generation += 1;
        found.id = id;
        found.user_data = offer.user_data;
        found.descriptor = offer.descriptor.as_raw_fd();
        self.in_flight += 1;
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
        } else if self.sent > self.bytes.len() / 2 {
            // Moves less than it frees, so that each byte is moved once on average at the most.
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        let before = self.bytes.len();
        let Offer { service, correlation, metadata, preread, .. } = *offer;
        let head = OfferHead { slot, generation: found.generation, token: found.token, cookie };
        wire::write_offer(&mut self.bytes, &head, &[service, correlation, metadata], preread);
        self.queue.push_back(Queued { slot, len: (self.bytes.len() - before) as u32 });
        Some(slot)
    }

    /// The offers that fit the next packet, at most `most`: their entries, and their descriptors
    /// in `descriptors`.
    pub(super) fn batch(&self, most: usize, descriptors: &mut Vec<RawFd>) -> &[u8] {
        descriptors.clear();
        let mut end = self.sent;
        for queued in self.queue.iter().take(most.min(MAX_DESCRIPTORS)) {
            let next = end + queued.len as usize;
            if next - self.sent > MAX_FRAME_LEN - wire::HEADER_LEN {
                break;
            }
            end = next;
            descriptors.push(self.slots[queued.slot as usize].descriptor);
        }
        &self.bytes[self.sent..end]
    }

    /// Marks the first `count` offers of the queue as sent.
    pub(super) fn sent(&mut self, count: usize) {
        for queued in self.queue.drain(..count) {
            let slot = &mut self.slots[queued.slot as usize];
            slot.state = State::Sent;
            // Spent: it will not be needed again, and works only once.
            slot.token = NO_TOKEN;
            self.sent += queued.len as usize;
        }
    }

    /// The slot of the offer that is first to be sent.
    pub(super) fn first_queued(&self) -> Option<u32> {
        self.queue.front().map(|queued| queued.slot)
    }

    /// Takes an offer out of flight. One that was not sent leaves the queue, and its token can be
    /// used again; one that was sent waits for the backend's verdict.
    pub(super) fn settle(&mut self, slot: u32, adopted: bool) {
        self.remove_from_deadlines(slot);
        self.in_flight -= 1;
        let found = &mut self.slots[slot as usize];
        found.descriptor = -1;
        if found.state == State::Sent {
            found.state = State::Settled { adopted };
            return;
        }
        found.state = State::Granted;
        self.granted.push(slot);
        if let Some(at) = self.queue.iter().position(|queued| queued.slot == slot) {
            let start = self.sent + self.queue.range(..at).map(|q| q.len as usize).sum::<usize>();
            self.bytes.drain(start..start + self.queue[at].len as usize);
            self.queue.remove(at);
        }
    }

    /// The backend is done with a slot: it may grant a new token.
    pub(super) fn empty(&mut self, slot: u32) {
        self.slots[slot as usize].state = State::Empty;
    }

    /// The slot with the earliest deadline.
    pub(super) fn earliest(&self) -> Option<(u32, Instant)> {
        let slot = self.slots.get(self.first as usize)?;
        Some((self.first, slot.deadline))
    }

    /// From the latest backwards: with one timeout for all, that is the place at once.
    fn insert_by_deadline(&mut self, slot: u32, deadline: Instant) {
        let mut earlier = self.last;
        while earlier != NONE && self.slots[earlier as usize].deadline > deadline {
            earlier = self.slots[earlier as usize].earlier;
        }
        let later = match self.slots.get(earlier as usize) {
            Some(earlier) => earlier.later,
            None => self.first,
        };
        let inserted = &mut self.slots[slot as usize];
        inserted.deadline = deadline;
        inserted.earlier = earlier;
        inserted.later = later;
        self.set_later(earlier, slot);
        self.set_earlier(later, slot);
    }

    fn remove_from_deadlines(&mut self, slot: u32) {
        let Slot { earlier, later, .. } = self.slots[slot as usize];
        self.set_later(earlier, later);
        self.set_earlier(later, earlier);
    }

    fn set_later(&mut self, slot: u32, later: u32) {
        match self.slots.get_mut(slot as usize) {
            Some(slot) => slot.later = later,
            None => self.first = later,
        }
    }

    fn set_earlier(&mut self, slot: u32, earlier: u32) {
        match self.slots.get_mut(slot as usize) {
            Some(slot) => slot.earlier = earlier,
            None => self.last = earlier,
        }
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
    use std::io::IoSlice;
    use std::os::fd::AsFd;
    use std::time::Duration;

    /// So many descriptors that can be told apart.
    fn descriptors<const N: usize>() -> [File; N] {
        [(); N].map(|()| File::open("/dev/null").unwrap())
    }

    fn queue(offers: &mut Offers, of: &File, deadline: Instant, preread: &[u8]) -> Option<u32> {
        let preread = [IoSlice::new(preread)];
        let offer = Offer {
            descriptor: of.as_fd(),
            preread: &preread,
            metadata: b"",
            service: b"",
            correlation: b"",
            user_data: 0,
            timeout: None,
            more: false,
        };
        offers.queue(&offer, 1, deadline, 0)
    }

    fn granted(slots: u32, now: Instant) -> Offers {
        let mut offers = Offers::new(slots as usize, now);
        for slot in 0..slots {
            assert!(offers.grant(slot, NO_TOKEN));
        }
        offers
    }

    #[test]
    fn slot_without_a_token_takes_no_offer_and_one_with_a_token_no_other() {
        let now = Instant::now();
        let [file] = descriptors();
        let mut offers = Offers::new(2, now);
        assert!(queue(&mut offers, &file, now, b"").is_none());
        assert!(offers.grant(1, NO_TOKEN));
        assert!(!offers.grant(1, NO_TOKEN));
        assert!(!offers.grant(2, NO_TOKEN));
        assert_eq!(queue(&mut offers, &file, now, b""), Some(1));
        assert!(offers.next_slot().is_none());
    }

    #[test]
    fn batch_ends_before_the_frame_is_too_long() {
        let now = Instant::now();
        let files: [File; 4] = descriptors();
        let mut offers = granted(8, now);
        let large = vec![7; MAX_FRAME_LEN / 3];
        for file in &files {
            queue(&mut offers, file, now, &large);
        }
        let numbers = files.each_ref().map(|file| file.as_raw_fd());
        let mut batch = Vec::new();
        let len = offers.batch(252, &mut batch).len();
        assert_eq!(batch, numbers[..2]);
        assert_eq!(len, 2 * queued_len(large.len()));
        offers.sent(2);
        offers.batch(1, &mut batch);
        assert_eq!(batch, numbers[2..3]);
    }

    #[test]
    fn offer_that_is_settled_before_it_was_sent_is_not_sent() {
        let now = Instant::now();
        let files: [File; 3] = descriptors();
        let mut offers = granted(3, now);
        let slots = [0, 1, 2].map(|n| queue(&mut offers, &files[n], now, &[n as u8; 5]).unwrap());
        offers.settle(slots[1], false);
        let mut batch = Vec::new();
        let bytes = offers.batch(252, &mut batch).to_vec();
        assert_eq!(batch, [files[0].as_raw_fd(), files[2].as_raw_fd()]);
        assert_eq!(bytes.len(), 2 * queued_len(5));
        assert!(bytes.ends_with(&[2; 5]));
        assert!(offers.next_slot().is_some());
    }

    proptest! {
        #[test]
        fn earliest_deadline_is_that_of_a_sorted_list(
            steps in proptest::collection::vec((any::<bool>(), 0..50u64, any::<proptest::sample::Index>()), 0..200),
        ) {
            let now = Instant::now();
            let [file] = descriptors();
            let mut offers = granted(16, now);
            let mut model: Vec<(Instant, u32)> = Vec::new();
            for (add, milliseconds, which) in steps {
                if add && model.len() < 16 {
                    let deadline = now + Duration::from_millis(milliseconds);
                    let slot = queue(&mut offers, &file, deadline, b"x").unwrap();
                    model.push((deadline, slot));
                } else if !model.is_empty() {
                    let (_, slot) = model.swap_remove(which.index(model.len()));
                    offers.settle(slot, false);
                }
                prop_assert_eq!(offers.in_flight(), model.len());
                prop_assert_eq!(offers.queued_bytes(), model.len() * queued_len(1));
                let want = model.iter().map(|(deadline, _)| *deadline).min();
                prop_assert_eq!(offers.earliest().map(|(_, deadline)| deadline), want);
            }
        }
    }
}
