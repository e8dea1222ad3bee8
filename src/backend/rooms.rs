//! Room for the bytes of arrivals.
//!
//! It is used again, so that none is allocated in the long run: what was left last first, because it is
//! still in the processor's caches. Two limits bound it: what is held, and what is kept beyond that.
//! Bytes that the caller may still read stay where they are until the turn ends.

/// Names the room of one arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room(u32);

impl Room {
    /// Nothing is there.
    pub(super) const NONE: Room = Room(u32::MAX);
}

/// The room of a backend's arrivals.
#[derive(Debug)]
pub(super) struct Rooms {
    max_held: usize,
    max_kept: usize,
    /// Bytes of the arrivals that are held.
    held: usize,
    /// Bytes of all rooms.
    room: usize,
    rooms: Vec<Vec<u8>>,
    /// Those that are free, the next one last, and those without memory, which come after them.
    free: Vec<Room>,
    without: Vec<Room>,
    /// Those whose arrivals were released in this turn.
    readable: Vec<Room>,
    /// Bytes of these.
    readable_room: usize,
}

impl Rooms {
    pub(super) fn new(max_held: usize, max_kept: usize) -> Rooms {
        Rooms {
            max_held,
            max_kept,
            held: 0,
            room: 0,
            rooms: Vec::new(),
            free: Vec::new(),
            without: Vec::new(),
            readable: Vec::new(),
            readable_room: 0,
        }
    }

    /// Bytes of the arrivals that are held.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Bytes of room beyond what is held: what is free, and what arrivals do not fill. Of what can still
    /// be read, as much as will be kept.
    pub(super) fn kept(&self) -> usize {
        (self.room - self.held).min(self.max_kept).max(self.idle())
    }

    /// The same without what can still be read.
    fn idle(&self) -> usize {
        self.room - self.readable_room - self.held
    }

    /// Whether there is more room than may be kept, because its bytes can still be read: in this turn
    /// nothing more is to be received.
    pub(super) fn is_over(&self) -> bool {
        self.room - self.held > self.max_kept
    }

    /// Whether so many bytes more may be held.
    pub(super) fn allows(&self, len: usize) -> bool {
        self.held.saturating_add(len) <= self.max_held
    }

    /// Takes room for an arrival of `len` bytes and `more` that do not count, to be filled with no more
    /// than that. None if the system has no memory for it.
    pub(super) fn take(&mut self, len: usize, more: usize) -> Option<(Room, &mut Vec<u8>)> {
        let room = match self.free.pop().or_else(|| self.without.pop()) {
            Some(room) => room,
            None => self.another()?,
        };
        let (idle, need) = (self.idle(), len + more);
        let bytes = &mut self.rooms[room.0 as usize];
        let before = bytes.capacity();
        bytes.clear();
        // A small arrival in a large room keeps what it does not fill.
        let keeps_too_much = before > need && idle.saturating_sub(len) > self.max_kept;
        if before < need || keeps_too_much {
            let mut other = Vec::new();
            if other.try_reserve_exact(need).is_ok() {
                self.room = self.room - before + other.capacity();
                *bytes = other;
            } else if before < need {
                if before > 0 { &mut self.free } else { &mut self.without }.push(room);
                return None;
            }
        }
        self.held += len;
        Some((room, bytes))
    }

    /// Another room, and a place for it in each list.
    #[cold]
    fn another(&mut self) -> Option<Room> {
        let count = self.rooms.len() + 1;
        self.rooms.try_reserve(1).ok()?;
        for list in [&mut self.free, &mut self.without, &mut self.readable] {
            list.try_reserve(count - list.len()).ok()?;
        }
        self.rooms.push(Vec::new());
        Some(Room(self.rooms.len() as u32 - 1))
    }

    /// The bytes there.
    pub(super) fn bytes(&self, room: Room) -> &[u8] {
        self.rooms.get(room.0 as usize).map_or(&[], Vec::as_slice)
    }

    /// An arrival of `len` bytes is not held any more. Its bytes stay readable until the next turn.
    pub(super) fn release(&mut self, room: Room, len: usize) {
        self.held -= len;
        self.readable_room += self.rooms[room.0 as usize].capacity();
        self.readable.push(room);
    }

