/* handoff broker: accepts clients and hands them over. For trying out backends. */
#define _GNU_SOURCE
#include "command.h"
#include "listen.h"
#include "summary.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <handoff.h>

enum {
    PREREAD_MOST = 131000,
    SERVICE_MOST = 255, /* bytes, of handoff_offer */
    PAUSE_US = 20000, /* before a backend that was busy is asked again */
    SHORTAGE_US = 1000000, /* before a client is accepted after a shortage, if none has gone */
    EVENTS = 64
};

struct client {
    struct client *before, *next;
    uint64_t number;
    int64_t accepted_us, deadline_us;
    int fd;
    char address[96];
    size_t preread_len;
    char *preread;
};

struct clients {
    struct client *first, *last;
};

/* Every client is either read from, or waits for room, or is on offer and so in none of these. In
 * both the one that is accepted first has the earliest deadline, and comes first. */
static struct clients reading, waiting;

static handoff_broker *broker;
static int epoll, signals, listener;
static bool accepting;
static int64_t accept_at_us; /* if not accepting */
static int64_t not_before_us; /* nothing is offered earlier, because a backend was busy */
static uint64_t accepted, now_here;

/* Options. */
static bool verbose;
static uint64_t wait_ms = 5000, preread_most;
static const char *service, *metadata;
static char **sockets;
static int sockets_len;

/* Watches a descriptor, unless the system is short of something. Its events carry `what`: a client,
 * &signals, &listener or &broker. */
static bool watches(int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

static void unwatch(int fd)
{
    must(epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL) == 0, "EPOLL_CTL_DEL");
}

/* Short of descriptors or memory: no client is accepted for a while, or until one has gone. */
static void accept_no_more(void)
{
    if (accepting)
        unwatch(listener);
    accepting = false;
    accept_at_us = now_us() + SHORTAGE_US;
}

static void accept_again(void)
{
    if (accepting || listener == -1)
        return;
    accepting = watches(listener, &listener);
    accept_at_us = now_us() + SHORTAGE_US;
}

static void forget(struct client *client)
{
    close(client->fd);
    free(client->preread);
    free(client);
    now_here--;
    accept_again();
}

static long long age_us(const struct client *client)
{
    return now_us() - client->accepted_us;
}

/* No backend has it, and nobody else is here to serve it. */
static void give_up(struct client *client, handoff_reason reason)
{
    count_closed(reason);
    if (verbose) {
        write_plainly(stdout, "%" PRIu64 " %s: closed after %lld us: %s", client->number,
                      client->address, age_us(client), handoff_reason_name(reason));
        putchar('\n');
    }
    /* A backend may still hold a copy. While it does, close(2) does not end the connection. */
    shutdown(client->fd, SHUT_RDWR);
    forget(client);
}

/* ---- offers and verdicts --------------------------------------------------------------------- */

/* Behind another client, or in front of all. */
static void insert(struct clients *list, struct client *client, struct client *before)
{
    struct client *next = before == NULL ? list->first : before->next;
    client->before = before;
    client->next = next;
    *(before == NULL ? &list->first : &before->next) = client;
    *(next == NULL ? &list->last : &next->before) = client;
}

static void take_out(struct clients *list, struct client *client)
{
    *(client->before == NULL ? &list->first : &client->before->next) = client->next;
    *(client->next == NULL ? &list->last : &client->next->before) = client->before;
}

/* Waits in the queue, in which the earliest deadline comes first. */
static void queue(struct client *client)
{
    struct client *before = waiting.last;
    while (before != NULL && before->deadline_us > client->deadline_us)
        before = before->before;
    insert(&waiting, client, before);
}

