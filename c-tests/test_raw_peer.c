/* Who is at the other end of a socket, and whether they may be. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { USER = 4242, GROUP = 4343, EXTRA_GROUP = 4444, STRANGER = 4545 };

static handoff_peer_policy users(const uint32_t *list, size_t len)
{
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    policy.users = list;
    policy.users_len = len;
    return policy;
}

static handoff_peer_policy groups(const uint32_t *list, size_t len)
{
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    policy.groups = list;
    policy.groups_len = len;
    return policy;
}

/* A connection from a child that is USER in GROUP, with these supplementary groups too. */
static int connection_of_user(const gid_t *supplementary, size_t len, pid_t *pid)
{
    char name[64];
    handoff_raw_listener *listener;
    snprintf(name, sizeof name, "@handoff-test-peer-%d", getpid());
    assert_ok(handoff_raw_listener_new(name, NULL, &listener));
    pid_t child = start_child();
    if (child == 0) {
        int socket;
        if (setgroups(len, supplementary) != 0 || setgid(GROUP) != 0 || setuid(USER) != 0) {
            perror("this test needs root, to become another user");
            _exit(99);
        }
        handoff_raw_listener_free(listener);
        _exit(handoff_raw_connect(name, &socket) != HANDOFF_OK);
    }
    assert_child_succeeds(child);
    int socket = accept4(handoff_raw_listener_fd(listener), NULL, NULL, SOCK_CLOEXEC);
    assert_int_not_equal(socket, -1);
    handoff_raw_listener_free(listener);
    if (pid != NULL)
        *pid = child;
    return socket;
}

static void peer_of_a_pair_is_this_process(void **state)
{
    (void)state;
    int pair[2];
    handoff_raw_peer peer = HANDOFF_RAW_PEER_INIT;
    make_pair(SOCK_SEQPACKET, pair);
    assert_ok(handoff_raw_peer_credentials(pair[0], &peer));
    assert_int_equal(peer.pid, getpid());
    assert_int_equal(peer.uid, geteuid());
    assert_int_equal(peer.gid, getegid());
    close(pair[0]);
    close(pair[1]);
}

static void peer_is_who_it_was_when_it_connected_though_it_has_exited(void **state)
{
    (void)state;
    pid_t child;
    handoff_raw_peer peer = HANDOFF_RAW_PEER_INIT;
    int socket = connection_of_user(NULL, 0, &child);
    assert_ok(handoff_raw_peer_credentials(socket, &peer));
    assert_int_equal(peer.pid, child);
    assert_int_equal(peer.uid, USER);
    assert_int_equal(peer.gid, GROUP);
    close(socket);
}

static void check_tells_who_an_allowed_peer_is(void **state)
{
    (void)state;
    int pair[2];
    handoff_raw_peer peer = HANDOFF_RAW_PEER_INIT;
    make_pair(SOCK_STREAM, pair);
    assert_ok(handoff_raw_peer_check(pair[0], NULL, &peer));
    assert_int_equal(peer.pid, getpid());
    assert_int_equal(peer.uid, geteuid());
    assert_int_equal(peer.gid, getegid());
    assert_ok(handoff_raw_peer_check(pair[0], NULL, NULL));
    close(pair[0]);
    close(pair[1]);
}

static void peer_that_is_not_allowed_is_not_told_but_named_in_the_message(void **state)
{
    (void)state;
    static const uint32_t list[] = {STRANGER};
    handoff_peer_policy policy = users(list, 1);
    handoff_raw_peer peer = {sizeof peer, 1, 2, 3, 0};
    int socket = connection_of_user(NULL, 0, NULL);
    errno = EINTR;
    assert_status(handoff_raw_peer_check(socket, &policy, &peer), HANDOFF_ERR_PEER_NOT_ALLOWED);
    assert_int_equal(errno, 0);
    assert_non_null(strstr(handoff_last_error(), "4242"));
    assert_int_equal(peer.pid, 1);
    assert_int_equal(peer.uid, 2);
    assert_int_equal(peer.gid, 3);
    close(socket);
}

static void default_policy_refuses_another_user(void **state)
{
    (void)state;
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    int socket = connection_of_user(NULL, 0, NULL);
    assert_status(handoff_raw_peer_check(socket, NULL, NULL), HANDOFF_ERR_PEER_NOT_ALLOWED);
    assert_status(handoff_raw_peer_check(socket, &policy, NULL), HANDOFF_ERR_PEER_NOT_ALLOWED);
    close(socket);
}

