/* Work at the largest limits: it grows with their number, not with the square of it. Each test prints
   the time that it took for a number and for four times that number. */
#define _GNU_SOURCE
#include "channel.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

/* Four times the work takes four times the time, and on a busy machine somewhat more. It would take
   sixteen times if it grew with the square. A few milliseconds more say nothing. */
enum { TIMES = 4, MOST_TIMES_THE_TIME = 10, ALLOWED_MS = 10, RUNS = 3 };

/* Valgrind needs about fifty times the time. */
static size_t largest(size_t number)
{
    return getenv("HANDOFF_UNDER_VALGRIND") != NULL ? number / 16 : number;
}

/* What this process has computed, in nanoseconds: other processes do not count. */
static uint64_t work_ns(void)
{
    struct timespec time;
    assert_int_equal(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time), 0);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* The least of a few runs, which is the one that was disturbed least. */
static uint64_t least_ns(uint64_t (*work)(size_t number), size_t number)
{
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < RUNS; i++) {
        uint64_t time = work(number);
        least = time < least ? time : least;
    }
    return least;
}

static void assert_grows_with(const char *what, uint64_t (*work)(size_t number), size_t number)
{
    uint64_t few = least_ns(work, number / TIMES), all = least_ns(work, number);
    print_message("%s: %zu in %.1f ms, %zu in %.1f ms\n", what, number / TIMES, (double)few / 1e6,
                  number, (double)all / 1e6);
    assert_true(all <= MOST_TIMES_THE_TIME * few + (uint64_t)ALLOWED_MS * 1000000);
}

/* ---- a broker whose backend does nothing ------------------------------------------------------ */

enum { MOST_OFFERS = 4096, PREREAD = 60000 };

static struct channel channel;
static int client[2];
static uint64_t ids[MOST_OFFERS];

static void open_for(size_t offers)
{
    handoff_broker_options broker = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_backend_options backend = HANDOFF_BACKEND_OPTIONS_INIT;
    broker.max_in_flight = backend.max_in_flight = offers;
    broker.queue_bytes = HANDOFF_NO_LIMIT;
    broker.max_failures = HANDOFF_NO_LIMIT;
    open_channel(&channel, &broker, &backend);
    make_pair(SOCK_STREAM, client);
}

static void close_all(void)
{
    close_channel(&channel);
    close(client[0]);
    close(client[1]);
}

static const uint8_t preread[PREREAD];
/* Less where the time to free it all is measured, too: the system's share of that has leaps. */
static size_t preread_len = PREREAD;

/* Offers so many connections; `timeout_ms` says how long each may wait. Most of them wait in the
   broker for room. */
static void offer_all(size_t offers, uint64_t (*timeout_ms)(size_t number, size_t offers), int flags)
{
    handoff_offer offer = offer_of(client[0]);
    offer.flags = (uint32_t)flags;
    offer.preread = preread;
    offer.preread_len = preread_len;
    for (size_t i = 0; i < offers; i++) {
        offer.user_data = &ids[i];
        offer.timeout_ms = timeout_ms(i, offers);
        assert_ok(handoff_broker_offer(channel.broker, &offer, &ids[i]));
    }
}

/* Takes the verdicts and asserts that there are so many, all of them fallbacks for a reason. */
static void take_verdicts(size_t offers, handoff_reason reason)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    for (; next_verdict(channel.broker, &verdict); offers--)
        assert_int_equal(verdict.reason, reason);
    assert_int_equal(offers, 0);
}

static uint64_t a_minute(size_t number, size_t offers)
{
    (void)number, (void)offers;
    return 60000;
}

static uint64_t a_moment(size_t number, size_t offers)
{
    (void)number, (void)offers;
    return 1;
}

static uint64_t less_and_less(size_t number, size_t offers)
{
    return 60000 + offers - number;
}

static uint64_t now_more_now_less(size_t number, size_t offers)
{
    return 60000 + (number % 2 == 0 ? number : offers - number);
}

static uint64_t dispatch_when_all_are_late(size_t offers)
{
    open_for(offers);
    offer_all(offers, a_moment, 0);
    /* An offer is taken back by dispatch only, so that none was until now. */
    sleep_until(now_ns(), 2);
    uint64_t start = work_ns();
    assert_ok(handoff_broker_dispatch(channel.broker));
    uint64_t time = work_ns() - start;
    take_verdicts(offers, HANDOFF_REASON_ACK_TIMEOUT);
    close_all();
    return time;
}

