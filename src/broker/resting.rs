//! When one backend of a broker rests: what its failure counter is told, and who waits for it.

use std::time::Instant;

use super::{BrokerOptions, Verdict};
use crate::failures::{Attempt, FailureCounter};
use crate::memory::NoMemory;
use crate::reason::Reason;

#[derive(Debug)]
pub(super) struct Resting {
    /// None: failures never refuse an offer.
    failures: Option<FailureCounter>,
    /// An offer was refused: the caller is to be told when the next trial is due.
    awaited: bool,
}

impl Resting {
    pub(super) fn new(options: &BrokerOptions) -> Result<Resting, NoMemory> {
        let counter = |most| FailureCounter::new(most, options.failure_period);
        let failures = options.max_failures.map(counter).transpose()?;
        Ok(Resting { failures, awaited: false })
    }

    /// Whether an offer may be made.
    pub(super) fn check(&self, now: Instant) -> Attempt {
        self.failures.as_ref().map_or(Attempt::Free, |failures| failures.check(now))
    }

    /// An offer is made, for which [`check`](Resting::check) said how.
    pub(super) fn begin(&mut self, attempt: Attempt, now: Instant) {
        if let (Some(failures), Attempt::Trial) = (&mut self.failures, attempt) {
            failures.begin_trial(now);
        }
    }

    /// An offer has its verdict.
    pub(super) fn settled(&mut self, verdict: &Verdict, trial: bool, now: Instant) {
        let Some(failures) = &mut self.failures else { return };
        // A rejection is an answer, and the end of a channel ends what was counted on it.
        let failed = verdict.reason == Some(Reason::AckTimeout);
        match (verdict.adopted, failed, trial) {
            (true, ..) => failures.clear(),
            (false, true, true) => failures.record_trial(now),
            (false, true, false) => failures.record(now),
            (false, false, true) => failures.end_trial(now),
            (false, false, false) => {}
        }
    }

    /// An offer was taken back by the caller.
    pub(super) fn taken_back(&mut self, trial: bool, now: Instant) {
        if let Some(failures) = self.failures.as_mut().filter(|_| trial) {
            failures.end_trial(now);
        }
    }

    /// A backend said welcome on a new channel: what the one before it did says nothing about it.
    pub(super) fn welcomed(&mut self) {
        if let Some(failures) = &mut self.failures {
            failures.clear();
        }
    }

    /// An offer was refused: the caller waits for the next trial.
    pub(super) fn await_trial(&mut self) {
        self.awaited = true;
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.awaited
    }

    /// When to tell the caller that an offer may be made, if it waits for that.
    pub(super) fn awaited_trial(&self, now: Instant) -> Option<Instant> {
        let failures = self.failures.as_ref().filter(|_| self.awaited)?;
        Some(now + failures.time_left(now).unwrap_or_default())
    }

    /// Once an offer may be made, nobody waits: this runs when the caller dispatches.
    pub(super) fn tick(&mut self, now: Instant) {
        self.awaited &= matches!(self.check(now), Attempt::Rest(_));
    }
}
