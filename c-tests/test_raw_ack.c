/* Acknowledgements: the backend's answer, and the broker's wait for it. */
#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

#define ACK_LEN 20

/* Bytes as docs/protocol.md has them: the token, accepted 1 or rejected 2, the reason, zeros. */
static void make_ack(unsigned char bytes[ACK_LEN], const handoff_raw_token *token, int kind,
                     int reason)
{
    memset(bytes, 0, ACK_LEN);
    memcpy(bytes, token->bytes, HANDOFF_RAW_TOKEN_LEN);
    bytes[16] = (unsigned char)kind;
    bytes[17] = (unsigned char)reason;
}

/* One to be overwritten, or not. */
static handoff_raw_ack any_ack(void)
{
    handoff_raw_ack ack;
    memset(&ack, 42, sizeof ack);
    ack.size = sizeof ack;
    return ack;
}

/* Waits for the acknowledgement of the wire's token and expects an error, which ends the
 * connection for acknowledgements and gives nothing out. */
#define assert_wait_fails(wire, timeout, expected) \
    check_wait_fails((wire), (timeout), (expected), __FILE__, __LINE__)

static void check_wait_fails(const struct wire *wire, uint64_t timeout_ms,
                             handoff_status expected, const char *file, int line)
{
    handoff_raw_ack ack = any_ack(), untouched = ack;
    assert_status_at(handoff_raw_ack_wait(wire->broker, &wire->token, timeout_ms, &ack), expected,
                     file, line);
    assert_memory_equal(&ack, &untouched, sizeof ack);
    assert_true(strlen(handoff_last_error()) > 0);
}

static void assert_accept_fails(const struct wire *wire)
{
    assert_status(handoff_raw_ack_accept(wire->backend, &wire->token), HANDOFF_ERR_END_OF_STREAM);
    assert_int_equal(errno, EPIPE);
}

static void reopen(struct wire *wire)
{
    int pair[2];
    close_end(&wire->broker);
    close_end(&wire->backend);
    make_pair(wire->type, pair);
    wire->broker = pair[0];
    wire->backend = pair[1];
}

static void acceptance_reaches_the_broker(void **state)
{
    struct wire *wire = *state;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    assert_ok(handoff_raw_ack_accept(wire->backend, &wire->token));
    assert_ok(handoff_raw_ack_wait(wire->broker, &wire->token, PATIENCE_MS, &ack));
    assert_true(handoff_raw_token_equal(&ack.token, &wire->token));
    assert_int_equal(ack.outcome, HANDOFF_ADOPTED);
    assert_int_equal(ack.reason, HANDOFF_REASON_NONE);
    /* The connection is good for the next message. */
    assert_ok(handoff_raw_ack_accept(wire->backend, &wire->token));
    assert_ok(handoff_raw_ack_wait(wire->broker, &wire->token, HANDOFF_NO_TIMEOUT, &ack));
}

static void rejection_reaches_the_broker_with_every_reason(void **state)
{
    struct wire *wire = *state;
    for (handoff_reason reason = HANDOFF_REASON_CLIENT_UNSUPPORTED;
         reason <= HANDOFF_REASON_KIND; reason++) {
        handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
        assert_ok(handoff_raw_ack_reject(wire->backend, &wire->token, reason));
        assert_ok(handoff_raw_ack_wait(wire->broker, &wire->token, PATIENCE_MS, &ack));
        assert_true(handoff_raw_token_equal(&ack.token, &wire->token));
        assert_int_equal(ack.outcome, HANDOFF_FALLBACK);
        assert_int_equal(ack.reason, reason);
    }
}

static void acknowledgement_is_these_twenty_bytes(void **state)
{
    struct wire *wire = *state;
    unsigned char bytes[64], expected[ACK_LEN];
    make_ack(expected, &wire->token, 1, 0);
    assert_ok(handoff_raw_ack_accept(wire->backend, &wire->token));
    assert_int_equal(recv(wire->broker, bytes, sizeof bytes, MSG_DONTWAIT), ACK_LEN);
    assert_memory_equal(bytes, expected, ACK_LEN);
    make_ack(expected, &wire->token, 2, HANDOFF_REASON_REJECTED);
    assert_ok(handoff_raw_ack_reject(wire->backend, &wire->token, HANDOFF_REASON_REJECTED));
    assert_int_equal(recv(wire->broker, bytes, sizeof bytes, MSG_DONTWAIT), ACK_LEN);
    assert_memory_equal(bytes, expected, ACK_LEN);
}

