/*
 * listening_socket: hands a listening socket over, from a process that may open the port to one that
 * serves its clients.
 *
 *   cc listening_socket.c $(pkg-config --cflags --libs handoff) -o listening_socket
 *   ./listening_socket take SOCKET &          (serves)
 *   ./listening_socket give PORT SOCKET       (listens on 127.0.0.1:PORT and ends)
 *
 * The socket listens on while it is handed over: clients that come meanwhile wait in its queue. A
 * listening socket is offered and adopted like any other, if the backend's `kinds` has
 * HANDOFF_KIND_UNCONNECTED.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <handoff.h>

/* Ends the program if a system call failed. */
static void check(int ok, const char *call)
{
    if (ok)
        return;
    fprintf(stderr, "listening_socket: %s: %s\n", call, strerror(errno));
    exit(1);
}

/* The same for a call of libhandoff. */
static void check_handoff(int ok, const char *call)
{
    if (ok)
        return;
    fprintf(stderr, "listening_socket: %s: %s\n", call, handoff_last_error());
    exit(1);
}

static int give(const char *port, const char *path)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)strtoul(port, NULL, 10)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(listener != -1 &&
          setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
          bind(listener, (struct sockaddr *)&address, sizeof address) == 0 &&
          listen(listener, 1024) == 0, "listen");

    handoff_broker *broker;
    handoff_offer offer = HANDOFF_OFFER_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    offer.fd = listener;
    offer.service = "listener"; /* for backends that take clients as well */
    check_handoff(handoff_broker_new(path, NULL, &broker) == HANDOFF_OK, path);
    check_handoff(handoff_broker_offer_and_wait(broker, &offer, &verdict) == HANDOFF_OK,
                  "handoff_broker_offer_and_wait");
    handoff_broker_free(broker);
    if (verdict.outcome == HANDOFF_ADOPTED) {
        printf("port %s is handed over\n", port);
        return 0;
    }
    fprintf(stderr, "listening_socket: not adopted: %s\n", handoff_reason_name(verdict.reason));
    return 1;
}

static void serve(int client)
{
    char request[4096], body[64], answer[128];
    if (recv(client, request, sizeof request, 0) <= 0)
        return;
    int len = snprintf(body, sizeof body, "served by process %d\n", getpid());
    len = snprintf(answer, sizeof answer, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s", len,
                   body);
    if (send(client, answer, (size_t)len, MSG_NOSIGNAL) != len)
        perror("listening_socket: answering a client");
}

/* accept(2) failed. Perhaps there is no descriptor for the client now: it still waits, so not again
 * at once. */
static void not_accepted(void)
{
    check(errno != EINVAL, "accept4"); /* somebody has shut the socket down */
    if (errno == EINTR || errno == ECONNABORTED)
        return;
    perror("listening_socket: accept4");
    usleep(10000);
}

static void take(const char *path)
{
    handoff_backend *backend;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.kinds = HANDOFF_KIND_STREAM | HANDOFF_KIND_UNCONNECTED;
    check_handoff(handoff_backend_listen(path, &options, &backend) == HANDOFF_OK, path);

    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    check_handoff(handoff_backend_accept(backend, -1, &arrival) == HANDOFF_OK,
                  "handoff_backend_accept");
    int listener = arrival.fd;
    handoff_backend_free(backend); /* this program takes one socket; its verdict is sent */

    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client == -1) {
            not_accepted();
            continue;
        }
        serve(client);
        close(client);
    }
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "give") == 0)
        return give(argv[2], argv[3]);
    if (argc == 3 && strcmp(argv[1], "take") == 0)
        take(argv[2]); /* until a signal ends it */
    fprintf(stderr, "usage: listening_socket give PORT SOCKET | listening_socket take SOCKET\n");
    return 2;
}
