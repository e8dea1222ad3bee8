//! Which backend gets an offer, and which one gets it next.
//!
//! Among those that take it, the one with the fewest offers in flight for its weight; backups only if
//! no other takes it. Several have the fewest if each has less for its weight than any of them would
//! have with this offer: a heavy one with one offer does not rank behind light ones with none, or few
//! offers in flight would make all weights equal. Of these the one is next whose turn it is by the
//! weights of all, in the smooth weighted round-robin of nginx. One that was passed over for its load
//! gets its turns later, but not more than a few.

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use super::kept::{Copy, NOT_KEPT};
use super::member::{Link, Needs, Obstacle, Place};
use super::offers::{Facts, Parts, queued_len};
use super::outcomes::Again;
use super::{Broker, BrokerError, ID_BITS, KEPT_ID, SLOT_BITS, Verdict};
use crate::claim;
use crate::reason::Reason;

/// How many of its turns a backend may be behind, or ahead.
const MOST_TURNS: i64 = 2;

/// An offer that is to be placed.
pub(super) struct Placing<'a> {
    /// 0: it has none yet.
    pub id: u64,
    pub user_data: usize,
    pub descriptor: RawFd,
    /// The number of its copy, or [`NOT_KEPT`].
    pub kept: u32,
    pub parts: &'a Parts<'a>,
    /// Bytes in its parts.
    pub len: usize,
    pub cookie: u64,
    pub deadline: Instant,
}

/// A backend that takes an offer, and where.
#[derive(Clone, Copy)]
pub(super) struct Chosen {
    pub index: usize,
    pub place: Place,
}

impl Broker {
    /// The backend that gets an offer of so many bytes; if none does, the one that is most likely to
    /// take one soon, and why it does not now. `kept` is the offer's copy, if backends were tried
    /// before.
    #[inline(always)]
    pub(super) fn choose(
        &mut self,
        needs: Needs,
        kept: u32,
        now: Instant,
    ) -> Result<Chosen, Option<(usize, Obstacle)>> {
        if let ([only], NOT_KEPT) = (&self.members[..], kept) {
            return match only.takes(needs, self.options.queue_bytes, now) {
                Ok(place) => Ok(Chosen { index: 0, place }),
                Err(why) => Err(Some((0, why))),
            };
        }
        self.choose_of_many(needs, kept, now)
    }

    #[inline(never)]
    fn choose_of_many(
        &mut self,
        needs: Needs,
        kept: u32,
        now: Instant,
    ) -> Result<Chosen, Option<(usize, Obstacle)>> {
        let queue_bytes = self.options.queue_bytes;
        let copy = self.outcomes.kept.get(kept);
        let mut fewest: Option<(bool, usize, u64)> = None;
        // Of those that are no backups, and of backups.
        let mut weights = [0; 2];
        let mut refused: Option<(usize, Obstacle)> = None;
        for (index, member) in self.members.iter_mut().enumerate() {
            member.candidate = false;
            if member.gone || copy.is_some_and(|copy| copy.tried.has(index)) {
                continue;
            }
            if let Err(why) = member.takes(needs, queue_bytes, now) {
                if refused.is_none_or(|(_, other)| why.rank() < other.rank()) {
                    refused = Some((index, why));
                }
                continue;
            }
            member.candidate = true;
            weights[usize::from(member.settings.backup)] += i64::from(member.settings.weight);
            let with_this = load(member, 1);
            if fewest.is_none_or(|fewest| is_less(with_this, fewest)) {
                fewest = Some(with_this);
            }
        }
        let limit = fewest.ok_or(refused)?;
        let index = self.take_turns(limit, weights[usize::from(limit.0)]);
        let place = self.members[index].takes(needs, queue_bytes, now);
        place.map(|place| Chosen { index, place }).map_err(|why| Some((index, why)))
    }

    /// The one whose turn it is among the candidates with less than this load. `total` is the weight
    /// of all candidates that are backups as it is, or are none.
    fn take_turns(&mut self, limit: (bool, usize, u64), total: i64) -> usize {
        let (mut chosen, mut highest) = (0, i64::MIN);
        for (index, member) in self.members.iter_mut().enumerate() {
            if !member.candidate || member.settings.backup != limit.0 {
                continue;
            }
            let turn = member.turn + i64::from(member.settings.weight);
            member.turn = turn.clamp(-MOST_TURNS * total, MOST_TURNS * total);
            if member.turn > highest && is_less(load(member, 0), limit) {
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
            !copy.tried.has(index) && member.takes(copy.needs(), queue_bytes, now).is_ok()
        })
    }

