/*
 * handoff/status.h: statuses, errors, reasons, the version. The rules that hold for every call are
 * in handoff.h.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */

#ifndef HANDOFF_STATUS_H
#define HANDOFF_STATUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** The version of this header. handoff_version() returns the library's. */
#define HANDOFF_VERSION "0.2.0"
#define HANDOFF_VERSION_MAJOR 0
#define HANDOFF_VERSION_MINOR 2
#define HANDOFF_VERSION_PATCH 0

/** A version as one number, for #if HANDOFF_VERSION_NUMBER >= HANDOFF_VERSION_CHECK(0, 3, 0). */
#define HANDOFF_VERSION_CHECK(major, minor, patch) \
    (((major) << 16) | ((minor) << 8) | (patch))
/** The version of this header as one number. */
#define HANDOFF_VERSION_NUMBER                                           \
    HANDOFF_VERSION_CHECK(HANDOFF_VERSION_MAJOR, HANDOFF_VERSION_MINOR, \
                          HANDOFF_VERSION_PATCH)

/** 1 where this library works, 0 elsewhere. handoff_supported() asks the running system. */
#ifdef __linux__
#define HANDOFF_SUPPORTED 1
#else
#define HANDOFF_SUPPORTED 0
#endif

/** No limit, for a time: a field or argument whose description names this. */
#define HANDOFF_NO_TIMEOUT UINT64_MAX
/** No limit, for a size_t field whose description names this. */
#define HANDOFF_NO_LIMIT SIZE_MAX

#if defined(__GNUC__) || defined(__clang__)
#define HANDOFF_MUST_USE __attribute__((warn_unused_result))
#define HANDOFF_DEPRECATED(instead) __attribute__((deprecated(instead)))
#else
#define HANDOFF_MUST_USE
#define HANDOFF_DEPRECATED(instead)
#endif

#ifdef __cplusplus
#define HANDOFF_NOEXCEPT noexcept
#else
#define HANDOFF_NOEXCEPT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/**
 * What a call returns: HANDOFF_OK, a positive number if there is neither a result nor an error, or
 * a negative HANDOFF_ERR_*.
 *
 * After an error, errno is the system's error, or 0 if the error is not the system's. If a backend
 * cannot be used, errno may also be one of the numbers that `system_errno` in
 * handoff_broker_backend_state lists. handoff_last_error() returns a message. Out parameters are
 * untouched unless the status is HANDOFF_OK. A number never changes its meaning.
 */
typedef int32_t handoff_status;

/** Success. */
#define HANDOFF_OK 0

/** There is nothing to take. Not an error: errno and handoff_last_error() stay as they were. */
#define HANDOFF_NOTHING 1

/**
 * The wait ended because its time was up. Not an error: errno and handoff_last_error() stay as
 * they were.
 */
#define HANDOFF_TIMED_OUT 2

/**
 * handoff_broker_wake() or handoff_backend_wake() ended the wait, or came before the call that
 * would have waited. Not an error: errno and handoff_last_error() stay as they were.
 */
#define HANDOFF_WOKEN 3

/**
 * Returns a message about this thread's last error.
 *
 * The message is one line of English, for people. It names the socket and the descriptor, if there
 * were any, and never shows a token. Control characters in a path are shown as '?'.
 *
 * @return a string, never NULL; empty if no call has failed yet. It is valid until this thread's
 *         next error, or until the thread ends.
 *
 * Each thread has its own message; a child of fork() starts with a copy. In a runtime that moves
 * work between threads, use handoff_broker_last_error() and handoff_backend_last_error().
 */
const char *handoff_last_error(void) HANDOFF_NOEXCEPT;

/**
 * Returns the status of this thread's last error, for a call that returns a descriptor in place of
 * a status: handoff_broker_fd() and handoff_backend_fd().
 *
 * @return a negative status; HANDOFF_OK if no call has failed yet.
 *
 * Each thread has its own value, as with handoff_last_error().
 */
handoff_status handoff_last_status(void) HANDOFF_NOEXCEPT;

