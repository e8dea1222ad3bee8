//! Both ends of a channel through the Rust API, over real sockets, in one process.

use std::io::{IoSlice, Read, Write};
use std::iter;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use handoff::backend::{Backend, BackendError, BackendOptions, Kinds};
use handoff::broker::{BackendSettings, Broker, BrokerError, BrokerOptions, Offer, Verdict};
use handoff::reason::Reason;
use tempfile::TempDir;

/// How long a test waits for something that must happen. Only a fault takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory, a backend and a broker whose channel is up.
struct Pair {
    _directory: TempDir,
    path: PathBuf,
    backend: Backend,
    broker: Broker,
}

fn pair(broker: BrokerOptions, backend: BackendOptions) -> Pair {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("handoff.sock");
    let backend = Backend::listen(&path, backend).unwrap();
    let broker = Broker::new(&path, broker).unwrap();
    let mut pair = Pair { _directory: directory, path, backend, broker };
    pair.until(|pair| pair.broker.statistics().connects == 1);
    pair
}

impl Pair {
    /// Dispatches both ends until something is so.
    fn until(&mut self, mut done: impl FnMut(&mut Pair) -> bool) {
        let start = Instant::now();
        loop {
            self.broker.dispatch().unwrap();
            self.backend.dispatch().unwrap();
            if done(self) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "it never came to that");
            std::thread::yield_now();
        }
    }

    /// All that are there.
    fn arrivals(&mut self) -> Vec<u64> {
        let mut all = Vec::new();
        loop {
            self.backend.dispatch().unwrap();
            let before = all.len();
            while let Some(arrival) = self.backend.next_arrival() {
                all.push(arrival.id);
            }
            if all.len() == before {
                return all;
            }
        }
    }

    fn verdict(&mut self) -> Verdict {
        let start = Instant::now();
        loop {
            self.broker.dispatch().unwrap();
            if let Some(verdict) = self.broker.next_verdict() {
                return verdict;
            }
            self.backend.dispatch().unwrap();
            assert!(start.elapsed() < PATIENCE, "no verdict");
        }
    }

    fn arrival(&mut self) -> u64 {
        let start = Instant::now();
        loop {
            self.backend.dispatch().unwrap();
            if let Some(arrival) = self.backend.next_arrival() {
                return arrival.id;
            }
            self.broker.dispatch().unwrap();
            assert!(start.elapsed() < PATIENCE, "no arrival");
        }
    }
}

/// Waits as an event loop does.
fn wait_readable(descriptor: BorrowedFd<'_>) {
    let mut poll = libc::pollfd { fd: descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one pollfd, which outlives the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as libc::c_int) };
    assert_eq!(ready, 1, "the descriptor is not readable");
}

fn client() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// In two parts, as of a broker with two buffers.
static PREREAD: LazyLock<[IoSlice<'static>; 2]> =
    LazyLock::new(|| [b"GET / ".as_slice(), b"HTTP/1.1\r\n"].map(IoSlice::new));

fn offer(connection: &TcpStream, user_data: usize) -> Offer<'_> {
    Offer {
        descriptor: connection.as_fd(),
        preread: &*PREREAD,
        metadata: b"anything",
        service: b"web",
        correlation: b"request-1",
        user_data,
        timeout: None,
        tls: false,
        more: false,
    }
}

/// Offers a connection, whose socket the test keeps until the verdict.
fn place(broker: &mut Broker, offer: &Offer<'_>) -> Result<u64, BrokerError> {
    // SAFETY: see above.
    unsafe { broker.offer(offer) }
}

#[test]
fn adopted_connection_is_answered_by_the_backend_on_the_clients_own_socket() {
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (mut client, accepted) = client();
    let id = place(&mut pair.broker, &offer(&accepted, 7)).unwrap();
    let arrival = pair.arrival();
    let adopted = pair.backend.adopt(arrival).unwrap();
    let verdict = pair.verdict();
    assert_eq!((verdict.id, verdict.user_data), (id, 7));
    assert!(verdict.adopted && verdict.reason.is_none());
    drop(accepted);
    TcpStream::from(adopted).write_all(b"hello").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
}

