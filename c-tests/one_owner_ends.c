/* The broker and the backend of one_owner.c. */
#define _GNU_SOURCE
#include "one_owner.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>

/* ---- the broker ------------------------------------------------------------------------------ */

enum { MOST_DESCRIPTORS = 2 * MAX_AT_ONCE };

/** What a broker has read of a client, by its descriptor. */
static struct connection {
    SSL *tls;
    struct request request;
    size_t len;
} connections_of[MOST_DESCRIPTORS];

/** Those whose number is not there. */
static int unnamed;

static ssize_t read_some(int fd, struct connection *connection, size_t room)
{
    void *at = (char *)&connection->request + connection->len;
    ssize_t len = connection->tls ? tls_read(connection->tls, at, room) : read(fd, at, room);
    check(len > 0 || (len < 0 && errno == EAGAIN));
    if (len > 0)
        connection->len += (size_t)len;
    return len;
}

/** Answers. Without the rest of the request another one must have read that. */
static void fall_back(uint32_t number, int fd)
{
    struct connection *connection = &connections_of[fd];
    struct request expected = request_of(number);
    char text[64];
    records[number].fallback = 1;
    while (connection->len < sizeof connection->request) {
        if (read_some(fd, connection, sizeof connection->request - connection->len) < 0
            && poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, rest_ms) == 0)
            break;
    }
    if (memcmp(&connection->request, &expected, connection->len) != 0
        || connection->len < sizeof expected)
        records[number].again = 1;
    size_t len = answer_of(text, "broker", number);
    if (connection->tls) {
        tls_write(connection->tls, text, len);
        tls_release(connection->tls);
    } else {
        check(write(fd, text, len) == (ssize_t)len);
    }
    close(fd);
}

/** Takes what of a client's request there is. Returns whether its number is. */
static bool read_number(int fd, struct connection *connection)
{
    if (read_some(fd, connection, sizeof connection->request.number) < 0)
        return false;
    check(connection->len == sizeof connection->request.number);
    if (connection->tls) {
        check(BIO_get_ktls_send(SSL_get_wbio(connection->tls)));
        check(BIO_get_ktls_recv(SSL_get_rbio(connection->tls)));
        /* The kernel has given OpenSSL all records that were there. */
        int more = SSL_pending(connection->tls);
        check(more == 0 || read_some(fd, connection, (size_t)more) == more);
        check(!SSL_has_pending(connection->tls));
    }
    return true;
}

static void offer(handoff_broker *broker, int fd, uint32_t me)
{
    struct connection *connection = &connections_of[fd];
    uint32_t number = connection->request.number;
    check(number < connections);
    records[number].broker = me;

    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = fd;
    offer.flags = HANDOFF_OFFER_MORE | (connection->tls ? HANDOFF_OFFER_TLS : 0);
    offer.preread = &connection->request;
    offer.preread_len = connection->len;
    offer.user_data = (void *)((uintptr_t)number << 16 | (unsigned)fd);
    handoff_status status = handoff_broker_offer(broker, &offer, NULL);
    check(status == HANDOFF_OK || handoff_status_is_fallback_safe(status));
    if (status != HANDOFF_OK)
        fall_back(number, fd);
}

/** Begins with a new client. Returns whether its number is there. */
static bool greet(int fd)
{
    check(fd < MOST_DESCRIPTORS);
    struct connection *connection = &connections_of[fd];
    *connection = (struct connection){.tls = tls ? tls_server(fd) : NULL};
    if (read_number(fd, connection))
        return true;
    /* Without TLS it was accepted because its number is there. */
    check(tls);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    check(epoll_ctl(unnamed, EPOLL_CTL_ADD, fd, &event) == 0);
    return false;
}

/** Goes on with the handshakes. Returns a client whose number is there, or -1. */
static int next_named(void)
{
    struct epoll_event event;
    while (epoll_wait(unnamed, &event, 1, 0) == 1) {
        int fd = event.data.fd;
        if (read_number(fd, &connections_of[fd])) {
            check(epoll_ctl(unnamed, EPOLL_CTL_DEL, fd, NULL) == 0);
            return fd;
        }
    }
    return -1;
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
            counts->failed_over += verdict.attempts > 1;
            if (tls)
                tls_release(connections_of[fd].tls);
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
    struct pollfd events[MOST_BACKENDS + 2];
    int count = make_brokers(handles, brokers);
    int64_t change_at = INT64_MAX;
    for (int i = 0; i < count; i++)
        events[i] = (struct pollfd){.fd = handoff_broker_fd(brokers[i]), .events = POLLIN};
    unnamed = epoll_create1(EPOLL_CLOEXEC);
    check(unnamed >= 0);
    events[count] = (struct pollfd){.fd = listener, .events = POLLIN};
    events[count + 1] = (struct pollfd){.fd = unnamed, .events = POLLIN};
    if (handles == ADDED)
        change_at = now();
    for (unsigned turn = 0;;) {
        check(poll(events, (nfds_t)count + 2, -1) > 0);
        int client;
        while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
            if (greet(client))
                offer(brokers[turn++ % (unsigned)count], client, me);
        }
        check(errno == EAGAIN);
        while ((client = next_named()) >= 0)
            offer(brokers[turn++ % (unsigned)count], client, me);
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
    struct request request;
    size_t len;
};

/** Reads the rest of the request, and answers. Without the rest another one must have read that. */
static void answer(struct held *held)
{
    struct request expected = request_of(held->request.number);
    char text[64];
    size_t len = answer_of(text, "backend", held->request.number), more;
    for (; held->len < sizeof held->request; held->len += more) {
        handoff_status status =
            handoff_tls_receive(held->fd, (char *)&held->request + held->len,
                                sizeof held->request - held->len, rest_ms, &more);
        if (status == HANDOFF_TIMED_OUT)
            break;
        check(status == HANDOFF_OK && more > 0);
    }
    if (memcmp(&held->request, &expected, held->len) != 0 || held->len < sizeof expected)
        records[expected.number].again = 1;
    check(write(held->fd, text, len) == (ssize_t)len);
    close(held->fd);
}

/** Does what is due; returns whether there is more to do later. */
static bool go_on(handoff_backend *backend, struct held *held, uint32_t me, int place)
{
    struct record *record = &records[held->request.number];
    if (held->fd >= 0) {
        answer(held);
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
            check(count <= MAX_AT_ONCE && arrival.tls == tls);
            check(arrival.preread_len >= sizeof new->request.number);
            check(arrival.preread_len <= sizeof new->request);
            memcpy(&new->request, arrival.preread, arrival.preread_len);
            new->len = arrival.preread_len;
            new->id = arrival.id;
            new->fd = -1;
            new->due = now() + any_time(2 * deadline_ms * MS);
        }
        check(status == HANDOFF_NOTHING);
    }
    handoff_backend_free(backend);
    _exit(0);
}