/**
 * Returns errno of this thread's last error, for languages that cannot read errno right after a
 * call.
 *
 * @return the value of errno(3) at that error; also 0 if no call has failed yet.
 *
 * Each thread has its own value, as with handoff_last_error().
 */
int handoff_last_errno(void) HANDOFF_NOEXCEPT;

/**
 * Names a status: "HANDOFF_OK", "HANDOFF_ERR_WOULD_BLOCK" and so on.
 *
 * @param status  any number
 * @return a constant string, never NULL; "HANDOFF_ERR_UNKNOWN" for unknown numbers.
 *
 * Safe in any thread, after fork() and in a signal handler.
 */
const char *handoff_status_name(handoff_status status) HANDOFF_NOEXCEPT;

/**
 * Describes a status in English. handoff_last_error() has the details of an error.
 *
 * @param status  any number
 * @return a constant string, never NULL; "unknown status" for unknown numbers.
 *
 * Safe in any thread, after fork() and in a signal handler.
 */
const char *handoff_status_message(handoff_status status) HANDOFF_NOEXCEPT;

/**
 * Returns the version of the library that runs. It can differ from the header's, HANDOFF_VERSION.
 *
 * At compile time compare HANDOFF_VERSION_NUMBER.
 *
 * @return a constant string such as "0.2.0".
 *
 * Safe in any thread, after fork() and in a signal handler.
 */
const char *handoff_version(void) HANDOFF_NOEXCEPT;

/**
 * Checks whether the running system has what the library needs. At compile time use
 * HANDOFF_SUPPORTED.
 *
 * @return HANDOFF_OK; HANDOFF_ERR_UNSUPPORTED if something is missing: handoff_last_error() names
 *         it; HANDOFF_ERR_DESCRIPTOR_PRESSURE if it cannot tell, because this process or the
 *         system is out of descriptors; HANDOFF_ERR_SYSTEM if it cannot tell because of another
 *         limit: errno is ENOMEM, for example, or EFBIG for RLIMIT_FSIZE.
 *
 * Safe in any thread and after fork(). Opens and closes a few descriptors.
 */
HANDOFF_MUST_USE
handoff_status handoff_supported(void) HANDOFF_NOEXCEPT;

/** Who owns a connection now: HANDOFF_ADOPTED or HANDOFF_FALLBACK. */
typedef uint32_t handoff_outcome;

/**
 * The backend owns the connection. close(2) your copy. If it is in your event loop, use
 * EPOLL_CTL_DEL first: close(2) does not remove it while the backend has a copy. Do not
 * shutdown(2) it: that would end the backend's connection too.
 */
#define HANDOFF_ADOPTED 1

/** The connection is still yours. Serve the client another way. */
#define HANDOFF_FALLBACK 2

/** Why a connection was not handed over: one of HANDOFF_REASON_*, which are listed below. */
typedef uint32_t handoff_reason;

/**
 * Returns the reason for a fallback after a call that failed.
 *
 * @param status  what handoff_broker_offer(), handoff_broker_offer_and_wait() or a call of the raw
 *                layer returned
 * @return one of HANDOFF_REASON_*. HANDOFF_REASON_NONE for HANDOFF_OK, the positive statuses and
 *         unknown numbers. Also HANDOFF_REASON_NONE for the errors that a fallback must not hide,
 *         which are HANDOFF_ERR_INVALID_ARGUMENT, HANDOFF_ERR_WRONG_PROCESS, HANDOFF_ERR_CLOSED
 *         and HANDOFF_ERR_INTERNAL, and for HANDOFF_ERR_TAKEN_BACK, HANDOFF_ERR_TOO_LATE and
 *         HANDOFF_ERR_TLS_*, which are not about an offer that failed.
 *
 * Safe in any thread, after fork() and in a signal handler.
 */
handoff_reason handoff_status_reason(handoff_status status) HANDOFF_NOEXCEPT;

/**
 * Names a reason in lower case, for logs: "acknowledgement timeout".
 *
 * @param reason  any number
 * @return a constant string, never NULL; "unknown" for unknown numbers.
 *
 * Safe in any thread, after fork() and in a signal handler.
 */
