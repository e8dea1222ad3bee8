//! The backend's end of its channels.

use std::ffi::{c_char, c_int};
use std::os::fd::{AsRawFd, IntoRawFd};

use super::fallback::{handoff_reason, reason};
use super::listener::{HANDOFF_LISTENER_BACKLOG, HANDOFF_LISTENER_MODE};
use super::peer::{handoff_peer, handoff_peer_policy, policy};
use super::status::{HANDOFF_OK, handoff_status};
use super::{Failure, Growing, Out, descriptor, exclusive, free, guard, options, path, timeout};
use crate::backend::{Arrival, Backend, BackendError, BackendOptions, BackendStatistics, Kinds};

/// Default of handoff_backend_options.max_channels.
pub const HANDOFF_BACKEND_MAX_CHANNELS: usize = 64;
/// Default of handoff_backend_options.credit.
pub const HANDOFF_BACKEND_CREDIT: usize = 256;
/// Default of handoff_backend_options.max_offer_bytes.
pub const HANDOFF_BACKEND_MAX_OFFER_BYTES: usize = 65536;
/// Default of handoff_backend_options.max_held_bytes.
pub const HANDOFF_BACKEND_MAX_HELD_BYTES: usize = 67108864;

/// Connected stream sockets, such as TCP: what a backend takes unless it says otherwise.
pub const HANDOFF_KIND_STREAM: u32 = 1;
/// Connected sockets of sequenced packets.
pub const HANDOFF_KIND_SEQPACKET: u32 = 2;
/// Connected datagram sockets.
pub const HANDOFF_KIND_DATAGRAM: u32 = 4;
/// With one of the others: sockets without a peer as well, such as listening ones.
pub const HANDOFF_KIND_UNCONNECTED: u32 = 8;
/// All of them, and any other socket: nothing is asked about what arrives, which saves much of what
/// an arrival costs. For a backend that trusts its brokers to offer what they have accepted.
pub const HANDOFF_KIND_ANY: u32 = 15;

/// The limits of a backend. Begin with HANDOFF_BACKEND_OPTIONS_INIT and change what you want. A
/// value outside its range is taken to the nearest end of it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_backend_options {
    /// sizeof(handoff_backend_options), set by the INIT macro.
    pub size: usize,
    /// Permission bits of the socket's file, see handoff_listener_options.
    pub mode: u32,
    /// Brokers that may wait to be accepted, see handoff_listener_options.
    pub backlog: i32,
    /// Who may connect, or NULL for the default; copied.
    pub policy: *const handoff_peer_policy,
    /// Channels at once: 1 to 65535.
    pub max_channels: usize,
    /// Tokens that each channel has to spend, so offers that it may have in flight: 1 to 4096.
    pub credit: usize,
    /// Bytes of preread, metadata and names in one offer: 131000 at most.
    pub max_offer_bytes: usize,
    /// Bytes of arrivals that are held at once; what comes beyond is rejected.
    pub max_held_bytes: usize,
    /// Which sockets to take: HANDOFF_KIND_*, added up.
    pub kinds: u32,
}

// SAFETY: repr(C), begins with a usize, all integers and pointers.
unsafe impl Growing for handoff_backend_options {}

/// An offer as the backend sees it: its token is verified, and it is adopted only if `fd` says so.
/// The bytes are the library's. They can be read until the arrival is rejected or, once it is
/// adopted, until the next handoff_backend_dispatch() or handoff_backend_accept().
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_arrival {
    /// What handoff_backend_adopt() and handoff_backend_reject() know it by.
    pub id: u64,
    /// The connection, which is this process's to serve and to close(2); -1 if it is not adopted.
    pub fd: c_int,
    /// The broker, as it was when it connected.
    pub broker: handoff_peer,
    /// Bytes that the broker has read from the client: they come before all that is read from it.
    pub preread: *const u8,
    /// How many there are.
    pub preread_len: usize,
    /// Anything that the broker wanted to say.
    pub metadata: *const u8,
    /// How many bytes that is.
    pub metadata_len: usize,
    /// The service that is meant, "" if the broker named none. Ends in NUL.
    pub service: *const c_char,
    /// What the connection is called in logs, "" if it has no name. Ends in NUL.
    pub correlation: *const c_char,
}

