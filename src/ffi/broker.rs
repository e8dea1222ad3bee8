//! The broker's end of a channel.

mod handle;

use std::borrow::Cow;
use std::ffi::{c_char, c_int, c_void};
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::time::Duration;

use libc::iovec;

use super::argument::{
    Out, Problem, bytes, descriptor, free, nonzero, path, slice, string, timeout,
};
use super::growing::{Fill, Growing, Input, initialize, padded, read, read_or_default};
use super::guard::{Failure, Message, guard};
use super::peer::{handoff_peer_policy, policy};
use super::reason::{
    HANDOFF_ADOPTED, HANDOFF_FALLBACK, HANDOFF_REASON_NONE, handoff_outcome, handoff_reason,
};
use super::status::{HANDOFF_OK, handoff_status};
use crate::broker::{Broker, BrokerOptions, BrokerStatistics, Offer, Verdict};
use crate::memory;

use handle::{Inner, NAME, inner, keep_error};

pub(super) use handle::{handoff_broker, lasting, with, with_message};

/// The limits of a broker. Zero is the default in every field but `size`. Out-of-range values are
/// clamped.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_broker_options {
    /// Set by HANDOFF_BROKER_OPTIONS_INIT.
    pub size: usize,
    /// The most offers in flight at each backend: 1 to 4096, default 256. A backend may allow
    /// fewer. To have more, set the limit at both ends. With long prereads, raise `queue_bytes`
    /// here and `max_held_bytes` at the backend, too.
    pub max_in_flight: usize,
    /// How long an offer may wait for its verdict, in milliseconds, unless the offer says
    /// otherwise: default 5000; HANDOFF_NO_TIMEOUT. When that time is up, the descriptor becomes
    /// readable, and the next dispatch takes the offer back.
    pub timeout_ms: u64,
    /// With several backends: how long each may take to answer, in milliseconds: default 1000, or
    /// half of the time that the offer has left if that is less; HANDOFF_NO_TIMEOUT. After that,
    /// the broker takes the offer back and passes it to another backend that can take it. If none
    /// can, the offer stays where it is. Keep this well below the timeout of every offer: an offer
    /// that times out during its first attempt goes to no other backend.
    pub attempt_timeout_ms: u64,
    /// With several backends: the most bytes of copies to keep of offers in flight, so that they
    /// can go to another backend: default 16777216; HANDOFF_NO_LIMIT. An offer beyond that goes to
    /// one backend only.
    pub failover_bytes: usize,
    /// The most bytes of offers queued for each backend while its socket is full: at least 131072,
    /// default 1048576, which is 17 prereads of 60 KiB; HANDOFF_NO_LIMIT.
    pub queue_bytes: usize,
    /// The backend rests after this many failures within `failure_period_ms`: 1 to 4096, default 8;
    /// HANDOFF_NO_LIMIT: it never rests. A failure is an offer that was sent and timed out,
    /// including after `attempt_timeout_ms`. See HANDOFF_STATE_RESTING.
    pub max_failures: usize,
    /// How long a failure counts, in milliseconds: default 30000.
    pub failure_period_ms: u64,
    /// The pause before the first reconnect, in milliseconds: default 10. It doubles with each
    /// failed attempt.
    pub reconnect_min_ms: u64,
    /// The longest pause between two attempts to connect, in milliseconds: default 1000, or
    /// `reconnect_min_ms` if that is longer.
    pub reconnect_max_ms: u64,
    /// Who may be the backend: default root, this process's user and, for a path, the owner of the
    /// socket's file. Checked for each connection before anything is sent. Copied.
    pub policy: *const handoff_peer_policy,
    /// HANDOFF_BROKER_SHARED, or 0.
    pub flags: u32,
    /// How long to spin for a verdict, in microseconds: at most 10000, default 0.
    /// handoff_broker_offer_and_wait() spins before it sleeps. With offers in flight,
    /// handoff_broker_dispatch() spins before it returns with nothing new. Spinning saves the time
    /// to wake up if broker and backend each have a processor with little else to do. If they share
    /// a processor, spinning keeps the other end from running, and a handoff takes up to `spin_us`
    /// longer. In an event loop, if handoff_broker_next() returned a verdict, call dispatch again
    /// before you wait. No effect with HANDOFF_BROKER_SHARED.
    pub spin_us: u32,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_broker_options {
    const INIT: &'static str = "HANDOFF_BROKER_OPTIONS_INIT";
}
// SAFETY: integers and a pointer.
unsafe impl Input for handoff_broker_options {}

