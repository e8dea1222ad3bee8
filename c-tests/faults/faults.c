/*
 * faults.c: what a broker and a backend do when the other one is killed or stopped at any of its
 * system calls, and when any of their own fails.
 *
 *   faults [kill | stop | fail | pair [SCENARIO [SIDE]]]
 *   faults kill | stop SCENARIO SIDE POINT
 *   faults fail SCENARIO SIDE CALL SYSTEM-CALL OPERATION OCCURRENCE ERRNO
 *   faults pair SCENARIO SIDE CALL SYSTEM-CALL OPERATION OCCURRENCE ERRNO AFTER WHICH
 *
 * A point is the entry or the exit of a system call inside a call of the library, counted from 0.
 * The scenarios are in channel.c, waiting.c and raw.c. Each run is a scenario with one fault, in
 * processes of its own; in a pair a second system call of the same side fails, a few after the
 * first. Whatever the fault:
 *
 * - The broker has exactly one verdict of every offer, unless it was killed.
 * - Each client is answered by one side; by none only if its owner was killed.
 * - The other side, or both if none was killed, goes on with the same handle: a connection that is
 *   offered at the end is adopted.
 * - No descriptor is left open, neither while the handle does nothing nor at its end.
 * - A call that fails returns a status that names the fault, and sets errno to the system's.
 *
 * What is not so is printed with the command that does that run again, and the check fails.
 *
 * HANDOFF_FAULTS_STEP (1) is how many points are gone on each time, HANDOFF_FAULTS_OCCURRENCES (1)
 * how many occurrences of each system call fail in each call of the library, HANDOFF_FAULTS_PAIRS
 * (500) how many pairs are tried in each scenario and for each side, by random from
 * HANDOFF_FAULTS_SEED (1). HANDOFF_FAULTS_JOBS (four for each processor, for most of a run is waiting) is
 * how many runs there are at once. HANDOFF_FAULTS_VERBOSE prints every run.
 */
#define _GNU_SOURCE
#include "../libc.h"
#include "errnos.h"
#include "scene.h"
#include "trace.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum action { NOTHING, KILL, STOP, FAIL, PAIR, ACTIONS };

static const char *const action_names[ACTIONS] = {"nothing", "kill", "stop", "fail", "pair"};
static const char *const side_names[SIDES] = {"broker", "backend"};
static const struct scenario *const scenarios[] = {&channel_scenario, &waiting_scenario,
                                                   &raw_scenario};
enum { SCENARIOS = sizeof scenarios / sizeof *scenarios, MOST_ENTRIES = 4096, MOST_CASES = 65536 };

/** After how many seconds a run hangs. */
enum { LIMIT_S = 60 };

/** A system call in a call of the library. */
struct site {
    char call[48];
    long number;
    uint64_t operation;
};

/** One run: what happens to which side, and where. */
struct plan {
    const struct scenario *scenario;
    enum side victim;
    enum action action;
    uint32_t point;
    /* Of a failure. */
    struct site site;
    uint32_t occurrence;
    int error;
    /* Of a pair: how many system calls later the second one fails, and with which of its errors. */
    uint32_t after, which;
};

/** What a run has seen. */
struct seen {
    bool reached;
    /** Stops at system calls in calls of the library, and the entries among them. */
    uint32_t points, entries;
    /** Files that are left. */
    uint32_t left;
    double seconds;
};

/** What all workers share. */
struct totals {
    _Atomic uint32_t next, done, missed, left, failed;
    _Atomic uint64_t slowest_us;
};

static struct totals *totals;
static struct site *entries; /* of the undisturbed scenario */
static char directory[] = "/tmp/handoff-faults-XXXXXX";
static pid_t driver;
static uint64_t stop_timeout_ms;
static bool verbose;

#define must(condition) ((condition) ? (void)0 : give_up(#condition, __LINE__))

