/* The composed call: one attempt, from sending to verdict. */
#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* One to be overwritten, or not. */
static handoff_raw_verdict any_verdict(void)
{
    handoff_raw_verdict verdict;
    memset(&verdict, 42, sizeof verdict);
    verdict.size = sizeof verdict;
    return verdict;
}

/* Expects a fallback from an attempt, after which the connection is still the broker's. */
static void assert_falls_back(struct wire *wire, uint64_t timeout_ms, handoff_reason reason,
                              handoff_status cause, bool may_have_reached_backend)
{
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    assert_ok(
        handoff_raw_attempt(wire->broker, wire->connection, &wire->token, timeout_ms, &verdict));
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_string_equal(handoff_reason_name(verdict.reason), handoff_reason_name(reason));
    assert_status(verdict.cause, cause);
    assert_int_equal(verdict.may_have_reached_backend, may_have_reached_backend);
    assert_reaches_client(wire, wire->connection);
}

/* The acknowledgement may be on its way before the message: the backend here knows the token. */
static void accepted_connection_is_adopted(void **state)
{
    struct wire *wire = *state;
    static const uint64_t timeouts[] = {HANDOFF_NO_TIMEOUT, 0, 1};
    for (int i = 0; i < 3; i++) {
        handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
        handoff_raw_token token;
        int fd;
        assert_ok(handoff_raw_ack_accept(wire->backend, &wire->token));
        assert_ok(handoff_raw_attempt(wire->broker, wire->connection, &wire->token, timeouts[i],
                                      &verdict));
        assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
        assert_int_equal(verdict.reason, HANDOFF_REASON_NONE);
        assert_int_equal(verdict.cause, HANDOFF_OK);
        assert_true(verdict.may_have_reached_backend);
        assert_ok(handoff_raw_receive(wire->backend, 0, &token, &fd));
        assert_true(handoff_raw_token_equal(&token, &wire->token));
        assert_same_socket(fd, wire->connection);
        close(fd);
    }
}

static void rejected_connection_falls_back_for_the_backends_reason(void **state)
{
    struct wire *wire = *state;
    for (handoff_reason reason = HANDOFF_REASON_CLIENT_UNSUPPORTED;
         reason <= HANDOFF_REASON_KIND; reason++) {
        assert_ok(handoff_raw_ack_reject(wire->backend, &wire->token, reason));
        assert_falls_back(wire, PATIENCE_MS, reason, HANDOFF_OK, true);
    }
}

static void connection_that_is_not_acknowledged_falls_back_at_the_deadline(void **state)
{
    struct wire *wire = *state;
    char socket[32];
    snprintf(socket, sizeof socket, "socket %d", wire->broker);
    assert_falls_back(wire, 10, HANDOFF_REASON_ACK_TIMEOUT, HANDOFF_ERR_ACK_TIMEOUT, true);
    assert_non_null(strstr(handoff_last_error(), socket));
    assert_status(handoff_raw_ack_accept(wire->backend, &wire->token), HANDOFF_ERR_END_OF_STREAM);
}

static void connection_falls_back_when_the_backend_has_closed(void **state)
{
    struct wire *wire = *state;
    close_end(&wire->backend);
    assert_falls_back(wire, HANDOFF_NO_TIMEOUT, HANDOFF_REASON_BACKEND_UNAVAILABLE,
                      HANDOFF_ERR_BACKEND_UNAVAILABLE, false);
    assert_int_equal(errno, EPIPE);
}

static void connection_falls_back_when_the_backend_closes_without_an_answer(void **state)
{
    struct wire *wire = *state;
    assert_int_equal(shutdown(wire->backend, SHUT_WR), 0);
    assert_falls_back(wire, HANDOFF_NO_TIMEOUT, HANDOFF_REASON_BACKEND_UNAVAILABLE,
                      HANDOFF_ERR_END_OF_STREAM, true);
}

static void connection_falls_back_when_the_socket_is_full(void **state)
{
    struct wire *wire = *state;
    while (handoff_raw_send(wire->broker, wire->connection, &wire->token) == HANDOFF_OK)
        ;
    assert_falls_back(wire, HANDOFF_NO_TIMEOUT, HANDOFF_REASON_BACKEND_BUSY,
                      HANDOFF_ERR_WOULD_BLOCK, false);
}

static void connection_falls_back_when_another_message_is_acknowledged(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token other;
    assert_ok(handoff_raw_token_generate(&other));
    assert_ok(handoff_raw_ack_accept(wire->backend, &other));
    assert_falls_back(wire, HANDOFF_NO_TIMEOUT, HANDOFF_REASON_INTEGRITY_MISMATCH,
                      HANDOFF_ERR_ACK_MISMATCH, true);
    assert_status(handoff_raw_ack_accept(wire->backend, &wire->token), HANDOFF_ERR_END_OF_STREAM);
}

