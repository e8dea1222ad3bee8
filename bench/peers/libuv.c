/*
 * libuv: uv_write2() of a uv_tcp_t over an IPC pipe, uv_pipe_pending_count() and uv_accept() at the
 * other end, as in its guide.
 */
#define _GNU_SOURCE
#include "peer.h"

#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

enum { BUFFER = 65536 };

static uv_loop_t *loop;
static uv_pipe_t channel;
static char buffer[BUFFER];

static void *new(size_t len)
{
    void *memory = calloc(1, len);
    need(memory != NULL, "calloc");
    return memory;
}

/* What is read is used up in the callback, so one buffer will do. */
static void allocate(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    (void)handle;
    (void)suggested;
    *buf = uv_buf_init(buffer, BUFFER);
}

static void open_channel(int socket, uv_read_cb on_read)
{
    loop = uv_default_loop();
    need(uv_pipe_init(loop, &channel, 1) == 0 && uv_pipe_open(&channel, socket) == 0 &&
         uv_read_start((uv_stream_t *)&channel, allocate, on_read) == 0, "opening the pipe");
}

static void stop(void)
{
    uv_read_stop((uv_stream_t *)&channel);
    uv_stop(loop);
}

static void free_handle(uv_handle_t *handle)
{
    free(handle);
}

/* ---- the broker ---- */

struct connection {
    uv_tcp_t tcp;
    uv_write_t write;
    int slot;
    char token[TOKEN], request[REQUEST];
};

static struct connection *connections[MOST_CLIENTS];
static int free_slots[MOST_CLIENTS], free_count, begun;
static char zeros[MOST_PREREAD];

static struct connection *new_connection(void)
{
    struct connection *connection = new(sizeof *connection);
    need(free_count > 0, "too many clients");
    connection->slot = free_slots[--free_count];
    connections[connection->slot] = connection;
    memcpy(connection->token, &connection->slot, sizeof connection->slot);
    need(uv_tcp_init(loop, &connection->tcp) == 0, "uv_tcp_init");
    return connection;
}

static void sent(uv_write_t *write, int status)
{
    (void)write;
    need(status == 0, "uv_write2");
}

static void hand_over(struct connection *connection)
{
    uv_buf_t bufs[2] = {uv_buf_init(connection->token, TOKEN),
                        uv_buf_init(is_move ? zeros : connection->request, (unsigned)preread)};
    need(uv_write2(&connection->write, (uv_stream_t *)&channel, bufs, preread > 0 ? 2 : 1,
                   (uv_stream_t *)&connection->tcp, sent) == 0, "uv_write2");
}

static void settle_token(const char *token)
{
    int slot;
    memcpy(&slot, token, sizeof slot);
    struct connection *connection = connections[slot];
    if (settled())
        stop();
    if (!is_move) {
        connections[slot] = NULL;
        free_slots[free_count++] = slot;
        uv_close((uv_handle_t *)&connection->tcp, free_handle);
    } else if (begun < warm + count) {
        begun++;
        hand_over(connection);
    }
}

static void read_acknowledgements(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    static char token[TOKEN];
    static size_t len;
    (void)stream;
    need(n >= 0, "acknowledgement");
    for (ssize_t i = 0; i < n; i++) {
        token[len++] = buf->base[i];
        if (len == TOKEN) {
            settle_token(token);
            len = 0;
        }
    }
}

static void read_request(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct connection *connection = (struct connection *)stream; /* its first member */
    if (n == 0)
        return;
    need(n == REQUEST && uv_read_stop(stream) == 0, "request");
    memcpy(connection->request, buf->base, REQUEST);
    hand_over(connection);
}

static void accept_client(uv_stream_t *listener, int status)
{
    struct connection *connection = new_connection();
    need(status == 0 && uv_accept(listener, (uv_stream_t *)&connection->tcp) == 0 &&
         uv_read_start((uv_stream_t *)&connection->tcp, allocate, read_request) == 0, "uv_accept");
}

static void serve_clients(uv_tcp_t *listener)
{
    struct sockaddr_in at;
    int len = sizeof at;
    need(uv_ip4_addr("127.0.0.1", 0, &at) == 0 && uv_tcp_init(loop, listener) == 0 &&
         uv_tcp_bind(listener, (struct sockaddr *)&at, 0) == 0 &&
         uv_listen((uv_stream_t *)listener, 4096, accept_client) == 0 &&
         uv_tcp_getsockname(listener, (struct sockaddr *)&at, &len) == 0, "listening");
    announce(ntohs(at.sin_port));
}