static _Noreturn void give_up(const char *condition, int line)
{
    fprintf(stderr, "faults.c:%d: %s: %s\n", line, condition, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void *shared(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED);
    return memory;
}

/* ---- one run -------------------------------------------------------------------------------- */

/** A broker or a backend. */
struct process {
    pid_t pid; /* 0: not running */
    bool traced;
    /** Told to end: it is killed. */
    bool killed;
};

static struct process processes[SIDES];
static int clients[BROKERS * CONNECTIONS];
static const char *problem;
static volatile sig_atomic_t out_of_time;

static void at_alarm(int signal)
{
    (void)signal;
    out_of_time = 1;
}

/** A client for each connection that the next broker has. */
static void make_connections(uint32_t base, int fds[CONNECTIONS])
{
    for (int i = 0; i < CONNECTIONS; i++) {
        int pair[2];
        must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        clients[base + (uint32_t)i] = pair[0];
        scene->connections[base + (uint32_t)i].cookie = cookie_of(pair[1]);
        /* Behind where the broker wants them. */
        fds[i] = fcntl(pair[1], F_DUPFD_CLOEXEC, 64);
        must(fds[i] != -1 && close(pair[1]) == 0);
    }
}

static _Noreturn void run_part(const struct scenario *scenario, enum side side, const int *fds)
{
    me = side;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGALRM, SIG_DFL);
    int kept = side == BROKER ? CONNECTIONS : 0;
    for (int i = 0; i < kept; i++)
        check(dup2(fds[i], FIRST_FD + i) == FIRST_FD + i);
    check(close_all_from((unsigned)(FIRST_FD + kept)) == 0);
    (side == BROKER ? scenario->broker : scenario->backend)();
    _exit(0);
}

static void start(const struct plan *plan, enum side side)
{
    struct process *process = &processes[side];
    int fds[CONNECTIONS];
    if (side == BROKER)
        make_connections(scene->base, fds);
    fflush(NULL);
    process->traced = side == plan->victim && !process->killed;
    process->killed = false;
    process->pid = process->traced ? trace_fork() : fork();
    must(process->pid != -1);
    if (process->pid == 0)
        run_part(plan->scenario, side, fds);
    for (int i = 0; side == BROKER && i < CONNECTIONS; i++)
        must(close(fds[i]) == 0);
}

static void remove_files(const char *path)
{
    DIR *list = opendir(path);
    must(list != NULL);
    for (struct dirent *entry; (entry = readdir(list)) != NULL;)
        unlinkat(dirfd(list), entry->d_name, 0);
    closedir(list);
}

/** Makes the directory of this process's runs, or removes what is in it: returns how many files. */
static uint32_t clear_directory(void)
{
    char path[sizeof scene->path + 300];
    uint32_t count = 0;
    snprintf(path, sizeof path, "%s/%d", directory, (int)getpid());
    DIR *list = opendir(path);
    if (list == NULL) {
        must(mkdir(path, 0755) == 0);
        return 0;
    }
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        count++;
        if (verbose)
            printf("left behind: %s\n", entry->d_name);
        if (unlinkat(dirfd(list), entry->d_name, 0) == 0)
            continue;
        /* A directory that a backend has made for its socket. */
        snprintf(path, sizeof path, "%s/%d/%s", directory, (int)getpid(), entry->d_name);
        remove_files(path);
        must(rmdir(path) == 0);
    }
    closedir(list);
    return count;
}

/** Lets time pass in which the other side goes on. */
static void hold(double seconds)
{
    double end = now() + seconds;
    while (now() < end)
        pause_shortly();
}

static void kill_victim(struct process *process)
{
    process->killed = true;
    must(kill(process->pid, SIGKILL) == 0);
}

/* Here it has been stopped, by the tracer, until the deadlines of the other side are past; then it
   is stopped once more by the signal, which ends what waits, and continued. */
static void stop_victim(struct process *process)
{
    hold((double)stop_timeout_ms * 1.5 / 1000);
    must(kill(process->pid, SIGSTOP) == 0);
    process->traced = false;
    trace_leave(process->pid);
}

static struct site site_of(const struct stop *stop, const char *call)
{
    struct site site = {.number = stop->number,
                        .operation = operation_of(stop->number, stop->arguments)};
    size_t len = strcspn(call, "(");
    snprintf(site.call, sizeof site.call, "%.*s", (int)len, call);
    return site;
}

static bool is_same(const struct site *a, const struct site *b)
{
    return a->number == b->number && a->operation == b->operation &&
           strcmp(a->call, b->call) == 0;
}

/** Where the failure is, in a run. */
struct failing {
    uint32_t occurrences;
    /* The call that fails, from its entry to its exit, and how. */
    const struct system_call *call;
    int error;
    uint32_t failures;
    /* Since the first failure. */
    uint32_t entries;
};