/// What a backend has done. Set `size` with HANDOFF_BACKEND_STATISTICS_INIT before asking.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_backend_statistics {
    /// sizeof(handoff_backend_statistics), set by the INIT macro.
    pub size: usize,
    /// Offers that arrived with their token.
    pub arrived: u64,
    /// Arrivals adopted.
    pub adopted: u64,
    /// Arrivals rejected, by the caller or because they are not allowed.
    pub rejected: u64,
    /// Arrivals that the broker took back first.
    pub revoked: u64,
    /// Brokers that were accepted.
    pub accepted: u64,
    /// Connections that were closed: not allowed, or too many.
    pub refused: u64,
    /// Channels that were ended because of what the broker sent.
    pub broken: u64,
    /// Channels now.
    pub channels: u64,
    /// Arrivals held now.
    pub held: u64,
    /// Their bytes.
    pub held_bytes: u64,
}

// SAFETY: repr(C), begins with a usize, all integers.
unsafe impl Growing for handoff_backend_statistics {}

/// The backend's end of the channels of one handoff socket. One thread at a time may use it;
/// different ones are independent. It belongs to the process that uses it first after listening.
/// Once it runs, it allocates only for channels that begin and for arrivals of over 16 KiB.
pub struct handoff_backend {
    backend: Backend,
}

/// Makes a handoff socket and listens on it for brokers. The file is made as by
/// handoff_listener_new().
///
/// @param path          the socket's path, at most 107 bytes; "@" begins an abstract name on Linux
/// @param options       its limits, or NULL for the defaults; read during the call only
/// @param[out] backend  the backend; free it with handoff_backend_free()
/// @return HANDOFF_OK; as handoff_listener_new().
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_listen(
    path: *const c_char,
    options: *const handoff_backend_options,
    backend: *mut *mut handoff_backend,
) -> handoff_status {
    guard(|| {
        let path = self::path(path)?;
        let out = Out::new(backend, "backend")?;
        let backend = Backend::listen(path, core_options(options)?)?;
        out.set(Box::into_raw(Box::new(handoff_backend { backend })));
        Ok(())
    })
}

/// Listens for brokers on a socket that somebody else made, as a service manager does.
///
/// @param fd            a listening Unix socket of sequenced packets; duplicated, so the caller's
///                      stays the caller's. It is made non-blocking, which every copy shares.
/// @param options       its limits, or NULL for the defaults; `mode` and `backlog` are not looked at
/// @param[out] backend  the backend; free it with handoff_backend_free()
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT, also if `fd` is no such socket;
///         HANDOFF_ERR_DESCRIPTOR_PRESSURE; HANDOFF_ERR_SYSTEM.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_listen_on(
    fd: c_int,
    options: *const handoff_backend_options,
    backend: *mut *mut handoff_backend,
) -> handoff_status {
    guard(|| {
        let listener = descriptor(fd, "fd")?;
        let out = Out::new(backend, "backend")?;
        let options = core_options(options)?;
        let listener = listener.try_clone_to_owned().map_err(|source| BackendError::System {
            action: "duplicate the descriptor",
            source,
        })?;
        let backend = Backend::listen_on(listener, options)?;
        out.set(Box::into_raw(Box::new(handoff_backend { backend })));
        Ok(())
    })
}

fn core_options(pointer: *const handoff_backend_options) -> Result<BackendOptions, Failure> {
    let defaults = handoff_backend_options {
        size: size_of::<handoff_backend_options>(),
        mode: HANDOFF_LISTENER_MODE,
        backlog: HANDOFF_LISTENER_BACKLOG,
        policy: std::ptr::null(),
        max_channels: HANDOFF_BACKEND_MAX_CHANNELS,
        credit: HANDOFF_BACKEND_CREDIT,
        max_offer_bytes: HANDOFF_BACKEND_MAX_OFFER_BYTES,
        max_held_bytes: HANDOFF_BACKEND_MAX_HELD_BYTES,
        kinds: HANDOFF_KIND_STREAM,
    };
    let options = options(pointer, defaults, "options")?;
    let policy = policy(options.policy)?;
    if options.kinds & !HANDOFF_KIND_ANY != 0 {
        return Err(Failure::Argument("options.kinds"));
    }
    let has = |kind| options.kinds & kind != 0;
    Ok(BackendOptions {
        mode: options.mode,
        backlog: options.backlog,
        users: policy.users.to_vec(),
        groups: policy.groups.to_vec(),
        max_channels: options.max_channels,
        max_in_flight: options.credit,
        max_offer_bytes: options.max_offer_bytes.min(options.max_held_bytes),
        max_held_bytes: options.max_held_bytes,
        kinds: Kinds {
            stream: has(HANDOFF_KIND_STREAM),
            seqpacket: has(HANDOFF_KIND_SEQPACKET),
            datagram: has(HANDOFF_KIND_DATAGRAM),
            unconnected: options.kinds > HANDOFF_KIND_UNCONNECTED,
        },
    })
}

