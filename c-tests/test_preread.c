/* The bytes that a broker has read already: in one buffer or in several, which arrive as one. */
#define _GNU_SOURCE
#include "fixture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

/* An offer of the client with these parts. */
static handoff_offer offer_with(const struct iovec *parts, size_t count)
{
    handoff_offer offer = offer_of(client[0]);
    offer.preread_iov = parts;
    offer.preread_iov_len = count;
    return offer;
}

static struct iovec part(const char *text)
{
    return (struct iovec){.iov_base = (void *)(uintptr_t)text, .iov_len = strlen(text)};
}

/* Hands over an offer and asserts what arrives with it. */
static void assert_arrives(const handoff_offer *offer, const void *bytes, size_t len)
{
    assert_ok(handoff_broker_offer(channel.broker, offer, NULL));
    handoff_arrival arrival = arrival_of(&channel);
    assert_int_equal(arrival.preread_len, len);
    assert_memory_equal(arrival.preread, bytes, len);
    adopt(&channel, arrival.id);
    assert_adopted(&channel);
}

static void assert_nothing_offered(void)
{
    assert_no_arrival(&channel);
    assert_int_equal(broker_statistics(channel.broker).offered, 0);
    assert_int_equal(broker_statistics(channel.broker).queued_bytes, 0);
}

static void one_part_arrives_as_it_is(void **state)
{
    (void)state;
    const struct iovec parts[] = {part("GET / HTTP/1.1\r\n\r\n")};
    handoff_offer offer = offer_with(parts, 1);
    assert_arrives(&offer, "GET / HTTP/1.1\r\n\r\n", 18);
}

static void parts_arrive_glued_in_their_order(void **state)
{
    (void)state;
    const struct iovec parts[] = {part("GET / "), part("HTTP"), part("/"), part("1.1")};
    handoff_offer offer = offer_with(parts, 4);
    assert_arrives(&offer, "GET / HTTP/1.1", 14);
}

static void as_many_parts_as_an_offer_has_bytes_arrive(void **state)
{
    (void)state;
    enum { MOST = 65536 };
    struct iovec *parts = calloc(MOST, sizeof *parts);
    uint8_t *bytes = malloc(MOST);
    assert_non_null(parts);
    assert_non_null(bytes);
    for (size_t i = 0; i < MOST; i++) {
        bytes[i] = (uint8_t)(i * 31 >> 3);
        parts[i] = (struct iovec){.iov_base = &bytes[i], .iov_len = 1};
    }
    handoff_offer offer = offer_with(parts, MOST);
    assert_arrives(&offer, bytes, MOST);
    free(parts);
    free(bytes);
}

static void empty_parts_add_nothing_wherever_they_are(void **state)
{
    (void)state;
    const struct iovec parts[] = {part(""), part("a"), part(""), part(""), part("b"), part("")};
    handoff_offer offer = offer_with(parts, 6);
    assert_arrives(&offer, "ab", 2);
}

static void empty_parts_may_be_null_and_anywhere(void **state)
{
    (void)state;
    const struct iovec nothing = {.iov_base = NULL, .iov_len = 0};
    const struct iovec parts[] = {nothing, part("a"), nothing, part("b"), part("c"), nothing};
    handoff_offer offer = offer_with(parts, 6);
    assert_arrives(&offer, "abc", 3);
    offer = offer_with(&nothing, 1);
    assert_arrives(&offer, "", 0);
    offer = offer_with(parts + 1, 1);
    assert_arrives(&offer, "a", 1);
}

static void list_of_no_parts_may_be_anywhere_and_is_empty(void **state)
{
    (void)state;
    handoff_offer offer = offer_with(NULL, 0);
    assert_arrives(&offer, "", 0);
    offer = offer_with(misaligned(), 0);
    assert_arrives(&offer, "", 0);
}

static void list_of_no_parts_leaves_the_other_way_to_the_bytes(void **state)
{
    (void)state;
    const struct iovec parts[] = {part("not these")};
    handoff_offer offer = offer_with(parts, 0);
    offer.preread = "these";
    offer.preread_len = 5;
    assert_arrives(&offer, "these", 5);
}

static void parts_do_not_run_into_metadata_and_names(void **state)
{
    (void)state;
    const struct iovec parts[] = {part("pre"), part("read")};
    handoff_offer offer = offer_with(parts, 2);
    offer.metadata = "metadata";
    offer.metadata_len = 8;
    offer.service = "service";
    offer.correlation = "correlation";
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    handoff_arrival arrival = arrival_of(&channel);
    assert_int_equal(arrival.preread_len, 7);
    assert_memory_equal(arrival.preread, "preread", 7);
    assert_int_equal(arrival.metadata_len, 8);
    assert_memory_equal(arrival.metadata, "metadata", 8);
    assert_string_equal(arrival.service, "service");
    assert_string_equal(arrival.correlation, "correlation");
}