static void connection_falls_back_when_the_answer_is_malformed(void **state)
{
    struct wire *wire = *state;
    send_raw(wire->backend, "no", 2, NULL, 0);
    assert_falls_back(wire, HANDOFF_NO_TIMEOUT, HANDOFF_REASON_INTEGRITY_MISMATCH,
                      HANDOFF_ERR_ACK_MALFORMED, true);
}

static void attempt_never_raises_sigpipe(void **state)
{
    struct wire *wire = *state;
    close_end(&wire->backend);
    pid_t child = start_child();
    if (child == 0) {
        handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
        signal(SIGPIPE, SIG_DFL);
        child_assert(handoff_raw_attempt(wire->broker, wire->connection, &wire->token,
                                         HANDOFF_NO_TIMEOUT, &verdict) == HANDOFF_OK);
        _exit(0);
    }
    assert_child_succeeds(child);
}

static void attempt_refuses_bad_arguments_and_sends_nothing(void **state)
{
    struct wire *wire = *state;
    handoff_raw_verdict verdict = any_verdict(), untouched = verdict;
    int closed = lowest_free_descriptor();
    const struct {
        int socket, fd;
        const handoff_raw_token *token;
        handoff_raw_verdict *verdict;
        int error;
    } bad[] = {
        {-1, wire->connection, &wire->token, &verdict, 0},
        {wire->broker, -1, &wire->token, &verdict, 0},
        {wire->broker, wire->connection, NULL, &verdict, 0},
        {wire->broker, wire->connection, &wire->token, NULL, 0},
        {wire->broker, wire->connection, &wire->token, misaligned(), 0},
        {wire->broker, wire->broker, &wire->token, &verdict, 0},
        {closed, wire->connection, &wire->token, &verdict, EBADF},
        {wire->broker, closed, &wire->token, &verdict, EBADF},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        errno = ERANGE;
        assert_status(
            handoff_raw_attempt(bad[i].socket, bad[i].fd, bad[i].token, 0, bad[i].verdict),
            HANDOFF_ERR_INVALID_ARGUMENT);
        assert_int_equal(errno, bad[i].error);
    }
    assert_memory_equal(&verdict, &untouched, sizeof verdict);
    assert_nothing_to_read(wire->backend);
}

/* ---- by path --------------------------------------------------------------------------------- */

static void backend_in_another_process_adopts_and_rejects(void **state)
{
    struct wire *wire = *state;
    struct place place = make_place();
    handoff_raw_listener *listener = listen_at(place.path, wire->type);
    handoff_raw_token second;
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    assert_ok(handoff_raw_store_issue(wire->store, &second));
    pid_t child = start_child();
    if (child == 0) {
        for (int i = 0; i < 2; i++) {
            handoff_raw_token token;
            int socket, fd;
            child_assert(handoff_raw_listener_accept(listener, NULL, PATIENCE_MS, &socket) ==
                         HANDOFF_OK);
            child_assert(handoff_raw_receive_verified(socket, wire->store, NULL, PATIENCE_MS,
                                                      &token, &fd) == HANDOFF_OK);
            if (i == 0) {
                child_assert(handoff_raw_ack_accept(socket, &token) == HANDOFF_OK);
                child_assert(write(fd, "adopted", 7) == 7);
                close(fd);
            } else {
                close(fd);
                child_assert(handoff_raw_ack_reject(socket, &token, HANDOFF_REASON_BACKEND_BUSY) ==
                             HANDOFF_OK);
            }
            close(socket);
        }
        handoff_raw_listener_free(listener);
        _exit(0);
    }
    char answer[7];
    assert_ok(handoff_raw_attempt_path(place.path, wire->connection, &wire->token, PATIENCE_MS,
                                       &verdict));
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    assert_int_equal(recv(wire->client, answer, 7, MSG_WAITALL), 7);
    assert_memory_equal(answer, "adopted", 7);
    assert_ok(handoff_raw_attempt_path(place.path, wire->connection, &second, HANDOFF_NO_TIMEOUT,
                                       &verdict));
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, HANDOFF_REASON_BACKEND_BUSY);
    assert_int_equal(verdict.cause, HANDOFF_OK);
    assert_child_succeeds(child);
    handoff_raw_listener_free(listener);
    remove_directory(place.directory);
}

