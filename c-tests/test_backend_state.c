/* What a broker tells of each backend: what it does, why, since when, what comes next, and counts. */
#define _GNU_SOURCE
#include "fleet.h"

#include <errno.h>
#include <sys/stat.h>
#include <sys/un.h>

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

/* A broker for one path, at which nobody listens yet. */
static void open_broker(const handoff_broker_options *options)
{
    assert_ok(handoff_broker_new(fleet.paths[0], options, &fleet.broker));
    fleet.count = 1;
}

static handoff_broker_backend_state only_state(void)
{
    return state_of(fleet.broker, fleet.paths[0]);
}

static void assert_state(uint32_t state, handoff_status status, int error, const char *message)
{
    handoff_broker_backend_state found = only_state();
    assert_int_equal(found.state, state);
    assert_status(found.status, status);
    assert_int_equal(found.system_errno, error);
    assert_non_null(found.message);
    if (strstr(found.message, message) == NULL)
        fail_msg("not in the message: %s: %s", message, found.message);
    if (status == HANDOFF_OK)
        assert_string_equal(found.message, "");
    else
        assert_non_null(strstr(found.message, fleet.paths[0]));
}

static void broker_that_was_not_used_yet_is_connecting(void **state)
{
    (void)state;
    open_broker(NULL);
    assert_state(HANDOFF_STATE_CONNECTING, HANDOFF_OK, 0, "");
    assert_int_equal(only_state().failed_connects, 0);
    assert_int_equal(only_state().room, 0);
}

static void path_without_a_listener_is_down_and_says_why(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.reconnect_min_ms = options.reconnect_max_ms = 20000;
    open_broker(&options);
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_DOWN));
    assert_state(HANDOFF_STATE_DOWN, HANDOFF_ERR_BACKEND_UNAVAILABLE, ENOENT,
                 "there is no such socket");
    assert_int_equal(only_state().failed_connects, 1);
    assert_int_equal(only_state().connects, 0);
    assert_in_range(only_state().next_ms, 1, 20000);
}

static void socket_that_is_closed_refuses(void **state)
{
    (void)state;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    strcpy(address.sun_path, fleet.paths[0]);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd);
    open_broker(NULL);
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_DOWN));
    assert_state(HANDOFF_STATE_DOWN, HANDOFF_ERR_BACKEND_UNAVAILABLE, ECONNREFUSED,
                 "nobody listens");
    until(&fleet, only_state().failed_connects >= 3);
}

static void socket_without_permission_says_so(void **state)
{
    (void)state;
    need_root();
    listen_at(&fleet, 0, NULL);
    assert_int_equal(chmod(fleet.directory, 0755), 0);
    pid_t child = start_child();
    if (child == 0) {
        become_nobody();
        child_assert(handoff_broker_new(fleet.paths[0], NULL, &fleet.broker) == HANDOFF_OK);
        child_assert(handoff_broker_fd(fleet.broker) != -1);
        handoff_broker_backend_state found = HANDOFF_BROKER_BACKEND_STATE_INIT;
        child_assert(handoff_broker_get_backend_state(fleet.broker, 0, &found) == HANDOFF_OK);
        child_assert(found.state == HANDOFF_STATE_DOWN);
        child_assert(found.status == HANDOFF_ERR_PERMISSION_DENIED && found.system_errno == EACCES);
        char who[50];
        snprintf(who, sizeof who, "user %u may not use the socket", geteuid());
        child_assert(strstr(found.message, who) != NULL);
        _exit(0);
    }
    assert_child_succeeds(child);
    open_broker(NULL);
}

static void backend_that_does_not_allow_the_broker_says_so(void **state)
{
    (void)state;
    static const uint32_t others[] = {4001};
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    policy.users = others;
    policy.users_len = 1;
    options.policy = &policy;
    open_broker(NULL);
    listen_at(&fleet, 0, &options);
    until(&fleet, only_state().status == HANDOFF_ERR_PERMISSION_DENIED);
    assert_state(HANDOFF_STATE_DOWN, HANDOFF_ERR_PERMISSION_DENIED, 0,
                 "the backend does not allow user");
}

