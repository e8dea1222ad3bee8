/*
 * clock.h: a monotonic clock for the library that stands still until a test moves it.
 *
 * A program's own clock_gettime(3) goes before the C library's, for the library's calls too. Only
 * what reads the clock is fooled: poll(2) and timers go on with the system's.
 */
#ifndef CLOCK_H
#define CLOCK_H

#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MS UINT64_C(1000000)

/* In nanoseconds; 0 for the system's clock. Each thread has its own. */
static _Thread_local uint64_t stopped_at;

int clock_gettime(clockid_t id, struct timespec *time)
{
    if (id != CLOCK_MONOTONIC || stopped_at == 0)
        return (int)syscall(SYS_clock_gettime, id, time);
    time->tv_sec = (time_t)(stopped_at / (1000 * MS));
    time->tv_nsec = (long)(stopped_at % (1000 * MS));
    return 0;
}

#if defined __GLIBC__ && __TIMESIZE == 32
/* The standard library of Rust asks this one where it is there. */
int __clock_gettime64(clockid_t id, int64_t *time);
int __clock_gettime64(clockid_t id, int64_t *time)
{
    struct timespec small = {0};
    int result = clock_gettime(id, &small);
    time[0] = small.tv_sec;
    /* Then there are 32 bits of padding, before them on a big-endian processor. */
    time[1] = small.tv_nsec;
    return result;
}
#endif

static inline void stop_clock(void)
{
    struct timespec time = {0};
    stopped_at = 0;
    clock_gettime(CLOCK_MONOTONIC, &time);
    stopped_at = (uint64_t)time.tv_sec * 1000 * MS + (uint64_t)time.tv_nsec;
}

/** Lets time pass on the stopped clock. */
static inline void pass(uint64_t ns)
{
    stopped_at += ns;
}

#endif
