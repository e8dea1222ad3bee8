/* The options of both ends of a channel, and of an offer: zero is the default in every field,
 * limits can be switched off, and combinations that cannot work are refused. */
#define _GNU_SOURCE
#include "channel.h"
#include "libc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

/* The ways to ask for the defaults. */
static const handoff_broker_options broker_init = HANDOFF_BROKER_OPTIONS_INIT;
static const handoff_broker_options broker_zero = {.size = sizeof broker_zero};
static const handoff_broker_options *const broker_defaults[] = {NULL, &broker_init, &broker_zero};
static const handoff_backend_options backend_init = HANDOFF_BACKEND_OPTIONS_INIT;
static const handoff_backend_options backend_zero = {.size = sizeof backend_zero};
static const handoff_backend_options *const backend_defaults[] = {NULL, &backend_init,
                                                                  &backend_zero};
enum { WAYS = 3 };

static int client[2];

static int open_client(void **state)
{
    descriptors_before(state);
    make_pair(SOCK_STREAM, client);
    return 0;
}

static int close_client(void **state)
{
    close(client[0]);
    close(client[1]);
    return descriptors_after(state);
}

#define OPTIONS_TEST(function) \
    cmocka_unit_test_setup_teardown(function, open_client, close_client)

/* ---- in flight ------------------------------------------------------------------------------- */

/* Offers until the limit is reached; returns how many were taken. */
static size_t offers_until_full(const handoff_broker_options *broker,
                                const handoff_backend_options *backend)
{
    struct channel channel;
    handoff_offer offer = offer_of(client[0]);
    handoff_status status;
    size_t count = 0;
    offer.flags = HANDOFF_OFFER_MORE;
    open_channel(&channel, broker, backend);
    while ((status = handoff_broker_offer(channel.broker, &offer, NULL)) == HANDOFF_OK)
        count++;
    assert_status(status, HANDOFF_ERR_FULL);
    assert_int_equal(broker_statistics(channel.broker).in_flight, count);
    close_channel(&channel);
    return count;
}

static void broker_has_256_offers_in_flight_by_default(void **state)
{
    (void)state;
    const handoff_backend_options many = {.size = sizeof many, .max_in_flight = 4096};
    for (int i = 0; i < WAYS; i++)
        assert_int_equal(offers_until_full(broker_defaults[i], &many), 256);
}

static void backend_has_256_offers_in_flight_by_default(void **state)
{
    (void)state;
    const handoff_broker_options many = {.size = sizeof many, .max_in_flight = 4096};
    for (int i = 0; i < WAYS; i++)
        assert_int_equal(offers_until_full(&many, backend_defaults[i]), 256);
}

static void lower_limit_of_both_ends_counts_and_is_clamped(void **state)
{
    (void)state;
    static const struct {
        size_t broker, backend, offers;
    } limits[] = {{1, 3, 1}, {3, 1, 1}, {4097, 5000, 4096}, {SIZE_MAX, SIZE_MAX, 4096}};
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        const handoff_broker_options broker = {.size = sizeof broker,
                                               .max_in_flight = limits[i].broker};
        const handoff_backend_options backend = {.size = sizeof backend,
                                                 .max_in_flight = limits[i].backend};
        assert_int_equal(offers_until_full(&broker, &backend), limits[i].offers);
    }
}

/* ---- timeouts -------------------------------------------------------------------------------- */

/* Waits for the verdict of the only offer in flight, which nobody answers; returns after how many
   milliseconds it came. */
static uint64_t ms_until_taken_back(struct channel *channel, uint64_t start)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    while (!next_verdict(channel->broker, &verdict)) {
        await_readable(handoff_broker_fd(channel->broker));
        assert_ok(handoff_broker_dispatch(channel->broker));
    }
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, HANDOFF_REASON_ACK_TIMEOUT);
    return ms_since(start);
}

