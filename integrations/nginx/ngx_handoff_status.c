/* Counts and states of backends, written to shared memory by each worker. */
#include "ngx_handoff_status.h"

#pragma GCC visibility push(hidden)

#define NGX_HANDOFF_ZONE_SIZE   (1024 * 1024)

/* What changed is written after so many milliseconds, and one more for each backend. */
#define NGX_HANDOFF_DELAY       50


static ngx_int_t ngx_handoff_init_zone(ngx_shm_zone_t *zone, void *data);
static ngx_msec_t ngx_handoff_delay(ngx_handoff_broker_t *broker);
static void ngx_handoff_count_time(ngx_handoff_counts_t *counts, uint64_t us);
static void ngx_handoff_publish_handler(ngx_event_t *ev);
static ngx_int_t ngx_handoff_publish_target(ngx_handoff_broker_t *broker);
static ngx_int_t ngx_handoff_publish_backend(ngx_handoff_broker_t *broker, ngx_uint_t i,
    handoff_broker_backend_state *state);
static void ngx_handoff_log_state(ngx_handoff_broker_t *broker, handoff_broker_backend_state *state,
    ngx_handoff_present_t *present);


ngx_slab_pool_t       *ngx_handoff_pool;
ngx_handoff_worker_t  *ngx_handoff_self;


/* ---- the zone ---- */

char *
ngx_handoff_set_zone_size(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ssize_t                   size;
    ngx_str_t                *value = cf->args->elts;
    ngx_handoff_main_conf_t  *main = conf;

    if (main->zone_size) {
        return "is duplicate";
    }

    size = ngx_parse_size(&value[1]);

    if (size == NGX_ERROR || size < (ssize_t) (8 * ngx_pagesize)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid size \"%V\", it is at least %uz",
                           &value[1], 8 * ngx_pagesize);
        return NGX_CONF_ERROR;
    }

    main->zone_size = size;

    return NGX_CONF_OK;
}


/*
 * Both modules have the same zone, of the larger size if both set one. Its name has the version of
 * what is in it, so that a reload with other modules begins anew.
 */
ngx_int_t
ngx_handoff_add_zone(ngx_conf_t *cf, ngx_handoff_main_conf_t *main)
{
    ngx_shm_zone_t    *zone;
    static ngx_str_t   name = ngx_string("handoff_status:" HANDOFF_VERSION);

    if (!main->used) {
        return NGX_OK;
    }

    zone = ngx_shared_memory_add(cf, &name, 0, &ngx_core_module);
    if (zone == NULL) {
        return NGX_ERROR;
    }

    if (main->zone_size > zone->shm.size) {
        zone->shm.size = main->zone_size;
    }

    if (zone->shm.size == 0) {
        zone->shm.size = NGX_HANDOFF_ZONE_SIZE;
    }

    /* Until the zone is made. */
    main->next = zone->data;
    zone->data = main;

    zone->init = ngx_handoff_init_zone;
    main->zone = zone;

    return NGX_OK;
}


static ngx_int_t
ngx_handoff_init_zone(ngx_shm_zone_t *zone, void *data)
{
    ngx_slab_pool_t      *pool = (ngx_slab_pool_t *) zone->shm.addr;
    ngx_handoff_table_t  *table;

    if (ngx_handoff_check_conf(zone->data) != NGX_OK) {
        return NGX_ERROR;
    }

    if (data || zone->shm.exists) {
        /* That of the configuration before. */
        zone->data = pool->data;
        return NGX_OK;
    }

    table = ngx_slab_calloc(pool, sizeof(ngx_handoff_table_t));
    if (table == NULL) {
        return NGX_ERROR;
    }

    ngx_queue_init(&table->workers);
    ngx_queue_init(&table->rows);

    pool->log_nomem = 0;
    pool->data = table;
    zone->data = table;

    return NGX_OK;
}


/* ---- a worker ---- */

ngx_int_t
ngx_handoff_init_status(ngx_cycle_t *cycle, ngx_handoff_main_conf_t *main)
{
    ngx_queue_t           *q;
    ngx_handoff_table_t   *table;
    ngx_handoff_worker_t  *worker;

    ngx_handoff_pool = (ngx_slab_pool_t *) main->zone->shm.addr;
    table = main->zone->data;

    ngx_shmtx_lock(&ngx_handoff_pool->mutex);

    ngx_handoff_bury(table);

    /* The other module may have been here. */
    for (q = ngx_queue_head(&table->workers);
         q != ngx_queue_sentinel(&table->workers);
         q = ngx_queue_next(q))
    {
        worker = ngx_queue_data(q, ngx_handoff_worker_t, queue);

        if (worker->pid == ngx_pid) {
            ngx_handoff_self = worker;
            break;
        }
    }

    if (ngx_handoff_self == NULL) {
        worker = ngx_handoff_calloc(table, sizeof(ngx_handoff_worker_t));

        if (worker) {
            worker->pid = ngx_pid;
            worker->started = ngx_handoff_started(ngx_pid);
            ngx_queue_insert_tail(&table->workers, &worker->queue);
            ngx_handoff_self = worker;
        }
    }

    ngx_shmtx_unlock(&ngx_handoff_pool->mutex);

    if (ngx_handoff_self == NULL) {
        ngx_log_error(NGX_LOG_WARN, cycle->log, 0, "\"handoff_status_zone\" is too small");
    }

    return NGX_OK;
}