static void rejection_for_a_reason_of_a_later_version_is_a_rejection(void **state)
{
    struct wire *wire = *state;
    unsigned char bytes[ACK_LEN];
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    make_ack(bytes, &wire->token, 2, 200);
    send_raw(wire->backend, bytes, sizeof bytes, NULL, 0);
    assert_ok(handoff_raw_ack_wait(wire->broker, &wire->token, PATIENCE_MS, &ack));
    assert_int_equal(ack.outcome, HANDOFF_FALLBACK);
    assert_int_equal(ack.reason, HANDOFF_REASON_REJECTED);
}

/* ---- taking what has arrived ----------------------------------------------------------------- */

static void acknowledgements_are_taken_in_their_order(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token second;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    assert_ok(handoff_raw_token_generate(&second));
    assert_ok(handoff_raw_ack_accept(wire->backend, &wire->token));
    assert_ok(handoff_raw_ack_reject(wire->backend, &second, HANDOFF_REASON_BACKEND_BUSY));
    assert_ok(handoff_raw_ack_receive(wire->broker, &ack));
    assert_true(handoff_raw_token_equal(&ack.token, &wire->token));
    assert_int_equal(ack.outcome, HANDOFF_ADOPTED);
    assert_ok(handoff_raw_ack_receive(wire->broker, &ack));
    assert_true(handoff_raw_token_equal(&ack.token, &second));
    assert_int_equal(ack.outcome, HANDOFF_FALLBACK);
    assert_int_equal(ack.reason, HANDOFF_REASON_BACKEND_BUSY);
}

static void receive_without_an_acknowledgement_says_nothing_at_once(void **state)
{
    struct wire *wire = *state;
    handoff_raw_ack ack = any_ack(), untouched = ack;
    assert_status(handoff_raw_ack_receive(wire->broker, &ack), HANDOFF_NOTHING);
    assert_int_equal(fcntl(wire->broker, F_SETFL, O_RDWR | O_NONBLOCK), 0);
    assert_status(handoff_raw_ack_receive(wire->broker, &ack), HANDOFF_NOTHING);
    assert_memory_equal(&ack, &untouched, sizeof ack);
}

static void receive_after_the_backend_closed_is_the_end_of_the_stream(void **state)
{
    struct wire *wire = *state;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    assert_ok(handoff_raw_ack_accept(wire->backend, &wire->token));
    close_end(&wire->backend);
    assert_ok(handoff_raw_ack_receive(wire->broker, &ack));
    assert_status(handoff_raw_ack_receive(wire->broker, &ack), HANDOFF_ERR_END_OF_STREAM);
}

static void descriptor_that_comes_with_an_acknowledgement_is_dropped(void **state)
{
    struct wire *wire = *state;
    unsigned char bytes[ACK_LEN];
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    make_ack(bytes, &wire->token, 1, 0);
    send_raw(wire->backend, bytes, sizeof bytes, &wire->connection, 1);
    assert_ok(handoff_raw_ack_receive(wire->broker, &ack));
    assert_client_sees_end(wire);
}

/* ---- waiting --------------------------------------------------------------------------------- */

static void acknowledgement_that_never_comes_times_out_and_a_late_one_fails(void **state)
{
    struct wire *wire = *state;
    uint64_t start = now_ns();
    assert_wait_fails(wire, 20, HANDOFF_ERR_ACK_TIMEOUT);
    assert_in_range(ms_since(start), 20, PATIENCE_MS);
    assert_accept_fails(wire);
}

static void wait_of_hardly_any_time_still_finds_an_acknowledgement_that_is_there(void **state)
{
    struct wire *wire = *state;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    assert_ok(handoff_raw_ack_accept(wire->backend, &wire->token));
    assert_ok(handoff_raw_ack_wait(wire->broker, &wire->token, 1, &ack));
    assert_wait_fails(wire, 1, HANDOFF_ERR_ACK_TIMEOUT);
}

static void wait_of_0_is_five_seconds(void **state)
{
    struct wire *wire = *state;
    uint64_t start = now_ns();
    assert_wait_fails(wire, 0, HANDOFF_ERR_ACK_TIMEOUT);
    assert_in_range(ms_since(start), 5000, PATIENCE_MS);
}

/* Stands before the system's for the library, too: with a wire here its message is acknowledged
 * between the end of a wait and the closing, which otherwise no test could time. */
