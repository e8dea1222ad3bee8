/*
 * Plain C that does by hand what libhandoff's contract needs, and nothing else: what can be reached
 * with the same checks. Nothing can be late or go wrong: what fails a check ends the program. It
 * moves connections as a channel does:
 *
 *   - all that wait on a channel, of which there are CHANNELS in turn, are one packet, with their
 *     descriptors, 252 at most; with PARTS=4 a quarter of what may be in flight on it at most, so that
 *     neither side waits for all that the other does;
 *   - each has a random one-time token, which the backend gave out and compares;
 *   - both sides ask for SO_COOKIE, and the backend whether it is a connected socket of TCP;
 *   - the backend adopts by compare-and-swap in memory that both share, and its verdict, with the
 *     slot's next token, goes with those of the same packet.
 *
 * Both sides receive what is there and then wait with poll(2), as an event loop does; with one in
 * flight they wait first. With BLOCKING=1 they ask for SPIN microseconds before that, without
 * sleeping; with poll(2), because such a wait has a deadline and another thread can end it. With
 * EPOLL_SET=1 what they wait for is one descriptor, as an application's event loop needs it: an
 * epoll set with the channel, a timer and a waker.
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
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { OFFERED = 1, ADOPTED = 2, STATE_BITS = 2 };
enum { MOST_BYTES = 128 * 1024, MOST_VERDICTS = 64, TOKENS_AT_ONCE = 16, PATIENCE_MS = 60000 };

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

/* What a side knows of a place for an offer: its token is that of the next offer. A channel has as
   many as the others, one behind the other. */
static struct slot {
    uint64_t generation;
    unsigned char token[TOKEN];
    struct client *client;
} *slots;

static _Atomic uint64_t *words; /* the claim of each slot */
static int waker, slots_each, set;

/* The sockets of both sides, and what waits to be sent by the broker. */
static struct channel {
    int pair[2], queued, *empty, empty_count;
    struct offer offers[MOST_MANY];
    struct iovec parts[2 * MOST_MANY];
    int fds[MOST_MANY];
} *all;
static struct pollfd *ready; /* one for each channel, and the waker */

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
    need(!blocking || in_flight == 1, "IN_FLIGHT");
    slots_each = (in_flight + channels - 1) / channels;
    size_t count = (size_t)slots_each * (size_t)channels, len = count * sizeof *words;
    int file = memfd_create("claims", MFD_CLOEXEC);
    need(file != -1 && ftruncate(file, (off_t)len) == 0, "memfd_create");
    words = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    slots = calloc(count, sizeof *slots);
    all = calloc((size_t)channels, sizeof *all);
    ready = calloc((size_t)channels + 1, sizeof *ready);
    need(words != MAP_FAILED && slots != NULL && all != NULL && ready != NULL, "memory");
    for (int i = 0; i < channels; i++)
        need(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, all[i].pair) == 0, "socketpair");
    waker = eventfd(0, EFD_CLOEXEC);
    need(waker != -1, "eventfd");
    if (packets > 0)
        many = slots_each > packets ? slots_each / packets : 1;
    for (size_t i = 0; i < count; i++)
        new_token(slots[i].token);
}

static void add(int fd, int index)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)index};
    need(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
}

/* One descriptor for all that a side waits for: channels, the timer of its deadlines, its waker. */
static void make_set(int side)
{
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    set = epoll_create1(EPOLL_CLOEXEC);
    need(timer != -1 && set != -1 && !blocking, "EPOLL_SET");
    for (int i = 0; i < channels; i++)
        add(all[i].pair[side], i);
    add(timer, channels);
    add(waker, channels);
}

/* Closes the other side's sockets, and watches this side's. */
static void take_side(int side)
{
    for (int i = 0; i < channels; i++) {
        close(all[i].pair[1 - side]);
        ready[i] = (struct pollfd){.fd = all[i].pair[side], .events = POLLIN};
    }
    ready[channels] = (struct pollfd){.fd = waker, .events = POLLIN};
    if (epoll_set)
        make_set(side);
}

