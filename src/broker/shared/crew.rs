//! Threads that share a desk: one of them waits for events and does what is due, the leader; the
//! others wait for their verdicts.
//!
//! The leader waits without the lock, so that others can offer meanwhile. When it has its own
//! verdict it leaves, and another thread that waits is told to lead. Nobody is told anything but
//! what is for it: its verdict, room, a wake, or that nobody leads. Offers that wait for room do so
//! in a queue, and none gets what one ahead of it waits for; beside that there may be room for it.
//!
//! What holds whenever the lock is free: if any thread waits, one leads, or one was told that none
//! does and has not run since. If attempts of some in the queue would come to something, the first of
//! these was called, and has not run since.
//!
//! No I/O is here: the desk and the watch are the parent's, and so are the locks, so that
//! proofs/loom can put its own in their place.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{PoisonError, TryLockError};
use std::time::Instant;

use super::{Arc, Condvar, Mutex, MutexGuard, Wait, Waits};

/// What the threads share.
pub(super) trait Desk {
    type Verdict: Debug;
    type Error;
    /// What a backend must be able to take to get an offer.
    type Needs: Copy + Debug;
    /// Why an offer is refused: an error, and what the desk notes with it.
    type Refused: From<Self::Error>;

    /// Does what is due, without waiting.
    fn dispatch(&mut self) -> Result<(), Self::Error>;

    /// Whether there is neither room for an offer now nor an error, so that it is to wait: then so are
    /// all that need as much, up to the needs that it returns. Sees to it that the watch ends when
    /// time alone has changed that.
    fn would_wait(&mut self, needs: Self::Needs) -> Option<Self::Needs>;

    /// Whether these needs are between others, which may be the same.
    fn is_between(needs: Self::Needs, least: Self::Needs, most: Self::Needs) -> bool;

    /// Whether an offer may get now what one of these waits for.
    fn is_behind(&self, needs: Self::Needs, ahead: impl Iterator<Item = Self::Needs>) -> bool;

    /// Sends what was offered.
    fn flush(&mut self) -> Result<(), Self::Error>;

    /// Takes an offer back; false if it is too late: it has a verdict, or will have one.
    fn take_back(&mut self, id: u64) -> bool;

    /// Gives an offer that cannot be taken back its verdict.
    fn end(&mut self, id: u64);

    /// The next verdict that a thread waits for: its seat, its offer, and the verdict.
    fn next_awaited(&mut self) -> Option<(usize, u64, Self::Verdict)>;

    /// The thread has taken it, or never will.
    fn is_taken(&mut self, verdict: &Self::Verdict);

    /// An offer is refused: before anybody else has the desk, so that it can be noted.
    fn refused(&mut self, refused: Self::Refused) -> Self::Error;

    /// A thread has ended its wait: those who wait for the descriptor may have to be told.
    fn after_wait(&mut self);

    /// The wait was ended.
    fn woken() -> Self::Error;
}

/// What the leader waits for.
pub(super) trait Watch<D: Desk> {
    /// Waits until something is due, until [`ring`](Watch::ring) or until the deadline.
    fn wait(&self, deadline: Option<Instant>) -> Result<(), D::Error>;

    /// The lock is about to be released. Those who wait have their verdicts.
    fn before_release(&self, desk: &mut D);

    /// Ends the leader's wait.
    fn ring(&self);
}

/// What came of an attempt to offer.
pub(super) enum Attempt<R> {
    /// It is offered, with this id.
    Offered(u64),
    /// There may be room soon.
    Later(R),
    Refused(R),
}

#[derive(Debug)]
pub(super) struct Crew<D: Desk, W> {
    state: Mutex<State<D>>,
    pub(super) watch: W,
    pub(super) waits: Waits,
}

#[derive(Debug)]
struct State<D: Desk> {
    desk: D,
    seats: Vec<Seat<D::Verdict>>,
    free: Vec<usize>,
    /// The seats of those who wait, in no order.
    waiting: Vec<usize>,
    /// Those of them who wait for room, the first to come first, and for what.
    room: VecDeque<(usize, D::Needs)>,
    /// Something has happened that may be room for those, or an error.
    changed: bool,
    /// The seat of the leader.
    leader: Option<usize>,
    /// There is something for the leader, which has not seen it yet.
    leader_called: bool,
    /// The wakes that were passed on.
    wakes: u64,
    bells: Bells,
}

