//! The frames of a channel: bytes to values and back, without I/O.
//!
//! One packet is one frame. A frame begins with a header that declares its length, its kind and
//! its counts of entries and descriptors; [`decode`] accepts a packet only if everything it says
//! of itself is so, and only of a kind that the side that reads it may receive. The format is
//! described byte by byte in docs/protocol.md.

use std::io::IoSlice;

pub(crate) use crate::sys::packet::MAX_DESCRIPTORS;
use crate::token::Token;

/// The version of the protocol that this is.
pub(crate) const VERSION: u8 = 1;
/// Bytes in a header.
pub(crate) const HEADER_LEN: usize = 16;
/// The most slots in a claim table.
pub(crate) const MAX_SLOTS: usize = 4096;
/// The most bytes in a frame.
pub(crate) const MAX_FRAME_LEN: usize = 128 * 1024;
/// Bytes in the fixed part of an offer.
pub(crate) const OFFER_LEN: usize = 56;
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
}

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

/// What an offer says of the channel and the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OfferHead {
    pub slot: u32,
    pub generation: u64,
    pub token: Token,
    /// SO_COOKIE of the connection.
    pub cookie: u64,
}

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

/// A packet that is what it says it is.
#[derive(Clone, Debug)]
pub(crate) enum Frame<'a> {
    Hello(Hello),
    Welcome(Welcome),
    Grants(Entries<'a>),
    Offers(Entries<'a>),
    Verdicts(Entries<'a>),
    Drain,
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

    fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
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

/// Bytes of an entry from an offset on.
fn field<const N: usize>(entry: &[u8; OFFER_LEN], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&entry[offset..offset + N]);
    field
}

/// Reads a packet that came with so many descriptors.
pub(crate) fn decode(packet: &[u8], descriptors: usize) -> Result<Frame<'_>, WireError> {
    let mut reader = Reader(packet);
    let header = Reader(reader.bytes(HEADER_LEN).map_err(|_| WireError::Short)?);
    let Reader(body) = reader;
    reader = header;
    let length = reader.u32()?;
    let (version, kind) = (reader.u8()?, reader.u8()?);
    let (count, declared) = (usize::from(reader.u16()?), usize::from(reader.u16()?));
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    if length as usize != packet.len() {
        return Err(WireError::Length);
    }
    reader.zeros::<6>()?;
    let (kind, wanted) = match kind {
        1 => (Kind::Hello, 1),
        2 => (Kind::Welcome, 0),
        3 => (Kind::Grants, 0),
        4 => (Kind::Offers, count),
        5 => (Kind::Verdicts, 0),
        6 => (Kind::Drain, 0),
        unknown => return Err(WireError::Kind(unknown)),
    };
    if declared != wanted || descriptors != wanted || wanted > MAX_DESCRIPTORS {
        return Err(WireError::Descriptors);
    }
    reader = Reader(body);
    let fixed = match kind {
        Kind::Grants => return Entries::check(count, body, Grant::take).map(Frame::Grants),
        Kind::Offers => return Entries::check(count, body, Offer::take).map(Frame::Offers),
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
    fn take(reader: &mut Reader<'_>) -> Result<Grant, WireError> {
        let slot = reader.slot()?;
        reader.zeros::<4>()?;
        Ok(Grant { slot, token: reader.token()? })
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.slot.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(self.token.as_bytes());
    }
}

impl<'a> Offer<'a> {
    fn take(reader: &mut Reader<'a>) -> Result<Offer<'a>, WireError> {
        let fixed = reader.array::<OFFER_LEN>()?;
        let slot = u32::from_le_bytes(field(&fixed, 0));
        let generation = u64::from_le_bytes(field(&fixed, 8));
        let token = Token::from_bytes(field(&fixed, 16));
        let cookie = u64::from_le_bytes(field(&fixed, 32));
        let preread_len = u32::from_le_bytes(field(&fixed, 40)) as usize;
        let metadata_len = u32::from_le_bytes(field(&fixed, 44)) as usize;
        let (service_len, correlation_len) = (usize::from(fixed[48]), usize::from(fixed[49]));
        if field(&fixed, 4) != [0; 4] || field(&fixed, 50) != [0; 6] {
            return Err(WireError::Reserved);
        }
        let generations = 1..=crate::claim::MAX_GENERATION;
        if slot as usize >= MAX_SLOTS || !generations.contains(&generation) {
            return Err(WireError::Range);
        }
        let service = reader.bytes(service_len)?;
        let correlation = reader.bytes(correlation_len)?;
        let metadata = reader.bytes(metadata_len)?;
        let preread = reader.bytes(preread_len)?;
        let head = OfferHead { slot, generation, token, cookie };
        Ok(Offer { head, service, correlation, metadata, preread })
    }

    /// Bytes beside the fixed part; none if there are more than any frame could hold.
    pub(crate) fn variable_len(&self) -> Option<usize> {
        let parts = [self.service, self.correlation, self.metadata, self.preread];
        parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.len()))
    }
}

/// Appends the entry of an offer. Names are at most [`MAX_NAME_LEN`] long and all of it fits a frame.
pub(crate) fn write_offer(
    out: &mut Vec<u8>,
    head: &OfferHead,
    service: &[u8],
    correlation: &[u8],
    metadata: &[u8],
    preread: &[IoSlice<'_>],
) {
    let preread_len: usize = preread.iter().map(|part| part.len()).sum();
    let mut fixed = [0; OFFER_LEN];
    fixed[..4].copy_from_slice(&head.slot.to_le_bytes());
    fixed[8..16].copy_from_slice(&head.generation.to_le_bytes());
    fixed[16..32].copy_from_slice(head.token.as_bytes());
    fixed[32..40].copy_from_slice(&head.cookie.to_le_bytes());
    fixed[40..44].copy_from_slice(&(preread_len as u32).to_le_bytes());
    fixed[44..48].copy_from_slice(&(metadata.len() as u32).to_le_bytes());
    fixed[48] = service.len() as u8;
    fixed[49] = correlation.len() as u8;
    out.extend_from_slice(&fixed);
    for part in [service, correlation, metadata] {
        out.extend_from_slice(part);
    }
    for part in preread {
        out.extend_from_slice(part);
    }
}

impl Verdict {
    fn take(reader: &mut Reader<'_>) -> Result<Verdict, WireError> {
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
        out.extend_from_slice(&self.slot.to_le_bytes());
        out.extend_from_slice(&[self.reason, u8::from(self.next.is_some()), 0, 0]);
        out.extend_from_slice(&self.generation.to_le_bytes());
        let none = Token::from_bytes([0; Token::LEN]);
        out.extend_from_slice(self.next.unwrap_or(none).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn packet(kind: Kind, entries: usize, descriptors: usize, body: &[u8]) -> Vec<u8> {
        let mut packet = header(kind, entries, descriptors, body.len()).to_vec();
        packet.extend_from_slice(body);
        packet
    }

    fn token() -> impl Strategy<Value = Token> {
        any::<[u8; 16]>().prop_map(Token::from_bytes)
    }

    const SLOTS: std::ops::Range<u32> = 0..MAX_SLOTS as u32;

    type OwnedOffer = (u32, u64, Token, u64, [Vec<u8>; 4]);

    fn owned_offer() -> impl Strategy<Value = OwnedOffer> {
        let name = || vec(any::<u8>(), 0..=MAX_NAME_LEN);
        let parts = [
            name().boxed(),
            name().boxed(),
            vec(any::<u8>(), 0..600).boxed(),
            vec(any::<u8>(), 0..600).boxed(),
        ];
        (SLOTS, 1..=crate::claim::MAX_GENERATION, token(), any::<u64>(), parts)
    }

    fn borrow(offer: &OwnedOffer) -> Offer<'_> {
        let (slot, generation, token, cookie, [service, correlation, metadata, preread]) = offer;
        let (slot, generation, token, cookie) = (*slot, *generation, *token, *cookie);
        let head = OfferHead { slot, generation, token, cookie };
        Offer { head, service, correlation, metadata, preread }
    }

    /// The preread bytes go out in two parts and arrive as one.
    fn write(out: &mut Vec<u8>, offer: &Offer<'_>) {
        let Offer { head, service, correlation, metadata, preread } = offer;
        let (first, rest) = preread.split_at(preread.len() / 2);
        let preread = [IoSlice::new(first), IoSlice::new(rest)];
        write_offer(out, head, service, correlation, metadata, &preread);
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        (SLOTS, any::<u64>(), any::<u8>(), proptest::option::of(token()))
            .prop_map(|(slot, generation, reason, next)| Verdict { slot, generation, reason, next })
    }

    /// One valid packet of any kind, with its count of descriptors.
    fn any_packet() -> impl Strategy<Value = (Vec<u8>, usize)> {
        let hello = (1..=MAX_SLOTS as u32)
            .prop_map(|slots| (packet(Kind::Hello, 0, 1, &Hello { slots }.body()), 1));
        let offers = vec(owned_offer(), 1..8).prop_map(|offers| {
            let mut body = Vec::new();
            offers.iter().for_each(|offer| write(&mut body, &borrow(offer)));
            (packet(Kind::Offers, offers.len(), offers.len(), &body), offers.len())
        });
        let verdicts = vec(verdict(), 1..8).prop_map(|verdicts| {
            let mut body = Vec::new();
            verdicts.iter().for_each(|verdict| verdict.write(&mut body));
            (packet(Kind::Verdicts, verdicts.len(), 0, &body), 0)
        });
        prop_oneof![hello, offers, verdicts]
    }

    proptest! {
        #[test]
        fn offers_survive_their_bytes(offers in vec(owned_offer(), 1..8)) {
            let mut body = Vec::new();
            let mut variable = 0;
            for offer in offers.iter().map(borrow) {
                write(&mut body, &offer);
                variable += offer.variable_len().unwrap();
            }
            prop_assert_eq!(body.len(), variable + offers.len() * OFFER_LEN);
            let packet = packet(Kind::Offers, offers.len(), offers.len(), &body);
            let Ok(Frame::Offers(entries)) = decode(&packet, offers.len()) else {
                panic!("{:?}", decode(&packet, offers.len()));
            };
            prop_assert!(entries.offers().eq(offers.iter().map(borrow)));
        }

        #[test]
        fn verdicts_survive_their_bytes(verdicts in vec(verdict(), 1..100)) {
            let mut body = Vec::new();
            verdicts.iter().for_each(|verdict| verdict.write(&mut body));
            prop_assert_eq!(body.len(), verdicts.len() * VERDICT_LEN);
            let packet = packet(Kind::Verdicts, verdicts.len(), 0, &body);
            let Ok(Frame::Verdicts(entries)) = decode(&packet, 0) else {
                panic!("{:?}", decode(&packet, 0));
            };
            prop_assert!(entries.verdicts().eq(verdicts));
        }

        #[test]
        fn grants_survive_their_bytes(grants in vec((SLOTS, token()), 1..100)) {
            let grants: Vec<_> =
                grants.into_iter().map(|(slot, token)| Grant { slot, token }).collect();
            let mut body = Vec::new();
            grants.iter().for_each(|grant| grant.write(&mut body));
            prop_assert_eq!(body.len(), grants.len() * GRANT_LEN);
            let packet = packet(Kind::Grants, grants.len(), 0, &body);
            let Ok(Frame::Grants(entries)) = decode(&packet, 0) else {
                panic!("{:?}", decode(&packet, 0));
            };
            prop_assert!(entries.grants().eq(grants));
        }

        #[test]
        fn first_frames_survive_their_bytes(slots in 1..=MAX_SLOTS as u32, bytes in 0..=MAX_FRAME_LEN as u32) {
            let hello = Hello { slots };
            let packet_of_hello = packet(Kind::Hello, 0, 1, &hello.body());
            let decoded = decode(&packet_of_hello, 1);
            prop_assert!(matches!(decoded, Ok(Frame::Hello(found)) if found == hello));
            let welcome = Welcome { slots, max_bytes: bytes };
            let packet = packet(Kind::Welcome, 0, 0, &welcome.body());
            prop_assert!(matches!(decode(&packet, 0), Ok(Frame::Welcome(found)) if found == welcome));
        }

        #[test]
        fn packet_cut_or_continued_anywhere_is_refused(
            (packet, descriptors) in any_packet(),
            at in any::<proptest::sample::Index>(),
            more in vec(any::<u8>(), 1..40),
        ) {
            prop_assert!(decode(&packet[..at.index(packet.len())], descriptors).is_err());
            let longer = [packet, more].concat();
            prop_assert!(decode(&longer, descriptors).is_err());
        }

        #[test]
        fn packet_with_another_count_of_descriptors_is_refused(
            (packet, descriptors) in any_packet(),
            other in 0..300usize,
        ) {
            prop_assume!(other != descriptors);
            prop_assert_eq!(decode(&packet, other).err(), Some(WireError::Descriptors));
        }

        #[test]
        fn header_changed_in_any_byte_is_refused(
            (mut packet, descriptors) in any_packet(),
            at in 0..HEADER_LEN,
            change in 1..=255u8,
        ) {
            packet[at] ^= change;
            prop_assert!(decode(&packet, descriptors).is_err());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in vec(any::<u8>(), 0..400), descriptors in 0..4usize) {
            let _ = decode(&bytes, descriptors);
        }
    }

    #[test]
    fn drain_has_nothing_in_it() {
        assert!(matches!(decode(&packet(Kind::Drain, 0, 0, &[]), 0), Ok(Frame::Drain)));
        assert_eq!(decode(&packet(Kind::Drain, 1, 0, &[]), 0).err(), Some(WireError::Entries));
    }
}
