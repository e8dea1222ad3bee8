/* A broker that stops receiving: it takes no verdict, so its channel ends. */
#define _GNU_SOURCE
#include "channel.h"
#include "frames.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

static struct frame frame;

static int make_table(uint64_t **word)
{
    int table = memfd_create("claims", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_not_equal(table, -1);
    assert_int_equal(ftruncate(table, sizeof **word), 0);
    assert_int_equal(fcntl(table, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    *word = mmap(NULL, sizeof **word, PROT_READ | PROT_WRITE, MAP_SHARED, table, 0);
    assert_true(*word != MAP_FAILED);
    return table;
}

/* Connected, with the token of its one slot. */
static int connect_by_hand(struct channel *channel, uint64_t **word, unsigned char *token)
{
    int socket = packets_connect(channel->path), table = make_table(word);
    assert_int_not_equal(socket, -1);
    frame_hello(&frame, 1, table);
    assert_int_equal(frame_send(socket, &frame), 0);
    close(table);
    assert_ok(handoff_backend_dispatch(channel->backend));
    assert_int_equal(frame_receive(socket, &frame), 0);
    assert_int_equal(frame_receive(socket, &frame), 0);
    assert_int_equal(frame.bytes[AT_KIND], GRANTS);
    memcpy(token, frame.bytes + HEADER_LEN + 8, TOKEN_LEN);
    return socket;
}

static void broker_that_stops_receiving_is_left_and_what_it_offered_is_adopted(void **state)
{
    (void)state;
    struct channel channel;
    int client[2];
    uint64_t *word;
    unsigned char token[TOKEN_LEN];
    make_directory(channel.directory);
    snprintf(channel.path, sizeof channel.path, "%.63s/socket", channel.directory);
    assert_ok(handoff_backend_listen(channel.path, NULL, &channel.backend));
    channel.broker = NULL;
    make_pair(SOCK_STREAM, client);
    int socket = connect_by_hand(&channel, &word, token);

    *word = CLAIM_WORD(1, OFFERED);
    struct entry entry = {.generation = 1, .token = token, .cookie = cookie_of(client[0]),
                          .fd = client[0], .correlation = ""};
    frame_begin(&frame, OFFERS);
    frame_offer(&frame, &entry);
    assert_int_equal(frame_send(socket, &frame), 0);
    assert_int_equal(shutdown(socket, SHUT_RD), 0);

    adopt(&channel, arrival_of(&channel).id);
    assert_no_arrival(&channel);
    assert_true(*word == CLAIM_WORD(1, ADOPTED));
    assert_int_equal(backend_statistics(channel.backend).channels, 0);
    close(socket);
    close(client[0]);
    close(client[1]);
    munmap(word, sizeof *word);
    close_channel(&channel);
}

/* It has used the slot of what was adopted again. */
static void what_a_broker_offered_before_it_ended_is_an_event_and_leaves_the_bytes_of_others(void **state)
{
    (void)state;
    static const char first[] = "the first client's", second[] = "the second client's";
    struct channel channel;
    handoff_arrival adopted = HANDOFF_ARRIVAL_INIT, other = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    int client[2];
    make_pair(SOCK_STREAM, client);
    open_channel(&channel, NULL, NULL);
    handoff_offer offer = offer_of(client[0]);
    offer.preread = first;
    offer.preread_len = sizeof first;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    offer_fd(&channel, client[0]);
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_ok(handoff_backend_next(channel.backend, &adopted));
    adopt(&channel, adopted.id);
    /* Sends the verdict on the first one, with the slot's next token. */
    assert_ok(handoff_backend_next(channel.backend, &other));
    adopt(&channel, other.id);
    assert_ok(handoff_broker_dispatch(channel.broker));
    while (next_verdict(channel.broker, &verdict))
        assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    offer.preread = second;
    offer.preread_len = sizeof second;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    handoff_broker_free(channel.broker);
    channel.broker = NULL;

    assert_status(handoff_backend_next(channel.backend, &other), HANDOFF_NOTHING);
    assert_memory_equal(adopted.preread, first, sizeof first);
    await_readable(handoff_backend_fd(channel.backend));
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_status(handoff_backend_next(channel.backend, &other), HANDOFF_NOTHING);
    assert_int_equal(backend_statistics(channel.backend).arrived, 3);
    assert_int_equal(backend_statistics(channel.backend).taken_back, 1);
    close(client[0]);
    close(client[1]);
    close_channel(&channel);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(broker_that_stops_receiving_is_left_and_what_it_offered_is_adopted),
        TEST(what_a_broker_offered_before_it_ended_is_an_event_and_leaves_the_bytes_of_others),
    };
    return RUN_TESTS(tests);
}
