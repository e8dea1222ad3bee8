//! The timer of a set of events: timerfd_create(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Alarm;
use crate::sys::{earlier, new_descriptor, retry};

/// A timer that keeps one time, and that an alarm may fire before.
#[derive(Debug)]
pub(crate) struct Timer {
    /// Shared with the alarm, once that may fire it.
    descriptor: Arc<OwnedFd>,
    alarm: Arc<Alarm>,
    /// When it will fire, if it will.
    armed: Option<Instant>,
    /// It is put off while the caller goes on, but not beyond the second time.
    may_wait: bool,
    not_after: Option<Instant>,
    /// It could not be set when it was last to be.
    missed: bool,
    /// It has fired, and is readable still.
    fired: bool,
    /// The alarm's count when this was last seen to have fired.
    seen: u32,
}

impl Timer {
    /// Makes a timer that the alarm cannot fire yet. `seen`: the alarm's count, from before.
    pub(super) fn new(alarm: &Arc<Alarm>, seen: u32) -> io::Result<Timer> {
        Ok(Timer {
            descriptor: Arc::new(new_timer()?),
            alarm: Arc::clone(alarm),
            armed: None,
            may_wait: false,
            not_after: None,
            missed: false,
            fired: false,
            seen,
        })
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// How often the alarm has fired a timer.
    pub(super) fn alarm_count(&self) -> u32 {
        self.alarm.fired.load(Ordering::SeqCst)
    }

    /// Whether a wait is to end.
    pub(super) fn is_alarm_ringing(&self) -> bool {
        self.alarm.is_ringing()
    }

    /// It was seen to be readable; `alarms` is the alarm's count before that.
    pub(super) fn has_fired(&mut self, alarms: u32) {
        (self.armed, self.fired, self.seen) = (None, true, alarms);
        (self.may_wait, self.not_after) = (false, None);
    }

    /// Lets the alarm fire this timer, and does so if it would have before. Call it when the set is
    /// sure to be used, and by this process: children of fork(2) share a timer that the alarm has.
    pub(crate) fn publish(&self) {
        // Nobody else makes a set for this alarm.
        let _ = self.alarm.timer.set(Arc::clone(&self.descriptor));
        // It is written as well, so that who fires later finds the timer.
        if self.alarm.fired.fetch_add(0, Ordering::SeqCst) != self.seen {
            self.alarm.fire_timer();
        }
    }

    /// What was due is done: a timer that fired is not readable any more.
    pub(crate) fn done(&mut self) {
        if !std::mem::take(&mut self.fired) {
            return;
        }
        let mut expirations = 0u64;
        // SAFETY: the pointer is to 8 bytes, as timerfd_create(2) asks. If it fails, the timer
        // fires once more for nothing.
        unsafe {
            let buffer = (&raw mut expirations).cast();
            libc::read(self.descriptor.as_raw_fd(), buffer, size_of::<u64>());
        }
    }

    /// Makes sure that the descriptor is readable at `when`, or before. A timer that is set for
    /// earlier stays: firing for nothing costs less than setting it for every offer. It keeps one
    /// time only, so that what is not due yet when [`take`](super::Events::take) finds it fired is
    /// asked for again after that.
    pub(crate) fn wake_at(&mut self, when: Instant, now: Instant) -> io::Result<()> {
        if self.armed.is_some_and(|armed| armed <= when) {
            if self.may_wait {
                self.not_after = Some(earlier(self.not_after, when));
            }
            return Ok(());
        }
        self.arm(when, now)?;
        (self.may_wait, self.not_after) = (false, None);
        Ok(())
    }

    /// Makes sure that the descriptor is readable after `pause`, or before, for a caller who may
    /// stop. If it goes on the timer is put off, now and then, and does not fire for nothing.
    pub(crate) fn wake_after(&mut self, pause: Duration, now: Instant) -> io::Result<()> {
        let when = now + pause;
        let (when, not_after) = match self.armed {
            Some(armed) if self.may_wait => {
                if armed > now + pause / 4 {
                    return Ok(());
                }
                (earlier(self.not_after, when), self.not_after)
            }
            Some(armed) if armed <= when => return Ok(()),
            armed => (when, armed),
        };
        self.arm(when, now)?;
        self.may_wait = not_after.is_none_or(|not_after| when < not_after);
        self.not_after = not_after;
        Ok(())
    }

    fn arm(&mut self, when: Instant, now: Instant) -> io::Result<()> {
        // Zero would disarm it.
        let left = when.saturating_duration_since(now).max(Duration::from_nanos(1));
        self.missed = true;
        set(&self.descriptor, left)?;
        self.missed = false;
        (self.armed, self.fired) = (Some(when), false);
        if self.alarm.fired.load(Ordering::SeqCst) != self.seen {
            // Others fired it, which that has undone.
            set(&self.descriptor, Duration::from_nanos(1))?;
        }
        Ok(())
    }

    /// Whether the timer could not be set: nothing may tell when something is due.
    pub(crate) fn missed(&self) -> bool {
        self.missed
    }

    /// Whether the timer may have fired, or could not be set: then [`take`](super::Events::take) must
    /// look.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.fired
            || self.missed
            || self.armed.is_some_and(|armed| armed <= now)
            || self.alarm.fired.load(Ordering::Relaxed) != self.seen
    }

    /// Whether it will fire by `when`, and has not.
    pub(crate) fn fires_by(&self, when: Instant, now: Instant) -> bool {
        self.armed.is_some_and(|armed| armed <= when) && !self.is_due(now)
    }

    /// Whether a timer is set.
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.is_some()
    }

    /// Sets no timer.
    pub(crate) fn cancel(&mut self) {
        // If it could not be, it would fire for nothing.
        if set(&self.descriptor, Duration::ZERO).is_ok() {
            (self.armed, self.fired) = (None, false);
            (self.may_wait, self.not_after) = (false, None);
        }
    }
}

