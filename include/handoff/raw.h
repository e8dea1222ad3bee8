/*
 * handoff/raw.h: the raw layer. One descriptor and its token travel in one message. The calls have
 * no state except what you pass in. The rules that hold for every call are in handoff.h.
 *
 * Most programs want a channel instead (handoff/broker.h and handoff/backend.h). A channel does all
 * of this for many connections at once, without blocking. The raw layer is for peers that can only
 * call sendmsg(2). A message is the 16 bytes of a token with one descriptor attached (SCM_RIGHTS of
 * unix(7)). An acknowledgement is 20 bytes.
 *
 * Different threads may use different sockets at once, but only one thread at a time may use a
 * socket.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */

#ifndef HANDOFF_RAW_H
#define HANDOFF_RAW_H

#include "peer.h"
#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/** The length of a token, and of a message, in bytes. */
#define HANDOFF_RAW_TOKEN_LEN 16

/** A one-time token. Compare tokens with handoff_raw_token_equal(). */
typedef struct handoff_raw_token {
    /** The token. Whoever knows these bytes may present it. */
    uint8_t bytes[HANDOFF_RAW_TOKEN_LEN];
} handoff_raw_token;

/**
 * Makes a token of 16 bytes from the system's random source, getrandom(2).
 *
 * @param[out] token  the token
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `token` is NULL; HANDOFF_ERR_RANDOM if the
 *         system has no randomness to give.
 *
 * Safe in any thread and after fork().
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_token_generate(handoff_raw_token *token) HANDOFF_NOEXCEPT;

/**
 * Makes a token from bytes that you got elsewhere.
 *
 * @param bytes       the bytes; copied
 * @param len         their number, HANDOFF_RAW_TOKEN_LEN
 * @param[out] token  the token
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or `len` is wrong.
 *
 * Safe in any thread and after fork().
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_token_from_bytes(const void *bytes,
                                            size_t len,
                                            handoff_raw_token *token) HANDOFF_NOEXCEPT;

/**
 * Compares two tokens in constant time.
 *
 * @return true if they are equal; false otherwise, and if one is NULL.
 *
 * Safe in any thread, after fork() and in a signal handler.
 */
bool handoff_raw_token_equal(const handoff_raw_token *a,
                             const handoff_raw_token *b) HANDOFF_NOEXCEPT;

/**
 * The tokens that may still be presented, each of them once.
 *
 * Any number of threads may use one at once. After fork() in a program with several threads, make
 * a new one in the child: another thread may have held the lock.
 */
typedef struct handoff_raw_store handoff_raw_store;

/**
 * The limits of a token store. Zero is the default in every field but `size`. Out-of-range values
 * are clamped.
 */
typedef struct handoff_raw_store_options {
    /** Set by HANDOFF_RAW_STORE_OPTIONS_INIT. */
    size_t size;
    /** The most tokens pending at once: 1 to 1048576, default 1024. */
    size_t capacity;
    /**
     * How long a token may be presented, in milliseconds: default 30000; HANDOFF_NO_TIMEOUT: it
     * does not expire.
     */
    uint64_t lifetime_ms;
    /**
     * How many random tokens handoff_raw_store_issue() tries, if each is already pending, before
     * it fails: default 16.
     */
    size_t collision_attempts;
} handoff_raw_store_options;
#define HANDOFF_RAW_STORE_OPTIONS_INIT \
    { sizeof(handoff_raw_store_options), 0, 0, 0 }

/**
 * Initialises options as HANDOFF_RAW_STORE_OPTIONS_INIT does, for languages without macros.
 *
 * @param[out] options  the options
 * @param size          sizeof(handoff_raw_store_options)
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `options` is NULL or `size` cannot be right.
 */
handoff_status handoff_raw_store_options_init(handoff_raw_store_options *options,
                                              size_t size) HANDOFF_NOEXCEPT;

/**
 * Makes an empty token store. It allocates all its memory here.
 *
 * @param options     the limits, or NULL for the defaults; read during the call only
 * @param[out] store  the store; free it with handoff_raw_store_free()
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `store` is NULL or `options->size` is wrong;
 *         HANDOFF_ERR_NO_MEMORY.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_store_new(const handoff_raw_store_options *options,
                                     handoff_raw_store **store) HANDOFF_NOEXCEPT;

/**
 * Issues a random token and holds it until it is consumed, revoked or expired.
 *
 * @param store       the store
 * @param[out] token  the token
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL; HANDOFF_ERR_FULL if the
 *         capacity is reached; HANDOFF_ERR_RANDOM; HANDOFF_ERR_TOKEN_COLLISION.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_store_issue(handoff_raw_store *store,
                                       handoff_raw_token *token) HANDOFF_NOEXCEPT;

/**
 * Holds a token that you got elsewhere until it is consumed, revoked or expired.
 *
 * @param store  the store
 * @param token  the token; copied
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
 *         HANDOFF_ERR_TOKEN_ALREADY_PENDING; HANDOFF_ERR_FULL if the capacity is reached.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_store_insert(handoff_raw_store *store,
                                        const handoff_raw_token *token) HANDOFF_NOEXCEPT;

/**
 * Consumes `presented` if it is `expected` and pending.
 *
 * @param store      the store
 * @param expected   the token that belongs to what is handed over
 * @param presented  the token that came with it
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
 *         HANDOFF_ERR_TOKEN_MISMATCH: neither is consumed; HANDOFF_ERR_TOKEN_EXPIRED;
 *         HANDOFF_ERR_TOKEN_NOT_PENDING.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_store_consume(handoff_raw_store *store,
                                         const handoff_raw_token *expected,
                                         const handoff_raw_token *presented) HANDOFF_NOEXCEPT;

/**
 * Consumes `presented` if it is pending, whichever token it is.
 *
 * @param store      the store
 * @param presented  the token that came
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
 *         HANDOFF_ERR_TOKEN_EXPIRED; HANDOFF_ERR_TOKEN_NOT_PENDING.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_store_redeem(handoff_raw_store *store,
                                        const handoff_raw_token *presented) HANDOFF_NOEXCEPT;

/**
 * Revokes a token: it can no longer be presented.
 *
 * @param store  the store
 * @param token  the token
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL;
 *         HANDOFF_ERR_TOKEN_NOT_PENDING.
 */