static void offers_that_are_late_are_taken_back(void **state)
{
    (void)state;
    assert_grows_with("late offers of 60 kB", dispatch_when_all_are_late, largest(MOST_OFFERS));
}

static uint64_t close_with_all_in_flight(size_t offers)
{
    open_for(offers);
    offer_all(offers, a_minute, 0);
    uint64_t start = work_ns();
    assert_ok(handoff_broker_close(channel.broker));
    uint64_t time = work_ns() - start;
    take_verdicts(offers, HANDOFF_REASON_BROKER_CLOSED);
    close_all();
    return time;
}

static void offers_in_flight_are_taken_back_at_close(void **state)
{
    (void)state;
    preread_len = PREREAD / 10;
    assert_grows_with("offers of 6 kB at close", close_with_all_in_flight, largest(MOST_OFFERS));
}

static uint64_t backend_ends_with_all_in_flight(size_t offers)
{
    open_for(offers);
    offer_all(offers, a_minute, 0);
    handoff_backend_free(channel.backend);
    channel.backend = NULL;
    uint64_t start = work_ns();
    assert_ok(handoff_broker_dispatch(channel.broker));
    uint64_t time = work_ns() - start;
    take_verdicts(offers, HANDOFF_REASON_BACKEND_UNAVAILABLE);
    close_all();
    return time;
}

static void offers_in_flight_are_taken_back_when_the_backend_ends(void **state)
{
    (void)state;
    preread_len = PREREAD / 10;
    assert_grows_with("offers of 6 kB, backend gone", backend_ends_with_all_in_flight,
                      largest(MOST_OFFERS));
}

/* Offers with one order of deadlines, then takes each back: the first, the last, the second... */
static uint64_t offer_and_take_back(size_t offers, uint64_t (*timeout_ms)(size_t, size_t), int flags)
{
    open_for(offers);
    uint64_t start = work_ns();
    offer_all(offers, timeout_ms, flags);
    for (size_t i = 0; i < offers; i++) {
        size_t which = i % 2 == 0 ? i / 2 : offers - 1 - i / 2;
        assert_ok(handoff_broker_take_back(channel.broker, ids[which]));
    }
    uint64_t time = work_ns() - start;
    take_verdicts(0, HANDOFF_REASON_NONE);
    close_all();
    return time;
}

static uint64_t in_order(size_t offers)
{
    return offer_and_take_back(offers, a_minute, 0);
}

static uint64_t the_latest_first(size_t offers)
{
    return offer_and_take_back(offers, less_and_less, 0);
}

static uint64_t in_no_order(size_t offers)
{
    return offer_and_take_back(offers, now_more_now_less, HANDOFF_OFFER_MORE);
}

static void offers_are_taken_back_one_by_one(void **state)
{
    (void)state;
    size_t most = largest(MOST_OFFERS);
    assert_grows_with("offers with one timeout, taken back", in_order, most);
    assert_grows_with("offers with decreasing timeouts, taken back", the_latest_first, most);
    assert_grows_with("offers with mixed timeouts, taken back", in_no_order, most);
}

/* Room that is used again and again, while others wait in front and behind. */
static uint64_t offer_and_take_back_among_others(size_t times)
{
    /* The first ones fill the socket. */
    enum { FIRST = 20, OTHERS = 200 };
    open_for(FIRST + OTHERS + 1);
    offer_all(FIRST + OTHERS, a_minute, 0);
    handoff_offer offer = offer_of(client[0]);
    offer.preread = preread;
    offer.preread_len = 3;
    uint64_t start = work_ns();
    for (size_t i = 0; i < times; i++) {
        size_t other = FIRST + i % OTHERS;
        uint64_t id;
        assert_ok(handoff_broker_offer(channel.broker, &offer, &id));
        assert_ok(handoff_broker_take_back(channel.broker, ids[other]));
        ids[other] = id;
    }
    uint64_t time = work_ns() - start;
    close_all();
    return time;
}

static void queue_that_is_used_for_long_stays_as_fast(void **state)
{
    (void)state;
    assert_grows_with("offers among others", offer_and_take_back_among_others, largest(40000));
}

