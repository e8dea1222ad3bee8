//! Reasons, decisions and the window of failures.

use std::ffi::{CStr, c_char};
use std::time::{Duration, Instant};

use super::status::handoff_status;
use super::{Failure, Growing, Out, clock, free, guard, guard_or, options, reference, string};
use crate::raw::failures::{Decision, Failures, FailuresOptions, Inputs};
use crate::reason::{AttemptFailure, Reason};

/// Why a connection was not handed over: one of HANDOFF_REASON_*.
pub type handoff_reason = u32;

/// No reason: it was handed over, or may be.
pub const HANDOFF_REASON_NONE: handoff_reason = 0;
/// The client's protocol or connection cannot change hands.
pub const HANDOFF_REASON_CLIENT_UNSUPPORTED: handoff_reason = 1;
/// The service is configured not to hand over.
pub const HANDOFF_REASON_POLICY_DISABLED: handoff_reason = 2;
/// One side is short of descriptors.
pub const HANDOFF_REASON_DESCRIPTOR_PRESSURE: handoff_reason = 3;
/// The backend failed too often of late.
pub const HANDOFF_REASON_RATE_LIMITED: handoff_reason = 4;
/// The handoff socket or the peer's credentials refuse.
pub const HANDOFF_REASON_PERMISSION_DENIED: handoff_reason = 5;
/// A token or a message was not what it should be.
pub const HANDOFF_REASON_INTEGRITY_MISMATCH: handoff_reason = 6;
/// No verdict, or in the raw layer no acknowledgement, came by the deadline.
pub const HANDOFF_REASON_ACK_TIMEOUT: handoff_reason = 7;
/// The backend was not started by this broker.
pub const HANDOFF_REASON_ADOPTED_BACKEND: handoff_reason = 8;
/// Nobody listens on the handoff socket, or the backend went away before it answered.
pub const HANDOFF_REASON_BACKEND_UNAVAILABLE: handoff_reason = 9;
/// The backend's queue is full.
pub const HANDOFF_REASON_BACKEND_BUSY: handoff_reason = 10;
/// The backend said no.
pub const HANDOFF_REASON_REJECTED: handoff_reason = 11;
/// This system cannot hand connections over.
pub const HANDOFF_REASON_UNSUPPORTED_PLATFORM: handoff_reason = 12;
/// The broker's handle was closed.
pub const HANDOFF_REASON_BROKER_CLOSED: handoff_reason = 13;
/// With HANDOFF_ADOPTED: the backend had adopted the connection, but went away before it said so.
pub const HANDOFF_REASON_BACKEND_DIED: handoff_reason = 14;

/// A reason that C passes.
pub(super) fn reason(value: handoff_reason) -> Result<Reason, Failure> {
    Reason::try_from(value).map_err(|()| Failure::Argument("reason"))
}

/// Names a reason in lower case, for logs: "acknowledgement timeout".
///
/// @param reason  any number
/// @return a constant string, never NULL; "unknown" for other numbers.
///
/// Any thread may call it, also after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_reason_name(reason: handoff_reason) -> *const c_char {
    let name: &CStr = match reason {
        HANDOFF_REASON_NONE => c"none",
        HANDOFF_REASON_CLIENT_UNSUPPORTED => c"client unsupported",
        HANDOFF_REASON_POLICY_DISABLED => c"policy disabled",
        HANDOFF_REASON_DESCRIPTOR_PRESSURE => c"descriptor pressure",
        HANDOFF_REASON_RATE_LIMITED => c"rate limited",
        HANDOFF_REASON_PERMISSION_DENIED => c"permission denied",
        HANDOFF_REASON_INTEGRITY_MISMATCH => c"integrity mismatch",
        HANDOFF_REASON_ACK_TIMEOUT => c"acknowledgement timeout",
        HANDOFF_REASON_ADOPTED_BACKEND => c"adopted backend",
        HANDOFF_REASON_BACKEND_UNAVAILABLE => c"backend unavailable",
        HANDOFF_REASON_BACKEND_BUSY => c"backend busy",
        HANDOFF_REASON_REJECTED => c"rejected",
        HANDOFF_REASON_UNSUPPORTED_PLATFORM => c"unsupported platform",
        HANDOFF_REASON_BROKER_CLOSED => c"broker closed",
        HANDOFF_REASON_BACKEND_DIED => c"backend died",
        _ => c"unknown",
    };
    name.as_ptr()
}