handoff_status handoff_raw_store_revoke(handoff_raw_store *store,
                                        const handoff_raw_token *token) HANDOFF_NOEXCEPT;

/**
 * Removes every expired token. A full store does this by itself, but not again before a
 * millisecond has passed for each 1024 of its tokens.
 *
 * @param store         the store
 * @param[out] removed  their number; may be NULL
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `store` is NULL.
 */
handoff_status handoff_raw_store_prune(handoff_raw_store *store, size_t *removed) HANDOFF_NOEXCEPT;

/**
 * Counts the tokens in a store, including expired ones that are not pruned yet.
 *
 * @param store  the store
 * @return the count; 0 if `store` is NULL.
 */
size_t handoff_raw_store_length(const handoff_raw_store *store) HANDOFF_NOEXCEPT;

/**
 * Frees a token store. A registry of pending acknowledgements that uses it stays usable.
 *
 * @param store  the store, or NULL, which does nothing; no thread may be using it
 */
void handoff_raw_store_free(handoff_raw_store *store) HANDOFF_NOEXCEPT;

/**
 * Connects to a handoff socket, stream or sequenced-packet, whichever listens there. The call
 * never blocks. Whoever listens there gets what you send: an abstract name belongs to the process
 * that took it first. handoff_raw_peer_check() tells whether the right peer listens.
 *
 * @param path         the socket's path, at most 107 bytes; "@" starts an abstract name
 * @param[out] socket  the connection, non-blocking and close-on-exec; close(2) it
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_BACKEND_UNAVAILABLE, also if there
 *         is no such file or it is not a socket; HANDOFF_ERR_PERMISSION_DENIED;
 *         HANDOFF_ERR_WOULD_BLOCK if the backlog is full; HANDOFF_ERR_DESCRIPTOR_PRESSURE.
 *
 * Safe in any thread and after fork().
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_connect(const char *path, int *socket) HANDOFF_NOEXCEPT;

/**
 * Sends a descriptor and its token over a connected socket in one message, or not at all. The call
 * never blocks.
 *
 * @param socket  a connected Unix socket, stream or sequenced-packet, blocking or not. A datagram
 *                socket of socketpair(2) works, but its receiver is not told that you have closed
 *                yours. A connected TCP socket is refused (with MPTCP not by Linux 6.2 and 6.3).
 *                Over any other socket, the system sends the token without the descriptor, and
 *                reports no error.
 * @param fd      the descriptor to send, not `socket` itself. It stays yours, open and unchanged,
 *                and you may close it when this returns.
 * @param token   its token
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_WOULD_BLOCK if the socket's
 *         buffer is full; HANDOFF_ERR_BACKEND_UNAVAILABLE if the other end is closed;
 *         HANDOFF_ERR_DESCRIPTOR_PRESSURE if this user has too many descriptors in flight;
 *         HANDOFF_ERR_PERMISSION_DENIED; HANDOFF_ERR_SEND_FAILED. After these errors nothing was
 *         sent. HANDOFF_ERR_SHORT_WRITE: the descriptor was sent, but only a part of its token.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_send(int socket,
                                int fd,
                                const handoff_raw_token *token) HANDOFF_NOEXCEPT;

/**
 * Connects to a handoff socket and sends a descriptor and its token: handoff_raw_connect() and
 * handoff_raw_send() in one call. The call does not check who listens there.
 *
 * @param path         see handoff_raw_connect()
 * @param fd           see handoff_raw_send()
 * @param token        see handoff_raw_send()
 * @param[out] socket  the connection, on which the acknowledgement will come; non-blocking and
 *                     close-on-exec; close(2) it
 * @return as handoff_raw_connect() and handoff_raw_send(). After an error no connection stays
 *         open.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_send_path(const char *path,
                                     int fd,
                                     const handoff_raw_token *token,
                                     int *socket) HANDOFF_NOEXCEPT;

/**
 * Receives one message, and returns its descriptor only if its token is pending in a store. That
 * consumes the token.
 *
 * @param socket      a connected Unix socket, blocking or not
 * @param store       the store that must hold the token
 * @param expected    the one token to accept, or NULL for any in the store
 * @param wait_ms     how long to wait, in milliseconds, as in poll(2)
 * @param[out] token  the token, for the acknowledgement; may be NULL
 * @param[out] fd     the descriptor, close-on-exec; close(2) it
 * @return HANDOFF_OK, or another status of handoff_raw_receive(); HANDOFF_ERR_TOKEN_MISMATCH if it
 *         is not `expected`; HANDOFF_ERR_TOKEN_EXPIRED; HANDOFF_ERR_TOKEN_NOT_PENDING if the store
 *         never held it or it was already used.
 *
 * After an error, every descriptor that came is closed, and you must close the socket.
 * HANDOFF_TIMED_OUT is not an error: the socket stays usable.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_receive_verified(int socket,
                                            handoff_raw_store *store,
                                            const handoff_raw_token *expected,
                                            int wait_ms,
                                            handoff_raw_token *token,
                                            int *fd) HANDOFF_NOEXCEPT;

/**
 * Receives one message: a descriptor and its token. The token is not verified.
 *
 * @param socket      a connected Unix socket, blocking or not
 * @param wait_ms     how long to wait, in milliseconds, as in poll(2)
 * @param[out] token  the token
 * @param[out] fd     the descriptor, close-on-exec; close(2) it
 * @return HANDOFF_OK; HANDOFF_TIMED_OUT if nothing came in that time;
 *         HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_END_OF_STREAM; HANDOFF_ERR_NO_DESCRIPTOR;
 *         HANDOFF_ERR_SURPLUS_DESCRIPTORS; HANDOFF_ERR_CONTROL_TRUNCATED;
 *         HANDOFF_ERR_WRONG_LENGTH; HANDOFF_ERR_DESCRIPTOR_PRESSURE; HANDOFF_ERR_RECEIVE_FAILED.
 *
 * After an error, every descriptor that came is closed, and you must close the socket.
 * HANDOFF_TIMED_OUT is not an error: the socket stays usable.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_receive(int socket,
                                   int wait_ms,
                                   handoff_raw_token *token,
                                   int *fd) HANDOFF_NOEXCEPT;

/**
 * Backend: sends a token without a descriptor. The token allows the broker one message on this
 * connection.
 *
 * A token that comes back with a descriptor proves that this backend allowed the message. The call
 * never blocks.
 *
 * @param socket  a connected Unix socket, blocking or not. A connected TCP socket is refused.
 * @param token   a token that the store holds
 * @return HANDOFF_OK; HANDOFF_ERR_END_OF_STREAM if the broker closed the connection;
 *         HANDOFF_ERR_WOULD_BLOCK if the broker does not read what it is sent;
 *         HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_SHORT_WRITE if only a part was sent;
 *         HANDOFF_ERR_SEND_FAILED.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_token_send(int socket, const handoff_raw_token *token) HANDOFF_NOEXCEPT;

/**
 * Broker: receives a token that the backend sent with handoff_raw_token_send().
 *
 * @param socket      a connected Unix socket, blocking or not
 * @param wait_ms     how long to wait, in milliseconds, as in poll(2)
 * @param[out] token  the token
 * @return HANDOFF_OK; HANDOFF_TIMED_OUT if none came in that time: the backend is busy, so the
 *         reason for a fallback is HANDOFF_REASON_BACKEND_BUSY; HANDOFF_ERR_END_OF_STREAM;
 *         HANDOFF_ERR_WRONG_LENGTH; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_RECEIVE_FAILED.
 *
 * After an error close the socket. HANDOFF_TIMED_OUT is not an error: the socket stays usable.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_token_receive(int socket,
                                         int wait_ms,
                                         handoff_raw_token *token) HANDOFF_NOEXCEPT;

/**
 * Backend: tells the broker that this process owns and serves the connection. Write to the client
 * only after HANDOFF_OK. The call never blocks.
 *
 * @param socket  the connection that the message came on
 * @param token   the message's token
 * @return HANDOFF_OK: the connection is yours. After an error, it is not: close the descriptor and
 *         serve nothing. HANDOFF_ERR_END_OF_STREAM if the broker took the message back or is gone;
 *         HANDOFF_ERR_WOULD_BLOCK if the broker does not read its acknowledgements;
 *         HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_SHORT_WRITE if only a part was sent;
 *         HANDOFF_ERR_SEND_FAILED.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_ack_accept(int socket, const handoff_raw_token *token) HANDOFF_NOEXCEPT;

/**
 * Backend: tells the broker that this process does not serve the connection. Close the descriptor
 * first, so that the broker's is the only one left. The call never blocks.
 *
 * @param socket  the connection that the message came on
 * @param token   the message's token
 * @param reason  one of HANDOFF_REASON_*; HANDOFF_REASON_REJECTED if no other fits
 * @return as handoff_raw_ack_accept(); also HANDOFF_ERR_INVALID_ARGUMENT for any other `reason`.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_ack_reject(int socket,
                                      const handoff_raw_token *token,
                                      handoff_reason reason) HANDOFF_NOEXCEPT;

/** A backend's answer to one message. */
typedef struct handoff_raw_ack {
    /** Set by HANDOFF_RAW_ACK_INIT. */
    size_t size;
    /** The message's token. */
    struct handoff_raw_token token;
    /** HANDOFF_ADOPTED; HANDOFF_FALLBACK if the backend rejected the connection. */
    handoff_outcome outcome;
    /** Why it was rejected; HANDOFF_REASON_NONE if it was not. */
    handoff_reason reason;
} handoff_raw_ack;
#define HANDOFF_RAW_ACK_INIT \
    { sizeof(handoff_raw_ack), { { 0 } }, 0, 0 }

