/* The table in shared memory: rows, the workers' entries in them, and what they add up to. */
#include "ngx_handoff_status.h"

#include <signal.h>

#pragma GCC visibility push(hidden)

static ngx_handoff_row_t *ngx_handoff_get_row(ngx_handoff_table_t *table,
    ngx_handoff_broker_t *broker, char *path);
static ngx_int_t ngx_handoff_is_dead(ngx_handoff_worker_t *worker);
static void ngx_handoff_add_counts(ngx_handoff_counts_t *sum, ngx_handoff_counts_t *counts);
static void ngx_handoff_add_present(ngx_handoff_summary_t *summary,
    ngx_handoff_present_t *present);

/* From the state that needs attention least to the one that needs it most. */
static ngx_uint_t  ngx_handoff_concern[NGX_HANDOFF_STATES] = { 0, 3, 1, 2, 4, 5 };


ngx_handoff_entry_t *
ngx_handoff_new_entry(ngx_handoff_broker_t *broker, char *path)
{
    ngx_handoff_row_t    *row;
    ngx_handoff_table_t  *table = ngx_handoff_pool->data;
    ngx_handoff_entry_t  *entry;

    /* Before the row: one without entries may have to go. */
    entry = ngx_handoff_calloc(table, sizeof(ngx_handoff_entry_t));
    if (entry == NULL) {
        return NULL;
    }

    row = ngx_handoff_get_row(table, broker, path);
    if (row == NULL) {
        ngx_slab_free_locked(ngx_handoff_pool, entry);
        return NULL;
    }

    entry->row = row;
    entry->worker = ngx_handoff_self;
    ngx_handoff_self->entries++;
    ngx_queue_insert_tail(&row->entries, &entry->queue);

    return entry;
}


static ngx_handoff_row_t *
ngx_handoff_get_row(ngx_handoff_table_t *table, ngx_handoff_broker_t *broker, char *path)
{
    char                      target[NGX_HANDOFF_TARGET_LEN];
    ngx_uint_t                stream;
    ngx_queue_t              *q;
    ngx_handoff_row_t        *row;

    stream = (broker->main->module[0] == 's');
    ngx_handoff_copy_text(target, sizeof(target), (char *) broker->target->name.data);

    for (q = ngx_queue_head(&table->rows);
         q != ngx_queue_sentinel(&table->rows);
         q = ngx_queue_next(q))
    {
        row = ngx_queue_data(q, ngx_handoff_row_t, queue);

        if (row->stream == stream && ngx_strcmp(row->path, path) == 0
            && ngx_strcmp(row->target, target) == 0)
        {
            return row;
        }
    }

    row = ngx_handoff_calloc(table, sizeof(ngx_handoff_row_t));
    if (row == NULL) {
        return NULL;
    }

    ngx_queue_init(&row->entries);
    row->stream = stream;
    ngx_memcpy(row->target, target, ngx_strlen(target) + 1);
    ngx_memcpy(row->path, path, ngx_strlen(path) + 1);
    ngx_queue_insert_tail(&table->rows, &row->queue);
    table->number++;

    return row;
}


/* If there is no room, rows that no worker has any more make some. */
void *
ngx_handoff_calloc(ngx_handoff_table_t *table, size_t size)
{
    void               *p;
    ngx_queue_t        *q, *next;
    ngx_handoff_row_t  *row;

    p = ngx_slab_calloc_locked(ngx_handoff_pool, size);
    if (p) {
        return p;
    }

    for (q = ngx_queue_head(&table->rows); q != ngx_queue_sentinel(&table->rows); q = next) {
        next = ngx_queue_next(q);
        row = ngx_queue_data(q, ngx_handoff_row_t, queue);

        if (ngx_queue_empty(&row->entries)) {
            ngx_queue_remove(q);
            ngx_slab_free_locked(ngx_handoff_pool, row);
            table->number--;
        }
    }

    p = ngx_slab_calloc_locked(ngx_handoff_pool, size);
    if (p == NULL) {
        table->lost++;
    }

    return p;
}


