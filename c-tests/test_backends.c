/* Several backends of one broker: adding, changing and removing them, and which one gets an offer. */
#define _GNU_SOURCE
#include "fleet.h"

#include <errno.h>
#include <sys/resource.h>

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

/* How many of so many offers, all in flight, each of the first backends has. */
static void assert_spread(int offers, const int expected[], int count)
{
    for (int i = 0; i < offers; i++)
        offer_client(&fleet);
    for (int i = 0; i < count; i++)
        assert_int_equal(state_of(fleet.broker, fleet.paths[i]).in_flight, expected[i]);
}

static void change(int which, uint32_t weight, uint32_t flags)
{
    handoff_broker_backend backend = backend_at(fleet.paths[which]);
    backend.weight = weight;
    backend.flags = flags;
    assert_ok(handoff_broker_add(fleet.broker, &backend));
}

static void broker_without_backends_takes_nothing_until_one_is_added(void **state)
{
    (void)state;
    handoff_broker_backend_state none = HANDOFF_BROKER_BACKEND_STATE_INIT;
    handoff_offer offer = offer_of(fleet.client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_ok(handoff_broker_new(NULL, NULL, &fleet.broker));
    assert_status(handoff_broker_get_backend_state(fleet.broker, 0, &none), HANDOFF_NOTHING);
    assert_status(handoff_broker_offer(fleet.broker, &offer, NULL),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_last_error_has("no backend");
    assert_status(handoff_broker_offer_and_wait(fleet.broker, &offer, &verdict),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_int_equal(handoff_broker_room(fleet.broker), 0);

    handoff_broker_backend backend = backend_at(fleet.paths[0]);
    fleet.count = 1;
    listen_at(&fleet, 0, NULL);
    assert_ok(handoff_broker_add(fleet.broker, &backend));
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_READY));
    assert_int_equal(handoff_broker_room(fleet.broker), 256);
    offer_client(&fleet);
    assert_int_equal(arrivals_at(&fleet, 0, NULL), 1);
}

static void adding_before_the_first_use_opens_nothing(void **state)
{
    (void)state;
    static char paths[100][80];
    struct rlimit none = {0, 0}, before;
    assert_ok(handoff_broker_new(NULL, NULL, &fleet.broker));
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none.rlim_max = before.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    for (int i = 0; i < 100; i++) {
        snprintf(paths[i], sizeof paths[i], "%.63s/%d/", fleet.directory, i);
        paths[i][strlen(paths[i]) - i % 2] = '\0';
        handoff_broker_backend backend = backend_at(paths[i]);
        assert_ok(handoff_broker_add(fleet.broker, &backend));
    }
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    for (int i = 0; i < 100; i++)
        assert_ok(handoff_broker_remove(fleet.broker, paths[i]));
    assert_int_equal(count_backends(fleet.broker), 0);
}

static void path_that_is_there_already_is_changed_and_not_added(void **state)
{
    (void)state;
    open_fleet(&fleet, 2, NULL, NULL);
    assert_int_equal(count_backends(fleet.broker), 2);
    change(1, 7, HANDOFF_BACKEND_BACKUP);
    assert_int_equal(count_backends(fleet.broker), 2);
    handoff_broker_backend_state found = state_of(fleet.broker, fleet.paths[1]);
    assert_int_equal(found.weight, 7);
    assert_int_equal(found.flags, HANDOFF_BACKEND_BACKUP);
    assert_int_equal(found.connects, 1);
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).weight, 1);
}

static void states_are_in_the_order_in_which_backends_were_added(void **state)
{
    (void)state;
    handoff_broker_backend_state found = HANDOFF_BROKER_BACKEND_STATE_INIT;
    open_fleet(&fleet, 4, NULL, NULL);
    assert_ok(handoff_broker_remove(fleet.broker, fleet.paths[1]));
    change(1, 1, 0);
    static const int order[] = {0, 2, 3, 1};
    for (size_t i = 0; i < 4; i++) {
        assert_ok(handoff_broker_get_backend_state(fleet.broker, i, &found));
        assert_string_equal(found.path, fleet.paths[order[i]]);
    }
    assert_status(handoff_broker_get_backend_state(fleet.broker, 4, &found), HANDOFF_NOTHING);
    assert_status(handoff_broker_get_backend_state(fleet.broker, SIZE_MAX, &found), HANDOFF_NOTHING);
}

