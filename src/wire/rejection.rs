//! Why a backend rejected an offer, in one byte of its verdict.

use crate::reason::Reason;

/// The kinds of socket, by their numbers: HANDOFF_KIND_* of the C header.
pub(crate) mod kind {
    pub(crate) const STREAM: u8 = 1;
    pub(crate) const SEQPACKET: u8 = 2;
    pub(crate) const DATAGRAM: u8 = 4;
    pub(crate) const UNCONNECTED: u8 = 8;
}

/// In the byte: its other bits are the kind of socket that the backend does not take. Brokers of 0.1
/// take it for a rejection, as every number that they do not know; they would not take a byte that
/// is not zero where another one is.
const KIND: u8 = 64;

/// Why an offer was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub reason: Reason,
    /// With [`Reason::Kind`]: the kind that the backend does not take; 0 if it is not known.
    pub kind: u8,
}

impl From<Reason> for Rejection {
    fn from(reason: Reason) -> Rejection {
        Rejection { reason, kind: 0 }
    }
}

impl Rejection {
    /// The backend does not take sockets of this kind.
    pub(crate) fn of_kind(kind: u8) -> Rejection {
        Rejection { reason: Reason::Kind, kind }
    }

    /// As it is in a verdict.
    pub(crate) fn byte(self) -> u8 {
        match self {
            Rejection { reason: Reason::Kind, kind: 1.. } => KIND | self.kind,
            Rejection { reason, .. } => reason as u8,
        }
    }

    /// What a byte of a verdict means that is not 0. A reason that a later version added is still a
    /// rejection.
    pub(crate) fn of_byte(byte: u8) -> Rejection {
        use kind::{DATAGRAM, SEQPACKET, STREAM, UNCONNECTED};
        match (byte & KIND, byte & !KIND) {
            (KIND, kind @ (STREAM | SEQPACKET | DATAGRAM | UNCONNECTED)) => {
                Rejection::of_kind(kind)
            }
            _ => Reason::try_from(u32::from(byte)).unwrap_or(Reason::Rejected).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_and_kind_survives_its_byte() {
        for reason in (1..=u32::from(u8::MAX)).filter_map(|number| Reason::try_from(number).ok()) {
            let rejection = Rejection::from(reason);
            assert_eq!(rejection.byte(), reason as u8);
            assert_eq!(Rejection::of_byte(rejection.byte()), rejection);
        }
        for kind in [1, 2, 4, 8] {
            let rejection = Rejection::of_kind(kind);
            assert_eq!(rejection.byte(), 64 + kind);
            assert_eq!(Rejection::of_byte(64 + kind), rejection);
        }
    }

    #[test]
    fn unknown_bytes_are_rejections() {
        for byte in [63, 64, 67, 80, 128, 129, 255] {
            assert_eq!(Rejection::of_byte(byte), Reason::Rejected.into(), "{byte}");
        }
    }
}
