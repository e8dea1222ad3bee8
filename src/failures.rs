//! The failure counter: how many times one backend failed recently, and for how long it is therefore
//! not tried. No I/O: the time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::memory::{self, NoMemory};

/// The recent failures of one backend: as many as make it rate-limited, and no more.
#[derive(Debug)]
pub struct FailureCounter {
    max_failures: usize,
    period: Duration,
    /// Oldest first.
    times: VecDeque<Instant>,
}

impl FailureCounter {
    /// The most failures that can be counted.
    pub const MAX_FAILURES: usize = 4096;

    /// Makes a counter of the failures within `period`. Out-of-range values are clamped.
    pub fn new(max_failures: usize, period: Duration) -> Result<FailureCounter, NoMemory> {
        let max_failures = max_failures.clamp(1, FailureCounter::MAX_FAILURES);
        let period = period.max(Duration::from_millis(1));
        let times = memory::queue(max_failures, "a failure counter")?;
        Ok(FailureCounter { max_failures, period, times })
    }

    /// Counts a failure.
    pub fn record(&mut self, now: Instant) {
        if self.times.len() == self.max_failures {
            self.times.pop_front();
        }
        // Threads may arrive here out of step with the times that they read.
        let at = self.times.partition_point(|time| *time <= now);
        self.times.insert(at, now);
    }

    /// Forgets all failures: the backend works again.
    pub fn clear(&mut self) {
        self.times.clear();
    }

    /// How many failures count now.
    pub fn count(&self, now: Instant) -> usize {
        let counts = |time: &&Instant| now.saturating_duration_since(**time) < self.period;
        self.times.iter().filter(counts).count()
    }

    /// How long the backend is still rate-limited, if it is.
    pub fn time_left(&self, now: Instant) -> Option<Duration> {
        // With as many failures as are allowed, the oldest one says until when.
        let oldest = self.times.front().filter(|_| self.times.len() == self.max_failures)?;
        let age = now.saturating_duration_since(*oldest);
        self.period.checked_sub(age).filter(|left| !left.is_zero())
    }

    /// When the backend failed last, if it did.
    pub(crate) fn latest(&self) -> Option<Instant> {
        self.times.back().copied()
    }
}
