//! What a backend does with its channels: receiving, sending, and ending them.

use std::time::Instant;

use super::batch::BATCH_PAUSE;
use super::channel::{Channel, End, Which};
use super::{Backend, BackendError};
use crate::sys::event::Events;
use crate::wire::Refusal;

/// What is left to do for the channels after a dispatch.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// The system was short of something for what a channel has to send.
    pub short: bool,
    /// It was short of memory for something to receive, which is not watched for a while.
    pub unreceived: bool,
    /// There may be something to receive that had no turn in the last dispatch.
    pub behind: bool,
    /// A broker has stopped receiving, and what it sent before is to be received.
    pub unheard: bool,
}

impl Unfinished {
    pub(super) fn any(&self) -> bool {
        let Unfinished { short, unreceived, behind, unheard } = *self;
        short || unreceived || behind || unheard
    }
}

impl Backend {
    /// Receives what is there on a channel.
    pub(super) fn receive(&mut self, index: usize, which: Which) {
        let Some(events) = self.handle.events() else { return };
        self.inbox.from = index;
        let channel = &mut self.channels[index];
        let awaited_hello = channel.hello_by().is_some();
        let (inbox, arrivals) = (&mut self.inbox, &mut self.arrivals);
        let received = channel.receive(index, which, inbox, events, arrivals);
        if awaited_hello && channel.slots.is_some() {
            self.accepting.awaiting_hello -= 1;
        }
        let unsent = channel.is_unsent(self.arrivals.draining);
        self.unfinished.unreceived |= channel.unreceived().is_some();
        // Descriptors of packets that broke the channel, or came behind such a one.
        inbox.descriptors.iter_mut().for_each(Vec::clear);
        match received {
            Err(End::OtherVersion) => self.turn_away(index, Refusal::VERSION),
            Err(End::Short(error)) => {
                channel.say(&Refusal::short(error));
                self.end(index, End::Gone);
            }
            Err(end) => self.end(index, end),
            Ok(more) => {
                match which {
                    Which::Next => inbox.unread = more.then_some(index),
                    _ => self.unfinished.behind |= more,
                }
                if unsent {
                    self.mark_dirty(index);
                }
            }
        }
    }

    /// Receives from the only channel without asking what has happened; says whether anything came. Not
    /// if that was asked more than a millisecond ago, so that who else connects is not left waiting, and
    /// not without a timer that fires within another: an edge that came for them is not told again.
    pub(super) fn receive_first(&mut self) -> bool {
        let index = self.inbox.from;
        let only = self.accepting.connected == 1
            && self.channels.get(index).is_some_and(Channel::awaits_packets);
        if !only {
            return false;
        }
        let now = Instant::now();
        let looked = now.saturating_duration_since(self.looked_at) < BATCH_PAUSE;
        let fires = |events: &mut Events| events.timer.fires_by(now + BATCH_PAUSE, now);
        if !looked || !self.handle.events().is_some_and(fires) {
            return false;
        }
        let before = self.inbox.packets;
        self.receive(index, self.few());
        self.inbox.packets > before
    }

    /// Which packets a channel's turn begins with. With several channels, the tokens that go out between
    /// the packets would give one all turns. A backend that drains takes all that it may hold: when it
    /// holds nothing, it ends. A broker has no more offers than it has tokens.
    pub(super) fn few(&self) -> Which {
        match self.accepting.connected {
            _ if self.arrivals.draining => Which::Holdable,
            1 if self.inbox.is_one_by_one() => Which::Next,
            _ => Which::Few,
        }
    }

    /// Receives the next packet of this turn; says whether there may be one.
    pub(super) fn receive_next(&mut self) -> bool {
        let Some(index) = self.inbox.unread.take() else { return false };
        if self.inbox.is_over() || self.arrivals.rooms.is_over() {
            self.unfinished.behind = true;
            self.tell_of_what_is_behind();
            return false;
        }
        self.receive(index, Which::Next);
        true
    }

    /// Tells those who watch the descriptor edge-triggered of what had no turn: of that there was an
    /// edge before. If there can be no other, a timer must do.
    pub(super) fn tell_of_what_is_behind(&mut self) {
        if let (true, Some(events)) = (self.unfinished.behind, self.handle.events()) {
            let _ = events.tell_again() || self.batch.set_timer(events);
        }
    }

