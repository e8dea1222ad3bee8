/* A hostile backend against the library's broker. Each attack is a process of its own; meanwhile
   another channel hands connections over, and afterwards the broker finds an honest backend at the
   same path. */
#define _GNU_SOURCE
#include "frames.h"
#include "libc.h"
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_IN_FLIGHT = 64, MAX_BYTES = 65536, QUEUE_BYTES = 256 * 1024 };

/* How much the broker may grow under an attack, and what may stay of it. */
enum { MOST_GROWTH = 2 * 1024 * 1024, MOST_LEFT = 64 * 1024 };

/* ---- the hostile backend -------------------------------------------------------------------- */

/* Where fork_peer() leaves it. */
enum { LISTENER = 3 };

static struct frame frame;

/* Any bytes are a token to a broker. */
static const unsigned char token[TOKEN_LEN] = {1, 2, 3};

struct channel {
    int socket;
    uint64_t *words;
};

struct arrival {
    uint32_t slot;
    uint64_t generation;
};

static struct channel accept_broker(void)
{
    struct channel channel = {.socket = accept4(LISTENER, NULL, NULL, SOCK_CLOEXEC)};
    struct timeval limit = {.tv_sec = PATIENCE_S};
    must(channel.socket != -1);
    must(setsockopt(channel.socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    must(frame_receive(channel.socket, &frame) == 0);
    must(frame_get(&frame, AT_KIND, 1) == HELLO);
    must(frame_get(&frame, HEADER_LEN, 4) == MAX_IN_FLIGHT && frame.fds_len == 1);
    channel.words =
        mmap(NULL, MAX_IN_FLIGHT * 8, PROT_READ | PROT_WRITE, MAP_SHARED, frame.fds[0], 0);
    must(channel.words != MAP_FAILED);
    close(frame.fds[0]);
    return channel;
}

static void close_channel(const struct channel *channel)
{
    close(channel->socket);
    munmap(channel->words, MAX_IN_FLIGHT * 8);
}

static void send_now(const struct channel *channel)
{
    must(frame_send(channel->socket, &frame) == 0);
}

static void begin_grants(uint32_t slots)
{
    frame_begin(&frame, GRANTS);
    for (uint32_t slot = 0; slot < slots; slot++)
        frame_grant(&frame, slot, token);
}

/* A channel as an honest backend begins it, with so many tokens. */
static struct channel open_channel(uint32_t slots)
{
    struct channel channel = accept_broker();
    frame_welcome(&frame, MAX_IN_FLIGHT, MAX_BYTES);
    send_now(&channel);
    if (slots > 0) {
        begin_grants(slots);
        send_now(&channel);
    }
    return channel;
}

/* Receives offers, and closes their descriptors. Exits if the broker has taken them back already,
   because their time is up. */
static void receive_offers(const struct channel *channel, struct arrival *arrivals, size_t count)
{
    while (count > 0) {
        must(frame_receive(channel->socket, &frame) == 0);
        must(frame_get(&frame, AT_KIND, 1) == OFFERS);
        size_t entries = frame_get(&frame, AT_ENTRIES, 2);
        must(entries <= count && frame.fds_len == entries);
        size_t at = HEADER_LEN;
        for (size_t i = 0; i < entries; i++) {
            arrivals->slot = (uint32_t)frame_get(&frame, at, 4);
            arrivals->generation = frame_get(&frame, at + 8, 8);
            must(arrivals->slot < MAX_IN_FLIGHT);
            if (channel->words[arrivals->slot] == CLAIM_WORD(arrivals->generation, REVOKED))
                _exit(TOO_SLOW);
            must(channel->words[arrivals->slot] == CLAIM_WORD(arrivals->generation, OFFERED));
            arrivals++;
            at += OFFER_LEN + frame_get(&frame, at + AT_PREREAD_LEN, 4);
            close(frame.fds[i]);
        }
        must(at == frame.len);
        count -= entries;
    }
}

static struct arrival receive_offer(const struct channel *channel)
{
    struct arrival arrival;
    receive_offers(channel, &arrival, 1);
    return arrival;
}

static void set_word(const struct channel *channel, const struct arrival *arrival, int state)
{
    channel->words[arrival->slot] = CLAIM_WORD(arrival->generation, state);
}

static int has_word(const struct channel *channel, const struct arrival *arrival, int state)
{
    return channel->words[arrival->slot] == CLAIM_WORD(arrival->generation, state);
}

static void send_verdict(const struct channel *channel, const struct arrival *arrival, int reason)
{
    frame_begin(&frame, VERDICTS);
    frame_verdict(&frame, arrival->slot, reason, arrival->generation, token);
    send_now(channel);
}

static void end(const struct channel *channel)
{
    must_end(channel->socket);
    close_channel(channel);
}

static void packet_ends(const struct channel *channel)
{
    send_now(channel);
    end(channel);
}

static const size_t widths[HEADER_LEN] = {
    [AT_LENGTH] = 4, [AT_VERSION] = 1, [AT_KIND] = 1, [AT_ENTRIES] = 2, [AT_DESCRIPTORS] = 2,
    [AT_RESERVED] = 1, 1, 1, 1, 1, 1,
};

/* Sends what is in `frame` with each field of its header wrong in turn, each on a channel that
   `begin` makes. */
static void wrong_fields_end(struct channel (*begin)(void))
{
    for (size_t at = 0; at < HEADER_LEN; at++) {
        for (int way = 0; widths[at] != 0 && way < 4; way++) {
            struct channel channel = begin();
            uint64_t most = (UINT64_C(1) << (8 * widths[at])) - 1;
            uint64_t right = frame_get(&frame, at, widths[at]);
            uint64_t wrong[] = {0, (right - 1) & most, (right + 1) & most, most};
            frame_set(&frame, at, wrong[way], widths[at]);
            if (wrong[way] != right)
                packet_ends(&channel);
            else
                close_channel(&channel);
        }
    }
}

static struct channel about_to_welcome(void)
{
    struct channel channel = accept_broker();
    frame_welcome(&frame, MAX_IN_FLIGHT, MAX_BYTES);
    return channel;
}

static struct channel about_to_grant(void)
{
    struct channel channel = open_channel(0);
    begin_grants(2);
    return channel;
}

static struct channel about_to_drain(void)
{
    struct channel channel = open_channel(2);
    frame_begin(&frame, DRAIN);
    return channel;
}

static void header_field_that_is_wrong_in_welcome_ends_the_channel(void)
{
    wrong_fields_end(about_to_welcome);
}

static void header_field_that_is_wrong_in_grants_ends_the_channel(void)
{
    wrong_fields_end(about_to_grant);
}

static void header_field_that_is_wrong_in_drain_ends_the_channel(void)
{
    wrong_fields_end(about_to_drain);
}

static void backend_that_never_says_welcome_is_left(void)
{
    struct channel channel = accept_broker();
    end(&channel);
}

static void backend_that_grants_nothing_after_its_welcome_is_left(void)
{
    struct channel channel = open_channel(0);
    end(&channel);
}

static void frame_of_any_other_version_ends_the_channel(void)
{
    for (unsigned version = 0; version <= 255; version++) {
        if (version == 1)
            continue;
        struct channel channel = about_to_welcome();
        frame_set(&frame, AT_VERSION, version, 1);
        packet_ends(&channel);
    }
}

static void frame_other_than_welcome_as_the_first_ends_the_channel(void)
{
    for (int kind = 0; kind <= 16; kind++) {
        if (kind == WELCOME)
            continue;
        struct channel channel = accept_broker();
        frame_begin(&frame, kind);
        if (kind == GRANTS)
            frame_grant(&frame, 0, token);
        if (kind == VERDICTS)
            frame_verdict(&frame, 0, 0, 1, token);
        packet_ends(&channel);
    }
}

static void welcome_that_is_out_of_range_or_comes_twice_ends_the_channel(void)
{
    static const uint32_t slots[] = {0, MAX_IN_FLIGHT + 1, 4096, 4097, 0xffffffff};
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++) {
        struct channel channel = accept_broker();
        frame_welcome(&frame, slots[i], MAX_BYTES);
        packet_ends(&channel);
    }
    struct channel channel = accept_broker();
    frame_welcome(&frame, MAX_IN_FLIGHT, MOST_BYTES + 1);
    packet_ends(&channel);
    channel = open_channel(0);
    frame_welcome(&frame, MAX_IN_FLIGHT, MAX_BYTES);
    packet_ends(&channel);
}

static void grant_for_an_unknown_slot_ends_the_channel(void)
{
    static const uint32_t slots[] = {MAX_IN_FLIGHT, 4095, 4096, 0xffffffff};
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++) {
        struct channel channel = open_channel(0);
        frame_begin(&frame, GRANTS);
        frame_grant(&frame, slots[i], token);
        packet_ends(&channel);
    }
}

