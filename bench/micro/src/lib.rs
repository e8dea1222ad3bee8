//! The paths that a handoff takes through the library, each as a closure that takes it many times:
//! for the clock (`benches/paths.rs`) and for counting instructions (`main.rs`).

use std::hint::black_box;
use std::io::IoSlice;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use handoff::backend::{Backend, BackendOptions};
use handoff::bench::{self, Claim};
use handoff::broker::{Broker, BrokerOptions, Offer};
use handoff::raw::store::{TokenStore, TokenStoreOptions};

/// Entries in a packet, and offers in a batch.
const BATCH: u32 = 64;
const ROUNDS: u32 = 20;
const TIMES: u32 = BATCH * ROUNDS;
const PREREAD: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n";

/// One path.
pub struct HotPath {
    pub name: &'static str,
    /// How often one run of it takes it.
    pub times: u32,
    pub run: Box<dyn FnMut()>,
}

/// All of them, ready to run.
pub fn paths() -> Vec<HotPath> {
    let path = |name, run| HotPath { name, times: TIMES, run };
    let loops = |in_flight| Box::new(handoff(in_flight, TIMES / in_flight));
    vec![
        path("token: issue and redeem", Box::new(token_store())),
        path(
            "offer: encode",
            Box::new(encode(|packet| {
                bench::encode_offers(BATCH, PREREAD, packet);
            })),
        ),
        path(
            "offer: decode",
            Box::new(decode(BATCH, |packet| {
                bench::encode_offers(BATCH, PREREAD, packet);
            })),
        ),
        path("verdict: encode", Box::new(encode(|packet| bench::encode_verdicts(BATCH, packet)))),
        path(
            "verdict: decode",
            Box::new(decode(0, |packet| {
                bench::encode_verdicts(BATCH, packet);
            })),
        ),
        path("claim: offer and adopt", Box::new(claim(Claim::adopt))),
        path("claim: offer and revoke", Box::new(claim(Claim::revoke))),
        path("handoff: 64 in flight", loops(BATCH)),
        path("handoff: 1 in flight", loops(1)),
    ]
}

fn token_store() -> impl FnMut() {
    let store = TokenStore::new(TokenStoreOptions::default()).unwrap();
    let now = Instant::now();
    move || {
        for _ in 0..TIMES {
            let token = store.issue_at(now).expect("a token");
            store.redeem_at(&token, now).expect("a pending token");
        }
    }
}

fn encode(write: impl Fn(&mut Vec<u8>)) -> impl FnMut() {
    let mut packet = Vec::with_capacity(128 * 1024);
    move || {
        for _ in 0..ROUNDS {
            write(&mut packet);
            black_box(&packet);
        }
    }
}

fn decode(descriptors: u32, write: impl Fn(&mut Vec<u8>)) -> impl FnMut() {
    let mut packet = Vec::new();
    write(&mut packet);
    move || {
        for _ in 0..ROUNDS {
            let sum = bench::decode(black_box(&packet), descriptors);
            assert_eq!(sum, Some(u64::from(BATCH)));
        }
    }
}

fn claim(step: fn(&Claim, u64) -> bool) -> impl FnMut() {
    let claim = Claim::default();
    let mut generation = 0;
    move || {
        for _ in 0..TIMES {
            generation += 1;
            claim.offer(generation);
            assert!(step(black_box(&claim), generation));
        }
    }
}

/// Both ends in one process, over a real socket, with so many in flight, so often.
pub fn handoff(in_flight: u32, rounds: u32) -> impl FnMut() {
    let name = format!("@handoff-micro-{}-{in_flight}", std::process::id());
    let path = Path::new(&name);
    let mut backend = Backend::listen(path, BackendOptions::default()).expect("a backend");
    let mut broker = Broker::new(path, BrokerOptions::default()).expect("a broker");
    for _ in 0..2 {
        broker.dispatch().expect("a broker");
        backend.dispatch().expect("a backend");
    }
    let clients: Vec<_> = (0..in_flight).map(|_| connection()).collect();
    move || {
        for _ in 0..rounds {
            for (client, _) in &clients {
                let (service, correlation, metadata) = (&[][..], &[][..], &[][..]);
                let descriptor = client.as_fd();
                let preread = &[IoSlice::new(PREREAD)];
                let (user_data, timeout, more) = (0, None, true);
                let offer = Offer {
                    descriptor,
                    preread,
                    metadata,
                    service,
                    correlation,
                    user_data,
                    timeout,
                    tls: false,
                    more,
                };
                // SAFETY: the connection is open as long as the broker.
                unsafe { broker.offer(&offer) }.expect("an offer");
            }
            broker.flush().expect("a broker");
            let mut adopted = 0;
            while adopted < in_flight {
                backend.dispatch().expect("a backend");
                while let Some(id) = backend.next_arrival().map(|arrival| arrival.id) {
                    backend.adopt(id).expect("a connection");
                    adopted += 1;
                }
            }
            broker.dispatch().expect("a broker");
            let mut settled = 0;
            while let Some(verdict) = broker.next_verdict() {
                assert!(verdict.adopted);
                settled += 1;
            }
            assert_eq!(settled, in_flight);
        }
    }
}

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    let client = TcpStream::connect(address).expect("a connection");
    (client, listener.accept().expect("a connection").0)
}
