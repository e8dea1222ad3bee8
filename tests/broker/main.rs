//! What wakes a broker's caller, and what is done for several backends, over real sockets.

mod shared;

use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use handoff::backend::{Backend, BackendOptions};
use handoff::broker::{BackendSettings, Broker, BrokerError, BrokerOptions, Offer};
use handoff::reason::Reason;
use tempfile::TempDir;

/// How long a test waits for something that must happen. Only a fault takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

fn until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "it never came to that");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Offers a connection, whose socket the test keeps until the verdict.
fn place(broker: &mut Broker, offer: &Offer<'_>) -> Result<u64, BrokerError> {
    // SAFETY: see above.
    unsafe { broker.offer(offer) }
}

/// Whether the descriptor becomes readable within a time.
fn is_readable(broker: &mut Broker, within: Duration) -> bool {
    let fd = broker.descriptor().unwrap().as_raw_fd();
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one pollfd, which outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, within.as_millis() as libc::c_int) > 0 }
}

/// Has the broker work for so long that what an offer in flight wakes it for is far away: the longer it
/// is in flight, the later its word is looked at.
fn work_until_looks_are_rare(broker: &mut Broker) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1700) {
        broker.dispatch().unwrap();
        is_readable(broker, Duration::from_millis(20));
    }
}

/// A broker with a backend, which has room.
fn pair(options: BrokerOptions) -> (TempDir, PathBuf, Backend, Broker) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("handoff.sock");
    let mut backend = Backend::listen(&path, BackendOptions::default()).unwrap();
    let mut broker = Broker::new(&path, options).unwrap();
    until(|| {
        broker.dispatch().unwrap();
        backend.dispatch().unwrap();
        broker.room().unwrap() > 0
    });
    (directory, path, backend, broker)
}

#[test]
fn last_offer_of_a_removed_backend_that_is_taken_back_lets_it_go_at_once() {
    let options = BrokerOptions { timeout: PATIENCE, ..BrokerOptions::default() };
    let (_directory, path, mut backend, mut broker) = pair(options);
    let (client, _peer) = UnixStream::pair().unwrap();
    let id = place(&mut broker, &Offer::new(client.as_fd())).unwrap();
    backend.dispatch().unwrap();
    assert!(backend.next_arrival().is_some());
    broker.remove(&path).unwrap();
    work_until_looks_are_rare(&mut broker);
    broker.take_back(id).unwrap();
    assert!(is_readable(&mut broker, Duration::from_millis(200)), "nobody is told");
    broker.dispatch().unwrap();
    assert!(broker.backend_state(0).is_none());
}

#[test]
fn wait_ends_at_once_if_the_next_attempt_to_connect_is_too_late_for_it() {
    let pause = Duration::from_secs(20);
    let options =
        BrokerOptions { reconnect_min: pause, reconnect_max: pause, ..BrokerOptions::default() };
    let (_directory, _path, backend, mut broker) = pair(options);
    drop(backend);
    let (client, _peer) = UnixStream::pair().unwrap();
    let offer = Offer { timeout: Some(pause / 2), ..Offer::new(client.as_fd()) };
    let start = Instant::now();
    let refused = broker.offer_and_wait(&offer).unwrap_err();
    assert!(matches!(refused, BrokerError::Unavailable { .. }), "{refused}");
    assert!(start.elapsed() < pause / 4);
}

#[test]
fn room_is_no_more_than_the_queue_has_bytes_for() {
    const MANY: usize = 4096;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("handoff.sock");
    let options = BackendOptions { max_in_flight: MANY, ..BackendOptions::default() };
    let mut backend = Backend::listen(&path, options).unwrap();
    let options = BrokerOptions { max_in_flight: MANY, ..BrokerOptions::default() };
    let mut broker = Broker::new(&path, options).unwrap();
    until(|| {
        broker.dispatch().unwrap();
        backend.dispatch().unwrap();
        broker.room().unwrap() >= MANY
    });
    let (client, _peer) = UnixStream::pair().unwrap();
    let preread = [IoSlice::new(&[0; 4000])];
    let long = Offer { preread: &preread, ..Offer::new(client.as_fd()) };
    while place(&mut broker, &long).is_ok() {}
    let room = broker.room().unwrap();
    let taken = (0..MANY).take_while(|_| place(&mut broker, &Offer::new(client.as_fd())).is_ok());
    assert_eq!(taken.count(), room);
}

