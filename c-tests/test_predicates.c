/* What a status says of the client's connection, wherever it comes up: whether it is certainly the
   broker's, and whether its descriptor may have reached the backend. Each test makes a status come up
   and asks the kernel or the backend who has what. */
#define _GNU_SOURCE
#include "channel.h"
#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>

/* ---- system calls that fail once -------------------------------------------------------------- */

/* Each takes the place of the C library's: it fails so often from now on, with this error. */
static int recv_fails, recv_error, poll_fails, epoll_wait_fails, shutdown_fails;

static bool fails(int *times, int error)
{
    if (*times == 0)
        return false;
    --*times;
    errno = error;
    return true;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    if (fails(&recv_fails, recv_error))
        return -1;
    return syscall(SYS_recvmsg, fd, message, flags);
}

int poll(struct pollfd *fds, nfds_t count, int timeout_ms)
{
    if (fails(&poll_fails, ENOMEM))
        return -1;
    struct timespec time = {timeout_ms / 1000, timeout_ms % 1000 * 1000000L};
    return (int)syscall(SYS_ppoll, fds, count, timeout_ms < 0 ? NULL : &time, NULL, 0);
}

int epoll_wait(int fd, struct epoll_event *events, int count, int timeout_ms)
{
    if (fails(&epoll_wait_fails, EBADF))
        return -1;
    return (int)syscall(SYS_epoll_pwait, fd, events, count, timeout_ms, NULL, 0);
}

int shutdown(int fd, int how)
{
    if (fails(&shutdown_fails, ENOBUFS))
        return -1;
    return (int)syscall(SYS_shutdown, fd, how);
}

/* ---- the table -------------------------------------------------------------------------------- */

/* safe: a broker may fall back and say nothing. sent: the descriptor may be with the backend. */
#define SAFE true
#define BUG false /* or not about a connection, or the backend may own it */
#define SENT true
#define NOT_SENT false
#define ROW(status, reason, safe, sent) {status, #status, HANDOFF_REASON_##reason, safe, sent}

