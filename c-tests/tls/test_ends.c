/* handoff/tls.h on connections whose TLS the kernel does: with keys set by hand, so that the other end
 * can send any record, and with OpenSSL at the other end. */
#define _GNU_SOURCE
#include "../channel.h"
#include "records.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void session_has_version_cipher_and_both_directions(void **state)
{
    for (size_t i = 0; i < SUITES; i++) {
        struct pair pair;
        handoff_tls_session session = HANDOFF_TLS_SESSION_INIT;
        open_pair(&pair, &suites[i]);
        assert_ok(handoff_tls_get_session(pair.server, &session));
        assert_int_equal(session.version, suites[i].version);
        assert_int_equal(session.cipher, suites[i].cipher);
        assert_int_equal(session.directions, HANDOFF_TLS_SEND | HANDOFF_TLS_RECEIVE);
        assert_string_equal(session.version_name, suites[i].version_name);
        assert_string_equal(session.cipher_name, suites[i].cipher_name);
        assert_status(handoff_tls_get_session(pair.client, &session), HANDOFF_NOTHING);
        close_pair(&pair);
    }
    (void)state;
}

static void one_direction_is_told_apart_from_both(void **state)
{
    for (int option = TLS_TX; option <= TLS_RX; option++) {
        int ends[2];
        handoff_tls_session session = HANDOFF_TLS_SESSION_INIT;
        make_tcp_pair(ends);
        use_tls(ends[0]);
        assert_status(handoff_tls_get_session(ends[0], &session), HANDOFF_NOTHING);
        use_keys(ends[0], &suites[0], option, TO_SERVER);
        assert_ok(handoff_tls_get_session(ends[0], &session));
        assert_int_equal(session.directions,
                         option == TLS_TX ? HANDOFF_TLS_SEND : HANDOFF_TLS_RECEIVE);
        close(ends[0]);
        close(ends[1]);
    }
    (void)state;
}

/* docs/security.md says so: this is no secret to whoever has the descriptor. */
static void whoever_has_the_descriptor_can_ask_for_the_keys(void **state)
{
    struct pair pair;
    union keys keys, found;
    socklen_t len = make_keys(&keys, &suites[0], TO_CLIENT);
    memset(&found, 0, sizeof found);
    open_pair(&pair, &suites[0]);
    assert_int_equal(getsockopt(pair.server, SOL_TLS, TLS_TX, &found, &len), 0);
    assert_memory_equal(found.aes_128.key, keys.aes_128.key, sizeof keys.aes_128.key);
    close_pair(&pair);
    (void)state;
}

static void data_of_every_size_arrives(void **state)
{
    static const size_t sizes[] = {1, 2, 16383, 16384, 16385, 32768, 40000};
    static char bytes[40000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)(i * 7 + (i >> 8));
    for (size_t i = 0; i < SUITES; i++) {
        struct pair pair;
        open_both(&pair, &suites[i]);
        for (size_t size = 0; size < sizeof sizes / sizeof *sizes; size++) {
            assert_int_equal(send(pair.client, bytes, sizes[size], 0), sizes[size]);
            expect_data(pair.server, bytes, sizes[size]);
        }
        close_pair(&pair);
    }
    (void)state;
}

static void close_notify_is_the_end_and_comes_after_the_data(void **state)
{
    for (size_t i = 0; i < SUITES; i++) {
        struct pair pair;
        open_both(&pair, &suites[i]);
        assert_int_equal(send(pair.client, "last", 4, 0), 4);
        send_record(pair.client, ALERT, "\1\0", 2);
        assert_int_equal(shutdown(pair.client, SHUT_WR), 0);
        expect_data(pair.server, "last", 4);
        expect_end(pair.server);
        close_pair(&pair);
    }
    (void)state;
}

static void alert_is_understood_with_room_for_one_byte(void **state)
{
    static const struct {
        const char *alert;
        handoff_status status;
    } cases[] = {{"\1\0", HANDOFF_OK}, {"\2\50", HANDOFF_ERR_TLS_ALERT}};
    for (size_t i = 0; i < 2; i++) {
        struct pair pair;
        char byte;
        size_t count;
        open_both(&pair, &suites[3]);
        send_record(pair.client, ALERT, cases[i].alert, 2);
        assert_status(receive(pair.server, &byte, 1, &count), cases[i].status);
        assert_int_equal(count, i == 0 ? 0 : 99);
        close_pair(&pair);
    }
    (void)state;
}