/* What handoff_status tells of it is to be written soon. */
void
ngx_handoff_changed(ngx_handoff_broker_t *broker)
{
    if (ngx_handoff_self == NULL || broker->broker == NULL || broker->publish.timer_set) {
        return;
    }

    broker->publish.data = broker;
    broker->publish.handler = ngx_handoff_publish_handler;
    broker->publish.log = ngx_cycle->log;
    broker->publish.cancelable = 1;

    ngx_add_timer(&broker->publish, ngx_handoff_delay(broker));
}


/* At once, if that has not been for a while: then nothing is left to do after a lone handoff. */
void
ngx_handoff_decided(ngx_handoff_broker_t *broker)
{
    if (ngx_current_msec - broker->published < ngx_handoff_delay(broker)) {
        ngx_handoff_changed(broker);
        return;
    }

    if (broker->publish.timer_set) {
        ngx_del_timer(&broker->publish);
    }

    ngx_handoff_publish(broker);
}


static ngx_msec_t
ngx_handoff_delay(ngx_handoff_broker_t *broker)
{
    return NGX_HANDOFF_DELAY + broker->entries.nelts;
}


static void
ngx_handoff_publish_handler(ngx_event_t *ev)
{
    ngx_handoff_publish(ev->data);
}


/* An offer has ended: `offer` says how, or it was taken back. Or the client could not be offered. */
void
ngx_handoff_count(ngx_handoff_offer_t *offer)
{
    ngx_handoff_counts_t  *counts = &offer->broker->counts;

    counts->offers++;

    if (offer->outcome == 0 || offer->reason == HANDOFF_REASON_CLIENT_GONE) {
        counts->gone++;

    } else if (offer->outcome == HANDOFF_ADOPTED) {
        counts->adopted++;
        ngx_handoff_count_time(counts, offer->wait_ns / 1000);

    } else {
        counts->fallbacks[offer->reason & 31]++;

        /* Clients that could not be offered have not waited. */
        if (offer->reason != HANDOFF_REASON_CLIENT_UNSUPPORTED || offer->tries) {
            ngx_handoff_count_time(counts, offer->wait_ns / 1000);
        }
    }

    ngx_handoff_changed(offer->broker);
}


static void
ngx_handoff_count_time(ngx_handoff_counts_t *counts, uint64_t us)
{
    uint64_t    bound;
    ngx_uint_t  i;

    counts->microseconds += us;

    for (i = 0, bound = 1; i < 31 && us >= bound; i++, bound <<= 1) { /* void */ }
    counts->histogram[i]++;
}


void
ngx_handoff_publish_all(ngx_handoff_main_conf_t *main)
{
    ngx_uint_t              i;
    ngx_handoff_broker_t  **broker = main->brokers.elts;

    for (i = 0; i < main->brokers.nelts; i++) {
        ngx_handoff_publish(broker[i]);
    }
}


/* Writes what handoff_status tells of a broker and its backends. */
void
ngx_handoff_publish(ngx_handoff_broker_t *broker)
{
    ngx_int_t                     rc;
    ngx_uint_t                    n = 0;
    ngx_handoff_entry_t         **entries;
    handoff_broker_backend_state  state = HANDOFF_BROKER_BACKEND_STATE_INIT;
    static ngx_uint_t             logged;

    if (ngx_handoff_self == NULL || broker->broker == NULL) {
        return;
    }

    broker->published = ngx_current_msec;

    ngx_shmtx_lock(&ngx_handoff_pool->mutex);

    rc = ngx_handoff_publish_target(broker);

    while (rc == NGX_OK
           && handoff_broker_get_backend_state(broker->broker, n, &state) == HANDOFF_OK)
    {
        rc = ngx_handoff_publish_backend(broker, n, &state);
        n += (rc == NGX_OK);
    }

    /* Those that are not the broker's any more. */
    while (broker->entries.nelts > n) {
        entries = broker->entries.elts;
        ngx_handoff_drop_entry(entries[--broker->entries.nelts]);
    }

    ngx_shmtx_unlock(&ngx_handoff_pool->mutex);

    if (rc != NGX_OK && !logged) {
        logged = 1;
        ngx_log_error(NGX_LOG_WARN, ngx_cycle->log, 0, "\"handoff_status_zone\" is too small");
    }
}


/* The worker ends: its counts stay. */
void
ngx_handoff_withdraw(ngx_handoff_broker_t *broker)
{
    ngx_handoff_entry_t  **entries;

    if (ngx_handoff_self == NULL) {
        return;
    }

    ngx_handoff_publish(broker);

    ngx_shmtx_lock(&ngx_handoff_pool->mutex);

    while (broker->entries.nelts) {
        entries = broker->entries.elts;
        ngx_handoff_drop_entry(entries[--broker->entries.nelts]);
    }

    if (broker->entry) {
        ngx_handoff_drop_entry(broker->entry);
        broker->entry = NULL;
    }

    ngx_shmtx_unlock(&ngx_handoff_pool->mutex);
}


