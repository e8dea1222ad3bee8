/* Why there is no channel: a broker that is turned away is told why, and one that has connected to
 * who is no backend is told that. Brokers and backends are processes, of several users. */
#define _GNU_SOURCE
#include "channel.h"
#include "frames.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { OWNER = 1001, STRANGER = 33, FRIEND = 4001 };

static char directory[64], path[80];
static struct frame frame;

static int make_place(void **state)
{
    descriptors_before(state);
    make_directory(directory);
    snprintf(path, sizeof path, "%.63s/socket", directory);
    /* Every user may make a socket there. */
    return chmod(directory, 0777);
}

static int remove_place(void **state)
{
    remove_directory(directory);
    return descriptors_after(state);
}

#define PLACE_TEST(function) \
    cmocka_unit_test_setup_teardown(function, make_place, remove_place)

static void become(uint32_t user)
{
    if (user != 0)
        child_assert(setgroups(0, NULL) == 0 && setgid(user) == 0 && setuid(user) == 0);
}

/* ---- the library's sendmsg(2), which a test can delay ------------------------------------------ */

/* Closed by the backend when it has turned the broker away; -1: no delay. */
static int turned_away = -1;
/* The packet is sent before the delay, and not after it. */
static bool sent_first;

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    ssize_t sent = -1;
    int wait_for = turned_away;
    turned_away = -1;
    if (wait_for == -1 || sent_first)
        sent = syscall(SYS_sendmsg, fd, message, flags);
    if (wait_for != -1)
        must(read(wait_for, &(char){0}, 1) == 0);
    return wait_for == -1 || sent_first ? sent : syscall(SYS_sendmsg, fd, message, flags);
}

/* ---- a backend in a process of its own --------------------------------------------------------- */

struct child {
    pid_t pid;
    int stop;   /* closed when it shall end */
    int report; /* where it tells what it has counted */
};

/* Listens as some user and dispatches until it is stopped. */
static struct child start_backend(uint32_t user, const handoff_backend_options *options)
{
    struct child child;
    int stop[2], report[2];
    need_root();
    assert_int_equal(pipe2(stop, O_CLOEXEC), 0);
    assert_int_equal(pipe2(report, O_CLOEXEC), 0);
    child.pid = start_child();
    if (child.pid == 0) {
        handoff_backend *backend;
        close(stop[1]);
        become(user);
        child_assert(handoff_backend_listen(path, options, &backend) == HANDOFF_OK);
        child_assert(write(report[1], "", 1) == 1);
        struct pollfd polls[] = {{.fd = handoff_backend_fd(backend), .events = POLLIN},
                                 {.fd = stop[0], .events = POLLIN}};
        while (poll(polls, 2, -1) > 0 && polls[1].revents == 0)
            child_assert(handoff_backend_dispatch(backend) == HANDOFF_OK);
        handoff_backend_statistics statistics = HANDOFF_BACKEND_STATISTICS_INIT;
        child_assert(handoff_backend_get_statistics(backend, &statistics) == HANDOFF_OK);
        child_assert(write(report[1], &statistics, sizeof statistics) == sizeof statistics);
        handoff_backend_free(backend);
        _exit(0);
    }
    close(stop[0]);
    close(report[1]);
    child.stop = stop[1];
    child.report = report[0];
    assert_int_equal(read(child.report, &(char){0}, 1), 1);
    return child;
}

static handoff_backend_statistics stop_backend(struct child child)
{
    handoff_backend_statistics statistics;
    close(child.stop);
    assert_int_equal(read(child.report, &statistics, sizeof statistics), sizeof statistics);
    close(child.report);
    assert_child_succeeds(child.pid);
    assert_int_equal(statistics.refused,
                     statistics.refused_users + statistics.refused_over_limit +
                         statistics.refused_versions + statistics.refused_draining);
    return statistics;
}

static handoff_backend_options options_for_all(void)
{
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.mode = 0666;
    return options;
}

/* ---- a broker in a process of its own ---------------------------------------------------------- */

struct outcome {
    handoff_status status;
    int error;
    uint64_t ms;
    char message[512];
};

