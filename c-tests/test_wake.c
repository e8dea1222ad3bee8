/* Waits that are ended: by a signal handler, by another thread; and by nothing else. */
#define _GNU_SOURCE
#include "fixture.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

static volatile sig_atomic_t errno_after_waking;

static void wake_backend(int signal)
{
    (void)signal;
    errno = EXDEV;
    if (handoff_backend_wake(channel.backend) == HANDOFF_OK)
        errno_after_waking = errno;
}

static void signal_handler_ends_an_accept(void **state)
{
    (void)state;
    struct sigaction action = {.sa_handler = wake_backend, .sa_flags = SA_RESTART};
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
    struct itimerval soon = {.it_value = {.tv_usec = 20000}};
    assert_int_equal(setitimer(ITIMER_REAL, &soon, NULL), 0);
    assert_status(handoff_backend_accept(channel.backend, -1, &arrival), HANDOFF_WOKEN);
    assert_int_equal(errno_after_waking, EXDEV);
}

static void signal_without_a_wake_does_not_end_an_accept(void **state)
{
    (void)state;
    struct sigaction action = {.sa_handler = wake_backend};
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_backend *backend = channel.backend;
    assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
    /* The handler wakes nothing. */
    channel.backend = NULL;
    struct itimerval often = {{.tv_usec = 5000}, {.tv_usec = 5000}};
    assert_int_equal(setitimer(ITIMER_REAL, &often, NULL), 0);
    uint64_t start = now_ns();
    assert_status(handoff_backend_accept(backend, 60, &arrival), HANDOFF_TIMED_OUT);
    assert_true(ms_since(start) >= 60);
    struct itimerval never = {.it_value = {0}};
    assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
    channel.backend = backend;
}

static void wake_before_a_wait_ends_that_wait_and_no_other(void **state)
{
    (void)state;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    assert_ok(handoff_backend_wake(channel.backend));
    assert_ok(handoff_backend_wake(channel.backend));
    assert_status(handoff_backend_accept(channel.backend, -1, &arrival), HANDOFF_WOKEN);
    assert_status(handoff_backend_accept(channel.backend, 0, &arrival), HANDOFF_TIMED_OUT);
}

static void wake_before_the_first_use_ends_the_first_wait(void **state)
{
    (void)state;
    handoff_backend *backend;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    assert_ok(handoff_backend_listen("@handoff-test-wake", NULL, &backend));
    assert_ok(handoff_backend_wake(backend));
    assert_status(handoff_backend_accept(backend, -1, &arrival), HANDOFF_WOKEN);
    handoff_backend_free(backend);
}

static void arrival_comes_before_the_wake(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_ok(handoff_backend_wake(channel.backend));
    assert_ok(handoff_backend_accept(channel.backend, -1, &arrival));
    close(arrival.fd);
    assert_status(handoff_backend_accept(channel.backend, -1, &arrival), HANDOFF_WOKEN);
}

/* A second signal while a backend drains must not cost the clients that have arrived. */
static void accept_that_does_not_wait_takes_what_is_in_the_socket_before_the_wake(void **state)
{
    (void)state;
    enum { OFFERS = 100 };
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    for (int i = 0; i < OFFERS; i++)
        offer_fd(&channel, client[0]);
    assert_ok(handoff_backend_drain(channel.backend));
    assert_ok(handoff_backend_wake(channel.backend));
    for (int i = 0; i < OFFERS; i++) {
        assert_ok(handoff_backend_accept(channel.backend, 0, &arrival));
        close(arrival.fd);
    }
    assert_status(handoff_backend_accept(channel.backend, 0, &arrival), HANDOFF_WOKEN);
    assert_status(handoff_backend_accept(channel.backend, 0, &arrival), HANDOFF_TIMED_OUT);
}

