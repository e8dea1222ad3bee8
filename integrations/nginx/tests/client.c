/* Connections: HTTP/1.1, or an echo. Each answer says how its request came. The kernel does the TLS of
 * some; the code is the same for all. */
#define _GNU_SOURCE
#include "backend.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* PERIOD is a prime, so that a body that is out of step shows. */
enum { FIRST_SIZE = 16 * 1024, MOST_SIZE = 256 * 1024, PERIOD = 251 };

static const char *const ways[] = {"handoff", "unix", "tcp"};

static void make_room(struct buffer *buffer, size_t more)
{
    size_t size = buffer->size ? buffer->size : FIRST_SIZE;
    while (size < buffer->len + more)
        size *= 2;
    if (size == buffer->size)
        return;
    buffer->bytes = realloc(buffer->bytes, size);
    check(buffer->bytes != NULL, "realloc", NULL);
    buffer->size = size;
}

static void append(struct buffer *buffer, const void *bytes, size_t len)
{
    make_room(buffer, len);
    if (len > 0)
        memcpy(buffer->bytes + buffer->len, bytes, len);
    buffer->len += len;
}

__attribute__((format(printf, 2, 3)))
static void append_text(struct buffer *buffer, const char *format, ...)
{
    va_list arguments;
    make_room(buffer, 4096);
    va_start(arguments, format);
    buffer->len += (size_t)vsnprintf(buffer->bytes + buffer->len, 4096, format, arguments);
    va_end(arguments);
}

static void drop_first(struct buffer *buffer, size_t len)
{
    memmove(buffer->bytes, buffer->bytes + len, buffer->len - len);
    buffer->len -= len;
}

/* Ends what is sent, with close_notify where there is TLS. It fails if the client has gone, and if it
 * does not read and so leaves no room; then there is nothing else to do either. */
static void end_sending(struct client *client)
{
    if (handoff_tls_shutdown(client->watched.fd, 0) == HANDOFF_TIMED_OUT)
        shutdown(client->watched.fd, SHUT_WR);
}

/* Out of the loop first: the broker may not have closed its copy yet, and while that is open
 * close() does not do it, nor does it end the connection. */
static void end(struct client *client)
{
    TAILQ_REMOVE(&clients, client, next);
    forget(&client->watched);
    end_sending(client);
    close(client->watched.fd);
    free(client->in.bytes);
    free(client->out.bytes);
    free(client->head.bytes);
    free(client->tls);
    free(client->service);
    free(client->correlation);
    free(client->metadata);
    free(client);
}

/* ---- answers ---- */

static void append_answer(struct client *client, const char *status, const char *headers,
                          const void *body, size_t len)
{
    const struct request *request = &client->request;
    append_text(&client->out,
                "HTTP/1.1 %s\r\nContent-Length: %llu\r\nX-Served-By: %s\r\nX-Pid: %d\r\n"
                "X-Id: %s\r\nX-Body: %llu %08x\r\nX-Tls: %s\r\nConnection: %s\r\n%s\r\n",
                status, (unsigned long long)(len + client->generate), ways[client->way], getpid(),
                request->id, (unsigned long long)request->body.length, request->body.crc,
                client->tls ? client->tls : "none", client->last ? "close" : "keep-alive", headers);
    append(&client->out, body, len);
}

/* An answer without a length: it ends with the connection. */
static void begin_answer(struct client *client, const char *status, const char *headers)
{
    append_text(&client->out, "HTTP/1.1 %s\r\nX-Served-By: %s\r\nX-Id: %s\r\nX-Tls: %s\r\n%s\r\n",
                status, ways[client->way], client->request.id, client->tls ? client->tls : "none",
                headers);
}

static bool flush(struct client *client);

/* An event for every stream. */
static void tick(void)
{
    for (struct client *client = TAILQ_FIRST(&clients), *next; client != NULL; client = next) {
        next = TAILQ_NEXT(client, next);
        if (!client->streams)
            continue;
        append_text(&client->out, "data: %0100d\n\n", 1);
        flush(client);
    }
}