/// In handoff_broker_options.flags: any number of threads may use the broker at once. It is for
/// programs with a thread for each request: the threads share one channel to each backend.
///
/// Each thread calls handoff_broker_offer_and_wait(). One of them does the broker's work, and the
/// others sleep until their own verdict is there. Threads that wait for room at the same backend
/// get it in the order in which they came. You may make any other call at the same time, except
/// handoff_broker_free(): calling that while a thread uses the broker is a bug in the caller.
///
/// To end all waits for good, call handoff_broker_close(): each thread gets its verdict, or
/// HANDOFF_ERR_CLOSED if its connection was not offered yet. Strings that a call returns are valid
/// until the next call of the same thread. In a child of fork(), every call except
/// handoff_broker_free() returns HANDOFF_ERR_WRONG_PROCESS if the broker had been used before the
/// fork, or if another thread was in a call with it at the moment of the fork. In the second case,
/// handoff_broker_free() leaves the child's copies open until the child ends.
pub const HANDOFF_BROKER_SHARED: u32 = 1;

/// Initialises options as HANDOFF_BROKER_OPTIONS_INIT does, for languages without macros.
///
/// @param[out] options  the options
/// @param size          sizeof(handoff_broker_options)
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `options` is NULL or `size` cannot be right.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_options_init(
    options: *mut handoff_broker_options,
    size: usize,
) -> handoff_status {
    guard(|| initialize(options, size))
}

/// Makes a broker for the backend that listens at `path`. handoff_broker_add() adds others.
///
/// The call does no I/O and opens nothing. The broker starts to connect at its first use, and then
/// reconnects by itself whenever the channel ends. A relative path is looked up anew at each
/// attempt, in the working directory of that moment: a program that calls chdir(2) should pass an
/// absolute path.
///
/// @param path         the handoff socket's path, at most 107 bytes; "@" starts an abstract name.
///                     If it ends in '/', at most 106 bytes, every socket in that directory is a
///                     backend: see handoff_broker_backend. NULL: no backend yet
/// @param options      the limits, or NULL for the defaults; read during the call only
/// @param[out] broker  the broker; free it with handoff_broker_free()
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `broker` is NULL, the path cannot be a
///         socket's, the `size` of the options or of their `policy` is wrong, a list of the policy
///         is NULL but not empty, `flags` has an unknown bit, or `reconnect_min_ms` is more than
///         `reconnect_max_ms`; HANDOFF_ERR_UNSUPPORTED if this library does not know a field that
///         is set; HANDOFF_ERR_NO_MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_broker_new(
    path: *const c_char,
    options: *const handoff_broker_options,
    broker: *mut *mut handoff_broker,
) -> handoff_status {
    guard(|| {
        let path = if path.is_null() { None } else { Some(self::path(path)?) };
        let options = read_or_default(options, "options")?;
        if options.flags & !HANDOFF_BROKER_SHARED != 0 {
            return Err(Failure::Argument("options.flags", Problem::Is("has an unknown bit")));
        }
        let out = Out::new(broker, "broker")?;
        let is_shared = options.flags & HANDOFF_BROKER_SHARED != 0;
        let options = core_options(options)?;
        let broker = match path {
            Some(path) => Broker::new(path, options)?,
            None => Broker::without_backends(options)?,
        };
        out.give(handoff_broker::new(broker, is_shared));
        Ok(())
    })
}

fn core_options(options: handoff_broker_options) -> Result<BrokerOptions, Failure> {
    let policy = policy(options.policy)?;
    let defaults = BrokerOptions::default();
    let reconnect_min = timeout(options.reconnect_min_ms, defaults.reconnect_min);
    Ok(BrokerOptions {
        max_in_flight: nonzero(options.max_in_flight, defaults.max_in_flight),
        timeout: timeout(options.timeout_ms, defaults.timeout),
        attempt_timeout: match options.attempt_timeout_ms {
            0 => None,
            some => Some(timeout(some, Duration::MAX)),
        },
        failover_bytes: nonzero(options.failover_bytes, defaults.failover_bytes),
        queue_bytes: nonzero(options.queue_bytes, defaults.queue_bytes),
        max_failures: match options.max_failures {
            0 => defaults.max_failures,
            usize::MAX => None,
            most => Some(most),
        },
        failure_period: timeout(options.failure_period_ms, defaults.failure_period),
        reconnect_min,
        reconnect_max: timeout(options.reconnect_max_ms, defaults.reconnect_max.max(reconnect_min)),
        spin: Duration::from_micros(options.spin_us.into()),
        users: memory::copy(policy.users, "the policy")?,
        groups: memory::copy(policy.groups, "the policy")?,
    })
}

