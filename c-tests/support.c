#define _GNU_SOURCE
#include "libc.h"
#include "support.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

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

/* ---- a process for each test ----------------------------------------------------------------- */

enum verdict { PASSED, SKIPPED, FAILED };

/* SIGCHLD, which this process takes with sigtimedwait(2). */
static sigset_t child_ended;

/* In the child. It ends here also where an assertion fails in a child of the test's own, and with
   exit(3), for the sanitizers look for leaks then. */
static _Noreturn void run_alone(const char *name, const struct CMUnitTest *test, FILE *output)
{
    sigprocmask(SIG_UNBLOCK, &child_ended, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpgid(0, 0);
    if (dup2(fileno(output), STDOUT_FILENO) == -1 || dup2(fileno(output), STDERR_FILENO) == -1)
        abort();
    fclose(output);
    setvbuf(stdout, NULL, _IOLBF, 0);
    exit(_cmocka_run_group_tests(name, test, 1, NULL, NULL) != 0);
}

/* What cmocka says of a group of one test. */
static bool is_about_the_group(const char *line)
{
    return strncmp(line, "[==========]", 12) == 0 || strncmp(line, "[  PASSED  ]", 12) == 0 ||
           strncmp(line, "[  FAILED  ]", 12) == 0 || strstr(line, " TEST(S)") != NULL ||
           strcmp(line, "\n") == 0;
}

/* Prints what a test has said. Returns whether it was skipped. */
static bool print_output(FILE *output, bool failed)
{
    char line[1024];
    bool skipped = false;
    rewind(output);
    while (fgets(line, sizeof line, output) != NULL) {
        skipped |= strncmp(line, "[  SKIPPED ]", 12) == 0;
        if (!is_about_the_group(line) && (failed || line[0] != '['))
            fputs(line, stdout);
    }
    return skipped;
}

/* Waits for the end of a child, which stays a zombie; false if it does not end in time. */
static bool ends_within(pid_t child, int seconds)
{
    const struct timespec a_second = {.tv_sec = 1};
    for (uint64_t start = now_ns(); ms_since(start) < (uint64_t)seconds * 1000;) {
        siginfo_t ended = {0};
        if (waitid(P_PID, (id_t)child, &ended, WEXITED | WNOWAIT | WNOHANG) == 0 && ended.si_pid)
            return true;
        sigtimedwait(&child_ended, NULL, &a_second);
    }
    return false;
}

static enum verdict run_forked(const char *name, const struct CMUnitTest *test)
{
    const char *limit = getenv("HANDOFF_TEST_LIMIT");
    int seconds = limit != NULL ? atoi(limit) : 300, status = 0;
    FILE *output = tmpfile();
    if (output == NULL)
        abort();
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        run_alone(name, test, output);
    setpgid(child, child);
    bool hung = !ends_within(child, seconds);
    /* The test and all that it has started; nobody reuses the number before waitpid(). */
    kill(-child, SIGKILL);
    waitpid(child, &status, 0);
    bool failed = hung || !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    bool skipped = print_output(output, failed);
    fclose(output);
    if (hung)
        printf("%s: %s: hangs: ended after %d s\n", name, test->name, seconds);
    else if (WIFSIGNALED(status))
        printf("%s: %s: ended by signal %d\n", name, test->name, WTERMSIG(status));
    else if (failed)
        printf("%s: %s: failed\n", name, test->name);
    return failed ? FAILED : skipped ? SKIPPED : PASSED;
}

/* Some tests hold thousands of descriptors, and a login gets 1024. */
static void allow_as_many_descriptors_as_may_be(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max < 20000 ? limit.rlim_max : 20000;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int run_program(const char *file, const struct CMUnitTest *tests, size_t count)
{
    const char *only = getenv("HANDOFF_TEST_ONLY"), *slash = strrchr(file, '/');
    char name[64];
    snprintf(name, sizeof name, "%s", slash != NULL ? slash + 1 : file);
    name[strcspn(name, ".")] = '\0';
    allow_as_many_descriptors_as_may_be();
    sigemptyset(&child_ended);
    sigaddset(&child_ended, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child_ended, NULL);
    unsigned of[] = {[PASSED] = 0, [SKIPPED] = 0, [FAILED] = 0};
    for (size_t i = 0; i < count; i++)
        if (only == NULL || strstr(tests[i].name, only) != NULL)
            of[run_forked(name, &tests[i])]++;
    printf("%s: %u passed", name, of[PASSED]);
    if (of[SKIPPED] > 0)
        printf(", %u skipped", of[SKIPPED]);
    if (of[FAILED] > 0)
        printf(", %u FAILED", of[FAILED]);
    printf("\n");
    return of[FAILED] > 0;
}

/* ---- assertions ------------------------------------------------------------------------------ */

void check_message(const char *text, const char *call, const char *file, int line)
{
    if (strstr(handoff_last_error(), text) != NULL)
        return;
    print_error("%s: \"%s\" does not contain \"%s\"\n", call, handoff_last_error(), text);
    _fail(file, line);
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

/* What errno is before a call, and what it was before that, which tests of errno look at. */
enum { MARKED_ERRNO = 4321 };
static int unmarked_errno;

void mark_errno(void)
{
    unmarked_errno = errno;
    errno = MARKED_ERRNO;
}

void check_call(handoff_status got, handoff_status want, const char *call, const char *file,
                int line)
{
    if (errno == MARKED_ERRNO) {
        errno = unmarked_errno;
    } else if (got > HANDOFF_OK) {
        print_error("%s: %s, but errno is %d\n", call, handoff_status_name(got), errno);
        _fail(file, line);
    }
    check_status(got, want, call, file, line);
}

uint64_t now_ns(void)
{
    struct timespec time;
    assert_int_equal(clock_gettime(CLOCK_MONOTONIC, &time), 0);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

uint64_t ms_since(uint64_t start_ns)
{
    return (now_ns() - start_ns) / 1000000;
}

void sleep_until(uint64_t start_ns, uint64_t ms)
{
    uint64_t end = start_ns + ms * 1000000;
    struct timespec time = {.tv_sec = (time_t)(end / 1000000000),
                            .tv_nsec = (long)(end % 1000000000)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) != 0)
        ;
}

bool next_arrival(handoff_backend *backend, handoff_arrival *arrival)
{
    handoff_status status = handoff_backend_next(backend, arrival);
    if (status == HANDOFF_NOTHING)
        return false;
    assert_ok(status);
    return true;
}

bool next_verdict(handoff_broker *broker, handoff_verdict *verdict)
{
    handoff_status status = handoff_broker_next(broker, verdict);
    if (status == HANDOFF_NOTHING)
        return false;
    assert_ok(status);
    return true;
}

int count_descriptors(void)
{
    int count = 0;
    for (int fd = 0; fd < MOST_DESCRIPTORS; fd++)
        count += fcntl(fd, F_GETFD) != -1;
    return count;
}

int listen_unix(const char *path, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    assert_true(strlen(path) < sizeof address.sun_path);
    strcpy(address.sun_path, path);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 8), 0);
    return listener;
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
    assert_true(make_inet_pair(ends, IPPROTO_TCP));
}

int make_inet_pair(int ends[2], int protocol)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, protocol);
    if (listener == -1 && (errno == EPROTONOSUPPORT || errno == ENOPROTOOPT))
        return 0;
    assert_int_not_equal(listener, -1);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, len), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &len), 0);
    ends[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, protocol);
    assert_int_not_equal(ends[1], -1);
    assert_int_equal(connect(ends[1], (struct sockaddr *)&address, len), 0);
    ends[0] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_int_not_equal(ends[0], -1);
    close(listener);
    return 1;
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
    assert_int_equal(send_any(socket, &message), (ssize_t)len);
}

