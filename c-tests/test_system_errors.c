/*
 * What the system refuses: descriptors, memory, timers, randomness, room in a socket's buffer. It
 * costs a pause or a channel, is counted as what it is, and an end that goes on works as before.
 */
#define _GNU_SOURCE
#include "channel.h"
#include "faults.h"
#include "frames.h"

#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static struct channel channel;
static int client[2];

/* ---- one fault at a time --------------------------------------------------------------------- */

/* An end of which every call may meet the fault. */
enum end { BACKEND, BROKER };

/* What an event loop watches. */
static struct pollfd fds[2];

static handoff_status in_faulty(enum end end, enum end faulty, handoff_status (*call)(void))
{
    return end == faulty ? FAULTY(call()) : call();
}

static handoff_status backend_dispatch(void)
{
    return handoff_backend_dispatch(channel.backend);
}

static handoff_status broker_dispatch(void)
{
    return handoff_broker_dispatch(channel.broker);
}

static handoff_status backend_next_and_adopt(void)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    while (handoff_backend_next(channel.backend, &arrival) == HANDOFF_OK) {
        int fd = -1;
        if (handoff_backend_adopt(channel.backend, arrival.id, &fd) == HANDOFF_OK)
            assert_int_equal(close(fd), 0);
    }
    return HANDOFF_OK;
}

static bool in_flight;

static handoff_status broker_offer(void)
{
    handoff_offer offer = offer_of(client[0]);
    offer.timeout_ms = 200;
    handoff_status status = handoff_broker_offer(channel.broker, &offer, NULL);
    in_flight = status == HANDOFF_OK;
    return status;
}

static handoff_status watch_backend(void)
{
    fds[BACKEND] = (struct pollfd){.fd = handoff_backend_fd(channel.backend), .events = POLLIN};
    return fds[BACKEND].fd == -1 ? HANDOFF_ERR_SYSTEM : HANDOFF_OK;
}

static handoff_status watch_broker(void)
{
    fds[BROKER] = (struct pollfd){.fd = handoff_broker_fd(channel.broker), .events = POLLIN};
    return fds[BROKER].fd == -1 ? HANDOFF_ERR_SYSTEM : HANDOFF_OK;
}

/* An error is about the fault. */
static void check_error(handoff_status status)
{
    if (status == HANDOFF_OK)
        return;
    assert_true(status == HANDOFF_ERR_SYSTEM || status == HANDOFF_ERR_DESCRIPTOR_PRESSURE ||
                status == HANDOFF_ERR_UNSUPPORTED);
    assert_true(fault.failed > 0);
}

/* Waits as an event loop does, and calls an end only if its descriptor says so; offers a connection
   whenever none is in flight. Returns the number of those adopted when `done` is true. */
static unsigned run_until(enum end faulty, bool (*done)(unsigned adopted))
{
    unsigned adopted = 0;
    uint64_t start = now_ns();
    while (!done(adopted)) {
        if (ms_since(start) >= PATIENCE_MS)
            fail_msg("%s %s, call %u: nobody is served any more", call_names[fault.call],
                     strerror(fault.error), fault.first);
        assert_int_not_equal(poll(fds, 2, 1000), -1);
        if (fds[BACKEND].revents != 0) {
            check_error(in_faulty(BACKEND, faulty, backend_dispatch));
            in_faulty(BACKEND, faulty, backend_next_and_adopt);
        }
        if (fds[BROKER].revents != 0)
            check_error(in_faulty(BROKER, faulty, broker_dispatch));
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        while (next_verdict(channel.broker, &verdict)) {
            in_flight = false;
            adopted += verdict.outcome == HANDOFF_ADOPTED;
        }
        if (!in_flight)
            in_faulty(BROKER, faulty, broker_offer);
    }
    return adopted;
}

enum { HANDOFFS = 3 };

static bool some_are_adopted(unsigned adopted)
{
    return adopted >= HANDOFFS || fault.failed > 0;
}

static bool one_is_adopted(unsigned adopted)
{
    return adopted > 0;
}