static void wake_leaves_errno_and_the_last_errors_alone(void **state)
{
    (void)state;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    assert_invalid(handoff_backend_reject(channel.backend, 77, HANDOFF_REASON_REJECTED));
    errno = EXDEV;
    assert_ok(handoff_backend_wake(channel.backend));
    assert_status(handoff_backend_wake(NULL), HANDOFF_ERR_INVALID_ARGUMENT);
    assert_int_equal(errno, EXDEV);
    assert_last_error_has("77");
    assert_non_null(strstr(handoff_backend_last_error(channel.backend), "77"));
    assert_status(handoff_backend_accept(channel.backend, -1, &arrival), HANDOFF_WOKEN);
    assert_last_error_has("77");
}

static void *wake_soon(void *broker)
{
    struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
    nanosleep(&pause, NULL);
    handoff_broker_wake(broker);
    return NULL;
}

/* The backend has the offer, and does not look at it. */
static void woken_broker_has_its_connection_back(void **state)
{
    (void)state;
    pthread_t thread;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    offer.timeout_ms = HANDOFF_NO_TIMEOUT;
    assert_int_equal(pthread_create(&thread, NULL, wake_soon, channel.broker), 0);
    assert_status(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict), HANDOFF_WOKEN);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(broker_statistics(channel.broker).in_flight, 0);
    assert_false(next_verdict(channel.broker, &verdict));
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_false(next_arrival(channel.backend, &arrival));
}

static void wake_before_there_is_room_is_no_refusal(void **state)
{
    (void)state;
    struct channel other;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    options.max_in_flight = 1;
    offer.timeout_ms = HANDOFF_NO_TIMEOUT;
    open_channel(&other, &options, NULL);
    offer_fd(&other, client[0]);
    assert_ok(handoff_broker_wake(other.broker));
    assert_status(handoff_broker_offer_and_wait(other.broker, &offer, &verdict), HANDOFF_WOKEN);
    assert_int_equal(broker_statistics(other.broker).refused, 0);
    close_channel(&other);
}

struct woken {
    pid_t child;
    handoff_broker *broker;
};

static void *wake_then_go_on(void *argument)
{
    struct woken *woken = argument;
    int status;
    waitpid(woken->child, &status, WUNTRACED);
    handoff_broker_wake(woken->broker);
    struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
    nanosleep(&pause, NULL);
    kill(woken->child, SIGCONT);
    return NULL;
}

/* Adopted already, so it cannot be taken back: the wait ends with the verdict, the next one with the
   wake. The backend adopts, and says so when it goes on. */
static void woken_broker_waits_for_the_verdict_on_what_was_adopted(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    pid_t child;
    handoff_backend_free(channel.backend);
    handoff_broker_free(channel.broker);
    assert_ok(handoff_backend_listen(channel.path, NULL, &channel.backend));
    assert_ok(handoff_broker_new(channel.path, NULL, &channel.broker));
    child = start_child();
    if (child == 0) {
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        int fd;
        do {
            await_readable(handoff_backend_fd(channel.backend));
            child_assert(handoff_backend_dispatch(channel.backend) == HANDOFF_OK);
        } while (!next_arrival(channel.backend, &arrival));
        child_assert(handoff_backend_adopt(channel.backend, arrival.id, &fd) == HANDOFF_OK);
        raise(SIGSTOP);
        child_assert(!next_arrival(channel.backend, &arrival));
        for (;;)
            pause();
    }
    offer.timeout_ms = HANDOFF_NO_TIMEOUT;
    pthread_t thread;
    struct woken woken = {child, channel.broker};
    assert_int_equal(pthread_create(&thread, NULL, wake_then_go_on, &woken), 0);
    assert_ok(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict));
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_status(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict), HANDOFF_WOKEN);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
}

static void wake_that_no_wait_has_taken_leaves_a_loop_at_rest(void **state)
{
    (void)state;
    int fd = handoff_broker_fd(channel.broker);
    assert_int_not_equal(fd, -1);
    assert_ok(handoff_broker_wake(channel.broker));
    await_readable(fd);
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_false(is_readable(fd));
}

