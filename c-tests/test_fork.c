/*
 * Handles that are made before fork(2): the copies of a backend are one handle, which belongs to the
 * process that uses it first and takes its socket's file with it. The copies of a broker are several.
 */
#define _GNU_SOURCE
#include "channel.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>

static char directory[64], path[80];
static handoff_backend *backend;

static int listen_in_directory(void **state)
{
    descriptors_before(state);
    make_directory(directory);
    snprintf(path, sizeof path, "%.63s/socket", directory);
    assert_ok(handoff_backend_listen(path, NULL, &backend));
    return 0;
}

static int remove_all(void **state)
{
    remove_directory(directory);
    return descriptors_after(state);
}

#define FORK_TEST(function) cmocka_unit_test_setup_teardown(function, listen_in_directory, remove_all)

/* As with /proc/sys/fs/epoll/max_user_watches reached. */
static bool no_watches;

/* Takes the place of the C library's. */
int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    if (no_watches && operation == EPOLL_CTL_ADD) {
        errno = ENOSPC;
        return -1;
    }
    return (int)syscall(SYS_epoll_ctl, epoll, operation, fd, event);
}

static bool exists(const char *file)
{
    return access(file, F_OK) == 0;
}

/* Says something to the other process, and waits for it. */
static void say(int socket)
{
    child_assert(write(socket, "", 1) == 1);
}

static void await(int socket)
{
    char byte;
    child_assert(read(socket, &byte, 1) == 1);
}

static handoff_status accept_one(void)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_status status = handoff_backend_accept(backend, PATIENCE_MS, &arrival);
    if (status == HANDOFF_OK)
        close(arrival.fd);
    return status;
}

/* Hands a client over with a broker that others may have a copy of; false if it is not adopted. */
static bool hand_over(handoff_broker *broker)
{
    int client[2];
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    make_pair(SOCK_STREAM, client);
    handoff_offer offer = offer_of(client[0]);
    offer.timeout_ms = PATIENCE_MS;
    handoff_status status = handoff_broker_offer_and_wait(broker, &offer, &verdict);
    close(client[0]);
    close(client[1]);
    return status == HANDOFF_OK && verdict.outcome == HANDOFF_ADOPTED;
}

static bool is_served(void)
{
    handoff_broker *broker;
    child_assert(handoff_broker_new(path, NULL, &broker) == HANDOFF_OK);
    bool adopted = hand_over(broker);
    handoff_broker_free(broker);
    return adopted;
}

/* A child that uses the handle, accepts two connections, and ends as it is told. */
static pid_t serve_two(int pair[2], bool drain)
{
    make_pair(SOCK_STREAM, pair);
    pid_t child = start_child();
    if (child != 0)
        return child;
    await(pair[1]);
    child_assert(handoff_backend_dispatch(backend) == HANDOFF_OK);
    say(pair[1]);
    child_assert(accept_one() == HANDOFF_OK && accept_one() == HANDOFF_OK);
    if (drain)
        child_assert(handoff_backend_drain(backend) == HANDOFF_OK && !exists(path));
    handoff_backend_free(backend);
    child_assert(!exists(path));
    _exit(0);
}

static void close_pair(const int pair[2])
{
    close(pair[0]);
    close(pair[1]);
}

static void file_stays_when_the_parent_frees_what_its_child_uses(void **state)
{
    (void)state;
    int pair[2];
    pid_t child = serve_two(pair, false);
    say(pair[0]);
    await(pair[0]);
    assert_true(is_served());
    handoff_backend_free(backend);
    assert_true(exists(path));
    assert_true(is_served());
    assert_child_succeeds(child);
    close_pair(pair);
}

static void file_stays_when_the_parent_frees_what_its_child_will_use(void **state)
{
    (void)state;
    int pair[2];
    pid_t child = serve_two(pair, false);
    handoff_backend_free(backend);
    assert_true(exists(path));
    say(pair[0]);
    await(pair[0]);
    assert_true(is_served());
    assert_true(is_served());
    assert_child_succeeds(child);
    close_pair(pair);
}

