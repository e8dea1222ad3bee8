//! Which backend gets an offer, and which one gets it next.
//!
//! Among those that take it, the one with the fewest offers in flight for its weight; backups only if
//! no other takes it. Those with equal load take turns by their weights: the smooth weighted
//! round-robin of nginx.

use std::io;
use std::time::Instant;

use super::kept::{Copy, NOT_KEPT};
use super::member::Obstacle;
use super::offers::{Facts, Parts, queued_len};
use super::outcomes::Again;
use super::{Broker, BrokerError, ID_BITS, KEPT_ID, Limit, SLOT_BITS, Verdict};
use crate::claim;
use crate::failures::Attempt;
use crate::reason::Reason;

/// An offer that is to be placed.
pub(super) struct Placing<'a> {
    pub facts: Facts,
    pub parts: &'a Parts<'a>,
    /// Bytes in its parts.
    pub len: usize,
    pub cookie: u64,
    pub deadline: Instant,
}

impl Broker {
    /// The backend that gets an offer of so many bytes; if none does, the one that is most likely to
    /// take one soon, and why it does not now. `copy` is the offer's, if backends were tried before.
    pub(super) fn choose(
        &mut self,
        len: usize,
        kept: u32,
        now: Instant,
    ) -> Result<usize, Option<(usize, Obstacle)>> {
        let queue_bytes = self.options.queue_bytes;
        if let ([only], NOT_KEPT) = (&self.members[..], kept) {
            return only.takes(len, queue_bytes, now).map(|()| 0).map_err(|why| Some((0, why)));
        }
        let copy = self.outcomes.kept.get(kept);
        let mut best: Option<(bool, usize, u64)> = None;
        let mut refused: Option<(usize, Obstacle)> = None;
        for (index, member) in self.members.iter_mut().enumerate() {
            member.candidate = false;
            if member.gone || copy.is_some_and(|copy| copy.tried.has(index)) {
                continue;
            }
            if let Err(why) = member.takes(len, queue_bytes, now) {
                if refused.is_none_or(|(_, other)| why.rank() < other.rank()) {
                    refused = Some((index, why));
                }
                continue;
            }
            member.candidate = true;
            let load = load(member);
            if best.is_none_or(|best| is_less(load, best)) {
                best = Some(load);
            }
        }
        let best = best.ok_or(refused)?;
        Ok(self.take_turns(best))
    }

    /// The one whose turn it is among the candidates with this load.
    fn take_turns(&mut self, best: (bool, usize, u64)) -> usize {
        let (mut chosen, mut highest, mut total) = (0, i64::MIN, 0);
        for (index, member) in self.members.iter_mut().enumerate() {
            if !member.candidate || is_less(best, load(member)) {
                continue;
            }
            let weight = i64::from(member.settings.weight);
            member.turn += weight;
            total += weight;
            if member.turn > highest {
                (chosen, highest) = (index, member.turn);
            }
        }
        self.members[chosen].turn -= total;
        chosen
    }

    /// Whether there is a backend that was not tried yet and takes an offer.
    pub(super) fn can_fail_over(&self, copy: &Copy, now: Instant) -> bool {
        let queue_bytes = self.options.queue_bytes;
        self.members.iter().enumerate().any(|(index, member)| {
            !copy.tried.has(index) && member.takes(copy.len(), queue_bytes, now).is_ok()
        })
    }

    /// Puts an offer among those of a backend that takes it, and returns its slot. Fails before
    /// anything has changed.
    pub(super) fn place(
        &mut self,
        index: usize,
        placing: &mut Placing<'_>,
        now: Instant,
    ) -> Result<u32, BrokerError> {
        let member = &mut self.members[index];
        let path = || member.path.clone();
        let super::member::Link::Up(channel) = &mut member.link else {
            return Err(member.error(Obstacle::Down, &self.options));
        };
        let Some((slot, generation)) = channel.offers.next_slot() else {
            let limit = Limit::InFlight { in_flight: channel.offers.in_flight(), most: 0 };
            return Err(BrokerError::Full { path: path(), limit });
        };
        channel.offers.make_room(queued_len(placing.len))?;
        // The last step that can fail.
        self.handle.wake_at(placing.deadline, now)?;
        let facts = &mut placing.facts;
        if facts.id == 0 {
            // Where it is becomes part of the id, so that it is found without a search.
            let place = match facts.kept {
                NOT_KEPT => (index as u64) << SLOT_BITS | u64::from(slot),
                kept => KEPT_ID | u64::from(kept),
            };
            facts.id = self.next_id << ID_BITS | place;
            self.next_id += 1;
        }
        if let Some(failures) = &mut member.tally.failures {
            facts.trial = failures.check(now) == Attempt::Trial;
            if facts.trial {
                failures.begin_trial(now);
            }
        }
        member.tally.offered += 1;
        // Before the descriptor can be sent, so that the backend finds it on offer.
        claim::offer(channel.claims.slot(slot as usize), generation);
        channel.offers.queue(facts, placing.parts, placing.cookie, placing.deadline);
        self.touch(index);
        Ok(slot)
    }

