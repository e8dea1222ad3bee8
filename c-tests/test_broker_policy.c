/* Who may be a broker's backend: a broker sends nothing to anybody else. */
#define _GNU_SOURCE
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

enum { BROKER = 4001, STRANGER = 4002, OWNER = 4003, GROUP = 4343 };

static char directory[64], path[80], name[64];

static int make_place(void **state)
{
    descriptors_before(state);
    make_directory(directory);
    snprintf(path, sizeof path, "%.63s/socket", directory);
    snprintf(name, sizeof name, "@handoff-test-policy-%d", getpid());
    /* Every user may make a socket there. */
    return chmod(directory, 0777);
}

static int remove_place(void **state)
{
    remove_directory(directory);
    return descriptors_after(state);
}

#define POLICY_TEST(function) \
    cmocka_unit_test_setup_teardown(function, make_place, remove_place)

static handoff_peer_policy policy_of(const uint32_t *users, size_t users_len,
                                     const uint32_t *groups, size_t groups_len)
{
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    policy.users = users;
    policy.users_len = users_len;
    policy.groups = groups;
    policy.groups_len = groups_len;
    return policy;
}

/* A process of another user that listens, and says whether it was sent anything. */
struct listener {
    pid_t pid;
    int stop; /* closed when it shall end */
};

/* The stranger is in GROUP too. */
static void become(uint32_t user, uint32_t group)
{
    const gid_t supplementary[] = {GROUP};
    child_assert(setgroups(user == STRANGER && group != GROUP, supplementary) == 0);
    child_assert(setgid(group) == 0 && setuid(user) == 0);
}

static struct listener listen_as(uint32_t user, uint32_t group, const char *where)
{
    struct listener listener;
    int ready[2], stop[2];
    need_root();
    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    assert_int_equal(pipe2(stop, O_CLOEXEC), 0);
    listener.pid = start_child();
    if (listener.pid == 0) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(where));
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        bool sent = false;
        strcpy(address.sun_path, where);
        if (*where == '@')
            address.sun_path[0] = '\0';
        become(user, group);
        umask(0);
        child_assert(bind(fd, (struct sockaddr *)&address, len) == 0 && listen(fd, 64) == 0);
        close(ready[0]);
        close(ready[1]);
        close(stop[1]);
        struct pollfd polls[] = {{.fd = fd, .events = POLLIN}, {.fd = stop[0], .events = POLLIN}};
        while (poll(polls, 2, -1) > 0 && polls[1].revents == 0) {
            char byte;
            int connection = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
            struct pollfd first = {.fd = connection, .events = POLLIN};
            child_assert(connection != -1);
            /* The broker sends its first packet right after it has connected, or hangs up. */
            child_assert(poll(&first, 1, PATIENCE_MS) == 1);
            sent |= recv(connection, &byte, 1, 0) > 0;
            close(connection);
        }
        _exit(sent);
    }
    close(ready[1]);
    close(stop[0]);
    assert_int_equal(read(ready[0], &(char){0}, 1), 0);
    close(ready[0]);
    listener.stop = stop[1];
    return listener;
}

/* Whether it was sent anything. */
static bool stop_listening(struct listener listener)
{
    int status;
    close(listener.stop);
    assert_int_equal(waitpid(listener.pid, &status, 0), listener.pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status) != 0;
}

/* Offers a connection as some user, with a broker that is new; the offer's status and message. */
struct outcome {
    handoff_status status;
    char message[512];
};

static struct outcome offer_as(uint32_t user, const char *where, const handoff_peer_policy *policy,
                               bool wait)
{
    struct outcome outcome = {0};
    int report[2];
    assert_int_equal(pipe2(report, O_CLOEXEC), 0);
    pid_t child = start_child();
    if (child == 0) {
        handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        handoff_broker *broker;
        int pair[2];
        options.policy = policy;
        if (user != 0)
            become(user, user);
        child_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        child_assert(handoff_broker_new(where, &options, &broker) == HANDOFF_OK);
        handoff_offer offer = offer_of(pair[0]);
        offer.preread = "Cookie: secret";
        offer.preread_len = 14;
        outcome.status = wait ? handoff_broker_offer_and_wait(broker, &offer, &verdict)
                              : handoff_broker_offer(broker, &offer, NULL);
        snprintf(outcome.message, sizeof outcome.message, "%s", handoff_broker_last_error(broker));
        handoff_broker_free(broker);
        child_assert(write(report[1], &outcome, sizeof outcome) == sizeof outcome);
        _exit(0);
    }
    close(report[1]);
    assert_int_equal(read(report[0], &outcome, sizeof outcome), sizeof outcome);
    close(report[0]);
    assert_child_succeeds(child);
    return outcome;
}