/// A connection to hand over. Set at least `fd`.
///
/// Preread, metadata, service and correlation together are at most the backend's `max_offer_bytes`,
/// by default 65536, and never more than 131000.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_offer {
    /// Set by HANDOFF_OFFER_INIT.
    pub size: usize,
    /// The client's connection, a socket. It stays yours. Until the verdict, keep it open and out
    /// of your event loop (EPOLL_CTL_DEL), and do not offer it a second time, with this broker or
    /// another: both offers could be adopted. After a fallback you may offer it again. A backend
    /// may also offer a connection that it has adopted, with a broker of its own. It does so
    /// between two messages of the client, and passes what it has read of the next message as
    /// preread.
    pub fd: c_int,
    /// HANDOFF_OFFER_MORE, HANDOFF_OFFER_TLS or 0.
    pub flags: u32,
    /// Bytes that you have read from the client. The backend consumes them first. Copied.
    pub preread: *const c_void,
    /// The number of bytes.
    pub preread_len: usize,
    /// The same bytes in several buffers. Set this or `preread`, not both. Copied. `iov_base` of an
    /// empty part may be NULL.
    pub preread_iov: *const iovec,
    /// The length of the array.
    pub preread_iov_len: usize,
    /// Anything that the backend should know. Copied.
    pub metadata: *const c_void,
    /// The number of bytes.
    pub metadata_len: usize,
    /// The name of the intended service: at most 255 bytes, or NULL. Copied.
    pub service: *const c_char,
    /// An id for logs: at most 255 bytes, or NULL. Copied.
    pub correlation: *const c_char,
    /// Returned with the verdict. The library does not look at it.
    pub user_data: *mut c_void,
    /// How long the offer may wait for its verdict, in milliseconds: default as in the broker's
    /// options; HANDOFF_NO_TIMEOUT.
    pub timeout_ms: u64,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_offer {
    const INIT: &'static str = "HANDOFF_OFFER_INIT";
}
// SAFETY: integers and pointers.
unsafe impl Input for handoff_offer {}

/// In handoff_offer.flags: more offers follow, so this one need not be sent yet. Call
/// handoff_broker_flush() before you wait, even after HANDOFF_ERR_FULL: nothing wakes you to flush,
/// and an unsent offer takes up room and times out like any other. Unsent offers are also sent with
/// the next accepted offer without the flag, by handoff_broker_dispatch(), and as soon as there are
/// enough for a packet.
pub const HANDOFF_OFFER_MORE: u32 = 1;

/// In handoff_offer.flags: the kernel does this connection's TLS, in both directions (kTLS). The
/// library asks the kernel whether it does. Preread is what your TLS library has decrypted. The TLS
/// library must hold no bytes that are still encrypted, and no record that it has read or written
/// only in part. After the verdict HANDOFF_ADOPTED, free the TLS library's object without sending a
/// close_notify or any other byte on the connection.
///
/// The kernel needs its module `tls`, which it loads by itself only for root: see modprobe(8). With
/// OpenSSL 3, set SSL_OP_ENABLE_KTLS before the handshake. OpenSSL 3.0 and 3.1 let the kernel
/// receive TLS 1.2 only; later versions also TLS 1.3. Use SSL_read(3) to take the bytes that
/// SSL_pending(3) reports. After that, SSL_has_pending(3) must return 0; if it does not, serve the
/// client yourself. Free the object with SSL_free(3), without SSL_shutdown(3): a socket that was
/// set with SSL_set_fd(3) stays open. `examples/tls_broker.c` does all this.
pub const HANDOFF_OFFER_TLS: u32 = 2;

/// Initialises an offer as HANDOFF_OFFER_INIT does, for languages without macros.
///
/// @param[out] offer  the offer
/// @param size        sizeof(handoff_offer)
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `offer` is NULL or `size` cannot be right.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_offer_init(offer: *mut handoff_offer, size: usize) -> handoff_status {
    guard(|| {
        initialize(offer, size)?;
        // SAFETY: checked by `initialize`, and every release's struct has an `fd`.
        unsafe { (*offer).fd = -1 };
        Ok(())
    })
}

