//! Threads that share a desk: a wake that comes at the worst time, and who waits behind whom.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use super::*;
use crate::backend::{Backend, BackendOptions};
use crate::broker::{BackendSettings, BrokerOptions};

const PATIENCE: Duration = Duration::from_secs(60);

/// A desk that takes every offer, and whose backend says nothing before it is told to.
#[derive(Debug, Default)]
struct Silent {
    /// By their seats.
    in_flight: Vec<(usize, u64)>,
    /// The backend has adopted them all; and has said so.
    adopted: bool,
    told: bool,
    /// Taking an offer back shows that the backend is broken, which ends all others.
    broken: bool,
    /// Offers that were to be taken back too late.
    too_late: usize,
}

impl Desk for Silent {
    type Verdict = ();
    type Error = &'static str;
    type Needs = usize;
    type Refused = &'static str;

    fn would_wait(&mut self, _: usize) -> Option<usize> {
        None
    }

    fn is_between(needs: usize, least: usize, most: usize) -> bool {
        (least..=most).contains(&needs)
    }

    fn is_behind(&self, needs: usize, mut ahead: impl Iterator<Item = usize>) -> bool {
        ahead.any(|ahead| needs >= ahead)
    }

    fn dispatch(&mut self) -> Result<(), &'static str> {
        Ok(())
    }

    fn flush(&mut self) -> Result<(), &'static str> {
        Ok(())
    }

    fn take_back(&mut self, id: u64) -> bool {
        if !self.adopted {
            self.in_flight.retain(|(_, offer)| *offer != id);
        }
        self.told |= self.broken;
        self.too_late += usize::from(self.adopted);
        !self.adopted
    }

    fn end(&mut self, _: u64) {}

    fn next_awaited(&mut self) -> Option<(usize, u64, ())> {
        let (seat, id) = self.told.then(|| self.in_flight.pop()).flatten()?;
        Some((seat, id, ()))
    }

    fn is_taken(&mut self, (): &()) {}

    fn refused(&mut self, refused: &'static str) -> &'static str {
        refused
    }

    fn after_wait(&mut self) {}

    fn woken() -> &'static str {
        "woken"
    }
}

/// Holds the leader in its wait until it is let go, and can have a wake come before a release.
struct Gate {
    let_go: Mutex<Receiver<()>>,
    waits: AtomicBool,
    wakes: AtomicBool,
    crew: OnceLock<&'static Crew<Silent, Gate>>,
}

impl Watch<Silent> for Gate {
    fn wait(&self, _: Option<Instant>) -> Result<(), &'static str> {
        self.waits.store(true, Ordering::SeqCst);
        let let_go = self.let_go.lock().unwrap();
        let _ = let_go.recv_timeout(PATIENCE);
        Ok(())
    }

    fn before_release(&self, _: &mut Silent) {
        if self.wakes.swap(false, Ordering::SeqCst) {
            self.crew.get().unwrap().waits.wake();
        }
    }

    fn ring(&self) {}
}

fn office() -> (&'static Crew<Silent, Gate>, Sender<()>) {
    let (let_go, receiver) = mpsc::channel();
    let gate = Gate {
        let_go: Mutex::new(receiver),
        waits: AtomicBool::new(false),
        wakes: AtomicBool::new(false),
        crew: OnceLock::new(),
    };
    let crew: &Crew<_, _> = Box::leak(Box::new(Crew::new(Silent::default(), gate)));
    let _ = crew.watch.crew.set(crew);
    (crew, let_go)
}

/// A thread that waits, once it has offered.
fn wait(
    crew: &'static Crew<Silent, Gate>,
    id: u64,
) -> thread::JoinHandle<Result<(), &'static str>> {
    let has_offered = Arc::new(AtomicBool::new(false));
    let offers = Arc::clone(&has_offered);
    let waits = thread::spawn(move || {
        let attempt = |desk: &mut Silent, seat, _| {
            desk.in_flight.push((seat, id));
            offers.store(true, Ordering::SeqCst);
            Attempt::Offered(id)
        };
        crew.offer_and_wait(0, None, attempt, |_, ()| ())
    });
    let start = Instant::now();
    while !has_offered.load(Ordering::SeqCst) {
        assert!(start.elapsed() < PATIENCE);
        thread::yield_now();
    }
    waits
}

