/*
 * spread.h: what the driver of spread.c shares with the brokers and workers that it starts, which
 * are in spread_ends.c.
 */
#ifndef SPREAD_H
#define SPREAD_H

#include <errno.h>
#include <handoff.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { BROKERS = 4, MOST_WORKERS = 16, MOST_AT_ONCE = 64 };

#define MS INT64_C(1000000)

/** What all processes count, and what the driver tells them. */
struct shared {
    _Atomic uint64_t limit; /* brokers begin no more clients than this, all together */
    _Atomic uint64_t begun, finished;
    _Atomic uint64_t answers[MOST_WORKERS]; /* of each worker */
    _Atomic uint64_t fallbacks, unanswered, failed_over;
    _Atomic int64_t longest_wait;           /* of a client for its answer, in nanoseconds */
    _Atomic int ready[BROKERS];             /* how many ready backends each of them has */
    _Atomic bool holds[MOST_WORKERS];       /* the worker shall hold, once it has no client */
    _Atomic bool holding[MOST_WORKERS];
};

/** How a broker reaches the workers, and how many clients it has. */
struct setup {
    int workers;                    /* by their paths; 0: all that are in the directory */
    uint32_t weights[MOST_WORKERS];
    uint32_t flags[MOST_WORKERS];
    int at_once;
    int64_t pause;                  /* between the beginnings of two clients, in nanoseconds */
    uint64_t attempt_timeout_ms;
};

extern struct shared *shared;
extern sigset_t terminate;
extern char directory[];

#define check(condition) ((condition) ? (void)0 : fail(#condition, __FILE__, __LINE__))

_Noreturn void fail(const char *condition, const char *file, int line);
int64_t now(void);
void socket_path(char path[64], int which);

/** Adopts each client at once and answers with one byte; drains after SIGTERM. */
_Noreturn void run_worker(int which);

/** Is all clients and their broker, until it is killed. */
_Noreturn void run_broker(int me, const struct setup *setup);

#endif
