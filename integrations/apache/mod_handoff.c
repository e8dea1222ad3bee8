/* The directives of mod_handoff, and where Apache calls it. */
#include "mod_handoff.h"

int handoff_wanted;

/* The library cuts off a time of so many seconds or more. */
#define MAX_SECONDS 0xffffffffLL

static ap_filter_rec_t *header_filter, *continue_filter;

/* ---- what is configured ---- */

static void *make_dir_conf(apr_pool_t *pool, char *unused)
{
    (void)unused;
    handoff_dir_conf *conf = apr_pcalloc(pool, sizeof *conf);
    conf->timeout = conf->log_status = -1;
    return conf;
}

static void *merge_dir_conf(apr_pool_t *pool, void *base_conf, void *more_conf)
{
    const handoff_dir_conf *base = base_conf, *more = more_conf;
    handoff_dir_conf *conf = apr_pmemdup(pool, base, sizeof *base);
    if (more->pass != NULL)
        conf->pass = more->pass;
    if (more->header != NULL) {
        conf->header = more->header;
        conf->data_header = more->data_header;
    }
    if (more->location != NULL)
        conf->location = more->location;
    if (more->timeout >= 0)
        conf->timeout = more->timeout;
    if (more->log_status >= 0)
        conf->log_status = more->log_status;
    if (more->service != NULL)
        conf->service = more->service;
    if (more->correlation != NULL)
        conf->correlation = more->correlation;
    if (more->metadata != NULL || more->members != NULL) {
        conf->metadata = more->metadata;
        conf->members = more->members;
    }
    return conf;
}

static void *make_server_conf(apr_pool_t *pool, server_rec *server)
{
    (void)server;
    handoff_server_conf *conf = apr_palloc(pool, sizeof *conf);
    conf->backends = apr_table_make(pool, 4);
    conf->directories = apr_array_make(pool, 2, sizeof(const char *));
    return conf;
}

static void *merge_server_conf(apr_pool_t *pool, void *base_conf, void *more_conf)
{
    const handoff_server_conf *base = base_conf, *more = more_conf;
    handoff_server_conf *conf = apr_palloc(pool, sizeof *conf);
    conf->backends = apr_table_overlay(pool, more->backends, base->backends);
    conf->directories = apr_array_append(pool, base->directories, more->directories);
    return conf;
}

/* "unix:/path", "unix:/directory/" or "unix:@name". Returns NULL, or what is wrong. */
static const char *take_path(cmd_parms *cmd, const char *text, const char **path)
{
    if (strncmp(text, "unix:", 5) != 0)
        return apr_psprintf(cmd->pool, "%s: \"%s\" does not begin with \"unix:\"",
                            cmd->cmd->name, text);
    *path = apr_pstrdup(cmd->pool, text + 5);
    if (**path != '/' && **path != '@')
        return apr_psprintf(cmd->pool, "%s: \"%s\" is no absolute path", cmd->cmd->name, text);
    if (**path == '/' && strchr(*path, '|') != NULL)
        return apr_psprintf(cmd->pool, "%s: \"%s\" has a \"|URL\" as ProxyPass has it, backends get "
                            "the client's own", cmd->cmd->name, text);
    const char *error = handoff_check_path(cmd->temp_pool, *path);
    return error == NULL ? NULL : apr_pstrcat(cmd->pool, cmd->cmd->name, ": ", error, NULL);
}

/* The path of the section that a directive is in. <If> and the like have none, and Apache says "*If": then
 * that of the section around them, or "", which holds also against that of a section it is merged with. */
static const char *section_path(cmd_parms *cmd)
{
    static const char *const with_path[] = {"<Location", "<Directory", "<Files", "<Proxy"};
    if (cmd->path == NULL || strcmp(cmd->path, "*If") != 0)
        return cmd->path;
    for (const ap_directive_t *section = cmd->directive->parent; section != NULL;
         section = section->parent) {
        for (size_t i = 0; i < sizeof with_path / sizeof *with_path; i++) {
            if (strncasecmp(section->directive, with_path[i], strlen(with_path[i])) != 0)
                continue;
            /* Apache has looked for the '>' already. */
            const char *arguments = apr_pstrmemdup(
                cmd->pool, section->args, (apr_size_t)(strrchr(section->args, '>') - section->args));
            const char *path = ap_getword_conf(cmd->pool, &arguments);
            return strcmp(path, "~") == 0 ? ap_getword_conf(cmd->pool, &arguments) : path;
        }
    }
    return "";
}

