/*
 * handoff_pass for stream: hands a client's connection to a backend, with what preread phases such
 * as that of ssl_preread have read. What the backend does not adopt goes to the server's own
 * proxy_pass.
 */
#include "ngx_handoff.h"

#include <ngx_stream.h>

#pragma GCC visibility push(hidden)

#if (NGX_STREAM_SSL && NGX_HANDOFF_OLD_STREAM_SSL)
typedef ngx_stream_ssl_conf_t  ngx_stream_ssl_srv_conf_t;
#endif

typedef struct {
    ngx_handoff_conf_t              handoff;      /* first: the directives' offsets are in it */
    ngx_stream_content_handler_pt   fallback;     /* NULL without proxy_pass or its like */
} ngx_stream_handoff_srv_conf_t;


static void ngx_stream_handoff_handler(ngx_stream_session_t *s);
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
static ngx_int_t ngx_stream_handoff_variable(ngx_stream_session_t *s,
    ngx_stream_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_stream_handoff_add_variables(ngx_conf_t *cf);
static ngx_int_t ngx_stream_handoff_init(ngx_conf_t *cf);
static void *ngx_stream_handoff_create_main_conf(ngx_conf_t *cf);
static char *ngx_stream_handoff_init_main_conf(ngx_conf_t *cf, void *conf);
static ngx_int_t ngx_stream_handoff_add_upstream(ngx_conf_t *cf, ngx_handoff_main_conf_t *main,
    ngx_stream_upstream_srv_conf_t *uscf);
static void *ngx_stream_handoff_create_srv_conf(ngx_conf_t *cf);
static char *ngx_stream_handoff_merge_srv_conf(ngx_conf_t *cf, void *parent, void *child);
static char *ngx_stream_handoff_pass(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_stream_handoff_text(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_stream_handoff_metadata(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static ngx_uint_t ngx_stream_handoff_known(ngx_conf_t *cf, ngx_str_t *name);
static ngx_int_t ngx_stream_handoff_init_process(ngx_cycle_t *cycle);
static void ngx_stream_handoff_exit_process(ngx_cycle_t *cycle);


#define NGX_STREAM_HANDOFF_CONF  (NGX_STREAM_MAIN_CONF|NGX_STREAM_SRV_CONF)

static ngx_command_t  ngx_stream_handoff_commands[] = {

    { ngx_string("handoff_pass"),
      NGX_STREAM_SRV_CONF|NGX_CONF_TAKE1,
      ngx_stream_handoff_pass,
      NGX_STREAM_SRV_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("handoff_status_zone"),
      NGX_STREAM_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_handoff_set_zone_size,
      NGX_STREAM_MAIN_CONF_OFFSET,
      0,
      NULL },

    NGX_HANDOFF_COMMANDS(NGX_STREAM_HANDOFF_CONF, NGX_STREAM_SRV_CONF_OFFSET,
                         ngx_stream_handoff_text, ngx_stream_handoff_metadata),

      ngx_null_command
};


static ngx_stream_module_t  ngx_stream_handoff_module_ctx = {
    ngx_stream_handoff_add_variables,
    ngx_stream_handoff_init,
    ngx_stream_handoff_create_main_conf,
    ngx_stream_handoff_init_main_conf,
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
    ngx_stream_handoff_exit_process,
    NULL,
    NGX_MODULE_V1_PADDING
};

#pragma GCC visibility push(hidden)

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

    offer->broker = ngx_stream_handoff_broker(s, &hscf->handoff, offer);
    if (offer->broker == NULL) {
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

    if ((n == -1 && ngx_socket_errno != NGX_EAGAIN && ngx_socket_errno != NGX_EINTR)
        || (n == 0 && (c->buffer == NULL || c->buffer->pos == c->buffer->last)
            && !ngx_handoff_tls_has_data(c)))
    {
        ngx_log_error(NGX_LOG_INFO, c->log, 0, "the client has gone away while it waited");
        ngx_handoff_client_gone(offer);
        ngx_stream_finalize_session(s, NGX_STREAM_OK);
        return;
    }

    /* Level-triggered, it would be told again and again. */
    if ((ngx_event_flags & NGX_USE_LEVEL_EVENT) && ev->active && n >= 0) {
        (void) ngx_del_event(ev, NGX_READ_EVENT, 0);
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


static ngx_int_t
ngx_stream_handoff_variable(ngx_stream_session_t *s, ngx_stream_variable_value_t *v,
    uintptr_t data)
{
    return ngx_handoff_get_variable(s->connection, s->connection->pool, v,
                                    ngx_stream_get_module_ctx(s, ngx_stream_handoff_module), data);
}


static ngx_int_t
ngx_stream_handoff_add_variables(ngx_conf_t *cf)
{
    ngx_str_t              *name;
    ngx_stream_variable_t  *var;

    for (name = ngx_handoff_variables; name->len; name++) {
        var = ngx_stream_add_variable(cf, name, NGX_STREAM_VAR_NOCACHEABLE);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = ngx_stream_handoff_variable;
        var->data = name - ngx_handoff_variables;
    }

    return NGX_OK;
}


/* ---- configuration ---- */

/* Every server may have a client whose connection is handed over. */
static ngx_int_t
ngx_stream_handoff_init(ngx_conf_t *cf)
{
#if (NGX_HANDOFF_TLS && NGX_STREAM_SSL)
    ngx_uint_t                     i;
    ngx_stream_ssl_srv_conf_t     *sscf;
    ngx_handoff_main_conf_t       *main;
    ngx_stream_core_srv_conf_t   **cscfp;
    ngx_stream_core_main_conf_t   *cmcf;

    main = ngx_stream_conf_get_module_main_conf(cf, ngx_stream_handoff_module);
    cmcf = ngx_stream_conf_get_module_main_conf(cf, ngx_stream_core_module);
    cscfp = cmcf->servers.elts;

    for (i = 0; main->used && i < cmcf->servers.nelts; i++) {
        sscf = cscfp[i]->ctx->srv_conf[ngx_stream_ssl_module.ctx_index];

        if (ngx_handoff_prepare_tls(sscf->ssl.ctx) != NGX_OK) {
            return NGX_ERROR;
        }
    }
#endif

    return NGX_OK;
}


static void *
ngx_stream_handoff_create_main_conf(ngx_conf_t *cf)
{
    return ngx_handoff_create_main_conf(cf, "stream");
}


/* After all of stream was read, and before servers are merged. */
static char *
ngx_stream_handoff_init_main_conf(ngx_conf_t *cf, void *conf)
{
    ngx_uint_t                         i;
    ngx_handoff_main_conf_t           *main = conf;
    ngx_stream_upstream_srv_conf_t   **uscfp;
    ngx_stream_upstream_main_conf_t   *umcf;

    umcf = ngx_stream_conf_get_module_main_conf(cf, ngx_stream_upstream_module);
    uscfp = umcf->upstreams.elts;

    for (i = 0; i < umcf->upstreams.nelts; i++) {
        if (ngx_stream_handoff_add_upstream(cf, main, uscfp[i]) != NGX_OK) {
            return NGX_CONF_ERROR;
        }
    }

    return ngx_handoff_add_zone(cf, main) == NGX_OK ? NGX_CONF_OK : NGX_CONF_ERROR;
}


static ngx_int_t
ngx_stream_handoff_add_upstream(ngx_conf_t *cf, ngx_handoff_main_conf_t *main,
    ngx_stream_upstream_srv_conf_t *uscf)
{
    ngx_uint_t                     i;
    ngx_handoff_server_t           server;
    ngx_handoff_target_t          *target;
    ngx_stream_upstream_server_t  *us;

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
    ngx_handoff_main_conf_t         *main;

    cscf = ngx_stream_conf_get_module_srv_conf(cf, ngx_stream_core_module);
    main = ngx_stream_conf_get_module_main_conf(cf, ngx_stream_handoff_module);

    /* Whichever of handoff_pass and proxy_pass comes first in the server. */
    if (conf->handoff.pass.len && cscf->handler != ngx_stream_handoff_handler) {
        conf->fallback = cscf->handler;
        cscf->handler = ngx_stream_handoff_handler;
    }

    return ngx_handoff_merge_conf(cf, main, &prev->handoff, &conf->handoff);
}


static char *
ngx_stream_handoff_pass(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    char                                *error;
    ngx_str_t                           *value = cf->args->elts;
    ngx_handoff_main_conf_t             *main;
    ngx_stream_core_srv_conf_t          *cscf;
    ngx_stream_handoff_srv_conf_t       *hscf = conf;
    ngx_stream_compile_complex_value_t   ccv;

    cscf = ngx_stream_conf_get_module_srv_conf(cf, ngx_stream_core_module);

    /* A server must have a handler, also where handoff_pass is all there is. */
    if (cscf->handler == NULL) {
        cscf->handler = ngx_stream_handoff_handler;
    }

    main = ngx_stream_conf_get_module_main_conf(cf, ngx_stream_handoff_module);
    main->used = 1;

    error = ngx_handoff_set_pass(cf, &hscf->handoff);
    if (error != NGX_CONF_OK || ngx_stream_script_variables_count(&value[1]) == 0) {
        return error;
    }

    hscf->handoff.value = ngx_palloc(cf->pool, sizeof(ngx_stream_complex_value_t));
    if (hscf->handoff.value == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(&ccv, sizeof(ngx_stream_compile_complex_value_t));
    ccv.cf = cf;
    ccv.value = &value[1];
    ccv.complex_value = hscf->handoff.value;

    return ngx_stream_compile_complex_value(&ccv) == NGX_OK ? NGX_CONF_OK : NGX_CONF_ERROR;
}


static char *
ngx_stream_handoff_text(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_handoff_text_t  **text = (ngx_handoff_text_t **) ((char *) conf + cmd->offset);

    return ngx_handoff_set_text(cf, ngx_stream_get_variable_index, NULL, text);
}


static char *
ngx_stream_handoff_metadata(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_handoff_text_t  **text = (ngx_handoff_text_t **) ((char *) conf + cmd->offset);

    return ngx_handoff_set_text(cf, ngx_stream_get_variable_index, ngx_stream_handoff_known, text);
}


/* Every module has added its variables before the configuration is read. */
static ngx_uint_t
ngx_stream_handoff_known(ngx_conf_t *cf, ngx_str_t *name)
{
    ngx_uint_t                    i;
    ngx_hash_key_t               *key;
    ngx_stream_core_main_conf_t  *cmcf;

    cmcf = ngx_stream_conf_get_module_main_conf(cf, ngx_stream_core_module);
    key = cmcf->variables_keys->keys.elts;

    for (i = 0; i < cmcf->variables_keys->keys.nelts; i++) {
        if (key[i].key.len == name->len
            && ngx_strncmp(key[i].key.data, name->data, name->len) == 0)
        {
            return 1;
        }
    }

    return 0;
}


/* ---- a worker ---- */

static ngx_int_t
ngx_stream_handoff_init_process(ngx_cycle_t *cycle)
{
    return ngx_handoff_init_worker(cycle,
               ngx_stream_cycle_get_module_main_conf(cycle, ngx_stream_handoff_module));
}


static void
ngx_stream_handoff_exit_process(ngx_cycle_t *cycle)
{
    ngx_handoff_exit_worker(ngx_stream_cycle_get_module_main_conf(cycle, ngx_stream_handoff_module));
}

#pragma GCC visibility pop
