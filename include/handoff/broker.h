/*
 * handoff/broker.h: the broker's end of a channel. The rules that hold for every call are in
 * handoff.h.
 *
 * Make a broker, watch its descriptor, offer clients. When the descriptor is readable, call
 * dispatch, then next until it returns HANDOFF_NOTHING. Each accepted offer has exactly one
 * verdict, unless you take it back. Programs without an event loop call offer_and_wait instead.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */

#ifndef HANDOFF_BROKER_H
#define HANDOFF_BROKER_H

#include <sys/uio.h>
#include "peer.h"
#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * The broker's end of the channels to its backends.
 *
 * It belongs to the process that uses it first. You can make it before fork(): until its first
 * use, each copy that a child gets becomes a broker of its own.
 */
typedef struct handoff_broker handoff_broker;

/**
 * The limits of a broker. Zero is the default in every field but `size`. Out-of-range values are
 * clamped.
 */
typedef struct handoff_broker_options {
    /** Set by HANDOFF_BROKER_OPTIONS_INIT. */
    size_t size;
    /**
     * The most offers in flight at each backend: 1 to 4096, default 256. A backend may allow
     * fewer. To have more, set the limit at both ends. With long prereads, raise `queue_bytes`
     * here and `max_held_bytes` at the backend, too.
     */
    size_t max_in_flight;
    /**
     * How long an offer may wait for its verdict, in milliseconds, unless the offer says
     * otherwise: default 5000; HANDOFF_NO_TIMEOUT. When that time is up, the descriptor becomes
     * readable, and the next dispatch takes the offer back.
     */
    uint64_t timeout_ms;
    /**
     * With several backends: how long each may take to answer, in milliseconds: default 1000, or
     * half of the time that the offer has left if that is less; HANDOFF_NO_TIMEOUT. After that,
     * the broker takes the offer back and passes it to another backend that can take it. If none
     * can, the offer stays where it is. Keep this well below the timeout of every offer: an offer
     * that times out during its first attempt goes to no other backend.
     */
    uint64_t attempt_timeout_ms;
    /**
     * With several backends: the most bytes of copies to keep of offers in flight, so that they
     * can go to another backend: default 16777216; HANDOFF_NO_LIMIT. An offer beyond that goes to
     * one backend only.
     */
    size_t failover_bytes;
    /**
     * The most bytes of offers queued for each backend while its socket is full: at least 131072,
     * default 1048576, which is 17 prereads of 60 KiB; HANDOFF_NO_LIMIT.
     */
    size_t queue_bytes;
    /**
     * The backend rests after this many failures within `failure_period_ms`: 1 to 4096, default 8;
     * HANDOFF_NO_LIMIT: it never rests. A failure is an offer that was sent and timed out,
     * including after `attempt_timeout_ms`. See HANDOFF_STATE_RESTING.
     */
    size_t max_failures;
    /** How long a failure counts, in milliseconds: default 30000. */
    uint64_t failure_period_ms;
    /**
     * The pause before the first reconnect, in milliseconds: default 10. It doubles with each
     * failed attempt.
     */
    uint64_t reconnect_min_ms;
    /**
     * The longest pause between two attempts to connect, in milliseconds: default 1000, or
     * `reconnect_min_ms` if that is longer.
     */
    uint64_t reconnect_max_ms;
    /**
     * Who may be the backend: default root, this process's user and, for a path, the owner of the
     * socket's file. Checked for each connection before anything is sent. Copied.
     */
    const handoff_peer_policy *policy;
    /** HANDOFF_BROKER_SHARED, or 0. */
    uint32_t flags;
    /**
     * How long to spin for a verdict, in microseconds: at most 10000, default 0.
     * handoff_broker_offer_and_wait() spins before it sleeps. With offers in flight,
     * handoff_broker_dispatch() spins before it returns with nothing new. Spinning saves the time
     * to wake up if broker and backend each have a processor with little else to do. If they share
     * a processor, spinning keeps the other end from running, and a handoff takes up to `spin_us`
     * longer. In an event loop, if handoff_broker_next() returned a verdict, call dispatch again
     * before you wait. No effect with HANDOFF_BROKER_SHARED.
     */
    uint32_t spin_us;
} handoff_broker_options;
#define HANDOFF_BROKER_OPTIONS_INIT \
    { sizeof(handoff_broker_options), 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, 0, 0 }

