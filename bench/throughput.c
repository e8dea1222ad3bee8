/*
 * throughput: handoffs a second from one process to another. The channel, with 256 in flight,
 * tokens, claims and verdicts included, beside plain C that knows nothing of the receiver: a loop
 * that sends one descriptor a message, and one that sends 64.
 *
 * Most of what the channel adds to the latter is three system calls for each offer: the broker asks
 * for the connection's SO_COOKIE; the backend, which trusts no broker with that, for an option that
 * only TCP has, and for its SO_COOKIE. All others are shared by many offers, as strace -fc shows.
 *
 * The connections are TCP, offered again and again: the receiver closes each descriptor that it
 * gets, the sender keeps its own. In each repetition all sides run, in turns first; ratios are
 * within a repetition. REPETITIONS (15) and HANDOFFS (50000) in each come from the environment.
 */
#define _GNU_SOURCE
#include "common.h"
#include "need_handoff.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { IN_FLIGHT = 256, MANY = 64, SIDES = 3, REPETITIONS = 101 };

static int handoffs, connections[IN_FLIGHT];

/* ---- the channel ---- */

static handoff_backend *backend;
static handoff_broker *broker;

static void backend_run(int socket)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    int fd = handoff_backend_fd(backend), adopted = 0;
    (void)socket;
    while (adopted < handoffs + 1) {
        wait_readable(fd);
        need_handoff(handoff_backend_dispatch(backend), "handoff_backend_dispatch");
        while (took(handoff_backend_next(backend, &arrival), "handoff_backend_next")) {
            int client;
            need_handoff(handoff_backend_adopt(backend, arrival.id, &client),
                         "handoff_backend_adopt");
            close(client);
            adopted++;
        }
    }
}

/* Not 0: it was taken. An adoption may be known before the backend has given the next token. */
static int offer(intptr_t connection)
{
    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = connections[connection];
    offer.user_data = (void *)connection;
    offer.flags = HANDOFF_OFFER_MORE;
    handoff_status status = handoff_broker_offer(broker, &offer, NULL);
    if (status == HANDOFF_ERR_FULL)
        return 0;
    need_handoff(status, "handoff_broker_offer");
    return 1;
}

static void broker_run(int socket)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    int fd = handoff_broker_fd(broker), offered = 0, adopted = 0, waiting_count = 0;
    intptr_t waiting[IN_FLIGHT];
    (void)socket;
    for (; waiting_count < IN_FLIGHT; waiting_count++)
        waiting[waiting_count] = waiting_count;
    while (adopted < handoffs) {
        while (offered < handoffs && waiting_count > 0 && offer(waiting[waiting_count - 1])) {
            waiting_count--;
            offered++;
        }
        need_handoff(handoff_broker_flush(broker), "handoff_broker_flush");
        wait_readable(fd);
        need_handoff(handoff_broker_dispatch(broker), "handoff_broker_dispatch");
        while (took(handoff_broker_next(broker, &verdict), "handoff_broker_next")) {
            need(verdict.outcome == HANDOFF_ADOPTED, "a fallback");
            waiting[waiting_count++] = (intptr_t)verdict.user_data;
            adopted++;
        }
    }
}

/* ---- plain C ---- */

union control {
    char bytes[CMSG_SPACE(MANY * sizeof(int))];
    struct cmsghdr align;
};

static void plain_send(int socket, int many)
{
    unsigned char tokens[MANY * HANDOFF_RAW_TOKEN_LEN] = {0};
    union control control;
    struct iovec iov = {.iov_base = tokens, .iov_len = (size_t)many * HANDOFF_RAW_TOKEN_LEN};
    size_t len = (size_t)many * sizeof(int);
    memset(&control, 0, sizeof control);
    for (int sent = 0; sent < handoffs; sent += many) {
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                                 .msg_controllen = CMSG_SPACE(len)};
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
                                   .cmsg_len = CMSG_LEN(len)};
        memcpy(CMSG_DATA(header), &connections[sent % IN_FLIGHT], len);
        need(sendmsg(socket, &message, MSG_NOSIGNAL) == (ssize_t)iov.iov_len, "sendmsg");
    }
    char end;
    need(recv(socket, &end, 1, 0) == 1, "end");
}

static void plain_receive(int socket, int many)
{
    unsigned char tokens[MANY * HANDOFF_RAW_TOKEN_LEN];
    union control control;
    struct iovec iov = {.iov_base = tokens, .iov_len = (size_t)many * HANDOFF_RAW_TOKEN_LEN};
    for (int received = 0; received < handoffs; received += many) {
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                                 .msg_controllen = sizeof control};
        need(recvmsg(socket, &message, MSG_CMSG_CLOEXEC) == (ssize_t)iov.iov_len, "recvmsg");
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        need(header != NULL && header->cmsg_len == CMSG_LEN((size_t)many * sizeof(int)) &&
             (message.msg_flags & MSG_CTRUNC) == 0, "control data");
        int fds[MANY];
        memcpy(fds, CMSG_DATA(header), (size_t)many * sizeof(int));
        for (int i = 0; i < many; i++)
            close(fds[i]);
    }
    need(send(socket, "", 1, MSG_NOSIGNAL) == 1, "end");
}

