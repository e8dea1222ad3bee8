/*
 * raw_backend: listens on a handoff socket, adopts the clients that raw_broker hands over, and
 * answers each on the client's own connection. This is the layer below the channel, message by
 * message; most programs want backend.c.
 *
 *   cc raw_backend.c $(pkg-config --cflags --libs handoff) -o raw_backend
 *   ./raw_backend SOCKET
 *
 * A broker may hand over one client for each token that it was granted: 16 bytes that this process
 * sends when it has accepted the broker's connection, and again after each handoff.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <handoff.h>

enum { BROKERS = 8, CLIENTS = 256, REQUEST_MS = 2000 };

/* What to wait for: the listener, signals, brokers, clients. A free slot has the descriptor -1. */
static struct pollfd slots[2 + BROKERS + CLIENTS];
static struct pollfd *const brokers = slots + 2, *const clients = slots + 2 + BROKERS;
static handoff_token tokens[BROKERS];  /* the one that each broker may present next */
static uint64_t deadlines_ns[CLIENTS]; /* by when each client must have sent its request */
static handoff_token_store *store;
static unsigned long adopted, answered;

static void check(int ok, const char *what, const char *why)
{
    if (ok)
        return;
    fprintf(stderr, "raw_backend: %s: %s\n", what, why);
    exit(1);
}

static int find_free(const struct pollfd *slot, int count)
{
    for (int i = 0; i < count; i++)
        if (slot[i].fd == -1)
            return i;
    return -1;
}

static void close_slot(struct pollfd *slot)
{
    close(slot->fd);
    slot->fd = -1;
}

static void close_broker(int b)
{
    close_slot(&brokers[b]);
    handoff_token_store_revoke(store, &tokens[b]); /* not pending if it was used: all the same */
}

/* Lets a broker hand over one client more. */
static void grant(int b)
{
    check(handoff_token_store_issue(store, &tokens[b]) == HANDOFF_OK, "issue",
          handoff_last_error());
    if (send(brokers[b].fd, tokens[b].bytes, HANDOFF_TOKEN_LEN, MSG_DONTWAIT | MSG_NOSIGNAL) !=
        HANDOFF_TOKEN_LEN)
        close_broker(b); /* it has gone, or does not read */
}

static void accept_broker(int listener)
{
    int b = find_free(brokers, BROKERS), fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd == -1)
        return; /* it has gone */
    if (b == -1 || handoff_peer_check(fd, NULL, NULL) != HANDOFF_OK) {
        fprintf(stderr, "raw_backend: refused: %s\n", b == -1 ? "no room" : handoff_last_error());
        close(fd);
        return;
    }
    brokers[b].fd = fd;
    grant(b);
}

/* Adopts a client or leaves it to its broker. It is ours once the acceptance is sent, and only
 * then: a broker that has given up makes that fail, and serves the client itself. */
static void adopt(int b)
{
    int fd, c = find_free(clients, CLIENTS);
    handoff_status status =
        handoff_receive_verified(brokers[b].fd, 0, store, &tokens[b], NULL, &fd);
    if (status == HANDOFF_OK && c == -1) {
        close(fd);
        status = handoff_ack_reject(brokers[b].fd, &tokens[b], HANDOFF_REASON_BACKEND_BUSY);
    } else if (status == HANDOFF_OK) {
        status = handoff_ack_accept(brokers[b].fd, &tokens[b]);
        if (status == HANDOFF_OK) {
            clients[c].fd = fd;
            deadlines_ns[c] = handoff_now() + REQUEST_MS * 1000000ull;
            adopted++;
        } else {
            close(fd);
        }
    }
    if (status == HANDOFF_OK) {
        grant(b);
    } else if (status != HANDOFF_ERR_WOULD_BLOCK) {
        if (status != HANDOFF_ERR_END_OF_STREAM)
            fprintf(stderr, "raw_backend: not adopted: %s\n", handoff_last_error());
        close_broker(b);
    }
}

/* Answers a client that has sent its request, in one piece for this example. O_NONBLOCK stays as
 * it is, because the broker's copy shares it: what may not block says so in each call. */
static void serve(int c)
{
    char request[4096], body[64], answer[128];
    ssize_t n = recv(clients[c].fd, request, sizeof request, MSG_DONTWAIT);
    if (n == -1 && errno == EAGAIN)
        return;
    if (n > 0) {
        int len = snprintf(body, sizeof body, "served by the backend %d\n", getpid());
        len = snprintf(answer, sizeof answer, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s",
                       len, body);
        answered += send(clients[c].fd, answer, (size_t)len, MSG_DONTWAIT | MSG_NOSIGNAL) == len;
    }
    /* The broker may not have closed its copy yet, and while it is open close() ends nothing. */
    shutdown(clients[c].fd, SHUT_WR);
    close_slot(&clients[c]);
}

/* Closes clients whose time is up. Returns the milliseconds until the next one's is, or -1. */
static int expire(void)
{
    uint64_t now = handoff_now(), next = UINT64_MAX;
    for (int c = 0; c < CLIENTS; c++) {
        if (clients[c].fd != -1 && deadlines_ns[c] <= now)
            close_slot(&clients[c]);
        if (clients[c].fd != -1 && deadlines_ns[c] < next)
            next = deadlines_ns[c];
    }
    return next == UINT64_MAX ? -1 : (int)((next - now) / 1000000 + 1);
}

int main(int argc, char **argv)
{
    check(argc == 2, "usage", "raw_backend SOCKET");
    handoff_token_store_options options = HANDOFF_TOKEN_STORE_OPTIONS_INIT;
    options.lifetime_ms = UINT64_MAX; /* a token lives as long as its broker's connection */
    handoff_listener *listener;
    check(handoff_token_store_new(&options, &store) == HANDOFF_OK &&
          handoff_listener_new(argv[1], NULL, &listener) == HANDOFF_OK, "start",
          handoff_last_error());

    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++)
        slots[i] = (struct pollfd){.fd = -1, .events = POLLIN};
    slots[0].fd = handoff_listener_fd(listener);
    slots[1].fd = signalfd(-1, &stop, SFD_CLOEXEC);
    check(slots[1].fd != -1 && sigprocmask(SIG_BLOCK, &stop, NULL) == 0, "signals",
          strerror(errno));
    printf("listening on %s\n", argv[1]);
    fflush(stdout);

    for (int timeout = -1; slots[0].fd != -1 || timeout != -1; timeout = expire()) {
        check(poll(slots, sizeof slots / sizeof slots[0], timeout) != -1 || errno == EINTR, "poll",
              strerror(errno));
        for (int c = 0; c < CLIENTS; c++)
            if (clients[c].fd != -1 && clients[c].revents != 0)
                serve(c);
        for (int b = 0; b < BROKERS; b++)
            if (brokers[b].fd != -1 && brokers[b].revents != 0)
                adopt(b);
        if (slots[0].revents != 0)
            accept_broker(slots[0].fd);
        if (slots[1].revents != 0) { /* nothing more is adopted; what was is served to its end */
            slots[0].fd = -1;
            close_slot(&slots[1]);
            for (int b = 0; b < BROKERS; b++)
                if (brokers[b].fd != -1)
                    close_broker(b);
            handoff_listener_free(listener);
        }
    }
    printf("adopted: %lu\nanswered: %lu\n", adopted, answered);
    handoff_token_store_free(store);
    return 0;
}
