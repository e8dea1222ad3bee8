/* Offers and arrivals that are waited for, channels that end and come back, and failures. */
#define _GNU_SOURCE
#include "fixture.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

static void open_again(const handoff_broker_options *broker)
{
    close_channel(&channel);
    open_channel(&channel, broker, NULL);
}

static void restart_backend(void)
{
    handoff_backend_free(channel.backend);
    assert_ok(handoff_backend_listen(channel.path, NULL, &channel.backend));
}

/* A backend in another process that adopts `count` connections and says so to each client. It
   listens before there is a child, and belongs to the child, which uses it first. */
static pid_t restart_backend_in_a_child(int count)
{
    restart_backend();
    pid_t child = start_child();
    if (child != 0) {
        /* It is the child's. */
        handoff_backend_free(channel.backend);
        channel.backend = NULL;
        return child;
    }
    handoff_backend *backend = channel.backend;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    for (int i = 0; i < count; i++) {
        assert_ok(handoff_backend_accept(backend, -1, &arrival));
        assert_int_equal(write(arrival.fd, "x", 1), 1);
        close(arrival.fd);
    }
    /* Not before the broker has closed its end: it may still read the last verdict. */
    while (backend_statistics(backend).channels > 0) {
        await_readable(handoff_backend_fd(backend));
        assert_ok(handoff_backend_dispatch(backend));
    }
    _exit(0);
}

/* The same, and a new broker, which has not been used yet. */
static pid_t serve_in_a_child(int count, const handoff_broker_options *options)
{
    pid_t child = restart_backend_in_a_child(count);
    handoff_broker_free(channel.broker);
    assert_ok(handoff_broker_new(channel.path, options, &channel.broker));
    return child;
}

static void waiting_offer_waits_for_a_channel_and_for_the_verdict(void **state)
{
    (void)state;
    enum { OFFERS = 20 };
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    offer.timeout_ms = PATIENCE_MS;
    offer.flags = HANDOFF_OFFER_MORE;
    pid_t child = serve_in_a_child(OFFERS, NULL);
    for (int i = 0; i < OFFERS; i++) {
        char byte;
        offer.user_data = &offer + i;
        assert_ok(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict));
        assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
        assert_ptr_equal(verdict.user_data, &offer + i);
        assert_int_equal(read(client[1], &byte, 1), 1);
    }
    assert_status(handoff_broker_next(channel.broker, &verdict), HANDOFF_NOTHING);
    assert_ok(handoff_broker_close(channel.broker));
    assert_child_succeeds(child);
}

/* Nobody looks at the broker's descriptor between two clients: only the offer finds that the channel
   has ended. */
static void waiting_offer_finds_the_backend_that_has_come_since(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    offer.timeout_ms = PATIENCE_MS;
    for (int shared = 0; shared < 2; shared++) {
        handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
        options.flags = shared ? HANDOFF_BROKER_SHARED : 0;
        pid_t first = serve_in_a_child(1, &options);
        assert_ok(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict));
        kill(first, SIGKILL);
        assert_int_equal(waitpid(first, NULL, 0), first);
        pid_t next = restart_backend_in_a_child(1);
        assert_ok(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict));
        assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
        assert_ok(handoff_broker_close(channel.broker));
        assert_status(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict),
                      HANDOFF_ERR_CLOSED);
        assert_child_succeeds(next);
    }
}

static void waiting_offer_is_refused_at_once_without_a_backend(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_backend_free(channel.backend);
    channel.backend = NULL;
    offer.timeout_ms = PATIENCE_MS;
    uint64_t start = now_ns();
    assert_status(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_in_range(ms_since(start), 0, PATIENCE_MS - 1);
}

static void waiting_offer_that_nobody_answers_falls_back_at_its_deadline(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    uint64_t start = now_ns();
    int fd;
    offer.timeout_ms = 20;
    assert_ok(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict));
    assert_in_range(ms_since(start), 20, PATIENCE_MS);
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, HANDOFF_REASON_ACK_TIMEOUT);
    assert_no_arrival(&channel);
    assert_invalid(handoff_backend_adopt(channel.backend, verdict.id, &fd));
    assert_int_equal(backend_statistics(channel.backend).taken_back, 1);
}

