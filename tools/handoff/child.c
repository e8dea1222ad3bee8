/* The process that becomes the command: its client, its environment, what it must not inherit. */
#define _GNU_SOURCE
#include "child.h"

#include "command.h"
#include "run.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { METADATA_MOST = 65536 };

/* What an earlier program may have left, and what is about this process's own sockets. */
static const char *const unset[] = {
    "HANDOFF_SERVICE", "HANDOFF_CORRELATION", "HANDOFF_METADATA", "HANDOFF_TLS", "REMOTE_ADDR", "REMOTE_PORT",
    "PROTO", "TCPLOCALIP", "TCPLOCALPORT", "TCPLOCALHOST", "TCPREMOTEIP", "TCPREMOTEPORT",
    "TCPREMOTEHOST", "TCPREMOTEINFO", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES",
};

static _Noreturn void fail(int code, const char *what)
{
    complain("%s: %s", what, strerror(errno));
    _exit(code); /* not exit(3): what is buffered is the parent's */
}

static void need(bool ok, const char *what)
{
    if (!ok)
        fail(NOT_EXECUTABLE, what);
}

/* The client's descriptor. Ends the process if there is none: the broker has taken it back. */
static int receive_client(int gate)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec byte = {.iov_base = (char[]){0}, .iov_len = 1};
    struct msghdr message = {.msg_iov = &byte,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t len;
    int client;
    do
        len = recvmsg(gate, &message, MSG_CMSG_CLOEXEC);
    while (len == -1 && errno == EINTR);
    if (len == 0)
        _exit(0);
    need(len == 1, "recvmsg");
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    errno = EMFILE; /* why the kernel would leave it out */
    need(header != NULL && header->cmsg_type == SCM_RIGHTS, "recvmsg");
    memcpy(&client, CMSG_DATA(header), sizeof client);
    return client;
}

static void set(const char *name, const char *value)
{
    need(setenv(name, value, 1) == 0, name);
}

/* The names that CGI and systemd use, and those of ucspi-tcp. */
static void set_address(const struct sockaddr_storage *address, socklen_t len, const char *names[4])
{
    char host[NI_MAXHOST], port[NI_MAXSERV];
    if (address->ss_family != AF_INET && address->ss_family != AF_INET6)
        return;
    if (getnameinfo((const struct sockaddr *)address, len, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return;
    /* An IPv4 client of a socket for both, ipv6(7). */
    const char *mapped = strncmp(host, "::ffff:", 7) == 0 && strchr(host, '.') != NULL ? host + 7
                                                                                       : host;
    for (int i = 0; i < 4; i += 2) {
        if (names[i] != NULL)
            set(names[i], mapped);
        if (names[i + 1] != NULL)
            set(names[i + 1], port);
    }
}

static void set_addresses(int client)
{
    const char *remote[] = {"REMOTE_ADDR", "REMOTE_PORT", "TCPREMOTEIP", "TCPREMOTEPORT"};
    const char *local[] = {NULL, NULL, "TCPLOCALIP", "TCPLOCALPORT"};
    struct sockaddr_storage address;
    socklen_t len = sizeof address;
    if (getpeername(client, (struct sockaddr *)&address, &len) == 0) {
        set_address(&address, len, remote);
        if (address.ss_family == AF_INET || address.ss_family == AF_INET6)
            set("PROTO", "TCP");
    }
    len = sizeof address;
    if (getsockname(client, (struct sockaddr *)&address, &len) == 0)
        set_address(&address, len, local);
}

/* An environment has strings of at most 128 KiB, execve(2). Metadata that is too long, or has a NUL
 * or another control character, is left out. */
static void set_metadata(const char *bytes, size_t len)
{
    char *text = len > METADATA_MOST ? NULL : malloc(len + 1);
    if (text == NULL)
        return;
    for (size_t i = 0; i < len; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        if ((byte < 0x20 && byte != '\t' && byte != '\n' && byte != '\r') || byte == 0x7f) {
            free(text);
            return;
        }
    }
    memcpy(text, bytes, len);
    text[len] = '\0';
    set("HANDOFF_METADATA", text);
    free(text);
}

static void set_tls(int client)
{
    handoff_tls_session session = HANDOFF_TLS_SESSION_INIT;
    char text[64];
    if (handoff_tls_get_session(client, &session) != HANDOFF_OK)
        return;
    snprintf(text, sizeof text, "%s %s", session.version_name, session.cipher_name);
    set("HANDOFF_TLS", text);
}

static void set_environment(const handoff_arrival *arrival, int client)
{
    for (size_t i = 0; i < sizeof unset / sizeof *unset; i++)
        need(unsetenv(unset[i]) == 0, unset[i]);
    if (*arrival->service != '\0')
        set("HANDOFF_SERVICE", arrival->service);
    if (*arrival->correlation != '\0')
        set("HANDOFF_CORRELATION", arrival->correlation);
    if (arrival->metadata_len > 0)
        set_metadata(arrival->metadata, arrival->metadata_len);
    if (arrival->tls)
        set_tls(client);
    set_addresses(client);
}

_Noreturn void child_wait_and_become(char **command, const handoff_arrival *arrival, int gate,
                                     int input)
{
    int client = receive_client(gate), yes = 1;
    /* The client is ours now. Programs that know nothing of handoff expect what is usual. */
    int flags = fcntl(client, F_GETFL);
    need(flags != -1 && fcntl(client, F_SETFL, flags & ~(O_NONBLOCK | O_ASYNC)) == 0, "fcntl");
    need(setsockopt(client, SOL_SOCKET, SO_RCVLOWAT, &yes, sizeof yes) == 0, "SO_RCVLOWAT");
    set_environment(arrival, client);
    /* All others are close-on-exec. */
    need(dup2(input == -1 ? client : input, STDIN_FILENO) != -1, "dup2");
    need(dup2(client, STDOUT_FILENO) != -1, "dup2");
    need(sigaction(SIGPIPE, &run_sigpipe, NULL) == 0, "SIGPIPE");
    need(sigprocmask(SIG_SETMASK, &run_mask, NULL) == 0, "sigprocmask");
    restore_descriptor_limit();
    execvp(*command, command);
    fail(errno == ENOENT ? NOT_FOUND : NOT_EXECUTABLE, *command);
}
