//! Backends that are added, changed and removed, and directories that are read again.

use std::path::Path;
use std::time::{Duration, Instant};

use handoff::backend::{Backend, BackendOptions};
use handoff::broker::{BackendSettings, Broker, BrokerOptions, Phase};
use handoff::reason::Reason;
use tempfile::TempDir;

use super::*;

#[test]
fn directory_that_is_removed_and_added_again_is_read_again() {
    let mut fleet = fleet(2, BrokerOptions::default());
    let path = directory_path(&fleet);
    assert!(fleet.broker.remove(&path).unwrap());
    fleet.until(|fleet| fleet.broker.backend_state(0).is_none());
    fleet.broker.add(&path, BackendSettings::default()).unwrap();
    run(&mut fleet, Duration::from_secs(3));
    assert_eq!(fleet.ready(), 2);
}

#[test]
fn backend_added_by_its_own_path_stays_when_its_file_goes() {
    let mut fleet = fleet(1, BrokerOptions::default());
    let path = fleet.path("0");
    fleet.broker.add(&path, BackendSettings::default()).unwrap();
    std::fs::remove_file(&path).unwrap();
    run(&mut fleet, Duration::from_millis(200));
    assert_eq!(phases(&mut fleet).len(), 1);
}

#[test]
fn limit_of_a_backend_that_is_too_high_is_clamped() {
    let mut fleet = fleet(0, BrokerOptions::default());
    let backends = tempfile::TempDir::new().unwrap();
    let path = backends.path().join("own");
    fleet.backends.push(Backend::listen(&path, BackendOptions::default()).unwrap());
    let settings = BackendSettings { max_in_flight: Some(5000), ..Default::default() };
    fleet.broker.add(&path, settings).unwrap();
    run(&mut fleet, Duration::from_millis(300));
    assert_eq!(phases(&mut fleet), [Phase::Ready]);
}

#[test]
fn limit_of_a_backend_that_is_far_too_high_is_clamped() {
    let mut fleet = fleet(0, BrokerOptions::default());
    let backends = tempfile::TempDir::new().unwrap();
    let path = backends.path().join("own");
    fleet.backends.push(Backend::listen(&path, BackendOptions::default()).unwrap());
    let settings = BackendSettings { max_in_flight: Some(usize::MAX), ..Default::default() };
    fleet.broker.add(&path, settings).unwrap();
    run(&mut fleet, Duration::from_millis(300));
    assert_eq!(phases(&mut fleet), [Phase::Ready]);
}

#[test]
fn limit_of_failures_that_is_changed_counts_from_the_next_channel_on() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("own");
    let timeout = Duration::from_millis(5);
    let options = BrokerOptions { timeout, ..Default::default() };
    let mut broker = Broker::new(&path, options).unwrap();
    let settings = BackendSettings { max_failures: Some(1), ..Default::default() };
    // Before its first use even.
    broker.add(&path, settings).unwrap();
    let backends = vec![Backend::listen(&path, BackendOptions::default()).unwrap()];
    let mut fleet = Fleet { directory, broker, backends };
    fleet.until(|fleet| fleet.ready() == 1);
    let (_client, connection) = client();
    place(&mut fleet.broker, &offer(&connection)).unwrap();
    fleet.verdict();
    assert_eq!(phases(&mut fleet), [Phase::Resting]);
}

#[test]
fn limit_in_flight_that_is_raised_counts_from_the_next_channel_on() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("own");
    let mut broker = Broker::without_backends(BrokerOptions::default()).unwrap();
    let one = BackendSettings { max_in_flight: Some(1), ..Default::default() };
    broker.add(&path, one).unwrap();
    broker.descriptor().unwrap();
    broker.add(&path, BackendSettings { max_in_flight: Some(100), ..one }).unwrap();
    let backends = vec![Backend::listen(&path, BackendOptions::default()).unwrap()];
    let mut fleet = Fleet { directory, broker, backends };
    fleet.until(|fleet| fleet.ready() == 1);
    assert_eq!(fleet.broker.backend_state(0).unwrap().room, 100);
    assert_eq!(fleet.broker.room().unwrap(), 100);
}