static void waiting_offer_leaves_the_verdicts_of_others(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    offer.timeout_ms = 20;
    uint64_t adopted = offer_fd(&channel, client[0]), late;
    assert_ok(handoff_broker_offer(channel.broker, &offer, &late));
    adopt(&channel, arrival_of(&channel).id);
    assert_ok(handoff_backend_dispatch(channel.backend));
    offer.timeout_ms = 40;
    assert_ok(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict));
    assert_int_equal(verdict.reason, HANDOFF_REASON_ACK_TIMEOUT);
    assert_int_equal(verdict_of(&channel).id, adopted);
    assert_int_equal(verdict_of(&channel).id, late);
    assert_no_verdict(&channel);
}

static void waiting_offer_waits_for_room(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_in_flight = 1;
    handoff_offer first = offer_of(client[0]), second = first;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    char byte;
    pid_t child = serve_in_a_child(2, &options);
    first.timeout_ms = second.timeout_ms = PATIENCE_MS;
    handoff_status status;
    while ((status = handoff_broker_offer(channel.broker, &first, NULL)) != HANDOFF_OK) {
        /* Full until the backend has sent its first token. */
        if (status != HANDOFF_ERR_FULL)
            assert_status(status, HANDOFF_ERR_BACKEND_UNAVAILABLE);
        await_readable(handoff_broker_fd(channel.broker));
        assert_ok(handoff_broker_dispatch(channel.broker));
    }
    assert_status(handoff_broker_offer(channel.broker, &second, NULL), HANDOFF_ERR_FULL);
    second.user_data = &second;
    assert_ok(handoff_broker_offer_and_wait(channel.broker, &second, &verdict));
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    assert_ptr_equal(verdict.user_data, &second);
    assert_adopted(&channel);
    for (int i = 0; i < 2; i++)
        assert_int_equal(read(client[1], &byte, 1), 1);
    assert_ok(handoff_broker_close(channel.broker));
    assert_child_succeeds(child);
}

static void waiting_offer_without_room_is_refused_when_its_time_is_up(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = {.size = sizeof verdict, .id = 42};
    options.max_in_flight = 1;
    open_again(&options);
    offer_fd(&channel, client[0]);
    offer.timeout_ms = 20;
    assert_status(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict),
                  HANDOFF_ERR_FULL);
    assert_int_equal(verdict.id, 42);
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
}

/* The backend accepts nobody: its socket does. */
static void waiting_offer_without_a_welcome_is_refused_when_its_time_is_up(void **state)
{
    (void)state;
    handoff_broker *second;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = {.size = sizeof verdict, .id = 42};
    assert_ok(handoff_broker_new(channel.path, NULL, &second));
    offer.timeout_ms = 20;
    uint64_t start = now_ns();
    assert_status(handoff_broker_offer_and_wait(second, &offer, &verdict),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_in_range(ms_since(start), 20, PATIENCE_MS);
    assert_int_equal(verdict.id, 42);
    handoff_broker_free(second);
}

static void offers_to_a_stopped_backend_wait_and_arrive_when_it_goes_on(void **state)
{
    (void)state;
    enum { OFFERS = 100 };
    static uint8_t preread[8000];
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    int status;
    offer.timeout_ms = PATIENCE_MS;
    offer.preread = preread;
    offer.preread_len = sizeof preread;
    pid_t child = serve_in_a_child(1 + OFFERS, NULL);
    assert_ok(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict));
    assert_int_equal(kill(child, SIGSTOP), 0);
    assert_int_equal(waitpid(child, &status, WUNTRACED), child);
    for (int i = 0; i < OFFERS; i++)
        assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_true(broker_statistics(channel.broker).queued_bytes > 0);
    assert_no_verdict(&channel);
    assert_int_equal(kill(child, SIGCONT), 0);
    for (int i = 0; i < OFFERS;) {
        await_readable(handoff_broker_fd(channel.broker));
        assert_ok(handoff_broker_dispatch(channel.broker));
        for (; next_verdict(channel.broker, &verdict); i++)
            assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    }
    assert_ok(handoff_broker_close(channel.broker));
    assert_child_succeeds(child);
}

