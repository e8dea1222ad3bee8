/*
 * How the path of a handoff socket goes from one process to the next: who gets it of several that
 * start at once, wherever one of them is stopped or killed, and what is there when one has ended.
 */
#define _GNU_SOURCE
#include "channel.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

static char directory[64], path[80];

static int make_place(void **state)
{
    descriptors_before(state);
    make_directory(directory);
    snprintf(path, sizeof path, "%.63s/socket", directory);
    return 0;
}

static int remove_place(void **state)
{
    remove_directory(directory);
    return descriptors_after(state);
}

#define PLACE_TEST(function) \
    cmocka_unit_test_setup_teardown(function, make_place, remove_place)

static bool exists(const char *name)
{
    struct stat status;
    return lstat(name, &status) == 0;
}

/* A socket that some other program binds to the path; it removes what is there, as many do. */
static int bind_by_hand(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    strcpy(address.sun_path, path);
    unlink(path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(fd, 8), 0);
    return fd;
}

static void leave_stale_socket(void)
{
    close(bind_by_hand());
    assert_true(exists(path));
}

/* The mode of the sockets. */
static uint32_t mode;

static handoff_status start(handoff_raw_listener **listener)
{
    handoff_raw_listener_options options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
    options.socket_type = HANDOFF_RAW_SEQPACKET;
    options.mode = mode;
    return handoff_raw_listener_new(path, &options, listener);
}

/* Starts where it must be possible, and ends. */
static void assert_can_start(void)
{
    handoff_raw_listener *listener;
    assert_ok(start(&listener));
    handoff_raw_listener_free(listener);
    assert_false(exists(path));
}

/* The process that listens at the path. */
static pid_t who_listens(void)
{
    handoff_raw_peer peer = HANDOFF_RAW_PEER_INIT;
    int socket;
    assert_ok(handoff_raw_connect(path, &socket));
    assert_ok(handoff_raw_peer_credentials(socket, &peer));
    close(socket);
    return peer.pid;
}

static int names_in_directory(void)
{
    int count = 0;
    DIR *list = opendir(directory);
    assert_non_null(list);
    for (struct dirent *entry; (entry = readdir(list)) != NULL;)
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(list);
    return count;
}

static int remove_name(const char *name, const struct stat *status, int flag, struct FTW *place)
{
    (void)status, (void)flag;
    assert_true(place->level == 0 || remove(name) == 0);
    return 0;
}

/* What those have left who were killed: names that begin with the path's own, behind a dot. */
static void remove_leftovers(void)
{
    DIR *list = opendir(directory);
    assert_non_null(list);
    for (struct dirent *entry; (entry = readdir(list)) != NULL;)
        assert_true(strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
                    strncmp(entry->d_name, ".socket.", 8) == 0);
    closedir(list);
    assert_int_equal(nftw(directory, remove_name, 8, FTW_DEPTH | FTW_PHYS), 0);
}

/* ---- ending ---------------------------------------------------------------------------------- */

/* The descriptor whose closing is looked at, and what is found then. */
static int looked_at = -1, successor = -1;
static bool was_there;

/* In the place of the C library's, for the library too. */
int close(int fd)
{
    if (fd == looked_at && fd != -1) {
        looked_at = -1;
        was_there = exists(path);
        syscall(SYS_close, fd);
        /* Now nothing keeps the file's number from being given again; some file systems, such as
           ext4, do it at once. */
        successor = bind_by_hand();
        return 0;
    }
    return (int)syscall(SYS_close, fd);
}

static void assert_successor_stays(void)
{
    assert_int_not_equal(successor, -1);
    assert_false(was_there);
    assert_true(exists(path));
    assert_int_equal(who_listens(), getpid());
    close(successor);
}

/* The descriptor that listens at the path: the handles do not tell it. */
static int listening_descriptor(void)
{
    for (int fd = 0; fd < 1024; fd++) {
        int listens = 0;
        socklen_t len = sizeof listens;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) == 0 && listens)
            return fd;
    }
    return -1;
}

static void successor_of_a_listener_that_ends_keeps_its_file(void **state)
{
    (void)state;
    handoff_raw_listener *listener;
    assert_ok(start(&listener));
    looked_at = handoff_raw_listener_fd(listener);
    handoff_raw_listener_free(listener);
    assert_successor_stays();
}

static void successor_of_a_backend_that_ends_keeps_its_file(void **state)
{
    (void)state;
    handoff_backend *backend;
    assert_ok(handoff_backend_listen(path, NULL, &backend));
    looked_at = listening_descriptor();
    handoff_backend_free(backend);
    assert_successor_stays();
}

