/*
 * handoff/backends.h: several backends of one broker, and the state of each. The rules that hold
 * for every call are in handoff.h.
 *
 * A broker has the backend that it was made with, and those that you add. If it is made with a
 * directory, each worker that listens there is a backend. Offer and take verdicts as with one
 * backend: the broker chooses a backend, and goes on to the next if that does not answer.
 * Everything here is on the broker's side: it tells what a broker knows about a backend.
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
     * The path of its handoff socket, at most 107 bytes; "@" starts an abstract name. Copied.
     *
     * A path that ends in '/' is a directory, at most 106 bytes. Each socket in it is a backend
     * while its file exists. Names that begin with '.' and symbolic links are ignored. Whoever can
     * make a socket in the directory can become a backend, unless the broker's `policy` names the
     * users.
     */
    const char *path;
    /** Its share of the offers, compared with the other weights: 1 to 65535, default 1. */
    uint32_t weight;
    /** HANDOFF_BACKEND_BACKUP, HANDOFF_BACKEND_OFF, or 0. */
    uint32_t flags;
    /** The most offers in flight at the backend: 1 to 4096, default the broker's. */
    size_t max_in_flight;
    /**
     * The backend rests after this many failures: 1 to 4096, default the broker's;
     * HANDOFF_NO_LIMIT: it never rests.
     */
    size_t max_failures;
    /** How long a failure counts, in milliseconds: default the broker's. */
    uint64_t failure_period_ms;
} handoff_broker_backend;
#define HANDOFF_BROKER_BACKEND_INIT \
    { sizeof(handoff_broker_backend), NULL, 0, 0, 0, 0, 0 }

/** In `flags`: a backup. It gets offers only while no other backend takes them. */
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
 * Adds a backend, or a directory of backends, to a broker. If the broker already has it, the new
 * weight and flags apply now, and the new limits from its next channel on. Two paths to one
 * socket, such as `a/b` and `./a/b`, are two backends.
 *
 * An offer goes to the backend with the fewest offers in flight for its weight, among those that
 * can take it now. Only offers without a verdict are in flight. Adopted connections do not count,
 * so a backend at capacity rejects with HANDOFF_REASON_BACKEND_BUSY. If the chosen backend is
 * busy, draining or gone, or has not answered after `attempt_timeout_ms`, the broker takes the
 * offer back and passes it to the next one. This goes on until a backend adopts the connection,
 * each has had the offer once, or the offer's timeout passes. If the next backends have no room,
 * the offer waits, unless as many offers wait as all backends could have in flight. A rejection
 * for any other reason is about the client, and final: handoff_backend_reject() lists the reasons
 * that are not. There is one verdict, about the last attempt.
 *
 * @param broker   the broker
 * @param backend  the backend; read during the call only
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL, `size` is wrong, the path
 *         cannot be a socket's or `flags` has an unknown bit; HANDOFF_ERR_FULL if the broker has
 *         1024 backends, counting removed ones with verdicts that you have not taken;
 *         HANDOFF_ERR_WRONG_PROCESS; HANDOFF_ERR_CLOSED; HANDOFF_ERR_NO_MEMORY.
 *
 * It is not an error if nobody listens at the path, or if the directory does not exist: the broker
 * tries again. Before the broker's first use, this call does no I/O. After that, it starts to
 * connect.
 */
HANDOFF_MUST_USE
handoff_status handoff_broker_add(handoff_broker *broker,
                                  const handoff_broker_backend *backend) HANDOFF_NOEXCEPT;

/**
 * Removes a backend, or a directory with the backends that were found in it. A removed backend
 * gets no more offers. Its offers in flight end as usual, then its channel is closed.
 *
 * @param broker  the broker
 * @param path    the path with which the backend was added, or its path in a directory. In a
 *                directory, a backend stays removed until its file appears anew. Backends that
 *                were also added by their own paths stay when you remove their directory
 * @return HANDOFF_OK; HANDOFF_NOTHING if the broker has no such backend;
 *         HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL; HANDOFF_ERR_WRONG_PROCESS;
 *         HANDOFF_ERR_CLOSED.
 */
