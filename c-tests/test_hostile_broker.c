/* A hostile broker against the library's backend. Each attack is a process of its own; meanwhile
   and afterwards an honest broker hands connections over to the same backend. */
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
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_IN_FLIGHT = 256, SLOTS = 256, MAX_CHANNELS = 64, MAX_OFFER_BYTES = 1024 };

/* How much the backend may grow under an attack, and what may stay of it. */
enum { MOST_GROWTH = 1024 * 1024, MOST_LEFT = 64 * 1024 };

static char path[96];

/* ---- the hostile broker --------------------------------------------------------------------- */

/* Shared with the test: how many channels the backend must have ended, and how often it has been
   dispatched. */
static struct {
    _Atomic unsigned ended, dispatched;
} *shared;

static struct frame frame;

struct channel {
    int socket;
    int client;
    uint64_t *words;
    unsigned char tokens[MAX_IN_FLIGHT][TOKEN_LEN];
};

/* What an honest broker seals its table against. */
enum { SEALS = F_SEAL_SHRINK | F_SEAL_GROW };

static int make_table(size_t bytes, int seals)
{
    int table = memfd_create("hostile", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    must(table != -1 && ftruncate(table, (off_t)bytes) == 0);
    must(fcntl(table, F_ADD_SEALS, seals) == 0);
    return table;
}

static int make_client(void)
{
    int pair[2];
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    close(pair[1]);
    return pair[0];
}

static int connect_broker(void)
{
    int socket = packets_connect(path);
    must(socket != -1);
    return socket;
}

/* A channel like an honest one: with the backend's tokens, and a connection to offer. */
static struct channel open_channel(void)
{
    static struct channel channel;
    int table = make_table(SLOTS * 8, SEALS);
    channel.socket = connect_broker();
    channel.client = make_client();
    channel.words = mmap(NULL, SLOTS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, table, 0);
    must(channel.words != MAP_FAILED);
    frame_hello(&frame, SLOTS, table);
    must(frame_send(channel.socket, &frame) == 0);
    close(table);
    must(frame_receive(channel.socket, &frame) == 0);
    must(frame_get(&frame, AT_KIND, 1) == WELCOME);
    must(frame_receive(channel.socket, &frame) == 0);
    must(frame_get(&frame, AT_KIND, 1) == GRANTS);
    must(frame_get(&frame, AT_ENTRIES, 2) == MAX_IN_FLIGHT);
    for (size_t i = 0; i < MAX_IN_FLIGHT; i++) {
        const unsigned char *grant = frame.bytes + HEADER_LEN + i * 24;
        must(frame_get(&frame, HEADER_LEN + i * 24, 4) == i);
        memcpy(channel.tokens[i], grant + 8, TOKEN_LEN);
    }
    return channel;
}

static void close_channel(const struct channel *channel)
{
    close(channel->socket);
    close(channel->client);
    munmap(channel->words, SLOTS * 8);
}

/* What an honest broker would offer in a slot, on offer in the table. */
static struct entry honest_entry(struct channel *channel, uint32_t slot)
{
    struct entry entry = {.slot = slot, .generation = 1, .token = channel->tokens[slot],
                          .cookie = cookie_of(channel->client), .fd = channel->client};
    channel->words[slot] = CLAIM_WORD(1, OFFERED);
    return entry;
}

static void send_offer(struct channel *channel, const struct entry *entry)
{
    frame_begin(&frame, OFFERS);
    frame_offer(&frame, entry);
    must(frame_send(channel->socket, &frame) == 0);
}

/* Receives `count` verdicts, each of which must give this reason (0: adopted); their tokens are
   the next ones of their slots. */
static void expect_verdicts(struct channel *channel, size_t count, int reason)
{
    while (count > 0) {
        must(frame_receive(channel->socket, &frame) == 0);
        must(frame_get(&frame, AT_KIND, 1) == VERDICTS);
        size_t entries = frame_get(&frame, AT_ENTRIES, 2);
        must(entries <= count);
        count -= entries;
        for (size_t i = 0; i < entries; i++) {
            size_t at = HEADER_LEN + i * 32;
            must(frame_get(&frame, at + 4, 1) == (uint64_t)reason);
            must(frame_get(&frame, at + 5, 1) == 1);
            memcpy(channel->tokens[frame_get(&frame, at, 4)], frame.bytes + at + 16, TOKEN_LEN);
        }
    }
}

static void must_break(int socket)
{
    must_end(socket);
    shared->ended++;
}

/* The packet in `frame`, as the first or after an honest beginning, ends the channel. */
static void first_packet_breaks(void)
{
    int socket = connect_broker();
    must(frame_send(socket, &frame) == 0);
    must_break(socket);
    close(socket);
}

static void packet_breaks(const struct channel *channel)
{
    must(frame_send(channel->socket, &frame) == 0);
    must_break(channel->socket);
    close_channel(channel);
}

static void offer_breaks(struct channel *channel, const struct entry *entry)
{
    frame_begin(&frame, OFFERS);
    frame_offer(&frame, entry);
    packet_breaks(channel);
}

/* A frame of one honest offer, on a new channel. */
static struct channel begin_with_an_offer(void)
{
    struct channel channel = open_channel();
    struct entry entry = honest_entry(&channel, 0);
    frame_begin(&frame, OFFERS);
    frame_offer(&frame, &entry);
    return channel;
}

static const struct {
    size_t at, width;
} fields[] = {
    {AT_LENGTH, 4},       {AT_VERSION, 1},      {AT_KIND, 1},         {AT_ENTRIES, 2},
    {AT_DESCRIPTORS, 2},  {AT_RESERVED, 1},     {AT_RESERVED + 1, 1}, {AT_RESERVED + 2, 1},
    {AT_RESERVED + 3, 1}, {AT_RESERVED + 4, 1}, {AT_RESERVED + 5, 1},
};

enum { FIELDS = sizeof fields / sizeof fields[0], WRONG_VALUES = 4 };

/* Makes field `f` wrong in its way `way`; false if that value is the right one. */
static int make_wrong(size_t f, int way)
{
    uint64_t most = (UINT64_C(1) << (8 * fields[f].width)) - 1;
    uint64_t right = frame_get(&frame, fields[f].at, fields[f].width);
    uint64_t wrong[WRONG_VALUES] = {0, (right - 1) & most, (right + 1) & most, most};
    frame_set(&frame, fields[f].at, wrong[way], fields[f].width);
    return wrong[way] != right;
}

static void header_field_that_is_wrong_in_hello_ends_the_channel(void)
{
    int table = make_table(SLOTS * 8, SEALS);
    for (size_t f = 0; f < FIELDS; f++) {
        for (int way = 0; way < WRONG_VALUES; way++) {
            frame_hello(&frame, SLOTS, table);
            if (make_wrong(f, way))
                first_packet_breaks();
        }
    }
}

static void header_field_that_is_wrong_in_offers_ends_the_channel(void)
{
    for (size_t f = 0; f < FIELDS; f++) {
        for (int way = 0; way < WRONG_VALUES; way++) {
            struct channel channel = begin_with_an_offer();
            if (make_wrong(f, way))
                packet_breaks(&channel);
            else
                close_channel(&channel);
        }
    }
}

static void hello_of_any_other_version_is_refused(void)
{
    int table = make_table(SLOTS * 8, SEALS);
    for (unsigned version = 0; version <= 255; version++) {
        if (version == 1)
            continue;
        int socket = connect_broker();
        frame_hello(&frame, SLOTS, table);
        frame_set(&frame, AT_VERSION, version, 1);
        must(frame_send(socket, &frame) == 0);
        must(frame_receive(socket, &frame) == 0);
        must(frame.len == REFUSAL_LEN && frame_get(&frame, AT_KIND, 1) == REFUSAL);
        must(frame_get(&frame, AT_CAUSE, 1) == OTHER_VERSION);
        /* From version 1 to version 1. */
        must(frame_get(&frame, AT_VERSIONS, 2) == 0x0101);
        must_break(socket);
        close(socket);
    }
}

static void frame_of_any_other_kind_ends_the_channel(void)
{
    for (unsigned kind = 0; kind <= 255; kind++) {
        if (kind == OFFERS)
            continue;
        struct channel channel = begin_with_an_offer();
        frame_set(&frame, AT_KIND, kind, 1);
        packet_breaks(&channel);
    }
}

static void frame_that_only_a_backend_sends_ends_the_channel(void)
{
    static const unsigned char token[TOKEN_LEN] = {1};
    for (int kind = WELCOME; kind <= DRAIN; kind++) {
        if (kind == OFFERS)
            continue;
        struct channel channel = open_channel();
        frame_begin(&frame, kind);
        if (kind == WELCOME)
            frame_welcome(&frame, SLOTS, 1024);
        if (kind == GRANTS)
            frame_grant(&frame, 0, token);
        if (kind == VERDICTS)
            frame_verdict(&frame, 0, 0, 1, token);
        packet_breaks(&channel);
    }
}

static void oversized_frame_ends_the_channel(void)
{
    struct channel channel = begin_with_an_offer();
    frame_add(&frame, 0, MOST_BYTES + 1 - frame.len);
    packet_breaks(&channel);
}

static void frame_longer_or_shorter_than_it_says_ends_the_channel(void)
{
    for (size_t cut = 1; cut < HEADER_LEN + OFFER_LEN; cut++) {
        struct channel channel = begin_with_an_offer();
        frame.len -= cut;
        packet_breaks(&channel);
    }
    struct channel channel = begin_with_an_offer();
    frame.len += 1;
    packet_breaks(&channel);
}

static void frame_with_another_count_of_descriptors_ends_the_channel(void)
{
    static const size_t counts[] = {0, 2, 252, 253};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        struct channel channel = begin_with_an_offer();
        for (frame.fds_len = 0; frame.fds_len < counts[i]; frame.fds_len++)
            frame.fds[frame.fds_len] = channel.client;
        packet_breaks(&channel);
    }
}

