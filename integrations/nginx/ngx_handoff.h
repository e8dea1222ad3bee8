/*
 * What the http and the stream module have in common: the brokers of a worker in nginx's event
 * loop, the offers that wait for their verdicts, and the strings that go with an offer.
 *
 * A module fills in an ngx_handoff_offer_t and calls ngx_handoff_offer(). At the end of the event
 * loop's iteration the offer is prepared and sent with all others of that iteration, unless it has
 * to wait for room; its done() follows exactly once, with the connection back in the event loop
 * unless it was adopted. Neither is called from within the caller, so both find nothing of theirs
 * on the stack.
 */
#ifndef NGX_HANDOFF_H
#define NGX_HANDOFF_H

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>

#include <handoff.h>
#include <handoff/tls.h>

/* OpenSSL with kernel TLS, which has no such calls on systems without it. */
#if (NGX_SSL) && defined(SSL_OP_ENABLE_KTLS) && defined(BIO_get_ktls_send) && !defined(OPENSSL_NO_KTLS)
#define NGX_HANDOFF_TLS  1
#endif

/* nginx loads modules with RTLD_GLOBAL: what both have must not meet in one. */
#pragma GCC visibility push(hidden)

typedef struct ngx_handoff_main_conf_s  ngx_handoff_main_conf_t;
typedef struct ngx_handoff_conf_s     ngx_handoff_conf_t;
typedef struct ngx_handoff_broker_s   ngx_handoff_broker_t;
typedef struct ngx_handoff_offer_s    ngx_handoff_offer_t;
typedef struct ngx_handoff_slot_s     ngx_handoff_slot_t;
typedef struct ngx_handoff_entry_s    ngx_handoff_entry_t;


/* One directive's string with variables, such as that of handoff_metadata. */
typedef struct {
    ngx_array_t               parts;     /* of ngx_handoff_part_t */
    ngx_uint_t                json;      /* unsigned json:1; escape variables for JSON strings */
    ngx_int_t                *standard;  /* of "handoff_metadata default": its variables' indices */
} ngx_handoff_text_t;

/* Instead of a variable's index: that of what a regular expression's parentheses took, $1 to $9. */
#define NGX_HANDOFF_CAPTURE  0x10000

/* How a module finds its variables, and whether nginx has one. */
typedef ngx_int_t (*ngx_handoff_index_pt)(ngx_conf_t *cf, ngx_str_t *name);
typedef ngx_uint_t (*ngx_handoff_known_pt)(ngx_conf_t *cf, ngx_str_t *name);
typedef ngx_variable_value_t *(*ngx_handoff_value_pt)(void *session, ngx_uint_t index);


/* A server of an upstream block. Its path may be a directory, as that of handoff_pass. */
typedef struct {
    ngx_str_t                 path;      /* without "unix:" */
    ngx_uint_t                weight;
    ngx_uint_t                max_fails;
    ngx_msec_t                fail_timeout;
    ngx_uint_t                backup;    /* unsigned backup:1; */
    ngx_uint_t                down;      /* unsigned down:1; */
} ngx_handoff_server_t;


/* What handoff_pass can name: an upstream block, or a path. */
typedef struct {
    ngx_str_t                 name;      /* of the upstream, or "unix:" and the path */
    ngx_array_t              *servers;   /* of ngx_handoff_server_t; NULL if it is a path */
    ngx_uint_t                method;    /* unsigned method:1; a balancing method, or keepalive, is set */
    char                     *mistake;   /* why nothing can be handed over to it, or NULL */
    ngx_str_t                 culprit;   /* the server that is the mistake */
} ngx_handoff_target_t;


/* The main configuration of each module. */
struct ngx_handoff_main_conf_s {
    char                     *module;    /* "http" or "stream" */
    ngx_cycle_t              *cycle;
    ngx_handoff_main_conf_t  *next;      /* the other module's, in the list of the zone */
    ngx_array_t               targets;   /* of ngx_handoff_target_t * */
    ngx_array_t               brokers;   /* of ngx_handoff_broker_t * */
    size_t                    zone_size; /* 0: the default */
    ngx_shm_zone_t           *zone;      /* NULL if nothing is handed over */
    ngx_uint_t                used;      /* unsigned used:1; */
    ngx_uint_t                realip;    /* ctx_index of nginx's realip module, or UNSET */
    ngx_uint_t                warned;    /* unsigned warned:1; that the kernel has no TLS */
    ngx_handoff_conf_t       *hasty;     /* one with variables whose attempts have all the time */
};