static void begin_failure(struct failing *failing, pid_t pid, long number, int error)
{
    failing->call = system_call_of(number);
    failing->error = error;
    if (failing->call->made == SKIPPED)
        trace_skip(pid);
    else if (failing->call->made == UNMOVED)
        trace_set_first_argument(pid, 0);
}

/** Whether the first failure is here; and the second one, which is told to the side. */
static bool fails_here(const struct plan *plan, struct failing *failing, const struct site *site,
                       int *error)
{
    if (failing->failures == 0) {
        *error = plan->error;
        return is_same(site, &plan->site) && failing->occurrences++ == plan->occurrence;
    }
    const struct system_call *call = system_call_of(site->number);
    if (plan->action != PAIR || failing->failures > 1 || call == NULL ||
        ++failing->entries < plan->after)
        return false;
    uint32_t count = 0;
    while (call->errnos[count] != 0)
        count++;
    *error = call->errnos[plan->which % count];
    scene->injected_too = *error;
    return true;
}

/** Goes on from a stop at a system call; does what the plan says if this is the place. */
static void proceed(const struct plan *plan, struct seen *seen, struct failing *failing)
{
    static struct stop stop;
    struct process *process = &processes[plan->victim];
    const char *call = scene->call[plan->victim];
    if (!trace_read(process->pid, &stop))
        return;
    if (failing->call != NULL) {
        if (failing->call->made == UNMOVED)
            trace_restore_first_argument(process->pid, stop.arguments[0]);
        else
            trace_set_result(process->pid, -failing->error);
        failing->call = NULL;
        failing->failures++;
        if (plan->action == FAIL || failing->failures == 2) {
            process->traced = false;
            trace_leave(process->pid);
        } else {
            trace_go_on(process->pid, 0);
        }
        return;
    }
    if (call == NULL) {
        trace_go_on(process->pid, 0);
        return;
    }
    uint32_t point = seen->points++;
    if (stop.entry) {
        struct site site = site_of(&stop, call);
        if (plan->action == NOTHING && seen->entries < MOST_ENTRIES)
            entries[seen->entries] = site;
        seen->entries++;
        int error;
        if ((plan->action == FAIL || plan->action == PAIR) &&
            fails_here(plan, failing, &site, &error)) {
            seen->reached = true;
            begin_failure(failing, process->pid, site.number, error);
        }
    }
    bool here = point == plan->point && (plan->action == KILL || plan->action == STOP);
    seen->reached |= here;
    if (here && plan->action == KILL)
        kill_victim(process);
    if (here && plan->action == STOP)
        stop_victim(process);
    else
        trace_go_on(process->pid, 0);
}

/** A process has ended: as it should, or another takes its place. */
static void ended(const struct plan *plan, enum side side, int status)
{
    struct process *process = &processes[side];
    process->pid = 0;
    if (process->killed) {
        if (side == BROKER) {
            scene->brokers_killed++;
            scene->base += CONNECTIONS;
        } else {
            scene->listening = 0;
            scene->accepting_when_killed = scene->accepting;
        }
        start(plan, side);
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        problem = WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "it is not as it must be";
    } else if (side == BROKER) {
        scene->finish = 1;
    }
}

/** One event of a process: a stop, or its end. */
static void handle(const struct plan *plan, struct seen *seen, struct failing *failing)
{
    int status;
    pid_t pid = waitpid(-1, &status, __WALL | WUNTRACED);
    if (pid == -1) {
        must(errno == EINTR);
        return;
    }
    enum side side = pid == processes[BROKER].pid ? BROKER : BACKEND;
    if (pid != processes[side].pid)
        return;
    if (!WIFSTOPPED(status))
        ended(plan, side, status);
    else if (!processes[side].traced)
        must(kill(pid, SIGCONT) == 0);
    else if (trace_is_call(status))
        proceed(plan, seen, failing);
    else
        trace_go_on(pid, WSTOPSIG(status) == SIGSTOP ? 0 : WSTOPSIG(status));
}

static bool is_operation(const struct plan *plan, long number)
{
    return plan->action == PAIR || (plan->action == FAIL && plan->site.number == number);
}

