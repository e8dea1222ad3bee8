//! What is fuzzed: each target is a function of bytes that panics where the library is wrong.
//!
//! The two ends are real ones over real sockets, and the bytes say what their peer does: which
//! packets it sends with how many descriptors, what it writes into the claim table, and when the
//! end under test is called. `make check-fuzz` runs them shortly, `make fuzz` with libFuzzer.

pub mod backend;
pub mod broker;
pub mod decoder;

mod input;
mod peer;
