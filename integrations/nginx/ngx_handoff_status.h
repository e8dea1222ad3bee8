/*
 * What handoff_status tells, in shared memory.
 *
 * There is a row for each target of each module, and for each backend of that target. In a row
 * each worker has an entry of its own for each broker, which only this worker writes. When the
 * worker ends its counts are added to the row's, and what it had in flight is forgotten. A worker
 * that was killed is found by the others: its process is not there any more.
 */
#ifndef NGX_HANDOFF_STATUS_H
#define NGX_HANDOFF_STATUS_H

#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

/* Of 107 bytes, each of which may be shown as four. */
#define NGX_HANDOFF_PATH_LEN     429
#define NGX_HANDOFF_TARGET_LEN   128
#define NGX_HANDOFF_MESSAGE_LEN  256

/* The states of a backend, and 0. */
#define NGX_HANDOFF_STATES       6

typedef struct {
    ngx_queue_t            workers;      /* of ngx_handoff_worker_t */
    ngx_queue_t            rows;         /* of ngx_handoff_row_t */
    ngx_uint_t             number;       /* of rows */
    ngx_uint_t             lost;         /* how often there was no room for an entry */
} ngx_handoff_table_t;


typedef struct {
    ngx_queue_t            queue;
    ngx_pid_t              pid;
    uint64_t               started;      /* in the kernel's ticks; 0: not known */
    ngx_uint_t             entries;      /* how many */
    ngx_uint_t             dead;         /* unsigned dead:1; */
} ngx_handoff_worker_t;


typedef struct {
    ngx_queue_t            queue;
    ngx_queue_t            entries;      /* of ngx_handoff_entry_t */
    ngx_uint_t             stream;       /* unsigned stream:1; http otherwise */
    ngx_handoff_counts_t   past;         /* of workers that have ended */
    char                   target[NGX_HANDOFF_TARGET_LEN];
    char                   path[NGX_HANDOFF_PATH_LEN];   /* empty: the target's own row */
} ngx_handoff_row_t;


/* What is so now. In the row of a target there is no state. */
typedef struct {
    uint64_t               in_flight;
    uint64_t               room;
    uint64_t               waiting;      /* in the queue */
    uint64_t               since_ns;     /* on the clock of ngx_handoff_now_ns() */
    uint64_t               next_ns;      /* 0: nothing is planned */
    uint32_t               state;        /* HANDOFF_BACKEND_* */
    uint32_t               flags;
    uint32_t               weight;
    uint32_t               down;         /* unsigned down:1; the log says that it has no channel */
    handoff_status         status;
    int                    error;
    char                   message[NGX_HANDOFF_MESSAGE_LEN];
} ngx_handoff_present_t;


struct ngx_handoff_entry_s {
    ngx_queue_t            queue;
    ngx_handoff_row_t     *row;
    ngx_handoff_worker_t  *worker;
    ngx_handoff_counts_t   counts;
    ngx_handoff_present_t  present;
};


/* A row, added up over the workers. */
typedef struct {
    ngx_uint_t             stream;       /* unsigned stream:1; */
    char                   target[NGX_HANDOFF_TARGET_LEN];
    char                   path[NGX_HANDOFF_PATH_LEN];
    ngx_handoff_counts_t   counts;
    ngx_handoff_present_t  present;      /* its state is the one that needs most attention */
    ngx_uint_t             states[NGX_HANDOFF_STATES];   /* how many workers are in each */
} ngx_handoff_summary_t;


/* ---- ngx_handoff_status.c ---- */

extern ngx_slab_pool_t       *ngx_handoff_pool;
extern ngx_handoff_worker_t  *ngx_handoff_self;   /* NULL if it has no room in the zone */

void ngx_handoff_publish_all(ngx_handoff_main_conf_t *main);

/* ---- ngx_handoff_table.c; for all but the last three the table is locked ---- */

ngx_handoff_entry_t *ngx_handoff_new_entry(ngx_handoff_broker_t *broker, char *path);
void ngx_handoff_drop_entry(ngx_handoff_entry_t *entry);
void *ngx_handoff_calloc(ngx_handoff_table_t *table, size_t size);
void ngx_handoff_bury(ngx_handoff_table_t *table);
uint64_t ngx_handoff_started(ngx_pid_t pid);
void ngx_handoff_copy_text(char *to, size_t size, const char *from);

/* NGX_ERROR if there is no memory. `summaries` is of ngx_handoff_summary_t. */
ngx_int_t ngx_handoff_read_status(ngx_shm_zone_t *zone, ngx_array_t *summaries,
    ngx_array_t *pids, ngx_uint_t *lost);

#pragma GCC visibility pop

#endif
