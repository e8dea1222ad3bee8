//! What is in the frames: the fixed ones, and the entries of the others.

use std::io::IoSlice;

use super::{GRANT_LEN, MAX_SLOTS, OFFER_LEN, Reader, VERDICT_LEN, WireError};
use crate::claim::MAX_GENERATION;
use crate::token::Token;

/// The broker's first frame. The descriptor with it is the claim table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Words in the claim table: 1 to [`MAX_SLOTS`].
    pub slots: u32,
}

/// The backend's first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    /// Slots of the table that the backend will use, not more than there are.
    pub slots: u32,
    /// The most bytes of preread, metadata, service and correlation id in one offer.
    pub max_bytes: u32,
}

/// A token for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub slot: u32,
    pub token: Token,
}

/// The fixed part of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OfferHead {
    pub slot: u32,
    pub generation: u64,
    pub token: Token,
    /// SO_COOKIE of the connection; 0 if the broker cannot tell.
    pub cookie: u64,
    /// The kernel does the connection's TLS, in both directions.
    pub tls: bool,
}

/// In the flags of an offer: the kernel does the connection's TLS.
const TLS: u8 = 1;

/// One connection on offer, as it arrives; its descriptor travels beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer<'a> {
    pub head: OfferHead,
    pub service: &'a [u8],
    pub correlation: &'a [u8],
    pub metadata: &'a [u8],
    pub preread: &'a [u8],
}

/// What became of an offer, and the slot's next token unless the backend is draining.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub slot: u32,
    pub generation: u64,
    /// 0: adopted; otherwise the number of the reason.
    pub reason: u8,
    pub next: Option<Token>,
}

/// Bytes of an entry from an offset on.
fn field<const N: usize>(entry: &[u8; OFFER_LEN], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&entry[offset..offset + N]);
    field
}

impl Hello {
    pub(crate) fn body(&self) -> [u8; 16] {
        let mut body = [0; 16];
        body[..4].copy_from_slice(&self.slots.to_le_bytes());
        body
    }
}

impl Welcome {
    pub(crate) fn body(&self) -> [u8; 16] {
        let mut body = [0; 16];
        body[..4].copy_from_slice(&self.slots.to_le_bytes());
        body[4..8].copy_from_slice(&self.max_bytes.to_le_bytes());
        body
    }
}

impl Grant {
    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Grant, WireError> {
        let slot = reader.slot()?;
        reader.zeros::<4>()?;
        Ok(Grant { slot, token: reader.token()? })
    }

    pub(crate) fn bytes(&self) -> [u8; GRANT_LEN] {
        let mut bytes = [0; GRANT_LEN];
        bytes[..4].copy_from_slice(&self.slot.to_le_bytes());
        bytes[8..].copy_from_slice(self.token.as_bytes());
        bytes
    }
}

impl<'a> Offer<'a> {
    pub(super) fn take(reader: &mut Reader<'a>) -> Result<Offer<'a>, WireError> {
        Offer::take_with_names(reader).map(|(offer, _)| offer)
    }

    /// As [`take`](Offer::take), of what is not known to be an offer: names have no NUL, because
    /// they end in one for C programs.
    pub(super) fn check(reader: &mut Reader<'a>) -> Result<Offer<'a>, WireError> {
        let (offer, names) = Offer::take_with_names(reader)?;
        if !names.is_empty() && has_nul(names) { Err(WireError::Name) } else { Ok(offer) }
    }

    /// Takes an offer, and gives its names once more in one piece.
    #[inline(always)]
    fn take_with_names(reader: &mut Reader<'a>) -> Result<(Offer<'a>, &'a [u8]), WireError> {
        let fixed = reader.array::<OFFER_LEN>()?;
        let slot = u32::from_le_bytes(field(&fixed, 0));
        let generation = u64::from_le_bytes(field(&fixed, 8));
        let token = Token::from_bytes(field(&fixed, 16));
        let cookie = u64::from_le_bytes(field(&fixed, 32));
        let preread_len = u32::from_le_bytes(field(&fixed, 40)) as usize;
        let metadata_len = u32::from_le_bytes(field(&fixed, 44)) as usize;
        // The lengths of the names, the flags, and zeros.
        let last = u64::from_le_bytes(field(&fixed, 48));
        let (service_len, correlation_len) = (last as u8 as usize, (last >> 8) as u8 as usize);
        let (tls, unknown) = (last >> 16 & u64::from(TLS) != 0, last >> 17);
        if field(&fixed, 4) != [0; 4] || unknown != 0 {
            return Err(WireError::Reserved);
        }
        let generations = 1..=MAX_GENERATION;
        if slot as usize >= MAX_SLOTS || !generations.contains(&generation) {
            return Err(WireError::Range);
        }
        let names = reader.bytes(service_len + correlation_len)?;
        let (service, correlation) = names.split_at(service_len);
        let metadata = reader.bytes(metadata_len)?;
        let preread = reader.bytes(preread_len)?;
        let head = OfferHead { slot, generation, token, cookie, tls };
        Ok((Offer { head, service, correlation, metadata, preread }, names))
    }

    /// Bytes beside the fixed part; none if there are more than any frame could hold.
    pub(crate) fn variable_len(&self) -> Option<usize> {
        let parts = [self.service, self.correlation, self.metadata, self.preread];
        parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.len()))
    }
}