static void garbage_ends_the_channel(void)
{
    srandom(7);
    for (size_t len = 1; len <= 100; len++) {
        struct channel channel = open_channel();
        for (size_t i = 0; i < len; i++)
            frame.bytes[i] = (unsigned char)random();
        frame.len = len;
        frame.fds_len = 0;
        packet_breaks(&channel);
    }
}

static void second_hello_ends_the_channel(void)
{
    struct channel channel = open_channel();
    frame_hello(&frame, SLOTS, make_table(SLOTS * 8, SEALS));
    packet_breaks(&channel);
}

static void offer_before_hello_ends_the_channel(void)
{
    struct channel channel = begin_with_an_offer();
    close_channel(&channel);
    frame.fds[0] = make_client();
    first_packet_breaks();
}

static void hello_without_a_table_or_with_two_ends_the_channel(void)
{
    int table = make_table(SLOTS * 8, SEALS);
    frame_hello(&frame, SLOTS, table);
    frame.fds_len = 0;
    first_packet_breaks();
    frame_set(&frame, AT_DESCRIPTORS, 0, 2);
    first_packet_breaks();
    frame_hello(&frame, SLOTS, table);
    frame_attach(&frame, table);
    first_packet_breaks();
    frame_set(&frame, AT_DESCRIPTORS, 1, 2);
    first_packet_breaks();
}

