//! Offering and waiting for the verdict, for programs without an event loop.

use std::time::Instant;

use super::member::{Needs, Obstacle};
use super::offer::Refused;
use super::{Broker, BrokerError, Offer, Verdict};
use crate::sys::event::Wait;

impl Broker {
    /// Offers a connection and waits for its verdict, and before that for the backend's welcome and
    /// for room, for the offer's timeout in all; without a backend it is refused at once. Verdicts
    /// of other offers stay for [`next_verdict`](Broker::next_verdict). A
    /// [`Waker`](crate::handle::Waker) ends the wait: the offer is taken back, unless the backend
    /// has adopted it.
    pub fn offer_and_wait(&mut self, offer: &Offer<'_>) -> Result<Verdict, BrokerError> {
        let verdict = self.offer_and_take(offer);
        let now = Instant::now();
        if !self.outcomes.verdicts.is_empty() {
            // Those of other offers, of which nothing else would tell the caller's loop.
            self.tell_of_others(now);
        }
        self.tell_of_room(now);
        verdict
    }

    fn offer_and_take(&mut self, offer: &Offer<'_>) -> Result<Verdict, BrokerError> {
        let queued = self.queue_in_time(offer);
        let id = queued.map_err(|refused| self.counted(refused))?;
        self.verdict_in_time(id).or_else(|error| {
            // After an error the caller serves the connection, so the backend must not adopt it. A
            // waker has had it taken back already.
            if matches!(error, BrokerError::Woken) || self.take_back_from(true, id).is_ok() {
                return Err(error);
            }
            self.end_here(id);
            self.take_verdict(id).ok_or(error)
        })
    }

    /// Sends the offer and waits for its verdict, which comes at its deadline at the latest.
    fn verdict_in_time(&mut self, id: u64) -> Result<Verdict, BrokerError> {
        self.flush()?;
        let mut woken = false;
        loop {
            if let Some(verdict) = self.take_verdict(id) {
                if woken {
                    // The next wait ends instead.
                    self.handle.waker().wake();
                }
                return Ok(verdict);
            }
            if self.look_for(id) {
                continue;
            }
            if self.handle.woken() {
                woken = true;
                if self.take_back_from(true, id).is_ok() {
                    return Err(BrokerError::Woken);
                }
                // It is too late: the verdict is there.
                continue;
            }
            self.dispatch_after(Wait::Forever)?;
        }
    }

    /// Gives an offer its verdict if it is adopted; says whether it is.
    fn look_for(&mut self, id: u64) -> bool {
        let now = Instant::now();
        let Some((index, slot)) = self.find(id) else { return false };
        let mut adopted = false;
        let _ = self.with_channel(index, now, |channel, ledger| {
            adopted = channel.slots.find(slot, id).is_some() && channel.look(slot, ledger);
            Ok(())
        });
        adopted
    }

    /// Takes the verdict on an offer. Threads that share the broker may wait for others.
    fn take_verdict(&mut self, id: u64) -> Option<Verdict> {
        let awaited = &mut self.outcomes.awaited;
        let place = awaited.iter().position(|verdict| verdict.id == id)?;
        awaited.remove(place)
    }

    fn queue_in_time(&mut self, offer: &Offer<'_>) -> Result<u64, Refused> {
        let start = Instant::now();
        let deadline = offer.deadline(self.options.timeout, start);
        // Connects, if it is time for that.
        self.dispatch_after(Wait::No)?;
        let mut waited = false;
        loop {
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            if waited && left.is_zero() {
                return Err(self.too_late(offer, now));
            }
            let offer = Offer { timeout: Some(left), ..*offer };
            let refused = match self.queue(&offer, true, Instant::now()) {
                Ok(id) => return Ok(id),
                Err(refused) => refused,
            };
            if !self.is_worth_waiting(&refused, deadline) || left.is_zero() {
                return Err(refused);
            }
            if self.handle.woken() {
                return Err(BrokerError::Woken.into());
            }
            waited = true;
            self.dispatch_after(Wait::Until(deadline))?;
        }
    }

    /// Whether there may be room by then for an offer that was refused: because of a backend, and not
    /// of what the caller has passed.
    pub(super) fn is_worth_waiting(&self, refused: &Refused, deadline: Instant) -> bool {
        let connects = || !self.closed && self.members.iter().any(|it| it.is_connecting(deadline));
        let finds = || refused.error.kind().may_pass() && self.is_finding_backends();
        refused.error.is_full() || (refused.by.is_some() && connects()) || finds()
    }

    /// Whether an offer would be refused now, though there may be room by then: so would all that need
    /// as much, up to the needs that it returns. The timers are set that tell when it would be taken.
    pub(super) fn would_refuse_for_now(
        &mut self,
        needs: Needs,
        deadline: Instant,
    ) -> Option<Needs> {
        if self.closed {
            return None;
        }
        let now = Instant::now();
        let most = match self.taker(needs, now) {
            Ok(_) => return None,
            Err(Some((index, Obstacle::Full(_)))) => {
                self.members[index].channel().map_or(needs, |channel| channel.largest())
            }
            Err(why) if self.is_worth_waiting(&self.refused(why), deadline) => needs,
            Err(_) => return None,
        };
        self.want(needs, now);
        Some(most)
    }
}
