/*
 * TLS 1.3 with OpenSSL before 3.2, which gives the kernel the key for sending and keeps the one for
 * receiving. The kernel gets it here, at the offer.
 *
 * Three things are needed, all by OpenSSL's documented calls. The key is derived (RFC 8446, 7.3) from
 * the client's traffic secret, which the callback for key logs is given. The number of the next record
 * is that of the records that OpenSSL has decrypted with this key, which the callback for messages is
 * told of. And the kernel has to begin where a record does: OpenSSL must have no byte of one.
 *
 * After a fallback nginx receives from the kernel, because OpenSSL cannot be told.
 */
#include "ngx_handoff.h"

#if (NGX_HANDOFF_TLS)

#include <openssl/core_names.h>
#include <openssl/kdf.h>
#include <linux/tls.h>

#ifndef SOL_TLS
#define SOL_TLS  282
#endif

#pragma GCC visibility push(hidden)

/* What NSS's key log calls the secret, and the client's random bytes in hexadecimal. */
#define NGX_HANDOFF_SECRET      "CLIENT_TRAFFIC_SECRET_0 "
#define NGX_HANDOFF_RANDOM_LEN  (2 * SSL3_RANDOM_SIZE)

typedef union {
    struct tls_crypto_info                          info;
    struct tls12_crypto_info_aes_gcm_128            aes_128;
    struct tls12_crypto_info_aes_gcm_256            aes_256;
    struct tls12_crypto_info_chacha20_poly1305      chacha20;
} ngx_handoff_keys_t;


static void ngx_handoff_key_log(const SSL *ssl, const char *line);
static void ngx_handoff_message(int sent, int version, int type, const void *data, size_t len,
    SSL *ssl, void *arg);
static socklen_t ngx_handoff_derive_keys(SSL *ssl, ngx_handoff_tls_t *tls,
    ngx_handoff_keys_t *keys);
static ngx_int_t ngx_handoff_derive(const SSL_CIPHER *cipher, ngx_handoff_tls_t *tls, char *label,
    u_char *key, size_t len);


/* Of an SSL_CTX: the callback for key logs that was there before. */
static int  ngx_handoff_key_log_index = -1;


/* For each SSL_CTX that connections to be handed over may have. */
ngx_int_t
ngx_handoff_prepare_tls(SSL_CTX *ctx)
{
    if (ctx == NULL
        || OpenSSL_version_num() >= 0x30200000L
        || !(SSL_CTX_get_options(ctx) & SSL_OP_ENABLE_KTLS)
        || SSL_CTX_get_keylog_callback(ctx) == ngx_handoff_key_log)
    {
        return NGX_OK;
    }

    if (ngx_handoff_key_log_index == -1) {
        ngx_handoff_key_log_index = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, NULL);
    }

    /* A pointer to a function is not one to an object: POSIX says that it can be kept as one. */
    if (ngx_handoff_key_log_index == -1
        || !SSL_CTX_set_ex_data(ctx, ngx_handoff_key_log_index,
                                (void *) SSL_CTX_get_keylog_callback(ctx)))
    {
        return NGX_ERROR;
    }

    SSL_CTX_set_keylog_callback(ctx, ngx_handoff_key_log);

    return NGX_OK;
}


