/*
 * handoff.h: hand an accepted connection to another process on this host.
 *
 * Made by cbindgen from src/ffi; do not edit. See handoff(7) for an overview.
 *
 * Everywhere: a call that can fail returns a handoff_status, or -1 if it gives a handle's own
 * descriptor; out parameters come last and are untouched on failure; a descriptor that is passed in
 * stays the caller's; a descriptor in an out parameter is the caller's to close. The library starts
 * no thread, installs no signal handler, writes nothing to standard error, and does not change
 * signal masks, the umask or the working directory.
 */

#ifndef HANDOFF_H
#define HANDOFF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** The version of this header; handoff_version() tells the library's. */
#define HANDOFF_VERSION "0.2.0"
#define HANDOFF_VERSION_MAJOR 0
#define HANDOFF_VERSION_MINOR 2
#define HANDOFF_VERSION_PATCH 0

/** Defaults for the structs that are passed in:
 *  handoff_listener_options options = HANDOFF_LISTENER_OPTIONS_INIT; */
#define HANDOFF_TOKEN_STORE_OPTIONS_INIT                                       \
    { sizeof(handoff_token_store_options), HANDOFF_TOKEN_STORE_CAPACITY,       \
      HANDOFF_TOKEN_STORE_LIFETIME_MS, HANDOFF_TOKEN_STORE_COLLISION_ATTEMPTS }
#define HANDOFF_PENDING_OPTIONS_INIT                                           \
    { sizeof(handoff_pending_options), HANDOFF_PENDING_CAPACITY,               \
      HANDOFF_PENDING_TIMEOUT_MS }
#define HANDOFF_INPUTS_INIT                                                    \
    { sizeof(handoff_inputs), 1, 1, 0, 0 }
#define HANDOFF_FALLBACK_OPTIONS_INIT                                          \
    { sizeof(handoff_fallback_options), HANDOFF_FALLBACK_MAX_FAILURES,         \
      HANDOFF_FALLBACK_WINDOW_MS, HANDOFF_FALLBACK_MAX_BACKENDS }
#define HANDOFF_PEER_POLICY_INIT                                               \
    { sizeof(handoff_peer_policy), NULL, 0, NULL, 0 }
#define HANDOFF_LISTENER_OPTIONS_INIT                                          \
    { sizeof(handoff_listener_options), HANDOFF_LISTENER_MODE,                 \
      HANDOFF_LISTENER_BACKLOG, HANDOFF_STREAM }
#define HANDOFF_BROKER_OPTIONS_INIT                                            \
    { sizeof(handoff_broker_options), HANDOFF_BROKER_WINDOW,                   \
      HANDOFF_BROKER_TIMEOUT_MS, HANDOFF_BROKER_QUEUE_BYTES,                   \
      HANDOFF_FALLBACK_MAX_FAILURES, HANDOFF_FALLBACK_WINDOW_MS,               \
      HANDOFF_BROKER_RECONNECT_MIN_MS, HANDOFF_BROKER_RECONNECT_MAX_MS }
#define HANDOFF_OFFER_INIT                                                     \
    { sizeof(handoff_offer), -1, 0, NULL, 0, NULL, 0, NULL, NULL, NULL, 0 }
#define HANDOFF_BROKER_STATISTICS_INIT                                         \
    { sizeof(handoff_broker_statistics), 0, 0, 0, 0, 0, 0, 0, { 0 } }
#define HANDOFF_BACKEND_OPTIONS_INIT                                           \
    { sizeof(handoff_backend_options), HANDOFF_LISTENER_MODE,                  \
      HANDOFF_LISTENER_BACKLOG, NULL, HANDOFF_BACKEND_MAX_CHANNELS,            \
      HANDOFF_BACKEND_CREDIT, HANDOFF_BACKEND_MAX_OFFER_BYTES,                 \
      HANDOFF_BACKEND_MAX_HELD_BYTES, HANDOFF_KIND_STREAM }
#define HANDOFF_BACKEND_STATISTICS_INIT                                        \
    { sizeof(handoff_backend_statistics), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }


/**
 * Bytes in a token, and in a message of the raw layer.
 */
#define HANDOFF_TOKEN_LEN 16

/**
 * Default of handoff_token_store_options.capacity.
 */
#define HANDOFF_TOKEN_STORE_CAPACITY 1024

/**
 * Default of handoff_token_store_options.lifetime_ms.
 */
#define HANDOFF_TOKEN_STORE_LIFETIME_MS 30000

/**
 * Default of handoff_token_store_options.collision_attempts.
 */
#define HANDOFF_TOKEN_STORE_COLLISION_ATTEMPTS 16

/**
 * Default of handoff_pending_options.capacity.
 */
#define HANDOFF_PENDING_CAPACITY 1024

/**
 * Default of handoff_pending_options.timeout_ms.
 */
#define HANDOFF_PENDING_TIMEOUT_MS 5000

/**
 * Default of handoff_fallback_options.max_failures.
 */
#define HANDOFF_FALLBACK_MAX_FAILURES 8

/**
 * Default of handoff_fallback_options.window_ms.
 */
#define HANDOFF_FALLBACK_WINDOW_MS 30000

/**
 * Default of handoff_fallback_options.max_backends.
 */
#define HANDOFF_FALLBACK_MAX_BACKENDS 1024

/**
 * Default of handoff_listener_options.mode: 0600.
 */
#define HANDOFF_LISTENER_MODE 384

/**
 * Default of handoff_listener_options.backlog.
 */
#define HANDOFF_LISTENER_BACKLOG 4096

/**
 * Default of handoff_broker_options.window.
 */
#define HANDOFF_BROKER_WINDOW 256

/**
 * Default of handoff_broker_options.timeout_ms.
 */
#define HANDOFF_BROKER_TIMEOUT_MS 5000

/**
 * Default of handoff_broker_options.queue_bytes.
 */
#define HANDOFF_BROKER_QUEUE_BYTES 1048576

/**
 * Default of handoff_broker_options.reconnect_min_ms.
 */
#define HANDOFF_BROKER_RECONNECT_MIN_MS 10

/**
 * Default of handoff_broker_options.reconnect_max_ms.
 */
#define HANDOFF_BROKER_RECONNECT_MAX_MS 1000

/**
 * Default of handoff_backend_options.max_channels.
 */
#define HANDOFF_BACKEND_MAX_CHANNELS 64

/**
 * Default of handoff_backend_options.credit.
 */
#define HANDOFF_BACKEND_CREDIT 256

/**
 * Default of handoff_backend_options.max_offer_bytes.
 */
#define HANDOFF_BACKEND_MAX_OFFER_BYTES 65536

/**
 * Default of handoff_backend_options.max_held_bytes.
 */
#define HANDOFF_BACKEND_MAX_HELD_BYTES 67108864

/**
 * Connected stream sockets, such as TCP: what a backend takes unless it says otherwise.
 */
#define HANDOFF_KIND_STREAM 1

/**
 * Connected sockets of sequenced packets.
 */
#define HANDOFF_KIND_SEQPACKET 2

/**
 * Connected datagram sockets.
 */
#define HANDOFF_KIND_DATAGRAM 4

/**
 * With one of the others: sockets without a peer as well, such as listening ones.
 */
#define HANDOFF_KIND_UNCONNECTED 8

/**
 * All of them, and any other socket: nothing is asked about what arrives, which saves much of what
 * an arrival costs. For a backend that trusts its brokers to offer what they have accepted.
 */
#define HANDOFF_KIND_ANY 15

/**
 * The backend's end of the channels of one handoff socket. One thread at a time may use it;
 * different ones are independent. It belongs to the process that uses it first after listening.
 * Once it runs, it allocates only for channels that begin and for arrivals of over 16 KiB.
 */
typedef struct handoff_backend handoff_backend;

/**
 * The broker's end of a channel to one backend. One thread at a time may use it; different ones
 * are independent. It belongs to the process that uses it first: make it before fork() and use it
 * in one child, or make one in each.
 */
typedef struct handoff_broker handoff_broker;

/**
 * The recent failures of each backend, and the decision that follows.
 *
 * Any number of threads may use one at once. After fork() in a program with several threads, the
 * child makes one of its own: another thread may have held the lock.
 */
typedef struct handoff_fallback handoff_fallback;

/**
 * A listening handoff socket, and the file that it made.
 */
typedef struct handoff_listener handoff_listener;

/**
 * The acknowledgements that a broker waits for. An entry leaves exactly once: acknowledged in
 * time, abandoned or expired; whoever makes it leave gets its `user_data`, and the token's life
 * in the store ends with it.
 *
 * Any number of threads may use one at once. After fork() in a program with several threads, the
 * child makes a registry of its own: another thread may have held the lock.
 */
typedef struct handoff_pending handoff_pending;

/**
 * The tokens that may still be presented, each of them once. Bounded; every token in it expires.
 *
 * Any number of threads may use one at once. After fork() in a program with several threads, the
 * child makes a store of its own: another thread may have held the lock.
 */
typedef struct handoff_token_store handoff_token_store;

/**
 * What a call says of itself: HANDOFF_OK, HANDOFF_NOTHING or one of HANDOFF_ERR_*.
 *
 * After an error errno holds the operating system's error, or 0 if the system had no part in it,
 * and handoff_last_error() a sentence with the socket and the descriptor in it. Out parameters
 * are untouched unless the status is HANDOFF_OK. Numbers are never given to another meaning.
 */
typedef int32_t handoff_status;

/**
 * How an attempt failed, as far as the fallback policy cares: one of HANDOFF_FAILURE_*.
 * handoff_status_failure() makes one from a status.
 */
typedef uint32_t handoff_failure;

/**
 * A one-time token. To send it elsewhere, send its bytes; compare with handoff_token_equal().
 */
typedef struct handoff_token {
    /**
     * The token. Whoever knows these may present it.
     */
    uint8_t bytes[HANDOFF_TOKEN_LEN];
} handoff_token;

