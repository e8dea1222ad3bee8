/*
 * handoff_pass for http: hands a client's connection to a backend, with the request as it came.
 *
 * The handler offers the connection. Adopted, the request is logged and forgotten, with no further
 * byte to the client or from it. Otherwise the request goes on as after a failed proxy_pass: with
 * 502 or 504, which error_page turns into another location.
 */
#include "ngx_http_handoff.h"

#pragma GCC visibility push(hidden)

typedef struct {
    ngx_uint_t             used;         /* unsigned used:1; some location here hands over */
} ngx_http_handoff_srv_conf_t;

/* Of a request. It outlives internal redirects, so it is found in the pool's cleanup list. */
typedef struct {
    ngx_handoff_offer_t    offer;
    u_char                *head_end;     /* in nginx's buffer, before anything behind it is read */
} ngx_http_handoff_ctx_t;


static ngx_int_t ngx_http_handoff_handler(ngx_http_request_t *r);
static ngx_handoff_broker_t *ngx_http_handoff_broker(ngx_http_request_t *r,
    ngx_handoff_conf_t *conf, ngx_handoff_offer_t *offer);
static void ngx_http_handoff_read_handler(ngx_http_request_t *r);
static char *ngx_http_handoff_obstacle(ngx_http_request_t *r);
static handoff_reason ngx_http_handoff_preread(ngx_handoff_offer_t *offer,
    ngx_handoff_content_t *content);
static void ngx_http_handoff_done(ngx_handoff_offer_t *offer);
static void ngx_http_handoff_unsupported(ngx_http_request_t *r, char *why);
static ngx_int_t ngx_http_handoff_begin(ngx_http_request_t *r);
static ngx_http_handoff_ctx_t *ngx_http_handoff_ctx(ngx_http_request_t *r);
static void ngx_http_handoff_cleanup(void *data);
static ngx_variable_value_t *ngx_http_handoff_value(void *session, ngx_uint_t index);
static ngx_int_t ngx_http_handoff_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v,
    uintptr_t data);
static ngx_int_t ngx_http_handoff_location_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_handoff_add_variables(ngx_conf_t *cf);
static ngx_int_t ngx_http_handoff_init(ngx_conf_t *cf);
static void *ngx_http_handoff_create_main_conf(ngx_conf_t *cf);
static char *ngx_http_handoff_init_main_conf(ngx_conf_t *cf, void *conf);
static ngx_int_t ngx_http_handoff_add_upstream(ngx_conf_t *cf, ngx_handoff_main_conf_t *main,
    ngx_http_upstream_srv_conf_t *uscf);
