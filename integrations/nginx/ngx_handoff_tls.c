/*
 * Connections whose TLS nginx terminates. They can change hands if the kernel does the TLS in both
 * directions, and if nothing of the connection is left in OpenSSL at the offer.
 *
 * OpenSSL gives the keys to the kernel when the handshake ends: "ssl_conf_command Options KTLS". Its
 * versions before 3.2 keep one of them, which ngx_handoff_tls_keys.c is about.
 */
#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

#if (NGX_HANDOFF_TLS)

static ssize_t ngx_handoff_tls_recv(ngx_connection_t *c, u_char *buf, size_t size);
static ssize_t ngx_handoff_tls_recv_chain(ngx_connection_t *c, ngx_chain_t *in, off_t limit);
static ssize_t ngx_handoff_tls_recv_kernel(ngx_connection_t *c, u_char *buf, size_t size);
static char *ngx_handoff_tls_drain(ngx_connection_t *c, ngx_handoff_tls_t *tls, size_t room);
static char *ngx_handoff_tls_read_all(ngx_connection_t *c, ngx_handoff_tls_t *tls, size_t room);
static ngx_int_t ngx_handoff_tls_reserve(ngx_connection_t *c, ngx_handoff_tls_t *tls, size_t len);
static ngx_handoff_tls_t *ngx_handoff_tls_install(ngx_connection_t *c);
static void ngx_handoff_tls_cleanup(void *data);
static ssize_t ngx_handoff_plain_recv(ngx_connection_t *c, u_char *buf, size_t size);
static char *ngx_handoff_tls_describe(ngx_connection_t *c, char *what);


/*
 * Of a connection's SSL object. The one thing that is not hidden: as files of their own both modules
 * must find the same there, because "pass" of a stream's server gives a connection to http.
 */
#pragma GCC visibility push(default)
int  ngx_handoff_tls_index = -1;
#pragma GCC visibility pop

static ngx_recv_pt  ngx_handoff_next_recv;


/* Once, while the configuration is read. */
ngx_int_t
ngx_handoff_init_tls(void)
{
    if (ngx_handoff_tls_index == -1) {
        ngx_handoff_tls_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
    }

    return ngx_handoff_tls_index == -1 ? NGX_ERROR : NGX_OK;
}


/* NULL if nothing is noted of it yet. */
ngx_handoff_tls_t *
ngx_handoff_get_tls(SSL *ssl)
{
    return SSL_get_ex_data(ssl, ngx_handoff_tls_index);
}


ngx_handoff_tls_t *
ngx_handoff_create_tls(ngx_connection_t *c)
{
    ngx_handoff_tls_t   *tls;
    ngx_pool_cleanup_t  *cln;

    cln = ngx_pool_cleanup_add(c->pool, sizeof(ngx_handoff_tls_t));
    if (cln == NULL) {
        return NULL;
    }

    tls = cln->data;
    ngx_memzero(tls, sizeof(ngx_handoff_tls_t));
    cln->handler = ngx_handoff_tls_cleanup;

    return SSL_set_ex_data(c->ssl->connection, ngx_handoff_tls_index, tls) ? tls : NULL;
}


static void
ngx_handoff_tls_cleanup(void *data)
{
    ngx_handoff_tls_t  *tls = data;

    OPENSSL_cleanse(tls->secret, sizeof(tls->secret));

    if (tls->start) {
        ngx_free(tls->start);
    }
}


/* Which directions are the kernel's, or will be at an offer. */
ngx_uint_t
ngx_handoff_tls_directions(ngx_connection_t *c)
{
    ngx_uint_t  directions;

    directions = 0;

    if (BIO_get_ktls_send(SSL_get_wbio(c->ssl->connection))) {
        directions |= HANDOFF_TLS_SEND;
    }

    if (BIO_get_ktls_recv(SSL_get_rbio(c->ssl->connection)) || ngx_handoff_tls_receives(c)) {
        directions |= HANDOFF_TLS_RECEIVE;
    }

    return directions;
}


