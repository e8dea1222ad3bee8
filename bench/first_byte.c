/*
 * first_byte: how long a client waits for the first byte of its answer, from its connect(2) on,
 * when the broker hands it over, against the other ways to bring it to a backend: the broker sends
 * it there to connect anew, to a TCP or to a Unix socket, or copies the bytes between it and the
 * backend's Unix socket.
 *
 * Broker, backend and clients are processes of their own, the servers with an event loop each; both
 * read at once what has come, and wait only if nothing has. In each repetition every way is taken,
 * in turns first, REQUESTS (480) times, by one client and by 16 at a time; figures are medians over
 * REPETITIONS (31), ratios are within a repetition.
 */
#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BYTES = 128, MOST_CLIENTS = 16, REPETITIONS = 101 };

enum way { HANDOFF, RECONNECT_TCP, RECONNECT_UNIX, PROXY, WAYS };
static const char *const names[WAYS] = {"handoff", "reconnect, TCP", "reconnect, Unix socket",
                                        "proxy"};

struct address {
    union {
        struct sockaddr any;
        struct sockaddr_in tcp;
        struct sockaddr_un local;
    };
    socklen_t len;
};

/* Where the broker listens for the clients of each way, and where the backend does. */
static struct address broker_at[WAYS], backend_tcp, backend_unix;
static int broker_listeners[WAYS], backend_tcp_listener, backend_unix_listener;
static char handoff_path[64], message[BYTES];

/* ---- what both servers have in common ---- */

struct connection {
    int fd;
    enum way way;
    int client; /* whom to copy to what comes here; -1: this is a client itself */
};

static int epoll;

static void watch(int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    need(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "EPOLL_CTL_ADD");
}

static void end(struct connection *connection)
{
    close(connection->fd);
    free(connection);
}

static void answer(int fd)
{
    need(send(fd, message, BYTES, MSG_NOSIGNAL) == BYTES, "answering");
    shutdown(fd, SHUT_WR);
}

/* ---- the broker ---- */

static handoff_broker *broker;

/* The request is here whole, so what is left to copy is the answer. */
static void proxy(int client, const char *request, size_t len)
{
    struct connection *upstream = malloc(sizeof *upstream);
    need(upstream != NULL, "malloc");
    *upstream = (struct connection){.client = client, .way = PROXY};
    upstream->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(upstream->fd != -1 && connect(upstream->fd, &backend_unix.any, backend_unix.len) == 0 &&
         send(upstream->fd, request, len, MSG_NOSIGNAL) == (ssize_t)len, "to the backend");
    watch(upstream->fd, upstream);
}

static void copy(struct connection *upstream)
{
    char bytes[4096];
    ssize_t n = recv(upstream->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n > 0) {
        need(send(upstream->client, bytes, (size_t)n, MSG_NOSIGNAL) == n, "copying");
    } else {
        close(upstream->client);
        end(upstream);
    }
}

static void broker_reads(struct connection *client, int watched)
{
    char request[BYTES];
    ssize_t n = recv(client->fd, request, sizeof request, MSG_DONTWAIT);
    if (n == -1 && errno == EAGAIN) {
        watch(client->fd, client);
        return;
    }
    need(n == BYTES, "request");
    need(!watched || epoll_ctl(epoll, EPOLL_CTL_DEL, client->fd, NULL) == 0, "EPOLL_CTL_DEL");
    if (client->way == HANDOFF) {
        handoff_offer offer = HANDOFF_OFFER_INIT;
        offer.fd = client->fd;
        offer.preread = (const unsigned char *)request;
        offer.preread_len = (size_t)n;
        offer.user_data = client;
        offer.more = 1;
        need_handoff(handoff_broker_offer(broker, &offer, NULL), "handoff_broker_offer");
    } else if (client->way == PROXY) {
        proxy(client->fd, request, (size_t)n);
        free(client);
    } else {
        answer(client->fd); /* where the backend is */
        end(client);
    }
}

static void broker_accepts(enum way way)
{
    struct connection *client = malloc(sizeof *client);
    need(client != NULL, "malloc");
    *client = (struct connection){.way = way, .client = -1};
    client->fd = accept4(broker_listeners[way], NULL, NULL, SOCK_CLOEXEC);
    need(client->fd != -1, "accept");
    broker_reads(client, 0);
}

