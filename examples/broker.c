/*
 * broker: accepts TCP clients on 127.0.0.1, reads what each asks and hands it with its connection
 * to the backend that listens on a handoff socket. What the backend does not adopt it serves
 * itself, and the client notices nothing.
 *
 *   cc broker.c $(pkg-config --cflags --libs handoff) -o broker
 *   ./broker PORT SOCKET [TIMEOUT_MS [WINDOW_MS]]
 *
 * An event loop that never blocks. TIMEOUT_MS is how long an offer may wait for its verdict,
 * WINDOW_MS how long a failure counts; 8 failures, and the backend is not tried for a while.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/queue.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <handoff.h>

enum { REQUEST_MS = 1000, REASONS = 32, STATUSES = 64 };

struct client {
    TAILQ_ENTRY(client) next;
    uint64_t deadline_ns; /* by when it must have asked */
    int fd;
};

/* Clients that have not asked yet, in the order of their deadlines. All others are on offer. */
static TAILQ_HEAD(, client) silent = TAILQ_HEAD_INITIALIZER(silent);
static handoff_broker *broker;
static int epoll;
static unsigned long connections, adopted, by_reason[REASONS], by_status[STATUSES];

/* For what can only fail by a mistake in this program, or when the system has nothing left. */
static void check(int ok, const char *what, const char *why)
{
    if (ok)
        return;
    fprintf(stderr, "broker: %s: %s\n", what, why);
    exit(1);
}

static void check_handoff(handoff_status status, const char *call)
{
    check(status == HANDOFF_OK, call, handoff_last_error());
}

static void watch(int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    check(fd != -1 && epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "watch", strerror(errno));
}

static void accept_clients(int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) != -1) {
        struct client *client = malloc(sizeof *client);
        check(client != NULL, "malloc", strerror(errno));
        *client = (struct client){.fd = fd, .deadline_ns = handoff_now() + REQUEST_MS * 1000000ull};
        TAILQ_INSERT_TAIL(&silent, client, next);
        watch(fd, client);
    }
    /* None is left, or it has gone, or there is no descriptor for it: the next turn tries again. */
}

/* The client is the backend's now, or gone. Never shutdown() here: it would end the connection of
 * the backend too. */
static void release(struct client *client)
{
    close(client->fd);
    free(client);
}

/* The other way to serve a client, which has asked. */
static void serve(struct client *client)
{
    static const char answer[] = "HTTP/1.0 200 OK\r\nContent-Length: 21\r\n\r\n"
                                 "served by the broker\n";
    if (send(client->fd, answer, sizeof answer - 1, MSG_NOSIGNAL) != sizeof answer - 1)
        perror("broker: answering a client");
    /* The backend may hold a copy that it will not use. While it is open, close() alone does not
     * end the connection. */
    shutdown(client->fd, SHUT_WR);
    release(client);
}

/* A silent client has something to say, or its time is up: it is silent no more. Out of the loop
 * before it is offered: once another process has a copy, close() would not do that. */
static void stop_watching(struct client *client)
{
    TAILQ_REMOVE(&silent, client, next);
    check(epoll_ctl(epoll, EPOLL_CTL_DEL, client->fd, NULL) == 0, "EPOLL_CTL_DEL", strerror(errno));
}

/* Reads what a client asks, in one piece for this example, and offers it with the connection. */
static void offer(struct client *client)
{
    unsigned char request[4096];
    ssize_t n = recv(client->fd, request, sizeof request, 0);
    if (n == -1 && errno == EAGAIN)
        return;
    stop_watching(client);
    if (n <= 0) {
        release(client); /* it has gone */
        return;
    }
    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = client->fd;
    offer.preread = request;
    offer.preread_len = (size_t)n;
    offer.user_data = client;
    offer.more = 1; /* all of this turn of the loop are sent together */
    connections++;
    handoff_status status = handoff_broker_offer(broker, &offer, NULL);
    if (status == HANDOFF_OK)
        return;
    by_status[status < STATUSES ? status : HANDOFF_ERR_INTERNAL]++;
    serve(client);
}

static void take_verdicts(void)
{
    handoff_verdict verdict;
    while (handoff_broker_next(broker, &verdict) == HANDOFF_OK) {
        if (verdict.outcome == HANDOFF_ADOPTED) {
            adopted++;
            release(verdict.user_data);
        } else {
            by_reason[verdict.reason < REASONS ? verdict.reason : HANDOFF_REASON_REJECTED]++;
            serve(verdict.user_data);
        }
    }
}

/* Closes clients that do not ask. Returns the milliseconds until the next one's time is up. */
static int expire(void)
{
    uint64_t now = handoff_now();
    struct client *client;
    while ((client = TAILQ_FIRST(&silent)) != NULL && client->deadline_ns <= now) {
        stop_watching(client);
        release(client);
    }
    return client == NULL ? -1 : (int)((client->deadline_ns - now) / 1000000 + 1);
}

static void report(void)
{
    printf("connections: %lu\nadopted: %lu\n", connections, adopted);
    for (handoff_reason reason = 0; reason < REASONS; reason++)
        if (by_reason[reason] > 0)
            printf("fallback, %s: %lu\n", handoff_reason_name(reason), by_reason[reason]);
    for (handoff_status status = 0; status < STATUSES; status++)
        if (by_status[status] > 0)
            printf("refused, %s: %lu\n", handoff_status_name(status), by_status[status]);
}

int main(int argc, char **argv)
{
    check(argc >= 3 && argc <= 5, "usage", "broker PORT SOCKET [TIMEOUT_MS [WINDOW_MS]]");
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    if (argc > 3)
        options.timeout_ms = strtoull(argv[3], NULL, 10);
    if (argc > 4)
        options.failure_window_ms = strtoull(argv[4], NULL, 10);
    check_handoff(handoff_broker_new(argv[2], &options, &broker), argv[2]);

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), yes = 1;
    check(listener != -1 &&
          setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
          bind(listener, (struct sockaddr *)&address, len) == 0 && listen(listener, 1024) == 0 &&
          getsockname(listener, (struct sockaddr *)&address, &len) == 0, "listen", strerror(errno));

    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    check(sigprocmask(SIG_BLOCK, &stop, NULL) == 0, "signals", strerror(errno));
    int signals = signalfd(-1, &stop, SFD_CLOEXEC);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    watch(signals, &signals);
    watch(listener, &listener);
    watch(handoff_broker_fd(broker), &broker);
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);

    for (int stopping = 0; !stopping;) {
        struct epoll_event events[64];
        int count = epoll_wait(epoll, events, 64, expire());
        check(count != -1 || errno == EINTR, "epoll_wait", strerror(errno));
        for (int i = 0; i < count; i++) {
            void *what = events[i].data.ptr;
            if (what == &signals)
                stopping = 1;
            else if (what == &listener)
                accept_clients(listener);
            else if (what == &broker)
                check_handoff(handoff_broker_dispatch(broker), "dispatch");
            else
                offer(what);
        }
        check_handoff(handoff_broker_flush(broker), "flush");
        take_verdicts(); /* last, because it frees clients that events may name */
    }

    /* What became of the offers that are still in flight is told at once. */
    check_handoff(handoff_broker_close(broker), "close");
    take_verdicts();
    report();
    handoff_broker_free(broker);
    return 0;
}
