//! The errors: a number, a name and a message for each kind.

use std::ffi::CStr;

use super::status::handoff_status;
use crate::kind::ErrorKind;

/// An argument is NULL, misaligned or out of range, a path is too long for a Unix socket, or a
/// descriptor is not open or of the wrong kind; handoff_last_error() says which. This is a bug in
/// the caller.
pub const HANDOFF_ERR_INVALID_ARGUMENT: handoff_status = -1;
/// The system lacks something, a struct sets a field that this version does not have, or the
/// backend speaks another version of the protocol or does not know offers with TLS;
/// handoff_last_error() says what. Serve the client another way. Trying again does not help.
pub const HANDOFF_ERR_UNSUPPORTED: handoff_status = -2;
/// The permissions of the socket's file or directory, a security module, or the backend's policy do
/// not allow it; handoff_last_error() says which. Check the socket's mode and owner, and the
/// policy.
pub const HANDOFF_ERR_PERMISSION_DENIED: handoff_status = -3;
/// Nobody listens on the handoff socket, or the other end closed it. This is usual while a backend
/// restarts. Or the backend is at a limit of its descriptors or memory: handoff_last_error() says
/// so. Serve the client another way.
pub const HANDOFF_ERR_BACKEND_UNAVAILABLE: handoff_status = -4;
/// The socket's buffer or the listener's backlog is full. Nothing was sent. Try again later.
pub const HANDOFF_ERR_WOULD_BLOCK: handoff_status = -5;
/// Out of descriptors: this process or the system is at its limit (EMFILE, ENFILE) or out of memory
/// for a new socket (ENOBUFS, ENOMEM), or this user has too many in flight over Unix sockets
/// (ETOOMANYREFS). Raise RLIMIT_NOFILE or offer less at once.
pub const HANDOFF_ERR_DESCRIPTOR_PRESSURE: handoff_status = -6;
/// Sending failed with an error that has no status of its own; see errno. Nothing was sent.
pub const HANDOFF_ERR_SEND_FAILED: handoff_status = -7;
/// Raw layer: only a part of the message was sent, but its descriptor was. Close the socket. The
/// other end refuses what it received.
pub const HANDOFF_ERR_SHORT_WRITE: handoff_status = -8;
/// Raw layer: no acknowledgement came by the deadline. Serve the client another way and close the
/// socket.
pub const HANDOFF_ERR_ACK_TIMEOUT: handoff_status = -9;
/// Raw layer: the acknowledgement is for another token. Close the socket.
pub const HANDOFF_ERR_ACK_MISMATCH: handoff_status = -10;
/// Raw layer: what was received is not an acknowledgement. Close the socket.
pub const HANDOFF_ERR_ACK_MALFORMED: handoff_status = -11;
/// Receiving failed with an error that has no status of its own; see errno. In the raw layer, after
/// a message was sent, the backend may own the connection: close(2) your copy and serve nothing.
pub const HANDOFF_ERR_RECEIVE_FAILED: handoff_status = -12;
/// The other end closed the connection, or accepts no more acknowledgements. Close the socket.
pub const HANDOFF_ERR_END_OF_STREAM: handoff_status = -13;
/// Raw layer: the message has no descriptor. Close the socket.
pub const HANDOFF_ERR_NO_DESCRIPTOR: handoff_status = -14;
/// Raw layer: the message has more than one descriptor. All are closed. Close the socket.
pub const HANDOFF_ERR_SURPLUS_DESCRIPTORS: handoff_status = -15;
/// Raw layer: the kernel could not install the descriptors: this process is at its RLIMIT_NOFILE,
/// or a security module refused. Those that it installed are closed. Close the socket.
pub const HANDOFF_ERR_CONTROL_TRUNCATED: handoff_status = -16;
/// Raw layer: the message is shorter or longer than a token. Its descriptor is closed. Close the
/// socket.
pub const HANDOFF_ERR_WRONG_LENGTH: handoff_status = -17;
/// Raw layer: the token is not the expected one.
pub const HANDOFF_ERR_TOKEN_MISMATCH: handoff_status = -18;
/// Raw layer: the token has expired. It is no longer in the store.
pub const HANDOFF_ERR_TOKEN_EXPIRED: handoff_status = -19;
/// Raw layer: the token is not pending: never known here, consumed, revoked or expired. A replay
/// looks like this.
pub const HANDOFF_ERR_TOKEN_NOT_PENDING: handoff_status = -20;
/// Raw layer: the token is already pending.
pub const HANDOFF_ERR_TOKEN_ALREADY_PENDING: handoff_status = -21;
/// Raw layer: every random token was already pending. The system's random source is broken.
pub const HANDOFF_ERR_TOKEN_COLLISION: handoff_status = -22;
/// A limit is reached; handoff_last_error() says which. Try again when there is room, or raise the
/// limit.
pub const HANDOFF_ERR_FULL: handoff_status = -23;
/// The system has no randomness to give; see errno.
pub const HANDOFF_ERR_RANDOM: handoff_status = -24;
/// The system does not say who the peer is. Do not trust it.
pub const HANDOFF_ERR_PEER_UNKNOWN: handoff_status = -25;
/// The policy does not allow this peer. Close the connection.
pub const HANDOFF_ERR_PEER_NOT_ALLOWED: handoff_status = -26;
/// Somebody already listens at that path: another process, perhaps a child of one that has ended,
/// or this process. The socket is untouched. A successor should try again until the old backend
/// drains or ends.
pub const HANDOFF_ERR_ADDRESS_IN_USE: handoff_status = -27;
/// The file at that path is not a socket. It is untouched.
pub const HANDOFF_ERR_NOT_A_SOCKET: handoff_status = -28;
/// The handoff socket could not be made, for a cause that has no status of its own; see errno.
pub const HANDOFF_ERR_LISTEN_FAILED: handoff_status = -29;
/// A bug in the library. What the call did is not known: free the handle. Before you free a broker,
/// call handoff_broker_close() and take the verdicts. Other handles stay usable. Please report the
/// bug, with the text of handoff_last_error().
pub const HANDOFF_ERR_INTERNAL: handoff_status = -30;
/// The backend rests: it failed too often, or offers that timed out hold all its places. Serve the
/// client another way. See HANDOFF_STATE_RESTING.
pub const HANDOFF_ERR_RATE_LIMITED: handoff_status = -32;
/// The offer has more bytes than the backend or the protocol takes.
pub const HANDOFF_ERR_TOO_LARGE: handoff_status = -33;
/// The handle belongs to another process, which used it first. Make a new one after fork().
pub const HANDOFF_ERR_WRONG_PROCESS: handoff_status = -34;
/// The handle is closed. Make a new one.
pub const HANDOFF_ERR_CLOSED: handoff_status = -35;
/// The broker took the offer back or broke the protocol. Forget the arrival. Its descriptor is
/// closed.
pub const HANDOFF_ERR_TAKEN_BACK: handoff_status = -36;
/// The offer cannot be taken back: it was adopted, it has its verdict, or `id` names no offer in
/// flight. In the raw layer: the system refused to take it back, so the backend may own the
/// connection.
pub const HANDOFF_ERR_TOO_LATE: handoff_status = -37;
/// The system refused something that the handle needs; see errno.
pub const HANDOFF_ERR_SYSTEM: handoff_status = -38;
/// There is not enough memory for what the options or the peer ask for. handoff_last_error() says
/// for what.
pub const HANDOFF_ERR_NO_MEMORY: handoff_status = -39;
/// The kernel does not do this connection's TLS in both directions; handoff_last_error() says in
/// which direction it does not. Serve the client another way.
pub const HANDOFF_ERR_NOT_TLS: handoff_status = -40;
/// The client has updated its TLS key, and the session cannot continue. Close the connection.
pub const HANDOFF_ERR_TLS_KEY_UPDATE: handoff_status = -41;
/// The client has sent a TLS alert other than close_notify; handoff_last_error() says which. Close
/// the connection.
pub const HANDOFF_ERR_TLS_ALERT: handoff_status = -42;
/// The client has sent a TLS record other than data, or bytes that are not a record of this
/// connection; handoff_last_error() says what. Close the connection.
pub const HANDOFF_ERR_TLS_RECORD: handoff_status = -43;
/// The backend has reached its limit of channels, in total or for this broker's user;
/// handoff_last_error() says which. The broker tries again. Serve the client another way, and raise
/// `max_channels` or `max_channels_per_user` in handoff_backend_options.
pub const HANDOFF_ERR_TOO_MANY_CHANNELS: handoff_status = -44;

