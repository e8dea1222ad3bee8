/*
 * Structs that may grow: what their size means, for a program that was compiled for an older or for
 * a newer header, and for one that forgot to initialise it; and the functions that initialise them.
 */
#define _GNU_SOURCE
#include "channel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* More than a struct can grow, more than one has with that, and the most that the library takes for a
   size. */
enum { LARGER = 24, ROOM = 2048, MOST = 4096 };

static const size_t impossible[] = {0,        1,       sizeof(size_t) - 1, MOST + 1,
                                    1 << 20, SIZE_MAX / 2, SIZE_MAX};

enum { IMPOSSIBLE = sizeof impossible / sizeof impossible[0] };

/* What the calls work on. */
static struct channel channel;
static int client[2];
static struct {
    int pair[2];
    char name[64];
    handoff_raw_token token;
    handoff_raw_store *store;
    handoff_raw_failures *failures;
    handoff_raw_listener *listener;
} raw;

/* Offers of the client; the second is given up at once. And a backend that is not there. */
static handoff_offer plain_offer, brief_offer;
static handoff_broker_backend other_backend;

static const handoff_broker_backend no_backend = HANDOFF_BROKER_BACKEND_INIT;

static int open_all(void **state)
{
    const handoff_broker_options patient = {.size = sizeof patient,
                                            .max_failures = HANDOFF_NO_LIMIT};
    descriptors_before(state);
    open_channel(&channel, &patient, NULL);
    make_pair(SOCK_STREAM, client);
    make_pair(SOCK_SEQPACKET, raw.pair);
    snprintf(raw.name, sizeof raw.name, "@handoff-test-structs-%d", getpid());
    plain_offer = brief_offer = offer_of(client[0]);
    brief_offer.timeout_ms = 1;
    other_backend = no_backend;
    other_backend.path = "@handoff-test-structs-of-nobody";
    assert_ok(handoff_raw_token_generate(&raw.token));
    assert_ok(handoff_raw_store_new(NULL, &raw.store));
    assert_ok(handoff_raw_failures_new(NULL, &raw.failures));
    assert_ok(handoff_raw_listener_new(raw.name, NULL, &raw.listener));
    return 0;
}

static int close_all(void **state)
{
    handoff_raw_listener_free(raw.listener);
    handoff_raw_failures_free(raw.failures);
    handoff_raw_store_free(raw.store);
    close(raw.pair[0]);
    close(raw.pair[1]);
    close_channel(&channel);
    close(client[0]);
    close(client[1]);
    return descriptors_after(state);
}

/* The size of a struct in 0.2.0, by its last field there: this never changes. */
#define FIRST_END(type, field) (offsetof(type, field) + sizeof((type *)0)->field)

#define STRUCT_TEST(function) cmocka_unit_test_setup_teardown(function, open_all, close_all)

/* Memory of just so many bytes, so that AddressSanitizer and valgrind see what is beyond it. */
static void *copy_of(const void *bytes, size_t len)
{
    void *copy = malloc(len);
    assert_non_null(copy);
    memcpy(copy, bytes, len);
    return copy;
}

/* ---- structs that a program fills ------------------------------------------------------------ */

/* Each of these succeeds with the defaults, and leaves nothing behind. */

static handoff_status new_broker(const void *options)
{
    handoff_broker *made = NULL;
    handoff_status status = handoff_broker_new("@nobody", options, &made);
    assert_int_equal(made != NULL, status == HANDOFF_OK);
    handoff_broker_free(made);
    return status;
}

static handoff_status listen_for_brokers(const void *options)
{
    char name[80];
    handoff_backend *made = NULL;
    snprintf(name, sizeof name, "%s-backend", raw.name);
    handoff_status status = handoff_backend_listen(name, options, &made);
    assert_int_equal(made != NULL, status == HANDOFF_OK);
    handoff_backend_free(made);
    return status;
}

static handoff_status listen_on_a_socket(const void *options)
{
    handoff_raw_listener_options packets = {.size = sizeof packets,
                                            .socket_type = HANDOFF_RAW_SEQPACKET};
    handoff_raw_listener *listener;
    handoff_backend *made = NULL;
    char name[80];
    snprintf(name, sizeof name, "%s-given", raw.name);
    assert_ok(handoff_raw_listener_new(name, &packets, &listener));
    handoff_status status =
        handoff_backend_listen_on(handoff_raw_listener_fd(listener), options, &made);
    assert_int_equal(made != NULL, status == HANDOFF_OK);
    handoff_backend_free(made);
    handoff_raw_listener_free(listener);
    return status;
}

