/* The token store. Its tests run on a clock that they move themselves. */
#define _GNU_SOURCE
#include "clock.h"
#include "randomness.h"
#include "support.h"

#include <pthread.h>
#include <stdlib.h>

static int begin(void **state)
{
    descriptors_before(state);
    stop_clock();
    return 0;
}

#define STORE_TEST(function) \
    cmocka_unit_test_setup_teardown(function, begin, descriptors_after)

static const uint64_t YEAR = 365 * 86400000ULL * MS;

static handoff_raw_token token_of(uint8_t first)
{
    handoff_raw_token token = {.bytes = {first}};
    return token;
}

static handoff_raw_store *store_of(size_t capacity, uint64_t lifetime_ms)
{
    handoff_raw_store_options options = HANDOFF_RAW_STORE_OPTIONS_INIT;
    handoff_raw_store *store;
    options.capacity = capacity;
    options.lifetime_ms = lifetime_ms;
    assert_ok(handoff_raw_store_new(&options, &store));
    return store;
}

static void broken_random_source_issues_no_token(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(1, 1000);
    handoff_raw_token token = token_of(42), as_it_was = token;
    randomness = RANDOM_FAILS;
    assert_status(handoff_raw_store_issue(store, &token), HANDOFF_ERR_RANDOM);
    assert_true(handoff_raw_token_equal(&token, &as_it_was));
    assert_int_equal(handoff_raw_store_length(store), 0);
    handoff_raw_store_free(store);
}