    /// Puts an offer among those of a backend that takes it, and returns its id. Fails before anything
    /// has changed.
    #[inline(always)]
    pub(super) fn place(
        &mut self,
        chosen: Chosen,
        placing: &Placing<'_>,
        now: Instant,
    ) -> Result<u64, BrokerError> {
        let Chosen { index, place: Place { slot, generation, trial } } = chosen;
        let Placing { id, user_data, descriptor, kept, parts, len, cookie, deadline } = *placing;
        let member = &mut self.members[index];
        let Link::Up(channel) = &mut member.link else {
            return Err(member.error(Obstacle::Down, &self.options));
        };
        channel.offers.make_room(queued_len(len))?;
        // The last step that can fail.
        self.handle.wake_at(deadline, now)?;
        let mut id = id;
        if id == 0 {
            // Where it is becomes part of the id, so that it is found without a search.
            let place = match kept {
                NOT_KEPT => (index as u64) << SLOT_BITS | u64::from(slot),
                kept => KEPT_ID | u64::from(kept),
            };
            id = self.next_id << ID_BITS | place;
            self.next_id += 1;
        }
        if let Some(failures) = member.tally.failures.as_mut().filter(|_| trial) {
            failures.begin_trial(now);
        }
        member.tally.offered += 1;
        // Before the descriptor can be sent, so that the backend finds it on offer.
        claim::offer(channel.claims.slot(slot as usize), generation);
        let facts = Facts { id, user_data, descriptor, kept, offered_at: now, trial };
        channel.offers.queue(&facts, parts, cookie, deadline);
        if !member.touched {
            self.touch(index);
        }
        Ok(id)
    }

    /// Places an offer and keeps a copy for the next backend.
    #[inline(never)]
    pub(super) fn place_one_of_many(
        &mut self,
        chosen: Chosen,
        mut placing: Placing<'_>,
        now: Instant,
    ) -> Result<u64, BrokerError> {
        let Some(kept) = self.outcomes.kept.place(placing.len, now) else {
            return self.place(chosen, &placing, now);
        };
        let last = placing.deadline;
        placing.kept = kept;
        placing.deadline = self.attempt_deadline(last, now);
        let id = self.place(chosen, &placing, now)?;
        self.outcomes.kept.keep(placing.parts, |copy| {
            copy.tried.add(chosen.index);
            (copy.id, copy.user_data, copy.descriptor) =
                (id, placing.user_data, placing.descriptor);
            (copy.cookie, copy.deadline) = (placing.cookie, last);
            (copy.backend, copy.slot) = (chosen.index as u32, chosen.place.slot);
        });
        Ok(id)
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
        let needs = copy.needs();
        let Ok(chosen) = self.choose_of_many(needs, kept, now) else { return false };
        let Chosen { index, place: Place { slot, .. } } = chosen;
        // Out of its place while it is read.
        let Some(copy) = self.outcomes.kept.take(kept) else { return false };
        let Copy { id, user_data, descriptor, cookie, .. } = copy;
        let len = needs.len;
        let deadline = self.attempt_deadline(copy.deadline, now);
        let placed = copy.with_parts(|parts| {
            let placing = Placing { id, user_data, descriptor, kept, parts, len, cookie, deadline };
            self.place(chosen, &placing, now)
        });
        self.outcomes.kept.put(kept, copy);
        let (Ok(_), Some(copy)) = (placed, self.outcomes.kept.get_mut(kept)) else {
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
            self.outcomes.statistics.fallbacks[reason as usize] += 1;
            self.outcomes.verdicts.push_back(verdict);
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

/// How busy a backend is, with so many offers more: less is better. Backups come last.
fn load(member: &super::member::Member, more: usize) -> (bool, usize, u64) {
    (member.settings.backup, member.in_flight() + more, u64::from(member.settings.weight))
}

fn is_less(one: (bool, usize, u64), other: (bool, usize, u64)) -> bool {
    let ratio = |(_, in_flight, _): (bool, usize, u64), weight| in_flight as u64 * weight;
    (one.0, ratio(one, other.2)) < (other.0, ratio(other, one.2))
}