/** Whose a connection is, once all have ended. */
static const char *judge(const struct plan *plan, uint32_t number, bool broker_killed,
                         bool backend_killed)
{
    const struct connection *connection = &scene->connections[number];
    unsigned by[2] = {0, 0};
    char answer[8];
    ssize_t len = recv(clients[number], answer, sizeof answer, MSG_DONTWAIT);
    /* A connection may be reset by a process that was killed before it read what the client sent;
       these clients send nothing. */
    if (len < 0)
        return "a client whose connection is not closed";
    for (ssize_t i = 0; i < len; i++)
        by[answer[i] == '2']++;
    bool fell_back = connection->outcome == FALLBACK || connection->outcome == TAKEN_BACK;
    if (len > 1 || (fell_back && connection->adopted))
        return "a client with two owners";
    bool begun = connection->adopter || (backend_killed && scene->accepting_when_killed);
    if ((by[0] > 0 && !fell_back) || (by[1] > 0 && !begun))
        return "a client that was answered by who does not own it";
    if (!broker_killed && connection->outcome == UNSETTLED)
        return "an offer without a verdict";
    bool wished = plan->scenario->wishes[number % CONNECTIONS] == ADOPT;
    if (plan->action == NOTHING && (len != 1 || !wished != (by[1] == 0)))
        return "not what was wished, although nothing happened";
    if (len == 1)
        return NULL;
    /* Nobody has answered: its owner must have been killed. */
    if (broker_killed)
        return connection->adopted ? "a client that its owner did not answer" : NULL;
    if (backend_killed)
        return connection->outcome == ADOPTED && begun
                   ? NULL
                   : "a client that nobody owns, although its owner lives";
    /* The broker could not take it back, or not receive the answer that may be there, and says so. */
    if (connection->outcome == UNKNOWN &&
        (is_operation(plan, SYS_shutdown) || is_operation(plan, SYS_recvmsg) ||
         is_operation(plan, SYS_recvfrom)))
        return NULL;
    return "a client that nobody owns";
}

static void judge_all(const struct plan *plan)
{
    uint32_t count = scene->base + CONNECTIONS;
    for (uint32_t i = 0; i < count && problem == NULL; i++) {
        bool broker_killed = i < scene->brokers_killed * CONNECTIONS;
        bool backend_killed = plan->action == KILL && plan->victim == BACKEND;
        problem = judge(plan, i, broker_killed, backend_killed);
        if (problem != NULL)
            fprintf(stderr, "connection %u: outcome %u, seen %u, adopter %u, adopted %u\n", i,
                    scene->connections[i].outcome, scene->connections[i].seen,
                    scene->connections[i].adopter, scene->connections[i].adopted);
    }
}

/** Ends what is left of a run that went wrong. */
static void clean_up(void)
{
    for (int side = 0; side < SIDES; side++) {
        if (processes[side].pid > 0) {
            kill(processes[side].pid, SIGKILL);
            waitpid(processes[side].pid, NULL, __WALL);
        }
    }
    for (uint32_t i = 0; i < scene->base + CONNECTIONS; i++)
        close(clients[i]);
}

static void print_command(FILE *file, const struct plan *plan)
{
    fprintf(file, "faults %s %s %s", action_names[plan->action], plan->scenario->name,
            side_names[plan->victim]);
    if (plan->action == FAIL || plan->action == PAIR)
        fprintf(file, " %s %s %#llx %u %s", plan->site.call,
                system_call_of(plan->site.number)->name,
                (unsigned long long)plan->site.operation, plan->occurrence,
                name_of_errno(plan->error));
    else if (plan->action != NOTHING)
        fprintf(file, " %u", plan->point);
    if (plan->action == PAIR)
        fprintf(file, " %u %u", plan->after, plan->which);
}