/**
 * The limits of a token store. Begin with HANDOFF_TOKEN_STORE_OPTIONS_INIT and change what you
 * want. A value outside its range is taken to the nearest end of it.
 */
typedef struct handoff_token_store_options {
    /**
     * sizeof(handoff_token_store_options), set by the INIT macro.
     */
    size_t size;
    /**
     * Tokens pending at once: 1 to 1048576.
     */
    size_t capacity;
    /**
     * How long a token may be presented, in milliseconds: 1 at least.
     */
    uint64_t lifetime_ms;
    /**
     * Tokens generated before issuing gives up on finding one that is not pending: 1 at least.
     */
    uint32_t collision_attempts;
} handoff_token_store_options;

/**
 * Why a connection was not handed over: one of HANDOFF_REASON_*.
 */
typedef uint32_t handoff_reason;

/**
 * Whose a connection is: HANDOFF_ADOPTED or HANDOFF_FALLBACK.
 */
typedef uint32_t handoff_outcome;

/**
 * A backend's answer to one message.
 */
typedef struct handoff_ack {
    /**
     * The token of the message.
     */
    struct handoff_token token;
    /**
     * HANDOFF_ADOPTED or, if the backend rejected the connection, HANDOFF_FALLBACK.
     */
    handoff_outcome outcome;
    /**
     * Why it was rejected; HANDOFF_REASON_NONE if it was not.
     */
    handoff_reason reason;
} handoff_ack;

/**
 * The limits of a registry of pending acknowledgements. Begin with HANDOFF_PENDING_OPTIONS_INIT
 * and change what you want. A value outside its range is taken to the nearest end of it.
 */
typedef struct handoff_pending_options {
    /**
     * sizeof(handoff_pending_options), set by the INIT macro.
     */
    size_t size;
    /**
     * Acknowledgements pending at once: 1 to 1048576.
     */
    size_t capacity;
    /**
     * How long each may take, in milliseconds: 1 at least.
     */
    uint64_t timeout_ms;
} handoff_pending_options;

/**
 * What became of an offer.
 */
typedef struct handoff_verdict {
    /**
     * The offer, as handoff_broker_offer() named it; 0 for handoff_attempt().
     */
    uint64_t id;
    /**
     * What came with the offer; NULL for handoff_attempt().
     */
    void *user_data;
    /**
     * Whose the connection is now.
     */
    handoff_outcome outcome;
    /**
     * Why it is a fallback. If it was adopted, HANDOFF_REASON_NONE, or what happened after.
     */
    handoff_reason reason;
    /**
     * The error behind a fallback of handoff_attempt(); HANDOFF_OK if the backend rejected the
     * connection. A broker's verdict always has HANDOFF_OK.
     */
    handoff_status cause;
    /**
     * The descriptor may have reached the backend, which does not serve it after a fallback; but a
     * copy may lie there until it looks. close(2) alone says nothing to the client while there is
     * a copy, so when you are done with a fallback, shutdown(2) it before you close it.
     */
    bool may_have_reached_backend;
} handoff_verdict;

/**
 * The limits of a fallback state. Begin with HANDOFF_FALLBACK_OPTIONS_INIT and change what you
 * want. A value outside its range is taken to the nearest end of it.
 */
typedef struct handoff_fallback_options {
    /**
     * sizeof(handoff_fallback_options), set by the INIT macro.
     */
    size_t size;
    /**
     * Failures within the window after which a backend is not tried: 1 to 4096.
     */
    size_t max_failures;
    /**
     * How long a failure counts, in milliseconds: 1 at least.
     */
    uint64_t window_ms;
    /**
     * Backends that failures are held for at once, 1 to 65536; beyond, the one that failed
     * longest ago is forgotten.
     */
    size_t max_backends;
} handoff_fallback_options;

/**
 * What a broker knows about a connection and its backend before it tries. Begin with
 * HANDOFF_INPUTS_INIT, which allows everything, and change what is otherwise.
 */
typedef struct handoff_inputs {
    /**
     * sizeof(handoff_inputs), set by the INIT macro.
     */
    size_t size;
    /**
     * Not 0: the client's protocol and connection can change hands.
     */
    uint32_t client_supported;
    /**
     * Not 0: the service is configured to hand over.
     */
    uint32_t policy_enabled;
    /**
     * Not 0: this process is short of descriptors.
     */
    uint32_t descriptor_pressure;
    /**
     * Not 0: the backend was not started by this broker, and is not to be used.
     */
    uint32_t adopted_backend;
} handoff_inputs;

/**
 * Whether to try a backend.
 */
typedef struct handoff_decision {
    /**
     * HANDOFF_REASON_NONE: offer the connection. Any other: serve the client another way, for
     * this reason.
     */
    handoff_reason reason;
    /**
     * In how many milliseconds trying again makes sense, rounded up, where time is what is
     * missing; -1 otherwise.
     */
    int64_t retry_after_ms;
} handoff_decision;

/**
 * A peer's credentials as they were when it connected, SO_PEERCRED of unix(7).
 */
typedef struct handoff_peer {
    /**
     * The process, for logs; 0 where the system does not tell. Not an identity: by now the number
     * may belong to another process.
     */
    int32_t pid;
    /**
     * The effective user.
     */
    uint32_t uid;
    /**
     * The effective group.
     */
    uint32_t gid;
} handoff_peer;

/**
 * Who may connect. Begin with HANDOFF_PEER_POLICY_INIT, which allows the user that this process
 * runs as, and root. With a user or a group in it: those users and the members of those groups,
 * and nobody else.
 */
typedef struct handoff_peer_policy {
    /**
     * sizeof(handoff_peer_policy), set by the INIT macro.
     */
    size_t size;
    /**
     * The users, by number; read during the call only.
     */
    const uint32_t *users;
    /**
     * How many there are.
     */
    size_t users_len;
    /**
     * The groups, by number; a peer's effective and supplementary groups are compared.
     */
    const uint32_t *groups;
    /**
     * How many there are.
     */
    size_t groups_len;
} handoff_peer_policy;

/**
 * A kind of Unix socket: HANDOFF_STREAM or HANDOFF_SEQPACKET.
 */
typedef uint32_t handoff_socket_kind;

/**
 * How a handoff socket is made. Begin with HANDOFF_LISTENER_OPTIONS_INIT and change what you want.
 */
typedef struct handoff_listener_options {
    /**
     * sizeof(handoff_listener_options), set by the INIT macro.
     */
    size_t size;
    /**
     * Permission bits of the socket's file, whatever the umask; connecting takes write
     * permission, unix(7). Abstract names have none: check who connects.
     */
    uint32_t mode;
    /**
     * Connections that may wait to be accepted, listen(2); less than 1 is 1, and the system may
     * allow fewer.
     */
    int32_t backlog;
    /**
     * HANDOFF_STREAM or HANDOFF_SEQPACKET.
     */
    handoff_socket_kind kind;
} handoff_listener_options;

/**
 * The limits of a broker. Begin with HANDOFF_BROKER_OPTIONS_INIT and change what you want. A value
 * outside its range is taken to the nearest end of it.
 */
typedef struct handoff_broker_options {
    /**
     * sizeof(handoff_broker_options), set by the INIT macro.
     */
    size_t size;
    /**
     * Offers in flight at once: 1 to 4096. The backend may allow fewer.
     */
    size_t window;
    /**
     * How long an offer may wait for its verdict, in milliseconds, unless it says otherwise: 1 at
     * least.
     */
    uint64_t timeout_ms;
    /**
     * Bytes of offers that may wait for room in the socket: 131072 at least.
     */
    size_t queue_bytes;
    /**
     * Failures within the window after which offers are refused: 1 to 4096.
     */
    size_t max_failures;
    /**
     * How long a failure counts, in milliseconds: 1 at least.
     */
    uint64_t failure_window_ms;
    /**
     * The shortest pause before connecting again, in milliseconds: 1 at least. It doubles with
     * each attempt that fails.
     */
    uint64_t reconnect_min_ms;
    /**
     * The longest.
     */
    uint64_t reconnect_max_ms;
} handoff_broker_options;

/**
 * A connection to hand over. Begin with HANDOFF_OFFER_INIT and set at least `fd`.
 */
typedef struct handoff_offer {
    /**
     * sizeof(handoff_offer), set by the INIT macro.
     */
    size_t size;
    /**
     * The client's connection, a socket. It stays yours: keep it open, and out of your event loop
     * (EPOLL_CTL_DEL), until the verdict.
     */
    int fd;
    /**
     * Not 0: more offers follow at once, so sending is left to the last of them or to
     * handoff_broker_flush().
     */
    uint32_t more;
    /**
     * Bytes already read from the client, which the backend reads first; copied. May be NULL if
     * there are none.
     */
    const uint8_t *preread;
    /**
     * How many there are.
     */
    size_t preread_len;
    /**
     * Anything for the backend; copied. May be NULL if there is none.
     */
    const uint8_t *metadata;
    /**
     * How many bytes it has.
     */
    size_t metadata_len;
    /**
     * The service that is meant, 255 bytes at most; copied. May be NULL.
     */
    const char *service;
    /**
     * What the connection is called in logs, 255 bytes at most; copied. May be NULL.
     */
    const char *correlation;
    /**
     * Comes back with the verdict; not looked at.
     */
    void *user_data;
    /**
     * How long it may wait for its verdict, in milliseconds; 0 for the broker's timeout.
     */
    uint64_t timeout_ms;
} handoff_offer;

/**
 * What a broker has done. Set `size` with HANDOFF_BROKER_STATISTICS_INIT before asking.
 */
