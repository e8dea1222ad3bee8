/*
 * Plain C, one descriptor a message: sendmsg(2) and recvmsg(2) over a stream socket. Nothing is
 * checked, nothing can be late, and both sides know the size of a message, a token and the preread.
 * With MANY a message has so many descriptors, with as many tokens and prereads. With MANY=1 and
 * without GATHER it is what cmsg(3) shows: a message, and an acknowledgement, for each.
 */
#define _GNU_SOURCE
#include "peer.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST_GATHERED = 256 };

union control {
    char bytes[CMSG_SPACE(MOST_MANY * sizeof(int))];
    struct cmsghdr align;
};

static int channel;

static size_t offer_len(void)
{
    return TOKEN + (size_t)preread;
}

/* ---- the broker ---- */

static unsigned char *message, *rest;
static size_t rest_len;
static int fds[MOST_MANY], fds_count, is_full;

static void begin(int socket)
{
    channel = socket;
    many = many > 0 ? many : 1;
    message = malloc(offer_len() * (size_t)many);
    need(message != NULL, "malloc");
}

/* Sends what the socket had no room for. Not 0: all of it. */
static int send_rest(void)
{
    while (rest_len > 0) {
        ssize_t n = send(channel, rest, rest_len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n == -1 && errno == EAGAIN)
            return 0;
        need(n > 0, "send");
        rest += n;
        rest_len -= (size_t)n;
    }
    return 1;
}

/* Sends the message with its descriptors. Not 0: the socket took some of it at least. */
static int send_message(void)
{
    union control control;
    size_t len = (size_t)fds_count * sizeof(int);
    struct iovec iov = {.iov_base = message, .iov_len = offer_len() * (size_t)fds_count};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                            .msg_controllen = CMSG_SPACE(len)};
    memset(&control, 0, CMSG_SPACE(len));
    struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
    *rights = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
                               .cmsg_len = CMSG_LEN(len)};
    memcpy(CMSG_DATA(rights), fds, len);
    ssize_t n = sendmsg(channel, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n == -1 && errno == EAGAIN)
        return 0;
    need(n > 0, "sendmsg");
    fds_count = 0;
    rest = message + n;
    rest_len = iov.iov_len - (size_t)n;
    return 1;
}

static void flush(void)
{
    if (send_rest() && fds_count > 0 && send_message())
        send_rest();
}

static int offer(struct client *client)
{
    if (fds_count == many)
        flush();
    is_full = rest_len > 0 || fds_count == many;
    if (is_full)
        return 0;
    unsigned char *at = message + offer_len() * (size_t)fds_count;
    token_for(client, at);
    memcpy(at + TOKEN, client->preread, (size_t)preread);
    fds[fds_count++] = client->source.fd;
    if (fds_count == many)
        flush();
    return 1;
}

static int watched(void)
{
    return channel;
}

static void dispatch(int may_wait)
{
    static unsigned char tokens[256 * TOKEN];
    static size_t len; /* of a token that came in part */
    int unsent = is_full || rest_len > 0 || fds_count > 0;
    if (unsent && may_wait) { /* or there may be none: all have to be sent first */
        struct pollfd either = {.fd = channel, .events = POLLIN | POLLOUT};
        need(poll(&either, 1, -1) == 1, "poll");
        may_wait = 0;
    }
    ssize_t n = recv(channel, tokens + len, sizeof tokens - len, may_wait ? 0 : MSG_DONTWAIT);
    if (n == -1 && errno == EAGAIN)
        return;
    need(n > 0, "acknowledgement");
    len += (size_t)n;
    size_t whole = len / TOKEN * TOKEN;
    for (size_t i = 0; i < whole; i += TOKEN)
        settle(client_of(tokens + i));
    len -= whole;
    memmove(tokens, tokens + whole, len);
}

/* ---- the backend ---- */

static unsigned char *acks;
static size_t acks_len;

static void send_acks(int socket)
{
    for (size_t sent = 0; sent < acks_len;) {
        ssize_t n = send(socket, acks + sent, acks_len - sent, MSG_NOSIGNAL);
        need(n > 0, "acknowledging");
        sent += (size_t)n;
    }
    acks_len = 0;
}

/* Receives one message. Returns how many descriptors it has, 0 if none has come. */
static int receive(int socket, unsigned char *bytes, size_t len, int received[], int flags)
{
    union control control;
    struct iovec iov = {.iov_base = bytes, .iov_len = len};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                            .msg_controllen = sizeof control};
    ssize_t n = recvmsg(socket, &header, MSG_CMSG_CLOEXEC | flags);
    if (n == -1 && errno == EAGAIN)
        return 0;
    struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
    need(n > 0 && rights != NULL && rights->cmsg_type == SCM_RIGHTS &&
         (header.msg_flags & MSG_CTRUNC) == 0, "recvmsg");
    size_t fds_len = rights->cmsg_len - CMSG_LEN(0);
    int received_count = (int)(fds_len / sizeof(int));
    memcpy(received, CMSG_DATA(rights), fds_len);
    size_t whole = offer_len() * (size_t)received_count;
    need(whole <= len, "more descriptors than bytes");
    for (size_t got = (size_t)n; got < whole; got += (size_t)n) {
        n = recv(socket, bytes + got, whole - got, 0);
        need(n > 0, "the rest of a message");
    }
    return received_count;
}

static void backend(int socket)
{
    many = many > 0 ? many : 1;
    size_t len = offer_len() * (size_t)many;
    unsigned char *bytes = malloc(len);
    int received[MOST_MANY], *held = calloc((size_t)hold + MOST_MANY, sizeof *held);
    int held_count = 0, finished = 0;
    size_t most_acks = (size_t)(hold + MOST_GATHERED) * TOKEN;
    acks = malloc(most_acks + MOST_MANY * TOKEN);
    need(bytes != NULL && held != NULL && acks != NULL, "malloc");
    while (!finished) {
        int n = receive(socket, bytes, len, received, acks_len > 0 && gather ? MSG_DONTWAIT : 0);
        for (int i = 0; i < n; i++) {
            finished = arrived();
            if (held_count < hold)
                held[held_count++] = received[i];
            else
                serve(received[i]);
            memcpy(acks + acks_len, bytes + offer_len() * (size_t)i, TOKEN);
            acks_len += TOKEN;
        }
        int due = n == 0 || !gather || finished || acks_len >= most_acks;
        if (due && held_count >= hold)
            send_acks(socket);
    }
}

int main(void)
{
    static const struct peer plain = {NULL, begin, offer, flush, watched, dispatch, backend};
    return run_peer(&plain);
}
