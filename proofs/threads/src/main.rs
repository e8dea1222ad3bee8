//! Several threads, each with two ends of its own, and all that threads may share between them, for
//! ThreadSanitizer: `make check-threads`.

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use handoff::backend::{Backend, BackendError, BackendOptions};
use handoff::broker::{Broker, BrokerError, BrokerOptions, Offer, SharedBroker};
use handoff::raw::failures::{Failures, FailuresOptions};
use handoff::raw::pending::{PendingAcks, PendingAcksOptions};
use handoff::raw::store::{TokenStore, TokenStoreOptions};
use handoff::reason::Reason;

const PAIRS: usize = 4;
const OFFERS: usize = 500;
const TIMEOUT: Duration = Duration::from_secs(30);

fn main() {
    let store = Arc::new(TokenStore::new(TokenStoreOptions::default()).unwrap());
    let pending = PendingAcks::new(store.clone(), PendingAcksOptions::default()).unwrap();
    let failures = Failures::new(FailuresOptions::default());
    thread::scope(|scope| {
        for pair in 0..PAIRS {
            let name = format!("@handoff-threads-{}-{pair}", std::process::id());
            let backend = Backend::listen(Path::new(&name), BackendOptions::default()).unwrap();
            scope.spawn(move || serve(backend));
            let (store, pending, failures) = (&store, &pending, &failures);
            scope.spawn(move || {
                let mut broker = Broker::new(Path::new(&name), BrokerOptions::default()).unwrap();
                let (_client, connection) = UnixStream::pair().unwrap();
                for number in 0..OFFERS {
                    hand_over(&mut broker, &connection);
                    share(store, pending, failures, number);
                }
            });
        }
    });
    assert!(store.is_empty() && pending.is_empty());
    share_a_broker();
    println!("{PAIRS} brokers and {PAIRS} backends in threads: {} connections", PAIRS * OFFERS);
}

const SHARERS: usize = 6;

/// Threads that share a broker with little room, while one wakes them, one asks, and the last ends
/// them all.
fn share_a_broker() {
    let name = format!("@handoff-threads-{}-shared", std::process::id());
    let mut backend = Backend::listen(Path::new(&name), BackendOptions::default()).unwrap();
    let options = BrokerOptions { max_in_flight: 3, ..BrokerOptions::default() };
    let broker = SharedBroker::new(Broker::new(Path::new(&name), options).unwrap());
    let ended = AtomicUsize::new(0);
    let woken = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..SHARERS {
            scope.spawn(|| {
                let (_client, connection) = UnixStream::pair().unwrap();
                for _ in 0..OFFERS {
                    match broker.offer_and_wait(&offer_of(&connection)) {
                        Ok(verdict) => assert!(verdict.adopted),
                        Err(BrokerError::Woken) => drop(woken.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => panic!("{error}"),
                    }
                }
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            while ended.load(Ordering::Relaxed) < SHARERS {
                broker.wake();
                broker.with(|broker| broker.statistics()).unwrap();
                thread::sleep(Duration::from_millis(1));
            }
        });
        scope.spawn(|| {
            while ended.load(Ordering::Relaxed) < SHARERS {
                match backend.accept(Some(Duration::from_millis(10))) {
                    Ok(_) | Err(BackendError::TimedOut) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    });
    let statistics = broker.with(|broker| broker.statistics()).unwrap();
    // A wait that was woken before its offer is neither.
    assert!(statistics.taken_back <= woken.into_inner() as u64 && statistics.refused == 0);
    assert_eq!(statistics.adopted + statistics.taken_back, statistics.offered);
    assert_eq!(statistics.connects, 1);
    // Nobody adopts any more: closing ends the waits.
    thread::scope(|scope| {
        for _ in 0..SHARERS {
            scope.spawn(|| {
                let (_client, connection) = UnixStream::pair().unwrap();
                match broker.offer_and_wait(&offer_of(&connection)) {
                    Ok(verdict) => assert!(!verdict.adopted),
                    Err(BrokerError::Closed { .. } | BrokerError::Woken) => {}
                    Err(error) => panic!("{error}"),
                }
            });
        }
        while broker.with(|broker| broker.statistics().in_flight).unwrap() < 2 {
            thread::yield_now();
        }
        broker.with(|broker| broker.close()).unwrap().unwrap();
    });
}

fn offer_of(connection: &UnixStream) -> Offer<'_> {
    Offer {
        descriptor: connection.as_fd(),
        preread: &[],
        metadata: b"",
        service: b"",
        correlation: b"",
        user_data: 0,
        timeout: Some(TIMEOUT),
        tls: false,
        more: false,
    }
}

fn serve(mut backend: Backend) {
    for _ in 0..OFFERS {
        let (_connection, arrival) = backend.accept(Some(TIMEOUT)).unwrap();
        assert_eq!(arrival.preread, b"hello");
    }
}

fn hand_over(broker: &mut Broker, connection: &UnixStream) {
    let offer = Offer { preread: &[IoSlice::new(b"hello")], ..offer_of(connection) };
    assert!(broker.offer_and_wait(&offer).unwrap().adopted);
}

/// One round of the raw layer: the objects are the same in all threads.
fn share(store: &TokenStore, pending: &PendingAcks, failures: &Failures, number: usize) {
    let token = store.issue().unwrap();
    pending.register(&token, number).unwrap();
    failures.record_failure(b"backend", Reason::AckTimeout).unwrap();
    assert_eq!(pending.acknowledge(&token).unwrap(), number);
    assert!(store.redeem(&token).is_err(), "the acknowledgement ends the token's life");
    failures.record_success(b"backend");
}