/**
 * Broker: waits for the acknowledgement of one message. If the time is up, something else arrives
 * or the wait fails, the call takes the message back as handoff_raw_take_back() does.
 *
 * @param socket      the connection that the message was sent on. After an error close(2) it.
 * @param token       the message's token
 * @param timeout_ms  how long to wait, in milliseconds: 0 for 5000; HANDOFF_NO_TIMEOUT
 * @param[out] ack    the acknowledgement: adopted, or rejected with a reason
 * @return HANDOFF_OK; HANDOFF_ERR_ACK_TIMEOUT; HANDOFF_ERR_END_OF_STREAM if the backend closed the
 *         connection, or receiving failed and the message was taken back;
 *         HANDOFF_ERR_ACK_MISMATCH; HANDOFF_ERR_ACK_MALFORMED. After these errors the connection
 *         is yours. HANDOFF_ERR_TOO_LATE, or HANDOFF_ERR_INVALID_ARGUMENT if `socket` is not
 *         usable: the message could not be taken back, so the backend may own the connection, and
 *         you must not serve it.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_ack_wait(int socket,
                                    const handoff_raw_token *token,
                                    uint64_t timeout_ms,
                                    handoff_raw_ack *ack) HANDOFF_NOEXCEPT;

/**
 * Broker: takes the next acknowledgement that has arrived on a connection. The call never blocks.
 *
 * @param socket    the connection that messages were sent on
 * @param[out] ack  the acknowledgement
 * @return HANDOFF_OK; HANDOFF_NOTHING if none has arrived; HANDOFF_ERR_END_OF_STREAM if none will;
 *         HANDOFF_ERR_ACK_MALFORMED; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_RECEIVE_FAILED.
 *         After HANDOFF_NOTHING, and after an error other than the end of the stream, the backend
 *         can still acknowledge: call handoff_raw_take_back() before you serve a client.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_ack_receive(int socket, handoff_raw_ack *ack) HANDOFF_NOEXCEPT;

/**
 * Broker: takes back every message of a connection that is not acknowledged yet.
 *
 * From now on handoff_raw_ack_accept() fails in the backend. Acknowledgements that were sent
 * before can still be taken with handoff_raw_ack_receive(), until it returns
 * HANDOFF_ERR_END_OF_STREAM or HANDOFF_NOTHING. From then on every other message is certainly a
 * fallback.
 *
 * @param socket  the connection that messages were sent on. It stays open, but nothing more can be
 *                handed over on it.
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT; HANDOFF_ERR_TOO_LATE if the system refuses.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_take_back(int socket) HANDOFF_NOEXCEPT;

/** What became of an attempt. */
typedef struct handoff_raw_verdict {
    /** Set by HANDOFF_RAW_VERDICT_INIT. */
    size_t size;
    /** Who owns the connection now: HANDOFF_ADOPTED or HANDOFF_FALLBACK. */
    handoff_outcome outcome;
    /**
     * Why it is a fallback. With HANDOFF_ADOPTED: HANDOFF_REASON_NONE; or
     * HANDOFF_REASON_INTEGRITY_MISMATCH if `socket` became unusable after the message was sent.
     * For example, another thread closed it, or the system does not let this process receive. The
     * backend may have adopted the connection, so do not serve it.
     */
    handoff_reason reason;
    /**
     * The error behind the verdict; HANDOFF_OK if the backend adopted or rejected the connection.
     */
    handoff_status cause;
    /**
     * With HANDOFF_FALLBACK: not 0 if the backend may still hold a copy of the descriptor. See
     * handoff_verdict.
     */
    uint32_t may_have_reached_backend;
} handoff_raw_verdict;
#define HANDOFF_RAW_VERDICT_INIT \
    { sizeof(handoff_raw_verdict), 0, 0, 0, 0 }

