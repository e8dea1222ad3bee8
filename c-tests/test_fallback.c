/* Whether to try a backend: inputs, and the window of its failures. */
#include "support.h"

#include <pthread.h>
#include <stdio.h>

static const uint64_t MS = 1000000;

/* What most tests begin with: a state that allows two failures in a second. */
static handoff_fallback *fallback;
static uint64_t start;

static int make_fallback(void **state)
{
    handoff_fallback_options options = HANDOFF_FALLBACK_OPTIONS_INIT;
    options.max_failures = 2;
    options.window_ms = 1000;
    descriptors_before(state);
    assert_ok(handoff_fallback_new(&options, &fallback));
    start = handoff_now();
    return 0;
}

static int free_fallback(void **state)
{
    handoff_fallback_free(fallback);
    return descriptors_after(state);
}

#define FALLBACK_TEST(function) \
    cmocka_unit_test_setup_teardown(function, make_fallback, free_fallback)

static void fail_at(uint64_t now, const char *backend)
{
    assert_ok(handoff_fallback_record_failure_at(fallback, now, backend,
                                                 HANDOFF_FAILURE_ACK_TIMEOUT, NULL));
}

static void assert_decision(uint64_t now, const char *backend, const handoff_inputs *inputs,
                            handoff_reason reason, int64_t retry_after_ms)
{
    handoff_decision decision;
    assert_ok(handoff_fallback_should_attempt_at(fallback, now, backend, inputs, &decision));
    assert_string_equal(handoff_reason_name(decision.reason), handoff_reason_name(reason));
    assert_int_equal(decision.retry_after_ms, retry_after_ms);
}

static void assert_allowed(uint64_t now, const char *backend)
{
    assert_decision(now, backend, NULL, HANDOFF_REASON_NONE, -1);
}

static void assert_limited(uint64_t now, const char *backend, int64_t retry_after_ms)
{
    assert_decision(now, backend, NULL, HANDOFF_REASON_RATE_LIMITED, retry_after_ms);
}

static void first_reason_that_applies_is_given(void **state)
{
    (void)state;
    fail_at(start, "limited");
    fail_at(start, "limited");
    for (unsigned bits = 0; bits < 32; bits++) {
        /* Any number but 0 is a yes. */
        handoff_inputs inputs = {
            .size = sizeof inputs,
            .client_supported = bits & 1 ? 0 : UINT32_MAX,
            .policy_enabled = bits & 2 ? 0 : 2,
            .adopted_backend = bits & 4,
            .descriptor_pressure = bits & 8,
        };
        handoff_reason reason = bits & 1    ? HANDOFF_REASON_CLIENT_UNSUPPORTED
                                : bits & 2  ? HANDOFF_REASON_POLICY_DISABLED
                                : bits & 4  ? HANDOFF_REASON_ADOPTED_BACKEND
                                : bits & 8  ? HANDOFF_REASON_DESCRIPTOR_PRESSURE
                                : bits & 16 ? HANDOFF_REASON_RATE_LIMITED
                                            : HANDOFF_REASON_NONE;
        assert_decision(start, bits & 16 ? "limited" : "fresh", &inputs, reason,
                        bits == 16 ? 1000 : -1);
    }
}

static void inputs_begin_with_everything_allowed(void **state)
{
    (void)state;
    handoff_inputs inputs = HANDOFF_INPUTS_INIT;
    assert_decision(start, "app", &inputs, HANDOFF_REASON_NONE, -1);
    assert_decision(start, "app", NULL, HANDOFF_REASON_NONE, -1);
}

static void inputs_that_an_older_header_lacks_speak_against_nothing(void **state)
{
    (void)state;
    handoff_inputs inputs = {offsetof(handoff_inputs, policy_enabled), 1, 0, 1, 1};
    assert_decision(start, "app", &inputs, HANDOFF_REASON_NONE, -1);
    inputs.client_supported = 0;
    assert_decision(start, "app", &inputs, HANDOFF_REASON_CLIENT_UNSUPPORTED, -1);
}

static void backend_is_tried_until_it_has_failed_the_most_times(void **state)
{
    (void)state;
    fail_at(start, "app");
    assert_allowed(start, "app");
    fail_at(start, "app");
    assert_limited(start, "app", 1000);
}

