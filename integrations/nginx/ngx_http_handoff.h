/* Between the files of the http module. */
#ifndef NGX_HTTP_HANDOFF_H
#define NGX_HTTP_HANDOFF_H

#include <ngx_http.h>

#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

/*
 * Everything that was read from the client for this request and behind it: the head as it came,
 * up to `head_end` in nginx's buffers; the body, if nginx has read it; what is pipelined. NGX_OK;
 * NGX_DECLINED, with the reason in `why`, if that can't be told any more.
 */
ngx_int_t ngx_http_handoff_preread(ngx_http_request_t *r, u_char *head_end,
    ngx_handoff_room_t *room, ngx_str_t *preread, char **why);

#pragma GCC visibility pop

#endif
