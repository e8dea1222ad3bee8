/*
 * The metadata of "handoff_metadata default": what nginx knows of a connection that its bytes don't
 * say, or say as the client likes it. docs/protocol.md has the schema.
 *
 * It is JSON, and valid UTF-8, whatever the variables hold.
 */
#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

enum {
    NGX_HANDOFF_REMOTE_ADDR = 0,
    NGX_HANDOFF_REMOTE_PORT,
    NGX_HANDOFF_SERVER_ADDR,
    NGX_HANDOFF_SERVER_PORT,
    NGX_HANDOFF_PP_ADDR,
    NGX_HANDOFF_PP_PORT,
    NGX_HANDOFF_PP_SERVER_ADDR,
    NGX_HANDOFF_PP_SERVER_PORT,
    NGX_HANDOFF_REALIP_ADDR,
    NGX_HANDOFF_REALIP_PORT,
    NGX_HANDOFF_SCHEME,
    NGX_HANDOFF_SSL_PROTOCOL,
    NGX_HANDOFF_SSL_CIPHER,
    NGX_HANDOFF_SSL_SERVER_NAME,
    NGX_HANDOFF_SSL_PREREAD_NAME,
    NGX_HANDOFF_SSL_ALPN,
    NGX_HANDOFF_SSL_VERIFY,
    NGX_HANDOFF_SSL_FINGERPRINT,
    NGX_HANDOFF_REQUEST_ID,
    NGX_HANDOFF_LOCATION,
    NGX_HANDOFF_VALUES
};

/* In the same order. Each nginx, and each of the two modules, has some of them. */
static ngx_str_t  ngx_handoff_value_names[] = {
    ngx_string("remote_addr"),
    ngx_string("remote_port"),
    ngx_string("server_addr"),
    ngx_string("server_port"),
    ngx_string("proxy_protocol_addr"),
    ngx_string("proxy_protocol_port"),
    ngx_string("proxy_protocol_server_addr"),
    ngx_string("proxy_protocol_server_port"),
    ngx_string("realip_remote_addr"),
    ngx_string("realip_remote_port"),
    ngx_string("scheme"),
    ngx_string("ssl_protocol"),
    ngx_string("ssl_cipher"),
    ngx_string("ssl_server_name"),
    ngx_string("ssl_preread_server_name"),
    ngx_string("ssl_alpn_protocol"),
    ngx_string("ssl_client_verify"),
    ngx_string("ssl_client_fingerprint"),
    ngx_string("request_id"),
    ngx_string("handoff_location")
};

/* The members, which nobody else's may be named as. */
static char  *ngx_handoff_members[] = {
    "module", "client", "server", "scheme", "tls", "request_id", "location", NULL
};

/* Where JSON goes. Everything is written twice: first only to know its length. */
typedef struct {
    u_char      *last;       /* NULL: nothing is written */
    size_t       len;
    ngx_uint_t   comma;      /* unsigned comma:1; before the next member */
} ngx_handoff_json_t;


static void ngx_handoff_get_values(ngx_handoff_offer_t *offer, ngx_str_t *values);
static ngx_uint_t ngx_handoff_same(ngx_str_t *one, ngx_str_t *two);
static void ngx_handoff_choose_addresses(ngx_handoff_offer_t *offer, ngx_str_t *values);
static void ngx_handoff_json(ngx_handoff_json_t *json, ngx_handoff_offer_t *offer,
    ngx_str_t *values);
static void ngx_handoff_json_text(ngx_handoff_json_t *json, char *text);
static void ngx_handoff_json_name(ngx_handoff_json_t *json, char *name);
static void ngx_handoff_json_open(ngx_handoff_json_t *json, char *name);
static void ngx_handoff_json_close(ngx_handoff_json_t *json);
static void ngx_handoff_json_string(ngx_handoff_json_t *json, char *name, ngx_str_t *value);
static void ngx_handoff_json_address(ngx_handoff_json_t *json, char *name, ngx_str_t *address,
    ngx_str_t *port);


