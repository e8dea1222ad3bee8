/*
 * raw_layer: what a handoff costs through the raw layer of the library, and in plain C with the
 * same system calls.
 *
 * Both move the same over one socket pair: a message of 16 bytes of token and a descriptor, and in
 * a round trip the 20 bytes of acknowledgement. Both make each token with a system call inside the
 * loop, compare it when it comes back, and close the descriptor. What the library does beyond the
 * plain code: tokens in any order and from many threads, expiry, every error told apart.
 *
 * One process alternates between both ends, BATCH messages at a time: least noise. Two processes
 * are a sender and a receiver as in life; the tokens of a batch travel back in one packet.
 * In each repetition both sides run, in turns first; ratios are within a repetition. REPETITIONS
 * (21) and MESSAGES (10000) in each come from the environment.
 */
#define _GNU_SOURCE
#include "raw_layer.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BATCH = 64 };

static int repetitions = 21, batches = 10000 / BATCH;

/* Each of these gives the nanoseconds that `batches` of handoffs took. */

static double one_way_alone(const struct side *side, const int pair[2], int fd)
{
    handoff_raw_token tokens[BATCH], token;
    double start = now();
    for (int batch = 0; batch < batches; batch++) {
        for (int i = 0; i < BATCH; i++)
            side->issue(&tokens[i]);
        for (int i = 0; i < BATCH; i++)
            side->send(pair[0], fd, &tokens[i]);
        for (int i = 0; i < BATCH; i++)
            close(side->receive(pair[1], &token));
    }
    return now() - start;
}

static double round_trip_alone(const struct side *side, const int pair[2], int fd)
{
    handoff_raw_token issued, token;
    double start = now();
    for (int i = 0; i < batches * BATCH; i++) {
        side->issue(&issued);
        side->send(pair[0], fd, &issued);
        int received = side->receive(pair[1], &token);
        side->accept(pair[1], &token);
        side->wait(pair[0], &issued);
        close(received);
    }
    return now() - start;
}

static void grant(const struct side *side, int socket)
{
    handoff_raw_token tokens[BATCH];
    for (int i = 0; i < BATCH; i++)
        side->issue(&tokens[i]);
    need(send(socket, tokens, sizeof tokens, MSG_NOSIGNAL) == sizeof tokens, "granting");
}

/* The receiver's process: grants tokens for one batch, and for the next one ahead of it where no
 * acknowledgement is in their way. The first byte starts it, and it ends with a byte of its own. */
static void receiver(const struct side *side, int socket, int acknowledge)
{
    handoff_raw_token token;
    char byte;
    need(recv(socket, &byte, 1, 0) == 1, "start");
    grant(side, socket);
    for (int batch = 0; batch < batches; batch++) {
        if (!acknowledge)
            grant(side, socket);
        for (int i = 0; i < BATCH; i++) {
            int fd = side->receive(socket, &token);
            if (acknowledge)
                side->accept(socket, &token);
            close(fd);
        }
        if (acknowledge)
            grant(side, socket);
    }
    need(send(socket, "", 1, MSG_NOSIGNAL) == 1, "end");
}

static double two_processes(const struct side *side, const int pair[2], int fd, int acknowledge)
{
    handoff_raw_token tokens[BATCH];
    char byte;
    pid_t child = fork();
    need(child != -1, "fork");
    if (child == 0) {
        close(pair[0]);
        receiver(side, pair[1], acknowledge);
        _exit(0);
    }
    double start = now();
    need(send(pair[0], "", 1, MSG_NOSIGNAL) == 1, "start");
    for (int batch = 0; batch <= batches; batch++) {
        need(recv(pair[0], tokens, sizeof tokens, MSG_WAITALL) == sizeof tokens, "tokens");
        for (int i = 0; i < BATCH && batch < batches; i++) {
            side->send(pair[0], fd, &tokens[i]);
            if (acknowledge)
                side->wait(pair[0], &tokens[i]);
        }
    }
    need(recv(pair[0], &byte, 1, 0) == 1, "end");
    double time = now() - start;
    int status;
    need(waitpid(child, &status, 0) == child && status == 0, "receiver");
    return time;
}

static double one_way(const struct side *side, const int pair[2], int fd)
{
    return two_processes(side, pair, fd, 0);
}

static double round_trip(const struct side *side, const int pair[2], int fd)
{
    return two_processes(side, pair, fd, 1);
}

static void measure(const char *name, int type,
                    double (*run)(const struct side *, const int[2], int))
{
    double *ours = calloc((size_t)repetitions * 3, sizeof *ours);
    need(ours != NULL, "calloc");
    double *plain = ours + repetitions, *ratios = plain + repetitions;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(fd != -1, "socket");
    for (int i = -1; i < repetitions; i++) {
        double time[2];
        for (int turn = 0; turn < 2; turn++) {
            int is_raw = (turn + i) & 1, pair[2];
            need(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
            time[is_raw] = run(is_raw ? &raw : &handoff, pair, fd) / (batches * BATCH);
            close(pair[0]);
            close(pair[1]);
        }
        if (i == -1)
            continue; /* to warm up */
        ours[i] = time[0];
        plain[i] = time[1];
        ratios[i] = time[0] / time[1];
    }
    close(fd);
    printf("%-34s %10.0f %10.0f %10.3f\n", name, median(ours, repetitions),
           median(plain, repetitions), median(ratios, repetitions));
    fflush(stdout);
    free(ours);
}

int main(void)
{
    repetitions = number("REPETITIONS", repetitions);
    batches = number("MESSAGES", batches * BATCH) / BATCH;
    need(batches > 0, "MESSAGES");
    printf("%-34s %10s %10s %10s\n", "nanoseconds for each handoff", "library", "plain C", "ratio");
    measure("one way, stream", SOCK_STREAM, one_way_alone);
    measure("one way, packets", SOCK_SEQPACKET, one_way_alone);
    measure("one way, two processes, stream", SOCK_STREAM, one_way);
    measure("one way, two processes, packets", SOCK_SEQPACKET, one_way);
    measure("round trip, stream", SOCK_STREAM, round_trip_alone);
    measure("round trip, packets", SOCK_SEQPACKET, round_trip_alone);
    measure("round trip, two processes, stream", SOCK_STREAM, round_trip);
    measure("round trip, two processes, packets", SOCK_SEQPACKET, round_trip);
    return 0;
}
