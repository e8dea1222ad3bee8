/*
 * What the http and the stream module have in common: the brokers of a worker in nginx's event
 * loop, the offers that wait for their verdicts, and the strings that go with an offer.
 *
 * A module fills in an ngx_handoff_offer_t and calls ngx_handoff_offer(). At the end of the event
 * loop's iteration the offer is prepared and sent with all others of that iteration; its done()
 * follows exactly once, with the connection back in the event loop unless it was adopted. Neither
 * is called from within the caller, so both find nothing of theirs on the stack.
 */
#ifndef NGX_HANDOFF_H
#define NGX_HANDOFF_H

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>

#include <handoff.h>

/* nginx loads modules with RTLD_GLOBAL: what both have must not meet in one. */
#pragma GCC visibility push(hidden)

typedef struct ngx_handoff_backend_s  ngx_handoff_backend_t;
typedef struct ngx_handoff_offer_s    ngx_handoff_offer_t;
typedef struct ngx_handoff_slot_s     ngx_handoff_slot_t;


/* One directive's string with variables, such as that of handoff_metadata. */
typedef struct {
    ngx_array_t               parts;     /* of ngx_handoff_part_t */
    ngx_uint_t                json;      /* unsigned json:1; escape variables for JSON strings */
} ngx_handoff_text_t;

/* How a module finds its variables. */
typedef ngx_int_t (*ngx_handoff_index_pt)(ngx_conf_t *cf, ngx_str_t *name);
typedef ngx_variable_value_t *(*ngx_handoff_value_pt)(void *session, ngx_uint_t index);


/* The settings of a location or of a stream server. */
typedef struct {
    ngx_str_t                 path;      /* empty without handoff_pass */
    ngx_handoff_backend_t    *backend;
    ngx_msec_t                timeout;
    ngx_uint_t                max_in_flight;
    ngx_uint_t                max_fails;
    ngx_msec_t                fail_timeout;
    ngx_handoff_text_t       *service;
    ngx_handoff_text_t       *correlation;
    ngx_handoff_text_t       *metadata;
} ngx_handoff_conf_t;


/*
 * What goes with an offer. The library copies it during the call, so it may lie in nginx's own
 * buffers. What has to be put together is in a pool that is reset after each offer.
 */
typedef struct {
    ngx_pool_t               *pool;
    ngx_array_t               preread;   /* of struct iovec */
    size_t                    room;      /* how many more bytes an offer can have */
} ngx_handoff_content_t;


typedef enum {
    NGX_HANDOFF_IDLE = 0,
    NGX_HANDOFF_WAITING,                 /* for the end of the iteration */
    NGX_HANDOFF_IN_FLIGHT
} ngx_handoff_state_e;


struct ngx_handoff_offer_s {
    /* Set by the module. */
    ngx_handoff_conf_t       *conf;
    ngx_connection_t         *connection;
    void                     *session;   /* the request, or the stream's session */
    ngx_handoff_value_pt      value;

    /*
     * Adds what was read from the client to `content`. Returns HANDOFF_REASON_NONE, or why the
     * connection cannot be offered, which it has logged.
     */
    handoff_reason          (*preread)(ngx_handoff_offer_t *offer, ngx_handoff_content_t *content);
    void                    (*done)(ngx_handoff_offer_t *offer);

    /* For done(), and for variables. */
    handoff_outcome           outcome;   /* 0 if nothing was tried */
    handoff_reason            reason;
    uint64_t                  wait_ns;

    /* ngx_handoff.c's own. */
    ngx_handoff_state_e       state;
    ngx_queue_t               queue;
    ngx_handoff_slot_t       *slot;
    uint64_t                  id;
    uint64_t                  since_ns;
    unsigned                  read:1;    /* what was watched before the offer */
    unsigned                  write:1;
};


/* ---- ngx_handoff.c ---- */

extern ngx_conf_num_bounds_t  ngx_handoff_in_flight;
extern ngx_conf_num_bounds_t  ngx_handoff_fails;