static void hello_with(int table)
{
    must(table != -1);
    frame_hello(&frame, SLOTS, table);
    first_packet_breaks();
    close(table);
}

static void table_that_is_too_small_ends_the_channel(void)
{
    hello_with(make_table(0, SEALS));
    hello_with(make_table(SLOTS * 8 - 1, SEALS | F_SEAL_SEAL));
}

/* Punching a large one out makes whoever touches it wait. */
static void table_that_is_larger_than_its_slots_need_ends_the_channel(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), most = (SLOTS * 8 + page - 1) / page * page;
    hello_with(make_table(most + 1, SEALS));
    hello_with(make_table((size_t)1 << 30, SEALS));
    frame_hello(&frame, SLOTS, make_table(most, SEALS));
    int socket = connect_broker();
    must(frame_send(socket, &frame) == 0);
    must(frame_receive(socket, &frame) == 0);
    must(frame_get(&frame, AT_KIND, 1) == WELCOME);
}

static void table_that_can_shrink_or_grow_ends_the_channel(void)
{
    hello_with(make_table(SLOTS * 8, 0));
    hello_with(make_table(SLOTS * 8, F_SEAL_SHRINK));
    hello_with(make_table(SLOTS * 8, F_SEAL_GROW));
    hello_with(make_table(SLOTS * 8, F_SEAL_GROW | F_SEAL_SEAL));
}

static void table_that_cannot_be_written_ends_the_channel(void)
{
    hello_with(make_table(SLOTS * 8, SEALS | F_SEAL_WRITE));
    hello_with(make_table(SLOTS * 8, SEALS | F_SEAL_FUTURE_WRITE));
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", make_table(SLOTS * 8, SEALS));
    hello_with(open(name, O_RDONLY | O_CLOEXEC));
}

static void table_that_is_no_shared_memory_ends_the_channel(void)
{
    int plain = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    must(plain != -1 && ftruncate(plain, SLOTS * 8) == 0);
    hello_with(plain);
    hello_with(make_client());
    hello_with(open("/dev/zero", O_RDWR | O_CLOEXEC));
    hello_with(open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

static void table_of_no_slots_or_of_too_many_ends_the_channel(void)
{
    static const uint32_t slots[] = {0, 4097, 0x80000000, 0xffffffff};
    int table = make_table(8192 * 8, SEALS);
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++) {
        frame_hello(&frame, slots[i], table);
        first_packet_breaks();
    }
}

static const uint64_t impossible_words[] = {
    0, CLAIM_WORD(1, 0), CLAIM_WORD(1, ADOPTED), CLAIM_WORD(0, OFFERED), CLAIM_WORD(0, ADOPTED),
    CLAIM_WORD(0, REVOKED), CLAIM_WORD(2, 0), CLAIM_WORD(2, OFFERED), CLAIM_WORD(2, ADOPTED),
    CLAIM_WORD(2, REVOKED), UINT64_C(1) << 63, UINT64_MAX,
};

static void impossible_claim_word_ends_the_channel(void)
{
    for (size_t i = 0; i < sizeof impossible_words / sizeof impossible_words[0]; i++) {
        struct channel channel = open_channel();
        struct entry entry = honest_entry(&channel, 0);
        channel.words[0] = impossible_words[i];
        offer_breaks(&channel, &entry);
    }
}

/* The test holds what is called "held", and adopts that when "now" comes, or rejects it at "no". */
static void claim_word_scribbled_on_while_the_arrival_is_held_ends_the_channel(void)
{
    for (size_t i = 0; i < 2 * sizeof impossible_words / sizeof impossible_words[0]; i++) {
        struct channel channel = open_channel();
        struct entry entry = honest_entry(&channel, 0);
        entry.correlation = "held";
        send_offer(&channel, &entry);
        entry = honest_entry(&channel, 1);
        send_offer(&channel, &entry);
        expect_verdicts(&channel, 1, 0);
        channel.words[0] = impossible_words[i / 2];
        entry = honest_entry(&channel, 2);
        entry.correlation = i % 2 == 0 ? "now" : "no";
        offer_breaks(&channel, &entry);
    }
}

static void offer_in_an_unknown_slot_ends_the_channel(void)
{
    static const uint32_t slots[] = {MAX_IN_FLIGHT, 4095, 4096, 0x7fffffff, 0xffffffff};
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++) {
        struct channel channel = open_channel();
        struct entry entry = honest_entry(&channel, 0);
        entry.slot = slots[i];
        offer_breaks(&channel, &entry);
    }
}

