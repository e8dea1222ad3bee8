/* The registry of pending acknowledgements. Its tests run on a clock that they move themselves. */
#define _GNU_SOURCE
#include "clock.h"
#include "support.h"

#include <limits.h>
#include <pthread.h>

static handoff_raw_token token_of(uint8_t first)
{
    handoff_raw_token token = {.bytes = {first}};
    return token;
}

/* What most tests begin with: a store, and a registry of two entries that wait a second each. */
static handoff_raw_store *store;
static handoff_raw_pending *pending;

static int make_registry(void **state)
{
    handoff_raw_pending_options options = HANDOFF_RAW_PENDING_OPTIONS_INIT;
    options.capacity = 2;
    options.timeout_ms = 1000;
    descriptors_before(state);
    stop_clock();
    assert_ok(handoff_raw_store_new(NULL, &store));
    assert_ok(handoff_raw_pending_new(store, &options, &pending));
    return 0;
}

static int free_registry(void **state)
{
    handoff_raw_pending_free(pending);
    handoff_raw_store_free(store);
    return descriptors_after(state);
}

#define REGISTRY_TEST(function) \
    cmocka_unit_test_setup_teardown(function, make_registry, free_registry)

static void assert_nothing_waits_for(const handoff_raw_token *token)
{
    void *user_data = store;
    assert_status(handoff_raw_pending_acknowledge(pending, token, &user_data),
                  HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_status(handoff_raw_pending_abandon(pending, token, &user_data),
                  HANDOFF_ERR_TOKEN_NOT_PENDING);
    pass(3600000 * MS);
    assert_status(handoff_raw_pending_expire(pending, NULL, &user_data), HANDOFF_NOTHING);
    assert_int_equal(handoff_raw_pending_length(pending), 0);
    assert_ptr_equal(user_data, store);
}

static void acknowledged_entry_leaves_once_with_its_user_data_and_token(void **state)
{
    (void)state;
    handoff_raw_token token;
    int client;
    void *user_data = NULL;
    assert_ok(handoff_raw_store_issue(store, &token));
    assert_ok(handoff_raw_pending_register(pending, &token, &client));
    assert_int_equal(handoff_raw_pending_length(pending), 1);
    assert_ok(handoff_raw_pending_acknowledge(pending, &token, &user_data));
    assert_ptr_equal(user_data, &client);
    assert_status(handoff_raw_store_redeem(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_nothing_waits_for(&token);
}

static void abandoned_entry_leaves_once_with_its_user_data_and_token(void **state)
{
    (void)state;
    handoff_raw_token token;
    int client;
    void *user_data = NULL;
    assert_ok(handoff_raw_store_issue(store, &token));
    assert_ok(handoff_raw_pending_register(pending, &token, &client));
    assert_ok(handoff_raw_pending_abandon(pending, &token, &user_data));
    assert_ptr_equal(user_data, &client);
    assert_status(handoff_raw_store_redeem(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_nothing_waits_for(&token);
}

static void expired_entry_leaves_once_with_its_user_data_and_token(void **state)
{
    (void)state;
    handoff_raw_token token, expired = token_of(42);
    int client;
    void *user_data = NULL;
    assert_ok(handoff_raw_store_issue(store, &token));
    assert_ok(handoff_raw_pending_register(pending, &token, &client));
    pass(1000 * MS);
    assert_ok(handoff_raw_pending_expire(pending, &expired, &user_data));
    assert_true(handoff_raw_token_equal(&expired, &token));
    assert_ptr_equal(user_data, &client);
    assert_status(handoff_raw_store_redeem(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_nothing_waits_for(&token);
}

static void entry_leaves_though_its_token_was_redeemed_before(void **state)
{
    (void)state;
    handoff_raw_token token;
    assert_ok(handoff_raw_store_issue(store, &token));
    assert_ok(handoff_raw_pending_register(pending, &token, NULL));
    assert_ok(handoff_raw_store_redeem(store, &token));
    assert_ok(handoff_raw_pending_acknowledge(pending, &token, NULL));
    assert_nothing_waits_for(&token);
}

static void leaving_ends_no_other_token(void **state)
{
    (void)state;
    handoff_raw_token token, other;
    assert_ok(handoff_raw_store_issue(store, &token));
    assert_ok(handoff_raw_store_issue(store, &other));
    assert_ok(handoff_raw_pending_register(pending, &token, NULL));
    assert_ok(handoff_raw_pending_abandon(pending, &token, NULL));
    assert_ok(handoff_raw_store_redeem(store, &other));
}

static void late_acknowledgement_counts_until_its_entry_has_expired(void **state)
{
    (void)state;
    handoff_raw_token token;
    int client;
    void *user_data = NULL;
    assert_ok(handoff_raw_store_issue(store, &token));
    assert_ok(handoff_raw_pending_register(pending, &token, &client));
    /* The backend serves what it has accepted: the broker must not. */
    pass(1000 * MS);
    assert_ok(handoff_raw_pending_acknowledge(pending, &token, &user_data));
    assert_ptr_equal(user_data, &client);
    assert_int_equal(handoff_raw_store_length(store), 0);
    assert_nothing_waits_for(&token);
    assert_ok(handoff_raw_pending_register(pending, &token, &client));
    pass(1000 * MS);
    assert_ok(handoff_raw_pending_expire(pending, NULL, NULL));
    assert_nothing_waits_for(&token);
}

static void acknowledgement_counts_until_the_last_nanosecond(void **state)
{
    (void)state;
    handoff_raw_token token = token_of(1);
    assert_ok(handoff_raw_pending_register(pending, &token, NULL));
    pass(1000 * MS - 1);
    assert_status(handoff_raw_pending_expire(pending, NULL, NULL), HANDOFF_NOTHING);
    assert_ok(handoff_raw_pending_acknowledge(pending, &token, NULL));
}

static void late_entry_can_still_be_abandoned(void **state)
{
    (void)state;
    handoff_raw_token token = token_of(1);
    assert_ok(handoff_raw_pending_register(pending, &token, NULL));
    pass(2000 * MS);
    assert_ok(handoff_raw_pending_abandon(pending, &token, NULL));
    assert_nothing_waits_for(&token);
}

static void token_is_registered_once_even_past_its_deadline(void **state)
{
    (void)state;
    handoff_raw_token token = token_of(1);
    int first, second;
    void *user_data = NULL;
    assert_ok(handoff_raw_pending_register(pending, &token, &first));
    assert_status(handoff_raw_pending_register(pending, &token, &second),
                  HANDOFF_ERR_TOKEN_ALREADY_PENDING);
    pass(1000 * MS);
    assert_status(handoff_raw_pending_register(pending, &token, &second),
                  HANDOFF_ERR_TOKEN_ALREADY_PENDING);
    assert_int_equal(handoff_raw_pending_length(pending), 1);
    assert_ok(handoff_raw_pending_abandon(pending, &token, &user_data));
    assert_ptr_equal(user_data, &first);
}

static void full_registry_takes_no_more_until_an_entry_leaves(void **state)
{
    (void)state;
    handoff_raw_token a = token_of(1), b = token_of(2), c = token_of(3);
    assert_ok(handoff_raw_pending_register(pending, &a, NULL));
    assert_ok(handoff_raw_pending_register(pending, &b, NULL));
    assert_status(handoff_raw_pending_register(pending, &c, NULL), HANDOFF_ERR_FULL);
    /* Not even for entries whose time is up: each has a client that must be told. */
    pass(1000 * MS);
    assert_status(handoff_raw_pending_register(pending, &c, NULL), HANDOFF_ERR_FULL);
    assert_ok(handoff_raw_pending_abandon(pending, &a, NULL));
    assert_ok(handoff_raw_pending_register(pending, &c, NULL));
}

static void next_wait_is_for_the_earliest_entry_and_none_without_entries(void **state)
{
    (void)state;
    handoff_raw_token early = token_of(1), late = token_of(2);
    int wait_ms = 42;
    assert_status(handoff_raw_pending_next_wait(pending, &wait_ms), HANDOFF_NOTHING);
    assert_int_equal(wait_ms, 42);
    assert_ok(handoff_raw_pending_register(pending, &early, NULL));
    pass(MS);
    assert_ok(handoff_raw_pending_register(pending, &late, NULL));
    assert_ok(handoff_raw_pending_next_wait(pending, &wait_ms));
    assert_int_equal(wait_ms, 999);
    assert_ok(handoff_raw_pending_abandon(pending, &early, NULL));
    assert_ok(handoff_raw_pending_next_wait(pending, &wait_ms));
    assert_int_equal(wait_ms, 1000);
}

static void next_wait_is_rounded_up_and_0_once_an_entry_has_expired(void **state)
{
    (void)state;
    static const struct {
        uint64_t passed;
        int wait_ms;
    } steps[] = {{0, 1000},          {1, 1000},       {MS - 1, 999}, {1, 999},
                 {998 * MS - 1, 1},  {MS - 1, 1},     {1, 0},        {5000 * MS, 0}};
    handoff_raw_token token = token_of(1);
    assert_ok(handoff_raw_pending_register(pending, &token, NULL));
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        int wait_ms = 42;
        pass(steps[i].passed);
        assert_ok(handoff_raw_pending_next_wait(pending, &wait_ms));
        assert_int_equal(wait_ms, steps[i].wait_ms);
        assert_int_equal(handoff_raw_pending_length(pending), 1);
    }
}

static void entry_expires_when_the_next_wait_is_over_and_not_before(void **state)
{
    (void)state;
    handoff_raw_token token = token_of(1);
    int wait_ms;
    assert_ok(handoff_raw_pending_register(pending, &token, NULL));
    assert_ok(handoff_raw_pending_next_wait(pending, &wait_ms));
    pass((uint64_t)wait_ms * MS - 1);
    assert_status(handoff_raw_pending_expire(pending, NULL, NULL), HANDOFF_NOTHING);
    pass(1);
    assert_ok(handoff_raw_pending_expire(pending, NULL, NULL));
}

static void every_late_entry_expires_and_no_other(void **state)
{
    (void)state;
    handoff_raw_token late = token_of(1), young = token_of(2), expired;
    assert_ok(handoff_raw_pending_register(pending, &late, NULL));
    pass(1);
    assert_ok(handoff_raw_pending_register(pending, &young, NULL));
    pass(1000 * MS - 1);
    assert_ok(handoff_raw_pending_expire(pending, &expired, NULL));
    assert_true(handoff_raw_token_equal(&expired, &late));
    assert_status(handoff_raw_pending_expire(pending, &expired, NULL), HANDOFF_NOTHING);
    pass(1);
    assert_ok(handoff_raw_pending_expire(pending, &expired, NULL));
    assert_true(handoff_raw_token_equal(&expired, &young));
}

static void registry_outlives_its_store(void **state)
{
    (void)state;
    handoff_raw_store *short_lived;
    handoff_raw_pending *survivor;
    handoff_raw_token token;
    assert_ok(handoff_raw_store_new(NULL, &short_lived));
    assert_ok(handoff_raw_pending_new(short_lived, NULL, &survivor));
    assert_ok(handoff_raw_store_issue(short_lived, &token));
    assert_ok(handoff_raw_pending_register(survivor, &token, NULL));
    handoff_raw_store_free(short_lived);
    assert_ok(handoff_raw_pending_acknowledge(survivor, &token, NULL));
    assert_int_equal(handoff_raw_pending_length(survivor), 0);
    handoff_raw_pending_free(survivor);
}

static void user_data_is_not_looked_at(void **state)
{
    (void)state;
    handoff_raw_token token = token_of(1);
    void *user_data = NULL;
    assert_ok(handoff_raw_pending_register(pending, &token, misaligned()));
    assert_ok(handoff_raw_pending_abandon(pending, &token, &user_data));
    assert_ptr_equal(user_data, misaligned());
}

static void assert_limits(const handoff_raw_pending_options *options, size_t capacity,
                          int timeout_ms)
{
    handoff_raw_pending *limited;
    handoff_raw_token token = token_of(0);
    int wait_ms = -1;
    assert_ok(handoff_raw_pending_new(store, options, &limited));
    for (size_t i = 0; i < capacity; i++) {
        token.bytes[1] = (uint8_t)i;
        token.bytes[2] = (uint8_t)(i >> 8);
        assert_ok(handoff_raw_pending_register(limited, &token, NULL));
    }
    token.bytes[3] = 1;
    assert_status(handoff_raw_pending_register(limited, &token, NULL), HANDOFF_ERR_FULL);
    assert_ok(handoff_raw_pending_next_wait(limited, &wait_ms));
    assert_int_equal(wait_ms, timeout_ms);
    handoff_raw_pending_free(limited);
}

static void options_of_0_are_1024_entries_of_5_seconds(void **state)
{
    (void)state;
    handoff_raw_pending_options init = HANDOFF_RAW_PENDING_OPTIONS_INIT;
    handoff_raw_pending_options zero = {.size = sizeof zero};
    assert_limits(&init, 1024, 5000);
    assert_limits(&zero, 1024, 5000);
    assert_limits(NULL, 1024, 5000);
}

static void options_that_are_not_set_do_not_change_those_that_are(void **state)
{
    (void)state;
    handoff_raw_pending_options brief = {.size = sizeof brief, .timeout_ms = 1};
    handoff_raw_pending_options small = {.size = sizeof small, .capacity = 1};
    assert_limits(&brief, 1024, 1);
    assert_limits(&small, 1, 5000);
}

static void huge_options_are_clamped_and_no_timeout_does_not_expire(void **state)
{
    (void)state;
    static const uint64_t timeouts[] = {UINT64_MAX - 1, HANDOFF_NO_TIMEOUT};
    for (int i = 0; i < 2; i++) {
        handoff_raw_pending_options options = {sizeof options, SIZE_MAX, timeouts[i]};
        handoff_raw_pending *huge;
        handoff_raw_token token = token_of(1);
        int wait_ms = 42;
        assert_ok(handoff_raw_pending_new(store, &options, &huge));
        assert_ok(handoff_raw_pending_register(huge, &token, NULL));
        assert_ok(handoff_raw_pending_next_wait(huge, &wait_ms));
        assert_int_equal(wait_ms, INT_MAX);
        pass(100 * 365 * 86400000ULL * MS);
        assert_status(handoff_raw_pending_expire(huge, NULL, NULL), HANDOFF_NOTHING);
        assert_ok(handoff_raw_pending_acknowledge(huge, &token, NULL));
        handoff_raw_pending_free(huge);
    }
}

/* Every call with each of its pointers in turn NULL or misaligned. */
static void calls_refuse(void *bad)
{
    handoff_raw_token token = token_of(1);
    handoff_raw_pending *none = NULL;
    int wait_ms = 42;
    void *user_data = NULL;
    assert_invalid(handoff_raw_pending_new(bad, NULL, &none));
    assert_invalid(handoff_raw_pending_new(store, NULL, bad));
    assert_invalid(handoff_raw_pending_register(bad, &token, NULL));
    assert_invalid(handoff_raw_pending_acknowledge(bad, &token, &user_data));
    assert_invalid(handoff_raw_pending_abandon(bad, &token, &user_data));
    assert_invalid(handoff_raw_pending_expire(bad, &token, &user_data));
    assert_invalid(handoff_raw_pending_next_wait(bad, &wait_ms));
    assert_invalid(handoff_raw_pending_next_wait(pending, bad));
    assert_int_equal(handoff_raw_pending_length(bad), 0);
    handoff_raw_pending_free(bad);
    assert_null(none);
    assert_int_equal(wait_ms, 42);
}

static void null_is_refused(void **state)
{
    (void)state;
    calls_refuse(NULL);
    assert_invalid(handoff_raw_pending_register(pending, NULL, NULL));
    assert_invalid(handoff_raw_pending_acknowledge(pending, NULL, NULL));
    assert_invalid(handoff_raw_pending_abandon(pending, NULL, NULL));
}

static void misaligned_pointers_are_refused_and_take_no_entry(void **state)
{
    (void)state;
    handoff_raw_token token = token_of(1);
    calls_refuse(misaligned());
    assert_ok(handoff_raw_pending_register(pending, &token, NULL));
    assert_invalid(handoff_raw_pending_new(store, misaligned(), &pending));
    assert_invalid(handoff_raw_pending_acknowledge(pending, &token, misaligned()));
    assert_invalid(handoff_raw_pending_abandon(pending, &token, misaligned()));
    pass(1000 * MS);
    assert_invalid(handoff_raw_pending_expire(pending, NULL, misaligned()));
    assert_int_equal(handoff_raw_pending_length(pending), 1);
}

enum { ENTRIES = 300, WAYS = 3 };

static struct race {
    handoff_raw_pending *pending;
    uint64_t start;
    pthread_barrier_t together;
    handoff_raw_token tokens[ENTRIES];
} race;

/* Three threads, each of which tries to make every entry leave in its own way and counts those that
   it got. Each has a time of its own, at which its way is open. */
static void *acknowledge_all(void *count)
{
    stopped_at = race.start;
    pthread_barrier_wait(&race.together);
    for (size_t i = 0; i < ENTRIES; i++)
        *(size_t *)count +=
            handoff_raw_pending_acknowledge(race.pending, &race.tokens[i], NULL) == HANDOFF_OK;
    return NULL;
}

static void *abandon_all(void *count)
{
    pthread_barrier_wait(&race.together);
    for (size_t i = ENTRIES; i-- > 0;)
        *(size_t *)count +=
            handoff_raw_pending_abandon(race.pending, &race.tokens[i], NULL) == HANDOFF_OK;
    return NULL;
}

static void *expire_all(void *count)
{
    handoff_status status;
    stopped_at = race.start + 3600000 * MS;
    pthread_barrier_wait(&race.together);
    while ((status = handoff_raw_pending_expire(race.pending, NULL, NULL)) == HANDOFF_OK)
        ++*(size_t *)count;
    return status == HANDOFF_NOTHING ? NULL : count;
}

static void of_threads_that_end_an_entry_in_different_ways_one_gets_it(void **state)
{
    (void)state;
    static void *(*const ways[WAYS])(void *) = {acknowledge_all, abandon_all, expire_all};
    pthread_t threads[WAYS];
    size_t counts[WAYS] = {0};
    race.start = stopped_at;
    assert_ok(handoff_raw_pending_new(store, NULL, &race.pending));
    for (size_t i = 0; i < ENTRIES; i++) {
        assert_ok(handoff_raw_store_issue(store, &race.tokens[i]));
        assert_ok(handoff_raw_pending_register(race.pending, &race.tokens[i], NULL));
    }
    assert_int_equal(pthread_barrier_init(&race.together, NULL, WAYS), 0);
    for (int i = 0; i < WAYS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ways[i], &counts[i]), 0);
    for (int i = 0; i < WAYS; i++) {
        void *failed;
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    assert_int_equal(counts[0] + counts[1] + counts[2], ENTRIES);
    assert_int_equal(handoff_raw_pending_length(race.pending), 0);
    assert_int_equal(handoff_raw_store_length(store), 0);
    pthread_barrier_destroy(&race.together);
    handoff_raw_pending_free(race.pending);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        REGISTRY_TEST(acknowledged_entry_leaves_once_with_its_user_data_and_token),
        REGISTRY_TEST(abandoned_entry_leaves_once_with_its_user_data_and_token),
        REGISTRY_TEST(expired_entry_leaves_once_with_its_user_data_and_token),
        REGISTRY_TEST(entry_leaves_though_its_token_was_redeemed_before),
        REGISTRY_TEST(leaving_ends_no_other_token),
        REGISTRY_TEST(late_acknowledgement_counts_until_its_entry_has_expired),
        REGISTRY_TEST(acknowledgement_counts_until_the_last_nanosecond),
        REGISTRY_TEST(late_entry_can_still_be_abandoned),
        REGISTRY_TEST(token_is_registered_once_even_past_its_deadline),
        REGISTRY_TEST(full_registry_takes_no_more_until_an_entry_leaves),
        REGISTRY_TEST(next_wait_is_for_the_earliest_entry_and_none_without_entries),
        REGISTRY_TEST(next_wait_is_rounded_up_and_0_once_an_entry_has_expired),
        REGISTRY_TEST(entry_expires_when_the_next_wait_is_over_and_not_before),
        REGISTRY_TEST(every_late_entry_expires_and_no_other),
        REGISTRY_TEST(registry_outlives_its_store),
        REGISTRY_TEST(user_data_is_not_looked_at),
        REGISTRY_TEST(options_of_0_are_1024_entries_of_5_seconds),
        REGISTRY_TEST(options_that_are_not_set_do_not_change_those_that_are),
        REGISTRY_TEST(huge_options_are_clamped_and_no_timeout_does_not_expire),
        REGISTRY_TEST(null_is_refused),
        REGISTRY_TEST(misaligned_pointers_are_refused_and_take_no_entry),
        REGISTRY_TEST(of_threads_that_end_an_entry_in_different_ways_one_gets_it),
    };
    return RUN_TESTS(tests);
}
