//! What makes one descriptor of many: epoll(7), timerfd_create(2), eventfd(2).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::{earlier, new_descriptor, poll_timeout, retry};

/// Something that happened to a descriptor of an [`Events`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    /// What the descriptor was added with.
    pub key: u64,
    /// There is room to write.
    pub writable: bool,
    /// There is something to read, an end or an error.
    pub readable: bool,
    /// It is an end or an error. What of that comes later is an event of its own.
    pub ended: bool,
}

/// Room for what has happened.
pub(crate) struct Happened {
    events: [MaybeUninit<libc::epoll_event>; Happened::ROOM],
    /// So many of them are written.
    count: usize,
}

impl Happened {
    /// The most that is taken at once.
    pub(crate) const ROOM: usize = 64;

    pub(crate) fn new() -> Happened {
        Happened { events: [const { MaybeUninit::uninit() }; Happened::ROOM], count: 0 }
    }

    fn all(&self) -> impl Iterator<Item = libc::epoll_event> {
        // SAFETY: epoll_wait(2) has written so many.
        self.events[..self.count].iter().map(|event| unsafe { event.assume_init() })
    }

    /// What has happened to the descriptors that were added.
    pub(crate) fn events(&self) -> impl Iterator<Item = Event> {
        // The eventfd is watched edge-triggered: it is reported once, and never read.
        let added = self.all().filter(|event| event.u64 <= HIGHEST_KEY);
        added.map(|event| {
            let (key, flags) = (event.u64, event.events as i32);
            Event {
                key,
                writable: flags & libc::EPOLLOUT != 0,
                readable: flags & !libc::EPOLLOUT != 0,
                ended: flags & !(libc::EPOLLIN | libc::EPOLLOUT) != 0,
            }
        })
    }
}

/// How long to wait for something to happen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    No,
    /// Look again and again, and do not sleep.
    Spin,
    Until(Instant),
    Forever,
}

impl From<Option<Instant>> for Wait {
    fn from(deadline: Option<Instant>) -> Wait {
        deadline.map_or(Wait::Forever, Wait::Until)
    }
}

/// A set of descriptors to watch and a timer, behind one descriptor that is readable whenever one
/// of them has something.
#[derive(Debug)]
pub(crate) struct Events {
    /// Shared, so that a thread may wait for it without the handle.
    epoll: Arc<OwnedFd>,
    /// An eventfd that is written to for an edge.
    edge: Option<OwnedFd>,
    /// Shared with the alarm, once that may fire it.
    timer: Arc<OwnedFd>,
    alarm: Arc<Alarm>,
    /// When the timer will fire, if it will.
    armed: Option<Instant>,
    /// It is put off while the caller goes on, but not beyond the second time.
    may_wait: bool,
    not_after: Option<Instant>,
    /// The timer could not be set when it was last to be.
    missed: bool,
    /// It has fired, and is readable still.
    fired: bool,
    /// The alarm's count when the timer was last seen to have fired.
    seen: u32,
    /// How long a wait looks again and again before it sleeps.
    pub(crate) spin: Duration,
}

/// The parts of an [`Events`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Epoll,
    Timer,
}

