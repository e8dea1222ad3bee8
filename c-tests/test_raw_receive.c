/* Receiving a descriptor with its token, and verifying it, from peers that keep to the rules and
 * from peers that do not. */
#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>

/* Receives and expects no message, after which nothing was given out. */
#define assert_receives(wire, timeout, expected) \
    check_receives((wire), (timeout), (expected), __FILE__, __LINE__)

static void check_receives(const struct wire *wire, int timeout_ms, handoff_status expected,
                           const char *file, int line)
{
    handoff_raw_token token = {{42}};
    const handoff_raw_token untouched = token;
    int fd = -7;
    assert_status_at(handoff_raw_receive(wire->backend, timeout_ms, &token, &fd), expected, file,
                     line);
    assert_int_equal(fd, -7);
    assert_memory_equal(&token, &untouched, sizeof token);
    if (expected < HANDOFF_OK)
        assert_true(strlen(handoff_last_error()) > 0);
}

static void received_descriptor_is_close_on_exec(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token token;
    int fd;
    assert_int_equal(fcntl(wire->connection, F_SETFD, 0), 0);
    send_raw(wire->broker, wire->token.bytes, HANDOFF_RAW_TOKEN_LEN, &wire->connection, 1);
    assert_ok(handoff_raw_receive(wire->backend, 0, &token, &fd));
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    close(fd);
}

static void messages_queued_back_to_back_keep_their_own_descriptors(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token second, token;
    int other[2], fd;
    make_tcp_pair(other);
    assert_ok(handoff_raw_token_generate(&second));
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    assert_ok(handoff_raw_send(wire->broker, other[0], &second));
    assert_ok(handoff_raw_receive(wire->backend, 0, &token, &fd));
    assert_true(handoff_raw_token_equal(&token, &wire->token));
    assert_same_socket(fd, wire->connection);
    close(fd);
    assert_ok(handoff_raw_receive(wire->backend, 0, &token, &fd));
    assert_true(handoff_raw_token_equal(&token, &second));
    assert_same_socket(fd, other[0]);
    close(fd);
    close(other[0]);
    close(other[1]);
}

static void credentials_that_come_with_the_message_do_no_harm(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token token;
    int fd, on = 1;
    assert_int_equal(setsockopt(wire->backend, SOL_SOCKET, SO_PASSCRED, &on, sizeof on), 0);
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    assert_ok(handoff_raw_receive(wire->backend, 0, &token, &fd));
    assert_true(handoff_raw_token_equal(&token, &wire->token));
    assert_same_socket(fd, wire->connection);
    close(fd);
}

/* ---- waiting --------------------------------------------------------------------------------- */

static void nothing_to_receive_is_told_at_once(void **state)
{
    struct wire *wire = *state;
    assert_receives(wire, 0, HANDOFF_TIMED_OUT);
    assert_int_equal(fcntl(wire->backend, F_SETFL, O_RDWR | O_NONBLOCK), 0);
    assert_receives(wire, 0, HANDOFF_TIMED_OUT);
}

/* A wait that began anew after each signal would never end. */
static void deadline_holds_while_signals_interrupt_the_wait(void **state)
{
    struct wire *wire = *state;
    uint64_t start;
    int wait_ms = 20;
    start_interrupting();
    do {
        wait_ms *= 2;
        interruptions = 0;
        start = now_ns();
        assert_receives(wire, wait_ms, HANDOFF_TIMED_OUT);
        assert_in_range(ms_since(start), wait_ms, PATIENCE_MS);
    } while (interruptions < 5);
}

