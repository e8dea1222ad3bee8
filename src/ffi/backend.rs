//! The backend's end of its channels.

use std::ffi::{c_char, c_int, c_void};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::time::Duration;

use super::argument::{Out, Problem, check, descriptor, free, nonzero, path, wait};
use super::growing::{Fill, Growing, Input, initialize, read_or_default};
use super::guard::{Failure, guard, guard_or};
use super::in_use::Single;
use super::peer::{handoff_peer_policy, policy};
use super::reason::{handoff_reason, reason};
use super::status::{HANDOFF_OK, handoff_status, status_of};
use crate::backend::{Arrival, Backend, BackendOptions, BackendStatistics, Kinds};
use crate::kind::ErrorKind;
use crate::memory;

/// The backend's end of the channels of one handoff socket.
///
/// It belongs to the process that uses it first. Listening is not a use, so you can listen before
/// fork() and use the backend in one child. The parent and the other children then get
/// HANDOFF_ERR_WRONG_PROCESS. Free their copies, which keep the socket open. Several children need
/// a backend each.
///
/// Once the backend runs, it allocates only for new channels, and for arrivals whose bytes do not
/// fit into the memory that it keeps.
///
/// Only a call with a `wait_ms` waits for a broker. But a hostile broker can send descriptors that
/// are slow to close(2): let only users that you trust connect. See docs/security.md.
pub struct handoff_backend {
    single: Single<Backend>,
}

impl handoff_backend {
    fn new(backend: Backend) -> handoff_backend {
        let waker = backend.waker();
        handoff_backend { single: Single::new(backend, waker) }
    }
}

/// What a call uses.
fn single<'a>(backend: *const handoff_backend) -> Result<&'a Single<Backend>, Failure> {
    check(backend, "backend")?;
    // SAFETY: not NULL and aligned. No call borrows it exclusively, but for the one that frees it.
    Ok(unsafe { &(*backend).single })
}

/// The limits of a backend. Zero is the default in every field but `size`. Out-of-range values are
/// clamped.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_backend_options {
    /// Set by HANDOFF_BACKEND_OPTIONS_INIT.
    pub size: usize,
    /// The permission bits of the socket's file, independent of the umask: default 0600. A broker
    /// needs write permission, unix(7). It has no effect on an abstract name, which has no
    /// permissions: set a policy.
    pub mode: u32,
    /// Brokers that may wait to be accepted, listen(2): default 4096. The system may allow fewer:
    /// somaxconn in listen(2).
    pub backlog: i32,
    /// Who may connect, or NULL for this process's effective user and root. Copied.
    pub policy: *const handoff_peer_policy,
    /// The most channels at once: 1 to 65535, default 64. Each takes about 200 bytes of memory for
    /// each offer that may be in flight. A channel counts until its broker has disconnected and you
    /// hold none of its arrivals.
    pub max_channels: usize,
    /// The most offers in flight on each channel: 1 to 4096, default 256.
    pub max_in_flight: usize,
    /// The most bytes of preread, metadata and names in one offer: at most 131000, default 65536,
    /// or `max_held_bytes` if that is less.
    pub max_offer_bytes: usize,
    /// The most bytes of arrivals held at once: default 67108864; HANDOFF_NO_LIMIT. Further offers
    /// are rejected with HANDOFF_REASON_BACKEND_BUSY. This and `max_kept_bytes` together bound the
    /// memory that arrivals take.
    pub max_held_bytes: usize,
    /// Which sockets to take: HANDOFF_KIND_*, or'ed; default HANDOFF_KIND_STREAM. Others are
    /// rejected.
    pub kinds: u64,
    /// The most channels at once for the brokers of any one user: 1 to `max_channels`. Default:
    /// `max_channels`. If the policy names several users or a group, the default is 7/8 of that,
    /// rounded down, so that no user keeps the others out.
    pub max_channels_per_user: usize,
    /// The most bytes of memory to keep for later arrivals: default 4194304; HANDOFF_NO_LIMIT.
    /// Above that, an arrival's memory is freed at the next dispatch after you adopt or reject it.
    pub max_kept_bytes: usize,
    /// How long to spin, in microseconds: at most 10000, default 0. handoff_backend_accept() spins
    /// before it sleeps. While a broker is connected, handoff_backend_dispatch() spins before it
    /// returns with nothing new. Spinning saves the time to wake up if backend and broker each have
    /// a processor with little else to do. If they share a processor, spinning keeps the other end
    /// from running, and a handoff takes up to `spin_us` longer. In an event loop, if
    /// handoff_backend_next() returned an arrival, call dispatch again before you wait.
    pub spin_us: u32,
    /// Reserved: always 0.
    pub reserved: u32,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_backend_options {
    const INIT: &'static str = "HANDOFF_BACKEND_OPTIONS_INIT";
}
// SAFETY: integers and pointers.
unsafe impl Input for handoff_backend_options {}

