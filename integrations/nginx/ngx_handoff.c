/* The offers of a worker, from first to last. */
#include "ngx_handoff.h"

#include <time.h>

#pragma GCC visibility push(hidden)

/* No backend takes an offer of more bytes than this. */
#define NGX_HANDOFF_MAX_BYTES      131072

/* How many slots are allocated at a time. */
#define NGX_HANDOFF_SLOTS          64

/* What the verdict of an offer comes back with: it may outlive the offer's request. */
struct ngx_handoff_slot_s {
    ngx_handoff_offer_t    *offer;       /* NULL if its request has ended */
    ngx_handoff_slot_t     *next;        /* in the list of free ones */
};


static ngx_handoff_slot_t *ngx_handoff_get_slot(ngx_handoff_broker_t *broker);
static handoff_reason ngx_handoff_refusal(handoff_status status);
static handoff_reason ngx_handoff_prepare(ngx_handoff_offer_t *offer,
    ngx_handoff_content_t *content, handoff_offer *prepared);
static char *ngx_handoff_write_name(ngx_handoff_offer_t *offer, ngx_handoff_text_t *text,
    ngx_handoff_content_t *content, char **name);
static void ngx_handoff_break(ngx_handoff_broker_t *broker, ngx_handoff_slot_t *slot,
    ngx_log_t *log);
static void ngx_handoff_replace(ngx_handoff_broker_t *broker, ngx_log_t *log);
static void ngx_handoff_collect(ngx_handoff_broker_t *broker, ngx_log_t *log);
static void ngx_handoff_note(ngx_handoff_offer_t *offer, handoff_verdict *verdict);
static void ngx_handoff_land(ngx_handoff_broker_t *broker, ngx_handoff_slot_t *slot);


/* Offers a connection at the end of this iteration. */
void
ngx_handoff_offer(ngx_handoff_offer_t *offer)
{
    offer->outcome = 0;
    offer->reason = HANDOFF_REASON_NONE;
    offer->tries = 0;
    ngx_str_null(&offer->backend);

    offer->since_ns = ngx_handoff_now_ns();
    offer->state = NGX_HANDOFF_WAITING;
    ngx_queue_insert_tail(&offer->broker->waiting, &offer->queue);

    ngx_post_event(&offer->broker->flush, &ngx_posted_events);
}


/* Notes that a connection is not offered, and why. There is no done(). */
void
ngx_handoff_refuse(ngx_handoff_offer_t *offer, handoff_reason reason)
{
    offer->outcome = HANDOFF_FALLBACK;
    offer->reason = reason;
    offer->wait_ns = 0;
    offer->tries = 0;
    ngx_str_null(&offer->backend);
}


/* To be called when the request or session ends, on offer or not. No done() follows. */
void
ngx_handoff_take_back(ngx_handoff_offer_t *offer)
{
    handoff_status         status;
    ngx_handoff_broker_t  *broker = offer->broker;

    switch (offer->state) {

    case NGX_HANDOFF_IDLE:
        return;

    case NGX_HANDOFF_WAITING:
        ngx_queue_remove(&offer->queue);
        break;

    case NGX_HANDOFF_QUEUED:
        ngx_handoff_dequeue(offer);
        break;

    case NGX_HANDOFF_IN_FLIGHT:
        status = handoff_broker_take_back(broker->broker, offer->id);

        if (status == HANDOFF_OK) {
            ngx_handoff_land(broker, offer->slot);

            /* The backend will not adopt it, but may have a copy: closing ours says nothing. */
            if (offer->connection->fd != (ngx_socket_t) -1) {
                ngx_handoff_end(offer->connection);
            }

            break;
        }

        if (status != HANDOFF_ERR_TOO_LATE) {
            ngx_handoff_log_error(broker, offer->connection->log);
        }

        /* The backend has adopted it; or its verdict is known, and nobody will look at it. */
        ngx_handoff_adopted(offer->connection);
        offer->slot->offer = NULL;
    }

    offer->state = NGX_HANDOFF_IDLE;
    ngx_handoff_ended(offer);
}


/* Whichever way. The flush handler sees whether a worker that is to exit has more to do. */
void
ngx_handoff_ended(ngx_handoff_offer_t *offer)
{
    ngx_handoff_count(offer);

    if (ngx_exiting) {
        ngx_post_event(&offer->broker->flush, &ngx_posted_events);
    }
}