/* The settings of a location or of a stream server. */
struct ngx_handoff_conf_s {
    ngx_str_t                 pass;      /* empty without handoff_pass */
    void                     *value;     /* of a handoff_pass with variables, the module's own */
    ngx_handoff_broker_t     *broker;    /* of one without */
    u_char                   *file;      /* where handoff_pass is */
    ngx_uint_t                line;
    ngx_msec_t                timeout;
    ngx_msec_t                attempt_timeout;
    ngx_uint_t                max_in_flight;
    ngx_uint_t                max_fails;
    ngx_msec_t                fail_timeout;
    ngx_uint_t                queue;     /* how many offers may wait for room */
    ngx_msec_t                queue_timeout;
    ngx_uint_t                log_status;  /* of an adopted connection's request, for http */
    ngx_handoff_text_t       *service;
    ngx_handoff_text_t       *correlation;
    ngx_handoff_text_t       *metadata;
};


/* Counts for handoff_status; each is a uint64_t, so that they can be added as an array. */
typedef struct {
    uint64_t                  offers;
    uint64_t                  adopted;
    uint64_t                  gone;      /* their clients went away, or they were taken back */
    uint64_t                  failovers;
    uint64_t                  queued;
    uint64_t                  connects;
    uint64_t                  failed_connects;
    uint64_t                  microseconds;
    uint64_t                  fallbacks[32];
    uint64_t                  refusals[64];
    uint64_t                  histogram[32];
} ngx_handoff_counts_t;


/* A handoff_broker, for a target and the limits that a location has set for it. */
struct ngx_handoff_broker_s {
    ngx_handoff_main_conf_t  *main;
    ngx_handoff_target_t     *target;
    ngx_uint_t                max_in_flight;
    ngx_uint_t                max_fails;
    ngx_msec_t                fail_timeout;
    ngx_msec_t                attempt_timeout;
    ngx_uint_t                warned;    /* unsigned warned:1; that no offer goes to another backend */

    /* Each worker's own. */
    ngx_uint_t                begun;     /* unsigned begun:1; what follows is initialised */
    handoff_broker           *broker;    /* NULL if it is not open */
    ngx_uint_t                failed;    /* unsigned failed:1; it could not be opened */
    ngx_msec_t                opened;    /* when that was tried */
    ngx_connection_t         *connection;  /* its descriptor's in the event loop, while it is open */
    ngx_queue_t               waiting;   /* of ngx_handoff_offer_t, for the iteration's end */
    ngx_event_t               flush;
    ngx_event_t               busy;
    ngx_uint_t                in_flight;
    ngx_handoff_slot_t       *free;
    ngx_uint_t                broken;    /* unsigned broken:1; the library has a bug: it is closed */
    ngx_handoff_slot_t       *lost;      /* of the offer that met the bug */

    /* ngx_handoff_queue.c's own. */
    ngx_queue_t               queue;     /* of ngx_handoff_offer_t, for room */
    ngx_uint_t                queued;    /* how many those are */
    handoff_status            refused;   /* with which those are: FULL, or BACKEND_UNAVAILABLE at first */
    ngx_uint_t                settled;   /* unsigned settled:1; it is not new any more */

    /* ngx_handoff_status.c's own. */
    ngx_event_t               publish;
    ngx_msec_t                published; /* when */
    ngx_handoff_counts_t      counts;
    ngx_handoff_entry_t      *entry;
    ngx_array_t               entries;   /* of ngx_handoff_entry_t *, one for each backend */
};


/*
 * What goes with an offer. The library copies it during the call, so it may lie in nginx's own
 * buffers. What has to be put together is in a pool that is reset after each offer.
 */
typedef struct {
    ngx_pool_t               *pool;
    ngx_array_t               preread;   /* of struct iovec */
    size_t                    room;      /* how many more bytes an offer can have */
} ngx_handoff_content_t;


#if (NGX_HANDOFF_TLS)

/* Of a connection whose TLS nginx terminates. */
typedef struct {
    /* What was in OpenSSL at an offer, for nginx to read. */
    u_char                   *start;     /* NULL if there is nothing */
    u_char                   *pos;
    u_char                   *last;
    u_char                   *end;

    ngx_recv_pt               recv;      /* OpenSSL's; NULL before the first offer */
    ngx_recv_chain_pt         recv_chain;

    /* ngx_handoff_tls_keys.c's own. */
    u_char                    secret[EVP_MAX_MD_SIZE];
    size_t                    secret_len;
    uint64_t                  headers;   /* of records under that secret */
    uint64_t                  records;   /* that were decrypted with it */
    unsigned                  rekeyed:1; /* there is another secret now */
    unsigned                  kernel:1;  /* the kernel receives, and OpenSSL does not know */
} ngx_handoff_tls_t;

