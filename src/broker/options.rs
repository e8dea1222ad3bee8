//! The limits of a broker.

use std::time::Duration;

use super::BrokerError;
use crate::handle::MAX_SPIN;
use crate::wire::{MAX_FRAME_LEN, MAX_SLOTS};

/// The longest that anything here may take: over a hundred years, which is no limit.
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(u32::MAX as u64);

/// The limits of a [`Broker`](super::Broker). Out-of-range values are clamped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerOptions {
    /// Offers in flight at once: 1 to 4096, 256 by default. The backend may allow fewer.
    pub max_in_flight: usize,
    /// How long an offer may wait for its verdict, unless it says otherwise: a millisecond at
    /// least, 5 seconds by default. `Duration::MAX` is no timeout.
    pub timeout: Duration,
    /// How long one of several backends may take before an offer is taken back and offered to the
    /// next one: a millisecond at least. None, the default: a second, or half of the time that the
    /// offer has left if that is less.
    pub attempt_timeout: Option<Duration>,
    /// Bytes of offers that are kept for another backend, 16 MiB by default. An offer beyond them
    /// is tried at one backend only.
    pub failover_bytes: usize,
    /// Bytes of offers that may wait for room in the socket: 128 KiB at least, 1 MiB by default.
    pub queue_bytes: usize,
    /// Failures within `failure_period` after which offers are refused: 1 to
    /// [`FailureCounter::MAX_FAILURES`](crate::failures::FailureCounter::MAX_FAILURES), 8 by
    /// default. None: failures never refuse an offer.
    pub max_failures: Option<usize>,
    /// How long a failure counts: a millisecond at least, 30 seconds by default.
    pub failure_period: Duration,
    /// The first pause between two attempts to connect: a millisecond at least, 10 milliseconds by
    /// default. The pause doubles with each attempt that fails.
    pub reconnect_min: Duration,
    /// The longest pause between two attempts to connect, a second by default. It is an error if it
    /// is shorter than `reconnect_min`.
    pub reconnect_max: Duration,
    /// How long [`offer_and_wait`](super::Broker::offer_and_wait) keeps a processor busy before it
    /// sleeps, and [`dispatch`](super::Broker::dispatch) before it returns with nothing: 10
    /// milliseconds at most, not at all by default. Those of a
    /// [`SharedBroker`](super::SharedBroker) do not.
    pub spin: Duration,
    /// Users that may be the backend. If this and `groups` are empty: root, the user that this
    /// process runs as and, for a path, the owner of the socket's file.
    pub users: Vec<u32>,
    /// Groups whose members may be the backend.
    pub groups: Vec<u32>,
}

impl BrokerOptions {
    /// The options as they are used: clamped, unless they are impossible.
    pub(super) fn checked(self) -> Result<BrokerOptions, BrokerError> {
        let least = Duration::from_millis(1);
        let options = BrokerOptions {
            max_in_flight: self.max_in_flight.clamp(1, MAX_SLOTS),
            timeout: self.timeout.clamp(least, MAX_TIMEOUT),
            attempt_timeout: self.attempt_timeout.map(|time| time.clamp(least, MAX_TIMEOUT)),
            queue_bytes: self.queue_bytes.max(MAX_FRAME_LEN),
            reconnect_min: self.reconnect_min.clamp(least, MAX_TIMEOUT),
            reconnect_max: self.reconnect_max.clamp(least, MAX_TIMEOUT),
            spin: self.spin.min(MAX_SPIN),
            ..self
        };
        let BrokerOptions { reconnect_min, reconnect_max, .. } = options;
        if reconnect_min > reconnect_max {
            let problem = format!(
                "reconnect_min_ms ({}) is more than reconnect_max_ms ({})",
                reconnect_min.as_millis(),
                reconnect_max.as_millis()
            );
            return Err(BrokerError::InvalidOptions { problem });
        }
        Ok(options)
    }
}

impl Default for BrokerOptions {
    fn default() -> BrokerOptions {
        BrokerOptions {
            max_in_flight: 256,
            timeout: Duration::from_secs(5),
            attempt_timeout: None,
            failover_bytes: 16 * 1024 * 1024,
            queue_bytes: 1024 * 1024,
            max_failures: Some(8),
            failure_period: Duration::from_secs(30),
            reconnect_min: Duration::from_millis(10),
            reconnect_max: Duration::from_secs(1),
            spin: Duration::ZERO,
            users: Vec::new(),
            groups: Vec::new(),
        }
    }
}
