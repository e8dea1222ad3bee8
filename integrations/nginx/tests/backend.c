/*
 * backend: an HTTP/1.1 server that takes connections from a handoff socket, from a Unix socket and
 * from a TCP port, so that the same program answers what was handed over, proxied and sent to it
 * directly. And an echo, for streams.
 *
 *   backend [-h HANDOFF] [-u UNIX] [-t PORT] [-e ECHO_HANDOFF] [-p ECHO_PORT] [-l LOG]
 *           [-d MIN-MAX] [-r EVERY] [-R REASON] [-n] [-m MAX_OFFER_BYTES]
 *           [-c MAX_IN_FLIGHT] [-x CHANGES]
 *
 * It waits MIN to MAX milliseconds before it adopts, rejects every EVERYth arrival for REASON (a
 * number), or with -n holds what arrives until somebody asks for /release, and again from /hold on.
 * LOG gets a line for each request answered: how it came, and its id. /stats tells what the handoff
 * socket has done. SIGTERM drains: what has begun is answered, what is held goes back.
 *
 * With -x it does to each arrival, before it decides, what only an owner may do: see change(). And to
 * the copies that it keeps once more after a rejection, because the library undoes SO_LINGER.
 */
#define _GNU_SOURCE
#include "backend.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MOST_HELD = 16384, MOST_COPIES = 256 };

/* Where connections come from. */
struct source {
    struct watched watched; /* first: events name it */
    enum way way;
    bool echo;
    handoff_backend *backend; /* of a handoff socket */
};

/* An arrival that is not decided yet. */
struct held {
    struct source *source;
    handoff_arrival arrival;
    uint64_t due_ns;
};

struct clients clients = TAILQ_HEAD_INITIALIZER(clients);
bool draining;

static int epoll, log_file = -1;
static struct source sources[5], signals;
static int source_count;
static struct held held[MOST_HELD];
static size_t held_count;
static uint64_t arrivals, delay_min_ms, delay_max_ms, reject_every;
static handoff_reason reject_reason = HANDOFF_REASON_REJECTED;
static bool hold;
static const char *changes = "";
static int copies[MOST_COPIES];
static int copy_count;

void check(int ok, const char *what, const char *why)
{
    if (ok)
        return;
    fprintf(stderr, "backend: %s: %s\n", what, why ? why : strerror(errno));
    exit(1);
}

void *allocate(size_t size)
{
    void *memory = calloc(1, size);
    check(memory != NULL, "calloc", NULL);
    return memory;
}

void log_request(const char *way, const char *id)
{
    if (log_file != -1)
        check(dprintf(log_file, "%s %s\n", way, id) > 0, "log", NULL);
}

void change_watch(struct watched *what, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = what};
    check(epoll_ctl(epoll, EPOLL_CTL_MOD, what->fd, &event) == 0, "EPOLL_CTL_MOD",
          NULL);
}

void watch(struct watched *what, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = what};
    check(what->fd != -1 && epoll_ctl(epoll, EPOLL_CTL_ADD, what->fd, &event) == 0,
          "EPOLL_CTL_ADD", NULL);
}

void forget(struct watched *what)
{
    check(epoll_ctl(epoll, EPOLL_CTL_DEL, what->fd, NULL) == 0, "EPOLL_CTL_DEL", NULL);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    check(clock_gettime(CLOCK_MONOTONIC, &now) == 0, "clock_gettime", NULL);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ---- arrivals ---- */

/* Adopts or rejects. The client begins only after that: what it does may not be undone. */
static void decide(struct source *source, const handoff_arrival *arrival)
{
    int fd;
    handoff_status status;
    arrivals++;
    if (reject_every > 0 && arrivals % reject_every == 0) {
        change_copies(changes); /* before the verdict, after which they are nginx's */
        check(handoff_backend_reject(source->backend, arrival->id, reject_reason) == HANDOFF_OK,
              "reject", handoff_last_error());
        return;
    }
    status = handoff_backend_adopt(source->backend, arrival->id, &fd);
    if (status == HANDOFF_OK)
        begin_client(fd, HANDOFF, source->echo, arrival);
    else /* the broker was faster, and serves it */
        check(status == HANDOFF_ERR_TAKEN_BACK, "adopt", handoff_last_error());
}

static uint64_t cookie_of(int fd)
{
    uint64_t cookie = 0;
    socklen_t len = sizeof cookie;
    getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &len);
    return cookie;
}

