//! Where packets are received, and how many at once. Where there is one channel, the next of several
//! small ones is received when the arrivals of the one before are taken: so verdicts on those go out
//! before the next is copied and checked, and the broker has something to do meanwhile.

use crate::memory::{self, NoMemory};
use crate::sys::arrived::Arrived;
use crate::sys::packet;
use crate::wire::{MAX_DESCRIPTORS, MAX_FRAME_LEN};

/// For so many turns after one that brought several packets, they are received one by one. To ask
/// for several costs less where there is only one: one call tells that it is all there is.
const TURNS: u8 = 16;

/// So many packets are enough for a turn, if they are received one by one.
const ENOUGH: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Room for packets and their descriptors.
    pub buffer: Vec<u8>,
    pub descriptors: [Vec<Arrived>; packet::PACKETS_AT_ONCE],
    /// How many packets came in this turn.
    pub packets: usize,
    /// One of them brought many offers or bytes: then the broker has something to do, and others wait
    /// for the next turn.
    pub large: bool,
    /// For so many turns they are received one by one.
    one_by_one: u8,
    /// The channel that was last received from. It may be another's by now; but where one is connected,
    /// and this place is, it is that one.
    pub from: usize,
    /// The channel that may have another packet in this turn.
    pub unread: Option<usize>,
}

impl Inbox {
    pub(super) fn new() -> Result<Inbox, NoMemory> {
        let mut inbox = Inbox {
            buffer: memory::vec(packet::room_len(MAX_FRAME_LEN), "packets")?,
            ..Inbox::default()
        };
        for list in &mut inbox.descriptors {
            *list = memory::vec(MAX_DESCRIPTORS + 1, "descriptors")?;
        }
        Ok(inbox)
    }

    /// Begins the next turn.
    pub(super) fn begin_turn(&mut self) {
        self.one_by_one = match self.packets {
            _ if self.large => 0,
            0 => self.one_by_one,
            1 => self.one_by_one.saturating_sub(1),
            _ => TURNS,
        };
        (self.packets, self.large, self.unread) = (0, false, None);
    }

    /// Whether packets are received one by one in this turn.
    pub(super) fn is_one_by_one(&self) -> bool {
        self.one_by_one > 0
    }

    /// Whether this turn has brought as much as one may: then brokers that connect and other events
    /// have theirs.
    pub(super) fn is_over(&self) -> bool {
        self.large || self.packets >= ENOUGH
    }
}