void
ngx_handoff_flush_handler(ngx_event_t *ev)
{
    ngx_pool_t            *pool;
    ngx_queue_t            batch, *q;
    ngx_handoff_offer_t   *offer;
    ngx_handoff_broker_t  *broker = ev->data;

    if (broker->broken) {
        ngx_handoff_replace(broker, ev->log);
    }

    if (ngx_queue_empty(&broker->waiting)) {
        ngx_handoff_leave(broker);
        return;
    }

    /* What done() of one of them offers anew has its own turn. */
    ngx_queue_init(&batch);
    ngx_queue_add(&batch, &broker->waiting);
    ngx_queue_init(&broker->waiting);

    pool = ngx_create_pool(NGX_HANDOFF_POOL_SIZE, ev->log);

    while (!ngx_queue_empty(&batch)) {
        q = ngx_queue_head(&batch);
        ngx_queue_remove(q);
        offer = ngx_queue_data(q, ngx_handoff_offer_t, queue);

        if (!ngx_handoff_stand_behind(offer)) {
            (void) ngx_handoff_send(offer, pool);
        }

        if (pool) {
            ngx_reset_pool(pool);
        }
    }

    if (pool) {
        ngx_destroy_pool(pool);
    }

    ngx_handoff_flush(broker, ev->log);
}


/* Sends what was offered in this iteration. */
void
ngx_handoff_flush(ngx_handoff_broker_t *broker, ngx_log_t *log)
{
    handoff_status  status;

    if (broker->in_flight && !broker->broken) {
        status = handoff_broker_flush(broker->broker);

        if (status == HANDOFF_ERR_INTERNAL) {
            ngx_handoff_break(broker, NULL, log);

        } else if (status != HANDOFF_OK) {
            ngx_handoff_log_error(broker, log);
        }
    }
}


/*
 * `pool` is NULL if there was no memory for it. NGX_OK if it is offered or has fallen back;
 * NGX_AGAIN if it waits for room now.
 */
ngx_int_t
ngx_handoff_send(ngx_handoff_offer_t *offer, ngx_pool_t *pool)
{
    handoff_offer           prepared = HANDOFF_OFFER_INIT;
    handoff_reason          reason;
    handoff_status          status;
    ngx_connection_t       *c = offer->connection;
    ngx_handoff_slot_t     *slot;
    ngx_handoff_broker_t   *broker = offer->broker;
    ngx_handoff_content_t   content = { pool, { 0 }, NGX_HANDOFF_MAX_BYTES };

    offer->state = NGX_HANDOFF_IDLE;

    reason = ngx_handoff_prepare(offer, &content, &prepared);
    if (reason != HANDOFF_REASON_NONE) {
        ngx_handoff_finish(offer, HANDOFF_FALLBACK, reason);
        return NGX_OK;
    }

    if (broker->broker == NULL) {
        (void) ngx_handoff_open((ngx_cycle_t *) ngx_cycle, broker);
    }

    slot = ngx_handoff_get_slot(broker);
    if (broker->broker == NULL || slot == NULL) {
        ngx_log_error(NGX_LOG_WARN, c->log, 0, "handoff to \"%V\" failed: %s",
                      &broker->target->name, slot ? "there is no broker" : "there is no memory");
        ngx_handoff_finish(offer, HANDOFF_FALLBACK, HANDOFF_REASON_BACKEND_UNAVAILABLE);
        return NGX_OK;
    }

    /*
     * Before the offer: once the backend has a copy, a registration with epoll would live as long
     * as that, and tell of events on a connection that is not ours, or on whatever has its place.
     */
    if (ngx_handoff_unwatch(offer) != NGX_OK) {
        ngx_handoff_finish(offer, HANDOFF_FALLBACK, HANDOFF_REASON_DESCRIPTOR_PRESSURE);
        return NGX_OK;
    }

    ngx_handoff_set_socket(c);

    prepared.fd = c->fd;
    prepared.flags = HANDOFF_OFFER_MORE;
#if (NGX_HANDOFF_TLS)
    prepared.flags |= c->ssl ? HANDOFF_OFFER_TLS : 0;
#endif
    prepared.user_data = slot;
    prepared.timeout_ms = offer->conf->timeout;

    offer->id = 0;
    offer->needs = NGX_HANDOFF_MAX_BYTES - content.room;
    status = handoff_broker_offer(broker->broker, &prepared, &offer->id);

    if (status != HANDOFF_OK && status != HANDOFF_ERR_INTERNAL) {

        if (ngx_handoff_may_wait(offer, status) && ngx_handoff_enqueue(offer) == NGX_OK) {
            broker->refused = status;
            return NGX_AGAIN;
        }

        ngx_log_error(NGX_LOG_WARN, c->log, 0, "handoff to \"%V\" failed: %s",
                      &broker->target->name, ngx_handoff_why_refused(broker, status));

        ngx_handoff_finish(offer, HANDOFF_FALLBACK, ngx_handoff_refusal(status));
        return NGX_OK;
    }

    if (offer->expiry.timer_set) {
        ngx_del_timer(&offer->expiry);
    }

    broker->settled = 1;
    broker->free = slot->next;
    slot->offer = offer;
    offer->slot = slot;
    offer->state = NGX_HANDOFF_IN_FLIGHT;

    if (broker->in_flight++ == 0) {
        ngx_add_timer(&broker->busy, 1000);
    }

    ngx_handoff_changed(broker);

    if (status == HANDOFF_ERR_INTERNAL) {
        ngx_handoff_break(broker, slot, c->log);
    }

    return NGX_OK;
}


