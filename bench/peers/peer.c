#define _GNU_SOURCE
#include "peer.h"

#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

int is_move, count, warm, in_flight, preread, hold, answer_len, many, gather, channels;
int backends, packets, epoll_set, blocking, spin;

static int parameter(const char *name, int otherwise)
{
    const char *text = getenv(name);
    int value = text == NULL ? otherwise : atoi(text);
    need(value >= 0, name);
    return value;
}

static void read_parameters(void)
{
    const char *mode = getenv("MODE");
    is_move = mode != NULL && strcmp(mode, "move") == 0;
    count = parameter("COUNT", 1000);
    warm = parameter("WARM", 0);
    in_flight = parameter("IN_FLIGHT", 256);
    preread = is_move ? parameter("PREREAD", REQUEST) : REQUEST;
    hold = parameter("HOLD", 0);
    answer_len = parameter("ANSWER", 128);
    many = parameter("MANY", 0);
    gather = parameter("GATHER", 0);
    channels = parameter("CHANNELS", 1);
    backends = parameter("BACKENDS", 1);
    packets = parameter("PARTS", 0);
    epoll_set = parameter("EPOLL_SET", 0);
    blocking = parameter("BLOCKING", 0);
    spin = parameter("SPIN", 0);
    need(answer_len <= MOST_PIECE || answer_len % MOST_PIECE == 0, "ANSWER");
    need(preread <= MOST_PREREAD && many <= MOST_MANY && in_flight <= MOST_CLIENTS, "parameters");
    struct rlimit limit; /* 10,000 connections in flight are more than the usual limit */
    need(getrlimit(RLIMIT_NOFILE, &limit) == 0, "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    need(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
}

/* ---- measuring ---- */

static double begun, begun_cpu, ended, ended_cpu;

static double cpu(void)
{
    struct rusage usage;
    need(getrusage(RUSAGE_SELF, &usage) == 0, "getrusage");
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e9 +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e3;
}

/* The first mark begins the measurement, the second ends it. */
static void mark(void)
{
    if (begun == 0) {
        begun_cpu = cpu();
        begun = now();
    } else {
        ended = now();
        ended_cpu = cpu();
    }
}

/* Not ru_maxrss, which remembers the process that this one was started from. */
static long peak_kib(void)
{
    char line[256];
    long kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status != NULL && fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "VmHWM: %ld", &kib) == 1)
            break;
    if (status != NULL)
        fclose(status);
    return kib;
}

static void report(const char *side)
{
    printf("%s %.0f %.0f %ld\n", side, ended - begun, ended_cpu - begun_cpu, peak_kib());
    fflush(stdout);
}

/* Counts one of `warm + count`. Not 0: it was the last. */
static int step(int *done)
{
    (*done)++;
    if (*done == warm || *done == warm + count)
        mark();
    return *done == warm + count;
}

/* ---- the broker ---- */

static const struct peer *peer;
static int epoll, done, offered;
static struct client *clients[MOST_CLIENTS], *waiting, **last_waiting = &waiting;
static int unused[MOST_CLIENTS], unused_count;

void watch(struct source *source)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = source};
    need(epoll_ctl(epoll, EPOLL_CTL_ADD, source->fd, &event) == 0, "EPOLL_CTL_ADD");
}

void unwatch(struct source *source)
{
    need(epoll_ctl(epoll, EPOLL_CTL_DEL, source->fd, NULL) == 0, "EPOLL_CTL_DEL");
}

/* The slot and a serial number: nobody checks these tokens, so a random source is left out. */
void token_for(const struct client *client, unsigned char token[TOKEN])
{
    static unsigned serial;
    int slot = client->slot;
    memset(token, 0, TOKEN);
    serial++;
    memcpy(token, &slot, sizeof slot);
    memcpy(token + sizeof slot, &serial, sizeof serial);
}

struct client *client_of(const unsigned char token[TOKEN])
{
    int slot;
    memcpy(&slot, token, sizeof slot);
    need(slot >= 0 && slot < MOST_CLIENTS && clients[slot] != NULL, "a token of no client");
    return clients[slot];
}

static struct client *new_client(int fd)
{
    need(unused_count > 0, "too many clients");
    struct client *client = malloc(sizeof *client);
    need(client != NULL, "malloc");
    client->source.fd = fd;
    client->slot = unused[--unused_count];
    client->preread = client->request;
    clients[client->slot] = client;
    return client;
}

static void offer_later(struct client *client)
{
    client->next = NULL;
    *last_waiting = client;
    last_waiting = &client->next;
}

static void offer_waiting(void)
{
    while (waiting != NULL) {
        struct client *client = waiting, *next = client->next;
        if (!peer->offer(client))
            break;
        waiting = next; /* the client may be settled already, and free */
        if (next == NULL)
            last_waiting = &waiting;
    }
    if (peer->flush != NULL)
        peer->flush();
}

/* A client's connection is the backend's, or it was served in another way. */
void settle(struct client *client)
{
    settled();
    if (is_move) {
        if (offered < warm + count) {
            offered++;
            offer_later(client);
        }
        return;
    }
    close(client->source.fd);
    clients[client->slot] = NULL;
    unused[unused_count++] = client->slot;
    free(client);
}

