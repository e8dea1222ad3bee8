/*
 * handoff_pass for http: hands a client's connection to a backend, with the request as it came. Its
 * directives and variables.
 */
#include "ngx_http_handoff.h"

#pragma GCC visibility push(hidden)

static ngx_int_t ngx_http_handoff_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v,
    uintptr_t data);
static ngx_int_t ngx_http_handoff_location_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_handoff_add_variables(ngx_conf_t *cf);
static ngx_int_t ngx_http_handoff_init(ngx_conf_t *cf);
static ngx_int_t ngx_http_handoff_init_tls(ngx_conf_t *cf);
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
static char *ngx_http_handoff_metadata(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static ngx_uint_t ngx_http_handoff_known(ngx_conf_t *cf, ngx_str_t *name);
static ngx_int_t ngx_http_handoff_init_process(ngx_cycle_t *cycle);
static void ngx_http_handoff_exit_process(ngx_cycle_t *cycle);


#define NGX_HTTP_HANDOFF_CONF  (NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF)

static ngx_conf_num_bounds_t  ngx_http_handoff_log_statuses = {
    ngx_conf_check_num_bounds, 100, 999
};

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

    { ngx_string("handoff_log_status"),
      NGX_HTTP_HANDOFF_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_handoff_conf_t, log_status),
      &ngx_http_handoff_log_statuses },

    NGX_HANDOFF_COMMANDS(NGX_HTTP_HANDOFF_CONF, NGX_HTTP_LOC_CONF_OFFSET,
                         ngx_http_handoff_text, ngx_http_handoff_metadata),

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
    ngx_http_handoff_exit_process,
    NULL,
    NGX_MODULE_V1_PADDING
};

#pragma GCC visibility push(hidden)

/* ---- variables ---- */

static ngx_int_t
ngx_http_handoff_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_handoff_ctx_t  *ctx = ngx_http_handoff_ctx(r);

    return ngx_handoff_get_variable(r->connection, r->pool, v, ctx ? &ctx->offer : NULL, data);
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
    ngx_str_t             location = ngx_string("handoff_location"), *name;
    ngx_http_variable_t  *var;

    for (name = ngx_handoff_variables; name->len; name++) {
        var = ngx_http_add_variable(cf, name, NGX_HTTP_VAR_NOCACHEABLE);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = ngx_http_handoff_variable;
        var->data = name - ngx_handoff_variables;
    }

    var = ngx_http_add_variable(cf, &location, NGX_HTTP_VAR_NOCACHEABLE);
    if (var == NULL) {
        return NGX_ERROR;
    }

    var->get_handler = ngx_http_handoff_location_variable;

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

    return ngx_http_handoff_init_tls(cf);
}


/* Every server may have a client whose connection is handed over. */
static ngx_int_t
ngx_http_handoff_init_tls(ngx_conf_t *cf)
{
#if (NGX_HANDOFF_TLS && NGX_HTTP_SSL)
    ngx_uint_t                    i;
    ngx_http_ssl_srv_conf_t      *sscf;
    ngx_handoff_main_conf_t      *main;
    ngx_http_core_srv_conf_t    **cscfp;
    ngx_http_core_main_conf_t    *cmcf;
    ngx_http_handoff_srv_conf_t  *hscf;

    main = ngx_http_conf_get_module_main_conf(cf, ngx_http_handoff_module);
    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);
    cscfp = cmcf->servers.elts;

    for (i = 0; main->used && i < cmcf->servers.nelts; i++) {
        sscf = cscfp[i]->ctx->srv_conf[ngx_http_ssl_module.ctx_index];
        hscf = cscfp[i]->ctx->srv_conf[ngx_http_handoff_module.ctx_index];

        if (hscf->used) {
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

    if (conf->pass.len && clcf->handler != ngx_http_handoff_handler) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0, "\"handoff_pass\" in %s:%ui conflicts with another "
                      "directive of its location that answers requests, such as \"proxy_pass\"; "
                      "\"error_page 502 504 = @name\" goes to the location of a fallback",
                      conf->file, conf->line);
        return NGX_CONF_ERROR;
    }

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

    /* Whichever comes first: merging sees whether it is another directive's at the end. */
    if (clcf->handler == NULL) {
        clcf->handler = ngx_http_handoff_handler;
    }

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

    return ngx_handoff_set_text(cf, ngx_http_get_variable_index, NULL, text);
}


static char *
ngx_http_handoff_metadata(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_handoff_text_t  **text = (ngx_handoff_text_t **) ((char *) conf + cmd->offset);

    return ngx_handoff_set_text(cf, ngx_http_get_variable_index, ngx_http_handoff_known, text);
}


/* Every module has added its variables before the configuration is read. */
static ngx_uint_t
ngx_http_handoff_known(ngx_conf_t *cf, ngx_str_t *name)
{
    ngx_uint_t                    i;
    ngx_hash_key_t               *key;
    ngx_http_core_main_conf_t    *cmcf;

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);
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
ngx_http_handoff_init_process(ngx_cycle_t *cycle)
{
    return ngx_handoff_init_worker(cycle,
               ngx_http_cycle_get_module_main_conf(cycle, ngx_http_handoff_module));
}


static void
ngx_http_handoff_exit_process(ngx_cycle_t *cycle)
{
    ngx_handoff_exit_worker(ngx_http_cycle_get_module_main_conf(cycle, ngx_http_handoff_module));
}

#pragma GCC visibility pop