static void successor_of_a_backend_that_drains_keeps_its_file(void **state)
{
    (void)state;
    handoff_backend *backend;
    assert_ok(handoff_backend_listen(path, NULL, &backend));
    looked_at = listening_descriptor();
    assert_ok(handoff_backend_drain(backend));
    assert_successor_stays();
    handoff_backend_free(backend);
}

static void file_that_was_replaced_by_hand_stays(void **state)
{
    (void)state;
    handoff_raw_listener *listener;
    assert_ok(start(&listener));
    int other = bind_by_hand();
    handoff_raw_listener_free(listener);
    assert_int_equal(who_listens(), getpid());
    close(other);
}

/* ---- starting, whatever the system lacks ----------------------------------------------------- */

/* How often the library sleeps; nothing else here does. */
static int sleeps;

int nanosleep(const struct timespec *duration, struct timespec *left)
{
    sleeps++;
    return (int)syscall(SYS_nanosleep, duration, left);
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *time, struct timespec *left)
{
    sleeps++;
    return syscall(SYS_clock_nanosleep, clock, flags, time, left) == 0 ? 0 : errno;
}

/* Starts, starts again while that one lives, ends it as a process does that is killed, and starts
   once more. */
static void assert_starts_as_it_should(void)
{
    handoff_raw_listener *listener, *none = NULL;
    pid_t child = start_child();
    if (child == 0) {
        child_assert(start(&listener) == HANDOFF_OK);
        _exit(0);
    }
    assert_child_succeeds(child);
    assert_true(exists(path));
    assert_ok(start(&listener));
    assert_status(start(&none), HANDOFF_ERR_ADDRESS_IN_USE);
    assert_null(none);
    assert_int_equal(who_listens(), getpid());
    assert_int_equal(names_in_directory(), 1);
    handoff_raw_listener_free(listener);
    assert_int_equal(names_in_directory(), 0);
}

static void backend_starts_where_directories_cannot_be_locked(void **state)
{
    (void)state;
    refuse_system_call(SYS_flock, EBADF);
    assert_starts_as_it_should();
}

static void backend_starts_where_rename_cannot_keep_what_is_there(void **state)
{
    (void)state;
    refuse_system_call(SYS_renameat2, EINVAL);
    assert_starts_as_it_should();
}

static void backend_starts_with_a_kernel_that_has_no_renameat2(void **state)
{
    (void)state;
    refuse_system_call(SYS_renameat2, ENOSYS);
    assert_starts_as_it_should();
}

static void stranger_who_locks_the_directory_delays_nothing(void **state)
{
    (void)state;
    handoff_backend *backend;
    int lock = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(flock(lock, LOCK_EX), 0);
    assert_starts_as_it_should();
    assert_ok(handoff_backend_listen(path, NULL, &backend));
    assert_ok(handoff_backend_drain(backend));
    assert_false(exists(path));
    handoff_backend_free(backend);
    assert_int_equal(sleeps, 0);
    close(lock);
}

static void socket_has_its_mode_where_there_is_no_proc(void **state)
{
    (void)state;
    need_root();
    static const uint32_t modes[] = {0600, 0660, 0666, 0777};
    pid_t child = start_child();
    if (child == 0) {
        umask(022);
        child_assert(chroot(directory) == 0 && chdir("/") == 0);
        for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
            handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
            handoff_backend *backend;
            struct stat status;
            options.mode = modes[i];
            child_assert(handoff_backend_listen("/socket", &options, &backend) == HANDOFF_OK);
            child_assert(stat("/socket", &status) == 0 && (status.st_mode & 07777) == modes[i]);
            handoff_backend_free(backend);
        }
        _exit(0);
    }
    assert_child_succeeds(child);
}