static const struct row {
    handoff_status status;
    const char *name;
    handoff_reason reason;
    bool safe, sent;
} rows[] = {
    ROW(HANDOFF_OK, NONE, BUG, SENT),
    ROW(HANDOFF_NOTHING, NONE, BUG, SENT),
    ROW(HANDOFF_TIMED_OUT, NONE, BUG, NOT_SENT),
    ROW(HANDOFF_WOKEN, NONE, BUG, SENT),
    ROW(HANDOFF_ERR_INVALID_ARGUMENT, NONE, BUG, NOT_SENT),
    ROW(HANDOFF_ERR_UNSUPPORTED, UNSUPPORTED_PLATFORM, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_PERMISSION_DENIED, PERMISSION_DENIED, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_BACKEND_UNAVAILABLE, BACKEND_UNAVAILABLE, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_WOULD_BLOCK, BACKEND_BUSY, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_DESCRIPTOR_PRESSURE, DESCRIPTOR_PRESSURE, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_SEND_FAILED, BACKEND_UNAVAILABLE, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_SHORT_WRITE, INTEGRITY_MISMATCH, SAFE, SENT),
    ROW(HANDOFF_ERR_ACK_TIMEOUT, ACK_TIMEOUT, SAFE, SENT),
    ROW(HANDOFF_ERR_ACK_MISMATCH, INTEGRITY_MISMATCH, SAFE, SENT),
    ROW(HANDOFF_ERR_ACK_MALFORMED, INTEGRITY_MISMATCH, SAFE, SENT),
    ROW(HANDOFF_ERR_RECEIVE_FAILED, BACKEND_UNAVAILABLE, BUG, SENT),
    ROW(HANDOFF_ERR_END_OF_STREAM, BACKEND_UNAVAILABLE, SAFE, SENT),
    ROW(HANDOFF_ERR_NO_DESCRIPTOR, INTEGRITY_MISMATCH, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_SURPLUS_DESCRIPTORS, INTEGRITY_MISMATCH, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_CONTROL_TRUNCATED, DESCRIPTOR_PRESSURE, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_WRONG_LENGTH, INTEGRITY_MISMATCH, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_TOKEN_MISMATCH, INTEGRITY_MISMATCH, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_TOKEN_EXPIRED, INTEGRITY_MISMATCH, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_TOKEN_NOT_PENDING, INTEGRITY_MISMATCH, BUG, SENT),
    ROW(HANDOFF_ERR_TOKEN_ALREADY_PENDING, INTEGRITY_MISMATCH, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_TOKEN_COLLISION, INTEGRITY_MISMATCH, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_FULL, BACKEND_BUSY, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_RANDOM, BACKEND_UNAVAILABLE, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_PEER_UNKNOWN, PERMISSION_DENIED, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_PEER_NOT_ALLOWED, PERMISSION_DENIED, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_ADDRESS_IN_USE, BACKEND_UNAVAILABLE, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_NOT_A_SOCKET, BACKEND_UNAVAILABLE, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_LISTEN_FAILED, BACKEND_UNAVAILABLE, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_INTERNAL, NONE, BUG, SENT),
    ROW(HANDOFF_ERR_RATE_LIMITED, RATE_LIMITED, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_TOO_LARGE, TOO_LARGE, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_WRONG_PROCESS, NONE, BUG, NOT_SENT),
    ROW(HANDOFF_ERR_CLOSED, NONE, BUG, NOT_SENT),
    ROW(HANDOFF_ERR_TAKEN_BACK, NONE, BUG, SENT),
    ROW(HANDOFF_ERR_TOO_LATE, NONE, BUG, SENT),
    ROW(HANDOFF_ERR_SYSTEM, BACKEND_UNAVAILABLE, SAFE, SENT),
    ROW(HANDOFF_ERR_NO_MEMORY, BACKEND_UNAVAILABLE, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_NOT_TLS, CLIENT_UNSUPPORTED, SAFE, NOT_SENT),
    ROW(HANDOFF_ERR_TLS_KEY_UPDATE, NONE, BUG, NOT_SENT),
    ROW(HANDOFF_ERR_TLS_ALERT, NONE, BUG, NOT_SENT),
    ROW(HANDOFF_ERR_TLS_RECORD, NONE, BUG, NOT_SENT),
    ROW(HANDOFF_ERR_TOO_MANY_CHANNELS, TOO_MANY_CHANNELS, SAFE, NOT_SENT),
};

static const struct row *row_of(handoff_status status)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].status == status)
            return &rows[i];
    return NULL;
}

/* Those of handoff_broker_offer() that may pass. */
static bool is_about_the_backends(handoff_status status)
{
    static const handoff_status those[] = {
        HANDOFF_ERR_FULL,
        HANDOFF_ERR_RATE_LIMITED,
        HANDOFF_ERR_BACKEND_UNAVAILABLE,
        HANDOFF_ERR_TOO_MANY_CHANNELS,
        HANDOFF_ERR_WOULD_BLOCK,
        HANDOFF_ERR_PERMISSION_DENIED,
        HANDOFF_ERR_PEER_NOT_ALLOWED,
        HANDOFF_ERR_PEER_UNKNOWN,
        HANDOFF_ERR_DESCRIPTOR_PRESSURE,
    };
    for (size_t i = 0; i < sizeof those / sizeof *those; i++)
        if (those[i] == status)
            return true;
    return false;
}

static void every_status_is_in_the_table_and_says_what_it_does(void **state)
{
    (void)state;
    for (handoff_status status = -1000; status < 1000; status++) {
        const struct row *row = row_of(status);
        bool known = strcmp(handoff_status_name(status), "HANDOFF_ERR_UNKNOWN") != 0;
        assert_int_equal(row != NULL, known);
        assert_int_equal(handoff_status_is_fallback_safe(status), known && row->safe);
        assert_int_equal(handoff_status_may_have_reached_backend(status), !known || row->sent);
        assert_int_equal(handoff_status_reason(status), known ? row->reason : HANDOFF_REASON_NONE);
        assert_int_equal(handoff_status_may_pass(status), is_about_the_backends(status));
        /* What is waited for can be hidden, nothing was sent, and its reason says the same. */
        if (handoff_status_may_pass(status))
            assert_true(row->safe && !row->sent && handoff_reason_may_pass(row->reason));
        /* What may be hidden has a reason. */
        assert_true(!known || !row->safe || row->reason != HANDOFF_REASON_NONE);
    }
}

