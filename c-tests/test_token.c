/* Tokens and the token store. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

static const uint64_t MS = 1000000;

/* The source of randomness that the library finds, because a program's own getentropy(3) goes
   before the C library's: so that it can be broken. */
static enum { RANDOM_WORKS, RANDOM_FAILS, RANDOM_REPEATS } randomness = RANDOM_WORKS;

int getentropy(void *buffer, size_t len)
{
    switch (randomness) {
    case RANDOM_FAILS:
        errno = EIO;
        return -1;
    case RANDOM_REPEATS:
        memset(buffer, 7, len);
        return 0;
    default:
        return getrandom(buffer, len, 0) == (ssize_t)len ? 0 : -1;
    }
}

static handoff_token token_of(uint8_t first)
{
    handoff_token token = {.bytes = {first}};
    return token;
}

static handoff_token_store *store_of(size_t capacity, uint64_t lifetime_ms)
{
    handoff_token_store_options options = HANDOFF_TOKEN_STORE_OPTIONS_INIT;
    handoff_token_store *store;
    options.capacity = capacity;
    options.lifetime_ms = lifetime_ms;
    assert_ok(handoff_token_store_new(&options, &store));
    return store;
}

static void generated_tokens_differ(void **state)
{
    (void)state;
    handoff_token a, b;
    assert_ok(handoff_token_generate(&a));
    assert_ok(handoff_token_generate(&b));
    assert_false(handoff_token_equal(&a, &b));
    assert_true(handoff_token_equal(&a, &a));
}

static void broken_random_source_makes_no_token(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(1, 1000);
    handoff_token token = token_of(42), as_it_was = token;
    randomness = RANDOM_FAILS;
    handoff_status generated = handoff_token_generate(&token);
    int generated_errno = errno;
    handoff_status issued = handoff_token_store_issue(store, &token);
    randomness = RANDOM_WORKS;
    assert_status(generated, HANDOFF_ERR_RANDOM);
    assert_int_equal(generated_errno, EIO);
    assert_status(issued, HANDOFF_ERR_RANDOM);
    assert_true(handoff_token_equal(&token, &as_it_was));
    assert_int_equal(handoff_token_store_length(store), 0);
    handoff_token_store_free(store);
}

static void token_is_made_of_the_bytes_given(void **state)
{
    (void)state;
    uint8_t bytes[HANDOFF_TOKEN_LEN];
    handoff_token token;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 17);
    assert_ok(handoff_token_from_bytes(bytes, sizeof bytes, &token));
    assert_memory_equal(token.bytes, bytes, sizeof bytes);
}

static void token_is_not_made_of_any_other_number_of_bytes(void **state)
{
    (void)state;
    static const size_t others[] = {0, 1, HANDOFF_TOKEN_LEN - 1, HANDOFF_TOKEN_LEN + 1, SIZE_MAX};
    uint8_t bytes[HANDOFF_TOKEN_LEN + 1] = {1};
    handoff_token token = token_of(42), as_it_was = token;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        assert_invalid(handoff_token_from_bytes(bytes, others[i], &token));
    assert_invalid(handoff_token_from_bytes(NULL, 0, &token));
    assert_true(handoff_token_equal(&token, &as_it_was));
}

static void tokens_that_differ_in_any_one_bit_are_not_equal(void **state)
{
    (void)state;
    handoff_token a;
    assert_ok(handoff_token_generate(&a));
    for (size_t bit = 0; bit < 8 * sizeof a.bytes; bit++) {
        handoff_token b = a;
        b.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_false(handoff_token_equal(&a, &b));
    }
}

static void no_token_equals_null(void **state)
{
    (void)state;
    handoff_token token = token_of(0);
    assert_false(handoff_token_equal(&token, NULL));
    assert_false(handoff_token_equal(NULL, &token));
    assert_false(handoff_token_equal(NULL, NULL));
}

static void issued_token_is_redeemed_once(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1000);
    handoff_token token;
    assert_ok(handoff_token_store_issue(store, &token));
    assert_int_equal(handoff_token_store_length(store), 1);
    assert_ok(handoff_token_store_redeem(store, &token));
    assert_int_equal(handoff_token_store_length(store), 0);
    assert_status(handoff_token_store_redeem(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    handoff_token_store_free(store);
}

static void inserted_token_is_consumed_once(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1000);
    handoff_token token = token_of(1);
    assert_ok(handoff_token_store_insert(store, &token));
    assert_ok(handoff_token_store_consume(store, &token, &token));
    assert_status(handoff_token_store_consume(store, &token, &token),
                  HANDOFF_ERR_TOKEN_NOT_PENDING);
    handoff_token_store_free(store);
}

