//! Portions: when offers that wait are sent together, so that the backend works on some while the
//! broker makes others. If each side waited for all that the other does, both would sleep most of the
//! time. State only; no I/O.

use std::time::{Duration, Instant};

use super::slots::Slots;

/// So many offers are always worth a packet.
const LARGE_PORTION: usize = 16;
/// A backend that takes longer than this to answer is busy with others: waking it up takes little of
/// the time.
const BUSY: Duration = Duration::from_micros(100);
/// If one that had nothing to do takes longer than this, waking up takes the machine long: neither
/// side should sleep.
const SLOW_TO_WAKE: Duration = Duration::from_micros(33);
/// The last answers that count for that.
const VOTES: i8 = 8;

/// Whether waking up takes the machine long, which it has shown lately.
#[derive(Debug, Default)]
pub(super) struct Waking {
    /// When offers were last sent to a backend that had answered everything, until it answers.
    sent_at: Option<Instant>,
    /// How many more of the last answers took long than did not.
    votes: i8,
}

impl Waking {
    /// Offers were sent to a backend that has answered everything.
    pub(super) fn sent(&mut self, now: Instant) {
        self.sent_at = Some(now);
    }

    /// It has rejected one, which is no measure.
    pub(super) fn rejected(&mut self) {
        self.sent_at = None;
    }

    /// An offer was adopted.
    #[inline(always)]
    pub(super) fn answered(&mut self, now: Instant) {
        if let Some(sent_at) = self.sent_at.take() {
            let took = now.saturating_duration_since(sent_at);
            let vote = if took > SLOW_TO_WAKE { 1 } else { -1 };
            self.votes = (self.votes + vote).clamp(-VOTES, VOTES);
        }
    }

    fn takes_long(&self) -> bool {
        self.votes > 0
    }
}

/// How a backend answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    /// It is busy with others, or neither side sleeps.
    Late,
    Soon,
    /// Soon once it is awake, but waking it up takes long.
    SoonIfAwake,
}

/// Whether so many offers wait to be sent that they should not wait for more. `answered_in`: how long
/// the last adoption took. `sleeps`: both sides may, so that small portions keep them awake.
pub(super) fn waits(slots: &Slots, answered_in: Duration, waking: &Waking, sleeps: bool) -> bool {
    let waiting = slots.queued();
    if waiting == 0 {
        // It was sent by itself, and something is due for it.
        return true;
    }
    slots.usual().is_some_and(|usual| {
        let answers = if !sleeps || answered_in >= BUSY {
            Answers::Late
        } else if waking.takes_long() {
            Answers::SoonIfAwake
        } else {
            Answers::Soon
        };
        let is_first = waiting == slots.in_flight() && slots.unanswered() == 0;
        is_portion(waiting, is_first, usual, answers)
    })
}

/// Whether so many offers are a portion of those that are usually in flight. `is_first`: the backend
/// has answered all others.
///
/// With the fewest in flight a packet costs more than it saves. With a few, no half is worth one if
/// waking up is quick: it would be made before the backend has woken up for the other one. But the
/// first by itself wakes up a backend that has answered everything. If waking up takes long there
/// should always be something on the way, for both sides.
fn is_portion(waiting: usize, is_first: bool, usual: usize, answers: Answers) -> bool {
    let is_one_of = |portions| portions * waiting >= usual;
    match (answers, usual) {
        (Answers::Late, _) => is_one_of(2) && waiting >= LARGE_PORTION,
        (_, ..=2) => false,
        (Answers::SoonIfAwake, ..=8) => is_one_of(4),
        (Answers::SoonIfAwake, ..=31) => is_one_of(3),
        (Answers::Soon, ..=3) => false,
        (Answers::Soon, ..=7) => is_first,
        _ => is_one_of(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The portions in which so many offers are sent to a backend that has answered everything.
    fn portions(count: usize, answers: Answers) -> Vec<usize> {
        let (mut portions, mut waiting) = (Vec::new(), 0);
        for _ in 0..count {
            waiting += 1;
            if is_portion(waiting, portions.is_empty(), count, answers) {
                portions.push(std::mem::take(&mut waiting));
            }
        }
        // By a flush.
        portions.extend((waiting > 0).then_some(waiting));
        portions
    }

    #[test]
    fn backend_that_answers_soon_wakes_up_or_works_while_others_are_made() {
        let all = [1, 2, 3, 4, 7, 8, 9, 256].map(|count| portions(count, Answers::Soon));
        let expected: [&[usize]; 8] =
            [&[1], &[2], &[3], &[1, 3], &[1, 6], &[4, 4], &[5, 4], &[128, 128]];
        assert_eq!(all, expected);
    }

    #[test]
    fn backend_that_takes_long_to_wake_up_always_has_something_to_do() {
        let all =
            [1, 2, 3, 4, 5, 8, 16, 32, 256].map(|count| portions(count, Answers::SoonIfAwake));
        let expected: [&[usize]; 9] = [
            &[1],
            &[2],
            &[1, 1, 1],
            &[1, 1, 1, 1],
            &[2, 2, 1],
            &[2, 2, 2, 2],
            &[6, 6, 4],
            &[16, 16],
            &[128, 128],
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn busy_backend_gets_portions_that_are_large() {
        let all = [1, 4, 16, 31, 64].map(|count| portions(count, Answers::Late));
        let expected: [&[usize]; 5] = [&[1], &[4], &[16], &[16, 15], &[32, 32]];
        assert_eq!(all, expected);
    }

    #[test]
    fn most_of_the_last_answers_say_whether_waking_up_takes_long() {
        let (mut waking, now) = (Waking::default(), Instant::now());
        let mut answer = |took| {
            waking.sent(now);
            waking.answered(now + took);
            // Of offers that it had beside others, which say nothing.
            waking.answered(now + BUSY);
            waking.takes_long()
        };
        assert!(!answer(SLOW_TO_WAKE));
        let long = 2 * SLOW_TO_WAKE;
        assert!((0..20).map(|_| answer(long)).filter(|long| *long).count() > 10);
        assert!(answer(SLOW_TO_WAKE / 2));
        assert!((0..20).map(|_| answer(SLOW_TO_WAKE)).filter(|long| *long).count() < 10);
        assert!(!answer(long));
    }

    #[test]
    fn rejection_says_nothing_about_waking_up() {
        let (mut waking, now) = (Waking::default(), Instant::now());
        waking.sent(now);
        waking.rejected();
        waking.answered(now + BUSY);
        assert!(!waking.takes_long());
    }
}