static void file_goes_with_the_child_that_uses_it_and_a_successor_can_listen(void **state)
{
    (void)state;
    for (int drain = 0; drain < 2; drain++) {
        int pair[2];
        handoff_backend *successor;
        pid_t child = serve_two(pair, drain);
        say(pair[0]);
        await(pair[0]);
        assert_true(is_served());
        assert_true(is_served());
        assert_child_succeeds(child);
        /* The parent's copy of the socket is open. */
        assert_false(exists(path));
        assert_ok(handoff_backend_listen(path, NULL, &successor));
        handoff_backend_free(backend);
        assert_true(exists(path));
        backend = successor;
        close_pair(pair);
    }
    handoff_backend_free(backend);
    assert_false(exists(path));
}

static void file_goes_with_a_handle_that_nobody_uses(void **state)
{
    (void)state;
    handoff_backend_free(backend);
    assert_false(exists(path));
}

static void child_that_frees_its_copy_leaves_the_handle_to_the_parent(void **state)
{
    (void)state;
    pid_t child = start_child();
    if (child == 0) {
        handoff_backend_free(backend);
        _exit(!exists(path));
    }
    assert_child_succeeds(child);
    assert_ok(handoff_backend_dispatch(backend));
    handoff_backend_free(backend);
    assert_false(exists(path));
}

static void assert_is_another_processes(void)
{
    const handoff_status wrong = HANDOFF_ERR_WRONG_PROCESS;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    int fd = -7;
    child_assert(handoff_backend_fd(backend) == -1);
    child_assert(handoff_backend_dispatch(backend) == wrong);
    child_assert(handoff_backend_accept(backend, 0, &arrival) == wrong);
    child_assert(handoff_backend_next(backend, &arrival) == wrong);
    child_assert(handoff_backend_adopt(backend, 1, &fd) == wrong);
    child_assert(handoff_backend_reject(backend, 1, HANDOFF_REASON_REJECTED) == wrong);
    child_assert(handoff_backend_drain(backend) == wrong);
    child_assert(handoff_backend_wake(backend) == wrong);
}

/* Draining is a use, because the socket is gone then. It opens nothing: neither a limit of descriptors
 * nor one of memory keeps a place from being given free. */
static void process_that_only_drains_it_has_the_handle(void **state)
{
    (void)state;
    int pair[2];
    make_pair(SOCK_STREAM, pair);
    pid_t child = start_child();
    if (child == 0) {
        await(pair[1]);
        assert_is_another_processes();
        handoff_backend_free(backend);
        _exit(0);
    }
    rlim_t limit = allow_no_more_descriptors();
    assert_ok(handoff_backend_drain(backend));
    allow_descriptors(limit);
    assert_false(exists(path));
    say(pair[0]);
    assert_child_succeeds(child);
    assert_ok(handoff_backend_drain(backend));
    assert_ok(handoff_backend_dispatch(backend));
    handoff_backend_free(backend);
    close_pair(pair);
}

static void child_that_only_drains_it_has_the_handle_and_its_file(void **state)
{
    (void)state;
    pid_t child = start_child();
    if (child == 0) {
        child_assert(handoff_backend_drain(backend) == HANDOFF_OK && !exists(path));
        handoff_backend_free(backend);
        _exit(0);
    }
    assert_child_succeeds(child);
    assert_is_another_processes();
    handoff_backend_free(backend);
}

static void id_of_nothing_leaves_the_handle_unused(void **state)
{
    (void)state;
    handoff_broker *broker;
    int fd = -7;
    assert_ok(handoff_broker_new(path, NULL, &broker));
    rlim_t limit = allow_no_more_descriptors();
    assert_invalid(handoff_backend_adopt(backend, 1, &fd));
    assert_invalid(handoff_backend_reject(backend, 1, HANDOFF_REASON_REJECTED));
    assert_status(handoff_broker_take_back(broker, 1), HANDOFF_ERR_TOO_LATE);
    assert_ok(handoff_broker_close(broker));
    assert_status(handoff_broker_take_back(broker, 1), HANDOFF_ERR_CLOSED);
    allow_descriptors(limit);
    handoff_broker_free(broker);
    pid_t child = start_child();
    if (child == 0) {
        child_assert(handoff_backend_dispatch(backend) == HANDOFF_OK);
        handoff_backend_free(backend);
        _exit(0);
    }
    assert_child_succeeds(child);
    handoff_backend_free(backend);
}

