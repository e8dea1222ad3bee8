/* The brokers of a worker: how they begin, come into nginx's event loop, and end. */
#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

static handoff_broker *ngx_handoff_make(ngx_handoff_broker_t *broker);
static handoff_status ngx_handoff_add_backends(ngx_handoff_broker_t *broker,
    handoff_broker *handle);
static ngx_int_t ngx_handoff_watch_broker(ngx_cycle_t *cycle, ngx_handoff_broker_t *broker, int fd);
static void ngx_handoff_free_connection(ngx_connection_t *c);


/* How long no other try follows one that has failed: each of them is logged. */
#define NGX_HANDOFF_REOPEN  1000


/*
 * Makes the broker and begins to connect. If that fails, offers are refused until one of them tries
 * again with success: what was missing, such as descriptors, may be there by then.
 */
ngx_int_t
ngx_handoff_open(ngx_cycle_t *cycle, ngx_handoff_broker_t *broker)
{
    int              fd;
    handoff_broker  *handle;

    if (broker->broker
        || (broker->failed && ngx_current_msec - broker->opened < NGX_HANDOFF_REOPEN))
    {
        return NGX_OK;
    }

    if (!broker->begun) {
        ngx_queue_init(&broker->waiting);
        ngx_queue_init(&broker->queue);
        broker->flush.data = broker;
        broker->flush.handler = ngx_handoff_flush_handler;
        broker->flush.log = cycle->log;
        broker->busy.data = broker;
        broker->busy.handler = ngx_handoff_busy_handler;
        broker->busy.log = cycle->log;

        if (ngx_array_init(&broker->entries, cycle->pool, 4, sizeof(ngx_handoff_entry_t *))
            != NGX_OK)
        {
            return NGX_ERROR;
        }

        broker->begun = 1;
    }

    broker->opened = ngx_current_msec;
    broker->failed = 1;

    handle = ngx_handoff_make(broker);

    if (handle == NULL || (fd = handoff_broker_fd(handle)) == -1) {
        ngx_log_error(NGX_LOG_ALERT, cycle->log, 0, "no broker for \"%V\": %s",
                      &broker->target->name, handoff_last_error());
        handoff_broker_free(handle);
        return NGX_OK;
    }

    if (ngx_handoff_watch_broker(cycle, broker, fd) != NGX_OK) {
        handoff_broker_free(handle);
        return NGX_OK;
    }

    broker->broker = handle;
    broker->failed = 0;
    ngx_handoff_publish(broker);

    return NGX_OK;
}


/* Whether such a broker can be made, which opens nothing; handoff_last_error() says why not. */
ngx_int_t
ngx_handoff_check(ngx_handoff_broker_t *broker)
{
    handoff_broker  *handle;

    handle = ngx_handoff_make(broker);
    handoff_broker_free(handle);

    return handle ? NGX_OK : NGX_ERROR;
}


/* NULL if that fails; handoff_last_error() says why. */
static handoff_broker *
ngx_handoff_make(ngx_handoff_broker_t *broker)
{
    char                   *path;
    handoff_broker         *handle;
    handoff_broker_options  options = HANDOFF_BROKER_OPTIONS_INIT;

    options.max_in_flight = broker->max_in_flight;
    options.attempt_timeout_ms = broker->attempt_timeout;
    options.max_failures = broker->max_fails ? broker->max_fails : HANDOFF_NO_LIMIT;
    options.failure_period_ms = broker->fail_timeout;

    path = broker->target->servers ? NULL : (char *) broker->target->name.data + 5;

    if (handoff_broker_new(path, &options, &handle) != HANDOFF_OK) {
        return NULL;
    }

    if (ngx_handoff_add_backends(broker, handle) != HANDOFF_OK) {
        handoff_broker_free(handle);
        return NULL;
    }

    return handle;
}


/* Those of an upstream. */
static handoff_status
ngx_handoff_add_backends(ngx_handoff_broker_t *broker, handoff_broker *handle)
{
    ngx_uint_t              i;
    handoff_status          status;
    ngx_handoff_server_t   *server;
    handoff_broker_backend  backend = HANDOFF_BROKER_BACKEND_INIT;

    if (broker->target->servers == NULL) {
        return HANDOFF_OK;
    }

    server = broker->target->servers->elts;

    for (i = 0; i < broker->target->servers->nelts; i++) {
        backend.path = (char *) server[i].path.data;
        backend.weight = server[i].weight;
        backend.flags = (server[i].backup ? HANDOFF_BACKEND_BACKUP : 0)
                        | (server[i].down ? HANDOFF_BACKEND_OFF : 0);
        backend.max_failures = server[i].max_fails ? server[i].max_fails : HANDOFF_NO_LIMIT;
        backend.failure_period_ms = ngx_max(server[i].fail_timeout, 1);    /* 0 is the default */

        status = handoff_broker_add(handle, &backend);
        if (status != HANDOFF_OK) {
            return status;
        }
    }

    return HANDOFF_OK;
}


