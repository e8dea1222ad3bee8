/*
 * tls.h: both ends of a TLS connection over TCP on loopback, by OpenSSL, for the tests that need
 * one. The server lets the kernel do the TLS; the client does it in user space.
 */
#ifndef TLS_H
#define TLS_H

#include "../support.h"

#include <openssl/ssl.h>

/** RUN_TESTS() where the kernel has kernel TLS; elsewhere it says in one line that it hasn't. */
#define RUN_TLS_TESTS(tests) (kernel_has_tls() ? RUN_TESTS(tests) : 1)

bool kernel_has_tls(void);

/** How the two ends speak. */
struct tls_kind {
    int version;        /**< TLS1_2_VERSION or TLS1_3_VERSION */
    const char *cipher; /**< as OpenSSL names it */
    bool in_user_space; /**< the server does not ask for kernel TLS */
};

static const struct tls_kind tls_1_2_aes_128 = {TLS1_2_VERSION, "ECDHE-ECDSA-AES128-GCM-SHA256", 0};
static const struct tls_kind tls_1_2_aes_256 = {TLS1_2_VERSION, "ECDHE-ECDSA-AES256-GCM-SHA384", 0};
static const struct tls_kind tls_1_2_chacha = {TLS1_2_VERSION, "ECDHE-ECDSA-CHACHA20-POLY1305", 0};
static const struct tls_kind tls_1_2_cbc = {TLS1_2_VERSION, "ECDHE-ECDSA-AES128-SHA256", 0};
static const struct tls_kind tls_1_3_aes_128 = {TLS1_3_VERSION, "TLS_AES_128_GCM_SHA256", 0};
static const struct tls_kind tls_1_3_aes_256 = {TLS1_3_VERSION, "TLS_AES_256_GCM_SHA384", 0};
static const struct tls_kind tls_1_3_chacha = {TLS1_3_VERSION, "TLS_CHACHA20_POLY1305_SHA256", 0};

/** An end for a connected socket. The handshake is still to be done. */
SSL *tls_new_server(int fd, const struct tls_kind *kind);
SSL *tls_new_client(int fd, const struct tls_kind *kind);

/** Does the handshake of an end whose socket blocks. The other end is in another process. */
void tls_shake_hands(SSL *end);

/** Frees an end silently, without a close_notify, and leaves its descriptor open. */
void tls_release(SSL **end);

/** Both ends in one process. */
struct tls {
    SSL *server, *client;
    int server_fd, client_fd;
};

/** Sets up a connection with the handshake done, and its tickets read by the client. */
void tls_open(struct tls *tls, const struct tls_kind *kind);

/** Releases and closes what is left of it: an end that is NULL, a descriptor that is -1 is not. */
void tls_close(struct tls *tls);

/** Writes, or reads and compares, all of these bytes. */
void tls_write(SSL *end, const void *bytes, size_t len);
void tls_expect(SSL *end, const void *bytes, size_t len);

/** Whether the kernel does a direction of an end, as OpenSSL sees it. */
bool tls_kernel_sends(SSL *end);
bool tls_kernel_receives(SSL *end);

/** Whether a socket has kernel TLS for at least one direction, as the kernel sees it: TCP_ULP. */
bool tls_in_kernel(int fd);

/** Begins to capture what goes over loopback. Needs root. */
int tls_start_capture(void);

/** Ends it, and returns whether any part of these bytes went over loopback as it is. */
bool tls_captured(int capture, const void *bytes, size_t len);

/** Whether this OpenSSL lets the kernel receive TLS 1.3: from 3.2 on. */
bool tls_1_3_receives_in_kernel(void);

/** Skips a test of TLS 1.3 in both directions with an OpenSSL that can't. */
void skip_without_tls_1_3(const struct tls_kind *kind);

#endif
