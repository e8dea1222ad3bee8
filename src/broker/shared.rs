//! A broker that many threads use at once, for hosts with a thread for each request.
//!
//! One lock is around the broker. A thread that waits for a verdict does not hold it: see
//! [`crew`]. So all threads together need one channel to each backend.

mod crew;
#[cfg(test)]
mod tests;
mod waits;

use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::member::Needs;
use super::offer::Refused;
use super::{Broker, BrokerError, Offer, Verdict};
use crate::handle::{HandleError, Waker};
use crate::support;
use crate::sys::event::{self, Alarm, Events};
use crate::sys::process;

use crew::{Attempt, Crew, Desk, Watch};
use waits::{Wait, Waits};

/// A [`Broker`] for any number of threads at once.
#[derive(Debug)]
pub struct SharedBroker {
    crew: Arc<Crew<Broker, Descriptor>>,
    /// That of the broker's options.
    timeout: Duration,
    /// In this process only its own threads can hold the lock.
    process: AtomicU64,
}

/// How often a process looks whether the lock is free that it has from its parent. Another thread may
/// look at the same time, but for a moment only.
const LOCK_LOOKS: usize = 1000;

/// The broker's descriptor, and what makes it readable.
#[derive(Debug)]
struct Descriptor {
    /// From the first use on.
    descriptor: OnceLock<Arc<OwnedFd>>,
    waker: Waker,
    /// From the first time that somebody asks for it.
    for_loop: OnceLock<ForLoop>,
}

/// A descriptor for an event loop. The broker's own does not do: what makes that readable is gone
/// when a thread that waits has done the work.
#[derive(Debug)]
struct ForLoop {
    /// Has the broker's descriptor in it.
    events: Events,
    /// Makes it readable for verdicts that nobody waits for, and for room.
    alarm: Arc<Alarm>,
    // All of these change under the lock only.
    fired: AtomicBool,
    /// The needs of an offer that is to have room.
    wanted: Mutex<Option<Needs>>,
    has_room: AtomicBool,
}

/// An offer that waits for room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    needs: Needs,
    deadline: Instant,
}

impl SharedBroker {
    /// Shares a broker among threads.
    pub fn new(mut broker: Broker) -> SharedBroker {
        // All threads would wait meanwhile.
        broker.options.spin = Duration::ZERO;
        let timeout = broker.options.timeout;
        let watch = Descriptor {
            descriptor: OnceLock::new(),
            waker: broker.waker(),
            for_loop: OnceLock::new(),
        };
        let process = AtomicU64::new(process::current());
        SharedBroker { crew: Arc::new(Crew::new(broker, watch)), timeout, process }
    }

    /// Does anything with the broker that does not wait. Verdicts for threads in
    /// [`offer_and_wait`](SharedBroker::offer_and_wait) go to them.
    pub fn with<T>(&self, body: impl FnOnce(&mut Broker) -> T) -> Result<T, BrokerError> {
        self.check_process()?;
        Ok(self.crew.with(|broker| {
            let Some(for_loop) = self.crew.watch.for_loop.get() else { return body(broker) };
            let before = mem::take(&mut broker.wanted);
            let result = body(broker);
            if let Some(needs) = broker.wanted {
                for_loop.want(needs);
            }
            if let Some(needs) = before {
                needs.add_to(&mut broker.wanted);
            }
            result
        }))
    }

