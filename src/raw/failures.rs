//! Whether a broker tries a backend: decisions from what it knows, and the failure counter of each
//! backend. Decisions are functions of state, inputs and time; nothing here does any I/O.

use std::cmp::Reverse;
use std::collections::binary_heap::{BinaryHeap, PeekMut};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::failures::{Attempt, FailureCounter};
use crate::memory::{self, Map, NoMemory};
use crate::reason::Reason;

/// What the broker knows about a connection and its backend before it tries. Each field that is
/// true is a reason not to try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// The client's protocol or connection cannot change hands.
    pub client_unsupported: bool,
    /// The service is configured not to hand over.
    pub policy_disabled: bool,
    /// This process is short of descriptors.
    pub descriptor_pressure: bool,
    /// The backend was not started by this broker.
    pub foreign_backend: bool,
}

/// Whether to try, and if not, why and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Offer the connection to the backend.
    Attempt,
    /// Serve the client another way.
    Fallback {
        /// Why.
        reason: Reason,
        /// When trying again makes sense, where time is what is missing.
        retry_after: Option<Duration>,
    },
}

/// The limits of a [`Failures`]. Out-of-range values are clamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailuresOptions {
    /// Failures within the period after which a backend rests: 1 to
    /// [`FailureCounter::MAX_FAILURES`], 8 by default.
    pub max_failures: usize,
    /// How long a failure counts, and the longest that a trial may go without a report: a
    /// millisecond at least, 30 seconds by default.
    pub period: Duration,
    /// Backends whose failures are counted: 1 to [`Failures::MAX_BACKENDS`], 1024 by default. If
    /// there are more, the backend whose last failure is oldest is forgotten.
    pub max_backends: usize,
}

impl Default for FailuresOptions {
    fn default() -> FailuresOptions {
        FailuresOptions { max_failures: 8, period: Duration::from_secs(30), max_backends: 1024 }
    }
}

/// The recent failures of each backend. A backend is named by any bytes, such as the path of its
/// handoff socket. Any number of threads may share one.
#[derive(Debug)]
pub struct Failures {
    options: FailuresOptions,
    backends: Mutex<Backends>,
}

/// The backends with failures, and in which order to forget them.
#[derive(Debug, Default)]
struct Backends {
    counted: Map<Box<[u8]>, Counted>,
    /// One for each backend, with a time that is not after its last failure; and some of backends
    /// that are not counted any more, or not since then.
    oldest: BinaryHeap<Reverse<Entry>>,
    next_serial: u64,
}

/// When a backend failed at the latest that is known here, its serial number and its name.
type Entry = (Instant, u64, Box<[u8]>);

#[derive(Debug)]
struct Counted {
    failures: FailureCounter,
    /// Tells a backend from itself before it worked again.
    serial: u64,
}

impl Failures {
    /// The most backends that can be held.
    pub const MAX_BACKENDS: usize = 65536;

    /// Makes a state without failures.
    pub fn new(options: FailuresOptions) -> Failures {
        let max_backends = options.max_backends.clamp(1, Failures::MAX_BACKENDS);
        let options = FailuresOptions { max_backends, ..options };
        Failures { options, backends: Mutex::default() }
    }

    /// Says whether to offer a connection to `backend`. While the backend rests one attempt at a
    /// time is let through, a trial: report how it ends.
    pub fn should_attempt(&self, backend: &[u8], inputs: &Inputs) -> Decision {
        self.should_attempt_at(backend, inputs, Instant::now())
    }

    /// [`should_attempt`](Failures::should_attempt) at a given time.
    pub fn should_attempt_at(&self, backend: &[u8], inputs: &Inputs, now: Instant) -> Decision {
        let no = |reason| Decision::Fallback { reason, retry_after: None };
        if inputs.client_unsupported {
            no(Reason::ClientUnsupported)
        } else if inputs.policy_disabled {
            no(Reason::PolicyDisabled)
        } else if inputs.foreign_backend {
            no(Reason::ForeignBackend)
        } else if inputs.descriptor_pressure {
            no(Reason::DescriptorPressure)
        } else if let Some(left) = self.lock().begin_attempt(backend, now) {
            Decision::Fallback { reason: Reason::RateLimited, retry_after: Some(left) }
        } else {
            Decision::Attempt
        }
    }

    /// Counts a failed attempt and says what follows: the reason for this fallback and, if the
    /// backend rests now, how long it is until the next trial. If a trial is out, the failure is
    /// taken for the trial's. Allocates for a backend's first failure.
    pub fn record_failure(&self, backend: &[u8], reason: Reason) -> Result<Decision, NoMemory> {
        self.record_failure_at(backend, reason, Instant::now())
    }