static void reasons_that_are_about_the_backends_may_pass(void **state)
{
    (void)state;
    static const handoff_reason those[] = {
        HANDOFF_REASON_DESCRIPTOR_PRESSURE, HANDOFF_REASON_RATE_LIMITED,
        HANDOFF_REASON_PERMISSION_DENIED,   HANDOFF_REASON_ACK_TIMEOUT,
        HANDOFF_REASON_BACKEND_UNAVAILABLE, HANDOFF_REASON_BACKEND_BUSY,
        HANDOFF_REASON_TOO_MANY_CHANNELS,
    };
    size_t found = 0;
    for (handoff_reason reason = 0; reason < 1000; reason++) {
        bool is_one = found < sizeof those / sizeof *those && those[found] == reason;
        assert_int_equal(handoff_reason_may_pass(reason), is_one);
        found += is_one;
    }
    assert_int_equal(found, sizeof those / sizeof *those);
    assert_false(handoff_reason_may_pass(UINT32_MAX));
}

/* Asserts what a call returned, and that it is true what that says. */
static void assert_is(handoff_status got, handoff_status expected, bool owned, bool sent,
                      const char *call, int line)
{
    check_status(got, expected, call, __FILE__, line);
    /* Safe only if the connection is the broker's; not sent only if it was not. */
    if ((handoff_status_is_fallback_safe(got) && !owned) ||
        (!handoff_status_may_have_reached_backend(got) && sent)) {
        print_error("%s: %s: safe %d, sent %d\n", call, handoff_status_name(got),
                    handoff_status_is_fallback_safe(got),
                    handoff_status_may_have_reached_backend(got));
        _fail(__FILE__, line);
    }
}

#define OURS true
#define THEIRS false
#define says(call, status, owned, sent) assert_is((call), (status), (owned), (sent), #call, __LINE__)

/* ---- the raw layer ---------------------------------------------------------------------------- */

/* Whether the backend may serve what it was sent: only if its acceptance can be sent. */
static bool backend_serves(const struct wire *wire)
{
    return handoff_raw_ack_accept(wire->backend, &wire->token) == HANDOFF_OK;
}

static void send_over(const struct wire *wire)
{
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
}

static void failed_wait_for_an_acknowledgement_leaves_the_connection_to_the_broker(void **state)
{
    struct wire *wire = *state;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    send_over(wire);
    /* Receiving fails once, and the last look says that nothing came. */
    recv_fails = 1;
    recv_error = ENOMEM;
    says(handoff_raw_ack_wait(wire->broker, &wire->token, HANDOFF_NO_TIMEOUT, &ack),
         HANDOFF_ERR_END_OF_STREAM, OURS, SENT);
    assert_int_equal(errno, ENOMEM);
    assert_int_equal(recv_fails, 0);
    assert_false(backend_serves(wire));
}

static void failed_poll_for_an_acknowledgement_leaves_the_connection_to_the_broker(void **state)
{
    struct wire *wire = *state;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    send_over(wire);
    poll_fails = 1;
    says(handoff_raw_ack_wait(wire->broker, &wire->token, PATIENCE_MS, &ack),
         HANDOFF_ERR_END_OF_STREAM, OURS, SENT);
    assert_int_equal(poll_fails, 0);
    assert_false(backend_serves(wire));
}

static void acknowledgement_that_a_failure_hid_is_found(void **state)
{
    struct wire *wire = *state;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    send_over(wire);
    assert_true(backend_serves(wire));
    recv_fails = 1;
    recv_error = ENOMEM;
    assert_ok(handoff_raw_ack_wait(wire->broker, &wire->token, PATIENCE_MS, &ack));
    assert_int_equal(recv_fails, 0);
    assert_int_equal(ack.outcome, HANDOFF_ADOPTED);
}