#endif


typedef enum {
    NGX_HANDOFF_IDLE = 0,
    NGX_HANDOFF_WAITING,                 /* for the end of the iteration */
    NGX_HANDOFF_QUEUED,                  /* for room */
    NGX_HANDOFF_IN_FLIGHT
} ngx_handoff_state_e;


struct ngx_handoff_offer_s {
    /* Set by the module. */
    ngx_handoff_conf_t       *conf;
    ngx_handoff_broker_t     *broker;
    ngx_pool_t               *pool;
    ngx_connection_t         *connection;
    void                     *session;   /* the request, or the stream's session */
    ngx_handoff_value_pt      value;
    ngx_uint_t                real_ip;   /* unsigned real_ip:1; set_real_ip_from is in force */

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
    ngx_str_t                 backend;   /* the path of the one that had it last */
    ngx_uint_t                tries;     /* how many backends had it */

    /* ngx_handoff.c's own. */
    ngx_handoff_state_e       state;
    ngx_queue_t               queue;
    ngx_event_t               expiry;    /* of its time in the queue */
    size_t                    needs;     /* bytes that it had at the last attempt */
    ngx_handoff_slot_t       *slot;
    uint64_t                  id;
    uint64_t                  since_ns;
    unsigned                  read:1;    /* what was watched before the offer */
    unsigned                  write:1;
};


/* ---- ngx_handoff.c ---- */

void ngx_handoff_offer(ngx_handoff_offer_t *offer);
ngx_int_t ngx_handoff_send(ngx_handoff_offer_t *offer, ngx_pool_t *pool);
void ngx_handoff_flush(ngx_handoff_broker_t *broker, ngx_log_t *log);
void ngx_handoff_refuse(ngx_handoff_offer_t *offer, handoff_reason reason);
void ngx_handoff_finish(ngx_handoff_offer_t *offer, handoff_outcome outcome,
    handoff_reason reason);
void ngx_handoff_take_back(ngx_handoff_offer_t *offer);
void ngx_handoff_ended(ngx_handoff_offer_t *offer);
void ngx_handoff_flush_handler(ngx_event_t *ev);
void ngx_handoff_busy_handler(ngx_event_t *ev);
void ngx_handoff_dispatch_handler(ngx_event_t *ev);
void ngx_handoff_log_error(ngx_handoff_broker_t *broker, ngx_log_t *log);
uint64_t ngx_handoff_now_ns(void);

/* More than the content of the usual offer needs. */
#define NGX_HANDOFF_POOL_SIZE  4096

/* Both return NULL, or why so many bytes cannot go along. */
char *ngx_handoff_add_preread(ngx_handoff_content_t *content, u_char *data, size_t len);
char *ngx_handoff_allocate(ngx_handoff_content_t *content, size_t len, u_char **data);

/* ---- ngx_handoff_broker.c ---- */

ngx_int_t ngx_handoff_open(ngx_cycle_t *cycle, ngx_handoff_broker_t *broker);
ngx_int_t ngx_handoff_check(ngx_handoff_broker_t *broker);
char *ngx_handoff_lack(ngx_handoff_broker_t *broker);
char *ngx_handoff_why_refused(ngx_handoff_broker_t *broker, handoff_status status);
void ngx_handoff_leave(ngx_handoff_broker_t *broker);
void ngx_handoff_close(ngx_handoff_broker_t *broker);
void ngx_handoff_unwatch_broker(ngx_handoff_broker_t *broker);
void ngx_handoff_exit_worker(ngx_handoff_main_conf_t *main);

/* ---- ngx_handoff_conf.c ---- */

extern ngx_conf_num_bounds_t  ngx_handoff_in_flight;
extern ngx_conf_num_bounds_t  ngx_handoff_fails;
extern ngx_conf_post_t  ngx_handoff_time;

ngx_handoff_main_conf_t *ngx_handoff_create_main_conf(ngx_conf_t *cf, char *module);
void ngx_handoff_init_conf(ngx_handoff_conf_t *conf);
char *ngx_handoff_merge_conf(ngx_conf_t *cf, ngx_handoff_main_conf_t *main,
    ngx_handoff_conf_t *prev, ngx_handoff_conf_t *conf);