    /// Begins the next turn: nothing that was released before is read any more.
    pub(super) fn begin_turn(&mut self) {
        if self.room - self.held <= self.max_kept {
            self.free.append(&mut self.readable);
            self.readable_room = 0;
        }
        while let Some(room) = self.readable.pop() {
            let capacity = self.rooms[room.0 as usize].capacity();
            self.readable_room -= capacity;
            if self.idle() > self.max_kept {
                self.rooms[room.0 as usize] = Vec::new();
                self.room -= capacity;
                self.without.push(room);
            } else {
                self.free.push(room);
            }
        }
    }

    /// Frees all. Nothing is held, or read any more.
    pub(super) fn clear(&mut self) {
        if !self.rooms.is_empty() {
            *self = Rooms::new(self.max_held, self.max_kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn room_is_used_again_and_none_is_allocated() {
        let mut rooms = Rooms::new(1000, 1000);
        let mut take = |len| {
            let (room, bytes) = rooms.take(len, 2).unwrap();
            let place = (room, bytes.as_ptr(), bytes.capacity());
            rooms.release(room, len);
            rooms.begin_turn();
            place
        };
        let first = take(100);
        assert_eq!([100, 0, 7].map(take), [first; 3]);
    }

    #[test]
    fn so_much_room_is_used_as_is_held_at_once() {
        let mut rooms = Rooms::new(1000, 1000);
        for _ in 0..100 {
            let both = [(); 2].map(|()| rooms.take(10, 0).unwrap().0);
            both.into_iter().for_each(|room| rooms.release(room, 10));
            rooms.begin_turn();
        }
        assert_eq!((rooms.rooms.len(), rooms.kept()), (2, 20));
        rooms.clear();
        assert_eq!((rooms.rooms.len(), rooms.kept()), (0, 0));
    }

    #[test]
    fn what_is_kept_of_many_is_used_again() {
        let mut rooms = Rooms::new(1000, 20);
        for count in [10, 1, 1, 2] {
            let taken: Vec<Room> = (0..count).map(|_| rooms.take(10, 0).unwrap().0).collect();
            assert_eq!(
                (rooms.room, rooms.kept()),
                (count.max(2) * 10, (2_usize.saturating_sub(count)) * 10)
            );
            taken.into_iter().for_each(|room| rooms.release(room, 10));
            assert_eq!(rooms.kept(), 20);
            rooms.begin_turn();
            assert_eq!((rooms.room, rooms.kept()), (20, 20));
        }
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
            let mut held: [Option<(Room, usize)>; 8] = Default::default();
            // What may be read: where, and what is there.
            let mut readable: Vec<(Room, *const u8, Vec<u8>)> = Vec::new();
            let mut released = Vec::new();
            for (number, (which, len)) in steps.into_iter().enumerate() {
                match held[which].take() {
                    Some((room, len)) => {
                        rooms.release(room, len);
                        released.push(room);
                    }
                    None if rooms.allows(len) && len > 100 => {
                        let (room, bytes) = rooms.take(len, MORE).unwrap();
                        prop_assert!(bytes.is_empty() && bytes.capacity() >= len + MORE);
                        bytes.resize(len + MORE, number as u8);
                        readable.push((room, bytes.as_ptr(), bytes.clone()));
                        held[which] = Some((room, len));
                    }
                    None => {
                        rooms.begin_turn();
                        readable.retain(|(room, ..)| !released.contains(room));
                        released.clear();
                    }
                }
                for (room, start, bytes) in &readable {
                    prop_assert_eq!(rooms.bytes(*room).as_ptr(), *start);
                    prop_assert_eq!(rooms.bytes(*room), &bytes[..]);
                }
                let of_held: usize = held.iter().flatten().map(|(_, len)| len).sum();
                let capacity = |room: &Room| rooms.rooms[room.0 as usize].capacity();
                let of_readable: usize = released.iter().map(capacity).sum();
                prop_assert_eq!(rooms.held(), of_held);
                prop_assert!(of_held <= 2000);
                prop_assert!(rooms.kept() <= max_kept + held.len() * MORE);
                let all: usize = rooms.rooms.iter().map(Vec::capacity).sum();
                prop_assert_eq!(all, rooms.held() + rooms.idle() + of_readable);
            }
        }
    }
}