typedef struct handoff_broker_statistics {
    /**
     * sizeof(handoff_broker_statistics), set by the INIT macro.
     */
    size_t size;
    /**
     * Offers that were taken.
     */
    uint64_t offered;
    /**
     * Offers that were refused at once.
     */
    uint64_t refused;
    /**
     * Offers that the backend adopted.
     */
    uint64_t adopted;
    /**
     * Offers that handoff_broker_cancel() took back.
     */
    uint64_t cancelled;
    /**
     * Channels that were set up, the first included.
     */
    uint64_t connects;
    /**
     * Offers without a verdict yet.
     */
    uint64_t in_flight;
    /**
     * Bytes that wait for room in the socket.
     */
    uint64_t queued_bytes;
    /**
     * Fallbacks, by HANDOFF_REASON_*.
     */
    uint64_t fallback[32];
} handoff_broker_statistics;

/**
 * The limits of a backend. Begin with HANDOFF_BACKEND_OPTIONS_INIT and change what you want. A
 * value outside its range is taken to the nearest end of it.
 */
typedef struct handoff_backend_options {
    /**
     * sizeof(handoff_backend_options), set by the INIT macro.
     */
    size_t size;
    /**
     * Permission bits of the socket's file, see handoff_listener_options.
     */
    uint32_t mode;
    /**
     * Brokers that may wait to be accepted, see handoff_listener_options.
     */
    int32_t backlog;
    /**
     * Who may connect, or NULL for the default; copied.
     */
    const struct handoff_peer_policy *policy;
    /**
     * Channels at once: 1 to 65535.
     */
    size_t max_channels;
    /**
     * Tokens that each channel has to spend, so offers that it may have in flight: 1 to 4096.
     */
    size_t credit;
    /**
     * Bytes of preread, metadata and names in one offer: 131000 at most.
     */
    size_t max_offer_bytes;
    /**
     * Bytes of arrivals that are held at once; what comes beyond is rejected.
     */
    size_t max_held_bytes;
    /**
     * Which sockets to take: HANDOFF_KIND_*, added up.
     */
    uint32_t kinds;
} handoff_backend_options;

/**
 * An offer as the backend sees it: its token is verified, and it is adopted only if `fd` says so.
 * The bytes are the library's. They can be read until the arrival is rejected or, once it is
 * adopted, until the next handoff_backend_dispatch() or handoff_backend_accept().
 */
typedef struct handoff_arrival {
    /**
     * What handoff_backend_adopt() and handoff_backend_reject() know it by.
     */
    uint64_t id;
    /**
     * The connection, which is this process's to serve and to close(2); -1 if it is not adopted.
     */
    int fd;
    /**
     * The broker, as it was when it connected.
     */
    struct handoff_peer broker;
    /**
     * Bytes that the broker has read from the client: they come before all that is read from it.
     */
    const uint8_t *preread;
    /**
     * How many there are.
     */
    size_t preread_len;
    /**
     * Anything that the broker wanted to say.
     */
    const uint8_t *metadata;
    /**
     * How many bytes that is.
     */
    size_t metadata_len;
    /**
     * The service that is meant, "" if the broker named none. Ends in NUL.
     */
    const char *service;
    /**
     * What the connection is called in logs, "" if it has no name. Ends in NUL.
     */
    const char *correlation;
} handoff_arrival;

/**
 * What a backend has done. Set `size` with HANDOFF_BACKEND_STATISTICS_INIT before asking.
 */
typedef struct handoff_backend_statistics {
    /**
     * sizeof(handoff_backend_statistics), set by the INIT macro.
     */
    size_t size;
    /**
     * Offers that arrived with their token.
     */
    uint64_t arrived;
    /**
     * Arrivals adopted.
     */
    uint64_t adopted;
    /**
     * Arrivals rejected, by the caller or because they are not allowed.
     */
    uint64_t rejected;
    /**
     * Arrivals that the broker took back first.
     */
    uint64_t revoked;
    /**
     * Brokers that were accepted.
     */
    uint64_t accepted;
    /**
     * Connections that were closed: not allowed, or too many.
     */
    uint64_t refused;
    /**
     * Channels that were ended because of what the broker sent.
     */
    uint64_t broken;
    /**
     * Channels now.
     */
    uint64_t channels;
    /**
     * Arrivals held now.
     */
    uint64_t held;
    /**
     * Their bytes.
     */
    uint64_t held_bytes;
} handoff_backend_statistics;

/**
 * Done.
 */
#define HANDOFF_OK 0

/**
 * An argument is NULL, misaligned, out of range, a path too long for a Unix socket, or a
 * descriptor that is not open or not of the right kind. Mend the call.
 */
#define HANDOFF_ERR_INVALID_ARGUMENT 1

/**
 * This system cannot do that. Serve the client another way, and do not try again.
 */
#define HANDOFF_ERR_UNSUPPORTED 2

/**
 * The permissions of the socket's file or directory, or a security module, refuse. Look at the
 * socket's mode and owner.
 */
#define HANDOFF_ERR_PERMISSION_DENIED 3

/**
 * Nobody listens on the handoff socket, or the other end has closed. Usual while a backend
 * restarts; serve the client another way.
 */
#define HANDOFF_ERR_BACKEND_UNAVAILABLE 4

/**
 * The call would have to wait: the socket's buffer or the listener's backlog is full, or nothing
 * has arrived within the time given. Nothing was sent or taken; try again later.
 */
#define HANDOFF_ERR_WOULD_BLOCK 5

/**
 * A limit on descriptors: this process's or the system's (EMFILE, ENFILE), or this user's in
 * flight over Unix sockets (ETOOMANYREFS). Raise RLIMIT_NOFILE or offer less at once.
 */
#define HANDOFF_ERR_DESCRIPTOR_PRESSURE 6

/**
 * sendmsg(2) failed in a way that has no status of its own; errno says how. Nothing was sent.
 */
#define HANDOFF_ERR_SEND_FAILED 7

/**
 * The system took a part of the message, and the descriptor with it. Close the socket; the
 * backend refuses what it got.
 */
#define HANDOFF_ERR_SHORT_WRITE 8

/**
 * No acknowledgement came by the deadline. Serve the client another way and close the socket.
 */
#define HANDOFF_ERR_ACK_TIMEOUT 9

/**
 * The acknowledgement that came is for another token. Close the socket.
 */
#define HANDOFF_ERR_ACK_MISMATCH 10

/**
 * What came is not an acknowledgement. Close the socket.
 */
#define HANDOFF_ERR_ACK_MALFORMED 11

/**
 * Receiving failed in a way that has no status of its own; errno says how.
 */
#define HANDOFF_ERR_RECEIVE_FAILED 12

/**
 * The other end closed the connection, or takes no acknowledgements any more. Close the socket.
 */
#define HANDOFF_ERR_END_OF_STREAM 13

/**
 * The message brought no descriptor. Close the socket.
 */
#define HANDOFF_ERR_NO_DESCRIPTOR 14

/**
 * The message brought more than one descriptor; all are closed. Close the socket.
 */
#define HANDOFF_ERR_SURPLUS_DESCRIPTORS 15

/**
 * The kernel could not install the descriptors that were sent, because this process is at its
 * RLIMIT_NOFILE or a security module refused; what was installed is closed. Close the socket.
 */
#define HANDOFF_ERR_CONTROL_TRUNCATED 16

/**
 * The message is shorter or longer than a token; its descriptor is closed. Close the socket.
 */
#define HANDOFF_ERR_WRONG_LENGTH 17

/**
 * The token presented is not the one expected; neither was consumed.
 */
#define HANDOFF_ERR_TOKEN_MISMATCH 18

/**
 * The token's lifetime is over; it has left the store.
 */
#define HANDOFF_ERR_TOKEN_EXPIRED 19

/**
 * The token is not pending: never known here, or consumed, revoked or expired before. A replay
 * looks like this.
 */
#define HANDOFF_ERR_TOKEN_NOT_PENDING 20

/**
 * The token is pending already.
 */
#define HANDOFF_ERR_TOKEN_ALREADY_PENDING 21

/**
 * Every random token generated was pending already. The system's random source is broken.
 */
#define HANDOFF_ERR_TOKEN_COLLISION 22

/**
 * As many are held as may be held. Try again when some have gone, or make room for more.
 */
#define HANDOFF_ERR_FULL 23

/**
 * The system has no randomness to give; errno says why.
 */
#define HANDOFF_ERR_RANDOM 24

/**
 * The system does not tell who the peer is. Do not trust it.
 */
#define HANDOFF_ERR_PEER_UNKNOWN 25

/**
 * The policy does not allow this peer. Close the connection.
 */
#define HANDOFF_ERR_PEER_NOT_ALLOWED 26

/**
 * Somebody listens at that path. It is left alone.
 */
#define HANDOFF_ERR_ADDRESS_IN_USE 27

/**
 * Something that is not a socket is at that path. It is left alone.
 */
#define HANDOFF_ERR_NOT_A_SOCKET 28

/**
 * The handoff socket could not be made, in a way that has no status of its own; errno says how.
 */
#define HANDOFF_ERR_LISTEN_FAILED 29

/**
 * A fault in the library, which stays usable. Please report it with handoff_last_error().
 */
#define HANDOFF_ERR_INTERNAL 30

/**
 * There is nothing to take, now or any more. Not an error: errno and handoff_last_error() are
 * left as they were.
 */
#define HANDOFF_NOTHING 31

/**
 * The backend failed too often of late and is not tried for a while. Serve the client another way.
 */
#define HANDOFF_ERR_RATE_LIMITED 32

/**
 * There are more bytes than the backend, or the format, takes.
 */
#define HANDOFF_ERR_TOO_LARGE 33

/**
 * The handle is used in another process than the one that used it first. Make one after fork().
 */
#define HANDOFF_ERR_WRONG_PROCESS 34

/**
 * The handle is closed. Make a new one.
 */
#define HANDOFF_ERR_CLOSED 35

/**
 * The broker has taken the connection back. Forget the arrival; its descriptor is closed.
 */
