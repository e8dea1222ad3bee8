/*
 * channel.c: a channel as an event loop uses it.
 *
 * Connect, hello, welcome; three offers, of which one is adopted, one rejected and one taken back;
 * the backend drains, ends its handle and makes another; the broker connects to that, and offers a
 * fourth. Last a client that must be adopted, however often the broker has to offer one.
 */
#define _GNU_SOURCE
#include "scene.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/** Waits for a handle's descriptor, but not for long: the other side may change what is shared. */
static bool is_readable(int fd)
{
    struct pollfd event = {.fd = fd, .events = POLLIN};
    return poll(&event, 1, 1) == 1;
}

/* ---- the broker ----------------------------------------------------------------------------- */

static handoff_broker *broker;
static int broker_fd;
static uint32_t probe_outcome;

static void take_verdicts(void)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    while (CALL(handoff_broker_next(broker, &verdict)) == HANDOFF_OK) {
        uint32_t number = (uint32_t)(uintptr_t)verdict.user_data;
        enum outcome outcome = verdict.outcome == HANDOFF_ADOPTED ? ADOPTED : FALLBACK;
        check(outcome == ADOPTED || verdict.outcome == HANDOFF_FALLBACK);
        check(outcome == ADOPTED || verdict.reason != HANDOFF_REASON_NONE);
        if (number == PROBE)
            probe_outcome = outcome;
        else
            settle(number, outcome, verdict.may_have_reached_backend);
    }
}

/* After an error dispatch is called again. */
static void turn(void)
{
    static bool again;
    if (is_readable(broker_fd) || again)
        again = CALL(handoff_broker_dispatch(broker)) != HANDOFF_OK;
    take_verdicts();
}

static uint64_t connects(void)
{
    handoff_broker_statistics statistics = HANDOFF_BROKER_STATISTICS_INIT;
    check(CALL(handoff_broker_get_statistics(broker, &statistics)) == HANDOFF_OK);
    return statistics.connects;
}

/* Offers until that is accepted. Without a channel, or before its tokens are here, it is refused. */
static uint64_t offer(uint32_t number, int fd, uint32_t flags)
{
    uint64_t id = 0;
    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = fd;
    offer.flags = flags;
    offer.metadata = &number;
    offer.metadata_len = sizeof number;
    offer.preread = "GET / HTTP/1.1\r\n\r\n";
    offer.preread_len = 18;
    offer.user_data = (void *)(uintptr_t)number;
    offer.timeout_ms = number == PROBE ? HANDOFF_NO_TIMEOUT : scene->timeout_ms;
    if (number != PROBE)
        scene->connections[number].offered = 1;
    while (CALL(handoff_broker_offer(broker, &offer, &id)) != HANDOFF_OK)
        turn();
    return id;
}

static void probe(void)
{
    bool answered;
    do {
        int client, fd = begin_probe(&client);
        probe_outcome = UNSETTLED;
        offer(PROBE, fd, 0);
        while (probe_outcome == UNSETTLED)
            turn();
        answered = end_probe(client, fd, probe_outcome == ADOPTED);
    } while (!answered);
}

static void run_broker(void)
{
    uint32_t base = scene->base;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_failures = HANDOFF_NO_LIMIT;
    options.reconnect_min_ms = 1;
    options.reconnect_max_ms = 5;
    while (!scene->listening)
        pause_shortly();
    (void)CALL(handoff_supported());
    while (CALL(handoff_broker_new(scene->path, &options, &broker)) != HANDOFF_OK)
        check(scene->injected != 0);
    while ((broker_fd = CALL_FD(handoff_broker_fd(broker))) == -1)
        check(scene->injected != 0);
    while (connects() < 1)
        turn();
    uint64_t id[3];
    for (uint32_t i = 0; i < 3; i++)
        id[i] = offer(base + i, FIRST_FD + (int)i, i < 2 ? HANDOFF_OFFER_MORE : 0);
    while (!is_settled(base) || !is_settled(base + 1))
        turn();
    if (!is_settled(base + 2)) {
        handoff_status status = CALL(handoff_broker_take_back(broker, id[2]));
        if (status == HANDOFF_OK)
            settle(base + 2, TAKEN_BACK, true);
        while (!is_settled(base + 2))
            turn();
    }
    while (connects() < 2)
        turn();
    offer(base + 3, FIRST_FD + 3, 0);
    while (!is_settled(base + 3))
        turn();
    probe();
    check_idle(turn);
    (void)CALL(handoff_broker_close(broker));
    take_verdicts();
    CALL_VOID(handoff_broker_free(broker));
    check(open_descriptors() == 0);
}