static struct seen run(const struct plan *plan)
{
    struct seen seen = {0};
    struct failing failing = {0};
    double start_at = now();
    uint32_t idle[SIDES] = {scene->idle[BROKER], scene->idle[BACKEND]};
    memset(scene, 0, sizeof *scene);
    snprintf(scene->path, sizeof scene->path, "%s/%d/socket", directory, (int)getpid());
    scene->idle[BROKER] = idle[BROKER];
    scene->idle[BACKEND] = idle[BACKEND];
    scene->undisturbed = plan->action == NOTHING;
    scene->backend_dies = plan->action == KILL && plan->victim == BACKEND;
    scene->injected = plan->error;
    /* What has no answer by the limit of a run has none: only of a process that is stopped the
       other side's deadlines pass. */
    scene->timeout_ms = plan->action == STOP ? stop_timeout_ms : LIMIT_S * 2000;
    memset(processes, 0, sizeof processes);
    problem = NULL;
    out_of_time = 0;
    clear_directory();
    alarm(LIMIT_S);
    start(plan, BACKEND);
    start(plan, BROKER);
    while (problem == NULL && (processes[BROKER].pid > 0 || processes[BACKEND].pid > 0)) {
        if (out_of_time)
            problem = "hangs";
        else
            handle(plan, &seen, &failing);
    }
    alarm(0);
    if (problem == NULL)
        judge_all(plan);
    /* Who was killed, or could not remove its file, leaves that. */
    seen.left = clear_directory();
    if (problem == NULL && plan->action < FAIL && plan->action != KILL && seen.left > 0)
        problem = "a file is left behind";
    seen.seconds = now() - start_at;
    if (verbose || problem != NULL) {
        printf("%s: ", problem == NULL ? "good" : problem);
        print_command(stdout, plan);
        printf(": %.3f s", seen.seconds);
        for (int side = 0; side < SIDES; side++)
            if (scene->errors[side] > 0)
                printf(", %s: %u errors, the last %s", side_names[side], scene->errors[side],
                       handoff_status_name(scene->status[side]));
        if (problem != NULL)
            for (int side = 0; side < SIDES; side++)
                printf(", %s in %s", side_names[side],
                       scene->call[side] != NULL ? scene->call[side] : "no call");
        printf("\n");
        fflush(stdout);
    }
    clean_up();
    return seen;
}

/* ---- many runs ------------------------------------------------------------------------------ */

static uint32_t step, occurrences, pairs, seed, jobs;

/** Runs a plan, and counts it. */
static bool run_and_count(const struct plan *plan)
{
    struct seen seen = run(plan);
    uint64_t us = (uint64_t)(seen.seconds * 1e6), slowest = totals->slowest_us;
    while (us > slowest && !atomic_compare_exchange_weak(&totals->slowest_us, &slowest, us))
        ;
    if (problem != NULL)
        totals->failed++;
    totals->done += seen.reached;
    totals->left += seen.left > 0;
    return seen.reached;
}

/** Runs until `next` says that there is no more, in processes that take turns. */
static void in_parallel(bool (*take)(const void *what, uint32_t turn), const void *what)
{
    struct scene *undisturbed = scene;
    for (uint32_t i = 0; i < jobs; i++) {
        fflush(NULL);
        pid_t worker = fork();
        must(worker != -1);
        if (worker == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            scene = shared(sizeof *scene);
            memcpy(scene, undisturbed, sizeof *scene);
            while (take(what, totals->next++))
                ;
            fflush(NULL);
            _exit(0);
        }
    }
    for (uint32_t i = 0; i < jobs; i++) {
        int status;
        must(wait(&status) != -1);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            totals->failed++;
    }
}

struct points {
    struct plan plan;
    uint32_t usual;
};

/** The points of a scenario; how many there are differs a little from run to run. */
static bool take_point(const void *what, uint32_t turn)
{
    const struct points *points = what;
    struct plan plan = points->plan;
    plan.point = turn * step;
    bool reached = run_and_count(&plan);
    if (!reached && plan.point < points->usual)
        totals->missed++;
    return reached || plan.point < points->usual;
}

struct cases {
    struct plan plan;
    uint32_t count;
    struct {
        struct site site;
        uint32_t occurrence;
        int error;
    } of[];
};

static bool take_case(const void *what, uint32_t turn)
{
    const struct cases *cases = what;
    if (turn >= cases->count)
        return false;
    struct plan plan = cases->plan;
    plan.site = cases->of[turn].site;
    plan.occurrence = cases->of[turn].occurrence;
    plan.error = cases->of[turn].error;
    /* What depends on who is first may come up only sometimes. */
    bool reached = false;
    for (int tries = 0; tries < 5 && !reached; tries++)
        reached = run_and_count(&plan);
    if (!reached && verbose) {
        printf("did not come up again: ");
        print_command(stdout, &plan);
        printf("\n");
    }
    totals->missed += !reached;
    return true;
}

