/* What belongs to one process does not belong to its child, also if the child has its number. */
#define _GNU_SOURCE
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { TOKENS = 40, SKIP = 77 };

/* What the parent has when it forks. */
static struct channel channel;
static handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
static handoff_raw_listener *listener;
static char listener_path[80];
static handoff_raw_store *store;

static handoff_raw_token issue(void)
{
    handoff_raw_token token;
    child_assert(handoff_raw_store_issue(store, &token) == HANDOFF_OK);
    return token;
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

/* In a child: nothing of what it has a copy of is its own, and freeing that changes nothing. */
static void be_another_process(int tokens)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_arrival other = HANDOFF_ARRIVAL_INIT;
    handoff_offer offer = offer_of(0);
    handoff_broker_statistics statistics = HANDOFF_BROKER_STATISTICS_INIT;
    handoff_broker_backend_state backend = HANDOFF_BROKER_BACKEND_STATE_INIT;
    int fd;
    /* To read what the parent had done is no use of it. */
    child_assert(handoff_broker_get_statistics(channel.broker, &statistics) == HANDOFF_OK &&
                 statistics.in_flight == 1);
    child_assert(handoff_broker_get_backend_state(channel.broker, 0, &backend) == HANDOFF_OK &&
                 backend.in_flight == 1);
    child_assert(handoff_broker_dispatch(channel.broker) == HANDOFF_ERR_WRONG_PROCESS);
    child_assert(handoff_broker_offer(channel.broker, &offer, NULL) == HANDOFF_ERR_WRONG_PROCESS);
    child_assert(handoff_broker_next(channel.broker, &verdict) == HANDOFF_ERR_WRONG_PROCESS);
    child_assert(handoff_backend_dispatch(channel.backend) == HANDOFF_ERR_WRONG_PROCESS);
    child_assert(handoff_backend_next(channel.backend, &other) == HANDOFF_ERR_WRONG_PROCESS);
    child_assert(handoff_backend_adopt(channel.backend, arrival.id, &fd) ==
                 HANDOFF_ERR_WRONG_PROCESS);
    for (int i = 0; i < TOKENS; i++) {
        handoff_raw_token token = issue();
        child_assert(write(tokens, &token, sizeof token) == sizeof token);
    }
    handoff_broker_free(channel.broker);
    handoff_backend_free(channel.backend);
    handoff_raw_listener_free(listener);
    child_assert(exists(channel.path) && exists(listener_path));
    _exit(0);
}

static void expect_success_of(pid_t child)
{
    int status;
    child_assert(child > 0 && waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        _exit(1);
}

/* Runs in a process of its own, which is process 1 of its namespace if the child is to be that too. */
static void have_a_child(bool process_1)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_raw_token theirs[TOKENS], mine[TOKENS];
    int client[2], tokens[2], fd;
    open_channel(&channel, NULL, NULL);
    make_pair(SOCK_STREAM, client);
    offer_fd(&channel, client[0]);
    arrival = arrival_of(&channel);
    snprintf(listener_path, sizeof listener_path, "%.63s/other", channel.directory);
    child_assert(handoff_raw_listener_new(listener_path, NULL, &listener) == HANDOFF_OK);
    child_assert(handoff_raw_store_new(NULL, &store) == HANDOFF_OK);
    /* Tokens are fetched several at a time: now there are some of which the child has a copy. */
    issue();
    child_assert(pipe(tokens) == 0);

    child_assert(!process_1 || (getpid() == 1 && unshare(CLONE_NEWPID) == 0));
    pid_t child = fork();
    if (child == 0) {
        child_assert(!process_1 || getpid() == 1);
        be_another_process(tokens[1]);
    }
    expect_success_of(child);

    child_assert(read(tokens[0], theirs, sizeof theirs) == sizeof theirs);
    for (int i = 0; i < TOKENS; i++)
        mine[i] = issue();
    for (int i = 0; i < TOKENS; i++)
        for (int j = 0; j < TOKENS; j++)
            child_assert(!handoff_raw_token_equal(&theirs[i], &mine[j]));

    child_assert(handoff_backend_adopt(channel.backend, arrival.id, &fd) == HANDOFF_OK);
    child_assert(handoff_backend_next(channel.backend, &arrival) == HANDOFF_NOTHING);
    child_assert(handoff_broker_dispatch(channel.broker) == HANDOFF_OK);
    child_assert(handoff_broker_next(channel.broker, &verdict) == HANDOFF_OK);
    child_assert(verdict.outcome == HANDOFF_ADOPTED && verdict.reason == HANDOFF_REASON_NONE);
    handoff_raw_listener_free(listener);
    child_assert(!exists(listener_path));
    handoff_raw_store_free(store);
    close_channel(&channel);
    _exit(0);
}

