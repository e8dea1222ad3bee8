//! Offers that a backend did not adopt, and another one may: failover.
//!
//! Such an offer goes to the next backend at once or, if those that were not tried are full, waits
//! until one of them has room. Otherwise, or when its time is up, it is a fallback.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use super::choosing::{Chosen, Placing};
use super::copies::OfferCopy;
use super::member::{Needs, Obstacle, SMALLEST, Vacancy};
use super::outcomes::Again;
use super::slots::Facts;
use super::{Broker, Phase, Verdict};
use crate::reason::Reason;
use crate::sys;

/// How many of the offers that wait for room are looked at in one dispatch.
const LOOKS_PER_DISPATCH: usize = 64;
/// How long the others wait for their turn.
const NEXT_LOOKS_PAUSE: Duration = Duration::from_millis(1);
/// The same, if there is room that none of them could use at the last look.
const VAIN_LOOKS_PAUSE: Duration = Duration::from_millis(20);

/// Offers that wait for room at another backend, and what is known of that.
#[derive(Debug, Default)]
pub(super) struct Failover {
    pub waiting: VecDeque<Again>,
    /// So many of them, the first, may wait for a backend that takes no offers any more.
    unlooked: usize,
    /// So many looks at them were in vain since any backend may have got room.
    pub looked_in_vain: usize,
    /// No backend took an offer with such needs then, or with more.
    no_takers: Option<(Instant, Needs)>,
}

/// What has become of an offer.
enum Next {
    /// Another backend has it.
    Placed,
    /// Another one may have room for it later.
    Waits,
    /// No other one takes it.
    Nobody,
}

impl Broker {
    /// Offers to other backends what those before did not adopt.
    pub(super) fn fail_over(&mut self, now: Instant) {
        while let Some(again) = self.outcomes.again.pop_front() {
            self.go_on(again, now);
        }
    }

    /// Offers to other backends what waits for room.
    pub(super) fn fail_over_the_waiting(&mut self, now: Instant) {
        let before = self.outcomes.statistics.failovers;
        for _ in 0..self.failover.waiting.len().min(LOOKS_PER_DISPATCH) {
            // While nobody has room, none of them is worth a look, and they keep their order.
            if self.failover.unlooked == 0 && !self.any_would_take(SMALLEST, now) {
                self.failover.looked_in_vain = 0;
                return;
            }
            let Some(again) = self.failover.waiting.pop_front() else { break };
            self.failover.unlooked = self.failover.unlooked.saturating_sub(1);
            self.failover.looked_in_vain += 1;
            self.go_on(again, now);
        }
        if self.outcomes.statistics.failovers > before {
            self.failover.looked_in_vain = 0;
        }
        let left = self.failover.waiting.len();
        self.failover.unlooked = self.failover.unlooked.min(left);
        if self.failover.unlooked > 0
            || (left > LOOKS_PER_DISPATCH && self.any_would_take(SMALLEST, now))
        {
            let all_in_vain = self.failover.unlooked == 0 && self.failover.looked_in_vain >= left;
            let pause = if all_in_vain { VAIN_LOOKS_PAUSE } else { NEXT_LOOKS_PAUSE };
            // If no timer can be set, the handle tries again.
            let _ = self.handle.wake_at(now + pause, now);
        }
    }

    /// Notes what a backend does since now. If it takes no offers any more, those that wait may wait
    /// for nobody.
    pub(super) fn note_phase(&mut self, index: usize, now: Instant) {
        let before = self.members[index].note_phase(now);
        if before == Some(Phase::Ready) {
            self.look_at_the_waiting(now);
        }
    }

    /// A backend takes no offers any more: has all those that wait looked at.
    pub(super) fn look_at_the_waiting(&mut self, now: Instant) {
        if !self.failover.waiting.is_empty() {
            self.failover.unlooked = self.failover.waiting.len();
            // If no timer can be set, the handle tries again.
            let _ = self.handle.wake_at(now, now);
        }
    }

    fn go_on(&mut self, again: Again, now: Instant) {
        match self.try_next(again.copy, now) {
            Next::Placed => {}
            Next::Nobody => self.give_up(again.copy, again.reason),
            Next::Waits => self.let_wait(again, now),
        }
    }

    /// Has an offer wait for room, unless as many wait as all backends could have in flight.
    fn let_wait(&mut self, again: Again, now: Instant) {
        let Some(copy) = self.outcomes.copies.get_mut(again.copy) else { return };
        copy.waits = true;
        let deadline = copy.deadline;
        let is_full = self.failover.waiting.len() >= self.most_verdicts;
        // Without a timer nothing would end the wait.
        if is_full || self.handle.wake_at(deadline, now).is_err() {
            return self.give_up(again.copy, again.reason);
        }
        self.failover.waiting.push_back(again);
    }

