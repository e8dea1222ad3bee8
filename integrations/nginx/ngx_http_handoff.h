/* Between the files of the http module. */
#ifndef NGX_HTTP_HANDOFF_H
#define NGX_HTTP_HANDOFF_H

#include <ngx_http.h>

#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

typedef struct {
    ngx_uint_t             used;         /* unsigned used:1; some location here hands over */
} ngx_http_handoff_srv_conf_t;

/* Of a request. It outlives internal redirects, so it is found in the pool's cleanup list. */
typedef struct {
    ngx_handoff_offer_t    offer;
    u_char                *head_end;     /* in nginx's buffer, before anything behind it is read */
    ngx_http_upstream_t   *upstream;     /* that the request had at its last offer; NULL: none */
} ngx_http_handoff_ctx_t;


/* ---- ngx_http_handoff_request.c ---- */

/* The handler of a location with handoff_pass. */
ngx_int_t ngx_http_handoff_handler(ngx_http_request_t *r);

/* In the first phase of each request. */
ngx_int_t ngx_http_handoff_begin(ngx_http_request_t *r);

/* NULL if the request's server hands nothing over, or the request has not come to its first phase. */
ngx_http_handoff_ctx_t *ngx_http_handoff_ctx(ngx_http_request_t *r);

/* ---- ngx_http_handoff_preread.c ---- */

/*
 * Adds to `content` everything that was read from the client for this request and behind it: the
 * head as it came, up to `head_end` in nginx's buffers; the body, if nginx has read it; what is
 * pipelined. NULL, or why that cannot be done.
 */
char *ngx_http_handoff_rebuild(ngx_http_request_t *r, u_char *head_end,
    ngx_handoff_content_t *content);

/* ---- ngx_http_handoff_status.c ---- */

/* The handler of a location with handoff_status. */
ngx_int_t ngx_http_handoff_status_handler(ngx_http_request_t *r);

#pragma GCC visibility pop

extern ngx_module_t  ngx_http_handoff_module;

#endif
