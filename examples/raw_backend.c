/*
 * raw_backend: listens on a handoff socket, adopts the clients that raw_broker offers, and answers
 * each on the client's own connection. This is the raw layer, message by message. Most programs
 * want backend.c.
 *
 *   cc raw_backend.c $(pkg-config --cflags --libs handoff) -o raw_backend
 *   ./raw_backend SOCKET
 *
 * It sends each broker a token, and the next one after each message. So a broker can send only what
 * this backend allows, and one client at a time. SIGTERM ends it when its clients are answered.
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
#include <time.h>
#include <unistd.h>

#include <handoff.h>

enum { BROKERS = 8, CLIENTS = 256, REQUEST_MS = 10000, SLOTS = 2 + BROKERS + CLIENTS };

/* For poll(2), which skips the slots with the descriptor -1: they are free. */
static struct pollfd slots[SLOTS];
static struct pollfd *const signals = slots, *const listening = slots + 1;
static struct pollfd *const brokers = slots + 2, *const clients = slots + 2 + BROKERS;
static handoff_raw_token tokens[BROKERS]; /* the one that each broker may use next */
static int64_t deadlines_ms[CLIENTS];     /* for each client's request */
static handoff_raw_store *store;
static handoff_raw_listener *listener;
static unsigned long adopted, answered;

/* Ends the program if a system call failed that cannot fail in normal operation. */
static void check(int ok, const char *call)
{
    if (ok)
        return;
    fprintf(stderr, "raw_backend: %s: %s\n", call, strerror(errno));
    exit(1);
}

/* The same for a call of libhandoff. */
static void check_handoff(int ok, const char *call)
{
    if (ok)
        return;
    fprintf(stderr, "raw_backend: %s: %s\n", call, handoff_last_error());
    exit(1);
}

static int64_t now_ms(void)
{
    struct timespec now;
    check(clock_gettime(CLOCK_MONOTONIC, &now) == 0, "clock_gettime");
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
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
    handoff_status status = handoff_raw_store_revoke(store, &tokens[b]);
    check_handoff(status == HANDOFF_OK || status == HANDOFF_ERR_TOKEN_NOT_PENDING,
                  "handoff_raw_store_revoke");
}

/* Closes the connection of a broker after an error. If the broker has closed it, that is none. */
static void fail_broker(int b, handoff_status status)
{
    if (status != HANDOFF_ERR_END_OF_STREAM)
        fprintf(stderr, "raw_backend: a broker's connection: %s\n", handoff_last_error());
    close_broker(b);
}

/* Allows a broker one more message. */
static void send_token(int b)
{
    check_handoff(handoff_raw_store_issue(store, &tokens[b]) == HANDOFF_OK,
                  "handoff_raw_store_issue");
    handoff_status status = handoff_raw_token_send(brokers[b].fd, &tokens[b]);
    if (status != HANDOFF_OK)
        fail_broker(b, status);
}

static void accept_broker(void)
{
    int fd, b = find_free(brokers, BROKERS);
    handoff_status status = handoff_raw_listener_accept(listener, NULL, 0, &fd);
    if (status == HANDOFF_TIMED_OUT)
        return; /* it has gone */
    if (status == HANDOFF_ERR_PEER_NOT_ALLOWED || status == HANDOFF_ERR_PEER_UNKNOWN) {
        fprintf(stderr, "raw_backend: a broker was refused: %s\n", handoff_last_error());
        return;
    }
    check_handoff(status == HANDOFF_OK, "handoff_raw_listener_accept");
    if (b == -1) {
        close(fd); /* no room */
        return;
    }
    brokers[b].fd = fd;
    send_token(b);
}