#[test]
fn late_offers_stay_if_the_other_backend_has_room_for_one_of_them_only() {
    let options = BrokerOptions {
        attempt_timeout: Some(Duration::from_millis(20)),
        timeout: Duration::from_secs(600),
        max_failures: None,
        ..Default::default()
    };
    let directory = TempDir::new().unwrap();
    let mut broker = Broker::without_backends(options).unwrap();
    let (many, few) = (directory.path().join("many"), directory.path().join("few"));
    let backends = [&many, &few]
        .map(|path| Backend::listen(path, BackendOptions::default()).unwrap())
        .into_iter()
        .collect();
    broker.add(&many, BackendSettings::default()).unwrap();
    let mut fleet = Fleet { directory, broker, backends };
    fleet.until(|fleet| fleet.ready() == 1);
    let one = BackendSettings { max_in_flight: Some(1), backup: true, ..Default::default() };
    fleet.broker.add(&few, one).unwrap();
    fleet.until(|fleet| fleet.ready() == 2);
    let (_client, connection) = client();
    for _ in 0..5 {
        place(&mut fleet.broker, &offer(&connection)).unwrap();
    }
    // All are late at the same time.
    std::thread::sleep(Duration::from_millis(50));
    run(&mut fleet, Duration::from_millis(300));
    assert_eq!(fleet.broker.next_verdict(), None);
}

#[test]
fn offer_that_waited_for_room_counts_as_no_refusal() {
    let options = BrokerOptions { max_in_flight: 1, timeout: PATIENCE, ..Default::default() };
    let mut fleet = fleet(1, options);
    let (_client, connection) = client();
    place(&mut fleet.broker, &offer(&connection)).unwrap();
    let mut backend = fleet.backends.pop().unwrap();
    let thread = std::thread::spawn(move || {
        // Rejects what has come, and a second one.
        for _ in 0..2 {
            let start = Instant::now();
            let arrival = loop {
                backend.dispatch().unwrap();
                if let Some(arrival) = backend.next_arrival() {
                    break arrival.id;
                }
                assert!(start.elapsed() < PATIENCE);
            };
            std::thread::sleep(Duration::from_millis(5));
            backend.reject(arrival, Reason::Rejected).unwrap();
            backend.dispatch().unwrap();
        }
        backend
    });
    let long = Offer { timeout: Some(PATIENCE), ..offer(&connection) };
    fleet.broker.offer_and_wait(&long).unwrap();
    fleet.backends.push(thread.join().unwrap());
    assert_eq!(fleet.broker.statistics().refused, 0);
    let refusals: u64 = fleet.broker.backend_state(0).unwrap().counts.refusals.iter().sum();
    assert_eq!(refusals, 0);
}

#[test]
fn only_backend_that_is_left_does_not_fail_by_the_attempt_timeout() {
    let options = BrokerOptions {
        attempt_timeout: Some(Duration::from_millis(20)),
        timeout: Duration::from_secs(600),
        max_failures: Some(1),
        ..Default::default()
    };
    let mut fleet = fleet(2, options);
    let path = fleet.path("1");
    assert!(fleet.broker.remove(&path).unwrap());
    fleet.until(|fleet| fleet.broker.backend_state(1).is_none());
    let (_client, connection) = client();
    place(&mut fleet.broker, &offer(&connection)).unwrap();
    run(&mut fleet, Duration::from_millis(200));
    assert_eq!(phases(&mut fleet), [Phase::Ready]);
}

#[test]
fn abstract_names_are_no_paths() {
    let mut fleet = fleet(0, BrokerOptions::default());
    let name = format!("@handoff-fleet-{}", std::process::id());
    for end in ["/a", "//a"] {
        fleet.broker.add(Path::new(&(name.clone() + end)), BackendSettings::default()).unwrap();
    }
    assert_eq!(phases(&mut fleet).len(), 2);
}

#[test]
fn socket_whose_path_is_too_long_is_told_of() {
    let directory = TempDir::new().unwrap();
    // There is room for a short name.
    let len = 100 - directory.path().as_os_str().len();
    let deep = directory.path().join("d".repeat(len));
    std::fs::create_dir(&deep).unwrap();
    let there = std::env::current_dir().unwrap();
    std::env::set_current_dir(&deep).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind("s".repeat(10)).unwrap();
    std::env::set_current_dir(there).unwrap();
    let mut path = deep.into_os_string();
    path.push("/");
    let mut broker = Broker::new(Path::new(&path), BrokerOptions::default()).unwrap();
    broker.descriptor().unwrap();
    let (_client, connection) = client();
    let error = place(&mut broker, &offer(&connection)).unwrap_err().to_string();
    assert!(error.contains("is left out, because its path is longer than 107 bytes"), "{error}");
}

