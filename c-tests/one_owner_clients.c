/* The clients of one_owner.c, which are all in the driver. */
#define _GNU_SOURCE
#include "one_owner.h"

#include <sys/epoll.h>
#include <sys/socket.h>

/* Of all that could own a connection. */
enum { MOST_ANSWER = 1024 };

struct client {
    int fd;
    bool has_sent;
    uint32_t number;
    uint32_t brokers_killed; /* when it connected */
    SSL *tls;
    size_t len;
    char answer[MOST_ANSWER];
};

static struct client clients[MAX_AT_ONCE];

void client_begin(uint32_t place, uint32_t number)
{
    struct client *client = &clients[place];
    *client = (struct client){.number = number, .brokers_killed = brokers_killed};
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    check(client->fd >= 0);
    /* Closing resets what is left of the connection, which would wait for a minute otherwise. */
    struct linger reset = {.l_onoff = 1};
    check(setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset) == 0);
    check(connect(client->fd, (struct sockaddr *)&address, sizeof address) == 0
          || errno == EINPROGRESS);
    if (tls)
        client->tls = tls_client(client->fd, number);
    watch(EPOLL_CTL_ADD, client->fd, EPOLLOUT, place);
}

/** Sends the request, in two records. Fails if the broker was killed by now, as reading will. */
static void send_request(struct client *client)
{
    struct request request = request_of(client->number);
    size_t written;
    client->has_sent = true;
    if (client->tls == NULL)
        send(client->fd, &request, sizeof request, MSG_NOSIGNAL);
    else if (SSL_write_ex(client->tls, &request.number, sizeof request.number, &written) == 1)
        SSL_write_ex(client->tls, &request.rest, sizeof request.rest, &written);
}

static ssize_t receive(struct client *client)
{
    void *at = client->answer + client->len;
    size_t room = sizeof client->answer - client->len;
    return client->tls == NULL ? read(client->fd, at, room) : tls_read(client->tls, at, room);
}

bool client_proceed(uint32_t place, uint32_t events)
{
    struct client *client = &clients[place];
    if (events & EPOLLOUT)
        watch(EPOLL_CTL_MOD, client->fd, EPOLLIN, place);
    if (client->tls != NULL && !client->has_sent && !tls_handshake(client->tls))
        return errno != EAGAIN;
    if (!client->has_sent) {
        send_request(client);
        return false;
    }
    for (;;) {
        ssize_t len = receive(client);
        if (len < 0 && errno == EAGAIN)
            return false;
        /* Two owners that did not know of each other's records. */
        check(len >= 0 || errno != EBADMSG);
        if (len <= 0)
            return true;
        client->len += (size_t)len;
        check(client->len < sizeof client->answer);
    }
}

uint32_t client_number(uint32_t place)
{
    return clients[place].number;
}

static bool is_answer(const struct client *client, const char *owner)
{
    char expected[64];
    size_t len = answer_of(expected, owner, client->number);
    return client->len == len && memcmp(client->answer, expected, len) == 0;
}

enum answer client_finish(uint32_t place)
{
    struct client *client = &clients[place];
    /* Not left to close: a child that was just made may hold a copy. */
    check(epoll_ctl(epoll, EPOLL_CTL_DEL, client->fd, NULL) == 0);
    close(client->fd);
    if (client->tls != NULL)
        tls_release(client->tls);
    if (is_answer(client, "broker"))
        return BY_BROKER;
    if (is_answer(client, "backend"))
        return BY_BACKEND;
    if (client->len > 0)
        return TWICE;
    /* The owner, if a broker was killed between accepting it and saying so. */
    return client->brokers_killed < brokers_killed ? BROKER_KILLED : UNANSWERED;
}
