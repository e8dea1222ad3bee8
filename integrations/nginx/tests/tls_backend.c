/*
 * tls_backend: terminates TLS on connections that came through a handoff socket, or to its TCP port
 * directly, and echoes. What the broker has read of the handshake comes first.
 *
 *   tls_backend HANDOFF CERTIFICATE KEY
 *
 * A thread for each connection. It greets the client with how it came: "handoff" or "tcp".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/ssl.h>

#include <handoff.h>

enum { PATIENCE_MS = 30000 };

struct client {
    int fd;
    const char *way;
    SSL *ssl;
    BIO *from_client, *to_client; /* OpenSSL's ends of both are in memory */
};

static SSL_CTX *context;

static void check(int ok, const char *what, const char *why)
{
    if (ok)
        return;
    fprintf(stderr, "tls_backend: %s: %s\n", what, why ? why : strerror(errno));
    ERR_print_errors_fp(stderr);
    exit(1);
}

static bool wait_for(int fd, short events)
{
    struct pollfd poll_fd = {.fd = fd, .events = events};
    return poll(&poll_fd, 1, PATIENCE_MS) == 1;
}

/* Sends what OpenSSL has made. */
static bool send_made(struct client *client)
{
    char bytes[16384];
    int len;
    while ((len = BIO_read(client->to_client, bytes, sizeof bytes)) > 0)
        for (int sent = 0; sent < len;) {
            ssize_t n = send(client->fd, bytes + sent, (size_t)(len - sent),
                             MSG_NOSIGNAL | MSG_DONTWAIT);
            if (n > 0)
                sent += (int)n;
            else if (errno != EAGAIN || !wait_for(client->fd, POLLOUT))
                return false;
        }
    return true;
}

/* Waits for bytes of the client and gives them to OpenSSL. */
static bool receive(struct client *client)
{
    char bytes[16384];
    for (;;) {
        ssize_t n = recv(client->fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (n > 0)
            return BIO_write(client->from_client, bytes, (int)n) == n;
        if (n == 0 || errno != EAGAIN || !wait_for(client->fd, POLLIN))
            return false;
    }
}

/* What became of an SSL_* call: whether to repeat it, after more has come. */
static bool again(struct client *client, int result)
{
    int error = SSL_get_error(client->ssl, result);
    return send_made(client) && error == SSL_ERROR_WANT_READ && receive(client);
}

static void echo(struct client *client)
{
    char bytes[16384];
    int n;
    while ((n = SSL_accept(client->ssl)) != 1)
        if (!again(client, n))
            return;
    n = snprintf(bytes, sizeof bytes, "%s\n", client->way);
    for (;;) {
        if (n > 0 && (SSL_write(client->ssl, bytes, n) != n || !send_made(client)))
            return;
        n = SSL_read(client->ssl, bytes, sizeof bytes);
        if (n <= 0 && !again(client, n))
            break;
    }
    SSL_shutdown(client->ssl);
    send_made(client);
}

static void *serve(void *argument)
{
    struct client *client = argument;
    echo(client);
    SSL_free(client->ssl);
    shutdown(client->fd, SHUT_WR);
    close(client->fd);
    free(client);
    return NULL;
}

static void begin(int fd, const char *way, const void *preread, size_t len)
{
    pthread_t thread;
    struct client *client = malloc(sizeof *client);
    check(client != NULL, "malloc", NULL);
    *client = (struct client){.fd = fd, .way = way, .ssl = SSL_new(context),
                              .from_client = BIO_new(BIO_s_mem()),
                              .to_client = BIO_new(BIO_s_mem())};
    SSL_set_bio(client->ssl, client->from_client, client->to_client);
    if (len > 0)
        check(BIO_write(client->from_client, preread, (int)len) == (int)len, "BIO_write", "");
    check(pthread_create(&thread, NULL, serve, client) == 0, "pthread_create", "");
    pthread_detach(thread);
}

static void *accept_tcp(void *argument)
{
    int listener = *(int *)argument, fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) != -1)
        begin(fd, "tcp", NULL, 0);
    check(0, "accept", NULL);
    return NULL;
}

int main(int argc, char **argv)
{
    check(argc == 4, "usage", "tls_backend HANDOFF CERTIFICATE KEY");
    context = SSL_CTX_new(TLS_server_method());
    check(context != NULL &&
          SSL_CTX_use_certificate_file(context, argv[2], SSL_FILETYPE_PEM) == 1 &&
          SSL_CTX_use_PrivateKey_file(context, argv[3], SSL_FILETYPE_PEM) == 1, argv[2], "");

    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(listener != -1 && bind(listener, (struct sockaddr *)&address, len) == 0 &&
          listen(listener, 4096) == 0 &&
          getsockname(listener, (struct sockaddr *)&address, &len) == 0, "listen",
          NULL);
    pthread_t thread;
    check(pthread_create(&thread, NULL, accept_tcp, &listener) == 0, "pthread_create", "");

    handoff_backend *backend;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    check(handoff_backend_listen(argv[1], NULL, &backend) == HANDOFF_OK, argv[1],
          handoff_last_error());
    printf("%d 0\n", ntohs(address.sin_port));
    fflush(stdout);
    while (handoff_backend_accept(backend, -1, &arrival) == HANDOFF_OK)
        begin(arrival.fd, "handoff", arrival.preread, arrival.preread_len);
    check(0, "accept", handoff_last_error());
}