static void parts_are_copied_and_left_alone(void **state)
{
    (void)state;
    char bytes[] = "first";
    struct iovec parts[] = {{.iov_base = bytes, .iov_len = 5}}, before[1];
    handoff_offer offer = offer_with(parts, 1);
    memcpy(before, parts, sizeof before);
    offer.flags = HANDOFF_OFFER_MORE;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_memory_equal(parts, before, sizeof parts);
    assert_string_equal(bytes, "first");
    memcpy(bytes, "other", 5);
    parts[0].iov_len = 1;
    assert_ok(handoff_broker_flush(channel.broker));
    handoff_arrival arrival = arrival_of(&channel);
    assert_int_equal(arrival.preread_len, 5);
    assert_memory_equal(arrival.preread, "first", 5);
}

static void waiting_offer_takes_parts_too(void **state)
{
    (void)state;
    const struct iovec parts[] = {part("a"), part("b")};
    handoff_offer offer = offer_with(parts, 2);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    /* Given up at once, but it has been sent. */
    offer.timeout_ms = 1;
    assert_ok(handoff_broker_offer_and_wait(channel.broker, &offer, &verdict));
    assert_int_equal(verdict.reason, HANDOFF_REASON_ACK_TIMEOUT);
    assert_true(verdict.may_have_reached_backend);
}

static void parts_beside_bytes_are_refused_and_both_named(void **state)
{
    (void)state;
    const struct iovec parts[] = {part("a")};
    handoff_offer offer = offer_with(parts, 1);
    offer.preread = "b";
    offer.preread_len = 1;
    assert_invalid_because(handoff_broker_offer(channel.broker, &offer, NULL),
                           "offer.preread_iov is set beside offer.preread:");
    assert_nothing_offered();
    /* No bytes are no bytes, wherever they are. */
    offer.preread_len = 0;
    assert_arrives(&offer, "a", 1);
}

static void part_of_a_length_without_bytes_is_refused(void **state)
{
    (void)state;
    struct iovec parts[] = {part("a"), {.iov_base = NULL, .iov_len = 1}, part("c")};
    handoff_offer offer = offer_with(parts, 3);
    errno = EDOM;
    handoff_status status = handoff_broker_offer(channel.broker, &offer, NULL);
    int error = errno;
    assert_invalid(status);
    assert_int_equal(error, 0);
    assert_last_error_has("offer.preread_iov[].iov_base is NULL");
    assert_nothing_offered();
}

static void list_that_cannot_be_one_is_refused(void **state)
{
    (void)state;
    const struct iovec parts[] = {part("a")};
    const struct {
        const struct iovec *parts;
        size_t count;
    } impossible[] = {
        {NULL, 1},
        {misaligned(), 1},
        {parts, SIZE_MAX},
        {parts, SIZE_MAX / sizeof parts[0] + 2},
        {parts, PTRDIFF_MAX / sizeof parts[0] + 1},
    };
    for (size_t i = 0; i < sizeof impossible / sizeof impossible[0]; i++) {
        handoff_offer offer = offer_with(impossible[i].parts, impossible[i].count);
        assert_invalid_because(handoff_broker_offer(channel.broker, &offer, NULL),
                               "offer.preread_iov ");
    }
    assert_nothing_offered();
}

static void part_that_cannot_be_so_long_is_named_with_its_bytes(void **state)
{
    (void)state;
    char reason[80];
    const struct iovec parts[] = {part("a"), {.iov_base = "b", .iov_len = SIZE_MAX}};
    const handoff_offer offer = offer_with(parts, 2);
    snprintf(reason, sizeof reason, "offer.preread_iov[].iov_base cannot have %zu bytes", SIZE_MAX);
    assert_invalid_because(handoff_broker_offer(channel.broker, &offer, NULL), reason);
    assert_nothing_offered();
}