static void broker_that_cannot_look_does_not_fall_back(void **state)
{
    struct wire *wire = *state;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    const handoff_status unknown = HANDOFF_ERR_TOO_LATE;
    send_over(wire);
    assert_true(backend_serves(wire));
    recv_error = ENOMEM;
    /* At the first look and at the last one; at the last one, after the deadline. */
    recv_fails = 2;
    says(handoff_raw_ack_wait(wire->broker, &wire->token, PATIENCE_MS, &ack), unknown, THEIRS, SENT);
    recv_fails = 2;
    assert_ok(handoff_raw_attempt(wire->broker, wire->connection, &wire->token, PATIENCE_MS,
                                  &verdict));
    recv_fails = 0;
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    says(verdict.cause, unknown, THEIRS, SENT);
}

static void broker_that_cannot_look_after_the_deadline_does_not_fall_back(void **state)
{
    struct wire *wire = *state;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    send_over(wire);
    recv_error = ENOMEM;
    recv_fails = 1;
    says(handoff_raw_ack_wait(wire->broker, &wire->token, 1, &ack), HANDOFF_ERR_TOO_LATE,
         THEIRS, SENT);
    assert_int_equal(recv_fails, 0);
}

static void broker_that_cannot_take_back_does_not_fall_back(void **state)
{
    struct wire *wire = *state;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    send_over(wire);
    shutdown_fails = 1;
    handoff_status status = handoff_raw_ack_wait(wire->broker, &wire->token, 1, &ack);
    assert_int_equal(shutdown_fails, 0);
    assert_true(backend_serves(wire));
    says(status, HANDOFF_ERR_TOO_LATE, THEIRS, SENT);
    shutdown_fails = 1;
    says(handoff_raw_take_back(wire->broker), HANDOFF_ERR_TOO_LATE, THEIRS, SENT);
    recv_error = ENOMEM;
    recv_fails = 1;
    says(handoff_raw_ack_receive(wire->broker, &ack), HANDOFF_ERR_RECEIVE_FAILED, THEIRS, SENT);
}

static void late_acceptance_is_the_backends(void **state)
{
    struct wire *wire = *state;
    handoff_raw_pending *pending;
    handoff_raw_pending_options options = HANDOFF_RAW_PENDING_OPTIONS_INIT;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    void *user_data = NULL;
    options.timeout_ms = 1;
    assert_ok(handoff_raw_pending_new(wire->store, &options, &pending));
    assert_ok(handoff_raw_pending_register(pending, &wire->token, wire));
    send_over(wire);
    assert_true(backend_serves(wire));
    sleep_until(now_ns(), 2);
    assert_ok(handoff_raw_ack_receive(wire->broker, &ack));
    assert_int_equal(ack.outcome, HANDOFF_ADOPTED);
    assert_ok(handoff_raw_pending_acknowledge(pending, &ack.token, &user_data));
    assert_ptr_equal(user_data, wire);
    /* Nobody is told to fall back. */
    assert_status(handoff_raw_pending_expire(pending, NULL, NULL), HANDOFF_NOTHING);
    says(handoff_raw_pending_acknowledge(pending, &ack.token, NULL), HANDOFF_ERR_TOKEN_NOT_PENDING,
         THEIRS, SENT);
    says(handoff_raw_pending_abandon(pending, &ack.token, NULL), HANDOFF_ERR_TOKEN_NOT_PENDING,
         THEIRS, SENT);
    handoff_raw_pending_free(pending);
}