/// Where a thread waits.
#[derive(Debug)]
struct Seat<V> {
    bell: Arc<Condvar>,
    /// The offer that it waits for. None: it waits for room, or nobody sits here.
    offer: Option<u64>,
    verdict: Option<V>,
    /// It was called to try for room, and has not run since.
    called: bool,
    /// Its place in `waiting`.
    place: usize,
}

/// Bells to ring when the lock is free, so that who is called need not wait for it.
#[derive(Debug, Default)]
struct Bells([Option<Arc<Condvar>>; Bells::MOST]);

impl Bells {
    const MOST: usize = 8;

    fn add(&mut self, bell: &Arc<Condvar>) {
        match self.0.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(Arc::clone(bell)),
            None => bell.notify_one(),
        }
    }

    fn ring(&mut self) {
        for bell in self.0.iter_mut().map_while(Option::take) {
            bell.notify_one();
        }
    }
}

impl<D: Desk> State<D> {
    /// Takes a seat.
    fn sit(&mut self) -> usize {
        let seat = self.free.pop().unwrap_or_else(|| {
            let bell = Arc::new(Condvar::new());
            self.seats.push(Seat { bell, offer: None, verdict: None, called: false, place: 0 });
            self.seats.len() - 1
        });
        self.seats[seat].place = self.waiting.len();
        self.waiting.push(seat);
        seat
    }

    fn remove_waiting(&mut self, seat: usize) {
        let place = self.seats[seat].place;
        if self.waiting.get(place) == Some(&seat) {
            self.waiting.swap_remove(place);
            if let Some(moved) = self.waiting.get(place) {
                self.seats[*moved].place = place;
            }
        }
    }

    /// Leaves a seat. Another has to lead then, or to try for room.
    fn stand_up(&mut self, seat: usize) {
        self.remove_waiting(seat);
        self.leave_room(seat);
        if self.leader == Some(seat) {
            self.leader = None;
            self.leader_called = false;
        }
        if let (None, Some(next)) = (self.leader, self.waiting.last()) {
            self.bells.add(&self.seats[*next].bell);
        }
        let left = &mut self.seats[seat];
        (left.offer, left.called) = (None, false);
        if let Some(verdict) = left.verdict.take() {
            self.desk.is_taken(&verdict);
        }
        self.free.push(seat);
    }

    /// The place of a seat in the queue for room; behind all, if it is not there.
    fn place_in_queue(&self, seat: usize) -> usize {
        let place = self.room.iter().position(|(other, _)| *other == seat);
        place.unwrap_or(self.room.len())
    }

    /// Leaves the queue for room.
    fn leave_room(&mut self, seat: usize) {
        self.changed |= self.room.remove(self.place_in_queue(seat)).is_some();
    }

    /// Whether an offer at a place of the queue may try.
    fn may_try(&self, place: usize, needs: D::Needs) -> bool {
        !self.desk.is_behind(needs, self.room.iter().take(place).map(|(_, ahead)| *ahead))
    }

    /// Has the first in the queue try whose attempt would come to something.
    fn call_for_room(&mut self) {
        if !mem::take(&mut self.changed) {
            return;
        }
        let mut vain: Option<(D::Needs, D::Needs)> = None;
        for place in 0..self.room.len() {
            let (seat, needs) = self.room[place];
            if vain.is_some_and(|(least, most)| D::is_between(needs, least, most)) {
                continue;
            }
            if let Some(most) = self.desk.would_wait(needs) {
                vain = Some((needs, most));
            } else if self.may_try(place, needs) {
                if !mem::replace(&mut self.seats[seat].called, true) || self.leader == Some(seat) {
                    self.call(seat);
                }
                return;
            }
        }
    }

    fn call(&mut self, seat: usize) {
        if self.leader == Some(seat) {
            self.leader_called = true;
        } else {
            self.bells.add(&self.seats[seat].bell);
        }
    }

    /// Does what is due.
    fn dispatch(&mut self) -> Result<(), D::Error> {
        let dispatched = self.desk.dispatch();
        self.changed = true;
        self.hand_out();
        dispatched
    }

    /// Takes an offer back, if it is not too late. It may show that a backend is broken, which ends
    /// others.
    fn take_back(&mut self, id: u64) -> bool {
        let taken_back = self.desk.take_back(id);
        self.changed = true;
        self.hand_out();
        taken_back
    }

    /// Gives the verdicts that are there to those who wait for them.
    fn hand_out(&mut self) {
        while let Some((seat, id, verdict)) = self.desk.next_awaited() {
            self.changed = true;
            let Some(waits) = self.seats.get_mut(seat).filter(|it| it.offer == Some(id)) else {
                // The thread has panicked.
                self.desk.is_taken(&verdict);
                continue;
            };
            (waits.offer, waits.verdict) = (None, Some(verdict));
            self.remove_waiting(seat);
            self.call(seat);
        }
    }

