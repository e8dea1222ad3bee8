/*
 * The metadata of an offer. "HandoffMetadata default" is what Apache knows of a connection, with the
 * members of docs/protocol.md: JSON, and valid UTF-8, whatever a client sends.
 */
#include "mod_handoff.h"

APLOG_USE_MODULE(handoff);

#pragma GCC visibility push(hidden)

/* The members, which nobody else's may be named as. */
static const char *const members[] = {"module", "client", "server", "scheme", "request_id",
                                      "location", "data", NULL};

int handoff_is_member(const char *name)
{
    for (int i = 0; members[i] != NULL; i++)
        if (strcmp(members[i], name) == 0)
            return 1;
    return 0;
}

/* How many bytes the character at `p` has in UTF-8 (RFC 3629); 0 if there is none. A string's NUL is
 * no byte of a longer character, so it ends them all. */
static int character(const unsigned char *p)
{
    /* Of the second byte: no character has a longer form than it needs, or is a surrogate. */
    unsigned first = 0x80, last = 0xbf;
    int len;
    if (p[0] < 0x80)
        return 1;
    if (p[0] >= 0xc2 && p[0] <= 0xdf)
        len = 2;
    else if (p[0] >= 0xe0 && p[0] <= 0xef) {
        len = 3;
        first = p[0] == 0xe0 ? 0xa0 : 0x80;
        last = p[0] == 0xed ? 0x9f : 0xbf;
    } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        len = 4;
        first = p[0] == 0xf0 ? 0x90 : 0x80;
        last = p[0] == 0xf4 ? 0x8f : 0xbf;
    } else
        return 0;
    if (p[1] < first || p[1] > last)
        return 0;
    for (int i = 2; i < len; i++)
        if (p[i] < 0x80 || p[i] > 0xbf)
            return 0;
    return len;
}

/* For the inside of a JSON string. What is no UTF-8 becomes U+FFFD, one for each byte. */
static void add_escaped(struct ap_varbuf *json, const char *text)
{
    const unsigned char *p = (const unsigned char *)text;
    while (*p != '\0') {
        char escaped[8];
        int len = character(p);
        if (len == 0)
            ap_varbuf_strcat(json, "\xef\xbf\xbd");
        else if (*p == '"' || *p == '\\' || *p < 0x20) {
            apr_snprintf(escaped, sizeof escaped, *p < 0x20 ? "\\u%04x" : "\\%c", *p);
            ap_varbuf_strcat(json, escaped);
        } else
            ap_varbuf_strmemcat(json, (const char *)p, len);
        p += len == 0 ? 1 : len;
    }
}

/* A member, after a comma. What does not apply is left out. */
static void add_string(struct ap_varbuf *json, const char *name, const char *value)
{
    if (value == NULL || *value == '\0')
        return;
    ap_varbuf_strcat(json, ",\"");
    ap_varbuf_strcat(json, name);
    ap_varbuf_strcat(json, "\":\"");
    add_escaped(json, value);
    ap_varbuf_strcat(json, "\"");
}

/* Without a port if it is 0. */
static void add_address(struct ap_varbuf *json, const char *name, const char *address,
                        apr_port_t port)
{
    char text[16];
    ap_varbuf_strcat(json, ",\"");
    ap_varbuf_strcat(json, name);
    ap_varbuf_strcat(json, "\":{\"address\":\"");
    add_escaped(json, address);
    ap_varbuf_strcat(json, "\"");
    if (port != 0) {
        apr_snprintf(text, sizeof text, ",\"port\":%u", port);
        ap_varbuf_strcat(json, text);
    }
    ap_varbuf_strcat(json, "}");
}

/* Returns the metadata, or NULL if there is none; `error` is set if an expression has failed. */
const char *handoff_write_metadata(request_rec *r, const handoff_dir_conf *conf, const char *data,
                                   apr_size_t *len, const char **error)
{
    conn_rec *c = r->connection;
    struct ap_varbuf json;
    const char *text = data;
    if (conf->members == NULL) {
        if (text == NULL && conf->metadata != NULL)
            text = ap_expr_str_exec(r, conf->metadata, error);
        *len = text == NULL ? 0 : strlen(text);
        return text;
    }
    ap_varbuf_init(r->pool, &json, 1024);
    ap_varbuf_strcat(&json, "{\"module\":\"http\"");
    /* Where mod_remoteip has an address from a header, the port is 0. */
    add_address(&json, "client", r->useragent_ip, r->useragent_addr->port);
    add_address(&json, "server", c->local_ip, c->local_addr->port);
    add_string(&json, "scheme", ap_http_scheme(r));
    add_string(&json, "request_id", apr_table_get(r->subprocess_env, "UNIQUE_ID"));
    add_string(&json, "location", conf->location);
    add_string(&json, "data", data);
    for (int i = 0; i < conf->members->nelts; i++) {
        const handoff_member *member = &((handoff_member *)conf->members->elts)[i];
        text = ap_expr_str_exec(r, member->value, error);
        if (*error != NULL)
            return NULL;
        add_string(&json, member->name, text);
    }
    ap_varbuf_strcat(&json, "}");
    *len = json.strlen;
    return json.buf;
}

#pragma GCC visibility pop
