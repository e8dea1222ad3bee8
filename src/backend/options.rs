//! The limits of a backend.

use std::time::Duration;

use super::{BackendError, Kinds};
use crate::handle::MAX_SPIN;
use crate::listener::ListenerOptions;
use crate::wire::{MAX_OFFER_BYTES, MAX_SLOTS};

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
    /// Channels at once of the brokers of one user, whichever user that is: 1 to `max_channels`. By
    /// default, if the policy allows other users than the own one and root, seven eighths of
    /// `max_channels`, so that no user keeps the others out; otherwise all.
    pub max_channels_per_user: Option<usize>,
    /// Offers in flight at once on each channel: 1 to 4096, 256 by default. The backend grants each
    /// channel so many tokens.
    pub max_in_flight: usize,
    /// Bytes of preread, metadata and names in one offer: 131000 at most, 64 KiB by default. It is
    /// an error if it is more than `max_held_bytes`.
    pub max_offer_bytes: usize,
    /// Bytes of arrivals held at once, 64 MiB by default. Beyond that, arrivals are rejected with
    /// [`Reason::BackendBusy`](crate::reason::Reason::BackendBusy).
    pub max_held_bytes: usize,
    /// Bytes of memory, 4 MiB by default, that the handle keeps for the bytes of arrivals to come.
    /// Beyond that, an arrival's memory is freed at the dispatch after it was adopted or rejected.
    pub max_kept_bytes: usize,
    /// How long [`accept`](super::Backend::accept) keeps a processor busy before it sleeps, and
    /// [`dispatch`](super::Backend::dispatch) before it returns with nothing: 10 milliseconds at
    /// most, not at all by default.
    pub spin: Duration,
    /// Which sockets to take. It is an error if they are `unconnected` ones alone.
    pub kinds: Kinds,
}

impl BackendOptions {
    /// The options as they are used: clamped, unless they are impossible.
    pub(super) fn checked(self) -> Result<BackendOptions, BackendError> {
        let options = BackendOptions {
            max_channels: self.max_channels.clamp(1, 65535),
            max_in_flight: self.max_in_flight.clamp(1, MAX_SLOTS),
            max_offer_bytes: self.max_offer_bytes.min(MAX_OFFER_BYTES),
            spin: self.spin.min(MAX_SPIN),
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

    /// How many channels the brokers of one user may have.
    pub(super) fn channels_of_one_user(&self) -> usize {
        let several = !self.groups.is_empty() || self.users.len() > 1;
        let default = self.max_channels - if several { self.max_channels.div_ceil(8) } else { 0 };
        self.max_channels_per_user.unwrap_or(default).clamp(1, self.max_channels)
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
            max_channels_per_user: None,
            max_in_flight: 256,
            max_offer_bytes: 64 * 1024,
            max_held_bytes: 64 * 1024 * 1024,
            max_kept_bytes: 4 * 1024 * 1024,
            spin: Duration::ZERO,
            kinds: Kinds { stream: true, seqpacket: false, datagram: false, unconnected: false },
        }
    }
}
