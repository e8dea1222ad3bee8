/*
 * faults.h: system calls of the library that fail when a test says so.
 *
 * A program's own functions go before the C library's, for the library's calls too. A call fails
 * only inside a call of the end that the test has chosen, see FAULTY(), so that the test's own calls
 * and those of the other end go on working.
 */
#ifndef FAULTS_H
#define FAULTS_H

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

enum fault_call {
    NO_CALL,
    ACCEPT4,
    EPOLL_CREATE1,
    EPOLL_CTL,
    EPOLL_WAIT,
    GETENTROPY,
    GETPEERNAME,
    GETSOCKOPT,
    MMAP,
    POLL,
    RECVMSG,
    SENDMSG,
    SOCKET,
    TIMERFD_CREATE,
    TIMERFD_SETTIME,
    CONNECT,
    CALLS
};

static const char *const call_names[CALLS] = {
    "none",    "accept4",        "epoll_create1",   "epoll_ctl", "epoll_wait", "getentropy",
    "getpeername", "getsockopt", "mmap",            "poll",      "recvmsg",    "sendmsg",
    "socket",  "timerfd_create", "timerfd_settime", "connect",
};

/* Which call fails, how, from which time on that it is made (1 is the first), and how often. */
struct fault {
    enum fault_call call;
    int error;
    unsigned first, times;
    /* How often it was made, and how often it has failed. */
    unsigned made, failed;
};

/* The second one begins when the first one is over. */
static struct fault fault, second_fault;

/* Not zero: sockets that are accepted have a send buffer of this size, SO_SNDBUF. */
static int send_buffer;

/* The fault is on: inside FAULTY(). */
static bool fault_is_on;

/** Evaluates a call of the end that has the fault. */
#define FAULTY(call) (fault_is_on = true, fault_result((call)))

static inline int fault_result(int result)
{
    fault_is_on = false;
    return result;
}

static inline void set_fault(enum fault_call call, int error, unsigned first, unsigned times)
{
    fault = (struct fault){.call = call, .error = error, .first = first, .times = times};
    second_fault.call = NO_CALL;
}

static inline void set_second_fault(enum fault_call call, int error)
{
    second_fault = (struct fault){.call = call, .error = error, .first = 1, .times = 1};
}

static bool meets(struct fault *met, enum fault_call call)
{
    if (met->call != call || ++met->made < met->first || met->failed >= met->times)
        return false;
    met->failed++;
    errno = met->error;
    return true;
}

static bool fails(enum fault_call call)
{
    bool second = fault.failed == fault.times;
    return fault_is_on && (meets(&fault, call) || (second && meets(&second_fault, call)));
}

/* glibc declares an address as a union of all kinds of them. */
#pragma GCC diagnostic ignored "-Wpedantic"

/* The C library's function of a name and of the type of another one. */
#define NEXT(name) ((__typeof__(&name))(uintptr_t)dlsym(RTLD_NEXT, #name))

int accept4(int fd, struct sockaddr *address, socklen_t *len, int flags)
{
    if (fails(ACCEPT4))
        return -1;
    int accepted = NEXT(accept4)(fd, address, len, flags);
    if (accepted != -1 && send_buffer != 0)
        setsockopt(accepted, SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof send_buffer);
    return accepted;
}

int epoll_create1(int flags)
{
    return fails(EPOLL_CREATE1) ? -1 : NEXT(epoll_create1)(flags);
}

int epoll_ctl(int set, int operation, int fd, struct epoll_event *event)
{
    /* Removing does not fail. */
    if (operation != EPOLL_CTL_DEL && fails(EPOLL_CTL))
        return -1;
    return NEXT(epoll_ctl)(set, operation, fd, event);
}

int epoll_wait(int set, struct epoll_event *events, int room, int timeout)
{
    return fails(EPOLL_WAIT) ? -1 : NEXT(epoll_wait)(set, events, room, timeout);
}

int getentropy(void *buffer, size_t len)
{
    return fails(GETENTROPY) ? -1 : NEXT(getentropy)(buffer, len);
}

int getpeername(int fd, struct sockaddr *address, socklen_t *len)
{
    return fails(GETPEERNAME) ? -1 : NEXT(getpeername)(fd, address, len);
}

int getsockopt(int fd, int level, int option, void *value, socklen_t *len)
{
    return fails(GETSOCKOPT) ? -1 : NEXT(getsockopt)(fd, level, option, value, len);
}

void *mmap(void *start, size_t len, int protection, int flags, int fd, off_t offset)
{
    return fails(MMAP) ? MAP_FAILED : NEXT(mmap)(start, len, protection, flags, fd, offset);
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    return fails(POLL) ? -1 : NEXT(poll)(fds, count, timeout);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    return fails(RECVMSG) ? -1 : NEXT(recvmsg)(fd, message, flags);
}

#ifdef __GLIBC__
typedef int recvmmsg_flags;
#else
typedef unsigned recvmmsg_flags; /* musl */
#endif

int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, recvmmsg_flags flags,
             struct timespec *timeout)
{
    return fails(RECVMSG) ? -1 : NEXT(recvmmsg)(fd, messages, count, flags, timeout);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    return fails(SENDMSG) ? -1 : NEXT(sendmsg)(fd, message, flags);
}

int socket(int domain, int type, int protocol)
{
    return fails(SOCKET) ? -1 : NEXT(socket)(domain, type, protocol);
}

int timerfd_create(int clock, int flags)
{
    return fails(TIMERFD_CREATE) ? -1 : NEXT(timerfd_create)(clock, flags);
}

int timerfd_settime(int fd, int flags, const struct itimerspec *value, struct itimerspec *old)
{
    return fails(TIMERFD_SETTIME) ? -1 : NEXT(timerfd_settime)(fd, flags, value, old);
}

int connect(int fd, const struct sockaddr *address, socklen_t len)
{
    return fails(CONNECT) ? -1 : NEXT(connect)(fd, address, len);
}

#endif
