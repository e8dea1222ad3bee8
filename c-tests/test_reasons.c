/* Reasons say what happened: to the client, to what goes with it, and at the end of a broker. */
#define _GNU_SOURCE
#include "fixture.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* ---- the client is gone ------------------------------------------------------------------------ */

/* Ends a TCP connection by a reset, at both ends. */
static void reset(int from, int to)
{
    struct linger at_once = {.l_onoff = 1};
    struct pollfd end = {.fd = to, .events = POLLIN};
    assert_int_equal(setsockopt(from, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    close(from);
    assert_int_equal(poll(&end, 1, PATIENCE_MS), 1);
    assert_true(end.revents & POLLERR);
}

static void assert_gone(uint64_t rejected)
{
    assert_no_arrival(&channel);
    handoff_verdict verdict = verdict_of(&channel);
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, HANDOFF_REASON_CLIENT_GONE);
    assert_int_equal(verdict.kind, 0);
    assert_int_equal(backend_statistics(channel.backend).rejected, rejected);
    assert_int_equal(broker_statistics(channel.broker).fallbacks[HANDOFF_REASON_CLIENT_GONE],
                     rejected);
}

static void client_that_has_reset_its_connection_is_gone(void **state)
{
    (void)state;
    int tcp[2];
    make_tcp_pair(tcp);
    offer_fd(&channel, tcp[0]);
    reset(tcp[1], tcp[0]);
    assert_gone(1);
    close(tcp[0]);

    /* Also if somebody has read the error, and if bytes went to and fro. */
    make_tcp_pair(tcp);
    assert_int_equal(write(tcp[1], "hello", 5), 5);
    assert_int_equal(recv(tcp[0], &(char[5]){0}, 5, MSG_WAITALL), 5);
    reset(tcp[1], tcp[0]);
    assert_int_equal(recv(tcp[0], &(char){0}, 1, 0), -1);
    offer_fd(&channel, tcp[0]);
    assert_gone(2);
    close(tcp[0]);
}

static void client_whose_connection_has_ended_in_both_directions_is_gone(void **state)
{
    (void)state;
    int tcp[2];
    make_tcp_pair(tcp);
    assert_int_equal(shutdown(tcp[1], SHUT_WR), 0);
    assert_int_equal(recv(tcp[0], &(char){0}, 1, 0), 0);
    /* The side that ends it last is closed at once. */
    assert_int_equal(shutdown(tcp[0], SHUT_RDWR), 0);
    assert_int_equal(recv(tcp[1], &(char){0}, 1, 0), 0);
    offer_fd(&channel, tcp[0]);
    assert_gone(1);
    close(tcp[0]);
    close(tcp[1]);
}

static void client_whose_descriptor_was_closed_too_early_is_gone(void **state)
{
    (void)state;
    int fd = dup(client[0]);
    handoff_offer offer = offer_of(fd);
    offer.flags = HANDOFF_OFFER_MORE;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    close(fd);
    assert_ok(handoff_broker_flush(channel.broker));
    handoff_verdict verdict = verdict_of(&channel);
    assert_int_equal(verdict.reason, HANDOFF_REASON_CLIENT_GONE);
    assert_false(verdict.may_have_reached_backend);
}

static void socket_that_was_never_connected_is_of_another_kind_and_not_gone(void **state)
{
    (void)state;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int bound = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fresh = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int local = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(bound, (struct sockaddr *)&any, sizeof any), 0);
    assert_int_equal(listen(listening, 1), 0);
    const int sockets[] = {bound, fresh, listening, local};
    for (size_t i = 0; i < sizeof sockets / sizeof *sockets; i++) {
        if (sockets[i] == -1)
            continue;
        offer_fd(&channel, sockets[i]);
        handoff_verdict verdict = verdict_of(&channel);
        assert_int_equal(verdict.reason, HANDOFF_REASON_KIND);
        assert_int_equal(verdict.kind, HANDOFF_KIND_UNCONNECTED);
        close(sockets[i]);
    }
}

/* ---- too large --------------------------------------------------------------------------------- */

/* The broker's end of the channel: the last one that was opened is the backend's. */
static int broker_socket(void)
{
    for (int fd = 3; fd < 1024; fd++) {
        struct ucred peer;
        int type = 0, listens = 1;
        socklen_t int_len = sizeof type, peer_len = sizeof peer;
        struct sockaddr_storage name;
        socklen_t name_len = sizeof name;
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &int_len) == 0 && type == SOCK_SEQPACKET &&
            getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &int_len) == 0 && listens == 0 &&
            getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &peer_len) == 0 &&
            getsockname(fd, (struct sockaddr *)&name, &name_len) == 0 &&
            name_len == sizeof name.ss_family)
            return fd;
    }
    fail_msg("the broker has no socket");
    return -1;
}

static void offer_that_does_not_fit_the_sockets_buffer_says_so_and_others_go_on(void **state)
{
    (void)state;
    static const char preread[60000];
    int smallest = 1;
    handoff_verdict verdict;
    assert_int_equal(
        setsockopt(broker_socket(), SOL_SOCKET, SO_SNDBUF, &smallest, sizeof smallest), 0);
    handoff_offer offer = offer_of(client[0]);
    offer.preread = preread;
    offer.preread_len = sizeof preread;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    verdict = verdict_of(&channel);
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, HANDOFF_REASON_TOO_LARGE);
    assert_false(verdict.may_have_reached_backend);
    assert_int_equal(backend_statistics(channel.backend).arrived, 0);
    offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
}

/* ---- the kind ---------------------------------------------------------------------------------- */

