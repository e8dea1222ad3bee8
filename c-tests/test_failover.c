/* An offer that one backend does not adopt goes to the next one, and has one verdict. */
#define _GNU_SOURCE
#include "fleet.h"

#include <sys/socket.h>

static struct fleet fleet;

static int make_place(void **state)
{
    descriptors_before(state);
    make_fleet(&fleet);
    return 0;
}

static int remove_place(void **state)
{
    close_fleet(&fleet);
    return descriptors_after(state);
}

#define FLEET_TEST(function) cmocka_unit_test_setup_teardown(function, make_place, remove_place)

/* Backends that have as long as the test, unless it says otherwise. */
static handoff_broker_options patient(void)
{
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.timeout_ms = HANDOFF_NO_TIMEOUT;
    options.attempt_timeout_ms = HANDOFF_NO_TIMEOUT;
    options.max_failures = HANDOFF_NO_LIMIT;
    return options;
}

static void assert_verdict(handoff_outcome outcome, handoff_reason reason, int which,
                           uint32_t attempts)
{
    handoff_verdict verdict = await_verdict(&fleet);
    assert_int_equal(verdict.outcome, outcome);
    assert_int_equal(verdict.reason, reason);
    assert_int_equal(verdict.attempts, attempts);
    assert_string_equal(verdict.backend, fleet.paths[which]);
    assert_false(next_verdict(fleet.broker, &verdict));
}

/* The only arrival that there is; returns the backend that has it. */
static int reject_next(handoff_reason reason)
{
    uint64_t id = 0;
    int which = find_arrival(&fleet, &id);
    reject_at(&fleet, which, id, reason);
    return which;
}

static int adopt_next(void)
{
    uint64_t id = 0;
    int which = find_arrival(&fleet, &id);
    adopt_at(&fleet, which, id);
    return which;
}

static void offer_goes_on_after_reasons_that_are_about_the_backend(void **state)
{
    (void)state;
    static const handoff_reason reasons[] = {HANDOFF_REASON_BACKEND_BUSY,
                                             HANDOFF_REASON_DESCRIPTOR_PRESSURE,
                                             HANDOFF_REASON_BACKEND_UNAVAILABLE};
    handoff_broker_options options = patient();
    open_fleet(&fleet, 3, &options, NULL);
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        offer_client(&fleet);
        int first = reject_next(reasons[i]), second = reject_next(reasons[i]);
        int third = adopt_next();
        assert_int_equal(first + second + third, 3);
        assert_int_not_equal(first, second);
        assert_verdict(HANDOFF_ADOPTED, HANDOFF_REASON_NONE, third, 3);
    }
    assert_int_equal(broker_statistics(fleet.broker).failovers, 6);
    assert_int_equal(broker_statistics(fleet.broker).offered, 3);
    assert_int_equal(broker_statistics(fleet.broker).adopted, 3);
}

static void every_other_rejection_is_final(void **state)
{
    (void)state;
    static const handoff_reason reasons[] = {
        HANDOFF_REASON_CLIENT_UNSUPPORTED, HANDOFF_REASON_POLICY_DISABLED,
        HANDOFF_REASON_PERMISSION_DENIED,  HANDOFF_REASON_FOREIGN_BACKEND,
        HANDOFF_REASON_REJECTED,           HANDOFF_REASON_UNSUPPORTED_PLATFORM,
        HANDOFF_REASON_CLIENT_GONE,        HANDOFF_REASON_TOO_LARGE,
        HANDOFF_REASON_RATE_LIMITED,
    };
    handoff_broker_options options = patient();
    open_fleet(&fleet, 3, &options, NULL);
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        offer_client(&fleet);
        int which = reject_next(reasons[i]);
        assert_verdict(HANDOFF_FALLBACK, reasons[i], which, 1);
    }
    for (int i = 0; i < 3; i++)
        assert_int_equal(arrivals_at(&fleet, i, NULL), 0);
    assert_int_equal(broker_statistics(fleet.broker).failovers, 0);
}

