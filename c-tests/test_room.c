/*
 * Room for the bytes of arrivals: how much a backend holds and how much it keeps are bounded by its
 * options, and what is kept is used again.
 */
#define _GNU_SOURCE
#include "channel.h"
#include "frames.h"
#include "libc.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static struct channel channel;
static int client[2];
static char preread[131000];

/* What the allocator needs for itself, and what is not room: for each arrival. */
enum { OTHER_BYTES = 64 };

static int open_client(void **state)
{
    descriptors_before(state);
    make_pair(SOCK_STREAM, client);
    memset(preread, 'x', sizeof preread);
    return 0;
}

static int close_client(void **state)
{
    close(client[0]);
    close(client[1]);
    return descriptors_after(state);
}

#define ROOM_TEST(function) cmocka_unit_test_setup_teardown(function, open_client, close_client)

/* Offers so many connections at once, each with so many bytes, and looks at every arrival. Returns
   their ids. */
static uint64_t *hold(size_t count, size_t len)
{
    uint64_t *ids = calloc(count, sizeof *ids);
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_offer offer = offer_of(client[0]);
    offer.preread = preread;
    offer.preread_len = len;
    offer.timeout_ms = HANDOFF_NO_TIMEOUT;
    for (size_t held = 0, offered = 0; held < count;) {
        for (; offered < count; offered++) {
            handoff_status status = handoff_broker_offer(channel.broker, &offer, NULL);
            if (status == HANDOFF_ERR_FULL)
                break;
            assert_ok(status);
        }
        assert_ok(handoff_backend_dispatch(channel.backend));
        while (next_arrival(channel.backend, &arrival)) {
            assert_int_equal(arrival.preread_len, len);
            assert_memory_equal(arrival.preread, preread, len);
            ids[held++] = arrival.id;
        }
        assert_ok(handoff_broker_dispatch(channel.broker));
    }
    return ids;
}

/* Adopts or rejects all of them. */
static void release(uint64_t *ids, size_t count)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    for (size_t i = 0; i < count; i++)
        if (i % 3 == 0)
            assert_ok(handoff_backend_reject(channel.backend, ids[i], HANDOFF_REASON_REJECTED));
        else
            adopt(&channel, ids[i]);
    free(ids);
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_ok(handoff_broker_dispatch(channel.broker));
    for (size_t i = 0; i < count; i++)
        assert_true(next_verdict(channel.broker, &verdict));
}

/* Each arrival of many is large, and comes and goes by itself: as a slot is used last that was used
   first, each is in another slot. */
static void no_more_memory_is_kept_than_the_option_says(void **state)
{
    (void)state;
    static const size_t kept[] = {1, 100000, 4000000, 0};
    enum { COUNT = 256, LEN = 60000, DEFAULT = 4194304 };
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
        size_t most = kept[i] == 0 ? DEFAULT : kept[i];
        options.max_kept_bytes = kept[i];
        open_channel(&channel, NULL, &options);
        size_t before = bytes_allocated();
        release(hold(COUNT, 100), COUNT);
        for (int round = 0; round < 2; round++) {
            release(hold(COUNT, LEN), COUNT);
            handoff_backend_statistics found = backend_statistics(channel.backend);
            assert_int_equal(found.held_bytes, 0);
            assert_in_range(found.kept_bytes, 0, most);
            /* What may be kept is kept. */
            assert_true(most < 2 * LEN || found.kept_bytes > most - 2 * LEN);
        }
        /* The broker keeps the room of its queue. */
        size_t queue = 2 * 1048576, now = bytes_allocated();
        assert_true(now < before + most + queue + COUNT * OTHER_BYTES);
        close_channel(&channel);
    }
}

/* Small arrivals in large rooms. */
static void what_is_held_counts_all_of_its_room(void **state)
{
    (void)state;
    enum { COUNT = 256, LEN = 60000, KEPT = 1000000 };
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_kept_bytes = KEPT;
    open_channel(&channel, NULL, &options);
    size_t before = bytes_allocated();
    for (int round = 0; round < 20; round++) {
        /* A few large ones leave their rooms to small ones, which stay for a while. */
        release(hold(COUNT / 16, LEN), COUNT / 16);
        uint64_t *ids = hold(COUNT / 2, 10);
        handoff_backend_statistics found = backend_statistics(channel.backend);
        assert_int_equal(found.held_bytes, COUNT / 2 * 10);
        assert_in_range(found.kept_bytes, 0, KEPT + COUNT / 2 * OTHER_BYTES);
        assert_true(bytes_allocated() < before + KEPT + 2 * 1048576 + COUNT * OTHER_BYTES);
        release(ids, COUNT / 2);
    }
    close_channel(&channel);
}

static void broker_that_goes_leaves_no_room_behind(void **state)
{
    (void)state;
    enum { COUNT = 100, LEN = 10000 };
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_kept_bytes = HANDOFF_NO_LIMIT;
    open_channel(&channel, NULL, &options);
    release(hold(COUNT, LEN), COUNT);
    assert_in_range(backend_statistics(channel.backend).kept_bytes, COUNT * LEN, 2 * COUNT * LEN);
    assert_ok(handoff_broker_close(channel.broker));
    while (backend_statistics(channel.backend).channels > 0)
        assert_ok(handoff_backend_dispatch(channel.backend));
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_int_equal(backend_statistics(channel.backend).kept_bytes, 0);
    close_channel(&channel);
}

/* Until the next dispatch, also if its room is not kept. */
static void bytes_of_an_adopted_arrival_stay_until_dispatch(void **state)
{
    (void)state;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    handoff_arrival first = HANDOFF_ARRIVAL_INIT, second = HANDOFF_ARRIVAL_INIT;
    handoff_offer offer = offer_of(client[0]);
    options.max_kept_bytes = 1;
    open_channel(&channel, NULL, &options);
    offer.preread = preread;
    offer.preread_len = 50000;
    offer.service = "web";
    for (int i = 0; i < 2; i++)
        assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_true(next_arrival(channel.backend, &first));
    adopt(&channel, first.id);
    assert_true(next_arrival(channel.backend, &second));
    adopt(&channel, second.id);
    assert_false(next_arrival(channel.backend, &second));
    assert_string_equal(first.service, "web");
    assert_memory_equal(first.preread, preread, first.preread_len);
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_int_equal(backend_statistics(channel.backend).kept_bytes, 0);
    close_channel(&channel);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ROOM_TEST(no_more_memory_is_kept_than_the_option_says),
        ROOM_TEST(what_is_held_counts_all_of_its_room),
        ROOM_TEST(broker_that_goes_leaves_no_room_behind),
        ROOM_TEST(bytes_of_an_adopted_arrival_stay_until_dispatch),
    };
    return RUN_TESTS(tests);
}