static void broker_connects_again_behind_the_same_descriptor(void **state)
{
    (void)state;
    int fd = handoff_broker_fd(channel.broker);
    for (uint64_t connects = 2; connects < 5; connects++) {
        restart_backend();
        connect_broker(channel.broker, channel.backend);
        assert_int_equal(broker_statistics(channel.broker).connects, connects);
        assert_int_equal(handoff_broker_fd(channel.broker), fd);
        offer_fd(&channel, client[0]);
        adopt(&channel, arrival_of(&channel).id);
        assert_adopted(&channel);
    }
}

static void freed_backend_sends_its_last_verdicts_and_other_offers_fall_back(void **state)
{
    (void)state;
    /* Or it would try to connect again before it is asked why it cannot offer. */
    const handoff_broker_options options = {.size = sizeof options,
                                            .reconnect_min_ms = PATIENCE_MS};
    open_again(&options);
    handoff_offer offer = offer_of(client[0]);
    uint64_t adopted = offer_fd(&channel, client[0]), held = offer_fd(&channel, client[0]);
    uint64_t id = arrival_of(&channel).id;
    adopt(&channel, id);
    handoff_backend_free(channel.backend);
    channel.backend = NULL;
    await_readable(handoff_broker_fd(channel.broker));
    handoff_verdict first = verdict_of(&channel), second = verdict_of(&channel);
    assert_int_equal(first.id, adopted);
    assert_int_equal(first.outcome, HANDOFF_ADOPTED);
    assert_int_equal(first.reason, HANDOFF_REASON_NONE);
    assert_int_equal(second.id, held);
    assert_int_equal(second.outcome, HANDOFF_FALLBACK);
    assert_int_equal(second.reason, HANDOFF_REASON_BACKEND_UNAVAILABLE);
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_int_equal(errno, ECONNRESET);
}

static void backend_that_starts_after_the_broker_is_found(void **state)
{
    (void)state;
    handoff_backend_free(channel.backend);
    handoff_broker_free(channel.broker);
    assert_ok(handoff_broker_new(channel.path, NULL, &channel.broker));
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_ok(handoff_backend_listen(channel.path, NULL, &channel.backend));
    connect_broker(channel.broker, channel.backend);
    /* Once, or again where the machine took too long for the first time. */
    assert_in_range(backend_statistics(channel.backend).accepted, 1, 10);
    offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
}

static void let_offers_expire(int count)
{
    handoff_offer offer = offer_of(client[0]);
    offer.timeout_ms = 1;
    for (int i = 0; i < count; i++)
        assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    for (int i = 0; i < count; i++) {
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        while (!next_verdict(channel.broker, &verdict)) {
            await_readable(handoff_broker_fd(channel.broker));
            assert_ok(handoff_broker_dispatch(channel.broker));
        }
        assert_int_equal(verdict.reason, HANDOFF_REASON_ACK_TIMEOUT);
    }
    assert_no_arrival(&channel);
}

static void backend_that_fails_too_often_is_refused_offers_at_once(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    options.max_failures = 3;
    options.failure_period_ms = HANDOFF_NO_TIMEOUT;
    open_again(&options);
    let_offers_expire(2);
    assert_ok(handoff_broker_dispatch(channel.broker));
    let_offers_expire(1);
    offer.timeout_ms = PATIENCE_MS;
    uint64_t start = now_ns();
    assert_status(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict),
                  HANDOFF_ERR_RATE_LIMITED);
    assert_int_equal(errno, 0);
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_RATE_LIMITED);
    assert_in_range(ms_since(start), 0, PATIENCE_MS / 2);
}

