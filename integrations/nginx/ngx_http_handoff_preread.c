/*
 * What was read from a client, put together again from nginx's buffers.
 *
 * nginx keeps a request's head where it was read: in the connection's buffer and, where that is
 * too small, in large buffers. If the end of a buffer cuts a line, nginx copies the beginning of
 * the line to the next buffer. It ends names and values with NULs, in place. Both are undone here,
 * in a copy of the head. All that follows the head goes to the library from where it is.
 */
#include "ngx_http_handoff.h"

#pragma GCC visibility push(hidden)

static char *ngx_http_handoff_head(ngx_http_request_t *r, u_char *head_end,
    ngx_handoff_content_t *content);
static ngx_buf_t *ngx_http_handoff_buffer(ngx_http_request_t *r, ngx_uint_t i);
static ngx_uint_t ngx_http_handoff_begins_with(ngx_buf_t *b, u_char *cut, size_t len);
static void ngx_http_handoff_restore(ngx_http_request_t *r, ngx_buf_t *b, u_char *start,
    u_char *end, u_char *head_end, u_char *copy);
static u_char ngx_http_handoff_line_end(ngx_http_request_t *r, ngx_str_t *value, u_char *end,
    u_char *head_end);
static ngx_uint_t ngx_http_handoff_has_discarded(ngx_http_request_t *r);
static char *ngx_http_handoff_body(ngx_http_request_t *r, ngx_handoff_content_t *content);
static char *ngx_http_handoff_body_buf(ngx_buf_t *b, ngx_handoff_content_t *content);


char *
ngx_http_handoff_rebuild(ngx_http_request_t *r, u_char *head_end, ngx_handoff_content_t *content)
{
    char                     *why;
    ngx_http_request_body_t  *rb = r->request_body;

    why = ngx_http_handoff_head(r, head_end, content);
    if (why) {
        return why;
    }

    if (ngx_http_handoff_has_discarded(r)) {
        return "nginx has discarded its body";
    }

    if (rb && rb->rest == 0 && rb->last_saved && !r->request_body_no_buffering) {

        why = ngx_http_handoff_body(r, content);
        if (why) {
            return why;
        }

    } else if (r->header_in->pos != head_end || r->discard_body || r->reading_body
               || (rb && (r->headers_in.chunked || r->headers_in.content_length_n > 0)))
    {
        return "its body is half read";
    }

    /* What follows: a body that nginx has not read yet, or requests in a pipeline. */
    return ngx_handoff_add_preread(content, r->header_in->pos,
                                   r->header_in->last - r->header_in->pos);
}


/* What was read into each buffer, in this order. */
static char *
ngx_http_handoff_head(ngx_http_request_t *r, u_char *head_end, ngx_handoff_content_t *content)
{
    char        *why;
    size_t       len, cut;
    u_char      *start, *end, *copy;
    ngx_buf_t   *b;
    ngx_uint_t   i;

    start = NULL;
    copy = NULL;
    len = 0;
    cut = 0;

    for (i = 0; (b = ngx_http_handoff_buffer(r, i)) != NULL; i++) {

        if (start) {
            /* The line that the end of the last buffer has cut is in this one, whole. */
            if (!ngx_http_handoff_begins_with(b, copy + len - cut, cut)) {
                break;
            }

            start = b->start + cut;

        } else if (r->request_line.data >= b->start && r->request_line.data < b->end) {
            start = r->request_line.data;

        } else {
            /* Another request's. */
            continue;
        }

        end = (head_end > start && head_end <= b->last) ? head_end : b->last;
        len = end - start;

        why = ngx_handoff_allocate(content, len, &copy);
        if (why) {
            return why;
        }

        ngx_memcpy(copy, start, len);
        ngx_http_handoff_restore(r, b, start, end, head_end, copy);

        /* nginx refuses a head with NULs, so one that is left is not the client's. */
        if (memchr(copy, '\0', len)) {
            break;
        }

        why = ngx_handoff_add_preread(content, copy, len);

        if (why || end == head_end) {
            return why;
        }

        for (cut = 0; cut < len && copy[len - 1 - cut] != LF; cut++) { /* void */ }

        if (cut == len) {
            /* A buffer takes the request line, or what is cut and the end of that line. */
            break;
        }
    }

    return "its head is not as it came";
}


/* The connection's buffer, then the large ones as they were filled; NULL behind the last. */
static ngx_buf_t *
ngx_http_handoff_buffer(ngx_http_request_t *r, ngx_uint_t i)
{
    ngx_uint_t    n;
    ngx_chain_t  *cl;

    if (i == 0) {
        return r->connection->buffer;
    }

    /* The newest is the first in the list. */
    n = 0;
    for (cl = r->http_connection->busy; cl; cl = cl->next) {
        n++;
    }

    if (i > n) {
        return NULL;
    }

    for (cl = r->http_connection->busy; n > i; n--) {
        cl = cl->next;
    }

    return cl->buf;
}


/* Whether nginx has copied these bytes to the beginning of a buffer. It may have put NULs there. */
static ngx_uint_t
ngx_http_handoff_begins_with(ngx_buf_t *b, u_char *cut, size_t len)
{
    size_t  i;

    if ((size_t) (b->last - b->start) < len) {
        return 0;
    }

    for (i = 0; i < len; i++) {
        if (b->start[i] != cut[i] && b->start[i] != '\0') {
            return 0;
        }
    }

    return 1;
}