static void kind_that_a_backend_does_not_take_is_final_and_named(void **state)
{
    (void)state;
    int pair[2];
    handoff_broker_options options = patient();
    open_fleet(&fleet, 2, &options, NULL);
    make_pair(SOCK_SEQPACKET, pair);
    handoff_offer offer = offer_of(pair[0]);
    assert_ok(handoff_broker_offer(fleet.broker, &offer, NULL));
    handoff_verdict verdict = await_verdict(&fleet);
    assert_int_equal(verdict.reason, HANDOFF_REASON_KIND);
    assert_int_equal(verdict.kind, HANDOFF_KIND_SEQPACKET);
    assert_int_equal(verdict.attempts, 1);
    close(pair[0]);
    close(pair[1]);
}

static void each_backend_is_tried_once_and_then_it_is_a_fallback(void **state)
{
    (void)state;
    handoff_broker_options options = patient();
    int tried[4] = {0}, which = 0;
    open_fleet(&fleet, 4, &options, NULL);
    offer_client(&fleet);
    for (int i = 0; i < 4; i++) {
        which = reject_next(HANDOFF_REASON_BACKEND_BUSY);
        tried[which]++;
    }
    assert_verdict(HANDOFF_FALLBACK, HANDOFF_REASON_BACKEND_BUSY, which, 4);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(tried[i], 1);
        assert_int_equal(arrivals_at(&fleet, i, NULL), 0);
        assert_int_equal(state_of(fleet.broker, fleet.paths[i]).offered, 1);
        assert_int_equal(state_of(fleet.broker, fleet.paths[i])
                             .fallbacks[HANDOFF_REASON_BACKEND_BUSY], 1);
    }
}

static void last_reason_is_the_one_in_the_verdict(void **state)
{
    (void)state;
    handoff_broker_options options = patient();
    open_fleet(&fleet, 2, &options, NULL);
    offer_client(&fleet);
    reject_next(HANDOFF_REASON_BACKEND_BUSY);
    int which = reject_next(HANDOFF_REASON_REJECTED);
    assert_verdict(HANDOFF_FALLBACK, HANDOFF_REASON_REJECTED, which, 2);
}

static void everything_in_an_offer_reaches_the_next_backend(void **state)
{
    (void)state;
    static char first[50000], second[10000];
    struct iovec preread[] = {{first, sizeof first}, {NULL, 0}, {second, sizeof second}};
    handoff_broker_options options = patient();
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_offer offer = offer_of(fleet.client[0]);
    uint64_t id = 0;
    open_fleet(&fleet, 2, &options, NULL);
    memset(first, 'x', sizeof first);
    memset(second, 'y', sizeof second);
    offer.preread_iov = preread;
    offer.preread_iov_len = 3;
    offer.metadata = "some\0thing";
    offer.metadata_len = 10;
    offer.service = "web";
    offer.correlation = "request 7";
    offer.user_data = &arrival;
    assert_ok(handoff_broker_offer(fleet.broker, &offer, &id));
    uint64_t offered = id;
    int which = find_arrival(&fleet, &id);
    /* What was copied is gone by then. */
    memset(first, 'z', sizeof first);
    memset(second, 'z', sizeof second);
    reject_at(&fleet, which, id, HANDOFF_REASON_BACKEND_BUSY);
    which = 1 - which;
    until(&fleet, next_arrival(fleet.backends[which], &arrival));
    assert_int_equal(arrival.preread_len, sizeof first + sizeof second);
    for (size_t i = 0; i < arrival.preread_len; i++)
        assert_int_equal(((const char *)arrival.preread)[i], i < sizeof first ? 'x' : 'y');
    assert_int_equal(arrival.metadata_len, 10);
    assert_memory_equal(arrival.metadata, "some\0thing", 10);
    assert_string_equal(arrival.service, "web");
    assert_string_equal(arrival.correlation, "request 7");
    int fd = -1;
    assert_ok(handoff_backend_adopt(fleet.backends[which], arrival.id, &fd));
    assert_same_socket(fd, fleet.client[0]);
    close(fd);
    handoff_verdict verdict = await_verdict(&fleet);
    assert_int_equal(verdict.id, offered);
    assert_ptr_equal(verdict.user_data, &arrival);
}