/* Its counts stay in the row. */
void
ngx_handoff_drop_entry(ngx_handoff_entry_t *entry)
{
    ngx_handoff_add_counts(&entry->row->past, &entry->counts);
    entry->worker->entries--;
    ngx_queue_remove(&entry->queue);
    ngx_slab_free_locked(ngx_handoff_pool, entry);
}


/* Takes out the entries of workers that were killed. */
void
ngx_handoff_bury(ngx_handoff_table_t *table)
{
    ngx_uint_t             dead = 0;
    ngx_queue_t           *q, *next, *e, *after;
    ngx_handoff_row_t     *row;
    ngx_handoff_entry_t   *entry;
    ngx_handoff_worker_t  *worker;

    for (q = ngx_queue_head(&table->workers);
         q != ngx_queue_sentinel(&table->workers);
         q = ngx_queue_next(q))
    {
        worker = ngx_queue_data(q, ngx_handoff_worker_t, queue);

        if (worker != ngx_handoff_self && ngx_handoff_is_dead(worker)) {
            worker->dead = 1;
            dead = 1;
        }
    }

    if (!dead) {
        return;
    }

    for (q = ngx_queue_head(&table->rows);
         q != ngx_queue_sentinel(&table->rows);
         q = ngx_queue_next(q))
    {
        row = ngx_queue_data(q, ngx_handoff_row_t, queue);

        for (e = ngx_queue_head(&row->entries);
             e != ngx_queue_sentinel(&row->entries);
             e = after)
        {
            after = ngx_queue_next(e);
            entry = ngx_queue_data(e, ngx_handoff_entry_t, queue);

            if (entry->worker->dead) {
                ngx_handoff_drop_entry(entry);
            }
        }
    }

    for (q = ngx_queue_head(&table->workers);
         q != ngx_queue_sentinel(&table->workers);
         q = next)
    {
        next = ngx_queue_next(q);
        worker = ngx_queue_data(q, ngx_handoff_worker_t, queue);

        if (worker->dead) {
            ngx_queue_remove(q);
            ngx_slab_free_locked(ngx_handoff_pool, worker);
        }
    }
}


/* A pid is used again; with the time at which it was started it names a process. */
static ngx_int_t
ngx_handoff_is_dead(ngx_handoff_worker_t *worker)
{
    uint64_t  started;

    if (kill(worker->pid, 0) == -1 && ngx_errno == ESRCH) {
        return 1;
    }

    started = ngx_handoff_started(worker->pid);

    return started && worker->started && started != worker->started;
}


/*
 * When a process was started, in the kernel's ticks: proc(5). 1 if it has ended, and its parent has
 * not waited for it. 0 if that cannot be told.
 */
uint64_t
ngx_handoff_started(ngx_pid_t pid)
{
    int         fd;
    char       *p, buf[512], path[sizeof("/proc//stat") + NGX_INT64_LEN];
    ssize_t     n;
    ngx_uint_t  field;

    *ngx_sprintf((u_char *) path, "/proc/%P/stat", pid) = '\0';

    fd = open(path, O_RDONLY|O_CLOEXEC);
    if (fd == -1) {
        return 0;
    }

    n = read(fd, buf, sizeof(buf) - 1);
    (void) close(fd);

    if (n <= 0) {
        return 0;
    }

    buf[n] = '\0';

    /* The name, in parentheses, may have anything in it. The state is field 3, the time is 22. */
    p = strrchr(buf, ')');

    if (p && (ngx_strncmp(p, ") Z", 3) == 0 || ngx_strncmp(p, ") X", 3) == 0)) {
        return 1;
    }

    for (field = 2; field < 22 && p; field++) {
        p = strchr(p + 1, ' ');
    }

    return p ? strtoull(p + 1, NULL, 10) : 0;
}


/* ---- reading ---- */

