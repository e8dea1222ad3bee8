/*
 * tls_backend: adopts clients and answers each on its own connection, one after the other. A client
 * may speak TLS: then the kernel does that, and the same code serves it.
 *
 *   cc tls_backend.c $(pkg-config --cflags --libs handoff) -o tls_backend
 *   ./tls_backend SOCKET
 *
 * The broker offers a client with TLS when the kernel does it in both directions: see
 * HANDOFF_OFFER_TLS in handoff/broker.h.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <handoff.h>

enum { CLIENT_MS = 10000 };

static handoff_backend *backend;

/* Ends the wait, or the next one if none runs now. */
static void stop(int number)
{
    (void)number;
    handoff_backend_wake(backend);
}

static void on_stop_signals(void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    if (sigaction(SIGTERM, &action, NULL) == -1 || sigaction(SIGINT, &action, NULL) == -1)
        perror("tls_backend: sigaction");
}

/* Reads a request until its head is complete: what came with the arrival, then the rest. */
static int read_request(const handoff_arrival *arrival, char *request, size_t room)
{
    size_t len = arrival->preread_len < room ? arrival->preread_len : room - 1, more;
    memcpy(request, arrival->preread, len);
    for (request[len] = 0; strstr(request, "\r\n\r\n") == NULL; request[len += more] = 0) {
        if (len == room - 1) {
            fprintf(stderr, "tls_backend: a request is too long\n");
            return -1;
        }
        handoff_status status = handoff_tls_receive(arrival->fd, request + len, room - 1 - len,
                                                    CLIENT_MS, &more);
        if (status != HANDOFF_OK || more == 0) { /* an error, no request in time, or the end */
            if (status < HANDOFF_OK)
                fprintf(stderr, "tls_backend: %s\n", handoff_last_error());
            return -1;
        }
    }
    return 0;
}

static void serve(const handoff_arrival *arrival)
{
    char request[8192], body[128], answer[256], rest[4096];
    handoff_tls_session session = HANDOFF_TLS_SESSION_INIT;
    size_t more;
    if (read_request(arrival, request, sizeof request) == -1)
        return;
    const char *version = "no TLS", *cipher = "plain";
    if (arrival->tls && handoff_tls_get_session(arrival->fd, &session) == HANDOFF_OK) {
        version = session.version_name;
        cipher = session.cipher_name;
    }
    int len = snprintf(body, sizeof body, "served by the backend %d: %s, %s\n", getpid(), version,
                       cipher);
    len = snprintf(answer, sizeof answer,
                   "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len, body);
    if (send(arrival->fd, answer, (size_t)len, MSG_NOSIGNAL) != len)
        perror("tls_backend: answering a client");
    /* With TLS the client sees that the answer is whole; then it closes its direction, too. */
    if (handoff_tls_shutdown(arrival->fd, CLIENT_MS) == HANDOFF_OK)
        while (handoff_tls_receive(arrival->fd, rest, sizeof rest, CLIENT_MS, &more) == HANDOFF_OK &&
               more > 0)
            continue;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: tls_backend SOCKET\n");
        return 2;
    }
    if (handoff_backend_listen(argv[1], NULL, &backend) != HANDOFF_OK) {
        fprintf(stderr, "tls_backend: %s\n", handoff_last_error());
        return 1;
    }
    on_stop_signals(stop);
    printf("listening on %s\n", argv[1]);
    fflush(stdout);

    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_status status;
    while ((status = handoff_backend_accept(backend, -1, &arrival)) == HANDOFF_OK) {
        serve(&arrival);
        close(arrival.fd);
    }
    if (status != HANDOFF_WOKEN)
        fprintf(stderr, "tls_backend: %s\n", handoff_last_error());
    on_stop_signals(SIG_IGN); /* the handler must not use what is freed */
    handoff_backend_free(backend);
    return status != HANDOFF_WOKEN;
}
