/*
 * broker: accepts TCP clients on 127.0.0.1, reads each client's request, and offers the connection
 * with the request to the backend that listens on a handoff socket, or to the backends in a
 * directory. It serves a client itself if none of them adopts it.
 *
 *   cc broker.c $(pkg-config --cflags --libs handoff) -o broker
 *   ./broker PORT SOCKET|DIRECTORY/ [TIMEOUT_MS [FAILURE_PERIOD_MS]]
 *
 * An event loop that never blocks. While as many offers are in flight as there may be, clients wait
 * in a queue, for a second at most. An offer waits TIMEOUT_MS for its verdict. After 8 timeouts
 * within FAILURE_PERIOD_MS the backend rests, but for a trial now and then. SIGTERM ends the program, which
 * prints what became of the connections.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <handoff.h>

enum { REQUEST_MS = 10000, QUEUE_MS = 1000, REASONS = 32 };

struct client {
    struct client *before, *next;
    int64_t deadline_ms; /* for its request, or in the queue */
    int fd;
    size_t len;
    char request[4096];
};

/* Clients without a request yet, and those that wait for room, the earliest deadline first. All
 * others are on offer. */
static struct clients {
    struct client *first, *last;
} waiting, queue;
static handoff_broker *broker;
static int epoll, listener, signals;
static unsigned long connections, adopted, fallbacks[REASONS];

/* Ends the program if a system call failed that cannot fail in normal operation. */
static void check(int ok, const char *call)
{
    if (ok)
        return;
    fprintf(stderr, "broker: %s: %s\n", call, strerror(errno));
    exit(1);
}

/* The same for a call of libhandoff. */
static void check_handoff(int ok, const char *call)
{
    if (ok)
        return;
    fprintf(stderr, "broker: %s: %s\n", call, handoff_last_error());
    exit(1);
}

/* For what the next call tries again. */
static void complain(handoff_status status)
{
    if (status != HANDOFF_OK)
        fprintf(stderr, "broker: %s\n", handoff_last_error());
}

static int64_t now_ms(void)
{
    struct timespec now;
    check(clock_gettime(CLOCK_MONOTONIC, &now) == 0, "clock_gettime");
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Watches a descriptor. Its events carry `what`: a client, &signals, &listener or &broker. */
static void watch(int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "EPOLL_CTL_ADD");
}

static void append(struct clients *list, struct client *client)
{
    client->before = list->last;
    client->next = NULL;
    *(list->last == NULL ? &list->first : &list->last->next) = client;
    list->last = client;
}

static void take_out(struct clients *list, struct client *client)
{
    *(client->before == NULL ? &list->first : &client->before->next) = client->next;
    *(client->next == NULL ? &list->last : &client->next->before) = client->before;
}

static void accept_clients(void)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) != -1) {
        struct client *client = malloc(sizeof *client);
        check(client != NULL, "malloc");
        client->deadline_ms = now_ms() + REQUEST_MS;
        client->fd = fd;
        append(&waiting, client);
        watch(fd, client);
    }
    if (errno == EAGAIN || errno == ECONNABORTED)
        return;
    /* Perhaps there is no descriptor for it now: the listener stays readable, so not again at once. */
    perror("broker: accept4");
    usleep(10000);
}

/* Forgets a client. After an adoption this must not be shutdown(2), which would end the backend's
 * connection too. */
static void release(struct client *client)
{
    close(client->fd);
    free(client);
}

/* Serves a client whose request has been read, without the backend. */
static void serve(struct client *client, handoff_reason reason)
{
    static const char answer[] = "HTTP/1.0 200 OK\r\nContent-Length: 21\r\n\r\n"
                                 "served by the broker\n";
    fallbacks[reason < REASONS ? reason : HANDOFF_REASON_REJECTED]++;
    /* The backend may have had a copy, and copies share O_NONBLOCK. */
    if (send(client->fd, answer, sizeof answer - 1, MSG_DONTWAIT | MSG_NOSIGNAL) !=
        sizeof answer - 1)
        perror("broker: answering a client");
    /* It may still hold it. While it does, close(2) does not end the connection. */
    shutdown(client->fd, SHUT_WR);
    release(client);
}

/* Takes a client out of the event loop. This comes before the offer: close(2) does not do it while
 * another process has a copy, epoll(7). */
static void stop_waiting(struct client *client)
{
    take_out(&waiting, client);
    check(epoll_ctl(epoll, EPOLL_CTL_DEL, client->fd, NULL) == 0, "EPOLL_CTL_DEL");
}

/* Reads a client's request, which comes in one piece in this example, and puts it into the queue. */
static void read_request(struct client *client)
{
    ssize_t len = recv(client->fd, client->request, sizeof client->request, 0);
    if (len == -1 && errno == EAGAIN)
        return;
    stop_waiting(client);
    if (len <= 0) {
        release(client); /* it has gone */
        return;
    }
    connections++;
    client->len = (size_t)len;
    client->deadline_ms = now_ms() + QUEUE_MS;
    append(&queue, client);
}