static const struct wire *acknowledge_before_shutdown;

int shutdown(int socket, int how)
{
    if (acknowledge_before_shutdown != NULL)
        assert_ok(handoff_raw_ack_accept(acknowledge_before_shutdown->backend,
                                         &acknowledge_before_shutdown->token));
    acknowledge_before_shutdown = NULL;
    return (int)syscall(SYS_shutdown, socket, how);
}

static void acknowledgement_between_the_deadline_and_the_closing_is_found(void **state)
{
    struct wire *wire = *state;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    acknowledge_before_shutdown = wire;
    assert_ok(handoff_raw_ack_wait(wire->broker, &wire->token, 1, &ack));
    assert_null(acknowledge_before_shutdown);
    assert_int_equal(ack.outcome, HANDOFF_ADOPTED);
}

/* A wait that began anew after each signal would never end. */
static void deadline_holds_while_signals_interrupt_the_wait(void **state)
{
    struct wire *wire = *state;
    uint64_t start, timeout_ms = 20;
    start_interrupting();
    do {
        timeout_ms *= 2;
        interruptions = 0;
        start = now_ns();
        assert_wait_fails(wire, timeout_ms, HANDOFF_ERR_ACK_TIMEOUT);
        assert_in_range(ms_since(start), timeout_ms, PATIENCE_MS);
        reopen(wire);
    } while (interruptions < 5);
}

static void wait_without_timeout_goes_on_after_signals(void **state)
{
    struct wire *wire = *state;
    int ticks[2];
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    assert_int_equal(pipe2(ticks, O_CLOEXEC), 0);
    pid_t child = start_child();
    if (child == 0) {
        char tick;
        for (int i = 0; i < 5; i++)
            child_assert(read(ticks[0], &tick, 1) == 1);
        child_assert(handoff_raw_ack_accept(wire->backend, &wire->token) == HANDOFF_OK);
        _exit(0);
    }
    interruptions_pipe = ticks[1];
    start_interrupting();
    assert_ok(handoff_raw_ack_wait(wire->broker, &wire->token, HANDOFF_NO_TIMEOUT, &ack));
    stop_interrupting();
    assert_int_equal(ack.outcome, HANDOFF_ADOPTED);
    assert_child_succeeds(child);
    close(ticks[0]);
    close(ticks[1]);
}

static void backend_that_closes_without_acknowledging_ends_the_wait(void **state)
{
    struct wire *wire = *state;
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    close_end(&wire->backend);
    assert_wait_fails(wire, HANDOFF_NO_TIMEOUT, HANDOFF_ERR_END_OF_STREAM);
    assert_wait_fails(wire, PATIENCE_MS, HANDOFF_ERR_END_OF_STREAM);
    assert_client_sees_end(wire);
}

/* For the message that it leaves unread the kernel reports ECONNRESET, on packets even before the
 * acknowledgement. */
static void acknowledgement_is_found_after_the_backend_closed_with_a_message_unread(void **state)
{
    struct wire *wire = *state;
    static const uint64_t timeouts[] = {HANDOFF_NO_TIMEOUT, 0, 1};
    for (int i = 0; i < 3; i++) {
        int pair[2];
        handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
        make_pair(wire->type, pair);
        assert_ok(handoff_raw_send(pair[0], wire->connection, &wire->token));
        assert_ok(handoff_raw_ack_accept(pair[1], &wire->token));
        close(pair[1]);
        assert_ok(handoff_raw_ack_wait(pair[0], &wire->token, timeouts[i], &ack));
        assert_int_equal(ack.outcome, HANDOFF_ADOPTED);
        close(pair[0]);
    }
}

static void second_acknowledgement_of_a_message_is_for_no_other(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token next;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    assert_ok(handoff_raw_token_generate(&next));
    assert_ok(handoff_raw_ack_accept(wire->backend, &wire->token));
    assert_ok(handoff_raw_ack_accept(wire->backend, &wire->token));
    assert_ok(handoff_raw_ack_wait(wire->broker, &wire->token, PATIENCE_MS, &ack));
    assert_status(handoff_raw_ack_wait(wire->broker, &next, PATIENCE_MS, &ack),
                  HANDOFF_ERR_ACK_MISMATCH);
    assert_accept_fails(wire);
}