/*
 * A bug in the library: the backend may have the connection of this slot, or of any other in flight. The
 * verdicts of a broker that is closed tell; they are taken when nothing of nginx's is in the middle of an
 * offer.
 */
static void
ngx_handoff_break(ngx_handoff_broker_t *broker, ngx_handoff_slot_t *slot, ngx_log_t *log)
{
    ngx_handoff_log_error(broker, log);

    if (broker->broken) {
        return;
    }

    broker->broken = 1;
    broker->lost = slot;

    /* Its descriptor ends with it. */
    if (broker->connection) {
        ngx_handoff_unwatch_broker(broker);
    }

    if (handoff_broker_close(broker->broker) != HANDOFF_OK) {
        ngx_handoff_log_error(broker, log);
    }

    ngx_post_event(&broker->flush, &ngx_posted_events);
}


/* Takes the verdicts of a broker that is closed, and has the next offer open another one. */
static void
ngx_handoff_replace(ngx_handoff_broker_t *broker, ngx_log_t *log)
{
    ngx_handoff_slot_t   *slot;
    ngx_handoff_offer_t  *offer;

    ngx_handoff_collect(broker, log);

    slot = broker->lost;
    offer = slot ? slot->offer : NULL;
    broker->lost = NULL;
    broker->broken = 0;
    ngx_handoff_close(broker);

    if (slot) {
        ngx_handoff_land(broker, slot);
    }

    if (offer) {
        /* Without a verdict: it is ours. */
        offer->state = NGX_HANDOFF_IDLE;

        if (ngx_handoff_add_copy(offer->connection) != NGX_OK) {
            offer->connection->error = 1;
        }

        ngx_handoff_finish(offer, HANDOFF_FALLBACK, HANDOFF_REASON_BACKEND_UNAVAILABLE);
    }

    /* What waits for room may have it now. */
    ngx_handoff_drain(broker, log);
}


/* The library limits how many are in use. NULL if there is no memory. */
static ngx_handoff_slot_t *
ngx_handoff_get_slot(ngx_handoff_broker_t *broker)
{
    ngx_uint_t           i;
    ngx_handoff_slot_t  *slots;

    if (broker->free) {
        return broker->free;
    }

    slots = ngx_pcalloc(ngx_cycle->pool, NGX_HANDOFF_SLOTS * sizeof(ngx_handoff_slot_t));
    if (slots == NULL) {
        return NULL;
    }

    for (i = 0; i < NGX_HANDOFF_SLOTS; i++) {
        slots[i].next = broker->free;
        broker->free = &slots[i];
    }

    return broker->free;
}


/* The reason for a fallback after an offer that the library refused. */
static handoff_reason
ngx_handoff_refusal(handoff_status status)
{
    handoff_reason  reason;

    reason = handoff_status_reason(status);
    return (reason == HANDOFF_REASON_NONE) ? HANDOFF_REASON_CLIENT_UNSUPPORTED : reason;
}


