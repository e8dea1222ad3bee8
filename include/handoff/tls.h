/*
 * handoff/tls.h: connections whose TLS the kernel does (kTLS of Linux). The rules that hold for
 * every call are in handoff.h.
 *
 * The client speaks TLS, and you read and write plain bytes on its socket: send(2), writev(2) and
 * sendfile(2) as on any socket. Two things are different. A record other than data makes read(2)
 * and recv(2) fail with EIO, so receive with handoff_tls_receive(). And if the connection ends
 * without the alert close_notify, the client may take that for an attack, so end with
 * handoff_tls_shutdown(). On a plain socket, these calls do what recv(2) and shutdown(2) do, so the
 * same code serves both kinds.
 *
 * In an event loop, call handoff_tls_receive() with a wait_ms of 0 until it returns
 * HANDOFF_TIMED_OUT, and with epoll(7) use EPOLLET. Some kernels, such as 6.1, report a socket as
 * readable when a part of a record has come: without EPOLLET, a client that sends no more would
 * keep the loop busy. A client may also send a byte at a time, so set one deadline for all that you
 * wait for.
 *
 * A write may succeed although the client has gone: Linux 6.1 reports that once, perhaps to another
 * process that has a copy, and then goes on accepting what you send. So a stream that only writes
 * must also watch for the end of its input: receive, or stop when poll(2) reports POLLHUP, which it
 * does even if you ask for no event.
 *
 * The calls have no state except what you pass in. Different threads may use different sockets at
 * once, and one thread may receive from a socket while another writes to it.
 *
 * A session cannot continue after its client has updated its key: close(2) the connection as soon
 * as a call tells you, because poll(2) and epoll(7) may report nothing more. See docs/platforms.md,
 * KeyUpdate.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */

#ifndef HANDOFF_TLS_H
#define HANDOFF_TLS_H

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/** In handoff_tls_session.version: TLS 1.2. */
#define HANDOFF_TLS_1_2 771

/** In handoff_tls_session.version: TLS 1.3. */
#define HANDOFF_TLS_1_3 772

/** In handoff_tls_session.directions: the kernel encrypts what you send. */
#define HANDOFF_TLS_SEND 1

/** In handoff_tls_session.directions: the kernel decrypts what you receive. */
#define HANDOFF_TLS_RECEIVE 2

/**
 * What the kernel reports about a connection's TLS. It holds no key: the library never asks for
 * one.
 */
typedef struct handoff_tls_session {
    /** Set by HANDOFF_TLS_SESSION_INIT. */
    size_t size;
    /** As in the protocol: HANDOFF_TLS_1_2 or HANDOFF_TLS_1_3. */
    uint32_t version;
    /** The kernel's number of the cipher: TLS_CIPHER_* of linux/tls.h. */
    uint32_t cipher;
    /** HANDOFF_TLS_SEND and HANDOFF_TLS_RECEIVE. An arrival with `tls` has both. */
    uint32_t directions;
    /** Reserved: always 0. */
    uint32_t reserved;
    /** "TLSv1.2", "TLSv1.3", or "unknown". */
    const char *version_name;
    /**
     * The cipher's name, such as "AES-128-GCM" or "CHACHA20-POLY1305"; "unknown" if the library is
     * older than the cipher. The kernel does not know the rest of the cipher suite.
     */
    const char *cipher_name;
} handoff_tls_session;
#define HANDOFF_TLS_SESSION_INIT \
    { sizeof(handoff_tls_session), 0, 0, 0, 0, NULL, NULL }

/**
 * Gets what the kernel reports about a connection's TLS.
 *
 * @param fd            a socket
 * @param[out] session  its TLS. The strings are constants.
 * @return HANDOFF_OK; HANDOFF_NOTHING if the kernel does no TLS on this socket: what you send is
 *         what the client gets; HANDOFF_ERR_INVALID_ARGUMENT, also if `fd` is not a socket or
 *         `session->size` is wrong; HANDOFF_ERR_RECEIVE_FAILED if the system refuses to tell.
 */
HANDOFF_MUST_USE
handoff_status handoff_tls_get_session(int fd, handoff_tls_session *session) HANDOFF_NOEXCEPT;

/**
 * Receives data, as recv(2) does. The call never returns anything else as data.
 *
 * The call waits as `wait_ms` says, whether the descriptor is non-blocking or not. It receives a
 * record only when all of the record has come.
 *
 * @param fd             a connection, with TLS that the kernel does, or plain
 * @param buffer         where the data goes. Unless the call returns HANDOFF_OK, the contents have
 *                       no meaning.
 * @param len            the size of the buffer, at least 1; 16384 takes a whole record
 * @param wait_ms        how long to wait, in milliseconds, as in poll(2)
 * @param[out] received  the number of bytes; 0 at the end of the stream: close_notify or, on a
 *                       plain socket, the end of the connection. Do not receive again.
 * @return HANDOFF_OK; HANDOFF_TIMED_OUT if nothing came in that time, also with a `wait_ms` of 0;
 *         HANDOFF_ERR_END_OF_STREAM if the client closed a connection with TLS without
 *         close_notify. Many clients do. Treat what you have as complete only if its own framing
 *         says so, as an HTTP request's does;
 *         HANDOFF_ERR_TLS_KEY_UPDATE if the client has updated its key: the session cannot
 *         continue;
 *         HANDOFF_ERR_TLS_ALERT if the client sent any alert except close_notify and
 *         user_canceled, which only says that close_notify follows: handoff_last_error() says
 *         which;
 *         HANDOFF_ERR_TLS_RECORD for any record other than data, such as a handshake (a client
 *         that renegotiates), and for bytes that are not a record of this connection;
 *         HANDOFF_ERR_RECEIVE_FAILED with errno as of recv(2), such as ECONNRESET;
 *         HANDOFF_ERR_INVALID_ARGUMENT, also if `fd` is not a socket, or `len` is 0 or more than
 *         SSIZE_MAX.
 *
 * After an error nothing more can be received: close(2) `fd`.
 */
HANDOFF_MUST_USE
handoff_status handoff_tls_receive(int fd,
                                   void *buffer,
                                   size_t len,
                                   int wait_ms,
                                   size_t *received) HANDOFF_NOEXCEPT;

/**
 * Ends your direction of a connection, as shutdown(2) with SHUT_WR does. If the kernel does the
 * TLS of what you send, the call first sends the alert close_notify.
 *
 * The descriptor stays yours and open: close(2) it next. If the client may still be sending, first
 * receive until the end of the stream: close(2) with unread bytes resets the connection, and the
 * client may lose the last bytes that you sent.
 *
 * @param fd       a connection, with TLS that the kernel does, or plain
 * @param wait_ms  how long to wait for room in the socket's buffer, in milliseconds, as in
 *                 poll(2), whether the descriptor is non-blocking or not. A plain socket needs no
 *                 room.
 * @return HANDOFF_OK; HANDOFF_TIMED_OUT if there was no room in that time: nothing was sent; call
 *         it again when the socket is writable, or close(2) it without close_notify;
 *         HANDOFF_ERR_SEND_FAILED with errno as of sendmsg(2) or shutdown(2), such as EPIPE or
 *         ENOTCONN: close(2) it; HANDOFF_ERR_INVALID_ARGUMENT if `fd` is not a socket.
 */
HANDOFF_MUST_USE
handoff_status handoff_tls_shutdown(int fd, int wait_ms) HANDOFF_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* HANDOFF_TLS_H */