static void generation_out_of_range_ends_the_channel(void)
{
    static const uint64_t generations[] = {0, UINT64_C(1) << 62, UINT64_MAX};
    for (size_t i = 0; i < sizeof generations / sizeof generations[0]; i++) {
        struct channel channel = open_channel();
        struct entry entry = honest_entry(&channel, 0);
        entry.generation = generations[i];
        channel.words[0] = CLAIM_WORD(generations[i], OFFERED);
        offer_breaks(&channel, &entry);
    }
}

static void generation_that_does_not_increase_ends_the_channel(void)
{
    for (uint64_t generation = 6; generation <= 7; generation++) {
        struct channel channel = open_channel();
        struct entry entry = honest_entry(&channel, 0);
        entry.generation = 7;
        channel.words[0] = CLAIM_WORD(7, OFFERED);
        send_offer(&channel, &entry);
        expect_verdicts(&channel, 1, 0);
        entry = honest_entry(&channel, 0);
        entry.generation = generation;
        channel.words[0] = CLAIM_WORD(generation, OFFERED);
        offer_breaks(&channel, &entry);
    }
}

static void replayed_token_ends_the_channel(void)
{
    struct channel channel = open_channel();
    unsigned char spent[TOKEN_LEN];
    memcpy(spent, channel.tokens[0], TOKEN_LEN);
    struct entry entry = honest_entry(&channel, 0);
    send_offer(&channel, &entry);
    expect_verdicts(&channel, 1, 0);
    entry = honest_entry(&channel, 0);
    entry.generation = 2;
    entry.token = spent;
    channel.words[0] = CLAIM_WORD(2, OFFERED);
    offer_breaks(&channel, &entry);
}

/* The backend may receive several packets at once, and keeps those up to 4096 bytes for later. */
static void replayed_token_in_a_packet_behind_others_ends_the_channel(void)
{
    enum { OFFERS_EACH = 4, PREREAD = (4096 - HEADER_LEN) / OFFERS_EACH - OFFER_LEN };
    for (size_t more = 0; more <= 2; more++) {
        struct channel channel = open_channel();
        struct entry entry = honest_entry(&channel, 0);
        send_offer(&channel, &entry);
        frame_begin(&frame, OFFERS);
        for (uint32_t slot = 1; slot <= OFFERS_EACH; slot++) {
            entry = honest_entry(&channel, slot);
            entry.preread_len = PREREAD;
            if (slot == OFFERS_EACH)
                entry.preread_len += more - 1; /* 4095, 4096 and 4097 bytes in all */
            frame_offer(&frame, &entry);
        }
        must(frame_send(channel.socket, &frame) == 0);
        entry = honest_entry(&channel, 0);
        entry.generation = 2;
        offer_breaks(&channel, &entry);
    }
}

static void token_offered_twice_in_one_frame_ends_the_channel(void)
{
    struct channel channel = begin_with_an_offer();
    struct entry entry = honest_entry(&channel, 0);
    entry.generation = 2;
    frame_offer(&frame, &entry);
    packet_breaks(&channel);
}

static void wrong_token_ends_the_channel(void)
{
    static const unsigned char zeros[TOKEN_LEN];
    struct channel channel = open_channel();
    struct entry entry = honest_entry(&channel, 0);
    channel.tokens[0][15] ^= 1;
    offer_breaks(&channel, &entry);
    channel = open_channel();
    entry = honest_entry(&channel, 0);
    entry.token = zeros;
    offer_breaks(&channel, &entry);
    channel = open_channel();
    entry = honest_entry(&channel, 0);
    entry.token = channel.tokens[1];
    offer_breaks(&channel, &entry);
}

static void token_of_another_channel_ends_only_the_channel_that_used_it(void)
{
    struct channel other = open_channel();
    struct channel channel = open_channel();
    struct entry entry = honest_entry(&channel, 0);
    entry.token = other.tokens[0];
    offer_breaks(&channel, &entry);
    entry = honest_entry(&other, 0);
    send_offer(&other, &entry);
    expect_verdicts(&other, 1, 0);
}

