//! What the headers say, at run time: for languages that cannot include them.

use std::ffi::c_char;
use std::mem::offset_of;

use super::argument::{Out, string};
use super::backend::*;
use super::backends::*;
use super::broker::*;
use super::errors::*;
use super::guard::{Failure, guard};
use super::peer::*;
use super::raw::ack::*;
use super::raw::attempt::*;
use super::raw::failures::*;
use super::raw::listener::*;
use super::raw::peer::*;
use super::raw::pending::*;
use super::raw::store::*;
use super::raw::token::*;
use super::reason::*;
use super::status::*;
use super::tls::*;

struct Struct {
    name: &'static str,
    size: usize,
    fields: &'static [Field],
}

pub(super) struct Field {
    pub name: &'static str,
    pub offset: usize,
    pub size: usize,
}

/// A struct of the headers, whose fields are known.
pub(super) trait Layout {
    const FIELDS: &'static [Field];
    /// How many of them the first release has that has the struct: 0.2.0, or a later one.
    const FIRST: usize;

    /// Whether a program can have a struct of so many bytes: it has the fields of the first
    /// release, and no field in part.
    fn can_have(size: usize) -> bool {
        let is_whole =
            |field: &Field| !(field.offset + 1..field.offset + field.size).contains(&size);
        let least = Self::FIELDS[..Self::FIRST].last().map_or(0, |last| last.offset + last.size);
        size >= least && Self::FIELDS.iter().all(is_whole)
    }
}

/// The size of the field that a function returns.
const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// The part of the version that Cargo.toml has.
const fn part(text: &str) -> i64 {
    match i64::from_str_radix(text, 10) {
        Ok(number) => number,
        Err(_) => panic!("not a number"),
    }
}

const MAJOR: i64 = part(env!("CARGO_PKG_VERSION_MAJOR"));
const MINOR: i64 = part(env!("CARGO_PKG_VERSION_MINOR"));
const PATCH: i64 = part(env!("CARGO_PKG_VERSION_PATCH"));

/// Those that src/ffi/header/macros.h and tools/header.rs write.
const MACROS: &[(&str, i64)] = &[
    ("HANDOFF_VERSION_MAJOR", MAJOR),
    ("HANDOFF_VERSION_MINOR", MINOR),
    ("HANDOFF_VERSION_PATCH", PATCH),
    ("HANDOFF_VERSION_NUMBER", (MAJOR << 16) | (MINOR << 8) | PATCH),
    ("HANDOFF_SUPPORTED", 1),
    // As many bits as the field has, all of them set.
    ("HANDOFF_NO_TIMEOUT", -1),
    ("HANDOFF_NO_LIMIT", -1),
];

macro_rules! constants {
    ($($name:ident)*) => {
        const CONSTANTS: &[(&str, i64)] = &[$((stringify!($name), $name as i64)),*];
    };
}

macro_rules! field {
    ($name:ident, $field:ident) => {
        Field {
            name: stringify!($field),
            offset: offset_of!($name, $field),
            size: size_of_field(|value: &$name| &value.$field),
        }
    };
}

/// The fields of each struct. Those that a release has added to it come behind a semicolon.
macro_rules! structs {
    ($($name:ident { $($field:ident),* $(; $($later:ident),*)? })*) => {
        const STRUCTS: &[Struct] = &[$(Struct {
            name: stringify!($name),
            size: size_of::<$name>(),
            fields: $name::FIELDS,
        }),*];
        $(impl Layout for $name {
            const FIELDS: &'static [Field] =
                &[$(field!($name, $field),)* $($(field!($name, $later),)*)?];
            const FIRST: usize = [$(stringify!($field)),*].len();
        })*
        // Does not compile if a field is left out.
        $(const _: fn($name) = |$name { $($field: _,)* $($($later: _),*)? }| {};)*
    };
}