static void backend_that_is_late_cannot_adopt_what_went_to_the_next_one(void **state)
{
    (void)state;
    handoff_broker_options options = patient();
    uint64_t late = 0, id = 0;
    options.attempt_timeout_ms = 50;
    open_fleet(&fleet, 2, &options, NULL);
    uint64_t start = now_ns();
    offer_client(&fleet);
    int first = find_arrival(&fleet, &late), second = find_arrival(&fleet, &id), fd = -1;
    assert_int_equal(first + second, 1);
    assert_true(ms_since(start) >= 50);
    assert_status(handoff_backend_adopt(fleet.backends[first], late, &fd),
                  HANDOFF_ERR_TAKEN_BACK);
    adopt_at(&fleet, second, id);
    assert_verdict(HANDOFF_ADOPTED, HANDOFF_REASON_NONE, second, 2);
    assert_int_equal(state_of(fleet.broker, fleet.paths[first])
                         .fallbacks[HANDOFF_REASON_ACK_TIMEOUT], 1);
}

/* It has won the claim, and says so late. */
static void backend_that_adopts_before_its_time_is_up_keeps_the_client(void **state)
{
    (void)state;
    handoff_broker_options options = patient();
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    options.attempt_timeout_ms = 50;
    open_fleet(&fleet, 2, &options, NULL);
    uint64_t start = now_ns();
    offer_client(&fleet);
    int which = state_of(fleet.broker, fleet.paths[0]).in_flight == 1 ? 0 : 1, fd = -1;
    assert_ok(handoff_backend_dispatch(fleet.backends[which]));
    assert_true(next_arrival(fleet.backends[which], &arrival));
    assert_ok(handoff_backend_adopt(fleet.backends[which], arrival.id, &fd));
    close(fd);
    sleep_until(start, 100);
    assert_ok(handoff_broker_dispatch(fleet.broker));
    assert_verdict(HANDOFF_ADOPTED, HANDOFF_REASON_NONE, which, 1);
    assert_int_equal(arrivals_at(&fleet, 1 - which, NULL), 0);
}

static void deadline_of_the_offer_holds_over_all_attempts(void **state)
{
    (void)state;
    handoff_broker_options options = patient();
    handoff_offer offer = offer_of(fleet.client[0]);
    options.attempt_timeout_ms = 40;
    open_fleet(&fleet, 8, &options, NULL);
    offer.timeout_ms = 100;
    uint64_t start = now_ns();
    assert_ok(handoff_broker_offer(fleet.broker, &offer, NULL));
    handoff_verdict verdict = await_verdict(&fleet);
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, HANDOFF_REASON_ACK_TIMEOUT);
    assert_true(ms_since(start) >= 100);
    /* At 0, 40 and 80 ms, or fewer where the machine is slow. */
    assert_in_range(verdict.attempts, 1, 3);
    assert_true(verdict.may_have_reached_backend);
}

/* With one backend, or where no other one takes it, an offer stays as long as it may. */
static void attempt_timeout_matters_only_where_there_is_another_backend(void **state)
{
    (void)state;
    handoff_broker_options options = patient();
    uint64_t id = 0;
    options.attempt_timeout_ms = 20;
    open_fleet(&fleet, 2, &options, NULL);
    assert_ok(handoff_broker_remove(fleet.broker, fleet.paths[1]));
    uint64_t start = now_ns();
    offer_client(&fleet);
    assert_int_equal(find_arrival(&fleet, &id), 0);
    while (ms_since(start) < 100)
        turn(&fleet);
    adopt_at(&fleet, 0, id);
    assert_verdict(HANDOFF_ADOPTED, HANDOFF_REASON_NONE, 0, 1);
}

