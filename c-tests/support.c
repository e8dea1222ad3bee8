#define _GNU_SOURCE
#include "support.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST_DESCRIPTORS 4096

/* Which descriptors are open and what each of them is, so that a closed and reopened one shows. */
static struct {
    char open;
    dev_t device;
    ino_t inode;
} before[MOST_DESCRIPTORS], after[MOST_DESCRIPTORS];

static void list_descriptors(void *table)
{
    size_t size = sizeof(before[0]);
    memset(table, 0, sizeof(before));
    for (int fd = 0; fd < MOST_DESCRIPTORS; fd++) {
        struct stat status;
        if (fstat(fd, &status) == 0) {
            char *row = (char *)table + (size_t)fd * size;
            __typeof__(before[0]) value;
            memset(&value, 0, sizeof value);
            value.open = 1;
            value.device = status.st_dev;
            value.inode = status.st_ino;
            memcpy(row, &value, size);
        }
    }
}

int descriptors_before(void **state)
{
    (void)state;
    list_descriptors(before);
    return 0;
}

int descriptors_after(void **state)
{
    (void)state;
    list_descriptors(after);
    int changed = 0;
    for (int fd = 0; fd < MOST_DESCRIPTORS; fd++) {
        if (memcmp(&before[fd], &after[fd], sizeof before[fd]) != 0) {
            print_error("descriptor %d was %s\n", fd,
                        !before[fd].open  ? "leaked"
                        : !after[fd].open ? "closed"
                                          : "replaced");
            changed = 1;
        }
    }
    return changed;
}

void check_status(handoff_status got, handoff_status want, const char *call, const char *file,
                  int line)
{
    if (got == want)
        return;
    print_error("%s: %s instead of %s (%s)\n", call, handoff_status_name(got),
                handoff_status_name(want), handoff_last_error());
    _fail(file, line);
}

void make_directory(char path[64])
{
    strcpy(path, "/tmp/handoff-test-XXXXXX");
    assert_non_null(mkdtemp(path));
}

void remove_directory(const char *path)
{
    DIR *directory = opendir(path);
    assert_non_null(directory);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            assert_int_equal(unlinkat(dirfd(directory), entry->d_name, 0), 0);
    closedir(directory);
    assert_int_equal(rmdir(path), 0);
}

void make_pair(int type, int pair[2])
{
    assert_int_equal(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair), 0);
}

void make_tcp_pair(int ends[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_not_equal(listener, -1);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, len), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &len), 0);
    ends[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_not_equal(ends[1], -1);
    assert_int_equal(connect(ends[1], (struct sockaddr *)&address, len), 0);
    ends[0] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_int_not_equal(ends[0], -1);
    close(listener);
}

static uint64_t cookie(int socket)
{
    uint64_t value = 0;
    socklen_t len = sizeof value;
    assert_int_equal(getsockopt(socket, SOL_SOCKET, SO_COOKIE, &value, &len), 0);
    return value;
}

void assert_same_socket(int a, int b)
{
    assert_true(cookie(a) == cookie(b));
}

void send_raw(int socket, const void *bytes, size_t len, const int *fds, size_t fds_len)
{
    union {
        char bytes[CMSG_SPACE(253 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fds_len > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(fds_len * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(fds_len * sizeof(int));
        memcpy(CMSG_DATA(header), fds, fds_len * sizeof(int));
    }
    assert_int_equal(sendmsg(socket, &message, MSG_NOSIGNAL), (ssize_t)len);
}

void assert_child_succeeds(pid_t child)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

void become_nobody(void)
{
    if (setgroups(0, NULL) != 0 || setgid(65534) != 0 || setuid(65534) != 0) {
        perror("this test needs root, to become nobody");
        _exit(99);
    }
}

void *misaligned(void)
{
    static uint64_t room[64];
    return (char *)room + 1;
}

rlim_t allow_no_more_descriptors(void)
{
    struct rlimit limit;
    int next = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0);
    assert_int_not_equal(next, -1);
    close(next);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = (rlim_t)next;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    return before;
}

void allow_descriptors(rlim_t before)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = before;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}