/// Makes a timer, timerfd_create(2).
fn new_timer() -> io::Result<OwnedFd> {
    let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
    // SAFETY: timerfd_create(2) takes no pointers, and makes a new descriptor.
    unsafe { new_descriptor(|| libc::timerfd_create(libc::CLOCK_MONOTONIC, flags)) }
}

pub(super) fn set(timer: &OwnedFd, left: Duration) -> io::Result<()> {
    // Of types that differ: 68 years fit into each of them, and so do a second's nanoseconds.
    let value = libc::timespec {
        tv_sec: left.as_secs().min(i32::MAX as u64) as _,
        tv_nsec: left.subsec_nanos() as _,
    };
    let interval = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let setting = libc::itimerspec { it_interval: interval, it_value: value };
    // SAFETY: `setting` is one itimerspec, which outlives the call; the old one is not wanted.
    retry(|| unsafe {
        let timer = timer.as_raw_fd();
        libc::timerfd_settime(timer, 0, &raw const setting, ptr::null_mut()) as isize
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Events, Wait};
    use super::*;

    #[test]
    fn timer_fires_at_the_earliest_time_asked_for() {
        let mut events = Events::new(&Arc::default()).unwrap();
        let now = Instant::now();
        events.timer.wake_at(now + Duration::from_secs(3600), now).unwrap();
        assert_eq!(events.take_some(Wait::No), 0);
        events.timer.wake_at(now, now).unwrap();
        assert_eq!(events.take_some(Wait::Until(now + Duration::from_secs(60))), 1);
        events.timer.done();
        assert_eq!(events.take_some(Wait::Until(now)), 0);
    }

    #[test]
    fn timer_that_fired_stays_so_until_what_was_due_is_done_or_it_is_set_anew() {
        let mut events = Events::new(&Arc::default()).unwrap();
        let now = Instant::now();
        for set_anew in [true, false] {
            events.timer.wake_at(now, now).unwrap();
            for _ in 0..2 {
                let wait = Wait::Until(now + Duration::from_secs(60));
                assert_eq!(events.take_some(wait), 1);
                assert!(events.timer.is_due(now) && !events.timer.is_armed());
            }
            if set_anew {
                events.timer.wake_at(now + Duration::from_secs(3600), now).unwrap();
            }
            events.timer.done();
            assert!(!events.timer.is_due(now));
            assert_eq!(events.take_some(Wait::No), 0);
        }
    }

    #[test]
    fn timer_for_a_caller_who_may_stop_is_put_off_but_not_beyond_what_else_is_due() {
        let mut events = Events::new(&Arc::default()).unwrap();
        // So long that nothing fires.
        let (start, hour) = (Instant::now(), Duration::from_secs(3600));
        let at = |quarters: u32| start + quarters * hour / 4;
        let mut goes_on = |now: u32| {
            events.timer.wake_after(hour, at(now)).unwrap();
            events.timer.armed
        };
        assert_eq!(goes_on(0), Some(at(4)));
        assert_eq!(goes_on(2), Some(at(4)));
        assert_eq!(goes_on(3), Some(at(7)));
        // Whether that asks after it,
        events.timer.wake_at(at(9), at(4)).unwrap();
        events.timer.wake_at(at(10), at(4)).unwrap();
        for (now, armed) in [(6, 9), (8, 9)] {
            events.timer.wake_after(hour, at(now)).unwrap();
            assert_eq!(events.timer.armed, Some(at(armed)));
        }
        // or before,
        events.timer.cancel();
        events.timer.wake_at(at(6), start).unwrap();
        for (now, armed) in [(0, 4), (3, 6), (5, 6)] {
            events.timer.wake_after(hour, at(now)).unwrap();
            assert_eq!(events.timer.armed, Some(at(armed)));
        }
        // or is due before it.
        events.timer.cancel();
        events.timer.wake_after(hour, start).unwrap();
        events.timer.wake_at(at(2), start).unwrap();
        for now in [0, 1] {
            events.timer.wake_after(hour, at(now)).unwrap();
            assert_eq!(events.timer.armed, Some(at(2)));
        }
        assert!(!events.timer.is_due(at(1)) && events.timer.is_due(at(2)));
        let fires = |when, now| events.timer.fires_by(at(when), at(now));
        assert!(!fires(1, 0) && fires(2, 0) && fires(3, 1) && !fires(3, 2));
    }

    #[test]
    fn timer_that_others_fired_is_not_set_for_later() {
        let alarm = Arc::new(Alarm::default());
        let mut events = Events::new(&alarm).unwrap();
        events.timer.publish();
        for put_off in [false, true] {
            alarm.fire();
            let now = Instant::now();
            let hour = Duration::from_secs(3600);
            let set = if put_off {
                events.timer.wake_after(hour, now)
            } else {
                events.timer.wake_at(now + hour, now)
            };
            set.unwrap();
            let wait = Wait::Until(now + Duration::from_secs(60));
            assert_eq!(events.take_some(wait), 1);
            events.timer.done();
            assert!(!events.timer.is_due(Instant::now()));
        }
    }

    #[test]
    fn cancelled_timer_does_not_fire_and_the_next_one_does() {
        let mut events = Events::new(&Arc::default()).unwrap();
        let now = Instant::now();
        events.timer.wake_at(now, now).unwrap();
        // Fired or not yet.
        events.timer.cancel();
        assert!(!events.timer.is_armed());
        assert_eq!(events.take_some(Wait::Until(now + Duration::from_millis(5))), 0);
        events.timer.wake_at(now, now).unwrap();
        assert_eq!(events.take_some(Wait::Until(now + Duration::from_secs(60))), 1);
    }
}