/* Offers a client that is in no list. False: it is in the queue again. */
static bool offer(struct client *client, int64_t now)
{
    char correlation[24];
    handoff_offer offer = HANDOFF_OFFER_INIT;
    snprintf(correlation, sizeof correlation, "%" PRIu64, client->number);
    offer.fd = client->fd;
    offer.preread = client->preread;
    offer.preread_len = client->preread_len;
    offer.service = service;
    offer.metadata = metadata;
    offer.metadata_len = metadata == NULL ? 0 : strlen(metadata);
    offer.correlation = correlation;
    offer.user_data = client;
    offer.timeout_ms = (uint64_t)(client->deadline_us - now) / 1000 + 1;
    offer.flags = HANDOFF_OFFER_MORE; /* until the flush at the end of this turn of the loop */
    handoff_status status = handoff_broker_offer(broker, &offer, NULL);
    if (status == HANDOFF_OK)
        return true; /* until its verdict */
    /* Nothing was sent. What a fallback must not hide is a bug in this program. */
    must_handoff(handoff_status_is_fallback_safe(status), "handoff_broker_offer");
    handoff_reason reason = handoff_status_reason(status);
    if (handoff_reason_may_pass(reason)) {
        queue(client);
        return false;
    }
    complain("%s: %s", client->address, handoff_last_error());
    give_up(client, reason);
    return true;
}

/* As many as there is room for; when there is more, the broker's descriptor becomes readable. */
static void offer_waiting(int64_t now)
{
    struct client *client;
    while (now >= not_before_us && (client = waiting.first) != NULL &&
           handoff_broker_room(broker) > 0) {
        take_out(&waiting, client);
        if (!offer(client, now))
            return;
    }
}

static void print_adopted(const struct client *client, const handoff_verdict *verdict)
{
    write_plainly(stdout, "%" PRIu64 " %s: adopted by %s after %lld us", client->number,
                  client->address, verdict->backend, age_us(client));
    if (verdict->attempts > 1)
        printf(", offered to %" PRIu32, verdict->attempts);
    if (verdict->reason != HANDOFF_REASON_NONE)
        printf(": %s", handoff_reason_name(verdict->reason));
    putchar('\n');
}

static void take_verdicts(int64_t now)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_status status;
    while ((status = handoff_broker_next(broker, &verdict)) == HANDOFF_OK) {
        struct client *client = verdict.user_data;
        if (verdict.outcome == HANDOFF_ADOPTED) {
            count_adopted(verdict.backend);
            if (verbose)
                print_adopted(client, &verdict);
            forget(client);
        } else if (handoff_reason_may_pass(verdict.reason) && client->deadline_us > now) {
            not_before_us = now + PAUSE_US;
            queue(client);
        } else {
            give_up(client, verdict.reason);
        }
    }
    must_handoff(status == HANDOFF_NOTHING, "handoff_broker_next");
}

/* ---- clients --------------------------------------------------------------------------------- */

static void accept_clients(int64_t now)
{
    for (;;) {
        struct sockaddr_storage address;
        socklen_t len = sizeof address;
        /* Not O_NONBLOCK, which the backend's copy would share: most programs expect it so. */
        int fd = accept4(listener, (struct sockaddr *)&address, &len, SOCK_CLOEXEC);
        struct client *client = fd == -1 ? NULL : calloc(1, sizeof *client);
        if (client == NULL) {
            if (fd != -1)
                close(fd);
            else if (errno == EAGAIN || errno == EINTR)
                return;
            else if (errno == ECONNABORTED || errno == EPROTO)
                continue;
            else
                must(errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM,
                     "accept4");
            if (now_here == 0)
                complain("no room for one client: %s", strerror(errno));
            accept_no_more();
            return;
        }
        now_here++;
        client->number = ++accepted;
        client->accepted_us = now;
        client->deadline_us = now + (int64_t)wait_ms * 1000;
        client->fd = fd;
        describe_address((struct sockaddr *)&address, len, client->address,
                         sizeof client->address);
        if (preread_most > 0 && watches(fd, client))
            insert(&reading, client, reading.last);
        else
            queue(client);
    }
}

/* Reads what a client has sent so far, perhaps nothing: that goes along. Its time to be adopted
 * begins now. */
