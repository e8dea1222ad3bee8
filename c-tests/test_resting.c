/*
 * A backend that fails too often rests: what is offered to it meanwhile, and how the rest ends. Most
 * tests run on a clock that they move themselves; those with a stopped process wait for events.
 */
#define _GNU_SOURCE
#include "clock.h"
#include "fixture.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#define SECOND (1000 * MS)

/* How many clients come at once when a backend hangs. */
enum { CLIENTS = 20 };

/* Tests that move the clock never wait, so it does not matter that timers go on with the system's. */
static int open_stopped(void **state)
{
    stop_clock();
    return open_both(state);
}

#define STOPPED_TEST(function) \
    cmocka_unit_test_setup_teardown(function, open_stopped, close_both)

static void open_again(const handoff_broker_options *options)
{
    close_channel(&channel);
    open_channel(&channel, options, NULL);
}

static handoff_status offer_for(uint64_t timeout_ms, uint64_t *id)
{
    handoff_offer offer = offer_of(client[0]);
    offer.timeout_ms = timeout_ms;
    return handoff_broker_offer(channel.broker, &offer, id);
}

static void assert_taken(void)
{
    assert_ok(offer_for(1, NULL));
}

static void assert_refused(void)
{
    assert_status(offer_for(1, NULL), HANDOFF_ERR_RATE_LIMITED);
    assert_int_equal(errno, 0);
}

/* The backend lets the only offer in flight wait too long. */
static void assert_times_out(void)
{
    pass(2 * MS);
    assert_ok(handoff_broker_dispatch(channel.broker));
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_true(next_verdict(channel.broker, &verdict));
    assert_int_equal(verdict.reason, HANDOFF_REASON_ACK_TIMEOUT);
}

/* The backend fails as often as it may, and rests. */
static void let_it_rest(void)
{
    for (int i = 0; i < 8; i++) {
        assert_taken();
        assert_times_out();
    }
    assert_refused();
}

static void assert_offers_are_adopted(int count)
{
    for (int i = 0; i < count; i++) {
        offer_fd(&channel, client[0]);
        adopt(&channel, arrival_of(&channel).id);
        assert_adopted(&channel);
    }
}

/* ---- the trials ------------------------------------------------------------------------------ */

static void trials_are_made_after_1_2_4_and_then_every_8_seconds(void **state)
{
    (void)state;
    static const int pauses[] = {1, 2, 4, 8, 8, 8};
    let_it_rest();
    for (size_t i = 0; i < sizeof pauses / sizeof *pauses; i++) {
        pass((uint64_t)pauses[i] * SECOND - 1);
        assert_refused();
        assert_last_error_has("failed too often");
        pass(1);
        assert_taken();
        assert_refused();
        assert_times_out();
    }
}

static void pauses_are_not_longer_than_the_period(void **state)
{
    (void)state;
    const handoff_broker_options options = {.size = sizeof options, .failure_period_ms = 3000};
    static const int pauses[] = {1, 2, 3, 3};
    open_again(&options);
    let_it_rest();
    for (size_t i = 0; i < sizeof pauses / sizeof *pauses; i++) {
        pass((uint64_t)pauses[i] * SECOND - 1);
        assert_refused();
        pass(1);
        assert_taken();
        assert_times_out();
    }
}

/* A client comes every 10 ms. 8 until the backend rests; trials after 1, 3 and 7 seconds, and then
   one in 8 seconds, each a bit late, because the pause begins when the trial before it timed out. */
static void minute_of_hang_costs_17_of_6000_clients(void **state)
{
    (void)state;
    int let_through = 0, refused = 0;
    for (int i = 0; i < 6000; i++) {
        handoff_status status = offer_for(1, NULL);
        if (status == HANDOFF_OK) {
            let_through++;
            assert_times_out();
            pass(8 * MS);
        } else {
            assert_status(status, HANDOFF_ERR_RATE_LIMITED);
            refused++;
            pass(10 * MS);
        }
    }
    assert_int_equal(let_through, 8 + 3 + (60 - 7) / 8);
    assert_int_equal(let_through + refused, 6000);
}