static void offers_in_flight_at_a_removed_backend_end_as_they_do(void **state)
{
    (void)state;
    uint64_t id = 0;
    open_fleet(&fleet, 2, NULL, NULL);
    uint64_t first = offer_client(&fleet), second = offer_client(&fleet);
    assert_int_equal(arrivals_at(&fleet, 0, &id), 1);
    assert_ok(handoff_broker_remove(fleet.broker, fleet.paths[0]));
    assert_status(handoff_broker_remove(fleet.broker, fleet.paths[0]), HANDOFF_NOTHING);
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).state, HANDOFF_STATE_DRAINING);
    /* Nothing more goes there. */
    for (int i = 0; i < 5; i++)
        offer_client(&fleet);
    assert_int_equal(state_of(fleet.broker, fleet.paths[1]).in_flight, 6);
    adopt_at(&fleet, 0, id);
    handoff_verdict verdict = await_verdict(&fleet);
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    assert_true(verdict.id == first || verdict.id == second);
    assert_string_equal(verdict.backend, fleet.paths[0]);
    /* Then its channel is closed. */
    until(&fleet, backend_statistics(fleet.backends[0]).channels == 0);
    assert_int_equal(count_backends(fleet.broker), 1);
    assert_int_equal(backend_statistics(fleet.backends[0]).broken, 0);
}

static void backend_that_is_removed_and_added_again_is_a_backend_again(void **state)
{
    (void)state;
    open_fleet(&fleet, 2, NULL, NULL);
    for (int round = 0; round < 20; round++) {
        assert_ok(handoff_broker_remove(fleet.broker, fleet.paths[0]));
        change(0, 1, 0);
        until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_READY));
    }
    /* Also while something is in flight: then it keeps its channel. */
    offer_client(&fleet);
    offer_client(&fleet);
    uint64_t connects = state_of(fleet.broker, fleet.paths[0]).connects;
    assert_ok(handoff_broker_remove(fleet.broker, fleet.paths[0]));
    change(0, 1, 0);
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).state, HANDOFF_STATE_READY);
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).connects, connects);
}

static void broker_with_one_path_can_have_more(void **state)
{
    (void)state;
    assert_ok(handoff_broker_new(fleet.paths[0], NULL, &fleet.broker));
    fleet.count = 2;
    listen_at(&fleet, 0, NULL);
    listen_at(&fleet, 1, NULL);
    change(1, 1, 0);
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_READY) &&
                      is_in_state(&fleet, 1, HANDOFF_STATE_READY));
    assert_spread(4, (int[]){2, 2}, 2);
    assert_ok(handoff_broker_remove(fleet.broker, fleet.paths[0]));
}

static void one_with_the_fewest_in_flight_is_next(void **state)
{
    (void)state;
    open_fleet(&fleet, 3, NULL, NULL);
    assert_spread(9, (int[]){3, 3, 3}, 3);
    /* One of them is done with its three. */
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    receive_all(fleet.backends[1]);
    while (next_arrival(fleet.backends[1], &arrival))
        adopt_at(&fleet, 1, arrival.id);
    turn(&fleet);
    assert_spread(3, (int[]){3, 3, 3}, 3);
    assert_spread(3, (int[]){4, 4, 4}, 3);
}

static void weights_are_shares_of_what_is_in_flight(void **state)
{
    (void)state;
    open_fleet(&fleet, 3, NULL, NULL);
    change(0, 3, 0);
    assert_spread(5, (int[]){3, 1, 1}, 3);
    assert_spread(95, (int[]){60, 20, 20}, 3);
    change(0, 1, 0);
    assert_spread(20, (int[]){60, 30, 30}, 3);
}

/* Also where each client is answered before the next one comes. */
static void weights_are_shares_of_offers_that_come_one_after_the_other(void **state)
{
    (void)state;
    int adopted[3] = {0};
    open_fleet(&fleet, 3, NULL, NULL);
    change(0, 3, 0);
    for (int i = 0; i < 100; i++) {
        uint64_t id = 0;
        offer_client(&fleet);
        int which = find_arrival(&fleet, &id);
        adopt_at(&fleet, which, id);
        assert_int_equal(await_verdict(&fleet).outcome, HANDOFF_ADOPTED);
        adopted[which]++;
    }
    assert_int_equal(adopted[0], 60);
    assert_int_equal(adopted[1], 20);
    assert_int_equal(adopted[2], 20);
}

