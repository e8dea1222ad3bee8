/* tls.c: see tls.h. */
#define _GNU_SOURCE
#include "tls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define assert_ssl(condition)                    \
    do {                                         \
        if (!(condition)) {                      \
            ERR_print_errors_fp(stderr);         \
            fail_msg("%s is false", #condition); \
        }                                        \
    } while (0)

bool kernel_has_tls(void)
{
    int ends[2];
    make_tcp_pair(ends);
    bool has = setsockopt(ends[0], IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls") == 0;
    if (!has)
        fprintf(stderr, "error: this kernel has no module tls, or does not load it: "
                        "`make check-tls` runs the test in a machine that has it\n");
    close(ends[0]);
    close(ends[1]);
    return has;
}

/* A key and a certificate that it signs itself. */
static void use_new_certificate(SSL_CTX *context)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();
    assert_ssl(key != NULL && certificate != NULL);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_NAME *name = X509_get_subject_name(certificate);
    assert_ssl(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
                                          (const unsigned char *)"localhost", -1, -1, 0));
    assert_ssl(X509_set_issuer_name(certificate, name));
    assert_ssl(X509_set_pubkey(certificate, key));
    assert_ssl(X509_sign(certificate, key, EVP_sha256()) != 0);
    assert_ssl(SSL_CTX_use_certificate(context, certificate) == 1);
    assert_ssl(SSL_CTX_use_PrivateKey(context, key) == 1);
    X509_free(certificate);
    EVP_PKEY_free(key);
}

static SSL_CTX *new_context(const SSL_METHOD *method, const struct tls_kind *kind)
{
    SSL_CTX *context = SSL_CTX_new(method);
    assert_ssl(context != NULL);
    assert_ssl(SSL_CTX_set_min_proto_version(context, kind->version));
    assert_ssl(SSL_CTX_set_max_proto_version(context, kind->version));
    if (kind->version == TLS1_3_VERSION)
        assert_ssl(SSL_CTX_set_ciphersuites(context, kind->cipher));
    else
        assert_ssl(SSL_CTX_set_cipher_list(context, kind->cipher));
    return context;
}

static SSL *new_end(SSL_CTX *context, int fd)
{
    SSL *end = SSL_new(context);
    SSL_CTX_free(context);
    assert_ssl(end != NULL && SSL_set_fd(end, fd));
    return end;
}

SSL *tls_new_server(int fd, const struct tls_kind *kind)
{
    SSL_CTX *context = new_context(TLS_server_method(), kind);
    use_new_certificate(context);
    if (!kind->in_user_space)
        SSL_CTX_set_options(context, SSL_OP_ENABLE_KTLS);
    SSL *end = new_end(context, fd);
    SSL_set_accept_state(end);
    return end;
}

SSL *tls_new_client(int fd, const struct tls_kind *kind)
{
    SSL *end = new_end(new_context(TLS_client_method(), kind), fd);
    SSL_set_connect_state(end);
    return end;
}

void tls_shake_hands(SSL *end)
{
    assert_ssl(SSL_do_handshake(end) == 1);
}

static void set_blocking(int fd, bool blocking)
{
    int flags = fcntl(fd, F_GETFL);
    assert_int_not_equal(flags, -1);
    flags = blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
    assert_int_equal(fcntl(fd, F_SETFL, flags), 0);
}

/* Takes the handshake as far as it goes. Returns whether it is done. */
static bool advance(SSL *end)
{
    int result = SSL_do_handshake(end);
    if (result == 1)
        return true;
    int error = SSL_get_error(end, result);
    assert_ssl(error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE);
    return false;
}

