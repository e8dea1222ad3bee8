/*
 * one_owner.c: every connection has exactly one owner, whatever is killed, stopped or restarted.
 *
 * The driver is all the clients. It starts a broker and some backends as processes of their own and
 * lets accidents happen to them. Whoever owns a connection answers with its name and closes; a
 * client reads until the end: one whole answer is right, two are two owners, none is a lost
 * connection unless the process that owned it was killed. Who that was is in records that all
 * processes share: each writes what it is about to do, or has been told, before it goes on.
 *
 *   one_owner [delays | backends | broker | without-claim]...
 *
 * The first three are parts, all of them by default; the last one is for a library that was built
 * without the claim, and succeeds if two owners are found.
 *
 * ONE_OWNER_CONNECTIONS (20000) in each part, ONE_OWNER_PER_MS (20) new ones in a millisecond but
 * at most ONE_OWNER_AT_ONCE (400) open; ONE_OWNER_DEADLINE_MS (5) for each offer, and backends
 * adopt after 0 to twice as long. Where the machine is so slow that one side nearly always wins, a
 * part is repeated with twice the deadline.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <handoff.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BACKENDS = 2, MAX_AT_ONCE = 4096, MAX_PROCESSES = 1 << 16 };
enum { PATIENCE_MS = 60000, MOST_DEADLINE_MS = 200 };

#define MS INT64_C(1000000)

/** What is known of one connection. Processes are named by their numbers, which begin with 1. */
struct record {
    _Atomic uint32_t broker;   /* has read the connection's number */
    _Atomic uint32_t adopter;  /* has begun to adopt it, and was not refused */
    _Atomic uint32_t adopted;  /* has been told that it owns it */
    _Atomic uint32_t fallback; /* the broker has been told that it owns it */
};

static struct record *records;
static uint32_t connections, at_once, per_ms, deadline_ms;
static pid_t driver;
static sigset_t terminate;
static char directory[] = "/tmp/handoff-one-owner-XXXXXX";

#define check(condition) ((condition) ? (void)0 : fail(#condition, __LINE__))

/** A child that ends like this is noticed by the driver, and with the driver end all children. */
static _Noreturn void fail(const char *condition, int line)
{
    fprintf(stderr, "one_owner.c:%d: %s: %s: %s\n", line, condition, strerror(errno),
            handoff_last_error());
    if (getpid() != driver)
        _exit(1);
    exit(1);
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 * MS + time.tv_nsec;
}

/** From 0 to `most` nanoseconds. */
static int64_t any_time(int64_t most)
{
    return (int64_t)((double)most * drand48());
}

