/*
 * The places for brokers: who takes them, how many, and that those who get none take little of the
 * backend's time.
 */
#define _GNU_SOURCE
#include "channel.h"
#include "frames.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

static struct channel channel;

static void begin(const handoff_backend_options *options)
{
    make_directory(channel.directory);
    assert_int_equal(chmod(channel.directory, 0755), 0);
    snprintf(channel.path, sizeof channel.path, "%s/socket", channel.directory);
    assert_ok(handoff_backend_listen(channel.path, options, &channel.backend));
    assert_int_not_equal(handoff_backend_fd(channel.backend), -1);
}

static void end(void)
{
    handoff_backend_free(channel.backend);
    remove_directory(channel.directory);
}

static handoff_backend_statistics dispatched(void)
{
    assert_ok(handoff_backend_dispatch(channel.backend));
    return backend_statistics(channel.backend);
}

/* Says hello as a broker does. Returns the socket. */
static int say_hello(int socket)
{
    static struct frame frame;
    int table = memfd_create("table", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_not_equal(socket, -1);
    assert_int_equal(ftruncate(table, 8), 0);
    assert_int_equal(fcntl(table, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    frame_hello(&frame, 1, table);
    assert_int_equal(frame_send(socket, &frame), 0);
    close(table);
    return socket;
}

static bool is_open(int socket)
{
    struct pollfd poll_fd = {.fd = socket, .events = POLLIN};
    return poll(&poll_fd, 1, 0) == 0 || (poll_fd.revents & POLLHUP) == 0;
}

/* ---- those who connect without end ------------------------------------------------------------ */

enum { STRANGERS = 100, MOST_AT_ONCE = 32 };

/* Only another user may connect. */
static const uint32_t other = 4242;
static const handoff_peer_policy others_only = {
    .size = sizeof others_only, .users = &other, .users_len = 1};

static void one_dispatch_turns_away_few_of_many_strangers(void **state)
{
    (void)state;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.policy = &others_only;
    begin(&options);
    int strangers[STRANGERS];
    for (int i = 0; i < STRANGERS; i++)
        strangers[i] = packets_connect(channel.path);
    uint64_t before = 0;
    while (before < STRANGERS) {
        await_readable(handoff_backend_fd(channel.backend));
        uint64_t refused = dispatched().refused;
        assert_in_range(refused - before, 1, MOST_AT_ONCE);
        before = refused;
    }
    assert_int_equal(backend_statistics(channel.backend).refused_over_limit, 0);
    for (int i = 0; i < STRANGERS; i++) {
        assert_true(channel_ends(strangers[i]));
        close(strangers[i]);
    }
    end();
}

/* An event loop that asks for edges hears of those who are left for the next time. */
static void edges_tell_of_the_strangers_that_are_left(void **state)
{
    (void)state;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.policy = &others_only;
    begin(&options);
    int strangers[STRANGERS], set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    assert_int_equal(epoll_ctl(set, EPOLL_CTL_ADD, handoff_backend_fd(channel.backend), &event), 0);
    for (int i = 0; i < STRANGERS; i++)
        strangers[i] = packets_connect(channel.path);
    while (backend_statistics(channel.backend).refused < STRANGERS) {
        assert_int_equal(epoll_wait(set, &event, 1, PATIENCE_MS), 1);
        dispatched();
    }
    for (int i = 0; i < STRANGERS; i++)
        close(strangers[i]);
    close(set);
    end();
}

static void many_brokers_that_connect_together_are_all_accepted(void **state)
{
    (void)state;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_channels = STRANGERS;
    begin(&options);
    int brokers[STRANGERS];
    for (int i = 0; i < STRANGERS; i++)
        brokers[i] = say_hello(packets_connect(channel.path));
    while (backend_statistics(channel.backend).accepted < STRANGERS) {
        await_readable(handoff_backend_fd(channel.backend));
        dispatched();
    }
    assert_int_equal(backend_statistics(channel.backend).refused, 0);
    for (int i = 0; i < STRANGERS; i++)
        close(brokers[i]);
    while (dispatched().channels > 0)
        ;
    end();
}

static void connection_that_says_nothing_is_no_broker(void **state)
{
    (void)state;
    begin(NULL);
    /* Probes: this one has gone when it is accepted, the next one goes then. */
    close(packets_connect(channel.path));
    dispatched();
    int probe = packets_connect(channel.path);
    assert_int_equal(dispatched().channels, 1);
    close(probe);
    handoff_backend_statistics found = dispatched();
    assert_int_equal(found.channels, 0);
    assert_int_equal(found.accepted, 0);
    assert_int_equal(found.broken, 0);
    int broker = say_hello(packets_connect(channel.path));
    assert_int_equal(dispatched().accepted, 1);
    close(broker);
    /* So does a backend that wants to know whether somebody listens on the path. */
    handoff_backend *second;
    assert_status(handoff_backend_listen(channel.path, NULL, &second), HANDOFF_ERR_ADDRESS_IN_USE);
    assert_int_equal(dispatched().accepted, 1);
    end();
}

/* ---- the places of one user ------------------------------------------------------------------- */

static void user_gets_no_more_places_than_one_user_may_have(void **state)
{
    (void)state;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_channels = 8;
    options.max_channels_per_user = 2;
    begin(&options);
    int first = say_hello(packets_connect(channel.path)), second = packets_connect(channel.path);
    int third = say_hello(packets_connect(channel.path));
    handoff_backend_statistics found = dispatched();
    assert_int_equal(found.channels, 2);
    assert_int_equal(found.refused, 1);
    assert_int_equal(found.refused_over_limit, 1);
    assert_true(is_open(first) && is_open(second));
    assert_true(channel_ends(third));
    close(third);
    /* A place is free again when its broker has gone, whether it has said hello or not. */
    close(first);
    close(second);
    while (dispatched().channels > 0)
        ;
    first = say_hello(packets_connect(channel.path));
    second = say_hello(packets_connect(channel.path));
    assert_int_equal(dispatched().channels, 2);
    assert_int_equal(backend_statistics(channel.backend).refused_over_limit, 1);
    close(first);
    close(second);
    end();
}

/* The place of a broker that has gone is free when nothing of it is held any more. */
static void broker_that_goes_keeps_its_place_for_what_is_held(void **state)
{
    (void)state;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_channels_per_user = 1;
    int client[2], fd;
    open_channel(&channel, NULL, &options);
    make_pair(SOCK_STREAM, client);
    offer_fd(&channel, client[0]);
    handoff_arrival arrival = arrival_of(&channel);
    assert_ok(handoff_broker_close(channel.broker));
    int next = packets_connect(channel.path);
    handoff_backend_statistics found = dispatched();
    assert_int_equal(found.refused_over_limit, 1);
    assert_true(channel_ends(next));
    close(next);
    assert_status(handoff_backend_adopt(channel.backend, arrival.id, &fd), HANDOFF_ERR_TAKEN_BACK);
    dispatched();
    next = say_hello(packets_connect(channel.path));
    assert_int_equal(dispatched().channels, 1);
    close(next);
    close_channel(&channel);
    close(client[0]);
    close(client[1]);
}

/* Takes as many places as there are for one user, as nobody. */
static void take_all_places_as_nobody(int count)
{
    pid_t child = start_child();
    if (child == 0) {
        become_nobody();
        for (int i = 0; i < count; i++)
            child_assert(packets_connect(channel.path) != -1);
        for (;;)
            pause();
    }
}

static void users_of_a_policy_leave_places_to_each_other(void **state)
{
    (void)state;
    need_root();
    static const uint32_t users[] = {0, NOBODY};
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    policy.users = users;
    policy.users_len = 2;
    options.policy = &policy;
    options.mode = 0666;
    options.max_channels = 8;
    begin(&options);
    take_all_places_as_nobody(12);
    while (backend_statistics(channel.backend).refused_over_limit < 5) {
        await_readable(handoff_backend_fd(channel.backend));
        dispatched();
    }
    assert_int_equal(backend_statistics(channel.backend).channels, 7);
    int broker = say_hello(packets_connect(channel.path));
    assert_int_equal(dispatched().accepted, 1);
    close(broker);
    end();
}

static void only_user_of_a_policy_may_have_all_places(void **state)
{
    (void)state;
    uint32_t user = geteuid();
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    policy.users = &user;
    policy.users_len = 1;
    options.policy = &policy;
    options.max_channels = 3;
    begin(&options);
    int brokers[4];
    for (int i = 0; i < 4; i++)
        brokers[i] = packets_connect(channel.path);
    handoff_backend_statistics found = dispatched();
    assert_int_equal(found.channels, 3);
    assert_int_equal(found.refused_over_limit, 1);
    for (int i = 0; i < 4; i++)
        close(brokers[i]);
    end();
}

/* ---- as many as there can be ------------------------------------------------------------------ */

static size_t number(const char *name, size_t otherwise)
{
    const char *value = getenv(name);
    return value == NULL ? otherwise : strtoul(value, NULL, 10);
}

static uint64_t lap(const char *what, size_t count, uint64_t start)
{
    uint64_t now = now_ns();
    print_message("%s: %.2f us for each of %zu\n", what, (double)(now - start) / 1000.0 / (double)count,
                  count);
    return now_ns();
}

/* Prints what the backend's loops over channels cost for each of them: it must not grow with their
   number. HANDOFF_TEST_CHANNELS is that number. */
static void many_channels_come_and_go(void **state)
{
    (void)state;
    size_t count = number("HANDOFF_TEST_CHANNELS", 300);
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_channels = count;
    options.max_in_flight = 1;
    begin(&options);
    int *brokers = calloc(count, sizeof *brokers);
    uint64_t start = now_ns();
    for (size_t i = 0; i < count; i++) {
        brokers[i] = packets_connect(channel.path);
        if (i % 10 == 9)
            dispatched();
    }
    while (dispatched().channels < count)
        ;
    start = lap("connect", count, start);
    for (size_t i = 0; i < count; i++)
        dispatched();
    start = lap("dispatch, all silent", count, start);
    for (size_t i = 0; i < count; i++)
        say_hello(brokers[i]);
    while (dispatched().accepted < count)
        ;
    start = lap("hello", count, start);
    for (size_t i = 0; i < count; i++)
        dispatched();
    start = lap("dispatch, nothing to do", count, start);
    assert_ok(handoff_backend_drain(channel.backend));
    start = lap("drain", count, start);
    for (size_t i = 0; i < count; i++)
        close(brokers[i]);
    start = now_ns();
    while (dispatched().channels > 0)
        ;
    lap("end", count, start);
    free(brokers);
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(one_dispatch_turns_away_few_of_many_strangers),
        TEST(edges_tell_of_the_strangers_that_are_left),
        TEST(many_brokers_that_connect_together_are_all_accepted),
        TEST(connection_that_says_nothing_is_no_broker),
        TEST(user_gets_no_more_places_than_one_user_may_have),
        TEST(broker_that_goes_keeps_its_place_for_what_is_held),
        TEST(users_of_a_policy_leave_places_to_each_other),
        TEST(only_user_of_a_policy_may_have_all_places),
        TEST(many_channels_come_and_go),
    };
    return RUN_TESTS(tests);
}