/* Whether a copy of this socket is kept. */
static bool is_copy(int fd)
{
    for (int i = 0; i < copy_count; i++)
        if (cookie_of(copies[i]) == cookie_of(fd))
            return true;
    return false;
}

static void set_option(int fd, int level, int option, int value)
{
    /* Not every option is one of every kind of socket. */
    setsockopt(fd, level, option, &value, sizeof value);
}

/* Changes what every copy of a descriptor shares, by one letter each. */
static void change(int fd, const char *letters)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 3600};
    int flags = fcntl(fd, F_GETFL);
    check(flags != -1, "F_GETFL", NULL);
    for (; *letters != '\0'; letters++)
        switch (*letters) {
        case 'b': flags &= ~O_NONBLOCK; break;
        case 'a': flags |= O_ASYNC; break;
        case 'l':
            check(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0, "SO_LINGER",
                  NULL);
            break;
        case 'w': set_option(fd, SOL_SOCKET, SO_RCVLOWAT, 64 * 1024); break;
        case 'c': set_option(fd, IPPROTO_TCP, TCP_CORK, 1); break;
        case 'd': set_option(fd, IPPROTO_TCP, TCP_NODELAY, 0); break;
        case 's': shutdown(fd, SHUT_WR); break;
        case 'k': /* keeps a copy */
            if (is_copy(fd))
                break;
            check(copy_count < MOST_COPIES, "copies", "too many");
            copies[copy_count] = fcntl(fd, F_DUPFD_CLOEXEC, 0);
            check(copies[copy_count++] != -1, "F_DUPFD_CLOEXEC", NULL);
            break;
        default: check(0, "usage", "unknown change");
        }
    check(fcntl(fd, F_SETFL, flags) == 0, "F_SETFL", NULL);
}

void change_copies(const char *letters)
{
    for (int i = 0; i < copy_count; i++)
        change(copies[i], letters);
}

void close_copies(void)
{
    while (copy_count > 0)
        close(copies[--copy_count]);
}

static bool is_arrival(int fd)
{
    struct sockaddr_storage peer;
    socklen_t len = sizeof peer;
    struct client *client;
    if (getpeername(fd, (struct sockaddr *)&peer, &len) == -1 || peer.ss_family != AF_INET)
        return false;
    TAILQ_FOREACH(client, &clients, next)
        if (client->watched.fd == fd)
            return false;
    return !is_copy(fd);
}

/* The library shows no descriptor before the connection is adopted. Who looks finds them. */
static void change_arrivals(void)
{
    DIR *directory = opendir("/proc/self/fd");
    check(directory != NULL, "/proc/self/fd", NULL);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        if (is_arrival(atoi(entry->d_name)))
            change(atoi(entry->d_name), changes);
    closedir(directory);
}

static int option_of(int fd, int level, int option)
{
    int values[2] = {-1, -1}; /* as many as struct linger has */
    socklen_t len = sizeof values;
    getsockopt(fd, level, option, values, &len);
    return values[0];
}

int describe_copies(char *text, size_t size)
{
    int len = 0;
    for (int i = 0; i < copy_count && len < (int)size - 80; i++) {
        int fd = copies[i], flags = fcntl(fd, F_GETFL);
        len += snprintf(text + len, size - (size_t)len,
                        "nonblock=%d async=%d linger=%d lowat=%d cork=%d nodelay=%d\n",
                        (flags & O_NONBLOCK) != 0, (flags & O_ASYNC) != 0,
                        option_of(fd, SOL_SOCKET, SO_LINGER), option_of(fd, SOL_SOCKET, SO_RCVLOWAT),
                        option_of(fd, IPPROTO_TCP, TCP_CORK),
                        option_of(fd, IPPROTO_TCP, TCP_NODELAY));
    }
    return len;
}

