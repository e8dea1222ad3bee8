/* Who adopted how many clients. The broker knows that only of the backends that it has now. */
#define _GNU_SOURCE
#include "summary.h"

#include "command.h"

#include <inttypes.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REASONS = 32 };

struct share {
    uint64_t adopted;
    bool printed;
    char path[];
};

static void *shares; /* a tree, tsearch(3) */
static uint64_t adopted, closed[REASONS];

static int compare(const void *left, const void *right)
{
    return strcmp(((const struct share *)left)->path, ((const struct share *)right)->path);
}

/* That of the backend at `path`, which is made if there is none. */
static struct share *share_of(const char *path)
{
    size_t len = strlen(path) + 1;
    struct share *share = calloc(1, sizeof *share + len);
    must(share != NULL, "calloc");
    memcpy(share->path, path, len);
    struct share **found = tsearch(share, &shares, compare);
    must(found != NULL, "tsearch");
    if (*found != share)
        free(share);
    return *found;
}

void count_adopted(const char *path)
{
    adopted++;
    share_of(path)->adopted++;
}

void count_closed(handoff_reason reason)
{
    closed[reason < REASONS ? reason : HANDOFF_REASON_REJECTED]++;
}

/* The sentence about a backend without the path that it begins with. */
static const char *without_path(const char *message, const char *path)
{
    size_t len = strlen(path);
    return strncmp(message, path, len) == 0 && strncmp(message + len, ": ", 2) == 0
               ? message + len + 2
               : message;
}

static void print_gone(const void *node, VISIT visit, int depth)
{
    const struct share *share = *(struct share *const *)node;
    (void)depth;
    if ((visit == postorder || visit == leaf) && !share->printed) {
        write_plainly(stdout, "adopted by %s: %" PRIu64 "; it has gone", share->path,
                      share->adopted);
        putchar('\n');
    }
}

void print_summary(handoff_broker *broker, uint64_t clients)
{
    handoff_broker_backend_state state = HANDOFF_BROKER_BACKEND_STATE_INIT;
    handoff_status status;
    printf("clients: %" PRIu64 "\nadopted: %" PRIu64 "\n", clients, adopted);
    for (size_t i = 0;
         (status = handoff_broker_get_backend_state(broker, i, &state)) == HANDOFF_OK; i++) {
        struct share *share = share_of(state.path);
        if (share->printed)
            continue;
        share->printed = true;
        if (state.path[strlen(state.path) - 1] == '/') { /* a directory that cannot be read */
            if (*state.message != '\0') {
                write_plainly(stdout, "%s", state.message);
                putchar('\n');
            }
            continue;
        }
        write_plainly(stdout, "adopted by %s: %" PRIu64 "%s%s", state.path, share->adopted,
                      *state.message == '\0' ? "" : "; ", without_path(state.message, state.path));
        putchar('\n');
    }
    must_handoff(status == HANDOFF_NOTHING, "handoff_broker_get_backend_state");
    twalk(shares, print_gone);
    for (handoff_reason reason = 0; reason < REASONS; reason++)
        if (closed[reason] > 0)
            printf("closed, %s: %" PRIu64 "\n", handoff_reason_name(reason), closed[reason]);
    tdestroy(shares, free);
    shares = NULL;
}

/* ---- why there is none ---------------------------------------------------------------------- */

/* There is no backend, and all directories can be read. */
static void explain_nobody(char **sockets, int len)
{
    for (int i = 0; i < len; i++) /* all are directories */
        complain("there is no backend: no socket is in the directory %s", sockets[i]);
}

handoff_reason why_in_vain(handoff_broker *broker, char **sockets, int len)
{
    static bool said;
    handoff_reason reason = HANDOFF_REASON_BACKEND_UNAVAILABLE;
    handoff_broker_backend_state state = HANDOFF_BROKER_BACKEND_STATE_INIT;
    handoff_status status;
    size_t count = 0;
    while ((status = handoff_broker_get_backend_state(broker, count, &state)) == HANDOFF_OK) {
        count++;
        if (state.state == HANDOFF_STATE_READY)
            reason = HANDOFF_REASON_BACKEND_BUSY;
        else if (reason == HANDOFF_REASON_BACKEND_UNAVAILABLE && state.status < HANDOFF_OK)
            reason = handoff_status_reason(state.status);
        if (!said && state.state != HANDOFF_STATE_READY && *state.message != '\0')
            complain("%s", state.message);
    }
    must_handoff(status == HANDOFF_NOTHING, "handoff_broker_get_backend_state");
    if (!said && count == 0)
        explain_nobody(sockets, len);
    said = true;
    return reason;
}
