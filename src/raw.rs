//! The raw layer: one descriptor and its token in one message, over a socket that you own.
//!
//! Stateless calls, for programs that cannot keep a channel: send and receive a message, check its
//! token against a store, acknowledge it, wait for the acknowledgement until a deadline. The
//! message is the 16 bytes of a token with one descriptor attached, so any program that can call
//! sendmsg(2) can take part. The channel ([`crate::broker`], [`crate::backend`]) does not use this
//! layer.
//!
//! | module | what it is for |
//! |---|---|
//! | [`transport`] | one descriptor and its token through `sendmsg` and `recvmsg` |
//! | [`store`] | the tokens that may still be presented |
//! | [`admit`] | receiving a message whose token a store must hold |
//! | [`ack`] | acknowledgements, and waiting for one |
//! | [`pending`] | the acknowledgements that a broker waits for |
//! | [`attempt`] | one attempt from sending to verdict |
//! | [`failures`] | whether to try a backend, by its recent failures |

pub mod ack;
pub mod admit;
pub mod attempt;
pub mod failures;
pub mod pending;
pub mod store;
pub mod transport;