    /// An offer that waits is taken back.
    pub(super) fn end_wait(&mut self, number: u32) {
        if let Some(at) = self.failover.waiting.iter().position(|again| again.copy == number) {
            self.failover.waiting.remove(at);
            self.failover.unlooked = self.failover.unlooked.min(self.failover.waiting.len());
        }
        self.outcomes.copies.forget(number);
    }

    /// Ends the waits whose time is up, or all of them if the broker is closed.
    pub(super) fn end_waits(&mut self, now: Instant) {
        let mut next: Option<Instant> = None;
        for _ in 0..self.failover.waiting.len() {
            let Some(again) = self.failover.waiting.pop_front() else { break };
            let deadline = self.outcomes.copies.get(again.copy).map_or(now, |copy| copy.deadline);
            if self.closed {
                self.give_up(again.copy, Reason::BrokerClosed);
            } else if deadline <= now {
                self.give_up(again.copy, again.reason);
            } else {
                next = Some(sys::earlier(next, deadline));
                self.failover.waiting.push_back(again);
            }
        }
        if let Some(next) = next {
            // If no timer can be set, the handle tries again.
            let _ = self.handle.wake_at(next, now);
        }
    }

    /// Offers a copy to a backend that was not tried yet.
    fn try_next(&mut self, number: u32, now: Instant) -> Next {
        let Some(copy) = self.outcomes.copies.get(number).filter(|copy| copy.deadline > now) else {
            return Next::Nobody;
        };
        if self.closed {
            return Next::Nobody;
        }
        let needs = copy.content.needs();
        let chosen = match self.choose_of_many(needs, number, now) {
            Ok(chosen) => chosen,
            Err(Some((_, Obstacle::Full(_)))) => return Next::Waits,
            Err(_) => return Next::Nobody,
        };
        let Chosen { index, place: Vacancy { slot, .. } } = chosen;
        let Some(copy) = self.outcomes.copies.get_mut(number) else { return Next::Nobody };
        let OfferCopy { facts, cookie, deadline, .. } = *copy;
        // Out of its place while it is read.
        let content = mem::take(&mut copy.content);
        let deadline = self.attempt_deadline(deadline, now);
        let placed = content.with_parts(|parts| {
            let mut placing = Placing { facts, parts, len: needs.len, cookie, deadline };
            self.place(chosen, &mut placing, now)
        });
        let Some(copy) = self.outcomes.copies.get_mut(number) else { return Next::Nobody };
        copy.content = content;
        if placed.is_err() {
            return Next::Nobody;
        }
        copy.tried.add(index);
        copy.waits = false;
        (copy.backend, copy.slot) = (index as u32, slot);
        self.outcomes.statistics.failovers += 1;
        Next::Placed
    }

    /// The verdict on an offer that no other backend gets.
    fn give_up(&mut self, number: u32, reason: Reason) {
        if let Some(copy) = self.outcomes.copies.get(number) {
            let Facts { id, user_data, awaited, .. } = copy.facts;
            let verdict = Verdict {
                id,
                user_data,
                adopted: false,
                reason: Some(reason),
                may_have_reached: copy.may_have_reached,
                backend: copy.backend,
                attempts: copy.tried.count,
                kind: 0,
            };
            self.outcomes.statistics.fallbacks[reason as usize] += 1;
            self.outcomes.decide(verdict, awaited);
            self.outcomes.copies.forget(number);
        }
    }

    /// Whether there is a backend that was not tried yet and takes an offer. Of offers that are
    /// late at the same time, only the first looks at all backends in vain.
    pub(super) fn can_fail_over(&mut self, number: u32, now: Instant) -> bool {
        let Some(copy) = self.outcomes.copies.get(number) else { return false };
        let (needs, tried) = (copy.content.needs(), &copy.tried);
        if self.failover.no_takers.is_some_and(|(at, least)| at == now && needs.are_at_least(least))
        {
            return false;
        }
        let queue_bytes = self.options.queue_bytes;
        let (mut any, mut untried) = (false, false);
        for (index, member) in self.members.iter().enumerate() {
            if member.would_take(needs, queue_bytes, now).is_ok() {
                any = true;
                untried |= !tried.has(index);
                if untried {
                    break;
                }
            }
        }
        if !any {
            self.failover.no_takers = Some((now, needs));
        }
        untried
    }
}