/* Hands connections over while the nth call of a kind fails, and as many after it as are to fail in a
   row; false if it was not made so often. */
static bool survives(enum end faulty, enum fault_call call, int error, unsigned nth, unsigned row)
{
    make_directory(channel.directory);
    snprintf(channel.path, sizeof channel.path, "%s/socket", channel.directory);
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_failures = HANDOFF_NO_LIMIT;
    options.reconnect_max_ms = 20;
    assert_ok(handoff_backend_listen(channel.path, NULL, &channel.backend));
    assert_ok(handoff_broker_new(channel.path, &options, &channel.broker));
    in_flight = false;
    set_fault(call, error, nth, row);
    /* Opening a handle may fail, until the calls do not. */
    for (unsigned i = 0; i <= row; i++) {
        handoff_status opened = in_faulty(BACKEND, faulty, watch_backend);
        opened = opened ? opened : in_faulty(BROKER, faulty, watch_broker);
        if (opened == HANDOFF_OK)
            break;
        assert_int_equal(fault.failed, i + 1);
    }
    run_until(faulty, some_are_adopted);
    bool failed = fault.failed > 0;
    fault.call = NO_CALL;
    run_until(faulty, one_is_adopted);
    if (faulty == BACKEND)
        assert_int_equal(backend_statistics(channel.backend).broken, 0);
    close_channel(&channel);
    return failed;
}

static const struct {
    enum fault_call call;
    int errors[5];
} refusals[] = {
    {ACCEPT4, {EMFILE, ENFILE, ENOMEM, ECONNABORTED, EPERM}},
    {EPOLL_CREATE1, {EMFILE, ENOMEM}},
    {EPOLL_CTL, {ENOSPC, ENOMEM}},
    {EPOLL_WAIT, {EINTR, EINVAL}},
    {GETENTROPY, {EIO, ENOSYS}},
    {GETPEERNAME, {ENOBUFS}},
    {GETSOCKOPT, {ENOMEM, ENOPROTOOPT}},
    {MMAP, {ENOMEM, EAGAIN}},
    {POLL, {ENOMEM, EINTR}},
    {RECVMSG, {ENOMEM, ENOBUFS, EAGAIN, EINTR, ECONNRESET}},
    {SENDMSG, {ENOBUFS, ENOMEM, EAGAIN, EINTR, EPERM}},
    {SOCKET, {EMFILE, ENOBUFS}},
    {TIMERFD_CREATE, {EMFILE, ENOMEM}},
    {TIMERFD_SETTIME, {EINVAL}},
    {CONNECT, {EAGAIN, ECONNREFUSED, ENOENT}},
};

static void sweep(enum end faulty, unsigned row)
{
    unsigned faults = 0;
    make_tcp_pair(client);
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++)
        for (size_t e = 0; e < 5 && refusals[i].errors[e] != 0; e++)
            for (unsigned nth = 1; survives(faulty, refusals[i].call, refusals[i].errors[e], nth, row);
                 nth++)
                faults++;
    close(client[0]);
    close(client[1]);
    print_message("%u faults, %u in a row\n", faults, row);
    assert_true(faults > 50);
}

static void backend_serves_on_after_any_one_call_has_failed(void **state)
{
    (void)state;
    sweep(BACKEND, 1);
}

static void backend_serves_on_after_a_call_has_failed_three_times_in_a_row(void **state)
{
    (void)state;
    sweep(BACKEND, 3);
}

static void broker_hands_over_after_any_one_call_has_failed(void **state)
{
    (void)state;
    sweep(BROKER, 1);
}

static void broker_hands_over_after_a_call_has_failed_three_times_in_a_row(void **state)
{
    (void)state;
    sweep(BROKER, 3);
}

/* ---- each by its name ------------------------------------------------------------------------ */

static void begin(const handoff_backend_options *options)
{
    make_directory(channel.directory);
    snprintf(channel.path, sizeof channel.path, "%s/socket", channel.directory);
    assert_ok(handoff_backend_listen(channel.path, options, &channel.backend));
    assert_ok(watch_backend());
}

