/*
 * threaded_backend: a backend with a thread for each client. It gets clients by two ways, and serves
 * them alike: brokers hand them over at a handoff socket, and proxies connect to an ordinary Unix
 * socket for them.
 *
 *   cc threaded_backend.c $(pkg-config --cflags --libs handoff) -lpthread -o threaded_backend
 *   ./threaded_backend SOCKET PROXIES_SOCKET
 *
 * The answer to GET /N has N bytes; to GET / it is a line. After SIGTERM or SIGINT the program takes
 * no more clients, removes the sockets' files, answers the clients that it has, and ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <handoff.h>

enum { REQUEST_LEN = 4096, REQUEST_MS = 10000 };

struct client {
    int fd;
    size_t len;
    char request[REQUEST_LEN];
};

static handoff_backend *backend;
static int listener;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t none_left = PTHREAD_COND_INITIALIZER;
static int clients; /* under the lock */

/* Ends the program if something failed that cannot fail in normal operation. Without a `why` that is
 * errno: a caller cannot pass its text, because it may be evaluated before the call that sets it. */
static void check(int ok, const char *call, const char *why)
{
    if (ok)
        return;
    fprintf(stderr, "threaded_backend: %s: %s\n", call, why ? why : strerror(errno));
    exit(1);
}

static int send_all(int fd, const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t sent = send(fd, bytes, len, MSG_NOSIGNAL);
        if (sent == -1)
            return 0;
        bytes += sent;
        len -= (size_t)sent;
    }
    return 1;
}

static int answer(int fd, size_t len)
{
    static const char bytes[65536];
    char line[64], head[128];
    int line_len = snprintf(line, sizeof line, "served by the backend %d\n", getpid());
    int head_len = snprintf(head, sizeof head, "HTTP/1.0 200 OK\r\nContent-Length: %zu\r\n\r\n%s",
                            len > 0 ? len : (size_t)line_len, len > 0 ? "" : line);
    if (!send_all(fd, head, (size_t)head_len))
        return 0;
    for (size_t part; len > 0; len -= part) {
        part = len < sizeof bytes ? len : sizeof bytes;
        if (!send_all(fd, bytes, part))
            return 0;
    }
    return 1;
}

/* The thread of a client. Its request comes in one piece in this example. */
static void *serve(void *argument)
{
    struct client *client = argument;
    struct pollfd readable = {.fd = client->fd, .events = POLLIN};
    if (client->len == 0 && poll(&readable, 1, REQUEST_MS) == 1) {
        ssize_t len = recv(client->fd, client->request, REQUEST_LEN - 1, 0);
        client->len = len > 0 ? (size_t)len : 0;
    }
    client->request[client->len] = 0;
    if (strncmp(client->request, "GET /", 5) == 0 &&
        !answer(client->fd, strtoul(client->request + 5, NULL, 10)))
        perror("threaded_backend: answering a client");
    /* The broker may not have closed its copy yet. While it has one, close(2) does not end the
     * connection. */
    shutdown(client->fd, SHUT_WR);
    close(client->fd);
    free(client);
    pthread_mutex_lock(&lock);
    if (--clients == 0)
        pthread_cond_signal(&none_left);
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void start(int fd, const void *preread, size_t len)
{
    pthread_t thread;
    struct client *client = malloc(sizeof *client);
    check(client != NULL, "malloc", "no more memory");
    client->fd = fd;
    client->len = len < REQUEST_LEN ? len : REQUEST_LEN - 1;
    if (len > 0)
        memcpy(client->request, preread, client->len); /* the next accept overwrites it */
    pthread_mutex_lock(&lock);
    clients++;
    pthread_mutex_unlock(&lock);
    check(pthread_create(&thread, NULL, serve, client) == 0, "pthread_create", "no more threads");
    pthread_detach(thread);
}

static void *take_from_brokers(void *unused)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_status status;
    (void)unused;
    while ((status = handoff_backend_accept(backend, -1, &arrival)) == HANDOFF_OK) {
        /* Its thread may block. The broker may have set O_NONBLOCK, which copies share. */
        check(fcntl(arrival.fd, F_SETFL, 0) == 0, "F_SETFL", NULL);
        start(arrival.fd, arrival.preread, arrival.preread_len);
    }
    check(status == HANDOFF_WOKEN, "handoff_backend_accept", handoff_last_error());
    handoff_backend_free(backend); /* in the thread that used it */
    return NULL;
}

/* accept(2) failed. Perhaps there is no descriptor for the client now: it still waits, so not again
 * at once. */
static void not_accepted(void)
{
    if (errno == ECONNABORTED)
        return;
    perror("threaded_backend: accept4");
    usleep(10000);
}

static void *take_from_proxies(void *unused)
{
    (void)unused;
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd != -1)
            start(fd, NULL, 0);
        else if (errno == EINVAL)
            return NULL; /* the socket is shut down */
        else
            not_accepted();
    }
}

static void listen_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat file;
    check(strlen(path) < sizeof address.sun_path, path, "too long");
    strcpy(address.sun_path, path);
    /* One that was killed has left its socket. Whoever has made another file wants to keep it. */
    if (lstat(path, &file) == 0 && S_ISSOCK(file.st_mode))
        unlink(path);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(listener != -1 &&
          bind(listener, (struct sockaddr *)&address, sizeof address) == 0 &&
          listen(listener, 1024) == 0, path, NULL);
}

int main(int argc, char **argv)
{
    pthread_t brokers, proxies;
    sigset_t stop_signals;
    int number;
    if (argc != 3) {
        fprintf(stderr, "usage: threaded_backend SOCKET PROXIES_SOCKET\n");
        return 2;
    }
    check(handoff_backend_listen(argv[1], NULL, &backend) == HANDOFF_OK, argv[1],
          handoff_last_error());
    listen_unix(argv[2]);
    /* Only this thread takes the signals: the others inherit that they are blocked. */
    sigemptyset(&stop_signals);
    sigaddset(&stop_signals, SIGTERM);
    sigaddset(&stop_signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &stop_signals, NULL);
    check(pthread_create(&brokers, NULL, take_from_brokers, NULL) == 0, "pthread_create",
          "no more threads");
    check(pthread_create(&proxies, NULL, take_from_proxies, NULL) == 0, "pthread_create",
          "no more threads");
    printf("listening on %s\n", argv[1]);
    fflush(stdout);

    sigwait(&stop_signals, &number);
    unlink(argv[2]); /* a successor can listen as soon as the backend no longer does */
    handoff_backend_wake(backend);
    shutdown(listener, SHUT_RD);
    pthread_join(brokers, NULL);
    pthread_join(proxies, NULL);
    pthread_mutex_lock(&lock);
    while (clients > 0)
        pthread_cond_wait(&none_left, &lock);
    pthread_mutex_unlock(&lock);
    return 0;
}
