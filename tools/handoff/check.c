/* handoff check: walks the way to a backend step by step, as a broker of this user would go it. */
#define _GNU_SOURCE
#include "command.h"
#include "probe.h"
#include "report.h"
#include "way.h"

#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <handoff.h>

/* Who listens: SO_PEERCRED has the process that called listen(2), and its user then. */
struct listener {
    pid_t pid;
    char user[USER_LEN], command[32];
    bool stopped, ended;
};

static int timeout_ms = 2000;

/* ---- who listens ----------------------------------------------------------------------------- */

static void read_proc(pid_t pid, const char *name, char *text, size_t size)
{
    char path[64];
    size_t len = 0;
    snprintf(path, sizeof path, "/proc/%ld/%s", (long)pid, name);
    FILE *file = fopen(path, "re");
    if (file != NULL) {
        len = fread(text, 1, size - 1, file);
        fclose(file);
    }
    text[len] = '\0';
}

static void look_at_process(struct listener *listener)
{
    char stat[512];
    read_proc(listener->pid, "comm", listener->command, sizeof listener->command);
    listener->command[strcspn(listener->command, "\n")] = '\0';
    read_proc(listener->pid, "stat", stat, sizeof stat);
    /* The state comes after the name, which can have anything in it: proc_pid_stat(5). */
    const char *end = strrchr(stat, ')');
    listener->stopped = end != NULL && (end[2] == 'T' || end[2] == 't');
    /* One that /proc hides is there all the same: EPERM. */
    listener->ended = listener->pid > 0 && kill(listener->pid, 0) == -1 && errno == ESRCH;
}

/* "process 4242 (app), user app (1001)" */
static void describe_listener(const struct listener *listener, char *text, size_t size)
{
    if (listener->pid == 0)
        snprintf(text, size, "a process in another PID namespace, user %s", listener->user);
    else if (*listener->command == '\0')
        snprintf(text, size, "process %ld, which %s, user %s", (long)listener->pid,
                 listener->ended ? "has ended" : "cannot be seen", listener->user);
    else
        snprintf(text, size, "process %ld (%s), user %s", (long)listener->pid, listener->command,
                 listener->user);
}

/* Connects, and hangs up at once: the kernel tells who listens, and how the backend does later. */
static bool check_listener(struct report *report, const char *path, struct listener *listener)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    memcpy(address.sun_path, path, len);
    if (*path == '@')
        address.sun_path[0] = '\0';
    else
        len++;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    must(fd != -1, "socket");
    int error = connect(fd, (struct sockaddr *)&address,
                        (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) == -1
                    ? errno
                    : 0;
    struct ucred peer;
    socklen_t peer_len = sizeof peer;
    if (error == 0 && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &peer_len) == -1)
        error = errno;
    close(fd);
    switch (error) {
    case 0:
        break;
    case ECONNREFUSED:
    case ENOENT:
        step_failed(report, "listener", NOBODY_LISTENS, HANDOFF_ERR_BACKEND_UNAVAILABLE, error,
                    *path == '@' ? "nobody listens at the abstract name %s"
                                 : "nobody listens on %s: the backend has ended, or drains", path);
        advise(report, *path == '@' ? "Start the backend, or correct the name."
                                    : "Start the backend; it replaces a socket that nobody listens "
                                      "on.");
        return false;
    case EPROTOTYPE:
        step_failed(report, "listener", WRONG_TYPE, HANDOFF_ERR_BACKEND_UNAVAILABLE, error,
                    "%s is a stream or datagram socket; a handoff socket has sequenced packets "
                    "(SOCK_SEQPACKET)", path);
        advise(report, "Name the backend's handoff socket, not the one for its other clients; "
                       "under systemd say ListenSequentialPacket=, not ListenStream=.");
        return false;
    case EACCES:
    case EPERM:
        step_failed(report, "listener", NO_ACCESS, HANDOFF_ERR_PERMISSION_DENIED, error,
                    "the system does not let this user connect to %s%s: %s", path,
                    *path == '@' ? "" : ", though the file's mode does", strerror(error));
        advise(report, "Look for a security module that forbids it, in the output of dmesg(1).");
        return false;
    case EAGAIN:
        step_failed(report, "listener", NO_ANSWER, HANDOFF_ERR_WOULD_BLOCK, error,
                    "too many brokers wait on %s: the backend does not accept them", path);
        advise(report, "Find out why the backend hangs, and restart it.");
        return false;
    default:
        step_failed(report, "listener", FAILED, HANDOFF_ERR_SYSTEM, error, "%s: connect: %s", path,
                    strerror(error));
        advise(report, "Look up this error in unix(7) and connect(2).");
        return false;
    }
    char about[200];
    listener->pid = peer.pid;
    describe_user(peer.uid, listener->user, sizeof listener->user);
    look_at_process(listener);
    describe_listener(listener, about, sizeof about);
    step_ok(report, "listener", "%s%s", about,
            listener->pid == 1 ? ": it passes the socket on when somebody connects" : "");
    return true;
}