static void offers_of_a_backend_that_dies_go_on(void **state)
{
    (void)state;
    enum { OFFERS = 100 };
    handoff_broker_options options = patient();
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    open_fleet(&fleet, 2, &options, NULL);
    for (int i = 0; i < OFFERS; i++)
        offer_client(&fleet);
    /* It holds some of them, and the rest has not arrived. */
    receive_all(fleet.backends[0]);
    for (int i = 0; i < 10; i++)
        assert_true(next_arrival(fleet.backends[0], &arrival));
    free_backend(&fleet, 0);
    int adopted = 0, failed_over = 0;
    while (adopted < OFFERS) {
        turn(&fleet);
        while (next_arrival(fleet.backends[1], &arrival))
            adopt_at(&fleet, 1, arrival.id);
        for (; next_verdict(fleet.broker, &verdict); adopted++) {
            assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
            assert_string_equal(verdict.backend, fleet.paths[1]);
            failed_over += verdict.attempts == 2;
        }
    }
    assert_int_equal(failed_over, OFFERS / 2);
    assert_int_equal(broker_statistics(fleet.broker).failovers, OFFERS / 2);
}

static void offers_that_have_not_arrived_at_a_backend_that_drains_go_on(void **state)
{
    (void)state;
    handoff_broker_options options = patient();
    uint64_t id = 0;
    open_fleet(&fleet, 2, &options, NULL);
    offer_client(&fleet);
    offer_client(&fleet);
    assert_ok(handoff_backend_drain(fleet.backends[0]));
    free_backend(&fleet, 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(find_arrival(&fleet, &id), 1);
        adopt_at(&fleet, 1, id);
        assert_int_equal(await_verdict(&fleet).outcome, HANDOFF_ADOPTED);
    }
}

/* There was none when the attempt ended; a new one may come before the offer's time is up. */
static void offer_that_timed_out_goes_to_a_backend_that_comes_later(void **state)
{
    (void)state;
    handoff_broker_options options = patient();
    uint64_t id = 0;
    options.attempt_timeout_ms = 30;
    open_fleet(&fleet, 2, &options, NULL);
    free_backend(&fleet, 1);
    until(&fleet, is_in_state(&fleet, 1, HANDOFF_STATE_DOWN));
    uint64_t start = now_ns();
    offer_client(&fleet);
    while (ms_since(start) < 100)
        turn(&fleet);
    listen_at(&fleet, 1, NULL);
    until(&fleet, arrivals_at(&fleet, 1, &id) == 1);
    adopt_at(&fleet, 1, id);
    assert_verdict(HANDOFF_ADOPTED, HANDOFF_REASON_NONE, 1, 2);
}

static void offer_can_be_taken_back_while_it_is_at_its_second_backend(void **state)
{
    (void)state;
    handoff_broker_options options = patient();
    uint64_t arrival = 0;
    int fd = -1;
    open_fleet(&fleet, 3, &options, NULL);
    uint64_t id = offer_client(&fleet);
    reject_next(HANDOFF_REASON_BACKEND_BUSY);
    int which = find_arrival(&fleet, &arrival);
    assert_ok(handoff_broker_take_back(fleet.broker, id));
    assert_status(handoff_backend_adopt(fleet.backends[which], arrival, &fd),
                  HANDOFF_ERR_TAKEN_BACK);
    assert_status(handoff_broker_take_back(fleet.broker, id), HANDOFF_ERR_TOO_LATE);
    for (int i = 0; i < 10; i++)
        turn(&fleet);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_false(next_verdict(fleet.broker, &verdict));
    assert_int_equal(broker_statistics(fleet.broker).taken_back, 1);
    assert_int_equal(broker_statistics(fleet.broker).in_flight, 0);
    assert_int_equal(state_of(fleet.broker, fleet.paths[which]).taken_back, 1);
}