static void backend_is_ready_once_it_has_said_welcome(void **state)
{
    (void)state;
    open_broker(NULL);
    listen_at(&fleet, 0, NULL);
    assert_int_not_equal(handoff_broker_fd(fleet.broker), -1);
    assert_int_equal(only_state().state, HANDOFF_STATE_CONNECTING);
    assert_int_equal(only_state().next_ms, 0);
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_READY));
    assert_state(HANDOFF_STATE_READY, HANDOFF_OK, 0, "");
    assert_int_equal(only_state().connects, 1);
    assert_int_equal(only_state().room, 256);
    assert_true(only_state().next_ms == HANDOFF_NO_TIMEOUT);
    offer_client(&fleet);
    assert_int_equal(only_state().room, 255);
    assert_int_equal(only_state().in_flight, 1);
}

/* A broker without an event loop may do nothing for hours. */
static void broker_that_has_not_looked_does_not_say_that_the_backend_is_silent(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(fleet.client[0]);
    open_broker(NULL);
    listen_at(&fleet, 0, NULL);
    assert_int_not_equal(handoff_broker_fd(fleet.broker), -1);
    assert_int_equal(usleep(1100 * 1000), 0);
    assert_state(HANDOFF_STATE_CONNECTING, HANDOFF_OK, 0, "");
    assert_status(handoff_broker_offer(fleet.broker, &offer, NULL),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_last_error_has("the backend has not answered yet");
}

/* A backend that says nothing is one to wait for, but not if it was silent for long before. */
static void successor_is_not_blamed_for_a_silence_before_it(void **state)
{
    (void)state;
    open_broker(NULL);
    listen_at(&fleet, 0, NULL);
    for (uint64_t start = now_ns(); only_state().state != HANDOFF_STATE_DOWN;) {
        struct pollfd poll_fd = {.fd = handoff_broker_fd(fleet.broker), .events = POLLIN};
        assert_true(ms_since(start) < PATIENCE_MS);
        poll(&poll_fd, 1, 100);
        assert_ok(handoff_broker_dispatch(fleet.broker));
    }
    assert_non_null(strstr(only_state().message, "did not answer within"));
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_READY));

    handoff_backend *successor;
    assert_ok(handoff_backend_drain(fleet.backends[0]));
    assert_ok(handoff_backend_listen(fleet.paths[0], NULL, &successor));
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_CONNECTING));
    assert_state(HANDOFF_STATE_CONNECTING, HANDOFF_OK, 0, "");
    handoff_backend_free(fleet.backends[0]);
    fleet.backends[0] = successor;
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_READY));
}

static void closed_broker_blames_no_backend(void **state)
{
    (void)state;
    open_broker(NULL); /* its first state is of a broker that was never used */
    assert_ok(handoff_broker_close(fleet.broker));
    assert_state(HANDOFF_STATE_DOWN, HANDOFF_ERR_CLOSED, 0, "the broker is closed");
    handoff_broker_free(fleet.broker);
    open_fleet(&fleet, 1, NULL, NULL);
    assert_int_equal(only_state().state, HANDOFF_STATE_READY);
    assert_ok(handoff_broker_close(fleet.broker));
    assert_int_equal(only_state().state, HANDOFF_STATE_DOWN);
    assert_status(only_state().status, HANDOFF_ERR_CLOSED);
    assert_int_equal(only_state().room, 0);
    assert_int_equal(only_state().next_ms, HANDOFF_NO_TIMEOUT);
    assert_int_equal(only_state().connects, 1);
}