static void send_one(int socket) { plain_send(socket, 1); }
static void receive_one(int socket) { plain_receive(socket, 1); }
static void send_many(int socket) { plain_send(socket, MANY); }
static void receive_many(int socket) { plain_receive(socket, MANY); }

/* ---- measuring ---- */

static const struct side {
    const char *name;
    void (*send)(int socket);
    void (*receive)(int socket);
} sides[SIDES] = {
    {"channel, 256 in flight", broker_run, backend_run},
    {"plain C, 1 a message", send_one, receive_one},
    {"plain C, 64 a message", send_many, receive_many},
};

/* Nanoseconds for each handoff: elapsed, and of the processor in each process. */
struct cost {
    double elapsed, sender, receiver;
};

static double cpu(const struct rusage *usage)
{
    return (double)(usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) * 1e9 +
           (double)(usage->ru_utime.tv_usec + usage->ru_stime.tv_usec) * 1e3;
}

static void open_channel(void)
{
    char path[64];
    snprintf(path, sizeof path, "@handoff-bench-%d", getpid());
    need_handoff(handoff_backend_listen(path, NULL, &backend), "handoff_backend_listen");
    need_handoff(handoff_broker_new(path, NULL, &broker), "handoff_broker_new");
}

/* Hands the first connection over, for which it waits until the channel is there. */
static void warm_channel(void)
{
    handoff_backend_free(backend); /* the child's now */
    handoff_offer offer = HANDOFF_OFFER_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    offer.fd = connections[0];
    need_handoff(handoff_broker_offer_and_wait(broker, &offer, &verdict), "the first handoff");
    need(verdict.outcome == HANDOFF_ADOPTED, "the first handoff");
}

static struct cost run(const struct side *side)
{
    struct rusage before, after, child_usage;
    int pair[2], status, is_channel = side->send == broker_run;
    need(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
    if (is_channel)
        open_channel();
    int child = make_child();
    if (child == 0) {
        close(pair[0]);
        side->receive(pair[1]);
        _exit(0);
    }
    if (is_channel)
        warm_channel();
    getrusage(RUSAGE_SELF, &before);
    double start = now();
    side->send(pair[0]);
    double elapsed = now() - start;
    getrusage(RUSAGE_SELF, &after);
    need(wait4(child, &status, 0, &child_usage) == child && status == 0, "receiver");
    close(pair[0]);
    close(pair[1]);
    if (is_channel)
        handoff_broker_free(broker);
    return (struct cost){elapsed / handoffs, (cpu(&after) - cpu(&before)) / handoffs,
                         cpu(&child_usage) / handoffs};
}

int main(void)
{
    static double values[SIDES][4][REPETITIONS];
    int repetitions = number("REPETITIONS", 15);
    need(repetitions <= REPETITIONS, "REPETITIONS");
    handoffs = number("HANDOFFS", 50000) / MANY * MANY;
    for (int i = 0; i < IN_FLIGHT; i++) {
        int pair[2];
        connect_tcp(pair);
        connections[i] = pair[1];
    }
    for (int repetition = -1; repetition < repetitions; repetition++) { /* -1 to warm up */
        struct cost costs[SIDES];
        for (int turn = 0; turn < SIDES; turn++) {
            int side = (turn + repetition + 1) % SIDES;
            costs[side] = run(&sides[side]);
        }
        for (int side = 0; side < SIDES && repetition >= 0; side++) {
            values[side][0][repetition] = costs[side].elapsed;
            values[side][1][repetition] = costs[side].sender;
            values[side][2][repetition] = costs[side].receiver;
            values[side][3][repetition] = costs[0].elapsed / costs[side].elapsed;
        }
    }
    printf("%-24s %10s %10s %10s %10s %10s\n", "nanoseconds a handoff", "elapsed", "cpu sender",
           "receiver", "a second", "channel/it");
    for (int side = 0; side < SIDES; side++) {
        double elapsed = median(values[side][0], repetitions);
        printf("%-24s %10.0f %10.0f %10.0f %10.0f %10.3f\n", sides[side].name, elapsed,
               median(values[side][1], repetitions), median(values[side][2], repetitions),
               1e9 / elapsed, median(values[side][3], repetitions));
    }
    return 0;
}