#[test]
fn caller_whose_offer_was_taken_wants_no_room() {
    let options = BrokerOptions { max_in_flight: 2, timeout: PATIENCE, ..BrokerOptions::default() };
    // It has asked for room in vain.
    let (_directory, _path, mut backend, mut broker) = pair(options);
    let (client, _peer) = UnixStream::pair().unwrap();
    let id = place(&mut broker, &Offer::new(client.as_fd())).unwrap();
    backend.dispatch().unwrap();
    assert!(backend.next_arrival().is_some());
    while is_readable(&mut broker, Duration::ZERO) {
        broker.dispatch().unwrap();
    }
    broker.take_back(id).unwrap();
    assert!(!is_readable(&mut broker, Duration::ZERO));
}

#[test]
fn backend_that_is_removed_by_name_stays_so_however_much_there_is_to_tell() {
    for others in [0, 10, 1000] {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("worker.sock");
        let first = UnixListener::bind(&path).unwrap();
        let mut broker = Broker::without_backends(BrokerOptions::default()).unwrap();
        broker.add(&directory.path().join(""), BackendSettings::default()).unwrap();
        broker.dispatch().unwrap();
        assert!(broker.backend_state(0).is_some());
        for number in 0..others {
            fs::write(directory.path().join(format!(".{number}")), "").unwrap();
        }
        // Another socket at the same path.
        fs::remove_file(&path).unwrap();
        drop(first);
        let _second = UnixListener::bind(&path).unwrap();
        assert!(broker.remove(&path).unwrap());
        for _ in 0..20 {
            broker.dispatch().unwrap();
            is_readable(&mut broker, Duration::from_millis(5));
        }
        assert!(broker.backend_state(0).is_none(), "with {others} others");
    }
}

/// Offers that two backends may have, of which one is full and stopped, and the other rejects them.
fn offers_wait_for_a_backend_that(ends: impl Fn(&mut Broker, &Path)) {
    const MANY: usize = 200;
    let directory = TempDir::new().unwrap();
    let [busy, full] = ["busy", "full"].map(|name| directory.path().join(name));
    let listen = |path: &Path| Backend::listen(path, BackendOptions::default()).unwrap();
    let (mut rejects, mut stopped) = (listen(&busy), listen(&full));
    let mut broker = Broker::without_backends(BrokerOptions {
        timeout: PATIENCE,
        attempt_timeout: Some(PATIENCE),
        ..BrokerOptions::default()
    })
    .unwrap();
    let (client, _peer) = UnixStream::pair().unwrap();
    let offer = Offer::new(client.as_fd());
    broker.add(&full, BackendSettings { max_in_flight: Some(1), ..Default::default() }).unwrap();
    until(|| {
        broker.dispatch().unwrap();
        stopped.dispatch().unwrap();
        broker.room().unwrap() == 1
    });
    // Its only place is taken for as long as it does not answer.
    let id = place(&mut broker, &offer).unwrap();
    broker.flush().unwrap();
    broker.take_back(id).unwrap();
    broker.add(&busy, BackendSettings::default()).unwrap();
    until(|| {
        broker.dispatch().unwrap();
        rejects.dispatch().unwrap();
        broker.room().unwrap() >= MANY
    });
    for _ in 0..MANY {
        place(&mut broker, &offer).unwrap();
    }
    until(|| {
        rejects.dispatch().unwrap();
        while let Some(id) = rejects.next_arrival().map(|arrival| arrival.id) {
            rejects.reject(id, Reason::BackendBusy).unwrap();
        }
        broker.dispatch().unwrap();
        broker.room().unwrap() == 256
    });
    // While another has room, the broker looks again and again at so many that wait.
    broker.add(&busy, BackendSettings { off: true, ..BackendSettings::default() }).unwrap();
    until(|| {
        broker.dispatch().unwrap();
        !is_readable(&mut broker, Duration::from_millis(20))
    });
    assert_eq!((broker.next_verdict(), broker.statistics().in_flight), (None, MANY));
    ends(&mut broker, &full);
    let start = Instant::now();
    let mut verdicts = 0;
    while verdicts < MANY && start.elapsed() < PATIENCE / 4 {
        if is_readable(&mut broker, Duration::from_millis(20)) {
            broker.dispatch().unwrap();
        }
        while let Some(verdict) = broker.next_verdict() {
            assert_eq!(verdict.reason, Some(Reason::BackendBusy));
            verdicts += 1;
        }
    }
    assert_eq!(verdicts, MANY);
}

#[test]
fn offers_that_wait_for_a_backend_end_when_it_is_removed() {
    offers_wait_for_a_backend_that(|broker, path| assert!(broker.remove(path).unwrap()));
}

