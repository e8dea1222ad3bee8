//! The failure counter of one backend: when it failed recently, and whether it rests. A backend
//! that fails too often rests: it is not tried, but for one trial at a time, after pauses that
//! grow. No I/O: the time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::memory::{self, NoMemory};

/// The recent failures of one backend, and its rest. Allocates only when it is made.
#[derive(Debug)]
pub struct FailureCounter {
    max_failures: usize,
    period: Duration,
    /// Oldest first.
    times: VecDeque<Instant>,
    rest: Option<Rest>,
}

/// From the failure that was one too many until [`FailureCounter::clear`].
#[derive(Clone, Copy, Debug)]
struct Rest {
    /// Between the end of a trial and the next one.
    pause: Duration,
    next_trial: Instant,
    /// When the trial began that has not ended.
    trial: Option<Instant>,
}

/// Whether a backend may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It works, as far as is known.
    Free,
    /// It rests, but a trial is due: call [`FailureCounter::begin_trial`] with the attempt.
    Trial,
    /// It rests. Ask again after this time; sooner if a trial is out and ends.
    Rest(Duration),
}

impl FailureCounter {
    /// The most failures that can be counted.
    pub const MAX_FAILURES: usize = 4096;
    /// How long a backend rests before its first trial.
    pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
    /// The longest pause between two trials. No pause is longer than the period of the counter.
    pub const LONGEST_PAUSE: Duration = Duration::from_secs(8);

    /// Makes a counter: after `max_failures` failures within `period` the backend rests.
    /// Out-of-range values are clamped.
    pub fn new(max_failures: usize, period: Duration) -> Result<FailureCounter, NoMemory> {
        let max_failures = max_failures.clamp(1, FailureCounter::MAX_FAILURES);
        let period = period.max(Duration::from_millis(1));
        let times = memory::queue(max_failures, "a failure counter")?;
        Ok(FailureCounter { max_failures, period, times, rest: None })
    }

    /// Says whether the backend may be tried.
    pub fn check(&self, now: Instant) -> Attempt {
        let Some(rest) = self.rest else { return Attempt::Free };
        let left = match self.trial_left(now) {
            // It may end at any time, and then the next one is a pause away.
            Some(left) => left.min(rest.pause),
            None => rest.next_trial.saturating_duration_since(now),
        };
        if left.is_zero() { Attempt::Trial } else { Attempt::Rest(left) }
    }

    /// When to ask again; none if the backend may be tried now.
    pub fn time_left(&self, now: Instant) -> Option<Duration> {
        match self.check(now) {
            Attempt::Free | Attempt::Trial => None,
            Attempt::Rest(left) => Some(left),
        }
    }

    /// Whether the backend rests. Only [`clear`](FailureCounter::clear) ends that.
    pub fn is_resting(&self) -> bool {
        self.rest.is_some()
    }

    /// A trial is made. It ends with [`clear`](FailureCounter::clear),
    /// [`record_trial`](FailureCounter::record_trial) or [`end_trial`](FailureCounter::end_trial),
    /// and without them after the period of the counter.
    pub fn begin_trial(&mut self, now: Instant) {
        if let Some(rest) = &mut self.rest {
            rest.trial = Some(now);
            // For a trial that nobody reports on: when it is over, the next one is due.
            rest.next_trial = now;
        }
    }

    /// The trial ended, neither with a failure nor with an adoption: the pause stays as it is.
    pub fn end_trial(&mut self, now: Instant) {
        let out = self.trial_left(now).is_some();
        if let Some(rest) = self.rest.as_mut().filter(|_| out) {
            rest.trial = None;
            rest.next_trial = now + rest.pause;
        }
    }

    /// Counts a failure of the trial: the next pause is twice as long. If no trial is out, it is a
    /// failure like others.
    pub fn record_trial(&mut self, now: Instant) {
        if self.trial_left(now).is_some() {
            let longest = FailureCounter::LONGEST_PAUSE.min(self.period);
            if let Some(rest) = &mut self.rest {
                rest.pause = (rest.pause * 2).min(longest);
            }
            self.end_trial(now);
        }
        self.record(now);
    }

