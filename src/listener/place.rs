//! How the file of a handoff socket comes to its path, and how it goes.
//!
//! The socket is bound beside its path, gets its mode, and listens. Then its file moves to the
//! path, so it is live from the first moment that anybody sees it there. No lock of the file system
//! is used: anybody who can read a directory can hold its flock(2), and NFS may have none. /proc is
//! not needed either, unless the umask takes away what the owner may do: a mode that the umask cut is
//! set in a directory of the file's own, which is held open, so nobody can put a link in its place.
//!
//! A file is stale if no socket is bound to it. That does not change any more, since only bind(2)
//! does it, to a file that it makes. What is at the path decides:
//!
//! - Nothing: the file moves there unless something is there by then, which the kernel decides.
//! - A live socket, or no socket: it stays.
//! - A stale socket: rename(2) replaces it. Between the look and the rename nobody else may replace
//!   it too, because the rename would hit the other's live socket. So only the holder of the lock
//!   does, and looks again first: from then on only the holder changes what is there.
//!
//! The lock is the name `.NAME.starting`: whose directory has it, with the socket inside, holds it.
//! rename(2) gives a directory the name of another one only if that is empty, so of several the
//! kernel lets one succeed. The socket leaves for the path, which also frees the lock, in one step.
//! If the holder dies, its socket is stale, and the next one removes it: by a name that is random
//! and used once, so that a slow process never removes what came later.
//!
//! So of several that start together one listens. The others find its socket, at the path or in the
//! lock, and say that the path is in use. A process that is killed before the move leaves its file
//! or directory; their names begin with that of the path, behind a dot.
//!
//! The file is compared and removed before its socket is closed: the socket pins its inode, so that
//! no other file can have that number. A successor does not replace a live socket, so only somebody
//! who removes the file by hand can have put another there between the look and the unlink.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::{ListenerError, ListenerOptions, directory_of, failed};
use crate::address;
use crate::sys::address::Address;
use crate::sys::file::{self, FileId};
use crate::sys::{self, process, user};

/// How often something is tried again that only others' progress can make fail.
const TRIES: usize = 1000;

/// The file of a listening socket at its path.
#[derive(Debug)]
pub(super) struct SocketFile {
    directory: OwnedFd,
    name: PathBuf,
    id: FileId,
    /// The process that removes it. That is the one that made it, and not a child of fork(2),
    /// unless [`set_remover`](SocketFile::set_remover) says otherwise.
    remover: Option<u64>,
}

impl SocketFile {
    /// Sets whether this process removes the file.
    pub(super) fn set_remover(&mut self, ours: bool) {
        self.remover = ours.then(process::current);
    }
}

impl Drop for SocketFile {
    /// To be dropped while the socket is open.
    fn drop(&mut self) {
        if self.remover != Some(process::current()) {
            return;
        }
        // Somebody may have removed it and bound another.
        if file::status_at(&self.directory, &self.name).is_ok_and(|status| status.id == self.id) {
            let _ = file::unlink_at(&self.directory, &self.name);
        }
    }
}

/// Binds a socket, listens, and puts its file at `path`.
pub(super) fn listen_at(
    socket: &OwnedFd,
    path: &Path,
    address: &Address,
    options: &ListenerOptions,
) -> Result<SocketFile, ListenerError> {
    let place = Place::open(path, address)?;
    // Not needed, but nothing is made and removed for a path that is in use.
    place.examine()?;
    let failed = |action| move |error| failed(path, action, error);
    let mut draft = Draft::bind(&place, socket, options.mode)?;
    let id = draft.set_mode(options.mode).map_err(failed("set the mode of the socket"))?;
    sys::socket::listen(socket, options.backlog.max(1)).map_err(failed("listen"))?;
    draft.publish()?;
    drop(draft);
    let Place { directory, name, .. } = place;
    Ok(SocketFile { directory, name, id, remover: Some(process::current()) })
}

/// Where the file is to be.
struct Place<'a> {
    path: &'a Path,
    address: &'a Address,
    directory: OwnedFd,
    name: PathBuf,
}

/// What is at a path that may be taken.
#[derive(PartialEq)]
enum Found {
    Nothing,
    StaleSocket,
}