/// How an attempt failed, as far as the fallback policy cares: one of HANDOFF_FAILURE_*.
/// handoff_status_failure() makes one from a status.
pub type handoff_failure = u32;

/// It did not fail, or in a way that is not for a fallback to hide.
pub const HANDOFF_FAILURE_NONE: handoff_failure = 0;
/// The handoff socket or the peer's credentials refuse.
pub const HANDOFF_FAILURE_PERMISSION_DENIED: handoff_failure = 1;
/// A token or a message was not what it should be.
pub const HANDOFF_FAILURE_INTEGRITY_MISMATCH: handoff_failure = 2;
/// No acknowledgement came by the deadline.
pub const HANDOFF_FAILURE_ACK_TIMEOUT: handoff_failure = 3;
/// Nobody listens on the handoff socket, or the backend went away before it answered.
pub const HANDOFF_FAILURE_BACKEND_UNAVAILABLE: handoff_failure = 4;
/// The backend's queue is full.
pub const HANDOFF_FAILURE_BACKEND_BUSY: handoff_failure = 5;
/// One side is short of descriptors.
pub const HANDOFF_FAILURE_DESCRIPTOR_PRESSURE: handoff_failure = 6;
/// This system cannot hand connections over.
pub const HANDOFF_FAILURE_UNSUPPORTED_PLATFORM: handoff_failure = 7;

pub(super) fn failure_number(failure: AttemptFailure) -> handoff_failure {
    match failure {
        AttemptFailure::PermissionDenied => HANDOFF_FAILURE_PERMISSION_DENIED,
        AttemptFailure::IntegrityMismatch => HANDOFF_FAILURE_INTEGRITY_MISMATCH,
        AttemptFailure::AckTimeout => HANDOFF_FAILURE_ACK_TIMEOUT,
        AttemptFailure::BackendUnavailable => HANDOFF_FAILURE_BACKEND_UNAVAILABLE,
        AttemptFailure::BackendBusy => HANDOFF_FAILURE_BACKEND_BUSY,
        AttemptFailure::DescriptorPressure => HANDOFF_FAILURE_DESCRIPTOR_PRESSURE,
        AttemptFailure::UnsupportedPlatform => HANDOFF_FAILURE_UNSUPPORTED_PLATFORM,
    }
}

/// A failure that C passes.
fn failure(value: handoff_failure) -> Option<AttemptFailure> {
    Some(match value {
        HANDOFF_FAILURE_PERMISSION_DENIED => AttemptFailure::PermissionDenied,
        HANDOFF_FAILURE_INTEGRITY_MISMATCH => AttemptFailure::IntegrityMismatch,
        HANDOFF_FAILURE_ACK_TIMEOUT => AttemptFailure::AckTimeout,
        HANDOFF_FAILURE_BACKEND_UNAVAILABLE => AttemptFailure::BackendUnavailable,
        HANDOFF_FAILURE_BACKEND_BUSY => AttemptFailure::BackendBusy,
        HANDOFF_FAILURE_DESCRIPTOR_PRESSURE => AttemptFailure::DescriptorPressure,
        HANDOFF_FAILURE_UNSUPPORTED_PLATFORM => AttemptFailure::UnsupportedPlatform,
        _ => return None,
    })
}

