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

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(broker_that_stops_receiving_is_left_and_what_it_offered_is_adopted),
    };
    return RUN_TESTS(tests);
}
