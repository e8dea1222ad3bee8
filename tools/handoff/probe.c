/* Asks a backend for a channel as a broker does: hello, welcome, tokens. No client is offered. */
#define _GNU_SOURCE
#include "probe.h"

#include "command.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* What it means that there is no channel. */
static int why(handoff_status status, int error)
{
    switch (status) {
    case HANDOFF_ERR_PERMISSION_DENIED:
        return NOT_ALLOWED; /* the mode of the file has been checked */
    case HANDOFF_ERR_PEER_NOT_ALLOWED:
    case HANDOFF_ERR_PEER_UNKNOWN:
        return NOT_TRUSTED;
    case HANDOFF_ERR_WOULD_BLOCK:
        return NO_ANSWER;
    case HANDOFF_ERR_BACKEND_UNAVAILABLE:
        return error == ENOENT         ? NO_PATH
               : error == ECONNREFUSED ? NOBODY_LISTENS
               : error == ESHUTDOWN    ? IS_DRAINING
               : error == ENOTCONN     ? NO_ANSWER
                                       : NO_HANDOFF;
    default:
        return FAILED;
    }
}

/* Whether the backend would take an offer. One that is marked with HANDOFF_OFFER_MORE is not sent,
 * and this one is taken back at once. */
static handoff_status ask(handoff_broker *broker, int fd, struct probe *result)
{
    uint64_t id;
    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = fd;
    offer.flags = HANDOFF_OFFER_MORE;
    result->status = handoff_broker_offer(broker, &offer, &id);
    result->error = result->status == HANDOFF_OK ? 0 : errno;
    if (result->status == HANDOFF_OK)
        must_handoff(handoff_broker_take_back(broker, id) == HANDOFF_OK, "handoff_broker_take_back");
    else
        snprintf(result->message, sizeof result->message, "%s", handoff_last_error());
    result->room = result->status == HANDOFF_OK;
    return result->status;
}

void probe(const char *path, int timeout_ms, struct probe *result)
{
    handoff_broker *broker;
    int pair[2];
    memset(result, 0, sizeof *result);
    result->round_trip_us = -1;
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
    must_handoff(handoff_broker_new(path, NULL, &broker) == HANDOFF_OK, path);

    int64_t start = now_us(), deadline = start + (int64_t)timeout_ms * 1000;
    struct pollfd readable = {.fd = handoff_broker_fd(broker), .events = POLLIN};
    must_handoff(readable.fd != -1, "handoff_broker_fd");
    for (;;) {
        must_handoff(handoff_broker_dispatch(broker) == HANDOFF_OK, "handoff_broker_dispatch");
        handoff_status status = ask(broker, pair[0], result);
        int64_t now = now_us();
        if (status == HANDOFF_OK) {
            result->round_trip_us = now - start;
            break;
        }
        result->code = status == HANDOFF_ERR_FULL ? NO_ROOM : why(status, result->error);
        if ((result->code != NO_ANSWER && result->code != NO_ROOM) || now >= deadline)
            break;
        must(poll(&readable, 1, (int)((deadline - now + 999) / 1000)) != -1 || errno == EINTR,
             "poll");
    }
    if (result->status == HANDOFF_OK)
        result->code = DONE;
    handoff_broker_free(broker);
    close(pair[0]);
    close(pair[1]);
}
