//! Which backend gets an offer.
//!
//! Among those that take it, the one with the fewest offers in flight for its weight; backups only
//! if no other takes it. Several have the fewest if each has less for its weight than any of them
//! would have with this offer: a heavy one with one offer does not rank behind light ones with
//! none, or few offers in flight would make all weights equal. Of these the one is next whose turn
//! it is by the weights of all, in the smooth weighted round-robin of nginx. One that was passed
//! over for its load gets its turns later, but not more than a few.

use std::io;
use std::time::{Duration, Instant};

use super::copies::NO_COPY;
use super::member::{Link, Member, Needs, Obstacle, Vacancy};
use super::offer::Refused;
use super::slots::{Facts, Parts, queued_len};
use super::{BackendSettings, Broker, BrokerError, COPIED, ID_BITS, MAX_NUMBER, SLOT_BITS};
use crate::claim;
use crate::wire::LARGE_LEN;

/// How many of its turns a backend may be behind, or ahead.
const MOST_TURNS: i64 = 2;
/// The longest attempt at one of several backends, and the shortest, by default.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(1);

/// An offer that is to be placed.
pub(super) struct Placing<'a> {
    /// Its id is 0 if it has none yet. When it is offered, and whether it is a trial, is written down
    /// when it is placed.
    pub facts: Facts,
    pub parts: &'a Parts<'a>,
    /// Bytes in its parts.
    pub len: usize,
    pub cookie: u64,
    pub deadline: Instant,
}

/// A backend that takes an offer, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen {
    pub index: usize,
    pub place: Vacancy,
}

impl Broker {
    /// The backend that gets an offer of so many bytes; if none does, the one that is most likely
    /// to take one soon, and why it does not now. `copy` is the offer's, if backends were
    /// tried before.
    #[inline(always)]
    pub(super) fn choose(
        &mut self,
        needs: Needs,
        copy: u32,
        now: Instant,
    ) -> Result<Chosen, Option<(usize, Obstacle)>> {
        if let ([only], NO_COPY) = (&self.members[..], copy) {
            return match only.would_take(needs, self.options.queue_bytes, now) {
                Ok((_, place)) => Ok(Chosen { index: 0, place }),
                Err(why) => Err(Some((0, why))),
            };
        }
        self.choose_of_many(needs, copy, now)
    }

    #[inline(never)]
    pub(super) fn choose_of_many(
        &mut self,
        needs: Needs,
        copy: u32,
        now: Instant,
    ) -> Result<Chosen, Option<(usize, Obstacle)>> {
        let queue_bytes = self.options.queue_bytes;
        let copy = self.outcomes.copies.get(copy);
        let mut fewest: Option<Load> = None;
        // Of those that are no backups, and of backups.
        let mut weights = [0; 2];
        let mut refused: Option<(usize, Obstacle)> = None;
        self.candidates.clear();
        for (index, member) in self.members.iter().enumerate() {
            if member.gone || copy.is_some_and(|copy| copy.tried.has(index)) {
                continue;
            }
            let place = match member.would_take(needs, queue_bytes, now) {
                Ok((_, place)) => place,
                Err(why) => {
                    why.keep_soonest(index, &mut refused);
                    continue;
                }
            };
            let load = Load::of(member);
            weights[usize::from(load.backup)] += i64::from(load.weight);
            self.candidates.push((Chosen { index, place }, load));
            if fewest.is_none_or(|fewest| load.with_one_more().is_less(fewest)) {
                fewest = Some(load.with_one_more());
            }
        }
        let limit = fewest.ok_or(refused)?;
        self.take_turns(limit, weights[usize::from(limit.backup)]).ok_or(refused)
    }

    /// The one whose turn it is among the candidates with less than this load. `total` is the
    /// weight of all candidates that are backups as it is, or are none.
    fn take_turns(&mut self, limit: Load, total: i64) -> Option<Chosen> {
        let (mut chosen, mut highest) = (None, i64::MIN);
        for (candidate, load) in &self.candidates {
            if load.backup != limit.backup {
                continue;
            }
            let turn = &mut self.members[candidate.index].turn;
            *turn = (*turn + i64::from(load.weight)).clamp(-MOST_TURNS * total, MOST_TURNS * total);
            if *turn > highest && load.is_less(limit) {
                (chosen, highest) = (Some(*candidate), *turn);
            }
        }
        let chosen = chosen?;
        self.members[chosen.index].turn -= total;
        Some(chosen)
    }

