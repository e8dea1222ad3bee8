/*
 * Memory: none is allocated for an offer once both ends run, and little is held for each in flight;
 * and what happens where there is none.
 *
 * The program's own malloc() and its kin stand before those of libc, so that they see the library's
 * calls too.
 */
#define _GNU_SOURCE
#include "fleet.h"

#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

static size_t calls, live;

/* There is no memory for more bytes at once. */
static size_t most = SIZE_MAX;

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *block);

static void *counted(void *block)
{
    calls++;
    live += malloc_usable_size(block);
    return block;
}

static bool is_too_much(size_t size)
{
    if (size > most)
        errno = ENOMEM;
    return size > most;
}

void *malloc(size_t size)
{
    return is_too_much(size) ? NULL : counted(__libc_malloc(size));
}

void *calloc(size_t count, size_t size)
{
    return is_too_much(count * size) ? NULL : counted(__libc_calloc(count, size));
}

void *realloc(void *block, size_t size)
{
    if (is_too_much(size))
        return NULL;
    live -= malloc_usable_size(block);
    return counted(__libc_realloc(block, size));
}

int posix_memalign(void **block, size_t alignment, size_t size)
{
    if (is_too_much(size))
        return ENOMEM;
    *block = counted(__libc_memalign(alignment, size));
    return *block == NULL ? ENOMEM : 0;
}

void free(void *block)
{
    live -= malloc_usable_size(block);
    __libc_free(block);
}
#endif

/* The library's allocations are only seen where nobody else stands before libc's. */
static void skip_where_others_allocate(void)
{
    if (SANITIZED) {
        print_message("skipped under a sanitizer: it has replaced the allocator\n");
        skip();
    }
    skip_under_valgrind("it has replaced the allocator");
}

static size_t number(const char *name, size_t otherwise)
{
    const char *value = getenv(name);
    return value == NULL ? otherwise : strtoul(value, NULL, 10);
}

static struct channel channel;
static int client[2];

static int open_both(void **state)
{
    descriptors_before(state);
    make_pair(SOCK_STREAM, client);
    return 0;
}

static int close_both(void **state)
{
    close(client[0]);
    close(client[1]);
    return descriptors_after(state);
}

#define MEMORY_TEST(function) cmocka_unit_test_setup_teardown(function, open_both, close_both)

enum { BATCH = 16 };

/* Offers a batch and one more than there is room for; adopts, rejects or takes back each. The bytes
   are in one buffer, or in parts. */
static void hand_over(size_t preread_len, bool in_parts)
{
    static uint8_t preread[4000];
    const struct iovec parts[] = {{preread, preread_len / 2},
                                  {preread, 0},
                                  {preread + preread_len / 2, preread_len - preread_len / 2}};
    handoff_offer offer = offer_of(client[0]);
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    uint64_t ids[BATCH];
    if (in_parts) {
        offer.preread_iov = parts;
        offer.preread_iov_len = 3;
    } else {
        offer.preread = preread;
        offer.preread_len = preread_len;
    }
    offer.service = "web";
    offer.flags = HANDOFF_OFFER_MORE;
    for (int i = 0; i < BATCH; i++)
        assert_ok(handoff_broker_offer(channel.broker, &offer, &ids[i]));
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_FULL);
    assert_ok(handoff_broker_flush(channel.broker));
    assert_ok(handoff_broker_take_back(channel.broker, ids[0]));
    receive_all(channel.backend);
    for (int i = 1; next_arrival(channel.backend, &arrival); i++)
        if (i % 4 == 0)
            assert_ok(handoff_backend_reject(channel.backend, arrival.id,
                                             HANDOFF_REASON_REJECTED));
        else
            adopt(&channel, arrival.id);
    assert_ok(handoff_broker_dispatch(channel.broker));
    for (int i = 1; i < BATCH; i++)
        assert_ok(handoff_broker_next(channel.broker, &verdict));
}

static void assert_nothing_is_allocated(bool in_parts)
{
    skip_where_others_allocate();
    size_t offers = number("HANDOFF_TEST_OFFERS", 20000);
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_in_flight = BATCH;
    open_channel(&channel, &options, NULL);
    /* The largest first: of later batches a part may be sent before the rest is offered. */
    for (size_t len = 0; len <= 4000; len += 500)
        hand_over(4000 - len, in_parts);
    size_t before = calls;
    for (size_t i = 0; i < offers / BATCH; i++)
        hand_over(i * 500 % 4500, in_parts);
    assert_int_equal(calls - before, 0);
    void *volatile seen = malloc(1);
    free(seen);
    assert_int_equal(calls - before, 1);
    close_channel(&channel);
}

static void nothing_is_allocated_for_an_offer_once_both_ends_run(void **state)
{
    (void)state;
    assert_nothing_is_allocated(false);
}

static void nothing_is_allocated_for_an_offer_in_parts_once_both_ends_run(void **state)
{
    (void)state;
    assert_nothing_is_allocated(true);
}

