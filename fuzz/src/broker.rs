//! The broker's end against an arbitrary backend.

use std::collections::HashMap;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use handoff::broker::{Broker, BrokerOptions, Offer, Verdict};

use crate::input::Input;
use crate::peer::{self, ADOPTED, DRAIN, GRANTS, HELLO, OFFERS, REFUSAL, Table, VERDICTS, WELCOME};

/// An offer that reached the backend.
struct Arrived {
    slot: u32,
    generation: u64,
    number: usize,
}

/// The backend that the input plays.
struct Backend {
    listener: OwnedFd,
    socket: Option<OwnedFd>,
    table: Option<Table>,
    arrived: Vec<Arrived>,
    /// Offers that an honest step adopted.
    claimed: Vec<usize>,
    /// Anything else was written into a claim table.
    scribbled: bool,
}

impl Backend {
    fn send(&self, packet: &[u8], descriptors: usize) {
        if let Some(socket) = &self.socket {
            peer::send(socket, packet, &vec![self.listener.as_fd(); descriptors]);
        }
    }

    fn accept(&mut self) {
        self.socket = peer::accept(&self.listener);
        self.table = None;
        self.arrived.clear();
    }

    fn receive(&mut self) {
        let Some((kind, body, mut descriptors)) = self.socket.as_ref().and_then(peer::receive)
        else {
            return;
        };
        match kind {
            HELLO => self.table = descriptors.pop().map(|table| Table(File::from(table))),
            OFFERS => {
                let mut rest = &body[..];
                while !rest.is_empty() {
                    let (slot, generation) = (peer::u32_at(rest, 0), peer::u64_at(rest, 8));
                    let preread = peer::u32_at(rest, 40) as usize;
                    let number = peer::u64_at(rest, 56) as usize;
                    self.arrived.push(Arrived { slot, generation, number });
                    // The number is the metadata, and there are no names.
                    rest = &rest[56 + 8 + preread..];
                }
            }
            kind => panic!("the broker sent a frame of kind {kind}"),
        }
    }

    /// A verdict as an honest backend gives it.
    fn verdict(&mut self, input: &mut Input<'_>) {
        let (Some(table), false) = (&self.table, self.arrived.is_empty()) else { return };
        let Arrived { slot, generation, number } =
            self.arrived.swap_remove(input.below(self.arrived.len()));
        let choice = input.u8();
        let adopt = choice & 1 != 0;
        if adopt && table.claim(slot, generation, ADOPTED) {
            self.claimed.push(number);
        }
        // Adopted without a word, and adopted but said to be rejected, happen too.
        let reason = if adopt != (choice & 0x30 == 0x30) { 0 } else { choice >> 3 & 15 };
        if choice & 2 == 0 {
            let body = verdict(slot, generation, reason, choice & 4 == 0, input.u8());
            self.send(&peer::frame(VERDICTS, 1, 0, &body), 0);
        }
    }
}

fn verdict(slot: u32, generation: u64, reason: u8, next: bool, token: u8) -> Vec<u8> {
    let mut body = slot.to_le_bytes().to_vec();
    body.extend([reason, u8::from(next), 0, 0]);
    body.extend(generation.to_le_bytes());
    body.extend([if next { token } else { 0 }; 16]);
    body
}

#[derive(PartialEq)]
enum Fate {
    InFlight,
    TakenBack,
    Settled,
}

/// Every offer has exactly one verdict, which agrees with the claim table; nothing is left behind.
pub fn run(data: &[u8]) {
    let before = peer::open_descriptors();
    play(&mut Input(data));
    assert_eq!(peer::open_descriptors(), before);
}

