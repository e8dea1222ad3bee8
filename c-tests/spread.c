/*
 * spread.c: how brokers spread their clients over several workers, and that no client is lost when
 * workers stop, end and come.
 *
 *   spread [balance | stopped | changes | weights | backup]...
 *
 * All of these parts by default. The driver starts workers, which listen at DIR/N.sock and answer
 * each client at once, and four brokers, which are their own clients. A worker's share is what it
 * answered, and 1 is as much as each of the others with its weight: 0.9 to 1.1 is right.
 *
 * SPREAD_OFFERS (40000) are for `balance`. Where a time is compared, the machine may be slow for a
 * while: a part that fails for that is repeated.
 */
#define _GNU_SOURCE
#include "spread.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { WORKERS = 8, STOPPED = 3, PATIENCE_MS = 60000, ATTEMPT_MS = 200, CHANCES = 5 };

struct shared *shared;
sigset_t terminate;
char directory[] = "/tmp/handoff-spread-XXXXXX";

static pid_t driver, brokers[BROKERS], workers[MOST_WORKERS];
static bool good = true;

/** With the driver end all children. */
void fail(const char *condition, const char *file, int line)
{
    fprintf(stderr, "%s:%d: %s: %s: %s\n", file, line, condition, strerror(errno),
            handoff_last_error());
    if (getpid() != driver) {
        kill(driver, SIGTERM);
        _exit(1);
    }
    exit(1);
}

int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 * MS + time.tv_nsec;
}

void socket_path(char path[64], int which)
{
    snprintf(path, 64, "%s/%d.sock", directory, which);
}

/** What must be true, or the test fails at its end. */
static void expect(bool true_, const char *otherwise)
{
    if (true_)
        return;
    fprintf(stderr, "spread: %s\n", otherwise);
    good = false;
}

static void sleep_ms(int64_t ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * MS}, NULL);
}

#define await(condition)                                                    \
    do {                                                                    \
        for (int64_t end = now() + PATIENCE_MS * MS; !(condition);) {       \
            check(now() < end);                                             \
            sleep_ms(1);                                                    \
        }                                                                   \
    } while (0)

/* ---- processes ------------------------------------------------------------------------------- */

static pid_t start_child(void)
{
    pid_t child = fork();
    check(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != driver)
            _exit(1);
    }
    return child;
}

static void start_worker(int which)
{
    shared->holds[which] = shared->holding[which] = false;
    /* Blocked in a worker from its first moment on: it asks for the signal when it is ready. */
    sigprocmask(SIG_BLOCK, &terminate, NULL);
    workers[which] = start_child();
    if (workers[which] == 0)
        run_worker(which);
    sigprocmask(SIG_UNBLOCK, &terminate, NULL);
}

static void kill_and_reap(pid_t process)
{
    check(kill(process, SIGKILL) == 0 && waitpid(process, NULL, 0) == process);
}

/** Kills a worker at a moment when it has no client that it has adopted and not answered. */
static void kill_worker(int which)
{
    shared->holds[which] = true;
    await(shared->holding[which]);
    kill_and_reap(workers[which]);
    workers[which] = 0;
}

