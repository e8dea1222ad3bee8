//! Why there is no channel to a backend, kept for the offers that come meanwhile.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Allowed, BrokerError, BrokerOptions, NoWelcome};
use crate::memory::NoMemory;
use crate::support::{Need, SupportError};
use crate::wire::Refusal;

/// Why there is no channel.
#[derive(Clone, Copy, Debug)]
pub(super) enum WhyDown {
    /// There is no backend: an error number, of the system or what it means here.
    NoBackend(i32),
    /// The backend said why.
    TurnedAway(Refusal),
    /// Whoever listens there did not say welcome.
    NoWelcome(NoWelcome),
    /// Whoever listens there may not be the backend.
    NotAllowed { user: u32, nameless: bool, own: u32, owner: Option<u32> },
    /// The system does not tell who listens there: an error number.
    Unknown(i32),
    /// The system refused what a channel needs, for want of it or at a limit: an error number.
    Refused(Need, i32),
    /// The system refused something else: what, and an error number.
    System(&'static str, i32),
    /// There is no memory for something.
    NoMemory(&'static str),
}

impl From<io::Error> for WhyDown {
    fn from(error: io::Error) -> WhyDown {
        WhyDown::NoBackend(error.raw_os_error().unwrap_or(libc::ENOTCONN))
    }
}

impl From<SupportError> for WhyDown {
    fn from(SupportError { need, source }: SupportError) -> WhyDown {
        WhyDown::Refused(need, source.raw_os_error().unwrap_or(libc::ENOSYS))
    }
}

impl From<NoMemory> for WhyDown {
    fn from(NoMemory { what, .. }: NoMemory) -> WhyDown {
        WhyDown::NoMemory(what)
    }
}

impl WhyDown {
    /// Whether somebody listens there who did not say welcome. That may come up again before
    /// anything else is known.
    pub(super) fn is_no_welcome(&self) -> bool {
        matches!(self, WhyDown::TurnedAway(_) | WhyDown::NoWelcome(_))
    }

    /// The error of an offer meanwhile.
    #[cold]
    pub(super) fn error(&self, path: &Arc<Path>, options: &BrokerOptions) -> BrokerError {
        let path = path.clone();
        let source = io::Error::from_raw_os_error;
        match *self {
            WhyDown::NoBackend(code) => BrokerError::Unavailable { path, source: source(code) },
            WhyDown::TurnedAway(refusal) => BrokerError::TurnedAway { path, refusal },
            WhyDown::NoWelcome(did) => BrokerError::NoWelcome { path, did },
            WhyDown::Refused(need, code) => SupportError { need, source: source(code) }.into(),
            WhyDown::System(action, code) => BrokerError::System { action, source: source(code) },
            WhyDown::NoMemory(what) => NoMemory { what, source: source(libc::ENOMEM) }.into(),
            WhyDown::Unknown(code) => BrokerError::Unknown { path, source: source(code) },
            WhyDown::NotAllowed { user, nameless, own, owner } => {
                let BrokerOptions { users, groups, .. } = options;
                let allowed = if users.is_empty() && groups.is_empty() {
                    Allowed::Default { own, owner }
                } else {
                    Allowed::Listed { users: users[..].into(), groups: groups[..].into() }
                };
                BrokerError::NotAllowed { path, user, nameless, allowed }
            }
        }
    }
}