/* ---- the backend ---------------------------------------------------------------------------- */

static handoff_backend *backend;
static int backend_fd;

/* The arrival that is held: what the backend was to hold. */
static struct {
    uint64_t id;
    uint32_t number;
    bool is_there;
} held;

static void adopt(uint64_t id, uint32_t number)
{
    int fd = -1;
    adopting(number);
    handoff_status status = CALL(handoff_backend_adopt(backend, id, &fd));
    /* After another error the arrival is there as before, and next() will not return it again. */
    while (status != HANDOFF_OK && status != HANDOFF_ERR_TAKEN_BACK)
        status = CALL(handoff_backend_adopt(backend, id, &fd));
    adopted(number, fd, status == HANDOFF_OK);
}

static void decide(const handoff_arrival *arrival)
{
    uint32_t number;
    check(arrival->metadata_len == sizeof number && arrival->preread_len == 18);
    memcpy(&number, arrival->metadata, sizeof number);
    if (number == PROBE) {
        adopt(arrival->id, number);
        return;
    }
    scene->connections[number].seen = 1;
    switch (channel_scenario.wishes[number % CONNECTIONS]) {
    case ADOPT:
        adopt(arrival->id, number);
        break;
    case REJECT:
        while (CALL(handoff_backend_reject(backend, arrival->id, HANDOFF_REASON_REJECTED)) < 0)
            ;
        break;
    case HOLD:
        check(!held.is_there);
        held.id = arrival->id;
        held.number = number;
        held.is_there = true;
    }
}

static void serve(void)
{
    static bool failed;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    if (is_readable(backend_fd) || failed)
        failed = CALL(handoff_backend_dispatch(backend)) != HANDOFF_OK;
    if (held.is_there && is_decided(held.number)) {
        held.is_there = false;
        adopt(held.id, held.number);
    }
    while (CALL(handoff_backend_next(backend, &arrival)) == HANDOFF_OK)
        decide(&arrival);
}

static uint64_t number_held(void)
{
    handoff_backend_statistics statistics = HANDOFF_BACKEND_STATISTICS_INIT;
    check(CALL(handoff_backend_get_statistics(backend, &statistics)) == HANDOFF_OK);
    return statistics.held;
}

static void listen_again(void)
{
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_in_flight = 8;
    while (CALL(handoff_backend_listen(scene->path, &options, &backend)) != HANDOFF_OK)
        pause_shortly();
    while ((backend_fd = CALL_FD(handoff_backend_fd(backend))) == -1)
        check(scene->injected != 0);
    scene->listening = 1;
}

static void run_backend(void)
{
    uint32_t drained_for = UINT32_MAX;
    listen_again();
    while (!scene->finish) {
        serve();
        /* Each broker sees one handle end, and the next one begin. */
        if (drained_for != scene->base && is_settled(scene->base + 2) && !held.is_there) {
            drained_for = scene->base;
            while (CALL(handoff_backend_drain(backend)) != HANDOFF_OK)
                check(scene->injected != 0);
            do
                serve();
            while (number_held() > 0 || held.is_there);
            CALL_VOID(handoff_backend_free(backend));
            listen_again();
        }
    }
    check_idle(serve);
    CALL_VOID(handoff_backend_free(backend));
    check(open_descriptors() == 0);
}

const struct scenario channel_scenario = {
    "channel", run_broker, run_backend, {ADOPT, REJECT, HOLD, ADOPT}};
