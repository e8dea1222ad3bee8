/* The registry of pending acknowledgements. */
#define _GNU_SOURCE
#include "support.h"

#include <pthread.h>

static const uint64_t MS = 1000000;

static handoff_token token_of(uint8_t first)
{
    handoff_token token = {.bytes = {first}};
    return token;
}

/* What most tests begin with: a store, and a registry of two entries that wait a second each. */
static handoff_token_store *store;
static handoff_pending *pending;

static int make_registry(void **state)
{
    handoff_pending_options options = HANDOFF_PENDING_OPTIONS_INIT;
    options.capacity = 2;
    options.timeout_ms = 1000;
    descriptors_before(state);
    assert_ok(handoff_token_store_new(NULL, &store));
    assert_ok(handoff_pending_new(store, &options, &pending));
    return 0;
}

static int free_registry(void **state)
{
    handoff_pending_free(pending);
    handoff_token_store_free(store);
    return descriptors_after(state);
}

#define REGISTRY_TEST(function) \
    cmocka_unit_test_setup_teardown(function, make_registry, free_registry)

static void assert_nothing_waits_for(const handoff_token *token)
{
    void *user_data = store;
    assert_status(handoff_pending_acknowledge(pending, token, &user_data),
                  HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_status(handoff_pending_abandon(pending, token, &user_data),
                  HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_status(handoff_pending_expire_at(pending, UINT64_MAX, NULL, &user_data),
                  HANDOFF_NOTHING);
    assert_int_equal(handoff_pending_length(pending), 0);
    assert_ptr_equal(user_data, store);
}

static void acknowledged_entry_leaves_once_with_its_user_data_and_token(void **state)
{
    (void)state;
    handoff_token token;
    int client;
    void *user_data = NULL;
    assert_ok(handoff_token_store_issue(store, &token));
    assert_ok(handoff_pending_register(pending, &token, &client));
    assert_int_equal(handoff_pending_length(pending), 1);
    assert_ok(handoff_pending_acknowledge(pending, &token, &user_data));
    assert_ptr_equal(user_data, &client);
    assert_status(handoff_token_store_redeem(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_nothing_waits_for(&token);
}

static void abandoned_entry_leaves_once_with_its_user_data_and_token(void **state)
{
    (void)state;
    handoff_token token;
    int client;
    void *user_data = NULL;
    assert_ok(handoff_token_store_issue(store, &token));
    assert_ok(handoff_pending_register(pending, &token, &client));
    assert_ok(handoff_pending_abandon(pending, &token, &user_data));
    assert_ptr_equal(user_data, &client);
    assert_status(handoff_token_store_redeem(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_nothing_waits_for(&token);
}

static void expired_entry_leaves_once_with_its_user_data_and_token(void **state)
{
    (void)state;
    handoff_token token, expired = token_of(42);
    int client;
    void *user_data = NULL;
    uint64_t start = handoff_now();
    assert_ok(handoff_token_store_issue(store, &token));
    assert_ok(handoff_pending_register_at(pending, start, &token, &client));
    assert_ok(handoff_pending_expire_at(pending, start + 1000 * MS, &expired, &user_data));
    assert_true(handoff_token_equal(&expired, &token));
    assert_ptr_equal(user_data, &client);
    assert_status(handoff_token_store_redeem(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_nothing_waits_for(&token);
}

static void entry_leaves_though_its_token_was_redeemed_before(void **state)
{
    (void)state;
    handoff_token token;
    assert_ok(handoff_token_store_issue(store, &token));
    assert_ok(handoff_pending_register(pending, &token, NULL));
    assert_ok(handoff_token_store_redeem(store, &token));
    assert_ok(handoff_pending_acknowledge(pending, &token, NULL));
    assert_nothing_waits_for(&token);
}

static void leaving_ends_no_other_token(void **state)
{
    (void)state;
    handoff_token token, other;
    assert_ok(handoff_token_store_issue(store, &token));
    assert_ok(handoff_token_store_issue(store, &other));
    assert_ok(handoff_pending_register(pending, &token, NULL));
    assert_ok(handoff_pending_abandon(pending, &token, NULL));
    assert_ok(handoff_token_store_redeem(store, &other));
}

static void late_acknowledgement_is_a_timeout_and_leaves_the_entry_to_expire(void **state)
{
    (void)state;
    handoff_token token;
    int client;
    void *user_data = NULL;
    uint64_t start = handoff_now(), deadline = start + 1000 * MS;
    assert_ok(handoff_token_store_issue(store, &token));
    assert_ok(handoff_pending_register_at(pending, start, &token, &client));
    assert_status(handoff_pending_acknowledge_at(pending, deadline, &token, &user_data),
                  HANDOFF_ERR_ACK_TIMEOUT);
    assert_null(user_data);
    assert_int_equal(handoff_pending_length(pending), 1);
    assert_int_equal(handoff_token_store_length(store), 1);
    assert_ok(handoff_pending_expire_at(pending, deadline, NULL, &user_data));
    assert_ptr_equal(user_data, &client);
}

static void acknowledgement_counts_until_the_last_nanosecond(void **state)
{
    (void)state;
    handoff_token token = token_of(1);
    uint64_t start = handoff_now(), deadline = start + 1000 * MS;
    assert_ok(handoff_pending_register_at(pending, start, &token, NULL));
    assert_status(handoff_pending_expire_at(pending, deadline - 1, NULL, NULL), HANDOFF_NOTHING);
    assert_ok(handoff_pending_acknowledge_at(pending, deadline - 1, &token, NULL));
}

static void late_entry_can_still_be_abandoned(void **state)
{
    (void)state;
    handoff_token token = token_of(1);
    assert_ok(handoff_pending_register_at(pending, 0, &token, NULL));
    assert_ok(handoff_pending_abandon(pending, &token, NULL));
    assert_nothing_waits_for(&token);
}

static void calls_without_a_time_take_the_time_of_the_call(void **state)
{
    (void)state;
    handoff_pending_options options = {sizeof options, 2, 1};
    handoff_pending *brief;
    handoff_token token = token_of(1), expired;
    uint64_t past = handoff_now() - 2 * MS;
    assert_ok(handoff_pending_new(store, &options, &brief));
    assert_ok(handoff_pending_register_at(brief, past, &token, NULL));
    assert_status(handoff_pending_acknowledge(brief, &token, NULL), HANDOFF_ERR_ACK_TIMEOUT);
    assert_ok(handoff_pending_expire(brief, &expired, NULL));
    assert_true(handoff_token_equal(&expired, &token));
    assert_status(handoff_pending_expire(brief, NULL, NULL), HANDOFF_NOTHING);
    handoff_pending_free(brief);
}

static void token_is_registered_once_even_past_its_deadline(void **state)
{
    (void)state;
    handoff_token token = token_of(1);
    uint64_t start = handoff_now();
    int first, second;
    void *user_data = NULL;
    assert_ok(handoff_pending_register_at(pending, start, &token, &first));
    assert_status(handoff_pending_register_at(pending, start, &token, &second),
                  HANDOFF_ERR_TOKEN_ALREADY_PENDING);
    assert_status(handoff_pending_register_at(pending, start + 1000 * MS, &token, &second),
                  HANDOFF_ERR_TOKEN_ALREADY_PENDING);
    assert_int_equal(handoff_pending_length(pending), 1);
    assert_ok(handoff_pending_abandon(pending, &token, &user_data));
    assert_ptr_equal(user_data, &first);
}

static void full_registry_takes_no_more_until_an_entry_leaves(void **state)
{
    (void)state;
    handoff_token a = token_of(1), b = token_of(2), c = token_of(3);
    assert_ok(handoff_pending_register(pending, &a, NULL));
    assert_ok(handoff_pending_register(pending, &b, NULL));
    assert_status(handoff_pending_register(pending, &c, NULL), HANDOFF_ERR_FULL);
    /* Not even for entries whose time is over: each has a client that must be told. */
    assert_status(handoff_pending_register_at(pending, UINT64_MAX, &c, NULL), HANDOFF_ERR_FULL);
    assert_ok(handoff_pending_acknowledge(pending, &a, NULL));
    assert_ok(handoff_pending_register(pending, &c, NULL));
}

static void next_deadline_is_the_earliest_and_none_without_entries(void **state)
{
    (void)state;
    handoff_token early = token_of(1), late = token_of(2);
    uint64_t start = handoff_now(), deadline = 42;
    assert_status(handoff_pending_next_deadline(pending, &deadline), HANDOFF_NOTHING);
    assert_int_equal(deadline, 42);
    assert_ok(handoff_pending_register_at(pending, start + MS, &late, NULL));
    assert_ok(handoff_pending_register_at(pending, start, &early, NULL));
    assert_ok(handoff_pending_next_deadline(pending, &deadline));
    assert_int_equal(deadline, start + 1000 * MS);
    assert_ok(handoff_pending_abandon(pending, &early, NULL));
    assert_ok(handoff_pending_next_deadline(pending, &deadline));
    assert_int_equal(deadline, start + 1001 * MS);
}

static void entry_expires_at_the_next_deadline_and_not_before(void **state)
{
    (void)state;
    handoff_token token = token_of(1);
    uint64_t deadline;
    assert_ok(handoff_pending_register(pending, &token, NULL));
    assert_ok(handoff_pending_next_deadline(pending, &deadline));
    assert_status(handoff_pending_expire_at(pending, deadline - 1, NULL, NULL), HANDOFF_NOTHING);
    assert_ok(handoff_pending_expire_at(pending, deadline, NULL, NULL));
}

static void every_late_entry_expires_and_no_other(void **state)
{
    (void)state;
    handoff_token late = token_of(1), young = token_of(2), expired;
    uint64_t start = handoff_now(), deadline = start + 1000 * MS;
    assert_ok(handoff_pending_register_at(pending, start, &late, NULL));
    assert_ok(handoff_pending_register_at(pending, start + 1, &young, NULL));
    assert_ok(handoff_pending_expire_at(pending, deadline, &expired, NULL));
    assert_true(handoff_token_equal(&expired, &late));
    assert_status(handoff_pending_expire_at(pending, deadline, &expired, NULL), HANDOFF_NOTHING);
    assert_ok(handoff_pending_expire_at(pending, deadline + 1, &expired, NULL));
    assert_true(handoff_token_equal(&expired, &young));
}

static void times_at_both_ends_of_the_clock_are_taken(void **state)
{
    (void)state;
    handoff_token first = token_of(1), last = token_of(2);
    uint64_t deadline;
    assert_ok(handoff_pending_register_at(pending, 0, &first, NULL));
    assert_ok(handoff_pending_next_deadline(pending, &deadline));
    assert_int_equal(deadline, 1000 * MS);
    assert_ok(handoff_pending_acknowledge_at(pending, 0, &first, NULL));
    assert_ok(handoff_pending_register_at(pending, UINT64_MAX, &last, NULL));
    assert_ok(handoff_pending_next_deadline(pending, &deadline));
    assert_int_equal(deadline, UINT64_MAX);
    assert_ok(handoff_pending_acknowledge_at(pending, UINT64_MAX, &last, NULL));
}

static void registry_outlives_its_store(void **state)
{
    (void)state;
    handoff_token_store *short_lived;
    handoff_pending *survivor;
    handoff_token token;
    assert_ok(handoff_token_store_new(NULL, &short_lived));
    assert_ok(handoff_pending_new(short_lived, NULL, &survivor));
    assert_ok(handoff_token_store_issue(short_lived, &token));
    assert_ok(handoff_pending_register(survivor, &token, NULL));
    handoff_token_store_free(short_lived);
    assert_ok(handoff_pending_acknowledge(survivor, &token, NULL));
    assert_int_equal(handoff_pending_length(survivor), 0);
    handoff_pending_free(survivor);
}

static void user_data_is_not_looked_at(void **state)
{
    (void)state;
    handoff_token token = token_of(1);
    void *user_data = NULL;
    assert_ok(handoff_pending_register(pending, &token, misaligned()));
    assert_ok(handoff_pending_abandon(pending, &token, &user_data));
    assert_ptr_equal(user_data, misaligned());
}

static void assert_limits(const handoff_pending_options *options, size_t capacity,
                          uint64_t timeout_ms)
{
    handoff_pending *limited;
    handoff_token token = token_of(0);
    uint64_t deadline, start = handoff_now();
    assert_ok(handoff_pending_new(store, options, &limited));
    for (size_t i = 0; i < capacity; i++) {
        token.bytes[1] = (uint8_t)i;
        token.bytes[2] = (uint8_t)(i >> 8);
        assert_ok(handoff_pending_register_at(limited, start, &token, NULL));
    }
    token.bytes[3] = 1;
    assert_status(handoff_pending_register_at(limited, start, &token, NULL), HANDOFF_ERR_FULL);
    assert_ok(handoff_pending_next_deadline(limited, &deadline));
    assert_int_equal(deadline, start + timeout_ms * MS);
    handoff_pending_free(limited);
}

static void defaults_are_1024_entries_of_5_seconds(void **state)
{
    (void)state;
    handoff_pending_options options = HANDOFF_PENDING_OPTIONS_INIT;
    assert_limits(&options, 1024, 5000);
    assert_limits(NULL, 1024, 5000);
}

static void options_of_0_are_taken_to_the_least_that_is_of_use(void **state)
{
    (void)state;
    handoff_pending_options options = {sizeof options, 0, 0};
    assert_limits(&options, 1, 1);
}

static void huge_options_are_taken_to_the_most_that_is_possible(void **state)
{
    (void)state;
    handoff_pending_options options = {sizeof options, SIZE_MAX, UINT64_MAX};
    handoff_pending *huge;
    handoff_token token = token_of(1);
    uint64_t deadline, start = handoff_now(), year = 365 * 86400000ULL * MS;
    assert_ok(handoff_pending_new(store, &options, &huge));
    assert_ok(handoff_pending_register_at(huge, start, &token, NULL));
    assert_ok(handoff_pending_next_deadline(huge, &deadline));
    assert_true(deadline > start + 100 * year);
    handoff_pending_free(huge);
}

static void options_that_an_older_header_lacks_have_their_defaults(void **state)
{
    (void)state;
    handoff_pending_options options = {offsetof(handoff_pending_options, timeout_ms), 3, 1};
    assert_limits(&options, 3, 5000);
}

static void options_of_an_impossible_size_are_refused(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, sizeof(size_t) - 1, 1 << 20, SIZE_MAX};
    handoff_pending_options options = HANDOFF_PENDING_OPTIONS_INIT;
    handoff_pending *none = NULL;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        options.size = sizes[i];
        assert_invalid(handoff_pending_new(store, &options, &none));
    }
    assert_null(none);
}

/* Every call with each of its pointers in turn NULL or misaligned. */
static void calls_refuse(void *bad)
{
    handoff_token token = token_of(1);
    handoff_pending *none = NULL;
    uint64_t deadline = 42, now = handoff_now();
    void *user_data = NULL;
    assert_invalid(handoff_pending_new(bad, NULL, &none));
    assert_invalid(handoff_pending_new(store, NULL, bad));
    assert_invalid(handoff_pending_register(bad, &token, NULL));
    assert_invalid(handoff_pending_register_at(bad, now, &token, NULL));
    assert_invalid(handoff_pending_acknowledge(bad, &token, &user_data));
    assert_invalid(handoff_pending_acknowledge_at(bad, now, &token, &user_data));
    assert_invalid(handoff_pending_abandon(bad, &token, &user_data));
    assert_invalid(handoff_pending_expire(bad, &token, &user_data));
    assert_invalid(handoff_pending_expire_at(bad, now, &token, &user_data));
    assert_invalid(handoff_pending_next_deadline(bad, &deadline));
    assert_invalid(handoff_pending_next_deadline(pending, bad));
    assert_int_equal(handoff_pending_length(bad), 0);
    handoff_pending_free(bad);
    assert_null(none);
    assert_int_equal(deadline, 42);
}

static void null_is_refused(void **state)
{
    (void)state;
    uint64_t now = handoff_now();
    calls_refuse(NULL);
    assert_invalid(handoff_pending_register(pending, NULL, NULL));
    assert_invalid(handoff_pending_register_at(pending, now, NULL, NULL));
    assert_invalid(handoff_pending_acknowledge(pending, NULL, NULL));
    assert_invalid(handoff_pending_acknowledge_at(pending, now, NULL, NULL));
    assert_invalid(handoff_pending_abandon(pending, NULL, NULL));
}

static void misaligned_pointers_are_refused_and_take_no_entry(void **state)
{
    (void)state;
    handoff_token token = token_of(1);
    uint64_t now = handoff_now();
    calls_refuse(misaligned());
    assert_ok(handoff_pending_register_at(pending, now, &token, NULL));
    assert_invalid(handoff_pending_new(store, misaligned(), &pending));
    assert_invalid(handoff_pending_acknowledge(pending, &token, misaligned()));
    assert_invalid(handoff_pending_acknowledge_at(pending, now, &token, misaligned()));
    assert_invalid(handoff_pending_abandon(pending, &token, misaligned()));
    assert_invalid(handoff_pending_expire(pending, NULL, misaligned()));
    assert_invalid(handoff_pending_expire_at(pending, UINT64_MAX, NULL, misaligned()));
    assert_int_equal(handoff_pending_length(pending), 1);
}

enum { ENTRIES = 300, WAYS = 3 };

static struct race {
    handoff_pending *pending;
    pthread_barrier_t together;
    handoff_token tokens[ENTRIES];
} race;

/* Three threads, each of which tries to make every entry leave in its own way and counts those that
   it got. Each has a time of its own, at which its way is open. */
static void *acknowledge_all(void *count)
{
    pthread_barrier_wait(&race.together);
    for (size_t i = 0; i < ENTRIES; i++)
        *(size_t *)count +=
            handoff_pending_acknowledge_at(race.pending, 0, &race.tokens[i], NULL) == HANDOFF_OK;
    return NULL;
}

static void *abandon_all(void *count)
{
    pthread_barrier_wait(&race.together);
    for (size_t i = ENTRIES; i-- > 0;)
        *(size_t *)count +=
            handoff_pending_abandon(race.pending, &race.tokens[i], NULL) == HANDOFF_OK;
    return NULL;
}

static void *expire_all(void *count)
{
    pthread_barrier_wait(&race.together);
    while (handoff_pending_expire_at(race.pending, UINT64_MAX, NULL, NULL) == HANDOFF_OK)
        ++*(size_t *)count;
    return NULL;
}

static void of_threads_that_end_an_entry_in_different_ways_one_gets_it(void **state)
{
    (void)state;
    static void *(*const ways[WAYS])(void *) = {acknowledge_all, abandon_all, expire_all};
    pthread_t threads[WAYS];
    size_t counts[WAYS] = {0};
    assert_ok(handoff_pending_new(store, NULL, &race.pending));
    for (size_t i = 0; i < ENTRIES; i++) {
        assert_ok(handoff_token_store_issue(store, &race.tokens[i]));
        assert_ok(handoff_pending_register_at(race.pending, 0, &race.tokens[i], NULL));
    }
    assert_int_equal(pthread_barrier_init(&race.together, NULL, WAYS), 0);
    for (int i = 0; i < WAYS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ways[i], &counts[i]), 0);
    for (int i = 0; i < WAYS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(counts[0] + counts[1] + counts[2], ENTRIES);
    assert_int_equal(handoff_pending_length(race.pending), 0);
    assert_int_equal(handoff_token_store_length(store), 0);
    pthread_barrier_destroy(&race.together);
    handoff_pending_free(race.pending);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        REGISTRY_TEST(acknowledged_entry_leaves_once_with_its_user_data_and_token),
        REGISTRY_TEST(abandoned_entry_leaves_once_with_its_user_data_and_token),
        REGISTRY_TEST(expired_entry_leaves_once_with_its_user_data_and_token),
        REGISTRY_TEST(entry_leaves_though_its_token_was_redeemed_before),
        REGISTRY_TEST(leaving_ends_no_other_token),
        REGISTRY_TEST(late_acknowledgement_is_a_timeout_and_leaves_the_entry_to_expire),
        REGISTRY_TEST(acknowledgement_counts_until_the_last_nanosecond),
        REGISTRY_TEST(late_entry_can_still_be_abandoned),
        REGISTRY_TEST(calls_without_a_time_take_the_time_of_the_call),
        REGISTRY_TEST(token_is_registered_once_even_past_its_deadline),
        REGISTRY_TEST(full_registry_takes_no_more_until_an_entry_leaves),
        REGISTRY_TEST(next_deadline_is_the_earliest_and_none_without_entries),
        REGISTRY_TEST(entry_expires_at_the_next_deadline_and_not_before),
        REGISTRY_TEST(every_late_entry_expires_and_no_other),
        REGISTRY_TEST(times_at_both_ends_of_the_clock_are_taken),
        REGISTRY_TEST(registry_outlives_its_store),
        REGISTRY_TEST(user_data_is_not_looked_at),
        REGISTRY_TEST(defaults_are_1024_entries_of_5_seconds),
        REGISTRY_TEST(options_of_0_are_taken_to_the_least_that_is_of_use),
        REGISTRY_TEST(huge_options_are_taken_to_the_most_that_is_possible),
        REGISTRY_TEST(options_that_an_older_header_lacks_have_their_defaults),
        REGISTRY_TEST(options_of_an_impossible_size_are_refused),
        REGISTRY_TEST(null_is_refused),
        REGISTRY_TEST(misaligned_pointers_are_refused_and_take_no_entry),
        REGISTRY_TEST(of_threads_that_end_an_entry_in_different_ways_one_gets_it),
    };
    return cmocka_run_group_tests_name("pending", tests, NULL, NULL);
}
