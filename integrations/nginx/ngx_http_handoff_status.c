/* handoff_status: what all workers know of their backends, as JSON or for Prometheus. */
#include "ngx_http_handoff_status.h"

#pragma GCC visibility push(hidden)

/* No line that is printed at once is longer. */
#define NGX_HTTP_HANDOFF_LINE    4096
#define NGX_HTTP_HANDOFF_BUFFER  65536


static ngx_int_t ngx_http_handoff_format(ngx_http_request_t *r);
static ngx_int_t ngx_http_handoff_send_report(ngx_http_request_t *r,
    ngx_http_handoff_writer_t *w);
static void ngx_http_handoff_json(ngx_http_handoff_writer_t *w, ngx_http_handoff_report_t *report);
static void ngx_http_handoff_json_target(ngx_http_handoff_writer_t *w,
    ngx_http_handoff_report_t *report, ngx_handoff_summary_t *target);
static void ngx_http_handoff_json_backend(ngx_http_handoff_writer_t *w,
    ngx_handoff_summary_t *backend);
static void ngx_http_handoff_json_counts(ngx_http_handoff_writer_t *w,
    ngx_handoff_counts_t *counts);


char  *ngx_http_handoff_states[NGX_HANDOFF_STATES] = {
    "unknown", "connecting", "ready", "draining", "resting", "down"
};


/* ---- the location ---- */