/**
 * In handoff_broker_options.flags: any number of threads may use the broker at once. It is for
 * programs with a thread for each request: the threads share one channel to each backend.
 *
 * Each thread calls handoff_broker_offer_and_wait(). One of them does the broker's work, and the
 * others sleep until their own verdict is there. Threads that wait for room at the same backend
 * get it in the order in which they came. You may make any other call at the same time, except
 * handoff_broker_free(): calling that while a thread uses the broker is a bug in the caller.
 *
 * To end all waits for good, call handoff_broker_close(): each thread gets its verdict, or
 * HANDOFF_ERR_CLOSED if its connection was not offered yet. Strings that a call returns are valid
 * until the next call of the same thread. In a child of fork(), every call except
 * handoff_broker_free() returns HANDOFF_ERR_WRONG_PROCESS if the broker had been used before the
 * fork, or if another thread was in a call with it at the moment of the fork. In the second case,
 * handoff_broker_free() leaves the child's copies open until the child ends.
 */
#define HANDOFF_BROKER_SHARED 1

/**
 * Initialises options as HANDOFF_BROKER_OPTIONS_INIT does, for languages without macros.
 *
 * @param[out] options  the options
 * @param size          sizeof(handoff_broker_options)
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `options` is NULL or `size` cannot be right.
 */
handoff_status handoff_broker_options_init(handoff_broker_options *options,
                                           size_t size) HANDOFF_NOEXCEPT;

/**
 * Makes a broker for the backend that listens at `path`. handoff_broker_add() adds others.
 *
 * The call does no I/O and opens nothing. The broker starts to connect at its first use, and then
 * reconnects by itself whenever the channel ends. A relative path is looked up anew at each
 * attempt, in the working directory of that moment: a program that calls chdir(2) should pass an
 * absolute path.
 *
 * @param path         the handoff socket's path, at most 107 bytes; "@" starts an abstract name.
 *                     If it ends in '/', at most 106 bytes, every socket in that directory is a
 *                     backend: see handoff_broker_backend. NULL: no backend yet
 * @param options      the limits, or NULL for the defaults; read during the call only
 * @param[out] broker  the broker; free it with handoff_broker_free()
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `broker` is NULL, the path cannot be a
 *         socket's, the `size` of the options or of their `policy` is wrong, a list of the policy
 *         is NULL but not empty, `flags` has an unknown bit, or `reconnect_min_ms` is more than
 *         `reconnect_max_ms`; HANDOFF_ERR_UNSUPPORTED if this library does not know a field that
 *         is set; HANDOFF_ERR_NO_MEMORY.
 */
HANDOFF_MUST_USE
handoff_status handoff_broker_new(const char *path,
                                  const handoff_broker_options *options,
                                  handoff_broker **broker) HANDOFF_NOEXCEPT;

/**
 * A connection to hand over. Set at least `fd`.
 *
 * Preread, metadata, service and correlation together are at most the backend's `max_offer_bytes`,
 * by default 65536, and never more than 131000.
 */
