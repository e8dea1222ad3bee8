/*
 * The brokers of a child process, one for each path, made when the first client needs it and shared by
 * the child's threads. Those of configured paths stay. Those that responses have found in a directory
 * make room for others.
 */
#include "mod_handoff.h"

#include <apr_atomic.h>
#include <apr_hash.h>
#include <apr_thread_mutex.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

APLOG_USE_MODULE(handoff);

#pragma GCC visibility push(hidden)

/* Of sockets in directories, which responses name: this bounds what they can open. */
enum { MOST_FOUND = 256 };

typedef struct {
    handoff_broker *broker;
    int found; /* in a directory */
    unsigned waiting; /* so many threads use it */
    apr_uint64_t used; /* the largest is the latest */
    char path[];
} entry;

handoff_broker_options handoff_options = HANDOFF_BROKER_OPTIONS_INIT;

static apr_pool_t *child_pool;
static apr_thread_mutex_t *mutex; /* protects what follows */
static apr_hash_t *brokers; /* paths to entries */
static unsigned found_brokers;
static apr_uint64_t uses;

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
        void *value;
        apr_hash_this(i, NULL, NULL, &value);
        entry *e = value;
        handoff_broker_free(e->broker);
        free(e);
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

/* Frees the one that nobody has used for longest, if it must. Returns 0 if there is no room. */
static int make_room(void)
{
    entry *oldest = NULL;
    if (found_brokers < MOST_FOUND)
        return 1;
    for (apr_hash_index_t *i = apr_hash_first(NULL, brokers); i != NULL; i = apr_hash_next(i)) {
        void *value;
        apr_hash_this(i, NULL, NULL, &value);
        entry *e = value;
        if (e->found && e->waiting == 0 && (oldest == NULL || e->used < oldest->used))
            oldest = e;
    }
    if (oldest == NULL)
        return 0;
    apr_hash_set(brokers, oldest->path, APR_HASH_KEY_STRING, NULL);
    handoff_broker_free(oldest->broker);
    free(oldest);
    found_brokers--;
    return 1;
}

/* NULL: there is none, and `error` says why. */
static entry *add(const char *path, int found, const char **error)
{
    if (found && !make_room()) {
        *error = "this child has as many brokers as it may";
        return NULL;
    }
    size_t len = strlen(path) + 1;
    entry *e = calloc(1, sizeof *e + len);
    if (e == NULL) {
        *error = strerror(ENOMEM);
        return NULL;
    }
    if (handoff_broker_new(path, &handoff_options, &e->broker) != HANDOFF_OK) {
        *error = handoff_last_error();
        free(e);
        return NULL;
    }
    memcpy(e->path, path, len);
    e->found = found;
    found_brokers += found != 0;
    apr_hash_set(brokers, e->path, APR_HASH_KEY_STRING, e);
    return e;
}

/* NULL: there is none, and `error` says why. Otherwise leave() must follow. */
static entry *enter(const char *path, int found, const char **error)
{
    /* A link could lead out of the directory. */
    struct stat file;
    int missing = found && lstat(path, &file) != 0 ? errno : 0;
    if (found && !missing && !S_ISSOCK(file.st_mode)) {
        *error = "it is no socket";
        return NULL;
    }
    apr_thread_mutex_lock(mutex);
    entry *e = apr_hash_get(brokers, path, APR_HASH_KEY_STRING);
    if (e == NULL && missing) /* otherwise its backend may be restarting */
        *error = strerror(missing);
    else if (e == NULL)
        e = add(path, found, error);
    if (e != NULL) {
        e->waiting++;
        e->used = ++uses;
    }
    /* A path that is configured too counts no longer. */
    if (e != NULL && e->found && !found) {
        e->found = 0;
        found_brokers--;
    }
    apr_thread_mutex_unlock(mutex);
    return e;
}

static void leave(entry *e)
{
    apr_thread_mutex_lock(mutex);
    e->waiting--;
    apr_thread_mutex_unlock(mutex);
}

/* Offers a client and waits. `found`: the path is of a HandoffAllow directory. Without HANDOFF_OK there
 * is no verdict, and `error` says why. */
handoff_status handoff_offer_to(const char *path, int found, const handoff_offer *offer,
                                handoff_verdict *verdict, const char **error)
{
    handoff_status status = HANDOFF_ERR_BACKEND_UNAVAILABLE;
    apr_atomic_inc32(&waiting);
    entry *e = enter(path, found, error);
    if (e != NULL) {
        status = handoff_broker_offer_and_wait(e->broker, offer, verdict);
        *error = handoff_last_error();
        leave(e);
    }
    apr_atomic_dec32(&waiting);
    return status;
}

#pragma GCC visibility pop
