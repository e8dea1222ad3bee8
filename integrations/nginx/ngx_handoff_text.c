/* Strings with variables that go with an offer, and what $handoff_* variables say about it. */
#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

/* A literal, or a variable if `index` is not NGX_ERROR. */
typedef struct {
    ngx_str_t   literal;
    ngx_int_t   index;
} ngx_handoff_part_t;


static ngx_int_t ngx_handoff_add_part(ngx_handoff_text_t *text, ngx_str_t *literal,
    ngx_int_t index);
static ngx_int_t ngx_handoff_parse_text(ngx_conf_t *cf, ngx_str_t *source,
    ngx_handoff_index_pt index, ngx_handoff_text_t *text);


/* The arguments of a directive, one behind the other; "escape=json" may come first. */
char *
ngx_handoff_set_text(ngx_conf_t *cf, ngx_handoff_index_pt index, ngx_handoff_text_t **result)
{
    ngx_str_t           *args = cf->args->elts;
    ngx_uint_t           i = 1;
    ngx_handoff_text_t  *text;

    if (*result != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    text = ngx_pcalloc(cf->pool, sizeof(ngx_handoff_text_t));
    if (text == NULL || ngx_array_init(&text->parts, cf->pool, 4, sizeof(ngx_handoff_part_t))
                        != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    if (cf->args->nelts > 2 && ngx_strncmp(args[1].data, "escape=", 7) == 0) {

        if (ngx_strcmp(args[1].data + 7, "json") == 0) {
            text->json = 1;

        } else if (ngx_strcmp(args[1].data + 7, "none") != 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "unknown escaping \"%V\", it is \"json\" or "
                               "\"none\"", &args[1]);
            return NGX_CONF_ERROR;
        }

        i = 2;
    }

    for ( /* void */ ; i < cf->args->nelts; i++) {
        if (ngx_handoff_parse_text(cf, &args[i], index, text) != NGX_OK) {
            return NGX_CONF_ERROR;
        }
    }

    *result = text;
    return NGX_CONF_OK;
}


/* Literals, $name and ${name}. */
static ngx_int_t
ngx_handoff_parse_text(ngx_conf_t *cf, ngx_str_t *source, ngx_handoff_index_pt index,
    ngx_handoff_text_t *text)
{
    u_char      ch, *p, *end, *start;
    ngx_int_t   found;
    ngx_str_t   name;
    ngx_uint_t  brace;

    p = source->data;
    end = p + source->len;

    while (p < end) {
        start = p;

        while (p < end && *p != '$') {
            p++;
        }

        if (p > start) {
            name.data = start;
            name.len = p - start;

            if (ngx_handoff_add_part(text, &name, NGX_ERROR) != NGX_OK) {
                return NGX_ERROR;
            }

            continue;
        }

        p++;
        brace = (p < end && *p == '{');
        p += brace;
        name.data = p;

        while (p < end) {
            ch = *p;

            if (!(ch >= 'a' && ch <= 'z') && !(ch >= 'A' && ch <= 'Z')
                && !(ch >= '0' && ch <= '9') && ch != '_')
            {
                break;
            }

            p++;
        }

        name.len = p - name.data;

        if (name.len == 0 || (brace && (p == end || *p != '}'))) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid variable name in \"%V\"", source);
            return NGX_ERROR;
        }

        p += brace;

        found = index(cf, &name);
        if (found == NGX_ERROR || ngx_handoff_add_part(text, &name, found) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_handoff_add_part(ngx_handoff_text_t *text, ngx_str_t *literal, ngx_int_t index)
{
    ngx_handoff_part_t  *part;

    part = ngx_array_push(&text->parts);
    if (part == NULL) {
        return NGX_ERROR;
    }

    part->literal = *literal;
    part->index = index;

    return NGX_OK;
}


/*
 * Writes a text and a NUL, which is not counted. Variables that are not found are empty. NULL, or
 * why it cannot be written.
 */
char *
ngx_handoff_write_text(ngx_handoff_text_t *text, ngx_handoff_value_pt value, void *session,
    ngx_handoff_content_t *content, ngx_str_t *written)
{
    char                  *why;
    size_t                 len;
    u_char                *p;
    ngx_str_t             *values;
    ngx_uint_t             i;
    ngx_handoff_part_t    *part;
    ngx_variable_value_t  *v;

    ngx_str_null(written);

    if (text == NULL) {
        return NULL;
    }

    /* Each variable is asked once: it may have another value, and length, the next time. */
    values = ngx_palloc(content->pool, text->parts.nelts * sizeof(ngx_str_t));
    if (values == NULL) {
        return "there is no memory";
    }

    part = text->parts.elts;
    len = 0;

    for (i = 0; i < text->parts.nelts; i++) {

        values[i] = part[i].literal;

        if (part[i].index != NGX_ERROR) {
            v = value(session, part[i].index);

            if (v == NULL || v->not_found) {
                ngx_str_null(&values[i]);

            } else {
                values[i].data = v->data;
                values[i].len = v->len;
            }

            if (text->json) {
                len += ngx_escape_json(NULL, values[i].data, values[i].len);
            }
        }

        len += values[i].len;
    }

    why = ngx_handoff_allocate(content, len + 1, &p);
    if (why) {
        return why;
    }

    written->data = p;
    written->len = len;
    content->room -= len;

    for (i = 0; i < text->parts.nelts; i++) {

        if (part[i].index != NGX_ERROR && text->json) {
            p = (u_char *) ngx_escape_json(p, values[i].data, values[i].len);

        } else {
            p = ngx_cpymem(p, values[i].data, values[i].len);
        }
    }

    *p = '\0';

    return NULL;
}


ngx_int_t
ngx_handoff_outcome_text(ngx_pool_t *pool, ngx_variable_value_t *v, ngx_handoff_offer_t *offer,
    uintptr_t which)
{
    char    *text;
    u_char  *p;

    v->not_found = 1;

    if (offer == NULL || offer->outcome == 0) {
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