static ngx_int_t
ngx_handoff_publish_target(ngx_handoff_broker_t *broker)
{
    char                       *lack;
    size_t                      i;
    ngx_handoff_entry_t        *entry;
    handoff_broker_statistics   statistics = HANDOFF_BROKER_STATISTICS_INIT;

    if (broker->entry == NULL) {
        broker->entry = ngx_handoff_new_entry(broker, "");
        if (broker->entry == NULL) {
            return NGX_ERROR;
        }
    }

    entry = broker->entry;
    entry->counts = broker->counts;

    if (handoff_broker_get_statistics(broker->broker, &statistics) == HANDOFF_OK) {
        for (i = 0; i < 64; i++) {
            entry->counts.refusals[i] = statistics.refusals[i];
        }
    }

    entry->present.in_flight = broker->in_flight;
    entry->present.waiting = broker->queued;
    entry->present.room = handoff_broker_room(broker->broker);
    lack = ngx_handoff_lack(broker);
    ngx_handoff_copy_text(entry->present.message, NGX_HANDOFF_MESSAGE_LEN, lack ? lack : "");

    return NGX_OK;
}


static ngx_int_t
ngx_handoff_publish_backend(ngx_handoff_broker_t *broker, ngx_uint_t i,
    handoff_broker_backend_state *state)
{
    uint64_t                now;
    ngx_uint_t              k;
    ngx_handoff_entry_t    *entry, **entries;
    ngx_handoff_counts_t   *counts;
    ngx_handoff_present_t  *present;
    char                    path[NGX_HANDOFF_PATH_LEN];

    ngx_handoff_copy_text(path, sizeof(path), state->path);

    /* Backends keep their order, but for those in front that have gone. */
    entries = broker->entries.elts;

    for (k = i; k < broker->entries.nelts; k++) {
        if (ngx_strcmp(entries[k]->row->path, path) == 0) {
            break;
        }
    }

    if (k == broker->entries.nelts) {
        entry = ngx_handoff_new_entry(broker, path);
        if (entry == NULL) {
            return NGX_ERROR;
        }

        if (ngx_array_push(&broker->entries) == NULL) {
            ngx_handoff_drop_entry(entry);
            return NGX_ERROR;
        }

        entries = broker->entries.elts;
        entries[k] = entry;
    }

    entry = entries[k];
    entries[k] = entries[i];
    entries[i] = entry;

    counts = &entry->counts;
    counts->offers = state->offered;
    counts->adopted = state->adopted;
    counts->gone = state->taken_back;
    counts->connects = state->connects;
    counts->failed_connects = state->failed_connects;
    ngx_memcpy(counts->fallbacks, state->fallbacks, sizeof(counts->fallbacks));
    ngx_memcpy(counts->refusals, state->refusals, sizeof(counts->refusals));
    ngx_memcpy(counts->histogram, state->histogram, sizeof(counts->histogram));

    now = ngx_handoff_now_ns();

    present = &entry->present;

    ngx_handoff_log_state(broker, state, present);

    present->in_flight = state->in_flight;
    present->room = state->room;
    present->since_ns = now - ngx_min(state->since_ms * 1000000, now);
    present->next_ns = (state->next_ms == HANDOFF_NO_TIMEOUT) ? 0
                       : now + state->next_ms * 1000000;
    present->state = state->state;
    present->flags = state->flags;
    present->weight = state->weight;
    present->status = state->status;
    present->error = state->system_errno;
    ngx_handoff_copy_text(present->message, NGX_HANDOFF_MESSAGE_LEN, state->message);

    return NGX_OK;
}

/* One line for each change, and none for each attempt to connect. */
static void
ngx_handoff_log_state(ngx_handoff_broker_t *broker, handoff_broker_backend_state *state,
    ngx_handoff_present_t *present)
{
    char       *what;
    u_char      shown[NGX_HANDOFF_SHOWN];
    ngx_str_t   path;

    switch (state->state) {

    case HANDOFF_STATE_READY:
        what = "it takes connections";
        break;

    case HANDOFF_STATE_DRAINING:
        what = "it drains";
        break;

    case HANDOFF_STATE_RESTING:
        what = "it has failed too often, and gets one connection at a time as a trial";
        break;

    default:
        if (!present->down && *state->message) {
            present->down = 1;
            /* The library's message says why, and names the path. */
            ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0, "handoff to \"%V\": %s",
                          &broker->target->name, state->message);
        }

        return;
    }

    present->down = 0;

    if (present->state != state->state) {
        path = ngx_handoff_show(shown, (u_char *) state->path, ngx_strlen(state->path));
        ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0, "handoff to \"%V\": %V: %s",
                      &broker->target->name, &path, what);
    }
}

#pragma GCC visibility pop