static void acknowledgement_of_another_message_is_a_mismatch(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token other;
    assert_ok(handoff_raw_token_generate(&other));
    assert_ok(handoff_raw_ack_accept(wire->backend, &other));
    assert_wait_fails(wire, PATIENCE_MS, HANDOFF_ERR_ACK_MISMATCH);
    assert_accept_fails(wire);
}

static void acknowledgement_behind_another_messages_is_found(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token other;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    assert_ok(handoff_raw_token_generate(&other));
    assert_ok(handoff_raw_ack_accept(wire->backend, &other));
    assert_ok(handoff_raw_ack_accept(wire->backend, &wire->token));
    assert_ok(handoff_raw_ack_wait(wire->broker, &wire->token, PATIENCE_MS, &ack));
    assert_int_equal(ack.outcome, HANDOFF_ADOPTED);
}

static void acknowledgement_behind_a_malformed_one_is_found(void **state)
{
    struct wire *wire = *state;
    unsigned char bytes[ACK_LEN];
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    make_ack(bytes, &wire->token, 7, 0);
    send_raw(wire->backend, bytes, sizeof bytes, NULL, 0);
    assert_ok(handoff_raw_ack_accept(wire->backend, &wire->token));
    assert_ok(handoff_raw_ack_wait(wire->broker, &wire->token, PATIENCE_MS, &ack));
    assert_int_equal(ack.outcome, HANDOFF_ADOPTED);
}

/* To tell an empty packet from the end takes an option of the broker's socket. */
static void acknowledgement_behind_an_empty_packet_is_found_and_no_option_changed(void **state)
{
    struct wire *wire = *state;
    for (int option = 0; option < 2; option++) {
        int found = -1;
        socklen_t len = sizeof found;
        handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
        assert_int_equal(setsockopt(wire->broker, SOL_SOCKET, SO_PASSCRED, &option, len), 0);
        send_raw(wire->backend, "", 0, NULL, 0);
        assert_status(handoff_raw_ack_receive(wire->broker, &ack), HANDOFF_ERR_ACK_MALFORMED);
        send_raw(wire->backend, "", 0, NULL, 0);
        assert_ok(handoff_raw_ack_accept(wire->backend, &wire->token));
        assert_ok(handoff_raw_ack_receive(wire->broker, &ack));
        assert_int_equal(getsockopt(wire->broker, SOL_SOCKET, SO_PASSCRED, &found, &len), 0);
        assert_int_equal(found, option);
    }
}

/* Sends these bytes as the acknowledgement, and expects both ways of taking it to refuse them. */
static void assert_malformed(const struct wire *wire, const void *bytes, size_t len)
{
    struct wire fresh = *wire;
    int pair[2];
    handoff_raw_ack ack = any_ack(), untouched = ack;
    make_pair(wire->type, pair);
    fresh.broker = pair[0];
    fresh.backend = pair[1];
    send_raw(fresh.backend, bytes, len, NULL, 0);
    assert_status(handoff_raw_ack_receive(fresh.broker, &ack), HANDOFF_ERR_ACK_MALFORMED);
    assert_memory_equal(&ack, &untouched, sizeof ack);
    send_raw(fresh.backend, bytes, len, NULL, 0);
    assert_wait_fails(&fresh, PATIENCE_MS, HANDOFF_ERR_ACK_MALFORMED);
    assert_accept_fails(&fresh);
    close(fresh.broker);
    close(fresh.backend);
}

static void acknowledgement_of_any_shorter_length_is_malformed(void **state)
{
    struct wire *wire = *state;
    unsigned char bytes[ACK_LEN];
    make_ack(bytes, &wire->token, 1, 0);
    for (size_t len = 1; len < ACK_LEN; len++)
        assert_malformed(wire, bytes, len);
}

static void packet_longer_than_an_acknowledgement_is_malformed(void **state)
{
    struct wire *wire = *state;
    unsigned char bytes[ACK_LEN + 1] = {0};
    make_ack(bytes, &wire->token, 1, 0);
    assert_malformed(wire, bytes, sizeof bytes);
}

static void acknowledgement_of_unknown_content_is_malformed(void **state)
{
    struct wire *wire = *state;
    const unsigned char unknown[][4] = {{0, 0, 0, 0}, {3, 0, 0, 0}, {255, 0, 0, 0}, {1, 1, 0, 0},
                                        {1, 0, 1, 0}, {1, 0, 0, 1}, {2, 11, 1, 0}, {2, 11, 0, 1}};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        unsigned char bytes[ACK_LEN];
        make_ack(bytes, &wire->token, 0, 0);
        memcpy(bytes + HANDOFF_RAW_TOKEN_LEN, unknown[i], 4);
        assert_malformed(wire, bytes, sizeof bytes);
    }
}

