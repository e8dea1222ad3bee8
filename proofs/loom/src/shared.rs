//! Threads that share a desk, in every interleaving with up to two preemptions: nobody waits for
//! what has happened. A wait that nothing ends is a deadlock, which loom reports. The code is the
//! library's own, with loom's locks; the desk and its backend are small models.

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
use loom::thread;
use std::time::Instant;

#[path = "../../../src/broker/shared/crew.rs"]
mod crew;
#[path = "../../../src/broker/shared/waits.rs"]
mod waits;

use crew::{Attempt, Crew, Desk, Watch};
use waits::{Wait, Waits};

#[derive(Debug, PartialEq)]
enum Refused {
    Woken,
    Full,
    Closed,
}

/// A verdict: the seat, the offer, and whether it is adopted.
type Verdict = (usize, u64, bool);

/// What the desk and the backend share: offers one way, and back what was adopted.
#[derive(Default)]
struct Wire {
    state: Mutex<OnTheWire>,
    changed: Condvar,
}

#[derive(Default)]
struct OnTheWire {
    offers: Vec<u64>,
    adopted: Vec<u64>,
    /// The timer has fired.
    fired: bool,
}

struct Model {
    wire: Arc<Wire>,
    room: usize,
    next_id: u64,
    in_flight: Vec<(usize, u64)>,
    verdicts: Vec<Verdict>,
    /// Handed out, and not taken.
    untaken: usize,
    closed: bool,
}

impl Drop for Model {
    fn drop(&mut self) {
        assert!(std::thread::panicking() || self.untaken == 0);
    }
}

impl Model {
    fn settle(&mut self, id: u64, adopted: bool) {
        if let Some(place) = self.in_flight.iter().position(|(_, offer)| *offer == id) {
            let (seat, id) = self.in_flight.remove(place);
            self.verdicts.push((seat, id, adopted));
        }
    }

    fn offer(&mut self, seat: usize) -> Attempt<Refused> {
        if self.closed {
            return Attempt::Refused(Refused::Closed);
        }
        if self.in_flight.len() == self.room {
            return Attempt::Later(Refused::Full);
        }
        self.next_id += 1;
        self.in_flight.push((seat, self.next_id));
        let mut wire = self.wire.state.lock().unwrap();
        wire.offers.push(self.next_id);
        // Its deadline sets the timer anew: it has not fired then.
        wire.fired = false;
        self.wire.changed.notify_all();
        Attempt::Offered(self.next_id)
    }

    fn close(&mut self) {
        self.closed = true;
        while let Some((_, id)) = self.in_flight.first().copied() {
            self.settle(id, false);
        }
    }
}

impl Desk for Model {
    type Verdict = Verdict;
    type Error = Refused;
    type Needs = ();
    type Refused = Refused;

    fn would_wait(&mut self, (): ()) -> Option<()> {
        (!self.closed && self.in_flight.len() == self.room).then_some(())
    }

    fn is_between((): (), (): (), (): ()) -> bool {
        true
    }

    fn is_behind(&self, (): (), mut ahead: impl Iterator<Item = ()>) -> bool {
        ahead.next().is_some()
    }

    fn dispatch(&mut self) -> Result<(), Refused> {
        let adopted = {
            let mut wire = self.wire.state.lock().unwrap();
            wire.fired = false;
            std::mem::take(&mut wire.adopted)
        };
        for id in adopted {
            self.settle(id, true);
        }
        if self.closed { Err(Refused::Closed) } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Refused> {
        Ok(())
    }

    fn take_back(&mut self, id: u64) -> bool {
        let mut wire = self.wire.state.lock().unwrap();
        let Some(place) = wire.offers.iter().position(|offer| *offer == id) else { return false };
        wire.offers.remove(place);
        self.in_flight.retain(|(_, offer)| *offer != id);
        true
    }

    fn end(&mut self, id: u64) {
        self.settle(id, false);
    }

    fn refused(&mut self, refused: Refused) -> Refused {
        refused
    }

    fn after_wait(&mut self) {}

    fn next_awaited(&mut self) -> Option<(usize, u64, Verdict)> {
        let (seat, id, _) = *self.verdicts.first()?;
        self.untaken += 1;
        Some((seat, id, self.verdicts.remove(0)))
    }

    fn is_taken(&mut self, _: &Verdict) {
        self.untaken -= 1;
    }

    fn woken() -> Refused {
        Refused::Woken
    }
}

struct Timer(Arc<Wire>);

impl Watch<Model> for Timer {
    fn before_release(&self, _: &mut Model) {}

    fn wait(&self, _: Option<Instant>) -> Result<(), Refused> {
        let mut wire = self.0.state.lock().unwrap();
        while !wire.fired && wire.adopted.is_empty() {
            wire = self.0.changed.wait(wire).unwrap();
        }
        Ok(())
    }