typedef struct handoff_offer {
    /** Set by HANDOFF_OFFER_INIT. */
    size_t size;
    /**
     * The client's connection, a socket. It stays yours. Until the verdict, keep it open and out
     * of your event loop (EPOLL_CTL_DEL), and do not offer it a second time, with this broker or
     * another: both offers could be adopted. After a fallback you may offer it again. A backend
     * may also offer a connection that it has adopted, with a broker of its own. It does so
     * between two messages of the client, and passes what it has read of the next message as
     * preread.
     */
    int fd;
    /** HANDOFF_OFFER_MORE, HANDOFF_OFFER_TLS or 0. */
    uint32_t flags;
    /** Bytes that you have read from the client. The backend consumes them first. Copied. */
    const void *preread;
    /** The number of bytes. */
    size_t preread_len;
    /**
     * The same bytes in several buffers. Set this or `preread`, not both. Copied. `iov_base` of an
     * empty part may be NULL.
     */
    const struct iovec *preread_iov;
    /** The length of the array. */
    size_t preread_iov_len;
    /** Anything that the backend should know. Copied. */
    const void *metadata;
    /** The number of bytes. */
    size_t metadata_len;
    /** The name of the intended service: at most 255 bytes, or NULL. Copied. */
    const char *service;
    /** An id for logs: at most 255 bytes, or NULL. Copied. */
    const char *correlation;
    /** Returned with the verdict. The library does not look at it. */
    void *user_data;
    /**
     * How long the offer may wait for its verdict, in milliseconds: default as in the broker's
     * options; HANDOFF_NO_TIMEOUT.
     */
    uint64_t timeout_ms;
} handoff_offer;
#define HANDOFF_OFFER_INIT \
    { sizeof(handoff_offer), -1, 0, NULL, 0, NULL, 0, NULL, 0, NULL, NULL, NULL, 0 }

/**
 * In handoff_offer.flags: more offers follow, so this one need not be sent yet. Call
 * handoff_broker_flush() before you wait, even after HANDOFF_ERR_FULL: nothing wakes you to flush,
 * and an unsent offer takes up room and times out like any other. Unsent offers are also sent with
 * the next accepted offer without the flag, by handoff_broker_dispatch(), and as soon as there are
 * enough for a packet.
 */
#define HANDOFF_OFFER_MORE 1

/**
 * In handoff_offer.flags: the kernel does this connection's TLS, in both directions (kTLS). The
 * library asks the kernel whether it does. Preread is what your TLS library has decrypted. The TLS
 * library must hold no bytes that are still encrypted, and no record that it has read or written
 * only in part. After the verdict HANDOFF_ADOPTED, free the TLS library's object without sending a
 * close_notify or any other byte on the connection.
 *
 * The kernel needs its module `tls`, which it loads by itself only for root: see modprobe(8). With
 * OpenSSL 3, set SSL_OP_ENABLE_KTLS before the handshake. OpenSSL 3.0 and 3.1 let the kernel
 * receive TLS 1.2 only; later versions also TLS 1.3. Use SSL_read(3) to take the bytes that
 * SSL_pending(3) reports. After that, SSL_has_pending(3) must return 0; if it does not, serve the
 * client yourself. Free the object with SSL_free(3), without SSL_shutdown(3): a socket that was
 * set with SSL_set_fd(3) stays open. `examples/tls_broker.c` does all this.
 */
#define HANDOFF_OFFER_TLS 2

/**
 * Initialises an offer as HANDOFF_OFFER_INIT does, for languages without macros.
 *
 * @param[out] offer  the offer
 * @param size        sizeof(handoff_offer)
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `offer` is NULL or `size` cannot be right.
 */
handoff_status handoff_offer_init(handoff_offer *offer, size_t size) HANDOFF_NOEXCEPT;

