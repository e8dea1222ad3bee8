#define _GNU_SOURCE
#include "errnos.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>

/*
 * From the Linux man-pages 6.03. Behind them in each list: ENOSYS, which syscalls(2) names for a
 * kernel that lacks a call, and EPERM, with which container runtimes refuse calls by seccomp(2).
 */
#define REFUSED ENOSYS, EPERM

static const struct system_call calls[] = {
    {SYS_epoll_create1, "epoll_create1", "epoll_create(2)", SKIPPED,
     {EINVAL, EMFILE, ENFILE, ENOMEM, REFUSED}},
    {SYS_epoll_ctl, "epoll_ctl", "epoll_ctl(2)", SKIPPED,
     {EBADF, EEXIST, EINVAL, ELOOP, ENOENT, ENOMEM, ENOSPC, REFUSED}},
    {SYS_epoll_pwait, "epoll_pwait", "epoll_wait(2)", SKIPPED,
     {EBADF, EFAULT, EINTR, EINVAL, REFUSED}},
    {SYS_timerfd_create, "timerfd_create", "timerfd_create(2)", SKIPPED,
     {EINVAL, EMFILE, ENFILE, ENODEV, ENOMEM, REFUSED}},
    {SYS_timerfd_settime, "timerfd_settime", "timerfd_create(2)", SKIPPED,
     {EBADF, ECANCELED, EFAULT, EINVAL, REFUSED}},
    {SYS_eventfd2, "eventfd2", "eventfd(2)", SKIPPED,
     {EINVAL, EMFILE, ENFILE, ENODEV, ENOMEM, REFUSED}},
    {SYS_read, "read", "read(2)", SKIPPED,
     {EAGAIN, EBADF, EFAULT, EINTR, EINVAL, EIO, EISDIR, ECANCELED, REFUSED}},
    {SYS_write, "write", "write(2)", SKIPPED,
     {EAGAIN, EBADF, EDESTADDRREQ, EDQUOT, EFAULT, EFBIG, EINTR, EINVAL, EIO, ENOSPC, EPIPE,
      REFUSED}},
    {SYS_pwrite64, "pwrite64", "write(2)", SKIPPED,
     {EAGAIN, EBADF, EDQUOT, EFAULT, EFBIG, EINTR, EINVAL, EIO, ENOSPC, ENXIO, EOVERFLOW, ESPIPE,
      REFUSED}},
    {SYS_pread64, "pread64", "read(2)", SKIPPED,
     {EAGAIN, EBADF, EFAULT, EINTR, EINVAL, EIO, EISDIR, ENXIO, EOVERFLOW, ESPIPE, REFUSED}},
    {SYS_socket, "socket", "socket(2)", SKIPPED,
     {EACCES, EAFNOSUPPORT, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPROTONOSUPPORT, REFUSED}},
    {SYS_setsockopt, "setsockopt", "setsockopt(2)", SKIPPED,
     {EBADF, EFAULT, EINVAL, ENOPROTOOPT, ENOTSOCK, REFUSED}},
    {SYS_getsockopt, "getsockopt", "getsockopt(2)", SKIPPED,
     {EBADF, EFAULT, EINVAL, ENOPROTOOPT, ENOTSOCK, REFUSED}},
    {SYS_getpeername, "getpeername", "getpeername(2)", SKIPPED,
     {EBADF, EFAULT, EINVAL, ENOBUFS, ENOTCONN, ENOTSOCK, REFUSED}},
    {SYS_getsockname, "getsockname", "getsockname(2)", SKIPPED,
     {EBADF, EFAULT, EINVAL, ENOBUFS, ENOTSOCK, REFUSED}},
    {SYS_connect, "connect", "connect(2)", SKIPPED,
     {EACCES, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT, EAGAIN, EALREADY, EBADF, ECONNREFUSED,
      EFAULT, EINPROGRESS, EINTR, EISCONN, ENETUNREACH, ENOENT, ENOTSOCK, EPROTOTYPE, ETIMEDOUT,
      REFUSED}},
    {SYS_bind, "bind", "bind(2)", SKIPPED,
     {EACCES, EADDRINUSE, EADDRNOTAVAIL, EBADF, EFAULT, EINVAL, ELOOP, ENAMETOOLONG, ENOENT,
      ENOMEM, ENOTDIR, ENOTSOCK, EROFS, REFUSED}},
    {SYS_listen, "listen", "listen(2)", SKIPPED,
     {EADDRINUSE, EBADF, ENOTSOCK, EOPNOTSUPP, REFUSED}},
    {SYS_accept4, "accept4", "accept(2)", SKIPPED,
     {EAGAIN, EBADF, ECONNABORTED, EFAULT, EINTR, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM,
      ENOTSOCK, EOPNOTSUPP, EPROTO, EPROTONOSUPPORT, ETIMEDOUT, REFUSED}},
    {SYS_sendmsg, "sendmsg", "sendmsg(2), unix(7)", SKIPPED,
     {EACCES, EAGAIN, EALREADY, EBADF, ECONNREFUSED, ECONNRESET, EDESTADDRREQ, EFAULT, EINTR,
      EINVAL, EISCONN, EMSGSIZE, ENFILE, ENOBUFS, ENOMEM, ENOTCONN, ENOTSOCK, EOPNOTSUPP, EPIPE,
      ETOOMANYREFS, REFUSED}},
    {SYS_sendto, "sendto", "sendto(2), unix(7)", SKIPPED,
     {EACCES, EAGAIN, EALREADY, EBADF, ECONNREFUSED, ECONNRESET, EDESTADDRREQ, EFAULT, EINTR,
      EINVAL, EISCONN, EMSGSIZE, ENOBUFS, ENOMEM, ENOTCONN, ENOTSOCK, EOPNOTSUPP, EPIPE,
      REFUSED}},
    {SYS_recvmsg, "recvmsg", "recvmsg(2), unix(7)", SKIPPED,
     {EAGAIN, EBADF, ECONNREFUSED, ECONNRESET, EFAULT, EINTR, EINVAL, ENOMEM, ENOTCONN, ENOTSOCK,
      REFUSED}},
    {SYS_recvmmsg, "recvmmsg", "recvmmsg(2), unix(7)", SKIPPED,
     {EAGAIN, EBADF, ECONNREFUSED, ECONNRESET, EFAULT, EINTR, EINVAL, ENOMEM, ENOTCONN, ENOTSOCK,
      REFUSED}},
    {SYS_recvfrom, "recvfrom", "recvfrom(2), unix(7)", SKIPPED,
     {EAGAIN, EBADF, ECONNREFUSED, ECONNRESET, EFAULT, EINTR, EINVAL, ENOMEM, ENOTCONN, ENOTSOCK,
      REFUSED}},
    {SYS_shutdown, "shutdown", "shutdown(2)", SKIPPED,
     {EBADF, EINVAL, ENOTCONN, ENOTSOCK, REFUSED}},
    {SYS_ppoll, "ppoll", "poll(2)", SKIPPED, {EFAULT, EINTR, EINVAL, ENOMEM, REFUSED}},
    {SYS_memfd_create, "memfd_create", "memfd_create(2)", SKIPPED,
     {EFAULT, EINVAL, EMFILE, ENFILE, ENOMEM, REFUSED}},
    {SYS_prlimit64, "prlimit64", "getrlimit(2)", SKIPPED, {EFAULT, EINVAL, EPERM, ESRCH, REFUSED}},
    {SYS_fallocate, "fallocate", "fallocate(2)", SKIPPED,
     {EBADF, EFBIG, EINTR, EINVAL, EIO, ENODEV, ENOSPC, EOPNOTSUPP, ESPIPE, ETXTBSY, REFUSED}},
    {SYS_ftruncate, "ftruncate", "truncate(2)", SKIPPED,
     {EBADF, EFBIG, EINTR, EINVAL, EIO, ETXTBSY, REFUSED}},
    {SYS_fcntl, "fcntl", "fcntl(2)", SKIPPED,
     {EACCES, EAGAIN, EBADF, EBUSY, EDEADLK, EFAULT, EINTR, EINVAL, EMFILE, ENOLCK, ENOTDIR,
      REFUSED}},
    {SYS_mmap, "mmap", "mmap(2)", SKIPPED,
     {EACCES, EAGAIN, EBADF, EEXIST, EINVAL, ENFILE, ENODEV, ENOMEM, EOVERFLOW, ETXTBSY,
      REFUSED}},
    {SYS_mremap, "mremap", "mremap(2)", SKIPPED, {EAGAIN, EFAULT, EINVAL, ENOMEM, REFUSED}},
    {SYS_munmap, "munmap", "mmap(2)", SKIPPED, {EINVAL, ENOMEM, REFUSED}},
    {SYS_madvise, "madvise", "madvise(2)", SKIPPED,
     {EACCES, EAGAIN, EBADF, EBUSY, EINVAL, EIO, ENOMEM, REFUSED}},
    {SYS_mprotect, "mprotect", "mprotect(2)", SKIPPED, {EACCES, EINVAL, ENOMEM, REFUSED}},
    {SYS_brk, "brk", "brk(2)", UNMOVED, {ENOMEM}},
    {SYS_fstatfs, "fstatfs", "statfs(2)", SKIPPED,
     {EBADF, EFAULT, EINTR, EIO, ENOMEM, EOVERFLOW, REFUSED}},
    {SYS_fstat, "fstat", "stat(2)", SKIPPED, {EBADF, EFAULT, ENOMEM, EOVERFLOW, REFUSED}},
    {SYS_newfstatat, "newfstatat", "stat(2)", SKIPPED,
     {EACCES, EBADF, EFAULT, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, EOVERFLOW,
      REFUSED}},
    {SYS_statx, "statx", "statx(2)", SKIPPED,
     {EACCES, EBADF, EFAULT, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, REFUSED}},
    {SYS_close, "close", "close(2)", DONE, {EBADF, EINTR, EIO, ENOSPC, EDQUOT}},
    {SYS_openat, "openat", "open(2)", SKIPPED,
     {EACCES, EBADF, EBUSY, EDQUOT, EEXIST, EFAULT, EFBIG, EINTR, EINVAL, EISDIR, ELOOP, EMFILE,
      ENAMETOOLONG, ENFILE, ENODEV, ENOENT, ENOMEM, ENOSPC, ENOTDIR, ENXIO, EOPNOTSUPP, EOVERFLOW,
      EROFS, ETXTBSY, EWOULDBLOCK, REFUSED}},
    {SYS_flock, "flock", "flock(2)", SKIPPED,
     {EBADF, EINTR, EINVAL, ENOLCK, EWOULDBLOCK, REFUSED}},
    {SYS_unlinkat, "unlinkat", "unlink(2)", SKIPPED,
     {EACCES, EBADF, EBUSY, EFAULT, EINVAL, EIO, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM,
      ENOTDIR, EROFS, REFUSED}},
    {SYS_renameat, "renameat", "rename(2)", SKIPPED,
     {EACCES, EBADF, EBUSY, EDQUOT, EINVAL, EISDIR, ELOOP, EMLINK, ENAMETOOLONG, ENOENT, ENOMEM,
      ENOSPC, ENOTDIR, ENOTEMPTY, EEXIST, EROFS, EXDEV, REFUSED}},
    {SYS_renameat2, "renameat2", "rename(2)", SKIPPED,
     {EACCES, EBADF, EBUSY, EDQUOT, EEXIST, EINVAL, EISDIR, ELOOP, EMLINK, ENAMETOOLONG, ENOENT,
      ENOMEM, ENOSPC, ENOTDIR, ENOTEMPTY, EROFS, EXDEV, REFUSED}},
    {SYS_linkat, "linkat", "link(2)", SKIPPED,
     {EACCES, EBADF, EDQUOT, EEXIST, EINVAL, EIO, ELOOP, EMLINK, ENAMETOOLONG, ENOENT, ENOMEM,
      ENOSPC, ENOTDIR, EROFS, EXDEV, REFUSED}},
    {SYS_mkdirat, "mkdirat", "mkdir(2)", SKIPPED,
     {EACCES, EBADF, EDQUOT, EEXIST, EFAULT, EINVAL, ELOOP, EMLINK, ENAMETOOLONG, ENOENT, ENOMEM,
      ENOSPC, ENOTDIR, EROFS, REFUSED}},
    {SYS_fchmod, "fchmod", "chmod(2)", SKIPPED,
     {EBADF, EIO, EROFS, REFUSED}},
    {SYS_fchmodat, "fchmodat", "chmod(2)", SKIPPED,
     {EACCES, EBADF, EFAULT, EINVAL, EIO, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, ENOTSUP,
      EROFS, REFUSED}},
#ifdef SYS_fchmodat2
    {SYS_fchmodat2, "fchmodat2", "chmod(2)", SKIPPED,
     {EACCES, EBADF, EFAULT, EINVAL, EIO, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, ENOTSUP,
      EROFS, REFUSED}},
#endif
    {SYS_getrandom, "getrandom", "getrandom(2)", SKIPPED,
     {EAGAIN, EFAULT, EINTR, EINVAL, REFUSED}},
    {SYS_prlimit64, "prlimit64", "getrlimit(2)", SKIPPED,
     {EFAULT, EINVAL, ESRCH, REFUSED}},
    {SYS_clock_nanosleep, "clock_nanosleep", "clock_nanosleep(2)", SKIPPED,
     {EFAULT, EINTR, EINVAL, ENOTSUP, REFUSED}},
    {SYS_getdents64, "getdents64", "getdents(2)", SKIPPED,
     {EBADF, EFAULT, EINVAL, ENOENT, ENOTDIR, REFUSED}},
    {SYS_readlinkat, "readlinkat", "readlink(2)", SKIPPED,
     {EACCES, EBADF, EFAULT, EINVAL, EIO, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, REFUSED}},
    /* Older calls, which not every architecture has. */
#ifdef SYS_epoll_wait
    {SYS_epoll_wait, "epoll_wait", "epoll_wait(2)", SKIPPED,
     {EBADF, EFAULT, EINTR, EINVAL, REFUSED}},
#endif
#ifdef SYS_poll
    {SYS_poll, "poll", "poll(2)", SKIPPED, {EFAULT, EINTR, EINVAL, ENOMEM, REFUSED}},
#endif
#ifdef SYS_open
    {SYS_open, "open", "open(2)", SKIPPED,
     {EACCES, EBUSY, EDQUOT, EEXIST, EFAULT, EFBIG, EINTR, EINVAL, EISDIR, ELOOP, EMFILE,
      ENAMETOOLONG, ENFILE, ENODEV, ENOENT, ENOMEM, ENOSPC, ENOTDIR, ENXIO, EOPNOTSUPP, EOVERFLOW,
      EROFS, ETXTBSY, EWOULDBLOCK, REFUSED}},
#endif
#ifdef SYS_rename
    {SYS_rename, "rename", "rename(2)", SKIPPED,
     {EACCES, EBUSY, EDQUOT, EFAULT, EINVAL, EISDIR, ELOOP, EMLINK, ENAMETOOLONG, ENOENT, ENOMEM,
      ENOSPC, ENOTDIR, ENOTEMPTY, EEXIST, EROFS, EXDEV, REFUSED}},
#endif
#ifdef SYS_unlink
    {SYS_unlink, "unlink", "unlink(2)", SKIPPED,
     {EACCES, EBUSY, EFAULT, EIO, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, EROFS,
      REFUSED}},
#endif
#ifdef SYS_mkdir
    {SYS_mkdir, "mkdir", "mkdir(2)", SKIPPED,
     {EACCES, EDQUOT, EEXIST, EFAULT, EINVAL, ELOOP, EMLINK, ENAMETOOLONG, ENOENT, ENOMEM, ENOSPC,
      ENOTDIR, EROFS, REFUSED}},
#endif
#ifdef SYS_rmdir
    {SYS_rmdir, "rmdir", "rmdir(2)", SKIPPED,
     {EACCES, EBUSY, EFAULT, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, ENOTEMPTY,
      EROFS, REFUSED}},
#endif
};

