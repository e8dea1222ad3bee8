//! The frames of a channel: bytes to values and back, without I/O.
//!
//! One packet is one frame. A frame begins with a header that declares its length, its kind and
//! its counts of entries and descriptors; [`decode`] accepts a packet only if it matches its
//! header. Which kinds it may receive is for each end to check. docs/protocol.md describes the
//! format byte by byte.

mod entries;
mod refusal;
mod rejection;
#[cfg(test)]
mod tests;

use crate::token::Token;

pub(crate) use crate::sys::packet::MAX_DESCRIPTORS;
pub(crate) use entries::{
    Grant, Hello, Offer, OfferHead, Verdict, Welcome, has_nul, write_offer, write_offer_without,
};
pub use refusal::Refusal;
pub(crate) use refusal::{REFUSAL_LEN, cause};
pub(crate) use rejection::{Rejection, kind};

/// The version of the protocol.
pub(crate) const VERSION: u8 = 1;
/// Bytes in a header.
pub(crate) const HEADER_LEN: usize = 16;
/// The most slots in a claim table.
pub(crate) const MAX_SLOTS: usize = 4096;
/// The most bytes in a frame.
pub(crate) const MAX_FRAME_LEN: usize = 128 * 1024;
/// A socket holds few packets of so many bytes. An offer with such a preread is sent by itself and
/// from the caller's memory.
pub(crate) const LARGE_LEN: usize = MAX_FRAME_LEN / 4;
/// Bytes in the fixed part of an offer.
pub(crate) const OFFER_LEN: usize = 56;
/// The most bytes of names, metadata and preread in an offer.
pub(crate) const MAX_OFFER_BYTES: usize = MAX_FRAME_LEN - HEADER_LEN - OFFER_LEN;
/// Bytes in a verdict.
pub(crate) const VERDICT_LEN: usize = 32;
/// Bytes in a grant.
pub(crate) const GRANT_LEN: usize = 24;
/// The most bytes in a service name and in a correlation id.
pub(crate) const MAX_NAME_LEN: usize = 255;

/// The kinds of frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Broker to backend, first: the claim table.
    Hello = 1,
    /// Backend to broker, first: the limits.
    Welcome = 2,
    /// Backend to broker: tokens.
    Grants = 3,
    /// Broker to backend: connections.
    Offers = 4,
    /// Backend to broker: what became of them, and the next tokens.
    Verdicts = 5,
    /// Backend to broker: there will be no more tokens.
    Drain = 6,
    /// Backend to broker, last: why it turns the broker away. It is the same in all versions.
    Refusal = 7,
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the packet is shorter than a header")]
    Short,
    #[error("the packet has another length than its header says")]
    Length,
    #[error("protocol version {0} is not spoken here")]
    Version(u8),
    #[error("frames of kind {0} are unknown")]
    Kind(u8),
    #[error("the packet has another number of descriptors than its header says")]
    Descriptors,
    #[error("bytes that must be zero are not")]
    Reserved,
    #[error("the entries do not fill the frame")]
    Entries,
    #[error("a value is out of range")]
    Range,
    #[error("a name has a NUL in it")]
    Name,
}

/// A packet that is what it says it is.
#[derive(Clone, Debug)]
pub(crate) enum Frame<'a> {
    Hello(Hello),
    Welcome(Welcome),
    Grants(Entries<'a>),
    Offers(Entries<'a>),
    Verdicts(Entries<'a>),
    Drain,
    Refusal(Refusal),
}

/// The entries of a frame, checked to fill it.
#[derive(Clone, Debug)]
pub(crate) struct Entries<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl<'a> Entries<'a> {
    pub(crate) fn grants(self) -> impl Iterator<Item = Grant> + 'a {
        entries(self, Grant::take)
    }

    /// How many bytes each has, on average.
    pub(crate) fn mean_len(&self) -> usize {
        self.bytes.len() / self.count.max(1)
    }

    pub(crate) fn offers(self) -> impl Iterator<Item = Offer<'a>> + 'a {
        entries(self, Offer::take)
    }

    pub(crate) fn verdicts(self) -> impl Iterator<Item = Verdict> + 'a {
        entries(self, Verdict::take)
    }

    /// Entries of one kind that fill `bytes` exactly.
    fn check<T>(
        count: usize,
        bytes: &'a [u8],
        take: impl Fn(&mut Reader<'a>) -> Result<T, WireError>,
    ) -> Result<Entries<'a>, WireError> {
        let mut reader = Reader(bytes);
        for _ in 0..count {
            take(&mut reader)?;
        }
        if count == 0 || !reader.0.is_empty() {
            return Err(WireError::Entries);
        }
        Ok(Entries { count, bytes })
    }
}

