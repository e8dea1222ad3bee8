//! One backend as its broker sees it: the channel as it comes and goes, and what can be offered.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::down::WhyDown;
use super::outcomes::Tally;
use super::settings::{BackendSettings, FailureLimits};
use super::slots::queued_len;
use super::{BrokerError, BrokerOptions, Limit, NoWelcome};
use crate::failures::Attempt;
use crate::handle::GREETING_TIMEOUT;
use crate::memory::NoMemory;
use crate::sys::{self, file::FileId};

/// What a backend does, as far as its broker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The broker connects to it, or has, and it has not said welcome yet.
    Connecting,
    /// It takes offers.
    Ready,
    /// It takes no more offers, or is to be removed.
    Draining,
    /// It failed too often, and gets one trial offer at a time.
    Resting,
    /// There is no channel.
    Down,
}

#[derive(Debug)]
pub(super) enum Link {
    /// `first`: a channel has ended, and nothing has been tried since.
    Down {
        retry_at: Instant,
        first: bool,
    },
    Up(Box<Channel>),
}

#[derive(Debug)]
pub(super) struct Member {
    pub path: Arc<Path>,
    /// The same, for C.
    pub name: CString,
    pub settings: BackendSettings,
    pub link: Link,
    pub tally: Tally,
    /// Those that the failures are counted with.
    failure_limits: FailureLimits,
    /// Between the end of a channel, or the failure to make one, and the next attempt.
    next_pause: Duration,
    /// When to look for the successor of a backend that drains.
    pub successor_at: Instant,
    /// Why there is no channel; none before the first attempt to connect.
    pub why_down: Option<WhyDown>,
    /// The number of the directory that it was found in.
    pub directory: Option<u32>,
    /// The file that was found there.
    pub socket: Option<FileId>,
    /// It is to be removed: nothing more is offered to it.
    pub leaving: bool,
    /// Its socket has gone: another one at its path is another backend.
    pub superseded: bool,
    /// It is removed: its place can be used again.
    pub gone: bool,
    /// So many verdicts that threads are about to take name it by its number.
    pub named: u32,
    /// It is in the list of those whose timers are to be set, and which may have something to send.
    pub touched: bool,
    phase: Phase,
    since: Instant,
    /// Its turns among those with equal load: the smooth weighted round-robin of nginx.
    pub turn: i64,
}

/// Why a backend does not take an offer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Obstacle {
    Full(Limit),
    /// It has a channel, and has not said welcome, which is to come by then.
    NoWelcome(Instant),
    /// It is not tried for so long; none: until it answers.
    Resting(Option<Duration>),
    TooLarge {
        len: usize,
        most: usize,
    },
    /// It does not know offers with TLS.
    NoTls,
    Draining,
    Down,
    Off,
}

/// What an offer asks of the backend that takes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Needs {
    /// Bytes in its parts.
    pub len: usize,
    /// The kernel does the connection's TLS.
    pub tls: bool,
}

pub(super) const SMALLEST: Needs = Needs { len: 0, tls: false };

impl Needs {
    /// Whether a backend that does not take an offer with the other needs does not take this one
    /// either.
    pub(super) fn are_at_least(self, other: Needs) -> bool {
        self.len >= other.len && self.tls >= other.tls
    }

    /// Makes of the needs of offers that want room those of this one, too: what any backend can take
    /// that can take one of them.
    pub(super) fn add_to(self, wanted: &mut Option<Needs>) {
        let least =
            |other: Needs| Needs { len: self.len.min(other.len), tls: self.tls && other.tls };
        *wanted = Some(wanted.map_or(self, least));
    }
}

/// Where a backend takes an offer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vacancy {
    pub slot: u32,
    pub generation: u64,
    /// It is the trial of a backend that rests.
    pub trial: bool,
}

/// For how long a backend was silent when the broker last looked; its welcome is to come by then.
pub(super) fn silence(by: Instant, looked_at: Instant) -> Duration {
    GREETING_TIMEOUT.saturating_sub(by.saturating_duration_since(looked_at))
}