static void closed_broker_names_each_backend_by_its_own_path(void **state)
{
    (void)state;
    handoff_broker_backend second = backend_at(fleet.paths[1]);
    open_broker(NULL);
    assert_ok(handoff_broker_add(fleet.broker, &second));
    assert_ok(handoff_broker_close(fleet.broker));
    for (int i = 0; i < 2; i++)
        assert_non_null(strstr(state_of(fleet.broker, fleet.paths[i]).message, fleet.paths[i]));
}

static void since_counts_from_the_last_change(void **state)
{
    (void)state;
    uint64_t begun = now_ns();
    open_fleet(&fleet, 1, NULL, NULL);
    sleep_until(now_ns(), 60);
    uint64_t since = only_state().since_ms;
    assert_in_range(since, 60, ms_since(begun));
    free_backend(&fleet, 0);
    uint64_t freed = now_ns();
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_DOWN));
    since = only_state().since_ms;
    assert_in_range(since, 0, ms_since(freed));
}

static void backend_that_drains_and_holds_something_is_draining(void **state)
{
    (void)state;
    uint64_t id = 0;
    open_fleet(&fleet, 1, NULL, NULL);
    offer_client(&fleet);
    assert_int_equal(arrivals_at(&fleet, 0, &id), 1);
    assert_ok(handoff_backend_drain(fleet.backends[0]));
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_DRAINING));
    assert_int_equal(only_state().in_flight, 1);
    assert_int_equal(only_state().room, 0);
    adopt_at(&fleet, 0, id);
    assert_int_equal(await_verdict(&fleet).outcome, HANDOFF_ADOPTED);
    free_backend(&fleet, 0);
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_DOWN));
}

static void backend_that_hangs_rests_until_its_trial_or_a_successor(void **state)
{
    (void)state;
    enum { FAILURES = 3 };
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_offer offer = offer_of(fleet.client[0]);
    options.timeout_ms = 20;
    options.max_failures = FAILURES;
    open_fleet(&fleet, 1, &options, NULL);
    for (int i = 0; i < FAILURES; i++)
        offer_client(&fleet);
    for (int i = 0; i < FAILURES; i++)
        assert_int_equal(await_verdict(&fleet).reason, HANDOFF_REASON_ACK_TIMEOUT);
    assert_state(HANDOFF_STATE_RESTING, HANDOFF_ERR_RATE_LIMITED, 0, "failed too often");
    assert_in_range(only_state().next_ms, 0, 1000);
    assert_int_equal(only_state().fallbacks[HANDOFF_REASON_ACK_TIMEOUT], FAILURES);
    if (only_state().next_ms > 100) {
        assert_status(handoff_broker_offer(fleet.broker, &offer, NULL), HANDOFF_ERR_RATE_LIMITED);
        assert_int_equal(only_state().refusals[-HANDOFF_ERR_RATE_LIMITED], 1);
        assert_int_equal(only_state().room, 0);
    }
    /* One trial at a time, and the adoption of one ends the rest. */
    for (bool adopted = false; !adopted;) {
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        int fd = -1;
        until(&fleet, handoff_broker_room(fleet.broker) > 0);
        assert_int_equal(handoff_broker_room(fleet.broker), 1);
        offer_client(&fleet);
        assert_int_equal(handoff_broker_room(fleet.broker), 0);
        /* It may come too late on a slow machine, and so may those before. */
        until(&fleet, next_verdict(fleet.broker, &verdict)
                          || (next_arrival(fleet.backends[0], &arrival)
                              && handoff_backend_adopt(fleet.backends[0], arrival.id, &fd)
                                     == HANDOFF_OK));
        if (fd != -1) {
            close(fd);
            assert_int_equal(await_verdict(&fleet).outcome, HANDOFF_ADOPTED);
            adopted = true;
        }
    }
    assert_int_equal(only_state().state, HANDOFF_STATE_READY);
}

