/*
 * client: many TCP clients, so many at a time, over the loopback interface.
 *
 *   client PORT CONCURRENCY WARM COUNT [TIMES]
 *
 * Each connects, sends a request of 200 bytes, and reads until the server ends the connection. One
 * that is answered "> ADDRESS" asks again there: at a port, or at an abstract Unix socket. The time
 * of a client is that from its connect(2) to the first byte of its answer; those after the first
 * WARM go to the file TIMES, in nanoseconds, 4 bytes each. Prints how long it took for these to
 * end, and how many bytes they got.
 */
#define _GNU_SOURCE
#include "../common.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { REQUEST = 200, MOST = 1 << 20 };

struct client {
    int fd, number, has_answer;
    double start;
};

static int epoll, port, warm, count, begun, ended;
static double measured_from;
static unsigned long bytes_read;
static uint32_t times[MOST];
static char request[REQUEST + 1], bytes[1 << 18];

/* Connects and asks at once. Over loopback a connection is there when connect(2) returns. */
static void ask(struct client *client, const struct sockaddr *at, socklen_t len)
{
    struct linger reset = {.l_onoff = 1}; /* leaves no connection behind in TIME_WAIT */
    client->fd = socket(at->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(client->fd != -1 &&
         setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset) == 0 &&
         connect(client->fd, at, len) == 0 &&
         send(client->fd, request, REQUEST, MSG_NOSIGNAL) == REQUEST, "asking");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
    need(epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event) == 0, "EPOLL_CTL_ADD");
}

static void ask_tcp(struct client *client, int at_port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)at_port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    ask(client, (struct sockaddr *)&at, sizeof at);
}

static void ask_again(struct client *client, const char *where)
{
    close(client->fd);
    if (*where != '@') {
        ask_tcp(client, atoi(where));
        return;
    }
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    size_t len = strlen(where + 1);
    need(len < sizeof at.sun_path, "where");
    memcpy(at.sun_path + 1, where + 1, len);
    ask(client, (struct sockaddr *)&at, (socklen_t)(sizeof at.sun_family + 1 + len));
}

/* Not 0: there was one more to begin. */
static int begin(struct client *client)
{
    if (begun == warm + count)
        return 0;
    if (begun == warm)
        measured_from = now();
    client->number = begun++;
    client->has_answer = 0;
    client->start = now();
    ask_tcp(client, port);
    return 1;
}

static void read_answer(struct client *client)
{
    ssize_t n = recv(client->fd, bytes, sizeof bytes - 1, 0);
    need(n > 0 || (n == 0 && client->has_answer), "an answer");
    if (n == 0) {
        close(client->fd);
        ended++;
        begin(client);
        return;
    }
    bytes[n] = 0;
    if (!client->has_answer && bytes[0] == '>') {
        ask_again(client, bytes + 2);
        return;
    }
    if (!client->has_answer && client->number >= warm)
        times[client->number - warm] = (uint32_t)(now() - client->start);
    client->has_answer = 1;
    if (client->number >= warm)
        bytes_read += (unsigned long)n;
}

int main(int argc, char **argv)
{
    static struct client clients[1024];
    need(argc >= 5, "usage: client PORT CONCURRENCY WARM COUNT [TIMES]");
    int concurrency = atoi(argv[2]);
    port = atoi(argv[1]);
    warm = atoi(argv[3]);
    count = atoi(argv[4]);
    need(concurrency > 0 && concurrency <= 1024 && count > 0 && count <= MOST, "arguments");
    int len = snprintf(request, sizeof request, "GET / HTTP/1.0\r\nHost: localhost\r\nX-Filler: ");
    memset(request + len, 'x', (size_t)(REQUEST - len));
    memcpy(request + REQUEST - 4, "\r\n\r\n", 4);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    need(epoll != -1, "epoll_create1");
    for (int i = 0; i < concurrency; i++)
        begin(&clients[i]);
    while (ended < warm + count) {
        struct epoll_event events[64];
        int n = epoll_wait(epoll, events, 64, 30000);
        need(n > 0, "no answer for 30 seconds");
        for (int i = 0; i < n; i++)
            read_answer(events[i].data.ptr);
    }
    printf("client %.0f %lu\n", now() - measured_from, bytes_read);
    if (argc > 5) {
        FILE *file = fopen(argv[5], "wb");
        need(file != NULL && fwrite(times, sizeof *times, (size_t)count, file) == (size_t)count &&
             fclose(file) == 0, argv[5]);
    }
    return 0;
}
