/*
 * limits.c: every limit of the library at its largest value, and how the time grows up to it.
 *
 *   limits [NAME]...
 *
 * Each line is one limit and what is done with it: how many there are, the time for that on the
 * clock, and how many times the processor's time for a quarter of it that took. Work that grows
 * with the number takes about 4 times as long, work that grows with its square 16 times: more than
 * 12 fails. Times alone fail nothing, so that slow machines pass. Each time is
 * the least of three, or one where that takes long.
 *
 * Both ends are in this process. Descriptors limit some numbers further: as far as RLIMIT_NOFILE
 * goes, which is printed. LIMITS_BYTES (67108864) are held at once, in all.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <handoff.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MAX_IN_FLIGHT = 4096, MAX_CHANNELS = 65535, MAX_DESCRIPTORS = 252, MAX_TOKENS = 1048576,
       MAX_BACKENDS = 65536, MAX_FAILURES = 4096, MAX_OFFER_BYTES = 131000, SPARE = 128 };

#define MOST_GROWTH 12.0
/* Below that the clock's grain and the first touch of memory say more than the work. */
#define LEAST_SECONDS 0.001

#define check(condition) ((condition) ? (void)0 : fail(#condition, __LINE__))

static _Noreturn void fail(const char *condition, int line)
{
    fprintf(stderr, "limits.c:%d: %s: %s: %s\n", line, condition, strerror(errno),
            handoff_last_error());
    exit(1);
}

/* ---- time ------------------------------------------------------------------------------------ */

/** What a part took: on the clock, and of the processor. */
struct took {
    double wall, processor;
};

static double seconds(clockid_t clock)
{
    struct timespec time;
    check(clock_gettime(clock, &time) == 0);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static struct took begin(void)
{
    return (struct took){seconds(CLOCK_MONOTONIC), seconds(CLOCK_PROCESS_CPUTIME_ID)};
}

static struct took end(struct took begun)
{
    struct took now = begin();
    return (struct took){now.wall - begun.wall, now.processor - begun.processor};
}

/* ---- a channel ------------------------------------------------------------------------------- */

static char directory[] = "/tmp/handoff-limits-XXXXXX";
static char path[64];
static size_t descriptors; /* how many may be open */
static size_t held_bytes;

static handoff_backend *backend;
static handoff_broker *broker;
static int (*clients)[2];
static uint64_t *ids, *arrivals;
static size_t clients_len;

static void open_channel(size_t n, size_t channels)
{
    handoff_backend_options ours = HANDOFF_BACKEND_OPTIONS_INIT;
    ours.max_in_flight = n;
    ours.max_channels = channels;
    ours.max_offer_bytes = MAX_OFFER_BYTES;
    ours.max_held_bytes = HANDOFF_NO_LIMIT;
    check(handoff_backend_listen(path, &ours, &backend) == HANDOFF_OK);
    handoff_broker_options theirs = HANDOFF_BROKER_OPTIONS_INIT;
    theirs.max_in_flight = n;
    theirs.queue_bytes = HANDOFF_NO_LIMIT;
    theirs.timeout_ms = HANDOFF_NO_TIMEOUT;
    theirs.max_failures = HANDOFF_NO_LIMIT;
    theirs.reconnect_min_ms = 1;
    check(handoff_broker_new(path, &theirs, &broker) == HANDOFF_OK);
}

static void dispatch_broker(void)
{
    check(handoff_broker_dispatch(broker) == HANDOFF_OK);
}

static void dispatch_backend(void)
{
    check(handoff_backend_dispatch(backend) == HANDOFF_OK);
}

static void make_clients(size_t n)
{
    clients = calloc(n, sizeof *clients);
    ids = calloc(n, sizeof *ids);
    arrivals = calloc(n, sizeof *arrivals);
    check(clients != NULL && ids != NULL && arrivals != NULL);
    for (clients_len = 0; clients_len < n; clients_len++)
        check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, clients[clients_len]) == 0);
}

static void close_clients(void)
{
    for (size_t i = 0; i < clients_len; i++) {
        close(clients[i][0]);
        close(clients[i][1]);
    }
    free(clients);
    free(ids);
    free(arrivals);
}