ngx_int_t ngx_handoff_check_conf(ngx_handoff_main_conf_t *main);
char *ngx_handoff_set_pass(ngx_conf_t *cf, ngx_handoff_conf_t *conf);
char *ngx_handoff_set_queue(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

ngx_int_t ngx_handoff_is_path(ngx_str_t *name);
ngx_handoff_target_t *ngx_handoff_add_target(ngx_conf_t *cf, ngx_handoff_main_conf_t *main,
    ngx_str_t *name);
ngx_int_t ngx_handoff_add_server(ngx_conf_t *cf, ngx_handoff_target_t *target,
    ngx_handoff_server_t *server, ngx_uint_t max_conns);

ngx_int_t ngx_handoff_init_worker(ngx_cycle_t *cycle, ngx_handoff_main_conf_t *main);
ngx_handoff_broker_t *ngx_handoff_find(ngx_handoff_main_conf_t *main, ngx_handoff_conf_t *conf,
    ngx_str_t *name, ngx_handoff_offer_t *offer, ngx_log_t *log);

/* ---- ngx_handoff_queue.c ---- */

ngx_uint_t ngx_handoff_stand_behind(ngx_handoff_offer_t *offer);
ngx_uint_t ngx_handoff_may_wait(ngx_handoff_offer_t *offer, handoff_status status);
ngx_int_t ngx_handoff_enqueue(ngx_handoff_offer_t *offer);
void ngx_handoff_dequeue(ngx_handoff_offer_t *offer);
void ngx_handoff_client_gone(ngx_handoff_offer_t *offer);
void ngx_handoff_drain(ngx_handoff_broker_t *broker, ngx_log_t *log);
void ngx_handoff_empty_queue(ngx_handoff_broker_t *broker);

/* ---- ngx_handoff_status.c ---- */

ngx_int_t ngx_handoff_add_zone(ngx_conf_t *cf, ngx_handoff_main_conf_t *main);
char *ngx_handoff_set_zone_size(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
ngx_int_t ngx_handoff_init_status(ngx_cycle_t *cycle, ngx_handoff_main_conf_t *main);
void ngx_handoff_changed(ngx_handoff_broker_t *broker);
void ngx_handoff_decided(ngx_handoff_broker_t *broker);
void ngx_handoff_count(ngx_handoff_offer_t *offer);
void ngx_handoff_publish(ngx_handoff_broker_t *broker);
void ngx_handoff_withdraw(ngx_handoff_broker_t *broker);

/* ---- ngx_handoff_watch.c ---- */

ngx_int_t ngx_handoff_unwatch(ngx_handoff_offer_t *offer);
ngx_int_t ngx_handoff_watch(ngx_handoff_offer_t *offer);
ngx_uint_t ngx_handoff_is_reset(ngx_connection_t *c);
void ngx_handoff_unwatch_reading(ngx_connection_t *c);

/* ---- ngx_handoff_copy.c ---- */

ngx_int_t ngx_handoff_init_copies(ngx_cycle_t *cycle);
ngx_int_t ngx_handoff_add_copy(ngx_connection_t *c);
void ngx_handoff_adopted(ngx_connection_t *c);
void ngx_handoff_end(ngx_connection_t *c);

/* ---- ngx_handoff_socket.c ---- */

void ngx_handoff_set_socket(ngx_connection_t *c);

/* ---- ngx_handoff_tls.c ---- */

#if (NGX_HANDOFF_TLS)
ngx_int_t ngx_handoff_init_tls(void);
ngx_handoff_tls_t *ngx_handoff_get_tls(SSL *ssl);
ngx_handoff_tls_t *ngx_handoff_create_tls(ngx_connection_t *c);
ngx_uint_t ngx_handoff_tls_directions(ngx_connection_t *c);
#endif

/* For connections without TLS, too. The first two return NULL, or why it can't be handed over. */
char *ngx_handoff_tls_obstacle(ngx_connection_t *c);
char *ngx_handoff_take_tls(ngx_connection_t *c, ngx_handoff_content_t *content);
void ngx_handoff_forget_tls(ngx_connection_t *c);
ngx_uint_t ngx_handoff_tls_has_data(ngx_connection_t *c);
char *ngx_handoff_tls_name(ngx_connection_t *c);

/* ---- ngx_handoff_tls_keys.c ---- */

#if (NGX_HANDOFF_TLS)
ngx_int_t ngx_handoff_prepare_tls(SSL_CTX *ctx);
ngx_uint_t ngx_handoff_tls_receives(ngx_connection_t *c);
char *ngx_handoff_tls_receive_by_kernel(ngx_connection_t *c, ngx_handoff_tls_t *tls);
#endif

/* ---- ngx_handoff_tls_kernel.c ---- */

#if (NGX_HANDOFF_TLS)
ngx_uint_t ngx_handoff_kernel_has_tls(void);
void ngx_handoff_warn_without_tls(ngx_conf_t *cf, ngx_handoff_main_conf_t *main, SSL_CTX *ctx);
#endif

/* ---- ngx_handoff_metadata.c ---- */

ngx_int_t *ngx_handoff_find_values(ngx_conf_t *cf, ngx_handoff_index_pt index,
    ngx_handoff_known_pt known);
ngx_uint_t ngx_handoff_is_member(ngx_str_t *name);
char *ngx_handoff_write_metadata(ngx_handoff_offer_t *offer, ngx_handoff_content_t *content,
    ngx_str_t *written);
size_t ngx_handoff_escape(u_char *dst, u_char *src, size_t len);
size_t ngx_handoff_character(u_char *p, u_char *end);

/* ---- ngx_handoff_text.c ---- */

/* More than the path of a socket has. */
#define NGX_HANDOFF_SHOWN  128


ngx_str_t ngx_handoff_show(u_char *shown, u_char *path, size_t len);
char *ngx_handoff_set_text(ngx_conf_t *cf, ngx_handoff_index_pt index, ngx_handoff_known_pt known,
    ngx_handoff_text_t **text);
char *ngx_handoff_write_text(ngx_handoff_text_t *text, ngx_handoff_value_pt value, void *session,
    ngx_handoff_content_t *content, ngx_str_t *written);

/* ---- ngx_handoff_variable.c ---- */

/* The variables that both modules have, and how they get the value of one. */
extern ngx_str_t  ngx_handoff_variables[];

ngx_int_t ngx_handoff_get_variable(ngx_connection_t *c, ngx_pool_t *pool, ngx_variable_value_t *v,
    ngx_handoff_offer_t *offer, uintptr_t which);


/*
 * The directives of both modules but handoff_pass. `where` they may stand, which configuration
 * they set (its ngx_handoff_conf_t comes first), and what sets a text and the metadata.
 */
#define NGX_HANDOFF_COMMANDS(where, conf, set_text, set_metadata)                                               \
    { ngx_string("handoff_timeout"), where|NGX_CONF_TAKE1, ngx_conf_set_msec_slot,                \
      conf, offsetof(ngx_handoff_conf_t, timeout), &ngx_handoff_time },                           \
    { ngx_string("handoff_attempt_timeout"), where|NGX_CONF_TAKE1, ngx_conf_set_msec_slot,        \
      conf, offsetof(ngx_handoff_conf_t, attempt_timeout), &ngx_handoff_time },                   \
    { ngx_string("handoff_max_in_flight"), where|NGX_CONF_TAKE1, ngx_conf_set_num_slot,           \
      conf, offsetof(ngx_handoff_conf_t, max_in_flight), &ngx_handoff_in_flight },                \
    { ngx_string("handoff_max_fails"), where|NGX_CONF_TAKE1, ngx_conf_set_num_slot,               \
      conf, offsetof(ngx_handoff_conf_t, max_fails), &ngx_handoff_fails },                        \
    { ngx_string("handoff_fail_timeout"), where|NGX_CONF_TAKE1, ngx_conf_set_msec_slot,           \
      conf, offsetof(ngx_handoff_conf_t, fail_timeout), &ngx_handoff_time },                      \
    { ngx_string("handoff_queue"), where|NGX_CONF_TAKE12, ngx_handoff_set_queue,                  \
      conf, 0, NULL },                                                                            \
    { ngx_string("handoff_service"), where|NGX_CONF_TAKE1, set_text,                              \
      conf, offsetof(ngx_handoff_conf_t, service), NULL },                                        \
    { ngx_string("handoff_correlation"), where|NGX_CONF_TAKE1, set_text,                          \
      conf, offsetof(ngx_handoff_conf_t, correlation), NULL },                                    \
    { ngx_string("handoff_metadata"), where|NGX_CONF_1MORE, set_metadata,                         \
      conf, offsetof(ngx_handoff_conf_t, metadata), NULL }

#pragma GCC visibility pop

#endif
