/*
 * The library without an event loop, one connection at a time: handoff_broker_offer_and_wait() and
 * handoff_backend_accept(). SPIN is spin_us in the options of both. For MODE=move.
 */
#define _GNU_SOURCE
#include "../need_handoff.h"
#include "peer.h"

#include <unistd.h>

static handoff_backend *listening;
static handoff_broker *broker;
static struct client *adopted;

static void prepare(void)
{
    char path[64];
    handoff_backend_options of_backend = HANDOFF_BACKEND_OPTIONS_INIT;
    handoff_broker_options of_broker = HANDOFF_BROKER_OPTIONS_INIT;
    need(is_move && in_flight == 1, "MODE=move IN_FLIGHT=1");
    of_backend.spin_us = of_broker.spin_us = (uint32_t)spin;
    snprintf(path, sizeof path, "@handoff-bench-%d", getpid());
    need_handoff(handoff_backend_listen(path, &of_backend, &listening), "handoff_backend_listen");
    need_handoff(handoff_broker_new(path, &of_broker, &broker), "handoff_broker_new");
}

static void begin(int socket)
{
    (void)socket;
    handoff_backend_free(listening); /* the backend's now */
}

static int offer(struct client *client)
{
    handoff_offer offer = HANDOFF_OFFER_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    offer.fd = client->source.fd;
    offer.preread = client->preread;
    offer.preread_len = (size_t)preread;
    need_handoff(handoff_broker_offer_and_wait(broker, &offer, &verdict),
                 "handoff_broker_offer_and_wait");
    need(verdict.outcome == HANDOFF_ADOPTED, "a fallback");
    adopted = client;
    return 1;
}

/* It has waited already. */
static void dispatch(int may_wait)
{
    (void)may_wait;
    settle(adopted);
}

static void backend(int socket)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    int finished = 0;
    (void)socket;
    while (!finished) {
        need_handoff(handoff_backend_accept(listening, -1, &arrival), "handoff_backend_accept");
        finished = arrived();
        serve(arrival.fd);
    }
    handoff_backend_free(listening);
}

int main(void)
{
    static const struct peer blocking_calls = {prepare, begin, offer, NULL, NULL, dispatch,
                                               backend};
    return run_peer(&blocking_calls);
}