pid_t start_child(void)
{
    fflush(NULL);
    pid_t child = fork();
    assert_int_not_equal(child, -1);
    if (child == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return child;
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
    if (setgroups(0, NULL) != 0 || setgid(NOBODY) != 0 || setuid(NOBODY) != 0) {
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

void need_root(void)
{
    if (geteuid() != 0)
        fail_msg("run this as root: it drops privileges in a child");
}

void skip_under_valgrind(const char *reason)
{
    if (getenv("HANDOFF_UNDER_VALGRIND") != NULL) {
        print_message("skipped under valgrind: %s\n", reason);
        skip();
    }
}

/* The system call that the C library makes for another one, and the first argument that says so, or
 * -1. */
static unsigned int number_of(unsigned int number, int *first)
{
    *first = -1;
#ifdef __i386__
    /* As linux/net.h has them; send(2) is not sendto(2) there. */
    static const struct {
        unsigned int number;
        int first;
    } sockets[] = {{SYS_socket, 1},   {SYS_sendto, 9},  {SYS_shutdown, 13},
                   {SYS_sendmsg, 16}, {SYS_recvmsg, 17}};
    for (size_t i = 0; i < sizeof sockets / sizeof *sockets; i++) {
        if (sockets[i].number == number) {
            *first = sockets[i].first;
            return SYS_socketcall;
        }
    }
#endif
#ifdef SYS_fcntl64
    if (number == SYS_fcntl)
        return SYS_fcntl64;
#endif
    return number;
}

void refuse_system_call(unsigned int number, unsigned int error)
{
    int first;
    number = number_of(number, &first);
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 3),
        /* On a processor that has the low half of it first, if there is such a call. */
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, first == -1 ? offsetof(struct seccomp_data, nr)
                                                       : offsetof(struct seccomp_data, args)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, first == -1 ? number : (unsigned)first, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof rules / sizeof *rules, .filter = rules};
    child_assert(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    child_assert(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}