static void wait_without_limit_goes_on_after_signals(void **state)
{
    struct wire *wire = *state;
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        int ticks[2], fd;
        handoff_raw_token token;
        assert_int_equal(fcntl(wire->backend, F_SETFL, nonblocking ? O_RDWR | O_NONBLOCK : O_RDWR),
                         0);
        assert_int_equal(pipe2(ticks, O_CLOEXEC), 0);
        pid_t child = start_child();
        if (child == 0) {
            char tick;
            for (int i = 0; i < 5; i++)
                child_assert(read(ticks[0], &tick, 1) == 1);
            child_assert(handoff_raw_send(wire->broker, wire->connection, &wire->token) ==
                         HANDOFF_OK);
            _exit(0);
        }
        interruptions_pipe = ticks[1];
        start_interrupting();
        assert_ok(handoff_raw_receive(wire->backend, -1, &token, &fd));
        stop_interrupting();
        assert_true(handoff_raw_token_equal(&token, &wire->token));
        assert_child_succeeds(child);
        close(fd);
        close(ticks[0]);
        close(ticks[1]);
    }
}

/* ---- what a peer may do wrong ---------------------------------------------------------------- */

static void closed_peer_is_the_end_of_the_stream(void **state)
{
    struct wire *wire = *state;
    close_end(&wire->broker);
    assert_receives(wire, 0, HANDOFF_ERR_END_OF_STREAM);
    assert_receives(wire, -1, HANDOFF_ERR_END_OF_STREAM);
    assert_receives(wire, PATIENCE_MS, HANDOFF_ERR_END_OF_STREAM);
}

static void message_is_received_from_a_peer_that_closed_after_it(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token token;
    int fd;
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    close_end(&wire->broker);
    assert_ok(handoff_raw_receive(wire->backend, -1, &token, &fd));
    close(fd);
    assert_receives(wire, -1, HANDOFF_ERR_END_OF_STREAM);
}

static void message_is_received_from_a_peer_that_closed_with_bytes_unread(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token token;
    int fd;
    assert_ok(handoff_raw_token_send(wire->backend, &wire->token));
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    close_end(&wire->broker);
    assert_ok(handoff_raw_receive(wire->backend, 0, &token, &fd));
    assert_same_socket(fd, wire->connection);
    close(fd);
    assert_receives(wire, 0, HANDOFF_ERR_END_OF_STREAM);
}

static void message_of_which_only_a_part_came_is_of_the_wrong_length(void **state)
{
    struct wire *wire = *state;
    for (size_t len = 1; len < HANDOFF_RAW_TOKEN_LEN; len++) {
        send_raw(wire->broker, wire->token.bytes, len, &wire->connection, 1);
        assert_receives(wire, 0, HANDOFF_ERR_WRONG_LENGTH);
    }
    send_raw(wire->broker, wire->token.bytes, 7, &wire->connection, 1);
    close_end(&wire->broker);
    assert_receives(wire, -1, HANDOFF_ERR_WRONG_LENGTH);
    assert_client_sees_end(wire);
}

/* A flag that asks for the length of a whole packet makes TCP throw the bytes away, tcp(7). */
static void what_is_received_over_tcp_by_mistake_is_what_was_sent(void **state)
{
    struct wire *wire = *state;
    unsigned char sent[20];
    handoff_raw_token token;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    memcpy(sent, wire->token.bytes, HANDOFF_RAW_TOKEN_LEN);
    memcpy(sent + HANDOFF_RAW_TOKEN_LEN, "\1\0\0", 4);
    assert_int_equal(write(wire->client, sent, HANDOFF_RAW_TOKEN_LEN), HANDOFF_RAW_TOKEN_LEN);
    assert_ok(handoff_raw_token_receive(wire->connection, PATIENCE_MS, &token));
    assert_true(handoff_raw_token_equal(&token, &wire->token));
    assert_int_equal(write(wire->client, sent, sizeof sent), sizeof sent);
    assert_ok(handoff_raw_ack_wait(wire->connection, &wire->token, PATIENCE_MS, &ack));
    assert_int_equal(ack.outcome, HANDOFF_ADOPTED);
}

static void token_split_over_two_writes_is_never_put_together(void **state)
{
    struct wire *wire = *state;
    send_raw(wire->broker, wire->token.bytes, 7, &wire->connection, 1);
    assert_receives(wire, 0, HANDOFF_ERR_WRONG_LENGTH);
    send_raw(wire->broker, wire->token.bytes + 7, HANDOFF_RAW_TOKEN_LEN - 7, NULL, 0);
    assert_receives(wire, 0, HANDOFF_ERR_NO_DESCRIPTOR);
    assert_client_sees_end(wire);
}

