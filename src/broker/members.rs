//! The backends of a broker: adding, changing and removing them.

use std::ffi::CStr;
use std::path::Path;
use std::time::Instant;

use super::directory::Directory;
use super::member::Member;
use super::outcomes::Outcomes;
use super::{BackendSettings, Broker, BrokerError, MAX_BACKENDS};
use crate::address;
use crate::memory::NoMemory;
use crate::reason::Reason;
use crate::wire::MAX_SLOTS;

const BACKENDS: &str = "the backends of a broker";

impl Broker {
    /// Adds a backend or, if the path ends in `/`, the handoff sockets in a directory, as they come
    /// and go. What the broker has already gets other settings; its limits hold from its next
    /// channel on.
    pub fn add(&mut self, path: &Path, settings: BackendSettings) -> Result<(), BrokerError> {
        let now = Instant::now();
        if self.closed {
            return Err(BrokerError::Closed { path: self.path.clone() });
        }
        self.check_process()?;
        let known = self.outcomes.verdicts.len();
        let settings = settings.checked();
        if address::is_directory(path) {
            // There must be room for a name.
            address::address(&path.join("-")).map_err(BrokerError::Address)?;
            self.add_directory(path, settings, now)?;
        } else {
            address::address(path).map_err(BrokerError::Address)?;
            self.readmit(path);
            self.add_member(path, settings, None, now)?;
        }
        if self.handle.is_open() {
            self.flush_changes(known, now);
        }
        Ok(())
    }

    /// The backends have changed, whatever can be sent now. If a timer cannot be set, the caller's
    /// loop is woken to try again, or its next call does.
    fn flush_changes(&mut self, known: usize, now: Instant) {
        if self.flush_and_tell(known, now).is_err() {
            let _ = self.handle.wake_at(now, now);
        }
    }

    fn add_directory(
        &mut self,
        path: &Path,
        settings: BackendSettings,
        now: Instant,
    ) -> Result<(), BrokerError> {
        if let Some(number) = self.directory_at(path) {
            self.directories[number].add_again(settings, now);
            for index in 0..self.members.len() {
                if self.members[index].directory == Some(number as u32) {
                    self.change(index, settings, now)?;
                }
            }
        } else if let Some(unused) = self.directories.iter_mut().find(|other| other.removed) {
            *unused = Directory::new(path, settings, now)?;
        } else {
            self.directories.try_reserve(1).map_err(NoMemory::to(BACKENDS))?;
            self.directories.push(Directory::new(path, settings, now)?);
        }
        if self.handle.is_open() {
            self.tick_directories(now);
        }
        Ok(())
    }

    /// The number of the directory with this path.
    fn directory_at(&self, path: &Path) -> Option<usize> {
        let is_here = |it: &Directory| it.path.as_os_str() == path.as_os_str();
        self.directories.iter().position(is_here)
    }

    /// Adds one backend, or changes it.
    pub(super) fn add_member(
        &mut self,
        path: &Path,
        settings: BackendSettings,
        directory: Option<u32>,
        now: Instant,
    ) -> Result<(), BrokerError> {
        if let Some(index) = self.number(path) {
            self.members[index].leaving = false;
            self.members[index].directory = directory;
            return self.change(index, settings, now);
        }
        let index = self.unused_number()?;
        let mut member = Member::new(path, settings, &self.options, now)?;
        member.directory = directory;
        if index < self.members.len() {
            member.touched = self.members[index].touched;
            self.members[index] = member;
            self.outcomes.copies.renumbered(index);
        } else {
            self.members.push(member);
        }
        self.listed.push(index as u32);
        if self.handle.is_open() {
            self.reserve().inspect_err(|_| self.forget(index))?;
            self.tick(index, now);
        }
        Ok(())
    }

    /// The number of the backend with this path, but for those whose socket has gone.
    pub(super) fn number(&self, path: &Path) -> Option<usize> {
        let mut listed = self.listed.iter().map(|index| *index as usize);
        // As bytes: of abstract names, "@x/a" and "@x//a" are two.
        listed.find(|index| {
            let member = &self.members[*index];
            !member.superseded && member.path.as_os_str() == path.as_os_str()
        })
    }

    fn change(
        &mut self,
        index: usize,
        settings: BackendSettings,
        now: Instant,
    ) -> Result<(), BrokerError> {
        self.members[index].settings = settings;
        if self.handle.is_open() {
            self.reserve()?;
            self.tick(index, now);
        }
        Ok(())
    }

