//! A directory in which every handoff socket is a backend, followed as files come and go:
//! inotify(7).
//!
//! Names that begin with a dot are left out: a backend makes its socket under such a name and then
//! moves it into place.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::member::{Link, Member};
use super::{BackendSettings, Broker, BrokerError, MAX_BACKENDS};
use crate::memory::NoMemory;
use crate::sys::directory::{self, Change, Told, Watch};
use crate::sys::file::FileId;

/// How long until a directory that could not be read or watched is looked at again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long until it is looked whether a path still leads to the directory that is watched.
const CHECK_PAUSE: Duration = Duration::from_secs(2);
/// How long until a directory with too much in it is read again.
const FULL_PAUSE: Duration = Duration::from_secs(10);
/// The most entries of a directory that are read.
pub(super) const MOST_ENTRIES: usize = 64 * MAX_BACKENDS;
/// How many of its sockets are looked at in one go: each may have to be connected to.
const NAMES_AT_ONCE: usize = 64;
/// How long until the next go.
const NEXT_NAMES_PAUSE: Duration = Duration::from_millis(1);
/// How often a watch is read at once: for as much as it keeps by default, with the longest names.
const MOST_READS: usize = 1024;

#[derive(Debug)]
pub(super) struct Directory {
    pub path: Arc<Path>,
    /// The same, for C.
    pub name: CString,
    /// Of the backends in it.
    pub settings: BackendSettings,
    watch: Option<Watch>,
    /// Nothing in it was left out when it was read last.
    is_read: bool,
    /// The names in it that are still to be looked at, the next one last; and whether anything was
    /// left out since that began.
    unread: Vec<OsString>,
    is_partial: bool,
    /// When to look whether it must be read again.
    pub look_at: Option<Instant>,
    /// An error number: why it could not be read, or not all that is in it.
    error: Option<i32>,
    /// When that began.
    pub failed_at: Instant,
    /// The last name that was left out with ENAMETOOLONG.
    long_name: OsString,
    pub removed: bool,
    /// Sockets in it that were removed by name, until they go or others have their names.
    excluded: Vec<(OsString, FileId)>,
}

impl Directory {
    pub(super) fn new(
        path: &Path,
        settings: BackendSettings,
        now: Instant,
    ) -> Result<Directory, NoMemory> {
        let (watch, error) = (None, None);
        let look_at = Some(now);
        // A path with a NUL in it is refused before.
        let name = CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
        Ok(Directory {
            path: path.into(),
            name,
            settings,
            is_read: false,
            unread: Vec::new(),
            is_partial: false,
            watch,
            look_at,
            error,
            failed_at: now,
            long_name: OsString::new(),
            removed: false,
            excluded: Vec::new(),
        })
    }

    pub(super) fn error(&self) -> Option<i32> {
        self.error.filter(|_| !self.removed)
    }

    /// The same as an error with a sentence.
    pub(super) fn problem(&self) -> Option<BrokerError> {
        let path = Arc::clone(&self.path);
        Some(match self.error()? {
            libc::ENOSPC => BrokerError::TooManySockets { path },
            libc::ENAMETOOLONG => BrokerError::LongPath { path: path.join(&self.long_name).into() },
            error => {
                let source = Some(io::Error::from_raw_os_error(error));
                BrokerError::NoBackend { path, source }
            }
        })
    }

    /// It is added again, after it was removed or to change the settings.
    pub(super) fn add_again(&mut self, settings: BackendSettings, now: Instant) {
        self.settings = settings;
        if std::mem::take(&mut self.removed) {
            self.excluded.clear();
        }
        self.read_at(now);
    }

    /// It is to be read again then.
    fn read_at(&mut self, when: Instant) {
        (self.is_read, self.look_at) = (false, Some(when));
        self.unread.clear();
    }

    /// Something in it is left out, or all of it.
    fn leaves_out(&mut self, error: i32, now: Instant) {
        if self.error.is_none() {
            self.failed_at = now;
        }
        // Too long a name does not hide what else is left out.
        if error != libc::ENAMETOOLONG || !self.is_partial {
            self.error = Some(error);
        }
        self.is_partial = true;
    }

