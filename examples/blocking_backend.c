/*
 * blocking_backend: listens on a handoff socket, adopts the clients that brokers offer, one after
 * the other, and answers each on the client's own connection.
 *
 *   cc blocking_backend.c $(pkg-config --cflags --libs handoff) -o blocking_backend
 *   ./blocking_backend SOCKET
 *
 * After SIGTERM or SIGINT it answers the clients that have arrived, removes the socket's file and
 * ends.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include <handoff.h>

enum { REQUEST_MS = 10000 };

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
        perror("blocking_backend: sigaction");
}

/* Answers a client. Its request, which comes in one piece in this example, is in the arrival if the
 * broker has read it. */
static void serve(const handoff_arrival *arrival)
{
    char request[4096], body[64], answer[128];
    struct pollfd readable = {.fd = arrival->fd, .events = POLLIN};
    if (arrival->preread_len == 0 && (poll(&readable, 1, REQUEST_MS) != 1 ||
                                      recv(arrival->fd, request, sizeof request, 0) <= 0))
        return; /* it has gone, or sent no request in time */
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
    /* It serves one client at a time, so no more than one of each broker is to wait meanwhile. */
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_in_flight = 1;
    if (handoff_backend_listen(argv[1], &options, &backend) != HANDOFF_OK) {
        fprintf(stderr, "blocking_backend: %s\n", handoff_last_error());
        return 1;
    }
    on_stop_signals(stop);
    printf("listening on %s\n", argv[1]);
    fflush(stdout);

    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_status status;
    while ((status = handoff_backend_accept(backend, -1, &arrival)) == HANDOFF_OK) {
        /* A broker with an event loop has set O_NONBLOCK. */
        if (fcntl(arrival.fd, F_SETFL, 0) == -1)
            perror("blocking_backend: fcntl");
        serve(&arrival);
        /* The broker may not have closed its copy yet. While it has one, close(2) does not end the
         * connection. */
        shutdown(arrival.fd, SHUT_WR);
        close(arrival.fd);
    }
    if (status != HANDOFF_WOKEN)
        fprintf(stderr, "blocking_backend: %s\n", handoff_last_error());
    on_stop_signals(SIG_IGN); /* the handler must not use what is freed */
    handoff_backend_free(backend);
    return status != HANDOFF_WOKEN;
}