static handoff_status listen_with_policy(const void *policy)
{
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.policy = policy;
    return listen_for_brokers(&options);
}

static handoff_status check_with_policy(const void *policy)
{
    return handoff_raw_peer_check(raw.pair[0], policy, NULL);
}

static handoff_status accept_with_policy(const void *policy)
{
    int peer, accepted = -7;
    assert_ok(handoff_raw_connect(raw.name, &peer));
    handoff_status status =
        handoff_raw_listener_accept(raw.listener, policy, PATIENCE_MS, &accepted);
    if (status == HANDOFF_OK) {
        close(accepted);
    } else {
        /* The connection waits: nothing was taken. */
        assert_int_equal(accepted, -7);
        assert_ok(handoff_raw_listener_accept(raw.listener, NULL, 0, &accepted));
        close(accepted);
    }
    close(peer);
    return status;
}

static handoff_status offer_one(const void *offer)
{
    uint64_t id = 42, before = broker_statistics(channel.broker).offered;
    handoff_status status = handoff_broker_offer(channel.broker, offer, &id);
    uint64_t offered = broker_statistics(channel.broker).offered - before;
    assert_int_equal(offered, status == HANDOFF_OK);
    if (status != HANDOFF_OK) {
        assert_int_equal(id, 42);
        return status;
    }
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
    return status;
}

/* Nobody answers. */
static handoff_status offer_and_wait(const void *offer)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    uint64_t before = broker_statistics(channel.broker).offered;
    handoff_status status = handoff_broker_offer_and_wait(channel.broker, offer, &verdict);
    if (status == HANDOFF_OK)
        assert_no_arrival(&channel);
    else
        assert_int_equal(broker_statistics(channel.broker).offered, before);
    return status;
}

static handoff_status add_backend(const void *backend)
{
    handoff_broker_backend_state second = HANDOFF_BROKER_BACKEND_STATE_INIT;
    handoff_status status = handoff_broker_add(channel.broker, backend);
    assert_status(handoff_broker_get_backend_state(channel.broker, 1, &second),
                  status == HANDOFF_OK ? HANDOFF_OK : HANDOFF_NOTHING);
    assert_status(handoff_broker_remove(channel.broker, other_backend.path),
                  status == HANDOFF_OK ? HANDOFF_OK : HANDOFF_NOTHING);
    return status;
}

static handoff_status new_store(const void *options)
{
    handoff_raw_store *made = NULL;
    handoff_status status = handoff_raw_store_new(options, &made);
    assert_int_equal(made != NULL, status == HANDOFF_OK);
    handoff_raw_store_free(made);
    return status;
}

static handoff_status new_pending(const void *options)
{
    handoff_raw_pending *made = NULL;
    handoff_status status = handoff_raw_pending_new(raw.store, options, &made);
    assert_int_equal(made != NULL, status == HANDOFF_OK);
    handoff_raw_pending_free(made);
    return status;
}

static handoff_status new_failures(const void *options)
{
    handoff_raw_failures *made = NULL;
    handoff_status status = handoff_raw_failures_new(options, &made);
    assert_int_equal(made != NULL, status == HANDOFF_OK);
    handoff_raw_failures_free(made);
    return status;
}

static handoff_status new_listener(const void *options)
{
    char name[80];
    handoff_raw_listener *made = NULL;
    snprintf(name, sizeof name, "%s-listener", raw.name);
    handoff_status status = handoff_raw_listener_new(name, options, &made);
    assert_int_equal(made != NULL, status == HANDOFF_OK);
    handoff_raw_listener_free(made);
    return status;
}

static handoff_status decide(const void *inputs)
{
    handoff_raw_decision decision = {sizeof decision, 42, 42};
    handoff_status status =
        handoff_raw_failures_should_attempt(raw.failures, "app", inputs, &decision);
    if (status == HANDOFF_OK)
        assert_int_equal(decision.reason, HANDOFF_REASON_NONE);
    else
        assert_int_equal(decision.reason, 42);
    return status;
}

/* What the macros say, as an object of static storage: its padding, if it has any, is zero. */
static const handoff_broker_options broker_options = HANDOFF_BROKER_OPTIONS_INIT;
static const handoff_backend_options backend_options = HANDOFF_BACKEND_OPTIONS_INIT;
static const handoff_peer_policy peer_policy = HANDOFF_PEER_POLICY_INIT;
static const handoff_offer no_offer = HANDOFF_OFFER_INIT;
static const handoff_raw_store_options store_options = HANDOFF_RAW_STORE_OPTIONS_INIT;
static const handoff_raw_pending_options pending_options = HANDOFF_RAW_PENDING_OPTIONS_INIT;
static const handoff_raw_failures_options failures_options = HANDOFF_RAW_FAILURES_OPTIONS_INIT;
static const handoff_raw_listener_options listener_options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
static const handoff_raw_inputs no_inputs = HANDOFF_RAW_INPUTS_INIT;