static handoff_broker_statistics broker_statistics(void)
{
    handoff_broker_statistics statistics = HANDOFF_BROKER_STATISTICS_INIT;
    check(handoff_broker_get_statistics(broker, &statistics) == HANDOFF_OK);
    return statistics;
}

static handoff_backend_statistics backend_statistics(void)
{
    handoff_backend_statistics statistics = HANDOFF_BACKEND_STATISTICS_INIT;
    check(handoff_backend_get_statistics(backend, &statistics) == HANDOFF_OK);
    return statistics;
}

/** Connected, with every token. */
static void set_up(size_t n)
{
    open_channel(n, 1);
    make_clients(n);
    check(handoff_broker_fd(broker) != -1);
    while (broker_statistics().connects == 0) {
        dispatch_backend();
        dispatch_broker();
    }
    dispatch_broker();
}

static void tear_down(void)
{
    handoff_broker_free(broker);
    handoff_backend_free(backend);
    close_clients();
}

/** Offers every client, and sends nothing but what a flag tells to. */
static void offer_all(size_t bytes, bool send, uint64_t timeout_ms)
{
    static char preread[MAX_OFFER_BYTES];
    for (size_t i = 0; i < clients_len; i++) {
        handoff_offer offer = HANDOFF_OFFER_INIT;
        offer.fd = clients[i][0];
        offer.flags = send && i + 1 == clients_len ? 0 : HANDOFF_OFFER_MORE;
        offer.preread = preread;
        offer.preread_len = bytes;
        offer.timeout_ms = timeout_ms;
        check(handoff_broker_offer(broker, &offer, &ids[i]) == HANDOFF_OK);
    }
}

/** Until the backend has everything. */
static void deliver_all(void)
{
    while (backend_statistics().arrived < clients_len) {
        dispatch_broker();
        dispatch_backend();
    }
}

static void take_arrivals(void)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    for (size_t i = 0; i < clients_len; i++) {
        check(handoff_backend_next(backend, &arrival) == HANDOFF_OK);
        arrivals[i] = arrival.id;
    }
}

/** Until the broker has every verdict. */
static void take_verdicts(handoff_outcome outcome)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    for (size_t taken = 0; taken < clients_len;) {
        dispatch_backend();
        dispatch_broker();
        while (handoff_broker_next(broker, &verdict) == HANDOFF_OK) {
            check(verdict.outcome == outcome);
            taken++;
        }
    }
}

/* ---- offers in flight ------------------------------------------------------------------------ */

static struct took offers_are_adopted(size_t n)
{
    set_up(n);
    struct took begun = begin();
    offer_all(100, true, 0);
    deliver_all();
    take_arrivals();
    int *fds = calloc(n, sizeof *fds);
    check(fds != NULL);
    for (size_t i = 0; i < n; i++)
        check(handoff_backend_adopt(backend, arrivals[i], &fds[i]) == HANDOFF_OK);
    take_verdicts(HANDOFF_ADOPTED);
    struct took took = end(begun);
    for (size_t i = 0; i < n; i++)
        close(fds[i]);
    free(fds);
    tear_down();
    return took;
}

static struct took offers_are_rejected_last_first(size_t n)
{
    set_up(n);
    struct took begun = begin();
    offer_all(100, true, 0);
    deliver_all();
    take_arrivals();
    for (size_t i = n; i-- > 0;)
        check(handoff_backend_reject(backend, arrivals[i], HANDOFF_REASON_REJECTED) == HANDOFF_OK);
    take_verdicts(HANDOFF_FALLBACK);
    struct took took = end(begun);
    tear_down();
    return took;
}

/** By their ids, before they are sent: in every third order. */
static struct took queued_offers_are_taken_back(size_t n)
{
    set_up(n);
    offer_all(1000, false, 0);
    struct took begun = begin();
    for (size_t first = 0; first < 3; first++)
        for (size_t i = first; i < n; i += 3)
            check(handoff_broker_take_back(broker, ids[i]) == HANDOFF_OK);
    struct took took = end(begun);
    check(broker_statistics().in_flight == 0);
    tear_down();
    return took;
}

