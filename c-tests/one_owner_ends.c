/* The broker and the backend of one_owner.c. */
#define _GNU_SOURCE
#include "one_owner.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>

static void answer(int fd, const char *text)
{
    check(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

/* ---- the broker ------------------------------------------------------------------------------ */

static void fall_back(uint32_t number, int fd)
{
    records[number].fallback = 1;
    answer(fd, "broker\n");
}

static void offer(handoff_broker *broker, int fd, uint32_t me)
{
    uint32_t number;
    check(read(fd, &number, sizeof number) == sizeof number && number < connections);
    records[number].broker = me;

    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = fd;
    offer.flags = HANDOFF_OFFER_MORE;
    offer.preread = &number;
    offer.preread_len = sizeof number;
    offer.user_data = (void *)((uintptr_t)number << 16 | (unsigned)fd);
    handoff_status status = handoff_broker_offer(broker, &offer, NULL);
    check(status == HANDOFF_OK || handoff_status_is_fallback_safe(status));
    if (status != HANDOFF_OK)
        fall_back(number, fd);
}

static void take_verdicts(handoff_broker *broker)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_status status;
    check(handoff_broker_dispatch(broker) == HANDOFF_OK);
    while ((status = handoff_broker_next(broker, &verdict)) == HANDOFF_OK) {
        int fd = (uintptr_t)verdict.user_data & 0xffff;
        if (verdict.outcome == HANDOFF_ADOPTED) {
            check(strncmp(verdict.backend, directory, strlen(directory)) == 0);
            counts->failed_over += verdict.tries > 1;
            close(fd);
        } else {
            fall_back((uint32_t)((uintptr_t)verdict.user_data >> 16), fd);
        }
    }
    check(status == HANDOFF_NOTHING);
}

static handoff_broker *make_broker(const char *path)
{
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.timeout_ms = deadline_ms;
    options.reconnect_min_ms = 1;
    options.reconnect_max_ms = 5;
    /* Failures are what this is about: they must not keep it from trying. */
    options.max_failures = HANDOFF_NO_LIMIT;
    if (backends == MOST_BACKENDS) {
        options.timeout_ms = MOST_BACKENDS * deadline_ms;
        options.attempt_timeout_ms = deadline_ms;
    }
    handoff_broker *broker;
    check(handoff_broker_new(path, &options, &broker) == HANDOFF_OK);
    return broker;
}

static void add_backend(handoff_broker *broker, int which)
{
    char path[64];
    handoff_broker_backend backend = HANDOFF_BROKER_BACKEND_INIT;
    socket_path(path, which);
    backend.path = path;
    backend.weight = 1 + lrand48() % 3;
    check(handoff_broker_add(broker, &backend) == HANDOFF_OK);
}

/** Changes the backends while offers are on their way. */
static void change_backends(handoff_broker *broker)
{
    static int away = -1;
    char path[64];
    if (away >= 0)
        add_backend(broker, away);
    away = lrand48() % 4 ? (int)(lrand48() % backends) : -1;
    if (away >= 0) {
        socket_path(path, away);
        check(handoff_broker_remove(broker, path) == HANDOFF_OK);
    }
}

static int make_brokers(enum handles handles, handoff_broker *brokers[MOST_BACKENDS])
{
    char path[64];
    if (handles == ONE_EACH) {
        for (int i = 0; i < backends; i++) {
            socket_path(path, i);
            brokers[i] = make_broker(path);
        }
        return backends;
    }
    snprintf(path, sizeof path, "%s/", directory);
    brokers[0] = make_broker(handles == DIRECTORY ? path : NULL);
    for (int i = 0; handles == ADDED && i < backends; i++)
        add_backend(brokers[0], i);
    return 1;
}

void run_broker(int listener, uint32_t me, enum handles handles)
{
    handoff_broker *brokers[MOST_BACKENDS];
    struct pollfd events[MOST_BACKENDS + 1];
    int count = make_brokers(handles, brokers);
    int64_t change_at = INT64_MAX;
    for (int i = 0; i < count; i++)
        events[i] = (struct pollfd){.fd = handoff_broker_fd(brokers[i]), .events = POLLIN};
    events[count] = (struct pollfd){.fd = listener, .events = POLLIN};
    if (handles == ADDED)
        change_at = now();
    for (unsigned turn = 0;;) {
        check(poll(events, (nfds_t)count + 1, -1) > 0);
        int client;
        while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
            offer(brokers[turn++ % (unsigned)count], client, me);
        check(errno == EAGAIN);
        for (int i = 0; i < count; i++)
            take_verdicts(brokers[i]);
        if (change_at <= now()) {
            change_backends(brokers[0]);
            change_at = now() + any_time(8 * deadline_ms * MS);
        }
    }
}

/* ---- a backend ------------------------------------------------------------------------------- */

/** An arrival until it is adopted, then a connection until it is answered. */
struct held {
    uint64_t id;
    int64_t due;
    int fd;
    uint32_t number;
};

/** Does what is due; returns whether there is more to do later. */
static bool go_on(handoff_backend *backend, struct held *held, uint32_t me, int place)
{
    struct record *record = &records[held->number];
    if (held->fd >= 0) {
        answer(held->fd, "backend\n");
        return false;
    }
    record->adopters[place] = me;
    handoff_status status = handoff_backend_adopt(backend, held->id, &held->fd);
    if (status == HANDOFF_ERR_TAKEN_BACK) {
        record->adopters[place] = 0;
        return false;
    }
    check(status == HANDOFF_OK);
    if (atomic_exchange(&record->adopted, me) != 0)
        record->again = me;
    held->due += any_time(MS);
    return true;
}

/** Its predecessor at the path may not have begun to drain yet. */
static handoff_backend *listen_in_turn(const char *path)
{
    handoff_backend *backend;
    handoff_status status;
    while ((status = handoff_backend_listen(path, NULL, &backend)) == HANDOFF_ERR_ADDRESS_IN_USE)
        nanosleep(&(struct timespec){.tv_nsec = MS / 2}, NULL);
    check(status == HANDOFF_OK);
    return backend;
}

void run_backend(int which, uint32_t me, int place)
{
    static struct held held[MAX_AT_ONCE];
    uint32_t count = 0;
    char path[64];
    socket_path(path, which);
    handoff_backend *backend = listen_in_turn(path);
    struct pollfd events[2] = {
        {.fd = handoff_backend_fd(backend), .events = POLLIN},
        {.fd = signalfd(-1, &terminate, 0), .events = POLLIN},
    };

    for (bool draining = false;;) {
        int64_t time = now(), next = time + 999 * MS;
        for (uint32_t i = 0; i < count;) {
            if (held[i].due <= time && !go_on(backend, &held[i], me, place)) {
                held[i] = held[--count];
                continue;
            }
            if (held[i].due < next)
                next = held[i].due;
            i++;
        }
        handoff_backend_statistics statistics = HANDOFF_BACKEND_STATISTICS_INIT;
        check(handoff_backend_get_statistics(backend, &statistics) == HANDOFF_OK);
        if (draining && count == 0 && statistics.held == 0)
            break;
        int64_t left = next - now();
        struct timespec timeout = {.tv_nsec = left > 0 ? left : 0};
        check(ppoll(events, 2, &timeout, NULL) >= 0);
        if (events[1].revents) {
            check(handoff_backend_drain(backend) == HANDOFF_OK);
            draining = true;
            events[1].fd = -1;
        }
        check(handoff_backend_dispatch(backend) == HANDOFF_OK);
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        handoff_status status;
        while ((status = handoff_backend_next(backend, &arrival)) == HANDOFF_OK) {
            struct held *new = &held[count++];
            check(count <= MAX_AT_ONCE && arrival.preread_len == sizeof new->number);
            memcpy(&new->number, arrival.preread, sizeof new->number);
            new->id = arrival.id;
            new->fd = -1;
            new->due = now() + any_time(2 * deadline_ms * MS);
        }
        check(status == HANDOFF_NOTHING);
    }
    handoff_backend_free(backend);
    _exit(0);
}