/* And where one or two others are in flight: one of the heavy one's leaves it with less to do than a
   light one would have with this offer. */
static void weights_are_shares_where_few_offers_are_in_flight(void **state)
{
    (void)state;
    enum { IN_FLIGHT = 3, OFFERS = 500 };
    struct {
        int which;
        uint64_t id;
    } held[IN_FLIGHT];
    int adopted[3] = {0};
    open_fleet(&fleet, 3, NULL, NULL);
    change(0, 3, 0);
    for (int i = 0; i < OFFERS; i++) {
        if (i >= IN_FLIGHT) {
            adopt_at(&fleet, held[i % IN_FLIGHT].which, held[i % IN_FLIGHT].id);
            adopted[held[i % IN_FLIGHT].which]++;
            assert_int_equal(await_verdict(&fleet).outcome, HANDOFF_ADOPTED);
        }
        offer_client(&fleet);
        held[i % IN_FLIGHT].which = find_arrival(&fleet, &held[i % IN_FLIGHT].id);
    }
    print_message("weights 3:1:1, three in flight: %d, %d and %d\n", adopted[0], adopted[1],
                  adopted[2]);
    assert_in_range(adopted[0], OFFERS * 27 / 50, OFFERS * 33 / 50);
    assert_in_range(adopted[1], OFFERS * 9 / 50, OFFERS * 11 / 50);
    assert_in_range(adopted[2], OFFERS * 9 / 50, OFFERS * 11 / 50);
}

static void backup_has_offers_only_while_no_other_takes_them(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_in_flight = 4;
    open_fleet(&fleet, 3, &options, NULL);
    change(2, 100, HANDOFF_BACKEND_BACKUP);
    assert_int_equal(handoff_broker_room(fleet.broker), 12);
    assert_spread(8, (int[]){4, 4, 0}, 3);
    assert_spread(1, (int[]){4, 4, 1}, 3);
    uint64_t id = 0;
    assert_true(arrivals_at(&fleet, 0, &id) > 0);
    adopt_at(&fleet, 0, id);
    assert_int_equal(await_verdict(&fleet).outcome, HANDOFF_ADOPTED);
    assert_spread(1, (int[]){4, 4, 1}, 3);
    free_backend(&fleet, 0);
    free_backend(&fleet, 1);
    until(&fleet, is_in_state(&fleet, 1, HANDOFF_STATE_DOWN));
    /* What they had goes to the backup, too, as far as it has room. */
    until(&fleet, state_of(fleet.broker, fleet.paths[2]).in_flight == 4);
}

static void backend_that_is_off_has_no_channel_and_no_offers(void **state)
{
    (void)state;
    open_fleet(&fleet, 2, NULL, NULL);
    change(1, 1, HANDOFF_BACKEND_OFF);
    until(&fleet, backend_statistics(fleet.backends[1]).channels == 0);
    assert_spread(4, (int[]){4, 0}, 2);
    assert_int_equal(state_of(fleet.broker, fleet.paths[1]).next_ms, HANDOFF_NO_TIMEOUT);
    assert_int_equal(state_of(fleet.broker, fleet.paths[1]).flags, HANDOFF_BACKEND_OFF);
    change(1, 1, 0);
    until(&fleet, is_in_state(&fleet, 1, HANDOFF_STATE_READY));
    assert_spread(4, (int[]){4, 4}, 2);
}

static void limit_of_one_backend_holds_there_and_from_the_next_channel_on(void **state)
{
    (void)state;
    open_fleet(&fleet, 2, NULL, NULL);
    handoff_broker_backend backend = backend_at(fleet.paths[0]);
    backend.max_in_flight = 2;
    assert_ok(handoff_broker_add(fleet.broker, &backend));
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).room, 256);
    free_backend(&fleet, 0);
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_DOWN));
    listen_at(&fleet, 0, NULL);
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_READY));
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).room, 2);
    assert_spread(10, (int[]){2, 8}, 2);
}

