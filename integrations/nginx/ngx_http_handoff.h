/* Between the files of the http module. */
#ifndef NGX_HTTP_HANDOFF_H
#define NGX_HTTP_HANDOFF_H

#include <ngx_http.h>

#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

/*
 * Adds to `content` everything that was read from the client for this request and behind it: the
 * head as it came, up to `head_end` in nginx's buffers; the body, if nginx has read it; what is
 * pipelined. NULL, or why that cannot be done.
 */
char *ngx_http_handoff_rebuild(ngx_http_request_t *r, u_char *head_end,
    ngx_handoff_content_t *content);

/* The handler of a location with handoff_status. */
ngx_int_t ngx_http_handoff_status_handler(ngx_http_request_t *r);

#pragma GCC visibility pop

extern ngx_module_t  ngx_http_handoff_module;

#endif
