/*
 * tls_client: many clients over TLS, so many at a time, over the loopback interface.
 *
 *   tls_client ask PORT CONCURRENCY CONNECTIONS REQUESTS TARGET
 *   tls_client hold PORT CONCURRENCY CONNECTIONS TARGET
 *
 * Each connects, shakes hands without a session, and asks for TARGET so many times, one after the
 * other; with the last it asks for the end of the connection. Those of `hold` ask once, and keep what
 * begins; then the next one connects. Prints how long all took in nanoseconds, how many bytes came, and the median and the 99th
 * percentile of the time to the first byte of an answer: for the first of a connection from its
 * connect(2), for the others from the request. `hold` prints this when all have a first byte; for each
 * line of its input it prints how many bytes have come since.
 */
#define _GNU_SOURCE
#include "../common.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 1 << 20, MOST_OPEN = 4096, HEAD = 4096 };

struct client {
    int fd, asked, in_handshake, has_answer;
    SSL *tls;
    double start;
    long left; /* of the body; -1 until the head is there */
    size_t head_len;
    char head[HEAD];
};

static int epoll, port, connections, requests, first, hold;
static int begun, ended;
static unsigned long bytes_read;
static double first_times[MOST], other_times[MOST];
static int others;
static struct client clients[MOST_OPEN];
static const char *target;
static SSL_CTX *context;

/* Ends the program unless a call wants to read more. */
static void need_more(SSL *tls, int result, const char *step)
{
    int error = SSL_get_error(tls, result);
    if (error == SSL_ERROR_WANT_READ)
        return;
    ERR_print_errors_fp(stderr);
    fprintf(stderr, "error %d of OpenSSL\n", error);
    need(0, step);
}

static void ask(struct client *client)
{
    char request[1024];
    int last = ++client->asked == requests && !hold;
    int len = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n",
                       target, last ? "Connection: close\r\n" : "");
    client->has_answer = 0;
    client->left = -1;
    client->head_len = 0;
    if (client->asked > 1)
        client->start = now();
    need(SSL_write(client->tls, request, len) == len, "asking");
}

static void go_on(struct client *client);

static void begin(struct client *client)
{
    if (begun == connections)
        return;
    *client = (struct client){.in_handshake = 1, .start = now()};
    client->fd = dial(port, begun++);
    need(fcntl(client->fd, F_SETFL, O_NONBLOCK) == 0, "O_NONBLOCK");
    client->tls = SSL_new(context);
    need(client->tls != NULL && SSL_set_fd(client->tls, client->fd) == 1, "SSL_new");
    SSL_set_connect_state(client->tls);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
    need(epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event) == 0, "EPOLL_CTL_ADD");
    go_on(client);
}

static void end(struct client *client)
{
    SSL_free(client->tls);
    close(client->fd);
    ended++;
    begin(client);
}

/* Takes a part of an answer. Not 0: it is whole. */
static int take(struct client *client, const char *bytes, size_t len)
{
    if (!client->has_answer) {
        if (client->asked == 1)
            first_times[first++] = now() - client->start;
        else
            other_times[others++] = now() - client->start;
        client->has_answer = 1;
        if (hold && begun < connections)
            begin(&clients[begun]);
    }
    bytes_read += len;
    if (client->left == -1) {
        size_t more = len < HEAD - 1 - client->head_len ? len : HEAD - 1 - client->head_len;
        memcpy(client->head + client->head_len, bytes, more);
        client->head[client->head_len += more] = 0;
        char *end = strstr(client->head, "\r\n\r\n");
        if (end == NULL)
            return 0;
        need(strncmp(client->head, "HTTP/1.1 200 ", 13) == 0, client->head);
        const char *length = strcasestr(client->head, "\r\nContent-Length: ");
        client->left = length == NULL ? 0x7fffffffffffffff : atol(length + 18);
        client->left -= (long)(client->head_len - (size_t)(end + 4 - client->head) + len - more);
    } else
        client->left -= (long)len;
    need(client->left >= 0, "an answer of this length");
    return client->left == 0;
}

static void go_on(struct client *client)
{
    static char bytes[1 << 18];
    if (client->in_handshake) {
        int done = SSL_do_handshake(client->tls);
        if (done != 1) {
            need_more(client->tls, done, "a handshake");
            return;
        }
        client->in_handshake = 0;
        ask(client);
    }
    for (;;) {
        size_t len;
        if (SSL_read_ex(client->tls, bytes, sizeof bytes, &len) != 1) {
            need_more(client->tls, 0, "an answer");
            return;
        }
        if (!take(client, bytes, len))
            continue;
        if (client->asked == requests) {
            end(client);
            return;
        }
        ask(client);
    }
}

static void report(double since)
{
    printf("%.0f %lu", now() - since, bytes_read);
    printf(" %.0f", quantile(first_times, first, 0.5));
    printf(" %.0f", quantile(first_times, first, 0.99));
    printf(" %.0f", others ? quantile(other_times, others, 0.5) : 0);
    printf(" %.0f\n", others ? quantile(other_times, others, 0.99) : 0);
    fflush(stdout);
}

/* Says, for each line of the input, what has come. */
static void answer_input(void)
{
    char line[100];
    if (fgets(line, sizeof line, stdin) == NULL)
        exit(0);
    printf("%lu\n", bytes_read);
    fflush(stdout);
}

static void turn(void)
{
    struct epoll_event events[64];
    int n = epoll_wait(epoll, events, 64, 60000);
    need(n > 0, "no answer for a minute");
    for (int i = 0; i < n; i++)
        if (events[i].data.ptr == NULL)
            answer_input();
        else
            go_on(events[i].data.ptr);
}

int main(int argc, char **argv)
{
    hold = argc > 1 && strcmp(argv[1], "hold") == 0;
    need(argc == (hold ? 6 : 7), "usage: tls_client ask|hold PORT CONCURRENCY CONNECTIONS ...");
    port = atoi(argv[2]);
    int concurrency = atoi(argv[3]);
    connections = atoi(argv[4]);
    requests = hold ? 1 : atoi(argv[5]);
    target = argv[argc - 1];
    need(concurrency > 0 && connections >= concurrency && requests > 0 &&
         (long)connections * requests <= MOST && (hold ? connections : concurrency) <= MOST_OPEN,
         "arguments");
    context = SSL_CTX_new(TLS_client_method());
    need(context != NULL, "SSL_CTX_new");
    /* A backend's end is no close_notify. */
    SSL_CTX_set_options(context, SSL_OP_IGNORE_UNEXPECTED_EOF);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    need(epoll != -1, "epoll_create1");
    double since = now();
    for (int i = 0; i < concurrency; i++)
        begin(&clients[i]);
    while (hold ? first < connections : ended < connections)
        turn();
    report(since);
    if (!hold)
        return 0;
    bytes_read = 0;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    need(epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event) == 0, "EPOLL_CTL_ADD");
    for (;;)
        turn();
}