fn entries<'a, T>(
    entries: Entries<'a>,
    take: impl Fn(&mut Reader<'a>) -> Result<T, WireError>,
) -> impl Iterator<Item = T> {
    let mut reader = Reader(entries.bytes);
    // Checked before: none fails.
    (0..entries.count).map_while(move |_| take(&mut reader).ok())
}

/// Takes values off the front of bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(WireError::Entries)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(WireError::Entries)?;
        self.0 = rest;
        Ok(*array)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    fn token(&mut self) -> Result<Token, WireError> {
        self.array().map(Token::from_bytes)
    }

    fn zeros<const N: usize>(&mut self) -> Result<(), WireError> {
        if self.array::<N>()? == [0; N] { Ok(()) } else { Err(WireError::Reserved) }
    }

    /// A number between bounds, both included.
    fn bounded(&mut self, least: u32, most: usize) -> Result<u32, WireError> {
        let value = self.u32()?;
        if value >= least && value as usize <= most { Ok(value) } else { Err(WireError::Range) }
    }

    fn slot(&mut self) -> Result<u32, WireError> {
        self.bounded(0, MAX_SLOTS - 1)
    }
}

/// Reads a packet that came with so many descriptors.
pub(crate) fn decode(packet: &[u8], descriptors: usize) -> Result<Frame<'_>, WireError> {
    let (header, body) = packet.split_first_chunk::<HEADER_LEN>().ok_or(WireError::Short)?;
    let short = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let (version, kind) = (header[4], header[5]);
    let (count, declared) = (usize::from(short(6)), usize::from(short(8)));
    if length as usize != packet.len() {
        return Err(WireError::Length);
    }
    if version != VERSION && kind != Kind::Refusal as u8 {
        return Err(WireError::Version(version));
    }
    if header[10..] != [0; 6] {
        return Err(WireError::Reserved);
    }
    let (kind, wanted) = match kind {
        1 => (Kind::Hello, 1),
        2 => (Kind::Welcome, 0),
        3 => (Kind::Grants, 0),
        4 => (Kind::Offers, count),
        5 => (Kind::Verdicts, 0),
        6 => (Kind::Drain, 0),
        7 => (Kind::Refusal, 0),
        unknown => return Err(WireError::Kind(unknown)),
    };
    if declared != wanted || descriptors != wanted || wanted > MAX_DESCRIPTORS {
        return Err(WireError::Descriptors);
    }
    let mut reader = Reader(body);
    let fixed = match kind {
        Kind::Grants => return Entries::check(count, body, Grant::take).map(Frame::Grants),
        Kind::Offers => return Entries::check(count, body, Offer::check).map(Frame::Offers),
        Kind::Verdicts => return Entries::check(count, body, Verdict::take).map(Frame::Verdicts),
        Kind::Hello => {
            let slots = reader.bounded(1, MAX_SLOTS)?;
            reader.zeros::<12>()?;
            Frame::Hello(Hello { slots })
        }
        Kind::Welcome => {
            let slots = reader.bounded(1, MAX_SLOTS)?;
            let max_bytes = reader.bounded(0, MAX_FRAME_LEN)?;
            reader.zeros::<8>()?;
            Frame::Welcome(Welcome { slots, max_bytes })
        }
        Kind::Drain => Frame::Drain,
        Kind::Refusal => Frame::Refusal(Refusal::take(&mut reader)?),
    };
    if count != 0 || !reader.0.is_empty() {
        return Err(WireError::Entries);
    }
    Ok(fixed)
}

/// The count of descriptors that a packet declares; none in what is no packet.
pub(crate) fn declared_descriptors(packet: &[u8]) -> usize {
    packet.get(8..10).map_or(0, |count| usize::from(u16::from_le_bytes([count[0], count[1]])))
}

/// The header of a frame whose entries have so many bytes.
pub(crate) fn header(
    kind: Kind,
    entries: usize,
    descriptors: usize,
    body_len: usize,
) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&((HEADER_LEN + body_len) as u32).to_le_bytes());
    header[4] = VERSION;
    header[5] = kind as u8;
    header[6..8].copy_from_slice(&(entries as u16).to_le_bytes());
    header[8..10].copy_from_slice(&(descriptors as u16).to_le_bytes());
    header
}
