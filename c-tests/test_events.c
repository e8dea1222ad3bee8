/* The descriptors to watch: with poll, and with epoll, level- and edge-triggered. */
#define _GNU_SOURCE
#include "fixture.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>

static int loop;

static int open_loop(void **state)
{
    int failed = open_both(state);
    loop = epoll_create1(EPOLL_CLOEXEC);
    return failed || loop == -1;
}

static int close_loop(void **state)
{
    close(loop);
    return close_both(state);
}

#define EVENT_TEST(function) cmocka_unit_test_setup_teardown(function, open_loop, close_loop)

static void watch(int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    assert_int_equal(epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event), 0);
}

static int await_event(void)
{
    struct epoll_event event;
    assert_int_equal(epoll_wait(loop, &event, 1, PATIENCE_MS), 1);
    return event.data.fd;
}

static int poll_both(void)
{
    struct pollfd both[] = {{.fd = handoff_broker_fd(channel.broker), .events = POLLIN},
                            {.fd = handoff_backend_fd(channel.backend), .events = POLLIN}};
    assert_true(poll(both, 2, PATIENCE_MS) > 0);
    return both[0].revents != 0 ? both[0].fd : both[1].fd;
}

/* Hands many connections over and acts on nothing but what `await` says is readable. The bytes
   with them are more than the socket has room for. */
static void hand_over_all(int (*await)(void))
{
    static const uint8_t preread[3000];
    const char *value = getenv("HANDOFF_TEST_OFFERS");
    size_t offers = value == NULL ? 3000 : strtoul(value, NULL, 10), offered = 0, settled = 0;
    int broker_fd = handoff_broker_fd(channel.broker);
    handoff_offer offer = offer_of(client[0]);
    offer.preread = preread;
    offer.preread_len = sizeof preread;
    offer.timeout_ms = HANDOFF_NO_TIMEOUT;
    while (settled < offers) {
        handoff_status status = HANDOFF_OK;
        while (offered < offers &&
               (status = handoff_broker_offer(channel.broker, &offer, NULL)) == HANDOFF_OK)
            offered++;
        if (status != HANDOFF_OK)
            assert_status(status, HANDOFF_ERR_FULL);
        if (await() == broker_fd) {
            handoff_verdict verdict = HANDOFF_VERDICT_INIT;
            assert_ok(handoff_broker_dispatch(channel.broker));
            for (; next_verdict(channel.broker, &verdict); settled++)
                assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
        } else {
            handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
            assert_ok(handoff_backend_dispatch(channel.backend));
            while (next_arrival(channel.backend, &arrival))
                adopt(&channel, arrival.id);
        }
    }
    assert_int_equal(backend_statistics(channel.backend).adopted, offers);
}

static void nothing_is_lost_with_poll(void **state)
{
    (void)state;
    hand_over_all(poll_both);
}

static void nothing_is_lost_with_level_triggered_epoll(void **state)
{
    (void)state;
    watch(handoff_broker_fd(channel.broker), EPOLLIN);
    watch(handoff_backend_fd(channel.backend), EPOLLIN);
    hand_over_all(await_event);
}

static void nothing_is_lost_with_edge_triggered_epoll(void **state)
{
    (void)state;
    watch(handoff_broker_fd(channel.broker), EPOLLIN | EPOLLET);
    watch(handoff_backend_fd(channel.backend), EPOLLIN | EPOLLET);
    hand_over_all(await_event);
}

static void idle_handles_are_not_readable(void **state)
{
    (void)state;
    offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_ok(handoff_backend_dispatch(channel.backend));
    /* The timers of the batch that was not finished, and of the words that were to be looked at, may
       fire after all, once and for nothing. */
    sleep_until(now_ns(), 20);
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_false(is_readable(handoff_broker_fd(channel.broker)));
    assert_false(is_readable(handoff_backend_fd(channel.backend)));
    offer_fd(&channel, client[0]);
    assert_true(is_readable(handoff_backend_fd(channel.backend)));
}

/* The broker's edge-triggered event after all that was there before was taken. */
static void watch_the_quiet_broker(void)
{
    struct epoll_event event;
    watch(handoff_broker_fd(channel.broker), EPOLLIN | EPOLLET);
    assert_no_verdict(&channel);
    while (epoll_wait(loop, &event, 1, 0) == 1)
        assert_no_verdict(&channel);
}

static void verdict_that_an_offer_brings_is_an_event(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    int gone = dup(client[0]);
    watch_the_quiet_broker();
    offer.fd = gone;
    offer.flags = HANDOFF_OFFER_MORE;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    close(gone);
    offer.fd = client[0];
    offer.flags = 0;
    /* Sends both, of which the first cannot be sent any more. */
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    await_event();
    handoff_verdict verdict = verdict_of(&channel);
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_false(verdict.may_have_reached_backend);
    adopt(&channel, arrival_of(&channel).id);
    assert_no_arrival(&channel);
    await_event();
    assert_adopted(&channel);
}

