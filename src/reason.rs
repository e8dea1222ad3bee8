//! Why a connection was not handed over, and how an attempt failed.

/// Why a connection was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The client's protocol or connection cannot change hands.
    ClientUnsupported = 1,
    /// The service is configured not to hand over.
    PolicyDisabled = 2,
    /// One side is short of descriptors.
    DescriptorPressure = 3,
    /// The backend failed too often recently.
    RateLimited = 4,
    /// The handoff socket or the peer's credentials refuse.
    PermissionDenied = 5,
    /// A token or a message was not what it should be.
    IntegrityMismatch = 6,
    /// No acknowledgement came by the deadline.
    AckTimeout = 7,
    /// The backend was not started by this broker.
    ForeignBackend = 8,
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
    /// The connection has ended, or its descriptor is closed: there is no client any more.
    ClientGone = 15,
    /// More bytes go with the connection than the backend, the protocol or the socket's buffer takes.
    TooLarge = 16,
    /// The backend does not take sockets of this kind.
    Kind = 17,
    /// The backend has as many channels as it may.
    TooManyChannels = 18,
}

impl Reason {
    /// One more than the highest number.
    pub const COUNT: usize = 19;
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
            8 => Reason::ForeignBackend,
            9 => Reason::BackendUnavailable,
            10 => Reason::BackendBusy,
            11 => Reason::Rejected,
            12 => Reason::UnsupportedPlatform,
            13 => Reason::BrokerClosed,
            14 => Reason::BackendDied,
            15 => Reason::ClientGone,
            16 => Reason::TooLarge,
            17 => Reason::Kind,
            18 => Reason::TooManyChannels,
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

impl TryFrom<Reason> for AttemptFailure {
    type Error = ();

    /// Fails for a reason that is no failure of the backend, such as a rejection.
    fn try_from(reason: Reason) -> Result<AttemptFailure, ()> {
        Ok(match reason {
            Reason::PermissionDenied => AttemptFailure::PermissionDenied,
            Reason::IntegrityMismatch => AttemptFailure::IntegrityMismatch,
            Reason::AckTimeout => AttemptFailure::AckTimeout,
            Reason::BackendUnavailable => AttemptFailure::BackendUnavailable,
            Reason::BackendBusy => AttemptFailure::BackendBusy,
            Reason::DescriptorPressure => AttemptFailure::DescriptorPressure,
            Reason::UnsupportedPlatform => AttemptFailure::UnsupportedPlatform,
            _ => return Err(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_reasons_are_what_conversion_takes() {
        for value in 0..300 {
            let reason = Reason::try_from(value).map(|reason| reason as u32);
            let known = value != 0 && (value as usize) < Reason::COUNT;
            assert_eq!(reason, if known { Ok(value) } else { Err(()) });
        }
    }

    #[test]
    fn failures_survive_conversion_to_their_reasons_and_back() {
        let reasons = (0..300).filter_map(|value| Reason::try_from(value).ok());
        let failures: Vec<_> = reasons
            .filter_map(|reason| Some((AttemptFailure::try_from(reason).ok()?, reason)))
            .collect();
        assert_eq!(failures.len(), 7);
        assert!(failures.iter().all(|(failure, reason)| failure.reason() == *reason));
    }
}