ngx_int_t
ngx_handoff_read_status(ngx_shm_zone_t *zone, ngx_array_t *summaries, ngx_array_t *pids,
    ngx_uint_t *lost)
{
    ngx_pid_t              *pid;
    ngx_int_t               rc = NGX_OK;
    ngx_queue_t            *q, *e;
    ngx_slab_pool_t        *pool = (ngx_slab_pool_t *) zone->shm.addr;
    ngx_handoff_row_t      *row;
    ngx_handoff_table_t    *table = zone->data;
    ngx_handoff_entry_t    *entry;
    ngx_handoff_worker_t   *worker;
    ngx_handoff_summary_t  *summary;

    ngx_shmtx_lock(&pool->mutex);

    ngx_handoff_bury(table);
    *lost = table->lost;

    for (q = ngx_queue_head(&table->workers);
         q != ngx_queue_sentinel(&table->workers);
         q = ngx_queue_next(q))
    {
        worker = ngx_queue_data(q, ngx_handoff_worker_t, queue);

        pid = ngx_array_push(pids);
        if (pid) {
            *pid = worker->pid;
        }
    }

    for (q = ngx_queue_head(&table->rows);
         q != ngx_queue_sentinel(&table->rows);
         q = ngx_queue_next(q))
    {
        row = ngx_queue_data(q, ngx_handoff_row_t, queue);

        if (ngx_queue_empty(&row->entries)) {
            continue;
        }

        summary = ngx_array_push(summaries);
        if (summary == NULL) {
            rc = NGX_ERROR;
            break;
        }

        ngx_memzero(summary, sizeof(ngx_handoff_summary_t));
        summary->stream = row->stream;
        ngx_memcpy(summary->target, row->target, sizeof(summary->target));
        ngx_memcpy(summary->path, row->path, sizeof(summary->path));
        summary->counts = row->past;

        for (e = ngx_queue_head(&row->entries);
             e != ngx_queue_sentinel(&row->entries);
             e = ngx_queue_next(e))
        {
            entry = ngx_queue_data(e, ngx_handoff_entry_t, queue);
            ngx_handoff_add_counts(&summary->counts, &entry->counts);
            ngx_handoff_add_present(summary, &entry->present);
        }
    }

    ngx_shmtx_unlock(&pool->mutex);

    return rc;
}


static void
ngx_handoff_add_counts(ngx_handoff_counts_t *sum, ngx_handoff_counts_t *counts)
{
    size_t     i;
    uint64_t  *to = (uint64_t *) sum, *from = (uint64_t *) counts;

    for (i = 0; i < sizeof(ngx_handoff_counts_t) / sizeof(uint64_t); i++) {
        to[i] += from[i];
    }
}


static void
ngx_handoff_add_present(ngx_handoff_summary_t *summary, ngx_handoff_present_t *present)
{
    uint64_t                in_flight, room, waiting;
    ngx_uint_t              state;
    ngx_handoff_present_t  *sum = &summary->present;

    state = (present->state < NGX_HANDOFF_STATES) ? present->state : 0;
    summary->states[state]++;

    in_flight = sum->in_flight + present->in_flight;
    room = sum->room + present->room;
    waiting = sum->waiting + present->waiting;

    if (sum->weight == 0 || ngx_handoff_concern[state] > ngx_handoff_concern[sum->state]) {
        *sum = *present;
        sum->state = state;
    }

    sum->in_flight = in_flight;
    sum->room = room;
    sum->waiting = waiting;
}


/*
 * The name of a file in a directory may be anything. What can't be printed becomes \xHH, and so does a
 * backslash, so that no two names look the same.
 */
void
ngx_handoff_copy_text(char *to, size_t size, const char *from)
{
    size_t   len, n;
    u_char  *p, *last;

    p = (u_char *) from;
    last = p + ngx_strlen(from);

    while (p < last) {
        len = (*p < 0x20 || *p == 0x7f || *p == '\\') ? 0 : ngx_handoff_character(p, last);

        n = len ? len : sizeof("\\xHH") - 1;

        if (n > size - 1) {
            break;
        }

        if (len) {
            to = (char *) ngx_cpymem(to, p, len);
            p += len;

        } else {
            to = (char *) ngx_sprintf((u_char *) to, "\\x%02xd", *p++);
        }

        size -= n;
    }

    *to = '\0';
}

#pragma GCC visibility pop