static void answer_arrival(struct client *client)
{
    struct buffer body = {0};
    append_text(&body, "%s\n%s\n", client->service ? client->service : "",
                client->correlation ? client->correlation : "");
    append(&body, client->metadata, client->metadata_len);
    append_answer(client, "200 OK", "", body.bytes, body.len);
    free(body.bytes);
}

/* The request is read to its end. */
static void answer(struct client *client)
{
    const struct request *request = &client->request;
    char text[2 * VALUE_LEN + 64];
    if (!request->keep_alive || draining)
        client->last = true;
    if (strcmp(request->what, "stats") == 0) {
        append_answer(client, "200 OK", "", text, (size_t)write_statistics(text, sizeof text));
        return;
    }
    if (strcmp(request->what, "hold") == 0) {
        hold_arrivals();
        append_answer(client, "200 OK", "", NULL, 0);
        return;
    }
    if (strcmp(request->what, "release") == 0) {
        release_held();
        append_answer(client, "200 OK", "", NULL, 0);
        return;
    }
    if (strcmp(request->what, "change") == 0) {
        change_copies(request->id);
        append_answer(client, "200 OK", "", NULL, 0);
        return;
    }
    if (strcmp(request->what, "copies") == 0) {
        append_answer(client, "200 OK", "", text, (size_t)describe_copies(text, sizeof text));
        return;
    }
    if (strcmp(request->what, "stream") == 0) {
        /* Until the client goes. nginx is told to pass on at once what there is. */
        client->streams = true;
        begin_answer(client, "200 OK", "Content-Type: text/event-stream\r\n"
                     "X-Accel-Buffering: no\r\nConnection: close\r\n");
        append_text(&client->out, "data: first\n\n");
        return;
    }
    if (strcmp(request->what, "tick") == 0) {
        append_answer(client, "200 OK", "", NULL, 0);
        tick();
        return;
    }
    if (strcmp(request->what, "forget") == 0) {
        close_copies();
        append_answer(client, "200 OK", "", NULL, 0);
        return;
    }
    if (request->accel[0] != '\0') {
        log_request("accel", request->id);
        snprintf(text, sizeof text, "X-Accel-Redirect: %s\r\nX-Handoff-Data: %s\r\n",
                 request->accel, request->accel_data);
        append_answer(client, "200 OK", text, NULL, 0);
        return;
    }
    log_request(ways[client->way], request->id);
    if (strcmp(request->what, "arrival") == 0)
        answer_arrival(client);
    else if (strcmp(request->what, "bytes") == 0) {
        client->generate = request->argument;
        client->generated = 0;
        append_answer(client, "200 OK", "", NULL, 0);
    } else if (strcmp(request->what, "head") == 0)
        append_answer(client, "200 OK", "", client->head.bytes, client->head.len);
    else if (strcmp(request->what, "events") == 0) {
        client->events = request->argument;
        client->last = true;
        begin_answer(client, "200 OK", "Content-Type: text/event-stream\r\nConnection: close\r\n");
    } else if (strcmp(request->what, "upgrade") == 0) {
        client->echo = client->greeted = true;
        begin_answer(client, "101 Switching Protocols",
                     "Upgrade: websocket\r\nConnection: Upgrade\r\n");
    }
    else
        append_answer(client, "200 OK", "", "served\n", 7);
}

/* ---- what comes ---- */

