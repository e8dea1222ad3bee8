//! The acknowledgements that a broker waits for, and their deadlines.

use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::deadlines::Deadlines;
use crate::kind::ErrorKind;
use crate::memory::{self, Map, NoMemory};
use crate::raw::store::TokenStore;
use crate::token::Token;

/// Why an entry was not registered, or not taken.
#[derive(Debug, thiserror::Error)]
pub enum PendingError {
    /// No entry waits for this token: never registered, or it has left.
    #[error("no acknowledgement is pending for the token")]
    NotPending,
    /// An entry waits for this token already.
    #[error("an acknowledgement is already pending for the token")]
    AlreadyPending,
    /// The registry is full.
    #[error("the registry is full: {capacity} acknowledgements are pending")]
    Full {
        /// How many it may hold.
        capacity: usize,
    },
}

impl PendingError {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            PendingError::NotPending => ErrorKind::TokenNotPending,
            PendingError::AlreadyPending => ErrorKind::TokenAlreadyPending,
            PendingError::Full { .. } => ErrorKind::Full,
        }
    }
}

/// The limits of a [`PendingAcks`]. Out-of-range values are clamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingAcksOptions {
    /// Entries at once: 1 to [`TokenStore::MAX_CAPACITY`], 1024 by default.
    pub capacity: usize,
    /// How long an acknowledgement may take: a millisecond to [`TokenStore::MAX_LIFETIME`], 5
    /// seconds by default.
    pub timeout: Duration,
}

impl Default for PendingAcksOptions {
    fn default() -> PendingAcksOptions {
        PendingAcksOptions { capacity: 1024, timeout: Duration::from_secs(5) }
    }
}

/// The acknowledgements that a broker waits for.
///
/// An entry is registered when its message is sent and leaves exactly once: acknowledged in time,
/// abandoned or expired. Whoever makes it leave gets its `user_data`, and the token's life in the
/// store ends with it. Any number of threads may share a registry.
#[derive(Debug)]
pub struct PendingAcks {
    options: PendingAcksOptions,
    store: Arc<TokenStore>,
    entries: Mutex<Entries>,
}

#[derive(Debug)]
struct Entries {
    /// Where the entry of each token is.
    places: Map<Token, u32>,
    pending: Places,
}

/// Entries in places, which are used again.
#[derive(Debug)]
struct Places {
    entries: Vec<Pending>,
    free: Vec<u32>,
    deadlines: Deadlines,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    token: Token,
    deadline: Instant,
    user_data: usize,
}

impl Places {
    fn add(&mut self, entry: Pending) -> u32 {
        let place = self.free.pop().unwrap_or(self.entries.len() as u32);
        match self.entries.get_mut(place as usize) {
            Some(free) => *free = entry,
            None => self.entries.push(entry),
        }
        self.deadlines.set(place, entry.deadline);
        place
    }

    fn remove(&mut self, place: u32) -> Pending {
        self.deadlines.clear(place);
        self.free.push(place);
        self.entries[place as usize]
    }
}

impl PendingAcks {
    /// Makes an empty registry for tokens of `store`. All memory that the registry needs is
    /// allocated here.
    pub fn new(
        store: Arc<TokenStore>,
        options: PendingAcksOptions,
    ) -> Result<PendingAcks, NoMemory> {
        let options = PendingAcksOptions {
            capacity: options.capacity.clamp(1, TokenStore::MAX_CAPACITY),
            timeout: options.timeout.clamp(Duration::from_millis(1), TokenStore::MAX_LIFETIME),
        };
        let capacity = options.capacity;
        let what = "pending acknowledgements";
        let entries = Mutex::new(Entries {
            // Twice the room: a half-empty table clears removed entries in place instead of
            // growing.
            places: memory::map((capacity + 1) * 2, what)?,
            pending: Places {
                entries: memory::vec(capacity, what)?,
                free: memory::vec(capacity, what)?,
                deadlines: Deadlines::new(capacity)?,
            },
        });
        Ok(PendingAcks { options, store, entries })
    }

    /// Begins to wait for the acknowledgement of `token`.
    pub fn register(&self, token: &Token, user_data: usize) -> Result<(), PendingError> {
        self.register_at(token, user_data, Instant::now())
    }

    /// [`register`](PendingAcks::register) at a given time.
    pub fn register_at(
        &self,
        token: &Token,
        user_data: usize,
        now: Instant,
    ) -> Result<(), PendingError> {
        let PendingAcksOptions { capacity, timeout } = self.options;
        let Entries { places, pending } = &mut *self.lock();
        let full = places.len() >= capacity;
        match places.entry(*token) {
            Entry::Occupied(_) => Err(PendingError::AlreadyPending),
            Entry::Vacant(_) if full => Err(PendingError::Full { capacity }),
            Entry::Vacant(place) => {
                // Only a `now` at the very end of the clock's range gets no time.
                let deadline = now.checked_add(timeout).unwrap_or(now);
                place.insert(pending.add(Pending { token: *token, deadline, user_data }));
                Ok(())
            }
        }
    }

    /// Takes the entry of an acknowledgement that has arrived and gives its `user_data`. Also past
    /// its deadline: the backend has decided, and serves what it has accepted.
    pub fn acknowledge(&self, token: &Token) -> Result<usize, PendingError> {
        self.leave(token)
    }

