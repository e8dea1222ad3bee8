//! Offers that one backend did not adopt, while all others are full.

use std::time::{Duration, Instant};

use handoff::broker::BrokerOptions;
use handoff::reason::Reason;

use super::*;

/// Two backends with room for one offer each, and an offer that each has. The first one's is 7.
fn full(timeout: Duration) -> (Fleet, TcpStream, TcpStream, u64) {
    let options = BrokerOptions { max_in_flight: 1, timeout, ..Default::default() };
    let mut fleet = fleet(2, options);
    let (client, connection) = client();
    let mut ids = [0; 2];
    for id in &mut ids {
        *id = place(&mut fleet.broker, &offer(&connection)).unwrap();
    }
    fleet.until(|fleet| fleet.broker.room().unwrap() == 0);
    let id = ids[0];
    (fleet, client, connection, id)
}

/// The backend that has the first offer is busy, so that it waits for the other one.
fn reject_first(fleet: &mut Fleet) {
    fleet.until(|fleet| fleet.backends[0].statistics().held == 1);
    let arrival = fleet.backends[0].next_arrival().unwrap().id;
    fleet.backends[0].reject(arrival, Reason::BackendBusy).unwrap();
    fleet.until(|fleet| fleet.broker.room().unwrap() == 1);
    assert!(fleet.broker.next_verdict().is_none());
    assert_eq!(fleet.broker.statistics().in_flight, 2);
}

#[test]
fn offer_waits_for_room_at_a_backend_that_has_not_had_it() {
    let (mut fleet, _client, _connection, id) = full(Duration::from_secs(30));
    reject_first(&mut fleet);
    fleet.until(|fleet| fleet.backends[1].statistics().held == 1);
    let arrival = fleet.backends[1].next_arrival().unwrap().id;
    drop(fleet.backends[1].adopt(arrival).unwrap());
    assert!(fleet.verdict().adopted);
    let (index, arrival) = fleet.arrival();
    assert_eq!(index, 1);
    drop(fleet.backends[1].adopt(arrival).unwrap());
    let verdict = fleet.verdict();
    assert_eq!((verdict.id, verdict.adopted, verdict.attempts), (id, true, 2));
}

#[test]
fn offer_that_waits_is_a_fallback_when_its_time_is_up() {
    let timeout = Duration::from_millis(300);
    let (mut fleet, _client, _connection, id) = full(timeout);
    let start = Instant::now();
    reject_first(&mut fleet);
    let mut verdict = fleet.verdict();
    if verdict.id != id {
        verdict = fleet.verdict();
    }
    assert_eq!((verdict.id, verdict.adopted, verdict.attempts), (id, false, 1));
    assert_eq!(verdict.reason, Some(Reason::BackendBusy));
    assert!(verdict.may_have_reached && start.elapsed() < PATIENCE);
}

#[test]
fn offer_that_waits_can_be_taken_back() {
    let (mut fleet, _client, _connection, id) = full(Duration::from_secs(30));
    reject_first(&mut fleet);
    fleet.broker.take_back(id).unwrap();
    assert!(fleet.broker.take_back(id).is_err());
    assert_eq!(fleet.broker.statistics().in_flight, 1);
    let (_, arrival) = fleet.arrival();
    drop(fleet.backends[1].adopt(arrival).unwrap());
    let verdict = fleet.verdict();
    assert!(verdict.adopted && verdict.id != id);
    fleet.until(|fleet| fleet.broker.room().unwrap() == 2);
    assert!(fleet.broker.next_verdict().is_none());
}

#[test]
fn offers_that_wait_have_their_verdicts_when_the_broker_is_closed() {
    let (mut fleet, _client, _connection, id) = full(Duration::from_secs(30));
    reject_first(&mut fleet);
    fleet.broker.close().unwrap();
    let mut ids = Vec::new();
    while let Some(verdict) = fleet.broker.next_verdict() {
        assert_eq!((verdict.adopted, verdict.reason), (false, Some(Reason::BrokerClosed)));
        ids.push(verdict.id);
    }
    assert!(ids.len() == 2 && ids.contains(&id));
}

#[test]
fn offer_that_waits_is_a_fallback_when_nobody_is_left() {
    let (mut fleet, _client, _connection, id) = full(Duration::from_secs(30));
    reject_first(&mut fleet);
    fleet.backends.pop();
    let verdict = fleet.verdict();
    assert_eq!((verdict.id, verdict.adopted), (id, false));
    assert_eq!(verdict.reason, Some(Reason::BackendBusy));
    // The other one goes to the backend that is left.
    let (index, arrival) = fleet.arrival();
    assert_eq!(index, 0);
    drop(fleet.backends[0].adopt(arrival).unwrap());
    assert_eq!(fleet.verdict().attempts, 2);
}

#[test]
fn no_more_offers_wait_than_all_backends_could_have_in_flight() {
    let (mut fleet, _client, connection, _) = full(Duration::from_secs(30));
    reject_first(&mut fleet);
    let mut fallbacks = Vec::new();
    for _ in 0..4 {
        place(&mut fleet.broker, &offer(&connection)).unwrap();
        fleet.until(|fleet| fleet.backends[0].statistics().held == 1);
        let arrival = fleet.backends[0].next_arrival().unwrap().id;
        fleet.backends[0].reject(arrival, Reason::BackendBusy).unwrap();
        fleet.until(|fleet| fleet.broker.room().unwrap() == 1);
        fallbacks.extend(fleet.broker.next_verdict());
    }
    assert_eq!(fleet.broker.statistics().in_flight, 3);
    let reasons = fallbacks.iter().map(|verdict| (verdict.reason, verdict.attempts));
    assert_eq!(reasons.collect::<Vec<_>>(), [(Some(Reason::BackendBusy), 1); 3]);
}