/* Waits until something is there; a blocking call has a deadline, and can be woken. */
static void await_ready(void)
{
    struct pollfd whole = {.fd = set, .events = POLLIN};
    int count = epoll_set ? 1 : channels + (blocking != 0);
    need(poll(epoll_set ? &whole : ready, (nfds_t)count, blocking ? PATIENCE_MS : -1) > 0, "poll");
}

/* Receives a packet, and returns its length; 0 if there is none. The backend ends when it has sent its
   last verdicts, and the broker may still have to take those of other channels. */
static size_t receive(int socket, struct msghdr *message)
{
    ssize_t n = recvmsg(socket, message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n == 0 || (n == -1 && errno == EAGAIN))
        return 0;
    need(n > 0 && (message->msg_flags & (MSG_CTRUNC | MSG_TRUNC)) == 0, "recvmsg");
    return (size_t)n;
}

static void take_from_set(int (*take_packet)(int index))
{
    struct epoll_event events[64] = {{.data.u32 = 0}};
    int count = channels == 1 ? 1 : epoll_wait(set, events, 64, 0);
    need(count >= 0, "epoll_wait");
    for (int i = 0; i < count; i++)
        take_packet((int)events[i].data.u32);
}

/* Takes a packet from the only channel, or one from each that has any; waits for that, if it may. */
static void receive_each(int (*take_packet)(int index), int may_wait)
{
    double until = blocking && may_wait && spin > 0 ? now() + spin * 1e3 : 0;
    while (until > 0 && now() < until)
        if (take_packet(0))
            return;
    if (channels == 1 && looks_first(may_wait) && take_packet(0))
        return;
    if (!may_wait && channels == 1)
        return;
    if (may_wait)
        await_ready();
    if (epoll_set) {
        take_from_set(take_packet);
        return;
    }
    if (!may_wait)
        need(poll(ready, (nfds_t)channels, 0) >= 0, "poll");
    for (int i = 0; i < channels; i++)
        if (ready[i].revents != 0)
            take_packet(i);
}

/* ---- the broker ---- */

static int turn;
static int is_full; /* the queue of the channel whose turn it is, when an offer was refused */

static void begin(int socket)
{
    close(socket);
    take_side(0);
    for (int i = 0; i < channels; i++) {
        struct channel *channel = &all[i];
        channel->empty = calloc((size_t)slots_each, sizeof *channel->empty);
        need(channel->empty != NULL, "calloc");
        for (int j = slots_each - 1; j >= 0; j--)
            channel->empty[channel->empty_count++] = i * slots_each + j;
    }
}

/* Waits for room in a channel's socket, too, or no longer. */
static void watch_room(int index, int wanted)
{
    short events = wanted ? POLLIN | POLLOUT : POLLIN;
    if (ready[index].events == events)
        return;
    ready[index].events = events;
    if (!epoll_set)
        return;
    /* The flags of both have the same values. */
    struct epoll_event event = {.events = (uint32_t)events, .data.u32 = (uint32_t)index};
    need(epoll_ctl(set, EPOLL_CTL_MOD, all[index].pair[0], &event) == 0, "epoll_ctl");
}

/* Sends all that wait on a channel as one packet, if the socket takes it. */
static void flush_channel(int index)
{
    struct channel *channel = &all[index];
    union control control;
    size_t len = (size_t)channel->queued * sizeof(int);
    struct msghdr header = {.msg_iov = channel->parts, .msg_iovlen = 2 * (size_t)channel->queued,
                            .msg_control = &control, .msg_controllen = CMSG_SPACE(len)};
    if (channel->queued == 0)
        return;
    memset(&control, 0, CMSG_SPACE(len));
    struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
    *rights = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
                               .cmsg_len = CMSG_LEN(len)};
    memcpy(CMSG_DATA(rights), channel->fds, len);
    ssize_t n = sendmsg(channel->pair[0], &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    need(n > 0 || errno == EAGAIN, "sendmsg");
    if (n > 0)
        channel->queued = 0;
    watch_room(index, channel->queued > 0);
}

static void flush(void)
{
    for (int i = 0; i < channels; i++)
        flush_channel(i);
}