    /// As [`Broker::descriptor`].
    pub fn descriptor(&self) -> Result<BorrowedFd<'_>, BrokerError> {
        let watch = &self.crew.watch;
        self.with(|broker| {
            let descriptor = broker.descriptor()?;
            if watch.for_loop.get().is_none() {
                let for_loop = ForLoop::new(descriptor)?;
                // Only who holds the broker sets it.
                let _ = watch.for_loop.set(for_loop);
            }
            watch.see(broker);
            Ok::<(), BrokerError>(())
        })??;
        let for_loop = watch.for_loop.get().ok_or(BrokerError::WrongProcess)?;
        Ok(for_loop.events.descriptor().as_fd())
    }

    /// As [`Broker::dispatch`].
    pub fn dispatch(&self) -> Result<(), BrokerError> {
        self.check_process()?;
        // Not as `with` does: the timers that are due may be for room that somebody waits for.
        self.crew.with(|broker| {
            if let Some(for_loop) = self.crew.watch.for_loop.get() {
                for_loop.has_room.store(false, Ordering::Relaxed);
            }
            broker.dispatch()
        })
    }

    /// As [`Broker::offer_and_wait`], in any number of threads at once. Offers that wait for the same
    /// backend's room have it in the order in which they came.
    pub fn offer_and_wait(&self, offer: &Offer<'_>) -> Result<Verdict, BrokerError> {
        self.offer_wait_and(offer, |_, verdict| verdict)
    }

    /// The same, and does something with the broker and the verdict.
    pub fn offer_wait_and<T>(
        &self,
        offer: &Offer<'_>,
        finish: impl FnOnce(&Broker, Verdict) -> T,
    ) -> Result<T, BrokerError> {
        self.check_process()?;
        let start = Instant::now();
        let deadline = offer.deadline(self.timeout, start);
        let attempt = |broker: &mut Broker, seat, waited| {
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            if waited && left.is_zero() {
                return Attempt::Refused(broker.too_late(offer, now));
            }
            let offer = Offer { timeout: Some(left), user_data: seat, ..*offer };
            let result = broker.queue(&offer, true, now);
            self.crew.watch.see(broker);
            match result {
                Ok(id) => Attempt::Offered(id),
                Err(refused) if broker.is_worth_waiting(&refused, deadline) => {
                    Attempt::Later(refused)
                }
                Err(refused) => Attempt::Refused(refused),
            }
        };
        // What is too long for any backend is refused at the first attempt.
        let needs = Needs { len: offer.checked_len().unwrap_or(0), tls: offer.tls };
        let waiting = Waiting { needs, deadline };
        self.crew.offer_and_wait(waiting, Some(deadline), attempt, |broker, verdict| {
            finish(broker, Verdict { user_data: offer.user_data, ..*verdict })
        })
    }

    /// As [`Broker::take_back`]. The offers of threads that wait are theirs: it is too late for
    /// those.
    pub fn take_back(&self, id: u64) -> Result<(), BrokerError> {
        self.check_process()?;
        self.crew.with(|broker| broker.take_back(id))
    }

    /// Ends every wait that runs: each takes its offer back, unless the backend has adopted it. If
    /// none runs, or all of them have verdicts, it ends the next one that begins alone. Returns
    /// false, and does nothing, in another process than the handle's. Safe in a signal handler, but
    /// that it may change errno.
    pub fn wake(&self) -> bool {
        let waker = &self.crew.watch.waker;
        let ours = waker.is_ours();
        if ours && self.crew.waits.wake() {
            waker.fire();
        }
        ours
    }

    /// To be called before the lock is taken.
    fn check_process(&self) -> Result<(), BrokerError> {
        let ours = self.crew.watch.waker.is_ours() && self.is_whole();
        if ours { Ok(()) } else { Err(BrokerError::WrongProcess) }
    }

    /// Whether the lock will be free some time. In a child of fork(2), a thread that the child does not
    /// have may hold it for ever, and have left what it guards half changed.
    fn is_whole(&self) -> bool {
        let process = process::current();
        self.process.load(Ordering::Relaxed) == process || self.becomes_whole(process)
    }

    #[cold]
    fn becomes_whole(&self, process: u64) -> bool {
        for _ in 0..LOCK_LOOKS {
            if self.crew.is_free() {
                self.process.store(process, Ordering::Relaxed);
                return true;
            }
            // Another thread may have found it free, and hold it.
            if self.process.load(Ordering::Relaxed) == process {
                return true;
            }
            thread::yield_now();
        }
        false
    }
}

impl Drop for SharedBroker {
    /// In a child of fork(2) it closes the child's copies only, or leaves them to the end of the
    /// process if a thread of the parent was in a call meanwhile.
    fn drop(&mut self) {
        if !self.is_whole() {
            mem::forget(Arc::clone(&self.crew));
        }
    }
}

impl Descriptor {
    fn see(&self, broker: &Broker) {
        if self.descriptor.get().is_none() {
            if let Some(descriptor) = broker.handle.shared_descriptor() {
                // Only who holds the broker sets it.
                let _ = self.descriptor.set(descriptor);
            }
        }
    }
}

