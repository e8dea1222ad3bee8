//! The C ABI: converts and checks what C passes, and calls the module of the same name.
//!
//! Every body runs inside [`guard`] or [`guard_or`]: an error becomes its status, with errno and
//! the thread's sentence set; a panic becomes `HANDOFF_ERR_INTERNAL`. Doc comments of public items
//! are the header's, so they are written for C.
#![allow(non_camel_case_types, reason = "the names are those of the C header")]

mod ack;
mod attempt;
mod backend;
mod broker;
mod clock;
mod fallback;
mod listener;
mod peer;
mod status;
mod token;
mod transport;

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ffi::{CStr, OsStr, c_char};
use std::fmt::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::sys;
use status::{HANDOFF_NOTHING, HANDOFF_OK, handoff_status};

/// Why a C call does not return `HANDOFF_OK`.
enum Failure {
    Error(Error),
    /// The argument of this name is not what the call needs.
    Argument(&'static str),
    /// There is nothing to take.
    Nothing,
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Error(error.into())
    }
}

impl Failure {
    /// The status, after setting errno and the thread's sentence. Out of line, so that calls that
    /// succeed stay small and close together.
    #[cold]
    #[inline(never)]
    fn report(self) -> handoff_status {
        match self {
            Failure::Error(error) => report_error(&error),
            Failure::Argument(name) => {
                remember(format_args!("invalid argument: {name}"));
                sys::set_errno(0);
                ErrorKind::InvalidArgument as handoff_status
            }
            Failure::Nothing => HANDOFF_NOTHING,
        }
    }
}

fn report_error(error: &Error) -> handoff_status {
    remember(format_args!("{error}"));
    sys::set_errno(error.os_error().unwrap_or(0));
    status_of(error.kind())
}

/// The status of a kind. A wait that ended by time, and an acknowledgement that has not arrived, are
/// HANDOFF_ERR_WOULD_BLOCK in this version of the header.
fn status_of(kind: ErrorKind) -> handoff_status {
    match kind {
        ErrorKind::Nothing | ErrorKind::TimedOut => ErrorKind::WouldBlock as handoff_status,
        kind => kind as handoff_status,
    }
}

/// Runs the body of a C call.
fn guard(body: impl FnOnce() -> Result<(), Failure>) -> handoff_status {
    guard_or(ErrorKind::Internal as handoff_status, || match body() {
        Ok(()) => HANDOFF_OK,
        Err(failure) => failure.report(),
    })
}

/// Runs the body of a C call that has no status; `fallback` stands for a panic.
fn guard_or<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    quiet_panics();
    // What the caller sees after a panic is HANDOFF_ERR_INTERNAL, and no state is left half
    // changed: see the locks of the modules.
    panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        report_panic(&*payload);
        fallback
    })
}

#[cold]
#[inline(never)]
fn report_panic(payload: &(dyn Any + Send)) {
    remember(format_args!("internal error: {}", panic_message(payload)));
    sys::set_errno(0);
}

/// Keeps a panic from writing to descriptor 2, which in a host program may be anybody's. Only this
/// library's own copy of the Rust runtime is concerned.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| panic::set_hook(Box::new(|_| {})));
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(message), _) => message,
        (_, Some(message)) => message,
        _ => "unknown",
    }
}

/// The sentence of `handoff_last_error`: fixed room, so that reporting an error allocates nothing,
/// and no destructor, so that a thread may ask until its very end.
struct Sentence {
    text: UnsafeCell<[u8; Sentence::LEN]>,
    len: Cell<usize>,
}

impl Sentence {
    const LEN: usize = 512;
}

thread_local! {
    static SENTENCE: Sentence =
        const { Sentence { text: UnsafeCell::new([0; Sentence::LEN]), len: Cell::new(0) } };
}

impl fmt::Write for &Sentence {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let start = self.len.get();
        // The last byte stays a NUL; a character is not cut in two.
        let mut take = part.len().min(Sentence::LEN - 1 - start);
        while !part.is_char_boundary(take) {
            take -= 1;
        }
        // SAFETY: only this thread has the cell, and no reference to its text outlives this block.
        let text = unsafe { &mut *self.text.get() };
        text[start..start + take].copy_from_slice(&part.as_bytes()[..take]);
        text[start + take] = 0;
        self.len.set(start + take);
        if take == part.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

fn remember(sentence: fmt::Arguments<'_>) {
    SENTENCE.with(|room| {
        room.len.set(0);
        // An error only says that the sentence was cut at the end of its room.
        let _ = (&mut &*room).write_fmt(sentence);
    });
}

fn last_sentence() -> *const c_char {
    SENTENCE.with(|room| room.text.get().cast_const().cast())
}

/// Where a result goes: checked first, written once on success.
struct Out<T>(*mut T);

impl<T> Out<T> {
    fn new(pointer: *mut T, name: &'static str) -> Result<Out<T>, Failure> {
        if pointer.is_null() || !pointer.is_aligned() {
            return Err(Failure::Argument(name));
        }
        Ok(Out(pointer))
    }

    /// For results that the caller may not want: NULL is allowed.
    fn optional(pointer: *mut T, name: &'static str) -> Result<Option<Out<T>>, Failure> {
        if pointer.is_null() { Ok(None) } else { Out::new(pointer, name).map(Some) }
    }

