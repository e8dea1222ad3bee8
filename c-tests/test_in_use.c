/* A call of a handle while another is in it: an error, and the other goes on. Here a signal handler
   makes it, so that the other waits for certain; a second thread would be seen in the same way. */
#define _GNU_SOURCE
#include "fixture.h"

#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>

static void (*meanwhile)(void);
static handoff_status seen[8];
static int count;

static void on_alarm(int signal)
{
    (void)signal;
    meanwhile();
}

static void call_in_a_wait(void (*calls)(void))
{
    struct sigaction action = {.sa_handler = on_alarm};
    struct itimerval soon = {.it_value = {.tv_usec = 20000}};
    meanwhile = calls;
    count = 0;
    assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &soon, NULL), 0);
}

static void assert_seen(int calls)
{
    assert_int_equal(count, calls);
    for (int i = 0; i < calls; i++)
        assert_status(seen[i], HANDOFF_ERR_INVALID_ARGUMENT);
}

static void use_backend(void)
{
    handoff_backend_statistics statistics = HANDOFF_BACKEND_STATISTICS_INIT;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    seen[count++] = handoff_backend_get_statistics(channel.backend, &statistics);
    seen[count++] = handoff_backend_dispatch(channel.backend);
    seen[count++] = handoff_backend_next(channel.backend, &arrival);
    handoff_backend_wake(channel.backend);
}

static void backend_in_a_wait_is_in_use(void **state)
{
    (void)state;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    assert_invalid(handoff_backend_reject(channel.backend, 77, HANDOFF_REASON_REJECTED));
    call_in_a_wait(use_backend);
    assert_status(handoff_backend_accept(channel.backend, -1, &arrival), HANDOFF_WOKEN);
    assert_seen(3);
    assert_last_error_has("backend is in use by another call");
    /* The other call's is not overwritten while that is in the handle. */
    assert_non_null(strstr(handoff_backend_last_error(channel.backend), "77"));
    assert_ok(handoff_backend_dispatch(channel.backend));
}

static void use_broker(void)
{
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    seen[count++] = handoff_broker_offer(channel.broker, &offer, NULL);
    seen[count++] = handoff_broker_dispatch(channel.broker);
    seen[count++] = handoff_broker_next(channel.broker, &verdict);
    seen[count++] = handoff_broker_close(channel.broker);
    handoff_broker_wake(channel.broker);
}

static void broker_in_a_wait_is_in_use(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    offer.timeout_ms = HANDOFF_NO_TIMEOUT;
    call_in_a_wait(use_broker);
    assert_status(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict), HANDOFF_WOKEN);
    assert_seen(4);
    assert_last_error_has("broker is in use by another call");
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_int_equal(broker_statistics(channel.broker).offered, 1);
}

/* The thread that was in the call is not in the child. */
static void use_in_a_child(void)
{
    pid_t child = fork();
    if (child == 0) {
        handoff_status status = handoff_backend_dispatch(channel.backend);
        handoff_backend_free(channel.backend);
        _exit(status == HANDOFF_ERR_WRONG_PROCESS ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    seen[count++] = status == 0 ? HANDOFF_ERR_INVALID_ARGUMENT : HANDOFF_ERR_INTERNAL;
    handoff_backend_wake(channel.backend);
}

static void child_is_told_that_the_handle_is_its_parents(void **state)
{
    (void)state;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    call_in_a_wait(use_in_a_child);
    assert_status(handoff_backend_accept(channel.backend, -1, &arrival), HANDOFF_WOKEN);
    assert_seen(1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHANNEL_TEST(backend_in_a_wait_is_in_use),
        CHANNEL_TEST(broker_in_a_wait_is_in_use),
        CHANNEL_TEST(child_is_told_that_the_handle_is_its_parents),
    };
    return RUN_TESTS(tests);
}