/* Receives a message of a broker and adopts its client, or rejects it. */
static void receive_message(int b)
{
    int fd, c = find_free(clients, CLIENTS);
    handoff_status status =
        handoff_raw_receive_verified(brokers[b].fd, store, &tokens[b], 0, NULL, &fd);
    if (status == HANDOFF_TIMED_OUT)
        return;
    if (status == HANDOFF_OK && c == -1) {
        close(fd); /* first, so that the broker has the only copy when it hears of the rejection */
        status = handoff_raw_ack_reject(brokers[b].fd, &tokens[b], HANDOFF_REASON_BACKEND_BUSY);
    } else if (status == HANDOFF_OK) {
        /* From HANDOFF_OK on the client is ours. If the broker took it back, this fails. */
        status = handoff_raw_ack_accept(brokers[b].fd, &tokens[b]);
        if (status == HANDOFF_OK) {
            clients[c].fd = fd;
            deadlines_ms[c] = now_ms() + REQUEST_MS;
            adopted++;
        } else {
            close(fd);
        }
    }
    if (status == HANDOFF_OK)
        send_token(b);
    else
        fail_broker(b, status);
}

/* Answers a client that has sent its request, in one piece in this example. The broker's copy
 * shares O_NONBLOCK, so this program leaves it and says MSG_DONTWAIT. */
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
        if (send(clients[c].fd, answer, (size_t)len, MSG_DONTWAIT | MSG_NOSIGNAL) == len)
            answered++;
        else
            perror("raw_backend: answering a client");
    }
    /* The broker may not have closed its copy yet. While it has one, close(2) does not end the
     * connection. */
    shutdown(clients[c].fd, SHUT_WR);
    close_slot(&clients[c]);
}

/* Closes clients that sent no request in time. Returns the milliseconds until the next deadline, or
 * -1 if there is no client. */
static int expire(void)
{
    int64_t now = now_ms(), next = INT64_MAX;
    for (int c = 0; c < CLIENTS; c++) {
        if (clients[c].fd != -1 && deadlines_ms[c] <= now) {
            shutdown(clients[c].fd, SHUT_WR);
            close_slot(&clients[c]);
        }
        if (clients[c].fd != -1 && deadlines_ms[c] < next)
            next = deadlines_ms[c];
    }
    return next == INT64_MAX ? -1 : (int)(next - now);
}

/* What a broker has sent but this program has not received is the broker's to serve. */
static void stop_adopting(void)
{
    close_slot(signals);
    listening->fd = -1;
    handoff_raw_listener_free(listener);
    for (int b = 0; b < BROKERS; b++)
        if (brokers[b].fd != -1)
            close_broker(b);
}

/* A descriptor that is readable after SIGTERM or SIGINT. */
static int take_signals(void)
{
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    check(sigprocmask(SIG_BLOCK, &stop, NULL) == 0, "sigprocmask");
    int fd = signalfd(-1, &stop, SFD_CLOEXEC);
    check(fd != -1, "signalfd");
    return fd;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: raw_backend SOCKET\n");
        return 2;
    }
    handoff_raw_store_options options = HANDOFF_RAW_STORE_OPTIONS_INIT;
    options.lifetime_ms = HANDOFF_NO_TIMEOUT; /* a token lives as long as its connection */
    check_handoff(handoff_raw_store_new(&options, &store) == HANDOFF_OK, "handoff_raw_store_new");
    check_handoff(handoff_raw_listener_new(argv[1], NULL, &listener) == HANDOFF_OK, argv[1]);

    for (int i = 0; i < SLOTS; i++)
        slots[i] = (struct pollfd){.fd = -1, .events = POLLIN};
    signals->fd = take_signals();
    listening->fd = handoff_raw_listener_fd(listener);
    printf("listening on %s\n", argv[1]);
    fflush(stdout);

    for (int stopping = 0;;) {
        int wait_ms = expire();
        if (stopping && wait_ms == -1)
            break;
        check(poll(slots, SLOTS, wait_ms) != -1 || errno == EINTR, "poll");
        /* In this order: each step may fill slots whose events an earlier step has looked at. */
        for (int c = 0; c < CLIENTS; c++)
            if (clients[c].fd != -1 && clients[c].revents != 0)
                serve(c);
        for (int b = 0; b < BROKERS; b++)
            if (brokers[b].fd != -1 && brokers[b].revents != 0)
                receive_message(b);
        if (listening->fd != -1 && listening->revents != 0)
            accept_broker();
        if (signals->fd != -1 && signals->revents != 0) {
            stopping = 1;
            stop_adopting();
        }
    }
    handoff_raw_store_free(store);
    printf("adopted: %lu\nanswered: %lu\n", adopted, answered);
    return 0;
}