/// Connected stream sockets, such as TCP.
pub const HANDOFF_KIND_STREAM: u64 = 1;
/// Connected sockets of sequenced packets.
pub const HANDOFF_KIND_SEQPACKET: u64 = 2;
/// Connected datagram sockets.
pub const HANDOFF_KIND_DATAGRAM: u64 = 4;
/// With one of the others: also sockets without a peer, such as listening ones.
pub const HANDOFF_KIND_UNCONNECTED: u64 = 8;
/// Any socket: the same as all of these together. The backend asks the kernel nothing about the kind
/// of what arrives, which saves time. Use it only if you trust your brokers.
pub const HANDOFF_KIND_ANY: u64 = 15;

/// Initialises options as HANDOFF_BACKEND_OPTIONS_INIT does, for languages without macros.
///
/// @param[out] options  the options
/// @param size          sizeof(handoff_backend_options)
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `options` is NULL or `size` cannot be right.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_options_init(
    options: *mut handoff_backend_options,
    size: usize,
) -> handoff_status {
    guard(|| initialize(options, size))
}

/// Makes a handoff socket and listens on it for brokers.
///
/// The file has its mode before anyone can connect to it. A socket on which nobody listens is
/// replaced. A socket on which somebody listens, and any other file, stays as it is. If several
/// processes start at once, one succeeds, and the others get HANDOFF_ERR_ADDRESS_IN_USE. The file
/// is made in the same directory, under a temporary name that begins with ".", and moves to its
/// path when it is complete: ss(8) and getsockname(2) keep showing the temporary name.
///
/// @param path          the socket's path, at most 107 bytes, in a directory that this process can
///                      write to; "@" starts an abstract name, without a file
/// @param options       the limits, or NULL for the defaults; read during the call only
/// @param[out] backend  the backend; free it with handoff_backend_free()
/// @return HANDOFF_OK; HANDOFF_ERR_ADDRESS_IN_USE; HANDOFF_ERR_NOT_A_SOCKET;
///         HANDOFF_ERR_PERMISSION_DENIED; HANDOFF_ERR_INVALID_ARGUMENT, also if the path cannot be
///         a socket's, `mode` is more than 0777, `max_offer_bytes` is more than `max_held_bytes`
///         or `kinds` is HANDOFF_KIND_UNCONNECTED alone or has an unknown kind;
///         HANDOFF_ERR_UNSUPPORTED if this system lacks what a backend needs, or this library does
///         not know a field that is set;
///         HANDOFF_ERR_DESCRIPTOR_PRESSURE; HANDOFF_ERR_NO_MEMORY; HANDOFF_ERR_LISTEN_FAILED.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_backend_listen(
    path: *const c_char,
    options: *const handoff_backend_options,
    backend: *mut *mut handoff_backend,
) -> handoff_status {
    guard(|| {
        let path = self::path(path)?;
        let options = core_options(read_or_default(options, "options")?)?;
        let out = Out::new(backend, "backend")?;
        out.give(handoff_backend::new(Backend::listen(path, options)?));
        Ok(())
    })
}