static void
ngx_handoff_key_log(const SSL *ssl, const char *line)
{
    size_t                 len;
    ngx_int_t              byte;
    const char            *secret;
    ngx_connection_t      *c;
    ngx_handoff_tls_t     *tls;
    SSL_CTX_keylog_cb_func next;

    next = (SSL_CTX_keylog_cb_func) SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl),
                                                        ngx_handoff_key_log_index);
    if (next) {
        next(ssl, line);
    }

    c = ngx_ssl_get_connection((SSL *) ssl);
    len = sizeof(NGX_HANDOFF_SECRET) - 1;

    if (c == NULL || c->type != SOCK_STREAM || ngx_strncmp(line, NGX_HANDOFF_SECRET, len) != 0
        || ngx_strlen(line) <= len + NGX_HANDOFF_RANDOM_LEN + 1)
    {
        return;
    }

    secret = line + len + NGX_HANDOFF_RANDOM_LEN + 1;
    len = ngx_strlen(secret) / 2;

    if (len > EVP_MAX_MD_SIZE) {
        return;
    }

    tls = ngx_handoff_create_tls(c);
    if (tls == NULL) {
        return;
    }

    for (tls->secret_len = 0; tls->secret_len < len; tls->secret_len++) {
        byte = ngx_hextoi((u_char *) secret + 2 * tls->secret_len, 2);
        tls->secret[tls->secret_len] = (u_char) byte;
    }

    /* Not of the SSL_CTX: a connection keeps the one that it began with, also if SNI changes that. */
    SSL_set_msg_callback((SSL *) ssl, ngx_handoff_message);
}


/*
 * A server derives the secret when it has read the client's last message of the handshake: what is
 * told of from then on is under this secret.
 *
 * OpenSSL tells of each record's header and, when it has decrypted it, of the type that was inside.
 */
static void
ngx_handoff_message(int sent, int version, int type, const void *data, size_t len, SSL *ssl,
    void *arg)
{
    ngx_handoff_tls_t  *tls;

    tls = ngx_handoff_get_tls(ssl);
    if (tls == NULL || sent) {
        return;
    }

    if (type == SSL3_RT_HEADER) {
        tls->headers++;

    } else if (type == SSL3_RT_INNER_CONTENT_TYPE) {
        tls->records++;

    } else if (type == SSL3_RT_HANDSHAKE) {
        /* A KeyUpdate: there is a new secret, which nobody is told. */
        tls->rekeyed = 1;
    }
}


/* Whether the kernel receives, although OpenSSL does not know, or will do so at an offer. */
ngx_uint_t
ngx_handoff_tls_receives(ngx_connection_t *c)
{
    int                 cipher;
    ngx_handoff_tls_t  *tls;

    tls = ngx_handoff_get_tls(c->ssl->connection);
    if (tls == NULL) {
        return 0;
    }

    if (tls->kernel) {
        return 1;
    }

    /* Without the module there is nothing that could be given a key. */
    if (!BIO_get_ktls_send(SSL_get_wbio(c->ssl->connection))) {
        return 0;
    }

    cipher = SSL_CIPHER_get_cipher_nid(SSL_get_current_cipher(c->ssl->connection));

    return tls->secret_len && !tls->rekeyed
           && (cipher == NID_aes_128_gcm || cipher == NID_aes_256_gcm
               || cipher == NID_chacha20_poly1305);
}


/* NULL, or why that can't be done. */
char *
ngx_handoff_tls_receive_by_kernel(ngx_connection_t *c, ngx_handoff_tls_t *tls)
{
    int                  failed;
    socklen_t            len;
    ngx_handoff_keys_t   keys;

    /* Nothing is pending, but OpenSSL may have read a header and waits for the rest. */
    if (tls->headers != tls->records) {
        return "a part of a record is in OpenSSL";
    }

    if (tls->rekeyed) {
        return "its client has changed its key";
    }

    ngx_memzero(&keys, sizeof(keys));

    len = ngx_handoff_derive_keys(c->ssl->connection, tls, &keys);
    if (len == 0) {
        OPENSSL_cleanse(&keys, sizeof(keys));
        ngx_ssl_error(NGX_LOG_ALERT, c->log, 0, "deriving a key for the kernel failed");
        return "OpenSSL has derived no key for the kernel";
    }

    failed = setsockopt(c->fd, SOL_TLS, TLS_RX, &keys, len);

    OPENSSL_cleanse(&keys, sizeof(keys));
    OPENSSL_cleanse(tls->secret, sizeof(tls->secret));
    tls->secret_len = 0;

    if (failed) {
        ngx_log_error(NGX_LOG_INFO, c->log, ngx_socket_errno, "setsockopt(TLS_RX) failed");
        return "the kernel does not decrypt for it";
    }

    tls->kernel = 1;

    /* It would read for a close_notify. */
    c->ssl->no_wait_shutdown = 1;

    return NULL;
}


