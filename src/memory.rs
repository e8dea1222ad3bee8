//! Allocations whose size an option or a peer decides. Without memory they are an error; the
//! standard library's own would end the process.

use std::collections::{HashMap, TryReserveError, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher};
use std::io;

use crate::kind::ErrorKind;
use crate::sys::{self, errno::Said};

/// There is no memory for something.
#[derive(Debug, thiserror::Error)]
#[error("no memory for {what}: {said}", said = Said(source))]
pub struct NoMemory {
    /// What it was for.
    pub what: &'static str,
    /// ENOMEM.
    pub source: io::Error,
}

impl NoMemory {
    /// For `map_err`: what there was no memory for.
    pub(crate) fn to(what: &'static str) -> impl Fn(TryReserveError) -> NoMemory {
        move |_| NoMemory { what, source: io::Error::from_raw_os_error(libc::ENOMEM) }
    }

    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::NoMemory
    }
}

/// An empty vector with room for so many.
pub(crate) fn vec<T>(capacity: usize, what: &'static str) -> Result<Vec<T>, NoMemory> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(capacity).map_err(NoMemory::to(what))?;
    Ok(vec)
}

/// A copy of a slice.
pub(crate) fn copy<T: Copy>(values: &[T], what: &'static str) -> Result<Vec<T>, NoMemory> {
    let mut copy = vec(values.len(), what)?;
    copy.extend_from_slice(values);
    Ok(copy)
}

/// An empty queue with room for so many.
pub(crate) fn queue<T>(capacity: usize, what: &'static str) -> Result<VecDeque<T>, NoMemory> {
    let mut queue = VecDeque::new();
    queue.try_reserve_exact(capacity).map_err(NoMemory::to(what))?;
    Ok(queue)
}

/// A map whose keys are found by SipHash, under a key of its own.
pub(crate) type Map<K, V> = HashMap<K, V, Keyed>;

/// A hasher that has read a secret. The standard library's own panics if the system has no
/// randomness to give, or keeps a descriptor open.
#[derive(Clone)]
pub(crate) struct Keyed(DefaultHasher);

impl fmt::Debug for Keyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyed(redacted)")
    }
}

impl Default for Keyed {
    fn default() -> Keyed {
        let mut hasher = DefaultHasher::new();
        hasher.write(&sys::secret());
        Keyed(hasher)
    }
}

impl BuildHasher for Keyed {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        self.0.clone()
    }
}

/// An empty map with room for so many.
pub(crate) fn map<K: Eq + Hash, V>(
    capacity: usize,
    what: &'static str,
) -> Result<Map<K, V>, NoMemory> {
    let mut map = Map::default();
    map.try_reserve(capacity).map_err(NoMemory::to(what))?;
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_hash_under_different_keys() {
        assert_ne!(Keyed::default().hash_one(7), Keyed::default().hash_one(7));
    }

    #[test]
    fn what_cannot_be_had_is_an_error_with_its_name() {
        // More than a process has addresses.
        let capacity = usize::MAX / size_of::<u64>();
        let error = vec::<u64>(capacity, "a test").unwrap_err();
        assert!(error.to_string().starts_with("no memory for a test: "), "{error}");
        assert_eq!(error.source.raw_os_error(), Some(libc::ENOMEM));
        assert!(queue::<u64>(capacity, "a test").is_err());
        assert!(map::<u64, u64>(capacity, "a test").is_err());
    }
}
