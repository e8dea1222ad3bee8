//! What stands around the body of every C call: errors become statuses, panics stop here.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ffi::c_char;
use std::fmt::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};

use super::argument::Problem;
use super::status::{HANDOFF_NOTHING, HANDOFF_OK, handoff_status, status_of};
use crate::error::Error;
use crate::kind::ErrorKind;
use crate::sys::errno;
use crate::sys::thread::NotCancelled;

/// Why a C call does not return `HANDOFF_OK`.
pub(super) enum Failure {
    Error(Error),
    /// An argument is not what the call needs: its name, and what is wrong with it.
    Argument(&'static str, Problem),
    /// There is nothing to take.
    Nothing,
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Error(error.into())
    }
}

impl Failure {
    /// The status, after setting errno and the thread's message if it is an error, and errno to
    /// what it was before the call if not. Out of line, so that calls that succeed stay small and
    /// close together.
    #[cold]
    #[inline(never)]
    fn report(self, errno: i32) -> handoff_status {
        let status = match self {
            Failure::Error(error) => report_error(&error),
            Failure::Argument(name, problem) => {
                let what = match problem.kind() {
                    ErrorKind::Unsupported => "not supported",
                    _ => "invalid argument",
                };
                let status = status_of(problem.kind());
                remember(status, format_args!("{what}: {name} {problem}"), 0);
                status
            }
            Failure::Nothing => HANDOFF_NOTHING,
        };
        if status >= HANDOFF_OK {
            errno::set(errno);
        }
        status
    }
}

pub(super) fn report_error(error: &Error) -> handoff_status {
    let status = status_of(error.kind());
    if status < HANDOFF_OK {
        remember(status, format_args!("{error}"), error.os_error().unwrap_or(0));
    }
    status
}

/// Runs the body of a C call.
pub(super) fn guard(body: impl FnOnce() -> Result<(), Failure>) -> handoff_status {
    let errno = errno::last();
    guard_or(status_of(ErrorKind::Internal), || match body() {
        Ok(()) => HANDOFF_OK,
        Err(failure) => failure.report(errno),
    })
}

/// Ends a wait. Without a guard around it, which a signal handler may not use: nothing here panics,
/// allocates, locks or sets a message.
pub(super) fn wake(wake: impl FnOnce() -> bool) -> handoff_status {
    let errno = errno::last();
    let ours = wake();
    errno::set(errno);
    if ours { HANDOFF_OK } else { status_of(ErrorKind::WrongProcess) }
}

/// Runs the body of a C call that returns no status. `otherwise` is what it returns after a panic.
pub(super) fn guard_or<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    quiet_panics();
    let _not_cancelled = NotCancelled::new();
    // After a panic the state of the handle is not known, but safe to use: HANDOFF_ERR_INTERNAL
    // tells the caller to free it.
    panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        report_panic(&*payload);
        otherwise
    })
}

#[cold]
#[inline(never)]
fn report_panic(payload: &(dyn Any + Send)) {
    let status = status_of(ErrorKind::Internal);
    remember(status, format_args!("internal error: {}", panic_message(payload)), 0);
}

/// Keeps a panic from writing to descriptor 2, which in a host program may be anybody's. In a C
/// program this affects only the library's own copy of the Rust runtime; a Rust program that makes
/// C calls has the same one.
fn quiet_panics() {
    static QUIET: AtomicBool = AtomicBool::new(false);
    // No `Once`: a child of fork(2) could find it held by a thread that it does not have.
    if !QUIET.load(Ordering::Relaxed) && !QUIET.swap(true, Ordering::Relaxed) {
        panic::set_hook(Box::new(|_| {}));
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(message), _) => message,
        (_, Some(message)) => message,
        _ => "unknown",
    }
}

/// The message of the last error, of a thread or of a handle: one line of printable text. Its room
/// is fixed, so it needs no memory of its own; it has no destructor, so that a thread may ask until
/// its very end. One thread at a time uses it: whose it is, or who makes a call with the handle.
pub(super) struct Message {
    text: UnsafeCell<[u8; Message::LEN]>,
    len: Cell<usize>,
}

impl Message {
    const LEN: usize = 512;

    pub(super) const fn new() -> Message {
        Message { text: UnsafeCell::new([0; Message::LEN]), len: Cell::new(0) }
    }

    pub(super) fn as_ptr(&self) -> *const c_char {
        self.text.get().cast_const().cast()
    }

    /// Replaces the text.
    pub(super) fn set(&self, text: fmt::Arguments<'_>) {
        self.len.set(0);
        // SAFETY: one thread at a time, and no reference to the text outlives this block.
        unsafe { (*self.text.get())[0] = 0 };
        // An error only says that the message was cut at the end of its room.
        let _ = (&mut &*self).write_fmt(text);
    }

    /// Replaces the text by bytes as they are, as many as there is room for.
    pub(super) fn set_bytes(&self, bytes: &[u8]) {
        let len = bytes.len().min(Message::LEN - 1);
        // SAFETY: one thread at a time, and no reference to the text outlives this block.
        let text = unsafe { &mut *self.text.get() };
        text[..len].copy_from_slice(&bytes[..len]);
        text[len] = 0;
        self.len.set(len);
    }