/* All at once, to wait only once. */
static void offer_is_given_up_after_5_seconds_by_default_or_never(void **state)
{
    (void)state;
    const handoff_broker_options patient = {.size = sizeof patient,
                                            .timeout_ms = HANDOFF_NO_TIMEOUT};
    handoff_offer offer = offer_of(client[0]);
    struct channel channels[WAYS], never[2];
    uint64_t ids[2], start = now_ns();
    open_channel(&never[0], &patient, NULL);
    open_channel(&never[1], NULL, NULL);
    assert_ok(handoff_broker_offer(never[0].broker, &offer, &ids[0]));
    offer.timeout_ms = HANDOFF_NO_TIMEOUT;
    assert_ok(handoff_broker_offer(never[1].broker, &offer, &ids[1]));
    for (int i = 0; i < WAYS; i++) {
        open_channel(&channels[i], broker_defaults[i], NULL);
        offer_fd(&channels[i], client[0]);
    }
    for (int i = 0; i < WAYS; i++) {
        assert_in_range(ms_until_taken_back(&channels[i], start), 5000, PATIENCE_MS);
        close_channel(&channels[i]);
    }
    for (int i = 0; i < 2; i++) {
        assert_no_verdict(&never[i]);
        assert_ok(handoff_broker_take_back(never[i].broker, ids[i]));
        close_channel(&never[i]);
    }
}

static void offer_is_given_up_when_the_broker_or_the_offer_says(void **state)
{
    (void)state;
    const handoff_broker_options options = {.size = sizeof options, .timeout_ms = 100};
    handoff_offer offer = offer_of(client[0]);
    struct channel channel;
    open_channel(&channel, &options, NULL);
    uint64_t start = now_ns();
    offer_fd(&channel, client[0]);
    assert_in_range(ms_until_taken_back(&channel, start), 100, PATIENCE_MS);
    start = now_ns();
    offer.timeout_ms = 200;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_in_range(ms_until_taken_back(&channel, start), 200, PATIENCE_MS);
    close_channel(&channel);
}

static void one_field_that_is_set_leaves_the_others_at_their_defaults(void **state)
{
    (void)state;
    const handoff_broker_options options = {.size = sizeof options, .timeout_ms = 1000};
    const handoff_backend_options many = {.size = sizeof many, .max_in_flight = 4096};
    struct channel channel;
    assert_int_equal(offers_until_full(&options, &many), 256);
    open_channel(&channel, &options, NULL);
    uint64_t start = now_ns();
    offer_fd(&channel, client[0]);
    assert_in_range(ms_until_taken_back(&channel, start), 1000, PATIENCE_MS);
    close_channel(&channel);
}

/* ---- failures -------------------------------------------------------------------------------- */

/* Lets `count` offers fail, one after the other. */
static void fail_offers(struct channel *channel, int count)
{
    handoff_offer offer = offer_of(client[0]);
    offer.timeout_ms = 1;
    for (int i = 0; i < count; i++) {
        assert_ok(handoff_broker_offer(channel->broker, &offer, NULL));
        ms_until_taken_back(channel, now_ns());
    }
}

/* How long it is until the first trial. The message says it in whole seconds. */
static double seconds_of_rest(struct channel *channel)
{
    handoff_offer offer = offer_of(client[0]);
    handoff_broker_backend_state found = HANDOFF_BROKER_BACKEND_STATE_INIT;
    assert_status(handoff_broker_offer(channel->broker, &offer, NULL), HANDOFF_ERR_RATE_LIMITED);
    assert_non_null(strstr(handoff_last_error(), "not tried for 1 s"));
    assert_ok(handoff_broker_get_backend_state(channel->broker, 0, &found));
    return (double)found.next_ms / 1000;
}

