//! The claim table: which of two processes owns a connection that is on offer.
//!
//! One atomic word for each offer in flight, in memory that broker and backend share: a sealed
//! memfd that the broker makes. The backend adopts by compare-and-swap from OFFERED to ADOPTED, the
//! broker takes back by compare-and-swap from OFFERED to REVOKED; one of them wins, with no message,
//! even when the other is stopped or dead. Neither side trusts the memory: an impossible word is an
//! error of its own, and the caller decides what follows from it.

mod word;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::shared::{self, SharedWords, Step};

pub(crate) use word::{
    Lost, MAX_GENERATION, abilities, ability, adopt, is_adopted, is_offered, is_revoked, offer,
    revoke, tell_abilities,
};

/// The words of one channel.
#[derive(Debug)]
pub(crate) struct ClaimTable {
    words: SharedWords,
}

impl ClaimTable {
    /// Broker: makes a table of `slots` words and the descriptor to pass to the backend. Its memory
    /// is allocated here, and its size is sealed. An error comes with the step that failed.
    pub(crate) fn create(slots: usize) -> Result<(ClaimTable, OwnedFd), (Step, io::Error)> {
        let (words, file) = shared::create_shared_words(slots)?;
        Ok((ClaimTable { words }, file))
    }

    /// Backend: maps the table that a broker passed. It is refused with EINVAL unless its size is
    /// sealed and is that of `slots` words, so that there are words to touch, and touching one does
    /// not wait. A broker that punches holes into it makes impossible words, which are refused; if
    /// the host has no memory left for their pages, touching them raises SIGBUS (docs/security.md).
    pub(crate) fn open(file: BorrowedFd<'_>, slots: usize) -> io::Result<ClaimTable> {
        Ok(ClaimTable { words: shared::map_shared_words(file, slots)? })
    }

    /// The word of a slot. Slots were checked against the table's size before.
    pub(crate) fn slot(&self, slot: usize) -> &AtomicU64 {
        &self.words.as_slice()[slot]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use word::{ADOPTED, OFFERED, REVOKED, word};

    #[test]
    fn one_side_wins_and_the_other_is_told() {
        let slot = AtomicU64::new(0);
        offer(&slot, 7);
        assert_eq!(adopt(&slot, 7), Ok(()));
        assert!(is_adopted(&slot, 7));
        assert_eq!(revoke(&slot, 7), Err(Lost::TooLate));
        offer(&slot, 8);
        assert_eq!(revoke(&slot, 8), Ok(()));
        assert_eq!(adopt(&slot, 8), Err(Lost::TooLate));
        assert!(!is_adopted(&slot, 8));
    }

    #[test]
    fn words_that_no_honest_peer_leaves_are_impossible() {
        for found in [0, word(7, 0), word(6, OFFERED), word(8, OFFERED), word(6, ADOPTED), u64::MAX]
        {
            let slot = AtomicU64::new(found);
            assert_eq!(adopt(&slot, 7), Err(Lost::Impossible));
            assert_eq!(revoke(&slot, 7), Err(Lost::Impossible));
        }
        // Adopting twice is a fault of the backend's own, and revoking twice of the broker's.
        let slot = AtomicU64::new(word(7, ADOPTED));
        assert_eq!(adopt(&slot, 7), Err(Lost::Impossible));
        let slot = AtomicU64::new(word(7, REVOKED));
        assert_eq!(revoke(&slot, 7), Err(Lost::Impossible));
    }

    #[test]
    fn abilities_are_told_before_the_first_offer_and_never_an_offer() {
        let slot = AtomicU64::new(0);
        assert_eq!(abilities(&slot), 0);
        tell_abilities(&slot, ability::TLS);
        assert_eq!(abilities(&slot), ability::TLS);
        assert_eq!(adopt(&slot, ability::TLS), Err(Lost::Impossible));
        for state in [OFFERED, ADOPTED, REVOKED] {
            assert_eq!(abilities(&AtomicU64::new(word(ability::TLS, state))), 0);
        }
        offer(&slot, 1);
        assert_eq!(adopt(&slot, 1), Ok(()));
    }

    #[test]
    fn both_sides_of_a_table_see_the_same_words() {
        let (broker, file) = ClaimTable::create(100).unwrap();
        let backend = ClaimTable::open(file.as_fd(), 100).unwrap();
        offer(broker.slot(99), 1);
        assert_eq!(adopt(backend.slot(99), 1), Ok(()));
        assert_eq!(revoke(broker.slot(99), 1), Err(Lost::TooLate));
    }

    #[test]
    fn table_that_has_another_size_or_is_not_sealed_is_refused() {
        let (_table, file) = ClaimTable::create(100).unwrap();
        assert!(ClaimTable::open(file.as_fd(), 100_000).is_err());
        let (_table, file) = ClaimTable::create(100_000).unwrap();
        assert!(ClaimTable::open(file.as_fd(), 100).is_err());
        let unsealed = tempfile::tempfile().unwrap();
        unsealed.set_len(4096).unwrap();
        assert!(ClaimTable::open(unsealed.as_fd(), 100).is_err());
    }
}
