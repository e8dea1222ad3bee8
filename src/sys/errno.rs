//! Error numbers: the thread's, and what the system says of one.

use std::ffi::CStr;
use std::fmt::{self, Write};
use std::io;

/// The last error number of this thread.
pub(crate) fn last() -> i32 {
    // SAFETY: the address of this thread's errno is valid as long as the thread is.
    unsafe { *libc::__errno_location() }
}

/// Sets errno for a caller in C.
pub(crate) fn set(error: i32) {
    // SAFETY: the address of this thread's errno is valid as long as the thread is.
    unsafe { *libc::__errno_location() = error };
}

/// What the system says of an error, as strerror(3) has it: the number is in errno.
pub(crate) struct Said<'a>(pub &'a io::Error);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(code) = self.0.raw_os_error() else { return self.0.fmt(f) };
        let mut text = [0; 128];
        // SAFETY: the pointer and the length describe `text`. It ends in NUL before the call and
        // after it.
        let text = unsafe {
            libc::strerror_r(code, text.as_mut_ptr(), text.len());
            CStr::from_ptr(text.as_ptr())
        };
        // Without allocating: memory may be what there is none of.
        text.to_bytes().utf8_chunks().try_for_each(|chunk| {
            f.write_str(chunk.valid())?;
            if chunk.invalid().is_empty() {
                Ok(())
            } else {
                f.write_char(char::REPLACEMENT_CHARACTER)
            }
        })
    }
}
