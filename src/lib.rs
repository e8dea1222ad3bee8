//! Hands an accepted connection from one process to another on the same host.
//!
//! A broker accepted a client's connection that a backend should serve. It sends the descriptor
//! itself over a Unix socket, with a token of 16 bytes that works once. The backend verifies the
//! token, adopts the connection, and serves the client on the client's own socket. If anything goes
//! wrong before that, the broker learns that the connection is still its own and serves the client
//! another way.
//!
//! This is the Rust core of `libhandoff`; C programs use it through `handoff.h`. Everything here is
//! safe to call but [`Broker::offer`](broker::Broker::offer), whose descriptor must stay open until
//! the verdict. Others are borrowed or owned as their types say; time can be an argument; and an error
//! closes what the failed call had opened and nothing else.
//!
//! | module | what it is for |
//! |---|---|
//! | [`broker`] | the broker's end of a channel: what nearly all brokers want |
//! | [`backend`] | the backend's end of its channels |
//! | [`raw`] | the raw layer: messages over a socket that you own |
//! | [`listener`] | the handoff socket that a backend listens on |
//! | [`peer`] | who is at the other end, and whether they may be |
//! | [`token`] | tokens |
//! | [`tls`] | connections whose TLS the kernel does |
//! | [`address`] | Unix sockets by path and by descriptor |
//! | [`failures`] | the failure counter |
//! | [`memory`] | allocations that can fail |
//! | [`handle`] | ending a wait |
//! | [`reason`] | why a connection was not handed over |
//! | [`error`] | any error, and the kinds of error |
//! | [`support`] | whether this system has what the library needs |

#![deny(unsafe_op_in_unsafe_fn, missing_docs)]
#![deny(clippy::undocumented_unsafe_blocks)]

#[cfg(not(target_os = "linux"))]
compile_error!("libhandoff works on Linux only: it needs epoll, timerfd, memfd and SO_COOKIE");

pub mod address;
pub mod backend;
#[cfg(handoff_bench)]
#[doc(hidden)]
pub mod bench;
pub mod broker;
pub mod error;
pub mod failures;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
pub mod listener;
pub mod memory;
pub mod peer;
pub mod raw;
pub mod reason;
pub mod support;
pub mod tls;
pub mod token;

mod claim;
mod deadlines;
mod ffi;
pub mod handle;
mod kind;
mod sys;
mod watched;
mod wire;
