//! Hands an accepted connection from one process to another on the same host.
//!
//! A broker accepted a client's connection that a backend should serve. It sends the descriptor
//! itself over a Unix socket, with a token of 16 bytes that works once. The backend verifies the
//! token, adopts the connection, and serves the client on the client's own socket. Whatever goes
//! wrong before that, the broker learns that the connection is still its own and serves the client
//! another way.
//!
//! This is the Rust core of `libhandoff`; C programs use it through `handoff.h`. Everything here
//! is safe to call. Descriptors are borrowed or owned as their types say, time can be an argument,
//! and an error closes what the failed call had opened and nothing else.
//!
//! | module | what it is for |
//! |---|---|
//! | [`token`] | tokens, and the store that accepts each of them once |
//! | [`transport`] | one descriptor and its token through `sendmsg` and `recvmsg` |
//! | [`ack`] | acknowledgements and their deadlines |
//! | [`attempt`] | one attempt from sending to verdict |
//! | [`fallback`] | reasons, decisions, and the window of failures |
//! | [`broker`] | the broker's end of a channel: what nearly all brokers want |
//! | [`backend`] | the backend's end of its channels |
//! | [`peer`] | who is at the other end, and whether they may be |
//! | [`listener`] | the handoff socket that a backend listens on |
//! | [`error`] | what all errors have in common |

#![deny(unsafe_op_in_unsafe_fn, missing_docs)]
#![deny(clippy::undocumented_unsafe_blocks)]

#[cfg(not(unix))]
compile_error!("there is no SCM_RIGHTS here: connections can only be handed over on a Unix");

pub mod ack;
pub mod attempt;
pub mod backend;
#[cfg(handoff_bench)]
#[doc(hidden)]
pub mod bench;
pub mod broker;
pub mod error;
pub mod fallback;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
pub mod listener;
pub mod peer;
pub mod token;
pub mod transport;

mod claim;
mod ffi;
mod sys;
mod wire;
