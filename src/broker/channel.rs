//! One channel as the broker uses it: frames out and in, deadlines, and the claim.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, RawFd};
use std::time::{Duration, Instant};

use super::outcomes::{End, Ledger};
use super::portions::{self, Waking};
use super::slots::{Facts, Slots, State};
use crate::claim::{self, ClaimTable, Lost, ability};
use crate::handle::{GREETING_TIMEOUT, MEMORY_PAUSE};
use crate::reason::Reason;
use crate::sys::event::Events;
use crate::sys::{self, Received, packet};
use crate::watched::WatchedSocket;
use crate::wire::{self, Frame, Kind, Refusal, Rejection, WireError};

/// The most parts of a preread that is sent by itself.
const LARGE_PREREAD_PARTS: usize = 6;
/// How many frames are received before others have their turn.
const MAX_FRAMES: usize = 64;
/// How long offers are left to the backend's verdicts before the words are looked at.
const WORDS_PAUSE: Duration = Duration::from_millis(10);
/// How much longer that is for an offer that is the only one in flight.
const LONE_OFFER_PAUSE: Duration = Duration::from_millis(90);

#[derive(Debug)]
pub(super) struct Channel {
    socket: WatchedSocket,
    pub(super) claims: ClaimTable,
    pub(super) slots: Slots,
    /// Set by the backend's welcome; before it, when to give up waiting for that.
    pub(super) welcome: Result<wire::Welcome, Instant>,
    /// When to give up waiting for the first tokens. They follow the welcome at once.
    grants_by: Option<Instant>,
    pub(super) draining: bool,
    /// The backend knows offers with TLS.
    pub(super) knows_tls: bool,
    /// When offers were last sent.
    sent_at: Instant,
    /// How long the last offer that was adopted took.
    answered_in: Duration,
    waking: Waking,
    /// When to look at the words of all offers in flight, if any are.
    look_at: Option<Instant>,
    /// The system was short of memory: when to try again.
    pub(super) try_again: Option<Instant>,
    /// It was for something to receive, which is not watched until then.
    unreceived: bool,
    /// What the backend said when it turned this broker away: its last word.
    pub(super) refusal: Option<Refusal>,
}

/// What became of an offer that was taken out of flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claimed {
    /// The backend has it, or may have it.
    pub adopted: bool,
    /// The backend broke the protocol, so the channel has to end.
    pub broken: bool,
}

impl Channel {
    /// One over which the hello was just sent.
    pub(super) fn new(
        socket: WatchedSocket,
        claims: ClaimTable,
        slots: Slots,
        now: Instant,
    ) -> Channel {
        Channel {
            socket,
            claims,
            slots,
            welcome: Err(now + GREETING_TIMEOUT),
            grants_by: None,
            draining: false,
            knows_tls: false,
            sent_at: now,
            answered_in: Duration::ZERO,
            waking: Waking::default(),
            look_at: None,
            try_again: None,
            unreceived: false,
            refusal: None,
        }
    }

    /// When to give up a backend that has not said all that is to come first: a welcome and tokens.
    pub(super) fn greeted_by(&self) -> Option<Instant> {
        self.welcome.err().or(self.grants_by)
    }

    /// Nothing but a packet can come next: it is set up, and does not wait for room.
    pub(super) fn awaits_packets(&self) -> bool {
        self.welcome.is_ok() && !self.socket.watches_room()
    }

    /// The socket has room again.
    pub(super) fn has_room(&mut self) {
        self.socket.has_room();
    }

    /// Has the handle's descriptor tell when there is something to receive.
    pub(super) fn watch(&self, events: &Events) -> io::Result<()> {
        self.socket.watch(events)
    }

    /// To be called before the channel is dropped, but not in another process.
    pub(super) fn end(&self, events: &Events) {
        self.socket.end(events);
    }

    /// Whether so many offers wait to be sent that they should not wait for more. `sleeps`: both
    /// sides may, so that small portions keep them awake.
    pub(super) fn portion_waits(&self, sleeps: bool) -> bool {
        portions::waits(&self.slots, self.answered_in, &self.waking, sleeps)
    }