#define HANDOFF_ERR_REVOKED 36

/**
 * The offer cannot be taken back any more. Its verdict has come, or will.
 */
#define HANDOFF_ERR_TOO_LATE 37

/**
 * The operating system refused what the handle needs; errno says what.
 */
#define HANDOFF_ERR_SYSTEM 38

/**
 * The backend owns it. Close your copy; never shutdown(2) it, which would end the backend's too.
 */
#define HANDOFF_ADOPTED 1

/**
 * It is still yours. Serve the client another way.
 */
#define HANDOFF_FALLBACK 2

/**
 * No reason: it was handed over, or may be.
 */
#define HANDOFF_REASON_NONE 0

/**
 * The client's protocol or connection cannot change hands.
 */
#define HANDOFF_REASON_CLIENT_UNSUPPORTED 1

/**
 * The service is configured not to hand over.
 */
#define HANDOFF_REASON_POLICY_DISABLED 2

/**
 * One side is short of descriptors.
 */
#define HANDOFF_REASON_DESCRIPTOR_PRESSURE 3

/**
 * The backend failed too often of late.
 */
#define HANDOFF_REASON_RATE_LIMITED 4

/**
 * The handoff socket or the peer's credentials refuse.
 */
#define HANDOFF_REASON_PERMISSION_DENIED 5

/**
 * A token or a message was not what it should be.
 */
#define HANDOFF_REASON_INTEGRITY_MISMATCH 6

/**
 * No verdict, or in the raw layer no acknowledgement, came by the deadline.
 */
#define HANDOFF_REASON_ACK_TIMEOUT 7

/**
 * The backend was not started by this broker.
 */
#define HANDOFF_REASON_ADOPTED_BACKEND 8

/**
 * Nobody listens on the handoff socket, or the backend went away before it answered.
 */
#define HANDOFF_REASON_BACKEND_UNAVAILABLE 9

/**
 * The backend's queue is full.
 */
#define HANDOFF_REASON_BACKEND_BUSY 10

/**
 * The backend said no.
 */
#define HANDOFF_REASON_REJECTED 11

/**
 * This system cannot hand connections over.
 */
#define HANDOFF_REASON_UNSUPPORTED_PLATFORM 12

/**
 * The broker's handle was closed.
 */
#define HANDOFF_REASON_BROKER_CLOSED 13

/**
 * With HANDOFF_ADOPTED: the backend had adopted the connection, but went away before it said so.
 */
#define HANDOFF_REASON_BACKEND_DIED 14

/**
 * It did not fail, or in a way that is not for a fallback to hide.
 */
#define HANDOFF_FAILURE_NONE 0

/**
 * The handoff socket or the peer's credentials refuse.
 */
#define HANDOFF_FAILURE_PERMISSION_DENIED 1

/**
 * A token or a message was not what it should be.
 */
#define HANDOFF_FAILURE_INTEGRITY_MISMATCH 2

/**
 * No acknowledgement came by the deadline.
 */
#define HANDOFF_FAILURE_ACK_TIMEOUT 3

/**
 * Nobody listens on the handoff socket, or the backend went away before it answered.
 */
#define HANDOFF_FAILURE_BACKEND_UNAVAILABLE 4

/**
 * The backend's queue is full.
 */
#define HANDOFF_FAILURE_BACKEND_BUSY 5

/**
 * One side is short of descriptors.
 */
#define HANDOFF_FAILURE_DESCRIPTOR_PRESSURE 6

/**
 * This system cannot hand connections over.
 */
#define HANDOFF_FAILURE_UNSUPPORTED_PLATFORM 7

/**
 * A byte stream, SOCK_STREAM.
 */
#define HANDOFF_STREAM 1

/**
 * Sequenced packets, SOCK_SEQPACKET: a message cannot be cut or run into the next.
 */
#define HANDOFF_SEQPACKET 2

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Names a status: "HANDOFF_OK", "HANDOFF_ERR_WOULD_BLOCK" and so on.
 *
 * @param status  any number
 * @return a constant string, never NULL; "HANDOFF_ERR_UNKNOWN" for other numbers.
 *
 * Any thread may call it, also after fork() and in a signal handler.
 */
const char *handoff_status_name(handoff_status status);

/**
 * Says what a status means, in English, in general: handoff_last_error() has the particulars.
 *
 * @param status  any number
 * @return a constant string, never NULL; "unknown status" for other numbers.
 *
 * Any thread may call it, also after fork() and in a signal handler.
 */
const char *handoff_status_message(handoff_status status);

/**
 * Says what went wrong in this thread's last call that returned an error, in English, with the
 * socket and the descriptor that were used. Never shows a token.
 *
 * @return a string, never NULL, empty if no call has failed yet. It is the library's and changes
 *         with this thread's next error; it is gone when the thread ends.
 *
 * Each thread has its own; a child of fork() begins with a copy.
 */
const char *handoff_last_error(void);

/**
 * Says how an attempt that ended with this status failed, for the fallback policy.
 *
 * @param status  what a call of an attempt returned, or the cause in a verdict
 * @return one of HANDOFF_FAILURE_*; HANDOFF_FAILURE_NONE for HANDOFF_OK, HANDOFF_NOTHING,
 *         HANDOFF_ERR_INVALID_ARGUMENT, HANDOFF_ERR_INTERNAL and unknown numbers.
 *
 * Any thread may call it, also after fork() and in a signal handler.
 */
handoff_failure handoff_status_failure(handoff_status status);

/**
 * Says whether an attempt that ended with this status may be hidden behind a fallback. Misuse of
 * the library and its own faults may not: they would stay for ever.
 *
 * @param status  what a call of an attempt returned
 * @return true if the client should be served another way and nobody need be told; false for
 *         HANDOFF_OK, HANDOFF_NOTHING, HANDOFF_ERR_INVALID_ARGUMENT, HANDOFF_ERR_INTERNAL and
 *         unknown numbers.
 *
 * Any thread may call it, also after fork() and in a signal handler.
 */
bool handoff_status_is_fallback_safe(handoff_status status);

/**
 * Says whether the descriptor may have reached the backend when handoff_send() or
 * handoff_send_path() ended with this status, or an attempt with this cause. What was sent before
 * stays sent, whatever a later call returns.
 *
 * @param status  what the call returned, or the cause in a verdict
 * @return false if the descriptor was certainly not sent; true otherwise, and for unknown numbers.
 *
 * Any thread may call it, also after fork() and in a signal handler.
 */
bool handoff_status_may_have_reached_backend(handoff_status status);

/**
 * The version of the library that runs, which may be another than that of the header:
 * HANDOFF_VERSION.
 *
 * @return a constant string such as "0.1.0".
 *
 * Any thread may call it, also after fork() and in a signal handler.
 */
const char *handoff_version(void);

/**
 * The time that every call with `_at` in its name takes.
 *
 * @return nanoseconds of CLOCK_MONOTONIC, clock_gettime(2).
 *
 * Any thread may call it, also after fork().
 */
uint64_t handoff_now(void);

/**
 * Makes a token from the operating system's random source, getentropy(3).
 *
 * @param[out] token  where the token goes
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `token` is NULL; HANDOFF_ERR_RANDOM if the
 *         system has no randomness to give.
 *
 * Any thread may call it, also after fork().
 */
handoff_status handoff_token_generate(struct handoff_token *token);

/**
 * Makes a token of bytes that were learned elsewhere.
 *
 * @param bytes       the bytes; copied
 * @param len         how many there are; only HANDOFF_TOKEN_LEN will do
 * @param[out] token  where the token goes
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or `len` is another.
 *
 * Any thread may call it, also after fork() and in a signal handler.
 */
handoff_status handoff_token_from_bytes(const uint8_t *bytes,
                                        size_t len,
                                        struct handoff_token *token);

/**
 * Compares two tokens in a time that does not depend on their bytes.
 *
 * @return true if both are there and equal; false otherwise, and if either is NULL.
 *
 * Any thread may call it, also after fork() and in a signal handler.
 */
bool handoff_token_equal(const struct handoff_token *a, const struct handoff_token *b);

/**
 * Makes an empty token store.
 *
 * @param options     its limits, or NULL for the defaults; read during the call only
 * @param[out] store  the new store; free it with handoff_token_store_free()
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `store` is NULL or `options->size` is wrong.
 *
 * All memory that the store needs is allocated here.
 */
handoff_status handoff_token_store_new(const struct handoff_token_store_options *options,
                                       struct handoff_token_store **store);

/**
 * Unmakes a token store. What else was made with it keeps what it needs of it.
 *
 * @param store  the store, or NULL, which does nothing; no thread may be using it
 */
void handoff_token_store_free(struct handoff_token_store *store);

/**
 * Makes a random token and holds it until it is consumed, revoked or expired.
 *
 * @param store       the store
 * @param[out] token  the token
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL; HANDOFF_ERR_FULL if as
 *         many tokens are pending as the store may hold; HANDOFF_ERR_RANDOM;
 *         HANDOFF_ERR_TOKEN_COLLISION.
 */
handoff_status handoff_token_store_issue(struct handoff_token_store *store,
                                         struct handoff_token *token);

/**
 * handoff_token_store_issue() at a given time.
 *
 * @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
 */
handoff_status handoff_token_store_issue_at(struct handoff_token_store *store,
                                            uint64_t now_ns,
                                            struct handoff_token *token);

/**
 * Holds a token that was learned elsewhere until it is consumed, revoked or expired.
 *
 * @param store  the store
 * @param token  the token; copied
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
 *         HANDOFF_ERR_TOKEN_ALREADY_PENDING; HANDOFF_ERR_FULL.
 */
handoff_status handoff_token_store_insert(struct handoff_token_store *store,
                                          const struct handoff_token *token);

/**
 * handoff_token_store_insert() at a given time.
 *
 * @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
 */