static void full_broker_is_readable_when_there_is_room_again(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_offer offer = offer_of(fleet.client[0]);
    uint64_t id = 0;
    options.max_in_flight = 3;
    open_fleet(&fleet, 2, &options, NULL);
    for (size_t room = 6; room > 0; room--) {
        assert_int_equal(handoff_broker_room(fleet.broker), room);
        offer_client(&fleet);
    }
    assert_int_equal(handoff_broker_room(fleet.broker), 0);
    assert_status(handoff_broker_offer(fleet.broker, &offer, NULL), HANDOFF_ERR_FULL);
    while (is_readable(handoff_broker_fd(fleet.broker)))
        assert_ok(handoff_broker_dispatch(fleet.broker));
    assert_true(arrivals_at(&fleet, 1, &id) > 0);
    adopt_at(&fleet, 1, id);
    await_readable(handoff_broker_fd(fleet.broker));
    assert_int_equal(await_verdict(&fleet).outcome, HANDOFF_ADOPTED);
    assert_int_equal(handoff_broker_room(fleet.broker), 1);
    offer_client(&fleet);
}

/* Room that comes without a verdict. Each end is dispatched only when its descriptor says so. */
static void broker_that_refused_is_readable_when_a_backend_comes(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(fleet.client[0]);
    open_fleet(&fleet, 1, NULL, NULL);
    free_backend(&fleet, 0);
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_DOWN));
    assert_status(handoff_broker_offer(fleet.broker, &offer, NULL),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    listen_at(&fleet, 0, NULL);
    while (handoff_broker_room(fleet.broker) == 0) {
        struct pollfd fds[] = {
            {.fd = handoff_broker_fd(fleet.broker), .events = POLLIN},
            {.fd = handoff_backend_fd(fleet.backends[0]), .events = POLLIN},
        };
        assert_true(poll(fds, 2, PATIENCE_MS) > 0);
        if (fds[0].revents)
            assert_ok(handoff_broker_dispatch(fleet.broker));
        if (fds[1].revents)
            assert_ok(handoff_backend_dispatch(fleet.backends[0]));
    }
    assert_int_equal(handoff_broker_room(fleet.broker), 256);
}

static void arguments_are_checked(void **state)
{
    (void)state;
    open_fleet(&fleet, 1, NULL, NULL);
    handoff_broker_backend good = backend_at(fleet.paths[1]), bad;
    handoff_broker_backend_state found = HANDOFF_BROKER_BACKEND_STATE_INIT;
    char path[200];
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = '\0';

    assert_invalid(handoff_broker_add(NULL, &good));
    assert_invalid(handoff_broker_add(fleet.broker, NULL));
    assert_invalid(handoff_broker_add(fleet.broker, misaligned()));
    bad = backend_at(NULL);
    assert_invalid_because(handoff_broker_add(fleet.broker, &bad), "path");
    bad = backend_at("");
    assert_invalid(handoff_broker_add(fleet.broker, &bad));
    bad = backend_at(path);
    assert_invalid(handoff_broker_add(fleet.broker, &bad));
    bad = good;
    bad.flags = 4;
    assert_invalid_because(handoff_broker_add(fleet.broker, &bad), "flags");
    bad = good;
    bad.size = 3;
    assert_invalid_because(handoff_broker_add(fleet.broker, &bad), "HANDOFF_BROKER_BACKEND_INIT");
    assert_invalid(handoff_broker_remove(NULL, fleet.paths[0]));
    assert_invalid(handoff_broker_remove(fleet.broker, NULL));
    assert_status(handoff_broker_remove(fleet.broker, "/nowhere"), HANDOFF_NOTHING);
    assert_status(handoff_broker_remove(fleet.broker, "/nowhere/"), HANDOFF_NOTHING);
    assert_int_equal(handoff_broker_room(NULL), 0);
    assert_invalid(handoff_broker_get_backend_state(NULL, 0, &found));
    assert_invalid(handoff_broker_get_backend_state(fleet.broker, 0, NULL));
    assert_invalid(handoff_broker_get_backend_state(fleet.broker, 0, misaligned()));
    found.size = 3;
    assert_invalid_because(handoff_broker_get_backend_state(fleet.broker, 0, &found),
                           "HANDOFF_BROKER_BACKEND_STATE_INIT");
    assert_invalid(handoff_broker_backend_init(NULL, sizeof bad));
    assert_invalid(handoff_broker_backend_init(&bad, 3));
    assert_ok(handoff_broker_backend_init(&bad, sizeof bad));
    bad.path = good.path;
    assert_memory_equal(&bad, &good, sizeof good);
    assert_int_equal(count_backends(fleet.broker), 1);
}

static void weights_are_clamped(void **state)
{
    (void)state;
    open_fleet(&fleet, 1, NULL, NULL);
    change(0, UINT32_MAX, 0);
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).weight, 65535);
    change(0, 0, 0);
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).weight, 1);
}

