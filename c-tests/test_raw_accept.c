/* Accepting brokers, by policy and with a time limit. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

/* What each test begins with: a listener under an abstract name. */
static char name[64];
static handoff_raw_listener *listener;

static int make_listener(void **state)
{
    descriptors_before(state);
    snprintf(name, sizeof name, "@handoff-test-accept-%d", getpid());
    assert_ok(handoff_raw_listener_new(name, NULL, &listener));
    return 0;
}

static int free_listener(void **state)
{
    handoff_raw_listener_free(listener);
    return descriptors_after(state);
}

#define ACCEPT_TEST(function) \
    cmocka_unit_test_setup_teardown(function, make_listener, free_listener)

static void accepted_connection_is_the_brokers_blocking_and_close_on_exec(void **state)
{
    (void)state;
    int client, accepted;
    char byte = 0;
    assert_ok(handoff_raw_connect(name, &client));
    assert_ok(handoff_raw_listener_accept(listener, NULL, -1, &accepted));
    assert_false(fcntl(accepted, F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(accepted, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(write(client, "x", 1), 1);
    assert_int_equal(read(accepted, &byte, 1), 1);
    assert_int_equal(byte, 'x');
    close(client);
    close(accepted);
}

static void accepting_waits_for_nobody_longer_than_it_is_told(void **state)
{
    (void)state;
    int accepted = -7;
    assert_status(handoff_raw_listener_accept(listener, NULL, 0, &accepted), HANDOFF_TIMED_OUT);
    uint64_t start = now_ns();
    assert_status(handoff_raw_listener_accept(listener, NULL, 20, &accepted),
                  HANDOFF_TIMED_OUT);
    assert_in_range(ms_since(start), 20, PATIENCE_MS);
    assert_int_equal(accepted, -7);
}

static void accepting_waits_until_somebody_connects(void **state)
{
    (void)state;
    int accepted;
    pid_t child = start_child();
    if (child == 0) {
        int socket;
        handoff_raw_listener_free(listener);
        _exit(handoff_raw_connect(name, &socket) != HANDOFF_OK);
    }
    assert_ok(handoff_raw_listener_accept(listener, NULL, PATIENCE_MS, &accepted));
    assert_child_succeeds(child);
    close(accepted);
}

static void connection_of_a_user_that_may_not_is_closed(void **state)
{
    (void)state;
    const uint32_t stranger[] = {geteuid() + 1};
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    int client, accepted = -7;
    char byte;
    policy.users = stranger;
    policy.users_len = 1;
    assert_ok(handoff_raw_connect(name, &client));
    assert_status(handoff_raw_listener_accept(listener, &policy, 0, &accepted),
                  HANDOFF_ERR_PEER_NOT_ALLOWED);
    assert_int_equal(accepted, -7);
    assert_int_equal(read(client, &byte, 1), 0);
    assert_status(handoff_raw_listener_accept(listener, &policy, 0, &accepted),
                  HANDOFF_TIMED_OUT);
    close(client);
}

static void accepting_without_a_descriptor_left_is_descriptor_pressure(void **state)
{
    (void)state;
    int client, accepted = -7;
    assert_ok(handoff_raw_connect(name, &client));
    rlim_t before = allow_no_more_descriptors();
    handoff_status status = handoff_raw_listener_accept(listener, NULL, 0, &accepted);
    int error = errno;
    allow_descriptors(before);
    assert_status(status, HANDOFF_ERR_DESCRIPTOR_PRESSURE);
    assert_int_equal(error, EMFILE);
    assert_int_equal(accepted, -7);
    close(client);
}

static void shutting_the_listening_socket_down_ends_the_wait(void **state)
{
    (void)state;
    int accepted = -7;
    assert_int_equal(shutdown(handoff_raw_listener_fd(listener), SHUT_RDWR), 0);
    assert_invalid(handoff_raw_listener_accept(listener, NULL, -1, &accepted));
    assert_int_equal(errno, EINVAL);
    assert_int_equal(accepted, -7);
}

static void accepting_with_nonsense_is_refused_and_takes_no_connection(void **state)
{
    (void)state;
    handoff_peer_policy bad_size = {.size = 0}, bad_list = HANDOFF_PEER_POLICY_INIT;
    int client, accepted = -7;
    bad_list.users_len = 1;
    assert_ok(handoff_raw_connect(name, &client));
    assert_invalid(handoff_raw_listener_accept(NULL, NULL, 0, &accepted));
    assert_invalid(handoff_raw_listener_accept(misaligned(), NULL, 0, &accepted));
    assert_invalid(handoff_raw_listener_accept(listener, NULL, 0, NULL));
    assert_invalid(handoff_raw_listener_accept(listener, NULL, 0, misaligned()));
    assert_invalid(handoff_raw_listener_accept(listener, misaligned(), 0, &accepted));
    assert_invalid(handoff_raw_listener_accept(listener, &bad_size, 0, &accepted));
    assert_invalid(handoff_raw_listener_accept(listener, &bad_list, 0, &accepted));
    assert_int_equal(accepted, -7);
    assert_ok(handoff_raw_listener_accept(listener, NULL, 0, &accepted));
    close(accepted);
    close(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ACCEPT_TEST(accepted_connection_is_the_brokers_blocking_and_close_on_exec),
        ACCEPT_TEST(accepting_waits_for_nobody_longer_than_it_is_told),
        ACCEPT_TEST(accepting_waits_until_somebody_connects),
        ACCEPT_TEST(connection_of_a_user_that_may_not_is_closed),
        ACCEPT_TEST(accepting_without_a_descriptor_left_is_descriptor_pressure),
        ACCEPT_TEST(shutting_the_listening_socket_down_ends_the_wait),
        ACCEPT_TEST(accepting_with_nonsense_is_refused_and_takes_no_connection),
    };
    return RUN_TESTS(tests);
}
