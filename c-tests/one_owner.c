/*
 * one_owner.c: every connection has exactly one owner, whatever is killed, stopped or restarted.
 *
 * The driver is all the clients. It starts brokers and backends as processes of their own and lets
 * accidents happen to them. Whoever owns a connection reads the rest of the request, answers with its
 * name and closes; a client reads until the end: one whole answer is right, two are two owners, none
 * is a lost connection unless the process that owned it was killed. Who that was is in records that all processes share:
 * each writes what it is about to do, or has been told, before it goes on.
 *
 *   one_owner [--tls] [delays | backends | broker | fleet | without-claim | fleet-without-claim]...
 *
 * The first four are parts, all of them by default; the last two are for a library that was built
 * without the claim, and succeed if two owners are found. In the first three a broker has handles of
 * one backend each. In the others, of two brokers one has the directory of four backends, and the
 * other one adds and removes the same four; a backend has half of the time to adopt that it takes
 * at most, and then the next one has the offer.
 *
 * With --tls the clients speak TLS by OpenSSL alone, TLS 1.2 and 1.3 in turns; brokers have it done
 * by the kernel, and hand that over. Only where there is kernel TLS: c-tests/tls/tests.mk.
 *
 * ONE_OWNER_CONNECTIONS (20000) in each part, ONE_OWNER_PER_SECOND (20000) new ones but at most
 * ONE_OWNER_AT_ONCE (400) open; ONE_OWNER_DEADLINE_MS (5) for each offer to a backend, and backends
 * adopt after 0 to twice as long; ONE_OWNER_ACCIDENT_MS (six deadlines) is the longest time between
 * two accidents. Where the machine is so slow that one side nearly always
 * wins, a part is repeated with twice the deadline.
 */
#define _GNU_SOURCE
#include "libc.h"
#include "one_owner.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { MOST_DEADLINE_MS = 200 };

struct record *records;
struct counts *counts;
uint32_t connections, deadline_ms;
int backends, rest_ms;
pid_t driver;
sigset_t terminate;
char directory[] = "/tmp/handoff-one-owner-XXXXXX";
struct sockaddr_in address;
int epoll;
uint32_t brokers_killed;

static uint32_t at_once, per_second, accident_ms;

/** A child that ends like this is noticed by the driver, and with the driver end all children. */
void fail(const char *condition, const char *file, int line)
{
    fprintf(stderr, "%s:%d: %s: %s: %s\n", file, line, condition, strerror(errno),
            handoff_last_error());
    if (getpid() != driver)
        _exit(1);
    exit(1);
}

int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 * MS + time.tv_nsec;
}

int64_t any_time(int64_t most)
{
    return (int64_t)((double)most * drand48());
}

struct request request_of(uint32_t number)
{
    return (struct request){number, ~number};
}

size_t answer_of(char answer[64], const char *owner, uint32_t number)
{
    return (size_t)snprintf(answer, 64, "%s of %u\n", owner, number);
}

void socket_path(char path[64], int which)
{
    snprintf(path, 64, "%s/%d", directory, which);
}

/** The parts: how many brokers and backends there are, and to which of them accidents happen. */
static const struct part {
    const char *name;
    int brokers, backends;
    bool backends_have_accidents, brokers_have_accidents, without_claim;
} parts[] = {
    {"delays", 1, 2, false, false, false},
    {"backends", 1, 2, true, false, false},
    {"broker", 1, 2, true, true, false},
    {"fleet", 2, MOST_BACKENDS, true, true, false},
    {"without-claim", 1, 2, false, false, true},
    {"fleet-without-claim", 2, MOST_BACKENDS, false, false, true},
};
enum { PARTS = sizeof parts / sizeof *parts };

/** The one that runs. */
static const struct part *part;

/* ---- the driver: processes and what happens to them ------------------------------------------ */

/* The backends, the brokers, and backends that drain while their successors serve already. */
enum { BROKER = MOST_BACKENDS, LEAVING = BROKER + 2, PROCESSES = LEAVING + 8 };
enum state { NONE, RUNNING, STOPPED, KILLED, RESTARTING };

/** A broker or a backend, and each successor. */
struct process {
    pid_t pid;
    int pidfd;
    uint32_t number;
    enum state state;
    int64_t continue_at;
};

static struct process processes[PROCESSES];
static bool was_killed[MAX_PROCESSES];
static uint32_t last_process;
static int listener;

