/*
 * Offers that wait: for room, as handoff_queue allows, and for a worker's first connections to the
 * backends, so that nobody falls back because a worker has just begun.
 *
 * The queue of a broker is served in order, by dispatch: the broker's descriptor is readable when
 * there is room again. One that needs more than the backends with room take keeps its place, and
 * holds up nobody that needs less. The connection of an offer that waits is in the event loop, so that nginx
 * notices a client that goes away. A worker that is asked to exit empties its queues by fallback.
 */
#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

static ngx_uint_t ngx_handoff_is_new(ngx_handoff_broker_t *broker);
static void ngx_handoff_give_up(ngx_handoff_offer_t *offer, char *why);
static ngx_uint_t ngx_handoff_has_tls(ngx_handoff_offer_t *offer);
static void ngx_handoff_expiry_handler(ngx_event_t *ev);


/*
 * Puts an offer behind those that wait, if there are any and no backend has room. Whether it has.
 * If one has room, none that waits could use it at the last look.
 */
ngx_uint_t
ngx_handoff_stand_behind(ngx_handoff_offer_t *offer)
{
    ngx_handoff_broker_t  *broker = offer->broker;

    if (broker->queued == 0 || offer->conf->queue == 0
        || handoff_broker_room(broker->broker) > 0)
    {
        return 0;
    }

    if (broker->queued >= offer->conf->queue) {
        ngx_handoff_give_up(offer, "the queue is full");
        return 1;
    }

    offer->needs = 0;

    return ngx_handoff_enqueue(offer) == NGX_OK;
}


/* Whether an offer that was refused with this status may wait. */
ngx_uint_t
ngx_handoff_may_wait(ngx_handoff_offer_t *offer, handoff_status status)
{
    ngx_handoff_broker_t  *broker = offer->broker;

    if (status == HANDOFF_ERR_FULL && !ngx_exiting
        && (offer->expiry.timer_set || broker->queued < offer->conf->queue))
    {
        return 1;
    }

    /* As many as could be in flight wait for the first connections, also without a queue. */
    return (status == HANDOFF_ERR_FULL || status == HANDOFF_ERR_BACKEND_UNAVAILABLE)
           && ngx_handoff_is_new(broker)
           && (offer->expiry.timer_set
               || broker->queued < ngx_max(offer->conf->queue, broker->max_in_flight));
}


/* Whether nothing could be offered so far, because the first connections are under way. */
static ngx_uint_t
ngx_handoff_is_new(ngx_handoff_broker_t *broker)
{
    size_t                        i;
    ngx_uint_t                    under_way = 0;
    handoff_broker_backend_state  state = HANDOFF_BROKER_BACKEND_STATE_INIT;

    if (broker->settled) {
        return 0;
    }

    for (i = 0; handoff_broker_get_backend_state(broker->broker, i, &state) == HANDOFF_OK; i++) {
        under_way |= (state.failed_connects == 0 && state.state != HANDOFF_STATE_DOWN);
    }

    broker->settled = !under_way || ngx_current_msec - broker->opened > broker->attempt_timeout;

    return !broker->settled;
}


/* At the end; or, if it has waited before, at the front. NGX_ERROR if the connection is lost. */
ngx_int_t
ngx_handoff_enqueue(ngx_handoff_offer_t *offer)
{
    ngx_int_t              flags;
    ngx_msec_t             patience;
    ngx_connection_t      *c = offer->connection;
    ngx_handoff_broker_t  *broker = offer->broker;

    if (offer->expiry.timer_set) {
        ngx_queue_insert_head(&broker->queue, &offer->queue);

    } else {
        ngx_queue_insert_tail(&broker->queue, &offer->queue);
        broker->counts.queued++;

        patience = offer->conf->queue ? offer->conf->queue_timeout : broker->attempt_timeout;

        ngx_memzero(&offer->expiry, sizeof(ngx_event_t));
        offer->expiry.data = offer;
        offer->expiry.handler = ngx_handoff_expiry_handler;
        offer->expiry.log = c->log;
        ngx_add_timer(&offer->expiry, patience);
    }

    broker->queued++;
    offer->state = NGX_HANDOFF_QUEUED;
    ngx_handoff_changed(broker);

    /* An offer that is refused is out of the event loop. It may have been out of it before. */
    flags = (ngx_event_flags & NGX_USE_CLEAR_EVENT) ? NGX_CLEAR_EVENT : NGX_LEVEL_EVENT;

    if (ngx_handoff_watch(offer) != NGX_OK
        || (!c->read->active && ngx_add_event(c->read, NGX_READ_EVENT, flags) != NGX_OK))
    {
        ngx_handoff_dequeue(offer);
        c->error = 1;
        return NGX_ERROR;
    }

    /* The client may have gone before: an edge that has been is not told again. */
    if (c->read->ready || c->read->pending_eof) {
        ngx_post_event(c->read, &ngx_posted_events);
    }

    return NGX_OK;
}


