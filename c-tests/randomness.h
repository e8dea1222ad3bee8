/*
 * randomness.h: the source of randomness that the library finds, because a program's own
 * getentropy(3) goes before the C library's: so that it can be broken.
 */
#ifndef RANDOMNESS_H
#define RANDOMNESS_H

#include <errno.h>
#include <string.h>
#include <sys/random.h>

static enum { RANDOM_WORKS, RANDOM_FAILS, RANDOM_REPEATS } randomness = RANDOM_WORKS;

int getentropy(void *buffer, size_t len)
{
    switch (randomness) {
    case RANDOM_FAILS:
        errno = EIO;
        return -1;
    case RANDOM_REPEATS:
        memset(buffer, 7, len);
        return 0;
    default:
        return getrandom(buffer, len, 0) == (ssize_t)len ? 0 : -1;
    }
}

#endif
