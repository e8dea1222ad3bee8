/* What statuses are called and mean, handoff_last_error(), the version and the clock. */
#define _GNU_SOURCE
#include "support.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Every status: how the attempt failed, whether a fallback may hide it, and whether the descriptor
   may have reached the backend. */
#define STATUS(status, failure, hidden, reached) \
    {status, #status, HANDOFF_FAILURE_##failure, hidden, reached}

static const struct {
    handoff_status status;
    const char *name;
    handoff_failure failure;
    bool hidden;
    bool reached;
} statuses[] = {
    STATUS(HANDOFF_OK, NONE, false, true),
    STATUS(HANDOFF_ERR_INVALID_ARGUMENT, NONE, false, false),
    STATUS(HANDOFF_ERR_UNSUPPORTED, UNSUPPORTED_PLATFORM, true, false),
    STATUS(HANDOFF_ERR_PERMISSION_DENIED, PERMISSION_DENIED, true, false),
    STATUS(HANDOFF_ERR_BACKEND_UNAVAILABLE, BACKEND_UNAVAILABLE, true, false),
    STATUS(HANDOFF_ERR_WOULD_BLOCK, BACKEND_BUSY, true, false),
    STATUS(HANDOFF_ERR_DESCRIPTOR_PRESSURE, DESCRIPTOR_PRESSURE, true, false),
    STATUS(HANDOFF_ERR_SEND_FAILED, BACKEND_UNAVAILABLE, true, false),
    STATUS(HANDOFF_ERR_SHORT_WRITE, INTEGRITY_MISMATCH, true, true),
    STATUS(HANDOFF_ERR_ACK_TIMEOUT, ACK_TIMEOUT, true, true),
    STATUS(HANDOFF_ERR_ACK_MISMATCH, INTEGRITY_MISMATCH, true, true),
    STATUS(HANDOFF_ERR_ACK_MALFORMED, INTEGRITY_MISMATCH, true, true),
    STATUS(HANDOFF_ERR_RECEIVE_FAILED, BACKEND_UNAVAILABLE, true, true),
    STATUS(HANDOFF_ERR_END_OF_STREAM, BACKEND_UNAVAILABLE, true, true),
    STATUS(HANDOFF_ERR_NO_DESCRIPTOR, INTEGRITY_MISMATCH, true, false),
    STATUS(HANDOFF_ERR_SURPLUS_DESCRIPTORS, INTEGRITY_MISMATCH, true, false),
    STATUS(HANDOFF_ERR_CONTROL_TRUNCATED, DESCRIPTOR_PRESSURE, true, false),
    STATUS(HANDOFF_ERR_WRONG_LENGTH, INTEGRITY_MISMATCH, true, false),
    STATUS(HANDOFF_ERR_TOKEN_MISMATCH, INTEGRITY_MISMATCH, true, false),
    STATUS(HANDOFF_ERR_TOKEN_EXPIRED, INTEGRITY_MISMATCH, true, false),
    STATUS(HANDOFF_ERR_TOKEN_NOT_PENDING, INTEGRITY_MISMATCH, true, false),
    STATUS(HANDOFF_ERR_TOKEN_ALREADY_PENDING, INTEGRITY_MISMATCH, true, false),
    STATUS(HANDOFF_ERR_TOKEN_COLLISION, INTEGRITY_MISMATCH, true, false),
    STATUS(HANDOFF_ERR_FULL, BACKEND_BUSY, true, false),
    STATUS(HANDOFF_ERR_RANDOM, BACKEND_UNAVAILABLE, true, false),
    STATUS(HANDOFF_ERR_PEER_UNKNOWN, PERMISSION_DENIED, true, false),
    STATUS(HANDOFF_ERR_PEER_NOT_ALLOWED, PERMISSION_DENIED, true, false),
    STATUS(HANDOFF_ERR_ADDRESS_IN_USE, BACKEND_UNAVAILABLE, true, false),
    STATUS(HANDOFF_ERR_NOT_A_SOCKET, BACKEND_UNAVAILABLE, true, false),
    STATUS(HANDOFF_ERR_LISTEN_FAILED, BACKEND_UNAVAILABLE, true, false),
    STATUS(HANDOFF_ERR_INTERNAL, NONE, false, true),
    STATUS(HANDOFF_NOTHING, NONE, false, true),
    STATUS(HANDOFF_ERR_RATE_LIMITED, BACKEND_UNAVAILABLE, true, false),
    STATUS(HANDOFF_ERR_TOO_LARGE, BACKEND_BUSY, true, false),
    STATUS(HANDOFF_ERR_WRONG_PROCESS, NONE, false, false),
    STATUS(HANDOFF_ERR_CLOSED, NONE, false, false),
    STATUS(HANDOFF_ERR_TAKEN_BACK, ACK_TIMEOUT, true, false),
    STATUS(HANDOFF_ERR_TOO_LATE, ACK_TIMEOUT, true, false),
    STATUS(HANDOFF_ERR_SYSTEM, BACKEND_UNAVAILABLE, true, false),
};

static const size_t statuses_len = sizeof statuses / sizeof statuses[0];

static const handoff_status unknown_statuses[] = {
    -1, INT32_MIN, INT32_MAX, 1000, HANDOFF_ERR_SYSTEM + 1,
};

static const size_t unknown_len = sizeof unknown_statuses / sizeof unknown_statuses[0];

/* Numbers begin at 0 and have no gap, so that the table above cannot lack one of the header's
   unnoticed: the library knows no number that is not in it. */
static void every_status_has_a_number_of_its_own(void **state)
{
    (void)state;
    for (size_t i = 0; i < statuses_len; i++)
        assert_int_equal(statuses[i].status, i);
}

static void every_status_has_the_name_of_its_constant(void **state)
{
    (void)state;
    for (size_t i = 0; i < statuses_len; i++)
        assert_string_equal(handoff_status_name(statuses[i].status), statuses[i].name);
}

static void every_status_has_a_message_of_its_own(void **state)
{
    (void)state;
    for (size_t i = 0; i < statuses_len; i++) {
        const char *message = handoff_status_message(statuses[i].status);
        assert_non_null(message);
        assert_string_not_equal(message, "");
        assert_string_not_equal(message, "unknown status");
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(message, handoff_status_message(statuses[j].status));
    }
}

static void every_status_says_what_an_attempt_makes_of_it(void **state)
{
    (void)state;
    for (size_t i = 0; i < statuses_len; i++) {
        handoff_status status = statuses[i].status;
        assert_int_equal(handoff_status_failure(status), statuses[i].failure);
        assert_int_equal(handoff_status_is_fallback_safe(status), statuses[i].hidden);
        assert_int_equal(handoff_status_may_have_reached_backend(status), statuses[i].reached);
    }
}

static void unknown_status_is_named_so_and_never_hidden(void **state)
{
    (void)state;
    for (size_t i = 0; i < unknown_len; i++) {
        handoff_status status = unknown_statuses[i];
        assert_string_equal(handoff_status_name(status), "HANDOFF_ERR_UNKNOWN");
        assert_string_equal(handoff_status_message(status), "unknown status");
        assert_int_equal(handoff_status_failure(status), HANDOFF_FAILURE_NONE);
        assert_false(handoff_status_is_fallback_safe(status));
        assert_true(handoff_status_may_have_reached_backend(status));
    }
}

static void every_reason_has_a_name_of_its_own_in_lower_case(void **state)
{
    (void)state;
    for (handoff_reason reason = 0; reason <= HANDOFF_REASON_BACKEND_DIED; reason++) {
        const char *name = handoff_reason_name(reason);
        assert_string_not_equal(name, "unknown");
        for (const char *c = name; *c != '\0'; c++)
            assert_true(islower((unsigned char)*c) || *c == ' ');
        for (handoff_reason other = 0; other < reason; other++)
            assert_string_not_equal(name, handoff_reason_name(other));
    }
    assert_string_equal(handoff_reason_name(HANDOFF_REASON_NONE), "none");
    assert_string_equal(handoff_reason_name(HANDOFF_REASON_ACK_TIMEOUT),
                        "acknowledgement timeout");
    assert_string_equal(handoff_reason_name(HANDOFF_REASON_BACKEND_DIED + 1), "unknown");
    assert_string_equal(handoff_reason_name(UINT32_MAX), "unknown");
}

static void every_failure_is_a_reason_of_the_same_name(void **state)
{
    (void)state;
#define SAME(name) assert_int_equal(handoff_failure_reason(HANDOFF_FAILURE_##name), \
                                    HANDOFF_REASON_##name)
    SAME(NONE);
    SAME(PERMISSION_DENIED);
    SAME(INTEGRITY_MISMATCH);
    SAME(ACK_TIMEOUT);
    SAME(BACKEND_UNAVAILABLE);
    SAME(BACKEND_BUSY);
    SAME(DESCRIPTOR_PRESSURE);
    SAME(UNSUPPORTED_PLATFORM);
#undef SAME
    assert_int_equal(handoff_failure_reason(HANDOFF_FAILURE_UNSUPPORTED_PLATFORM + 1),
                     HANDOFF_REASON_NONE);
    assert_int_equal(handoff_failure_reason(UINT32_MAX), HANDOFF_REASON_NONE);
}

static void library_and_header_are_of_one_version(void **state)
{
    (void)state;
    char numbers[64];
    snprintf(numbers, sizeof numbers, "%d.%d.%d", HANDOFF_VERSION_MAJOR, HANDOFF_VERSION_MINOR,
             HANDOFF_VERSION_PATCH);
    assert_string_equal(handoff_version(), HANDOFF_VERSION);
    assert_string_equal(HANDOFF_VERSION, numbers);
}

static void errno_is_the_systems_error_and_the_sentence_names_the_path(void **state)
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

static void errno_is_the_systems_error_and_the_sentence_names_the_descriptor(void **state)
{
    (void)state;
    /* A number that nothing else in the sentence could be taken for. */
    int fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 777);
    handoff_raw_peer peer = HANDOFF_RAW_PEER_INIT;
    assert_int_equal(fd, 777);
    errno = 0;
    assert_invalid(handoff_raw_peer_credentials(fd, &peer));
    assert_int_equal(errno, ENOTSOCK);
    assert_non_null(strstr(handoff_last_error(), "777"));
    close(fd);
}

