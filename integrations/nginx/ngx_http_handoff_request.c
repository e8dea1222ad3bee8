/*
 * A request whose connection is offered. Adopted, it is logged and forgotten, with no further byte to
 * the client or from it. Otherwise it goes on as after a failed proxy_pass: with 502 or 504, which
 * error_page turns into another location.
 */
#include "ngx_http_handoff.h"

#pragma GCC visibility push(hidden)

static ngx_uint_t ngx_http_handoff_is_refused(ngx_http_request_t *r, ngx_http_handoff_ctx_t *ctx);
static ngx_int_t ngx_http_handoff_fallback(ngx_handoff_offer_t *offer);
static ngx_uint_t ngx_http_handoff_real_ip(ngx_http_request_t *r);
static ngx_handoff_broker_t *ngx_http_handoff_broker(ngx_http_request_t *r,
    ngx_handoff_conf_t *conf, ngx_handoff_offer_t *offer);
static ngx_variable_value_t *ngx_http_handoff_value(void *session, ngx_uint_t index);
static ngx_variable_value_t *ngx_http_handoff_capture(ngx_http_request_t *r, ngx_uint_t n);
static void ngx_http_handoff_read_handler(ngx_http_request_t *r);
static char *ngx_http_handoff_obstacle(ngx_http_request_t *r);
static handoff_reason ngx_http_handoff_preread(ngx_handoff_offer_t *offer,
    ngx_handoff_content_t *content);
static void ngx_http_handoff_done(ngx_handoff_offer_t *offer);
static void ngx_http_handoff_cleanup(void *data);


ngx_int_t
ngx_http_handoff_handler(ngx_http_request_t *r)
{
    char                    *why;
    ngx_handoff_conf_t      *conf;
    ngx_handoff_offer_t     *offer;
    ngx_http_handoff_ctx_t  *ctx;

    ctx = ngx_http_handoff_ctx(r);
    conf = ngx_http_get_module_loc_conf(r, ngx_http_handoff_module);

    if (ngx_http_handoff_is_refused(r, ctx)) {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, 0,
                      "not handed over: nginx answers it with %ui", r->err_status);

        /* With recursive_error_pages the same error page would lead here again. */
        r->error_page = 1;

        return r->err_status;
    }

    if (ctx == NULL || ctx->offer.state != NGX_HANDOFF_IDLE) {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, 0, "not handed over: it can't be offered");
        return NGX_HTTP_BAD_GATEWAY;
    }

    offer = &ctx->offer;

    /* The offer is the main request's. */
    if (r != r->main) {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, 0, "not handed over: it is a subrequest");
        return NGX_HTTP_BAD_GATEWAY;
    }

    ctx->upstream = r->upstream;

    offer->broker = ngx_http_handoff_broker(r, conf, offer);
    if (offer->broker == NULL) {
        return NGX_HTTP_BAD_GATEWAY;
    }

    why = ngx_http_handoff_obstacle(r);
    if (why) {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, 0, "not handed over: %s", why);
        ngx_handoff_refuse(offer, HANDOFF_REASON_CLIENT_UNSUPPORTED);
        ngx_handoff_count(offer);
        return NGX_HTTP_BAD_GATEWAY;
    }

    offer->conf = conf;
    offer->pool = r->pool;
    offer->connection = r->connection;
    offer->session = r;
    offer->value = ngx_http_handoff_value;
    offer->real_ip = ngx_http_handoff_real_ip(r);
    offer->preread = ngx_http_handoff_preread;
    offer->done = ngx_http_handoff_done;

    r->read_event_handler = ngx_http_handoff_read_handler;
    r->write_event_handler = ngx_http_request_empty_handler;

    r->main->count++;
    ngx_handoff_offer(offer);

    return NGX_DONE;
}


/*
 * An error page may be in a location that hands over, and the backend would get what the client has
 * sent: the request that was refused. With "=" error_page forgets the status, and the fallback of an
 * offer refuses nothing; but a proxy that was asked after it may, with the same status. `ctx` is NULL if
 * the request has failed before its first phase.
 */