static void grant_for_a_slot_that_has_a_token_ends_the_channel(void)
{
    struct channel channel = open_channel(1);
    begin_grants(1);
    packet_ends(&channel);
    channel = open_channel(0);
    begin_grants(1);
    frame_grant(&frame, 0, token);
    packet_ends(&channel);
}

static void grant_for_a_slot_in_flight_ends_the_channel(void)
{
    struct channel channel = open_channel(1);
    struct arrival arrival = receive_offer(&channel);
    begin_grants(1);
    send_now(&channel);
    must_end(channel.socket);
    must(has_word(&channel, &arrival, REVOKED));
}

static void verdict_for_what_was_not_offered_ends_the_channel(void)
{
    for (uint64_t generation = 0; generation <= 1; generation++) {
        for (uint32_t slot = 0; slot <= 2; slot++) {
            struct channel channel = open_channel(1);
            struct arrival arrival = {.slot = slot, .generation = generation};
            set_word(&channel, &arrival, ADOPTED);
            send_verdict(&channel, &arrival, slot == 2);
            end(&channel);
        }
    }
    struct channel channel = open_channel(1);
    struct arrival arrival = {.slot = MAX_IN_FLIGHT, .generation = 1};
    send_verdict(&channel, &arrival, 0);
    end(&channel);
}

static void second_verdict_ends_the_channel(void)
{
    struct channel channel = open_channel(1);
    struct arrival arrival = receive_offer(&channel);
    set_word(&channel, &arrival, ADOPTED);
    send_verdict(&channel, &arrival, 0);
    send_verdict(&channel, &arrival, 0);
    end(&channel);
}

static void verdict_for_another_generation_ends_the_channel(void)
{
    struct channel channel = open_channel(1);
    struct arrival arrival = receive_offer(&channel);
    struct arrival other = {.slot = arrival.slot, .generation = arrival.generation + 1};
    send_verdict(&channel, &other, 0);
    must_end(channel.socket);
    must(has_word(&channel, &arrival, REVOKED));
}

static void adopted_without_the_claim_falls_back_and_ends_the_channel(void)
{
    struct channel channel = open_channel(1);
    struct arrival arrival = receive_offer(&channel);
    send_verdict(&channel, &arrival, 0);
    must_end(channel.socket);
    must(has_word(&channel, &arrival, REVOKED));
}