    /// [`record_failure`](Failures::record_failure) at a given time.
    pub fn record_failure_at(
        &self,
        backend: &[u8],
        reason: Reason,
        now: Instant,
    ) -> Result<Decision, NoMemory> {
        let mut backends = self.lock();
        if backends.get(backend).is_none() {
            backends.add(backend, &self.options, now)?;
        }
        let retry_after = backends.counted.get_mut(backend).and_then(|counted| {
            // Names do not tell attempts apart.
            counted.failures.record_trial(now);
            counted.failures.time_left(now)
        });
        Ok(Decision::Fallback { reason, retry_after })
    }

    /// Forgets a backend's failures: it works again.
    pub fn record_success(&self, backend: &[u8]) {
        self.lock().counted.remove(backend);
    }

    /// How many failures of a backend count now.
    pub fn failed_count(&self, backend: &[u8]) -> usize {
        self.failed_count_at(backend, Instant::now())
    }

    /// [`failed_count`](Failures::failed_count) at a given time.
    pub fn failed_count_at(&self, backend: &[u8], now: Instant) -> usize {
        self.lock().get(backend).map_or(0, |failures| failures.count(now))
    }

    fn lock(&self) -> MutexGuard<'_, Backends> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backends {
    fn get(&self, backend: &[u8]) -> Option<&FailureCounter> {
        self.counted.get(backend).map(|counted| &counted.failures)
    }

    /// Begins an attempt, as a trial if the backend rests; or says for how long none may be made.
    fn begin_attempt(&mut self, backend: &[u8], now: Instant) -> Option<Duration> {
        let failures = &mut self.counted.get_mut(backend)?.failures;
        match failures.check(now) {
            Attempt::Free => None,
            Attempt::Trial => {
                failures.begin_trial(now);
                None
            }
            Attempt::Rest(left) => Some(left),
        }
    }