/* The value of $handoff_tls. */
char *
ngx_handoff_tls_name(ngx_connection_t *c)
{
    if (c->ssl == NULL) {
        return NULL;
    }

    switch (ngx_handoff_tls_directions(c)) {

    case HANDOFF_TLS_SEND|HANDOFF_TLS_RECEIVE:
        return "both";

    case HANDOFF_TLS_SEND:
        return "send";

    case HANDOFF_TLS_RECEIVE:
        return "receive";

    default:
        return "none";
    }
}


/* As far as can be told before the offer. */
char *
ngx_handoff_tls_obstacle(ngx_connection_t *c)
{
    ngx_uint_t          directions;
    ngx_handoff_tls_t  *tls;

    if (c->ssl == NULL) {
        return NULL;
    }

    if (!c->ssl->handshaked || !SSL_is_init_finished(c->ssl->connection)) {
        return "its TLS handshake is not done";
    }

    if (!(SSL_get_options(c->ssl->connection) & SSL_OP_ENABLE_KTLS)) {
        return "nginx does its TLS: there is no \"ssl_conf_command Options KTLS\"";
    }

    directions = ngx_handoff_tls_directions(c);

    if (!(directions & HANDOFF_TLS_SEND)) {
        return ngx_handoff_kernel_has_tls() ? ngx_handoff_tls_describe(c, "encrypt")
                                            : "the kernel's module \"tls\" is not loaded";
    }

    if (!(directions & HANDOFF_TLS_RECEIVE)) {
        tls = ngx_handoff_get_tls(c->ssl->connection);

        return (tls && tls->rekeyed) ? "its client has changed its key"
                                     : ngx_handoff_tls_describe(c, "decrypt");
    }

    return NULL;
}


/* The text is valid until the next call. */
static char *
ngx_handoff_tls_describe(ngx_connection_t *c, char *what)
{
    static u_char  text[256];

    (void) ngx_snprintf(text, sizeof(text), "the kernel does not %s for it: %s, %s, %s%Z", what,
                        SSL_get_version(c->ssl->connection),
                        SSL_get_cipher_name(c->ssl->connection), OpenSSL_version(OPENSSL_VERSION));

    return (char *) text;
}


/*
 * Makes sure that nothing of the connection is in OpenSSL, and adds what was to the content. It
 * stays here for nginx to read, should the connection not be adopted.
 */
char *
ngx_handoff_take_tls(ngx_connection_t *c, ngx_handoff_content_t *content)
{
    char               *why;
    ngx_handoff_tls_t  *tls;

    why = ngx_handoff_tls_obstacle(c);
    if (why || c->ssl == NULL) {
        return why;
    }

    tls = ngx_handoff_tls_install(c);
    if (tls == NULL) {
        return "there is no memory";
    }

    if (tls->kernel && c->read->eof) {
        return "its client has ended its TLS";
    }

    if (!tls->kernel) {
        why = ngx_handoff_tls_drain(c, tls, content->room);
        if (why) {
            return why;
        }

        /* With the last data OpenSSL may have read the end behind it: nobody else would see it. */
        if (SSL_get_shutdown(c->ssl->connection) & SSL_RECEIVED_SHUTDOWN) {
            return "its client has ended its TLS";
        }

        if (!BIO_get_ktls_recv(SSL_get_rbio(c->ssl->connection))) {
            why = ngx_handoff_tls_receive_by_kernel(c, tls);
            if (why) {
                return why;
            }
        }
    }

    return ngx_handoff_add_preread(content, tls->pos, tls->last - tls->pos);
}


/*
 * From now on nginx reads through here. Before the first offer, so that this is never above
 * what ngx_handoff_copy.c puts in its place.
 */