static void packet_longer_than_a_token_is_of_the_wrong_length(void **state)
{
    struct wire *wire = *state;
    char bytes[HANDOFF_RAW_TOKEN_LEN + 1] = {0};
    send_raw(wire->broker, bytes, sizeof bytes, &wire->connection, 1);
    assert_receives(wire, 0, HANDOFF_ERR_WRONG_LENGTH);
    assert_client_sees_end(wire);
}

static void empty_packet_with_a_descriptor_is_of_the_wrong_length(void **state)
{
    struct wire *wire = *state;
    send_raw(wire->broker, "", 0, &wire->connection, 1);
    assert_receives(wire, 0, HANDOFF_ERR_WRONG_LENGTH);
    assert_client_sees_end(wire);
}

/* On a stream the bytes in front take part in the token, so it is no token that anybody knows. */
static void plain_bytes_in_front_of_a_message_are_not_taken_for_it(void **state)
{
    struct wire *wire = *state;
    handoff_status expected =
        wire->type == SOCK_STREAM ? HANDOFF_ERR_TOKEN_NOT_PENDING : HANDOFF_ERR_NO_DESCRIPTOR;
    handoff_raw_token token = {{42}};
    int fd = -7;
    send_raw(wire->broker, "GET ", 4, NULL, 0);
    send_raw(wire->broker, wire->token.bytes, HANDOFF_RAW_TOKEN_LEN, &wire->connection, 1);
    assert_status(handoff_raw_receive_verified(wire->backend, wire->store, NULL, 0, &token, &fd),
                  expected);
    assert_int_equal(fd, -7);
    assert_int_equal(token.bytes[0], 42);
    close_end(&wire->backend);
    assert_client_sees_end(wire);
}

static void message_without_a_descriptor_is_refused(void **state)
{
    struct wire *wire = *state;
    send_raw(wire->broker, wire->token.bytes, HANDOFF_RAW_TOKEN_LEN, NULL, 0);
    assert_receives(wire, 0, HANDOFF_ERR_NO_DESCRIPTOR);
}

static void assert_surplus_is_refused(struct wire *wire, size_t count)
{
    int fds[253];
    for (size_t i = 0; i < count; i++)
        fds[i] = wire->connection;
    send_raw(wire->broker, wire->token.bytes, HANDOFF_RAW_TOKEN_LEN, fds, count);
    assert_receives(wire, 0, HANDOFF_ERR_SURPLUS_DESCRIPTORS);
    assert_client_sees_end(wire);
}

static void message_with_two_descriptors_is_refused_and_both_are_closed(void **state)
{
    assert_surplus_is_refused(*state, 2);
}

static void message_with_three_descriptors_is_refused_and_all_are_closed(void **state)
{
    assert_surplus_is_refused(*state, 3);
}

static void message_with_253_descriptors_is_refused_and_all_are_closed(void **state)
{
    assert_surplus_is_refused(*state, 253);
}

static void receive_refuses_bad_arguments_and_takes_nothing(void **state)
{
    struct wire *wire = *state;
    int files[2], received = -7;
    handoff_raw_token token = {{42}};
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    assert_int_equal(pipe2(files, O_CLOEXEC), 0);
    close(files[1]);
    const struct {
        int socket, *fd;
        handoff_raw_token *token;
        int error;
    } bad[] = {
        {-1, &received, &token, 0},
        {wire->backend, &received, NULL, 0},
        {wire->backend, NULL, &token, 0},
        {wire->backend, misaligned(), &token, 0},
        {files[1], &received, &token, EBADF},
        {files[0], &received, &token, ENOTSOCK},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        for (int timeout_ms = -1; timeout_ms <= 1; timeout_ms++) {
            errno = ERANGE;
            assert_status(handoff_raw_receive(bad[i].socket, timeout_ms, bad[i].token, bad[i].fd),
                          HANDOFF_ERR_INVALID_ARGUMENT);
            assert_int_equal(errno, bad[i].error);
        }
    }
    assert_int_equal(token.bytes[0], 42);
    assert_int_equal(received, -7);
    assert_ok(handoff_raw_receive(wire->backend, 0, &token, &received));
    close(received);
    close(files[0]);
}