static const char *set_pass(cmd_parms *cmd, void *dir, const char *target)
{
    handoff_dir_conf *conf = dir;
    conf->location = section_path(cmd);
    conf->pass = "";
    if (strcasecmp(target, "off") == 0)
        return NULL;
    handoff_wanted = 1;
    return take_path(cmd, target, &conf->pass);
}

static const char *set_header(cmd_parms *cmd, void *dir, const char *name, const char *data_name)
{
    handoff_dir_conf *conf = dir;
    conf->location = section_path(cmd);
    conf->header = "";
    conf->data_header = data_name;
    if (strcasecmp(name, "off") == 0)
        return NULL;
    handoff_wanted = 1;
    conf->header = name;
    return NULL;
}

static const char *set_backend(cmd_parms *cmd, void *dir, const char *name, const char *target)
{
    (void)dir;
    handoff_server_conf *conf = ap_get_module_config(cmd->server->module_config, &handoff_module);
    const char *path = "", *error = take_path(cmd, target, &path);
    if (*name == '/' || strchr(name, ':') != NULL)
        return "HandoffBackend: a name has no colon, and does not begin with a slash";
    if (apr_table_get(conf->backends, name) != NULL)
        return apr_psprintf(cmd->pool, "HandoffBackend: \"%s\" has a socket already", name);
    apr_table_setn(conf->backends, name, path);
    return error;
}

static const char *set_directory(cmd_parms *cmd, void *dir, const char *target)
{
    (void)dir;
    handoff_server_conf *conf = ap_get_module_config(cmd->server->module_config, &handoff_module);
    const char *path = "", *error = take_path(cmd, target, &path);
    if (error == NULL && (*path != '/' || path[strlen(path) - 1] != '/'))
        return "HandoffAllow: a directory ends in a slash";
    APR_ARRAY_PUSH(conf->directories, const char *) = path;
    return error;
}

/* Where a time of 0 would mean a default. */
static const char *take_time(cmd_parms *cmd, const char *text, apr_interval_time_t *time)
{
    char *unit;
    apr_int64_t number = apr_strtoi64(text, &unit, 10);
    apr_interval_time_t one;
    /* Apache would multiply the two without looking. */
    if (unit == text || number < 1 ||
        ap_timeout_parameter_parse(apr_pstrcat(cmd->temp_pool, "1", unit, NULL), &one, "s") !=
            APR_SUCCESS)
        return apr_psprintf(cmd->pool, "%s: \"%s\" is no time of at least a millisecond",
                            cmd->cmd->name, text);
    if (number >= apr_time_from_sec(MAX_SECONDS) / one)
        return apr_psprintf(cmd->pool, "%s: \"%s\" is too long, a time is less than 136 years",
                            cmd->cmd->name, text);
    *time = number * one;
    return NULL;
}

static const char *set_timeout(cmd_parms *cmd, void *dir, const char *text)
{
    return take_time(cmd, text, &((handoff_dir_conf *)dir)->timeout);
}

static const char *take_number(cmd_parms *cmd, const char *text, int least, int most, int *number)
{
    char *end;
    apr_int64_t value = apr_strtoi64(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < least || value > most)
        return apr_psprintf(cmd->pool, "%s: \"%s\" is no number from %d to %d", cmd->cmd->name,
                            text, least, most);
    *number = (int)value;
    return NULL;
}

static const char *set_log_status(cmd_parms *cmd, void *dir, const char *text)
{
    return take_number(cmd, text, 100, 599, &((handoff_dir_conf *)dir)->log_status);
}

/* These hold for all brokers. `cmd->info` is one of handoff_options. */
static const char *set_number(cmd_parms *cmd, void *dir, const char *text)
{
    (void)dir;
    size_t *option = cmd->info;
    int number = 0, least = option == &handoff_options.max_failures ? 0 : 1;
    const char *error = ap_check_cmd_context(cmd, GLOBAL_ONLY);
    if (error == NULL)
        error = take_number(cmd, text, least, 4096, &number);
    *option = number == 0 ? HANDOFF_NO_LIMIT : (size_t)number;
    return error;
}

static const char *set_global_time(cmd_parms *cmd, void *dir, const char *text)
{
    (void)dir;
    apr_interval_time_t time = 0;
    const char *error = ap_check_cmd_context(cmd, GLOBAL_ONLY);
    if (error == NULL)
        error = take_time(cmd, text, &time);
    *(uint64_t *)cmd->info = (uint64_t)apr_time_as_msec(time);
    return error;
}

