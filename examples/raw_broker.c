/*
 * raw_broker: accepts TCP clients on 127.0.0.1 and offers each to the backend that listens on a
 * handoff socket. It serves a client itself if the backend does not adopt it. This is the raw
 * layer, message by message. Most programs want broker.c.
 *
 *   cc raw_broker.c $(pkg-config --cflags --libs handoff) -o raw_broker
 *   ./raw_broker PORT SOCKET [TIMEOUT_MS [FAILURE_PERIOD_MS]]
 *
 * One client at a time, blocking, to show the calls in their order. The broker keeps one connection
 * to the backend, which sends it a token for each message that it allows.
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

enum { REQUEST_MS = 10000, REASONS = 32 };

static const char *path;               /* the handoff socket's, and the backend's name */
static int timeout_ms = 200;           /* for a token, and for an acknowledgement */
static int backend = -1;               /* the connection to the backend; -1 if there is none */
static handoff_raw_failures *failures; /* the backend's recent ones */

/* Ends the program if a system call failed that cannot fail in normal operation. */
static void check(int ok, const char *call)
{
    if (ok)
        return;
    fprintf(stderr, "raw_broker: %s: %s\n", call, strerror(errno));
    exit(1);
}

/* The same for a call of libhandoff. */
static void check_handoff(int ok, const char *call)
{
    if (ok)
        return;
    fprintf(stderr, "raw_broker: %s: %s\n", call, handoff_last_error());
    exit(1);
}

/* Offers a client. Returns HANDOFF_REASON_NONE if the backend has adopted it, or may have, or else
 * why it did not. */
static handoff_reason hand_over(int client)
{
    handoff_raw_decision decision = HANDOFF_RAW_DECISION_INIT;
    check_handoff(handoff_raw_failures_should_attempt(failures, path, NULL, &decision) ==
                  HANDOFF_OK, "handoff_raw_failures_should_attempt");
    if (decision.reason != HANDOFF_REASON_NONE)
        return decision.reason;

    handoff_raw_token token;
    handoff_status status = HANDOFF_OK;
    if (backend == -1)
        status = handoff_raw_connect(path, &backend);
    if (status == HANDOFF_OK)
        status = handoff_raw_token_receive(backend, timeout_ms, &token);
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    if (status == HANDOFF_OK) {
        check_handoff(handoff_raw_attempt(backend, client, &token, (uint64_t)timeout_ms,
                                          &verdict) == HANDOFF_OK, "handoff_raw_attempt");
        if (verdict.cause == HANDOFF_OK) { /* adopted or rejected: the backend works */
            check_handoff(handoff_raw_failures_record_success(failures, path) == HANDOFF_OK,
                          "handoff_raw_failures_record_success");
            return verdict.reason;
        }
    } else if (status == HANDOFF_TIMED_OUT) {
        verdict.reason = HANDOFF_REASON_BACKEND_BUSY; /* it has sent no token */
    } else {
        verdict.reason = handoff_status_reason(status);
    }

    /* After a failure this connection cannot be used again. */
    if (backend != -1)
        close(backend);
    backend = -1;
    check_handoff(handoff_raw_failures_record_failure(failures, path, verdict.reason, NULL) ==
                  HANDOFF_OK, "handoff_raw_failures_record_failure");
    /* Where the socket broke under an attempt, the backend may have the client: not to be served. */
    return verdict.outcome == HANDOFF_ADOPTED ? HANDOFF_REASON_NONE : verdict.reason;
}

/* Serves a client without the backend. It reads the request first: closing a socket that has unread
 * bytes resets the connection, and the client may lose the answer. */
static void serve(int client)
{
    static const char answer[] = "HTTP/1.0 200 OK\r\nContent-Length: 21\r\n\r\n"
                                 "served by the broker\n";
    char request[4096];
    struct pollfd readable = {.fd = client, .events = POLLIN};
    if (poll(&readable, 1, REQUEST_MS) == 1 && recv(client, request, sizeof request, 0) > 0 &&
        send(client, answer, sizeof answer - 1, MSG_NOSIGNAL) != sizeof answer - 1)
        perror("raw_broker: answering a client");
    /* The backend may still hold a copy. While it does, close(2) does not end the connection. */
    shutdown(client, SHUT_WR);
}

static int listen_tcp(const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)strtoul(port, NULL, 10)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), yes = 1;
    check(listener != -1 &&
          setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
          bind(listener, (struct sockaddr *)&address, len) == 0 && listen(listener, 1024) == 0 &&
          getsockname(listener, (struct sockaddr *)&address, &len) == 0, "listen");
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

/* A descriptor that is readable after SIGTERM or SIGINT. */
static int take_signals(void)
{
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    check(sigprocmask(SIG_BLOCK, &stop, NULL) == 0, "sigprocmask");
    int signals = signalfd(-1, &stop, SFD_CLOEXEC);
    check(signals != -1, "signalfd");
    return signals;
}

/* accept(2) failed. Perhaps there is no descriptor for the client now: it still waits, so not again
 * at once. */
static void not_accepted(void)
{
    if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
        return;
    perror("raw_broker: accept4");
    usleep(10000);
}

int main(int argc, char **argv)
{
    if (argc < 3 || argc > 5) {
        fprintf(stderr, "usage: raw_broker PORT SOCKET [TIMEOUT_MS [FAILURE_PERIOD_MS]]\n");
        return 2;
    }
    path = argv[2];
    if (argc > 3)
        timeout_ms = (int)strtol(argv[3], NULL, 10);
    handoff_raw_failures_options options = HANDOFF_RAW_FAILURES_OPTIONS_INIT;
    if (argc > 4)
        options.period_ms = strtoull(argv[4], NULL, 10);
    check_handoff(handoff_raw_failures_new(&options, &failures) == HANDOFF_OK,
                  "handoff_raw_failures_new");

    /* If no backend is there yet, that is for a fallback. If no socket can have this path, it is
     * not. */
    handoff_status status = handoff_raw_connect(path, &backend);
    check_handoff(status == HANDOFF_OK || handoff_status_is_fallback_safe(status), path);

    int signals = take_signals(), listener = listen_tcp(argv[1]);
    struct pollfd events[] = {{.fd = signals, .events = POLLIN},
                              {.fd = listener, .events = POLLIN}};
    unsigned long connections = 0, by_reason[REASONS] = {0};
    for (;;) {
        check(poll(events, 2, -1) != -1 || errno == EINTR, "poll");
        if (events[0].revents != 0)
            break;
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client == -1) {
            not_accepted();
            continue;
        }
        handoff_reason reason = hand_over(client);
        if (reason != HANDOFF_REASON_NONE)
            serve(client);
        close(client); /* after an adoption without shutdown(2), which would end the connection */
        connections++;
        by_reason[reason < REASONS ? reason : HANDOFF_REASON_REJECTED]++;
    }

    printf("connections: %lu\nadopted: %lu\n", connections, by_reason[HANDOFF_REASON_NONE]);
    for (handoff_reason reason = HANDOFF_REASON_NONE + 1; reason < REASONS; reason++)
        if (by_reason[reason] > 0)
            printf("fallback, %s: %lu\n", handoff_reason_name(reason), by_reason[reason]);
    handoff_raw_failures_free(failures);
    return 0;
}
