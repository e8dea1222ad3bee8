/* handoff_status: what all workers know of their backends, as JSON or for Prometheus. */
#include "ngx_http_handoff.h"
#include "ngx_handoff_status.h"

#pragma GCC visibility push(hidden)

/* No line that is printed at once is longer. */
#define NGX_HTTP_HANDOFF_LINE    4096
#define NGX_HTTP_HANDOFF_BUFFER  65536

typedef struct {
    ngx_pool_t             *pool;
    ngx_chain_t            *first;
    ngx_chain_t           **next;
    ngx_buf_t              *b;
    off_t                   len;
    ngx_uint_t              failed;      /* unsigned failed:1; there was no memory */
} ngx_http_handoff_writer_t;


typedef struct {
    ngx_array_t             summaries;   /* of ngx_handoff_summary_t */
    ngx_array_t             pids;        /* of ngx_pid_t, of the workers */
    ngx_uint_t              lost;
} ngx_http_handoff_report_t;


/* A count or gauge for Prometheus: where it is in ngx_handoff_summary_t. */
typedef struct {
    char                   *name;
    char                   *help;
    size_t                  offset;
} ngx_http_handoff_metric_t;

typedef void (*ngx_http_handoff_labels_pt)(ngx_http_handoff_writer_t *w,
    ngx_handoff_summary_t *summary, char *name);


static ngx_int_t ngx_http_handoff_format(ngx_http_request_t *r);
static ngx_int_t ngx_http_handoff_send_report(ngx_http_request_t *r,
    ngx_http_handoff_writer_t *w);
static void ngx_http_handoff_print(ngx_http_handoff_writer_t *w, const char *fmt, ...);
static u_char *ngx_http_handoff_quote(u_char *buf, size_t size, char *text);

static void ngx_http_handoff_json(ngx_http_handoff_writer_t *w, ngx_http_handoff_report_t *report);
static void ngx_http_handoff_json_target(ngx_http_handoff_writer_t *w,
    ngx_http_handoff_report_t *report, ngx_handoff_summary_t *target);
static void ngx_http_handoff_json_backend(ngx_http_handoff_writer_t *w,
    ngx_handoff_summary_t *backend);
static void ngx_http_handoff_json_counts(ngx_http_handoff_writer_t *w,
    ngx_handoff_counts_t *counts);

static void ngx_http_handoff_prometheus(ngx_http_handoff_writer_t *w,
    ngx_http_handoff_report_t *report);
static void ngx_http_handoff_metrics(ngx_http_handoff_writer_t *w,
    ngx_http_handoff_report_t *report, ngx_uint_t backends);
static void ngx_http_handoff_head(ngx_http_handoff_writer_t *w, char *prefix, char *name,
    char *type, char *help);
static void ngx_http_handoff_labels(ngx_http_handoff_writer_t *w, ngx_handoff_summary_t *summary,
    char *name, char *suffix);
static void ngx_http_handoff_histogram(ngx_http_handoff_writer_t *w,
    ngx_handoff_summary_t *summary);


#define NGX_HTTP_HANDOFF_COUNT(field)    offsetof(ngx_handoff_summary_t, counts.field)
#define NGX_HTTP_HANDOFF_PRESENT(field)  offsetof(ngx_handoff_summary_t, present.field)
#define NGX_HTTP_HANDOFF_VALUE(summary, metric)                                                   \
    (*(uint64_t *) ((u_char *) (summary) + (metric)->offset))

static ngx_http_handoff_metric_t  ngx_http_handoff_target_metrics[] = {
    { "offers_total", "Clients that were to be handed over.", NGX_HTTP_HANDOFF_COUNT(offers) },
    { "adopted_total", "Those that a backend adopted.", NGX_HTTP_HANDOFF_COUNT(adopted) },
    { "gone_total", "Those that went away before that was decided.",
      NGX_HTTP_HANDOFF_COUNT(gone) },
    { "failovers_total", "Offers that went on from one backend to another.",
      NGX_HTTP_HANDOFF_COUNT(failovers) },
    { "queued_total", "Clients that waited for room.", NGX_HTTP_HANDOFF_COUNT(queued) },
    { NULL, NULL, 0 }
};