static void successor_of_a_backend_that_rests_is_used_at_once(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.timeout_ms = 20;
    options.max_failures = 1;
    options.failure_period_ms = 1000000;
    open_fleet(&fleet, 1, &options, NULL);
    offer_client(&fleet);
    assert_int_equal(await_verdict(&fleet).reason, HANDOFF_REASON_ACK_TIMEOUT);
    assert_int_equal(only_state().state, HANDOFF_STATE_RESTING);
    free_backend(&fleet, 0);
    listen_at(&fleet, 0, NULL);
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_READY));
    offer_client(&fleet);
}

static uint64_t sum(const uint64_t *counts, size_t count)
{
    uint64_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += counts[i];
    return total;
}

/* Every attempt is counted once by how it ended, and once by how long it took. */
static void counts_of_all_backends_are_those_of_the_broker(void **state)
{
    (void)state;
    enum { OFFERS = 300, BACKENDS = 4 };
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    uint64_t ids[OFFERS], step = 0, offered = 0, adopted = 0, taken_back = 0;
    options.attempt_timeout_ms = 10;
    options.max_failures = HANDOFF_NO_LIMIT;
    open_fleet(&fleet, BACKENDS, &options, NULL);
    for (int i = 0; i < OFFERS; i++)
        ids[i] = offer_client(&fleet);
    for (int i = 0; i < OFFERS; i += 10)
        assert_ok(handoff_broker_take_back(fleet.broker, ids[i]));
    for (int verdicts = OFFERS / 10; verdicts < OFFERS;) {
        turn(&fleet);
        for (int i = 0; i < BACKENDS; i++)
            while (next_arrival(fleet.backends[i], &arrival)) {
                int fd = -1;
                if (++step % 2 == 0)
                    reject_at(&fleet, i, arrival.id, step % 4 == 0 ? HANDOFF_REASON_REJECTED
                                                                   : HANDOFF_REASON_BACKEND_BUSY);
                else if (step % 7 != 0
                         && handoff_backend_adopt(fleet.backends[i], arrival.id, &fd)
                             == HANDOFF_OK)
                    close(fd);
            }
        for (; next_verdict(fleet.broker, &verdict); verdicts++)
            ;
    }
    handoff_broker_statistics all = broker_statistics(fleet.broker);
    for (int i = 0; i < BACKENDS; i++) {
        handoff_broker_backend_state one = state_of(fleet.broker, fleet.paths[i]);
        uint64_t ended = one.adopted + one.taken_back + sum(one.fallbacks, 32);
        assert_int_equal(one.offered, ended);
        assert_int_equal(sum(one.histogram, 32), ended);
        assert_int_equal(one.in_flight, 0);
        offered += one.offered;
        adopted += one.adopted;
        taken_back += one.taken_back;
    }
    assert_int_equal(offered, all.offered + all.failovers);
    assert_int_equal(adopted, all.adopted);
    assert_int_equal(taken_back, all.taken_back);
    assert_int_equal(all.offered, all.adopted + all.taken_back + sum(all.fallbacks, 32));
    assert_true(all.failovers > 0);
}

static void histogram_counts_by_powers_of_two(void **state)
{
    (void)state;
    uint64_t id = 0;
    open_fleet(&fleet, 1, NULL, NULL);
    uint64_t start = now_ns();
    offer_client(&fleet);
    assert_int_equal(arrivals_at(&fleet, 0, &id), 1);
    sleep_until(start, 20);
    adopt_at(&fleet, 0, id);
    assert_int_equal(await_verdict(&fleet).outcome, HANDOFF_ADOPTED);
    uint64_t most = (now_ns() - start) / 1000;
    handoff_broker_backend_state found = only_state();
    assert_int_equal(sum(found.histogram, 32), 1);
    for (int i = 1; i < 31; i++)
        if (found.histogram[i])
            assert_true(UINT64_C(1) << i > 20000 && UINT64_C(1) << (i - 1) <= most);
}

/* Two backends, each with the only offer that it may have in flight. */
static void open_full_fleet(void)
{
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_in_flight = 1;
    open_fleet(&fleet, 2, &options, NULL);
    offer_client(&fleet);
    offer_client(&fleet);
}