static void have_a_child_with_another_number(void)
{
    pid_t parent = start_child();
    if (parent == 0)
        have_a_child(false);
    assert_child_succeeds(parent);
}

static bool write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool written = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    close(fd);
    return written;
}

/* For those who are not root: in a user namespace too, in which this user has its number. */
static bool unshare_with_user(void)
{
    char map[64];
    snprintf(map, sizeof map, "%u %u 1", geteuid(), geteuid());
    return unshare(CLONE_NEWUSER | CLONE_NEWPID) == 0 && write_file("/proc/self/uid_map", map);
}

static void have_a_child_with_the_same_number(void)
{
    int status;
    pid_t outside = start_child();
    if (outside == 0) {
        if (unshare(CLONE_NEWPID) != 0 && !unshare_with_user()) {
            print_message("skipped: no pid namespace can be made here: %s\n", strerror(errno));
            fflush(stdout);
            _exit(SKIP);
        }
        pid_t parent = start_child();
        if (parent == 0)
            have_a_child(true);
        expect_success_of(parent);
        _exit(0);
    }
    assert_int_equal(waitpid(outside, &status, 0), outside);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == SKIP)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void child_is_another_process(void **state)
{
    (void)state;
    have_a_child_with_another_number();
}

static void process_1_of_a_process_1_is_another_process(void **state)
{
    (void)state;
    have_a_child_with_the_same_number();
}

/* As qemu's user mode: madvise(2) answers 0 and does nothing. */
static void child_is_another_process_where_advice_is_ignored(void **state)
{
    (void)state;
    refuse_system_call(SYS_madvise, 0);
    have_a_child_with_another_number();
}

static void process_1_of_a_process_1_is_another_process_where_advice_is_ignored(void **state)
{
    (void)state;
    refuse_system_call(SYS_madvise, 0);
    have_a_child_with_the_same_number();
}

/* As Linux before 4.14, which does not know MADV_WIPEONFORK. */
static void child_is_another_process_where_advice_is_not_known(void **state)
{
    (void)state;
    refuse_system_call(SYS_madvise, EINVAL);
    have_a_child_with_another_number();
}

static void process_1_of_a_process_1_is_another_process_where_advice_is_not_known(void **state)
{
    (void)state;
    refuse_system_call(SYS_madvise, EINVAL);
    have_a_child_with_the_same_number();
}

/* No handler of pthread_atfork(3) runs then. */
static void assert_child_of_clone_is_another_process(void)
{
    handoff_broker *broker;
    assert_ok(handoff_broker_new("@handoff-test-process-nobody", NULL, &broker));
    assert_ok(handoff_broker_dispatch(broker));
    pid_t child = (pid_t)syscall(SYS_clone, (long)SIGCHLD, 0L, 0L, 0L, 0L);
    if (child == 0)
        _exit(handoff_broker_dispatch(broker) != HANDOFF_ERR_WRONG_PROCESS);
    assert_child_succeeds(child);
    assert_ok(handoff_broker_dispatch(broker));
    handoff_broker_free(broker);
}

static void child_of_clone_is_another_process(void **state)
{
    (void)state;
    assert_child_of_clone_is_another_process();
}

static void child_of_clone_is_another_process_where_advice_is_ignored(void **state)
{
    (void)state;
    refuse_system_call(SYS_madvise, 0);
    assert_child_of_clone_is_another_process();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(child_is_another_process),
        TEST(process_1_of_a_process_1_is_another_process),
        TEST(child_is_another_process_where_advice_is_ignored),
        TEST(process_1_of_a_process_1_is_another_process_where_advice_is_ignored),
        TEST(child_is_another_process_where_advice_is_not_known),
        TEST(process_1_of_a_process_1_is_another_process_where_advice_is_not_known),
        TEST(child_of_clone_is_another_process),
        TEST(child_of_clone_is_another_process_where_advice_is_ignored),
    };
    return RUN_TESTS(tests);
}