static ngx_uint_t
ngx_http_handoff_is_refused(ngx_http_request_t *r, ngx_http_handoff_ctx_t *ctx)
{
    /* A subrequest has no offer: that status may be what the handler itself gave it. */
    if (r != r->main) {
        return r->err_status >= NGX_HTTP_BAD_REQUEST && r->err_status != NGX_HTTP_BAD_GATEWAY;
    }

    if (ctx && ctx->offer.outcome == HANDOFF_FALLBACK
        && r->err_status == (ngx_uint_t) ngx_http_handoff_fallback(&ctx->offer)
        && r->upstream == ctx->upstream)
    {
        return 0;
    }

    return r->err_status >= NGX_HTTP_BAD_REQUEST;
}


/* What the client gets if no error_page leads to another location. */
static ngx_int_t
ngx_http_handoff_fallback(ngx_handoff_offer_t *offer)
{
    return (offer->reason == HANDOFF_REASON_ACK_TIMEOUT) ? NGX_HTTP_GATEWAY_TIME_OUT
                                                         : NGX_HTTP_BAD_GATEWAY;
}


/* Whether set_real_ip_from is in force here: nginx's list of addresses is the first of its settings. */
static ngx_uint_t
ngx_http_handoff_real_ip(ngx_http_request_t *r)
{
    ngx_handoff_main_conf_t  *main;

    main = ngx_http_get_module_main_conf(r, ngx_http_handoff_module);

    return main->realip != NGX_CONF_UNSET_UINT
           && *(ngx_array_t **) r->loc_conf[main->realip] != NULL;
}


/* NULL if the variables of handoff_pass name nothing: the offer says so, too. */
static ngx_handoff_broker_t *
ngx_http_handoff_broker(ngx_http_request_t *r, ngx_handoff_conf_t *conf,
    ngx_handoff_offer_t *offer)
{
    ngx_str_t  name;

    if (conf->value == NULL) {
        return conf->broker;
    }

    if (ngx_http_complex_value(r, conf->value, &name) != NGX_OK) {
        ngx_handoff_refuse(offer, HANDOFF_REASON_CLIENT_UNSUPPORTED);
        return NULL;
    }

    return ngx_handoff_find(ngx_http_get_module_main_conf(r, ngx_http_handoff_module), conf,
                            &name, offer, r->connection->log);
}


/* While it waits for room the connection has events: a client may go away. */
static void
ngx_http_handoff_read_handler(ngx_http_request_t *r)
{
    ngx_connection_t        *c = r->connection;
    ngx_http_handoff_ctx_t  *ctx = ngx_http_handoff_ctx(r);

    if (ctx->offer.state != NGX_HANDOFF_QUEUED) {
        ngx_http_block_reading(r);
        return;
    }

    if (!ngx_handoff_is_reset(c)) {
        ngx_handoff_unwatch_reading(c);
        return;
    }

    ngx_log_error(NGX_LOG_INFO, c->log, 0, "the client has gone away while it waited");
    ngx_handoff_client_gone(&ctx->offer);

    c->error = 1;
    ngx_http_finalize_request(r, NGX_HTTP_CLIENT_CLOSED_REQUEST);
}


/* Why this request's connection can't change hands, as far as can be told from the beginning. */
static char *
ngx_http_handoff_obstacle(ngx_http_request_t *r)
{
#if (NGX_HTTP_V2)
    if (r->stream) {
        return "it came by HTTP/2";
    }
#endif

#if (NGX_HTTP_V3)
    if (r->http_version == NGX_HTTP_VERSION_30) {
        return "it came by HTTP/3";
    }
#endif

    if (r->http_version < NGX_HTTP_VERSION_10) {
        return "it has no head";
    }

    return ngx_handoff_tls_obstacle(r->connection);
}


/* At the end of the iteration, when nothing of nginx's is in the middle of this request. */
static handoff_reason
ngx_http_handoff_preread(ngx_handoff_offer_t *offer, ngx_handoff_content_t *content)
{
    char                    *why;
    ngx_http_request_t      *r = offer->session;
    ngx_http_handoff_ctx_t  *ctx = ngx_http_handoff_ctx(r);

    ngx_http_set_log_request(r->connection->log, r);

    if (r->header_sent || r->connection->buffered) {
        why = "its response has begun";

    } else if (r->count != 1 || r->blocked || r->postponed) {
        why = "a subrequest is under way";

    } else if (r->connection->error) {
        why = "its connection is broken";

    } else {
        why = ngx_http_handoff_rebuild(r, ctx->head_end, content);

        if (why == NULL) {
            why = ngx_handoff_take_tls(r->connection, content);
        }
    }

    if (why == NULL) {
        return HANDOFF_REASON_NONE;
    }

    ngx_log_error(NGX_LOG_INFO, r->connection->log, 0, "not handed over: %s", why);

    return HANDOFF_REASON_CLIENT_UNSUPPORTED;
}


