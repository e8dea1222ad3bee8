/*
 * The brokers of a child process, one for each path, made when the first client needs it and shared by
 * the child's threads.
 */
#include "mod_handoff.h"

#include <apr_atomic.h>
#include <apr_hash.h>
#include <apr_thread_mutex.h>
#include <sys/socket.h>
#include <unistd.h>

APLOG_USE_MODULE(handoff);

#pragma GCC visibility push(hidden)

/* Responses may name sockets in a directory: this bounds what they can open. */
enum { MOST_BROKERS = 256 };

handoff_broker_options handoff_options = HANDOFF_BROKER_OPTIONS_INIT;

static apr_pool_t *child_pool;
static apr_thread_mutex_t *mutex; /* protects `brokers` */
static apr_hash_t *brokers;
static apr_uint32_t waiting;
static int dummy = -1;

/* What stands where a client's descriptor was: a socket on which everything fails at once. It is made
 * early, because after an adoption nothing may fail. -1: this child can hand nothing over. */
int handoff_dummy(void)
{
    return dummy;
}

/* Prefork ends a child out of a signal handler, also in the middle of an offer. The end of the process
 * then closes what there is: what the backend has received, it can adopt. */
static apr_status_t free_brokers(void *unused)
{
    (void)unused;
    if (apr_atomic_read32(&waiting) != 0)
        return APR_SUCCESS;
    for (apr_hash_index_t *i = apr_hash_first(NULL, brokers); i != NULL; i = apr_hash_next(i)) {
        void *broker;
        apr_hash_this(i, NULL, NULL, &broker);
        handoff_broker_free(broker);
    }
    close(dummy);
    return APR_SUCCESS;
}

void handoff_child_init(apr_pool_t *child, server_rec *server)
{
    handoff_options.flags = HANDOFF_BROKER_SHARED;
    child_pool = child;
    brokers = apr_hash_make(child);
    apr_status_t status = apr_thread_mutex_create(&mutex, APR_THREAD_MUTEX_DEFAULT, child);
    if (status == APR_SUCCESS) {
        dummy = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        status = dummy == -1 ? errno : APR_SUCCESS;
    }
    if (status != APR_SUCCESS)
        ap_log_error(APLOG_MARK, APLOG_ERR, status, server, "this child hands no clients over");
    apr_pool_cleanup_register(child, NULL, free_brokers, apr_pool_cleanup_null);
}

/* NULL, or what is wrong with a path. */
const char *handoff_check_path(apr_pool_t *pool, const char *path)
{
    handoff_broker *broker;
    if (handoff_broker_new(path, NULL, &broker) != HANDOFF_OK)
        return apr_pstrdup(pool, handoff_last_error());
    handoff_broker_free(broker);
    return NULL;
}

/* NULL if there is none; `error` then says why. */
static handoff_broker *find_broker(const char *path, const char **error)
{
    handoff_broker *broker;
    apr_thread_mutex_lock(mutex);
    broker = apr_hash_get(brokers, path, APR_HASH_KEY_STRING);
    if (broker == NULL && apr_hash_count(brokers) == MOST_BROKERS)
        *error = "this child has as many brokers as it may";
    else if (broker == NULL) {
        if (handoff_broker_new(path, &handoff_options, &broker) == HANDOFF_OK)
            apr_hash_set(brokers, apr_pstrdup(child_pool, path), APR_HASH_KEY_STRING, broker);
        else
            *error = handoff_last_error();
    }
    apr_thread_mutex_unlock(mutex);
    return broker;
}

/* Offers a client and waits. Without HANDOFF_OK there is no verdict, and `error` says why. */
handoff_status handoff_offer_to(const char *path, const handoff_offer *offer,
                                handoff_verdict *verdict, const char **error)
{
    handoff_status status = HANDOFF_ERR_BACKEND_UNAVAILABLE;
    apr_atomic_inc32(&waiting);
    handoff_broker *broker = find_broker(path, error);
    if (broker != NULL) {
        status = handoff_broker_offer_and_wait(broker, offer, verdict);
        *error = handoff_last_error();
    }
    apr_atomic_dec32(&waiting);
    return status;
}

#pragma GCC visibility pop