/// Offers a connection to the backend, or to one of several: see handoff_broker_add(). The call
/// never blocks: while the socket is full, the offer is queued.
///
/// After HANDOFF_OK, handoff_broker_next() will return its verdict. After any error except
/// HANDOFF_ERR_INTERNAL nothing was sent and there is no verdict: serve the client another way.
///
/// @param broker   the broker
/// @param offer    the connection and what goes with it; everything except `fd` is copied
/// @param[out] id  names the offer for handoff_broker_take_back(); may be NULL
/// @return HANDOFF_OK: there will be a verdict.
///         The first errors are about the backend and may pass, see handoff_status_may_pass(), and
///         the descriptor becomes readable when an offer would be taken:
///         HANDOFF_ERR_BACKEND_UNAVAILABLE if there is no channel, or the backend drains:
///         handoff_last_error() says why;
///         HANDOFF_ERR_TOO_MANY_CHANNELS if the backend has reached its limit of channels;
///         HANDOFF_ERR_WOULD_BLOCK if too many brokers wait for the backend to accept them;
///         HANDOFF_ERR_PERMISSION_DENIED if this process may not connect, or the backend does not
///         allow its user;
///         HANDOFF_ERR_PEER_NOT_ALLOWED if the user who listens at the path may not be the backend;
///         HANDOFF_ERR_PEER_UNKNOWN if the system does not say which user listens at the path;
///         HANDOFF_ERR_FULL if the limit of offers in flight or of queued bytes is reached, you
///         have left too many verdicts untaken, or the backend has not granted its places yet: on a
///         new channel they come in a moment, and not all at once. handoff_last_error() says which.
///         An offer that was sent keeps its place until the backend has answered it, even if you
///         have taken it back;
///         HANDOFF_ERR_RATE_LIMITED if the backend rests: it failed too often, or offers that timed
///         out hold all its places, see HANDOFF_STATE_RESTING;
///         HANDOFF_ERR_DESCRIPTOR_PRESSURE if there is no descriptor for a channel.
///         The other errors are about the offer, the program or the system, and do not pass:
///         HANDOFF_ERR_TOO_LARGE if the backend does not take so many bytes, or `service` or
///         `correlation` is too long;
///         HANDOFF_ERR_NOT_TLS with HANDOFF_OFFER_TLS, if the kernel does not do the TLS of `fd` in
///         both directions;
///         HANDOFF_ERR_INVALID_ARGUMENT, also if `fd` is not a socket, `flags` has an unknown bit
///         or both forms of preread are set;
///         HANDOFF_ERR_WRONG_PROCESS; HANDOFF_ERR_CLOSED; HANDOFF_ERR_NO_MEMORY;
///         HANDOFF_ERR_UNSUPPORTED if this system lacks what a channel needs, the backend speaks
///         another version of the protocol, or its library is too old for HANDOFF_OFFER_TLS;
///         HANDOFF_ERR_SYSTEM if a limit does not allow it: EFBIG means RLIMIT_FSIZE, because the
///         memory that the two ends share counts as a file.
///
/// At its first use the broker needs some descriptors for itself. Call handoff_broker_fd() at the
/// start of the program: it returns -1 if there are none.
///
/// If none of several backends takes the offer, the status is about the backend that is most likely
/// to take an offer soon.
///
/// After a refusal that may pass, see handoff_broker_room(). Call handoff_broker_flush() before you
/// wait: offers that are not flushed still take up room.
///
/// After HANDOFF_ERR_INTERNAL, a bug in the library, the offer may be in flight. Call
/// handoff_broker_close(), then handoff_broker_next(): if there is no verdict, the connection is
/// yours.
///
/// The call allocates memory only for an offer that is longer than those before, for copies of
/// offers that several backends may get, and when several backends refuse an offer.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_broker_offer(
    broker: *mut handoff_broker,
    offer: *const handoff_offer,
    id: *mut u64,
) -> handoff_status {
    with(broker, |broker| {
        let out = Out::optional(id, "id")?;
        // SAFETY: the caller of the C function keeps the descriptor open until the verdict.
        let id = with_offer(offer, |offer| Ok(unsafe { broker.offer(offer) }?))?;
        if let Some(out) = out {
            out.set(id);
        }
        Ok(())
    })
}

