/* handoff exec: a backend that runs a command for each client. */
#define _GNU_SOURCE
#include "command.h"
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <handoff.h>

enum {
    FIRST_PASSED = 3, /* the first descriptor that systemd passes, sd_listen_fds(3) */
    OFFER_BYTES = 131000, /* the most that the library takes */
    ALLOWED = 64,
    EVENTS = 64
};

static handoff_backend *backend;
static int signals;
static bool stopping;

/* Options. */
static uint64_t most = 100;
static uint32_t mode, group, allowed[ALLOWED];
static size_t allowed_len;
static bool has_group;

static void watch(int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    must(epoll_ctl(run_epoll, EPOLL_CTL_ADD, fd, &event) == 0, "EPOLL_CTL_ADD");
}

/* ---- arrivals -------------------------------------------------------------------------------- */

static void reject(const handoff_arrival *arrival, handoff_reason reason)
{
    must_handoff(handoff_backend_reject(backend, arrival->id, reason) == HANDOFF_OK,
                 "handoff_backend_reject");
}

/* What can fail comes before the adoption: until then another backend can have the client. */
static void take(const handoff_arrival *arrival)
{
    if (run_count >= most) {
        reject(arrival, HANDOFF_REASON_BACKEND_BUSY);
        return;
    }
    struct run *run = run_prepare(arrival);
    if (run == NULL) {
        reject(arrival, errno == EMFILE || errno == ENFILE ? HANDOFF_REASON_DESCRIPTOR_PRESSURE
                                                           : HANDOFF_REASON_BACKEND_BUSY);
        return;
    }
    int fd;
    handoff_status status = handoff_backend_adopt(backend, arrival->id, &fd);
    if (status == HANDOFF_OK) {
        run_start(run, fd);
        return;
    }
    run_give_up(run);
    must_handoff(status == HANDOFF_ERR_TAKEN_BACK, "handoff_backend_adopt");
}

static void dispatch(void)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_status status;
    must_handoff(handoff_backend_dispatch(backend) == HANDOFF_OK, "handoff_backend_dispatch");
    while ((status = handoff_backend_next(backend, &arrival)) == HANDOFF_OK)
        take(&arrival);
    must_handoff(status == HANDOFF_NOTHING, "handoff_backend_next");
}

/* ---- signals --------------------------------------------------------------------------------- */

static void take_signals(void)
{
    sigset_t set;
    const struct sigaction to_default = {.sa_handler = SIG_DFL}, ignore = {.sa_handler = SIG_IGN};
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGCHLD);
    must(sigprocmask(SIG_BLOCK, &set, &run_mask) == 0, "sigprocmask");
    /* Where it is ignored, there is no status of a child, wait(2). */
    must(sigaction(SIGCHLD, &to_default, NULL) == 0, "SIGCHLD");
    must(sigaction(SIGPIPE, &ignore, &run_sigpipe) == 0, "SIGPIPE");
    signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    must(signals != -1, "signalfd");
}

/* Stops listening, and takes what has arrived. Then the backend holds nothing and can be freed:
 * brokers offer the rest to others. */
static void drain(void)
{
    must_handoff(handoff_backend_drain(backend) == HANDOFF_OK, "handoff_backend_drain");
    dispatch();
    must(epoll_ctl(run_epoll, EPOLL_CTL_DEL, handoff_backend_fd(backend), NULL) == 0,
         "EPOLL_CTL_DEL");
    handoff_backend_free(backend);
    backend = NULL;
}

static void on_signals(void)
{
    struct signalfd_siginfo signal;
    while (read(signals, &signal, sizeof signal) == sizeof signal) {
        if (signal.ssi_signo == SIGCHLD)
            run_reap();
        else if (stopping)
            run_signal_all(SIGTERM);
        else
            stopping = true;
    }
}

/* ---- the program ----------------------------------------------------------------------------- */

static void serve(void)
{
    int backend_fd = handoff_backend_fd(backend);
    must_handoff(backend_fd != -1, "handoff_backend_fd");
    watch(signals, &signals);
    watch(backend_fd, &backend);
    while (backend != NULL || run_count > 0) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(run_epoll, events, EVENTS, run_wait_ms());
        bool have_signals = false;
        must(count != -1 || errno == EINTR, "epoll_wait");
        for (int i = 0; i < count; i++) {
            void *what = events[i].data.ptr;
            if (what == &signals)
                have_signals = true; /* after the pumps, for which there may be events here */
            else if (what == &backend)
                dispatch();
            else
                run_pump(what);
        }
        if (have_signals)
            on_signals();
        run_tick();
        if (stopping && backend != NULL)
            drain();
        flush_output();
    }
}

/* Whether a socket from the service manager is the one at `path`: of the same name, or the same
 * file by another name. */
static bool is_at(int fd, const char *path)
{
    struct sockaddr_un address;
    char name[sizeof address.sun_path + 1];
    struct stat here, there;
    socklen_t len = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &len) == -1 || address.sun_family != AF_UNIX)
        return false;
    size_t name_len = len - offsetof(struct sockaddr_un, sun_path);
    if (name_len > sizeof address.sun_path) /* it counts a NUL that has no room, unix(7) */
        name_len = sizeof address.sun_path;
    memcpy(name, address.sun_path, name_len);
    name[name_len] = '\0';
    if (name_len > 0 && name[0] == '\0')
        name[0] = '@';
    return strcmp(name, path) == 0 ||
           (*path != '@' && stat(name, &here) == 0 && stat(path, &there) == 0 &&
            here.st_dev == there.st_dev && here.st_ino == there.st_ino);
}

/* The socket that a service manager has passed, sd_listen_fds(3); -1 if it has passed none, -2
 * after a message if none of them is at this path. No command inherits any of them. */