/* The same token is good on the channel that it was granted to, even with verdicts unread. */
static void offer_beyond_max_in_flight_ends_the_channel(void)
{
    struct channel channel = open_channel();
    for (uint32_t slot = 0; slot < MAX_IN_FLIGHT; slot++) {
        struct entry entry = honest_entry(&channel, slot);
        send_offer(&channel, &entry);
    }
    struct entry entry = honest_entry(&channel, 0);
    entry.generation = 2;
    offer_breaks(&channel, &entry);
}

static void length_that_overflows_the_frame_ends_the_channel(void)
{
    static const uint32_t lengths[] = {1, MOST_BYTES, 0x7fffffff, 0xffffffff};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        for (int which = 1; which <= 3; which++) {
            struct channel channel = begin_with_an_offer();
            if (which & 1)
                frame_set(&frame, HEADER_LEN + AT_PREREAD_LEN, lengths[i], 4);
            if (which & 2)
                frame_set(&frame, HEADER_LEN + AT_METADATA_LEN, lengths[i], 4);
            packet_breaks(&channel);
        }
    }
}

/* A C program would see the part before it only, and check only that. */
static void name_with_a_nul_in_it_ends_the_channel(void)
{
    for (size_t at = 0; at < 4; at++) {
        struct channel channel = open_channel();
        struct entry entry = honest_entry(&channel, 0);
        entry.correlation = "name";
        frame_begin(&frame, OFFERS);
        frame_offer(&frame, &entry);
        frame.bytes[HEADER_LEN + OFFER_LEN + at] = '\0';
        packet_breaks(&channel);
    }
}

static void more_bytes_than_allowed_end_the_channel(void)
{
    struct channel channel = open_channel();
    struct entry entry = honest_entry(&channel, 0);
    entry.preread_len = MAX_OFFER_BYTES;
    send_offer(&channel, &entry);
    expect_verdicts(&channel, 1, 0);
    entry = honest_entry(&channel, 1);
    entry.preread_len = MAX_OFFER_BYTES + 1;
    offer_breaks(&channel, &entry);
}

/* In the byte of a verdict: the rest of it is the kind of socket that is not taken. */
enum { NO_KIND = 64 };

/* Offers any descriptor, under a socket's cookie, and expects it to be rejected for this reason. */
static void rejected(struct channel *channel, int fd, int cookie_of_socket, int reason)
{
    static uint32_t slot;
    must(fd != -1);
    struct entry entry = honest_entry(channel, slot++);
    entry.fd = fd;
    entry.cookie = cookie_of(cookie_of_socket);
    send_offer(channel, &entry);
    expect_verdicts(channel, 1, reason);
}

static void descriptor_that_is_no_connection_is_rejected_and_the_channel_goes_on(void)
{
    struct channel channel = open_channel();
    int ends[2], listener = packets_listen(""), any = channel.client;
    int stream = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int datagrams = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    must(pipe2(ends, O_CLOEXEC) == 0);
    int no_sockets[] = {ends[0], ends[1], open("/dev/null", O_RDWR), eventfd(0, 0),
                        make_table(8, 0), open("/tmp", O_RDONLY), open("/tmp", O_PATH)};
    for (size_t i = 0; i < sizeof no_sockets / sizeof no_sockets[0]; i++)
        rejected(&channel, no_sockets[i], any, HANDOFF_REASON_CLIENT_UNSUPPORTED);
    rejected(&channel, listener, listener, NO_KIND + HANDOFF_KIND_SEQPACKET);
    rejected(&channel, stream, stream, NO_KIND + HANDOFF_KIND_UNCONNECTED);
    must(listen(stream, 1) == 0);
    rejected(&channel, stream, stream, NO_KIND + HANDOFF_KIND_UNCONNECTED);
    rejected(&channel, datagrams, datagrams, NO_KIND + HANDOFF_KIND_DATAGRAM);
    rejected(&channel, channel.socket, channel.socket, NO_KIND + HANDOFF_KIND_SEQPACKET);
}

static void connection_other_than_the_one_named_is_rejected_and_the_channel_goes_on(void)
{
    struct channel channel = open_channel();
    rejected(&channel, make_client(), channel.client, HANDOFF_REASON_INTEGRITY_MISMATCH);
    struct entry entry = honest_entry(&channel, 9);
    send_offer(&channel, &entry);
    expect_verdicts(&channel, 1, 0);
}

/* Byte 50 of an entry says that the kernel does the connection's TLS. */
enum { AT_OFFER_FLAGS = HEADER_LEN + 50 };

static void plain_connection_that_is_said_to_have_tls_is_rejected_and_the_channel_goes_on(void)
{
    struct channel channel = open_channel();
    struct entry entry = honest_entry(&channel, 0);
    frame_begin(&frame, OFFERS);
    frame_offer(&frame, &entry);
    frame_set(&frame, AT_OFFER_FLAGS, 1, 1);
    must(frame_send(channel.socket, &frame) == 0);
    expect_verdicts(&channel, 1, HANDOFF_REASON_INTEGRITY_MISMATCH);
    entry = honest_entry(&channel, 1);
    send_offer(&channel, &entry);
    expect_verdicts(&channel, 1, 0);
}

