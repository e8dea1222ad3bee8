/* Taking connections out of nginx's event loop before they are offered, and back after a fallback. */
#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

static ngx_int_t ngx_handoff_del_conn(ngx_connection_t *c, ngx_uint_t flags);


/*
 * Of each connection of this worker, by its place in cycle->connections: whether a copy of its
 * descriptor may lie with a backend although the connection is ours.
 */
static u_char     *ngx_handoff_copies;
static ngx_int_t (*ngx_handoff_next_del_conn)(ngx_connection_t *c, ngx_uint_t flags);


ngx_int_t
ngx_handoff_unwatch(ngx_handoff_offer_t *offer)
{
    ngx_connection_t  *c = offer->connection;

    offer->read = c->read->active;
    offer->write = c->write->active;

    if (!offer->read && !offer->write) {
        return NGX_OK;
    }

    if (ngx_del_conn) {
        return ngx_del_conn(c, 0);
    }

    if (offer->read && ngx_del_event(c->read, NGX_READ_EVENT, 0) != NGX_OK) {
        return NGX_ERROR;
    }

    if (offer->write && ngx_del_event(c->write, NGX_WRITE_EVENT, 0) != NGX_OK) {
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* As before the offer. What came in the meantime is an event again. */
ngx_int_t
ngx_handoff_watch(ngx_handoff_offer_t *offer)
{
    ngx_uint_t         flags;
    ngx_connection_t  *c = offer->connection;

    flags = (ngx_event_flags & NGX_USE_CLEAR_EVENT) ? NGX_CLEAR_EVENT : NGX_LEVEL_EVENT;

    if (offer->read && !c->read->active
        && ngx_add_event(c->read, NGX_READ_EVENT, flags) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (offer->write && !c->write->active
        && ngx_add_event(c->write, NGX_WRITE_EVENT, flags) != NGX_OK)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


/*
 * After a fallback a copy of the descriptor may lie with a backend that hangs. While it does,
 * close(2) neither ends the connection nor takes it out of epoll, and nginx relies on both: its
 * ngx_close_connection() calls del_conn only to hear that the kernel will do it. So that is where
 * such a connection is really taken out and shut down.
 */
ngx_int_t
ngx_handoff_keep_copies(ngx_cycle_t *cycle)
{
    if (ngx_del_conn == NULL) {
        return NGX_OK;
    }

    ngx_handoff_copies = ngx_pcalloc(cycle->pool, cycle->connection_n);
    if (ngx_handoff_copies == NULL) {
        return NGX_ERROR;
    }

    if (ngx_event_actions.del_conn != ngx_handoff_del_conn) {
        ngx_handoff_next_del_conn = ngx_event_actions.del_conn;
        ngx_event_actions.del_conn = ngx_handoff_del_conn;
    }

    return NGX_OK;
}


void
ngx_handoff_set_copy(ngx_connection_t *c, ngx_uint_t copy)
{
    if (ngx_handoff_copies) {
        ngx_handoff_copies[c - ngx_cycle->connections] = (u_char) copy;
    }
}


static ngx_int_t
ngx_handoff_del_conn(ngx_connection_t *c, ngx_uint_t flags)
{
    ngx_connection_t  *first = (ngx_connection_t *) ngx_cycle->connections;

    if ((flags & NGX_CLOSE_EVENT)
        && c >= first && c < first + ngx_cycle->connection_n
        && ngx_handoff_copies[c - first])
    {
        ngx_handoff_copies[c - first] = 0;
        (void) shutdown(c->fd, SHUT_RDWR);

        if (c->read->active || c->write->active) {
            flags = 0;
        }
    }

    return ngx_handoff_next_del_conn(c, flags);
}

#pragma GCC visibility pop