static void end_of_the_channel_that_flush_notices_is_an_event(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    watch_the_quiet_broker();
    offer.flags = HANDOFF_OFFER_MORE;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    handoff_backend_free(channel.backend);
    channel.backend = NULL;
    assert_ok(handoff_broker_flush(channel.broker));
    await_event();
    assert_falls_back(&channel, HANDOFF_REASON_BACKEND_UNAVAILABLE);
}

static void deadline_is_an_event(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    watch_the_quiet_broker();
    offer.timeout_ms = 20;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    do {
        await_event();
        assert_ok(handoff_broker_dispatch(channel.broker));
    } while (!next_verdict(channel.broker, &verdict));
    assert_int_equal(verdict.reason, HANDOFF_REASON_ACK_TIMEOUT);
}

static void time_to_connect_again_is_an_event(void **state)
{
    (void)state;
    watch_the_quiet_broker();
    handoff_backend_free(channel.backend);
    assert_ok(handoff_backend_listen(channel.path, NULL, &channel.backend));
    while (broker_statistics(channel.broker).connects < 2) {
        await_event();
        assert_ok(handoff_broker_dispatch(channel.broker));
        assert_ok(handoff_backend_dispatch(channel.backend));
    }
}

static void arrival_of_a_broker_is_an_event(void **state)
{
    (void)state;
    handoff_broker *second;
    watch(handoff_backend_fd(channel.backend), EPOLLIN | EPOLLET);
    assert_no_arrival(&channel);
    assert_ok(handoff_broker_new(channel.path, NULL, &second));
    assert_ok(handoff_broker_dispatch(second));
    await_event();
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_ok(handoff_broker_dispatch(second));
    assert_int_equal(broker_statistics(second).connects, 1);
    handoff_broker_free(second);
}

static size_t room_of_broker(void)
{
    assert_ok(handoff_broker_dispatch(channel.broker));
    return handoff_broker_room(channel.broker);
}

/* Packets are received one by one there, a few in a turn. The broker does nothing meanwhile, so that no
   other edge comes. */
static void what_had_no_turn_is_an_event(void **state)
{
    (void)state;
    enum { OFFERS = 20 };
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    watch(handoff_backend_fd(channel.backend), EPOLLIN | EPOLLET);
    for (int round = 0; round < 3; round++) {
        int taken = 0, turns = 0;
        for (int i = 0; i < OFFERS; i++)
            offer_fd(&channel, client[0]);
        for (await_event(); taken < OFFERS; turns++) {
            /* At once, not when a timer brings it. */
            struct epoll_event event;
            assert_true(turns == 0 || epoll_wait(loop, &event, 1, 0) == 1);
            assert_ok(handoff_backend_dispatch(channel.backend));
            for (; next_arrival(channel.backend, &arrival); taken++)
                adopt(&channel, arrival.id);
        }
        assert_in_range(turns, 2, OFFERS);
        assert_ok(handoff_broker_dispatch(channel.broker));
        for (int i = 0; i < OFFERS; i++)
            assert_true(next_verdict(channel.broker, &verdict));
    }
}

/* next is called once, not until HANDOFF_NOTHING. */
static void adoption_in_a_batch_that_is_not_finished_is_told_after_a_moment(void **state)
{
    (void)state;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    uint64_t id;
    for (int i = 0;; i++) {
        id = offer_fd(&channel, client[0]);
        offer_fd(&channel, client[0]);
        adopt(&channel, arrival_of(&channel).id);
        assert_ok(handoff_broker_dispatch(channel.broker));
        if (!next_verdict(channel.broker, &verdict))
            break;
        /* A tick of the clock has come between, so it was told at once. */
        assert_in_range(i, 0, 1000);
        adopt(&channel, arrival_of(&channel).id);
        assert_false(next_arrival(channel.backend, &arrival));
        assert_ok(handoff_broker_dispatch(channel.broker));
        assert_true(next_verdict(channel.broker, &verdict));
    }
    await_readable(handoff_backend_fd(channel.backend));
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_true(next_verdict(channel.broker, &verdict));
    assert_int_equal(verdict.id, id);
    assert_no_verdict(&channel);
}

/* Until then the client is served first. If a tick of the clock comes between, it is told at once. */
static void last_adoption_of_a_batch_is_told_when_the_caller_goes_on(void **state)
{
    (void)state;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    size_t room = room_of_broker();
    bool later = false;
    for (int i = 0; i < 1000 && !later; i++) {
        offer_fd(&channel, client[0]);
        adopt(&channel, arrival_of(&channel).id);
        assert_ok(handoff_broker_dispatch(channel.broker));
        later = !next_verdict(channel.broker, &verdict);
        assert_false(next_arrival(channel.backend, &arrival));
        assert_ok(handoff_broker_dispatch(channel.broker));
        assert_true(!later || next_verdict(channel.broker, &verdict));
        assert_int_equal(room_of_broker(), room);
    }
    assert_true(later);
}