static ngx_handoff_tls_t *
ngx_handoff_tls_install(ngx_connection_t *c)
{
    ngx_handoff_tls_t  *tls;

    tls = ngx_handoff_get_tls(c->ssl->connection);

    if (tls == NULL) {
        tls = ngx_handoff_create_tls(c);
        if (tls == NULL) {
            return NULL;
        }
    }

    if (ngx_handoff_next_recv == NULL) {
        ngx_handoff_next_recv = ngx_io.recv;
        ngx_io.recv = ngx_handoff_plain_recv;
    }

    if (tls->recv == NULL) {
        tls->recv = c->recv;
        tls->recv_chain = c->recv_chain;
        c->recv = ngx_handoff_tls_recv;
        c->recv_chain = ngx_handoff_tls_recv_chain;
    }

    return tls;
}


/*
 * Reads what OpenSSL has: the rest of a decrypted record, and records that it had read when the
 * kernel took over. It does not read from the socket: one byte makes OpenSSL decrypt the next record.
 */
static char *
ngx_handoff_tls_drain(ngx_connection_t *c, ngx_handoff_tls_t *tls, size_t room)
{
    char  *why;

    why = ngx_handoff_tls_read_all(c, tls, room);

    /* What is here comes before an end that OpenSSL has told of, and will tell of again. */
    if (tls->pos != tls->last) {
        c->read->ready = 1;
        c->read->eof = 0;
        c->read->error = 0;
    }

    return why;
}


static char *
ngx_handoff_tls_read_all(ngx_connection_t *c, ngx_handoff_tls_t *tls, size_t room)
{
    size_t   size;
    ssize_t  n;

    while (SSL_has_pending(c->ssl->connection)) {

        size = ngx_max(SSL_pending(c->ssl->connection), 1);

        if ((size_t) (tls->last - tls->pos) + size > room) {
            return "it is too large";
        }

        if (ngx_handoff_tls_reserve(c, tls, size) != NGX_OK) {
            return "there is no memory";
        }

        n = tls->recv(c, tls->last, size);

        if (n == NGX_AGAIN) {
            break;
        }

        if (n <= 0) {
            return "its client has ended its TLS";
        }

        tls->last += n;
    }

    return SSL_has_pending(c->ssl->connection) ? "a part of a record is in OpenSSL" : NULL;
}


/* Makes room behind what is there. */
static ngx_int_t
ngx_handoff_tls_reserve(ngx_connection_t *c, ngx_handoff_tls_t *tls, size_t len)
{
    size_t   used;
    u_char  *start;

    if ((size_t) (tls->end - tls->last) >= len) {
        return NGX_OK;
    }

    used = tls->last - tls->pos;
    len = used + ngx_max(len, SSL3_RT_MAX_PLAIN_LENGTH);

    start = ngx_alloc(len, c->log);
    if (start == NULL) {
        return NGX_ERROR;
    }

    if (tls->start) {
        ngx_memcpy(start, tls->pos, used);
        ngx_free(tls->start);
    }

    tls->start = start;
    tls->pos = start;
    tls->last = start + used;
    tls->end = start + len;

    return NGX_OK;
}


static ssize_t
ngx_handoff_tls_recv(ngx_connection_t *c, u_char *buf, size_t size)
{
    size_t              len;
    ngx_handoff_tls_t  *tls = ngx_handoff_get_tls(c->ssl->connection);

    len = tls->last - tls->pos;

    if (len == 0) {
        return tls->kernel ? ngx_handoff_tls_recv_kernel(c, buf, size) : tls->recv(c, buf, size);
    }

    len = ngx_min(len, size);
    ngx_memcpy(buf, tls->pos, len);
    tls->pos += len;

    if (tls->pos == tls->last) {
        ngx_free(tls->start);
        tls->start = tls->pos = tls->last = tls->end = NULL;
    }

    /* There may be more behind it. */
    c->read->ready = 1;

    return len;
}