static void backend_that_failed_8_times_rests_by_default(void **state)
{
    (void)state;
    for (int i = 0; i < WAYS; i++) {
        struct channel channel;
        open_channel(&channel, broker_defaults[i], NULL);
        uint64_t start = now_ns();
        fail_offers(&channel, 8);
        double rest = seconds_of_rest(&channel), age = (double)(now_ns() - start) / 1e9;
        assert_true(rest <= 1 && rest >= 1 - age - 0.001);
        close_channel(&channel);
    }
}

static void backend_rests_after_as_many_failures_as_it_is_told(void **state)
{
    (void)state;
    const handoff_broker_options once = {.size = sizeof once, .max_failures = 1};
    struct channel channel;
    open_channel(&channel, &once, NULL);
    fail_offers(&channel, 1);
    assert_true(seconds_of_rest(&channel) <= 1);
    close_channel(&channel);
}

/* 4096 is the most that can be a limit. */
static void backend_without_a_limit_of_failures_never_rests(void **state)
{
    (void)state;
    enum { BATCH = 256, FAILURES = 4096 + BATCH };
    const handoff_broker_options options = {.size = sizeof options,
                                            .max_failures = HANDOFF_NO_LIMIT};
    handoff_offer offer = offer_of(client[0]);
    struct channel channel;
    open_channel(&channel, &options, NULL);
    offer.timeout_ms = 1;
    for (int failures = 0; failures < FAILURES; failures += BATCH) {
        for (int i = 0; i < BATCH; i++)
            assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
        for (int i = 0; i < BATCH; i++)
            ms_until_taken_back(&channel, now_ns());
        assert_no_arrival(&channel);
        assert_ok(handoff_broker_dispatch(channel.broker));
    }
    offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
    close_channel(&channel);
}

/* ---- bytes ----------------------------------------------------------------------------------- */

/* Offers until no more bytes may be queued; asserts that `limit` is the reason. */
static void assert_queues(const handoff_broker_options *options, uint64_t limit)
{
    enum { LEN = 30000 };
    static const uint8_t bytes[LEN];
    const handoff_backend_options many = {.size = sizeof many, .max_in_flight = 4096};
    struct channel channel;
    handoff_offer offer = offer_of(client[0]);
    handoff_status status;
    offer.preread = bytes;
    offer.preread_len = LEN;
    open_channel(&channel, options, &many);
    while ((status = handoff_broker_offer(channel.broker, &offer, NULL)) == HANDOFF_OK)
        assert_in_range(broker_statistics(channel.broker).queued_bytes, 0, limit);
    assert_status(status, HANDOFF_ERR_FULL);
    assert_in_range(broker_statistics(channel.broker).queued_bytes, limit - 2 * LEN, limit);
    close_channel(&channel);
}

static void broker_queues_1048576_bytes_by_default_and_131072_at_least(void **state)
{
    (void)state;
    const handoff_broker_options least = {.size = sizeof least, .queue_bytes = 1};
    for (int i = 0; i < WAYS; i++)
        assert_queues(broker_defaults[i], 1048576);
    assert_queues(&least, 131072);
}

/* More than the default, and all that is in flight. */
static void broker_without_a_limit_queues_all_that_may_be_in_flight(void **state)
{
    (void)state;
    enum { OFFERS = 100, LEN = 60000 };
    static const uint8_t bytes[LEN];
    const handoff_broker_options options = {.size = sizeof options,
                                            .max_in_flight = OFFERS,
                                            .queue_bytes = HANDOFF_NO_LIMIT};
    struct channel channel;
    handoff_offer offer = offer_of(client[0]);
    offer.preread = bytes;
    offer.preread_len = LEN;
    open_channel(&channel, &options, NULL);
    for (int i = 0; i < OFFERS; i++)
        assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_in_range(broker_statistics(channel.broker).queued_bytes, 2 * 1048576, OFFERS * 61000);
    close_channel(&channel);
}