/* ---- taking back ----------------------------------------------------------------------------- */

static void message_taken_back_gives_what_came_before_and_no_more(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token early;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    assert_ok(handoff_raw_token_generate(&early));
    assert_ok(handoff_raw_ack_accept(wire->backend, &early));
    assert_ok(handoff_raw_take_back(wire->broker));
    assert_accept_fails(wire);
    assert_status(handoff_raw_ack_reject(wire->backend, &wire->token, HANDOFF_REASON_REJECTED),
                  HANDOFF_ERR_END_OF_STREAM);
    assert_ok(handoff_raw_ack_receive(wire->broker, &ack));
    assert_true(handoff_raw_token_equal(&ack.token, &early));
    assert_status(handoff_raw_ack_receive(wire->broker, &ack), HANDOFF_ERR_END_OF_STREAM);
    assert_ok(handoff_raw_take_back(wire->broker));
}

static void acknowledging_to_a_broker_that_is_gone_fails_without_sigpipe(void **state)
{
    struct wire *wire = *state;
    close_end(&wire->broker);
    pid_t child = start_child();
    if (child == 0) {
        signal(SIGPIPE, SIG_DFL);
        child_assert(handoff_raw_ack_accept(wire->backend, &wire->token) ==
                     HANDOFF_ERR_END_OF_STREAM);
        child_assert(handoff_raw_ack_reject(wire->backend, &wire->token, HANDOFF_REASON_REJECTED) ==
                     HANDOFF_ERR_END_OF_STREAM);
        _exit(0);
    }
    assert_child_succeeds(child);
}

static void acknowledging_to_a_broker_that_does_not_read_would_block(void **state)
{
    struct wire *wire = *state;
    handoff_status status;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    int sent = 0, received = 0;
    while ((status = handoff_raw_ack_accept(wire->backend, &wire->token)) == HANDOFF_OK)
        sent++;
    assert_status(status, HANDOFF_ERR_WOULD_BLOCK);
    assert_int_equal(errno, EAGAIN);
    assert_status(handoff_raw_ack_reject(wire->backend, &wire->token, HANDOFF_REASON_REJECTED),
                  HANDOFF_ERR_WOULD_BLOCK);
    while ((status = handoff_raw_ack_receive(wire->broker, &ack)) == HANDOFF_OK)
        received++;
    assert_status(status, HANDOFF_NOTHING);
    assert_int_equal(received, sent);
}

/* ---- arguments ------------------------------------------------------------------------------- */

static void bad_arguments_are_refused_and_send_nothing(void **state)
{
    struct wire *wire = *state;
    const handoff_raw_token *token = &wire->token;
    const handoff_status bad = HANDOFF_ERR_INVALID_ARGUMENT;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    int files[2];
    assert_int_equal(pipe2(files, O_CLOEXEC), 0);
    close(files[1]);
    /* Not open, and open but no socket. */
    for (int i = 0; i < 2; i++) {
        int fd = i == 0 ? files[1] : files[0], error = i == 0 ? EBADF : ENOTSOCK;
        assert_status(handoff_raw_ack_accept(fd, token), bad);
        assert_int_equal(errno, error);
        assert_status(handoff_raw_ack_reject(fd, token, HANDOFF_REASON_REJECTED), bad);
        assert_int_equal(errno, error);
        assert_status(handoff_raw_ack_receive(fd, &ack), bad);
        assert_int_equal(errno, error);
        assert_status(handoff_raw_take_back(fd), bad);
        assert_int_equal(errno, error);
        assert_status(handoff_raw_ack_wait(fd, token, 1, &ack), bad);
        assert_int_equal(errno, error);
        assert_status(handoff_raw_ack_wait(fd, token, HANDOFF_NO_TIMEOUT, &ack), bad);
        assert_int_equal(errno, error);
    }
    assert_status(handoff_raw_ack_accept(-1, token), bad);
    assert_int_equal(errno, 0);
    assert_status(handoff_raw_ack_accept(wire->backend, NULL), bad);
    assert_status(handoff_raw_ack_reject(-1, token, HANDOFF_REASON_REJECTED), bad);
    assert_status(handoff_raw_ack_reject(wire->backend, NULL, HANDOFF_REASON_REJECTED), bad);
    assert_status(handoff_raw_ack_reject(wire->backend, token, HANDOFF_REASON_NONE), bad);
    assert_status(handoff_raw_ack_reject(wire->backend, token, HANDOFF_REASON_TOO_MANY_CHANNELS + 1),
                  bad);
    assert_status(handoff_raw_ack_reject(wire->backend, token, UINT32_MAX), bad);
    assert_nothing_to_read(wire->broker);
    assert_status(handoff_raw_ack_receive(-1, &ack), bad);
    assert_status(handoff_raw_ack_receive(wire->broker, NULL), bad);
    assert_status(handoff_raw_ack_receive(wire->broker, misaligned()), bad);
    assert_status(handoff_raw_take_back(-1), bad);
    assert_status(handoff_raw_ack_wait(-1, token, 1, &ack), bad);
    assert_status(handoff_raw_ack_wait(wire->broker, NULL, 1, &ack), bad);
    assert_status(handoff_raw_ack_wait(wire->broker, token, 1, NULL), bad);
    assert_status(handoff_raw_ack_wait(wire->broker, token, 1, misaligned()), bad);
    /* None of them has taken the message back. */
    assert_ok(handoff_raw_ack_accept(wire->backend, token));
    close(files[0]);
}