void *ngx_handoff_create_backends(ngx_conf_t *cf);
void ngx_handoff_init_conf(ngx_handoff_conf_t *conf);
char *ngx_handoff_merge_conf(ngx_conf_t *cf, ngx_array_t *backends, ngx_handoff_conf_t *prev,
    ngx_handoff_conf_t *conf);
char *ngx_handoff_set_path(ngx_conf_t *cf, ngx_str_t *path);

ngx_int_t ngx_handoff_init_worker(ngx_cycle_t *cycle, ngx_array_t *backends);
void ngx_handoff_exit_worker(ngx_cycle_t *cycle);

void ngx_handoff_offer(ngx_handoff_offer_t *offer);
void ngx_handoff_refuse(ngx_handoff_offer_t *offer, handoff_reason reason);
void ngx_handoff_take_back(ngx_handoff_offer_t *offer);

/* Both return NULL, or why so many bytes cannot go along. */
char *ngx_handoff_add_preread(ngx_handoff_content_t *content, u_char *data, size_t len);
char *ngx_handoff_allocate(ngx_handoff_content_t *content, size_t len, u_char **data);

/* ---- ngx_handoff_watch.c ---- */

ngx_int_t ngx_handoff_unwatch(ngx_handoff_offer_t *offer);
ngx_int_t ngx_handoff_watch(ngx_handoff_offer_t *offer);

/* ---- ngx_handoff_copy.c ---- */

ngx_int_t ngx_handoff_init_copies(ngx_cycle_t *cycle);
ngx_int_t ngx_handoff_add_copy(ngx_connection_t *c);
void ngx_handoff_adopted(ngx_connection_t *c);
void ngx_handoff_end(ngx_connection_t *c);

/* ---- ngx_handoff_text.c ---- */

char *ngx_handoff_set_text(ngx_conf_t *cf, ngx_handoff_index_pt index, ngx_handoff_text_t **text);
char *ngx_handoff_write_text(ngx_handoff_text_t *text, ngx_handoff_value_pt value, void *session,
    ngx_handoff_content_t *content, ngx_str_t *written);

ngx_int_t ngx_handoff_outcome_text(ngx_pool_t *pool, ngx_variable_value_t *v,
    ngx_handoff_offer_t *offer, uintptr_t which);

enum { NGX_HANDOFF_OUTCOME, NGX_HANDOFF_REASON, NGX_HANDOFF_WAIT };


/*
 * The directives of both modules but handoff_pass. `where` they may stand, which configuration
 * they set (its ngx_handoff_conf_t comes first), and what sets a text.
 */
#define NGX_HANDOFF_COMMANDS(where, conf, set_text)                                               \
    { ngx_string("handoff_timeout"), where|NGX_CONF_TAKE1, ngx_conf_set_msec_slot,                \
      conf, offsetof(ngx_handoff_conf_t, timeout), NULL },                                        \
    { ngx_string("handoff_max_in_flight"), where|NGX_CONF_TAKE1, ngx_conf_set_num_slot,           \
      conf, offsetof(ngx_handoff_conf_t, max_in_flight), &ngx_handoff_in_flight },                \
    { ngx_string("handoff_max_fails"), where|NGX_CONF_TAKE1, ngx_conf_set_num_slot,               \
      conf, offsetof(ngx_handoff_conf_t, max_fails), &ngx_handoff_fails },                        \
    { ngx_string("handoff_fail_timeout"), where|NGX_CONF_TAKE1, ngx_conf_set_msec_slot,           \
      conf, offsetof(ngx_handoff_conf_t, fail_timeout), NULL },                                   \
    { ngx_string("handoff_service"), where|NGX_CONF_TAKE1, set_text,                              \
      conf, offsetof(ngx_handoff_conf_t, service), NULL },                                        \
    { ngx_string("handoff_correlation"), where|NGX_CONF_TAKE1, set_text,                          \
      conf, offsetof(ngx_handoff_conf_t, correlation), NULL },                                    \
    { ngx_string("handoff_metadata"), where|NGX_CONF_1MORE, set_text,                             \
      conf, offsetof(ngx_handoff_conf_t, metadata), NULL }

#pragma GCC visibility pop

#endif
