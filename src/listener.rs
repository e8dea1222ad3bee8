//! The handoff socket that a backend listens on.
//!
//! The socket has its mode before anybody can connect. A stale socket is replaced, and nothing
//! else; the file is removed when the listener is dropped. `place.rs` says how. Who may connect is
//! for [`crate::peer`].

mod place;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::address::{self, TransportError};
use crate::kind::ErrorKind;
use crate::peer::{self, PeerError, Policy};
use crate::sys::{self, errno::Said};

use place::SocketFile;

pub use crate::sys::socket::SocketKind;

/// How a handoff socket is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerOptions {
    /// Permission bits of the socket's file, regardless of the umask; 0600 by default. Connecting
    /// takes write permission, unix(7). Abstract names have none.
    pub mode: u32,
    /// Connections that may wait to be accepted, listen(2); 1 at least, 4096 by default. The
    /// system may allow fewer.
    pub backlog: i32,
    /// Stream, which is the default, or sequenced packets.
    pub kind: SocketKind,
}

impl Default for ListenerOptions {
    fn default() -> ListenerOptions {
        ListenerOptions { mode: 0o600, backlog: 4096, kind: SocketKind::Stream }
    }
}

/// Why a handoff socket was not made, or accepted no connection.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// The path cannot be a socket's address, or no connection came.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The peer is unknown or not allowed; its connection is closed.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The mode has bits that are not permission bits.
    #[error("mode {mode:o} (octal) is more than 777: in C, 0666 is octal, and 666 is not")]
    InvalidMode {
        /// The mode that was asked for.
        mode: u32,
    },
    /// The directory or what is in it may not be used.
    #[error("{path}: no permission to use this socket or its directory: {owners}: {said}",
        path = .path.display(), said = Said(source))]
    PermissionDenied {
        /// The path that was to become a socket.
        path: PathBuf,
        /// Who asked, and whose they are.
        owners: String,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody listens there, or is about to.
    #[error("{path}: somebody listens there already", path = .path.display())]
    InUse {
        /// The path that was to become a socket.
        path: PathBuf,
        /// What the system said, if it said that.
        source: Option<io::Error>,
    },
    /// Something that is not a socket has that name.
    #[error(
        "{path}: there is a file that is not a socket: remove it, or choose another path",
        path = .path.display()
    )]
    NotASocket {
        /// The path that was to become a socket.
        path: PathBuf,
    },
    /// A directory has that name, or the name is one for a directory: it ends in '/'.
    #[error("{path}: this names a directory: listen at a path in it, such as {}",
        .path.join("1.sock").display(), path = .path.display())]
    Directory {
        /// The path that was to become a socket.
        path: PathBuf,
    },
    /// A limit on descriptors or memory.
    #[error("{path}: {limit}: {said}", path = .path.display(),
        limit = ErrorKind::which_limit(source), said = Said(source))]
    DescriptorPressure {
        /// The path that was to become a socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else failed.
    #[error("{path}: cannot {action}: {said}", path = .path.display(), said = Said(source))]
    Failed {
        /// The path that was to become a socket.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl ListenerError {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ListenerError::Transport(error) => error.kind(),
            ListenerError::Peer(error) => error.kind(),
            ListenerError::InvalidMode { .. } => ErrorKind::InvalidArgument,
            ListenerError::PermissionDenied { .. } => ErrorKind::PermissionDenied,
            ListenerError::InUse { .. } => ErrorKind::AddressInUse,
            ListenerError::NotASocket { .. } | ListenerError::Directory { .. } => {
                ErrorKind::NotASocket
            }
            ListenerError::DescriptorPressure { .. } => ErrorKind::DescriptorPressure,
            ListenerError::Failed { .. } => ErrorKind::ListenFailed,
        }
    }
}

/// A listening handoff socket.
#[derive(Debug)]
pub struct Listener {
    /// None for an abstract name, which goes with its socket. Before the socket, so that it is
    /// dropped first: see [`place`].
    file: Option<SocketFile>,
    socket: OwnedFd,
}