static void statuses_of_sending_say_what_was_sent(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token token;
    int socket;
    says(handoff_raw_connect("/nonexistent/socket", &socket), HANDOFF_ERR_BACKEND_UNAVAILABLE, OURS,
         NOT_SENT);
    says(handoff_raw_send(wire->broker, -1, &wire->token), HANDOFF_ERR_INVALID_ARGUMENT, OURS,
         NOT_SENT);
    says(handoff_raw_token_receive(wire->broker, 0, &token), HANDOFF_TIMED_OUT, OURS, NOT_SENT);
    int sent = 0;
    handoff_status status;
    while ((status = handoff_raw_send(wire->broker, wire->connection, &wire->token)) == HANDOFF_OK)
        sent++;
    assert_true(sent > 0);
    says(status, HANDOFF_ERR_WOULD_BLOCK, OURS, NOT_SENT);
    says(HANDOFF_OK, HANDOFF_OK, THEIRS, SENT);
    close_end(&wire->backend);
    says(handoff_raw_send(wire->broker, wire->connection, &wire->token),
         HANDOFF_ERR_BACKEND_UNAVAILABLE, OURS, NOT_SENT);
}

/* ---- the channel ------------------------------------------------------------------------------ */

static struct channel channel;
static int client[2];

static void open_both(const handoff_broker_options *options)
{
    open_channel(&channel, options, NULL);
    make_pair(SOCK_STREAM, client);
}

static void close_both(void)
{
    close_channel(&channel);
    close(client[0]);
    close(client[1]);
}

static void offer_that_cannot_be_taken_back_is_not_the_brokers(void **state)
{
    (void)state;
    open_both(NULL);
    uint64_t id = offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
    says(handoff_broker_take_back(channel.broker, id), HANDOFF_ERR_TOO_LATE, THEIRS, SENT);
    assert_adopted(&channel);
    says(handoff_broker_take_back(channel.broker, id), HANDOFF_ERR_TOO_LATE, THEIRS, SENT);
    close_both();
}

static void arrival_that_was_taken_back_is_not_the_backends(void **state)
{
    (void)state;
    int fd = -1;
    open_both(NULL);
    uint64_t id = offer_fd(&channel, client[0]);
    uint64_t arrival = arrival_of(&channel).id;
    assert_ok(handoff_broker_take_back(channel.broker, id));
    says(handoff_backend_adopt(channel.backend, arrival, &fd), HANDOFF_ERR_TAKEN_BACK, OURS, SENT);
    close_both();
}

/* The system fails while the offer is with the backend: it is taken back, and no verdict comes. */
static void waiting_offer_that_the_system_ends_is_the_brokers_and_was_sent(void **state)
{
    (void)state;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    open_both(NULL);
    handoff_offer offer = offer_of(client[0]);
    epoll_wait_fails = 1;
    says(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict), HANDOFF_ERR_SYSTEM, OURS,
         SENT);
    assert_int_equal(epoll_wait_fails, 0);
    assert_int_equal(broker_statistics(channel.broker).taken_back, 1);
    assert_no_arrival(&channel);
    assert_int_equal(backend_statistics(channel.backend).arrived, 1);
    assert_no_verdict(&channel);
    close_both();
}

/* It was sent, and is taken back; what else is in flight stays there. */
static void waiting_offer_that_is_woken_is_the_brokers_and_ends_nothing_else(void **state)
{
    (void)state;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    open_both(NULL);
    handoff_offer offer = offer_of(client[0]);
    uint64_t other = offer_fd(&channel, client[0]);
    assert_ok(handoff_broker_wake(channel.broker));
    /* Before it is sent, or while it waits. */
    handoff_status status = handoff_broker_offer_and_wait(channel.broker, &offer, &verdict);
    says(status, HANDOFF_WOKEN, OURS, SENT);
    assert_int_equal(broker_statistics(channel.broker).in_flight, 1);
    adopt(&channel, arrival_of(&channel).id);
    assert_no_arrival(&channel);
    verdict = verdict_of(&channel);
    assert_int_equal(verdict.id, other);
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    assert_int_equal(broker_statistics(channel.broker).connects, 1);
    close_both();
}

