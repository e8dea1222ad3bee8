//! The limits of a backend.

use super::{BackendError, Kinds};
use crate::listener::ListenerOptions;
use crate::wire::{HEADER_LEN, MAX_FRAME_LEN, MAX_SLOTS, OFFER_LEN};

/// The limits of a [`Backend`](super::Backend). Out-of-range values are clamped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendOptions {
    /// Permission bits of the socket's file, see [`ListenerOptions`].
    pub mode: u32,
    /// Brokers that may wait to be accepted, see [`ListenerOptions`].
    pub backlog: i32,
    /// Users that may connect. If this and `groups` are empty, the default of
    /// [`Policy`](crate::peer::Policy) applies.
    pub users: Vec<u32>,
    /// Groups whose members may connect.
    pub groups: Vec<u32>,
    /// Channels at once: 1 to 65535, 64 by default.
    pub max_channels: usize,
    /// Offers in flight at once on each channel: 1 to 4096, 256 by default. The backend grants each
    /// channel so many tokens.
    pub max_in_flight: usize,
    /// Bytes of preread, metadata and names in one offer: 131000 at most, 64 KiB by default. It is
    /// an error if it is more than `max_held_bytes`.
    pub max_offer_bytes: usize,
    /// Bytes of arrivals held at once, 64 MiB by default. Beyond that, arrivals are rejected with
    /// [`Reason::BackendBusy`](crate::reason::Reason::BackendBusy).
    pub max_held_bytes: usize,
    /// Which sockets to take. It is an error if they are `unconnected` ones alone.
    pub kinds: Kinds,
}

impl BackendOptions {
    /// The options as they are used: clamped, unless they are impossible.
    pub(super) fn checked(self) -> Result<BackendOptions, BackendError> {
        let room = MAX_FRAME_LEN - HEADER_LEN - OFFER_LEN;
        let options = BackendOptions {
            max_channels: self.max_channels.clamp(1, 65535),
            max_in_flight: self.max_in_flight.clamp(1, MAX_SLOTS),
            max_offer_bytes: self.max_offer_bytes.min(room),
            ..self
        };
        let BackendOptions { max_offer_bytes, max_held_bytes, kinds, .. } = options;
        let problem = if max_offer_bytes > max_held_bytes {
            format!(
                "max_offer_bytes ({max_offer_bytes}) is more than max_held_bytes ({max_held_bytes})"
            )
        } else if kinds.are_unconnected_alone() {
            "kinds has unconnected alone: add stream, seqpacket or datagram".into()
        } else {
            return Ok(options);
        };
        Err(BackendError::InvalidOptions { problem })
    }
}

impl Default for BackendOptions {
    fn default() -> BackendOptions {
        let ListenerOptions { mode, backlog, .. } = ListenerOptions::default();
        BackendOptions {
            mode,
            backlog,
            users: Vec::new(),
            groups: Vec::new(),
            max_channels: 64,
            max_in_flight: 256,
            max_offer_bytes: 64 * 1024,
            max_held_bytes: 64 * 1024 * 1024,
            kinds: Kinds { stream: true, seqpacket: false, datagram: false, unconnected: false },
        }
    }
}
