/*
 * handoff/tls.h: connections whose TLS the kernel does (kTLS of Linux). The rules that hold for
 * every call are in handoff.h.
 *
 * The client speaks TLS, and you read and write plain bytes on its socket: send(2), writev(2) and
 * sendfile(2) as on any socket. Two things are different. A record other than data makes read(2)
 * and recv(2) fail with EIO, so receive with handoff_tls_receive(). And without an alert,
 * close_notify, the client may take the end for an attack, so end with handoff_tls_shutdown(). Both
 * do the plain thing on a plain socket, so that one piece of code serves both.
 *
 * In an event loop call handoff_tls_receive() with a wait_ms of 0 until it returns
 * HANDOFF_TIMED_OUT, and with epoll(7) use EPOLLET. Some kernels, such as 6.1, call a socket
 * readable when a part of a record has come: without EPOLLET a client that sends no more would keep
 * the loop busy. A client may also send a byte at a time, so give the whole of what you wait for a
 * deadline.
 *
 * A write need not fail when the client has gone: Linux 6.1 reports that once, perhaps to another
 * process with a copy, and then goes on taking what you send. So a stream that only writes must
 * watch for the end of its input, too: receive, or stop when poll(2) says POLLHUP, which it does
 * without being asked for any event.
 *
 * The calls have no state except what you pass in. Different threads may use different sockets at
 * once, and one socket may be received from in one thread and written to in another.
 *
 * You cannot continue a session whose client updates its key: close(2) the connection when you are
 * told of it, because poll(2) and epoll(7) may say nothing more. docs/platforms.md, KeyUpdate, has
 * the rest.
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
 * What the kernel reports about a connection's TLS. No key is in it: the library never asks for
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
 * Receives data, as recv(2) does. Nothing but data is ever returned as data.
 *
 * It waits as `wait_ms` says, whether the descriptor is non-blocking or not. A record is received
 * when all of it has come.
 *
 * @param fd             a connection, with TLS that the kernel does, or plain
 * @param buffer         where the data goes. If the call returns anything but HANDOFF_OK, what is
 *                       there has no meaning.
 * @param len            the room there, at least 1; 16384 takes a whole record
 * @param wait_ms        how long to wait, in milliseconds, as in poll(2)
 * @param[out] received  how many bytes; 0 is the end of the stream: close_notify or, on a plain
 *                       socket, the end of the connection. Do not receive again.
 * @return HANDOFF_OK; HANDOFF_TIMED_OUT if nothing came in that time, also with a `wait_ms` of 0;
 *         HANDOFF_ERR_END_OF_STREAM if the client closed a connection with TLS without
 *         close_notify. Many do. Treat what you have as complete only if its own framing says so,
 *         as an HTTP request's does;
 *         HANDOFF_ERR_TLS_KEY_UPDATE if the client has updated its key, which cannot be followed;
 *         HANDOFF_ERR_TLS_ALERT if the client sent another alert, except user_canceled, which only
 *         says that close_notify comes: handoff_last_error() says which;
 *         HANDOFF_ERR_TLS_RECORD for any record other than data, such as a handshake (a
 *         client that renegotiates), and for what is no record of this connection;
 *         HANDOFF_ERR_RECEIVE_FAILED with errno as of recv(2), such as ECONNRESET;
 *         HANDOFF_ERR_INVALID_ARGUMENT, also if `fd` is not a socket, or `len` is 0 or more
 *         than SSIZE_MAX.
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
 * TLS of what you send, it sends the alert close_notify before that.
 *
 * The descriptor stays yours and open: close(2) it next. If the client may still be sending, first
 * receive until the end of the stream: close(2) with unread bytes resets the connection, and the
 * client may lose your last ones.
 *
 * @param fd       a connection, with TLS that the kernel does, or plain
 * @param wait_ms  how long to wait for room in the socket's buffer, in milliseconds, as in
 *                 poll(2), whether the descriptor is non-blocking or not. A plain socket needs
 *                 none.
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
