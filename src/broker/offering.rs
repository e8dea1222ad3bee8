//! Offering: what is checked, queued or refused, and how many offers would be taken.

use std::os::fd::AsRawFd;
use std::time::Instant;

use super::channel::Channel;
use super::choosing::Placing;
use super::copies::NO_COPY;
use super::member::{Link, Member, Needs, Obstacle, SMALLEST};
use super::offer::{Offer, Refused};
use super::slots::{Facts, Parts, queued_len};
use super::{Broker, BrokerError, Limit};
use crate::memory::NoMemory;

/// How long an offer may be that some backends take: without TLS, and with it; none: they take none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Takers {
    /// That one of them takes now.
    now: [Option<usize>; 2],
    /// That each of them would take if it had more room.
    each: [Option<usize>; 2],
}

impl Takers {
    fn and(self, other: Takers) -> Takers {
        let both =
            |tls: usize| (self.now[tls].max(other.now[tls]), self.each[tls].min(other.each[tls]));
        let [(now, each), (now_tls, each_tls)] = [0, 1].map(both);
        Takers { now: [now, now_tls], each: [each, each_tls] }
    }

    /// Whether an offer may be meant for one of them, now or soon, wherever there is room.
    pub(super) fn may_get(&self, needs: Needs) -> bool {
        let tls = usize::from(needs.tls);
        self.now[tls].max(self.each[tls]).is_some_and(|most| needs.len <= most)
    }
}

impl Broker {
    /// Offers a connection, at once unless more follow. Returns its id; the verdict comes from
    /// [`next_verdict`](Broker::next_verdict). After an error nothing was sent and no verdict
    /// comes.
    ///
    /// # Safety
    ///
    /// The offer's descriptor stays open until the verdict, or until the broker is dropped: it is
    /// sent later, by its number.
    pub unsafe fn offer(&mut self, offer: &Offer<'_>) -> Result<u64, BrokerError> {
        let now = Instant::now();
        let id = match self.queue(offer, false, now) {
            Ok(id) => id,
            Err(refused) => return Err(self.counted(refused)),
        };
        if !offer.more || self.portion_waits(id) {
            // The offer is taken: if sending it fails, its verdict says so.
            let _ = self.flush_at(now);
        }
        Ok(id)
    }

    /// Whether so many offers wait that the backend should have them before more come, or this one,
    /// the last, was sent by itself. Several backends work while others get theirs anyway.
    #[inline(always)]
    fn portion_waits(&self, id: u64) -> bool {
        if let [Member { link: Link::Up(channel), .. }] = &self.members[..] {
            return channel.portion_waits(self.options.spin.is_zero());
        }
        let member = self.find(id).map(|(index, _)| &self.members[index].link);
        matches!(member, Some(Link::Up(channel)) if channel.slots.queued() == 0)
    }

    /// Counts an offer that is refused, and returns why it is. To have been woken is no refusal.
    #[cold]
    pub(super) fn counted(&mut self, Refused { error, by }: Refused) -> BrokerError {
        if matches!(error, BrokerError::Woken) {
            return error;
        }
        let statistics = &mut self.outcomes.statistics;
        statistics.refused += 1;
        if let Some(count) = statistics.refusals.get_mut(error.kind() as usize) {
            *count += 1;
        }
        if let Some(index) = by {
            self.members[index as usize].tally.refused(error.kind());
        }
        error
    }

    /// Queues an offer. If its caller waits, its verdict does not wait behind others.
    pub(super) fn queue(
        &mut self,
        offer: &Offer<'_>,
        awaited: bool,
        now: Instant,
    ) -> Result<u64, Refused> {
        self.enter(now)?;
        let len = offer.checked_len()?;
        let cookie = offer.cookie()?;
        if offer.tls {
            offer.check_tls()?;
        }
        let needs = Needs { len, tls: offer.tls };
        let (untaken, most) = (self.outcomes.verdicts.len(), self.most_verdicts);
        if awaited {
            // As many may be in flight, and as many wait for another backend.
            let reserved = self.outcomes.awaited.try_reserve(most + self.may_wait(most));
            reserved.map_err(NoMemory::to("verdicts")).map_err(BrokerError::from)?;
        } else if untaken >= most && most > 0 {
            return Err(self.too_many_verdicts(untaken, needs, now));
        }
        let chosen = match self.choose(needs, NO_COPY, now) {
            Ok(chosen) => chosen,
            Err(why) => {
                self.want(needs, now);
                return Err(self.refused(why));
            }
        };
        let deadline = offer.deadline(self.options.timeout, now);
        let Offer { service, correlation, metadata, preread, user_data, .. } = *offer;
        let names = [service, correlation, metadata];
        let parts = &Parts { names, preread, tls: offer.tls };
        let descriptor = offer.descriptor.as_raw_fd();
        let facts = Facts { user_data, awaited, descriptor, ..Facts::none(now) };
        let mut placing = Placing { facts, parts, len, cookie, deadline };
        // With one backend there is no other that could get it next.
        let id = if self.listed.len() > 1 {
            self.place_one_of_many(chosen, placing, now)?
        } else {
            self.place(chosen, &mut placing, now)?
        };
        self.outcomes.statistics.offered += 1;
        // Whoever was refused sees that there is room, unless this has taken all of it.
        let sees_room = |wanted: Needs| needs.are_at_least(wanted) && self.would_take(wanted, now);
        if self.wanted.is_some_and(sees_room) {
            self.wanted = None;
        }
        Ok(id)
    }