    fn set(self, value: T) {
        // SAFETY: not NULL and aligned, see `new`; the caller of the C function vouches for room.
        unsafe { self.0.write(value) }
    }
}

/// A value that C passes by pointer.
fn reference<'a, T>(pointer: *const T, name: &'static str) -> Result<&'a T, Failure> {
    if pointer.is_null() || !pointer.is_aligned() {
        return Err(Failure::Argument(name));
    }
    // SAFETY: not NULL and aligned; the caller of the C function vouches for a valid value that
    // nobody changes during the call.
    Ok(unsafe { &*pointer })
}

/// A handle that only this call uses.
fn exclusive<'a, T>(handle: *mut T, name: &'static str) -> Result<&'a mut T, Failure> {
    if handle.is_null() || !handle.is_aligned() {
        return Err(Failure::Argument(name));
    }
    // SAFETY: not NULL and aligned; the caller of the C function vouches for a handle that no other
    // thread uses during the call.
    Ok(unsafe { &mut *handle })
}

/// An array that C passes as pointer and length; NULL is allowed for an empty one.
fn slice<'a, T>(pointer: *const T, len: usize, name: &'static str) -> Result<&'a [T], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    let fits = len.checked_mul(size_of::<T>()).is_some_and(|size| size <= isize::MAX as usize);
    if pointer.is_null() || !pointer.is_aligned() || !fits {
        return Err(Failure::Argument(name));
    }
    // SAFETY: not NULL, aligned and of a possible size; the caller of the C function vouches for
    // `len` valid values that nobody changes during the call.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
}

/// A string that C passes.
fn string<'a>(pointer: *const c_char, name: &'static str) -> Result<&'a [u8], Failure> {
    if pointer.is_null() {
        return Err(Failure::Argument(name));
    }
    // SAFETY: not NULL; the caller of the C function vouches for a string that ends in NUL.
    Ok(unsafe { CStr::from_ptr(pointer) }.to_bytes())
}

fn path<'a>(pointer: *const c_char) -> Result<&'a Path, Failure> {
    string(pointer, "path").map(|bytes| Path::new(OsStr::from_bytes(bytes)))
}

/// A descriptor that the caller keeps.
fn descriptor<'a>(fd: i32, name: &'static str) -> Result<BorrowedFd<'a>, Failure> {
    if fd < 0 {
        return Err(Failure::Argument(name));
    }
    // SAFETY: not -1. The caller of the C function keeps it open during the call; if it is not
    // open, system calls say EBADF.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// A timeout in milliseconds as poll(2) has it: negative is for ever.
fn timeout(milliseconds: i32) -> Option<Duration> {
    u64::try_from(milliseconds).ok().map(Duration::from_millis)
}

/// A struct that may grow: its first field is a `size_t` with its size as the caller knows it.
///
/// # Safety
/// The type is `repr(C)`, begins with a `usize` and is made of integers and pointers.
unsafe trait Growing: Copy {}

/// Reads the part of a growing struct that the caller knows over the defaults; NULL is all defaults.
fn options<T: Growing>(pointer: *const T, defaults: T, name: &'static str) -> Result<T, Failure> {
    if pointer.is_null() {
        return Ok(defaults);
    }
    if !pointer.is_aligned() {
        return Err(Failure::Argument(name));
    }
    // SAFETY: not NULL and aligned; every such struct begins with its size.
    let size = unsafe { pointer.cast::<usize>().read() };
    // An uninitialised struct would most likely hold a size that is out of this range.
    if !(size_of::<usize>()..=4096).contains(&size) {
        return Err(Failure::Argument(name));
    }
    let mut options = defaults;
    // SAFETY: the caller has `size` bytes there, and no more than a T is copied. T is made of
    // integers and pointers, of which any bytes are values.
    unsafe {
        let to = (&raw mut options).cast::<u8>();
        to.copy_from_nonoverlapping(pointer.cast(), size.min(size_of::<T>()));
    }
    Ok(options)
}

/// Writes the part of a growing struct that the caller knows.
fn fill<T: Growing>(pointer: *mut T, mut value: T, name: &'static str) -> Result<(), Failure> {
    // Reading it first checks the pointer and its size.
    if pointer.is_null() {
        return Err(Failure::Argument(name));
    }
    options(pointer, value, name)?;
    // SAFETY: checked; the struct begins with its size, which stays as the caller has set it, and
    // the caller has so many bytes there.
    unsafe {
        let size = pointer.cast::<usize>().read();
        (&raw mut value).cast::<usize>().write(size);
        let from = (&raw const value).cast::<u8>();
        pointer.cast::<u8>().copy_from_nonoverlapping(from, size.min(size_of::<T>()));
    }
    Ok(())
}

/// Unmakes a handle that `Box::into_raw` made; NULL is allowed.
fn free<T>(handle: *mut T) {
    guard_or((), || {
        if !handle.is_null() && handle.is_aligned() {
            // SAFETY: the caller of the C function passes a handle once, and no other kind.
            drop(unsafe { Box::from_raw(handle) });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence() -> String {
        // SAFETY: the sentence ends in NUL and is this thread's.
        unsafe { CStr::from_ptr(last_sentence()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn panic_becomes_an_internal_error_with_its_message() {
        assert_eq!(guard(|| panic!("lost {}", "count")), ErrorKind::Internal as i32);
        assert_eq!(sentence(), "internal error: lost count");
        assert_eq!(guard_or(7, || panic!("plain")), 7);
        assert_eq!(sentence(), "internal error: plain");
    }

    #[test]
    fn long_sentence_is_cut_between_characters() {
        remember(format_args!("{}{}", "x".repeat(510), "ü and more"));
        assert_eq!(sentence(), "x".repeat(510));
        remember(format_args!("short"));
        assert_eq!(sentence(), "short");
    }
}