static struct took sent_offers_are_taken_back_and_noticed(size_t n)
{
    set_up(n);
    offer_all(100, true, 0);
    deliver_all();
    struct took begun = begin();
    for (size_t i = n; i-- > 0;)
        check(handoff_broker_take_back(broker, ids[i]) == HANDOFF_OK);
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    check(handoff_backend_next(backend, &arrival) == HANDOFF_NOTHING);
    dispatch_backend();
    dispatch_broker();
    struct took took = end(begun);
    check(backend_statistics().taken_back == n);
    tear_down();
    return took;
}

/** All that the option allows to wait, at once. */
static struct took queued_bytes_are_taken_back_at_close(size_t n)
{
    set_up(n);
    offer_all(held_bytes / MAX_IN_FLIGHT, false, 0);
    /* Of long ones the first are sent at once, as many as the socket takes. */
    check(broker_statistics().queued_bytes >= (n - n / 16) * (held_bytes / MAX_IN_FLIGHT));
    struct took begun = begin();
    check(handoff_broker_close(broker) == HANDOFF_OK);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    size_t taken = 0;
    while (handoff_broker_next(broker, &verdict) == HANDOFF_OK)
        taken++;
    struct took took = end(begun);
    check(taken == n);
    tear_down();
    return took;
}

static struct took offers_expire_together(size_t n)
{
    set_up(n);
    offer_all(1000, false, 1);
    struct timespec passed = {.tv_nsec = 5000000};
    nanosleep(&passed, NULL);
    struct took begun = begin();
    dispatch_broker();
    struct took took = end(begun);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    size_t taken = 0;
    while (handoff_broker_next(broker, &verdict) == HANDOFF_OK)
        taken++;
    check(taken == n);
    tear_down();
    return took;
}

/** Each earlier than the one before: the worst order for whoever keeps them sorted. */
static struct took deadlines_come_in_the_opposite_order(size_t n)
{
    set_up(n);
    struct took begun = begin();
    for (size_t i = 0; i < n; i++) {
        handoff_offer offer = HANDOFF_OFFER_INIT;
        offer.fd = clients[i][0];
        offer.flags = HANDOFF_OFFER_MORE;
        offer.timeout_ms = 100000000 - i * 1000;
        check(handoff_broker_offer(broker, &offer, NULL) == HANDOFF_OK);
    }
    struct took took = end(begun);
    tear_down();
    return took;
}

static struct took backend_ends_with_everything_in_flight(size_t n)
{
    set_up(n);
    offer_all(100, true, 0);
    deliver_all();
    struct took begun = begin();
    handoff_backend_free(backend);
    backend = NULL;
    dispatch_broker();
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    size_t taken = 0;
    while (handoff_broker_next(broker, &verdict) == HANDOFF_OK)
        taken++;
    struct took took = end(begun);
    check(taken == n);
    tear_down();
    return took;
}

static struct took broker_ends_with_everything_in_flight(size_t n)
{
    set_up(n);
    offer_all(100, true, 0);
    deliver_all();
    struct took begun = begin();
    handoff_broker_free(broker);
    broker = NULL;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    dispatch_backend();
    check(handoff_backend_next(backend, &arrival) == HANDOFF_NOTHING);
    dispatch_backend();
    dispatch_backend();
    struct took took = end(begun);
    check(backend_statistics().held == 0);
    tear_down();
    return took;
}

/** Bytes of arrivals that the backend holds at once. */
static struct took arrivals_are_held(size_t n)
{
    set_up(n);
    struct took begun = begin();
    offer_all(held_bytes / MAX_IN_FLIGHT, true, 0);
    deliver_all();
    check(backend_statistics().held_bytes >= n * (held_bytes / MAX_IN_FLIGHT));
    take_arrivals();
    for (size_t i = 0; i < n; i++)
        check(handoff_backend_reject(backend, arrivals[i], HANDOFF_REASON_REJECTED) == HANDOFF_OK);
    take_verdicts(HANDOFF_FALLBACK);
    struct took took = end(begun);
    tear_down();
    return took;
}

/** The most bytes in one offer: `n` of them, a hundred times. */
static struct took offer_has_bytes(size_t n)
{
    set_up(100);
    struct took begun = begin();
    offer_all(n, true, 0);
    deliver_all();
    struct took took = end(begun);
    tear_down();
    return took;
}

/** The most descriptors in one packet: 200 packets of `n` each, the first of a channel each, because a
    broker that knows its backend sends parts. */
