/* One channel to a backend, made and closed again, without an offer. */
#ifndef HANDOFF_PROBE_H
#define HANDOFF_PROBE_H

#include <stddef.h>
#include <stdint.h>

#include <handoff.h>

struct probe {
    int code; /* DONE, or the exit code for what is wrong */
    handoff_status status;
    int error;             /* errno, or 0 */
    char message[512];     /* the library's sentence */
    size_t room;           /* the offers that the backend would take now */
    int64_t round_trip_us; /* from the hello to the backend's tokens */
};

void probe(const char *path, int timeout_ms, struct probe *result);

#endif
