//! Taking offers back: one, on which the caller or the backend was first, or all of them at the end.

use std::time::Instant;

use super::channel::Claimed;
use super::copies::OfferCopy;
use super::member::Link;
use super::outcomes::{End, Ledger};
use super::{Broker, BrokerError, COPIED, SLOT_BITS};
use crate::reason::Reason;
use crate::wire::MAX_SLOTS;

impl Broker {
    /// Takes an offer back. After `Ok` the connection is the broker's and no verdict comes for it.
    pub fn take_back(&mut self, id: u64) -> Result<(), BrokerError> {
        self.take_back_from(false, id)
    }

    /// Takes an offer back whose caller waits for it, or one that nobody waits for. The others are
    /// not the caller's.
    pub(super) fn take_back_from(&mut self, awaited: bool, id: u64) -> Result<(), BrokerError> {
        let now = Instant::now();
        // No offer is in flight in a handle that is not open, so this does not open it.
        self.check()?;
        let waits = self.copy(id).filter(|(_, copy)| copy.waits && copy.facts.awaited == awaited);
        if let Some((number, _)) = waits {
            self.end_wait(number);
            self.outcomes.statistics.taken_back += 1;
            return Ok(());
        }
        let Some((index, slot)) = self.find(id) else {
            return Err(BrokerError::TooLate { id });
        };
        let member = &mut self.members[index];
        let Link::Up(channel) = &mut member.link else {
            return Err(BrokerError::TooLate { id });
        };
        let found = channel.slots.find(slot, id);
        let Some(found) = found.filter(|found| found.facts.awaited == awaited) else {
            return Err(BrokerError::TooLate { id });
        };
        let (facts, known) = (found.facts, self.outcomes.verdicts.len());
        let Claimed { adopted, broken } = channel.claim(slot);
        let broken = broken.then_some(Reason::IntegrityMismatch);
        if adopted {
            let mut ledger = Ledger::new(&mut self.outcomes, &mut member.tally, index, now);
            ledger.ended(&facts, End::Adopted(broken));
        } else {
            member.tally.took_back(&facts, now);
            self.outcomes.copies.forget(facts.copy);
            self.outcomes.statistics.taken_back += 1;
            self.failover.looked_in_vain = 0;
        }
        // If no timer can be set, something else wakes the caller.
        if let Some(reason) = broken {
            self.hang_up(index, reason, now);
            // Those that were in flight beside it may go on.
            let _ = self.flush_and_tell(known, now);
        } else {
            // Its channel may have waited for this one.
            let _ = self.arm(index, now);
            if self.outcomes.verdicts.len() > known {
                let _ = self.handle.wake_at(now, now);
            }
        }
        self.tell_of_room(now);
        if adopted { Err(BrokerError::TooLate { id }) } else { Ok(()) }
    }

    /// The copy of an offer, if it has one, and the number of that.
    pub(super) fn copy(&self, id: u64) -> Option<(u32, &OfferCopy)> {
        let number = u32::try_from(id & (COPIED - 1)).ok().filter(|_| id & COPIED != 0)?;
        let copy = self.outcomes.copies.get(number).filter(|copy| copy.facts.id == id)?;
        Some((number, copy))
    }

    /// The backend and the slot of an offer that may be in flight.
    pub(super) fn find(&self, id: u64) -> Option<(usize, u32)> {
        let (index, slot) = if id & COPIED != 0 {
            let (_, copy) = self.copy(id)?;
            (copy.backend as usize, copy.slot)
        } else {
            let place = id & (COPIED - 1);
            ((place >> SLOT_BITS) as usize, (place & (MAX_SLOTS as u64 - 1)) as u32)
        };
        (index < self.members.len()).then_some((index, slot))
    }

    /// Takes back every offer in flight and closes the channels. Take their verdicts with
    /// [`next_verdict`](Broker::next_verdict); nothing can be offered any more.
    pub fn close(&mut self) -> Result<(), BrokerError> {
        let now = Instant::now();
        // Closing does not open a handle.
        if self.handle.is_open() || self.closed {
            self.enter(now)?;
        }
        self.closed = true;
        for index in 0..self.members.len() {
            self.hang_up(index, Reason::BrokerClosed, now);
        }
        self.fail_over(now);
        self.end_waits(now);
        Ok(())
    }

    /// Gives an offer that cannot be taken back its verdict, by ending the channel of the backend
    /// that has it. No other backend gets it.
    pub(super) fn end_here(&mut self, id: u64) {
        let now = Instant::now();
        let Some((index, slot)) = self.find(id) else { return };
        let slot = self.members[index].channel().and_then(|channel| channel.slots.find(slot, id));
        // Otherwise it has its verdict.
        let Some(copy) = slot.map(|slot| slot.facts.copy) else { return };
        if let Some(copy) = self.outcomes.copies.get_mut(copy) {
            copy.deadline = now;
        }
        self.hang_up(index, Reason::BackendUnavailable, now);
        // The others that were in flight there go on.
        let _ = self.flush_at(now);
    }
}
