//! One channel as the backend uses it: frames in and out.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::arrivals::Arrivals;
use super::inbox::Inbox;
use super::slots::Slots;
use crate::claim::{self, ClaimTable, ability};
use crate::handle::MEMORY_PAUSE;
use crate::peer::Credentials;
use crate::reason::Reason;
use crate::sys::arrived::Arrived;
use crate::sys::event::Events;
use crate::sys::{self, Received, packet};
use crate::watched::WatchedSocket;
use crate::wire::{self, Frame, GRANT_LEN, Kind, Refusal, VERDICT_LEN, Welcome, WireError};

/// How many tokens are granted in one frame. It is made on the stack, of which a thread may have
/// little.
const MAX_GRANTS: usize = 256;
/// How many verdicts are sent in one frame.
const MAX_VERDICTS: usize = 1024;
/// So many offers in packets that were received together keep the backend busy while the broker makes
/// others.
const MANY_OFFERS: u64 = 80;
/// Offers of so many bytes: their verdicts wait for one another, because each packet has few of them. If
/// a packet of them is long besides, a socket holds few of it: it is received with others, so that the
/// broker can send the next ones meanwhile.
const LARGE_OFFERS: usize = wire::MAX_FRAME_LEN / 16;
/// When to try again for tokens, if the system has no randomness to give.
const TOKEN_PAUSE: Duration = Duration::from_millis(100);

/// A place for a channel.
#[derive(Debug)]
pub(super) struct Channel {
    /// Who connected, as they were then.
    pub(super) broker: Credentials,
    /// None when the broker has gone: what it offered stays until it is adopted or rejected.
    socket: Option<Socket>,
    /// None before the broker's hello, and in a place that is not used.
    pub(super) slots: Option<Slots>,
    /// It is in the handle's list of channels with something to send.
    pub(super) dirty: bool,
}

#[derive(Debug)]
struct Socket {
    watched: WatchedSocket,
    /// When the broker must have said hello.
    hello_by: Instant,
    /// The system was short of memory: nothing is sent before the handle tries again.
    short_of_memory: bool,
    /// It was short of memory for something to receive, which is not watched until then.
    unreceived: Option<Instant>,
    /// The system had no randomness to give: no tokens are granted before the handle tries again.
    short_of_tokens: bool,
    /// The most entries in a frame: fewer if the socket's buffer is small.
    most_entries: usize,
    welcomed: bool,
    drain_told: bool,
    /// The broker has stopped receiving. Frames that it sent before may still be there.
    deaf: bool,
}

/// Which of the frames that are there are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// The next one.
    Next,
    /// A few; all, if they bring many offers.
    Few,
    /// All that the backend may hold, and at least something to hold.
    Holdable,
    All,
}

/// How a channel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The broker has gone, or this process cannot go on: what was offered can still be adopted.
    Gone,
    /// A protocol error of the broker.
    Broken,
    /// The broker's hello is of another version.
    OtherVersion,
    /// The system refuses what the channel needs, with this error number.
    Short(i32),
}

/// A frame that is to be sent.
#[derive(Clone, Copy)]
enum Next {
    Welcome,
    /// So many bytes of entries.
    Verdicts(usize),
    /// So many grants, in entries that are made for it.
    Grants(usize),
    Drain,
}

impl Channel {
    /// A channel whose broker has connected.
    pub(super) fn new(watched: WatchedSocket, broker: Credentials, hello_by: Instant) -> Channel {
        let socket = Socket {
            watched,
            hello_by,
            short_of_memory: false,
            unreceived: None,
            short_of_tokens: false,
            most_entries: MAX_VERDICTS,
            welcomed: false,
            drain_told: false,
            deaf: false,
        };
        Channel { broker, socket: Some(socket), slots: None, dirty: false }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// It is set up, and waits for no room or memory: all that comes is received, also its end.
    pub(super) fn awaits_packets(&self) -> bool {
        let waits = |socket: &Socket| socket.watched.watches_room() || socket.unreceived.is_some();
        self.slots.is_some() && self.socket.as_ref().is_some_and(|it| !waits(it) && !it.deaf)
    }

    /// When the broker must have said hello, if it has not.
    pub(super) fn hello_by(&self) -> Option<Instant> {
        let socket = self.socket.as_ref().filter(|_| self.slots.is_none())?;
        Some(socket.hello_by)
    }

    /// The socket has room again.
    pub(super) fn has_room(&mut self) {
        if let Some(socket) = &mut self.socket {
            socket.watched.has_room();
        }
    }

    /// Whether there is something to send.
    pub(super) fn is_unsent(&self, draining: bool) -> bool {
        match (&self.socket, &self.slots) {
            (Some(socket), Some(slots)) => next(socket, slots, draining).is_some(),
            _ => false,
        }
    }

    /// Whether the broker has stopped receiving.
    pub(super) fn is_deaf(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| socket.deaf)
    }

