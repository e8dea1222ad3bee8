/* Limits and ends that the kernel tells by a signal, whose default is to kill the process: none comes.
   Each test runs with the defaults of all signals. */
#define _GNU_SOURCE
#include "channel.h"
#include "wire.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

static void with_default_signals(void)
{
    for (int number = 1; number < NSIG; number++)
        (void)signal(number, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    assert_int_equal(sigprocmask(SIG_SETMASK, &none, NULL), 0);
}

/* ---- RLIMIT_FSIZE, SIGXFSZ -------------------------------------------------------------------- */

enum { SLOTS = 100, TABLE = SLOTS * 8 };

static void allow_files_of(rlim_t bytes)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

struct place_and_ends {
    struct place place;
    handoff_backend *backend;
    handoff_broker *broker;
    int client[2];
};

static struct place_and_ends make_ends(void)
{
    struct place_and_ends ends = {.place = make_place()};
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_in_flight = SLOTS;
    assert_ok(handoff_backend_listen(ends.place.path, NULL, &ends.backend));
    assert_ok(handoff_broker_new(ends.place.path, &options, &ends.broker));
    make_pair(SOCK_STREAM, ends.client);
    return ends;
}

static void free_ends(struct place_and_ends *ends)
{
    handoff_broker_free(ends->broker);
    handoff_backend_free(ends->backend);
    close(ends->client[0]);
    close(ends->client[1]);
    remove_directory(ends->place.directory);
}

static void broker_under_a_limit_of_file_sizes_is_refused_and_lives_on(void **state)
{
    (void)state;
    static const rlim_t too_few[] = {0, 1, TABLE - 1};
    for (size_t i = 0; i < sizeof too_few / sizeof *too_few; i++) {
        struct place_and_ends ends = make_ends();
        handoff_offer offer = offer_of(ends.client[0]);
        with_default_signals();
        allow_files_of(too_few[i]);
        assert_int_not_equal(handoff_broker_fd(ends.broker), -1);
        assert_ok(handoff_broker_dispatch(ends.broker));
        assert_status(handoff_broker_offer(ends.broker, &offer, NULL), HANDOFF_ERR_SYSTEM);
        assert_int_equal(errno, EFBIG);
        assert_last_error_has("RLIMIT_FSIZE");
        assert_true(handoff_status_is_fallback_safe(HANDOFF_ERR_SYSTEM));
        /* It tries again by itself. */
        allow_files_of(TABLE);
        connect_broker(ends.broker, ends.backend);
        assert_ok(handoff_broker_offer(ends.broker, &offer, NULL));
        allow_files_of(RLIM_INFINITY);
        free_ends(&ends);
    }
}

static void system_is_asked_under_a_limit_of_file_sizes(void **state)
{
    (void)state;
    with_default_signals();
    allow_files_of(0);
    handoff_status status = handoff_supported();
    int error = errno;
    allow_files_of(RLIM_INFINITY);
    assert_status(status, HANDOFF_ERR_SYSTEM);
    assert_int_equal(error, EFBIG);
    assert_ok(handoff_supported());
}

/* ---- peers that are gone, SIGPIPE ------------------------------------------------------------- */

static void sending_to_peers_that_are_gone_raises_nothing(void **state)
{
    struct wire *wire = *state;
    int socket = wire->broker;
    with_default_signals();
    close_end(&wire->backend);
    assert_status(handoff_raw_send(socket, wire->connection, &wire->token),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_status(handoff_raw_token_send(socket, &wire->token), HANDOFF_ERR_END_OF_STREAM);
    assert_status(handoff_raw_ack_accept(socket, &wire->token), HANDOFF_ERR_END_OF_STREAM);
    assert_status(handoff_raw_ack_reject(socket, &wire->token, HANDOFF_REASON_REJECTED),
                  HANDOFF_ERR_END_OF_STREAM);
}

static void broker_whose_backend_is_gone_is_not_killed(void **state)
{
    (void)state;
    struct place_and_ends ends = make_ends();
    handoff_offer offer = offer_of(ends.client[0]);
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    with_default_signals();
    connect_broker(ends.broker, ends.backend);
    handoff_backend_free(ends.backend);
    ends.backend = NULL;
    assert_ok(handoff_broker_offer(ends.broker, &offer, NULL));
    assert_true(next_verdict(ends.broker, &verdict));
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    free_ends(&ends);
}

static void backend_whose_broker_is_gone_is_not_killed(void **state)
{
    (void)state;
    struct place_and_ends ends = make_ends();
    handoff_offer offer = offer_of(ends.client[0]);
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    with_default_signals();
    connect_broker(ends.broker, ends.backend);
    assert_ok(handoff_broker_offer(ends.broker, &offer, NULL));
    assert_ok(handoff_backend_dispatch(ends.backend));
    assert_true(next_arrival(ends.backend, &arrival));
    handoff_broker_free(ends.broker);
    ends.broker = NULL;
    assert_ok(handoff_backend_reject(ends.backend, arrival.id, HANDOFF_REASON_REJECTED));
    assert_false(next_arrival(ends.backend, &arrival));
    assert_ok(handoff_backend_dispatch(ends.backend));
    free_ends(&ends);
}

/* ---- small stacks, SIGSEGV -------------------------------------------------------------------- */

/* What a thread may have, and what the library and a small program need of it at the most:
   docs/platforms.md says so. */
enum { LEAST_STACK = 64 * 1024, MOST_USED = 28 * 1024, PAINT = 0x5a };
/* What the functions of a sanitizer need, which stand between the library and the C library. */
enum { MORE_USED = SANITIZED * 8 * 1024 };

static int fails;
#define expect(condition) \
    ((condition) ? (void)0 \
                 : (void)(fails++, fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, \
                                           handoff_last_error())))

/* A life of both ends and of the raw layer, in few words: connecting, many offers in one packet,
   errors with long messages, draining. */
static void *live(void *argument)
{
    enum { OFFERS = 250 };
    struct place_and_ends *ends = argument;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_offer offer = HANDOFF_OFFER_INIT;
    handoff_raw_token token;
    int fd, pair[2];
    offer.fd = ends->client[0];
    offer.flags = HANDOFF_OFFER_MORE;
    for (int i = 0; i < 3; i++) {
        expect(handoff_broker_dispatch(ends->broker) == HANDOFF_OK);
        expect(handoff_backend_dispatch(ends->backend) == HANDOFF_OK);
    }
    for (int i = 0; i < OFFERS; i++)
        expect(handoff_broker_offer(ends->broker, &offer, NULL) == HANDOFF_OK);
    expect(handoff_broker_flush(ends->broker) == HANDOFF_OK);
    expect(handoff_backend_dispatch(ends->backend) == HANDOFF_OK);
    while (handoff_backend_next(ends->backend, &arrival) == HANDOFF_OK)
        expect(handoff_backend_adopt(ends->backend, arrival.id, &fd) == HANDOFF_OK && close(fd) == 0);
    expect(handoff_broker_dispatch(ends->broker) == HANDOFF_OK);
    for (int i = 0; i < OFFERS; i++)
        expect(handoff_broker_next(ends->broker, &verdict) == HANDOFF_OK);
    offer.fd = 4711;
    expect(handoff_broker_offer(ends->broker, &offer, NULL) == HANDOFF_ERR_INVALID_ARGUMENT);
    expect(handoff_backend_drain(ends->backend) == HANDOFF_OK);
    expect(handoff_broker_dispatch(ends->broker) == HANDOFF_OK);
    expect(handoff_supported() == HANDOFF_OK);
    options.reconnect_min_ms = 2000;
    options.reconnect_max_ms = 1;
    handoff_broker *none;
    expect(handoff_broker_new("@x", &options, &none) == HANDOFF_ERR_INVALID_ARGUMENT);
    expect(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    expect(handoff_raw_token_generate(&token) == HANDOFF_OK);
    expect(handoff_raw_send(pair[0], ends->client[0], &token) == HANDOFF_OK);
    expect(handoff_raw_receive(pair[1], 0, &token, &fd) == HANDOFF_OK && close(fd) == 0);
    expect(handoff_raw_ack_accept(pair[1], &token) == HANDOFF_OK);
    expect(close(pair[0]) == 0 && close(pair[1]) == 0);
    return NULL;
}

static void threads_with_small_stacks_are_enough(void **state)
{
    (void)state;
    struct place_and_ends ends = {.place = make_place()};
    pthread_attr_t attributes;
    pthread_t thread;
    skip_under_valgrind("it sees every byte of a painted stack");
    assert_ok(handoff_backend_listen(ends.place.path, NULL, &ends.backend));
    assert_ok(handoff_broker_new(ends.place.path, NULL, &ends.broker));
    make_pair(SOCK_STREAM, ends.client);
    /* On some processors a thread must have more. */
    long least = sysconf(_SC_THREAD_STACK_MIN);
    size_t len = least > LEAST_STACK ? (size_t)least : LEAST_STACK;
    unsigned char *stack = mmap(NULL, len, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    assert_ptr_not_equal(stack, MAP_FAILED);
    memset(stack, PAINT, len);
    assert_int_equal(pthread_attr_init(&attributes), 0);
    assert_int_equal(pthread_attr_setstack(&attributes, stack, len), 0);
    assert_int_equal(pthread_create(&thread, &attributes, live, &ends), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    pthread_attr_destroy(&attributes);
    size_t unused = 0;
    while (unused < len && stack[unused] == PAINT)
        unused++;
    print_message("%zu bytes of stack were used\n", len - unused);
    assert_int_equal(fails, 0);
    assert_in_range(unused, len - MOST_USED - MORE_USED, len);
    munmap(stack, len);
    free_ends(&ends);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(broker_under_a_limit_of_file_sizes_is_refused_and_lives_on),
        TEST(system_is_asked_under_a_limit_of_file_sizes),
        WIRE_TEST(sending_to_peers_that_are_gone_raises_nothing),
        TEST(broker_whose_backend_is_gone_is_not_killed),
        TEST(backend_whose_broker_is_gone_is_not_killed),
        TEST(threads_with_small_stacks_are_enough),
    };
    return RUN_TESTS(tests);
}