/* Puts together what goes with the connection. */
static handoff_reason
ngx_handoff_prepare(ngx_handoff_offer_t *offer, ngx_handoff_content_t *content,
    handoff_offer *prepared)
{
    char                *why, *service, *correlation;
    ngx_str_t            metadata;
    handoff_reason       reason;
    ngx_handoff_conf_t  *conf = offer->conf;

    if (content->pool == NULL
        || ngx_array_init(&content->preread, content->pool, 8, sizeof(struct iovec)) != NGX_OK)
    {
        return HANDOFF_REASON_CLIENT_UNSUPPORTED;
    }

    reason = offer->preread(offer, content);
    if (reason != HANDOFF_REASON_NONE) {
        return reason;
    }

    if ((why = ngx_handoff_write_metadata(offer, content, &metadata))
        || (why = ngx_handoff_write_name(offer, conf->service, content, &service))
        || (why = ngx_handoff_write_name(offer, conf->correlation, content, &correlation)))
    {
        ngx_log_error(NGX_LOG_WARN, offer->connection->log, 0, "handoff to \"%V\" failed: %s",
                      &offer->broker->target->name, why);
        return HANDOFF_REASON_CLIENT_UNSUPPORTED;
    }

    prepared->preread_iov = content->preread.elts;
    prepared->preread_iov_len = content->preread.nelts;
    prepared->metadata = metadata.data;
    prepared->metadata_len = metadata.len;
    prepared->service = service;
    prepared->correlation = correlation;

    return HANDOFF_REASON_NONE;
}


/*
 * A service or a correlation; NULL if it is empty. A client can put a NUL into what it is made of, such
 * as a TLS server name: the backend would see another name than nginx has looked at.
 */
static char *
ngx_handoff_write_name(ngx_handoff_offer_t *offer, ngx_handoff_text_t *text,
    ngx_handoff_content_t *content, char **name)
{
    char       *why;
    ngx_str_t   written;

    why = ngx_handoff_write_text(text, offer->value, offer->session, content, &written);
    if (why) {
        return why;
    }

    *name = written.len ? (char *) written.data : NULL;

    return (*name && memchr(*name, '\0', written.len))
           ? "there is a NUL in its service or correlation" : NULL;
}


char *
ngx_handoff_add_preread(ngx_handoff_content_t *content, u_char *data, size_t len)
{
    struct iovec  *part;

    if (len == 0) {
        return NULL;
    }

    if (len > content->room) {
        return "it is too large";
    }

    part = ngx_array_push(&content->preread);
    if (part == NULL) {
        return "there is no memory";
    }

    part->iov_base = data;
    part->iov_len = len;
    content->room -= len;

    return NULL;
}


/* The memory stays until the offer is made. Its bytes count when they are added to the content. */
char *
ngx_handoff_allocate(ngx_handoff_content_t *content, size_t len, u_char **data)
{
    if (len > content->room) {
        return "it is too large";
    }

    *data = ngx_pnalloc(content->pool, len);

    return *data ? NULL : "there is no memory";
}


void
ngx_handoff_dispatch_handler(ngx_event_t *ev)
{
    handoff_status         status;
    ngx_connection_t      *c = ev->data;
    ngx_handoff_broker_t  *broker = c->data;

    if (c->close) {
        /* Not an event of the broker's: the worker has been asked to exit. */
        c->close = 0;
        ngx_handoff_empty_queue(broker);
        ngx_handoff_leave(broker);
        return;
    }

    status = handoff_broker_dispatch(broker->broker);

    if (status == HANDOFF_ERR_INTERNAL) {
        ngx_handoff_break(broker, NULL, ev->log);
        return;
    }

    if (status != HANDOFF_OK) {
        ngx_handoff_log_error(broker, ev->log);
    }

    ngx_handoff_collect(broker, ev->log);
    ngx_handoff_drain(broker, ev->log);
    ngx_handoff_decided(broker);
}