/* The length of what the kernel is given, or 0. */
static socklen_t
ngx_handoff_derive_keys(SSL *ssl, ngx_handoff_tls_t *tls, ngx_handoff_keys_t *keys)
{
    int                nid;
    u_char             iv[12], key[32];
    uint64_t           number;
    socklen_t          len;
    const SSL_CIPHER  *cipher = SSL_get_current_cipher(ssl);

    len = 0;
    nid = SSL_CIPHER_get_cipher_nid(cipher);
    number = htobe64(tls->records);

    if (ngx_handoff_derive(cipher, tls, "iv", iv, sizeof(iv)) != NGX_OK
        || ngx_handoff_derive(cipher, tls, "key", key, (nid == NID_aes_128_gcm) ? 16 : 32) != NGX_OK)
    {
        goto done;
    }

    keys->info.version = TLS_1_3_VERSION;

    /* Of AES-GCM's nonce the kernel calls the first four bytes the salt. */

    switch (nid) {

    case NID_aes_128_gcm:
        keys->info.cipher_type = TLS_CIPHER_AES_GCM_128;
        ngx_memcpy(keys->aes_128.key, key, TLS_CIPHER_AES_GCM_128_KEY_SIZE);
        ngx_memcpy(keys->aes_128.salt, iv, 4);
        ngx_memcpy(keys->aes_128.iv, iv + 4, 8);
        ngx_memcpy(keys->aes_128.rec_seq, &number, sizeof(number));
        len = sizeof(keys->aes_128);
        break;

    case NID_aes_256_gcm:
        keys->info.cipher_type = TLS_CIPHER_AES_GCM_256;
        ngx_memcpy(keys->aes_256.key, key, TLS_CIPHER_AES_GCM_256_KEY_SIZE);
        ngx_memcpy(keys->aes_256.salt, iv, 4);
        ngx_memcpy(keys->aes_256.iv, iv + 4, 8);
        ngx_memcpy(keys->aes_256.rec_seq, &number, sizeof(number));
        len = sizeof(keys->aes_256);
        break;

    case NID_chacha20_poly1305:
        keys->info.cipher_type = TLS_CIPHER_CHACHA20_POLY1305;
        ngx_memcpy(keys->chacha20.key, key, TLS_CIPHER_CHACHA20_POLY1305_KEY_SIZE);
        ngx_memcpy(keys->chacha20.iv, iv, sizeof(iv));
        ngx_memcpy(keys->chacha20.rec_seq, &number, sizeof(number));
        len = sizeof(keys->chacha20);
    }

done:

    OPENSSL_cleanse(iv, sizeof(iv));
    OPENSSL_cleanse(key, sizeof(key));

    return len;
}


/* HKDF-Expand-Label of RFC 8446, with no context. */
static ngx_int_t
ngx_handoff_derive(const SSL_CIPHER *cipher, ngx_handoff_tls_t *tls, char *label, u_char *key,
    size_t len)
{
    int           mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
    int           derived;
    char         *digest, prefix[] = "tls13 ";
    EVP_KDF      *kdf;
    EVP_KDF_CTX  *ctx;
    OSSL_PARAM    params[6];

    digest = (char *) EVP_MD_get0_name(SSL_CIPHER_get_handshake_digest(cipher));

    params[0] = OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode);
    params[1] = OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0);
    params[2] = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, tls->secret, tls->secret_len);
    params[3] = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_PREFIX, prefix, 6);
    params[4] = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_LABEL, label, ngx_strlen(label));
    params[5] = OSSL_PARAM_construct_end();

    kdf = EVP_KDF_fetch(NULL, "TLS13-KDF", NULL);
    ctx = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
    derived = ctx && EVP_KDF_derive(ctx, key, len, params) == 1;

    EVP_KDF_CTX_free(ctx);
    EVP_KDF_free(kdf);

    return derived ? NGX_OK : NGX_ERROR;
}

#pragma GCC visibility pop

#endif
