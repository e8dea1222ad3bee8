/*
 * In a user namespace everybody who has no number there appears as user 65534, the overflow user,
 * user_namespaces(7). Who only appears so is nobody's "same user", and no member of group 65534.
 */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { HERE = 4001, STRANGER = 4002, OVERFLOW_ID = 65534 };

static char name[64];

static int make_name(void **state)
{
    descriptors_before(state);
    snprintf(name, sizeof name, "@handoff-test-overflow-%d", getpid());
    return 0;
}

#define NAME_TEST(function) \
    cmocka_unit_test_setup_teardown(function, make_name, descriptors_after)

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

static void become(uint32_t id)
{
    child_assert(setgroups(0, NULL) == 0 && setgid(id) == 0 && setuid(id) == 0);
}

/* Where user namespaces may not be made the test says so. */
static void skip_unless_namespaces_are_allowed(void)
{
    need_root();
    pid_t child = start_child();
    if (child == 0) {
        become(HERE);
        _exit(unshare(CLONE_NEWUSER) == 0 ? 0 : errno);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        print_message("skipped: no user namespace can be made here: %s\n",
                      strerror(WEXITSTATUS(status)));
        skip();
    }
}

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    child_assert(fd != -1 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

/* In a child: user HERE in a namespace of its own, in which it has this number. */
static void enter_namespace(uint32_t number)
{
    char map[64];
    become(HERE);
    /* Whose ids have changed may not write to its own /proc otherwise, prctl(2). */
    child_assert(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0 && unshare(CLONE_NEWUSER) == 0);
    snprintf(map, sizeof map, "%u %u 1", number, HERE);
    write_file("/proc/self/setgroups", "deny");
    write_file("/proc/self/gid_map", map);
    write_file("/proc/self/uid_map", map);
    child_assert(geteuid() == number && getegid() == number);
}

/* What a user outside gets who connects to a process with this number in its namespace. */
static void check_connection(uint32_t number, uint32_t outside, const handoff_peer_policy *policy,
                             handoff_status expected)
{
    int ready[2];
    skip_unless_namespaces_are_allowed();
    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    pid_t inside = start_child();
    if (inside == 0) {
        handoff_raw_listener *listener;
        int socket;
        enter_namespace(number);
        child_assert(handoff_raw_listener_new(name, NULL, &listener) == HANDOFF_OK);
        close(ready[0]);
        close(ready[1]);
        handoff_status status = handoff_raw_listener_accept(listener, policy, PATIENCE_MS, &socket);
        if (status != expected)
            fprintf(stderr, "%s: %s\n", handoff_status_name(status), handoff_last_error());
        child_assert(status == expected);
        _exit(0);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &(char){0}, 1), 0);
    close(ready[0]);
    pid_t client = start_child();
    if (client == 0) {
        int socket;
        become(outside);
        child_assert(handoff_raw_connect(name, &socket) == HANDOFF_OK);
        _exit(0);
    }
    assert_child_succeeds(client);
    assert_child_succeeds(inside);
}

static void user_without_a_number_is_not_the_own_user(void **state)
{
    (void)state;
    check_connection(OVERFLOW_ID, STRANGER, NULL, HANDOFF_ERR_PEER_NOT_ALLOWED);
}

static void user_without_a_number_is_not_the_overflow_user_of_a_policy(void **state)
{
    (void)state;
    static const uint32_t list[] = {OVERFLOW_ID};
    handoff_peer_policy policy = users(list, 1);
    check_connection(0, STRANGER, &policy, HANDOFF_ERR_PEER_NOT_ALLOWED);
}

static void user_without_a_number_is_no_member_of_the_overflow_group(void **state)
{
    (void)state;
    static const uint32_t list[] = {OVERFLOW_ID};
    handoff_peer_policy policy = groups(list, 1);
    check_connection(0, STRANGER, &policy, HANDOFF_ERR_PEER_NOT_ALLOWED);
}

static void user_with_a_number_is_the_own_user(void **state)
{
    (void)state;
    check_connection(0, HERE, NULL, HANDOFF_OK);
    check_connection(1000, HERE, NULL, HANDOFF_OK);
}

static void member_of_a_group_with_a_number_is_allowed(void **state)
{
    (void)state;
    static const uint32_t list[] = {1000};
    handoff_peer_policy policy = groups(list, 1);
    check_connection(1000, HERE, &policy, HANDOFF_OK);
}

static void channel_is_not_opened_for_a_user_without_a_number(void **state)
{
    (void)state;
    int ready[2];
    skip_unless_namespaces_are_allowed();
    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    pid_t inside = start_child();
    if (inside == 0) {
        handoff_backend_statistics statistics = HANDOFF_BACKEND_STATISTICS_INIT;
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        handoff_backend *backend;
        enter_namespace(OVERFLOW_ID);
        child_assert(handoff_backend_listen(name, NULL, &backend) == HANDOFF_OK);
        close(ready[0]);
        close(ready[1]);
        for (uint64_t start = now_ns(); statistics.refused + statistics.accepted == 0;) {
            child_assert(ms_since(start) < PATIENCE_MS);
            child_assert(handoff_backend_accept(backend, 20, &arrival) == HANDOFF_TIMED_OUT);
            child_assert(handoff_backend_get_statistics(backend, &statistics) == HANDOFF_OK);
        }
        child_assert(statistics.accepted == 0);
        _exit(0);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &(char){0}, 1), 0);
    close(ready[0]);
    pid_t stranger = start_child();
    if (stranger == 0) {
        int socket;
        become(STRANGER);
        child_assert(handoff_raw_connect(name, &socket) == HANDOFF_OK);
        _exit(0);
    }
    assert_child_succeeds(stranger);
    assert_child_succeeds(inside);
}