const char *handoff_reason_name(handoff_reason reason) HANDOFF_NOEXCEPT;

/**
 * Tells whether an error calls for a fallback only: the connection is certainly yours. Other
 * errors are bugs in the caller or in the library, which a fallback would hide: report them. The
 * exceptions are HANDOFF_ERR_CLOSED after your own handoff_broker_close() and, in the raw layer,
 * HANDOFF_ERR_RECEIVE_FAILED and HANDOFF_ERR_TOKEN_NOT_PENDING. HANDOFF_WOKEN is not an error.
 *
 * @param status  what handoff_broker_offer(), handoff_broker_offer_and_wait() or a call of the raw
 *                layer returned. What handoff_broker_dispatch(), handoff_broker_flush() and
 *                handoff_broker_next() return is about the broker, not about a connection.
 * @return true if all that you need to do is serve the client another way. False for HANDOFF_OK,
 *         the positive statuses, unknown numbers and the errors for which handoff_status_reason()
 *         returns HANDOFF_REASON_NONE. Also false for HANDOFF_ERR_RECEIVE_FAILED and
 *         HANDOFF_ERR_TOKEN_NOT_PENDING, after which the backend may own the connection. After
 *         false, the connection may still be yours: the description of the call says whose it is.
 *
 * Safe in any thread, after fork() and in a signal handler.
 */
bool handoff_status_is_fallback_safe(handoff_status status) HANDOFF_NOEXCEPT;

/**
 * Tells whether a refusal is temporary: it is about the backends, not about this offer, which may
 * be taken later. The client can wait in a queue of your own, for a limited time. The descriptor
 * that handoff_broker_fd() returned at the start becomes readable when an offer would be taken.
 *
 * @param status  what handoff_broker_offer() returned
 * @return true for HANDOFF_ERR_FULL, HANDOFF_ERR_RATE_LIMITED, HANDOFF_ERR_BACKEND_UNAVAILABLE,
 *         HANDOFF_ERR_TOO_MANY_CHANNELS, HANDOFF_ERR_WOULD_BLOCK, HANDOFF_ERR_PERMISSION_DENIED,
 *         HANDOFF_ERR_PEER_NOT_ALLOWED, HANDOFF_ERR_PEER_UNKNOWN and
 *         HANDOFF_ERR_DESCRIPTOR_PRESSURE; false for every other number.
 *
 * Safe in any thread, after fork() and in a signal handler.
 */
bool handoff_status_may_pass(handoff_status status) HANDOFF_NOEXCEPT;

/**
 * Tells whether the reason for a fallback is temporary: it is about the backends, not about this
 * offer. You can offer the client again: now, or when the descriptor of handoff_broker_fd()
 * becomes readable, as after a refusal for which handoff_status_may_pass() returns true.
 *
 * @param reason  the reason in a verdict, or what handoff_status_reason() returned
 * @return true for HANDOFF_REASON_BACKEND_UNAVAILABLE, HANDOFF_REASON_BACKEND_BUSY,
 *         HANDOFF_REASON_RATE_LIMITED, HANDOFF_REASON_ACK_TIMEOUT,
 *         HANDOFF_REASON_DESCRIPTOR_PRESSURE, HANDOFF_REASON_PERMISSION_DENIED and
 *         HANDOFF_REASON_TOO_MANY_CHANNELS; false for every other number.
 *
 * Safe in any thread, after fork() and in a signal handler.
 */
bool handoff_reason_may_pass(handoff_reason reason) HANDOFF_NOEXCEPT;

