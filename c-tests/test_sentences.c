/* What statuses and messages say: the right one of sending and receiving, which limit, which bytes,
 * and nothing that is not known. */
#define _GNU_SOURCE
#include "fixture.h"

#include <netinet/in.h>
#include <pthread.h>
#include <string.h>

static const handoff_raw_token token = {{1, 2, 3}};

/* ---- the raw layer --------------------------------------------------------------------------- */

/* Sending over a UDP socket that is not connected fails with EDESTADDRREQ, which has no status. */
static void error_of_sending_is_not_one_of_receiving(void **state)
{
    (void)state;
    int udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_int_not_equal(udp, -1);
    assert_status(handoff_raw_token_send(udp, &token), HANDOFF_ERR_SEND_FAILED);
    assert_last_error_has(": cannot send: ");
    assert_status(handoff_raw_ack_accept(udp, &token), HANDOFF_ERR_SEND_FAILED);
    assert_status(handoff_raw_ack_reject(udp, &token, HANDOFF_REASON_REJECTED),
                  HANDOFF_ERR_SEND_FAILED);
    close(udp);
}

static void error_of_sending_names_the_socket_and_the_descriptor(void **state)
{
    (void)state;
    char both[80];
    int pair[2];
    make_pair(SOCK_STREAM, pair);
    int closed = dup(pair[0]);
    close(closed);
    snprintf(both, sizeof both, "socket %d: descriptor %d, which was to be sent, is not open",
             pair[0], closed);
    assert_invalid_because(handoff_raw_send(pair[0], closed, &token), both);
    close(pair[0]);
    close(pair[1]);
}

/* Closes the broker's socket, pair[0], when the message has arrived at pair[1], and ends the wait. */
static void *close_after_arrival(void *pair)
{
    int *sockets = pair, fd;
    handoff_raw_token arrived;
    if (handoff_raw_receive(sockets[1], -1, &arrived, &fd) == HANDOFF_OK)
        close(fd);
    close(sockets[0]);
    /* Fails if the wait has not begun: then it does not begin. */
    send(sockets[1], "", 1, MSG_NOSIGNAL);
    return NULL;
}

static void attempt_whose_socket_is_closed_after_sending_leaves_the_client_to_the_backend(void **state)
{
    (void)state;
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    pthread_t thread;
    int pair[2];
    make_pair(SOCK_STREAM, pair);
    assert_int_equal(pthread_create(&thread, NULL, close_after_arrival, pair), 0);
    assert_ok(handoff_raw_attempt(pair[0], pair[1], &token, PATIENCE_MS, &verdict));
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    assert_int_equal(verdict.reason, HANDOFF_REASON_INTEGRITY_MISMATCH);
    assert_status(verdict.cause, HANDOFF_ERR_INVALID_ARGUMENT);
    close(pair[1]);
}

static void attempt_over_a_closed_socket_is_an_invalid_argument(void **state)
{
    (void)state;
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    int pair[2];
    make_pair(SOCK_STREAM, pair);
    close(pair[0]);
    assert_invalid(handoff_raw_attempt(pair[0], pair[1], &token, 1, &verdict));
    close(pair[1]);
}

/* ---- arguments and limits -------------------------------------------------------------------- */

static void field_that_the_library_does_not_know_is_not_supported(void **state)
{
    (void)state;
    struct {
        handoff_offer offer;
        uint64_t later;
    } newer = {HANDOFF_OFFER_INIT, 1};
    newer.offer.size = sizeof newer;
    newer.offer.fd = client[0];
    assert_status(handoff_broker_offer(channel.broker, &newer.offer, NULL), HANDOFF_ERR_UNSUPPORTED);
    assert_int_equal(strncmp(handoff_last_error(), "not supported: offer ", 21), 0);
}

static void message_says_which_bytes_are_too_many(void **state)
{
    (void)state;
    static char bytes[65537], name[257];
    memset(name, 'x', 256);
    handoff_offer offer = offer_of(client[0]);
    offer.preread = bytes;
    offer.preread_len = sizeof bytes;
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_TOO_LARGE);
    assert_last_error_has("65537 bytes in preread, metadata and names together");
    assert_last_error_has("65536");
    offer.preread_len = 0;
    offer.correlation = name;
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_TOO_LARGE);
    assert_last_error_has("256 bytes in correlation");
    assert_last_error_has("255");
}

static void message_says_which_limit_is_reached(void **state)
{
    (void)state;
    static char bytes[65536];
    handoff_offer offer = offer_of(client[0]);
    offer.flags = HANDOFF_OFFER_MORE;
    offer.preread = bytes;
    offer.preread_len = sizeof bytes;
    handoff_status status;
    while ((status = handoff_broker_offer(channel.broker, &offer, NULL)) == HANDOFF_OK)
        ;
    assert_status(status, HANDOFF_ERR_FULL);
    assert_last_error_has("bytes would be queued");

    offer.preread_len = 0;
    while ((status = handoff_broker_offer(channel.broker, &offer, NULL)) == HANDOFF_OK)
        ;
    assert_status(status, HANDOFF_ERR_FULL);
    assert_last_error_has("offers in flight");
}

static void message_says_that_verdicts_must_be_taken(void **state)
{
    (void)state;
    const handoff_broker_options one = {.size = sizeof one, .max_in_flight = 1};
    struct channel small;
    open_channel(&small, &one, NULL);
    offer_fd(&small, client[0]);
    assert_ok(handoff_backend_reject(small.backend, arrival_of(&small).id,
                                     HANDOFF_REASON_REJECTED));
    assert_no_arrival(&small);
    assert_ok(handoff_broker_dispatch(small.broker));
    handoff_offer offer = offer_of(client[0]);
    assert_status(handoff_broker_offer(small.broker, &offer, NULL), HANDOFF_ERR_FULL);
    assert_last_error_has("verdicts that were not taken");
    close_channel(&small);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(error_of_sending_is_not_one_of_receiving),
        TEST(error_of_sending_names_the_socket_and_the_descriptor),
        TEST(attempt_whose_socket_is_closed_after_sending_leaves_the_client_to_the_backend),
        TEST(attempt_over_a_closed_socket_is_an_invalid_argument),
        CHANNEL_TEST(field_that_the_library_does_not_know_is_not_supported),
        CHANNEL_TEST(message_says_which_bytes_are_too_many),
        CHANNEL_TEST(message_says_which_limit_is_reached),
        CHANNEL_TEST(message_says_that_verdicts_must_be_taken),
    };
    return RUN_TESTS(tests);
}
