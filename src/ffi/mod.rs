//! The C ABI: converts and checks what C passes, and calls the module of the same name.
//!
//! Every body runs inside [`guard`](guard::guard): an error becomes its status, with errno and the
//! thread's message set; a panic becomes `HANDOFF_ERR_INTERNAL`. Doc comments of public items are
//! the headers', so they are written for C. The order of the items is the order in the headers.
#![allow(non_camel_case_types, reason = "the names are those of the C headers")]

mod argument;
mod backend;
mod backends;
mod broker;
mod errors;
mod growing;
mod guard;
mod in_use;
mod layout;
mod peer;
mod raw;
mod reason;
mod status;
mod tls;
