/* A client that updates its key (KeyUpdate of TLS 1.3), on kernels that can be given the next key, from
 * Linux 6.14 on, and on those that can't. */
#define _GNU_SOURCE
#include "records.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

static const char update[] = {24, 0, 0, 1, 0}, update_requested[] = {24, 0, 0, 1, 1};
/* What a kernel says that can't. */
enum { NO_SECOND_KEY = EBUSY };

static bool kernel_rekeys(void)
{
    struct pair pair;
    open_both(&pair, &suites[TLS_1_3_SUITE]);
    int error = set_keys(pair.server, &suites[TLS_1_3_SUITE], TLS_TX, NEXT_TO_CLIENT);
    assert_true(error == 0 || error == NO_SECOND_KEY);
    close_pair(&pair);
    return error == 0;
}

/* A connection over which data has come, and then a KeyUpdate and data under the next key. */
static void open_updated(struct pair *pair, const struct suite *suite, const char *message)
{
    open_both(pair, suite);
    assert_int_equal(send(pair->client, "before", 6, 0), 6);
    send_record(pair->client, HANDSHAKE, message, sizeof update);
    use_keys(pair->client, suite, TLS_TX, NEXT_TO_SERVER);
    assert_int_equal(send(pair->client, "after", 5, 0), 5);
    expect_data(pair->server, "before", 6);
}

static void rekeying_is_there_from_linux_6_14_on(void **state)
{
    struct utsname name;
    unsigned major, minor;
    (void)state;
    assert_int_equal(uname(&name), 0);
    assert_int_equal(sscanf(name.release, "%u.%u", &major, &minor), 2);
    assert_int_equal(kernel_rekeys(), major > 6 || (major == 6 && minor >= 14));
}

static void skip_without_rekeying(void)
{
    if (!kernel_rekeys())
        skip();
}

/* As many times as it is asked for, until there is a key. */
static void what_is_under_the_next_key_waits_for_it(void **state)
{
    (void)state;
    skip_without_rekeying();
    for (size_t i = TLS_1_3_SUITE; i < SUITES; i++) {
        const char *const messages[] = {update, update_requested};
        for (int which = 0; which < 2; which++) {
            struct pair pair;
            char bytes[100];
            open_updated(&pair, &suites[i], messages[which]);
            expect_error(pair.server, HANDOFF_ERR_TLS_KEY_UPDATE);
            for (int times = 0; times < 3; times++) {
                expect_error(pair.server, HANDOFF_ERR_TLS_KEY_UPDATE);
                assert_int_equal(recv(pair.server, bytes, sizeof bytes, MSG_DONTWAIT), -1);
                assert_int_equal(errno, EKEYEXPIRED);
            }
            use_keys(pair.server, &suites[i], TLS_RX, NEXT_TO_SERVER);
            expect_data(pair.server, "after", 5);
            close_pair(&pair);
        }
    }
}

/* Also if nothing is there that would need the next key. */
static void nothing_waits_behind_a_key_update(void **state)
{
    (void)state;
    skip_without_rekeying();
    struct pair pair;
    char bytes[100];
    size_t count;
    open_both(&pair, &suites[TLS_1_3_SUITE]);
    send_record(pair.client, HANDSHAKE, update, sizeof update);
    expect_error(pair.server, HANDOFF_ERR_TLS_KEY_UPDATE);
    assert_status(handoff_tls_receive(pair.server, bytes, sizeof bytes, -1, &count),
                  HANDOFF_ERR_TLS_KEY_UPDATE);
    /* And at the end of the connection, which poll(2) tells of. */
    assert_int_equal(shutdown(pair.client, SHUT_WR), 0);
    assert_int_equal(poll(&(struct pollfd){.fd = pair.server, .events = POLLIN}, 1, PATIENCE_MS), 1);
    expect_error(pair.server, HANDOFF_ERR_TLS_KEY_UPDATE);
    close_pair(&pair);
}

/* A wrong key for what comes next: nothing of it is data. */
static void a_wrong_key_brings_no_data(void **state)
{
    (void)state;
    skip_without_rekeying();
    for (size_t i = TLS_1_3_SUITE; i < SUITES; i++) {
        struct pair pair;
        open_updated(&pair, &suites[i], update);
        expect_error(pair.server, HANDOFF_ERR_TLS_KEY_UPDATE);
        use_keys(pair.server, &suites[i], TLS_RX, NEXT_TO_CLIENT);
        expect_error(pair.server, HANDOFF_ERR_TLS_RECORD);
        close_pair(&pair);
    }
}

/* The server's direction is its own: it can go on, and be ended in order. */
static void sending_goes_on_after_the_clients_key_update(void **state)
{
    (void)state;
    for (size_t i = TLS_1_3_SUITE; i < SUITES; i++) {
        struct pair pair;
        char bytes[100];
        int type;
        open_both(&pair, &suites[i]);
        send_record(pair.client, HANDSHAKE, update, sizeof update);
        expect_error(pair.server, HANDOFF_ERR_TLS_KEY_UPDATE);
        assert_int_equal(send(pair.server, "last", 4, 0), 4);
        assert_ok(handoff_tls_shutdown(pair.server, PATIENCE_MS));
        assert_int_equal(receive_record(pair.client, &type, bytes, sizeof bytes), 4);
        assert_int_equal(type, DATA);
        assert_int_equal(receive_record(pair.client, &type, bytes, sizeof bytes), 2);
        assert_int_equal(type, ALERT);
        close_pair(&pair);
    }
}

/* Whoever has the secret can. What the library says of the session stays the same. */
static void a_server_with_the_next_key_can_update_its_own(void **state)
{
    (void)state;
    skip_without_rekeying();
    for (size_t i = TLS_1_3_SUITE; i < SUITES; i++) {
        struct pair pair;
        char bytes[100];
        int type;
        handoff_tls_session session = HANDOFF_TLS_SESSION_INIT;
        open_both(&pair, &suites[i]);
        send_record(pair.server, HANDSHAKE, update, sizeof update);
        use_keys(pair.server, &suites[i], TLS_TX, NEXT_TO_CLIENT);
        assert_int_equal(send(pair.server, "after", 5, 0), 5);
        assert_int_equal(receive_record(pair.client, &type, bytes, sizeof bytes), sizeof update);
        assert_int_equal(type, HANDSHAKE);
        use_keys(pair.client, &suites[i], TLS_RX, NEXT_TO_CLIENT);
        assert_int_equal(receive_record(pair.client, &type, bytes, sizeof bytes), 5);
        assert_int_equal(type, DATA);
        assert_memory_equal(bytes, "after", 5);
        assert_ok(handoff_tls_get_session(pair.server, &session));
        assert_int_equal(session.cipher, suites[i].cipher);
        assert_int_equal(session.directions, HANDOFF_TLS_SEND | HANDOFF_TLS_RECEIVE);
        close_pair(&pair);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(rekeying_is_there_from_linux_6_14_on),
        TEST(what_is_under_the_next_key_waits_for_it),
        TEST(nothing_waits_behind_a_key_update),
        TEST(a_wrong_key_brings_no_data),
        TEST(sending_goes_on_after_the_clients_key_update),
        TEST(a_server_with_the_next_key_can_update_its_own),
    };
    return RUN_TLS_TESTS(tests);
}