handoff_status handoff_token_store_insert_at(struct handoff_token_store *store,
                                             uint64_t now_ns,
                                             const struct handoff_token *token);

/**
 * Accepts `presented` if it is `expected` and pending; then it has left the store.
 *
 * @param store      the store
 * @param expected   the token that belongs to what is being handed over
 * @param presented  the token that came with it
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
 *         HANDOFF_ERR_TOKEN_MISMATCH, which consumes neither; HANDOFF_ERR_TOKEN_EXPIRED;
 *         HANDOFF_ERR_TOKEN_NOT_PENDING.
 */
handoff_status handoff_token_store_consume(struct handoff_token_store *store,
                                           const struct handoff_token *expected,
                                           const struct handoff_token *presented);

/**
 * handoff_token_store_consume() at a given time.
 *
 * @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
 */
handoff_status handoff_token_store_consume_at(struct handoff_token_store *store,
                                              uint64_t now_ns,
                                              const struct handoff_token *expected,
                                              const struct handoff_token *presented);

/**
 * Accepts `presented` if it is pending, whichever token it is; then it has left the store.
 *
 * @param store      the store
 * @param presented  the token that came
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
 *         HANDOFF_ERR_TOKEN_EXPIRED; HANDOFF_ERR_TOKEN_NOT_PENDING.
 */
handoff_status handoff_token_store_redeem(struct handoff_token_store *store,
                                          const struct handoff_token *presented);

/**
 * handoff_token_store_redeem() at a given time.
 *
 * @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
 */
handoff_status handoff_token_store_redeem_at(struct handoff_token_store *store,
                                             uint64_t now_ns,
                                             const struct handoff_token *presented);

/**
 * Ends a token's life unused.
 *
 * @param store  the store
 * @param token  the token
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
 *         HANDOFF_ERR_TOKEN_NOT_PENDING.
 */
handoff_status handoff_token_store_revoke(struct handoff_token_store *store,
                                          const struct handoff_token *token);

/**
 * Removes every expired token. A full store does this by itself.
 *
 * @param store         the store
 * @param[out] removed  how many there were; may be NULL
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `store` is NULL.
 */
handoff_status handoff_token_store_prune(struct handoff_token_store *store, size_t *removed);

/**
 * handoff_token_store_prune() at a given time.
 *
 * @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
 */
handoff_status handoff_token_store_prune_at(struct handoff_token_store *store,
                                            uint64_t now_ns,
                                            size_t *removed);

/**
 * Counts the tokens in a store, expired ones that were not pruned included.
 *
 * @param store  the store
 * @return the count; 0 if `store` is NULL.
 */
size_t handoff_token_store_length(const struct handoff_token_store *store);

/**
 * Connects to a handoff socket, stream or sequenced-packet, whichever listens there.
 *
 * @param path         the socket's path, at most 107 bytes; "@" begins an abstract name on Linux
 * @param[out] socket  the connection, non-blocking and close-on-exec; close(2) it
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_BACKEND_UNAVAILABLE (also where
 *         there is no such file, or one that is no socket); HANDOFF_ERR_PERMISSION_DENIED;
 *         HANDOFF_ERR_WOULD_BLOCK if the backlog is full; HANDOFF_ERR_DESCRIPTOR_PRESSURE;
 *         HANDOFF_ERR_UNSUPPORTED for an abstract name elsewhere than on Linux.
 *
 * Never blocks. Any thread may call it, also after fork().
 */
handoff_status handoff_connect(const char *path, int *socket);

/**
 * Sends a descriptor and its token over a connected socket in one message, or not at all.
 *
 * The message is the 16 bytes of the token with one descriptor attached (SCM_RIGHTS, unix(7)).
 *
 * @param socket  a connected Unix socket, stream or sequenced-packet, blocking or not; kept. Over
 *                any other kind of socket the system sends the token without the descriptor.
 * @param fd      the descriptor to send, another than `socket`; it stays the caller's, open and
 *                unchanged, and may be closed as soon as this returns
 * @param token   its token
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_WOULD_BLOCK if the socket's
 *         buffer is full; HANDOFF_ERR_BACKEND_UNAVAILABLE if the other end is closed;
 *         HANDOFF_ERR_DESCRIPTOR_PRESSURE if this user has too many descriptors in flight;
 *         HANDOFF_ERR_PERMISSION_DENIED; HANDOFF_ERR_SEND_FAILED. In all of these nothing was
 *         sent. HANDOFF_ERR_SHORT_WRITE: the descriptor was sent, its token only in part.
 *
 * Never blocks and never raises SIGPIPE. Different threads may use different sockets at once.
 */
handoff_status handoff_send(int socket, int fd, const struct handoff_token *token);

/**
 * Backend: sends a token alone, which allows the broker one message on this connection.
 *
 * A token that a backend issues from its store and sends so proves, when it comes back with a
 * descriptor, that this backend admitted that message.
 *
 * @param socket  a connected Unix socket, blocking or not; kept
 * @param token   a token that the store holds
 * @return HANDOFF_OK; HANDOFF_ERR_END_OF_STREAM if the broker has closed;
 *         HANDOFF_ERR_WOULD_BLOCK if it does not read what it is sent;
 *         HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_RECEIVE_FAILED.
 *
 * Never blocks and never raises SIGPIPE. Different threads may use different sockets at once.
 */
handoff_status handoff_token_send(int socket, const struct handoff_token *token);

/**
 * Broker: receives a token that the backend sent with handoff_token_send().
 *
 * @param socket      a connected Unix socket, blocking or not; kept
 * @param timeout_ms  how long to wait, in milliseconds; 0 not at all, negative for ever
 * @param[out] token  the token
 * @return HANDOFF_OK; HANDOFF_ERR_WOULD_BLOCK if none came in that time;
 *         HANDOFF_ERR_END_OF_STREAM; HANDOFF_ERR_WRONG_LENGTH; HANDOFF_ERR_INVALID_ARGUMENT;
 *         HANDOFF_ERR_RECEIVE_FAILED. After one other than HANDOFF_ERR_WOULD_BLOCK, close the
 *         socket.
 *
 * Different threads may use different sockets at once.
 */
handoff_status handoff_token_receive(int socket, int timeout_ms, struct handoff_token *token);

/**
 * handoff_connect() and handoff_send() in one call.
 *
 * @param path         see handoff_connect()
 * @param fd           see handoff_send()
 * @param token        see handoff_send()
 * @param[out] socket  the connection, on which the acknowledgement will come; non-blocking and
 *                     close-on-exec; close(2) it
 * @return as handoff_connect() and handoff_send(); after an error no connection stays open.
 */
handoff_status handoff_send_path(const char *path,
                                 int fd,
                                 const struct handoff_token *token,
                                 int *socket);

/**
 * Receives one message: a token, which is not verified, and a descriptor.
 *
 * @param socket      a connected Unix socket, blocking or not; kept
 * @param timeout_ms  how long to wait, in milliseconds; 0 not at all, negative for ever
 * @param[out] token  the token
 * @param[out] fd     the descriptor, close-on-exec; the caller's to close(2)
 * @return HANDOFF_OK; HANDOFF_ERR_WOULD_BLOCK if nothing came in that time;
 *         HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_END_OF_STREAM; HANDOFF_ERR_NO_DESCRIPTOR;
 *         HANDOFF_ERR_SURPLUS_DESCRIPTORS; HANDOFF_ERR_CONTROL_TRUNCATED;
 *         HANDOFF_ERR_WRONG_LENGTH; HANDOFF_ERR_RECEIVE_FAILED.
 *
 * After any error no descriptor that came stays open. After one other than
 * HANDOFF_ERR_WOULD_BLOCK, close the socket. Different threads may use different sockets at once.
 */
handoff_status handoff_receive(int socket, int timeout_ms, struct handoff_token *token, int *fd);

/**
 * Receives one message and gives its descriptor only if its token is pending in a store. The
 * token is consumed by that. What else comes is closed.
 *
 * @param socket      a connected Unix socket, blocking or not; kept
 * @param timeout_ms  how long to wait, in milliseconds; 0 not at all, negative for ever
 * @param store       the store that must hold the token
 * @param expected    the one token that will do, or NULL for any in the store
 * @param[out] token  the token that came, for the acknowledgement; may be NULL
 * @param[out] fd     the descriptor, close-on-exec; the caller's to close(2)
 * @return HANDOFF_OK; what handoff_receive() returns; HANDOFF_ERR_TOKEN_MISMATCH if it is not
 *         `expected`; HANDOFF_ERR_TOKEN_EXPIRED; HANDOFF_ERR_TOKEN_NOT_PENDING if the store never
 *         held it or it was used before.
 *
 * After any error no descriptor that came stays open. After one other than
 * HANDOFF_ERR_WOULD_BLOCK, close the socket. Different threads may use different sockets at once,
 * with the same store.
 */
handoff_status handoff_receive_verified(int socket,
                                        int timeout_ms,
                                        struct handoff_token_store *store,
                                        const struct handoff_token *expected,
                                        struct handoff_token *token,
                                        int *fd);

/**
 * Backend: tells the broker that this process now owns and serves the connection. Only after
 * HANDOFF_OK may it write to the client.
 *
 * @param socket  the connection that the message came on; kept
 * @param token   the message's token
 * @return HANDOFF_OK: the connection is this process's. After any error it is not: close the
 *         descriptor and serve nothing. HANDOFF_ERR_END_OF_STREAM if the broker has given up or
 *         gone; HANDOFF_ERR_WOULD_BLOCK if it does not read its acknowledgements;
 *         HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_RECEIVE_FAILED.
 *
 * Never blocks and never raises SIGPIPE. Different threads may use different sockets at once.
 */
handoff_status handoff_ack_accept(int socket, const struct handoff_token *token);

