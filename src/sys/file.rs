//! Files by name in a directory that is held open, and locks.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::retry;

/// What tells one file of a file system from all others, and from a successor under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

/// A file's identity, whether it is a socket, and its permission bits.
pub(crate) struct FileStatus {
    pub id: FileId,
    pub is_socket: bool,
    pub mode: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// lstat(2) of a name in a directory.
#[allow(clippy::unnecessary_cast, reason = "the integers' widths differ between architectures")]
pub(crate) fn status_at(directory: &OwnedFd, name: &Path) -> io::Result<FileStatus> {
    let name = c_path(name)?;
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `name` ends in NUL; `status` has room for one stat, written on success.
    let status = unsafe {
        retry(|| {
            let flags = libc::AT_SYMLINK_NOFOLLOW;
            let status = status.as_mut_ptr();
            libc::fstatat(directory.as_raw_fd(), name.as_ptr(), status, flags) as isize
        })?;
        status.assume_init()
    };
    Ok(FileStatus {
        id: FileId { device: status.st_dev as u64, inode: status.st_ino as u64 },
        is_socket: status.st_mode & libc::S_IFMT == libc::S_IFSOCK,
        mode: status.st_mode as u32 & 0o7777,
    })
}

/// Sets the permission bits of a socket before it is bound. The file that bind(2) makes has them,
/// less the umask (net/unix/af_unix.c).
pub(crate) fn set_mode_before_bind(socket: &OwnedFd, mode: u32) {
    // SAFETY: fchmod(2) takes no pointers. The caller looks at what came of it.
    unsafe { libc::fchmod(socket.as_raw_fd(), mode as libc::mode_t) };
}

/// Sets the permission bits of a name in a directory, of the name itself if it is a link.
pub(crate) fn set_mode_at(directory: &OwnedFd, name: &Path, mode: u32) -> io::Result<()> {
    let name = c_path(name)?;
    let mode = mode as libc::mode_t;
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: `name` ends in NUL.
    retry(|| unsafe {
        libc::fchmodat(directory.as_raw_fd(), name.as_ptr(), mode, flags) as isize
    })?;
    Ok(())
}

/// unlink(2) of a name in a directory.
pub(crate) fn unlink_at(directory: &OwnedFd, name: &Path) -> io::Result<()> {
    let name = c_path(name)?;
    // SAFETY: `name` ends in NUL.
    retry(|| unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), 0) as isize })?;
    Ok(())
}

/// Takes the advisory lock of an open file, flock(2), if nobody else has it: whether it did.
pub(crate) fn try_lock(file: &OwnedFd) -> io::Result<bool> {
    // SAFETY: flock(2) takes no pointers.
    match retry(|| unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) as isize })
    {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives the advisory lock back.
pub(crate) fn unlock(file: &OwnedFd) {
    // SAFETY: flock(2) takes no pointers. Unlocking an open file that we locked cannot fail.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) };
}