/// Closes every channel, closes what was not adopted, and stops listening as
/// handoff_listener_free() does. What was adopted stays open: it is the caller's.
///
/// @param backend  the backend, or NULL, which does nothing
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_free(backend: *mut handoff_backend) {
    free(backend);
}

fn backend<'a>(backend: *mut handoff_backend) -> Result<&'a mut Backend, Failure> {
    exclusive(backend, "backend").map(|backend| &mut backend.backend)
}

/// Gives the one descriptor to watch: it is readable whenever handoff_backend_dispatch() has work,
/// level- and edge-triggered, and stays the same.
///
/// @param backend  the backend
/// @return the descriptor, which stays the backend's: do not read, write or close it; -1 on error,
///         with errno and handoff_last_error() set.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_fd(backend: *mut handoff_backend) -> c_int {
    let mut fd = -1;
    let status = guard(|| {
        fd = self::backend(backend)?.descriptor()?.as_raw_fd();
        Ok(())
    });
    if status == HANDOFF_OK { fd } else { -1 }
}

/// Does everything that is due: accepts brokers, receives offers, sends verdicts. Call it when the
/// descriptor is readable, then handoff_backend_next(). Never blocks.
///
/// @param backend  the backend
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
///         HANDOFF_ERR_SYSTEM. What brokers do wrong is not an error here: it is in the statistics.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_dispatch(backend: *mut handoff_backend) -> handoff_status {
    guard(|| Ok(self::backend(backend)?.dispatch()?))
}

/// Takes the next arrival, to look at and then to adopt or reject, now or later. Call it until it
/// says HANDOFF_NOTHING: that sends the brokers what was adopted and rejected so far.
///
/// @param backend       the backend
/// @param[out] arrival  what arrived; its `fd` is -1
/// @return HANDOFF_OK; HANDOFF_NOTHING; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
///         HANDOFF_ERR_WRONG_PROCESS.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_next(
    backend: *mut handoff_backend,
    arrival: *mut handoff_arrival,
) -> handoff_status {
    guard(|| {
        let backend = self::backend(backend)?;
        let out = Out::new(arrival, "arrival")?;
        backend.check_process()?;
        out.set(arrival_of(&backend.next_arrival().ok_or(Failure::Nothing)?, -1));
        Ok(())
    })
}

fn arrival_of(arrival: &Arrival<'_>, fd: c_int) -> handoff_arrival {
    handoff_arrival {
        id: arrival.id,
        fd,
        broker: arrival.broker.into(),
        preread: arrival.preread.as_ptr(),
        preread_len: arrival.preread.len(),
        metadata: arrival.metadata.as_ptr(),
        metadata_len: arrival.metadata.len(),
        service: arrival.service.as_ptr().cast(),
        correlation: arrival.correlation.as_ptr().cast(),
    }
}

/// Adopts an arrival: from HANDOFF_OK on the connection is this process's alone. The broker is told
/// when handoff_backend_next() says HANDOFF_NOTHING, so that clients are answered first; at once if
/// it has said so already; and after a millisecond by handoff_backend_dispatch(), for which the
/// descriptor becomes readable, if you do not go on to that.
///
/// @param backend  the backend
/// @param id       the arrival
/// @param[out] fd  the connection, close-on-exec; the caller's to close(2). Its other flags and
///                 options are as the broker left them.
/// @return HANDOFF_OK; HANDOFF_ERR_REVOKED if the broker has taken it back, or broken its channel:
///         the descriptor is closed; HANDOFF_ERR_INVALID_ARGUMENT, also if no such arrival is
///         held; HANDOFF_ERR_WRONG_PROCESS.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_adopt(
    backend: *mut handoff_backend,
    id: u64,
    fd: *mut c_int,
) -> handoff_status {
    guard(|| {
        let backend = self::backend(backend)?;
        let out = Out::new(fd, "fd")?;
        out.set(backend.adopt(id)?.into_raw_fd());
        Ok(())
    })
}