static void answer(int fd, const char *text)
{
    check(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

static void socket_path(char path[64], int which)
{
    snprintf(path, 64, "%s/%d", directory, which);
}

/* ---- the broker ------------------------------------------------------------------------------ */

static void fall_back(uint32_t number, int fd)
{
    records[number].fallback = 1;
    answer(fd, "broker\n");
}

static void offer(handoff_broker *broker, int fd, uint32_t me)
{
    uint32_t number;
    check(read(fd, &number, sizeof number) == sizeof number && number < connections);
    records[number].broker = me;

    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = fd;
    offer.flags = HANDOFF_OFFER_MORE;
    offer.preread = &number;
    offer.preread_len = sizeof number;
    offer.user_data = (void *)((uintptr_t)number << 16 | (unsigned)fd);
    handoff_status status = handoff_broker_offer(broker, &offer, NULL);
    check(status == HANDOFF_OK || handoff_status_is_fallback_safe(status));
    if (status != HANDOFF_OK)
        fall_back(number, fd);
}

static void take_verdicts(handoff_broker *broker)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_status status;
    check(handoff_broker_dispatch(broker) == HANDOFF_OK);
    while ((status = handoff_broker_next(broker, &verdict)) == HANDOFF_OK) {
        int fd = (uintptr_t)verdict.user_data & 0xffff;
        if (verdict.outcome == HANDOFF_ADOPTED)
            close(fd);
        else
            fall_back((uint32_t)((uintptr_t)verdict.user_data >> 16), fd);
    }
    check(status == HANDOFF_NOTHING);
}

static _Noreturn void run_broker(int listener, uint32_t me)
{
    handoff_broker *brokers[BACKENDS];
    struct pollfd events[BACKENDS + 1];
    for (int i = 0; i < BACKENDS; i++) {
        handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
        options.timeout_ms = deadline_ms;
        options.reconnect_min_ms = 1;
        options.reconnect_max_ms = 5;
        /* Failures are what this is about: they must not keep it from trying. */
        options.max_failures = HANDOFF_NO_LIMIT;
        char path[64];
        socket_path(path, i);
        check(handoff_broker_new(path, &options, &brokers[i]) == HANDOFF_OK);
        events[i] = (struct pollfd){.fd = handoff_broker_fd(brokers[i]), .events = POLLIN};
    }
    events[BACKENDS] = (struct pollfd){.fd = listener, .events = POLLIN};
    for (unsigned turn = 0;;) {
        check(poll(events, BACKENDS + 1, -1) > 0);
        int client;
        while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
            offer(brokers[turn++ % BACKENDS], client, me);
        check(errno == EAGAIN);
        for (int i = 0; i < BACKENDS; i++)
            take_verdicts(brokers[i]);
    }
}

/* ---- a backend ------------------------------------------------------------------------------- */

/** An arrival until it is adopted, then a connection until it is answered. */
struct held {
    uint64_t id;
    int64_t due;
    int fd;
    uint32_t number;
};

/** Does what is due; returns whether there is more to do later. */
static bool go_on(handoff_backend *backend, struct held *held, uint32_t me)
{
    struct record *record = &records[held->number];
    if (held->fd >= 0) {
        answer(held->fd, "backend\n");
        return false;
    }
    record->adopter = me;
    handoff_status status = handoff_backend_adopt(backend, held->id, &held->fd);
    if (status == HANDOFF_ERR_TAKEN_BACK) {
        record->adopter = 0;
        return false;
    }
    check(status == HANDOFF_OK);
    record->adopted = me;
    held->due += any_time(MS);
    return true;
}

static _Noreturn void run_backend(int which, uint32_t me)
{
    static struct held held[MAX_AT_ONCE];
    uint32_t count = 0;
    char path[64];
    socket_path(path, which);
    handoff_backend *backend;
    check(handoff_backend_listen(path, NULL, &backend) == HANDOFF_OK);
    struct pollfd events[2] = {
        {.fd = handoff_backend_fd(backend), .events = POLLIN},
        {.fd = signalfd(-1, &terminate, 0), .events = POLLIN},
    };

    for (bool draining = false;;) {
        int64_t time = now(), next = time + 999 * MS;
        for (uint32_t i = 0; i < count;) {
            if (held[i].due <= time && !go_on(backend, &held[i], me)) {
                held[i] = held[--count];
                continue;
            }
            if (held[i].due < next)
                next = held[i].due;
            i++;
        }
        handoff_backend_statistics statistics = HANDOFF_BACKEND_STATISTICS_INIT;
        check(handoff_backend_get_statistics(backend, &statistics) == HANDOFF_OK);
        if (draining && count == 0 && statistics.held == 0)
            break;
        int64_t left = next - now();
        struct timespec timeout = {.tv_nsec = left > 0 ? left : 0};
        check(ppoll(events, 2, &timeout, NULL) >= 0);
        if (events[1].revents) {
            check(handoff_backend_drain(backend) == HANDOFF_OK);
            draining = true;
            events[1].fd = -1;
        }
        check(handoff_backend_dispatch(backend) == HANDOFF_OK);
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        handoff_status status;
        while ((status = handoff_backend_next(backend, &arrival)) == HANDOFF_OK) {
            struct held *new = &held[count++];
            check(count <= at_once && arrival.preread_len == sizeof new->number);
            memcpy(&new->number, arrival.preread, sizeof new->number);
            new->id = arrival.id;
            new->fd = -1;
            new->due = now() + any_time(2 * deadline_ms * MS);
        }
        check(status == HANDOFF_NOTHING);
    }
    handoff_backend_free(backend);
    _exit(0);
}

/* ---- the driver: processes and what happens to them ------------------------------------------ */

enum { BROKER = BACKENDS, PROCESSES };
enum state { RUNNING, STOPPED, KILLED, RESTARTING };

/** The broker or a backend, and each successor. */
struct process {
    pid_t pid;
    int pidfd;
    uint32_t number;
    enum state state;
    int64_t continue_at;
};

static struct process processes[PROCESSES];
static bool was_killed[MAX_PROCESSES];
static uint32_t last_process, brokers_killed;
static int listener, epoll;

/** What came of one part. */
struct result {
    unsigned broker, backend, owner_killed, twice, unanswered;
    unsigned kills, stops, restarts;
};

static void watch(int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

static void start(int which)
{
    struct process *process = &processes[which];
    process->number = ++last_process;
    check(process->number < MAX_PROCESSES);
    process->state = RUNNING;
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
        check(dup2(listener, 3) == 3 && close_range(4, ~0U, 0) == 0);
        if (which == BROKER)
            run_broker(3, process->number);
        close(3);
        run_backend(which, process->number);
    }
    sigprocmask(SIG_UNBLOCK, &terminate, NULL);
    process->pidfd = pidfd_open(process->pid, 0);
    check(process->pidfd >= 0);
    watch(process->pidfd, EPOLLIN, MAX_AT_ONCE + (uint64_t)which);
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
}

static void kill_process(struct process *process)
{
    process->state = KILLED;
    check(kill(process->pid, SIGKILL) == 0);
}

/** Lets something happen to one of the first `count` processes, unless something just did. */
static void have_an_accident(int count, struct result *result)
{
    /* Less often the broker: without one nothing is handed over. */
    bool broker = count > BROKER && lrand48() % 5 == 0;
    int which = broker ? BROKER : (int)(lrand48() % BACKENDS);
    struct process *process = &processes[which];
    long kind = broker ? 0 : lrand48() % 3;
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
    } else {
        process->state = RESTARTING;
        check(kill(process->pid, SIGTERM) == 0);
        result->restarts++;
    }
}