static void end_backend(void)
{
    handoff_backend_free(channel.backend);
    remove_directory(channel.directory);
}

/* The backend has accepted so many connections. */
static void await_channels(uint64_t channels)
{
    while (backend_statistics(channel.backend).channels != channels) {
        await_readable(fds[BACKEND].fd);
        assert_ok(FAULTY(handoff_backend_dispatch(channel.backend)));
    }
}

static void assert_refusals(uint64_t errors, int error)
{
    handoff_backend_statistics found = backend_statistics(channel.backend);
    assert_int_equal(found.system_errors, errors);
    assert_int_equal(found.system_errno, error);
    assert_int_equal(found.broken, 0);
    assert_int_equal(found.refused, 0);
}

static void broker_is_accepted_although_the_system_refuses_twice(void **state)
{
    (void)state;
    static const enum fault_call second[] = {EPOLL_CTL, TIMERFD_SETTIME, ACCEPT4};
    for (size_t i = 0; i < sizeof second / sizeof *second; i++) {
        begin(NULL);
        int peer = packets_connect(channel.path);
        set_fault(ACCEPT4, EMFILE, 1, 1);
        set_second_fault(second[i], ENOSPC);
        await_channels(1);
        assert_int_equal(fault.failed, 1);
        set_fault(NO_CALL, 0, 0, 0);
        close(peer);
        end_backend();
    }
}

/* Opening the first timer fails while the descriptor of the handle is already watched. */
static void broker_connects_although_its_first_timer_fails(void **state)
{
    (void)state;
    make_directory(channel.directory);
    snprintf(channel.path, sizeof channel.path, "%s/socket", channel.directory);
    assert_ok(handoff_broker_new(channel.path, NULL, &channel.broker));
    set_fault(TIMERFD_SETTIME, EINVAL, 1, 1);
    assert_int_equal(FAULTY(watch_broker()), HANDOFF_ERR_SYSTEM);
    assert_ok(watch_broker());
    await_readable(fds[BROKER].fd);
    handoff_broker_free(channel.broker);
    remove_directory(channel.directory);
}

/* Nobody listens there, so the broker sets a timer for the next attempt. */
static handoff_status add_absent(void)
{
    handoff_broker_backend absent = HANDOFF_BROKER_BACKEND_INIT;
    absent.path = "@handoff-test-absent";
    return handoff_broker_add(channel.broker, &absent);
}

/* What is done is no error: the broker tries to set the timer again. */
static void backend_is_added_although_no_timer_can_be_set(void **state)
{
    (void)state;
    for (unsigned times = 1; times <= 2; times++) {
        assert_ok(handoff_broker_new(NULL, NULL, &channel.broker));
        assert_ok(watch_broker());
        set_fault(TIMERFD_SETTIME, EINVAL, 1, times);
        assert_ok(FAULTY(add_absent()));
        assert_int_equal(fault.failed, times);
        set_fault(NO_CALL, 0, 0, 0);
        if (times == 2)
            assert_ok(watch_broker());
        await_readable(fds[BROKER].fd);
        handoff_broker_free(channel.broker);
    }
}

static void failed_connection_does_not_hold_up_the_next(void **state)
{
    (void)state;
    begin(NULL);
    int first = packets_connect(channel.path), second = packets_connect(channel.path);
    set_fault(ACCEPT4, ECONNABORTED, 1, 2);
    assert_ok(FAULTY(handoff_backend_dispatch(channel.backend)));
    assert_int_equal(backend_statistics(channel.backend).channels, 2);
    assert_refusals(0, 0);
    close(first);
    close(second);
    end_backend();
}

static void what_the_system_refuses_at_accept_is_counted_as_that(void **state)
{
    (void)state;
    static const enum fault_call calls[] = {ACCEPT4, GETSOCKOPT, EPOLL_CTL, TIMERFD_SETTIME};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        begin(NULL);
        int peer = packets_connect(channel.path);
        set_fault(calls[i], ENOMEM, 1, 1);
        assert_ok(FAULTY(handoff_backend_dispatch(channel.backend)));
        assert_int_equal(fault.failed, 1);
        assert_refusals(1, ENOMEM);
        close(peer);
        end_backend();
    }
}

