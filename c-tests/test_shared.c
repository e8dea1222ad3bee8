/* One broker handle that many threads use at once. */
#define _GNU_SOURCE
#include "fixture.h"

#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { MOST_THREADS = 32 };

/* What a thread offers, and what came of it. cmocka's asserts are for the test's own thread. */
struct offerer {
    pthread_t thread;
    handoff_broker *broker;
    int fd;
    uint64_t timeout_ms;
    handoff_status status;
    handoff_verdict verdict;
    uint64_t took_ms;
    char error[256];
};

static struct offerer offerers[MOST_THREADS];

static void *offer_once(void *argument)
{
    struct offerer *self = argument;
    handoff_offer offer = offer_of(self->fd);
    offer.timeout_ms = self->timeout_ms;
    offer.user_data = self;
    self->verdict = (handoff_verdict)HANDOFF_VERDICT_INIT;
    uint64_t start = now_ns();
    self->status = handoff_broker_offer_and_wait(self->broker, &offer, &self->verdict);
    self->took_ms = ms_since(start);
    snprintf(self->error, sizeof self->error, "%s", handoff_last_error());
    return NULL;
}

static void start_offerer(int i, uint64_t timeout_ms)
{
    struct offerer *self = &offerers[i];
    *self = (struct offerer){.broker = channel.broker, .fd = client[0], .timeout_ms = timeout_ms};
    assert_int_equal(pthread_create(&self->thread, NULL, offer_once, self), 0);
}

static void join_offerers(int from, int to)
{
    for (int i = from; i < to; i++)
        assert_int_equal(pthread_join(offerers[i].thread, NULL), 0);
}

static void assert_verdict(int i, handoff_outcome outcome, handoff_reason reason)
{
    struct offerer *self = &offerers[i];
    if (self->status != HANDOFF_OK)
        print_error("thread %d: %s\n", i, self->error);
    assert_int_equal(self->status, HANDOFF_OK);
    assert_int_equal(self->verdict.outcome, outcome);
    assert_int_equal(self->verdict.reason, reason);
    assert_ptr_equal(self->verdict.user_data, self);
}

static void await_in_flight(uint64_t count)
{
    uint64_t start = now_ns();
    while (broker_statistics(channel.broker).in_flight != count) {
        assert_true(ms_since(start) < PATIENCE_MS);
        usleep(1000);
    }
}

static void open_shared(size_t max_in_flight)
{
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.flags = HANDOFF_BROKER_SHARED;
    options.max_in_flight = max_in_flight;
    options.max_failures = HANDOFF_NO_LIMIT;
    close_channel(&channel);
    open_channel(&channel, &options, NULL);
}

static int open_both_shared(void **state)
{
    open_both(state);
    open_shared(0);
    return 0;
}

#define SHARED_TEST(function) \
    cmocka_unit_test_setup_teardown(function, open_both_shared, close_both)

/* A backend in a child that answers each of `count` clients, and ends when its brokers have. */
static pid_t serve_in_a_child(int count)
{
    handoff_backend_free(channel.backend);
    assert_ok(handoff_backend_listen(channel.path, NULL, &channel.backend));
    pid_t child = start_child();
    if (child != 0)
        return child;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    for (int i = 0; i < count; i++) {
        child_assert(handoff_backend_accept(channel.backend, PATIENCE_MS, &arrival) == HANDOFF_OK);
        child_assert(write(arrival.fd, "x", 1) == 1);
        close(arrival.fd);
    }
    while (backend_statistics(channel.backend).channels > 0) {
        await_readable(handoff_backend_fd(channel.backend));
        child_assert(handoff_backend_dispatch(channel.backend) == HANDOFF_OK);
    }
    _exit(0);
}

static void flag_that_is_unknown_is_refused(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_broker *broker = NULL;
    options.flags = 2;
    assert_invalid_because(handoff_broker_new("@nobody", &options, &broker), "options.flags");
}

/* ---- four processes with 25 threads each --------------------------------------------------------- */

enum { PROCESSES = 4, THREADS = 25, EACH = 20 };

