/*
 * What was read from a client, put together again from nginx's buffers.
 *
 * nginx keeps a request's head where it was read: in the connection's buffer and, where that is
 * too small, in large buffers. It copies the line that did not fit to the beginning of the next
 * buffer, and it ends names and values with NULs, in place. Both are undone here, in a copy.
 */
#include "ngx_http_handoff.h"

#pragma GCC visibility push(hidden)

static ngx_int_t ngx_http_handoff_head(ngx_http_request_t *r, u_char *head_end,
    ngx_handoff_room_t *room);
static ngx_buf_t *ngx_http_handoff_buffer(ngx_http_request_t *r, ngx_uint_t i);
static void ngx_http_handoff_restore(ngx_http_request_t *r, u_char *start, u_char *end,
    u_char *head_end, u_char *copy);
static u_char ngx_http_handoff_line_end(ngx_http_request_t *r, u_char *nul, u_char *end,
    u_char *head_end);
static ngx_int_t ngx_http_handoff_body(ngx_http_request_t *r, ngx_handoff_room_t *room);
static ngx_int_t ngx_http_handoff_write_buf(ngx_handoff_room_t *room, ngx_buf_t *b);
static ngx_int_t ngx_http_handoff_write(ngx_handoff_room_t *room, u_char *data, size_t len);


ngx_int_t
ngx_http_handoff_preread(ngx_http_request_t *r, u_char *head_end, ngx_handoff_room_t *room,
    ngx_str_t *preread, char **why)
{
    ngx_int_t                 rc;
    ngx_http_request_body_t  *rb = r->request_body;

    preread->data = room->pos;

    rc = ngx_http_handoff_head(r, head_end, room);
    if (rc != NGX_OK) {
        *why = (rc == NGX_DECLINED) ? "it is too large" : "its head is not as it came";
        return NGX_DECLINED;
    }

    if (rb && rb->rest == 0 && rb->last_saved && !r->request_body_no_buffering) {

        rc = ngx_http_handoff_body(r, room);
        if (rc != NGX_OK) {
            *why = (rc == NGX_DECLINED) ? "it is too large" : "its body can't be read again";
            return NGX_DECLINED;
        }

    } else if (r->header_in->pos != head_end || r->discard_body || r->reading_body
               || (rb && (r->headers_in.chunked || r->headers_in.content_length_n > 0)))
    {
        *why = "its body is half read";
        return NGX_DECLINED;
    }

    /* What follows: a body that nginx has not read yet, or requests in a pipeline. */
    if (ngx_http_handoff_write(room, r->header_in->pos, r->header_in->last - r->header_in->pos)
        != NGX_OK)
    {
        *why = "it is too large";
        return NGX_DECLINED;
    }

    preread->len = room->pos - preread->data;
    return NGX_OK;
}