    fn pause(&self) -> Duration {
        match self.error {
            None | Some(libc::ENAMETOOLONG) if self.watch.is_some() => CHECK_PAUSE,
            Some(libc::ENOSPC) => FULL_PAUSE,
            _ => PAUSE,
        }
    }

    fn is_excluded(&self, name: &OsStr) -> bool {
        self.excluded.iter().any(|(other, _)| other == name)
    }

    /// A socket of this name is a backend again.
    fn readmit(&mut self, name: &OsStr) {
        self.excluded.retain(|(other, _)| other != name);
    }
}

/// The key of a directory's watch among the events: behind the numbers of the backends.
fn key(number: usize) -> u64 {
    (MAX_BACKENDS + number) as u64
}

impl Broker {
    /// Reads the directories that are due.
    pub(super) fn tick_directories(&mut self, now: Instant) {
        for number in 0..self.directories.len() {
            let directory = &self.directories[number];
            if directory.removed {
                continue;
            }
            if directory.look_at.is_some_and(|at| at <= now) {
                let watched = directory.watch.as_ref().is_some_and(|it| it.is_at(&directory.path));
                if !directory.unread.is_empty() {
                    self.read_names(number, now);
                } else if directory.is_read && watched {
                    self.directories[number].look_at = Some(now + CHECK_PAUSE);
                } else {
                    // A watch may have changes still to tell, which would be lost with it.
                    if !watched {
                        self.stop_watching(number);
                    }
                    self.read_directory(number, now);
                }
            }
            if let Some(at) = self.directories[number].look_at {
                // If no timer can be set, the handle tries again.
                let _ = self.handle.wake_at(at, now);
            }
        }
    }

    /// Watches a directory, if it is not watched yet, and then begins to find what is in it.
    fn read_directory(&mut self, number: usize, now: Instant) {
        let directory = &mut self.directories[number];
        if directory.watch.is_none() {
            let watch = Watch::new(&directory.path).ok();
            let events = self.handle.events();
            let added = |watch: &Watch| {
                events.is_some_and(|events| events.add(watch.as_fd(), key(number)).is_ok())
            };
            directory.watch = watch.filter(added);
        }
        let directory = &mut self.directories[number];
        let path = directory.path.clone();
        directory.excluded.retain(|(name, socket)| directory::socket(&path, name) == Some(*socket));
        let (names, error) = match directory::sockets(&path, MOST_ENTRIES) {
            Ok((names, all)) => (names, (!all).then_some(libc::ENOSPC)),
            Err(error) => (Vec::new(), error.raw_os_error().or(Some(libc::EIO))),
        };
        (directory.unread, directory.is_partial, directory.is_read) = (names, false, false);
        if let Some(error) = error {
            directory.leaves_out(error, now);
        }
        // After another error it may be there all the same.
        if matches!(error, None | Some(libc::ENOSPC | libc::ENOENT | libc::ENOTDIR)) {
            for index in 0..self.members.len() {
                if self.members[index].directory == Some(number as u32) && !self.is_there(index) {
                    self.gone(index, now);
                }
            }
        }
        self.read_names(number, now);
    }

    /// Whether there are sockets in a directory that are still to be looked at.
    pub(super) fn is_finding_backends(&self) -> bool {
        self.directories.iter().any(|directory| !directory.unread.is_empty())
    }

    /// Whether the socket of a backend is in its directory, and not excluded.
    fn is_there(&self, index: usize) -> bool {
        let member = &self.members[index];
        let directory = member.directory.and_then(|number| self.directories.get(number as usize));
        let (Some(directory), Some(name)) = (directory, member.path.file_name()) else {
            return false;
        };
        !directory.is_excluded(name) && directory::socket(&directory.path, name).is_some()
    }

    /// Looks at the next sockets of those that were in a directory.
    fn read_names(&mut self, number: usize, now: Instant) {
        let settings = self.directories[number].settings;
        for _ in 0..NAMES_AT_ONCE {
            let Some(name) = self.directories[number].unread.pop() else { break };
            self.found(number, &name, settings, now);
        }
        let directory = &mut self.directories[number];
        if directory.unread.is_empty() {
            directory.unread = Vec::new();
            directory.error = directory.error.filter(|_| directory.is_partial);
            directory.is_read = !directory.is_partial;
            directory.look_at = Some(now + directory.pause());
        } else {
            directory.look_at = Some(now + NEXT_NAMES_PAUSE);
        }
    }

