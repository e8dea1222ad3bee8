//! What a backend says to a broker that it turns away. The frame has the same layout in every
//! version of the protocol, so a broker understands it whatever version the backend speaks.

use std::fmt;

use super::{HEADER_LEN, Kind, Reader, VERSION, WireError, header};
use crate::kind::ErrorKind;
use crate::sys::errno::Said;

/// Bytes in the frame behind its header.
pub(crate) const REFUSAL_LEN: usize = 16;

/// Why a backend turns a broker away, as a number in the frame.
pub(crate) mod cause {
    pub(crate) const NOT_ALLOWED: u8 = 1;
    pub(crate) const CHANNELS: u8 = 2;
    pub(crate) const CHANNELS_OF_USER: u8 = 3;
    pub(crate) const VERSION: u8 = 4;
    pub(crate) const DRAINING: u8 = 5;
    pub(crate) const SHORT: u8 = 6;
}

/// The user's number stands for all who have none in the backend's user namespace.
const NAMELESS: u8 = 1;
/// The backend's policy is a list, not the default.
const LISTED: u8 = 2;

/// Why a backend turned a broker away. Fields that do not belong to the cause are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub(crate) cause: u8,
    flags: u8,
    /// The versions of the protocol that the backend speaks, the first and the last.
    versions: [u8; 2],
    /// The broker's user as the backend saw it.
    pub(crate) user: u32,
    /// The backend's own user.
    own: u32,
    /// The limit that is reached; or the system's error number.
    most: u32,
}

impl Refusal {
    const fn of(cause: u8) -> Refusal {
        Refusal { cause, flags: 0, versions: [VERSION; 2], user: 0, own: 0, most: 0 }
    }

    /// The policy does not allow this user. `nameless`: the number stands for all users that have
    /// none in the backend's user namespace. `listed`: the policy is a list, not the default.
    pub(crate) fn not_allowed(user: u32, nameless: bool, listed: bool, own: u32) -> Refusal {
        let flags = if nameless { NAMELESS } else { 0 } | if listed { LISTED } else { 0 };
        Refusal { flags, user, own, ..Refusal::of(cause::NOT_ALLOWED) }
    }

    /// The backend has as many channels as it may have.
    pub(crate) fn channels(most: usize) -> Refusal {
        Refusal { most: most as u32, ..Refusal::of(cause::CHANNELS) }
    }

    /// The brokers of one user have as many channels as they may have.
    pub(crate) fn channels_of_user(user: u32, most: usize) -> Refusal {
        Refusal { user, most: most as u32, ..Refusal::of(cause::CHANNELS_OF_USER) }
    }

    /// The broker speaks a version that this backend does not speak.
    pub(crate) const VERSION: Refusal = Refusal::of(cause::VERSION);

    /// The backend takes no more brokers.
    pub(crate) const DRAINING: Refusal = Refusal::of(cause::DRAINING);

    /// The backend's system refuses it descriptors or memory, with this error number.
    pub(crate) fn short(error: i32) -> Refusal {
        Refusal { most: error as u32, ..Refusal::of(cause::SHORT) }
    }

    /// What a broker makes of a welcome in another version.
    pub(crate) fn speaks(version: u8) -> Refusal {
        Refusal { versions: [version; 2], ..Refusal::VERSION }
    }

    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Refusal, WireError> {
        Ok(Refusal {
            cause: reader.u8()?,
            flags: reader.u8()?,
            versions: reader.array()?,
            user: reader.u32()?,
            own: reader.u32()?,
            most: reader.u32()?,
        })
    }

    pub(crate) fn body(&self) -> [u8; REFUSAL_LEN] {
        let mut body = [0; REFUSAL_LEN];
        body[..4].copy_from_slice(&[self.cause, self.flags, self.versions[0], self.versions[1]]);
        body[4..8].copy_from_slice(&self.user.to_le_bytes());
        body[8..12].copy_from_slice(&self.own.to_le_bytes());
        body[12..].copy_from_slice(&self.most.to_le_bytes());
        body
    }

    pub(crate) fn header() -> [u8; HEADER_LEN] {
        header(Kind::Refusal, 0, 0, REFUSAL_LEN)
    }

