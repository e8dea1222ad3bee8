//! One word of the claim table, and the steps of both sides on it.
//!
//! The atomics are the parent's, so that proofs/loom can put its own in their place.

use super::{AtomicU64, Ordering};

/// The state of an offer, in the two low bits of its word; the generation is above.
pub(super) const OFFERED: u64 = 1;
pub(super) const ADOPTED: u64 = 2;
pub(super) const REVOKED: u64 = 3;
const STATE_BITS: u32 = 2;

/// The generations of a slot count from 1; 0 has never been offered.
pub(crate) const MAX_GENERATION: u64 = u64::MAX >> STATE_BITS;

/// What a backend writes to the first word before its welcome, and the broker reads before its
/// first offer: bits above a state that no offer has. A backend that does not know of this leaves 0
/// there, and a broker that does not overwrites it.
pub(crate) mod ability {
    /// The backend knows offers of connections whose TLS the kernel does.
    pub(crate) const TLS: u64 = 1;
}

/// Backend: tells what it is able to do.
pub(crate) fn tell_abilities(first: &AtomicU64, abilities: u64) {
    first.store(word(abilities, 0), Ordering::Release);
}

/// Broker: what the backend has told; nothing, if the word is something else.
pub(crate) fn abilities(first: &AtomicU64) -> u64 {
    let found = first.load(Ordering::Acquire);
    if found & ((1 << STATE_BITS) - 1) == 0 { found >> STATE_BITS } else { 0 }
}

/// Why a claim did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The other side was first.
    TooLate,
    /// An honest peer never leaves such a word.
    Impossible,
}

pub(super) fn word(generation: u64, state: u64) -> u64 {
    generation << STATE_BITS | state
}

/// Broker: puts a connection on offer, before its descriptor is sent.
pub(crate) fn offer(slot: &AtomicU64, generation: u64) {
    slot.store(word(generation, OFFERED), Ordering::Release);
}

/// Backend: takes the connection. After `Ok` this process owns it, and the broker never will.
pub(crate) fn adopt(slot: &AtomicU64, generation: u64) -> Result<(), Lost> {
    claim(slot, generation, ADOPTED, REVOKED)
}

/// Broker: takes the connection back. After `Ok` this process owns it, and the backend never will.
pub(crate) fn revoke(slot: &AtomicU64, generation: u64) -> Result<(), Lost> {
    claim(slot, generation, REVOKED, ADOPTED)
}

fn claim(slot: &AtomicU64, generation: u64, to: u64, theirs: u64) -> Result<(), Lost> {
    let (from, to) = (word(generation, OFFERED), word(generation, to));
    // Only in a build that shows that c-tests/one_owner.c finds what the claim prevents.
    if cfg!(handoff_without_claim) {
        slot.store(to, Ordering::Release);
        return Ok(());
    }
    match slot.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(()),
        Err(found) if found == word(generation, theirs) => Err(Lost::TooLate),
        Err(_) => Err(Lost::Impossible),
    }
}

/// Broker: whether the backend has adopted this generation.
pub(crate) fn is_adopted(slot: &AtomicU64, generation: u64) -> bool {
    slot.load(Ordering::Acquire) == word(generation, ADOPTED)
}

/// Backend: whether the broker has taken this generation back.
pub(crate) fn is_revoked(slot: &AtomicU64, generation: u64) -> bool {
    slot.load(Ordering::Acquire) == word(generation, REVOKED)
}

/// Backend: whether the broker still has this generation on offer.
pub(crate) fn is_offered(slot: &AtomicU64, generation: u64) -> bool {
    slot.load(Ordering::Acquire) == word(generation, OFFERED)
}
