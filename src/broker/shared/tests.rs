//! A wake that comes at the worst time, between threads that share a desk.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// A desk that takes every offer, and whose backend says nothing.
#[derive(Debug, Default)]
struct Silent {
    in_flight: Vec<u64>,
}

impl Desk for Silent {
    type Verdict = ();
    type Error = &'static str;
    type Refused = &'static str;

    fn dispatch(&mut self) -> Result<(), &'static str> {
        Ok(())
    }

    fn flush(&mut self) -> Result<(), &'static str> {
        Ok(())
    }

    fn take_back(&mut self, id: u64) -> bool {
        self.in_flight.retain(|offer| *offer != id);
        true
    }

    fn end(&mut self, _: u64) {}

    fn take_verdict(
        &mut self,
        _: &mut usize,
        _: impl Fn(usize, u64) -> bool,
    ) -> Option<(usize, ())> {
        None
    }

    fn refused(&mut self, refused: &'static str) -> &'static str {
        refused
    }

    fn after_wait(&mut self) {}

    fn taken(&self) -> usize {
        0
    }

    fn set_apart(&mut self, _: impl Iterator<Item = u64>) {}

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
    let waits = thread::spawn(move || {
        let attempt = |desk: &mut Silent, _, _| {
            desk.in_flight.push(id);
            Tried::Offered(id)
        };
        crew.offer_and_wait(None, attempt, |_, ()| ())
    });
    let start = Instant::now();
    while !crew.awaits(id) && !waits.is_finished() {
        assert!(start.elapsed() < PATIENCE);
        thread::yield_now();
    }
    waits
}

#[test]
fn wake_that_comes_when_a_thread_is_about_to_wait_ends_its_wait() {
    let (crew, let_go) = office();
    let leader = wait(crew, 1);
    // The next release after its own is that of the thread to be woken.
    while !crew.watch.waits.load(Ordering::SeqCst) {
        thread::yield_now();
    }
    crew.watch.wakes.store(true, Ordering::SeqCst);
    let woken = wait(crew, 2);
    // These began later, so the leader leaves to one of them, and not to the one that was missed.
    let later: Vec<_> = [3, 4].into_iter().map(|id| wait(crew, id)).collect();
    let_go.send(()).unwrap();
    assert_eq!(leader.join().unwrap(), Err("woken"));
    let start = Instant::now();
    while !woken.is_finished() {
        assert!(start.elapsed() < PATIENCE / 4, "the wake was lost");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(woken.join().unwrap(), Err("woken"));
    // The rest leave one after the other.
    crew.waits.wake();
    crew.with(|_| ());
    for _ in 0..8 {
        let _ = let_go.send(());
    }
    later.into_iter().for_each(|it| assert_eq!(it.join().unwrap(), Err("woken")));
}
