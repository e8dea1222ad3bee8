/* What the headers say, at run time. That the library knows every name and has the compiler's value
   for it is shown by the program of tools/use_header.py. */
#include "support.h"

#include <string.h>

static void constants_have_the_values_of_the_headers(void **state)
{
    (void)state;
    int64_t value;
    assert_ok(handoff_constant("HANDOFF_ERR_FULL", &value));
    assert_int_equal(value, HANDOFF_ERR_FULL);
    assert_ok(handoff_constant("HANDOFF_REASON_KIND", &value));
    assert_int_equal(value, HANDOFF_REASON_KIND);
    assert_ok(handoff_constant("HANDOFF_VERSION_NUMBER", &value));
    assert_int_equal(value, HANDOFF_VERSION_NUMBER);
}

static void no_limits_fit_their_fields_after_a_cast(void **state)
{
    (void)state;
    int64_t value;
    assert_ok(handoff_constant("HANDOFF_NO_TIMEOUT", &value));
    assert_true((uint64_t)value == HANDOFF_NO_TIMEOUT);
    assert_ok(handoff_constant("HANDOFF_NO_LIMIT", &value));
    assert_true((size_t)value == HANDOFF_NO_LIMIT);
}

static void structs_and_fields_are_where_the_compiler_has_them(void **state)
{
    (void)state;
    size_t offset, size;
    assert_ok(handoff_struct_size("handoff_offer", &size));
    assert_int_equal(size, sizeof(handoff_offer));
    assert_ok(handoff_field("handoff_offer.preread_len", &offset, &size));
    assert_int_equal(offset, offsetof(handoff_offer, preread_len));
    assert_int_equal(size, sizeof(size_t));
    assert_ok(handoff_field("handoff_raw_token.bytes", &offset, &size));
    assert_int_equal(offset, 0);
    assert_int_equal(size, HANDOFF_RAW_TOKEN_LEN);
}

static void unknown_names_are_nothing_and_write_nothing(void **state)
{
    (void)state;
    const char *names[] = {
        "", ".", "handoff_offer", "handoff_offer.", ".fd", "handoff_offer.f", "handoff_offer.fd.",
        "handoff_offer.fd.fd", "handoff_broker.fd", "HANDOFF_OFFER_INIT", "HANDOFF_VERSION",
        "HANDOFF_ERR_", "handoff_err_full", "HANDOFF_ERR_FULL ", "\xff\xfe",
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        int64_t value = 7;
        size_t offset = 8, size = 9;
        assert_status(handoff_constant(names[i], &value), HANDOFF_NOTHING);
        assert_status(handoff_field(names[i], &offset, &size), HANDOFF_NOTHING);
        if (strcmp(names[i], "handoff_offer") != 0)
            assert_status(handoff_struct_size(names[i], &size), HANDOFF_NOTHING);
        assert_int_equal(value, 7);
        assert_int_equal(offset, 8);
        assert_int_equal(size, 9);
    }
}

static void bad_pointers_are_refused_and_nothing_is_written(void **state)
{
    (void)state;
    int64_t value = 7;
    size_t offset = 8, size = 9;
    assert_invalid(handoff_constant(NULL, &value));
    assert_invalid(handoff_constant("HANDOFF_OK", NULL));
    assert_invalid(handoff_constant("HANDOFF_OK", misaligned()));
    assert_invalid(handoff_struct_size(NULL, &size));
    assert_invalid(handoff_struct_size("handoff_offer", NULL));
    assert_invalid(handoff_field(NULL, &offset, &size));
    assert_invalid(handoff_field("handoff_offer.fd", NULL, &size));
    assert_invalid(handoff_field("handoff_offer.fd", &offset, NULL));
    assert_int_equal(value, 7);
    assert_int_equal(offset, 8);
    assert_int_equal(size, 9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(constants_have_the_values_of_the_headers),
        TEST(no_limits_fit_their_fields_after_a_cast),
        TEST(structs_and_fields_are_where_the_compiler_has_them),
        TEST(unknown_names_are_nothing_and_write_nothing),
        TEST(bad_pointers_are_refused_and_nothing_is_written),
    };
    return RUN_TESTS(tests);
}
