//! What fires the timer of a set of events from outside.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::timer;

/// What fires the timer of an [`Events`](super::Events) to end a wait, in any thread and in a signal
/// handler. It outlives the set.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    /// From [`publish`](super::Timer::publish) on.
    pub(super) timer: OnceLock<Arc<OwnedFd>>,
    /// A wait is to end, the one that runs or the next one.
    ringing: AtomicBool,
    /// How often the timer was fired by others: it may be readable before its time.
    pub(super) fired: AtomicU32,
}

impl Alarm {
    /// Ends the wait that runs, or the next one. Safe in a signal handler; errno may change.
    pub(crate) fn ring(&self) {
        // In this order: the wait looks at the flag when the timer is set for the last time.
        self.ringing.store(true, Ordering::SeqCst);
        self.fire();
    }

    /// Makes the set readable now. Safe in a signal handler; errno may change.
    pub(crate) fn fire(&self) {
        self.fired.fetch_add(1, Ordering::SeqCst);
        self.fire_timer();
    }

    pub(super) fn fire_timer(&self) {
        if let Some(timer) = self.timer.get() {
            // It can fail for no valid timer; and the flag is there.
            let _ = timer::set(timer, Duration::from_nanos(1));
        }
    }

    /// Undoes [`fire`](Alarm::fire), if no one sets the timer meanwhile.
    pub(crate) fn silence(&self) {
        if let Some(timer) = self.timer.get() {
            // It can fail for no valid timer.
            let _ = timer::set(timer, Duration::ZERO);
        }
    }

    pub(crate) fn is_ringing(&self) -> bool {
        self.ringing.load(Ordering::SeqCst)
    }

    /// Clears the flag, and returns what it was.
    pub(crate) fn stop(&self) -> bool {
        self.ringing.swap(false, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Events, Wait};
    use super::*;
    use std::time::Instant;

    #[test]
    fn alarm_that_rang_before_it_had_the_timer_makes_the_set_readable() {
        let alarm = Arc::new(Alarm::default());
        let mut events = Events::new(&alarm).unwrap();
        alarm.fire();
        assert_eq!(events.take_some(Wait::Until(Instant::now() + Duration::from_millis(5))), 0);
        events.timer.publish();
        assert_eq!(events.take_some(Wait::Until(Instant::now() + Duration::from_secs(60))), 1);
        events.timer.done();
        assert!(!events.timer.is_due(Instant::now()));
    }

    #[test]
    fn alarm_ends_the_wait_that_runs_and_one_that_begins_later() {
        let alarm = Arc::new(Alarm::default());
        // Before there is anything to fire.
        alarm.ring();
        let mut events = Events::new(&alarm).unwrap();
        assert_eq!(events.take_some(Wait::Forever), 0);
        assert!(alarm.stop() && !alarm.stop());
        events.timer.publish();

        let other = Arc::clone(&alarm);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            other.ring();
        });
        assert_eq!(events.take_some(Wait::Forever), 1);
        assert!(alarm.stop());
        thread.join().unwrap();
    }
}