static const struct input {
    const char *macro;
    const void *object;
    size_t size;
    handoff_status (*call)(const void *);
    const char *argument; /* what the call's messages call it */
    size_t first;         /* its size in the first release */
} input_calls[] = {
    {"HANDOFF_BROKER_OPTIONS_INIT", &broker_options, sizeof broker_options, new_broker, "options",
     FIRST_END(handoff_broker_options, spin_us)},
    {"HANDOFF_BACKEND_OPTIONS_INIT", &backend_options, sizeof backend_options, listen_for_brokers,
     "options", FIRST_END(handoff_backend_options, reserved)},
    {"HANDOFF_BACKEND_OPTIONS_INIT", &backend_options, sizeof backend_options, listen_on_a_socket,
     "options", FIRST_END(handoff_backend_options, reserved)},
    {"HANDOFF_PEER_POLICY_INIT", &peer_policy, sizeof peer_policy, listen_with_policy, "policy",
     FIRST_END(handoff_peer_policy, groups_len)},
    {"HANDOFF_PEER_POLICY_INIT", &peer_policy, sizeof peer_policy, check_with_policy, "policy",
     FIRST_END(handoff_peer_policy, groups_len)},
    {"HANDOFF_PEER_POLICY_INIT", &peer_policy, sizeof peer_policy, accept_with_policy, "policy",
     FIRST_END(handoff_peer_policy, groups_len)},
    {"HANDOFF_OFFER_INIT", &plain_offer, sizeof plain_offer, offer_one, "offer",
     FIRST_END(handoff_offer, timeout_ms)},
    {"HANDOFF_OFFER_INIT", &brief_offer, sizeof brief_offer, offer_and_wait, "offer",
     FIRST_END(handoff_offer, timeout_ms)},
    {"HANDOFF_BROKER_BACKEND_INIT", &other_backend, sizeof other_backend, add_backend, "backend",
     FIRST_END(handoff_broker_backend, failure_period_ms)},
    {"HANDOFF_RAW_STORE_OPTIONS_INIT", &store_options, sizeof store_options, new_store, "options",
     FIRST_END(handoff_raw_store_options, collision_attempts)},
    {"HANDOFF_RAW_PENDING_OPTIONS_INIT", &pending_options, sizeof pending_options, new_pending,
     "options", FIRST_END(handoff_raw_pending_options, timeout_ms)},
    {"HANDOFF_RAW_FAILURES_OPTIONS_INIT", &failures_options, sizeof failures_options, new_failures,
     "options", FIRST_END(handoff_raw_failures_options, max_backends)},
    {"HANDOFF_RAW_LISTENER_OPTIONS_INIT", &listener_options, sizeof listener_options, new_listener,
     "options", FIRST_END(handoff_raw_listener_options, reserved)},
    {"HANDOFF_RAW_INPUTS_INIT", &no_inputs, sizeof no_inputs, decide, "inputs",
     FIRST_END(handoff_raw_inputs, foreign_backend)},
};

#define FOR_EACH(entry, table)                                                           \
    for (const struct entry *entry = table; entry < table + sizeof table / sizeof *table; \
         entry++)

/* Nothing but the size may be looked at. */
static void assert_size_refused(const struct input *input, size_t size)
{
    char number[32];
    void *object = copy_of(&size, sizeof size);
    snprintf(number, sizeof number, "%zu", size);
    errno = EDOM;
    handoff_status status = input->call(object);
    int error = errno;
    assert_invalid(status);
    assert_last_error_has(input->macro);
    assert_last_error_has(input->argument);
    assert_last_error_has(number);
    assert_int_equal(error, 0);
    free(object);
}

static void struct_of_an_impossible_size_is_refused_and_its_macro_named(void **state)
{
    (void)state;
    FOR_EACH(input, input_calls) {
        for (int i = 0; i < IMPOSSIBLE; i++)
            assert_size_refused(input, impossible[i]);
        for (size_t size = sizeof(size_t); size < input->first; size++)
            assert_size_refused(input, size);
    }
}

static void struct_of_the_first_release_is_taken(void **state)
{
    (void)state;
    FOR_EACH(input, input_calls) {
        void *object = copy_of(input->object, input->first);
        memcpy(object, &input->first, sizeof input->first);
        assert_ok(input->call(object));
        free(object);
    }
}