    /// Whether the system was short of something for what there is to send.
    pub(super) fn is_short(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| socket.short_of_memory || socket.short_of_tokens)
    }

    /// Sends again what the system was short of something for, at the next flush; says whether it
    /// was.
    pub(super) fn try_again(&mut self) -> bool {
        let was_short = self.is_short();
        if let Some(socket) = &mut self.socket {
            (socket.short_of_memory, socket.short_of_tokens) = (false, false);
        }
        was_short
    }

    /// Until when something is not watched that was not received.
    pub(super) fn unreceived(&self) -> Option<Instant> {
        self.socket.as_ref().and_then(|socket| socket.unreceived)
    }

    /// Watches it again, if it is time for that; if the system refuses that, after another pause.
    pub(super) fn watch_again(&mut self, events: &Events, now: Instant) {
        let Some(socket) = &mut self.socket else { return };
        if socket.unreceived.is_some_and(|until| until <= now) {
            let watched = socket.watched.go_on(events);
            socket.unreceived = watched.is_err().then(|| now + MEMORY_PAUSE);
        }
    }

    /// Tells a broker why it is turned away.
    pub(super) fn say(&self, refusal: &Refusal) {
        if let Some(socket) = &self.socket {
            say(socket.watched.as_fd(), refusal);
        }
    }

    /// Closes the connection to the broker; what it offered stays until it is adopted or rejected.
    /// Says whether there was a connection.
    pub(super) fn close(&mut self, events: &Events) -> bool {
        let Some(socket) = self.socket.take() else { return false };
        socket.watched.end(events);
        true
    }

    /// Receives frames. Says whether there may be more. An error is the end of the channel, which may
    /// be hidden unless all were asked for. `index` is the place of this channel among the handle's.
    pub(super) fn receive(
        &mut self,
        index: usize,
        which: Which,
        inbox: &mut Inbox,
        events: &mut Events,
        arrivals: &mut Arrivals,
    ) -> Result<bool, End> {
        let (buffer, descriptors) = (inbox.buffer.spare_capacity_mut(), &mut inbox.descriptors);
        let most = if which == Which::Next { 1 } else { packet::PACKETS_AT_ONCE };
        while let Some(socket) = &mut self.socket {
            let before = arrivals.statistics.arrived;
            let take = |packet: usize, descriptor| descriptors[packet].push(descriptor);
            let from = socket.watched.as_fd();
            let received = match packet::receive_packets(from, buffer, most, take) {
                Ok(received) => received,
                // It takes no verdicts, so it is of no use, even if its end never comes.
                Err(_) if socket.deaf => return Err(End::Gone),
                Err(error) => {
                    socket.unreceived(&error, events, arrivals)?;
                    break;
                }
            };
            let packets = received.packets.into_iter().flatten();
            let mut large = false;
            for ((received, packet), descriptors) in packets.zip(descriptors.iter_mut()) {
                inbox.packets += 1;
                let large_offers =
                    self.take_packet(index, &received, packet, descriptors, arrivals)?;
                large |= large_offers && packet.len() >= wire::LARGE_LEN;
                large |= arrivals.statistics.arrived - before >= MANY_OFFERS;
                inbox.large |= large;
            }
            let goes_on = match which {
                Which::Next => false,
                Which::Few => !received.all && large,
                Which::Holdable => arrivals.held == 0 || arrivals.rooms.allows(wire::MAX_FRAME_LEN),
                Which::All => true,
            };
            if !goes_on {
                return Ok(!received.all);
            }
        }
        Ok(false)
    }

    /// Looks at a packet that was received; says whether its offers are large.
    fn take_packet(
        &mut self,
        index: usize,
        received: &Received,
        packet: &[u8],
        descriptors: &mut Vec<Arrived>,
        arrivals: &mut Arrivals,
    ) -> Result<bool, End> {
        // The end of the stream never brings descriptors; an empty packet can.
        if received.len == 0 && received.descriptors == 0 {
            return Err(End::Gone);
        }
        if received.payload_truncated {
            return Err(End::Broken);
        }
        // At this process's limit the kernel installs the first descriptors and drops the others.
        let came = match descriptors.len() {
            fewer if received.control_truncated && fewer < wire::declared_descriptors(packet) => {
                wire::declared_descriptors(packet)
            }
            count if !received.control_truncated => count,
            _ => usize::MAX,
        };
        let frame = wire::decode(packet, came).map_err(|error| match error {
            WireError::Version(_) if self.slots.is_none() => End::OtherVersion,
            _ => End::Broken,
        })?;
        self.handle(index, frame, descriptors, arrivals)
    }

    fn handle(
        &mut self,
        index: usize,
        frame: Frame<'_>,
        descriptors: &mut Vec<Arrived>,
        arrivals: &mut Arrivals,
    ) -> Result<bool, End> {
        match (frame, &mut self.slots) {
            (Frame::Hello(hello), None) => {
                self.slots = Some(open(hello, descriptors.pop(), arrivals)?);
                Ok(false)
            }
            (Frame::Offers(offers), Some(slots)) => {
                let over_tcp = arrivals.inspector.look(descriptors);
                let mut arrived = descriptors.drain(..).zip(over_tcp);
                let (large, mut last) = (offers.mean_len() >= LARGE_OFFERS, 0);
                for offer in offers.offers() {
                    arrive(index, slots, &offer, arrived.next(), arrivals)?;
                    last = offer.head.slot;
                }
                if !large {
                    slots.came_last(last);
                }
                Ok(large)
            }
            _ => Err(End::Broken),
        }
    }

    /// Sends what waits: the welcome, verdicts, tokens, and that the backend drains. An error is
    /// the end of the channel.
    pub(super) fn flush(
        &mut self,
        events: &mut Events,
        arrivals: &mut Arrivals,
    ) -> Result<(), End> {
        let (Some(socket), Some(slots)) = (&mut self.socket, &mut self.slots) else {
            return Ok(());
        };
        while !(socket.watched.is_full() || socket.deaf || socket.short_of_memory) {
            let Some(next) = next(socket, slots, arrivals.draining) else { break };
            if let Err(error) = socket.send(next, slots, arrivals) {
                socket.unsent(&error, events, arrivals)?;
            }
        }
        socket.watched.have_sent(events);
        if socket.short_of_tokens {
            socket.wake_after(TOKEN_PAUSE, events)?;
        }
        Ok(())
    }
}