/* ---- what cannot be sent -------------------------------------------------------------------- */

static size_t sends;

/* Takes the place of the C library's. */
ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    sends++;
    return syscall(SYS_sendmsg, fd, message, flags);
}

static void offers_that_cannot_be_sent_are_found_among_others_in_a_few_sends(void **state)
{
    (void)state;
    enum { OFFERS = 250, GONE = 3 };
    open_for(OFFERS);
    int gone = dup(client[0]);
    handoff_offer offer = offer_of(client[0]);
    offer.flags = HANDOFF_OFFER_MORE;
    for (int i = 0; i < OFFERS; i++) {
        offer.fd = i % (OFFERS / GONE) == 40 ? gone : client[0];
        assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    }
    close(gone);
    sends = 0;
    assert_ok(handoff_broker_flush(channel.broker));
    print_message("%d offers of which %d cannot be sent: %zu sends\n", OFFERS, GONE, sends);
    assert_in_range(sends, 2 * GONE, 25 * GONE);
    take_verdicts(GONE, HANDOFF_REASON_CLIENT_GONE);
    assert_int_equal(broker_statistics(channel.broker).in_flight, OFFERS - GONE);
    close_all();
}

/* ---- the raw layer ---------------------------------------------------------------------------- */

static uint64_t expire_all(size_t entries)
{
    handoff_raw_store *store;
    handoff_raw_pending *pending;
    handoff_raw_pending_options options = HANDOFF_RAW_PENDING_OPTIONS_INIT;
    handoff_raw_token token = {{0}};
    options.capacity = entries;
    options.timeout_ms = 1;
    assert_ok(handoff_raw_store_new(NULL, &store));
    assert_ok(handoff_raw_pending_new(store, &options, &pending));
    for (size_t i = 0; i < entries; i++) {
        memcpy(token.bytes, &i, sizeof i);
        assert_ok(handoff_raw_pending_register(pending, &token, NULL));
    }
    sleep_until(now_ns(), 2);
    uint64_t start = work_ns();
    size_t expired = 0;
    int wait_ms = -1;
    handoff_status status;
    while ((status = handoff_raw_pending_expire(pending, NULL, NULL)) == HANDOFF_OK) {
        expired++;
        if (expired < entries)
            assert_ok(handoff_raw_pending_next_wait(pending, &wait_ms));
    }
    uint64_t time = work_ns() - start;
    assert_status(status, HANDOFF_NOTHING);
    assert_int_equal(expired, entries);
    handoff_raw_pending_free(pending);
    handoff_raw_store_free(store);
    return time;
}

static void pending_acknowledgements_expire(void **state)
{
    (void)state;
    assert_grows_with("pending acknowledgements that expire", expire_all, largest(1 << 20));
}

/* A full store refuses as many tokens as it holds. */
static uint64_t refuse_as_many(size_t tokens)
{
    handoff_raw_store *store;
    handoff_raw_store_options options = HANDOFF_RAW_STORE_OPTIONS_INIT;
    handoff_raw_token token = {{0}};
    options.capacity = tokens;
    options.lifetime_ms = 600000;
    assert_ok(handoff_raw_store_new(&options, &store));
    uint64_t start = work_ns();
    for (size_t i = 0; i < 2 * tokens; i++) {
        memcpy(token.bytes, &i, sizeof i);
        assert_status(handoff_raw_store_insert(store, &token),
                      i < tokens ? HANDOFF_OK : HANDOFF_ERR_FULL);
    }
    uint64_t time = work_ns() - start;
    handoff_raw_store_free(store);
    return time;
}

static void full_store_refuses_tokens(void **state)
{
    (void)state;
    assert_grows_with("tokens for a full store", refuse_as_many, largest(1 << 18));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(offers_that_are_late_are_taken_back),
        TEST(offers_in_flight_are_taken_back_at_close),
        TEST(offers_in_flight_are_taken_back_when_the_backend_ends),
        TEST(offers_are_taken_back_one_by_one),
        TEST(queue_that_is_used_for_long_stays_as_fast),
        TEST(offers_that_cannot_be_sent_are_found_among_others_in_a_few_sends),
        TEST(pending_acknowledgements_expire),
        TEST(full_store_refuses_tokens),
    };
    return RUN_TESTS(tests);
}