/* Hands the first connection over, for which it waits until the channel is there. */
static void broker_begins(void)
{
    int pair[2];
    handoff_offer offer = HANDOFF_OFFER_INIT;
    handoff_verdict verdict;
    connect_tcp(pair);
    offer.fd = pair[1];
    offer.preread = (const unsigned char *)message;
    offer.preread_len = BYTES;
    need_handoff(handoff_broker_offer_and_wait(broker, &offer, &verdict), "the first handoff");
    close(pair[0]);
    close(pair[1]);
}

static void broker_run(void)
{
    broker_begins();
    watch(handoff_broker_fd(broker), &broker);
    for (int way = 0; way < WAYS; way++)
        watch(broker_listeners[way], &broker_listeners[way]);
    for (;;) {
        struct epoll_event events[64];
        int count = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;
            int *listener = events[i].data.ptr;
            if (events[i].data.ptr == &broker)
                need_handoff(handoff_broker_dispatch(broker), "handoff_broker_dispatch");
            else if (listener >= broker_listeners && listener < broker_listeners + WAYS)
                broker_accepts((enum way)(listener - broker_listeners));
            else if (connection->client != -1)
                copy(connection);
            else
                broker_reads(connection, 1);
        }
        need_handoff(handoff_broker_flush(broker), "handoff_broker_flush");
        handoff_verdict verdict;
        while (handoff_broker_next(broker, &verdict) == HANDOFF_OK) {
            need(verdict.outcome == HANDOFF_ADOPTED, "a fallback");
            end(verdict.user_data);
        }
    }
}

/* ---- the backend ---- */

static handoff_backend *backend;

static void backend_reads(struct connection *client)
{
    char request[BYTES];
    ssize_t n = recv(client->fd, request, sizeof request, MSG_DONTWAIT);
    if (n == -1 && errno == EAGAIN) {
        watch(client->fd, client);
        return;
    }
    need(n == BYTES, "request");
    answer(client->fd);
    end(client);
}

static void backend_accepts(int listener)
{
    struct connection *client = malloc(sizeof *client);
    need(client != NULL, "malloc");
    client->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    need(client->fd != -1, "accept");
    backend_reads(client);
}

static void backend_adopts(void)
{
    handoff_arrival arrival;
    need_handoff(handoff_backend_dispatch(backend), "handoff_backend_dispatch");
    while (handoff_backend_next(backend, &arrival) == HANDOFF_OK) {
        int fd;
        need_handoff(handoff_backend_adopt(backend, arrival.id, &fd), "handoff_backend_adopt");
        need(arrival.preread_len == BYTES, "preread");
        answer(fd);
        close(fd);
    }
}

static void backend_run(void)
{
    watch(handoff_backend_fd(backend), &backend);
    watch(backend_tcp_listener, &backend_tcp_listener);
    watch(backend_unix_listener, &backend_unix_listener);
    for (;;) {
        struct epoll_event events[64];
        int count = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < count; i++) {
            void *what = events[i].data.ptr;
            if (what == &backend)
                backend_adopts();
            else if (what == &backend_tcp_listener || what == &backend_unix_listener)
                backend_accepts(*(int *)what);
            else
                backend_reads(what);
        }
    }
}

/* ---- the clients ---- */

/* Connects, asks, and waits for the first bytes of an answer. */
static void ask(const struct address *at)
{
    char bytes[BYTES];
    struct linger reset = {.l_onoff = 1}; /* leaves no connection behind in TIME_WAIT */
    int fd = socket(at->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(fd != -1 && setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset) == 0 &&
         connect(fd, &at->any, at->len) == 0 && send(fd, message, BYTES, MSG_NOSIGNAL) == BYTES &&
         recv(fd, bytes, sizeof bytes, 0) == BYTES, "asking");
    close(fd);
}

static void client_run(enum way way, double *times, int requests)
{
    for (int i = 0; i < requests; i++) {
        double start = now();
        ask(&broker_at[way]);
        if (way == RECONNECT_TCP)
            ask(&backend_tcp);
        else if (way == RECONNECT_UNIX)
            ask(&backend_unix);
        times[i] = now() - start;
    }
}

