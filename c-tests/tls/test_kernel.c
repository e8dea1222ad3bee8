/* Which connections the kernel does, as OpenSSL and the kernel itself see it. */
#include "../channel.h"
#include "tls.h"

static void assert_in_kernel(const struct tls_kind *kind, bool sends, bool receives)
{
    struct tls tls;
    tls_open(&tls, kind);
    if (tls_kernel_sends(tls.server) != sends || tls_kernel_receives(tls.server) != receives)
        fail_msg("with %s the kernel sends: %d, receives: %d", SSL_get_cipher(tls.server),
                 tls_kernel_sends(tls.server), tls_kernel_receives(tls.server));
    assert_int_equal(tls_in_kernel(tls.server_fd), sends || receives);
    assert_false(tls_in_kernel(tls.client_fd));
    tls_write(tls.client, "ping", 4);
    tls_expect(tls.server, "ping", 4);
    tls_write(tls.server, "pong", 4);
    tls_expect(tls.client, "pong", 4);
    tls_close(&tls);
}

static void tls_1_2_is_in_the_kernel_in_both_directions(void **state)
{
    (void)state;
    assert_in_kernel(&tls_1_2_aes_128, true, true);
    assert_in_kernel(&tls_1_2_aes_256, true, true);
    assert_in_kernel(&tls_1_2_chacha, true, true);
}

static void tls_1_3_is_received_in_the_kernel_from_openssl_3_2_on(void **state)
{
    (void)state;
    assert_in_kernel(&tls_1_3_aes_128, true, tls_1_3_receives_in_kernel());
    assert_in_kernel(&tls_1_3_aes_256, true, tls_1_3_receives_in_kernel());
    assert_in_kernel(&tls_1_3_chacha, true, tls_1_3_receives_in_kernel());
}

static void cbc_stays_in_user_space(void **state)
{
    (void)state;
    assert_in_kernel(&tls_1_2_cbc, false, false);
}

static void a_connection_that_did_not_ask_stays_in_user_space(void **state)
{
    (void)state;
    struct tls_kind kind = tls_1_2_aes_128;
    kind.in_user_space = true;
    assert_in_kernel(&kind, false, false);
}

/* Offers a connection, adopts it, and returns what the backend's descriptor says of it. */
static bool backend_sees_kernel_tls(const struct tls_kind *kind)
{
    struct tls tls;
    struct channel channel;
    int fd;
    tls_open(&tls, kind);
    open_channel(&channel, NULL, NULL);
    offer_fd(&channel, tls.server_fd);
    handoff_arrival arrival = arrival_of(&channel);
    assert_ok(handoff_backend_adopt(channel.backend, arrival.id, &fd));
    bool in_kernel = tls_in_kernel(fd);
    close(fd);
    close_channel(&channel);
    tls_close(&tls);
    return in_kernel;
}

static void a_backend_sees_which_connections_are_in_the_kernel(void **state)
{
    (void)state;
    assert_true(backend_sees_kernel_tls(&tls_1_2_aes_128));
    assert_false(backend_sees_kernel_tls(&tls_1_2_cbc));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(tls_1_2_is_in_the_kernel_in_both_directions),
        TEST(tls_1_3_is_received_in_the_kernel_from_openssl_3_2_on),
        TEST(cbc_stays_in_user_space),
        TEST(a_connection_that_did_not_ask_stays_in_user_space),
        TEST(a_backend_sees_which_connections_are_in_the_kernel),
    };
    return RUN_TLS_TESTS(tests);
}