constants! {
    HANDOFF_OK
    HANDOFF_NOTHING
    HANDOFF_TIMED_OUT
    HANDOFF_WOKEN
    HANDOFF_ADOPTED
    HANDOFF_FALLBACK
    HANDOFF_REASON_NONE
    HANDOFF_REASON_CLIENT_UNSUPPORTED
    HANDOFF_REASON_POLICY_DISABLED
    HANDOFF_REASON_DESCRIPTOR_PRESSURE
    HANDOFF_REASON_RATE_LIMITED
    HANDOFF_REASON_PERMISSION_DENIED
    HANDOFF_REASON_INTEGRITY_MISMATCH
    HANDOFF_REASON_ACK_TIMEOUT
    HANDOFF_REASON_FOREIGN_BACKEND
    HANDOFF_REASON_BACKEND_UNAVAILABLE
    HANDOFF_REASON_BACKEND_BUSY
    HANDOFF_REASON_REJECTED
    HANDOFF_REASON_UNSUPPORTED_PLATFORM
    HANDOFF_REASON_BROKER_CLOSED
    HANDOFF_REASON_BACKEND_DIED
    HANDOFF_REASON_CLIENT_GONE
    HANDOFF_REASON_TOO_LARGE
    HANDOFF_REASON_KIND
    HANDOFF_REASON_TOO_MANY_CHANNELS
    HANDOFF_ERR_INVALID_ARGUMENT
    HANDOFF_ERR_UNSUPPORTED
    HANDOFF_ERR_PERMISSION_DENIED
    HANDOFF_ERR_BACKEND_UNAVAILABLE
    HANDOFF_ERR_WOULD_BLOCK
    HANDOFF_ERR_DESCRIPTOR_PRESSURE
    HANDOFF_ERR_SEND_FAILED
    HANDOFF_ERR_SHORT_WRITE
    HANDOFF_ERR_ACK_TIMEOUT
    HANDOFF_ERR_ACK_MISMATCH
    HANDOFF_ERR_ACK_MALFORMED
    HANDOFF_ERR_RECEIVE_FAILED
    HANDOFF_ERR_END_OF_STREAM
    HANDOFF_ERR_NO_DESCRIPTOR
    HANDOFF_ERR_SURPLUS_DESCRIPTORS
    HANDOFF_ERR_CONTROL_TRUNCATED
    HANDOFF_ERR_WRONG_LENGTH
    HANDOFF_ERR_TOKEN_MISMATCH
    HANDOFF_ERR_TOKEN_EXPIRED
    HANDOFF_ERR_TOKEN_NOT_PENDING
    HANDOFF_ERR_TOKEN_ALREADY_PENDING
    HANDOFF_ERR_TOKEN_COLLISION
    HANDOFF_ERR_FULL
    HANDOFF_ERR_RANDOM
    HANDOFF_ERR_PEER_UNKNOWN
    HANDOFF_ERR_PEER_NOT_ALLOWED
    HANDOFF_ERR_ADDRESS_IN_USE
    HANDOFF_ERR_NOT_A_SOCKET
    HANDOFF_ERR_LISTEN_FAILED
    HANDOFF_ERR_INTERNAL
    HANDOFF_ERR_RATE_LIMITED
    HANDOFF_ERR_TOO_LARGE
    HANDOFF_ERR_WRONG_PROCESS
    HANDOFF_ERR_CLOSED
    HANDOFF_ERR_TAKEN_BACK
    HANDOFF_ERR_TOO_LATE
    HANDOFF_ERR_SYSTEM
    HANDOFF_ERR_NO_MEMORY
    HANDOFF_ERR_NOT_TLS
    HANDOFF_ERR_TLS_KEY_UPDATE
    HANDOFF_ERR_TLS_ALERT
    HANDOFF_ERR_TLS_RECORD
    HANDOFF_ERR_TOO_MANY_CHANNELS
    HANDOFF_BROKER_SHARED
    HANDOFF_OFFER_MORE
    HANDOFF_OFFER_TLS
    HANDOFF_BACKEND_BACKUP
    HANDOFF_BACKEND_OFF
    HANDOFF_STATE_CONNECTING
    HANDOFF_STATE_READY
    HANDOFF_STATE_DRAINING
    HANDOFF_STATE_RESTING
    HANDOFF_STATE_DOWN
    HANDOFF_KIND_STREAM
    HANDOFF_KIND_SEQPACKET
    HANDOFF_KIND_DATAGRAM
    HANDOFF_KIND_UNCONNECTED
    HANDOFF_KIND_ANY
    HANDOFF_TLS_1_2
    HANDOFF_TLS_1_3
    HANDOFF_TLS_SEND
    HANDOFF_TLS_RECEIVE
    HANDOFF_RAW_TOKEN_LEN
    HANDOFF_RAW_STREAM
    HANDOFF_RAW_SEQPACKET
}

