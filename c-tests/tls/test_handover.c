/* A server that lets the kernel do its TLS hands a connection over. The backend, in a process of
 * its own, reads and writes plain bytes, and never sees OpenSSL. */
#define _GNU_SOURCE
#include "tls.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* One client's connection, and the two processes that serve it one after the other. */
struct scene {
    char directory[64];
    char path[80];
    int ends[2];  /* the TCP connection: the server's, the client's */
    int ready[2]; /* a pipe: the backend listens */
    pid_t server, backend;
};

static void fill(char *bytes, size_t len, unsigned seed)
{
    for (size_t i = 0; i < len; i++)
        bytes[i] = (char)(seed = seed * 1103515245 + 12345, seed >> 16);
}

static char *new_bytes(size_t len, unsigned seed)
{
    char *bytes = malloc(len);
    assert_non_null(bytes);
    fill(bytes, len, seed);
    return bytes;
}

/* The backend: reads so many bytes, those that came along first, and writes other ones. */
static void serve(struct scene *scene, size_t request, size_t answer)
{
    handoff_backend *backend;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    char *expected = new_bytes(request, 1), *got = malloc(request), *other = new_bytes(answer, 2);
    assert_ok(handoff_backend_listen(scene->path, NULL, &backend));
    assert_int_equal(write(scene->ready[1], "", 1), 1);
    assert_ok(handoff_backend_accept(backend, PATIENCE_MS, &arrival));
    assert_true(tls_in_kernel(arrival.fd));
    assert_true(arrival.preread_len <= request);
    memcpy(got, arrival.preread, arrival.preread_len);
    for (size_t at = arrival.preread_len; at < request;) {
        ssize_t count = read(arrival.fd, got + at, request - at);
        assert_true(count > 0);
        at += (size_t)count;
    }
    assert_memory_equal(got, expected, request);
    for (size_t at = 0; at < answer;) {
        ssize_t count = write(arrival.fd, other + at, answer - at);
        assert_true(count > 0);
        at += (size_t)count;
    }
    close(arrival.fd);
    handoff_backend_free(backend);
}

/* One turn of an event loop that has nothing but the broker. */
static void turn(handoff_broker *broker)
{
    struct pollfd poll_fd = {.fd = handoff_broker_fd(broker), .events = POLLIN};
    assert_int_equal(poll(&poll_fd, 1, PATIENCE_MS), 1);
    assert_ok(handoff_broker_dispatch(broker));
}

/* The server: does the handshake, reads a part of what the client sends, and hands it over. */
static void hand_over(struct scene *scene, const struct tls_kind *kind, size_t first)
{
    const handoff_broker_options options = {.size = sizeof options, .timeout_ms = PATIENCE_MS};
    handoff_broker *broker;
    handoff_offer offer = HANDOFF_OFFER_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    char preread[1 << 15];
    size_t len = 0;
    SSL *server = tls_new_server(scene->ends[0], kind);
    tls_shake_hands(server);
    assert_true(tls_kernel_sends(server));
    assert_true(tls_kernel_receives(server));
    if (first > 0) {
        assert_int_equal(SSL_read_ex(server, preread, first, &len), 1);
        size_t pending = (size_t)SSL_pending(server), more = 0;
        assert_true(len + pending <= sizeof preread);
        if (pending > 0)
            assert_int_equal(SSL_read_ex(server, preread + len, pending, &more), 1);
        assert_int_equal(more, pending);
        len += more;
    }
    assert_false(SSL_has_pending(server));
    assert_int_equal(read(scene->ready[0], &(char){0}, 1), 1);
    assert_ok(handoff_broker_new(scene->path, &options, &broker));
    offer.fd = scene->ends[0];
    offer.preread = preread;
    offer.preread_len = len;
    while (handoff_broker_room(broker) == 0)
        turn(broker);
    assert_ok(handoff_broker_offer(broker, &offer, NULL));
    while (!next_verdict(broker, &verdict))
        turn(broker);
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    tls_release(&server);
    close(scene->ends[0]);
    handoff_broker_free(broker);
}