void
ngx_handoff_dequeue(ngx_handoff_offer_t *offer)
{
    ngx_queue_remove(&offer->queue);
    offer->broker->queued--;
    offer->state = NGX_HANDOFF_IDLE;

    if (offer->expiry.timer_set) {
        ngx_del_timer(&offer->expiry);
    }

    ngx_handoff_changed(offer->broker);
}


/* Offers what waits while there is room. */
void
ngx_handoff_drain(ngx_handoff_broker_t *broker, ngx_log_t *log)
{
    size_t                room, refused[2];
    ngx_int_t             rc;
    ngx_pool_t           *pool;
    ngx_uint_t            hopeless, in_flight;
    ngx_queue_t          *q, passed;
    ngx_handoff_offer_t  *offer;

    if (broker->queued == 0) {
        return;
    }

    pool = ngx_create_pool(NGX_HANDOFF_POOL_SIZE, log);

    /* Without room the first one is offered all the same: that tells whether waiting is of use. */
    room = handoff_broker_room(broker->broker);
    hopeless = (room == 0);

    /* What no backend with room takes, and who that is: nobody that needs as much need try. */
    refused[0] = refused[1] = NGX_MAX_SIZE_T_VALUE;
    ngx_queue_init(&passed);

    while (!ngx_queue_empty(&broker->queue) && (hopeless || room > 0)) {
        q = ngx_queue_head(&broker->queue);
        offer = ngx_queue_data(q, ngx_handoff_offer_t, queue);

        if (offer->needs >= refused[ngx_handoff_has_tls(offer)]) {
            ngx_queue_remove(q);
            ngx_queue_insert_tail(&passed, q);
            continue;
        }

        ngx_queue_remove(q);
        broker->queued--;
        in_flight = broker->in_flight;
        rc = ngx_handoff_send(offer, pool);

        if (pool) {
            ngx_reset_pool(pool);
        }

        if (rc == NGX_OK) {
            /* One that has fallen back leaves the room to the next. */
            if (broker->in_flight > in_flight) {
                room = handoff_broker_room(broker->broker);
                hopeless = 0;
            }
            continue;
        }

        if (hopeless) {
            break;
        }

        ngx_queue_remove(q);
        ngx_queue_insert_tail(&passed, q);

        /* Those that know TLS take the others, too. */
        refused[1] = ngx_min(refused[1], offer->needs);
        if (!ngx_handoff_has_tls(offer)) {
            refused[0] = ngx_min(refused[0], offer->needs);
        }
    }

    ngx_queue_add(&passed, &broker->queue);
    ngx_queue_init(&broker->queue);
    ngx_queue_add(&broker->queue, &passed);

    if (pool) {
        ngx_destroy_pool(pool);
    }

    ngx_handoff_flush(broker, log);
}


static ngx_uint_t
ngx_handoff_has_tls(ngx_handoff_offer_t *offer)
{
#if (NGX_HANDOFF_TLS)
    return offer->connection->ssl != NULL;
#else
    return 0;
#endif
}


/* The client of an offer that waits has gone away. No done() follows. */
void
ngx_handoff_client_gone(ngx_handoff_offer_t *offer)
{
    ngx_handoff_dequeue(offer);

    offer->outcome = HANDOFF_FALLBACK;
    offer->reason = HANDOFF_REASON_CLIENT_GONE;
    offer->wait_ns = ngx_handoff_now_ns() - offer->since_ns;

    ngx_handoff_ended(offer);
}


/* The worker is to exit: whoever waits is served another way. */
void
ngx_handoff_empty_queue(ngx_handoff_broker_t *broker)
{
    ngx_handoff_offer_t  *offer;

    while (broker->queued) {
        offer = ngx_queue_data(ngx_queue_head(&broker->queue), ngx_handoff_offer_t, queue);
        ngx_handoff_dequeue(offer);
        ngx_handoff_give_up(offer, "nginx is shutting down");
    }
}


static void
ngx_handoff_expiry_handler(ngx_event_t *ev)
{
    ngx_handoff_offer_t   *offer = ev->data;
    ngx_handoff_broker_t  *broker = offer->broker;

    ngx_handoff_dequeue(offer);
    ngx_handoff_give_up(offer, broker->refused == HANDOFF_ERR_FULL
                               ? "no backend had room in time"
                               : ngx_handoff_why_refused(broker, broker->refused));
}


/* One that waits, or would have to: the reason is why others do. */
static void
ngx_handoff_give_up(ngx_handoff_offer_t *offer, char *why)
{
    offer->state = NGX_HANDOFF_IDLE;

    ngx_log_error(NGX_LOG_WARN, offer->connection->log, 0, "handoff to \"%V\" failed: %s",
                  &offer->broker->target->name, why);
    ngx_handoff_finish(offer, HANDOFF_FALLBACK, handoff_status_reason(offer->broker->refused));
}

#pragma GCC visibility pop