/// Listens for brokers on a socket that somebody else made, such as a service manager.
///
/// @param fd            a listening Unix socket of sequenced packets (SOCK_SEQPACKET); duplicated.
///                      It becomes non-blocking, and takes descriptors (SO_PASSRIGHTS). All its
///                      copies share these settings: do not change them, or dispatch may block and
///                      brokers cannot connect. The socket's file, if it has one, is never removed.
/// @param options       the limits, or NULL for the defaults; read during the call only. `mode` and
///                      `backlog` have no effect.
/// @param[out] backend  the backend; free it with handoff_backend_free()
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT, also if `fd` is no such socket, or an option
///         is wrong as in handoff_backend_listen(); HANDOFF_ERR_UNSUPPORTED;
///         HANDOFF_ERR_DESCRIPTOR_PRESSURE; HANDOFF_ERR_NO_MEMORY;
///         HANDOFF_ERR_SYSTEM.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_backend_listen_on(
    fd: c_int,
    options: *const handoff_backend_options,
    backend: *mut *mut handoff_backend,
) -> handoff_status {
    guard(|| {
        let listener = descriptor(fd, "fd")?;
        let options = core_options(read_or_default(options, "options")?)?;
        let out = Out::new(backend, "backend")?;
        out.give(handoff_backend::new(Backend::listen_on(listener, options)?));
        Ok(())
    })
}

fn core_options(options: handoff_backend_options) -> Result<BackendOptions, Failure> {
    let policy = policy(options.policy)?;
    if options.kinds & !HANDOFF_KIND_ANY != 0 {
        return Err(Failure::Argument("options.kinds", Problem::Is("has an unknown kind")));
    }
    if options.reserved != 0 {
        return Err(Failure::Argument("options.reserved", Problem::UnknownField));
    }
    let defaults = BackendOptions::default();
    let max_held_bytes = nonzero(options.max_held_bytes, defaults.max_held_bytes);
    let max_offer_bytes = defaults.max_offer_bytes.min(max_held_bytes);
    let has = |kind| options.kinds & kind != 0;
    Ok(BackendOptions {
        mode: if options.mode == 0 { defaults.mode } else { options.mode },
        backlog: if options.backlog == 0 { defaults.backlog } else { options.backlog },
        users: memory::copy(policy.users, "the policy")?,
        groups: memory::copy(policy.groups, "the policy")?,
        max_channels: nonzero(options.max_channels, defaults.max_channels),
        max_in_flight: nonzero(options.max_in_flight, defaults.max_in_flight),
        max_offer_bytes: nonzero(options.max_offer_bytes, max_offer_bytes),
        max_held_bytes,
        max_kept_bytes: nonzero(options.max_kept_bytes, defaults.max_kept_bytes),
        spin: Duration::from_micros(options.spin_us.into()),
        max_channels_per_user: match options.max_channels_per_user {
            0 => None,
            most => Some(most),
        },
        kinds: match options.kinds {
            0 => defaults.kinds,
            _ => Kinds {
                stream: has(HANDOFF_KIND_STREAM),
                seqpacket: has(HANDOFF_KIND_SEQPACKET),
                datagram: has(HANDOFF_KIND_DATAGRAM),
                unconnected: has(HANDOFF_KIND_UNCONNECTED),
            },
        },
    })
}

/// Runs the body of a call of a backend, and keeps its error with the backend.
fn with(
    backend: *mut handoff_backend,
    body: impl FnOnce(&mut Backend) -> Result<(), Failure>,
) -> handoff_status {
    let status = guard(|| body(&mut *single(backend)?.begin("backend")?));
    if status < HANDOFF_OK {
        if let Ok(single) = single(backend) {
            single.keep_error();
        }
    }
    status
}

