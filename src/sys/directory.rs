//! Directories: what is in them, and what changes, inotify(7).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::file::{FileId, c_path};
use super::{new_descriptor, retry};

/// The names of the sockets in a directory, the last one first, and whether these are all: so many
/// entries are read at most, of sockets or not.
pub(crate) fn sockets(path: &Path, most: usize) -> io::Result<(Vec<OsString>, bool)> {
    let mut names = Vec::new();
    let mut all = true;
    for (count, entry) in fs::read_dir(path)?.enumerate() {
        let entry = entry?;
        if count == most {
            all = false;
            break;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            names.try_reserve(1).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
            names.push(entry.file_name());
        }
    }
    // The order in which the system lists them is nobody's.
    names.sort_unstable_by(|one, other| other.cmp(one));
    Ok((names, all))
}

/// Which socket has a name in a directory, if one has it.
pub(crate) fn socket(path: &Path, name: &OsStr) -> Option<FileId> {
    let status = fs::symlink_metadata(path.join(name)).ok()?;
    status.file_type().is_socket().then(|| FileId::of(&status))
}

fn identity(path: &Path) -> Option<FileId> {
    fs::metadata(path).ok().map(|status| FileId::of(&status))
}

/// What has changed in a directory.
pub(crate) enum Change<'a> {
    /// A name came.
    Came(&'a OsStr),
    /// A name went.
    Went(&'a OsStr),
    /// More than can be told.
    Unknown,
}

/// How much a [`Watch`] has told.
pub(crate) enum Told {
    /// There may be more.
    Some,
    All,
    /// The directory has gone, and there will be no more.
    Gone,
}

/// Tells what changes in a directory.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: OwnedFd,
    /// The directory.
    identity: Option<FileId>,
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// Bytes before the name of an event, inotify(7).
const EVENT_LEN: usize = size_of::<libc::inotify_event>();

impl Watch {
    pub(crate) fn new(path: &Path) -> io::Result<Watch> {
        let identity = identity(path);
        let path = c_path(path)?;
        let flags = libc::IN_CLOEXEC | libc::IN_NONBLOCK;
        // SAFETY: inotify_init1(2) takes no pointers, and makes a new descriptor.
        let inotify = unsafe { new_descriptor(|| libc::inotify_init1(flags)) }?;
        let changes = libc::IN_CREATE
            | libc::IN_MOVED_TO
            | libc::IN_DELETE
            | libc::IN_MOVED_FROM
            | libc::IN_DELETE_SELF
            | libc::IN_MOVE_SELF
            | libc::IN_ONLYDIR;
        // SAFETY: the path is a C string that outlives the call.
        retry(|| unsafe {
            libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), changes) as isize
        })?;
        Ok(Watch { inotify, identity })
    }

    /// Whether the path still names the directory.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        self.identity.is_some() && identity(path) == self.identity
    }

    /// Calls `each` with what has changed, but for what a second call would tell: says whether it may
    /// tell more, or that the directory cannot be watched any more.
    pub(crate) fn read(&self, mut each: impl FnMut(Change<'_>)) -> io::Result<Told> {
        let gone = libc::IN_IGNORED | libc::IN_UNMOUNT | libc::IN_MOVE_SELF | libc::IN_DELETE_SELF;
        let mut buffer = [0; 4096];
        // SAFETY: the pointer and the length describe `buffer`.
        let read = retry(|| unsafe {
            libc::read(self.inotify.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len())
        });
        let mut rest = match read {
            Ok(0) => return Ok(Told::All),
            Ok(len) => &buffer[..len],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Told::All),
            Err(error) => return Err(error),
        };
        while let Some((head, behind)) = rest.split_at_checked(EVENT_LEN) {
            let word = |at: usize| {
                u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
            };
            let (mask, len) = (word(4), word(12) as usize);
            let Some((name, next)) = behind.split_at_checked(len) else { break };
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(len);
            let name = OsStr::from_bytes(&name[..end]);
            if mask & gone != 0 {
                return Ok(Told::Gone);
            }
            each(if mask & libc::IN_Q_OVERFLOW != 0 {
                Change::Unknown
            } else if mask & (libc::IN_CREATE | libc::IN_MOVED_TO) != 0 {
                Change::Came(name)
            } else {
                Change::Went(name)
            });
            rest = next;
        }
        Ok(Told::Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use tempfile::TempDir;

    #[test]
    fn no_more_entries_are_read_than_may_be_whatever_they_are() {
        let directory = TempDir::new().unwrap();
        for number in 0..5 {
            UnixListener::bind(directory.path().join(format!("socket-{number}"))).unwrap();
            fs::write(directory.path().join(format!("file-{number}")), "").unwrap();
        }
        let (names, all) = sockets(directory.path(), 10).unwrap();
        assert!(all);
        assert_eq!(names, ["socket-4", "socket-3", "socket-2", "socket-1", "socket-0"]);
        for most in 0..10 {
            let (names, all) = sockets(directory.path(), most).unwrap();
            assert!(!all && names.len() <= most, "{most}");
        }
    }
}
