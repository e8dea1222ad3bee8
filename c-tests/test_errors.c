/* Messages about errors, of a thread and of a handle; errno; and what is not an error and leaves
 * both as they were. */
#define _GNU_SOURCE
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

/* ---- handoff_last_error() and errno ---------------------------------------------------------- */

static void errno_is_the_systems_error_and_the_message_names_the_path(void **state)
{
    (void)state;
    const char *path = "/nonexistent/handoff-test.sock";
    int socket = -7;
    errno = 0;
    assert_status(handoff_raw_connect(path, &socket), HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_int_equal(errno, ENOENT);
    assert_non_null(strstr(handoff_last_error(), path));
    assert_int_equal(socket, -7);
}

static void errno_is_the_systems_error_and_the_message_names_the_descriptor(void **state)
{
    (void)state;
    /* A number that nothing else in the message could be taken for. */
    int fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 777);
    handoff_raw_peer peer = HANDOFF_RAW_PEER_INIT;
    assert_int_equal(fd, 777);
    errno = 0;
    assert_invalid(handoff_raw_peer_credentials(fd, &peer));
    assert_int_equal(errno, ENOTSOCK);
    assert_non_null(strstr(handoff_last_error(), "777"));
    close(fd);
}

static void errno_is_0_and_the_message_names_the_argument_without_a_system_error(void **state)
{
    (void)state;
    errno = EINTR;
    assert_invalid(handoff_raw_token_generate(NULL));
    assert_int_equal(errno, 0);
    assert_non_null(strstr(handoff_last_error(), "token"));

    handoff_raw_store *store;
    handoff_raw_token token;
    assert_ok(handoff_raw_store_new(NULL, &store));
    assert_ok(handoff_raw_token_generate(&token));
    errno = EINTR;
    assert_status(handoff_raw_store_redeem(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_int_equal(errno, 0);
    handoff_raw_store_free(store);
}

static void *first_errno_of_a_thread(void *unused)
{
    (void)unused;
    static int first;
    first = handoff_last_errno() != 0 || handoff_last_status() != HANDOFF_OK;
    assert_invalid(handoff_raw_token_generate(NULL));
    return &first;
}

static void errno_and_status_of_the_last_error_are_kept_for_each_thread(void **state)
{
    (void)state;
    pthread_t thread;
    void *first;
    int socket;
    assert_status(handoff_raw_connect("/nonexistent/handoff-test.sock", &socket),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    errno = EINTR;
    assert_int_equal(handoff_last_errno(), ENOENT);
    assert_int_equal(handoff_last_status(), HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_int_equal(pthread_create(&thread, NULL, first_errno_of_a_thread, NULL), 0);
    assert_int_equal(pthread_join(thread, &first), 0);
    assert_int_equal(*(int *)first, 0);
    assert_int_equal(handoff_last_errno(), ENOENT);
    handoff_raw_token token;
    assert_ok(handoff_raw_token_generate(&token));
    assert_int_equal(handoff_last_errno(), ENOENT);
    assert_invalid(handoff_raw_token_generate(NULL));
    assert_int_equal(handoff_last_errno(), 0);
    assert_int_equal(handoff_last_status(), HANDOFF_ERR_INVALID_ARGUMENT);
    assert_int_equal(handoff_broker_fd(NULL), -1);
    assert_int_equal(handoff_last_status(), HANDOFF_ERR_INVALID_ARGUMENT);
}

static void message_outlives_calls_that_succeed(void **state)
{
    (void)state;
    char message[512];
    handoff_raw_token token;
    assert_invalid(handoff_raw_token_generate(NULL));
    snprintf(message, sizeof message, "%s", handoff_last_error());
    assert_ok(handoff_raw_token_generate(&token));
    assert_string_equal(handoff_last_error(), message);
}

static void message_shows_no_token(void **state)
{
    (void)state;
    handoff_raw_store *store;
    handoff_raw_token token;
    memcpy(token.bytes, "SEKRETSEKRETSEKR", sizeof token.bytes);
    assert_ok(handoff_raw_store_new(NULL, &store));
    assert_status(handoff_raw_store_revoke(store, &token), HANDOFF_ERR_TOKEN_NOT_PENDING);
    assert_null(strstr(handoff_last_error(), "SEKR"));
    assert_null(strcasestr(handoff_last_error(), "53454b52"));
    assert_null(strstr(handoff_last_error(), "83, 69"));
    handoff_raw_store_free(store);
}

static void path_that_is_too_long_is_cut_and_the_limit_named(void **state)
{
    (void)state;
    char path[4096];
    int socket;
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    assert_invalid(handoff_raw_connect(path, &socket));
    assert_last_error_has("xxx...: the path has 4095 bytes, and a Unix socket's has 107 at the most");
    assert_in_range(strlen(handoff_last_error()), 100, 200);
}

/* cmocka's assertions are for the main thread only: a thread copies what it saw. */
struct messages {
    char at_first[64];
    char after_error[512];
};

static void *fail_once(void *argument)
{
    struct messages *seen = argument;
    int socket;
    snprintf(seen->at_first, sizeof seen->at_first, "%s", handoff_last_error());
    if (handoff_raw_connect("/nonexistent/of-the-thread", &socket) == HANDOFF_OK)
        close(socket);
    snprintf(seen->after_error, sizeof seen->after_error, "%s", handoff_last_error());
    return NULL;
}

static void each_thread_has_a_message_of_its_own_empty_at_first(void **state)
{
    (void)state;
    pthread_t thread;
    struct messages seen = {.at_first = "not looked at"};
    int socket;
    assert_status(handoff_raw_connect("/nonexistent/of-main", &socket),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_int_equal(pthread_create(&thread, NULL, fail_once, &seen), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_string_equal(seen.at_first, "");
    assert_non_null(strstr(seen.after_error, "of-the-thread"));
    assert_non_null(strstr(handoff_last_error(), "of-main"));
}

static void child_of_fork_begins_with_a_copy_of_the_message(void **state)
{
    (void)state;
    int socket;
    assert_status(handoff_raw_connect("/nonexistent/of-parent", &socket),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    pid_t child = start_child();
    if (child == 0)
        _exit(strstr(handoff_last_error(), "of-parent") == NULL);
    assert_child_succeeds(child);
}

/* ---- the messages of handles ----------------------------------------------------------------- */

/* Two brokers and a backend, between which nothing happens by itself. */
static char directory[64], path[80];
static handoff_broker *broker, *other;
static handoff_backend *backend;

static int open_handles(void **state)
{
    descriptors_before(state);
    make_directory(directory);
    snprintf(path, sizeof path, "%s/socket", directory);
    assert_ok(handoff_broker_new(path, NULL, &broker));
    assert_ok(handoff_broker_new(path, NULL, &other));
    assert_ok(handoff_backend_listen(path, NULL, &backend));
    return 0;
}

static int close_handles(void **state)
{
    handoff_broker_free(broker);
    handoff_broker_free(other);
    handoff_backend_free(backend);
    remove_directory(directory);
    return descriptors_after(state);
}

#define HANDLE_TEST(function) \
    cmocka_unit_test_setup_teardown(function, open_handles, close_handles)

/* An error of a call of the broker or of the backend, with a number that the message has. */
static void fail_with_broker(handoff_broker *of, int number)
{
    handoff_offer offer = offer_of(-number);
    assert_invalid(handoff_broker_offer(of, &offer, NULL));
}

static void fail_with_backend(uint64_t id)
{
    int fd;
    assert_invalid(handoff_backend_adopt(backend, id, &fd));
}

static void message_of_a_handle_is_empty_until_a_call_of_it_fails(void **state)
{
    (void)state;
    fail_with_broker(other, 1111);
    assert_string_equal(handoff_broker_last_error(broker), "");
    assert_string_equal(handoff_backend_last_error(backend), "");
    assert_string_equal(handoff_broker_last_error(NULL), "");
    assert_string_equal(handoff_backend_last_error(NULL), "");
    assert_string_equal(handoff_broker_last_error(misaligned()), "");
    assert_string_equal(handoff_backend_last_error(misaligned()), "");
}

static void message_of_a_handle_is_about_the_last_error_of_its_own_calls(void **state)
{
    (void)state;
    fail_with_broker(broker, 1111);
    assert_non_null(strstr(handoff_broker_last_error(broker), "-1111"));
    assert_string_equal(handoff_broker_last_error(broker), handoff_last_error());
    fail_with_backend(2222);
    assert_non_null(strstr(handoff_backend_last_error(backend), "2222"));
    assert_string_equal(handoff_backend_last_error(backend), handoff_last_error());
    fail_with_broker(broker, 3333);
    assert_null(strstr(handoff_broker_last_error(broker), "-1111"));
    assert_non_null(strstr(handoff_broker_last_error(broker), "-3333"));
}

static void message_of_a_handle_survives_other_errors_and_its_own_successes(void **state)
{
    (void)state;
    handoff_raw_token token;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    fail_with_broker(broker, 1111);
    fail_with_backend(2222);
    fail_with_broker(other, 3333);
    assert_invalid(handoff_raw_token_from_bytes(NULL, 0, &token));
    assert_invalid(handoff_broker_dispatch(NULL));
    assert_ok(handoff_broker_dispatch(broker));
    assert_ok(handoff_backend_dispatch(backend));
    assert_status(handoff_broker_next(broker, &verdict), HANDOFF_NOTHING);
    assert_status(handoff_backend_next(backend, &arrival), HANDOFF_NOTHING);
    assert_status(handoff_backend_accept(backend, 0, &arrival), HANDOFF_TIMED_OUT);
    assert_non_null(strstr(handoff_broker_last_error(broker), "-1111"));
    assert_non_null(strstr(handoff_backend_last_error(backend), "2222"));
    assert_non_null(strstr(handoff_broker_last_error(other), "-3333"));
}

/* Every call of a handle that can fail, with an argument that cannot be right. */
static void every_failing_call_of_a_broker_sets_its_message(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(-1111);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_status statuses[9];
    char messages[9][128];
    int count = 0;
#define CALL(call)                                                                        \
    do {                                                                                  \
        fail_with_broker(broker, 4444);                                                   \
        statuses[count] = (call);                                                         \
        snprintf(messages[count++], 128, "%s", handoff_broker_last_error(broker));        \
    } while (0)
    CALL(handoff_broker_offer(broker, &offer, NULL));
    CALL(handoff_broker_offer_and_wait(broker, &offer, &verdict));
    CALL(handoff_broker_next(broker, NULL));
    CALL(handoff_broker_get_statistics(broker, NULL));
    assert_ok(handoff_broker_close(broker));
    CALL(handoff_broker_close(broker));
    CALL(handoff_broker_dispatch(broker));
    CALL(handoff_broker_flush(broker));
    CALL(handoff_broker_take_back(broker, 1));
    CALL(handoff_broker_fd(broker));
#undef CALL
    for (int i = 0; i < count; i++) {
        assert_true(statuses[i] < 0);
        assert_string_not_equal(messages[i], "");
        assert_null(strstr(messages[i], "4444"));
    }
}

static void every_failing_call_of_a_backend_sets_its_message(void **state)
{
    (void)state;
    int fd;
    handoff_status statuses[5];
    char messages[5][128];
    int count = 0;
#define CALL(call)                                                                        \
    do {                                                                                  \
        fail_with_backend(4444);                                                          \
        statuses[count] = (call);                                                         \
        snprintf(messages[count++], 128, "%s", handoff_backend_last_error(backend));      \
    } while (0)
    CALL(handoff_backend_adopt(backend, 1, &fd));
    CALL(handoff_backend_reject(backend, 1, HANDOFF_REASON_REJECTED));
    CALL(handoff_backend_next(backend, NULL));
    CALL(handoff_backend_accept(backend, 0, NULL));
    CALL(handoff_backend_get_statistics(backend, NULL));
#undef CALL
    for (int i = 0; i < count; i++) {
        assert_true(statuses[i] < 0);
        assert_string_not_equal(messages[i], "");
        assert_null(strstr(messages[i], "4444"));
    }
}

static void every_call_in_another_process_sets_the_message(void **state)
{
    (void)state;
    assert_ok(handoff_broker_dispatch(broker));
    assert_ok(handoff_backend_dispatch(backend));
    pid_t child = start_child();
    if (child == 0) {
        child_assert(handoff_broker_dispatch(broker) == HANDOFF_ERR_WRONG_PROCESS);
        child_assert(strstr(handoff_broker_last_error(broker), "process") != NULL);
        child_assert(handoff_backend_fd(backend) == -1);
        child_assert(strstr(handoff_backend_last_error(backend), "process") != NULL);
        child_assert(handoff_backend_drain(backend) == HANDOFF_ERR_WRONG_PROCESS);
        _exit(0);
    }
    assert_child_succeeds(child);
    assert_string_equal(handoff_broker_last_error(broker), "");
}

static void *read_messages(void *found)
{
    bool both = strstr(handoff_broker_last_error(broker), "-1111") != NULL &&
                strstr(handoff_backend_last_error(backend), "2222") != NULL;
    *(bool *)found = both && strcmp(handoff_last_error(), "") == 0;
    return NULL;
}

static void message_of_a_handle_is_read_in_another_thread(void **state)
{
    (void)state;
    pthread_t thread;
    bool found = false;
    fail_with_broker(broker, 1111);
    fail_with_backend(2222);
    assert_int_equal(pthread_create(&thread, NULL, read_messages, &found), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(found);
}

static void *fail_in_a_thread(void *state)
{
    handoff_offer offer = HANDOFF_OFFER_INIT;
    (void)state;
    offer.fd = -1111;
    return handoff_broker_offer(broker, &offer, NULL) == HANDOFF_ERR_INVALID_ARGUMENT ? broker
                                                                                      : NULL;
}

/* As where a runtime moves work from thread to thread. */
static void message_of_a_handle_outlives_the_thread_that_made_it(void **state)
{
    (void)state;
    pthread_t thread;
    void *result;
    assert_int_equal(pthread_create(&thread, NULL, fail_in_a_thread, NULL), 0);
    assert_int_equal(pthread_join(thread, &result), 0);
    assert_ptr_equal(result, broker);
    assert_string_equal(handoff_last_error(), "");
    assert_non_null(strstr(handoff_broker_last_error(broker), "-1111"));
}

/* ---- wrong descriptors ----------------------------------------------------------------------- */

/* Every call that takes a descriptor, with one that cannot be one; the message has the number, and
   says which argument it is. */
static void descriptor_that_cannot_be_one_is_named_by_every_call(void **state)
{
    (void)state;
    enum { BAD = -4711 };
    const char *fd_is = "fd is -4711", *socket_is = "socket is -4711";
    int pair[2], fd = -7;
    handoff_raw_token token = {{1}};
    handoff_raw_store *store;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    handoff_raw_peer peer = HANDOFF_RAW_PEER_INIT;
    handoff_backend *none = NULL;
    make_pair(SOCK_STREAM, pair);
    assert_ok(handoff_raw_store_new(NULL, &store));
    assert_invalid_because(handoff_raw_send(BAD, pair[0], &token), socket_is);
    assert_invalid_because(handoff_raw_send(pair[0], BAD, &token), fd_is);
    assert_invalid_because(handoff_raw_send_path("@nobody", BAD, &token, &fd), fd_is);
    assert_invalid_because(handoff_raw_receive(BAD, 0, &token, &fd), socket_is);
    assert_invalid_because(handoff_raw_receive_verified(BAD, store, NULL, 0, &token, &fd),
                           socket_is);
    assert_invalid_because(handoff_raw_token_send(BAD, &token), socket_is);
    assert_invalid_because(handoff_raw_token_receive(BAD, 0, &token), socket_is);
    assert_invalid_because(handoff_raw_ack_accept(BAD, &token), socket_is);
    assert_invalid_because(handoff_raw_ack_reject(BAD, &token, HANDOFF_REASON_REJECTED),
                           socket_is);
    assert_invalid_because(handoff_raw_ack_wait(BAD, &token, 1, &ack), socket_is);
    assert_invalid_because(handoff_raw_ack_receive(BAD, &ack), socket_is);
    assert_invalid_because(handoff_raw_take_back(BAD), socket_is);
    assert_invalid_because(handoff_raw_attempt(BAD, pair[0], &token, 1, &verdict), socket_is);
    assert_invalid_because(handoff_raw_attempt(pair[0], BAD, &token, 1, &verdict), fd_is);
    assert_invalid_because(handoff_raw_attempt_path("@nobody", BAD, &token, 1, &verdict), fd_is);
    assert_invalid_because(handoff_raw_peer_check(BAD, NULL, &peer), socket_is);
    assert_invalid_because(handoff_raw_peer_credentials(BAD, &peer), socket_is);
    assert_invalid_because(handoff_backend_listen_on(BAD, NULL, &none), fd_is);
    assert_int_equal(fd, -7);
    assert_null(none);
    handoff_raw_store_free(store);
    close(pair[0]);
    close(pair[1]);
}

/* One that is not open, or open but not a socket, has a number that nothing else in the message
   could be taken for. */
static void assert_named(int fd, int error)
{
    int pair[2], out = -7;
    handoff_raw_token token = {{1}};
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    handoff_raw_peer peer = HANDOFF_RAW_PEER_INIT;
    handoff_raw_store *store;
    handoff_backend *none = NULL;
    handoff_tls_session session = HANDOFF_TLS_SESSION_INIT;
    char byte;
    size_t len;
    make_pair(SOCK_STREAM, pair);
    assert_ok(handoff_raw_store_new(NULL, &store));
#define NAMED(call)                          \
    do {                                     \
        assert_invalid_because(call, "777"); \
        assert_int_equal(errno, error);      \
    } while (0)
    NAMED(handoff_raw_send(fd, pair[0], &token));
    NAMED(handoff_raw_receive(fd, 0, &token, &out));
    NAMED(handoff_raw_receive(fd, 1, &token, &out));
    NAMED(handoff_raw_receive(fd, -1, &token, &out));
    NAMED(handoff_raw_receive_verified(fd, store, NULL, 0, &token, &out));
    NAMED(handoff_raw_receive_verified(fd, store, NULL, 1, &token, &out));
    NAMED(handoff_raw_token_send(fd, &token));
    NAMED(handoff_raw_token_receive(fd, 0, &token));
    NAMED(handoff_raw_token_receive(fd, 1, &token));
    NAMED(handoff_raw_ack_accept(fd, &token));
    NAMED(handoff_raw_ack_reject(fd, &token, HANDOFF_REASON_REJECTED));
    NAMED(handoff_raw_ack_wait(fd, &token, 1, &ack));
    NAMED(handoff_raw_ack_receive(fd, &ack));
    NAMED(handoff_raw_take_back(fd));
    NAMED(handoff_raw_attempt(fd, pair[0], &token, 1, &verdict));
    NAMED(handoff_raw_peer_check(fd, NULL, &peer));
    NAMED(handoff_raw_peer_credentials(fd, &peer));
    NAMED(handoff_backend_listen_on(fd, NULL, &none));
    NAMED(handoff_tls_get_session(fd, &session));
    NAMED(handoff_tls_receive(fd, &byte, 1, 0, &len));
    NAMED(handoff_tls_receive(fd, &byte, 1, 1, &len));
    NAMED(handoff_tls_shutdown(fd, 0));
    NAMED(handoff_tls_shutdown(fd, 1));
    if (error == EBADF) { /* what is no socket can be sent */
        handoff_raw_listener *listener;
        char name[64];
        snprintf(name, sizeof name, "@handoff-test-errors-%d", (int)getpid());
        assert_ok(handoff_raw_listener_new(name, NULL, &listener));
        NAMED(handoff_raw_send(pair[0], fd, &token));
        NAMED(handoff_raw_send_path(name, fd, &token, &out));
        NAMED(handoff_raw_attempt(pair[0], fd, &token, 1, &verdict));
        NAMED(handoff_raw_attempt_path(name, fd, &token, 1, &verdict));
        handoff_raw_listener_free(listener);
    }
#undef NAMED
    handoff_raw_store_free(store);
    close(pair[0]);
    close(pair[1]);
}

static void descriptor_that_is_not_a_socket_is_named_by_every_call(void **state)
{
    (void)state;
    int fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 777);
    assert_int_equal(fd, 777);
    assert_named(fd, ENOTSOCK);
    close(fd);
}

static void descriptor_that_is_not_open_is_named_by_every_call(void **state)
{
    (void)state;
    assert_int_equal(fcntl(777, F_GETFD), -1);
    assert_named(777, EBADF);
}

static void offered_descriptor_that_is_not_a_socket_is_named(void **state)
{
    (void)state;
    connect_broker(broker, backend);
    for (uint32_t flags = 0; flags <= HANDOFF_OFFER_TLS; flags += HANDOFF_OFFER_TLS) {
        int fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 777);
        handoff_offer offer = offer_of(fd);
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        offer.flags = flags;
        for (int error = ENOTSOCK;; error = EBADF) {
            assert_invalid_because(handoff_broker_offer(broker, &offer, NULL), "777");
            assert_int_equal(errno, error);
            assert_invalid_because(handoff_broker_offer_and_wait(broker, &offer, &verdict), "777");
            assert_int_equal(errno, error);
            if (error == EBADF)
                break;
            close(fd);
        }
    }
}

/* ---- what is not an error -------------------------------------------------------------------- */

/* Sets errno and the messages of the thread and of the handles before a call that has no result,
   and asserts that the messages, or all, are the same after it. */
#define assert_leaves_messages(call, expected)                                \
    do {                                                                      \
        fail_with_broker(broker, 1111);                                       \
        fail_with_backend(2222);                                              \
        fail_with_broker(other, 3333);                                        \
        errno = EXDEV;                                                        \
        handoff_status status_ = (call);                                      \
        errno_after = errno;                                                  \
        assert_status(status_, (expected));                                   \
        assert_last_error_has("-3333");                                       \
        assert_non_null(strstr(handoff_broker_last_error(broker), "-1111"));  \
        assert_non_null(strstr(handoff_backend_last_error(backend), "2222")); \
    } while (0)
#define assert_leaves_all(call, expected)         \
    do {                                          \
        assert_leaves_messages(call, (expected)); \
        assert_int_equal(errno_after, EXDEV);     \
    } while (0)

static int errno_after;

static void broker_without_a_verdict_leaves_errno_and_the_messages(void **state)
{
    (void)state;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_leaves_all(handoff_broker_next(broker, &verdict), HANDOFF_NOTHING);
    connect_broker(broker, backend);
    assert_leaves_all(handoff_broker_next(broker, &verdict), HANDOFF_NOTHING);
}

static void backend_without_an_arrival_leaves_errno_and_the_messages(void **state)
{
    (void)state;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    assert_leaves_all(handoff_backend_next(backend, &arrival), HANDOFF_NOTHING);
    connect_broker(broker, backend);
    assert_leaves_all(handoff_backend_next(backend, &arrival), HANDOFF_NOTHING);
}

static void registry_without_entries_leaves_errno_and_the_messages(void **state)
{
    (void)state;
    handoff_raw_store *store;
    handoff_raw_pending *pending;
    int wait_ms;
    assert_ok(handoff_raw_store_new(NULL, &store));
    assert_ok(handoff_raw_pending_new(store, NULL, &pending));
    assert_leaves_all(handoff_raw_pending_expire(pending, NULL, NULL), HANDOFF_NOTHING);
    assert_leaves_all(handoff_raw_pending_next_wait(pending, &wait_ms), HANDOFF_NOTHING);
    handoff_raw_pending_free(pending);
    handoff_raw_store_free(store);
}

static void backend_that_waits_in_vain_leaves_errno_and_the_messages(void **state)
{
    (void)state;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    assert_leaves_all(handoff_backend_accept(backend, 0, &arrival), HANDOFF_TIMED_OUT);
    assert_leaves_all(handoff_backend_accept(backend, 1, &arrival), HANDOFF_TIMED_OUT);
    connect_broker(broker, backend);
    assert_leaves_all(handoff_backend_accept(backend, 0, &arrival), HANDOFF_TIMED_OUT);
    assert_leaves_all(handoff_backend_accept(backend, 1, &arrival), HANDOFF_TIMED_OUT);
}

static void wait_that_is_woken_leaves_the_messages(void **state)
{
    (void)state;
    int client[2];
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_ok(handoff_backend_wake(backend));
    assert_leaves_all(handoff_backend_accept(backend, -1, &arrival), HANDOFF_WOKEN);
    connect_broker(broker, backend);
    make_pair(SOCK_STREAM, client);
    handoff_offer offer = offer_of(client[0]);
    assert_ok(handoff_broker_wake(broker));
    assert_leaves_messages(handoff_broker_offer_and_wait(broker, &offer, &verdict),
                           HANDOFF_WOKEN);
    close(client[0]);
    close(client[1]);
}

/* Its verdict cannot be sent: the broker is gone. */
static void next_that_sends_verdicts_in_vain_leaves_the_messages(void **state)
{
    (void)state;
    int client[2], fd;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    connect_broker(other, backend);
    make_pair(SOCK_STREAM, client);
    handoff_offer offer = offer_of(client[0]);
    assert_ok(handoff_broker_offer(other, &offer, NULL));
    assert_ok(handoff_backend_dispatch(backend));
    assert_ok(handoff_backend_next(backend, &arrival));
    assert_ok(handoff_backend_adopt(backend, arrival.id, &fd));
    handoff_broker_free(other);
    assert_ok(handoff_broker_new(path, NULL, &other));
    assert_leaves_messages(handoff_backend_next(backend, &arrival), HANDOFF_NOTHING);
    close(fd);
    close(client[0]);
    close(client[1]);
}

static void raw_calls_that_wait_in_vain_leave_the_messages(void **state)
{
    (void)state;
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        int pair[2], fd;
        handoff_raw_token token;
        handoff_raw_store *store;
        handoff_raw_listener *listener;
        char name[64];
        snprintf(name, sizeof name, "@handoff-test-errors-%d", getpid());
        make_pair(SOCK_STREAM | (nonblocking ? SOCK_NONBLOCK : 0), pair);
        assert_ok(handoff_raw_store_new(NULL, &store));
        assert_ok(handoff_raw_listener_new(name, NULL, &listener));
        for (int wait_ms = 0; wait_ms < 2; wait_ms++) {
            assert_leaves_messages(handoff_raw_receive(pair[0], wait_ms, &token, &fd),
                                   HANDOFF_TIMED_OUT);
            assert_leaves_messages(
                handoff_raw_receive_verified(pair[0], store, NULL, wait_ms, &token, &fd),
                HANDOFF_TIMED_OUT);
            assert_leaves_messages(handoff_raw_token_receive(pair[0], wait_ms, &token),
                                   HANDOFF_TIMED_OUT);
            assert_leaves_messages(handoff_raw_listener_accept(listener, NULL, wait_ms, &fd),
                                   HANDOFF_TIMED_OUT);
        }
        handoff_raw_listener_free(listener);
        handoff_raw_store_free(store);
        close(pair[0]);
        close(pair[1]);
    }
}

static void connection_without_an_acknowledgement_leaves_the_messages(void **state)
{
    (void)state;
    int pair[2];
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    make_pair(SOCK_STREAM, pair);
    assert_leaves_messages(handoff_raw_ack_receive(pair[0], &ack), HANDOFF_NOTHING);
    close(pair[0]);
    close(pair[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(errno_is_the_systems_error_and_the_message_names_the_path),
        TEST(errno_is_the_systems_error_and_the_message_names_the_descriptor),
        TEST(errno_is_0_and_the_message_names_the_argument_without_a_system_error),
        TEST(errno_and_status_of_the_last_error_are_kept_for_each_thread),
        TEST(message_outlives_calls_that_succeed),
        TEST(message_shows_no_token),
        TEST(path_that_is_too_long_is_cut_and_the_limit_named),
        TEST(each_thread_has_a_message_of_its_own_empty_at_first),
        TEST(child_of_fork_begins_with_a_copy_of_the_message),
        HANDLE_TEST(message_of_a_handle_is_empty_until_a_call_of_it_fails),
        HANDLE_TEST(message_of_a_handle_is_about_the_last_error_of_its_own_calls),
        HANDLE_TEST(message_of_a_handle_survives_other_errors_and_its_own_successes),
        HANDLE_TEST(every_failing_call_of_a_broker_sets_its_message),
        HANDLE_TEST(every_failing_call_of_a_backend_sets_its_message),
        HANDLE_TEST(every_call_in_another_process_sets_the_message),
        HANDLE_TEST(message_of_a_handle_is_read_in_another_thread),
        HANDLE_TEST(message_of_a_handle_outlives_the_thread_that_made_it),
        TEST(descriptor_that_cannot_be_one_is_named_by_every_call),
        TEST(descriptor_that_is_not_a_socket_is_named_by_every_call),
        TEST(descriptor_that_is_not_open_is_named_by_every_call),
        HANDLE_TEST(offered_descriptor_that_is_not_a_socket_is_named),
        HANDLE_TEST(broker_without_a_verdict_leaves_errno_and_the_messages),
        HANDLE_TEST(backend_without_an_arrival_leaves_errno_and_the_messages),
        HANDLE_TEST(registry_without_entries_leaves_errno_and_the_messages),
        HANDLE_TEST(backend_that_waits_in_vain_leaves_errno_and_the_messages),
        HANDLE_TEST(wait_that_is_woken_leaves_the_messages),
        HANDLE_TEST(next_that_sends_verdicts_in_vain_leaves_the_messages),
        HANDLE_TEST(raw_calls_that_wait_in_vain_leave_the_messages),
        HANDLE_TEST(connection_without_an_acknowledgement_leaves_the_messages),
    };
    return RUN_TESTS(tests);
}