/// Runs `body` with an offer that C passes.
fn with_offer<T>(
    offer: *const handoff_offer,
    body: impl FnOnce(&Offer<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let offer = read(offer, "offer")?;
    let name = |pointer: *const c_char, name| {
        if pointer.is_null() { Ok(&[][..]) } else { string(pointer, name) }
    };
    if offer.flags & !(HANDOFF_OFFER_MORE | HANDOFF_OFFER_TLS) != 0 {
        return Err(Failure::Argument("offer.flags", Problem::Is("has an unknown bit")));
    }
    let whole = [IoSlice::new(bytes(offer.preread, offer.preread_len, "offer.preread")?)];
    let preread = match (offer.preread_len, offer.preread_iov_len) {
        (_, 0) => Cow::Borrowed(&whole[..]),
        (0, len) => parts(offer.preread_iov, len)?,
        _ => {
            let both = Problem::Is("is set beside offer.preread: set one of them");
            return Err(Failure::Argument("offer.preread_iov", both));
        }
    };
    body(&Offer {
        descriptor: descriptor(offer.fd, "offer.fd")?,
        preread: &preread,
        metadata: bytes(offer.metadata, offer.metadata_len, "offer.metadata")?,
        service: name(offer.service, "offer.service")?,
        correlation: name(offer.correlation, "offer.correlation")?,
        user_data: offer.user_data.expose_provenance(),
        timeout: (offer.timeout_ms > 0).then(|| timeout(offer.timeout_ms, Duration::MAX)),
        tls: offer.flags & HANDOFF_OFFER_TLS != 0,
        more: offer.flags & HANDOFF_OFFER_MORE != 0,
    })
}

/// Buffers that C passes. Those that are empty may be NULL, as in writev(2).
fn parts<'a>(iov: *const iovec, len: usize) -> Result<Cow<'a, [IoSlice<'a>]>, Failure> {
    let iov: &[iovec] = slice(iov, len, "offer.preread_iov")?;
    let name = "offer.preread_iov[].iov_base";
    for part in iov {
        bytes(part.iov_base, part.iov_len, name)?;
    }
    if iov.iter().any(|part| part.iov_base.is_null()) {
        let used = iov.iter().filter(|part| part.iov_len > 0);
        return used
            .map(|part| bytes(part.iov_base, part.iov_len, name).map(IoSlice::new))
            .collect();
    }
    // SAFETY: an IoSlice has the layout of an iovec, and every part was checked to be one.
    Ok(Cow::Borrowed(unsafe { std::slice::from_raw_parts(iov.as_ptr().cast(), len) }))
}

/// Sends the offers made with HANDOFF_OFFER_MORE. The call never blocks.
///
/// @param broker  the broker
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
///         HANDOFF_ERR_CLOSED; HANDOFF_ERR_DESCRIPTOR_PRESSURE, HANDOFF_ERR_NO_MEMORY,
///         HANDOFF_ERR_UNSUPPORTED at the first use; HANDOFF_ERR_SYSTEM.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_broker_flush(broker: *mut handoff_broker) -> handoff_status {
    with(broker, |broker| Ok(broker.flush()?))
}

/// Returns the broker's descriptor, for your event loop. It is readable whenever
/// handoff_broker_dispatch() has work. If handoff_broker_next() has verdicts left that you did not
/// take, the descriptor becomes readable for them within 4 ms.
///
/// It stays the same until handoff_broker_close(). You may watch it level- or edge-triggered. This
/// call is a use of the broker: it starts to connect.
///
/// @param broker  the broker
/// @return the descriptor, which stays the broker's: do not read, write or close it; -1 on error,
///         with errno, handoff_last_status() and handoff_last_error() set.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_broker_fd(broker: *mut handoff_broker) -> c_int {
    let mut fd = -1;
    let status = guard(|| {
        fd = match inner(broker)? {
            Inner::Shared(shared) => shared.descriptor()?.as_raw_fd(),
            Inner::Single(single, _) => single.begin("broker")?.descriptor()?.as_raw_fd(),
        };
        Ok(())
    });
    if keep_error(broker, status) == HANDOFF_OK { fd } else { -1 }
}

/// Does a broker's pending work: connects, receives verdicts, sends offers, takes back offers whose
/// timeout has passed.
///
/// The call never blocks, except to spin for `spin_us`. Call it when the descriptor is readable.
/// Then call handoff_broker_next(), and offer again what was refused: each dispatch may have made
/// room.
///
/// @param broker  the broker
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
///         HANDOFF_ERR_CLOSED; HANDOFF_ERR_DESCRIPTOR_PRESSURE, HANDOFF_ERR_NO_MEMORY,
///         HANDOFF_ERR_UNSUPPORTED at the first use; HANDOFF_ERR_SYSTEM. After an error, call it
///         again. A problem with the backend is not an error here: it is the reason in the
///         verdicts, and the status of the next offer.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_broker_dispatch(broker: *mut handoff_broker) -> handoff_status {
    let status = guard(|| match inner(broker)? {
        Inner::Shared(shared) => Ok(shared.dispatch()?),
        Inner::Single(single, _) => Ok(single.begin("broker")?.dispatch()?),
    });
    keep_error(broker, status)
}