/// Tells who connected why it is turned away, if that can be sent at once: nobody waits for a
/// stranger.
pub(super) fn say(socket: BorrowedFd<'_>, refusal: &Refusal) {
    let _ = send(socket, &Refusal::header(), &refusal.body());
}

fn send(socket: BorrowedFd<'_>, header: &[u8], body: &[u8]) -> io::Result<()> {
    let parts = [IoSlice::new(header), IoSlice::new(body)];
    packet::send_packet(socket, &parts, &[]).map(drop)
}

/// What is to be sent next. The verdict on a slot's offer comes before the slot's next grant.
fn next(socket: &Socket, slots: &Slots, draining: bool) -> Option<Next> {
    let verdicts = slots.verdicts(socket.most_entries * VERDICT_LEN).len();
    if !socket.welcomed {
        Some(Next::Welcome)
    } else if verdicts > 0 {
        Some(Next::Verdicts(verdicts))
    } else if draining {
        (!socket.drain_told).then_some(Next::Drain)
    } else if slots.are_owed() && !socket.short_of_tokens {
        Some(Next::Grants(socket.most_entries.min(MAX_GRANTS)))
    } else {
        None
    }
}

impl Socket {
    /// Sends a frame; what was sent is not to be sent again.
    fn send(&mut self, next: Next, slots: &mut Slots, arrivals: &mut Arrivals) -> io::Result<()> {
        match next {
            Next::Welcome => {
                let max_bytes = arrivals.options.max_offer_bytes as u32;
                let welcome = Welcome { slots: slots.count() as u32, max_bytes }.body();
                self.send_frame(Kind::Welcome, 0, &welcome)?;
                self.welcomed = true;
            }
            Next::Verdicts(len) => {
                self.send_frame(Kind::Verdicts, len / VERDICT_LEN, slots.verdicts(len))?;
                slots.sent(len);
            }
            Next::Grants(most) => {
                let mut entries = [[0; GRANT_LEN]; MAX_GRANTS];
                let count = slots.grant(&mut entries[..most], || arrivals.next_token());
                if count == 0 {
                    self.short_of_tokens = true;
                    return Ok(());
                }
                let sent = self.send_frame(Kind::Grants, count, entries[..count].as_flattened());
                match sent {
                    Ok(()) => slots.granted(count),
                    Err(_) => slots.not_granted(count),
                }
                sent?;
            }
            Next::Drain => {
                self.send_frame(Kind::Drain, 0, &[])?;
                self.drain_told = true;
            }
        }
        Ok(())
    }

    fn send_frame(&self, kind: Kind, entries: usize, body: &[u8]) -> io::Result<()> {
        let header = wire::header(kind, entries, 0, body.len());
        send(self.watched.as_fd(), &header, body)
    }

