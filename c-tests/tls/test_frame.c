/* What the tests of TLS connections stand on: when a connection is in the kernel, and when not. */
#include "tls.h"

static const struct tls_kind aes_128 = {TLS1_2_VERSION, "ECDHE-ECDSA-AES128-GCM-SHA256", false};
static const struct tls_kind user_space = {TLS1_2_VERSION, "ECDHE-ECDSA-AES128-GCM-SHA256", true};

static void both_directions_are_in_the_kernel(void **state)
{
    (void)state;
    struct tls tls;
    tls_open(&tls, &aes_128);
    assert_true(tls_kernel_sends(tls.server));
    assert_true(tls_kernel_receives(tls.server));
    assert_true(tls_in_kernel(tls.server_fd));
    tls_close(&tls);
}

static void a_connection_in_user_space_is_noticed(void **state)
{
    (void)state;
    struct tls tls;
    tls_open(&tls, &user_space);
    assert_false(tls_kernel_sends(tls.server));
    assert_false(tls_kernel_receives(tls.server));
    assert_false(tls_in_kernel(tls.server_fd));
    tls_close(&tls);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(both_directions_are_in_the_kernel),
        TEST(a_connection_in_user_space_is_noticed),
    };
    return RUN_TESTS(tests);
}