#[test]
fn arrival_brings_everything_that_the_broker_said() {
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (_client, accepted) = client();
    place(&mut pair.broker, &offer(&accepted, 0)).unwrap();
    pair.until(|pair| pair.backend.statistics().held == 1);
    let arrival = pair.backend.next_arrival().unwrap();
    assert_eq!(arrival.preread, b"GET / HTTP/1.1\r\n");
    assert_eq!(arrival.metadata, b"anything");
    assert_eq!((arrival.service, arrival.correlation), (&b"web"[..], &b"request-1"[..]));
    assert_eq!(arrival.broker.process, std::process::id() as i32);
}

#[test]
fn rejected_connection_stays_the_brokers_with_the_backends_reason() {
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (mut client, mut accepted) = client();
    place(&mut pair.broker, &offer(&accepted, 7)).unwrap();
    let arrival = pair.arrival();
    pair.backend.reject(arrival, Reason::PolicyDisabled).unwrap();
    let verdict = pair.verdict();
    assert!(!verdict.adopted);
    assert_eq!(verdict.reason, Some(Reason::PolicyDisabled));
    accepted.write_all(b"ours").unwrap();
    drop(accepted);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "ours");
}

#[test]
fn arrival_that_was_taken_back_at_the_deadline_cannot_be_adopted() {
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (_client, accepted) = client();
    let timeout = Some(Duration::from_millis(20));
    place(&mut pair.broker, &Offer { timeout, ..offer(&accepted, 7) }).unwrap();
    let arrival = pair.arrival();
    let verdict = pair.verdict();
    assert_eq!((verdict.adopted, verdict.reason), (false, Some(Reason::AckTimeout)));
    assert!(matches!(pair.backend.adopt(arrival), Err(BackendError::TakenBack { .. })));
    // The slot goes round: the next offer goes through.
    pair.until(|pair| pair.backend.statistics().held == 0);
    place(&mut pair.broker, &offer(&accepted, 8)).unwrap();
    let arrival = pair.arrival();
    pair.backend.adopt(arrival).unwrap();
    assert!(pair.verdict().adopted);
}

#[test]
fn offers_beyond_the_limit_are_refused_and_go_through_when_there_is_room() {
    let most = 4;
    let options = BrokerOptions { max_in_flight: most, ..Default::default() };
    let mut pair = pair(options, BackendOptions::default());
    let (_client, accepted) = client();
    for round in 0..100 {
        for user_data in 0..most {
            place(&mut pair.broker, &offer(&accepted, user_data)).unwrap();
        }
        let refused = place(&mut pair.broker, &offer(&accepted, 99));
        assert!(matches!(refused, Err(BrokerError::Full { .. })), "round {round}");
        for _ in 0..most {
            let arrival = pair.arrival();
            pair.backend.adopt(arrival).unwrap();
        }
        assert!(pair.backend.next_arrival().is_none());
        let mut seen: Vec<_> = (0..most).map(|_| pair.verdict().user_data).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..most).collect::<Vec<_>>());
    }
}

/// Large ones are sent from the caller's memory, if the socket takes them and they have few parts.
#[test]
fn long_prereads_arrive_whole_and_in_order() {
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (_client, accepted) = client();
    let bytes: Vec<u8> = (0..60_000u32).map(|at| ((at * 31) >> 3) as u8).collect();
    let preread = |number: usize| &bytes[number..][..[50_000, 100, 32_768, 32_767][number % 4]];
    let (all, mut seen) = (120, 0);
    for number in 0..all {
        let parts = preread(number).chunks(preread(number).len().div_ceil(number % 9 + 1));
        let parts: Vec<_> = parts.map(IoSlice::new).collect();
        let offer = offer(&accepted, number);
        let offer = Offer { preread: &parts, metadata: b"meta", more: number % 5 == 0, ..offer };
        place(&mut pair.broker, &offer).unwrap();
        // So that more than the socket takes wait.
        if number % 10 == 9 {
            pair.broker.flush().unwrap();
            pair.until(|pair| {
                while let Some(arrival) = pair.backend.next_arrival() {
                    assert_eq!((arrival.metadata, arrival.preread), (&b"meta"[..], preread(seen)));
                    let id = arrival.id;
                    drop(pair.backend.adopt(id).unwrap());
                    seen += 1;
                }
                seen == number + 1
            });
        }
    }
    assert_eq!(seen, all);
}

