/* Loops with a budget: they take a few from a handle, let others have their turn, and wait for the
   handle's descriptor again. Nothing stays behind, and loops that take all pay nothing for it. */
#define _GNU_SOURCE
#include "fixture.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { MANY = 100 };

static int loop = -1;

static void await_poll(int fd)
{
    await_readable(fd);
}

static void await_epoll(int fd)
{
    struct epoll_event event;
    assert_int_equal(epoll_wait(loop, &event, 1, PATIENCE_MS), 1);
    assert_int_equal(event.data.fd, fd);
}

static void watch(int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    loop = epoll_create1(EPOLL_CLOEXEC);
    assert_int_not_equal(loop, -1);
    assert_int_equal(epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event), 0);
}

/* Runs a loop that waits with poll, and with epoll in both ways. */
static void in_every_way(void (*run)(void (*await)(int fd)), int fd)
{
    run(await_poll);
    for (int i = 0; i < 2; i++) {
        watch(fd, EPOLLIN | (i == 0 ? 0 : EPOLLET));
        run(await_epoll);
        close(loop);
    }
}

/* ---- the broker ------------------------------------------------------------------------------ */

/* So many verdicts that arrive at once. */
static void offer_and_adopt(int offers)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    for (int i = 0; i < offers; i++)
        offer_fd(&channel, client[0]);
    receive_all(channel.backend);
    while (next_arrival(channel.backend, &arrival))
        adopt(&channel, arrival.id);
}

static void take_one_verdict_for_each_event(void (*await)(int fd))
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    offer_and_adopt(MANY);
    for (int taken = 0; taken < MANY;) {
        await(handoff_broker_fd(channel.broker));
        assert_ok(handoff_broker_dispatch(channel.broker));
        taken += next_verdict(channel.broker, &verdict);
    }
    assert_no_verdict(&channel);
}

static void verdicts_are_taken_one_for_each_event(void **state)
{
    (void)state;
    in_every_way(take_one_verdict_for_each_event, handoff_broker_fd(channel.broker));
}

static void verdicts_left_are_readable_again_and_again_until_they_are_taken(void **state)
{
    (void)state;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    int fd = handoff_broker_fd(channel.broker);
    offer_and_adopt(3);
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_true(next_verdict(channel.broker, &verdict));
    for (int i = 0; i < 5; i++) {
        await_readable(fd);
        assert_ok(handoff_broker_dispatch(channel.broker));
    }
    assert_true(next_verdict(channel.broker, &verdict));
    await_readable(fd);
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_true(next_verdict(channel.broker, &verdict));
    assert_false(next_verdict(channel.broker, &verdict));
    /* Perhaps once more for nothing, and then never. */
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_false(is_readable(fd));
}

/* The verdicts of offers that are adopted meanwhile. */
static void verdicts_that_a_waiting_offer_leaves_are_events(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    offer_and_adopt(5);
    offer.timeout_ms = 1;
    assert_ok(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict));
    assert_int_equal(verdict.reason, HANDOFF_REASON_ACK_TIMEOUT);
    for (int taken = 0; taken < 5;) {
        await_readable(handoff_broker_fd(channel.broker));
        assert_ok(handoff_broker_dispatch(channel.broker));
        taken += next_verdict(channel.broker, &verdict);
    }
}

/* One that is refused has received them, too. */
static void verdicts_that_a_refused_waiting_offer_leaves_are_events(void **state)
{
    (void)state;
    static char preread[100000]; /* more than the backend takes */
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    offer_and_adopt(1);
    assert_ok(handoff_backend_dispatch(channel.backend));
    /* Until the broker has no timer that fires soon. */
    usleep(150000);
    offer.preread = preread;
    offer.preread_len = sizeof preread;
    assert_int_equal(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict),
                     HANDOFF_ERR_TOO_LARGE);
    await_readable(handoff_broker_fd(channel.broker));
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_true(next_verdict(channel.broker, &verdict));
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
}

/* ---- the backend ----------------------------------------------------------------------------- */

static uint64_t held[MANY];