static void continue_stopped(void)
{
    for (int i = 0; i < BACKENDS; i++) {
        if (processes[i].state == STOPPED && processes[i].continue_at <= now()) {
            processes[i].state = RUNNING;
            check(kill(processes[i].pid, SIGCONT) == 0);
        }
    }
}

/* ---- the driver: clients --------------------------------------------------------------------- */

struct client {
    int fd;
    uint32_t number;
    uint32_t brokers_killed; /* when it connected */
    size_t len;
    char answer[64];
};

enum answer { BY_BROKER, BY_BACKEND, UNANSWERED, BROKER_KILLED, TWICE };

static struct sockaddr_in address;
static struct client clients[MAX_AT_ONCE];

static void begin(uint32_t place, uint32_t number)
{
    struct client *client = &clients[place];
    client->number = number;
    client->brokers_killed = brokers_killed;
    client->len = 0;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    check(client->fd >= 0);
    /* Closing resets what is left of the connection, which would wait for a minute otherwise. */
    struct linger reset = {.l_onoff = 1};
    check(setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset) == 0);
    check(connect(client->fd, (struct sockaddr *)&address, sizeof address) == 0
          || errno == EINPROGRESS);
    watch(client->fd, EPOLLOUT, place);
}

/** Sends the number once there is a connection, and reads after that. Returns whether it has come
    to its end. */
static bool proceed(uint32_t place, uint32_t events)
{
    struct client *client = &clients[place];
    if (events & EPOLLOUT) {
        struct epoll_event reading = {.events = EPOLLIN, .data.u64 = place};
        check(epoll_ctl(epoll, EPOLL_CTL_MOD, client->fd, &reading) == 0);
        /* Fails if the broker was killed by now, as reading will. */
        send(client->fd, &client->number, sizeof client->number, MSG_NOSIGNAL);
        return false;
    }
    for (;;) {
        ssize_t len = read(client->fd, client->answer + client->len,
                           sizeof client->answer - client->len);
        if (len < 0 && errno == EAGAIN)
            return false;
        if (len <= 0)
            return true;
        client->len += (size_t)len;
        check(client->len < sizeof client->answer);
    }
}