/// Gives the reason for a fallback after this failure.
///
/// @param failure  one of HANDOFF_FAILURE_*
/// @return one of HANDOFF_REASON_*; HANDOFF_REASON_NONE for HANDOFF_FAILURE_NONE and unknown numbers.
///
/// Any thread may call it, also after fork() and in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_failure_reason(failure: handoff_failure) -> handoff_reason {
    let failure = self::failure(failure);
    failure.map_or(HANDOFF_REASON_NONE, |failure| failure.reason() as handoff_reason)
}

/// What a broker knows about a connection and its backend before it tries. Begin with
/// HANDOFF_INPUTS_INIT, which allows everything, and change what is otherwise.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_inputs {
    /// sizeof(handoff_inputs), set by the INIT macro.
    pub size: usize,
    /// Not 0: the client's protocol and connection can change hands.
    pub client_supported: u32,
    /// Not 0: the service is configured to hand over.
    pub policy_enabled: u32,
    /// Not 0: this process is short of descriptors.
    pub descriptor_pressure: u32,
    /// Not 0: the backend was not started by this broker, and is not to be used.
    pub adopted_backend: u32,
}

// SAFETY: repr(C), begins with a usize, all integers.
unsafe impl Growing for handoff_inputs {}

/// Whether to try a backend.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_decision {
    /// HANDOFF_REASON_NONE: offer the connection. Any other: serve the client another way, for
    /// this reason.
    pub reason: handoff_reason,
    /// In how many milliseconds trying again makes sense, rounded up, where time is what is
    /// missing; -1 otherwise.
    pub retry_after_ms: i64,
}

impl From<Decision> for handoff_decision {
    fn from(decision: Decision) -> handoff_decision {
        let milliseconds = |duration: Duration| {
            i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
        };
        match decision {
            Decision::Attempt => {
                handoff_decision { reason: HANDOFF_REASON_NONE, retry_after_ms: -1 }
            }
            Decision::Fallback { reason, retry_after } => handoff_decision {
                reason: reason as handoff_reason,
                retry_after_ms: retry_after.map_or(-1, milliseconds),
            },
        }
    }
}

/// Default of handoff_fallback_options.max_failures.
pub const HANDOFF_FALLBACK_MAX_FAILURES: usize = 8;
/// Default of handoff_fallback_options.window_ms.
pub const HANDOFF_FALLBACK_WINDOW_MS: u64 = 30000;
/// Default of handoff_fallback_options.max_backends.
pub const HANDOFF_FALLBACK_MAX_BACKENDS: usize = 1024;

/// The limits of a fallback state. Begin with HANDOFF_FALLBACK_OPTIONS_INIT and change what you
/// want. A value outside its range is taken to the nearest end of it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_fallback_options {
    /// sizeof(handoff_fallback_options), set by the INIT macro.
    pub size: usize,
    /// Failures within the window after which a backend is not tried: 1 to 4096.
    pub max_failures: usize,
    /// How long a failure counts, in milliseconds: 1 at least.
    pub window_ms: u64,
    /// Backends that failures are held for at once, 1 to 65536; beyond, the one that failed
    /// longest ago is forgotten.
    pub max_backends: usize,
}

// SAFETY: repr(C), begins with a usize, all integers.
unsafe impl Growing for handoff_fallback_options {}

/// The recent failures of each backend, and the decision that follows.
///
/// Any number of threads may use one at once. After fork() in a program with several threads, the
/// child makes one of its own: another thread may have held the lock.
pub struct handoff_fallback {
    state: Failures,
}

/// Makes a fallback state without failures.
///
/// @param options        its limits, or NULL for the defaults; read during the call only
/// @param[out] fallback  the new state; free it with handoff_fallback_free()
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `fallback` is NULL or `options->size` is
///         wrong.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_fallback_new(
    options: *const handoff_fallback_options,
    fallback: *mut *mut handoff_fallback,
) -> handoff_status {
    guard(|| {
        let out = Out::new(fallback, "fallback")?;
        let defaults = handoff_fallback_options {
            size: size_of::<handoff_fallback_options>(),
            max_failures: HANDOFF_FALLBACK_MAX_FAILURES,
            window_ms: HANDOFF_FALLBACK_WINDOW_MS,
            max_backends: HANDOFF_FALLBACK_MAX_BACKENDS,
        };
        let options = self::options(options, defaults, "options")?;
        let state = Failures::new(FailuresOptions {
            max_failures: options.max_failures,
            period: Duration::from_millis(options.window_ms),
            max_backends: options.max_backends,
        });
        out.set(Box::into_raw(Box::new(handoff_fallback { state })));
        Ok(())
    })
}

