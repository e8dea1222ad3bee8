/*
 * backend: listens on a handoff socket, adopts the clients that brokers offer, and answers each on
 * the client's own connection.
 *
 *   cc backend.c $(pkg-config --cflags --libs handoff) -o backend
 *   ./backend SOCKET
 *
 * If systemd passes a socket (ListenSequentialPacket=), it listens on that one instead of making
 * SOCKET. An event loop that never blocks. After SIGTERM it adopts what has arrived and no more, answers
 * the clients that it has, and ends; its brokers serve all others.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <handoff.h>

enum { CLIENTS = 1024, REQUEST_LEN = 4096, REQUEST_MS = 10000 };

struct client {
    struct client *before, *next;
    int64_t deadline_ms; /* for its request */
    int fd;
    size_t len;
    char request[REQUEST_LEN];
};

/* Clients without a whole request yet, the earliest deadline first. */
static struct clients {
    struct client *first, *last;
} clients;
static int clients_count;
static handoff_backend *backend;
static int epoll, signals;
static unsigned long adopted, answered;

/* Ends the program if a system call failed that cannot fail in normal operation. */
static void check(int ok, const char *call)
{
    if (ok)
        return;
    fprintf(stderr, "backend: %s: %s\n", call, strerror(errno));
    exit(1);
}

/* The same for a call of libhandoff. */
static void check_handoff(int ok, const char *call)
{
    if (ok)
        return;
    fprintf(stderr, "backend: %s: %s\n", call, handoff_last_error());
    exit(1);
}

static int64_t now_ms(void)
{
    struct timespec now;
    check(clock_gettime(CLOCK_MONOTONIC, &now) == 0, "clock_gettime");
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Watches a descriptor. Its events carry `what`: a client, &signals or &backend. */
static void watch(int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "EPOLL_CTL_ADD");
}

static void append(struct clients *list, struct client *client)
{
    client->before = list->last;
    client->next = NULL;
    *(list->last == NULL ? &list->first : &list->last->next) = client;
    list->last = client;
}

static void take_out(struct clients *list, struct client *client)
{
    *(client->before == NULL ? &list->first : &client->before->next) = client->next;
    *(client->next == NULL ? &list->last : &client->next->before) = client->before;
}

/* Ends a client. The broker may not have closed its copy yet, and while it has one, close(2)
 * neither takes the descriptor out of the event loop, epoll(7), nor ends the connection. */
static void end(struct client *client)
{
    take_out(&clients, client);
    clients_count--;
    check(epoll_ctl(epoll, EPOLL_CTL_DEL, client->fd, NULL) == 0, "EPOLL_CTL_DEL");
    shutdown(client->fd, SHUT_WR);
    close(client->fd);
    free(client);
}

/* Answers a client if the head of its request is there, and ends it. The body is left: a client that
 * sends a long one may be reset before it reads the answer. */
static void answer_if_complete(struct client *client)
{
    char body[64], answer[128];
    if (memmem(client->request, client->len, "\r\n\r\n", 4) == NULL)
        return;
    int len = snprintf(body, sizeof body, "served by the backend %d\n", getpid());
    len = snprintf(answer, sizeof answer, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s", len,
                   body);
    if (send(client->fd, answer, (size_t)len, MSG_DONTWAIT | MSG_NOSIGNAL) == len)
        answered++;
    else
        perror("backend: answering a client");
    end(client);
}

/* The broker's copy shares O_NONBLOCK, so this program leaves it and says MSG_DONTWAIT. */
static void read_request(struct client *client)
{
    ssize_t len = recv(client->fd, client->request + client->len, REQUEST_LEN - client->len,
                       MSG_DONTWAIT);
    if (len == -1 && errno == EAGAIN)
        return;
    if (len <= 0) {
        end(client); /* it has gone, or its request is too long */
        return;
    }
    client->len += (size_t)len;
    answer_if_complete(client);
}

static void reject(const handoff_arrival *arrival, handoff_reason reason)
{
    check_handoff(handoff_backend_reject(backend, arrival->id, reason) == HANDOFF_OK,
                  "handoff_backend_reject");
}