static void struct_of_a_newer_header_is_taken_if_nothing_new_is_set(void **state)
{
    (void)state;
    FOR_EACH(input, input_calls) {
        for (size_t size = input->size + 1; size <= input->size + LARGER; size++) {
            char larger[ROOM] = {0};
            memcpy(larger, input->object, input->size);
            memcpy(larger, &size, sizeof size);
            void *object = copy_of(larger, size);
            assert_ok(input->call(object));
            free(object);
        }
    }
}

static void struct_of_the_largest_size_is_taken(void **state)
{
    (void)state;
    static char largest[MOST];
    static const size_t size = MOST;
    FOR_EACH(input, input_calls) {
        memset(largest, 0, sizeof largest);
        memcpy(largest, input->object, input->size);
        memcpy(largest, &size, sizeof size);
        assert_ok(input->call(largest));
        largest[MOST - 1] = 1;
        assert_status(input->call(largest), HANDOFF_ERR_UNSUPPORTED);
    }
}

static void struct_of_a_newer_header_is_refused_and_named_if_something_new_is_set(void **state)
{
    (void)state;
    FOR_EACH(input, input_calls) {
        for (size_t at = input->size; at < input->size + LARGER; at++) {
            char larger[ROOM] = {0};
            size_t size = input->size + LARGER;
            memcpy(larger, input->object, input->size);
            memcpy(larger, &size, sizeof size);
            larger[at] = (char)0x80;
            void *object = copy_of(larger, size);
            errno = EDOM;
            handoff_status status = input->call(object);
            int error = errno;
            assert_status(status, HANDOFF_ERR_UNSUPPORTED);
            assert_last_error_has(input->argument);
            assert_last_error_has(HANDOFF_VERSION);
            assert_int_equal(error, 0);
            free(object);
        }
    }
}

/* What an older header lacks is not looked at, though the memory behind it is there. */
static void what_an_older_header_lacks_is_not_looked_at(void **state)
{
    (void)state;
    FOR_EACH(input, input_calls) {
        char garbage[ROOM];
        memset(garbage, 0xff, sizeof garbage);
        memcpy(garbage, input->object, input->first);
        memcpy(garbage, &input->first, sizeof input->first);
        assert_ok(input->call(garbage));
    }
}

/* ---- structs that the library fills ---------------------------------------------------------- */

static void offer_for_the_backend(void)
{
    offer_fd(&channel, client[0]);
    assert_ok(handoff_backend_dispatch(channel.backend));
}

static void adopt_for_the_broker(void)
{
    offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
    assert_no_arrival(&channel);
    assert_ok(handoff_broker_dispatch(channel.broker));
}

static void acknowledge(void)
{
    assert_ok(handoff_raw_ack_accept(raw.pair[1], &raw.token));
}

static handoff_status next_arrival_into(void *arrival)
{
    return handoff_backend_next(channel.backend, arrival);
}

static handoff_status accept_arrival_into(void *arrival)
{
    return handoff_backend_accept(channel.backend, 0, arrival);
}

static handoff_status next_verdict_into(void *verdict)
{
    return handoff_broker_next(channel.broker, verdict);
}

static handoff_status wait_for_verdict_into(void *verdict)
{
    handoff_offer offer = offer_of(client[0]);
    offer.timeout_ms = 1;
    return handoff_broker_offer_and_wait(channel.broker, &offer, verdict);
}

static handoff_status broker_statistics_into(void *statistics)
{
    return handoff_broker_get_statistics(channel.broker, statistics);
}

static handoff_status backend_state_into(void *state)
{
    return handoff_broker_get_backend_state(channel.broker, 0, state);
}

static handoff_status backend_statistics_into(void *statistics)
{
    return handoff_backend_get_statistics(channel.backend, statistics);
}

static handoff_status receive_ack_into(void *ack)
{
    return handoff_raw_ack_receive(raw.pair[0], ack);
}

static handoff_status wait_for_ack_into(void *ack)
{
    return handoff_raw_ack_wait(raw.pair[0], &raw.token, HANDOFF_NO_TIMEOUT, ack);
}

static handoff_status attempt_into(void *verdict)
{
    return handoff_raw_attempt(raw.pair[0], client[0], &raw.token, HANDOFF_NO_TIMEOUT, verdict);
}

static handoff_status attempt_path_into(void *verdict)
{
    return handoff_raw_attempt_path("@nobody", client[0], &raw.token, 1, verdict);
}

static handoff_status peer_into(void *peer)
{
    return handoff_raw_peer_credentials(raw.pair[0], peer);
}

