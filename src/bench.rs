//! What bench/micro needs of the inside: not part of the library.

use std::hint::black_box;
use std::io::IoSlice;
use std::sync::atomic::AtomicU64;

use crate::claim;
use crate::token::Token;
use crate::wire::{self, Frame, Kind, OfferHead, Verdict};

const TOKEN: Token = Token::from_bytes([7; Token::LEN]);

/// Writes a packet of offers without names or metadata.
pub fn encode_offers(count: u32, preread: &[u8], packet: &mut Vec<u8>) {
    // Not known when this is compiled, as in a broker.
    let (parts, preread) = black_box(([&[][..]; 3], [IoSlice::new(preread)]));
    encode(Kind::Offers, count, count, packet, |slot, packet| {
        let head = OfferHead { slot, generation: 1, token: TOKEN, cookie: 1, tls: false };
        wire::write_offer(packet, &head, &parts, &preread);
    });
}

/// Writes a packet of verdicts, each with the slot's next token.
pub fn encode_verdicts(count: u32, packet: &mut Vec<u8>) {
    encode(Kind::Verdicts, count, 0, packet, |slot, packet| {
        Verdict { slot, generation: 1, reason: 0, next: Some(TOKEN) }.write(packet);
    });
}

fn encode(
    kind: Kind,
    count: u32,
    descriptors: u32,
    packet: &mut Vec<u8>,
    entry: impl Fn(u32, &mut Vec<u8>),
) {
    packet.clear();
    packet.resize(wire::HEADER_LEN, 0);
    for slot in 0..count {
        entry(slot, packet);
    }
    let body_len = packet.len() - wire::HEADER_LEN;
    let header = wire::header(kind, count as usize, descriptors as usize, body_len);
    packet[..wire::HEADER_LEN].copy_from_slice(&header);
}

/// Reads a packet of offers or verdicts and adds up the generations in it.
pub fn decode(packet: &[u8], descriptors: u32) -> Option<u64> {
    match wire::decode(packet, descriptors as usize).ok()? {
        Frame::Offers(offers) => Some(offers.offers().map(|offer| offer.head.generation).sum()),
        Frame::Verdicts(verdicts) => Some(verdicts.verdicts().map(|v| v.generation).sum()),
        _ => None,
    }
}

/// One word of a claim table.
#[derive(Debug, Default)]
pub struct Claim(AtomicU64);

impl Claim {
    /// The broker's first step.
    pub fn offer(&self, generation: u64) {
        claim::offer(&self.0, generation);
    }

    /// The backend's step; whether it succeeded.
    pub fn adopt(&self, generation: u64) -> bool {
        claim::is_offered(&self.0, generation) && claim::adopt(&self.0, generation).is_ok()
    }

    /// The broker's other step; whether it succeeded.
    pub fn revoke(&self, generation: u64) -> bool {
        claim::revoke(&self.0, generation).is_ok()
    }
}
