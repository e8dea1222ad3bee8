/* Whether to try a backend: inputs, and the counter of its failures. The tests run on a clock that
 * they move themselves. */
#define _GNU_SOURCE
#include "clock.h"
#include "support.h"

#include <pthread.h>

/* What most tests begin with: a counter that allows two failures in 20 seconds. */
#define PERIOD (20000 * MS)
static handoff_raw_failures *failures;

static int make_counter(void **state)
{
    handoff_raw_failures_options options = HANDOFF_RAW_FAILURES_OPTIONS_INIT;
    options.max_failures = 2;
    options.period_ms = PERIOD / MS;
    descriptors_before(state);
    stop_clock();
    assert_ok(handoff_raw_failures_new(&options, &failures));
    return 0;
}

static int free_counter(void **state)
{
    handoff_raw_failures_free(failures);
    return descriptors_after(state);
}

#define COUNTER_TEST(function) \
    cmocka_unit_test_setup_teardown(function, make_counter, free_counter)

static void fail_once(const char *backend)
{
    assert_ok(handoff_raw_failures_record_failure(failures, backend, HANDOFF_REASON_ACK_TIMEOUT,
                                                  NULL));
}

/* Lets a backend fail as often as it may. */
static void let_it_rest(const char *backend)
{
    fail_once(backend);
    fail_once(backend);
}

static void assert_count(const char *backend, size_t count)
{
    assert_int_equal(handoff_raw_failures_failed_count(failures, backend), count);
}

static void assert_decision(const char *backend, const handoff_raw_inputs *inputs,
                            handoff_reason reason, int64_t retry_after_ms)
{
    handoff_raw_decision decision = HANDOFF_RAW_DECISION_INIT;
    assert_ok(handoff_raw_failures_should_attempt(failures, backend, inputs, &decision));
    assert_string_equal(handoff_reason_name(decision.reason), handoff_reason_name(reason));
    assert_int_equal(decision.retry_after_ms, retry_after_ms);
}

static void assert_allowed(const char *backend)
{
    assert_decision(backend, NULL, HANDOFF_REASON_NONE, -1);
}

static void assert_limited(const char *backend, int64_t retry_after_ms)
{
    assert_decision(backend, NULL, HANDOFF_REASON_RATE_LIMITED, retry_after_ms);
}

static void first_reason_that_applies_is_given(void **state)
{
    (void)state;
    fail_once("limited");
    fail_once("limited");
    for (unsigned bits = 0; bits < 32; bits++) {
        /* Any number but 0 is a yes. */
        handoff_raw_inputs inputs = {
            .size = sizeof inputs,
            .client_unsupported = bits & 1 ? UINT32_MAX : 0,
            .policy_disabled = bits & 2,
            .foreign_backend = bits & 4,
            .descriptor_pressure = bits & 8,
        };
        handoff_reason reason = bits & 1    ? HANDOFF_REASON_CLIENT_UNSUPPORTED
                                : bits & 2  ? HANDOFF_REASON_POLICY_DISABLED
                                : bits & 4  ? HANDOFF_REASON_FOREIGN_BACKEND
                                : bits & 8  ? HANDOFF_REASON_DESCRIPTOR_PRESSURE
                                : bits & 16 ? HANDOFF_REASON_RATE_LIMITED
                                            : HANDOFF_REASON_NONE;
        assert_decision(bits & 16 ? "limited" : "fresh", &inputs, reason, bits == 16 ? 1000 : -1);
    }
}

static void inputs_of_0_speak_against_nothing(void **state)
{
    (void)state;
    handoff_raw_inputs init = HANDOFF_RAW_INPUTS_INIT, zero = {.size = sizeof zero};
    assert_decision("app", &init, HANDOFF_REASON_NONE, -1);
    assert_decision("app", &zero, HANDOFF_REASON_NONE, -1);
    assert_decision("app", NULL, HANDOFF_REASON_NONE, -1);
}

static void backend_is_tried_until_it_has_failed_the_most_times(void **state)
{
    (void)state;
    fail_once("app");
    assert_allowed("app");
    fail_once("app");
    assert_limited("app", 1000);
}

static void failure_older_than_the_period_does_not_count(void **state)
{
    (void)state;
    fail_once("app");
    pass(PERIOD);
    fail_once("app");
    assert_allowed("app");
    fail_once("app");
    assert_limited("app", 1000);
}

