//! What became of offers: for the caller, for the counts, and for the next backend.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::copies::{Copies, NO_COPY};
use super::settings::FailureLimits;
use super::slots::Facts;
use super::{BrokerOptions, BrokerStatistics, Verdict};
use crate::failures::FailureCounter;
use crate::kind::ErrorKind;
use crate::memory::NoMemory;
use crate::reason::Reason;
use crate::wire::Rejection;

/// Verdicts that wait to be taken, and offers that wait for another backend.
#[derive(Debug)]
pub(super) struct Outcomes {
    pub(super) verdicts: VecDeque<Verdict>,
    /// Those on offers whose callers wait for them.
    pub(super) awaited: VecDeque<Verdict>,
    pub(super) statistics: BrokerStatistics,
    pub(super) copies: Copies,
    pub(super) again: VecDeque<Again>,
}

/// An offer that a backend did not adopt, and another one may.
#[derive(Clone, Copy, Debug)]
pub(super) struct Again {
    /// The number of its copy.
    pub copy: u32,
    /// What ended the last attempt.
    pub reason: Reason,
}

/// So many counts of times: [`BackendCounts::times`].
const TIMES: usize = 32;

/// What one backend has done.
#[derive(Clone, Copy, Debug)]
pub struct BackendCounts {
    /// Channels that were set up.
    pub connects: u64,
    /// Attempts to connect that failed.
    pub failed_connects: u64,
    /// Offers that it got, those from failover included.
    pub offered: u64,
    /// Those that it adopted.
    pub adopted: u64,
    /// Those that the caller took back.
    pub taken_back: u64,
    /// Those that it did not adopt, by the number of the reason.
    pub fallbacks: [u64; Reason::COUNT],
    /// Offers that were refused because of it, by the number of the error's kind.
    pub refusals: [u64; ErrorKind::COUNT],
    /// Times from offer to verdict: under 1 microsecond, under 2, 4, 8 and so on; in the last all
    /// others.
    pub times: [u64; TIMES],
}

impl Default for BackendCounts {
    fn default() -> BackendCounts {
        BackendCounts {
            connects: 0,
            failed_connects: 0,
            offered: 0,
            adopted: 0,
            taken_back: 0,
            fallbacks: [0; Reason::COUNT],
            refusals: [0; ErrorKind::COUNT],
            times: [0; TIMES],
        }
    }
}

/// What was done with one backend.
#[derive(Debug)]
pub(super) struct Tally {
    /// None: failures never refuse an offer.
    pub failures: Option<FailureCounter>,
    pub counts: BackendCounts,
}

impl Tally {
    pub(super) fn new(limits: FailureLimits) -> Result<Tally, NoMemory> {
        Ok(Tally { failures: limits.counter()?, counts: BackendCounts::default() })
    }

    /// An offer was refused because of this backend.
    pub(super) fn refused(&mut self, kind: ErrorKind) {
        if let Some(count) = self.counts.refusals.get_mut(kind as usize) {
            *count += 1;
        }
    }

    /// The caller took an offer back.
    pub(super) fn took_back(&mut self, facts: &Facts, now: Instant) {
        self.counts.taken_back += 1;
        if let Some(failures) = self.failures.as_mut().filter(|_| facts.trial) {
            failures.end_trial(now);
        }
        self.took(now.saturating_duration_since(facts.offered_at));
    }

    /// An attempt has ended after so long. Returns which of the counts counts it.
    fn took(&mut self, time: Duration) -> usize {
        let microseconds =
            time.as_secs().saturating_mul(1_000_000) + u64::from(time.subsec_micros());
        let doublings = (u64::BITS - microseconds.leading_zeros()) as usize;
        let index = doublings.min(TIMES - 1);
        self.counts.times[index] += 1;
        index
    }
}

/// Where what happens on one channel is written down.
pub(super) struct Ledger<'a> {
    pub outcomes: &'a mut Outcomes,
    pub tally: &'a mut Tally,
    /// The number of the backend.
    pub backend: u32,
    pub now: Instant,
    /// Which count of times the last attempt was counted by, and when those that it counts began:
    /// after the first, and not after the second. Most of a batch are counted by the same.
    counted: Option<(usize, Instant, Instant)>,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// The backend has it; and what else happened.
    Adopted(Option<Reason>),
    Fallback {
        why: Rejection,
        /// Whether this backend may hold the descriptor.
        may_have_reached: bool,
    },
}

