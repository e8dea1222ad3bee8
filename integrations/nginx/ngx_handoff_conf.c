/*
 * What handoff_pass names, and the brokers for it.
 *
 * A target is an upstream block or a path. Locations that name the same target with the same
 * limits share a broker, of which each worker has its own handle. A handoff_pass with variables
 * has its brokers made by the worker, when a value names a target for the first time.
 */
#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

/* The directives' defaults. */
/* A success, and none that anything else is logged with: RFC 9110 has not assigned it. */
#define NGX_HANDOFF_LOG_STATUS  299
#define NGX_HANDOFF_TIMEOUT          5000
#define NGX_HANDOFF_ATTEMPT_TIMEOUT  1000
#define NGX_HANDOFF_MAX_IN_FLIGHT    256
#define NGX_HANDOFF_MAX_FAILS        8
#define NGX_HANDOFF_FAIL_TIMEOUT     30000
#define NGX_HANDOFF_QUEUE_TIMEOUT    5000

/* The most offers that may wait in a queue: as many connections as a worker could have. */
#define NGX_HANDOFF_MAX_QUEUE        1048576

/* The most that the library takes. A time of so many seconds or more is cut off there. */
#define NGX_HANDOFF_MAX_WEIGHT       65535
#define NGX_HANDOFF_MAX_SECONDS      0xffffffff


static void ngx_handoff_warn_of_attempts(ngx_handoff_conf_t *conf, ngx_log_t *log);
static void ngx_handoff_check_hasty(ngx_handoff_main_conf_t *main);
static ngx_uint_t ngx_handoff_sockets(ngx_cycle_t *cycle);
static char *ngx_handoff_check_time(ngx_conf_t *cf, void *post, void *data);
static ngx_int_t ngx_handoff_has_several(ngx_handoff_target_t *target);
static ngx_int_t ngx_handoff_is_absolute(ngx_str_t *path);
static ngx_int_t ngx_handoff_has_uri(ngx_str_t *path);
static ngx_handoff_target_t *ngx_handoff_find_target(ngx_handoff_main_conf_t *main,
    ngx_str_t *name);
static ngx_handoff_broker_t *ngx_handoff_get_broker(ngx_pool_t *pool,
    ngx_handoff_main_conf_t *main, ngx_handoff_target_t *target, ngx_handoff_conf_t *conf);


/* ---- configuration ---- */

/* The ranges in which the library takes these limits; without a limit of failures for 0. */
ngx_conf_num_bounds_t  ngx_handoff_in_flight = { ngx_conf_check_num_bounds, 1, 4096 };
ngx_conf_num_bounds_t  ngx_handoff_fails = { ngx_conf_check_num_bounds, 0, 4096 };
ngx_conf_post_t  ngx_handoff_time = { ngx_handoff_check_time };


ngx_handoff_main_conf_t *
ngx_handoff_create_main_conf(ngx_conf_t *cf, char *module)
{
    char                     *name;
    ngx_uint_t                i;
    ngx_handoff_main_conf_t  *main;

#if (NGX_HANDOFF_TLS)
    if (ngx_handoff_init_tls() != NGX_OK) {
        return NULL;
    }
#endif

    main = ngx_pcalloc(cf->pool, sizeof(ngx_handoff_main_conf_t));
    if (main == NULL) {
        return NULL;
    }

    main->module = module;
    main->cycle = cf->cycle;
    main->realip = NGX_CONF_UNSET_UINT;

    name = ngx_strcmp(module, "http") == 0 ? "ngx_http_realip_module" : "ngx_stream_realip_module";

    for (i = 0; cf->cycle->modules[i]; i++) {
        if (ngx_strcmp(cf->cycle->modules[i]->name, name) == 0) {
            main->realip = cf->cycle->modules[i]->ctx_index;
        }
    }

    if (ngx_array_init(&main->targets, cf->pool, 2, sizeof(ngx_handoff_target_t *)) != NGX_OK
        || ngx_array_init(&main->brokers, cf->pool, 2, sizeof(ngx_handoff_broker_t *)) != NGX_OK)
    {
        return NULL;
    }

    return main;
}


void
ngx_handoff_init_conf(ngx_handoff_conf_t *conf)
{
    conf->timeout = NGX_CONF_UNSET_MSEC;
    conf->attempt_timeout = NGX_CONF_UNSET_MSEC;
    conf->max_in_flight = NGX_CONF_UNSET_UINT;
    conf->max_fails = NGX_CONF_UNSET_UINT;
    conf->fail_timeout = NGX_CONF_UNSET_MSEC;
    conf->queue = NGX_CONF_UNSET_UINT;
    conf->queue_timeout = NGX_CONF_UNSET_MSEC;
    conf->log_status = NGX_CONF_UNSET_UINT;
    conf->service = NGX_CONF_UNSET_PTR;
    conf->correlation = NGX_CONF_UNSET_PTR;
    conf->metadata = NGX_CONF_UNSET_PTR;
}


