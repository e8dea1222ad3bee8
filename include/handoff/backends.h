/*
 * handoff/backends.h: several backends of one broker, and the state of each. The rules that hold for
 * every call are in handoff.h.
 *
 * A broker has the backend that it was made with. Add others, or make it with a directory in which
 * each worker's socket is a backend. Offer and take verdicts as with one.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */

#ifndef HANDOFF_BACKENDS_H
#define HANDOFF_BACKENDS_H

#include "broker.h"
#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * One of a broker's backends, or a directory of them. Set at least `path`; zero is the default in
 * every other field. Out-of-range values are clamped.
 */
typedef struct handoff_broker_backend {
    /** Set by HANDOFF_BROKER_BACKEND_INIT. */
    size_t size;
    /**
     * The handoff socket's path, at most 107 bytes; "@" starts an abstract name. If it ends in '/'
     * it is a directory: every socket in it is a backend, for as long as it is there, except those
     * whose names begin with '.'. Copied.
     */
    const char *path;
    /** Its share of the offers among the weights of all: 1 to 65535, default 1. */
    uint32_t weight;
    /** HANDOFF_BACKEND_BACKUP, HANDOFF_BACKEND_OFF, or 0. */
    uint32_t flags;
    /** The most offers in flight there: 1 to 4096, default the broker's. */
    size_t max_in_flight;
    /**
     * It rests after this many failures: see `max_failures` in handoff_broker_options; default the
     * broker's; HANDOFF_NO_LIMIT.
     */
    size_t max_failures;
    /** How long a failure counts, in milliseconds: default the broker's. */
    uint64_t failure_period_ms;
} handoff_broker_backend;
#define HANDOFF_BROKER_BACKEND_INIT \
    { sizeof(handoff_broker_backend), NULL, 0, 0, 0, 0, 0 }

/** In `flags`: it gets offers only while no other backend takes them. */
#define HANDOFF_BACKEND_BACKUP 1

/** In `flags`: it is switched off. It gets no offers, and the broker does not connect to it. */
#define HANDOFF_BACKEND_OFF 2

/**
 * Initialises a backend as HANDOFF_BROKER_BACKEND_INIT does, for languages without macros.
 *
 * @param[out] backend  the backend
 * @param size          sizeof(handoff_broker_backend)
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `backend` is NULL or `size` cannot be right.
 */
handoff_status handoff_broker_backend_init(handoff_broker_backend *backend,
                                           size_t size) HANDOFF_NOEXCEPT;

/**
 * Adds a backend, or a directory of backends, to a broker. One that the broker has already gets the
 * other weight and flags at once, and the other limits with its next channel.
 *
 * An offer goes to the backend with the fewest offers in flight for its weight, among those that
 * take it. If it is busy, draining, gone or slower than `attempt_timeout_ms`, the offer is taken
 * back and goes on to the next one, until one adopts it, all have been tried, or its time is up.
 * Any other rejection is final. Then there is one verdict.
 *
 * @param broker   the broker
 * @param backend  the backend; read during the call only
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT, also if the path cannot be a socket's or
 *         `flags` has an unknown bit; HANDOFF_ERR_FULL if the broker has 1024 backends;
 *         HANDOFF_ERR_WRONG_PROCESS; HANDOFF_ERR_CLOSED; HANDOFF_ERR_NO_MEMORY;
 *         HANDOFF_ERR_SYSTEM if no timer could be set: then it is added, call
 *         handoff_broker_dispatch(). A directory that does not exist, or a backend that does not
 *         listen, is no error: the broker tries again.
 *
 * Before the broker's first use it does no I/O.
 */
HANDOFF_MUST_USE
handoff_status handoff_broker_add(handoff_broker *broker,
                                  const handoff_broker_backend *backend) HANDOFF_NOEXCEPT;

/**
 * Removes a backend, or a directory with the backends in it. Nothing more is offered there. Offers
 * in flight end as they would, then the channel is closed.
 *
 * @param broker  the broker
 * @param path    as it was added
 * @return HANDOFF_OK; HANDOFF_NOTHING if the broker has no such backend;
 *         HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL; HANDOFF_ERR_WRONG_PROCESS;
 *         HANDOFF_ERR_CLOSED; HANDOFF_ERR_SYSTEM if no timer could be set: then it is removed, call
 *         handoff_broker_dispatch().
 */
HANDOFF_MUST_USE
handoff_status handoff_broker_remove(handoff_broker *broker, const char *path) HANDOFF_NOEXCEPT;

