//! Which of many things is due first. State only: no I/O, and times are arguments.
//!
//! Things are numbers from 0 on. With one timeout for all, deadlines come in their order: each is
//! put at the end of a list, and setting or clearing one takes a few steps. A deadline that comes
//! before that of the last in the list goes into a heap, where it takes as many steps as the
//! logarithm of their number. No order of deadlines costs more.

use std::time::Instant;

use crate::memory::{self, NoMemory};

/// Deadlines of things, one for each at most.
#[derive(Debug)]
pub(crate) struct Deadlines {
    /// By the number of the thing.
    nodes: Vec<Node>,
    /// The list: things whose deadlines came in their order.
    first: u32,
    last: u32,
    /// The other things, as a binary heap: none is due before its parent.
    heap: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    deadline: Instant,
    /// The neighbour in the list that is due before this one; or [`IN_HEAP`].
    earlier: u32,
    /// The neighbour that is due after this one; or the place in the heap.
    later: u32,
}

const NONE: u32 = u32::MAX;
const IN_HEAP: u32 = u32::MAX - 1;

impl Deadlines {
    /// Has room for things below `count`. Nothing is allocated after this.
    pub(crate) fn new(count: usize) -> Result<Deadlines, NoMemory> {
        let nodes = memory::vec(count, "deadlines")?;
        Ok(Deadlines { nodes, first: NONE, last: NONE, heap: memory::vec(count, "deadlines")? })
    }

    /// Sets the deadline of a thing that has none.
    pub(crate) fn set(&mut self, thing: u32, deadline: Instant) {
        if thing as usize >= self.nodes.len() {
            let none = Node { deadline, earlier: NONE, later: NONE };
            self.nodes.resize(thing as usize + 1, none);
        }
        let last = self.last;
        if self.nodes.get(last as usize).is_some_and(|last| last.deadline > deadline) {
            self.nodes[thing as usize].deadline = deadline;
            let place = self.heap.len();
            self.heap.push(thing);
            self.rise(place);
            return;
        }
        self.nodes[thing as usize] = Node { deadline, earlier: last, later: NONE };
        self.link(last, thing);
        self.last = thing;
    }

    /// Clears the deadline of a thing that has one.
    pub(crate) fn clear(&mut self, thing: u32) {
        let Node { earlier, later, .. } = self.nodes[thing as usize];
        if earlier != IN_HEAP {
            self.link(earlier, later);
            match self.nodes.get_mut(later as usize) {
                Some(later) => later.earlier = earlier,
                None => self.last = earlier,
            }
            return;
        }
        let place = later as usize;
        self.heap.swap_remove(place);
        if place < self.heap.len() {
            // What has come here from the end may belong above or below.
            self.sink(place);
            self.rise(place);
        }
    }

    /// The thing that is due first, and when.
    pub(crate) fn earliest(&self) -> Option<(u32, Instant)> {
        let due = |thing: u32| Some((thing, self.nodes.get(thing as usize)?.deadline));
        let (listed, other) = (due(self.first), self.heap.first().and_then(|thing| due(*thing)));
        match (listed, other) {
            (Some(listed), Some(other)) if listed.1 > other.1 => Some(other),
            (None, other) => other,
            (listed, _) => listed,
        }
    }

    /// Makes a thing of the list, or none, the one before another.
    fn link(&mut self, earlier: u32, later: u32) {
        match self.nodes.get_mut(earlier as usize) {
            Some(earlier) => earlier.later = later,
            None => self.first = later,
        }
    }

    fn deadline_at(&self, place: usize) -> Instant {
        self.nodes[self.heap[place] as usize].deadline
    }

    /// Tells the thing in a place of the heap where it is.
    fn settle(&mut self, place: usize) {
        let node = &mut self.nodes[self.heap[place] as usize];
        (node.earlier, node.later) = (IN_HEAP, place as u32);
    }

    /// Moves what is in a place of the heap up to where it belongs.
    fn rise(&mut self, mut place: usize) {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.deadline_at(parent) <= self.deadline_at(place) {
                break;
            }
            self.heap.swap(parent, place);
            self.settle(place);
            place = parent;
        }
        self.settle(place);
    }

    /// Moves what is in a place of the heap down to where it belongs.
    fn sink(&mut self, mut place: usize) {
        loop {
            let children = 2 * place + 1..self.heap.len().min(2 * place + 3);
            let first = children.min_by_key(|child| self.deadline_at(*child));
            let Some(child) = first.filter(|c| self.deadline_at(*c) < self.deadline_at(place))
            else {
                break;
            };
            self.heap.swap(child, place);
            self.settle(place);
            place = child;
        }
        self.settle(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn earliest_is_that_of_a_sorted_list(
            steps in proptest::collection::vec((any::<bool>(), 0..16u32, 0..50u64), 0..300),
        ) {
            let start = Instant::now();
            let mut deadlines = Deadlines::new(16).unwrap();
            let mut model = [None; 16];
            for (set, thing, milliseconds) in steps {
                let held = &mut model[thing as usize];
                match (set, *held) {
                    (true, None) => {
                        let deadline = start + Duration::from_millis(milliseconds);
                        deadlines.set(thing, deadline);
                        *held = Some(deadline);
                    }
                    (false, Some(_)) => {
                        deadlines.clear(thing);
                        *held = None;
                    }
                    _ => continue,
                }
                let earliest = deadlines.earliest();
                let want = model.iter().flatten().min();
                prop_assert_eq!(earliest.map(|(_, deadline)| deadline), want.copied());
                prop_assert_eq!(earliest.and_then(|(thing, _)| model[thing as usize]), want.copied());
            }
        }
    }

    #[test]
    fn deadlines_in_order_leave_in_order_and_in_no_order_too() {
        let start = Instant::now();
        for step in [1, 7, 99] {
            let mut deadlines = Deadlines::new(100).unwrap();
            for thing in 0..100 {
                let after = Duration::from_millis(u64::from(thing * step % 100));
                deadlines.set(thing, start + after);
            }
            let mut before = start;
            while let Some((thing, deadline)) = deadlines.earliest() {
                assert!(before <= deadline);
                before = deadline;
                deadlines.clear(thing);
            }
            assert_eq!(before, start + Duration::from_millis(99));
        }
    }
}