/* ---- with verification ----------------------------------------------------------------------- */

/* Sends a message with this token and expects it to be refused, and its descriptor closed. */
static void assert_token_refused(struct wire *wire, const handoff_raw_token *sent,
                                 const handoff_raw_token *expected, handoff_status status)
{
    handoff_raw_token token = {{42}};
    int fd = -7;
    assert_ok(handoff_raw_send(wire->broker, wire->connection, sent));
    assert_status(
        handoff_raw_receive_verified(wire->backend, wire->store, expected, 0, &token, &fd), status);
    assert_int_equal(errno, 0);
    assert_int_equal(fd, -7);
    assert_int_equal(token.bytes[0], 42);
    assert_client_sees_end(wire);
}

static void pending_token_brings_its_descriptor_and_is_consumed(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token token;
    int fd;
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    assert_ok(handoff_raw_receive_verified(wire->backend, wire->store, NULL, 0, &token, &fd));
    assert_true(handoff_raw_token_equal(&token, &wire->token));
    assert_same_socket(fd, wire->connection);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    assert_int_equal(handoff_raw_store_length(wire->store), 0);
    close(fd);
}

static void expected_token_brings_its_descriptor(void **state)
{
    struct wire *wire = *state;
    int fd;
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    assert_ok(handoff_raw_receive_verified(wire->backend, wire->store, &wire->token, 0, NULL, &fd));
    assert_same_socket(fd, wire->connection);
    assert_int_equal(handoff_raw_store_length(wire->store), 0);
    close(fd);
}

static void replayed_token_is_refused_and_closes_the_descriptor(void **state)
{
    struct wire *wire = *state;
    assert_ok(handoff_raw_store_redeem(wire->store, &wire->token));
    assert_token_refused(wire, &wire->token, NULL, HANDOFF_ERR_TOKEN_NOT_PENDING);
}

static void replayed_token_is_refused_also_where_it_is_expected(void **state)
{
    struct wire *wire = *state;
    assert_ok(handoff_raw_store_redeem(wire->store, &wire->token));
    assert_token_refused(wire, &wire->token, &wire->token, HANDOFF_ERR_TOKEN_NOT_PENDING);
}