/* Takes what it can of client->in. False if it needs more. */
static bool take_http(struct client *client)
{
    struct request *request = &client->request;
    struct buffer *in = &client->in;
    if (!client->in_request) {
        size_t empty = 0;
        while (empty < in->len && (in->bytes[empty] == '\r' || in->bytes[empty] == '\n'))
            empty++; /* between requests it means nothing */
        if (empty > 0)
            drop_first(in, empty);
        size_t head = in->len > 0 ? head_length(in->bytes, in->len) : 0;
        if (head == 0 && in->len < MOST_SIZE)
            return false;
        if (head == 0 || !parse_head(in->bytes, head, request)) {
            log_request("bad", "-");
            client->last = true;
            append_answer(client, "400 Bad Request", "", NULL, 0);
            return false;
        }
        client->head.len = 0;
        if (strcmp(request->what, "head") == 0)
            append(&client->head, in->bytes, head);
        drop_first(in, head);
        client->in_request = true;
        if (request->expects_continue && request->body.state != BODY_DONE && in->len == 0)
            append_text(&client->out, "HTTP/1.1 100 Continue\r\n\r\n");
    }
    drop_first(in, take_body(&request->body, in->bytes, in->len));
    if (request->body.state == BODY_BAD) {
        log_request("bad", request->id);
        client->last = true;
        append_answer(client, "400 Bad Request", "", NULL, 0);
        return false;
    }
    if (request->body.state != BODY_DONE)
        return false;
    client->in_request = false;
    answer(client);
    return true;
}

/* The first line names the client. It comes back with how it came and for which service, everything
 * else as it is. */
static bool take_echo(struct client *client)
{
    struct buffer *in = &client->in;
    char *newline = in->len > 0 ? memchr(in->bytes, '\n', in->len) : NULL;
    if (!client->greeted) {
        if (newline == NULL)
            return false;
        *newline = '\0';
        log_request(ways[client->way], in->bytes);
        append_text(&client->out, "%s ", ways[client->way]);
        append(&client->out, in->bytes, (size_t)(newline - in->bytes));
        append_text(&client->out, " %s\n", client->service ? client->service : "");
        client->greeted = true;
        drop_first(in, (size_t)(newline + 1 - in->bytes));
    }
    append(&client->out, in->bytes, in->len);
    in->len = 0;
    return false;
}

/* Sends what there is. False if that must wait for room, or has ended the client. */
static bool flush(struct client *client)
{
    static char pattern[PERIOD * 512];
    if (pattern[1] == 0)
        for (size_t i = 0; i < sizeof pattern; i++)
            pattern[i] = (char)(i % PERIOD);
    while (client->sent < client->out.len || client->generate > 0) {
        const char *from = client->out.bytes + client->sent;
        size_t len = client->out.len - client->sent;
        bool generating = len == 0;
        if (generating) {
            size_t phase = client->generated % PERIOD;
            from = pattern + phase;
            len = sizeof pattern - phase;
            if (len > client->generate)
                len = (size_t)client->generate;
        }
        ssize_t n = send(client->watched.fd, from, len,
                         MSG_DONTWAIT | MSG_NOSIGNAL |
                             (!generating && client->generate > 0 ? MSG_MORE : 0));
        if (n == -1 && errno == EINTR)
            continue;
        if (n == -1 && errno == EAGAIN) {
            if (!client->waits_for_room)
                change_watch(&client->watched, EPOLLOUT);
            client->waits_for_room = true;
            return false;
        }
        if (n == -1) {
            end(client); /* it has gone */
            return false;
        }
        if (generating) {
            client->generate -= (uint64_t)n;
            client->generated += (uint64_t)n;
        } else
            client->sent += (size_t)n;
        if (client->sent == client->out.len && client->events > 0) {
            /* Each event is sent by itself. */
            client->sent = client->out.len = 0;
            append_text(&client->out, "data: %s %llu\n\n", client->request.id,
                        (unsigned long long)client->events--);
        }
    }
    client->sent = client->out.len = 0;
    if (client->waits_for_room)
        change_watch(&client->watched, EPOLLIN);
    client->waits_for_room = false;
    return true;
}

/* Takes what has been read, answers, and sends. May end the client. */
static void serve(struct client *client)
{
    for (;;) {
        bool again = false;
        while (!client->last && client->generate == 0 && client->out.len < MOST_SIZE &&
               (again = client->echo ? take_echo(client) : take_http(client)))
            ;
        if (!flush(client))
            return;
        if (client->last)
            break;
        if (!again)
            return;
    }
    if (client->in.len == 0 && !client->in_request) {
        end(client);
        return;
    }
    /* To close with something unread is to reset the connection, and the answer may be lost. */
    client->lingering = true;
    end_sending(client);
}

