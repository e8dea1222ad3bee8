//! Which waits a wake ends, in one word that a signal handler can change.
//!
//! A wake ends every wait that runs. If none runs, or if each of them had its verdict already, it
//! ends the next one that begins while no other runs. The atomics are the parent's, so that
//! proofs/loom can put its own in their place.

use super::{AtomicU64, Ordering};

/// A wake has ended no wait yet.
const OWED: u64 = 1;
/// One wait that runs; there is room for 2^31 of them.
const WAIT: u64 = 2;
const WAITS: u64 = (1 << 32) - WAIT;
/// The count of wakes is above, and may wrap.
const WAKE: u64 = 1 << 32;

#[derive(Debug)]
pub(super) struct Waits(AtomicU64);

/// A wait that runs: which wakes were before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    wakes: u64,
}

impl Waits {
    pub(super) fn new() -> Waits {
        Waits(AtomicU64::new(0))
    }

    /// Ends the waits that run, or else the next one. Says whether any runs: its thread may have to
    /// be told. Safe in a signal handler.
    pub(super) fn wake(&self) -> bool {
        let before = self.change(|word| match word & WAITS {
            0 => word | OWED,
            _ => (word | OWED).wrapping_add(WAKE),
        });
        before & WAITS != 0
    }

    pub(super) fn begin(&self) -> Wait {
        let before = self.change(|word| {
            let for_this_one = word & WAITS == 0 && word & OWED != 0;
            let word = if for_this_one { word.wrapping_add(WAKE) } else { word };
            word + WAIT
        });
        Wait { wakes: before / WAKE }
    }

    /// A wait is over, because of a wake or not.
    pub(super) fn end(&self, woken: bool) {
        self.change(|word| if woken { (word - WAIT) & !OWED } else { word - WAIT });
    }

    /// Whether a wake is to end this wait.
    pub(super) fn is_woken(&self, wait: Wait) -> bool {
        self.wakes() != wait.wakes
    }

    /// Changes with each wake that ends a wait.
    pub(super) fn wakes(&self) -> u64 {
        self.0.load(Ordering::SeqCst) / WAKE
    }

    /// Changes the word in one step; returns what it was.
    fn change(&self, to: impl Fn(u64) -> u64) -> u64 {
        let mut before = self.0.load(Ordering::SeqCst);
        loop {
            let order = Ordering::SeqCst;
            match self.0.compare_exchange_weak(before, to(before), order, order) {
                Ok(_) => return before,
                Err(now) => before = now,
            }
        }
    }
}
