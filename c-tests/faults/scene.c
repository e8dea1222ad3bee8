#define _GNU_SOURCE
#include "scene.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SIDE_BACKEND_ANSWER = '2', MOST_FDS = 256 };

struct scene *scene;
enum side me;

/* What is done only to see whether descriptors are left is no part of the scenario. */
static bool is_counting;

static const char *const sides[SIDES] = {"broker", "backend"};

_Noreturn void failed(const char *condition, const char *file, int line)
{
    const char *slash = strrchr(file, '/'), *call = scene->call[me];
    fprintf(stderr, "%s:%d: in the %s: %s is false (%s; errno %s; last error: %s)\n",
            slash != NULL ? slash + 1 : file, line, sides[me], condition,
            call != NULL ? call : "in no call", strerror(errno), handoff_last_error());
    _exit(1);
}

/* ---- calls of the library ------------------------------------------------------------------- */

void enter(const char *call)
{
    scene->calls[me]++;
    errno = 0;
    scene->call[me] = is_counting ? NULL : call;
}

/* What every process finds when the other has gone, is late or does something else. */
static bool is_usual(handoff_status status)
{
    switch (status) {
    case HANDOFF_ERR_BACKEND_UNAVAILABLE:
    case HANDOFF_ERR_FULL:
    case HANDOFF_ERR_WOULD_BLOCK:
    case HANDOFF_ERR_TAKEN_BACK:
    case HANDOFF_ERR_TOO_LATE:
    case HANDOFF_ERR_ACK_TIMEOUT:
    case HANDOFF_ERR_TOKEN_ALREADY_PENDING:
    case HANDOFF_ERR_TOKEN_NOT_PENDING:
    case HANDOFF_ERR_END_OF_STREAM:
        return true;
    default:
        return false;
    }
}

/* The errno that goes with what is usual; none where the system has no part in it. */
static bool is_usual_errno(int error)
{
    switch (error) {
    case 0:
    case EAGAIN:
    case ECONNREFUSED:
    case ECONNRESET:
    case ENOENT:
    case ENOTCONN:
    case EPIPE:
    case ESHUTDOWN:
        return true;
    default:
        return false;
    }
}

/* A status that a fault of the system may have. A bug of the caller, or of the library, it is not:
   HANDOFF_ERR_INVALID_ARGUMENT is right only where the system said that of a descriptor. */
static bool is_named(handoff_status status, int error)
{
    if (strcmp(handoff_status_name(status), "HANDOFF_ERR_UNKNOWN") == 0)
        return false;
    switch (status) {
    case HANDOFF_ERR_INTERNAL:
    case HANDOFF_ERR_WRONG_PROCESS:
    case HANDOFF_ERR_CLOSED:
        return false;
    case HANDOFF_ERR_INVALID_ARGUMENT:
        return error != 0;
    default:
        return true;
    }
}

static bool is_injected(int error)
{
    /* Where fallocate(2) is not supported, posix_fallocate(3) of glibc tries another way, and says EBADF
       whatever fails there. */
    bool is_glibcs = error == EBADF && scene->injected_too != 0;
    return error != 0 &&
           (error == scene->injected || error == scene->injected_too || is_glibcs);
}

static void judge(handoff_status status, int error)
{
    scene->status[me] = status;
    scene->errors[me]++;
    check(handoff_last_error()[0] != '\0');
    bool usual = is_usual(status) && is_usual_errno(error);
    if (scene->injected == 0 || usual)
        check(usual);
    else
        check(is_named(status, error) && (is_injected(error) || is_usual(status)));
}

void check_cause(handoff_status cause)
{
    int error = errno;
    check(handoff_last_error()[0] != '\0');
    check(scene->injected != 0 ? is_named(cause, error) : is_usual(cause));
}

handoff_status leave(handoff_status status)
{
    int error = errno;
    if (status < HANDOFF_OK)
        judge(status, error);
    scene->call[me] = NULL;
    return status;
}