static handoff_status checked_peer_into(void *peer)
{
    return handoff_raw_peer_check(raw.pair[0], NULL, peer);
}

static handoff_status decision_into(void *decision)
{
    return handoff_raw_failures_should_attempt(raw.failures, "app", NULL, decision);
}

static handoff_status failure_into(void *decision)
{
    return handoff_raw_failures_record_failure(raw.failures, "fails", HANDOFF_REASON_ACK_TIMEOUT,
                                               decision);
}

/* After a result: so that the next one can be had, and nothing stays open. */

static void end_arrival(const void *bytes)
{
    handoff_arrival arrival;
    memcpy(&arrival, bytes, sizeof arrival);
    if (arrival.fd == -1)
        adopt(&channel, arrival.id);
    else
        close(arrival.fd);
    assert_no_arrival(&channel);
    assert_adopted(&channel);
}

static void end_offer(const void *bytes)
{
    (void)bytes;
    assert_no_arrival(&channel);
}

static void end_attempt(const void *bytes)
{
    handoff_raw_token token;
    int fd;
    (void)bytes;
    assert_ok(handoff_raw_receive(raw.pair[1], 0, &token, &fd));
    close(fd);
}

static const handoff_arrival no_arrival = HANDOFF_ARRIVAL_INIT;
static const handoff_verdict no_verdict = HANDOFF_VERDICT_INIT;
static const handoff_broker_statistics no_broker_statistics = HANDOFF_BROKER_STATISTICS_INIT;
static const handoff_backend_statistics no_backend_statistics = HANDOFF_BACKEND_STATISTICS_INIT;
static const handoff_broker_backend_state no_backend_state = HANDOFF_BROKER_BACKEND_STATE_INIT;
static const handoff_raw_ack no_ack = HANDOFF_RAW_ACK_INIT;
static const handoff_raw_verdict no_raw_verdict = HANDOFF_RAW_VERDICT_INIT;
static const handoff_raw_peer no_peer = HANDOFF_RAW_PEER_INIT;
static const handoff_raw_decision no_decision = HANDOFF_RAW_DECISION_INIT;

static const struct filled {
    const char *macro;
    const void *object;
    size_t size;
    void (*prepare)(void); /* makes what the call takes, if it takes something */
    handoff_status (*call)(void *);
    void (*end)(const void *);
    const char *argument; /* what the call's messages call it */
    size_t first;         /* its size in the first release */
} filling_calls[] = {
    {"HANDOFF_ARRIVAL_INIT", &no_arrival, sizeof no_arrival, offer_for_the_backend,
     next_arrival_into, end_arrival, "arrival", FIRST_END(handoff_arrival, reserved)},
    {"HANDOFF_ARRIVAL_INIT", &no_arrival, sizeof no_arrival, offer_for_the_backend,
     accept_arrival_into, end_arrival, "arrival", FIRST_END(handoff_arrival, reserved)},
    {"HANDOFF_VERDICT_INIT", &no_verdict, sizeof no_verdict, adopt_for_the_broker,
     next_verdict_into, NULL, "verdict", FIRST_END(handoff_verdict, reserved)},
    {"HANDOFF_VERDICT_INIT", &no_verdict, sizeof no_verdict, NULL, wait_for_verdict_into, end_offer,
     "verdict", FIRST_END(handoff_verdict, reserved)},
    {"HANDOFF_BROKER_STATISTICS_INIT", &no_broker_statistics, sizeof no_broker_statistics, NULL,
     broker_statistics_into, NULL, "statistics", FIRST_END(handoff_broker_statistics, failovers)},
    {"HANDOFF_BACKEND_STATISTICS_INIT", &no_backend_statistics, sizeof no_backend_statistics, NULL,
     backend_statistics_into, NULL, "statistics",
     FIRST_END(handoff_backend_statistics, refused_draining)},
    {"HANDOFF_BROKER_BACKEND_STATE_INIT", &no_backend_state, sizeof no_backend_state, NULL,
     backend_state_into, NULL, "state", FIRST_END(handoff_broker_backend_state, histogram)},
    {"HANDOFF_RAW_ACK_INIT", &no_ack, sizeof no_ack, acknowledge, receive_ack_into, NULL, "ack",
     FIRST_END(handoff_raw_ack, reason)},
    {"HANDOFF_RAW_ACK_INIT", &no_ack, sizeof no_ack, acknowledge, wait_for_ack_into, NULL, "ack",
     FIRST_END(handoff_raw_ack, reason)},
    {"HANDOFF_RAW_VERDICT_INIT", &no_raw_verdict, sizeof no_raw_verdict, acknowledge, attempt_into,
     end_attempt, "verdict", FIRST_END(handoff_raw_verdict, may_have_reached_backend)},
    {"HANDOFF_RAW_VERDICT_INIT", &no_raw_verdict, sizeof no_raw_verdict, NULL, attempt_path_into,
     NULL, "verdict", FIRST_END(handoff_raw_verdict, may_have_reached_backend)},
    {"HANDOFF_RAW_PEER_INIT", &no_peer, sizeof no_peer, NULL, peer_into, NULL, "peer",
     FIRST_END(handoff_raw_peer, reserved)},
    {"HANDOFF_RAW_PEER_INIT", &no_peer, sizeof no_peer, NULL, checked_peer_into, NULL, "peer",
     FIRST_END(handoff_raw_peer, reserved)},
    {"HANDOFF_RAW_DECISION_INIT", &no_decision, sizeof no_decision, NULL, decision_into, NULL,
     "decision", FIRST_END(handoff_raw_decision, retry_after_ms)},
    {"HANDOFF_RAW_DECISION_INIT", &no_decision, sizeof no_decision, NULL, failure_into, NULL,
     "decision", FIRST_END(handoff_raw_decision, retry_after_ms)},
};