static ngx_http_handoff_metric_t  ngx_http_handoff_target_gauges[] = {
    { "in_flight", "Offers without a verdict.", NGX_HTTP_HANDOFF_PRESENT(in_flight) },
    { "waiting", "Clients that wait for room.", NGX_HTTP_HANDOFF_PRESENT(waiting) },
    { "room", "How many offers would be taken.", NGX_HTTP_HANDOFF_PRESENT(room) },
    { NULL, NULL, 0 }
};

static ngx_http_handoff_metric_t  ngx_http_handoff_backend_metrics[] = {
    { "offers_total", "Offers that the backend was sent.", NGX_HTTP_HANDOFF_COUNT(offers) },
    { "adopted_total", "Those that it adopted.", NGX_HTTP_HANDOFF_COUNT(adopted) },
    { "taken_back_total", "Those whose clients went away.", NGX_HTTP_HANDOFF_COUNT(gone) },
    { "connects_total", "Channels to it that were made.", NGX_HTTP_HANDOFF_COUNT(connects) },
    { "failed_connects_total", "Attempts to connect that failed.",
      NGX_HTTP_HANDOFF_COUNT(failed_connects) },
    { NULL, NULL, 0 }
};

static ngx_http_handoff_metric_t  ngx_http_handoff_backend_gauges[] = {
    { "in_flight", "Offers without a verdict.", NGX_HTTP_HANDOFF_PRESENT(in_flight) },
    { "room", "How many offers it would take.", NGX_HTTP_HANDOFF_PRESENT(room) },
    { NULL, NULL, 0 }
};