/** What came of one part. */
struct result {
    unsigned broker, backend, owner_killed, twice, unanswered;
    unsigned kills, stops, restarts, replaced, failed_over;
};

void watch(int operation, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    check(epoll_ctl(epoll, operation, fd, &event) == 0);
}

static void start(int which)
{
    static int generations[MOST_BACKENDS];
    struct process *process = &processes[which];
    process->number = ++last_process;
    check(process->number < MAX_PROCESSES);
    process->state = RUNNING;
    int place = which < BROKER ? 2 * which + generations[which]++ % 2 : 0;
    /* Blocked in a backend from its first moment on: it asks for the signal when it is ready. */
    sigprocmask(SIG_BLOCK, &terminate, NULL);
    process->pid = fork();
    check(process->pid >= 0);
    if (process->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != driver)
            _exit(1);
        srand48(now() ^ process->number);
        /* The clients' ends are the driver's alone. */
        check(dup2(listener, 3) == 3 && close_all_from(4) == 0);
        if (which >= BROKER)
            run_broker(3, process->number,
                       part->brokers == 1 ? ONE_EACH : which == BROKER ? DIRECTORY : ADDED);
        close(3);
        run_backend(which, process->number, place);
    }
    sigprocmask(SIG_UNBLOCK, &terminate, NULL);
    process->pidfd = open_process(process->pid);
    check(process->pidfd >= 0);
    watch(EPOLL_CTL_ADD, process->pidfd, EPOLLIN, MAX_AT_ONCE + (uint64_t)which);
}

/** Takes leave of a process that has ended, which must be as it was told to end. */
static void reap(struct process *process)
{
    int status;
    check(waitpid(process->pid, &status, 0) == process->pid);
    check(epoll_ctl(epoll, EPOLL_CTL_DEL, process->pidfd, NULL) == 0);
    close(process->pidfd);
    check(process->state == RESTARTING ? WIFEXITED(status) && WEXITSTATUS(status) == 0
                                       : process->state == KILLED);
    process->state = NONE;
}

static void kill_process(struct process *process)
{
    process->state = KILLED;
    check(kill(process->pid, SIGKILL) == 0);
}

static bool restart(struct process *process)
{
    process->state = RESTARTING;
    check(kill(process->pid, SIGTERM) == 0);
    return true;
}

/** Lets a backend drain and starts its successor at once. */
static bool replace(int which)
{
    int place = LEAVING;
    while (place < PROCESSES && processes[place].state != NONE)
        place++;
    if (place == PROCESSES)
        return false;
    restart(&processes[which]);
    processes[place] = processes[which];
    watch(EPOLL_CTL_MOD, processes[place].pidfd, EPOLLIN, MAX_AT_ONCE + (uint64_t)place);
    start(which);
    return true;
}

/** Lets something happen to one of the processes, unless something just did. */
static void have_an_accident(struct result *result)
{
    /* Less often a broker: without one nothing is handed over. */
    bool broker = part->brokers_have_accidents && lrand48() % 5 == 0;
    int which = broker ? BROKER + (int)(lrand48() % part->brokers)
                       : (int)(lrand48() % part->backends);
    struct process *process = &processes[which];
    long kind = broker ? 0 : lrand48() % (part->backends == MOST_BACKENDS ? 4 : 3);
    if (process->state != RUNNING)
        return;
    if (kind == 0) {
        was_killed[process->number] = true;
        brokers_killed += broker;
        kill_process(process);
        result->kills++;
    } else if (kind == 1) {
        process->state = STOPPED;
        process->continue_at = now() + any_time(4 * deadline_ms * MS);
        check(kill(process->pid, SIGSTOP) == 0);
        result->stops++;
    } else if (kind == 2) {
        result->restarts += restart(process);
    } else {
        result->replaced += replace(which);
    }
}

static void continue_stopped(void)
{
    for (int i = 0; i < part->backends; i++) {
        if (processes[i].state == STOPPED && processes[i].continue_at <= now()) {
            processes[i].state = RUNNING;
            check(kill(processes[i].pid, SIGCONT) == 0);
        }
    }
}

/* ---- the driver: a part, and the whole ------------------------------------------------------- */