static void failures_of_offers_from_before_the_rest_change_nothing(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++)
        assert_taken();
    assert_ok(offer_for(500, NULL));
    pass(2 * MS);
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_refused();
    pass(998 * MS);
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_int_equal(broker_statistics(channel.broker).fallbacks[HANDOFF_REASON_ACK_TIMEOUT], 9);
    assert_refused();
    pass(2 * MS);
    assert_taken();
}

static void trial_that_is_rejected_leaves_the_pause_as_it_is(void **state)
{
    (void)state;
    let_it_rest();
    for (int i = 0; i < 3; i++) {
        pass(SECOND);
        assert_taken();
        uint64_t id = arrival_of(&channel).id;
        assert_ok(handoff_backend_reject(channel.backend, id, HANDOFF_REASON_REJECTED));
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        do
            verdict = verdict_of(&channel);
        while (verdict.reason == HANDOFF_REASON_ACK_TIMEOUT);
        assert_int_equal(verdict.reason, HANDOFF_REASON_REJECTED);
        pass(SECOND - 1);
        assert_refused();
        pass(1);
    }
}

static void trial_that_is_taken_back_leaves_the_pause_as_it_is(void **state)
{
    (void)state;
    let_it_rest();
    for (int i = 0; i < 3; i++) {
        uint64_t id;
        pass(SECOND);
        assert_ok(offer_for(0, &id));
        assert_ok(handoff_broker_take_back(channel.broker, id));
        pass(SECOND - 1);
        assert_refused();
        pass(1);
    }
}

static void failures_that_are_30_seconds_old_do_not_count(void **state)
{
    (void)state;
    for (int i = 0; i < 7; i++) {
        assert_taken();
        assert_times_out();
    }
    pass(30 * SECOND);
    /* Now it is the eighth of all, but the first in 30 seconds. */
    let_it_rest();
}

/* What hangs keeps the places of the offers that timed out, so that there is none for a trial. */
static void assert_rests_without_a_place(int places)
{
    for (int i = 0; i < places; i++)
        assert_taken();
    pass(2 * MS);
    assert_ok(handoff_broker_dispatch(channel.broker));
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    for (int i = 0; i < places; i++)
        assert_true(next_verdict(channel.broker, &verdict));
    for (int i = 0; i < 20; i++) {
        handoff_broker_backend_state state = HANDOFF_BROKER_BACKEND_STATE_INIT;
        pass(SECOND / 2);
        assert_refused();
        assert_ok(handoff_broker_dispatch(channel.broker));
        assert_int_equal(handoff_broker_room(channel.broker), 0);
        assert_ok(handoff_broker_get_backend_state(channel.broker, 0, &state));
        assert_int_equal(state.state, HANDOFF_STATE_RESTING);
        assert_int_equal(state.status, HANDOFF_ERR_RATE_LIMITED);
    }
    handoff_broker_backend_state state = HANDOFF_BROKER_BACKEND_STATE_INIT;
    assert_ok(handoff_broker_get_backend_state(channel.broker, 0, &state));
    assert_true(state.next_ms == HANDOFF_NO_TIMEOUT);
    assert_non_null(strstr(state.message, "no place for an offer until it answers"));
    assert_null(strstr(state.message, "too often"));
    /* It does not wait for room either: its time does not pass here. */
    handoff_offer offer = offer_of(client[0]);
    offer.timeout_ms = HANDOFF_NO_TIMEOUT;
    assert_status(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict),
                  HANDOFF_ERR_RATE_LIMITED);
}

static void no_offer_waits_for_a_backend_that_rests_without_a_place(void **state)
{
    (void)state;
    enum { PLACES = 16 };
    const handoff_broker_options options = {.size = sizeof options, .max_in_flight = PLACES};
    open_again(&options);
    assert_rests_without_a_place(PLACES);
    assert_int_equal(is_readable(handoff_broker_fd(channel.broker)), 0);
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    do
        assert_ok(handoff_backend_dispatch(channel.backend));
    while (next_arrival(channel.backend, &arrival)); /* those that were taken back are answered */
    await_readable(handoff_broker_fd(channel.broker));
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_offers_are_adopted(CLIENTS);
}

static void backend_with_fewer_places_than_failures_rests_without_a_place(void **state)
{
    (void)state;
    const handoff_broker_options options = {.size = sizeof options, .max_in_flight = 3};
    open_again(&options);
    assert_rests_without_a_place(3);
}