/**
 * Hands a connection over a connected socket and waits for the backend's answer.
 *
 * The verdict is certain even at the deadline: the call first takes the message back, then looks
 * for the acknowledgement once more. After a fallback handoff_raw_ack_accept() fails in the
 * backend.
 *
 * @param socket        a connected Unix socket, blocking or not. You may use it for the next
 *                      attempt if the verdict's `cause` is HANDOFF_OK. Otherwise close(2) it.
 * @param fd            the client's connection. It stays yours, open and unchanged.
 * @param token         a token that the backend's store holds
 * @param timeout_ms    how long to wait for the answer, in milliseconds: 0 for 5000;
 *                      HANDOFF_NO_TIMEOUT
 * @param[out] verdict  who owns the connection now
 * @return HANDOFF_OK if there is a verdict. If its `cause` is an error, errno and
 *         handoff_last_error() describe that. HANDOFF_ERR_INVALID_ARGUMENT if an argument is
 *         wrong: nothing was sent.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_attempt(int socket,
                                   int fd,
                                   const handoff_raw_token *token,
                                   uint64_t timeout_ms,
                                   handoff_raw_verdict *verdict) HANDOFF_NOEXCEPT;

/**
 * Connects to a handoff socket, hands a connection over and waits for the answer: as
 * handoff_raw_attempt(), over a connection of its own. The call does not check who listens there.
 *
 * @param path          see handoff_raw_connect()
 * @param fd            see handoff_raw_attempt()
 * @param token         see handoff_raw_attempt()
 * @param timeout_ms    see handoff_raw_attempt(); connecting never waits
 * @param[out] verdict  see handoff_raw_attempt()
 * @return as handoff_raw_attempt(); also HANDOFF_ERR_INVALID_ARGUMENT if the path cannot be a
 *         socket's.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_attempt_path(const char *path,
                                        int fd,
                                        const handoff_raw_token *token,
                                        uint64_t timeout_ms,
                                        handoff_raw_verdict *verdict) HANDOFF_NOEXCEPT;

/** The type of a Unix socket: HANDOFF_RAW_STREAM or HANDOFF_RAW_SEQPACKET. */
typedef uint32_t handoff_raw_socket_type;

