/*
 * one_owner.h: what the driver of one_owner.c shares with the brokers and backends that it starts,
 * which are in one_owner_ends.c.
 */
#ifndef ONE_OWNER_H
#define ONE_OWNER_H

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

enum { MOST_BACKENDS = 4, MAX_AT_ONCE = 4096, MAX_PROCESSES = 1 << 16 };

#define MS INT64_C(1000000)

/** What is known of one connection. Processes are named by their numbers, which begin with 1. */
struct record {
    _Atomic uint32_t broker;   /* has read the connection's number */
    _Atomic uint32_t adopted;  /* has been told that it owns it */
    _Atomic uint32_t fallback; /* the broker has been told that it owns it */
    _Atomic uint32_t again;    /* has been told that it owns it, when another one had been */
    /** Has begun to adopt it, and was not refused. A backend and its successor have one each. */
    _Atomic uint32_t adopters[2 * MOST_BACKENDS];
};

/** Counts of all brokers. */
struct counts {
    _Atomic uint32_t failed_over;
};

/** How brokers reach their backends: by handles of one backend each, in turn, or by one handle. */
enum handles { ONE_EACH, DIRECTORY, ADDED, WAYS };

extern struct record *records;
extern struct counts *counts;
extern uint32_t connections, deadline_ms;
extern int backends;
extern pid_t driver;
extern sigset_t terminate;
extern char directory[];

#define check(condition) ((condition) ? (void)0 : fail(#condition, __FILE__, __LINE__))

_Noreturn void fail(const char *condition, const char *file, int line);

int64_t now(void);

/** From 0 to `most` nanoseconds. */
int64_t any_time(int64_t most);

void socket_path(char path[64], int which);

/** Accepts connections and offers them, until it is killed. */
_Noreturn void run_broker(int listener, uint32_t me, enum handles handles);

/** Listens as backend `which`. Its adopters are at `place` of each record. */
_Noreturn void run_backend(int which, uint32_t me, int place);

#endif
