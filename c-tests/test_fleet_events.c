/*
 * Anything that can happen to several backends, in any order: backends come, drain, die and hang,
 * are added, changed and removed while offers are made, taken back, adopted and rejected. Each
 * offer has one verdict, and no connection two owners.
 *
 * HANDOFF_EVENTS (20000) in each of HANDOFF_SEEDS (4) runs that begin with HANDOFF_SEED (1).
 */
#define _GNU_SOURCE
#include "fleet.h"

#include <stdlib.h>

enum { PATHS = 6, MOST_OFFERS = 1 << 20, MOST_HELD = 4096 };

struct record {
    uint64_t id;
    bool over; /* it has its verdict, or was taken back */
    uint8_t adopters;
};

struct held {
    int backend;
    uint64_t id;
    uint32_t number;
};

static struct fleet fleet;
static struct record *records;
static struct held held[MOST_HELD];
static size_t held_len, offered, over;
static char directory_path[80];

static size_t number(const char *name, size_t otherwise)
{
    const char *value = getenv(name);
    return value == NULL ? otherwise : strtoul(value, NULL, 10);
}

static int make_place(void **state)
{
    descriptors_before(state);
    make_fleet(&fleet);
    snprintf(directory_path, sizeof directory_path, "%.63s/", fleet.directory);
    fleet.count = PATHS;
    return 0;
}

static int remove_place(void **state)
{
    close_fleet(&fleet);
    return descriptors_after(state);
}

static int any(int count)
{
    return (int)(lrand48() % count);
}

static void end(struct record *record)
{
    assert_false(record->over);
    record->over = true;
    over++;
}

static void offer(void)
{
    uint32_t which = (uint32_t)offered;
    static uint8_t preread[3000];
    handoff_offer offer = offer_of(fleet.client[0]);
    memcpy(preread, &which, sizeof which);
    offer.preread = preread;
    offer.preread_len = sizeof which + (size_t)any(sizeof preread - sizeof which);
    offer.user_data = &records[which];
    offer.flags = any(2) ? HANDOFF_OFFER_MORE : 0;
    offer.timeout_ms = any(4) ? 0 : 1 + (uint64_t)any(20);
    handoff_status status = handoff_broker_offer(fleet.broker, &offer, &records[which].id);
    if (status == HANDOFF_OK)
        offered++;
    else
        assert_true(handoff_status_is_fallback_safe(status));
}

static void take_back(void)
{
    if (offered == over)
        return;
    struct record *record = &records[offered - 1 - (size_t)any(offered < 50 ? (int)offered : 50)];
    handoff_status status = handoff_broker_take_back(fleet.broker, record->id);
    if (status == HANDOFF_OK) {
        assert_int_equal(record->adopters, 0);
        end(record);
    } else {
        assert_status(status, HANDOFF_ERR_TOO_LATE);
    }
}

static void take_arrivals(int which)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    assert_ok(handoff_backend_dispatch(fleet.backends[which]));
    while (held_len < MOST_HELD && next_arrival(fleet.backends[which], &arrival)) {
        struct held *one = &held[held_len++];
        one->backend = which;
        one->id = arrival.id;
        assert_true(arrival.preread_len >= sizeof one->number);
        memcpy(&one->number, arrival.preread, sizeof one->number);
        assert_true(one->number < offered);
    }
}

/* Adopts one that is held, or rejects it. */
static void answer(void)
{
    static const handoff_reason reasons[] = {HANDOFF_REASON_BACKEND_BUSY, HANDOFF_REASON_REJECTED,
                                             HANDOFF_REASON_DESCRIPTOR_PRESSURE,
                                             HANDOFF_REASON_BACKEND_UNAVAILABLE};
    if (held_len == 0)
        return;
    int place = any((int)held_len), fd = -1;
    struct held one = held[place];
    held[place] = held[--held_len];
    if (any(2)) {
        reject_at(&fleet, one.backend, one.id, reasons[any(4)]);
        return;
    }
    handoff_status status = handoff_backend_adopt(fleet.backends[one.backend], one.id, &fd);
    if (status == HANDOFF_OK) {
        assert_false(records[one.number].over);
        assert_int_equal(records[one.number].adopters++, 0);
        close(fd);
    } else {
        assert_status(status, HANDOFF_ERR_TAKEN_BACK);
    }
}

static void dispatch(void)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_ok(handoff_broker_dispatch(fleet.broker));
    for (int most = any(50); most >= 0 && next_verdict(fleet.broker, &verdict); most--) {
        struct record *record = verdict.user_data;
        assert_int_equal(verdict.id, record->id);
        assert_int_equal(record->adopters, verdict.outcome == HANDOFF_ADOPTED);
        assert_true(verdict.attempts >= 1);
        assert_memory_equal(verdict.backend, fleet.directory, strlen(fleet.directory));
        end(record);
    }
}

static void forget_held(int which)
{
    for (size_t i = 0; i < held_len;)
        if (held[i].backend == which)
            held[i] = held[--held_len];
        else
            i++;
}

