/* The library's side. */
#include "raw_layer.h"

#include <stddef.h>

static handoff_token_store *store;

static void issue(handoff_token *token)
{
    if (store == NULL)
        need(handoff_token_store_new(NULL, &store) == HANDOFF_OK, "handoff_token_store_new");
    need(handoff_token_store_issue(store, token) == HANDOFF_OK, "handoff_token_store_issue");
}

static void send_one(int socket, int fd, const handoff_token *token)
{
    need(handoff_send(socket, fd, token) == HANDOFF_OK, "handoff_send");
}

static int receive(int socket, handoff_token *token)
{
    int fd = -1;
    need(handoff_receive_verified(socket, -1, store, NULL, token, &fd) == HANDOFF_OK,
         "handoff_receive_verified");
    return fd;
}

static void accept_one(int socket, const handoff_token *token)
{
    need(handoff_ack_accept(socket, token) == HANDOFF_OK, "handoff_ack_accept");
}

static void wait_one(int socket, const handoff_token *token)
{
    handoff_ack ack;
    need(handoff_ack_wait(socket, token, 5000, &ack) == HANDOFF_OK &&
         ack.outcome == HANDOFF_ADOPTED, "handoff_ack_wait");
}

const struct side handoff = {issue, send_one, receive, accept_one, wait_one};