#[test]
fn successor_of_a_worker_that_hangs_is_used() {
    let options = BrokerOptions { timeout: Duration::from_millis(100), ..Default::default() };
    let mut fleet = fleet(1, options);
    let (_client, connection) = client();
    place(&mut fleet.broker, &offer(&connection)).unwrap();
    let _hangs = fleet.backends.pop().unwrap();
    std::fs::remove_file(fleet.path("0")).unwrap();
    fleet.listen("0");
    run(&mut fleet, Duration::from_secs(2));
    assert_eq!(fleet.backends[0].statistics().accepted, 1);
}

#[test]
fn socket_whose_name_is_something_elses_is_no_backend_any_more() {
    let mut fleet = fleet(2, BrokerOptions::default());
    for (name, other) in [("0", "file"), ("1", "link")] {
        let other = fleet.directory.path().parent().unwrap().join(format!(
            "{}-{other}",
            fleet.directory.path().file_name().unwrap().to_str().unwrap()
        ));
        if name == "0" {
            std::fs::write(&other, "").unwrap();
        } else {
            std::os::unix::fs::symlink("/nowhere", &other).unwrap();
        }
        std::fs::rename(&other, fleet.path(name)).unwrap();
    }
    fleet.until(|fleet| fleet.broker.backend_state(0).is_none());
}

#[test]
fn directory_that_a_link_leads_to_anew_is_the_one_that_counts() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    for version in ["1", "2"] {
        std::fs::create_dir(at(version)).unwrap();
    }
    std::os::unix::fs::symlink(at("1"), at("now")).unwrap();
    let mut fleet = fleet(0, BrokerOptions::default());
    fleet.backends.push(Backend::listen(&at("1/a"), BackendOptions::default()).unwrap());
    fleet.backends.push(Backend::listen(&at("2/a"), BackendOptions::default()).unwrap());
    fleet.broker.add(&at("now/"), BackendSettings::default()).unwrap();
    fleet.until(|fleet| fleet.ready() == 1);
    std::os::unix::fs::symlink(at("2"), at("next")).unwrap();
    std::fs::rename(at("next"), at("now")).unwrap();
    fleet.until(|fleet| {
        let channels = |number: usize| fleet.backends[number].statistics().channels;
        (channels(0), channels(1)) == (0, 1) && fleet.ready() == 1
    });
}

#[test]
fn backend_that_is_removed_by_its_own_name_stays_out_of_its_directory() {
    let mut fleet = fleet(2, BrokerOptions::default());
    let path = fleet.path("0");
    let weighty = BackendSettings { weight: 9, ..BackendSettings::default() };
    fleet.broker.add(&path, weighty).unwrap();
    assert!(fleet.broker.remove(&path).unwrap());
    fleet.until(|fleet| fleet.ready() == 1);
    // The directory is read again.
    fleet.broker.add(&fleet.path(""), BackendSettings::default()).unwrap();
    fleet.broker.dispatch().unwrap();
    assert_eq!(phases(&mut fleet), [Phase::Ready]);
    fleet.backends.remove(0);
    fleet.listen("0");
    fleet.until(|fleet| fleet.ready() == 2);
}

#[test]
fn offers_that_were_never_sent_are_no_failures() {
    let options = BrokerOptions { timeout: Duration::from_millis(5), ..Default::default() };
    let mut fleet = fleet(1, options);
    let (_client, connection) = client();
    // So few are not sent before the flush.
    for _ in 0..10 {
        place(&mut fleet.broker, &Offer { more: true, ..offer(&connection) }).unwrap();
    }
    std::thread::sleep(Duration::from_millis(20));
    for _ in 0..10 {
        assert!(!fleet.verdict().adopted);
    }
    assert_eq!(phases(&mut fleet), [Phase::Ready]);
}
