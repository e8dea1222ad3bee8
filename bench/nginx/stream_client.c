/*
 * stream_client: many clients that each have a stream of server-sent events.
 *
 *   stream_client PORT STREAMS EVENTS
 *
 * They connect, some at a time, and ask. When each has the head of its answer, prints "open"; when
 * each has EVENTS events, the median and the 99th percentile of the nanoseconds that an event took
 * from the backend, which has written into it when it was sent. The streams stay open until the
 * input ends. A stream that ends, and one event that is missing for a minute, is an error.
 */
#define _GNU_SOURCE
#include "../common.h"
#include "event.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { CONCURRENCY = 64 };

struct stream {
    int fd, matched; /* of the end of the head */
    int events;
    size_t len; /* of the event that has come in part */
    char event[EVENT_LEN + 1];
};

static const char request[] = "GET /events HTTP/1.1\r\nHost: localhost\r\n"
                              "Accept: text/event-stream\r\n\r\n";

static int epoll, port, count, begun, opened, due;
static struct stream *streams;
static double *times;
static int received;

static void begin(void)
{
    struct stream *stream = &streams[begun];
    if (begun == count)
        return;
    stream->fd = dial(port, begun++);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = stream};
    need(epoll_ctl(epoll, EPOLL_CTL_ADD, stream->fd, &event) == 0, "EPOLL_CTL_ADD");
    need(send(stream->fd, request, sizeof request - 1, MSG_NOSIGNAL) == sizeof request - 1,
         "asking");
}

static void take_event(struct stream *stream, double time)
{
    double sent;
    need(sscanf(stream->event, "data: %lf", &sent) == 1 && sent <= time, "an event");
    need(++stream->events <= due, "no event that is not due");
    times[received++] = time - sent;
    stream->len = 0;
}

static void go_on(struct stream *stream)
{
    char bytes[4096];
    ssize_t n = recv(stream->fd, bytes, sizeof bytes, 0);
    double time = now();
    ssize_t i = 0;
    need(n > 0, "a stream that goes on");
    if (stream->matched == 0)
        need(n >= 13 && memcmp(bytes, "HTTP/1.1 200 ", 13) == 0, "an answer of status 200");
    for (; i < n && stream->matched < 4; i++)
        if ((stream->matched = match_end(stream->matched, bytes[i])) == 4) {
            opened++;
            begin();
        }
    for (; i < n; i++) {
        stream->event[stream->len++] = bytes[i];
        if (stream->len == EVENT_LEN)
            take_event(stream, time);
    }
}

static void turn(void)
{
    struct epoll_event events[64];
    int n = epoll_wait(epoll, events, 64, 60000);
    need(n > 0, "nothing has come for a minute");
    for (int i = 0; i < n; i++)
        go_on(events[i].data.ptr);
}

int main(int argc, char **argv)
{
    need(argc == 4, "usage: stream_client PORT STREAMS EVENTS");
    port = atoi(argv[1]);
    count = atoi(argv[2]);
    due = atoi(argv[3]);
    need(count > 0 && due > 0, "arguments");
    streams = calloc((size_t)count, sizeof *streams);
    times = calloc((size_t)count * (size_t)due, sizeof *times);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    need(streams != NULL && times != NULL && epoll != -1, "starting");
    for (int i = 0; i < CONCURRENCY; i++)
        begin();
    while (opened < count)
        turn();
    puts("open");
    fflush(stdout);
    while (received < count * due)
        turn();
    printf("%.0f", quantile(times, received, 0.5));
    printf(" %.0f\n", quantile(times, received, 0.99));
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return 0;
}