static void trials_are_let_through_after_1_2_4_and_then_every_8_seconds(void **state)
{
    (void)state;
    static const int64_t pauses[] = {1000, 2000, 4000, 8000, 8000};
    let_it_rest("app");
    for (size_t i = 0; i < sizeof pauses / sizeof *pauses; i++) {
        pass((uint64_t)pauses[i] * MS - 1);
        assert_limited("app", 1);
        pass(1);
        assert_allowed("app");
        /* One at a time; it is not known when it ends, but then the pause follows. */
        assert_limited("app", pauses[i]);
        pass(MS);
        fail_once("app");
    }
}

static void trial_that_nobody_reports_on_is_over_after_the_period(void **state)
{
    (void)state;
    let_it_rest("app");
    pass(1000 * MS);
    assert_allowed("app");
    pass(PERIOD - MS);
    assert_limited("app", 1);
    pass(MS);
    assert_allowed("app");
}

static void inputs_that_speak_against_it_do_not_use_the_trial_up(void **state)
{
    (void)state;
    const handoff_raw_inputs pressure = {.size = sizeof pressure, .descriptor_pressure = 1};
    let_it_rest("app");
    pass(1000 * MS);
    assert_decision("app", &pressure, HANDOFF_REASON_DESCRIPTOR_PRESSURE, -1);
    assert_allowed("app");
}

static void only_success_ends_the_rest(void **state)
{
    (void)state;
    let_it_rest("app");
    pass(100 * PERIOD);
    assert_count("app", 0);
    assert_allowed("app");
    assert_limited("app", 1000);
    assert_ok(handoff_raw_failures_record_success(failures, "app"));
    assert_allowed("app");
    assert_allowed("app");
}

static void failures_while_no_trial_is_out_do_not_change_the_rest(void **state)
{
    (void)state;
    let_it_rest("app");
    pass(400 * MS);
    fail_once("app");
    assert_limited("app", 600);
    pass(600 * MS);
    assert_allowed("app");
}

static void retry_after_is_rounded_up(void **state)
{
    (void)state;
    let_it_rest("app");
    pass(1);
    assert_limited("app", 1000);
    pass(MS - 1);
    assert_limited("app", 999);
    pass(1);
    assert_limited("app", 999);
}

static void failure_gives_its_reason_and_when_the_next_attempt_may_be_made(void **state)
{
    (void)state;
    handoff_raw_decision decision = HANDOFF_RAW_DECISION_INIT;
    assert_ok(handoff_raw_failures_record_failure(failures, "app", HANDOFF_REASON_BACKEND_BUSY,
                                                  &decision));
    assert_int_equal(decision.reason, HANDOFF_REASON_BACKEND_BUSY);
    assert_int_equal(decision.retry_after_ms, -1);
    pass(250 * MS);
    assert_ok(handoff_raw_failures_record_failure(failures, "app", HANDOFF_REASON_ACK_TIMEOUT,
                                                  &decision));
    assert_int_equal(decision.reason, HANDOFF_REASON_ACK_TIMEOUT);
    assert_int_equal(decision.retry_after_ms, 1000);
}

/* All but those of offers that were refused before anything was tried. */
static void reason_of_every_status_of_a_failed_attempt_is_counted(void **state)
{
    (void)state;
    int counted = 0;
    for (handoff_status status = HANDOFF_ERR_NO_MEMORY; status < HANDOFF_OK; status++) {
        handoff_reason reason = handoff_status_reason(status);
        handoff_raw_decision decision = HANDOFF_RAW_DECISION_INIT;
        char backend[16];
        if (!handoff_status_is_fallback_safe(status) || reason == HANDOFF_REASON_RATE_LIMITED ||
            reason == HANDOFF_REASON_TOO_LARGE)
            continue;
        snprintf(backend, sizeof backend, "app %d", status);
        assert_ok(handoff_raw_failures_record_failure(failures, backend, reason, &decision));
        assert_int_equal(decision.reason, reason);
        assert_count(backend, 1);
        counted++;
    }
    /* Those that are not above, are a bug in the caller or in the library, or after which the backend
       may own the connection, are left out. */
    assert_int_equal(counted, 28);
}

