/*
 * blocking_broker: accepts TCP clients on 127.0.0.1, one after the other, and offers each to the
 * backend that listens on a handoff socket. It serves a client itself if the backend does not adopt
 * it.
 *
 *   cc blocking_broker.c $(pkg-config --cflags --libs handoff) -o blocking_broker
 *   ./blocking_broker PORT SOCKET
 *
 * After SIGTERM or SIGINT it serves the client that it has, and ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <handoff.h>

enum { OFFER_MS = 2000, REQUEST_MS = 10000 };

static handoff_broker *broker;
static int listener;
static volatile sig_atomic_t stopping;

/* Ends the wait for a verdict, and that for a client: accept(2) of a socket that is shut down fails,
 * also if it is called only later. */
static void stop(int number)
{
    int before = errno;
    (void)number;
    stopping = 1;
    shutdown(listener, SHUT_RD);
    handoff_broker_wake(broker);
    errno = before;
}

/* Ends the program if a system call failed that cannot fail in normal operation. */
static void check(int ok, const char *call)
{
    if (ok)
        return;
    fprintf(stderr, "blocking_broker: %s: %s\n", call, strerror(errno));
    exit(1);
}

/* The same for a call of libhandoff. */
static void check_handoff(int ok, const char *call)
{
    if (ok)
        return;
    fprintf(stderr, "blocking_broker: %s: %s\n", call, handoff_last_error());
    exit(1);
}

static void on_stop_signals(void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    check(sigaction(SIGTERM, &action, NULL) == 0 && sigaction(SIGINT, &action, NULL) == 0,
          "sigaction");
}

static void listen_tcp(const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)strtoul(port, NULL, 10)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int yes = 1;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(listener != -1 &&
          setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
          bind(listener, (struct sockaddr *)&address, len) == 0 && listen(listener, 1024) == 0 &&
          getsockname(listener, (struct sockaddr *)&address, &len) == 0, "listen");
    on_stop_signals(stop);
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
}

/* Offers a client. Not 0: the backend has adopted it. */
static int hand_over(int client)
{
    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = client;
    offer.timeout_ms = OFFER_MS;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_status status = handoff_broker_offer_and_wait(broker, &offer, &verdict);
    if (status == HANDOFF_OK)
        return verdict.outcome == HANDOFF_ADOPTED;
    /* The client is still ours. What a fallback must not hide is a bug in this program. */
    check_handoff(status == HANDOFF_WOKEN || handoff_status_is_fallback_safe(status),
                  "handoff_broker_offer_and_wait");
    return 0;
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
        perror("blocking_broker: answering a client");
    /* The backend may still hold a copy. While it does, close(2) does not end the connection. */
    shutdown(client, SHUT_WR);
}

/* accept(2) failed. Perhaps there is no descriptor for the client now: it still waits, so not again
 * at once. */
static void not_accepted(void)
{
    if (errno == ECONNABORTED)
        return;
    perror("blocking_broker: accept4");
    usleep(10000);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: blocking_broker PORT SOCKET\n");
        return 2;
    }
    check_handoff(handoff_broker_new(argv[2], NULL, &broker) == HANDOFF_OK, argv[2]);
    listen_tcp(argv[1]);
    while (!stopping) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client == -1) {
            if (!stopping)
                not_accepted();
            continue;
        }
        if (!hand_over(client))
            serve(client);
        close(client); /* after an adoption without shutdown(2), which would end the connection */
    }
    on_stop_signals(SIG_IGN); /* the handler must not use what is freed */
    handoff_broker_free(broker);
    return 0;
}
