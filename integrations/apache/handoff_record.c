/*
 * What Apache has read from the client, as it came.
 *
 * Apache takes a request apart while it reads it. A filter beneath its parsers keeps a copy of all
 * bytes that they take: the head, and of the body what a handler has asked for, still in its chunks.
 * What Apache has received but not taken yet, lies in the core's own filter at the end of the chain.
 */
#include "mod_handoff.h"

APLOG_USE_MODULE(handoff);

#pragma GCC visibility push(hidden)

static ap_filter_rec_t *record_filter;

/* Of a connection. */
typedef struct {
    ap_filter_t *filter;
    handoff_request *request; /* which is read; NULL between two */
} recorder;

/* Copies what a filter beneath has given. */
static apr_status_t record(handoff_request *request, apr_bucket_brigade *bb)
{
    for (apr_bucket *b = APR_BRIGADE_FIRST(bb); b != APR_BRIGADE_SENTINEL(bb);
         b = APR_BUCKET_NEXT(b)) {
        const char *bytes;
        apr_size_t len;
        if (APR_BUCKET_IS_METADATA(b))
            continue;
        apr_status_t status = apr_bucket_read(b, &bytes, &len, APR_BLOCK_READ);
        if (status != APR_SUCCESS)
            return status;
        if (request->read.strlen + len > HANDOFF_MOST_BYTES) {
            ap_varbuf_free(&request->read);
            request->incomplete = 1;
            return APR_SUCCESS;
        }
        ap_varbuf_strmemcat(&request->read, bytes, len);
    }
    return APR_SUCCESS;
}

static apr_status_t record_input(ap_filter_t *f, apr_bucket_brigade *bb, ap_input_mode_t mode,
                                 apr_read_type_e block, apr_off_t bytes)
{
    recorder *recorder = f->ctx;
    apr_status_t status = ap_get_brigade(f->next, bb, mode, block, bytes);
    handoff_request *request = recorder->request;
    if (status != APR_SUCCESS || request == NULL || request->incomplete)
        return status;
    switch (mode) {
    case AP_MODE_READBYTES:
    case AP_MODE_GETLINE:
        return record(request, bb);
    case AP_MODE_SPECULATIVE:
    case AP_MODE_INIT:
        return APR_SUCCESS;
    default: /* these take bytes that they do not show */
        request->incomplete = 1;
        return APR_SUCCESS;
    }
}

/* Beneath the HTTP filters, and above those of the connection, such as that of the PROXY protocol. */
static int add_recorder(conn_rec *c, void *socket)
{
    (void)socket;
    if (!handoff_wanted || c->master != NULL || c->outgoing)
        return OK;
    recorder *recorder = apr_pcalloc(c->pool, sizeof *recorder);
    recorder->filter = ap_add_input_filter_handle(record_filter, recorder, NULL, c);
    ap_set_module_config(c->conn_config, &handoff_module, recorder);
    return OK;
}

handoff_request *handoff_request_of(request_rec *r)
{
    while (r->prev != NULL)
        r = r->prev;
    handoff_request *request = ap_get_module_config(r->request_config, &handoff_module);
    if (request == NULL) { /* it begins, or was not read from a connection: a subrequest */
        request = apr_pcalloc(r->pool, sizeof *request);
        ap_set_module_config(r->request_config, &handoff_module, request);
    }
    return request;
}

static apr_status_t end_request(void *data)
{
    request_rec *r = data;
    recorder *recorder = ap_get_module_config(r->connection->conn_config, &handoff_module);
    /* A pipelined request may have begun before this one is logged and freed. */
    if (recorder->request == ap_get_module_config(r->request_config, &handoff_module))
        recorder->request = NULL;
    return APR_SUCCESS;
}

static void begin_request(request_rec *r, conn_rec *c)
{
    recorder *recorder = ap_get_module_config(c->conn_config, &handoff_module);
    handoff_request *request = handoff_request_of(r);
    if (recorder == NULL || ap_ssl_conn_is_ssl(c))
        return;
    ap_varbuf_init(r->pool, &request->read, 0);
    recorder->request = request;
    apr_pool_cleanup_register(r->pool, r, end_request, apr_pool_cleanup_null);
}