/* One child uses it; then neither its sibling nor the parent can, also after its end. */
static void use_in_one_child_only(void)
{
    int pair[2];
    make_pair(SOCK_STREAM, pair);
    pid_t first = start_child();
    if (first == 0) {
        child_assert(handoff_backend_dispatch(backend) == HANDOFF_OK);
        say(pair[1]);
        await(pair[1]);
        child_assert(handoff_backend_dispatch(backend) == HANDOFF_OK);
        _exit(0);
    }
    await(pair[0]);
    for (int ended = 0; ended < 2; ended++) {
        pid_t second = start_child();
        if (second == 0) {
            assert_is_another_processes();
            handoff_backend_free(backend);
            _exit(0);
        }
        assert_child_succeeds(second);
        assert_is_another_processes();
        if (!ended) {
            say(pair[0]);
            assert_child_succeeds(first);
        }
    }
    close_pair(pair);
}

static void second_child_is_told_that_the_handle_is_the_first_ones(void **state)
{
    (void)state;
    use_in_one_child_only();
    handoff_backend_free(backend);
    /* Its owner did not free it. */
    assert_true(exists(path));
}

static void second_child_is_told_that_a_handle_on_a_given_socket_is_the_first_ones(void **state)
{
    (void)state;
    handoff_raw_listener *listener;
    handoff_raw_listener_options options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
    options.socket_type = HANDOFF_RAW_SEQPACKET;
    handoff_backend_free(backend);
    assert_ok(handoff_raw_listener_new(path, &options, &listener));
    int fd = handoff_raw_listener_fd(listener);
    assert_ok(handoff_backend_listen_on(fd, NULL, &backend));
    use_in_one_child_only();
    handoff_backend_free(backend);
    /* Each child can have a backend of its own on the socket. */
    for (int i = 0; i < 2; i++) {
        pid_t child = start_child();
        if (child == 0) {
            child_assert(handoff_backend_listen_on(fd, NULL, &backend) == HANDOFF_OK);
            child_assert(handoff_backend_dispatch(backend) == HANDOFF_OK);
            _exit(0);
        }
        assert_child_succeeds(child);
    }
    handoff_raw_listener_free(listener);
}

/* All at once, so that they compete. */
static void of_children_that_use_it_together_one_has_it(void **state)
{
    (void)state;
    enum { CHILDREN = 8 };
    int pair[2], has[CHILDREN] = {0}, winners = 0;
    pid_t children[CHILDREN];
    make_pair(SOCK_SEQPACKET, pair);
    for (int i = 0; i < CHILDREN; i++) {
        children[i] = start_child();
        if (children[i] == 0) {
            char has_it;
            await(pair[1]);
            handoff_status status = handoff_backend_dispatch(backend);
            child_assert(status == HANDOFF_OK || status == HANDOFF_ERR_WRONG_PROCESS);
            has_it = status == HANDOFF_OK;
            child_assert(write(pair[1], &has_it, 1) == 1);
            _exit(0);
        }
    }
    for (int i = 0; i < CHILDREN; i++)
        say(pair[0]);
    for (int i = 0; i < CHILDREN; i++) {
        char has_it;
        assert_child_succeeds(children[i]);
        assert_int_equal(read(pair[0], &has_it, 1), 1);
        has[i] = has_it;
        winners += has[i];
    }
    assert_int_equal(winners, 1);
    handoff_backend_free(backend);
    close_pair(pair);
}

/* A server that forks its workers, and serves too. */
static void each_copy_of_a_broker_is_a_broker_of_its_own(void **state)
{
    (void)state;
    enum { WORKERS = 3 };
    static const uint32_t flags[] = {0, HANDOFF_BROKER_SHARED};
    for (int kind = 0; kind < 2; kind++) {
        handoff_broker *broker;
        handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
        pid_t workers[WORKERS];
        options.flags = flags[kind];
        assert_ok(handoff_broker_new(path, &options, &broker));
        for (int i = 0; i < WORKERS; i++) {
            workers[i] = start_child();
            if (workers[i] == 0) {
                child_assert(hand_over(broker));
                handoff_broker_free(broker);
                _exit(0);
            }
        }
        for (int i = 0; i < WORKERS; i++)
            assert_ok(accept_one());
        for (int i = 0; i < WORKERS; i++)
            assert_child_succeeds(workers[i]);
        pid_t client = start_child();
        if (client == 0) {
            child_assert(hand_over(broker));
            _exit(0);
        }
        assert_ok(accept_one());
        assert_child_succeeds(client);
        handoff_broker_free(broker);
    }
    assert_int_equal(backend_statistics(backend).accepted, 2 * (WORKERS + 1));
    handoff_backend_free(backend);
    assert_false(exists(path));
}