/* A broker that may not talk to who listens says so, and sends nothing. */
static void assert_refused(uint32_t broker, const char *where, const handoff_peer_policy *policy,
                           struct listener listener, const char *message)
{
    for (int wait = 0; wait < 2; wait++) {
        struct outcome outcome = offer_as(broker, where, policy, wait);
        assert_status(outcome.status, HANDOFF_ERR_PEER_NOT_ALLOWED);
        assert_non_null(strstr(outcome.message, where));
        if (strstr(outcome.message, message) == NULL)
            fail_msg("not in the message: %s: %s", message, outcome.message);
    }
    assert_false(stop_listening(listener));
}

/* A broker that may says hello. The listener is no backend, so the channel does not get further. */
static void assert_allowed(uint32_t broker, const char *where, const handoff_peer_policy *policy,
                           struct listener listener)
{
    struct outcome outcome = offer_as(broker, where, policy, true);
    assert_status(outcome.status, HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_true(stop_listening(listener));
}

static void stranger_who_took_an_abstract_name_gets_nothing(void **state)
{
    (void)state;
    assert_refused(BROKER, name, NULL, listen_as(STRANGER, STRANGER, name),
                   "the user who listens there, 4002, may not be the backend: allowed are root, "
                   "user 4001");
}

static void own_user_and_root_may_have_an_abstract_name(void **state)
{
    (void)state;
    assert_allowed(BROKER, name, NULL, listen_as(BROKER, BROKER, name));
    assert_allowed(BROKER, name, NULL, listen_as(0, 0, name));
    assert_refused(0, name, NULL, listen_as(STRANGER, STRANGER, name), "allowed are root");
}

static void owner_of_the_file_may_be_the_backend(void **state)
{
    (void)state;
    assert_allowed(BROKER, path, NULL, listen_as(OWNER, OWNER, path));
    assert_int_equal(unlink(path), 0);
    assert_allowed(0, path, NULL, listen_as(OWNER, OWNER, path));
}

static void listener_at_a_file_of_another_user_is_refused(void **state)
{
    (void)state;
    struct listener listener = listen_as(STRANGER, STRANGER, path);
    assert_int_equal(chown(path, OWNER, OWNER), 0);
    assert_refused(BROKER, path, NULL, listener,
                   "the user who listens there, 4002, may not be the backend: allowed are root, "
                   "user 4001 and the file's owner, 4003");
}

static void users_in_the_policy_are_allowed_and_nobody_else_not_even_root(void **state)
{
    (void)state;
    static const uint32_t users[] = {OWNER, 4444};
    handoff_peer_policy policy = policy_of(users, 2, NULL, 0);
    assert_allowed(BROKER, name, &policy, listen_as(OWNER, OWNER, name));
    assert_refused(BROKER, name, &policy, listen_as(STRANGER, STRANGER, name),
                   "the user who listens there, 4002, may not be the backend: allowed are users "
                   "4003, 4444");
    assert_refused(BROKER, name, &policy, listen_as(0, 0, name), "the user who listens there, 0,");
    assert_refused(BROKER, name, &policy, listen_as(BROKER, BROKER, name), "there, 4001,");
}

static void groups_in_the_policy_are_allowed(void **state)
{
    (void)state;
    static const uint32_t users[] = {OWNER}, groups[] = {GROUP};
    handoff_peer_policy policy = policy_of(NULL, 0, groups, 1);
    assert_allowed(BROKER, name, &policy, listen_as(STRANGER, GROUP, name));
    /* As a supplementary group. */
    assert_allowed(BROKER, name, &policy, listen_as(STRANGER, STRANGER, name));
    policy = policy_of(users, 1, groups, 1);
    assert_refused(BROKER, name, &policy, listen_as(0, 0, name), "4003; groups 4343");
}

static void policy_is_copied(void **state)
{
    (void)state;
    uint32_t users[] = {geteuid()}, groups[] = {STRANGER};
    handoff_peer_policy policy = policy_of(users, 1, groups, 1);
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_backend *backend;
    handoff_broker *broker;
    options.policy = &policy;
    assert_ok(handoff_backend_listen(name, NULL, &backend));
    assert_ok(handoff_broker_new(name, &options, &broker));
    users[0] = STRANGER;
    memset(&policy, 0xff, sizeof policy);
    memset(&options, 0xff, sizeof options);
    connect_broker(broker, backend);
    handoff_broker_free(broker);
    handoff_backend_free(backend);
}

static void policy_that_cannot_be_one_is_refused_and_named(void **state)
{
    (void)state;
    handoff_peer_policy policy = policy_of(NULL, 1, NULL, 0);
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_broker *none = NULL;
    options.policy = &policy;
    assert_invalid_because(handoff_broker_new(name, &options, &none), "policy.users");
    policy.size = 0;
    assert_invalid_because(handoff_broker_new(name, &options, &none), "HANDOFF_PEER_POLICY_INIT");
    options.policy = misaligned();
    assert_invalid_because(handoff_broker_new(name, &options, &none), "policy");
    assert_null(none);
}

static void broker_connects_when_the_right_backend_has_the_name_again(void **state)
{
    (void)state;
    struct listener stranger = listen_as(STRANGER, STRANGER, name);
    handoff_backend *backend;
    handoff_broker *broker;
    int pair[2];
    make_pair(SOCK_STREAM, pair);
    handoff_offer offer = offer_of(pair[0]);
    assert_ok(handoff_broker_new(name, NULL, &broker));
    assert_status(handoff_broker_offer(broker, &offer, NULL), HANDOFF_ERR_PEER_NOT_ALLOWED);
    assert_int_equal(errno, 0);
    assert_false(stop_listening(stranger));
    assert_ok(handoff_backend_listen(name, NULL, &backend));
    connect_broker(broker, backend);
    assert_ok(handoff_broker_offer(broker, &offer, NULL));
    /* The other way round: the name is lost while the channel is up, and taken by another. */
    handoff_backend_free(backend);
    stranger = listen_as(STRANGER, STRANGER, name);
    handoff_status status;
    do {
        await_readable(handoff_broker_fd(broker));
        assert_ok(handoff_broker_dispatch(broker));
        status = handoff_broker_offer(broker, &offer, NULL);
    } while (status == HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_status(status, HANDOFF_ERR_PEER_NOT_ALLOWED);
    assert_false(stop_listening(stranger));
    handoff_broker_free(broker);
    close(pair[0]);
    close(pair[1]);
}

static void refusal_is_hidden_behind_a_fallback(void **state)
{
    (void)state;
    assert_true(handoff_status_is_fallback_safe(HANDOFF_ERR_PEER_NOT_ALLOWED));
    assert_false(handoff_status_may_have_reached_backend(HANDOFF_ERR_PEER_NOT_ALLOWED));
    assert_int_equal(handoff_status_reason(HANDOFF_ERR_PEER_NOT_ALLOWED),
                     HANDOFF_REASON_PERMISSION_DENIED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        POLICY_TEST(stranger_who_took_an_abstract_name_gets_nothing),
        POLICY_TEST(own_user_and_root_may_have_an_abstract_name),
        POLICY_TEST(owner_of_the_file_may_be_the_backend),
        POLICY_TEST(listener_at_a_file_of_another_user_is_refused),
        POLICY_TEST(users_in_the_policy_are_allowed_and_nobody_else_not_even_root),
        POLICY_TEST(groups_in_the_policy_are_allowed),
        POLICY_TEST(policy_is_copied),
        POLICY_TEST(policy_that_cannot_be_one_is_refused_and_named),
        POLICY_TEST(broker_connects_when_the_right_backend_has_the_name_again),
        POLICY_TEST(refusal_is_hidden_behind_a_fallback),
    };
    return RUN_TESTS(tests);
}