static const char *take_expression(cmd_parms *cmd, const char *text, ap_expr_info_t **value)
{
    const char *error = NULL;
    *value = ap_expr_parse_cmd(cmd, text, AP_EXPR_FLAG_STRING_RESULT | AP_EXPR_FLAG_DONT_VARY,
                               &error, NULL);
    return error == NULL ? NULL : apr_pstrcat(cmd->pool, cmd->cmd->name, ": ", error, NULL);
}

static const char *set_service(cmd_parms *cmd, void *dir, const char *text)
{
    return take_expression(cmd, text, &((handoff_dir_conf *)dir)->service);
}

static const char *set_correlation(cmd_parms *cmd, void *dir, const char *text)
{
    return take_expression(cmd, text, &((handoff_dir_conf *)dir)->correlation);
}

/* Behind what can be a member's name. */
static const char *skip_name(const char *text)
{
    while (apr_isalnum(*text) || *text == '_')
        text++;
    return text;
}

/* "name=expression" */
static const char *add_member(cmd_parms *cmd, const char *text, apr_array_header_t *members)
{
    const char *p = skip_name(text);
    if (p == text || *p != '=')
        return apr_psprintf(cmd->pool, "HandoffMetadata: \"%s\" is not \"name=expression\"", text);
    const char *name = apr_pstrmemdup(cmd->pool, text, (apr_size_t)(p - text));
    if (handoff_is_member(name))
        return apr_psprintf(cmd->pool, "HandoffMetadata: \"%s\" is a member of \"default\"", name);
    for (int i = 0; i < members->nelts; i++)
        if (strcmp(APR_ARRAY_IDX(members, i, handoff_member).name, name) == 0)
            return apr_psprintf(cmd->pool, "HandoffMetadata: there is another \"%s\" before \"%s\"",
                                name, text);
    handoff_member *member = apr_array_push(members);
    member->name = name;
    return take_expression(cmd, p + 1, &member->value);
}

/* "default" and more members, or one expression. */
static const char *set_metadata(cmd_parms *cmd, void *dir, int argc, char *const argv[])
{
    handoff_dir_conf *conf = dir;
    const char *error = NULL;
    if (argc == 1 && strcmp(argv[0], "default") != 0) {
        /* A name alone is no text that a backend could read. */
        if (*skip_name(argv[0]) == '\0')
            ap_log_error(APLOG_MARK, APLOG_WARNING, 0, cmd->server,
                         "HandoffMetadata: backends get the word \"%s\" as their metadata; what Apache "
                         "knows of a connection is \"HandoffMetadata default\"", argv[0]);
        conf->members = NULL;
        return take_expression(cmd, argv[0], &conf->metadata);
    }
    if (argc == 0 || strcmp(argv[0], "default") != 0)
        return "HandoffMetadata takes one expression, or \"default\" and more members";
    conf->metadata = NULL;
    conf->members = apr_array_make(cmd->pool, 4, sizeof(handoff_member));
    for (int i = 1; i < argc && error == NULL; i++)
        error = add_member(cmd, argv[i], conf->members);
    return error;
}