/* One dispatch and one arrival for each event, of so many packets; adopted then, or later. */
static void look_at_one_for_each_event(void (*await)(int fd), int count, bool at_once)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    for (int i = 0; i < count; i++)
        offer_fd(&channel, client[0]);
    for (int taken = 0; taken < count;) {
        await(handoff_backend_fd(channel.backend));
        assert_ok(handoff_backend_dispatch(channel.backend));
        if (!next_arrival(channel.backend, &arrival))
            continue;
        held[taken++] = arrival.id;
        if (at_once)
            adopt(&channel, arrival.id);
    }
    for (int i = 0; i < count && !at_once; i++)
        adopt(&channel, held[i]);
    assert_no_arrival(&channel);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_ok(handoff_broker_dispatch(channel.broker));
    for (int i = 0; i < count; i++)
        assert_true(next_verdict(channel.broker, &verdict));
}

static void look_at_one_arrival_for_each_event(void (*await)(int fd))
{
    look_at_one_for_each_event(await, MANY, false);
    /* A few packets are all received at once. */
    for (int count = 1; count < 10; count++) {
        look_at_one_for_each_event(await, count, false);
        look_at_one_for_each_event(await, count, true);
    }
}

static void arrivals_are_looked_at_one_for_each_event(void **state)
{
    (void)state;
    in_every_way(look_at_one_arrival_for_each_event, handoff_backend_fd(channel.backend));
}

/* And nothing more is there, but the verdict is not sent yet. */
static void stop_at_the_only_arrival(void (*await)(int fd))
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    for (int i = 0; i < 10; i++) {
        offer_fd(&channel, client[0]);
        adopt(&channel, arrival_of(&channel).id);
        assert_ok(handoff_broker_dispatch(channel.broker));
        while (!next_verdict(channel.broker, &verdict)) {
            await(handoff_backend_fd(channel.backend));
            assert_ok(handoff_backend_dispatch(channel.backend));
            assert_ok(handoff_broker_dispatch(channel.broker));
        }
    }
}

static void verdict_is_an_event_for_a_loop_that_stops_at_the_last_arrival(void **state)
{
    (void)state;
    in_every_way(stop_at_the_only_arrival, handoff_backend_fd(channel.backend));
}

static void accept_one_for_each_event(void (*await)(int fd), int count)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    for (int i = 0; i < count; i++)
        offer_fd(&channel, client[0]);
    for (int taken = 0; taken < count;) {
        await(handoff_backend_fd(channel.backend));
        handoff_status status = handoff_backend_accept(channel.backend, 0, &arrival);
        if (status == HANDOFF_TIMED_OUT)
            continue;
        assert_ok(status);
        close(arrival.fd);
        taken++;
    }
    assert_ok(handoff_broker_dispatch(channel.broker));
    for (int i = 0; i < count; i++)
        assert_true(next_verdict(channel.broker, &verdict));
}

static void accept_one_arrival_for_each_event(void (*await)(int fd))
{
    accept_one_for_each_event(await, MANY);
    for (int count = 1; count < 10; count++)
        accept_one_for_each_event(await, count);
}

static void arrivals_are_accepted_one_for_each_event(void **state)
{
    (void)state;
    /* Edge-triggered, the loop accepts until the time is up: accept does not dispatch while there is
       something to take. */
    accept_one_arrival_for_each_event(await_poll);
    watch(handoff_backend_fd(channel.backend), EPOLLIN);
    accept_one_arrival_for_each_event(await_epoll);
    close(loop);
}

/* One dispatch leaves packets that it has not received, though the caller takes all arrivals. */
static void take_all_arrivals_for_each_event(void (*await)(int fd))
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    int events = 0;
    for (int i = 0; i < MANY; i++)
        offer_fd(&channel, client[0]);
    for (int taken = 0; taken < MANY; events++) {
        await(handoff_backend_fd(channel.backend));
        assert_ok(handoff_backend_dispatch(channel.backend));
        for (; next_arrival(channel.backend, &arrival); taken++)
            adopt(&channel, arrival.id);
    }
    assert_in_range(events, 10, MANY + 1);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_ok(handoff_broker_dispatch(channel.broker));
    for (int i = 0; i < MANY; i++)
        assert_true(next_verdict(channel.broker, &verdict));
}

