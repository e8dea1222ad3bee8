//! The backend's end against arbitrary brokers.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use handoff::backend::{Backend, BackendOptions};
use handoff::reason::Reason;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::input::Input;
use crate::peer::{self, ADOPTED, GRANTS, HELLO, OFFERED, OFFERS, REVOKED, Table, VERDICTS};

const SLOTS: usize = 4;
const CREDIT: usize = 3;
const MAX_OFFER_BYTES: usize = 512;
const MAX_HELD_BYTES: usize = 1024;
const MAX_KEPT_BYTES: usize = 700;
const MAX_CHANNELS: usize = 2;

/// A broker that the input plays.
struct Broker {
    socket: OwnedFd,
    table: Option<Table>,
    /// The token that each slot was last granted, until it is spent.
    tokens: [Option<[u8; 16]>; SLOTS],
    generations: [u64; SLOTS],
    granted: usize,
}

/// An offer that was sent, whatever was wrong with it.
struct Sent {
    broker: usize,
    slot: u32,
    generation: u64,
    cookie: u64,
    /// With its slot's token and a descriptor that the backend takes.
    good: bool,
    /// An honest step took it back.
    revoked: bool,
    adopted: bool,
}

struct World {
    brokers: Vec<Broker>,
    sent: Vec<Sent>,
    /// Words were written that no honest broker writes.
    scribbled: bool,
    stream: UnixStream,
    other: UnixStream,
    listener: OwnedFd,
}

/// What is adopted was offered with its token, once, and not taken back; nothing is left behind.
pub fn run(data: &[u8]) {
    let before = peer::open_descriptors();
    play(&mut Input(data));
    assert_eq!(peer::open_descriptors(), before);
}

