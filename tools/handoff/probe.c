/* Asks a backend for a channel as a broker does: hello, welcome, tokens. No client is offered. */
#define _GNU_SOURCE
#include "probe.h"

#include "command.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

enum { ATTEMPTS = 5 };

/* What it means that there is no channel. */
static int why(handoff_status status, int error)
{
    switch (status) {
    case HANDOFF_ERR_PERMISSION_DENIED:
        return NOT_ALLOWED; /* the mode of the file has been checked */
    case HANDOFF_ERR_PEER_NOT_ALLOWED:
    case HANDOFF_ERR_PEER_UNKNOWN:
        return NOT_TRUSTED;
    case HANDOFF_ERR_UNSUPPORTED:
        /* Without a number it is not the system that lacks something. */
        return error == 0 ? WRONG_VERSION : FAILED;
    case HANDOFF_ERR_WOULD_BLOCK:
        return NO_ANSWER;
    case HANDOFF_ERR_TOO_MANY_CHANNELS:
        return TOO_MANY;
    case HANDOFF_ERR_BACKEND_UNAVAILABLE:
        return error == ESHUTDOWN      ? IS_DRAINING
               : error == ENOSR        ? IS_SHORT
               : error == ETIMEDOUT    ? NO_ANSWER
               : error == ENOENT       ? NO_PATH
               : error == ECONNREFUSED ? NOBODY_LISTENS
               : error == ECONNRESET   ? NO_HANDOFF
               : error == EPROTO       ? NO_HANDOFF
                                       : FAILED; /* what a later version says */
    default:
        return FAILED;
    }
}

/* Looks at the one backend. True: it is known what it does. */
static bool is_known(handoff_broker *broker, struct probe *result)
{
    handoff_broker_backend_state state = HANDOFF_BROKER_BACKEND_STATE_INIT;
    result->room = handoff_broker_room(broker);
    must_handoff(handoff_broker_get_backend_state(broker, 0, &state) == HANDOFF_OK,
                 "handoff_broker_get_backend_state");
    result->code = result->room > 0                           ? DONE
                   : state.state == HANDOFF_STATE_CONNECTING ? NO_ANSWER
                   : state.state == HANDOFF_STATE_READY      ? NO_ROOM
                   : state.state == HANDOFF_STATE_DRAINING   ? IS_DRAINING
                                                               : why(state.status, state.system_errno);
    result->status = state.status != HANDOFF_OK  ? state.status
                     : result->code == NO_ANSWER   ? HANDOFF_TIMED_OUT
                     : result->code == NO_ROOM     ? HANDOFF_ERR_FULL
                     : result->code == IS_DRAINING ? HANDOFF_ERR_BACKEND_UNAVAILABLE
                                                   : HANDOFF_OK;
    result->error = state.system_errno;
    snprintf(result->message, sizeof result->message, "%s", state.message);
    switch (result->code) {
    case NO_ANSWER:
    case NO_ROOM:
        return false;
    case TOO_MANY:
    case IS_SHORT:
    case NO_HANDOFF: /* as a backend of 0.1 says it */
        /* This command's own connection of before may still take a channel's place
           or a descriptor. */
        return state.failed_connects >= ATTEMPTS;
    default:
        return true;
    }
}

void probe(const char *path, int timeout_ms, struct probe *result)
{
    handoff_broker *broker;
    memset(result, 0, sizeof *result);
    result->round_trip_us = -1;
    must_handoff(handoff_broker_new(path, NULL, &broker) == HANDOFF_OK, path);

    int64_t start = now_us(), deadline = start + (int64_t)timeout_ms * 1000, now;
    struct pollfd readable = {.fd = handoff_broker_fd(broker), .events = POLLIN};
    must_handoff(readable.fd != -1, "handoff_broker_fd");
    for (;;) {
        must_handoff(handoff_broker_dispatch(broker) == HANDOFF_OK, "handoff_broker_dispatch");
        bool known = is_known(broker, result);
        now = now_us();
        if (known || now >= deadline)
            break;
        must(poll(&readable, 1, (int)((deadline - now + 999) / 1000)) != -1 || errno == EINTR,
             "poll");
    }
    if (result->code == DONE)
        result->round_trip_us = now - start;
    handoff_broker_free(broker);
}
