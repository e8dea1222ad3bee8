/*
 * A client's connection, handed to a backend with what preread phases such as that of ssl_preread have
 * read. What the backend does not adopt goes to the server's own proxy_pass.
 */
#include "ngx_stream_handoff.h"

#pragma GCC visibility push(hidden)

static ngx_uint_t ngx_stream_handoff_real_ip(ngx_stream_session_t *s);
static ngx_handoff_broker_t *ngx_stream_handoff_broker(ngx_stream_session_t *s,
    ngx_handoff_conf_t *conf, ngx_handoff_offer_t *offer);
static char *ngx_stream_handoff_obstacle(ngx_stream_session_t *s);
static handoff_reason ngx_stream_handoff_preread(ngx_handoff_offer_t *offer,
    ngx_handoff_content_t *content);
static void ngx_stream_handoff_done(ngx_handoff_offer_t *offer);
static void ngx_stream_handoff_fall_back(ngx_stream_session_t *s);
static void ngx_stream_handoff_event_handler(ngx_event_t *ev);
static void ngx_stream_handoff_cleanup(void *data);
static ngx_variable_value_t *ngx_stream_handoff_value(void *session, ngx_uint_t index);
static ngx_variable_value_t *ngx_stream_handoff_capture(ngx_stream_session_t *s, ngx_uint_t n);


void
ngx_stream_handoff_handler(ngx_stream_session_t *s)
{
    char                           *why;
    ngx_connection_t               *c = s->connection;
    ngx_pool_cleanup_t             *cln;
    ngx_handoff_offer_t            *offer;
    ngx_stream_handoff_srv_conf_t  *hscf;

    hscf = ngx_stream_get_module_srv_conf(s, ngx_stream_handoff_module);

    cln = ngx_pool_cleanup_add(c->pool, sizeof(ngx_handoff_offer_t));
    if (cln == NULL) {
        ngx_stream_finalize_session(s, NGX_STREAM_INTERNAL_SERVER_ERROR);
        return;
    }

    offer = cln->data;
    ngx_memzero(offer, sizeof(ngx_handoff_offer_t));
    cln->handler = ngx_stream_handoff_cleanup;
    ngx_stream_set_ctx(s, offer, ngx_stream_handoff_module);

    offer->broker = ngx_stream_handoff_broker(s, &hscf->handoff, offer);
    if (offer->broker == NULL) {
        ngx_stream_handoff_fall_back(s);
        return;
    }

    why = ngx_stream_handoff_obstacle(s);
    if (why) {
        ngx_log_error(NGX_LOG_INFO, c->log, 0, "not handed over: %s", why);
        ngx_handoff_refuse(offer, HANDOFF_REASON_CLIENT_UNSUPPORTED);
        ngx_handoff_count(offer);
        ngx_stream_handoff_fall_back(s);
        return;
    }

    offer->conf = &hscf->handoff;
    offer->pool = c->pool;
    offer->connection = c;
    offer->session = s;
    offer->value = ngx_stream_handoff_value;
    offer->real_ip = ngx_stream_handoff_real_ip(s);
    offer->preread = ngx_stream_handoff_preread;
    offer->done = ngx_stream_handoff_done;

    c->log->action = "handing over";
    c->read->handler = ngx_stream_handoff_event_handler;
    c->write->handler = ngx_stream_handoff_event_handler;

    ngx_handoff_offer(offer);
}


/* Whether set_real_ip_from is in force here: nginx's list of addresses is the first of its settings. */
static ngx_uint_t
ngx_stream_handoff_real_ip(ngx_stream_session_t *s)
{
    ngx_handoff_main_conf_t  *main;

    main = ngx_stream_get_module_main_conf(s, ngx_stream_handoff_module);

    return main->realip != NGX_CONF_UNSET_UINT
           && *(ngx_array_t **) s->srv_conf[main->realip] != NULL;
}


/* NULL if the variables of handoff_pass name nothing: the offer says so, too. */
static ngx_handoff_broker_t *
ngx_stream_handoff_broker(ngx_stream_session_t *s, ngx_handoff_conf_t *conf,
    ngx_handoff_offer_t *offer)
{
    ngx_str_t  name;

    if (conf->value == NULL) {
        return conf->broker;
    }

    if (ngx_stream_complex_value(s, conf->value, &name) != NGX_OK) {
        ngx_handoff_refuse(offer, HANDOFF_REASON_CLIENT_UNSUPPORTED);
        return NULL;
    }

    return ngx_handoff_find(ngx_stream_get_module_main_conf(s, ngx_stream_handoff_module), conf,
                            &name, offer, s->connection->log);
}