    /// Counts a backend's failures from now on; beyond the limit another one is forgotten.
    fn add(
        &mut self,
        backend: &[u8],
        options: &FailuresOptions,
        now: Instant,
    ) -> Result<(), NoMemory> {
        let FailuresOptions { max_failures, period, max_backends } = *options;
        let what = "a backend's failures";
        let failures = FailureCounter::new(max_failures, period)?;
        let name = memory::copy(backend, what)?.into_boxed_slice();
        let again = memory::copy(backend, what)?.into_boxed_slice();
        self.drop_stale();
        self.counted.try_reserve(1).map_err(NoMemory::to(what))?;
        self.oldest.try_reserve(1).map_err(NoMemory::to(what))?;
        if self.counted.len() >= max_backends {
            self.forget_oldest();
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        self.counted.insert(name, Counted { failures, serial });
        self.oldest.push(Reverse((now, serial, again)));
        Ok(())
    }

    /// Forgets the backend that failed longest ago. Each turn removes an entry, or sets one to a
    /// time that was recorded since it was last looked at: so it costs no more than recording did.
    fn forget_oldest(&mut self) {
        while let Some(mut entry) = self.oldest.peek_mut() {
            let Reverse((time, serial, name)) = &mut *entry;
            let counted = self.counted.get(name).filter(|counted| counted.serial == *serial);
            match counted.map(|counted| counted.failures.latest()) {
                Some(Some(latest)) if latest > *time => *time = latest,
                counted => {
                    if counted.is_some() {
                        self.counted.remove(name);
                    }
                    PeekMut::pop(entry);
                    if counted.is_some() {
                        return;
                    }
                }
            }
        }
    }

    /// Removes the entries of backends that work again, once they are most of all.
    fn drop_stale(&mut self) {
        let Backends { counted, oldest, .. } = self;
        if oldest.len() > 2 * counted.len() + 16 {
            oldest.retain(|Reverse((_, serial, name))| {
                counted.get(name).is_some_and(|counted| counted.serial == *serial)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PERIOD: Duration = Duration::from_secs(30);

    fn state(max_failures: usize, max_backends: usize) -> Failures {
        Failures::new(FailuresOptions { max_failures, period: PERIOD, max_backends })
    }

    fn decide(state: &Failures, now: Instant) -> Decision {
        state.should_attempt_at(b"app", &Inputs::default(), now)
    }

    fn limited(left: Duration) -> Decision {
        Decision::Fallback { reason: Reason::RateLimited, retry_after: Some(left) }
    }

    fn fail(state: &Failures, now: Instant) {
        state.record_failure_at(b"app", Reason::AckTimeout, now).unwrap();
    }

    #[test]
    fn eight_failures_in_thirty_seconds_stop_all_attempts_but_one_trial_at_a_time() {
        let state = Failures::new(Default::default());
        let second = Duration::from_secs(1);
        let mut now = Instant::now();
        for _ in 0..8 {
            assert_eq!(decide(&state, now), Decision::Attempt);
            now += second;
            fail(&state, now);
        }
        assert_eq!(state.failed_count_at(b"app", now), 8);
        for pause in [1, 2, 4, 8, 8] {
            assert_eq!(decide(&state, now), limited(pause * second));
            now += pause * second;
            assert_eq!(decide(&state, now), Decision::Attempt);
            assert_eq!(decide(&state, now), limited(pause * second));
            fail(&state, now);
        }
        state.record_success(b"app");
        assert_eq!(decide(&state, now), Decision::Attempt);
    }

    #[test]
    fn trial_that_nobody_reports_on_is_over_after_the_period() {
        let state = state(1, 8);
        let now = Instant::now();
        fail(&state, now);
        let trial = now + Duration::from_secs(1);
        assert_eq!(decide(&state, trial), Decision::Attempt);
        let millisecond = Duration::from_millis(1);
        assert_eq!(decide(&state, trial + PERIOD - millisecond), limited(millisecond));
        assert_eq!(decide(&state, trial + PERIOD), Decision::Attempt);
    }

    #[test]
    fn failures_of_one_backend_do_not_limit_another() {
        let state = state(1, 8);
        let now = Instant::now();
        state.record_failure_at(b"other", Reason::AckTimeout, now).unwrap();
        assert_eq!(decide(&state, now), Decision::Attempt);
        assert_eq!(state.failed_count_at(b"app", now), 0);
    }

    #[test]
    fn each_input_has_its_own_reason_and_no_time_to_wait() {
        let state = state(1, 8);
        let none = Inputs::default();
        let cases = [
            (Inputs { client_unsupported: true, ..none }, Reason::ClientUnsupported),
            (Inputs { policy_disabled: true, ..none }, Reason::PolicyDisabled),
            (Inputs { foreign_backend: true, ..none }, Reason::ForeignBackend),
            (Inputs { descriptor_pressure: true, ..none }, Reason::DescriptorPressure),
        ];
        for (inputs, reason) in cases {
            let decision = state.should_attempt(b"app", &inputs);
            assert_eq!(decision, Decision::Fallback { reason, retry_after: None });
        }
    }

    #[test]
    fn failed_attempt_names_its_own_reason_even_when_it_is_the_last_one_allowed() {
        let state = state(1, 8);
        let now = Instant::now();
        let decision = state.record_failure_at(b"app", Reason::AckTimeout, now).unwrap();
        let retry_after = Some(FailureCounter::FIRST_PAUSE);
        assert_eq!(decision, Decision::Fallback { reason: Reason::AckTimeout, retry_after });
    }

    #[test]
    fn backend_that_failed_longest_ago_is_forgotten_when_there_are_too_many() {
        let state = state(1, 2);
        let start = Instant::now();
        for (second, backend) in [b"a", b"b", b"c"].into_iter().enumerate() {
            state
                .record_failure_at(
                    backend,
                    Reason::AckTimeout,
                    start + Duration::from_secs(second as u64),
                )
                .unwrap();
        }
        let now = start + Duration::from_secs(2);
        let counts = [b"a", b"b", b"c"].map(|backend| state.failed_count_at(backend, now));
        assert_eq!(counts, [0, 1, 1]);
    }

    #[test]
    fn backends_that_work_again_leave_nothing_behind() {
        let state = state(1, 8);
        let start = Instant::now();
        for second in 0..1000 {
            let now = start + Duration::from_secs(second);
            state.record_failure_at(b"app", Reason::AckTimeout, now).unwrap();
            state.record_success(b"app");
        }
        assert!(state.lock().oldest.len() < 32);
    }

    proptest! {
        #[test]
        fn backends_are_forgotten_in_the_order_of_their_last_failures(
            steps in proptest::collection::vec((0..8u8, 0..3u64, any::<bool>()), 0..200),
            max_backends in 1..6usize,
        ) {
            let state = state(8, max_backends);
            let mut model: Vec<(u8, Instant)> = Vec::new();
            let mut now = Instant::now();
            for (backend, seconds, fails) in steps {
                // No two at one time, for which there is no order.
                now += Duration::from_millis(1 + seconds);
                let known = model.iter().position(|(name, _)| *name == backend);
                if fails {
                    state.record_failure_at(&[backend], Reason::AckTimeout, now).unwrap();
                    if known.is_none() && model.len() == max_backends {
                        model.sort_by_key(|(_, time)| *time);
                        model.remove(0);
                    }
                    model.retain(|(name, _)| *name != backend);
                    model.push((backend, now));
                } else {
                    state.record_success(&[backend]);
                    model.retain(|(name, _)| *name != backend);
                }
                for backend in 0..8 {
                    let counts = state.failed_count_at(&[backend], now) > 0;
                    prop_assert_eq!(counts, model.iter().any(|(name, _)| *name == backend));
                }
            }
        }
    }
}
