//! Structs that may grow: their first field is a `size_t` with their size as the caller knows it,
//! so that a program works with an older and with a newer library than it was compiled for. A size
//! that no program can have is refused, so the fields of the first release are always there. None
//! has padding at its end, which a later field would share with what older programs leave
//! undefined.

use super::argument::{Problem, check};
use super::guard::Failure;
use super::layout::Layout;

/// The largest size that a caller can mean: a struct that was not initialised most likely holds a
/// size beyond it.
const MAX_SIZE: usize = 4096;

/// A struct that begins with its size.
///
/// # Safety
/// The type is `repr(C)` and its first field is `size: usize`.
pub(super) unsafe trait Growing: Copy + Layout {
    /// The macro that initialises it.
    const INIT: &'static str;
}

/// A struct that C fills and this library reads.
///
/// # Safety
/// The type is made of integers and pointers only, of which any bytes are values.
pub(super) unsafe trait Input: Growing {}

/// A struct of zeros, which are the defaults, with its size.
pub(super) fn zeroed<T: Input>() -> T {
    // SAFETY: integers and pointers, of which zeros are values.
    let mut value: T = unsafe { std::mem::zeroed() };
    // SAFETY: the first field is the size.
    unsafe { (&raw mut value).cast::<usize>().write(size_of::<T>()) };
    value
}

/// The size that the caller set, if it can be one.
fn size<T: Growing>(pointer: *const T, name: &'static str) -> Result<usize, Failure> {
    check(pointer, name)?;
    // SAFETY: not NULL and aligned; every such struct begins with its size.
    let size = unsafe { pointer.cast::<usize>().read() };
    if is_size_of::<T>(size) {
        Ok(size)
    } else {
        Err(Failure::Argument(name, Problem::Size(size, T::INIT)))
    }
}

/// Whether some program has a T of that size: one that knows all of it, less, or more.
#[inline]
fn is_size_of<T: Growing>(size: usize) -> bool {
    size == size_of::<T>() || (size <= MAX_SIZE && T::can_have(size))
}

/// Reads the part of a struct that the caller knows; the rest is zero. A caller may know more than
/// this library, but must not use it.
pub(super) fn read<T: Input>(pointer: *const T, name: &'static str) -> Result<T, Failure> {
    let size = size(pointer, name)?;
    if size == size_of::<T>() {
        // SAFETY: not NULL and aligned, and the caller has a whole T there.
        return Ok(unsafe { pointer.read() });
    }
    let mut value = zeroed::<T>();
    // SAFETY: the caller has `size` bytes there, and no more than a T is copied. Any bytes are
    // values of T.
    unsafe {
        let to = (&raw mut value).cast::<u8>();
        to.copy_from_nonoverlapping(pointer.cast(), size.min(size_of::<T>()));
    }
    // SAFETY: the caller has `size` bytes there.
    let bytes = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), size) };
    if bytes.iter().skip(size_of::<T>()).any(|byte| *byte != 0) {
        return Err(Failure::Argument(name, Problem::UnknownField));
    }
    Ok(value)
}

/// As [`read`]; NULL is all defaults.
pub(super) fn read_or_default<T: Input>(
    pointer: *const T,
    name: &'static str,
) -> Result<T, Failure> {
    if pointer.is_null() { Ok(zeroed()) } else { read(pointer, name) }
}

/// Initialises a struct of `size` bytes for a caller that cannot use the macro.
pub(super) fn initialize<T: Input>(pointer: *mut T, size: usize) -> Result<(), Failure> {
    check(pointer, "the struct")?;
    if !is_size_of::<T>(size) {
        return Err(Failure::Argument("size", Problem::Is("is not the size of a struct")));
    }
    // SAFETY: not NULL and aligned, and the caller has `size` bytes there.
    unsafe {
        pointer.cast::<u8>().write_bytes(0, size);
        pointer.cast::<usize>().write(size);
    }
    Ok(())
}

/// Where a struct goes: checked first, written once on success.
pub(super) struct Fill<T> {
    pointer: *mut T,
    size: usize,
}

impl<T: Growing> Fill<T> {
    pub(super) fn new(pointer: *mut T, name: &'static str) -> Result<Fill<T>, Failure> {
        Ok(Fill { pointer, size: size(pointer, name)? })
    }