    /// A frame could not be sent: it waits, or is made smaller, or the channel ends.
    fn unsent(
        &mut self,
        error: &io::Error,
        events: &mut Events,
        arrivals: &mut Arrivals,
    ) -> Result<(), End> {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => {
                self.watched.was_full(events).map_err(|error| {
                    arrivals.system_refused(&error);
                    End::Gone
                })?;
            }
            // More than the socket's buffer, SO_SNDBUF, holds.
            Some(libc::EMSGSIZE) if self.most_entries > 1 => self.most_entries /= 2,
            // The handle receives what the broker still sent, and then ends the channel.
            _ if sys::socket::has_gone(error) => self.deaf = true,
            Some(libc::ENOBUFS | libc::ENOMEM) => {
                arrivals.system_refused(error);
                self.short_of_memory = true;
                self.wake_after(MEMORY_PAUSE, events)?;
            }
            _ => {
                arrivals.system_refused(error);
                return Err(End::Gone);
            }
        }
        Ok(())
    }

    /// Nothing was received: there is nothing, or the system is short of memory, or it is the end.
    fn unreceived(
        &mut self,
        error: &io::Error,
        events: &mut Events,
        arrivals: &mut Arrivals,
    ) -> Result<(), End> {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(()),
            Some(libc::ENOBUFS | libc::ENOMEM) => {
                arrivals.system_refused(error);
                let now = Instant::now();
                let until = now + MEMORY_PAUSE;
                events.timer.wake_at(until, now).map_err(|_| End::Gone)?;
                // It would be told again and again that it is still there.
                let paused = self.watched.pause(events).is_ok();
                // One that cannot be paused again is paused still.
                self.unreceived = (paused || self.unreceived.is_some()).then_some(until);
                Ok(())
            }
            _ => Err(End::Gone),
        }
    }

    /// Has the handle try again after a pause; at once, if no timer can be set.
    fn wake_after(&mut self, pause: Duration, events: &mut Events) -> Result<(), End> {
        let now = Instant::now();
        if events.timer.wake_at(now + pause, now).is_err() {
            self.watched.await_room(events).map_err(|_| End::Gone)?;
        }
        Ok(())
    }
}

/// Opens the claim table that came with a broker's hello.
fn open(hello: wire::Hello, table: Option<Arrived>, arrivals: &mut Arrivals) -> Result<Slots, End> {
    let count = arrivals.options.max_in_flight.min(hello.slots as usize);
    let slots = match table {
        // The frame says that it came, so it was lost on arrival.
        None => Err(io::Error::from_raw_os_error(libc::EMFILE)),
        Some(table) => ClaimTable::open(table.as_fd(), hello.slots as usize).and_then(|claims| {
            claim::tell_abilities(claims.slot(0), ability::TLS);
            Slots::new(claims, count).map_err(|error| error.source)
        }),
    };
    match slots {
        Ok(slots) => {
            arrivals.statistics.accepted += 1;
            Ok(slots)
        }
        Err(error) => match error.raw_os_error() {
            // Not because of what the broker sent. EAGAIN is a limit on locked memory, mmap(2).
            Some(code @ (libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN)) => {
                arrivals.system_refused(&error);
                Err(End::Short(code))
            }
            _ => Err(End::Broken),
        },
    }
}

/// Takes one offer in: it must spend its token, and is held if it is allowed. Its descriptor comes
/// with whether it is certainly over TCP.
fn arrive(
    index: usize,
    slots: &mut Slots,
    offer: &wire::Offer<'_>,
    arrived: Option<(Arrived, bool)>,
    arrivals: &mut Arrivals,
) -> Result<(), End> {
    let len = offer.variable_len().ok_or(End::Broken)?;
    if !slots.spend(&offer.head) || len > arrivals.options.max_offer_bytes {
        return Err(End::Broken);
    }
    arrivals.statistics.arrived += 1;
    let rejection = arrivals.rejection(arrived.as_ref(), offer.head.cookie, offer.head.tls, len);
    let (rejected, reason) = match (arrived, rejection) {
        (Some((descriptor, _)), None) => match arrivals.hold(index, slots, offer, descriptor) {
            Ok(()) => return Ok(()),
            Err(rejected) => (Some(rejected), Some(Reason::BackendBusy.into())),
        },
        (rejected, reason) => (rejected.map(|(descriptor, _)| descriptor), reason),
    };
    // Closed before the broker hears of it.
    drop(rejected);
    let slot = offer.head.slot as usize;
    arrivals.rejected(slots.is_taken_back(slot));
    slots.answer(slot, reason, arrivals.next_token());
    Ok(())
}