static void backend_is_tried_again_when_its_oldest_failure_leaves_the_window(void **state)
{
    (void)state;
    fail_at(start, "app");
    fail_at(start + 400 * MS, "app");
    assert_limited(start + 400 * MS, "app", 600);
    assert_limited(start + 1000 * MS - 1, "app", 1);
    assert_allowed(start + 1000 * MS, "app");
    /* The younger one still counts. */
    fail_at(start + 1000 * MS, "app");
    assert_limited(start + 1000 * MS, "app", 400);
}

static void retry_after_is_rounded_up(void **state)
{
    (void)state;
    fail_at(start, "app");
    fail_at(start, "app");
    assert_limited(start + 1, "app", 1000);
    assert_limited(start + MS, "app", 999);
    assert_limited(start + MS + 1, "app", 999);
}

static void failure_gives_its_reason_and_when_the_next_attempt_may_be_made(void **state)
{
    (void)state;
    handoff_decision decision;
    assert_ok(handoff_fallback_record_failure_at(fallback, start, "app",
                                                 HANDOFF_FAILURE_BACKEND_BUSY, &decision));
    assert_int_equal(decision.reason, HANDOFF_REASON_BACKEND_BUSY);
    assert_int_equal(decision.retry_after_ms, -1);
    assert_ok(handoff_fallback_record_failure_at(fallback, start + 250 * MS, "app",
                                                 HANDOFF_FAILURE_ACK_TIMEOUT, &decision));
    assert_int_equal(decision.reason, HANDOFF_REASON_ACK_TIMEOUT);
    assert_int_equal(decision.retry_after_ms, 750);
}

static void every_failure_is_counted_under_its_reason(void **state)
{
    (void)state;
    for (handoff_failure failure = HANDOFF_FAILURE_PERMISSION_DENIED;
         failure <= HANDOFF_FAILURE_UNSUPPORTED_PLATFORM; failure++) {
        char backend[16];
        handoff_decision decision;
        snprintf(backend, sizeof backend, "app %u", failure);
        assert_ok(handoff_fallback_record_failure(fallback, backend, failure, &decision));
        assert_int_equal(decision.reason, handoff_failure_reason(failure));
        assert_int_equal(handoff_fallback_failed_count(fallback, backend), 1);
    }
}

static void what_is_no_failure_is_not_counted(void **state)
{
    (void)state;
    static const handoff_failure none[] = {
        HANDOFF_FAILURE_NONE, HANDOFF_FAILURE_UNSUPPORTED_PLATFORM + 1, UINT32_MAX,
    };
    handoff_decision decision = {42, 42};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        assert_invalid(handoff_fallback_record_failure(fallback, "app", none[i], &decision));
        assert_invalid(
            handoff_fallback_record_failure_at(fallback, start, "app", none[i], &decision));
    }
    assert_int_equal(decision.reason, 42);
    assert_int_equal(decision.retry_after_ms, 42);
    assert_int_equal(handoff_fallback_failed_count(fallback, "app"), 0);
}

static void only_failures_within_the_window_are_counted(void **state)
{
    (void)state;
    fail_at(start, "app");
    assert_int_equal(handoff_fallback_failed_count_at(fallback, start, "app"), 1);
    fail_at(start + 400 * MS, "app");
    assert_int_equal(handoff_fallback_failed_count_at(fallback, start + 400 * MS, "app"), 2);
    assert_int_equal(handoff_fallback_failed_count_at(fallback, start + 1000 * MS, "app"), 1);
    assert_int_equal(handoff_fallback_failed_count_at(fallback, start + 1400 * MS, "app"), 0);
}

static void count_stays_at_the_most_failures_and_the_window_moves_on(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 5; i++)
        fail_at(start + i * 100 * MS, "app");
    assert_int_equal(handoff_fallback_failed_count_at(fallback, start + 400 * MS, "app"), 2);
    /* The last two were at 300 and 400. */
    assert_limited(start + 400 * MS, "app", 900);
}

static void failures_of_one_backend_are_not_anothers(void **state)
{
    (void)state;
    fail_at(start, "app");
    fail_at(start, "app");
    assert_limited(start, "app", 1000);
    assert_allowed(start, "app2");
    assert_allowed(start, "ap");
    assert_allowed(start, "");
    assert_int_equal(handoff_fallback_failed_count_at(fallback, start, "app2"), 0);
}

