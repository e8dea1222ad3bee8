/*
 * tls.h: what the tests of TLS connections begin with: both ends of one, by OpenSSL.
 */
#ifndef TLS_H
#define TLS_H

#include "../support.h"

#include <openssl/ssl.h>

/** How the ends of a connection speak. */
struct tls_kind {
    int version;           /* TLS1_2_VERSION or TLS1_3_VERSION */
    const char *cipher;    /* as OpenSSL names it: "ECDHE-ECDSA-AES128-GCM-SHA256" */
    bool in_user_space;    /* the server does not ask for kernel TLS */
};

/** A connection over TCP on loopback. */
struct tls {
    SSL *server, *client;
    int server_fd, client_fd;
};

/** Sets up a connection, the handshake done, and what the server sent behind it read. */
void tls_open(struct tls *tls, const struct tls_kind *kind);

/** Frees what is left of it, without a close_notify. The server's may be NULL and -1 already. */
void tls_close(struct tls *tls);

/** Frees an end silently and leaves its descriptor: no close_notify goes out. */
void tls_release(SSL **end);

/** Which directions of an end are in the kernel, as OpenSSL sees it. */
bool tls_kernel_sends(SSL *end);
bool tls_kernel_receives(SSL *end);

/** Whether a socket has kernel TLS, as the kernel sees it: TCP_ULP. */
bool tls_in_kernel(int fd);

/** Whether this OpenSSL, which may be newer than its headers, lets the kernel receive TLS 1.3. */
bool tls_13_receives_in_kernel(void);

#endif
