//! The broker's end of a channel.

use std::ffi::{c_char, c_int, c_void};
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::attempt::{HANDOFF_ADOPTED, HANDOFF_FALLBACK, handoff_verdict};
use super::fallback::{
    HANDOFF_FALLBACK_MAX_FAILURES, HANDOFF_FALLBACK_WINDOW_MS, HANDOFF_REASON_NONE, handoff_reason,
};
use super::status::{HANDOFF_OK, handoff_status};
use super::{
    Failure, Growing, Out, descriptor, exclusive, free, guard, options, path, slice, string,
};
use crate::broker::{Broker, BrokerOptions, BrokerStatistics, Offer, Verdict};
use crate::reason::Reason;

/// Default of handoff_broker_options.window.
pub const HANDOFF_BROKER_WINDOW: usize = 256;
/// Default of handoff_broker_options.timeout_ms.
pub const HANDOFF_BROKER_TIMEOUT_MS: u64 = 5000;
/// Default of handoff_broker_options.queue_bytes.
pub const HANDOFF_BROKER_QUEUE_BYTES: usize = 1048576;
/// Default of handoff_broker_options.reconnect_min_ms.
pub const HANDOFF_BROKER_RECONNECT_MIN_MS: u64 = 10;
/// Default of handoff_broker_options.reconnect_max_ms.
pub const HANDOFF_BROKER_RECONNECT_MAX_MS: u64 = 1000;

/// The limits of a broker. Begin with HANDOFF_BROKER_OPTIONS_INIT and change what you want. A value
/// outside its range is taken to the nearest end of it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_broker_options {
    /// sizeof(handoff_broker_options), set by the INIT macro.
    pub size: usize,
    /// Offers in flight at once: 1 to 4096. The backend may allow fewer.
    pub window: usize,
    /// How long an offer may wait for its verdict, in milliseconds, unless it says otherwise: 1 at
    /// least.
    pub timeout_ms: u64,
    /// Bytes of offers that may wait for room in the socket: 131072 at least.
    pub queue_bytes: usize,
    /// Failures within the window after which offers are refused: 1 to 4096.
    pub max_failures: usize,
    /// How long a failure counts, in milliseconds: 1 at least.
    pub failure_window_ms: u64,
    /// The shortest pause before connecting again, in milliseconds: 1 at least. It doubles with
    /// each attempt that fails.
    pub reconnect_min_ms: u64,
    /// The longest.
    pub reconnect_max_ms: u64,
}

// SAFETY: repr(C), begins with a usize, all integers.
unsafe impl Growing for handoff_broker_options {}

/// A connection to hand over. Begin with HANDOFF_OFFER_INIT and set at least `fd`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_offer {
    /// sizeof(handoff_offer), set by the INIT macro.
    pub size: usize,
    /// The client's connection, a socket. It stays yours: keep it open, and out of your event loop
    /// (EPOLL_CTL_DEL), until the verdict.
    pub fd: c_int,
    /// Not 0: more offers follow at once, so sending is left to the last of them or to
    /// handoff_broker_flush().
    pub more: u32,
    /// Bytes already read from the client, which the backend reads first; copied. May be NULL if
    /// there are none.
    pub preread: *const u8,
    /// How many there are.
    pub preread_len: usize,
    /// Anything for the backend; copied. May be NULL if there is none.
    pub metadata: *const u8,
    /// How many bytes it has.
    pub metadata_len: usize,
    /// The service that is meant, 255 bytes at most; copied. May be NULL.
    pub service: *const c_char,
    /// What the connection is called in logs, 255 bytes at most; copied. May be NULL.
    pub correlation: *const c_char,
    /// Comes back with the verdict; not looked at.
    pub user_data: *mut c_void,
    /// How long it may wait for its verdict, in milliseconds; 0 for the broker's timeout.
    pub timeout_ms: u64,
}

// SAFETY: repr(C), begins with a usize, all integers and pointers.
unsafe impl Growing for handoff_offer {}

/// What a broker has done. Set `size` with HANDOFF_BROKER_STATISTICS_INIT before asking.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_broker_statistics {
    /// sizeof(handoff_broker_statistics), set by the INIT macro.
    pub size: usize,
    /// Offers that were taken.
    pub offered: u64,
    /// Offers that were refused at once.
    pub refused: u64,
    /// Offers that the backend adopted.
    pub adopted: u64,
    /// Offers that handoff_broker_cancel() took back.
    pub cancelled: u64,
    /// Channels that were set up, the first included.
    pub connects: u64,
    /// Offers without a verdict yet.
    pub in_flight: u64,
    /// Bytes that wait for room in the socket.
    pub queued_bytes: u64,
    /// Fallbacks, by HANDOFF_REASON_*.
    pub fallback: [u64; 32],
}