/// Whether a name contains a NUL, which is not allowed.
pub(crate) fn has_nul(name: &[u8]) -> bool {
    name.contains(&0)
}

/// Appends the entry of an offer. Names have no NUL, are at most [`MAX_NAME_LEN`] long and all of
/// it fits a frame.
// The library has one caller of it, and bench.rs another, which must not slow down the first.
#[inline(always)]
pub(crate) fn write_offer(
    out: &mut Vec<u8>,
    head: &OfferHead,
    names: &[&[u8]; 3],
    preread: &[IoSlice<'_>],
) {
    let start = out.len();
    write_offer_without(out, head, names, 0);
    let before = out.len();
    for part in preread {
        out.extend_from_slice(part);
    }
    // Counted last, which saves a walk through the list.
    let preread_len = (out.len() - before) as u32;
    out[start + 40..start + 44].copy_from_slice(&preread_len.to_le_bytes());
}

/// The same, without the preread, which is to follow.
#[inline(always)]
pub(crate) fn write_offer_without(
    out: &mut Vec<u8>,
    head: &OfferHead,
    [service, correlation, metadata]: &[&[u8]; 3],
    preread_len: u32,
) {
    let mut fixed = [0; OFFER_LEN];
    fixed[..4].copy_from_slice(&head.slot.to_le_bytes());
    fixed[8..16].copy_from_slice(&head.generation.to_le_bytes());
    fixed[16..32].copy_from_slice(head.token.as_bytes());
    fixed[32..40].copy_from_slice(&head.cookie.to_le_bytes());
    fixed[40..44].copy_from_slice(&preread_len.to_le_bytes());
    fixed[44..48].copy_from_slice(&(metadata.len() as u32).to_le_bytes());
    fixed[48] = service.len() as u8;
    fixed[49] = correlation.len() as u8;
    fixed[50] = u8::from(head.tls) * TLS;
    out.extend_from_slice(&fixed);
    for part in [service, correlation, metadata] {
        out.extend_from_slice(part);
    }
}

impl Verdict {
    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Verdict, WireError> {
        let slot = reader.slot()?;
        let (reason, has_next) = (reader.u8()?, reader.u8()?);
        reader.zeros::<2>()?;
        let generation = reader.u64()?;
        let token = reader.token()?;
        let next = match has_next {
            0 if *token.as_bytes() == [0; Token::LEN] => None,
            1 => Some(token),
            _ => return Err(WireError::Range),
        };
        Ok(Verdict { slot, generation, reason, next })
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut fixed = [0; VERDICT_LEN];
        fixed[..4].copy_from_slice(&self.slot.to_le_bytes());
        fixed[4] = self.reason;
        fixed[8..16].copy_from_slice(&self.generation.to_le_bytes());
        if let Some(token) = &self.next {
            fixed[5] = 1;
            fixed[16..].copy_from_slice(token.as_bytes());
        }
        out.extend_from_slice(&fixed);
    }
}
