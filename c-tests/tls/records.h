/*
 * records.h: TCP connections on loopback whose TLS the kernel does with keys that are set by hand, so that
 * an end can send any record.
 */
#ifndef RECORDS_H
#define RECORDS_H

#include "tls.h"

#include <linux/tls.h>

#ifndef SOL_TLS
#define SOL_TLS 282
#endif

enum { DATA = 23, HANDSHAKE = 22, ALERT = 21, CHANGE_CIPHER_SPEC = 20 };

/** Directions have keys of their own. */
enum { TO_SERVER = 1, TO_CLIENT = 2, NEXT_TO_SERVER = 3, NEXT_TO_CLIENT = 4 };

struct suite {
    int version, cipher;
    const char *version_name, *cipher_name;
};

/** The first three are of TLS 1.2, the others of TLS 1.3. */
enum { SUITES = 6, TLS_1_3_SUITE = 3 };
extern const struct suite suites[SUITES];

union keys {
    struct tls_crypto_info info;
    struct tls12_crypto_info_aes_gcm_128 aes_128;
    struct tls12_crypto_info_aes_gcm_256 aes_256;
    struct tls12_crypto_info_chacha20_poly1305 chacha;
};

/** Makes the keys of a direction: bytes that are no secret. The first record has the number 0. */
socklen_t make_keys(union keys *keys, const struct suite *suite, int direction);

/** Sets TLS_TX or TLS_RX. Returns 0, or errno. */
int set_keys(int fd, const struct suite *suite, int option, int direction);

/** The same, and it must succeed. */
void use_keys(int fd, const struct suite *suite, int option, int direction);

void use_tls(int fd);

/** The server is ours; the client's end can send any record. */
struct pair {
    int server, client;
};

/** Opens a connection whose server has TLS, or both ends. */
void open_pair(struct pair *pair, const struct suite *suite);
void open_both(struct pair *pair, const struct suite *suite);
void close_pair(struct pair *pair);

void send_record(int fd, int type, const void *bytes, size_t len);

/** Makes a record of a client without TLS, for what the kernel would not make, such as an empty one: with
 * AES-128-GCM, the `number`th. Returns its length: 29 bytes more than `len` at the most. */
size_t seal_record(void *record, const struct suite *suite, uint64_t number, int type, const void *bytes,
                   size_t len);

/** Receives bytes of one type. Returns how many; 0 at the end of the stream, with the type -1. */
size_t receive_record(int fd, int *type, void *bytes, size_t room);

/** handoff_tls_receive(): sets `received` to 99 first. */
handoff_status receive(int fd, void *bytes, size_t room, size_t *received);
void expect_data(int fd, const void *bytes, size_t len);
void expect_end(int fd);
void expect_error(int fd, handoff_status status);

#endif