static void
ngx_http_handoff_done(ngx_handoff_offer_t *offer)
{
    ngx_http_request_t  *r = offer->session;
    ngx_connection_t    *c = r->connection;

    ngx_http_set_log_request(c->log, r);

    if (offer->outcome == HANDOFF_ADOPTED) {
        /*
         * Not ngx_http_finalize_request(): that would read on, or shut the connection down, or
         * run a post_action. It is out of the event loop already, so closing is all that is left.
         */
        r->err_status = 0;
        r->headers_out.status = offer->conf->log_status;

        ngx_http_free_request(r, 0);
        ngx_handoff_forget_tls(c);
        ngx_http_close_connection(c);
        return;
    }

    if (c->error) {
        ngx_http_finalize_request(r, NGX_HTTP_CLIENT_CLOSED_REQUEST);

    } else {
        ngx_http_finalize_request(r, ngx_http_handoff_fallback(offer));
    }

    ngx_http_run_posted_requests(c);
}


/* In the first phase: notes where the head ends, which can't be told any more later. */
ngx_int_t
ngx_http_handoff_begin(ngx_http_request_t *r)
{
    ngx_pool_cleanup_t           *cln;
    ngx_http_handoff_ctx_t       *ctx;
    ngx_http_handoff_srv_conf_t  *hscf;

    hscf = ngx_http_get_module_srv_conf(r, ngx_http_handoff_module);

    if (r != r->main || !hscf->used) {
        return NGX_DECLINED;
    }

    cln = ngx_pool_cleanup_add(r->pool, sizeof(ngx_http_handoff_ctx_t));
    if (cln == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx = cln->data;
    ngx_memzero(ctx, sizeof(ngx_http_handoff_ctx_t));
    ctx->head_end = r->header_in->pos;

    cln->handler = ngx_http_handoff_cleanup;
    ngx_http_set_ctx(r, ctx, ngx_http_handoff_module);

    return NGX_DECLINED;
}


ngx_http_handoff_ctx_t *
ngx_http_handoff_ctx(ngx_http_request_t *r)
{
    ngx_pool_cleanup_t      *cln;
    ngx_http_handoff_ctx_t  *ctx;

    r = r->main;

    ctx = ngx_http_get_module_ctx(r, ngx_http_handoff_module);
    if (ctx) {
        return ctx;
    }

    /* Internal redirects clear what a module has for a request. */
    for (cln = r->pool->cleanup; cln; cln = cln->next) {
        if (cln->handler == ngx_http_handoff_cleanup) {
            ngx_http_set_ctx(r, cln->data, ngx_http_handoff_module);
            return cln->data;
        }
    }

    return NULL;
}


/* The request ends. */
static void
ngx_http_handoff_cleanup(void *data)
{
    ngx_http_handoff_ctx_t  *ctx = data;

    ngx_handoff_take_back(&ctx->offer);
}


static ngx_variable_value_t *
ngx_http_handoff_value(void *session, ngx_uint_t index)
{
    return (index > NGX_HANDOFF_CAPTURE)
           ? ngx_http_handoff_capture(session, index - NGX_HANDOFF_CAPTURE)
           : ngx_http_get_flushed_variable(session, index);
}


/* Of the regular expression that matched last. The value is valid until the next call. */
static ngx_variable_value_t *
ngx_http_handoff_capture(ngx_http_request_t *r, ngx_uint_t n)
{
#if (NGX_PCRE)
    int                         *captures = r->captures;
    static ngx_variable_value_t  value;

    /* Pairs of where one begins and ends. */
    if (2 * n < r->ncaptures) {
        value.data = r->captures_data + captures[2 * n];
        value.len = captures[2 * n + 1] - captures[2 * n];

        return &value;
    }
#endif

    return NULL;
}

#pragma GCC visibility pop