static ssize_t
ngx_handoff_tls_recv_chain(ngx_connection_t *c, ngx_chain_t *in, off_t limit)
{
    size_t              size;
    ngx_handoff_tls_t  *tls = ngx_handoff_get_tls(c->ssl->connection);

    if (tls->pos == tls->last && !tls->kernel) {
        return tls->recv_chain(c, in, limit);
    }

    size = in->buf->end - in->buf->last;

    return ngx_handoff_tls_recv(c, in->buf->last, limit ? ngx_min(size, (size_t) limit) : size);
}


/* OpenSSL does not know that the kernel decrypts: it is not asked any more. */
static ssize_t
ngx_handoff_tls_recv_kernel(ngx_connection_t *c, u_char *buf, size_t size)
{
    size_t  n;

    switch (handoff_tls_receive(c->fd, buf, size, 0, &n)) {

    case HANDOFF_OK:
        if (n) {
            c->read->ready = 1;
            return n;
        }

        /* fall through */

    case HANDOFF_ERR_END_OF_STREAM:
        c->ssl->no_send_shutdown = 1;
        c->read->ready = 0;
        c->read->eof = 1;
        return 0;

    case HANDOFF_TIMED_OUT:
        c->read->ready = 0;
        return NGX_AGAIN;

    default:
        ngx_log_error(NGX_LOG_INFO, c->log, 0, "%s", handoff_last_error());
        c->ssl->no_send_shutdown = 1;
        c->read->ready = 0;
        c->read->error = 1;
        return NGX_ERROR;
    }
}


/*
 * When nginx has said the end of the TLS, it reads on from the socket for a while (lingering close),
 * with its own function, which ngx_ssl_shutdown() puts in the place of any other. That would block, if
 * a backend with a copy wanted it, and would take the client's close_notify for an error of the socket.
 * So the function itself is ours, from the first TLS connection on that is offered.
 */
static ssize_t
ngx_handoff_plain_recv(ngx_connection_t *c, u_char *buf, size_t size)
{
    ngx_handoff_tls_t  *tls;

    if (c->ssl && c->ssl->connection) {
        tls = ngx_handoff_get_tls(c->ssl->connection);

        if (tls && tls->recv
            && (tls->kernel || BIO_get_ktls_recv(SSL_get_rbio(c->ssl->connection))))
        {
            return ngx_handoff_tls_recv_kernel(c, buf, size);
        }
    }

    return ngx_handoff_next_recv(c, buf, size);
}


/*
 * The connection was adopted, and is about to be closed here: without a close_notify, which would
 * be the client's end, and without reading on.
 */
void
ngx_handoff_forget_tls(ngx_connection_t *c)
{
    if (c->ssl) {
        c->ssl->no_wait_shutdown = 1;
        c->ssl->no_send_shutdown = 1;
    }
}


/* Whether something is here that nginx has not read. */
ngx_uint_t
ngx_handoff_tls_has_data(ngx_connection_t *c)
{
    ngx_handoff_tls_t  *tls;

    tls = c->ssl ? ngx_handoff_get_tls(c->ssl->connection) : NULL;

    return tls && tls->pos != tls->last;
}

#else

char *
ngx_handoff_tls_obstacle(ngx_connection_t *c)
{
#if (NGX_SSL)
    if (c->ssl) {
        return "nginx does its TLS, and was built without kernel TLS";
    }
#endif

    return NULL;
}


char *
ngx_handoff_take_tls(ngx_connection_t *c, ngx_handoff_content_t *content)
{
    return ngx_handoff_tls_obstacle(c);
}


void
ngx_handoff_forget_tls(ngx_connection_t *c)
{
}


char *
ngx_handoff_tls_name(ngx_connection_t *c)
{
    return NULL;
}


ngx_uint_t
ngx_handoff_tls_has_data(ngx_connection_t *c)
{
    return 0;
}

#endif

#pragma GCC visibility pop