/* ---- the channel ----------------------------------------------------------------------------- */

static void advise_about(struct report *report, const char *path, const struct probe *found)
{
    bool named = *path == '@'; /* then there is no file, and no owner of one */
    switch (found->code) {
    case NOT_ALLOWED:
        advise(report, "Name user %ld, or a group of it, in the backend's policy, with all others "
                       "who may connect: `policy' in handoff_backend_options, or `handoff exec "
                       "--allow %ld'.", (long)geteuid(), (long)geteuid());
        break;
    case NOT_TRUSTED:
        advise(report, "Run the backend as %s; or, if this user shall be the backend, name it in "
                       "the broker's policy, `policy' in handoff_broker_options.",
               named ? "the broker's user or as root" : "the owner of its socket");
        break;
    case TOO_MANY:
        advise(report, "Let the backend have more channels, `max_channels' and "
                       "`max_channels_per_user' in handoff_backend_options; each broker process "
                       "needs one.");
        break;
    case WRONG_VERSION:
        advise(report, "Upgrade libhandoff in the older of the two programs.");
        break;
    case IS_DRAINING:
        advise(report, "Start the backend's successor; this one finishes what it has, then it "
                       "ends.");
        break;
    case IS_SHORT:
        advise(report, "Let the backend have more descriptors, RLIMIT_NOFILE: `ulimit -n' in a "
                       "shell, LimitNOFILE= of systemd; each broker process takes two at first. Or "
                       "look why it has so many open, or has no memory.");
        break;
    case NO_ROOM:
        advise(report, "Look why the backend adopts so slowly, or add another backend.");
        break;
    case NO_HANDOFF:
        advise(report, "Stop the other program, or give the backend another %s; if it is a backend "
                       "of libhandoff 0.1, it does not allow this user or has too many channels.",
               named ? "name" : "path");
        break;
    default:
        if (found->error == EMFILE)
            advise(report, "Let this process have more descriptors, RLIMIT_NOFILE: `ulimit -n' in "
                           "a shell, LimitNOFILE= of systemd. It has too few for one channel.");
        else if (found->error == EFBIG)
            advise(report, "Let this process have larger files, RLIMIT_FSIZE: `ulimit -f' in a "
                           "shell, LimitFSIZE= of systemd. The memory that broker and backend "
                           "share counts as a file.");
        else
            advise(report, "Look up %s in handoff_status(3), and the messages of the backend.",
                   handoff_status_name(found->status));
    }
}

/* Where one of them failed, those before it are in order. */
static const struct {
    const char *name;
    int code, code_too;
    const char *in_order;
} channel_steps[] = {
    {"backend", NOT_TRUSTED, NOT_TRUSTED, "a broker of this user hands over to that user"},
    {"answer", NO_ANSWER, NO_HANDOFF, "it answers, with the protocol of libhandoff"},
    {"credentials", NOT_ALLOWED, NOT_ALLOWED, "it allows this user"},
    {"channels", TOO_MANY, IS_DRAINING, "it takes another broker"},
    {"version", WRONG_VERSION, WRONG_VERSION, "it speaks the same version of the protocol"},
    {"room", NO_ROOM, NO_ROOM, NULL},
};