static void caller_of_the_backend_may_reject_for_a_kind_that_it_does_not_name(void **state)
{
    (void)state;
    offer_fd(&channel, client[0]);
    assert_ok(handoff_backend_reject(channel.backend, arrival_of(&channel).id,
                                     HANDOFF_REASON_KIND));
    handoff_verdict verdict = verdict_of(&channel);
    assert_int_equal(verdict.reason, HANDOFF_REASON_KIND);
    assert_int_equal(verdict.kind, 0);
}

/* ---- taken back at close ----------------------------------------------------------------------- */

enum { SEEN = 2, HELD = 3, SENT = 4, ALL = SEEN + HELD + SENT };

/* Offers of which the backend has seen some, holds others, and has not received the rest. */
static void offer_all(uint64_t seen[SEEN])
{
    for (int i = 0; i < SEEN + HELD; i++)
        offer_fd(&channel, client[0]);
    for (int i = 0; i < SEEN; i++)
        seen[i] = arrival_of(&channel).id;
    for (int i = 0; i < SENT; i++)
        offer_fd(&channel, client[0]);
}

static void assert_taken_back_at_close(const uint64_t seen[SEEN])
{
    int count = 0, fd = -1;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    assert_ok(handoff_broker_close(channel.broker));
    for (; next_verdict(channel.broker, &verdict); count++) {
        assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
        assert_int_equal(verdict.reason, HANDOFF_REASON_BROKER_CLOSED);
    }
    assert_int_equal(count, ALL);
    assert_int_equal(broker_statistics(channel.broker).fallbacks[HANDOFF_REASON_BROKER_CLOSED],
                     ALL);
    /* One is adopted and one rejected, both too late. */
    assert_status(handoff_backend_adopt(channel.backend, seen[0], &fd), HANDOFF_ERR_TAKEN_BACK);
    assert_ok(handoff_backend_reject(channel.backend, seen[1], HANDOFF_REASON_REJECTED));
    assert_no_arrival(&channel);
    handoff_backend_statistics statistics = backend_statistics(channel.backend);
    assert_int_equal(statistics.arrived, ALL);
    assert_int_equal(statistics.taken_back, ALL);
    assert_int_equal(statistics.rejected, 0);
    assert_int_equal(statistics.adopted, 0);
    assert_int_equal(statistics.held, 0);
    assert_int_equal(statistics.broken, 0);
}

static void what_is_taken_back_at_close_is_that_on_both_sides(void **state)
{
    (void)state;
    uint64_t seen[SEEN];
    offer_all(seen);
    assert_taken_back_at_close(seen);
}

/* Offers one connection, and four more when it is told to, and receives nothing. */
static void offer_and_receive_nothing(int told, int tell)
{
    handoff_broker *broker;
    child_assert(handoff_broker_new(channel.path, NULL, &broker) == HANDOFF_OK);
    while (handoff_broker_room(broker) < 1 + SENT) {
        await_readable(handoff_broker_fd(broker));
        child_assert(handoff_broker_dispatch(broker) == HANDOFF_OK);
    }
    handoff_offer offer = offer_of(client[0]);
    for (int i = 0; i < 1 + SENT; i++) {
        if (i == 1)
            child_assert(read(told, &(char){0}, 1) == 1);
        child_assert(handoff_broker_offer(broker, &offer, NULL) == HANDOFF_OK);
        if (i == 0 || i == SENT)
            child_assert(write(tell, "", 1) == 1);
    }
    pause();
}

/* A verdict that the broker has not read makes its end an error, before all that it has sent. */
static void what_a_killed_broker_sent_arrives_behind_the_error_of_the_socket(void **state)
{
    (void)state;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    int told[2], tell[2];
    assert_int_equal(pipe2(told, O_CLOEXEC), 0);
    assert_int_equal(pipe2(tell, O_CLOEXEC), 0);
    pid_t child = start_child();
    if (child == 0)
        offer_and_receive_nothing(told[0], tell[1]);
    while (!next_arrival(channel.backend, &arrival)) {
        await_readable(handoff_backend_fd(channel.backend));
        assert_ok(handoff_backend_dispatch(channel.backend));
    }
    assert_int_equal(read(tell[0], &(char){0}, 1), 1);
    assert_ok(handoff_backend_reject(channel.backend, arrival.id, HANDOFF_REASON_REJECTED));
    assert_status(handoff_backend_next(channel.backend, &arrival), HANDOFF_NOTHING);
    assert_int_equal(write(told[1], "", 1), 1);
    assert_int_equal(read(tell[0], &(char){0}, 1), 1);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    for (int i = 0; i < SENT; i++)
        adopt(&channel, arrival_of(&channel).id);
    assert_no_arrival(&channel);
    assert_int_equal(backend_statistics(channel.backend).arrived, 1 + SENT);
    assert_int_equal(backend_statistics(channel.backend).broken, 0);
    for (int i = 0; i < 2; i++) {
        close(told[i]);
        close(tell[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHANNEL_TEST(client_that_has_reset_its_connection_is_gone),
        CHANNEL_TEST(client_whose_connection_has_ended_in_both_directions_is_gone),
        CHANNEL_TEST(client_whose_descriptor_was_closed_too_early_is_gone),
        CHANNEL_TEST(socket_that_was_never_connected_is_of_another_kind_and_not_gone),
        CHANNEL_TEST(offer_that_does_not_fit_the_sockets_buffer_says_so_and_others_go_on),
        CHANNEL_TEST(caller_of_the_backend_may_reject_for_a_kind_that_it_does_not_name),
        CHANNEL_TEST(what_is_taken_back_at_close_is_that_on_both_sides),
        CHANNEL_TEST(what_a_killed_broker_sent_arrives_behind_the_error_of_the_socket),
    };
    return RUN_TESTS(tests);
}