enum { CALLS = sizeof calls / sizeof *calls };

const struct system_call *system_call_of(long number)
{
    for (int i = 0; i < CALLS; i++)
        if (calls[i].number == number)
            return &calls[i];
    return NULL;
}

int cannot_fail(long number)
{
    /* getpid(2), gettid(2), getuid(2); sched_yield(2) on Linux. */
    static const long numbers[] = {SYS_getpid,  SYS_gettid,  SYS_getuid,
                                   SYS_geteuid, SYS_getegid, SYS_sched_yield};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i] == number)
            return 1;
    return 0;
}

uint64_t operation_of(long number, const uint64_t arguments[6])
{
    switch (number) {
    case SYS_epoll_ctl:
    case SYS_fcntl:
    case SYS_socket:
    case SYS_flock:
    case SYS_shutdown:
        return arguments[1];
    case SYS_setsockopt:
    case SYS_getsockopt:
        return arguments[1] << 16 | arguments[2];
    case SYS_madvise:
        return arguments[2];
    case SYS_mmap:
        return arguments[3];
    default:
        return 0;
    }
}

const char *name_of_errno(int error)
{
    const char *name = strerrorname_np(error);
    return name != NULL ? name : "0";
}

int errno_of_name(const char *name)
{
    for (int error = 1; error < 256; error++)
        if (strcmp(name_of_errno(error), name) == 0)
            return error;
    return 0;
}