/* The upstream blocks are targets by now. */
char *
ngx_handoff_merge_conf(ngx_conf_t *cf, ngx_handoff_main_conf_t *main, ngx_handoff_conf_t *prev,
    ngx_handoff_conf_t *conf)
{
    ngx_handoff_target_t  *target;

    ngx_conf_merge_msec_value(conf->timeout, prev->timeout, NGX_HANDOFF_TIMEOUT);
    ngx_conf_merge_msec_value(conf->attempt_timeout, prev->attempt_timeout,
                              NGX_HANDOFF_ATTEMPT_TIMEOUT);
    ngx_conf_merge_uint_value(conf->max_in_flight, prev->max_in_flight, NGX_HANDOFF_MAX_IN_FLIGHT);
    ngx_conf_merge_uint_value(conf->max_fails, prev->max_fails, NGX_HANDOFF_MAX_FAILS);
    ngx_conf_merge_msec_value(conf->fail_timeout, prev->fail_timeout, NGX_HANDOFF_FAIL_TIMEOUT);
    ngx_conf_merge_uint_value(conf->queue, prev->queue, 0);
    ngx_conf_merge_msec_value(conf->queue_timeout, prev->queue_timeout,
                              NGX_HANDOFF_QUEUE_TIMEOUT);
    ngx_conf_merge_uint_value(conf->log_status, prev->log_status, NGX_HANDOFF_LOG_STATUS);
    ngx_conf_merge_ptr_value(conf->service, prev->service, NULL);
    ngx_conf_merge_ptr_value(conf->correlation, prev->correlation, NULL);
    ngx_conf_merge_ptr_value(conf->metadata, prev->metadata, NULL);

    if (conf->pass.len == 0) {
        return NGX_CONF_OK;
    }

    if (conf->value) {
        if (conf->attempt_timeout >= conf->timeout && main->hasty == NULL) {
            main->hasty = conf;
        }

        return NGX_CONF_OK;
    }

    target = ngx_handoff_find_target(main, &conf->pass);

    if (target == NULL && ngx_handoff_is_path(&conf->pass)) {
        target = ngx_handoff_add_target(cf, main, &conf->pass);
        if (target == NULL) {
            return NGX_CONF_ERROR;
        }
    }

    if (target == NULL) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0, "there is no upstream \"%V\" for the "
                      "\"handoff_pass\" in %s:%ui, and the path of a socket begins with "
                      "\"unix:\"", &conf->pass, conf->file, conf->line);
        return NGX_CONF_ERROR;
    }

    if (target->mistake) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0, "\"handoff_pass\" in %s:%ui: server \"%V\" of "
                      "upstream \"%V\" %s", conf->file, conf->line, &target->culprit,
                      &target->name, target->mistake);
        return NGX_CONF_ERROR;
    }

    if (target->method) {
        target->method = 0;
        ngx_log_error(NGX_LOG_WARN, cf->log, 0, "the balancing method, or \"keepalive\", of upstream "
                      "\"%V\" does not apply to the \"handoff_pass\" in %s:%ui", &target->name, conf->file,
                      conf->line);
    }

    conf->broker = ngx_handoff_get_broker(cf->pool, main, target, conf);
    if (conf->broker == NULL) {
        return NGX_CONF_ERROR;
    }

    if (conf->attempt_timeout >= conf->timeout && !conf->broker->warned
        && ngx_handoff_has_several(target))
    {
        conf->broker->warned = 1;
        ngx_handoff_warn_of_attempts(conf, cf->log);
    }

    if (ngx_handoff_check(conf->broker) != NGX_OK) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0, "\"handoff_pass\" in %s:%ui: %s", conf->file,
                      conf->line, handoff_last_error());
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static void
ngx_handoff_warn_of_attempts(ngx_handoff_conf_t *conf, ngx_log_t *log)
{
    ngx_log_error(NGX_LOG_WARN, log, 0, "\"handoff_pass\" in %s:%ui: an offer that a backend does not "
                  "answer goes to no other one, because \"handoff_attempt_timeout\", %Mms, is not less "
                  "than \"handoff_timeout\", %Mms", conf->file, conf->line, conf->attempt_timeout,
                  conf->timeout);
}


