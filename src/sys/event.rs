//! What makes one descriptor of many: epoll(7), timerfd_create(2), eventfd(2).

mod alarm;
mod timer;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{new_descriptor, poll_timeout, retry};

pub(crate) use alarm::Alarm;
pub(crate) use timer::Timer;

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
    pub(crate) timer: Timer,
    /// How long a wait looks again and again before it sleeps.
    pub(crate) spin: Duration,
}

/// The parts of an [`Events`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Epoll,
    Timer,
}

/// Makes a set of descriptors to watch, epoll_create1(2).
pub(crate) fn new_epoll() -> io::Result<OwnedFd> {
    // SAFETY: epoll_create1(2) takes no pointers, and makes a new descriptor.
    unsafe { new_descriptor(|| libc::epoll_create1(libc::EPOLL_CLOEXEC)) }
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
        let timer = Timer::new(alarm, seen).map_err(failed(Part::Timer))?;
        let events = Events { epoll: Arc::new(epoll), edge: None, timer, spin: Duration::ZERO };
        let timer = events.timer.descriptor().as_raw_fd();
        let added = events.control(libc::EPOLL_CTL_ADD, timer, TIMER, libc::EPOLLIN);
        added.map_err(failed(Part::Epoll))?;
        Ok(events)
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
    /// [`done`](Timer::done) is called: if what was due cannot be done, it stays due.
    pub(crate) fn take(&mut self, wait: Wait, happened: &mut Happened) -> io::Result<usize> {
        happened.count = 0;
        // Read before looking: if the alarm fires the timer only after that, its count is another one,
        // and `is_due` sees that.
        let fired = self.timer.alarm_count();
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
                _ if self.timer.is_alarm_ringing() => 0,
                Wait::Until(deadline) => poll_timeout(deadline, Instant::now()),
                Wait::Forever => -1,
            };
            look(timeout)
        })?;
        if happened.all().any(|event| event.u64 == TIMER) {
            self.timer.has_fired(fired);
        }
        Ok(happened.count)
    }

    /// How many events there are.
    #[cfg(test)]
    fn take_some(&mut self, wait: Wait) -> usize {
        self.take(wait, &mut Happened::new()).unwrap()
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
