/* The brokers of a worker in nginx's event loop, and their offers. */
#include "ngx_handoff.h"

#include <time.h>

#pragma GCC visibility push(hidden)

/* No backend takes an offer of more bytes than this. */
#define NGX_HANDOFF_MAX_BYTES      131072

/* The size of the pool for what goes with an offer. More than the usual request needs. */
#define NGX_HANDOFF_POOL_SIZE      4096

/* The directives' defaults. */
#define NGX_HANDOFF_TIMEOUT        5000
#define NGX_HANDOFF_MAX_IN_FLIGHT  256
#define NGX_HANDOFF_MAX_FAILS      8
#define NGX_HANDOFF_FAIL_TIMEOUT   30000

/* What the verdict of an offer comes back with: it may outlive the offer's request. */
struct ngx_handoff_slot_s {
    ngx_handoff_offer_t    *offer;       /* NULL if its request has ended */
    ngx_handoff_slot_t     *next;        /* in the list of free ones */
};

/* A handoff socket, with the limits that a location has set for it. */
struct ngx_handoff_backend_s {
    ngx_str_t               path;
    ngx_uint_t              max_in_flight;
    ngx_uint_t              max_fails;
    ngx_msec_t              fail_timeout;

    /* Each worker's own. */
    handoff_broker         *broker;      /* NULL if it could not be opened */
    ngx_queue_t             waiting;     /* of ngx_handoff_offer_t */
    ngx_event_t             flush;
    ngx_event_t             busy;
    ngx_uint_t              in_flight;
    ngx_handoff_slot_t     *free;
};


static ngx_handoff_backend_t *ngx_handoff_backend(ngx_conf_t *cf, ngx_array_t *backends,
    ngx_handoff_conf_t *conf);
static ngx_int_t ngx_handoff_open(ngx_cycle_t *cycle, ngx_handoff_backend_t *backend);
static void ngx_handoff_flush_handler(ngx_event_t *ev);
static void ngx_handoff_busy_handler(ngx_event_t *ev);
static void ngx_handoff_dispatch_handler(ngx_event_t *ev);
static void ngx_handoff_send(ngx_handoff_offer_t *offer, ngx_pool_t *pool);
static handoff_reason ngx_handoff_refusal(handoff_status status);
static handoff_reason ngx_handoff_prepare(ngx_handoff_offer_t *offer,
    ngx_handoff_content_t *content, handoff_offer *prepared);
static void ngx_handoff_collect(ngx_handoff_backend_t *backend, ngx_log_t *log);
static void ngx_handoff_land(ngx_handoff_backend_t *backend);
static void ngx_handoff_finish(ngx_handoff_offer_t *offer, handoff_outcome outcome,
    handoff_reason reason);
static void ngx_handoff_log_error(ngx_handoff_backend_t *backend, ngx_log_t *log);
static uint64_t ngx_handoff_now_ns(void);


/* ---- configuration ---- */

/* The ranges in which the library takes these limits; without a limit of failures for 0. */
ngx_conf_num_bounds_t  ngx_handoff_in_flight = { ngx_conf_check_num_bounds, 1, 4096 };
ngx_conf_num_bounds_t  ngx_handoff_fails = { ngx_conf_check_num_bounds, 0, 4096 };


/* The main configuration of both modules: an array of ngx_handoff_backend_t *. */
void *
ngx_handoff_create_backends(ngx_conf_t *cf)
{
    return ngx_array_create(cf->pool, 2, sizeof(ngx_handoff_backend_t *));
}


void
ngx_handoff_init_conf(ngx_handoff_conf_t *conf)
{
    conf->timeout = NGX_CONF_UNSET_MSEC;
    conf->max_in_flight = NGX_CONF_UNSET_UINT;
    conf->max_fails = NGX_CONF_UNSET_UINT;
    conf->fail_timeout = NGX_CONF_UNSET_MSEC;
    conf->service = NGX_CONF_UNSET_PTR;
    conf->correlation = NGX_CONF_UNSET_PTR;
    conf->metadata = NGX_CONF_UNSET_PTR;
}


