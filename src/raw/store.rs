//! The token store, which accepts each of its tokens once.
//!
//! A store holds the tokens that may still be presented: it is bounded, every token in it expires,
//! and any number of threads may share it. How a token travels, and who may know it, is for the
//! callers.

use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::memory::{self, Map, NoMemory};
use crate::token::{RandomTokens, Token, TokenError};

/// The limits of a [`TokenStore`]. Out-of-range values are clamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenStoreOptions {
    /// Tokens pending at once: 1 to [`TokenStore::MAX_CAPACITY`], 1024 by default.
    pub capacity: usize,
    /// How long a token may be presented: a millisecond to [`TokenStore::MAX_LIFETIME`], 30
    /// seconds by default.
    pub lifetime: Duration,
    /// Tokens generated before `issue` gives up on finding one that is not pending: at least 1,
    /// 16 by default.
    pub collision_attempts: u32,
}

impl Default for TokenStoreOptions {
    fn default() -> TokenStoreOptions {
        TokenStoreOptions {
            capacity: 1024,
            lifetime: Duration::from_secs(30),
            collision_attempts: 16,
        }
    }
}

/// The tokens that may still be presented, each of them once.
///
/// Tokens are found by SipHash under a key of the store's own, and candidates are compared in
/// constant time, so how long a lookup takes tells nothing about the tokens in the store.
#[derive(Debug)]
pub struct TokenStore {
    options: TokenStoreOptions,
    pending: Mutex<Tokens>,
    random: Mutex<RandomTokens>,
}

#[derive(Debug)]
struct Tokens {
    /// When each pending token expires.
    expires: Map<Token, Instant>,
    /// When a full store looks for expired tokens again.
    look_again: Option<Instant>,
}

/// Looking for expired tokens takes some nanoseconds for each token. A full store lets a
/// millisecond go by for each of so many before it looks again, so that refusing tokens costs
/// little.
const TOKENS_PER_MILLISECOND: usize = 1024;

impl TokenStore {
    /// The most tokens that a store can be made for.
    pub const MAX_CAPACITY: usize = 1 << 20;

    /// The longest that a token can live: over a hundred years.
    pub const MAX_LIFETIME: Duration = Duration::from_secs(u32::MAX as u64);

    /// Makes an empty store. All memory that the store needs is allocated here.
    pub fn new(options: TokenStoreOptions) -> Result<TokenStore, NoMemory> {
        let options = TokenStoreOptions {
            capacity: options.capacity.clamp(1, TokenStore::MAX_CAPACITY),
            lifetime: options.lifetime.clamp(Duration::from_millis(1), TokenStore::MAX_LIFETIME),
            collision_attempts: options.collision_attempts.max(1),
        };
        // Twice the room: a half-empty table clears removed entries in place instead of growing.
        let expires = memory::map((options.capacity + 1) * 2, "a token store")?;
        let pending = Tokens { expires, look_again: None };
        let random = Mutex::new(RandomTokens::new());
        Ok(TokenStore { options, pending: Mutex::new(pending), random })
    }

    /// Makes a token and holds it until it is consumed, revoked or expired.
    pub fn issue(&self) -> Result<Token, TokenError> {
        self.issue_at(Instant::now())
    }

    /// [`issue`](TokenStore::issue) at a given time.
    pub fn issue_at(&self, now: Instant) -> Result<Token, TokenError> {
        // Half-used tokens are no worse than others, so a panic elsewhere does no harm.
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        self.issue_from(now, || random.generate())
    }

    fn issue_from(
        &self,
        now: Instant,
        mut generate: impl FnMut() -> Result<Token, TokenError>,
    ) -> Result<Token, TokenError> {
        for _ in 0..self.options.collision_attempts {
            let token = generate()?;
            match self.insert_at(&token, now) {
                Err(TokenError::AlreadyPending) => {}
                result => return result.map(|()| token),
            }
        }
        Err(TokenError::Collision { attempts: self.options.collision_attempts })
    }

    /// Holds a token that was learned elsewhere.
    pub fn insert(&self, token: &Token) -> Result<(), TokenError> {
        self.insert_at(token, Instant::now())
    }

    /// [`insert`](TokenStore::insert) at a given time.
    pub fn insert_at(&self, token: &Token, now: Instant) -> Result<(), TokenError> {
        let TokenStoreOptions { capacity, lifetime, .. } = self.options;
        let mut pending = self.lock();
        let Tokens { expires: pending, look_again } = &mut *pending;
        if pending.len() >= capacity && look_again.is_none_or(|again| again <= now) {
            let pause = Duration::from_millis((pending.len() / TOKENS_PER_MILLISECOND) as u64);
            prune(pending, now);
            let next = pending.values().min().copied().unwrap_or(now);
            *look_again = now.checked_add(pause).map(|paused| paused.max(next));
        }
        let full = pending.len() >= capacity;
        // Only a `now` at the very end of the clock's range gets no lifetime.
        let expires = now.checked_add(lifetime).unwrap_or(now);
        match pending.entry(*token) {
            Entry::Occupied(mut entry) if *entry.get() <= now => {
                entry.insert(expires);
                Ok(())
            }
            Entry::Occupied(_) => Err(TokenError::AlreadyPending),
            Entry::Vacant(_) if full => Err(TokenError::Full { capacity }),
            Entry::Vacant(entry) => {
                entry.insert(expires);
                Ok(())
            }
        }
    }