/// An offer as the backend sees it. Its token is verified.
///
/// The pointers are valid until you reject the arrival or adopting it fails. Once it is adopted,
/// they are valid until the next handoff_backend_dispatch(), handoff_backend_accept() or
/// handoff_backend_free().
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_arrival {
    /// Set by HANDOFF_ARRIVAL_INIT.
    pub size: usize,
    /// Names the arrival for handoff_backend_adopt() and handoff_backend_reject().
    pub id: u64,
    /// From handoff_backend_accept(): the connection, yours to serve and to close(2). From
    /// handoff_backend_next(): -1, because it is not adopted yet.
    pub fd: c_int,
    /// The broker's process when it connected, for logs: a pid is not an identity. 0 if the broker
    /// is in a PID namespace that this process cannot see.
    pub broker_pid: i32,
    /// The broker's effective user when it connected.
    pub broker_uid: u32,
    /// The broker's effective group when it connected.
    pub broker_gid: u32,
    /// Bytes that the broker has read from the client. They come before what you read from `fd`.
    /// Never NULL; aligned for bytes only.
    pub preread: *const c_void,
    /// The number of bytes.
    pub preread_len: usize,
    /// What the broker wanted you to know. Never NULL; aligned for bytes only.
    pub metadata: *const c_void,
    /// The number of bytes.
    pub metadata_len: usize,
    /// The name of the intended service; "" if the broker named none.
    pub service: *const c_char,
    /// An id for logs; "" if the broker gave none.
    pub correlation: *const c_char,
    /// Not 0: the client speaks TLS, and the kernel does it in both directions. The library has
    /// asked the kernel. Read and write plain bytes, and see tls.h. 0: the broker did not announce
    /// TLS, and the library did not ask the kernel.
    pub tls: u32,
    /// Reserved: always 0.
    pub reserved: u32,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_arrival {
    const INIT: &'static str = "HANDOFF_ARRIVAL_INIT";
}

fn arrival_of(arrival: &Arrival<'_>, fd: c_int) -> handoff_arrival {
    handoff_arrival {
        size: size_of::<handoff_arrival>(),
        id: arrival.id,
        fd,
        broker_pid: arrival.broker.process,
        broker_uid: arrival.broker.user,
        broker_gid: arrival.broker.group,
        preread: arrival.preread.as_ptr().cast(),
        preread_len: arrival.preread.len(),
        metadata: arrival.metadata.as_ptr().cast(),
        metadata_len: arrival.metadata.len(),
        service: arrival.service.as_ptr().cast(),
        correlation: arrival.correlation.as_ptr().cast(),
        tls: arrival.tls.into(),
        reserved: 0,
    }
}

/// Waits for an arrival and adopts it, as accept(2) does. For programs without an event loop.
///
/// A signal does not end the wait. To end it, let the signal's handler call handoff_backend_wake().
///
/// An adopted client waits for you. If you die before you answer, the client is lost. So call this
/// only when you can serve at once.
///
/// Threads may take turns here, under a mutex of your own: docs/guide.md has a recipe.
///
/// @param backend       the backend
/// @param wait_ms       how long to wait, in milliseconds, as in poll(2)
/// @param[out] arrival  the adopted connection and what came with it; close(2) its `fd`
/// @return HANDOFF_OK; HANDOFF_TIMED_OUT if nothing arrived in that time; HANDOFF_WOKEN after
///         handoff_backend_wake(), also if `wait_ms` is 0;
///         HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or `arrival->size` is wrong;
///         HANDOFF_ERR_WRONG_PROCESS; HANDOFF_ERR_DESCRIPTOR_PRESSURE, HANDOFF_ERR_NO_MEMORY,
///         HANDOFF_ERR_UNSUPPORTED at the first use; HANDOFF_ERR_SYSTEM.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_backend_accept(
    backend: *mut handoff_backend,
    wait_ms: c_int,
    arrival: *mut handoff_arrival,
) -> handoff_status {
    with(backend, |backend| {
        let out = Fill::new(arrival, "arrival")?;
        let (descriptor, arrival) = backend.accept(wait(wait_ms))?;
        out.set(arrival_of(&arrival, descriptor.into_raw_fd()));
        Ok(())
    })
}

/// Ends a wait in handoff_backend_accept(): the call that waits returns HANDOFF_WOKEN.
///
/// If no call waits, a later one returns HANDOFF_WOKEN, but only after calls have returned every
/// arrival already received. With a `wait_ms` of 0, everything that is in the sockets comes first.
///
/// @param backend  the backend; nobody may free it meanwhile
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS. It
///         leaves errno and the last errors as they are.
///
/// Safe in any thread and in a signal handler, even while another thread uses the backend.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_wake(backend: *const handoff_backend) -> handoff_status {
    match single(backend) {
        Ok(single) => single.wake(),
        Err(_) => status_of(ErrorKind::InvalidArgument),
    }
}

/// Returns the backend's descriptor, for your event loop. It is readable whenever
/// handoff_backend_dispatch() has work. If handoff_backend_next() has arrivals left that you did
/// not take, the descriptor becomes readable for them within 1 ms. If handoff_backend_accept() with
/// a `wait_ms` of 0 has left some, the descriptor is readable for a level-triggered watch only.
///
/// It stays the same for the backend's life, even after handoff_backend_drain(). You may watch it
/// level- or edge-triggered. This call is a use of the backend: it then belongs to this process.
///
/// @param backend  the backend
/// @return the descriptor, which stays the backend's: do not read, write or close it; -1 on error,
///         with errno, handoff_last_status() and handoff_last_error() set.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_backend_fd(backend: *mut handoff_backend) -> c_int {
    let mut fd = -1;
    let status = with(backend, |backend| {
        fd = backend.descriptor()?.as_raw_fd();
        Ok(())
    });
    if status == HANDOFF_OK { fd } else { -1 }
}

