/* Between the files of the stream module. */
#ifndef NGX_STREAM_HANDOFF_H
#define NGX_STREAM_HANDOFF_H

#include "ngx_handoff.h"

#include <ngx_stream.h>

#pragma GCC visibility push(hidden)

typedef struct {
    ngx_handoff_conf_t              handoff;      /* first: the directives' offsets are in it */
    ngx_stream_content_handler_pt   fallback;     /* NULL without proxy_pass or its like */
} ngx_stream_handoff_srv_conf_t;


/* ---- ngx_stream_handoff_session.c ---- */

/* The handler of a server with handoff_pass. */
void ngx_stream_handoff_handler(ngx_stream_session_t *s);

#pragma GCC visibility pop

extern ngx_module_t  ngx_stream_handoff_module;

#endif
