/* What the backend's parts share. backend.c: its loop, and who is adopted. client.c: what is said
 * on the connections. */
#ifndef BACKEND_H
#define BACKEND_H

#include "request.h"

#include <stdarg.h>
#include <sys/queue.h>

#include <handoff.h>

/* How a connection came. */
enum way { HANDOFF, UNIX, TCP };

struct buffer {
    char *bytes;
    size_t len, size;
};

/* What an epoll event names begins with whether it is a client. */
struct watched {
    bool is_client;
    int fd;
};

struct client {
    struct watched watched;
    TAILQ_ENTRY(client) next;
    enum way way;
    bool echo;       /* it speaks lines that come back, not HTTP */
    bool in_request; /* the head is read, the body is not */
    bool greeted;    /* of an echo */
    bool last;       /* nothing more is read; it ends when all is sent */
    bool lingering;  /* all is sent; what comes until it ends is dropped */
    bool waits_for_room;
    bool streams;    /* it gets an event for each request for /tick */
    struct request request;
    struct buffer in, out;
    struct buffer head; /* of a request for /head, as it came */
    size_t sent;
    uint64_t generate, generated; /* bytes of a body that are made while they are sent */
    uint64_t events;              /* so many are still to be sent */
    char *tls;                    /* version and cipher, if the kernel does its TLS */
    char *service, *correlation, *metadata;
    size_t metadata_len;
};

TAILQ_HEAD(clients, client);
extern struct clients clients;
extern bool draining;

/* For what can only fail by a mistake in these programs, or when the system has nothing left. */
void check(int ok, const char *what, const char *why);
void *allocate(size_t size);

/* backend.c, for the answers to /stats, /hold and /release, and to /change/LETTERS, /copies and /forget,
 * which are about the copies that were kept. */
int write_statistics(char *text, size_t size);
void hold_arrivals(void);
void release_held(void);
void change_copies(const char *letters);
int describe_copies(char *text, size_t size);
void close_copies(void);
void log_request(const char *way, const char *id);
void watch(struct watched *what, uint32_t events);
void change_watch(struct watched *what, uint32_t events);
void forget(struct watched *what);

/* client.c, for /stats: how the clients with TLS have ended, as a JSON object. */
int describe_tls_ends(char *text, size_t size);

/* A connection that this process owns; `arrival` says what came with it, or is NULL. May end it. */
void begin_client(int fd, enum way way, bool echo, const handoff_arrival *arrival);
/* An epoll event. May end the client. */
void on_client(struct client *client);
/* Ends what waits for a request, lets the rest finish the one it has. */
void drain_clients(void);

#endif
