//! Why a broker serves a client itself, and for how long it does not try a backend that keeps
//! failing. Decisions are functions of state, inputs and time; nothing here does any I/O.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::ErrorKind;

/// Why a connection was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The client's protocol or connection cannot change hands.
    ClientUnsupported = 1,
    /// The service is configured not to hand over.
    PolicyDisabled = 2,
    /// One side is short of descriptors.
    DescriptorPressure = 3,
    /// The backend failed too often of late.
    RateLimited = 4,
    /// The handoff socket or the peer's credentials refuse.
    PermissionDenied = 5,
    /// A token or a message was not what it should be.
    IntegrityMismatch = 6,
    /// No acknowledgement came by the deadline.
    AckTimeout = 7,
    /// The backend was not started by this broker.
    AdoptedBackend = 8,
    /// Nobody listens on the handoff socket, or the backend went away before it answered.
    BackendUnavailable = 9,
    /// The backend's queue is full.
    BackendBusy = 10,
    /// The backend said no.
    Rejected = 11,
    /// This system cannot hand connections over.
    UnsupportedPlatform = 12,
    /// The broker's handle was closed.
    BrokerClosed = 13,
    /// With an adoption: the backend had adopted the connection, but went away before it said so.
    BackendDied = 14,
}

impl Reason {
    /// One more than the highest number.
    pub const COUNT: usize = 15;
}

impl TryFrom<u32> for Reason {
    type Error = ();

    fn try_from(value: u32) -> Result<Reason, ()> {
        Ok(match value {
            1 => Reason::ClientUnsupported,
            2 => Reason::PolicyDisabled,
            3 => Reason::DescriptorPressure,
            4 => Reason::RateLimited,
            5 => Reason::PermissionDenied,
            6 => Reason::IntegrityMismatch,
            7 => Reason::AckTimeout,
            8 => Reason::AdoptedBackend,
            9 => Reason::BackendUnavailable,
            10 => Reason::BackendBusy,
            11 => Reason::Rejected,
            12 => Reason::UnsupportedPlatform,
            13 => Reason::BrokerClosed,
            14 => Reason::BackendDied,
            _ => return Err(()),
        })
    }
}

/// How an attempt failed, as far as the fallback policy cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptFailure {
    /// The handoff socket or the peer's credentials refuse.
    PermissionDenied,
    /// A token or a message was not what it should be.
    IntegrityMismatch,
    /// No acknowledgement came by the deadline.
    AckTimeout,
    /// Nobody listens on the handoff socket, or the backend went away before it answered.
    BackendUnavailable,
    /// The backend's queue is full.
    BackendBusy,
    /// One side is short of descriptors.
    DescriptorPressure,
    /// This system cannot hand connections over.
    UnsupportedPlatform,
}

impl AttemptFailure {
    /// The reason that this failure gives for a fallback.
    pub fn reason(self) -> Reason {
        match self {
            AttemptFailure::PermissionDenied => Reason::PermissionDenied,
            AttemptFailure::IntegrityMismatch => Reason::IntegrityMismatch,
            AttemptFailure::AckTimeout => Reason::AckTimeout,
            AttemptFailure::BackendUnavailable => Reason::BackendUnavailable,
            AttemptFailure::BackendBusy => Reason::BackendBusy,
            AttemptFailure::DescriptorPressure => Reason::DescriptorPressure,
            AttemptFailure::UnsupportedPlatform => Reason::UnsupportedPlatform,
        }
    }
}

