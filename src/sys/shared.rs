//! Memory that two processes share.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::AtomicU64;

use super::{file, new_descriptor, retry};

/// Atomic words in memory that two processes share.
#[derive(Debug)]
pub(crate) struct SharedWords {
    start: ptr::NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the words are atomics and the mapping belongs to the process, not to a thread.
unsafe impl Send for SharedWords {}
// SAFETY: as above; shared access is all there is.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    pub(crate) fn as_slice(&self) -> &[AtomicU64] {
        // SAFETY: `start` maps `len` words until `self` is dropped, and the file cannot shrink. The
        // other process may write at any time, which atomics allow. It may also punch holes:
        // touching one makes a new page, or raises SIGBUS, which is no access, if the host has no
        // memory for it (docs/security.md).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Zeroed words that this process shares with its children of fork(2).
    pub(crate) fn inherited(len: usize) -> io::Result<SharedWords> {
        SharedWords::map(-1, libc::MAP_ANONYMOUS, len)
    }

    fn map(file: RawFd, flags: i32, len: usize) -> io::Result<SharedWords> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, flags | libc::MAP_SHARED);
        // SAFETY: a new mapping, where the system likes; it disturbs nothing that exists.
        let start = unsafe {
            let size = len * size_of::<AtomicU64>();
            libc::mmap(ptr::null_mut(), size, protection, flags, file, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = ptr::NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(SharedWords { start, len })
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: this mapping is ours, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * size_of::<AtomicU64>()) };
    }
}

fn page_size() -> usize {
    // SAFETY: sysconf(3) takes an integer.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// The steps of making shared words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Create,
    Allocate,
    Seal,
    Map,
}

/// Makes `len` zeroed words in a file without a name, whose memory is allocated and whose size is
/// sealed: memfd_create(2), fcntl(2). An error comes with the step that failed.
pub(crate) fn create_shared_words(len: usize) -> Result<(SharedWords, OwnedFd), (Step, io::Error)> {
    let failed = |step| move |error| (step, error);
    let file = new_memory().map_err(failed(Step::Create))?;
    allocate(&file, len * size_of::<AtomicU64>()).map_err(failed(Step::Allocate))?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: fcntl(2) with F_ADD_SEALS takes an integer.
    retry(|| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) as isize })
        .map_err(failed(Step::Seal))?;
    let words = SharedWords::map(file.as_raw_fd(), 0, len).map_err(failed(Step::Map))?;
    Ok((words, file))
}

fn new_memory() -> io::Result<OwnedFd> {
    let create = |flags| {
        let flags = flags | libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name ends in NUL, and memfd_create(2) makes a new descriptor.
        unsafe { new_descriptor(|| libc::memfd_create(c"handoff".as_ptr(), flags)) }
    };
    // A system may demand that nobody can execute it (vm.memfd_noexec); before Linux 6.3 nobody
    // can ask for that.
    create(libc::MFD_NOEXEC_SEAL).or_else(|error: io::Error| match error.raw_os_error() {
        Some(libc::EINVAL) => create(0),
        _ => Err(error),
    })
}

/// Gives an empty file its size, and allocates it now: touching a page that cannot be had later
/// would raise SIGBUS.
fn allocate(file: &OwnedFd, size: usize) -> io::Result<()> {
    // Memory counts as a file, setrlimit(2): beyond the limit the kernel would send this thread
    // SIGXFSZ, whose default is to kill the process, before it says EFBIG.
    if size as u64 > file_size_limit() {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    loop {
        // SAFETY: posix_fallocate(3) takes no pointers. It returns its error.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, size as libc::off_t) } {
            0 => return Ok(()),
            libc::EINTR => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// RLIMIT_FSIZE of getrlimit(2): the most bytes in a file that this process makes larger.
#[allow(clippy::useless_conversion, reason = "rlim_t has 32 bits on some systems")]
fn file_size_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointer is to one rlimit. It cannot fail for a limit that every system has.
    unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) };
    if limit.rlim_cur == libc::RLIM_INFINITY { u64::MAX } else { limit.rlim_cur.into() }
}

/// Maps the `len` words of a file that somebody else made, as [`create_shared_words`] makes it: it
/// has room for them and for no more than what is left of their last page, and can neither shrink nor
/// grow. It is EINVAL if not.
///
/// Whoever has the file can punch holes into it. A fault on a page waits while that goes on, for as
/// long as it takes to free what is punched (shmem_fault in mm/shmem.c), so the file must be small.
pub(crate) fn map_shared_words(file: BorrowedFd<'_>, len: usize) -> io::Result<SharedWords> {
    let refused = || io::Error::from_raw_os_error(libc::EINVAL);
    // SAFETY: fcntl(2) with F_GET_SEALS takes nothing; it fails for files that cannot be sealed.
    let seals =
        retry(|| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) as isize })? as i32;
    let sealed = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
    if seals & sealed != sealed {
        return Err(refused());
    }
    // A mapping of huge pages could not be unmapped by the length that is wanted here.
    const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
    let mut file_system = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `file_system` has room for one statfs, written on success.
    let file_system = unsafe {
        retry(|| libc::fstatfs(file.as_raw_fd(), file_system.as_mut_ptr()) as isize)?;
        file_system.assume_init()
    };
    if file_system.f_type as u64 & 0xffff_ffff == HUGETLBFS_MAGIC {
        return Err(refused());
    }
    let size = usize::try_from(file::status_of(file)?.size).unwrap_or(usize::MAX);
    let least = len * size_of::<AtomicU64>();
    if size < least || size > least.next_multiple_of(page_size()) {
        return Err(refused());
    }
    SharedWords::map(file.as_raw_fd(), 0, len)
}