/* Puts back what nginx's NULs behind names and values between `start` and `end` have replaced. */
static void
ngx_http_handoff_restore(ngx_http_request_t *r, ngx_buf_t *b, u_char *start, u_char *end,
    u_char *head_end, u_char *copy)
{
    u_char           *name_end, *value_end;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *header;

    for (part = &r->headers_in.headers.part; part; part = part->next) {
        header = part->elts;

        for (i = 0; i < part->nelts; i++) {

            if (header[i].key.data < b->start || header[i].key.data >= end
                || header[i].value.data < b->start || header[i].value.data >= end)
            {
                continue;
            }

            name_end = header[i].key.data + header[i].key.len;
            value_end = header[i].value.data + header[i].value.len;

            /* A header without a colon has one NUL for both. */
            if (name_end >= start && name_end < end && *name_end == '\0'
                && name_end != value_end)
            {
                copy[name_end - start] = ':';
            }

            if (value_end >= start && value_end < end && *value_end == '\0') {
                copy[value_end - start] = ngx_http_handoff_line_end(r, &header[i].value, end,
                                                                    head_end);
            }
        }
    }
}


/*
 * What the NUL behind a value has replaced: the first byte of what ended the line, which is spaces,
 * CRs and one LF, each but the LF any number of times. nginx puts the NUL there when it has seen
 * that LF, so all of it is before `end`: where the buffer has no LF behind spaces and CRs, or that
 * of the empty line at the head's end, the NUL stands for the LF itself.
 *
 * Otherwise it is a space if another one follows, and a CR if the value is empty, because spaces
 * before a value are not part of the line's end. Before CR or LF it may be either, and both mean
 * the same: a space before CR; before LF, whatever the end of the request line is made of.
 */
static u_char
ngx_http_handoff_line_end(ngx_http_request_t *r, ngx_str_t *value, u_char *end, u_char *head_end)
{
    u_char  *p, *nul, *line_end;

    nul = value->data + value->len;

    for (p = nul + 1; p < end && *p == ' '; p++) { /* void */ }
    for ( /* void */ ; p < end && *p == CR; p++) { /* void */ }

    if (p == end || *p != LF || p + 1 == head_end) {
        return LF;
    }

    if (value->len == 0) {
        return CR;
    }

    line_end = r->request_line.data + r->request_line.len;

    return (nul[1] == LF && *line_end == CR) ? CR : ' ';
}


/*
 * nginx discards a body before an error_page. If all of it has come, nothing says so afterwards but
 * what is left of the length. A chunked body leaves a request_body that was never read to its end.
 */
static ngx_uint_t
ngx_http_handoff_has_discarded(ngx_http_request_t *r)
{
    ngx_str_t  *value;

    if (r->headers_in.content_length == NULL) {
        return 0;
    }

    value = &r->headers_in.content_length->value;

    return ngx_atoof(value->data, value->len) != r->headers_in.content_length_n;
}


/* The body that nginx has read, behind a head that says how it is framed. */
static char *
ngx_http_handoff_body(ngx_http_request_t *r, ngx_handoff_content_t *content)
{
    char         *why;
    off_t         len;
    u_char       *size;
    ngx_chain_t  *cl;

    len = 0;
    for (cl = r->request_body->bufs; cl; cl = cl->next) {
        len += ngx_buf_size(cl->buf);
    }

    /* Whoever has sent it on may have left less. nginx counts the bytes of a chunked body here, too. */
    if (len != ngx_max(r->headers_in.content_length_n, 0)) {
        return "its body can't be read again";
    }

    if (r->headers_in.chunked && len) {
        why = ngx_handoff_allocate(content, NGX_OFF_T_LEN + 2, &size);
        if (why) {
            return why;
        }

        why = ngx_handoff_add_preread(content, size, ngx_sprintf(size, "%xO" CRLF, len) - size);
        if (why) {
            return why;
        }
    }

    for (cl = r->request_body->bufs; cl; cl = cl->next) {
        why = ngx_http_handoff_body_buf(cl->buf, content);
        if (why) {
            return why;
        }
    }

    if (!r->headers_in.chunked) {
        return NULL;
    }

    return len ? ngx_handoff_add_preread(content, (u_char *) CRLF "0" CRLF CRLF, 7)
               : ngx_handoff_add_preread(content, (u_char *) "0" CRLF CRLF, 5);
}


/* A piece of a body, from memory or from nginx's temporary file. */
static char *
ngx_http_handoff_body_buf(ngx_buf_t *b, ngx_handoff_content_t *content)
{
    char    *why;
    off_t    len = ngx_buf_size(b);
    u_char  *data = b->pos;

    if (!ngx_buf_in_memory(b)) {
        why = ngx_handoff_allocate(content, len, &data);
        if (why) {
            return why;
        }

        if (len && ngx_read_file(b->file, data, len, b->file_pos) != len) {
            return "its body can't be read again";
        }
    }

    return ngx_handoff_add_preread(content, data, len);
}

#pragma GCC visibility pop
