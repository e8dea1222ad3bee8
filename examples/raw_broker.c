/*
 * raw_broker: accepts TCP clients on 127.0.0.1 and hands each to the backend that listens on a
 * handoff socket. Whatever goes wrong there, it serves the client itself and the client notices
 * nothing. This is the layer below the channel, message by message; most programs want broker.c.
 *
 *   cc raw_broker.c $(pkg-config --cflags --libs handoff) -o raw_broker
 *   ./raw_broker PORT SOCKET [TIMEOUT_MS [WINDOW_MS]]
 *
 * One client at a time, blocking, to show the calls in their order. The backend grants tokens, one
 * for each handoff: it sends the 16 bytes of the next one over the connection that handoffs use.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <handoff.h>

enum { REQUEST_MS = 1000, REASONS = HANDOFF_REASON_UNSUPPORTED_PLATFORM + 1 };

static const char *path;            /* of the handoff socket, and the backend's name */
static int timeout_ms = 200;        /* for a token, and for an acknowledgement */
static int backend = -1;            /* the connection to the handoff socket; -1: dial */
static handoff_fallback *fallbacks; /* how often the backend has failed of late */

/* For what can only fail by a mistake in this program. */
static void check(int ok, const char *what, const char *why)
{
    if (ok)
        return;
    fprintf(stderr, "raw_broker: %s: %s\n", what, why);
    exit(1);
}

static void check_handoff(handoff_status status, const char *call)
{
    check(status == HANDOFF_OK, call, handoff_last_error());
}

/* Waits for the token that the backend grants us for the next handoff. */
static handoff_status receive_token(handoff_token *token)
{
    struct pollfd readable = {.fd = backend, .events = POLLIN};
    int ready = poll(&readable, 1, timeout_ms);
    if (ready == 0)
        return HANDOFF_ERR_WOULD_BLOCK;
    if (ready == -1)
        return HANDOFF_ERR_RECEIVE_FAILED;
    ssize_t n = recv(backend, token->bytes, sizeof token->bytes, 0);
    if (n == sizeof token->bytes)
        return HANDOFF_OK;
    return n == 0 ? HANDOFF_ERR_END_OF_STREAM : HANDOFF_ERR_RECEIVE_FAILED;
}

/* Hands a client to the backend: HANDOFF_REASON_NONE, or why the client is still ours. */
static handoff_reason hand_over(int client)
{
    handoff_decision decision;
    check_handoff(handoff_fallback_should_attempt(fallbacks, path, NULL, &decision),
                  "should_attempt");
    if (decision.reason != HANDOFF_REASON_NONE)
        return decision.reason;

    handoff_token token;
    handoff_status status = backend == -1 ? handoff_connect(path, &backend) : HANDOFF_OK;
    if (status == HANDOFF_OK)
        status = receive_token(&token);
    if (status == HANDOFF_OK) {
        handoff_verdict verdict;
        check_handoff(handoff_attempt(backend, client, &token, timeout_ms, &verdict), "attempt");
        if (verdict.cause == HANDOFF_OK) { /* the backend has answered, so it works */
            check_handoff(handoff_fallback_record_success(fallbacks, path), "record_success");
            return verdict.reason;
        }
        status = verdict.cause;
    }

    /* What is still on its way on this connection is given up with it. */
    if (backend != -1)
        close(backend);
    backend = -1;
    check_handoff(handoff_fallback_record_failure(fallbacks, path, handoff_status_failure(status),
                                                  &decision), "record_failure");
    return decision.reason;
}

/* The other way to serve a client. Reads what it asks first: closing a socket with unread bytes
 * in it would reset the connection and might take the answer away. */
static void serve(int client)
{
    static const char answer[] = "HTTP/1.0 200 OK\r\nContent-Length: 21\r\n\r\n"
                                 "served by the broker\n";
    char request[4096];
    struct pollfd readable = {.fd = client, .events = POLLIN};
    if (poll(&readable, 1, REQUEST_MS) == 1 && recv(client, request, sizeof request, 0) > 0 &&
        send(client, answer, sizeof answer - 1, MSG_NOSIGNAL) == -1)
        perror("raw_broker: answering a client");
    /* The backend may hold a copy that it will not use. While it is open, close() alone does not
     * end the connection. */
    shutdown(client, SHUT_WR);
}

int main(int argc, char **argv)
{
    check(argc >= 3 && argc <= 5, "usage", "raw_broker PORT SOCKET [TIMEOUT_MS [WINDOW_MS]]");
    path = argv[2];
    handoff_fallback_options options = HANDOFF_FALLBACK_OPTIONS_INIT;
    if (argc > 3)
        timeout_ms = atoi(argv[3]);
    if (argc > 4)
        options.window_ms = strtoull(argv[4], NULL, 10);
    check_handoff(handoff_fallback_new(&options, &fallbacks), "fallback_new");

    /* A backend that is not there yet is no error; a path that no socket can have is one. */
    handoff_status status = handoff_connect(path, &backend);
    check(status == HANDOFF_OK || handoff_status_is_fallback_safe(status), path,
          handoff_last_error());

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), yes = 1;
    check(listener != -1 &&
          setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
          bind(listener, (struct sockaddr *)&address, len) == 0 && listen(listener, 1024) == 0 &&
          getsockname(listener, (struct sockaddr *)&address, &len) == 0, "listen", strerror(errno));
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);

    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    int signals = signalfd(-1, &stop, SFD_CLOEXEC);
    check(signals != -1 && sigprocmask(SIG_BLOCK, &stop, NULL) == 0, "signals", strerror(errno));

    unsigned long connections = 0, by_reason[REASONS] = {0};
    struct pollfd events[] = {{.fd = listener, .events = POLLIN},
                              {.fd = signals, .events = POLLIN}};
    while (events[1].revents == 0) {
        check(poll(events, 2, -1) != -1 || errno == EINTR, "poll", strerror(errno));
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client == -1)
            continue; /* none, or it has gone */
        handoff_reason reason = hand_over(client);
        if (reason != HANDOFF_REASON_NONE)
            serve(client);
        close(client); /* never shutdown() if adopted: it would end the backend's connection too */
        connections++;
        by_reason[reason < REASONS ? reason : HANDOFF_REASON_REJECTED]++;
    }

    printf("connections: %lu\nadopted: %lu\n", connections, by_reason[HANDOFF_REASON_NONE]);
    for (handoff_reason reason = 1; reason < REASONS; reason++)
        if (by_reason[reason] > 0)
            printf("fallback, %s: %lu\n", handoff_reason_name(reason), by_reason[reason]);
    if (backend != -1)
        close(backend);
    close(listener);
    close(signals);
    handoff_fallback_free(fallbacks);
    return 0;
}