char *
ngx_handoff_merge_conf(ngx_conf_t *cf, ngx_array_t *backends, ngx_handoff_conf_t *prev,
    ngx_handoff_conf_t *conf)
{
    ngx_conf_merge_msec_value(conf->timeout, prev->timeout, NGX_HANDOFF_TIMEOUT);
    ngx_conf_merge_uint_value(conf->max_in_flight, prev->max_in_flight, NGX_HANDOFF_MAX_IN_FLIGHT);
    ngx_conf_merge_uint_value(conf->max_fails, prev->max_fails, NGX_HANDOFF_MAX_FAILS);
    ngx_conf_merge_msec_value(conf->fail_timeout, prev->fail_timeout, NGX_HANDOFF_FAIL_TIMEOUT);
    ngx_conf_merge_ptr_value(conf->service, prev->service, NULL);
    ngx_conf_merge_ptr_value(conf->correlation, prev->correlation, NULL);
    ngx_conf_merge_ptr_value(conf->metadata, prev->metadata, NULL);

    if (conf->path.len == 0) {
        return NGX_CONF_OK;
    }

    conf->backend = ngx_handoff_backend(cf, backends, conf);

    return conf->backend ? NGX_CONF_OK : NGX_CONF_ERROR;
}


/* The argument of handoff_pass: "unix:/path", or "unix:@name" for an abstract name. */
char *
ngx_handoff_set_path(ngx_conf_t *cf, ngx_str_t *path)
{
    ngx_str_t       *value = cf->args->elts;
    handoff_broker  *broker;

    if (path->len) {
        return "is duplicate";
    }

    if (ngx_strncmp(value[1].data, "unix:", 5) != 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid handoff socket \"%V\", it begins with "
                           "\"unix:\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    path->data = value[1].data + 5;
    path->len = value[1].len - 5;

    /* A new broker opens nothing: it only shows whether the path can be a socket's. */
    if (handoff_broker_new((char *) path->data, NULL, &broker) != HANDOFF_OK) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid handoff socket \"%V\": %s", &value[1],
                           handoff_last_error());
        return NGX_CONF_ERROR;
    }

    handoff_broker_free(broker);

    return NGX_CONF_OK;
}


/* One for all locations that agree about it. */
static ngx_handoff_backend_t *
ngx_handoff_backend(ngx_conf_t *cf, ngx_array_t *backends, ngx_handoff_conf_t *conf)
{
    ngx_uint_t              i;
    ngx_handoff_backend_t  *backend, **known = backends->elts;

    for (i = 0; i < backends->nelts; i++) {
        backend = known[i];

        if (backend->path.len == conf->path.len
            && ngx_strncmp(backend->path.data, conf->path.data, conf->path.len) == 0
            && backend->max_in_flight == conf->max_in_flight
            && backend->max_fails == conf->max_fails
            && backend->fail_timeout == conf->fail_timeout)
        {
            return backend;
        }
    }

    backend = ngx_pcalloc(cf->pool, sizeof(ngx_handoff_backend_t));
    known = ngx_array_push(backends);
    if (backend == NULL || known == NULL) {
        return NULL;
    }

    backend->path = conf->path;
    backend->max_in_flight = conf->max_in_flight;
    backend->max_fails = conf->max_fails;
    backend->fail_timeout = conf->fail_timeout;

    *known = backend;
    return backend;
}


/* ---- a worker's beginning and end ---- */