static void rejected_after_the_claim_is_adopted_and_ends_the_channel(void)
{
    struct channel channel = open_channel(1);
    struct arrival arrival = receive_offer(&channel);
    set_word(&channel, &arrival, ADOPTED);
    send_verdict(&channel, &arrival, HANDOFF_REASON_REJECTED);
    end(&channel);
}

/* An adoption has no kind of socket that was not taken. */
static void rejected_for_its_kind_after_the_claim_is_adopted_without_a_kind(void)
{
    struct channel channel = open_channel(1);
    struct arrival arrival = receive_offer(&channel);
    set_word(&channel, &arrival, ADOPTED);
    send_verdict(&channel, &arrival, 64 | HANDOFF_KIND_STREAM);
    end(&channel);
}

/* Waits, in the peer, until the broker has taken its offer back. */
static void wait_for_revocation(const struct channel *channel, const struct arrival *arrival)
{
    volatile uint64_t *word = &channel->words[arrival->slot];
    for (time_t start = time(NULL); *word != CLAIM_WORD(arrival->generation, REVOKED);)
        must(time(NULL) < start + PATIENCE_S);
}

static void adopted_after_the_deadline_is_a_fallback_and_ends_the_channel(void)
{
    struct channel channel = open_channel(1);
    struct arrival arrival = receive_offer(&channel);
    wait_for_revocation(&channel, &arrival);
    send_verdict(&channel, &arrival, 0);
    end(&channel);
}

static void claim_scribbled_on_after_the_deadline_is_a_fallback(void)
{
    struct channel channel = open_channel(1);
    struct arrival arrival = receive_offer(&channel);
    wait_for_revocation(&channel, &arrival);
    set_word(&channel, &arrival, ADOPTED);
    send_verdict(&channel, &arrival, 0);
    end(&channel);
}

/* The word that the next three put into the table while offers are in flight. */
static uint64_t scribble;

static struct channel scribble_on_offers(void)
{
    struct arrival arrivals[3];
    struct channel channel = open_channel(3);
    receive_offers(&channel, arrivals, 3);
    for (int i = 0; i < 3; i++)
        channel.words[arrivals[i].slot] = scribble;
    return channel;
}

static void scribble_and_wait_for_the_deadline(void)
{
    struct channel channel = scribble_on_offers();
    end(&channel);
}

static void scribble_and_reject(void)
{
    struct channel channel = scribble_on_offers();
    struct arrival arrival = {.slot = 0, .generation = 1};
    send_verdict(&channel, &arrival, HANDOFF_REASON_REJECTED);
    end(&channel);
}

static void scribble_and_close(void)
{
    struct channel channel = scribble_on_offers();
    close_channel(&channel);
}

/* Where the kernel can, it refuses them to the sender; otherwise they end the channel. */
static void descriptors_do_not_reach_the_broker(void)
{
    int kept, pair[2];
    char byte;
    struct channel channel = open_channel(0);
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    begin_grants(1);
    frame.fds[0] = pair[0];
    frame.fds_len = 1;
    kept = frame_send(channel.socket, &frame);
    must(kept == 0 || errno == EPERM);
    close(pair[0]);
    if (kept == 0)
        must_end(channel.socket);
    must(recv(pair[1], &byte, 1, 0) == 0);
}

static void close_after_accepting(void)
{
    close(accept4(LISTENER, NULL, NULL, SOCK_CLOEXEC));
    for (int i = 0; i < 20; i++) {
        struct channel channel = accept_broker();
        close_channel(&channel);
        channel = open_channel(0);
        close_channel(&channel);
        channel = open_channel(MAX_IN_FLIGHT);
        close_channel(&channel);
    }
}

static void close_with_an_offer_unread(void)
{
    struct channel channel = open_channel(1);
    struct pollfd offer = {.fd = channel.socket, .events = POLLIN};
    must(poll(&offer, 1, PATIENCE_S * 1000) == 1);
    close_channel(&channel);
}

static void close_with_an_offer_read(void)
{
    struct channel channel = open_channel(1);
    receive_offer(&channel);
    close_channel(&channel);
}

static void close_with_an_offer_adopted(void)
{
    struct channel channel = open_channel(1);
    struct arrival arrival = receive_offer(&channel);
    set_word(&channel, &arrival, ADOPTED);
    close_channel(&channel);
}

static void close_after_the_verdict(void)
{
    struct channel channel = open_channel(1);
    struct arrival arrival = receive_offer(&channel);
    set_word(&channel, &arrival, ADOPTED);
    send_verdict(&channel, &arrival, 0);
    close_channel(&channel);
}

static void grants_after_drain_end_the_channel(void)
{
    struct channel channel = about_to_drain();
    send_now(&channel);
    begin_grants(1);
    packet_ends(&channel);
}

/* Otherwise the broker would read for as long as a backend has the patience. */
static void second_drain_ends_the_channel(void)
{
    struct channel channel = about_to_drain();
    while (frame_send(channel.socket, &frame) == 0)
        continue;
    must(errno == EPIPE || errno == ECONNRESET);
}

static void oversized_packet_ends_the_channel(void)
{
    struct channel channel = about_to_grant();
    frame_add(&frame, 0, MOST_BYTES + 1 - frame.len);
    packet_ends(&channel);
    channel = about_to_welcome();
    frame_add(&frame, 0, MOST_BYTES - frame.len);
    packet_ends(&channel);
}

