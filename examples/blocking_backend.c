/*
 * blocking_backend: listens on a handoff socket, adopts the clients that brokers hand over, one
 * after the other, and answers each on the client's own connection.
 *
 *   cc blocking_backend.c $(pkg-config --cflags --libs handoff) -o blocking_backend
 *   ./blocking_backend SOCKET
 *
 * A signal ends it at once. The socket's file stays behind; whoever listens there next replaces it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <handoff.h>

enum { REQUEST_MS = 1000 };

static void check(handoff_status status, const char *what)
{
    if (status == HANDOFF_OK)
        return;
    fprintf(stderr, "blocking_backend: %s: %s\n", what, handoff_last_error());
    exit(1);
}

/* Answers a client that has asked, in one piece for this example: what the broker has read from it
 * came with the arrival, and comes before what can be read from it. */
static void serve(const handoff_arrival *arrival)
{
    char request[4096], body[64], answer[128];
    struct pollfd readable = {.fd = arrival->fd, .events = POLLIN};
    if (arrival->preread_len == 0 && (poll(&readable, 1, REQUEST_MS) != 1 ||
                                      recv(arrival->fd, request, sizeof request, 0) <= 0))
        return; /* it has gone, or does not ask */
    int len = snprintf(body, sizeof body, "served by the backend %d\n", getpid());
    len = snprintf(answer, sizeof answer, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s", len,
                   body);
    if (send(arrival->fd, answer, (size_t)len, MSG_NOSIGNAL) != len)
        perror("blocking_backend: answering a client");
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: blocking_backend SOCKET\n");
        return 2;
    }
    handoff_backend *backend;
    check(handoff_backend_listen(argv[1], NULL, &backend), argv[1]);
    printf("listening on %s\n", argv[1]);
    fflush(stdout);

    handoff_arrival arrival;
    for (;;) {
        check(handoff_backend_accept(backend, -1, &arrival), "accept");
        serve(&arrival);
        /* The broker may not have closed its copy yet; while it is open close() ends nothing. */
        shutdown(arrival.fd, SHUT_WR);
        close(arrival.fd);
    }
}
