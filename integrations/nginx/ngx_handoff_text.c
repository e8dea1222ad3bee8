/* Strings with variables that go with an offer. */
#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

/* A literal, or a variable if `index` is not NGX_ERROR. */
typedef struct {
    ngx_str_t   literal;
    ngx_int_t   index;
} ngx_handoff_part_t;


static ngx_int_t ngx_handoff_add_member(ngx_conf_t *cf, ngx_str_t *source,
    ngx_handoff_index_pt index, ngx_handoff_text_t *text);
static size_t ngx_handoff_name_len(ngx_str_t *source);
static ngx_int_t ngx_handoff_add_part(ngx_handoff_text_t *text, ngx_str_t *literal,
    ngx_int_t index);
static ngx_int_t ngx_handoff_parse_text(ngx_conf_t *cf, ngx_str_t *source,
    ngx_handoff_index_pt index, ngx_handoff_text_t *text);


/*
 * A path as it may stand in the log: whoever may make a socket in a directory chooses its name. `shown`
 * has room for NGX_HANDOFF_SHOWN bytes.
 */
ngx_str_t
ngx_handoff_show(u_char *shown, u_char *path, size_t len)
{
    size_t     i;
    ngx_str_t  text;

    text.len = ngx_min(len, NGX_HANDOFF_SHOWN);
    text.data = shown;

    for (i = 0; i < text.len; i++) {
        shown[i] = (path[i] < 0x20 || path[i] == 0x7f) ? '?' : path[i];
    }

    return text;
}


/*
 * The arguments of a directive, one behind the other; "escape=json" may come first. Or "default", and
 * more members, if `known` is not NULL.
 */
char *
ngx_handoff_set_text(ngx_conf_t *cf, ngx_handoff_index_pt index, ngx_handoff_known_pt known,
    ngx_handoff_text_t **result)
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

    if (known && ngx_strcmp(args[1].data, "default") == 0) {
        text->json = 1;
        text->standard = ngx_handoff_find_values(cf, index, known);
        if (text->standard == NULL) {
            return NGX_CONF_ERROR;
        }

        for (i = 2; i < cf->args->nelts; i++) {
            if (ngx_handoff_add_member(cf, &args[i], index, text) != NGX_OK) {
                return NGX_CONF_ERROR;
            }
        }

        *result = text;
        return NGX_CONF_OK;
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

    /* A name alone, or before "name=string", is no text that a backend could read. */
    if (known && i == 1 && args[1].len && ngx_handoff_name_len(&args[1]) == args[1].len
        && (cf->args->nelts == 2 || args[2].data[ngx_handoff_name_len(&args[2])] == '='))
    {
        ngx_conf_log_error(NGX_LOG_WARN, cf, 0, "backends get the word \"%V\" as their metadata; what "
                           "nginx knows of a connection is \"handoff_metadata default\"", &args[1]);
    }

    for ( /* void */ ; i < cf->args->nelts; i++) {
        if (ngx_handoff_parse_text(cf, &args[i], index, text) != NGX_OK) {
            return NGX_CONF_ERROR;
        }
    }

    *result = text;
    return NGX_CONF_OK;
}


/* How many bytes at its beginning can be those of a name. */
static size_t
ngx_handoff_name_len(ngx_str_t *source)
{
    u_char  *p = source->data, *end = source->data + source->len;

    while (p < end
           && ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9')
               || *p == '_'))
    {
        p++;
    }

    return p - source->data;
}


/* "name=string": another member of the standard metadata. */
static ngx_int_t
ngx_handoff_add_member(ngx_conf_t *cf, ngx_str_t *source, ngx_handoff_index_pt index,
    ngx_handoff_text_t *text)
{
    u_char     *p, *end;
    ngx_str_t   name, value, begin, *other, quote = ngx_string("\"");

    name.data = source->data;
    name.len = ngx_handoff_name_len(source);

    p = source->data + name.len;
    end = source->data + source->len;

    if (name.len == 0 || p == end || *p != '=') {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"%V\" is not \"name=string\"", source);
        return NGX_ERROR;
    }

    if (ngx_handoff_is_member(&name)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"%V\" is a member of \"default\"", &name);
        return NGX_ERROR;
    }

    for (other = (ngx_str_t *) cf->args->elts + 2; other < source; other++) {
        if (ngx_handoff_name_len(other) == name.len
            && ngx_strncmp(other->data, name.data, name.len) == 0)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "there is another \"%V\" before \"%V\"", &name,
                               source);
            return NGX_ERROR;
        }
    }

    p++;

    begin.len = name.len + sizeof(",\"\":\"") - 1;
    begin.data = ngx_pnalloc(cf->pool, begin.len);

    /* What is not of a variable is escaped now. */
    value.len = ngx_handoff_escape(NULL, p, end - p);
    value.data = ngx_pnalloc(cf->pool, value.len + 1);

    if (begin.data == NULL || value.data == NULL) {
        return NGX_ERROR;
    }

    (void) ngx_sprintf(begin.data, ",\"%V\":\"", &name);
    (void) ngx_handoff_escape(value.data, p, end - p);

    if (ngx_handoff_add_part(text, &begin, NGX_ERROR) != NGX_OK
        || ngx_handoff_parse_text(cf, &value, index, text) != NGX_OK
        || ngx_handoff_add_part(text, &quote, NGX_ERROR) != NGX_OK)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


/*
 * Literals, $name, ${name}, and $1 to $9. nginx's complex values would give one string, in which it
 * can't be told any more what came from a variable and has to be escaped; log_format has a parser of
 * its own for the same reason.
 */
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

        if (name.len == 1 && *name.data >= '1' && *name.data <= '9') {
            found = NGX_HANDOFF_CAPTURE + *name.data - '0';

        } else {
            found = index(cf, &name);
        }

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

            if (v == NULL || v->not_found || v->len == 0) {
                /* Not NULL, which memcpy(3) does not take, of no bytes either. */
                ngx_str_set(&values[i], "");

            } else {
                values[i].data = v->data;
                values[i].len = v->len;
            }

            if (text->json) {
                len += ngx_handoff_escape(NULL, values[i].data, values[i].len);
                continue;
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
            p += ngx_handoff_escape(p, values[i].data, values[i].len);

        } else {
            p = ngx_cpymem(p, values[i].data, values[i].len);
        }
    }

    *p = '\0';

    return NULL;
}

#pragma GCC visibility pop