static void token_that_was_never_held_is_not_pending(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1000);
    handoff_token token = token_of(1);
    assert_status(handoff_token_store_redeem(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_status(handoff_token_store_consume(store, &token, &token),
                  HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_status(handoff_token_store_revoke(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    handoff_token_store_free(store);
}

static void mismatch_consumes_neither_token(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1000);
    handoff_token expected = token_of(1), presented = token_of(2);
    assert_ok(handoff_token_store_insert(store, &expected));
    assert_ok(handoff_token_store_insert(store, &presented));
    assert_status(handoff_token_store_consume(store, &expected, &presented),
                  HANDOFF_ERR_TOKEN_MISMATCH);
    assert_ok(handoff_token_store_redeem(store, &expected));
    assert_ok(handoff_token_store_redeem(store, &presented));
    handoff_token_store_free(store);
}

static void revoked_token_is_not_pending(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1000);
    handoff_token token;
    assert_ok(handoff_token_store_issue(store, &token));
    assert_ok(handoff_token_store_revoke(store, &token));
    assert_int_equal(handoff_token_store_length(store), 0);
    assert_status(handoff_token_store_redeem(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_status(handoff_token_store_revoke(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    handoff_token_store_free(store);
}

static void pending_token_is_not_inserted_again(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1000);
    handoff_token token;
    assert_ok(handoff_token_store_issue(store, &token));
    assert_status(handoff_token_store_insert(store, &token), HANDOFF_ERR_TOKEN_ALREADY_PENDING);
    assert_int_equal(handoff_token_store_length(store), 1);
    handoff_token_store_free(store);
}

static void token_is_accepted_until_the_last_nanosecond_of_its_lifetime(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1000);
    handoff_token a, b = token_of(2);
    uint64_t start = handoff_now(), end = start + 1000 * MS;
    assert_ok(handoff_token_store_issue_at(store, start, &a));
    assert_ok(handoff_token_store_insert_at(store, start, &b));
    assert_ok(handoff_token_store_redeem_at(store, end - 1, &a));
    assert_ok(handoff_token_store_consume_at(store, end - 1, &b, &b));
    handoff_token_store_free(store);
}

static void expired_token_is_refused_and_leaves_the_store(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1000);
    handoff_token a, b = token_of(2);
    uint64_t start = handoff_now(), end = start + 1000 * MS;
    assert_ok(handoff_token_store_issue_at(store, start, &a));
    assert_ok(handoff_token_store_insert_at(store, start, &b));
    assert_status(handoff_token_store_redeem_at(store, end, &a), HANDOFF_ERR_TOKEN_EXPIRED);
    assert_status(handoff_token_store_consume_at(store, end, &b, &b), HANDOFF_ERR_TOKEN_EXPIRED);
    assert_status(handoff_token_store_redeem_at(store, end, &a), HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_status(handoff_token_store_consume_at(store, end, &b, &b),
                  HANDOFF_ERR_TOKEN_NOT_PENDING);
    handoff_token_store_free(store);
}

static void expired_token_may_be_inserted_again(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1000);
    handoff_token token = token_of(1);
    uint64_t start = handoff_now(), end = start + 1000 * MS;
    assert_ok(handoff_token_store_insert_at(store, start, &token));
    assert_status(handoff_token_store_insert_at(store, end - 1, &token),
                  HANDOFF_ERR_TOKEN_ALREADY_PENDING);
    assert_ok(handoff_token_store_insert_at(store, end, &token));
    assert_ok(handoff_token_store_redeem_at(store, end + 999 * MS, &token));
    handoff_token_store_free(store);
}

static void calls_without_a_time_take_the_time_of_the_call(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1);
    handoff_token a = token_of(1), b = token_of(2), c = token_of(3);
    uint64_t past = handoff_now() - 2 * MS;
    size_t removed = 99;
    assert_ok(handoff_token_store_insert_at(store, past, &a));
    assert_ok(handoff_token_store_insert_at(store, past, &b));
    assert_ok(handoff_token_store_insert_at(store, past, &c));
    assert_status(handoff_token_store_redeem(store, &a), HANDOFF_ERR_TOKEN_EXPIRED);
    assert_status(handoff_token_store_consume(store, &b, &b), HANDOFF_ERR_TOKEN_EXPIRED);
    assert_ok(handoff_token_store_prune(store, &removed));
    assert_int_equal(removed, 1);
    handoff_token_store_free(store);
}

static void pruning_removes_the_expired_tokens_and_no_other(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1000);
    handoff_token young = token_of(3), old[] = {token_of(1), token_of(2)};
    uint64_t start = handoff_now(), end = start + 1000 * MS;
    size_t removed = 99;
    assert_ok(handoff_token_store_insert_at(store, start, &old[0]));
    assert_ok(handoff_token_store_insert_at(store, start, &old[1]));
    assert_ok(handoff_token_store_insert_at(store, start + 1, &young));
    assert_int_equal(handoff_token_store_length(store), 3);
    assert_ok(handoff_token_store_prune_at(store, end, &removed));
    assert_int_equal(removed, 2);
    assert_int_equal(handoff_token_store_length(store), 1);
    assert_ok(handoff_token_store_prune_at(store, end + 1, NULL));
    assert_int_equal(handoff_token_store_length(store), 0);
    assert_ok(handoff_token_store_prune(store, NULL));
    handoff_token_store_free(store);
}

static void full_store_takes_no_more_until_a_token_leaves(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(2, 60000);
    handoff_token a = token_of(1), b = token_of(2), c = token_of(3), as_it_was = c;
    assert_ok(handoff_token_store_insert(store, &a));
    assert_ok(handoff_token_store_insert(store, &b));
    assert_status(handoff_token_store_insert(store, &c), HANDOFF_ERR_FULL);
    assert_status(handoff_token_store_issue(store, &c), HANDOFF_ERR_FULL);
    assert_true(handoff_token_equal(&c, &as_it_was));
    assert_ok(handoff_token_store_redeem(store, &a));
    assert_ok(handoff_token_store_insert(store, &c));
    handoff_token_store_free(store);
}

static void full_store_makes_room_of_its_expired_tokens(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(2, 1000);
    handoff_token token;
    uint64_t start = handoff_now(), end = start + 1000 * MS;
    assert_ok(handoff_token_store_issue_at(store, start, &token));
    assert_ok(handoff_token_store_issue_at(store, start, &token));
    assert_status(handoff_token_store_issue_at(store, end - 1, &token), HANDOFF_ERR_FULL);
    assert_ok(handoff_token_store_issue_at(store, end, &token));
    assert_int_equal(handoff_token_store_length(store), 1);
    handoff_token_store_free(store);
}

static void issuing_gives_up_when_every_random_token_is_pending(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1000);
    handoff_token first, second = token_of(42), as_it_was = second;
    randomness = RANDOM_REPEATS;
    handoff_status issued = handoff_token_store_issue(store, &first);
    handoff_status again = handoff_token_store_issue(store, &second);
    randomness = RANDOM_WORKS;
    assert_ok(issued);
    assert_status(again, HANDOFF_ERR_TOKEN_COLLISION);
    assert_true(handoff_token_equal(&second, &as_it_was));
    handoff_token_store_free(store);
}