    pub(super) fn mark_dirty(&mut self, index: usize) {
        let channel = &mut self.channels[index];
        if channel.is_connected() && !channel.dirty {
            channel.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Sends the brokers what waits to be sent.
    pub(super) fn flush(&mut self) {
        while let Some(index) = self.dirty.pop() {
            self.channels[index].dirty = false;
            self.flush_channel(index);
        }
        self.batch.sent();
    }

    pub(super) fn flush_channel(&mut self, index: usize) {
        let Some(events) = self.handle.events() else { return };
        let channel = &mut self.channels[index];
        let flushed = channel.flush(events, &mut self.arrivals);
        self.unfinished.short |= channel.is_short();
        match flushed {
            Err(end) => self.end(index, end),
            Ok(()) if channel.is_deaf() => {
                // In the next dispatch, as the end of any channel.
                self.unfinished.unheard = true;
                let _ = self.wake_now();
            }
            Ok(()) => {}
        }
    }

    /// Receives what brokers sent before they stopped receiving, and ends their channels.
    pub(super) fn receive_last(&mut self) {
        if !std::mem::take(&mut self.unfinished.unheard) {
            return;
        }
        for index in 0..self.channels.len() {
            if self.channels[index].is_deaf() {
                self.receive(index, Which::All);
            }
        }
    }

    /// Sends again what the system was short of something for.
    pub(super) fn try_again(&mut self) {
        if !std::mem::take(&mut self.unfinished.short) {
            return;
        }
        for index in 0..self.channels.len() {
            if self.channels[index].try_again() {
                self.mark_dirty(index);
            }
        }
    }

    /// Watches again what the system was short of memory to receive. Called after a wait, so that
    /// it is told of in the next one.
    pub(super) fn watch_again(&mut self) -> Result<(), BackendError> {
        if !std::mem::take(&mut self.unfinished.unreceived) {
            return Ok(());
        }
        let Some(events) = self.handle.events() else { return Ok(()) };
        let now = Instant::now();
        for channel in &mut self.channels {
            channel.watch_again(events, now);
        }
        match self.channels.iter().filter_map(Channel::unreceived).min() {
            Some(until) => {
                self.unfinished.unreceived = true;
                Ok(self.handle.wake_at(until, now)?)
            }
            None => Ok(()),
        }
    }

    /// Ends a channel before its hello was taken, and tells the broker why.
    pub(super) fn turn_away(&mut self, index: usize, refusal: Refusal) {
        self.channels[index].say(&refusal);
        self.arrivals.turned_away(&refusal);
        self.end(index, End::Gone);
    }

    /// Ends a channel. What its broker offered can still be adopted if the broker has gone. If it
    /// broke the channel, every descriptor that it offered is closed, and arrivals that the caller
    /// has not taken are forgotten.
    pub(super) fn end(&mut self, index: usize, end: End) {
        let channel = &mut self.channels[index];
        if self.handle.events().is_some_and(|events| channel.close(events)) {
            self.accepting.connected -= 1;
            if channel.slots.is_some() {
                self.orphans.push(index);
            } else {
                self.accepting.awaiting_hello -= 1;
                self.accepting.leave(index, channel.broker.user);
            }
        }
        if end != End::Broken {
            return;
        }
        self.arrivals.statistics.broken += 1;
        let Some(slots) = &mut channel.slots else { return };
        let forgotten = slots.close_held(&mut self.arrivals.rooms);
        self.arrivals.statistics.taken_back += forgotten as u64;
        let channels = &self.channels;
        self.arrivals.add_stale(forgotten, |place| {
            let slots = channels.get(place.channel).and_then(|channel| channel.slots.as_ref());
            slots.is_some_and(|slots| slots.holds(place.slot, place.serial))
        });
    }

    /// Frees what the last arrivals leave behind: room that is not kept, and channels whose broker
    /// has gone and of which nothing is held. Not at once, because the caller may still read the
    /// bytes.
    pub(super) fn clear_up(&mut self) {
        let (rooms, channels) = (&mut self.arrivals.rooms, &mut self.channels);
        rooms.begin_turn();
        let accepting = &mut self.accepting;
        self.orphans.retain(|&index| {
            let channel = &mut channels[index];
            let held = channel.slots.as_ref().is_some_and(|slots| slots.held() > 0);
            if !held {
                channel.slots = None;
                accepting.leave(index, channel.broker.user);
            }
            held
        });
        if accepting.connected == 0 && self.orphans.is_empty() {
            rooms.clear();
        }
    }
}