/// Does a backend's pending work: accepts brokers, receives offers, sends verdicts.
///
/// The call does not wait, except to spin for `spin_us`. It does a bounded amount of work: it
/// serves each channel once, and accepts a few new brokers. Call it once when the descriptor is
/// readable, then call handoff_backend_next(). Unless the backend drains, dispatch may leave offers
/// in the socket. The descriptor then becomes readable again, even for an edge-triggered watch.
///
/// @param backend  the backend
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
///         HANDOFF_ERR_DESCRIPTOR_PRESSURE, HANDOFF_ERR_NO_MEMORY, HANDOFF_ERR_UNSUPPORTED at the
///         first use; HANDOFF_ERR_SYSTEM. After an error, call it again. What a broker does wrong,
///         or the system refuses for one broker, is not an error here: the statistics count it.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_backend_dispatch(backend: *mut handoff_backend) -> handoff_status {
    with(backend, |backend| Ok(backend.dispatch()?))
}

/// Takes the next arrival. Look at it, then adopt or reject it, now or later. Meanwhile the client
/// waits. The broker takes the offer back after its `timeout_ms`, or after `attempt_timeout_ms` if
/// another of its backends can take it, and counts that as a failure of this backend: see
/// HANDOFF_STATE_RESTING. Nothing tells you until handoff_backend_adopt() returns
/// HANDOFF_ERR_TAKEN_BACK.
///
/// After each handoff_backend_dispatch(), call it until it returns HANDOFF_NOTHING. This also sends
/// the verdicts of what you adopted and rejected and, with one broker, may receive what has come
/// meanwhile. A loop with a budget may stop earlier, but must take at least one arrival. The
/// descriptor then becomes readable within 1 ms, for the rest and for these verdicts. If you can
/// serve no more for a while, reject with HANDOFF_REASON_BACKEND_BUSY.
///
/// @param backend       the backend
/// @param[out] arrival  what arrived; its `fd` is -1
/// @return HANDOFF_OK; HANDOFF_NOTHING; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or
///         `arrival->size` is wrong: the next call returns the arrival; HANDOFF_ERR_WRONG_PROCESS.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_backend_next(
    backend: *mut handoff_backend,
    arrival: *mut handoff_arrival,
) -> handoff_status {
    with(backend, |backend| {
        let out = Fill::new(arrival, "arrival")?;
        backend.check_process()?;
        out.set(arrival_of(&backend.next_arrival().ok_or(Failure::Nothing)?, -1));
        Ok(())
    })
}

/// Adopts an arrival. After HANDOFF_OK this process alone owns the connection.
///
/// The verdict is sent at the latest by the handoff_backend_next() that returns HANDOFF_NOTHING. So
/// a client that you serve right away has its answer before the broker is woken. If you stop before
/// that, the descriptor becomes readable within 1 ms, and handoff_backend_dispatch() sends the
/// verdict. If you adopt later, the verdict is sent at once, unless you have yet to take other
/// arrivals that came with this one.
///
/// @param backend  the backend
/// @param id       the arrival's id
/// @param[out] fd  the connection, close-on-exec, yours to close(2). Its other flags and options,
///                 including O_NONBLOCK, are as the broker set them. Remove it from your epoll set
///                 (EPOLL_CTL_DEL) before close(2): close(2) does not remove it while the broker
///                 has a copy.
/// @return HANDOFF_OK; HANDOFF_ERR_TAKEN_BACK if the broker took the offer back or broke the
///         protocol: the descriptor is closed; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL
///         (the arrival stays held), or if no arrival with this id is held;
///         HANDOFF_ERR_WRONG_PROCESS. If the broker died without taking the offer back, you can
///         still adopt the arrival: nobody else has the client.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_backend_adopt(
    backend: *mut handoff_backend,
    id: u64,
    fd: *mut c_int,
) -> handoff_status {
    with(backend, |backend| {
        let out = Out::new(fd, "fd")?;
        out.set(backend.adopt(id)?.into_raw_fd());
        Ok(())
    })
}

