/* TLS of one_owner.c: by the kernel for brokers and backends, by OpenSSL alone for clients. */
#define _GNU_SOURCE
#include "one_owner.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

/** TLS 1.2, and TLS 1.3 if this OpenSSL lets the kernel receive it: from 3.2 on. */
enum { MOST_KINDS = 2 };

bool tls;

/* Made before brokers are, which thereby have the same certificate and the same keys of tickets. */
static SSL_CTX *server_context, *client_context;
/* Clients go on with these: a handshake without signatures takes a third of the time. */
static SSL_SESSION *sessions[MOST_KINDS];
static int kinds;

static void use_new_certificate(SSL_CTX *context)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();
    check(key != NULL && certificate != NULL);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 24 * 3600);
    check(X509_set_pubkey(certificate, key) == 1);
    check(X509_sign(certificate, key, EVP_sha256()) != 0);
    check(SSL_CTX_use_certificate(context, certificate) == 1);
    check(SSL_CTX_use_PrivateKey(context, key) == 1);
    X509_free(certificate);
    EVP_PKEY_free(key);
}

static SSL_CTX *new_context(const SSL_METHOD *method)
{
    SSL_CTX *context = SSL_CTX_new(method);
    check(context != NULL);
    check(SSL_CTX_set_cipher_list(context, "ECDHE-ECDSA-AES128-GCM-SHA256") == 1);
    check(SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") == 1);
    return context;
}

static SSL *new_client(uint32_t kind)
{
    int version = kind == 0 ? TLS1_2_VERSION : TLS1_3_VERSION;
    SSL *client = SSL_new(client_context);
    check(client != NULL);
    check(SSL_set_min_proto_version(client, version) == 1);
    check(SSL_set_max_proto_version(client, version) == 1);
    SSL_set_connect_state(client);
    return client;
}

static SSL *new_server(void)
{
    SSL *server = SSL_new(server_context);
    check(server != NULL);
    SSL_set_accept_state(server);
    return server;
}

/** The session of a first connection, both ends of which are here and in memory. */
static SSL_SESSION *new_session(uint32_t kind)
{
    BIO *of_client, *of_server;
    SSL *client = new_client(kind), *server = new_server();
    check(BIO_new_bio_pair(&of_client, 0, &of_server, 0) == 1);
    SSL_set_bio(client, of_client, of_client);
    SSL_set_bio(server, of_server, of_server);
    while (!SSL_is_init_finished(client) || !SSL_is_init_finished(server)) {
        SSL_do_handshake(client);
        SSL_do_handshake(server);
    }
    /* The tickets of TLS 1.3. */
    check(SSL_read(client, &(char){0}, 1) == -1);
    SSL_SESSION *session = SSL_get1_session(client);
    check(session != NULL && SSL_SESSION_is_resumable(session));
    tls_release(client);
    tls_release(server);
    return session;
}

void tls_prepare(void)
{
    server_context = new_context(TLS_server_method());
    client_context = new_context(TLS_client_method());
    SSL_CTX_set_options(server_context, SSL_OP_ENABLE_KTLS);
    /* Whoever answers closes without close_notify, behind which a second answer would be hidden. */
    SSL_CTX_set_options(client_context, SSL_OP_IGNORE_UNEXPECTED_EOF);
    use_new_certificate(server_context);
    kinds = OpenSSL_version_num() >= 0x30200000L ? 2 : 1;
    for (int i = 0; i < kinds; i++)
        sessions[i] = new_session((uint32_t)i);
}

SSL *tls_server(int fd)
{
    SSL *server = new_server();
    check(SSL_set_fd(server, fd) == 1);
    return server;
}

SSL *tls_client(int fd, uint32_t number)
{
    uint32_t kind = number % (uint32_t)kinds;
    SSL *client = new_client(kind);
    /* A copy: a handshake that a kill ends would spoil it for the others. */
    SSL_SESSION *session = SSL_SESSION_dup(sessions[kind]);
    check(session != NULL && SSL_set_session(client, session) == 1);
    SSL_SESSION_free(session);
    check(SSL_set_fd(client, fd) == 1);
    return client;
}

void tls_release(SSL *end)
{
    SSL_set_shutdown(end, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    SSL_free(end);
}

/** What a failed call about an end means, as an errno; 0 for the end of the connection. */
static int error_of(SSL *end, int error)
{
    switch (SSL_get_error(end, 0)) {
    case SSL_ERROR_WANT_READ:
        return EAGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    case SSL_ERROR_SYSCALL:
        return error;
    default:
        return EBADMSG;
    }
}

bool tls_handshake(SSL *end)
{
    ERR_clear_error();
    errno = 0;
    if (SSL_do_handshake(end) == 1)
        return true;
    errno = error_of(end, errno);
    return false;
}

ssize_t tls_read(SSL *end, void *bytes, size_t room)
{
    size_t count = 0;
    ERR_clear_error();
    errno = 0;
    if (SSL_read_ex(end, bytes, room, &count) == 1)
        return (ssize_t)count;
    errno = error_of(end, errno);
    return errno == 0 ? 0 : -1;
}

void tls_write(SSL *end, const void *bytes, size_t len)
{
    size_t written;
    check(SSL_write_ex(end, bytes, len, &written) == 1 && written == len);
}