/* Its client waits to be served another way. */
static void last_rejection_of_a_batch_is_told_at_once(void **state)
{
    (void)state;
    size_t room = room_of_broker();
    offer_fd(&channel, client[0]);
    assert_ok(handoff_backend_reject(channel.backend, arrival_of(&channel).id,
                                     HANDOFF_REASON_REJECTED));
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_true(next_verdict(channel.broker, &(handoff_verdict)HANDOFF_VERDICT_INIT));
    assert_int_equal(room_of_broker(), room);
}

/* After a question to somebody else, say. The caller may not take the next arrival soon. */
static void adoption_that_is_not_made_at_once_is_told_at_once(void **state)
{
    (void)state;
    size_t room = room_of_broker();
    offer_fd(&channel, client[0]);
    handoff_arrival arrival = arrival_of(&channel);
    sleep_until(now_ns(), 50);
    adopt(&channel, arrival.id);
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_true(next_verdict(channel.broker, &(handoff_verdict)HANDOFF_VERDICT_INIT));
    assert_int_equal(room_of_broker(), room);
}

static void hand_over(void)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
    assert_false(next_arrival(channel.backend, &arrival));
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_true(next_verdict(channel.broker, &verdict));
}

/* The backend receives from the busy one without a look at what else has come, but for one each
   millisecond, in which there is no time for so many handoffs. */
static void arrival_of_a_broker_is_not_missed_beside_a_busy_one(void **state)
{
    (void)state;
    for (int round = 0; round < 5; round++) {
        handoff_broker *second;
        int handoffs = 0;
        for (int i = 0; i < 100; i++)
            hand_over();
        assert_ok(handoff_broker_new(channel.path, NULL, &second));
        for (; broker_statistics(second).connects == 0; handoffs++) {
            assert_ok(handoff_broker_dispatch(second));
            hand_over();
        }
        assert_in_range(handoffs, 1, 1000);
        handoff_broker_free(second);
    }
}

static void backend_that_finishes_its_batches_is_not_woken_for_nothing(void **state)
{
    (void)state;
    struct pollfd backend = {.fd = handoff_backend_fd(channel.backend), .events = POLLIN};
    int woken = 0;
    for (int i = 0; i < 5; i++) {
        hand_over();
        if (poll(&backend, 1, 20) == 1) {
            woken++;
            assert_ok(handoff_backend_dispatch(channel.backend));
        }
    }
    /* Once, if the timer was set already, for the broker's hello. */
    assert_in_range(woken, 0, 1);
    /* And still for a batch that it does not finish. */
    adoption_in_a_batch_that_is_not_finished_is_told_after_a_moment(state);
}

/* Sends of the library that find no room, though there is room when they have returned. */
static int without_room;

/* Takes the place of the C library's. */
ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (without_room > 0) {
        without_room--;
        errno = EAGAIN;
        return -1;
    }
    return syscall(SYS_sendmsg, fd, message, flags);
}

static void room_that_comes_at_once_is_not_missed(void **state)
{
    (void)state;
    int broker_fd = handoff_broker_fd(channel.broker);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    watch(broker_fd, EPOLLIN | EPOLLET);
    watch(handoff_backend_fd(channel.backend), EPOLLIN | EPOLLET);
    for (int i = 0; i < 3; i++) {
        without_room = 1;
        uint64_t id = offer_fd(&channel, client[0]);
        while (verdict.id != id) {
            handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
            if (await_event() == broker_fd) {
                assert_ok(handoff_broker_dispatch(channel.broker));
                next_verdict(channel.broker, &verdict);
                continue;
            }
            assert_ok(handoff_backend_dispatch(channel.backend));
            while (next_arrival(channel.backend, &arrival)) {
                without_room = 1;
                adopt(&channel, arrival.id);
            }
        }
        assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        EVENT_TEST(nothing_is_lost_with_poll),
        EVENT_TEST(nothing_is_lost_with_level_triggered_epoll),
        EVENT_TEST(nothing_is_lost_with_edge_triggered_epoll),
        EVENT_TEST(idle_handles_are_not_readable),
        EVENT_TEST(verdict_that_an_offer_brings_is_an_event),
        EVENT_TEST(end_of_the_channel_that_flush_notices_is_an_event),
        EVENT_TEST(deadline_is_an_event),
        EVENT_TEST(time_to_connect_again_is_an_event),
        EVENT_TEST(arrival_of_a_broker_is_an_event),
        EVENT_TEST(what_had_no_turn_is_an_event),
        CHANNEL_TEST(arrival_of_a_broker_is_not_missed_beside_a_busy_one),
        EVENT_TEST(adoption_in_a_batch_that_is_not_finished_is_told_after_a_moment),
        EVENT_TEST(last_adoption_of_a_batch_is_told_when_the_caller_goes_on),
        CHANNEL_TEST(last_rejection_of_a_batch_is_told_at_once),
        CHANNEL_TEST(adoption_that_is_not_made_at_once_is_told_at_once),
        EVENT_TEST(backend_that_finishes_its_batches_is_not_woken_for_nothing),
        EVENT_TEST(room_that_comes_at_once_is_not_missed),
    };
    return RUN_TESTS(tests);
}