static void stop_reading(struct client *client, int64_t now)
{
    static char buffer[PREREAD_MOST];
    ssize_t len = recv(client->fd, buffer, preread_most, MSG_DONTWAIT);
    /* Before the offer: close(2) does not do it while another process has a copy, epoll(7). */
    unwatch(client->fd);
    take_out(&reading, client);
    if (len > 0) {
        client->preread = malloc((size_t)len);
        must(client->preread != NULL, "malloc");
        memcpy(client->preread, buffer, (size_t)len);
        client->preread_len = (size_t)len;
    }
    client->deadline_us = now + (int64_t)wait_ms * 1000;
    queue(client);
}

/* Deals with clients whose time is up. Returns the milliseconds until the next one. */
static int expire(int64_t now)
{
    struct client *client;
    int64_t next_us = INT64_MAX;
    while ((client = reading.first) != NULL && client->deadline_us <= now)
        stop_reading(client, now);
    if (client != NULL)
        next_us = client->deadline_us;
    while ((client = waiting.first) != NULL && client->deadline_us <= now) {
        take_out(&waiting, client);
        give_up(client, why_in_vain(broker, sockets, sockets_len));
    }
    if (client != NULL && client->deadline_us < next_us)
        next_us = client->deadline_us;
    if (client != NULL && not_before_us > now && not_before_us < next_us)
        next_us = not_before_us;
    if (!accepting && accept_at_us <= now)
        accept_again();
    if (!accepting && listener != -1 && accept_at_us < next_us)
        next_us = accept_at_us;
    return next_us == INT64_MAX ? -1 : (int)((next_us - now + 999) / 1000);
}

/* ---- the program ----------------------------------------------------------------------------- */

static void take_signals(void)
{
    const struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigset_t stop;
    /* A log that nobody reads any more costs no client. */
    must(sigaction(SIGPIPE, &ignore, NULL) == 0, "SIGPIPE");
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    must(sigprocmask(SIG_BLOCK, &stop, NULL) == 0, "sigprocmask");
    signals = signalfd(-1, &stop, SFD_CLOEXEC | SFD_NONBLOCK);
    must(signals != -1, "signalfd");
}

/* The first signal ends accepting, and clients that are here have their time. The second takes
 * everything back. */
static void stop(void)
{
    struct signalfd_siginfo signal;
    while (read(signals, &signal, sizeof signal) == sizeof signal) {
        if (listener != -1) {
            accept_no_more();
            remove_file(); /* a successor can listen at once, and keeps its own */
            close(listener);
            listener = -1;
            continue;
        }
        struct client *client;
        must_handoff(handoff_broker_close(broker) == HANDOFF_OK, "handoff_broker_close");
        take_verdicts(INT64_MAX);
        while ((client = reading.first) != NULL) {
            take_out(&reading, client);
            unwatch(client->fd);
            give_up(client, HANDOFF_REASON_BROKER_CLOSED);
        }
        while ((client = waiting.first) != NULL) {
            take_out(&waiting, client);
            give_up(client, HANDOFF_REASON_BROKER_CLOSED);
        }
        return;
    }
}

static void run(void)
{
    while (listener != -1 || now_here > 0) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(epoll, events, EVENTS, expire(now_us()));
        must(count != -1 || errno == EINTR, "epoll_wait");
        int64_t now = now_us();
        bool stopping = false;
        for (int i = 0; i < count; i++) {
            void *what = events[i].data.ptr;
            if (what == &signals)
                stopping = true;
            else if (what == &listener)
                accept_clients(now);
            else if (what == &broker)
                must_handoff(handoff_broker_dispatch(broker) == HANDOFF_OK,
                             "handoff_broker_dispatch");
            else
                stop_reading(what, now);
        }
        take_verdicts(now);
        expire(now); /* what is offered has some time left */
        offer_waiting(now);
        must_handoff(handoff_broker_flush(broker) == HANDOFF_OK, "handoff_broker_flush");
        take_verdicts(now);
        if (stopping)
            stop();
        flush_output();
    }
}