static void start(struct scene *scene, const struct tls_kind *kind, size_t first, size_t request,
                  size_t answer)
{
    make_directory(scene->directory);
    snprintf(scene->path, sizeof scene->path, "%.63s/socket", scene->directory);
    make_tcp_pair(scene->ends);
    assert_int_equal(pipe2(scene->ready, O_CLOEXEC), 0);
    scene->backend = start_child();
    if (scene->backend == 0) {
        close(scene->ends[0]);
        close(scene->ends[1]);
        serve(scene, request, answer);
        _exit(0);
    }
    scene->server = start_child();
    if (scene->server == 0) {
        close(scene->ends[1]);
        hand_over(scene, kind, first);
        _exit(0);
    }
    close(scene->ends[0]);
    close(scene->ready[0]);
    close(scene->ready[1]);
}

/* The client sends a request and gets an answer, then the end of the connection. The server reads
   `first` bytes of it at least, and what OpenSSL has decrypted with them. */
static void connection_is_handed_over(const struct tls_kind *kind, size_t first, size_t request,
                                      size_t answer)
{
    struct scene scene;
    skip_without_tls_1_3(kind);
    int captures[] = {tls_start_capture(), tls_start_capture()};
    start(&scene, kind, first, request, answer);
    char *sent = new_bytes(request, 1), *expected = new_bytes(answer, 2);
    SSL *client = tls_new_client(scene.ends[1], kind);
    tls_shake_hands(client);
    tls_write(client, sent, request);
    tls_expect(client, expected, answer);
    assert_child_succeeds(scene.server);
    assert_child_succeeds(scene.backend);
    /* Of a backend that sends no close_notify, as of one that died. */
    assert_int_equal(SSL_read(client, &(char){0}, 1), 0);
    tls_release(&client);
    close(scene.ends[1]);
    assert_false(tls_captured(captures[0], sent, request));
    assert_false(tls_captured(captures[1], expected, answer));
    free(sent);
    free(expected);
    remove_directory(scene.directory);
}

static void plain_bytes_on_the_wire_would_be_seen(void **state)
{
    (void)state;
    int ends[2], capture = tls_start_capture();
    char *bytes = new_bytes(100000, 1), got[1000];
    make_tcp_pair(ends);
    for (size_t at = 0; at < 100000; at += sizeof got) {
        assert_int_equal(write(ends[1], bytes + at, sizeof got), sizeof got);
        assert_int_equal(recv(ends[0], got, sizeof got, MSG_WAITALL), sizeof got);
    }
    assert_true(tls_captured(capture, bytes, 100000));
    close(ends[0]);
    close(ends[1]);
    free(bytes);
}

/* A request of several records; and one of which the server has read a part, and OpenSSL more. */
#define IS_HANDED_OVER(kind)                                     \
    static void kind##_is_handed_over(void **state)              \
    {                                                            \
        (void)state;                                             \
        connection_is_handed_over(&kind, 0, 100000, 100000);     \
    }                                                            \
    static void kind##_is_handed_over_with_preread(void **state) \
    {                                                            \
        (void)state;                                             \
        connection_is_handed_over(&kind, 5, 100000, 1);          \
    }

IS_HANDED_OVER(tls_1_2_aes_128)
IS_HANDED_OVER(tls_1_2_aes_256)
IS_HANDED_OVER(tls_1_2_chacha)
IS_HANDED_OVER(tls_1_3_aes_128)
IS_HANDED_OVER(tls_1_3_aes_256)
IS_HANDED_OVER(tls_1_3_chacha)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(plain_bytes_on_the_wire_would_be_seen),
        TEST(tls_1_2_aes_128_is_handed_over), TEST(tls_1_2_aes_128_is_handed_over_with_preread),
        TEST(tls_1_2_aes_256_is_handed_over), TEST(tls_1_2_aes_256_is_handed_over_with_preread),
        TEST(tls_1_2_chacha_is_handed_over),  TEST(tls_1_2_chacha_is_handed_over_with_preread),
        TEST(tls_1_3_aes_128_is_handed_over), TEST(tls_1_3_aes_128_is_handed_over_with_preread),
        TEST(tls_1_3_aes_256_is_handed_over), TEST(tls_1_3_aes_256_is_handed_over_with_preread),
        TEST(tls_1_3_chacha_is_handed_over),  TEST(tls_1_3_chacha_is_handed_over_with_preread),
    };
    return RUN_TLS_TESTS(tests);
}