static void default_policy_allows_root_and_the_own_user_to_an_ordinary_user(void **state)
{
    (void)state;
    int of_root[2];
    make_pair(SOCK_STREAM, of_root);
    pid_t child = start_child();
    if (child == 0) {
        int own[2];
        become_nobody();
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, own) != 0)
            _exit(1);
        if (handoff_raw_peer_check(of_root[0], NULL, NULL) != HANDOFF_OK)
            _exit(2);
        if (handoff_raw_peer_check(own[0], NULL, NULL) != HANDOFF_OK)
            _exit(3);
        _exit(0);
    }
    assert_child_succeeds(child);
    close(of_root[0]);
    close(of_root[1]);
}

static void users_in_the_policy_are_allowed_and_nobody_else_not_even_root(void **state)
{
    (void)state;
    static const uint32_t list[] = {STRANGER, USER};
    handoff_peer_policy policy = users(list, 2);
    int pair[2], socket = connection_of_user(NULL, 0, NULL);
    make_pair(SOCK_STREAM, pair);
    assert_ok(handoff_raw_peer_check(socket, &policy, NULL));
    assert_status(handoff_raw_peer_check(pair[0], &policy, NULL), HANDOFF_ERR_PEER_NOT_ALLOWED);
    close(socket);
    close(pair[0]);
    close(pair[1]);
}

static void effective_group_in_the_policy_is_allowed(void **state)
{
    (void)state;
    static const uint32_t list[] = {STRANGER, GROUP}, others[] = {STRANGER, USER};
    handoff_peer_policy policy = groups(list, 2), other = groups(others, 2);
    int socket = connection_of_user(NULL, 0, NULL);
    assert_ok(handoff_raw_peer_check(socket, &policy, NULL));
    assert_status(handoff_raw_peer_check(socket, &other, NULL), HANDOFF_ERR_PEER_NOT_ALLOWED);
    close(socket);
}

static void supplementary_group_in_the_policy_is_allowed(void **state)
{
    (void)state;
    static const gid_t held[] = {STRANGER, EXTRA_GROUP};
    static const uint32_t list[] = {EXTRA_GROUP};
    handoff_peer_policy policy = groups(list, 1);
    int member = connection_of_user(held, 2, NULL), other = connection_of_user(held, 1, NULL);
    assert_ok(handoff_raw_peer_check(member, &policy, NULL));
    assert_status(handoff_raw_peer_check(other, &policy, NULL), HANDOFF_ERR_PEER_NOT_ALLOWED);
    close(member);
    close(other);
}

static void last_of_a_thousand_supplementary_groups_counts(void **state)
{
    (void)state;
    gid_t held[1000];
    uint32_t last;
    for (size_t i = 0; i < 1000; i++)
        held[i] = (gid_t)(10000 + i);
    last = held[999];
    handoff_peer_policy policy = groups(&last, 1);
    int socket = connection_of_user(held, 1000, NULL);
    assert_ok(handoff_raw_peer_check(socket, &policy, NULL));
    last++;
    assert_status(handoff_raw_peer_check(socket, &policy, NULL), HANDOFF_ERR_PEER_NOT_ALLOWED);
    close(socket);
}

static void user_or_group_suffices(void **state)
{
    (void)state;
    static const uint32_t stranger[] = {STRANGER}, user[] = {USER}, group[] = {GROUP};
    handoff_peer_policy by_user = users(user, 1), by_group = users(stranger, 1);
    int socket = connection_of_user(NULL, 0, NULL);
    by_user.groups = stranger;
    by_group.groups = group;
    by_user.groups_len = by_group.groups_len = 1;
    assert_ok(handoff_raw_peer_check(socket, &by_user, NULL));
    assert_ok(handoff_raw_peer_check(socket, &by_group, NULL));
    close(socket);
}

static void assert_unknown(int socket)
{
    handoff_raw_peer peer = {sizeof peer, 1, 2, 3, 0};
    assert_status(handoff_raw_peer_credentials(socket, &peer), HANDOFF_ERR_PEER_UNKNOWN);
    assert_status(handoff_raw_peer_check(socket, NULL, &peer), HANDOFF_ERR_PEER_UNKNOWN);
    assert_int_not_equal(errno, 0);
    assert_int_equal(peer.pid, 1);
    assert_int_equal(peer.uid, 2);
    assert_int_equal(peer.gid, 3);
}