/**
 * Backend: tells the broker that this process does not serve the connection. Close the
 * descriptor before, so that the broker's is the only one left.
 *
 * @param socket  the connection that the message came on; kept
 * @param token   the message's token
 * @param reason  one of HANDOFF_REASON_*, HANDOFF_REASON_REJECTED if no other fits
 * @return as handoff_ack_accept(); also HANDOFF_ERR_INVALID_ARGUMENT if `reason` is none of them.
 *
 * Never blocks and never raises SIGPIPE. Different threads may use different sockets at once.
 */
handoff_status handoff_ack_reject(int socket,
                                  const struct handoff_token *token,
                                  handoff_reason reason);

/**
 * Broker: takes the next acknowledgement that has arrived on a connection.
 *
 * @param socket    the connection that messages were sent on; kept
 * @param[out] ack  the acknowledgement
 * @return HANDOFF_OK; HANDOFF_ERR_WOULD_BLOCK if none has arrived; HANDOFF_ERR_END_OF_STREAM if
 *         none will; HANDOFF_ERR_ACK_MALFORMED; HANDOFF_ERR_INVALID_ARGUMENT;
 *         HANDOFF_ERR_RECEIVE_FAILED.
 *
 * Never blocks. Different threads may use different sockets at once.
 */
handoff_status handoff_ack_receive(int socket, struct handoff_ack *ack);

/**
 * Broker: gives up every message of a connection that is not acknowledged yet.
 *
 * From now on handoff_ack_accept() fails in the backend. What it had sent before can still be
 * taken with handoff_ack_receive(), until that says HANDOFF_ERR_END_OF_STREAM or
 * HANDOFF_ERR_WOULD_BLOCK; then every other message is a fallback for certain. This is so on
 * Linux; elsewhere the call does nothing, and a fallback may have been adopted.
 *
 * @param socket  the connection that messages were sent on; kept, of no further use for sending
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_RECEIVE_FAILED.
 */
handoff_status handoff_ack_close(int socket);

/**
 * Broker: waits for the acknowledgement of one message, and gives it up with
 * handoff_ack_close() when the time is up or something else arrives.
 *
 * @param socket      the connection that the message was sent on; kept. After any error close(2)
 *                    it.
 * @param token       the message's token
 * @param timeout_ms  how long to wait, in milliseconds; negative for ever
 * @param[out] ack    the acknowledgement: adopted, or rejected with a reason
 * @return HANDOFF_OK; HANDOFF_ERR_ACK_TIMEOUT; HANDOFF_ERR_END_OF_STREAM if the backend closed
 *         the connection; HANDOFF_ERR_ACK_MISMATCH; HANDOFF_ERR_ACK_MALFORMED;
 *         HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_RECEIVE_FAILED.
 *
 * A signal does not end the wait. Different threads may use different sockets at once.
 */
handoff_status handoff_ack_wait(int socket,
                                const struct handoff_token *token,
                                int timeout_ms,
                                struct handoff_ack *ack);

/**
 * Makes an empty registry of pending acknowledgements.
 *
 * @param store         the store of the tokens, which may be freed before the registry
 * @param options       its limits, or NULL for the defaults; read during the call only
 * @param[out] pending  the new registry; free it with handoff_pending_free()
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `store` or `pending` is NULL or
 *         `options->size` is wrong.
 *
 * All memory that the registry needs is allocated here.
 */
handoff_status handoff_pending_new(struct handoff_token_store *store,
                                   const struct handoff_pending_options *options,
                                   struct handoff_pending **pending);

/**
 * Unmakes a registry. What `user_data` points to in entries that are still there is the caller's.
 *
 * @param pending  the registry, or NULL, which does nothing; no thread may be using it
 */
void handoff_pending_free(struct handoff_pending *pending);

/**
 * Begins to wait for an acknowledgement; to be called before the message is sent.
 *
 * @param pending    the registry
 * @param token      the message's token
 * @param user_data  anything; given back when the entry leaves, and not looked at
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `pending` or `token` is NULL;
 *         HANDOFF_ERR_TOKEN_ALREADY_PENDING; HANDOFF_ERR_FULL.
 */
handoff_status handoff_pending_register(struct handoff_pending *pending,
                                        const struct handoff_token *token,
                                        void *user_data);

/**
 * handoff_pending_register() at a given time.
 *
 * @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
 */
handoff_status handoff_pending_register_at(struct handoff_pending *pending,
                                           uint64_t now_ns,
                                           const struct handoff_token *token,
                                           void *user_data);

/**
 * Takes the entry of an acknowledgement that has come.
 *
 * @param pending         the registry
 * @param token           the acknowledgement's token
 * @param[out] user_data  what was registered with it; may be NULL
 * @return HANDOFF_OK: the entry has left; HANDOFF_ERR_ACK_TIMEOUT if its time is over, then it
 *         stays for handoff_pending_expire(); HANDOFF_ERR_TOKEN_NOT_PENDING if there is none, as
 *         for a second acknowledgement; HANDOFF_ERR_INVALID_ARGUMENT if `pending` or `token` is
 *         NULL.
 */
handoff_status handoff_pending_acknowledge(struct handoff_pending *pending,
                                           const struct handoff_token *token,
                                           void **user_data);

/**
 * handoff_pending_acknowledge() at a given time.
 *
 * @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
 */
handoff_status handoff_pending_acknowledge_at(struct handoff_pending *pending,
                                              uint64_t now_ns,
                                              const struct handoff_token *token,
                                              void **user_data);

/**
 * Takes the entry of a message that is given up.
 *
 * @param pending         the registry
 * @param token           the message's token
 * @param[out] user_data  what was registered with it; may be NULL
 * @return HANDOFF_OK: the entry has left; HANDOFF_ERR_TOKEN_NOT_PENDING if there is none;
 *         HANDOFF_ERR_INVALID_ARGUMENT if `pending` or `token` is NULL.
 */
handoff_status handoff_pending_abandon(struct handoff_pending *pending,
                                       const struct handoff_token *token,
                                       void **user_data);

/**
 * Takes one entry whose time is over. Call it until it says HANDOFF_NOTHING. Each call looks at
 * every entry.
 *
 * @param pending         the registry
 * @param[out] token      the message's token; may be NULL
 * @param[out] user_data  what was registered with it; may be NULL
 * @return HANDOFF_OK: the entry has left; HANDOFF_NOTHING; HANDOFF_ERR_INVALID_ARGUMENT if
 *         `pending` is NULL.
 */
handoff_status handoff_pending_expire(struct handoff_pending *pending,
                                      struct handoff_token *token,
                                      void **user_data);

/**
 * handoff_pending_expire() at a given time.
 *
 * @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
 */
handoff_status handoff_pending_expire_at(struct handoff_pending *pending,
                                         uint64_t now_ns,
                                         struct handoff_token *token,
                                         void **user_data);

/**
 * Tells when the next entry expires, for a timer. Looks at every entry.
 *
 * @param pending           the registry
 * @param[out] deadline_ns  the time, on the clock of handoff_now()
 * @return HANDOFF_OK; HANDOFF_NOTHING if there is no entry; HANDOFF_ERR_INVALID_ARGUMENT if a
 *         pointer is NULL.
 */
handoff_status handoff_pending_next_deadline(const struct handoff_pending *pending,
                                             uint64_t *deadline_ns);

/**
 * Counts the entries of a registry.
 *
 * @param pending  the registry
 * @return the count; 0 if `pending` is NULL.
 */
size_t handoff_pending_length(const struct handoff_pending *pending);

/**
 * Hands a connection over a connected socket and waits for the backend's answer.
 *
 * @param socket        a connected Unix socket, blocking or not; kept. After an adoption and after
 *                      a rejection (a fallback whose cause is HANDOFF_OK) it is good for the next
 *                      attempt; otherwise close(2) it.
 * @param fd            the client's connection; it stays the caller's, open and unchanged
 * @param token         a token that the backend's store holds
 * @param timeout_ms    how long to wait for the answer, in milliseconds; negative for ever
 * @param[out] verdict  whose the connection is now
 * @return HANDOFF_OK whenever there is a verdict. If its `cause` is an error, errno and
 *         handoff_last_error() tell of that. HANDOFF_ERR_INVALID_ARGUMENT if the call cannot be
 *         right: a NULL, a descriptor that is not open; nothing was sent then.
 *
 * Never raises SIGPIPE. Different threads may use different sockets at once.
 *
 * On Linux the verdict is certain even at the deadline: the connection is closed for further
 * acknowledgements before the broker looks for the last time, so handoff_ack_accept() fails in
 * the backend whenever this returns a fallback, and the backend does not serve.
 */
handoff_status handoff_attempt(int socket,
                               int fd,
                               const struct handoff_token *token,
                               int timeout_ms,
                               struct handoff_verdict *verdict);

/**
 * handoff_attempt() over a connection of its own to a handoff socket.
 *
 * @param path          see handoff_connect()
 * @param fd            see handoff_attempt()
 * @param token         see handoff_attempt()
 * @param timeout_ms    see handoff_attempt(); connecting never waits
 * @param[out] verdict  see handoff_attempt()
 * @return as handoff_attempt(); also HANDOFF_ERR_INVALID_ARGUMENT for a path that cannot be a
 *         socket's.
 */
handoff_status handoff_attempt_path(const char *path,
                                    int fd,
                                    const struct handoff_token *token,
                                    int timeout_ms,
                                    struct handoff_verdict *verdict);

/**
 * Names a reason in lower case, for logs: "acknowledgement timeout".
 *
 * @param reason  any number
 * @return a constant string, never NULL; "unknown" for other numbers.
 *
 * Any thread may call it, also after fork() and in a signal handler.
 */
const char *handoff_reason_name(handoff_reason reason);

/**
 * Gives the reason for a fallback after this failure.
 *
 * @param failure  one of HANDOFF_FAILURE_*
 * @return one of HANDOFF_REASON_*; HANDOFF_REASON_NONE for HANDOFF_FAILURE_NONE and unknown numbers.
 *
 * Any thread may call it, also after fork() and in a signal handler.
 */
