/*
 * mod_handoff hands a client's connection over to a backend, which answers on the client's own socket.
 *
 *   mod_handoff.c        the directives, and where Apache calls the module
 *   handoff_record.c     what Apache has read from the client, kept as it came
 *   handoff_request.c    the offer, and how Apache lets go of a connection
 *   handoff_broker.c     a child's brokers
 *   handoff_metadata.c   what goes with an offer
 */
#ifndef MOD_HANDOFF_H
#define MOD_HANDOFF_H

#include <sys/uio.h>

#include <httpd.h>
#include <http_config.h>
#include <http_connection.h>
#include <http_core.h>
#include <http_log.h>
#include <http_protocol.h>
#include <http_request.h>
#include <http_ssl.h>
#include <ap_expr.h>
#include <apr_lib.h>
#include <apr_strings.h>
#include <util_varbuf.h>

#include <handoff.h>

extern module AP_MODULE_DECLARE_DATA handoff_module;

#pragma GCC visibility push(hidden)

/* No backend takes more in one offer: docs/protocol.md. */
enum { HANDOFF_MOST_BYTES = 131072 };

/* A member of the metadata that the administrator has added. */
typedef struct {
    const char *name;
    ap_expr_info_t *value;
} handoff_member;

/* Of a <Location>, a <Directory> or a server. What is NULL or negative is not set. */
typedef struct {
    const char *pass; /* the backend's path; "": off */
    const char *location; /* where `pass` or `header` stands */
    const char *header, *data_header; /* of a response; "": off */
    apr_interval_time_t timeout;
    int log_status;
    ap_expr_info_t *service, *correlation, *metadata;
    apr_array_header_t *members; /* of handoff_member; not NULL with "HandoffMetadata default" */
} handoff_dir_conf;

/* Of a server: what a response's header may name. */
typedef struct {
    apr_table_t *backends; /* names to paths */
    apr_array_header_t *directories; /* each ends in '/' */
} handoff_server_conf;

/* Of a request, from its first byte on, also after internal redirects. */
typedef struct {
    struct ap_varbuf read; /* what Apache has taken from the connection */
    int incomplete; /* `read` had no room, and is empty */
    const char *outcome, *reason; /* for the log; NULL: it was not to be handed over */
    int log_status;
} handoff_request;

/* mod_handoff.c */
extern int handoff_wanted; /* somewhere something is to be handed over */

/* handoff_record.c */
void handoff_register_record(void);
handoff_request *handoff_request_of(request_rec *r);
const char *handoff_get_preread(request_rec *r, apr_array_header_t *parts);

/* handoff_request.c */
int handoff_hand_over(request_rec *r, const handoff_dir_conf *conf, const char *path,
                      int found, const char *data);
void handoff_fall_back(request_rec *r, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* handoff_broker.c */
extern handoff_broker_options handoff_options;
void handoff_child_init(apr_pool_t *child, server_rec *server);
const char *handoff_check_path(apr_pool_t *pool, const char *path);
handoff_status handoff_offer_to(const char *path, int found, const handoff_offer *offer,
                                handoff_verdict *verdict, const char **error);
int handoff_dummy(void);

/* handoff_metadata.c */
int handoff_is_member(const char *name);
const char *handoff_write_metadata(request_rec *r, const handoff_dir_conf *conf, const char *data,
                                   apr_size_t *len, const char **error);

#pragma GCC visibility pop

#endif
