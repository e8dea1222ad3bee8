/* handoff/tls.h on plain sockets, and an offer that says TLS where there is none. What needs a kernel
 * with the module `tls` is in c-tests/tls. */
#define _GNU_SOURCE
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void plain_socket_is_received_from_as_by_recv(void **state)
{
    int ends[2];
    char bytes[10];
    size_t count = 99;
    make_tcp_pair(ends);
    for (int wait_ms = 0; wait_ms <= 5; wait_ms += 5)
        assert_status(handoff_tls_receive(ends[0], bytes, sizeof bytes, wait_ms, &count),
                      HANDOFF_TIMED_OUT);
    assert_int_equal(count, 99);
    assert_int_equal(write(ends[1], "\25\3\3\0\2\1\0", 7), 7);
    assert_ok(handoff_tls_receive(ends[0], bytes, sizeof bytes, PATIENCE_MS, &count));
    assert_int_equal(count, 7);
    assert_memory_equal(bytes, "\25\3\3\0\2\1\0", 7);
    /* A descriptor that does not block is waited for all the same. */
    assert_int_equal(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
    assert_int_equal(shutdown(ends[1], SHUT_WR), 0);
    assert_ok(handoff_tls_receive(ends[0], bytes, sizeof bytes, -1, &count));
    assert_int_equal(count, 0);
    close(ends[0]);
    close(ends[1]);
    (void)state;
}

static void plain_socket_is_shut_down_without_an_alert(void **state)
{
    int ends[2];
    char bytes[10];
    make_tcp_pair(ends);
    assert_int_equal(write(ends[0], "last", 4), 4);
    assert_ok(handoff_tls_shutdown(ends[0], 0));
    assert_int_equal(recv(ends[1], bytes, sizeof bytes, MSG_WAITALL), 4);
    /* It is still open. */
    assert_int_not_equal(fcntl(ends[0], F_GETFD), -1);
    close(ends[0]);
    close(ends[1]);
    (void)state;
}

static void unix_socket_brings_no_descriptor(void **state)
{
    int pair[2];
    char bytes[10];
    size_t count;
    make_pair(SOCK_STREAM, pair);
    send_raw(pair[0], "data", 4, (int[]){pair[0], pair[1]}, 2);
    /* The fixture tells if one is left open. */
    assert_ok(handoff_tls_receive(pair[1], bytes, sizeof bytes, PATIENCE_MS, &count));
    assert_int_equal(count, 4);
    close(pair[0]);
    close(pair[1]);
    (void)state;
}

static void plain_socket_has_no_session(void **state)
{
    int ends[2];
    handoff_tls_session session = HANDOFF_TLS_SESSION_INIT, before = session;
    make_tcp_pair(ends);
    assert_status(handoff_tls_get_session(ends[0], &session), HANDOFF_NOTHING);
    assert_memory_equal(&session, &before, sizeof session);
    close(ends[0]);
    close(ends[1]);
    (void)state;
}

static void what_cannot_be_used_is_invalid(void **state)
{
    int pair[2], null = open("/dev/null", O_RDWR | O_CLOEXEC);
    char byte;
    size_t count;
    handoff_tls_session session = HANDOFF_TLS_SESSION_INIT, small = {.size = 1};
    make_pair(SOCK_STREAM, pair);
    for (int i = 0; i < 2; i++) {
        int fd = i == 0 ? -1 : null;
        assert_invalid(handoff_tls_receive(fd, &byte, 1, 0, &count));
        assert_invalid(handoff_tls_shutdown(fd, 0));
        assert_invalid(handoff_tls_get_session(fd, &session));
    }
    assert_last_error_has("is a device");
    assert_invalid(handoff_tls_receive(pair[0], NULL, 1, 0, &count));
    assert_invalid(handoff_tls_receive(pair[0], &byte, 0, 0, &count));
    assert_invalid(handoff_tls_receive(pair[0], &byte, SIZE_MAX, 0, &count));
    assert_invalid(handoff_tls_receive(pair[0], &byte, 1, 0, NULL));
    assert_invalid(handoff_tls_get_session(pair[0], NULL));
    assert_invalid(handoff_tls_get_session(pair[0], &small));
    close(pair[0]);
    close(pair[1]);
    close(null);
    (void)state;
}

static void plain_connection_is_not_offered_as_tls(void **state)
{
    struct channel channel;
    int ends[2];
    handoff_offer offer = HANDOFF_OFFER_INIT;
    open_channel(&channel, NULL, NULL);
    make_tcp_pair(ends);
    offer.fd = ends[0];
    offer.flags = HANDOFF_OFFER_TLS;
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_NOT_TLS);
    assert_last_error_has("cannot be offered as TLS: the kernel does not do its TLS");
    assert_int_equal(broker_statistics(channel.broker).refusals[-HANDOFF_ERR_NOT_TLS], 1);
    assert_int_equal(handoff_status_reason(HANDOFF_ERR_NOT_TLS),
                     HANDOFF_REASON_CLIENT_UNSUPPORTED);
    assert_true(handoff_status_is_fallback_safe(HANDOFF_ERR_NOT_TLS));
    offer.flags = 4;
    assert_invalid(handoff_broker_offer(channel.broker, &offer, NULL));
    /* Who may not offer at all learns that first. */
    offer.flags = HANDOFF_OFFER_TLS;
    pid_t child = start_child();
    if (child == 0) {
        child_assert(handoff_broker_offer(channel.broker, &offer, NULL) ==
                     HANDOFF_ERR_WRONG_PROCESS);
        _exit(0);
    }
    assert_child_succeeds(child);
    assert_ok(handoff_broker_close(channel.broker));
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_CLOSED);
    close(ends[0]);
    close(ends[1]);
    close_channel(&channel);
    (void)state;
}

static void arrival_of_a_plain_connection_says_so(void **state)
{
    struct channel channel;
    int ends[2], fd;
    handoff_offer offer = HANDOFF_OFFER_INIT;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    open_channel(&channel, NULL, NULL);
    make_tcp_pair(ends);
    offer.fd = ends[0];
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_ok(handoff_backend_dispatch(channel.backend));
    arrival.tls = 7;
    assert_ok(handoff_backend_next(channel.backend, &arrival));
    assert_int_equal(arrival.tls, 0);
    assert_ok(handoff_backend_adopt(channel.backend, arrival.id, &fd));
    close(fd);
    close(ends[0]);
    close(ends[1]);
    close_channel(&channel);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(plain_socket_is_received_from_as_by_recv),
        TEST(plain_socket_is_shut_down_without_an_alert),
        TEST(unix_socket_brings_no_descriptor),
        TEST(plain_socket_has_no_session),
        TEST(what_cannot_be_used_is_invalid),
        TEST(plain_connection_is_not_offered_as_tls),
        TEST(arrival_of_a_plain_connection_says_so),
    };
    return RUN_TESTS(tests);
}