/* What can be told only when all of the configuration has been read. `main` is the zone's first. */
ngx_int_t
ngx_handoff_check_conf(ngx_handoff_main_conf_t *main)
{
    ngx_uint_t    sockets, brokers, needed;
    ngx_cycle_t  *cycle = main->cycle;

    brokers = 0;

    for ( /* void */ ; main; main = main->next) {
        ngx_handoff_check_hasty(main);
        brokers += main->brokers.nelts;
    }

    sockets = ngx_handoff_sockets(cycle);

    /* Without one for the channel from its master a new worker exits, and the next one, too. */
    needed = sockets + brokers + 2;

    if (brokers && cycle->connection_n < needed) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0, "%ui worker_connections are not enough for %ui "
                      "listening sockets, %ui targets of \"handoff_pass\", the master process and a "
                      "client: at least %ui are needed", cycle->connection_n, sockets, brokers, needed);
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* How many listening sockets each worker has. */
static ngx_uint_t
ngx_handoff_sockets(ngx_cycle_t *cycle)
{
    ngx_uint_t        i, n = 0;
    ngx_listening_t  *ls = cycle->listening.elts;

    for (i = 0; i < cycle->listening.nelts; i++) {
#if (NGX_HAVE_REUSEPORT)
        /* Of these there is one for each worker. */
        if (ls[i].reuseport && ls[i].worker != 0) {
            continue;
        }
#endif
        n++;
    }

    return n;
}


/* A value may name any target, also one that comes later. */
static void
ngx_handoff_check_hasty(ngx_handoff_main_conf_t *main)
{
    ngx_uint_t              i;
    ngx_handoff_target_t  **target = main->targets.elts;

    for (i = 0; main->hasty && i < main->targets.nelts; i++) {
        if (target[i]->mistake == NULL && ngx_handoff_has_several(target[i])) {
            ngx_handoff_warn_of_attempts(main->hasty, main->cycle->log);
            return;
        }
    }
}


/*
 * The argument of handoff_pass, without variables: "unix:/path", "unix:/directory/", "unix:@name"
 * for an abstract name, or the name of an upstream, which may come later in the configuration.
 */
char *
ngx_handoff_set_pass(ngx_conf_t *cf, ngx_handoff_conf_t *conf)
{
    ngx_str_t       *value = cf->args->elts;
    handoff_broker  *broker;

    if (conf->pass.len) {
        return "is duplicate";
    }

    conf->pass = value[1];
    conf->file = cf->conf_file->file.name.data;
    conf->line = cf->conf_file->line;

    if (ngx_handoff_is_path(&value[1]) && !ngx_handoff_is_absolute(&value[1])
        && value[1].data[5] != '$')
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid handoff socket \"%V\": it is not an absolute "
                           "path", &value[1]);
        return NGX_CONF_ERROR;
    }

    if (ngx_handoff_is_path(&value[1]) && ngx_handoff_has_uri(&value[1])) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid handoff socket \"%V\": it has no \":/uri\" as "
                           "\"proxy_pass\" has it, backends get the client's own", &value[1]);
        return NGX_CONF_ERROR;
    }

    if (ngx_strlchr(value[1].data, value[1].data + value[1].len, '$')) {
        return NGX_CONF_OK;
    }

    if (!ngx_handoff_is_path(&value[1])) {

        if (value[1].len == 0 || ngx_strlchr(value[1].data, value[1].data + value[1].len, '/')) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid handoff socket \"%V\", it begins "
                               "with \"unix:\"", &value[1]);
            return NGX_CONF_ERROR;
        }

        return NGX_CONF_OK;
    }

    /* A new broker opens nothing: it only shows whether the path can be a socket's. */
    if (handoff_broker_new((char *) value[1].data + 5, NULL, &broker) != HANDOFF_OK) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid handoff socket \"%V\": %s", &value[1],
                           handoff_last_error());
        return NGX_CONF_ERROR;
    }

    handoff_broker_free(broker);

    return NGX_CONF_OK;
}


