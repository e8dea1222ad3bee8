//! The claim in every interleaving of its two sides, and in every order that the memory model
//! allows: `make check-claim`. The code is the library's own, with loom's atomics.
//! And threads that share a broker, in `shared`.

#![cfg(test)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use std::sync::atomic::AtomicUsize;

#[path = "../../../src/claim/word.rs"]
mod word;

mod shared;

use word::{Lost, MAX_GENERATION, adopt, is_adopted, is_offered, is_revoked, offer, revoke};

/// Explores every execution of `body`, and tells how many there were.
fn explore(what: &str, body: impl Fn() + Send + Sync + 'static) {
    explore_with(loom::model::Builder::new(), what, body);
}

fn explore_with(
    builder: loom::model::Builder,
    what: &str,
    body: impl Fn() + Send + Sync + 'static,
) {
    let executions = std::sync::Arc::new(AtomicUsize::new(0));
    let count = executions.clone();
    builder.check(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        body();
    });
    println!("{what}: {} executions", executions.load(std::sync::atomic::Ordering::Relaxed));
}

fn assert_exactly_one(revoked: Result<(), Lost>, adopted: Result<(), Lost>) {
    match (revoked, adopted) {
        (Ok(()), Err(Lost::TooLate)) | (Err(Lost::TooLate), Ok(())) => {}
        both => panic!("revoked, adopted: {both:?}"),
    }
}

#[test]
fn exactly_one_side_wins_each_offer_of_a_slot_and_both_know_which() {
    explore("an offer in each of two generations", || {
        let slot = Arc::new(AtomicU64::new(0));
        for generation in [MAX_GENERATION - 1, MAX_GENERATION] {
            offer(&slot, generation);
            let theirs = slot.clone();
            let backend = thread::spawn(move || adopt(&theirs, generation));
            let revoked = revoke(&slot, generation);
            let adopted = backend.join().unwrap();
            assert_exactly_one(revoked, adopted);
            assert_eq!(is_adopted(&slot, generation), adopted.is_ok());
            assert_eq!(is_revoked(&slot, generation), revoked.is_ok());
            assert!(!is_offered(&slot, generation));
        }
    });
}

#[test]
fn late_adopt_of_an_old_generation_takes_nothing_of_the_next() {
    explore("a late adopt of the generation before", || {
        let slot = Arc::new(AtomicU64::new(0));
        offer(&slot, 1);
        let (late_slot, prompt_slot) = (slot.clone(), slot.clone());
        let late = thread::spawn(move || adopt(&late_slot, 1));
        let first_revoked = revoke(&slot, 1);
        offer(&slot, 2);
        let prompt = thread::spawn(move || adopt(&prompt_slot, 2));
        let second_revoked = revoke(&slot, 2);
        assert_exactly_one(second_revoked, prompt.join().unwrap());
        match (first_revoked, late.join().unwrap()) {
            (Err(Lost::TooLate), Ok(())) => {}
            // Where the word has the next generation by now, the late one cannot tell who won.
            (Ok(()), Err(_)) => {}
            both => panic!("revoked, adopted: {both:?}"),
        }
    });
}

#[test]
fn whoever_lives_on_owns_what_the_dead_did_not_take() {
    // A side that dies has done some of its steps, and the rest never.
    for (broker_revokes, backend_adopts) in
        [(false, false), (false, true), (true, false), (true, true)]
    {
        explore(&format!("revokes: {broker_revokes}, adopts: {backend_adopts}"), move || {
            let slot = Arc::new(AtomicU64::new(0));
            offer(&slot, 1);
            let theirs = slot.clone();
            let backend = thread::spawn(move || {
                // What the backend looks at first decides nothing.
                backend_adopts.then(|| (is_offered(&theirs, 1), adopt(&theirs, 1)))
            });
            let revoked = broker_revokes.then(|| revoke(&slot, 1));
            match (revoked, backend.join().unwrap()) {
                (Some(revoked), Some((_, adopted))) => assert_exactly_one(revoked, adopted),
                (Some(revoked), None) => assert_eq!(revoked, Ok(())),
                (None, Some((seen, adopted))) => assert_eq!((seen, adopted), (true, Ok(()))),
                (None, None) => assert!(is_offered(&slot, 1)),
            }
        });
    }
}

#[test]
fn loser_sees_what_the_winner_wrote_before_it_won() {
    explore("a note before each claim", || {
        let slot = Arc::new(AtomicU64::new(0));
        let notes = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        offer(&slot, 1);
        let (their_slot, their_notes) = (slot.clone(), notes.clone());
        let backend = thread::spawn(move || {
            their_notes[0].store(1, Ordering::Relaxed);
            if adopt(&their_slot, 1).is_err() {
                assert_eq!(their_notes[1].load(Ordering::Relaxed), 1);
            }
        });
        notes[1].store(1, Ordering::Relaxed);
        if revoke(&slot, 1).is_err() {
            assert_eq!(notes[0].load(Ordering::Relaxed), 1);
        }
        backend.join().unwrap();
    });
}

#[test]
fn broker_that_finds_its_offer_adopted_knows_what_its_own_claim_would_tell() {
    explore("a look at the word, and a claim", || {
        let slot = Arc::new(AtomicU64::new(0));
        let note = Arc::new(AtomicU64::new(0));
        offer(&slot, 1);
        let (their_slot, their_note) = (slot.clone(), note.clone());
        let backend = thread::spawn(move || {
            their_note.store(1, Ordering::Relaxed);
            adopt(&their_slot, 1)
        });
        if is_adopted(&slot, 1) {
            assert_eq!(note.load(Ordering::Relaxed), 1);
            assert_eq!(revoke(&slot, 1), Err(Lost::TooLate));
            assert_eq!(backend.join().unwrap(), Ok(()));
        } else {
            assert_exactly_one(revoke(&slot, 1), backend.join().unwrap());
        }
    });
}