/* Offers a batch; the backends are busy for as many arrivals as there are offers. */
static void hand_over_to_several(struct fleet *fleet, size_t preread_len)
{
    static uint8_t preread[4000];
    handoff_offer offer = offer_of(client[0]);
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    int arrived = 0;
    offer.preread = preread;
    offer.preread_len = preread_len;
    offer.metadata = "meta";
    offer.metadata_len = 4;
    offer.flags = HANDOFF_OFFER_MORE;
    for (int i = 0; i < BATCH; i++)
        assert_ok(handoff_broker_offer(fleet->broker, &offer, NULL));
    for (int verdicts = 0; verdicts < BATCH;) {
        turn(fleet);
        for (int i = 0; i < fleet->count; i++)
            while (next_arrival(fleet->backends[i], &arrival))
                if (arrived++ < BATCH)
                    reject_at(fleet, i, arrival.id, HANDOFF_REASON_BACKEND_BUSY);
                else
                    adopt_at(fleet, i, arrival.id);
        for (; next_verdict(fleet->broker, &verdict); verdicts++)
            assert_in_range(verdict.attempts, 1, fleet->count);
    }
}

static void nothing_is_allocated_for_an_offer_that_goes_from_backend_to_backend(void **state)
{
    (void)state;
    skip_where_others_allocate();
    static struct fleet fleet;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    size_t offers = number("HANDOFF_TEST_OFFERS", 20000) / 10;
    options.timeout_ms = options.attempt_timeout_ms = HANDOFF_NO_TIMEOUT;
    open_fleet(&fleet, 3, &options, NULL);
    for (size_t len = 0; len <= 4000; len += 100)
        hand_over_to_several(&fleet, len);
    size_t before = calls;
    for (size_t i = 0; i < offers / BATCH; i++)
        hand_over_to_several(&fleet, i * 500 % 4500);
    assert_int_equal(calls - before, 0);
    assert_true(broker_statistics(fleet.broker).failovers > offers / 2);
    close_fleet(&fleet);
}

/* Bytes that both ends hold with so many offers in flight, and then of verdicts. */
static void measure(size_t in_flight, size_t *broker, size_t *backend)
{
    handoff_broker_options broker_options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_backend_options backend_options = HANDOFF_BACKEND_OPTIONS_INIT;
    handoff_offer offer = offer_of(client[0]);
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    broker_options.max_in_flight = backend_options.max_in_flight = in_flight;
    broker_options.timeout_ms = HANDOFF_NO_TIMEOUT;
    make_directory(channel.directory);
    snprintf(channel.path, sizeof channel.path, "%s/socket", channel.directory);
    size_t start = live;
    assert_ok(handoff_backend_listen(channel.path, &backend_options, &channel.backend));
    *backend = live - start;
    start = live;
    assert_ok(handoff_broker_new(channel.path, &broker_options, &channel.broker));
    assert_int_not_equal(handoff_broker_fd(channel.broker), -1);
    *broker = live - start;
    start = live;
    assert_ok(handoff_backend_dispatch(channel.backend));
    *backend += live - start;
    start = live;
    assert_ok(handoff_broker_dispatch(channel.broker));
    offer.flags = HANDOFF_OFFER_MORE;
    for (size_t i = 0; i < in_flight; i++)
        assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    *broker += live - start;
    for (size_t arrived = 0; arrived < in_flight;) {
        start = live;
        assert_ok(handoff_broker_dispatch(channel.broker));
        *broker += live - start;
        start = live;
        /* Rejected, because so many connections cannot be held open at once. */
        assert_ok(handoff_backend_dispatch(channel.backend));
        while (next_arrival(channel.backend, &arrival)) {
            assert_ok(handoff_backend_reject(channel.backend, arrival.id,
                                             HANDOFF_REASON_REJECTED));
            arrived++;
        }
        *backend += live - start;
    }
    start = live;
    assert_ok(handoff_broker_dispatch(channel.broker));
    *broker += live - start;
    for (size_t i = 0; i < in_flight; i++)
        assert_ok(handoff_broker_next(channel.broker, &verdict));
    close_channel(&channel);
}

static void offer_in_flight_takes_256_bytes_at_most_on_each_side(void **state)
{
    (void)state;
    skip_where_others_allocate();
    enum { MOST = 4096 };
    size_t broker_one, backend_one, broker_most, backend_most;
    measure(1, &broker_one, &backend_one);
    measure(MOST, &broker_most, &backend_most);
    size_t broker = (broker_most - broker_one) / (MOST - 1);
    size_t backend = (backend_most - backend_one) / (MOST - 1);
    print_message("bytes for each offer in flight: broker %zu, backend %zu\n", broker, backend);
    assert_in_range(broker, 1, 256);
    assert_in_range(backend, 1, 256);
}

/* ---- without memory -------------------------------------------------------------------------- */

/* Makes a call where there is no memory for more than 32 KiB at once, and asserts that it says so.
 */
#define assert_no_memory(call)                     \
    do {                                           \
        most = 32768;                              \
        handoff_status status_ = (call);           \
        int errno_ = errno;                        \
        most = SIZE_MAX;                           \
        assert_status(status_, HANDOFF_ERR_NO_MEMORY); \
        assert_last_error_has("no memory for ");   \
        assert_int_equal(errno_, ENOMEM);          \
    } while (0)

