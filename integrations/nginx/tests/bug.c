/*
 * Preloaded before nginx: an offer of each process, the third that is taken, ends as if the library had a
 * bug. It is made all the same, and nothing is told of it but HANDOFF_ERR_INTERNAL.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

#include <handoff.h>

typedef handoff_status offer_call(handoff_broker *, const handoff_offer *, uint64_t *);

/* nginx's modules bring the library, after this. */
static offer_call *library(void)
{
    static offer_call *found;
    void *handle = found ? NULL : dlopen("libhandoff.so.0", RTLD_NOW | RTLD_NOLOAD);
    if (handle)
        *(void **)&found = dlsym(handle, "handoff_broker_offer");
    if (found == NULL)
        abort();
    return found;
}

handoff_status handoff_broker_offer(handoff_broker *broker, const handoff_offer *offer, uint64_t *id)
{
    static int taken;
    uint64_t untold;
    handoff_status status = library()(broker, offer, taken == 2 ? &untold : id);
    return status == HANDOFF_OK && taken++ == 2 ? HANDOFF_ERR_INTERNAL : status;
}