/* Nobody accepts: the message waits in the listener's queue. */
static void attempt_by_path_falls_back_at_the_deadline(void **state)
{
    struct wire *wire = *state;
    struct place place = make_place();
    handoff_raw_listener *listener = listen_at(place.path, wire->type);
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    assert_ok(handoff_raw_attempt_path(place.path, wire->connection, &wire->token, 10, &verdict));
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, HANDOFF_REASON_ACK_TIMEOUT);
    assert_int_equal(verdict.cause, HANDOFF_ERR_ACK_TIMEOUT);
    assert_true(verdict.may_have_reached_backend);
    handoff_raw_listener_free(listener);
    remove_directory(place.directory);
}

static void attempt_by_a_missing_path_falls_back(void **state)
{
    struct wire *wire = *state;
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    assert_ok(handoff_raw_attempt_path("/nowhere/socket", wire->connection, &wire->token,
                                       HANDOFF_NO_TIMEOUT, &verdict));
    assert_int_equal(errno, ENOENT);
    assert_non_null(strstr(handoff_last_error(), "/nowhere/socket"));
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, HANDOFF_REASON_BACKEND_UNAVAILABLE);
    assert_int_equal(verdict.cause, HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_false(verdict.may_have_reached_backend);
}

static void attempt_by_an_unprivileged_user_falls_back(void **state)
{
    struct wire *wire = *state;
    need_root();
    struct place place = make_place();
    handoff_raw_listener *listener = listen_at(place.path, wire->type);
    assert_int_equal(chmod(place.directory, 0755), 0);
    pid_t child = start_child();
    if (child == 0) {
        handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
        become_nobody();
        child_assert(handoff_raw_attempt_path(place.path, wire->connection, &wire->token,
                                              HANDOFF_NO_TIMEOUT, &verdict) == HANDOFF_OK);
        child_assert(errno == EACCES);
        child_assert(verdict.outcome == HANDOFF_FALLBACK);
        child_assert(verdict.reason == HANDOFF_REASON_PERMISSION_DENIED);
        child_assert(verdict.cause == HANDOFF_ERR_PERMISSION_DENIED);
        child_assert(!verdict.may_have_reached_backend);
        handoff_raw_listener_free(listener);
        _exit(0);
    }
    assert_child_succeeds(child);
    handoff_raw_listener_free(listener);
    remove_directory(place.directory);
}

static void attempt_by_path_refuses_bad_arguments_and_sends_nothing(void **state)
{
    struct wire *wire = *state;
    struct place place = make_place();
    handoff_raw_listener *listener = listen_at(place.path, wire->type);
    const handoff_raw_token *token = &wire->token;
    const handoff_status bad = HANDOFF_ERR_INVALID_ARGUMENT;
    int fd = wire->connection;
    char longest[109];
    memset(longest, 'x', sizeof longest);
    longest[108] = '\0';
    handoff_raw_verdict verdict = any_verdict(), untouched = verdict;
    assert_status(handoff_raw_attempt_path(NULL, fd, token, 0, &verdict), bad);
    assert_status(handoff_raw_attempt_path("", fd, token, 0, &verdict), bad);
    assert_status(handoff_raw_attempt_path(longest, fd, token, 0, &verdict), bad);
    assert_status(handoff_raw_attempt_path(place.path, -1, token, 0, &verdict), bad);
    assert_status(handoff_raw_attempt_path(place.path, fd, NULL, 0, &verdict), bad);
    assert_status(handoff_raw_attempt_path(place.path, fd, token, 0, NULL), bad);
    assert_status(handoff_raw_attempt_path(place.path, fd, token, 0, misaligned()), bad);
    assert_nothing_to_read(handoff_raw_listener_fd(listener));
    int closed = lowest_free_descriptor() + 100;
    assert_status(handoff_raw_attempt_path(place.path, closed, token, 0, &verdict), bad);
    assert_memory_equal(&verdict, &untouched, sizeof verdict);
    handoff_raw_listener_free(listener);
    remove_directory(place.directory);
}

/* ---- one owner ------------------------------------------------------------------------------- */

/* Accepts one message after another, each after another delay of up to twice the deadline, and
 * answers the clients that are its own. */