static void backend_that_failed_once_is_not_said_to_have_failed_too_often(void **state)
{
    (void)state;
    const handoff_broker_options options = {.size = sizeof options, .max_in_flight = 1};
    open_again(&options);
    assert_rests_without_a_place(1);
    assert_refused();
    assert_null(strstr(handoff_last_error(), "too often"));
    assert_last_error_has("no place for an offer until it answers");
    assert_string_equal(handoff_status_message(HANDOFF_ERR_RATE_LIMITED),
                        "the backend rests, because it failed");
}

/* ---- how the rest ends ----------------------------------------------------------------------- */

static void adopted_trial_ends_the_rest_without_a_new_channel(void **state)
{
    (void)state;
    let_it_rest();
    pass(SECOND);
    assert_offers_are_adopted(CLIENTS);
    assert_int_equal(broker_statistics(channel.broker).connects, 1);
    /* And it rests again only after as many failures as before. */
    let_it_rest();
}

static void rest_does_not_end_with_the_period(void **state)
{
    (void)state;
    let_it_rest();
    pass(3600 * SECOND);
    assert_taken();
    assert_refused();
}

/* One hang of 20 clients; in 0.1 the next backend was offered nothing for 28 seconds, and 2400
   clients were refused. */
static void backend_that_follows_one_that_hung_is_used_at_once(void **state)
{
    (void)state;
    let_it_rest();
    for (int i = 0; i < CLIENTS; i++)
        assert_refused();
    uint64_t refused = broker_statistics(channel.broker).refused;
    handoff_backend_free(channel.backend);
    assert_ok(handoff_backend_listen(channel.path, NULL, &channel.backend));
    stopped_at = 0; /* it is waited for: the broker connects again after a pause */
    connect_broker(channel.broker, channel.backend);
    assert_offers_are_adopted(CLIENTS);
    assert_int_equal(broker_statistics(channel.broker).refused, refused);
}

/* ---- processes that are stopped -------------------------------------------------------------- */

/* The backend in another process, which uses it first, adopts everything until it is killed. */
static pid_t adopt_in_a_child(void)
{
    pid_t child = start_child();
    if (child != 0)
        return child;
    for (;;) {
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        child_assert(handoff_backend_accept(channel.backend, -1, &arrival) == HANDOFF_OK);
        close(arrival.fd);
    }
}

/* The same with a new broker. */
static pid_t serve_in_a_child(void)
{
    handoff_backend_free(channel.backend);
    handoff_broker_free(channel.broker);
    assert_ok(handoff_backend_listen(channel.path, NULL, &channel.backend));
    assert_ok(handoff_broker_new(channel.path, NULL, &channel.broker));
    return adopt_in_a_child();
}

static void assert_next_offer_is_adopted(void)
{
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    offer.timeout_ms = PATIENCE_MS;
    assert_ok(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict));
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
}

/* Offers 20 clients to a stopped backend and waits until all have timed out. */
static void hang(pid_t child)
{
    int status;
    assert_int_equal(kill(child, SIGSTOP), 0);
    assert_int_equal(waitpid(child, &status, WUNTRACED), child);
    for (int i = 0; i < CLIENTS; i++)
        assert_taken();
    for (int i = 0; i < CLIENTS;) {
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        await_readable(handoff_broker_fd(channel.broker));
        assert_ok(handoff_broker_dispatch(channel.broker));
        for (; next_verdict(channel.broker, &verdict); i++)
            assert_int_equal(verdict.reason, HANDOFF_REASON_ACK_TIMEOUT);
    }
    assert_refused();
}

static void end(pid_t child)
{
    int status;
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
}

/* Offers a client, and again whenever the descriptor was readable, until one is taken. Returns how
   often it was; `refused` counts the offers that were refused because the backend rests. */
static int offer_until_taken(int *refused)
{
    int wakes = 0;
    *refused = 0;
    for (;;) {
        handoff_status status = offer_for(PATIENCE_MS, NULL);
        if (status == HANDOFF_OK)
            return wakes;
        if (status == HANDOFF_ERR_RATE_LIMITED)
            ++*refused;
        else if (status != HANDOFF_ERR_FULL) /* full: the tokens come after the welcome */
            assert_status(status, HANDOFF_ERR_BACKEND_UNAVAILABLE);
        await_readable(handoff_broker_fd(channel.broker));
        assert_ok(handoff_broker_dispatch(channel.broker));
        wakes++;
    }
}