static void unknown_flag_of_an_offer_ends_the_channel(void)
{
    for (int bit = 1; bit < 8; bit++) {
        struct channel channel = open_channel();
        struct entry entry = honest_entry(&channel, 0);
        frame_begin(&frame, OFFERS);
        frame_offer(&frame, &entry);
        frame_set(&frame, AT_OFFER_FLAGS, 1u << bit, 1);
        packet_breaks(&channel);
    }
}

static void backend_tells_in_the_table_that_it_knows_tls(void)
{
    struct channel channel = open_channel();
    must(channel.words[0] == 4);
    close_channel(&channel);
}

static void most_descriptors_in_a_packet_are_taken_and_one_more_ends_the_channel(void)
{
    struct channel channel = open_channel();
    for (size_t count = 252; count <= 253; count++) {
        frame_begin(&frame, OFFERS);
        for (uint32_t slot = 0; slot < count; slot++) {
            struct entry entry = honest_entry(&channel, slot);
            entry.generation = count;
            channel.words[slot] = CLAIM_WORD(count, OFFERED);
            frame_offer(&frame, &entry);
        }
        if (count == 253)
            break;
        must(frame_send(channel.socket, &frame) == 0);
        expect_verdicts(&channel, count, 0);
    }
    packet_breaks(&channel);
}

/* Verdicts can only wait for offers, and offers need tokens, which come with verdicts. */
static void broker_that_never_reads_costs_the_backend_no_more_than_max_in_flight(void)
{
    struct channel channel = open_channel();
    for (uint32_t slot = 0; slot < MAX_IN_FLIGHT; slot++) {
        struct entry entry = honest_entry(&channel, slot);
        send_offer(&channel, &entry);
    }
    raise(SIGSTOP);
    expect_verdicts(&channel, MAX_IN_FLIGHT, 0);
}

static void broker_that_never_says_hello_is_closed(void)
{
    int silent[3];
    for (int i = 0; i < 3; i++)
        silent[i] = connect_broker();
    for (int i = 0; i < 3; i++)
        must_break(silent[i]);
}

static void broker_that_connects_a_thousand_times_gets_no_more_than_the_backend_allows(void)
{
    static struct pollfd peers[1000];
    int open = 1000;
    for (int i = 0; i < 1000; i++)
        peers[i] = (struct pollfd){.fd = connect_broker(), .events = POLLIN};
    /* One of the channels is the honest broker's. */
    while (open > MAX_CHANNELS - 1) {
        must(poll(peers, 1000, PATIENCE_S * 1000) > 0);
        for (int i = 0; i < 1000; i++) {
            if (peers[i].revents != 0) {
                must_end(peers[i].fd);
                close(peers[i].fd);
                peers[i].fd = -1;
                open--;
            }
        }
    }
    must(open == MAX_CHANNELS - 1);
    raise(SIGSTOP);
    must(poll(peers, 1000, 0) == 0);
}

static void brokers_that_connect_without_end_do_not_keep_dispatch_from_returning(void)
{
    unsigned until = shared->dispatched + 50;
    pid_t more = fork();
    must(more != -1);
    while (shared->dispatched < until)
        close(connect_broker());
    if (more == 0)
        _exit(0);
    must(waitpid(more, NULL, 0) == more);
}

static void broker_that_disconnects_at_any_point_leaves_nothing(void)
{
    close(connect_broker());
    for (int i = 0; i < 10; i++) {
        int socket = connect_broker();
        frame_hello(&frame, SLOTS, make_table(SLOTS * 8, SEALS));
        must(frame_send(socket, &frame) == 0);
        close(socket);
        struct channel channel = open_channel();
        close_channel(&channel);
        channel = begin_with_an_offer();
        must(frame_send(channel.socket, &frame) == 0);
        close_channel(&channel);
        channel = begin_with_an_offer();
        must(frame_send(channel.socket, &frame) == 0);
        must(shutdown(channel.socket, SHUT_RD) == 0);
        close_channel(&channel);
        channel = begin_with_an_offer();
        must(frame_send(channel.socket, &frame) == 0);
        must(shutdown(channel.socket, SHUT_WR) == 0);
        must_end(channel.socket);
        close_channel(&channel);
    }
}

static void stopped_broker_holds_nobody_up_and_goes_on_when_continued(void)
{
    struct channel channel = open_channel();
    struct entry entry = honest_entry(&channel, 0);
    send_offer(&channel, &entry);
    raise(SIGSTOP);
    expect_verdicts(&channel, 1, 0);
    entry = honest_entry(&channel, 0);
    entry.generation = 2;
    channel.words[0] = CLAIM_WORD(2, OFFERED);
    send_offer(&channel, &entry);
    expect_verdicts(&channel, 1, 0);
}

/* ---- the backend and the honest broker ------------------------------------------------------ */

static handoff_backend *backend;
static handoff_broker *broker;

/* The arrival that is held, and the honest connection that is on its way. */
static uint64_t held;
static int honest_fd;