/// What fires the timer of an [`Events`] to end a wait, in any thread and in a signal handler. It
/// outlives the set.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    /// From [`publish_timer`](Events::publish_timer) on.
    timer: OnceLock<Arc<OwnedFd>>,
    /// A wait is to end, the one that runs or the next one.
    ringing: AtomicBool,
    /// How often the timer was fired by others: it may be readable before its time.
    fired: AtomicU32,
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

    fn fire_timer(&self) {
        if let Some(timer) = self.timer.get() {
            // It can fail for no valid timer; and the flag is there.
            let _ = set_timer(timer, Duration::from_nanos(1));
        }
    }

    /// Undoes [`fire`](Alarm::fire), if no one sets the timer meanwhile.
    pub(crate) fn silence(&self) {
        if let Some(timer) = self.timer.get() {
            // It can fail for no valid timer.
            let _ = set_timer(timer, Duration::ZERO);
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

/// Makes a set of descriptors to watch, epoll_create1(2).
pub(crate) fn new_epoll() -> io::Result<OwnedFd> {
    // SAFETY: epoll_create1(2) takes no pointers, and makes a new descriptor.
    unsafe { new_descriptor(|| libc::epoll_create1(libc::EPOLL_CLOEXEC)) }
}

/// Makes a timer, timerfd_create(2).
pub(crate) fn new_timer() -> io::Result<OwnedFd> {
    let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
    // SAFETY: timerfd_create(2) takes no pointers, and makes a new descriptor.
    unsafe { new_descriptor(|| libc::timerfd_create(libc::CLOCK_MONOTONIC, flags)) }
}

/// The keys of the timer and of the set's own edge.
const TIMER: u64 = u64::MAX;
const EDGE: u64 = u64::MAX - 1;
/// The highest key that a descriptor can be added with.
pub(crate) const HIGHEST_KEY: u64 = u64::MAX - 2;

impl Events {
    /// Makes a set with nothing to watch but a timer, which the alarm cannot fire yet. An error
    /// says which part failed.
    pub(crate) fn new(alarm: &Arc<Alarm>) -> Result<Events, (Part, io::Error)> {
        let failed = |part| move |error| (part, error);
        // Before there is a timer: a later alarm counts.
        let seen = alarm.fired.load(Ordering::SeqCst);
        let epoll = new_epoll().map_err(failed(Part::Epoll))?;
        let timer = new_timer().map_err(failed(Part::Timer))?;
        let events = Events {
            epoll: Arc::new(epoll),
            edge: None,
            timer: Arc::new(timer),
            alarm: Arc::clone(alarm),
            armed: None,
            may_wait: false,
            not_after: None,
            missed: false,
            fired: false,
            seen,
            spin: Duration::ZERO,
        };
        let timer = events.timer.as_raw_fd();
        let added = events.control(libc::EPOLL_CTL_ADD, timer, TIMER, libc::EPOLLIN);
        added.map_err(failed(Part::Epoll))?;
        Ok(events)
    }

    /// Lets the alarm fire the timer, and does so if it would have before. Call it when the set is
    /// sure to be used, and by this process: children of fork(2) share a timer that the alarm has.
    pub(crate) fn publish_timer(&self) {
        // Nobody else makes a set for this alarm.
        let _ = self.alarm.timer.set(Arc::clone(&self.timer));
        // It is written as well, so that who fires later finds the timer.
        if self.alarm.fired.fetch_add(0, Ordering::SeqCst) != self.seen {
            self.alarm.fire_timer();
        }
    }

    /// The one descriptor.
    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.epoll
    }

    /// Tells those who watch this set edge-triggered of what is still there; says whether that
    /// could be.
    pub(crate) fn tell_again(&self) -> bool {
        let Some(edge) = &self.edge else { return false };
        let one = 1u64;
        // SAFETY: the pointer is to 8 bytes, as eventfd(2) asks.
        unsafe { libc::write(edge.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) == 8 }
    }

    /// Makes what [`tell_again`](Events::tell_again) needs.
    pub(crate) fn make_edge(&mut self) -> io::Result<()> {
        let flags = libc::EFD_CLOEXEC | libc::EFD_NONBLOCK;
        // SAFETY: eventfd(2) takes no pointers, and makes a new descriptor.
        let edge = unsafe { new_descriptor(|| libc::eventfd(0, flags)) }?;
        self.control(libc::EPOLL_CTL_ADD, edge.as_raw_fd(), EDGE, libc::EPOLLIN | libc::EPOLLET)?;
        self.edge = Some(edge);
        Ok(())
    }

    /// Watches a descriptor for reading.
    pub(crate) fn add(&self, descriptor: BorrowedFd<'_>, key: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, descriptor.as_raw_fd(), key, libc::EPOLLIN)
    }

    /// Says whether to watch a descriptor for room to write as well.
    pub(crate) fn watch_room(
        &self,
        descriptor: BorrowedFd<'_>,
        key: u64,
        room: bool,
    ) -> io::Result<()> {
        let events = libc::EPOLLIN | if room { libc::EPOLLOUT } else { 0 };
        self.control(libc::EPOLL_CTL_MOD, descriptor.as_raw_fd(), key, events)
    }

    /// Pauses watching a descriptor, or goes on with it. It keeps its place in the set, of which
    /// the system may have none left when it goes on. Its end may still be reported, once.
    pub(crate) fn pause(
        &self,
        descriptor: BorrowedFd<'_>,
        key: u64,
        pause: bool,
    ) -> io::Result<()> {
        let events = if pause { libc::EPOLLET } else { libc::EPOLLIN };
        self.control(libc::EPOLL_CTL_MOD, descriptor.as_raw_fd(), key, events)
    }

    /// Stops watching a descriptor. Call it before the descriptor is closed: a copy in another
    /// process would keep it in the set, epoll(7).
    pub(crate) fn remove(&self, descriptor: BorrowedFd<'_>) {
        // It was added, so this cannot fail.
        let _ = self.control(libc::EPOLL_CTL_DEL, descriptor.as_raw_fd(), 0, 0);
    }

    fn control(&self, operation: i32, descriptor: RawFd, key: u64, events: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: key };
        let epoll = self.epoll.as_raw_fd();
        // SAFETY: `event` is one epoll_event, which outlives the call.
        retry(|| unsafe {
            libc::epoll_ctl(epoll, operation, descriptor, &raw mut event) as isize
        })?;
        Ok(())
    }

    /// Says what has happened, but for the timer. Returns how many things have: there may be more
    /// if it is [`Happened::ROOM`]. A timer that fired stays readable until it is set anew or
    /// [`done`](Events::done) is called: if what was due cannot be done, it stays due.
    pub(crate) fn take(&mut self, wait: Wait, happened: &mut Happened) -> io::Result<usize> {
        happened.count = 0;
        // Read before looking: if the alarm fires the timer only after that, its count is another one,
        // and `is_due` sees that.
        let fired = self.alarm.fired.load(Ordering::SeqCst);
        let spin_until = match wait {
            _ if self.spin.is_zero() => None,
            Wait::No => None,
            Wait::Until(deadline) => Some(deadline.min(Instant::now() + self.spin)),
            Wait::Spin | Wait::Forever => Some(Instant::now() + self.spin),
        };
        // SAFETY: the pointer and the count describe the events of `happened`.
        let mut look = |timeout| unsafe {
            let (events, room) = (happened.events.as_mut_ptr().cast(), Happened::ROOM as i32);
            libc::epoll_wait(self.epoll.as_raw_fd(), events, room, timeout) as isize
        };
        happened.count = retry(|| {
            while spin_until.is_some_and(|until| Instant::now() < until) {
                match look(0) {
                    0 => std::hint::spin_loop(),
                    found => return found,
                }
            }
            // Computed anew each time, so that signals cannot put off the deadline.
            let timeout = match wait {
                Wait::No | Wait::Spin => 0,
                _ if self.alarm.is_ringing() => 0,
                Wait::Until(deadline) => poll_timeout(deadline, Instant::now()),
                Wait::Forever => -1,
            };
            look(timeout)
        })?;
        if happened.all().any(|event| event.u64 == TIMER) {
            (self.armed, self.fired, self.seen) = (None, true, fired);
            (self.may_wait, self.not_after) = (false, None);
        }
        Ok(happened.count)
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
            libc::read(self.timer.as_raw_fd(), buffer, size_of::<u64>());
        }
    }

    /// Makes sure that the descriptor is readable at `when`, or before. A timer that is set for
    /// earlier stays: firing for nothing costs less than setting it for every offer. It keeps one
    /// time only, so that what is not due yet when [`take`](Events::take) finds it fired is asked
    /// for again after that.
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
        set_timer(&self.timer, left)?;
        self.missed = false;
        (self.armed, self.fired) = (Some(when), false);
        if self.alarm.fired.load(Ordering::SeqCst) != self.seen {
            // Others fired it, which that has undone.
            set_timer(&self.timer, Duration::from_nanos(1))?;
        }
        Ok(())
    }

    /// Whether the timer could not be set: nothing may tell when something is due.
    pub(crate) fn missed(&self) -> bool {
        self.missed
    }

    /// Whether the timer may have fired, or could not be set: then [`take`](Events::take) must
    /// look.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.fired
            || self.missed
            || self.armed.is_some_and(|armed| armed <= now)
            || self.alarm.fired.load(Ordering::Relaxed) != self.seen
    }

    /// Whether a timer is set.
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.is_some()
    }

    /// Sets no timer.
    pub(crate) fn cancel(&mut self) {
        // If it could not be, it would fire for nothing.
        if set_timer(&self.timer, Duration::ZERO).is_ok() {
            (self.armed, self.fired) = (None, false);
            (self.may_wait, self.not_after) = (false, None);
        }
    }
}

