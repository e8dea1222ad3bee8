//! What a broker tells of each of its backends.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::directory::Directory;
use super::member::{Link, Member, Obstacle, Phase, SMALLEST, silence};
use super::{BackendCounts, BackendSettings, Broker, BrokerError, BrokerOptions};

/// What one backend does and has done.
#[derive(Debug)]
pub struct BackendState<'a> {
    /// Its path.
    pub name: &'a CStr,
    /// As it was added.
    pub settings: BackendSettings,
    /// What it does.
    pub phase: Phase,
    /// Why there is no channel, or nothing is offered.
    pub error: Option<BrokerError>,
    /// How long it has done that.
    pub since: Duration,
    /// How long until the broker tries it next: to connect, or with a trial offer.
    pub next: Option<Duration>,
    /// Offers in flight.
    pub in_flight: usize,
    /// How many small offers it would take now.
    pub room: usize,
    /// What it has done since it was added.
    pub counts: BackendCounts,
}

impl Broker {
    /// What one of the backends does and has done; `index` counts from 0 in the order in which they
    /// came. Behind them come the directories that cannot be read, or in which a socket is left out, as
    /// backends that are down. None behind the last one.
    pub fn backend_state(&mut self, index: usize) -> Option<BackendState<'_>> {
        let now = Instant::now();
        let mut state = if let Some(number) = self.listed.get(index).map(|it| *it as usize) {
            self.note_phase(number, now);
            state(&self.members[number], &self.options, self.looked_at, now)
        } else {
            let mut failing = self.directories.iter().filter(|it| it.error().is_some());
            state_of_directory(failing.nth(index - self.listed.len())?, now)
        };
        if self.closed {
            state.phase = Phase::Down;
            let path = Path::new(OsStr::from_bytes(state.name.to_bytes())).into();
            state.error = Some(BrokerError::Closed { path });
            (state.next, state.room) = (None, 0);
        }
        Some(state)
    }
}

fn state<'a>(
    member: &'a Member,
    options: &BrokerOptions,
    looked_at: Instant,
    now: Instant,
) -> BackendState<'a> {
    let (phase, since) = member.current_phase();
    let left = |at: Instant| at.saturating_duration_since(now);
    let (obstacle, next) = match (&member.link, phase) {
        _ if member.settings.off => (Some(Obstacle::Off), None),
        (Link::Down { retry_at, .. }, Phase::Down) => (Some(Obstacle::Down), Some(left(*retry_at))),
        (Link::Up(_), Phase::Down) => (Some(Obstacle::Down), Some(Duration::ZERO)),
        (Link::Up(channel), Phase::Connecting) => {
            // It may well come in time.
            let late = |by: &Instant| silence(*by, looked_at).as_secs() > 0;
            (channel.welcome.err().filter(late).map(Obstacle::NoWelcome), Some(Duration::ZERO))
        }
        (_, Phase::Resting) => {
            let next = match member.would_take(SMALLEST, options.queue_bytes, now) {
                Err(Obstacle::Resting(left)) => left,
                _ => Some(Duration::ZERO),
            };
            (Some(Obstacle::Resting(next)), next)
        }
        _ => (None, None),
    };
    BackendState {
        name: member.name(),
        settings: member.settings,
        phase,
        error: obstacle.map(|obstacle| member.error(obstacle, options, looked_at)),
        since: now.saturating_duration_since(since),
        next,
        in_flight: member.in_flight(),
        room: member.room(options.queue_bytes, now),
        counts: member.tally.counts,
    }
}

fn state_of_directory(directory: &Directory, now: Instant) -> BackendState<'_> {
    BackendState {
        name: &directory.name,
        settings: directory.settings,
        phase: Phase::Down,
        error: directory.problem(),
        since: now.saturating_duration_since(directory.failed_at),
        next: directory.look_at.map(|at| at.saturating_duration_since(now)),
        in_flight: 0,
        room: 0,
        counts: BackendCounts::default(),
    }
}