/* Finds the variables, as far as there are such. NULL if there is no memory. */
ngx_int_t *
ngx_handoff_find_values(ngx_conf_t *cf, ngx_handoff_index_pt index, ngx_handoff_known_pt known)
{
    ngx_int_t   *indices;
    ngx_uint_t   i;

    indices = ngx_palloc(cf->pool, NGX_HANDOFF_VALUES * sizeof(ngx_int_t));
    if (indices == NULL) {
        return NULL;
    }

    for (i = 0; i < NGX_HANDOFF_VALUES; i++) {
        indices[i] = NGX_ERROR;

        if (known(cf, &ngx_handoff_value_names[i])) {
            indices[i] = index(cf, &ngx_handoff_value_names[i]);
            if (indices[i] == NGX_ERROR) {
                return NULL;
            }
        }
    }

    return indices;
}


ngx_uint_t
ngx_handoff_is_member(ngx_str_t *name)
{
    ngx_uint_t  i;

    for (i = 0; ngx_handoff_members[i]; i++) {
        if (ngx_strlen(ngx_handoff_members[i]) == name->len
            && ngx_strncmp(ngx_handoff_members[i], name->data, name->len) == 0)
        {
            return 1;
        }
    }

    return 0;
}


/* Writes the metadata, and a NUL that is not counted. NULL, or why it cannot be written. */
char *
ngx_handoff_write_metadata(ngx_handoff_offer_t *offer, ngx_handoff_content_t *content,
    ngx_str_t *written)
{
    char                *why;
    u_char              *start;
    ngx_str_t            more, values[NGX_HANDOFF_VALUES];
    ngx_handoff_json_t   json;
    ngx_handoff_text_t  *text = offer->conf->metadata;

    why = ngx_handoff_write_text(text, offer->value, offer->session, content,
                                 (text && text->standard) ? &more : written);

    if (why || text == NULL || text->standard == NULL) {
        return why;
    }

    ngx_handoff_get_values(offer, values);

    ngx_memzero(&json, sizeof(ngx_handoff_json_t));
    ngx_handoff_json(&json, offer, values);

    /* The other members, which begin with a comma, go into the same memory, and count once. */
    content->room += more.len;

    why = ngx_handoff_allocate(content, json.len + more.len + 2, &start);
    if (why) {
        return why;
    }

    json.last = start;
    json.comma = 0;
    ngx_handoff_json(&json, offer, values);

    json.last = ngx_cpymem(json.last, more.data, more.len);
    *json.last++ = '}';
    *json.last = '\0';

    written->data = start;
    written->len = json.last - start;
    content->room -= written->len;

    return NULL;
}


/* What does not apply is empty. */
static void
ngx_handoff_get_values(ngx_handoff_offer_t *offer, ngx_str_t *values)
{
    ngx_int_t             *indices = offer->conf->metadata->standard;
    ngx_uint_t             i;
    ngx_variable_value_t  *v;

    for (i = 0; i < NGX_HANDOFF_VALUES; i++) {
        ngx_str_null(&values[i]);

        if (indices[i] == NGX_ERROR) {
            continue;
        }

        v = offer->value(offer->session, indices[i]);

        if (v && !v->not_found) {
            values[i].data = v->data;
            values[i].len = v->len;
        }
    }

    ngx_handoff_choose_addresses(offer, values);

    if (values[NGX_HANDOFF_SSL_SERVER_NAME].len == 0) {
        values[NGX_HANDOFF_SSL_SERVER_NAME] = values[NGX_HANDOFF_SSL_PREREAD_NAME];
    }
}


static ngx_uint_t
ngx_handoff_same(ngx_str_t *one, ngx_str_t *two)
{
    return one->len == two->len && ngx_memcmp(one->data, two->data, one->len) == 0;
}


/*
 * With set_real_ip_from nginx knows who may say where clients come from. Then only a sender that it
 * has believed, so that $remote_addr is not the sender's any more, is believed here. Without it a
 * listener of the PROXY protocol believes whoever can connect.
 */