/* What it would leave open, a timer, would be one for all copies. */
static void first_use_that_fails_leaves_nothing_to_share(void **state)
{
    (void)state;
    handoff_broker *broker;
    int before;
    assert_ok(handoff_broker_new(path, NULL, &broker));
    before = count_descriptors();
    no_watches = true;
    assert_int_equal(handoff_broker_fd(broker), -1);
    assert_int_equal(errno, ENOSPC);
    assert_int_equal(handoff_backend_fd(backend), -1);
    assert_int_equal(errno, ENOSPC);
    no_watches = false;
    assert_int_equal(count_descriptors(), before);
    pid_t child = start_child();
    if (child == 0) {
        child_assert(hand_over(broker));
        handoff_broker_free(broker);
        _exit(0);
    }
    assert_ok(accept_one());
    assert_child_succeeds(child);
    connect_broker(broker, backend);
    handoff_broker_free(broker);
    handoff_backend_free(backend);
}

/* Forked while handles are in use, it never calls the library, and ends when it is told. */
static pid_t start_helper(int socket)
{
    pid_t child = start_child();
    if (child != 0)
        return child;
    await(socket);
    _exit(0);
}

static void channels_end_although_a_helper_has_copies_of_them(void **state)
{
    (void)state;
    int helper[2], client[2];
    handoff_broker *broker;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    make_pair(SOCK_STREAM, helper);
    make_pair(SOCK_STREAM, client);
    handoff_offer offer = offer_of(client[0]);
    offer.timeout_ms = PATIENCE_MS;
    assert_ok(handoff_broker_new(path, NULL, &broker));
    connect_broker(broker, backend);
    pid_t first = start_helper(helper[1]);
    uint64_t start = now_ns();
    assert_ok(handoff_broker_offer(broker, &offer, NULL));
    handoff_backend_free(backend);
    while (!next_verdict(broker, &verdict)) {
        await_readable(handoff_broker_fd(broker));
        assert_ok(handoff_broker_dispatch(broker));
    }
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, HANDOFF_REASON_BACKEND_UNAVAILABLE);
    assert_in_range(ms_since(start), 0, PATIENCE_MS / 2);
    assert_ok(handoff_backend_listen(path, NULL, &backend));
    handoff_broker_free(broker);
    assert_ok(handoff_broker_new(path, NULL, &broker));
    connect_broker(broker, backend);
    pid_t second = start_helper(helper[1]);
    handoff_broker_free(broker);
    assert_ok(handoff_backend_dispatch(backend));
    assert_int_equal(backend_statistics(backend).channels, 0);
    say(helper[0]);
    say(helper[0]);
    assert_child_succeeds(first);
    assert_child_succeeds(second);
    handoff_backend_free(backend);
    close_pair(helper);
    close_pair(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FORK_TEST(file_stays_when_the_parent_frees_what_its_child_uses),
        FORK_TEST(file_stays_when_the_parent_frees_what_its_child_will_use),
        FORK_TEST(file_goes_with_the_child_that_uses_it_and_a_successor_can_listen),
        FORK_TEST(file_goes_with_a_handle_that_nobody_uses),
        FORK_TEST(child_that_frees_its_copy_leaves_the_handle_to_the_parent),
        FORK_TEST(process_that_only_drains_it_has_the_handle),
        FORK_TEST(child_that_only_drains_it_has_the_handle_and_its_file),
        FORK_TEST(id_of_nothing_leaves_the_handle_unused),
        FORK_TEST(second_child_is_told_that_the_handle_is_the_first_ones),
        FORK_TEST(second_child_is_told_that_a_handle_on_a_given_socket_is_the_first_ones),
        FORK_TEST(of_children_that_use_it_together_one_has_it),
        FORK_TEST(each_copy_of_a_broker_is_a_broker_of_its_own),
        FORK_TEST(first_use_that_fails_leaves_nothing_to_share),
        FORK_TEST(channels_end_although_a_helper_has_copies_of_them),
    };
    return RUN_TESTS(tests);
}