/// Waits until a set is readable, or the deadline is past. It takes nothing: what has happened is
/// there for [`Events::take`].
pub(crate) fn await_events(set: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<()> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    retry(|| {
        // Computed anew each time, so that signals cannot put off the deadline.
        let timeout = deadline.map_or(-1, |deadline| poll_timeout(deadline, Instant::now()));
        // SAFETY: the pointer and the count describe `event`, which outlives the call.
        unsafe { libc::epoll_wait(set.as_raw_fd(), &raw mut event, 1, timeout) as isize }
    })?;
    Ok(())
}

fn set_timer(timer: &OwnedFd, left: Duration) -> io::Result<()> {
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
    use super::*;

    fn take(events: &mut Events, wait: Wait) -> usize {
        events.take(wait, &mut Happened::new()).unwrap()
    }

    #[test]
    fn timer_fires_at_the_earliest_time_asked_for() {
        let mut events = Events::new(&Arc::default()).unwrap();
        let now = Instant::now();
        events.wake_at(now + Duration::from_secs(3600), now).unwrap();
        assert_eq!(take(&mut events, Wait::No), 0);
        events.wake_at(now, now).unwrap();
        assert_eq!(take(&mut events, Wait::Until(now + Duration::from_secs(60))), 1);
        events.done();
        assert_eq!(take(&mut events, Wait::Until(now)), 0);
    }

    #[test]
    fn timer_that_fired_stays_so_until_what_was_due_is_done_or_it_is_set_anew() {
        let mut events = Events::new(&Arc::default()).unwrap();
        let now = Instant::now();
        for set_anew in [true, false] {
            events.wake_at(now, now).unwrap();
            for _ in 0..2 {
                let wait = Wait::Until(now + Duration::from_secs(60));
                assert_eq!(take(&mut events, wait), 1);
                assert!(events.is_due(now) && !events.is_armed());
            }
            if set_anew {
                events.wake_at(now + Duration::from_secs(3600), now).unwrap();
            }
            events.done();
            assert!(!events.is_due(now));
            assert_eq!(take(&mut events, Wait::No), 0);
        }
    }

    #[test]
    fn timer_for_a_caller_who_may_stop_is_put_off_but_not_beyond_what_else_is_due() {
        let mut events = Events::new(&Arc::default()).unwrap();
        // So long that nothing fires.
        let (start, hour) = (Instant::now(), Duration::from_secs(3600));
        let at = |quarters: u32| start + quarters * hour / 4;
        let mut goes_on = |now: u32| {
            events.wake_after(hour, at(now)).unwrap();
            events.armed
        };
        assert_eq!(goes_on(0), Some(at(4)));
        assert_eq!(goes_on(2), Some(at(4)));
        assert_eq!(goes_on(3), Some(at(7)));
        // Whether that asks after it,
        events.wake_at(at(9), at(4)).unwrap();
        events.wake_at(at(10), at(4)).unwrap();
        for (now, armed) in [(6, 9), (8, 9)] {
            events.wake_after(hour, at(now)).unwrap();
            assert_eq!(events.armed, Some(at(armed)));
        }
        // or before,
        events.cancel();
        events.wake_at(at(6), start).unwrap();
        for (now, armed) in [(0, 4), (3, 6), (5, 6)] {
            events.wake_after(hour, at(now)).unwrap();
            assert_eq!(events.armed, Some(at(armed)));
        }
        // or is due before it.
        events.cancel();
        events.wake_after(hour, start).unwrap();
        events.wake_at(at(2), start).unwrap();
        for now in [0, 1] {
            events.wake_after(hour, at(now)).unwrap();
            assert_eq!(events.armed, Some(at(2)));
        }
        assert!(!events.is_due(at(1)) && events.is_due(at(2)));
    }

    #[test]
    fn timer_that_others_fired_is_not_set_for_later() {
        let alarm = Arc::new(Alarm::default());
        let mut events = Events::new(&alarm).unwrap();
        events.publish_timer();
        for put_off in [false, true] {
            alarm.fire();
            let now = Instant::now();
            let hour = Duration::from_secs(3600);
            let set = if put_off {
                events.wake_after(hour, now)
            } else {
                events.wake_at(now + hour, now)
            };
            set.unwrap();
            let wait = Wait::Until(now + Duration::from_secs(60));
            assert_eq!(take(&mut events, wait), 1);
            events.done();
            assert!(!events.is_due(Instant::now()));
        }
    }

    #[test]
    fn cancelled_timer_does_not_fire_and_the_next_one_does() {
        let mut events = Events::new(&Arc::default()).unwrap();
        let now = Instant::now();
        events.wake_at(now, now).unwrap();
        // Fired or not yet.
        events.cancel();
        assert!(!events.is_armed());
        assert_eq!(take(&mut events, Wait::Until(now + Duration::from_millis(5))), 0);
        events.wake_at(now, now).unwrap();
        assert_eq!(take(&mut events, Wait::Until(now + Duration::from_secs(60))), 1);
    }

    #[test]
    fn alarm_that_rang_before_it_had_the_timer_makes_the_set_readable() {
        let alarm = Arc::new(Alarm::default());
        let mut events = Events::new(&alarm).unwrap();
        alarm.fire();
        assert_eq!(take(&mut events, Wait::Until(Instant::now() + Duration::from_millis(5))), 0);
        events.publish_timer();
        assert_eq!(take(&mut events, Wait::Until(Instant::now() + Duration::from_secs(60))), 1);
        events.done();
        assert!(!events.is_due(Instant::now()));
    }

    #[test]
    fn alarm_ends_the_wait_that_runs_and_one_that_begins_later() {
        let alarm = Arc::new(Alarm::default());
        // Before there is anything to fire.
        alarm.ring();
        let mut events = Events::new(&alarm).unwrap();
        assert_eq!(take(&mut events, Wait::Forever), 0);
        assert!(alarm.stop() && !alarm.stop());
        events.publish_timer();

        let other = Arc::clone(&alarm);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            other.ring();
        });
        assert_eq!(take(&mut events, Wait::Forever), 1);
        assert!(alarm.stop());
        thread.join().unwrap();
    }
}