static void garbage_ends_the_channel(void)
{
    srandom(7);
    for (size_t len = 0; len <= 60; len++) {
        struct channel channel = len % 2 ? open_channel(MAX_IN_FLIGHT) : accept_broker();
        for (size_t i = 0; i < len; i++)
            frame.bytes[i] = (unsigned char)random();
        frame.len = len;
        frame.fds_len = 0;
        packet_ends(&channel);
    }
}

static void stopped_backend_adopts_nothing_after_the_deadline(void)
{
    struct channel channel = open_channel(1);
    struct arrival arrival = receive_offer(&channel);
    raise(SIGSTOP);
    must(has_word(&channel, &arrival, REVOKED));
}

/* ---- sendmsg(2) that fails ------------------------------------------------------------------ */

/* Every first attempt to send a packet fails with this: of those with descriptors, which are the
   broker's, or of those without, which are the backend's. */
static int failure, failure_with_descriptors, failures;

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    static int failed;
    if (failure != 0 && (message->msg_controllen > 0) == failure_with_descriptors) {
        failed = !failed;
        if (failed) {
            failures++;
            errno = failure;
            return -1;
        }
    }
    return syscall(SYS_sendmsg, fd, message, flags);
}

/* ---- the broker, and an honest channel beside it -------------------------------------------- */

struct end {
    handoff_broker *broker;
    handoff_backend *backend;
    int expected;
};

static char directory[64], path[96], other_path[96];
static struct end honest;
static handoff_broker *broker;

static time_t soon(void)
{
    return time(NULL) + PATIENCE_S;
}

/* Adopts what arrives at an honest backend, and checks that it is what was offered. */
static void adopt_all(const struct end *end)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    if (end->backend == NULL)
        return;
    assert_ok(handoff_backend_dispatch(end->backend));
    while (next_arrival(end->backend, &arrival)) {
        int fd;
        assert_ok(handoff_backend_adopt(end->backend, arrival.id, &fd));
        if (end->expected != -1)
            assert_same_socket(fd, end->expected);
        close(fd);
    }
}

static void dispatch(const struct end *end)
{
    struct pollfd fds[] = {
        {.fd = handoff_broker_fd(end->broker), .events = POLLIN},
        {.fd = end->backend ? handoff_backend_fd(end->backend) : -1, .events = POLLIN}};
    assert_int_not_equal(poll(fds, 2, 5), -1);
    assert_ok(handoff_broker_dispatch(end->broker));
    adopt_all(end);
}

/* Offers a connection as soon as there is a channel with room. */
static void offer_soon(const struct end *end, const handoff_offer *offer)
{
    handoff_status status;
    time_t deadline = soon();
    while ((status = handoff_broker_offer(end->broker, offer, NULL)) != HANDOFF_OK) {
        /* It has another version, says a backend that is hostile enough. */
        if (status != HANDOFF_ERR_FULL && status != HANDOFF_ERR_UNSUPPORTED)
            assert_status(status, HANDOFF_ERR_BACKEND_UNAVAILABLE);
        assert_true(time(NULL) < deadline);
        dispatch(end);
    }
}

static void hand_over(struct end *end)
{
    int ends[2];
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_offer offer = HANDOFF_OFFER_INIT;
    time_t deadline = soon();
    make_pair(SOCK_STREAM, ends);
    offer.fd = end->expected = ends[0];
    offer_soon(end, &offer);
    while (!next_verdict(end->broker, &verdict)) {
        assert_true(time(NULL) < deadline);
        dispatch(end);
    }
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    assert_int_equal(verdict.reason, HANDOFF_REASON_NONE);
    close(ends[0]);
    close(ends[1]);
    end->expected = -1;
}

static handoff_broker_statistics statistics(void)
{
    handoff_broker_statistics statistics = HANDOFF_BROKER_STATISTICS_INIT;
    assert_ok(handoff_broker_get_statistics(broker, &statistics));
    return statistics;
}

static handoff_broker *new_broker_with(const char *at, uint64_t timeout_ms, uint64_t reconnect_ms)
{
    handoff_broker *made;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_in_flight = MAX_IN_FLIGHT;
    options.queue_bytes = QUEUE_BYTES;
    options.timeout_ms = timeout_ms;
    options.max_failures = HANDOFF_NO_LIMIT;
    options.reconnect_min_ms = reconnect_ms;
    options.reconnect_max_ms = 2 * reconnect_ms;
    assert_ok(handoff_broker_new(at, &options, &made));
    return made;
}

static handoff_broker *new_broker(const char *at, uint64_t timeout_ms)
{
    return new_broker_with(at, timeout_ms, 1);
}

/* Another channel, and the listening socket that the hostile backend will have. */
static int begin(void)
{
    make_directory(directory);
    snprintf(path, sizeof path, "%s/hostile.sock", directory);
    snprintf(other_path, sizeof other_path, "%s/honest.sock", directory);
    honest = (struct end){.broker = new_broker(other_path, HANDOFF_NO_TIMEOUT), .expected = -1};
    assert_ok(handoff_backend_listen(other_path, NULL, &honest.backend));
    hand_over(&honest);
    int listener = packets_listen(path);
    assert_int_not_equal(listener, -1);
    return listener;
}

/* The hostile backend is a process of its own. */
static pid_t begin_beside(void (*run)(void))
{
    int listener = begin();
    pid_t child = fork_peer(listener);
    if (child == 0) {
        run();
        _exit(0);
    }
    close(listener);
    return child;
}

