/* The broker's end by itself: without a backend, or with one that never says welcome. */
#define _GNU_SOURCE
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

/* What most tests begin with: a path in a fresh directory, and a socket that could be offered. */
static char directory[64], path[80];
static handoff_broker *broker;
static int client[2];

static int make_broker(void **state)
{
    descriptors_before(state);
    make_directory(directory);
    snprintf(path, sizeof path, "%s/socket", directory);
    assert_ok(handoff_broker_new(path, NULL, &broker));
    make_pair(SOCK_STREAM, client);
    return 0;
}

static int free_broker(void **state)
{
    handoff_broker_free(broker);
    close(client[0]);
    close(client[1]);
    remove_directory(directory);
    return descriptors_after(state);
}

#define BROKER_TEST(function) \
    cmocka_unit_test_setup_teardown(function, make_broker, free_broker)

/* A handoff socket on which nobody speaks. */
static int listen_in_silence(void)
{
    return listen_unix(path, SOCK_SEQPACKET | SOCK_NONBLOCK);
}

static void assert_refused(handoff_status status, int os_error)
{
    handoff_offer offer = offer_of(client[0]);
    uint64_t id = 42, refused = broker_statistics(broker).refused;
    errno = EDOM;
    assert_status(handoff_broker_offer(broker, &offer, &id), status);
    assert_int_equal(errno, os_error);
    assert_string_not_equal(handoff_last_error(), "");
    assert_int_equal(id, 42);
    assert_int_equal(broker_statistics(broker).refused, refused + 1);
}

static void new_broker_opens_nothing_and_connects_on_its_first_use(void **state)
{
    (void)state;
    int listener = listen_in_silence(), before = count_descriptors();
    handoff_broker *fresh;
    assert_ok(handoff_broker_new(path, NULL, &fresh));
    assert_int_equal(count_descriptors(), before);
    assert_int_equal(accept4(listener, NULL, NULL, SOCK_CLOEXEC), -1);
    assert_int_equal(errno, EAGAIN);
    assert_int_not_equal(handoff_broker_fd(fresh), -1);
    int accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_int_not_equal(accepted, -1);
    handoff_broker_free(fresh);
    close(accepted);
    close(listener);
}

static void questions_and_next_are_no_use_and_open_nothing(void **state)
{
    (void)state;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    int before = count_descriptors();
    assert_int_equal(broker_statistics(broker).offered, 0);
    assert_status(handoff_broker_next(broker, &verdict), HANDOFF_NOTHING);
    assert_int_equal(count_descriptors(), before);
}

static void descriptor_stays_the_same_and_is_close_on_exec(void **state)
{
    (void)state;
    int fd = handoff_broker_fd(broker);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    assert_ok(handoff_broker_dispatch(broker));
    assert_ok(handoff_broker_flush(broker));
    assert_int_equal(handoff_broker_fd(broker), fd);
}

static void path_that_cannot_be_a_sockets_is_refused(void **state)
{
    (void)state;
    char longest[109];
    handoff_broker *none = NULL;
    handoff_broker_backend backend = HANDOFF_BROKER_BACKEND_INIT;
    memset(longest, 'x', 108);
    longest[108] = '\0';
    assert_invalid(handoff_broker_new(longest, NULL, &none));
    assert_invalid(handoff_broker_new("", NULL, &none));
    assert_null(none);
    backend.path = longest;
    assert_invalid(handoff_broker_add(broker, &backend));
    backend.path = "";
    assert_invalid(handoff_broker_add(broker, &backend));
    longest[107] = '\0';
    assert_ok(handoff_broker_new(longest, NULL, &none));
    handoff_broker_free(none);
    assert_ok(handoff_broker_new("@name", NULL, &none));
    handoff_broker_free(none);
}