/* "handoff_queue number [timeout=time]" */
char *
ngx_handoff_set_queue(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_int_t            n;
    ngx_str_t           *value = cf->args->elts, time;
    ngx_handoff_conf_t  *hcf = conf;

    if (hcf->queue != NGX_CONF_UNSET_UINT) {
        return "is duplicate";
    }

    n = ngx_atoi(value[1].data, value[1].len);
    if (n == NGX_ERROR || n > NGX_HANDOFF_MAX_QUEUE) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid number \"%V\" of offers in a queue, "
                           "it is 0 to %d", &value[1], NGX_HANDOFF_MAX_QUEUE);
        return NGX_CONF_ERROR;
    }

    hcf->queue = n;
    hcf->queue_timeout = NGX_HANDOFF_QUEUE_TIMEOUT;

    if (cf->args->nelts == 2) {
        return NGX_CONF_OK;
    }

    if (ngx_strncmp(value[2].data, "timeout=", 8) != 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "unknown parameter \"%V\", it is "
                           "\"timeout=time\"", &value[2]);
        return NGX_CONF_ERROR;
    }

    time.data = value[2].data + 8;
    time.len = value[2].len - 8;

    hcf->queue_timeout = ngx_parse_time(&time, 0);
    if (hcf->queue_timeout == (ngx_msec_t) NGX_ERROR
        || ngx_handoff_check_time(cf, NULL, &hcf->queue_timeout) != NGX_CONF_OK)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid time \"%V\", it is at least 1ms and less "
                           "than 136 years", &value[2]);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* Beyond that nginx's own timers overflow. */
static char *
ngx_handoff_check_time(ngx_conf_t *cf, void *post, void *data)
{
    ngx_msec_t  *time = data;

    if (*time == 0 || *time / 1000 >= NGX_HANDOFF_MAX_SECONDS) {
        return "takes at least 1ms and less than 136 years";
    }

    return NGX_CONF_OK;
}


/* ---- targets ---- */

/* Whether it can have more than one backend. */
static ngx_int_t
ngx_handoff_has_several(ngx_handoff_target_t *target)
{
    ngx_str_t             *path = &target->name;
    ngx_handoff_server_t  *server;

    if (target->servers) {

        if (target->servers->nelts > 1) {
            return 1;
        }

        server = target->servers->elts;
        path = &server->path;
    }

    return path->data[path->len - 1] == '/';
}


ngx_int_t
ngx_handoff_is_path(ngx_str_t *name)
{
    return name->len >= 5 && ngx_strncmp(name->data, "unix:", 5) == 0;
}


/* Of what is a path, or an abstract name. */
static ngx_int_t
ngx_handoff_is_absolute(ngx_str_t *path)
{
    return path->len > 5 && (path->data[5] == '/' || path->data[5] == '@');
}


/* A name in a path may have a colon in it. One that ends with a colon is a mistake. */
static ngx_int_t
ngx_handoff_has_uri(ngx_str_t *path)
{
    size_t  i;

    for (i = 6; path->data[5] == '/' && i < path->len; i++) {
        if (path->data[i] == ':' && (i + 1 == path->len || path->data[i + 1] == '/')) {
            return 1;
        }
    }

    return 0;
}


/* `name` is as in handoff_pass. Of an upstream the case does not matter, as for proxy_pass. */
static ngx_handoff_target_t *
ngx_handoff_find_target(ngx_handoff_main_conf_t *main, ngx_str_t *name)
{
    ngx_uint_t             i;
    ngx_handoff_target_t **target = main->targets.elts;

    for (i = 0; i < main->targets.nelts; i++) {

        if (target[i]->name.len != name->len) {
            continue;
        }

        if (target[i]->servers
            ? ngx_strncasecmp(target[i]->name.data, name->data, name->len) == 0
            : ngx_strncmp(target[i]->name.data, name->data, name->len) == 0)
        {
            return target[i];
        }
    }

    return NULL;
}


/* A path, or an upstream, to which its servers are added next. */
ngx_handoff_target_t *
ngx_handoff_add_target(ngx_conf_t *cf, ngx_handoff_main_conf_t *main, ngx_str_t *name)
{
    ngx_handoff_target_t  *target, **known;

    target = ngx_pcalloc(cf->pool, sizeof(ngx_handoff_target_t));
    known = ngx_array_push(&main->targets);
    if (target == NULL || known == NULL) {
        return NULL;
    }

    *known = target;
    target->name = *name;

    if (!ngx_handoff_is_path(name)) {
        target->servers = ngx_array_create(cf->pool, 4, sizeof(ngx_handoff_server_t));
        if (target->servers == NULL) {
            return NULL;
        }
    }

    return target;
}