    /// Takes the entry of a message that the broker has given up and gives its `user_data`.
    pub fn abandon(&self, token: &Token) -> Result<usize, PendingError> {
        self.leave(token)
    }

    /// Takes an entry, however its message ended.
    pub(crate) fn leave(&self, token: &Token) -> Result<usize, PendingError> {
        let Entries { places, pending } = &mut *self.lock();
        let Entry::Occupied(place) = places.entry(*token) else {
            return Err(PendingError::NotPending);
        };
        let user_data = pending.remove(place.remove()).user_data;
        self.end(token);
        Ok(user_data)
    }

    /// Takes one entry that is past its deadline and returns its token and `user_data`. Call it
    /// until there is none, and [take back](crate::raw::ack::take_back) each message before you
    /// fall back.
    pub fn expire(&self) -> Option<(Token, usize)> {
        self.expire_at(Instant::now())
    }

    /// [`expire`](PendingAcks::expire) at a given time.
    pub fn expire_at(&self, now: Instant) -> Option<(Token, usize)> {
        let Entries { places, pending } = &mut *self.lock();
        let (place, _) = pending.deadlines.earliest().filter(|(_, deadline)| *deadline <= now)?;
        let Pending { token, user_data, .. } = pending.remove(place);
        places.remove(&token);
        self.end(&token);
        Some((token, user_data))
    }

    /// When the next entry expires, if there is one.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.lock().pending.deadlines.earliest().map(|(_, deadline)| deadline)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.lock().places.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends the token's life in the store, unless its consumption has.
    fn end(&self, token: &Token) {
        let _ = self.store.revoke(token);
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // No change panics halfway, so a panic elsewhere leaves nothing half done.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(byte: u8) -> Token {
        Token::from_bytes([byte; Token::LEN])
    }

    fn registry() -> (Arc<TokenStore>, PendingAcks) {
        let store = Arc::new(TokenStore::new(Default::default()).unwrap());
        let options = PendingAcksOptions { capacity: 2, timeout: Duration::from_secs(5) };
        (store.clone(), PendingAcks::new(store, options).unwrap())
    }

    #[test]
    fn entry_leaves_once_and_its_token_leaves_the_store_with_it() {
        let (store, pending) = registry();
        let now = Instant::now();
        let later = now + Duration::from_secs(5);
        type Leave<'a> = &'a dyn Fn(&Token) -> Option<usize>;
        let leave: [Leave<'_>; 3] = [
            &|token| pending.acknowledge(token).ok(),
            &|token| pending.abandon(token).ok(),
            &|_| pending.expire_at(later).map(|(_, user_data)| user_data),
        ];
        for (user_data, first) in leave.iter().enumerate() {
            let token = store.issue_at(now).unwrap();
            pending.register_at(&token, user_data, now).unwrap();
            assert_eq!(first(&token), Some(user_data));
            for again in leave {
                assert_eq!(again(&token), None);
            }
            assert!(store.is_empty() && pending.is_empty());
        }
    }

    #[test]
    fn late_acknowledgement_counts_until_its_entry_has_expired() {
        let (store, pending) = registry();
        let now = Instant::now();
        let token = store.issue_at(now).unwrap();
        for late in [true, false] {
            pending.register_at(&token, 7, now).unwrap();
            let deadline = pending.next_deadline().unwrap();
            assert!(pending.expire_at(deadline - Duration::from_nanos(1)).is_none());
            if late {
                assert_eq!(pending.acknowledge(&token).ok(), Some(7));
                assert!(pending.expire_at(deadline).is_none());
            } else {
                assert_eq!(pending.expire_at(deadline), Some((token, 7)));
                assert!(matches!(pending.acknowledge(&token), Err(PendingError::NotPending)));
            }
        }
    }

    #[test]
    fn entries_expire_in_the_order_of_their_deadlines_however_they_came() {
        let store = Arc::new(TokenStore::new(Default::default()).unwrap());
        let timeout = Duration::from_secs(5);
        let options = PendingAcksOptions { capacity: 100, timeout };
        let pending = PendingAcks::new(store, options).unwrap();
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        // Twice, so that places are used again.
        for _ in 0..2 {
            for second in (0..100).map(|number| number * 7 % 100) {
                pending.register_at(&token(second as u8), second as usize, at(second)).unwrap();
            }
            for second in 0..50 {
                assert_eq!(pending.next_deadline(), Some(at(second) + timeout));
                assert!(pending.expire_at(at(second)).is_none());
                let expired = pending.expire_at(at(second) + timeout);
                assert_eq!(expired, Some((token(second as u8), second as usize)));
            }
            for second in 50..100 {
                assert_eq!(pending.abandon(&token(second as u8)).ok(), Some(second as usize));
            }
            assert!(pending.is_empty() && pending.next_deadline().is_none());
        }
    }

    #[test]
    fn registry_refuses_duplicates_and_more_than_its_capacity() {
        let (_, pending) = registry();
        pending.register(&token(1), 1).unwrap();
        assert!(matches!(pending.register(&token(1), 2), Err(PendingError::AlreadyPending)));
        pending.register(&token(2), 2).unwrap();
        assert!(matches!(pending.register(&token(3), 3), Err(PendingError::Full { capacity: 2 })));
        assert_eq!(pending.len(), 2);
    }
}