#[test]
fn large_part_of_what_may_be_in_flight_is_sent_before_more_offers_come() {
    let all = 64;
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (_client, accepted) = client();
    let offer = Offer { more: true, ..offer(&accepted, 0) };
    // At first nobody knows how many there will be.
    for _ in 0..all {
        place(&mut pair.broker, &offer).unwrap();
    }
    assert_eq!(pair.arrivals().len(), 0);
    pair.broker.flush().unwrap();
    let arrivals = pair.arrivals();
    assert_eq!(arrivals.len(), all);
    for id in arrivals {
        pair.backend.adopt(id).unwrap();
    }
    pair.until(|pair| pair.broker.statistics().in_flight == 0);
    while pair.broker.next_verdict().is_some() {}
    for _ in 0..all - 1 {
        place(&mut pair.broker, &offer).unwrap();
    }
    let early = pair.arrivals().len();
    assert!((all / 4..all).contains(&early), "{early}");
    pair.broker.flush().unwrap();
    assert_eq!(early + pair.arrivals().len(), all - 1);
}

#[test]
fn one_or_two_offers_wait_for_the_flush_however_soon_they_are_answered() {
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (_client, accepted) = client();
    for all in [1, 2].repeat(50) {
        for id in 0..all {
            place(&mut pair.broker, &Offer { more: true, ..offer(&accepted, id) }).unwrap();
        }
        assert_eq!(pair.arrivals().len(), 0);
        pair.broker.flush().unwrap();
        for id in pair.arrivals() {
            pair.backend.adopt(id).unwrap();
        }
        pair.until(|pair| pair.broker.statistics().in_flight == 0);
        while pair.broker.next_verdict().is_some() {}
    }
}

#[test]
fn offer_that_was_taken_back_has_no_verdict_and_cannot_be_adopted() {
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (_client, accepted) = client();
    let id = place(&mut pair.broker, &offer(&accepted, 7)).unwrap();
    let arrival = pair.arrival();
    pair.broker.take_back(id).unwrap();
    assert!(matches!(pair.broker.take_back(id), Err(BrokerError::TooLate { .. })));
    assert!(matches!(pair.backend.adopt(arrival), Err(BackendError::TakenBack { .. })));
    pair.until(|pair| pair.broker.statistics().in_flight == 0);
    assert_eq!(pair.broker.next_verdict(), None);
}

#[test]
fn name_with_a_nul_is_not_offered() {
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (_client, accepted) = client();
    let good = offer(&accepted, 0);
    for name in [&b"\0"[..], b"we\0b", b"web\0"] {
        for bad in [Offer { service: name, ..good }, Offer { correlation: name, ..good }] {
            assert!(matches!(place(&mut pair.broker, &bad), Err(BrokerError::NameWithNul)));
        }
    }
    place(&mut pair.broker, &Offer { metadata: b"\0", ..good }).unwrap();
}

#[test]
fn what_is_in_flight_when_the_backend_goes_is_a_fallback_or_was_adopted() {
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (_client, accepted) = client();
    for user_data in 0..3 {
        place(&mut pair.broker, &offer(&accepted, user_data)).unwrap();
    }
    pair.until(|pair| pair.backend.statistics().held == 3);
    let first = pair.backend.next_arrival().unwrap().id;
    let _adopted = pair.backend.adopt(first).unwrap();
    let path = pair.path.clone();
    let Pair { backend, mut broker, _directory, .. } = pair;
    // The verdict that waits for the end of the batch is sent.
    drop(backend);
    let mut verdicts = Vec::new();
    while verdicts.len() < 3 {
        broker.dispatch().unwrap();
        verdicts.extend(std::iter::from_fn(|| broker.next_verdict()));
    }
    verdicts.sort_by_key(|verdict| verdict.user_data);
    let outcomes: Vec<_> = verdicts.iter().map(|v| (v.adopted, v.reason)).collect();
    let gone = (false, Some(Reason::BackendUnavailable));
    assert_eq!(outcomes, [(true, None), gone, gone]);
    assert!(matches!(
        place(&mut broker, &offer(&accepted, 4)),
        Err(BrokerError::Unavailable { .. })
    ));
    // A successor is found without being told.
    let backend = Backend::listen(&path, BackendOptions::default()).unwrap();
    let mut pair = Pair { _directory, path, backend, broker };
    pair.until(|pair| pair.broker.statistics().connects == 2);
}