static void peer_of_a_tcp_connection_is_unknown(void **state)
{
    (void)state;
    int ends[2];
    make_tcp_pair(ends);
    assert_unknown(ends[0]);
    close(ends[0]);
    close(ends[1]);
}

static void peer_of_a_socket_that_is_not_connected_is_unknown(void **state)
{
    (void)state;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_not_equal(fd, -1);
    assert_unknown(fd);
    close(fd);
}

static void peer_of_a_listening_socket_is_unknown(void **state)
{
    (void)state;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_not_equal(fd, -1);
    /* Without a path the kernel chooses an abstract name, unix(7). */
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address.sun_family), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_unknown(fd);
    close(fd);
}

static void assert_not_a_socket(int fd, int error)
{
    handoff_raw_peer peer = {sizeof peer, 1, 2, 3, 0};
    assert_invalid(handoff_raw_peer_credentials(fd, &peer));
    assert_int_equal(errno, error);
    assert_invalid(handoff_raw_peer_check(fd, NULL, &peer));
    assert_int_equal(errno, error);
    assert_int_equal(peer.pid, 1);
}

static void descriptor_that_is_no_open_socket_is_refused(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    assert_not_a_socket(ends[0], ENOTSOCK);
    close(ends[0]);
    close(ends[1]);
    assert_not_a_socket(ends[0], EBADF);
    assert_not_a_socket(-1, 0);
    assert_not_a_socket(INT32_MIN, 0);
}

static void null_and_misaligned_pointers_are_refused(void **state)
{
    (void)state;
    int pair[2];
    make_pair(SOCK_STREAM, pair);
    assert_invalid(handoff_raw_peer_credentials(pair[0], NULL));
    assert_invalid(handoff_raw_peer_credentials(pair[0], misaligned()));
    assert_invalid(handoff_raw_peer_check(pair[0], NULL, misaligned()));
    assert_invalid(handoff_raw_peer_check(pair[0], misaligned(), NULL));
    close(pair[0]);
    close(pair[1]);
}

static void list_that_cannot_be_one_is_refused(void **state)
{
    (void)state;
    const uint32_t own[] = {geteuid(), getegid()};
    const struct {
        const uint32_t *list;
        size_t len;
    } impossible[] = {
        {NULL, 1},
        {misaligned(), 1},
        {own, SIZE_MAX},
        {own, SIZE_MAX / sizeof own[0] + 2},
        {own, PTRDIFF_MAX / sizeof own[0] + 1},
    };
    int pair[2];
    make_pair(SOCK_STREAM, pair);
    for (size_t i = 0; i < sizeof impossible / sizeof impossible[0]; i++) {
        handoff_peer_policy policy = users(impossible[i].list, impossible[i].len);
        assert_invalid(handoff_raw_peer_check(pair[0], &policy, NULL));
        policy = groups(impossible[i].list, impossible[i].len);
        assert_invalid(handoff_raw_peer_check(pair[0], &policy, NULL));
    }
    close(pair[0]);
    close(pair[1]);
}

static void empty_list_may_be_anywhere(void **state)
{
    (void)state;
    handoff_peer_policy policy = users(misaligned(), 0);
    int pair[2];
    make_pair(SOCK_STREAM, pair);
    policy.groups = misaligned();
    assert_ok(handoff_raw_peer_check(pair[0], &policy, NULL));
    close(pair[0]);
    close(pair[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(peer_of_a_pair_is_this_process),
        TEST(peer_is_who_it_was_when_it_connected_though_it_has_exited),
        TEST(check_tells_who_an_allowed_peer_is),
        TEST(peer_that_is_not_allowed_is_not_told_but_named_in_the_message),
        TEST(default_policy_refuses_another_user),
        TEST(default_policy_allows_root_and_the_own_user_to_an_ordinary_user),
        TEST(users_in_the_policy_are_allowed_and_nobody_else_not_even_root),
        TEST(effective_group_in_the_policy_is_allowed),
        TEST(supplementary_group_in_the_policy_is_allowed),
        TEST(last_of_a_thousand_supplementary_groups_counts),
        TEST(user_or_group_suffices),
        TEST(peer_of_a_tcp_connection_is_unknown),
        TEST(peer_of_a_socket_that_is_not_connected_is_unknown),
        TEST(peer_of_a_listening_socket_is_unknown),
        TEST(descriptor_that_is_no_open_socket_is_refused),
        TEST(null_and_misaligned_pointers_are_refused),
        TEST(list_that_cannot_be_one_is_refused),
        TEST(empty_list_may_be_anywhere),
    };
    return RUN_TESTS(tests);
}
