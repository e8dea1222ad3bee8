//! Frames survive their bytes, and nothing else is taken.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::io::IoSlice;

fn packet(kind: Kind, entries: usize, descriptors: usize, body: &[u8]) -> Vec<u8> {
    let mut packet = header(kind, entries, descriptors, body.len()).to_vec();
    packet.extend_from_slice(body);
    packet
}

fn token() -> impl Strategy<Value = Token> {
    any::<[u8; 16]>().prop_map(Token::from_bytes)
}

const SLOTS: std::ops::Range<u32> = 0..MAX_SLOTS as u32;

type OwnedOffer = (u32, u64, Token, u64, bool, [Vec<u8>; 4]);

fn owned_offer() -> impl Strategy<Value = OwnedOffer> {
    let name = || vec(1..=u8::MAX, 0..=MAX_NAME_LEN);
    let parts = [
        name().boxed(),
        name().boxed(),
        vec(any::<u8>(), 0..600).boxed(),
        vec(any::<u8>(), 0..600).boxed(),
    ];
    (SLOTS, 1..=crate::claim::MAX_GENERATION, token(), any::<u64>(), any::<bool>(), parts)
}

fn borrow(offer: &OwnedOffer) -> Offer<'_> {
    let (slot, generation, token, cookie, tls, [service, correlation, metadata, preread]) = offer;
    let (slot, generation, token, cookie, tls) = (*slot, *generation, *token, *cookie, *tls);
    let head = OfferHead { slot, generation, token, cookie, tls };
    Offer { head, service, correlation, metadata, preread }
}

/// The preread bytes go out in two parts and arrive as one.
fn write(out: &mut Vec<u8>, offer: &Offer<'_>) {
    let Offer { head, service, correlation, metadata, preread } = offer;
    let (first, rest) = preread.split_at(preread.len() / 2);
    let preread = [IoSlice::new(first), IoSlice::new(rest)];
    write_offer(out, head, &[service, correlation, metadata], &preread);
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

fn refusal() -> impl Strategy<Value = Refusal> {
    let number = any::<u32>;
    prop_oneof![
        (number(), any::<[bool; 2]>(), number()).prop_map(|(user, [nameless, listed], own)| {
            Refusal::not_allowed(user, nameless, listed, own)
        }),
        any::<u16>().prop_map(|most| Refusal::channels(most.into())),
        (number(), any::<u16>())
            .prop_map(|(user, most)| Refusal::channels_of_user(user, most.into())),
        any::<u8>().prop_map(Refusal::speaks),
        Just(Refusal::DRAINING),
        any::<i32>().prop_map(Refusal::short),
    ]
}

proptest! {
    #[test]
    fn refusals_survive_their_bytes_in_every_version(refusal in refusal(), version in any::<u8>()) {
        let mut packet = packet(Kind::Refusal, 0, 0, &refusal.body());
        prop_assert_eq!(&packet[..HEADER_LEN], Refusal::header());
        packet[4] = version;
        let Ok(Frame::Refusal(found)) = decode(&packet, 0) else {
            panic!("{:?}", decode(&packet, 0));
        };
        prop_assert_eq!(found, refusal);
        prop_assert_eq!(decode(&packet, 1).err(), Some(WireError::Descriptors));
    }

    #[test]
    fn refusal_of_any_bytes_has_a_sentence(body in any::<[u8; 16]>()) {
        let packet = packet(Kind::Refusal, 0, 0, &body);
        let Ok(Frame::Refusal(found)) = decode(&packet, 0) else {
            panic!("{:?}", decode(&packet, 0));
        };
        prop_assert_eq!(found.body(), body);
        prop_assert!(found.to_string().len() < 200);
    }

    #[test]
    fn frame_of_another_version_says_which(
        (mut packet, descriptors) in any_packet(),
        version in any::<u8>(),
    ) {
        prop_assume!(version != VERSION);
        packet[4] = version;
        prop_assert_eq!(decode(&packet, descriptors).err(), Some(WireError::Version(version)));
    }

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
        grants.iter().for_each(|grant| body.extend(grant.bytes()));
        prop_assert_eq!(body.len(), grants.len() * GRANT_LEN);
        let packet = packet(Kind::Grants, grants.len(), 0, &body);
        let Ok(Frame::Grants(entries)) = decode(&packet, 0) else {
            panic!("{:?}", decode(&packet, 0));
        };
        prop_assert!(entries.grants().eq(grants));
    }

    #[test]
    fn first_frames_survive_their_bytes(
        slots in 1..=MAX_SLOTS as u32,
        bytes in 0..=MAX_FRAME_LEN as u32,
    ) {
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
fn name_with_a_nul_anywhere_is_refused() {
    let head = OfferHead {
        slot: 0,
        generation: 1,
        token: Token::from_bytes([7; 16]),
        cookie: 1,
        tls: false,
    };
    let decoded = |service: &[u8], correlation: &[u8]| {
        let mut body = Vec::new();
        write_offer(&mut body, &head, &[service, correlation, b"\0"], &[IoSlice::new(b"\0")]);
        decode(&packet(Kind::Offers, 1, 1, &body), 1).map(drop)
    };
    // Other bytes may be anything.
    assert_eq!(decoded(b"web", b"1"), Ok(()));
    for name in [&b"\0"[..], b"\0web", b"we\0b", b"web\0"] {
        assert_eq!(decoded(name, b"1"), Err(WireError::Name));
        assert_eq!(decoded(b"web", name), Err(WireError::Name));
    }
}

#[test]
fn flags_of_an_offer_are_tls_or_nothing() {
    let mut head = OfferHead {
        slot: 0,
        generation: 1,
        token: Token::from_bytes([7; 16]),
        cookie: 1,
        tls: false,
    };
    for (tls, flags) in [(false, 0), (true, 1)] {
        head.tls = tls;
        let mut body = Vec::new();
        write_offer(&mut body, &head, &[b"", b"", b""], &[]);
        assert_eq!(body[50..OFFER_LEN], [flags, 0, 0, 0, 0, 0]);
        let packet = packet(Kind::Offers, 1, 1, &body);
        let Ok(Frame::Offers(offers)) = decode(&packet, 1) else { panic!("offers") };
        assert_eq!(offers.offers().next().map(|offer| offer.head), Some(head));
        for at in 50..OFFER_LEN {
            for bit in (0..8).filter(|bit| (at, *bit) != (50, 0)) {
                let mut packet = packet.clone();
                packet[HEADER_LEN + at] |= 1 << bit;
                assert_eq!(decode(&packet, 1).err(), Some(WireError::Reserved), "{at} {bit}");
            }
        }
    }
}

#[test]
fn drain_has_nothing_in_it() {
    assert!(matches!(decode(&packet(Kind::Drain, 0, 0, &[]), 0), Ok(Frame::Drain)));
    assert_eq!(decode(&packet(Kind::Drain, 1, 0, &[]), 0).err(), Some(WireError::Entries));
}

#[test]
fn refusal_has_its_length_and_no_entries() {
    let body = Refusal::DRAINING.body();
    for entries in 1..3 {
        let packet = packet(Kind::Refusal, entries, 0, &body);
        assert_eq!(decode(&packet, 0).err(), Some(WireError::Entries));
    }
    let longer = [&body[..], &[0]].concat();
    for body in [&body[..15], &longer] {
        let packet = packet(Kind::Refusal, 0, 0, body);
        assert_eq!(decode(&packet, 0).err(), Some(WireError::Entries));
    }
}
