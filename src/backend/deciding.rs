//! Arrivals as the caller takes them, one after the other, and adopts or rejects them.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::arrivals::Place;
use super::channel::End;
use super::slots::Slots;
use super::{Arrival, Backend, BackendError};
use crate::claim::Lost;
use crate::peer::Credentials;
use crate::reason::Reason;
use crate::sys::arrived::Arrived;
use crate::wire::Rejection;

impl Backend {
    /// Takes the next arrival, to look at and then to adopt or reject. When there is no more, the
    /// verdicts on those that were adopted and rejected are sent to the brokers. In a child of
    /// fork(2) there is none: they are the parent's, see [`check_process`](Backend::check_process).
    pub fn next_arrival(&mut self) -> Option<Arrival<'_>> {
        let place = self.next_place()?;
        self.tell_of_leftovers();
        Some(self.view(place))
    }

    /// Whether there is something to take, or may be something to receive in this turn.
    pub(super) fn has_leftovers(&self) -> bool {
        self.arrivals.has_waiting() || self.inbox.unread.is_some()
    }

    /// Makes sure that the caller is woken for what is left, should it stop here.
    pub(super) fn tell_of_leftovers(&mut self) {
        if let (true, Some(events)) = (self.has_leftovers(), self.handle.events()) {
            self.batch.set_timer(events);
        }
    }

    pub(super) fn next_place(&mut self) -> Option<Place> {
        if self.handle.is_elsewhere() {
            return None;
        }
        if std::mem::take(&mut self.batch.complete) {
            self.flush();
        }
        while let Some(place) = self.next_waiting() {
            let Some(slots) = self.held(place) else {
                self.arrivals.stale_taken();
                continue;
            };
            slots.seen(place.slot);
            if slots.is_on_offer(place.slot) {
                if self.batch.took() {
                    self.flush();
                }
                return Some(place);
            }
            let lost = slots.why_lost(place.slot);
            self.lose(place, lost);
        }
        self.batch.open = false;
        self.flush();
        // One that drains may have nothing more to do, and the timer tells so.
        let needs_timer = self.unfinished.any() || self.arrivals.draining;
        if let (false, Some(events)) = (needs_timer, self.handle.events()) {
            self.batch.cancel_timer(events);
        }
        None
    }

    /// The next place with an arrival, also of packets that are still to be received.
    fn next_waiting(&mut self) -> Option<Place> {
        loop {
            let place = self.arrivals.next_waiting();
            if place.is_some() || !self.receive_next() {
                return place;
            }
        }
    }

    pub(super) fn view(&self, place: Place) -> Arrival<'_> {
        let none = Credentials { process: 0, user: u32::MAX, group: u32::MAX };
        let channel = self.channels.get(place.channel);
        let broker = channel.map_or(none, |channel| channel.broker);
        let slots = channel.and_then(|channel| channel.slots.as_ref());
        let (parts, tls) = slots.map_or(([&[][..]; 4], false), |slots| {
            let slot = slots.slot(place.slot);
            (slot.parts(&self.arrivals.rooms), slot.has_tls())
        });
        let [service, correlation, metadata, preread] = parts;
        Arrival { id: place.id(), service, correlation, metadata, preread, broker, tls }
    }

    /// The slots among which an arrival is held.
    fn held(&mut self, place: Place) -> Option<&mut Slots> {
        let slots = self.channels.get_mut(place.channel)?.slots.as_mut()?;
        slots.holds(place.slot, place.serial).then_some(slots)
    }

    /// Adopts an arrival. After `Ok` the connection is this process's, and the broker never serves
    /// it. The verdict is sent when the next arrival is taken, or there is none; at once if this is
    /// not done as soon as it was taken. The arrival's bytes can be read until the next
    /// [`dispatch`](Backend::dispatch).
    pub fn adopt(&mut self, id: u64) -> Result<OwnedFd, BackendError> {
        self.check_process()?;
        let place = Place::of(id);
        let Some(slots) = self.held(place) else { return Err(BackendError::Unknown { id }) };
        match slots.claim(place.slot) {
            Ok(()) => {
                self.arrivals.statistics.adopted += 1;
                let descriptor = self.finish(place, None);
                descriptor.map(Arrived::accept).ok_or(BackendError::Unknown { id })
            }
            Err(lost) => {
                self.lose(place, lost);
                Err(BackendError::TakenBack { id })
            }
        }
    }

    /// Closes an arrival that cannot be adopted.
    fn lose(&mut self, place: Place, lost: Lost) {
        if lost == Lost::Impossible {
            self.end(place.channel, End::Broken);
        }
        if self.held(place).is_some() {
            self.arrivals.statistics.taken_back += 1;
            self.finish(place, Some(Reason::AckTimeout));
        }
    }

    /// Rejects an arrival: its descriptor is closed, and the broker serves the client another way.
    pub fn reject(&mut self, id: u64, reason: Reason) -> Result<(), BackendError> {
        self.check_process()?;
        let place = Place::of(id);
        let slots = self.held(place).ok_or(BackendError::Unknown { id })?;
        let lost = (!slots.is_on_offer(place.slot)).then(|| slots.why_lost(place.slot));
        if lost == Some(Lost::Impossible) {
            self.lose(place, Lost::Impossible);
            return Ok(());
        }
        self.arrivals.rejected(lost.is_some());
        self.finish(place, Some(reason));
        Ok(())
    }

    /// Releases an arrival and queues its verdict, with the slot's next token. Returns its descriptor
    /// if it is adopted, and closes it otherwise.
    fn finish(&mut self, place: Place, reason: Option<Reason>) -> Option<Arrived> {
        let channel = self.channels.get_mut(place.channel)?;
        let connected = channel.is_connected();
        let slots = channel.slots.as_mut()?;
        let descriptor = slots.release(place.slot, &mut self.arrivals.rooms);
        self.arrivals.held -= 1;
        // Closed before the broker hears of it.
        let adopted = descriptor.filter(|_| reason.is_none());
        if connected {
            slots.answer(place.slot, reason.map(Rejection::from), self.arrivals.next_token());
            let complete = !slots.others_follow(place.slot);
            self.batch.complete |= complete;
            self.mark_dirty(place.channel);
            let (batch, events) = (&mut self.batch, self.handle.events());
            let later = batch.open && (!complete || (reason.is_none() && batch.goes_on()));
            if later && events.is_some_and(|events| batch.set_timer(events)) {
                batch.waits();
            } else {
                self.flush();
            }
        }
        if self.arrivals.draining {
            self.tell_of_the_end();
        }
        adopted
    }

    /// Wakes a caller that drains and holds nothing: it can free the handle, and no broker may have
    /// anything more to say. If no timer can be set, something else wakes it.
    #[cold]
    pub(super) fn tell_of_the_end(&mut self) {
        if self.arrivals.held == 0 {
            let now = Instant::now();
            let _ = self.handle.wake_at(now, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{BackendOptions, BackendStatistics, arrivals};
    use crate::broker::{Broker, BrokerOptions, Offer};
    use crate::wire;
    use std::io::IoSlice;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;
    use std::{iter, thread};

    struct Both {
        _directory: tempfile::TempDir,
        backend: Backend,
        broker: Broker,
        client: UnixStream,
        _peer: UnixStream,
    }

    fn both() -> Both {
        both_with(BackendOptions::default())
    }

    fn both_with(options: BackendOptions) -> Both {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let backend = Backend::listen(&path, options).unwrap();
        let broker = Broker::new(&path, BrokerOptions::default()).unwrap();
        let (client, peer) = UnixStream::pair().unwrap();
        let mut both = Both { _directory: directory, backend, broker, client, _peer: peer };
        both.broker.dispatch().unwrap();
        both.backend.dispatch().unwrap();
        both.broker.dispatch().unwrap();
        both
    }

    impl Both {
        fn offer(&mut self, preread: &[u8]) {
            let offer = Offer {
                descriptor: self.client.as_fd(),
                preread: &[IoSlice::new(preread)],
                metadata: b"",
                service: b"",
                correlation: b"",
                user_data: 0,
                timeout: None,
                tls: false,
                more: false,
            };
            // SAFETY: the client is open as long as the broker.
            unsafe { self.broker.offer(&offer) }.unwrap();
        }
    }

    #[test]
    fn arrivals_can_be_adopted_when_their_numbers_begin_again() {
        let mut both = both();
        both.backend.arrivals.next_serial = arrivals::MAX_SERIAL;
        for _ in 0..2 {
            both.offer(b"");
            both.backend.dispatch().unwrap();
            let id = both.backend.next_arrival().unwrap().id;
            both.backend.adopt(id).unwrap();
        }
    }

    /// Takes what comes of so many offers, each in a packet of its own.
    fn take_some(both: &mut Both, count: usize) {
        for _ in 0..count {
            both.offer(b"");
        }
        both.backend.dispatch().unwrap();
        while let Some(Arrival { id, .. }) = both.backend.next_arrival() {
            both.backend.adopt(id).unwrap();
        }
        both.broker.dispatch().unwrap();
        while both.broker.next_verdict().is_some() {}
    }

    #[test]
    fn of_several_packets_the_next_is_received_when_the_one_before_is_taken() {
        let mut both = both();
        // Of large offers as well, but of long packets.
        for (turn, preread) in [(0, &[][..]), (1, &[0; 9000])] {
            take_some(&mut both, 2);
            for _ in 0..3 {
                both.offer(preread);
            }
            both.backend.dispatch().unwrap();
            for arrived in 3..=5 {
                let id = both.backend.next_arrival().unwrap().id;
                both.backend.adopt(id).unwrap();
                assert_eq!(both.backend.statistics().arrived, turn * 5 + arrived);
            }
            assert!(both.backend.next_arrival().is_none());
        }
    }

    #[test]
    fn verdicts_of_a_caller_who_takes_its_time_do_not_wait_for_the_end_of_a_packet() {
        let mut both = both();
        for more in [true, true, false] {
            let offer = Offer { more, ..Offer::new(both.client.as_fd()) };
            // SAFETY: the client is open as long as the broker.
            unsafe { both.broker.offer(&offer) }.unwrap();
        }
        both.backend.dispatch().unwrap();
        for told in 0..3 {
            let id = both.backend.next_arrival().unwrap().id;
            both.broker.dispatch().unwrap();
            assert_eq!(iter::from_fn(|| both.broker.next_verdict()).count(), told.min(1));
            both.backend.adopt(id).unwrap();
            // Longer than a tick.
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// So that others have their turn: how many come in it, and how many are left.
    #[test]
    fn large_packet_ends_the_turn() {
        let mut both = both();
        take_some(&mut both, 2);
        for preread in [&b"small"[..], &[0; wire::LARGE_LEN], b"left"] {
            both.offer(preread);
        }
        both.backend.dispatch().unwrap();
        let taken = |backend: &mut Backend| (0..).find(|_| backend.next_arrival().is_none());
        assert_eq!((taken(&mut both.backend), both.backend.unfinished.behind), (Some(2), true));
        both.backend.dispatch().unwrap();
        assert_eq!((taken(&mut both.backend), both.backend.unfinished.behind), (Some(1), false));
        assert!(!both.backend.inbox.is_one_by_one());
    }

    /// What the caller has adopted it may read until then, so it takes room beside what is held.
    #[test]
    fn turn_ends_when_it_takes_more_room_than_may_be_kept() {
        const LEN: usize = 1000;
        let options = BackendOptions { max_kept_bytes: 3 * LEN, ..Default::default() };
        let mut both = both_with(options);
        take_some(&mut both, 2);
        (0..6).for_each(|_| both.offer(&[0; LEN]));
        let mut turns = Vec::new();
        while turns.iter().sum::<usize>() < 6 {
            both.backend.dispatch().unwrap();
            let mut taken = 0;
            while let Some(Arrival { id, .. }) = both.backend.next_arrival() {
                both.backend.adopt(id).unwrap();
                taken += 1;
            }
            turns.push(taken);
        }
        assert_eq!(turns, [3, 3]);
    }

    /// If it holds nothing after a dispatch, it ends, and would leave to the brokers what is there.
    #[test]
    fn draining_backend_receives_all_at_once() {
        for one_by_one in [false, true] {
            let mut both = both();
            if one_by_one {
                take_some(&mut both, 2);
            }
            let before = both.backend.statistics().arrived;
            both.offer(&[0; wire::LARGE_LEN]);
            (1..30).for_each(|_| both.offer(b"small"));
            both.backend.drain().unwrap();
            both.backend.dispatch().unwrap();
            assert_eq!(both.backend.statistics().arrived, before + 30);
        }
    }

    /// What it cannot hold would be rejected.
    #[test]
    fn draining_backend_receives_no_more_than_it_may_hold() {
        const LEN: usize = 30_000;
        let limits = BackendOptions { max_held_bytes: 160_000, ..Default::default() };
        let mut both = both_with(limits);
        (0..6).for_each(|_| both.offer(&[0; LEN]));
        both.backend.drain().unwrap();
        let mut adopted = 0;
        loop {
            both.backend.dispatch().unwrap();
            if both.backend.statistics().held == 0 {
                break;
            }
            while let Some(Arrival { id, .. }) = both.backend.next_arrival() {
                both.backend.adopt(id).unwrap();
                adopted += 1;
            }
        }
        assert_eq!((adopted, both.backend.statistics().rejected), (6, 0));
    }

    /// Each verdict brings its broker a token: with that it could have one turn after the other.
    #[test]
    fn packets_of_several_brokers_are_received_before_any_is_taken() {
        let mut both = both();
        take_some(&mut both, 2);
        let path = both._directory.path().join("socket");
        let mut other = Broker::new(&path, BrokerOptions::default()).unwrap();
        other.dispatch().unwrap();
        while both.backend.statistics().channels < 2 {
            both.backend.dispatch().unwrap();
        }
        for _ in 0..3 {
            both.offer(b"");
        }
        both.backend.dispatch().unwrap();
        assert_eq!(both.backend.statistics().arrived, 2 + 3);
    }

    /// Which would lose the edge of a broker that connects. The timer for its hello is due in seconds.
    #[test]
    fn nothing_is_received_before_a_look_if_no_timer_is_due_soon() {
        let mut both = both();
        both.backend.dispatch().unwrap();
        both.offer(b"");
        both.backend.looked_at = Instant::now();
        assert!(!both.backend.receive_first());
        assert_eq!(both.backend.statistics().arrived, 0);
    }

    #[test]
    fn packets_are_received_at_once_again_when_there_is_mostly_one() {
        let mut both = both();
        take_some(&mut both, 2);
        let turns = (1..100).find(|_| {
            take_some(&mut both, 1);
            !both.backend.inbox.is_one_by_one()
        });
        assert!((2..50).contains(&turns.unwrap()));
    }

    #[test]
    fn turn_of_a_channel_ends_and_the_next_one_takes_what_is_left() {
        let mut both = both();
        take_some(&mut both, 2);
        let mut taken = 2;
        for _ in 0..10 {
            both.offer(b"");
        }
        let mut turns = Vec::new();
        while taken < 2 + 10 {
            both.backend.dispatch().unwrap();
            let before = taken;
            while both.backend.next_arrival().is_some() {
                taken += 1;
            }
            turns.push(taken - before);
        }
        assert_eq!(turns, [8, 2]);
    }

    #[test]
    fn packet_that_was_not_received_goes_with_a_channel_that_its_broker_broke() {
        let mut both = both();
        take_some(&mut both, 2);
        for preread in [&b"taken"[..], b"in the next packet", b"in the one after that"] {
            both.offer(preread);
        }
        both.backend.dispatch().unwrap();
        let taken = both.backend.next_place().unwrap();
        both.backend.end(taken.channel, End::Broken);
        assert!(both.backend.next_arrival().is_none());
        assert_eq!(both.backend.statistics().arrived, 3);
    }

    #[test]
    fn bytes_of_an_arrival_outlive_a_broken_channel_until_adopting_says_so() {
        let mut both = both();
        for preread in [&b"adopted"[..], b"held", b"not looked at"] {
            both.offer(preread);
        }
        both.backend.dispatch().unwrap();
        let adopted = both.backend.next_place().unwrap();
        both.backend.adopt(adopted.id()).unwrap();
        let held = both.backend.next_place().unwrap();
        both.backend.end(held.channel, End::Broken);
        assert_eq!(both.backend.statistics().held, 1);
        assert_eq!(both.backend.view(adopted).preread, b"adopted");
        both.backend.dispatch().unwrap();
        both.backend.dispatch().unwrap();
        assert_eq!(both.backend.view(held).preread, b"held");
        let result = both.backend.adopt(held.id());
        assert!(matches!(result, Err(BackendError::TakenBack { .. })));
        assert!(both.backend.next_arrival().is_none());
        both.backend.dispatch().unwrap();
        let BackendStatistics { held, held_bytes, channels, .. } = both.backend.statistics();
        assert_eq!((held, held_bytes, channels), (0, 0, 0));
    }
}