#[test]
fn offers_that_wait_for_a_backend_end_when_it_is_switched_off() {
    offers_wait_for_a_backend_that(|broker, path| {
        broker.add(path, BackendSettings { off: true, ..BackendSettings::default() }).unwrap();
    });
}

#[test]
fn place_of_a_broker_that_has_gone_is_free_for_another_at_once() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("handoff.sock");
    let options = BackendOptions { max_channels: 1, ..BackendOptions::default() };
    let mut backend = Backend::listen(&path, options).unwrap();
    for number in 1..=4 {
        let mut broker = Broker::new(&path, BrokerOptions::default()).unwrap();
        broker.dispatch().unwrap();
        // The end of the one before, and this one.
        backend.dispatch().unwrap();
        broker.dispatch().unwrap();
        assert!(broker.room().unwrap() > 0, "the broker {number} is turned away");
    }
    let statistics = backend.statistics();
    assert_eq!((statistics.accepted, statistics.refused_over_limit), (4, 0));
}

#[test]
fn wrong_argument_is_refused_while_a_backend_connects() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("handoff.sock");
    let _silent = Backend::listen(&path, BackendOptions::default()).unwrap();
    let mut broker = Broker::new(&path, BrokerOptions::default()).unwrap();
    let file = tempfile::tempfile().unwrap();
    let offer = Offer { timeout: Some(PATIENCE), ..Offer::new(file.as_fd()) };
    let start = Instant::now();
    let refused = broker.offer_and_wait(&offer).unwrap_err();
    assert!(matches!(refused, BrokerError::NotASocket { .. }), "{refused}");
    // Sooner than the silence of the backend ends.
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[test]
fn backend_that_was_silent_is_not_waited_for_again() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("handoff.sock");
    let _silent = Backend::listen(&path, BackendOptions::default()).unwrap();
    let mut broker = Broker::new(&path, BrokerOptions::default()).unwrap();
    let (client, _peer) = UnixStream::pair().unwrap();
    let offer = Offer { timeout: Some(PATIENCE), ..Offer::new(client.as_fd()) };
    let refused = broker.offer_and_wait(&offer).unwrap_err();
    assert!(matches!(refused, BrokerError::NoWelcome { .. }), "{refused}");
    // While it is tried again.
    let start = Instant::now();
    for _ in 0..100 {
        let refused = broker.offer_and_wait(&offer).unwrap_err();
        assert!(matches!(refused, BrokerError::NoWelcome { .. }), "{refused}");
        thread::sleep(Duration::from_millis(1));
    }
    assert!(start.elapsed() < Duration::from_secs(4));
}

/// Many offers wait for a backend that is full, and behind them one that another may have.
#[test]
fn offer_that_may_go_on_goes_though_many_before_it_wait() {
    const MANY: usize = 640;
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    let listen = |name| {
        let options = BackendOptions { max_in_flight: 2 * MANY, ..BackendOptions::default() };
        Backend::listen(&path(name), options).unwrap()
    };
    let (mut first, mut second, mut full) = (listen("first"), listen("second"), listen("full"));
    let mut broker = Broker::without_backends(BrokerOptions {
        max_in_flight: 2 * MANY,
        timeout: PATIENCE,
        attempt_timeout: Some(PATIENCE),
        max_failures: None,
        ..BrokerOptions::default()
    })
    .unwrap();
    let (client, _peer) = UnixStream::pair().unwrap();
    let offer = Offer::new(client.as_fd());
    let with_room = |backup, most| BackendSettings {
        backup,
        max_in_flight: Some(most),
        ..BackendSettings::default()
    };
    macro_rules! until_all {
        ($done:expr) => {
            until(|| {
                broker.dispatch().unwrap();
                first.dispatch().unwrap();
                second.dispatch().unwrap();
                full.dispatch().unwrap();
                $done
            })
        };
    }
    macro_rules! offer {
        ($count:expr, $to:expr) => {
            let held = $to.statistics().held + $count;
            for _ in 0..$count {
                place(&mut broker, &offer).unwrap();
            }
            until_all!($to.statistics().held == held);
        };
    }
    let reject_all = |backend: &mut Backend| {
        while let Some(id) = backend.next_arrival().map(|arrival| arrival.id) {
            backend.reject(id, Reason::BackendBusy).unwrap();
        }
    };
    broker.add(&path("full"), with_room(false, 1)).unwrap();
    until_all!(broker.room().unwrap() == 1);
    offer!(1, full);
    broker.add(&path("first"), with_room(false, 1000)).unwrap();
    until_all!(broker.room().unwrap() == 1000);
    // These were at both others, and wait.
    broker.add(&path("second"), with_room(true, MANY)).unwrap();
    until_all!(broker.room().unwrap() == 1000 + MANY);
    offer!(MANY, first);
    reject_all(&mut first);
    until_all!(second.statistics().held == MANY);
    reject_all(&mut second);
    until_all!(broker.room().unwrap() == 1000 + MANY);
    // The second has no room for the one that was at the first.
    broker.add(&path("second"), with_room(false, MANY)).unwrap();
    broker.add(&path("first"), with_room(true, 1000)).unwrap();
    offer!(MANY, second);
    offer!(1, first);
    reject_all(&mut first);
    until_all!(broker.room().unwrap() == 1000);
    // The longer nothing is sent, the more seldom the broker looks by itself.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        if is_readable(&mut broker, Duration::from_millis(20)) {
            broker.dispatch().unwrap();
        }
    }
    let id = second.next_arrival().unwrap().id;
    drop(second.adopt(id).unwrap());
    let (start, before) = (Instant::now(), second.statistics().arrived);
    until(|| {
        if is_readable(&mut broker, Duration::from_millis(1)) {
            broker.dispatch().unwrap();
            while broker.next_verdict().is_some() {}
        }
        second.dispatch().unwrap();
        second.statistics().arrived > before
    });
    assert!(start.elapsed() < Duration::from_secs(2), "only after {:?}", start.elapsed());
}