static void assert_most_bytes(const handoff_backend_options *options, size_t most)
{
    struct channel channel;
    handoff_offer offer = offer_of(client[0]);
    uint8_t *bytes = calloc(most + 1, 1);
    assert_non_null(bytes);
    open_channel(&channel, NULL, options);
    offer.preread = bytes;
    offer.preread_len = most + 1;
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_TOO_LARGE);
    offer.preread_len = most;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_int_equal(arrival_of(&channel).preread_len, most);
    close_channel(&channel);
    free(bytes);
}

static void offer_has_65536_bytes_at_most_by_default_or_as_many_as_may_be_held(void **state)
{
    (void)state;
    const handoff_backend_options few = {.size = sizeof few, .max_held_bytes = 1000};
    const handoff_backend_options one = {.size = sizeof one, .max_offer_bytes = 1};
    for (int i = 0; i < WAYS; i++)
        assert_most_bytes(backend_defaults[i], 65536);
    assert_most_bytes(&few, 1000);
    assert_most_bytes(&one, 1);
}

/* Holds 1024 offers of the most bytes, and one byte more; returns whether that was held, too. */
static bool holds_more_than_67108864_bytes(const handoff_backend_options *options)
{
    enum { LEN = 65536, OFFERS = 1024 };
    static const uint8_t bytes[LEN];
    const handoff_broker_options many = {.size = sizeof many,
                                         .max_in_flight = OFFERS + 1,
                                         .timeout_ms = HANDOFF_NO_TIMEOUT};
    struct channel channel;
    handoff_offer offer = offer_of(client[0]);
    open_channel(&channel, &many, options);
    offer.preread = bytes;
    offer.preread_len = LEN;
    for (int i = 0; i < OFFERS; i++) {
        assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
        arrival_of(&channel);
    }
    assert_int_equal(backend_statistics(channel.backend).held_bytes, 67108864);
    offer.preread_len = 1;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_ok(handoff_backend_dispatch(channel.backend));
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    bool held = next_arrival(channel.backend, &arrival);
    if (!held)
        assert_falls_back(&channel, HANDOFF_REASON_BACKEND_BUSY);
    close_channel(&channel);
    return held;
}

static void backend_holds_67108864_bytes_by_default(void **state)
{
    (void)state;
    const handoff_backend_options options = {.size = sizeof options, .max_in_flight = 1025};
    assert_false(holds_more_than_67108864_bytes(&options));
}

static void backend_without_a_limit_holds_all_that_may_be_in_flight(void **state)
{
    (void)state;
    const handoff_backend_options options = {.size = sizeof options,
                                             .max_in_flight = 1025,
                                             .max_held_bytes = HANDOFF_NO_LIMIT};
    assert_true(holds_more_than_67108864_bytes(&options));
}

/* ---- connecting ------------------------------------------------------------------------------ */

/* How often the library has called connect(2), which finds nobody, and when it did last. */
static int connects;
static uint64_t connected_at;

int connect(int socket, CONST_ADDRESS address, socklen_t len)
{
    connects++;
    connected_at = now_ns();
    return (int)syscall(SYS_connect, socket, ADDRESS_OF(address), len);
}

/* The first pauses between two attempts are as long as these, at least. */
static void assert_pauses(const handoff_broker_options *options, const uint64_t *pauses, int count)
{
    handoff_broker *broker;
    assert_ok(handoff_broker_new("/nowhere/socket", options, &broker));
    uint64_t attempt = now_ns(), next = attempt;
    assert_ok(handoff_broker_dispatch(broker));
    for (int i = 0; i < count; i++) {
        connects = 0;
        while (connects == 0) {
            await_readable(handoff_broker_fd(broker));
            next = now_ns();
            assert_ok(handoff_broker_dispatch(broker));
        }
        assert_in_range((connected_at - attempt) / 1000000, pauses[i], PATIENCE_MS);
        attempt = next;
    }
    handoff_broker_free(broker);
}

static void broker_connects_again_after_10_ms_by_default_and_then_twice_as_long(void **state)
{
    (void)state;
    static const uint64_t pauses[] = {10, 20, 40, 80};
    for (int i = 0; i < WAYS; i++)
        assert_pauses(broker_defaults[i], pauses, 4);
}

