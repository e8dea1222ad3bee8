/*
 * Preloaded before nginx: an offer of each process, the third that is taken, ends as if the library had a
 * bug. It is made all the same, and nothing is told of it but HANDOFF_ERR_INTERNAL. With BUG=dispatch the
 * offer is well, and each dispatch of that broker afterwards ends so.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

#include <handoff.h>

static handoff_broker *broken;
static int later;

/* A worker has no environment but what the configuration names. */
__attribute__((constructor)) static void look(void)
{
    later = getenv("BUG") != NULL;
}

/* nginx's modules bring the library, after this. */
static void *library(const char *call)
{
    void *handle = dlopen("libhandoff.so.0", RTLD_NOW | RTLD_NOLOAD);
    void *found = handle ? dlsym(handle, call) : NULL;
    if (found == NULL)
        abort();
    return found;
}

handoff_status handoff_broker_dispatch(handoff_broker *broker)
{
    handoff_status (*call)(handoff_broker *);
    *(void **)&call = library("handoff_broker_dispatch");
    return broker == broken ? HANDOFF_ERR_INTERNAL : call(broker);
}

void handoff_broker_free(handoff_broker *broker)
{
    void (*call)(handoff_broker *);
    *(void **)&call = library("handoff_broker_free");
    broken = broker == broken ? NULL : broken;
    call(broker);
}

handoff_status handoff_broker_offer(handoff_broker *broker, const handoff_offer *offer, uint64_t *id)
{
    static int taken;
    uint64_t untold;
    handoff_status (*call)(handoff_broker *, const handoff_offer *, uint64_t *);
    *(void **)&call = library("handoff_broker_offer");
    handoff_status status = call(broker, offer, taken == 2 && !later ? &untold : id);
    if (status != HANDOFF_OK || taken++ != 2)
        return status;
    broken = later ? broker : NULL;
    return later ? HANDOFF_OK : HANDOFF_ERR_INTERNAL;
}