/**
 * Offers a connection to the backend, or to one of several: see handoff_broker_add(). The call
 * never blocks: while the socket is full, the offer is queued.
 *
 * After HANDOFF_OK, handoff_broker_next() will return its verdict. After any error except
 * HANDOFF_ERR_INTERNAL nothing was sent and there is no verdict: serve the client another way.
 *
 * @param broker   the broker
 * @param offer    the connection and what goes with it; everything except `fd` is copied
 * @param[out] id  names the offer for handoff_broker_take_back(); may be NULL
 * @return HANDOFF_OK: there will be a verdict.
 *         The first errors are about the backend and may pass, see handoff_status_may_pass(), and
 *         the descriptor becomes readable when an offer would be taken:
 *         HANDOFF_ERR_BACKEND_UNAVAILABLE if there is no channel, or the backend drains:
 *         handoff_last_error() says why;
 *         HANDOFF_ERR_TOO_MANY_CHANNELS if the backend has reached its limit of channels;
 *         HANDOFF_ERR_WOULD_BLOCK if too many brokers wait for the backend to accept them;
 *         HANDOFF_ERR_PERMISSION_DENIED if this process may not connect, or the backend does not
 *         allow its user;
 *         HANDOFF_ERR_PEER_NOT_ALLOWED if the user who listens at the path may not be the backend;
 *         HANDOFF_ERR_PEER_UNKNOWN if the system does not say which user listens at the path;
 *         HANDOFF_ERR_FULL if the limit of offers in flight or of queued bytes is reached, you
 *         have left too many verdicts untaken, or the backend has not granted its places yet: on a
 *         new channel they come in a moment, and not all at once. handoff_last_error() says which.
 *         An offer that was sent keeps its place until the backend has answered it, even if you
 *         have taken it back;
 *         HANDOFF_ERR_RATE_LIMITED if the backend rests: it failed too often, or offers that timed
 *         out hold all its places, see HANDOFF_STATE_RESTING;
 *         HANDOFF_ERR_DESCRIPTOR_PRESSURE if there is no descriptor for a channel.
 *         The other errors are about the offer, the program or the system, and do not pass:
 *         HANDOFF_ERR_TOO_LARGE if the backend does not take so many bytes, or `service` or
 *         `correlation` is too long;
 *         HANDOFF_ERR_NOT_TLS with HANDOFF_OFFER_TLS, if the kernel does not do the TLS of `fd` in
 *         both directions;
 *         HANDOFF_ERR_INVALID_ARGUMENT, also if `fd` is not a socket, `flags` has an unknown bit
 *         or both forms of preread are set;
 *         HANDOFF_ERR_WRONG_PROCESS; HANDOFF_ERR_CLOSED; HANDOFF_ERR_NO_MEMORY;
 *         HANDOFF_ERR_UNSUPPORTED if this system lacks what a channel needs, the backend speaks
 *         another version of the protocol, or its library is too old for HANDOFF_OFFER_TLS;
 *         HANDOFF_ERR_SYSTEM if a limit does not allow it: EFBIG means RLIMIT_FSIZE, because the
 *         memory that the two ends share counts as a file.
 *
 * At its first use the broker needs some descriptors for itself. Call handoff_broker_fd() at the
 * start of the program: it returns -1 if there are none.
 *
 * If none of several backends takes the offer, the status is about the backend that is most likely
 * to take an offer soon.
 *
 * After a refusal that may pass, see handoff_broker_room(). Call handoff_broker_flush() before you
 * wait: offers that are not flushed still take up room.
 *
 * After HANDOFF_ERR_INTERNAL, a bug in the library, the offer may be in flight. Call
 * handoff_broker_close(), then handoff_broker_next(): if there is no verdict, the connection is
 * yours.
 *
 * The call allocates memory only for an offer that is longer than those before, for copies of
 * offers that several backends may get, and when several backends refuse an offer.
 */
HANDOFF_MUST_USE
handoff_status handoff_broker_offer(handoff_broker *broker,
                                    const handoff_offer *offer,
                                    uint64_t *id) HANDOFF_NOEXCEPT;

/**
 * Sends the offers made with HANDOFF_OFFER_MORE. The call never blocks.
 *
 * @param broker  the broker
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
 *         HANDOFF_ERR_CLOSED; HANDOFF_ERR_DESCRIPTOR_PRESSURE, HANDOFF_ERR_NO_MEMORY,
 *         HANDOFF_ERR_UNSUPPORTED at the first use; HANDOFF_ERR_SYSTEM.
 */
HANDOFF_MUST_USE
handoff_status handoff_broker_flush(handoff_broker *broker) HANDOFF_NOEXCEPT;

