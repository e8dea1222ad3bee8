/*
 * Plain C that does by hand what libhandoff's contract needs, and nothing else: what can be reached
 * with the same checks. Nothing can be late or go wrong: what fails a check ends the program. It
 * moves connections as a channel does:
 *
 *   - all that wait are one packet, with their descriptors, 252 at most; with PARTS=4 a quarter of
 *     what may be in flight at most, so that neither side waits for all that the other does;
 *   - each has a random one-time token, which the backend gave out and compares;
 *   - both sides ask for SO_COOKIE, and the backend whether it is a connected socket of TCP;
 *   - the backend adopts by compare-and-swap in memory that both share, and its verdict, with the
 *     slot's next token, goes with those of the same packet.
 *
 * Both sides receive what is there and then wait with poll(2), as an event loop does. With
 * BLOCKING=1 and one in flight they wait in recvmsg(2), after asking for SPIN microseconds without
 * sleeping.
 */
#define _GNU_SOURCE
#include "peer.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum { OFFERED = 1, ADOPTED = 2, STATE_BITS = 2 };
enum { MOST_BYTES = 128 * 1024, MOST_VERDICTS = 64, TOKENS_AT_ONCE = 16 };

/* An entry of a packet; `preread_len` bytes follow it. */
struct offer {
    uint32_t slot, preread_len;
    uint64_t generation, cookie;
    unsigned char token[TOKEN];
};

struct verdict {
    uint32_t slot, adopted;
    uint64_t generation;
    unsigned char next[TOKEN];
};

/* What a side knows of a place for an offer: its token is that of the next offer. */
static struct slot {
    uint64_t generation;
    unsigned char token[TOKEN];
    struct client *client;
} *slots;

static _Atomic uint64_t *words; /* the claim of each slot */
static int pair[2];

union control {
    char bytes[CMSG_SPACE(MOST_MANY * sizeof(int))];
    struct cmsghdr align;
};

static uint64_t word(uint64_t generation, uint64_t state)
{
    return generation << STATE_BITS | state;
}

static void new_token(unsigned char token[TOKEN])
{
    static unsigned char bytes[TOKENS_AT_ONCE][TOKEN];
    static int left;
    if (left == 0) {
        need(getrandom(bytes, sizeof bytes, 0) == sizeof bytes, "getrandom");
        left = TOKENS_AT_ONCE;
    }
    memcpy(token, bytes[--left], TOKEN);
}

static uint64_t cookie_of(int fd)
{
    uint64_t cookie;
    socklen_t len = sizeof cookie;
    need(getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &len) == 0, "SO_COOKIE");
    return cookie;
}