/** Of a client without an answer: whether whoever owned it was killed before it could answer. */
static bool was_owner_killed(const struct record *record, enum answer answer)
{
    if (record->broker == 0)
        return answer == BROKER_KILLED;
    if (record->adopted || record->fallback)
        return was_killed[record->adopted ? record->adopted : record->broker];
    /* One of those that were about to adopt it has, or none and the broker still had it. */
    bool killed = was_killed[record->broker];
    for (size_t i = 0; i < sizeof record->adopters / sizeof *record->adopters; i++)
        killed |= was_killed[record->adopters[i]];
    return killed;
}

/** What is to be said of a connection, once all processes have ended. */
static void judge(uint32_t number, enum answer answer, struct result *result)
{
    const struct record *record = &records[number];
    if (answer == TWICE || (record->fallback && record->adopted) || record->again) {
        result->twice++;
        return;
    }
    if (answer == BY_BROKER || answer == BY_BACKEND) {
        *(answer == BY_BROKER ? &result->broker : &result->backend) += 1;
        return;
    }
    bool owner_killed = was_owner_killed(record, answer);
    *(owner_killed ? &result->owner_killed : &result->unanswered) += 1;
    if (!owner_killed)
        fprintf(stderr, "connection %u: broker %u, adopted %u, fallback %u\n", number,
                record->broker, record->adopted, record->fallback);
}

static void start_all(void)
{
    for (int i = 0; i < part->backends; i++)
        start(i);
    for (int i = 0; i < part->brokers; i++)
        start(BROKER + i);
}

static void kill_all(void)
{
    for (int i = 0; i < PROCESSES; i++) {
        if (processes[i].state == NONE)
            continue;
        kill_process(&processes[i]);
        reap(&processes[i]);
    }
}

/** Runs all connections. */
static struct result run_part(void)
{
    struct result result = {0};
    enum answer *answers = calloc(connections, sizeof *answers);
    check(answers != NULL);
    for (uint32_t i = 0; i < connections; i++)
        answers[i] = UNANSWERED;
    memset(records, 0, connections * sizeof *records);
    memset(counts, 0, sizeof *counts);
    brokers_killed = 0;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    check(epoll >= 0);
    start_all();

    uint32_t begun = 0, finished = 0, idle[MAX_AT_ONCE], idle_len = 0;
    for (; idle_len < at_once; idle_len++)
        idle[idle_len] = idle_len;
    int64_t start_at = now(), accident_at = start_at, patience = start_at + PATIENCE_MS * MS;
    while (finished < connections && now() < patience) {
        /* At a pace, or most connections would come while a backend is away. */
        int64_t due = (now() - start_at) / MS * per_second / 1000;
        while (idle_len > 0 && begun < connections && begun < due)
            client_begin(idle[--idle_len], begun++);
        struct epoll_event events[64];
        int count = epoll_wait(epoll, events, 64, 1);
        check(count >= 0);
        for (int i = 0; i < count; i++) {
            uint32_t place = (uint32_t)events[i].data.u64;
            if (place >= MAX_AT_ONCE) {
                int which = (int)place - MAX_AT_ONCE;
                reap(&processes[which]);
                if (which < LEAVING)
                    start(which);
            } else if (client_proceed(place, events[i].events)) {
                answers[client_number(place)] = client_finish(place);
                finished++;
                patience = now() + PATIENCE_MS * MS;
                idle[idle_len++] = place;
            }
        }
        if (part->backends_have_accidents && accident_at <= now()) {
            have_an_accident(&result);
            accident_at = now() + any_time((accident_ms ? accident_ms : 6 * deadline_ms) * MS);
        }
        continue_stopped();
    }
    kill_all();
    /* Clients that nobody has closed stay open: the run has failed. */
    for (uint32_t i = 0; i < connections; i++)
        judge(i, answers[i], &result);
    result.failed_over = counts->failed_over;
    close(epoll);
    free(answers);
    return result;
}

static void print(const struct result *result)
{
    printf("%-19s %11u %9u %10u %12u %5u %10u %5u %5u %8u %8u %11u\n", part->name, connections,
           result->broker, result->backend, result->owner_killed, result->twice,
           result->unanswered, result->kills, result->stops, result->restarts, result->replaced,
           result->failed_over);
    fflush(stdout);
}