/* RFC 8446, section 6.1: it is followed by close_notify, and what comes before that is read. */
static void user_canceled_is_not_the_end(void **state)
{
    for (size_t i = 0; i < 2 * SUITES; i++) {
        const size_t room = i % 2 == 0 ? 1 : 100;
        struct pair pair;
        char bytes[100];
        size_t count;
        open_both(&pair, &suites[i / 2]);
        send_record(pair.client, ALERT, "\1\132", 2);
        assert_status(handoff_tls_receive(pair.server, bytes, room, 0, &count), HANDOFF_TIMED_OUT);
        assert_int_equal(send(pair.client, "m", 1, 0), 1);
        expect_data(pair.server, "m", 1);
        send_record(pair.client, ALERT, "\1\132", 2);
        send_record(pair.client, ALERT, "\1\0", 2);
        assert_status(receive(pair.server, bytes, room, &count), HANDOFF_OK);
        assert_int_equal(count, 0);
        close_pair(&pair);
    }
    (void)state;
}

static void client_that_only_warns_is_an_error(void **state)
{
    struct pair pair;
    open_both(&pair, &suites[TLS_1_3_SUITE]);
    for (int i = 0; i < 20; i++)
        send_record(pair.client, ALERT, "\1\132", 2);
    expect_error(pair.server, HANDOFF_ERR_TLS_RECORD);
    close_pair(&pair);
    (void)state;
}

static void end_without_close_notify_is_an_error(void **state)
{
    for (size_t i = 0; i < SUITES; i++) {
        struct pair pair;
        open_both(&pair, &suites[i]);
        assert_int_equal(send(pair.client, "last", 4, 0), 4);
        assert_int_equal(shutdown(pair.client, SHUT_WR), 0);
        expect_data(pair.server, "last", 4);
        expect_error(pair.server, HANDOFF_ERR_END_OF_STREAM);
        close_pair(&pair);
    }
    (void)state;
}

static void empty_record_is_not_the_end(void **state)
{
    static const struct {
        int type;
        const char *bytes;
        size_t len;
        handoff_status status;
    } cases[] = {
        {ALERT, "\1\0", 2, HANDOFF_OK},
        {ALERT, "\2\50", 2, HANDOFF_ERR_TLS_ALERT},
        {HANDSHAKE, "\30\0\0\1\0", 5, HANDOFF_ERR_TLS_KEY_UPDATE},
        {DATA, "", 0, HANDOFF_ERR_END_OF_STREAM},
    };
    static const size_t of_suite[] = {0, TLS_1_3_SUITE};
    for (size_t i = 0; i < 2 * sizeof cases / sizeof *cases; i++) {
        const struct suite *suite = &suites[of_suite[i % 2]];
        const size_t which = i / 2;
        struct pair pair;
        unsigned char bytes[200];
        size_t len, count;
        open_pair(&pair, suite);
        len = seal_record(bytes, suite, 0, DATA, "", 0);
        len += seal_record(bytes + len, suite, 1, DATA, "data", 4);
        assert_int_equal(write(pair.client, bytes, len), len);
        expect_data(pair.server, "data", 4);
        /* Together, so that the kernel has both when it is asked. */
        len = seal_record(bytes, suite, 2, DATA, "", 0);
        len += seal_record(bytes + len, suite, 3, cases[which].type, cases[which].bytes, cases[which].len);
        assert_int_equal(write(pair.client, bytes, len), len);
        assert_int_equal(shutdown(pair.client, SHUT_WR), 0);
        assert_status(receive(pair.server, bytes, sizeof bytes, &count), cases[which].status);
        assert_int_equal(count, cases[which].status == HANDOFF_OK ? 0 : 99);
        close_pair(&pair);
    }
    (void)state;
}