static void reason_for_which_no_attempt_fails_is_refused_and_not_counted(void **state)
{
    (void)state;
    static const handoff_reason none[] = {
        HANDOFF_REASON_NONE,
        HANDOFF_REASON_CLIENT_UNSUPPORTED,
        HANDOFF_REASON_POLICY_DISABLED,
        HANDOFF_REASON_RATE_LIMITED,
        HANDOFF_REASON_FOREIGN_BACKEND,
        HANDOFF_REASON_REJECTED,
        HANDOFF_REASON_BROKER_CLOSED,
        HANDOFF_REASON_BACKEND_DIED,
        HANDOFF_REASON_CLIENT_GONE,
        HANDOFF_REASON_TOO_LARGE,
        HANDOFF_REASON_KIND,
        HANDOFF_REASON_TOO_MANY_CHANNELS + 1,
        UINT32_MAX,
    };
    handoff_raw_decision decision = {sizeof decision, 42, 42};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++)
        assert_invalid_because(
            handoff_raw_failures_record_failure(failures, "app", none[i], &decision), "reason");
    assert_int_equal(decision.reason, 42);
    assert_int_equal(decision.retry_after_ms, 42);
    assert_count("app", 0);
}

static void only_failures_within_the_period_are_counted(void **state)
{
    (void)state;
    fail_once("app");
    assert_count("app", 1);
    pass(PERIOD * 4 / 10);
    fail_once("app");
    assert_count("app", 2);
    pass(PERIOD * 6 / 10 - 1);
    assert_count("app", 2);
    pass(1);
    assert_count("app", 1);
    pass(PERIOD * 4 / 10);
    assert_count("app", 0);
}

static void count_stays_at_the_most_failures_and_the_rest_as_it_is(void **state)
{
    (void)state;
    fail_once("app");
    for (int i = 1; i < 5; i++) {
        pass(100 * MS);
        fail_once("app");
    }
    assert_count("app", 2);
    /* It rests since the second one. */
    assert_limited("app", 700);
}

static void failures_of_one_backend_are_not_anothers(void **state)
{
    (void)state;
    fail_once("app");
    fail_once("app");
    assert_limited("app", 1000);
    assert_allowed("app2");
    assert_allowed("ap");
    assert_allowed("");
    assert_count("app2", 0);
}

static void any_bytes_name_a_backend(void **state)
{
    (void)state;
    fail_once("");
    fail_once("\xff\xfe");
    assert_count("", 1);
    assert_count("\xff\xfe", 1);
    assert_count("\xff\xfd", 0);
}

static void success_forgets_the_failures_of_that_backend_only(void **state)
{
    (void)state;
    fail_once("app");
    fail_once("app");
    fail_once("other");
    assert_ok(handoff_raw_failures_record_success(failures, "app"));
    assert_allowed("app");
    assert_count("app", 0);
    assert_count("other", 1);
    assert_ok(handoff_raw_failures_record_success(failures, "app"));
}

static void of_too_many_backends_the_one_that_failed_longest_ago_is_forgotten(void **state)
{
    (void)state;
    handoff_raw_failures_options options = {sizeof options, 2, 60000, 3};
    handoff_raw_failures *three;
    static const char *const order[] = {"a", "b", "c", "a", "d"};
    assert_ok(handoff_raw_failures_new(&options, &three));
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++) {
        assert_ok(handoff_raw_failures_record_failure(three, order[i],
                                                      HANDOFF_REASON_BACKEND_BUSY, NULL));
        pass(1);
    }
    assert_int_equal(handoff_raw_failures_failed_count(three, "a"), 2);
    assert_int_equal(handoff_raw_failures_failed_count(three, "b"), 0);
    assert_int_equal(handoff_raw_failures_failed_count(three, "c"), 1);
    assert_int_equal(handoff_raw_failures_failed_count(three, "d"), 1);
    handoff_raw_failures_free(three);
}

/* Lets many backends fail once; returns for how many of them the failure is held. */
static size_t held_of(const handoff_raw_failures_options *options, int backends)
{
    handoff_raw_failures *made;
    char backend[32];
    size_t held = 0;
    assert_ok(handoff_raw_failures_new(options, &made));
    for (int i = 0; i < backends; i++) {
        snprintf(backend, sizeof backend, "app %d", i);
        assert_ok(handoff_raw_failures_record_failure(made, backend, HANDOFF_REASON_ACK_TIMEOUT,
                                                      NULL));
        pass(1);
    }
    for (int i = 0; i < backends; i++) {
        snprintf(backend, sizeof backend, "app %d", i);
        held += handoff_raw_failures_failed_count(made, backend);
    }
    handoff_raw_failures_free(made);
    return held;
}