static void run_backend(const handoff_raw_listener *listener, handoff_raw_store *store,
                        int attempts, uint64_t deadline_ms)
{
    for (int i = 0; i < attempts; i++) {
        long delay_us = i * 7919 % (2 * (long)deadline_ms * 1000);
        struct timespec delay = {.tv_sec = delay_us / 1000000,
                                 .tv_nsec = delay_us % 1000000 * 1000};
        handoff_raw_token token;
        int socket, fd;
        child_assert(handoff_raw_listener_accept(listener, NULL, PATIENCE_MS, &socket) ==
                     HANDOFF_OK);
        child_assert(handoff_raw_store_issue(store, &token) == HANDOFF_OK);
        child_assert(handoff_raw_token_send(socket, &token) == HANDOFF_OK);
        child_assert(handoff_raw_receive_verified(socket, store, &token, PATIENCE_MS, NULL, &fd) ==
                     HANDOFF_OK);
        nanosleep(&delay, NULL);
        if (handoff_raw_ack_accept(socket, &token) == HANDOFF_OK)
            child_assert(write(fd, "backend", 7) == 7);
        close(fd);
        close(socket);
    }
}

/* Makes one attempt and asserts that its client has one owner; returns whether it was adopted. */
static bool attempt_with_one_owner(const char *path, uint64_t deadline_ms)
{
    int tcp[2], socket;
    char answer[32];
    handoff_raw_token token;
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    make_tcp_pair(tcp);
    assert_ok(handoff_raw_connect(path, &socket));
    assert_ok(handoff_raw_token_receive(socket, PATIENCE_MS, &token));
    assert_ok(handoff_raw_attempt(socket, tcp[0], &token, deadline_ms, &verdict));
    bool adopted = verdict.outcome == HANDOFF_ADOPTED;
    if (!adopted) {
        assert_int_equal(verdict.reason, HANDOFF_REASON_ACK_TIMEOUT);
        assert_int_equal(write(tcp[0], "broker", 6), 6);
    }
    close(tcp[0]);
    close(socket);
    /* Up to the end, which comes when neither side holds the connection any more. */
    ssize_t len = recv(tcp[1], answer, sizeof answer, MSG_WAITALL);
    const char *owner = adopted ? "backend" : "broker";
    assert_int_equal(len, strlen(owner));
    assert_memory_equal(answer, owner, strlen(owner));
    close(tcp[1]);
    return adopted;
}

/* Half of the attempts for each kind of socket. Where the machine is so busy that one side always
 * wins, the deadline is not what it can do. */
static void every_client_has_one_owner_whenever_the_acknowledgement_comes(void **state)
{
    struct wire *wire = *state;
    const char *setting = getenv("HANDOFF_TEST_ATTEMPTS");
    int attempts = (setting != NULL ? atoi(setting) : 500) / 2, adopted = 0;
    for (uint64_t deadline_ms = 5; adopted == 0 || adopted == attempts; deadline_ms *= 2) {
        struct place place = make_place();
        handoff_raw_listener *listener = listen_at(place.path, wire->type);
        assert_true(deadline_ms < 1000);
        pid_t child = start_child();
        if (child == 0) {
            run_backend(listener, wire->store, attempts, deadline_ms);
            handoff_raw_listener_free(listener);
            _exit(0);
        }
        adopted = 0;
        for (int i = 0; i < attempts; i++)
            adopted += attempt_with_one_owner(place.path, deadline_ms);
        assert_child_succeeds(child);
        print_message("deadline of %d ms: %d adopted, %d fallback\n", (int)deadline_ms, adopted,
                      attempts - adopted);
        handoff_raw_listener_free(listener);
        remove_directory(place.directory);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WIRE_TEST(accepted_connection_is_adopted),
        WIRE_TEST(rejected_connection_falls_back_for_the_backends_reason),
        WIRE_TEST(connection_that_is_not_acknowledged_falls_back_at_the_deadline),
        WIRE_TEST(connection_falls_back_when_the_backend_has_closed),
        WIRE_TEST(connection_falls_back_when_the_backend_closes_without_an_answer),
        WIRE_TEST(connection_falls_back_when_the_socket_is_full),
        WIRE_TEST(connection_falls_back_when_another_message_is_acknowledged),
        WIRE_TEST(connection_falls_back_when_the_answer_is_malformed),
        WIRE_TEST(attempt_never_raises_sigpipe),
        WIRE_TEST(attempt_refuses_bad_arguments_and_sends_nothing),
        WIRE_TEST(backend_in_another_process_adopts_and_rejects),
        WIRE_TEST(attempt_by_path_falls_back_at_the_deadline),
        STREAM_TEST(attempt_by_a_missing_path_falls_back),
        WIRE_TEST(attempt_by_an_unprivileged_user_falls_back),
        WIRE_TEST(attempt_by_path_refuses_bad_arguments_and_sends_nothing),
        WIRE_TEST(every_client_has_one_owner_whenever_the_acknowledgement_comes),
    };
    return RUN_TESTS(tests);
}
