/*
 * HANDOFF_SOAK_COUNT handoffs (200,000 by default) from a broker to a backend, one in ten of them
 * malformed, that must leave the descriptors and the memory of the process as they were.
 *
 * Memory is compared with that after the first tenth: until then caches and pools fill.
 */
#define _GNU_SOURCE
#include "libc.h"
#include "wire.h"

#include <stdlib.h>
#include <string.h>

#define MOST_GROWTH_KIB 256

/* What may be wrong with a message, and what the backend is to say of it. */
enum fault {
    NO_DESCRIPTOR,
    THREE_DESCRIPTORS,
    SHORT,
    UNKNOWN_TOKEN,
    REPLAYED_TOKEN,
    UNEXPECTED_TOKEN,
    REJECTED,
    MALFORMED_ACK,
    FOREIGN_ACK,
    LATE_ACK,
    FAULTS
};

static const handoff_status backend_says[FAULTS] = {
    [NO_DESCRIPTOR] = HANDOFF_ERR_NO_DESCRIPTOR,
    [THREE_DESCRIPTORS] = HANDOFF_ERR_SURPLUS_DESCRIPTORS,
    [SHORT] = HANDOFF_ERR_WRONG_LENGTH,
    [UNKNOWN_TOKEN] = HANDOFF_ERR_TOKEN_NOT_PENDING,
    [REPLAYED_TOKEN] = HANDOFF_ERR_TOKEN_NOT_PENDING,
    [UNEXPECTED_TOKEN] = HANDOFF_ERR_TOKEN_MISMATCH,
};

static void adopt(struct wire *wire)
{
    handoff_raw_token token;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    int fd;
    assert_ok(handoff_raw_store_issue(wire->store, &wire->token));
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    assert_ok(handoff_raw_receive_verified(wire->backend, wire->store, NULL, -1, &token, &fd));
    assert_ok(handoff_raw_ack_accept(wire->backend, &token));
    assert_ok(handoff_raw_ack_wait(wire->broker, &wire->token, HANDOFF_NO_TIMEOUT, &ack));
    assert_int_equal(ack.outcome, HANDOFF_ADOPTED);
    assert_same_socket(fd, wire->connection);
    close(fd);
}

static void send_faulty(struct wire *wire, enum fault fault)
{
    const int three[] = {wire->connection, wire->connection, wire->connection};
    handoff_raw_token other;
    switch (fault) {
    case NO_DESCRIPTOR:
        send_raw(wire->broker, wire->token.bytes, HANDOFF_RAW_TOKEN_LEN, NULL, 0);
        break;
    case THREE_DESCRIPTORS:
        send_raw(wire->broker, wire->token.bytes, HANDOFF_RAW_TOKEN_LEN, three, 3);
        break;
    case SHORT:
        send_raw(wire->broker, wire->token.bytes, HANDOFF_RAW_TOKEN_LEN - 1, three, 1);
        break;
    case UNKNOWN_TOKEN:
    case UNEXPECTED_TOKEN:
        assert_ok(handoff_raw_token_generate(&other));
        assert_ok(handoff_raw_send(wire->broker, wire->connection, &other));
        break;
    default:
        assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    }
}

/* Sends a message that the backend refuses, on a connection of its own that is closed after it. */
static void be_refused(struct wire *wire, enum fault fault)
{
    handoff_raw_token token;
    int fd = -7;
    if (fault == REPLAYED_TOKEN)
        assert_ok(handoff_raw_store_redeem(wire->store, &wire->token));
    send_faulty(wire, fault);
    assert_status(handoff_raw_receive_verified(wire->backend, wire->store,
                                               fault == UNEXPECTED_TOKEN ? &wire->token : NULL, -1,
                                               &token, &fd),
                  backend_says[fault]);
    assert_int_equal(fd, -7);
    if (fault != REPLAYED_TOKEN)
        assert_ok(handoff_raw_store_revoke(wire->store, &wire->token));
}

