/*
 * One command that serves one client.
 *
 * The command's standard output is the client's connection. So is its standard input, if the broker
 * has not read from it. Otherwise that is a pipe, into which this process writes what the broker
 * has read, and then what it reads from the client itself.
 *
 * A client whose TLS the kernel does is always read from here: a command that knows nothing of TLS would
 * take close_notify for an error. When the command has ended, this process sends close_notify, for which
 * there must be room, and waits for the client's.
 *
 * The process is made before the client is adopted, because making it can fail. It waits at a
 * socket, the gate, for the client's descriptor.
 */
#define _GNU_SOURCE
#include "run.h"

#include "child.h"
#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    BUFFER_LEN = 65536,
    TURNS = 4,      /* so many buffers; then others have their turn */
    ROOM_S = 30,    /* how long to wait for room for close_notify, */
    GOODBYE_S = 2,  /* and how long for the client's */
    TICK_MS = 100   /* how often to see whether that is over */
};

struct run {
    struct run *before, *next;
    uint64_t number;
    pid_t pid;
    int gate;   /* until the client is sent */
    int client; /* -1 until it is adopted */
    int pipe;   /* to the command's standard input; -1: none, or closed */
    bool watching_client;
    bool tls;
    bool ending;       /* the command has ended, and the client's TLS has not */
    bool said_goodbye; /* close_notify is sent */
    int64_t until_us;  /* how long that may take */
    size_t start, len; /* what is in the buffer */
    char *buffer;
};

char **run_command;
int run_epoll;
sigset_t run_mask;
struct sigaction run_sigpipe;
bool run_verbose;
uint64_t run_count;

static struct run *runs, *endings; /* a list each */
static uint64_t started;
static bool failing;

static void enter(struct run **list, struct run *run)
{
    run->before = NULL;
    run->next = *list;
    if (*list != NULL)
        (*list)->before = run;
    *list = run;
}

static void leave(struct run **list, struct run *run)
{
    *(run->before == NULL ? list : &run->before->next) = run->next;
    if (run->next != NULL)
        run->next->before = run->before;
}

/* Whether it can be executed; otherwise errno is as execve(2) leaves it. access(2) alone says yes to a
 * directory, too. */
static bool is_executable(const char *path)
{
    struct stat file;
    if (access(path, X_OK) == -1 || stat(path, &file) == -1)
        return false;
    if (!S_ISREG(file.st_mode))
        errno = EACCES;
    return S_ISREG(file.st_mode);
}

int run_find(const char *command)
{
    char path[4096];
    int code = NOT_FOUND;
    const char *list = getenv("PATH"), *end;
    if (*command == '\0') {
        complain("the command has no name");
        return NOT_FOUND;
    }
    if (strchr(command, '/') != NULL) {
        if (is_executable(command))
            return DONE;
        complain("%s: %s", command, strerror(errno));
        return errno == EACCES ? NOT_EXECUTABLE : NOT_FOUND;
    }
    for (list = list == NULL ? "/bin:/usr/bin" : list;; list = end + 1) {
        end = strchrnul(list, ':');
        snprintf(path, sizeof path, "%.*s%s%s", (int)(end - list), list, end > list ? "/" : "",
                 command);
        if (is_executable(path))
            return DONE;
        if (access(path, F_OK) == 0)
            code = NOT_EXECUTABLE;
        if (*end == '\0')
            break;
    }
    complain("%s: there is no such command in PATH%s", command,
             code == NOT_EXECUTABLE ? " that may be executed" : "");
    return code;
}

/* ---- pumping --------------------------------------------------------------------------------- */

static bool watch(struct run *run, int operation, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = run};
    return epoll_ctl(run_epoll, operation, fd, &event) == 0;
}

/* The command reads no more, or nothing more comes: its input ends. */
static void end_pump(struct run *run)
{
    /* Before close(2), which does not do it while another process has a copy, epoll(7). */
    if (run->watching_client)
        must(watch(run, EPOLL_CTL_DEL, run->client, 0), "EPOLL_CTL_DEL");
    run->watching_client = false;
    must(watch(run, EPOLL_CTL_DEL, run->pipe, 0), "EPOLL_CTL_DEL");
    close(run->pipe);
    run->pipe = -1;
    free(run->buffer);
    run->buffer = NULL;
}

/* Watches the client. With TLS each change is told once, so all must be received, or `again` said: a
 * part of a record makes the socket readable on some kernels, and there is nothing to receive. */
static bool watch_client(struct run *run, uint32_t events, bool again)
{
    if (run->watching_client && !again)
        return true;
    int operation = run->watching_client ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (!watch(run, operation, run->client, run->tls ? events | EPOLLET : events))
        return false;
    run->watching_client = true;
    return true;
}