/* `server` has its path as "unix:/path". Most upstreams are not for handoffs: that is no error. */
ngx_int_t
ngx_handoff_add_server(ngx_conf_t *cf, ngx_handoff_target_t *target, ngx_handoff_server_t *server,
    ngx_uint_t max_conns)
{
    char                  *mistake;
    ngx_handoff_server_t  *added;

    added = ngx_array_push(target->servers);
    if (added == NULL) {
        return NGX_ERROR;
    }

    *added = *server;

    if (!ngx_handoff_is_path(&server->path)) {
        mistake = "is not a handoff socket, which begins with \"unix:\"";

    } else if (!ngx_handoff_is_absolute(&server->path)) {
        mistake = "is not an absolute path";

    } else if (ngx_handoff_has_uri(&server->path)) {
        mistake = "has a \":/uri\", but backends get the client's own";

    } else if (max_conns) {
        mistake = "has \"max_conns\", but nginx does not see how many connections a backend has; "
                  "see \"handoff_max_in_flight\"";

    } else if (server->weight > NGX_HANDOFF_MAX_WEIGHT) {
        mistake = "has a weight of more than 65535";

    } else {
        added->path.data += 5;
        added->path.len -= 5;
        return NGX_OK;
    }

    if (target->mistake == NULL) {
        target->mistake = mistake;
        target->culprit = server->path;
    }

    return NGX_OK;
}


/* ---- brokers ---- */

/* One for all locations that agree about it. */
static ngx_handoff_broker_t *
ngx_handoff_get_broker(ngx_pool_t *pool, ngx_handoff_main_conf_t *main,
    ngx_handoff_target_t *target, ngx_handoff_conf_t *conf)
{
    ngx_uint_t             i;
    ngx_handoff_broker_t  *broker, **known = main->brokers.elts;

    for (i = 0; i < main->brokers.nelts; i++) {
        broker = known[i];

        /* An upstream's servers have their own limits of failures. */
        if (broker->target == target
            && broker->max_in_flight == conf->max_in_flight
            && broker->attempt_timeout == conf->attempt_timeout
            && (target->servers
                || (broker->max_fails == conf->max_fails
                    && broker->fail_timeout == conf->fail_timeout)))
        {
            return broker;
        }
    }

    broker = ngx_pcalloc(pool, sizeof(ngx_handoff_broker_t));
    known = ngx_array_push(&main->brokers);
    if (broker == NULL || known == NULL) {
        return NULL;
    }

    broker->main = main;
    broker->target = target;
    broker->max_in_flight = conf->max_in_flight;
    broker->attempt_timeout = conf->attempt_timeout;
    broker->max_fails = conf->max_fails;
    broker->fail_timeout = conf->fail_timeout;

    *known = broker;
    return broker;
}


/*
 * The broker for what the variables of a handoff_pass have become. NULL if there is none, which is
 * logged and noted in `offer`.
 */
ngx_handoff_broker_t *
ngx_handoff_find(ngx_handoff_main_conf_t *main, ngx_handoff_conf_t *conf, ngx_str_t *name,
    ngx_handoff_offer_t *offer, ngx_log_t *log)
{
    ngx_handoff_broker_t  *broker;
    ngx_handoff_target_t  *target;

    if (name->len == 0) {
        ngx_log_error(NGX_LOG_INFO, log, 0, "not handed over: \"%V\" is empty", &conf->pass);
        ngx_handoff_refuse(offer, HANDOFF_REASON_POLICY_DISABLED);
        return NULL;
    }

    target = ngx_handoff_find_target(main, name);

    if (target == NULL) {
        ngx_log_error(NGX_LOG_ERR, log, 0, "handoff to \"%V\" failed: \"%V\" names neither an "
                      "upstream nor what another \"handoff_pass\" names", name, &conf->pass);

    } else if (target->mistake) {
        ngx_log_error(NGX_LOG_ERR, log, 0, "handoff to \"%V\" failed: its server \"%V\" %s", name,
                      &target->culprit, target->mistake);

    } else {
        broker = ngx_handoff_get_broker(ngx_cycle->pool, main, target, conf);

        if (broker && ngx_handoff_open((ngx_cycle_t *) ngx_cycle, broker) == NGX_OK) {
            return broker;
        }
    }

    ngx_handoff_refuse(offer, HANDOFF_REASON_BACKEND_UNAVAILABLE);
    return NULL;
}


/* ---- a worker's beginning ---- */

ngx_int_t
ngx_handoff_init_worker(ngx_cycle_t *cycle, ngx_handoff_main_conf_t *main)
{
    ngx_uint_t             i;
    ngx_handoff_broker_t **broker;

    /* Not in the processes that look after caches. Without its block a module has nothing. */
    if (main == NULL || main->zone == NULL
        || (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE))
    {
        return NGX_OK;
    }

    if (ngx_handoff_init_copies(cycle) != NGX_OK || ngx_handoff_init_status(cycle, main) != NGX_OK)
    {
        return NGX_ERROR;
    }

    broker = main->brokers.elts;

    for (i = 0; i < main->brokers.nelts; i++) {
        if (ngx_handoff_open(cycle, broker[i]) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}

#pragma GCC visibility pop