    /// Writes the part that the caller knows. What only the caller knows becomes zero.
    pub(super) fn set(self, value: T) {
        let known = self.size.min(size_of::<T>()) - size_of::<usize>();
        // SAFETY: checked; the caller has `size` bytes there, the first of which are the size and
        // stay as they are.
        unsafe {
            if self.size == size_of::<T>() {
                return self.pointer.write(value);
            }
            let from = (&raw const value).cast::<u8>().add(size_of::<usize>());
            let to = self.pointer.cast::<u8>().add(size_of::<usize>());
            to.copy_from_nonoverlapping(from, known);
            to.add(known).write_bytes(0, self.size - size_of::<usize>() - known);
        }
    }
}

/// Counts in an array of C's, which has room for more.
pub(super) fn padded<const N: usize>(counts: &[u64]) -> [u64; N] {
    let mut padded = [0; N];
    padded[..counts.len()].copy_from_slice(counts);
    padded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::layout::Field;
    use std::mem::offset_of;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Pair {
        size: usize,
        first: u64,
        second: u64,
    }
    // A release has added the second.
    impl Layout for Pair {
        const FIELDS: &'static [Field] = &[
            Field { name: "size", offset: 0, size: size_of::<usize>() },
            Field { name: "first", offset: offset_of!(Pair, first), size: 8 },
            Field { name: "second", offset: offset_of!(Pair, second), size: 8 },
        ];
        const FIRST: usize = 2;
    }

    // SAFETY: repr(C), and begins with a usize named size.
    unsafe impl Growing for Pair {
        const INIT: &'static str = "PAIR_INIT";
    }
    // SAFETY: integers.
    unsafe impl Input for Pair {}

    /// The size that a program has for it which does not know its last field.
    const WITHOUT_SECOND: usize = offset_of!(Pair, second);

    /// As a program that was compiled for a later version has it.
    #[repr(C)]
    struct Triple {
        pair: Pair,
        third: u64,
    }

    fn triple(third: u64) -> Triple {
        Triple { pair: Pair { size: size_of::<Triple>(), first: 1, second: 2 }, third }
    }

    #[test]
    fn fields_that_the_caller_does_not_know_are_zero() {
        let pair = Pair { size: WITHOUT_SECOND, first: 1, second: 2 };
        let found = read(&raw const pair, "pair").ok().unwrap();
        assert_eq!(found, Pair { size: WITHOUT_SECOND, first: 1, second: 0 });
    }

    #[test]
    fn fields_that_only_the_caller_knows_may_not_be_set() {
        let zero = triple(0);
        assert!(read((&raw const zero).cast::<Pair>(), "pair").is_ok());
        let set = triple(3);
        let refused = read((&raw const set).cast::<Pair>(), "pair").err().unwrap();
        assert!(matches!(refused, Failure::Argument("pair", Problem::UnknownField)));
    }

    #[test]
    fn filling_writes_what_the_caller_knows_and_zeros_what_only_the_caller_knows() {
        let value = Pair { size: size_of::<Pair>(), first: 8, second: 9 };
        let mut small = Pair { size: WITHOUT_SECOND, first: 1, second: 2 };
        Fill::new(&raw mut small, "pair").ok().unwrap().set(value);
        assert_eq!(small, Pair { size: WITHOUT_SECOND, first: 8, second: 2 });

        let mut large = triple(3);
        Fill::new((&raw mut large).cast::<Pair>(), "pair").ok().unwrap().set(value);
        assert_eq!((large.pair.first, large.pair.second, large.third), (8, 9, 0));
        assert_eq!(large.pair.size, size_of::<Triple>());
    }

    #[test]
    fn size_that_cannot_be_is_refused() {
        let without_first = offset_of!(Pair, first);
        let parts = [without_first, WITHOUT_SECOND - 1, WITHOUT_SECOND + 1, size_of::<Pair>() - 1];
        let sizes = [0, size_of::<usize>() - 1, MAX_SIZE + 1, usize::MAX];
        for size in parts.into_iter().chain(sizes) {
            let pair = Pair { size, first: 0, second: 0 };
            assert!(read(&raw const pair, "pair").is_err(), "{size}");
        }
    }
}
