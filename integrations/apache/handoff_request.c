/*
 * An offer of a request's connection, and how Apache lets go of what a backend has adopted: without a
 * byte, a shutdown or a lingering close.
 */
#include "mod_handoff.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

APLOG_USE_MODULE(handoff);

#pragma GCC visibility push(hidden)

static void note(request_rec *r, const handoff_dir_conf *conf, const char *outcome,
                 const char *reason)
{
    handoff_request *request = handoff_request_of(r);
    request->outcome = outcome;
    request->reason = reason;
    request->log_status = conf->log_status < 0 ? 299 : conf->log_status;
}

/* Logs why Apache itself serves a client. */
void handoff_fall_back(request_rec *r, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const char *reason = apr_pvsprintf(r->pool, format, arguments);
    va_end(arguments);
    handoff_request *request = handoff_request_of(r);
    request->outcome = "fallback";
    /* The first one is why. A fallback that ends in an error has one more, for its document. */
    if (request->reason == NULL)
        request->reason = reason;
    ap_log_rerror(APLOG_MARK, APLOG_INFO, 0, r, "not handed over: %s", reason);
}

/* NULL, or why this request's connection cannot change hands, as far as can be told before anything
 * is done about it. */
static const char *find_obstacle(request_rec *r)
{
    /* The backend would get, and serve, the request that Apache has refused. The document's own
     * status can be anything, and there may be more redirects on the way to it. */
    for (const request_rec *prev = r->prev; prev != NULL; prev = prev->prev)
        if (prev->status != HTTP_OK)
            return "Apache answers it with the document of an error";
    if (r->connection->master != NULL)
        return "it came by HTTP/2";
    if (r->main != NULL)
        return "it is a subrequest";
    if (ap_ssl_conn_is_ssl(r->connection))
        return "Apache does its TLS";
    if (r->assbackwards)
        return "it has no head";
    if (handoff_dummy() == -1)
        return "this child hands no clients over";
    return NULL;
}

/* Answers to earlier requests of a pipeline may wait in Apache's filters. */
static int send_what_waits(request_rec *r)
{
    conn_rec *c = r->connection;
    apr_bucket_brigade *bb = apr_brigade_create(r->pool, c->bucket_alloc);
    APR_BRIGADE_INSERT_TAIL(bb, apr_bucket_flush_create(c->bucket_alloc));
    return ap_pass_brigade(c->output_filters, bb) == APR_SUCCESS && !c->aborted;
}

static void set_option(int fd, int level, int option, int value)
{
    /* A failure is no reason to keep the client: it would only be slower. */
    (void)setsockopt(fd, level, option, &value, sizeof value);
}

/* As Apache has accepted it, and as backends get it from nginx. TCP_CORK may be left on by an answer
 * that was sent with sendfile(2). */
static void set_socket(int fd)
{
    (void)fcntl(fd, F_SETFL, O_NONBLOCK);
    set_option(fd, IPPROTO_TCP, TCP_CORK, 0);
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
}

/* Undoes what a backend may have changed that has had a copy. */
static void restore_socket(int fd)
{
    struct linger off = {0, 0};
    set_socket(fd);
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof off);
    set_option(fd, SOL_SOCKET, SO_RCVLOWAT, 1);
}

/*
 * The number of the client's descriptor now means the dummy, in all that Apache has made of it: the
 * connection's socket, the filters, what the event MPM would poll. It takes no new descriptor, so it
 * cannot fail. This child's copy of the connection is closed by it. No poll set has the connection:
 * event takes it out before a worker gets it.
 */
static void let_go(conn_rec *c)
{
    int fd;
    if (apr_os_sock_get(&fd, ap_get_conn_socket(c)) == APR_SUCCESS && fd != -1)
        (void)dup3(handoff_dummy(), fd, O_CLOEXEC);
    c->aborted = 1; /* nothing more is written, read or waited for */
    c->keepalive = AP_CONN_CLOSE;
}

static const char *text_of(request_rec *r, ap_expr_info_t *value, const char **error)
{
    return value == NULL || *error != NULL ? NULL : ap_expr_str_exec(r, value, error);
}

/* Fills an offer in. Returns NULL, or why there can be none. */
static const char *fill(handoff_offer *offer, request_rec *r, const handoff_dir_conf *conf,
                        const char *data)
{
    const char *error = NULL;
    apr_array_header_t *parts = apr_array_make(r->pool, 8, sizeof(struct iovec));
    offer->metadata = handoff_write_metadata(r, conf, data, &offer->metadata_len, &error);
    offer->service = text_of(r, conf->service, &error);
    offer->correlation = text_of(r, conf->correlation, &error);
    if (error != NULL)
        return error;
    /* Last: expressions may do anything. */
    error = handoff_get_preread(r, parts);
    offer->preread_iov = (const struct iovec *)parts->elts;
    offer->preread_iov_len = (size_t)parts->nelts;
    if (conf->timeout > 0)
        offer->timeout_ms = (uint64_t)apr_time_as_msec(conf->timeout);
    return error;
}

/* Offers a request's connection. `found`: the path is of a HandoffAllow directory. Not 0: a backend has
 * adopted it. Otherwise nothing has changed. */
int handoff_hand_over(request_rec *r, const handoff_dir_conf *conf, const char *path,
                      int found, const char *data)
{
    conn_rec *c = r->connection;
    int fd;
    handoff_offer offer = HANDOFF_OFFER_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    const char *why = find_obstacle(r), *error = "";
    if (why == NULL && !send_what_waits(r))
        why = "its client has gone";
    if (why == NULL)
        why = fill(&offer, r, conf, data);
    if (why == NULL && apr_os_sock_get(&fd, ap_get_conn_socket(c)) != APR_SUCCESS)
        why = "it has no socket";
    if (why != NULL) {
        handoff_fall_back(r, "%s", why);
        return 0;
    }
    /* A copy, because event closes its workers' sockets if it is told to stop at once. */
    offer.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (offer.fd == -1) {
        handoff_fall_back(r, "%s", strerror(errno));
        return 0;
    }
    set_socket(fd);
    handoff_status status = handoff_offer_to(path, found, &offer, &verdict, &error);
    close(offer.fd);
    if (status == HANDOFF_OK && verdict.outcome == HANDOFF_ADOPTED) {
        let_go(c);
        note(r, conf, "adopted", NULL);
        return 1;
    }
    if (status == HANDOFF_ERR_INTERNAL) { /* the offer may be in flight still */
        let_go(c);
        note(r, conf, "lost", apr_pstrdup(r->pool, error));
        ap_log_rerror(APLOG_MARK, APLOG_CRIT, 0, r, "offer to \"%s\": %s", path, error);
        return 1;
    }
    if (status == HANDOFF_OK)
        handoff_fall_back(r, "offer to \"%s\": %s", path, handoff_reason_name(verdict.reason));
    else
        handoff_fall_back(r, "offer to \"%s\": %s", path, error);
    restore_socket(fd);
    return 0;
}

#pragma GCC visibility pop