static void failures_are_held_for_1024_backends_or_for_as_many_as_it_is_told(void **state)
{
    (void)state;
    handoff_raw_failures_options ten = {sizeof ten, 2, 60000, 10}, zero = {.size = sizeof zero};
    assert_int_equal(held_of(&ten, 1000), 10);
    assert_int_equal(held_of(&zero, 1100), 1024);
    assert_int_equal(held_of(NULL, 1100), 1024);
}

/* The pause is a second, or a shorter period. */
static void assert_limits(const handoff_raw_failures_options *options, size_t max_failures,
                          int64_t pause_ms, uint64_t period_ms)
{
    handoff_raw_failures *made;
    handoff_raw_decision decision = {sizeof decision, HANDOFF_REASON_NONE, -1};
    assert_ok(handoff_raw_failures_new(options, &made));
    for (size_t i = 0; i < max_failures; i++) {
        assert_int_equal(decision.retry_after_ms, -1);
        assert_ok(handoff_raw_failures_record_failure(made, "app", HANDOFF_REASON_ACK_TIMEOUT,
                                                      &decision));
    }
    assert_int_equal(decision.retry_after_ms, pause_ms);
    /* A failure counts for the whole period, and not longer. */
    pass(period_ms * MS - 1);
    assert_int_equal(handoff_raw_failures_failed_count(made, "app"), max_failures);
    pass(1);
    assert_int_equal(handoff_raw_failures_failed_count(made, "app"), 0);
    handoff_raw_failures_free(made);
}

static void options_of_0_are_8_failures_in_30_seconds(void **state)
{
    (void)state;
    handoff_raw_failures_options init = HANDOFF_RAW_FAILURES_OPTIONS_INIT;
    handoff_raw_failures_options zero = {.size = sizeof zero};
    assert_limits(&init, 8, 1000, 30000);
    assert_limits(&zero, 8, 1000, 30000);
    assert_limits(NULL, 8, 1000, 30000);
}

static void options_that_are_not_set_do_not_change_those_that_are(void **state)
{
    (void)state;
    handoff_raw_failures_options few = {.size = sizeof few, .max_failures = 1};
    handoff_raw_failures_options brief = {.size = sizeof brief, .period_ms = 1};
    assert_limits(&few, 1, 1000, 30000);
    assert_limits(&brief, 8, 1, 1);
}

static void huge_options_are_clamped(void **state)
{
    (void)state;
    handoff_raw_failures_options options = {sizeof options, SIZE_MAX, UINT64_MAX, SIZE_MAX};
    /* A year is no end of it. */
    handoff_raw_failures *made;
    handoff_raw_decision decision = {sizeof decision, HANDOFF_REASON_NONE, -1};
    assert_ok(handoff_raw_failures_new(&options, &made));
    for (size_t i = 0; i < 4096; i++) {
        assert_int_equal(decision.retry_after_ms, -1);
        assert_ok(handoff_raw_failures_record_failure(made, "app", HANDOFF_REASON_ACK_TIMEOUT,
                                                      &decision));
    }
    assert_int_equal(decision.retry_after_ms, 1000);
    pass(UINT64_C(365) * 86400 * 1000 * MS);
    assert_int_equal(handoff_raw_failures_failed_count(made, "app"), 4096);
    handoff_raw_failures_free(made);
}

/* Every call with its counter and its result in turn NULL or misaligned. */
static void calls_refuse(void *bad)
{
    const handoff_reason reason = HANDOFF_REASON_ACK_TIMEOUT;
    handoff_raw_decision decision = HANDOFF_RAW_DECISION_INIT;
    assert_invalid(handoff_raw_failures_new(NULL, bad));
    assert_invalid(handoff_raw_failures_should_attempt(bad, "app", NULL, &decision));
    assert_invalid(handoff_raw_failures_should_attempt(failures, "app", NULL, bad));
    assert_invalid(handoff_raw_failures_record_failure(bad, "app", reason, &decision));
    assert_invalid(handoff_raw_failures_record_success(bad, "app"));
    assert_int_equal(handoff_raw_failures_failed_count(bad, "app"), 0);
    handoff_raw_failures_free(bad);
}