    /// Passes a wake on to all who wait: those who came later will find that it is not for them.
    fn pass_on(&mut self, wakes: u64) {
        if mem::replace(&mut self.wakes, wakes) != wakes {
            for place in 0..self.waiting.len() {
                self.call(self.waiting[place]);
            }
        }
    }
}

impl<D: Desk, W: Watch<D>> Crew<D, W> {
    pub(super) fn new(desk: D, watch: W) -> Crew<D, W> {
        let state = State {
            desk,
            seats: Vec::new(),
            free: Vec::new(),
            waiting: Vec::new(),
            room: VecDeque::new(),
            changed: false,
            leader: None,
            leader_called: false,
            wakes: 0,
            bells: Bells::default(),
        };
        Crew { state: Mutex::new(state), watch, waits: Waits::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<D>> {
        // What a panic leaves behind is whole: see `Sitting`.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody has the lock now.
    pub(super) fn is_free(&self) -> bool {
        !matches!(self.state.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// To be called before the lock is released: calls the leader if there is something for it.
    /// Each time until it has seen it, for whoever sets a timer may undo an earlier call.
    fn before_release(&self, state: &mut State<D>) {
        state.call_for_room();
        self.watch.before_release(&mut state.desk);
        state.pass_on(self.waits.wakes());
        if state.leader_called {
            self.watch.ring();
        }
    }

    fn release(&self, mut state: MutexGuard<'_, State<D>>) {
        self.before_release(&mut state);
        let mut bells = mem::take(&mut state.bells);
        drop(state);
        bells.ring();
    }

    /// Does anything else at the desk.
    pub(super) fn with<T>(&self, body: impl FnOnce(&mut D) -> T) -> T {
        let mut state = self.lock();
        // Whatever becomes of this thread, the others get what the body has done for them.
        let result = panic::catch_unwind(AssertUnwindSafe(|| body(&mut state.desk)));
        state.changed = true;
        state.hand_out();
        self.release(state);
        result.unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// Offers, and waits for the verdict; before that, until the deadline, for room. The attempt to
    /// offer is told the seat, and whether the thread has waited. `finish` is given the desk once
    /// more, with the verdict.
    pub(super) fn offer_and_wait<T>(
        &self,
        needs: D::Needs,
        deadline: Option<Instant>,
        attempt: impl FnMut(&mut D, usize, bool) -> Attempt<D::Refused>,
        finish: impl FnOnce(&D, &D::Verdict) -> T,
    ) -> Result<T, D::Error> {
        let wait = self.waits.begin();
        let mut state = self.lock();
        let mut sitting =
            Sitting { crew: self, seat: state.sit(), wait, woken: false, left: false };
        let (mut state, result) = sitting.offer_and_wait(state, needs, deadline, attempt);
        let result = result.map(|verdict| {
            let finished = finish(&state.desk, &verdict);
            state.desk.is_taken(&verdict);
            finished
        });
        state.desk.after_wait();
        sitting.leave(&mut state);
        self.release(state);
        result
    }
}

/// A thread that offers or waits. If it panics, its seat and its duties do not stay with it.
struct Sitting<'a, D: Desk, W: Watch<D>> {
    crew: &'a Crew<D, W>,
    seat: usize,
    wait: Wait,
    woken: bool,
    left: bool,
}

impl<D: Desk, W: Watch<D>> Drop for Sitting<'_, D, W> {
    fn drop(&mut self) {
        if !self.left {
            let mut state = self.crew.lock();
            state.changed = true;
            self.leave(&mut state);
            self.crew.release(state);
        }
    }
}

type Held<'a, D> = MutexGuard<'a, State<D>>;

impl<'a, D: Desk, W: Watch<D>> Sitting<'a, D, W> {
    fn leave(&mut self, state: &mut State<D>) {
        self.left = true;
        self.crew.waits.end(self.woken);
        state.stand_up(self.seat);
    }

    fn offer_and_wait(
        &mut self,
        state: Held<'a, D>,
        needs: D::Needs,
        deadline: Option<Instant>,
        attempt: impl FnMut(&mut D, usize, bool) -> Attempt<D::Refused>,
    ) -> (Held<'a, D>, Result<D::Verdict, D::Error>) {
        let (mut state, offered) = self.offer(state, needs, deadline, attempt);
        let id = match offered {
            Ok(id) => id,
            Err(refused) => {
                let error = state.desk.refused(refused);
                return (state, Err(error));
            }
        };
        state.seats[self.seat].offer = Some(id);
        state.leave_room(self.seat);
        let flushed = state.desk.flush();
        state.hand_out();
        match flushed {
            Ok(()) => self.verdict(state, id),
            Err(error) => self.give_up(state, id, error),
        }
    }

    /// Offers, and before that waits for room.
    fn offer(
        &mut self,
        mut state: Held<'a, D>,
        needs: D::Needs,
        deadline: Option<Instant>,
        mut attempt: impl FnMut(&mut D, usize, bool) -> Attempt<D::Refused>,
    ) -> (Held<'a, D>, Result<u64, D::Refused>) {
        let seat = self.seat;
        if state.leader.is_none() {
            // Connects, if it is time for that. Otherwise the leader has done it.
            if let Err(error) = state.dispatch() {
                return (state, Err(error.into()));
            }
        }
        let mut queues = false;
        loop {
            let late = deadline.is_some_and(|deadline| deadline <= Instant::now());
            let place = state.place_in_queue(seat);
            let waits = !state.room.is_empty() && state.desk.would_wait(needs).is_some();
            // The first attempt finds out what is wrong with the offer itself.
            if late || if waits { !queues } else { state.may_try(place, needs) } {
                let refused = match attempt(&mut state.desk, seat, queues) {
                    Attempt::Offered(id) => return (state, Ok(id)),
                    Attempt::Refused(refused) => return (state, Err(refused)),
                    Attempt::Later(refused) => refused,
                };
                if late {
                    return (state, Err(refused));
                }
            }
            if self.crew.waits.is_woken(self.wait) {
                self.woken = true;
                return (state, Err(D::woken().into()));
            }
            if !mem::replace(&mut queues, true) {
                state.room.push_back((seat, needs));
            }
            let result;
            (state, result) = self.pause(state, deadline);
            state.seats[seat].called = false;
            if let Err(error) = result {
                return (state, Err(error.into()));
            }
        }
    }

    /// Waits for the verdict, which comes at the offer's deadline at the latest.
    fn verdict(
        &mut self,
        mut state: Held<'a, D>,
        id: u64,
    ) -> (Held<'a, D>, Result<D::Verdict, D::Error>) {
        loop {
            if let Some(verdict) = state.seats[self.seat].verdict.take() {
                return (state, Ok(verdict));
            }
            if self.crew.waits.is_woken(self.wait) {
                if state.take_back(id) {
                    self.woken = true;
                    return (state, Err(D::woken()));
                }
                // It has its verdict, or the verdict is on its way.
                if state.seats[self.seat].verdict.is_some() {
                    continue;
                }
            }
            let result;
            (state, result) = self.pause(state, None);
            if let Err(error) = result {
                return self.give_up(state, id, error);
            }
        }
    }

    /// After an error the caller serves the connection, so the backend must not adopt it.
    fn give_up(
        &mut self,
        mut state: Held<'a, D>,
        id: u64,
        error: D::Error,
    ) -> (Held<'a, D>, Result<D::Verdict, D::Error>) {
        if state.seats[self.seat].verdict.is_none() && !state.take_back(id) {
            state.desk.end(id);
            state.hand_out();
        }
        let verdict = state.seats[self.seat].verdict.take();
        (state, verdict.ok_or(error))
    }

    /// Waits until there may be something for this thread: as the leader, if there is no other.
    fn pause(
        &self,
        mut state: Held<'a, D>,
        deadline: Option<Instant>,
    ) -> (Held<'a, D>, Result<(), D::Error>) {
        let crew = self.crew;
        if *state.leader.get_or_insert(self.seat) == self.seat {
            state.leader_called = false;
            crew.release(state);
            let waited = crew.watch.wait(deadline);
            let mut state = crew.lock();
            state.leader_called = false;
            let result = waited.and_then(|()| state.dispatch());
            return (state, result);
        }
        let passed_on = state.wakes;
        crew.before_release(&mut state);
        mem::take(&mut state.bells).ring();
        if state.wakes != passed_on || state.seats[self.seat].called {
            // A wake or room came just now: this thread's bell has rung, and it did not wait yet.
            return (state, Ok(()));
        }
        let bell = Arc::clone(&state.seats[self.seat].bell);
        let state = match deadline {
            None => bell.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                bell.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        (state, Ok(()))
    }
}
