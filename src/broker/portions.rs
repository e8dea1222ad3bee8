//! Portions: when offers that wait are sent together, so that the backend works on some while the
//! broker makes others. If each side waited for all that the other does, both would sleep most of the
//! time. State only; no I/O.

use std::time::Duration;

use super::slots::Slots;

/// What may be in flight is sent in so many portions: the backend works on one while the broker makes
/// the next.
const PORTIONS: usize = 2;
/// So many offers are always worth a packet.
const LARGE_PORTION: usize = 16;
/// Fewer are not, if their backend takes longer than this to answer: then it is busy with others, and
/// waking it up takes little of the time.
const SHORT_ANSWER: Duration = Duration::from_micros(100);
/// Nor is a half of so few in flight: it would be made before the backend has woken up for the other
/// one. But the first by itself wakes up a backend that has answered everything.
const FEW: usize = 7;
/// If no more than these are in flight, a packet costs more than that saves.
const FEWEST: usize = 3;

/// Whether so many offers wait to be sent that they should not wait for more. `answered_in`: how long
/// the last adoption took. `sleeps`: both sides may, so that small portions keep them awake.
pub(super) fn waits(slots: &Slots, answered_in: Duration, sleeps: bool) -> bool {
    let waiting = slots.queued();
    if waiting == 0 {
        // It was sent by itself, and something is due for it.
        return true;
    }
    slots.usual().is_some_and(|usual| {
        let is_quick = sleeps && answered_in < SHORT_ANSWER;
        let is_first = waiting == slots.in_flight() && slots.unanswered() == 0;
        is_portion(waiting, is_first, usual, is_quick)
    })
}

/// Whether so many offers are a portion of those that are usually in flight. `is_first`: the backend
/// has answered all others. `is_quick`: it is expected to answer soon, and may sleep until it has
/// these.
fn is_portion(waiting: usize, is_first: bool, usual: usize, is_quick: bool) -> bool {
    match usual {
        ..=FEW if is_quick => is_first && usual > FEWEST,
        _ => PORTIONS * waiting >= usual && (is_quick || waiting >= LARGE_PORTION),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The portions in which so many offers are sent to a backend that has answered everything.
    fn portions(count: usize, is_quick: bool) -> Vec<usize> {
        let (mut portions, mut waiting) = (Vec::new(), 0);
        for _ in 0..count {
            waiting += 1;
            if is_portion(waiting, portions.is_empty(), count, is_quick) {
                portions.push(std::mem::take(&mut waiting));
            }
        }
        // By a flush.
        portions.extend((waiting > 0).then_some(waiting));
        portions
    }

    #[test]
    fn quick_backend_wakes_up_or_works_while_others_are_made() {
        let all = [1, 2, 3, 4, 7, 8, 9, 256].map(|count| portions(count, true));
        let expected: [&[usize]; 8] =
            [&[1], &[2], &[3], &[1, 3], &[1, 6], &[4, 4], &[5, 4], &[128, 128]];
        assert_eq!(all, expected);
    }

    #[test]
    fn busy_backend_gets_portions_that_are_large() {
        let all = [1, 4, 16, 31, 64].map(|count| portions(count, false));
        let expected: [&[usize]; 5] = [&[1], &[4], &[16], &[16, 15], &[32, 32]];
        assert_eq!(all, expected);
    }
}