static void errno_is_0_and_the_sentence_names_the_argument_without_a_system_error(void **state)
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

static void sentence_outlives_calls_that_succeed(void **state)
{
    (void)state;
    char sentence[512];
    handoff_raw_token token;
    assert_invalid(handoff_raw_token_generate(NULL));
    snprintf(sentence, sizeof sentence, "%s", handoff_last_error());
    assert_ok(handoff_raw_token_generate(&token));
    assert_string_equal(handoff_last_error(), sentence);
}

static void nothing_leaves_errno_and_the_sentence_as_they_were(void **state)
{
    (void)state;
    handoff_raw_store *store;
    handoff_raw_pending *pending;
    char sentence[512];
    assert_ok(handoff_raw_store_new(NULL, &store));
    assert_ok(handoff_raw_pending_new(store, NULL, &pending));
    assert_invalid(handoff_raw_token_generate(NULL));
    snprintf(sentence, sizeof sentence, "%s", handoff_last_error());
    errno = EXDEV;
    handoff_status status = handoff_raw_pending_expire(pending, NULL, NULL);
    assert_int_equal(errno, EXDEV);
    assert_status(status, HANDOFF_NOTHING);
    assert_string_equal(handoff_last_error(), sentence);
    handoff_raw_pending_free(pending);
    handoff_raw_store_free(store);
}

