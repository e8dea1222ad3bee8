//! The kinds of error, and what each means for the client. Every module's error names its own kind.

use std::io;

use crate::reason::Reason;

/// The kinds of error, one for each thing that a caller can do about it. The C status of a kind is
/// its number, negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the C constants of the same names document them")]
pub enum ErrorKind {
    /// There is nothing to take now. No error in C.
    Nothing = -1,
    /// A wait ended because its time was up. No error in C.
    TimedOut = -2,
    /// A waker ended a wait. No error in C.
    Woken = -3,
    InvalidArgument = 1,
    Unsupported = 2,
    PermissionDenied = 3,
    BackendUnavailable = 4,
    WouldBlock = 5,
    DescriptorPressure = 6,
    SendFailed = 7,
    ShortWrite = 8,
    AckTimeout = 9,
    AckMismatch = 10,
    AckMalformed = 11,
    ReceiveFailed = 12,
    EndOfStream = 13,
    NoDescriptor = 14,
    SurplusDescriptors = 15,
    ControlTruncated = 16,
    WrongLength = 17,
    TokenMismatch = 18,
    TokenExpired = 19,
    TokenNotPending = 20,
    TokenAlreadyPending = 21,
    TokenCollision = 22,
    Full = 23,
    Random = 24,
    PeerUnknown = 25,
    PeerNotAllowed = 26,
    AddressInUse = 27,
    NotASocket = 28,
    ListenFailed = 29,
    Internal = 30,
    RateLimited = 32,
    TooLarge = 33,
    WrongProcess = 34,
    Closed = 35,
    TakenBack = 36,
    TooLate = 37,
    System = 38,
    NoMemory = 39,
    NotTls = 40,
    TlsKeyUpdate = 41,
    TlsAlert = 42,
    TlsRecord = 43,
    TooManyChannels = 44,
}

impl ErrorKind {
    /// One more than the highest number.
    pub const COUNT: usize = 45;

    /// The kind of an error of the operating system that has no kind of its own.
    pub(crate) fn of_system(error: &io::Error) -> ErrorKind {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => ErrorKind::DescriptorPressure,
            _ => ErrorKind::System,
        }
    }

    /// Which limit an error of kind [`DescriptorPressure`](ErrorKind::DescriptorPressure) is about.
    pub(crate) fn which_limit(error: &io::Error) -> &'static str {
        match error.raw_os_error() {
            Some(libc::EMFILE) => "this process is at its limit of descriptors, RLIMIT_NOFILE",
            Some(libc::ENFILE) => "the system is at its limit of open files",
            Some(libc::ETOOMANYREFS) => {
                "this user has too many descriptors in flight over Unix sockets, see RLIMIT_NOFILE"
            }
            _ => "the system is short of memory",
        }
    }

    /// Whether a broker may hide this behind a fallback: the connection is certainly its own,
    /// wherever this can come up, and nobody need be told. A misuse of the library must not be
    /// hidden.
    pub fn is_fallback_safe(self) -> bool {
        match self {
            // An acknowledgement that could not be received, or one whose entry has left: the
            // backend may own the connection.
            ErrorKind::ReceiveFailed | ErrorKind::TokenNotPending => false,
            kind => kind.reason().is_some(),
        }
    }

    /// Whether what a broker refuses an offer with is about its backends, and may pass.
    pub fn may_pass(self) -> bool {
        matches!(
            self,
            ErrorKind::BackendUnavailable
                | ErrorKind::TooManyChannels
                | ErrorKind::WouldBlock
                | ErrorKind::PermissionDenied
                | ErrorKind::PeerNotAllowed
                | ErrorKind::PeerUnknown
                | ErrorKind::Full
                | ErrorKind::RateLimited
                | ErrorKind::DescriptorPressure
        )
    }

    /// The reason that a broker gives for a fallback after this error; none where a fallback must
    /// not hide it, or where nothing failed.
    pub fn reason(self) -> Option<Reason> {
        match self {
            ErrorKind::RateLimited => Some(Reason::RateLimited),
            ErrorKind::TooLarge => Some(Reason::TooLarge),
            ErrorKind::NotTls => Some(Reason::ClientUnsupported),
            ErrorKind::TooManyChannels => Some(Reason::TooManyChannels),
            ErrorKind::System | ErrorKind::NoMemory => Some(Reason::BackendUnavailable),
            kind => kind.attempt_reason(),
        }
    }

    /// Whether the descriptor may have reached the backend when a call about it ends so.
    pub fn may_have_reached_backend(self) -> bool {
        matches!(
            self,
            ErrorKind::ShortWrite
                | ErrorKind::AckTimeout
                | ErrorKind::AckMismatch
                | ErrorKind::AckMalformed
                | ErrorKind::EndOfStream
                | ErrorKind::ReceiveFailed
                | ErrorKind::Internal
                // A message that was sent before, or an offer.
                | ErrorKind::TokenNotPending
                | ErrorKind::TakenBack
                | ErrorKind::TooLate
                // An offer that was sent, and taken back because its caller could not wait.
                | ErrorKind::System
                | ErrorKind::Woken
                // No acknowledgement yet.
                | ErrorKind::Nothing
        )
    }

    /// Why an attempt of the raw layer that ended so failed; none where no attempt does.
    pub fn attempt_reason(self) -> Option<Reason> {
        Some(match self {
            ErrorKind::Nothing
            | ErrorKind::TimedOut
            | ErrorKind::Woken
            | ErrorKind::InvalidArgument
            | ErrorKind::Internal
            | ErrorKind::WrongProcess
            | ErrorKind::Closed
            | ErrorKind::RateLimited
            | ErrorKind::TooLarge
            | ErrorKind::TakenBack
            | ErrorKind::TooLate
            | ErrorKind::System
            | ErrorKind::NoMemory
            | ErrorKind::NotTls
            | ErrorKind::TlsKeyUpdate
            | ErrorKind::TlsAlert
            | ErrorKind::TlsRecord
            | ErrorKind::TooManyChannels => return None,
            ErrorKind::Unsupported => Reason::UnsupportedPlatform,
            ErrorKind::PermissionDenied | ErrorKind::PeerUnknown | ErrorKind::PeerNotAllowed => {
                Reason::PermissionDenied
            }
            ErrorKind::BackendUnavailable
            | ErrorKind::SendFailed
            | ErrorKind::ReceiveFailed
            | ErrorKind::EndOfStream
            | ErrorKind::Random
            | ErrorKind::AddressInUse
            | ErrorKind::NotASocket
            | ErrorKind::ListenFailed => Reason::BackendUnavailable,
            ErrorKind::WouldBlock | ErrorKind::Full => Reason::BackendBusy,
            ErrorKind::DescriptorPressure | ErrorKind::ControlTruncated => {
                Reason::DescriptorPressure
            }
            ErrorKind::AckTimeout => Reason::AckTimeout,
            ErrorKind::ShortWrite
            | ErrorKind::AckMismatch
            | ErrorKind::AckMalformed
            | ErrorKind::NoDescriptor
            | ErrorKind::SurplusDescriptors
            | ErrorKind::WrongLength
            | ErrorKind::TokenMismatch
            | ErrorKind::TokenExpired
            | ErrorKind::TokenNotPending
            | ErrorKind::TokenAlreadyPending
            | ErrorKind::TokenCollision => Reason::IntegrityMismatch,
        })
    }
}