/* Sends a message that the backend takes, and then does not acknowledge as it should. */
static void be_answered_badly(struct wire *wire, enum fault fault)
{
    handoff_raw_token token;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    int fd;
    send_faulty(wire, fault);
    assert_ok(handoff_raw_receive_verified(wire->backend, wire->store, NULL, -1, &token, &fd));
    close(fd);
    switch (fault) {
    case REJECTED:
        assert_ok(handoff_raw_ack_reject(wire->backend, &token, HANDOFF_REASON_REJECTED));
        assert_ok(handoff_raw_ack_wait(wire->broker, &token, HANDOFF_NO_TIMEOUT, &ack));
        assert_int_equal(ack.outcome, HANDOFF_FALLBACK);
        break;
    case MALFORMED_ACK:
        send_raw(wire->backend, "adopted", 7, NULL, 0);
        assert_status(handoff_raw_ack_wait(wire->broker, &token, HANDOFF_NO_TIMEOUT, &ack),
                      HANDOFF_ERR_ACK_MALFORMED);
        break;
    case FOREIGN_ACK:
        assert_ok(handoff_raw_token_generate(&token));
        assert_ok(handoff_raw_ack_accept(wire->backend, &token));
        assert_status(handoff_raw_ack_wait(wire->broker, &wire->token, HANDOFF_NO_TIMEOUT, &ack),
                      HANDOFF_ERR_ACK_MISMATCH);
        break;
    default:
        assert_status(handoff_raw_ack_wait(wire->broker, &token, 1, &ack), HANDOFF_ERR_ACK_TIMEOUT);
        assert_status(handoff_raw_ack_accept(wire->backend, &token), HANDOFF_ERR_END_OF_STREAM);
    }
}

/* After a fault the connection is of no further use. */
static void reopen(struct wire *wire)
{
    int pair[2];
    close(wire->broker);
    close(wire->backend);
    make_pair(wire->type, pair);
    wire->broker = pair[0];
    wire->backend = pair[1];
}

/* Of the memory that is the process's own: pages of its files come in at any time. */
static long resident_kib(void)
{
    char line[128];
    long kib = -1;
    FILE *status = fopen("/proc/self/status", "re");
    assert_non_null(status);
    while (fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "RssAnon: %ld", &kib) == 1)
            break;
    fclose(status);
    assert_true(kib > 0);
    return kib;
}

static void handoffs_leave_descriptors_and_memory_as_they_were(void **state)
{
    struct wire *wire = *state;
    const char *setting = getenv("HANDOFF_SOAK_COUNT");
    long count = setting != NULL ? atol(setting) : 200000, adopted = 0;
    /* Half of them for each kind of socket; a fault of each kind takes a hundred. */
    count /= 2;
    assert_true(count >= 1000);
    long faults[FAULTS] = {0}, resident = 0;
    size_t allocated = 0;
    uint64_t start = now_ns();
    assert_ok(handoff_raw_store_revoke(wire->store, &wire->token));
    for (long i = 0; i < count; i++) {
        if (i == count / 10) {
            resident = resident_kib();
            allocated = bytes_allocated();
        }
        if (i % 10 != 9) {
            adopt(wire);
            adopted++;
            continue;
        }
        enum fault fault = (enum fault)(i / 10 % FAULTS);
        assert_ok(handoff_raw_store_issue(wire->store, &wire->token));
        if (backend_says[fault] != HANDOFF_OK)
            be_refused(wire, fault);
        else
            be_answered_badly(wire, fault);
        faults[fault]++;
        reopen(wire);
    }
    long resident_after = resident_kib(), malformed = 0;
    size_t allocated_after = bytes_allocated();
    for (int fault = 0; fault < FAULTS; fault++) {
        assert_true(faults[fault] >= count / 10 / FAULTS);
        malformed += faults[fault];
    }
    print_message("soak: %ld adopted, %ld malformed, %.1f s; resident %ld KiB, then %ld; "
                  "allocated %zu bytes, then %zu\n",
                  adopted, malformed, (double)ms_since(start) / 1e3, resident,
                  resident_after, allocated, allocated_after);
    assert_int_equal(malformed, count / 10);
    assert_int_equal(adopted, count - count / 10);
    assert_int_equal(handoff_raw_store_length(wire->store), 0);
    assert_nothing_to_read(wire->broker);
    assert_nothing_to_read(wire->backend);
    assert_nothing_to_read(wire->client);
    assert_true(resident_after - resident <= MOST_GROWTH_KIB);
    assert_true(allocated_after <= allocated);
    assert_client_sees_end(wire);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WIRE_TEST(handoffs_leave_descriptors_and_memory_as_they_were),
    };
    return RUN_TESTS(tests);
}