/* It is no socket to wait at, and poll(2) says each time that there is something. */
static void wait_at_datagrams_that_are_shut_down_times_out(void **state)
{
    struct wire *wire = *state;
    int pair[2];
    handoff_raw_ack ack = any_ack();
    make_pair(SOCK_DGRAM, pair);
    assert_int_equal(shutdown(pair[0], SHUT_RD), 0);
    assert_status(handoff_raw_ack_wait(pair[0], &wire->token, 50, &ack), HANDOFF_ERR_ACK_TIMEOUT);
    close(pair[0]);
    close(pair[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WIRE_TEST(acceptance_reaches_the_broker),
        WIRE_TEST(rejection_reaches_the_broker_with_every_reason),
        WIRE_TEST(acknowledgement_is_these_twenty_bytes),
        WIRE_TEST(rejection_for_a_reason_of_a_later_version_is_a_rejection),
        WIRE_TEST(acknowledgements_are_taken_in_their_order),
        WIRE_TEST(receive_without_an_acknowledgement_says_nothing_at_once),
        WIRE_TEST(receive_after_the_backend_closed_is_the_end_of_the_stream),
        WIRE_TEST(descriptor_that_comes_with_an_acknowledgement_is_dropped),
        WIRE_TEST(acknowledgement_that_never_comes_times_out_and_a_late_one_fails),
        WIRE_TEST(wait_of_hardly_any_time_still_finds_an_acknowledgement_that_is_there),
        STREAM_TEST(wait_of_0_is_five_seconds),
        WIRE_TEST(acknowledgement_between_the_deadline_and_the_closing_is_found),
        WIRE_TEST(deadline_holds_while_signals_interrupt_the_wait),
        WIRE_TEST(wait_without_timeout_goes_on_after_signals),
        WIRE_TEST(backend_that_closes_without_acknowledging_ends_the_wait),
        WIRE_TEST(acknowledgement_is_found_after_the_backend_closed_with_a_message_unread),
        WIRE_TEST(second_acknowledgement_of_a_message_is_for_no_other),
        WIRE_TEST(acknowledgement_of_another_message_is_a_mismatch),
        WIRE_TEST(acknowledgement_behind_another_messages_is_found),
        WIRE_TEST(acknowledgement_behind_a_malformed_one_is_found),
        SEQPACKET_TEST(acknowledgement_behind_an_empty_packet_is_found_and_no_option_changed),
        WIRE_TEST(acknowledgement_of_any_shorter_length_is_malformed),
        SEQPACKET_TEST(packet_longer_than_an_acknowledgement_is_malformed),
        WIRE_TEST(acknowledgement_of_unknown_content_is_malformed),
        WIRE_TEST(message_taken_back_gives_what_came_before_and_no_more),
        WIRE_TEST(acknowledging_to_a_broker_that_is_gone_fails_without_sigpipe),
        WIRE_TEST(acknowledging_to_a_broker_that_does_not_read_would_block),
        SEQPACKET_TEST(wait_at_datagrams_that_are_shut_down_times_out),
        WIRE_TEST(bad_arguments_are_refused_and_send_nothing),
    };
    return RUN_TESTS(tests);
}