static void check_channel(struct report *report, const char *path, struct listener *listener)
{
    struct probe found;
    char about[200];
    probe(path, timeout_ms, &found);
    look_at_process(listener); /* it may have stopped only now */
    describe_listener(listener, about, sizeof about);

    const size_t count = sizeof channel_steps / sizeof *channel_steps;
    size_t failed = 0;
    if (found.code == DONE)
        failed = count;
    else
        while (failed < count && channel_steps[failed].code != found.code &&
               channel_steps[failed].code_too != found.code)
            failed++;
    if (found.code != DONE && failed == count) {
        step_failed(report, "channel", found.code, found.status, found.error, "%s", found.message);
        advise_about(report, path, &found);
        return;
    }
    for (size_t i = 0; i < failed && channel_steps[i].in_order != NULL; i++)
        step_ok(report, channel_steps[i].name, "%s", channel_steps[i].in_order);
    const char *name = failed < count ? channel_steps[failed].name : "room";
    if (found.code == DONE) {
        step_ok(report, name, "offers that it would take now: %zu", found.room);
        report->round_trip_us = found.round_trip_us;
    } else if (found.code == NO_ANSWER) {
        step_failed(report, name, found.code, found.status, found.error,
                    "%s did not answer within %d ms%s", about, timeout_ms,
                    listener->stopped ? ": it is stopped" : "");
        if (listener->stopped)
            advise(report, "Let it go on: kill -CONT %ld.", (long)listener->pid);
        else if (listener->ended)
            advise(report, "Another process has a copy of its socket, most likely a child that it "
                           "started: `ss -xlp' or lsof(8), as root, shows which. End that process if it "
                           "is no backend; if it is one, find out what it does instead.");
        else
            advise(report, "Find out what it does instead, for instance with strace -p %ld: a "
                           "backend answers in handoff_backend_dispatch() and "
                           "handoff_backend_accept(), if it has a descriptor left, "
                           "RLIMIT_NOFILE. Or something else listens there: give the "
                           "backend another %s.", (long)listener->pid,
                   *path == '@' ? "name" : "path");
    } else {
        step_failed(report, name, found.code, found.status, found.error, "%s",
                    *found.message != '\0'      ? found.message
                    : found.code == IS_DRAINING ? "the backend drains: it takes no more offers"
                                                : "the backend takes no offers: those that it has "
                                                  "granted are in flight, or it grants none");
        advise_about(report, path, &found);
    }
}

/* ---- all of it ------------------------------------------------------------------------------- */

/* `inside`: of a directory that has been checked. */
static struct report *check_socket(const char *path, bool inside)
{
    struct report *report = report_new(path);
    struct listener listener = {0};
    if (*path == '\0' || strcmp(path, "@") == 0) {
        step_failed(report, "socket", NO_PATH, HANDOFF_ERR_INVALID_ARGUMENT, 0,
                    "the %s is empty", *path == '@' ? "name of the socket" : "path of the socket");
        advise(report, "Name the socket that the backend listens on: a path, or @NAME for an "
                       "abstract name.");
        return report;
    }
    if (strlen(path) > PATH_LEN - 1) {
        step_failed(report, "socket", NO_PATH, HANDOFF_ERR_INVALID_ARGUMENT, 0,
                    "the path of a Unix socket has 1 to %d bytes, this one %zu: %s", PATH_LEN - 1,
                    strlen(path), path);
        advise(report, *path == '@' ? "Use a shorter name." : "Use a shorter path.");
        return report;
    }
    bool reached = *path == '@' || ((inside || check_directories(report, path)) &&
                                    check_file(report, path));
    if (reached && check_listener(report, path, &listener))
        check_channel(report, path, &listener);
    return report;
}

static int is_shown(const struct dirent *entry)
{
    return entry->d_name[0] != '.'; /* a backend that starts makes its socket under such a name */
}

/* Whether a broker of the directory has this file for a backend. It leaves out symbolic links. */
static bool is_backend(struct report *directory, const char *path, int *links)
{
    struct stat file, target;
    if (lstat(path, &file) == -1 || !(S_ISSOCK(file.st_mode) || S_ISLNK(file.st_mode)))
        return false;
    if (S_ISSOCK(file.st_mode))
        return true;
    if (stat(path, &target) == 0 && S_ISSOCK(target.st_mode)) {
        step_ok(directory, "sockets", "%s is a symbolic link to a socket: brokers leave it out",
                path);
        ++*links;
    }
    return false;
}

/* "a.sock/" */
static bool is_socket_with_slash(const char *path)
{
    struct stat file;
    char without[PATH_LEN];
    size_t len = strlen(path);
    if (len >= sizeof without)
        return false;
    memcpy(without, path, len + 1);
    while (len > 1 && without[len - 1] == '/')
        without[--len] = '\0';
    return path[len] == '/' && stat(without, &file) == 0 && S_ISSOCK(file.st_mode);
}

