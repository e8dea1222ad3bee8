//! One channel as the backend uses it: frames in and out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::arrivals::Arrivals;
use super::slots::Slots;
use crate::claim::ClaimTable;
use crate::handle::MEMORY_PAUSE;
use crate::peer::Credentials;
use crate::sys::event::Events;
use crate::sys::packet;
use crate::wire::{self, Frame, Grant, Kind, Welcome};

/// How many tokens are granted in one frame.
const MAX_GRANTS: usize = 512;
/// Bytes of verdicts that are sent without waiting for the end of a batch.
const FLUSH_LEN: usize = 64 * wire::VERDICT_LEN;

/// A place for a channel.
#[derive(Debug)]
pub(super) struct Channel {
    /// None when the broker has gone: what it offered stays until it is adopted or rejected.
    socket: Option<Socket>,
    /// None before the broker's hello, and in a place that is not used.
    pub(super) slots: Option<Slots>,
    /// It is in the handle's list of channels with something to send.
    pub(super) dirty: bool,
}

#[derive(Debug)]
struct Socket {
    descriptor: OwnedFd,
    broker: Credentials,
    /// When the broker must have said hello.
    hello_by: Instant,
    /// The socket was full.
    full: bool,
    /// The events tell when it has room again.
    watching: bool,
    /// The system was short of memory: nothing is sent before the handle tries again.
    short_of_memory: bool,
    drain_told: bool,
    /// The broker has stopped receiving. Frames that it sent before may still be there.
    deaf: bool,
}

/// How a channel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The broker has gone: what it offered can still be adopted.
    Gone,
    /// A protocol error of the broker.
    Broken,
}

impl Channel {
    /// A channel whose broker has connected.
    pub(super) fn new(descriptor: OwnedFd, broker: Credentials, hello_by: Instant) -> Channel {
        let socket = Socket {
            descriptor,
            broker,
            hello_by,
            full: false,
            watching: false,
            short_of_memory: false,
            drain_told: false,
            deaf: false,
        };
        Channel { socket: Some(socket), slots: None, dirty: false }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Whether another broker can have the place.
    pub(super) fn is_unused(&self) -> bool {
        self.socket.is_none() && self.slots.is_none()
    }

    /// When the broker must have said hello, if it has not.
    pub(super) fn hello_by(&self) -> Option<Instant> {
        let socket = self.socket.as_ref().filter(|_| self.slots.is_none())?;
        Some(socket.hello_by)
    }

    /// The socket has room again.
    pub(super) fn has_room(&mut self) {
        if let Some(socket) = &mut self.socket {
            socket.full = false;
        }
    }

    /// Whether there is something to send.
    pub(super) fn is_unsent(&self, draining: bool) -> bool {
        let (Some(socket), Some(slots)) = (&self.socket, &self.slots) else { return false };
        !slots.verdicts().is_empty() || draining && !socket.drain_told
    }

    /// Whether so many verdicts wait that the broker of a large batch could not offer more.
    pub(super) fn has_many_verdicts(&self) -> bool {
        self.slots.as_ref().is_some_and(|slots| slots.verdicts().len() >= FLUSH_LEN)
    }

    /// Whether the system was short of memory for what there is to send.
    pub(super) fn is_short_of_memory(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| socket.short_of_memory)
    }

    /// Sends again what the system was short of memory for, at the next flush; says whether it was.
    pub(super) fn try_memory_again(&mut self) -> bool {
        self.socket.as_mut().is_some_and(|socket| std::mem::take(&mut socket.short_of_memory))
    }

    /// Closes the connection to the broker; what it offered stays until it is adopted or rejected.
    /// Says whether there was a connection.
    pub(super) fn close(&mut self, events: &Events) -> bool {
        let Some(socket) = self.socket.take() else { return false };
        events.remove(socket.descriptor.as_fd());
        true
    }