/** A byte stream, SOCK_STREAM. */
#define HANDOFF_RAW_STREAM 1

/** Sequenced packets, SOCK_SEQPACKET: a message cannot be cut or run into the next. */
#define HANDOFF_RAW_SEQPACKET 2

/** How a handoff socket is made. Zero is the default in every field but `size`. */
typedef struct handoff_raw_listener_options {
    /** Set by HANDOFF_RAW_LISTENER_OPTIONS_INIT. */
    size_t size;
    /**
     * The permission bits of the socket's file, independent of the umask: default 0600. A broker
     * needs write permission, unix(7). Abstract names have no permissions: check who connects.
     */
    uint32_t mode;
    /**
     * Connections that may wait to be accepted, listen(2): default 4096. The system may allow
     * fewer: somaxconn in listen(2).
     */
    int32_t backlog;
    /** HANDOFF_RAW_STREAM, the default, or HANDOFF_RAW_SEQPACKET. */
    handoff_raw_socket_type socket_type;
    /** Reserved: always 0. */
    uint32_t reserved;
} handoff_raw_listener_options;
#define HANDOFF_RAW_LISTENER_OPTIONS_INIT \
    { sizeof(handoff_raw_listener_options), 0, 0, 0, 0 }

/**
 * Initialises options as HANDOFF_RAW_LISTENER_OPTIONS_INIT does, for languages without macros.
 *
 * @param[out] options  the options
 * @param size          sizeof(handoff_raw_listener_options)
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `options` is NULL or `size` cannot be right.
 */
handoff_status handoff_raw_listener_options_init(handoff_raw_listener_options *options,
                                                 size_t size) HANDOFF_NOEXCEPT;

/**
 * A listening handoff socket, and the file that it made.
 *
 * Any number of threads may accept on it, and so may children of fork(). Only the process that
 * made it removes the file.
 */
typedef struct handoff_raw_listener handoff_raw_listener;

/**
 * Makes a handoff socket and listens on it. The file is made as by handoff_backend_listen().
 *
 * @param path           the socket's path, at most 107 bytes, in a directory that this process can
 *                       write to; "@" starts an abstract name, without a file
 * @param options        how to make it, or NULL for the defaults; read during the call only
 * @param[out] listener  the listener; free it with handoff_raw_listener_free()
 * @return HANDOFF_OK; HANDOFF_ERR_ADDRESS_IN_USE; HANDOFF_ERR_NOT_A_SOCKET;
 *         HANDOFF_ERR_PERMISSION_DENIED; HANDOFF_ERR_INVALID_ARGUMENT, also if the path cannot be
 *         a socket's, `mode` is more than 0777 or `socket_type` is unknown;
 *         HANDOFF_ERR_DESCRIPTOR_PRESSURE; HANDOFF_ERR_LISTEN_FAILED.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_listener_new(const char *path,
                                        const handoff_raw_listener_options *options,
                                        handoff_raw_listener **listener) HANDOFF_NOEXCEPT;

/**
 * Accepts a connection from a broker that the policy allows. Other connections are closed.
 *
 * @param listener     the listener
 * @param policy       who may connect, or NULL for the default; read during the call only
 * @param wait_ms      how long to wait, in milliseconds, as in poll(2)
 * @param[out] socket  the connection, blocking and close-on-exec; close(2) it
 * @return HANDOFF_OK; HANDOFF_TIMED_OUT if nobody connected in that time;
 *         HANDOFF_ERR_PEER_NOT_ALLOWED, HANDOFF_ERR_PEER_UNKNOWN: accept the next;
 *         HANDOFF_ERR_DESCRIPTOR_PRESSURE; HANDOFF_ERR_INVALID_ARGUMENT as for
 *         handoff_raw_peer_check(); HANDOFF_ERR_RECEIVE_FAILED.
 *
 * To end a wait from another thread, shutdown(2) the descriptor of handoff_raw_listener_fd(): the
 * call then returns HANDOFF_ERR_INVALID_ARGUMENT.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_listener_accept(const handoff_raw_listener *listener,
                                           const handoff_peer_policy *policy,
                                           int wait_ms,
                                           int *socket) HANDOFF_NOEXCEPT;

/**
 * Returns the listening descriptor, to watch in an event loop. It is non-blocking and
 * close-on-exec.
 *
 * @param listener  the listener
 * @return the descriptor, which stays the listener's: do not close it; -1 if `listener` is NULL.
 */
HANDOFF_MUST_USE
int handoff_raw_listener_fd(const handoff_raw_listener *listener) HANDOFF_NOEXCEPT;

