//! The batch: arrivals that the caller takes one after the other. Verdicts are sent together, those
//! of a packet when the caller takes what follows: by then it has served the client whose bytes it
//! read, and sending first would make that client wait while the broker is woken. Those of a packet
//! are sent at once if the last one is a rejection, or comes later than at once. A caller who works on
//! each client for a while sends those that wait with each that it takes. If it stops before the end, a
//! timer wakes it and they are sent then.

use std::time::{Duration, Instant};

use crate::sys;
use crate::sys::event::Events;

/// How long verdicts wait for the end of a batch, and arrivals for a caller that has left them.
pub(super) const BATCH_PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Batch {
    /// The caller is taking arrivals, and has not been told yet that there is no more.
    pub open: bool,
    /// The verdicts of a packet are complete, and are sent when the caller goes on.
    pub complete: bool,
    /// The tick in which an arrival was last taken.
    took_at: Duration,
    /// The tick in which the arrival was taken whose verdict waits longest.
    waits_since: Option<Duration>,
    timer: VerdictTimer,
    timer_set_at: Option<Instant>,
}

/// The timer that wakes a caller who does not go on to the end of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VerdictTimer {
    /// Not set since the last dispatch.
    Unset,
    /// It is put off while batches come, which costs less than setting it for each of them.
    Set,
    /// It is cancelled at the end of the batch: batches are so rare that it would always fire for
    /// nothing, and nothing else needs the timer.
    UntilTheEnd,
}

impl Batch {
    pub(super) fn new() -> Batch {
        Batch {
            open: false,
            complete: false,
            took_at: Duration::ZERO,
            waits_since: None,
            timer: VerdictTimer::Unset,
            timer_set_at: None,
        }
    }

    /// The caller has taken an arrival; says whether verdicts have waited since an earlier tick.
    pub(super) fn took(&mut self) -> bool {
        self.open = true;
        self.took_at = sys::tick();
        self.waits_since.is_some_and(|since| since != self.took_at)
    }

    /// The verdict on the arrival that was taken waits.
    pub(super) fn waits(&mut self) {
        self.waits_since.get_or_insert(self.took_at);
    }

    /// No verdict waits.
    pub(super) fn sent(&mut self) {
        self.waits_since = None;
    }

    /// Whether the caller is likely to take the next arrival soon: it took one just now.
    pub(super) fn goes_on(&self) -> bool {
        self.took_at == sys::tick()
    }

    /// Dispatch sends every verdict, and resets a timer that fired.
    pub(super) fn dispatched(&mut self) {
        self.open = false;
        self.timer = VerdictTimer::Unset;
    }

    /// Makes sure that the caller is woken for a verdict that waits; false if that cannot be.
    pub(super) fn set_timer(&mut self, events: &mut Events) -> bool {
        if self.timer != VerdictTimer::Unset {
            return true;
        }
        let now = Instant::now();
        let seldom = self.timer_set_at.is_none_or(|last| last + BATCH_PAUSE < now);
        let alone = !events.timer.is_armed();
        if events.timer.wake_after(BATCH_PAUSE, now).is_err() {
            return false;
        }
        let until_the_end = seldom && alone;
        self.timer = if until_the_end { VerdictTimer::UntilTheEnd } else { VerdictTimer::Set };
        self.timer_set_at = Some(now);
        true
    }

    /// Cancels the timer if that is worth a system call; nothing else must need it.
    pub(super) fn cancel_timer(&mut self, events: &mut Events) {
        if self.timer == VerdictTimer::UntilTheEnd {
            events.timer.cancel();
            self.timer = VerdictTimer::Unset;
        }
    }
}