structs! {
    handoff_broker_options {
        size, max_in_flight, timeout_ms, attempt_timeout_ms, failover_bytes, queue_bytes,
        max_failures, failure_period_ms, reconnect_min_ms, reconnect_max_ms, policy, flags,
        spin_us
    }
    handoff_offer {
        size, fd, flags, preread, preread_len, preread_iov, preread_iov_len, metadata,
        metadata_len, service, correlation, user_data, timeout_ms
    }
    handoff_verdict {
        size, id, user_data, outcome, reason, may_have_reached_backend, attempts, backend, kind,
        reserved
    }
    handoff_broker_statistics {
        size, offered, refused, adopted, taken_back, connects, in_flight, queued_bytes, fallbacks,
        refusals, failovers
    }
    handoff_broker_backend {
        size, path, weight, flags, max_in_flight, max_failures, failure_period_ms
    }
    handoff_broker_backend_state {
        size, path, state, flags, weight, status, system_errno, reserved, message, since_ms,
        next_ms, in_flight, room, connects, failed_connects, offered, adopted, taken_back, fallbacks,
        refusals, histogram
    }
    handoff_backend_options {
        size, mode, backlog, policy, max_channels, max_in_flight, max_offer_bytes, max_held_bytes,
        kinds, max_channels_per_user, max_kept_bytes, spin_us, reserved
    }
    handoff_arrival {
        size, id, fd, broker_pid, broker_uid, broker_gid, preread, preread_len, metadata,
        metadata_len, service, correlation, tls, reserved
    }
    handoff_backend_statistics {
        size, arrived, adopted, rejected, taken_back, accepted, refused, broken, channels, held,
        held_bytes, kept_bytes, refused_over_limit, system_errors, system_errno, refused_users,
        last_refused_user, refused_versions, refused_draining
    }
    handoff_tls_session { size, version, cipher, directions, reserved, version_name, cipher_name }
    handoff_peer_policy { size, users, users_len, groups, groups_len }
    handoff_raw_token { bytes }
    handoff_raw_store_options { size, capacity, lifetime_ms, collision_attempts }
    handoff_raw_ack { size, token, outcome, reason }
    handoff_raw_verdict { size, outcome, reason, cause, may_have_reached_backend }
    handoff_raw_listener_options { size, mode, backlog, socket_type, reserved }
    handoff_raw_peer { size, pid, uid, gid, reserved }
    handoff_raw_pending_options { size, capacity, timeout_ms }
    handoff_raw_failures_options { size, max_failures, period_ms, max_backends }
    handoff_raw_inputs {
        size, client_unsupported, policy_disabled, descriptor_pressure, foreign_backend
    }
    handoff_raw_decision { size, reason, retry_after_ms }
}

/// Gets the value of a constant of the headers.
///
/// HANDOFF_NO_TIMEOUT and HANDOFF_NO_LIMIT are -1: every bit of the field is set. The version and
/// its parts are the library's. handoff_version() returns the version as text.
///
/// @param name        its name, such as "HANDOFF_ERR_FULL"
/// @param[out] value  its value
/// @return HANDOFF_OK; HANDOFF_NOTHING if this library has no such constant, or it is not an
///         integer; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or misaligned.
///
/// Safe in any thread and after fork().
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_constant(name: *const c_char, value: *mut i64) -> handoff_status {
    guard(|| {
        let out = Out::new(value, "value")?;
        let name = string(name, "name")?;
        let mut all = CONSTANTS.iter().chain(MACROS);
        let (_, value) = all.find(|known| known.0.as_bytes() == name).ok_or(Failure::Nothing)?;
        out.set(*value);
        Ok(())
    })
}

/// Gets the size of a struct of the headers, as the library knows it.
///
/// A binding that was written for an older library knows a smaller size. That is not an error: the
/// binding sets the size that it knows. Compare the struct's fields with handoff_field().
///
/// @param name       its name, such as "handoff_offer"
/// @param[out] size  sizeof the struct, in bytes
/// @return HANDOFF_OK; HANDOFF_NOTHING if this library has no such struct;
///         HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or misaligned.
///
/// Safe in any thread and after fork().
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_struct_size(name: *const c_char, size: *mut usize) -> handoff_status {
    guard(|| {
        let out = Out::new(size, "size")?;
        out.set(find_struct(string(name, "name")?)?.size);
        Ok(())
    })
}

/// Gets the place of a field in a struct of the headers.
///
/// @param name         the names of the struct and the field, such as "handoff_offer.preread_len"
/// @param[out] offset  where the field begins, in bytes from the start of the struct
/// @param[out] size    its size in bytes; for an array, the size of all of it
/// @return HANDOFF_OK; HANDOFF_NOTHING if this library has no such struct or field;
///         HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or misaligned.
///
/// Safe in any thread and after fork().
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_field(
    name: *const c_char,
    offset: *mut usize,
    size: *mut usize,
) -> handoff_status {
    guard(|| {
        let (offset, size) = (Out::new(offset, "offset")?, Out::new(size, "size")?);
        let mut names = string(name, "name")?.splitn(2, |byte| *byte == b'.');
        let (of, field) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
        let mut fields = find_struct(of)?.fields.iter();
        let found = fields.find(|known| known.name.as_bytes() == field).ok_or(Failure::Nothing)?;
        offset.set(found.offset);
        size.set(found.size);
        Ok(())
    })
}

fn find_struct(name: &[u8]) -> Result<&'static Struct, Failure> {
    STRUCTS.iter().find(|known| known.name.as_bytes() == name).ok_or(Failure::Nothing)
}
