/*
 * handoff_pass for stream: the directives, the variables and the module. What is done with a client is
 * in ngx_stream_handoff_session.c.
 */
#include "ngx_stream_handoff.h"

#pragma GCC visibility push(hidden)

#if (NGX_STREAM_SSL && NGX_HANDOFF_OLD_STREAM_SSL)
typedef ngx_stream_ssl_conf_t  ngx_stream_ssl_srv_conf_t;
#endif

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

/* ---- variables ---- */

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
    ngx_uint_t                      i;
    ngx_handoff_main_conf_t        *main;
    ngx_stream_ssl_srv_conf_t      *sscf;
    ngx_stream_core_srv_conf_t    **cscfp;
    ngx_stream_core_main_conf_t    *cmcf;
    ngx_stream_handoff_srv_conf_t  *hscf;

    main = ngx_stream_conf_get_module_main_conf(cf, ngx_stream_handoff_module);
    cmcf = ngx_stream_conf_get_module_main_conf(cf, ngx_stream_core_module);
    cscfp = cmcf->servers.elts;

    for (i = 0; main->used && i < cmcf->servers.nelts; i++) {
        sscf = cscfp[i]->ctx->srv_conf[ngx_stream_ssl_module.ctx_index];
        hscf = cscfp[i]->ctx->srv_conf[ngx_stream_handoff_module.ctx_index];

        if (hscf->handoff.pass.len) {
            ngx_handoff_warn_without_tls(cf, main, sscf->ssl.ctx);
        }

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

    /*
     * Also what proxy_pass names is in nginx's list, though there is no block for it. A block that is
     * named as a socket is nobody's: such a name is the socket's in handoff_pass, as in proxy_pass.
     */
    if (uscf->servers == NULL || ngx_handoff_is_path(&uscf->host)) {
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