/* Two packets, and a loop that takes nothing in a turn. */
static void leave_the_second_arrival_twice(void (*await)(int fd))
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    for (int i = 0; i < 2; i++)
        offer_fd(&channel, client[0]);
    for (int turn = 0; turn < 4; turn++) {
        await(handoff_backend_fd(channel.backend));
        assert_ok(handoff_backend_dispatch(channel.backend));
        if (turn == 0 || turn == 3) {
            assert_true(next_arrival(channel.backend, &arrival));
            adopt(&channel, arrival.id);
        }
    }
    assert_false(next_arrival(channel.backend, &arrival));
    assert_ok(handoff_broker_dispatch(channel.broker));
    for (int i = 0; i < 2; i++)
        assert_true(next_verdict(channel.broker, &verdict));
}

static void arrival_in_a_packet_is_an_event_until_it_is_taken(void **state)
{
    (void)state;
    in_every_way(leave_the_second_arrival_twice, handoff_backend_fd(channel.backend));
}

/* Who drains ends as soon as nothing is held after a dispatch. */
static void arrival_behind_a_rejected_one_is_held_after_one_dispatch(void **state)
{
    (void)state;
    int refused[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, refused), 0);
    offer_fd(&channel, refused[0]);
    offer_fd(&channel, client[0]);
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_int_equal(backend_statistics(channel.backend).rejected, 1);
    assert_int_equal(backend_statistics(channel.backend).held, 1);
    adopt(&channel, arrival_of(&channel).id);
    close(refused[0]);
    close(refused[1]);
}

static void what_a_dispatch_leaves_is_another_event(void **state)
{
    (void)state;
    in_every_way(take_all_arrivals_for_each_event, handoff_backend_fd(channel.backend));
}

static void accept_without_a_wait_finds_an_offer_behind_those_that_were_taken_back(void **state)
{
    (void)state;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    uint64_t ids[10];
    for (int i = 0; i < 10; i++)
        ids[i] = offer_fd(&channel, client[0]);
    for (int i = 0; i < 9; i++)
        assert_ok(handoff_broker_take_back(channel.broker, ids[i]));
    assert_ok(handoff_backend_accept(channel.backend, 0, &arrival));
    close(arrival.fd);
    assert_status(handoff_backend_accept(channel.backend, 0, &arrival), HANDOFF_TIMED_OUT);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_true(next_verdict(channel.broker, &verdict));
    assert_int_equal(verdict.id, ids[9]);
}

/* A long one with HANDOFF_OFFER_MORE, and its backend serves for a while. */
static void offer_a_long_one(void)
{
    static const char preread[40000];
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    offer.preread = preread;
    offer.preread_len = sizeof preread;
    offer.flags = HANDOFF_OFFER_MORE;
    /* The descriptor is to be readable before that. */
    offer.timeout_ms = 2 * PATIENCE_MS;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    adopt(&channel, arrival_of(&channel).id);
    await_readable(handoff_broker_fd(channel.broker));
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_true(next_verdict(channel.broker, &verdict));
}

static void what_was_sent_by_itself_has_its_timer(void **state)
{
    (void)state;
    handoff_broker_backend another = HANDOFF_BROKER_BACKEND_INIT;
    offer_a_long_one();
    another.path = "@handoff-test-budget-nobody";
    another.flags = HANDOFF_BACKEND_OFF;
    assert_ok(handoff_broker_add(channel.broker, &another));
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_no_verdict(&channel);
    offer_a_long_one();
}

/* ---- what it costs --------------------------------------------------------------------------- */

static int timers_set, timers_refused;

/* Takes the place of the C library's. */
int timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old)
{
    timers_set++;
    if (timers_refused > 0) {
        timers_refused--;
        errno = ENOMEM;
        return -1;
    }
    return (int)syscall(SYS_timerfd_settime, fd, flags, new, old);
}

/* Handoffs in batches of a size; returns how many timers the broker set, and in how many
   milliseconds. */
static int timers_of_batches(int size, uint64_t *milliseconds)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    uint64_t start = now_ns();
    int timers = 0;
    for (int i = 0; i < 1000; i++) {
        offer_and_adopt(size);
        int before = timers_set;
        assert_ok(handoff_broker_dispatch(channel.broker));
        for (int taken = 0; taken < size; taken++)
            assert_true(next_verdict(channel.broker, &verdict));
        assert_false(next_verdict(channel.broker, &verdict));
        timers += timers_set - before;
    }
    *milliseconds = ms_since(start);
    return timers;
}

