//! Where packets are received. Of two small ones the second is looked at when the arrivals of the first
//! are taken: so verdicts on those go out before others are checked, and the broker has something to do
//! meanwhile. Both came before any of these verdicts, so the second reuses no slot of the first.

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
    pub descriptors: [Vec<Arrived>; packet::AT_ONCE],
    pub kept: Kept,
}

/// A packet that is looked at later.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The place of its channel, and what the system said of it.
    packet: Option<(usize, Received)>,
    bytes: Vec<u8>,
    descriptors: Vec<Arrived>,
}

impl Inbox {
    pub(super) fn new() -> Result<Inbox, NoMemory> {
        let descriptors = || memory::vec(MAX_DESCRIPTORS + 1, "descriptors");
        let bytes = memory::vec(MOST_KEPT, "packets")?;
        Ok(Inbox {
            buffer: memory::vec(packet::AT_ONCE * MAX_FRAME_LEN, "packets")?,
            descriptors: [descriptors()?, descriptors()?],
            kept: Kept { packet: None, bytes, descriptors: descriptors()? },
        })
    }
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.packet.is_none()
    }

    /// Keeps a packet of a channel if it is small, and there is none; says whether it does.
    pub(super) fn keep(
        &mut self,
        channel: usize,
        received: Received,
        bytes: &[u8],
        descriptors: &mut Vec<Arrived>,
    ) -> bool {
        let keeps = self.is_empty() && bytes.len() <= MOST_KEPT;
        if keeps {
            self.packet = Some((channel, received));
            self.bytes.clear();
            self.bytes.extend_from_slice(bytes);
            self.descriptors.append(descriptors);
        }
        keeps
    }

    /// The packet, which is not kept any more: its channel, what the system said of it, its bytes and
    /// its descriptors.
    pub(super) fn take(&mut self) -> Option<(usize, Received, &[u8], &mut Vec<Arrived>)> {
        let (channel, received) = self.packet.take()?;
        Some((channel, received, &self.bytes, &mut self.descriptors))
    }

    /// Closes the copies that a child of fork(2) has, and changes nothing about the connections.
    pub(super) fn close_copies(&mut self) {
        self.descriptors.drain(..).map(Arrived::accept).for_each(drop);
    }

    /// Forgets the packet of a channel that its broker broke.
    pub(super) fn forget(&mut self, channel: usize) {
        if self.packet.is_some_and(|(of, _)| of == channel) {
            self.packet = None;
            self.descriptors.clear();
        }
    }
}