fn play(input: &mut Input<'_>) {
    let honest_words = input.u8() & 3 != 0;
    let max_in_flight = 1 + input.below(8);
    let name = peer::fresh_name();
    let mut backend = Backend {
        listener: peer::listen(&name),
        socket: None,
        table: None,
        arrived: Vec::new(),
        claimed: Vec::new(),
        scribbled: false,
    };
    let millisecond = Duration::from_millis(1);
    let options = BrokerOptions {
        max_in_flight,
        queue_bytes: 0,
        max_failures: Some(4096),
        reconnect_min: millisecond,
        reconnect_max: millisecond,
        ..Default::default()
    };
    let mut broker = Broker::new(Path::new(&name), options).unwrap();
    let (_client, connection) = UnixStream::pair().unwrap();
    let preread = vec![7; 64 * 1024];
    let mut fates: HashMap<u64, (usize, Fate)> = HashMap::new();
    let mut number = 0;
    broker.dispatch().unwrap();
    backend.accept();
    while !input.is_empty() {
        match input.u8() % 16 {
            0 | 1 => broker.dispatch().unwrap(),
            2 | 3 => {
                let choice = input.u8();
                let len = if choice & 15 == 15 { preread.len() } else { 3 };
                let offer = Offer {
                    descriptor: connection.as_fd(),
                    preread: &[IoSlice::new(&preread[..len])],
                    metadata: &(number as u64).to_le_bytes(),
                    service: b"",
                    correlation: b"",
                    user_data: number,
                    timeout: (choice & 0x30 == 0x30).then_some(Duration::ZERO),
                    tls: false,
                    more: choice & 0x40 != 0,
                };
                // SAFETY: the descriptor stays open until the broker is dropped.
                if let Ok(id) = unsafe { broker.offer(&offer) } {
                    assert!(fates.insert(id, (number, Fate::InFlight)).is_none());
                    number += 1;
                }
            }
            4 => {
                let nth = input.below(64);
                if let Some((id, (_, fate))) = fates.iter_mut().find(|(_, (n, _))| *n == nth) {
                    if broker.take_back(*id).is_ok() {
                        assert!(*fate == Fate::InFlight, "taken back after its end");
                        assert!(backend.scribbled || !backend.claimed.contains(&nth));
                        *fate = Fate::TakenBack;
                    }
                }
            }
            5 | 6 => backend.receive(),
            7 => {
                let mut body = (1 + input.below(8) as u32).to_le_bytes().to_vec();
                body.extend(100_000u32.to_le_bytes());
                body.extend([0; 8]);
                backend.send(&peer::frame(WELCOME, 0, 0, &body), 0);
            }
            8 => {
                let (first, count) = (input.below(8), 1 + input.below(8));
                let grant = |slot: usize| [&(slot as u32).to_le_bytes()[..], &[0; 20]].concat();
                let body: Vec<u8> = (first..first + count).flat_map(grant).collect();
                backend.send(&peer::frame(GRANTS, count, 0, &body), 0);
            }
            9 | 10 => backend.verdict(input),
            11 => {
                let (slot, generation) = (input.below(8) as u32, input.u8().into());
                let body = verdict(slot, generation, input.u8(), input.u8() & 1 != 0, 1);
                backend.send(&peer::frame(VERDICTS, 1, 0, &body), 0);
            }
            12 if !honest_words => {
                let (slot, word) = (input.below(8) as u32, input.u8());
                let word = if word == 255 { input.u64() } else { word.into() };
                if let Some(table) = &backend.table {
                    backend.scribbled = true;
                    table.set(slot, word);
                }
            }
            13 => {
                let (kind, entries) = (input.u8(), input.below(4));
                let (declared, attached) = (input.below(3), input.below(3));
                let len = input.below(80);
                backend.send(&peer::frame(kind, entries, declared, input.bytes(len)), attached);
            }
            14 => {
                let (len, attached) = (input.u8(), input.u8());
                let attached = if attached >= 252 { attached.into() } else { 0 };
                backend.send(input.bytes(len.into()), attached);
            }
            15 if input.rarely() => backend.send(&peer::frame(DRAIN, 0, 0, &[]), 0),
            15 if input.rarely() => backend.socket = None,
            15 if input.rarely() => {
                let mut refusal = peer::frame(REFUSAL, 0, 0, input.bytes(16));
                refusal[4] = input.u8();
                backend.send(&refusal, 0);
            }
            15 => {
                broker.flush().unwrap();
                if backend.socket.is_none() {
                    backend.accept();
                }
            }
            _ => {}
        }
        while let Some(verdict) = broker.next_verdict() {
            check(&verdict, &mut fates, &backend);
        }
        let statistics = broker.statistics();
        assert!(statistics.in_flight <= max_in_flight);
        assert!(statistics.queued_bytes <= 128 * 1024);
        let settled = statistics.adopted + statistics.fallbacks.iter().sum::<u64>();
        let in_flight = statistics.in_flight as u64;
        assert_eq!(statistics.offered, settled + statistics.taken_back + in_flight);
    }
    broker.close().unwrap();
    while let Some(verdict) = broker.next_verdict() {
        check(&verdict, &mut fates, &backend);
    }
    assert!(fates.values().all(|(_, fate)| *fate != Fate::InFlight), "an offer without a verdict");
}

fn check(verdict: &Verdict, fates: &mut HashMap<u64, (usize, Fate)>, backend: &Backend) {
    let (number, fate) = fates.get_mut(&verdict.id).expect("a verdict for no offer");
    assert!(*fate == Fate::InFlight, "a second verdict");
    *fate = Fate::Settled;
    assert_eq!(verdict.user_data, *number);
    assert!(verdict.may_have_reached || !verdict.adopted, "adopted what was never sent");
    assert!(verdict.adopted || verdict.reason.is_some(), "a fallback without a reason");
    if !backend.scribbled {
        assert_eq!(verdict.adopted, backend.claimed.contains(number), "{verdict:?}");
    }
}
