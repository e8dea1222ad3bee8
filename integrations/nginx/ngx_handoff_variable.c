/* What the $handoff_* variables of both modules say of an offer and of its connection. */
#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

enum {
    NGX_HANDOFF_OUTCOME,
    NGX_HANDOFF_REASON,
    NGX_HANDOFF_WAIT,
    NGX_HANDOFF_BACKEND,
    NGX_HANDOFF_TRIES,
    NGX_HANDOFF_TLS_DIRECTIONS,
    NGX_HANDOFF_VARIABLES
};


/* The end of this list has no name. */
ngx_str_t  ngx_handoff_variables[] = {
    [NGX_HANDOFF_OUTCOME] = ngx_string("handoff_outcome"),
    [NGX_HANDOFF_REASON] = ngx_string("handoff_reason"),
    [NGX_HANDOFF_WAIT] = ngx_string("handoff_wait"),
    [NGX_HANDOFF_BACKEND] = ngx_string("handoff_backend"),
    [NGX_HANDOFF_TRIES] = ngx_string("handoff_tries"),
    [NGX_HANDOFF_TLS_DIRECTIONS] = ngx_string("handoff_tls"),
    [NGX_HANDOFF_VARIABLES] = ngx_null_string
};


ngx_int_t
ngx_handoff_get_variable(ngx_connection_t *c, ngx_pool_t *pool, ngx_variable_value_t *v,
    ngx_handoff_offer_t *offer, uintptr_t which)
{
    char    *text;
    u_char  *p;

    v->not_found = 1;

    if (which != NGX_HANDOFF_TLS_DIRECTIONS && (offer == NULL || offer->outcome == 0)) {
        return NGX_OK;
    }

    v->valid = 1;
    v->no_cacheable = 0;

    switch (which) {

    case NGX_HANDOFF_OUTCOME:
        text = (offer->outcome == HANDOFF_ADOPTED) ? "adopted" : "fallback";
        break;

    case NGX_HANDOFF_REASON:
        if (offer->reason == HANDOFF_REASON_NONE) {
            return NGX_OK;
        }

        text = (char *) handoff_reason_name(offer->reason);
        break;

    case NGX_HANDOFF_TLS_DIRECTIONS:
        text = ngx_handoff_tls_name(c);
        if (text == NULL) {
            return NGX_OK;
        }

        break;

    case NGX_HANDOFF_BACKEND:
        if (offer->backend.len) {
            v->not_found = 0;
            v->data = offer->backend.data;
            v->len = offer->backend.len;
        }

        return NGX_OK;

    case NGX_HANDOFF_TRIES:
        v->data = ngx_pnalloc(pool, NGX_INT_T_LEN);
        if (v->data == NULL) {
            return NGX_ERROR;
        }

        v->len = ngx_sprintf(v->data, "%ui", offer->tries) - v->data;
        v->not_found = 0;
        return NGX_OK;

    default: /* NGX_HANDOFF_WAIT */
        p = ngx_pnalloc(pool, NGX_INT64_LEN + sizeof(".000000"));
        if (p == NULL) {
            return NGX_ERROR;
        }

        *ngx_sprintf(p, "%uL.%06uL", offer->wait_ns / 1000000000,
                     offer->wait_ns % 1000000000 / 1000) = '\0';
        text = (char *) p;
    }

    v->data = (u_char *) text;
    v->len = ngx_strlen(text);
    v->not_found = 0;

    return NGX_OK;
}

#pragma GCC visibility pop