/**
 * Stops listening, and removes the socket's file if it is still the one that was made.
 *
 * In a child of fork() it closes the child's copy only.
 *
 * @param listener  the listener, or NULL, which does nothing; no thread may be using it
 */
void handoff_raw_listener_free(handoff_raw_listener *listener) HANDOFF_NOEXCEPT;

/** A peer's credentials when it connected or called listen(2): SO_PEERCRED of unix(7). */
typedef struct handoff_raw_peer {
    /** Set by HANDOFF_RAW_PEER_INIT. */
    size_t size;
    /**
     * The process, for logs: a pid is not an identity. 0 if it is in a PID namespace that this
     * process cannot see.
     */
    int32_t pid;
    /** The effective user. */
    uint32_t uid;
    /** The effective group. */
    uint32_t gid;
    /** Reserved: always 0. */
    uint32_t reserved;
} handoff_raw_peer;
#define HANDOFF_RAW_PEER_INIT \
    { sizeof(handoff_raw_peer), 0, 0, 0, 0 }

/**
 * Checks that a policy allows the peer of a connected Unix socket. A broker calls it after
 * handoff_raw_connect(), before it sends anything.
 *
 * @param socket     the connection
 * @param policy     who may be there, or NULL for the default; read during the call only
 * @param[out] peer  who it is, if allowed; may be NULL
 * @return HANDOFF_OK; HANDOFF_ERR_PEER_NOT_ALLOWED; HANDOFF_ERR_PEER_UNKNOWN if it is not a
 *         connected Unix socket; HANDOFF_ERR_INVALID_ARGUMENT if `socket` is not a socket, a
 *         `size` is wrong or a list is NULL but not empty.
 *
 * Safe in any thread and after fork(). Allocates only to look at more than 256 supplementary
 * groups.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_peer_check(int socket,
                                      const handoff_peer_policy *policy,
                                      handoff_raw_peer *peer) HANDOFF_NOEXCEPT;

/**
 * Gets the credentials of the peer of a connected Unix socket.
 *
 * @param socket     the connection
 * @param[out] peer  who it is
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `peer` is NULL, its `size` is wrong or
 *         `socket` is not a socket; HANDOFF_ERR_PEER_UNKNOWN if it is not a connected Unix socket.
 *
 * Safe in any thread and after fork().
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_peer_credentials(int socket, handoff_raw_peer *peer) HANDOFF_NOEXCEPT;

/**
 * The acknowledgements that a broker waits for. An entry is removed exactly once: acknowledged,
 * abandoned or expired. The call that removes it returns its `user_data` and revokes its token.
 *
 * Any number of threads may use one at once. After fork() in a program with several threads, make
 * a new one in the child: another thread may have held the lock.
 */
typedef struct handoff_raw_pending handoff_raw_pending;

/**
 * The limits of a registry of pending acknowledgements. Zero is the default in every field but
 * `size`. Out-of-range values are clamped.
 */
typedef struct handoff_raw_pending_options {
    /** Set by HANDOFF_RAW_PENDING_OPTIONS_INIT. */
    size_t size;
    /** The most entries at once: 1 to 1048576, default 1024. */
    size_t capacity;
    /** How long an acknowledgement may take, in milliseconds: default 5000; HANDOFF_NO_TIMEOUT. */
    uint64_t timeout_ms;
} handoff_raw_pending_options;
#define HANDOFF_RAW_PENDING_OPTIONS_INIT \
    { sizeof(handoff_raw_pending_options), 0, 0 }

/**
 * Initialises options as HANDOFF_RAW_PENDING_OPTIONS_INIT does, for languages without macros.
 *
 * @param[out] options  the options
 * @param size          sizeof(handoff_raw_pending_options)
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `options` is NULL or `size` cannot be right.
 */
handoff_status handoff_raw_pending_options_init(handoff_raw_pending_options *options,
                                                size_t size) HANDOFF_NOEXCEPT;

