//! A handle that is for one call at a time: the second of two at once gets an error, if it is
//! noticed. With what ends a wait, and the error that the last call left.

use std::cell::{Cell, UnsafeCell};
use std::ffi::c_char;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};

use super::argument::Problem;
use super::guard::{self, Failure, Message};
use super::status::handoff_status;
use crate::handle::Waker;

/// Whether a call uses a handle now. Not a lock, which would cost each call more than this mistake
/// is worth: two threads that begin at the same moment are not seen.
struct InUse {
    now: AtomicBool,
    last_error: Message,
}

thread_local! {
    /// This thread's call was refused, because another one uses the handle.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// A call's use of a handle, until it ends.
struct Use<'a>(&'a InUse);

/// A handle, and the use that this call makes of it.
pub(super) struct Used<'a, T> {
    handle: &'a mut T,
    _use: Use<'a>,
}

/// A handle that one thread at a time uses. Other threads' calls refer to it, too: what a call changes
/// is in cells.
pub(super) struct Single<T> {
    handle: UnsafeCell<T>,
    /// Ends a wait, also while another thread uses the handle.
    waker: Waker,
    in_use: InUse,
}

impl<T> Single<T> {
    pub(super) fn new(handle: T, waker: Waker) -> Single<T> {
        Single { handle: UnsafeCell::new(handle), waker, in_use: InUse::new() }
    }

    /// Begins a call with the handle, which has this name in the call's arguments.
    pub(super) fn begin(&self, name: &'static str) -> Result<Used<'_, T>, Failure> {
        let _use = self.in_use.begin(name, || self.waker.is_ours())?;
        // SAFETY: the caller of the C function vouches for a handle that no other thread uses
        // during the call, and nobody else refers to this part of it.
        Ok(Used { handle: unsafe { &mut *self.handle.get() }, _use })
    }

    /// Ends a wait, also in a signal handler.
    pub(super) fn wake(&self) -> handoff_status {
        guard::wake(|| self.waker.wake())
    }

    /// Keeps the error of a call that has failed, unless another thread's was in its way.
    pub(super) fn keep_error(&self) {
        self.in_use.keep_error();
    }

    /// The message that [`keep_error`](Single::keep_error) kept.
    pub(super) fn last_error(&self) -> *const c_char {
        self.in_use.last_error.as_ptr()
    }
}

impl InUse {
    const fn new() -> InUse {
        InUse { now: AtomicBool::new(false), last_error: Message::new() }
    }

    /// Begins a use. `is_ours`: whether the handle is this process's. In a child of fork(2) a call
    /// of the parent may have left its mark, and its thread is not there.
    fn begin(
        &self,
        name: &'static str,
        is_ours: impl FnOnce() -> bool,
    ) -> Result<Use<'_>, Failure> {
        if self.now.load(Ordering::Relaxed) && is_ours() {
            REFUSED.set(true);
            return Err(Failure::Argument(
                name,
                Problem::Is("is in use by another call: one thread at a time may use it"),
            ));
        }
        self.now.store(true, Ordering::Relaxed);
        Ok(Use(self))
    }

    fn keep_error(&self) {
        if !REFUSED.take() {
            self.last_error.copy_from_thread();
        }
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        self.0.now.store(false, Ordering::Relaxed);
    }
}

impl<T> Deref for Used<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.handle
    }
}

impl<T> DerefMut for Used<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.handle
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::guard::guard;
    use crate::ffi::status::HANDOFF_OK;
    use std::ffi::CStr;

    #[test]
    fn error_of_a_call_that_is_refused_is_not_kept_even_if_the_other_one_has_ended() {
        let in_use = InUse::new();
        let first = in_use.begin("broker", || true).ok();
        assert!(guard(|| in_use.begin("broker", || true).map(drop)) < HANDOFF_OK);
        drop(first);
        in_use.keep_error();
        // SAFETY: it ends in NUL, and `in_use` is there.
        let kept = || unsafe { CStr::from_ptr(in_use.last_error.as_ptr()) };
        assert_eq!(kept(), c"");
        in_use.keep_error();
        assert_ne!(kept(), c"");
    }
}