static void sentence_shows_no_token(void **state)
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

static void sentence_is_cut_at_511_bytes_and_ends(void **state)
{
    (void)state;
    char path[4096];
    int socket;
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    assert_invalid(handoff_raw_connect(path, &socket));
    assert_int_equal(strlen(handoff_last_error()), 511);
}

/* cmocka's assertions are for the main thread only: a thread copies what it saw. */
struct sentences {
    char at_first[64];
    char after_error[512];
};

static void *fail_once(void *argument)
{
    struct sentences *seen = argument;
    int socket;
    snprintf(seen->at_first, sizeof seen->at_first, "%s", handoff_last_error());
    (void)handoff_raw_connect("/nonexistent/of-the-thread", &socket);
    snprintf(seen->after_error, sizeof seen->after_error, "%s", handoff_last_error());
    return NULL;
}

static void each_thread_has_a_sentence_of_its_own_empty_at_first(void **state)
{
    (void)state;
    pthread_t thread;
    struct sentences seen = {.at_first = "not looked at"};
    int socket;
    assert_status(handoff_raw_connect("/nonexistent/of-main", &socket),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_int_equal(pthread_create(&thread, NULL, fail_once, &seen), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_string_equal(seen.at_first, "");
    assert_non_null(strstr(seen.after_error, "of-the-thread"));
    assert_non_null(strstr(handoff_last_error(), "of-main"));
}

static void child_of_fork_begins_with_a_copy_of_the_sentence(void **state)
{
    (void)state;
    int socket;
    assert_status(handoff_raw_connect("/nonexistent/of-parent", &socket),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    pid_t child = fork();
    assert_int_not_equal(child, -1);
    if (child == 0)
        _exit(strstr(handoff_last_error(), "of-parent") == NULL);
    assert_child_succeeds(child);
}

static uint64_t monotonic_ns(void)
{
    struct timespec time;
    assert_int_equal(clock_gettime(CLOCK_MONOTONIC, &time), 0);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void now_is_the_monotonic_clock_in_nanoseconds(void **state)
{
    (void)state;
    uint64_t before = monotonic_ns();
    uint64_t now = handoff_now();
    uint64_t after = monotonic_ns();
    assert_in_range(now, before, after);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_status_has_a_number_of_its_own),
        TEST(every_status_has_the_name_of_its_constant),
        TEST(every_status_has_a_message_of_its_own),
        TEST(every_status_says_what_an_attempt_makes_of_it),
        TEST(unknown_status_is_named_so_and_never_hidden),
        TEST(every_reason_has_a_name_of_its_own_in_lower_case),
        TEST(every_failure_is_a_reason_of_the_same_name),
        TEST(library_and_header_are_of_one_version),
        TEST(errno_is_the_systems_error_and_the_sentence_names_the_path),
        TEST(errno_is_the_systems_error_and_the_sentence_names_the_descriptor),
        TEST(errno_is_0_and_the_sentence_names_the_argument_without_a_system_error),
        TEST(sentence_outlives_calls_that_succeed),
        TEST(nothing_leaves_errno_and_the_sentence_as_they_were),
        TEST(sentence_shows_no_token),
        TEST(sentence_is_cut_at_511_bytes_and_ends),
        TEST(each_thread_has_a_sentence_of_its_own_empty_at_first),
        TEST(child_of_fork_begins_with_a_copy_of_the_sentence),
        TEST(now_is_the_monotonic_clock_in_nanoseconds),
    };
    return RUN_TESTS(tests);
}