    /// Accepts `presented` if it is `expected` and pending; then it has left the store. On a
    /// mismatch neither is consumed.
    pub fn consume(&self, expected: &Token, presented: &Token) -> Result<(), TokenError> {
        self.consume_at(expected, presented, Instant::now())
    }

    /// [`consume`](TokenStore::consume) at a given time.
    pub fn consume_at(
        &self,
        expected: &Token,
        presented: &Token,
        now: Instant,
    ) -> Result<(), TokenError> {
        if expected == presented {
            self.redeem_at(presented, now)
        } else {
            Err(TokenError::Mismatch)
        }
    }

    /// Accepts `presented` if it is pending, whichever it is; then it has left the store.
    pub fn redeem(&self, presented: &Token) -> Result<(), TokenError> {
        self.redeem_at(presented, Instant::now())
    }

    /// [`redeem`](TokenStore::redeem) at a given time.
    pub fn redeem_at(&self, presented: &Token, now: Instant) -> Result<(), TokenError> {
        match self.lock().expires.remove(presented) {
            None => Err(TokenError::NotPending),
            Some(expires) if expires <= now => Err(TokenError::Expired),
            Some(_) => Ok(()),
        }
    }

    /// Ends a token's life unused.
    pub fn revoke(&self, token: &Token) -> Result<(), TokenError> {
        self.lock().expires.remove(token).map(drop).ok_or(TokenError::NotPending)
    }

    /// Removes every expired token and says how many there were. A full store does this by itself,
    /// but not more often than once in a millisecond for each 1024 of its tokens.
    pub fn prune(&self) -> usize {
        self.prune_at(Instant::now())
    }

    /// [`prune`](TokenStore::prune) at a given time.
    pub fn prune_at(&self, now: Instant) -> usize {
        prune(&mut self.lock().expires, now)
    }

    /// How many tokens the store holds, expired ones that were not pruned included.
    pub fn len(&self) -> usize {
        self.lock().expires.len()
    }

    /// Whether the store holds no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Tokens> {
        // Each change is one call on the map, so a panic elsewhere leaves nothing half done.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn prune(pending: &mut Map<Token, Instant>, now: Instant) -> usize {
    let before = pending.len();
    pending.retain(|_, expires| *expires > now);
    before - pending.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIFETIME: Duration = Duration::from_secs(30);

    fn store(capacity: usize) -> TokenStore {
        TokenStore::new(TokenStoreOptions { capacity, lifetime: LIFETIME, collision_attempts: 3 })
            .unwrap()
    }

    fn token(byte: u8) -> Token {
        Token::from_bytes([byte; Token::LEN])
    }

    #[test]
    fn zero_options_are_clamped_to_the_smallest_useful_value() {
        let options =
            TokenStoreOptions { capacity: 0, lifetime: Duration::ZERO, collision_attempts: 0 };
        let store = TokenStore::new(options).unwrap();
        let now = Instant::now();
        let token = store.issue_at(now).unwrap();
        assert!(matches!(store.issue_at(now), Err(TokenError::Full { capacity: 1 })));
        assert!(store.redeem_at(&token, now + Duration::from_micros(999)).is_ok());
    }

    #[test]
    fn issue_gives_up_after_as_many_collisions_as_it_may_try() {
        let store = store(8);
        let now = Instant::now();
        store.insert_at(&token(1), now).unwrap();
        let mut generated = 0;
        let result = store.issue_from(now, || {
            generated += 1;
            Ok(token(1))
        });
        assert!(matches!(result, Err(TokenError::Collision { attempts: 3 })));
        assert_eq!(generated, 3);
        let mut bytes = [1, 1, 2].into_iter();
        let issued = store.issue_from(now, || Ok(token(bytes.next().unwrap()))).unwrap();
        assert_eq!(issued, token(2));
    }

    #[test]
    fn mismatch_consumes_neither_token() {
        let store = store(8);
        let (a, b) = (store.issue().unwrap(), store.issue().unwrap());
        assert!(matches!(store.consume(&a, &b), Err(TokenError::Mismatch)));
        store.consume(&a, &a).unwrap();
        store.consume(&b, &b).unwrap();
        assert!(store.is_empty());
    }

    #[test]
    fn expired_token_is_refused_once_as_expired_and_then_as_not_pending() {
        let store = store(8);
        let now = Instant::now();
        let token = store.issue_at(now).unwrap();
        assert!(matches!(store.redeem_at(&token, now + LIFETIME), Err(TokenError::Expired)));
        assert!(matches!(store.redeem_at(&token, now), Err(TokenError::NotPending)));
    }

