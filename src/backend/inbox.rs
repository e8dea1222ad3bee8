//! Where packets are received. Of some small ones those behind the first are looked at when the
//! arrivals of what came before are taken: so verdicts on those go out before others are checked,
//! and the broker has something to do meanwhile. All came before any of these verdicts, so none
//! reuses a slot of another.

use crate::memory::{self, NoMemory};
use crate::sys::arrived::Arrived;
use crate::sys::{Received, packet};
use crate::wire::{MAX_DESCRIPTORS, MAX_FRAME_LEN};

/// Copying a longer packet would take longer than keeping it helps.
const MOST_KEPT: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Room for packets and their descriptors.
    pub buffer: Vec<u8>,
    pub descriptors: [Vec<Arrived>; packet::PACKETS_AT_ONCE],
    pub kept: Kept,
}

/// Packets of one channel that are looked at later.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The place of the channel.
    channel: usize,
    packets: [Packet; packet::PACKETS_AT_ONCE - 1],
    /// So many of them were looked at, of so many that were kept.
    opened: usize,
    count: usize,
}

#[derive(Debug, Default)]
pub(super) struct Packet {
    /// What the system said of it.
    pub received: Received,
    pub bytes: Vec<u8>,
    pub descriptors: Vec<Arrived>,
}

impl Inbox {
    pub(super) fn new() -> Result<Inbox, NoMemory> {
        let descriptors = || memory::vec(MAX_DESCRIPTORS + 1, "descriptors");
        let mut inbox = Inbox {
            buffer: memory::vec(packet::room_len(MAX_FRAME_LEN), "packets")?,
            ..Inbox::default()
        };
        for list in &mut inbox.descriptors {
            *list = descriptors()?;
        }
        for packet in &mut inbox.kept.packets {
            packet.bytes = memory::vec(MOST_KEPT, "packets")?;
            packet.descriptors = descriptors()?;
        }
        Ok(inbox)
    }
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.opened == self.count
    }

    /// Whether there are packets of a channel.
    pub(super) fn is_of(&self, channel: usize) -> bool {
        self.channel == channel && !self.is_empty()
    }

    /// Keeps a packet if it is small, and there is a place; says whether it does. Those of another
    /// channel are taken first. All that are kept have at most so many descriptors, which nobody
    /// has checked.
    pub(super) fn keep(
        &mut self,
        channel: usize,
        received: Received,
        bytes: &[u8],
        descriptors: &mut Vec<Arrived>,
        most: usize,
    ) -> bool {
        if self.is_empty() {
            (self.channel, self.opened, self.count) = (channel, 0, 0);
        }
        let kept = self.packets.iter().map(|packet| packet.descriptors.len()).sum::<usize>();
        let keeps = bytes.len() <= MOST_KEPT && kept + descriptors.len() <= most;
        let Some(packet) = self.packets.get_mut(self.count).filter(|_| keeps) else {
            return false;
        };
        packet.received = received;
        packet.bytes.clear();
        packet.bytes.extend_from_slice(bytes);
        packet.descriptors.append(descriptors);
        self.count += 1;
        true
    }

    /// The next packet, which is not kept any more, and its channel.
    pub(super) fn take(&mut self) -> Option<(usize, &mut Packet)> {
        let packet = self.packets[..self.count].get_mut(self.opened)?;
        self.opened += 1;
        Some((self.channel, packet))
    }

    /// Closes the copies that a child of fork(2) has, and changes nothing about the connections.
    pub(super) fn close_copies(&mut self) {
        for packet in &mut self.packets {
            packet.descriptors.drain(..).map(Arrived::accept).for_each(drop);
        }
    }

    /// Forgets the packets of a channel that its broker broke.
    pub(super) fn forget(&mut self, channel: usize) {
        if self.channel == channel {
            (self.opened, self.count) = (0, 0);
            self.packets.iter_mut().for_each(|packet| packet.descriptors.clear());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_descriptors_are_kept_as_can_be_offered_and_no_more() {
        let mut kept = Inbox::new().unwrap().kept;
        let files = |count| -> Vec<Arrived> {
            let file = || Arrived::new(tempfile::tempfile().unwrap().into());
            (0..count).map(|_| file()).collect()
        };
        let mut keep = |count, most| {
            let mut descriptors = files(count);
            let keeps = kept.keep(0, Received::default(), b"packet", &mut descriptors, most);
            assert_eq!(descriptors.len(), if keeps { 0 } else { count });
            keeps
        };
        assert!(!keep(3, 2));
        assert!(keep(2, 3));
        assert!(!keep(2, 3));
        assert!(keep(1, 3));
        assert_eq!(kept.take().unwrap().1.descriptors.len(), 2);
        assert_eq!(kept.take().unwrap().1.descriptors.len(), 1);
        assert!(kept.is_empty());
    }
}