    /// A socket came: it is another one than a backend of this name had before.
    fn came(&mut self, number: usize, name: &OsStr, settings: BackendSettings, now: Instant) {
        self.directories[number].readmit(name);
        let before = self.number(&self.directories[number].path.join(name));
        let here = |index: &usize| {
            let member = &self.members[*index];
            member.directory == Some(number as u32) || member.leaving
        };
        if let Some(index) = before.filter(here) {
            // Another file may have the number of the one that was there.
            let member = &mut self.members[index];
            (member.directory, member.socket) = (Some(number as u32), None);
        }
        self.found(number, name, settings, now);
    }

    /// The socket of a backend has gone.
    fn gone(&mut self, index: usize, now: Instant) {
        self.members[index].superseded = true;
        self.leave(index, now);
    }

    /// A name was found in a directory. If it is of a socket, and of another one than was found there
    /// before, the backend that had that one ends as if its socket had gone.
    fn found(&mut self, number: usize, name: &OsStr, settings: BackendSettings, now: Instant) {
        if name.as_bytes().starts_with(b".") {
            return;
        }
        let path = self.directories[number].path.join(name);
        if crate::address::address(&path).is_err() {
            self.directories[number].long_name = name.to_owned();
            return self.directories[number].leaves_out(libc::ENAMETOOLONG, now);
        }
        if self.directories[number].is_excluded(name) {
            return;
        }
        let known = self.number(&path);
        let own = |index: usize| {
            let member = &self.members[index];
            member.directory.is_none() && !member.leaving
        };
        if known.is_some_and(own) {
            // It was added by its own name, which stands.
            return;
        }
        // It may have gone meanwhile.
        let socket = directory::socket(&self.directories[number].path, name);
        if socket.is_none() {
            return;
        }
        let is_another = |index: &usize| {
            let member = &self.members[*index];
            member.directory == Some(number as u32) && member.socket != socket
        };
        let replaced = known.filter(is_another);
        let has_channel = |index: &usize| matches!(self.members[*index].link, Link::Up(_));
        if let Some(index) = replaced.filter(has_channel) {
            self.gone(index, now);
        }
        if let Err(error) = self.add_found(&path, number, settings, now) {
            let full = matches!(error, BrokerError::TooManyBackends { .. });
            let error = if full { libc::ENOSPC } else { libc::ENOMEM };
            self.directories[number].leaves_out(error, now);
        }
        if let Some(index) = self.number(&path) {
            self.members[index].socket = socket;
            if replaced.is_some() {
                self.start_over(index, now);
            }
        }
    }

    /// Adds a backend that was found in a directory. If there are too many, one at whose socket nobody
    /// listens makes room for it: a backend that is killed leaves its socket behind.
    fn add_found(
        &mut self,
        path: &Path,
        number: usize,
        settings: BackendSettings,
        now: Instant,
    ) -> Result<(), BrokerError> {
        let full = match self.add_member(path, settings, Some(number as u32), now) {
            Err(full @ BrokerError::TooManyBackends { .. }) => full,
            result => return result,
        };
        let is_left = |it: &Member| it.directory.is_some() && !it.leaving && it.is_left_behind();
        let left = self.members.iter().position(is_left).ok_or(full)?;
        if let Some(other) = self.members[left].directory.map(|other| other as usize) {
            let directory = &mut self.directories[other];
            // One that is half read is read again because of what it leaves out.
            if other != number && directory.error.is_none() && directory.unread.is_empty() {
                directory.read_at(now + FULL_PAUSE);
            }
            directory.leaves_out(libc::ENOSPC, now);
        }
        self.gone(left, now);
        self.add_member(path, settings, Some(number as u32), now)
    }

    /// Something has changed in the directory with this key.
    pub(super) fn watch_told(&mut self, key: u64, now: Instant) {
        let Some(number) = (key as usize).checked_sub(MAX_BACKENDS) else { return };
        if self.read_watch(number, now) {
            // If no timer can be set, the handle tries again.
            let _ = self.handle.wake_at(now, now);
        }
        self.tick_directories(now);
    }