/* Why there is no backend at all; NULL if there is one, or a directory that cannot be read. */
char *
ngx_handoff_lack(ngx_handoff_broker_t *broker)
{
    handoff_broker_backend_state  state = HANDOFF_BROKER_BACKEND_STATE_INIT;

    if (handoff_broker_get_backend_state(broker->broker, 0, &state) == HANDOFF_OK) {
        return NULL;
    }

    return broker->target->servers ? "there is no socket in the directories of its servers"
                                   : "there is no socket in this directory";
}


/* Of the offer that was the last call of the library, which returned `status`. */
char *
ngx_handoff_why_refused(ngx_handoff_broker_t *broker, handoff_status status)
{
    char  *why = NULL;

    if (status == HANDOFF_ERR_BACKEND_UNAVAILABLE) {
        why = ngx_handoff_lack(broker);
    }

    return why ? why : (char *) handoff_broker_last_error(broker->broker);
}


static ngx_int_t
ngx_handoff_watch_broker(ngx_cycle_t *cycle, ngx_handoff_broker_t *broker, int fd)
{
    ngx_connection_t  *c;

    c = ngx_get_connection(fd, cycle->log);

    /* The last one is for the channel from the master process: without it a new worker exits. */
    if (c && ngx_cycle->free_connection_n == 0) {
        ngx_handoff_free_connection(c);
        c = NULL;
    }

    if (c == NULL) {
        ngx_log_error(NGX_LOG_ALERT, cycle->log, 0, "no broker for \"%V\": there are not enough "
                      "worker_connections", &broker->target->name);
        return NGX_ERROR;
    }

    c->data = broker;
    c->log = cycle->log;
    c->read->log = cycle->log;
    c->write->log = cycle->log;
    c->read->handler = ngx_handoff_dispatch_handler;

    if (ngx_add_event(c->read, NGX_READ_EVENT, NGX_LEVEL_EVENT) != NGX_OK) {
        ngx_handoff_free_connection(c);
        ngx_log_error(NGX_LOG_ALERT, cycle->log, 0, "no broker for \"%V\": its descriptor cannot be "
                      "watched", &broker->target->name);
        return NGX_ERROR;
    }

    /* A worker that is asked to exit tells the handlers of idle connections. */
    c->idle = 1;

    broker->connection = c;

    return NGX_OK;
}


void
ngx_handoff_unwatch_broker(ngx_handoff_broker_t *broker)
{
    ngx_connection_t  *c = broker->connection;

    if (c->read->posted) {
        ngx_delete_posted_event(c->read);
    }

    (void) ngx_del_event(c->read, NGX_READ_EVENT, 0);
    ngx_handoff_free_connection(c);
    broker->connection = NULL;
}


static void
ngx_handoff_free_connection(ngx_connection_t *c)
{
    ngx_free_connection(c);
    c->fd = (ngx_socket_t) -1;
}


/*
 * A worker that is asked to exit may serve its last clients for hours. Its channels are of no use to
 * them, and a backend has a limit: they are closed as soon as nothing is on offer. A request that is
 * handed over later opens them again.
 */
void
ngx_handoff_leave(ngx_handoff_broker_t *broker)
{
    if (!ngx_exiting || broker->connection == NULL
        || broker->in_flight || broker->queued || !ngx_queue_empty(&broker->waiting))
    {
        return;
    }

    ngx_handoff_close(broker);
}


/* The next offer opens another one. */
void
ngx_handoff_close(ngx_handoff_broker_t *broker)
{
    ngx_handoff_withdraw(broker);

    if (broker->connection) {
        ngx_handoff_unwatch_broker(broker);
    }

    handoff_broker_free(broker->broker);
    broker->broker = NULL;
    broker->settled = 0;
    ngx_memzero(&broker->counts, sizeof(ngx_handoff_counts_t));
}


/*
 * Takes the brokers' descriptors out of the cycle's connections, which nginx looks through for
 * sockets that were forgotten. The brokers are not freed: that would take back what is in flight,
 * and nobody is left to serve it here, while a backend may still adopt what it has received.
 */
void
ngx_handoff_exit_worker(ngx_handoff_main_conf_t *main)
{
    ngx_uint_t              i;
    ngx_handoff_broker_t  **broker;

    if (main == NULL) {
        return;
    }

    broker = main->brokers.elts;

    for (i = 0; i < main->brokers.nelts; i++) {
        if (broker[i]->connection) {
            ngx_handoff_withdraw(broker[i]);
            ngx_handoff_unwatch_broker(broker[i]);
        }
    }
}

#pragma GCC visibility pop