static void broker_connects_again_after_the_pause_that_it_is_told(void **state)
{
    (void)state;
    const handoff_broker_options options = {.size = sizeof options, .reconnect_min_ms = 100};
    static const uint64_t pauses[] = {100, 200};
    assert_pauses(&options, pauses, 2);
}

static void backend_listens_with_mode_0600_by_default(void **state)
{
    (void)state;
    for (int i = 0; i < WAYS; i++) {
        struct channel channel;
        struct stat status;
        open_channel(&channel, NULL, backend_defaults[i]);
        assert_int_equal(stat(channel.path, &status), 0);
        assert_int_equal(status.st_mode & 07777, 0600);
        close_channel(&channel);
    }
}

static void backend_listens_with_the_mode_that_it_is_told(void **state)
{
    (void)state;
    const handoff_backend_options options = {.size = sizeof options, .mode = 0660};
    struct channel channel;
    struct stat status;
    open_channel(&channel, NULL, &options);
    assert_int_equal(stat(channel.path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0660);
    close_channel(&channel);
}

/* So many brokers get a channel, and one more does not. */
static void assert_most_channels(const handoff_backend_options *options, size_t most)
{
    char directory[64], path[80];
    handoff_backend *backend;
    handoff_broker *brokers[65], *more;
    make_directory(directory);
    snprintf(path, sizeof path, "%s/socket", directory);
    assert_ok(handoff_backend_listen(path, options, &backend));
    for (size_t i = 0; i < most; i++) {
        assert_ok(handoff_broker_new(path, NULL, &brokers[i]));
        connect_broker(brokers[i], backend);
    }
    assert_int_equal(backend_statistics(backend).channels, most);
    assert_int_equal(backend_statistics(backend).refused, 0);
    assert_ok(handoff_broker_new(path, NULL, &more));
    assert_ok(handoff_broker_dispatch(more));
    assert_ok(handoff_backend_dispatch(backend));
    assert_int_equal(backend_statistics(backend).channels, most);
    assert_int_equal(backend_statistics(backend).refused, 1);
    handoff_broker_free(more);
    for (size_t i = 0; i < most; i++)
        handoff_broker_free(brokers[i]);
    handoff_backend_free(backend);
    remove_directory(directory);
}

static void backend_has_64_channels_at_most_by_default(void **state)
{
    (void)state;
    const handoff_backend_options two = {.size = sizeof two, .max_channels = 2};
    for (int i = 0; i < WAYS; i++)
        assert_most_channels(backend_defaults[i], 64);
    assert_most_channels(&two, 2);
}

/* More than one waits, which was the least. */
static void backlog_of_0_is_the_default(void **state)
{
    (void)state;
    for (int i = 0; i < WAYS; i++) {
        struct channel channel;
        int waiting[20];
        open_channel(&channel, NULL, backend_defaults[i]);
        for (int j = 0; j < 20; j++)
            assert_ok(handoff_raw_connect(channel.path, &waiting[j]));
        for (int j = 0; j < 20; j++)
            close(waiting[j]);
        close_channel(&channel);
    }
}

static void backend_takes_stream_sockets_only_by_default(void **state)
{
    (void)state;
    for (int i = 0; i < WAYS; i++) {
        struct channel channel;
        int packets[2];
        make_pair(SOCK_SEQPACKET, packets);
        open_channel(&channel, NULL, backend_defaults[i]);
        offer_fd(&channel, client[0]);
        adopt(&channel, arrival_of(&channel).id);
        assert_adopted(&channel);
        offer_fd(&channel, packets[0]);
        assert_no_arrival(&channel);
        handoff_verdict verdict = verdict_of(&channel);
        assert_int_equal(verdict.reason, HANDOFF_REASON_KIND);
        assert_int_equal(verdict.kind, HANDOFF_KIND_SEQPACKET);
        close_channel(&channel);
        close(packets[0]);
        close(packets[1]);
    }
}

static void backend_allows_its_own_user_by_default_and_not_another(void **state)
{
    (void)state;
    for (int i = 0; i < WAYS; i++) {
        handoff_backend_options options = {.size = sizeof options};
        handoff_peer_policy policy = {.size = sizeof policy};
        struct channel channel;
        if (i > 0)
            options = *backend_defaults[i];
        /* Anybody may connect, so the policy refuses; an empty one is the default. */
        options.mode = 0666;
        options.policy = i == 2 ? &policy : NULL;
        open_channel(&channel, NULL, &options);
        assert_int_equal(chmod(channel.directory, 0755), 0);
        pid_t child = start_child();
        if (child == 0) {
            int socket;
            become_nobody();
            child_assert(handoff_raw_connect(channel.path, &socket) == HANDOFF_OK);
            _exit(0);
        }
        assert_child_succeeds(child);
        assert_ok(handoff_backend_dispatch(channel.backend));
        assert_int_equal(backend_statistics(channel.backend).refused, 1);
        assert_int_equal(backend_statistics(channel.backend).accepted, 1);
        close_channel(&channel);
    }
}

/* ---- combinations that cannot work ----------------------------------------------------------- */

static void pauses_in_the_wrong_order_are_refused_and_both_named(void **state)
{
    (void)state;
    static const uint64_t wrong[][2] = {{2, 1}, {1001, 1000}, {5000, 4999}, {UINT64_MAX, 1}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        const handoff_broker_options options = {.size = sizeof options,
                                                .reconnect_min_ms = wrong[i][0],
                                                .reconnect_max_ms = wrong[i][1]};
        handoff_broker *none = NULL;
        assert_invalid_because(handoff_broker_new("@nobody", &options, &none), "reconnect_min");
        assert_last_error_has("reconnect_max");
        assert_int_equal(errno, 0);
        assert_null(none);
    }
}

static void pauses_that_are_the_same_or_of_which_one_is_long_are_taken(void **state)
{
    (void)state;
    static const uint64_t right[][2] = {{1, 1}, {5000, 5000}, {5000, 0}, {0, 5000}, {0, 10}};
    for (size_t i = 0; i < sizeof right / sizeof right[0]; i++) {
        const handoff_broker_options options = {.size = sizeof options,
                                                .reconnect_min_ms = right[i][0],
                                                .reconnect_max_ms = right[i][1]};
        handoff_broker *made;
        assert_ok(handoff_broker_new("@nobody", &options, &made));
        handoff_broker_free(made);
    }
}

/* Both ways to listen refuse these options, name both fields and make nothing. */
static void assert_no_backend(const handoff_backend_options *options, const char *first,
                              const char *second)
{
    const handoff_raw_listener_options packets = {.size = sizeof packets,
                                                  .socket_type = HANDOFF_RAW_SEQPACKET};
    char directory[64], path[80];
    handoff_raw_listener *listener;
    handoff_backend *none = NULL;
    struct stat status;
    make_directory(directory);
    snprintf(path, sizeof path, "%s/socket", directory);
    assert_invalid_because(handoff_backend_listen(path, options, &none), first);
    assert_last_error_has(second);
    assert_int_equal(errno, 0);
    assert_int_equal(stat(path, &status), -1);
    assert_ok(handoff_raw_listener_new(path, &packets, &listener));
    assert_invalid_because(
        handoff_backend_listen_on(handoff_raw_listener_fd(listener), options, &none), first);
    assert_last_error_has(second);
    assert_null(none);
    handoff_raw_listener_free(listener);
    remove_directory(directory);
}

static void more_bytes_in_an_offer_than_may_be_held_are_refused_and_both_named(void **state)
{
    (void)state;
    static const size_t wrong[][2] = {{2, 1}, {65537, 65536}, {SIZE_MAX, 100000}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        const handoff_backend_options options = {.size = sizeof options,
                                                 .max_offer_bytes = wrong[i][0],
                                                 .max_held_bytes = wrong[i][1]};
        assert_no_backend(&options, "max_offer_bytes", "max_held_bytes");
    }
}

static void sockets_that_are_only_unconnected_are_refused_and_both_named(void **state)
{
    (void)state;
    const handoff_backend_options options = {.size = sizeof options,
                                             .kinds = HANDOFF_KIND_UNCONNECTED};
    assert_no_backend(&options, "kinds", "unconnected");
}

static void unknown_kinds_are_refused_and_named(void **state)
{
    (void)state;
    static const uint64_t unknown[] = {16, 0x80000000, UINT64_C(1) << 32, UINT64_MAX};
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        const handoff_backend_options options = {.size = sizeof options, .kinds = unknown[i]};
        assert_no_backend(&options, "options.kinds", "unknown kind");
    }
}

