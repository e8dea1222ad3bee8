/*
 * stream_backend: server-sent events, in the streams of many clients.
 *
 *   stream_backend HANDOFF UNIX STREAMS
 *
 * Takes clients from the handoff socket HANDOFF, from the Unix socket UNIX, and from a TCP port,
 * which it prints; any request is one for a stream. A line of its input says how many events each of
 * the STREAMS streams gets from then on, one a second. They are spread evenly over the second, and go
 * out at most a millisecond after they are due, as in event loops whose timers have milliseconds.
 */
#define _GNU_SOURCE
#include "../common.h"
#include "../need_handoff.h"
#include "event.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Something in the event loop. */
struct source {
    int fd;
    void (*ready)(struct source *source);
};

struct stream {
    struct source source; /* first: events name it */
    int matched;          /* of the end of its request */
};

static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                           "Cache-Control: no-store\r\nConnection: close\r\n\r\n";

static int epoll, expected, opened;
static struct stream **streams;
static long due, sent;    /* events, in all streams */
static double since;      /* the first is due */
static handoff_backend *backend;

static void watch(struct source *source)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = source};
    need(epoll_ctl(epoll, EPOLL_CTL_ADD, source->fd, &event) == 0, "EPOLL_CTL_ADD");
}

static void send_all(struct stream *stream, const char *bytes, size_t len)
{
    need(send(stream->source.fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)len,
         "sending to a client");
}

/* Takes a part of a request, and begins to answer when that is whole. */
static void take(struct stream *stream, const char *bytes, size_t len)
{
    for (size_t i = 0; i < len && stream->matched < 4; i++)
        stream->matched = match_end(stream->matched, bytes[i]);
    if (stream->matched < 4)
        return;
    need(opened < expected, "as many streams as expected");
    streams[opened++] = stream;
    send_all(stream, head, sizeof head - 1);
}

static void on_stream(struct source *source)
{
    char bytes[4096];
    ssize_t n = recv(source->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n == -1 && errno == EAGAIN)
        return;
    if (n > 0 && ((struct stream *)source)->matched < 4) {
        take((struct stream *)source, bytes, (size_t)n);
        return;
    }
    /* The client has gone: an event that is still due to it is an error. */
    need(epoll_ctl(epoll, EPOLL_CTL_DEL, source->fd, NULL) == 0, "EPOLL_CTL_DEL");
    close(source->fd);
    source->fd = -1;
}

static void begin(int fd, const char *preread, size_t len)
{
    struct stream *stream = malloc(sizeof *stream);
    need(stream != NULL, "malloc");
    *stream = (struct stream){.source = {.fd = fd, .ready = on_stream}};
    watch(&stream->source);
    take(stream, preread, len);
}

static void on_listener(struct source *source)
{
    int fd;
    while ((fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC)) != -1)
        begin(fd, NULL, 0);
    need(errno == EAGAIN, "accept");
}

static void on_handoff(struct source *source)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    (void)source;
    need_handoff(handoff_backend_dispatch(backend), "handoff_backend_dispatch");
    while (took(handoff_backend_next(backend, &arrival), "handoff_backend_next")) {
        int fd;
        need_handoff(handoff_backend_adopt(backend, arrival.id, &fd), "handoff_backend_adopt");
        begin(fd, arrival.preread, arrival.preread_len);
    }
}

static void on_input(struct source *source)
{
    char line[32];
    (void)source;
    if (fgets(line, sizeof line, stdin) == NULL)
        exit(0);
    need(opened == expected, "all streams");
    due = atol(line) * expected;
    since = now();
}

/* Returns the milliseconds until the next one is due, or -1. */
static int send_due(void)
{
    while (sent < due) {
        double time = now(), at = since + (double)sent * 1e9 / expected;
        char event[EVENT_LEN + 1];
        if (at > time)
            return (int)((at - time) / 1e6) + 1;
        need(snprintf(event, sizeof event, EVENT, time) == EVENT_LEN, "an event");
        send_all(streams[sent++ % expected], event, EVENT_LEN);
    }
    return -1;
}

static void listen_at(struct source *source, const void *address, socklen_t len)
{
    const struct sockaddr *at = address;
    source->fd = socket(at->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    source->ready = on_listener;
    need(source->fd != -1 && bind(source->fd, at, len) == 0 && listen(source->fd, 4096) == 0,
         "listening");
    watch(source);
}

int main(int argc, char **argv)
{
    static struct source tcp, local, handoff = {.ready = on_handoff}, input = {.ready = on_input};
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    struct sockaddr_in port = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof port;
    need(argc == 4 && strlen(argv[2]) < sizeof path.sun_path,
         "usage: stream_backend HANDOFF UNIX STREAMS");
    strcpy(path.sun_path, argv[2]);
    expected = atoi(argv[3]);
    streams = calloc((size_t)expected, sizeof *streams);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    need(epoll != -1 && expected > 0 && streams != NULL, "starting");

    need_handoff(handoff_backend_listen(argv[1], NULL, &backend), "handoff_backend_listen");
    handoff.fd = handoff_backend_fd(backend);
    watch(&handoff);
    watch(&input);
    listen_at(&local, &path, sizeof path);
    listen_at(&tcp, &port, sizeof port);
    need(getsockname(tcp.fd, (struct sockaddr *)&port, &len) == 0, "getsockname");
    printf("%d\n", ntohs(port.sin_port));
    fflush(stdout);

    for (int timeout = -1;; timeout = send_due()) {
        struct epoll_event events[64];
        int n = epoll_wait(epoll, events, 64, timeout);
        need(n != -1, "epoll_wait");
        for (int i = 0; i < n; i++) {
            struct source *source = events[i].data.ptr;
            source->ready(source);
        }
    }
}