/// What became of an offer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_verdict {
    /// Set by HANDOFF_VERDICT_INIT.
    pub size: usize,
    /// The offer's id, as from handoff_broker_offer().
    pub id: u64,
    /// The offer's `user_data`.
    pub user_data: *mut c_void,
    /// Who owns the connection now: HANDOFF_ADOPTED or HANDOFF_FALLBACK.
    pub outcome: handoff_outcome,
    /// Why it is a fallback. With HANDOFF_ADOPTED: HANDOFF_REASON_NONE;
    /// HANDOFF_REASON_BACKEND_DIED; or HANDOFF_REASON_INTEGRITY_MISMATCH if the backend broke the
    /// protocol: it may have adopted the connection, so do not serve it. HANDOFF_REASON_NONE does
    /// not mean that the backend is still alive.
    pub reason: handoff_reason,
    /// With HANDOFF_FALLBACK: not 0 if the backend may still hold a copy of the descriptor. The
    /// backend can no longer adopt the connection, but may have changed what copies share:
    /// O_NONBLOCK and O_ASYNC, and socket options such as SO_LINGER and SO_RCVLOWAT. Set what you
    /// rely on. If the backend has called shutdown(2), send(2) fails with EPIPE. End the connection
    /// with shutdown(2), then close(2): close(2) alone sends no FIN while there is a copy.
    pub may_have_reached_backend: u32,
    /// How many backends the offer was queued for or sent to.
    pub attempts: u32,
    /// The path of the backend that adopted the connection, or of the last one that had the offer.
    /// A path in a directory can contain any byte except 0: replace control characters before you
    /// print it. Valid until the next call with this broker.
    pub backend: *const c_char,
    /// With HANDOFF_REASON_KIND: the kind of the socket, one of HANDOFF_KIND_STREAM and so on, or
    /// HANDOFF_KIND_UNCONNECTED; 0 if the backend does not say. With other reasons 0.
    pub kind: u32,
    /// Reserved: always 0.
    pub reserved: u32,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_verdict {
    const INIT: &'static str = "HANDOFF_VERDICT_INIT";
}

impl handoff_verdict {
    fn new(verdict: Verdict, broker: &Broker, name: Option<&Message>) -> handoff_verdict {
        let Verdict { id, user_data, adopted, reason, may_have_reached, backend, attempts, kind } =
            verdict;
        handoff_verdict {
            size: size_of::<handoff_verdict>(),
            id,
            user_data: std::ptr::with_exposed_provenance_mut(user_data),
            outcome: if adopted { HANDOFF_ADOPTED } else { HANDOFF_FALLBACK },
            reason: reason.map_or(HANDOFF_REASON_NONE, |reason| reason as handoff_reason),
            may_have_reached_backend: may_have_reached.into(),
            attempts,
            backend: lasting(broker.backend_name(backend).unwrap_or_default(), name),
            kind: kind.into(),
            reserved: 0,
        }
    }
}

/// Takes the next verdict. After each handoff_broker_dispatch(), call it until it returns
/// HANDOFF_NOTHING. A loop with a budget may stop earlier, but must take at least one verdict. The
/// descriptor then becomes readable for the rest within 4 ms.
///
/// @param broker        the broker
/// @param[out] verdict  what became of which offer
/// @return HANDOFF_OK; HANDOFF_NOTHING; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or
///         `verdict->size` is wrong; HANDOFF_ERR_WRONG_PROCESS.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_broker_next(
    broker: *mut handoff_broker,
    verdict: *mut handoff_verdict,
) -> handoff_status {
    with_message(broker, |broker, _, name| {
        let out = Fill::new(verdict, "verdict")?;
        broker.check_process()?;
        let verdict = broker.next_verdict().ok_or(Failure::Nothing)?;
        out.set(handoff_verdict::new(verdict, broker, name));
        Ok(())
    })
}