#[test]
fn what_had_arrived_can_be_adopted_when_the_broker_is_gone() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("handoff.sock");
    let mut backend = Backend::listen(&path, BackendOptions::default()).unwrap();
    let (mut client, accepted) = client();
    // A broker that is killed revokes nothing: only its descriptors go.
    let child = unsafe_fork::fork(|| {
        let mut broker = Broker::new(&path, BrokerOptions::default()).unwrap();
        while place(&mut broker, &offer(&accepted, 0)).is_err() {
            broker.dispatch().unwrap();
        }
        loop {
            std::thread::park();
        }
    });
    drop(accepted);
    let start = Instant::now();
    while backend.statistics().held == 0 {
        backend.dispatch().unwrap();
        assert!(start.elapsed() < PATIENCE);
    }
    child.kill();
    let (adopted, arrival) = backend.accept(Some(PATIENCE)).unwrap();
    assert_eq!(arrival.service, b"web");
    TcpStream::from(adopted).write_all(b"hello").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
}

#[test]
fn offer_that_a_broker_sent_before_it_died_arrives_after_a_verdict_that_cannot_be_sent() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("handoff.sock");
    let mut backend = Backend::listen(&path, BackendOptions::default()).unwrap();
    let (_first_client, first) = client();
    let (_second_client, second) = client();
    let (mut told, mut tell) = UnixStream::pair().unwrap();
    let child = unsafe_fork::fork(|| {
        let mut broker = Broker::new(&path, BrokerOptions::default()).unwrap();
        while place(&mut broker, &offer(&first, 1)).is_err() {
            broker.dispatch().unwrap();
        }
        let mut go = [0];
        tell.read_exact(&mut go).unwrap();
        place(&mut broker, &offer(&second, 2)).unwrap();
        tell.write_all(&go).unwrap();
        loop {
            std::thread::park();
        }
    });
    let start = Instant::now();
    let arrival = loop {
        backend.dispatch().unwrap();
        if let Some(arrival) = backend.next_arrival() {
            break arrival.id;
        }
        assert!(start.elapsed() < PATIENCE, "no arrival");
    };
    told.write_all(&[0]).unwrap();
    told.read_exact(&mut [0]).unwrap();
    child.kill();
    backend.adopt(arrival).unwrap();
    backend.accept(Some(PATIENCE)).unwrap();
    // After the last one the channel ends.
    assert!(matches!(backend.accept(Some(Duration::ZERO)), Err(BackendError::TimedOut)));
    assert_eq!(backend.statistics().channels, 0);
}

#[test]
fn closing_tells_what_became_of_everything() {
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (_client, accepted) = client();
    for user_data in 0..2 {
        place(&mut pair.broker, &offer(&accepted, user_data)).unwrap();
    }
    let arrival = pair.arrival();
    let _adopted = pair.backend.adopt(arrival).unwrap();
    pair.broker.close().unwrap();
    let mut verdicts: Vec<_> = std::iter::from_fn(|| pair.broker.next_verdict()).collect();
    verdicts.sort_by_key(|verdict| verdict.user_data);
    assert!(verdicts[0].adopted);
    assert_eq!((verdicts[1].adopted, verdicts[1].reason), (false, Some(Reason::BrokerClosed)));
    assert_eq!(verdicts.len(), 2);
    assert!(matches!(
        place(&mut pair.broker, &offer(&accepted, 3)),
        Err(BrokerError::Closed { .. })
    ));
}