    /// Counts a failure, but not of a trial. While the backend rests, nothing follows from it.
    pub fn record(&mut self, now: Instant) {
        if self.times.len() == self.max_failures {
            self.times.pop_front();
        }
        // Threads may arrive here out of step with the times that they read.
        let at = self.times.partition_point(|time| *time <= now);
        self.times.insert(at, now);
        if self.rest.is_none() && self.failed_too_often() {
            let pause = FailureCounter::FIRST_PAUSE.min(self.period);
            self.rest = Some(Rest { pause, next_trial: now + pause, trial: None });
        }
    }

    /// Forgets all failures and ends the rest: the backend works again, or it is another one.
    pub fn clear(&mut self) {
        self.times.clear();
        self.rest = None;
    }

    /// Whether a failure was counted since the last [`clear`](FailureCounter::clear).
    pub(crate) fn any(&self) -> bool {
        !self.times.is_empty()
    }

    /// How many failures count now.
    pub fn count(&self, now: Instant) -> usize {
        let counts = |time: &&Instant| now.saturating_duration_since(**time) < self.period;
        self.times.iter().filter(counts).count()
    }

    /// When the backend failed last, if it did.
    pub(crate) fn latest(&self) -> Option<Instant> {
        self.times.back().copied()
    }

    fn failed_too_often(&self) -> bool {
        match (self.times.front(), self.times.back()) {
            (Some(oldest), Some(latest)) if self.times.len() == self.max_failures => {
                latest.saturating_duration_since(*oldest) < self.period
            }
            _ => false,
        }
    }