static void take_arrivals(struct source *source)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_status status;
    check(handoff_backend_dispatch(source->backend) == HANDOFF_OK, "dispatch",
          handoff_last_error());
    while ((status = handoff_backend_next(source->backend, &arrival)) == HANDOFF_OK) {
        if (*changes != '\0')
            change_arrivals();
        if (!hold && delay_max_ms == 0) {
            decide(source, &arrival);
            continue;
        }
        uint64_t delay = delay_min_ms * 1000000 +
                         (uint64_t)(drand48() * (double)(delay_max_ms - delay_min_ms) * 1e6);
        check(held_count < MOST_HELD, "held arrivals", "too many");
        held[held_count++] = (struct held){.source = source, .arrival = arrival,
                                           .due_ns = hold ? UINT64_MAX : now_ns() + delay};
    }
    check(status == HANDOFF_NOTHING, "next", handoff_last_error());
}

/* Decides what is due. Returns the milliseconds until something is, or -1. */
static int decide_due(void)
{
    uint64_t now = now_ns(), next = UINT64_MAX;
    for (size_t i = 0; i < held_count;) {
        if (held[i].due_ns > now) {
            if (held[i].due_ns < next)
                next = held[i].due_ns;
            i++;
            continue;
        }
        struct held due = held[i];
        held[i] = held[--held_count];
        decide(due.source, &due.arrival);
    }
    return next == UINT64_MAX ? -1 : (int)((next - now) / 1000000 + 1);
}

void hold_arrivals(void)
{
    hold = true;
}

void release_held(void)
{
    hold = false;
    for (size_t i = 0; i < held_count; i++)
        held[i].due_ns = 0;
}

int write_statistics(char *text, size_t size)
{
    handoff_backend_statistics sum = HANDOFF_BACKEND_STATISTICS_INIT;
    unsigned count = 0;
    char ends[160];
    for (int i = 0; i < source_count; i++) {
        handoff_backend_statistics one = HANDOFF_BACKEND_STATISTICS_INIT;
        if (sources[i].backend == NULL)
            continue;
        check(handoff_backend_get_statistics(sources[i].backend, &one) == HANDOFF_OK, "statistics",
              handoff_last_error());
        sum.arrived += one.arrived;
        sum.adopted += one.adopted;
        sum.rejected += one.rejected;
        sum.taken_back += one.taken_back;
        sum.held += one.held;
        sum.channels += one.channels;
        sum.broken += one.broken;
    }
    struct client *client;
    TAILQ_FOREACH(client, &clients, next)
        count++;
    describe_tls_ends(ends, sizeof ends);
    return snprintf(text, size,
                    "{\"arrived\": %llu, \"adopted\": %llu, \"rejected\": %llu, "
                    "\"taken_back\": %llu, \"held\": %llu, \"channels\": %llu, \"broken\": %llu, "
                    "\"clients\": %u, \"tls_ends\": %s}\n",
                    (unsigned long long)sum.arrived, (unsigned long long)sum.adopted,
                    (unsigned long long)sum.rejected, (unsigned long long)sum.taken_back,
                    (unsigned long long)sum.held, (unsigned long long)sum.channels,
                    (unsigned long long)sum.broken, count, ends);
}

/* ---- where connections come from ---- */

static struct source *add_source(int fd, enum way way, bool echo)
{
    check(source_count < (int)(sizeof sources / sizeof *sources), "usage", "too many sockets");
    struct source *source = &sources[source_count++];
    *source = (struct source){.watched.fd = fd, .way = way, .echo = echo};
    return source;
}

static void listen_handoff(const char *path, bool echo, const handoff_backend_options *options)
{
    struct source *source = add_source(-1, HANDOFF, echo);
    check(handoff_backend_listen(path, options, &source->backend) == HANDOFF_OK, path,
          handoff_last_error());
    source->watched.fd = handoff_backend_fd(source->backend);
}

static void listen_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    check(strlen(path) < sizeof address.sun_path, path, "too long");
    strcpy(address.sun_path, path);
    unlink(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    check(fd != -1 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
          listen(fd, 4096) == 0, path, NULL);
    add_source(fd, UNIX, false);
}

static int listen_tcp(const char *port, bool echo)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    check(fd != -1 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
          bind(fd, (struct sockaddr *)&address, len) == 0 && listen(fd, 4096) == 0 &&
          getsockname(fd, (struct sockaddr *)&address, &len) == 0, "listen", NULL);
    add_source(fd, TCP, echo);
    return ntohs(address.sin_port);
}

