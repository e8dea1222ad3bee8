//! What the handles of both ends do alike: they open at their first use, belong to the process that
//! used them first, and have one descriptor to watch and one timer.
//!
//! If a process calls fork(2) before that, parent and child have a copy each. The copies of a
//! broker are handles of their own. Those of a backend are one: they have one socket, so one of
//! them gets it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::memory::NoMemory;
use crate::support::{self, SupportError};
use crate::sys::event::{Alarm, Events};
use crate::sys::process;
use crate::sys::shared::SharedWords;

/// The longest that a wait looks again and again before it sleeps.
pub(crate) const MAX_SPIN: Duration = Duration::from_millis(10);
/// How often dispatch looks for more work before it lets the caller's loop go on.
pub(crate) const MAX_ROUNDS: usize = 64;
/// How long a peer may take to say its first word.
pub(crate) const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon the descriptor becomes readable for verdicts that the caller has left. Most callers take
/// all, so one timer that is put off now and then is cheaper than one for each batch: also with so many
/// handles in one loop that each has a turn every millisecond or two.
pub(crate) const LEFTOVER_PAUSE: Duration = Duration::from_millis(4);
/// Batches that come sooner one after the other come often. Then a timer that is due soon, and is put
/// off, costs a system call for several of them, and more than pays for it: a processor that has nothing
/// to do keeps its tick meanwhile, and wakes up sooner.
pub(crate) const OFTEN: Duration = Duration::from_micros(250);
/// The pause of such a timer.
pub(crate) const OFTEN_PAUSE: Duration = Duration::from_millis(1);
/// When to send again what the system was short of memory for. poll(2) would say at once that there
/// is room.
pub(crate) const MEMORY_PAUSE: Duration = Duration::from_millis(1);

/// What a handle watches, from its first use on.
#[derive(Debug, Default)]
pub(crate) struct Handle {
    opened: Option<Opened>,
    waker: Waker,
}

/// Ends a wait of the handle that it came from, from any thread and from a signal handler.
#[derive(Clone, Debug, Default)]
pub struct Waker(Arc<Wakeable>);

#[derive(Debug, Default)]
struct Wakeable {
    alarm: Arc<Alarm>,
    owner: Owner,
}

/// The process that opened the handle; 0 before that.
#[derive(Debug)]
enum Owner {
    OfCopy(AtomicU64),
    /// The same for all copies, and how often their maker had called fork(2) before.
    OfAll(SharedWords, u64),
}

impl Default for Owner {
    fn default() -> Owner {
        Owner::OfCopy(AtomicU64::new(0))
    }
}

impl Owner {
    fn word(&self) -> &AtomicU64 {
        match self {
            Owner::OfCopy(word) => word,
            Owner::OfAll(words, _) => &words.as_slice()[0],
        }
    }

    /// Whether the handle belongs to this process, or to none yet.
    fn is_ours(&self) -> bool {
        let process = self.word().load(Ordering::SeqCst);
        process == 0 || process == process::current()
    }

    /// Takes ownership for this process; false if another one was first.
    fn take(&self, process: u64) -> bool {
        let word = self.word();
        match word.compare_exchange(0, process, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => true,
            Err(owner) => owner == process,
        }
    }
}

impl Waker {
    /// Ends the wait that runs, or the next one. Returns false, and does nothing, in another
    /// process than the handle's. Safe in a signal handler, but that it may change errno.
    pub fn wake(&self) -> bool {
        let ours = self.is_ours();
        if ours {
            self.0.alarm.ring();
        }
        ours
    }

    /// Whether the handle belongs to this process, or to none yet.
    pub(crate) fn is_ours(&self) -> bool {
        self.0.owner.is_ours()
    }

    /// Makes the handle's descriptor readable now, and ends no wait. Safe in a signal handler, but
    /// that it may change errno.
    pub(crate) fn fire(&self) {
        self.0.alarm.fire();
    }
}

#[derive(Debug)]
struct Opened {
    /// The process that used the handle first.
    process: u64,
    events: Events,
}

/// Why a handle cannot be used.
#[derive(Debug)]
pub(crate) enum HandleError {
    WrongProcess,
    System { action: &'static str, source: io::Error },
}

impl HandleError {
    /// For `map_err`: the system refused an action.
    pub(crate) fn system(action: &'static str) -> impl Fn(io::Error) -> HandleError {
        move |source| HandleError::System { action, source }
    }
}

impl Handle {
    /// One whose copies in children of fork(2) are the same handle.
    pub(crate) fn one_for_all() -> Result<Handle, NoMemory> {
        // From the first time that this is asked, calls of fork(2) are counted.
        process::current();
        let words = SharedWords::inherited(1);
        let words = words.map_err(|source| NoMemory { what: "the handle", source })?;
        let owner = Owner::OfAll(words, process::forks());
        let waker = Waker(Arc::new(Wakeable { alarm: Arc::default(), owner }));
        Ok(Handle { opened: None, waker })
    }