impl ErrorKind {
    /// How an attempt that ended with this error failed; none for a misuse of the library, which
    /// is not for a fallback to hide.
    pub fn attempt_failure(self) -> Option<AttemptFailure> {
        Some(match self {
            ErrorKind::InvalidArgument
            | ErrorKind::Internal
            | ErrorKind::WrongProcess
            | ErrorKind::Closed => return None,
            // No failures of an attempt, but nobody need be told either.
            ErrorKind::RateLimited | ErrorKind::System => AttemptFailure::BackendUnavailable,
            ErrorKind::Revoked | ErrorKind::TooLate => AttemptFailure::AckTimeout,
            ErrorKind::TooLarge => AttemptFailure::BackendBusy,
            ErrorKind::Unsupported => AttemptFailure::UnsupportedPlatform,
            ErrorKind::PermissionDenied | ErrorKind::PeerUnknown | ErrorKind::PeerNotAllowed => {
                AttemptFailure::PermissionDenied
            }
            ErrorKind::BackendUnavailable
            | ErrorKind::SendFailed
            | ErrorKind::ReceiveFailed
            | ErrorKind::EndOfStream
            | ErrorKind::Random
            | ErrorKind::AddressInUse
            | ErrorKind::NotASocket
            | ErrorKind::ListenFailed => AttemptFailure::BackendUnavailable,
            ErrorKind::WouldBlock | ErrorKind::Full => AttemptFailure::BackendBusy,
            ErrorKind::DescriptorPressure | ErrorKind::ControlTruncated => {
                AttemptFailure::DescriptorPressure
            }
            ErrorKind::AckTimeout => AttemptFailure::AckTimeout,
            ErrorKind::ShortWrite
            | ErrorKind::AckMismatch
            | ErrorKind::AckMalformed
            | ErrorKind::NoDescriptor
            | ErrorKind::SurplusDescriptors
            | ErrorKind::WrongLength
            | ErrorKind::TokenMismatch
            | ErrorKind::TokenExpired
            | ErrorKind::TokenNotPending
            | ErrorKind::TokenAlreadyPending
            | ErrorKind::TokenCollision => AttemptFailure::IntegrityMismatch,
        })
    }
}

/// What the broker knows about a connection and its backend before it tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// The client's protocol and connection can change hands.
    pub client_supported: bool,
    /// The service is configured to hand over.
    pub policy_enabled: bool,
    /// This process is short of descriptors.
    pub descriptor_pressure: bool,
    /// The backend was not started by this broker.
    pub adopted_backend: bool,
}

impl Default for Inputs {
    fn default() -> Inputs {
        Inputs {
            client_supported: true,
            policy_enabled: true,
            descriptor_pressure: false,
            adopted_backend: false,
        }
    }
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

/// The limits of a [`FallbackState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FallbackOptions {
    /// Failures within the window after which a backend is not tried: 1 to
    /// [`FailureWindow::MAX_FAILURES`], 8 by default.
    pub max_failures: usize,
    /// How long a failure counts: a millisecond at least, 30 seconds by default.
    pub window: Duration,
    /// Backends that failures are held for at once: 1 to [`FallbackState::MAX_BACKENDS`], 1024 by
    /// default. Beyond, the one that failed longest ago is forgotten.
    pub max_backends: usize,
}

impl Default for FallbackOptions {
    fn default() -> FallbackOptions {
        FallbackOptions { max_failures: 8, window: Duration::from_secs(30), max_backends: 1024 }
    }
}

/// The recent failures of one backend: as many as make it rate-limited, and no more.
#[derive(Debug)]
pub struct FailureWindow {
    max_failures: usize,
    window: Duration,
    /// Oldest first.
    times: VecDeque<Instant>,
}

impl FailureWindow {
    /// The most failures that a window can be made for.
    pub const MAX_FAILURES: usize = 4096;

    /// Makes an empty window. Values outside their range are taken to the nearest end of it.
    pub fn new(max_failures: usize, window: Duration) -> FailureWindow {
        let max_failures = max_failures.clamp(1, FailureWindow::MAX_FAILURES);
        let window = window.max(Duration::from_millis(1));
        FailureWindow { max_failures, window, times: VecDeque::with_capacity(max_failures) }
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
        let counts = |time: &&Instant| now.saturating_duration_since(**time) < self.window;
        self.times.iter().filter(counts).count()
    }

    /// How long the backend is still rate-limited, if it is.
    pub fn time_left(&self, now: Instant) -> Option<Duration> {
        // If the window is full, its oldest failure opens it.
        let oldest = self.times.front().filter(|_| self.times.len() == self.max_failures)?;
        let age = now.saturating_duration_since(*oldest);
        self.window.checked_sub(age).filter(|left| !left.is_zero())
    }
}

/// The recent failures of each backend. A backend is named by any bytes, such as the path of its
/// handoff socket. Any number of threads may share one.
#[derive(Debug)]
pub struct FallbackState {
    options: FallbackOptions,
    backends: Mutex<HashMap<Box<[u8]>, FailureWindow>>,
}