static void umask_that_leaves_nothing_is_no_obstacle(void **state)
{
    (void)state;
    struct stat status;
    assert_int_equal(chmod(directory, 0777), 0);
    pid_t child = start_child();
    if (child == 0) {
        handoff_raw_listener *listener;
        become_nobody();
        umask(0777);
        child_assert(start(&listener) == HANDOFF_OK);
        _exit(0);
    }
    assert_child_succeeds(child);
    assert_int_equal(lstat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
    assert_can_start();
    assert_int_equal(names_in_directory(), 0);
}

static void backend_that_is_asked_for_by_a_second_start_does_not_notice(void **state)
{
    (void)state;
    handoff_backend *backend, *second = NULL;
    assert_ok(handoff_backend_listen(path, NULL, &backend));
    assert_status(handoff_backend_listen(path, NULL, &second), HANDOFF_ERR_ADDRESS_IN_USE);
    assert_ok(handoff_backend_dispatch(backend));
    handoff_backend_statistics statistics = backend_statistics(backend);
    assert_int_equal(statistics.accepted, 0);
    assert_int_equal(statistics.refused, 0);
    handoff_backend_free(backend);
}

/* ---- two that start, one of them stopped or killed at each of its system calls ---------------- */

/* A child that starts when it may, and says what came of it. */
struct starter {
    pid_t pid;
    int report; /* its status comes here */
    int hold;   /* closed when it may end */
};

static struct starter new_starter(bool traced)
{
    struct starter starter;
    int report[2], hold[2];
    assert_int_equal(pipe2(report, O_CLOEXEC), 0);
    assert_int_equal(pipe2(hold, O_CLOEXEC), 0);
    starter.pid = start_child();
    if (starter.pid == 0) {
        handoff_raw_listener *listener = NULL;
        char end;
        close(hold[1]);
        if (traced) {
            child_assert(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
            raise(SIGSTOP);
        }
        handoff_status status = start(&listener);
        child_assert(write(report[1], &status, sizeof status) == sizeof status);
        child_assert(read(hold[0], &end, 1) == 0);
        _exit(0);
    }
    close(report[1]);
    close(hold[0]);
    starter.report = report[0];
    starter.hold = hold[1];
    return starter;
}

/* What a starter has reported; false if it died before. */
static bool report_of(const struct starter *starter, handoff_status *status)
{
    ssize_t len = read(starter->report, status, sizeof *status);
    assert_true(len == 0 || len == sizeof *status);
    return len > 0;
}

static void end_starter(struct starter *starter)
{
    close(starter->hold);
    close(starter->report);
    assert_int_equal(waitpid(starter->pid, NULL, 0), starter->pid);
}

/* Lets a traced child go on to the next entry or exit of a system call. False if it has reported. */
static bool step(struct starter *starter)
{
    int status;
    struct pollfd report = {.fd = starter->report, .events = POLLIN};
    if (poll(&report, 1, 0) == 1)
        return false;
    assert_int_equal(ptrace(PTRACE_SYSCALL, starter->pid, NULL, NULL), 0);
    assert_int_equal(waitpid(starter->pid, &status, 0), starter->pid);
    assert_true(WIFSTOPPED(status));
    return true;
}

/* A traced child before its start; false if nothing may be traced here. */
static bool new_traced_starter(struct starter *starter)
{
    int status;
    *starter = new_starter(true);
    assert_int_equal(waitpid(starter->pid, &status, 0), starter->pid);
    if (WIFSTOPPED(status))
        return true;
    close(starter->hold);
    close(starter->report);
    return false;
}

static void skip_unless_traceable(void)
{
    skip_under_valgrind("what is traced would be valgrind");
    struct starter starter;
    if (!new_traced_starter(&starter)) {
        print_message("skipped: no process can be traced here, ptrace(2)\n");
        skip();
    }
    kill(starter.pid, SIGKILL);
    end_starter(&starter);
}

/* Whatever the first one was doing when it was stopped: one of the two listens, and the other says
   that the path is in use. */
static void check_one_of_two_listens(bool stale)
{
    skip_unless_traceable();
    int stops = 0, won_by_first = 0;
    for (bool more = true; more; stops++) {
        struct starter first;
        handoff_raw_listener *second = NULL;
        handoff_status of_first;
        unlink(path);
        if (stale)
            leave_stale_socket();
        assert_true(new_traced_starter(&first));
        for (int i = 0; i <= stops && more; i++)
            more = step(&first);

        handoff_status of_second = start(&second);
        assert_int_equal(ptrace(PTRACE_DETACH, first.pid, NULL, NULL), 0);
        assert_true(report_of(&first, &of_first));
        bool first_won = of_first == HANDOFF_OK;
        assert_status(of_first, first_won ? HANDOFF_OK : HANDOFF_ERR_ADDRESS_IN_USE);
        assert_status(of_second, first_won ? HANDOFF_ERR_ADDRESS_IN_USE : HANDOFF_OK);
        assert_int_equal(who_listens(), first_won ? first.pid : getpid());
        assert_int_equal(names_in_directory(), 1);
        won_by_first += first_won;
        end_starter(&first);
        handoff_raw_listener_free(second);
    }
    print_message("stopped at %d points, won %d times\n", stops, won_by_first);
    assert_true(won_by_first > 0 && won_by_first < stops);
}

static void of_two_that_start_one_listens_wherever_one_is_stopped(void **state)
{
    (void)state;
    check_one_of_two_listens(false);
}

/* The file then comes to its path from a directory of its own. */
static void of_two_that_start_with_a_mode_that_the_umask_cuts_one_listens(void **state)
{
    (void)state;
    mode = 0666;
    umask(022);
    check_one_of_two_listens(false);
    check_one_of_two_listens(true);
}

static void of_two_that_replace_a_stale_socket_one_listens_wherever_one_is_stopped(void **state)
{
    (void)state;
    check_one_of_two_listens(true);
}

static void of_two_that_start_one_listens_where_rename_cannot_keep_what_is_there(void **state)
{
    (void)state;
    refuse_system_call(SYS_renameat2, EINVAL);
    check_one_of_two_listens(false);
}

/* Two are stopped, at any two points of each, while a third starts: one of the three listens. */
static void of_three_one_listens_wherever_two_of_them_are_stopped(void **state)
{
    (void)state;
    skip_unless_traceable();
    /* HANDOFF_START_STRIDE=1 stops them everywhere, which takes a minute or so. */
    const char *set = getenv("HANDOFF_START_STRIDE");
    int stride = set != NULL ? atoi(set) : 7, count = 0, won[3] = {0};
    bool all_of_first = false;
    for (int at = 0; !all_of_first; at += stride) {
        bool all_of_second = false;
        for (int then = at % stride; !all_of_second; then += stride, count++) {
            struct starter stopped[2];
            handoff_raw_listener *third = NULL;
            handoff_status statuses[3];
            unlink(path);
            leave_stale_socket();
            for (int i = 0; i < 2; i++) {
                bool more = true;
                assert_true(new_traced_starter(&stopped[i]));
                for (int j = 0; j <= (i == 0 ? at : then) && more; j++)
                    more = step(&stopped[i]);
                *(i == 0 ? &all_of_first : &all_of_second) = !more;
            }
            statuses[2] = start(&third);
            for (int i = 2; i-- > 0;) {
                assert_int_equal(ptrace(PTRACE_DETACH, stopped[i].pid, NULL, NULL), 0);
                assert_true(report_of(&stopped[i], &statuses[i]));
            }
            const pid_t pids[] = {stopped[0].pid, stopped[1].pid, getpid()};
            int winners = 0;
            for (int i = 0; i < 3; i++) {
                if (statuses[i] == HANDOFF_OK) {
                    winners++;
                    won[i]++;
                    assert_int_equal(who_listens(), pids[i]);
                } else {
                    assert_status(statuses[i], HANDOFF_ERR_ADDRESS_IN_USE);
                }
            }
            assert_int_equal(winners, 1);
            assert_int_equal(names_in_directory(), 1);
            for (int i = 2; i-- > 0;)
                end_starter(&stopped[i]);
            handoff_raw_listener_free(third);
        }
    }
    print_message("%d pairs of points, won %d, %d and %d times\n", count, won[0], won[1], won[2]);
}

/* Whatever it was doing when it was killed: the next one can start, twice. */
static void check_next_one_starts(bool stale)
{
    skip_unless_traceable();
    int stops = 0;
    for (bool more = true; more; stops++) {
        struct starter first;
        unlink(path);
        if (stale)
            leave_stale_socket();
        assert_true(new_traced_starter(&first));
        for (int i = 0; i <= stops && more; i++)
            more = step(&first);
        assert_int_equal(kill(first.pid, SIGKILL), 0);
        end_starter(&first);
        assert_can_start();
        assert_can_start();
        assert_in_range(names_in_directory(), 0, 2);
        remove_leftovers();
    }
    print_message("killed at %d points\n", stops);
}

static void next_one_starts_wherever_one_was_killed(void **state)
{
    (void)state;
    check_next_one_starts(false);
}

static void next_one_starts_wherever_one_with_a_mode_that_the_umask_cuts_was_killed(void **state)
{
    (void)state;
    mode = 0666;
    umask(022);
    check_next_one_starts(false);
}

static void next_one_replaces_a_stale_socket_wherever_one_was_killed(void **state)
{
    (void)state;
    check_next_one_starts(true);
}

/* ---- several that start ---------------------------------------------------------------------- */

/* Each round leaves the socket of a process that was killed to the next. */
static void check_one_of_several_listens(void)
{
    enum { SEVERAL = 6 };
    const char *set = getenv("HANDOFF_START_ROUNDS");
    int rounds = set != NULL ? atoi(set) : 30;
    for (int round = 0; round < rounds; round++) {
        struct starter starters[SEVERAL];
        int winners = 0;
        for (int i = 0; i < SEVERAL; i++)
            starters[i] = new_starter(false);
        for (int i = 0; i < SEVERAL; i++) {
            handoff_status status;
            assert_true(report_of(&starters[i], &status));
            if (status == HANDOFF_OK) {
                winners++;
                assert_int_equal(who_listens(), starters[i].pid);
            } else {
                assert_status(status, HANDOFF_ERR_ADDRESS_IN_USE);
            }
        }
        assert_int_equal(winners, 1);
        assert_int_equal(names_in_directory(), 1);
        for (int i = 0; i < SEVERAL; i++) {
            kill(starters[i].pid, SIGKILL);
            end_starter(&starters[i]);
        }
    }
}

static void of_several_that_start_one_listens(void **state)
{
    (void)state;
    check_one_of_several_listens();
}

static void of_several_that_start_one_listens_where_directories_cannot_be_locked(void **state)
{
    (void)state;
    refuse_system_call(SYS_flock, EBADF);
    check_one_of_several_listens();
}

/* Some are killed while they start: afterwards one can start, and no two ever listen. */
static void path_is_never_lost_to_those_who_are_killed_while_they_start(void **state)
{
    (void)state;
    enum { SEVERAL = 6 };
    const char *set = getenv("HANDOFF_START_ROUNDS");
    int rounds = set != NULL ? atoi(set) : 30;
    leave_stale_socket();
    for (int round = 0; round < rounds; round++) {
        struct starter starters[SEVERAL];
        int winners = 0, reports = 0;
        for (int i = 0; i < SEVERAL; i++)
            starters[i] = new_starter(false);
        /* As long as it takes to start about half of them, on this machine and now. */
        assert_true(report_of(&starters[round % SEVERAL], &(handoff_status){0}));
        for (int i = 0; i < SEVERAL; i++)
            if (i % 2 == round % 2)
                kill(starters[i].pid, SIGKILL);
        for (int i = 0; i < SEVERAL; i++) {
            handoff_status status;
            if (i == round % SEVERAL || !report_of(&starters[i], &status))
                continue;
            reports++;
            winners += status == HANDOFF_OK && i % 2 != round % 2;
        }
        assert_in_range(reports, SEVERAL / 2 - 1, SEVERAL - 1);
        assert_in_range(winners, 0, 1);
        /* The last one first: it has copies of what the others wait to see closed. */
        for (int i = SEVERAL; i-- > 0;)
            end_starter(&starters[i]);
        assert_can_start();
    }
    remove_leftovers();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLACE_TEST(successor_of_a_listener_that_ends_keeps_its_file),
        PLACE_TEST(successor_of_a_backend_that_ends_keeps_its_file),
        PLACE_TEST(successor_of_a_backend_that_drains_keeps_its_file),
        PLACE_TEST(file_that_was_replaced_by_hand_stays),
        PLACE_TEST(backend_starts_where_directories_cannot_be_locked),
        PLACE_TEST(backend_starts_where_rename_cannot_keep_what_is_there),
        PLACE_TEST(backend_starts_with_a_kernel_that_has_no_renameat2),
        PLACE_TEST(stranger_who_locks_the_directory_delays_nothing),
        PLACE_TEST(socket_has_its_mode_where_there_is_no_proc),
        PLACE_TEST(umask_that_leaves_nothing_is_no_obstacle),
        PLACE_TEST(backend_that_is_asked_for_by_a_second_start_does_not_notice),
        PLACE_TEST(of_two_that_start_one_listens_wherever_one_is_stopped),
        PLACE_TEST(of_two_that_start_with_a_mode_that_the_umask_cuts_one_listens),
        PLACE_TEST(of_two_that_replace_a_stale_socket_one_listens_wherever_one_is_stopped),
        PLACE_TEST(of_two_that_start_one_listens_where_rename_cannot_keep_what_is_there),
        PLACE_TEST(of_three_one_listens_wherever_two_of_them_are_stopped),
        PLACE_TEST(next_one_starts_wherever_one_was_killed),
        PLACE_TEST(next_one_starts_wherever_one_with_a_mode_that_the_umask_cuts_was_killed),
        PLACE_TEST(next_one_replaces_a_stale_socket_wherever_one_was_killed),
        PLACE_TEST(of_several_that_start_one_listens),
        PLACE_TEST(of_several_that_start_one_listens_where_directories_cannot_be_locked),
        PLACE_TEST(path_is_never_lost_to_those_who_are_killed_while_they_start),
    };
    return RUN_TESTS(tests);
}