static void *offer_many(void *argument)
{
    handoff_broker *broker = argument;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    child_assert(bind(listener, (struct sockaddr *)&address, len) == 0);
    child_assert(listen(listener, 1) == 0);
    child_assert(getsockname(listener, (struct sockaddr *)&address, &len) == 0);
    for (int i = 0; i < EACH; i++) {
        int ends[2] = {-1, socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
        char byte = 0;
        child_assert(connect(ends[1], (struct sockaddr *)&address, len) == 0);
        child_assert((ends[0] = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) != -1);
        handoff_offer offer = offer_of(ends[0]);
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        offer.timeout_ms = PATIENCE_MS;
        offer.user_data = ends;
        offer.preread = "GET";
        offer.preread_len = 3;
        child_assert(handoff_broker_offer_and_wait(broker, &offer, &verdict) == HANDOFF_OK);
        child_assert(verdict.outcome == HANDOFF_ADOPTED);
        child_assert(verdict.user_data == ends);
        close(ends[0]);
        child_assert(read(ends[1], &byte, 1) == 1 && byte == 'x');
        child_assert(read(ends[1], &byte, 1) == 0);
        close(ends[1]);
    }
    close(listener);
    return NULL;
}

static void be_a_process_with_threads(void)
{
    pthread_t threads[THREADS];
    /* The handle is the parent's, which has not used it. */
    for (int i = 0; i < THREADS; i++)
        child_assert(pthread_create(&threads[i], NULL, offer_many, channel.broker) == 0);
    for (int i = 0; i < THREADS; i++)
        child_assert(pthread_join(threads[i], NULL) == 0);
    handoff_broker_statistics statistics = broker_statistics(channel.broker);
    child_assert(statistics.offered == THREADS * EACH && statistics.adopted == THREADS * EACH);
    child_assert(statistics.connects == 1);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    child_assert(handoff_broker_next(channel.broker, &verdict) == HANDOFF_NOTHING);
    handoff_broker_free(channel.broker);
    _exit(0);
}

static void hundred_threads_of_four_processes_use_four_channels(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    pid_t children[PROCESSES];
    options.flags = HANDOFF_BROKER_SHARED;
    handoff_broker_free(channel.broker);
    assert_ok(handoff_broker_new(channel.path, &options, &channel.broker));
    handoff_backend_free(channel.backend);
    assert_ok(handoff_backend_listen(channel.path, NULL, &channel.backend));
    for (int i = 0; i < PROCESSES; i++)
        if ((children[i] = start_child()) == 0)
            be_a_process_with_threads();
    for (int i = 0; i < PROCESSES * THREADS * EACH; i++) {
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        assert_ok(handoff_backend_accept(channel.backend, PATIENCE_MS, &arrival));
        assert_int_equal(arrival.preread_len, 3);
        assert_int_equal(write(arrival.fd, "x", 1), 1);
        close(arrival.fd);
    }
    uint64_t start = now_ns();
    while (backend_statistics(channel.backend).channels > 0 && ms_since(start) < PATIENCE_MS) {
        await_readable(handoff_backend_fd(channel.backend));
        assert_ok(handoff_backend_dispatch(channel.backend));
    }
    for (int i = 0; i < PROCESSES; i++)
        assert_child_succeeds(children[i]);
    assert_int_equal(backend_statistics(channel.backend).accepted, PROCESSES);
    assert_int_equal(backend_statistics(channel.backend).refused, 0);
}

/* ---- room, deadlines ----------------------------------------------------------------------------- */

static void threads_wait_for_room_and_none_fails(void **state)
{
    (void)state;
    open_shared(2);
    handoff_broker_free(channel.broker);
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.flags = HANDOFF_BROKER_SHARED;
    options.max_in_flight = 2;
    assert_ok(handoff_broker_new(channel.path, &options, &channel.broker));
    pid_t child = serve_in_a_child(MOST_THREADS);
    for (int i = 0; i < MOST_THREADS; i++)
        start_offerer(i, PATIENCE_MS);
    join_offerers(0, MOST_THREADS);
    for (int i = 0; i < MOST_THREADS; i++)
        assert_verdict(i, HANDOFF_ADOPTED, HANDOFF_REASON_NONE);
    assert_int_equal(broker_statistics(channel.broker).refused, 0);
    assert_ok(handoff_broker_close(channel.broker));
    assert_child_succeeds(child);
}

static void thread_without_room_is_refused_when_its_time_is_up(void **state)
{
    (void)state;
    open_shared(1);
    start_offerer(0, HANDOFF_NO_TIMEOUT);
    await_in_flight(1);
    for (int i = 1; i < 4; i++)
        start_offerer(i, 20 * (uint64_t)(4 - i));
    join_offerers(1, 4);
    for (int i = 1; i < 4; i++) {
        assert_int_equal(offerers[i].status, HANDOFF_ERR_FULL);
        assert_in_range(offerers[i].took_ms, 20 * (4 - i), PATIENCE_MS);
        assert_non_null(strstr(offerers[i].error, "in flight"));
    }
    assert_int_equal(broker_statistics(channel.broker).refused, 3);
    adopt(&channel, arrival_of(&channel).id);
    assert_ok(handoff_backend_dispatch(channel.backend));
    join_offerers(0, 1);
    assert_verdict(0, HANDOFF_ADOPTED, HANDOFF_REASON_NONE);
}

static void later_offers_with_earlier_deadlines_fall_back_in_time(void **state)
{
    (void)state;
    enum { COUNT = 8 };
    start_offerer(0, HANDOFF_NO_TIMEOUT);
    await_in_flight(1);
    uint64_t first = arrival_of(&channel).id;
    for (int i = 1; i < COUNT; i++)
        start_offerer(i, 15 * (uint64_t)(COUNT - i));
    join_offerers(1, COUNT);
    for (int i = 1; i < COUNT; i++) {
        assert_verdict(i, HANDOFF_FALLBACK, HANDOFF_REASON_ACK_TIMEOUT);
        assert_in_range(offerers[i].took_ms, 15 * (COUNT - i), PATIENCE_MS);
    }
    assert_int_equal(broker_statistics(channel.broker).in_flight, 1);
    adopt(&channel, first);
    assert_ok(handoff_backend_dispatch(channel.backend));
    join_offerers(0, 1);
    assert_verdict(0, HANDOFF_ADOPTED, HANDOFF_REASON_NONE);
    assert_no_arrival(&channel);
}

static void thread_without_a_backend_is_refused_at_once(void **state)
{
    (void)state;
    handoff_backend_free(channel.backend);
    channel.backend = NULL;
    assert_ok(handoff_broker_dispatch(channel.broker));
    for (int i = 0; i < 4; i++)
        start_offerer(i, HANDOFF_NO_TIMEOUT);
    join_offerers(0, 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(offerers[i].status, HANDOFF_ERR_BACKEND_UNAVAILABLE);
}

/* ---- counts -------------------------------------------------------------------------------------- */

enum { REFUSED_EACH = 2000 };

/* What the backend has no part in, or what it alone has. */
static void *be_refused(void *argument)
{
    struct offerer *self = argument;
    handoff_offer offer = offer_of(self->fd);
    offer.timeout_ms = HANDOFF_NO_TIMEOUT;
    offer.flags = self->status == HANDOFF_ERR_NOT_TLS ? HANDOFF_OFFER_TLS : 0;
    for (int i = 0; i < REFUSED_EACH; i++) {
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        handoff_status status = handoff_broker_offer_and_wait(self->broker, &offer, &verdict);
        if (status != self->status) {
            self->status = status;
            break;
        }
    }
    return NULL;
}

static void refusals_of_many_threads_are_counted_where_they_belong(void **state)
{
    (void)state;
    handoff_broker_backend_state counted = HANDOFF_BROKER_BACKEND_STATE_INIT;
    static const handoff_status refusals[] = {HANDOFF_ERR_NOT_TLS, HANDOFF_ERR_BACKEND_UNAVAILABLE};
    handoff_backend_free(channel.backend);
    channel.backend = NULL;
    assert_ok(handoff_broker_dispatch(channel.broker));
    for (int i = 0; i < 4; i++) {
        struct offerer *self = &offerers[i];
        *self = (struct offerer){.broker = channel.broker, .fd = client[0],
                                 .status = refusals[i % 2]};
        assert_int_equal(pthread_create(&self->thread, NULL, be_refused, self), 0);
    }
    join_offerers(0, 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(offerers[i].status, refusals[i % 2]);
    handoff_broker_statistics statistics = broker_statistics(channel.broker);
    assert_ok(handoff_broker_get_backend_state(channel.broker, 0, &counted));
    assert_int_equal(statistics.refused, 4 * REFUSED_EACH);
    for (int i = 0; i < 2; i++)
        assert_int_equal(statistics.refusals[-refusals[i]], 2 * REFUSED_EACH);
    assert_int_equal(counted.refusals[-HANDOFF_ERR_NOT_TLS], 0);
    assert_int_equal(counted.refusals[-HANDOFF_ERR_BACKEND_UNAVAILABLE], 2 * REFUSED_EACH);
}

/* Whatever another thread was refused because of before. */
static void refusal_by_a_closed_broker_is_not_the_backends(void **state)
{
    (void)state;
    handoff_broker_backend_state counted = HANDOFF_BROKER_BACKEND_STATE_INIT;
    handoff_backend_free(channel.backend);
    channel.backend = NULL;
    assert_ok(handoff_broker_dispatch(channel.broker));
    start_offerer(0, HANDOFF_NO_TIMEOUT);
    join_offerers(0, 1);
    assert_int_equal(offerers[0].status, HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_ok(handoff_broker_close(channel.broker));
    start_offerer(1, HANDOFF_NO_TIMEOUT);
    join_offerers(1, 2);
    assert_int_equal(offerers[1].status, HANDOFF_ERR_CLOSED);
    assert_int_equal(broker_statistics(channel.broker).refusals[-HANDOFF_ERR_CLOSED], 1);
    assert_ok(handoff_broker_get_backend_state(channel.broker, 0, &counted));
    assert_int_equal(counted.refusals[-HANDOFF_ERR_BACKEND_UNAVAILABLE], 1);
    assert_int_equal(counted.refusals[-HANDOFF_ERR_CLOSED], 0);
}

/* ---- ends ---------------------------------------------------------------------------------------- */

static void wake_ends_every_wait_and_each_offer_is_taken_back(void **state)
{
    (void)state;
    enum { IN_FLIGHT = 6, COUNT = 10 };
    open_shared(IN_FLIGHT);
    for (int i = 0; i < COUNT; i++)
        start_offerer(i, HANDOFF_NO_TIMEOUT);
    await_in_flight(IN_FLIGHT);
    uint64_t arrivals[IN_FLIGHT];
    for (int i = 0; i < IN_FLIGHT; i++)
        arrivals[i] = arrival_of(&channel).id;
    /* Those that wait for room may not have come so far: then the next wake is for them. */
    bool joined[COUNT] = {false};
    uint64_t start = now_ns();
    for (int left = COUNT; left > 0;) {
        assert_true(ms_since(start) < PATIENCE_MS);
        assert_ok(handoff_broker_wake(channel.broker));
        usleep(2000);
        for (int i = 0; i < COUNT; i++)
            if (!joined[i] && pthread_tryjoin_np(offerers[i].thread, NULL) == 0) {
                joined[i] = true;
                left--;
            }
    }
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(offerers[i].status, HANDOFF_WOKEN);
    assert_int_equal(broker_statistics(channel.broker).in_flight, 0);
    for (int i = 0; i < IN_FLIGHT; i++) {
        int fd;
        assert_status(handoff_backend_adopt(channel.backend, arrivals[i], &fd),
                      HANDOFF_ERR_TAKEN_BACK);
    }
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_status(handoff_broker_next(channel.broker, &verdict), HANDOFF_NOTHING);
}

static void one_wake_ends_all_waits_that_run_and_none_after_them(void **state)
{
    (void)state;
    enum { COUNT = 10 };
    for (int i = 0; i < COUNT; i++)
        start_offerer(i, HANDOFF_NO_TIMEOUT);
    await_in_flight(COUNT);
    assert_ok(handoff_broker_wake(channel.broker));
    join_offerers(0, COUNT);
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(offerers[i].status, HANDOFF_WOKEN);
    assert_int_equal(broker_statistics(channel.broker).taken_back, COUNT);
    start_offerer(0, 20);
    join_offerers(0, 1);
    assert_verdict(0, HANDOFF_FALLBACK, HANDOFF_REASON_ACK_TIMEOUT);
}

static void wake_before_a_wait_ends_that_wait_and_no_other(void **state)
{
    (void)state;
    assert_ok(handoff_broker_wake(channel.broker));
    assert_ok(handoff_broker_wake(channel.broker));
    start_offerer(0, HANDOFF_NO_TIMEOUT);
    join_offerers(0, 1);
    assert_int_equal(offerers[0].status, HANDOFF_WOKEN);
    start_offerer(0, 20);
    join_offerers(0, 1);
    assert_verdict(0, HANDOFF_FALLBACK, HANDOFF_REASON_ACK_TIMEOUT);
}

static void wake_from_a_signal(int signal)
{
    (void)signal;
    handoff_broker_wake(channel.broker);
}

static void signal_handler_of_any_thread_ends_the_waits(void **state)
{
    (void)state;
    enum { COUNT = 5 };
    struct sigaction action = {.sa_handler = wake_from_a_signal, .sa_flags = SA_RESTART};
    assert_int_equal(sigaction(SIGUSR1, &action, NULL), 0);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < COUNT; i++)
            start_offerer(i, HANDOFF_NO_TIMEOUT);
        await_in_flight(COUNT);
        /* The leader, or one that waits for it. */
        assert_int_equal(pthread_kill(offerers[round % COUNT].thread, SIGUSR1), 0);
        join_offerers(0, COUNT);
        for (int i = 0; i < COUNT; i++)
            assert_int_equal(offerers[i].status, HANDOFF_WOKEN);
        assert_ok(handoff_backend_dispatch(channel.backend));
    }
}

static void close_during_waits_ends_each_of_them(void **state)
{
    (void)state;
    enum { IN_FLIGHT = 6, COUNT = 10 };
    open_shared(IN_FLIGHT);
    for (int i = 0; i < COUNT; i++)
        start_offerer(i, HANDOFF_NO_TIMEOUT);
    await_in_flight(IN_FLIGHT);
    assert_ok(handoff_broker_close(channel.broker));
    join_offerers(0, COUNT);
    int verdicts = 0;
    for (int i = 0; i < COUNT; i++) {
        if (offerers[i].status == HANDOFF_OK) {
            assert_verdict(i, HANDOFF_FALLBACK, HANDOFF_REASON_BROKER_CLOSED);
            verdicts++;
        } else {
            assert_int_equal(offerers[i].status, HANDOFF_ERR_CLOSED);
        }
    }
    assert_int_equal(verdicts, IN_FLIGHT);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_status(handoff_broker_next(channel.broker, &verdict), HANDOFF_NOTHING);
    start_offerer(0, HANDOFF_NO_TIMEOUT);
    join_offerers(0, 1);
    assert_int_equal(offerers[0].status, HANDOFF_ERR_CLOSED);
}

static void end_of_the_backend_gives_each_thread_one_verdict(void **state)
{
    (void)state;
    enum { COUNT = 20, ADOPTED = 7 };
    int ready[2];
    char byte;
    handoff_backend_free(channel.backend);
    assert_ok(handoff_backend_listen(channel.path, NULL, &channel.backend));
    assert_int_equal(pipe(ready), 0);
    pid_t child = start_child();
    if (child == 0) {
        /* Adopts some, does not say so, and looks at no other. */
        for (int adopted = 0; adopted < ADOPTED;) {
            handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
            int fd;
            await_readable(handoff_backend_fd(channel.backend));
            child_assert(handoff_backend_dispatch(channel.backend) == HANDOFF_OK);
            while (adopted < ADOPTED && next_arrival(channel.backend, &arrival)) {
                child_assert(handoff_backend_adopt(channel.backend, arrival.id, &fd) == HANDOFF_OK);
                adopted++;
            }
        }
        child_assert(write(ready[1], "x", 1) == 1);
        pause();
    }
    /* Its channel to the old backend ends first. */
    for (uint64_t start = now_ns(); broker_statistics(channel.broker).connects < 2;) {
        assert_true(ms_since(start) < PATIENCE_MS);
        await_readable(handoff_broker_fd(channel.broker));
        assert_ok(handoff_broker_dispatch(channel.broker));
    }
    for (int i = 0; i < COUNT; i++)
        start_offerer(i, HANDOFF_NO_TIMEOUT);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    for (uint64_t start = now_ns(); broker_statistics(channel.broker).offered < COUNT;)
        assert_true(ms_since(start) < PATIENCE_MS);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    join_offerers(0, COUNT);
    int adopted = 0;
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(offerers[i].status, HANDOFF_OK);
        assert_ptr_equal(offerers[i].verdict.user_data, &offerers[i]);
        if (offerers[i].verdict.outcome == HANDOFF_ADOPTED)
            adopted++;
        else
            assert_int_equal(offerers[i].verdict.reason, HANDOFF_REASON_BACKEND_UNAVAILABLE);
    }
    assert_int_equal(adopted, ADOPTED);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_status(handoff_broker_next(channel.broker, &verdict), HANDOFF_NOTHING);
    close(ready[0]);
    close(ready[1]);
}

/* ---- other calls ---------------------------------------------------------------------------------- */

static void offers_that_nobody_waits_for_have_their_verdicts_from_next(void **state)
{
    (void)state;
    enum { WAITING = 5, PLAIN = 5 };
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    uint64_t ids[PLAIN];
    offer.timeout_ms = HANDOFF_NO_TIMEOUT;
    for (int i = 0; i < WAITING; i++)
        start_offerer(i, HANDOFF_NO_TIMEOUT);
    for (uintptr_t i = 0; i < PLAIN; i++) {
        /* As the seats of the threads are numbered. */
        offer.user_data = (void *)i;
        assert_ok(handoff_broker_offer(channel.broker, &offer, &ids[i]));
    }
    await_in_flight(WAITING + PLAIN);
    for (int i = 0; i < WAITING + PLAIN; i++)
        adopt(&channel, arrival_of(&channel).id);
    assert_ok(handoff_backend_dispatch(channel.backend));
    join_offerers(0, WAITING);
    for (int i = 0; i < WAITING; i++)
        assert_verdict(i, HANDOFF_ADOPTED, HANDOFF_REASON_NONE);
    assert_ok(handoff_broker_dispatch(channel.broker));
    for (int i = 0; i < PLAIN; i++) {
        assert_ok(handoff_broker_next(channel.broker, &verdict));
        assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
        assert_int_equal(verdict.id, ids[(uintptr_t)verdict.user_data]);
    }
    assert_status(handoff_broker_next(channel.broker, &verdict), HANDOFF_NOTHING);
}

static void loop_hears_of_its_verdicts_while_other_threads_wait(void **state)
{
    (void)state;
    int fd = handoff_broker_fd(channel.broker);
    assert_int_not_equal(fd, -1);
    start_offerer(0, HANDOFF_NO_TIMEOUT);
    await_in_flight(1);
    uint64_t first = arrival_of(&channel).id;
    for (int i = 0; i < 50; i++) {
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        uint64_t id = offer_fd(&channel, client[0]);
        adopt(&channel, arrival_of(&channel).id);
        assert_ok(handoff_backend_dispatch(channel.backend));
        do {
            /* The thread that waits may be faster. */
            await_readable(fd);
            assert_ok(handoff_broker_dispatch(channel.broker));
        } while (!next_verdict(channel.broker, &verdict));
        assert_int_equal(verdict.id, id);
        assert_string_equal(verdict.backend, channel.path);
        assert_false(next_verdict(channel.broker, &verdict));
    }
    adopt(&channel, first);
    assert_ok(handoff_backend_dispatch(channel.backend));
    join_offerers(0, 1);
    assert_verdict(0, HANDOFF_ADOPTED, HANDOFF_REASON_NONE);
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_false(is_readable(fd));
    assert_int_equal(handoff_broker_fd(channel.broker), fd);
}

static void loop_hears_of_room_that_a_thread_has_left(void **state)
{
    (void)state;
    open_shared(1);
    int fd = handoff_broker_fd(channel.broker);
    handoff_offer offer = offer_of(client[0]);
    start_offerer(0, HANDOFF_NO_TIMEOUT);
    await_in_flight(1);
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_FULL);
    assert_int_equal(handoff_broker_room(channel.broker), 0);
    adopt(&channel, arrival_of(&channel).id);
    assert_ok(handoff_backend_dispatch(channel.backend));
    join_offerers(0, 1);
    for (uint64_t start = now_ns(); handoff_broker_room(channel.broker) == 0;) {
        assert_true(ms_since(start) < PATIENCE_MS);
        await_readable(fd);
        assert_ok(handoff_broker_dispatch(channel.broker));
    }
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
}

