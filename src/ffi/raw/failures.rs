//! The failure counter, and the decision that follows from it.

use std::ffi::c_char;
use std::time::Duration;

use crate::ffi::argument::{Out, Problem, free, nonzero, reference, string, timeout};
use crate::ffi::growing::{Fill, Growing, Input, initialize, read_or_default};
use crate::ffi::guard::{Failure, guard, guard_or};
use crate::ffi::reason::{HANDOFF_REASON_NONE, handoff_reason, reason};
use crate::ffi::status::handoff_status;
use crate::raw::failures::{Decision, Failures, FailuresOptions, Inputs};

/// The recent failures of each backend, and which backends rest, for a broker that uses the raw
/// layer. A channel counts its backend's failures itself.
///
/// Any number of threads may use one at once. After fork() in a program with several threads, make
/// a new one in the child: another thread may have held the lock.
pub struct handoff_raw_failures {
    failures: Failures,
}

/// The limits of a failure counter. Zero is the default in every field but `size`. Out-of-range
/// values are clamped.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_raw_failures_options {
    /// Set by HANDOFF_RAW_FAILURES_OPTIONS_INIT.
    pub size: usize,
    /// A backend rests after this many failures within `period_ms`: 1 to 4096, default 8.
    pub max_failures: usize,
    /// How long a failure counts, in milliseconds: default 30000. If it is under 8000, it is also
    /// the longest pause between two trials. A trial that nobody reports on counts as over after
    /// this time.
    pub period_ms: u64,
    /// The most backends with failures, 1 to 65536, default 1024. Beyond that, the one that failed
    /// longest ago is forgotten.
    pub max_backends: usize,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_raw_failures_options {
    const INIT: &'static str = "HANDOFF_RAW_FAILURES_OPTIONS_INIT";
}
// SAFETY: integers.
unsafe impl Input for handoff_raw_failures_options {}

/// Initialises options as HANDOFF_RAW_FAILURES_OPTIONS_INIT does, for languages without macros.
///
/// @param[out] options  the options
/// @param size          sizeof(handoff_raw_failures_options)
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `options` is NULL or `size` cannot be right.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_failures_options_init(
    options: *mut handoff_raw_failures_options,
    size: usize,
) -> handoff_status {
    guard(|| initialize(options, size))
}

/// Makes a failure counter without failures.
///
/// @param options        the limits, or NULL for the defaults; read during the call only
/// @param[out] failures  the counter; free it with handoff_raw_failures_free()
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `failures` is NULL or `options->size` is
///         wrong.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_failures_new(
    options: *const handoff_raw_failures_options,
    failures: *mut *mut handoff_raw_failures,
) -> handoff_status {
    guard(|| {
        let options = core_options(read_or_default(options, "options")?);
        let out = Out::new(failures, "failures")?;
        out.give(handoff_raw_failures { failures: Failures::new(options) });
        Ok(())
    })
}

fn core_options(options: handoff_raw_failures_options) -> FailuresOptions {
    let defaults = FailuresOptions::default();
    FailuresOptions {
        max_failures: nonzero(options.max_failures, defaults.max_failures),
        period: timeout(options.period_ms, defaults.period),
        max_backends: nonzero(options.max_backends, defaults.max_backends),
    }
}

fn failures<'a>(failures: *const handoff_raw_failures) -> Result<&'a Failures, Failure> {
    reference(failures, "failures").map(|failures| &failures.failures)
}

/// What a broker knows about a connection and its backend before it tries. If all is zero, there is
/// no reason not to try.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_raw_inputs {
    /// Set by HANDOFF_RAW_INPUTS_INIT.
    pub size: usize,
    /// Not 0: the client's protocol or connection cannot change hands.
    pub client_unsupported: u32,
    /// Not 0: the service is configured not to hand over.
    pub policy_disabled: u32,
    /// Not 0: this process is short of descriptors.
    pub descriptor_pressure: u32,
    /// Not 0: the broker uses only backends that it started, and did not start this one.
    pub foreign_backend: u32,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_raw_inputs {
    const INIT: &'static str = "HANDOFF_RAW_INPUTS_INIT";
}
// SAFETY: integers.
unsafe impl Input for handoff_raw_inputs {}

/// Initialises inputs as HANDOFF_RAW_INPUTS_INIT does, for languages without macros.
///
/// @param[out] inputs  the inputs
/// @param size         sizeof(handoff_raw_inputs)
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `inputs` is NULL or `size` cannot be right.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_inputs_init(
    inputs: *mut handoff_raw_inputs,
    size: usize,
) -> handoff_status {
    guard(|| initialize(inputs, size))
}

/// Whether to try a backend.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct handoff_raw_decision {
    /// Set by HANDOFF_RAW_DECISION_INIT.
    pub size: usize,
    /// HANDOFF_REASON_NONE: try. Any other: serve the client another way, for this reason.
    pub reason: handoff_reason,
    /// When to ask again, in milliseconds from now, rounded up; -1 if there is no such time. It is
    /// the time of the next trial or, while a trial is out, the pause that would follow that trial.
    pub retry_after_ms: i64,
}

// SAFETY: repr(C), begins with its size.
unsafe impl Growing for handoff_raw_decision {
    const INIT: &'static str = "HANDOFF_RAW_DECISION_INIT";
}