/* Waits for room in the pipe if there is something to write, otherwise for more from the client.
 * The pipe is always watched: an error there means that the command reads no more. */
static bool await(struct run *run, bool received_all)
{
    bool read = run->len == 0;
    if (read && !watch_client(run, EPOLLIN, !received_all))
        return false;
    if (!read && run->watching_client) {
        run->watching_client = false;
        if (!watch(run, EPOLL_CTL_DEL, run->client, 0))
            return false;
    }
    return watch(run, EPOLL_CTL_MOD, run->pipe, read ? 0 : EPOLLOUT);
}

/* Receives what is there into the buffer. Nothing is HANDOFF_TIMED_OUT; no byte is the end.
 *
 * Not with the library where there is no TLS: a client of a Unix socket may send descriptors along,
 * which recv(2) throws away, while to close a file of his could take long. */
static handoff_status receive(struct run *run)
{
    if (run->tls)
        return handoff_tls_receive(run->client, run->buffer, BUFFER_LEN, 0, &run->len);
    ssize_t len = recv(run->client, run->buffer, BUFFER_LEN, MSG_DONTWAIT);
    if (len == -1 && (errno == EAGAIN || errno == EINTR))
        return HANDOFF_TIMED_OUT;
    run->len = len == -1 ? 0 : (size_t)len;
    return HANDOFF_OK;
}

static void pump(struct run *run)
{
    bool received_all = false;
    for (int turn = 0; turn < TURNS; turn++) {
        if (run->len == 0) {
            handoff_status status = receive(run);
            received_all = status == HANDOFF_TIMED_OUT;
            if (received_all)
                break;
            if (run_verbose && status != HANDOFF_OK)
                printf("%" PRIu64 ": %s\n", run->number, handoff_last_error());
            if (status != HANDOFF_OK || run->len == 0) {
                end_pump(run);
                return;
            }
            run->start = 0;
        }
        ssize_t len = write(run->pipe, run->buffer + run->start, run->len);
        if (len == -1 && (errno == EAGAIN || errno == EINTR))
            break;
        if (len == -1) {
            end_pump(run);
            return;
        }
        run->start += (size_t)len;
        run->len -= (size_t)len;
    }
    if (!await(run, received_all)) {
        complain("EPOLL_CTL_ADD: %s", strerror(errno));
        end_pump(run);
    }
}

/* ---- the end of a client's TLS --------------------------------------------------------------- */

static void release(struct run *run)
{
    if (run->watching_client)
        must(watch(run, EPOLL_CTL_DEL, run->client, 0), "EPOLL_CTL_DEL");
    if (run->client != -1) {
        /* The broker may not have closed its copy yet, and while it has one, close(2) does not end
         * the connection. */
        shutdown(run->client, SHUT_WR);
        close(run->client);
    }
    leave(run->ending ? &endings : &runs, run);
    run_count--;
    free(run);
}

/* Sends close_notify. Returns whether there was room for it, or never will be. */
static bool say_goodbye(struct run *run)
{
    handoff_status status = handoff_tls_shutdown(run->client, 0);
    if (status == HANDOFF_TIMED_OUT && now_us() < run->until_us)
        return !watch_client(run, EPOLLOUT, false);
    run->said_goodbye = status == HANDOFF_OK;
    run->until_us = run->said_goodbye ? now_us() + GOODBYE_S * INT64_C(1000000) : 0;
    return true;
}

/* Takes the end of a client's TLS as far as it goes. What the client still sends is read, because
 * close(2) with unread bytes would reset the connection. */
static void end_tls(struct run *run)
{
    static char unread[BUFFER_LEN];
    handoff_status status = HANDOFF_OK;
    size_t len = 1;
    bool first = !run->said_goodbye;
    if (first && !say_goodbye(run))
        return;
    for (int turn = 0; run->said_goodbye && turn < TURNS && status == HANDOFF_OK && len > 0; turn++)
        status = handoff_tls_receive(run->client, unread, sizeof unread, 0, &len);
    bool more_now = status == HANDOFF_OK && len > 0, more = more_now || status == HANDOFF_TIMED_OUT;
    if (!run->said_goodbye || !more || now_us() >= run->until_us || !watch_client(run, EPOLLIN, first || more_now))
        release(run);
}

void run_tick(void)
{
    static int64_t next_us;
    struct run *run, *following;
    if (endings == NULL || now_us() < next_us)
        return;
    next_us = now_us() + TICK_MS * 1000;
    for (run = endings; run != NULL; run = following) {
        following = run->next;
        end_tls(run);
    }
}

int run_wait_ms(void)
{
    return endings == NULL ? -1 : TICK_MS;
}

