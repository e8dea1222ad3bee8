/*
 * fork() while a thread is in a call with a shared broker: the child has a lock that nobody releases,
 * and what that guards is half changed.
 *
 * The program's own functions stand before those of libc, so that the library calls them with the lock
 * held; they make the child.
 */
#define _GNU_SOURCE
#include "channel.h"

#include <dlfcn.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static handoff_broker *broker;

/* What a child does that is made in the next call, and which child it is. */
static void (*in_child)(void);
static pid_t child;

static void make_the_child(void)
{
    void (*body)(void) = in_child;
    in_child = NULL;
    if (body == NULL)
        return;
    child = start_child();
    if (child == 0) {
        /* Ends a child that hangs. */
        alarm(PATIENCE_MS / 1000);
        body();
        _exit(0);
    }
}

/* The handle is nobody's yet when this is called. */
int epoll_create1(int flags)
{
    static int (*next)(int);
    make_the_child();
    if (next == NULL)
        next = (int (*)(int))(uintptr_t)dlsym(RTLD_NEXT, "epoll_create1");
    return next(flags);
}

int socket(int domain, int type, int protocol)
{
    static int (*next)(int, int, int);
    make_the_child();
    if (next == NULL)
        next = (int (*)(int, int, int))(uintptr_t)dlsym(RTLD_NEXT, "socket");
    return next(domain, type, protocol);
}

static void open_broker(void)
{
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.flags = HANDOFF_BROKER_SHARED;
    assert_ok(handoff_broker_new("@handoff-test-shared-fork", &options, &broker));
}

static void refuse_and_free(void)
{
    handoff_broker_statistics statistics = HANDOFF_BROKER_STATISTICS_INIT;
    int before = count_descriptors();
    child_assert(handoff_broker_fd(broker) == -1);
    child_assert(handoff_broker_get_statistics(broker, &statistics) == HANDOFF_ERR_WRONG_PROCESS);
    child_assert(handoff_broker_close(broker) == HANDOFF_ERR_WRONG_PROCESS);
    handoff_broker_free(broker);
    child_assert(count_descriptors() == before);
}

static void child_that_came_in_the_first_use_is_refused(void **state)
{
    (void)state;
    open_broker();
    in_child = refuse_and_free;
    assert_int_not_equal(handoff_broker_fd(broker), -1);
    assert_child_succeeds(child);
    handoff_broker_free(broker);
}

static void child_that_came_in_a_call_leaves_what_is_half_changed(void **state)
{
    (void)state;
    handoff_broker_backend backend = HANDOFF_BROKER_BACKEND_INIT;
    backend.path = "@handoff-test-shared-fork-2";
    open_broker();
    assert_int_not_equal(handoff_broker_fd(broker), -1);
    in_child = refuse_and_free;
    assert_ok(handoff_broker_add(broker, &backend));
    assert_child_succeeds(child);
    handoff_broker_free(broker);
}

static void use_and_free(void)
{
    handoff_broker_statistics statistics = HANDOFF_BROKER_STATISTICS_INIT;
    child_assert(handoff_broker_fd(broker) != -1);
    child_assert(handoff_broker_get_statistics(broker, &statistics) == HANDOFF_OK);
    int before = count_descriptors();
    handoff_broker_free(broker);
    child_assert(count_descriptors() < before);
}

static void child_that_came_before_the_first_use_has_a_broker_of_its_own(void **state)
{
    (void)state;
    handoff_broker_statistics statistics = HANDOFF_BROKER_STATISTICS_INIT;
    open_broker();
    /* It takes the lock, and is no use. */
    assert_ok(handoff_broker_get_statistics(broker, &statistics));
    in_child = use_and_free;
    make_the_child();
    assert_child_succeeds(child);
    assert_int_not_equal(handoff_broker_fd(broker), -1);
    handoff_broker_free(broker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(child_that_came_in_the_first_use_is_refused),
        TEST(child_that_came_in_a_call_leaves_what_is_half_changed),
        TEST(child_that_came_before_the_first_use_has_a_broker_of_its_own),
    };
    return RUN_TESTS(tests);
}
