//! One connection to hand over, what is checked of it alone, and what became of it.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::BrokerError;
use super::member::PARTS_TOGETHER;
use super::options::MAX_TIMEOUT;
use crate::reason::Reason;
use crate::sys::{self, socket};
use crate::tls;
use crate::wire::{MAX_NAME_LEN, MAX_OFFER_BYTES, has_nul};

/// One connection to hand over.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// The client's connection. It stays the caller's, who keeps it open until the verdict.
    pub descriptor: BorrowedFd<'a>,
    /// Bytes that were already read from it, in one part or several; copied.
    pub preread: &'a [IoSlice<'a>],
    /// Anything for the backend; copied.
    pub metadata: &'a [u8],
    /// The service that is meant, 255 bytes at most, without a NUL; copied.
    pub service: &'a [u8],
    /// What the connection is called in logs, 255 bytes at most, without a NUL; copied.
    pub correlation: &'a [u8],
    /// Comes back with the verdict.
    pub user_data: usize,
    /// How long it may wait for its verdict; none for the timeout of the options.
    pub timeout: Option<Duration>,
    /// The kernel does the connection's TLS, in both directions: see [`tls`]. It is asked
    /// whether it does.
    pub tls: bool,
    /// More offers follow at once: sending is left to the last of them, to
    /// [`Broker::flush`](super::Broker::flush) or to [`Broker::dispatch`](super::Broker::dispatch),
    /// unless what waits makes a good packet by itself.
    pub more: bool,
}

impl<'a> Offer<'a> {
    /// An offer of a connection, and of nothing else.
    pub fn new(descriptor: BorrowedFd<'a>) -> Offer<'a> {
        Offer {
            descriptor,
            preread: &[],
            metadata: &[],
            service: &[],
            correlation: &[],
            user_data: 0,
            timeout: None,
            tls: false,
            more: false,
        }
    }

    /// When it is to be taken back, if it begins to wait now.
    pub(super) fn deadline(&self, otherwise: Duration, now: Instant) -> Instant {
        let timeout = self.timeout.unwrap_or(otherwise).min(MAX_TIMEOUT);
        now.checked_add(timeout).unwrap_or(now)
    }

    /// How many bytes it has beside its fixed part. Fails for what no backend takes, before one is
    /// asked.
    #[inline(always)]
    pub(super) fn checked_len(&self) -> Result<usize, BrokerError> {
        let Offer { preread, metadata, service, correlation, .. } = self;
        for (what, name) in [("service", service), ("correlation", correlation)] {
            if name.is_empty() {
                continue;
            }
            if name.len() > MAX_NAME_LEN {
                return Err(BrokerError::TooLarge { what, len: name.len(), most: MAX_NAME_LEN });
            }
            if has_nul(name) {
                return Err(BrokerError::NameWithNul);
            }
        }
        let len = metadata.len().saturating_add(service.len() + correlation.len());
        let len = preread.iter().fold(len, |len, part| len.saturating_add(part.len()));
        let (what, most) = (PARTS_TOGETHER, MAX_OFFER_BYTES);
        if len > most { Err(BrokerError::TooLarge { what, len, most }) } else { Ok(len) }
    }

    /// Fails unless the kernel does the connection's TLS. Apart, so that an offer without TLS pays
    /// nothing for it.
    #[cold]
    #[inline(never)]
    pub(super) fn check_tls(&self) -> Result<(), BrokerError> {
        tls::check(self.descriptor).map_err(|source| {
            let descriptor = self.descriptor.as_raw_fd();
            BrokerError::WithoutTls { descriptor, source }
        })
    }

    /// The number that the connection's socket has in every process. Fails if it is no socket.
    #[inline(always)]
    pub(super) fn cookie(&self) -> Result<u64, BrokerError> {
        socket::cookie(self.descriptor).map_err(|source| not_a_socket(self.descriptor, source))
    }
}

#[cold]
fn not_a_socket(descriptor: BorrowedFd<'_>, source: io::Error) -> BrokerError {
    let is = match sys::what_is(descriptor) {
        // Only the file, open(2).
        sys::A_SOCKET if source.raw_os_error() == Some(libc::EBADF) => "opened with O_PATH",
        sys::A_SOCKET => return BrokerError::System { action: "ask which socket it is", source },
        is => is,
    };
    BrokerError::NotASocket { descriptor: descriptor.as_raw_fd(), is, source }
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The offer.
    pub id: u64,
    /// What came with it.
    pub user_data: usize,
    /// The backend owns the connection: close the copy, and never shut it down. Otherwise it is
    /// still the broker's.
    pub adopted: bool,
    /// Why it is a fallback, or what else happened to an adoption.
    pub reason: Option<Reason>,
    /// Whether the descriptor may have reached a backend.
    pub may_have_reached: bool,
    /// The number of the backend that had it last: see
    /// [`Broker::backend_name`](super::Broker::backend_name).
    pub backend: u32,
    /// How many backends it was offered to.
    pub attempts: u32,
    /// With [`Reason::Kind`]: the kind of the socket, 1 for streams, 2 for sequenced packets, 4 for
    /// datagrams, 8 for a socket without a peer. Otherwise, and if the backend does not tell, 0.
    pub kind: u8,
}

/// Why an offer is refused.
#[derive(Debug)]
pub(super) struct Refused {
    pub error: BrokerError,
    /// The number of the backend because of which it is; none if it is because of none.
    pub by: Option<u32>,
}

impl From<BrokerError> for Refused {
    fn from(error: BrokerError) -> Refused {
        Refused { error, by: None }
    }
}