/* Filters of Apache's own modules that keep nothing back. Of any other one nobody knows. */
static int keeps_nothing(ap_filter_t *f)
{
    static const char *const names[] = {"reqtimeout", "remoteip_input", "dumpio_in",
                                        "log_input_output", NULL};
    for (int i = 0; names[i] != NULL; i++)
        if (strcasecmp(f->frec->name, names[i]) == 0)
            return 1;
    return 0;
}

static int is_header(const char *line, const char *end, const char *name)
{
    size_t len = strlen(name);
    if ((size_t)(end - line) <= len || strncasecmp(line, name, len) != 0)
        return 0;
    for (line += len; line < end && (*line == ' ' || *line == '\t'); line++)
        ;
    return line < end && *line == ':';
}

/* NULL, or why two servers may not agree on where this request ends. Apache takes some of these, and
 * makes one thing of them for those behind it; the backend would get them as they came. */
static const char *find_ambiguity(const char *head, apr_size_t len)
{
    const char *limit = head + len, *end;
    int length = 0, encoding = 0;
    for (const char *line = head; line < limit; line = end + 1) {
        end = memchr(line, '\n', (size_t)(limit - line));
        if (end == NULL)
            end = limit;
        if (line == end || (*line == '\r' && line + 1 == end))
            break;
        if (line != head && (*line == ' ' || *line == '\t'))
            return "its head has a folded line";
        length |= is_header(line, end, "Content-Length");
        encoding |= is_header(line, end, "Transfer-Encoding");
    }
    return length && encoding ? "its head has both Content-Length and Transfer-Encoding" : NULL;
}

static void add_part(apr_array_header_t *parts, const char *bytes, apr_size_t len)
{
    struct iovec *part = apr_array_push(parts);
    part->iov_base = (void *)bytes;
    part->iov_len = len;
}

/* Adds all bytes since the request began, as parts that stay where they are. Returns NULL, or why
 * that is not possible. */
const char *handoff_get_preread(request_rec *r, apr_array_header_t *parts)
{
    recorder *recorder = ap_get_module_config(r->connection->conn_config, &handoff_module);
    const handoff_request *request = handoff_request_of(r);
    ap_filter_t *f = recorder != NULL ? recorder->filter : NULL;
    if (f == NULL || r->connection->input_filters != f)
        return apr_psprintf(r->pool, "the filter %s reads its connection",
                            r->connection->input_filters->frec->name);
    for (f = f->next; f->next != NULL; f = f->next)
        if (!keeps_nothing(f))
            return apr_psprintf(r->pool, "the filter %s reads its connection", f->frec->name);
    if (strcasecmp(f->frec->name, "core_in") != 0)
        return "its connection is not read by Apache's core";
    if (request->incomplete)
        return "what was read of it is too large";

    /* Between two requests an empty line means nothing, but not every server knows. */
    const char *bytes = request->read.buf;
    apr_size_t len = request->read.strlen;
    while (len > 0 && (*bytes == '\r' || *bytes == '\n')) {
        bytes++;
        len--;
    }
    if (len == 0)
        return "its head was not kept";
    const char *why = find_ambiguity(bytes, len);
    if (why != NULL)
        return why;
    add_part(parts, bytes, len);

    core_net_rec *net = f->ctx;
    apr_bucket_brigade *received = net->in_ctx->b;
    for (apr_bucket *b = APR_BRIGADE_FIRST(received); b != APR_BRIGADE_SENTINEL(received);
         b = APR_BUCKET_NEXT(b)) {
        if (b->length == (apr_size_t)-1)
            break; /* the socket: what follows is still in there */
        if (b->length > 0 && apr_bucket_read(b, &bytes, &len, APR_NONBLOCK_READ) != APR_SUCCESS)
            return "what was received of it cannot be read";
        if (b->length > 0)
            add_part(parts, bytes, len);
    }
    return NULL;
}

void handoff_register_record(void)
{
    record_filter = ap_register_input_filter("HANDOFF_IN", record_input, NULL,
                                             AP_FTYPE_CONNECTION);
    ap_hook_pre_connection(add_recorder, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_pre_read_request(begin_request, NULL, NULL, APR_HOOK_FIRST);
}

#pragma GCC visibility pop