impl FallbackState {
    /// The most backends that can be held.
    pub const MAX_BACKENDS: usize = 65536;

    /// Makes an empty state. Options outside their range are taken to the nearest end of it.
    pub fn new(options: FallbackOptions) -> FallbackState {
        let max_backends = options.max_backends.clamp(1, FallbackState::MAX_BACKENDS);
        let options = FallbackOptions { max_backends, ..options };
        FallbackState { options, backends: Mutex::new(HashMap::new()) }
    }

    /// Says whether to offer a connection to `backend`.
    pub fn should_attempt(&self, backend: &[u8], inputs: &Inputs) -> Decision {
        self.should_attempt_at(backend, inputs, Instant::now())
    }

    /// [`should_attempt`](FallbackState::should_attempt) at a given time.
    pub fn should_attempt_at(&self, backend: &[u8], inputs: &Inputs, now: Instant) -> Decision {
        let no = |reason| Decision::Fallback { reason, retry_after: None };
        if !inputs.client_supported {
            no(Reason::ClientUnsupported)
        } else if !inputs.policy_enabled {
            no(Reason::PolicyDisabled)
        } else if inputs.adopted_backend {
            no(Reason::AdoptedBackend)
        } else if inputs.descriptor_pressure {
            no(Reason::DescriptorPressure)
        } else if let Some(left) = self.lock().get(backend).and_then(|w| w.time_left(now)) {
            Decision::Fallback { reason: Reason::RateLimited, retry_after: Some(left) }
        } else {
            Decision::Attempt
        }
    }

    /// Counts a failed attempt and says what follows: the reason for this fallback and, if the
    /// backend is now rate-limited, for how long. Allocates for a backend's first failure.
    pub fn record_failure(&self, backend: &[u8], failure: AttemptFailure) -> Decision {
        self.record_failure_at(backend, failure, Instant::now())
    }

    /// [`record_failure`](FallbackState::record_failure) at a given time.
    pub fn record_failure_at(
        &self,
        backend: &[u8],
        failure: AttemptFailure,
        now: Instant,
    ) -> Decision {
        let FallbackOptions { max_failures, window, max_backends } = self.options;
        let mut backends = self.lock();
        if !backends.contains_key(backend) {
            if backends.len() >= max_backends {
                forget_longest_unseen(&mut backends);
            }
            backends.insert(backend.into(), FailureWindow::new(max_failures, window));
        }
        let retry_after = backends.get_mut(backend).and_then(|failures| {
            failures.record(now);
            failures.time_left(now)
        });
        Decision::Fallback { reason: failure.reason(), retry_after }
    }

    /// Forgets a backend's failures: it works again.
    pub fn record_success(&self, backend: &[u8]) {
        self.lock().remove(backend);
    }

    /// How many failures of a backend count now.
    pub fn failed_count(&self, backend: &[u8]) -> usize {
        self.failed_count_at(backend, Instant::now())
    }