static bool take_pair(const void *what, uint32_t turn)
{
    const struct cases *cases = what;
    if (turn >= pairs || cases->count == 0)
        return false;
    unsigned short state[3] = {(unsigned short)seed, (unsigned short)turn,
                               (unsigned short)(turn >> 16)};
    uint32_t first = (uint32_t)nrand48(state) % cases->count;
    struct plan plan = cases->plan;
    plan.site = cases->of[first].site;
    plan.occurrence = cases->of[first].occurrence;
    plan.error = cases->of[first].error;
    plan.after = 1 + (uint32_t)nrand48(state) % 16;
    plan.which = (uint32_t)nrand48(state) % MOST_ERRNOS;
    run_and_count(&plan);
    return true;
}

/** Each system call that the undisturbed scenario made, with each of its errors. */
static struct cases *list_cases(const struct plan *plan, uint32_t count)
{
    struct cases *cases = malloc(sizeof *cases + MOST_CASES * sizeof cases->of[0]);
    must(cases != NULL && count <= MOST_ENTRIES);
    cases->plan = *plan;
    cases->count = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t before = 0;
        for (uint32_t j = 0; j < i; j++)
            before += is_same(&entries[j], &entries[i]);
        if (before >= occurrences || cannot_fail(entries[i].number))
            continue;
        const struct system_call *call = system_call_of(entries[i].number);
        if (call == NULL) {
            fprintf(stderr, "faults: errnos.c has no list for system call %ld, in %s\n",
                    entries[i].number, entries[i].call);
            exit(1);
        }
        for (const int *error = call->errnos; *error != 0; error++) {
            must(cases->count < MOST_CASES);
            cases->of[cases->count].site = entries[i];
            cases->of[cases->count].occurrence = before;
            cases->of[cases->count].error = *error;
            cases->count++;
        }
    }
    return cases;
}

static bool sweep(enum action action, const struct scenario *scenario, enum side victim,
                  uint32_t *sum)
{
    memset(scene, 0, sizeof *scene);
    struct plan plan = {.scenario = scenario, .victim = victim, .action = NOTHING};
    /* The fewest points of some runs: waits that are tried again make more of them. */
    struct seen undisturbed = run(&plan);
    for (int i = 0; i < 4 && problem == NULL; i++) {
        struct seen seen = run(&plan);
        if (seen.points < undisturbed.points)
            undisturbed = seen;
    }
    if (problem != NULL)
        return false;
    /* A deadline that passes while nothing is wrong changes what is tried, not what must hold. */
    stop_timeout_ms = 10 + (uint64_t)(undisturbed.seconds * 1000);
    memset(totals, 0, sizeof *totals);
    plan.action = action;
    double start_at = now();
    if (action == FAIL || action == PAIR) {
        struct cases *cases = list_cases(&plan, undisturbed.entries);
        in_parallel(action == FAIL ? take_case : take_pair, cases);
        free(cases);
    } else {
        struct points points = {plan, undisturbed.points};
        in_parallel(take_point, &points);
    }
    static const char *const done[ACTIONS] = {[KILL] = "killed at", [STOP] = "stopped at",
                                              [FAIL] = "with", [PAIR] = "with"};
    static const char *const what[ACTIONS] = {
        [KILL] = "points", [STOP] = "points", [FAIL] = "single failures", [PAIR] = "pairs"};
    printf("%-8s %-7s %s %u %s of %u system calls, %.1f s, the slowest %.2f s", scenario->name,
           side_names[victim], done[action], totals->done, what[action], undisturbed.entries,
           now() - start_at, (double)totals->slowest_us / 1e6);
    if (totals->missed > 0)
        printf(", %u did not come up again", totals->missed);
    if (totals->left > 0)
        printf(", files were left %u times", totals->left);
    if (totals->failed > 0)
        printf(", %u FAILED", totals->failed);
    printf("\n");
    fflush(stdout);
    *sum += totals->done;
    /* What was there once is there again, but for a little, or the sweep shows nothing. */
    return totals->failed == 0 && totals->missed <= totals->done / 4;
}

/* ---- the command line ----------------------------------------------------------------------- */

static int find(const char *name, const char *const *names, int count)
{
    for (int i = 0; i < count; i++)
        if (names[i] != NULL && strcmp(name, names[i]) == 0)
            return i;
    fprintf(stderr, "faults: what is %s? See the head of faults.c\n", name);
    exit(2);
}