static void come_or_go(int which)
{
    if (fleet.backends[which] == NULL) {
        listen_at(&fleet, which, NULL);
        return;
    }
    if (any(3) == 0)
        assert_ok(handoff_backend_drain(fleet.backends[which]));
    if (any(2)) {
        forget_held(which);
        free_backend(&fleet, which);
    }
}

static void change(int which)
{
    handoff_broker_backend backend = backend_at(any(8) ? fleet.paths[which] : directory_path);
    backend.weight = (uint32_t)any(5);
    backend.flags = any(4) ? 0 : (uint32_t)any(4);
    backend.max_in_flight = any(2) ? 0 : 1 + (size_t)any(10);
    if (any(3) == 0) {
        handoff_status status = handoff_broker_remove(fleet.broker, backend.path);
        assert_true(status == HANDOFF_OK || status == HANDOFF_NOTHING);
    } else {
        assert_ok(handoff_broker_add(fleet.broker, &backend));
    }
}

static void look_at_states(void)
{
    handoff_broker_backend_state found = HANDOFF_BROKER_BACKEND_STATE_INIT;
    handoff_broker_statistics statistics = broker_statistics(fleet.broker);
    uint64_t in_flight = 0;
    assert_int_equal(handoff_broker_flush(fleet.broker), HANDOFF_OK);
    for (size_t i = 0; handoff_broker_get_backend_state(fleet.broker, i, &found) == HANDOFF_OK; i++) {
        uint64_t ended = found.adopted + found.taken_back, timed = 0;
        for (int k = 0; k < 32; k++) {
            ended += found.fallbacks[k];
            timed += found.histogram[k];
        }
        assert_int_equal(ended, timed);
        assert_int_equal(found.offered, ended + found.in_flight);
        assert_in_range(found.state, HANDOFF_STATE_CONNECTING, HANDOFF_STATE_DOWN);
        in_flight += found.in_flight;
    }
    assert_true(in_flight <= statistics.in_flight);
    assert_true(in_flight <= offered - over);
}

static void run(long seed, size_t events)
{
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    srand48(seed);
    offered = over = held_len = 0;
    memset(records, 0, MOST_OFFERS * sizeof *records);
    options.timeout_ms = 100;
    options.attempt_timeout_ms = 1 + (uint64_t)any(10);
    options.reconnect_min_ms = 1;
    options.reconnect_max_ms = 2;
    options.max_failures = any(2) ? HANDOFF_NO_LIMIT : 50;
    options.failover_bytes = any(2) ? 0 : 20000;
    options.max_in_flight = 1 + (size_t)any(64);
    assert_ok(handoff_broker_new(any(2) ? directory_path : NULL, &options, &fleet.broker));
    for (size_t i = 0; i < events; i++) {
        int kind = any(200), which = any(PATHS);
        if (kind < 70)
            offer();
        else if (kind < 80)
            take_back();
        else if (kind < 130)
            answer();
        else if (kind < 160)
            dispatch();
        else if (kind < 190 && fleet.backends[which] != NULL)
            take_arrivals(which);
        else if (kind < 193)
            come_or_go(which);
        else if (kind < 196)
            change(which);
        else if (kind < 198)
            look_at_states();
        else
            assert_in_range(handoff_broker_room(fleet.broker), 0, PATHS * 64);
    }
    /* What is in flight has its verdict at its deadline at the latest. */
    while (over < offered) {
        struct pollfd poll_fd = {.fd = handoff_broker_fd(fleet.broker), .events = POLLIN};
        assert_int_equal(poll(&poll_fd, 1, PATIENCE_MS), 1);
        dispatch();
    }
    handoff_broker_statistics all = broker_statistics(fleet.broker);
    uint64_t fallbacks = 0;
    for (int i = 0; i < 32; i++)
        fallbacks += all.fallbacks[i];
    assert_int_equal(all.offered, offered);
    assert_int_equal(all.offered, all.adopted + all.taken_back + fallbacks);
    assert_int_equal(all.in_flight, 0);
    while (held_len > 0)
        answer();
    printf("seed %ld: %zu offers, %lu adopted, %lu taken back, %lu went on\n", seed, offered,
           (unsigned long)all.adopted, (unsigned long)all.taken_back,
           (unsigned long)all.failovers);
    handoff_broker_free(fleet.broker);
    fleet.broker = NULL;
    for (int i = 0; i < PATHS; i++)
        free_backend(&fleet, i);
}

static void no_offer_is_lost_or_adopted_twice(void **state)
{
    (void)state;
    size_t seeds = number("HANDOFF_SEEDS", 4), first = number("HANDOFF_SEED", 1);
    records = malloc(MOST_OFFERS * sizeof *records);
    assert_non_null(records);
    for (size_t i = 0; i < seeds; i++)
        run((long)(first + i), number("HANDOFF_EVENTS", 20000));
    free(records);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(no_offer_is_lost_or_adopted_twice, make_place,
                                        remove_place),
    };
    return RUN_TESTS(tests);
}