ngx_int_t
ngx_http_handoff_status_handler(ngx_http_request_t *r)
{
    ngx_int_t                   rc, json;
    ngx_http_handoff_writer_t   w;
    ngx_http_handoff_report_t   report;
    ngx_handoff_main_conf_t    *main;

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    json = ngx_http_handoff_format(r);
    if (json == NGX_DECLINED) {
        return NGX_HTTP_BAD_REQUEST;
    }

    main = ngx_http_get_module_main_conf(r, ngx_http_handoff_module);
    ngx_handoff_publish_all(main);

    if (ngx_array_init(&report.summaries, r->pool, 16, sizeof(ngx_handoff_summary_t)) != NGX_OK
        || ngx_array_init(&report.pids, r->pool, 8, sizeof(ngx_pid_t)) != NGX_OK
        || ngx_handoff_read_status(main->zone, &report.summaries, &report.pids, &report.lost)
           != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_memzero(&w, sizeof(ngx_http_handoff_writer_t));
    w.pool = r->pool;
    w.next = &w.first;

    if (json) {
        ngx_str_set(&r->headers_out.content_type, "application/json");
        ngx_http_handoff_json(&w, &report);

    } else {
        ngx_str_set(&r->headers_out.content_type, "text/plain; version=0.0.4; charset=utf-8");
        ngx_http_handoff_prometheus(&w, &report);
    }

    return ngx_http_handoff_send_report(r, &w);
}


/* 1 for JSON, 0 for Prometheus, NGX_DECLINED for what is neither. */
static ngx_int_t
ngx_http_handoff_format(ngx_http_request_t *r)
{
    ngx_str_t  format;

    if (ngx_http_arg(r, (u_char *) "format", 6, &format) != NGX_OK
        || (format.len == 4 && ngx_strncmp(format.data, "json", 4) == 0))
    {
        return 1;
    }

    if (format.len == 10 && ngx_strncmp(format.data, "prometheus", 10) == 0) {
        return 0;
    }

    return NGX_DECLINED;
}


static ngx_int_t
ngx_http_handoff_send_report(ngx_http_request_t *r, ngx_http_handoff_writer_t *w)
{
    ngx_int_t  rc;

    if (w->failed || w->b == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    w->b->last_buf = (r == r->main) ? 1 : 0;
    w->b->last_in_chain = 1;
    *w->next = NULL;

    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;
    r->headers_out.status = NGX_HTTP_OK;
    r->headers_out.content_length_n = w->len;

    rc = ngx_http_send_header(r);
    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    return ngx_http_output_filter(r, w->first);
}


void
ngx_http_handoff_print(ngx_http_handoff_writer_t *w, const char *fmt, ...)
{
    u_char       *p;
    va_list       args;
    ngx_chain_t  *cl;

    if (w->failed) {
        return;
    }

    if (w->b == NULL || w->b->end - w->b->last < NGX_HTTP_HANDOFF_LINE) {
        cl = ngx_alloc_chain_link(w->pool);
        w->b = ngx_create_temp_buf(w->pool, NGX_HTTP_HANDOFF_BUFFER);

        if (cl == NULL || w->b == NULL) {
            w->failed = 1;
            return;
        }

        cl->buf = w->b;
        *w->next = cl;
        w->next = &cl->next;
    }

    va_start(args, fmt);
    p = ngx_vslprintf(w->b->last, w->b->end, fmt, args);
    va_end(args);

    w->len += p - w->b->last;
    w->b->last = p;
}


/* For a string of JSON or a label of Prometheus: neither has other bytes to be escaped. */
u_char *
ngx_http_handoff_quote(u_char *buf, size_t size, char *text)
{
    u_char  *p = buf, *last = buf + size - 2;

    for ( /* void */ ; *text && p < last; text++) {
        if (*text == '"' || *text == '\\') {
            *p++ = '\\';
        }

        *p++ = *text;
    }

    *p = '\0';

    return buf;
}


/* ---- JSON ---- */

static void
ngx_http_handoff_json(ngx_http_handoff_writer_t *w, ngx_http_handoff_report_t *report)
{
    ngx_uint_t              i, n = 0;
    ngx_pid_t              *pid = report->pids.elts;
    ngx_handoff_summary_t  *summary = report->summaries.elts;

    ngx_http_handoff_print(w, "{\n  \"version\": \"%s\",\n  \"workers\": [", handoff_version());

    for (i = 0; i < report->pids.nelts; i++) {
        ngx_http_handoff_print(w, "%s%P", i ? ", " : "", pid[i]);
    }

    ngx_http_handoff_print(w, "],\n  \"lost\": %ui,\n  \"targets\": [", report->lost);

    for (i = 0; i < report->summaries.nelts; i++) {
        if (summary[i].path[0] == '\0') {
            ngx_http_handoff_print(w, n++ ? ",\n    " : "\n    ");
            ngx_http_handoff_json_target(w, report, &summary[i]);
        }
    }

    ngx_http_handoff_print(w, "\n  ]\n}\n");
}


static void
ngx_http_handoff_json_target(ngx_http_handoff_writer_t *w, ngx_http_handoff_report_t *report,
    ngx_handoff_summary_t *target)
{
    u_char                  text[2 * NGX_HANDOFF_MESSAGE_LEN];
    ngx_uint_t              i, n = 0;
    ngx_handoff_summary_t  *summary = report->summaries.elts;

    ngx_http_handoff_print(w, "{\"module\": \"%s\", ", target->stream ? "stream" : "http");
    ngx_http_handoff_print(w, "\"target\": \"%s\", ",
                           ngx_http_handoff_quote(text, sizeof(text), target->target));
    ngx_http_handoff_print(w, "\"message\": \"%s\", ",
                           ngx_http_handoff_quote(text, sizeof(text), target->present.message));
    ngx_http_handoff_print(w, "\"offers\": %uL, \"adopted\": %uL, \"gone\": %uL, "
                           "\"failovers\": %uL, \"queued\": %uL, \"waiting\": %uL, "
                           "\"in_flight\": %uL, \"room\": %uL, \"microseconds\": %uL, ",
                           target->counts.offers, target->counts.adopted, target->counts.gone,
                           target->counts.failovers, target->counts.queued,
                           target->present.waiting, target->present.in_flight,
                           target->present.room, target->counts.microseconds);
    ngx_http_handoff_json_counts(w, &target->counts);
    ngx_http_handoff_print(w, ", \"backends\": [");

    for (i = 0; i < report->summaries.nelts; i++) {
        if (summary[i].path[0] && summary[i].stream == target->stream
            && ngx_strcmp(summary[i].target, target->target) == 0)
        {
            ngx_http_handoff_print(w, n++ ? ",\n      " : "\n      ");
            ngx_http_handoff_json_backend(w, &summary[i]);
        }
    }

    ngx_http_handoff_print(w, "]}");
}


static void
ngx_http_handoff_json_backend(ngx_http_handoff_writer_t *w, ngx_handoff_summary_t *backend)
{
    u_char                  text[2 * NGX_HANDOFF_PATH_LEN];
    uint64_t                now = ngx_handoff_now_ns();
    ngx_uint_t              i, n = 0;
    ngx_handoff_present_t  *present = &backend->present;

    ngx_http_handoff_print(w, "{\"path\": \"%s\", ",
                           ngx_http_handoff_quote(text, sizeof(text), backend->path));
    ngx_http_handoff_print(w, "\"state\": \"%s\", \"states\": {",
                           ngx_http_handoff_states[present->state]);

    for (i = 0; i < NGX_HANDOFF_STATES; i++) {
        if (backend->states[i]) {
            ngx_http_handoff_print(w, "%s\"%s\": %ui", n++ ? ", " : "",
                                   ngx_http_handoff_states[i], backend->states[i]);
        }
    }

    ngx_http_handoff_print(w, "}, \"status\": \"%s\", \"errno\": %d, ",
                           handoff_status_name(present->status), present->error);
    ngx_http_handoff_print(w, "\"message\": \"%s\", ",
                           ngx_http_handoff_quote(text, sizeof(text), present->message));
    ngx_http_handoff_print(w, "\"since_ms\": %uL, ",
                           (now - ngx_min(present->since_ns, now)) / 1000000);

    if (present->next_ns) {
        ngx_http_handoff_print(w, "\"next_ms\": %uL, ",
                               (present->next_ns - ngx_min(now, present->next_ns)) / 1000000);

    } else {
        ngx_http_handoff_print(w, "\"next_ms\": null, ");
    }

    ngx_http_handoff_print(w, "\"weight\": %uD, \"backup\": %s, \"down\": %s, "
                           "\"in_flight\": %uL, \"room\": %uL, "
                           "\"connects\": %uL, \"failed_connects\": %uL, "
                           "\"offers\": %uL, \"adopted\": %uL, \"taken_back\": %uL, ",
                           present->weight,
                           (present->flags & HANDOFF_BACKEND_BACKUP) ? "true" : "false",
                           (present->flags & HANDOFF_BACKEND_OFF) ? "true" : "false",
                           present->in_flight, present->room, backend->counts.connects,
                           backend->counts.failed_connects, backend->counts.offers,
                           backend->counts.adopted, backend->counts.gone);
    ngx_http_handoff_json_counts(w, &backend->counts);
    ngx_http_handoff_print(w, "}");
}


static void
ngx_http_handoff_json_counts(ngx_http_handoff_writer_t *w, ngx_handoff_counts_t *counts)
{
    ngx_uint_t  i, n = 0;

    ngx_http_handoff_print(w, "\"fallbacks\": {");

    for (i = 0; i < 32; i++) {
        if (counts->fallbacks[i]) {
            ngx_http_handoff_print(w, "%s\"%s\": %uL", n++ ? ", " : "", handoff_reason_name(i),
                                   counts->fallbacks[i]);
        }
    }

    ngx_http_handoff_print(w, "}, \"refusals\": {");

    for (i = 0, n = 0; i < 64; i++) {
        if (counts->refusals[i]) {
            ngx_http_handoff_print(w, "%s\"%s\": %uL", n++ ? ", " : "",
                                   handoff_status_name(-(handoff_status) i), counts->refusals[i]);
        }
    }

    ngx_http_handoff_print(w, "}, \"histogram\": [");

    for (i = 0; i < 32; i++) {
        ngx_http_handoff_print(w, "%s%uL", i ? ", " : "", counts->histogram[i]);
    }

    ngx_http_handoff_print(w, "]");
}

#pragma GCC visibility pop