// SAFETY: repr(C), begins with a usize, all integers.
unsafe impl Growing for handoff_broker_statistics {}

/// The broker's end of a channel to one backend. One thread at a time may use it; different ones
/// are independent. It belongs to the process that uses it first: make it before fork() and use it
/// in one child, or make one in each.
pub struct handoff_broker {
    broker: Broker,
}

/// Makes a broker for the backend that listens at `path`. Does no I/O and opens nothing; the first
/// use connects, and the broker connects again by itself whenever a channel ends.
///
/// @param path         the handoff socket's path, at most 107 bytes; "@" begins an abstract name
/// @param options      its limits, or NULL for the defaults; read during the call only
/// @param[out] broker  the broker; free it with handoff_broker_free()
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL, the path cannot be a
///         socket's or `options->size` is wrong.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_new(
    path: *const c_char,
    options: *const handoff_broker_options,
    broker: *mut *mut handoff_broker,
) -> handoff_status {
    guard(|| {
        let path = self::path(path)?;
        let out = Out::new(broker, "broker")?;
        let defaults = handoff_broker_options {
            size: size_of::<handoff_broker_options>(),
            window: HANDOFF_BROKER_WINDOW,
            timeout_ms: HANDOFF_BROKER_TIMEOUT_MS,
            queue_bytes: HANDOFF_BROKER_QUEUE_BYTES,
            max_failures: HANDOFF_FALLBACK_MAX_FAILURES,
            failure_window_ms: HANDOFF_FALLBACK_WINDOW_MS,
            reconnect_min_ms: HANDOFF_BROKER_RECONNECT_MIN_MS,
            reconnect_max_ms: HANDOFF_BROKER_RECONNECT_MAX_MS,
        };
        let options = self::options(options, defaults, "options")?;
        let broker = Broker::new(path, core_options(&options))?;
        out.set(Box::into_raw(Box::new(handoff_broker { broker })));
        Ok(())
    })
}

fn core_options(options: &handoff_broker_options) -> BrokerOptions {
    BrokerOptions {
        max_in_flight: options.window,
        timeout: Duration::from_millis(options.timeout_ms),
        queue_bytes: options.queue_bytes,
        max_failures: Some(options.max_failures),
        failure_period: Duration::from_millis(options.failure_window_ms),
        reconnect_min: Duration::from_millis(options.reconnect_min_ms),
        reconnect_max: Duration::from_millis(options.reconnect_max_ms),
    }
}

/// Takes back what is in flight, as handoff_broker_close() does, and unmakes a broker; the verdicts
/// are lost with it. In a child of fork() it closes the child's copies only.
///
/// @param broker  the broker, or NULL, which does nothing
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_free(broker: *mut handoff_broker) {
    free(broker);
}

fn broker<'a>(broker: *mut handoff_broker) -> Result<&'a mut Broker, Failure> {
    exclusive(broker, "broker").map(|broker| &mut broker.broker)
}

/// Gives the one descriptor to watch: it is readable whenever handoff_broker_dispatch() has work,
/// level- and edge-triggered, and stays the same. This is a use: the broker begins to connect.
///
/// @param broker  the broker
/// @return the descriptor, which stays the broker's: do not read, write or close it; -1 on error,
///         with errno and handoff_last_error() set.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_fd(broker: *mut handoff_broker) -> c_int {
    let mut fd = -1;
    let status = guard(|| {
        fd = self::broker(broker)?.descriptor()?.as_raw_fd();
        Ok(())
    });
    if status == HANDOFF_OK { fd } else { -1 }
}

