/* Tokens: their bytes, where they come from, and when two are equal. */
#define _GNU_SOURCE
#include "randomness.h"
#include "support.h"

#include <errno.h>

static handoff_raw_token token_of(uint8_t first)
{
    handoff_raw_token token = {.bytes = {first}};
    return token;
}

static void generated_tokens_differ(void **state)
{
    (void)state;
    handoff_raw_token a, b;
    assert_ok(handoff_raw_token_generate(&a));
    assert_ok(handoff_raw_token_generate(&b));
    assert_false(handoff_raw_token_equal(&a, &b));
    assert_true(handoff_raw_token_equal(&a, &a));
}

static void broken_random_source_makes_no_token(void **state)
{
    (void)state;
    handoff_raw_token token = token_of(42), as_it_was = token;
    randomness = RANDOM_FAILS;
    assert_status(handoff_raw_token_generate(&token), HANDOFF_ERR_RANDOM);
    assert_int_equal(errno, EIO);
    assert_true(handoff_raw_token_equal(&token, &as_it_was));
}

static void token_is_made_of_the_bytes_given(void **state)
{
    (void)state;
    uint8_t bytes[HANDOFF_RAW_TOKEN_LEN];
    handoff_raw_token token;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 17);
    assert_ok(handoff_raw_token_from_bytes(bytes, sizeof bytes, &token));
    assert_memory_equal(token.bytes, bytes, sizeof bytes);
}

static void token_is_not_made_of_any_other_number_of_bytes(void **state)
{
    (void)state;
    static const size_t others[] = {0, 1, HANDOFF_RAW_TOKEN_LEN - 1, HANDOFF_RAW_TOKEN_LEN + 1,
                                    SIZE_MAX};
    uint8_t bytes[HANDOFF_RAW_TOKEN_LEN + 1] = {1};
    handoff_raw_token token = token_of(42), as_it_was = token;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        assert_invalid(handoff_raw_token_from_bytes(bytes, others[i], &token));
    assert_invalid(handoff_raw_token_from_bytes(NULL, 0, &token));
    assert_true(handoff_raw_token_equal(&token, &as_it_was));
}

static void tokens_that_differ_in_any_one_bit_are_not_equal(void **state)
{
    (void)state;
    handoff_raw_token a;
    assert_ok(handoff_raw_token_generate(&a));
    for (size_t bit = 0; bit < 8 * sizeof a.bytes; bit++) {
        handoff_raw_token b = a;
        b.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_false(handoff_raw_token_equal(&a, &b));
    }
}

static void no_token_equals_null(void **state)
{
    (void)state;
    handoff_raw_token token = token_of(0);
    assert_false(handoff_raw_token_equal(&token, NULL));
    assert_false(handoff_raw_token_equal(NULL, &token));
    assert_false(handoff_raw_token_equal(NULL, NULL));
}

/* A token is bytes and cannot be misaligned. */
static void null_is_refused(void **state)
{
    (void)state;
    handoff_raw_token token = token_of(42), as_it_was = token;
    uint8_t bytes[HANDOFF_RAW_TOKEN_LEN] = {0};
    assert_invalid_because(handoff_raw_token_generate(NULL), "token is NULL");
    assert_invalid_because(handoff_raw_token_from_bytes(bytes, sizeof bytes, NULL),
                           "token is NULL");
    assert_invalid_because(handoff_raw_token_from_bytes(NULL, sizeof bytes, &token),
                           "bytes is NULL");
    assert_true(handoff_raw_token_equal(&token, &as_it_was));
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
        TEST(null_is_refused),
    };
    return RUN_TESTS(tests);
}