static struct child start_broker(uint32_t user, uint64_t timeout_ms)
{
    struct child child = {.stop = -1};
    int report[2];
    assert_int_equal(pipe2(report, O_CLOEXEC), 0);
    child.pid = start_child();
    if (child.pid == 0) {
        struct outcome outcome = {0};
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        handoff_broker *broker;
        int pair[2];
        become(user);
        child_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        /* One attempt is told of, and not a later one on a slow machine. */
        handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
        options.reconnect_min_ms = PATIENCE_MS;
        child_assert(handoff_broker_new(path, &options, &broker) == HANDOFF_OK);
        handoff_offer offer = offer_of(pair[0]);
        offer.timeout_ms = timeout_ms;
        uint64_t start = now_ns();
        outcome.status = handoff_broker_offer_and_wait(broker, &offer, &verdict);
        outcome.error = errno;
        outcome.ms = ms_since(start);
        snprintf(outcome.message, sizeof outcome.message, "%s", handoff_broker_last_error(broker));
        child_assert(handoff_status_is_fallback_safe(outcome.status));
        child_assert(!handoff_status_may_have_reached_backend(outcome.status));
        handoff_broker_free(broker);
        child_assert(write(report[1], &outcome, sizeof outcome) == sizeof outcome);
        _exit(0);
    }
    close(report[1]);
    child.report = report[0];
    return child;
}

static struct outcome end_of(struct child broker)
{
    struct outcome outcome;
    assert_int_equal(read(broker.report, &outcome, sizeof outcome), sizeof outcome);
    close(broker.report);
    assert_child_succeeds(broker.pid);
    return outcome;
}

/* Asserts what a broker is told: this status and error number, at once, and the path with this
 * sentence. */
static void assert_told(struct outcome outcome, handoff_status status, int error,
                        const char *sentence)
{
    char message[256];
    snprintf(message, sizeof message, "%s: %s", path, sentence);
    assert_string_equal(outcome.message, message);
    assert_status(outcome.status, status);
    assert_int_equal(outcome.error, error);
    assert_in_range(outcome.ms, 0, PATIENCE_MS / 2);
}

/* ---- turned away by a backend ------------------------------------------------------------------ */

static void user_that_is_not_allowed_is_told_who_is(void **state)
{
    (void)state;
    handoff_backend_options options = options_for_all();
    struct child backend = start_backend(OWNER, &options);
    assert_told(end_of(start_broker(STRANGER, PATIENCE_MS)), HANDOFF_ERR_PERMISSION_DENIED, 0,
                "the backend does not allow user 33; it allows user 1001 (its own) and root");
    handoff_backend_statistics statistics = stop_backend(backend);
    assert_int_equal(statistics.refused_users, 1);
    assert_int_equal(statistics.refused, 1);
    assert_int_equal(statistics.last_refused_user, STRANGER);
    assert_int_equal(statistics.accepted, 0);
    assert_int_equal(statistics.broken, 0);

    backend = start_backend(0, &options);
    assert_told(end_of(start_broker(STRANGER, PATIENCE_MS)), HANDOFF_ERR_PERMISSION_DENIED, 0,
                "the backend does not allow user 33; it allows root (its own)");
    stop_backend(backend);
}

static void user_that_is_not_in_the_policy_is_told_of_the_policy(void **state)
{
    (void)state;
    static const uint32_t users[] = {FRIEND};
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    handoff_backend_options options = options_for_all();
    policy.users = users;
    policy.users_len = 1;
    options.policy = &policy;
    struct child backend = start_backend(OWNER, &options);
    assert_told(end_of(start_broker(STRANGER, PATIENCE_MS)), HANDOFF_ERR_PERMISSION_DENIED, 0,
                "the backend does not allow user 33; it allows the users and groups that its "
                "policy lists");
    assert_int_equal(stop_backend(backend).last_refused_user, STRANGER);
}