static void null_is_refused(void **state)
{
    (void)state;
    handoff_raw_decision decision = HANDOFF_RAW_DECISION_INIT;
    calls_refuse(NULL);
    assert_invalid(handoff_raw_failures_should_attempt(failures, NULL, NULL, &decision));
    assert_invalid(handoff_raw_failures_record_failure(failures, NULL, HANDOFF_REASON_ACK_TIMEOUT,
                                                       NULL));
    assert_invalid(handoff_raw_failures_record_success(failures, NULL));
    assert_int_equal(handoff_raw_failures_failed_count(failures, NULL), 0);
}

static void misaligned_pointers_are_refused_and_nothing_is_counted(void **state)
{
    (void)state;
    handoff_raw_failures *none = NULL;
    handoff_raw_decision decision = HANDOFF_RAW_DECISION_INIT;
    void *bad = misaligned();
    calls_refuse(bad);
    assert_invalid(handoff_raw_failures_new(bad, &none));
    assert_invalid(handoff_raw_failures_should_attempt(failures, "app", bad, &decision));
    assert_invalid(handoff_raw_failures_record_failure(failures, "app", HANDOFF_REASON_ACK_TIMEOUT,
                                                       bad));
    assert_null(none);
    assert_count("app", 0);
}

enum { THREADS = 4, FAILURES = 1000 };

static void *fail_often(void *counter)
{
    for (int i = 0; i < FAILURES; i++)
        if (handoff_raw_failures_record_failure(counter, "app", HANDOFF_REASON_ACK_TIMEOUT, NULL))
            return counter;
    return NULL;
}

static void failures_of_many_threads_are_all_counted(void **state)
{
    (void)state;
    handoff_raw_failures_options options = {sizeof options, THREADS * FAILURES, 3600000, 1};
    handoff_raw_failures *shared;
    pthread_t threads[THREADS];
    assert_ok(handoff_raw_failures_new(&options, &shared));
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, fail_often, shared), 0);
    for (int i = 0; i < THREADS; i++) {
        void *failed;
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    assert_int_equal(handoff_raw_failures_failed_count(shared, "app"), THREADS * FAILURES);
    handoff_raw_failures_free(shared);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        COUNTER_TEST(first_reason_that_applies_is_given),
        COUNTER_TEST(inputs_of_0_speak_against_nothing),
        COUNTER_TEST(backend_is_tried_until_it_has_failed_the_most_times),
        COUNTER_TEST(failure_older_than_the_period_does_not_count),
        COUNTER_TEST(trials_are_let_through_after_1_2_4_and_then_every_8_seconds),
        COUNTER_TEST(trial_that_nobody_reports_on_is_over_after_the_period),
        COUNTER_TEST(inputs_that_speak_against_it_do_not_use_the_trial_up),
        COUNTER_TEST(only_success_ends_the_rest),
        COUNTER_TEST(failures_while_no_trial_is_out_do_not_change_the_rest),
        COUNTER_TEST(retry_after_is_rounded_up),
        COUNTER_TEST(failure_gives_its_reason_and_when_the_next_attempt_may_be_made),
        COUNTER_TEST(reason_of_every_status_of_a_failed_attempt_is_counted),
        COUNTER_TEST(reason_for_which_no_attempt_fails_is_refused_and_not_counted),
        COUNTER_TEST(only_failures_within_the_period_are_counted),
        COUNTER_TEST(count_stays_at_the_most_failures_and_the_rest_as_it_is),
        COUNTER_TEST(failures_of_one_backend_are_not_anothers),
        COUNTER_TEST(any_bytes_name_a_backend),
        COUNTER_TEST(success_forgets_the_failures_of_that_backend_only),
        COUNTER_TEST(of_too_many_backends_the_one_that_failed_longest_ago_is_forgotten),
        COUNTER_TEST(failures_are_held_for_1024_backends_or_for_as_many_as_it_is_told),
        COUNTER_TEST(options_of_0_are_8_failures_in_30_seconds),
        COUNTER_TEST(options_that_are_not_set_do_not_change_those_that_are),
        COUNTER_TEST(huge_options_are_clamped),
        COUNTER_TEST(null_is_refused),
        COUNTER_TEST(misaligned_pointers_are_refused_and_nothing_is_counted),
        COUNTER_TEST(failures_of_many_threads_are_all_counted),
    };
    return RUN_TESTS(tests);
}
