/*
 * GLib: g_socket_send_message() with a GUnixFDMessage, and g_socket_receive_message(), which makes
 * one.
 */
#define _GNU_SOURCE
#include "peer.h"

#include <gio/gio.h>
#include <gio/gunixfdmessage.h>
#include <stdlib.h>
#include <string.h>

static GSocket *channel;
static int is_full;

static GSocket *socket_of(int fd)
{
    GSocket *socket = g_socket_new_from_fd(fd, NULL);
    need(socket != NULL, "g_socket_new_from_fd");
    g_socket_set_blocking(socket, TRUE);
    return socket;
}

static void begin(int socket)
{
    channel = socket_of(socket);
}

static int offer(struct client *client)
{
    unsigned char token[TOKEN];
    GOutputVector vectors[2] = {{token, TOKEN}, {client->preread, (gsize)preread}};
    GSocketControlMessage *message = g_unix_fd_message_new();
    token_for(client, token);
    need(g_unix_fd_message_append_fd(G_UNIX_FD_MESSAGE(message), client->source.fd, NULL),
         "g_unix_fd_message_append_fd");
    gsize sent = 0, len = TOKEN + (gsize)preread;
    GPollableReturn sending = g_socket_send_message_with_timeout(
        channel, NULL, vectors, 2, &message, 1, 0, 0, &sent, NULL, NULL);
    g_object_unref(message);
    is_full = sending == G_POLLABLE_RETURN_WOULD_BLOCK;
    if (is_full)
        return 0;
    need(sending == G_POLLABLE_RETURN_OK && sent >= TOKEN, "g_socket_send_message_with_timeout");
    while (sent < len) {
        gssize n = g_socket_send(channel, (const gchar *)client->preread + sent - TOKEN, len - sent,
                                 NULL, NULL);
        need(n > 0, "g_socket_send");
        sent += (gsize)n;
    }
    return 1;
}

static int watched(void)
{
    return g_socket_get_fd(channel);
}

static void dispatch(int may_wait)
{
    static unsigned char tokens[256 * TOKEN];
    static gsize len; /* of a token that came in part */
    GError *error = NULL;
    if (is_full && may_wait) /* or there may be none: all have to be sent first */
        need(g_socket_condition_wait(channel, G_IO_IN | G_IO_OUT, NULL, NULL), "waiting");
    gssize n = g_socket_receive_with_blocking(channel, (gchar *)tokens + len, sizeof tokens - len,
                                              may_wait && !is_full, NULL, &error);
    if (n == -1 && g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK)) {
        g_error_free(error);
        return;
    }
    need(n > 0, "g_socket_receive_with_blocking");
    len += (gsize)n;
    gsize whole = len / TOKEN * TOKEN;
    for (gsize i = 0; i < whole; i += TOKEN)
        settle(client_of(tokens + i));
    len -= whole;
    memmove(tokens, tokens + whole, len);
}

static int receive(unsigned char *bytes, gsize len)
{
    GInputVector vector = {bytes, len};
    GSocketControlMessage **messages = NULL;
    gint count = 0, flags = 0, fd, fds_count;
    gssize n = g_socket_receive_message(channel, NULL, &vector, 1, &messages, &count, &flags, NULL,
                                        NULL);
    need(n > 0 && count == 1 && G_IS_UNIX_FD_MESSAGE(messages[0]), "g_socket_receive_message");
    gint *fds = g_unix_fd_message_steal_fds(G_UNIX_FD_MESSAGE(messages[0]), &fds_count);
    need(fds_count == 1, "g_unix_fd_message_steal_fds");
    fd = fds[0];
    g_free(fds);
    g_object_unref(messages[0]);
    g_free(messages);
    for (gsize got = (gsize)n; got < len; got += (gsize)n) {
        n = g_socket_receive(channel, (gchar *)bytes + got, len - got, NULL, NULL);
        need(n > 0, "g_socket_receive");
    }
    return fd;
}

static void acknowledge(const unsigned char *token)
{
    need(g_socket_send(channel, (const gchar *)token, TOKEN, NULL, NULL) == TOKEN, "g_socket_send");
}

static void backend(int socket)
{
    gsize len = TOKEN + (gsize)preread;
    unsigned char *bytes = g_malloc(len), *held = g_malloc((gsize)(hold + 1) * TOKEN);
    int finished = 0, held_count = 0;
    channel = socket_of(socket);
    while (!finished) {
        int fd = receive(bytes, len);
        finished = arrived();
        if (held_count < hold) {
            memcpy(held + TOKEN * held_count++, bytes, TOKEN);
            for (int i = 0; i < hold && held_count == hold; i++)
                acknowledge(held + TOKEN * i);
        } else {
            serve(fd);
            acknowledge(bytes);
        }
    }
}

int main(void)
{
    static const struct peer glib = {NULL, begin, offer, NULL, watched, dispatch, backend};
    return run_peer(&glib);
}