/// Offers a connection and waits for its verdict. For programs without an event loop.
///
/// The call waits for a channel, for room and for the verdict: together at most the offer's
/// `timeout_ms`. It does not wait for a backend that is down. If the last attempt to connect
/// failed, the call returns that error at once, until the next attempt is due, at most
/// `reconnect_max_ms` later. The same applies to a backend that turns this broker away, drains, or
/// accepted the last connection and said nothing for 5 seconds. To wait for a restart, call again
/// every 10 to 50 ms while handoff_status_may_pass() returns true.
///
/// If there is no room within `timeout_ms`, the call returns HANDOFF_ERR_FULL. If no channel is up
/// by then, it returns HANDOFF_ERR_BACKEND_UNAVAILABLE, or the error of the last attempt to
/// connect. If the offer was sent but not answered, there is a verdict with
/// HANDOFF_REASON_ACK_TIMEOUT.
///
/// @param broker        the broker. Verdicts of other offers stay for handoff_broker_next().
/// @param offer         the connection and what goes with it; HANDOFF_OFFER_MORE has no effect
/// @param[out] verdict  what became of it
/// @return HANDOFF_OK if there is a verdict; HANDOFF_WOKEN after handoff_broker_wake(); or an error
///         as from handoff_broker_offer(). Unless the call returns HANDOFF_OK, there is no verdict,
///         and the connection is still yours, except after HANDOFF_ERR_INTERNAL.
///
/// After HANDOFF_WOKEN and HANDOFF_ERR_SYSTEM, the backend may hold a copy of the descriptor: see
/// `may_have_reached_backend` in handoff_verdict. After HANDOFF_ERR_INTERNAL see
/// handoff_broker_offer().
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_broker_offer_and_wait(
    broker: *mut handoff_broker,
    offer: *const handoff_offer,
    verdict: *mut handoff_verdict,
) -> handoff_status {
    let status = guard(|| {
        let out = Fill::new(verdict, "verdict")?;
        match inner(broker)? {
            Inner::Shared(shared) => out.set(with_offer(offer, |offer| {
                Ok(NAME.with(|name| {
                    shared.offer_wait_and(offer, |broker, verdict| {
                        handoff_verdict::new(verdict, broker, Some(name))
                    })
                })?)
            })?),
            Inner::Single(single, _) => {
                let mut broker = single.begin("broker")?;
                let verdict = with_offer(offer, |offer| Ok(broker.offer_and_wait(offer)?))?;
                out.set(handoff_verdict::new(verdict, &broker, None));
            }
        }
        Ok(())
    });
    keep_error(broker, status)
}

/// Ends a wait in handoff_broker_offer_and_wait(). The call that waits, or else the next one that
/// would wait, takes its offer back and returns HANDOFF_WOKEN.
///
/// If the backend has already adopted the connection, the waiting call returns that verdict, and
/// the next one is woken instead. With HANDOFF_BROKER_SHARED, every wait in progress ends. If there
/// is none, or each of them returns a verdict, the next wait that begins while no other is in
/// progress ends.
///
/// Each call wakes once. To stop for good, call handoff_broker_close() on a broker with
/// HANDOFF_BROKER_SHARED. With any other broker, set a flag of your own, then wake it.
///
/// @param broker  the broker; nobody may free it meanwhile
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS. It
///         leaves errno and the last errors as they are.
///
/// Safe in any thread and in a signal handler, even while another thread uses the broker.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_wake(broker: *const handoff_broker) -> handoff_status {
    handle::wake(broker)
}

/// Takes an offer back.
///
/// @param broker  the broker
/// @param id      the offer's id
/// @return HANDOFF_OK: the connection is yours, and there will be no verdict. The backend may still
///         hold a copy of the descriptor: see `may_have_reached_backend` in handoff_verdict.
///         HANDOFF_ERR_TOO_LATE if the backend has adopted the connection or the verdict is known:
///         handoff_broker_next() returns the verdict; also if `id` names no offer in flight, or one
///         that a thread waits for.
///         HANDOFF_ERR_INVALID_ARGUMENT if `broker` is NULL; HANDOFF_ERR_WRONG_PROCESS;
///         HANDOFF_ERR_CLOSED.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_broker_take_back(broker: *mut handoff_broker, id: u64) -> handoff_status {
    let status = guard(|| match inner(broker)? {
        Inner::Shared(shared) => Ok(shared.take_back(id)?),
        Inner::Single(single, _) => Ok(single.begin("broker")?.take_back(id)?),
    });
    keep_error(broker, status)
}

/// Takes every offer back and closes the channels. Then call handoff_broker_next() for the
/// verdicts, and then handoff_broker_free(). The reason in the verdicts is
/// HANDOFF_REASON_BROKER_CLOSED, unless the backend decided first.
///
/// You can still read the statistics, the states and the last error. Calls that need the channel
/// return HANDOFF_ERR_CLOSED, and handoff_broker_fd() returns -1. Remove the broker's descriptor
/// from your event loop before you close the broker: the descriptor may stay readable, and there is
/// nothing left to dispatch.
///
/// @param broker  the broker
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
///         HANDOFF_ERR_CLOSED if it is already closed.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_close(broker: *mut handoff_broker) -> handoff_status {
    with(broker, |broker| Ok(broker.close()?))
}