    fn ring(&self) {
        self.0.state.lock().unwrap().fired = true;
        self.0.changed.notify_all();
    }
}

type Office = Arc<Crew<Model, Timer>>;

fn office(room: usize) -> (Office, Arc<Wire>) {
    let wire = Arc::new(Wire::default());
    let model = Model {
        wire: wire.clone(),
        room,
        next_id: 0,
        in_flight: Vec::new(),
        verdicts: Vec::new(),
        untaken: 0,
        closed: false,
    };
    (Arc::new(Crew::new(model, Timer(wire.clone()))), wire)
}

fn offer_and_wait(office: &Office) -> Result<bool, Refused> {
    office.offer_and_wait((), None, |model, seat, _| model.offer(seat), |_, verdict| verdict.2)
}

fn wake(office: &Office) {
    if office.waits.wake() {
        office.watch.ring();
    }
}

/// A backend that adopts so many connections.
fn adopt(wire: &Wire, count: usize) {
    for _ in 0..count {
        let mut state = wire.state.lock().unwrap();
        while state.offers.is_empty() {
            state = wire.changed.wait(state).unwrap();
        }
        let id = state.offers.remove(0);
        state.adopted.push(id);
        wire.changed.notify_all();
    }
}

fn explore(what: &str, body: impl Fn() + Send + Sync + 'static) {
    explore_preempted(2, what, body);
}

fn explore_preempted(most: usize, what: &str, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(most);
    super::explore_with(builder, what, body);
}

#[test]
fn each_of_two_threads_has_its_verdict() {
    for room in [2, 1] {
        explore(&format!("two threads that share, room for {room}"), move || {
            let (office, wire) = office(room);
            let other = {
                let office = office.clone();
                thread::spawn(move || offer_and_wait(&office))
            };
            let backend = thread::spawn(move || adopt(&wire, 2));
            assert_eq!(offer_and_wait(&office), Ok(true));
            assert_eq!(other.join().unwrap(), Ok(true));
            backend.join().unwrap();
        });
    }
}

#[test]
fn each_of_three_threads_has_the_room_in_its_turn() {
    explore_preempted(1, "three threads that share room for 1", || {
        let (office, wire) = office(1);
        let others = [(); 2].map(|()| {
            let office = office.clone();
            thread::spawn(move || offer_and_wait(&office))
        });
        let backend = thread::spawn(move || adopt(&wire, 3));
        assert_eq!(offer_and_wait(&office), Ok(true));
        for other in others {
            assert_eq!(other.join().unwrap(), Ok(true));
        }
        backend.join().unwrap();
    });
}

#[test]
fn closing_ends_the_waits_of_both_threads() {
    for room in [2, 1] {
        explore(&format!("two threads that share, and the end, room for {room}"), move || {
            let (office, _wire) = office(room);
            let both = [(); 2].map(|()| {
                let office = office.clone();
                thread::spawn(move || offer_and_wait(&office))
            });
            office.with(Model::close);
            for one in both {
                let result = one.join().unwrap();
                assert!(matches!(result, Ok(false) | Err(Refused::Closed)), "{result:?}");
            }
        });
    }
}

#[test]
fn what_a_call_has_done_before_it_panics_reaches_both_threads() {
    explore("two threads that share, and an end that panics", || {
        let (office, _wire) = office(1);
        let both = [(); 2].map(|()| {
            let office = office.clone();
            thread::spawn(move || offer_and_wait(&office))
        });
        let close = || {
            office.with(|model| {
                model.close();
                std::panic::resume_unwind(Box::new("a bug"))
            })
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(close)).is_err());
        for one in both {
            let result = one.join().unwrap();
            assert!(matches!(result, Ok(false) | Err(Refused::Closed)), "{result:?}");
        }
    });
}

#[test]
fn closing_ends_the_waits_of_all_that_wait_for_room() {
    explore_preempted(2, "three threads that share room for 1, and the end", || {
        let (office, _wire) = office(1);
        let all = [(); 3].map(|()| {
            let office = office.clone();
            thread::spawn(move || offer_and_wait(&office))
        });
        office.with(Model::close);
        for one in all {
            let result = one.join().unwrap();
            assert!(matches!(result, Ok(false) | Err(Refused::Closed)), "{result:?}");
        }
    });
}

#[test]
fn each_wake_ends_a_wait() {
    explore("a wait and a wake", || {
        let (office, _wire) = office(1);
        let waiting = {
            let office = office.clone();
            thread::spawn(move || offer_and_wait(&office))
        };
        wake(&office);
        assert_eq!(waiting.join().unwrap(), Err(Refused::Woken));
    });
}

#[test]
fn wake_is_not_lost_when_another_thread_sets_the_timer() {
    explore("a wait, a wake and an offer", || {
        let (office, _wire) = office(2);
        let waiting = {
            let office = office.clone();
            thread::spawn(move || offer_and_wait(&office))
        };
        let waker = {
            let office = office.clone();
            thread::spawn(move || wake(&office))
        };
        // Nobody waits for the verdict on this one, but its deadline sets the timer.
        office.with(|model| drop(model.offer(usize::MAX)));
        assert_eq!(waiting.join().unwrap(), Err(Refused::Woken));
        waker.join().unwrap();
    });
}
