/*
 * The plain side: the same bytes, descriptors, flags and system calls in as little C as will do,
 * for tokens that come back in the order in which they were issued.
 */
#define _GNU_SOURCE
#include "raw_layer.h"

#include <poll.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

enum { PENDING = 1024, LEN = HANDOFF_RAW_TOKEN_LEN, ACK_LEN = LEN + 4 };

static unsigned char expected[PENDING][LEN];
static unsigned issued, used;

static void issue(handoff_raw_token *token)
{
    need(issued - used < PENDING && getrandom(token->bytes, LEN, 0) == LEN, "getrandom");
    memcpy(expected[issued++ % PENDING], token->bytes, LEN);
}

union control {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
};

static void send_one(int socket, int fd, const handoff_raw_token *token)
{
    union control control = {{0}};
    struct iovec iov = {.iov_base = (void *)token->bytes, .iov_len = LEN};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    need(sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == LEN, "sendmsg");
}

static int receive(int socket, handoff_raw_token *token)
{
    union control control;
    struct iovec iov = {.iov_base = token->bytes, .iov_len = LEN};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    need(recvmsg(socket, &message, MSG_CMSG_CLOEXEC) == LEN, "recvmsg");
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    need(header != NULL && header->cmsg_level == SOL_SOCKET &&
         header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(sizeof(int)) &&
         (message.msg_flags & (MSG_CTRUNC | MSG_TRUNC)) == 0, "control data");
    int fd;
    memcpy(&fd, CMSG_DATA(header), sizeof fd);
    need(memcmp(token->bytes, expected[used++ % PENDING], LEN) == 0, "token");
    return fd;
}

static void accept_one(int socket, const handoff_raw_token *token)
{
    unsigned char ack[ACK_LEN] = {0};
    memcpy(ack, token->bytes, LEN);
    ack[LEN] = 1;
    need(send(socket, ack, sizeof ack, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof ack, "send");
}

static void wait_one(int socket, const handoff_raw_token *token)
{
    unsigned char ack[ACK_LEN];
    struct pollfd readable = {.fd = socket, .events = POLLIN};
    need(poll(&readable, 1, 5000) == 1, "poll");
    need(recv(socket, ack, sizeof ack, MSG_DONTWAIT) == sizeof ack &&
         memcmp(ack, token->bytes, LEN) == 0 && ack[LEN] == 1, "recv");
}

const struct side raw = {issue, send_one, receive, accept_one, wait_one};