static struct took packet_has_descriptors(size_t n)
{
    struct took took = {0};
    for (int i = 0; i < 200; i++) {
        set_up(n);
        struct took begun = begin();
        offer_all(0, true, 0);
        dispatch_backend();
        take_arrivals();
        for (size_t j = 0; j < n; j++)
            check(handoff_backend_reject(backend, arrivals[j], HANDOFF_REASON_REJECTED) ==
                  HANDOFF_OK);
        take_verdicts(HANDOFF_FALLBACK);
        struct took one = end(begun);
        took.wall += one.wall;
        took.processor += one.processor;
        tear_down();
    }
    return took;
}

/* ---- channels -------------------------------------------------------------------------------- */

static int *peers;

static int connect_peer(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int peer = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    check(peer != -1);
    /* A full backlog is EAGAIN: the backend accepts some. */
    while (connect(peer, (struct sockaddr *)&address, sizeof address) != 0) {
        check(errno == EAGAIN);
        dispatch_backend();
    }
    return peer;
}

/** What docs/protocol.md calls a hello, with a claim table of one page. */
static void say_hello(int peer)
{
    unsigned char packet[32] = {32, 0, 0, 0, 1, 1, 0, 0, 1};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec iov = {.iov_base = packet, .iov_len = sizeof packet};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    int table = memfd_create("claims", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    check(table != -1 && ftruncate(table, 8) == 0);
    check(fcntl(table, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
    packet[16] = 1;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof table);
    memcpy(CMSG_DATA(header), &table, sizeof table);
    check(sendmsg(peer, &message, MSG_NOSIGNAL) == sizeof packet);
    close(table);
}

static void connect_peers(size_t n)
{
    peers = calloc(n, sizeof *peers);
    check(peers != NULL);
    for (size_t i = 0; i < n; i++) {
        peers[i] = connect_peer();
        say_hello(peers[i]);
    }
    while (backend_statistics().channels < n)
        dispatch_backend();
    dispatch_backend();
}

static void close_peers(size_t n)
{
    for (size_t i = 0; i < n; i++)
        close(peers[i]);
    while (backend_statistics().channels > 0)
        dispatch_backend();
    free(peers);
}

static void listen_for(size_t n)
{
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_channels = n;
    options.max_in_flight = 1;
    check(handoff_backend_listen(path, &options, &backend) == HANDOFF_OK);
}

static struct took channels_come_and_go(size_t n)
{
    listen_for(n);
    struct took begun = begin();
    connect_peers(n);
    close_peers(n);
    struct took took = end(begun);
    handoff_backend_free(backend);
    return took;
}

/** One broker comes and goes a hundred times beside `n` others that do nothing. */
static struct took others_do_not_notice(size_t n)
{
    listen_for(n + 1);
    connect_peers(n);
    struct took begun = begin();
    for (int i = 0; i < 100; i++) {
        int peer = connect_peer();
        say_hello(peer);
        dispatch_backend();
        close(peer);
        dispatch_backend();
    }
    struct took took = end(begun);
    close_peers(n);
    handoff_backend_free(backend);
    return took;
}

/* ---- the raw layer --------------------------------------------------------------------------- */

static handoff_raw_store *store_of(size_t n, uint64_t lifetime_ms)
{
    handoff_raw_store *store;
    handoff_raw_store_options options = HANDOFF_RAW_STORE_OPTIONS_INIT;
    options.capacity = n;
    options.lifetime_ms = lifetime_ms;
    check(handoff_raw_store_new(&options, &store) == HANDOFF_OK);
    return store;
}

static handoff_raw_token *issue_all(handoff_raw_store *store, size_t n)
{
    handoff_raw_token *tokens = calloc(n, sizeof *tokens);
    check(tokens != NULL);
    for (size_t i = 0; i < n; i++)
        check(handoff_raw_store_issue(store, &tokens[i]) == HANDOFF_OK);
    return tokens;
}

static struct took tokens_are_issued_and_redeemed(size_t n)
{
    handoff_raw_store *store = store_of(n, HANDOFF_NO_TIMEOUT);
    struct took begun = begin();
    handoff_raw_token *tokens = issue_all(store, n);
    for (size_t i = 0; i < n; i++)
        check(handoff_raw_store_redeem(store, &tokens[i]) == HANDOFF_OK);
    struct took took = end(begun);
    free(tokens);
    handoff_raw_store_free(store);
    return took;
}

/** A full store is asked for `n` / 1024 more, and gives none. */
static struct took full_store_refuses(size_t n)
{
    handoff_raw_store *store = store_of(n, HANDOFF_NO_TIMEOUT);
    handoff_raw_token *tokens = issue_all(store, n), token;
    struct took begun = begin();
    for (size_t i = 0; i < n / 1024; i++)
        check(handoff_raw_store_issue(store, &token) == HANDOFF_ERR_FULL);
    struct took took = end(begun);
    free(tokens);
    handoff_raw_store_free(store);
    return took;
}

static struct took expired_tokens_are_pruned(size_t n)
{
    handoff_raw_store *store = store_of(n, 1);
    handoff_raw_token *tokens = calloc(n, sizeof *tokens);
    size_t removed = 0;
    check(tokens != NULL);
    for (size_t i = 0; i < n; i++) {
        memcpy(tokens[i].bytes, &i, sizeof i);
        check(handoff_raw_store_insert(store, &tokens[i]) == HANDOFF_OK);
    }
    struct timespec passed = {.tv_nsec = 5000000};
    nanosleep(&passed, NULL);
    struct took begun = begin();
    check(handoff_raw_store_prune(store, &removed) == HANDOFF_OK);
    struct took took = end(begun);
    check(removed > 0 && handoff_raw_store_length(store) == 0);
    free(tokens);
    handoff_raw_store_free(store);
    return took;
}

static handoff_raw_pending *pending_of(handoff_raw_store *store, size_t n, uint64_t timeout_ms)
{
    handoff_raw_pending *pending;
    handoff_raw_pending_options options = HANDOFF_RAW_PENDING_OPTIONS_INIT;
    options.capacity = n;
    options.timeout_ms = timeout_ms;
    check(handoff_raw_pending_new(store, &options, &pending) == HANDOFF_OK);
    return pending;
}

static struct took acknowledgements_are_registered_and_taken(size_t n)
{
    handoff_raw_store *store = store_of(n, HANDOFF_NO_TIMEOUT);
    handoff_raw_token *tokens = issue_all(store, n);
    handoff_raw_pending *pending = pending_of(store, n, HANDOFF_NO_TIMEOUT);
    struct took begun = begin();
    for (size_t i = 0; i < n; i++)
        check(handoff_raw_pending_register(pending, &tokens[i], NULL) == HANDOFF_OK);
    for (size_t i = 0; i < n; i++)
        check(handoff_raw_pending_acknowledge(pending, &tokens[i], NULL) == HANDOFF_OK);
    struct took took = end(begun);
    check(handoff_raw_store_length(store) == 0);
    free(tokens);
    handoff_raw_pending_free(pending);
    handoff_raw_store_free(store);
    return took;
}

/** One after the other, until there is none. */
static struct took acknowledgements_expire(size_t n)
{
    handoff_raw_store *store = store_of(n, HANDOFF_NO_TIMEOUT);
    handoff_raw_token *tokens = issue_all(store, n);
    handoff_raw_pending *pending = pending_of(store, n, 1);
    for (size_t i = 0; i < n; i++)
        check(handoff_raw_pending_register(pending, &tokens[i], NULL) == HANDOFF_OK);
    struct timespec passed = {.tv_nsec = 5000000};
    nanosleep(&passed, NULL);
    size_t expired = 0;
    struct took begun = begin();
    while (handoff_raw_pending_expire(pending, NULL, NULL) == HANDOFF_OK)
        expired++;
    struct took took = end(begun);
    check(expired == n);
    free(tokens);
    handoff_raw_pending_free(pending);
    handoff_raw_store_free(store);
    return took;
}

static handoff_raw_failures *failures_of(size_t backends, size_t failures)
{
    handoff_raw_failures *counter;
    handoff_raw_failures_options options = HANDOFF_RAW_FAILURES_OPTIONS_INIT;
    options.max_backends = backends;
    options.max_failures = failures;
    options.period_ms = 1000000;
    check(handoff_raw_failures_new(&options, &counter) == HANDOFF_OK);
    return counter;
}

static void record(handoff_raw_failures *counter, size_t name)
{
    char text[64];
    snprintf(text, sizeof text, "/run/backend-%zu.sock", name);
    check(handoff_raw_failures_record_failure(counter, text, HANDOFF_REASON_ACK_TIMEOUT, NULL) ==
          HANDOFF_OK);
}

static struct took backends_fail(size_t n)
{
    handoff_raw_failures *counter = failures_of(n, 8);
    struct took begun = begin();
    for (size_t i = 0; i < n; i++)
        record(counter, i);
    struct took took = end(begun);
    handoff_raw_failures_free(counter);
    return took;
}

/** Beyond the limit each new one takes the place of the oldest: `n` / 8 of them. */
static struct took more_backends_fail_than_are_counted(size_t n)
{
    handoff_raw_failures *counter = failures_of(n, 1);
    for (size_t i = 0; i < n; i++)
        record(counter, i);
    struct took begun = begin();
    for (size_t i = 0; i < n / 8; i++)
        record(counter, n + i);
    struct took took = end(begun);
    handoff_raw_failures_free(counter);
    return took;
}

/** One backend, at the largest count; a thousand more. */
static struct took failures_are_counted(size_t n)
{
    handoff_raw_failures *counter = failures_of(1, n);
    struct took begun = begin();
    for (int round = 0; round < 100; round++)
        for (size_t i = 0; i < n; i++)
            record(counter, 0);
    struct took took = end(begun);
    check(handoff_raw_failures_failed_count(counter, "/run/backend-0.sock") == n);
    handoff_raw_failures_free(counter);
    return took;
}

/** As many users and groups in a policy; the last one is the peer's. */
static struct took policy_is_long(size_t n)
{
    uint32_t *numbers = calloc(n, sizeof *numbers);
    int pair[2];
    check(numbers != NULL);
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    for (size_t i = 0; i < n; i++)
        numbers[i] = 1000000 + (uint32_t)i;
    numbers[n - 1] = getegid();
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    policy.users = numbers;
    policy.users_len = n - 1;
    policy.groups = numbers;
    policy.groups_len = n;
    struct took begun = begin();
    for (int i = 0; i < 20; i++)
        check(handoff_raw_peer_check(pair[0], &policy, NULL) == HANDOFF_OK);
    struct took took = end(begun);
    close(pair[0]);
    close(pair[1]);
    free(numbers);
    return took;
}

/* ---- the list -------------------------------------------------------------------------------- */

/** Descriptors that each one takes, beside a few. */
enum { FOR_OFFER = 3, FOR_CHANNEL = 2 };

static const struct limit {
    const char *name;
    const char *option;
    struct took (*run)(size_t n);
    size_t largest;
    unsigned descriptors;
} limits[] = {
    {"offers are adopted", "max_in_flight", offers_are_adopted, MAX_IN_FLIGHT, FOR_OFFER},
    {"offers are rejected, last first", "max_in_flight", offers_are_rejected_last_first,
     MAX_IN_FLIGHT, FOR_OFFER},
    {"queued offers are taken back", "max_in_flight", queued_offers_are_taken_back, MAX_IN_FLIGHT,
     FOR_OFFER},
    {"sent offers are taken back", "max_in_flight", sent_offers_are_taken_back_and_noticed,
     MAX_IN_FLIGHT, FOR_OFFER},
    {"queued bytes are taken back", "queue_bytes", queued_bytes_are_taken_back_at_close,
     MAX_IN_FLIGHT, FOR_OFFER},
    {"offers expire together", "max_in_flight", offers_expire_together, MAX_IN_FLIGHT, FOR_OFFER},
    {"deadlines in the opposite order", "max_in_flight", deadlines_come_in_the_opposite_order,
     MAX_IN_FLIGHT, FOR_OFFER},
    {"backend ends", "max_in_flight", backend_ends_with_everything_in_flight, MAX_IN_FLIGHT,
     FOR_OFFER},
    {"broker ends", "max_in_flight", broker_ends_with_everything_in_flight, MAX_IN_FLIGHT,
     FOR_OFFER},
    {"arrivals are held", "max_held_bytes", arrivals_are_held, MAX_IN_FLIGHT, FOR_OFFER},
    {"an offer has so many bytes", "max_offer_bytes", offer_has_bytes, MAX_OFFER_BYTES, 0},
    {"a packet has so many descriptors", "protocol", packet_has_descriptors, MAX_DESCRIPTORS, 0},
    {"channels come and go", "max_channels", channels_come_and_go, MAX_CHANNELS, FOR_CHANNEL},
    {"others beside them", "max_channels", others_do_not_notice, MAX_CHANNELS, FOR_CHANNEL},
    {"tokens are issued, redeemed", "capacity", tokens_are_issued_and_redeemed, MAX_TOKENS, 0},
    {"a full store refuses", "capacity", full_store_refuses, MAX_TOKENS, 0},
    {"expired tokens are pruned", "capacity", expired_tokens_are_pruned, MAX_TOKENS, 0},
    {"acknowledgements come", "capacity", acknowledgements_are_registered_and_taken, MAX_TOKENS,
     0},
    {"acknowledgements expire", "capacity", acknowledgements_expire, MAX_TOKENS, 0},
    {"backends fail", "max_backends", backends_fail, MAX_BACKENDS, 0},
    {"more backends fail", "max_backends", more_backends_fail_than_are_counted, MAX_BACKENDS, 0},
    {"one backend fails", "max_failures", failures_are_counted, MAX_FAILURES, 0},
    {"a policy has so many numbers", "users, groups", policy_is_long, 65536, 0},
};

static struct took least(struct took a, struct took b)
{
    return (struct took){a.wall < b.wall ? a.wall : b.wall,
                         a.processor < b.processor ? a.processor : b.processor};
}

static bool measure(const struct limit *limit)
{
    size_t n = limit->largest;
    if (limit->descriptors > 0 && n > (descriptors - SPARE) / limit->descriptors)
        n = (descriptors - SPARE) / limit->descriptors;
    struct took quarter = limit->run(n / 4), whole = limit->run(n);
    /* What takes long is less disturbed. */
    for (int i = 0; i < 2 && whole.wall < 0.3; i++) {
        quarter = least(quarter, limit->run(n / 4));
        whole = least(whole, limit->run(n));
    }
    double growth = whole.processor / quarter.processor;
    bool tells = whole.processor >= LEAST_SECONDS;
    bool good = !tells || growth <= MOST_GROWTH;
    printf("%-16s %-34s %8zu %10.2f ms %6.1f%s\n", limit->option, limit->name, n,
           whole.wall * 1000, growth, good ? "" : "  MORE THAN 12: FAILED");
    fflush(stdout);
    return good;
}

static void remove_directory(void)
{
    unlink(path);
    rmdir(directory);
}

int main(int argc, char **argv)
{
    struct rlimit most;
    const char *bytes = getenv("LIMITS_BYTES");
    held_bytes = bytes != NULL ? (size_t)atoll(bytes) : 67108864;
    if (held_bytes < MAX_IN_FLIGHT || held_bytes / MAX_IN_FLIGHT > MAX_OFFER_BYTES) {
        fprintf(stderr, "limits: LIMITS_BYTES is not from %d to %d\n", MAX_IN_FLIGHT,
                MAX_IN_FLIGHT * MAX_OFFER_BYTES);
        return 2;
    }
    check(getrlimit(RLIMIT_NOFILE, &most) == 0);
    most.rlim_cur = most.rlim_max;
    check(setrlimit(RLIMIT_NOFILE, &most) == 0);
    descriptors = most.rlim_cur > 1000000 ? 1000000 : (size_t)most.rlim_cur;
    check(descriptors > 2 * SPARE && mkdtemp(directory) != NULL);
    snprintf(path, sizeof path, "%s/socket", directory);
    atexit(remove_directory);
    /* Large blocks come from the system at every size, not only at the largest. */
    mallopt(M_MMAP_THRESHOLD, 131072);
    printf("RLIMIT_NOFILE is %zu\n", descriptors);
    printf("%-16s %-34s %8s %13s %6s\n", "limit", "", "number", "time", "growth");
    bool good = true;
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        bool wanted = argc == 1;
        for (int j = 1; j < argc; j++)
            wanted |= strstr(limits[i].name, argv[j]) != NULL;
        if (wanted)
            good &= measure(&limits[i]);
    }
    return good ? 0 : 1;
}