/**
 * Tells whether the descriptor may have reached the backend.
 *
 * @param status  what handoff_broker_offer(), handoff_broker_offer_and_wait(),
 *                handoff_broker_take_back() or a call of the raw layer returned, or the `cause` of
 *                a fallback in a handoff_raw_verdict
 * @return false if the descriptor was certainly not sent by that call. True for HANDOFF_OK,
 *         HANDOFF_NOTHING, HANDOFF_WOKEN, HANDOFF_ERR_SHORT_WRITE, HANDOFF_ERR_ACK_TIMEOUT,
 *         HANDOFF_ERR_ACK_MISMATCH, HANDOFF_ERR_ACK_MALFORMED, HANDOFF_ERR_RECEIVE_FAILED,
 *         HANDOFF_ERR_END_OF_STREAM, HANDOFF_ERR_TOKEN_NOT_PENDING, HANDOFF_ERR_INTERNAL,
 *         HANDOFF_ERR_TAKEN_BACK, HANDOFF_ERR_TOO_LATE, HANDOFF_ERR_SYSTEM, and for unknown
 *         numbers.
 *
 * Safe in any thread, after fork() and in a signal handler.
 */
bool handoff_status_may_have_reached_backend(handoff_status status) HANDOFF_NOEXCEPT;

/** No reason. In a verdict: the backend adopted the connection. In a decision: try the backend. */
#define HANDOFF_REASON_NONE 0

/** The client's connection cannot change hands. */
#define HANDOFF_REASON_CLIENT_UNSUPPORTED 1

/** The service is configured not to hand over. */
#define HANDOFF_REASON_POLICY_DISABLED 2

/**
 * Short of descriptors. In a verdict, this mostly means the backend: raise its RLIMIT_NOFILE. From
 * handoff_status_reason(), it means this process or the system.
 */
#define HANDOFF_REASON_DESCRIPTOR_PRESSURE 3

/** The backend rests, because it failed: see HANDOFF_STATE_RESTING. */
#define HANDOFF_REASON_RATE_LIMITED 4

/** The permissions of the handoff socket, or the peer's credentials, do not allow it. */
#define HANDOFF_REASON_PERMISSION_DENIED 5

/**
 * A token or a message was not what it should be. This is also the reason if you closed the
 * descriptor of an offer before the offer was sent, and its number was another socket's by then:
 * that is your bug. If that socket is another client, it is still yours, and has its own offer or
 * none: do not serve it for this one.
 */
#define HANDOFF_REASON_INTEGRITY_MISMATCH 6

/**
 * No verdict, or in the raw layer no acknowledgement, came by the deadline. This is also the
 * reason if the offer was not sent by then, or only just, because nobody called
 * handoff_broker_flush() or handoff_broker_dispatch(), or there was no room.
 */
#define HANDOFF_REASON_ACK_TIMEOUT 7

/** The broker uses only backends that it started, and did not start this one. */
#define HANDOFF_REASON_FOREIGN_BACKEND 8

/** Nobody listens on the handoff socket, or the backend closed it before it answered. */
#define HANDOFF_REASON_BACKEND_UNAVAILABLE 9

/** The backend, or the queue to it, is full. */
#define HANDOFF_REASON_BACKEND_BUSY 10

/** The backend rejected the connection. */
#define HANDOFF_REASON_REJECTED 11

/** This system cannot hand connections over. */
#define HANDOFF_REASON_UNSUPPORTED_PLATFORM 12

/** The broker was closed. */
#define HANDOFF_REASON_BROKER_CLOSED 13

/**
 * With HANDOFF_ADOPTED: the backend adopted the connection, but the channel ended before its
 * verdict arrived. Usually the backend died.
 */
#define HANDOFF_REASON_BACKEND_DIED 14

/**
 * The client is gone: its connection has ended. This is also the reason if you closed the
 * descriptor before it was sent. There is nobody to serve, unless a backend rejected the
 * connection for this reason and was wrong.
 */
#define HANDOFF_REASON_CLIENT_GONE 15

/**
 * More bytes go with the connection than the backend, the protocol or the socket's buffer takes.
 */
#define HANDOFF_REASON_TOO_LARGE 16

/**
 * The backend does not take this kind of socket: see `kind` in handoff_verdict and `kinds` in
 * handoff_backend_options.
 */
#define HANDOFF_REASON_KIND 17

/** The backend has reached its limit of channels: see `max_channels` in handoff_backend_options. */
#define HANDOFF_REASON_TOO_MANY_CHANNELS 18

