//! The raw layer's part of the C ABI.

pub(super) mod ack;
pub(super) mod attempt;
pub(super) mod failures;
pub(super) mod listener;
pub(super) mod peer;
pub(super) mod pending;
pub(super) mod store;
pub(super) mod token;
mod transport;
