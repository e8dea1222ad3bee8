//! What C passes, checked: pointers, descriptors, strings, times.

use std::ffi::{CStr, OsStr, c_char};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use super::guard::{Failure, guard_or};
use crate::kind::ErrorKind;

/// What is wrong with an argument.
#[derive(Clone, Copy)]
pub(super) enum Problem {
    Null,
    Misaligned,
    /// The number is no descriptor.
    Descriptor(i32),
    /// A struct's `size` cannot be; the macro that sets it.
    Size(usize, &'static str),
    /// A struct is larger than this library knows, and what it does not know is set.
    UnknownField,
    /// An array is too long for this process's memory; what it has so many of.
    Length(usize, &'static str),
    /// Anything else, as the end of a sentence that begins with the argument's name.
    Is(&'static str),
}

impl Problem {
    pub(super) fn kind(self) -> ErrorKind {
        match self {
            Problem::UnknownField => ErrorKind::Unsupported,
            _ => ErrorKind::InvalidArgument,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Null => f.write_str("is NULL"),
            Problem::Misaligned => f.write_str("is misaligned"),
            Problem::Descriptor(fd) => write!(f, "is {fd}, which is not a descriptor"),
            Problem::Size(size, macro_name) => {
                write!(f, "has the size {size}: initialise it with {macro_name}")
            }
            Problem::UnknownField => {
                let version = env!("CARGO_PKG_VERSION");
                write!(f, "sets a field that libhandoff {version} does not have")
            }
            Problem::Length(len, what) => write!(f, "cannot have {len} {what}"),
            Problem::Is(text) => f.write_str(text),
        }
    }
}

/// That a pointer can be used.
pub(super) fn check<T>(pointer: *const T, name: &'static str) -> Result<(), Failure> {
    if pointer.is_null() {
        Err(Failure::Argument(name, Problem::Null))
    } else if !pointer.is_aligned() {
        Err(Failure::Argument(name, Problem::Misaligned))
    } else {
        Ok(())
    }
}

/// Where a result goes: checked first, written once on success.
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    pub(super) fn new(pointer: *mut T, name: &'static str) -> Result<Out<T>, Failure> {
        check(pointer, name).map(|()| Out(pointer))
    }

    /// For results that the caller may not want: NULL is allowed.
    pub(super) fn optional(pointer: *mut T, name: &'static str) -> Result<Option<Out<T>>, Failure> {
        if pointer.is_null() { Ok(None) } else { Out::new(pointer, name).map(Some) }
    }

    pub(super) fn set(self, value: T) {
        // SAFETY: not NULL and aligned, see `new`; the caller of the C function vouches for room.
        unsafe { self.0.write(value) }
    }
}

impl<T> Out<*mut T> {
    /// Gives the caller a handle to keep, until it passes it to [`free`].
    pub(super) fn give(self, handle: T) {
        self.set(Box::into_raw(Box::new(handle)));
    }
}

/// A value that C passes by pointer.
pub(super) fn reference<'a, T>(pointer: *const T, name: &'static str) -> Result<&'a T, Failure> {
    check(pointer, name)?;
    // SAFETY: not NULL and aligned; the caller of the C function vouches for a valid value that
    // nobody changes during the call.
    Ok(unsafe { &*pointer })
}

/// An array that C passes as pointer and length; NULL is allowed for an empty one.
pub(super) fn slice<'a, T>(
    pointer: *const T,
    len: usize,
    name: &'static str,
) -> Result<&'a [T], Failure> {
    slice_of("elements", pointer, len, name)
}

fn slice_of<'a, T>(
    what: &'static str,
    pointer: *const T,
    len: usize,
    name: &'static str,
) -> Result<&'a [T], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    check(pointer, name)?;
    if len.checked_mul(size_of::<T>()).is_none_or(|size| size > isize::MAX as usize) {
        return Err(Failure::Argument(name, Problem::Length(len, what)));
    }
    // SAFETY: not NULL, aligned and of a possible size; the caller of the C function vouches for
    // `len` valid values that nobody changes during the call.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
}

/// Bytes that C passes as pointer and length.
pub(super) fn bytes<'a>(
    pointer: *const std::ffi::c_void,
    len: usize,
    name: &'static str,
) -> Result<&'a [u8], Failure> {
    slice_of("bytes", pointer.cast(), len, name)
}

/// A string that C passes.
pub(super) fn string<'a>(pointer: *const c_char, name: &'static str) -> Result<&'a [u8], Failure> {
    check(pointer, name)?;
    // SAFETY: not NULL; the caller of the C function vouches for a string that ends in NUL.
    Ok(unsafe { CStr::from_ptr(pointer) }.to_bytes())
}

pub(super) fn path<'a>(pointer: *const c_char) -> Result<&'a Path, Failure> {
    string(pointer, "path").map(|bytes| Path::new(OsStr::from_bytes(bytes)))
}

/// A descriptor that the caller keeps.
pub(super) fn descriptor<'a>(fd: i32, name: &'static str) -> Result<BorrowedFd<'a>, Failure> {
    if fd < 0 {
        return Err(Failure::Argument(name, Problem::Descriptor(fd)));
    }
    // SAFETY: not -1. The caller of the C function keeps it open during the call; if it is not
    // open, system calls say EBADF.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// How long a call may wait, as poll(2) has it: negative is without limit.
pub(super) fn wait(milliseconds: i32) -> Option<Duration> {
    u64::try_from(milliseconds).ok().map(Duration::from_millis)
}

/// A timeout, a lifetime or a pause: 0 is the default, which is `otherwise`; the largest is without
/// end.
pub(super) fn timeout(milliseconds: u64, otherwise: Duration) -> Duration {
    match milliseconds {
        0 => otherwise,
        u64::MAX => Duration::MAX,
        milliseconds => Duration::from_millis(milliseconds),
    }
}

/// A limit: 0 is the default.
pub(super) fn nonzero(value: usize, default: usize) -> usize {
    if value == 0 { default } else { value }
}

/// Frees a handle that [`Out::give`] gave; NULL is allowed.
pub(super) fn free<T>(handle: *mut T) {
    guard_or((), || {
        if !handle.is_null() && handle.is_aligned() {
            // SAFETY: the caller of the C function passes a handle once, and no other kind.
            drop(unsafe { Box::from_raw(handle) });
        }
    });
}