static void refusals_are_counted_at_the_backend_and_by_the_broker(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(fleet.client[0]);
    open_full_fleet();
    for (int i = 0; i < 3; i++)
        assert_status(handoff_broker_offer(fleet.broker, &offer, NULL), HANDOFF_ERR_FULL);
    assert_last_error_has("none of 2 backends takes the offer");
    assert_int_equal(broker_statistics(fleet.broker).refused, 3);
    assert_int_equal(broker_statistics(fleet.broker).refusals[-HANDOFF_ERR_FULL], 3);
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).refusals[-HANDOFF_ERR_FULL]
                     + state_of(fleet.broker, fleet.paths[1]).refusals[-HANDOFF_ERR_FULL], 3);
    /* The caller's fault is nobody's refusal. */
    offer.fd = -1;
    assert_invalid(handoff_broker_offer(fleet.broker, &offer, NULL));
    offer.fd = STDIN_FILENO;
    offer.flags = 0x80;
    assert_invalid(handoff_broker_offer(fleet.broker, &offer, NULL));
    assert_int_equal(broker_statistics(fleet.broker).refusals[-HANDOFF_ERR_FULL], 3);
}

/* Refusals that are because of a backend, since the broker was made. */
static uint64_t refusals_at(int which)
{
    return sum(state_of(fleet.broker, fleet.paths[which]).refusals, 64);
}

static void refusal_by_a_closed_broker_is_counted_at_no_backend(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(fleet.client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    open_fleet(&fleet, 1, NULL, NULL);
    free_backend(&fleet, 0);
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_DOWN));
    assert_status(handoff_broker_offer(fleet.broker, &offer, NULL),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_int_equal(refusals_at(0), 1);
    assert_ok(handoff_broker_close(fleet.broker));
    assert_status(handoff_broker_offer_and_wait(fleet.broker, &offer, &verdict),
                  HANDOFF_ERR_CLOSED);
    assert_int_equal(broker_statistics(fleet.broker).refused, 2);
    assert_int_equal(refusals_at(0), 1);
}

static void verdicts_that_were_not_taken_are_no_refusal_of_a_backend(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(fleet.client[0]);
    open_full_fleet();
    for (int i = 0; i < 2; i++) {
        uint64_t id = 0;
        assert_int_equal(arrivals_at(&fleet, i, &id), 1);
        reject_at(&fleet, i, id, HANDOFF_REASON_REJECTED);
    }
    turn(&fleet);
    assert_status(handoff_broker_offer(fleet.broker, &offer, NULL), HANDOFF_ERR_FULL);
    assert_string_equal(handoff_last_error(),
                        "the limit of verdicts that were not taken is reached: 2; take them");
    assert_int_equal(broker_statistics(fleet.broker).refusals[-HANDOFF_ERR_FULL], 1);
    assert_int_equal(refusals_at(0) + refusals_at(1), 0);
}

/* A program that was compiled for an older or for a newer header. */
static void state_of_a_newer_header_is_filled_and_one_without_all_fields_is_not(void **state)
{
    (void)state;
    struct {
        handoff_broker_backend_state known;
        unsigned char more[64];
    } larger;
    open_fleet(&fleet, 1, NULL, NULL);
    memset(&larger, 0xaa, sizeof larger);
    larger.known.size = offsetof(handoff_broker_backend_state, in_flight);
    assert_invalid_because(handoff_broker_get_backend_state(fleet.broker, 0, &larger.known),
                           "HANDOFF_BROKER_BACKEND_STATE_INIT");
    assert_int_equal(((unsigned char *)&larger.known.state)[0], 0xaa);
    larger.known.size = sizeof larger;
    assert_ok(handoff_broker_get_backend_state(fleet.broker, 0, &larger.known));
    assert_int_equal(larger.known.room, 256);
    assert_int_equal(larger.known.size, sizeof larger);
    for (size_t i = 0; i < sizeof larger.more; i++)
        assert_int_equal(larger.more[i], 0);
}

