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
static handoff_listener *listener;

static int make_listener(void **state)
{
    descriptors_before(state);
    snprintf(name, sizeof name, "@handoff-test-accept-%d", getpid());
    assert_ok(handoff_listener_new(name, NULL, &listener));
    return 0;
}

static int free_listener(void **state)
{
    handoff_listener_free(listener);
    return descriptors_after(state);
}

#define ACCEPT_TEST(function) \
    cmocka_unit_test_setup_teardown(function, make_listener, free_listener)

static void accepted_connection_is_the_brokers_blocking_and_close_on_exec(void **state)
{
    (void)state;
    int client, accepted;
    char byte = 0;
    assert_ok(handoff_connect(name, &client));
    assert_ok(handoff_listener_accept(listener, -1, NULL, &accepted));
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
    assert_status(handoff_listener_accept(listener, 0, NULL, &accepted), HANDOFF_ERR_WOULD_BLOCK);
    uint64_t start = handoff_now();
    assert_status(handoff_listener_accept(listener, 20, NULL, &accepted),
                  HANDOFF_ERR_WOULD_BLOCK);
    assert_in_range(handoff_now() - start, 20 * 1000000, 10 * 1000000000ULL);
    assert_int_equal(accepted, -7);
}

static void accepting_waits_until_somebody_connects(void **state)
{
    (void)state;
    int accepted;
    pid_t child = fork();
    assert_int_not_equal(child, -1);
    if (child == 0) {
        int socket;
        handoff_listener_free(listener);
        _exit(handoff_connect(name, &socket) != HANDOFF_OK);
    }
    assert_ok(handoff_listener_accept(listener, 30000, NULL, &accepted));
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
    assert_ok(handoff_connect(name, &client));
    assert_status(handoff_listener_accept(listener, 0, &policy, &accepted),
                  HANDOFF_ERR_PEER_NOT_ALLOWED);
    assert_int_equal(accepted, -7);
    assert_int_equal(read(client, &byte, 1), 0);
    assert_status(handoff_listener_accept(listener, 0, &policy, &accepted),
                  HANDOFF_ERR_WOULD_BLOCK);
    close(client);
}

static void accepting_without_a_descriptor_left_is_descriptor_pressure(void **state)
{
    (void)state;
    int client, accepted = -7;
    assert_ok(handoff_connect(name, &client));
    rlim_t before = allow_no_more_descriptors();
    handoff_status status = handoff_listener_accept(listener, 0, NULL, &accepted);
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
    assert_int_equal(shutdown(handoff_listener_fd(listener), SHUT_RDWR), 0);
    assert_invalid(handoff_listener_accept(listener, -1, NULL, &accepted));
    assert_int_equal(errno, EINVAL);
    assert_int_equal(accepted, -7);
}

static void accepting_with_nonsense_is_refused_and_takes_no_connection(void **state)
{
    (void)state;
    handoff_peer_policy bad_size = {.size = 1}, bad_list = HANDOFF_PEER_POLICY_INIT;
    int client, accepted = -7;
    bad_list.users_len = 1;
    assert_ok(handoff_connect(name, &client));
    assert_invalid(handoff_listener_accept(NULL, 0, NULL, &accepted));
    assert_invalid(handoff_listener_accept(misaligned(), 0, NULL, &accepted));
    assert_invalid(handoff_listener_accept(listener, 0, NULL, NULL));
    assert_invalid(handoff_listener_accept(listener, 0, NULL, misaligned()));
    assert_invalid(handoff_listener_accept(listener, 0, misaligned(), &accepted));
    assert_invalid(handoff_listener_accept(listener, 0, &bad_size, &accepted));
    assert_invalid(handoff_listener_accept(listener, 0, &bad_list, &accepted));
    assert_int_equal(accepted, -7);
    assert_ok(handoff_listener_accept(listener, 0, NULL, &accepted));
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
    return cmocka_run_group_tests_name("accept", tests, NULL, NULL);
}
