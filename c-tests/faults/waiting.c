/*
 * waiting.c: a channel as a program without an event loop uses it.
 *
 * The broker offers and waits, the backend accepts. The first two connections are adopted; the
 * third waits until its deadline, for the backend accepts nothing meanwhile. Then
 * the backend ends its handle and makes another, and the fourth is offered to that.
 */
#define _GNU_SOURCE
#include "scene.h"

#include <string.h>
#include <unistd.h>

/* ---- the broker ----------------------------------------------------------------------------- */

static handoff_broker *broker;

/** Offers until there is a verdict, or once. */
static bool offer_and_wait(uint32_t number, int fd, uint64_t timeout_ms, bool once)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = fd;
    offer.metadata = &number;
    offer.metadata_len = sizeof number;
    offer.timeout_ms = timeout_ms;
    if (number != PROBE)
        scene->connections[number].offered = 1;
    while (CALL(handoff_broker_offer_and_wait(broker, &offer, &verdict)) != HANDOFF_OK) {
        if (once) {
            /* Refused: it was not sent, and is the broker's. */
            settle(number, FALLBACK, false);
            return false;
        }
        pause_shortly();
    }
    bool is_adopted = verdict.outcome == HANDOFF_ADOPTED;
    check(is_adopted || verdict.outcome == HANDOFF_FALLBACK);
    check(is_adopted || verdict.reason != HANDOFF_REASON_NONE);
    if (number != PROBE)
        settle(number, is_adopted ? ADOPTED : FALLBACK, verdict.may_have_reached_backend);
    /* There is no other. */
    check(CALL(handoff_broker_next(broker, &verdict)) == HANDOFF_NOTHING);
    return is_adopted;
}

static bool probe(void)
{
    int client, fd = begin_probe(&client);
    return end_probe(client, fd, offer_and_wait(PROBE, fd, HANDOFF_NO_TIMEOUT, false));
}

static void turn(void)
{
    (void)CALL(handoff_broker_dispatch(broker));
    pause_shortly();
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
    while (CALL(handoff_broker_new(scene->path, &options, &broker)) != HANDOFF_OK)
        check(scene->injected != 0);
    offer_and_wait(base, FIRST_FD, scene->timeout_ms, false);
    /* If its verdict could not be sent, that waits until the backend is not deaf any more. */
    offer_and_wait(base + 1, FIRST_FD + 1, scene->timeout_ms < 2000 ? scene->timeout_ms : 2000, false);
    offer_and_wait(base + 2, FIRST_FD + 2, 10, true);
    while (scene->ended_for != base + 1)
        pause_shortly();
    offer_and_wait(base + 3, FIRST_FD + 3, scene->timeout_ms, false);
    while (!probe())
        ;
    check_idle(turn);
    CALL_VOID(handoff_broker_free(broker));
    check(open_descriptors() == 0);
}

/* ---- the backend ---------------------------------------------------------------------------- */

static handoff_backend *backend;

/** Returns the connection that it has adopted, or PROBE. */
static uint32_t accept_one(int wait_ms)
{
    uint32_t number = PROBE;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    scene->accepting = 1;
    handoff_status status = CALL(handoff_backend_accept(backend, wait_ms, &arrival));
    if (status == HANDOFF_OK) {
        check(arrival.metadata_len == sizeof number);
        memcpy(&number, arrival.metadata, sizeof number);
        if (number != PROBE)
            scene->connections[number].seen = 1;
        /* Begun in the call, which alone knew. */
        adopting(number);
        adopted(number, arrival.fd, true);
    }
    scene->accepting = 0;
    return number;
}

static void turn_backend(void)
{
    accept_one(1);
}

static void listen_again(void)
{
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_in_flight = 8;
    while (CALL(handoff_backend_listen(scene->path, &options, &backend)) != HANDOFF_OK)
        pause_shortly();
    scene->listening = 1;
}

static void run_backend(void)
{
    uint32_t ended_for = UINT32_MAX;
    listen_again();
    while (!scene->finish) {
        uint32_t base = scene->base;
        bool second = accept_one(20) == base + 1;
        if (ended_for != base && (second || is_settled(base + 1))) {
            /* Deaf until the third is settled. */
            while (!is_decided(base + 2) && !scene->finish)
                pause_shortly();
            ended_for = base;
            CALL_VOID(handoff_backend_free(backend));
            listen_again();
            scene->ended_for = base + 1;
        }
    }
    check_idle(turn_backend);
    CALL_VOID(handoff_backend_free(backend));
    check(open_descriptors() == 0);
}

const struct scenario waiting_scenario = {
    "waiting", run_broker, run_backend, {ADOPT, ADOPT, HOLD, ADOPT}};
