/* Where `handoff broker` accepts its clients. */
#define _GNU_SOURCE
#include "listen.h"

#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 4096 };

static const char *file; /* NULL: none to remove */
static struct stat made;

/* A socket file that nobody listens on any more is replaced, as a backend does it. Any other file
 * stays; connect(2) would say of it, too, that nobody listens. */
static int bind_unix(int fd, const struct sockaddr_un *address)
{
    const struct sockaddr *at = (const struct sockaddr *)address;
    struct stat found;
    if (bind(fd, at, sizeof *address) == 0)
        return 0;
    if (errno != EADDRINUSE)
        return -1;
    if (lstat(address->sun_path, &found) == 0 && !S_ISSOCK(found.st_mode)) {
        errno = ENOTSOCK;
        return -1;
    }
    int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe == -1)
        return -1;
    int in_use = connect(probe, at, sizeof *address) == 0 || errno != ECONNREFUSED;
    close(probe);
    if (in_use || unlink(address->sun_path) == -1) {
        errno = EADDRINUSE;
        return -1;
    }
    return bind(fd, at, sizeof *address);
}

static int listen_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (*path == '\0' || strlen(path) >= sizeof address.sun_path) {
        complain("the path of a Unix socket has 1 to %zu bytes: %s", sizeof address.sun_path - 1,
                 path);
        return WRONG_ADDRESS;
    }
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd != -1 && bind_unix(fd, &address) == 0 && listen(fd, BACKLOG) == 0 &&
        lstat(path, &made) == 0) {
        file = path;
        return fd;
    }
    complain("unix:%s: %s", path,
             errno == ENOTSOCK ? "the file is not a socket" : strerror(errno));
    if (fd != -1)
        close(fd);
    return -1;
}

static int listen_tcp(const char *host, const char *port)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC,
                                   .ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_PASSIVE};
    struct addrinfo *found;
    uint64_t number;
    /* getaddrinfo(3) would take such a number modulo 65536. */
    if (*port >= '0' && *port <= '9' && !parse_number(port, 0, UINT16_MAX, &number)) {
        complain("%s is no port: say a number from 0 to 65535", port);
        return WRONG_ADDRESS;
    }
    int fd = -1, yes = 1, error = getaddrinfo(*host == '\0' ? NULL : host, port, &hints, &found);
    if (error != 0) {
        complain("%s port %s: %s", host, port,
                 error == EAI_SYSTEM ? strerror(errno) : gai_strerror(error));
        return error == EAI_SERVICE ? WRONG_ADDRESS : -1;
    }
    for (const struct addrinfo *at = found; at != NULL && fd == -1; at = at->ai_next) {
        fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd == -1 ||
            (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
             bind(fd, at->ai_addr, at->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0))
            continue;
        int why = errno;
        close(fd);
        fd = -1;
        errno = why;
    }
    if (fd == -1)
        complain("%s port %s: %s", *host == '\0' ? "any address," : host, port, strerror(errno));
    freeaddrinfo(found);
    return fd;
}

/* A socket that whoever started this program has opened: it does not go when this program ends, so
 * the next one finds the clients that came meanwhile. */
static int take_passed(const char *number)
{
    uint64_t fd;
    int listens = 0;
    socklen_t len = sizeof listens;
    if (!parse_number(number, 0, INT32_MAX, &fd) ||
        getsockopt((int)fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) == -1 || !listens) {
        complain("fd:%s is not the number of a listening socket", number);
        return WRONG_ADDRESS;
    }
    must(fcntl((int)fd, F_SETFD, FD_CLOEXEC) == 0 && fcntl((int)fd, F_SETFL, O_NONBLOCK) == 0,
         "fcntl");
    return (int)fd;
}

void remove_file(void)
{
    struct stat found;
    if (file == NULL || lstat(file, &found) == -1 || found.st_dev != made.st_dev ||
        found.st_ino != made.st_ino)
        return;
    if (unlink(file) == -1)
        complain("%s: %s", file, strerror(errno));
}

int listen_at(const char *address)
{
    static const char unix_prefix[] = "unix:", fd_prefix[] = "fd:";
    char host[256];
    if (strncmp(address, unix_prefix, sizeof unix_prefix - 1) == 0)
        return listen_unix(address + sizeof unix_prefix - 1);
    if (strncmp(address, fd_prefix, sizeof fd_prefix - 1) == 0)
        return take_passed(address + sizeof fd_prefix - 1);
    const char *colon = strrchr(address, ':');
    size_t len = colon == NULL ? 0 : (size_t)(colon - address);
    if (colon == NULL || len >= sizeof host) {
        complain("%s is no address: say HOST:PORT, [HOST]:PORT, unix:PATH or fd:NUMBER", address);
        return WRONG_ADDRESS;
    }
    if (colon[1] == '\0' || (len == 2 && strncmp(address, "[]", 2) == 0)) {
        complain("%s has no %s", address, colon[1] == '\0' ? "port" : "host in its brackets");
        return WRONG_ADDRESS;
    }
    if (len >= 2 && address[0] == '[' && address[len - 1] == ']') {
        address++;
        len -= 2;
    }
    memcpy(host, address, len);
    host[len] = '\0';
    return listen_tcp(host, colon + 1);
}

void describe_address(const struct sockaddr *address, socklen_t len, char *text, size_t size)
{
    char host[64], port[16];
    if (address->sa_family == AF_UNIX) {
        const struct sockaddr_un *path = (const struct sockaddr_un *)address;
        /* Linux ends a path with a NUL if there is room for one. */
        int most = (int)(len - offsetof(struct sockaddr_un, sun_path));
        snprintf(text, size, "unix:%.*s", most > 0 ? most : 0, path->sun_path);
    } else if (getnameinfo(address, len, host, sizeof host, port, sizeof port,
                           NI_NUMERICHOST | NI_NUMERICSERV) == 0) {
        snprintf(text, size, strchr(host, ':') == NULL ? "%s:%s" : "[%s]:%s", host, port);
    } else {
        snprintf(text, size, "an unknown address");
    }
}