/* Reads what the client asks, which comes in one piece. Not 0: it has. */
static int has_asked(struct client *client)
{
    ssize_t n = recv(client->source.fd, client->request, REQUEST, MSG_DONTWAIT);
    if (n == -1 && errno == EAGAIN)
        return 0;
    need(n == REQUEST, "request");
    return 1;
}

static void client_ready(struct source *source)
{
    struct client *client = (struct client *)source; /* its first member */
    if (!has_asked(client))
        return;
    unwatch(source);
    offer_later(client);
}

static void listener_ready(struct source *source)
{
    int fd;
    while ((fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC)) != -1) {
        struct client *client = new_client(fd);
        if (has_asked(client)) {
            offer_later(client);
        } else {
            client->source.ready = client_ready;
            watch(&client->source);
        }
    }
}

static void acknowledged(struct source *source)
{
    (void)source;
    peer->dispatch(0);
}

static int listen_tcp(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    need(listener != -1 && bind(listener, (struct sockaddr *)&at, len) == 0 &&
         listen(listener, 4096) == 0 && getsockname(listener, (struct sockaddr *)&at, &len) == 0,
         "listen");
    announce(ntohs(at.sin_port));
    return listener;
}

static void serve_clients(void)
{
    struct source clients_come = {listen_tcp(), listener_ready};
    struct source acknowledgements = {-1, acknowledged};
    watch(&clients_come);
    if (peer->watched != NULL) {
        acknowledgements.fd = peer->watched();
        watch(&acknowledgements);
    }
    while (done < warm + count) {
        struct epoll_event events[64];
        int n = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < n; i++) {
            struct source *source = events[i].data.ptr;
            source->ready(source);
        }
        offer_waiting();
    }
}

static void move_connections(void)
{
    static unsigned char bytes[MOST_PREREAD];
    for (; offered < in_flight && offered < warm + count; offered++) {
        static int pair[2];
        /* One may be on offer many times, so that many in flight need few descriptors here. */
        if (offered < MOST_CONNECTIONS)
            connect_tcp(pair);
        struct client *client = new_client(pair[1]);
        client->preread = bytes;
        offer_later(client);
    }
    while (done < warm + count) {
        offer_waiting();
        peer->dispatch(1);
    }
}

static int child;

static void be_backend(void (*backend)(int socket), int socket)
{
    if (getenv("BACKEND_CPU") != NULL) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(parameter("BACKEND_CPU", 0), &set);
        need(sched_setaffinity(0, sizeof set, &set) == 0, "sched_setaffinity");
    }
    if (warm == 0)
        mark();
    backend(socket);
    report("backend");
}

int run_backend(void (*backend)(int socket))
{
    read_parameters();
    be_backend(backend, -1);
    return 0;
}

int begin_peer(void (*prepare)(void), void (*backend)(int socket))
{
    int pair[2];
    read_parameters();
    need(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
    if (prepare != NULL)
        prepare();
    child = make_child();
    if (child == 0) {
        close(pair[0]);
        be_backend(backend, pair[1]);
        _exit(0);
    }
    close(pair[1]);
    if (warm == 0)
        mark();
    return pair[0];
}

int settled(void)
{
    return step(&done);
}

int end_peer(void)
{
    int status;
    report("broker");
    need(waitpid(child, &status, 0) == child && status == 0, "backend");
    return 0;
}

void announce(int port)
{
    printf("port %d\n", port);
    fflush(stdout);
}

int run_peer(const struct peer *which)
{
    peer = which;
    int socket = begin_peer(peer->prepare, peer->backend);
    for (int i = 0; i < MOST_CLIENTS; i++)
        unused[unused_count++] = MOST_CLIENTS - 1 - i;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    need(epoll != -1, "epoll_create1");
    peer->begin(socket);
    if (is_move)
        move_connections();
    else
        serve_clients();
    return end_peer();
}

/* ---- the backend ---- */

int arrived(void)
{
    static int arrivals;
    return step(&arrivals);
}

int looks_first(int may_wait)
{
    return !may_wait || in_flight > 1 || spin > 0;
}

/* A small answer in one piece, and the first piece of a long one. */
void answer_bytes(char **bytes, size_t *len)
{
    static char answer[256 + MOST_PIECE];
    static size_t header_len;
    if (header_len == 0) {
        memset(answer, 'x', sizeof answer);
        header_len = (size_t)snprintf(answer, 256, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n",
                                      answer_len);
        answer[header_len] = 'x';
    }
    *bytes = answer;
    *len = header_len + (size_t)(answer_len < MOST_PIECE ? answer_len : MOST_PIECE);
}

void answer(int fd)
{
    char *bytes;
    size_t len;
    answer_bytes(&bytes, &len);
    need(send(fd, bytes, len, MSG_NOSIGNAL) == (ssize_t)len, "answering");
    for (int sent = MOST_PIECE; sent < answer_len; sent += MOST_PIECE)
        need(send(fd, bytes + len - MOST_PIECE, MOST_PIECE, MSG_NOSIGNAL) == MOST_PIECE,
             "answering");
}

void serve(int fd)
{
    if (!is_move) {
        answer(fd);
        shutdown(fd, SHUT_WR); /* the broker may still have a copy */
    }
    close(fd);
}
