/*
 * threaded_broker: accepts TCP clients on 127.0.0.1 with a thread for each, as Apache or a Java
 * server does, and offers them to the backend that listens on a handoff socket. All threads share
 * one broker, and so one channel. A client that the backend does not adopt is served here.
 *
 *   cc threaded_broker.c $(pkg-config --cflags --libs handoff) -lpthread -o threaded_broker
 *   ./threaded_broker PORT SOCKET
 *
 * After SIGTERM or SIGINT the clients that wait for the backend are served here, and it ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <handoff.h>

enum { THREADS = 25, OFFER_MS = 2000, REQUEST_MS = 10000 };

static handoff_broker *broker;
static int listener;

/* Ends the program if something failed that cannot fail in normal operation. Without a `why` that is
 * errno: a caller cannot pass its text, because it may be evaluated before the call that sets it. */
static void check(int ok, const char *call, const char *why)
{
    if (ok)
        return;
    fprintf(stderr, "threaded_broker: %s: %s\n", call, why ? why : strerror(errno));
    exit(1);
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
          getsockname(listener, (struct sockaddr *)&address, &len) == 0, "listen", NULL);
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
}

/* Offers a client. Not 0: the backend has adopted it. Any number of threads may be here at once. */
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
    check(status == HANDOFF_ERR_CLOSED || handoff_status_is_fallback_safe(status),
          "handoff_broker_offer_and_wait", handoff_last_error());
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
        perror("threaded_broker: answering a client");
    /* The backend may still hold a copy. While it does, close(2) does not end the connection. */
    shutdown(client, SHUT_WR);
}

/* accept(2) failed. Perhaps there is no descriptor for the client now: it still waits, so not again
 * at once. */
static void not_accepted(void)
{
    if (errno == ECONNABORTED)
        return;
    perror("threaded_broker: accept4");
    usleep(10000);
}

static void *accept_and_serve(void *unused)
{
    (void)unused;
    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client == -1 && errno == EINVAL)
            return NULL; /* the socket is shut down */
        if (client == -1) {
            not_accepted();
            continue;
        }
        if (!hand_over(client))
            serve(client);
        close(client); /* after an adoption without shutdown(2), which would end the connection */
    }
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    sigset_t stop_signals;
    int number;
    if (argc != 3) {
        fprintf(stderr, "usage: threaded_broker PORT SOCKET\n");
        return 2;
    }
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.flags = HANDOFF_BROKER_SHARED;
    check(handoff_broker_new(argv[2], &options, &broker) == HANDOFF_OK, argv[2],
          handoff_last_error());
    /* This connects early. Nobody watches the descriptor. */
    check(handoff_broker_fd(broker) != -1, argv[2], handoff_last_error());
    /* Only this thread takes the signals: the others inherit that they are blocked. */
    sigemptyset(&stop_signals);
    sigaddset(&stop_signals, SIGTERM);
    sigaddset(&stop_signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &stop_signals, NULL);
    listen_tcp(argv[1]);
    for (int i = 0; i < THREADS; i++)
        check(pthread_create(&threads[i], NULL, accept_and_serve, NULL) == 0, "pthread_create",
              "no more threads");
    sigwait(&stop_signals, &number);
    shutdown(listener, SHUT_RD);
    handoff_broker_close(broker); /* each thread that waits has its verdict now */
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    handoff_broker_free(broker);
    return 0;
}