/**
 * Makes an empty registry of pending acknowledgements. It allocates all its memory here.
 *
 * @param store         the store that issued the tokens, or any store if a backend issued them.
 *                      The token of a removed entry is revoked there. You may free the store
 *                      before the registry
 * @param options       the limits, or NULL for the defaults; read during the call only
 * @param[out] pending  the registry; free it with handoff_raw_pending_free()
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `store` or `pending` is NULL or
 *         `options->size` is wrong; HANDOFF_ERR_NO_MEMORY.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_pending_new(handoff_raw_store *store,
                                       const handoff_raw_pending_options *options,
                                       handoff_raw_pending **pending) HANDOFF_NOEXCEPT;

/**
 * Starts to wait for an acknowledgement. Call it before you send the message.
 *
 * @param pending    the registry
 * @param token      the message's token
 * @param user_data  returned when the entry is removed; the library does not look at it
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `pending` or `token` is NULL;
 *         HANDOFF_ERR_TOKEN_ALREADY_PENDING; HANDOFF_ERR_FULL if the capacity is reached.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_pending_register(handoff_raw_pending *pending,
                                            const handoff_raw_token *token,
                                            void *user_data) HANDOFF_NOEXCEPT;

/**
 * Removes the entry of an acknowledgement that has arrived.
 *
 * @param pending         the registry
 * @param token           the acknowledgement's token
 * @param[out] user_data  what was registered with it; may be NULL
 * @return HANDOFF_OK: the entry is removed, even if its time is up, because the backend has
 *         decided; HANDOFF_ERR_TOKEN_NOT_PENDING if there is no such entry, as for a second
 *         acknowledgement or after handoff_raw_pending_expire(); HANDOFF_ERR_INVALID_ARGUMENT if
 *         `pending` or `token` is NULL.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_pending_acknowledge(handoff_raw_pending *pending,
                                               const handoff_raw_token *token,
                                               void **user_data) HANDOFF_NOEXCEPT;

/**
 * Removes the entry of a message that you take back or could not send.
 *
 * @param pending         the registry
 * @param token           the message's token
 * @param[out] user_data  what was registered with it; may be NULL
 * @return HANDOFF_OK: the entry is removed; HANDOFF_ERR_TOKEN_NOT_PENDING if there is none;
 *         HANDOFF_ERR_INVALID_ARGUMENT if `pending` or `token` is NULL.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_pending_abandon(handoff_raw_pending *pending,
                                           const handoff_raw_token *token,
                                           void **user_data) HANDOFF_NOEXCEPT;

/**
 * Removes one entry whose time is up. Call it until it returns HANDOFF_NOTHING.
 *
 * The backend can still acknowledge the message. Before you serve the client another way, call
 * handoff_raw_take_back() and look for its acknowledgement once more.
 *
 * @param pending         the registry
 * @param[out] token      the message's token; may be NULL
 * @param[out] user_data  what was registered with it; may be NULL
 * @return HANDOFF_OK: the entry is removed; HANDOFF_NOTHING; HANDOFF_ERR_INVALID_ARGUMENT if
 *         `pending` is NULL.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_pending_expire(handoff_raw_pending *pending,
                                          handoff_raw_token *token,
                                          void **user_data) HANDOFF_NOEXCEPT;

/**
 * Gets the time until the next entry expires, for poll(2) or a timer.
 *
 * @param pending       the registry
 * @param[out] wait_ms  the time in milliseconds, rounded up; 0 if one has expired; at most INT_MAX
 * @return HANDOFF_OK; HANDOFF_NOTHING if there is no entry; HANDOFF_ERR_INVALID_ARGUMENT if a
 *         pointer is NULL.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_pending_next_wait(const handoff_raw_pending *pending,
                                             int *wait_ms) HANDOFF_NOEXCEPT;

/**
 * Counts the entries of a registry.
 *
 * @param pending  the registry
 * @return the count; 0 if `pending` is NULL.
 */
size_t handoff_raw_pending_length(const handoff_raw_pending *pending) HANDOFF_NOEXCEPT;

/**
 * Frees a registry. The `user_data` of entries that are still there stays yours.
 *
 * @param pending  the registry, or NULL, which does nothing; no thread may be using it
 */
void handoff_raw_pending_free(handoff_raw_pending *pending) HANDOFF_NOEXCEPT;

/**
 * The recent failures of each backend, and which backends rest, for a broker that uses the raw
 * layer. A channel counts its backend's failures itself.
 *
 * Any number of threads may use one at once. After fork() in a program with several threads, make
 * a new one in the child: another thread may have held the lock.
 */
typedef struct handoff_raw_failures handoff_raw_failures;

/**
 * The limits of a failure counter. Zero is the default in every field but `size`. Out-of-range
 * values are clamped.
 */
typedef struct handoff_raw_failures_options {
    /** Set by HANDOFF_RAW_FAILURES_OPTIONS_INIT. */
    size_t size;
    /** A backend rests after this many failures within `period_ms`: 1 to 4096, default 8. */
    size_t max_failures;
    /**
     * How long a failure counts, in milliseconds: default 30000. If it is under 8000, it is also
     * the longest pause between two trials. A trial that nobody reports on counts as over after
     * this time.
     */
    uint64_t period_ms;
    /**
     * The most backends with failures, 1 to 65536, default 1024. Beyond that, the one that failed
     * longest ago is forgotten.
     */
    size_t max_backends;
} handoff_raw_failures_options;
#define HANDOFF_RAW_FAILURES_OPTIONS_INIT \
    { sizeof(handoff_raw_failures_options), 0, 0, 0 }

/**
 * Initialises options as HANDOFF_RAW_FAILURES_OPTIONS_INIT does, for languages without macros.
 *
 * @param[out] options  the options
 * @param size          sizeof(handoff_raw_failures_options)
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `options` is NULL or `size` cannot be right.
 */
handoff_status handoff_raw_failures_options_init(handoff_raw_failures_options *options,
                                                 size_t size) HANDOFF_NOEXCEPT;

/**
 * Makes a failure counter without failures.
 *
 * @param options        the limits, or NULL for the defaults; read during the call only
 * @param[out] failures  the counter; free it with handoff_raw_failures_free()
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `failures` is NULL or `options->size` is
 *         wrong.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_failures_new(const handoff_raw_failures_options *options,
                                        handoff_raw_failures **failures) HANDOFF_NOEXCEPT;

/**
 * What a broker knows about a connection and its backend before it tries. If all is zero, there is
 * no reason not to try.
 */