static void adoption_makes_up_for_failures_and_rejections_are_none(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_failures = 2;
    open_again(&options);
    for (int i = 0; i < 3; i++) {
        let_offers_expire(1);
        offer_fd(&channel, client[0]);
        adopt(&channel, arrival_of(&channel).id);
        assert_adopted(&channel);
    }
    for (int i = 0; i < 3; i++) {
        offer_fd(&channel, client[0]);
        uint64_t id = arrival_of(&channel).id;
        assert_ok(handoff_backend_reject(channel.backend, id, HANDOFF_REASON_REJECTED));
        assert_falls_back(&channel, HANDOFF_REASON_REJECTED);
    }
}

static void child_that_frees_the_handles_takes_nothing_from_the_parent(void **state)
{
    (void)state;
    offer_fd(&channel, client[0]);
    offer_fd(&channel, client[0]);
    uint64_t id = arrival_of(&channel).id;
    pid_t child = start_child();
    if (child == 0) {
        handoff_broker_free(channel.broker);
        handoff_backend_free(channel.backend);
        _exit(0);
    }
    assert_child_succeeds(child);
    adopt(&channel, id);
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
    assert_adopted(&channel);
    handoff_broker *another;
    assert_ok(handoff_broker_new(channel.path, NULL, &another));
    connect_broker(another, channel.backend);
    handoff_broker_free(another);
}

static void child_cannot_use_a_backend_of_its_parent(void **state)
{
    (void)state;
    handoff_status wrong = HANDOFF_ERR_WRONG_PROCESS;
    offer_fd(&channel, client[0]);
    offer_fd(&channel, client[0]);
    uint64_t id = arrival_of(&channel).id;
    adopt(&channel, id);
    pid_t child = start_child();
    if (child == 0) {
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        int fd;
        assert_int_equal(handoff_backend_fd(channel.backend), -1);
        assert_status(handoff_backend_dispatch(channel.backend), wrong);
        assert_status(handoff_backend_next(channel.backend, &arrival), wrong);
        assert_status(handoff_backend_adopt(channel.backend, id, &fd), wrong);
        assert_status(handoff_backend_reject(channel.backend, id, HANDOFF_REASON_REJECTED), wrong);
        assert_status(handoff_backend_accept(channel.backend, 0, &arrival), wrong);
        assert_status(handoff_backend_drain(channel.backend), wrong);
        _exit(0);
    }
    assert_child_succeeds(child);
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
    assert_adopted(&channel);
    assert_int_equal(broker_statistics(channel.broker).connects, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHANNEL_TEST(waiting_offer_waits_for_a_channel_and_for_the_verdict),
        CHANNEL_TEST(waiting_offer_finds_the_backend_that_has_come_since),
        CHANNEL_TEST(waiting_offer_is_refused_at_once_without_a_backend),
        CHANNEL_TEST(waiting_offer_that_nobody_answers_falls_back_at_its_deadline),
        CHANNEL_TEST(waiting_offer_leaves_the_verdicts_of_others),
        CHANNEL_TEST(waiting_offer_waits_for_room),
        CHANNEL_TEST(waiting_offer_without_room_is_refused_when_its_time_is_up),
        CHANNEL_TEST(waiting_offer_without_a_welcome_is_refused_when_its_time_is_up),
        CHANNEL_TEST(offers_to_a_stopped_backend_wait_and_arrive_when_it_goes_on),
        CHANNEL_TEST(broker_connects_again_behind_the_same_descriptor),
        CHANNEL_TEST(freed_backend_sends_its_last_verdicts_and_other_offers_fall_back),
        CHANNEL_TEST(backend_that_starts_after_the_broker_is_found),
        CHANNEL_TEST(backend_that_fails_too_often_is_refused_offers_at_once),
        CHANNEL_TEST(adoption_makes_up_for_failures_and_rejections_are_none),
        CHANNEL_TEST(child_that_frees_the_handles_takes_nothing_from_the_parent),
        CHANNEL_TEST(child_cannot_use_a_backend_of_its_parent),
    };
    return RUN_TESTS(tests);
}
