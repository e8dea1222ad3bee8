//! Files by name in a directory that is held open.

use std::ffi::CString;
use std::fs::{self, Metadata, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use super::{new_descriptor, retry};

/// What tells one file of a file system from all others, and from a successor under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
    /// When it was made: its successor may have the same inode. Only statx(2) tells.
    made: Option<SystemTime>,
}

impl FileId {
    pub(super) fn of(status: &Metadata) -> FileId {
        FileId { device: status.dev(), inode: status.ino(), made: status.created().ok() }
    }
}

/// What stat(2) says of a file.
pub(crate) struct FileStatus {
    pub id: FileId,
    pub owner: u32,
    /// One of S_IF*.
    pub kind: libc::mode_t,
    /// The permission bits.
    pub mode: u32,
    /// How many names it has.
    pub links: u64,
    pub size: u64,
}

impl FileStatus {
    pub(crate) fn is_socket(&self) -> bool {
        self.kind == libc::S_IFSOCK
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind == libc::S_IFDIR
    }
}

/// Opens a directory to name files in it, which takes no permission to read it.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    OpenOptions::new().read(true).custom_flags(flags).open(path).map(OwnedFd::from)
}

/// The same of a directory within a directory, if the name is no link.
pub(crate) fn open_directory_at(directory: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    let name = c_path(name)?;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: `name` ends in NUL, and openat(2) makes a new descriptor.
    unsafe { new_descriptor(|| libc::openat(directory.as_raw_fd(), name.as_ptr(), flags)) }
}

pub(super) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// lstat(2) of a name in a directory.
pub(crate) fn status_at(directory: &OwnedFd, name: &Path) -> io::Result<FileStatus> {
    let name = c_path(name)?;
    status(|status| {
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: `name` ends in NUL; `status` is where a stat goes.
        unsafe { libc::fstatat64(directory.as_raw_fd(), name.as_ptr(), status, flags) }
    })
}

/// fstat(2).
pub(crate) fn status_of(file: BorrowedFd<'_>) -> io::Result<FileStatus> {
    // SAFETY: `status` is where a stat goes.
    status(|status| unsafe { libc::fstat64(file.as_raw_fd(), status) })
}

/// Runs a call that writes a stat on success.
#[allow(clippy::unnecessary_cast, reason = "the integers' widths differ between architectures")]
pub(super) fn status(call: impl Fn(*mut libc::stat64) -> libc::c_int) -> io::Result<FileStatus> {
    let mut status = MaybeUninit::<libc::stat64>::uninit();
    retry(|| call(status.as_mut_ptr()) as isize)?;
    // SAFETY: written, because the call succeeded.
    let status = unsafe { status.assume_init() };
    Ok(FileStatus {
        id: FileId { device: status.st_dev as u64, inode: status.st_ino as u64, made: None },
        owner: status.st_uid,
        kind: status.st_mode & libc::S_IFMT,
        mode: status.st_mode as u32 & 0o7777,
        links: status.st_nlink as u64,
        size: status.st_size as u64,
    })
}

/// Sets the permission bits of a socket before it is bound. The file that bind(2) makes has them,
/// less the umask (net/unix/af_unix.c).
pub(crate) fn set_mode_before_bind(socket: &OwnedFd, mode: u32) {
    // SAFETY: fchmod(2) takes no pointers. The caller looks at what came of it.
    unsafe { libc::fchmod(socket.as_raw_fd(), mode as libc::mode_t) };
}

/// Sets the permission bits of a name in a directory. It follows a link: for a directory in which
/// nobody else can make one. Not to follow it takes Linux 6.6 or, in the C library, /proc.
pub(crate) fn set_mode_at(directory: &OwnedFd, name: &Path, mode: u32) -> io::Result<()> {
    let name = c_path(name)?;
    let mode = mode as libc::mode_t;
    // SAFETY: `name` ends in NUL.
    retry(|| unsafe { libc::fchmodat(directory.as_raw_fd(), name.as_ptr(), mode, 0) as isize })?;
    Ok(())
}

/// Sets the permission bits of a file that is open with O_PATH. It takes /proc.
pub(crate) fn set_mode_of(file: &OwnedFd, mode: u32) -> io::Result<()> {
    fs::set_permissions(
        format!("/proc/self/fd/{}", file.as_raw_fd()),
        fs::Permissions::from_mode(mode),
    )
}

/// mkdir(2) of a name in a directory.
pub(crate) fn make_directory_at(directory: &OwnedFd, name: &Path, mode: u32) -> io::Result<()> {
    let name = c_path(name)?;
    let mode = mode as libc::mode_t;
    // SAFETY: `name` ends in NUL.
    retry(|| unsafe { libc::mkdirat(directory.as_raw_fd(), name.as_ptr(), mode) as isize })?;
    Ok(())
}

/// rename(2) within a directory, or between those below it.
pub(crate) fn rename_at(directory: &OwnedFd, from: &Path, to: &Path) -> io::Result<()> {
    let (from, to, directory) = (c_path(from)?, c_path(to)?, directory.as_raw_fd());
    // SAFETY: the names end in NUL.
    retry(|| unsafe { libc::renameat(directory, from.as_ptr(), directory, to.as_ptr()) as isize })?;
    Ok(())
}

/// As [`rename_at`], but EEXIST if there is a `to`.
pub(crate) fn rename_new_at(directory: &OwnedFd, from: &Path, to: &Path) -> io::Result<()> {
    const RENAME_NOREPLACE: libc::c_uint = 1;
    let (old, new, fd) = (c_path(from)?, c_path(to)?, directory.as_raw_fd());
    // Not the C library's function, which came with glibc 2.28.
    // SAFETY: the names end in NUL.
    let renamed = retry(|| unsafe {
        let (old, new) = (old.as_ptr(), new.as_ptr());
        libc::syscall(libc::SYS_renameat2, fd, old, fd, new, RENAME_NOREPLACE) as isize
    });
    match renamed {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        // The file system cannot, as NFS, or the kernel is older than 3.15.
        Err(_) => {
            link_at(directory, from, to)?;
            // A second name that stays would only be one more to clean up.
            let _ = unlink_at(directory, from);
            Ok(())
        }
    }
}

/// link(2) within a directory, or between those below it: EEXIST if there is a `to`.
pub(crate) fn link_at(directory: &OwnedFd, from: &Path, to: &Path) -> io::Result<()> {
    let (from, to, directory) = (c_path(from)?, c_path(to)?, directory.as_raw_fd());
    // SAFETY: the names end in NUL.
    retry(|| unsafe {
        libc::linkat(directory, from.as_ptr(), directory, to.as_ptr(), 0) as isize
    })?;
    Ok(())
}

/// unlink(2) of a name in a directory.
pub(crate) fn unlink_at(directory: &OwnedFd, name: &Path) -> io::Result<()> {
    unlink_with(directory, name, 0)
}

/// rmdir(2) of a name in a directory.
pub(crate) fn remove_directory_at(directory: &OwnedFd, name: &Path) -> io::Result<()> {
    unlink_with(directory, name, libc::AT_REMOVEDIR)
}

fn unlink_with(directory: &OwnedFd, name: &Path, flags: libc::c_int) -> io::Result<()> {
    let name = c_path(name)?;
    // SAFETY: `name` ends in NUL.
    retry(|| unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), flags) as isize })?;
    Ok(())
}
