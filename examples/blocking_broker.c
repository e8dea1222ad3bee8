/*
 * blocking_broker: accepts TCP clients on 127.0.0.1, one after the other, and hands each to the
 * backend that listens on a handoff socket. What the backend does not adopt it serves itself.
 *
 *   cc blocking_broker.c $(pkg-config --cflags --libs handoff) -o blocking_broker
 *   ./blocking_broker PORT SOCKET
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <handoff.h>

enum { OFFER_MS = 200, REQUEST_MS = 1000 };

static void check(int ok, const char *what, const char *why)
{
    if (ok)
        return;
    fprintf(stderr, "blocking_broker: %s: %s\n", what, why);
    exit(1);
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
        perror("blocking_broker: answering a client");
    /* The backend may hold a copy that it will not use. While it is open, close() alone does not
     * end the connection. */
    shutdown(client, SHUT_WR);
}

int main(int argc, char **argv)
{
    check(argc == 3, "usage", "blocking_broker PORT SOCKET");
    handoff_broker *broker;
    check(handoff_broker_new(argv[2], NULL, &broker) == HANDOFF_OK, argv[2], handoff_last_error());

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    check(listener != -1 &&
          setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
          bind(listener, (struct sockaddr *)&address, len) == 0 && listen(listener, 1024) == 0 &&
          getsockname(listener, (struct sockaddr *)&address, &len) == 0, "listen", strerror(errno));
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);

    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client == -1) {
            check(errno == EINTR || errno == ECONNABORTED, "accept", strerror(errno));
            continue;
        }
        handoff_offer offer = HANDOFF_OFFER_INIT;
        offer.fd = client;
        offer.timeout_ms = OFFER_MS;
        handoff_verdict verdict;
        if (handoff_broker_offer_and_wait(broker, &offer, &verdict) != HANDOFF_OK ||
            verdict.outcome == HANDOFF_FALLBACK)
            serve(client);
        close(client); /* never shutdown() if adopted: it would end the backend's connection too */
    }
}