    /// Does what has changed in a directory. Says whether there may be more.
    fn read_watch(&mut self, number: usize, now: Instant) -> bool {
        let Some(directory) = self.directories.get_mut(number) else { return false };
        let Some(watch) = directory.watch.take() else { return false };
        let settings = directory.settings;
        let (mut all, mut any_went) = (false, false);
        let read = watch.read(|change| match change {
            Change::Came(name)
                if directory::socket(&self.directories[number].path, name).is_some() =>
            {
                self.came(number, name, settings, now);
            }
            Change::Came(name) | Change::Went(name) => {
                any_went = true;
                self.went(number, name, now);
            }
            Change::Unknown => all = true,
        });
        let more = matches!(read, Ok(Told::Some));
        if let Ok(Told::Some | Told::All) = read {
            self.directories[number].watch = Some(watch);
        } else {
            self.unwatch(&watch);
            all = true;
        }
        let directory = &mut self.directories[number];
        if all {
            self.read_directory(number, now);
        } else if directory.is_read && directory.error.is_some() {
            // One that came was left out: it may have its place later.
            directory.read_at(now + directory.pause());
        } else if any_went && !directory.is_read {
            let soon = now + PAUSE;
            directory.look_at = directory.look_at.map(|at| at.min(soon));
        }
        more
    }

    /// A socket went, or something else has its name now.
    fn went(&mut self, number: usize, name: &OsStr, now: Instant) {
        self.directories[number].readmit(name);
        let index = self.number(&self.directories[number].path.join(name));
        // One that was added by its own name stays.
        let here = |index: &usize| self.members[*index].directory == Some(number as u32);
        if let Some(index) = index.filter(here) {
            self.gone(index, now);
        }
    }

    fn unwatch(&mut self, watch: &Watch) {
        if let Some(events) = self.handle.events() {
            events.remove(watch.as_fd());
        }
    }

    fn stop_watching(&mut self, number: usize) {
        if let Some(watch) = self.directories[number].watch.take() {
            self.unwatch(&watch);
        }
    }

    /// A directory is to be removed.
    pub(super) fn remove_directory(&mut self, number: usize) {
        self.directories[number].removed = true;
        self.directories[number].look_at = None;
        self.directories[number].unread = Vec::new();
        self.stop_watching(number);
    }

    /// A backend is about to be removed by name: what its directory's watch has still to tell is of
    /// before that, and so is its socket if that is still to be looked at. The watch has a limit,
    /// fs.inotify.max_queued_events, but whoever may write there can add more while it is read.
    pub(super) fn catch_up(&mut self, path: &Path, now: Instant) {
        let (Some(number), Some(name)) = (self.directory_of(path), path.file_name()) else {
            return;
        };
        if (0..MOST_READS).all(|_| self.read_watch(number, now)) {
            // What is left is forgotten with the watch.
            self.stop_watching(number);
            self.read_directory(number, now);
        }
        let directory = &mut self.directories[number];
        let settings = directory.settings;
        if let Some(at) = directory.unread.iter().position(|unread| unread == name) {
            directory.unread.remove(at);
            self.found(number, name, settings, now);
        }
    }

    /// A backend is removed by name: it stays out of the directory in which it is.
    pub(super) fn exclude(&mut self, path: &Path) {
        let (Some(number), Some(name)) = (self.directory_of(path), path.file_name()) else {
            return;
        };
        let directory = &mut self.directories[number];
        if let Some(socket) = directory::socket(&directory.path, name) {
            directory.readmit(name);
            directory.excluded.push((name.into(), socket));
        }
    }

    /// The directory in which a path is, if the broker has it: as bytes, as
    /// [`number`](Broker::number) has it.
    fn directory_of(&self, path: &Path) -> Option<usize> {
        let name = path.file_name()?;
        let here = |directory: &Directory| {
            !directory.removed && directory.path.join(name).as_os_str() == path.as_os_str()
        };
        self.directories.iter().position(here)
    }

    /// A backend is added by its own name.
    pub(super) fn readmit(&mut self, path: &Path) {
        if let (Some(number), Some(name)) = (self.directory_of(path), path.file_name()) {
            self.directories[number].readmit(name);
        }
    }
}