/**
 * Returns how many offers would be taken now, if they are small.
 *
 * After HANDOFF_ERR_FULL, put the client into a queue of your own. When the descriptor is readable,
 * call handoff_broker_dispatch(), take the verdicts, and then offer for as long as there is room.
 * Give each client in the queue a time after which you serve it yourself.
 *
 * @param broker  the broker
 * @return the number; 0 also on error, with handoff_last_error() set.
 */
HANDOFF_MUST_USE
size_t handoff_broker_room(handoff_broker *broker) HANDOFF_NOEXCEPT;

/** In `state`: the broker connects to it, or has, and it has not said welcome yet. */
#define HANDOFF_BACKEND_CONNECTING 1

/** In `state`: it takes offers. */
#define HANDOFF_BACKEND_READY 2

/** In `state`: it takes no more offers, or is to be removed. */
#define HANDOFF_BACKEND_DRAINING 3

/** In `state`: it failed too often, and gets one trial offer at a time. */
#define HANDOFF_BACKEND_RESTING 4

/** In `state`: there is no channel. */
#define HANDOFF_BACKEND_DOWN 5

/** What one of a broker's backends does and has done. */
typedef struct handoff_backend_state {
    /** Set by HANDOFF_BACKEND_STATE_INIT. */
    size_t size;
    /** Its path. Valid until the next call with this broker. */
    const char *path;
    /** HANDOFF_BACKEND_CONNECTING, _READY, _DRAINING, _RESTING or _DOWN. */
    uint32_t state;
    /** HANDOFF_BACKEND_BACKUP and HANDOFF_BACKEND_OFF, as it was added. */
    uint32_t flags;
    /** Its weight. */
    uint32_t weight;
    /** Why it is down or resting, as handoff_broker_offer() would return it; else HANDOFF_OK. */
    handoff_status status;
    /**
     * The system's error, as errno has it, or 0. Or what a backend says that has no channel for this
     * broker: EUSERS if it has too many, ESHUTDOWN if it drains. ETIMEDOUT, ECONNRESET and EPROTO if
     * whoever listens is silent, hangs up, or speaks something else.
     */
    int error;
    /** Reserved: always 0. */
    uint32_t reserved;
    /** The same as a sentence, or "". Valid until the next call with this broker. */
    const char *message;
    /** How long it has been in this state, in milliseconds. */
    uint64_t since_ms;
    /**
     * How long until the broker tries it next, to connect or with a trial offer, in milliseconds;
     * HANDOFF_NO_TIMEOUT: nothing of the kind is to come.
     */
    uint64_t next_ms;
    /** Offers in flight there. */
    uint64_t in_flight;
    /** How many small offers it would take now. */
    uint64_t room;
    /** Channels set up, the first included. */
    uint64_t connects;
    /** Attempts to connect that failed. */
    uint64_t failed_connects;
    /** Offers that it was sent, those of failover included. */
    uint64_t offered;
    /** Those that it adopted. */
    uint64_t adopted;
    /** Those that you took back. */
    uint64_t taken_back;
    /**
     * Those that it did not adopt, by reason: fallbacks[HANDOFF_REASON_REJECTED] and so on. Another
     * backend may have adopted them.
     */
    uint64_t fallbacks[32];
    /**
     * Offers that were refused because of it, by status: refusals[-HANDOFF_ERR_FULL] and so on. Of
     * several backends it is the one that was most likely to take one soon.
     */
    uint64_t refusals[64];
    /**
     * Offers that have ended there, by the time that it took: histogram[0] counts those under one
     * microsecond, histogram[n] those under 2 to the power of n microseconds that no other one
     * counts, histogram[31] all others.
     */
    uint64_t histogram[32];
} handoff_backend_state;
#define HANDOFF_BACKEND_STATE_INIT \
    { sizeof(handoff_backend_state), NULL, 0, 0, 0, 0, 0, 0, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, \
      { 0 }, { 0 }, { 0 } }

/**
 * Gets what one of a broker's backends does and has done. Call it with 0, 1 and so on until it
 * returns HANDOFF_NOTHING. It makes no system call for that.
 *
 * @param broker      the broker
 * @param index       which one: they are counted from 0, and those that are removed leave no gap
 * @param[out] state  what it does
 * @return HANDOFF_OK; HANDOFF_NOTHING behind the last one; HANDOFF_ERR_INVALID_ARGUMENT if a
 *         pointer is NULL or `state->size` is wrong; HANDOFF_ERR_WRONG_PROCESS.
 */
HANDOFF_MUST_USE
handoff_status handoff_broker_get_state(handoff_broker *broker,
                                        size_t index,
                                        handoff_backend_state *state) HANDOFF_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* HANDOFF_BACKENDS_H */