static void closing_takes_back_what_is_at_its_second_backend(void **state)
{
    (void)state;
    handoff_broker_options options = patient();
    uint64_t arrival = 0;
    int fd = -1;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    open_fleet(&fleet, 3, &options, NULL);
    uint64_t id = offer_client(&fleet);
    reject_next(HANDOFF_REASON_BACKEND_BUSY);
    int which = find_arrival(&fleet, &arrival);
    assert_ok(handoff_broker_close(fleet.broker));
    assert_true(next_verdict(fleet.broker, &verdict));
    assert_int_equal(verdict.id, id);
    assert_int_equal(verdict.reason, HANDOFF_REASON_BROKER_CLOSED);
    assert_int_equal(verdict.attempts, 2);
    assert_string_equal(verdict.backend, fleet.paths[which]);
    assert_false(next_verdict(fleet.broker, &verdict));
    assert_status(handoff_backend_adopt(fleet.backends[which], arrival, &fd),
                  HANDOFF_ERR_TAKEN_BACK);
}

static void offer_beyond_failover_bytes_is_tried_at_one_backend_only(void **state)
{
    (void)state;
    static char preread[1000];
    handoff_broker_options options = patient();
    handoff_offer offer = offer_of(fleet.client[0]);
    uint64_t id = 0;
    options.failover_bytes = 1500;
    open_fleet(&fleet, 2, &options, NULL);
    offer.preread = preread;
    offer.preread_len = sizeof preread;
    assert_ok(handoff_broker_offer(fleet.broker, &offer, NULL));
    int first = find_arrival(&fleet, &id), second;
    uint64_t kept = id;
    assert_ok(handoff_broker_offer(fleet.broker, &offer, NULL));
    second = find_arrival(&fleet, &id);
    reject_at(&fleet, second, id, HANDOFF_REASON_BACKEND_BUSY);
    assert_verdict(HANDOFF_FALLBACK, HANDOFF_REASON_BACKEND_BUSY, second, 1);
    reject_at(&fleet, first, kept, HANDOFF_REASON_BACKEND_BUSY);
    adopt_next();
    assert_int_equal(await_verdict(&fleet).attempts, 2);
    /* What was kept for the first one can be used again. */
    assert_ok(handoff_broker_offer(fleet.broker, &offer, NULL));
    reject_next(HANDOFF_REASON_BACKEND_BUSY);
    adopt_next();
    assert_int_equal(await_verdict(&fleet).attempts, 2);
}

/* A backend that is full, that rests, or that takes fewer bytes is passed over. */
static void offer_goes_only_to_backends_that_take_it(void **state)
{
    (void)state;
    static char preread[2000];
    handoff_broker_options options = patient();
    handoff_backend_options small = HANDOFF_BACKEND_OPTIONS_INIT;
    handoff_offer offer = offer_of(fleet.client[0]);
    uint64_t id = 0;
    small.max_offer_bytes = 1000;
    open_fleet(&fleet, 3, &options, NULL);
    for (int i = 1; i < 3; i++) {
        free_backend(&fleet, i);
        until(&fleet, is_in_state(&fleet, i, HANDOFF_STATE_DOWN));
        listen_at(&fleet, i, &small);
        until(&fleet, is_in_state(&fleet, i, HANDOFF_STATE_READY));
    }
    offer.preread = preread;
    offer.preread_len = sizeof preread;
    assert_ok(handoff_broker_offer(fleet.broker, &offer, NULL));
    assert_int_equal(find_arrival(&fleet, &id), 0);
    reject_at(&fleet, 0, id, HANDOFF_REASON_BACKEND_BUSY);
    assert_verdict(HANDOFF_FALLBACK, HANDOFF_REASON_BACKEND_BUSY, 0, 1);
    free_backend(&fleet, 0);
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_DOWN));
    assert_status(handoff_broker_offer(fleet.broker, &offer, NULL), HANDOFF_ERR_TOO_LARGE);
    assert_int_equal(broker_statistics(fleet.broker).refusals[-HANDOFF_ERR_TOO_LARGE], 1);
}