    /// Sends the only offer of the queue with its preread, which is the caller's still, and would
    /// take longer to copy than a packet costs. If that fails it is copied, to be sent by the next
    /// flush.
    pub(super) fn send_large(&mut self, preread: &[IoSlice<'_>], now: Instant) {
        let mut parts = [IoSlice::new(&[]); 2 + LARGE_PREREAD_PARTS];
        let may_send = !self.socket.is_full() && self.try_again.is_none();
        let fits = preread.len() <= LARGE_PREREAD_PARTS && may_send;
        if let (true, Some((head, first))) = (fits, self.slots.only_queued()) {
            let len = head.len() + preread.iter().map(|part| part.len()).sum::<usize>();
            let header = wire::header(Kind::Offers, 1, 1, len);
            (parts[0], parts[1]) = (IoSlice::new(&header), IoSlice::new(head));
            parts[2..2 + preread.len()].copy_from_slice(preread);
            let parts = &parts[..2 + preread.len()];
            if packet::send_packet(self.socket.as_fd(), parts, &[first]).is_ok() {
                self.have_sent(1, now);
                return;
            }
        }
        self.slots.add_preread(preread);
    }

    fn have_sent(&mut self, count: usize, now: Instant) {
        if self.slots.in_flight() == count && self.slots.unanswered() == 0 {
            self.waking.sent(now);
        }
        self.slots.sent(count);
        (self.sent_at, self.look_at) = (now, Some(sys::earlier(self.look_at, now + WORDS_PAUSE)));
    }

    /// Sends as many offers as the socket takes. An error is the end of the channel.
    pub(super) fn flush(
        &mut self,
        events: &mut Events,
        ledger: &mut Ledger<'_>,
        descriptors: &mut Vec<RawFd>,
    ) -> Result<(), Reason> {
        let now = ledger.now;
        if let Some(again) = self.try_again {
            self.await_memory(again, events, now);
        }
        let mut most = wire::MAX_DESCRIPTORS;
        while let Some(first) = self.slots.first_queued() {
            if self.socket.is_full() || self.try_again.is_some() {
                break;
            }
            let body = self.slots.batch(most, descriptors);
            let count = descriptors.len();
            let header = wire::header(Kind::Offers, count, count, body.len());
            let parts = [IoSlice::new(&header), IoSlice::new(body)];
            let sent = packet::send_packet(self.socket.as_fd(), &parts, descriptors);
            let Err(error) = sent else {
                self.have_sent(count, now);
                most = wire::MAX_DESCRIPTORS.min(2 * most);
                continue;
            };
            match error.raw_os_error() {
                Some(libc::EAGAIN) => {
                    if self.socket.was_full(events).is_err() {
                        self.try_again = Some(now + MEMORY_PAUSE);
                    }
                }
                Some(libc::ENOBUFS | libc::ENOMEM) => self.try_again = Some(now + MEMORY_PAUSE),
                _ if sys::socket::has_gone(&error) => {
                    return Err(Reason::BackendUnavailable);
                }
                // Something is wrong with one of them: find it by halves, and then send more again.
                _ if count > 1 => most = count / 2,
                code => {
                    self.take_back(first, why_unsent(code), ledger)?;
                }
            }
        }
        self.socket.have_sent(events);
        Ok(())
    }

    /// Tries again if it is time for that. Until then what was not received is not watched, because
    /// it would be told again and again: but only if a timer is set, so that it is not forgotten.
    #[cold]
    #[inline(never)]
    fn await_memory(&mut self, again: Instant, events: &mut Events, now: Instant) {
        if again > now {
            if self.unreceived && events.timer.wake_at(again, now).is_ok() {
                let _ = self.socket.pause(events);
            }
        } else if self.unreceived && self.socket.go_on(events).is_err() {
            self.try_again = Some(now + MEMORY_PAUSE);
        } else {
            (self.try_again, self.unreceived) = (None, false);
        }
    }

    /// Revokes an offer in flight and writes down its end: for this reason, or adopted after all;
    /// says whether it was adopted. An error is the end of the channel; the offer has its end then,
    /// too.
    pub(super) fn take_back(
        &mut self,
        slot: u32,
        why: impl Into<Rejection>,
        ledger: &mut Ledger<'_>,
    ) -> Result<bool, Reason> {
        self.revoke(slot, why.into(), None, ledger)
    }

    /// The same; `died` is what else is known of a backend that has adopted it.
    fn revoke(
        &mut self,
        slot: u32,
        why: Rejection,
        died: Option<Reason>,
        ledger: &mut Ledger<'_>,
    ) -> Result<bool, Reason> {
        let Some(found) = self.slots.slot(slot) else {
            return Err(Reason::IntegrityMismatch);
        };
        let (facts, may_have_reached) = (found.facts, found.state == State::Sent);
        let Claimed { adopted, broken } = self.claim(slot);
        let mismatch = broken.then_some(Reason::IntegrityMismatch);
        let end = match adopted {
            true => End::Adopted(mismatch.or(died)),
            false => End::Fallback { why: mismatch.map_or(why, Rejection::from), may_have_reached },
        };
        ledger.ended(&facts, end);
        mismatch.map_or(Ok(adopted), Err)
    }

    /// Takes the offer in a slot out of flight: says who has it.
    pub(super) fn claim(&mut self, slot: u32) -> Claimed {
        let Some(found) = self.slots.slot(slot) else {
            return Claimed { adopted: false, broken: true };
        };
        let sent = found.state == State::Sent;
        let revoked = claim::revoke(self.claims.slot(slot as usize), found.generation);
        let claimed = match revoked {
            Ok(()) => Claimed { adopted: false, broken: false },
            // Only this process has the descriptor, no matter what the word says.
            Err(_) if !sent => Claimed { adopted: false, broken: true },
            Err(Lost::TooLate) => Claimed { adopted: true, broken: false },
            // Perhaps it is adopted, so it must not be served here.
            Err(Lost::Impossible) => Claimed { adopted: true, broken: true },
        };
        self.slots.settle(slot, claimed.adopted);
        claimed
    }

    /// When to look at the words of all offers in flight, so that no adoption stays unknown because
    /// the backend has not come to its verdicts yet. The verdict on an offer that is alone is late
    /// only if the backend is busy with that client, so a timer for each of them would cost more
    /// than it brings.
    pub(super) fn look_due(&self) -> Option<Instant> {
        let alone = self.slots.in_flight() + self.slots.unanswered() <= 1;
        self.look_at.map(|look_at| if alone { look_at + LONE_OFFER_PAUSE } else { look_at })
    }

    /// Gives an offer its verdict if its word says that it is adopted; says whether it does. The
    /// backend's verdict is still to come, with the slot's next token.
    #[inline(never)]
    pub(super) fn look(&mut self, slot: u32, ledger: &mut Ledger<'_>) -> bool {
        let Some(found) = self.slots.slot(slot).filter(|slot| slot.state == State::Sent) else {
            return false;
        };
        let adopted = claim::is_adopted(self.claims.slot(slot as usize), found.generation);
        if adopted {
            let facts = found.facts;
            self.adopted(slot, &facts, ledger);
        }
        adopted
    }

    /// Looks at those that are due first, up to one that is not adopted: backends mostly adopt in
    /// order.
    fn look_at_first(&mut self, ledger: &mut Ledger<'_>) {
        while let Some((slot, _)) = self.slots.earliest() {
            if !self.look(slot, ledger) {
                break;
            }
        }
    }

    /// Looks at all of them, if it is time for that, and otherwise at those that are due first. The
    /// pauses grow while nothing is sent.
    pub(super) fn look_at_words(&mut self, ledger: &mut Ledger<'_>) {
        let now = ledger.now;
        if self.look_at.is_none_or(|look_at| look_at > now) {
            return self.look_at_first(ledger);
        }
        for slot in 0..self.slots.count() {
            self.look(slot, ledger);
        }
        let pause = now.saturating_duration_since(self.sent_at).max(WORDS_PAUSE);
        self.look_at = (self.slots.in_flight() > 0).then(|| now + pause);
    }

    #[inline(always)]
    fn adopted(&mut self, slot: u32, facts: &Facts, ledger: &mut Ledger<'_>) {
        self.slots.settle(slot, true);
        // Its packet was received, so another may fit. The system tells of room only when no more than a
        // quarter of the buffer is used: unix_writable() of Linux.
        self.socket.has_room();
        self.answered_in = ledger.now.saturating_duration_since(facts.offered_at);
        self.waking.answered(ledger.now);
        ledger.ended(facts, End::Adopted(None));
    }

    /// The offer whose deadline is past.
    pub(super) fn expired(&self, now: Instant) -> Option<u32> {
        self.slots.earliest().filter(|(_, deadline)| *deadline <= now).map(|(slot, _)| slot)
    }

    /// Takes back everything, at the end of the channel.
    pub(super) fn settle_all(&mut self, reason: Reason, ledger: &mut Ledger<'_>) {
        // Adopted by a backend that did not live to say so, unless it is this side that ends.
        let died = (reason != Reason::BrokerClosed).then_some(Reason::BackendDied);
        while let Some((slot, _)) = self.slots.earliest() {
            let _ = self.revoke(slot, reason.into(), died, ledger);
        }
    }

    /// Receives the frames that are there, and says whether that was all. An error is the end of the
    /// channel. What the words would tell beside, of packets that the backend still works on, would come
    /// by ones, and each again as a verdict.
    pub(super) fn receive(
        &mut self,
        buffer: &mut [MaybeUninit<u8>],
        may_have_ended: bool,
        ledger: &mut Ledger<'_>,
    ) -> Result<bool, Reason> {
        self.slots.receiving();
        let all = self.receive_frames(buffer, may_have_ended, ledger)?;
        if self.slots.in_flight() == 0 {
            self.look_at = None;
        }
        Ok(all)
    }

    /// Only receives them. If nothing says that the backend has not ended, its end is looked for.
    pub(super) fn receive_frames(
        &mut self,
        buffer: &mut [MaybeUninit<u8>],
        may_have_ended: bool,
        ledger: &mut Ledger<'_>,
    ) -> Result<bool, Reason> {
        if self.refusal.is_some() {
            return Err(Reason::BackendUnavailable);
        }
        for _ in 0..MAX_FRAMES / packet::PACKETS_AT_ONCE {
            // Those that come are closed.
            let close = |_, descriptor| drop(descriptor);
            let (socket, most) = (self.socket.as_fd(), packet::PACKETS_AT_ONCE);
            let received = match packet::receive_packets(socket, buffer, most, close) {
                Ok(received) => received,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(true),
                    Some(libc::ENOBUFS | libc::ENOMEM) => {
                        self.try_again = Some(ledger.now + MEMORY_PAUSE);
                        self.unreceived = true;
                        return Ok(true);
                    }
                    _ => return Err(Reason::BackendUnavailable),
                },
            };
            for (received, packet) in received.packets.into_iter().flatten() {
                self.take_packet(&received, packet, ledger)?;
            }
            // A backend that has answered everything leaves nothing unread, so its end is not
            // hidden.
            let answered = self.slots.in_flight() + self.slots.unanswered() == 0;
            if received.all && (answered || !may_have_ended) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Receives what is left at the end: no more than a verdict and a token for each slot, in
    /// frames of their own, and what has no slot.
    pub(super) fn receive_last(
        &mut self,
        buffer: &mut [MaybeUninit<u8>],
        ledger: &mut Ledger<'_>,
    ) -> Result<bool, Reason> {
        for _ in 0..2 * self.slots.count() as usize / MAX_FRAMES {
            if self.receive_frames(buffer, true, ledger)? {
                return Ok(true);
            }
        }
        self.receive_frames(buffer, true, ledger)
    }

    fn take_packet(
        &mut self,
        received: &Received,
        packet: &[u8],
        ledger: &mut Ledger<'_>,
    ) -> Result<(), Reason> {
        if received.len == 0 {
            return Err(Reason::BackendUnavailable);
        }
        // A backend never sends descriptors; treat any as hostile.
        if received.payload_truncated || received.control_truncated {
            return Err(Reason::IntegrityMismatch);
        }
        match wire::decode(packet, received.descriptors) {
            Ok(frame) => self.handle(frame, ledger),
            Err(WireError::Version(version)) if self.welcome.is_err() => {
                self.refusal = Some(Refusal::speaks(version));
                Err(Reason::BackendUnavailable)
            }
            Err(_) => Err(Reason::IntegrityMismatch),
        }
    }

    fn handle(&mut self, frame: Frame<'_>, ledger: &mut Ledger<'_>) -> Result<(), Reason> {
        let broken = Err(Reason::IntegrityMismatch);
        match (frame, self.welcome) {
            (Frame::Welcome(welcome), Err(by)) if self.slots.slot(welcome.slots - 1).is_some() => {
                self.welcome = Ok(welcome);
                self.grants_by = Some(by);
                let abilities = claim::abilities(self.claims.slot(0));
                self.knows_tls = abilities & ability::TLS != 0;
                ledger.welcomed();
                Ok(())
            }
            // A drain is the last word on tokens: so what a backend can send has an end.
            (Frame::Grants(grants), Ok(_)) if !self.draining => {
                self.grants_by = None;
                for grant in grants.grants() {
                    if !self.slots.grant(grant.slot, grant.token) {
                        return broken;
                    }
                }
                Ok(())
            }
            (Frame::Verdicts(verdicts), Ok(_)) => {
                for verdict in verdicts.verdicts() {
                    self.settle(&verdict, ledger)?;
                }
                Ok(())
            }
            (Frame::Drain, Ok(_)) if !self.draining => {
                self.draining = true;
                self.grants_by = None;
                self.slots.forget_tokens();
                Ok(())
            }
            (Frame::Refusal(refusal), _) => {
                self.refusal = Some(refusal);
                Err(Reason::BackendUnavailable)
            }
            _ => broken,
        }
    }

    /// Takes the backend's word for what became of an offer, as far as the claim table bears it
    /// out.
    fn settle(&mut self, verdict: &wire::Verdict, ledger: &mut Ledger<'_>) -> Result<(), Reason> {
        let broken = Err(Reason::IntegrityMismatch);
        let slot = verdict.slot;
        let Some(found) = self.slots.slot(slot).filter(|s| s.generation == verdict.generation)
        else {
            return broken;
        };
        let claimed = verdict.reason == 0;
        match found.state {
            State::Settled { adopted } if adopted == claimed => {}
            State::Sent if claimed => {
                if !claim::is_adopted(self.claims.slot(slot as usize), verdict.generation) {
                    return broken;
                }
                let facts = found.facts;
                self.adopted(slot, &facts, ledger);
            }
            State::Sent => {
                self.waking.rejected();
                if self.take_back(slot, Rejection::of_byte(verdict.reason), ledger)? {
                    // It says that it rejected what it has adopted.
                    return broken;
                }
            }
            _ => return broken,
        }
        self.slots.empty(slot);
        match verdict.next {
            Some(token) if !self.draining && !self.slots.grant(slot, token) => broken,
            _ => Ok(()),
        }
    }
}

/// Why an offer cannot be sent, by the error number of a packet that has no other.
fn why_unsent(code: Option<i32>) -> Reason {
    match code {
        Some(libc::ETOOMANYREFS) => Reason::DescriptorPressure,
        Some(libc::EPERM | libc::EACCES) => Reason::PermissionDenied,
        // The caller closed the descriptor too early.
        Some(libc::EBADF) => Reason::ClientGone,
        // More than the socket's buffer, SO_SNDBUF, holds.
        Some(libc::EMSGSIZE) => Reason::TooLarge,
        _ => Reason::ClientUnsupported,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::backend::{Backend, BackendOptions};
    use crate::broker::{Broker, BrokerOptions, Offer};
    use std::os::unix::net::UnixStream;

    /// A broker with a channel to a backend, and the directory of the backend's socket.
    pub(in crate::broker) fn connected() -> (Broker, Backend, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut backend = Backend::listen(&path, BackendOptions::default()).unwrap();
        let mut broker = Broker::new(&path, BrokerOptions::default()).unwrap();
        broker.dispatch().unwrap();
        backend.dispatch().unwrap();
        broker.dispatch().unwrap();
        (broker, backend, directory)
    }

    #[test]
    fn adoption_is_room_in_a_socket_that_was_full() {
        let (mut broker, mut backend, _directory) = connected();
        let (client, _peer) = UnixStream::pair().unwrap();
        let preread = [0; 8000];
        let preread = [IoSlice::new(&preread)];
        let offer = Offer { preread: &preread, ..Offer::new(client.as_fd()) };
        let queued = |broker: &mut Broker| broker.members[0].channel().unwrap().slots.queued();
        while queued(&mut broker) < 10 {
            // SAFETY: the client is open as long as the broker.
            unsafe { broker.offer(&offer) }.unwrap();
        }
        broker.dispatch().unwrap();
        assert_eq!(queued(&mut broker), 10);
        backend.dispatch().unwrap();
        while let Some(id) = backend.next_arrival().map(|arrival| arrival.id) {
            backend.adopt(id).unwrap();
        }
        broker.dispatch().unwrap();
        assert_eq!(queued(&mut broker), 0);
    }
}