static void end_all(void)
{
    handoff_broker_free(broker);
    handoff_broker_free(honest.broker);
    handoff_backend_free(honest.backend);
    remove_directory(directory);
}

/* The broker finds an honest backend at the path of the hostile one. */
static void recover_and_end(void)
{
    struct end found = {.broker = broker, .expected = -1};
    assert_ok(handoff_backend_listen(path, NULL, &found.backend));
    /* It has not heard of the end of its last channel yet, perhaps. */
    dispatch(&found);
    hand_over(&found);
    hand_over(&honest);
    assert_int_equal(statistics().in_flight, 0);
    assert_int_equal(statistics().queued_bytes, 0);
    handoff_backend_free(found.backend);
    end_all();
}

struct attack {
    void (*run)(void);
    /* How many connections to offer, how long they wait (0: without limit), and what must become of
       them. */
    int offers;
    uint64_t timeout_ms;
    handoff_outcome outcome;
    handoff_reason reason;
};

/* Returns false if the attack was too slow for its deadline. */
static bool survive_once(const struct attack *attack, uint64_t timeout_ms)
{
    int status = 0, ends[8][2], verdicts = 0;
    size_t bytes = bytes_allocated();
    pid_t child = begin_beside(attack->run);
    int descriptors = count_descriptors();
    broker = new_broker(path, timeout_ms ? timeout_ms : HANDOFF_NO_TIMEOUT);
    struct end hostile = {.broker = broker};

    for (int i = 0; i < attack->offers; i++) {
        handoff_offer offer = HANDOFF_OFFER_INIT;
        make_pair(SOCK_STREAM, ends[i]);
        offer.fd = ends[i][0];
        offer.user_data = ends[i];
        offer.flags = i + 1 < attack->offers ? HANDOFF_OFFER_MORE : 0;
        offer_soon(&hostile, &offer);
    }
    int running = 1;
    handoff_verdict other = {.outcome = attack->outcome, .reason = attack->reason};
    time_t deadline = time(NULL) + 2 * PATIENCE_S;
    while (running || verdicts < attack->offers) {
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        assert_true(time(NULL) < deadline);
        hand_over(&honest);
        dispatch(&hostile);
        assert_true(bytes_allocated() < bytes + MOST_GROWTH);
        /* The broker's epoll, timer and socket, and both ends of each connection. */
        assert_in_range(count_descriptors(), 0, descriptors + 3 + 2 * attack->offers);
        while (next_verdict(broker, &verdict)) {
            int *pair = verdict.user_data;
            if (verdict.outcome != attack->outcome || verdict.reason != attack->reason)
                other = verdict;
            assert_true(verdict.may_have_reached_backend);
            assert_int_equal(verdict.kind, 0);
            assert_int_not_equal(pair[0], -1);
            close(pair[0]);
            close(pair[1]);
            pair[0] = -1;
            verdicts++;
        }
        if (running && waitpid(child, &status, WNOHANG | WUNTRACED) == child)
            running = WIFSTOPPED(status);
        if (running && WIFSTOPPED(status) && verdicts == attack->offers) {
            kill(child, SIGCONT);
            status = 0;
        }
    }
    assert_true(WIFEXITED(status));
    bool too_slow = timeout_ms != 0 && WEXITSTATUS(status) == TOO_SLOW;
    if (!too_slow) {
        assert_int_equal(WEXITSTATUS(status), 0);
        assert_int_equal(other.outcome, attack->outcome);
        assert_int_equal(other.reason, attack->reason);
    }
    recover_and_end();
    assert_true(bytes_allocated() < bytes + MOST_LEFT);
    assert_false(is_mapped("memfd:handoff"));
    return !too_slow;
}

static void survive(const struct attack *attack)
{
    for (uint64_t timeout_ms = attack->timeout_ms; !survive_once(attack, timeout_ms);
         timeout_ms *= 2)
        assert_in_range(timeout_ms, 1, 1000 * PATIENCE_S);
}

static void survives(void **state)
{
    survive(*state);
}

/* A word that an honest backend can't leave while this offer, the first of its slot, is in
   flight: perhaps the backend serves the connection, so the broker never does. */
static void impossible_claim_word_is_adopted_with_integrity_mismatch(void **state)
{
    static const uint64_t words[] = {
        0, CLAIM_WORD(1, 0), CLAIM_WORD(1, REVOKED), CLAIM_WORD(0, OFFERED),
        CLAIM_WORD(0, ADOPTED), CLAIM_WORD(0, REVOKED), CLAIM_WORD(2, 0), CLAIM_WORD(2, OFFERED),
        CLAIM_WORD(2, ADOPTED), CLAIM_WORD(2, REVOKED), UINT64_C(1) << 63, UINT64_MAX,
    };
    struct attack attacks[] = {
        {.run = scribble_and_wait_for_the_deadline, .timeout_ms = 100},
        {.run = scribble_and_reject},
        {.run = scribble_and_close},
    };
    (void)state;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        for (size_t j = 0; j < sizeof attacks / sizeof attacks[0]; j++) {
            scribble = words[i];
            attacks[j].offers = 3;
            attacks[j].outcome = HANDOFF_ADOPTED;
            attacks[j].reason = HANDOFF_REASON_INTEGRITY_MISMATCH;
            survive(&attacks[j]);
        }
    }
}

/* The test tells it when to go on. */
static void never_read(void)
{
    struct channel channel = open_channel(MAX_IN_FLIGHT);
    raise(SIGSTOP);
    for (int slot = 0; slot < MAX_IN_FLIGHT; slot++)
        channel.words[slot] = scribble ? scribble : channel.words[slot];
    raise(SIGSTOP);
    close_channel(&channel);
}

