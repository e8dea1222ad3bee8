/*
 * Connections that are nginx's although a backend may have a copy of the descriptor: after a
 * fallback of an offer that may have reached it, or after an offer was taken back.
 *
 * Both copies share the file's flags and the socket's options. Whatever a backend did to them, nginx
 * must not wait for this one client in place of all others. And while there is a copy, close(2)
 * neither ends the connection nor takes it out of epoll.
 */
#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

/*
 * As files of their own the http and the stream module each have such a list, and one connection can
 * be in both: "pass" of a stream's server gives it to a listener of http. So what happens to it goes
 * through del_conn, which all lists are in, with flags that nginx's event methods do not know.
 */
#define NGX_HANDOFF_ADOPTED_EVENT  0x100    /* with NGX_CLOSE_EVENT: not closed yet, but adopted */
#define NGX_HANDOFF_CLOSE_EVENT    0x200    /* in its place: closed, and to be taken out of epoll */

/* How nginx reads from such a connection and writes to it. */
typedef struct {
    ngx_recv_pt          recv;
    ngx_recv_chain_pt    recv_chain;
    ngx_send_pt          send;
    ngx_send_chain_pt    send_chain;
    ngx_uint_t           adopted;
} ngx_handoff_copy_t;


static ngx_int_t ngx_handoff_restore(ngx_connection_t *c);
static ngx_uint_t ngx_handoff_is_shut_down(ngx_connection_t *c);
static void ngx_handoff_shut_down(ngx_connection_t *c);
static ngx_handoff_copy_t *ngx_handoff_copy(ngx_connection_t *c);
static ssize_t ngx_handoff_recv(ngx_connection_t *c, u_char *buf, size_t size);
static ssize_t ngx_handoff_recv_chain(ngx_connection_t *c, ngx_chain_t *in, off_t limit);
static ssize_t ngx_handoff_send_bytes(ngx_connection_t *c, u_char *buf, size_t size);
static ngx_chain_t *ngx_handoff_send_chain(ngx_connection_t *c, ngx_chain_t *in, off_t limit);
static ngx_int_t ngx_handoff_del_conn(ngx_connection_t *c, ngx_uint_t flags);
static ngx_int_t ngx_handoff_del_events(ngx_connection_t *c, ngx_uint_t flags);


/* By the connection's place among a worker's; NULL if no backend has a copy. */
static ngx_handoff_copy_t  **ngx_handoff_copies;
static ngx_connection_t     *ngx_handoff_connections;
static ngx_uint_t            ngx_handoff_connection_n;
static ngx_int_t           (*ngx_handoff_next_del_conn)(ngx_connection_t *c, ngx_uint_t flags);


/*
 * Nothing else of nginx's tells a module that a connection is about to be closed, while its
 * descriptor is still open: the cleanups of its pool come later, and those of a request too early for
 * one that is kept alive.
 *
 * nginx's ngx_close_connection() calls del_conn only to hear that the kernel takes the descriptor
 * out of epoll. So that is where a connection with a copy is really taken out and shut down. Methods
 * such as poll have no del_conn; if they get one, nginx calls it in place of del.
 */
ngx_int_t
ngx_handoff_init_copies(ngx_cycle_t *cycle)
{
    ngx_handoff_copies = ngx_pcalloc(cycle->pool,
                                     cycle->connection_n * sizeof(ngx_handoff_copy_t *));
    if (ngx_handoff_copies == NULL) {
        return NGX_ERROR;
    }

    ngx_handoff_connections = cycle->connections;
    ngx_handoff_connection_n = cycle->connection_n;

    if (ngx_event_actions.del_conn != ngx_handoff_del_conn) {
        ngx_handoff_next_del_conn = ngx_event_actions.del_conn;
        ngx_event_actions.del_conn = ngx_handoff_del_conn;
    }

    return NGX_OK;
}


/*
 * The connection is nginx's again, and a backend may have a copy. From now on every read and write
 * makes sure that it does not block: a backend that hangs may change that later, before it finds
 * that it cannot adopt the connection. NGX_ERROR if the connection is of no use any more.
 */
ngx_int_t
ngx_handoff_add_copy(ngx_connection_t *c)
{
    ngx_handoff_copy_t  *copy;

    if (c->recv != ngx_handoff_recv) {

        copy = ngx_palloc(c->pool, sizeof(ngx_handoff_copy_t));
        if (copy == NULL) {
            return NGX_ERROR;
        }

        copy->recv = c->recv;
        copy->recv_chain = c->recv_chain;
        copy->send = c->send;
        copy->send_chain = c->send_chain;
        copy->adopted = 0;

        c->recv = ngx_handoff_recv;
        c->recv_chain = ngx_handoff_recv_chain;
        c->send = ngx_handoff_send_bytes;
        c->send_chain = ngx_handoff_send_chain;

        ngx_handoff_copies[c - ngx_handoff_connections] = copy;
    }

    return ngx_handoff_restore(c);
}


/*
 * A backend has adopted the connection, or may have: nothing but close(2) may happen to it here. A
 * copy is from an offer before, perhaps of the other module. For the event method itself there is
 * nothing to do: the connection was taken out of it before the offer.
 */
void
ngx_handoff_adopted(ngx_connection_t *c)
{
    (void) ngx_del_conn(c, NGX_CLOSE_EVENT|NGX_HANDOFF_ADOPTED_EVENT);
}