static void dispatch(void)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    assert_ok(handoff_backend_dispatch(backend));
    shared->dispatched++;
    while (next_arrival(backend, &arrival)) {
        int fd;
        if (strcmp(arrival.correlation, "held") == 0) {
            held = arrival.id;
            continue;
        }
        int adopts = strcmp(arrival.correlation, "now") == 0;
        if (adopts || strcmp(arrival.correlation, "no") == 0) {
            fd = -1;
            if (adopts)
                assert_status(handoff_backend_adopt(backend, held, &fd), HANDOFF_ERR_TAKEN_BACK);
            else
                assert_ok(handoff_backend_reject(backend, held, HANDOFF_REASON_REJECTED));
            /* What else the caller has seen of that broker is lost with the channel. */
            assert_status(handoff_backend_adopt(backend, arrival.id, &fd), HANDOFF_ERR_TAKEN_BACK);
            assert_int_equal(fd, -1);
            continue;
        }
        int honest = strcmp(arrival.correlation, "honest") == 0;
        assert_ok(handoff_backend_adopt(backend, arrival.id, &fd));
        if (honest)
            assert_same_socket(fd, honest_fd);
        close(fd);
    }
    assert_ok(handoff_broker_dispatch(broker));
}

static handoff_backend_statistics statistics(void)
{
    handoff_backend_statistics statistics = HANDOFF_BACKEND_STATISTICS_INIT;
    assert_ok(handoff_backend_get_statistics(backend, &statistics));
    return statistics;
}

/* Waits until one of both ends has something to do, or for 20 ms, and does it. */
static void wait_and_dispatch(void)
{
    struct pollfd ends[] = {{.fd = handoff_backend_fd(backend), .events = POLLIN},
                            {.fd = handoff_broker_fd(broker), .events = POLLIN}};
    assert_int_not_equal(poll(ends, 2, 20), -1);
    dispatch();
}

static void hand_over_honestly(void)
{
    int ends[2];
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_offer offer = HANDOFF_OFFER_INIT;
    handoff_status status;
    time_t deadline = time(NULL) + PATIENCE_S;
    make_pair(SOCK_STREAM, ends);
    offer.fd = honest_fd = ends[0];
    offer.correlation = "honest";
    /* There is no channel before the first time. */
    while ((status = handoff_broker_offer(broker, &offer, NULL)) ==
           HANDOFF_ERR_BACKEND_UNAVAILABLE) {
        handoff_broker_statistics made = HANDOFF_BROKER_STATISTICS_INIT;
        assert_ok(handoff_broker_get_statistics(broker, &made));
        assert_true(made.connects == 0 && time(NULL) < deadline);
        wait_and_dispatch();
    }
    assert_ok(status);
    while (!next_verdict(broker, &verdict)) {
        assert_true(time(NULL) < deadline);
        wait_and_dispatch();
    }
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    assert_int_equal(verdict.reason, HANDOFF_REASON_NONE);
    close(ends[0]);
    close(ends[1]);
}

static void share(void)
{
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(shared, MAP_FAILED);
}

static void begin(char directory[64])
{
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    handoff_broker_options broker_options = HANDOFF_BROKER_OPTIONS_INIT;
    broker_options.timeout_ms = HANDOFF_NO_TIMEOUT;
    options.max_channels = MAX_CHANNELS;
    options.max_in_flight = MAX_IN_FLIGHT;
    options.max_offer_bytes = MAX_OFFER_BYTES;
    make_directory(directory);
    snprintf(path, sizeof path, "%s/handoff.sock", directory);
    assert_ok(handoff_backend_listen(path, &options, &backend));
    assert_ok(handoff_broker_new(path, &broker_options, &broker));
    hand_over_honestly();
}

static void end(const char *directory)
{
    handoff_broker_free(broker);
    handoff_backend_free(backend);
    remove_directory(directory);
}

struct attack {
    void (*run)(void);
};

static void survives(void **state)
{
    const struct attack *attack = *state;
    char directory[64];
    int status = 0;
    share();
    begin(directory);
    int descriptors = count_descriptors();
    size_t bytes = bytes_allocated();

    pid_t child = fork_peer(-1);
    if (child == 0) {
        attack->run();
        _exit(0);
    }
    while (waitpid(child, &status, WNOHANG | WUNTRACED) == 0 || WIFSTOPPED(status)) {
        hand_over_honestly();
        wait_and_dispatch();
        assert_in_range(statistics().channels, 1, MAX_CHANNELS);
        assert_true(bytes_allocated() < bytes + MOST_GROWTH);
        if (WIFSTOPPED(status)) {
            for (int i = 0; i < 10; i++)
                hand_over_honestly();
            kill(child, SIGCONT);
            status = 0;
        }
    }
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);

    for (time_t deadline = time(NULL) + PATIENCE_S; statistics().channels > 1;) {
        assert_true(time(NULL) < deadline);
        wait_and_dispatch();
    }
    hand_over_honestly();
    handoff_backend_statistics found = statistics();
    assert_int_equal(found.broken + found.refused_versions, shared->ended);
    assert_int_equal(found.refused, found.refused_versions + found.refused_over_limit);
    assert_int_equal(found.channels, 1);
    assert_int_equal(found.held, 0);
    assert_int_equal(found.held_bytes, 0);
    assert_int_equal(count_descriptors(), descriptors);
    assert_true(bytes_allocated() < bytes + MOST_LEFT);
    assert_false(is_mapped("memfd:hostile"));
    end(directory);
    munmap(shared, sizeof *shared);
}

