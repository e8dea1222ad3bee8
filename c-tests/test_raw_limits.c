/* The raw layer at the limits of a process, of a user and of a listener, and when the kernel
 * refuses for reasons that cannot be brought about otherwise. */
#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

static void receiver_without_room_for_the_descriptor_says_so(void **state)
{
    struct wire *wire = *state;
    skip_under_valgrind("it emulates RLIMIT_NOFILE, and the kernel installs the descriptor");
    handoff_raw_token token = {{42}};
    int fd = -7;
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    rlim_t limit = allow_no_more_descriptors();
    handoff_status status =
        handoff_raw_receive_verified(wire->backend, wire->store, NULL, 0, &token, &fd);
    allow_descriptors(limit);
    assert_status(status, HANDOFF_ERR_CONTROL_TRUNCATED);
    assert_int_equal(fd, -7);
    assert_int_equal(token.bytes[0], 42);
    assert_int_equal(handoff_raw_store_length(wire->store), 1);
    /* With room again, the next message arrives. */
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    assert_ok(handoff_raw_receive_verified(wire->backend, wire->store, NULL, 0, &token, &fd));
    assert_same_socket(fd, wire->connection);
    close(fd);
}

static void receiver_with_room_for_some_descriptors_closes_them(void **state)
{
    struct wire *wire = *state;
    skip_under_valgrind("it emulates RLIMIT_NOFILE, and the kernel installs the descriptors");
    for (int room = 1; room <= 2; room++) {
        int fds[] = {wire->connection, wire->connection, wire->connection}, fd = -7;
        handoff_raw_token token;
        send_raw(wire->broker, wire->token.bytes, HANDOFF_RAW_TOKEN_LEN, fds, 3);
        int spare[] = {dup(0), dup(0)};
        rlim_t limit = allow_no_more_descriptors();
        for (int i = 0; i < room; i++)
            close(spare[i]);
        handoff_status status = handoff_raw_receive(wire->backend, 0, &token, &fd);
        allow_descriptors(limit);
        for (int i = room; i < 2; i++)
            close(spare[i]);
        assert_status(status, HANDOFF_ERR_CONTROL_TRUNCATED);
        assert_int_equal(fd, -7);
    }
    assert_client_sees_end(wire);
}

static void process_without_room_for_a_socket_cannot_connect(void **state)
{
    struct wire *wire = *state;
    struct place place = make_place();
    handoff_raw_listener *listener = listen_at(place.path, wire->type);
    int socket = -7;
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    rlim_t limit = allow_no_more_descriptors();
    handoff_status connected = handoff_raw_connect(place.path, &socket);
    int connect_error = errno;
    handoff_status sent =
        handoff_raw_send_path(place.path, wire->connection, &wire->token, &socket);
    int send_error = errno;
    handoff_status attempted = handoff_raw_attempt_path(place.path, wire->connection, &wire->token,
                                                        HANDOFF_NO_TIMEOUT, &verdict);
    allow_descriptors(limit);
    assert_status(connected, HANDOFF_ERR_DESCRIPTOR_PRESSURE);
    assert_int_equal(connect_error, EMFILE);
    assert_status(sent, HANDOFF_ERR_DESCRIPTOR_PRESSURE);
    assert_int_equal(send_error, EMFILE);
    assert_int_equal(socket, -7);
    assert_ok(attempted);
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, HANDOFF_REASON_DESCRIPTOR_PRESSURE);
    assert_int_equal(verdict.cause, HANDOFF_ERR_DESCRIPTOR_PRESSURE);
    assert_false(verdict.may_have_reached_backend);
    handoff_raw_listener_free(listener);
    remove_directory(place.directory);
}