static void wait_for_stop(pid_t child)
{
    int status;
    assert_int_equal(waitpid(child, &status, WUNTRACED), child);
    assert_true(WIFSTOPPED(status));
}

/* Offers until there is no more room; returns how many were taken, the last of them queued. */
static int fill(const struct end *end, int pairs[MAX_IN_FLIGHT][2], uint64_t *last)
{
    static const uint8_t preread[16 * 1024];
    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.preread = preread;
    offer.preread_len = sizeof preread;
    for (int i = 0; i < MAX_IN_FLIGHT; i++) {
        make_pair(SOCK_STREAM, pairs[i]);
        offer.fd = pairs[i][0];
        offer.user_data = pairs[i];
        if (i == 0) {
            offer_soon(end, &offer);
            continue;
        }
        handoff_status status = handoff_broker_offer(end->broker, &offer, last);
        if (status != HANDOFF_OK) {
            assert_int_equal(status, HANDOFF_ERR_FULL);
            close(pairs[i][0]);
            close(pairs[i][1]);
            return i;
        }
        assert_in_range(statistics().queued_bytes, 0, QUEUE_BYTES);
    }
    fail_msg("the queue has no bound");
    return 0;
}

/* Takes `count` verdicts; returns how many were of offers that may have reached the backend, which
   all have this outcome and reason. Those that were never sent are fallbacks. */
static int take_verdicts(const struct end *end, int count, handoff_outcome outcome,
                         handoff_reason reason)
{
    int sent = 0;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    for (time_t deadline = soon(); count > 0;) {
        assert_true(time(NULL) < deadline);
        hand_over(&honest);
        dispatch(end);
        while (next_verdict(end->broker, &verdict)) {
            int *pair = verdict.user_data;
            int reached = verdict.may_have_reached_backend;
            assert_int_equal(verdict.outcome, reached ? outcome : HANDOFF_FALLBACK);
            if (reached)
                assert_int_equal(verdict.reason, reason);
            sent += reached;
            close(pair[0]);
            close(pair[1]);
            count--;
        }
    }
    return sent;
}

static void never_reading_backend(uint64_t word, handoff_outcome outcome, handoff_reason reason)
{
    int pairs[MAX_IN_FLIGHT][2], status;
    scribble = word;
    pid_t child = begin_beside(never_read);
    broker = new_broker(path, 500);
    struct end hostile = {.broker = broker};
    int count = fill(&hostile, pairs, NULL);
    wait_for_stop(child);
    kill(child, SIGCONT);
    wait_for_stop(child);
    int sent = take_verdicts(&hostile, count, outcome, reason);
    assert_in_range(sent, 1, count - 1);
    kill(child, SIGCONT);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    recover_and_end();
}

static void offers_to_a_backend_that_never_reads_queue_to_the_bound_and_time_out(void **state)
{
    (void)state;
    never_reading_backend(0, HANDOFF_FALLBACK, HANDOFF_REASON_ACK_TIMEOUT);
}

static void offer_that_was_never_sent_falls_back_whatever_its_claim_word_is(void **state)
{
    (void)state;
    never_reading_backend(UINT64_MAX, HANDOFF_ADOPTED, HANDOFF_REASON_INTEGRITY_MISMATCH);
    never_reading_backend(CLAIM_WORD(1, ADOPTED), HANDOFF_ADOPTED, HANDOFF_REASON_NONE);
}

static void offer_that_was_never_sent_is_taken_back_whatever_its_claim_word_is(void **state)
{
    (void)state;
    const uint64_t words[] = {CLAIM_WORD(1, ADOPTED), UINT64_MAX};
    for (int i = 0; i < 2; i++) {
        int pairs[MAX_IN_FLIGHT][2], status;
        uint64_t last;
        scribble = words[i];
        pid_t child = begin_beside(never_read);
        broker = new_broker(path, 1000 * PATIENCE_S);
        struct end hostile = {.broker = broker};
        int count = fill(&hostile, pairs, &last);
        wait_for_stop(child);
        kill(child, SIGCONT);
        wait_for_stop(child);
        assert_ok(handoff_broker_take_back(broker, last));
        assert_status(handoff_broker_take_back(broker, last), HANDOFF_ERR_TOO_LATE);
        close(pairs[count - 1][0]);
        close(pairs[count - 1][1]);
        /* The word showed that the backend broke the protocol, which ends the channel. */
        take_verdicts(&hostile, count - 1, HANDOFF_ADOPTED,
                      i == 0 ? HANDOFF_REASON_BACKEND_DIED : HANDOFF_REASON_INTEGRITY_MISMATCH);
        assert_int_equal(statistics().in_flight, 0);
        kill(child, SIGCONT);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        recover_and_end();
    }
}

/* What a call finds at the words of a backend that says nothing: the broker's descriptor tells of the
   verdicts at once, not when it looks at the words again, which is the later the older the offers are. */