static void offer_of_a_thread_cannot_be_taken_back_by_another(void **state)
{
    (void)state;
    start_offerer(0, HANDOFF_NO_TIMEOUT);
    await_in_flight(1);
    handoff_offer offer = offer_of(client[0]);
    uint64_t id;
    assert_ok(handoff_broker_offer(channel.broker, &offer, &id));
    assert_ok(handoff_broker_take_back(channel.broker, id));
    for (uint64_t guess = id - 2 * 4096 - 64; guess < id + 64; guess++)
        assert_status(handoff_broker_take_back(channel.broker, guess), HANDOFF_ERR_TOO_LATE);
    adopt(&channel, arrival_of(&channel).id);
    assert_ok(handoff_backend_dispatch(channel.backend));
    join_offerers(0, 1);
    assert_verdict(0, HANDOFF_ADOPTED, HANDOFF_REASON_NONE);
}

static void last_error_is_that_of_the_calling_thread(void **state)
{
    (void)state;
    assert_invalid(handoff_broker_take_back(NULL, 1));
    assert_status(handoff_broker_take_back(channel.broker, 1), HANDOFF_ERR_TOO_LATE);
    assert_string_equal(handoff_broker_last_error(channel.broker), handoff_last_error());
    open_shared(1);
    start_offerer(0, HANDOFF_NO_TIMEOUT);
    await_in_flight(1);
    start_offerer(1, 10);
    join_offerers(1, 2);
    assert_non_null(strstr(offerers[1].error, "in flight"));
    assert_null(strstr(handoff_broker_last_error(channel.broker), "in flight is reached"));
    assert_ok(handoff_broker_wake(channel.broker));
    join_offerers(0, 1);
}