static void no_other_record_is_data(void **state)
{
    static const struct {
        int type;
        const char *bytes;
        size_t len;
        handoff_status status;
        const char *text;
    } cases[] = {
        {ALERT, "\2\50", 2, HANDOFF_ERR_TLS_ALERT, "alert 40, fatal"},
        {ALERT, "\1\144", 2, HANDOFF_ERR_TLS_ALERT, "alert 100, a warning"},
        {HANDSHAKE, "\30\0\0\1\0", 5, HANDOFF_ERR_TLS_KEY_UPDATE, "KeyUpdate"},
        {HANDSHAKE, "\1\0\0\1\0", 5, HANDOFF_ERR_TLS_RECORD, "content type 22"},
        {CHANGE_CIPHER_SPEC, "\1", 1, HANDOFF_ERR_TLS_RECORD, "content type 20"},
        {24, "heart", 5, HANDOFF_ERR_TLS_RECORD, "content type 24"},
    };
    for (size_t i = 0; i < SUITES * sizeof cases / sizeof *cases; i++) {
        const size_t which = i / SUITES;
        struct pair pair;
        char bytes[100];
        open_both(&pair, &suites[i % SUITES]);
        assert_int_equal(send(pair.client, "data", 4, 0), 4);
        send_record(pair.client, cases[which].type, cases[which].bytes, cases[which].len);
        assert_int_equal(send(pair.client, "more", 4, 0), 4);
        expect_data(pair.server, "data", 4);
        /* A plain read takes it for no data either, and does not take it away. */
        assert_int_equal(read(pair.server, bytes, sizeof bytes), -1);
        assert_int_equal(errno, EIO);
        expect_error(pair.server, cases[which].status);
        assert_last_error_has(cases[which].text);
        close_pair(&pair);
    }
    (void)state;
}

static void garbage_is_no_record(void **state)
{
    static const char not_authentic[] = "\27\3\3\0\40abcdefghijklmnopqrstuvwxyz012345";
    static const char *const other[] = {"GET / HTTP/1.1\r\n\r\n", "\27\3\3\377\377 far too long",
                                        "\27\3\3\0\1 far too short"};
    for (size_t i = 0; i < SUITES; i++) {
        struct pair pair;
        open_pair(&pair, &suites[i]);
        assert_int_equal(write(pair.client, not_authentic, sizeof not_authentic - 1),
                         sizeof not_authentic - 1);
        expect_error(pair.server, HANDOFF_ERR_TLS_RECORD);
        assert_int_equal(errno, EBADMSG);
        close_pair(&pair);
        for (size_t j = 0; j < sizeof other / sizeof *other; j++) {
            open_pair(&pair, &suites[i]);
            assert_int_equal(write(pair.client, other[j], strlen(other[j] + 5) + 5),
                             strlen(other[j] + 5) + 5);
            expect_error(pair.server, HANDOFF_ERR_TLS_RECORD);
            close_pair(&pair);
        }
    }
    (void)state;
}

/* A record of data as it is on the wire. */
static size_t encrypt(const struct suite *suite, const void *bytes, size_t len, char *out)
{
    int ends[2];
    make_tcp_pair(ends);
    use_tls(ends[0]);
    use_keys(ends[0], suite, TLS_TX, TO_SERVER);
    assert_int_equal(send(ends[0], bytes, len, 0), len);
    assert_int_equal(shutdown(ends[0], SHUT_WR), 0);
    size_t count = 0;
    for (ssize_t more; (more = read(ends[1], out + count, 1000)) > 0;)
        count += (size_t)more;
    close(ends[0]);
    close(ends[1]);
    return count;
}

static void half_a_record_is_waited_for(void **state)
{
    for (size_t i = 0; i < SUITES; i++) {
        struct pair pair;
        char record[2000], bytes[10];
        size_t len = encrypt(&suites[i], "whole", 5, record), half, count = 99;
        for (half = 1; half < len; half += 9) {
            open_pair(&pair, &suites[i]);
            assert_int_equal(write(pair.client, record, half), half);
            assert_status(handoff_tls_receive(pair.server, bytes, sizeof bytes, 0, &count),
                          HANDOFF_TIMED_OUT);
            assert_status(handoff_tls_receive(pair.server, bytes, sizeof bytes, 20, &count),
                          HANDOFF_TIMED_OUT);
            assert_int_equal(count, 99);
            assert_int_equal(write(pair.client, record + half, len - half), len - half);
            expect_data(pair.server, "whole", 5);
            close_pair(&pair);
        }
        open_pair(&pair, &suites[i]);
        assert_int_equal(write(pair.client, record, len / 2), len / 2);
        assert_int_equal(shutdown(pair.client, SHUT_WR), 0);
        expect_error(pair.server, HANDOFF_ERR_END_OF_STREAM);
        close_pair(&pair);
    }
    (void)state;
}