static void descriptors_with_an_empty_or_an_oversized_packet_are_closed_at_once(void **state)
{
    (void)state;
    char directory[64];
    share();
    begin(directory);
    static const size_t lengths[] = {0, MOST_BYTES + 1};
    for (int i = 0; i < 2; i++) {
        int ends[2], peer = packets_connect(path);
        char byte;
        make_pair(SOCK_STREAM, ends);
        frame_begin(&frame, OFFERS);
        frame_attach(&frame, ends[0]);
        frame.len = lengths[i];
        assert_int_equal(frame_send(peer, &frame), 0);
        close(ends[0]);
        assert_ok(handoff_backend_dispatch(backend));
        assert_int_equal(recv(ends[1], &byte, 1, MSG_DONTWAIT), 0);
        assert_true(channel_ends(peer));
        close(ends[1]);
        close(peer);
    }
    end(directory);
}

#define ATTACK(name) \
    {#name, survives, descriptors_before, descriptors_after, &(struct attack){name}}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ATTACK(header_field_that_is_wrong_in_hello_ends_the_channel),
        ATTACK(header_field_that_is_wrong_in_offers_ends_the_channel),
        ATTACK(hello_of_any_other_version_is_refused),
        ATTACK(frame_of_any_other_kind_ends_the_channel),
        ATTACK(frame_that_only_a_backend_sends_ends_the_channel),
        ATTACK(oversized_frame_ends_the_channel),
        ATTACK(frame_longer_or_shorter_than_it_says_ends_the_channel),
        ATTACK(frame_with_another_count_of_descriptors_ends_the_channel),
        ATTACK(garbage_ends_the_channel),
        ATTACK(second_hello_ends_the_channel),
        ATTACK(offer_before_hello_ends_the_channel),
        ATTACK(hello_without_a_table_or_with_two_ends_the_channel),
        ATTACK(table_that_is_too_small_ends_the_channel),
        ATTACK(table_that_is_larger_than_its_slots_need_ends_the_channel),
        ATTACK(table_that_can_shrink_or_grow_ends_the_channel),
        ATTACK(table_that_cannot_be_written_ends_the_channel),
        ATTACK(table_that_is_no_shared_memory_ends_the_channel),
        ATTACK(table_of_no_slots_or_of_too_many_ends_the_channel),
        ATTACK(impossible_claim_word_ends_the_channel),
        ATTACK(claim_word_scribbled_on_while_the_arrival_is_held_ends_the_channel),
        ATTACK(offer_in_an_unknown_slot_ends_the_channel),
        ATTACK(generation_out_of_range_ends_the_channel),
        ATTACK(generation_that_does_not_increase_ends_the_channel),
        ATTACK(replayed_token_ends_the_channel),
        ATTACK(replayed_token_in_a_packet_behind_others_ends_the_channel),
        ATTACK(token_offered_twice_in_one_frame_ends_the_channel),
        ATTACK(wrong_token_ends_the_channel),
        ATTACK(token_of_another_channel_ends_only_the_channel_that_used_it),
        ATTACK(offer_beyond_max_in_flight_ends_the_channel),
        ATTACK(length_that_overflows_the_frame_ends_the_channel),
        ATTACK(name_with_a_nul_in_it_ends_the_channel),
        ATTACK(more_bytes_than_allowed_end_the_channel),
        ATTACK(descriptor_that_is_no_connection_is_rejected_and_the_channel_goes_on),
        ATTACK(plain_connection_that_is_said_to_have_tls_is_rejected_and_the_channel_goes_on),
        ATTACK(unknown_flag_of_an_offer_ends_the_channel),
        ATTACK(backend_tells_in_the_table_that_it_knows_tls),
        ATTACK(connection_other_than_the_one_named_is_rejected_and_the_channel_goes_on),
        ATTACK(most_descriptors_in_a_packet_are_taken_and_one_more_ends_the_channel),
        ATTACK(broker_that_never_reads_costs_the_backend_no_more_than_max_in_flight),
        ATTACK(broker_that_never_says_hello_is_closed),
        ATTACK(broker_that_connects_a_thousand_times_gets_no_more_than_the_backend_allows),
        ATTACK(brokers_that_connect_without_end_do_not_keep_dispatch_from_returning),
        ATTACK(broker_that_disconnects_at_any_point_leaves_nothing),
        ATTACK(stopped_broker_holds_nobody_up_and_goes_on_when_continued),
        TEST(descriptors_with_an_empty_or_an_oversized_packet_are_closed_at_once),
    };
    return RUN_TESTS(tests);
}