impl Obstacle {
    /// Whether an offer is likely to be taken sooner than with another one.
    fn is_sooner(self, other: Obstacle) -> bool {
        match (self, other) {
            (Obstacle::Resting(Some(left)), Obstacle::Resting(Some(other))) => left < other,
            (Obstacle::Resting(left), Obstacle::Resting(_)) => left.is_some(),
            _ => self.rank() < other.rank(),
        }
    }

    /// Keeps, of all backends, the obstacle with which an offer is likely to be taken soonest.
    pub(super) fn keep_soonest(self, index: usize, soonest: &mut Option<(usize, Obstacle)>) {
        if soonest.is_none_or(|(_, other)| self.is_sooner(other)) {
            *soonest = Some((index, self));
        }
    }

    /// The lower, the more likely is it that an offer is taken soon.
    fn rank(self) -> u8 {
        match self {
            Obstacle::Full(_) => 0,
            Obstacle::NoWelcome(_) => 1,
            Obstacle::Resting(_) => 2,
            Obstacle::TooLarge { .. } => 3,
            Obstacle::NoTls => 4,
            Obstacle::Draining => 5,
            Obstacle::Down => 6,
            Obstacle::Off => 7,
        }
    }
}

impl Channel {
    /// What an offer may need that its backend takes, were there room.
    pub(super) fn largest(&self) -> Needs {
        let len = self.welcome.map_or(0, |welcome| welcome.max_bytes as usize);
        Needs { len, tls: self.knows_tls }
    }

    #[cold]
    pub(super) fn limit(&self) -> Limit {
        let most = self.welcome.map_or(0, |welcome| welcome.slots);
        Limit::InFlight {
            in_flight: self.slots.in_flight(),
            unanswered: self.slots.unanswered(),
            most: most as usize,
            of_backend: most < self.slots.count(),
        }
    }
}

impl Member {
    pub(super) fn new(
        path: &Path,
        settings: BackendSettings,
        options: &BrokerOptions,
        now: Instant,
    ) -> Result<Member, NoMemory> {
        let limits = settings.failure_limits(options);
        Ok(Member {
            path: path.into(),
            // A path with a NUL in it is refused before.
            name: CString::new(path.as_os_str().as_bytes()).unwrap_or_default(),
            settings,
            link: Link::Down { retry_at: now, first: false },
            tally: Tally::new(limits)?,
            failure_limits: limits,
            next_pause: options.reconnect_min,
            successor_at: now,
            why_down: None,
            directory: None,
            socket: None,
            leaving: false,
            superseded: false,
            gone: false,
            named: 0,
            touched: false,
            phase: Phase::Connecting,
            since: now,
            turn: 0,
        })
    }

    /// Counts failures by the limits that it has got since the last channel.
    pub(super) fn renew_limits(&mut self, options: &BrokerOptions) -> Result<(), NoMemory> {
        let limits = self.settings.failure_limits(options);
        if limits != self.failure_limits {
            self.tally.failures = limits.counter()?;
            self.failure_limits = limits;
        }
        Ok(())
    }

    pub(super) fn name(&self) -> &CStr {
        &self.name
    }

