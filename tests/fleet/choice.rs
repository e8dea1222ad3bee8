//! Which backend gets an offer, and which one gets it next.

use std::time::{Duration, Instant};

use handoff::broker::{BackendSettings, Broker, BrokerOptions};
use handoff::reason::Reason;
use tempfile::TempDir;

use super::*;

#[test]
fn offers_spread_evenly_one_at_a_time_and_many_at_a_time() {
    let mut fleet = fleet(4, BrokerOptions::default());
    let (_client, connection) = client();
    for in_flight in [1, 8] {
        let mut counts = [0; 4];
        for _ in 0..40 {
            for _ in 0..in_flight {
                place(&mut fleet.broker, &offer(&connection)).unwrap();
            }
            for _ in 0..in_flight {
                let (index, arrival) = fleet.arrival();
                counts[index] += 1;
                drop(fleet.backends[index].adopt(arrival).unwrap());
                let verdict = fleet.verdict();
                assert!(verdict.adopted);
                assert_eq!(verdict.attempts, 1);
            }
        }
        assert_eq!(counts, [10 * in_flight; 4]);
    }
}

#[test]
fn rejection_by_a_busy_backend_goes_on_to_the_others_and_one_of_the_client_does_not() {
    let mut fleet = fleet(3, BrokerOptions::default());
    let (_client, connection) = client();
    let id = place(&mut fleet.broker, &offer(&connection)).unwrap();
    let mut tried = Vec::new();
    for _ in 0..2 {
        let (index, arrival) = fleet.arrival();
        assert!(!tried.contains(&index));
        tried.push(index);
        fleet.backends[index].reject(arrival, Reason::BackendBusy).unwrap();
    }
    let (index, arrival) = fleet.arrival();
    fleet.backends[index].reject(arrival, Reason::Rejected).unwrap();
    let verdict = fleet.verdict();
    assert_eq!((verdict.id, verdict.adopted, verdict.attempts), (id, false, 3));
    assert_eq!(verdict.reason, Some(Reason::Rejected));
    assert!(
        fleet
            .broker
            .backend_name(verdict.backend)
            .unwrap()
            .to_str()
            .unwrap()
            .ends_with(&format!("/{index}"))
    );
    place(&mut fleet.broker, &offer(&connection)).unwrap();
    let (index, arrival) = fleet.arrival();
    fleet.backends[index].reject(arrival, Reason::Rejected).unwrap();
    assert_eq!(fleet.verdict().attempts, 1);
}

#[test]
fn offer_that_all_reject_has_one_verdict() {
    let mut fleet = fleet(3, BrokerOptions::default());
    let (_client, connection) = client();
    place(&mut fleet.broker, &offer(&connection)).unwrap();
    for _ in 0..3 {
        let (index, arrival) = fleet.arrival();
        fleet.backends[index].reject(arrival, Reason::BackendBusy).unwrap();
    }
    let verdict = fleet.verdict();
    assert_eq!(
        (verdict.adopted, verdict.reason, verdict.attempts),
        (false, Some(Reason::BackendBusy), 3)
    );
    assert_eq!(fleet.broker.statistics().failovers, 2);
    assert!(fleet.broker.next_verdict().is_none());
}

#[test]
fn slow_backend_loses_the_offer_to_another_after_the_attempt_timeout() {
    let attempt_timeout = Duration::from_millis(20);
    let mut fleet = fleet(
        2,
        BrokerOptions { attempt_timeout: Some(attempt_timeout), ..BrokerOptions::default() },
    );
    let (_client, connection) = client();
    place(&mut fleet.broker, &offer(&connection)).unwrap();
    let (slow, late) = fleet.arrival();
    let (index, arrival) = fleet.arrival();
    assert_ne!(index, slow);
    assert!(fleet.backends[slow].adopt(late).is_err());
    drop(fleet.backends[index].adopt(arrival).unwrap());
    let verdict = fleet.verdict();
    assert_eq!((verdict.adopted, verdict.attempts), (true, 2));
}

#[test]
fn attempt_takes_half_of_the_time_that_an_offer_has_left_by_default() {
    let mut fleet = fleet(2, BrokerOptions::default());
    let (_client, connection) = client();
    let timeout = Some(Duration::from_millis(1900));
    place(&mut fleet.broker, &Offer { timeout, ..offer(&connection) }).unwrap();
    let (hung, _) = fleet.arrival();
    let (index, arrival) = fleet.arrival();
    assert_ne!(index, hung);
    drop(fleet.backends[index].adopt(arrival).unwrap());
    let verdict = fleet.verdict();
    assert_eq!((verdict.adopted, verdict.attempts), (true, 2));
}