    /// Offers to other backends what those before did not adopt.
    pub(super) fn fail_over(&mut self, now: Instant) {
        while let Some(Again { kept, reason }) = self.outcomes.again.pop_front() {
            if !self.try_next(kept, now) {
                self.give_up(kept, reason);
            }
        }
    }

    /// Whether another backend gets the offer.
    fn try_next(&mut self, kept: u32, now: Instant) -> bool {
        let Some(copy) = self.outcomes.kept.get(kept).filter(|copy| copy.deadline > now) else {
            return false;
        };
        if self.closed {
            return false;
        }
        let len = copy.len();
        let Ok(index) = self.choose(len, kept, now) else { return false };
        // Out of its place while it is read.
        let Some(copy) = self.outcomes.kept.take(kept) else { return false };
        let facts = Facts {
            id: copy.id,
            user_data: copy.user_data,
            descriptor: copy.descriptor,
            kept,
            offered_at: now,
            trial: false,
        };
        let deadline = self.attempt_deadline(copy.deadline, now);
        let cookie = copy.cookie;
        let placed = copy.with_parts(|parts| {
            self.place(index, &mut Placing { facts, parts, len, cookie, deadline }, now)
        });
        self.outcomes.kept.put(kept, copy);
        let (Ok(slot), Some(copy)) = (placed, self.outcomes.kept.get_mut(kept)) else {
            return false;
        };
        copy.tried.add(index);
        (copy.backend, copy.slot) = (index as u32, slot);
        self.outcomes.statistics.failovers += 1;
        true
    }

    /// The verdict on an offer that no other backend gets.
    fn give_up(&mut self, kept: u32, reason: Reason) {
        if let Some(copy) = self.outcomes.kept.get(kept) {
            let verdict = Verdict {
                id: copy.id,
                user_data: copy.user_data,
                adopted: false,
                reason: Some(reason),
                may_have_reached: copy.may_have_reached,
                backend: copy.backend,
                tries: copy.tried.count,
                kind: 0,
            };
            self.outcomes.add(verdict);
            self.outcomes.kept.forget(kept);
        }
    }

    /// When one of several backends must have answered.
    pub(super) fn attempt_deadline(&self, deadline: Instant, now: Instant) -> Instant {
        now.checked_add(self.options.attempt_timeout).map_or(deadline, |end| end.min(deadline))
    }

    /// The error of an offer that no backend takes.
    #[cold]
    pub(super) fn refused(&mut self, why: Option<(usize, Obstacle)>) -> BrokerError {
        let Some((index, obstacle)) = why else {
            return self.no_backend();
        };
        let member = &mut self.members[index];
        let error = member.error(obstacle, &self.options);
        member.tally.refused(error.kind());
        let count = self.members.iter().filter(|member| !member.gone).count();
        if count == 1 { error } else { BrokerError::AllRefused { count, first: Box::new(error) } }
    }

    fn no_backend(&self) -> BrokerError {
        let source = self.directories.iter().find_map(|directory| directory.error());
        BrokerError::NoBackend {
            path: self.path.clone(),
            source: source.map(io::Error::from_raw_os_error),
        }
    }
}

/// How busy a backend is: less is better. Backups come last.
fn load(member: &super::member::Member) -> (bool, usize, u64) {
    (member.settings.backup, member.in_flight(), u64::from(member.settings.weight))
}

fn is_less(one: (bool, usize, u64), other: (bool, usize, u64)) -> bool {
    let ratio = |(_, in_flight, _): (bool, usize, u64), weight| in_flight as u64 * weight;
    (one.0, ratio(one, other.2)) < (other.0, ratio(other, one.2))
}
