/* The library's side. */
#include "bench.h"

#include <string.h>

#include <handoff.h>

static handoff_token_store *store;

static void issue(unsigned char token[TOKEN_LEN])
{
    handoff_token issued;
    if (store == NULL)
        need(handoff_token_store_new(NULL, &store) == HANDOFF_OK, "handoff_token_store_new");
    need(handoff_token_store_issue(store, &issued) == HANDOFF_OK, "handoff_token_store_issue");
    memcpy(token, issued.bytes, TOKEN_LEN);
}

static void send_one(int socket, int fd, const unsigned char token[TOKEN_LEN])
{
    handoff_token sent;
    memcpy(sent.bytes, token, TOKEN_LEN);
    need(handoff_send(socket, fd, &sent) == HANDOFF_OK, "handoff_send");
}

static int receive(int socket, unsigned char token[TOKEN_LEN])
{
    handoff_token received;
    int fd;
    need(handoff_receive_verified(socket, -1, store, NULL, &received, &fd) == HANDOFF_OK,
         "handoff_receive_verified");
    memcpy(token, received.bytes, TOKEN_LEN);
    return fd;
}

static void accept_one(int socket, const unsigned char token[TOKEN_LEN])
{
    handoff_token accepted;
    memcpy(accepted.bytes, token, TOKEN_LEN);
    need(handoff_ack_accept(socket, &accepted) == HANDOFF_OK, "handoff_ack_accept");
}

static void wait_one(int socket, const unsigned char token[TOKEN_LEN])
{
    handoff_token sent;
    handoff_ack ack;
    memcpy(sent.bytes, token, TOKEN_LEN);
    need(handoff_ack_wait(socket, &sent, 5000, &ack) == HANDOFF_OK &&
         ack.outcome == HANDOFF_ADOPTED, "handoff_ack_wait");
}

const struct side handoff = {issue, send_one, receive, accept_one, wait_one};
