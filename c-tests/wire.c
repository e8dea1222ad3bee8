#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

const int wire_stream = SOCK_STREAM, wire_seqpacket = SOCK_SEQPACKET;

volatile sig_atomic_t interruptions, interruptions_pipe = -1;

static void set_timer(int interval_us)
{
    struct itimerval every = {.it_interval.tv_usec = interval_us, .it_value.tv_usec = interval_us};
    assert_int_equal(setitimer(ITIMER_REAL, &every, NULL), 0);
}

void stop_interrupting(void)
{
    set_timer(0);
    interruptions_pipe = -1;
}

int wire_open(void **state)
{
    static struct wire wire;
    descriptors_before(state);
    wire.type = *(const int *)*state;
    int pair[2], tcp[2];
    make_pair(wire.type, pair);
    make_tcp_pair(tcp);
    wire.broker = pair[0];
    wire.backend = pair[1];
    wire.connection = tcp[0];
    wire.client = tcp[1];
    assert_ok(handoff_raw_store_new(NULL, &wire.store));
    assert_ok(handoff_raw_store_issue(wire.store, &wire.token));
    *state = &wire;
    return 0;
}

int wire_close(void **state)
{
    struct wire *wire = *state;
    stop_interrupting();
    close_end(&wire->broker);
    close_end(&wire->backend);
    close_end(&wire->connection);
    close_end(&wire->client);
    handoff_raw_store_free(wire->store);
    return descriptors_after(state);
}

void close_end(int *end)
{
    if (*end != -1)
        close(*end);
    *end = -1;
}

struct place make_place(void)
{
    struct place place;
    make_directory(place.directory);
    snprintf(place.path, sizeof place.path, "%.60s/socket", place.directory);
    return place;
}

handoff_raw_listener *listen_at(const char *path, int type)
{
    handoff_raw_listener_options options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
    handoff_raw_listener *listener;
    options.socket_type = type == SOCK_STREAM ? HANDOFF_RAW_STREAM : HANDOFF_RAW_SEQPACKET;
    assert_ok(handoff_raw_listener_new(path, &options, &listener));
    return listener;
}

static int readable(int socket, int timeout_ms)
{
    struct pollfd poll_for = {.fd = socket, .events = POLLIN};
    return poll(&poll_for, 1, timeout_ms);
}

void assert_client_sees_end(struct wire *wire)
{
    char byte;
    close_end(&wire->connection);
    assert_int_equal(readable(wire->client, PATIENCE_MS), 1);
    assert_int_equal(recv(wire->client, &byte, 1, MSG_DONTWAIT), 0);
}

void assert_reaches_client(const struct wire *wire, int fd)
{
    char bytes[5];
    assert_int_equal(write(fd, "hello", 5), 5);
    assert_int_equal(recv(wire->client, bytes, 5, MSG_WAITALL), 5);
    assert_memory_equal(bytes, "hello", 5);
}

void assert_nothing_to_read(int socket)
{
    assert_int_equal(readable(socket, 0), 0);
}

int lowest_free_descriptor(void)
{
    int fd = dup(0);
    assert_int_not_equal(fd, -1);
    close(fd);
    return fd;
}

static void count_interruption(int signal)
{
    (void)signal;
    int saved = errno;
    interruptions++;
    if (interruptions_pipe != -1 && write(interruptions_pipe, "", 1) != 1)
        abort();
    errno = saved;
}

void start_interrupting(void)
{
    /* Without SA_RESTART, so that system calls end with EINTR. */
    struct sigaction action = {.sa_handler = count_interruption};
    interruptions = 0;
    assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
    set_timer(2000);
}