static void path_and_message_are_valid_until_the_next_call(void **state)
{
    (void)state;
    handoff_broker_backend_state found = HANDOFF_BROKER_BACKEND_STATE_INIT;
    open_broker(NULL);
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_DOWN));
    assert_ok(handoff_broker_get_backend_state(fleet.broker, 0, &found));
    assert_string_equal(found.path, fleet.paths[0]);
    assert_true(strlen(found.message) > strlen(fleet.paths[0]));
    /* Reading it is no error of the broker's. */
    assert_string_equal(handoff_broker_last_error(fleet.broker), "");
}

static void states_of_a_thousand_backends_can_be_read_each_second(void **state)
{
    (void)state;
    enum { BACKENDS = 1000, MOST_US = 100000 };
    char path[160];
    handoff_broker_backend_state found = HANDOFF_BROKER_BACKEND_STATE_INIT;
    handoff_broker_backend backend = backend_at(path);
    uint64_t fastest = UINT64_MAX;
    assert_ok(handoff_broker_new(NULL, NULL, &fleet.broker));
    for (int i = 0; i < BACKENDS; i++) {
        snprintf(path, sizeof path, "%s/%d", fleet.directory, i);
        assert_ok(handoff_broker_add(fleet.broker, &backend));
    }
    assert_int_not_equal(handoff_broker_fd(fleet.broker), -1);
    assert_ok(handoff_broker_dispatch(fleet.broker));
    for (int round = 0; round < 10; round++) {
        uint64_t start = now_ns();
        for (size_t i = 0; i < BACKENDS; i++)
            assert_ok(handoff_broker_get_backend_state(fleet.broker, i, &found));
        uint64_t took = now_ns() - start;
        fastest = took < fastest ? took : fastest;
    }
    assert_int_equal(found.state, HANDOFF_STATE_DOWN);
    printf("states of %d backends, each with a message: %lu us\n", BACKENDS,
           (unsigned long)(fastest / 1000));
    if (getenv("HANDOFF_UNDER_VALGRIND") == NULL)
        assert_in_range(fastest / 1000, 0, MOST_US);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FLEET_TEST(broker_that_was_not_used_yet_is_connecting),
        FLEET_TEST(path_without_a_listener_is_down_and_says_why),
        FLEET_TEST(socket_that_is_closed_refuses),
        FLEET_TEST(socket_without_permission_says_so),
        FLEET_TEST(backend_that_does_not_allow_the_broker_says_so),
        FLEET_TEST(backend_is_ready_once_it_has_said_welcome),
        FLEET_TEST(broker_that_has_not_looked_does_not_say_that_the_backend_is_silent),
        FLEET_TEST(successor_is_not_blamed_for_a_silence_before_it),
        FLEET_TEST(closed_broker_blames_no_backend),
        FLEET_TEST(closed_broker_names_each_backend_by_its_own_path),
        FLEET_TEST(since_counts_from_the_last_change),
        FLEET_TEST(backend_that_drains_and_holds_something_is_draining),
        FLEET_TEST(backend_that_hangs_rests_until_its_trial_or_a_successor),
        FLEET_TEST(successor_of_a_backend_that_rests_is_used_at_once),
        FLEET_TEST(counts_of_all_backends_are_those_of_the_broker),
        FLEET_TEST(histogram_counts_by_powers_of_two),
        FLEET_TEST(refusals_are_counted_at_the_backend_and_by_the_broker),
        FLEET_TEST(refusal_by_a_closed_broker_is_counted_at_no_backend),
        FLEET_TEST(verdicts_that_were_not_taken_are_no_refusal_of_a_backend),
        FLEET_TEST(state_of_a_newer_header_is_filled_and_one_without_all_fields_is_not),
        FLEET_TEST(path_and_message_are_valid_until_the_next_call),
        FLEET_TEST(states_of_a_thousand_backends_can_be_read_each_second),
    };
    return RUN_TESTS(tests);
}