static void any_bytes_name_a_backend(void **state)
{
    (void)state;
    fail_at(start, "");
    fail_at(start, "\xff\xfe");
    assert_int_equal(handoff_fallback_failed_count_at(fallback, start, ""), 1);
    assert_int_equal(handoff_fallback_failed_count_at(fallback, start, "\xff\xfe"), 1);
    assert_int_equal(handoff_fallback_failed_count_at(fallback, start, "\xff\xfd"), 0);
}

static void success_forgets_the_failures_of_that_backend_only(void **state)
{
    (void)state;
    fail_at(start, "app");
    fail_at(start, "app");
    fail_at(start, "other");
    assert_ok(handoff_fallback_record_success(fallback, "app"));
    assert_allowed(start, "app");
    assert_int_equal(handoff_fallback_failed_count_at(fallback, start, "app"), 0);
    assert_int_equal(handoff_fallback_failed_count_at(fallback, start, "other"), 1);
    assert_ok(handoff_fallback_record_success(fallback, "app"));
}

static void calls_without_a_time_take_the_time_of_the_call(void **state)
{
    (void)state;
    handoff_fallback_options options = {sizeof options, 1, 3600000, 1};
    handoff_fallback *hour;
    handoff_decision decision;
    uint64_t deadline, before = handoff_now();
    assert_ok(handoff_fallback_new(&options, &hour));
    assert_ok(handoff_fallback_record_failure(hour, "app", HANDOFF_FAILURE_ACK_TIMEOUT, NULL));
    uint64_t after = handoff_now();
    assert_int_equal(handoff_fallback_failed_count(hour, "app"), 1);
    assert_ok(handoff_fallback_should_attempt(hour, "app", NULL, &decision));
    assert_int_equal(decision.reason, HANDOFF_REASON_RATE_LIMITED);
    assert_in_range(decision.retry_after_ms, 1, 3600000);
    /* The failure has the time of its call: its window ends an hour after that. */
    assert_ok(handoff_fallback_should_attempt_at(hour, after, "app", NULL, &decision));
    deadline = after + (uint64_t)decision.retry_after_ms * MS;
    assert_in_range(deadline, before + 3600000 * MS, after + 3600001 * MS);
    handoff_fallback_free(hour);
}

static void times_at_both_ends_of_the_clock_are_taken(void **state)
{
    (void)state;
    fail_at(0, "old");
    fail_at(0, "old");
    assert_limited(0, "old", 1000);
    assert_allowed(UINT64_MAX, "old");
    fail_at(UINT64_MAX, "young");
    fail_at(UINT64_MAX, "young");
    assert_limited(UINT64_MAX, "young", 1000);
    assert_int_equal(handoff_fallback_failed_count_at(fallback, UINT64_MAX, "young"), 2);
}

static void of_too_many_backends_the_one_that_failed_longest_ago_is_forgotten(void **state)
{
    (void)state;
    handoff_fallback_options options = {sizeof options, 2, 60000, 3};
    handoff_fallback *three;
    static const char *const order[] = {"a", "b", "c", "a", "d"};
    assert_ok(handoff_fallback_new(&options, &three));
    for (uint64_t i = 0; i < sizeof order / sizeof order[0]; i++)
        assert_ok(handoff_fallback_record_failure_at(three, start + i, order[i],
                                                     HANDOFF_FAILURE_BACKEND_BUSY, NULL));
    assert_int_equal(handoff_fallback_failed_count_at(three, start + 5, "a"), 2);
    assert_int_equal(handoff_fallback_failed_count_at(three, start + 5, "b"), 0);
    assert_int_equal(handoff_fallback_failed_count_at(three, start + 5, "c"), 1);
    assert_int_equal(handoff_fallback_failed_count_at(three, start + 5, "d"), 1);
    handoff_fallback_free(three);
}

static void failures_are_held_for_so_many_backends_and_no_more(void **state)
{
    (void)state;
    handoff_fallback_options options = {sizeof options, 2, 60000, 10};
    handoff_fallback *ten;
    size_t held = 0;
    assert_ok(handoff_fallback_new(&options, &ten));
    for (uint64_t i = 0; i < 1000; i++) {
        char backend[32];
        snprintf(backend, sizeof backend, "app %d", (int)i);
        assert_ok(handoff_fallback_record_failure_at(ten, start + i, backend,
                                                     HANDOFF_FAILURE_ACK_TIMEOUT, NULL));
    }
    for (int i = 0; i < 1000; i++) {
        char backend[32];
        snprintf(backend, sizeof backend, "app %d", i);
        held += handoff_fallback_failed_count_at(ten, start + 1000, backend);
    }
    assert_int_equal(held, 10);
    handoff_fallback_free(ten);
}