/// What there is to say about an error.
pub(super) struct Entry {
    pub kind: ErrorKind,
    pub name: &'static CStr,
    pub message: &'static CStr,
}

/// Makes the entry of a constant; does not compile if kind and constant have different numbers.
macro_rules! entry {
    ($kind:ident, $constant:ident, $message:literal) => {{
        const { assert!(-(ErrorKind::$kind as handoff_status) == $constant) };
        Entry {
            kind: ErrorKind::$kind,
            name: c_str(concat!(stringify!($constant), "\0")),
            message: $message,
        }
    }};
}

const fn c_str(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("not a C string"),
    }
}

/// Every error.
const ENTRIES: [Entry; 43] = [
    entry!(InvalidArgument, HANDOFF_ERR_INVALID_ARGUMENT, c"invalid argument"),
    entry!(Unsupported, HANDOFF_ERR_UNSUPPORTED, c"not supported"),
    entry!(PermissionDenied, HANDOFF_ERR_PERMISSION_DENIED, c"permission denied"),
    entry!(BackendUnavailable, HANDOFF_ERR_BACKEND_UNAVAILABLE, c"the backend is not available"),
    entry!(
        WouldBlock,
        HANDOFF_ERR_WOULD_BLOCK,
        c"the call would block: something is full or locked"
    ),
    entry!(
        DescriptorPressure,
        HANDOFF_ERR_DESCRIPTOR_PRESSURE,
        c"out of descriptors, or too many are in flight"
    ),
    entry!(SendFailed, HANDOFF_ERR_SEND_FAILED, c"the message could not be sent"),
    entry!(ShortWrite, HANDOFF_ERR_SHORT_WRITE, c"only a part of the message was sent"),
    entry!(AckTimeout, HANDOFF_ERR_ACK_TIMEOUT, c"no acknowledgement by the deadline"),
    entry!(AckMismatch, HANDOFF_ERR_ACK_MISMATCH, c"the acknowledgement is for another token"),
    entry!(AckMalformed, HANDOFF_ERR_ACK_MALFORMED, c"the acknowledgement is malformed"),
    entry!(ReceiveFailed, HANDOFF_ERR_RECEIVE_FAILED, c"receiving failed"),
    entry!(EndOfStream, HANDOFF_ERR_END_OF_STREAM, c"the other end closed the connection"),
    entry!(NoDescriptor, HANDOFF_ERR_NO_DESCRIPTOR, c"the message has no descriptor"),
    entry!(
        SurplusDescriptors,
        HANDOFF_ERR_SURPLUS_DESCRIPTORS,
        c"the message has more than one descriptor"
    ),
    entry!(ControlTruncated, HANDOFF_ERR_CONTROL_TRUNCATED, c"descriptors were lost on arrival"),
    entry!(WrongLength, HANDOFF_ERR_WRONG_LENGTH, c"the message has the wrong length"),
    entry!(TokenMismatch, HANDOFF_ERR_TOKEN_MISMATCH, c"the token is not the expected one"),
    entry!(TokenExpired, HANDOFF_ERR_TOKEN_EXPIRED, c"the token has expired"),
    entry!(TokenNotPending, HANDOFF_ERR_TOKEN_NOT_PENDING, c"the token is not pending"),
    entry!(TokenAlreadyPending, HANDOFF_ERR_TOKEN_ALREADY_PENDING, c"the token is already pending"),
    entry!(TokenCollision, HANDOFF_ERR_TOKEN_COLLISION, c"every random token was already pending"),
    entry!(Full, HANDOFF_ERR_FULL, c"a limit is reached"),
    entry!(Random, HANDOFF_ERR_RANDOM, c"the system has no randomness to give"),
    entry!(PeerUnknown, HANDOFF_ERR_PEER_UNKNOWN, c"the peer's credentials are unknown"),
    entry!(PeerNotAllowed, HANDOFF_ERR_PEER_NOT_ALLOWED, c"the peer is not allowed"),
    entry!(AddressInUse, HANDOFF_ERR_ADDRESS_IN_USE, c"somebody listens at that path already"),
    entry!(NotASocket, HANDOFF_ERR_NOT_A_SOCKET, c"the file is not a socket"),
    entry!(ListenFailed, HANDOFF_ERR_LISTEN_FAILED, c"the handoff socket could not be made"),
    entry!(Internal, HANDOFF_ERR_INTERNAL, c"a bug in the library"),
    entry!(RateLimited, HANDOFF_ERR_RATE_LIMITED, c"the backend rests, because it failed"),
    entry!(TooLarge, HANDOFF_ERR_TOO_LARGE, c"the offer has too many bytes"),
    entry!(WrongProcess, HANDOFF_ERR_WRONG_PROCESS, c"the handle belongs to another process"),
    entry!(Closed, HANDOFF_ERR_CLOSED, c"the handle is closed"),
    entry!(
        TakenBack,
        HANDOFF_ERR_TAKEN_BACK,
        c"the broker took the offer back or broke the protocol"
    ),
    entry!(TooLate, HANDOFF_ERR_TOO_LATE, c"the offer cannot be taken back"),
    entry!(System, HANDOFF_ERR_SYSTEM, c"the system refused something that the handle needs"),
    entry!(NoMemory, HANDOFF_ERR_NO_MEMORY, c"not enough memory"),
    entry!(
        NotTls,
        HANDOFF_ERR_NOT_TLS,
        c"the kernel does not do this connection's TLS in both directions"
    ),
    entry!(TlsKeyUpdate, HANDOFF_ERR_TLS_KEY_UPDATE, c"the client has updated its TLS key"),
    entry!(TlsAlert, HANDOFF_ERR_TLS_ALERT, c"the client has sent a TLS alert"),
    entry!(TlsRecord, HANDOFF_ERR_TLS_RECORD, c"a TLS record other than data, or not authentic"),
    entry!(
        TooManyChannels,
        HANDOFF_ERR_TOO_MANY_CHANNELS,
        c"the backend has as many channels as it may"
    ),
];

/// The entry of an error; none for other numbers.
pub(super) fn entry(status: handoff_status) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| -(entry.kind as handoff_status) == status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Reason;

    #[test]
    fn attempts_fail_for_the_reasons_that_are_counted() {
        let reasons = || ENTRIES.iter().filter_map(|entry| entry.kind.attempt_reason());
        assert!(reasons().all(Reason::is_attempt_failure));
        for reason in (1..).map_while(|number| Reason::try_from(number).ok()) {
            assert_eq!(reasons().any(|it| it == reason), reason.is_attempt_failure(), "{reason:?}");
        }
    }

    #[test]
    fn every_kind_of_error_has_one_number_and_all_are_negative() {
        let numbers = 1..ErrorKind::COUNT as handoff_status;
        for status in -1000..1000 {
            let found = |entry: &&Entry| -(entry.kind as handoff_status) == status;
            // HANDOFF_NOTHING was an error, 31.
            let known = numbers.contains(&-status) && status != -31;
            assert_eq!(ENTRIES.iter().filter(found).count(), usize::from(known), "{status}");
        }
    }
}