#[test]
fn options_that_contradict_each_other_are_refused_with_both_values() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("handoff.sock");
    let options = BrokerOptions { reconnect_min: Duration::from_secs(5), ..Default::default() };
    let refused = Broker::new(&path, options).unwrap_err();
    assert!(matches!(refused, BrokerError::InvalidOptions { .. }));
    let sentence = refused.to_string();
    assert!(sentence.contains("reconnect_min_ms (5000) is more than reconnect_max_ms (1000)"));
    let options = BackendOptions { max_held_bytes: 1000, ..Default::default() };
    let refused = Backend::listen(&path, options).unwrap_err();
    assert!(matches!(refused, BackendError::InvalidOptions { .. }));
    let sentence = refused.to_string();
    assert!(sentence.contains("max_offer_bytes (65536)"), "{sentence}");
    assert!(sentence.contains("max_held_bytes (1000)"), "{sentence}");
    let kinds = Kinds { stream: false, seqpacket: false, datagram: false, unconnected: true };
    let refused = Backend::listen(&path, BackendOptions { kinds, ..Default::default() });
    assert!(matches!(refused, Err(BackendError::InvalidOptions { .. })));
    assert!(!path.exists());
}

#[test]
fn broker_without_a_limit_of_failures_never_refuses_for_them() {
    for (max_failures, refused) in [(Some(1), true), (None, false)] {
        let options = BrokerOptions { max_failures, ..Default::default() };
        let mut pair = pair(options, BackendOptions::default());
        let (_client, accepted) = client();
        let timeout = Some(Duration::from_millis(1));
        place(&mut pair.broker, &Offer { timeout, ..offer(&accepted, 1) }).unwrap();
        assert_eq!(pair.verdict().reason, Some(Reason::AckTimeout));
        let second = place(&mut pair.broker, &offer(&accepted, 2));
        assert_eq!(matches!(second, Err(BrokerError::RateLimited { .. })), refused);
        assert_eq!(second.is_err(), refused);
    }
}

#[test]
fn broker_that_was_never_used_is_closed_once() {
    let path = std::path::Path::new("/nowhere");
    let mut broker = Broker::new(path, BrokerOptions::default()).unwrap();
    broker.close().unwrap();
    assert!(matches!(broker.close(), Err(BrokerError::Closed { .. })));
}

#[test]
fn broker_hears_of_a_large_batch_before_all_of_it_is_adopted() {
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (_client, accepted) = client();
    for user_data in 0..200 {
        place(&mut pair.broker, &Offer { more: true, ..offer(&accepted, user_data) }).unwrap();
    }
    pair.until(|pair| pair.backend.statistics().held == 200);
    for _ in 0..100 {
        let arrival = pair.backend.next_arrival().unwrap().id;
        pair.backend.adopt(arrival).unwrap();
    }
    pair.broker.dispatch().unwrap();
    assert!(pair.broker.next_verdict().is_some_and(|verdict| verdict.adopted));
    assert_eq!(pair.backend.statistics().held, 100);
}

#[test]
fn broker_hears_of_the_last_of_a_batch_when_the_backend_goes_on() {
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let clients = [client(), client()];
    let all = BrokerOptions::default().max_in_flight;
    // If a tick of the clock comes between, it hears of it at once.
    let later = (0..1000).any(|_| {
        for (number, (_, accepted)) in clients.iter().enumerate() {
            place(&mut pair.broker, &offer(accepted, number)).unwrap();
        }
        let first = pair.arrival();
        let _first = pair.backend.adopt(first).unwrap();
        let second = pair.backend.next_arrival().unwrap().id;
        let _second = pair.backend.adopt(second).unwrap();
        let mut told = Vec::new();
        let mut hear = |broker: &mut Broker| {
            broker.dispatch().unwrap();
            told.extend(iter::from_fn(|| broker.next_verdict()).map(|verdict| verdict.user_data));
            told.len()
        };
        let at_once = hear(&mut pair.broker);
        assert!(pair.backend.next_arrival().is_none());
        assert_eq!((hear(&mut pair.broker), told), (2, vec![0, 1]));
        assert_eq!(pair.broker.room().unwrap(), all);
        at_once == 1
    });
    assert!(later);
}