/* To a broker inside, the owner of the socket's file appears as the same user as who listens there, and
   so does everybody else. */
static void owner_without_a_number_is_not_a_brokers_backend(void **state)
{
    (void)state;
    char directory[64], path[80];
    skip_unless_namespaces_are_allowed();
    make_directory(directory);
    assert_int_equal(chmod(directory, 0777), 0);
    snprintf(path, sizeof path, "%.63s/socket", directory);
    pid_t stranger = start_child();
    if (stranger == 0) {
        handoff_raw_listener_options options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
        handoff_raw_listener *listener;
        become(STRANGER);
        options.socket_type = HANDOFF_RAW_SEQPACKET;
        options.mode = 0666;
        child_assert(handoff_raw_listener_new(path, &options, &listener) == HANDOFF_OK);
        pid_t inside = start_child();
        if (inside == 0) {
            handoff_offer offer = HANDOFF_OFFER_INIT;
            handoff_broker *broker;
            int pair[2];
            child_assert(unshare(CLONE_NEWUSER) == 0);
            child_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
            child_assert(handoff_broker_new(path, NULL, &broker) == HANDOFF_OK);
            offer.fd = pair[0];
            child_assert(handoff_broker_offer(broker, &offer, NULL) ==
                         HANDOFF_ERR_PEER_NOT_ALLOWED);
            child_assert(strstr(handoff_last_error(), "65534, has no number") != NULL);
            _exit(0);
        }
        int status;
        child_assert(waitpid(inside, &status, 0) == inside);
        handoff_raw_listener_free(listener);
        _exit(status != 0);
    }
    assert_child_succeeds(stranger);
    remove_directory(directory);
}

/* Its own user has no number there either. */
static void process_without_a_number_knows_nobody_and_says_why(void **state)
{
    (void)state;
    skip_unless_namespaces_are_allowed();
    pid_t child = start_child();
    if (child == 0) {
        int pair[2];
        become(HERE);
        child_assert(unshare(CLONE_NEWUSER) == 0 && geteuid() == OVERFLOW_ID);
        child_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        child_assert(handoff_raw_peer_check(pair[0], NULL, NULL) == HANDOFF_ERR_PEER_NOT_ALLOWED);
        child_assert(strstr(handoff_last_error(), "no number in this user namespace") != NULL);
        child_assert(strstr(handoff_last_error(), "user 65534") != NULL);
        _exit(0);
    }
    assert_child_succeeds(child);
}

/* Nobody can tell then whether there are users without a number. */
static void without_proc_the_overflow_user_is_not_the_own_user(void **state)
{
    (void)state;
    need_root();
    char empty[64];
    make_directory(empty);
    pid_t child = start_child();
    if (child == 0) {
        int pair[2];
        child_assert(chroot(empty) == 0 && chdir("/") == 0);
        become(OVERFLOW_ID);
        child_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        child_assert(handoff_raw_peer_check(pair[0], NULL, NULL) == HANDOFF_ERR_PEER_NOT_ALLOWED);
        _exit(0);
    }
    assert_child_succeeds(child);
    child = start_child();
    if (child == 0) {
        int pair[2];
        child_assert(chroot(empty) == 0 && chdir("/") == 0);
        become(HERE);
        child_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        child_assert(handoff_raw_peer_check(pair[0], NULL, NULL) == HANDOFF_OK);
        _exit(0);
    }
    assert_child_succeeds(child);
    remove_directory(empty);
}

/* Where everybody has a number, nobody (65534) is a user as any other. */
static void nobody_is_the_own_user_where_everybody_has_a_number(void **state)
{
    (void)state;
    need_root();
    unsigned int inside, outside;
    unsigned long len = 0;
    FILE *map = fopen("/proc/self/uid_map", "re");
    if (map == NULL || fscanf(map, "%u %u %lu", &inside, &outside, &len) != 3 || len != 4294967295) {
        print_message("skipped: not everybody has a number here\n");
        skip();
    }
    fclose(map);
    pid_t child = start_child();
    if (child == 0) {
        int pair[2];
        become(OVERFLOW_ID);
        child_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        child_assert(handoff_raw_peer_check(pair[0], NULL, NULL) == HANDOFF_OK);
        _exit(0);
    }
    assert_child_succeeds(child);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        NAME_TEST(user_without_a_number_is_not_the_own_user),
        NAME_TEST(user_without_a_number_is_not_the_overflow_user_of_a_policy),
        NAME_TEST(user_without_a_number_is_no_member_of_the_overflow_group),
        NAME_TEST(user_with_a_number_is_the_own_user),
        NAME_TEST(member_of_a_group_with_a_number_is_allowed),
        NAME_TEST(channel_is_not_opened_for_a_user_without_a_number),
        NAME_TEST(owner_without_a_number_is_not_a_brokers_backend),
        NAME_TEST(process_without_a_number_knows_nobody_and_says_why),
        NAME_TEST(without_proc_the_overflow_user_is_not_the_own_user),
        NAME_TEST(nobody_is_the_own_user_where_everybody_has_a_number),
    };
    return RUN_TESTS(tests);
}