static void wake_in_a_child_does_nothing(void **state)
{
    (void)state;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    pid_t child = start_child();
    if (child == 0) {
        child_assert(handoff_backend_wake(channel.backend) == HANDOFF_ERR_WRONG_PROCESS);
        child_assert(handoff_broker_wake(channel.broker) == HANDOFF_ERR_WRONG_PROCESS);
        _exit(0);
    }
    assert_child_succeeds(child);
    assert_status(handoff_backend_accept(channel.backend, 20, &arrival), HANDOFF_TIMED_OUT);
}

/* Nothing on the stack: AddressSanitizer does not see that a cancellation clears it. */
static void *accept_one(void *backend)
{
    static handoff_status status;
    static handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    status = handoff_backend_accept(backend, -1, &arrival);
    /* Where the cancellation comes, after the wait. */
    pthread_testcancel();
    return &status;
}

static void cancelled_thread_ends_after_its_wait(void **state)
{
    (void)state;
    pthread_t thread;
    void *result;
    struct timespec soon;
    assert_int_equal(pthread_create(&thread, NULL, accept_one, channel.backend), 0);
    assert_int_equal(pthread_cancel(thread), 0);
    /* A cancellation point would end the process; so give it time to be one. */
    clock_gettime(CLOCK_REALTIME, &soon);
    soon.tv_nsec += 50 * 1000 * 1000;
    if (soon.tv_nsec >= 1000000000) {
        soon.tv_nsec -= 1000000000;
        soon.tv_sec++;
    }
    int joined = pthread_timedjoin_np(thread, &result, &soon);
    if (joined == ETIMEDOUT) {
        assert_ok(handoff_backend_wake(channel.backend));
        joined = pthread_join(thread, &result);
    }
    assert_int_equal(joined, 0);
    assert_ptr_equal(result, PTHREAD_CANCELED);
}

static void cancelled_waits_keep_the_state_of_the_thread(void **state)
{
    (void)state;
    int before, after;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    assert_int_equal(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before), 0);
    assert_status(handoff_backend_accept(channel.backend, 0, &arrival), HANDOFF_TIMED_OUT);
    assert_int_equal(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &after), 0);
    assert_int_equal(before, PTHREAD_CANCEL_ENABLE);
    assert_int_equal(after, PTHREAD_CANCEL_DISABLE);
    assert_status(handoff_backend_accept(channel.backend, 0, &arrival), HANDOFF_TIMED_OUT);
    assert_int_equal(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &after), 0);
    assert_int_equal(after, PTHREAD_CANCEL_ENABLE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHANNEL_TEST(signal_handler_ends_an_accept),
        CHANNEL_TEST(signal_without_a_wake_does_not_end_an_accept),
        CHANNEL_TEST(wake_before_a_wait_ends_that_wait_and_no_other),
        TEST(wake_before_the_first_use_ends_the_first_wait),
        CHANNEL_TEST(arrival_comes_before_the_wake),
        CHANNEL_TEST(accept_that_does_not_wait_takes_what_is_in_the_socket_before_the_wake),
        CHANNEL_TEST(wake_leaves_errno_and_the_last_errors_alone),
        CHANNEL_TEST(woken_broker_has_its_connection_back),
        CHANNEL_TEST(wake_before_there_is_room_is_no_refusal),
        CHANNEL_TEST(woken_broker_waits_for_the_verdict_on_what_was_adopted),
        CHANNEL_TEST(wake_that_no_wait_has_taken_leaves_a_loop_at_rest),
        CHANNEL_TEST(wake_in_a_child_does_nothing),
        CHANNEL_TEST(cancelled_thread_ends_after_its_wait),
        CHANNEL_TEST(cancelled_waits_keep_the_state_of_the_thread),
    };
    return RUN_TESTS(tests);
}