    pub(super) fn channel(&mut self) -> Option<&mut Channel> {
        match &mut self.link {
            Link::Up(channel) => Some(channel),
            Link::Down { .. } => None,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        match &self.link {
            Link::Up(channel) => channel.slots.in_flight(),
            Link::Down { .. } => 0,
        }
    }

    /// Resets the pause before the next attempt to connect: after a welcome, or for a new backend.
    pub(super) fn reset_pause(&mut self, options: &BrokerOptions) {
        self.next_pause = options.reconnect_min;
    }

    /// When to try again to connect; each pause is twice as long as the one before, until a backend
    /// says welcome.
    pub(super) fn next_attempt(&mut self, options: &BrokerOptions, now: Instant) -> Instant {
        let pause = self.next_pause;
        self.next_pause = (pause * 2).min(options.reconnect_max);
        now.checked_add(pause).unwrap_or(now)
    }

    /// Whether it has a channel and has not said welcome yet, or is to get one by then: a caller
    /// that does not watch the descriptor learns only when it offers that a channel has ended, maybe
    /// long ago. A backend that was silent for too long before is nothing to wait for.
    pub(super) fn is_connecting(&self, deadline: Instant) -> bool {
        let was_silent =
            || matches!(self.why_down, Some(WhyDown::NoWelcome(NoWelcome::Silent { .. })));
        match &self.link {
            Link::Up(channel) => channel.welcome.is_err() && !was_silent(),
            Link::Down { first, retry_at } => *first && self.is_in_use() && *retry_at <= deadline,
        }
    }

    /// Whether nobody listens at its socket.
    pub(super) fn is_left_behind(&self) -> bool {
        let nobody = matches!(self.why_down, Some(WhyDown::NoBackend(libc::ECONNREFUSED)));
        nobody && matches!(self.link, Link::Down { .. })
    }

    /// Whether it is to have a channel.
    pub(super) fn is_in_use(&self) -> bool {
        !self.leaving && !self.gone && !self.settings.off
    }

    /// Whether it takes an offer now: over which channel, and where.
    #[inline(always)]
    pub(super) fn would_take(
        &self,
        Needs { len, tls }: Needs,
        queue_bytes: usize,
        now: Instant,
    ) -> Result<(&Channel, Vacancy), Obstacle> {
        if !self.is_in_use() {
            return Err(Obstacle::Off);
        }
        let Link::Up(channel) = &self.link else { return Err(Obstacle::Down) };
        let welcome = channel.welcome.map_err(Obstacle::NoWelcome)?;
        if channel.draining {
            return Err(Obstacle::Draining);
        }
        if tls && !channel.knows_tls {
            return Err(Obstacle::NoTls);
        }
        let mut trial = false;
        if let Some(failures) = self.tally.failures.as_ref().filter(|it| it.is_resting()) {
            match failures.check(now) {
                Attempt::Rest(left) => return Err(Obstacle::Resting(Some(left))),
                attempt => trial = attempt == Attempt::Trial,
            }
        }
        let most = welcome.max_bytes as usize;
        if len > most {
            return Err(Obstacle::TooLarge { len, most });
        }
        let queued = channel.slots.queued_bytes() + queued_len(len);
        if queued > queue_bytes {
            return Err(self.no_room(channel, Limit::QueuedBytes { queued, most: queue_bytes }));
        }
        match channel.slots.next_slot() {
            Some((slot, generation)) => Ok((channel, Vacancy { slot, generation, trial })),
            None => Err(self.no_room(channel, channel.limit())),
        }
    }

    /// Room that may not come before a hung backend goes on is nothing to wait for.
    #[cold]
    fn no_room(&self, channel: &Channel, limit: Limit) -> Obstacle {
        if self.rests(channel) { Obstacle::Resting(None) } else { Obstacle::Full(limit) }
    }

    /// Whether it failed too often, or as often as it has places for offers, without an answer.
    fn rests(&self, channel: &Channel) -> bool {
        let Some(failures) = &self.tally.failures else { return false };
        let slots = &channel.slots;
        let answers = slots.in_flight() > 0 || slots.granted() > 0 || slots.unanswered() == 0;
        failures.is_resting() || (!answers && failures.any())
    }

    /// How many small offers it takes now.
    pub(super) fn room(&self, queue_bytes: usize, now: Instant) -> usize {
        match self.would_take(SMALLEST, queue_bytes, now) {
            Ok((_, Vacancy { trial: true, .. })) => 1,
            Ok((channel, _)) => {
                let bytes = queue_bytes.saturating_sub(channel.slots.queued_bytes());
                channel.slots.granted().min(bytes / queued_len(0))
            }
            Err(_) => 0,
        }
    }

    /// The error of an offer that it did not take. `looked_at`: when the broker last looked at what
    /// its backends say.
    #[cold]
    pub(super) fn error(
        &self,
        obstacle: Obstacle,
        options: &BrokerOptions,
        looked_at: Instant,
    ) -> BrokerError {
        let path = &self.path;
        let unavailable = |code| WhyDown::NoBackend(code).error(path, options);
        match obstacle {
            Obstacle::Full(limit) => BrokerError::Full { path: path.clone(), limit },
            Obstacle::NoWelcome(by) => match (&self.why_down, silence(by, looked_at).as_secs()) {
                // Until more is known, the last attempt to connect says why.
                (Some(why), _) if why.is_no_welcome() => why.error(path, options),
                (_, 0) => unavailable(libc::ENOTCONN),
                (_, seconds) => {
                    let path = path.clone();
                    BrokerError::NoWelcome { path, did: NoWelcome::Silent { seconds } }
                }
            },
            Obstacle::Resting(left) => BrokerError::RateLimited { path: path.clone(), left },
            Obstacle::TooLarge { len, most } => {
                BrokerError::TooLarge { what: PARTS_TOGETHER, len, most }
            }
            Obstacle::NoTls => BrokerError::BackendWithoutTls { path: path.clone() },
            Obstacle::Draining => unavailable(libc::ESHUTDOWN),
            Obstacle::Off => BrokerError::Off { path: path.clone(), removed: self.leaving },
            Obstacle::Down => match &self.why_down {
                Some(why) => why.error(path, options),
                None => unavailable(libc::ENOTCONN),
            },
        }
    }

    /// What it does now.
    fn phase(&self) -> Phase {
        match &self.link {
            Link::Down { .. } if self.why_down.is_none() && self.is_in_use() => Phase::Connecting,
            Link::Down { .. } => Phase::Down,
            Link::Up(channel) if channel.welcome.is_err() => match &self.why_down {
                // It is tried again, and nothing has changed yet.
                Some(why) if why.is_no_welcome() => Phase::Down,
                _ => Phase::Connecting,
            },
            Link::Up(channel) if channel.draining || !self.is_in_use() => Phase::Draining,
            Link::Up(channel) if self.rests(channel) => Phase::Resting,
            Link::Up(_) => Phase::Ready,
        }
    }

    /// Notes what it does since now, if that has changed: then it returns what it did before.
    pub(super) fn note_phase(&mut self, now: Instant) -> Option<Phase> {
        let phase = self.phase();
        if phase == self.phase {
            return None;
        }
        self.since = now;
        Some(std::mem::replace(&mut self.phase, phase))
    }

    /// What it does, and since when.
    pub(super) fn current_phase(&self) -> (Phase, Instant) {
        (self.phase, self.since)
    }

    /// When something is due that no packet tells of. `wanted`: an offer was refused, so that it
    /// matters when the next one is taken.
    pub(super) fn due(&self, wanted: bool, now: Instant) -> Option<Instant> {
        match &self.link {
            Link::Down { retry_at, .. } => self.is_in_use().then_some(*retry_at),
            Link::Up(channel) => {
                let idle = channel.slots.in_flight() == 0;
                if idle && !self.is_in_use() {
                    return Some(now);
                }
                let mut due = channel.slots.earliest().map(|(_, deadline)| deadline);
                let mut also = |time: Option<Instant>| {
                    if let Some(time) = time {
                        due = Some(sys::earlier(due, time));
                    }
                };
                also(channel.look_due());
                also(channel.greeted_by());
                also(channel.try_again);
                if channel.draining && idle {
                    also(Some(self.successor_at));
                }
                if wanted {
                    also(self.next_trial(now));
                }
                due
            }
        }
    }

    /// When a backend that rests gets its next trial.
    pub(super) fn next_trial(&self, now: Instant) -> Option<Instant> {
        let left = self.tally.failures.as_ref()?.time_left(now)?;
        now.checked_add(left)
    }
}

pub(super) const PARTS_TOGETHER: &str = "preread, metadata and names together";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::channel::tests::connected;
    use crate::kind::ErrorKind;

    #[test]
    fn offer_with_tls_is_for_backends_that_know_it_alone() {
        let (mut broker, _backend, _directory) = connected();
        let takes = |member: &Member, tls| {
            member.would_take(Needs { len: 0, tls }, usize::MAX, Instant::now()).map(|_| ())
        };
        let options = BrokerOptions::default();
        let member = &mut broker.members[0];
        assert!(takes(member, true).is_ok());
        // As with a backend of an older library, which leaves the table alone.
        member.channel().unwrap().knows_tls = false;
        assert!(takes(member, false).is_ok());
        let error = member.error(takes(member, true).unwrap_err(), &options, Instant::now());
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("does not know offers with TLS"), "{error}");
    }
}