impl From<Decision> for handoff_raw_decision {
    fn from(decision: Decision) -> handoff_raw_decision {
        let milliseconds = |duration: Duration| {
            i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
        };
        let (reason, retry_after) = match decision {
            Decision::Attempt => (HANDOFF_REASON_NONE, None),
            Decision::Fallback { reason, retry_after } => (reason as handoff_reason, retry_after),
        };
        handoff_raw_decision {
            size: size_of::<handoff_raw_decision>(),
            reason,
            retry_after_ms: retry_after.map_or(-1, milliseconds),
        }
    }
}

/// Decides whether to try a backend.
///
/// A backend that failed too often rests until handoff_raw_failures_record_success(). Meanwhile
/// this call lets one attempt at a time through, as a trial: the first after 1 second, then after
/// pauses of 2, 4, 8, 8 ... seconds. The pause begins when the trial has ended. So after
/// HANDOFF_REASON_NONE make the attempt, and report how it ended with
/// handoff_raw_failures_record_success() or handoff_raw_failures_record_failure(). A trial that
/// nobody reports on counts as over after `period_ms`.
///
/// @param failures       the counter
/// @param backend        names the backend, such as the path of its handoff socket
/// @param inputs         what is known, or NULL if there is no reason not to try; read during the
///                       call only
/// @param[out] decision  HANDOFF_REASON_NONE, or the first of these that applies:
///                       HANDOFF_REASON_CLIENT_UNSUPPORTED, HANDOFF_REASON_POLICY_DISABLED,
///                       HANDOFF_REASON_FOREIGN_BACKEND, HANDOFF_REASON_DESCRIPTOR_PRESSURE,
///                       HANDOFF_REASON_RATE_LIMITED
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if another pointer is NULL or a `size` is
///         wrong.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn handoff_raw_failures_should_attempt(
    failures: *mut handoff_raw_failures,
    backend: *const c_char,
    inputs: *const handoff_raw_inputs,
    decision: *mut handoff_raw_decision,
) -> handoff_status {
    guard(|| {
        let (failures, backend) = (self::failures(failures)?, string(backend, "backend")?);
        let inputs = read_or_default(inputs, "inputs")?;
        let inputs = Inputs {
            client_unsupported: inputs.client_unsupported != 0,
            policy_disabled: inputs.policy_disabled != 0,
            descriptor_pressure: inputs.descriptor_pressure != 0,
            foreign_backend: inputs.foreign_backend != 0,
        };
        let out = Fill::new(decision, "decision")?;
        out.set(failures.should_attempt(backend, &inputs).into());
        Ok(())
    })
}

/// Counts a failed attempt. If a trial is out, the failure counts as the trial's.
///
/// Do not count a rejection (a verdict whose `cause` is HANDOFF_OK): it is an answer, not a
/// failure. The call allocates for a backend's first failure.
///
/// @param failures       the counter
/// @param backend        names the backend; copied
/// @param reason         why it failed, from a handoff_raw_verdict or handoff_status_reason():
///                       HANDOFF_REASON_PERMISSION_DENIED, HANDOFF_REASON_INTEGRITY_MISMATCH,
///                       HANDOFF_REASON_ACK_TIMEOUT, HANDOFF_REASON_BACKEND_UNAVAILABLE,
///                       HANDOFF_REASON_BACKEND_BUSY, HANDOFF_REASON_DESCRIPTOR_PRESSURE or
///                       HANDOFF_REASON_UNSUPPORTED_PLATFORM
/// @param[out] decision  the reason for this fallback and, if the backend rests now, when to try
///                       again; may be NULL
/// @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if another pointer is NULL or `reason` is any
///         other; HANDOFF_ERR_NO_MEMORY.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_failures_record_failure(
    failures: *mut handoff_raw_failures,
    backend: *const c_char,
    reason: handoff_reason,
    decision: *mut handoff_raw_decision,
) -> handoff_status {
    guard(|| {
        let (failures, backend) = (self::failures(failures)?, string(backend, "backend")?);
        let reason = self::reason(reason)?;
        if !reason.is_attempt_failure() {
            let problem = Problem::Is("is not a reason for which an attempt fails");
            return Err(Failure::Argument("reason", problem));
        }
        let out = if decision.is_null() { None } else { Some(Fill::new(decision, "decision")?) };
        let decision = failures.record_failure(backend, reason)?;
        if let Some(out) = out {
            out.set(decision.into());
        }
        Ok(())
    })
}

/// Forgets a backend's failures and ends its rest: it works again.
///
/// @param failures  the counter
/// @param backend   names the backend
/// @return HANDOFF_OK, even if it had none; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_failures_record_success(
    failures: *mut handoff_raw_failures,
    backend: *const c_char,
) -> handoff_status {
    guard(|| {
        self::failures(failures)?.record_success(string(backend, "backend")?);
        Ok(())
    })
}

/// Counts the recent failures of a backend, at most `max_failures`.
///
/// @param failures  the counter
/// @param backend   names the backend
/// @return the count; 0 if a pointer is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_failures_failed_count(
    failures: *const handoff_raw_failures,
    backend: *const c_char,
) -> usize {
    guard_or(0, || match (self::failures(failures), string(backend, "backend")) {
        (Ok(failures), Ok(backend)) => failures.failed_count(backend),
        _ => 0,
    })
}

/// Frees a failure counter.
///
/// @param failures  the counter, or NULL, which does nothing; no thread may be using it
#[unsafe(no_mangle)]
pub extern "C" fn handoff_raw_failures_free(failures: *mut handoff_raw_failures) {
    free(failures);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::growing::zeroed;

    #[test]
    fn options_of_zero_are_the_defaults_of_the_core() {
        assert_eq!(core_options(zeroed()), FailuresOptions::default());
    }
}
