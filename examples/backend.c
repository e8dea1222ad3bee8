/*
 * backend: listens on a handoff socket, adopts the clients that brokers hand over, and answers each
 * on the client's own connection.
 *
 *   cc backend.c $(pkg-config --cflags --libs handoff) -o backend
 *   ./backend SOCKET
 *
 * An event loop that never blocks. SIGTERM lets it finish what it has adopted; what it has not, the
 * broker serves.
 */
#define _GNU_SOURCE
#include <errno.h>
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

enum { CLIENTS = 1024, REQUEST_MS = 1000 };

struct client {
    TAILQ_ENTRY(client) next;
    uint64_t deadline_ns; /* by when it must have asked */
    int fd;
    size_t len;
    char request[4096];
};

/* Clients that have not asked all of it yet, in the order of their deadlines. */
static TAILQ_HEAD(, client) clients = TAILQ_HEAD_INITIALIZER(clients);
static int waiting; /* how many these are */
static handoff_backend *backend;
static int epoll;
static unsigned long adopted, answered;

/* For what can only fail by a mistake in this program, or when the system has nothing left. */
static void check(int ok, const char *what, const char *why)
{
    if (ok)
        return;
    fprintf(stderr, "backend: %s: %s\n", what, why);
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

/* Ends a client. Out of the loop first: the broker may not have closed its copy yet, and while that
 * is open close() does not do it, nor does it end the connection. */
static void end(struct client *client)
{
    TAILQ_REMOVE(&clients, client, next);
    waiting--;
    check(epoll_ctl(epoll, EPOLL_CTL_DEL, client->fd, NULL) == 0, "EPOLL_CTL_DEL", strerror(errno));
    shutdown(client->fd, SHUT_WR);
    close(client->fd);
    free(client);
}

/* Answers a client that has asked, and ends it. O_NONBLOCK stays as the broker left it, because the
 * broker's copy shares it: what may not block says so in each call. */
static void answer_if_complete(struct client *client)
{
    char body[64], answer[128];
    if (client->len < 4 || memcmp(client->request + client->len - 4, "\r\n\r\n", 4) != 0)
        return;
    int len = snprintf(body, sizeof body, "served by the backend %d\n", getpid());
    len = snprintf(answer, sizeof answer, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s", len,
                   body);
    answered += send(client->fd, answer, (size_t)len, MSG_DONTWAIT | MSG_NOSIGNAL) == len;
    end(client);
}

static void read_request(struct client *client)
{
    ssize_t n = recv(client->fd, client->request + client->len,
                     sizeof client->request - client->len, MSG_DONTWAIT);
    if (n == -1 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        end(client); /* it has gone, or asks too much */
        return;
    }
    client->len += (size_t)n;
    answer_if_complete(client);
}

/* Adopts what has arrived. What the broker has read from a client comes first. */
static void adopt_arrivals(void)
{
    handoff_arrival arrival;
    while (handoff_backend_next(backend, &arrival) == HANDOFF_OK) {
        struct client *client = NULL;
        if (waiting < CLIENTS && arrival.preread_len < sizeof client->request)
            client = malloc(sizeof *client);
        if (client == NULL) {
            check_handoff(handoff_backend_reject(backend, arrival.id, HANDOFF_REASON_BACKEND_BUSY),
                          "reject");
            continue;
        }
        if (handoff_backend_adopt(backend, arrival.id, &client->fd) != HANDOFF_OK) {
            free(client); /* the broker was faster, and serves it */
            continue;
        }
        adopted++;
        client->deadline_ns = handoff_now() + REQUEST_MS * 1000000ull;
        client->len = arrival.preread_len;
        memcpy(client->request, arrival.preread, arrival.preread_len);
        TAILQ_INSERT_TAIL(&clients, client, next);
        waiting++;
        watch(client->fd, client);
        answer_if_complete(client);
    }
}

/* Ends clients whose time is up. Returns the milliseconds until the next one's is, or -1. */
static int expire(void)
{
    uint64_t now = handoff_now();
    struct client *client;
    while ((client = TAILQ_FIRST(&clients)) != NULL && client->deadline_ns <= now)
        end(client);
    return client == NULL ? -1 : (int)((client->deadline_ns - now) / 1000000 + 1);
}

int main(int argc, char **argv)
{
    check(argc == 2, "usage", "backend SOCKET");
    check_handoff(handoff_backend_listen(argv[1], NULL, &backend), argv[1]);

    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    check(sigprocmask(SIG_BLOCK, &stop, NULL) == 0, "signals", strerror(errno));
    int signals = signalfd(-1, &stop, SFD_CLOEXEC);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    watch(signals, &signals);
    watch(handoff_backend_fd(backend), &backend);
    printf("listening on %s\n", argv[1]);
    fflush(stdout);

    while (backend != NULL || waiting > 0) {
        struct epoll_event events[64];
        int draining = 0, arrived = 0, count = epoll_wait(epoll, events, 64, expire());
        check(count != -1 || errno == EINTR, "epoll_wait", strerror(errno));
        for (int i = 0; i < count; i++) {
            void *what = events[i].data.ptr;
            if (what == &signals)
                draining = 1;
            else if (what == &backend)
                arrived = 1;
            else
                read_request(what);
        }
        if (draining) {
            check_handoff(handoff_backend_drain(backend), "drain");
            check(epoll_ctl(epoll, EPOLL_CTL_DEL, signals, NULL) == 0, "signals", strerror(errno));
        }
        if (arrived || draining) { /* after the clients, because it frees some that events name */
            check_handoff(handoff_backend_dispatch(backend), "dispatch");
            adopt_arrivals();
        }
        if (draining) { /* none is held; what comes from now on, the brokers take back */
            handoff_backend_free(backend);
            backend = NULL;
        }
    }
    printf("adopted: %lu\nanswered: %lu\n", adopted, answered);
    return 0;
}