static void await_adoption(void)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    while (!next_verdict(channel.broker, &verdict)) {
        await_readable(handoff_broker_fd(channel.broker));
        assert_ok(handoff_broker_dispatch(channel.broker));
    }
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
}

static void descriptor_tells_when_a_trial_is_due_and_that_ends_the_rest_after_sigcont(void **state)
{
    (void)state;
    int refused;
    pid_t child = serve_in_a_child();
    assert_next_offer_is_adopted();
    uint64_t start = now_ns();
    hang(child);
    assert_int_equal(kill(child, SIGCONT), 0);
    /* What the backend sends now for the offers that timed out may wake the broker, too, and so does
       the time to look at the claims. */
    assert_in_range(offer_until_taken(&refused), 1, 1 + 2 * CLIENTS);
    assert_in_range(ms_since(start), 1000, PATIENCE_MS);
    await_adoption();
    for (int i = 0; i < CLIENTS; i++)
        assert_next_offer_is_adopted();
    assert_int_equal(broker_statistics(channel.broker).connects, 1);
    end(child);
}

/* Nothing that is readable is forgotten by a call that waits for something else. */
static void waiting_offer_leaves_the_descriptor_readable_for_a_trial_that_is_due(void **state)
{
    (void)state;
    pid_t child = serve_in_a_child();
    assert_next_offer_is_adopted();
    hang(child);
    assert_int_equal(kill(child, SIGCONT), 0);
    sleep_until(now_ns(), 1000);
    assert_next_offer_is_adopted();
    await_readable(handoff_broker_fd(channel.broker));
    end(child);
}

static void process_that_follows_one_that_hung_is_used_at_once(void **state)
{
    (void)state;
    int refused;
    pid_t child = serve_in_a_child();
    assert_next_offer_is_adopted();
    hang(child);
    end(child);
    handoff_backend_free(channel.backend);
    assert_ok(handoff_backend_listen(channel.path, NULL, &channel.backend));
    child = adopt_in_a_child();
    /* The broker finds out that the channel has ended before it offers anything. */
    await_readable(handoff_broker_fd(channel.broker));
    assert_ok(handoff_broker_dispatch(channel.broker));
    offer_until_taken(&refused);
    assert_int_equal(refused, 0);
    await_adoption();
    for (int i = 0; i < CLIENTS; i++)
        assert_next_offer_is_adopted();
    end(child);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STOPPED_TEST(trials_are_made_after_1_2_4_and_then_every_8_seconds),
        STOPPED_TEST(pauses_are_not_longer_than_the_period),
        STOPPED_TEST(minute_of_hang_costs_17_of_6000_clients),
        STOPPED_TEST(failures_that_are_30_seconds_old_do_not_count),
        STOPPED_TEST(failures_of_offers_from_before_the_rest_change_nothing),
        STOPPED_TEST(trial_that_is_rejected_leaves_the_pause_as_it_is),
        STOPPED_TEST(trial_that_is_taken_back_leaves_the_pause_as_it_is),
        STOPPED_TEST(no_offer_waits_for_a_backend_that_rests_without_a_place),
        STOPPED_TEST(backend_with_fewer_places_than_failures_rests_without_a_place),
        STOPPED_TEST(backend_that_failed_once_is_not_said_to_have_failed_too_often),
        STOPPED_TEST(adopted_trial_ends_the_rest_without_a_new_channel),
        STOPPED_TEST(rest_does_not_end_with_the_period),
        STOPPED_TEST(backend_that_follows_one_that_hung_is_used_at_once),
        CHANNEL_TEST(descriptor_tells_when_a_trial_is_due_and_that_ends_the_rest_after_sigcont),
        CHANNEL_TEST(waiting_offer_leaves_the_descriptor_readable_for_a_trial_that_is_due),
        CHANNEL_TEST(process_that_follows_one_that_hung_is_used_at_once),
    };
    return RUN_TESTS(tests);
}
