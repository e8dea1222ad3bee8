/* What both sides of the comparison do, each in its own way, once for each handoff. */
#ifndef RAW_LAYER_H
#define RAW_LAYER_H

#include "common.h"
#include "need_handoff.h"

struct side {
    void (*issue)(handoff_raw_token *token);
    void (*send)(int socket, int fd, const handoff_raw_token *token);
    /* Waits for a message, verifies its token and gives its descriptor. */
    int (*receive)(int socket, handoff_raw_token *token);
    void (*accept)(int socket, const handoff_raw_token *token);
    /* Waits for the acceptance, until a deadline. */
    void (*wait)(int socket, const handoff_raw_token *token);
};

extern const struct side handoff, raw;

#endif