static void issued_token_is_redeemed_once(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(8, 1000);
    handoff_raw_token token;
    assert_ok(handoff_raw_store_issue(store, &token));
    assert_int_equal(handoff_raw_store_length(store), 1);
    assert_ok(handoff_raw_store_redeem(store, &token));
    assert_int_equal(handoff_raw_store_length(store), 0);
    assert_status(handoff_raw_store_redeem(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    handoff_raw_store_free(store);
}

static void inserted_token_is_consumed_once(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(8, 1000);
    handoff_raw_token token = token_of(1);
    assert_ok(handoff_raw_store_insert(store, &token));
    assert_ok(handoff_raw_store_consume(store, &token, &token));
    assert_status(handoff_raw_store_consume(store, &token, &token),
                  HANDOFF_ERR_TOKEN_NOT_PENDING);
    handoff_raw_store_free(store);
}

static void token_that_was_never_held_is_not_pending(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(8, 1000);
    handoff_raw_token token = token_of(1);
    assert_status(handoff_raw_store_redeem(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_status(handoff_raw_store_consume(store, &token, &token),
                  HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_status(handoff_raw_store_revoke(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    handoff_raw_store_free(store);
}

static void mismatch_consumes_neither_token(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(8, 1000);
    handoff_raw_token expected = token_of(1), presented = token_of(2);
    assert_ok(handoff_raw_store_insert(store, &expected));
    assert_ok(handoff_raw_store_insert(store, &presented));
    assert_status(handoff_raw_store_consume(store, &expected, &presented),
                  HANDOFF_ERR_TOKEN_MISMATCH);
    assert_ok(handoff_raw_store_redeem(store, &expected));
    assert_ok(handoff_raw_store_redeem(store, &presented));
    handoff_raw_store_free(store);
}

static void revoked_token_is_not_pending(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(8, 1000);
    handoff_raw_token token;
    assert_ok(handoff_raw_store_issue(store, &token));
    assert_ok(handoff_raw_store_revoke(store, &token));
    assert_int_equal(handoff_raw_store_length(store), 0);
    assert_status(handoff_raw_store_redeem(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_status(handoff_raw_store_revoke(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    handoff_raw_store_free(store);
}

static void pending_token_is_not_inserted_again(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(8, 1000);
    handoff_raw_token token;
    assert_ok(handoff_raw_store_issue(store, &token));
    assert_status(handoff_raw_store_insert(store, &token), HANDOFF_ERR_TOKEN_ALREADY_PENDING);
    assert_int_equal(handoff_raw_store_length(store), 1);
    handoff_raw_store_free(store);
}

static void token_is_accepted_until_the_last_nanosecond_of_its_lifetime(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(8, 1000);
    handoff_raw_token a, b = token_of(2);
    assert_ok(handoff_raw_store_issue(store, &a));
    assert_ok(handoff_raw_store_insert(store, &b));
    pass(1000 * MS - 1);
    assert_ok(handoff_raw_store_redeem(store, &a));
    assert_ok(handoff_raw_store_consume(store, &b, &b));
    handoff_raw_store_free(store);
}

static void expired_token_is_refused_and_leaves_the_store(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(8, 1000);
    handoff_raw_token a, b = token_of(2);
    assert_ok(handoff_raw_store_issue(store, &a));
    assert_ok(handoff_raw_store_insert(store, &b));
    pass(1000 * MS);
    assert_status(handoff_raw_store_redeem(store, &a), HANDOFF_ERR_TOKEN_EXPIRED);
    assert_status(handoff_raw_store_consume(store, &b, &b), HANDOFF_ERR_TOKEN_EXPIRED);
    assert_status(handoff_raw_store_redeem(store, &a), HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_status(handoff_raw_store_consume(store, &b, &b), HANDOFF_ERR_TOKEN_NOT_PENDING);
    handoff_raw_store_free(store);
}

static void expired_token_may_be_inserted_again(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(8, 1000);
    handoff_raw_token token = token_of(1);
    assert_ok(handoff_raw_store_insert(store, &token));
    pass(1000 * MS - 1);
    assert_status(handoff_raw_store_insert(store, &token), HANDOFF_ERR_TOKEN_ALREADY_PENDING);
    pass(1);
    assert_ok(handoff_raw_store_insert(store, &token));
    pass(1000 * MS - 1);
    assert_ok(handoff_raw_store_redeem(store, &token));
    handoff_raw_store_free(store);
}

static void pruning_removes_the_expired_tokens_and_no_other(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(8, 1000);
    handoff_raw_token young = token_of(3), old[] = {token_of(1), token_of(2)};
    size_t removed = 99;
    assert_ok(handoff_raw_store_insert(store, &old[0]));
    assert_ok(handoff_raw_store_insert(store, &old[1]));
    pass(1);
    assert_ok(handoff_raw_store_insert(store, &young));
    pass(1000 * MS - 1);
    assert_int_equal(handoff_raw_store_length(store), 3);
    assert_ok(handoff_raw_store_prune(store, &removed));
    assert_int_equal(removed, 2);
    assert_int_equal(handoff_raw_store_length(store), 1);
    pass(1);
    assert_ok(handoff_raw_store_prune(store, NULL));
    assert_int_equal(handoff_raw_store_length(store), 0);
    handoff_raw_store_free(store);
}

static void full_store_takes_no_more_until_a_token_leaves(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(2, 60000);
    handoff_raw_token a = token_of(1), b = token_of(2), c = token_of(3), as_it_was = c;
    assert_ok(handoff_raw_store_insert(store, &a));
    assert_ok(handoff_raw_store_insert(store, &b));
    assert_status(handoff_raw_store_insert(store, &c), HANDOFF_ERR_FULL);
    assert_status(handoff_raw_store_issue(store, &c), HANDOFF_ERR_FULL);
    assert_true(handoff_raw_token_equal(&c, &as_it_was));
    assert_ok(handoff_raw_store_redeem(store, &a));
    assert_ok(handoff_raw_store_insert(store, &c));
    handoff_raw_store_free(store);
}

static void full_store_makes_room_of_its_expired_tokens(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(2, 1000);
    handoff_raw_token token;
    assert_ok(handoff_raw_store_issue(store, &token));
    assert_ok(handoff_raw_store_issue(store, &token));
    pass(1000 * MS - 1);
    assert_status(handoff_raw_store_issue(store, &token), HANDOFF_ERR_FULL);
    pass(1);
    assert_ok(handoff_raw_store_issue(store, &token));
    assert_int_equal(handoff_raw_store_length(store), 1);
    handoff_raw_store_free(store);
}

static void issuing_gives_up_when_every_random_token_is_pending(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(8, 1000);
    handoff_raw_token first, second = token_of(42), as_it_was = second;
    randomness = RANDOM_REPEATS;
    assert_ok(handoff_raw_store_issue(store, &first));
    assert_status(handoff_raw_store_issue(store, &second), HANDOFF_ERR_TOKEN_COLLISION);
    assert_true(handoff_raw_token_equal(&second, &as_it_was));
    handoff_raw_store_free(store);
}

static void assert_default_limits(const handoff_raw_store_options *options)
{
    handoff_raw_store *store;
    handoff_raw_token token;
    assert_ok(handoff_raw_store_new(options, &store));
    for (int i = 0; i < 1024; i++)
        assert_ok(handoff_raw_store_issue(store, &token));
    pass(30000 * MS - 1);
    assert_status(handoff_raw_store_issue(store, &token), HANDOFF_ERR_FULL);
    pass(1);
    assert_status(handoff_raw_store_redeem(store, &token), HANDOFF_ERR_TOKEN_EXPIRED);
    handoff_raw_store_free(store);
}

static void options_of_0_are_1024_tokens_for_30_seconds(void **state)
{
    (void)state;
    handoff_raw_store_options init = HANDOFF_RAW_STORE_OPTIONS_INIT, zero = {.size = sizeof zero};
    assert_default_limits(&init);
    assert_default_limits(&zero);
    assert_default_limits(NULL);
}

static void options_that_are_not_set_do_not_change_those_that_are(void **state)
{
    (void)state;
    handoff_raw_store_options options = {.size = sizeof options, .lifetime_ms = 1};
    handoff_raw_store *store;
    handoff_raw_token token;
    assert_ok(handoff_raw_store_new(&options, &store));
    for (int i = 0; i < 1024; i++)
        assert_ok(handoff_raw_store_issue(store, &token));
    assert_status(handoff_raw_store_issue(store, &token), HANDOFF_ERR_FULL);
    pass(MS);
    assert_status(handoff_raw_store_redeem(store, &token), HANDOFF_ERR_TOKEN_EXPIRED);
    handoff_raw_store_free(store);
}

/* The message says how many tokens were tried. */
static void assert_attempts(size_t collision_attempts, const char *message)
{
    handoff_raw_store_options options = HANDOFF_RAW_STORE_OPTIONS_INIT;
    handoff_raw_store *store;
    handoff_raw_token token;
    options.collision_attempts = collision_attempts;
    assert_ok(handoff_raw_store_new(&options, &store));
    randomness = RANDOM_REPEATS;
    assert_ok(handoff_raw_store_issue(store, &token));
    assert_status(handoff_raw_store_issue(store, &token), HANDOFF_ERR_TOKEN_COLLISION);
    assert_last_error_has(message);
    handoff_raw_store_free(store);
}

static void issuing_gives_up_after_16_collisions_or_as_many_as_it_is_told(void **state)
{
    (void)state;
    assert_attempts(0, "16 random tokens");
    assert_attempts(1, "1 random token");
    assert_attempts(99, "99 random tokens");
}

static void huge_options_are_clamped(void **state)
{
    (void)state;
    handoff_raw_store_options options = {sizeof options, SIZE_MAX, UINT64_MAX - 1, SIZE_MAX};
    handoff_raw_store *store;
    handoff_raw_token token;
    assert_ok(handoff_raw_store_new(&options, &store));
    for (int i = 0; i < 2000; i++)
        assert_ok(handoff_raw_store_issue(store, &token));
    pass(100 * YEAR);
    assert_ok(handoff_raw_store_redeem(store, &token));
    handoff_raw_store_free(store);
}

static void token_without_a_timeout_does_not_expire(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(8, HANDOFF_NO_TIMEOUT);
    handoff_raw_token token;
    size_t removed = 99;
    assert_ok(handoff_raw_store_issue(store, &token));
    pass(100 * YEAR);
    assert_ok(handoff_raw_store_prune(store, &removed));
    assert_int_equal(removed, 0);
    assert_ok(handoff_raw_store_redeem(store, &token));
    handoff_raw_store_free(store);
}

/* Every call with each of its pointers in turn NULL or misaligned. */
static void store_calls_refuse(void *store, void *bad)
{
    handoff_raw_token good = token_of(1);
    handoff_raw_store *const no_store = bad;
    assert_invalid(handoff_raw_store_new(NULL, bad));
    assert_invalid(handoff_raw_store_issue(no_store, &good));
    assert_invalid(handoff_raw_store_insert(no_store, &good));
    assert_invalid(handoff_raw_store_consume(no_store, &good, &good));
    assert_invalid(handoff_raw_store_redeem(no_store, &good));
    assert_invalid(handoff_raw_store_revoke(no_store, &good));
    assert_invalid(handoff_raw_store_prune(no_store, NULL));
    assert_int_equal(handoff_raw_store_length(no_store), 0);
    handoff_raw_store_free(no_store);
    assert_int_equal(handoff_raw_store_length(store), 0);
}

static void null_is_refused(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(8, 1000);
    handoff_raw_token good = token_of(1);
    store_calls_refuse(store, NULL);
    assert_invalid(handoff_raw_store_issue(store, NULL));
    assert_invalid(handoff_raw_store_insert(store, NULL));
    assert_invalid(handoff_raw_store_consume(store, NULL, &good));
    assert_invalid(handoff_raw_store_consume(store, &good, NULL));
    assert_invalid(handoff_raw_store_redeem(store, NULL));
    assert_invalid(handoff_raw_store_revoke(store, NULL));
    assert_int_equal(handoff_raw_store_length(store), 0);
    handoff_raw_store_free(store);
}

static void misaligned_pointers_are_refused(void **state)
{
    (void)state;
    handoff_raw_store *store = store_of(8, 1000), *other = NULL;
    store_calls_refuse(store, misaligned());
    assert_invalid(handoff_raw_store_new(misaligned(), &other));
    assert_invalid(handoff_raw_store_prune(store, misaligned()));
    assert_null(other);
    handoff_raw_store_free(store);
}

enum { THREADS = 8 };

struct race {
    handoff_raw_store *store;
    handoff_raw_token *tokens;
    size_t rounds;
    pthread_barrier_t together;
};

/* Redeems every token and counts those that were accepted. */
static void *redeem_all(void *argument)
{
    struct race *race = argument;
    size_t accepted = 0;
    for (size_t i = 0; i < race->rounds; i++) {
        pthread_barrier_wait(&race->together);
        accepted += handoff_raw_store_redeem(race->store, &race->tokens[i]) == HANDOFF_OK;
    }
    return (void *)accepted;
}

static void of_many_threads_that_redeem_a_token_one_succeeds(void **state)
{
    (void)state;
    const char *rounds = getenv("HANDOFF_TEST_ROUNDS");
    struct race race = {.rounds = rounds != NULL ? strtoul(rounds, NULL, 10) : 200};
    pthread_t threads[THREADS];
    size_t accepted = 0;
    race.store = store_of(race.rounds, 3600000);
    race.tokens = calloc(race.rounds, sizeof *race.tokens);
    assert_non_null(race.tokens);
    for (size_t i = 0; i < race.rounds; i++)
        assert_ok(handoff_raw_store_issue(race.store, &race.tokens[i]));
    assert_int_equal(pthread_barrier_init(&race.together, NULL, THREADS), 0);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, redeem_all, &race), 0);
    for (int i = 0; i < THREADS; i++) {
        void *count;
        assert_int_equal(pthread_join(threads[i], &count), 0);
        accepted += (size_t)count;
    }
    /* No token twice, since none is left over. */
    assert_int_equal(accepted, race.rounds);
    assert_int_equal(handoff_raw_store_length(race.store), 0);
    pthread_barrier_destroy(&race.together);
    free(race.tokens);
    handoff_raw_store_free(race.store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(broken_random_source_issues_no_token),
        STORE_TEST(issued_token_is_redeemed_once),
        STORE_TEST(inserted_token_is_consumed_once),
        STORE_TEST(token_that_was_never_held_is_not_pending),
        STORE_TEST(mismatch_consumes_neither_token),
        STORE_TEST(revoked_token_is_not_pending),
        STORE_TEST(pending_token_is_not_inserted_again),
        STORE_TEST(token_is_accepted_until_the_last_nanosecond_of_its_lifetime),
        STORE_TEST(expired_token_is_refused_and_leaves_the_store),
        STORE_TEST(expired_token_may_be_inserted_again),
        STORE_TEST(pruning_removes_the_expired_tokens_and_no_other),
        STORE_TEST(full_store_takes_no_more_until_a_token_leaves),
        STORE_TEST(full_store_makes_room_of_its_expired_tokens),
        STORE_TEST(issuing_gives_up_when_every_random_token_is_pending),
        STORE_TEST(options_of_0_are_1024_tokens_for_30_seconds),
        STORE_TEST(options_that_are_not_set_do_not_change_those_that_are),
        STORE_TEST(issuing_gives_up_after_16_collisions_or_as_many_as_it_is_told),
        STORE_TEST(huge_options_are_clamped),
        STORE_TEST(token_without_a_timeout_does_not_expire),
        STORE_TEST(null_is_refused),
        STORE_TEST(misaligned_pointers_are_refused),
        STORE_TEST(of_many_threads_that_redeem_a_token_one_succeeds),
    };
    return RUN_TESTS(tests);
}