HANDOFF_MUST_USE
handoff_status handoff_broker_remove(handoff_broker *broker, const char *path) HANDOFF_NOEXCEPT;

/**
 * Returns how many offers without preread and metadata would be taken now. This call is a use of
 * the broker: it starts to connect.
 *
 * After HANDOFF_ERR_FULL, or another refusal that may pass, you may keep the client in a queue of
 * your own: see handoff_broker_offer(). The descriptor becomes readable when an offer would be
 * taken again. Then call handoff_broker_dispatch(), take the verdicts, and offer until the next
 * HANDOFF_ERR_FULL. An offer with a long preread can be refused while there is room for one
 * without. If a client has waited too long in the queue, serve it yourself.
 *
 * @param broker  the broker
 * @return the number of offers; 0 if none would be taken, or on error, with errno and
 *         handoff_last_error() set.
 */
HANDOFF_MUST_USE
size_t handoff_broker_room(handoff_broker *broker) HANDOFF_NOEXCEPT;

/**
 * In `state`: the broker connects to the backend, or waits for its first answer. This is also the
 * state before the broker's first use, when it has not begun to connect.
 */
#define HANDOFF_STATE_CONNECTING 1

/** In `state`: the backend takes offers, or will in a moment. */
#define HANDOFF_STATE_READY 2

/**
 * In `state`: the backend takes no more offers, because it drains, or was removed or switched off.
 * The channel stays for the offers in flight.
 */
#define HANDOFF_STATE_DRAINING 3

/**
 * In `state`: the backend rests, because it failed too often. Offers are refused with
 * HANDOFF_ERR_RATE_LIMITED, unless another backend can take them.
 *
 * While the backend rests, one offer at a time is taken as a trial: the first after 1 second, then
 * after pauses of 2, 4, 8, 8 ... seconds, at most `failure_period_ms`. An adoption or a new
 * channel ends the rest and resets the count of failures. An offer that timed out keeps its place
 * until the backend answers. While the backend has no place left, there is no trial. If nothing is
 * in flight there either, the backend rests, however few its failures.
 */
#define HANDOFF_STATE_RESTING 4

/** In `state`: there is no channel. `status` and `message` say why. */
#define HANDOFF_STATE_DOWN 5

/**
 * What one of a broker's backends does now, and what it has done since it was added. A backend in
 * a directory was added when its socket last appeared: one that comes back begins at 0.
 */