static void copy_that_one_backend_may_hold_is_in_the_verdict_of_another(void **state)
{
    (void)state;
    handoff_broker_options options = patient();
    uint64_t late = 0, id = 0;
    options.attempt_timeout_ms = 30;
    open_fleet(&fleet, 2, &options, NULL);
    offer_client(&fleet);
    int first = find_arrival(&fleet, &late);
    find_arrival(&fleet, &id);
    reject_at(&fleet, 1 - first, id, HANDOFF_REASON_REJECTED);
    handoff_verdict verdict = await_verdict(&fleet);
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.attempts, 2);
    assert_true(verdict.may_have_reached_backend);
}

static void waiting_call_goes_on_to_the_next_backend(void **state)
{
    (void)state;
    handoff_broker_options options = patient();
    options.attempt_timeout_ms = 50;
    open_fleet(&fleet, 1, &options, NULL);
    fleet.count = 2;
    pid_t child = start_child();
    if (child == 0) {
        handoff_backend *backend;
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        child_assert(handoff_backend_listen(fleet.paths[1], NULL, &backend) == HANDOFF_OK);
        child_assert(handoff_backend_accept(backend, -1, &arrival) == HANDOFF_OK);
        child_assert(handoff_backend_accept(backend, 0, &arrival) == HANDOFF_TIMED_OUT);
        handoff_backend_free(backend);
        _exit(0);
    }
    handoff_broker_backend backend = backend_at(fleet.paths[1]);
    handoff_offer offer = offer_of(fleet.client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    backend.flags = HANDOFF_BACKEND_BACKUP;
    assert_ok(handoff_broker_add(fleet.broker, &backend));
    until(&fleet, is_in_state(&fleet, 1, HANDOFF_STATE_READY));
    assert_ok(handoff_broker_offer_and_wait(fleet.broker, &offer, &verdict));
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    assert_int_equal(verdict.attempts, 2);
    assert_string_equal(verdict.backend, fleet.paths[1]);
    assert_child_succeeds(child);
}

static void verdicts_of_many_offers_come_once_each(void **state)
{
    (void)state;
    enum { OFFERS = 200 };
    static int seen[OFFERS];
    handoff_broker_options options = patient();
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_offer offer = offer_of(fleet.client[0]);
    uint64_t arrived = 0;
    options.attempt_timeout_ms = 5;
    open_fleet(&fleet, 4, &options, NULL);
    offer.flags = HANDOFF_OFFER_MORE;
    for (int i = 0; i < OFFERS; i++) {
        offer.user_data = &seen[i];
        assert_ok(handoff_broker_offer(fleet.broker, &offer, NULL));
    }
    assert_ok(handoff_broker_flush(fleet.broker));
    for (int verdicts = 0; verdicts < OFFERS;) {
        turn(&fleet);
        for (int i = 0; i < 4; i++)
            while (next_arrival(fleet.backends[i], &arrival)) {
                int fd = -1;
                if (++arrived % 3 != 0) {
                    reject_at(&fleet, i, arrival.id, HANDOFF_REASON_BACKEND_BUSY);
                } else if (handoff_backend_adopt(fleet.backends[i], arrival.id, &fd)
                           == HANDOFF_OK) {
                    close(fd);
                }
            }
        for (; next_verdict(fleet.broker, &verdict); verdicts++) {
            assert_in_range(verdict.attempts, 1, 4);
            assert_int_equal((*(int *)verdict.user_data)++, 0);
        }
    }
    handoff_broker_statistics found = broker_statistics(fleet.broker);
    assert_int_equal(found.in_flight, 0);
    assert_true(found.failovers > 0);
    assert_int_equal(found.offered, OFFERS);
}

/* A socket at which nobody says anything takes the name of a backend's. */
static int replace_socket_of(int which)
{
    char path[80];
    snprintf(path, sizeof path, "%.63s/.next", fleet.directory);
    int listener = listen_unix(path, SOCK_SEQPACKET);
    assert_int_equal(rename(path, fleet.paths[which]), 0);
    return listener;
}

/* It has had the one backend, and waits for room at the other. */
static void offer_that_waits_ends_when_the_socket_of_its_backend_is_replaced(void **state)
{
    (void)state;
    handoff_broker_options options = patient();
    char place[80];
    uint64_t id = 0, first;
    snprintf(place, sizeof place, "%.63s/", fleet.directory);
    options.max_in_flight = 1;
    fleet.count = 2;
    listen_at(&fleet, 0, NULL);
    listen_at(&fleet, 1, NULL);
    assert_ok(handoff_broker_new(place, &options, &fleet.broker));
    until(&fleet, handoff_broker_room(fleet.broker) == 2);
    /* One does not answer what was taken back. */
    first = offer_client(&fleet);
    int hung = find_arrival(&fleet, &id), other = 1 - hung;
    assert_ok(handoff_broker_take_back(fleet.broker, first));
    /* The other one is busy, and then serves another client. */
    offer_client(&fleet);
    assert_int_equal(reject_next(HANDOFF_REASON_BACKEND_BUSY), other);
    until(&fleet, handoff_broker_room(fleet.broker) == 1);
    offer_client(&fleet);
    assert_int_equal(find_arrival(&fleet, &id), other);
    int listener = replace_socket_of(hung);
    handoff_verdict verdict = await_verdict(&fleet);
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, HANDOFF_REASON_BACKEND_BUSY);
    assert_int_equal(verdict.attempts, 1);
    close(listener);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FLEET_TEST(offer_goes_on_after_reasons_that_are_about_the_backend),
        FLEET_TEST(every_other_rejection_is_final),
        FLEET_TEST(kind_that_a_backend_does_not_take_is_final_and_named),
        FLEET_TEST(each_backend_is_tried_once_and_then_it_is_a_fallback),
        FLEET_TEST(last_reason_is_the_one_in_the_verdict),
        FLEET_TEST(everything_in_an_offer_reaches_the_next_backend),
        FLEET_TEST(backend_that_is_late_cannot_adopt_what_went_to_the_next_one),
        FLEET_TEST(backend_that_adopts_before_its_time_is_up_keeps_the_client),
        FLEET_TEST(deadline_of_the_offer_holds_over_all_attempts),
        FLEET_TEST(attempt_timeout_matters_only_where_there_is_another_backend),
        FLEET_TEST(offers_of_a_backend_that_dies_go_on),
        FLEET_TEST(offers_that_have_not_arrived_at_a_backend_that_drains_go_on),
        FLEET_TEST(offer_that_timed_out_goes_to_a_backend_that_comes_later),
        FLEET_TEST(offer_can_be_taken_back_while_it_is_at_its_second_backend),
        FLEET_TEST(closing_takes_back_what_is_at_its_second_backend),
        FLEET_TEST(offer_beyond_failover_bytes_is_tried_at_one_backend_only),
        FLEET_TEST(offer_goes_only_to_backends_that_take_it),
        FLEET_TEST(copy_that_one_backend_may_hold_is_in_the_verdict_of_another),
        FLEET_TEST(offer_that_waits_ends_when_the_socket_of_its_backend_is_replaced),
        FLEET_TEST(waiting_call_goes_on_to_the_next_backend),
        FLEET_TEST(verdicts_of_many_offers_come_once_each),
    };
    return RUN_TESTS(tests);
}
