/* Threads that wait for room at one of several backends of a broker that they share. */
#define _GNU_SOURCE
#include "fleet.h"

#include <pthread.h>
#include <sys/resource.h>

enum { THREADS = 20, CALLS = 100, SMALL = 1000 };

/* What a thread offers, and what came of it. cmocka's asserts are for the test's own thread. */
struct offerer {
    pthread_t thread;
    size_t preread_len;
    handoff_status status;
    handoff_verdict verdict;
};

static struct fleet fleet;
static struct offerer offerers[THREADS];

static void *offer_once(void *argument)
{
    static const char preread[4 * SMALL];
    struct offerer *self = argument;
    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = fleet.client[0];
    offer.preread = preread;
    offer.preread_len = self->preread_len;
    offer.timeout_ms = HANDOFF_NO_TIMEOUT;
    self->verdict = (handoff_verdict)HANDOFF_VERDICT_INIT;
    self->status = handoff_broker_offer_and_wait(fleet.broker, &offer, &self->verdict);
    return NULL;
}

/* Starts a thread whose offer finds room, or waits. */
static void start_offerer(int i, size_t preread_len)
{
    offerers[i] = (struct offerer){.preread_len = preread_len};
    assert_int_equal(pthread_create(&offerers[i].thread, NULL, offer_once, &offerers[i]), 0);
    usleep(2000);
}

static void join_offerer(int i)
{
    assert_int_equal(pthread_join(offerers[i].thread, NULL), 0);
    assert_status(offerers[i].status, HANDOFF_OK);
    assert_int_equal(offerers[i].verdict.outcome, HANDOFF_ADOPTED);
}

static handoff_arrival await_arrival(int which)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    uint64_t start = now_ns();
    while (handoff_backend_next(fleet.backends[which], &arrival) != HANDOFF_OK) {
        assert_true(ms_since(start) < PATIENCE_MS);
        assert_ok(handoff_backend_dispatch(fleet.backends[which]));
    }
    return arrival;
}

/* Two backends that hold an offer each, which is all that they take at once. */
static void fill_both(uint64_t ids[2])
{
    for (int i = 0; i < 2; i++)
        start_offerer(i, 0);
    for (int i = 0; i < 2; i++)
        ids[i] = await_arrival(i).id;
}

static int open_two(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.flags = HANDOFF_BROKER_SHARED;
    options.max_in_flight = 1;
    options.max_failures = HANDOFF_NO_LIMIT;
    /* A backend that holds its one offer answers nothing, and no other is to have it. */
    options.attempt_timeout_ms = HANDOFF_NO_TIMEOUT;
    open_fleet(&fleet, 2, &options, NULL);
    return 0;
}

static int close_two(void **state)
{
    (void)state;
    close_fleet(&fleet);
    memset(&fleet, 0, sizeof fleet);
    return 0;
}

#define ROOM_TEST(function) cmocka_unit_test_setup_teardown(function, open_two, close_two)

static void one_for_which_only_a_full_backend_is_large_enough_holds_up_no_other(void **state)
{
    (void)state;
    free_backend(&fleet, 1);
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_offer_bytes = SMALL;
    listen_at(&fleet, 1, &options);
    until(&fleet, is_in_state(&fleet, 1, HANDOFF_STATE_READY));
    uint64_t ids[2];
    fill_both(ids);
    start_offerer(2, 2 * SMALL);
    start_offerer(3, SMALL / 2);
    adopt_at(&fleet, 1, ids[1]);
    handoff_arrival arrival = await_arrival(1);
    assert_int_equal(arrival.preread_len, SMALL / 2);
    adopt_at(&fleet, 0, ids[0]);
    assert_int_equal(await_arrival(0).preread_len, 2 * SMALL);
    adopt_at(&fleet, 1, arrival.id);
    assert_ok(handoff_backend_dispatch(fleet.backends[1]));
    free_backend(&fleet, 0);
    join_offerer(3);
    assert_int_equal(pthread_join(offerers[2].thread, NULL), 0);
    assert_int_equal(offerers[2].verdict.outcome, HANDOFF_FALLBACK);
    for (int i = 0; i < 2; i++)
        join_offerer(i);
}

static long context_switches(void)
{
    struct rusage usage;
    assert_int_equal(getrusage(RUSAGE_SELF, &usage), 0);
    return usage.ru_nvcsw;
}

static void call_that_makes_no_room_wakes_none_that_wait_for_it(void **state)
{
    (void)state;
    uint64_t ids[2];
    fill_both(ids);
    for (int i = 2; i < THREADS; i++)
        start_offerer(i, (size_t)(SMALL - i));
    long before = context_switches();
    for (int i = 0; i < CALLS; i++) {
        broker_statistics(fleet.broker);
        usleep(1000);
    }
    long switches = context_switches() - before;
    /* If each woke up once for each call, it would be THREADS times as many. */
    assert_in_range(switches, 0, CALLS * THREADS / 4);
    adopt_at(&fleet, 0, ids[0]);
    adopt_at(&fleet, 1, ids[1]);
    for (int i = 2; i < THREADS; i++) {
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        int which = 0;
        uint64_t start = now_ns();
        while (handoff_backend_next(fleet.backends[which], &arrival) != HANDOFF_OK) {
            assert_true(ms_since(start) < PATIENCE_MS);
            which = !which;
            assert_ok(handoff_backend_dispatch(fleet.backends[which]));
        }
        adopt_at(&fleet, which, arrival.id);
    }
    for (int i = 0; i < THREADS; i++)
        join_offerer(i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ROOM_TEST(one_for_which_only_a_full_backend_is_large_enough_holds_up_no_other),
        ROOM_TEST(call_that_makes_no_room_wakes_none_that_wait_for_it),
    };
    return RUN_TESTS(tests);
}
