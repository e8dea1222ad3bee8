//! A channel's socket among the events of its handle, as both ends use it: something to receive is
//! told of always, room to send only while the socket is full.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::event::Events;
use crate::sys::socket;

#[derive(Debug)]
pub(crate) struct WatchedSocket {
    descriptor: OwnedFd,
    /// Its key among the events.
    key: u64,
    /// The events tell of room.
    watches_room: bool,
    /// It was full, and they have not told of room since.
    full: bool,
}

impl AsFd for WatchedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl WatchedSocket {
    /// A socket that is not watched yet.
    pub(crate) fn new(descriptor: OwnedFd, key: u64) -> WatchedSocket {
        WatchedSocket { descriptor, key, watches_room: false, full: false }
    }

    /// To be called once, before anything else.
    pub(crate) fn watch(&self, events: &Events) -> io::Result<()> {
        events.add(self.as_fd(), self.key)
    }

    /// To be called before it is dropped, but not in another process.
    pub(crate) fn end(&self, events: &Events) {
        events.remove(self.as_fd());
        socket::end(self.as_fd());
    }

    /// Nothing is to be sent before there is room.
    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    pub(crate) fn watches_room(&self) -> bool {
        self.watches_room
    }

    /// The events have told of room.
    pub(crate) fn has_room(&mut self) {
        self.full = false;
    }

    /// A packet did not fit. The first time it is to be sent once more, now that room is watched:
    /// of room that came before, no edge would tell.
    pub(crate) fn was_full(&mut self, events: &Events) -> io::Result<()> {
        if self.watches_room {
            self.full = true;
            return Ok(());
        }
        self.watch_room(events, true)
    }

    /// Has the events tell of room, which they do at once if there is any.
    pub(crate) fn await_room(&mut self, events: &Events) -> io::Result<()> {
        self.watch_room(events, true)?;
        self.full = true;
        Ok(())
    }

    /// What could be sent is sent: if it is not full, room is watched no more.
    pub(crate) fn have_sent(&mut self, events: &Events) {
        if self.watches_room && !self.full && self.watch_room(events, false).is_err() {
            // It stays watched, is told at once that there is room, and tries again.
            self.full = true;
        }
    }

    /// Something to receive is told of no more, nor is room.
    pub(crate) fn pause(&self, events: &Events) -> io::Result<()> {
        events.pause(self.as_fd(), self.key, true)
    }

    /// Undoes [`pause`](WatchedSocket::pause).
    pub(crate) fn go_on(&mut self, events: &Events) -> io::Result<()> {
        self.watch_room(events, self.watches_room)
    }

    fn watch_room(&mut self, events: &Events, room: bool) -> io::Result<()> {
        events.watch_room(self.as_fd(), self.key, room)?;
        self.watches_room = room;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::event::{Alarm, Happened, Wait};
    use crate::sys::packet;
    use std::io::{IoSlice, Read};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    const KEY: u64 = 7;

    fn watched() -> (Events, WatchedSocket, UnixStream) {
        let events = Events::new(&Arc::<Alarm>::default()).unwrap();
        let (ours, peer) = UnixStream::pair().unwrap();
        let socket = WatchedSocket::new(ours.into(), KEY);
        socket.watch(&events).unwrap();
        (events, socket, peer)
    }

    fn send(socket: &WatchedSocket) -> bool {
        packet::send_packet(socket.as_fd(), &[IoSlice::new(&[1; 4096])], &[]).is_ok()
    }

    /// What the events tell of the socket: that it is readable, and that it is writable.
    fn told(events: &mut Events) -> Option<(bool, bool)> {
        let mut happened = Happened::new();
        events.take(Wait::No, &mut happened).unwrap();
        let mut all = happened.events().inspect(|event| assert_eq!(event.key, KEY));
        all.next().map(|event| (event.readable, event.writable))
    }

    #[test]
    fn room_is_told_of_once_it_was_full_and_no_more_when_all_is_sent() {
        let (mut events, mut socket, mut peer) = watched();
        assert_eq!(told(&mut events), None);
        while send(&socket) {}
        socket.was_full(&events).unwrap();
        assert!(!socket.is_full() && !send(&socket));
        socket.was_full(&events).unwrap();
        assert!(socket.is_full());
        socket.have_sent(&events);
        assert_eq!(told(&mut events), None);
        peer.set_nonblocking(true).unwrap();
        while peer.read(&mut [0; 4096]).is_ok() {}
        assert_eq!(told(&mut events), Some((false, true)));
        socket.has_room();
        socket.have_sent(&events);
        assert_eq!(told(&mut events), None);
    }

    #[test]
    fn pause_hides_what_is_there_until_it_goes_on() {
        let (mut events, mut socket, peer) = watched();
        packet::send_packet(peer.as_fd(), &[IoSlice::new(b"x")], &[]).unwrap();
        socket.await_room(&events).unwrap();
        assert_eq!(told(&mut events), Some((true, true)));
        socket.pause(&events).unwrap();
        assert_eq!(told(&mut events), None);
        socket.go_on(&events).unwrap();
        assert_eq!(told(&mut events), Some((true, true)));
    }
}
