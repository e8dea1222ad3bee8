/*
 * fleet.h: a broker and several backends in one process, for the tests that need them.
 *
 * What one end sends is there for the other at once, so dispatching is enough, but for what a timer
 * has to bring.
 */
#ifndef FLEET_H
#define FLEET_H

#include "channel.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { MOST_BACKENDS = 8 };

struct fleet {
    char directory[64];
    char paths[MOST_BACKENDS][80];
    handoff_backend *backends[MOST_BACKENDS];
    int count;
    handoff_broker *broker;
    int client[2];
};

/** Finds the state of the backend with a path; false if there is none. */
static inline bool find_state(handoff_broker *broker, const char *path,
                              handoff_broker_backend_state *state)
{
    *state = (handoff_broker_backend_state)HANDOFF_BROKER_BACKEND_STATE_INIT;
    for (size_t i = 0; handoff_broker_get_backend_state(broker, i, state) == HANDOFF_OK; i++)
        if (strcmp(state->path, path) == 0)
            return true;
    return false;
}

/** The same; asserts that there is one. */
static inline handoff_broker_backend_state state_of(handoff_broker *broker, const char *path)
{
    handoff_broker_backend_state state;
    if (!find_state(broker, path, &state))
        fail_msg("%s is no backend", path);
    return state;
}

static inline size_t count_backends(handoff_broker *broker)
{
    handoff_broker_backend_state state = HANDOFF_BROKER_BACKEND_STATE_INIT;
    handoff_status status;
    size_t count = 0;
    while ((status = handoff_broker_get_backend_state(broker, count, &state)) == HANDOFF_OK)
        count++;
    assert_status(status, HANDOFF_NOTHING);
    return count;
}

static inline void dispatch_backends(struct fleet *fleet)
{
    for (int i = 0; i < fleet->count; i++)
        if (fleet->backends[i] != NULL)
            receive_all(fleet->backends[i]);
}

/** Dispatches all of them, after waiting for the broker's descriptor if that says nothing. */
static inline void turn(struct fleet *fleet)
{
    struct pollfd poll_fd = {.fd = handoff_broker_fd(fleet->broker), .events = POLLIN};
    poll(&poll_fd, 1, 2);
    assert_ok(handoff_broker_dispatch(fleet->broker));
    dispatch_backends(fleet);
    assert_ok(handoff_broker_dispatch(fleet->broker));
}

/** Goes on until something is true. */
#define until(fleet, condition)                                                  \
    do {                                                                         \
        uint64_t start_ = now_ns();                                              \
        while (!(condition)) {                                                   \
            if (ms_since(start_) > PATIENCE_MS)                                  \
                fail_msg("%s:%d: does not come: %s", __FILE__, __LINE__, #condition); \
            turn(fleet);                                                         \
        }                                                                        \
    } while (0)

static inline bool is_in_state(struct fleet *fleet, int which, uint32_t state)
{
    handoff_broker_backend_state found;
    return find_state(fleet->broker, fleet->paths[which], &found) && found.state == state;
}

static inline handoff_broker_backend backend_at(const char *path)
{
    handoff_broker_backend backend = HANDOFF_BROKER_BACKEND_INIT;
    backend.path = path;
    return backend;
}

static inline void listen_at(struct fleet *fleet, int which,
                             const handoff_backend_options *options)
{
    assert_ok(handoff_backend_listen(fleet->paths[which], options, &fleet->backends[which]));
}

static inline void free_backend(struct fleet *fleet, int which)
{
    handoff_backend_free(fleet->backends[which]);
    fleet->backends[which] = NULL;
}

/** A directory, names for sockets in it, and a client; no backend and no broker yet. */
static inline void make_fleet(struct fleet *fleet)
{
    memset(fleet, 0, sizeof *fleet);
    make_directory(fleet->directory);
    for (int i = 0; i < MOST_BACKENDS; i++)
        snprintf(fleet->paths[i], sizeof fleet->paths[i], "%.63s/%d.sock", fleet->directory, i);
    make_pair(SOCK_STREAM, fleet->client);
}

/** A broker that has the first `count` paths, at which backends listen; all of them are ready. */
static inline void open_fleet(struct fleet *fleet, int count, const handoff_broker_options *options,
                              const handoff_backend_options *backends)
{
    if (fleet->client[0] == 0)
        make_fleet(fleet);
    assert_ok(handoff_broker_new(NULL, options, &fleet->broker));
    fleet->count = count;
    for (int i = 0; i < count; i++) {
        handoff_broker_backend backend = backend_at(fleet->paths[i]);
        listen_at(fleet, i, backends);
        assert_ok(handoff_broker_add(fleet->broker, &backend));
    }
    for (int i = 0; i < count; i++)
        until(fleet, is_in_state(fleet, i, HANDOFF_STATE_READY));
}

static inline void close_fleet(struct fleet *fleet)
{
    handoff_broker_free(fleet->broker);
    for (int i = 0; i < MOST_BACKENDS; i++)
        free_backend(fleet, i);
    close(fleet->client[0]);
    close(fleet->client[1]);
    remove_directory(fleet->directory);
}

static inline uint64_t offer_client(struct fleet *fleet)
{
    handoff_offer offer = offer_of(fleet->client[0]);
    uint64_t id = 0;
    assert_ok(handoff_broker_offer(fleet->broker, &offer, &id));
    return id;
}

/** How many arrivals there are at a backend; they stay there. The last one's id goes to `id`. */
static inline int arrivals_at(struct fleet *fleet, int which, uint64_t *id)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    int count = 0;
    receive_all(fleet->backends[which]);
    for (; next_arrival(fleet->backends[which], &arrival); count++)
        if (id != NULL)
            *id = arrival.id;
    return count;
}

/** The backend that has the only arrival that there is; its id goes to `id`. */
static inline int find_arrival(struct fleet *fleet, uint64_t *id)
{
    for (uint64_t start = now_ns(); ms_since(start) < PATIENCE_MS;) {
        for (int i = 0; i < fleet->count; i++)
            if (fleet->backends[i] != NULL && arrivals_at(fleet, i, id) > 0)
                return i;
        turn(fleet);
    }
    fail_msg("there is no arrival");
    return -1;
}

/** The next verdict, when it comes. */
static inline handoff_verdict await_verdict(struct fleet *fleet)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    until(fleet, next_verdict(fleet->broker, &verdict));
    return verdict;
}

static inline void adopt_at(struct fleet *fleet, int which, uint64_t id)
{
    int fd = -1;
    assert_ok(handoff_backend_adopt(fleet->backends[which], id, &fd));
    close(fd);
}

static inline void reject_at(struct fleet *fleet, int which, uint64_t id, handoff_reason reason)
{
    assert_ok(handoff_backend_reject(fleet->backends[which], id, reason));
}

#endif