static void broker_without_a_path_has_no_backend(void **state)
{
    (void)state;
    handoff_broker_backend_state first = HANDOFF_BROKER_BACKEND_STATE_INIT;
    handoff_broker *empty;
    handoff_offer offer = offer_of(client[0]);
    assert_ok(handoff_broker_new(NULL, NULL, &empty));
    assert_int_not_equal(handoff_broker_fd(empty), -1);
    assert_ok(handoff_broker_dispatch(empty));
    assert_status(handoff_broker_get_backend_state(empty, 0, &first), HANDOFF_NOTHING);
    assert_int_equal(handoff_broker_room(empty), 0);
    assert_status(handoff_broker_offer(empty, &offer, NULL), HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_last_error_has("no backend");
    handoff_broker_free(empty);
}

static void options_out_of_range_are_clamped(void **state)
{
    (void)state;
    const handoff_broker_options least = {
        .size = sizeof least,
        .max_in_flight = 1,
        .timeout_ms = 1,
        .attempt_timeout_ms = 1,
        .failover_bytes = 1,
        .queue_bytes = 1,
        .max_failures = 1,
        .failure_period_ms = 1,
        .reconnect_min_ms = 1,
        .reconnect_max_ms = 1,
        .spin_us = 1,
    };
    const handoff_broker_options most = {
        .size = sizeof most,
        .max_in_flight = SIZE_MAX,
        .timeout_ms = UINT64_MAX - 1,
        .attempt_timeout_ms = UINT64_MAX - 1,
        .failover_bytes = SIZE_MAX,
        .queue_bytes = SIZE_MAX,
        .max_failures = SIZE_MAX - 1,
        .failure_period_ms = UINT64_MAX - 1,
        .reconnect_min_ms = UINT64_MAX - 1,
        .reconnect_max_ms = UINT64_MAX - 1,
        .spin_us = UINT32_MAX,
    };
    const handoff_broker_options *both[] = {&least, &most};
    for (int i = 0; i < 2; i++) {
        handoff_broker *odd;
        assert_ok(handoff_broker_new(path, both[i], &odd));
        assert_ok(handoff_broker_dispatch(odd));
        assert_ok(handoff_broker_close(odd));
        handoff_broker_free(odd);
    }
}

/* Every call with each of its pointers in turn NULL or misaligned. */
static void calls_refuse(void *bad)
{
    handoff_offer offer = offer_of(client[0]);
    handoff_broker *none = NULL;
    handoff_broker_statistics statistics = HANDOFF_BROKER_STATISTICS_INIT;
    handoff_broker_backend backend = HANDOFF_BROKER_BACKEND_INIT;
    handoff_broker_backend_state backend_state = HANDOFF_BROKER_BACKEND_STATE_INIT;
    handoff_verdict verdict, untouched;
    backend.path = path;
    memset(&verdict, 0x55, sizeof verdict);
    verdict.size = sizeof verdict;
    untouched = verdict;
    uint64_t id = 42;
    errno = EDOM;
    assert_invalid(handoff_broker_new(path, NULL, bad));
    assert_int_equal(errno, 0);
    assert_last_error_has("invalid argument: broker is ");
    assert_int_equal(handoff_broker_fd(bad), -1);
    assert_int_equal(errno, 0);
    assert_invalid(handoff_broker_offer(bad, &offer, &id));
    assert_invalid(handoff_broker_offer(broker, bad, &id));
    assert_invalid(handoff_broker_offer_and_wait(bad, &offer, &verdict));
    assert_invalid(handoff_broker_offer_and_wait(broker, bad, &verdict));
    assert_invalid(handoff_broker_offer_and_wait(broker, &offer, bad));
    assert_invalid(handoff_broker_flush(bad));
    assert_invalid(handoff_broker_dispatch(bad));
    assert_invalid(handoff_broker_next(bad, &verdict));
    assert_invalid(handoff_broker_next(broker, bad));
    assert_invalid(handoff_broker_take_back(bad, 1));
    assert_invalid(handoff_broker_close(bad));
    assert_invalid(handoff_broker_get_statistics(bad, &statistics));
    assert_invalid(handoff_broker_get_statistics(broker, bad));
    assert_invalid(handoff_broker_add(bad, &backend));
    assert_invalid(handoff_broker_add(broker, bad));
    assert_invalid(handoff_broker_remove(bad, path));
    assert_int_equal(handoff_broker_room(bad), 0);
    assert_last_error_has("invalid argument: broker is ");
    assert_int_equal(errno, 0);
    assert_invalid(handoff_broker_get_backend_state(bad, 0, &backend_state));
    assert_invalid(handoff_broker_get_backend_state(broker, 0, bad));
    handoff_broker_free(bad);
    assert_null(none);
    assert_int_equal(id, 42);
    assert_memory_equal(&verdict, &untouched, sizeof verdict);
}

static void null_is_refused(void **state)
{
    (void)state;
    handoff_broker_backend nowhere = HANDOFF_BROKER_BACKEND_INIT;
    calls_refuse(NULL);
    assert_invalid(handoff_broker_add(broker, &nowhere));
    assert_invalid(handoff_broker_remove(broker, NULL));
}

static void misaligned_pointers_are_refused(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    handoff_broker *none = NULL;
    calls_refuse(misaligned());
    assert_invalid(handoff_broker_new(path, misaligned(), &none));
    assert_invalid(handoff_broker_offer(broker, &offer, misaligned()));
    assert_null(none);
    assert_int_equal(broker_statistics(broker).offered, 0);
}

static void offer_whose_parts_are_nonsense_is_refused(void **state)
{
    (void)state;
    handoff_offer preread = offer_of(client[0]), metadata = preread, endless = preread;
    preread.preread_len = 1;
    metadata.metadata_len = 1;
    endless.preread = "x";
    endless.preread_len = SIZE_MAX;
    assert_invalid_because(handoff_broker_offer(broker, &preread, NULL),
                           "offer.preread is NULL");
    assert_invalid_because(handoff_broker_offer(broker, &metadata, NULL),
                           "offer.metadata is NULL");
    char reason[80];
    snprintf(reason, sizeof reason, "offer.preread cannot have %zu bytes", SIZE_MAX);
    assert_invalid_because(handoff_broker_offer(broker, &endless, NULL), reason);
}

static void descriptor_that_cannot_be_one_is_refused_and_named(void **state)
{
    (void)state;
    handoff_offer offer = HANDOFF_OFFER_INIT;
    assert_invalid_because(handoff_broker_offer(broker, &offer, NULL), "offer.fd is -1");
    offer.fd = -4711;
    assert_invalid_because(handoff_broker_offer(broker, &offer, NULL), "offer.fd is -4711");
}

static void unknown_flag_is_refused_and_named(void **state)
{
    (void)state;
    static const uint32_t unknown[] = {4, HANDOFF_OFFER_MORE | 8, UINT32_MAX};
    handoff_offer offer = offer_of(client[0]);
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        offer.flags = unknown[i];
        assert_invalid_because(handoff_broker_offer(broker, &offer, NULL), "offer.flags");
    }
    handoff_broker_backend backend = HANDOFF_BROKER_BACKEND_INIT;
    backend.path = "@other";
    for (uint32_t flags = 4; flags != 0; flags <<= 1) {
        backend.flags = HANDOFF_BACKEND_BACKUP | flags;
        assert_invalid_because(handoff_broker_add(broker, &backend), "backend.flags");
    }
    assert_status(handoff_broker_remove(broker, backend.path), HANDOFF_NOTHING);
}