/* NGX_DECLINED if there is no room. */
static ngx_int_t
ngx_http_handoff_head(ngx_http_request_t *r, u_char *head_end, ngx_handoff_room_t *room)
{
    u_char      *start, *end, *copy, *head = room->pos;
    ngx_buf_t   *b;
    ngx_uint_t   i;

    start = NULL;

    for (i = 0; (b = ngx_http_handoff_buffer(r, i)) != NULL; i++) {

        if (start) {
            start = b->start;

        } else if (r->request_line.data >= b->start && r->request_line.data < b->end) {
            start = r->request_line.data;

        } else {
            /* Another request's. */
            continue;
        }

        end = (head_end > start && head_end <= b->last) ? head_end : b->last;
        copy = room->pos;

        if (ngx_http_handoff_write(room, start, end - start) != NGX_OK) {
            return NGX_DECLINED;
        }

        ngx_http_handoff_restore(r, start, end, head_end, copy);

        if (end == head_end) {
            /* nginx refuses a head with NULs, so one that is left is not the client's. */
            return memchr(head, '\0', room->pos - head) ? NGX_ERROR : NGX_OK;
        }

        /* The line that the end of this buffer cuts stands in the next one, whole. */
        while (room->pos > copy && room->pos[-1] != LF) {
            room->pos--;
        }
    }

    return NGX_ERROR;
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


/* Puts back what nginx's NULs behind names and values between `start` and `end` have replaced. */
static void
ngx_http_handoff_restore(ngx_http_request_t *r, u_char *start, u_char *end, u_char *head_end,
    u_char *copy)
{
    u_char           *name_end, *value_end;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *header;

    for (part = &r->headers_in.headers.part; part; part = part->next) {
        header = part->elts;

        for (i = 0; i < part->nelts; i++) {

            if (header[i].key.data < start || header[i].key.data >= end
                || header[i].value.data < start || header[i].value.data >= end)
            {
                continue;
            }

            name_end = header[i].key.data + header[i].key.len;
            value_end = header[i].value.data + header[i].value.len;

            /* A header without a colon has one NUL for both. */
            if (name_end < end && *name_end == '\0' && name_end != value_end) {
                copy[name_end - start] = ':';
            }

            if (value_end < end && *value_end == '\0') {
                copy[value_end - start] = ngx_http_handoff_line_end(r, value_end, end, head_end);
            }
        }
    }
}


/*
 * The NUL behind a value has the place of the first byte of what ends the line: spaces, then CR LF
 * or LF. It can be told from what follows, but for one case, "value LF" after a single space, in
 * which CR LF and space LF look alike and mean the same: the request line shows which is used.
 */
static u_char
ngx_http_handoff_line_end(ngx_http_request_t *r, u_char *nul, u_char *end, u_char *head_end)
{
    u_char  *p, *line_end;

    p = nul + 1;

    if (p < end && *p == LF) {

        if (p + 1 == head_end) {
            /* The empty line at the end of the head. */
            return LF;
        }

        line_end = r->request_line.data + r->request_line.len;
        while (*line_end != CR && *line_end != LF) {
            line_end++;
        }

        return (*line_end == CR) ? CR : ' ';
    }

    while (p < end && *p == ' ') {
        p++;
    }

    /* An empty line of CR LF behind a line that LF alone ends is the only other one with CR. */
    if (p < end && (*p == LF || (*p == CR && p + 2 != head_end))) {
        return ' ';
    }

    return LF;
}


/* The body that nginx has read, behind a head that says how it is framed. */
static ngx_int_t
ngx_http_handoff_body(ngx_http_request_t *r, ngx_handoff_room_t *room)
{
    off_t         len;
    u_char        size[NGX_OFF_T_LEN + 2];
    ngx_int_t     rc;
    ngx_chain_t  *cl;

    len = 0;
    for (cl = r->request_body->bufs; cl; cl = cl->next) {
        len += ngx_buf_size(cl->buf);
    }

    /* Whoever has sent it on may have left less. nginx counts the bytes of a chunked body here, too. */
    if (len != ngx_max(r->headers_in.content_length_n, 0)) {
        return NGX_ERROR;
    }

    if (r->headers_in.chunked && len) {
        rc = ngx_http_handoff_write(room, size, ngx_sprintf(size, "%xO" CRLF, len) - size);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    for (cl = r->request_body->bufs; cl; cl = cl->next) {
        rc = ngx_http_handoff_write_buf(room, cl->buf);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    if (!r->headers_in.chunked) {
        return NGX_OK;
    }

    if (len) {
        rc = ngx_http_handoff_write(room, (u_char *) CRLF, 2);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    return ngx_http_handoff_write(room, (u_char *) "0" CRLF CRLF, 5);
}


/* A piece of a body, from memory or from nginx's temporary file. */
static ngx_int_t
ngx_http_handoff_write_buf(ngx_handoff_room_t *room, ngx_buf_t *b)
{
    off_t  len = ngx_buf_size(b);

    if (ngx_buf_in_memory(b)) {
        return ngx_http_handoff_write(room, b->pos, len);
    }

    if (len > room->end - room->pos) {
        return NGX_DECLINED;
    }

    if (len && ngx_read_file(b->file, room->pos, len, b->file_pos) != len) {
        return NGX_ERROR;
    }

    room->pos += len;
    return NGX_OK;
}


static ngx_int_t
ngx_http_handoff_write(ngx_handoff_room_t *room, u_char *data, size_t len)
{
    if (len > (size_t) (room->end - room->pos)) {
        return NGX_DECLINED;
    }

    room->pos = ngx_cpymem(room->pos, data, len);
    return NGX_OK;
}

#pragma GCC visibility pop