static void assert_default_limits(const handoff_token_store_options *options)
{
    handoff_token_store *store;
    handoff_token token;
    uint64_t start = handoff_now(), end = start + 30000 * MS;
    assert_ok(handoff_token_store_new(options, &store));
    for (int i = 0; i < 1024; i++)
        assert_ok(handoff_token_store_issue_at(store, start, &token));
    assert_status(handoff_token_store_issue_at(store, end - 1, &token), HANDOFF_ERR_FULL);
    assert_status(handoff_token_store_redeem_at(store, end, &token), HANDOFF_ERR_TOKEN_EXPIRED);
    handoff_token_store_free(store);
}

static void defaults_are_1024_tokens_for_30_seconds(void **state)
{
    (void)state;
    handoff_token_store_options options = HANDOFF_TOKEN_STORE_OPTIONS_INIT;
    assert_int_equal(options.collision_attempts, 16);
    assert_default_limits(&options);
    assert_default_limits(NULL);
}

static void options_of_0_are_taken_to_the_least_that_is_of_use(void **state)
{
    (void)state;
    handoff_token_store_options options = {.size = sizeof options};
    handoff_token_store *store;
    handoff_token token;
    uint64_t start = handoff_now();
    assert_ok(handoff_token_store_new(&options, &store));
    assert_ok(handoff_token_store_issue_at(store, start, &token));
    assert_status(handoff_token_store_issue_at(store, start, &token), HANDOFF_ERR_FULL);
    assert_ok(handoff_token_store_redeem_at(store, start + MS - 1, &token));
    assert_ok(handoff_token_store_issue_at(store, start, &token));
    assert_status(handoff_token_store_redeem_at(store, start + MS, &token),
                  HANDOFF_ERR_TOKEN_EXPIRED);
    handoff_token_store_free(store);
}