#[test]
fn removed_backend_that_ends_is_forgotten_at_once() {
    let options = BrokerOptions { timeout: PATIENCE, ..BrokerOptions::default() };
    let (_directory, path, backend, mut broker) = pair(options);
    let (client, _peer) = UnixStream::pair().unwrap();
    place(&mut broker, &Offer::new(client.as_fd())).unwrap();
    broker.remove(&path).unwrap();
    assert!(broker.backend_state(0).is_some());
    drop(backend);
    until(|| {
        broker.dispatch().unwrap();
        broker.next_verdict().is_some()
    });
    assert!(broker.backend_state(0).is_none());
}

#[test]
fn descriptor_tells_of_room_that_taking_the_only_verdict_makes() {
    let options = BrokerOptions { max_in_flight: 1, timeout: PATIENCE, ..BrokerOptions::default() };
    let (_directory, _path, mut backend, mut broker) = pair(options);
    let (client, _peer) = UnixStream::pair().unwrap();
    let offer = Offer::new(client.as_fd());
    place(&mut broker, &offer).unwrap();
    work_until_looks_are_rare(&mut broker);
    backend.dispatch().unwrap();
    let id = backend.next_arrival().unwrap().id;
    backend.reject(id, Reason::Rejected).unwrap();
    assert!(backend.next_arrival().is_none());
    until(|| {
        broker.dispatch().unwrap();
        broker.statistics().in_flight == 0
    });
    assert!(matches!(place(&mut broker, &offer), Err(BrokerError::Full { .. })));
    assert!(broker.next_verdict().is_some());
    assert!(is_readable(&mut broker, Duration::from_millis(200)), "nobody is told");
}

/// A broker whose backend rests, and an offer that was refused therefore.
fn resting(client: &UnixStream) -> (TempDir, Backend, Broker) {
    let options = BrokerOptions { max_failures: Some(1), ..BrokerOptions::default() };
    let (directory, _path, backend, mut broker) = pair(options);
    let timeout = Some(Duration::from_millis(10));
    let offer = Offer { timeout, ..Offer::new(client.as_fd()) };
    assert_eq!(broker.offer_and_wait(&offer).unwrap().reason, Some(Reason::AckTimeout));
    assert!(matches!(place(&mut broker, &offer), Err(BrokerError::RateLimited { .. })));
    (directory, backend, broker)
}

#[test]
fn descriptor_tells_of_the_trial_after_one_that_somebody_else_made() {
    let (client, _peer) = UnixStream::pair().unwrap();
    let (_directory, _backend, mut broker) = resting(&client);
    let offer = Offer { timeout: Some(Duration::from_millis(10)), ..Offer::new(client.as_fd()) };
    until(|| broker.room().unwrap() > 0);
    broker.offer_and_wait(&offer).unwrap();
    let start = Instant::now();
    while broker.backend_state(0).unwrap().room == 0 {
        assert!(is_readable(&mut broker, PATIENCE / 2), "nobody is told");
        broker.dispatch().unwrap();
        assert!(start.elapsed() < PATIENCE);
    }
}