static void
ngx_handoff_choose_addresses(ngx_handoff_offer_t *offer, ngx_str_t *values)
{
    ngx_uint_t  believed;

    if (values[NGX_HANDOFF_PP_ADDR].len == 0) {
        return;
    }

    believed = values[NGX_HANDOFF_REALIP_ADDR].len
               && !(ngx_handoff_same(&values[NGX_HANDOFF_REALIP_ADDR],
                                     &values[NGX_HANDOFF_REMOTE_ADDR])
                    && ngx_handoff_same(&values[NGX_HANDOFF_REALIP_PORT],
                                        &values[NGX_HANDOFF_REMOTE_PORT]));

    if (!believed) {

        if (offer->real_ip) {
            return;
        }

        values[NGX_HANDOFF_REMOTE_ADDR] = values[NGX_HANDOFF_PP_ADDR];
        values[NGX_HANDOFF_REMOTE_PORT] = values[NGX_HANDOFF_PP_PORT];
    }

    if (values[NGX_HANDOFF_PP_SERVER_ADDR].len) {
        values[NGX_HANDOFF_SERVER_ADDR] = values[NGX_HANDOFF_PP_SERVER_ADDR];
        values[NGX_HANDOFF_SERVER_PORT] = values[NGX_HANDOFF_PP_SERVER_PORT];
    }
}


/* All but the end, before which there may be more members. */
static void
ngx_handoff_json(ngx_handoff_json_t *json, ngx_handoff_offer_t *offer, ngx_str_t *values)
{
    ngx_str_t   module, *verify = &values[NGX_HANDOFF_SSL_VERIFY];
    ngx_uint_t  certificate;

    module.data = (u_char *) offer->broker->main->module;
    module.len = ngx_strlen(module.data);

    /* nginx says NONE if it has asked for no certificate, or got none. */
    certificate = verify->len && ngx_strncmp(verify->data, "NONE", verify->len) != 0;

    ngx_handoff_json_text(json, "{");
    ngx_handoff_json_string(json, "module", &module);
    ngx_handoff_json_address(json, "client", &values[NGX_HANDOFF_REMOTE_ADDR],
                             &values[NGX_HANDOFF_REMOTE_PORT]);
    ngx_handoff_json_address(json, "server", &values[NGX_HANDOFF_SERVER_ADDR],
                             &values[NGX_HANDOFF_SERVER_PORT]);
    ngx_handoff_json_string(json, "scheme", &values[NGX_HANDOFF_SCHEME]);

    if (values[NGX_HANDOFF_SSL_PROTOCOL].len || values[NGX_HANDOFF_SSL_SERVER_NAME].len) {
        ngx_handoff_json_open(json, "tls");
        ngx_handoff_json_string(json, "version", &values[NGX_HANDOFF_SSL_PROTOCOL]);
        ngx_handoff_json_string(json, "cipher", &values[NGX_HANDOFF_SSL_CIPHER]);
        ngx_handoff_json_string(json, "sni", &values[NGX_HANDOFF_SSL_SERVER_NAME]);
        ngx_handoff_json_string(json, "alpn", &values[NGX_HANDOFF_SSL_ALPN]);

        if (certificate) {
            ngx_handoff_json_open(json, "client_certificate");
            ngx_handoff_json_string(json, "verify", verify);
            ngx_handoff_json_string(json, "sha1", &values[NGX_HANDOFF_SSL_FINGERPRINT]);
            ngx_handoff_json_close(json);
        }

        ngx_handoff_json_close(json);
    }

    ngx_handoff_json_string(json, "request_id", &values[NGX_HANDOFF_REQUEST_ID]);
    ngx_handoff_json_string(json, "location", &values[NGX_HANDOFF_LOCATION]);
}


static void
ngx_handoff_json_text(ngx_handoff_json_t *json, char *text)
{
    size_t  len = ngx_strlen(text);

    json->len += len;

    if (json->last) {
        json->last = ngx_cpymem(json->last, text, len);
    }
}


static void
ngx_handoff_json_name(ngx_handoff_json_t *json, char *name)
{
    ngx_handoff_json_text(json, json->comma ? ",\"" : "\"");
    ngx_handoff_json_text(json, name);
    ngx_handoff_json_text(json, "\":");
    json->comma = 1;
}