/* The kernel counts a user's descriptors in flight against the sender's RLIMIT_NOFILE, unix(7). */
static void user_with_too_many_descriptors_in_flight_cannot_send(void **state)
{
    struct wire *wire = *state;
    need_root();
    skip_under_valgrind("it emulates RLIMIT_NOFILE, and the kernel does not count");
    pid_t child = start_child();
    if (child == 0) {
        const struct rlimit tight = {.rlim_cur = 32, .rlim_max = 32};
        handoff_status status;
        handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
        handoff_raw_token token;
        int fd, sent = 0;
        child_assert(setrlimit(RLIMIT_NOFILE, &tight) == 0);
        become_nobody();
        while ((status = handoff_raw_send(wire->broker, wire->connection, &wire->token)) ==
               HANDOFF_OK)
            sent++;
        child_assert(status == HANDOFF_ERR_DESCRIPTOR_PRESSURE);
        child_assert(errno == ETOOMANYREFS);
        child_assert(sent > 0);
        child_assert(handoff_raw_attempt(wire->broker, wire->connection, &wire->token,
                                         HANDOFF_NO_TIMEOUT, &verdict) == HANDOFF_OK);
        child_assert(verdict.outcome == HANDOFF_FALLBACK);
        child_assert(verdict.reason == HANDOFF_REASON_DESCRIPTOR_PRESSURE);
        child_assert(!verdict.may_have_reached_backend);
        /* What was refused was not sent, and when the others have arrived there is room again. */
        while (sent-- > 0) {
            child_assert(handoff_raw_receive(wire->backend, 0, &token, &fd) == HANDOFF_OK);
            close(fd);
        }
        child_assert(handoff_raw_receive(wire->backend, 0, &token, &fd) == HANDOFF_TIMED_OUT);
        child_assert(handoff_raw_send(wire->broker, wire->connection, &wire->token) == HANDOFF_OK);
        _exit(0);
    }
    assert_child_succeeds(child);
}

static void full_backlog_would_block_until_somebody_accepts(void **state)
{
    struct wire *wire = *state;
    struct place place = make_place();
    handoff_raw_listener_options options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
    handoff_raw_listener *listener;
    options.socket_type = wire->type == SOCK_STREAM ? HANDOFF_RAW_STREAM : HANDOFF_RAW_SEQPACKET;
    options.backlog = 1;
    assert_ok(handoff_raw_listener_new(place.path, &options, &listener));
    int waiting[8], count = 0, socket = -7, accepted;
    handoff_status status = HANDOFF_OK;
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    while (count < 8 && (status = handoff_raw_connect(place.path, &waiting[count])) == HANDOFF_OK)
        count++;
    assert_status(status, HANDOFF_ERR_WOULD_BLOCK);
    assert_int_equal(errno, EAGAIN);
    assert_status(handoff_raw_send_path(place.path, wire->connection, &wire->token, &socket),
                  HANDOFF_ERR_WOULD_BLOCK);
    assert_int_equal(socket, -7);
    assert_ok(handoff_raw_attempt_path(place.path, wire->connection, &wire->token,
                                       HANDOFF_NO_TIMEOUT, &verdict));
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, HANDOFF_REASON_BACKEND_BUSY);
    assert_int_equal(verdict.cause, HANDOFF_ERR_WOULD_BLOCK);
    assert_false(verdict.may_have_reached_backend);
    assert_ok(handoff_raw_listener_accept(listener, NULL, 0, &accepted));
    assert_ok(handoff_raw_connect(place.path, &socket));
    close(socket);
    close(accepted);
    while (count-- > 0)
        close(waiting[count]);
    handoff_raw_listener_free(listener);
    remove_directory(place.directory);
}

/* ---- a kernel that refuses ------------------------------------------------------------------- */

static handoff_status call_connect(struct wire *wire)
{
    (void)wire;
    int socket;
    return handoff_raw_connect("/nowhere/socket", &socket);
}

static handoff_status call_send(struct wire *wire)
{
    return handoff_raw_send(wire->broker, wire->connection, &wire->token);
}

static handoff_status call_receive(struct wire *wire)
{
    handoff_raw_token token;
    int fd;
    return handoff_raw_receive(wire->backend, -1, &token, &fd);
}

static handoff_status call_ack_accept(struct wire *wire)
{
    return handoff_raw_ack_accept(wire->backend, &wire->token);
}