#[test]
fn broker_that_only_waits_hears_of_an_adoption_that_the_backend_has_not_told_of() {
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (held, adopted) = (client(), client());
    // The first one is held, so its word hides that of the other from a dispatch.
    place(&mut pair.broker, &offer(&held.1, 0)).unwrap();
    place(&mut pair.broker, &offer(&adopted.1, 1)).unwrap();
    let third = client();
    place(&mut pair.broker, &offer(&third.1, 2)).unwrap();
    pair.arrival();
    let second = pair.backend.next_arrival().unwrap().id;
    // The third one waits, and so does the verdict: the backend is busy from here on.
    let connection = pair.backend.adopt(second).unwrap();
    let start = Instant::now();
    let verdict = loop {
        wait_readable(pair.broker.descriptor().unwrap());
        pair.broker.dispatch().unwrap();
        if let Some(verdict) = pair.broker.next_verdict() {
            break verdict;
        }
        assert!(start.elapsed() < PATIENCE, "no verdict");
    };
    assert!(verdict.adopted && verdict.user_data == 1);
    // So the client sees the end of a connection that is closed without shutdown(2).
    drop((adopted.1, connection));
    let mut end = [0; 1];
    assert_eq!((&adopted.0).read(&mut end).unwrap(), 0);
    // The slot's token comes with the verdict, which is no second one. If the clock ticked before the
    // adoption, that was sent at once.
    let most = BrokerOptions::default().max_in_flight;
    assert!((most - 3..=most - 2).contains(&pair.broker.room().unwrap()));
    while pair.backend.next_arrival().is_some() {}
    pair.broker.dispatch().unwrap();
    assert!(pair.broker.next_verdict().is_none());
    assert_eq!(pair.broker.room().unwrap(), most - 2);
}

#[test]
fn end_behind_the_last_verdict_is_found_by_one_dispatch() {
    let _no_child = unsafe_fork::no_child();
    // With another backend, it is an event that tells of packets.
    for another in [false, true] {
        let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
        if another {
            let nowhere = pair.path.with_file_name("nowhere");
            pair.broker.add(&nowhere, BackendSettings::default()).unwrap();
        }
        let (adopted, unread) = (client(), client());
        place(&mut pair.broker, &offer(&adopted.1, 0)).unwrap();
        let arrival = pair.arrival();
        let _connection = pair.backend.adopt(arrival).unwrap();
        place(&mut pair.broker, &offer(&unread.1, 1)).unwrap();
        // It closes the socket with an offer in it.
        drop(pair.backend);
        pair.broker.dispatch().unwrap();
        let verdicts = [(); 2].map(|()| pair.broker.next_verdict().unwrap());
        assert_eq!(verdicts.map(|verdict| verdict.adopted), [true, false], "{another}");
    }
}

#[test]
fn end_behind_the_last_offer_is_found_by_one_dispatch() {
    let _no_child = unsafe_fork::no_child();
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (first, second) = (client(), client());
    place(&mut pair.broker, &offer(&first.1, 0)).unwrap();
    let arrival = pair.arrival();
    let _connection = pair.backend.adopt(arrival).unwrap();
    place(&mut pair.broker, &offer(&second.1, 1)).unwrap();
    // It closes the socket with a verdict in it.
    drop(pair.broker);
    pair.backend.dispatch().unwrap();
    let statistics = pair.backend.statistics();
    assert_eq!((statistics.arrived, statistics.channels), (2, 0));
}

#[test]
fn waits_that_spin_end_as_those_that_sleep() {
    let spin = Duration::from_millis(5);
    let broker = BrokerOptions { spin, ..BrokerOptions::default() };
    let Pair { mut backend, mut broker, _directory, .. } =
        pair(broker, BackendOptions { spin, ..BackendOptions::default() });
    // Shorter than it spins, and longer.
    for timeout in [1, 20].map(Duration::from_millis) {
        let start = Instant::now();
        assert!(matches!(backend.accept(Some(timeout)), Err(BackendError::TimedOut)));
        assert!(start.elapsed() >= timeout);
    }
    backend.waker().wake();
    assert!(matches!(backend.accept(None), Err(BackendError::Woken)));
    broker.waker().wake();
    let (_client, accepted) = client();
    assert!(matches!(broker.offer_and_wait(&offer(&accepted, 0)), Err(BrokerError::Woken)));
    let backend = std::thread::spawn(move || {
        for pause in [Duration::ZERO, 4 * spin] {
            let (connection, _) = backend.accept(Some(PATIENCE)).unwrap();
            drop(connection);
            std::thread::sleep(pause);
        }
    });
    for _ in 0..2 {
        assert!(broker.offer_and_wait(&offer(&accepted, 0)).unwrap().adopted);
    }
    backend.join().unwrap();
}