/// Rejects an arrival. Its descriptor is closed, and the broker serves the client another way. The
/// verdict is sent at once. If you have yet to take other arrivals that came with this one, it is
/// sent with their verdicts.
///
/// If SO_LINGER of socket(7) is on and has a time, it is turned off first, so that close(2) cannot
/// block. That affects the broker's copy, too. The same happens to every arrival that is not adopted.
///
/// @param backend  the backend
/// @param id       the arrival's id
/// @param reason   the reason in the broker's verdict: HANDOFF_REASON_REJECTED, or another one that
///                 fits, but not HANDOFF_REASON_NONE. If the broker has several backends, the offer
///                 goes to the next one after HANDOFF_REASON_BACKEND_BUSY, _BACKEND_UNAVAILABLE,
///                 _DESCRIPTOR_PRESSURE, _ACK_TIMEOUT and _INTEGRITY_MISMATCH. Any other reason is
///                 final. HANDOFF_REASON_ACK_TIMEOUT counts as a failure of this backend.
/// @return HANDOFF_OK, even if the broker has taken the offer back; HANDOFF_ERR_INVALID_ARGUMENT,
///         also if no arrival with this id is held, or for a wrong `reason` (the arrival stays
///         held); HANDOFF_ERR_WRONG_PROCESS.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_reject(
    backend: *mut handoff_backend,
    id: u64,
    reason: handoff_reason,
) -> handoff_status {
    with(backend, |backend| Ok(backend.reject(id, self::reason(reason)?)?))
}

/// Stops listening and tells the brokers to offer no more, including those that it has not accepted
/// yet. A successor can then listen at the path. With handoff_backend_listen_on(), the socket that
/// you passed stays open, and brokers wait there for the successor.
///
/// Go on with your loop. Call dispatch, which now receives every offer that has been sent, as far as
/// `max_held_bytes` allows. Take every arrival with next, and adopt or reject it. If `held` in the
/// statistics is 0 after a dispatch, free the backend at once: then the brokers take back what no
/// dispatch has received. Each connects to the successor when it has nothing in flight here. As soon
/// as you hold no arrivals, the descriptor becomes readable, so that your loop makes that last
/// dispatch. What you adopted stays yours.
///
/// A program without an event loop calls handoff_backend_accept() with a `wait_ms` of 0 until that
/// returns anything but HANDOFF_OK, then handoff_backend_free(). With a negative `wait_ms`,
/// handoff_backend_accept() may now wait forever.
///
/// @param backend  the backend
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_backend_drain(backend: *mut handoff_backend) -> handoff_status {
    with(backend, |backend| Ok(backend.drain()?))
}

/// What a backend has done so far.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_backend_statistics {
    /// Set by HANDOFF_BACKEND_STATISTICS_INIT.
    pub size: usize,
    /// Offers that arrived with their token.
    pub arrived: u64,
    /// Arrivals adopted.
    pub adopted: u64,
    /// Arrivals rejected, by you or because they are not allowed.
    pub rejected: u64,
    /// Arrivals that the broker took back before they were adopted, including those that timed out,
    /// and arrivals whose channel the broker broke.
    pub taken_back: u64,
    /// Channels set up: brokers that connected and were let in.
    pub accepted: u64,
    /// Brokers turned away, and told why: the sum of `refused_users`, `refused_over_limit`,
    /// `refused_versions` and `refused_draining`.
    pub refused: u64,
    /// Channels ended because of a protocol error, or because the broker said nothing in its first
    /// 5 seconds.
    pub broken: u64,
    /// Channels now.
    pub channels: u64,
    /// Arrivals held now: neither adopted nor rejected. Those that handoff_backend_next() has not
    /// returned yet count, too.
    pub held: u64,
    /// The bytes of these arrivals.
    pub held_bytes: u64,
    /// Bytes of memory kept for later arrivals.
    pub kept_bytes: u64,
    /// Of `refused`: those that came when `max_channels` or `max_channels_per_user` was reached.
    pub refused_over_limit: u64,
    /// How often the system refused something that the backend needs for its brokers: descriptors,
    /// memory, randomness, room in a socket's buffer. The backend tries again, rejects the offer,
    /// or ends the channel.
    pub system_errors: u64,
    /// The errno of the last of these; 0 if there was none. EMFILE if the system dropped a
    /// descriptor, without saying why.
    pub system_errno: u64,
    /// Of `refused`: those whose user the policy does not allow.
    pub refused_users: u64,
    /// The user of the last of these, as this process sees it; 0 is root, or there was none.
    pub last_refused_user: u64,
    /// Of `refused`: those that speak another version of the protocol.
    pub refused_versions: u64,
    /// Of `refused`: those that had connected, but were not accepted yet, when the backend began to
    /// drain.
    pub refused_draining: u64,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_backend_statistics {
    const INIT: &'static str = "HANDOFF_BACKEND_STATISTICS_INIT";
}