typedef struct handoff_broker_backend_state {
    /** Set by HANDOFF_BROKER_BACKEND_STATE_INIT. */
    size_t size;
    /**
     * Its path. A path in a directory can contain any byte except 0: replace control characters
     * before you print it. Valid until the next call with this broker.
     */
    const char *path;
    /**
     * HANDOFF_STATE_CONNECTING, HANDOFF_STATE_READY, HANDOFF_STATE_DRAINING,
     * HANDOFF_STATE_RESTING or HANDOFF_STATE_DOWN.
     */
    uint32_t state;
    /** HANDOFF_BACKEND_BACKUP and HANDOFF_BACKEND_OFF, as they were set last. */
    uint32_t flags;
    /** Its weight. */
    uint32_t weight;
    /**
     * Why the backend is down or resting, or had been connecting for over a second at the last
     * dispatch. It is what handoff_broker_offer() would return. HANDOFF_ERR_CLOSED after
     * handoff_broker_close(); HANDOFF_OK in every other state.
     */
    handoff_status status;
    /**
     * The system's error behind `status`, as in errno, or 0. If the error is not the system's:
     * EUSERS if the backend has too many channels, ESHUTDOWN if it drains, ENOSR if it is at a
     * limit of its descriptors or memory, ENOTCONN if it has not answered yet; ETIMEDOUT,
     * ECONNRESET or EPROTO if the process that listens is silent, hangs up, or speaks something
     * else. Of a directory: ENOSPC if it has more than a broker takes, ENAMETOOLONG if a socket's
     * path is too long.
     */
    int system_errno;
    /** Reserved: always 0. */
    uint32_t reserved;
    /**
     * A message about `status`, as from handoff_last_error(), or "". Valid until the next call
     * with this broker.
     */
    const char *message;
    /** How long the backend has been in this state, in milliseconds. */
    uint64_t since_ms;
    /**
     * How long until the broker connects or makes a trial, in milliseconds. 0: now, or already in
     * progress. HANDOFF_NO_TIMEOUT: neither is planned, because the broker has not been used yet,
     * the backend is ready, or the backend rests and has no free place for a trial until it
     * answers.
     */
    uint64_t next_ms;
    /** Offers in flight at the backend. */
    uint64_t in_flight;
    /** How many offers without preread and metadata the backend would take now. */
    uint64_t room;
    /** Channels set up, the first included. */
    uint64_t connects;
    /** Attempts to connect that failed. */
    uint64_t failed_connects;
    /**
     * Offers for which the backend was chosen, first or after another one, even if they were not
     * sent in time. The backend counts those that it received as `arrived`.
     */
    uint64_t offered;
    /** Those that the backend adopted. */
    uint64_t adopted;
    /**
     * Those that you took back. Offers that timed out or went on to another backend are fallbacks.
     */
    uint64_t taken_back;
    /**
     * Those that the backend did not adopt, by reason: fallbacks[HANDOFF_REASON_REJECTED] and so
     * on. Another backend may have adopted them.
     */
    uint64_t fallbacks[32];
    /**
     * Offers that no backend took, by status: refusals[-HANDOFF_ERR_FULL] and so on. With several
     * backends, each is counted at the backend that was most likely to take an offer soon.
     */
    uint64_t refusals[64];
    /**
     * Offers that have ended at the backend, by how long that took: histogram[0] counts those
     * under 1 microsecond, histogram[1] those under 2, histogram[2] those under 4, and so on;
     * histogram[31] counts all longer ones.
     */
    uint64_t histogram[32];
} handoff_broker_backend_state;
#define HANDOFF_BROKER_BACKEND_STATE_INIT \
    { sizeof(handoff_broker_backend_state), NULL, 0, 0, 0, 0, 0, 0, NULL, 0, 0, 0, 0, 0, 0, \
      0, 0, 0, { 0 }, { 0 }, { 0 } }

/**
 * Gets the state of one of a broker's backends. For all of them, call it with 0, 1, 2 and so on
 * until it returns HANDOFF_NOTHING. The last ones, with HANDOFF_STATE_DOWN, are the directories
 * that cannot be read, or in which a socket is left out: `message` says why.
 *
 * The call makes no system call: it reports what the broker has seen. A program without an event
 * loop should call handoff_broker_dispatch() first, because its broker may have looked at nothing
 * since the last offer.
 *
 * @param broker      the broker
 * @param index       which backend. Backends are numbered from 0 in the order in which they came.
 *                    A number changes when an earlier backend is removed
 * @param[out] state  what the backend does, and has done
 * @return HANDOFF_OK; HANDOFF_NOTHING if there are fewer backends; HANDOFF_ERR_INVALID_ARGUMENT if
 *         a pointer is NULL or `state->size` is wrong; HANDOFF_ERR_WRONG_PROCESS for a broker with
 *         HANDOFF_BROKER_SHARED.
 */
HANDOFF_MUST_USE
handoff_status handoff_broker_get_backend_state(handoff_broker *broker,
                                                size_t index,
                                                handoff_broker_backend_state *state) HANDOFF_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* HANDOFF_BACKENDS_H */
