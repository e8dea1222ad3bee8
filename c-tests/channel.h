/*
 * channel.h: both ends of a channel in one process, for the tests that need them.
 *
 * What one end sends is there for the other at once, so dispatching it is enough, or receive_all()
 * where it is more than a packet: nothing here waits but await_readable() and await_either().
 */
#ifndef CHANNEL_H
#define CHANNEL_H

#include "support.h"

#include <poll.h>

struct channel {
    char directory[64];
    char path[80];
    handoff_backend *backend;
    handoff_broker *broker;
};

/** Waits until a handle's descriptor says that there is work. */
static inline void await_readable(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&poll_fd, 1, PATIENCE_MS), 1);
    assert_int_equal(poll_fd.revents, POLLIN);
}

static inline int is_readable(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    return poll(&poll_fd, 1, 0) == 1;
}

static inline handoff_broker_statistics broker_statistics(handoff_broker *broker)
{
    handoff_broker_statistics statistics = HANDOFF_BROKER_STATISTICS_INIT;
    assert_ok(handoff_broker_get_statistics(broker, &statistics));
    return statistics;
}

static inline handoff_backend_statistics backend_statistics(handoff_backend *backend)
{
    handoff_backend_statistics statistics = HANDOFF_BACKEND_STATISTICS_INIT;
    assert_ok(handoff_backend_get_statistics(backend, &statistics));
    return statistics;
}

/** Dispatches a backend until nothing more arrives. */
static inline void receive_all(handoff_backend *backend)
{
    uint64_t before;
    do {
        before = backend_statistics(backend).arrived;
        assert_ok(handoff_backend_dispatch(backend));
    } while (backend_statistics(backend).arrived > before);
}

/** Waits until an end has something to do: a broker's next attempt to connect may have been due at
 * any moment before, so that it is the backend that has to act. */
static inline void await_either(handoff_broker *broker, handoff_backend *backend)
{
    struct pollfd polls[] = {{.fd = handoff_broker_fd(broker), .events = POLLIN},
                             {.fd = handoff_backend_fd(backend), .events = POLLIN}};
    assert_in_range(poll(polls, 2, PATIENCE_MS), 1, 2);
}

/** Sets up a broker's first channel, or its next one when the time for that has come. */
static inline void connect_broker(handoff_broker *broker, handoff_backend *backend)
{
    uint64_t before = broker_statistics(broker).connects;
    assert_int_not_equal(handoff_broker_fd(broker), -1);
    assert_ok(handoff_backend_dispatch(backend));
    assert_ok(handoff_broker_dispatch(broker));
    while (broker_statistics(broker).connects == before) {
        await_either(broker, backend);
        assert_ok(handoff_broker_dispatch(broker));
        assert_ok(handoff_backend_dispatch(backend));
        assert_ok(handoff_broker_dispatch(broker));
    }
}

static inline void open_channel(struct channel *channel, const handoff_broker_options *broker,
                                const handoff_backend_options *backend)
{
    make_directory(channel->directory);
    snprintf(channel->path, sizeof channel->path, "%.63s/socket", channel->directory);
    assert_ok(handoff_backend_listen(channel->path, backend, &channel->backend));
    assert_ok(handoff_broker_new(channel->path, broker, &channel->broker));
    connect_broker(channel->broker, channel->backend);
}

static inline void close_channel(struct channel *channel)
{
    handoff_broker_free(channel->broker);
    handoff_backend_free(channel->backend);
    remove_directory(channel->directory);
}

static inline handoff_offer offer_of(int fd)
{
    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = fd;
    return offer;
}

/** Offers a connection and nothing with it; returns the offer's id. */
static inline uint64_t offer_fd(struct channel *channel, int fd)
{
    handoff_offer offer = offer_of(fd);
    uint64_t id = 0;
    assert_ok(handoff_broker_offer(channel->broker, &offer, &id));
    assert_true(id != 0);
    return id;
}

/** The arrival that is there. */
static inline handoff_arrival arrival_of(struct channel *channel)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_status status;
    uint64_t before;
    do { /* those that were taken back come first */
        before = backend_statistics(channel->backend).arrived;
        assert_ok(handoff_backend_dispatch(channel->backend));
        status = handoff_backend_next(channel->backend, &arrival);
    } while (status == HANDOFF_NOTHING && backend_statistics(channel->backend).arrived > before);
    assert_ok(status);
    assert_int_equal(arrival.fd, -1);
    return arrival;
}

/** Adopts an arrival and closes it. */
static inline void adopt(struct channel *channel, uint64_t id)
{
    int fd = -1;
    assert_ok(handoff_backend_adopt(channel->backend, id, &fd));
    assert_int_equal(close(fd), 0);
}

/** The verdict that is there, also if the backend has kept it to the end of its batch. */
static inline handoff_verdict verdict_of(struct channel *channel)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    if (channel->backend != NULL)
        assert_ok(handoff_backend_dispatch(channel->backend));
    assert_ok(handoff_broker_dispatch(channel->broker));
    assert_ok(handoff_broker_next(channel->broker, &verdict));
    return verdict;
}

static inline void assert_no_arrival(struct channel *channel)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    receive_all(channel->backend);
    assert_status(handoff_backend_next(channel->backend, &arrival), HANDOFF_NOTHING);
}

static inline void assert_no_verdict(struct channel *channel)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_ok(handoff_broker_dispatch(channel->broker));
    assert_status(handoff_broker_next(channel->broker, &verdict), HANDOFF_NOTHING);
}

/** Asserts that the verdict that is there is a fallback for this reason. */
static inline void assert_falls_back(struct channel *channel, handoff_reason reason)
{
    handoff_verdict verdict = verdict_of(channel);
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, reason);
}

static inline void assert_adopted(struct channel *channel)
{
    handoff_verdict verdict = verdict_of(channel);
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    assert_int_equal(verdict.reason, HANDOFF_REASON_NONE);
}

#endif
