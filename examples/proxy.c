/*
 * proxy: serves clients without handing them over, for comparison. It accepts TCP clients on
 * 127.0.0.1, connects to the ordinary Unix socket of a backend for each, and copies the answer.
 *
 *   cc proxy.c -o proxy
 *   ./proxy PORT PROXIES_SOCKET
 *
 * An event loop that never blocks, and the least that a proxy must do: it has no deadlines, and a
 * request comes in one piece.
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
#include <sys/un.h>
#include <unistd.h>

struct client {
    int fd, backend;   /* backend: -1 until the client has asked */
    int watched;       /* the one of them that it waits for */
    size_t begin, end; /* of the bytes that are not sent yet */
    char bytes[65536];
};

static struct sockaddr_un backend_at = {.sun_family = AF_UNIX};
static int epoll, listener, signals;

/* Ends the program if a system call failed that cannot fail in normal operation. */
static void check(int ok, const char *call)
{
    if (ok)
        return;
    fprintf(stderr, "proxy: %s: %s\n", call, strerror(errno));
    exit(1);
}

/* Watches a descriptor. Its events carry `what`: a client, &signals or &listener. */
static void watch(int fd, uint32_t events, void *what)
{
    struct epoll_event event = {.events = events, .data.ptr = what};
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "EPOLL_CTL_ADD");
}

/* A client waits for one descriptor at a time, so no event can be left of one that is released. */
static void wait_for(struct client *client, int fd, uint32_t events)
{
    if (client->watched == fd)
        return;
    check(epoll_ctl(epoll, EPOLL_CTL_DEL, client->watched, NULL) == 0, "EPOLL_CTL_DEL");
    watch(fd, events, client);
    client->watched = fd;
}

static void accept_clients(void)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) != -1) {
        struct client *client = malloc(sizeof *client);
        check(client != NULL, "malloc");
        client->fd = client->watched = fd;
        client->backend = -1;
        client->begin = client->end = 0;
        watch(fd, EPOLLIN, client);
    }
    if (errno == EAGAIN || errno == ECONNABORTED)
        return;
    /* Perhaps there is no descriptor for it now: the listener stays readable, so not again at once. */
    perror("proxy: accept4");
    usleep(10000);
}

static void release(struct client *client)
{
    if (client->backend != -1)
        close(client->backend);
    close(client->fd);
    free(client);
}

/* Reads a client's request and brings it to the backend. Returns 0 if the client is to be released,
 * and so does copy(). */
static int ask_backend(struct client *client)
{
    ssize_t len = recv(client->fd, client->bytes, sizeof client->bytes, 0);
    if (len <= 0)
        return len == -1 && errno == EAGAIN; /* otherwise it has gone */
    client->backend = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (client->backend == -1 ||
        connect(client->backend, (struct sockaddr *)&backend_at, sizeof backend_at) == -1 ||
        send(client->backend, client->bytes, (size_t)len, MSG_NOSIGNAL) != len) {
        perror("proxy: the backend");
        return 0;
    }
    wait_for(client, client->backend, EPOLLIN);
    return 1;
}

/* Copies until nothing more has come, or the client takes nothing more now. */
static int copy(struct client *client)
{
    for (;;) {
        while (client->begin < client->end) {
            ssize_t sent = send(client->fd, client->bytes + client->begin,
                                client->end - client->begin, MSG_NOSIGNAL);
            if (sent == -1 && errno != EAGAIN)
                return 0; /* it has gone */
            if (sent == -1) {
                wait_for(client, client->fd, EPOLLOUT);
                return 1;
            }
            client->begin += (size_t)sent;
        }
        ssize_t len = recv(client->backend, client->bytes, sizeof client->bytes, 0);
        if (len == 0 || (len == -1 && errno != EAGAIN))
            return 0;
        if (len == -1) {
            wait_for(client, client->backend, EPOLLIN);
            return 1;
        }
        client->begin = 0;
        client->end = (size_t)len;
    }
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
    if (argc != 3 || strlen(argv[2]) >= sizeof backend_at.sun_path) {
        fprintf(stderr, "usage: proxy PORT PROXIES_SOCKET\n");
        return 2;
    }
    strcpy(backend_at.sun_path, argv[2]);
    take_signals();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    check(epoll != -1, "epoll_create1");
    watch(signals, EPOLLIN, &signals);
    listen_tcp(argv[1]);
    watch(listener, EPOLLIN, &listener);

    for (;;) {
        struct epoll_event events[64];
        int count = epoll_wait(epoll, events, 64, -1);
        check(count != -1 || errno == EINTR, "epoll_wait");
        for (int i = 0; i < count; i++) {
            void *what = events[i].data.ptr;
            struct client *client = what;
            if (what == &signals)
                return 0;
            if (what == &listener)
                accept_clients();
            else if (!(client->backend == -1 ? ask_backend(client) : copy(client)))
                release(client);
        }
    }
}
