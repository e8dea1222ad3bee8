//! The channel as it comes and goes: connecting, deadlines, and the end.

use std::time::{Duration, Instant};

use super::channel::Channel;
use super::peer::WhyDown;
use super::{Broker, BrokerError, BrokerOptions};
use crate::reason::Reason;

#[derive(Debug)]
pub(super) enum Link {
    Down { retry_at: Instant },
    Up(Box<Channel>),
}

/// What the next attempt to connect depends on.
#[derive(Debug)]
pub(super) struct Reconnecting {
    /// Between the end of a channel, or the failure to make one, and the next attempt.
    pub next_pause: Duration,
    /// Why there is no channel.
    pub why_down: WhyDown,
}

impl Reconnecting {
    pub(super) fn new(options: &BrokerOptions) -> Reconnecting {
        let why_down = WhyDown::NoBackend(libc::ENOTCONN);
        Reconnecting { next_pause: options.reconnect_min, why_down }
    }
}

impl Broker {
    /// Does what the time says: deadlines, the welcome, the next attempt to connect.
    pub(super) fn tick(&mut self, now: Instant) {
        match &mut self.link {
            Link::Up(channel) => {
                if let Err(reason) = channel.expire(&mut self.outcomes, now) {
                    self.hang_up(reason, now);
                }
            }
            Link::Down { retry_at } if *retry_at <= now && !self.closed => {
                match self.connect(now) {
                    Ok(channel) => self.link = Link::Up(Box::new(channel)),
                    Err(why_down) => {
                        self.reconnecting.why_down = why_down;
                        self.link = self.down(now);
                    }
                }
            }
            Link::Down { .. } => {}
        }
    }

    /// A link that is down for a pause, which doubles until a backend says welcome.
    fn down(&mut self, now: Instant) -> Link {
        let pause = self.reconnecting.next_pause;
        let retry_at = now.checked_add(pause).unwrap_or(now);
        self.reconnecting.next_pause = (pause * 2).min(self.options.reconnect_max);
        Link::Down { retry_at }
    }

    fn connect(&mut self, now: Instant) -> Result<Channel, WhyDown> {
        let channel = Channel::connect(&self.path, &self.options, now)?;
        if let Some(events) = self.handle.events() {
            channel.watch(events).map_err(|error| {
                let code = error.raw_os_error().unwrap_or(libc::ENOMEM);
                WhyDown::System("watch the channel", code)
            })?;
        }
        Ok(channel)
    }

    /// Ends the channel: what is in flight is taken back, or was adopted.
    pub(super) fn hang_up(&mut self, reason: Reason, now: Instant) {
        let down = self.down(now);
        if let Link::Up(mut channel) = std::mem::replace(&mut self.link, down) {
            let mut last = Err(reason);
            if reason != Reason::IntegrityMismatch {
                // What the backend said last may be here already, even behind an error: the kernel
                // tells that first (sock_error in unix_dgram_recvmsg, net/unix/af_unix.c).
                last = channel.receive(&mut self.buffer, &mut self.outcomes, now);
            }
            self.reconnecting.why_down = channel.why_ended(last);
            if channel.offers.in_flight() > 0 && !self.closed && !channel.draining {
                self.outcomes.record_failure(now);
            }
            channel.settle_all(reason, &mut self.outcomes, now);
            if let Some(events) = self.handle.events() {
                channel.unwatch(events);
            }
        }
    }

    /// Makes sure that the descriptor is readable when something is due.
    pub(super) fn arm(&mut self, now: Instant) -> Result<(), BrokerError> {
        let due = match &self.link {
            Link::Down { .. } if self.closed => None,
            Link::Down { retry_at, .. } => Some(*retry_at),
            Link::Up(channel) => {
                let deadline = channel.offers.earliest().map(|(_, deadline)| deadline);
                let times = [deadline, channel.welcome.err(), channel.try_again];
                times.into_iter().flatten().min()
            }
        };
        match due {
            Some(due) => Ok(self.handle.wake_at(due, now)?),
            None => Ok(()),
        }
    }
}