impl Listener {
    /// Makes a handoff socket at `path`; `@` begins an abstract name. It is non-blocking and
    /// close-on-exec.
    pub fn new(path: &Path, options: &ListenerOptions) -> Result<Listener, ListenerError> {
        if options.mode & !0o777 != 0 {
            return Err(ListenerError::InvalidMode { mode: options.mode });
        }
        let address = address::address(path)?;
        let failed = |action| move |source| failed(path, action, source);
        let socket = sys::socket::new(options.kind).map_err(failed("make a socket"))?;
        if !address.is_abstract() {
            let file = place::listen_at(&socket, path, &address, options)?;
            return Ok(Listener { file: Some(file), socket });
        }
        sys::address::bind(&socket, &address).map_err(failed("bind"))?;
        sys::socket::listen(&socket, options.backlog.max(1)).map_err(failed("listen"))?;
        Ok(Listener { file: None, socket })
    }

    /// Sets whether this process removes the file, of all that have a copy of the socket. Without
    /// this call it is the one that made it.
    pub(crate) fn set_remover(&mut self, ours: bool) {
        if let Some(file) = &mut self.file {
            file.set_remover(ours);
        }
    }

    /// Accepts a connection whose peer `policy` allows; one that it does not allow is closed. Waits
    /// for at most `timeout`, or forever if there is none; [`TransportError::TimedOut`] if nobody
    /// connects. The connection is blocking and close-on-exec.
    pub fn accept(
        &self,
        timeout: Option<Duration>,
        policy: &Policy<'_>,
    ) -> Result<OwnedFd, ListenerError> {
        let listener = self.socket.as_fd();
        let socket = address::in_time(listener, timeout, |_| sys::socket::accept(listener))?;
        // The caller knows the listener, and not what was closed.
        peer::check(socket.as_fd(), policy).map_err(|error| error.over(listener.into()))?;
        Ok(socket)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The directory that a path is in.
fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The user of this process, and whose a path and its directory are, as far as can be seen.
fn owners(path: &Path) -> String {
    let mut text = format!("this is user {}", sys::effective_user());
    if address::address(path).is_ok_and(|address| address.is_abstract()) {
        return text;
    }
    let (directory, socket) = (fs::metadata(directory_of(path)), fs::symlink_metadata(path));
    for (what, found) in [("directory", directory), ("socket", socket)] {
        if let Ok(found) = found {
            let (user, group, mode) = (found.uid(), found.gid(), found.mode() & 0o7777);
            text += &format!(", the {what} is of user {user} and group {group}, mode {mode:o}");
        }
    }
    text
}

fn failed(path: &Path, action: &'static str, source: io::Error) -> ListenerError {
    let path = path.to_owned();
    match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            ListenerError::PermissionDenied { owners: owners(&path), path, source }
        }
        Some(libc::EADDRINUSE) => ListenerError::InUse { path, source: Some(source) },
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
            ListenerError::DescriptorPressure { path, source }
        }
        _ => ListenerError::Failed { path, action, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::sync::Barrier;
    use std::{process, thread};
    use tempfile::TempDir;

    fn directory() -> (TempDir, PathBuf) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("handoff.sock");
        (directory, path)
    }

    fn listen(path: &Path) -> Result<Listener, ListenerError> {
        Listener::new(path, &ListenerOptions::default())
    }

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn socket_has_the_mode_asked_for_and_goes_with_its_listener() {
        for mode in [0o600, 0o660, 0o666, 0o777] {
            let (_directory, path) = directory();
            let options = ListenerOptions { mode, ..Default::default() };
            let listener = Listener::new(&path, &options).unwrap();
            assert_eq!(mode_of(&path), mode);
            UnixStream::connect(&path).unwrap();
            drop(listener);
            assert!(!path.exists());
        }
    }