static enum answer finish(struct client *client)
{
    /* Not left to close: a child that was just made may hold a copy. */
    check(epoll_ctl(epoll, EPOLL_CTL_DEL, client->fd, NULL) == 0);
    close(client->fd);
    client->answer[client->len] = '\0';
    if (strcmp(client->answer, "broker\n") == 0)
        return BY_BROKER;
    if (strcmp(client->answer, "backend\n") == 0)
        return BY_BACKEND;
    if (client->len > 0)
        return TWICE;
    /* The owner, if a broker was killed between accepting it and saying so. */
    return client->brokers_killed < brokers_killed ? BROKER_KILLED : UNANSWERED;
}

/* ---- the driver: a part, and the whole ------------------------------------------------------- */

/** What is to be said of a connection, once all processes have ended. */
static void judge(uint32_t number, enum answer answer, struct result *result)
{
    const struct record *record = &records[number];
    if (answer == TWICE || (record->fallback && record->adopted)) {
        result->twice++;
        return;
    }
    if (answer == BY_BROKER || answer == BY_BACKEND) {
        *(answer == BY_BROKER ? &result->broker : &result->backend) += 1;
        return;
    }
    uint32_t owner = record->adopter && !record->fallback ? record->adopter : record->broker;
    bool owner_killed = owner ? was_killed[owner] : answer == BROKER_KILLED;
    *(owner_killed ? &result->owner_killed : &result->unanswered) += 1;
    if (!owner_killed)
        fprintf(stderr, "connection %u: broker %u, adopter %u, adopted %u, fallback %u\n", number,
                record->broker, record->adopter, record->adopted, record->fallback);
}

/** Runs all connections against processes of which the first `accidents` are not safe. */
static struct result run_part(int accidents)
{
    struct result result = {0};
    enum answer *answers = calloc(connections, sizeof *answers);
    check(answers != NULL);
    for (uint32_t i = 0; i < connections; i++)
        answers[i] = UNANSWERED;
    memset(records, 0, connections * sizeof *records);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    check(epoll >= 0);
    for (int i = 0; i < PROCESSES; i++)
        start(i);

    uint32_t begun = 0, finished = 0, idle[MAX_AT_ONCE], idle_len = 0;
    for (; idle_len < at_once; idle_len++)
        idle[idle_len] = idle_len;
    int64_t start_at = now(), accident_at = start_at, patience = start_at + PATIENCE_MS * MS;
    while (finished < connections && now() < patience) {
        /* At a pace, or most connections would come while a backend is away. */
        int64_t due = (now() - start_at) / MS * per_ms;
        while (idle_len > 0 && begun < connections && begun < due)
            begin(idle[--idle_len], begun++);
        struct epoll_event events[64];
        int count = epoll_wait(epoll, events, 64, 1);
        check(count >= 0);
        for (int i = 0; i < count; i++) {
            uint32_t place = (uint32_t)events[i].data.u64;
            if (place >= MAX_AT_ONCE) {
                reap(&processes[place - MAX_AT_ONCE]);
                start((int)place - MAX_AT_ONCE);
            } else if (proceed(place, events[i].events)) {
                answers[clients[place].number] = finish(&clients[place]);
                finished++;
                patience = now() + PATIENCE_MS * MS;
                idle[idle_len++] = place;
            }
        }
        if (accidents > 0 && accident_at <= now()) {
            have_an_accident(accidents, &result);
            accident_at = now() + any_time(6 * deadline_ms * MS);
        }
        continue_stopped();
    }
    for (int i = 0; i < PROCESSES; i++) {
        kill_process(&processes[i]);
        reap(&processes[i]);
    }
    /* Clients that nobody has closed stay open: the run has failed. */
    for (uint32_t i = 0; i < connections; i++)
        judge(i, answers[i], &result);
    close(epoll);
    free(answers);
    return result;
}

static void print(const char *name, const struct result *result)
{
    printf("%-14s %11u %9u %9u %12u %6u %10u %6u %6u %8u\n", name, connections, result->broker,
           result->backend, result->owner_killed, result->twice, result->unanswered, result->kills,
           result->stops, result->restarts);
    fflush(stdout);
}