#[test]
fn dispatch_spins_while_something_can_come_and_no_longer() {
    let spin = Duration::from_millis(5);
    let broker = || BrokerOptions { spin, ..BrokerOptions::default() };
    let mut pair = pair(broker(), BackendOptions { spin, ..BackendOptions::default() });
    let (_client, accepted) = client();
    let took = |dispatch: &mut dyn FnMut()| {
        let start = Instant::now();
        dispatch();
        start.elapsed()
    };
    // A channel may bring something, and without an offer in flight nothing comes to a broker.
    assert!(took(&mut || pair.backend.dispatch().unwrap()) >= spin);
    let idle = (0..50).map(|_| took(&mut || pair.broker.dispatch().unwrap())).min();
    assert!(idle < Some(spin), "{idle:?}");

    place(&mut pair.broker, &offer(&accepted, 1)).unwrap();
    assert!(took(&mut || pair.broker.dispatch().unwrap()) >= spin);
    let arrival = pair.arrival();
    drop(pair.backend.adopt(arrival).unwrap());
    // What is there ends it, and what was not taken lets it not begin.
    pair.broker.dispatch().unwrap();
    let untaken = (0..50).map(|_| took(&mut || pair.broker.dispatch().unwrap())).min();
    assert!(untaken < Some(spin), "{untaken:?}");
    assert!(pair.broker.next_verdict().unwrap().adopted);
}

#[test]
fn verdict_that_comes_while_dispatch_spins_ends_that() {
    let spin = Duration::from_millis(10);
    let broker = BrokerOptions { spin, ..BrokerOptions::default() };
    // The backend sleeps between two offers: on a processor that both share it goes on at once.
    let Pair { mut broker, mut backend, .. } = pair(broker, BackendOptions::default());
    let (_client, accepted) = client();
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !enough.load(SeqCst) {
                drop(backend.accept(Some(PATIENCE)).unwrap());
            }
        });
        let mut answer = || {
            let offered_at = Instant::now();
            place(&mut broker, &offer(&accepted, 1)).unwrap();
            while broker.next_verdict().is_none() {
                broker.dispatch().unwrap();
            }
            offered_at.elapsed()
        };
        let start = Instant::now();
        let mut took = answer();
        while took >= spin && start.elapsed() < PATIENCE {
            took = answer();
        }
        enough.store(true, SeqCst);
        answer(); // the backend waits for another one
        assert!(took < spin, "{took:?}");
    });
}

#[test]
fn draining_backend_finishes_what_arrived_and_gets_no_more() {
    let mut pair = pair(BrokerOptions::default(), BackendOptions::default());
    let (_client, accepted) = client();
    place(&mut pair.broker, &offer(&accepted, 1)).unwrap();
    let arrival = pair.arrival();
    pair.backend.drain().unwrap();
    pair.backend.adopt(arrival).unwrap();
    assert!(pair.verdict().adopted);
    let refused = place(&mut pair.broker, &offer(&accepted, 2));
    assert!(matches!(refused, Err(BrokerError::Unavailable { .. })), "{refused:?}");
    let path = pair.path.clone();
    let _successor = Backend::listen(&path, BackendOptions::default()).unwrap();
}

/// fork(2) for a test that needs a process to kill.
mod unsafe_fork {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    static CHILDREN: Mutex<()> = Mutex::new(());

    pub struct Child(libc::pid_t, #[allow(dead_code)] MutexGuard<'static, ()>);

    /// Until it is dropped, no child has copies of this process's descriptors, which would keep closed
    /// sockets open.
    pub fn no_child() -> MutexGuard<'static, ()> {
        CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn fork(child: impl FnOnce()) -> Child {
        let only = no_child();
        // SAFETY: the child only runs `child` and does not return into the test.
        match unsafe { libc::fork() } {
            0 => {
                child();
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(0) }
            }
            pid => Child(pid, only),
        }
    }

    impl Child {
        pub fn kill(self) {
            // SAFETY: the child is ours and not waited for yet.
            unsafe {
                libc::kill(self.0, libc::SIGKILL);
                libc::waitpid(self.0, std::ptr::null_mut(), 0);
            }
        }
    }
}