    /// [`failed_count`](FallbackState::failed_count) at a given time.
    pub fn failed_count_at(&self, backend: &[u8], now: Instant) -> usize {
        self.lock().get(backend).map_or(0, |failures| failures.count(now))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, FailureWindow>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget_longest_unseen(backends: &mut HashMap<Box<[u8]>, FailureWindow>) {
    let oldest = backends.iter().min_by_key(|(_, failures)| failures.times.back().copied());
    if let Some(backend) = oldest.map(|(backend, _)| backend.clone()) {
        backends.remove(&backend);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: Duration = Duration::from_secs(30);

    fn state(max_failures: usize, max_backends: usize) -> FallbackState {
        FallbackState::new(FallbackOptions { max_failures, window: WINDOW, max_backends })
    }

    fn decide(state: &FallbackState, now: Instant) -> Decision {
        state.should_attempt_at(b"app", &Inputs::default(), now)
    }

    #[test]
    fn eight_failures_in_thirty_seconds_stop_attempts_for_the_time_left() {
        let state = FallbackState::new(Default::default());
        let start = Instant::now();
        for second in 0..8 {
            assert_eq!(decide(&state, start), Decision::Attempt);
            state.record_failure_at(
                b"app",
                AttemptFailure::AckTimeout,
                start + Duration::from_secs(second),
            );
        }
        let now = start + Duration::from_secs(10);
        let limited = |left| Decision::Fallback {
            reason: Reason::RateLimited,
            retry_after: Some(Duration::from_secs(left)),
        };
        assert_eq!(decide(&state, now), limited(20));
        assert_eq!(state.failed_count_at(b"app", now), 8);
        assert_eq!(decide(&state, start + WINDOW), Decision::Attempt);
        state.record_failure_at(b"app", AttemptFailure::AckTimeout, start + WINDOW);
        assert_eq!(decide(&state, start + WINDOW), limited(1));
    }

    #[test]
    fn failures_of_one_backend_do_not_limit_another() {
        let state = state(1, 8);
        let now = Instant::now();
        state.record_failure_at(b"other", AttemptFailure::AckTimeout, now);
        assert_eq!(decide(&state, now), Decision::Attempt);
        assert_eq!(state.failed_count_at(b"app", now), 0);
    }

    #[test]
    fn each_input_has_its_own_reason_and_no_time_to_wait() {
        let state = state(1, 8);
        let yes = Inputs::default();
        let cases = [
            (Inputs { client_supported: false, ..yes }, Reason::ClientUnsupported),
            (Inputs { policy_enabled: false, ..yes }, Reason::PolicyDisabled),
            (Inputs { adopted_backend: true, ..yes }, Reason::AdoptedBackend),
            (Inputs { descriptor_pressure: true, ..yes }, Reason::DescriptorPressure),
        ];
        for (inputs, reason) in cases {
            let decision = state.should_attempt(b"app", &inputs);
            assert_eq!(decision, Decision::Fallback { reason, retry_after: None });
        }
    }

    #[test]
    fn failed_attempt_names_its_own_reason_even_when_it_fills_the_window() {
        let state = state(1, 8);
        let now = Instant::now();
        let decision = state.record_failure_at(b"app", AttemptFailure::AckTimeout, now);
        let retry_after = Some(WINDOW);
        assert_eq!(decision, Decision::Fallback { reason: Reason::AckTimeout, retry_after });
    }

    #[test]
    fn backend_that_failed_longest_ago_is_forgotten_when_there_are_too_many() {
        let state = state(1, 2);
        let start = Instant::now();
        for (second, backend) in [b"a", b"b", b"c"].into_iter().enumerate() {
            state.record_failure_at(
                backend,
                AttemptFailure::AckTimeout,
                start + Duration::from_secs(second as u64),
            );
        }
        let now = start + Duration::from_secs(2);
        let counts = [b"a", b"b", b"c"].map(|backend| state.failed_count_at(backend, now));
        assert_eq!(counts, [0, 1, 1]);
    }

    #[test]
    fn numbers_of_reasons_are_what_conversion_takes() {
        for value in 0..300 {
            if let Ok(reason) = Reason::try_from(value) {
                assert_eq!(reason as u32, value);
                assert!(Reason::COUNT > value as usize);
            }
        }
    }

    proptest! {
        #[test]
        fn window_behaves_like_a_list_of_times(
            steps in proptest::collection::vec((0..4u8, 0..12u64), 0..100),
            max_failures in 1..6usize,
        ) {
            let state = state(max_failures, 8);
            let mut model: Vec<Instant> = Vec::new();
            let mut now = Instant::now();
            for (step, seconds) in steps {
                match step {
                    0 => {
                        state.record_success(b"app");
                        model.clear();
                    }
                    1 | 2 => {
                        state.record_failure_at(b"app", AttemptFailure::AckTimeout, now);
                        model.push(now);
                    }
                    _ => now += Duration::from_secs(seconds),
                }
                let recent: Vec<_> = model.iter().filter(|time| now - **time < WINDOW).collect();
                prop_assert_eq!(
                    state.failed_count_at(b"app", now),
                    recent.len().min(max_failures)
                );
                let want = if recent.len() >= max_failures {
                    let opens = *recent[recent.len() - max_failures] + WINDOW;
                    let retry_after = Some(opens - now);
                    Decision::Fallback { reason: Reason::RateLimited, retry_after }
                } else {
                    Decision::Attempt
                };
                prop_assert_eq!(decide(&state, now), want);
            }
        }
    }
}