/* Lets so many clients ask at a time; their times are in `times`, which they share with us. */
static void run(enum way way, double *times, int clients, int requests)
{
    int gate[2], status;
    char byte;
    need(pipe(gate) == 0, "pipe");
    for (int client = 0; client < clients; client++) {
        if (make_child() != 0)
            continue;
        close(gate[1]);
        need(read(gate[0], &byte, 1) == 0, "the gate");
        client_run(way, times + client * (requests / clients), requests / clients);
        _exit(0);
    }
    close(gate[0]);
    close(gate[1]); /* opens it */
    for (int client = 0; client < clients; client++)
        need(wait(&status) != -1 && status == 0, "client");
}

/* ---- measuring ---- */

static int listen_at(struct address *at, int family)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *at = (struct address){.len = sizeof at->tcp};
    if (family == AF_INET) {
        at->tcp.sin_family = AF_INET;
        at->tcp.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    } else { /* an abstract name, which the system makes */
        at->local.sun_family = AF_UNIX;
        at->len = sizeof at->local.sun_family;
    }
    need(fd != -1 && bind(fd, &at->any, at->len) == 0 && listen(fd, 1024) == 0, "listening");
    at->len = sizeof at->local;
    need(getsockname(fd, &at->any, &at->len) == 0, "getsockname");
    return fd;
}

static void make_server(void (*server_run)(void))
{
    if (make_child() == 0) {
        epoll = epoll_create1(EPOLL_CLOEXEC);
        need(epoll != -1, "epoll_create1");
        server_run();
    }
}

static void measure(int clients, int requests, int repetitions)
{
    static double p50[WAYS][REPETITIONS], p99[WAYS][REPETITIONS];
    static double ratio50[WAYS][REPETITIONS], ratio99[WAYS][REPETITIONS];
    double *times = mmap(NULL, (size_t)requests * sizeof *times, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    need(times != MAP_FAILED, "mmap");
    for (int repetition = -1; repetition < repetitions; repetition++) { /* -1 to warm up */
        int r = repetition < 0 ? 0 : repetition;
        for (int turn = 0; turn < WAYS; turn++) {
            enum way way = (enum way)((turn + repetition + 1) % WAYS);
            run(way, times, clients, requests);
            p50[way][r] = quantile(times, requests, 0.5);
            p99[way][r] = quantile(times, requests, 0.99);
        }
        for (int way = 0; way < WAYS; way++) {
            ratio50[way][r] = p50[HANDOFF][r] / p50[way][r];
            ratio99[way][r] = p99[HANDOFF][r] / p99[way][r];
        }
    }
    munmap(times, (size_t)requests * sizeof *times);
    printf("microseconds, %2d at a time            p50        p99  handoff/it: p50        p99\n",
           clients);
    for (int way = 0; way < WAYS; way++)
        printf("%-30s %10.1f %10.1f %16.3f %10.3f\n", names[way],
               median(p50[way], repetitions) / 1000, median(p99[way], repetitions) / 1000,
               median(ratio50[way], repetitions), median(ratio99[way], repetitions));
}

int main(void)
{
    int repetitions = number("REPETITIONS", 31);
    int requests = number("REQUESTS", 480) / MOST_CLIENTS * MOST_CLIENTS;
    need(repetitions <= REPETITIONS, "REPETITIONS");
    memset(message, 'x', BYTES);
    for (int way = 0; way < WAYS; way++)
        broker_listeners[way] = listen_at(&broker_at[way], AF_INET);
    backend_tcp_listener = listen_at(&backend_tcp, AF_INET);
    backend_unix_listener = listen_at(&backend_unix, AF_UNIX);
    snprintf(handoff_path, sizeof handoff_path, "@handoff-bench-%d", getpid());
    need_handoff(handoff_backend_listen(handoff_path, NULL, &backend), "handoff_backend_listen");
    need_handoff(handoff_broker_new(handoff_path, NULL, &broker), "handoff_broker_new");
    make_server(backend_run);
    handoff_backend_free(backend); /* the child's now */
    make_server(broker_run);

    measure(1, requests, repetitions);
    measure(MOST_CLIENTS, requests, repetitions);
    return 0; /* which ends the servers */
}