impl ForLoop {
    fn new(descriptor: BorrowedFd<'_>) -> Result<ForLoop, BrokerError> {
        let alarm = Arc::new(Alarm::default());
        let events = support::events(&alarm)?;
        let added = events.add(descriptor, 0);
        added.map_err(HandleError::system("watch the broker's descriptor"))?;
        events.timer.publish();
        Ok(ForLoop {
            events,
            alarm,
            fired: AtomicBool::new(false),
            wanted: Mutex::new(None),
            has_room: AtomicBool::new(false),
        })
    }

    fn wanted(&self) -> MutexGuard<'_, Option<Needs>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, needs: Needs) {
        needs.add_to(&mut self.wanted());
    }

    fn tell(&self, broker: &Broker) {
        let relaxed = Ordering::Relaxed;
        let mut wanted = self.wanted();
        if wanted.is_some_and(|needs| broker.would_take(needs, Instant::now())) {
            *wanted = None;
            self.has_room.store(true, relaxed);
        }
        let fire = !broker.outcomes.verdicts.is_empty() || self.has_room.load(relaxed);
        if self.fired.swap(fire, relaxed) != fire {
            if fire { self.alarm.fire() } else { self.alarm.silence() }
        }
    }
}

impl Watch<Broker> for Descriptor {
    fn before_release(&self, broker: &mut Broker) {
        if let Some(for_loop) = self.for_loop.get() {
            for_loop.tell(broker);
        }
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<(), BrokerError> {
        let Some(descriptor) = self.descriptor.get() else { return Ok(()) };
        let waited = event::await_events(descriptor.as_fd(), deadline);
        Ok(waited.map_err(HandleError::system("wait for events"))?)
    }

    fn ring(&self) {
        self.waker.fire();
    }
}

impl Desk for Broker {
    type Verdict = Verdict;
    type Error = BrokerError;
    type Needs = Waiting;
    type Refused = Refused;

    fn dispatch(&mut self) -> Result<(), BrokerError> {
        self.dispatch_after(event::Wait::No)
    }

    fn would_wait(&mut self, Waiting { needs, deadline }: Waiting) -> Option<Waiting> {
        let most = self.would_refuse_for_now(needs, deadline)?;
        Some(Waiting { needs: most, deadline })
    }

    /// The same needs as both stand for a wait that is not for room: it depends on the deadline, too.
    fn is_between(it: Waiting, least: Waiting, most: Waiting) -> bool {
        it.needs.are_at_least(least.needs)
            && most.needs.are_at_least(it.needs)
            && (it.deadline == most.deadline || least.needs != most.needs)
    }

    /// If the backends that take it take one ahead of it now; or would each take that one if they had
    /// more room: what needs less must not take the little that there is again and again.
    fn is_behind(
        &self,
        Waiting { needs, .. }: Waiting,
        mut ahead: impl Iterator<Item = Waiting>,
    ) -> bool {
        let takers = self.takers(needs, Instant::now());
        ahead.any(|ahead| takers.may_get(ahead.needs))
    }

    fn flush(&mut self) -> Result<(), BrokerError> {
        Broker::flush(self)
    }

    fn take_back(&mut self, id: u64) -> bool {
        self.take_back_from(true, id).is_ok()
    }

    fn end(&mut self, id: u64) {
        self.end_here(id);
    }

    fn refused(&mut self, refused: Refused) -> BrokerError {
        self.counted(refused)
    }

    fn after_wait(&mut self) {
        let now = Instant::now();
        if !self.outcomes.verdicts.is_empty() && !self.leftovers_told {
            self.tell_of_others(now);
        }
        self.tell_of_room(now);
    }

    fn next_awaited(&mut self) -> Option<(usize, u64, Verdict)> {
        let verdict = self.outcomes.awaited.pop_front()?;
        if let Some(member) = self.members.get_mut(verdict.backend as usize) {
            member.named += 1;
        }
        Some((verdict.user_data, verdict.id, verdict))
    }

    fn is_taken(&mut self, verdict: &Verdict) {
        if let Some(member) = self.members.get_mut(verdict.backend as usize) {
            member.named -= 1;
        }
    }

    fn woken() -> BrokerError {
        BrokerError::Woken
    }
}
