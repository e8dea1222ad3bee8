//! The calling thread.

// SAFETY: as in the header; any state may be passed, and what is returned in `old` is an int.
unsafe extern "C" {
    /// pthread_setcancelstate(3), which the libc crate leaves out.
    safe fn pthread_setcancelstate(
        state: libc::c_int,
        old: Option<&mut libc::c_int>,
    ) -> libc::c_int;
}

/// Keeps the calling thread from being cancelled, pthread_cancel(3): that would unwind through
/// frames of Rust, which aborts the process. A cancellation that was asked for meanwhile comes
/// after.
pub(crate) struct NotCancelled {
    before: libc::c_int,
}

impl NotCancelled {
    pub(crate) fn new() -> NotCancelled {
        // The same number in glibc and musl.
        const PTHREAD_CANCEL_DISABLE: libc::c_int = 1;
        let mut before = 0;
        // It fails for a bad state only.
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, Some(&mut before));
        NotCancelled { before }
    }
}

impl Drop for NotCancelled {
    fn drop(&mut self) {
        pthread_setcancelstate(self.before, None);
    }
}
