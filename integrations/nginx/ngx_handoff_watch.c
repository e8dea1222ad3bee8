/* Taking connections out of nginx's event loop before they are offered, and back after a fallback. */
#include "ngx_handoff.h"

#include <poll.h>

#pragma GCC visibility push(hidden)

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
 * Whether the connection of an offer that waits has ended in both directions: it was reset. A client that
 * has closed its socket can't be told, before anything is sent to it, from one that has sent its last byte
 * and waits for an answer.
 */
ngx_uint_t
ngx_handoff_is_reset(ngx_connection_t *c)
{
    struct pollfd  pfd = { c->fd, 0, 0 };

    /* Not recv(): what was sent before the reset would hide it. POLLHUP and POLLERR are always told. */
    return poll(&pfd, 1, 0) == 1;
}


/* Level-triggered, what a client that waits has sent would be told again and again. */
void
ngx_handoff_unwatch_reading(ngx_connection_t *c)
{
    if ((ngx_event_flags & NGX_USE_LEVEL_EVENT) && c->read->active) {
        (void) ngx_del_event(c->read, NGX_READ_EVENT, 0);
    }
}

#pragma GCC visibility pop