/* Every socket in the directory, one after the other. */
static int check_sockets(const char *path)
{
    struct report *directory = report_new(path);
    struct dirent **entries = NULL;
    struct report **inner = NULL;
    int count = 0, inner_len = 0, failed = 0, links = 0;
    char inside[4096];
    snprintf(inside, sizeof inside, "%s/x", path);
    if (strlen(path) >= PATH_LEN - 2) {
        step_failed(directory, "directory", NO_PATH, HANDOFF_ERR_INVALID_ARGUMENT, 0,
                    "the path is too long for one with Unix sockets in it: %s", path);
        advise(directory, "Use a shorter path.");
    } else if (is_socket_with_slash(path)) {
        step_failed(directory, "directory", NO_PATH, HANDOFF_ERR_BACKEND_UNAVAILABLE, ENOTDIR,
                    "%s is a socket, not a directory", path);
        advise(directory, "Leave out the '/' at the end.");
    } else if (check_directories(directory, inside)) {
        count = scandir(path, &entries, is_shown, alphasort);
        if (count == -1) {
            int error = errno;
            step_failed(directory, "directory", NO_SEARCH, HANDOFF_ERR_PERMISSION_DENIED, error,
                        "this user may not list the directory %s: %s", path, strerror(error));
            advise(directory, "Give this user the r permission for the directory.");
            count = 0;
        }
    }
    must((inner = calloc((size_t)count + 1, sizeof *inner)) != NULL, "calloc");
    for (int i = 0; i < count; i++) {
        size_t len = strlen(path);
        snprintf(inside, sizeof inside, "%s%s%s", path, path[len - 1] == '/' ? "" : "/",
                 entries[i]->d_name);
        free(entries[i]);
        if (!is_backend(directory, inside, &links))
            continue;
        if (!report_json) {
            write_plainly(stdout, "%s", inside);
            putchar('\n');
        }
        struct report *report = inner[inner_len++] = check_socket(inside, true);
        if (!report_json)
            report_print_end(report);
        if (report->code != DONE && failed++ == 0) {
            directory->code = report->code;
            directory->status = report->status;
            directory->error = report->error;
            memcpy(directory->message, report->message, sizeof report->message);
            memcpy(directory->advice, report->advice, sizeof report->advice);
        }
    }
    free(entries);
    if (inner_len == 0 && directory->code == DONE) {
        step_failed(directory, "sockets", NO_PATH, HANDOFF_ERR_BACKEND_UNAVAILABLE, 0,
                    "there is no socket in the directory %s%s", path,
                    links > 0 ? ", only symbolic links to sockets, which brokers leave out" : "");
        advise(directory, "Start a backend that listens there.");
    }
    if (report_json) {
        report_print_json(directory, inner, inner_len);
    } else if (inner_len > 0) {
        printf("sockets: %d, in order: %d\n", inner_len, inner_len - failed);
    } else {
        report_print_end(directory);
    }
    for (int i = 0; i < inner_len; i++)
        report_free(inner[i]);
    free(inner);
    int code = directory->code;
    report_free(directory);
    return code;
}

int check_main(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'},
                                            {"timeout", required_argument, NULL, 't'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    static const char how[] = "handoff check [--json] [--timeout MS] SOCKET";
    int option;
    while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        uint64_t number;
        switch (option) {
        case 'j':
            report_json = true;
            break;
        case 't':
            if (!parse_number(optarg, 1, 3600000, &number)) {
                complain("--timeout takes milliseconds, from 1 to 3600000");
                return usage(how);
            }
            timeout_ms = (int)number;
            break;
        case 'h':
            return print_help();
        default:
            return usage(how);
        }
    }
    if (argc - optind != 1) {
        complain(argc == optind ? "no SOCKET is named" : "one SOCKET at a time, or a directory");
        return usage(how);
    }
    const char *path = argv[optind];
    if (is_of_nginx(path))
        return usage(how);
    struct stat file;
    size_t len = strlen(path);
    int code;
    if (*path != '@' && ((len > 0 && path[len - 1] == '/') ||
                         (stat(path, &file) == 0 && S_ISDIR(file.st_mode)))) {
        code = check_sockets(path);
    } else {
        struct report *report = check_socket(path, false);
        if (report_json)
            report_print_json(report, NULL, 0);
        else
            report_print_end(report);
        code = report->code;
        report_free(report);
    }
    if (report_json)
        putchar('\n');
    return finish_output() ? code : FAILED;
}