/// Gets what a backend has done so far.
///
/// @param backend          the backend
/// @param[out] statistics  the counts
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or `statistics->size` is
///         wrong.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_get_statistics(
    backend: *mut handoff_backend,
    statistics: *mut handoff_backend_statistics,
) -> handoff_status {
    with(backend, |backend| {
        let out = Fill::new(statistics, "statistics")?;
        let BackendStatistics {
            arrived,
            adopted,
            rejected,
            taken_back,
            accepted,
            refused,
            broken,
            channels,
            held,
            held_bytes,
            kept_bytes,
            refused_over_limit,
            system_errors,
            last_system_error,
            refused_users,
            last_refused_user,
            refused_versions,
            refused_draining,
        } = backend.statistics();
        out.set(handoff_backend_statistics {
            size: size_of::<handoff_backend_statistics>(),
            arrived,
            adopted,
            rejected,
            taken_back,
            accepted,
            refused,
            broken,
            channels: channels as u64,
            held: held as u64,
            held_bytes: held_bytes as u64,
            kept_bytes: kept_bytes as u64,
            refused_over_limit,
            system_errors,
            system_errno: last_system_error as u64,
            refused_users,
            last_refused_user: last_refused_user.into(),
            refused_versions,
            refused_draining,
        });
        Ok(())
    })
}

/// Returns a message about this backend's last error. See handoff_last_error() for details.
///
/// @param backend  the backend
/// @return a string, never NULL; empty if no call has failed yet or `backend` is NULL. It is valid
///         until the backend's next error, or until you free the backend.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_last_error(backend: *const handoff_backend) -> *const c_char {
    guard_or(c"".as_ptr(), || single(backend).map_or(c"".as_ptr(), Single::last_error))
}

/// Stops listening and frees the backend.
///
/// The call sends the verdicts that wait, and closes every channel and every connection that was
/// not adopted. Connections that you adopted are yours and stay open. The socket's file is removed
/// if it is still the one that handoff_backend_listen() made. In any process but the one that used
/// the backend first, the call closes only that process's copies. If no process has used the
/// backend, the process that made it removes the file, unless that has called fork() since: a child
/// may use the backend.
///
/// @param backend  the backend, or NULL, which does nothing
#[unsafe(no_mangle)]
pub extern "C" fn handoff_backend_free(backend: *mut handoff_backend) {
    free(backend);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::growing::zeroed;
    use crate::wire::kind;

    #[test]
    fn options_of_zero_are_the_defaults_of_the_core() {
        let options = core_options(zeroed()).ok().unwrap();
        assert_eq!(options, BackendOptions::default());
    }

    #[test]
    fn kinds_have_the_numbers_that_verdicts_name() {
        let kinds = [
            (HANDOFF_KIND_STREAM, kind::STREAM),
            (HANDOFF_KIND_SEQPACKET, kind::SEQPACKET),
            (HANDOFF_KIND_DATAGRAM, kind::DATAGRAM),
            (HANDOFF_KIND_UNCONNECTED, kind::UNCONNECTED),
        ];
        assert!(kinds.iter().all(|&(constant, number)| constant == u64::from(number)));
    }

    #[test]
    fn largest_offer_is_by_default_no_larger_than_what_may_be_held() {
        let options = handoff_backend_options { max_held_bytes: 1000, ..zeroed() };
        assert_eq!(core_options(options).ok().unwrap().max_offer_bytes, 1000);
    }
}