static void broker_too_many_is_told_the_limit(void **state)
{
    (void)state;
    handoff_backend_options options = options_for_all();
    options.max_channels = 1;
    struct child backend = start_backend(0, &options);
    handoff_broker *first;
    assert_ok(handoff_broker_new(path, NULL, &first));
    while (broker_statistics(first).connects == 0) {
        await_readable(handoff_broker_fd(first));
        assert_ok(handoff_broker_dispatch(first));
    }
    assert_told(end_of(start_broker(0, PATIENCE_MS)), HANDOFF_ERR_TOO_MANY_CHANNELS, EUSERS,
                "the backend has as many channels as it may: 1 (max_channels)");
    handoff_broker_free(first);
    handoff_backend_statistics statistics = stop_backend(backend);
    assert_int_equal(statistics.accepted, 1);
    assert_int_equal(statistics.refused_over_limit, 1);
    assert_int_equal(statistics.refused, 1);
}

static void broker_too_many_of_one_user_is_told_that_limit(void **state)
{
    (void)state;
    static const uint32_t users[] = {0, FRIEND};
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    handoff_backend_options options = options_for_all();
    policy.users = users;
    policy.users_len = 2;
    options.policy = &policy;
    options.max_channels = 3;
    options.max_channels_per_user = 1;
    struct child backend = start_backend(0, &options);
    handoff_broker *first;
    assert_ok(handoff_broker_new(path, NULL, &first));
    while (broker_statistics(first).connects == 0) {
        await_readable(handoff_broker_fd(first));
        assert_ok(handoff_broker_dispatch(first));
    }
    assert_told(end_of(start_broker(0, PATIENCE_MS)), HANDOFF_ERR_TOO_MANY_CHANNELS, EUSERS,
                "the backend has as many channels of user 0 as it may: 1 "
                "(max_channels_per_user)");
    handoff_broker_free(first);
    handoff_backend_statistics statistics = stop_backend(backend);
    assert_int_equal(statistics.refused_over_limit, 1);
    assert_int_equal(statistics.refused, 1);
}

/* A backend that has not looked yet drains: who waits, and who is accepted but has not said hello, are
 * told so. */
static void broker_that_waits_when_the_backend_drains_is_told_so(void **state)
{
    (void)state;
    handoff_backend *backend;
    assert_ok(handoff_backend_listen(path, NULL, &backend));
    assert_int_not_equal(handoff_backend_fd(backend), -1);
    struct child broker = start_broker(0, PATIENCE_MS);
    await_readable(handoff_backend_fd(backend));
    assert_ok(handoff_backend_drain(backend));
    assert_told(end_of(broker), HANDOFF_ERR_BACKEND_UNAVAILABLE, ESHUTDOWN,
                "the backend drains: it takes no more brokers");
    handoff_backend_statistics statistics = backend_statistics(backend);
    assert_int_equal(statistics.refused_draining, 1);
    assert_int_equal(statistics.refused, 1);
    handoff_backend_free(backend);
}

/* Receives the refusal at which a channel ends, also if the end comes first. */
static void receive_refusal(int socket)
{
    if (frame_receive(socket, &frame) == -1)
        assert_int_equal(frame_receive(socket, &frame), 0);
    assert_int_equal(frame.len, REFUSAL_LEN);
    assert_int_equal(frame_get(&frame, AT_LENGTH, 4), REFUSAL_LEN);
    assert_int_equal(frame_get(&frame, AT_VERSION, 1), 1);
    assert_int_equal(frame_get(&frame, AT_KIND, 1), REFUSAL);
    assert_int_equal(frame_get(&frame, AT_ENTRIES, 4), 0);
    assert_int_equal(frame_get(&frame, AT_VERSIONS, 2), 0x0101);
    assert_true(channel_ends(socket));
}

static void broker_that_has_not_said_hello_when_the_backend_drains_is_told_so(void **state)
{
    (void)state;
    handoff_backend *backend;
    assert_ok(handoff_backend_listen(path, NULL, &backend));
    int socket = packets_connect(path);
    while (backend_statistics(backend).channels == 0)
        assert_ok(handoff_backend_dispatch(backend));
    /* It comes, but is not read any more. */
    frame_begin(&frame, HELLO);
    assert_int_equal(frame_send(socket, &frame), 0);
    assert_ok(handoff_backend_drain(backend));
    receive_refusal(socket);
    assert_int_equal(frame_get(&frame, AT_CAUSE, 2), DRAINING);
    assert_int_equal(frame_get(&frame, AT_USER, 8), 0);
    assert_int_equal(frame_get(&frame, AT_LIMIT, 4), 0);
    assert_int_equal(backend_statistics(backend).channels, 0);
    assert_int_equal(backend_statistics(backend).refused_draining, 1);
    assert_int_equal(backend_statistics(backend).broken, 0);
    close(socket);
    handoff_backend_free(backend);
}