static void raw_objects_that_the_memory_is_too_small_for_are_an_error(void **state)
{
    (void)state;
    skip_where_others_allocate();
    const handoff_raw_store_options store_options = {.size = sizeof store_options,
                                                     .capacity = 100000};
    const handoff_raw_pending_options pending_options = {.size = sizeof pending_options,
                                                         .capacity = 100000};
    const handoff_raw_failures_options failures_options = {.size = sizeof failures_options,
                                                           .max_failures = 4096};
    handoff_raw_store *store = NULL;
    handoff_raw_pending *pending = NULL;
    handoff_raw_failures *failures;
    handoff_raw_decision decision = {sizeof decision, 42, 42};
    assert_no_memory(handoff_raw_store_new(&store_options, &store));
    assert_null(store);
    assert_ok(handoff_raw_store_new(&store_options, &store));
    assert_no_memory(handoff_raw_pending_new(store, &pending_options, &pending));
    assert_null(pending);
    assert_ok(handoff_raw_pending_new(store, &pending_options, &pending));
    assert_ok(handoff_raw_failures_new(&failures_options, &failures));
    assert_no_memory(handoff_raw_failures_record_failure(failures, "app",
                                                         HANDOFF_REASON_ACK_TIMEOUT, &decision));
    assert_int_equal(decision.reason, 42);
    assert_int_equal(handoff_raw_failures_failed_count(failures, "app"), 0);
    assert_ok(handoff_raw_failures_record_failure(failures, "app", HANDOFF_REASON_ACK_TIMEOUT,
                                                  &decision));
    assert_int_equal(handoff_raw_failures_failed_count(failures, "app"), 1);
    handoff_raw_failures_free(failures);
    handoff_raw_pending_free(pending);
    handoff_raw_store_free(store);
}

static void ends_that_the_memory_is_too_small_for_are_an_error(void **state)
{
    (void)state;
    skip_where_others_allocate();
    static const uint32_t users[100000];
    const handoff_peer_policy policy = {.size = sizeof policy, .users = users,
                                        .users_len = sizeof users / sizeof users[0]};
    const handoff_broker_options broker_options = {.size = sizeof broker_options,
                                                   .max_failures = 4096};
    const handoff_backend_options backend_options = {.size = sizeof backend_options,
                                                     .policy = &policy};
    handoff_broker *broker = NULL;
    handoff_backend *backend = NULL;
    char name[64];
    snprintf(name, sizeof name, "@handoff-test-memory-%d", getpid());
    assert_no_memory(handoff_broker_new(name, &broker_options, &broker));
    assert_null(broker);
    assert_ok(handoff_broker_new(name, &broker_options, &broker));
    assert_no_memory(handoff_backend_listen(name, &backend_options, &backend));
    assert_null(backend);
    assert_ok(handoff_backend_listen(name, &backend_options, &backend));
    handoff_broker_free(broker);
    handoff_backend_free(backend);
}

static void channel_that_the_memory_is_too_small_for_is_made_when_there_is_some(void **state)
{
    (void)state;
    skip_where_others_allocate();
    const handoff_broker_options many = {.size = sizeof many, .max_in_flight = 4096};
    const handoff_backend_options options = {.size = sizeof options, .max_in_flight = 4096};
    make_directory(channel.directory);
    snprintf(channel.path, sizeof channel.path, "%.63s/socket", channel.directory);
    assert_ok(handoff_backend_listen(channel.path, &options, &channel.backend));
    assert_ok(handoff_broker_new(channel.path, &many, &channel.broker));
    most = 32768;
    handoff_status broker = handoff_broker_dispatch(channel.broker);
    handoff_status backend = handoff_backend_dispatch(channel.backend);
    most = SIZE_MAX;
    assert_status(broker, HANDOFF_ERR_NO_MEMORY);
    assert_non_null(strstr(handoff_broker_last_error(channel.broker), "no memory for "));
    assert_status(backend, HANDOFF_ERR_NO_MEMORY);
    assert_non_null(strstr(handoff_backend_last_error(channel.backend), "no memory for "));
    connect_broker(channel.broker, channel.backend);
    offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
    close_channel(&channel);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        MEMORY_TEST(nothing_is_allocated_for_an_offer_once_both_ends_run),
        MEMORY_TEST(nothing_is_allocated_for_an_offer_in_parts_once_both_ends_run),
        MEMORY_TEST(nothing_is_allocated_for_an_offer_that_goes_from_backend_to_backend),
        MEMORY_TEST(offer_in_flight_takes_256_bytes_at_most_on_each_side),
        MEMORY_TEST(raw_objects_that_the_memory_is_too_small_for_are_an_error),
        MEMORY_TEST(ends_that_the_memory_is_too_small_for_are_an_error),
        MEMORY_TEST(channel_that_the_memory_is_too_small_for_is_made_when_there_is_some),
    };
    return RUN_TESTS(tests);
}