static int passed_socket(const char *path)
{
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
    uint64_t number;
    if (pid == NULL || count == NULL || !parse_number(pid, 1, INT32_MAX, &number) ||
        (pid_t)number != getpid() || !parse_number(count, 1, 1024, &number))
        return -1;
    int found = -1;
    for (int fd = FIRST_PASSED; fd < FIRST_PASSED + (int)number; fd++) {
        if (found == -1 && is_at(fd, path))
            found = fd;
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    }
    if (found != -1)
        return found;
    complain("the service manager has passed sockets (LISTEN_FDS=%s), but none that listens at %s",
             count, path);
    return -2;
}

/* Who is allowed can connect only if the file's mode allows it, too. */
static void warn_of_mode(const char *path, uint32_t of_file)
{
    for (size_t i = 0; i < allowed_len && (of_file & 0022) == 0; i++) {
        if (allowed[i] == 0 || allowed[i] == geteuid())
            continue;
        complain("--allow names user %" PRIu32 ", but the mode %04" PRIo32 " of %s does not let it "
                 "connect: say --group GROUP, or --mode 0666", allowed[i], of_file, path);
        return;
    }
}

static int listen_at_socket(const char *path)
{
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    policy.users = allowed;
    policy.users_len = allowed_len;
    options.mode = mode == 0 && has_group ? 0660 : mode;
    options.policy = allowed_len > 0 ? &policy : NULL;
    options.max_offer_bytes = OFFER_BYTES;
    if (*path == '@' && (mode != 0 || has_group)) {
        complain("--mode and --group are those of a file, and the abstract name %s has none", path);
        return USAGE;
    }
    int passed = passed_socket(path);
    if (passed == -2)
        return FAILED;
    if (passed != -1 && (mode != 0 || has_group)) {
        complain("--mode and --group are the service manager's business, which has made %s", path);
        return USAGE;
    }
    handoff_status status = passed != -1 ? handoff_backend_listen_on(passed, &options, &backend)
                                         : handoff_backend_listen(path, &options, &backend);
    if (status != HANDOFF_OK) {
        complain("%s", handoff_last_error());
        return status == HANDOFF_ERR_INVALID_ARGUMENT ? USAGE : FAILED;
    }
    if (passed != -1) {
        close(passed); /* the backend has a copy */
    } else if (has_group && chown(path, (uid_t)-1, group) == -1) {
        complain("--group: %s: %s", path, strerror(errno));
        handoff_backend_free(backend);
        return FAILED;
    }
    if (passed == -1 && *path != '@')
        warn_of_mode(path, options.mode == 0 ? 0600 : options.mode);
    return DONE;
}

static int start_and_serve(const char *path, char **command)
{
    int code = run_find(command[0]);
    if (code != DONE || (code = listen_at_socket(path)) != DONE)
        return code;
    run_command = command;
    raise_descriptor_limit();
    take_signals();
    run_epoll = epoll_create1(EPOLL_CLOEXEC);
    must(run_epoll != -1, "epoll_create1");
    write_plainly(stdout, "listening on %s", path);
    putchar('\n');
    flush_output();
    serve();
    close(run_epoll);
    close(signals);
    return finish_output() ? DONE : FAILED;
}

static bool parse_mode(const char *text)
{
    char *end;
    unsigned long value = strtoul(text, &end, 8);
    if (*text < '0' || *text > '7' || *end != '\0' || value == 0 || value > 0777)
        return false;
    mode = (uint32_t)value;
    return true;
}

int exec_main(int argc, char **argv)
{
    static const struct option options[] = {
        {"verbose", no_argument, NULL, 'v'},     {"max", required_argument, NULL, 'n'},
        {"mode", required_argument, NULL, 'm'},  {"group", required_argument, NULL, 'g'},
        {"allow", required_argument, NULL, 'a'}, {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0}};
    static const char how[] =
        "handoff exec [-v] [--max N] [--mode MODE] [--group GROUP] [--allow USER]... SOCKET\n"
        "                    -- COMMAND [ARGUMENT...]";
    int option;
    while ((option = getopt_long(argc, argv, "vh", options, NULL)) != -1) {
        switch (option) {
        case 'v':
            run_verbose = true;
            break;
        case 'n':
            if (!parse_number(optarg, 1, 1000000, &most)) {
                complain("--max takes a number of commands, from 1 to 1000000");
                return usage(how);
            }
            break;
        case 'm':
            if (!parse_mode(optarg)) {
                complain("--mode takes permissions in octal, such as 0660: more than 0, at most 0777");
                return usage(how);
            }
            break;
        case 'g':
            if (!find_group(optarg, &group)) {
                complain("--group: there is no group %s", optarg);
                return usage(how);
            }
            has_group = true;
            break;
        case 'a':
            if (allowed_len == ALLOWED) {
                complain("--allow can be given %d times at most", ALLOWED);
                return usage(how);
            }
            if (!find_user(optarg, &allowed[allowed_len])) {
                complain("--allow: there is no user %s", optarg);
                return usage(how);
            }
            allowed_len++;
            break;
        case 'h':
            return print_help();
        default:
            return usage(how);
        }
    }
    char **operands = argv + optind;
    int count = argc - optind;
    /* With POSIXLY_CORRECT in the environment "--" is still there, getopt(3). */
    if (count > 1 && strcmp(operands[1], "--") == 0) {
        operands[1] = operands[0];
        operands++;
        count--;
    }
    if (count < 2) {
        complain(count == 0 ? "no SOCKET and no COMMAND is named" : "no COMMAND is named");
        return usage(how);
    }
    if (is_of_nginx(operands[0]))
        return usage(how);
    int code = start_and_serve(operands[0], operands + 1);
    return code == USAGE ? usage(how) : code;
}
