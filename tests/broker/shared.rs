//! A broker that threads share, over real sockets.

use std::ffi::CStr;
use std::io::IoSlice;
use std::iter;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use handoff::backend::{Backend, BackendOptions};
use handoff::broker::{
    BackendSettings, Broker, BrokerError, BrokerOptions, MAX_BACKENDS, Offer, Phase, SharedBroker,
};
use tempfile::TempDir;

use super::{PATIENCE, pair, place, resting, until};

/// A broker whose backend has given it room.
fn share(options: BrokerOptions) -> (TempDir, Backend, SharedBroker) {
    let (directory, _path, backend, broker) = pair(options);
    (directory, backend, SharedBroker::new(broker))
}

/// Adopts what has arrived; the connection is the backend's for as long as the test runs.
fn adopt(backend: &mut Backend) {
    backend.dispatch().unwrap();
    let id = backend.next_arrival().unwrap().id;
    mem::forget(backend.adopt(id).unwrap());
    backend.dispatch().unwrap();
}

/// Whatever the body does with the broker before it takes verdicts.
fn verdict_of_a_thread_that_waits_is_its_own(end: impl Fn(&mut Broker) + Send + Sync) {
    let options = BrokerOptions { timeout: PATIENCE, ..BrokerOptions::default() };
    let (_directory, mut backend, broker) = share(options);
    let (client, _peer) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| broker.offer_and_wait(&Offer::new(client.as_fd())));
        until(|| broker.with(|broker| broker.statistics().in_flight).unwrap() == 1);
        let taken = broker.with(|broker| {
            adopt(&mut backend);
            end(broker);
            iter::from_fn(|| broker.next_verdict()).count()
        });
        assert_eq!(taken.unwrap(), 0);
        assert!(waits.join().unwrap().unwrap().adopted);
    });
}

#[test]
fn verdict_of_a_thread_that_waits_goes_to_nobody_who_dispatches() {
    verdict_of_a_thread_that_waits_is_its_own(|broker| broker.dispatch().unwrap());
}

#[test]
fn verdict_of_a_thread_that_waits_goes_to_nobody_who_closes_the_broker() {
    verdict_of_a_thread_that_waits_is_its_own(|broker| broker.close().unwrap());
}

#[test]
fn verdicts_that_nobody_waits_for_are_taken_around_those_of_threads() {
    let options = BrokerOptions { timeout: PATIENCE, ..BrokerOptions::default() };
    let (_directory, mut backend, broker) = share(options);
    let (client, _peer) = UnixStream::pair().unwrap();
    let offer = |number| Offer { user_data: number, ..Offer::new(client.as_fd()) };
    thread::scope(|scope| {
        broker.with(|broker| place(broker, &offer(1)).unwrap()).unwrap();
        let waits = scope.spawn(|| broker.offer_and_wait(&offer(2)));
        until(|| broker.with(|broker| broker.statistics().in_flight).unwrap() == 2);
        broker.with(|broker| place(broker, &offer(3)).unwrap()).unwrap();
        let taken = broker.with(|broker| {
            until(|| {
                backend.dispatch().unwrap();
                backend.statistics().held == 3
            });
            (0..3).for_each(|_| adopt(&mut backend));
            broker.dispatch().unwrap();
            iter::from_fn(|| broker.next_verdict()).map(|it| it.user_data).collect::<Vec<_>>()
        });
        assert_eq!(taken.unwrap(), [1, 3]);
        assert_eq!(waits.join().unwrap().unwrap().user_data, 2);
    });
}

#[test]
fn thread_that_is_late_when_there_is_room_is_not_offered() {
    let options = BrokerOptions {
        max_in_flight: 1,
        max_failures: Some(1),
        timeout: PATIENCE,
        ..BrokerOptions::default()
    };
    let (_directory, mut backend, broker) = share(options);
    let (client, _peer) = UnixStream::pair().unwrap();
    broker.with(|broker| place(broker, &Offer::new(client.as_fd())).unwrap()).unwrap();
    let timeout = Some(Duration::from_millis(100));
    let offers = AtomicBool::new(false);
    thread::scope(|scope| {
        let late = scope.spawn(|| {
            let offer = Offer { timeout, ..Offer::new(client.as_fd()) };
            offers.store(true, Ordering::SeqCst);
            broker.offer_and_wait(&offer)
        });
        until(|| offers.load(Ordering::SeqCst));
        thread::sleep(Duration::from_millis(50));
        broker
            .with(|broker| {
                // The others wait for this one, until there is room and the time is up.
                thread::sleep(Duration::from_millis(100));
                adopt(&mut backend);
                broker.dispatch().unwrap();
            })
            .unwrap();
        let refused = late.join().unwrap().unwrap_err();
        assert!(matches!(refused, BrokerError::Full { .. }), "{refused}");
    });
    broker.dispatch().unwrap();
    broker
        .with(|broker| {
            let state = broker.backend_state(0).unwrap();
            assert_eq!((state.phase, state.counts.offered), (Phase::Ready, 1));
        })
        .unwrap();
}