static const command_rec commands[] = {
    AP_INIT_TAKE1("HandoffPass", set_pass, NULL, RSRC_CONF | ACCESS_CONF,
                  "the backend that connections are handed over to: unix:/path, or off"),
    AP_INIT_TAKE12("HandoffHeader", set_header, NULL, RSRC_CONF | ACCESS_CONF,
                   "the response header that names a backend, and one for its metadata; or off"),
    AP_INIT_TAKE2("HandoffBackend", set_backend, NULL, RSRC_CONF,
                  "a name that a response may use, and the backend that it stands for"),
    AP_INIT_TAKE1("HandoffAllow", set_directory, NULL, RSRC_CONF,
                  "a directory whose sockets a response may name: unix:/directory/"),
    AP_INIT_TAKE1("HandoffTimeout", set_timeout, NULL, RSRC_CONF | ACCESS_CONF,
                  "how long a client may wait for a backend: 5s"),
    AP_INIT_TAKE_ARGV("HandoffMetadata", set_metadata, NULL, RSRC_CONF | ACCESS_CONF,
                      "what the backend is told: default and name=expression, or an expression"),
    AP_INIT_TAKE1("HandoffService", set_service, NULL, RSRC_CONF | ACCESS_CONF,
                  "the name of the service that is meant: an expression"),
    AP_INIT_TAKE1("HandoffCorrelation", set_correlation, NULL, RSRC_CONF | ACCESS_CONF,
                  "an id for the logs of both: an expression"),
    AP_INIT_TAKE1("HandoffLogStatus", set_log_status, NULL, RSRC_CONF | ACCESS_CONF,
                  "the status with which a request that was handed over is logged: 299"),
    AP_INIT_TAKE1("HandoffMaxInFlight", set_number, &handoff_options.max_in_flight, RSRC_CONF,
                  "how many offers each child may have in flight at each backend: 256"),
    AP_INIT_TAKE1("HandoffMaxFails", set_number, &handoff_options.max_failures, RSRC_CONF,
                  "after how many failures a backend rests: 8; 0: never"),
    AP_INIT_TAKE1("HandoffFailTimeout", set_global_time, &handoff_options.failure_period_ms,
                  RSRC_CONF, "how long a failure counts: 30s"),
    AP_INIT_TAKE1("HandoffAttemptTimeout", set_global_time, &handoff_options.attempt_timeout_ms,
                  RSRC_CONF, "how long each of several backends may take: 1s"),
    {NULL},
};

/* A graceful restart begins with the defaults again. */
static int reset(apr_pool_t *conf, apr_pool_t *log, apr_pool_t *temporary)
{
    (void)conf, (void)log, (void)temporary;
    handoff_wanted = 0;
    handoff_options = (handoff_broker_options)HANDOFF_BROKER_OPTIONS_INIT;
    return OK;
}

/* ---- requests ---- */

static int reads_header(const request_rec *r)
{
    const handoff_dir_conf *conf = ap_get_module_config(r->per_dir_config, &handoff_module);
    return conf->header != NULL && *conf->header != '\0' && r->main == NULL;
}

/* A proxy sends interim answers past all filters of the request, also with the headers that are not
 * for clients. Last, because this is no setting of the administrator's. */
static int suppress_interim_answers(request_rec *r)
{
    if (reads_header(r))
        apr_table_setn(r->subprocess_env, "proxy-interim-response", "Suppress");
    return DECLINED;
}

/* Before all other handlers: they are the fallback. */
static int handle(request_rec *r)
{
    const handoff_dir_conf *conf = ap_get_module_config(r->per_dir_config, &handoff_module);
    if (conf->pass == NULL || *conf->pass == '\0' ||
        !handoff_hand_over(r, conf, conf->pass, 0, NULL))
        return DECLINED;
    return DONE;
}

/* Takes a header from a response, so that no client sees it. Without a name there is none. */
static const char *take_header(request_rec *r, const char *name)
{
    if (name == NULL)
        return NULL;
    const char *value = apr_table_get(r->headers_out, name);
    if (value == NULL)
        value = apr_table_get(r->err_headers_out, name);
    if (value != NULL) {
        apr_table_unset(r->headers_out, name);
        apr_table_unset(r->err_headers_out, name);
    }
    return value;
}

/* Takes what any request of a chain of internal redirects may have sent. They share err_headers_out,
 * where the headers of CGI are; and if the document of an error fails too, Apache goes back to the
 * request that has failed first. */
static void take_all_headers(request_rec *r)
{
    const request_rec *one = r;
    while (one->prev != NULL)
        one = one->prev;
    for (; one != NULL; one = one->next) {
        const handoff_dir_conf *conf = ap_get_module_config(one->per_dir_config, &handoff_module);
        if (reads_header(one)) {
            take_header(r, conf->header);
            take_header(r, conf->data_header);
        }
    }
}

/* The path that a response names: of a backend that has this name, or in a directory that is allowed.
 * NULL if it names none. `found` if it is the application's choice. */
static const char *find_path(request_rec *r, const char *value, int *found)
{
    handoff_server_conf *conf = ap_get_module_config(r->server->module_config, &handoff_module);
    const char *path = apr_table_get(conf->backends, value);
    if (path != NULL)
        return path;
    path = strncmp(value, "unix:", 5) == 0 ? value + 5 : value;
    for (int i = 0; i < conf->directories->nelts; i++) {
        const char *directory = APR_ARRAY_IDX(conf->directories, i, const char *);
        size_t len = strlen(directory);
        /* A plain name: no other directory, and not what a directory of backends leaves out. */
        if (strncmp(path, directory, len) == 0 && path[len] != '\0' && path[len] != '.' &&
            strchr(path + len, '/') == NULL) {
            *found = 1;
            return path;
        }
    }
    return NULL;
}