    /// Takes over this thread's message.
    pub(super) fn copy_from_thread(&self) {
        THREAD.with(|message| {
            // SAFETY: one thread at a time, they are different messages, and no reference to their
            // texts outlives this statement.
            unsafe { *self.text.get() = *message.text.get() };
            self.len.set(message.len.get());
        });
    }
}

thread_local! {
    static THREAD: Message = const { Message::new() };
    static THREAD_STATUS: Cell<handoff_status> = const { Cell::new(HANDOFF_OK) };
    static THREAD_ERRNO: Cell<i32> = const { Cell::new(0) };
}

impl fmt::Write for &Message {
    /// Control characters become '?': whoever may make a socket in a directory chooses its name,
    /// and that must not forge a line in a log, or reach a terminal.
    fn write_str(&mut self, part: &str) -> fmt::Result {
        // SAFETY: one thread at a time, and no reference to the text outlives this call.
        let text = unsafe { &mut *self.text.get() };
        for character in part.chars() {
            let shown = if character.is_control() { '?' } else { character };
            let (start, end) = (self.len.get(), self.len.get() + shown.len_utf8());
            // The last byte stays a NUL; a character is not cut in two.
            if end >= Message::LEN {
                return Err(fmt::Error);
            }
            shown.encode_utf8(&mut text[start..end]);
            text[end] = 0;
            self.len.set(end);
        }
        Ok(())
    }
}

/// Sets errno, and what this thread's last error was.
fn remember(status: handoff_status, text: fmt::Arguments<'_>, errno: i32) {
    THREAD.with(|message| message.set(text));
    THREAD_STATUS.set(status);
    THREAD_ERRNO.set(errno);
    errno::set(errno);
}

pub(super) fn last_message() -> *const c_char {
    THREAD.with(Message::as_ptr)
}

pub(super) fn last_status() -> handoff_status {
    THREAD_STATUS.get()
}

pub(super) fn last_errno() -> i32 {
    THREAD_ERRNO.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;
    use std::fs;
    use std::path::{Path, PathBuf};

    fn message() -> String {
        // SAFETY: the message ends in NUL and is this thread's.
        unsafe { CStr::from_ptr(last_message()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn panic_becomes_an_internal_error_with_its_message() {
        assert_eq!(guard(|| panic!("lost {}", "count")), status_of(ErrorKind::Internal));
        assert_eq!(message(), "internal error: lost count");
        assert_eq!(guard_or(7, || panic!("plain")), 7);
        assert_eq!(message(), "internal error: plain");
    }

    /// The texts of the modules in a directory.
    fn sources(directory: &Path) -> Vec<String> {
        let read = |path: PathBuf| {
            if path.is_dir() { sources(&path) } else { vec![fs::read_to_string(path).unwrap()] }
        };
        fs::read_dir(directory).unwrap().flat_map(|entry| read(entry.unwrap().path())).collect()
    }

    #[test]
    fn calls_for_signal_handlers_have_no_guard() {
        let mut calls = 0;
        for source in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ffi")) {
            // The parts between two calls: the body of the one, and the description of the other.
            let parts: Vec<_> = source.split("#[unsafe(no_mangle)]").collect();
            for pair in parts.windows(2) {
                let description = pair[0].rsplit("\n\n").next().unwrap();
                let body = pair[1].split("\n}\n").next().unwrap();
                if description.contains("in a signal handler") {
                    calls += 1;
                    assert!(!body.contains("guard(") && !body.contains("guard_or("), "{body}");
                }
            }
        }
        assert!(calls >= 10, "{calls}");
    }

    #[test]
    fn message_about_an_argument_begins_as_its_status_says() {
        let fail = |problem| guard(|| Err(Failure::Argument("offer", problem)));
        assert_eq!(fail(Problem::UnknownField), status_of(ErrorKind::Unsupported));
        assert!(message().starts_with("not supported: offer sets a field "), "{}", message());
        assert_eq!(fail(Problem::Null), status_of(ErrorKind::InvalidArgument));
        assert_eq!(message(), "invalid argument: offer is NULL");
    }

    #[test]
    fn long_message_is_cut_between_characters() {
        remember(
            status_of(ErrorKind::Internal),
            format_args!("{}{}", "x".repeat(510), "ü and more"),
            0,
        );
        assert_eq!(message(), "x".repeat(510));
        remember(status_of(ErrorKind::Internal), format_args!("short"), 0);
        assert_eq!(message(), "short");
    }

    #[test]
    fn message_is_one_line_of_printable_text() {
        remember(
            status_of(ErrorKind::Internal),
            format_args!("{}: no\u{9b}", "/run/a\nb\x1b[2Jc\x7f\td\u{85}ü.sock"),
            0,
        );
        assert_eq!(message(), "/run/a?b?[2Jc??d?ü.sock: no?");
    }
}