/* Lets a call fill a struct of `size` bytes, all of which but the size have this value before. */
static void *fill(const struct filled *filled, size_t size, int value)
{
    void *object = malloc(size);
    assert_non_null(object);
    memset(object, value, size);
    memcpy(object, &size, sizeof size);
    if (filled->prepare != NULL)
        filled->prepare();
    assert_ok(filled->call(object));
    if (filled->end != NULL) {
        char whole[ROOM] = {0};
        memcpy(whole, object, size < filled->size ? size : filled->size);
        filled->end(whole);
    }
    size_t after;
    memcpy(&after, object, sizeof after);
    assert_int_equal(after, size);
    return object;
}

static void assert_not_filled(const struct filled *filled, size_t size)
{
    void *object = copy_of(&size, sizeof size);
    assert_invalid(filled->call(object));
    assert_last_error_has(filled->macro);
    assert_last_error_has(filled->argument);
    assert_memory_equal(object, &size, sizeof size);
    free(object);
}

static void filling_takes_nothing_if_the_size_is_impossible_and_names_the_macro(void **state)
{
    (void)state;
    FOR_EACH(filled, filling_calls) {
        uint64_t offered = broker_statistics(channel.broker).offered;
        if (filled->prepare != NULL) {
            filled->prepare();
            offered = broker_statistics(channel.broker).offered;
        }
        for (int i = 0; i < IMPOSSIBLE; i++)
            assert_not_filled(filled, impossible[i]);
        for (size_t size = sizeof(size_t); size < filled->first; size++)
            assert_not_filled(filled, size);
        assert_int_equal(broker_statistics(channel.broker).offered, offered);
        assert_int_equal(handoff_raw_failures_failed_count(raw.failures, "fails"), 0);
        void *object = copy_of(filled->object, filled->size);
        assert_ok(filled->call(object));
        if (filled->end != NULL)
            filled->end(object);
        free(object);
    }
}

enum { AFTER_REASON = offsetof(handoff_raw_decision, reason) + sizeof(handoff_reason) };

/* Twice, over different bytes: what is still different afterwards was not written. */
static void every_byte_that_the_program_knows_is_written(void **state)
{
    (void)state;
    FOR_EACH(filled, filling_calls) {
        unsigned char *zeros = fill(filled, filled->size, 0);
        unsigned char *ones = fill(filled, filled->size, 0xff);
        for (size_t at = sizeof(size_t); at < filled->size; at++) {
            /* Padding. */
            if (filled->object == &no_decision && at >= AFTER_REASON &&
                at < offsetof(handoff_raw_decision, retry_after_ms))
                continue;
            if (zeros[at] == 0 && ones[at] == 0xff)
                fail_msg("byte %zu of a struct of %s is not written", at, filled->macro);
        }
        free(zeros);
        free(ones);
    }
}

/* Memory of just so many bytes: AddressSanitizer and valgrind see what is written beyond them. */
static void struct_of_the_first_release_is_filled(void **state)
{
    (void)state;
    FOR_EACH(filled, filling_calls)
        free(fill(filled, filled->first, 0x55));
}