static void offer_without_a_backend_is_refused_at_once_and_says_why(void **state)
{
    (void)state;
    assert_refused(HANDOFF_ERR_BACKEND_UNAVAILABLE, ENOENT);
    assert_non_null(strstr(handoff_last_error(), path));
    assert_int_equal(broker_statistics(broker).offered, 0);
}

/* A mistake in a program shows before its first backend does. */
static void what_is_no_socket_is_refused_without_a_backend_too(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    handoff_offer offer = offer_of(ends[0]);
    assert_invalid_because(handoff_broker_offer(broker, &offer, NULL), "is a pipe");
    close(ends[0]);
    close(ends[1]);
    assert_invalid_because(handoff_broker_offer(broker, &offer, NULL), "is not open");
    close(listen_in_silence());
    offer.fd = open(path, O_PATH | O_CLOEXEC);
    assert_int_not_equal(offer.fd, -1);
    assert_invalid_because(handoff_broker_offer(broker, &offer, NULL), "is opened with O_PATH");
    close(offer.fd);
}

static void offer_to_a_socket_that_nobody_listens_on_is_refused(void **state)
{
    (void)state;
    close(listen_in_silence());
    assert_refused(HANDOFF_ERR_BACKEND_UNAVAILABLE, ECONNREFUSED);
}