#[test]
fn offer_that_no_other_takes_stays_until_its_own_time_is_up() {
    let attempt_timeout = Duration::from_millis(100);
    let mut fleet = fleet(
        2,
        BrokerOptions { attempt_timeout: Some(attempt_timeout), ..BrokerOptions::default() },
    );
    let (_client, connection) = client();
    place(&mut fleet.broker, &offer(&connection)).unwrap();
    let (first, _) = fleet.arrival();
    let (index, arrival) = fleet.arrival();
    assert_ne!(first, index);
    let start = Instant::now();
    fleet.until(|_| start.elapsed() > 10 * attempt_timeout);
    drop(fleet.backends[index].adopt(arrival).unwrap());
    assert!(fleet.verdict().adopted);
}

#[test]
fn backend_that_goes_leaves_its_offers_to_the_others() {
    let mut fleet = fleet(2, BrokerOptions::default());
    let (_client, connection) = client();
    for _ in 0..10 {
        place(&mut fleet.broker, &offer(&connection)).unwrap();
    }
    fleet.backends.remove(0);
    let mut adopted = 0;
    while adopted < 10 {
        let (index, arrival) = fleet.arrival();
        drop(fleet.backends[index].adopt(arrival).unwrap());
        adopted += 1;
    }
    for _ in 0..10 {
        assert!(fleet.verdict().adopted);
    }
    fleet.until(|fleet| fleet.broker.backend_state(1).is_none());
}

#[test]
fn files_that_come_and_go_are_backends_that_come_and_go() {
    let mut fleet = fleet(0, BrokerOptions::default());
    let (_client, connection) = client();
    let refused = place(&mut fleet.broker, &offer(&connection)).unwrap_err().to_string();
    let why = "no backend to offer to: there is no socket in the directory";
    assert!(refused.ends_with(why), "{refused}");
    std::fs::write(fleet.path("no-socket"), "").unwrap();
    for round in 0..20 {
        fleet.listen(&format!("{round}.sock"));
        fleet.until(|fleet| fleet.ready() == 1);
        fleet.backends.clear();
        fleet.until(|fleet| fleet.broker.backend_state(0).is_none());
    }
}

#[test]
fn directory_may_come_later_and_again() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("app/");
    let mut broker = Broker::new(&path, BrokerOptions::default()).unwrap();
    broker.dispatch().unwrap();
    let (_client, connection) = client();
    let refused = place(&mut broker, &offer(&connection)).unwrap_err().to_string();
    assert!(refused.contains("No such file or directory"), "{refused}");
    let state = broker.backend_state(0).unwrap();
    assert!(state.phase == Phase::Down && state.name.to_str().unwrap().ends_with("/app/"));
    let mut fleet = Fleet { directory, broker, backends: Vec::new() };
    for _ in 0..2 {
        std::fs::create_dir(&path).unwrap();
        fleet.listen("app/one");
        fleet.until(|fleet| fleet.ready() == 1);
        fleet.backends.clear();
        std::fs::remove_dir_all(&path).unwrap();
        // The directory itself is what is down then.
        fleet.until(|fleet| {
            let state = fleet.broker.backend_state(0);
            state.is_some_and(|state| state.name.to_bytes().ends_with(b"/"))
        });
    }
}

#[test]
fn weights_share_the_offers_and_backups_get_them_when_no_other_takes_them() {
    let mut fleet = fleet(0, BrokerOptions::default());
    let paths = ["a", "b", "c"].map(|name| fleet.path(name));
    let (_client, connection) = client();
    let mut broker = Broker::without_backends(BrokerOptions::default()).unwrap();
    assert!(place(&mut broker, &offer(&connection)).is_err());
    for (path, weight, backup) in
        [(&paths[0], 3, false), (&paths[1], 1, false), (&paths[2], 9, true)]
    {
        broker.add(path, BackendSettings { weight, backup, ..BackendSettings::default() }).unwrap();
    }
    fleet.broker = broker;
    for name in ["a", "b", "c"] {
        fleet.listen(name);
    }
    fleet.until(|fleet| fleet.ready() == 3);
    let mut counts = [0; 3];
    for _ in 0..40 {
        place(&mut fleet.broker, &offer(&connection)).unwrap();
        let (index, arrival) = fleet.arrival();
        counts[index] += 1;
        drop(fleet.backends[index].adopt(arrival).unwrap());
        fleet.verdict();
    }
    assert_eq!(counts, [30, 10, 0]);
    let off = BackendSettings { off: true, ..BackendSettings::default() };
    fleet.broker.add(&paths[0], off).unwrap();
    assert!(fleet.broker.remove(&paths[1]).unwrap());
    assert!(!fleet.broker.remove(&paths[1]).unwrap());
    place(&mut fleet.broker, &offer(&connection)).unwrap();
    assert_eq!(fleet.arrival().0, 2);
}
