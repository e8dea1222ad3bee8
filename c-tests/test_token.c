/* Tokens and the token store. */
#include "support.h"

static void generated_tokens_differ(void **state)
{
    (void)state;
    handoff_token a, b;
    assert_ok(handoff_token_generate(&a));
    assert_ok(handoff_token_generate(&b));
    assert_false(handoff_token_equal(&a, &b));
    assert_true(handoff_token_equal(&a, &a));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(generated_tokens_differ),
    };
    return cmocka_run_group_tests_name("token", tests, NULL, NULL);
}