handoff_reason handoff_failure_reason(handoff_failure failure);

/**
 * Makes a fallback state without failures.
 *
 * @param options        its limits, or NULL for the defaults; read during the call only
 * @param[out] fallback  the new state; free it with handoff_fallback_free()
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `fallback` is NULL or `options->size` is
 *         wrong.
 */
handoff_status handoff_fallback_new(const struct handoff_fallback_options *options,
                                    struct handoff_fallback **fallback);

/**
 * Unmakes a fallback state.
 *
 * @param fallback  the state, or NULL, which does nothing; no thread may be using it
 */
void handoff_fallback_free(struct handoff_fallback *fallback);

/**
 * Says whether to offer a connection to a backend.
 *
 * @param fallback       the state
 * @param backend        names the backend, such as by the path of its handoff socket
 * @param inputs         what is known, or NULL if nothing speaks against it; not kept
 * @param[out] decision  the first reason that applies of client unsupported, policy disabled,
 *                       adopted backend, descriptor pressure and rate limited, or none
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if another pointer is NULL or `inputs->size`
 *         is wrong.
 */
handoff_status handoff_fallback_should_attempt(const struct handoff_fallback *fallback,
                                               const char *backend,
                                               const struct handoff_inputs *inputs,
                                               struct handoff_decision *decision);

/**
 * handoff_fallback_should_attempt() at a given time.
 *
 * @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
 */
handoff_status handoff_fallback_should_attempt_at(const struct handoff_fallback *fallback,
                                                  uint64_t now_ns,
                                                  const char *backend,
                                                  const struct handoff_inputs *inputs,
                                                  struct handoff_decision *decision);

/**
 * Counts a failed attempt. A rejection is an answer, not a failure.
 *
 * @param fallback       the state
 * @param backend        names the backend; copied
 * @param failure        how the attempt failed, see handoff_status_failure()
 * @param[out] decision  the reason for this fallback, and when the next attempt may be made if
 *                       the backend is now rate-limited; may be NULL
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if another pointer is NULL or `failure` is
 *         HANDOFF_FAILURE_NONE or unknown.
 *
 * Allocates for a backend's first failure.
 */
handoff_status handoff_fallback_record_failure(struct handoff_fallback *fallback,
                                               const char *backend,
                                               handoff_failure failure,
                                               struct handoff_decision *decision);

/**
 * handoff_fallback_record_failure() at a given time.
 *
 * @param now_ns  see handoff_now(); HANDOFF_ERR_INVALID_ARGUMENT if it is beyond the clock's range
 */
handoff_status handoff_fallback_record_failure_at(struct handoff_fallback *fallback,
                                                  uint64_t now_ns,
                                                  const char *backend,
                                                  handoff_failure failure,
                                                  struct handoff_decision *decision);

/**
 * Forgets a backend's failures: it works again.
 *
 * @param fallback  the state
 * @param backend   names the backend
 * @return HANDOFF_OK, also if it had none; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL.
 */
handoff_status handoff_fallback_record_success(struct handoff_fallback *fallback,
                                               const char *backend);

/**
 * Counts the failures of a backend that still count, `max_failures` at most.
 *
 * @param fallback  the state
 * @param backend   names the backend
 * @return the count; 0 if a pointer is NULL.
 */
size_t handoff_fallback_failed_count(const struct handoff_fallback *fallback, const char *backend);

/**
 * handoff_fallback_failed_count() at a given time.
 *
 * @param now_ns  see handoff_now(); the count is 0 if it is beyond the clock's range
 */
size_t handoff_fallback_failed_count_at(const struct handoff_fallback *fallback,
                                        uint64_t now_ns,
                                        const char *backend);

/**
 * Tells who is at the other end of a connected Unix socket.
 *
 * @param socket     the connection; kept
 * @param[out] peer  who it is
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `peer` is NULL or `socket` is not a socket;
 *         HANDOFF_ERR_PEER_UNKNOWN if it is not a connected Unix socket.
 *
 * Any thread may call it, also after fork().
 */
handoff_status handoff_peer_credentials(int socket, struct handoff_peer *peer);

/**
 * Checks that whoever is at the other end of a connected Unix socket may be there.
 *
 * @param socket     the connection; kept
 * @param policy     who may, or NULL for the default; read during the call only
 * @param[out] peer  who it is, if allowed; may be NULL
 * @return HANDOFF_OK; HANDOFF_ERR_PEER_NOT_ALLOWED; HANDOFF_ERR_PEER_UNKNOWN if it is not a
 *         connected Unix socket; HANDOFF_ERR_INVALID_ARGUMENT if `socket` is not a socket,
 *         `policy->size` is wrong or a list is NULL but not empty.
 *
 * Any thread may call it, also after fork(). Allocates only to look at supplementary groups.
 */
handoff_status handoff_peer_check(int socket,
                                  const struct handoff_peer_policy *policy,
                                  struct handoff_peer *peer);

/**
 * Makes a handoff socket.
 *
 * The file has its mode before anybody can connect. A socket that nobody listens on any more is
 * replaced; one that somebody listens on, and anything that is not a socket, is left alone. Of
 * several processes that start together one succeeds: they take turns by locking the directory,
 * flock(2).
 *
 * @param path           the socket's path, at most 107 bytes, in a directory that this process
 *                       can read and write; "@" begins an abstract name on Linux, without a file
 * @param options        how to make it, or NULL for the defaults; read during the call only
 * @param[out] listener  the listener; free it with handoff_listener_free()
 * @return HANDOFF_OK; HANDOFF_ERR_ADDRESS_IN_USE; HANDOFF_ERR_NOT_A_SOCKET;
 *         HANDOFF_ERR_PERMISSION_DENIED; HANDOFF_ERR_INVALID_ARGUMENT, also for a mode beyond
 *         0777 or an unknown kind; HANDOFF_ERR_WOULD_BLOCK if another process has had the
 *         directory locked for a second; HANDOFF_ERR_DESCRIPTOR_PRESSURE;
 *         HANDOFF_ERR_LISTEN_FAILED; HANDOFF_ERR_UNSUPPORTED for an abstract name elsewhere than
 *         on Linux.
 */
handoff_status handoff_listener_new(const char *path,
                                    const struct handoff_listener_options *options,
                                    struct handoff_listener **listener);

/**
 * Gives the listening descriptor, to wait on in an event loop. It is non-blocking and
 * close-on-exec.
 *
 * @param listener  the listener
 * @return the descriptor, which stays the listener's: do not close it; -1 if `listener` is NULL.
 */
int handoff_listener_fd(const struct handoff_listener *listener);

/**
 * Accepts a connection of a broker that may be there; one that may not is closed.
 *
 * @param listener     the listener
 * @param timeout_ms   how long to wait, in milliseconds; 0 not at all, negative for ever
 * @param policy       who may connect, or NULL for the default; read during the call only
 * @param[out] socket  the connection, blocking and close-on-exec; close(2) it
 * @return HANDOFF_OK; HANDOFF_ERR_WOULD_BLOCK if nobody came in that time;
 *         HANDOFF_ERR_PEER_NOT_ALLOWED, HANDOFF_ERR_PEER_UNKNOWN: go on with the next;
 *         HANDOFF_ERR_DESCRIPTOR_PRESSURE; HANDOFF_ERR_INVALID_ARGUMENT as for
 *         handoff_peer_check(), and after shutdown(2) of the listening socket, which ends a wait;
 *         HANDOFF_ERR_RECEIVE_FAILED.
 *
 * Different threads may call it for one listener at once.
 */
handoff_status handoff_listener_accept(const struct handoff_listener *listener,
                                       int timeout_ms,
                                       const struct handoff_peer_policy *policy,
                                       int *socket);

/**
 * Stops listening, and removes the socket's file if it is still the one that was made. In a child
 * of fork() it closes the child's copy only.
 *
 * @param listener  the listener, or NULL, which does nothing; no thread may be using it
 */
void handoff_listener_free(struct handoff_listener *listener);

/**
 * Makes a broker for the backend that listens at `path`. Does no I/O and opens nothing; the first
 * use connects, and the broker connects again by itself whenever a channel ends.
 *
 * @param path         the handoff socket's path, at most 107 bytes; "@" begins an abstract name
 * @param options      its limits, or NULL for the defaults; read during the call only
 * @param[out] broker  the broker; free it with handoff_broker_free()
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL, the path cannot be a
 *         socket's or `options->size` is wrong.
 */
handoff_status handoff_broker_new(const char *path,
                                  const struct handoff_broker_options *options,
                                  struct handoff_broker **broker);

/**
 * Takes back what is in flight, as handoff_broker_close() does, and unmakes a broker; the verdicts
 * are lost with it. In a child of fork() it closes the child's copies only.
 *
 * @param broker  the broker, or NULL, which does nothing
 */
void handoff_broker_free(struct handoff_broker *broker);

/**
 * Gives the one descriptor to watch: it is readable whenever handoff_broker_dispatch() has work,
 * level- and edge-triggered, and stays the same. This is a use: the broker begins to connect.
 *
 * @param broker  the broker
 * @return the descriptor, which stays the broker's: do not read, write or close it; -1 on error,
 *         with errno and handoff_last_error() set.
 */
int handoff_broker_fd(struct handoff_broker *broker);