static handoff_status call_ack_reject(struct wire *wire)
{
    return handoff_raw_ack_reject(wire->backend, &wire->token, HANDOFF_REASON_REJECTED);
}

static handoff_status call_ack_receive(struct wire *wire)
{
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    return handoff_raw_ack_receive(wire->broker, &ack);
}

static handoff_status call_ack_wait(struct wire *wire)
{
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    return handoff_raw_ack_wait(wire->broker, &wire->token, HANDOFF_NO_TIMEOUT, &ack);
}

static handoff_status call_take_back(struct wire *wire)
{
    return handoff_raw_take_back(wire->broker);
}

static void errors_that_only_the_kernel_can_make_have_their_status(void **state)
{
    struct wire *wire = *state;
    const struct {
        handoff_status (*call)(struct wire *);
        unsigned int refused, error;
        handoff_status status;
    } cases[] = {
        {call_connect, SYS_socket, EAFNOSUPPORT, HANDOFF_ERR_UNSUPPORTED},
        {call_connect, SYS_socket, ENFILE, HANDOFF_ERR_DESCRIPTOR_PRESSURE},
        {call_send, SYS_sendmsg, EPERM, HANDOFF_ERR_PERMISSION_DENIED},
        {call_send, SYS_sendmsg, EACCES, HANDOFF_ERR_PERMISSION_DENIED},
        {call_send, SYS_sendmsg, ENOMEM, HANDOFF_ERR_SEND_FAILED},
        {call_send, SYS_sendmsg, 0, HANDOFF_ERR_SHORT_WRITE},
        {call_receive, SYS_recvmsg, ENOMEM, HANDOFF_ERR_RECEIVE_FAILED},
        {call_ack_accept, SYS_sendto, ENOMEM, HANDOFF_ERR_SEND_FAILED},
        {call_ack_reject, SYS_sendto, ENOMEM, HANDOFF_ERR_SEND_FAILED},
        {call_ack_receive, SYS_recvmsg, ENOMEM, HANDOFF_ERR_RECEIVE_FAILED},
        {call_ack_wait, SYS_recvmsg, ENOMEM, HANDOFF_ERR_TOO_LATE},
        {call_take_back, SYS_shutdown, ENOMEM, HANDOFF_ERR_TOO_LATE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pid_t child = start_child();
        if (child == 0) {
            refuse_system_call(cases[i].refused, cases[i].error);
            child_assert(cases[i].call(wire) == cases[i].status);
            child_assert(errno == (int)cases[i].error);
            _exit(0);
        }
        assert_child_succeeds(child);
    }
}

static void descriptor_of_a_short_write_may_have_reached_the_backend(void **state)
{
    struct wire *wire = *state;
    pid_t child = start_child();
    if (child == 0) {
        handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
        refuse_system_call(SYS_sendmsg, 0);
        child_assert(handoff_raw_attempt(wire->broker, wire->connection, &wire->token,
                                         HANDOFF_NO_TIMEOUT, &verdict) == HANDOFF_OK);
        child_assert(verdict.outcome == HANDOFF_FALLBACK);
        child_assert(verdict.reason == HANDOFF_REASON_INTEGRITY_MISMATCH);
        child_assert(verdict.cause == HANDOFF_ERR_SHORT_WRITE);
        child_assert(verdict.may_have_reached_backend);
        _exit(0);
    }
    assert_child_succeeds(child);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WIRE_TEST(receiver_without_room_for_the_descriptor_says_so),
        WIRE_TEST(receiver_with_room_for_some_descriptors_closes_them),
        WIRE_TEST(process_without_room_for_a_socket_cannot_connect),
        WIRE_TEST(user_with_too_many_descriptors_in_flight_cannot_send),
        WIRE_TEST(full_backlog_would_block_until_somebody_accepts),
        WIRE_TEST(errors_that_only_the_kernel_can_make_have_their_status),
        WIRE_TEST(descriptor_of_a_short_write_may_have_reached_the_backend),
    };
    return RUN_TESTS(tests);
}