static void accept_clients(struct source *source)
{
    int fd, yes = 1;
    while ((fd = accept4(source->watched.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) != -1) {
        if (source->way == TCP) /* as nginx does for what it hands over */
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        begin_client(fd, source->way, source->echo, NULL);
    }
}

/* What is held goes back to its broker when the handle is freed, unless its time comes before. */
static void drain(void)
{
    draining = true;
    forget(&signals.watched);
    for (int i = 0; i < source_count; i++)
        if (sources[i].backend != NULL) {
            check(handoff_backend_drain(sources[i].backend) == HANDOFF_OK, "drain",
                  handoff_last_error());
            take_arrivals(&sources[i]);
        } else {
            forget(&sources[i].watched);
            close(sources[i].watched.fd);
        }
    if (hold)
        held_count = 0;
    drain_clients();
}

static void free_backends(void)
{
    for (int i = 0; i < source_count; i++) {
        handoff_backend_free(sources[i].backend);
        sources[i].backend = NULL;
    }
}

/* Reads the options and listens. Says where on the standard output. */
static void start(int argc, char **argv)
{
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    const char *handoff = NULL, *echo_handoff = NULL;
    int option, port = 0, echo_port = 0;
    while ((option = getopt(argc, argv, "h:u:t:e:p:l:d:r:R:nm:c:x:")) != -1) {
        char *end;
        switch (option) {
        case 'h': handoff = optarg; break;
        case 'u': listen_unix(optarg); break;
        case 't': port = listen_tcp(optarg, false); break;
        case 'e': echo_handoff = optarg; break;
        case 'p': echo_port = listen_tcp(optarg, true); break;
        case 'l':
            log_file = open(optarg, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
            check(log_file != -1, optarg, NULL);
            break;
        case 'd':
            delay_min_ms = strtoull(optarg, &end, 10);
            delay_max_ms = *end == '-' ? strtoull(end + 1, NULL, 10) : delay_min_ms;
            break;
        case 'r': reject_every = strtoull(optarg, NULL, 10); break;
        case 'R': reject_reason = (handoff_reason)atoi(optarg); break;
        case 'n': hold = true; break;
        case 'm': options.max_offer_bytes = strtoull(optarg, NULL, 10); break;
        case 'c': options.max_in_flight = strtoull(optarg, NULL, 10); break;
        case 'x': changes = optarg; break;
        default: exit(1);
        }
    }
    if (handoff != NULL)
        listen_handoff(handoff, false, &options);
    if (echo_handoff != NULL)
        listen_handoff(echo_handoff, true, &options);
    for (int i = 0; i < source_count; i++)
        watch(&sources[i].watched, EPOLLIN);
    printf("%d %d\n", port, echo_port);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    check(sigprocmask(SIG_BLOCK, &stop, NULL) == 0, "signals", NULL);
    signals.watched.fd = signalfd(-1, &stop, SFD_CLOEXEC);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    watch(&signals.watched, EPOLLIN);
    srand48(getpid());
    start(argc, argv);

    int timeout = -1;
    while (!draining || held_count > 0 || !TAILQ_EMPTY(&clients)) {
        struct epoll_event events[128];
        struct source *arrived[2];
        int arrived_count = 0, stopping = 0;
        int count = epoll_wait(epoll, events, 128, timeout);
        check(count != -1 || errno == EINTR, "epoll_wait", NULL);
        for (int i = 0; i < count; i++) {
            struct watched *what = events[i].data.ptr;
            if (what->is_client)
                on_client((struct client *)what);
            else if (what == &signals.watched)
                stopping = 1;
            else if (((struct source *)what)->backend != NULL)
                arrived[arrived_count++] = (struct source *)what;
            else
                accept_clients((struct source *)what);
        }
        for (int i = 0; i < arrived_count; i++)
            take_arrivals(arrived[i]);
        if (stopping) /* last, because it ends clients that events may name */
            drain();
        timeout = decide_due();
        if (draining && held_count == 0)
            free_backends();
    }
    free_backends();
    return 0;
}