static void
ngx_handoff_collect(ngx_handoff_broker_t *broker, ngx_log_t *log)
{
    handoff_status        status;
    handoff_verdict       verdict = HANDOFF_VERDICT_INIT;
    ngx_connection_t     *c;
    ngx_handoff_slot_t   *slot;
    ngx_handoff_offer_t  *offer;

    while ((status = handoff_broker_next(broker->broker, &verdict)) == HANDOFF_OK) {
        slot = verdict.user_data;
        offer = slot->offer;

        ngx_handoff_land(broker, slot);

        if (slot == broker->lost) {
            broker->lost = NULL;
        }

        if (offer == NULL) {
            continue;
        }

        offer->state = NGX_HANDOFF_IDLE;

        c = offer->connection;
        ngx_handoff_note(offer, &verdict);

        if (verdict.outcome == HANDOFF_ADOPTED) {
            ngx_handoff_adopted(c);

        } else if (verdict.may_have_reached_backend && ngx_handoff_add_copy(c) != NGX_OK) {
            c->error = 1;
        }

        ngx_handoff_finish(offer, verdict.outcome, verdict.reason);
    }

    if (status != HANDOFF_NOTHING) {
        ngx_handoff_log_error(broker, log);
    }
}


/* Which backends had the offer: for variables, and for the log. */
static void
ngx_handoff_note(ngx_handoff_offer_t *offer, handoff_verdict *verdict)
{
    size_t                 len;
    u_char                 shown[NGX_HANDOFF_SHOWN];
    ngx_str_t              path;
    ngx_log_t             *log = offer->connection->log;
    ngx_handoff_broker_t  *broker = offer->broker;

    offer->tries = verdict->attempts;

    if (verdict->backend) {
        /* It is the library's, until the next call. */
        len = ngx_strlen(verdict->backend);
        offer->backend.data = ngx_pnalloc(offer->pool, len);

        if (offer->backend.data) {
            ngx_memcpy(offer->backend.data, verdict->backend, len);
            offer->backend.len = len;
        }
    }

    if (verdict->attempts > 1) {
        broker->counts.failovers += verdict->attempts - 1;
    }

    if (verdict->outcome == HANDOFF_ADOPTED) {

        if (verdict->attempts > 1) {
            path = ngx_handoff_show(shown, offer->backend.data, offer->backend.len);
            ngx_log_error(NGX_LOG_INFO, log, 0, "handoff to \"%V\": adopted by \"%V\", tried %ui "
                          "backends", &broker->target->name, &path, offer->tries);
        }

    } else if (verdict->attempts > 1 || broker->target->servers) {
        path = ngx_handoff_show(shown, offer->backend.data, offer->backend.len);
        ngx_log_error(NGX_LOG_WARN, log, 0, "handoff to \"%V\" failed: %s, tried %ui backends, "
                      "the last is \"%V\"", &broker->target->name,
                      handoff_reason_name(verdict->reason), offer->tries, &path);

    } else {
        ngx_log_error(NGX_LOG_WARN, log, 0, "handoff to \"%V\" failed: %s",
                      &broker->target->name, handoff_reason_name(verdict->reason));
    }
}


/* One offer less in flight: its slot is free. */
static void
ngx_handoff_land(ngx_handoff_broker_t *broker, ngx_handoff_slot_t *slot)
{
    slot->next = broker->free;
    broker->free = slot;

    if (--broker->in_flight == 0) {
        ngx_del_timer(&broker->busy);
    }
}


/* A worker that is to exit stays while it has timers: this one is for the offers in flight. */
void
ngx_handoff_busy_handler(ngx_event_t *ev)
{
    ngx_add_timer(ev, 1000);
}


void
ngx_handoff_finish(ngx_handoff_offer_t *offer, handoff_outcome outcome, handoff_reason reason)
{
    offer->outcome = outcome;
    offer->reason = reason;
    offer->wait_ns = ngx_handoff_now_ns() - offer->since_ns;

    if (offer->expiry.timer_set) {
        ngx_del_timer(&offer->expiry);
    }

    ngx_handoff_ended(offer);

    if (outcome == HANDOFF_FALLBACK && ngx_handoff_watch(offer) != NGX_OK) {
        offer->connection->error = 1;
    }

    offer->done(offer);
}


/* An error that no backend can cause. */
void
ngx_handoff_log_error(ngx_handoff_broker_t *broker, ngx_log_t *log)
{
    ngx_log_error(NGX_LOG_ALERT, log, 0, "handoff to \"%V\": %s", &broker->target->name,
                  handoff_broker_last_error(broker->broker));
}


uint64_t
ngx_handoff_now_ns(void)
{
    struct timespec  now;

    (void) clock_gettime(CLOCK_MONOTONIC, &now);

    return (uint64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}

#pragma GCC visibility pop