static void broker_of_another_version_is_told_which_one_is_spoken(void **state)
{
    (void)state;
    handoff_backend *backend;
    assert_ok(handoff_backend_listen(path, NULL, &backend));
    int socket = packets_connect(path);
    frame_hello(&frame, 8, socket);
    frame_set(&frame, AT_VERSION, 2, 1);
    assert_int_equal(frame_send(socket, &frame), 0);
    assert_ok(handoff_backend_dispatch(backend));
    receive_refusal(socket);
    assert_int_equal(frame_get(&frame, AT_CAUSE, 2), OTHER_VERSION);
    assert_int_equal(backend_statistics(backend).refused_versions, 1);
    assert_int_equal(backend_statistics(backend).refused, 1);
    assert_int_equal(backend_statistics(backend).broken, 0);
    close(socket);
    handoff_backend_free(backend);
}

/* ---- who is no backend of this version --------------------------------------------------------- */

/* What it does with each connection. */
enum answer {
    SILENCE, END, GARBAGE, WELCOME_OF_2, REFUSAL_OF_2_TO_3, UNKNOWN_CAUSE, NAMELESS_USER,
    REFUSED_UNREAD, REFUSED_BEFORE_HELLO
};

static void answer(int socket, enum answer answer)
{
    struct pollfd hello = {.fd = socket, .events = POLLIN};
    if (answer != REFUSED_BEFORE_HELLO)
        must(poll(&hello, 1, PATIENCE_MS) == 1);
    /* An unread packet makes the end of the channel an error, before all that was sent. */
    if (answer != REFUSED_UNREAD && answer != REFUSED_BEFORE_HELLO)
        must(frame_receive(socket, &frame) == 0);
    for (size_t i = 0; answer != REFUSED_UNREAD && i < frame.fds_len; i++)
        close(frame.fds[i]);
    frame_refusal(&frame, CHANNELS, 0, 0, 0, 64);
    switch (answer) {
    case SILENCE:
        must(poll(&hello, 1, PATIENCE_MS) == 1);
        return;
    case END:
        return;
    case GARBAGE:
        must(send(socket, "HTTP/1.1 400 Bad Request\r\n\r\n", 28, MSG_NOSIGNAL) == 28);
        return;
    case WELCOME_OF_2:
        frame_welcome(&frame, 8, 65536);
        frame_set(&frame, AT_VERSION, 2, 1);
        break;
    case REFUSAL_OF_2_TO_3:
        frame_refusal(&frame, OTHER_VERSION, 0, 0, 0, 0);
        frame_set(&frame, AT_VERSION, 3, 1);
        frame_set(&frame, AT_VERSIONS, 0x0302, 2);
        break;
    case UNKNOWN_CAUSE:
        frame_refusal(&frame, 99, 0xff, 1, 2, 3);
        break;
    case NAMELESS_USER:
        frame_refusal(&frame, NOT_ALLOWED, NAMELESS | LISTED, 65534, 0, 0);
        break;
    case REFUSED_UNREAD:
    case REFUSED_BEFORE_HELLO:
        break;
    }
    must(frame_send(socket, &frame) == 0);
}