    /// Whether it is another process's, or can become a child's that has a copy.
    pub(crate) fn is_for_others(&self) -> bool {
        let forks = match self.waker.0.owner {
            Owner::OfAll(_, forks) => forks,
            Owner::OfCopy(_) => process::forks(),
        };
        self.is_elsewhere() || (!self.is_open() && forks != process::forks())
    }

    /// Fails in another process than the one that used the handle first.
    pub(crate) fn check_process(&self) -> Result<(), HandleError> {
        if self.is_elsewhere() { Err(HandleError::WrongProcess) } else { Ok(()) }
    }

    /// Whether it is open, and this is the process that used it first.
    #[inline(always)]
    pub(crate) fn is_ready(&self) -> bool {
        matches!(&self.opened, Some(opened) if opened.process == process::current())
    }

    /// Whether another process used it first.
    #[inline(always)]
    pub(crate) fn is_elsewhere(&self) -> bool {
        match &self.opened {
            Some(opened) => opened.process != process::current(),
            None => !self.waker.is_ours(),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.opened.is_some()
    }

    /// Makes the handle this process's as [`open`](Handle::open) does, but opens nothing.
    pub(crate) fn own(&self) -> Result<(), HandleError> {
        let ours = self.waker.0.owner.take(process::current());
        if ours { Ok(()) } else { Err(HandleError::WrongProcess) }
    }

    /// Makes what a handle watches, to be given to [`open`](Handle::open).
    pub(crate) fn new_events(&self) -> Result<Events, SupportError> {
        support::events(&self.waker.0.alarm)
    }

    /// Opens the handle: it belongs to this process from now on. Fails if another one was faster.
    pub(crate) fn open(&mut self, mut events: Events, spin: Duration) -> Result<(), HandleError> {
        events.spin = spin;
        let process = process::current();
        if !self.waker.0.owner.take(process) {
            return Err(HandleError::WrongProcess);
        }
        events.timer.publish();
        self.opened = Some(Opened { process, events });
        Ok(())
    }

    /// What ends a wait of this handle.
    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Whether a wait is to end, which is forgotten by this.
    pub(crate) fn woken(&self) -> bool {
        self.waker.0.alarm.stop()
    }

    /// None before the first use.
    pub(crate) fn events(&mut self) -> Option<&mut Events> {
        self.opened.as_mut().map(|opened| &mut opened.events)
    }

    /// The descriptor to watch, of a handle that is open.
    pub(crate) fn descriptor(&self) -> Result<BorrowedFd<'_>, HandleError> {
        let opened = self.opened.as_ref().ok_or(HandleError::WrongProcess)?;
        Ok(opened.events.descriptor().as_fd())
    }

    /// The same, for a thread that waits without the handle. None before the first use.
    pub(crate) fn shared_descriptor(&self) -> Option<Arc<OwnedFd>> {
        self.opened.as_ref().map(|opened| Arc::clone(opened.events.descriptor()))
    }

    /// If the timer could not be set, wakes the caller's loop now, so that it finds what is due.
    #[cold]
    #[inline(never)]
    pub(crate) fn wake_if_missed(&mut self) {
        if let Some(opened) = self.opened.as_mut().filter(|opened| opened.events.timer.missed()) {
            let now = Instant::now();
            let _ = opened.events.timer.wake_at(now, now);
        }
    }

    /// What was due is done.
    pub(crate) fn done(&mut self) {
        if let Some(opened) = &mut self.opened {
            opened.events.timer.done();
        }
    }

    /// Makes sure that the descriptor is readable at `when`, or before.
    pub(crate) fn wake_at(&mut self, when: Instant, now: Instant) -> Result<(), HandleError> {
        let Some(events) = self.events() else { return Ok(()) };
        events.timer.wake_at(when, now).map_err(HandleError::system("set a timer"))
    }

    /// Makes sure that the descriptor is readable after `pause`, or before, should the caller stop
    /// before it has taken all.
    pub(crate) fn wake_after(&mut self, pause: Duration, now: Instant) -> Result<(), HandleError> {
        let Some(events) = self.events() else { return Ok(()) };
        events.timer.wake_after(pause, now).map_err(HandleError::system("set a timer"))
    }
}