void tls_open(struct tls *tls, const struct tls_kind *kind)
{
    int ends[2];
    make_tcp_pair(ends);
    tls->server_fd = ends[0];
    tls->client_fd = ends[1];
    tls->server = tls_new_server(tls->server_fd, kind);
    tls->client = tls_new_client(tls->client_fd, kind);
    set_blocking(tls->server_fd, false);
    set_blocking(tls->client_fd, false);
    for (bool server = false, client = false; !server || !client;) {
        if (!client)
            client = advance(tls->client);
        if (!server)
            server = advance(tls->server);
        struct pollfd poll_fds[] = {{.fd = tls->server_fd, .events = POLLIN},
                                    {.fd = tls->client_fd, .events = POLLIN}};
        if (!server || !client)
            assert_int_not_equal(poll(poll_fds, 2, PATIENCE_MS), 0);
    }
    /* The tickets of TLS 1.3, which are there with the end of the handshake. */
    char none;
    assert_int_equal(SSL_read(tls->client, &none, 1), -1);
    set_blocking(tls->server_fd, true);
    set_blocking(tls->client_fd, true);
}

void tls_release(SSL **end)
{
    SSL_set_quiet_shutdown(*end, 1);
    SSL_free(*end); /* made with SSL_set_fd(), it leaves the descriptor open */
    *end = NULL;
}

void tls_close(struct tls *tls)
{
    if (tls->server != NULL)
        tls_release(&tls->server);
    if (tls->client != NULL)
        tls_release(&tls->client);
    if (tls->server_fd != -1)
        close(tls->server_fd);
    if (tls->client_fd != -1)
        close(tls->client_fd);
    tls->server_fd = tls->client_fd = -1;
}

void tls_write(SSL *end, const void *bytes, size_t len)
{
    size_t written = 0;
    assert_ssl(SSL_write_ex(end, bytes, len, &written) == 1);
    assert_int_equal(written, len);
}

void tls_expect(SSL *end, const void *bytes, size_t len)
{
    char buffer[16384];
    for (size_t at = 0, got = 0; at < len; at += got) {
        size_t room = len - at < sizeof buffer ? len - at : sizeof buffer;
        assert_ssl(SSL_read_ex(end, buffer, room, &got) == 1);
        assert_memory_equal(buffer, (const char *)bytes + at, got);
    }
}

bool tls_kernel_sends(SSL *end)
{
    return BIO_get_ktls_send(SSL_get_wbio(end));
}

bool tls_kernel_receives(SSL *end)
{
    return BIO_get_ktls_recv(SSL_get_rbio(end));
}

bool tls_in_kernel(int fd)
{
    char name[16] = "";
    socklen_t len = sizeof name;
    return getsockopt(fd, IPPROTO_TCP, TCP_ULP, name, &len) == 0 && strcmp(name, "tls") == 0;
}

int tls_start_capture(void)
{
    const int room = 1 << 26;
    struct sockaddr_ll loopback = {.sll_family = AF_PACKET,
                                   .sll_protocol = htons(ETH_P_ALL),
                                   .sll_ifindex = (int)if_nametoindex("lo")};
    int capture = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_int_not_equal(capture, -1);
    assert_int_equal(setsockopt(capture, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room), 0);
    assert_int_equal(bind(capture, (struct sockaddr *)&loopback, sizeof loopback), 0);
    return capture;
}

/* A part of so many bytes is looked for, one in each so many: the end of a packet can cut it. */
enum { PART = 24, STEP = 500 };

bool tls_captured(int capture, const void *bytes, size_t len)
{
    static char packet[1 << 17];
    struct tpacket_stats statistics;
    socklen_t size = sizeof statistics;
    bool found = false;
    size_t packets = 0;
    for (ssize_t count; (count = recv(capture, packet, sizeof packet, 0)) != -1; packets++)
        for (size_t at = 0; !found && at + PART <= len; at += STEP)
            found = memmem(packet, (size_t)count, (const char *)bytes + at, PART) != NULL;
    assert_int_equal(errno, EAGAIN);
    assert_int_not_equal(packets, 0);
    assert_int_equal(getsockopt(capture, SOL_PACKET, PACKET_STATISTICS, &statistics, &size), 0);
    assert_int_equal(statistics.tp_drops, 0);
    close(capture);
    return found;
}

bool tls_1_3_receives_in_kernel(void)
{
    return OpenSSL_version_num() >= 0x30200000L;
}

void skip_without_tls_1_3(const struct tls_kind *kind)
{
    if (kind->version == TLS1_3_VERSION && !tls_1_3_receives_in_kernel())
        skip();
}
