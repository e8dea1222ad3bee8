//! What a broker is told about one of its backends.

use std::time::Duration;

use super::BrokerOptions;
use crate::failures::FailureCounter;
use crate::memory::NoMemory;
use crate::wire::MAX_SLOTS;

/// What a [`Broker`](super::Broker) is told about one of its backends. Out-of-range values are
/// clamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendSettings {
    /// Its share of the offers among the weights of all: 1 to 65535, 1 by default.
    pub weight: u32,
    /// It gets offers only while no other one takes them.
    pub backup: bool,
    /// It gets no offers, and no channel.
    pub off: bool,
    /// Offers in flight at it: 1 to 4096; none for the broker's limit.
    pub max_in_flight: Option<usize>,
    /// Failures after which it rests; none for the broker's limit, `usize::MAX` for no limit.
    pub max_failures: Option<usize>,
    /// How long a failure counts; none for the broker's.
    pub failure_period: Option<Duration>,
}

impl Default for BackendSettings {
    fn default() -> BackendSettings {
        BackendSettings {
            weight: 1,
            backup: false,
            off: false,
            max_in_flight: None,
            max_failures: None,
            failure_period: None,
        }
    }
}

impl BackendSettings {
    /// The largest weight.
    pub const MAX_WEIGHT: u32 = 65535;

    /// Its own limits, or the broker's.
    pub(super) fn failure_limits(&self, options: &BrokerOptions) -> FailureLimits {
        let most = match self.max_failures {
            None => options.max_failures,
            Some(usize::MAX) => None,
            most => most,
        };
        FailureLimits { most, period: self.failure_period.unwrap_or(options.failure_period) }
    }

    pub(super) fn checked(self) -> BackendSettings {
        BackendSettings {
            weight: self.weight.clamp(1, BackendSettings::MAX_WEIGHT),
            max_in_flight: self.max_in_flight.map(|most| most.clamp(1, MAX_SLOTS)),
            ..self
        }
    }
}

/// How many failures make a backend rest; none if they never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FailureLimits {
    most: Option<usize>,
    period: Duration,
}

impl FailureLimits {
    pub(super) fn counter(self) -> Result<Option<FailureCounter>, NoMemory> {
        self.most.map(|most| FailureCounter::new(most, self.period)).transpose()
    }
}