fn table(input: &mut Input<'_>) -> OwnedFd {
    let file = memfd_create("fuzz", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    let choice = input.u8();
    let words = if choice >= 240 { SLOTS - 1 } else { SLOTS };
    ftruncate(&file, words as u64 * 8).unwrap();
    if choice & 15 != 15 {
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    }
    file
}

impl Broker {
    fn hello(&mut self, input: &mut Input<'_>) {
        let file = table(input);
        let slots = if input.rarely() { input.u8().into() } else { SLOTS as u32 };
        let mut body = slots.to_le_bytes().to_vec();
        body.extend([0; 12]);
        peer::send(&self.socket, &peer::frame(HELLO, 0, 1, &body), &[file.as_fd()]);
        self.table.get_or_insert(Table(File::from(file)));
    }

    fn receive(&mut self) {
        let Some((kind, body, _)) = peer::receive(&self.socket) else { return };
        match kind {
            GRANTS => body.chunks(24).for_each(|entry| self.granted(entry, &entry[8..])),
            VERDICTS => {
                let next = body.chunks(32).filter(|entry| entry[5] == 1);
                next.for_each(|entry| self.granted(entry, &entry[16..]));
            }
            _ => {}
        }
    }

    fn granted(&mut self, entry: &[u8], token: &[u8]) {
        let slot = peer::u32_at(entry, 0) as usize;
        let before = self.tokens[slot].replace(token.try_into().unwrap());
        assert!(before.is_none(), "a slot with two tokens");
        self.granted += 1;
    }
}

impl World {
    /// Several offers in one packet, each with something wrong with it or nothing.
    fn offer(&mut self, which: usize, input: &mut Input<'_>) {
        let Some(broker) = self.brokers.get_mut(which) else { return };
        let (mut body, mut count) = (Vec::new(), 0);
        let mut descriptors: Vec<BorrowedFd<'_>> = Vec::new();
        for _ in 0..=input.below(3) {
            let slot = input.below(SLOTS);
            let choice = input.u8();
            let token = broker.tokens[slot].take();
            broker.generations[slot] += 1;
            let generation = match choice {
                250.. => input.u64(),
                _ => broker.generations[slot],
            };
            let descriptor = match choice & 15 {
                0 => self.listener.as_fd(),
                1 => self.other.as_fd(),
                _ => self.stream.as_fd(),
            };
            let cookie = peer::cookie(&self.stream);
            if let (Some(table), true) = (&broker.table, choice & 0x30 != 0) {
                table.set(slot as u32, generation << 2 | OFFERED);
            }
            let preread = if choice & 0xc0 == 0xc0 { input.u64() as usize % 700 } else { 3 };
            body.extend((slot as u32).to_le_bytes());
            body.extend([0; 4]);
            body.extend(generation.to_le_bytes());
            body.extend(token.unwrap_or([input.u8(); 16]));
            body.extend(cookie.to_le_bytes());
            body.extend((preread as u32).to_le_bytes());
            body.extend([8, 0, 0, 0, 3, 4, 0, 0, 0, 0, 0, 0]);
            body.extend(b"webname");
            body.extend((self.sent.len() as u64).to_le_bytes());
            body.extend(vec![7; preread]);
            let good = token.is_some() && choice & 15 > 1;
            let (revoked, adopted, slot) = (false, false, slot as u32);
            self.sent.push(Sent {
                broker: which,
                slot,
                generation,
                cookie,
                good,
                revoked,
                adopted,
            });
            descriptors.push(descriptor);
            count += 1;
        }
        let declared = count;
        // Not both: the offer whose descriptor was bad would have a good one.
        if input.rarely() {
            descriptors.pop();
        } else if input.rarely() {
            descriptors.push(self.stream.as_fd());
        }
        peer::send(&broker.socket, &peer::frame(OFFERS, count, declared, &body), &descriptors);
    }

    /// Takes an offer back, as an honest broker does.
    fn revoke(&mut self, nth: usize) {
        let Some(sent) = self.sent.get_mut(nth) else { return };
        if let Some(table) = self.brokers.get(sent.broker).and_then(|b| b.table.as_ref()) {
            if table.claim(sent.slot, sent.generation, REVOKED) {
                assert!(!sent.adopted || self.scribbled, "two owners");
                sent.revoked = true;
            }
        }
    }

    /// What an adopted connection must be.
    fn check_adopted(&mut self, number: usize, descriptor: &OwnedFd) {
        let scribbled = self.scribbled;
        let sent = &mut self.sent[number];
        assert!(sent.good, "adopted without its token, or what it may not take");
        assert!(!sent.adopted, "adopted twice");
        assert_eq!(peer::cookie(descriptor), sent.cookie);
        sent.adopted = true;
        if !scribbled {
            assert!(!sent.revoked, "two owners");
            let table = self.brokers.get(sent.broker).and_then(|b| b.table.as_ref());
            let word = table.map_or(0, |table| table.word(sent.slot));
            assert_eq!(word, sent.generation << 2 | ADOPTED);
        }
    }
}

fn play(input: &mut Input<'_>) {
    let honest_words = input.u8() & 3 != 0;
    let name = peer::fresh_name();
    let options = BackendOptions {
        max_channels: MAX_CHANNELS,
        max_in_flight: CREDIT,
        max_offer_bytes: MAX_OFFER_BYTES,
        max_held_bytes: MAX_HELD_BYTES,
        max_kept_bytes: MAX_KEPT_BYTES,
        ..Default::default()
    };
    let mut backend = Backend::listen(Path::new(&name), options).unwrap();
    let (stream, other) = UnixStream::pair().unwrap();
    let listener = peer::listen(&peer::fresh_name());
    let (brokers, sent) = (Vec::new(), Vec::new());
    let mut world = World { brokers, sent, scribbled: false, stream, other, listener };
    // Arrivals that the backend looked at and has not decided on: id and number.
    let mut held: Vec<(u64, usize)> = Vec::new();
    backend.dispatch().unwrap();
    while !input.is_empty() {
        let operation = input.u8();
        let which = usize::from(operation >> 4) % 3;
        match operation & 15 {
            0 | 1 => backend.dispatch().unwrap(),
            2 if world.brokers.len() < 3 => {
                if let Some(socket) = peer::connect(&name) {
                    let (tokens, generations) = ([None; SLOTS], [0; SLOTS]);
                    let mut broker =
                        Broker { socket, table: None, tokens, generations, granted: 0 };
                    if !input.rarely() {
                        broker.hello(input);
                    }
                    world.brokers.push(broker);
                    backend.dispatch().unwrap();
                }
            }
            3 | 4 => {
                if let Some(broker) = world.brokers.get_mut(which) {
                    broker.receive();
                }
            }
            5..=7 => world.offer(which, input),
            8 => {
                let nth = input.below(32);
                world.revoke(nth);
            }
            9 => {
                if let Some(arrival) = backend.next_arrival() {
                    assert_eq!((arrival.service, arrival.correlation), (&b"web"[..], &b"name"[..]));
                    assert!(arrival.preread.iter().all(|byte| *byte == 7));
                    let number = u64::from_le_bytes(arrival.metadata.try_into().unwrap());
                    held.push((arrival.id, number as usize));
                }
            }
            10 | 11 if !held.is_empty() => {
                let (id, number) = held.swap_remove(input.below(held.len()));
                if let Ok(descriptor) = backend.adopt(id) {
                    world.check_adopted(number, &descriptor);
                }
                assert!(backend.adopt(id).is_err(), "an arrival that stays");
            }
            12 if !held.is_empty() => {
                let (id, _) = held.swap_remove(input.below(held.len()));
                let _ = backend.reject(id, Reason::Rejected);
                assert!(backend.adopt(id).is_err(), "an arrival that stays");
            }
            13 if !honest_words => {
                let (slot, word) = (input.below(SLOTS) as u32, input.u8());
                let word = if word == 255 { input.u64() } else { word.into() };
                if let Some(table) = world.brokers.get(which).and_then(|b| b.table.as_ref()) {
                    world.scribbled = true;
                    table.set(slot, word);
                }
            }
            14 => {
                let (kind, entries) = (input.u8() % 8, input.below(4));
                let (declared, attached) = (input.below(4), input.u8());
                let attached = if attached >= 252 { attached.into() } else { attached % 4 };
                let body = input.u8();
                let body = input.bytes(body.into());
                if let Some(broker) = world.brokers.get(which) {
                    let descriptors = vec![world.stream.as_fd(); attached.into()];
                    let packet = peer::frame(kind, entries, declared, body);
                    let raw = input.rarely();
                    let packet = if raw { body } else { &packet };
                    peer::send(&broker.socket, packet, &descriptors);
                }
            }
            15 if input.rarely() => {
                if let Some(broker) = world.brokers.get_mut(which) {
                    broker.socket = world.stream.try_clone().unwrap().into();
                }
            }
            15 if input.rarely() => backend.drain().unwrap(),
            _ => {}
        }
        let statistics = backend.statistics();
        assert!(statistics.channels <= MAX_CHANNELS);
        assert!(statistics.held <= MAX_CHANNELS * CREDIT);
        assert!(statistics.held_bytes <= MAX_HELD_BYTES);
        let granted: usize = world.brokers.iter().map(|broker| broker.granted).sum();
        assert!(statistics.arrived <= granted as u64, "more arrivals than tokens");
        let settled = statistics.adopted + statistics.rejected + statistics.taken_back;
        assert_eq!(statistics.arrived, settled + statistics.held as u64);
        assert!(statistics.kept_bytes <= MAX_KEPT_BYTES + MAX_CHANNELS * CREDIT * 2);
    }
}