static void nothing_is_written_behind_a_struct_of_an_older_header(void **state)
{
    (void)state;
    FOR_EACH(filled, filling_calls) {
        unsigned char object[ROOM];
        memset(object, 0x55, sizeof object);
        memcpy(object, &filled->first, sizeof filled->first);
        if (filled->prepare != NULL)
            filled->prepare();
        assert_ok(filled->call(object));
        for (size_t at = filled->first; at < sizeof object; at++)
            assert_int_equal(object[at], 0x55);
        if (filled->end != NULL) {
            memset(object + filled->first, 0, sizeof object - filled->first);
            filled->end(object);
        }
    }
}

static void what_only_a_newer_header_has_becomes_zero(void **state)
{
    (void)state;
    FOR_EACH(filled, filling_calls) {
        for (size_t more = 1; more <= LARGER; more++) {
            unsigned char *object = fill(filled, filled->size + more, 0x55);
            for (size_t at = filled->size; at < filled->size + more; at++)
                assert_int_equal(object[at], 0);
            free(object);
        }
    }
}

static void fields_have_their_values_whatever_the_size(void **state)
{
    (void)state;
    handoff_raw_peer peer[2] = {{.size = 2 * sizeof(handoff_raw_peer)}};
    assert_ok(handoff_raw_peer_credentials(raw.pair[0], &peer[0]));
    assert_int_equal(peer[0].pid, getpid());
    assert_int_equal(peer[0].uid, geteuid());
    assert_int_equal(peer[0].gid, getegid());
}

/* ---- functions that initialise --------------------------------------------------------------- */

#define INIT(type)                                                     \
    static handoff_status init_##type(void *object, size_t size)       \
    {                                                                  \
        return type##_init(object, size);                              \
    }
INIT(handoff_broker_options)
INIT(handoff_broker_backend)
INIT(handoff_backend_options)
INIT(handoff_peer_policy)
INIT(handoff_offer)
INIT(handoff_raw_store_options)
INIT(handoff_raw_pending_options)
INIT(handoff_raw_failures_options)
INIT(handoff_raw_listener_options)
INIT(handoff_raw_inputs)
#undef INIT

static const struct init {
    handoff_status (*call)(void *, size_t);
    const void *object;
    size_t size, first;
} inits[] = {
    {init_handoff_broker_options, &broker_options, sizeof broker_options,
     FIRST_END(handoff_broker_options, spin_us)},
    {init_handoff_broker_backend, &no_backend, sizeof no_backend,
     FIRST_END(handoff_broker_backend, failure_period_ms)},
    {init_handoff_backend_options, &backend_options, sizeof backend_options,
     FIRST_END(handoff_backend_options, reserved)},
    {init_handoff_peer_policy, &peer_policy, sizeof peer_policy,
     FIRST_END(handoff_peer_policy, groups_len)},
    {init_handoff_offer, &no_offer, sizeof no_offer,
     FIRST_END(handoff_offer, timeout_ms)},
    {init_handoff_raw_store_options, &store_options, sizeof store_options,
     FIRST_END(handoff_raw_store_options, collision_attempts)},
    {init_handoff_raw_pending_options, &pending_options, sizeof pending_options,
     FIRST_END(handoff_raw_pending_options, timeout_ms)},
    {init_handoff_raw_failures_options, &failures_options, sizeof failures_options,
     FIRST_END(handoff_raw_failures_options, max_backends)},
    {init_handoff_raw_listener_options, &listener_options, sizeof listener_options,
     FIRST_END(handoff_raw_listener_options, reserved)},
    {init_handoff_raw_inputs, &no_inputs, sizeof no_inputs,
     FIRST_END(handoff_raw_inputs, foreign_backend)},
};

static void function_initialises_as_its_macro_does(void **state)
{
    (void)state;
    FOR_EACH(init, inits) {
        void *object = malloc(init->size);
        assert_non_null(object);
        memset(object, 0x55, init->size);
        assert_ok(init->call(object, init->size));
        assert_memory_equal(object, init->object, init->size);
        free(object);
    }
}

/* A program that was compiled for an older or a newer header, and a struct of its size. */
static void function_initialises_a_struct_of_another_size(void **state)
{
    (void)state;
    FOR_EACH(init, inits) {
        for (size_t more = 0; more <= LARGER; more++) {
            size_t size = more == 0 ? init->first : init->size + more;
            unsigned char expected[ROOM] = {0}, *object = malloc(size);
            assert_non_null(object);
            memset(object, 0x55, size);
            memcpy(expected, init->object, init->size);
            memcpy(expected, &size, sizeof size);
            assert_ok(init->call(object, size));
            assert_memory_equal(object, expected, size);
            free(object);
        }
    }
}

