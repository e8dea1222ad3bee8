//! Room for the bytes of arrivals.
//!
//! A slot's room stays with the slot for its next arrival, so that none is allocated in the long
//! run. Two limits bound it: what is held, and what is kept beyond that. Bytes that the caller may
//! still read stay where they are until the turn ends: an arrival that comes sooner gets another
//! room.

use std::mem;

/// The room of all slots of a backend.
#[derive(Debug)]
pub(super) struct Rooms {
    max_held: usize,
    max_kept: usize,
    /// Bytes of the arrivals that are held.
    held: usize,
    /// Bytes of room, of held arrivals and of others.
    room: usize,
    /// Slots, by channel and number, whose room is not kept. It is freed when the bytes of the last
    /// arrival there are not valid any more.
    surplus: Vec<(usize, usize)>,
    /// Bytes of their room.
    surplus_room: usize,
    /// The number of this turn: what is released in a turn can be read until its end.
    turn: u64,
    /// Rooms that were taken from their slots in this turn.
    readable: Vec<Vec<u8>>,
    /// Rooms for slots whose own is still read. Turns that need none give them back.
    spare: Vec<Vec<u8>>,
}

/// As many rooms as a turn of small packets mostly needs.
const MOST_SPARE: usize = 32;
/// Larger ones are not kept for that.
const LARGE: usize = 4096;