static char  *ngx_http_handoff_states[NGX_HANDOFF_STATES] = {
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


static void
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
static u_char *
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
    u_char                  text[2 * NGX_HANDOFF_MESSAGE_LEN];
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


/* ---- Prometheus: all samples of a metric are together ---- */

static void
ngx_http_handoff_prometheus(ngx_http_handoff_writer_t *w, ngx_http_handoff_report_t *report)
{
    ngx_http_handoff_head(w, "handoff_", "workers", "gauge", "Workers of nginx.");
    ngx_http_handoff_print(w, "handoff_workers %ui\n", report->pids.nelts);

    ngx_http_handoff_head(w, "handoff_", "status_lost", "counter",
                          "What did not fit into handoff_status_zone.");
    ngx_http_handoff_print(w, "handoff_status_lost %ui\n", report->lost);

    ngx_http_handoff_metrics(w, report, 0);
    ngx_http_handoff_metrics(w, report, 1);
}


/* Those of targets, or those of backends. */
static void
ngx_http_handoff_metrics(ngx_http_handoff_writer_t *w, ngx_http_handoff_report_t *report,
    ngx_uint_t backends)
{
    char                       *prefix;
    ngx_uint_t                  i, k, gauges;
    ngx_handoff_summary_t      *s, *end;
    ngx_http_handoff_metric_t  *metric;

    prefix = backends ? "handoff_backend_" : "handoff_";
    end = (ngx_handoff_summary_t *) report->summaries.elts + report->summaries.nelts;

#define NGX_HTTP_HANDOFF_EACH                                                                     \
    for (s = report->summaries.elts; s < end; s++)                                                \
        if ((s->path[0] != '\0') == backends)

    for (gauges = 0; gauges < 2; gauges++) {

        if (backends) {
            metric = gauges ? ngx_http_handoff_backend_gauges : ngx_http_handoff_backend_metrics;
        } else {
            metric = gauges ? ngx_http_handoff_target_gauges : ngx_http_handoff_target_metrics;
        }

        for ( /* void */ ; metric->name; metric++) {
            ngx_http_handoff_head(w, prefix, metric->name, gauges ? "gauge" : "counter",
                                  metric->help);

            NGX_HTTP_HANDOFF_EACH {
                ngx_http_handoff_labels(w, s, prefix, metric->name);
                ngx_http_handoff_print(w, "} %uL\n", NGX_HTTP_HANDOFF_VALUE(s, metric));
            }
        }
    }

    if (backends) {
        ngx_http_handoff_head(w, prefix, "state", "gauge",
                              "How many workers see the backend in this state.");

        NGX_HTTP_HANDOFF_EACH {
            for (i = HANDOFF_BACKEND_CONNECTING; i < NGX_HANDOFF_STATES; i++) {
                ngx_http_handoff_labels(w, s, prefix, "state");
                ngx_http_handoff_print(w, ",state=\"%s\"} %ui\n", ngx_http_handoff_states[i],
                                       s->states[i]);
            }
        }
    }

    ngx_http_handoff_head(w, prefix, "fallbacks_total", "counter",
                          backends ? "Offers that it did not adopt, by reason."
                                   : "Clients that no backend adopted, by reason.");

    NGX_HTTP_HANDOFF_EACH {
        for (k = 0; k < 32; k++) {
            if (s->counts.fallbacks[k]) {
                ngx_http_handoff_labels(w, s, prefix, "fallbacks_total");
                ngx_http_handoff_print(w, ",reason=\"%s\"} %uL\n", handoff_reason_name(k),
                                       s->counts.fallbacks[k]);
            }
        }
    }

    ngx_http_handoff_head(w, prefix, "refusals_total", "counter",
                          "Offers that were refused before they were sent, by status.");

    NGX_HTTP_HANDOFF_EACH {
        for (k = 0; k < 64; k++) {
            if (s->counts.refusals[k]) {
                ngx_http_handoff_labels(w, s, prefix, "refusals_total");
                ngx_http_handoff_print(w, ",status=\"%s\"} %uL\n",
                                       handoff_status_name(-(handoff_status) k),
                                       s->counts.refusals[k]);
            }
        }
    }

    ngx_http_handoff_head(w, prefix, "seconds", "histogram",
                          "The time from an offer to its verdict.");

    NGX_HTTP_HANDOFF_EACH {
        ngx_http_handoff_histogram(w, s);
    }

#undef NGX_HTTP_HANDOFF_EACH
}


static void
ngx_http_handoff_head(ngx_http_handoff_writer_t *w, char *prefix, char *name, char *type,
    char *help)
{
    ngx_http_handoff_print(w, "# HELP %s%s %s\n# TYPE %s%s %s\n", prefix, name, help, prefix, name,
                           type);
}


/* The beginning of a sample; more labels, or "}" and the value, follow. */
static void
ngx_http_handoff_labels(ngx_http_handoff_writer_t *w, ngx_handoff_summary_t *summary, char *prefix,
    char *name)
{
    u_char  target[2 * NGX_HANDOFF_TARGET_LEN], path[2 * NGX_HANDOFF_PATH_LEN];

    ngx_http_handoff_print(w, "%s%s{module=\"%s\",target=\"%s\"", prefix, name,
                           summary->stream ? "stream" : "http",
                           ngx_http_handoff_quote(target, sizeof(target), summary->target));

    if (summary->path[0]) {
        ngx_http_handoff_print(w, ",backend=\"%s\"",
                               ngx_http_handoff_quote(path, sizeof(path), summary->path));
    }
}


/* The library does not add up a backend's times: its histogram has no sum. */
static void
ngx_http_handoff_histogram(ngx_http_handoff_writer_t *w, ngx_handoff_summary_t *summary)
{
    char        *prefix = summary->path[0] ? "handoff_backend_" : "handoff_";
    uint64_t     count = 0, bound;
    ngx_uint_t   i;

    for (i = 0; i < 32; i++) {
        count += summary->counts.histogram[i];
        bound = (uint64_t) 1 << i;

        ngx_http_handoff_labels(w, summary, prefix, "seconds_bucket");

        if (i < 31) {
            ngx_http_handoff_print(w, ",le=\"%uL.%06uL\"} %uL\n", bound / 1000000,
                                   bound % 1000000, count);
        } else {
            ngx_http_handoff_print(w, ",le=\"+Inf\"} %uL\n", count);
        }
    }

    if (summary->path[0] == '\0') {
        ngx_http_handoff_labels(w, summary, prefix, "seconds_sum");
        ngx_http_handoff_print(w, "} %uL.%06uL\n", summary->counts.microseconds / 1000000,
                               summary->counts.microseconds % 1000000);
    }

    ngx_http_handoff_labels(w, summary, prefix, "seconds_count");
    ngx_http_handoff_print(w, "} %uL\n", count);
}

#pragma GCC visibility pop
