//! Which process this is.

use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells processes apart across fork(2) without a system call: a page that a child finds empty,
/// madvise(2) with MADV_WIPEONFORK.
pub(crate) fn current() -> u64 {
    static PAGE: OnceLock<Option<usize>> = OnceLock::new();
    let page = PAGE.get_or_init(|| {
        // SAFETY: sysconf(3) takes an integer.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, where the system likes; it is never unmapped.
        let start = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: advice about the mapping just made.
        let advised = unsafe { libc::madvise(start, size, libc::MADV_WIPEONFORK) };
        (advised == 0).then_some(start as usize)
    });
    let Some(page) = page else {
        return u64::from(std::process::id());
    };
    // SAFETY: the page is mapped forever, aligned and only used through this reference.
    let mark = unsafe { &*(*page as *const AtomicU64) };
    match mark.load(Ordering::Relaxed) {
        0 => {
            let id = u64::from(std::process::id());
            mark.store(id, Ordering::Relaxed);
            id
        }
        id => id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_the_same_until_fork() {
        let parent = current();
        assert_eq!(current(), parent);
        // SAFETY: the child only compares and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let told_apart = current() != parent && current() == current();
            // SAFETY: ends the child at once, without what the test framework would do.
            unsafe { libc::_exit(if told_apart { 0 } else { 1 }) };
        }
        let mut status = -1;
        // SAFETY: the child is ours; the pointer is to an integer.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0);
    }
}