impl<'a> Place<'a> {
    fn open(path: &'a Path, address: &'a Address) -> Result<Place<'a>, ListenerError> {
        // A Path leaves out what says that the last name is a directory's.
        let bytes = path.as_os_str().as_encoded_bytes();
        let directory = bytes.ends_with(b"/") || bytes.ends_with(b"/.");
        let name = path.file_name().filter(|_| !directory).map(PathBuf::from);
        let name = name.ok_or_else(|| ListenerError::Directory { path: path.to_owned() })?;
        let directory = file::open_directory(directory_of(path))
            .map_err(|error| failed(path, "open its directory", error))?;
        Ok(Place { path, address, directory, name })
    }

    fn in_use(&self) -> ListenerError {
        ListenerError::InUse { path: self.path.to_owned(), source: None }
    }

    /// A name beside the path.
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = std::ffi::OsString::from(".");
        name.push(&self.name);
        name.push(".");
        name.push(suffix);
        PathBuf::from(name)
    }

    /// A name in the same directory that is short enough to be a socket's address.
    fn short_name(&self, random: &str) -> PathBuf {
        let before = self.path.as_os_str().len() - self.name.as_os_str().len();
        let room = Address::MAX_PATH - before;
        let long = self.beside(random);
        if long.as_os_str().len() <= room {
            return long;
        }
        // A dot alone is the directory.
        let mut short = if room > 1 { format!(".{random}") } else { random.to_owned() };
        short.truncate(room);
        PathBuf::from(short)
    }

    /// What is at the path, unless it must stay.
    fn examine(&self) -> Result<Found, ListenerError> {
        match file::status_at(&self.directory, &self.name) {
            Ok(status) if status.is_socket() => {}
            Ok(status) if status.is_directory() => {
                return Err(ListenerError::Directory { path: self.path.to_owned() });
            }
            Ok(_) => return Err(ListenerError::NotASocket { path: self.path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(failed(self.path, "examine what is there", error)),
        }
        match sys::address::is_bound(self.address) {
            Ok(true) => Err(self.in_use()),
            Ok(false) => Ok(Found::StaleSocket),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
            Err(error) => Err(failed(self.path, "ask who listens there", error)),
        }
    }

    /// Whether a socket is bound to a file of the directory.
    fn is_bound(&self, name: &Path) -> io::Result<bool> {
        if let Ok(address) = address::address(&self.path.with_file_name(name)) {
            return sys::address::is_bound(&address);
        }
        // The name is too long for an address, so it gets a short one for a moment.
        let (directory, random) = (&self.directory, random_name()?);
        let short = self.short_name(&random);
        file::link_at(directory, name, &short)?;
        let too_long = |_| io::Error::from_raw_os_error(libc::ENAMETOOLONG);
        let address = address::address(&self.path.with_file_name(&short)).map_err(too_long);
        let bound = address.and_then(|address| sys::address::is_bound(&address));
        let _ = file::unlink_at(directory, &short);
        bound
    }

    /// Whether a directory beside the path is a stranger's, who was allowed to make it but is not
    /// allowed to change the path: in a sticky directory such as /tmp.
    fn is_strangers(&self, directory: &Path) -> bool {
        const STICKY: u32 = 0o1000;
        let around = file::status_of(self.directory.as_fd());
        let (Ok(around), Ok(it)) = (around, file::status_at(&self.directory, directory)) else {
            return false;
        };
        let trusted = [sys::effective_user(), 0, around.owner].contains(&it.owner)
            && user::names_one_user(it.owner);
        around.mode & STICKY != 0 && !trusted
    }
}

/// A socket's file on its way to its path. What is left of it goes when it is dropped.
struct Draft<'a> {
    place: &'a Place<'a>,
    /// Used once.
    random: String,
    /// Where the file is, until it is published.
    file: PathBuf,
    published: bool,
    /// The directory of its own, once it has one.
    private: Option<PathBuf>,
}