    /// An offer has waited for room until its time was up: sent now, it would only count as a
    /// failure of the backend. It is refused as if there still were no room.
    #[cold]
    pub(super) fn too_late(&mut self, offer: &Offer<'_>, now: Instant) -> Refused {
        let len = match offer.checked_len() {
            Ok(len) => len,
            Err(error) => return error.into(),
        };
        let needs = Needs { len, tls: offer.tls };
        self.refused(match self.taker(needs, now) {
            Ok((index, channel)) => Some((index, Obstacle::Full(channel.limit()))),
            Err(why) => why,
        })
    }

    /// The first backend that would take an offer with such needs now; or the one that is most likely
    /// to take it soon, and why it does not now.
    pub(super) fn taker(
        &self,
        needs: Needs,
        now: Instant,
    ) -> Result<(usize, &Channel), Option<(usize, Obstacle)>> {
        let mut soonest = None;
        for (index, member) in self.members.iter().enumerate().filter(|(_, it)| !it.gone) {
            match member.would_take(needs, self.options.queue_bytes, now) {
                Ok((channel, _)) => return Ok((index, channel)),
                Err(why) => why.keep_soonest(index, &mut soonest),
            }
        }
        Err(soonest)
    }

    /// What the backends that take an offer with such needs now can take beside it.
    pub(super) fn takers(&self, needs: Needs, now: Instant) -> Takers {
        let queue_bytes = self.options.queue_bytes;
        let mut takers: Option<Takers> = None;
        for member in &self.members {
            let Ok((channel, _)) = member.would_take(needs, queue_bytes, now) else { continue };
            let largest = channel.largest();
            let room = queue_bytes - channel.slots.queued_bytes() - queued_len(0);
            let each = [Some(largest.len), largest.tls.then_some(largest.len)];
            let this = Takers { now: each.map(|len| len.map(|len| len.min(room))), each };
            takers = Some(takers.map_or(this, |others| others.and(this)));
        }
        takers.unwrap_or_default()
    }

    /// Of the verdicts of all backends: none of them has refused the offer.
    #[cold]
    fn too_many_verdicts(&mut self, untaken: usize, needs: Needs, now: Instant) -> Refused {
        self.want(needs, now);
        let limit = Limit::Verdicts { untaken };
        Refused::from(BrokerError::Full { path: self.path.clone(), limit })
    }

    /// An offer was refused: sets the timers that tell when one would be taken.
    #[cold]
    pub(super) fn want(&mut self, needs: Needs, now: Instant) {
        self.handle.wake_if_missed();
        let is_first = self.wanted.is_none();
        needs.add_to(&mut self.wanted);
        if is_first {
            for index in 0..self.members.len() {
                // If no timer can be set, something else wakes the caller.
                let _ = self.arm(index, now);
            }
        }
    }

    /// How many small offers would be taken now.
    pub fn room(&mut self) -> Result<usize, BrokerError> {
        let now = Instant::now();
        self.enter(now)?;
        let room = self.room_at(now);
        if room == 0 {
            self.want(SMALLEST, now);
        }
        Ok(room)
    }

    fn room_at(&self, now: Instant) -> usize {
        if self.outcomes.verdicts.len() >= self.most_verdicts {
            return 0;
        }
        let queue_bytes = self.options.queue_bytes;
        self.members.iter().map(|member| member.room(queue_bytes, now)).sum()
    }

    /// Whether an offer with such needs would be taken now.
    pub(super) fn would_take(&self, needs: Needs, now: Instant) -> bool {
        self.outcomes.verdicts.len() < self.most_verdicts && self.any_would_take(needs, now)
    }

    /// Whether any backend would take an offer with such needs now.
    pub(super) fn any_would_take(&self, needs: Needs, now: Instant) -> bool {
        let queue_bytes = self.options.queue_bytes;
        self.members.iter().any(|it| it.would_take(needs, queue_bytes, now).is_ok())
    }

    /// Makes the descriptor readable if an offer was refused and one would be taken now.
    pub(super) fn tell_of_room(&mut self, now: Instant) {
        if self.wanted.is_some_and(|needs| self.would_take(needs, now)) {
            self.wanted = None;
            // If no timer can be set, something else wakes the caller.
            let _ = self.handle.wake_at(now, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_full_backend_alone_can_take_holds_up_none_that_another_takes() {
        // With room for 100 bytes now, and for 60000 at other times; and a backend that takes 1000.
        let full = Takers { now: [Some(100), Some(100)], each: [Some(60_000), Some(60_000)] };
        let small = Takers { now: [Some(1000), None], each: [Some(1000), None] };
        let needs = |len, tls| Needs { len, tls };
        assert!(full.may_get(needs(60_000, true)));
        assert!(!full.and(small).may_get(needs(60_000, false)));
        assert!(full.and(small).may_get(needs(1000, false)));
        assert!(!full.and(small).may_get(needs(1000, true)));
        assert!(full.and(small).may_get(needs(100, true)));
        assert!(!Takers::default().may_get(needs(0, false)));
    }
}
