//! The raw layer's part of the C ABI.

mod ack;
mod attempt;
mod failures;
mod listener;
mod peer;
mod pending;
mod store;
mod token;
mod transport;
