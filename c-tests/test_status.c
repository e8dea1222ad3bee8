/* What statuses and reasons are called and mean, and the version. */
#define _GNU_SOURCE
#include "support.h"

#include <string.h>

/* Every status: the reason for a fallback, whether a fallback may hide it, and whether the
   descriptor may have reached the backend. */
#define STATUS(status, reason, hidden, reached) \
    {status, #status, HANDOFF_REASON_##reason, hidden, reached}

static const struct {
    handoff_status status;
    const char *name;
    handoff_reason reason;
    bool hidden;
    bool reached;
} statuses[] = {
    STATUS(HANDOFF_OK, NONE, false, true),
    STATUS(HANDOFF_NOTHING, NONE, false, true),
    STATUS(HANDOFF_TIMED_OUT, NONE, false, false),
    STATUS(HANDOFF_WOKEN, NONE, false, true),
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
    STATUS(HANDOFF_ERR_RECEIVE_FAILED, BACKEND_UNAVAILABLE, false, true),
    STATUS(HANDOFF_ERR_END_OF_STREAM, BACKEND_UNAVAILABLE, true, true),
    STATUS(HANDOFF_ERR_NO_DESCRIPTOR, INTEGRITY_MISMATCH, true, false),
    STATUS(HANDOFF_ERR_SURPLUS_DESCRIPTORS, INTEGRITY_MISMATCH, true, false),
    STATUS(HANDOFF_ERR_CONTROL_TRUNCATED, DESCRIPTOR_PRESSURE, true, false),
    STATUS(HANDOFF_ERR_WRONG_LENGTH, INTEGRITY_MISMATCH, true, false),
    STATUS(HANDOFF_ERR_TOKEN_MISMATCH, INTEGRITY_MISMATCH, true, false),
    STATUS(HANDOFF_ERR_TOKEN_EXPIRED, INTEGRITY_MISMATCH, true, false),
    STATUS(HANDOFF_ERR_TOKEN_NOT_PENDING, INTEGRITY_MISMATCH, false, true),
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
    STATUS(HANDOFF_ERR_RATE_LIMITED, RATE_LIMITED, true, false),
    STATUS(HANDOFF_ERR_TOO_LARGE, TOO_LARGE, true, false),
    STATUS(HANDOFF_ERR_WRONG_PROCESS, NONE, false, false),
    STATUS(HANDOFF_ERR_CLOSED, NONE, false, false),
    STATUS(HANDOFF_ERR_TAKEN_BACK, NONE, false, true),
    STATUS(HANDOFF_ERR_TOO_LATE, NONE, false, true),
    STATUS(HANDOFF_ERR_SYSTEM, BACKEND_UNAVAILABLE, true, true),
    STATUS(HANDOFF_ERR_NO_MEMORY, BACKEND_UNAVAILABLE, true, false),
    STATUS(HANDOFF_ERR_NOT_TLS, CLIENT_UNSUPPORTED, true, false),
    STATUS(HANDOFF_ERR_TLS_KEY_UPDATE, NONE, false, false),
    STATUS(HANDOFF_ERR_TLS_ALERT, NONE, false, false),
    STATUS(HANDOFF_ERR_TLS_RECORD, NONE, false, false),
    STATUS(HANDOFF_ERR_TOO_MANY_CHANNELS, TOO_MANY_CHANNELS, true, false),
};

static const size_t statuses_len = sizeof statuses / sizeof statuses[0];

static bool is_known(handoff_status status)
{
    for (size_t i = 0; i < statuses_len; i++)
        if (statuses[i].status == status)
            return true;
    return false;
}

/* -31 was a status before errors were negative, and is not used again. */
static void statuses_have_the_numbers_that_programs_were_compiled_with(void **state)
{
    (void)state;
    assert_int_equal(HANDOFF_OK, 0);
    assert_int_equal(HANDOFF_NOTHING, 1);
    assert_int_equal(HANDOFF_TIMED_OUT, 2);
    assert_int_equal(HANDOFF_WOKEN, 3);
    for (size_t i = 4; i < statuses_len; i++) {
        int number = -(int)(i - 3);
        assert_int_equal(statuses[i].status, number <= -31 ? number - 1 : number);
    }
}

static void no_result_is_positive_and_every_error_negative(void **state)
{
    (void)state;
    for (size_t i = 0; i < statuses_len; i++) {
        bool error = strncmp(statuses[i].name, "HANDOFF_ERR_", 12) == 0;
        assert_int_equal(statuses[i].status < 0, error);
    }
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

static void every_status_says_what_a_broker_makes_of_it(void **state)
{
    (void)state;
    for (size_t i = 0; i < statuses_len; i++) {
        handoff_status status = statuses[i].status;
        assert_string_equal(handoff_reason_name(handoff_status_reason(status)),
                            handoff_reason_name(statuses[i].reason));
        assert_int_equal(handoff_status_is_fallback_safe(status), statuses[i].hidden);
        assert_int_equal(handoff_status_may_have_reached_backend(status), statuses[i].reached);
    }
}

static void assert_unknown(handoff_status status)
{
    assert_string_equal(handoff_status_name(status), "HANDOFF_ERR_UNKNOWN");
    assert_string_equal(handoff_status_message(status), "unknown status");
    assert_int_equal(handoff_status_reason(status), HANDOFF_REASON_NONE);
    assert_false(handoff_status_is_fallback_safe(status));
    assert_true(handoff_status_may_have_reached_backend(status));
}

/* So the table above has all that the library knows. */
static void every_other_number_is_unknown_and_never_hidden(void **state)
{
    (void)state;
    for (handoff_status status = -1000; status <= 1000; status++)
        if (!is_known(status))
            assert_unknown(status);
    assert_unknown(INT32_MIN);
    assert_unknown(INT32_MAX);
}

/* Logs are searched for them. */
static void every_reason_has_its_name_in_lower_case(void **state)
{
    (void)state;
    static const char *const names[] = {
        [HANDOFF_REASON_NONE] = "none",
        [HANDOFF_REASON_CLIENT_UNSUPPORTED] = "client unsupported",
        [HANDOFF_REASON_POLICY_DISABLED] = "policy disabled",
        [HANDOFF_REASON_DESCRIPTOR_PRESSURE] = "descriptor pressure",
        [HANDOFF_REASON_RATE_LIMITED] = "rate limited",
        [HANDOFF_REASON_PERMISSION_DENIED] = "permission denied",
        [HANDOFF_REASON_INTEGRITY_MISMATCH] = "integrity mismatch",
        [HANDOFF_REASON_ACK_TIMEOUT] = "acknowledgement timeout",
        [HANDOFF_REASON_FOREIGN_BACKEND] = "foreign backend",
        [HANDOFF_REASON_BACKEND_UNAVAILABLE] = "backend unavailable",
        [HANDOFF_REASON_BACKEND_BUSY] = "backend busy",
        [HANDOFF_REASON_REJECTED] = "rejected",
        [HANDOFF_REASON_UNSUPPORTED_PLATFORM] = "unsupported platform",
        [HANDOFF_REASON_BROKER_CLOSED] = "broker closed",
        [HANDOFF_REASON_BACKEND_DIED] = "backend died",
        [HANDOFF_REASON_CLIENT_GONE] = "client gone",
        [HANDOFF_REASON_TOO_LARGE] = "too large",
        [HANDOFF_REASON_KIND] = "kind of socket",
        [HANDOFF_REASON_TOO_MANY_CHANNELS] = "too many channels",
    };
    handoff_reason count = sizeof names / sizeof names[0];
    for (handoff_reason reason = 0; reason < count; reason++)
        assert_string_equal(handoff_reason_name(reason), names[reason]);
    for (handoff_reason reason = count; reason < 1000; reason++)
        assert_string_equal(handoff_reason_name(reason), "unknown");
    assert_string_equal(handoff_reason_name(UINT32_MAX), "unknown");
}

static void reasons_and_outcomes_have_the_numbers_that_programs_were_compiled_with(void **state)
{
    (void)state;
    static const handoff_reason reasons[] = {
        HANDOFF_REASON_NONE,
        HANDOFF_REASON_CLIENT_UNSUPPORTED,
        HANDOFF_REASON_POLICY_DISABLED,
        HANDOFF_REASON_DESCRIPTOR_PRESSURE,
        HANDOFF_REASON_RATE_LIMITED,
        HANDOFF_REASON_PERMISSION_DENIED,
        HANDOFF_REASON_INTEGRITY_MISMATCH,
        HANDOFF_REASON_ACK_TIMEOUT,
        HANDOFF_REASON_FOREIGN_BACKEND,
        HANDOFF_REASON_BACKEND_UNAVAILABLE,
        HANDOFF_REASON_BACKEND_BUSY,
        HANDOFF_REASON_REJECTED,
        HANDOFF_REASON_UNSUPPORTED_PLATFORM,
        HANDOFF_REASON_BROKER_CLOSED,
        HANDOFF_REASON_BACKEND_DIED,
        HANDOFF_REASON_CLIENT_GONE,
        HANDOFF_REASON_TOO_LARGE,
        HANDOFF_REASON_KIND,
        HANDOFF_REASON_TOO_MANY_CHANNELS,
    };
    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++)
        assert_int_equal(reasons[i], i);
    assert_int_equal(HANDOFF_ADOPTED, 1);
    assert_int_equal(HANDOFF_FALLBACK, 2);
}

static void library_and_header_are_of_one_version(void **state)
{
    (void)state;
    char numbers[64];
    snprintf(numbers, sizeof numbers, "%d.%d.%d", HANDOFF_VERSION_MAJOR, HANDOFF_VERSION_MINOR,
             HANDOFF_VERSION_PATCH);
    assert_string_equal(handoff_version(), HANDOFF_VERSION);
    assert_string_equal(HANDOFF_VERSION, numbers);
    assert_string_equal(HANDOFF_VERSION, "0.2.0");
}

/* Also by the preprocessor, for which the macros are made. */
#if HANDOFF_VERSION_NUMBER < HANDOFF_VERSION_CHECK(0, 2, 0)
#error "this header is older than 0.2.0"
#endif
#if HANDOFF_VERSION_NUMBER >= HANDOFF_VERSION_CHECK(0, 3, 0)
#error "this header is not of 0.2"
#endif

static void versions_are_ordered_as_numbers(void **state)
{
    (void)state;
    assert_int_equal(HANDOFF_VERSION_NUMBER, 0x000200);
    assert_int_equal(HANDOFF_VERSION_CHECK(1, 2, 3), 0x010203);
    assert_true(HANDOFF_VERSION_CHECK(0, 2, 0) > HANDOFF_VERSION_CHECK(0, 1, 255));
    assert_true(HANDOFF_VERSION_CHECK(1, 0, 0) > HANDOFF_VERSION_CHECK(0, 255, 255));
    /* Arguments are expressions. */
    assert_int_equal(HANDOFF_VERSION_CHECK(0 + 1, 1 | 2, 1 + 1), 0x010302);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(statuses_have_the_numbers_that_programs_were_compiled_with),
        TEST(no_result_is_positive_and_every_error_negative),
        TEST(every_status_has_the_name_of_its_constant),
        TEST(every_status_has_a_message_of_its_own),
        TEST(every_status_says_what_a_broker_makes_of_it),
        TEST(every_other_number_is_unknown_and_never_hidden),
        TEST(every_reason_has_its_name_in_lower_case),
        TEST(reasons_and_outcomes_have_the_numbers_that_programs_were_compiled_with),
        TEST(library_and_header_are_of_one_version),
        TEST(versions_are_ordered_as_numbers),
    };
    return RUN_TESTS(tests);
}