/**
 * An argument is NULL, misaligned or out of range, a path is too long for a Unix socket, or a
 * descriptor is not open or of the wrong kind; handoff_last_error() says which. This is a bug in
 * the caller.
 */
#define HANDOFF_ERR_INVALID_ARGUMENT (-1)

/**
 * The system lacks something, a struct sets a field that this version does not have, or the
 * backend speaks another version of the protocol or does not know offers with TLS;
 * handoff_last_error() says what. Serve the client another way. Trying again does not help.
 */
#define HANDOFF_ERR_UNSUPPORTED (-2)

/**
 * The permissions of the socket's file or directory, a security module, or the backend's policy do
 * not allow it; handoff_last_error() says which. Check the socket's mode and owner, and the
 * policy.
 */
#define HANDOFF_ERR_PERMISSION_DENIED (-3)

/**
 * Nobody listens on the handoff socket, or the other end closed it. This is usual while a backend
 * restarts. Or the backend is at a limit of its descriptors or memory: handoff_last_error() says
 * so. Serve the client another way.
 */
#define HANDOFF_ERR_BACKEND_UNAVAILABLE (-4)

/** The socket's buffer or the listener's backlog is full. Nothing was sent. Try again later. */
#define HANDOFF_ERR_WOULD_BLOCK (-5)

/**
 * Out of descriptors: this process or the system is at its limit (EMFILE, ENFILE) or out of memory
 * for a new socket (ENOBUFS, ENOMEM), or this user has too many in flight over Unix sockets
 * (ETOOMANYREFS). Raise RLIMIT_NOFILE or offer less at once.
 */
#define HANDOFF_ERR_DESCRIPTOR_PRESSURE (-6)

/** Sending failed with an error that has no status of its own; see errno. Nothing was sent. */
#define HANDOFF_ERR_SEND_FAILED (-7)

/**
 * Raw layer: only a part of the message was sent, but its descriptor was. Close the socket. The
 * other end refuses what it received.
 */
#define HANDOFF_ERR_SHORT_WRITE (-8)

/**
 * Raw layer: no acknowledgement came by the deadline. Serve the client another way and close the
 * socket.
 */
#define HANDOFF_ERR_ACK_TIMEOUT (-9)

/** Raw layer: the acknowledgement is for another token. Close the socket. */
#define HANDOFF_ERR_ACK_MISMATCH (-10)

/** Raw layer: what was received is not an acknowledgement. Close the socket. */
#define HANDOFF_ERR_ACK_MALFORMED (-11)

/**
 * Receiving failed with an error that has no status of its own; see errno. In the raw layer, after
 * a message was sent, the backend may own the connection: close(2) your copy and serve nothing.
 */
#define HANDOFF_ERR_RECEIVE_FAILED (-12)

/** The other end closed the connection, or accepts no more acknowledgements. Close the socket. */
#define HANDOFF_ERR_END_OF_STREAM (-13)

/** Raw layer: the message has no descriptor. Close the socket. */
#define HANDOFF_ERR_NO_DESCRIPTOR (-14)

/** Raw layer: the message has more than one descriptor. All are closed. Close the socket. */
#define HANDOFF_ERR_SURPLUS_DESCRIPTORS (-15)

/**
 * Raw layer: the kernel could not install the descriptors: this process is at its RLIMIT_NOFILE,
 * or a security module refused. Those that it installed are closed. Close the socket.
 */
#define HANDOFF_ERR_CONTROL_TRUNCATED (-16)

/**
 * Raw layer: the message is shorter or longer than a token. Its descriptor is closed. Close the
 * socket.
 */
#define HANDOFF_ERR_WRONG_LENGTH (-17)

/** Raw layer: the token is not the expected one. */
#define HANDOFF_ERR_TOKEN_MISMATCH (-18)

/** Raw layer: the token has expired. It is no longer in the store. */
#define HANDOFF_ERR_TOKEN_EXPIRED (-19)

/**
 * Raw layer: the token is not pending: never known here, consumed, revoked or expired. A replay
 * looks like this.
 */
#define HANDOFF_ERR_TOKEN_NOT_PENDING (-20)

