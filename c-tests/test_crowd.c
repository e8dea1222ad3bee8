/*
 * Many more clients at once than can be in flight: a broker that keeps them in a queue of its own,
 * and offers them for as long as handoff_broker_room() says so, hands over all of them.
 *
 * HANDOFF_CROWD clients (18000), or as many as RLIMIT_NOFILE allows.
 */
#define _GNU_SOURCE
#include "channel.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { MOST_BACKENDS = 4 };

static char directory[64];

static int make_place(void **state)
{
    descriptors_before(state);
    make_directory(directory);
    return 0;
}

static int remove_place(void **state)
{
    remove_directory(directory);
    return descriptors_after(state);
}

#define CROWD_TEST(function) cmocka_unit_test_setup_teardown(function, make_place, remove_place)

enum { AT_ONCE = 100, OTHERS = 400 };

/* The clients that there can be: broker and clients have one end of each. */
static size_t allow_clients(void)
{
    const char *wanted = getenv("HANDOFF_CROWD");
    size_t count = wanted != NULL ? strtoull(wanted, NULL, 10) : 18000;
    struct rlimit limit = {count + OTHERS, count + OTHERS}, before;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    if (before.rlim_max >= limit.rlim_max)
        limit.rlim_max = before.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
        limit.rlim_cur = limit.rlim_max = before.rlim_max;
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
        count = limit.rlim_cur - OTHERS;
    }
    return count;
}

/* A process that is all clients: it sends the broker's ends, and each of its own must get one answer
   and no more. */
static pid_t start_clients(size_t count, int *socket)
{
    int pair[2];
    make_pair(SOCK_SEQPACKET, pair);
    pid_t child = start_child();
    if (child == 0) {
        int *ends = calloc(count, sizeof *ends), theirs[AT_ONCE];
        close(pair[0]);
        for (size_t i = 0; i < count; i++) {
            int ours[2];
            child_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ours) == 0);
            theirs[i % AT_ONCE] = ours[0];
            ends[i] = ours[1];
            if (i % AT_ONCE == AT_ONCE - 1 || i == count - 1) {
                send_raw(pair[1], "", 1, theirs, i % AT_ONCE + 1);
                for (size_t k = 0; k <= i % AT_ONCE; k++)
                    close(theirs[k]);
            }
        }
        for (size_t i = 0; i < count; i++) {
            char bytes[2];
            child_assert(read(ends[i], bytes, 2) == 1 && bytes[0] == 'a');
            child_assert(read(ends[i], bytes, 1) == 0);
        }
        _exit(0);
    }
    close(pair[1]);
    *socket = pair[0];
    return child;
}

static void receive_clients(int socket, int *clients, size_t count)
{
    union {
        char bytes[CMSG_SPACE(AT_ONCE * sizeof(int))];
        struct cmsghdr align;
    } control;
    for (size_t received = 0; received < count;) {
        char byte;
        struct iovec iov = {&byte, 1};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                                 .msg_controllen = sizeof control};
        assert_int_equal(recvmsg(socket, &message, MSG_CMSG_CLOEXEC), 1);
        assert_int_equal(message.msg_flags & MSG_CTRUNC, 0);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        size_t len = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(clients + received, CMSG_DATA(header), len * sizeof(int));
        received += len;
    }
    close(socket);
}

/* Answers each client with one byte, until it is killed. */
static pid_t start_backend(int which)
{
    char path[100];
    int ready[2];
    snprintf(path, sizeof path, "%s/%d.sock", directory, which);
    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    pid_t child = start_child();
    if (child == 0) {
        handoff_backend *backend;
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        child_assert(handoff_backend_listen(path, NULL, &backend) == HANDOFF_OK);
        child_assert(write(ready[1], "r", 1) == 1);
        while (handoff_backend_accept(backend, -1, &arrival) == HANDOFF_OK) {
            child_assert(write(arrival.fd, "a", 1) == 1);
            close(arrival.fd);
        }
        _exit(1);
    }
    assert_int_equal(read(ready[0], &(char){0}, 1), 1);
    close(ready[0]);
    close(ready[1]);
    return child;
}

static void hand_over_crowd(int backends)
{
    skip_under_valgrind("it changes the limit of descriptors");
    size_t count = allow_clients(), queued, adopted = 0, most_in_flight = 0;
    int *clients = calloc(count, sizeof *clients), socket;
    pid_t children[MOST_BACKENDS];
    char path[100];
    handoff_broker *broker;
    for (int i = 0; i < backends; i++)
        children[i] = start_backend(i);
    pid_t crowd = start_clients(count, &socket);
    receive_clients(socket, clients, count);
    snprintf(path, sizeof path, "%s/%s", directory, backends == 1 ? "0.sock" : "");
    assert_ok(handoff_broker_new(path, NULL, &broker));

    uint64_t start = now_ns();
    struct pollfd poll_fd = {.fd = handoff_broker_fd(broker), .events = POLLIN};
    for (queued = 0; adopted < count;) {
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        for (; queued < count && handoff_broker_room(broker) > 0; queued++) {
            handoff_offer offer = offer_of(clients[queued]);
            offer.user_data = &clients[queued];
            assert_ok(handoff_broker_offer(broker, &offer, NULL));
        }
        if (queued - adopted > most_in_flight)
            most_in_flight = queued - adopted;
        assert_int_equal(poll(&poll_fd, 1, PATIENCE_MS), 1);
        assert_ok(handoff_broker_dispatch(broker));
        for (; next_verdict(broker, &verdict); adopted++) {
            assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
            close(*(int *)verdict.user_data);
        }
    }
    uint64_t took = ms_since(start);
    handoff_broker_statistics statistics = broker_statistics(broker);
    assert_int_equal(statistics.refused, 0);
    assert_int_equal(statistics.adopted, count);
    assert_child_succeeds(crowd);
    printf("%zu clients at once, %d backends: none was refused, at most %zu in flight, %lu ms\n",
           count, backends, most_in_flight, (unsigned long)took);
    handoff_broker_free(broker);
    for (int i = 0; i < backends; i++) {
        kill(children[i], SIGKILL);
        waitpid(children[i], NULL, 0);
    }
    free(clients);
}

static void nobody_is_refused_at_one_backend(void **state)
{
    (void)state;
    hand_over_crowd(1);
}

static void nobody_is_refused_at_a_directory_of_backends(void **state)
{
    (void)state;
    hand_over_crowd(MOST_BACKENDS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CROWD_TEST(nobody_is_refused_at_one_backend),
        CROWD_TEST(nobody_is_refused_at_a_directory_of_backends),
    };
    return RUN_TESTS(tests);
}