/**
 * Returns the broker's descriptor, for your event loop. It is readable whenever
 * handoff_broker_dispatch() has work. If handoff_broker_next() has verdicts left that you did not
 * take, the descriptor becomes readable for them within 4 ms.
 *
 * It stays the same until handoff_broker_close(). You may watch it level- or edge-triggered. This
 * call is a use of the broker: it starts to connect.
 *
 * @param broker  the broker
 * @return the descriptor, which stays the broker's: do not read, write or close it; -1 on error,
 *         with errno, handoff_last_status() and handoff_last_error() set.
 */
HANDOFF_MUST_USE
int handoff_broker_fd(handoff_broker *broker) HANDOFF_NOEXCEPT;

/**
 * Does a broker's pending work: connects, receives verdicts, sends offers, takes back offers whose
 * timeout has passed.
 *
 * The call never blocks, except to spin for `spin_us`. Call it when the descriptor is readable.
 * Then call handoff_broker_next(), and offer again what was refused: each dispatch may have made
 * room.
 *
 * @param broker  the broker
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
 *         HANDOFF_ERR_CLOSED; HANDOFF_ERR_DESCRIPTOR_PRESSURE, HANDOFF_ERR_NO_MEMORY,
 *         HANDOFF_ERR_UNSUPPORTED at the first use; HANDOFF_ERR_SYSTEM. After an error, call it
 *         again. A problem with the backend is not an error here: it is the reason in the
 *         verdicts, and the status of the next offer.
 */
HANDOFF_MUST_USE
handoff_status handoff_broker_dispatch(handoff_broker *broker) HANDOFF_NOEXCEPT;

/** What became of an offer. */
typedef struct handoff_verdict {
    /** Set by HANDOFF_VERDICT_INIT. */
    size_t size;
    /** The offer's id, as from handoff_broker_offer(). */
    uint64_t id;
    /** The offer's `user_data`. */
    void *user_data;
    /** Who owns the connection now: HANDOFF_ADOPTED or HANDOFF_FALLBACK. */
    handoff_outcome outcome;
    /**
     * Why it is a fallback. With HANDOFF_ADOPTED: HANDOFF_REASON_NONE;
     * HANDOFF_REASON_BACKEND_DIED; or HANDOFF_REASON_INTEGRITY_MISMATCH if the backend broke the
     * protocol: it may have adopted the connection, so do not serve it. HANDOFF_REASON_NONE does
     * not mean that the backend is still alive.
     */
    handoff_reason reason;
    /**
     * With HANDOFF_FALLBACK: not 0 if the backend may still hold a copy of the descriptor. The
     * backend can no longer adopt the connection, but may have changed what copies share:
     * O_NONBLOCK and O_ASYNC, and socket options such as SO_LINGER and SO_RCVLOWAT. Set what you
     * rely on. If the backend has called shutdown(2), send(2) fails with EPIPE. End the connection
     * with shutdown(2), then close(2): close(2) alone sends no FIN while there is a copy.
     */
    uint32_t may_have_reached_backend;
    /** How many backends the offer was queued for or sent to. */
    uint32_t attempts;
    /**
     * The path of the backend that adopted the connection, or of the last one that had the offer.
     * A path in a directory can contain any byte except 0: replace control characters before you
     * print it. Valid until the next call with this broker.
     */
    const char *backend;
    /**
     * With HANDOFF_REASON_KIND: the kind of the socket, one of HANDOFF_KIND_STREAM and so on, or
     * HANDOFF_KIND_UNCONNECTED; 0 if the backend does not say. With other reasons 0.
     */
    uint32_t kind;
    /** Reserved: always 0. */
    uint32_t reserved;
} handoff_verdict;
#define HANDOFF_VERDICT_INIT \
    { sizeof(handoff_verdict), 0, NULL, 0, 0, 0, 0, NULL, 0, 0 }

/**
 * Takes the next verdict. After each handoff_broker_dispatch(), call it until it returns
 * HANDOFF_NOTHING. A loop with a budget may stop earlier, but must take at least one verdict. The
 * descriptor then becomes readable for the rest within 4 ms.
 *
 * @param broker        the broker
 * @param[out] verdict  what became of which offer
 * @return HANDOFF_OK; HANDOFF_NOTHING; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or
 *         `verdict->size` is wrong; HANDOFF_ERR_WRONG_PROCESS.
 */
