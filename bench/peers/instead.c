/*
 * What people do instead of moving a connection. One backend that accepts connections of its own,
 * on a TCP port and a Unix socket, and the brokers that bring clients to it:
 *
 *   instead reconnect        answers a client with the backend's port, where it connects anew
 *   instead reconnect-unix   the same for clients on this host, with the backend's Unix socket
 *   instead copy             a proxy: connects to the backend's Unix socket, and copies
 *   instead splice           a proxy that moves the answer through a pipe, without copying it
 *   instead backend PATH     the backend only, for nginx: it listens at PATH
 *
 * The proxies do the least that can be done: a request is here whole when they connect, so they
 * watch for the answer only, and they wait for a client that reads slowly.
 */
#define _GNU_SOURCE
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int tcp_listener, unix_listener, is_reconnect, is_splice, pipe_fds[2];
static struct sockaddr_un unix_at = {.sun_family = AF_UNIX};
static socklen_t unix_len;
static char where[128];

static void listen_unix(void)
{
    unix_listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(unix_listener != -1 && bind(unix_listener, (struct sockaddr *)&unix_at, unix_len) == 0 &&
         listen(unix_listener, 4096) == 0, "listening");
}

static void prepare(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    tcp_listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(tcp_listener != -1 && bind(tcp_listener, (struct sockaddr *)&at, len) == 0 &&
         listen(tcp_listener, 4096) == 0 &&
         getsockname(tcp_listener, (struct sockaddr *)&at, &len) == 0, "listening");
    int name_len = snprintf(unix_at.sun_path + 1, sizeof unix_at.sun_path - 1, "bench-instead-%d",
                            getpid());
    unix_len = (socklen_t)(sizeof unix_at.sun_family + 1 + (size_t)name_len);
    listen_unix();
    if (where[0] == '@')
        snprintf(where, sizeof where, "> @%s", unix_at.sun_path + 1);
    else
        snprintf(where, sizeof where, "> %d", ntohs(at.sin_port));
    need(pipe2(pipe_fds, O_CLOEXEC) == 0, "pipe2");
}

/* ---- the brokers ---- */

struct upstream {
    struct source source;
    struct client *client;
};

static void begin(int socket)
{
    (void)socket;
}

/* A client that has gone is not an error: it may end as soon as it has what it wants. */
static void copy(struct source *source)
{
    struct upstream *upstream = (struct upstream *)source; /* its first member */
    static char bytes[65536];
    int to = upstream->client->source.fd;
    ssize_t n;
    if (is_splice) {
        n = splice(source->fd, NULL, pipe_fds[1], NULL, 65536, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        need(n >= 0 || errno == EAGAIN, "splice");
        for (ssize_t left = n, moved; left > 0; left -= moved) {
            moved = splice(pipe_fds[0], NULL, to, NULL, (size_t)left, SPLICE_F_MOVE);
            need(moved > 0, "splice");
        }
    } else {
        n = recv(source->fd, bytes, sizeof bytes, MSG_DONTWAIT);
        need(n >= 0 || errno == EAGAIN, "recv");
        need(n <= 0 || send(to, bytes, (size_t)n, MSG_NOSIGNAL) == n, "send");
    }
    if (n != 0)
        return;
    close(source->fd);
    settle(upstream->client);
    free(upstream);
}

static int proxy(struct client *client)
{
    struct upstream *upstream = malloc(sizeof *upstream);
    need(upstream != NULL, "malloc");
    upstream->client = client;
    upstream->source.ready = copy;
    upstream->source.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(upstream->source.fd != -1 &&
         connect(upstream->source.fd, (struct sockaddr *)&unix_at, unix_len) == 0 &&
         send(upstream->source.fd, client->request, REQUEST, MSG_NOSIGNAL) == REQUEST,
         "to the backend");
    watch(&upstream->source);
    return 1;
}

static int send_away(struct client *client)
{
    need(send(client->source.fd, where, strlen(where), MSG_NOSIGNAL) == (ssize_t)strlen(where),
         "sending away");
    settle(client);
    return 1;
}

static int bring(struct client *client)
{
    return is_reconnect ? send_away(client) : proxy(client);
}

/* ---- the backend ---- */

struct connection {
    int fd;
    size_t len;
    char request[4096];
};

static int epoll, finished;

static void watch_for(int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    need(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "EPOLL_CTL_ADD");
}

static void end(struct connection *connection)
{
    close(connection->fd);
    free(connection);
}

/* A proxy that speaks HTTP/1.1, which is nginx, keeps its connections. Returns 0 if the connection
 * has ended, -1 if nothing has come. */
static int read_request(struct connection *connection)
{
    ssize_t n = recv(connection->fd, connection->request + connection->len,
                     sizeof connection->request - connection->len - 1, MSG_DONTWAIT);
    if (n == -1 && errno == EAGAIN)
        return -1;
    if (n <= 0) {
        end(connection);
        return 0;
    }
    connection->len += (size_t)n;
    connection->request[connection->len] = 0;
    if (connection->len < 4 ||
        memcmp(connection->request + connection->len - 4, "\r\n\r\n", 4) != 0)
        return 1;
    finished |= arrived();
    if (strstr(connection->request, " HTTP/1.1\r\n") == NULL) {
        serve(connection->fd);
        free(connection);
        return 0;
    }
    answer(connection->fd);
    connection->len = 0;
    return 1;
}

static void accept_connection(int listener)
{
    struct connection *connection = malloc(sizeof *connection);
    need(connection != NULL, "malloc");
    connection->len = 0;
    connection->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    need(connection->fd != -1, "accept");
    if (read_request(connection) != 0)
        watch_for(connection->fd, connection);
}

static void backend(int socket)
{
    (void)socket;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    need(epoll != -1, "epoll_create1");
    watch_for(unix_listener, &unix_listener);
    if (tcp_listener != 0)
        watch_for(tcp_listener, &tcp_listener);
    while (!finished) {
        struct epoll_event events[64];
        int n = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < n; i++) {
            void *what = events[i].data.ptr;
            if (what == &unix_listener || what == &tcp_listener)
                accept_connection(*(int *)what);
            else
                read_request(what);
        }
    }
}

int main(int argc, char **argv)
{
    static const struct peer broker = {prepare, begin, bring, NULL, NULL, NULL, backend};
    const char *way = argc > 1 ? argv[1] : "";
    if (strcmp(way, "backend") == 0 && argc == 3) {
        need(strlen(argv[2]) < sizeof unix_at.sun_path, argv[2]);
        strcpy(unix_at.sun_path, argv[2]);
        unix_len = sizeof unix_at;
        listen_unix();
        return run_backend(backend);
    }
    is_reconnect = strncmp(way, "reconnect", 9) == 0;
    is_splice = strcmp(way, "splice") == 0;
    where[0] = strcmp(way, "reconnect-unix") == 0 ? '@' : '>';
    need(is_reconnect || is_splice || strcmp(way, "copy") == 0,
         "usage: instead reconnect|reconnect-unix|copy|splice, or instead backend PATH");
    return run_peer(&broker);
}
