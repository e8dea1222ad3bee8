/* handoff_status in the text format of Prometheus: all samples of a metric are together. */
#include "ngx_http_handoff_status.h"

#pragma GCC visibility push(hidden)

/* A count or gauge for Prometheus: where it is in ngx_handoff_summary_t. */
typedef struct {
    char                   *name;
    char                   *help;
    size_t                  offset;
} ngx_http_handoff_metric_t;


static void ngx_http_handoff_metrics(ngx_http_handoff_writer_t *w,
    ngx_http_handoff_report_t *report, ngx_uint_t backends);
static void ngx_http_handoff_head(ngx_http_handoff_writer_t *w, char *prefix, char *name,
    char *type, char *help);
static void ngx_http_handoff_labels(ngx_http_handoff_writer_t *w, ngx_handoff_summary_t *summary,
    char *prefix, char *name);
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


void
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
            for (i = HANDOFF_STATE_CONNECTING; i < NGX_HANDOFF_STATES; i++) {
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