static void found_by_another_call(uint64_t word, void (*call)(uint64_t id), handoff_reason reason)
{
    enum { OFFERS = 3, AGE_MS = 500, AT_ONCE_MS = 10 };
    int pairs[OFFERS][2], status;
    uint64_t id = 0;
    scribble = word;
    pid_t child = begin_beside(never_read);
    broker = new_broker_with(path, HANDOFF_NO_TIMEOUT, 1000 * PATIENCE_S);
    struct end hostile = {.broker = broker};
    handoff_offer offer = HANDOFF_OFFER_INIT;
    for (int i = 0; i < OFFERS; i++) {
        make_pair(SOCK_STREAM, pairs[i]);
        offer.fd = pairs[i][0];
        offer.user_data = pairs[i];
        if (i == 0)
            offer_soon(&hostile, &offer);
        else
            assert_ok(handoff_broker_offer(broker, &offer, &id));
    }
    wait_for_stop(child);
    for (uint64_t start = now_ns(); ms_since(start) < AGE_MS;)
        dispatch(&hostile);
    kill(child, SIGCONT);
    wait_for_stop(child);
    call(id);
    struct pollfd readable = {.fd = handoff_broker_fd(broker), .events = POLLIN};
    assert_int_equal(poll(&readable, 1, AT_ONCE_MS), 1);
    assert_int_equal(take_verdicts(&hostile, OFFERS, HANDOFF_ADOPTED, reason), OFFERS);
    kill(child, SIGCONT);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    end_all();
}

static void take_back_too_late(uint64_t id)
{
    assert_status(handoff_broker_take_back(broker, id), HANDOFF_ERR_TOO_LATE);
}

static void add_again(uint64_t id)
{
    (void)id;
    handoff_broker_backend same = HANDOFF_BROKER_BACKEND_INIT;
    same.path = path;
    assert_ok(handoff_broker_add(broker, &same));
}

static void verdicts_that_another_call_finds_are_told_at_once(void **state)
{
    (void)state;
    found_by_another_call(UINT64_MAX, take_back_too_late, HANDOFF_REASON_INTEGRITY_MISMATCH);
    found_by_another_call(CLAIM_WORD(1, ADOPTED), add_again, HANDOFF_REASON_NONE);
}

/* Hands over many connections in batches, all of which must arrive, once and in their order. */
static void run_long(struct end *end, int batch)
{
    static uint8_t preread[600];
    enum { RUNS = 20 };
    for (int run = 0; run < RUNS; run++) {
        int pairs[MAX_IN_FLIGHT][2], arrived = 0, verdicts = 0;
        handoff_offer offer = HANDOFF_OFFER_INIT;
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        offer.preread = preread;
        offer.preread_len = sizeof preread;
        for (int i = 0; i < batch; i++) {
            make_pair(SOCK_STREAM, pairs[i]);
            offer.fd = pairs[i][0];
            offer.flags = i + 1 < batch ? HANDOFF_OFFER_MORE : 0;
            assert_ok(handoff_broker_offer(end->broker, &offer, NULL));
        }
        for (time_t deadline = soon(); verdicts < batch;) {
            assert_true(time(NULL) < deadline);
            assert_ok(handoff_broker_dispatch(end->broker));
            assert_ok(handoff_backend_dispatch(end->backend));
            while (next_arrival(end->backend, &arrival)) {
                int fd;
                assert_int_equal(arrival.preread_len, sizeof preread);
                assert_ok(handoff_backend_adopt(end->backend, arrival.id, &fd));
                assert_same_socket(fd, pairs[arrived++][0]);
                close(fd);
            }
            while (next_verdict(end->broker, &verdict)) {
                assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
                assert_int_equal(verdict.reason, HANDOFF_REASON_NONE);
                verdicts++;
            }
        }
        assert_int_equal(arrived, batch);
        for (int i = 0; i < batch; i++) {
            close(pairs[i][0]);
            close(pairs[i][1]);
        }
    }
}

static struct end begin_honest(void)
{
    failure = 0;
    struct end end = {.expected = -1};
    make_directory(directory);
    snprintf(path, sizeof path, "%s/handoff.sock", directory);
    assert_ok(handoff_backend_listen(path, NULL, &end.backend));
    end.broker = broker = new_broker(path, HANDOFF_NO_TIMEOUT);
    hand_over(&end);
    return end;
}

static void end_honest(struct end *end)
{
    hand_over(end);
    assert_int_equal(statistics().connects, 1);
    handoff_broker_free(end->broker);
    handoff_backend_free(end->backend);
    remove_directory(directory);
}

static void fail_every_packet_once(int with_descriptors)
{
    static const int errors[] = {EAGAIN, ENOBUFS, ENOMEM, EINTR};
    struct end end = begin_honest();
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        failure_with_descriptors = with_descriptors;
        failures = 0;
        failure = errors[i];
        run_long(&end, 1);
        run_long(&end, 7);
        failure = 0;
        assert_in_range(failures, 40, 100000);
    }
    end_honest(&end);
}

static void every_packet_of_offers_that_fails_for_want_of_room_is_sent_again(void **state)
{
    (void)state;
    fail_every_packet_once(1);
}

static void every_packet_of_verdicts_that_fails_for_want_of_room_is_sent_again(void **state)
{
    (void)state;
    fail_every_packet_once(0);
}

static void connection_of_which_no_copy_may_be_in_flight_falls_back_alone(void **state)
{
    (void)state;
    int kept = 0, ends[2];
    struct end end = begin_honest();
    handoff_offer offer = HANDOFF_OFFER_INIT;
    failure_with_descriptors = 1;
    failures = 0;
    failure = ETOOMANYREFS;
    for (int i = 0; i < 20; i++) {
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        make_pair(SOCK_STREAM, ends);
        offer.fd = end.expected = ends[0];
        assert_ok(handoff_broker_offer(end.broker, &offer, NULL));
        for (time_t deadline = soon(); !next_verdict(end.broker, &verdict);) {
            assert_true(time(NULL) < deadline);
            dispatch(&end);
        }
        if (verdict.outcome == HANDOFF_FALLBACK) {
            assert_int_equal(verdict.reason, HANDOFF_REASON_DESCRIPTOR_PRESSURE);
            assert_false(verdict.may_have_reached_backend);
            kept++;
        }
        close(ends[0]);
        close(ends[1]);
    }
    failure = 0;
    assert_int_equal(failures, 10);
    assert_int_equal(kept, failures);
    end_honest(&end);
}