/* Before the fork, so that the backend has the socket, the memory and the first tokens, too. */
static void prepare(void)
{
    size_t len = (size_t)in_flight * sizeof *words;
    int file = memfd_create("claims", MFD_CLOEXEC);
    need(file != -1 && ftruncate(file, (off_t)len) == 0, "memfd_create");
    words = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    slots = calloc((size_t)in_flight, sizeof *slots);
    need(words != MAP_FAILED && slots != NULL, "memory");
    need(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
    need(!blocking || in_flight == 1, "IN_FLIGHT");
    if (packets > 0)
        many = in_flight > packets ? in_flight / packets : 1;
    for (int i = 0; i < in_flight; i++)
        new_token(slots[i].token);
}

/* Receives a packet. If there is none it waits, if it may, for one or for these events. Returns its
 * length; 0 if none has come. */
static size_t receive(int socket, struct msghdr *message, int may_wait, short events)
{
    int flags = MSG_DONTWAIT | MSG_CMSG_CLOEXEC, sleeps = blocking && may_wait;
    double until = sleeps && spin > 0 ? now() + spin * 1e3 : 0;
    ssize_t n = -1;
    while (n == -1 && until > 0 && now() < until)
        n = recvmsg(socket, message, flags);
    if (n == -1)
        n = recvmsg(socket, message, sleeps ? MSG_CMSG_CLOEXEC : flags);
    if (n == -1 && errno == EAGAIN && may_wait) {
        struct pollfd event = {.fd = socket, .events = events};
        need(poll(&event, 1, -1) == 1, "poll");
        n = recvmsg(socket, message, flags);
    }
    if (n == -1 && errno == EAGAIN)
        return 0;
    need(n > 0 && (message->msg_flags & (MSG_CTRUNC | MSG_TRUNC)) == 0, "recvmsg");
    return (size_t)n;
}

/* ---- the broker ---- */

static struct offer offers[MOST_MANY];
static struct iovec parts[2 * MOST_MANY];
static int fds[MOST_MANY], queued, is_full, *empty, empty_count;

static void begin(int socket)
{
    close(socket);
    close(pair[1]);
    empty = calloc((size_t)in_flight, sizeof *empty);
    need(empty != NULL, "calloc");
    for (int i = 0; i < in_flight; i++)
        empty[empty_count++] = in_flight - 1 - i;
}

/* Sends all that wait as one packet, if the socket takes it. */
static void flush(void)
{
    union control control;
    size_t len = (size_t)queued * sizeof(int);
    struct msghdr header = {.msg_iov = parts, .msg_iovlen = 2 * (size_t)queued,
                            .msg_control = &control, .msg_controllen = CMSG_SPACE(len)};
    if (queued == 0)
        return;
    memset(&control, 0, CMSG_SPACE(len));
    struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
    *rights = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
                               .cmsg_len = CMSG_LEN(len)};
    memcpy(CMSG_DATA(rights), fds, len);
    ssize_t n = sendmsg(pair[0], &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    need(n > 0 || errno == EAGAIN, "sendmsg");
    if (n > 0)
        queued = 0;
}

static int offer(struct client *client)
{
    int most = (int)(MOST_BYTES / (sizeof *offers + (size_t)preread));
    most = most < MOST_MANY ? most : MOST_MANY;
    most = many > 0 && many < most ? many : most;
    if (queued == most)
        flush();
    is_full = queued == most;
    if (is_full || empty_count == 0)
        return 0;
    uint32_t number = (uint32_t)empty[--empty_count];
    struct slot *slot = &slots[number];
    struct offer *offer = &offers[queued];
    slot->client = client;
    *offer = (struct offer){.slot = number, .preread_len = (uint32_t)preread,
                            .generation = ++slot->generation,
                            .cookie = cookie_of(client->source.fd)};
    memcpy(offer->token, slot->token, TOKEN);
    atomic_store_explicit(&words[number], word(slot->generation, OFFERED), memory_order_release);
    parts[2 * queued] = (struct iovec){offer, sizeof *offer};
    parts[2 * queued + 1] = (struct iovec){(void *)client->preread, (size_t)preread};
    fds[queued++] = client->source.fd;
    if (queued == most)
        flush();
    return 1;
}

static int watched(void)
{
    return pair[0];
}

static void take(const struct verdict *verdict)
{
    need(verdict->slot < (uint32_t)in_flight, "a slot");
    struct slot *slot = &slots[verdict->slot];
    uint64_t claim = atomic_load_explicit(&words[verdict->slot], memory_order_acquire);
    need(verdict->adopted && verdict->generation == slot->generation &&
         claim == word(slot->generation, ADOPTED), "a verdict");
    memcpy(slot->token, verdict->next, TOKEN);
    empty[empty_count++] = (int)verdict->slot;
    settle(slot->client);
}

static void dispatch(int may_wait)
{
    struct verdict verdicts[MOST_VERDICTS];
    struct iovec iov = {verdicts, sizeof verdicts};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    short events = is_full || queued > 0 ? POLLIN | POLLOUT : POLLIN;
    size_t len = receive(pair[0], &message, may_wait, events);
    for (size_t i = 0; i < len / sizeof *verdicts; i++)
        take(&verdicts[i]);
}

/* ---- the backend ---- */

static struct verdict *verdicts;
static int verdict_count;

/* Whether all are connected sockets of TCP: of others poll(2) says more, or nothing. */
static void check_kinds(const int received[], int count)
{
    struct pollfd polls[MOST_MANY];
    for (int i = 0; i < count; i++) {
        int later;
        socklen_t len = sizeof later;
        need(getsockopt(received[i], IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &later, &len) == 0 &&
             later == 0, "TCP_FASTOPEN_CONNECT");
        polls[i] = (struct pollfd){.fd = received[i], .events = POLLOUT};
    }
    need(poll(polls, (nfds_t)count, 0) == count, "poll");
    for (int i = 0; i < count; i++)
        need(polls[i].revents == POLLOUT, "a connected socket");
}

static void adopt(const struct offer *offer, int fd)
{
    need(offer->slot < (uint32_t)in_flight, "a slot");
    struct slot *slot = &slots[offer->slot];
    uint64_t offered = word(++slot->generation, OFFERED);
    need(offer->generation == slot->generation && memcmp(offer->token, slot->token, TOKEN) == 0,
         "a token");
    need(offer->cookie == cookie_of(fd), "the socket that was offered");
    need(atomic_compare_exchange_strong(&words[offer->slot], &offered,
                                        word(slot->generation, ADOPTED)), "a claim");
    new_token(slot->token);
    struct verdict *verdict = &verdicts[verdict_count++];
    *verdict = (struct verdict){offer->slot, 1, slot->generation, {0}};
    memcpy(verdict->next, slot->token, TOKEN);
}

static void send_verdicts(void)
{
    for (int sent = 0; sent < verdict_count; sent += MOST_VERDICTS) {
        int count = verdict_count - sent;
        size_t len = (size_t)(count < MOST_VERDICTS ? count : MOST_VERDICTS) * sizeof *verdicts;
        need(send(pair[1], verdicts + sent, len, MSG_NOSIGNAL) == (ssize_t)len, "sending verdicts");
    }
    verdict_count = 0;
}

static void backend(int socket)
{
    static unsigned char bytes[MOST_BYTES];
    int finished = 0, held = 0;
    close(socket);
    close(pair[0]);
    verdicts = calloc((size_t)hold + MOST_VERDICTS, sizeof *verdicts);
    need(verdicts != NULL, "calloc");
    while (!finished) {
        union control control;
        struct iovec iov = {bytes, sizeof bytes};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                                 .msg_controllen = sizeof control};
        size_t len = receive(pair[1], &message, 1, POLLIN), at = 0;
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        need(rights != NULL && rights->cmsg_type == SCM_RIGHTS, "descriptors");
        int received[MOST_MANY], count = (int)((rights->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(received, CMSG_DATA(rights), (size_t)count * sizeof(int));
        check_kinds(received, count);
        for (int i = 0; i < count; i++) {
            struct offer offer;
            need(len - at >= sizeof offer, "a whole offer");
            memcpy(&offer, bytes + at, sizeof offer);
            need(len - at - sizeof offer >= offer.preread_len, "a whole preread");
            at += sizeof offer + offer.preread_len;
            adopt(&offer, received[i]);
            finished = arrived();
            if (held < hold)
                held++;
            else
                serve(received[i]);
            if (held == hold && verdict_count >= MOST_VERDICTS)
                send_verdicts();
        }
        need(at == len, "the end of a packet");
        if (held == hold)
            send_verdicts();
    }
}

int main(void)
{
    static const struct peer checks = {prepare, begin, offer, flush, watched, dispatch, backend};
    return run_peer(&checks);
}
