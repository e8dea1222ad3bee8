/* For the programs of the benchmark that use the library. */
#ifndef NEED_HANDOFF_H
#define NEED_HANDOFF_H

#include <stdio.h>
#include <stdlib.h>

#include <handoff.h>

static inline void need_handoff(handoff_status status, const char *call)
{
    if (status == HANDOFF_OK)
        return;
    fprintf(stderr, "%s: %s\n", call, handoff_last_error());
    exit(1);
}

/* For what next() returns: whether it took something. Ends the program after an error. */
static inline int took(handoff_status status, const char *call)
{
    if (status != HANDOFF_NOTHING)
        need_handoff(status, call);
    return status == HANDOFF_OK;
}

#endif