/* A directory, though its name does not end in '/', is meant as one. */
static int add_backend(const char *path)
{
    handoff_broker_backend backend = HANDOFF_BROKER_BACKEND_INIT;
    struct stat file;
    char directory[256];
    size_t len = strlen(path);
    backend.path = path;
    if (len > 0 && path[len - 1] != '/' && len < sizeof directory - 1 && *path != '@' &&
        stat(path, &file) == 0 && S_ISDIR(file.st_mode)) {
        snprintf(directory, sizeof directory, "%s/", path);
        backend.path = directory;
    }
    handoff_status status = handoff_broker_add(broker, &backend);
    if (status == HANDOFF_OK)
        return DONE;
    complain("%s", handoff_last_error());
    return status == HANDOFF_ERR_INVALID_ARGUMENT ? USAGE : FAILED;
}

static int start_and_run(const char *address)
{
    struct sockaddr_storage bound;
    socklen_t len = sizeof bound;
    char text[128];
    must_handoff(handoff_broker_new(NULL, NULL, &broker) == HANDOFF_OK, "handoff_broker_new");
    int code = DONE;
    for (int i = 0; i < sockets_len && code == DONE; i++)
        code = add_backend(sockets[i]);
    if (code == DONE && (listener = listen_at(address)) < 0)
        code = listener == WRONG_ADDRESS ? USAGE : FAILED;
    if (code != DONE) {
        handoff_broker_free(broker);
        return code;
    }
    raise_descriptor_limit();
    take_signals();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    must(epoll != -1, "epoll_create1");
    int broker_fd = handoff_broker_fd(broker); /* it connects, and reconnects by itself */
    must_handoff(broker_fd != -1, "handoff_broker_fd");
    accepting = watches(signals, &signals) && watches(broker_fd, &broker) &&
                watches(listener, &listener);
    must(accepting, "EPOLL_CTL_ADD");
    must(getsockname(listener, (struct sockaddr *)&bound, &len) == 0, "getsockname");
    describe_address((struct sockaddr *)&bound, len, text, sizeof text);
    write_plainly(stdout, "listening on %s", text);
    putchar('\n');
    flush_output();

    run();
    print_summary(broker, accepted);
    handoff_broker_free(broker);
    close(epoll);
    close(signals);
    return finish_output() ? DONE : FAILED;
}

int broker_main(int argc, char **argv)
{
    static const struct option options[] = {
        {"verbose", no_argument, NULL, 'v'},        {"wait", required_argument, NULL, 'w'},
        {"preread", required_argument, NULL, 'p'},  {"service", required_argument, NULL, 's'},
        {"metadata", required_argument, NULL, 'm'}, {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0}};
    static const char how[] =
        "handoff broker [-v] [--wait MS] [--preread BYTES] [--service NAME] [--metadata TEXT]\n"
        "                      ADDRESS SOCKET...";
    int option;
    while ((option = getopt_long(argc, argv, "vh", options, NULL)) != -1) {
        switch (option) {
        case 'v':
            verbose = true;
            break;
        case 'w':
            if (!parse_number(optarg, 1, 3600000, &wait_ms)) {
                complain("--wait takes milliseconds, from 1 to 3600000");
                return usage(how);
            }
            break;
        case 'p':
            if (!parse_number(optarg, 0, PREREAD_MOST, &preread_most)) {
                complain("--preread takes a number of bytes, at most %d", PREREAD_MOST);
                return usage(how);
            }
            break;
        case 's':
            if (strlen(optarg) > SERVICE_MOST) {
                complain("--service takes a name of at most %d bytes", SERVICE_MOST);
                return usage(how);
            }
            service = optarg;
            break;
        case 'm':
            metadata = optarg;
            break;
        case 'h':
            return print_help();
        default:
            return usage(how);
        }
    }
    if (argc - optind < 2) {
        complain(argc == optind ? "no ADDRESS and no SOCKET is named" : "no SOCKET is named");
        return usage(how);
    }
    sockets = argv + optind + 1;
    sockets_len = argc - optind - 1;
    for (int i = 0; i < sockets_len; i++)
        if (is_of_nginx(sockets[i]))
            return usage(how);
    int code = start_and_run(argv[optind]);
    return code == USAGE ? usage(how) : code;
}