/// One connection, and the word of each of two channels on which it is offered.
struct Fleet {
    slots: [AtomicU64; 2],
    /// Loom ends the test where two threads use it and neither of them knows that the other is
    /// done. It counts those that serve it.
    connection: UnsafeCell<u32>,
}

impl Fleet {
    fn new() -> Arc<Fleet> {
        Arc::new(Fleet {
            slots: [AtomicU64::new(0), AtomicU64::new(0)],
            connection: UnsafeCell::new(0),
        })
    }

    fn serve(&self) {
        // SAFETY: whoever serves it has won the claim; loom checks that nobody else does.
        self.connection.with_mut(|served| unsafe { *served += 1 });
    }

    /// What a broker does with its connection between two offers.
    fn prepare(&self) {
        // SAFETY: as in serve().
        self.connection.with_mut(|served| assert_eq!(unsafe { *served }, 0));
    }

    /// Once all threads have ended.
    fn served(&self) -> u32 {
        // SAFETY: as in serve().
        self.connection.with(|served| unsafe { *served })
    }
}

/// A backend that serves the connection if it has arrived when it looks, and is still on offer.
fn backend(fleet: &Arc<Fleet>, which: usize, generation: u64) -> thread::JoinHandle<bool> {
    let fleet = fleet.clone();
    thread::spawn(move || {
        let slot = &fleet.slots[which];
        let won = is_offered(slot, generation) && adopt(slot, generation).is_ok();
        if won {
            fleet.serve();
        }
        won
    })
}

/// The broker: offers it to one backend, then to the next one, then serves it. Returns whether it
/// did. It is killed after so many steps.
fn fail_over(fleet: &Fleet, steps: usize) -> bool {
    let mut left = 0..steps;
    let mut lives = || left.next().is_some();
    for slot in &fleet.slots {
        if !lives() {
            return false;
        }
        offer(slot, 1);
        if !lives() || revoke(slot, 1).is_err() {
            return false;
        }
        fleet.prepare();
    }
    fleet.serve();
    true
}

#[test]
fn connection_that_one_backend_did_not_adopt_is_served_once_when_the_next_one_has_the_offer() {
    for steps in 0..=4 {
        explore(&format!("two backends, {steps} steps of the broker"), move || {
            let fleet = Fleet::new();
            fleet.prepare();
            let backends = [0, 1].map(|which| backend(&fleet, which, 1));
            let served_here = fail_over(&fleet, steps);
            let won = backends.map(|backend| backend.join().unwrap());
            let owners = won.iter().filter(|won| **won).count() as u32 + served_here as u32;
            assert_eq!(fleet.served(), owners);
            assert!(owners == 1 || owners == 0 && steps < 4, "owners: {owners}");
        });
    }
}

/// The first backend is slow: it adopts by what it got in the generation before.
#[test]
fn late_adopt_takes_nothing_that_has_gone_to_the_next_backend_and_come_back() {
    explore("an offer that goes to the next backend and comes back", || {
        let fleet = Fleet::new();
        offer(&fleet.slots[0], 1);
        let late = backend(&fleet, 0, 1);
        if revoke(&fleet.slots[0], 1).is_ok() {
            offer(&fleet.slots[1], 1);
            let second = backend(&fleet, 1, 1);
            if revoke(&fleet.slots[1], 1).is_ok() {
                // Another offer of the broker's, in the first slot.
                offer(&fleet.slots[0], 2);
                if revoke(&fleet.slots[0], 2).is_ok() {
                    fleet.serve();
                }
            }
            second.join().unwrap();
        }
        late.join().unwrap();
        assert_eq!(fleet.served(), 1);
    });
}

/// That these proofs can fail: the next backend has the offer while the first may still adopt it.
#[test]
#[should_panic(expected = "owners: 2")]
fn offer_that_goes_on_before_it_is_taken_back_is_found_out() {
    explore("two backends, nothing taken back", || {
        let fleet = Fleet::new();
        let owners = std::sync::Arc::new(AtomicUsize::new(0));
        offer(&fleet.slots[0], 1);
        offer(&fleet.slots[1], 1);
        let backends = [0, 1].map(|which| {
            let (fleet, owners) = (fleet.clone(), owners.clone());
            thread::spawn(move || {
                if adopt(&fleet.slots[which], 1).is_ok() {
                    owners.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            })
        });
        for backend in backends {
            backend.join().unwrap();
        }
        let owners = owners.load(std::sync::atomic::Ordering::Relaxed);
        assert!(owners <= 1, "owners: {owners}");
    });
}

/// That these proofs can fail: a claim that looks first and then writes has two winners.
#[test]
#[should_panic(expected = "revoked, adopted: (Ok(()), Ok(()))")]
fn claim_that_is_not_one_step_is_found_out() {
    fn take(slot: &AtomicU64, to: u64) -> Result<(), Lost> {
        match slot.load(Ordering::Acquire) {
            0 => {
                slot.store(to, Ordering::Release);
                Ok(())
            }
            _ => Err(Lost::TooLate),
        }
    }
    explore("a claim in two steps", || {
        let slot = Arc::new(AtomicU64::new(0));
        let theirs = slot.clone();
        let backend = thread::spawn(move || take(&theirs, 1));
        let revoked = take(&slot, 2);
        assert_exactly_one(revoked, backend.join().unwrap());
    });
}