/* Looks at a response when its headers are known, and then is done; or swallows all of it, after the
 * connection was handed over. */
static apr_status_t look_at_header(ap_filter_t *f, apr_bucket_brigade *bb)
{
    request_rec *r = f->r;
    const handoff_dir_conf *conf = ap_get_module_config(r->per_dir_config, &handoff_module);
    if (f->ctx == NULL) {
        const char *value = reads_header(r) ? take_header(r, conf->header) : NULL;
        const char *data = take_header(r, conf->data_header);
        take_all_headers(r);
        int found = 0;
        const char *path = value ? find_path(r, value, &found) : NULL;
        if (value != NULL && path == NULL)
            handoff_fall_back(r, "\"%.200s\" is neither the name of a HandoffBackend nor a socket "
                              "in a HandoffAllow directory", value);
        if (path == NULL || !handoff_hand_over(r, conf, path, found, data)) {
            ap_remove_output_filter(f);
            return ap_pass_brigade(f->next, bb);
        }
        f->ctx = f;
    }
    apr_brigade_cleanup(bb);
    return APR_SUCCESS;
}

/* When a proxy suppresses an application's 100, it leaves that as the status, by which Apache takes it
 * that no body is wanted. With another one Apache sends a 100 of its own, and reads the body. */
static apr_status_t want_body(ap_filter_t *f, apr_bucket_brigade *bb, ap_input_mode_t mode,
                              apr_read_type_e block, apr_off_t bytes)
{
    int status = f->r->status;
    if (status == HTTP_CONTINUE)
        f->r->status = HTTP_OK;
    apr_status_t result = ap_get_brigade(f->next, bb, mode, block, bytes);
    f->r->status = status;
    return result;
}

static void add_filters(request_rec *r)
{
    const request_rec *one = r;
    while (one != NULL && !reads_header(one))
        one = one->prev;
    if (one != NULL)
        ap_add_output_filter_handle(header_filter, NULL, r, r->connection);
    if (reads_header(r) && r->expecting_100)
        ap_add_input_filter_handle(continue_filter, NULL, r, r->connection);
}

/* Before the request is logged. What the handler made of the status, does not count. */
static int note_outcome(request_rec *r)
{
    const handoff_request *request = handoff_request_of(r);
    if (request->outcome == NULL)
        return DECLINED;
    int handed_over = strcmp(request->outcome, "fallback") != 0;
    for (; r != NULL; r = r->next) {
        apr_table_setn(r->notes, "handoff", request->outcome);
        if (request->reason != NULL)
            apr_table_setn(r->notes, "handoff-reason", request->reason);
        if (handed_over) {
            r->status = request->log_status;
            r->status_line = NULL;
        }
    }
    return DECLINED;
}

static void register_hooks(apr_pool_t *pool)
{
    (void)pool;
    handoff_register_record();
    header_filter = ap_register_output_filter("HANDOFF_HEADER", look_at_header, NULL,
                                              AP_FTYPE_CONTENT_SET - 1);
    continue_filter = ap_register_input_filter("HANDOFF_CONTINUE", want_body, NULL,
                                               AP_FTYPE_CONTENT_SET);
    ap_hook_pre_config(reset, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_child_init(handoff_child_init, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_fixups(suppress_interim_answers, NULL, NULL, APR_HOOK_REALLY_LAST);
    ap_hook_handler(handle, NULL, NULL, APR_HOOK_REALLY_FIRST);
    ap_hook_insert_filter(add_filters, NULL, NULL, APR_HOOK_LAST);
    /* An error's answer passes no filter of the request, and hands nothing over. */
    ap_hook_insert_error_filter(take_all_headers, NULL, NULL, APR_HOOK_LAST);
    ap_hook_log_transaction(note_outcome, NULL, NULL, APR_HOOK_REALLY_FIRST);
}

AP_DECLARE_MODULE(handoff) = {
    STANDARD20_MODULE_STUFF,
    make_dir_conf, merge_dir_conf,
    make_server_conf, merge_server_conf,
    commands,
    register_hooks,
#ifdef AP_MODULE_FLAG_NONE
    AP_MODULE_FLAG_NONE,
#endif
};
