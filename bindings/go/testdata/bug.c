/*
 * A library with a bug, for bug_test.go, which is run with this preloaded. The service of an offer says
 * where that broker's bug is: the call returns HANDOFF_ERR_INTERNAL.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <handoff.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

enum { NOWHERE, DISPATCH, TAKE_BACK };

static _Atomic(handoff_broker *) broken;
static atomic_int where;

/* The library's own call of that name. */
#define NEXT(name) ((__typeof__(&name))(uintptr_t)dlsym(RTLD_NEXT, #name))

static int has_bug(const handoff_broker *broker, int call)
{
    return broken == broker && where == call;
}

static int is(const handoff_offer *offer, const char *service)
{
    return offer->service != NULL && strcmp(offer->service, service) == 0;
}

static uint64_t adopted(handoff_broker *broker)
{
    handoff_broker_statistics statistics = HANDOFF_BROKER_STATISTICS_INIT;
    handoff_broker_get_statistics(broker, &statistics);
    return statistics.adopted;
}

handoff_status handoff_broker_offer(handoff_broker *broker, const handoff_offer *offer, uint64_t *id)
{
    int late = is(offer, "bug in offer, adopted");
    if (late || is(offer, "bug in offer")) {
        uint64_t before = adopted(broker);
        handoff_status status = NEXT(handoff_broker_offer)(broker, offer, NULL);
        for (int i = 0; late && i < 3000 && status == HANDOFF_OK && adopted(broker) == before; i++) {
            struct pollfd ready = {.fd = handoff_broker_fd(broker), .events = POLLIN};
            poll(&ready, 1, 10);
            status = handoff_broker_dispatch(broker);
        }
        return status == HANDOFF_OK ? HANDOFF_ERR_INTERNAL : status;
    }
    handoff_status status = NEXT(handoff_broker_offer)(broker, offer, id);
    if (status == HANDOFF_OK && (is(offer, "bug in dispatch") || is(offer, "bug in take_back"))) {
        where = is(offer, "bug in dispatch") ? DISPATCH : TAKE_BACK;
        broken = broker;
    }
    return status;
}

handoff_status handoff_broker_dispatch(handoff_broker *broker)
{
    return has_bug(broker, DISPATCH) ? HANDOFF_ERR_INTERNAL : NEXT(handoff_broker_dispatch)(broker);
}

handoff_status handoff_broker_take_back(handoff_broker *broker, uint64_t id)
{
    handoff_status status = NEXT(handoff_broker_take_back)(broker, id);
    return has_bug(broker, TAKE_BACK) ? HANDOFF_ERR_INTERNAL : status;
}

void handoff_broker_free(handoff_broker *broker)
{
    if (broken == broker)
        broken = NULL;
    NEXT(handoff_broker_free)(broker);
}
