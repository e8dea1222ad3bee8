//! Channels as they come and go: connecting, deadlines, the end, and what is due when.

use std::time::Instant;

use super::Broker;
use super::channel::Channel;
use super::down::WhyDown;
use super::member::Link;
use super::outcomes::Ledger;
use crate::handle::HandleError;
use crate::reason::Reason;

impl Broker {
    /// Does what the time says at one backend: deadlines, the welcome, the next attempt to connect.
    pub(super) fn tick(&mut self, index: usize, now: Instant) {
        // First: what is adopted is not late.
        let _ = self.with_channel(index, now, |channel, ledger| {
            channel.look_at_words(ledger);
            Ok(())
        });
        while let Some(channel) = self.members[index].channel() {
            if channel.greeted_by().is_some_and(|deadline| deadline <= now) {
                self.hang_up(index, Reason::BackendUnavailable, now);
            } else if let Some(slot) = channel.expired(now) {
                self.expire(index, slot, now);
            } else {
                break;
            }
        }
        let member = &self.members[index];
        let in_use = member.is_in_use() && !self.closed;
        match &member.link {
            Link::Down { retry_at, .. } if in_use && *retry_at <= now => {
                match self.connect(index, now) {
                    Ok(channel) => self.members[index].link = Link::Up(Box::new(channel)),
                    Err(why_down) => {
                        let retry_at = self.failed(index, why_down, now);
                        self.members[index].link = Link::Down { retry_at, first: false };
                    }
                }
            }
            Link::Up(channel) if channel.slots.in_flight() == 0 => {
                if !in_use {
                    self.hang_up(index, Reason::BrokerClosed, now);
                } else if channel.draining && member.successor_at <= now {
                    self.succeed(index, now);
                }
            }
            _ => {}
        }
        self.touch(index);
    }

    /// Takes back an offer whose deadline is past. If that is only what one of several backends may
    /// take, and no other can have it, it stays until there is one or the offer's deadline is past.
    fn expire(&mut self, index: usize, slot: u32, now: Instant) {
        let Some(channel) = self.members[index].channel() else { return };
        let Some(facts) = channel.slots.slot(slot).map(|slot| slot.facts) else { return };
        let copy = self.outcomes.copies.get(facts.copy).filter(|copy| copy.deadline > now);
        let last = copy.map(|copy| copy.deadline);
        if let Some(last) = last.filter(|_| !self.can_fail_over(facts.copy, now)) {
            let deadline = self.attempt_deadline(last, now);
            if let Some(channel) = self.members[index].channel() {
                channel.slots.put_off(slot, deadline);
            }
            return;
        }
        self.failover.looked_in_vain = 0;
        let taken_back = self.with_channel(index, now, |channel, ledger| {
            channel.take_back(slot, Reason::AckTimeout, ledger).map(drop)
        });
        if let Err(reason) = taken_back {
            self.hang_up(index, reason, now);
        }
        // Now, so that the next one that is late sees what room there is left.
        self.fail_over(now);
    }

    /// Runs `body` with a backend's channel, if there is one, and where to write down what happens.
    pub(super) fn with_channel(
        &mut self,
        index: usize,
        now: Instant,
        body: impl FnOnce(&mut Channel, &mut Ledger<'_>) -> Result<(), Reason>,
    ) -> Result<(), Reason> {
        let member = &mut self.members[index];
        let Link::Up(channel) = &mut member.link else { return Ok(()) };
        let (outcomes, tally) = (&mut self.outcomes, &mut member.tally);
        body(channel, &mut Ledger::new(outcomes, tally, index, now))
    }

    fn connect(&mut self, index: usize, now: Instant) -> Result<Channel, WhyDown> {
        let member = &mut self.members[index];
        member.renew_limits(&self.options)?;
        let slots = member.settings.max_in_flight.unwrap_or(self.options.max_in_flight);
        let channel = Channel::connect(&member.path, slots, &self.options, index as u64, now)?;
        if let Some(events) = self.handle.events() {
            channel.watch(events).map_err(|error| {
                let code = error.raw_os_error().unwrap_or(libc::ENOMEM);
                WhyDown::System("watch the channel", code)
            })?;
        }
        Ok(channel)
    }

    /// An attempt to connect failed: when to try again.
    fn failed(&mut self, index: usize, why_down: WhyDown, now: Instant) -> Instant {
        let member = &mut self.members[index];
        member.why_down = Some(why_down);
        member.tally.counts.failed_connects += 1;
        member.next_attempt(&self.options, now)
    }

    /// There is a new socket at the path: it is tried at once, whatever became of the one before.
    pub(super) fn start_over(&mut self, index: usize, now: Instant) {
        let member = &mut self.members[index];
        if let Link::Down { retry_at, .. } = &mut member.link {
            *retry_at = now;
            member.reset_pause(&self.options);
            self.tick(index, now);
        }
    }

    /// Connects to the successor of a backend that drains, which has finished all that was in
    /// flight.
    fn succeed(&mut self, index: usize, now: Instant) {
        match self.connect(index, now) {
            Ok(channel) => {
                let next = Link::Up(Box::new(channel));
                let member = &mut self.members[index];
                // That one may drain as well.
                member.successor_at = member.next_attempt(&self.options, now);
                let before = std::mem::replace(&mut member.link, next);
                if let (Link::Up(channel), Some(events)) = (before, self.handle.events()) {
                    channel.end(events);
                }
            }
            Err(_) => {
                let member = &mut self.members[index];
                member.successor_at = member.next_attempt(&self.options, now);
            }
        }
    }

    /// Ends a channel: what is in flight is taken back, or was adopted.
    pub(super) fn hang_up(&mut self, index: usize, reason: Reason, now: Instant) {
        let member = &mut self.members[index];
        let retry_at = member.next_attempt(&self.options, now);
        let first = member.channel().is_some_and(|channel| channel.welcome.is_ok());
        let down = Link::Down { retry_at, first };
        if let Link::Up(mut channel) = std::mem::replace(&mut member.link, down) {
            let (outcomes, tally) = (&mut self.outcomes, &mut member.tally);
            let mut ledger = Ledger::new(outcomes, tally, index, now);
            let mut last = Err(reason);
            if reason != Reason::IntegrityMismatch {
                // What the backend said last may be here already.
                last = channel.receive_last(self.buffer.spare_capacity_mut(), &mut ledger);
            }
            member.why_down = Some(channel.why_ended(last));
            if channel.welcome.is_err() && reason != Reason::BrokerClosed {
                ledger.tally.counts.failed_connects += 1;
            }
            channel.settle_all(reason, &mut ledger);
            if let Some(events) = self.handle.events() {
                channel.end(events);
            }
        }
        if first {
            // Its number may be another one's before its phase is noted.
            self.look_at_the_waiting(now);
        }
        self.touch(index);
        if self.members[index].leaving && !self.members[index].gone {
            self.forget(index);
        }
    }

    /// Notes that a backend's timer may have to be set, and that there may be something to send.
    pub(super) fn touch(&mut self, index: usize) {
        let member = &mut self.members[index];
        if !member.touched {
            member.touched = true;
            self.touched.push(index as u32);
        }
    }

    /// Makes sure that the descriptor is readable when something is due at a backend.
    pub(super) fn arm(&mut self, index: usize, now: Instant) -> Result<(), HandleError> {
        self.note_phase(index, now);
        match self.members[index].due(self.wanted.is_some(), now) {
            Some(due) if !self.closed => self.handle.wake_at(due, now),
            _ => Ok(()),
        }
    }
}
