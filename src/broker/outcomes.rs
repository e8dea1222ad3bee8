//! What became of offers: for the caller, for the counts, and for the next backend.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::kept::{Kept, NOT_KEPT};
use super::offers::Facts;
use super::{BrokerOptions, BrokerStatistics, Verdict};
use crate::failures::FailureCounter;
use crate::kind::ErrorKind;
use crate::memory::NoMemory;
use crate::reason::Reason;

/// Verdicts that wait to be taken, and offers that wait for another backend.
#[derive(Debug)]
pub(super) struct Outcomes {
    pub(super) verdicts: VecDeque<Verdict>,
    pub(super) statistics: BrokerStatistics,
    pub(super) kept: Kept,
    pub(super) again: VecDeque<Again>,
}

/// An offer that a backend did not adopt, and another one may.
#[derive(Clone, Copy, Debug)]
pub(super) struct Again {
    /// The number of its copy.
    pub kept: u32,
    /// What ended the last attempt.
    pub reason: Reason,
}

/// So many counts of times: [`Tally::times`].
pub(super) const TIMES: usize = 32;

/// What was done with one backend.
#[derive(Debug)]
pub(super) struct Tally {
    /// None: failures never refuse an offer.
    pub failures: Option<FailureCounter>,
    pub connects: u64,
    pub failed_connects: u64,
    pub offered: u64,
    pub adopted: u64,
    pub taken_back: u64,
    pub fallbacks: [u64; Reason::COUNT],
    /// By the number of their kind.
    pub refusals: [u64; ErrorKind::COUNT],
    /// How long it took from offer to verdict: the first counts those under a microsecond, each of
    /// the others those that took up to twice as long as the one before, the last all longer ones.
    pub times: [u64; TIMES],
}

impl Tally {
    pub(super) fn new(
        max_failures: Option<usize>,
        failure_period: Duration,
    ) -> Result<Tally, NoMemory> {
        let counter = |most| FailureCounter::new(most, failure_period);
        Ok(Tally {
            failures: max_failures.map(counter).transpose()?,
            connects: 0,
            failed_connects: 0,
            offered: 0,
            adopted: 0,
            taken_back: 0,
            fallbacks: [0; Reason::COUNT],
            refusals: [0; ErrorKind::COUNT],
            times: [0; TIMES],
        })
    }

    /// A failure that is not the trial's.
    pub(super) fn record_failure(&mut self, now: Instant) {
        if let Some(failures) = &mut self.failures {
            failures.record(now);
        }
    }

    /// An offer was refused because of this backend.
    pub(super) fn refused(&mut self, kind: ErrorKind) {
        if let Some(count) = self.refusals.get_mut(kind as usize) {
            *count += 1;
        }
    }

    /// The caller took an offer back.
    pub(super) fn took_back(&mut self, facts: &Facts, now: Instant) {
        self.taken_back += 1;
        if let Some(failures) = self.failures.as_mut().filter(|_| facts.trial) {
            failures.end_trial(now);
        }
        self.took(now.saturating_duration_since(facts.offered_at));
    }

    /// An attempt has ended after so long.
    fn took(&mut self, time: Duration) {
        let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let doublings = (u64::BITS - microseconds.leading_zeros()) as usize;
        self.times[doublings.min(TIMES - 1)] += 1;
    }
}

/// Where what happens on one channel is written down.
pub(super) struct Ledger<'a> {
    pub outcomes: &'a mut Outcomes,
    pub tally: &'a mut Tally,
    /// The number of the backend.
    pub backend: u32,
    pub now: Instant,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub adopted: bool,
    pub reason: Option<Reason>,
    /// Whether this backend may hold the descriptor.
    pub may_have_reached: bool,
    /// The kind of socket that it does not take.
    pub kind: u8,
}

impl Outcomes {
    pub(super) fn new(options: &BrokerOptions) -> Outcomes {
        Outcomes {
            verdicts: VecDeque::new(),
            statistics: BrokerStatistics::default(),
            kept: Kept::new(options.failover_bytes),
            again: VecDeque::new(),
        }
    }

    /// The verdict on an offer.
    pub(super) fn add(&mut self, verdict: Verdict) {
        match verdict.reason {
            _ if verdict.adopted => self.statistics.adopted += 1,
            Some(reason) => self.statistics.fallbacks[reason as usize] += 1,
            None => {}
        }
        self.verdicts.push_back(verdict);
    }
}

impl Ledger<'_> {
    /// The backend has said welcome. It may be another process than the one that failed.
    pub(super) fn welcomed(&mut self) {
        self.outcomes.statistics.connects += 1;
        self.tally.connects += 1;
        if let Some(failures) = &mut self.tally.failures {
            failures.clear();
        }
    }

    /// Writes down how an attempt ended: as a verdict, or for the next backend.
    pub(super) fn ended(&mut self, facts: &Facts, end: End) {
        self.count(facts, end);
        let Facts { id, user_data, kept, .. } = *facts;
        let End { adopted, reason, mut may_have_reached, kind } = end;
        let mut tries = 1;
        if kept != NOT_KEPT {
            if let Some(copy) = self.outcomes.kept.get_mut(kept) {
                copy.may_have_reached |= may_have_reached;
                if let Some(reason) = reason.filter(|reason| !adopted && goes_on(*reason)) {
                    self.outcomes.again.push_back(Again { kept, reason });
                    return;
                }
                (may_have_reached, tries) = (copy.may_have_reached, copy.tried.count);
            }
            self.outcomes.kept.forget(kept);
        }
        let backend = self.backend;
        let kind = if reason == Some(Reason::Kind) { kind } else { 0 };
        let verdict =
            Verdict { id, user_data, adopted, reason, may_have_reached, backend, tries, kind };
        self.outcomes.add(verdict);
    }

    fn count(&mut self, facts: &Facts, End { adopted, reason, .. }: End) {
        let Tally { failures, adopted: adoptions, fallbacks, .. } = self.tally;
        if adopted {
            *adoptions += 1;
        } else if let Some(reason) = reason {
            fallbacks[reason as usize] += 1;
        }
        if let Some(failures) = failures {
            match reason {
                _ if adopted => failures.clear(),
                // A rejection is an answer, and nothing counts any more when there is a new channel.
                Some(Reason::AckTimeout) if facts.trial => failures.record_trial(self.now),
                Some(Reason::AckTimeout) => failures.record(self.now),
                _ if facts.trial => failures.end_trial(self.now),
                _ => {}
            }
        }
        self.tally.took(self.now.saturating_duration_since(facts.offered_at));
    }
}

/// Whether another backend may adopt what one did not for this reason, which is about the backend and
/// not about the client.
fn goes_on(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::BackendBusy
            | Reason::DescriptorPressure
            | Reason::BackendUnavailable
            | Reason::AckTimeout
            | Reason::IntegrityMismatch
    )
}
