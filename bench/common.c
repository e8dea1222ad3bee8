#define _GNU_SOURCE
#include "common.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

void need(int ok, const char *step)
{
    if (ok)
        return;
    perror(step);
    exit(1);
}

int number(const char *name, int otherwise)
{
    const char *text = getenv(name);
    int value = text == NULL ? otherwise : atoi(text);
    need(value > 0, name);
    return value;
}

double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double quantile(double *values, int count, double part)
{
    qsort(values, (size_t)count, sizeof *values, compare);
    return values[(int)(count * part)];
}

double median(double *values, int count)
{
    return quantile(values, count, 0.5);
}

void connect_tcp(int pair[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct linger reset = {.l_onoff = 1}; /* leaves no connection behind in TIME_WAIT */
    need(listener != -1 && pair[0] != -1 &&
         setsockopt(pair[0], SOL_SOCKET, SO_LINGER, &reset, sizeof reset) == 0 &&
         bind(listener, (struct sockaddr *)&address, len) == 0 && listen(listener, 1) == 0 &&
         getsockname(listener, (struct sockaddr *)&address, &len) == 0 &&
         connect(pair[0], (struct sockaddr *)&address, len) == 0, "connecting");
    pair[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    need(pair[1] != -1, "accept");
    close(listener);
}

int dial(int port, int number)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in from = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)number / 20000)};
    struct linger reset = {.l_onoff = 1}; /* leaves no connection behind in TIME_WAIT */
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(fd != -1 && setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset) == 0 &&
         setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) == 0 &&
         setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes) == 0 &&
         bind(fd, (struct sockaddr *)&from, sizeof from) == 0 &&
         connect(fd, (struct sockaddr *)&at, sizeof at) == 0, "connecting");
    return fd;
}

int make_child(void)
{
    int parent = getpid(), child = fork();
    need(child != -1, "fork");
    if (child == 0) {
        need(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0, "prctl");
        if (getppid() != parent)
            _exit(1);
    }
    return child;
}

void wait_readable(int fd)
{
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    need(poll(&readable, 1, 10000) == 1, "poll");
}