/// Rejects an arrival: its descriptor is closed, and the broker serves the client another way.
///
/// @param backend  the backend
/// @param id       the arrival
/// @param reason   one of HANDOFF_REASON_*, HANDOFF_REASON_REJECTED if no other fits
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT, also if no such arrival is held;
///         HANDOFF_ERR_WRONG_PROCESS.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_reject(
    backend: *mut handoff_backend,
    id: u64,
    reason: handoff_reason,
) -> handoff_status {
    guard(|| Ok(self::backend(backend)?.reject(id, self::reason(reason)?)?))
}

/// Waits for an arrival and adopts it, as accept(2) does. For programs without an event loop.
///
/// @param backend       the backend
/// @param timeout_ms    how long to wait, in milliseconds; 0 not at all, negative for ever
/// @param[out] arrival  what arrived; its `fd`, close-on-exec, is the caller's to close(2)
/// @return HANDOFF_OK; HANDOFF_ERR_WOULD_BLOCK if nothing came in that time;
///         HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL; HANDOFF_ERR_WRONG_PROCESS;
///         HANDOFF_ERR_SYSTEM.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_accept(
    backend: *mut handoff_backend,
    timeout_ms: c_int,
    arrival: *mut handoff_arrival,
) -> handoff_status {
    guard(|| {
        let backend = self::backend(backend)?;
        let out = Out::new(arrival, "arrival")?;
        let (descriptor, arrival) = backend.accept(timeout(timeout_ms))?;
        out.set(arrival_of(&arrival, descriptor.into_raw_fd()));
        Ok(())
    })
}

/// Grants nothing from now on and stops listening, so that a successor can take the path. What has
/// arrived can still be adopted; when handoff_backend_statistics.held is 0 after a dispatch, the
/// backend can be freed, and brokers take back what was still on its way.
///
/// @param backend  the backend
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_drain(backend: *mut handoff_backend) -> handoff_status {
    guard(|| Ok(self::backend(backend)?.drain()?))
}

/// Tells what a backend has done.
///
/// @param backend             the backend
/// @param[in,out] statistics  begun with HANDOFF_BACKEND_STATISTICS_INIT; only what `size` covers
///                            is written
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or `size` is wrong.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_get_statistics(
    backend: *mut handoff_backend,
    statistics: *mut handoff_backend_statistics,
) -> handoff_status {
    guard(|| {
        let backend = self::backend(backend)?;
        let BackendStatistics {
            arrived,
            adopted,
            rejected,
            taken_back: revoked,
            accepted,
            refused,
            broken,
            channels,
            held,
            held_bytes,
        } = backend.statistics();
        let size = size_of::<handoff_backend_statistics>();
        let (channels, held, held_bytes) = (channels as u64, held as u64, held_bytes as u64);
        super::fill(
            statistics,
            handoff_backend_statistics {
                size,
                arrived,
                adopted,
                rejected,
                revoked,
                accepted,
                refused,
                broken,
                channels,
                held,
                held_bytes,
            },
            "statistics",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_of_the_header_are_the_defaults_of_the_core() {
        let options = core_options(std::ptr::null()).ok().unwrap();
        let BackendOptions { mode, backlog, max_channels, max_in_flight: credit, .. } =
            BackendOptions::default();
        let found = (options.mode, options.backlog, options.max_channels, options.max_in_flight);
        assert_eq!(found, (mode, backlog, max_channels, credit));
        let BackendOptions { max_offer_bytes, max_held_bytes, kinds, .. } =
            BackendOptions::default();
        let found = (options.max_offer_bytes, options.max_held_bytes, options.kinds);
        assert_eq!(found, (max_offer_bytes, max_held_bytes, kinds));
    }
}