    /// Puts an offer among those of a backend that takes it, and returns its id. Fails before
    /// anything has changed.
    #[inline(always)]
    pub(super) fn place(
        &mut self,
        chosen: Chosen,
        placing: &mut Placing<'_>,
        now: Instant,
    ) -> Result<u64, BrokerError> {
        let Chosen { index, place: Vacancy { slot, generation, trial } } = chosen;
        let Placing { facts, parts, len, cookie, deadline } = placing;
        let (len, cookie, deadline) = (*len, *cookie, *deadline);
        let member = &mut self.members[index];
        let Link::Up(channel) = &mut member.link else {
            return Err(member.error(Obstacle::Down, &self.options, now));
        };
        channel.slots.make_room(queued_len(len))?;
        // The last step that can fail.
        self.handle.wake_at(deadline, now)?;
        if facts.id == 0 {
            // Where it is becomes part of the id, so that it is found without a search.
            let place = match facts.copy {
                NO_COPY => (index as u64) << SLOT_BITS | u64::from(slot),
                copy => COPIED | u64::from(copy),
            };
            facts.id = self.next_id << ID_BITS | place;
            // They begin again after 2^41, and 0 is none.
            self.next_id = ((self.next_id + 1) & MAX_NUMBER).max(1);
        }
        if let Some(failures) = member.tally.failures.as_mut().filter(|_| trial) {
            failures.begin_trial(now);
        }
        member.tally.counts.offered += 1;
        // Before the descriptor can be sent, so that the backend finds it on offer.
        claim::offer(channel.claims.slot(slot as usize), generation);
        (facts.offered_at, facts.trial) = (now, trial);
        let names_len = parts.names.iter().map(|name| name.len()).sum::<usize>();
        let large = Some(len - names_len).filter(|preread_len| *preread_len >= LARGE_LEN);
        channel.slots.queue(slot, facts, parts, large, cookie, deadline);
        if large.is_some() {
            channel.send_large(parts.preread, now);
        }
        if !member.touched {
            self.touch(index);
        }
        Ok(facts.id)
    }

    /// Places an offer and keeps a copy for the next backend.
    #[inline(never)]
    pub(super) fn place_one_of_many(
        &mut self,
        chosen: Chosen,
        mut placing: Placing<'_>,
        now: Instant,
    ) -> Result<u64, BrokerError> {
        let Some(number) = self.outcomes.copies.place(placing.len, now) else {
            return self.place(chosen, &mut placing, now);
        };
        let last = placing.deadline;
        placing.facts.copy = number;
        placing.deadline = self.attempt_deadline(last, now);
        let id = self.place(chosen, &mut placing, now)?;
        self.outcomes.copies.keep(placing.parts, |copy| {
            copy.tried.add(chosen.index);
            (copy.facts, copy.cookie, copy.deadline) = (placing.facts, placing.cookie, last);
            (copy.backend, copy.slot) = (chosen.index as u32, chosen.place.slot);
        });
        Ok(id)
    }

    /// When one of several backends must have answered.
    pub(super) fn attempt_deadline(&self, deadline: Instant, now: Instant) -> Instant {
        let left = deadline.saturating_duration_since(now);
        let timeout = self.options.attempt_timeout.unwrap_or((left / 2).min(ATTEMPT_TIMEOUT));
        // Of a shorter time a half is not worth another attempt.
        if timeout < left && timeout >= SHORTEST_ATTEMPT { now + timeout } else { deadline }
    }

    /// No backend takes an offer.
    #[cold]
    pub(super) fn refused(&self, why: Option<(usize, Obstacle)>) -> Refused {
        let Some((index, obstacle)) = why.filter(|(index, _)| !self.members[*index].gone) else {
            return self.no_backend().into();
        };
        let error = self.members[index].error(obstacle, &self.options, self.looked_at);
        let count = self.listed.len();
        let all = |error| BrokerError::AllRefused { count, first: Box::new(error) };
        let error = if count == 1 { error } else { all(error) };
        Refused { error, by: Some(index as u32) }
    }

    fn no_backend(&self) -> BrokerError {
        let source = self.directories.iter().find_map(|directory| directory.error());
        BrokerError::NoBackend {
            path: self.path.clone(),
            source: source.map(io::Error::from_raw_os_error),
        }
    }
}

/// How busy a backend is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    backup: bool,
    weight: u32,
    in_flight: u64,
}

impl Load {
    fn of(member: &Member) -> Load {
        let BackendSettings { backup, weight, .. } = member.settings;
        Load { backup, weight, in_flight: member.in_flight() as u64 }
    }

    fn with_one_more(self) -> Load {
        Load { in_flight: self.in_flight + 1, ..self }
    }

    /// Whether it has fewer offers in flight for its weight. Backups come last.
    fn is_less(self, other: Load) -> bool {
        let of = |load: Load, weight: u32| load.in_flight * u64::from(weight);
        (self.backup, of(self, other.weight)) < (other.backup, of(other, self.weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Offer;
    use crate::broker::channel::tests::connected;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn ids_begin_again_without_0() {
        let (mut broker, _backend, _directory) = connected();
        broker.next_id = MAX_NUMBER;
        let (client, _peer) = UnixStream::pair().unwrap();
        let offer = Offer::new(client.as_fd());
        // SAFETY: the client is open as long as the broker.
        let ids = [(); 3].map(|()| unsafe { broker.offer(&offer) }.unwrap());
        assert_eq!(ids.map(|id| id >> ID_BITS), [MAX_NUMBER, 1, 2]);
        for id in ids {
            broker.take_back(id).unwrap();
        }
    }
}
