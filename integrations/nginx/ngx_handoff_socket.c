/*
 * A client's socket as a backend expects it: as it was accepted, but O_NONBLOCK and TCP_NODELAY are
 * on. What listen(2) sockets pass on, such as SO_KEEPALIVE by "listen ... so_keepalive", stays.
 */
#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

/*
 * Right before an offer, because neither side may change what both share while it is in flight.
 * After a fallback nginx goes on with what it knows of the socket, so that is kept right.
 *
 * A failure is logged, and no reason to keep the client: it would only be slower.
 */
void
ngx_handoff_set_socket(ngx_connection_t *c)
{
    /* nginx notes for Unix sockets, and on Linux for no others, that there is no such option. */
    if (c->tcp_nodelay == NGX_TCP_NODELAY_DISABLED) {
        return;
    }

    /*
     * With tcp_nopush, an answer that nginx has sent leaves TCP_CORK on if the next request is there
     * already. Every answer of a backend would then wait for 200 ms. A location without tcp_nopush
     * notes that it is disabled, whatever the one before has left.
     */
    if (c->tcp_nopush != NGX_TCP_NOPUSH_UNSET) {

        if (ngx_tcp_push(c->fd) == -1) {
            ngx_connection_error(c, ngx_socket_errno, ngx_tcp_push_n " failed");

        } else if (c->tcp_nopush == NGX_TCP_NOPUSH_SET) {
            c->tcp_nopush = NGX_TCP_NOPUSH_UNSET;
        }
    }

    /*
     * nginx itself turns it on between requests only. Without it, what a backend sends in two pieces
     * waits for the client's delayed acknowledgement. If it is on already, this does nothing.
     */
    (void) ngx_tcp_nodelay(c);
}

#pragma GCC visibility pop