/* Does what may fail before it adopts: until then the broker can still serve the client. */
static void adopt(const handoff_arrival *arrival)
{
    struct client *client = malloc(sizeof *client);
    if (client == NULL) {
        reject(arrival, HANDOFF_REASON_BACKEND_BUSY);
        return;
    }
    int fd;
    handoff_status status = handoff_backend_adopt(backend, arrival->id, &fd);
    if (status == HANDOFF_ERR_TAKEN_BACK) {
        free(client); /* the broker serves it */
        return;
    }
    check_handoff(status == HANDOFF_OK, "handoff_backend_adopt");
    adopted++;
    client->deadline_ms = now_ms() + REQUEST_MS;
    client->fd = fd;
    /* What the broker has read comes before what can still be read. */
    client->len = arrival->preread_len;
    memcpy(client->request, arrival->preread, arrival->preread_len);
    append(&clients, client);
    clients_count++;
    watch(fd, client);
    answer_if_complete(client);
}

static void take_arrivals(void)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_status status;
    while ((status = handoff_backend_next(backend, &arrival)) == HANDOFF_OK) {
        if (clients_count == CLIENTS)
            reject(&arrival, HANDOFF_REASON_BACKEND_BUSY);
        else if (arrival.preread_len > REQUEST_LEN)
            reject(&arrival, HANDOFF_REASON_REJECTED);
        else
            adopt(&arrival);
    }
    check_handoff(status == HANDOFF_NOTHING, "handoff_backend_next");
}

/* Ends clients that sent no request in time. Returns the milliseconds until the next deadline, or
 * -1 if there is none. */
static int expire(void)
{
    int64_t now = now_ms();
    struct client *client;
    while ((client = clients.first) != NULL && client->deadline_ms <= now)
        end(client);
    return client == NULL ? -1 : (int)(client->deadline_ms - now);
}

static void dispatch(void)
{
    if (handoff_backend_dispatch(backend) != HANDOFF_OK)
        fprintf(stderr, "backend: %s\n", handoff_last_error()); /* the next one tries again */
    take_arrivals();
}

/* Stops listening, and adopts what has arrived. Then the backend holds nothing and can be freed,
 * and brokers take back what was still on its way. */
static void drain(void)
{
    check_handoff(handoff_backend_drain(backend) == HANDOFF_OK, "handoff_backend_drain");
    dispatch();
    check(epoll_ctl(epoll, EPOLL_CTL_DEL, handoff_backend_fd(backend), NULL) == 0, "EPOLL_CTL_DEL");
    handoff_backend_free(backend);
    backend = NULL;
    check(epoll_ctl(epoll, EPOLL_CTL_DEL, signals, NULL) == 0, "EPOLL_CTL_DEL");
}

/* SIGTERM and SIGINT are events, too. */
static void take_signals(void)
{
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    check(sigprocmask(SIG_BLOCK, &stop, NULL) == 0, "sigprocmask");
    signals = signalfd(-1, &stop, SFD_CLOEXEC);
    check(signals != -1, "signalfd");
}

/* The listening socket that systemd passes to a service which it starts, sd_listen_fds(3); -1 if it
 * passes none. Its first descriptor is 3. */
static int passed_socket(void)
{
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
    return pid != NULL && atol(pid) == getpid() && count != NULL && atol(count) > 0 ? 3 : -1;
}

static void listen_at(const char *path)
{
    int passed = passed_socket();
    if (passed == -1) {
        check_handoff(handoff_backend_listen(path, NULL, &backend) == HANDOFF_OK, path);
        return;
    }
    check_handoff(handoff_backend_listen_on(passed, NULL, &backend) == HANDOFF_OK, path);
    close(passed); /* the backend has a copy */
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: backend SOCKET\n");
        return 2;
    }
    listen_at(argv[1]);
    int backend_fd = handoff_backend_fd(backend);
    check_handoff(backend_fd != -1, "handoff_backend_fd");

    take_signals();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    check(epoll != -1, "epoll_create1");
    watch(signals, &signals);
    watch(backend_fd, &backend);
    printf("listening on %s\n", argv[1]);
    fflush(stdout);

    while (backend != NULL || clients_count > 0) {
        struct epoll_event events[64];
        int stopping = 0, count = epoll_wait(epoll, events, 64, expire());
        check(count != -1 || errno == EINTR, "epoll_wait");
        for (int i = 0; i < count; i++) {
            void *what = events[i].data.ptr;
            if (what == &signals)
                stopping = 1;
            else if (what == &backend)
                dispatch();
            else
                read_request(what);
        }
        if (stopping)
            drain();
    }
    printf("adopted: %lu\nanswered: %lu\n", adopted, answered);
    return 0;
}