static void unknown_token_is_refused_and_consumes_none(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token unknown;
    assert_ok(handoff_raw_token_generate(&unknown));
    assert_token_refused(wire, &unknown, NULL, HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_int_equal(handoff_raw_store_length(wire->store), 1);
}

static void token_other_than_expected_is_a_mismatch_and_consumes_neither(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token other;
    assert_ok(handoff_raw_store_issue(wire->store, &other));
    assert_token_refused(wire, &other, &wire->token, HANDOFF_ERR_TOKEN_MISMATCH);
    assert_int_equal(handoff_raw_store_length(wire->store), 2);
}

static void expired_token_is_refused_and_closes_the_descriptor(void **state)
{
    struct wire *wire = *state;
    handoff_raw_store_options options = HANDOFF_RAW_STORE_OPTIONS_INIT;
    options.lifetime_ms = 1;
    handoff_raw_store_free(wire->store);
    assert_ok(handoff_raw_store_new(&options, &wire->store));
    assert_ok(handoff_raw_store_insert(wire->store, &wire->token));
    sleep_until(now_ns(), 1);
    assert_token_refused(wire, &wire->token, NULL, HANDOFF_ERR_TOKEN_EXPIRED);
    assert_int_equal(handoff_raw_store_length(wire->store), 0);
}

static void verified_receive_reports_what_receive_does(void **state)
{
    struct wire *wire = *state;
    int fd = -7;
    assert_status(handoff_raw_receive_verified(wire->backend, wire->store, NULL, 1, NULL, &fd),
                  HANDOFF_TIMED_OUT);
    send_raw(wire->broker, wire->token.bytes, HANDOFF_RAW_TOKEN_LEN, NULL, 0);
    assert_status(handoff_raw_receive_verified(wire->backend, wire->store, NULL, 1, NULL, &fd),
                  HANDOFF_ERR_NO_DESCRIPTOR);
    close_end(&wire->broker);
    assert_status(handoff_raw_receive_verified(wire->backend, wire->store, NULL, -1, NULL, &fd),
                  HANDOFF_ERR_END_OF_STREAM);
    assert_int_equal(fd, -7);
    assert_int_equal(handoff_raw_store_length(wire->store), 1);
}

static void verified_receive_refuses_bad_arguments_and_takes_nothing(void **state)
{
    struct wire *wire = *state;
    int received = -7;
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    const struct {
        int socket, *fd;
        handoff_raw_store *store;
    } bad[] = {
        {-1, &received, wire->store},
        {lowest_free_descriptor(), &received, wire->store},
        {wire->backend, &received, NULL},
        {wire->backend, &received, misaligned()},
        {wire->backend, NULL, wire->store},
        {wire->backend, misaligned(), wire->store},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_status(
            handoff_raw_receive_verified(bad[i].socket, bad[i].store, NULL, 0, NULL, bad[i].fd),
            HANDOFF_ERR_INVALID_ARGUMENT);
    assert_int_equal(received, -7);
    assert_ok(handoff_raw_receive_verified(wire->backend, wire->store, NULL, 0, NULL, &received));
    close(received);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WIRE_TEST(received_descriptor_is_close_on_exec),
        WIRE_TEST(messages_queued_back_to_back_keep_their_own_descriptors),
        WIRE_TEST(credentials_that_come_with_the_message_do_no_harm),
        WIRE_TEST(nothing_to_receive_is_told_at_once),
        WIRE_TEST(deadline_holds_while_signals_interrupt_the_wait),
        WIRE_TEST(wait_without_limit_goes_on_after_signals),
        WIRE_TEST(closed_peer_is_the_end_of_the_stream),
        WIRE_TEST(message_is_received_from_a_peer_that_closed_after_it),
        WIRE_TEST(message_is_received_from_a_peer_that_closed_with_bytes_unread),
        WIRE_TEST(message_of_which_only_a_part_came_is_of_the_wrong_length),
        STREAM_TEST(what_is_received_over_tcp_by_mistake_is_what_was_sent),
        WIRE_TEST(token_split_over_two_writes_is_never_put_together),
        SEQPACKET_TEST(packet_longer_than_a_token_is_of_the_wrong_length),
        SEQPACKET_TEST(empty_packet_with_a_descriptor_is_of_the_wrong_length),
        WIRE_TEST(plain_bytes_in_front_of_a_message_are_not_taken_for_it),
        WIRE_TEST(message_without_a_descriptor_is_refused),
        WIRE_TEST(message_with_two_descriptors_is_refused_and_both_are_closed),
        WIRE_TEST(message_with_three_descriptors_is_refused_and_all_are_closed),
        WIRE_TEST(message_with_253_descriptors_is_refused_and_all_are_closed),
        WIRE_TEST(receive_refuses_bad_arguments_and_takes_nothing),
        WIRE_TEST(pending_token_brings_its_descriptor_and_is_consumed),
        WIRE_TEST(expected_token_brings_its_descriptor),
        WIRE_TEST(replayed_token_is_refused_and_closes_the_descriptor),
        WIRE_TEST(replayed_token_is_refused_also_where_it_is_expected),
        WIRE_TEST(unknown_token_is_refused_and_consumes_none),
        WIRE_TEST(token_other_than_expected_is_a_mismatch_and_consumes_neither),
        WIRE_TEST(expired_token_is_refused_and_closes_the_descriptor),
        WIRE_TEST(verified_receive_reports_what_receive_does),
        WIRE_TEST(verified_receive_refuses_bad_arguments_and_takes_nothing),
    };
    return RUN_TESTS(tests);
}