void run_pump(struct run *run)
{
    if (run->ending)
        end_tls(run);
    else if (run->pipe != -1) /* or it has ended at an event before this one */
        pump(run);
}

/* ---- the life of a run ----------------------------------------------------------------------- */

static void close_pair(const int pair[2])
{
    for (int i = 0; i < 2; i++)
        if (pair[i] != -1)
            close(pair[i]);
}

static bool make_pipe(struct run *run, int pair[2])
{
    if (pipe2(pair, O_CLOEXEC) == -1)
        return false;
    run->pipe = pair[1];
    /* The two ends have flags of their own: the command's end blocks. */
    return fcntl(run->pipe, F_SETFL, O_NONBLOCK) == 0 && watch(run, EPOLL_CTL_ADD, run->pipe, 0);
}

struct run *run_prepare(const handoff_arrival *arrival)
{
    int gate[2] = {-1, -1}, pipe[2] = {-1, -1};
    size_t len = arrival->preread_len;
    struct run *run = calloc(1, sizeof *run);
    if (run == NULL)
        goto failed;
    run->client = run->pipe = -1;
    run->number = started + 1;
    run->tls = arrival->tls;
    if (len > 0 || run->tls) {
        run->buffer = malloc(len > BUFFER_LEN ? len : BUFFER_LEN);
        if (run->buffer == NULL || !make_pipe(run, pipe))
            goto failed;
        if (len > 0)
            memcpy(run->buffer, arrival->preread, len);
        run->len = len;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, gate) == -1)
        goto failed;
    run->pid = fork();
    if (run->pid == -1)
        goto failed;
    if (run->pid == 0) {
        close(gate[0]);
        child_wait_and_become(run_command, arrival, gate[1], pipe[0]);
    }
    close(gate[1]);
    if (pipe[0] != -1)
        close(pipe[0]);
    run->gate = gate[0];
    enter(&runs, run);
    run_count++;
    started++;
    failing = false;
    return run;

failed:;
    int error = errno;
    if (!failing)
        complain("a command cannot be started now: %s", strerror(error));
    failing = true; /* said once, until one can be */
    close_pair(gate);
    close_pair(pipe); /* and so the pipe is not watched any more: there is no other copy */
    if (run != NULL)
        free(run->buffer);
    free(run);
    errno = error;
    return NULL;
}

/* Sends the descriptor to the process that waits for it. */
static bool open_gate(struct run *run)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec byte = {.iov_base = (char[]){0}, .iov_len = 1};
    struct msghdr message = {.msg_iov = &byte,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &run->client, sizeof(int));
    return sendmsg(run->gate, &message, MSG_NOSIGNAL) == 1;
}

void run_start(struct run *run, int client)
{
    run->client = client;
    if (!open_gate(run)) {
        complain("the client cannot be given to process %ld: %s", (long)run->pid, strerror(errno));
        shutdown(client, SHUT_RDWR);
    }
    close(run->gate);
    run->gate = -1;
    if (run->pipe != -1)
        run_pump(run);
}

void run_give_up(struct run *run)
{
    close(run->gate); /* the process ends when it sees this */
    run->gate = -1;
    if (run->pipe != -1)
        end_pump(run);
}

static void end(struct run *run, int status)
{
    if (run->pipe != -1)
        end_pump(run);
    if (run->client != -1 && run_verbose && WIFSIGNALED(status))
        printf("%" PRIu64 ": process %ld was killed by signal %d\n", run->number, (long)run->pid,
               WTERMSIG(status));
    else if (run->client != -1 && run_verbose)
        printf("%" PRIu64 ": process %ld ended with status %d\n", run->number, (long)run->pid,
               WEXITSTATUS(status));
    if (run->client == -1 || !run->tls || WIFSIGNALED(status)) {
        /* Of a command that was killed, nobody knows whether it has said all. So there is no
         * close_notify, and a client with TLS sees that something may be missing. */
        release(run);
        return;
    }
    leave(&runs, run);
    enter(&endings, run);
    run->ending = true;
    run->until_us = now_us() + ROOM_S * INT64_C(1000000);
    end_tls(run);
}

void run_reap(void)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        struct run *run = runs;
        while (run != NULL && run->pid != pid)
            run = run->next;
        if (run != NULL) /* or it is no child that this program has made */
            end(run, status);
    }
    must(pid == 0 || errno == ECHILD, "waitpid");
}

void run_signal_all(int number)
{
    for (struct run *run = runs; run != NULL; run = run->next)
        if (kill(run->pid, number) == -1)
            complain("kill %ld: %s", (long)run->pid, strerror(errno));
    for (struct run *run = endings; run != NULL; run = run->next)
        run->until_us = 0;
}