fn await_leader(crew: &Crew<Silent, Gate>) {
    while !crew.watch.waits.load(Ordering::SeqCst) {
        thread::yield_now();
    }
}

fn await_end<T>(thread: &thread::JoinHandle<T>, otherwise: &str) {
    let start = Instant::now();
    while !thread.is_finished() {
        assert!(start.elapsed() < PATIENCE / 4, "{otherwise}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn woken_thread_whose_offer_is_adopted_leaves_the_desk_to_others_until_its_verdict() {
    let (crew, let_go) = office();
    crew.with(|desk| desk.adopted = true);
    let leader = wait(crew, 1);
    await_leader(crew);
    let other = wait(crew, 2);
    crew.waits.wake();
    // Passes the wake on; the other thread finds that it is too late for it.
    crew.with(|_| ());
    let start = Instant::now();
    while crew.with(|desk| desk.too_late == 0) {
        assert!(start.elapsed() < PATIENCE, "it does not try");
        thread::sleep(Duration::from_millis(1));
    }
    let tells = thread::spawn(move || crew.with(|desk| desk.told = true));
    await_end(&tells, "the desk is not free");
    let_go.send(()).unwrap();
    assert_eq!((leader.join().unwrap(), other.join().unwrap()), (Ok(()), Ok(())));
}

#[test]
fn verdicts_that_come_when_another_thread_takes_its_offer_back_are_handed_out() {
    let (crew, let_go) = office();
    crew.with(|desk| desk.broken = true);
    let leader = wait(crew, 1);
    await_leader(crew);
    let woken = wait(crew, 2);
    crew.waits.wake();
    // It is not for this one, which passes it on.
    let other = wait(crew, 3);
    assert_eq!(woken.join().unwrap(), Err("woken"));
    await_end(&other, "its verdict is not handed out");
    assert_eq!(other.join().unwrap(), Ok(()));
    let_go.send(()).unwrap();
    assert_eq!(leader.join().unwrap(), Ok(()));
}

#[test]
fn wake_that_comes_when_a_thread_is_about_to_wait_ends_its_wait() {
    let (crew, let_go) = office();
    let leader = wait(crew, 1);
    // The next release after its own is that of the thread to be woken.
    await_leader(crew);
    crew.watch.wakes.store(true, Ordering::SeqCst);
    let woken = wait(crew, 2);
    // These began later, so the leader leaves to one of them, and not to the one that was missed.
    let later: Vec<_> = [3, 4].into_iter().map(|id| wait(crew, id)).collect();
    let_go.send(()).unwrap();
    assert_eq!(leader.join().unwrap(), Err("woken"));
    await_end(&woken, "the wake was lost");
    assert_eq!(woken.join().unwrap(), Err("woken"));
    // The others leave one after the other.
    crew.waits.wake();
    crew.with(|_| ());
    for _ in 0..8 {
        let _ = let_go.send(());
    }
    later.into_iter().for_each(|it| assert_eq!(it.join().unwrap(), Err("woken")));
}

/// What would wait behind what: an offer without a preread, and one with 100 bytes that is first.
fn is_behind_a_larger_one(max_offer_bytes: usize) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let options = || BackendOptions { max_offer_bytes, ..BackendOptions::default() };
    let paths = ["0", "1"].map(|name| directory.path().join(name));
    let mut backends = paths.each_ref().map(|path| Backend::listen(path, options()).unwrap());
    let mut broker = Broker::new(&paths[0], BrokerOptions::default()).unwrap();
    broker.add(&paths[1], BackendSettings::default()).unwrap();
    let offers =
        [0, 100].map(|len| Waiting { needs: Needs { len, tls: false }, deadline: Instant::now() });
    while broker.members.iter().any(|it| it.room(usize::MAX, Instant::now()) == 0) {
        broker.dispatch().unwrap();
        backends.iter_mut().for_each(|backend| backend.dispatch().unwrap());
    }
    assert!(broker.would_wait(offers[0]).is_none());
    broker.is_behind(offers[0], [offers[1]].into_iter())
}

#[test]
fn what_needs_less_is_behind_what_the_same_backend_will_take() {
    assert!(is_behind_a_larger_one(1000));
    assert!(!is_behind_a_larger_one(99));
}