    #[test]
    fn stale_socket_is_replaced_and_a_live_one_is_not() {
        let (_directory, path) = directory();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let live = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(ListenerError::InUse { .. })));
        UnixStream::connect(&path).unwrap();
        drop(live);
    }

    #[test]
    fn live_socket_of_the_other_kind_is_in_use() {
        let (_directory, path) = directory();
        let kind = SocketKind::SeqPacket;
        let _live = Listener::new(&path, &ListenerOptions { kind, ..Default::default() }).unwrap();
        assert!(matches!(listen(&path), Err(ListenerError::InUse { .. })));
    }

    #[test]
    fn datagram_socket_is_in_use_whatever_it_is_connected_to() {
        let (directory, path) = directory();
        let other = directory.path().join("other");
        let (socket, peer) =
            (UnixDatagram::bind(&path).unwrap(), UnixDatagram::bind(&other).unwrap());
        assert!(matches!(listen(&path), Err(ListenerError::InUse { .. })));
        socket.connect(&other).unwrap();
        assert!(matches!(listen(&path), Err(ListenerError::InUse { .. })));
        drop((socket, peer));
        listen(&path).unwrap();
    }

    #[test]
    fn files_directories_and_links_are_left_alone() {
        let (directory, path) = directory();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(ListenerError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(listen(&link), Err(ListenerError::NotASocket { .. })));
        assert!(matches!(listen(directory.path()), Err(ListenerError::Directory { .. })));
        assert!(matches!(listen(Path::new("/")), Err(ListenerError::Directory { .. })));
        let inside = directory.path().join("new/.");
        assert!(matches!(listen(&inside), Err(ListenerError::Directory { .. })));
        assert!(!directory.path().join("new").exists());
        let error = listen(Path::new("/run/")).unwrap_err().to_string();
        assert_eq!(
            error,
            "/run/: this names a directory: listen at a path in it, such as /run/1.sock"
        );
    }

    #[test]
    fn owners_are_those_of_the_socket_and_of_the_directory_behind_a_link() {
        let (directory, path) = directory();
        let link = directory.path().join("link");
        symlink(directory.path(), &link).unwrap();
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o710)).unwrap();
        let options = ListenerOptions { mode: 0o640, ..Default::default() };
        let _listener = Listener::new(&path, &options).unwrap();
        for socket in [&path, &link.join("handoff.sock")] {
            let said = owners(socket);
            assert!(said.contains("the directory is of user "), "{said}");
            assert!(said.contains(", mode 710, the socket is of user "), "{said}");
            assert!(said.ends_with(", mode 640"), "{said}");
        }
        assert_eq!(owners(Path::new("@name")), format!("this is user {}", sys::effective_user()));
    }

    #[test]
    fn successor_under_the_same_name_is_not_removed() {
        let (_directory, path) = directory();
        let listener = listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();
        drop(listener);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn of_backends_that_start_together_one_listens() {
        let (_directory, path) = directory();
        for _ in 0..100 {
            drop(UnixListener::bind(&path).unwrap());
            let barrier = Barrier::new(4);
            let start = || {
                barrier.wait();
                let listener = listen(&path);
                // Everybody has tried before anybody stops listening.
                barrier.wait();
                UnixStream::connect(&path).unwrap();
                barrier.wait();
                listener.is_ok()
            };
            let listening = thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
                threads.into_iter().filter_map(|thread| thread.join().ok()).filter(|ok| *ok).count()
            });
            assert_eq!(listening, 1);
            assert!(!path.exists());
        }
    }

    #[test]
    fn abstract_name_is_taken_once_and_leaves_no_file() {
        let name = PathBuf::from(format!("@handoff-test-{}", process::id()));
        let listener = listen(&name).unwrap();
        assert!(matches!(listen(&name), Err(ListenerError::InUse { .. })));
        address::connect(&name).unwrap();
        drop(listener);
        let refused = address::connect(&name);
        assert!(matches!(refused, Err(TransportError::BackendUnavailable { .. })));
        assert!(!name.exists());
    }

    #[test]
    fn peer_that_the_policy_does_not_allow_is_not_accepted() {
        let (_directory, path) = directory();
        let listener = listen(&path).unwrap();
        let now = Some(Duration::ZERO);
        let _client = UnixStream::connect(&path).unwrap();
        let refused = listener.accept(now, &Policy { users: &[u32::MAX - 1], groups: &[] });
        assert!(matches!(refused, Err(ListenerError::Peer(_))));
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept(now, &Policy::default()).unwrap();
        let none = listener.accept(now, &Policy::default());
        assert!(matches!(none, Err(ListenerError::Transport(TransportError::TimedOut { .. }))));
    }
}