static void function_refuses_what_cannot_be_a_struct(void **state)
{
    (void)state;
    FOR_EACH(init, inits) {
        unsigned char object[ROOM], before[ROOM];
        memset(object, 0x55, sizeof object);
        memcpy(before, object, sizeof before);
        for (int i = 0; i < IMPOSSIBLE; i++)
            assert_invalid_because(init->call(object, impossible[i]), "size");
        for (size_t size = sizeof(size_t); size < init->first; size++)
            assert_invalid_because(init->call(object, size), "size");
        assert_memory_equal(object, before, sizeof object);
        assert_invalid(init->call(NULL, init->size));
        assert_invalid(init->call(misaligned(), init->size));
    }
}

static void initialised_structs_are_taken(void **state)
{
    (void)state;
    handoff_offer offer;
    assert_ok(handoff_offer_init(&offer, sizeof offer));
    assert_int_equal(offer.fd, -1);
    offer.fd = client[0];
    assert_ok(offer_one(&offer));
    handoff_broker_options options;
    assert_ok(handoff_broker_options_init(&options, sizeof options));
    assert_ok(new_broker(&options));
    handoff_broker_backend backend;
    assert_ok(handoff_broker_backend_init(&backend, sizeof backend));
    backend.path = other_backend.path;
    assert_ok(add_backend(&backend));
    handoff_backend_options listening;
    assert_ok(handoff_backend_options_init(&listening, sizeof listening));
    assert_ok(listen_for_brokers(&listening));
    handoff_peer_policy policy;
    assert_ok(handoff_peer_policy_init(&policy, sizeof policy));
    assert_ok(check_with_policy(&policy));
    handoff_raw_store_options store;
    assert_ok(handoff_raw_store_options_init(&store, sizeof store));
    assert_ok(new_store(&store));
    handoff_raw_pending_options pending;
    assert_ok(handoff_raw_pending_options_init(&pending, sizeof pending));
    assert_ok(new_pending(&pending));
    handoff_raw_failures_options failures;
    assert_ok(handoff_raw_failures_options_init(&failures, sizeof failures));
    assert_ok(new_failures(&failures));
    handoff_raw_listener_options listener;
    assert_ok(handoff_raw_listener_options_init(&listener, sizeof listener));
    assert_ok(new_listener(&listener));
    handoff_raw_inputs inputs;
    assert_ok(handoff_raw_inputs_init(&inputs, sizeof inputs));
    assert_ok(decide(&inputs));
}

/* ---- no padding at the end ------------------------------------------------------------------- */

/* Older programs would leave it undefined where a newer library has a field: docs/abi.md, which says
 * what holds where a pointer has 32 bits. */
#define ENDS_WITH(type, field)                                                                    \
    _Static_assert(sizeof(void *) < 8 ||                                                          \
                       offsetof(type, field) + sizeof((type *)0)->field == sizeof(type),          \
                   #type)
ENDS_WITH(handoff_broker_options, spin_us);
ENDS_WITH(handoff_backend_options, reserved);
ENDS_WITH(handoff_broker_backend, failure_period_ms);
ENDS_WITH(handoff_broker_backend_state, histogram);
ENDS_WITH(handoff_verdict, reserved);
ENDS_WITH(handoff_broker_statistics, failovers);

int main(void)
{
    const struct CMUnitTest tests[] = {
        STRUCT_TEST(struct_of_an_impossible_size_is_refused_and_its_macro_named),
        STRUCT_TEST(struct_of_the_first_release_is_taken),
        STRUCT_TEST(struct_of_a_newer_header_is_taken_if_nothing_new_is_set),
        STRUCT_TEST(struct_of_the_largest_size_is_taken),
        STRUCT_TEST(struct_of_a_newer_header_is_refused_and_named_if_something_new_is_set),
        STRUCT_TEST(what_an_older_header_lacks_is_not_looked_at),
        STRUCT_TEST(filling_takes_nothing_if_the_size_is_impossible_and_names_the_macro),
        STRUCT_TEST(every_byte_that_the_program_knows_is_written),
        STRUCT_TEST(struct_of_the_first_release_is_filled),
        STRUCT_TEST(nothing_is_written_behind_a_struct_of_an_older_header),
        STRUCT_TEST(what_only_a_newer_header_has_becomes_zero),
        STRUCT_TEST(fields_have_their_values_whatever_the_size),
        STRUCT_TEST(function_initialises_as_its_macro_does),
        STRUCT_TEST(function_initialises_a_struct_of_another_size),
        STRUCT_TEST(function_refuses_what_cannot_be_a_struct),
        STRUCT_TEST(initialised_structs_are_taken),
    };
    return RUN_TESTS(tests);
}