static void huge_options_are_taken_to_the_most_that_is_possible(void **state)
{
    (void)state;
    handoff_token_store_options options = {sizeof options, SIZE_MAX, UINT64_MAX, UINT32_MAX};
    handoff_token_store *store;
    handoff_token token;
    uint64_t start = handoff_now(), year = 365 * 86400000ULL * MS;
    assert_ok(handoff_token_store_new(&options, &store));
    for (int i = 0; i < 2000; i++)
        assert_ok(handoff_token_store_issue_at(store, start, &token));
    assert_ok(handoff_token_store_redeem_at(store, start + 100 * year, &token));
    handoff_token_store_free(store);
}

static void options_that_an_older_header_lacks_have_their_defaults(void **state)
{
    (void)state;
    handoff_token_store_options options = {
        .size = offsetof(handoff_token_store_options, lifetime_ms),
        .capacity = 1,
        .lifetime_ms = 1,
    };
    handoff_token_store *store;
    handoff_token token;
    uint64_t start = handoff_now();
    assert_ok(handoff_token_store_new(&options, &store));
    assert_ok(handoff_token_store_issue_at(store, start, &token));
    assert_status(handoff_token_store_issue_at(store, start, &token), HANDOFF_ERR_FULL);
    assert_ok(handoff_token_store_redeem_at(store, start + 29999 * MS, &token));
    handoff_token_store_free(store);
}

static void options_that_only_a_newer_header_has_are_not_looked_at(void **state)
{
    (void)state;
    struct {
        handoff_token_store_options known;
        uint64_t later[4];
    } newer = {HANDOFF_TOKEN_STORE_OPTIONS_INIT, {1, 2, 3, 4}};
    newer.known.size = sizeof newer;
    assert_default_limits(&newer.known);
}

static void options_of_an_impossible_size_are_refused(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, sizeof(size_t) - 1, 1 << 20, SIZE_MAX};
    handoff_token_store_options options = HANDOFF_TOKEN_STORE_OPTIONS_INIT;
    handoff_token_store *store = NULL;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        options.size = sizes[i];
        assert_invalid(handoff_token_store_new(&options, &store));
    }
    assert_null(store);
}

static void times_at_both_ends_of_the_clock_are_taken(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1000);
    handoff_token token;
    assert_ok(handoff_token_store_issue_at(store, 0, &token));
    assert_ok(handoff_token_store_redeem_at(store, 1, &token));
    assert_ok(handoff_token_store_issue_at(store, UINT64_MAX, &token));
    assert_ok(handoff_token_store_redeem_at(store, UINT64_MAX, &token));
    handoff_token_store_free(store);
}

/* Every call with each of its pointers in turn NULL or misaligned. */
static void store_calls_refuse(void *store, void *bad)
{
    handoff_token good = token_of(1);
    handoff_token_store *const no_store = bad;
    uint64_t now = handoff_now();
    assert_invalid(handoff_token_store_new(NULL, bad));
    assert_invalid(handoff_token_store_issue(no_store, &good));
    assert_invalid(handoff_token_store_issue_at(no_store, now, &good));
    assert_invalid(handoff_token_store_insert(no_store, &good));
    assert_invalid(handoff_token_store_insert_at(no_store, now, &good));
    assert_invalid(handoff_token_store_consume(no_store, &good, &good));
    assert_invalid(handoff_token_store_consume_at(no_store, now, &good, &good));
    assert_invalid(handoff_token_store_redeem(no_store, &good));
    assert_invalid(handoff_token_store_redeem_at(no_store, now, &good));
    assert_invalid(handoff_token_store_revoke(no_store, &good));
    assert_invalid(handoff_token_store_prune(no_store, NULL));
    assert_invalid(handoff_token_store_prune_at(no_store, now, NULL));
    assert_int_equal(handoff_token_store_length(no_store), 0);
    handoff_token_store_free(no_store);
    assert_int_equal(handoff_token_store_length(store), 0);
}