/* An offer was taken back, and the connection is about to be closed. */
void
ngx_handoff_end(ngx_connection_t *c)
{
    (void) ngx_handoff_restore(c);
    ngx_handoff_shut_down(c);
}


/* What nginx sets on a client's connection, and what it leaves as the system has it but relies on. */
static ngx_int_t
ngx_handoff_restore(ngx_connection_t *c)
{
    int            one = 1;
    struct linger  off = { 0, 0 };

    /* The one other flag that a socket can have is O_ASYNC: this clears it. */
    if (fcntl(c->fd, F_SETFL, O_NONBLOCK) == -1
        || setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &off, sizeof(off)) == -1
        || setsockopt(c->fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one)) == -1
        || (c->tcp_nodelay != NGX_TCP_NODELAY_DISABLED && ngx_tcp_push(c->fd) == -1))
    {
        ngx_connection_error(c, ngx_socket_errno, "restoring the connection failed");
        return NGX_ERROR;
    }

    if (c->tcp_nodelay == NGX_TCP_NODELAY_SET) {
        c->tcp_nodelay = NGX_TCP_NODELAY_UNSET;

        if (ngx_tcp_nodelay(c) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    /* shutdown(2) of a copy can't be undone. */
    if (ngx_handoff_is_shut_down(c)) {
        ngx_log_error(NGX_LOG_INFO, c->log, ngx_socket_errno,
                      "the connection can't be written to after its offer");
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* Sending nothing tells, but for a connection whose TLS the kernel does: that has its state only. */
static ngx_uint_t
ngx_handoff_is_shut_down(ngx_connection_t *c)
{
    socklen_t        len;
    struct tcp_info  info;

    if (c->ssl == NULL) {
        return send(c->fd, "", 0, MSG_DONTWAIT|MSG_NOSIGNAL) == -1;
    }

    len = sizeof(info);

    return getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &len) == -1
           || (info.tcpi_state != TCP_ESTABLISHED && info.tcpi_state != TCP_CLOSE_WAIT);
}


/* With SO_LINGER on, close(2) of the last copy waits until the client has all that was sent. */
static void
ngx_handoff_shut_down(ngx_connection_t *c)
{
    socklen_t      len;
    struct linger  linger;

    len = sizeof(linger);

    /* nginx itself sets it, with a time of 0, to reset a connection. */
    if (getsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, &len) == 0
        && linger.l_onoff && linger.l_linger)
    {
        linger.l_onoff = 0;
        (void) setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
    }

    (void) shutdown(c->fd, SHUT_RDWR);
}


static ngx_handoff_copy_t *
ngx_handoff_copy(ngx_connection_t *c)
{
    (void) fcntl(c->fd, F_SETFL, O_NONBLOCK);

    return ngx_handoff_copies[c - ngx_handoff_connections];
}


static ssize_t
ngx_handoff_recv(ngx_connection_t *c, u_char *buf, size_t size)
{
    return ngx_handoff_copy(c)->recv(c, buf, size);
}


static ssize_t
ngx_handoff_recv_chain(ngx_connection_t *c, ngx_chain_t *in, off_t limit)
{
    return ngx_handoff_copy(c)->recv_chain(c, in, limit);
}


static ssize_t
ngx_handoff_send_bytes(ngx_connection_t *c, u_char *buf, size_t size)
{
    return ngx_handoff_copy(c)->send(c, buf, size);
}


static ngx_chain_t *
ngx_handoff_send_chain(ngx_connection_t *c, ngx_chain_t *in, off_t limit)
{
    return ngx_handoff_copy(c)->send_chain(c, in, limit);
}


static ngx_int_t
ngx_handoff_del_conn(ngx_connection_t *c, ngx_uint_t flags)
{
    ngx_connection_t    *first = ngx_handoff_connections;
    ngx_handoff_copy_t  *copy;

    /* Some are not among them, such as those of nginx's resolver. */
    if ((flags & (NGX_CLOSE_EVENT|NGX_HANDOFF_CLOSE_EVENT))
        && c >= first && c < first + ngx_handoff_connection_n
        && (copy = ngx_handoff_copies[c - first]) != NULL)
    {
        if (flags & NGX_HANDOFF_ADOPTED_EVENT) {
            copy->adopted = 1;

        } else {
            ngx_handoff_copies[c - first] = NULL;

            if (!copy->adopted) {
                ngx_handoff_shut_down(c);
            }

            if (c->read->active || c->write->active) {
                flags = NGX_HANDOFF_CLOSE_EVENT;
            }
        }
    }

    return ngx_handoff_next_del_conn ? ngx_handoff_next_del_conn(c, flags)
                                     : ngx_handoff_del_events(c, flags);
}


/* As ngx_close_connection() does it without del_conn. */
static ngx_int_t
ngx_handoff_del_events(ngx_connection_t *c, ngx_uint_t flags)
{
    ngx_int_t  rc = NGX_OK;

    if (c->read->active || c->read->disabled) {
        rc = ngx_del_event(c->read, NGX_READ_EVENT, flags);
    }

    if ((c->write->active || c->write->disabled)
        && ngx_del_event(c->write, NGX_WRITE_EVENT, flags) != NGX_OK)
    {
        rc = NGX_ERROR;
    }

    return rc;
}

#pragma GCC visibility pop