    /// How long the trial that is out may still take, if there is one.
    fn trial_left(&self, now: Instant) -> Option<Duration> {
        let began = self.rest.and_then(|rest| rest.trial)?;
        let age = now.saturating_duration_since(began);
        self.period.checked_sub(age).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PERIOD: Duration = Duration::from_secs(30);

    fn resting(now: Instant) -> FailureCounter {
        let mut counter = FailureCounter::new(8, PERIOD).unwrap();
        for _ in 0..8 {
            assert_eq!(counter.check(now), Attempt::Free);
            counter.record(now);
        }
        assert!(counter.is_resting());
        counter
    }

    /// Moves on to the next trial; returns how long that took.
    fn next_trial(counter: &mut FailureCounter, now: &mut Instant) -> Duration {
        let left = counter.time_left(*now).unwrap_or_default();
        assert_eq!(counter.check(*now + left), Attempt::Trial);
        *now += left;
        counter.begin_trial(*now);
        left
    }

    #[test]
    fn pauses_double_with_each_trial_that_fails_up_to_eight_seconds() {
        let mut now = Instant::now();
        let mut counter = resting(now);
        for seconds in [1, 2, 4, 8, 8, 8] {
            assert_eq!(next_trial(&mut counter, &mut now), seconds * SECOND);
            now += SECOND / 2;
            counter.record_trial(now);
        }
    }

    #[test]
    fn no_pause_is_longer_than_the_period() {
        for (period, pauses) in [(3, [1000, 2000, 3000, 3000]), (0, [1, 1, 1, 1])] {
            let mut now = Instant::now();
            let mut counter = FailureCounter::new(1, period * SECOND).unwrap();
            counter.record(now);
            for pause in pauses {
                let pause = Duration::from_millis(pause);
                assert_eq!(next_trial(&mut counter, &mut now), pause);
                counter.record_trial(now);
            }
        }
    }

    #[test]
    fn trial_that_neither_failed_nor_was_adopted_leaves_the_pause_as_it_is() {
        let mut now = Instant::now();
        let mut counter = resting(now);
        next_trial(&mut counter, &mut now);
        counter.record_trial(now);
        for _ in 0..3 {
            assert_eq!(next_trial(&mut counter, &mut now), 2 * SECOND);
            now += SECOND;
            counter.end_trial(now);
        }
    }

    #[test]
    fn trial_that_nobody_reports_on_is_over_after_the_period() {
        let mut now = Instant::now();
        let mut counter = resting(now);
        next_trial(&mut counter, &mut now);
        let nanosecond = Duration::from_nanos(1);
        assert_eq!(counter.check(now + PERIOD - nanosecond), Attempt::Rest(nanosecond));
        assert_eq!(counter.check(now + PERIOD), Attempt::Trial);
        // Its failure comes too late to be the trial's.
        counter.record_trial(now + PERIOD);
        assert_eq!(counter.check(now + PERIOD), Attempt::Trial);
    }

    #[test]
    fn other_failures_while_it_rests_change_nothing() {
        let now = Instant::now();
        let mut counter = resting(now);
        counter.record(now + SECOND / 2);
        assert_eq!(counter.check(now + SECOND / 2), Attempt::Rest(SECOND / 2));
        counter.begin_trial(now + SECOND);
        counter.record(now + SECOND);
        assert_eq!(counter.check(now + SECOND), Attempt::Rest(SECOND));
        counter.record_trial(now + 2 * SECOND);
        assert_eq!(counter.check(now + 3 * SECOND), Attempt::Rest(SECOND));
    }

    #[test]
    fn rest_does_not_end_by_itself() {
        let now = Instant::now();
        let mut counter = resting(now);
        assert_eq!(counter.check(now + 100 * PERIOD), Attempt::Trial);
        assert_eq!(counter.count(now + 100 * PERIOD), 0);
        counter.clear();
        assert_eq!(counter.check(now), Attempt::Free);
        // Of a trial before that.
        counter.record_trial(now);
        assert_eq!((counter.check(now), counter.count(now)), (Attempt::Free, 1));
    }

    #[test]
    fn period_without_end_is_no_overflow() {
        let now = Instant::now();
        let mut counter = FailureCounter::new(1, Duration::MAX).unwrap();
        counter.record(now);
        counter.begin_trial(now + SECOND);
        assert_eq!(counter.check(now + 1000 * SECOND), Attempt::Rest(SECOND));
        counter.record_trial(now + 1000 * SECOND);
        assert_eq!(counter.check(now + 1002 * SECOND), Attempt::Trial);
    }

    /// The rule once more, in words of the whole history: milliseconds, and nothing clever.
    #[derive(Debug, Default)]
    struct Model {
        failures: Vec<u64>,
        /// The pause, and from when on a trial is due.
        rest: Option<(u64, u64)>,
        trial: Option<u64>,
    }

    impl Model {
        fn trial_is_out(&self, period: u64, now: u64) -> bool {
            self.trial.is_some_and(|began| now < began + period)
        }

        fn fail(&mut self, most: usize, period: u64, now: u64) {
            self.failures.push(now);
            let recent = self.failures.iter().filter(|time| **time + period > now).count();
            if self.rest.is_none() && recent >= most {
                self.rest = Some((1000.min(period), now + 1000.min(period)));
            }
        }

        fn end_trial(&mut self, period: u64, now: u64, factor: u64) {
            if self.trial_is_out(period, now) {
                let (pause, due) = self.rest.as_mut().unwrap();
                *pause = (*pause * factor).min(8000).min(period);
                *due = now + *pause;
                self.trial = None;
            }
        }

        fn allowed(&self, period: u64, now: u64) -> Option<bool> {
            let (_, due) = self.rest?;
            Some(!self.trial_is_out(period, now) && due <= now)
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Pass(u64),
        Try,
        Fail,
        FailTrial,
        EndTrial,
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3000u64).prop_map(Step::Pass),
            1 => (0..40_000u64).prop_map(Step::Pass),
            6 => Just(Step::Try),
            3 => Just(Step::Fail),
            4 => Just(Step::FailTrial),
            1 => Just(Step::EndTrial),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        #[test]
        fn counter_behaves_like_its_model_and_at_most_one_trial_is_out(
            steps in proptest::collection::vec(step(), 0..300),
            most in 1..6usize,
            period in prop_oneof![1..10_000u64, Just(30_000u64)],
        ) {
            let start = Instant::now();
            let at = |milliseconds| start + Duration::from_millis(milliseconds);
            let mut counter = FailureCounter::new(most, Duration::from_millis(period)).unwrap();
            let (mut model, mut now) = (Model::default(), 0);
            for step in steps {
                match step {
                    Step::Pass(milliseconds) => now += milliseconds,
                    Step::Try if counter.check(at(now)) == Attempt::Trial => {
                        prop_assert!(!model.trial_is_out(period, now));
                        counter.begin_trial(at(now));
                        model.trial = Some(now);
                    }
                    Step::Try => {}
                    Step::Fail => {
                        counter.record(at(now));
                        model.fail(most, period, now);
                    }
                    Step::FailTrial => {
                        counter.record_trial(at(now));
                        model.end_trial(period, now, 2);
                        model.fail(most, period, now);
                    }
                    Step::EndTrial => {
                        counter.end_trial(at(now));
                        model.end_trial(period, now, 1);
                    }
                    Step::Clear => {
                        counter.clear();
                        model = Model::default();
                    }
                }
                let check = counter.check(at(now));
                let allowed = match check {
                    Attempt::Free => None,
                    Attempt::Trial => Some(true),
                    Attempt::Rest(_) => Some(false),
                };
                prop_assert_eq!(allowed, model.allowed(period, now));
                prop_assert_eq!(counter.is_resting(), model.rest.is_some());
                let recent = model.failures.iter().filter(|time| **time + period > now).count();
                prop_assert_eq!(counter.count(at(now)), recent.min(most));
                if let Attempt::Rest(left) = check {
                    // Nothing is let through before that, and something is then, unless a trial is
                    // out that takes longer.
                    let left = left.as_millis() as u64;
                    prop_assert_eq!(model.allowed(period, now + left - 1), Some(false));
                    let later = model.allowed(period, now + left) == Some(true);
                    prop_assert!(later || model.trial_is_out(period, now + left));
                    prop_assert!(left <= 8000.min(period));
                }
            }
        }

        #[test]
        fn hang_costs_few_clients_once_the_backend_rests(
            gaps in proptest::collection::vec(1..400u64, 100..1500),
            timeout in 1..6000u64,
            most in 1..20usize,
        ) {
            // Clients come at any time; each attempt that is let through fails after a timeout.
            let start = Instant::now();
            let at = |milliseconds| start + Duration::from_millis(milliseconds);
            let mut counter = FailureCounter::new(most, PERIOD).unwrap();
            let (mut now, mut trials, mut rests_since) = (0, 0, None);
            let mut in_flight = VecDeque::new();
            for gap in gaps {
                now += gap;
                while in_flight.front().is_some_and(|(end, _)| *end <= now) {
                    let (end, attempt) = in_flight.pop_front().unwrap();
                    match attempt {
                        Attempt::Trial => counter.record_trial(at(end)),
                        _ => counter.record(at(end)),
                    }
                    if counter.is_resting() {
                        rests_since = rests_since.or(Some(end));
                    }
                }
                let attempt = counter.check(at(now));
                match attempt {
                    Attempt::Rest(_) => continue,
                    Attempt::Free => {}
                    Attempt::Trial => {
                        trials += 1;
                        counter.begin_trial(at(now));
                    }
                }
                in_flight.push_back((now + timeout, attempt));
            }
            let seconds = rests_since.map_or(0, |since| (now - since) / 1000);
            prop_assert!(trials <= seconds / 8 + 3, "{} trials in {} s", trials, seconds);
        }
    }

    #[test]
    fn hour_of_hang_costs_460_clients_that_come_one_after_the_other() {
        let start = Instant::now();
        let (mut now, hour) = (start, 3600 * SECOND);
        let mut counter = FailureCounter::new(8, PERIOD).unwrap();
        let mut let_through = 0;
        while now - start < hour {
            match counter.check(now) {
                Attempt::Rest(_) => {}
                Attempt::Free => {
                    let_through += 1;
                    counter.record(now);
                }
                Attempt::Trial => {
                    let_through += 1;
                    counter.begin_trial(now);
                    counter.record_trial(now);
                }
            }
            now += SECOND / 100;
        }
        // 8 at once, 3 after 1, 3 and 7 seconds, and then one in 8 seconds.
        assert_eq!(let_through, 8 + 3 + (3600 - 7) / 8);
    }
}