static void null_is_refused(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1000);
    handoff_token good = token_of(1);
    uint8_t bytes[HANDOFF_TOKEN_LEN] = {0};
    uint64_t now = handoff_now();
    assert_invalid(handoff_token_generate(NULL));
    assert_invalid(handoff_token_from_bytes(bytes, sizeof bytes, NULL));
    assert_invalid(handoff_token_from_bytes(NULL, sizeof bytes, &good));
    store_calls_refuse(store, NULL);
    assert_invalid(handoff_token_store_issue(store, NULL));
    assert_invalid(handoff_token_store_issue_at(store, now, NULL));
    assert_invalid(handoff_token_store_insert(store, NULL));
    assert_invalid(handoff_token_store_insert_at(store, now, NULL));
    assert_invalid(handoff_token_store_consume(store, NULL, &good));
    assert_invalid(handoff_token_store_consume(store, &good, NULL));
    assert_invalid(handoff_token_store_consume_at(store, now, NULL, &good));
    assert_invalid(handoff_token_store_consume_at(store, now, &good, NULL));
    assert_invalid(handoff_token_store_redeem(store, NULL));
    assert_invalid(handoff_token_store_redeem_at(store, now, NULL));
    assert_invalid(handoff_token_store_revoke(store, NULL));
    assert_int_equal(handoff_token_store_length(store), 0);
    handoff_token_store_free(store);
}

/* A token is bytes and cannot be misaligned. */
static void misaligned_pointers_are_refused(void **state)
{
    (void)state;
    handoff_token_store *store = store_of(8, 1000), *other = NULL;
    store_calls_refuse(store, misaligned());
    assert_invalid(handoff_token_store_new(misaligned(), &other));
    assert_invalid(handoff_token_store_prune(store, misaligned()));
    assert_invalid(handoff_token_store_prune_at(store, handoff_now(), misaligned()));
    assert_null(other);
    handoff_token_store_free(store);
}

enum { THREADS = 8 };

struct race {
    handoff_token_store *store;
    handoff_token *tokens;
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
        accepted += handoff_token_store_redeem(race->store, &race->tokens[i]) == HANDOFF_OK;
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
        assert_ok(handoff_token_store_issue(race.store, &race.tokens[i]));
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
    assert_int_equal(handoff_token_store_length(race.store), 0);
    pthread_barrier_destroy(&race.together);
    free(race.tokens);
    handoff_token_store_free(race.store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(generated_tokens_differ),
        TEST(broken_random_source_makes_no_token),
        TEST(token_is_made_of_the_bytes_given),
        TEST(token_is_not_made_of_any_other_number_of_bytes),
        TEST(tokens_that_differ_in_any_one_bit_are_not_equal),
        TEST(no_token_equals_null),
        TEST(issued_token_is_redeemed_once),
        TEST(inserted_token_is_consumed_once),
        TEST(token_that_was_never_held_is_not_pending),
        TEST(mismatch_consumes_neither_token),
        TEST(revoked_token_is_not_pending),
        TEST(pending_token_is_not_inserted_again),
        TEST(token_is_accepted_until_the_last_nanosecond_of_its_lifetime),
        TEST(expired_token_is_refused_and_leaves_the_store),
        TEST(expired_token_may_be_inserted_again),
        TEST(calls_without_a_time_take_the_time_of_the_call),
        TEST(pruning_removes_the_expired_tokens_and_no_other),
        TEST(full_store_takes_no_more_until_a_token_leaves),
        TEST(full_store_makes_room_of_its_expired_tokens),
        TEST(issuing_gives_up_when_every_random_token_is_pending),
        TEST(defaults_are_1024_tokens_for_30_seconds),
        TEST(options_of_0_are_taken_to_the_least_that_is_of_use),
        TEST(huge_options_are_taken_to_the_most_that_is_possible),
        TEST(options_that_an_older_header_lacks_have_their_defaults),
        TEST(options_that_only_a_newer_header_has_are_not_looked_at),
        TEST(options_of_an_impossible_size_are_refused),
        TEST(times_at_both_ends_of_the_clock_are_taken),
        TEST(null_is_refused),
        TEST(misaligned_pointers_are_refused),
        TEST(of_many_threads_that_redeem_a_token_one_succeeds),
    };
    return cmocka_run_group_tests_name("token", tests, NULL, NULL);
}