/// A backend of the broker that listens at this name, with room for an offer.
fn listen(
    directory: &TempDir,
    broker: &SharedBroker,
    name: &str,
    options: BackendOptions,
) -> Backend {
    let path = directory.path().join(name);
    let mut backend = Backend::listen(&path, options).unwrap();
    broker.with(|broker| broker.add(&path, BackendSettings::default())).unwrap().unwrap();
    until(|| {
        broker.dispatch().unwrap();
        backend.dispatch().unwrap();
        broker
            .with(|broker| {
                let is_this = |name: &CStr| name.to_bytes() == path.as_os_str().as_bytes();
                (0..MAX_BACKENDS).any(|index| {
                    let state = broker.backend_state(index);
                    state.is_some_and(|state| is_this(state.name) && state.room > 0)
                })
            })
            .unwrap()
    });
    backend
}

#[test]
fn offer_that_waits_for_one_backend_keeps_none_from_another() {
    let options = BrokerOptions { timeout: PATIENCE, ..BrokerOptions::default() };
    let directory = TempDir::new().unwrap();
    let broker = SharedBroker::new(Broker::without_backends(options).unwrap());
    let one = BackendOptions { max_in_flight: 1, ..BackendOptions::default() };
    let mut full = listen(&directory, &broker, "full", one);
    let (client, _peer) = UnixStream::pair().unwrap();
    broker.with(|broker| place(broker, &Offer::new(client.as_fd())).unwrap()).unwrap();
    let small = BackendOptions { max_offer_bytes: 1000, ..BackendOptions::default() };
    let mut free = listen(&directory, &broker, "free", small);
    let long = [IoSlice::new(&[0; 5000])];
    let offers = AtomicBool::new(false);
    thread::scope(|scope| {
        let first = scope.spawn(|| {
            let offer = Offer { preread: &long, ..Offer::new(client.as_fd()) };
            offers.store(true, Ordering::SeqCst);
            broker.offer_and_wait(&offer)
        });
        until(|| offers.load(Ordering::SeqCst));
        thread::sleep(Duration::from_millis(50));
        for _ in 0..3 {
            let other = scope.spawn(|| broker.offer_and_wait(&Offer::new(client.as_fd())));
            until(|| {
                free.dispatch().unwrap();
                free.statistics().held == 1
            });
            adopt(&mut free);
            assert!(other.join().unwrap().unwrap().adopted);
        }
        assert!(!first.is_finished());
        // Room for the first one, and then the first one itself.
        for _ in 0..2 {
            until(|| {
                full.dispatch().unwrap();
                full.statistics().held == 1
            });
            adopt(&mut full);
        }
        assert!(first.join().unwrap().unwrap().adopted);
    });
}

#[test]
fn descriptor_tells_of_a_trial_whoever_dispatches_before_it() {
    let (client, _peer) = UnixStream::pair().unwrap();
    let (_directory, _backend, broker) = resting(&client);
    let broker = SharedBroker::new(broker);
    let offer = Offer { timeout: Some(Duration::from_millis(10)), ..Offer::new(client.as_fd()) };
    let fd = broker.descriptor().unwrap().as_raw_fd();
    let refused = broker.with(|broker| place(broker, &offer)).unwrap();
    assert!(matches!(refused, Err(BrokerError::RateLimited { .. })));
    // Some timer is due by now, though not that of the trial.
    thread::sleep(Duration::from_millis(150));
    broker.dispatch().unwrap();
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    until(|| {
        // SAFETY: `poll` is one pollfd, which outlives the call.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 20000) }, 1, "nobody is told");
        broker.dispatch().unwrap();
        broker.with(|broker| broker.backend_state(0).unwrap().room > 0).unwrap()
    });
}

#[test]
fn verdict_names_its_backend_also_if_that_is_removed_and_another_comes() {
    for _ in 0..50 {
        let (directory, path, mut backend, broker) = pair(BrokerOptions::default());
        let broker = SharedBroker::new(broker);
        let other = directory.path().join("other.sock");
        let (client, _peer) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let waits = scope.spawn(|| {
                broker.offer_wait_and(&Offer::new(client.as_fd()), |broker, verdict| {
                    broker.backend_name(verdict.backend).unwrap().to_owned()
                })
            });
            until(|| {
                backend.dispatch().unwrap();
                backend.statistics().held == 1
            });
            adopt(&mut backend);
            broker.dispatch().unwrap();
            // Before the thread has its verdict, if that comes so.
            broker
                .with(|broker| {
                    broker.remove(&path).unwrap();
                    broker.add(&other, BackendSettings::default()).unwrap();
                })
                .unwrap();
            let named = waits.join().unwrap().unwrap();
            assert_eq!(named.as_bytes(), path.as_os_str().as_bytes());
        });
    }
}