impl<'a> Draft<'a> {
    /// Binds the socket beside its path. The file never has more permissions than `mode`.
    fn bind(place: &'a Place<'a>, socket: &OwnedFd, mode: u32) -> Result<Draft<'a>, ListenerError> {
        let failed = |error| failed(place.path, "bind", error);
        file::set_mode_before_bind(socket, mode);
        for _ in 0..TRIES {
            let random = random_name().map_err(failed)?;
            let file = place.short_name(&random);
            // A name of one byte may be the path's own.
            if file == place.name {
                continue;
            }
            let address = address::address(&place.path.with_file_name(&file))?;
            match sys::address::bind(socket, &address) {
                Ok(()) => {
                    return Ok(Draft { place, random, file, published: false, private: None });
                }
                Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        // Every name that was tried beside the path; the path itself is not in use.
        Err(failed(io::Error::from_raw_os_error(libc::EEXIST)))
    }

    /// Gives the file the permissions that the umask took away.
    fn set_mode(&mut self, mode: u32) -> io::Result<FileId> {
        let directory = &self.place.directory;
        let status = file::status_at(directory, &self.file)?;
        if status.mode == mode {
            return Ok(status.id);
        }
        let private = self.make_private()?;
        // Whoever may write to the directory may have put something else there under each name that is
        // not in the private one.
        let private = open_private(directory, &private)?;
        let name = Path::new(&self.random);
        let status = file::status_at(&private, name)?;
        if !status.is_socket() || status.owner != sys::effective_user() || status.links != 1 {
            return Err(io::Error::from_raw_os_error(libc::ENOTSOCK));
        }
        file::set_mode_at(&private, name, mode)?;
        Ok(status.id)
    }

    /// Moves the file into a directory of its own, if it is not there, and names that.
    fn make_private(&mut self) -> io::Result<PathBuf> {
        if let Some(private) = &self.private {
            return Ok(private.clone());
        }
        let directory = &self.place.directory;
        let private = self.place.beside(&format!("{}.d", self.random));
        file::make_directory_at(directory, &private, 0o700)?;
        self.private = Some(private.clone());
        let opened = open_private(directory, &private)?;
        // The umask may have taken something away.
        if file::status_of(opened.as_fd())?.mode & 0o700 != 0o700 {
            file::set_mode_of(&opened, 0o700)?;
        }
        let file = private.join(&self.random);
        file::rename_at(directory, &self.file, &file)?;
        self.file = file;
        Ok(private)
    }

    /// Moves the file to its path, where a stale socket may be.
    fn publish(&mut self) -> Result<(), ListenerError> {
        let Place { path, directory, name, .. } = self.place;
        let mut locked = false;
        for _ in 0..TRIES {
            let moved = match self.place.examine()? {
                Found::Nothing => file::rename_new_at(directory, &self.file, name),
                Found::StaleSocket if locked => file::rename_at(directory, &self.file, name),
                Found::StaleSocket => {
                    self.lock()?;
                    locked = true;
                    continue;
                }
            };
            match moved {
                Ok(()) => {
                    self.published = true;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(path, "move the socket there", error)),
            }
        }
        Err(self.place.in_use())
    }

    /// Takes the lock. Where it cannot be had for another reason than that somebody is starting, it
    /// is done without: it only keeps those apart who start at once.
    fn lock(&mut self) -> Result<(), ListenerError> {
        let lock = self.place.beside("starting");
        let Ok(private) = self.make_private() else { return Ok(()) };
        for _ in 0..TRIES {
            match file::rename_at(&self.place.directory, &private, &lock) {
                Ok(()) => {
                    self.file = lock.join(&self.random);
                    self.private = Some(lock);
                    return Ok(());
                }
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST)) => {}
                Err(_) => return Ok(()),
            }
            if self.place.is_strangers(&lock) {
                return Ok(());
            }
            match self.clear(&lock) {
                Ok(true) => {}
                Ok(false) => return Err(self.place.in_use()),
                Err(_) => return Ok(()),
            }
        }
        Err(self.place.in_use())
    }

    /// Removes from the lock what those left who died with it; false if somebody has it.
    fn clear(&self, lock: &Path) -> io::Result<bool> {
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let entries = match fs::read_dir(self.place.path.with_file_name(lock)) {
            Err(error) if gone(&error) => return Ok(true),
            entries => entries?,
        };
        for entry in entries {
            let file = lock.join(entry?.file_name());
            let stale = || {
                if !file::status_at(&self.place.directory, &file)?.is_socket() {
                    return Err(io::Error::from_raw_os_error(libc::ENOTSOCK));
                }
                if self.place.is_bound(&file)? {
                    return Ok(false);
                }
                file::unlink_at(&self.place.directory, &file)?;
                Ok(true)
            };
            match stale() {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) if gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Opens a directory in which only this user can change anything.
fn open_private(directory: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    let private = file::open_directory_at(directory, name)?;
    let status = file::status_of(private.as_fd())?;
    if status.owner != sys::effective_user() || status.mode & 0o077 != 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(private)
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        let directory = &self.place.directory;
        if !self.published {
            let _ = file::unlink_at(directory, &self.file);
        }
        if let Some(private) = &self.private {
            // If it is the lock, the next one may have its name already, and is not empty.
            let _ = file::remove_directory_at(directory, private);
        }
    }
}

/// A name that no other process makes.
fn random_name() -> io::Result<String> {
    let mut bytes = [0; 8];
    sys::random(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::Listener;
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::os::unix::net::{UnixListener, UnixStream};
    use tempfile::TempDir;

    fn listen(path: &Path) -> Result<Listener, ListenerError> {
        Listener::new(path, &ListenerOptions::default())
    }

    /// A directory with a stale socket, the socket's path, and that of the lock.
    fn stale() -> (TempDir, PathBuf, PathBuf) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("handoff.sock");
        drop(UnixListener::bind(&path).unwrap());
        let lock = directory.path().join(".handoff.sock.starting");
        (directory, path, lock)
    }

    fn names(directory: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(directory.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn nothing_but_the_socket_is_left_and_in_the_end_nothing() {
        let (directory, path, _) = stale();
        let listener = listen(&path).unwrap();
        assert_eq!(names(&directory), ["handoff.sock"]);
        assert!(listen(&path).is_err());
        assert_eq!(names(&directory), ["handoff.sock"]);
        drop(listener);
        assert_eq!(names(&directory), [""; 0]);
    }

    #[test]
    fn draft_that_finds_the_path_taken_leaves_nothing() {
        let (directory, path, _) = stale();
        let address = address::address(&path).unwrap();
        let place = Place::open(&path, &address).unwrap();
        let socket = sys::socket::new(sys::socket::SocketKind::Stream).unwrap();
        let mut draft = Draft::bind(&place, &socket, 0o600).unwrap();
        draft.set_mode(0o600).unwrap();
        let _winner = listen(&path).unwrap();
        assert!(matches!(draft.publish(), Err(ListenerError::InUse { .. })));
        drop(draft);
        assert_eq!(names(&directory), ["handoff.sock"]);
    }

    #[test]
    fn mode_of_nothing_else_is_set_whatever_is_put_in_the_place_of_the_private_directory() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("handoff.sock");
        let address = address::address(&path).unwrap();
        let place = Place::open(&path, &address).unwrap();
        let elsewhere = directory.path().join("elsewhere");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        // Each changes what is in the private directory, or what its name stands for.
        let link_to_directory = |private: &Path, _: &Path| {
            fs::rename(private, directory.path().join("away")).unwrap();
            std::os::unix::fs::symlink(&elsewhere, private).unwrap();
        };
        let open_directory = |private: &Path, _: &Path| {
            fs::set_permissions(private, fs::Permissions::from_mode(0o777)).unwrap();
        };
        let link = |private: &Path, name: &Path| {
            fs::remove_file(private.join(name)).unwrap();
            std::os::unix::fs::symlink(elsewhere.join(name), private.join(name)).unwrap();
        };
        let hard_link = |private: &Path, name: &Path| {
            fs::remove_file(private.join(name)).unwrap();
            fs::hard_link(elsewhere.join(name), private.join(name)).unwrap();
        };
        type Change<'a> = &'a dyn Fn(&Path, &Path);
        let changes: [Change<'_>; 4] = [&link_to_directory, &open_directory, &link, &hard_link];
        for (number, change) in changes.into_iter().enumerate() {
            fs::create_dir(&elsewhere).unwrap();
            let socket = sys::socket::new(sys::socket::SocketKind::Stream).unwrap();
            let mut draft = Draft::bind(&place, &socket, 0o600).unwrap();
            let name = PathBuf::from(&draft.random);
            let _others = UnixListener::bind(elsewhere.join(&name)).unwrap();
            let before = fs::Permissions::from_mode(0o600);
            fs::set_permissions(elsewhere.join(&name), before).unwrap();
            let private = directory.path().join(draft.make_private().unwrap());
            change(&private, &name);
            assert!(draft.set_mode(0o666).is_err(), "{number}");
            assert_eq!(mode(&elsewhere.join(&name)), 0o600, "{number}");
            drop(draft);
            fs::remove_dir_all(&elsewhere).unwrap();
        }
    }

    #[test]
    fn stale_socket_is_left_to_the_one_who_has_the_lock() {
        let (_directory, path, lock) = stale();
        fs::create_dir(&lock).unwrap();
        let other = UnixListener::bind(lock.join("other")).unwrap();
        assert!(matches!(listen(&path), Err(ListenerError::InUse { .. })));
        assert!(lock.join("other").exists());
        drop(other);
        let _listener = listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        assert!(!lock.exists());
    }

    #[test]
    fn lock_is_not_needed_where_nothing_is_replaced() {
        let (_directory, path, lock) = stale();
        fs::create_dir(&lock).unwrap();
        let _other = UnixListener::bind(lock.join("other")).unwrap();
        fs::remove_file(&path).unwrap();
        let _listener = listen(&path).unwrap();
    }

    #[test]
    fn lock_that_is_not_ours_to_use_does_not_keep_a_backend_from_starting() {
        let (_directory, path, lock) = stale();
        fs::write(&lock, "").unwrap();
        drop(listen(&path).unwrap());
        fs::remove_file(&lock).unwrap();
        fs::create_dir(&lock).unwrap();
        fs::write(lock.join("precious"), "").unwrap();
        drop(UnixListener::bind(&path).unwrap());
        drop(listen(&path).unwrap());
        assert!(lock.join("precious").exists());
    }

    #[test]
    fn stranger_with_the_lock_does_not_keep_a_backend_from_starting() {
        if sys::effective_user() != 0 {
            eprintln!("skipped: another user's directory can be made by root only");
            return;
        }
        let (directory, path, lock) = stale();
        fs::create_dir(&lock).unwrap();
        let _other = UnixListener::bind(lock.join("other")).unwrap();
        chown(&lock, Some(4002), None).unwrap();
        // Where the directory is not sticky, whoever can make names in it can also remove the path.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(listen(&path), Err(ListenerError::InUse { .. })));
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        listen(&path).unwrap();
    }

    #[test]
    fn path_may_be_as_long_as_an_address_and_its_name_as_short_as_can_be() {
        let directory = TempDir::new().unwrap();
        let base = directory.path().as_os_str().len();
        for name_len in [1, 2, 3, 8, 17, 18, 40] {
            let parent = directory.path().join("d".repeat(Address::MAX_PATH - base - 2 - name_len));
            fs::create_dir(&parent).unwrap();
            let path = parent.join("s".repeat(name_len));
            assert_eq!(path.as_os_str().len(), Address::MAX_PATH);
            drop(listen(&path).unwrap());
            let address = address::address(&path).unwrap();
            for _ in 0..20 {
                let socket = sys::socket::new(sys::socket::SocketKind::Stream).unwrap();
                sys::address::bind(&socket, &address).unwrap();
                // One that died with the lock, whose name there is too long for an address.
                let place = Place::open(&path, &address).unwrap();
                let lock = parent.join(place.beside("starting"));
                fs::create_dir(&lock).unwrap();
                fs::rename(&path, lock.join("0123456789abcdef")).unwrap();
                drop(UnixListener::bind(&path).unwrap());
                assert!(matches!(listen(&path), Err(ListenerError::InUse { .. })));
                drop(socket);
                drop(listen(&path).unwrap());
                assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
            }
        }
    }
}