/// Offers a connection to the backend. Never blocks: what finds no room in the socket waits in the
/// broker.
///
/// @param broker   the broker
/// @param offer    the connection and what goes with it; all of it is copied, but `fd`
/// @param[out] id  names the offer for handoff_broker_cancel(); may be NULL
/// @return HANDOFF_OK: a verdict will come from handoff_broker_next(). After any error nothing was
///         sent and no verdict will come, so serve the client another way:
///         HANDOFF_ERR_BACKEND_UNAVAILABLE without a channel, or while the backend drains;
///         HANDOFF_ERR_FULL if as many offers are in flight, bytes queued or verdicts not taken as
///         may be;
///         HANDOFF_ERR_RATE_LIMITED if the backend failed too often; HANDOFF_ERR_TOO_LARGE if
///         there are more bytes than the backend takes; HANDOFF_ERR_INVALID_ARGUMENT, also if `fd`
///         is not a socket; HANDOFF_ERR_WRONG_PROCESS; HANDOFF_ERR_CLOSED;
///         HANDOFF_ERR_DESCRIPTOR_PRESSURE at the first use.
///
/// Allocates nothing once the broker runs.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_offer(
    broker: *mut handoff_broker,
    offer: *const handoff_offer,
    id: *mut u64,
) -> handoff_status {
    guard(|| {
        let broker = self::broker(broker)?;
        let mut preread = [IoSlice::new(&[])];
        let offer = self::offer(offer, &mut preread)?;
        let out = Out::optional(id, "id")?;
        let id = broker.offer(&offer)?;
        if let Some(out) = out {
            out.set(id);
        }
        Ok(())
    })
}

/// An offer that C passes; `preread` is room for its list of parts.
fn offer<'a>(
    offer: *const handoff_offer,
    preread: &'a mut [IoSlice<'a>; 1],
) -> Result<Offer<'a>, Failure> {
    if offer.is_null() {
        return Err(Failure::Argument("offer"));
    }
    let defaults = handoff_offer {
        size: size_of::<handoff_offer>(),
        fd: -1,
        more: 0,
        preread: std::ptr::null(),
        preread_len: 0,
        metadata: std::ptr::null(),
        metadata_len: 0,
        service: std::ptr::null(),
        correlation: std::ptr::null(),
        user_data: std::ptr::null_mut(),
        timeout_ms: 0,
    };
    let offer = options(offer, defaults, "offer")?;
    let name = |pointer: *const c_char, name| {
        if pointer.is_null() { Ok(&[][..]) } else { string(pointer, name) }
    };
    *preread = [IoSlice::new(slice(offer.preread, offer.preread_len, "offer.preread")?)];
    Ok(Offer {
        descriptor: descriptor(offer.fd, "offer.fd")?,
        preread,
        metadata: slice(offer.metadata, offer.metadata_len, "offer.metadata")?,
        service: name(offer.service, "offer.service")?,
        correlation: name(offer.correlation, "offer.correlation")?,
        user_data: offer.user_data.expose_provenance(),
        timeout: (offer.timeout_ms > 0).then(|| Duration::from_millis(offer.timeout_ms)),
        more: offer.more != 0,
    })
}

/// Offers a connection and waits for its verdict, and before that for the backend's welcome and for
/// room: for the offer's timeout in all. Without a backend it is refused at once. For programs
/// without an event loop.
///
/// @param broker        the broker; verdicts of other offers stay for handoff_broker_next()
/// @param offer         the connection and what goes with it; `more` is not looked at
/// @param[out] verdict  what became of it
/// @return HANDOFF_OK whenever there is a verdict; otherwise as handoff_broker_offer(), and the
///         connection is still the caller's.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_offer_and_wait(
    broker: *mut handoff_broker,
    offer: *const handoff_offer,
    verdict: *mut handoff_verdict,
) -> handoff_status {
    guard(|| {
        let broker = self::broker(broker)?;
        let mut preread = [IoSlice::new(&[])];
        let offer = self::offer(offer, &mut preread)?;
        let out = Out::new(verdict, "verdict")?;
        out.set(broker.offer_and_wait(&offer)?.into());
        Ok(())
    })
}

/// Sends what was offered with `more` set.
///
/// @param broker  the broker
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
///         HANDOFF_ERR_CLOSED; HANDOFF_ERR_SYSTEM.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_flush(broker: *mut handoff_broker) -> handoff_status {
    guard(|| Ok(self::broker(broker)?.flush()?))
}

/// Does everything that is due: connects, receives verdicts, sends, gives up what is late. Call it
/// when the descriptor is readable, then handoff_broker_next(). Never blocks.
///
/// @param broker  the broker
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
///         HANDOFF_ERR_CLOSED; HANDOFF_ERR_SYSTEM. What goes wrong with the backend is not an error
///         here: it is in the verdicts.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_dispatch(broker: *mut handoff_broker) -> handoff_status {
    guard(|| Ok(self::broker(broker)?.dispatch()?))
}