static void shutdown_sends_close_notify_and_the_end(void **state)
{
    for (size_t i = 0; i < SUITES; i++) {
        struct pair pair;
        char bytes[100];
        int type;
        open_both(&pair, &suites[i]);
        assert_int_equal(send(pair.server, "last", 4, 0), 4);
        assert_ok(handoff_tls_shutdown(pair.server, 0));
        assert_int_equal(receive_record(pair.client, &type, bytes, sizeof bytes), 4);
        assert_int_equal(type, DATA);
        assert_int_equal(receive_record(pair.client, &type, bytes, sizeof bytes), 2);
        assert_int_equal(type, ALERT);
        assert_memory_equal(bytes, "\1\0", 2);
        assert_int_equal(receive_record(pair.client, &type, bytes, sizeof bytes), 0);
        /* The other direction goes on. */
        assert_int_equal(send(pair.client, "more", 4, 0), 4);
        expect_data(pair.server, "more", 4);
        close_pair(&pair);
    }
    (void)state;
}

/* Returns whether there was room, which a full socket may have again a moment later. */
static bool shutdown_unless_full(int fd, int wait_ms)
{
    handoff_status status = handoff_tls_shutdown(fd, wait_ms);
    assert_true(status == HANDOFF_OK || status == HANDOFF_TIMED_OUT);
    return status == HANDOFF_OK;
}