HANDOFF_MUST_USE
handoff_status handoff_broker_next(handoff_broker *broker,
                                   handoff_verdict *verdict) HANDOFF_NOEXCEPT;

/**
 * Offers a connection and waits for its verdict. For programs without an event loop.
 *
 * The call waits for a channel, for room and for the verdict: together at most the offer's
 * `timeout_ms`. It does not wait for a backend that is down. If the last attempt to connect
 * failed, the call returns that error at once, until the next attempt is due, at most
 * `reconnect_max_ms` later. The same applies to a backend that turns this broker away, drains, or
 * accepted the last connection and said nothing for 5 seconds. To wait for a restart, call again
 * every 10 to 50 ms while handoff_status_may_pass() returns true.
 *
 * If there is no room within `timeout_ms`, the call returns HANDOFF_ERR_FULL. If no channel is up
 * by then, it returns HANDOFF_ERR_BACKEND_UNAVAILABLE, or the error of the last attempt to
 * connect. If the offer was sent but not answered, there is a verdict with
 * HANDOFF_REASON_ACK_TIMEOUT.
 *
 * @param broker        the broker. Verdicts of other offers stay for handoff_broker_next().
 * @param offer         the connection and what goes with it; HANDOFF_OFFER_MORE has no effect
 * @param[out] verdict  what became of it
 * @return HANDOFF_OK if there is a verdict; HANDOFF_WOKEN after handoff_broker_wake(); or an error
 *         as from handoff_broker_offer(). Unless the call returns HANDOFF_OK, there is no verdict,
 *         and the connection is still yours, except after HANDOFF_ERR_INTERNAL.
 *
 * After HANDOFF_WOKEN and HANDOFF_ERR_SYSTEM, the backend may hold a copy of the descriptor: see
 * `may_have_reached_backend` in handoff_verdict. After HANDOFF_ERR_INTERNAL see
 * handoff_broker_offer().
 */
HANDOFF_MUST_USE
handoff_status handoff_broker_offer_and_wait(handoff_broker *broker,
                                             const handoff_offer *offer,
                                             handoff_verdict *verdict) HANDOFF_NOEXCEPT;

/**
 * Ends a wait in handoff_broker_offer_and_wait(). The call that waits, or else the next one that
 * would wait, takes its offer back and returns HANDOFF_WOKEN.
 *
 * If the backend has already adopted the connection, the waiting call returns that verdict, and
 * the next one is woken instead. With HANDOFF_BROKER_SHARED, every wait in progress ends. If there
 * is none, or each of them returns a verdict, the next wait that begins while no other is in
 * progress ends.
 *
 * Each call wakes once. To stop for good, call handoff_broker_close() on a broker with
 * HANDOFF_BROKER_SHARED. With any other broker, set a flag of your own, then wake it.
 *
 * @param broker  the broker; nobody may free it meanwhile
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS. It
 *         leaves errno and the last errors as they are.
 *
 * Safe in any thread and in a signal handler, even while another thread uses the broker.
 */
handoff_status handoff_broker_wake(const handoff_broker *broker) HANDOFF_NOEXCEPT;

/**
 * Takes an offer back.
 *
 * @param broker  the broker
 * @param id      the offer's id
 * @return HANDOFF_OK: the connection is yours, and there will be no verdict. The backend may still
 *         hold a copy of the descriptor: see `may_have_reached_backend` in handoff_verdict.
 *         HANDOFF_ERR_TOO_LATE if the backend has adopted the connection or the verdict is known:
 *         handoff_broker_next() returns the verdict; also if `id` names no offer in flight, or one
 *         that a thread waits for.
 *         HANDOFF_ERR_INVALID_ARGUMENT if `broker` is NULL; HANDOFF_ERR_WRONG_PROCESS;
 *         HANDOFF_ERR_CLOSED.
 */