static uint32_t number(const char *name, uint32_t otherwise)
{
    const char *value = getenv(name);
    long number = value != NULL ? atol(value) : otherwise;
    if (number < 1) {
        fprintf(stderr, "faults: %s is not a number from 1 on\n", name);
        exit(2);
    }
    return (uint32_t)number;
}

/** One run that the command line describes. */
static int run_one(struct plan *plan, int argc, char **argv)
{
    struct plan undisturbed = {.scenario = plan->scenario, .victim = plan->victim};
    struct seen seen = run(&undisturbed);
    stop_timeout_ms = 10 + (uint64_t)(seen.seconds * 1000);
    if (plan->action < FAIL) {
        plan->point = (uint32_t)atol(argv[0]);
    } else {
        if (argc != (plan->action == PAIR ? 7 : 5))
            return 2;
        snprintf(plan->site.call, sizeof plan->site.call, "%s", argv[0]);
        for (uint32_t i = 0; i < seen.entries; i++) {
            const struct system_call *call = system_call_of(entries[i].number);
            if (call != NULL && strcmp(call->name, argv[1]) == 0)
                plan->site.number = call->number;
        }
        plan->site.operation = strtoull(argv[2], NULL, 0);
        plan->occurrence = (uint32_t)atol(argv[3]);
        plan->error = errno_of_name(argv[4]);
        plan->after = argc > 6 ? (uint32_t)atol(argv[5]) : 0;
        plan->which = argc > 6 ? (uint32_t)atol(argv[6]) : 0;
    }
    verbose = true;
    seen = run(plan);
    if (problem == NULL && !seen.reached)
        printf("it did not come to that\n");
    return problem != NULL;
}

static void remove_directory(void)
{
    if (getpid() != driver)
        return;
    DIR *list = opendir(directory);
    for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;)
        unlinkat(dirfd(list), entry->d_name, AT_REMOVEDIR);
    if (list != NULL)
        closedir(list);
    rmdir(directory);
}

int main(int argc, char **argv)
{
    const char *scenario_names[SCENARIOS];
    for (int i = 0; i < SCENARIOS; i++)
        scenario_names[i] = scenarios[i]->name;
    int action = argc > 1 ? find(argv[1], action_names, ACTIONS) : 0;
    int scenario = argc > 2 ? find(argv[2], scenario_names, SCENARIOS) : 0;
    int side = argc > 3 ? find(argv[3], side_names, SIDES) : 0;
    step = number("HANDOFF_FAULTS_STEP", 1);
    occurrences = number("HANDOFF_FAULTS_OCCURRENCES", 1);
    pairs = number("HANDOFF_FAULTS_PAIRS", 500);
    seed = number("HANDOFF_FAULTS_SEED", 1);
    jobs = number("HANDOFF_FAULTS_JOBS", 4 * (uint32_t)get_nprocs());
    verbose = getenv("HANDOFF_FAULTS_VERBOSE") != NULL;

    /* Before any child: what malloc(3) does at first is done. And it asks the kernel often. */
    mallopt(M_TOP_PAD, 0);
    free(malloc(1));
    driver = getpid();
    struct sigaction alarmed = {.sa_handler = at_alarm};
    must(sigaction(SIGALRM, &alarmed, NULL) == 0);
    must(mkdtemp(directory) != NULL && chmod(directory, 0755) == 0);
    atexit(remove_directory);
    totals = shared(sizeof *totals);
    entries = shared(MOST_ENTRIES * sizeof *entries);
    scene = shared(sizeof *scene);
    setvbuf(stdout, NULL, _IOLBF, 0);

    if (argc > 4) {
        struct plan plan = {.scenario = scenarios[scenario], .victim = (enum side)side,
                            .action = (enum action)action};
        return run_one(&plan, argc - 4, argv + 4);
    }
    uint32_t sums[ACTIONS] = {0};
    bool good = true;
    for (int a = KILL; a < ACTIONS; a++)
        for (int s = 0; s < SCENARIOS; s++)
            for (int v = 0; v < SIDES; v++)
                if ((argc < 2 || a == action) && (argc < 3 || s == scenario) &&
                    (argc < 4 || v == side))
                    good &= sweep((enum action)a, scenarios[s], (enum side)v, &sums[a]);
    printf("faults: killed at %u points, stopped at %u points, %u single failures, %u pairs\n",
           sums[KILL], sums[STOP], sums[FAIL], sums[PAIR]);
    return good ? 0 : 1;
}