static void offer_to_a_backend_that_never_says_welcome_is_refused(void **state)
{
    (void)state;
    int listener = listen_in_silence();
    assert_refused(HANDOFF_ERR_BACKEND_UNAVAILABLE, ENOTCONN);
    close(listener);
}

static void offer_to_a_socket_without_permission_is_refused(void **state)
{
    (void)state;
    int listener = listen_in_silence();
    assert_int_equal(chmod(path, 0600), 0);
    assert_int_equal(chmod(directory, 0755), 0);
    pid_t child = start_child();
    if (child == 0) {
        become_nobody();
        assert_refused(HANDOFF_ERR_PERMISSION_DENIED, EACCES);
        _exit(0);
    }
    assert_child_succeeds(child);
    close(listener);
}

static void waiting_offer_without_a_backend_is_refused_and_says_why(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = {.size = sizeof verdict, .id = 42};
    assert_status(handoff_broker_offer_and_wait(broker, &offer, &verdict),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_int_equal(errno, ENOENT);
    assert_int_equal(verdict.id, 42);
    assert_int_equal(broker_statistics(broker).refused, 1);
}

static void taking_back_what_was_never_offered_is_too_late(void **state)
{
    (void)state;
    static const uint64_t ids[] = {0, 1, 4096, UINT64_MAX};
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++)
        assert_status(handoff_broker_take_back(broker, ids[i]), HANDOFF_ERR_TOO_LATE);
}

static void closed_broker_tells_what_it_did_and_nothing_else(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_broker_backend other = HANDOFF_BROKER_BACKEND_INIT;
    handoff_broker_backend_state first = HANDOFF_BROKER_BACKEND_STATE_INIT;
    other.path = "@other";
    assert_int_not_equal(handoff_broker_fd(broker), -1);
    assert_ok(handoff_broker_close(broker));
    assert_int_equal(handoff_broker_fd(broker), -1);
    assert_status(handoff_broker_offer_and_wait(broker, &offer, &verdict), HANDOFF_ERR_CLOSED);
    assert_status(handoff_broker_flush(broker), HANDOFF_ERR_CLOSED);
    assert_status(handoff_broker_dispatch(broker), HANDOFF_ERR_CLOSED);
    assert_status(handoff_broker_take_back(broker, 1), HANDOFF_ERR_CLOSED);
    assert_status(handoff_broker_add(broker, &other), HANDOFF_ERR_CLOSED);
    assert_status(handoff_broker_remove(broker, path), HANDOFF_ERR_CLOSED);
    assert_int_equal(handoff_broker_room(broker), 0);
    assert_last_error_has("closed");
    assert_status(handoff_broker_close(broker), HANDOFF_ERR_CLOSED);
    assert_refused(HANDOFF_ERR_CLOSED, 0);
    assert_ok(handoff_broker_get_backend_state(broker, 0, &first));
    assert_string_equal(first.path, path);
    assert_status(handoff_broker_next(broker, &verdict), HANDOFF_NOTHING);
    assert_int_equal(broker_statistics(broker).refused, 2);
}

static void broker_that_was_never_used_can_be_closed(void **state)
{
    (void)state;
    int before = count_descriptors();
    assert_ok(handoff_broker_close(broker));
    assert_int_equal(count_descriptors(), before);
    assert_refused(HANDOFF_ERR_CLOSED, 0);
}

static void process_without_descriptors_is_told_so_and_can_try_again(void **state)
{
    (void)state;
    rlim_t limit = allow_no_more_descriptors();
    assert_refused(HANDOFF_ERR_DESCRIPTOR_PRESSURE, EMFILE);
    errno = 0;
    assert_int_equal(handoff_broker_fd(broker), -1);
    assert_int_equal(errno, EMFILE);
    allow_descriptors(limit);
    assert_refused(HANDOFF_ERR_BACKEND_UNAVAILABLE, ENOENT);
}