    #[test]
    fn full_store_makes_room_by_dropping_what_expired() {
        let store = store(2);
        let now = Instant::now();
        store.issue_at(now).unwrap();
        store.issue_at(now + LIFETIME / 2).unwrap();
        assert!(matches!(store.issue_at(now + LIFETIME / 2), Err(TokenError::Full { .. })));
        store.issue_at(now + LIFETIME).unwrap();
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn longest_lifetime_is_bounded_and_does_not_overflow_the_clock() {
        let options = TokenStoreOptions { lifetime: Duration::MAX, ..Default::default() };
        let store = TokenStore::new(options).unwrap();
        let now = Instant::now();
        let token = store.issue_at(now).unwrap();
        assert!(store.redeem_at(&token, now + LIFETIME).is_ok());
    }

    #[test]
    fn one_of_many_threads_redeems_a_token() {
        let store = store(8);
        for _ in 0..200 {
            let token = store.issue().unwrap();
            let redeemed = std::thread::scope(|scope| {
                let redeem = || store.redeem(&token).is_ok();
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(redeem)).collect();
                threads.into_iter().filter_map(|thread| thread.join().ok()).filter(|ok| *ok).count()
            });
            assert_eq!(redeemed, 1);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8),
        Consume(u8, u8),
        Redeem(u8),
        Revoke(u8),
        Prune,
        Wait(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let byte = 0..12u8;
        prop_oneof![
            4 => byte.clone().prop_map(Step::Insert),
            2 => (byte.clone(), byte.clone()).prop_map(|(a, b)| Step::Consume(a, b)),
            2 => byte.clone().prop_map(Step::Redeem),
            1 => byte.prop_map(Step::Revoke),
            1 => Just(Step::Prune),
            2 => (1..20u8).prop_map(Step::Wait),
        ]
    }

    /// The store in its plainest form: pairs of token and expiry, in a list.
    #[derive(Default)]
    struct Model(Vec<(u8, Instant)>);

    impl Model {
        fn remove(&mut self, token: u8) -> Option<Instant> {
            let index = self.0.iter().position(|(held, _)| *held == token)?;
            Some(self.0.swap_remove(index).1)
        }

        fn prune(&mut self, now: Instant) -> usize {
            let before = self.0.len();
            self.0.retain(|(_, expires)| *expires > now);
            before - self.0.len()
        }

        fn insert(&mut self, token: u8, now: Instant) -> &'static str {
            if self.0.len() >= 6 {
                self.prune(now);
            }
            let full = self.0.len() >= 6;
            match self.0.iter_mut().find(|(held, _)| *held == token) {
                Some((_, expires)) if *expires > now => "already pending",
                Some((_, expires)) => {
                    *expires = now + LIFETIME;
                    "ok"
                }
                None if full => "full",
                None => {
                    self.0.push((token, now + LIFETIME));
                    "ok"
                }
            }
        }

        fn redeem(&mut self, token: u8, now: Instant) -> &'static str {
            match self.remove(token) {
                None => "not pending",
                Some(expires) if expires <= now => "expired",
                Some(_) => "ok",
            }
        }
    }

    fn name(result: Result<(), TokenError>) -> &'static str {
        match result {
            Ok(()) => "ok",
            Err(TokenError::Mismatch) => "mismatch",
            Err(TokenError::Expired) => "expired",
            Err(TokenError::NotPending) => "not pending",
            Err(TokenError::AlreadyPending) => "already pending",
            Err(TokenError::Full { .. }) => "full",
            Err(error) => panic!("unexpected {error}"),
        }
    }

    proptest! {
        #[test]
        fn store_behaves_like_a_list_of_tokens(steps in proptest::collection::vec(step(), 0..80)) {
            let store = store(6);
            let mut model = Model::default();
            let mut now = Instant::now();
            for step in steps {
                let (got, want) = match step {
                    Step::Insert(a) => (name(store.insert_at(&token(a), now)), model.insert(a, now)),
                    Step::Consume(a, b) => {
                        let want = if a == b { model.redeem(a, now) } else { "mismatch" };
                        (name(store.consume_at(&token(a), &token(b), now)), want)
                    }
                    Step::Redeem(a) => (name(store.redeem_at(&token(a), now)), model.redeem(a, now)),
                    Step::Revoke(a) => {
                        let want = model.remove(a).map_or("not pending", |_| "ok");
                        (name(store.revoke(&token(a))), want)
                    }
                    Step::Prune => {
                        prop_assert_eq!(store.prune_at(now), model.prune(now));
                        continue;
                    }
                    Step::Wait(seconds) => {
                        now += Duration::from_secs(u64::from(seconds));
                        continue;
                    }
                };
                prop_assert_eq!(got, want);
                prop_assert_eq!(store.len(), model.0.len());
            }
        }
    }
}