static void assert_window(const handoff_fallback_options *options, size_t max_failures,
                          int64_t window_ms)
{
    handoff_fallback *made;
    handoff_decision decision = {HANDOFF_REASON_NONE, -1};
    assert_ok(handoff_fallback_new(options, &made));
    for (size_t i = 0; i < max_failures; i++) {
        assert_int_equal(decision.retry_after_ms, -1);
        assert_ok(handoff_fallback_record_failure_at(made, start, "app",
                                                     HANDOFF_FAILURE_ACK_TIMEOUT, &decision));
    }
    assert_int_equal(decision.retry_after_ms, window_ms);
    handoff_fallback_free(made);
}

static void defaults_are_8_failures_in_30_seconds(void **state)
{
    (void)state;
    handoff_fallback_options options = HANDOFF_FALLBACK_OPTIONS_INIT;
    assert_int_equal(options.max_backends, 1024);
    assert_window(&options, 8, 30000);
    assert_window(NULL, 8, 30000);
}

static void options_of_0_are_taken_to_the_least_that_is_of_use(void **state)
{
    (void)state;
    handoff_fallback_options options = {.size = sizeof options};
    assert_window(&options, 1, 1);
}

static void huge_options_are_taken_to_the_most_that_is_possible(void **state)
{
    (void)state;
    handoff_fallback_options options = {sizeof options, SIZE_MAX, UINT64_MAX, SIZE_MAX};
    assert_window(&options, 4096, INT64_MAX);
}

static void options_that_an_older_header_lacks_have_their_defaults(void **state)
{
    (void)state;
    handoff_fallback_options options = {offsetof(handoff_fallback_options, window_ms), 3, 1, 1};
    assert_window(&options, 3, 30000);
}

static void structs_of_an_impossible_size_are_refused(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, sizeof(size_t) - 1, 1 << 20, SIZE_MAX};
    handoff_fallback_options options = HANDOFF_FALLBACK_OPTIONS_INIT;
    handoff_inputs inputs = HANDOFF_INPUTS_INIT;
    handoff_fallback *none = NULL;
    handoff_decision decision = {42, 42};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        options.size = inputs.size = sizes[i];
        assert_invalid(handoff_fallback_new(&options, &none));
        assert_invalid(handoff_fallback_should_attempt(fallback, "app", &inputs, &decision));
        assert_invalid(
            handoff_fallback_should_attempt_at(fallback, start, "app", &inputs, &decision));
    }
    assert_null(none);
    assert_int_equal(decision.reason, 42);
    assert_int_equal(decision.retry_after_ms, 42);
}

/* Every call with its state and its result in turn NULL or misaligned. */
static void calls_refuse(void *bad)
{
    const handoff_failure failure = HANDOFF_FAILURE_ACK_TIMEOUT;
    handoff_decision decision;
    assert_invalid(handoff_fallback_new(NULL, bad));
    assert_invalid(handoff_fallback_should_attempt(bad, "app", NULL, &decision));
    assert_invalid(handoff_fallback_should_attempt(fallback, "app", NULL, bad));
    assert_invalid(handoff_fallback_should_attempt_at(bad, start, "app", NULL, &decision));
    assert_invalid(handoff_fallback_should_attempt_at(fallback, start, "app", NULL, bad));
    assert_invalid(handoff_fallback_record_failure(bad, "app", failure, &decision));
    assert_invalid(handoff_fallback_record_failure_at(bad, start, "app", failure, &decision));
    assert_invalid(handoff_fallback_record_success(bad, "app"));
    assert_int_equal(handoff_fallback_failed_count(bad, "app"), 0);
    assert_int_equal(handoff_fallback_failed_count_at(bad, start, "app"), 0);
    handoff_fallback_free(bad);
}

