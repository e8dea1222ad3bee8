/* The library's side. */
#include "raw_layer.h"

#include <stddef.h>

static handoff_raw_store *store;

static void issue(handoff_raw_token *token)
{
    if (store == NULL)
        need_handoff(handoff_raw_store_new(NULL, &store), "handoff_raw_store_new");
    need_handoff(handoff_raw_store_issue(store, token), "handoff_raw_store_issue");
}

static void send_one(int socket, int fd, const handoff_raw_token *token)
{
    need_handoff(handoff_raw_send(socket, fd, token), "handoff_raw_send");
}

static int receive(int socket, handoff_raw_token *token)
{
    int fd = -1;
    need_handoff(handoff_raw_receive_verified(socket, store, NULL, -1, token, &fd),
                 "handoff_raw_receive_verified");
    return fd;
}

static void accept_one(int socket, const handoff_raw_token *token)
{
    need_handoff(handoff_raw_ack_accept(socket, token), "handoff_raw_ack_accept");
}

static void wait_one(int socket, const handoff_raw_token *token)
{
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    need_handoff(handoff_raw_ack_wait(socket, token, 5000, &ack), "handoff_raw_ack_wait");
    need(ack.outcome == HANDOFF_ADOPTED, "rejected");
}

const struct side handoff = {issue, send_one, receive, accept_one, wait_one};