/* Their bytes are not looked at: they are not there. */
static void parts_that_are_too_long_together_are_refused(void **state)
{
    (void)state;
    static char bytes[65536];
    const struct {
        size_t first, second, third;
        handoff_status status;
    } lengths[] = {
        {65536, 1, 0, HANDOFF_ERR_TOO_LARGE},
        {65535, 1, 1, HANDOFF_ERR_TOO_LARGE},
        {PTRDIFF_MAX, 0, 0, HANDOFF_ERR_TOO_LARGE},
        /* So long that their sum has no number. */
        {PTRDIFF_MAX, PTRDIFF_MAX, 2, HANDOFF_ERR_TOO_LARGE},
        {PTRDIFF_MAX, PTRDIFF_MAX, PTRDIFF_MAX, HANDOFF_ERR_TOO_LARGE},
        /* No memory is so large. */
        {(size_t)PTRDIFF_MAX + 1, 0, 0, HANDOFF_ERR_INVALID_ARGUMENT},
        {1, SIZE_MAX, 0, HANDOFF_ERR_INVALID_ARGUMENT},
    };
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        const struct iovec parts[] = {{bytes, lengths[i].first},
                                      {bytes, lengths[i].second},
                                      {bytes, lengths[i].third}};
        handoff_offer offer = offer_with(parts, 3);
        assert_status(handoff_broker_offer(channel.broker, &offer, NULL), lengths[i].status);
    }
    assert_nothing_offered();
    const struct iovec most[] = {{bytes, 65535}, {bytes, 1}};
    handoff_offer offer = offer_with(most, 2);
    assert_arrives(&offer, bytes, sizeof bytes);
}

static void offer_bytes(const char *bytes)
{
    handoff_offer offer = offer_of(client[0]);
    offer.preread = bytes;
    offer.preread_len = strlen(bytes);
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
}

/* Takes the broker's verdicts that are there. */
static void take_verdicts(void)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_ok(handoff_broker_dispatch(channel.broker));
    while (handoff_broker_next(channel.broker, &verdict) == HANDOFF_OK)
        assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
}

/* Takes the next arrival, for which the verdict on the one before is sent, and adopts it. */
static handoff_arrival take_next(void)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    assert_ok(handoff_backend_next(channel.backend, &arrival));
    adopt(&channel, arrival.id);
    take_verdicts();
    return arrival;
}

/* Where packets come together, the next is received when the last is taken, and nothing of it comes where
   those before it are. */
static void bytes_stay_until_the_next_dispatch_while_others_arrive(void **state)
{
    (void)state;
    enum { COUNT = 4 }; /* as many packets as a dispatch has */
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_arrival taken[COUNT], none = HANDOFF_ARRIVAL_INIT;
    char sent[COUNT][16];
    options.max_in_flight = 2;
    close_channel(&channel);
    open_channel(&channel, &options, NULL);
    offer_bytes("several");
    offer_bytes("at once");
    receive_all(channel.backend);
    for (int i = 0; i < 2; i++)
        take_next();
    for (int turn = 0; turn < 20; turn++) {
        assert_status(handoff_backend_next(channel.backend, &none), HANDOFF_NOTHING);
        take_verdicts();
        for (int i = 0; i < COUNT; i++)
            snprintf(sent[i], sizeof sent[i], "turn %d: %d", turn, i);
        offer_bytes(sent[0]);
        offer_bytes(sent[1]);
        assert_ok(handoff_backend_dispatch(channel.backend));
        taken[0] = take_next();
        for (int i = 1; i < COUNT; i++) {
            taken[i] = take_next();
            if (i + 1 < COUNT)
                offer_bytes(sent[i + 1]);
        }
        for (int i = 0; i < COUNT; i++)
            assert_memory_equal(taken[i].preread, sent[i], strlen(sent[i]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHANNEL_TEST(one_part_arrives_as_it_is),
        CHANNEL_TEST(parts_arrive_glued_in_their_order),
        CHANNEL_TEST(as_many_parts_as_an_offer_has_bytes_arrive),
        CHANNEL_TEST(empty_parts_add_nothing_wherever_they_are),
        CHANNEL_TEST(empty_parts_may_be_null_and_anywhere),
        CHANNEL_TEST(list_of_no_parts_may_be_anywhere_and_is_empty),
        CHANNEL_TEST(list_of_no_parts_leaves_the_other_way_to_the_bytes),
        CHANNEL_TEST(parts_do_not_run_into_metadata_and_names),
        CHANNEL_TEST(parts_are_copied_and_left_alone),
        CHANNEL_TEST(waiting_offer_takes_parts_too),
        CHANNEL_TEST(parts_beside_bytes_are_refused_and_both_named),
        CHANNEL_TEST(part_of_a_length_without_bytes_is_refused),
        CHANNEL_TEST(list_that_cannot_be_one_is_refused),
        CHANNEL_TEST(part_that_cannot_be_so_long_is_named_with_its_bytes),
        CHANNEL_TEST(parts_that_are_too_long_together_are_refused),
        CHANNEL_TEST(bytes_stay_until_the_next_dispatch_while_others_arrive),
    };
    return RUN_TESTS(tests);
}