impl Rooms {
    pub(super) fn new(max_held: usize, max_kept: usize) -> Rooms {
        Rooms {
            max_held,
            max_kept,
            held: 0,
            room: 0,
            surplus: Vec::new(),
            surplus_room: 0,
            turn: 1,
            readable: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Bytes of the arrivals that are held.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Bytes of room beyond what is held: what idle slots keep, and what arrivals do not fill.
    pub(super) fn kept(&self) -> usize {
        self.room.saturating_sub(self.surplus_room).saturating_sub(self.held)
    }

    /// Whether so many bytes more may be held.
    pub(super) fn allows(&self, len: usize) -> bool {
        self.held.saturating_add(len) <= self.max_held
    }

    /// Has a slot's room hold an arrival of `len` bytes and `more` that do not count: it comes back
    /// empty and large enough. False if the system has no memory for that.
    pub(super) fn take(&mut self, room: &mut Vec<u8>, len: usize, more: usize) -> bool {
        room.clear();
        let (need, before) = (len + more, room.capacity());
        // A small arrival in a large room keeps what it does not fill.
        let keeps_too_much = before > need && self.kept().saturating_sub(len) > self.max_kept;
        if before < need || keeps_too_much {
            *room = Vec::new();
            let allocated = room.try_reserve_exact(need).is_ok();
            self.room = self.room - before + room.capacity();
            if !allocated {
                return false;
            }
        }
        self.held += len;
        true
    }

    /// The number of this turn.
    pub(super) fn turn(&self) -> u64 {
        self.turn
    }

    /// Gives a slot another room, because the bytes in its own, of an arrival that was released in
    /// this turn, may still be read. False if the system has no memory for that.
    pub(super) fn replace(&mut self, room: &mut Vec<u8>) -> bool {
        if room.is_empty() {
            return true;
        }
        if self.readable.try_reserve(1).is_err() {
            return false;
        }
        self.readable.push(mem::replace(room, self.spare.pop().unwrap_or_default()));
        true
    }

    /// Begins the next turn: nothing that was released before is read any more.
    pub(super) fn begin_turn(&mut self) {
        self.turn += 1;
        if self.readable.is_empty() {
            if let Some(mut room) = self.spare.pop() {
                self.free(&mut room);
            }
        }
        while let Some(mut room) = self.readable.pop() {
            let is_spare = self.spare.len() < MOST_SPARE && room.capacity() <= LARGE;
            if is_spare && self.kept() <= self.max_kept && self.spare.try_reserve(1).is_ok() {
                self.spare.push(room);
            } else {
                self.free(&mut room);
            }
        }
    }

    /// An arrival of `len` bytes is not held any more. Its bytes stay readable until the next turn,
    /// before which [`take_surplus`](Rooms::take_surplus) is called.
    pub(super) fn release(&mut self, room: &Vec<u8>, len: usize, place: (usize, usize)) {
        self.held -= len;
        if self.kept() > self.max_kept && self.surplus.try_reserve(1).is_ok() {
            self.surplus.push(place);
            self.surplus_room += room.capacity();
        }
    }

    pub(super) fn has_surplus(&self) -> bool {
        !self.surplus.is_empty()
    }

    /// The slots whose room is to be [freed](Rooms::free) now. Give the list
    /// [back](Rooms::took_surplus), so that its memory is used again.
    pub(super) fn take_surplus(&mut self) -> Vec<(usize, usize)> {
        mem::take(&mut self.surplus)
    }

    pub(super) fn took_surplus(&mut self, mut surplus: Vec<(usize, usize)>) {
        surplus.clear();
        self.surplus = surplus;
        self.surplus_room = 0;
    }

    /// Frees the room of a slot.
    pub(super) fn free(&mut self, room: &mut Vec<u8>) {
        self.room -= room.capacity();
        *room = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn room_is_used_again_and_none_is_allocated() {
        let mut rooms = Rooms::new(1000, 1000);
        let mut room = Vec::new();
        assert!(rooms.take(&mut room, 100, 2));
        let (start, capacity) = (room.as_ptr(), room.capacity());
        for len in [100, 0, 7] {
            rooms.release(&room, rooms.held(), (0, 0));
            assert!(rooms.take(&mut room, len, 2));
            assert_eq!((room.as_ptr(), room.capacity()), (start, capacity));
        }
        assert!(rooms.take_surplus().is_empty());
    }

    proptest! {
        /// Whatever comes and goes, in however many slots.
        #[test]
        fn no_more_is_kept_than_may_be(
            steps in proptest::collection::vec((0..8usize, 0..500usize), 0..300),
            max_kept in 0..1000usize,
        ) {
            const MORE: usize = 2;
            let mut rooms = Rooms::new(2000, max_kept);
            let mut slots: [(Vec<u8>, Option<usize>, u64); 8] = Default::default();
            // What may still be read: where, and what is there.
            let mut readable: Vec<(*const u8, Vec<u8>)> = Vec::new();
            for (number, (which, len)) in steps.into_iter().enumerate() {
                let (room, held, released_in) = &mut slots[which];
                match held.take() {
                    Some(len) => {
                        rooms.release(room, len, (0, which));
                        *released_in = rooms.turn();
                        readable.push((room.as_ptr(), room.clone()));
                    }
                    None if rooms.allows(len) && (len > 100 || *released_in != rooms.turn()) => {
                        prop_assert!(*released_in != rooms.turn() || rooms.replace(room));
                        prop_assert!(rooms.take(room, len, MORE));
                        prop_assert!(room.is_empty() && room.capacity() >= len + MORE);
                        room.resize(len + MORE, number as u8);
                        *held = Some(len);
                    }
                    None => {
                        readable.clear();
                        let surplus = rooms.take_surplus();
                        for (_, which) in &surplus {
                            let (room, held, _) = &mut slots[*which];
                            if held.is_none() {
                                rooms.free(room);
                            }
                        }
                        rooms.took_surplus(surplus);
                        rooms.begin_turn();
                        prop_assert!(rooms.kept() <= max_kept + slots.len() * MORE);
                    }
                }
                for (start, bytes) in &readable {
                    // SAFETY: rooms are neither freed nor grown while they are readable.
                    let there = unsafe { std::slice::from_raw_parts(*start, bytes.len()) };
                    prop_assert_eq!(there, &bytes[..]);
                }
                let held: usize = slots.iter().filter_map(|(_, held, _)| *held).sum();
                let of_slots: usize = slots.iter().map(|(room, ..)| room.capacity()).sum();
                let others = rooms.readable.iter().chain(&rooms.spare).map(Vec::capacity);
                prop_assert_eq!(rooms.held(), held);
                prop_assert_eq!(rooms.room, of_slots + others.sum::<usize>());
                prop_assert!(held <= 2000);
            }
        }
    }
}