static void closed_broker_adds_and_removes_nothing(void **state)
{
    (void)state;
    open_fleet(&fleet, 2, NULL, NULL);
    handoff_broker_backend backend = backend_at(fleet.paths[2]);
    assert_ok(handoff_broker_close(fleet.broker));
    assert_status(handoff_broker_add(fleet.broker, &backend), HANDOFF_ERR_CLOSED);
    assert_status(handoff_broker_remove(fleet.broker, fleet.paths[0]), HANDOFF_ERR_CLOSED);
    assert_int_equal(handoff_broker_room(fleet.broker), 0);
    /* What was counted can still be read. */
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).connects, 1);
}

static void backends_belong_to_the_process_that_used_the_broker_first(void **state)
{
    (void)state;
    open_fleet(&fleet, 1, NULL, NULL);
    pid_t child = start_child();
    if (child == 0) {
        handoff_broker_backend backend = backend_at(fleet.paths[2]);
        handoff_broker_backend_state found = HANDOFF_BROKER_BACKEND_STATE_INIT;
        child_assert(handoff_broker_add(fleet.broker, &backend) == HANDOFF_ERR_WRONG_PROCESS);
        child_assert(handoff_broker_remove(fleet.broker, fleet.paths[0])
                     == HANDOFF_ERR_WRONG_PROCESS);
        child_assert(handoff_broker_room(fleet.broker) == 0);
        child_assert(strstr(handoff_last_error(), "another process") != NULL);
        child_assert(handoff_broker_get_backend_state(fleet.broker, 0, &found) == HANDOFF_OK);
        _exit(0);
    }
    assert_child_succeeds(child);
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).state, HANDOFF_STATE_READY);
}

static void broker_has_at_most_1024_backends(void **state)
{
    (void)state;
    char path[100];
    handoff_broker_backend backend = backend_at(path);
    assert_ok(handoff_broker_new(NULL, NULL, &fleet.broker));
    for (int i = 0; i < 1024; i++) {
        snprintf(path, sizeof path, "%s/%d", fleet.directory, i);
        assert_ok(handoff_broker_add(fleet.broker, &backend));
    }
    snprintf(path, sizeof path, "%s/more", fleet.directory);
    assert_status(handoff_broker_add(fleet.broker, &backend), HANDOFF_ERR_FULL);
    snprintf(path, sizeof path, "%s/7", fleet.directory);
    assert_ok(handoff_broker_remove(fleet.broker, path));
    snprintf(path, sizeof path, "%s/more", fleet.directory);
    assert_ok(handoff_broker_add(fleet.broker, &backend));
    assert_int_equal(count_backends(fleet.broker), 1024);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FLEET_TEST(broker_without_backends_takes_nothing_until_one_is_added),
        FLEET_TEST(adding_before_the_first_use_opens_nothing),
        FLEET_TEST(path_that_is_there_already_is_changed_and_not_added),
        FLEET_TEST(states_are_in_the_order_in_which_backends_were_added),
        FLEET_TEST(offers_in_flight_at_a_removed_backend_end_as_they_do),
        FLEET_TEST(backend_that_is_removed_and_added_again_is_a_backend_again),
        FLEET_TEST(broker_with_one_path_can_have_more),
        FLEET_TEST(one_with_the_fewest_in_flight_is_next),
        FLEET_TEST(weights_are_shares_of_what_is_in_flight),
        FLEET_TEST(weights_are_shares_of_offers_that_come_one_after_the_other),
        FLEET_TEST(weights_are_shares_where_few_offers_are_in_flight),
        FLEET_TEST(backup_has_offers_only_while_no_other_takes_them),
        FLEET_TEST(backend_that_is_off_has_no_channel_and_no_offers),
        FLEET_TEST(limit_of_one_backend_holds_there_and_from_the_next_channel_on),
        FLEET_TEST(full_broker_is_readable_when_there_is_room_again),
        FLEET_TEST(broker_that_refused_is_readable_when_a_backend_comes),
        FLEET_TEST(arguments_are_checked),
        FLEET_TEST(weights_are_clamped),
        FLEET_TEST(closed_broker_adds_and_removes_nothing),
        FLEET_TEST(backends_belong_to_the_process_that_used_the_broker_first),
        FLEET_TEST(broker_has_at_most_1024_backends),
    };
    return RUN_TESTS(tests);
}
