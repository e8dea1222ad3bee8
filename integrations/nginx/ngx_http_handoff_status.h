/* Between the files that show handoff_status. */
#ifndef NGX_HTTP_HANDOFF_STATUS_H
#define NGX_HTTP_HANDOFF_STATUS_H

#include "ngx_http_handoff.h"
#include "ngx_handoff_status.h"

#pragma GCC visibility push(hidden)

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


extern char  *ngx_http_handoff_states[NGX_HANDOFF_STATES];

void ngx_http_handoff_print(ngx_http_handoff_writer_t *w, const char *fmt, ...);
u_char *ngx_http_handoff_quote(u_char *buf, size_t size, char *text);

void ngx_http_handoff_prometheus(ngx_http_handoff_writer_t *w, ngx_http_handoff_report_t *report);

#pragma GCC visibility pop

#endif
