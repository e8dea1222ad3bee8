//! Which process this is.
//!
//! A random mark stands for the process. The process number would not do: a process 1 can have a
//! child that is process 1 of a namespace of its own, pid_namespaces(7). The mark lies in a page
//! that a child of fork(2) finds empty, so asking takes no system call.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Where the mark is, once [`prepare`] has found a place; 0 there is no mark yet.
static PLACE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

/// The place where the kernel wipes no page: only [`forget`] clears it in a child.
static UNWIPED: AtomicU64 = AtomicU64::new(0);

/// How often this process has called fork(2) since it was first asked which one it is.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// A number that changes when the process makes a child with fork(2); not for those of clone(2) and
/// posix_spawn(3).
pub(crate) fn forks() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

/// Tells processes apart across fork(2): each gets a number of its own.
pub(crate) fn current() -> u64 {
    let mut place = PLACE.load(Ordering::Acquire).cast_const();
    if place.is_null() {
        place = prepare();
    }
    // SAFETY: `place` is UNWIPED or a page that is mapped forever, aligned and only used as this.
    let word = unsafe { &*place };
    let mark = match word.load(Ordering::Relaxed) {
        0 => new_mark(word),
        mark => mark,
    };
    if ptr::eq(word, &UNWIPED) {
        // Children that clone(2) makes run no handler. Most have another number.
        return mark ^ u64::from(std::process::id());
    }
    mark
}

/// Gives the process its mark, which is the same for all of its threads.
#[cold]
fn new_mark(word: &AtomicU64) -> u64 {
    /// Not wiped: larger in a child than in all of its ancestors.
    static GENERATION: AtomicU64 = AtomicU64::new(0);
    let mut bytes = [0; 8];
    let random = super::random(&mut bytes).map(|()| u64::from_ne_bytes(bytes));
    // Without randomness counting tells it apart from its ancestors, and its number from its
    // siblings.
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed) + 1;
    let counted = generation << 32 | u64::from(std::process::id());
    let mark = random.unwrap_or(counted).max(1);
    match word.compare_exchange(0, mark, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => mark,
        Err(other_thread) => other_thread,
    }
}

/// Finds a place for the mark. No lock: a child of fork(2) could find it held by a thread that it
/// does not have.
#[cold]
fn prepare() -> *const AtomicU64 {
    // Also where the kernel wipes the page: that it does cannot be tried without a child.
    // SAFETY: the handlers stay in memory, because the library is linked with -z nodelete, or go
    // together with what it was linked into; they may be installed twice.
    let handled = unsafe { libc::pthread_atfork(None, Some(count), Some(forget)) } == 0;
    let page = wiped_page();
    if page.is_none() && !handled {
        // The next call tries again.
        return &UNWIPED;
    }
    let place = page.map_or((&raw const UNWIPED).cast_mut(), |(page, _)| page);
    let none = ptr::null_mut();
    match PLACE.compare_exchange(none, place, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => place,
        Err(other_thread) => {
            if let Some((page, size)) = page {
                // SAFETY: the page that was just mapped and that nobody else knows.
                unsafe { libc::munmap(page.cast(), size) };
            }
            other_thread
        }
    }
}

/// In the parent, after fork(2).
extern "C" fn count() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// In a child of fork(2): the mark was the parent's.
extern "C" fn forget() {
    let place = PLACE.load(Ordering::Relaxed).cast_const();
    for place in [place, &raw const UNWIPED] {
        // SAFETY: as in `current`.
        if let Some(word) = unsafe { place.as_ref() } {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// A page that a child finds empty, madvise(2) with MADV_WIPEONFORK, and its size.
fn wiped_page() -> Option<(*mut AtomicU64, usize)> {
    // SAFETY: sysconf(3) takes an integer.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, where the system likes.
    let start = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    // An emulator may answer 0 to every advice and follow none, as qemu's user mode does. It is
    // asked for one that does not exist.
    // SAFETY: advice about the mapping just made.
    let advised = unsafe {
        libc::madvise(start, size, -1) != 0
            && libc::madvise(start, size, libc::MADV_WIPEONFORK) == 0
    };
    if !advised {
        // SAFETY: the mapping just made.
        unsafe { libc::munmap(start, size) };
        return None;
    }
    Some((start.cast(), size))
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

    #[test]
    fn threads_that_ask_first_together_agree() {
        for _ in 0..100 {
            let word = AtomicU64::new(0);
            let marks = std::thread::scope(|scope| {
                let ask = || scope.spawn(|| new_mark(&word));
                [ask(), ask(), ask()].map(|thread| thread.join().unwrap())
            });
            assert_eq!(marks, [word.load(Ordering::Relaxed); 3]);
        }
    }
}