impl Outcomes {
    pub(super) fn new(options: &BrokerOptions) -> Outcomes {
        Outcomes {
            verdicts: VecDeque::new(),
            awaited: VecDeque::new(),
            statistics: BrokerStatistics::default(),
            copies: Copies::new(options.failover_bytes),
            again: VecDeque::new(),
        }
    }

    /// The verdict is for the caller, who may wait for it.
    #[inline(always)]
    pub(super) fn decide(&mut self, verdict: Verdict, awaited: bool) {
        let queue = if awaited { &mut self.awaited } else { &mut self.verdicts };
        queue.push_back(verdict);
    }
}

impl<'a> Ledger<'a> {
    /// For the backend with this number.
    pub(super) fn new(
        outcomes: &'a mut Outcomes,
        tally: &'a mut Tally,
        backend: usize,
        now: Instant,
    ) -> Ledger<'a> {
        Ledger { outcomes, tally, backend: backend as u32, now, counted: None }
    }

    /// The backend has said welcome. It may be another process than the one that failed.
    pub(super) fn welcomed(&mut self) {
        self.outcomes.statistics.connects += 1;
        self.tally.counts.connects += 1;
        if let Some(failures) = &mut self.tally.failures {
            failures.clear();
        }
    }

    /// Writes down how an attempt ended: as a verdict, or for the next backend.
    #[inline(always)]
    pub(super) fn ended(&mut self, facts: &Facts, end: End) {
        match self.counted {
            Some((index, after, until))
                if after < facts.offered_at && facts.offered_at <= until =>
            {
                self.tally.counts.times[index] += 1;
            }
            _ => self.took(facts.offered_at),
        }
        if let End::Fallback { why, may_have_reached } = end {
            return self.not_adopted(facts, why, may_have_reached);
        }
        self.tally.counts.adopted += 1;
        self.outcomes.statistics.adopted += 1;
        if let Some(failures) = self.tally.failures.as_mut().filter(|failures| failures.any()) {
            failures.clear();
        }
        self.verdict(facts, end);
    }

    #[inline(never)]
    fn took(&mut self, offered_at: Instant) {
        let index = self.tally.took(self.now.saturating_duration_since(offered_at));
        let limit = |index: usize| self.now.checked_sub(Duration::from_micros(1 << index));
        self.counted = match (limit(index), index.checked_sub(1).and_then(limit)) {
            (Some(after), Some(until)) if index < TIMES - 1 => Some((index, after, until)),
            _ => None,
        };
    }

    #[cold]
    fn not_adopted(&mut self, facts: &Facts, why: Rejection, may_have_reached: bool) {
        let reason = why.reason;
        self.tally.counts.fallbacks[reason as usize] += 1;
        let sent = may_have_reached;
        if let Some(failures) = &mut self.tally.failures {
            match reason {
                // A rejection is an answer, and the end of a channel is followed by a welcome.
                // Nor is it the backend's failure that an offer was not sent.
                Reason::AckTimeout if facts.trial && sent => failures.record_trial(self.now),
                Reason::AckTimeout if sent => failures.record(self.now),
                _ if facts.trial => failures.end_trial(self.now),
                _ => {}
            }
        }
        if let Some(copy) = self.outcomes.copies.get_mut(facts.copy).filter(|_| goes_on(reason)) {
            copy.may_have_reached |= may_have_reached;
            self.outcomes.again.push_back(Again { copy: facts.copy, reason });
            return;
        }
        self.outcomes.statistics.fallbacks[reason as usize] += 1;
        self.verdict(facts, End::Fallback { why, may_have_reached });
    }

    /// The verdict on an offer that no other backend gets.
    #[inline(always)]
    fn verdict(&mut self, facts: &Facts, end: End) {
        let Facts { id, user_data, copy, awaited, .. } = *facts;
        let (adopted, reason, may_have_reached, kind) = match end {
            End::Adopted(reason) => (true, reason, true, 0),
            End::Fallback { why, may_have_reached } => {
                (false, Some(why.reason), may_have_reached, why.kind)
            }
        };
        let (backend, attempts) = (self.backend, 1);
        let mut verdict =
            Verdict { id, user_data, adopted, reason, may_have_reached, kind, backend, attempts };
        if copy != NO_COPY {
            self.outcomes.copies.complete(copy, &mut verdict);
        }
        self.outcomes.decide(verdict, awaited);
    }
}

/// Whether another backend may adopt what one did not for this reason, which is about the backend
/// and not about the client.
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
