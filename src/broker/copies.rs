//! Copies of offers in flight that another backend may get: failover. State only; no I/O.
//!
//! A broker with one backend keeps none. A copy's memory is used again, so that an offer allocates
//! nothing once the broker has been busy for a while.

use std::io::IoSlice;
use std::time::Instant;

use super::member::Needs;
use super::slots::{Facts, Parts};
use super::{COPIED, MAX_BACKENDS, Verdict};

/// The number of no copy.
pub(super) const NO_COPY: u32 = u32::MAX;

/// A copy of an offer.
#[derive(Debug)]
pub(super) struct OfferCopy {
    /// Its id is 0 if the copy is not in use.
    pub facts: Facts,
    pub cookie: u64,
    /// When it must have its verdict, however many backends are tried.
    pub deadline: Instant,
    /// The backend that has it, and its slot there.
    pub backend: u32,
    pub slot: u32,
    /// Whether one of the backends before may hold the descriptor.
    pub may_have_reached: bool,
    /// No backend has it: it waits until one has room.
    pub waits: bool,
    pub tried: Tried,
    pub content: Content,
}

/// What an offer brings beside its descriptor.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// Service, correlation, metadata and preread, one behind the other.
    bytes: Vec<u8>,
    /// Where each of the first three ends.
    ends: [usize; 3],
    /// The kernel does the connection's TLS.
    tls: bool,
}

impl OfferCopy {
    fn unused(now: Instant) -> OfferCopy {
        OfferCopy {
            facts: Facts::none(now),
            cookie: 0,
            deadline: now,
            backend: 0,
            slot: 0,
            may_have_reached: false,
            waits: false,
            tried: Tried::default(),
            content: Content::default(),
        }
    }
}

impl Content {
    /// What a backend must be able to take to get it.
    pub(super) fn needs(&self) -> Needs {
        Needs { len: self.bytes.len(), tls: self.tls }
    }

    /// Calls `body` with the bytes as parts.
    pub(super) fn with_parts<T>(&self, body: impl FnOnce(&Parts<'_>) -> T) -> T {
        let [service, correlation, metadata] = self.ends;
        let part = |from: usize, to: usize| &self.bytes[from..to];
        let names = [part(0, service), part(service, correlation), part(correlation, metadata)];
        body(&Parts { names, preread: &[IoSlice::new(&self.bytes[metadata..])], tls: self.tls })
    }
}

/// The backends that had an offer: a set of numbers below [`MAX_BACKENDS`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tried {
    bits: [u64; MAX_BACKENDS / 64],
    /// How many times it was offered.
    pub count: u32,
}

const _: () = assert!(MAX_BACKENDS % 64 == 0);

impl Tried {
    pub(super) fn add(&mut self, backend: usize) {
        self.bits[backend / 64] |= 1 << (backend % 64);
        self.count += 1;
    }

    pub(super) fn has(&self, backend: usize) -> bool {
        self.bits[backend / 64] & 1 << (backend % 64) != 0
    }
}

/// The copies of a broker.
#[derive(Debug)]
pub(super) struct Copies {
    copies: Vec<OfferCopy>,
    unused: Vec<u32>,
    /// Bytes of memory that the copies have, used or not, and the most that they may have.
    bytes: usize,
    most: usize,
}

impl Copies {
    /// May have so many bytes.
    pub(super) fn new(most: usize) -> Copies {
        Copies { copies: Vec::new(), unused: Vec::new(), bytes: 0, most }
    }