/* A broker that has said hello, as an honest one does. */
static int say_hello(uint32_t slots)
{
    static struct frame frame;
    int peer = packets_connect(channel.path), table = memfd_create("table", MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(table, slots * 8), 0);
    assert_int_equal(fcntl(table, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    frame_hello(&frame, slots, table);
    assert_int_equal(frame_send(peer, &frame), 0);
    close(table);
    return peer;
}

static void channel_that_the_system_refuses_is_not_the_brokers_fault(void **state)
{
    (void)state;
    begin(NULL);
    int peer = say_hello(8);
    set_fault(MMAP, ENOMEM, 1, 1);
    assert_ok(FAULTY(handoff_backend_dispatch(channel.backend)));
    assert_refusals(1, ENOMEM);
    assert_true(channel_ends(peer));
    close(peer);
    end_backend();
}

static void claim_table_that_is_lost_on_arrival_is_not_the_brokers_fault(void **state)
{
    (void)state;
    skip_under_valgrind("the kernel goes on installing descriptors beyond the limit");
    begin(NULL);
    int peer = say_hello(8), spare = dup(peer);
    rlim_t limit = allow_no_more_descriptors();
    /* For the connection, and not for the table. */
    close(spare);
    assert_ok(handoff_backend_dispatch(channel.backend));
    allow_descriptors(limit);
    /* And accept4(2) looks for a descriptor before it looks for another connection. */
    assert_refusals(2, EMFILE);
    assert_true(channel_ends(peer));
    close(peer);
    end_backend();
}

/* While the system refuses it something, it is readable again and again. */
static void assert_backend_goes_on_trying(void)
{
    for (int i = 0; i < 5; i++) {
        unsigned failed = fault.failed;
        while (fault.failed == failed) {
            await_readable(fds[BACKEND].fd);
            assert_ok(FAULTY(handoff_backend_dispatch(channel.backend)));
        }
    }
    set_fault(NO_CALL, 0, 0, 0);
}

static void verdict_that_there_is_no_memory_to_send_is_sent_when_there_is_some_again(void **state)
{
    (void)state;
    make_pair(SOCK_STREAM, client);
    open_channel(&channel, NULL, NULL);
    assert_ok(watch_backend());
    offer_fd(&channel, client[0]);
    handoff_arrival arrival = arrival_of(&channel);
    set_fault(SENDMSG, ENOMEM, 1, UINT32_MAX);
    assert_ok(FAULTY(handoff_backend_reject(channel.backend, arrival.id, HANDOFF_REASON_REJECTED)));
    assert_ok(FAULTY(handoff_backend_dispatch(channel.backend)));
    assert_backend_goes_on_trying();
    await_readable(fds[BACKEND].fd);
    assert_ok(handoff_backend_dispatch(channel.backend));
    handoff_verdict verdict = verdict_of(&channel);
    assert_int_equal(verdict.reason, HANDOFF_REASON_REJECTED);
    close_channel(&channel);
    close(client[0]);
    close(client[1]);
}

static void slot_that_got_no_token_gets_one_when_there_is_randomness_again(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_in_flight = 1;
    make_pair(SOCK_STREAM, client);
    open_channel(&channel, &options, NULL);
    assert_ok(watch_backend());
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_status status;
    set_fault(GETENTROPY, EIO, 1, UINT32_MAX);
    unsigned adopted = 0;
    while ((status = handoff_broker_offer(channel.broker, &offer, NULL)) == HANDOFF_OK) {
        assert_ok(FAULTY(handoff_backend_dispatch(channel.backend)));
        in_faulty(BACKEND, BACKEND, backend_next_and_adopt);
        assert_ok(handoff_broker_dispatch(channel.broker));
        assert_true(next_verdict(channel.broker, &verdict));
        assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
        assert_true(++adopted < 1000);
    }
    assert_status(status, HANDOFF_ERR_FULL);
    assert_true(fault.failed > 0);
    assert_int_equal(backend_statistics(channel.backend).system_errno, EIO);
    assert_backend_goes_on_trying();
    while ((status = handoff_broker_offer(channel.broker, &offer, NULL)) != HANDOFF_OK) {
        assert_status(status, HANDOFF_ERR_FULL);
        await_readable(fds[BACKEND].fd);
        assert_ok(handoff_backend_dispatch(channel.backend));
        assert_ok(handoff_broker_dispatch(channel.broker));
    }
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
    close_channel(&channel);
    close(client[0]);
    close(client[1]);
}

static void channel_works_with_the_smallest_socket_buffer(void **state)
{
    (void)state;
    enum { OFFERS_AT_ONCE = 300 };
    handoff_broker_options broker_options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    broker_options.max_in_flight = options.max_in_flight = 4096;
    /* The kernel makes it as large as it must be. */
    send_buffer = 1;
    make_pair(SOCK_STREAM, client);
    open_channel(&channel, &broker_options, &options);
    handoff_offer offer = offer_of(client[0]);
    offer.timeout_ms = HANDOFF_NO_TIMEOUT;
    unsigned offered = 0, verdicts = 0;
    uint64_t start = now_ns();
    while (verdicts < OFFERS_AT_ONCE) {
        while (offered < OFFERS_AT_ONCE &&
               handoff_broker_offer(channel.broker, &offer, NULL) == HANDOFF_OK)
            offered++;
        assert_ok(handoff_backend_dispatch(channel.backend));
        /* All at once, so that all verdicts are, too. */
        if (offered == OFFERS_AT_ONCE)
            backend_next_and_adopt();
        assert_ok(handoff_broker_dispatch(channel.broker));
        while (next_verdict(channel.broker, &verdict)) {
            assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
            verdicts++;
        }
        assert_true(ms_since(start) < PATIENCE_MS);
    }
    assert_int_equal(broker_statistics(channel.broker).connects, 1);
    assert_refusals(0, 0);
    close_channel(&channel);
    close(client[0]);
    close(client[1]);
}

/* How often an end tries to receive in this time, though its descriptor tells it of what is there: once
   in a millisecond, and once more for each time that it is told of something else. */
enum { SHORT_MS = 200, TRIES = 2 * SHORT_MS };

static void go_round_in_want_of_memory(enum end faulty, handoff_status (*dispatch)(void))
{
    uint64_t start = now_ns();
    set_fault(RECVMSG, ENOMEM, 1, UINT_MAX);
    while (ms_since(start) < SHORT_MS) {
        assert_int_not_equal(poll(&fds[faulty], 1, SHORT_MS), -1);
        if (fds[faulty].revents != 0)
            assert_ok(FAULTY(dispatch()));
    }
    /* It has tried again and again, and not without a pause. */
    assert_in_range(fault.failed, 2, TRIES);
    fault.call = NO_CALL;
}

static void backend_without_memory_to_receive_pauses_and_then_receives(void **state)
{
    (void)state;
    open_channel(&channel, NULL, NULL);
    make_tcp_pair(client);
    assert_ok(watch_backend());
    offer_fd(&channel, client[0]);
    go_round_in_want_of_memory(BACKEND, backend_dispatch);
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    while (!next_arrival(channel.backend, &arrival)) {
        await_readable(fds[BACKEND].fd);
        assert_ok(backend_dispatch());
    }
    /* And one that waits in accept(). */
    adopt(&channel, arrival.id);
    assert_adopted(&channel);
    offer_fd(&channel, client[0]);
    set_fault(RECVMSG, ENOMEM, 1, UINT_MAX);
    assert_status(FAULTY(handoff_backend_accept(channel.backend, SHORT_MS, &arrival)),
                  HANDOFF_TIMED_OUT);
    assert_in_range(fault.failed, 2, TRIES);
    fault.call = NO_CALL;
    await_readable(fds[BACKEND].fd);
    assert_ok(handoff_backend_accept(channel.backend, PATIENCE_MS, &arrival));
    close(arrival.fd);
    assert_adopted(&channel);
    assert_int_equal(broker_statistics(channel.broker).connects, 1);
    close_channel(&channel);
    close(client[0]);
    close(client[1]);
}

/* Its end is told although it is paused: it may have to pause again, and the system refuse that. */
static void backend_that_cannot_pause_a_channel_again_looks_at_it_later(void **state)
{
    (void)state;
    open_channel(&channel, NULL, NULL);
    make_tcp_pair(client);
    assert_ok(watch_backend());
    offer_fd(&channel, client[0]);
    set_fault(RECVMSG, ENOMEM, 1, 1);
    assert_ok(FAULTY(backend_dispatch()));
    assert_int_equal(fault.failed, 1);
    handoff_broker_free(channel.broker);
    channel.broker = NULL;
    set_fault(RECVMSG, ENOMEM, 1, 1);
    set_second_fault(EPOLL_CTL, ENOMEM);
    await_readable(fds[BACKEND].fd);
    assert_ok(FAULTY(backend_dispatch()));
    assert_int_equal(fault.failed + second_fault.failed, 2);
    fault.call = second_fault.call = NO_CALL;
    while (backend_statistics(channel.backend).channels > 0) {
        await_readable(fds[BACKEND].fd);
        assert_ok(backend_next_and_adopt());
        assert_ok(backend_dispatch());
    }
    close_channel(&channel);
    close(client[0]);
    close(client[1]);
}

static void broker_without_memory_to_receive_pauses_and_then_receives(void **state)
{
    (void)state;
    open_channel(&channel, NULL, NULL);
    make_tcp_pair(client);
    assert_ok(watch_broker());
    offer_fd(&channel, client[0]);
    handoff_arrival arrival = arrival_of(&channel);
    assert_ok(handoff_backend_reject(channel.backend, arrival.id, HANDOFF_REASON_REJECTED));
    assert_no_arrival(&channel);
    go_round_in_want_of_memory(BROKER, broker_dispatch);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    while (!next_verdict(channel.broker, &verdict)) {
        await_readable(fds[BROKER].fd);
        assert_ok(broker_dispatch());
    }
    assert_int_equal(verdict.reason, HANDOFF_REASON_REJECTED);
    /* And one that waits for a verdict. */
    handoff_offer offer = offer_of(client[0]);
    offer.timeout_ms = SHORT_MS;
    set_fault(RECVMSG, ENOMEM, 1, UINT_MAX);
    assert_ok(FAULTY(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict)));
    assert_int_equal(verdict.reason, HANDOFF_REASON_ACK_TIMEOUT);
    fault.call = NO_CALL;
    assert_no_arrival(&channel);
    offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
    assert_int_equal(broker_statistics(channel.broker).connects, 1);
    close_channel(&channel);
    close(client[0]);
    close(client[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(backend_serves_on_after_any_one_call_has_failed),
        TEST(broker_hands_over_after_any_one_call_has_failed),
        TEST(backend_serves_on_after_a_call_has_failed_three_times_in_a_row),
        TEST(broker_hands_over_after_a_call_has_failed_three_times_in_a_row),
        TEST(broker_is_accepted_although_the_system_refuses_twice),
        TEST(broker_connects_although_its_first_timer_fails),
        TEST(backend_is_added_although_no_timer_can_be_set),
        TEST(failed_connection_does_not_hold_up_the_next),
        TEST(what_the_system_refuses_at_accept_is_counted_as_that),
        TEST(channel_that_the_system_refuses_is_not_the_brokers_fault),
        TEST(claim_table_that_is_lost_on_arrival_is_not_the_brokers_fault),
        TEST(verdict_that_there_is_no_memory_to_send_is_sent_when_there_is_some_again),
        TEST(slot_that_got_no_token_gets_one_when_there_is_randomness_again),
        TEST(channel_works_with_the_smallest_socket_buffer),
        TEST(backend_without_memory_to_receive_pauses_and_then_receives),
        TEST(backend_that_cannot_pause_a_channel_again_looks_at_it_later),
        TEST(broker_without_memory_to_receive_pauses_and_then_receives),
    };
    return RUN_TESTS(tests);
}
