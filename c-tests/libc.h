/*
 * libc.h: what the tests use and not every C library has: glibc has close_range(2) since 2.34 and
 * pidfd_open(2) since 2.36, and musl has no mallinfo(3) and another sendmsg(2).
 */
#ifndef LIBC_H
#define LIBC_H

#include <malloc.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Closes every descriptor from this one on. Returns 0 on success. */
static inline int close_all_from(unsigned first)
{
    return (int)syscall(SYS_close_range, first, ~0U, 0);
}

/* A descriptor that is readable when the process has ended. */
static inline int open_process(pid_t process)
{
    return (int)syscall(SYS_pidfd_open, process, 0);
}

/* sendmsg(2) with as many descriptors as the kernel takes: that of musl has a limit of its own. */
static inline ssize_t send_any(int socket, const struct msghdr *message)
{
#ifdef __GLIBC__
    return sendmsg(socket, message, MSG_NOSIGNAL);
#else
    return syscall(SYS_sendmsg, socket, message, MSG_NOSIGNAL);
#endif
}

/* The bytes that the program has allocated; 0 where the C library cannot tell. */
static inline size_t bytes_allocated(void)
{
#if defined __GLIBC__ && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
#elif defined __GLIBC__
    struct mallinfo info = mallinfo();
    return (size_t)(unsigned)info.uordblks + (unsigned)info.hblkhd;
#else
    return 0;
#endif
}

/* The address of connect(2) and its like, for a function that stands in for theirs. */
#ifdef __GLIBC__
#define CONST_ADDRESS __CONST_SOCKADDR_ARG
#define ADDRESS_OF(address) ((address).__sockaddr__)
#else
#define CONST_ADDRESS const struct sockaddr *
#define ADDRESS_OF(address) (address)
#endif

#endif