/// Takes the next verdict. Call it until it says HANDOFF_NOTHING. Each offer has exactly one.
///
/// @param broker        the broker
/// @param[out] verdict  what became of which offer
/// @return HANDOFF_OK; HANDOFF_NOTHING; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
///         HANDOFF_ERR_WRONG_PROCESS.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_next(
    broker: *mut handoff_broker,
    verdict: *mut handoff_verdict,
) -> handoff_status {
    guard(|| {
        let broker = self::broker(broker)?;
        let out = Out::new(verdict, "verdict")?;
        broker.check_process()?;
        out.set(broker.next_verdict().ok_or(Failure::Nothing)?.into());
        Ok(())
    })
}

/// Takes an offer back.
///
/// @param broker  the broker
/// @param id      the offer
/// @return HANDOFF_OK: the connection is the caller's, and no verdict will come;
///         HANDOFF_ERR_TOO_LATE if the backend has adopted it, or its verdict has been made: take
///         that from handoff_broker_next(); HANDOFF_ERR_INVALID_ARGUMENT if `broker` is NULL;
///         HANDOFF_ERR_WRONG_PROCESS; HANDOFF_ERR_CLOSED.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_cancel(broker: *mut handoff_broker, id: u64) -> handoff_status {
    guard(|| Ok(self::broker(broker)?.take_back(id)?))
}

/// Takes back everything that is in flight and closes the channel. What became of each offer is to
/// be taken with handoff_broker_next(); nothing else can be done with the broker but freeing it.
///
/// @param broker  the broker
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
///         HANDOFF_ERR_CLOSED if it is closed already.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_close(broker: *mut handoff_broker) -> handoff_status {
    guard(|| Ok(self::broker(broker)?.close()?))
}

/// Tells what a broker has done.
///
/// @param broker              the broker
/// @param[in,out] statistics  begun with HANDOFF_BROKER_STATISTICS_INIT; only what `size` covers is
///                            written
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or `size` is wrong.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_broker_get_statistics(
    broker: *mut handoff_broker,
    statistics: *mut handoff_broker_statistics,
) -> handoff_status {
    guard(|| {
        let broker = self::broker(broker)?;
        let BrokerStatistics {
            offered,
            refused,
            adopted,
            taken_back: cancelled,
            fallbacks: by_reason,
            in_flight,
            queued_bytes,
            connects,
        } = broker.statistics();
        let mut fallback = [0; 32];
        fallback[..Reason::COUNT].copy_from_slice(&by_reason);
        let (in_flight, queued_bytes) = (in_flight as u64, queued_bytes as u64);
        let size = size_of::<handoff_broker_statistics>();
        super::fill(
            statistics,
            handoff_broker_statistics {
                size,
                offered,
                refused,
                adopted,
                cancelled,
                connects,
                in_flight,
                queued_bytes,
                fallback,
            },
            "statistics",
        )
    })
}

impl From<Verdict> for handoff_verdict {
    fn from(verdict: Verdict) -> handoff_verdict {
        let Verdict { id, user_data, adopted, reason, may_have_reached } = verdict;
        handoff_verdict {
            id,
            user_data: std::ptr::with_exposed_provenance_mut(user_data),
            outcome: if adopted { HANDOFF_ADOPTED } else { HANDOFF_FALLBACK },
            reason: reason.map_or(HANDOFF_REASON_NONE, |reason| reason as handoff_reason),
            cause: HANDOFF_OK,
            may_have_reached_backend: may_have_reached,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_of_the_header_are_the_defaults_of_the_core() {
        let options = handoff_broker_options {
            size: 0,
            window: HANDOFF_BROKER_WINDOW,
            timeout_ms: HANDOFF_BROKER_TIMEOUT_MS,
            queue_bytes: HANDOFF_BROKER_QUEUE_BYTES,
            max_failures: HANDOFF_FALLBACK_MAX_FAILURES,
            failure_window_ms: HANDOFF_FALLBACK_WINDOW_MS,
            reconnect_min_ms: HANDOFF_BROKER_RECONNECT_MIN_MS,
            reconnect_max_ms: HANDOFF_BROKER_RECONNECT_MAX_MS,
        };
        assert_eq!(core_options(&options), BrokerOptions::default());
    }
}