static int offer(struct client *client)
{
    struct channel *channel = &all[turn];
    int most = (int)(MOST_BYTES / (sizeof(struct offer) + (size_t)preread));
    most = most < MOST_MANY ? most : MOST_MANY;
    most = many > 0 && many < most ? many : most;
    if (channel->queued == most)
        flush_channel(turn);
    is_full = channel->queued == most;
    if (is_full || channel->empty_count == 0)
        return 0;
    uint32_t number = (uint32_t)channel->empty[--channel->empty_count];
    struct slot *slot = &slots[number];
    struct offer *offer = &channel->offers[channel->queued];
    slot->client = client;
    *offer = (struct offer){.slot = number, .preread_len = (uint32_t)preread,
                            .generation = ++slot->generation,
                            .cookie = cookie_of(client->source.fd)};
    memcpy(offer->token, slot->token, TOKEN);
    atomic_store_explicit(&words[number], word(slot->generation, OFFERED), memory_order_release);
    channel->parts[2 * channel->queued] = (struct iovec){offer, sizeof *offer};
    channel->parts[2 * channel->queued + 1] =
        (struct iovec){(void *)client->preread, (size_t)preread};
    channel->fds[channel->queued++] = client->source.fd;
    if (channel->queued == most)
        flush_channel(turn);
    turn = (turn + 1) % channels;
    return 1;
}

static int watched(void)
{
    need(channels == 1, "CHANNELS");
    return epoll_set ? set : all[0].pair[0];
}

static void take(const struct verdict *verdict)
{
    need(verdict->slot < (uint32_t)(slots_each * channels), "a slot");
    struct slot *slot = &slots[verdict->slot];
    struct channel *channel = &all[verdict->slot / (uint32_t)slots_each];
    uint64_t claim = atomic_load_explicit(&words[verdict->slot], memory_order_acquire);
    need(verdict->adopted && verdict->generation == slot->generation &&
         claim == word(slot->generation, ADOPTED), "a verdict");
    memcpy(slot->token, verdict->next, TOKEN);
    channel->empty[channel->empty_count++] = (int)verdict->slot;
    settle(slot->client);
}

static int take_verdicts(int index)
{
    struct verdict verdicts[MOST_VERDICTS];
    struct iovec iov = {verdicts, sizeof verdicts};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    size_t len = receive(all[index].pair[0], &message);
    for (size_t i = 0; i < len / sizeof *verdicts; i++)
        take(&verdicts[i]);
    return len > 0;
}

static void dispatch(int may_wait)
{
    /* If it was sent in the meantime, no event tells that there is room. */
    receive_each(take_verdicts, may_wait && !(is_full && all[turn].queued == 0));
}

/* ---- the backend ---- */

static struct verdict *verdicts;
static int verdict_count, finished, held;

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
    need(offer->slot < (uint32_t)(slots_each * channels), "a slot");
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

static void send_verdicts(int socket)
{
    for (int sent = 0; sent < verdict_count; sent += MOST_VERDICTS) {
        int count = verdict_count - sent;
        size_t len = (size_t)(count < MOST_VERDICTS ? count : MOST_VERDICTS) * sizeof *verdicts;
        need(send(socket, verdicts + sent, len, MSG_NOSIGNAL) == (ssize_t)len, "sending verdicts");
    }
    verdict_count = 0;
}

static int take_offers(int index)
{
    static unsigned char bytes[MOST_BYTES];
    int socket = all[index].pair[1], received[MOST_MANY];
    union control control;
    struct iovec iov = {bytes, sizeof bytes};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    size_t len = receive(socket, &message), at = 0;
    if (len == 0)
        return 0;
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    need(rights != NULL && rights->cmsg_type == SCM_RIGHTS, "descriptors");
    int count = (int)((rights->cmsg_len - CMSG_LEN(0)) / sizeof(int));
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
            send_verdicts(socket);
    }
    need(at == len, "the end of a packet");
    if (held == hold)
        send_verdicts(socket);
    return 1;
}

static void backend(int socket)
{
    close(socket);
    take_side(1);
    need(hold == 0 || channels == 1, "HOLD");
    verdicts = calloc((size_t)hold + MOST_VERDICTS, sizeof *verdicts);
    need(verdicts != NULL, "calloc");
    while (!finished)
        receive_each(take_offers, 1);
}

int main(void)
{
    static const struct peer checks = {prepare, begin, offer, flush, watched, dispatch, backend};
    return run_peer(&checks);
}
