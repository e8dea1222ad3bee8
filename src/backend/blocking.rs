//! Waiting for an arrival, for programs without an event loop.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::{Arrival, Backend, BackendError};
use crate::handle::MAX_ROUNDS;

impl Backend {
    /// Waits for an arrival for at most `timeout`, or forever if there is none, and adopts it. A
    /// [`Waker`](crate::handle::Waker) ends the wait.
    pub fn accept(
        &mut self,
        timeout: Option<Duration>,
    ) -> Result<(OwnedFd, Arrival<'_>), BackendError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let (mut late, mut rounds) = (false, 0);
        loop {
            self.enter()?;
            while let Some(place) = self.next_place() {
                // A batch of one: its verdict is sent at once.
                self.batch.open = false;
                if let Ok(descriptor) = self.adopt(place.id()) {
                    if timeout == Some(Duration::ZERO) {
                        // The caller waits elsewhere, and perhaps takes one at a time.
                        self.tell_of_leftovers();
                    }
                    return Ok((descriptor, self.view(place)));
                }
            }
            // What is there is looked at, even if the time is up, as long as that is not without
            // end.
            let over = late && !(self.unfinished.behind && rounds < MAX_ROUNDS);
            // A caller who does not wait gets what is there first: a backend that drains wants no
            // fallbacks.
            let waits = timeout != Some(Duration::ZERO);
            if (waits || over) && self.handle.woken() {
                return Err(BackendError::Woken);
            }
            if over {
                return Err(BackendError::TimedOut);
            }
            rounds += usize::from(late);
            // Looks for something once, even if there is no time to wait for it.
            late = deadline.is_some_and(|deadline| deadline <= Instant::now());
            self.dispatch_after(deadline.into())?;
        }
    }
}