/**
 * Offers a connection to the backend. Never blocks: what finds no room in the socket waits in the
 * broker.
 *
 * @param broker   the broker
 * @param offer    the connection and what goes with it; all of it is copied, but `fd`
 * @param[out] id  names the offer for handoff_broker_cancel(); may be NULL
 * @return HANDOFF_OK: a verdict will come from handoff_broker_next(). After any error nothing was
 *         sent and no verdict will come, so serve the client another way:
 *         HANDOFF_ERR_BACKEND_UNAVAILABLE without a channel, or while the backend drains;
 *         HANDOFF_ERR_FULL if as many offers are in flight, bytes queued or verdicts not taken as
 *         may be;
 *         HANDOFF_ERR_RATE_LIMITED if the backend failed too often; HANDOFF_ERR_TOO_LARGE if
 *         there are more bytes than the backend takes; HANDOFF_ERR_INVALID_ARGUMENT, also if `fd`
 *         is not a socket; HANDOFF_ERR_WRONG_PROCESS; HANDOFF_ERR_CLOSED;
 *         HANDOFF_ERR_DESCRIPTOR_PRESSURE at the first use.
 *
 * Allocates nothing once the broker runs.
 */
handoff_status handoff_broker_offer(struct handoff_broker *broker,
                                    const struct handoff_offer *offer,
                                    uint64_t *id);

/**
 * Offers a connection and waits for its verdict, and before that for the backend's welcome and for
 * room: for the offer's timeout in all. Without a backend it is refused at once. For programs
 * without an event loop.
 *
 * @param broker        the broker; verdicts of other offers stay for handoff_broker_next()
 * @param offer         the connection and what goes with it; `more` is not looked at
 * @param[out] verdict  what became of it
 * @return HANDOFF_OK whenever there is a verdict; otherwise as handoff_broker_offer(), and the
 *         connection is still the caller's.
 */
handoff_status handoff_broker_offer_and_wait(struct handoff_broker *broker,
                                             const struct handoff_offer *offer,
                                             struct handoff_verdict *verdict);

/**
 * Sends what was offered with `more` set.
 *
 * @param broker  the broker
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
 *         HANDOFF_ERR_CLOSED; HANDOFF_ERR_SYSTEM.
 */
handoff_status handoff_broker_flush(struct handoff_broker *broker);

/**
 * Does everything that is due: connects, receives verdicts, sends, gives up what is late. Call it
 * when the descriptor is readable, then handoff_broker_next(). Never blocks.
 *
 * @param broker  the broker
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
 *         HANDOFF_ERR_CLOSED; HANDOFF_ERR_SYSTEM. What goes wrong with the backend is not an error
 *         here: it is in the verdicts.
 */
handoff_status handoff_broker_dispatch(struct handoff_broker *broker);

/**
 * Takes the next verdict. Call it until it says HANDOFF_NOTHING. Each offer has exactly one.
 *
 * @param broker        the broker
 * @param[out] verdict  what became of which offer
 * @return HANDOFF_OK; HANDOFF_NOTHING; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
 *         HANDOFF_ERR_WRONG_PROCESS.
 */
handoff_status handoff_broker_next(struct handoff_broker *broker, struct handoff_verdict *verdict);

/**
 * Takes an offer back.
 *
 * @param broker  the broker
 * @param id      the offer
 * @return HANDOFF_OK: the connection is the caller's, and no verdict will come;
 *         HANDOFF_ERR_TOO_LATE if the backend has adopted it, or its verdict has been made: take
 *         that from handoff_broker_next(); HANDOFF_ERR_INVALID_ARGUMENT if `broker` is NULL;
 *         HANDOFF_ERR_WRONG_PROCESS; HANDOFF_ERR_CLOSED.
 */
handoff_status handoff_broker_cancel(struct handoff_broker *broker, uint64_t id);

/**
 * Takes back everything that is in flight and closes the channel. What became of each offer is to
 * be taken with handoff_broker_next(); nothing else can be done with the broker but freeing it.
 *
 * @param broker  the broker
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
 *         HANDOFF_ERR_CLOSED if it is closed already.
 */
handoff_status handoff_broker_close(struct handoff_broker *broker);

/**
 * Tells what a broker has done.
 *
 * @param broker              the broker
 * @param[in,out] statistics  begun with HANDOFF_BROKER_STATISTICS_INIT; only what `size` covers is
 *                            written
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or `size` is wrong.
 */
handoff_status handoff_broker_get_statistics(struct handoff_broker *broker,
                                             struct handoff_broker_statistics *statistics);

/**
 * Makes a handoff socket and listens on it for brokers. The file is made as by
 * handoff_listener_new().
 *
 * @param path          the socket's path, at most 107 bytes; "@" begins an abstract name on Linux
 * @param options       its limits, or NULL for the defaults; read during the call only
 * @param[out] backend  the backend; free it with handoff_backend_free()
 * @return HANDOFF_OK; as handoff_listener_new().
 */
handoff_status handoff_backend_listen(const char *path,
                                      const struct handoff_backend_options *options,
                                      struct handoff_backend **backend);

/**
 * Listens for brokers on a socket that somebody else made, as a service manager does.
 *
 * @param fd            a listening Unix socket of sequenced packets; duplicated, so the caller's
 *                      stays the caller's. It is made non-blocking, which every copy shares.
 * @param options       its limits, or NULL for the defaults; `mode` and `backlog` are not looked at
 * @param[out] backend  the backend; free it with handoff_backend_free()
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT, also if `fd` is no such socket;
 *         HANDOFF_ERR_DESCRIPTOR_PRESSURE; HANDOFF_ERR_SYSTEM.
 */
handoff_status handoff_backend_listen_on(int fd,
                                         const struct handoff_backend_options *options,
                                         struct handoff_backend **backend);

/**
 * Closes every channel, closes what was not adopted, and stops listening as
 * handoff_listener_free() does. What was adopted stays open: it is the caller's.
 *
 * @param backend  the backend, or NULL, which does nothing
 */
void handoff_backend_free(struct handoff_backend *backend);

/**
 * Gives the one descriptor to watch: it is readable whenever handoff_backend_dispatch() has work,
 * level- and edge-triggered, and stays the same.
 *
 * @param backend  the backend
 * @return the descriptor, which stays the backend's: do not read, write or close it; -1 on error,
 *         with errno and handoff_last_error() set.
 */
int handoff_backend_fd(struct handoff_backend *backend);

/**
 * Does everything that is due: accepts brokers, receives offers, sends verdicts. Call it when the
 * descriptor is readable, then handoff_backend_next(). Never blocks.
 *
 * @param backend  the backend
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS;
 *         HANDOFF_ERR_SYSTEM. What brokers do wrong is not an error here: it is in the statistics.
 */
handoff_status handoff_backend_dispatch(struct handoff_backend *backend);

/**
 * Takes the next arrival, to look at and then to adopt or reject, now or later. Call it until it
 * says HANDOFF_NOTHING: that sends the brokers what was adopted and rejected so far.
 *
 * @param backend       the backend
 * @param[out] arrival  what arrived; its `fd` is -1
 * @return HANDOFF_OK; HANDOFF_NOTHING; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
 *         HANDOFF_ERR_WRONG_PROCESS.
 */
handoff_status handoff_backend_next(struct handoff_backend *backend,
                                    struct handoff_arrival *arrival);

/**
 * Adopts an arrival: from HANDOFF_OK on the connection is this process's alone. The broker is told
 * when handoff_backend_next() says HANDOFF_NOTHING, so that clients are answered first; at once if
 * it has said so already; and after a millisecond by handoff_backend_dispatch(), for which the
 * descriptor becomes readable, if you do not go on to that.
 *
 * @param backend  the backend
 * @param id       the arrival
 * @param[out] fd  the connection, close-on-exec; the caller's to close(2). Its other flags and
 *                 options are as the broker left them.
 * @return HANDOFF_OK; HANDOFF_ERR_REVOKED if the broker has taken it back, or broken its channel:
 *         the descriptor is closed; HANDOFF_ERR_INVALID_ARGUMENT, also if no such arrival is
 *         held; HANDOFF_ERR_WRONG_PROCESS.
 */
handoff_status handoff_backend_adopt(struct handoff_backend *backend, uint64_t id, int *fd);

/**
 * Rejects an arrival: its descriptor is closed, and the broker serves the client another way.
 *
 * @param backend  the backend
 * @param id       the arrival
 * @param reason   one of HANDOFF_REASON_*, HANDOFF_REASON_REJECTED if no other fits
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT, also if no such arrival is held;
 *         HANDOFF_ERR_WRONG_PROCESS.
 */
handoff_status handoff_backend_reject(struct handoff_backend *backend,
                                      uint64_t id,
                                      handoff_reason reason);

/**
 * Waits for an arrival and adopts it, as accept(2) does. For programs without an event loop.
 *
 * @param backend       the backend
 * @param timeout_ms    how long to wait, in milliseconds; 0 not at all, negative for ever
 * @param[out] arrival  what arrived; its `fd`, close-on-exec, is the caller's to close(2)
 * @return HANDOFF_OK; HANDOFF_ERR_WOULD_BLOCK if nothing came in that time;
 *         HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL; HANDOFF_ERR_WRONG_PROCESS;
 *         HANDOFF_ERR_SYSTEM.
 */
handoff_status handoff_backend_accept(struct handoff_backend *backend,
                                      int timeout_ms,
                                      struct handoff_arrival *arrival);

/**
 * Grants nothing from now on and stops listening, so that a successor can take the path. What has
 * arrived can still be adopted; when handoff_backend_statistics.held is 0 after a dispatch, the
 * backend can be freed, and brokers take back what was still on its way.
 *
 * @param backend  the backend
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if it is NULL; HANDOFF_ERR_WRONG_PROCESS.
 */
handoff_status handoff_backend_drain(struct handoff_backend *backend);

/**
 * Tells what a backend has done.
 *
 * @param backend             the backend
 * @param[in,out] statistics  begun with HANDOFF_BACKEND_STATISTICS_INIT; only what `size` covers
 *                            is written
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or `size` is wrong.
 */
handoff_status handoff_backend_get_statistics(struct handoff_backend *backend,
                                              struct handoff_backend_statistics *statistics);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* HANDOFF_H */