/** Raw layer: the token is already pending. */
#define HANDOFF_ERR_TOKEN_ALREADY_PENDING (-21)

/** Raw layer: every random token was already pending. The system's random source is broken. */
#define HANDOFF_ERR_TOKEN_COLLISION (-22)

/**
 * A limit is reached; handoff_last_error() says which. Try again when there is room, or raise the
 * limit.
 */
#define HANDOFF_ERR_FULL (-23)

/** The system has no randomness to give; see errno. */
#define HANDOFF_ERR_RANDOM (-24)

/** The system does not say who the peer is. Do not trust it. */
#define HANDOFF_ERR_PEER_UNKNOWN (-25)

/** The policy does not allow this peer. Close the connection. */
#define HANDOFF_ERR_PEER_NOT_ALLOWED (-26)

/**
 * Somebody already listens at that path: another process, perhaps a child of one that has ended,
 * or this process. The socket is untouched. A successor should try again until the old backend
 * drains or ends.
 */
#define HANDOFF_ERR_ADDRESS_IN_USE (-27)

/** The file at that path is not a socket. It is untouched. */
#define HANDOFF_ERR_NOT_A_SOCKET (-28)

/** The handoff socket could not be made, for a cause that has no status of its own; see errno. */
#define HANDOFF_ERR_LISTEN_FAILED (-29)

/**
 * A bug in the library. What the call did is not known: free the handle. Before you free a broker,
 * call handoff_broker_close() and take the verdicts. Other handles stay usable. Please report the
 * bug, with the text of handoff_last_error().
 */
#define HANDOFF_ERR_INTERNAL (-30)

/**
 * The backend rests: it failed too often, or offers that timed out hold all its places. Serve the
 * client another way. See HANDOFF_STATE_RESTING.
 */
#define HANDOFF_ERR_RATE_LIMITED (-32)

/** The offer has more bytes than the backend or the protocol takes. */
#define HANDOFF_ERR_TOO_LARGE (-33)

/** The handle belongs to another process, which used it first. Make a new one after fork(). */
#define HANDOFF_ERR_WRONG_PROCESS (-34)

/** The handle is closed. Make a new one. */
#define HANDOFF_ERR_CLOSED (-35)

/**
 * The broker took the offer back or broke the protocol. Forget the arrival. Its descriptor is
 * closed.
 */
#define HANDOFF_ERR_TAKEN_BACK (-36)

/**
 * The offer cannot be taken back: it was adopted, it has its verdict, or `id` names no offer in
 * flight. In the raw layer: the system refused to take it back, so the backend may own the
 * connection.
 */
#define HANDOFF_ERR_TOO_LATE (-37)

/** The system refused something that the handle needs; see errno. */
#define HANDOFF_ERR_SYSTEM (-38)

/**
 * There is not enough memory for what the options or the peer ask for. handoff_last_error() says
 * for what.
 */
#define HANDOFF_ERR_NO_MEMORY (-39)

/**
 * The kernel does not do this connection's TLS in both directions; handoff_last_error() says in
 * which direction it does not. Serve the client another way.
 */
#define HANDOFF_ERR_NOT_TLS (-40)

/** The client has updated its TLS key, and the session cannot continue. Close the connection. */
#define HANDOFF_ERR_TLS_KEY_UPDATE (-41)

/**
 * The client has sent a TLS alert other than close_notify; handoff_last_error() says which. Close
 * the connection.
 */
#define HANDOFF_ERR_TLS_ALERT (-42)

/**
 * The client has sent a TLS record other than data, or bytes that are not a record of this
 * connection; handoff_last_error() says what. Close the connection.
 */
#define HANDOFF_ERR_TLS_RECORD (-43)

/**
 * The backend has reached its limit of channels, in total or for this broker's user;
 * handoff_last_error() says which. The broker tries again. Serve the client another way, and raise
 * `max_channels` or `max_channels_per_user` in handoff_backend_options.
 */
#define HANDOFF_ERR_TOO_MANY_CHANNELS (-44)

#ifdef __cplusplus
}
#endif

#endif /* HANDOFF_STATUS_H */