/* Accepts connections, answers each, and counts them. */
static struct child start_answering(enum answer how)
{
    struct child child;
    int stop[2], report[2], done[2] = {-1, -1};
    assert_int_equal(pipe2(stop, O_CLOEXEC), 0);
    assert_int_equal(pipe2(report, O_CLOEXEC), 0);
    if (how == REFUSED_BEFORE_HELLO || how == REFUSED_UNREAD)
        assert_int_equal(pipe2(done, O_CLOEXEC), 0);
    int listener = packets_listen(path);
    assert_int_not_equal(listener, -1);
    child.pid = start_child();
    if (child.pid == 0) {
        int count = 0;
        close(stop[1]);
        close(done[0]);
        struct pollfd polls[] = {{.fd = listener, .events = POLLIN},
                                 {.fd = stop[0], .events = POLLIN}};
        while (poll(polls, 2, -1) > 0 && polls[1].revents == 0) {
            int socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            must(socket != -1);
            answer(socket, how);
            close(socket);
            close(done[1]);
            count++;
        }
        must(write(report[1], &count, sizeof count) == sizeof count);
        _exit(0);
    }
    close(listener);
    close(stop[0]);
    close(report[1]);
    close(done[1]);
    turned_away = done[0];
    sent_first = how == REFUSED_UNREAD;
    child.stop = stop[1];
    child.report = report[0];
    return child;
}

static int stop_answering(struct child child)
{
    int count;
    close(child.stop);
    assert_int_equal(read(child.report, &count, sizeof count), sizeof count);
    close(child.report);
    assert_child_succeeds(child.pid);
    if (turned_away != -1)
        close(turned_away);
    turned_away = -1;
    return count;
}

static void assert_answer_is_told(enum answer how, handoff_status status, int error,
                                  const char *sentence)
{
    struct child backend = start_answering(how);
    struct outcome outcome = end_of(start_broker(0, how == SILENCE ? 1500 : PATIENCE_MS));
    stop_answering(backend);
    assert_told(outcome, status, error, sentence);
    assert_int_equal(unlink(path), 0);
}

static void backend_of_another_version_is_told_from_one_that_is_gone(void **state)
{
    (void)state;
    assert_answer_is_told(WELCOME_OF_2, HANDOFF_ERR_UNSUPPORTED, 0,
                          "the backend speaks version 2 of the protocol, this broker version 1");
    assert_answer_is_told(REFUSAL_OF_2_TO_3, HANDOFF_ERR_UNSUPPORTED, 0,
                          "the backend speaks versions 2 to 3 of the protocol, this broker "
                          "version 1");
}

static void who_does_not_speak_is_no_backend(void **state)
{
    (void)state;
    assert_answer_is_told(SILENCE, HANDOFF_ERR_BACKEND_UNAVAILABLE, ETIMEDOUT,
                          "whoever listens there did not answer within 1 s: is it a handoff "
                          "backend, and does it run?");
    assert_answer_is_told(END, HANDOFF_ERR_BACKEND_UNAVAILABLE, ECONNRESET,
                          "whoever listens there closed the channel without a word: is it a "
                          "handoff backend?");
    assert_answer_is_told(GARBAGE, HANDOFF_ERR_BACKEND_UNAVAILABLE, EPROTO,
                          "whoever listens there does not speak the protocol: is it a handoff "
                          "backend?");
}

static void silence_ends_the_channel_after_5_seconds_and_is_told_from_then_on(void **state)
{
    (void)state;
    struct child backend = start_answering(SILENCE);
    struct outcome outcome = end_of(start_broker(0, 7000));
    stop_answering(backend);
    assert_told(outcome, HANDOFF_ERR_BACKEND_UNAVAILABLE, ETIMEDOUT,
                "whoever listens there did not answer within 5 s: is it a handoff backend, and "
                "does it run?");
    assert_in_range(outcome.ms, 5000, PATIENCE_MS);
}

static void refusal_of_later_versions_and_of_a_user_without_a_number_is_understood(void **state)
{
    (void)state;
    assert_answer_is_told(UNKNOWN_CAUSE, HANDOFF_ERR_BACKEND_UNAVAILABLE, 0,
                          "the backend turns this broker away, for cause 99");
    assert_answer_is_told(NAMELESS_USER, HANDOFF_ERR_PERMISSION_DENIED, 0,
                          "the backend does not allow user 65534, the number of all who have none "
                          "in its user namespace; it allows the users and groups that its policy "
                          "lists");
}

/* The kernel tells of the closed socket first, and then what was sent before. */
static void refusal_is_read_behind_the_error_of_the_closed_socket(void **state)
{
    (void)state;
    const char *full = "the backend has as many channels as it may: 64 (max_channels)";
    assert_answer_is_told(REFUSED_UNREAD, HANDOFF_ERR_TOO_MANY_CHANNELS, EUSERS, full);
    assert_answer_is_told(REFUSED_BEFORE_HELLO, HANDOFF_ERR_TOO_MANY_CHANNELS, EUSERS, full);
}

