//! What a backend does with its channels: receiving, sending, and ending them.

use super::Backend;
use super::channel::End;

impl Backend {
    /// Receives every frame that is there on a channel.
    pub(super) fn receive(&mut self, index: usize) {
        let channel = &mut self.channels[index];
        let awaited_hello = channel.hello_by().is_some();
        let received =
            channel.receive(index, &mut self.buffer, &mut self.descriptors, &mut self.arrivals);
        if awaited_hello && channel.slots.is_some() {
            self.accepting.awaiting_hello -= 1;
        }
        let unsent = channel.is_unsent(self.arrivals.draining);
        // Descriptors of a packet that broke the channel.
        self.descriptors.clear();
        match received {
            Err(end) => self.end(index, end),
            Ok(()) if unsent => self.mark_dirty(index),
            Ok(()) => {}
        }
    }

    pub(super) fn mark_dirty(&mut self, index: usize) {
        let channel = &mut self.channels[index];
        if channel.is_connected() && !channel.dirty {
            channel.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Sends the brokers every verdict that waits.
    pub(super) fn flush(&mut self) {
        while let Some(index) = self.dirty.pop() {
            self.channels[index].dirty = false;
            self.flush_channel(index);
        }
    }

    pub(super) fn flush_channel(&mut self, index: usize) {
        let Some(events) = self.handle.events() else { return };
        let channel = &mut self.channels[index];
        let flushed = channel.flush(index as u64, events, self.arrivals.draining);
        self.short_of_memory |= channel.is_short_of_memory();
        if let Err(end) = flushed {
            self.end(index, end);
        }
    }

    /// Sends again what the system was short of memory for.
    pub(super) fn try_memory_again(&mut self) {
        if !std::mem::take(&mut self.short_of_memory) {
            return;
        }
        for index in 0..self.channels.len() {
            if self.channels[index].try_memory_again() {
                self.mark_dirty(index);
            }
        }
    }

    /// Ends a channel. What its broker offered can still be adopted if the broker has gone. If it
    /// broke the channel, every descriptor that it offered is closed, and arrivals that the caller
    /// has not taken are forgotten.
    pub(super) fn end(&mut self, index: usize, end: End) {
        let channel = &mut self.channels[index];
        if self.handle.events().is_some_and(|events| channel.close(events)) {
            match channel.slots {
                Some(_) => self.orphans = true,
                None => self.accepting.awaiting_hello -= 1,
            }
        }
        if end == End::Gone {
            return;
        }
        self.arrivals.statistics.broken += 1;
        let Some(slots) = &mut channel.slots else { return };
        slots.close_held();
        let held_bytes = &mut self.arrivals.held_bytes;
        self.arrivals.waiting.retain(|place| {
            let others = place.channel != index;
            if !others && slots.find(place.slot, place.serial).is_some() {
                *held_bytes -= slots.release(place.slot).1;
            }
            others
        });
    }

    /// Forgets channels whose broker has gone and of which nothing is held. Not at once, because
    /// the caller may still read the bytes of the last arrival.
    pub(super) fn clear_orphans(&mut self) {
        if !self.orphans {
            return;
        }
        self.orphans = false;
        for channel in self.channels.iter_mut().filter(|channel| !channel.is_connected()) {
            match &channel.slots {
                Some(slots) if slots.held() > 0 => self.orphans = true,
                _ => channel.slots = None,
            }
        }
    }
}