/* Above 1024 the descriptors are copies, as in peer.c; each offer in flight has its own handle. */
static void move_connections(void)
{
    for (; begun < in_flight && begun < warm + count; begun++) {
        static int pair[2];
        struct connection *connection = new_connection();
        if (begun < MOST_CONNECTIONS)
            connect_tcp(pair);
        need(uv_tcp_open(&connection->tcp, dup(pair[1])) == 0, "uv_tcp_open");
        hand_over(connection);
    }
}

/* ---- the backend ---- */

struct arrival {
    uv_tcp_t tcp;
    uv_shutdown_t shutdown;
};

static char *held;
static int held_count, finished;

static void ended(uv_shutdown_t *shutdown, int status)
{
    (void)status;
    uv_close((uv_handle_t *)shutdown->handle, free_handle);
}

struct ack {
    uv_write_t write;
    char token[TOKEN];
};

static void stop_if_done(void)
{
    if (finished && uv_stream_get_write_queue_size((uv_stream_t *)&channel) == 0)
        stop();
}

static void acknowledged(uv_write_t *write, int status)
{
    need(status == 0, "acknowledging");
    free(write);
    stop_if_done();
}

/* At once, or when there is room in the pipe. */
static void acknowledge(const char *token)
{
    uv_buf_t bytes = uv_buf_init((char *)token, TOKEN);
    int n = uv_try_write((uv_stream_t *)&channel, &bytes, 1);
    if (n == UV_EAGAIN) {
        struct ack *ack = new(sizeof *ack);
        memcpy(ack->token, token, TOKEN);
        bytes.base = ack->token;
        n = uv_write(&ack->write, (uv_stream_t *)&channel, &bytes, 1, acknowledged);
    }
    need(n >= 0, "acknowledging");
}

/* What the backend does with a connection that is its own now. */
static void use(struct arrival *arrival)
{
    uv_stream_t *stream = (uv_stream_t *)&arrival->tcp;
    uv_buf_t bytes;
    if (is_move) {
        uv_close((uv_handle_t *)stream, free_handle);
        return;
    }
    answer_bytes(&bytes.base, &bytes.len);
    need(uv_try_write(stream, &bytes, 1) == (int)bytes.len &&
         uv_shutdown(&arrival->shutdown, stream, ended) == 0, "answering");
}

static void take(const char *token)
{
    struct arrival *arrival = new(sizeof *arrival);
    need(uv_pipe_pending_count(&channel) > 0 &&
         uv_pipe_pending_type(&channel) == UV_TCP && uv_tcp_init(loop, &arrival->tcp) == 0 &&
         uv_accept((uv_stream_t *)&channel, (uv_stream_t *)&arrival->tcp) == 0, "uv_accept");
    finished = arrived();
    if (held_count < hold) {
        memcpy(held + TOKEN * held_count++, token, TOKEN);
        for (int i = 0; i < hold && held_count == hold; i++)
            acknowledge(held + TOKEN * i);
    } else {
        use(arrival);
        acknowledge(token);
    }
    stop_if_done();
}

/* A message is a token and a preread; its handle came with its first byte. */
static void read_offers(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    static char token[TOKEN];
    static size_t len;
    size_t whole = TOKEN + (size_t)preread;
    (void)stream;
    need(n >= 0, "offer");
    for (size_t i = 0, left = (size_t)n; left > 0;) {
        size_t part = len < TOKEN ? TOKEN - len : whole - len;
        part = part < left ? part : left;
        if (len < TOKEN)
            memcpy(token + len, buf->base + i, part);
        len += part;
        i += part;
        left -= part;
        if (len == whole) {
            len = 0;
            take(token);
        }
    }
}

static void backend(int socket)
{
    held = new((size_t)(hold + 1) * TOKEN);
    open_channel(socket, read_offers);
    uv_run(loop, UV_RUN_DEFAULT);
}

int main(void)
{
    uv_tcp_t listener;
    int socket = begin_peer(NULL, backend);
    for (int i = 0; i < MOST_CLIENTS; i++)
        free_slots[free_count++] = MOST_CLIENTS - 1 - i;
    open_channel(socket, read_acknowledgements);
    if (is_move)
        move_connections();
    else
        serve_clients(&listener);
    uv_run(loop, UV_RUN_DEFAULT);
    return end_peer();
}