static void refused_offer_is_the_brokers_and_was_not_sent(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_in_flight = 1;
    options.max_failures = 1;
    open_both(&options);
    static char name[257];
    handoff_offer offer = offer_of(client[0]), named = offer;
    memset(name, 'n', 256);
    named.service = name;
    says(handoff_broker_offer(channel.broker, &named, NULL), HANDOFF_ERR_TOO_LARGE, OURS, NOT_SENT);
    named.fd = -1;
    says(handoff_broker_offer(channel.broker, &named, NULL), HANDOFF_ERR_INVALID_ARGUMENT, OURS,
         NOT_SENT);
    offer.timeout_ms = 1;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    says(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_FULL, OURS, NOT_SENT);
    sleep_until(now_ns(), 2);
    assert_falls_back(&channel, HANDOFF_REASON_ACK_TIMEOUT);
    says(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_RATE_LIMITED, OURS,
         NOT_SENT);
    pid_t child = start_child();
    if (child == 0) {
        handoff_status status = handoff_broker_offer(channel.broker, &offer, NULL);
        child_assert(status == HANDOFF_ERR_WRONG_PROCESS);
        child_assert(!handoff_status_is_fallback_safe(status));
        child_assert(!handoff_status_may_have_reached_backend(status));
        _exit(0);
    }
    assert_child_succeeds(child);
    handoff_backend_free(channel.backend);
    channel.backend = NULL;
    assert_no_verdict(&channel);
    says(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_BACKEND_UNAVAILABLE, OURS,
         NOT_SENT);
    assert_ok(handoff_broker_close(channel.broker));
    says(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_CLOSED, OURS, NOT_SENT);
    close_both();
}

/* What is in flight at close, sent or not, was taken back, and nothing else is said of it. */
static void offers_that_close_takes_back_say_so_at_both_ends(void **state)
{
    (void)state;
    enum { SENT_FIRST = 200, OFFERS = 256 };
    open_both(NULL);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    for (int i = 0; i < OFFERS; i++) {
        handoff_offer offer = offer_of(client[0]);
        offer.flags = i < SENT_FIRST ? 0 : HANDOFF_OFFER_MORE;
        assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    }
    assert_ok(handoff_broker_close(channel.broker));
    int reached = 0;
    for (int i = 0; i < OFFERS; i++) {
        assert_true(next_verdict(channel.broker, &verdict));
        assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
        assert_int_equal(verdict.reason, HANDOFF_REASON_BROKER_CLOSED);
        reached += verdict.may_have_reached_backend != 0;
    }
    assert_int_equal(reached, SENT_FIRST);
    handoff_broker_statistics broker = broker_statistics(channel.broker);
    assert_int_equal(broker.fallbacks[HANDOFF_REASON_BROKER_CLOSED], OFFERS);
    assert_int_equal(broker.in_flight, 0);
    assert_no_arrival(&channel);
    handoff_backend_statistics backend = backend_statistics(channel.backend);
    assert_int_equal(backend.arrived, SENT_FIRST);
    assert_int_equal(backend.taken_back, SENT_FIRST);
    assert_int_equal(backend.rejected, 0);
    close_both();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_status_is_in_the_table_and_says_what_it_does),
        TEST(reasons_that_are_about_the_backends_may_pass),
        WIRE_TEST(failed_wait_for_an_acknowledgement_leaves_the_connection_to_the_broker),
        WIRE_TEST(failed_poll_for_an_acknowledgement_leaves_the_connection_to_the_broker),
        WIRE_TEST(acknowledgement_that_a_failure_hid_is_found),
        WIRE_TEST(broker_that_cannot_look_does_not_fall_back),
        WIRE_TEST(broker_that_cannot_look_after_the_deadline_does_not_fall_back),
        WIRE_TEST(broker_that_cannot_take_back_does_not_fall_back),
        WIRE_TEST(late_acceptance_is_the_backends),
        WIRE_TEST(statuses_of_sending_say_what_was_sent),
        TEST(offer_that_cannot_be_taken_back_is_not_the_brokers),
        TEST(arrival_that_was_taken_back_is_not_the_backends),
        TEST(waiting_offer_that_the_system_ends_is_the_brokers_and_was_sent),
        TEST(waiting_offer_that_is_woken_is_the_brokers_and_ends_nothing_else),
        TEST(refused_offer_is_the_brokers_and_was_not_sent),
        TEST(offers_that_close_takes_back_say_so_at_both_ends),
    };
    return RUN_TESTS(tests);
}