HANDOFF_MUST_USE
handoff_status handoff_broker_take_back(handoff_broker *broker, uint64_t id) HANDOFF_NOEXCEPT;

/**
 * Takes every offer back and closes the channels. Then call handoff_broker_next() for the
 * verdicts, and then handoff_broker_free(). The reason in the verdicts is
 * HANDOFF_REASON_BROKER_CLOSED, unless the backend decided first.
 *
 * You can still read the statistics, the states and the last error. Calls that need the channel
 * return HANDOFF_ERR_CLOSED, and handoff_broker_fd() returns -1. Remove the broker's descriptor
 * from your event loop before you close the broker: the descriptor may stay readable, and there is
 * nothing left to dispatch.
 *
 * @param broker  the broker
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
 *         HANDOFF_ERR_CLOSED if it is already closed.
 */
handoff_status handoff_broker_close(handoff_broker *broker) HANDOFF_NOEXCEPT;

/** What a broker has done so far. */
typedef struct handoff_broker_statistics {
    /** Set by HANDOFF_BROKER_STATISTICS_INIT. */
    size_t size;
    /** Offers accepted by handoff_broker_offer() and handoff_broker_offer_and_wait(). */
    uint64_t offered;
    /**
     * Offers refused by these calls. An offer that you make again is counted again. A wrong
     * pointer, `size`, length or flag, a negative `fd`, and both forms of preread at once are not
     * counted.
     */
    uint64_t refused;
    /** Offers that a backend adopted. */
    uint64_t adopted;
    /**
     * Offers taken back by handoff_broker_take_back() and handoff_broker_wake(). Those that timed
     * out are fallbacks. The backend counts both as `taken_back`.
     */
    uint64_t taken_back;
    /** Channels set up, the first included. */
    uint64_t connects;
    /** Offers in flight now. */
    uint64_t in_flight;
    /** Bytes queued now, because the socket is full. */
    uint64_t queued_bytes;
    /**
     * Fallbacks by reason: fallbacks[HANDOFF_REASON_REJECTED] and so on. In fallbacks[0], a later
     * version counts those whose number has no place here.
     */
    uint64_t fallbacks[32];
    /**
     * Refused offers by status: refusals[-HANDOFF_ERR_FULL] and so on. In refusals[0], a later
     * version counts those whose number has no place here.
     */
    uint64_t refusals[64];
    /** How many times an offer went on from one backend to another. */
    uint64_t failovers;
} handoff_broker_statistics;
#define HANDOFF_BROKER_STATISTICS_INIT \
    { sizeof(handoff_broker_statistics), 0, 0, 0, 0, 0, 0, 0, { 0 }, { 0 }, 0 }

/**
 * Gets what a broker has done so far.
 *
 * @param broker           the broker
 * @param[out] statistics  the counts
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or `statistics->size` is
 *         wrong; HANDOFF_ERR_WRONG_PROCESS for a broker with HANDOFF_BROKER_SHARED.
 */
handoff_status handoff_broker_get_statistics(handoff_broker *broker,
                                             handoff_broker_statistics *statistics) HANDOFF_NOEXCEPT;

/**
 * Returns a message about this broker's last error. See handoff_last_error() for details. With
 * HANDOFF_BROKER_SHARED, both return the same message.
 *
 * @param broker  the broker
 * @return a string, never NULL; empty if no call has failed yet or `broker` is NULL. It is valid
 *         until the broker's next error, or until you free the broker.
 */
const char *handoff_broker_last_error(const handoff_broker *broker) HANDOFF_NOEXCEPT;

/**
 * Takes every offer back, closes the channels and frees the broker.
 *
 * Verdicts that were not taken are lost. To learn who owns each connection, call
 * handoff_broker_close() first. In a child of fork(), the call closes only the child's copies.
 *
 * @param broker  the broker, or NULL, which does nothing. No other thread may use it.
 */
void handoff_broker_free(handoff_broker *broker) HANDOFF_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* HANDOFF_BROKER_H */
