/* A broker for a directory that it cannot watch: inotify_init1(2) fails. */
#define _GNU_SOURCE
#include "place.h"

#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* In a child. */
static handoff_broker *broker_without_inotify(void)
{
    handoff_broker *broker;
    refuse_system_call(SYS_inotify_init1, EMFILE);
    child_assert(handoff_broker_new(place, NULL, &broker) == HANDOFF_OK);
    return broker;
}

static void dispatch_when_readable(handoff_broker *broker)
{
    struct pollfd poll_fd = {.fd = handoff_broker_fd(broker), .events = POLLIN};
    child_assert(poll(&poll_fd, 1, PATIENCE_MS) == 1);
    child_assert(handoff_broker_dispatch(broker) == HANDOFF_OK);
}

static void directory_that_cannot_be_watched_is_read_again_and_again(void **state)
{
    (void)state;
    listen_at(&fleet, 0, NULL);
    pid_t child = start_child();
    if (child == 0) {
        handoff_broker *broker = broker_without_inotify();
        handoff_broker_backend_state found = HANDOFF_BROKER_BACKEND_STATE_INIT;
        uint64_t start = now_ns();
        while (ms_since(start) < PATIENCE_MS) {
            dispatch_when_readable(broker);
            if (handoff_broker_get_backend_state(broker, 1, &found) == HANDOFF_OK)
                _exit(0);
        }
        _exit(1);
    }
    listen_at(&fleet, 1, NULL);
    assert_child_succeeds(child);
    open_broker();
    await_backends(2);
}

/* Waits until one of two backends has so many channels, with a broker in another process. */
static void await_channels(int which, size_t count)
{
    uint64_t start = now_ns();
    while (backend_statistics(fleet.backends[which]).channels != count) {
        for (int i = 0; i < 2 && fleet.backends[i] != NULL; i++)
            assert_ok(handoff_backend_dispatch(fleet.backends[i]));
        assert_true(ms_since(start) < PATIENCE_MS);
        usleep(1000);
    }
}

static void socket_that_is_replaced_is_followed_where_none_can_be_watched(void **state)
{
    (void)state;
    char hidden[100];
    snprintf(hidden, sizeof hidden, "%s.new", place);
    listen_at(&fleet, 0, NULL);
    pid_t child = start_child();
    if (child == 0) {
        handoff_broker *broker = broker_without_inotify();
        for (;;)
            dispatch_when_readable(broker);
    }
    await_channels(0, 1);
    assert_ok(handoff_backend_listen(hidden, NULL, &fleet.backends[1]));
    assert_int_equal(rename(hidden, fleet.paths[0]), 0);
    await_channels(1, 1);
    await_channels(0, 0);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
}

static void backend_that_was_removed_is_back_with_a_new_socket_where_none_can_be_watched(void **state)
{
    (void)state;
    listen_at(&fleet, 0, NULL);
    pid_t child = start_child();
    if (child == 0) {
        handoff_broker_backend_state found = HANDOFF_BROKER_BACKEND_STATE_INIT;
        handoff_broker *broker = broker_without_inotify();
        while (handoff_broker_get_backend_state(broker, 0, &found) != HANDOFF_OK)
            dispatch_when_readable(broker);
        child_assert(handoff_broker_remove(broker, fleet.paths[0]) == HANDOFF_OK);
        for (;;)
            dispatch_when_readable(broker);
    }
    await_channels(0, 1);
    await_channels(0, 0);
    /* Many a file system gives it the number of the file that was there. */
    handoff_backend_free(fleet.backends[0]);
    listen_at(&fleet, 0, NULL);
    await_channels(0, 1);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLACE_TEST(directory_that_cannot_be_watched_is_read_again_and_again),
        PLACE_TEST(socket_that_is_replaced_is_followed_where_none_can_be_watched),
        PLACE_TEST(backend_that_was_removed_is_back_with_a_new_socket_where_none_can_be_watched),
    };
    return RUN_TESTS(tests);
}
