/* The workers and brokers of spread.c. */
#define _GNU_SOURCE
#include "spread.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>

/* ---- a worker -------------------------------------------------------------------------------- */

static void serve(handoff_backend *backend, uint64_t arrival, int which)
{
    int fd;
    handoff_status status = handoff_backend_adopt(backend, arrival, &fd);
    if (status == HANDOFF_ERR_TAKEN_BACK)
        return;
    check(status == HANDOFF_OK);
    check(write(fd, &(char){'w'}, 1) == 1);
    close(fd);
    shared->answers[which]++;
}

/** Returns whether it shall stop: it has a client that is not answered at no other time. */
static void hold_if_told(int which)
{
    if (!shared->holds[which])
        return;
    shared->holding[which] = true;
    for (;;)
        pause();
}

void run_worker(int which)
{
    char path[64];
    handoff_backend *backend;
    handoff_status status;
    socket_path(path, which);
    /* Its predecessor may not have begun to drain yet. */
    while ((status = handoff_backend_listen(path, NULL, &backend)) == HANDOFF_ERR_ADDRESS_IN_USE)
        nanosleep(&(struct timespec){.tv_nsec = MS / 2}, NULL);
    check(status == HANDOFF_OK);
    struct pollfd events[2] = {
        {.fd = handoff_backend_fd(backend), .events = POLLIN},
        {.fd = signalfd(-1, &terminate, 0), .events = POLLIN},
    };
    for (bool draining = false;;) {
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        handoff_backend_statistics statistics = HANDOFF_BACKEND_STATISTICS_INIT;
        hold_if_told(which);
        check(poll(events, 2, 1) >= 0);
        if (events[1].revents) {
            check(handoff_backend_drain(backend) == HANDOFF_OK);
            draining = true;
            events[1].fd = -1;
        }
        check(handoff_backend_dispatch(backend) == HANDOFF_OK);
        while ((status = handoff_backend_next(backend, &arrival)) == HANDOFF_OK) {
            hold_if_told(which);
            serve(backend, arrival.id, which);
        }
        check(status == HANDOFF_NOTHING);
        check(handoff_backend_get_statistics(backend, &statistics) == HANDOFF_OK);
        if (draining && statistics.held == 0)
            break;
    }
    handoff_backend_free(backend);
    _exit(0);
}

/* ---- a broker and its clients ---------------------------------------------------------------- */

struct client {
    struct client *next;
    int ends[2]; /* the broker's, until it has its verdict, and its own, until it has its answer */
    int64_t begun;
};

static handoff_broker *broker;
static struct client clients[MOST_AT_ONCE];
static struct clients {
    struct client *first, *last;
} idle, queue;
static int epoll;

static void watch(int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

static void append(struct clients *list, struct client *client)
{
    client->next = NULL;
    *(list->first == NULL ? &list->first : &list->last->next) = client;
    list->last = client;
}

static void end_if_done(struct client *client)
{
    if (client->ends[0] != -1 || client->ends[1] != -1)
        return;
    append(&idle, client);
    shared->finished++;
}

static void close_end(struct client *client, int which)
{
    close(client->ends[which]);
    client->ends[which] = -1;
    end_if_done(client);
}

static void fall_back(struct client *client)
{
    shared->fallbacks++;
    check(write(client->ends[0], &(char){'b'}, 1) == 1);
    close_end(client, 0);
}

/** Offers those that wait, as long as there is room. */
static void offer_queue(void)
{
    struct client *client;
    while ((client = queue.first) != NULL && handoff_broker_room(broker) > 0) {
        handoff_offer offer = HANDOFF_OFFER_INIT;
        offer.fd = client->ends[0];
        offer.user_data = client;
        handoff_status status = handoff_broker_offer(broker, &offer, NULL);
        check(status == HANDOFF_OK || handoff_status_is_fallback_safe(status));
        queue.first = queue.first->next;
        if (status != HANDOFF_OK)
            fall_back(client);
    }
}

static void begin(struct client *client)
{
    idle.first = idle.first->next;
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, client->ends) == 0);
    client->begun = now();
    watch(client->ends[1], client);
    append(&queue, client);
}

static void take_answer(struct client *client)
{
    char byte;
    int64_t waited = now() - client->begun;
    if (read(client->ends[1], &byte, 1) != 1)
        shared->unanswered++;
    for (int64_t longest = shared->longest_wait; longest < waited;) {
        if (atomic_compare_exchange_weak(&shared->longest_wait, &longest, waited))
            break;
    }
    close_end(client, 1);
}

static void take_verdicts(void)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_status status;
    check(handoff_broker_dispatch(broker) == HANDOFF_OK);
    while ((status = handoff_broker_next(broker, &verdict)) == HANDOFF_OK) {
        if (verdict.outcome == HANDOFF_ADOPTED) {
            shared->failed_over += verdict.attempts > 1;
            close_end(verdict.user_data, 0);
        } else {
            fall_back(verdict.user_data);
        }
    }
    check(status == HANDOFF_NOTHING);
}

static int count_ready(void)
{
    int ready = 0;
    handoff_broker_backend_state state = HANDOFF_BROKER_BACKEND_STATE_INIT;
    handoff_status status;
    for (size_t i = 0;
         (status = handoff_broker_get_backend_state(broker, i, &state)) == HANDOFF_OK; i++)
        ready += state.state == HANDOFF_STATE_READY;
    check(status == HANDOFF_NOTHING);
    return ready;
}

static void make_broker(const struct setup *setup)
{
    char path[64];
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.attempt_timeout_ms = setup->attempt_timeout_ms;
    options.reconnect_max_ms = 100;
    snprintf(path, sizeof path, "%s/", directory);
    check(handoff_broker_new(setup->workers == 0 ? path : NULL, &options, &broker) == HANDOFF_OK);
    for (int i = 0; i < setup->workers; i++) {
        handoff_broker_backend backend = HANDOFF_BROKER_BACKEND_INIT;
        socket_path(path, i);
        backend.path = path;
        backend.weight = setup->weights[i];
        backend.flags = setup->flags[i];
        check(handoff_broker_add(broker, &backend) == HANDOFF_OK);
    }
}

void run_broker(int me, const struct setup *setup)
{
    int64_t next_begin = now(), next_count = now();
    make_broker(setup);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    check(epoll >= 0);
    watch(handoff_broker_fd(broker), &broker);
    for (int i = 0; i < setup->at_once; i++) {
        clients[i] = (struct client){.ends = {-1, -1}};
        append(&idle, &clients[i]);
    }
    for (;;) {
        int64_t time = now();
        struct client *client;
        while ((client = idle.first) != NULL && next_begin <= time
               && shared->begun < shared->limit) {
            if (shared->begun++ < shared->limit)
                begin(client);
            else
                shared->begun--;
            /* After a stop it does not make up for what it missed. */
            next_begin = next_begin + setup->pause < time - 10 * MS ? time
                                                                    : next_begin + setup->pause;
        }
        offer_queue();
        if (next_count <= time) {
            shared->ready[me] = count_ready();
            next_count = time + 5 * MS;
        }
        struct epoll_event events[64];
        int count = epoll_wait(epoll, events, 64, 1);
        check(count >= 0);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == &broker)
                take_verdicts();
            else
                take_answer(events[i].data.ptr);
        }
    }
}