typedef struct handoff_raw_inputs {
    /** Set by HANDOFF_RAW_INPUTS_INIT. */
    size_t size;
    /** Not 0: the client's protocol or connection cannot change hands. */
    uint32_t client_unsupported;
    /** Not 0: the service is configured not to hand over. */
    uint32_t policy_disabled;
    /** Not 0: this process is short of descriptors. */
    uint32_t descriptor_pressure;
    /** Not 0: the broker uses only backends that it started, and did not start this one. */
    uint32_t foreign_backend;
} handoff_raw_inputs;
#define HANDOFF_RAW_INPUTS_INIT \
    { sizeof(handoff_raw_inputs), 0, 0, 0, 0 }

/**
 * Initialises inputs as HANDOFF_RAW_INPUTS_INIT does, for languages without macros.
 *
 * @param[out] inputs  the inputs
 * @param size         sizeof(handoff_raw_inputs)
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `inputs` is NULL or `size` cannot be right.
 */
handoff_status handoff_raw_inputs_init(handoff_raw_inputs *inputs, size_t size) HANDOFF_NOEXCEPT;

/** Whether to try a backend. */
typedef struct handoff_raw_decision {
    /** Set by HANDOFF_RAW_DECISION_INIT. */
    size_t size;
    /** HANDOFF_REASON_NONE: try. Any other: serve the client another way, for this reason. */
    handoff_reason reason;
    /**
     * When to ask again, in milliseconds from now, rounded up; -1 if there is no such time. It is
     * the time of the next trial or, while a trial is out, the pause that would follow that trial.
     */
    int64_t retry_after_ms;
} handoff_raw_decision;
#define HANDOFF_RAW_DECISION_INIT \
    { sizeof(handoff_raw_decision), 0, 0 }

/**
 * Decides whether to try a backend.
 *
 * A backend that failed too often rests until handoff_raw_failures_record_success(). Meanwhile
 * this call lets one attempt at a time through, as a trial: the first after 1 second, then after
 * pauses of 2, 4, 8, 8 ... seconds. The pause begins when the trial has ended. So after
 * HANDOFF_REASON_NONE make the attempt, and report how it ended with
 * handoff_raw_failures_record_success() or handoff_raw_failures_record_failure(). A trial that
 * nobody reports on counts as over after `period_ms`.
 *
 * @param failures       the counter
 * @param backend        names the backend, such as the path of its handoff socket
 * @param inputs         what is known, or NULL if there is no reason not to try; read during the
 *                       call only
 * @param[out] decision  HANDOFF_REASON_NONE, or the first of these that applies:
 *                       HANDOFF_REASON_CLIENT_UNSUPPORTED, HANDOFF_REASON_POLICY_DISABLED,
 *                       HANDOFF_REASON_FOREIGN_BACKEND, HANDOFF_REASON_DESCRIPTOR_PRESSURE,
 *                       HANDOFF_REASON_RATE_LIMITED
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if another pointer is NULL or a `size` is
 *         wrong.
 */
HANDOFF_MUST_USE
handoff_status handoff_raw_failures_should_attempt(handoff_raw_failures *failures,
                                                   const char *backend,
                                                   const handoff_raw_inputs *inputs,
                                                   handoff_raw_decision *decision) HANDOFF_NOEXCEPT;

/**
 * Counts a failed attempt. If a trial is out, the failure counts as the trial's.
 *
 * Do not count a rejection (a verdict whose `cause` is HANDOFF_OK): it is an answer, not a
 * failure. The call allocates for a backend's first failure.
 *
 * @param failures       the counter
 * @param backend        names the backend; copied
 * @param reason         why it failed, from a handoff_raw_verdict or handoff_status_reason():
 *                       HANDOFF_REASON_PERMISSION_DENIED, HANDOFF_REASON_INTEGRITY_MISMATCH,
 *                       HANDOFF_REASON_ACK_TIMEOUT, HANDOFF_REASON_BACKEND_UNAVAILABLE,
 *                       HANDOFF_REASON_BACKEND_BUSY, HANDOFF_REASON_DESCRIPTOR_PRESSURE or
 *                       HANDOFF_REASON_UNSUPPORTED_PLATFORM
 * @param[out] decision  the reason for this fallback and, if the backend rests now, when to try
 *                       again; may be NULL
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if another pointer is NULL or `reason` is any
 *         other; HANDOFF_ERR_NO_MEMORY.
 */
handoff_status handoff_raw_failures_record_failure(handoff_raw_failures *failures,
                                                   const char *backend,
                                                   handoff_reason reason,
                                                   handoff_raw_decision *decision) HANDOFF_NOEXCEPT;

/**
 * Forgets a backend's failures and ends its rest: it works again.
 *
 * @param failures  the counter
 * @param backend   names the backend
 * @return HANDOFF_OK, even if it had none; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL.
 */
handoff_status handoff_raw_failures_record_success(handoff_raw_failures *failures,
                                                   const char *backend) HANDOFF_NOEXCEPT;

/**
 * Counts the recent failures of a backend, at most `max_failures`.
 *
 * @param failures  the counter
 * @param backend   names the backend
 * @return the count; 0 if a pointer is NULL.
 */
size_t handoff_raw_failures_failed_count(const handoff_raw_failures *failures,
                                         const char *backend) HANDOFF_NOEXCEPT;

/**
 * Frees a failure counter.
 *
 * @param failures  the counter, or NULL, which does nothing; no thread may be using it
 */
void handoff_raw_failures_free(handoff_raw_failures *failures) HANDOFF_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* HANDOFF_RAW_H */
