/*
 * The library: a channel, or CHANNELS of them in turn, as an event loop would use it. With BACKENDS
 * each broker has so many. With MANY offers are sent after so many, otherwise at the end of a turn
 * of the loop.
 */
#define _GNU_SOURCE
#include "../need_handoff.h"
#include "peer.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_CHANNELS = 1024, MOST_BACKENDS = 16, MOST_SLOTS = 4096 };

static handoff_backend *listening[MOST_BACKENDS];
static handoff_broker *brokers[MOST_CHANNELS];
static struct pollfd readable[MOST_CHANNELS];
static int turn, unsent, is_full;
/* For offers without preread: where bytes are the limit there is room, and the descriptor tells. */
static size_t room_when_full;

static void prepare(void)
{
    char paths[MOST_BACKENDS][64];
    handoff_backend_options of_backend = HANDOFF_BACKEND_OPTIONS_INIT;
    handoff_broker_options of_broker = HANDOFF_BROKER_OPTIONS_INIT;
    need(channels <= MOST_CHANNELS && backends <= MOST_BACKENDS, "CHANNELS, BACKENDS");
    of_backend.max_channels = (size_t)channels;
    of_backend.max_offer_bytes = MOST_PREREAD;
    size_t slots = (size_t)((in_flight + channels - 1) / channels);
    of_broker.max_in_flight = slots < MOST_SLOTS ? slots : MOST_SLOTS;
    of_backend.max_in_flight = of_broker.max_in_flight;
    of_broker.timeout_ms = 60000;
    of_broker.spin_us = of_backend.spin_us = (uint32_t)spin;
    for (int i = 0; i < backends; i++) {
        snprintf(paths[i], sizeof paths[i], "@handoff-bench-%d-%d", getpid(), i);
        need_handoff(handoff_backend_listen(paths[i], &of_backend, &listening[i]),
                     "handoff_backend_listen");
    }
    for (int i = 0; i < channels; i++) {
        need_handoff(handoff_broker_new(paths[0], &of_broker, &brokers[i]), "handoff_broker_new");
        for (int j = 1; j < backends; j++) {
            handoff_broker_backend more = HANDOFF_BROKER_BACKEND_INIT;
            more.path = paths[j];
            need_handoff(handoff_broker_add(brokers[i], &more), "handoff_broker_add");
        }
    }
}

/* ---- the broker ---- */

static void begin(int socket)
{
    (void)socket;
    for (int i = 0; i < backends; i++)
        handoff_backend_free(listening[i]); /* the backend's now */
    for (int i = 0; i < channels; i++) {
        handoff_broker_statistics statistics = HANDOFF_BROKER_STATISTICS_INIT;
        readable[i] = (struct pollfd){.fd = handoff_broker_fd(brokers[i]), .events = POLLIN};
        while (statistics.connects < (uint64_t)backends) {
            need(poll(&readable[i], 1, 5000) == 1, "connecting");
            need_handoff(handoff_broker_dispatch(brokers[i]), "handoff_broker_dispatch");
            need_handoff(handoff_broker_get_statistics(brokers[i], &statistics), "statistics");
        }
    }
}

static void flush(void)
{
    for (int i = 0; i < channels && unsent > 0; i++)
        need_handoff(handoff_broker_flush(brokers[i]), "handoff_broker_flush");
    unsent = 0;
}

static int offer(struct client *client)
{
    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = client->source.fd;
    offer.preread = client->preread;
    offer.preread_len = (size_t)preread;
    offer.user_data = client;
    offer.flags = HANDOFF_OFFER_MORE;
    handoff_status status = handoff_broker_offer(brokers[turn], &offer, NULL);
    is_full = status == HANDOFF_ERR_FULL;
    if (is_full) {
        room_when_full = handoff_broker_room(brokers[turn]);
        return 0;
    }
    need_handoff(status, "handoff_broker_offer");
    turn = (turn + 1) % channels;
    if (++unsent == many)
        flush();
    return 1;
}

static int watched(void)
{
    need(channels == 1, "CHANNELS");
    return readable[0].fd;
}

static int take_verdicts(handoff_broker *broker)
{
    int count = 0;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    need_handoff(handoff_broker_dispatch(broker), "handoff_broker_dispatch");
    while (took(handoff_broker_next(broker, &verdict), "handoff_broker_next")) {
        need(verdict.outcome == HANDOFF_ADOPTED, "a fallback");
        settle(verdict.user_data);
        count++;
    }
    return count;
}

static void dispatch(int may_wait)
{
    /* One handle is dispatched before the loop waits for it: it may have made room, too. */
    if (channels == 1 && looks_first(may_wait) &&
        (take_verdicts(brokers[0]) > 0 ||
         (is_full && handoff_broker_room(brokers[0]) > room_when_full)))
        return;
    need(poll(readable, (nfds_t)channels, may_wait ? -1 : 0) >= may_wait, "poll");
    for (int i = 0; i < channels; i++)
        if (readable[i].revents != 0)
            take_verdicts(brokers[i]);
}

/* ---- the backend ---- */

static uint64_t *held;
static int held_count, finished;

static int adopt(handoff_backend *from, uint64_t id)
{
    int fd;
    need_handoff(handoff_backend_adopt(from, id, &fd), "handoff_backend_adopt");
    return fd;
}

static int take_arrivals(handoff_backend *from)
{
    int count = 0;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    need_handoff(handoff_backend_dispatch(from), "handoff_backend_dispatch");
    while (took(handoff_backend_next(from, &arrival), "handoff_backend_next")) {
        finished = arrived();
        count++;
        if (held_count < hold)
            held[held_count++] = arrival.id;
        else
            serve(adopt(from, arrival.id));
    }
    for (int i = 0; i < held_count && held_count == hold; i++)
        adopt(from, held[i]);
    return count;
}

static void backend(int socket)
{
    struct pollfd readable[MOST_BACKENDS];
    (void)socket;
    held = calloc((size_t)hold + 1, sizeof *held);
    need(held != NULL && (hold == 0 || backends == 1), "HOLD");
    for (int i = 0; i < backends; i++)
        readable[i] = (struct pollfd){.fd = handoff_backend_fd(listening[i]), .events = POLLIN};
    while (!finished) {
        if (backends == 1 && looks_first(1) && take_arrivals(listening[0]) > 0)
            continue;
        need(poll(readable, (nfds_t)backends, -1) > 0, "an arrival");
        for (int i = 0; i < backends; i++)
            if (readable[i].revents != 0)
                take_arrivals(listening[i]);
    }
    for (int i = 0; i < backends; i++) {
        need_handoff(handoff_backend_dispatch(listening[i]), "handoff_backend_dispatch");
        handoff_backend_free(listening[i]);
    }
}

int main(void)
{
    static const struct peer channel = {prepare, begin, offer, flush, watched, dispatch, backend};
    return run_peer(&channel);
}