static void broker_made_before_fork_is_usable_after_it_on_both_sides(void **state)
{
    (void)state;
    int listener = listen_in_silence();
    pid_t child = start_child();
    if (child == 0) {
        assert_int_not_equal(handoff_broker_fd(broker), -1);
        assert_ok(handoff_broker_dispatch(broker));
        handoff_broker_free(broker);
        _exit(0);
    }
    assert_child_succeeds(child);
    assert_int_not_equal(handoff_broker_fd(broker), -1);
    for (int i = 0; i < 2; i++) {
        int accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        assert_int_not_equal(accepted, -1);
        close(accepted);
    }
    close(listener);
}

static void broker_used_in_the_parent_is_refused_in_the_child(void **state)
{
    (void)state;
    assert_ok(handoff_broker_dispatch(broker));
    pid_t child = start_child();
    if (child == 0) {
        handoff_offer offer = offer_of(client[0]);
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        handoff_broker_backend other = HANDOFF_BROKER_BACKEND_INIT;
        handoff_broker_backend_state first = HANDOFF_BROKER_BACKEND_STATE_INIT;
        handoff_status wrong = HANDOFF_ERR_WRONG_PROCESS;
        other.path = "@other";
        assert_int_equal(handoff_broker_fd(broker), -1);
        assert_refused(wrong, 0);
        assert_status(handoff_broker_offer_and_wait(broker, &offer, &verdict), wrong);
        assert_status(handoff_broker_flush(broker), wrong);
        assert_status(handoff_broker_dispatch(broker), wrong);
        assert_status(handoff_broker_next(broker, &verdict), wrong);
        assert_status(handoff_broker_take_back(broker, 1), wrong);
        assert_status(handoff_broker_add(broker, &other), wrong);
        assert_status(handoff_broker_remove(broker, path), wrong);
        assert_int_equal(handoff_broker_room(broker), 0);
        assert_ok(handoff_broker_get_backend_state(broker, 0, &first));
        assert_status(handoff_broker_close(broker), wrong);
        handoff_broker_free(broker);
        _exit(0);
    }
    assert_child_succeeds(child);
    assert_ok(handoff_broker_dispatch(broker));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BROKER_TEST(new_broker_opens_nothing_and_connects_on_its_first_use),
        BROKER_TEST(questions_and_next_are_no_use_and_open_nothing),
        BROKER_TEST(descriptor_stays_the_same_and_is_close_on_exec),
        BROKER_TEST(path_that_cannot_be_a_sockets_is_refused),
        BROKER_TEST(broker_without_a_path_has_no_backend),
        BROKER_TEST(options_out_of_range_are_clamped),
        BROKER_TEST(null_is_refused),
        BROKER_TEST(misaligned_pointers_are_refused),
        BROKER_TEST(offer_whose_parts_are_nonsense_is_refused),
        BROKER_TEST(descriptor_that_cannot_be_one_is_refused_and_named),
        BROKER_TEST(unknown_flag_is_refused_and_named),
        BROKER_TEST(offer_without_a_backend_is_refused_at_once_and_says_why),
        BROKER_TEST(what_is_no_socket_is_refused_without_a_backend_too),
        BROKER_TEST(offer_to_a_socket_that_nobody_listens_on_is_refused),
        BROKER_TEST(offer_to_a_backend_that_never_says_welcome_is_refused),
        BROKER_TEST(offer_to_a_socket_without_permission_is_refused),
        BROKER_TEST(waiting_offer_without_a_backend_is_refused_and_says_why),
        BROKER_TEST(taking_back_what_was_never_offered_is_too_late),
        BROKER_TEST(closed_broker_tells_what_it_did_and_nothing_else),
        BROKER_TEST(broker_that_was_never_used_can_be_closed),
        BROKER_TEST(process_without_descriptors_is_told_so_and_can_try_again),
        BROKER_TEST(broker_made_before_fork_is_usable_after_it_on_both_sides),
        BROKER_TEST(broker_used_in_the_parent_is_refused_in_the_child),
    };
    return RUN_TESTS(tests);
}
