/* What `handoff broker` counts and tells of its backends. */
#ifndef HANDOFF_SUMMARY_H
#define HANDOFF_SUMMARY_H

#include <stdint.h>

#include <handoff.h>

/* A client was adopted by the backend at this path. */
void count_adopted(const char *path);

/* A client was closed. */
void count_closed(handoff_reason reason);

/* Names also the backends that have gone. */
void print_summary(handoff_broker *broker, uint64_t clients);

/* Why a client has waited in vain. The first time it is said, too. `sockets` are the arguments. */
handoff_reason why_in_vain(handoff_broker *broker, char **sockets, int len);

#endif