    /// Receives every frame that is there. An error is the end of the channel. `index` is the place
    /// of this channel among the handle's.
    pub(super) fn receive(
        &mut self,
        index: usize,
        buffer: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        arrivals: &mut Arrivals,
    ) -> Result<(), End> {
        while let Some(socket) = &self.socket {
            let descriptor = socket.descriptor.as_fd();
            let received = match packet::receive_packet(descriptor, buffer, descriptors) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The end of the stream never brings descriptors; an empty packet can.
                Ok(received) if received.len > 0 || received.descriptors > 0 => received,
                Ok(_) | Err(_) => return Err(End::Gone),
            };
            if received.payload_truncated {
                return Err(End::Broken);
            }
            let frame = &buffer[..received.len];
            // At this process's limit the kernel installs the first descriptors and drops the rest.
            let came = match descriptors.len() {
                fewer
                    if received.control_truncated && fewer < wire::declared_descriptors(frame) =>
                {
                    wire::declared_descriptors(frame)
                }
                count if !received.control_truncated => count,
                _ => usize::MAX,
            };
            let frame = wire::decode(frame, came).map_err(|_| End::Broken)?;
            self.handle(index, frame, descriptors, arrivals)?;
        }
        Ok(())
    }

    fn handle(
        &mut self,
        index: usize,
        frame: Frame<'_>,
        descriptors: &mut Vec<OwnedFd>,
        arrivals: &mut Arrivals,
    ) -> Result<(), End> {
        match (frame, &mut self.slots) {
            (Frame::Hello(hello), None) => {
                let table = descriptors.pop().ok_or(End::Broken)?;
                self.welcome(hello, &table, arrivals)
            }
            (Frame::Offers(offers), Some(slots)) => {
                let open = arrivals.inspector.look(descriptors);
                let mut arrived = descriptors.drain(..).zip(open);
                offers
                    .offers()
                    .try_for_each(|offer| arrive(index, slots, &offer, arrived.next(), arrivals))
            }
            _ => Err(End::Broken),
        }
    }

    /// Answers the broker's hello with a welcome and the first tokens.
    fn welcome(
        &mut self,
        hello: wire::Hello,
        table: &OwnedFd,
        arrivals: &mut Arrivals,
    ) -> Result<(), End> {
        let socket = self.socket.as_ref().ok_or(End::Gone)?;
        let claims = ClaimTable::open(table.as_fd(), hello.slots as usize);
        let claims = claims.map_err(|_| End::Broken)?;
        let count = arrivals.options.max_in_flight.min(hello.slots as usize);
        let mut slots = Slots::new(socket.broker, claims, count);
        let max_bytes = arrivals.options.max_offer_bytes as u32;
        let welcome = Welcome { slots: count as u32, max_bytes }.body();
        // If it cannot be sent, the broker has gone: that is no protocol error.
        send(socket, Kind::Welcome, 0, &welcome).map_err(|_| End::Gone)?;
        if !arrivals.draining {
            let mut grants = Vec::with_capacity(count * wire::GRANT_LEN);
            for slot in 0..count {
                let token = arrivals.next_token().ok_or(End::Broken)?;
                slots.grant(slot, token);
                Grant { slot: slot as u32, token }.write(&mut grants);
            }
            // In parts that any socket buffer takes.
            for part in grants.chunks(MAX_GRANTS * wire::GRANT_LEN) {
                send(socket, Kind::Grants, part.len() / wire::GRANT_LEN, part)
                    .map_err(|_| End::Gone)?;
            }
        }
        self.slots = Some(slots);
        Ok(())
    }

    /// Sends the verdicts that wait, and that the backend drains. An error is the end of the channel.
    pub(super) fn flush(
        &mut self,
        key: u64,
        events: &mut Events,
        draining: bool,
    ) -> Result<(), End> {
        let (Some(socket), Some(slots)) = (&mut self.socket, &mut self.slots) else {
            return Ok(());
        };
        while !(socket.full || socket.deaf || socket.short_of_memory) {
            let verdicts = slots.verdicts();
            let len = verdicts.len();
            let sent = if len > 0 {
                send(socket, Kind::Verdicts, len / wire::VERDICT_LEN, verdicts)
            } else if draining && !socket.drain_told {
                send(socket, Kind::Drain, 0, &[])
            } else {
                break;
            };
            match sent.map_err(|error| error.raw_os_error()) {
                Ok(()) if len > 0 => slots.sent(len),
                Ok(()) => socket.drain_told = true,
                // Once more when it is watched: of room that came before, no edge would tell.
                Err(Some(libc::EAGAIN)) if !socket.watching => {
                    socket.watch_room(key, events, true)?;
                }
                Err(Some(libc::EAGAIN)) => socket.full = true,
                Err(Some(libc::ENOBUFS | libc::ENOMEM)) => {
                    socket.short_of_memory = true;
                    let now = Instant::now();
                    events.wake_at(now + MEMORY_PAUSE, now).map_err(|_| End::Gone)?;
                }
                // Dispatch receives what the broker still sent, and then the end.
                Err(Some(libc::EPIPE | libc::ECONNRESET)) => socket.deaf = true,
                Err(_) => return Err(End::Gone),
            }
        }
        if socket.watching && !socket.full {
            socket.watch_room(key, events, false)?;
        }
        Ok(())
    }
}

impl Socket {
    fn watch_room(&mut self, key: u64, events: &Events, room: bool) -> Result<(), End> {
        self.watching = room;
        events.watch_room(self.descriptor.as_fd(), key, room).map_err(|_| End::Gone)
    }
}

/// Takes one offer in: it must spend its token, and is held if it is allowed. Its descriptor comes
/// with whether it is open for writing.
fn arrive(
    index: usize,
    slots: &mut Slots,
    offer: &wire::Offer<'_>,
    arrived: Option<(OwnedFd, bool)>,
    arrivals: &mut Arrivals,
) -> Result<(), End> {
    let len = offer.variable_len().ok_or(End::Broken)?;
    if !slots.spend(&offer.head) || len > arrivals.options.max_offer_bytes {
        return Err(End::Broken);
    }
    arrivals.statistics.arrived += 1;
    let slot = offer.head.slot as usize;
    slots.shrink(slot);
    let refusal = arrivals.refusal(arrived.as_ref(), offer.head.cookie, len);
    match (arrived, refusal) {
        (Some((descriptor, _)), None) => {
            let serial = arrivals.add(index, slot, len);
            slots.hold(offer, descriptor, serial);
        }
        (refused, reason) => {
            // Closed before the broker hears of it.
            drop(refused);
            arrivals.statistics.rejected += 1;
            slots.answer(slot, reason, arrivals.next_token());
        }
    }
    Ok(())
}

fn send(socket: &Socket, kind: Kind, entries: usize, body: &[u8]) -> io::Result<()> {
    let header = wire::header(kind, entries, 0, body.len());
    packet::send_packet(socket.descriptor.as_fd(), &header, body, &[]).map(drop)
}
