/*
 * handoff_pass for stream: hands a client's connection to a backend, with what preread phases such
 * as that of ssl_preread have read. What the backend does not adopt goes to the server's own
 * proxy_pass.
 */
#include "ngx_handoff.h"

#include <ngx_stream.h>

#pragma GCC visibility push(hidden)

typedef struct {
    ngx_handoff_conf_t              handoff;      /* first: the directives' offsets are in it */
    ngx_stream_content_handler_pt   fallback;     /* NULL without proxy_pass or its like */
} ngx_stream_handoff_srv_conf_t;


static void ngx_stream_handoff_handler(ngx_stream_session_t *s);
static char *ngx_stream_handoff_obstacle(ngx_stream_session_t *s);
static handoff_reason ngx_stream_handoff_preread(ngx_handoff_offer_t *offer,
    ngx_handoff_content_t *content);
static void ngx_stream_handoff_done(ngx_handoff_offer_t *offer);
static void ngx_stream_handoff_fall_back(ngx_stream_session_t *s);
static void ngx_stream_handoff_event_handler(ngx_event_t *ev);
static void ngx_stream_handoff_cleanup(void *data);
static ngx_variable_value_t *ngx_stream_handoff_value(void *session, ngx_uint_t index);
static ngx_int_t ngx_stream_handoff_variable(ngx_stream_session_t *s,
    ngx_stream_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_stream_handoff_add_variables(ngx_conf_t *cf);
static void *ngx_stream_handoff_create_srv_conf(ngx_conf_t *cf);
static char *ngx_stream_handoff_merge_srv_conf(ngx_conf_t *cf, void *parent, void *child);
static char *ngx_stream_handoff_pass(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_stream_handoff_text(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static ngx_int_t ngx_stream_handoff_init_process(ngx_cycle_t *cycle);


#define NGX_STREAM_HANDOFF_CONF  (NGX_STREAM_MAIN_CONF|NGX_STREAM_SRV_CONF)

static ngx_command_t  ngx_stream_handoff_commands[] = {

    { ngx_string("handoff_pass"),
      NGX_STREAM_SRV_CONF|NGX_CONF_TAKE1,
      ngx_stream_handoff_pass,
      NGX_STREAM_SRV_CONF_OFFSET,
      offsetof(ngx_handoff_conf_t, path),
      NULL },

    NGX_HANDOFF_COMMANDS(NGX_STREAM_HANDOFF_CONF, NGX_STREAM_SRV_CONF_OFFSET,
                         ngx_stream_handoff_text),

      ngx_null_command
};


static ngx_stream_module_t  ngx_stream_handoff_module_ctx = {
    ngx_stream_handoff_add_variables,
    NULL,
    ngx_handoff_create_backends,
    NULL,
    ngx_stream_handoff_create_srv_conf,
    ngx_stream_handoff_merge_srv_conf
};

#pragma GCC visibility pop

ngx_module_t  ngx_stream_handoff_module = {
    NGX_MODULE_V1,
    &ngx_stream_handoff_module_ctx,
    ngx_stream_handoff_commands,
    NGX_STREAM_MODULE,
    NULL,
    NULL,
    ngx_stream_handoff_init_process,
    NULL,
    NULL,
    ngx_handoff_exit_worker,
    NULL,
    NGX_MODULE_V1_PADDING
};

#pragma GCC visibility push(hidden)

static ngx_stream_variable_t  ngx_stream_handoff_variables[] = {

    { ngx_string("handoff_outcome"), NULL, ngx_stream_handoff_variable, NGX_HANDOFF_OUTCOME,
      NGX_STREAM_VAR_NOCACHEABLE, 0 },

    { ngx_string("handoff_reason"), NULL, ngx_stream_handoff_variable, NGX_HANDOFF_REASON,
      NGX_STREAM_VAR_NOCACHEABLE, 0 },

    { ngx_string("handoff_wait"), NULL, ngx_stream_handoff_variable, NGX_HANDOFF_WAIT,
      NGX_STREAM_VAR_NOCACHEABLE, 0 },

      ngx_stream_null_variable
};


/* ---- a session ---- */

static void
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

    why = ngx_stream_handoff_obstacle(s);
    if (why) {
        ngx_log_error(NGX_LOG_INFO, c->log, 0, "not handed over: %s", why);
        ngx_handoff_refuse(offer, HANDOFF_REASON_CLIENT_UNSUPPORTED);
        ngx_stream_handoff_fall_back(s);
        return;
    }

    offer->conf = &hscf->handoff;
    offer->connection = c;
    offer->session = s;
    offer->value = ngx_stream_handoff_value;
    offer->preread = ngx_stream_handoff_preread;
    offer->done = ngx_stream_handoff_done;

    c->log->action = "handing over";
    c->read->handler = ngx_stream_handoff_event_handler;
    c->write->handler = ngx_stream_handoff_event_handler;

    ngx_handoff_offer(offer);
}


/* Why this connection can't change hands. */
static char *
ngx_stream_handoff_obstacle(ngx_stream_session_t *s)
{
    ngx_connection_t  *c = s->connection;

    if (c->type != SOCK_STREAM) {
        return "it is not a connection";
    }

#if (NGX_STREAM_SSL)
    if (c->ssl) {
        return "nginx terminates its TLS";
    }
#endif

    if (c->buffered) {
        return "a response has begun";
    }

    return NULL;
}


static handoff_reason
ngx_stream_handoff_preread(ngx_handoff_offer_t *offer, ngx_handoff_content_t *content)
{
    char       *why;
    ngx_buf_t  *b = offer->connection->buffer;

    why = b ? ngx_handoff_add_preread(content, b->pos, b->last - b->pos) : NULL;
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


/* While it is on offer a connection has no events, but for the end of the worker's time. */
static void
ngx_stream_handoff_event_handler(ngx_event_t *ev)
{
    ngx_connection_t      *c = ev->data;
    ngx_stream_session_t  *s = c->data;

    if (c->close) {
        ngx_handoff_take_back(ngx_stream_get_module_ctx(s, ngx_stream_handoff_module));
        ngx_stream_finalize_session(s, NGX_STREAM_OK);
    }
}


static void
ngx_stream_handoff_cleanup(void *data)
{
    ngx_handoff_take_back(data);
}


/* ---- variables ---- */

static ngx_variable_value_t *
ngx_stream_handoff_value(void *session, ngx_uint_t index)
{
    return ngx_stream_get_flushed_variable(session, index);
}


static ngx_int_t
ngx_stream_handoff_variable(ngx_stream_session_t *s, ngx_stream_variable_value_t *v,
    uintptr_t data)
{
    return ngx_handoff_outcome_text(s->connection->pool, v,
                                    ngx_stream_get_module_ctx(s, ngx_stream_handoff_module),
                                    data);
}


static ngx_int_t
ngx_stream_handoff_add_variables(ngx_conf_t *cf)
{
    ngx_stream_variable_t  *var, *v;

    for (v = ngx_stream_handoff_variables; v->name.len; v++) {
        var = ngx_stream_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}


/* ---- configuration ---- */

static void *
ngx_stream_handoff_create_srv_conf(ngx_conf_t *cf)
{
    ngx_stream_handoff_srv_conf_t  *conf;

    conf = ngx_pcalloc(cf->pool, sizeof(ngx_stream_handoff_srv_conf_t));
    if (conf) {
        ngx_handoff_init_conf(&conf->handoff);
    }

    return conf;
}


static char *
ngx_stream_handoff_merge_srv_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_stream_core_srv_conf_t      *cscf;
    ngx_stream_handoff_srv_conf_t   *prev = parent, *conf = child;
    ngx_array_t                    *backends;

    cscf = ngx_stream_conf_get_module_srv_conf(cf, ngx_stream_core_module);
    backends = ngx_stream_conf_get_module_main_conf(cf, ngx_stream_handoff_module);

    /* Whichever of handoff_pass and proxy_pass comes first in the server. */
    if (conf->handoff.path.len && cscf->handler != ngx_stream_handoff_handler) {
        conf->fallback = cscf->handler;
        cscf->handler = ngx_stream_handoff_handler;
    }

    return ngx_handoff_merge_conf(cf, backends, &prev->handoff, &conf->handoff);
}


static char *
ngx_stream_handoff_pass(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_stream_core_srv_conf_t     *cscf;
    ngx_stream_handoff_srv_conf_t  *hscf = conf;

    cscf = ngx_stream_conf_get_module_srv_conf(cf, ngx_stream_core_module);

    /* A server must have a handler, also where handoff_pass is all there is. */
    if (cscf->handler == NULL) {
        cscf->handler = ngx_stream_handoff_handler;
    }

    return ngx_handoff_set_path(cf, &hscf->handoff.path);
}


static char *
ngx_stream_handoff_text(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_handoff_text_t  **text = (ngx_handoff_text_t **) ((char *) conf + cmd->offset);

    return ngx_handoff_set_text(cf, ngx_stream_get_variable_index, text);
}


/* ---- a worker ---- */

static ngx_int_t
ngx_stream_handoff_init_process(ngx_cycle_t *cycle)
{
    return ngx_handoff_init_worker(cycle,
               ngx_stream_cycle_get_module_main_conf(cycle, ngx_stream_handoff_module));
}

#pragma GCC visibility pop