int leave_fd(int fd)
{
    if (fd == -1) {
        int error = errno;
        scene->errors[me]++;
        check(handoff_last_error()[0] != '\0');
        check(is_injected(error));
    }
    scene->call[me] = NULL;
    return fd;
}

/* ---- owners --------------------------------------------------------------------------------- */

void answer(int fd, char by)
{
    check(send(fd, &by, 1, MSG_NOSIGNAL) == 1);
    check(close(fd) == 0);
}

void settle(uint32_t number, enum outcome outcome, bool may_have_reached)
{
    struct connection *connection = &scene->connections[number];
    check(!is_settled(number));
    check(outcome == TAKEN_BACK || may_have_reached || !connection->seen);
    connection->outcome = outcome;
    int fd = FIRST_FD + (int)(number % CONNECTIONS);
    if (outcome == ADOPTED || outcome == UNKNOWN)
        check(close(fd) == 0);
    else
        answer(fd, '1');
}

bool is_settled(uint32_t number)
{
    return scene->connections[number].outcome != UNSETTLED;
}

bool is_decided(uint32_t number)
{
    return number == PROBE || is_settled(number) || number < scene->brokers_killed * CONNECTIONS;
}

void adopting(uint32_t number)
{
    if (number != PROBE)
        scene->connections[number].adopter = 1;
}

void adopted(uint32_t number, int fd, bool is_adopted)
{
    if (number != PROBE) {
        struct connection *connection = &scene->connections[number];
        check(!is_adopted || !connection->adopted);
        connection->adopter = is_adopted;
        connection->adopted |= is_adopted;
    }
    if (!is_adopted)
        return;
    if (number != PROBE) {
        answer(fd, SIDE_BACKEND_ANSWER);
        return;
    }
    /* Its client is the broker, which may have been killed. */
    char by = SIDE_BACKEND_ANSWER;
    check(send(fd, &by, 1, MSG_NOSIGNAL) == 1 || errno == EPIPE);
    check(close(fd) == 0);
}

uint64_t cookie_of(int socket)
{
    uint64_t cookie = 0;
    socklen_t len = sizeof cookie;
    check(getsockopt(socket, SOL_SOCKET, SO_COOKIE, &cookie, &len) == 0);
    return cookie;
}

uint32_t number_of(int fd)
{
    uint64_t cookie = cookie_of(fd);
    for (uint32_t i = 0; i < BROKERS * CONNECTIONS; i++)
        if (scene->connections[i].cookie == cookie)
            return i;
    return PROBE;
}

int begin_probe(int *client)
{
    int pair[2];
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    *client = pair[0];
    return pair[1];
}

bool end_probe(int client, int fd, bool is_adopted)
{
    char byte = 0;
    check(close(fd) == 0);
    /* The other copy is the backend's: it has answered if it owns the connection, and has closed
       it, or will, if it does not. */
    bool is_answered = is_adopted && recv(client, &byte, 1, 0) == 1;
    if (is_adopted)
        check(scene->backend_dies || is_answered);
    check(!is_answered || byte == SIDE_BACKEND_ANSWER);
    check(close(client) == 0);
    return is_answered;
}

/* ---- descriptors and time ------------------------------------------------------------------- */

void pause_shortly(void)
{
    struct timespec millisecond = {.tv_nsec = 1000000};
    nanosleep(&millisecond, NULL);
}

unsigned open_descriptors(void)
{
    unsigned count = 0;
    for (int fd = FIRST_FD; fd < MOST_FDS; fd++)
        count += fcntl(fd, F_GETFD) != -1;
    return count;
}

void check_idle(void (*turn)(void))
{
    /* A channel may be about to end, or to begin. */
    is_counting = true;
    for (int i = 0; scene->undisturbed ? i < 10 : i < 5000; i++) {
        if (!scene->undisturbed && open_descriptors() == scene->idle[me])
            break;
        turn();
    }
    if (scene->undisturbed)
        scene->idle[me] = open_descriptors();
    is_counting = false;
    check(open_descriptors() == scene->idle[me]);
}
