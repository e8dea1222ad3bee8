/* records.c: see records.h. */
#define _GNU_SOURCE
#include "records.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

const struct suite suites[SUITES] = {
    {TLS_1_2_VERSION, TLS_CIPHER_AES_GCM_128, "TLSv1.2", "AES-128-GCM"},
    {TLS_1_2_VERSION, TLS_CIPHER_AES_GCM_256, "TLSv1.2", "AES-256-GCM"},
    {TLS_1_2_VERSION, TLS_CIPHER_CHACHA20_POLY1305, "TLSv1.2", "CHACHA20-POLY1305"},
    {TLS_1_3_VERSION, TLS_CIPHER_AES_GCM_128, "TLSv1.3", "AES-128-GCM"},
    {TLS_1_3_VERSION, TLS_CIPHER_AES_GCM_256, "TLSv1.3", "AES-256-GCM"},
    {TLS_1_3_VERSION, TLS_CIPHER_CHACHA20_POLY1305, "TLSv1.3", "CHACHA20-POLY1305"},
};

socklen_t make_keys(union keys *keys, const struct suite *suite, int direction)
{
    socklen_t len = suite->cipher == TLS_CIPHER_AES_GCM_128   ? sizeof keys->aes_128
                    : suite->cipher == TLS_CIPHER_AES_GCM_256 ? sizeof keys->aes_256
                                                              : sizeof keys->chacha;
    memset(keys, 0x40 + direction, sizeof *keys);
    /* The number of the record is last in each. */
    memset((char *)keys + len - 8, 0, 8);
    keys->info.version = (__u16)suite->version;
    keys->info.cipher_type = (__u16)suite->cipher;
    return len;
}

int set_keys(int fd, const struct suite *suite, int option, int direction)
{
    union keys keys;
    socklen_t len = make_keys(&keys, suite, direction);
    return setsockopt(fd, SOL_TLS, option, &keys, len) == 0 ? 0 : errno;
}

void use_keys(int fd, const struct suite *suite, int option, int direction)
{
    assert_int_equal(set_keys(fd, suite, option, direction), 0);
}

void use_tls(int fd)
{
    assert_int_equal(setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls"), 0);
}

void open_pair(struct pair *pair, const struct suite *suite)
{
    int ends[2];
    make_tcp_pair(ends);
    *pair = (struct pair){ends[0], ends[1]};
    use_tls(pair->server);
    use_keys(pair->server, suite, TLS_RX, TO_SERVER);
    use_keys(pair->server, suite, TLS_TX, TO_CLIENT);
}

void open_both(struct pair *pair, const struct suite *suite)
{
    open_pair(pair, suite);
    use_tls(pair->client);
    use_keys(pair->client, suite, TLS_TX, TO_SERVER);
    use_keys(pair->client, suite, TLS_RX, TO_CLIENT);
}

void close_pair(struct pair *pair)
{
    close(pair->server);
    close(pair->client);
}

void send_record(int fd, int type, const void *bytes, size_t len)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(1)];
    } control;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    memset(&control, 0, sizeof control);
    control.header = (struct cmsghdr){.cmsg_level = SOL_TLS, .cmsg_type = TLS_SET_RECORD_TYPE,
                                      .cmsg_len = CMSG_LEN(1)};
    *CMSG_DATA(&control.header) = (unsigned char)type;
    assert_int_equal(sendmsg(fd, &message, MSG_NOSIGNAL), len);
}

size_t seal_record(void *record, const struct suite *suite, uint64_t number, int type, const void *bytes,
                   size_t len)
{
    enum { TAG = 16, HEADER = 5, EXPLICIT = 8, NONCE = 12 };
    const bool has_type_inside = suite->version == TLS_1_3_VERSION;
    const size_t begin = HEADER + (has_type_inside ? 0 : EXPLICIT);
    const size_t body_len = len + (has_type_inside ? 1 : 0), whole = begin + body_len + TAG;
    unsigned char *out = record, nonce[NONCE], number_bytes[8], aad[13];
    union keys keys;
    int count;
    make_keys(&keys, suite, TO_SERVER);
    assert_int_equal(suite->cipher, TLS_CIPHER_AES_GCM_128);
    for (int i = 0; i < 8; i++)
        number_bytes[i] = (unsigned char)(number >> (56 - 8 * i));
    memcpy(nonce, keys.aes_128.salt, 4);
    memcpy(out, (unsigned char[]){(unsigned char)(has_type_inside ? DATA : type), 3, 3,
                                  (unsigned char)((whole - HEADER) >> 8),
                                  (unsigned char)(whole - HEADER)}, HEADER);
    memcpy(out + begin, bytes, len);
    if (has_type_inside) { /* RFC 8446, 5.2 and 5.3 */
        out[begin + len] = (unsigned char)type;
        for (int i = 0; i < 8; i++)
            nonce[4 + i] = keys.aes_128.iv[i] ^ number_bytes[i];
        memcpy(aad, out, HEADER);
    } else { /* RFC 5246, 6.2.3.3, and RFC 5288 */
        memcpy(nonce + 4, number_bytes, EXPLICIT);
        memcpy(out + HEADER, number_bytes, EXPLICIT);
        memcpy(aad, number_bytes, 8);
        memcpy(aad + 8, (unsigned char[]){(unsigned char)type, 3, 3, (unsigned char)(len >> 8),
                                          (unsigned char)len}, 5);
    }
    EVP_CIPHER_CTX *cipher = EVP_CIPHER_CTX_new();
    assert_int_equal(EVP_EncryptInit_ex(cipher, EVP_aes_128_gcm(), NULL, keys.aes_128.key, nonce), 1);
    assert_int_equal(EVP_EncryptUpdate(cipher, NULL, &count, aad, has_type_inside ? HEADER : 13), 1);
    assert_int_equal(EVP_EncryptUpdate(cipher, out + begin, &count, out + begin, (int)body_len), 1);
    assert_int_equal(EVP_EncryptFinal_ex(cipher, out + begin + body_len, &count), 1);
    assert_int_equal(EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_GCM_GET_TAG, TAG, out + begin + body_len), 1);
    EVP_CIPHER_CTX_free(cipher);
    return whole;
}

size_t receive_record(int fd, int *type, void *bytes, size_t room)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(1)];
    } control;
    struct iovec iov = {.iov_base = bytes, .iov_len = room};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t count = recvmsg(fd, &message, 0);
    assert_int_not_equal(count, -1);
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *type = header != NULL && count > 0 ? *CMSG_DATA(header) : -1;
    return (size_t)count;
}

handoff_status receive(int fd, void *bytes, size_t room, size_t *received)
{
    *received = 99;
    return handoff_tls_receive(fd, bytes, room, PATIENCE_MS, received);
}

void expect_data(int fd, const void *bytes, size_t len)
{
    char *got = malloc(len);
    assert_non_null(got);
    for (size_t at = 0, count; at < len; at += count) {
        assert_ok(handoff_tls_receive(fd, got + at, len - at, PATIENCE_MS, &count));
        assert_in_range(count, 1, len - at);
    }
    assert_memory_equal(got, bytes, len);
    free(got);
}

void expect_end(int fd)
{
    char byte[100];
    size_t count;
    assert_ok(receive(fd, byte, sizeof byte, &count));
    assert_int_equal(count, 0);
}

void expect_error(int fd, handoff_status status)
{
    char bytes[100];
    size_t count;
    assert_status(receive(fd, bytes, sizeof bytes, &count), status);
    assert_int_equal(count, 99);
}
