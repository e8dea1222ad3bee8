//! Why a connection was not handed over.

/// Why a connection was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The client's protocol or connection cannot change hands.
    ClientUnsupported = 1,
    /// The service is configured not to hand over.
    PolicyDisabled = 2,
    /// One side is short of descriptors.
    DescriptorPressure = 3,
    /// The backend rests, because it failed.
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
    /// More bytes go with the connection than the backend, the protocol or the socket's buffer
    /// takes.
    TooLarge = 16,
    /// The backend does not take sockets of this kind.
    Kind = 17,
    /// The backend has as many channels as it may.
    TooManyChannels = 18,
}

impl Reason {
    /// Every reason, in the order of the numbers.
    const ALL: [Reason; 18] = [
        Reason::ClientUnsupported,
        Reason::PolicyDisabled,
        Reason::DescriptorPressure,
        Reason::RateLimited,
        Reason::PermissionDenied,
        Reason::IntegrityMismatch,
        Reason::AckTimeout,
        Reason::ForeignBackend,
        Reason::BackendUnavailable,
        Reason::BackendBusy,
        Reason::Rejected,
        Reason::UnsupportedPlatform,
        Reason::BrokerClosed,
        Reason::BackendDied,
        Reason::ClientGone,
        Reason::TooLarge,
        Reason::Kind,
        Reason::TooManyChannels,
    ];

    /// One more than the highest number.
    pub const COUNT: usize = Reason::ALL.len() + 1;

    /// Whether an attempt of the raw layer fails for this reason. A rejection is no failure of the
    /// backend.
    pub fn is_attempt_failure(self) -> bool {
        matches!(
            self,
            Reason::PermissionDenied
                | Reason::IntegrityMismatch
                | Reason::AckTimeout
                | Reason::BackendUnavailable
                | Reason::BackendBusy
                | Reason::DescriptorPressure
                | Reason::UnsupportedPlatform
        )
    }

    /// Whether the reason for a fallback is about the backends, and may pass.
    pub fn may_pass(self) -> bool {
        matches!(
            self,
            Reason::BackendUnavailable
                | Reason::BackendBusy
                | Reason::RateLimited
                | Reason::AckTimeout
                | Reason::DescriptorPressure
                | Reason::PermissionDenied
                | Reason::TooManyChannels
        )
    }
}

// Where a number stands in the list, which a new reason must be added to.
const _: () = {
    let mut index = 0;
    while index < Reason::ALL.len() {
        assert!(Reason::ALL[index] as usize == index + 1);
        index += 1;
    }
};

impl TryFrom<u32> for Reason {
    type Error = ();

    fn try_from(value: u32) -> Result<Reason, ()> {
        let index = (value as usize).wrapping_sub(1);
        Reason::ALL.get(index).copied().ok_or(())
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
}
