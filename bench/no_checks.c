/*
 * no_checks: answers what the library asks of each connection without asking the kernel, to see
 * what these questions cost. A measurement, not a way to run anything.
 *
 *   cc -shared -fPIC bench/no_checks.c -o build/bench/no_checks.so -ldl
 *   LD_PRELOAD=build/bench/no_checks.so LD_LIBRARY_PATH=build/lib build/bench/throughput
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int getsockopt(int fd, int level, int option, void *restrict value, socklen_t *restrict len)
{
    static int (*real)(int, int, int, void *, socklen_t *);
    if (level == SOL_SOCKET && option == SO_TYPE && *len >= sizeof(int)) {
        int type = SOCK_STREAM;
        memcpy(value, &type, sizeof type);
        return 0;
    }
    if (level == SOL_SOCKET && option == SO_COOKIE && getenv("KEEP_COOKIE") == NULL) {
        uint64_t cookie = 1;
        memcpy(value, &cookie, sizeof cookie);
        return 0;
    }
    if (real == NULL)
        *(void **)&real = dlsym(RTLD_NEXT, "getsockopt");
    return real(fd, level, option, value, len);
}

int getpeername(int fd, struct sockaddr *restrict address, socklen_t *restrict len)
{
    (void)fd;
    (void)address;
    (void)len;
    return 0;
}