static void mode_beyond_0777_is_refused_and_named(void **state)
{
    (void)state;
    const handoff_backend_options options = {.size = sizeof options, .mode = 01777};
    handoff_backend *none = NULL;
    assert_invalid_because(handoff_backend_listen("@nobody", &options, &none), "mode 1777");
    assert_null(none);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        OPTIONS_TEST(broker_has_256_offers_in_flight_by_default),
        OPTIONS_TEST(backend_has_256_offers_in_flight_by_default),
        OPTIONS_TEST(lower_limit_of_both_ends_counts_and_is_clamped),
        OPTIONS_TEST(offer_is_given_up_after_5_seconds_by_default_or_never),
        OPTIONS_TEST(offer_is_given_up_when_the_broker_or_the_offer_says),
        OPTIONS_TEST(one_field_that_is_set_leaves_the_others_at_their_defaults),
        OPTIONS_TEST(backend_that_failed_8_times_rests_by_default),
        OPTIONS_TEST(backend_rests_after_as_many_failures_as_it_is_told),
        OPTIONS_TEST(backend_without_a_limit_of_failures_never_rests),
        OPTIONS_TEST(broker_queues_1048576_bytes_by_default_and_131072_at_least),
        OPTIONS_TEST(broker_without_a_limit_queues_all_that_may_be_in_flight),
        OPTIONS_TEST(offer_has_65536_bytes_at_most_by_default_or_as_many_as_may_be_held),
        OPTIONS_TEST(backend_holds_67108864_bytes_by_default),
        OPTIONS_TEST(backend_without_a_limit_holds_all_that_may_be_in_flight),
        OPTIONS_TEST(broker_connects_again_after_10_ms_by_default_and_then_twice_as_long),
        OPTIONS_TEST(broker_connects_again_after_the_pause_that_it_is_told),
        OPTIONS_TEST(backend_listens_with_mode_0600_by_default),
        OPTIONS_TEST(backend_listens_with_the_mode_that_it_is_told),
        OPTIONS_TEST(backend_has_64_channels_at_most_by_default),
        OPTIONS_TEST(backlog_of_0_is_the_default),
        OPTIONS_TEST(backend_takes_stream_sockets_only_by_default),
        OPTIONS_TEST(backend_allows_its_own_user_by_default_and_not_another),
        OPTIONS_TEST(pauses_in_the_wrong_order_are_refused_and_both_named),
        OPTIONS_TEST(pauses_that_are_the_same_or_of_which_one_is_long_are_taken),
        OPTIONS_TEST(more_bytes_in_an_offer_than_may_be_held_are_refused_and_both_named),
        OPTIONS_TEST(sockets_that_are_only_unconnected_are_refused_and_both_named),
        OPTIONS_TEST(unknown_kinds_are_refused_and_named),
        OPTIONS_TEST(mode_beyond_0777_is_refused_and_named),
    };
    return RUN_TESTS(tests);
}