/// What a broker has done so far.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_broker_statistics {
    /// Set by HANDOFF_BROKER_STATISTICS_INIT.
    pub size: usize,
    /// Offers accepted by handoff_broker_offer() and handoff_broker_offer_and_wait().
    pub offered: u64,
    /// Offers refused by these calls. An offer that you make again is counted again. A wrong
    /// pointer, `size`, length or flag, a negative `fd`, and both forms of preread at once are not
    /// counted.
    pub refused: u64,
    /// Offers that a backend adopted.
    pub adopted: u64,
    /// Offers taken back by handoff_broker_take_back() and handoff_broker_wake(). Those that timed
    /// out are fallbacks. The backend counts both as `taken_back`.
    pub taken_back: u64,
    /// Channels set up, the first included.
    pub connects: u64,
    /// Offers in flight now.
    pub in_flight: u64,
    /// Bytes queued now, because the socket is full.
    pub queued_bytes: u64,
    /// Fallbacks by reason: fallbacks[HANDOFF_REASON_REJECTED] and so on. In fallbacks[0], a later
    /// version counts those whose number has no place here.
    pub fallbacks: [u64; 32],
    /// Refused offers by status: refusals[-HANDOFF_ERR_FULL] and so on. In refusals[0], a later
    /// version counts those whose number has no place here.
    pub refusals: [u64; 64],
    /// How many times an offer went on from one backend to another.
    pub failovers: u64,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_broker_statistics {
    const INIT: &'static str = "HANDOFF_BROKER_STATISTICS_INIT";
}

/// Gets what a broker has done so far.
///
/// @param broker           the broker
/// @param[out] statistics  the counts
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or `statistics->size` is
///         wrong; HANDOFF_ERR_WRONG_PROCESS for a broker with HANDOFF_BROKER_SHARED.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_get_statistics(
    broker: *mut handoff_broker,
    statistics: *mut handoff_broker_statistics,
) -> handoff_status {
    with(broker, |broker| {
        let out = Fill::new(statistics, "statistics")?;
        let BrokerStatistics {
            offered,
            refused,
            adopted,
            taken_back,
            fallbacks,
            in_flight,
            queued_bytes,
            connects,
            failovers,
            refusals,
        } = broker.statistics();
        out.set(handoff_broker_statistics {
            size: size_of::<handoff_broker_statistics>(),
            offered,
            refused,
            adopted,
            taken_back,
            connects,
            in_flight: in_flight as u64,
            queued_bytes: queued_bytes as u64,
            fallbacks: padded(&fallbacks),
            refusals: padded(&refusals),
            failovers,
        });
        Ok(())
    })
}

/// Returns a message about this broker's last error. See handoff_last_error() for details. With
/// HANDOFF_BROKER_SHARED, both return the same message.
///
/// @param broker  the broker
/// @return a string, never NULL; empty if no call has failed yet or `broker` is NULL. It is valid
///         until the broker's next error, or until you free the broker.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_last_error(broker: *const handoff_broker) -> *const c_char {
    handle::last_error(broker)
}

/// Takes every offer back, closes the channels and frees the broker.
///
/// Verdicts that were not taken are lost. To learn who owns each connection, call
/// handoff_broker_close() first. In a child of fork(), the call closes only the child's copies.
///
/// @param broker  the broker, or NULL, which does nothing. No other thread may use it.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_free(broker: *mut handoff_broker) {
    free(broker);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::growing::zeroed;

    #[test]
    fn options_of_zero_are_the_defaults_of_the_core() {
        assert_eq!(core_options(zeroed()).ok().unwrap(), BrokerOptions::default());
    }

    #[test]
    fn longest_pause_is_not_shorter_than_the_shortest_by_default() {
        let options = handoff_broker_options { reconnect_min_ms: 5000, ..zeroed() };
        assert_eq!(core_options(options).ok().unwrap().reconnect_max, Duration::from_secs(5));
    }

    #[test]
    fn limits_that_can_be_switched_off_are() {
        let options =
            handoff_broker_options { max_failures: usize::MAX, timeout_ms: u64::MAX, ..zeroed() };
        let options = core_options(options).ok().unwrap();
        assert_eq!((options.max_failures, options.timeout), (None, Duration::MAX));
    }
}