/** The parts, and how many of the processes have accidents in each. */
static const struct part {
    const char *name;
    int accidents;
} parts[] = {
    {"delays", 0},
    {"backends", BACKENDS},
    {"broker", PROCESSES},
    {"without-claim", 0},
};
enum { WITHOUT_CLAIM = 3, PARTS };

/** Whether there was enough of everything for the result to mean something. */
static bool shows_something(int part, const struct result *result)
{
    if (part == WITHOUT_CLAIM)
        return result->twice > 0;
    bool accidents = parts[part].accidents > 0;
    uint32_t least = accidents ? 1 : connections / 20;
    bool both_win = result->broker >= least && result->backend >= least;
    bool all_happened = result->kills > 0 && result->stops > 0 && result->restarts > 0
        && (parts[part].accidents <= BROKER || brokers_killed > 0);
    return both_win && (!accidents || all_happened);
}

static bool run(int part)
{
    uint32_t first_deadline_ms = deadline_ms;
    for (;; deadline_ms *= 2) {
        struct result result = run_part(parts[part].accidents);
        print(parts[part].name, &result);
        if (part != WITHOUT_CLAIM && (result.twice > 0 || result.unanswered > 0))
            return false;
        if (shows_something(part, &result))
            break;
        if (deadline_ms > MOST_DEADLINE_MS / 2) {
            fprintf(stderr, "one_owner: %s shows nothing, whatever the deadline\n",
                    parts[part].name);
            return false;
        }
        fprintf(stderr, "one_owner: %s shows nothing with a deadline of %u ms: again with %u\n",
                parts[part].name, deadline_ms, 2 * deadline_ms);
    }
    deadline_ms = first_deadline_ms;
    return true;
}

static int find_part(const char *name)
{
    for (int part = 0; part < PARTS; part++) {
        if (strcmp(name, parts[part].name) == 0)
            return part;
    }
    fprintf(stderr, "usage: one_owner [delays | backends | broker | without-claim]...\n");
    exit(2);
}

static uint32_t number(const char *name, uint32_t otherwise, uint32_t most)
{
    const char *value = getenv(name);
    unsigned long number = value ? strtoul(value, NULL, 10) : otherwise;
    if (number < 1 || number > most) {
        fprintf(stderr, "%s is not from 1 to %u\n", name, most);
        exit(2);
    }
    return (uint32_t)number;
}

static void remove_sockets(void)
{
    char path[64];
    for (int i = 0; i < BACKENDS; i++) {
        socket_path(path, i);
        unlink(path);
    }
    rmdir(directory);
}

int main(int argc, char **argv)
{
    connections = number("ONE_OWNER_CONNECTIONS", 20000, 100000000);
    at_once = number("ONE_OWNER_AT_ONCE", 400, MAX_AT_ONCE);
    per_ms = number("ONE_OWNER_PER_MS", 20, 1000);
    deadline_ms = number("ONE_OWNER_DEADLINE_MS", 5, MOST_DEADLINE_MS);

    records = mmap(NULL, connections * sizeof *records, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(records != MAP_FAILED);
    check(mkdtemp(directory) != NULL);
    driver = getpid();
    sigemptyset(&terminate);
    sigaddset(&terminate, SIGTERM);
    atexit(remove_sockets);
    srand48(now());

    /* The driver's, so that clients that nobody has accepted outlive every broker. */
    socklen_t len = sizeof address;
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int seconds = PATIENCE_MS / 1000;
    check(listener >= 0 && bind(listener, (struct sockaddr *)&address, len) == 0);
    /* A connection is accepted when its number is there, so that a broker knows what it has. */
    check(setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds) == 0);
    check(listen(listener, 4096) == 0);
    check(getsockname(listener, (struct sockaddr *)&address, &len) == 0);

    printf("%-14s %11s %9s %9s %12s %6s %10s %6s %6s %8s\n", "", "connections", "by broker",
           "by backend", "owner killed", "twice", "unanswered", "kills", "stops", "restarts");
    bool good = true;
    for (int part = 0; argc == 1 && part < WITHOUT_CLAIM; part++)
        good &= run(part);
    for (int i = 1; i < argc; i++)
        good &= run(find_part(argv[i]));
    return good ? 0 : 1;
}
