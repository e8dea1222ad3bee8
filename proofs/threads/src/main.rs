//! Several threads, each with two ends of its own, and all that threads may share between them, for
//! ThreadSanitizer: `make check-threads`.

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use handoff::backend::{Backend, BackendOptions};
use handoff::broker::{Broker, BrokerOptions, Offer};
use handoff::raw::failures::{Failures, FailuresOptions};
use handoff::raw::pending::{PendingAcks, PendingAcksOptions};
use handoff::raw::store::{TokenStore, TokenStoreOptions};
use handoff::reason::AttemptFailure;

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
    println!("{PAIRS} brokers and {PAIRS} backends in threads: {} connections", PAIRS * OFFERS);
}

fn serve(mut backend: Backend) {
    for _ in 0..OFFERS {
        let (_connection, arrival) = backend.accept(Some(TIMEOUT)).unwrap();
        assert_eq!(arrival.preread, b"hello");
    }
}

fn hand_over(broker: &mut Broker, connection: &UnixStream) {
    let offer = Offer {
        descriptor: connection.as_fd(),
        preread: &[IoSlice::new(b"hello")],
        metadata: b"",
        service: b"",
        correlation: b"",
        user_data: 0,
        timeout: Some(TIMEOUT),
        more: false,
    };
    assert!(broker.offer_and_wait(&offer).unwrap().adopted);
}

/// One round of the raw layer: the objects are the same in all threads.
fn share(store: &TokenStore, pending: &PendingAcks, failures: &Failures, number: usize) {
    let token = store.issue().unwrap();
    pending.register(&token, number).unwrap();
    failures.record_failure(b"backend", AttemptFailure::AckTimeout).unwrap();
    assert_eq!(pending.acknowledge(&token).unwrap(), number);
    assert!(store.redeem(&token).is_err(), "the acknowledgement ends the token's life");
    failures.record_success(b"backend");
}