static void *ngx_http_handoff_create_srv_conf(ngx_conf_t *cf);
static void *ngx_http_handoff_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_handoff_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child);
static char *ngx_http_handoff_pass(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_http_handoff_status(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_http_handoff_text(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static ngx_int_t ngx_http_handoff_init_process(ngx_cycle_t *cycle);


#define NGX_HTTP_HANDOFF_CONF  (NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF)

static ngx_command_t  ngx_http_handoff_commands[] = {

    { ngx_string("handoff_pass"),
      NGX_HTTP_LOC_CONF|NGX_HTTP_LIF_CONF|NGX_HTTP_LMT_CONF|NGX_CONF_TAKE1,
      ngx_http_handoff_pass,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("handoff_status"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_handoff_status,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("handoff_status_zone"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_handoff_set_zone_size,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    NGX_HANDOFF_COMMANDS(NGX_HTTP_HANDOFF_CONF, NGX_HTTP_LOC_CONF_OFFSET,
                         ngx_http_handoff_text),

      ngx_null_command
};


static ngx_http_module_t  ngx_http_handoff_module_ctx = {
    ngx_http_handoff_add_variables,
    ngx_http_handoff_init,
    ngx_http_handoff_create_main_conf,
    ngx_http_handoff_init_main_conf,
    ngx_http_handoff_create_srv_conf,
    NULL,
    ngx_http_handoff_create_loc_conf,
    ngx_http_handoff_merge_loc_conf
};

#pragma GCC visibility pop

ngx_module_t  ngx_http_handoff_module = {
    NGX_MODULE_V1,
    &ngx_http_handoff_module_ctx,
    ngx_http_handoff_commands,
    NGX_HTTP_MODULE,
    NULL,
    NULL,
    ngx_http_handoff_init_process,
    NULL,
    NULL,
    ngx_handoff_exit_worker,
    NULL,
    NGX_MODULE_V1_PADDING
};

#pragma GCC visibility push(hidden)

static ngx_http_variable_t  ngx_http_handoff_variables[] = {

    { ngx_string("handoff_outcome"), NULL, ngx_http_handoff_variable, NGX_HANDOFF_OUTCOME,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("handoff_reason"), NULL, ngx_http_handoff_variable, NGX_HANDOFF_REASON,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("handoff_wait"), NULL, ngx_http_handoff_variable, NGX_HANDOFF_WAIT,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("handoff_backend"), NULL, ngx_http_handoff_variable, NGX_HANDOFF_BACKEND,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("handoff_tries"), NULL, ngx_http_handoff_variable, NGX_HANDOFF_TRIES,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("handoff_location"), NULL, ngx_http_handoff_location_variable, 0,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

      ngx_http_null_variable
};


/* ---- a request ---- */

static ngx_int_t
ngx_http_handoff_handler(ngx_http_request_t *r)
{
    char                    *why;
    ngx_handoff_conf_t      *conf;
    ngx_handoff_offer_t     *offer;
    ngx_handoff_broker_t    *broker;
    ngx_http_handoff_ctx_t  *ctx;

    why = ngx_http_handoff_obstacle(r);
    if (why) {
        ngx_http_handoff_unsupported(r, why);
        return NGX_HTTP_BAD_GATEWAY;
    }

    ctx = ngx_http_handoff_ctx(r);
    conf = ngx_http_get_module_loc_conf(r, ngx_http_handoff_module);
    offer = &ctx->offer;

    broker = ngx_http_handoff_broker(r, conf, offer);
    if (broker == NULL) {
        return NGX_HTTP_BAD_GATEWAY;
    }

    offer->conf = conf;
    offer->broker = broker;
    offer->pool = r->pool;
    offer->connection = r->connection;
    offer->session = r;
    offer->value = ngx_http_handoff_value;
    offer->preread = ngx_http_handoff_preread;
    offer->done = ngx_http_handoff_done;

    r->read_event_handler = ngx_http_handoff_read_handler;
    r->write_event_handler = ngx_http_request_empty_handler;

    r->main->count++;
    ngx_handoff_offer(offer);

    return NGX_DONE;
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

    ngx_http_test_reading(r);

    /* The request ends, but not within this call. */
    if (c->error) {
        ngx_handoff_client_gone(&ctx->offer);
    }
}


/* Why this request's connection can't change hands, as far as can be told from the beginning. */
static char *
ngx_http_handoff_obstacle(ngx_http_request_t *r)
{
    ngx_http_handoff_ctx_t  *ctx;

    if (r != r->main) {
        return "it is a subrequest";
    }

#if (NGX_HTTP_V2)
    if (r->stream) {
        return "it came by HTTP/2";
    }
#endif

#if (NGX_HTTP_SSL)
    if (r->connection->ssl) {
        return "nginx terminates its TLS";
    }
#endif

    if (r->http_version < NGX_HTTP_VERSION_10) {
        return "it has no head";
    }

    ctx = ngx_http_handoff_ctx(r);

    if (ctx == NULL || ctx->head_end == NULL || ctx->offer.state != NGX_HANDOFF_IDLE) {
        return "it can't be offered";
    }

    return NULL;
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
        ngx_http_free_request(r, 0);
        ngx_http_close_connection(c);
        return;
    }

    if (c->error) {
        ngx_http_finalize_request(r, NGX_ERROR);

    } else {
        ngx_http_finalize_request(r, offer->reason == HANDOFF_REASON_ACK_TIMEOUT
                                         ? NGX_HTTP_GATEWAY_TIME_OUT : NGX_HTTP_BAD_GATEWAY);
    }

    ngx_http_run_posted_requests(c);
}


static void
ngx_http_handoff_unsupported(ngx_http_request_t *r, char *why)
{
    ngx_http_handoff_ctx_t  *ctx = ngx_http_handoff_ctx(r);

    ngx_log_error(NGX_LOG_INFO, r->connection->log, 0, "not handed over: %s", why);

    if (ctx && ctx->offer.state == NGX_HANDOFF_IDLE) {
        ngx_handoff_refuse(&ctx->offer, HANDOFF_REASON_CLIENT_UNSUPPORTED);
    }
}


/* In the first phase: notes where the head ends, which can't be told any more later. */
static ngx_int_t
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


static ngx_http_handoff_ctx_t *
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


/* ---- variables ---- */

static ngx_variable_value_t *
ngx_http_handoff_value(void *session, ngx_uint_t index)
{
    return ngx_http_get_flushed_variable(session, index);
}


static ngx_int_t
ngx_http_handoff_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_handoff_ctx_t  *ctx = ngx_http_handoff_ctx(r);

    return ngx_handoff_outcome_text(r->pool, v, ctx ? &ctx->offer : NULL, data);
}


static ngx_int_t
ngx_http_handoff_location_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v,
    uintptr_t data)
{
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    v->len = clcf->name.len;
    v->data = clcf->name.data;
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;

    return NGX_OK;
}


static ngx_int_t
ngx_http_handoff_add_variables(ngx_conf_t *cf)
{
    ngx_http_variable_t  *var, *v;

    for (v = ngx_http_handoff_variables; v->name.len; v++) {
        var = ngx_http_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}


/* ---- configuration ---- */

static ngx_int_t
ngx_http_handoff_init(ngx_conf_t *cf)
{
    ngx_http_handler_pt        *h;
    ngx_http_core_main_conf_t  *cmcf;

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);

    h = ngx_array_push(&cmcf->phases[NGX_HTTP_POST_READ_PHASE].handlers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    *h = ngx_http_handoff_begin;

    return NGX_OK;
}


static void *
ngx_http_handoff_create_main_conf(ngx_conf_t *cf)
{
    return ngx_handoff_create_main_conf(cf, "http");
}


/* After all of http was read, and before locations are merged. */
static char *
ngx_http_handoff_init_main_conf(ngx_conf_t *cf, void *conf)
{
    ngx_uint_t                       i;
    ngx_handoff_main_conf_t         *main = conf;
    ngx_http_upstream_srv_conf_t   **uscfp;
    ngx_http_upstream_main_conf_t   *umcf;

    umcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_upstream_module);
    uscfp = umcf->upstreams.elts;

    for (i = 0; i < umcf->upstreams.nelts; i++) {
        if (ngx_http_handoff_add_upstream(cf, main, uscfp[i]) != NGX_OK) {
            return NGX_CONF_ERROR;
        }
    }

    return ngx_handoff_add_zone(cf, main) == NGX_OK ? NGX_CONF_OK : NGX_CONF_ERROR;
}


static ngx_int_t
ngx_http_handoff_add_upstream(ngx_conf_t *cf, ngx_handoff_main_conf_t *main,
    ngx_http_upstream_srv_conf_t *uscf)
{
    ngx_uint_t                   i;
    ngx_handoff_server_t         server;
    ngx_handoff_target_t        *target;
    ngx_http_upstream_server_t  *us;

    /* Also what proxy_pass names is in nginx's list, though there is no block for it. */
    if (uscf->servers == NULL) {
        return NGX_OK;
    }

    target = ngx_handoff_add_target(cf, main, &uscf->host);
    if (target == NULL) {
        return NGX_ERROR;
    }

    target->method = (uscf->peer.init_upstream != NULL);
    us = uscf->servers->elts;

    for (i = 0; i < uscf->servers->nelts; i++) {
        server.path = us[i].name;
        server.weight = us[i].weight;
        server.max_fails = us[i].max_fails;
        server.fail_timeout = (ngx_msec_t) us[i].fail_timeout * 1000;
        server.backup = us[i].backup;
        server.down = us[i].down;

        if (ngx_handoff_add_server(cf, target, &server, us[i].max_conns) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static void *
ngx_http_handoff_create_srv_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_http_handoff_srv_conf_t));
}


static void *
ngx_http_handoff_create_loc_conf(ngx_conf_t *cf)
{
    ngx_handoff_conf_t  *conf;

    conf = ngx_pcalloc(cf->pool, sizeof(ngx_handoff_conf_t));
    if (conf) {
        ngx_handoff_init_conf(conf);
    }

    return conf;
}


static char *
ngx_http_handoff_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_handoff_conf_t            *prev = parent, *conf = child;
    ngx_http_core_loc_conf_t      *clcf;
    ngx_handoff_main_conf_t       *main;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    main = ngx_http_conf_get_module_main_conf(cf, ngx_http_handoff_module);

    /* As for proxy_pass: "if" and "limit_except" blocks do what is done around them. */
    if (clcf->noname && conf->pass.len == 0) {
        conf->pass = prev->pass;
        conf->value = prev->value;
        conf->file = prev->file;
        conf->line = prev->line;
    }

    if (clcf->lmt_excpt && clcf->handler == NULL && conf->pass.len) {
        clcf->handler = ngx_http_handoff_handler;
    }

    return ngx_handoff_merge_conf(cf, main, prev, conf);
}


static char *
ngx_http_handoff_pass(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    char                              *error;
    ngx_str_t                         *value = cf->args->elts;
    ngx_handoff_conf_t                *hlcf = conf;
    ngx_handoff_main_conf_t           *main;
    ngx_http_core_loc_conf_t          *clcf;
    ngx_http_handoff_srv_conf_t       *hscf;
    ngx_http_compile_complex_value_t   ccv;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_handoff_handler;

    hscf = ngx_http_conf_get_module_srv_conf(cf, ngx_http_handoff_module);
    hscf->used = 1;

    main = ngx_http_conf_get_module_main_conf(cf, ngx_http_handoff_module);
    main->used = 1;

    error = ngx_handoff_set_pass(cf, hlcf);
    if (error != NGX_CONF_OK || ngx_http_script_variables_count(&value[1]) == 0) {
        return error;
    }

    hlcf->value = ngx_palloc(cf->pool, sizeof(ngx_http_complex_value_t));
    if (hlcf->value == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));
    ccv.cf = cf;
    ccv.value = &value[1];
    ccv.complex_value = hlcf->value;

    return ngx_http_compile_complex_value(&ccv) == NGX_OK ? NGX_CONF_OK : NGX_CONF_ERROR;
}


static char *
ngx_http_handoff_status(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_handoff_main_conf_t   *main;
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_handoff_status_handler;

    main = ngx_http_conf_get_module_main_conf(cf, ngx_http_handoff_module);
    main->used = 1;

    return NGX_CONF_OK;
}


static char *
ngx_http_handoff_text(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_handoff_text_t  **text = (ngx_handoff_text_t **) ((char *) conf + cmd->offset);

    return ngx_handoff_set_text(cf, ngx_http_get_variable_index, text);
}


/* ---- a worker ---- */

static ngx_int_t
ngx_http_handoff_init_process(ngx_cycle_t *cycle)
{
    return ngx_handoff_init_worker(cycle,
               ngx_http_cycle_get_module_main_conf(cycle, ngx_http_handoff_module));
}

#pragma GCC visibility pop