/** Whether there was enough of everything for the result to mean something. */
static bool shows_something(const struct result *result)
{
    if (part->without_claim)
        return result->twice > 0;
    bool accidents = part->backends_have_accidents, fleet = part->backends == MOST_BACKENDS;
    uint32_t least = accidents ? 1 : connections / 20;
    bool both_win = result->broker >= least && result->backend >= least;
    bool all_happened = result->kills > 0 && result->stops > 0 && result->restarts > 0
        && (!part->brokers_have_accidents || brokers_killed > 0)
        && (!fleet || (result->replaced > 0 && result->failed_over > 0));
    return both_win && (!accidents || all_happened);
}

static bool run(const struct part *chosen)
{
    uint32_t first_deadline_ms = deadline_ms;
    part = chosen;
    backends = part->backends;
    /* Of two owners one finds nothing: it need not look for long. */
    rest_ms = part->without_claim ? 20 : PATIENCE_MS;
    for (;; deadline_ms *= 2) {
        struct result result = run_part();
        print(&result);
        if (!part->without_claim && (result.twice > 0 || result.unanswered > 0))
            return false;
        if (shows_something(&result))
            break;
        if (deadline_ms > MOST_DEADLINE_MS / 2) {
            fprintf(stderr, "one_owner: %s shows nothing, whatever the deadline\n", part->name);
            return false;
        }
        fprintf(stderr, "one_owner: %s shows nothing with a deadline of %u ms: again with %u\n",
                part->name, deadline_ms, 2 * deadline_ms);
    }
    deadline_ms = first_deadline_ms;
    return true;
}

static const struct part *find_part(const char *name)
{
    for (int i = 0; i < PARTS; i++) {
        if (strcmp(name, parts[i].name) == 0)
            return &parts[i];
    }
    fprintf(stderr, "usage: one_owner [--tls] [delays | backends | broker | fleet | without-claim |"
                    " fleet-without-claim]...\n");
    exit(2);
}

static uint32_t number(const char *name, uint32_t otherwise, uint32_t most)
{
    const char *value = getenv(name);
    unsigned long number = value ? strtoul(value, NULL, 10) : otherwise;
    if ((value && number < 1) || number > most) {
        fprintf(stderr, "%s is not from 1 to %u\n", name, most);
        exit(2);
    }
    return (uint32_t)number;
}

static void remove_sockets(void)
{
    char path[64];
    for (int i = 0; i < MOST_BACKENDS; i++) {
        socket_path(path, i);
        unlink(path);
    }
    rmdir(directory);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--tls") == 0) {
        tls = true;
        argc--;
        argv++;
    }
    connections = number("ONE_OWNER_CONNECTIONS", 20000, 100000000);
    at_once = number("ONE_OWNER_AT_ONCE", 400, MAX_AT_ONCE);
    per_second = number("ONE_OWNER_PER_SECOND", 20000, 1000000);
    deadline_ms = number("ONE_OWNER_DEADLINE_MS", 5, MOST_DEADLINE_MS);
    accident_ms = number("ONE_OWNER_ACCIDENT_MS", 0, 60000);

    records = mmap(NULL, connections * sizeof *records, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    counts = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(records != MAP_FAILED && counts != MAP_FAILED);
    check(mkdtemp(directory) != NULL);
    driver = getpid();
    sigemptyset(&terminate);
    sigaddset(&terminate, SIGTERM);
    atexit(remove_sockets);
    srand48(now());
    if (tls) {
        /* Where OpenSSL writes to a client whose broker was killed. */
        signal(SIGPIPE, SIG_IGN);
        tls_prepare();
    }

    /* The driver's, so that clients that nobody has accepted outlive every broker. */
    socklen_t len = sizeof address;
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int seconds = PATIENCE_MS / 1000;
    check(listener >= 0 && bind(listener, (struct sockaddr *)&address, len) == 0);
    /* A connection is accepted when its request is there, so that a broker knows what it has; with
       TLS, when it has begun. */
    check(setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds) == 0);
    check(listen(listener, 4096) == 0);
    check(getsockname(listener, (struct sockaddr *)&address, &len) == 0);

    printf("%-19s %11s %9s %10s %12s %5s %10s %5s %5s %8s %8s %11s\n", "", "connections",
           "by broker", "by backend", "owner killed", "twice", "unanswered", "kills", "stops",
           "restarts", "replaced", "failed over");
    bool good = true;
    for (int i = 0; argc == 1 && i < PARTS; i++)
        good &= parts[i].without_claim || run(&parts[i]);
    for (int i = 1; i < argc; i++)
        good &= run(find_part(argv[i]));
    return good ? 0 : 1;
}