static void null_is_refused(void **state)
{
    (void)state;
    const handoff_failure failure = HANDOFF_FAILURE_ACK_TIMEOUT;
    handoff_decision decision;
    calls_refuse(NULL);
    assert_invalid(handoff_fallback_should_attempt(fallback, NULL, NULL, &decision));
    assert_invalid(handoff_fallback_should_attempt_at(fallback, start, NULL, NULL, &decision));
    assert_invalid(handoff_fallback_record_failure(fallback, NULL, failure, NULL));
    assert_invalid(handoff_fallback_record_failure_at(fallback, start, NULL, failure, NULL));
    assert_invalid(handoff_fallback_record_success(fallback, NULL));
    assert_int_equal(handoff_fallback_failed_count(fallback, NULL), 0);
    assert_int_equal(handoff_fallback_failed_count_at(fallback, start, NULL), 0);
}

static void misaligned_pointers_are_refused_and_nothing_is_counted(void **state)
{
    (void)state;
    const handoff_failure failure = HANDOFF_FAILURE_ACK_TIMEOUT;
    handoff_fallback *none = NULL;
    handoff_decision decision;
    void *bad = misaligned();
    calls_refuse(bad);
    assert_invalid(handoff_fallback_new(bad, &none));
    assert_invalid(handoff_fallback_should_attempt(fallback, "app", bad, &decision));
    assert_invalid(handoff_fallback_should_attempt_at(fallback, start, "app", bad, &decision));
    assert_invalid(handoff_fallback_record_failure(fallback, "app", failure, bad));
    assert_invalid(handoff_fallback_record_failure_at(fallback, start, "app", failure, bad));
    assert_null(none);
    assert_int_equal(handoff_fallback_failed_count(fallback, "app"), 0);
}

enum { THREADS = 4, FAILURES = 1000 };

static void *fail_often(void *argument)
{
    for (int i = 0; i < FAILURES; i++)
        (void)handoff_fallback_record_failure(argument, "app", HANDOFF_FAILURE_ACK_TIMEOUT, NULL);
    return NULL;
}

static void failures_of_many_threads_are_all_counted(void **state)
{
    (void)state;
    handoff_fallback_options options = {sizeof options, THREADS * FAILURES, 3600000, 1};
    handoff_fallback *shared;
    pthread_t threads[THREADS];
    assert_ok(handoff_fallback_new(&options, &shared));
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, fail_often, shared), 0);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(handoff_fallback_failed_count(shared, "app"), THREADS * FAILURES);
    handoff_fallback_free(shared);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FALLBACK_TEST(first_reason_that_applies_is_given),
        FALLBACK_TEST(inputs_begin_with_everything_allowed),
        FALLBACK_TEST(inputs_that_an_older_header_lacks_speak_against_nothing),
        FALLBACK_TEST(backend_is_tried_until_it_has_failed_the_most_times),
        FALLBACK_TEST(backend_is_tried_again_when_its_oldest_failure_leaves_the_window),
        FALLBACK_TEST(retry_after_is_rounded_up),
        FALLBACK_TEST(failure_gives_its_reason_and_when_the_next_attempt_may_be_made),
        FALLBACK_TEST(every_failure_is_counted_under_its_reason),
        FALLBACK_TEST(what_is_no_failure_is_not_counted),
        FALLBACK_TEST(only_failures_within_the_window_are_counted),
        FALLBACK_TEST(count_stays_at_the_most_failures_and_the_window_moves_on),
        FALLBACK_TEST(failures_of_one_backend_are_not_anothers),
        FALLBACK_TEST(any_bytes_name_a_backend),
        FALLBACK_TEST(success_forgets_the_failures_of_that_backend_only),
        FALLBACK_TEST(calls_without_a_time_take_the_time_of_the_call),
        FALLBACK_TEST(times_at_both_ends_of_the_clock_are_taken),
        FALLBACK_TEST(of_too_many_backends_the_one_that_failed_longest_ago_is_forgotten),
        FALLBACK_TEST(failures_are_held_for_so_many_backends_and_no_more),
        FALLBACK_TEST(defaults_are_8_failures_in_30_seconds),
        FALLBACK_TEST(options_of_0_are_taken_to_the_least_that_is_of_use),
        FALLBACK_TEST(huge_options_are_taken_to_the_most_that_is_possible),
        FALLBACK_TEST(options_that_an_older_header_lacks_have_their_defaults),
        FALLBACK_TEST(structs_of_an_impossible_size_are_refused),
        FALLBACK_TEST(null_is_refused),
        FALLBACK_TEST(misaligned_pointers_are_refused_and_nothing_is_counted),
        FALLBACK_TEST(failures_of_many_threads_are_all_counted),
    };
    return cmocka_run_group_tests_name("fallback", tests, NULL, NULL);
}
