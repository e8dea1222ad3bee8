/*
 * errnos.h: the errors that the manual pages name for the system calls of the library.
 */
#ifndef ERRNOS_H
#define ERRNOS_H

#include <stdint.h>

enum { MOST_ERRNOS = 32 };

/** A system call, or one of its operations. */
struct system_call {
    long number;
    const char *name;
    /** Which page names the errors. */
    const char *page;
    /** How the failure is made. */
    enum {
        /* The kernel does nothing, and the call returns the error. */
        SKIPPED,
        /* The kernel does it: close(2) closes the descriptor, whatever it returns. */
        DONE,
        /* brk(2) returns where the break is, and that is where it was. */
        UNMOVED,
    } made;
    /** Ends with 0. */
    int errnos[MOST_ERRNOS];
};

/** NULL if there is no list for the number. */
const struct system_call *system_call_of(long number);

/** Which operation it is, of a call that has several. */
uint64_t operation_of(long number, const uint64_t arguments[6]);

/** Calls whose pages say that they cannot fail. */
int cannot_fail(long number);

/** "EBADF"; and its number, or 0. */
const char *name_of_errno(int error);
int errno_of_name(const char *name);

#endif