static void child_of_a_process_with_waiting_threads_can_only_free(void **state)
{
    (void)state;
    start_offerer(0, HANDOFF_NO_TIMEOUT);
    await_in_flight(1);
    pid_t child = start_child();
    if (child == 0) {
        handoff_broker_statistics statistics = HANDOFF_BROKER_STATISTICS_INIT;
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        handoff_offer offer = offer_of(client[0]);
        handoff_broker *broker = channel.broker;
        child_assert(handoff_broker_offer(broker, &offer, NULL) == HANDOFF_ERR_WRONG_PROCESS);
        child_assert(handoff_broker_offer_and_wait(broker, &offer, &verdict) ==
                     HANDOFF_ERR_WRONG_PROCESS);
        child_assert(handoff_broker_dispatch(broker) == HANDOFF_ERR_WRONG_PROCESS);
        child_assert(handoff_broker_next(broker, &verdict) == HANDOFF_ERR_WRONG_PROCESS);
        child_assert(handoff_broker_take_back(broker, 1) == HANDOFF_ERR_WRONG_PROCESS);
        child_assert(handoff_broker_get_statistics(broker, &statistics) ==
                     HANDOFF_ERR_WRONG_PROCESS);
        child_assert(handoff_broker_wake(broker) == HANDOFF_ERR_WRONG_PROCESS);
        child_assert(handoff_broker_close(broker) == HANDOFF_ERR_WRONG_PROCESS);
        handoff_broker_free(broker);
        _exit(0);
    }
    assert_child_succeeds(child);
    assert_ok(handoff_broker_wake(channel.broker));
    join_offerers(0, 1);
    assert_int_equal(offerers[0].status, HANDOFF_WOKEN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(flag_that_is_unknown_is_refused),
        SHARED_TEST(hundred_threads_of_four_processes_use_four_channels),
        SHARED_TEST(threads_wait_for_room_and_none_fails),
        SHARED_TEST(thread_without_room_is_refused_when_its_time_is_up),
        SHARED_TEST(later_offers_with_earlier_deadlines_fall_back_in_time),
        SHARED_TEST(thread_without_a_backend_is_refused_at_once),
        SHARED_TEST(refusals_of_many_threads_are_counted_where_they_belong),
        SHARED_TEST(refusal_by_a_closed_broker_is_not_the_backends),
        SHARED_TEST(wake_ends_every_wait_and_each_offer_is_taken_back),
        SHARED_TEST(one_wake_ends_all_waits_that_run_and_none_after_them),
        SHARED_TEST(wake_before_a_wait_ends_that_wait_and_no_other),
        SHARED_TEST(signal_handler_of_any_thread_ends_the_waits),
        SHARED_TEST(close_during_waits_ends_each_of_them),
        SHARED_TEST(end_of_the_backend_gives_each_thread_one_verdict),
        SHARED_TEST(offers_that_nobody_waits_for_have_their_verdicts_from_next),
        SHARED_TEST(loop_hears_of_its_verdicts_while_other_threads_wait),
        SHARED_TEST(loop_hears_of_room_that_a_thread_has_left),
        SHARED_TEST(offer_of_a_thread_cannot_be_taken_back_by_another),
        SHARED_TEST(last_error_is_that_of_the_calling_thread),
        SHARED_TEST(child_of_a_process_with_waiting_threads_can_only_free),
    };
    return RUN_TESTS(tests);
}