static void loop_that_takes_all_sets_no_timer_or_one_in_a_millisecond(void **state)
{
    (void)state;
    uint64_t milliseconds;
    offer_and_adopt(1);
    assert_adopted(&channel);
    int one = timers_of_batches(1, &milliseconds);
    print_message("1000 batches of one verdict: %d timers set\n", one);
    /* For deadlines, when the first one that was set has fired: each five seconds. */
    assert_in_range(one, 0, 1 + milliseconds / 5000);
    int ten = timers_of_batches(10, &milliseconds);
    print_message("1000 batches of ten verdicts: %d timers set in %u ms\n", ten,
                  (unsigned)milliseconds);
    /* One for what may be left, and one for the deadline again when it has fired. */
    assert_in_range(ten, 0, 2 * (milliseconds + 1));
}

static void rejection_whose_verdict_is_sent_sets_no_timer(void **state)
{
    (void)state;
    offer_fd(&channel, client[0]);
    uint64_t id = arrival_of(&channel).id;
    int before = timers_set;
    assert_ok(handoff_backend_reject(channel.backend, id, HANDOFF_REASON_REJECTED));
    assert_int_equal(timers_set, before);
    assert_int_equal(verdict_of(&channel).reason, HANDOFF_REASON_REJECTED);
}

/* A loop that only dispatches, as one whose clients are too many would. */
static void arrivals_that_nobody_takes_are_an_event_once_in_a_millisecond(void **state)
{
    (void)state;
    enum { TIME_MS = 50 };
    int events = 0, fd = handoff_backend_fd(channel.backend);
    for (int i = 0; i < 2; i++)
        offer_fd(&channel, client[0]);
    for (uint64_t start = now_ns(); ms_since(start) < TIME_MS; events++) {
        await_readable(fd);
        assert_ok(handoff_backend_dispatch(channel.backend));
    }
    /* And a few for the offers themselves. */
    assert_in_range(events, 2, TIME_MS + 10);
}

/* ---- what is due stays due ------------------------------------------------------------------- */

/* No timer can be set for the next attempt to connect, or for the next deadline. */
static void dispatch_that_fails_is_an_event_again(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    int fd = handoff_broker_fd(channel.broker);
    offer.timeout_ms = 1;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    offer.timeout_ms = 20;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    handoff_backend_free(channel.backend);
    channel.backend = NULL;
    int failed = 0;
    /* Both deadlines, and two attempts to connect. */
    for (int i = 0; i < 4; i++) {
        await_readable(fd);
        timers_refused = 1;
        failed += handoff_broker_dispatch(channel.broker) == HANDOFF_ERR_SYSTEM;
        timers_refused = 0;
        while (next_verdict(channel.broker, &verdict))
            assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    }
    assert_true(failed > 0);
    assert_int_equal(broker_statistics(channel.broker).in_flight, 0);
    assert_ok(handoff_backend_listen(channel.path, NULL, &channel.backend));
    connect_broker(channel.broker, channel.backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHANNEL_TEST(verdicts_are_taken_one_for_each_event),
        CHANNEL_TEST(verdicts_left_are_readable_again_and_again_until_they_are_taken),
        CHANNEL_TEST(verdicts_that_a_waiting_offer_leaves_are_events),
        CHANNEL_TEST(verdicts_that_a_refused_waiting_offer_leaves_are_events),
        CHANNEL_TEST(arrivals_are_looked_at_one_for_each_event),
        CHANNEL_TEST(verdict_is_an_event_for_a_loop_that_stops_at_the_last_arrival),
        CHANNEL_TEST(arrivals_are_accepted_one_for_each_event),
        CHANNEL_TEST(arrival_in_a_packet_is_an_event_until_it_is_taken),
        CHANNEL_TEST(arrival_behind_a_rejected_one_is_held_after_one_dispatch),
        CHANNEL_TEST(what_a_dispatch_leaves_is_another_event),
        CHANNEL_TEST(accept_without_a_wait_finds_an_offer_behind_those_that_were_taken_back),
        CHANNEL_TEST(what_was_sent_by_itself_has_its_timer),
        CHANNEL_TEST(loop_that_takes_all_sets_no_timer_or_one_in_a_millisecond),
        CHANNEL_TEST(rejection_whose_verdict_is_sent_sets_no_timer),
        CHANNEL_TEST(arrivals_that_nobody_takes_are_an_event_once_in_a_millisecond),
        CHANNEL_TEST(dispatch_that_fails_is_an_event_again),
    };
    return RUN_TESTS(tests);
}