    /// The kind of this error, for the broker that was turned away.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self.cause {
            cause::NOT_ALLOWED => ErrorKind::PermissionDenied,
            cause::CHANNELS | cause::CHANNELS_OF_USER => ErrorKind::TooManyChannels,
            cause::VERSION => ErrorKind::Unsupported,
            _ => ErrorKind::BackendUnavailable,
        }
    }

    /// The error number that tells apart what is of one kind.
    pub(crate) fn number(&self) -> Option<i32> {
        match self.cause {
            cause::CHANNELS | cause::CHANNELS_OF_USER => Some(libc::EUSERS),
            cause::DRAINING => Some(libc::ESHUTDOWN),
            // Not the backend's: it would read as a limit of this process.
            cause::SHORT => Some(libc::ENOSR),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal { user, own, most, versions: [first, last], .. } = self;
        match self.cause {
            cause::NOT_ALLOWED => {
                write!(f, "the backend does not allow user {user}")?;
                if self.flags & NAMELESS != 0 {
                    f.write_str(", the number of all who have none in its user namespace")?;
                }
                if self.flags & LISTED != 0 {
                    f.write_str("; it allows the users and groups that its policy lists")?;
                    // Who knows the default expects root to be allowed.
                    f.write_str(if *user == 0 { ", root only if it is one of them" } else { "" })
                } else if *own == 0 {
                    f.write_str("; it allows root (its own)")
                } else {
                    write!(f, "; it allows user {own} (its own) and root")
                }
            }
            cause::CHANNELS => {
                write!(f, "the backend has as many channels as it may: {most} (max_channels)")
            }
            cause::CHANNELS_OF_USER => write!(
                f,
                "the backend has as many channels of user {user} as it may: {most} \
                 (max_channels_per_user)"
            ),
            cause::VERSION => {
                let of = "of the protocol, this broker version";
                match first == last {
                    true => write!(f, "the backend speaks version {first} {of} {VERSION}"),
                    false => {
                        write!(f, "the backend speaks versions {first} to {last} {of} {VERSION}")
                    }
                }
            }
            cause::DRAINING => f.write_str("the backend drains: it takes no more brokers"),
            cause::SHORT => {
                let error = std::io::Error::from_raw_os_error(*most as i32);
                let said = Said(&error);
                write!(f, "the backend is at a limit of its descriptors or memory: {said}")
            }
            unknown => write!(f, "the backend turns this broker away, for cause {unknown}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_tells_apart_what_is_of_one_kind() {
        assert_eq!(Refusal::channels(64).number(), Some(libc::EUSERS));
        assert_eq!(Refusal::channels_of_user(33, 56).number(), Some(libc::EUSERS));
        assert_eq!(Refusal::DRAINING.number(), Some(libc::ESHUTDOWN));
        assert_eq!(Refusal::short(libc::EMFILE).number(), Some(libc::ENOSR));
        assert_eq!(Refusal::not_allowed(33, false, false, 0).number(), None);
        assert_eq!(Refusal::VERSION.number(), None);
    }

    #[test]
    fn sentence_and_kind_say_why() {
        let says = |refusal: Refusal, kind: ErrorKind, sentence: &str| {
            assert_eq!(refusal.kind(), kind);
            assert_eq!(refusal.to_string(), sentence);
        };
        let denied = ErrorKind::PermissionDenied;
        let own = "the backend does not allow user 33; it allows user 1001 (its own) and root";
        says(Refusal::not_allowed(33, false, false, 1001), denied, own);
        let root = "the backend does not allow user 33; it allows root (its own)";
        says(Refusal::not_allowed(33, false, false, 0), denied, root);
        let listed = "the backend does not allow user 65534, the number of all who have none in its \
            user namespace; it allows the users and groups that its policy lists";
        says(Refusal::not_allowed(65534, true, true, 0), denied, listed);
        let root = "the backend does not allow user 0; it allows the users and groups that its policy \
            lists, root only if it is one of them";
        says(Refusal::not_allowed(0, false, true, 1001), denied, root);
        let unavailable = ErrorKind::BackendUnavailable;
        let full = "the backend has as many channels as it may: 64 (max_channels)";
        says(Refusal::channels(64), ErrorKind::TooManyChannels, full);
        let full =
            "the backend has as many channels of user 33 as it may: 56 (max_channels_per_user)";
        says(Refusal::channels_of_user(33, 56), ErrorKind::TooManyChannels, full);
        let other = "the backend speaks version 2 of the protocol, this broker version 1";
        says(Refusal::speaks(2), ErrorKind::Unsupported, other);
        let others = Refusal { versions: [2, 4], ..Refusal::VERSION };
        let other = "the backend speaks versions 2 to 4 of the protocol, this broker version 1";
        says(others, ErrorKind::Unsupported, other);
        says(Refusal::DRAINING, unavailable, "the backend drains: it takes no more brokers");
        // The C library's words.
        let error = std::io::Error::from_raw_os_error(libc::EMFILE);
        let said = Said(&error);
        let short = format!("the backend is at a limit of its descriptors or memory: {said}");
        says(Refusal::short(libc::EMFILE), unavailable, &short);
        let later = "the backend turns this broker away, for cause 77";
        says(Refusal::of(77), unavailable, later);
    }
}
