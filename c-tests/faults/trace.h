/*
 * trace.h: a process under ptrace(2), stopped at the entry and at the exit of each system call.
 */
#ifndef TRACE_H
#define TRACE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/** A stop at a system call. */
struct stop {
    bool entry;
    /** At its entry only. */
    long number;
    uint64_t arguments[6];
};

/**
 * fork(2) of a child that stops at its system calls. Returns 0 in the child, in which nothing has
 * happened before. Ends this process, with one line that says why, if tracing is not permitted.
 */
pid_t trace_fork(void);

/** Lets a child go on to its next stop, which waitpid(2) reports, with a signal or 0. */
void trace_go_on(pid_t child, int signal);

/** Whether what waitpid(2) said is a stop at a system call. */
bool trace_is_call(int status);

/** Reads where a child has stopped. False if it has been killed meanwhile. */
bool trace_read(pid_t child, struct stop *stop);

/** At an entry: the kernel does nothing. At the exit that follows: that is what the call returns. */
void trace_skip(pid_t child);
void trace_set_result(pid_t child, long result);

/** At an entry: the first argument is another one. At the exit that follows: as it was. */
void trace_set_first_argument(pid_t child, uint64_t value);
void trace_restore_first_argument(pid_t child, uint64_t value);

/** Lets a child go on without being traced. */
void trace_leave(pid_t child);

#endif