/// Unmakes a fallback state.
///
/// @param fallback  the state, or NULL, which does nothing; no thread may be using it
#[unsafe(no_mangle)]
pub extern "C" fn handoff_fallback_free(fallback: *mut handoff_fallback) {
    free(fallback);
}

fn state<'a>(fallback: *const handoff_fallback) -> Result<&'a Failures, Failure> {
    reference(fallback, "fallback").map(|fallback| &fallback.state)
}

/// Says whether to offer a connection to a backend.
///
/// @param fallback       the state
/// @param backend        names the backend, such as by the path of its handoff socket
/// @param inputs         what is known, or NULL if nothing speaks against it; not kept
/// @param[out] decision  the first reason that applies of client unsupported, policy disabled,
///                       adopted backend, descriptor pressure and rate limited, or none
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if another pointer is NULL or `inputs->size`
///         is wrong.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_fallback_should_attempt(
    fallback: *const handoff_fallback,
    backend: *const c_char,
    inputs: *const handoff_inputs,
    decision: *mut handoff_decision,
) -> handoff_status {
    guard(|| should_attempt(fallback, Ok(Instant::now()), backend, inputs, decision))
}

/// handoff_fallback_should_attempt() at a given time.
///
/// @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
#[unsafe(no_mangle)]
pub extern "C" fn handoff_fallback_should_attempt_at(
    fallback: *const handoff_fallback,
    now_ns: u64,
    backend: *const c_char,
    inputs: *const handoff_inputs,
    decision: *mut handoff_decision,
) -> handoff_status {
    guard(|| should_attempt(fallback, clock::instant(now_ns), backend, inputs, decision))
}

fn should_attempt(
    fallback: *const handoff_fallback,
    now: Result<Instant, Failure>,
    backend: *const c_char,
    inputs: *const handoff_inputs,
    decision: *mut handoff_decision,
) -> Result<(), Failure> {
    let (state, backend) = (state(fallback)?, string(backend, "backend")?);
    let defaults = handoff_inputs {
        size: size_of::<handoff_inputs>(),
        client_supported: 1,
        policy_enabled: 1,
        descriptor_pressure: 0,
        adopted_backend: 0,
    };
    let inputs = options(inputs, defaults, "inputs")?;
    let inputs = Inputs {
        client_unsupported: inputs.client_supported == 0,
        policy_disabled: inputs.policy_enabled == 0,
        descriptor_pressure: inputs.descriptor_pressure != 0,
        foreign_backend: inputs.adopted_backend != 0,
    };
    let out = Out::new(decision, "decision")?;
    out.set(state.should_attempt_at(backend, &inputs, now?).into());
    Ok(())
}

/// Counts a failed attempt. A rejection is an answer, not a failure.
///
/// @param fallback       the state
/// @param backend        names the backend; copied
/// @param failure        how the attempt failed, see handoff_status_failure()
/// @param[out] decision  the reason for this fallback, and when the next attempt may be made if
///                       the backend is now rate-limited; may be NULL
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if another pointer is NULL or `failure` is
///         HANDOFF_FAILURE_NONE or unknown.
///
/// Allocates for a backend's first failure.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_fallback_record_failure(
    fallback: *mut handoff_fallback,
    backend: *const c_char,
    failure: handoff_failure,
    decision: *mut handoff_decision,
) -> handoff_status {
    guard(|| record_failure(fallback, Ok(Instant::now()), backend, failure, decision))
}