ngx_int_t
ngx_handoff_init_worker(ngx_cycle_t *cycle, ngx_array_t *backends)
{
    ngx_uint_t              i;
    ngx_handoff_backend_t **backend;

    /* Not in the processes that look after caches. Without its block a module has no backends. */
    if (backends == NULL || backends->nelts == 0
        || (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE))
    {
        return NGX_OK;
    }

    if (ngx_handoff_init_copies(cycle) != NGX_OK) {
        return NGX_ERROR;
    }

    backend = backends->elts;

    for (i = 0; i < backends->nelts; i++) {
        if (ngx_handoff_open(cycle, backend[i]) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/* Makes the broker and begins to connect. Without it every offer is refused. */
static ngx_int_t
ngx_handoff_open(ngx_cycle_t *cycle, ngx_handoff_backend_t *backend)
{
    int                     fd;
    ngx_uint_t              i;
    handoff_broker         *broker;
    ngx_connection_t       *c;
    ngx_handoff_slot_t     *slots;
    handoff_broker_options  options = HANDOFF_BROKER_OPTIONS_INIT;

    ngx_queue_init(&backend->waiting);
    backend->flush.data = backend;
    backend->flush.handler = ngx_handoff_flush_handler;
    backend->flush.log = cycle->log;
    backend->busy.data = backend;
    backend->busy.handler = ngx_handoff_busy_handler;
    backend->busy.log = cycle->log;

    slots = ngx_pcalloc(cycle->pool, backend->max_in_flight * sizeof(ngx_handoff_slot_t));
    if (slots == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < backend->max_in_flight; i++) {
        slots[i].next = backend->free;
        backend->free = &slots[i];
    }

    options.max_in_flight = backend->max_in_flight;
    options.max_failures = backend->max_fails ? backend->max_fails : HANDOFF_NO_LIMIT;
    options.failure_period_ms = ngx_max(backend->fail_timeout, 1);   /* 0 is the default */

    broker = NULL;
    if (handoff_broker_new((char *) backend->path.data, &options, &broker) != HANDOFF_OK
        || (fd = handoff_broker_fd(broker)) == -1)
    {
        ngx_log_error(NGX_LOG_ALERT, cycle->log, 0, "no broker for \"%V\": %s", &backend->path,
                      handoff_last_error());
        handoff_broker_free(broker);
        return NGX_OK;
    }

    c = ngx_get_connection(fd, cycle->log);
    if (c == NULL) {
        handoff_broker_free(broker);
        return NGX_OK;
    }

    c->data = backend;
    c->log = cycle->log;
    c->read->log = cycle->log;
    c->write->log = cycle->log;
    c->read->handler = ngx_handoff_dispatch_handler;

    if (ngx_add_event(c->read, NGX_READ_EVENT, NGX_LEVEL_EVENT) != NGX_OK) {
        ngx_free_connection(c);
        c->fd = (ngx_socket_t) -1;
        handoff_broker_free(broker);
        return NGX_OK;
    }

    backend->broker = broker;
    return NGX_OK;
}


/*
 * Takes the brokers' descriptors out of the cycle's connections, which nginx looks through for
 * sockets that were forgotten. The brokers are not freed: that would take back what is in flight,
 * and nobody is left to serve it here, while a backend may still adopt what it has received.
 */
void
ngx_handoff_exit_worker(ngx_cycle_t *cycle)
{
    ngx_uint_t         i;
    ngx_connection_t  *c = cycle->connections;

    for (i = 0; i < cycle->connection_n; i++) {
        if (c[i].fd != (ngx_socket_t) -1 && c[i].read
            && c[i].read->handler == ngx_handoff_dispatch_handler)
        {
            ngx_free_connection(&c[i]);
            c[i].fd = (ngx_socket_t) -1;
        }
    }
}


/* ---- offers ---- */

/* Offers a connection at the end of this iteration. */
void
ngx_handoff_offer(ngx_handoff_offer_t *offer)
{
    ngx_handoff_backend_t  *backend = offer->conf->backend;

    offer->since_ns = ngx_handoff_now_ns();
    offer->state = NGX_HANDOFF_WAITING;
    ngx_queue_insert_tail(&backend->waiting, &offer->queue);

    ngx_post_event(&backend->flush, &ngx_posted_events);
}


/* Notes that a connection is not offered, and why. There is no done(). */
void
ngx_handoff_refuse(ngx_handoff_offer_t *offer, handoff_reason reason)
{
    offer->outcome = HANDOFF_FALLBACK;
    offer->reason = reason;
    offer->wait_ns = 0;
}


/* To be called when the request or session ends, on offer or not. No done() follows. */
void
ngx_handoff_take_back(ngx_handoff_offer_t *offer)
{
    handoff_status          status;
    ngx_handoff_backend_t  *backend;

    if (offer->state == NGX_HANDOFF_IDLE) {
        return;
    }

    backend = offer->conf->backend;

    if (offer->state == NGX_HANDOFF_WAITING) {
        ngx_queue_remove(&offer->queue);
        offer->state = NGX_HANDOFF_IDLE;
        return;
    }

    status = handoff_broker_take_back(backend->broker, offer->id);

    if (status == HANDOFF_OK) {
        offer->slot->next = backend->free;
        backend->free = offer->slot;
        ngx_handoff_land(backend);

        /* The backend will not adopt it, but may have a copy: closing ours says nothing. */
        if (offer->connection->fd != (ngx_socket_t) -1) {
            ngx_handoff_end(offer->connection);
        }

    } else {
        if (status != HANDOFF_ERR_TOO_LATE) {
            ngx_handoff_log_error(backend, offer->connection->log);
        }

        /* The backend has adopted it; or its verdict is known, and nobody will look at it. */
        offer->slot->offer = NULL;
    }

    offer->state = NGX_HANDOFF_IDLE;
}


static void
ngx_handoff_flush_handler(ngx_event_t *ev)
{
    ngx_pool_t             *pool;
    ngx_queue_t             batch, *q;
    ngx_handoff_backend_t  *backend = ev->data;

    if (ngx_queue_empty(&backend->waiting)) {
        return;
    }

    /* What done() of one of them offers anew has its own turn. */
    ngx_queue_init(&batch);
    ngx_queue_add(&batch, &backend->waiting);
    ngx_queue_init(&backend->waiting);

    pool = ngx_create_pool(NGX_HANDOFF_POOL_SIZE, ev->log);

    while (!ngx_queue_empty(&batch)) {
        q = ngx_queue_head(&batch);
        ngx_queue_remove(q);
        ngx_handoff_send(ngx_queue_data(q, ngx_handoff_offer_t, queue), pool);

        if (pool) {
            ngx_reset_pool(pool);
        }
    }

    if (pool) {
        ngx_destroy_pool(pool);
    }

    if (backend->in_flight == 0) {
        return;
    }

    if (handoff_broker_flush(backend->broker) != HANDOFF_OK) {
        ngx_handoff_log_error(backend, ev->log);
    }
}


/* `pool` is NULL if there was no memory for it. */
static void
ngx_handoff_send(ngx_handoff_offer_t *offer, ngx_pool_t *pool)
{
    handoff_offer           prepared = HANDOFF_OFFER_INIT;
    handoff_reason          reason;
    handoff_status          status;
    ngx_connection_t       *c = offer->connection;
    ngx_handoff_slot_t     *slot;
    ngx_handoff_backend_t  *backend = offer->conf->backend;
    ngx_handoff_content_t   content = { pool, { 0 }, NGX_HANDOFF_MAX_BYTES };

    offer->state = NGX_HANDOFF_IDLE;

    reason = ngx_handoff_prepare(offer, &content, &prepared);
    if (reason != HANDOFF_REASON_NONE) {
        ngx_handoff_finish(offer, HANDOFF_FALLBACK, reason);
        return;
    }

    slot = backend->free;
    if (backend->broker == NULL || slot == NULL) {
        ngx_log_error(NGX_LOG_WARN, c->log, 0, "handoff to \"%V\" failed: %s", &backend->path,
                      slot ? "there is no broker" : "the limit of offers in flight is reached");
        ngx_handoff_finish(offer, HANDOFF_FALLBACK,
                           slot ? HANDOFF_REASON_BACKEND_UNAVAILABLE : HANDOFF_REASON_BACKEND_BUSY);
        return;
    }

    /*
     * Before the offer: once the backend has a copy, a registration with epoll would live as long
     * as that, and tell of events on a connection that is not ours, or on whatever has its place.
     */
    if (ngx_handoff_unwatch(offer) != NGX_OK) {
        ngx_handoff_finish(offer, HANDOFF_FALLBACK, HANDOFF_REASON_DESCRIPTOR_PRESSURE);
        return;
    }

    prepared.fd = c->fd;
    prepared.flags = HANDOFF_OFFER_MORE;
    prepared.user_data = slot;
    prepared.timeout_ms = ngx_max(offer->conf->timeout, 1);   /* 0 is the default */

    status = handoff_broker_offer(backend->broker, &prepared, &offer->id);

    if (status != HANDOFF_OK) {
        ngx_log_error(NGX_LOG_WARN, c->log, 0, "handoff to \"%V\" failed: %s", &backend->path,
                      handoff_broker_last_error(backend->broker));

        ngx_handoff_finish(offer, HANDOFF_FALLBACK, ngx_handoff_refusal(status));
        return;
    }

    backend->free = slot->next;
    slot->offer = offer;
    offer->slot = slot;
    offer->state = NGX_HANDOFF_IN_FLIGHT;

    if (backend->in_flight++ == 0) {
        ngx_add_timer(&backend->busy, 1000);
    }
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
    char                *why;
    ngx_str_t            metadata, service, correlation;
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

    if ((why = ngx_handoff_write_text(conf->metadata, offer->value, offer->session, content,
                                      &metadata))
        || (why = ngx_handoff_write_text(conf->service, offer->value, offer->session, content,
                                         &service))
        || (why = ngx_handoff_write_text(conf->correlation, offer->value, offer->session, content,
                                         &correlation)))
    {
        ngx_log_error(NGX_LOG_WARN, offer->connection->log, 0, "handoff to \"%V\" failed: %s",
                      &conf->path, why);
        return HANDOFF_REASON_CLIENT_UNSUPPORTED;
    }

    prepared->preread_iov = content->preread.elts;
    prepared->preread_iov_len = content->preread.nelts;
    prepared->metadata = metadata.data;
    prepared->metadata_len = metadata.len;
    prepared->service = service.len ? (char *) service.data : NULL;
    prepared->correlation = correlation.len ? (char *) correlation.data : NULL;

    return HANDOFF_REASON_NONE;
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


static void
ngx_handoff_dispatch_handler(ngx_event_t *ev)
{
    ngx_connection_t       *c = ev->data;
    ngx_handoff_backend_t  *backend = c->data;

    if (handoff_broker_dispatch(backend->broker) != HANDOFF_OK) {
        ngx_handoff_log_error(backend, ev->log);
    }

    ngx_handoff_collect(backend, ev->log);
}


static void
ngx_handoff_collect(ngx_handoff_backend_t *backend, ngx_log_t *log)
{
    handoff_status        status;
    handoff_verdict       verdict = HANDOFF_VERDICT_INIT;
    ngx_connection_t     *c;
    ngx_handoff_slot_t   *slot;
    ngx_handoff_offer_t  *offer;

    while ((status = handoff_broker_next(backend->broker, &verdict)) == HANDOFF_OK) {
        slot = verdict.user_data;
        offer = slot->offer;

        slot->next = backend->free;
        backend->free = slot;
        ngx_handoff_land(backend);

        if (offer == NULL) {
            continue;
        }

        offer->state = NGX_HANDOFF_IDLE;

        c = offer->connection;

        if (verdict.outcome == HANDOFF_ADOPTED) {
            ngx_handoff_adopted(c);

        } else {
            ngx_log_error(NGX_LOG_WARN, c->log, 0, "handoff to \"%V\" failed: %s",
                          &backend->path, handoff_reason_name(verdict.reason));

            if (verdict.may_have_reached_backend && ngx_handoff_add_copy(c) != NGX_OK) {
                c->error = 1;
            }
        }

        ngx_handoff_finish(offer, verdict.outcome, verdict.reason);
    }

    if (status != HANDOFF_NOTHING) {
        ngx_handoff_log_error(backend, log);
    }
}


/* One offer less in flight. */
static void
ngx_handoff_land(ngx_handoff_backend_t *backend)
{
    if (--backend->in_flight == 0) {
        ngx_del_timer(&backend->busy);
    }
}


/* A worker that is to exit stays while it has timers: this one is for the offers in flight. */
static void
ngx_handoff_busy_handler(ngx_event_t *ev)
{
    ngx_add_timer(ev, 1000);
}


static void
ngx_handoff_finish(ngx_handoff_offer_t *offer, handoff_outcome outcome, handoff_reason reason)
{
    offer->outcome = outcome;
    offer->reason = reason;
    offer->wait_ns = ngx_handoff_now_ns() - offer->since_ns;

    if (outcome == HANDOFF_FALLBACK && ngx_handoff_watch(offer) != NGX_OK) {
        offer->connection->error = 1;
    }

    offer->done(offer);
}


/* An error that no backend can cause. */
static void
ngx_handoff_log_error(ngx_handoff_backend_t *backend, ngx_log_t *log)
{
    ngx_log_error(NGX_LOG_ALERT, log, 0, "handoff to \"%V\": %s", &backend->path,
                  handoff_broker_last_error(backend->broker));
}


static uint64_t
ngx_handoff_now_ns(void)
{
    struct timespec  now;

    (void) clock_gettime(CLOCK_MONOTONIC, &now);

    return (uint64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}

#pragma GCC visibility pop