/* Offers the clients in the queue for as long as there is room. When there is room again, the
 * broker's descriptor becomes readable. */
static void offer_queue(void)
{
    struct client *client;
    while ((client = queue.first) != NULL) {
        handoff_offer offer = HANDOFF_OFFER_INIT;
        offer.fd = client->fd;
        offer.preread = client->request;
        offer.preread_len = client->len;
        offer.user_data = client;
        offer.flags = HANDOFF_OFFER_MORE; /* until the flush at the end of this turn of the loop */
        handoff_status status = handoff_broker_offer(broker, &offer, NULL);
        if (status == HANDOFF_ERR_FULL)
            return;
        take_out(&queue, client);
        if (status == HANDOFF_OK)
            continue; /* until its verdict */
        /* Nothing was sent. What a fallback must not hide is a bug in this program. */
        check_handoff(handoff_status_is_fallback_safe(status), "handoff_broker_offer");
        serve(client, handoff_status_reason(status));
    }
}

static void take_verdicts(void)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_status status;
    while ((status = handoff_broker_next(broker, &verdict)) == HANDOFF_OK) {
        if (verdict.outcome == HANDOFF_ADOPTED) {
            adopted++;
            release(verdict.user_data);
        } else {
            serve(verdict.user_data, verdict.reason);
        }
    }
    check_handoff(status == HANDOFF_NOTHING, "handoff_broker_next");
}

static void serve_queue(int64_t until_ms)
{
    struct client *client;
    while ((client = queue.first) != NULL && client->deadline_ms <= until_ms) {
        take_out(&queue, client);
        serve(client, HANDOFF_REASON_BACKEND_BUSY);
    }
}

/* Forgets clients that sent no request in time, and serves those that have been in the queue for too
 * long. Returns the milliseconds until the next deadline, or -1 if there is none. */
static int expire(void)
{
    int64_t now = now_ms(), next = INT64_MAX;
    struct client *client;
    while ((client = waiting.first) != NULL && client->deadline_ms <= now) {
        stop_waiting(client);
        release(client);
    }
    serve_queue(now);
    if (client != NULL)
        next = client->deadline_ms;
    if ((client = queue.first) != NULL && client->deadline_ms < next)
        next = client->deadline_ms;
    return next == INT64_MAX ? -1 : (int)(next - now);
}

static void listen_tcp(const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)strtoul(port, NULL, 10)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int yes = 1;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    check(listener != -1 &&
          setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
          bind(listener, (struct sockaddr *)&address, len) == 0 && listen(listener, 1024) == 0 &&
          getsockname(listener, (struct sockaddr *)&address, &len) == 0, "listen");
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
}

/* SIGTERM and SIGINT are events, too. */
static void take_signals(void)
{
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    check(sigprocmask(SIG_BLOCK, &stop, NULL) == 0, "sigprocmask");
    signals = signalfd(-1, &stop, SFD_CLOEXEC);
    check(signals != -1, "signalfd");
}

int main(int argc, char **argv)
{
    if (argc < 3 || argc > 5) {
        fprintf(stderr, "usage: broker PORT SOCKET|DIRECTORY/ [TIMEOUT_MS [FAILURE_PERIOD_MS]]\n");
        return 2;
    }
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.timeout_ms = argc > 3 ? strtoull(argv[3], NULL, 10) : 0; /* 0: the default */
    options.failure_period_ms = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;

    check_handoff(handoff_broker_new(argv[2], &options, &broker) == HANDOFF_OK, argv[2]);
    int broker_fd = handoff_broker_fd(broker); /* the broker connects, and reconnects by itself */
    check_handoff(broker_fd != -1, "handoff_broker_fd");

    take_signals();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    check(epoll != -1, "epoll_create1");
    watch(signals, &signals);
    watch(broker_fd, &broker);
    listen_tcp(argv[1]);
    watch(listener, &listener);

    for (int stopping = 0; !stopping;) {
        struct epoll_event events[64];
        int count = epoll_wait(epoll, events, 64, expire());
        check(count != -1 || errno == EINTR, "epoll_wait");
        for (int i = 0; i < count; i++) {
            void *what = events[i].data.ptr;
            if (what == &signals)
                stopping = 1;
            else if (what == &listener)
                accept_clients();
            else if (what == &broker)
                complain(handoff_broker_dispatch(broker));
            else
                read_request(what);
        }
        take_verdicts();
        offer_queue();
        complain(handoff_broker_flush(broker));
    }

    /* This takes back what the backend has not adopted, so every offer has its verdict now. */
    check_handoff(handoff_broker_close(broker) == HANDOFF_OK, "handoff_broker_close");
    take_verdicts();
    serve_queue(INT64_MAX);
    handoff_broker_free(broker);

    printf("connections: %lu\nadopted: %lu\n", connections, adopted);
    for (handoff_reason reason = 0; reason < REASONS; reason++)
        if (fallbacks[reason] > 0)
            printf("fallback, %s: %lu\n", handoff_reason_name(reason), fallbacks[reason]);
    return 0;
}