static void shutdown_of_a_full_socket_loses_nothing(void **state)
{
    static char bytes[1 << 16];
    int timed_out = 0;
    for (size_t i = 0; i < SUITES; i++) {
        struct pair pair;
        const int small = 16384;
        size_t sent = 0, got = 0, count;
        int type = DATA;
        char last[2] = {9, 9};
        open_both(&pair, &suites[i]);
        assert_int_equal(setsockopt(pair.server, SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
        assert_int_equal(fcntl(pair.server, F_SETFL, O_NONBLOCK), 0);
        for (ssize_t more; (more = send(pair.server, bytes, sizeof bytes, 0)) > 0;)
            sent += (size_t)more;
        assert_int_equal(errno, EAGAIN);
        bool ended = shutdown_unless_full(pair.server, 0) || shutdown_unless_full(pair.server, 10);
        timed_out += !ended;
        while ((count = receive_record(pair.client, &type, bytes, sizeof bytes)) > 0) {
            if (type == DATA)
                got += count;
            else
                memcpy(last, bytes, 2);
            ended = ended || shutdown_unless_full(pair.server, 0);
        }
        assert_int_equal(got, sent);
        assert_memory_equal(last, "\1\0", 2);
        close_pair(&pair);
    }
    assert_int_not_equal(timed_out, 0);
    (void)state;
}

/* ---- handing over --------------------------------------------------------------------------- */

static void arrival_says_what_the_kernel_says(void **state)
{
    struct channel channel;
    open_channel(&channel, NULL, NULL);
    for (size_t i = 0; i < SUITES * 2; i++) {
        struct pair pair;
        int fd;
        handoff_offer offer = HANDOFF_OFFER_INIT;
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        open_both(&pair, &suites[i / 2]);
        offer.fd = pair.server;
        offer.flags = i % 2 == 0 ? HANDOFF_OFFER_TLS : 0;
        assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
        assert_ok(handoff_backend_dispatch(channel.backend));
        assert_ok(handoff_backend_next(channel.backend, &arrival));
        assert_int_equal(arrival.tls, i % 2 == 0);
        assert_ok(handoff_backend_adopt(channel.backend, arrival.id, &fd));
        assert_status(handoff_backend_next(channel.backend, &arrival), HANDOFF_NOTHING);
        assert_ok(handoff_broker_dispatch(channel.broker));
        assert_ok(handoff_broker_next(channel.broker, &verdict));
        assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
        close(pair.server);
        pair.server = fd;
        assert_int_equal(send(pair.client, "hello", 5, 0), 5);
        expect_data(fd, "hello", 5);
        close_pair(&pair);
    }
    close_channel(&channel);
    (void)state;
}

static void connection_with_tls_in_one_direction_is_not_offered(void **state)
{
    struct channel channel;
    open_channel(&channel, NULL, NULL);
    for (int option = 0; option <= TLS_RX; option++) {
        int tcp[2];
        handoff_offer offer = HANDOFF_OFFER_INIT;
        make_tcp_pair(tcp);
        use_tls(tcp[0]);
        if (option != 0)
            use_keys(tcp[0], &suites[0], option, TO_SERVER);
        offer.fd = tcp[0];
        offer.flags = HANDOFF_OFFER_TLS;
        assert_status(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_NOT_TLS);
        if (option != 0)
            assert_last_error_has(option == TLS_TX ? "receiving" : "sending");
        close(tcp[0]);
        close(tcp[1]);
    }
    close_channel(&channel);
    (void)state;
}

static void failover_keeps_the_flag(void **state)
{
    struct channel channel;
    struct pair pair;
    char path[80];
    int fd;
    handoff_backend *other;
    handoff_broker_backend backend = HANDOFF_BROKER_BACKEND_INIT;
    handoff_offer offer = HANDOFF_OFFER_INIT;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    open_channel(&channel, NULL, NULL);
    snprintf(path, sizeof path, "%.63s/other", channel.directory);
    assert_ok(handoff_backend_listen(path, NULL, &other));
    backend.path = path;
    assert_ok(handoff_broker_add(channel.broker, &backend));
    connect_broker(channel.broker, other);
    open_both(&pair, &suites[3]);
    offer.fd = pair.server;
    offer.flags = HANDOFF_OFFER_TLS;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    /* Whoever gets it first is busy; then it goes to the one that is left. */
    handoff_backend *ends[] = {channel.backend, other};
    for (int tries = 0, i = 0; tries < 2; i = !i) {
        assert_ok(handoff_backend_dispatch(ends[i]));
        if (handoff_backend_next(ends[i], &arrival) == HANDOFF_OK) {
            assert_int_equal(arrival.tls, 1);
            if (++tries == 1)
                assert_ok(handoff_backend_reject(ends[i], arrival.id, HANDOFF_REASON_BACKEND_BUSY));
            else
                assert_ok(handoff_backend_adopt(ends[i], arrival.id, &fd));
            assert_status(handoff_backend_next(ends[i], &arrival), HANDOFF_NOTHING);
        }
        assert_ok(handoff_broker_dispatch(channel.broker));
    }
    close(fd);
    close_pair(&pair);
    handoff_backend_free(other);
    close_channel(&channel);
    (void)state;
}

/* ---- OpenSSL at the other end --------------------------------------------------------------- */

static const struct tls_kind *const kinds[] = {&tls_1_2_aes_128, &tls_1_2_aes_256, &tls_1_2_chacha,
                                               &tls_1_3_aes_128, &tls_1_3_aes_256, &tls_1_3_chacha};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* Opens a connection whose server is the kernel alone. Returns whether the kernel does all of it. */
static bool open_with(struct tls *tls, const struct tls_kind *kind)
{
    tls_open(tls, kind);
    bool both = tls_kernel_sends(tls->server) && tls_kernel_receives(tls->server);
    tls_release(&tls->server);
    return both;
}

static void openssl_is_served_to_the_end(void **state)
{
    for (size_t i = 0; i < KINDS; i++) {
        struct tls tls;
        char byte;
        if (open_with(&tls, kinds[i])) {
            tls_write(tls.client, "request", 7);
            expect_data(tls.server_fd, "request", 7);
            assert_int_equal(send(tls.server_fd, "answer", 6, 0), 6);
            assert_ok(handoff_tls_shutdown(tls.server_fd, PATIENCE_MS));
            tls_expect(tls.client, "answer", 6);
            assert_int_equal(SSL_get_error(tls.client, SSL_read(tls.client, &byte, 1)),
                             SSL_ERROR_ZERO_RETURN);
            assert_int_equal(SSL_shutdown(tls.client), 1);
            expect_end(tls.server_fd);
        }
        tls_close(&tls);
    }
    (void)state;
}

static void key_update_of_openssl_is_named(void **state)
{
    for (size_t i = 3; i < KINDS; i++) {
        struct tls tls;
        if (open_with(&tls, kinds[i])) {
            tls_write(tls.client, "before", 6);
            assert_int_equal(SSL_key_update(tls.client, SSL_KEY_UPDATE_NOT_REQUESTED), 1);
            tls_write(tls.client, "after", 5);
            expect_data(tls.server_fd, "before", 6);
            expect_error(tls.server_fd, HANDOFF_ERR_TLS_KEY_UPDATE);
            /* What is under the new key is never data: EBADMSG, or EKEYEXPIRED from Linux 6.14 on.
               test_rekeying.c has more of that. */
            char bytes[100];
            size_t count;
            handoff_status status = receive(tls.server_fd, bytes, sizeof bytes, &count);
            assert_true(status == HANDOFF_ERR_TLS_RECORD || status == HANDOFF_ERR_TLS_KEY_UPDATE);
        }
        tls_close(&tls);
    }
    (void)state;
}

/* Runs examples/tls_backend, which was built beside the tests. */
static pid_t start_example(char *path)
{
    char program[300];
    ssize_t len = readlink("/proc/self/exe", program, sizeof program - 50);
    int out[2];
    char line[200];
    assert_true(len > 0);
    program[len] = 0;
    strcpy(strrchr(program, '/'), "/../../examples/tls_backend");
    assert_int_equal(pipe(out), 0);
    pid_t child = start_child();
    if (child == 0) {
        dup2(out[1], STDOUT_FILENO);
        execl(program, "tls_backend", path, (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    assert_true(read(out[0], line, sizeof line) > 0);
    close(out[0]);
    return child;
}

static void example_serves_clients_with_and_without_tls(void **state)
{
    char directory[64], path[80], answer[1000];
    static const char request[] = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    handoff_broker *broker;
    make_directory(directory);
    snprintf(path, sizeof path, "%.63s/socket", directory);
    pid_t example = start_example(path);
    assert_ok(handoff_broker_new(path, NULL, &broker));
    for (size_t i = 0; i <= KINDS; i++) {
        struct tls tls = {.server_fd = -1, .client_fd = -1};
        handoff_offer offer = HANDOFF_OFFER_INIT;
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        if (i == KINDS) {
            int ends[2];
            make_tcp_pair(ends);
            tls.server_fd = ends[0];
            tls.client_fd = ends[1];
        } else if (!open_with(&tls, kinds[i])) {
            tls_close(&tls);
            continue;
        } else {
            offer.flags = HANDOFF_OFFER_TLS;
        }
        offer.fd = tls.server_fd;
        assert_ok(handoff_broker_offer_and_wait(broker, &offer, &verdict));
        assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
        close(tls.server_fd);
        tls.server_fd = -1;
        size_t got = 0;
        if (i < KINDS) {
            size_t count;
            tls_write(tls.client, request, strlen(request));
            while (SSL_read_ex(tls.client, answer + got, sizeof answer - 1 - got, &count) == 1)
                got += count;
            assert_int_equal(SSL_get_shutdown(tls.client), SSL_RECEIVED_SHUTDOWN);
        } else {
            assert_int_equal(write(tls.client_fd, request, strlen(request)), strlen(request));
            for (ssize_t count; (count = read(tls.client_fd, answer + got, 500)) > 0;)
                got += (size_t)count;
        }
        answer[got] = 0;
        const char *text = i == KINDS ? ": no TLS, plain\n" : i < 3 ? ": TLSv1.2, " : ": TLSv1.3, ";
        assert_non_null(strstr(answer, text));
        tls_close(&tls);
    }
    handoff_broker_free(broker);
    assert_int_equal(kill(example, SIGTERM), 0);
    assert_child_succeeds(example);
    remove_directory(directory);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(session_has_version_cipher_and_both_directions),
        TEST(one_direction_is_told_apart_from_both),
        TEST(whoever_has_the_descriptor_can_ask_for_the_keys),
        TEST(data_of_every_size_arrives),
        TEST(close_notify_is_the_end_and_comes_after_the_data),
        TEST(alert_is_understood_with_room_for_one_byte),
        TEST(user_canceled_is_not_the_end),
        TEST(client_that_only_warns_is_an_error),
        TEST(end_without_close_notify_is_an_error),
        TEST(empty_record_is_not_the_end),
        TEST(no_other_record_is_data),
        TEST(garbage_is_no_record),
        TEST(half_a_record_is_waited_for),
        TEST(shutdown_sends_close_notify_and_the_end),
        TEST(shutdown_of_a_full_socket_loses_nothing),
        TEST(arrival_says_what_the_kernel_says),
        TEST(connection_with_tls_in_one_direction_is_not_offered),
        TEST(failover_keeps_the_flag),
        TEST(openssl_is_served_to_the_end),
        TEST(key_update_of_openssl_is_named),
        TEST(example_serves_clients_with_and_without_tls),
    };
    return RUN_TLS_TESTS(tests);
}