/* Why this connection can't change hands. */
static char *
ngx_stream_handoff_obstacle(ngx_stream_session_t *s)
{
    ngx_connection_t  *c = s->connection;

    if (c->type != SOCK_STREAM) {
        return "it is not a connection";
    }

    if (c->buffered) {
        return "a response has begun";
    }

    return ngx_handoff_tls_obstacle(c);
}


static handoff_reason
ngx_stream_handoff_preread(ngx_handoff_offer_t *offer, ngx_handoff_content_t *content)
{
    char       *why;
    ngx_buf_t  *b = offer->connection->buffer;

    why = b ? ngx_handoff_add_preread(content, b->pos, b->last - b->pos) : NULL;

    if (why == NULL) {
        why = ngx_handoff_take_tls(offer->connection, content);
    }

    if (why == NULL) {
        return HANDOFF_REASON_NONE;
    }

    ngx_log_error(NGX_LOG_INFO, offer->connection->log, 0, "not handed over: %s", why);

    return HANDOFF_REASON_CLIENT_UNSUPPORTED;
}


static void
ngx_stream_handoff_done(ngx_handoff_offer_t *offer)
{
    ngx_stream_session_t  *s = offer->session;

    if (offer->outcome == HANDOFF_ADOPTED) {
        /* It is out of the event loop; this closes it, and neither reads on nor shuts it down. */
        ngx_handoff_forget_tls(offer->connection);
        ngx_stream_finalize_session(s, NGX_STREAM_OK);
        return;
    }

    if (offer->connection->error) {
        ngx_stream_finalize_session(s, NGX_STREAM_INTERNAL_SERVER_ERROR);
        return;
    }

    ngx_stream_handoff_fall_back(s);
}


static void
ngx_stream_handoff_fall_back(ngx_stream_session_t *s)
{
    ngx_stream_handoff_srv_conf_t  *hscf;

    hscf = ngx_stream_get_module_srv_conf(s, ngx_stream_handoff_module);

    if (hscf->fallback) {
        hscf->fallback(s);

    } else {
        ngx_stream_finalize_session(s, NGX_STREAM_BAD_GATEWAY);
    }
}


/*
 * While it is on offer a connection has no events, but for the end of the worker's time. While it
 * waits for room it has: a client that has ended the connection has gone, but one that has only sent
 * its last byte may wait for an answer.
 */
static void
ngx_stream_handoff_event_handler(ngx_event_t *ev)
{
    u_char                 byte;
    ssize_t                n;
    ngx_connection_t      *c = ev->data;
    ngx_handoff_offer_t   *offer;
    ngx_stream_session_t  *s = c->data;

    offer = ngx_stream_get_module_ctx(s, ngx_stream_handoff_module);

    if (c->close) {
        ngx_handoff_take_back(offer);
        ngx_stream_finalize_session(s, NGX_STREAM_OK);
        return;
    }

    if (offer->state != NGX_HANDOFF_QUEUED || ev->write) {
        return;
    }

    n = recv(c->fd, &byte, 1, MSG_PEEK|MSG_DONTWAIT);

    if (ngx_handoff_is_reset(c)
        || (n == 0 && (c->buffer == NULL || c->buffer->pos == c->buffer->last)
            && !ngx_handoff_tls_has_data(c)))
    {
        ngx_log_error(NGX_LOG_INFO, c->log, 0, "the client has gone away while it waited");
        ngx_handoff_client_gone(offer);
        ngx_stream_finalize_session(s, NGX_STREAM_OK);
        return;
    }

    if (n >= 0) {
        ngx_handoff_unwatch_reading(c);
    }
}


static void
ngx_stream_handoff_cleanup(void *data)
{
    ngx_handoff_take_back(data);
}


static ngx_variable_value_t *
ngx_stream_handoff_value(void *session, ngx_uint_t index)
{
    return (index > NGX_HANDOFF_CAPTURE)
           ? ngx_stream_handoff_capture(session, index - NGX_HANDOFF_CAPTURE)
           : ngx_stream_get_flushed_variable(session, index);
}


/* Of the regular expression that matched last. The value is valid until the next call. */
static ngx_variable_value_t *
ngx_stream_handoff_capture(ngx_stream_session_t *s, ngx_uint_t n)
{
#if (NGX_PCRE)
    int                         *captures = s->captures;
    static ngx_variable_value_t  value;

    /* Pairs of where one begins and ends. */
    if (2 * n < s->ncaptures) {
        value.data = s->captures_data + captures[2 * n];
        value.len = captures[2 * n + 1] - captures[2 * n];

        return &value;
    }
#endif

    return NULL;
}

#pragma GCC visibility pop