    pub(super) fn get(&self, number: u32) -> Option<&OfferCopy> {
        self.copies.get(number as usize).filter(|copy| copy.facts.id != 0)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut OfferCopy> {
        self.copies.get_mut(number as usize).filter(|copy| copy.facts.id != 0)
    }

    /// The number of a place for the copy of an offer of so many bytes, for
    /// [`keep`](Copies::keep). None if they are too many, or there is no memory for them: then the
    /// offer is tried at one backend only.
    pub(super) fn place(&mut self, len: usize, now: Instant) -> Option<u32> {
        if self.unused.is_empty() {
            self.grow(now)?;
        }
        let number = *self.unused.last()?;
        let more = len.saturating_sub(self.copies[number as usize].content.bytes.capacity());
        if more > 0 {
            if self.bytes + more > self.most {
                self.free_unused();
            }
            let bytes = &mut self.copies[number as usize].content.bytes;
            let before = bytes.capacity();
            if self.bytes + len - before > self.most {
                return None;
            }
            bytes.clear();
            bytes.try_reserve_exact(len).ok()?;
            self.bytes += bytes.capacity() - before;
        }
        Some(number)
    }

    /// Frees the memory of all places that are not used.
    #[cold]
    fn free_unused(&mut self) {
        for number in &self.unused {
            let bytes = &mut self.copies[*number as usize].content.bytes;
            self.bytes -= bytes.capacity();
            *bytes = Vec::new();
        }
    }

    /// Makes one more place, and room in the list of those that are not used for all that there
    /// are.
    #[cold]
    fn grow(&mut self, now: Instant) -> Option<()> {
        // It is a part of an offer's id.
        let number = Some(self.copies.len() as u64).filter(|number| *number < COPIED)? as u32;
        self.copies.try_reserve(1).ok()?;
        self.unused.try_reserve(self.copies.len() + 1).ok()?;
        self.unused.push(number);
        self.copies.push(OfferCopy::unused(now));
        Some(())
    }

    /// Copies an offer to the place that [`place`](Copies::place) returned for it.
    pub(super) fn keep(&mut self, parts: &Parts<'_>, fill: impl FnOnce(&mut OfferCopy)) {
        let Some(number) = self.unused.pop() else { return };
        let copy = &mut self.copies[number as usize];
        copy.content.bytes.clear();
        copy.tried = Tried::default();
        copy.may_have_reached = false;
        copy.content.tls = parts.tls;
        copy.waits = false;
        for (end, name) in copy.content.ends.iter_mut().zip(parts.names) {
            copy.content.bytes.extend_from_slice(name);
            *end = copy.content.bytes.len();
        }
        for part in parts.preread {
            copy.content.bytes.extend_from_slice(part);
        }
        fill(copy);
    }

    /// Adds what is known of the backends that had an offer before, and forgets its copy.
    #[inline(never)]
    pub(super) fn complete(&mut self, number: u32, verdict: &mut Verdict) {
        if let Some(copy) = self.get(number) {
            verdict.may_have_reached |= copy.may_have_reached;
            verdict.attempts = copy.tried.count;
        }
        self.forget(number);
    }

    /// Forgets a copy, whose place can be used again. Its memory stays.
    pub(super) fn forget(&mut self, number: u32) {
        if let Some(copy) = self.get_mut(number) {
            copy.facts.id = 0;
            self.unused.push(number);
        }
    }

    /// Whether a backend is the last one that an offer went to.
    pub(super) fn names(&self, backend: usize) -> bool {
        self.copies.iter().any(|copy| copy.facts.id != 0 && copy.backend as usize == backend)
    }

    /// A backend's number now stands for another one.
    pub(super) fn renumbered(&mut self, backend: usize) {
        for copy in &mut self.copies {
            copy.tried.bits[backend / 64] &= !(1 << (backend % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(copies: &mut Copies, names: [&[u8]; 3], preread: &[u8]) -> Option<u32> {
        let parts = Parts { names, preread: &[IoSlice::new(preread)], tls: true };
        let len = names.iter().map(|name| name.len()).sum::<usize>() + preread.len();
        let number = copies.place(len, Instant::now())?;
        copies.keep(&parts, |copy| copy.facts.id = 7);
        Some(number)
    }

    #[test]
    fn copy_has_the_parts_of_the_offer() {
        let mut copies = Copies::new(1000);
        let number = keep(&mut copies, [b"s", b"", b"meta"], b"preread").unwrap();
        copies.get(number).unwrap().content.with_parts(|parts| {
            assert_eq!(parts.names, [&b"s"[..], b"", b"meta"]);
            assert_eq!(&*parts.preread[0], b"preread");
            assert!(parts.tls);
        });
    }

    #[test]
    fn memory_of_copies_has_a_limit_and_is_used_again() {
        let mut copies = Copies::new(64 * 10);
        let numbers = [(); 64].map(|()| keep(&mut copies, [b""; 3], &[1; 10]).unwrap());
        assert!(keep(&mut copies, [b""; 3], &[1; 10]).is_none());
        copies.forget(numbers[5]);
        assert_eq!(keep(&mut copies, [b""; 3], &[1; 10]), Some(numbers[5]));
        for number in numbers {
            copies.forget(number);
        }
        // Not even one large copy fits, but for what the unused ones give back.
        assert!(keep(&mut copies, [b""; 3], &[1; 64 * 10]).is_some());
        assert!(keep(&mut copies, [b""; 3], &[1; 1]).is_none());
    }

    #[test]
    fn backend_is_tried_until_its_number_stands_for_another() {
        let mut copies = Copies::new(100);
        let number = keep(&mut copies, [b""; 3], b"").unwrap();
        copies.get_mut(number).unwrap().tried.add(64);
        assert!(copies.get(number).unwrap().tried.has(64));
        copies.renumbered(64);
        assert!(!copies.get(number).unwrap().tried.has(64));
        assert_eq!(copies.get(number).unwrap().tried.count, 1);
    }
}