static void
ngx_handoff_json_open(ngx_handoff_json_t *json, char *name)
{
    ngx_handoff_json_name(json, name);
    ngx_handoff_json_text(json, "{");
    json->comma = 0;
}


static void
ngx_handoff_json_close(ngx_handoff_json_t *json)
{
    ngx_handoff_json_text(json, "}");
    json->comma = 1;
}


/* An empty value is left out. */
static void
ngx_handoff_json_string(ngx_handoff_json_t *json, char *name, ngx_str_t *value)
{
    size_t  len;

    if (value->len == 0) {
        return;
    }

    ngx_handoff_json_name(json, name);
    ngx_handoff_json_text(json, "\"");

    len = ngx_handoff_escape(json->last, value->data, value->len);
    json->len += len;

    if (json->last) {
        json->last += len;
    }

    ngx_handoff_json_text(json, "\"");
}


/* A Unix socket has no port, and what has none in the PROXY protocol says 0. */
static void
ngx_handoff_json_address(ngx_handoff_json_t *json, char *name, ngx_str_t *address, ngx_str_t *port)
{
    u_char     text[NGX_INT_T_LEN + 1];
    ngx_int_t  n;

    if (address->len == 0) {
        return;
    }

    ngx_handoff_json_open(json, name);
    ngx_handoff_json_string(json, "address", address);

    n = ngx_atoi(port->data, port->len);

    if (n > 0 && n <= 65535) {
        ngx_handoff_json_name(json, "port");
        *ngx_sprintf(text, "%i", n) = '\0';
        ngx_handoff_json_text(json, (char *) text);
    }

    ngx_handoff_json_close(json);
}


/*
 * Escapes for the inside of a JSON string. What is no UTF-8 becomes U+FFFD, one for each byte: no
 * text that is UTF-8 can be taken for it, other than with \u00XX. Returns the length; `dst` may be
 * NULL.
 */
size_t
ngx_handoff_escape(u_char *dst, u_char *src, size_t len)
{
    size_t         n, written;
    u_char        *p, *end;
    u_char         escaped[sizeof("\\u001f")];

    end = src + len;
    written = 0;

    while (src < end) {
        p = src;
        n = ngx_handoff_character(src, end);
        src += ngx_max(n, 1);

        if (n == 0) {
            p = (u_char *) "\xef\xbf\xbd";
            n = 3;

        } else if (*p == '"' || *p == '\\') {
            escaped[0] = '\\';
            escaped[1] = *p;
            p = escaped;
            n = 2;

        } else if (*p < 0x20) {
            n = ngx_sprintf(escaped, "\\u%04xi", (ngx_uint_t) *p) - escaped;
            p = escaped;
        }

        written += n;

        if (dst) {
            dst = ngx_cpymem(dst, p, n);
        }
    }

    return written;
}


/* How many bytes the character at `p` has in UTF-8 (RFC 3629); 0 if there is none. */
size_t
ngx_handoff_character(u_char *p, u_char *end)
{
    size_t  len, i;
    u_char  first, last;

    /* Of the second byte: no character has a longer form than it needs, or is a surrogate. */
    first = 0x80;
    last = 0xbf;

    if (*p < 0x80) {
        return 1;

    } else if (*p >= 0xc2 && *p <= 0xdf) {
        len = 2;

    } else if (*p >= 0xe0 && *p <= 0xef) {
        len = 3;
        first = (*p == 0xe0) ? 0xa0 : 0x80;
        last = (*p == 0xed) ? 0x9f : 0xbf;

    } else if (*p >= 0xf0 && *p <= 0xf4) {
        len = 4;
        first = (*p == 0xf0) ? 0x90 : 0x80;
        last = (*p == 0xf4) ? 0x8f : 0xbf;

    } else {
        return 0;
    }

    if ((size_t) (end - p) < len || p[1] < first || p[1] > last) {
        return 0;
    }

    for (i = 2; i < len; i++) {
        if (p[i] < 0x80 || p[i] > 0xbf) {
            return 0;
        }
    }

    return len;
}

#pragma GCC visibility pop