/// handoff_fallback_record_failure() at a given time.
///
/// @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
#[unsafe(no_mangle)]
pub extern "C" fn handoff_fallback_record_failure_at(
    fallback: *mut handoff_fallback,
    now_ns: u64,
    backend: *const c_char,
    failure: handoff_failure,
    decision: *mut handoff_decision,
) -> handoff_status {
    guard(|| record_failure(fallback, clock::instant(now_ns), backend, failure, decision))
}

fn record_failure(
    fallback: *const handoff_fallback,
    now: Result<Instant, Failure>,
    backend: *const c_char,
    failure: handoff_failure,
    decision: *mut handoff_decision,
) -> Result<(), Failure> {
    let (state, backend) = (state(fallback)?, string(backend, "backend")?);
    let failure = self::failure(failure).ok_or(Failure::Argument("failure"))?;
    let out = Out::optional(decision, "decision")?;
    let decision = state.record_failure_at(backend, failure, now?);
    if let Some(out) = out {
        out.set(decision.into());
    }
    Ok(())
}

/// Forgets a backend's failures: it works again.
///
/// @param fallback  the state
/// @param backend   names the backend
/// @return HANDOFF_OK, also if it had none; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_fallback_record_success(
    fallback: *mut handoff_fallback,
    backend: *const c_char,
) -> handoff_status {
    guard(|| {
        state(fallback)?.record_success(string(backend, "backend")?);
        Ok(())
    })
}

/// Counts the failures of a backend that still count, `max_failures` at most.
///
/// @param fallback  the state
/// @param backend   names the backend
/// @return the count; 0 if a pointer is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_fallback_failed_count(
    fallback: *const handoff_fallback,
    backend: *const c_char,
) -> usize {
    guard_or(0, || failed_count(fallback, Ok(Instant::now()), backend).unwrap_or(0))
}

/// handoff_fallback_failed_count() at a given time.
///
/// @param now_ns  see handoff_now(); the count is 0 if it is beyond the clock's range
#[unsafe(no_mangle)]
pub extern "C" fn handoff_fallback_failed_count_at(
    fallback: *const handoff_fallback,
    now_ns: u64,
    backend: *const c_char,
) -> usize {
    guard_or(0, || failed_count(fallback, clock::instant(now_ns), backend).unwrap_or(0))
}

fn failed_count(
    fallback: *const handoff_fallback,
    now: Result<Instant, Failure>,
    backend: *const c_char,
) -> Result<usize, Failure> {
    Ok(state(fallback)?.failed_count_at(string(backend, "backend")?, now?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_of_the_header_are_the_defaults_of_the_core() {
        let defaults = FailuresOptions::default();
        assert_eq!(HANDOFF_FALLBACK_MAX_FAILURES, defaults.max_failures);
        assert_eq!(u128::from(HANDOFF_FALLBACK_WINDOW_MS), defaults.period.as_millis());
        assert_eq!(HANDOFF_FALLBACK_MAX_BACKENDS, defaults.max_backends);
    }

    #[test]
    fn every_reason_has_a_constant_and_a_name_of_its_own() {
        let name = |reason| {
            // SAFETY: the name is a constant string.
            unsafe { CStr::from_ptr(handoff_reason_name(reason)) }.to_str().unwrap()
        };
        let mut names = std::collections::HashSet::from(["unknown", "none"]);
        let known = (0..1000).filter(|value| Reason::try_from(*value).is_ok());
        for reason in known {
            assert!(names.insert(name(reason)), "{reason}");
        }
        assert_eq!(Reason::IntegrityMismatch as u32, HANDOFF_REASON_INTEGRITY_MISMATCH);
        assert_eq!(Reason::BackendDied as u32, HANDOFF_REASON_BACKEND_DIED);
    }

    #[test]
    fn every_failure_survives_conversion_both_ways() {
        for value in 0..1000 {
            if let Some(failure) = failure(value) {
                assert_eq!(failure_number(failure), value);
            }
        }
        assert!(failure(HANDOFF_FAILURE_NONE).is_none());
    }
}