/* Gives all sockets of sequenced packets of this process the smallest buffers there are. */
static void make_buffers_small(void)
{
    for (int fd = 3; fd < 4096; fd++) {
        int type, size = 1;
        socklen_t len = sizeof type;
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_SEQPACKET) {
            assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size), 0);
            assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size), 0);
        }
    }
}

static void batch_that_is_larger_than_the_buffer_is_sent_in_parts(void **state)
{
    (void)state;
    struct end end = begin_honest();
    make_buffers_small();
    run_long(&end, MAX_IN_FLIGHT);
    end_honest(&end);
}

#define ATTACK(name, ...) \
    {#name, survives, descriptors_before, descriptors_after, \
     &(struct attack){.run = name, __VA_ARGS__}}
#define NO_OFFERS .offers = 0
#define FALLBACK(why) .offers = 1, .outcome = HANDOFF_FALLBACK, .reason = HANDOFF_REASON_##why
#define ADOPTION(why) .offers = 1, .outcome = HANDOFF_ADOPTED, .reason = HANDOFF_REASON_##why

int main(void)
{
    const struct CMUnitTest tests[] = {
        ATTACK(header_field_that_is_wrong_in_welcome_ends_the_channel, NO_OFFERS),
        ATTACK(header_field_that_is_wrong_in_grants_ends_the_channel, NO_OFFERS),
        ATTACK(header_field_that_is_wrong_in_drain_ends_the_channel, NO_OFFERS),
        ATTACK(backend_that_never_says_welcome_is_left, NO_OFFERS),
        ATTACK(backend_that_grants_nothing_after_its_welcome_is_left, NO_OFFERS),
        ATTACK(frame_of_any_other_version_ends_the_channel, NO_OFFERS),
        ATTACK(frame_other_than_welcome_as_the_first_ends_the_channel, NO_OFFERS),
        ATTACK(welcome_that_is_out_of_range_or_comes_twice_ends_the_channel, NO_OFFERS),
        ATTACK(grant_for_an_unknown_slot_ends_the_channel, NO_OFFERS),
        ATTACK(grant_for_a_slot_that_has_a_token_ends_the_channel, NO_OFFERS),
        ATTACK(grant_for_a_slot_in_flight_ends_the_channel, FALLBACK(INTEGRITY_MISMATCH)),
        ATTACK(verdict_for_what_was_not_offered_ends_the_channel, NO_OFFERS),
        ATTACK(second_verdict_ends_the_channel, ADOPTION(NONE)),
        ATTACK(verdict_for_another_generation_ends_the_channel, FALLBACK(INTEGRITY_MISMATCH)),
        ATTACK(adopted_without_the_claim_falls_back_and_ends_the_channel,
               FALLBACK(INTEGRITY_MISMATCH)),
        ATTACK(rejected_after_the_claim_is_adopted_and_ends_the_channel, ADOPTION(NONE)),
        ATTACK(rejected_for_its_kind_after_the_claim_is_adopted_without_a_kind, ADOPTION(NONE)),
        ATTACK(adopted_after_the_deadline_is_a_fallback_and_ends_the_channel,
               FALLBACK(ACK_TIMEOUT), .timeout_ms = 100),
        ATTACK(claim_scribbled_on_after_the_deadline_is_a_fallback, FALLBACK(ACK_TIMEOUT),
               .timeout_ms = 100),
        TEST(impossible_claim_word_is_adopted_with_integrity_mismatch),
        ATTACK(descriptors_do_not_reach_the_broker, NO_OFFERS),
        ATTACK(close_after_accepting, NO_OFFERS),
        ATTACK(close_with_an_offer_unread, FALLBACK(BACKEND_UNAVAILABLE)),
        ATTACK(close_with_an_offer_read, FALLBACK(BACKEND_UNAVAILABLE)),
        ATTACK(close_with_an_offer_adopted, ADOPTION(BACKEND_DIED)),
        ATTACK(close_after_the_verdict, ADOPTION(NONE)),
        ATTACK(grants_after_drain_end_the_channel, NO_OFFERS),
        ATTACK(second_drain_ends_the_channel, NO_OFFERS),
        ATTACK(oversized_packet_ends_the_channel, NO_OFFERS),
        ATTACK(garbage_ends_the_channel, NO_OFFERS),
        ATTACK(stopped_backend_adopts_nothing_after_the_deadline, FALLBACK(ACK_TIMEOUT),
               .timeout_ms = 100),
        TEST(offers_to_a_backend_that_never_reads_queue_to_the_bound_and_time_out),
        TEST(offer_that_was_never_sent_falls_back_whatever_its_claim_word_is),
        TEST(offer_that_was_never_sent_is_taken_back_whatever_its_claim_word_is),
        TEST(verdicts_that_another_call_finds_are_told_at_once),
        TEST(every_packet_of_offers_that_fails_for_want_of_room_is_sent_again),
        TEST(every_packet_of_verdicts_that_fails_for_want_of_room_is_sent_again),
        TEST(connection_of_which_no_copy_may_be_in_flight_falls_back_alone),
        TEST(batch_that_is_larger_than_the_buffer_is_sent_in_parts),
    };
    return RUN_TESTS(tests);
}