static void reap_drained(pid_t worker)
{
    int status;
    check(waitpid(worker, &status, 0) == worker);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void drain_worker(int which)
{
    check(kill(workers[which], SIGTERM) == 0);
    reap_drained(workers[which]);
    workers[which] = 0;
}

static void replace_worker(int which)
{
    pid_t before = workers[which];
    check(kill(before, SIGTERM) == 0);
    start_worker(which);
    reap_drained(before);
}

static void await_ready(int count)
{
    for (int i = 0; i < BROKERS; i++)
        await(shared->ready[i] == count);
}

/** Starts everything; no client begins before all workers are ready. */
static void start(int count, const struct setup *setup)
{
    memset(shared, 0, sizeof *shared);
    for (int i = 0; i < count; i++)
        start_worker(i);
    for (int i = 0; i < BROKERS; i++) {
        brokers[i] = start_child();
        if (brokers[i] == 0)
            run_broker(i, setup);
    }
}

/** Lets all clients come to their end, and ends everything. */
static void end(void)
{
    shared->limit = 0;
    await(shared->finished == shared->begun);
    for (int i = 0; i < BROKERS; i++)
        kill_and_reap(brokers[i]);
    for (int i = 0; i < MOST_WORKERS; i++) {
        if (workers[i] != 0)
            kill_and_reap(workers[i]);
        workers[i] = 0;
    }
}

/* ---- shares ---------------------------------------------------------------------------------- */

/** Waits for as long as clients finish. */
static void await_finished(uint64_t count)
{
    while (shared->finished < count) {
        uint64_t before = shared->finished;
        await(shared->finished > before);
    }
}

/** The share of each worker of a number of clients that begin now; 0 for those without weight. */
static bool measure(const char *what, const uint32_t weights[MOST_WORKERS], uint64_t clients)
{
    uint64_t before[MOST_WORKERS], answered[MOST_WORKERS], all = 0, weight = 0, first;
    double least = 1e9, most = 0;
    first = shared->finished;
    for (int i = 0; i < MOST_WORKERS; i++)
        before[i] = shared->answers[i];
    await_finished(first + clients);
    for (int i = 0; i < MOST_WORKERS; i++) {
        answered[i] = shared->answers[i] - before[i];
        all += answered[i];
        weight += weights[i];
    }
    printf("%-36s", what);
    for (int i = 0; i < MOST_WORKERS; i++) {
        if (weights[i] == 0) {
            /* Those that had a client when the measurement began. */
            least = answered[i] > clients / 100 ? 0 : least;
            continue;
        }
        double share = (double)answered[i] * (double)weight / (double)all / weights[i];
        least = share < least ? share : least;
        most = share > most ? share : most;
        printf(" %.3f", share);
    }
    printf("\n");
    return least >= 0.9 && most <= 1.1;
}

/** Weights of 1 for all that are there. */
static const uint32_t *even(void)
{
    static uint32_t weights[MOST_WORKERS];
    for (int i = 0; i < MOST_WORKERS; i++)
        weights[i] = workers[i] != 0;
    return weights;
}

static void expect_none_lost(const char *what)
{
    char text[160];
    snprintf(text, sizeof text, "%s: %lu clients are unanswered, %lu fell back", what,
             (unsigned long)shared->unanswered, (unsigned long)shared->fallbacks);
    expect(shared->unanswered == 0 && shared->fallbacks == 0, text);
}

/* ---- the parts ------------------------------------------------------------------------------- */

static uint64_t offers = 40000;

/* One client after the other; and at a pace that the machine can follow, up to so many at once: if
   it cannot, a worker that has the processor more often rightly gets more. */
static const struct pace {
    int at_once;
    int64_t pause;
} paces[] = {{1, 0}, {64, MS / 2}};
enum { PACES = sizeof paces / sizeof *paces };

static void balance(void)
{
    for (int i = 0; i < PACES; i++) {
        char what[64];
        struct setup setup = {.at_once = paces[i].at_once, .pause = paces[i].pause};
        start(WORKERS, &setup);
        await_ready(WORKERS);
        shared->limit = offers;
        snprintf(what, sizeof what, "%lu offers, up to %d at once:", (unsigned long)offers,
                 setup.at_once);
        expect(measure(what, even(), offers), "the shares are not even");
        expect_none_lost(what);
        end();
    }
}

/** Returns whether no client waited too long. */
static bool stop_one(void)
{
    struct setup setup = {.at_once = 64, .pause = MS, .attempt_timeout_ms = ATTEMPT_MS};
    start(WORKERS, &setup);
    await_ready(WORKERS);
    shared->limit = UINT64_MAX / 2;
    sleep_ms(1000);
    int64_t usual = shared->longest_wait;
    shared->longest_wait = 0;
    check(kill(workers[STOPPED], SIGSTOP) == 0);
    sleep_ms(3000);
    uint64_t late = shared->failed_over;
    int64_t longest = shared->longest_wait, margin = 50 * MS + 4 * usual;
    printf("one of %d stopped for 3 s: the longest wait is %.1f ms, of which the attempt's timeout"
           " is %d; usual are %.1f; %lu of %lu clients went to another one\n",
           WORKERS, (double)longest / MS, ATTEMPT_MS, (double)usual / MS, (unsigned long)late,
           (unsigned long)shared->finished);
    check(kill(workers[STOPPED], SIGCONT) == 0);
    await_ready(WORKERS);
    sleep_ms(1000);
    expect(measure("a second after it went on:", even(), 4000), "the shares are not even");
    expect_none_lost("stopped");
    end();
    return longest <= ATTEMPT_MS * MS + margin;
}

static void stopped(void)
{
    int chances = CHANCES;
    while (chances > 0 && !stop_one())
        chances--;
    expect(chances > 0, "a client waited too long");
}

static void changes(void)
{
    struct setup setup = {.at_once = 64, .pause = MS, .attempt_timeout_ms = ATTEMPT_MS};
    start(WORKERS, &setup);
    await_ready(WORKERS);
    shared->limit = UINT64_MAX / 2;
    kill_worker(2);
    sleep_ms(1000);
    expect(measure("a second after one was killed:", even(), 4000), "the shares are not even");
    start_worker(2);
    sleep_ms(1000);
    expect(measure("a second after it came back:", even(), 4000), "the shares are not even");
    drain_worker(5);
    sleep_ms(1000);
    expect(measure("a second after one drained:", even(), 4000), "the shares are not even");
    replace_worker(6);
    sleep_ms(1000);
    expect(measure("a second after one was replaced:", even(), 4000), "the shares are not even");
    start_worker(WORKERS);
    start_worker(WORKERS + 1);
    sleep_ms(1000);
    expect(measure("a second after two were added:", even(), 4000), "the shares are not even");
    expect_none_lost("changes");
    end();
}

static void weights(void)
{
    for (int i = 0; i < PACES; i++) {
        char what[64];
        struct setup setup = {.workers = 3, .weights = {3, 1, 1}, .at_once = paces[i].at_once,
                              .pause = paces[i].pause};
        start(3, &setup);
        await_ready(3);
        shared->limit = 20000;
        snprintf(what, sizeof what, "weights 3:1:1, up to %d at once:", setup.at_once);
        expect(measure(what, setup.weights, 20000), "the shares are not those of the weights");
        expect_none_lost(what);
        end();
    }
}

static void backup(void)
{
    struct setup setup = {.workers = 3, .weights = {1, 1, 1}, .at_once = 16, .pause = MS,
                          .attempt_timeout_ms = ATTEMPT_MS};
    setup.flags[2] = HANDOFF_BACKEND_BACKUP;
    start(3, &setup);
    await_ready(3);
    shared->limit = UINT64_MAX / 2;
    static const uint32_t others[MOST_WORKERS] = {1, 1}, last[MOST_WORKERS] = {0, 1},
                          only[MOST_WORKERS] = {0, 0, 1};
    expect(measure("two and a backup:", others, 2000), "the backup had clients");
    kill_worker(0);
    expect(measure("one and a backup:", last, 2000), "the backup had clients");
    kill_worker(1);
    expect(measure("a backup alone:", only, 2000), "the backup did not have all clients");
    start_worker(0);
    start_worker(1);
    await_ready(3);
    sleep_ms(1000);
    expect(measure("a second after the two came back:", others, 2000), "the backup had clients");
    expect_none_lost("backup");
    end();
}

static const struct {
    const char *name;
    void (*run)(void);
} parts[] = {
    {"balance", balance}, {"stopped", stopped}, {"changes", changes},
    {"weights", weights}, {"backup", backup},
};
enum { PARTS = sizeof parts / sizeof *parts };

static void remove_sockets(void)
{
    char path[64];
    if (getpid() != driver)
        return;
    for (int i = 0; i < MOST_WORKERS; i++) {
        socket_path(path, i);
        unlink(path);
    }
    rmdir(directory);
}

static void end_by_child(int number)
{
    (void)number;
    exit(1);
}

int main(int argc, char **argv)
{
    if (getenv("SPREAD_OFFERS") != NULL)
        offers = strtoull(getenv("SPREAD_OFFERS"), NULL, 10);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(shared != MAP_FAILED);
    setvbuf(stdout, NULL, _IOLBF, 0);
    driver = getpid();
    check(mkdtemp(directory) != NULL);
    sigemptyset(&terminate);
    sigaddset(&terminate, SIGTERM);
    signal(SIGTERM, end_by_child);
    atexit(remove_sockets);
    for (int i = 0; i < PARTS; i++) {
        bool wanted = argc == 1;
        for (int k = 1; k < argc; k++)
            wanted |= strcmp(argv[k], parts[i].name) == 0;
        if (wanted)
            parts[i].run();
    }
    return good ? 0 : 1;
}
