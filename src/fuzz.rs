//! What fuzzing needs of the inside, see fuzz/: not part of the library.

use std::io::IoSlice;

use crate::wire::{self, Frame, Kind, Offer};

/// Encodes the values of a packet that is accepted.
pub fn reencode(packet: &[u8], descriptors: usize) -> Option<Vec<u8>> {
    let (mut body, mut count) = (Vec::new(), 0);
    let kind = match wire::decode(packet, descriptors).ok()? {
        Frame::Hello(hello) => {
            body.extend(hello.body());
            Kind::Hello
        }
        Frame::Welcome(welcome) => {
            body.extend(welcome.body());
            Kind::Welcome
        }
        Frame::Grants(grants) => {
            count = grants.grants().map(|grant| body.extend(grant.bytes())).count();
            Kind::Grants
        }
        Frame::Offers(offers) => {
            for offer in offers.offers() {
                let Offer { head, service, correlation, metadata, preread } = offer;
                let preread = [IoSlice::new(preread)];
                wire::write_offer(&mut body, &head, &[service, correlation, metadata], &preread);
                count += 1;
            }
            Kind::Offers
        }
        Frame::Verdicts(verdicts) => {
            count = verdicts.verdicts().map(|verdict| verdict.write(&mut body)).count();
            Kind::Verdicts
        }
        Frame::Drain => Kind::Drain,
        Frame::Refusal(refusal) => {
            body.extend(refusal.body());
            Kind::Refusal
        }
    };
    let mut again = wire::header(kind, count, descriptors, body.len()).to_vec();
    if kind == Kind::Refusal {
        // It is accepted in every version.
        again[4] = packet[4];
    }
    again.extend(body);
    Some(again)
}
