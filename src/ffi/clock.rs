//! Times as C passes them: nanoseconds of CLOCK_MONOTONIC.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::{Failure, guard_or};
use crate::sys;

/// One moment on both clocks.
fn base() -> (u64, Instant) {
    static BASE: OnceLock<(u64, Instant)> = OnceLock::new();
    *BASE.get_or_init(|| (sys::monotonic_nanoseconds(), Instant::now()))
}

pub(super) fn instant(nanoseconds: u64) -> Result<Instant, Failure> {
    let (base_ns, base) = base();
    let (later, earlier) = (nanoseconds.checked_sub(base_ns), base_ns.checked_sub(nanoseconds));
    let instant = match (later, earlier) {
        (Some(later), _) => base.checked_add(Duration::from_nanos(later)),
        (None, earlier) => base.checked_sub(Duration::from_nanos(earlier.unwrap_or(0))),
    };
    instant.ok_or(Failure::Argument("now_ns"))
}

pub(super) fn nanoseconds(instant: Instant) -> u64 {
    let (base_ns, base) = base();
    let distance = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    match instant.checked_duration_since(base) {
        Some(later) => base_ns.saturating_add(distance(later)),
        None => base_ns.saturating_sub(distance(base.duration_since(instant))),
    }
}

/// The time that every call with `_at` in its name takes.
///
/// @return nanoseconds of CLOCK_MONOTONIC, clock_gettime(2).
///
/// Any thread may call it, also after fork().
#[unsafe(no_mangle)]
pub extern "C" fn handoff_now() -> u64 {
    guard_or(0, sys::monotonic_nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_conversion_both_ways() {
        let now = sys::monotonic_nanoseconds();
        for time in [0, now - 1_000_000, now, now + 3_600_000_000_000] {
            let there = instant(time).ok().unwrap();
            assert_eq!(nanoseconds(there), time);
        }
    }

    #[test]
    fn converted_time_is_the_time_that_the_library_reads_itself() {
        let before = instant(sys::monotonic_nanoseconds()).ok().unwrap();
        let apart = Instant::now().saturating_duration_since(before);
        assert!(apart < Duration::from_secs(1), "{apart:?}");
    }
}
