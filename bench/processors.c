/*
 * How much two processors do at the same time, in 20 ms: prints a number that means nothing by itself.
 * The host of a virtual machine may run both of its processors on one core, for seconds at a time, and
 * then everything takes longer by up to a half: bench.py looks before and after what it measures.
 *
 *   processors FIRST SECOND
 */
#define _GNU_SOURCE
#include "common.h"

#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { ROOM = 256 * 1024, STEPS = 1000 }; /* more than the fastest cache of a core has */
static const double starting = 3e6, measuring = 20e6;

static long work(int processor, double begin)
{
    static unsigned char room[ROOM];
    uint64_t random = 1;
    long done = 0;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    need(sched_setaffinity(0, sizeof set, &set) == 0, "sched_setaffinity");
    while (now() < begin)
        room[(unsigned)(begin - now()) % ROOM]++;
    for (; now() < begin + measuring; done++)
        for (int i = 0; i < STEPS; i++) {
            random = random * 6364136223846793005u + 1;
            room[(random >> 33) % ROOM]++;
        }
    return done;
}

int main(int argc, char **argv)
{
    need(argc == 3, "arguments");
    long *of_child = mmap(NULL, sizeof *of_child, PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    need(of_child != MAP_FAILED, "mmap");
    double begin = now() + starting;
    int child = make_child();
    if (child == 0) {
        *of_child = work(atoi(argv[2]), begin);
        exit(0);
    }
    long done = work(atoi(argv[1]), begin);
    need(waitpid(child, NULL, 0) == child, "waitpid");
    printf("%ld\n", done + *of_child);
    return 0;
}