/* How often the receiving side of a client with TLS has ended, and how. */
static struct {
    unsigned closed, cut, key_update, alert, record, failed;
} tls_ends;

int describe_tls_ends(char *text, size_t size)
{
    return snprintf(text, size,
                    "{\"closed\": %u, \"cut\": %u, \"key_update\": %u, \"alert\": %u, "
                    "\"record\": %u, \"failed\": %u}",
                    tls_ends.closed, tls_ends.cut, tls_ends.key_update, tls_ends.alert,
                    tls_ends.record, tls_ends.failed);
}

static void count_end(handoff_status status)
{
    switch (status) {
    case HANDOFF_OK: tls_ends.closed++; break;
    case HANDOFF_ERR_END_OF_STREAM: tls_ends.cut++; break;
    case HANDOFF_ERR_TLS_KEY_UPDATE: tls_ends.key_update++; break;
    case HANDOFF_ERR_TLS_ALERT: tls_ends.alert++; break;
    case HANDOFF_ERR_TLS_RECORD: tls_ends.record++; break;
    default: tls_ends.failed++;
    }
}

/* Reads what there is. False if nothing more can come. */
static bool receive(struct client *client)
{
    size_t received = 0;
    make_room(&client->in, FIRST_SIZE / 2);
    handoff_status status = handoff_tls_receive(client->watched.fd,
                                                client->in.bytes + client->in.len,
                                                client->in.size - client->in.len, 0, &received);
    if (status == HANDOFF_TIMED_OUT)
        return true;
    if (status == HANDOFF_OK && received > 0) {
        if (!client->lingering)
            client->in.len += received;
        return true;
    }
    if (client->tls != NULL)
        count_end(status);
    return false;
}

void on_client(struct client *client)
{
    if (client->waits_for_room && !flush(client))
        return;
    if (!receive(client)) {
        if (client->lingering || !client->greeted) {
            end(client);
            return;
        }
        client->last = true;
    }
    if (client->lingering)
        return;
    serve(client);
}

static char *copy_of(const void *bytes, size_t len)
{
    return len == 0 ? NULL : memcpy(allocate(len), bytes, len);
}

/* What the kernel says of a connection that has come with TLS. */
static char *describe_tls(int fd)
{
    handoff_tls_session session = HANDOFF_TLS_SESSION_INIT;
    char text[64];
    check(handoff_tls_get_session(fd, &session) == HANDOFF_OK, "session", handoff_last_error());
    check(session.directions == (HANDOFF_TLS_SEND | HANDOFF_TLS_RECEIVE), "session", "one direction");
    int len = snprintf(text, sizeof text, "%s %s", session.version_name, session.cipher_name);
    return copy_of(text, (size_t)len + 1);
}

void begin_client(int fd, enum way way, bool echo, const handoff_arrival *arrival)
{
    struct client *client = allocate(sizeof *client);
    client->watched = (struct watched){.is_client = true, .fd = fd};
    client->way = way;
    client->echo = echo;
    TAILQ_INSERT_TAIL(&clients, client, next);
    watch(&client->watched, EPOLLIN);
    if (arrival == NULL)
        return;
    client->service = copy_of(arrival->service, strlen(arrival->service) + 1);
    client->correlation = copy_of(arrival->correlation, strlen(arrival->correlation) + 1);
    client->metadata = copy_of(arrival->metadata, arrival->metadata_len);
    client->metadata_len = arrival->metadata_len;
    if (arrival->tls)
        client->tls = describe_tls(fd);
    append(&client->in, arrival->preread, arrival->preread_len);
    serve(client);
}

void drain_clients(void)
{
    for (struct client *client = TAILQ_FIRST(&clients), *next; client != NULL; client = next) {
        next = TAILQ_NEXT(client, next);
        bool idle = client->in.len == 0 && !client->in_request && client->out.len == 0 &&
                    client->generate == 0 && !client->echo;
        if (idle || client->lingering)
            end(client);
    }
}