/* ---- the next attempt -------------------------------------------------------------------------- */

static void backend_that_turns_away_is_not_hammered(void **state)
{
    (void)state;
    enum { FIRST_MS = 10, LAST_MS = 160, TIME_MS = 1000 };
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_broker *broker;
    struct child backend = start_answering(UNKNOWN_CAUSE);
    options.reconnect_min_ms = FIRST_MS;
    options.reconnect_max_ms = LAST_MS;
    assert_ok(handoff_broker_new(path, &options, &broker));
    uint64_t start = now_ns();
    while (ms_since(start) < TIME_MS) {
        struct pollfd readable = {.fd = handoff_broker_fd(broker), .events = POLLIN};
        assert_int_not_equal(poll(&readable, 1, 50), -1);
        assert_ok(handoff_broker_dispatch(broker));
    }
    uint64_t took = ms_since(start);
    int count = stop_answering(backend);
    /* After 0, 10, 30, 70 and 150 ms, and then each 160 ms: each time a little later. */
    assert_in_range(count, 2, 6 + (took - 150) / LAST_MS);
    assert_int_equal(broker_statistics(broker).connects, 0);
    handoff_broker_free(broker);
}

/* Until a new attempt has met with something else, offers are told what the last one met with. */
static void refusal_is_told_until_more_is_known_and_not_afterwards(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_backend *backend;
    handoff_broker *broker;
    int pair[2];
    struct child stranger = start_answering(UNKNOWN_CAUSE);
    make_pair(SOCK_STREAM, pair);
    options.reconnect_min_ms = options.reconnect_max_ms = 1;
    assert_ok(handoff_broker_new(path, &options, &broker));
    handoff_offer offer = offer_of(pair[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    offer.timeout_ms = PATIENCE_MS;
    assert_status(handoff_broker_offer_and_wait(broker, &offer, &verdict),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    for (int i = 0; i < 200; i++) {
        assert_status(handoff_broker_offer(broker, &offer, NULL), HANDOFF_ERR_BACKEND_UNAVAILABLE);
        assert_last_error_has("for cause 99");
        assert_ok(handoff_broker_dispatch(broker));
    }
    stop_answering(stranger);
    assert_int_equal(unlink(path), 0);
    assert_ok(handoff_backend_listen(path, NULL, &backend));
    connect_broker(broker, backend);
    assert_ok(handoff_broker_offer(broker, &offer, NULL));
    handoff_backend_free(backend);
    assert_ok(handoff_broker_dispatch(broker));
    assert_status(handoff_broker_offer(broker, &offer, NULL), HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_null(strstr(handoff_last_error(), "cause"));
    handoff_broker_free(broker);
    close(pair[0]);
    close(pair[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLACE_TEST(user_that_is_not_allowed_is_told_who_is),
        PLACE_TEST(user_that_is_not_in_the_policy_is_told_of_the_policy),
        PLACE_TEST(broker_too_many_is_told_the_limit),
        PLACE_TEST(broker_too_many_of_one_user_is_told_that_limit),
        PLACE_TEST(broker_that_waits_when_the_backend_drains_is_told_so),
        PLACE_TEST(broker_that_has_not_said_hello_when_the_backend_drains_is_told_so),
        PLACE_TEST(broker_of_another_version_is_told_which_one_is_spoken),
        PLACE_TEST(backend_of_another_version_is_told_from_one_that_is_gone),
        PLACE_TEST(who_does_not_speak_is_no_backend),
        PLACE_TEST(silence_ends_the_channel_after_5_seconds_and_is_told_from_then_on),
        PLACE_TEST(refusal_of_later_versions_and_of_a_user_without_a_number_is_understood),
        PLACE_TEST(refusal_is_read_behind_the_error_of_the_closed_socket),
        PLACE_TEST(backend_that_turns_away_is_not_hammered),
        PLACE_TEST(refusal_is_told_until_more_is_known_and_not_afterwards),
    };
    return RUN_TESTS(tests);
}
