//! Two calls at once of a handle that is for one at a time: the second is told, where it is seen.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};

use super::argument::Problem;
use super::guard::Failure;

/// Whether a call uses a handle now. Not a lock, which would cost each call more than this mistake is
/// worth: two threads that begin at the same moment are not seen.
#[derive(Default)]
pub(super) struct InUse(AtomicBool);

/// A call's use of a handle, until it ends.
pub(super) struct Use<'a>(&'a InUse);

/// A handle, and the use that this call makes of it.
pub(super) struct Used<'a, T> {
    pub(super) handle: &'a mut T,
    pub(super) _use: Use<'a>,
}

impl InUse {
    /// Begins a use. `is_ours`: whether the handle is this process's. In a child of fork(2) a call
    /// of the parent may have left its mark, and its thread is not there.
    pub(super) fn begin(
        &self,
        name: &'static str,
        is_ours: impl FnOnce() -> bool,
    ) -> Result<Use<'_>, Failure> {
        if self.is_set() && is_ours() {
            return Err(Failure::Argument(
                name,
                Problem::Is("is in use by another call: one thread at a time may use it"),
            ));
        }
        self.0.store(true, Ordering::Relaxed);
        Ok(Use(self))
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
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