    /// A number for one more backend, with memory for it in every list. Numbers of those that are
    /// gone are used again, but for those in verdicts that were not taken and of offers that go on.
    fn unused_number(&mut self) -> Result<usize, BrokerError> {
        let Outcomes { verdicts, awaited, copies, .. } = &self.outcomes;
        let named = |index: usize| {
            let mut untaken = verdicts.iter().chain(awaited);
            untaken.any(|verdict| verdict.backend as usize == index) || copies.names(index)
        };
        let gone = |index: &usize| {
            let member = &self.members[*index];
            member.gone && member.named == 0 && !named(*index)
        };
        let all = self.members.len();
        if let Some(index) = (self.listed.len() < all).then(|| (0..all).find(gone)).flatten() {
            return Ok(index);
        }
        if all == MAX_BACKENDS {
            return Err(BrokerError::TooManyBackends { most: MAX_BACKENDS });
        }
        self.members.try_reserve(1).map_err(NoMemory::to(BACKENDS))?;
        for list in [&mut self.listed, &mut self.touched] {
            list.try_reserve(all + 1).map_err(NoMemory::to(BACKENDS))?;
        }
        self.candidates.clear();
        self.candidates.try_reserve(all + 1).map_err(NoMemory::to(BACKENDS))?;
        Ok(all)
    }

    /// How many offers may wait for another backend, if so many may be in flight.
    pub(super) fn may_wait(&self, most: usize) -> usize {
        if self.members.len() > 1 { most } else { 0 }
    }

    /// Has room for a verdict of every offer that can be in flight or wait for another backend, and
    /// for those that were not taken when it was offered.
    pub(super) fn reserve(&mut self) -> Result<(), NoMemory> {
        let of = |member: &Member| {
            member.settings.max_in_flight.unwrap_or(self.options.max_in_flight).clamp(1, MAX_SLOTS)
        };
        let most = self.members.iter().filter(|member| !member.gone).map(of).sum::<usize>();
        let may_wait = self.may_wait(most);
        let Outcomes { verdicts, again, .. } = &mut self.outcomes;
        let more = (2 * most + may_wait).saturating_sub(verdicts.len());
        verdicts.try_reserve(more).map_err(NoMemory::to("verdicts"))?;
        again.try_reserve(may_wait).map_err(NoMemory::to("verdicts"))?;
        let more = may_wait.saturating_sub(self.failover.waiting.len());
        self.failover.waiting.try_reserve(more).map_err(NoMemory::to("verdicts"))?;
        self.most_verdicts = most;
        Ok(())
    }

    /// Removes a backend, or a directory and all backends in it; false if the broker has no such
    /// one. Nothing more is offered there. Offers in flight end as they do, and then the channel is
    /// closed.
    pub fn remove(&mut self, path: &Path) -> Result<bool, BrokerError> {
        let now = Instant::now();
        if self.closed {
            return Err(BrokerError::Closed { path: self.path.clone() });
        }
        self.check_process()?;
        let mut removed = false;
        let known = self.outcomes.verdicts.len();
        if let Some(number) = self.directory_at(path) {
            removed = !self.directories[number].removed;
            self.remove_directory(number);
            for index in 0..self.members.len() {
                if self.members[index].directory == Some(number as u32) {
                    self.leave(index, now);
                }
            }
        } else {
            self.catch_up(path, now);
            if let Some(index) = self.number(path) {
                removed = !self.members[index].leaving;
                self.exclude(path);
                self.leave(index, now);
            }
        }
        if self.handle.is_open() {
            self.tick_directories(now);
            self.flush_changes(known, now);
        }
        Ok(removed)
    }

    /// Offers nothing more to a backend, and forgets it when nothing is in flight there.
    pub(super) fn leave(&mut self, index: usize, now: Instant) {
        if self.members[index].gone {
            return;
        }
        self.members[index].leaving = true;
        if self.members[index].in_flight() == 0 {
            self.hang_up(index, Reason::BrokerClosed, now);
        } else {
            self.touch(index);
        }
    }

    /// Forgets a backend without a channel. Its name stays until its number is used again.
    pub(super) fn forget(&mut self, index: usize) {
        let member = &mut self.members[index];
        (member.gone, member.leaving) = (true, true);
        self.listed.retain(|listed| *listed as usize != index);
        // It can only become less.
        let _ = self.reserve();
    }

    /// The path of the backend in a verdict, for as long as no other call has begun.
    pub fn backend_name(&self, number: u32) -> Option<&CStr> {
        self.members.get(number as usize).map(Member::name)
    }
}
